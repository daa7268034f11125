use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::*;
use crate::rng::Rng;
use crate::test_utils::*;
use crate::{Memory, feature};

const SETUP: QueueSetup = QueueSetup { size: SIZE, ready: true, desc: 0x1000, avail: 0x2000, used: 0x3000 };

fn make(memory: &Memory, setup: QueueSetup, event_idx: bool) -> Result<DeviceQueue, GuestFault> {
    DeviceQueue::new(Arc::from("test"), 0, SIZE, setup, event_idx, &memory.memory())
}

/// A guest whose device is not used: its queue 0 lies where [`SETUP`] says.
fn guest() -> (FakeGuest, DeviceQueue) {
    let guest = FakeGuest::boot(Box::new(Rng::new("test")), 0);
    let queue = make(&guest.memory, SETUP, false).unwrap();
    (guest, queue)
}

fn pop(guest: &FakeGuest, queue: &mut DeviceQueue) -> Result<Option<Chain>, FaultKind> {
    let mut chain = Chain::default();
    match queue.pop(&guest.ram(), &mut chain) {
        Ok(found) => Ok(found.then_some(chain)),
        Err(fault) => {
            assert_eq!((fault.device.as_str(), fault.queue), ("test", 0));
            Err(fault.kind)
        }
    }
}

#[test]
fn splits_readable_from_writable() {
    let (mut guest, mut queue) = guest();
    guest.chain(0, &[(DATA, 4, false), (HIGH, 8, false), (DATA + 64, 16, true)]);
    let chain = pop(&guest, &mut queue).unwrap().unwrap();
    assert_eq!((chain.head(), chain.readable_len(), chain.writable_len()), (0, 12, 16));
    assert_eq!(chain.readable().len(), 2);
    assert!(pop(&guest, &mut queue).unwrap().is_none());
    queue.undo_pop(1);
    assert_eq!(pop(&guest, &mut queue).unwrap().unwrap().head(), 0);

    let ram = guest.ram();
    guest.put(DATA, b"abcd");
    guest.put(HIGH, b"efghijkl");
    let mut data = [0; 6];
    chain.read_at(&ram, 2, &mut data).unwrap();
    assert_eq!(&data, b"cdefgh");
    assert!(chain.read_at(&ram, 7, &mut data).is_none());
    assert!(chain.read_at(&ram, u64::MAX, &mut data).is_none());
    assert!(chain.write_at(&ram, 11, &data).is_none());
    chain.write_at(&ram, 10, &data).unwrap();
    assert_eq!(guest.take(DATA + 74, 6), b"cdefgh");
}

#[test]
fn set_up_that_cannot_be_used_is_refused() {
    let memory = memory();
    let kind = |setup| make(&memory, setup, false).map(|_| ()).unwrap_err().kind;
    assert_eq!(kind(QueueSetup { ready: false, ..SETUP }), FaultKind::NotReady);
    for size in [0, 3, 15, SIZE * 2, u16::MAX] {
        assert_eq!(kind(QueueSetup { size, ..SETUP }), FaultKind::BadSize(size));
    }
    for address in [0, 0x1008, LOW_END, LOW_END - 0xf0, HIGH_END - 0xf0, u64::MAX - 0xf, !0xff] {
        let ring = "descriptor table";
        assert_eq!(kind(QueueSetup { desc: address, ..SETUP }), FaultKind::BadRing { ring, address });
    }
    for address in [0x2001, LOW_END - 2, u64::MAX - 1] {
        let ring = "available ring";
        assert_eq!(kind(QueueSetup { avail: address, ..SETUP }), FaultKind::BadRing { ring, address });
        let (ring, address) = ("used ring", address & !1 | 2);
        assert_eq!(kind(QueueSetup { used: address, ..SETUP }), FaultKind::BadRing { ring, address });
    }
    // At the very end of memory, all rings fit exactly.
    let used = HIGH_END - (6 + 8 * 16) - 2;
    assert_eq!(used % 4, 0);
    make(&memory, QueueSetup { desc: LOW_END - 256, avail: HIGH_END - 0x200, used, ..SETUP }, true)
        .map(|_| ())
        .unwrap();
    for (desc, avail, used) in [(0x1000, 0x1000, 0x3000), (0x1000, 0x10fe, 0x3000), (0x1000, 0x2000, 0x2024)]
    {
        assert_eq!(kind(QueueSetup { desc, avail, used, ..SETUP }), FaultKind::RingsOverlap);
    }
}

/// CVE-2016-5403: QEMU's `virtqueue_pop` walked as far as the guest wanted.
#[test]
fn cve_2016_5403_descriptor_loop_is_bounded() {
    let (guest, mut queue) = guest();
    for index in 0..SIZE {
        guest.desc(0, index, DATA, 16, NEXT, (index + 1) % SIZE);
    }
    guest.offer(0, 3);
    assert_eq!(pop(&guest, &mut queue), Err(FaultKind::ChainTooLong));
    guest.desc(0, 3, DATA, 16, NEXT, 3);
    assert_eq!(pop(&guest, &mut queue), Err(FaultKind::ChainTooLong));
}

