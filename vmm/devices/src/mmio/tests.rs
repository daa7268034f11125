use super::*;
use crate::block::{Block, BlockConfig};
use crate::feature;
use crate::queue::FaultKind;
use crate::rng::Rng;
use crate::test_utils::*;

fn cold() -> FakeGuest {
    FakeGuest::cold(Box::new(Rng::new("rng")))
}

#[test]
fn identifies_itself() {
    let guest = cold();
    assert_eq!(guest.get(Register::Magic), 0x7472_6976);
    assert_eq!(guest.get(Register::Version), 2);
    assert_eq!(guest.get(Register::DeviceId), 4);
    assert_eq!(guest.get(Register::QueueSizeMax), 64);
    assert_eq!(guest.get(Register::ShmLenLow), u32::MAX);
    guest.set(Register::DeviceFeaturesSel, 1);
    assert_eq!(guest.get(Register::DeviceFeatures), 1);
    guest.set(Register::DeviceFeaturesSel, 2);
    assert_eq!(guest.get(Register::DeviceFeatures), 0);
}

#[test]
fn status_moves_one_step_at_a_time() {
    for (from, wishes) in
        [(0, [2, 3, 8, 15].as_slice()), (1, &[0x9, 5, 15]), (3, &[7, 15, 1]), (11, &[3, 8, 4])]
    {
        for wish in wishes {
            let mut guest = cold();
            for step in [1, 3, 11] {
                match step {
                    // Features must be agreed for this step.
                    11 if from == 11 => guest.negotiate(0),
                    _ if step <= from => guest.set(Register::Status, step),
                    _ => {}
                }
            }
            assert_eq!(guest.get(Register::Status), from);
            guest.set(Register::Status, *wish);
            assert_eq!(guest.get(Register::Status), from, "from {from} to {wish}");
        }
    }
    let guest = cold();
    guest.set(Register::Status, status::FAILED);
    assert_eq!(guest.get(Register::Status), status::FAILED);
    guest.set(Register::Status, 0);
    assert_eq!(guest.get(Register::Status), 0);
    assert_eq!(guest.counter("resets"), 1);
}

#[test]
fn features_not_offered_are_refused() {
    let mut guest = cold();
    guest.negotiate(1 << 28);
    assert_eq!(guest.get(Register::Status), 3);
    // A legacy driver.
    guest.set(Register::DriverFeaturesSel, 0);
    guest.set(Register::DriverFeatures, 0);
    guest.set(Register::DriverFeaturesSel, 1);
    guest.set(Register::DriverFeatures, 0);
    guest.set(Register::Status, 11);
    assert_eq!(guest.get(Register::Status), 3);
    guest.negotiate(feature::EVENT_IDX);
    assert_eq!(guest.get(Register::Status), 11);
}

/// CVE-2026-5747: queue registers written after `DRIVER_OK` took effect without the checks of activation.
#[test]
fn cve_2026_5747_queue_registers_are_frozen_after_driver_ok() {
    let mut guest = FakeGuest::boot(Box::new(Rng::new("rng")), 0);
    let refused = guest.counter("refused_writes");
    let registers = [
        Register::QueueSize,
        Register::QueueReady,
        Register::QueueDescLow,
        Register::QueueDescHigh,
        Register::QueueDriverLow,
        Register::QueueDriverHigh,
        Register::QueueDeviceLow,
        Register::QueueDeviceHigh,
    ];
    for value in [0, 1, 0x8000, u32::MAX] {
        registers.iter().for_each(|register| guest.set(*register, value));
    }
    guest.set(Register::DriverFeatures, u32::MAX);
    assert_eq!(guest.counter("refused_writes"), refused + 4 * 8 + 1);
    assert_eq!(guest.get(Register::QueueReady), 1);
    guest.chain(0, &[(DATA, 8, true)]);
    guest.notify(0);
    assert_eq!(guest.used(0), [(0, 8)]);
}

/// The same in every other state in which they do not belong.
#[test]
fn cve_2026_5747_queue_registers_are_ignored_before_features_ok() {
    let guest = cold();
    for status in [0, 1, 3] {
        guest.set(Register::Status, status);
        guest.set(Register::QueueReady, 1);
        assert_eq!(guest.get(Register::QueueReady), 0, "status {status}");
    }
}

#[test]
fn unusable_queue_needs_a_reset() {
    for (desc, avail, used) in [(0, 0, 0), (HIGH_END, 0x2000, 0x3000), (0x1000, u64::MAX - 1, 0x3000)] {
        let mut guest = cold();
        guest.negotiate(0);
        guest.set_queue_addresses(desc, avail, used);
        guest.set(Register::QueueReady, 1);
        guest.set(Register::Status, 15);
        assert_eq!(guest.get(Register::Status), 15 | status::NEEDS_RESET);
        // The driver is told by a configuration interrupt.
        assert_eq!(guest.get(Register::InterruptStatus), 2);
        assert!(matches!(guest.transport.last_fault().unwrap().kind, FaultKind::BadRing { .. }));
        guest.notify(0);
        guest.start(0);
        assert_eq!(guest.get(Register::Status), 15);
    }
    let mut guest = cold();
    guest.negotiate(0);
    guest.set(Register::Status, 15);
    assert_eq!(guest.transport.last_fault().unwrap().kind, FaultKind::NotReady);
}

