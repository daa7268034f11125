use std::os::unix::net::UnixDatagram;

use super::*;
use crate::feature;
use crate::test_utils::*;

const CSUM: u64 = 1 << 1;
const TSO4: u64 = 1 << 7;
const MERGE: u64 = 1 << 15;

fn guest(features: u64) -> (FakeGuest, UnixDatagram, Offloads) {
    let (tap, wire, offloads) = SocketTap::pair().unwrap();
    let config = NetConfig { id: "net-0".into(), mac: "02:00:00:00:00:01".parse().unwrap() };
    (FakeGuest::boot(Box::new(Net::new(config, Box::new(tap))), features), wire, offloads)
}

fn receive(wire: &UnixDatagram) -> Option<Vec<u8>> {
    let mut frame = vec![0; 70_000];
    let len = wire.recv(&mut frame).ok()?;
    frame.truncate(len);
    Some(frame)
}

fn frame(len: usize, fill: u8) -> Vec<u8> {
    let mut frame = vec![fill; len];
    frame[..12].fill(0);
    frame
}

#[test]
fn mac_addresses() {
    let (guest, _, _) = guest(0);
    assert_eq!(guest.config::<6>(0), [2, 0, 0, 0, 0, 1]);
    assert_eq!("02:00:00:00:00:01".parse::<Mac>().unwrap().to_string(), "02:00:00:00:00:01");
    for bad in [
        "",
        "02:00:00:00:00",
        "02:00:00:00:00:01:02",
        "01:00:00:00:00:01",
        "00:00:00:00:00:00",
        "2:0:0:0:0:1",
        "+2:00:00:00:00:01",
    ] {
        assert!(bad.parse::<Mac>().is_err(), "{bad:?}");
    }
}

#[test]
fn tap_names_are_checked() {
    for name in ["kata-cc-none", "", "a-name-longer-than-fifteen", "a/b", "tap%d", "a\0b"] {
        assert!(Tap::open(name).is_err(), "{name:?}");
    }
}

/// FC #4680: the tap was told of what was offered.
#[test]
fn fc_4680_offloads_follow_what_was_accepted() {
    for (features, flags) in [
        (0, 0),
        // Segmentation without checksums means nothing.
        (TSO4, 0),
        (CSUM, libc::TUN_F_CSUM),
        (CSUM | TSO4, libc::TUN_F_CSUM | libc::TUN_F_TSO4),
    ] {
        let (_guest, _, offloads) = guest(features);
        assert_eq!(*offloads.lock().unwrap(), [flags]);
    }
}

#[test]
fn transmits_scattered_frames() {
    let (mut guest, wire, _) = guest(feature::EVENT_IDX);
    guest.put(DATA, &frame(100, 7));
    guest.chain(1, &[(DATA, 5, false), (DATA + 5, 95, false)]);
    guest.notify(1);
    assert_eq!(receive(&wire).unwrap(), frame(100, 7));
    assert_eq!(guest.used(1), [(0, 0)]);
    assert_eq!((guest.counter("tx_frames"), guest.counter("tx_bytes")), (1, 88));
}

/// FC #4526: a frame longer than the wire's largest was copied as it was.
#[test]
fn fc_4526_oversized_and_empty_frames_are_dropped() {
    let (mut guest, wire, _) = guest(0);
    for len in [0, 1, 12, MAX_FRAME as u32 + 1, 1 << 20] {
        guest.chain(1, &[(0, len, false)]);
        guest.notify(1);
        assert_eq!(guest.used(1).len(), 1, "{len}");
        assert!(receive(&wire).is_none());
    }
    guest.chain(1, &[(DATA, 100, true)]);
    guest.notify(1);
    assert_eq!(guest.counter("tx_malformed"), 6);
    guest.chain(1, &[(0, MAX_FRAME as u32, false)]);
    guest.notify(1);
    assert_eq!(receive(&wire).unwrap().len(), MAX_FRAME);
    // An order of magnitude beyond is an offence.
    guest.chain(1, &[(0, 1 << 20, false), (0, 1, false)]);
    guest.notify(1);
    assert!(guest.needs_reset());
}

#[test]
fn receives_into_one_buffer() {
    let (mut guest, wire, _) = guest(feature::EVENT_IDX);
    guest.chain(0, &[(DATA, 12, true), (DATA + 100, 200, true)]);
    wire.send(&frame(112, 9)).unwrap();
    guest.pump();
    assert_eq!(guest.used(0), [(0, 112)]);
    // One buffer.
    assert_eq!(guest.take(DATA + 10, 2), [1, 0]);
    assert_eq!(guest.take(DATA + 100, 100), [9; 100]);
    assert_eq!(guest.interrupts(), 1);
}

#[test]
fn merges_buffers_when_the_driver_can() {
    let (mut guest, wire, _) = guest(MERGE | feature::EVENT_IDX);
    wire.send(&frame(250, 9)).unwrap();
    guest.pump();
    for n in 0..2 {
        guest.chain(0, &[(DATA + n * 0x100, 100, true)]);
        guest.notify(0);
        assert!(guest.used(0).is_empty(), "a frame is never cut");
    }
    guest.chain(0, &[(DATA + 0x200, 100, true)]);
    guest.notify(0);
    assert_eq!(guest.used(0), [(0, 100), (1, 100), (2, 50)]);
    assert_eq!(guest.take(DATA + 10, 2), [3, 0]);
    assert_eq!(guest.take(DATA + 0x200, 50), [9; 50]);
}