#[test]
fn chain_as_long_as_the_queue_is_fine() {
    let (mut guest, mut queue) = guest();
    guest.chain(0, &[(DATA, 1, true); SIZE as usize]);
    assert_eq!(pop(&guest, &mut queue).unwrap().unwrap().writable_len(), u64::from(SIZE));
}

#[test]
fn indices_beyond_the_table_are_faults() {
    let (guest, mut queue) = guest();
    guest.offer(0, SIZE);
    assert_eq!(pop(&guest, &mut queue), Err(FaultKind::DescriptorIndex(SIZE)));
    let (guest, mut queue) = self::guest();
    guest.desc(0, 0, DATA, 16, NEXT, u16::MAX);
    guest.offer(0, 0);
    assert_eq!(pop(&guest, &mut queue), Err(FaultKind::DescriptorIndex(u16::MAX)));
}

#[test]
fn order_and_indirect_are_checked() {
    let (mut guest, mut queue) = guest();
    guest.chain(0, &[(DATA, 4, true), (DATA, 4, false)]);
    assert_eq!(pop(&guest, &mut queue), Err(FaultKind::Order));
    let (guest, mut queue) = self::guest();
    guest.desc(0, 0, DATA, 32, INDIRECT, 0);
    guest.offer(0, 0);
    assert_eq!(pop(&guest, &mut queue), Err(FaultKind::Indirect));
}

/// CVE-2021-3748, CVE-2024-3446: descriptors that point at devices' windows instead of memory.
#[test]
fn cve_2024_3446_descriptor_outside_memory_is_a_fault() {
    for (address, len) in [
        (0xd000_0000, 4),
        (0xd000_0050, 4),
        (0xfee0_0000, 4),
        (LOW_END, 1),
        (LOW_END - 1, 2),
        (LOW_END - 1, (HIGH - LOW_END) as u32 + 2),
        (HIGH - 1, 1),
        (HIGH_END - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 3, 4),
        (u64::MAX - 3, u32::MAX),
        (DATA, u32::MAX),
    ] {
        for write in [false, true] {
            let (mut guest, mut queue) = guest();
            guest.chain(0, &[(address, len, write)]);
            assert_eq!(pop(&guest, &mut queue), Err(FaultKind::Address { address, len }));
        }
    }
    let (mut guest, mut queue) = guest();
    guest.chain(0, &[(LOW_END - 1, 1, false), (HIGH_END - 1, 1, true)]);
    assert!(pop(&guest, &mut queue).unwrap().is_some());
}

/// virtio-queue 0.8.0 ended chains beyond 2^32 bytes silently; a device's own limit is tighter.
#[test]
fn total_length_is_limited() {
    let (mut guest, mut queue) = guest();
    queue.limit_chain_bytes(100);
    guest.chain(0, &[(DATA, 60, true), (DATA, 40, true)]);
    assert!(pop(&guest, &mut queue).unwrap().is_some());
    guest.chain(0, &[(DATA, 60, true), (DATA, 41, true)]);
    assert_eq!(pop(&guest, &mut queue), Err(FaultKind::ChainTooLarge { limit: 100 }));
}

/// FC's `InvalidAvailIdx`, CVE-2020-10717's relatives: more heads than the ring holds.
#[test]
fn avail_index_jump_is_a_fault() {
    for index in [SIZE + 1, 0x8000, u16::MAX] {
        let (guest, mut queue) = guest();
        guest.set_avail_index(0, index);
        assert_eq!(pop(&guest, &mut queue), Err(FaultKind::AvailIndexJump { index, next: 0 }));
    }
    let (guest, mut queue) = guest();
    guest.set_avail_index(0, SIZE);
    guest.desc(0, 0, DATA, 1, WRITE, 0);
    for _ in 0..SIZE {
        assert!(pop(&guest, &mut queue).unwrap().is_some());
    }
    assert!(pop(&guest, &mut queue).unwrap().is_none());
    // Backwards is a jump, too.
    guest.set_avail_index(0, SIZE - 1);
    assert!(matches!(pop(&guest, &mut queue), Err(FaultKind::AvailIndexJump { .. })));
}

#[test]
fn indices_wrap_at_65536() {
    let (mut guest, mut queue) = guest();
    for n in 0..70_000_u32 {
        let head = guest.chain(0, &[(DATA, 1, true)]);
        let chain = pop(&guest, &mut queue).unwrap().unwrap();
        assert_eq!(chain.head(), head);
        queue.add_used(&guest.ram(), head, n).unwrap();
    }
    assert_eq!(guest.avail_index(0), (70_000_u32 & 0xffff) as u16);
}