#[test]
fn sizes_that_were_not_offered_need_a_reset() {
    for size in [0, 3, 128, 0x1_0010, u32::MAX] {
        let mut guest = cold();
        guest.negotiate(0);
        guest.set(Register::QueueSize, size);
        let (desc, avail, used) = rings(0);
        guest.set_queue_addresses(desc, avail, used);
        guest.set(Register::QueueReady, 1);
        guest.set(Register::Status, 15);
        assert!(guest.needs_reset(), "size {size}");
    }
}

/// CH #7918: an index beyond the queues panicked. CVE-2011-2512: a negative one in a notification.
#[test]
fn ch_7918_cve_2011_2512_queue_index_out_of_range_is_ignored() {
    let guest = FakeGuest::boot(Box::new(Rng::new("rng")), 0);
    for index in [1, 2, 0xffff, 0x1_0000, i32::MIN as u32, u32::MAX] {
        guest.set(Register::QueueSel, index);
        assert_eq!(guest.get(Register::QueueSizeMax), 0);
        assert_eq!(guest.get(Register::QueueReady), 0);
        guest.notify(0);
        guest.set(Register::QueueNotify, index);
    }
    guest.pump();
    assert_eq!(guest.counter("bad_notify"), 6);
}

/// CH #8405 and relatives: accesses of odd width or alignment panicked. Every width at every offset in every state.
#[test]
fn ch_8405_every_width_at_every_offset_in_every_state() {
    for status in [0, 1, 3, 11, 15] {
        let mut guest = cold();
        match status {
            11 => guest.negotiate(0),
            15 => guest.start(0),
            status => [1, 3]
                .iter()
                .filter(|step| **step <= status)
                .for_each(|step| guest.set(Register::Status, *step)),
        }
        for offset in (0..0x140).chain([WINDOW - 1, WINDOW, u64::MAX - 7, u64::MAX]) {
            for width in 0..=9 {
                let mut data = vec![0xaa; width];
                guest.transport.read(offset, &mut data);
                let whole = width == 4 && (Register::at(offset).is_some() || offset >= 0x100);
                assert!(whole || data.iter().all(|byte| *byte == 0), "{width} bytes at {offset:#x}");
                // Not the status, which would change the state under test.
                if offset.abs_diff(Register::Status as u64) >= 8 {
                    guest.transport.write(offset, &vec![0xff; width]);
                }
            }
        }
        guest.pump();
        assert_eq!(guest.get(Register::Status), status);
    }
}

#[test]
fn interrupt_status_and_acknowledge() {
    let mut guest = FakeGuest::boot(Box::new(Rng::new("rng")), 0);
    guest.chain(0, &[(DATA, 8, true)]);
    guest.notify(0);
    assert_eq!(guest.get(Register::InterruptStatus), 1);
    guest.set(Register::InterruptAck, 2);
    assert_eq!(guest.get(Register::InterruptStatus), 1);
    guest.set(Register::InterruptAck, 1);
    assert_eq!(guest.get(Register::InterruptStatus), 0);
}

/// A change before `DRIVER_OK` is told after it; the driver may have read the old value already.
#[test]
fn config_change_before_driver_ok_is_kept() {
    let block = Block::new(BlockConfig { id: "slot".into(), read_only: true }, None).unwrap();
    let slot = block.slot();
    let mut guest = FakeGuest::cold(Box::new(block));
    guest.negotiate(0);
    let file = tempfile::tempfile().unwrap();
    file.set_len(1024).unwrap();
    slot.attach(file).unwrap();
    assert_eq!((guest.interrupts(), guest.get(Register::InterruptStatus)), (0, 0));
    guest.set_up_queue(0);
    guest.set(Register::Status, 15);
    assert_eq!((guest.interrupts(), guest.get(Register::InterruptStatus)), (1, 2));
}

#[test]
fn notification_by_event_and_by_register_are_the_same() {
    let mut guest = FakeGuest::boot(Box::new(Rng::new("rng")), 0);
    guest.chain(0, &[(DATA, 8, true)]);
    // What an ioeventfd does.
    guest.transport.queue_events()[0].write(1).unwrap();
    guest.pump();
    assert_eq!(guest.used(0), [(0, 8)]);
}

/// Buffers that were made available before `DRIVER_OK` are served without a notification.
#[test]
fn activation_looks_at_the_queues() {
    let mut guest = cold();
    guest.negotiate(0);
    guest.set_up_queue(0);
    guest.chain(0, &[(DATA, 8, true)]);
    guest.set(Register::Status, 15);
    guest.pump();
    assert_eq!(guest.used(0), [(0, 8)]);
}

/// A storm of notifications without buffers is one event.
#[test]
fn notify_storm_is_coalesced() {
    let guest = FakeGuest::boot(Box::new(Rng::new("rng")), 0);
    for _ in 0..100_000 {
        guest.set(Register::QueueNotify, 0);
    }
    guest.pump();
    assert_eq!(guest.counter("requests"), 0);
}