/// With event indexes, the device must ask for the chain after those that are too few, not for the first of them.
#[test]
fn waiting_for_more_buffers_arms_the_notification_behind_them() {
    let (mut guest, wire, _) = guest(MERGE | feature::EVENT_IDX);
    wire.send(&frame(250, 9)).unwrap();
    guest.chain(0, &[(DATA, 100, true)]);
    guest.notify(0);
    let avail_event = guest.take(rings(0).2 + 4 + 8 * u64::from(SIZE), 2);
    assert_eq!(avail_event, [1, 0]);
}

/// CVE-2020-16843: a flood with a full ring stopped reception for good.
#[test]
fn cve_2020_16843_flood_then_drain() {
    for features in [0, MERGE | feature::EVENT_IDX] {
        let (mut guest, wire, _) = guest(features);
        let mut sent = 0;
        while wire.send(&frame(600, sent as u8)).is_ok() {
            sent += 1;
        }
        guest.pump();
        let mut received = 0;
        while received < sent {
            guest.chain(0, &[(DATA, 1024, true)]);
            guest.notify(0);
            let used = guest.used(0);
            assert_eq!(used.len(), 1, "after {received} of {sent}");
            assert_eq!(used[0].1, 600);
            assert_eq!(guest.take(DATA + 12, 1)[0], received as u8);
            received += 1;
        }
        wire.send(&frame(600, 1)).unwrap();
        guest.chain(0, &[(DATA, 1024, true)]);
        guest.pump();
        guest.notify(0);
        assert_eq!(guest.used(0).len(), 1);
    }
}

/// Buffers that are too small by themselves lose the frame, not the device.
#[test]
fn frame_that_fits_nowhere_is_dropped() {
    let (mut guest, wire, _) = guest(0);
    for parts in [[(DATA, 50, true)].as_slice(), &[(DATA, 1000, false)], &[(DATA, 0, true)]] {
        wire.send(&frame(100, 1)).unwrap();
        guest.chain(0, parts);
        guest.notify(0);
        guest.pump();
        assert_eq!(guest.used(0).first().map(|used| used.1), Some(0));
    }
    assert_eq!(guest.counter("rx_dropped"), 3);
    // Merging: the whole ring is too small.
    let (mut guest, wire, _) = self::guest(MERGE);
    wire.send(&frame(4000, 1)).unwrap();
    for _ in 0..SIZE {
        guest.chain(0, &[(DATA, 100, true)]);
    }
    guest.notify(0);
    guest.pump();
    assert_eq!((guest.counter("rx_dropped"), guest.used(0).len()), (1, 1));
}

#[test]
fn faults_name_the_queue() {
    for queue in 0..2 {
        let (mut guest, wire, _) = guest(0);
        wire.send(&frame(100, 1)).unwrap();
        guest.chain(queue, &[(HIGH_END - 4, 100, queue == 0)]);
        guest.notify(queue);
        guest.pump();
        let fault = guest.transport.last_fault().unwrap();
        assert_eq!((fault.device.as_str(), fault.queue), ("net-0", queue));
        // After a reset it works again, and the frame of before is gone or delivered, not stuck.
        guest.start(0);
        wire.send(&frame(100, 2)).unwrap();
        guest.chain(0, &[(DATA, 1000, true)]);
        guest.notify(0);
        guest.pump();
        assert_eq!(guest.used(0).len(), 1);
    }
}

#[test]
fn wire_that_is_gone_is_an_error_to_count() {
    let (mut guest, wire, _) = guest(0);
    drop(wire);
    guest.chain(1, &[(DATA, 100, false)]);
    guest.notify(1);
    guest.pump();
    assert_eq!((guest.used(1).len(), guest.counter("tx_dropped")), (1, 1));
}

/// The one test that needs a tap: `KATA_CC_TEST_TAP` names one (`ip tuntap add dev NAME mode tap; ip link set NAME up`).
#[test]
fn real_tap_takes_offloads_and_frames() {
    let Ok(name) = std::env::var("KATA_CC_TEST_TAP") else {
        println!("skipped: KATA_CC_TEST_TAP names no tap");
        return;
    };
    let config = NetConfig { id: "net-0".into(), mac: Mac([2, 0, 0, 0, 0, 1]) };
    let device = Net::new(config, Box::new(Tap::open(&name).unwrap()));
    let mut guest =
        FakeGuest::boot(Box::new(device), CSUM | TSO4 | 1 << 8 | 1 << 10 | MERGE | feature::EVENT_IDX);
    assert!(!guest.needs_reset());
    let mut broadcast = frame(100, 0);
    broadcast[12..18].fill(0xff);
    guest.put(DATA, &broadcast);
    guest.chain(1, &[(DATA, 100, false)]);
    guest.notify(1);
    assert_eq!((guest.counter("tx_frames"), guest.counter("tx_dropped")), (1, 0));
    assert!(Tap::open(&name).is_err(), "in use");
}