/// CVE-2020-13759: ring indices were copied byte by byte, so that a reader saw half of an update.
#[test]
fn cve_2020_13759_ring_index_is_never_torn() {
    let (guest, mut queue) = guest();
    let stop = Arc::new(AtomicBool::new(false));
    let (memory, flag) = (guest.memory.clone(), stop.clone());
    // From 0x00f8 a torn read of a step to 0x0100 gives 0x0000 or 0x01f8: a jump.
    guest.set_avail_index(0, 0x00f8);
    queue.undo_pop(0u16.wrapping_sub(0x00f8));
    let driver = std::thread::spawn(move || {
        let ram = memory.memory();
        while !flag.load(Ordering::Relaxed) {
            for index in [0x0100_u16, 0x00f8] {
                ram.store(index.to_le(), GuestAddress(rings(0).1 + 2), Ordering::Release).unwrap();
            }
        }
    });
    guest.desc(0, 0, DATA, 1, WRITE, 0);
    for _ in 0..200_000 {
        match pop(&guest, &mut queue) {
            Ok(Some(_)) => queue.undo_pop(1),
            Ok(None) => {}
            Err(kind) => panic!("torn: {kind}"),
        }
    }
    stop.store(true, Ordering::Relaxed);
    driver.join().unwrap();
}

/// A chain that changes under the device: what is handed out was checked, whatever happens to the table.
#[test]
fn chain_that_changes_while_it_is_walked_is_a_checked_copy() {
    let (guest, mut queue) = guest();
    let stop = Arc::new(AtomicBool::new(false));
    let (memory, flag) = (guest.memory.clone(), stop.clone());
    let driver = std::thread::spawn(move || {
        let ram = memory.memory();
        let at = GuestAddress(rings(0).0);
        while !flag.load(Ordering::Relaxed) {
            for (address, len) in [(DATA, 16_u32), (u64::MAX - 1, 16), (DATA, u32::MAX), (LOW_END - 8, 16)] {
                ram.write_obj(address, at).unwrap();
                ram.write_obj(len, GuestAddress(at.0 + 8)).unwrap();
            }
        }
    });
    guest.desc(0, 0, DATA, 16, WRITE, 0);
    guest.offer(0, 0);
    for _ in 0..50_000 {
        match pop(&guest, &mut queue) {
            Ok(Some(chain)) => {
                // Usable without another look at the table.
                chain.write_at(&guest.ram(), chain.writable_len() - 1, &[1]).unwrap();
                queue.undo_pop(1);
            }
            Ok(None) => panic!("the head is there"),
            Err(kind) => assert!(matches!(kind, FaultKind::Address { .. }), "{kind}"),
        }
    }
    stop.store(true, Ordering::Relaxed);
    driver.join().unwrap();
}

#[test]
fn driver_suppresses_interrupts() {
    let (guest, mut queue) = guest();
    let ram = guest.ram();
    assert!(queue.needs_notification(&ram).unwrap());
    guest.put(rings(0).1, &1_u16.to_le_bytes());
    assert!(!queue.needs_notification(&ram).unwrap());

    let mut queue = make(&guest.memory, SETUP, true).unwrap();
    let used_event = rings(0).1 + 4 + 2 * u64::from(SIZE);
    guest.put(used_event, &1_u16.to_le_bytes());
    queue.add_used(&ram, 0, 0).unwrap();
    assert!(!queue.needs_notification(&ram).unwrap());
    queue.add_used(&ram, 0, 0).unwrap();
    assert!(queue.needs_notification(&ram).unwrap());
}

/// virtio-queue 0.7.1: a reset queue was iterated. Ours is dropped by a reset, so there is nothing to pop from.
#[test]
fn event_after_reset_touches_nothing() {
    let mut guest = FakeGuest::boot(Box::new(Rng::new("test")), feature::EVENT_IDX);
    guest.chain(0, &[(DATA, 64, true)]);
    guest.set(crate::mmio::Register::Status, 0);
    guest.notify(0);
    assert!(guest.used(0).is_empty());
    assert_eq!(guest.take(DATA, 64), [0; 64]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the table says: a fault or a chain within all limits, wholly in memory.
    #[test]
    fn arbitrary_tables(
        descs in vec((any::<u64>(), any::<bool>(), any::<u32>(), 0_u16..8, 0_u16..18), usize::from(SIZE)),
        heads in vec(0_u16..18, 1..usize::from(SIZE)),
    ) {
        let (guest, mut queue) = guest();
        for (index, (address, near, len, flags, next)) in (0..).zip(&descs) {
            let (address, len) = if *near { (DATA + address % 0x1000, len % 0x2000) } else { (*address, *len) };
            // Mostly direct, or nothing would be walked.
            let flags = if *flags == 7 { *flags } else { flags & 3 };
            guest.desc(0, index, address, len, flags, *next);
        }
        heads.iter().for_each(|head| guest.offer(0, *head));
        for _ in &heads {
            let Ok(Some(chain)) = pop(&guest, &mut queue) else { break };
            prop_assert!(chain.readable().len() + chain.writable().len() <= usize::from(SIZE));
            let sum: u64 = chain.readable().iter().map(|part| u64::from(part.len)).sum();
            prop_assert_eq!(sum, chain.readable_len());
            for part in chain.readable().iter().chain(chain.writable()) {
                let last = part.address.0 + u64::from(part.len) - 1;
                prop_assert!(guest.ram().read_obj::<u8>(part.address).is_ok());
                prop_assert!(guest.ram().read_obj::<u8>(GuestAddress(last)).is_ok());
            }
        }
    }
}
