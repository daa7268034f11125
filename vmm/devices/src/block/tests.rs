use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use super::*;
use crate::feature;
use crate::mmio::Register;
use crate::queue::FaultKind;
use crate::test_utils::*;

const SECTORS: u64 = 16;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const STATUS: u64 = DATA + 0x8000;
const BUFFER: u64 = DATA + 0x1000;

fn disk() -> File {
    let file = tempfile::tempfile().unwrap();
    for sector in 0..SECTORS {
        file.write_all_at(&[sector as u8 + 1; 512], sector * 512).unwrap();
    }
    file
}

fn guest_with(file: Option<File>, read_only: bool) -> (FakeGuest, Slot) {
    let block = Block::new(BlockConfig { id: "disk-with-a-long-name".into(), read_only }, file).unwrap();
    let slot = block.slot();
    (FakeGuest::boot(Box::new(block), feature::EVENT_IDX), slot)
}

fn guest() -> (FakeGuest, File) {
    let file = disk();
    let (guest, _) = guest_with(Some(file.try_clone().unwrap()), false);
    (guest, file)
}

fn header(guest: &FakeGuest, kind: u32, sector: u64) {
    guest.put(DATA, &kind.to_le_bytes());
    guest.put(DATA + 4, &[0; 4]);
    guest.put(DATA + 8, &sector.to_le_bytes());
    guest.put(STATUS, &[0xee]);
}

/// Runs a request and returns its status and used length.
fn run(guest: &mut FakeGuest, kind: u32, sector: u64, len: u32) -> (u8, u32) {
    header(guest, kind, sector);
    let write = kind != OUT;
    let mut parts = vec![(DATA, 16, false), (BUFFER, len, write), (STATUS, 1, true)];
    if len == 0 {
        parts.remove(1);
    }
    guest.chain(0, &parts);
    guest.notify(0);
    let used = guest.used(0);
    assert_eq!(used.len(), 1, "{:?}", guest.transport.last_fault());
    (guest.take(STATUS, 1)[0], used[0].1)
}

#[test]
fn announces_itself() {
    let (guest, _) = guest();
    assert_eq!(guest.config::<8>(0), SECTORS.to_le_bytes());
    assert_eq!(guest.config::<4>(12), 254_u32.to_le_bytes());
    assert_eq!(guest.config::<4>(20), 512_u32.to_le_bytes());
    assert_eq!(guest.config::<8>(0xe00), [0; 8]);
    guest.set(Register::DeviceFeaturesSel, 0);
    assert_eq!(guest.get(Register::DeviceFeatures) & 1 << 5, 0);
    let (guest, _) = guest_with(Some(disk()), true);
    assert_ne!(guest.get(Register::DeviceFeatures) & 1 << 5, 0);
}

#[test]
fn reads_writes_and_flushes() {
    let (mut guest, file) = guest();
    assert_eq!(run(&mut guest, IN, 2, 1024), (0, 1025));
    assert_eq!(guest.take(BUFFER, 512), [3; 512]);
    assert_eq!(guest.take(BUFFER + 512, 512), [4; 512]);
    guest.put(BUFFER, &[0x77; 512]);
    assert_eq!(run(&mut guest, OUT, 15, 512), (0, 1));
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 15 * 512).unwrap();
    assert_eq!(sector, [0x77; 512]);
    assert_eq!(run(&mut guest, FLUSH, 0, 0), (0, 1));
    assert_eq!((guest.counter("read_bytes"), guest.counter("write_bytes")), (1024, 512));
    assert_eq!((guest.counter("reads"), guest.counter("writes"), guest.counter("flushes")), (1, 1, 1));
}

/// Descriptors may be cut anywhere; only bytes count.
#[test]
fn framing_does_not_matter() {
    let (mut guest, file) = guest();
    header(&guest, OUT, 1);
    guest.put(DATA + 16, &[0x42; 512]);
    guest.chain(0, &[(DATA, 1, false), (DATA + 1, 20, false), (DATA + 21, 507, false), (STATUS, 1, true)]);
    guest.notify(0);
    assert_eq!(guest.take(STATUS, 1), [0]);
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 512).unwrap();
    assert_eq!(sector, [0x42; 512]);
    // Data and status in one descriptor.
    header(&guest, IN, 1);
    guest.chain(0, &[(DATA, 16, false), (BUFFER, 513, true)]);
    guest.notify(0);
    assert_eq!(guest.take(BUFFER, 512), [0x42; 512]);
    assert_eq!(guest.take(BUFFER + 512, 1), [0]);
}

/// CH #8388: sector arithmetic overflowed.
#[test]
fn ch_8388_requests_beyond_the_capacity_fail() {
    let (mut guest, file) = guest();
    guest.put(BUFFER, &[0x99; 1024]);
    for sector in
        [SECTORS, SECTORS - 1, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 55, i64::MAX as u64]
    {
        assert_eq!(run(&mut guest, IN, sector, 1024).0, 1, "read at {sector}");
        assert_eq!(run(&mut guest, OUT, sector, 1024).0, 1, "write at {sector}");
    }
    assert_eq!(file.metadata().unwrap().len(), SECTORS * 512);
    assert_eq!(guest.take(BUFFER, 1024), [0x99; 1024]);
    assert_eq!(run(&mut guest, IN, SECTORS - 1, 512).0, 0);
    // Not whole sectors.
    assert_eq!(run(&mut guest, IN, 0, 511).0, 1);
    assert_eq!(guest.counter("errors"), 15);
}

#[test]
fn read_only_is_honoured_by_the_device() {
    let file = disk();
    let (mut guest, _) = guest_with(Some(file.try_clone().unwrap()), true);
    guest.put(BUFFER, &[0x99; 512]);
    assert_eq!(run(&mut guest, OUT, 0, 512), (1, 1));
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 0).unwrap();
    assert_eq!(sector, [1; 512]);
}

#[test]
fn id_is_cut_to_twenty_bytes() {
    let (mut guest, _) = guest();
    assert_eq!(run(&mut guest, GET_ID, 0, 20), (0, 21));
    assert_eq!(guest.take(BUFFER, 20), b"disk-with-a-long-nam");
    guest.put(BUFFER, &[0; 20]);
    assert_eq!(run(&mut guest, GET_ID, 0, 19).0, 1);
    assert_eq!(guest.take(BUFFER, 19), [0; 19]);
    assert_eq!(run(&mut guest, 11, 0, 16).0, 2);
}

/// GHSA-jmr4-g2hv-mjj6: a raw disk whose guest wrote another format's header was opened as that format.
#[test]
fn ghsa_jmr4_g2hv_mjj6_foreign_magic_stays_raw() {
    for magic in [b"QFI\xfb\0\0\0\x03".as_slice(), b"KDMV", b"vhdxfile", b"conectix", b"LUKS\xba\xbe"] {
        let mut file = disk();
        file.rewind().unwrap();
        file.write_all(magic).unwrap();
        let (mut guest, _) = guest_with(Some(file), true);
        assert_eq!(guest.config::<8>(0), SECTORS.to_le_bytes());
        assert_eq!(run(&mut guest, IN, 0, 512).0, 0);
        assert_eq!(guest.take(BUFFER, magic.len()), magic);
    }
}

/// FC #5485: after a short transfer, data was repeated. A file truncated under the device is an I/O error.
#[test]
fn fc_5485_short_transfer_is_no_success() {
    let (mut guest, file) = guest();
    file.set_len(700).unwrap();
    assert_eq!(run(&mut guest, IN, 0, 1024).0, 1);
    assert_eq!(guest.take(BUFFER, 512), [1; 512]);
    assert_eq!(run(&mut guest, IN, 0, 512).0, 0);
    assert_eq!(guest.counter("read_bytes"), 512);
}

/// Segments out of order in memory, in the right order in the file.
#[test]
fn scattered_buffers_keep_their_order() {
    let (mut guest, _) = guest();
    header(&guest, IN, 0);
    guest.chain(
        0,
        &[
            (DATA, 16, false),
            (HIGH, 512, true),
            (BUFFER, 512, true),
            (HIGH + 512, 512, true),
            (STATUS, 1, true),
        ],
    );
    guest.notify(0);
    assert_eq!(guest.take(HIGH, 512), [1; 512]);
    assert_eq!(guest.take(BUFFER, 512), [2; 512]);
    assert_eq!(guest.take(HIGH + 512, 512), [3; 512]);
}

#[test]
fn malformed_chains_are_given_back() {
    let (mut guest, _) = guest();
    header(&guest, IN, 0);
    for parts in [
        // Header too short; nothing to write the status to; the header where the device may not read.
        [(DATA, 15, false), (STATUS, 1, true)].as_slice(),
        &[(DATA, 16, false), (STATUS, 1, false)],
        &[(DATA, 16, true), (STATUS, 1, true)],
        &[(DATA, 0, false)],
    ] {
        guest.chain(0, parts);
        guest.notify(0);
        assert_eq!(guest.used(0).first().map(|used| used.1), Some(0));
    }
    assert_eq!(guest.counter("malformed"), 4);
    assert_eq!(guest.take(STATUS, 1), [0xee]);
    assert_eq!(run(&mut guest, IN, 0, 512).0, 0);
}

#[test]
fn request_larger_than_the_limit_is_a_fault() {
    let (mut guest, _) = guest();
    guest.chain(0, &[(0, 2 << 20, true); 9]);
    guest.notify(0);
    assert!(guest.needs_reset());
    assert!(matches!(guest.transport.last_fault().unwrap().kind, FaultKind::ChainTooLarge { .. }));
}

/// CVE-2024-3446 and CVE-2021-3748: buffers on the ring itself, or the header as its own data.
#[test]
fn cve_2021_3748_buffers_on_the_rings_hurt_only_the_guest() {
    let (mut guest, _) = guest();
    let (desc, avail, used) = rings(0);
    for target in [desc, avail, used] {
        header(&guest, IN, 0);
        guest.chain(0, &[(DATA, 16, false), (target, 512, true), (STATUS, 1, true)]);
        guest.notify(0);
        guest.start(0);
    }
    assert_eq!(run(&mut guest, IN, 1, 512).0, 0);
}

/// CVE-2026-45782: a reset with requests in flight. Here a request is complete or was never begun.
#[test]
fn cve_2026_45782_reset_with_requests_waiting() {
    let (mut guest, file) = guest();
    header(&guest, OUT, 0);
    guest.put(BUFFER, &[0x55; 512]);
    for _ in 0..5 {
        guest.chain(0, &[(DATA, 16, false), (BUFFER, 512, false), (STATUS, 1, true)]);
    }
    guest.set(Register::QueueNotify, 0);
    guest.set(Register::Status, 0);
    guest.pump();
    assert!(guest.used(0).is_empty());
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 0).unwrap();
    assert_eq!(sector, [1; 512]);
    guest.start(0);
    assert_eq!(run(&mut guest, IN, 0, 512).0, 0);
}

#[test]
fn slot_is_filled_and_emptied_while_the_guest_runs() {
    let (mut guest, slot) = guest_with(None, false);
    assert_eq!(guest.config::<8>(0), [0; 8]);
    assert_eq!(run(&mut guest, IN, 0, 512).0, 1);
    assert_eq!(run(&mut guest, FLUSH, 0, 0).0, 1);
    guest.interrupts();
    guest.set(Register::InterruptAck, 3);
    let generation = guest.get(Register::ConfigGeneration);

    slot.attach(disk()).unwrap();
    assert_eq!((guest.interrupts(), guest.get(Register::InterruptStatus)), (1, 2));
    assert_ne!(guest.get(Register::ConfigGeneration), generation);
    assert_eq!(guest.config::<8>(0), SECTORS.to_le_bytes());
    assert_eq!(run(&mut guest, IN, 0, 512).0, 0);
    assert!(matches!(slot.attach(disk()), Err(SlotError::Occupied(_))));

    guest.interrupts();
    let mut file = slot.detach().unwrap();
    assert_eq!(guest.interrupts(), 1);
    assert_eq!(run(&mut guest, IN, 0, 512).0, 1);
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, SECTORS * 512);
    assert!(matches!(slot.detach(), Err(SlotError::Empty(_))));
}

#[test]
fn file_without_a_sector_is_refused() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(511).unwrap();
    let error = Block::new(BlockConfig { id: "x".into(), read_only: true }, Some(file)).err().unwrap();
    assert!(matches!(error, SlotError::TooSmall { bytes: 511, .. }));
    let file = tempfile::tempfile().unwrap();
    file.set_len(1500).unwrap();
    let (guest, slot) = guest_with(Some(file), true);
    assert_eq!((slot.sectors(), guest.config::<8>(0)[0]), (2, 2));
}

/// A full ring of requests is served in turns, without a second notification.
#[test]
fn full_ring_is_served() {
    let (mut guest, _) = guest();
    header(&guest, FLUSH, 0);
    for round in 0..4 {
        for _ in 0..SIZE / 2 {
            guest.chain(0, &[(DATA, 16, false), (STATUS, 1, true)]);
        }
        guest.notify(0);
        assert_eq!(guest.used(0).len(), usize::from(SIZE / 2), "round {round}");
    }
}
