use super::*;
use crate::feature;
use crate::queue::FaultKind;
use crate::test_utils::*;

fn guest() -> FakeGuest {
    FakeGuest::boot(Box::new(Rng::new("rng")), feature::EVENT_IDX)
}

#[test]
fn fills_a_buffer_and_interrupts() {
    let mut guest = guest();
    let head = guest.chain(0, &[(DATA, 64, true), (HIGH, 64, true)]);
    guest.notify(0);
    assert_eq!(guest.used(0), [(u32::from(head), 128)]);
    assert_ne!(guest.take(DATA, 64), [0; 64]);
    assert_ne!(guest.take(HIGH, 64), [0; 64]);
    assert_eq!(guest.interrupts(), 1);
    assert_eq!(guest.counter("bytes"), 128);
}

/// FC #5762: a chain of huge overlapping descriptors made the host do gigabytes of work.
#[test]
fn fc_5762_overlapping_huge_descriptors_are_capped() {
    let mut guest = guest();
    guest.chain(0, &[(DATA, 1 << 20, true); 16]);
    guest.notify(0);
    assert_eq!(guest.used(0), [(0, MAX_REQUEST as u32)]);
    assert_eq!(guest.counter("bytes"), MAX_REQUEST);
}

#[test]
fn readable_buffer_is_given_back_empty() {
    let mut guest = guest();
    guest.chain(0, &[(DATA, 64, false)]);
    guest.notify(0);
    assert_eq!(guest.used(0), [(0, 0)]);
    assert_eq!(guest.take(DATA, 64), [0; 64]);
}

#[test]
fn zero_length_is_given_back_empty() {
    let mut guest = guest();
    guest.chain(0, &[(DATA, 0, true)]);
    guest.chain(0, &[(u64::MAX, 0, true)]);
    guest.notify(0);
    assert_eq!(guest.used(0), [(0, 0), (1, 0)]);
}

#[test]
fn more_than_four_gib_is_a_fault() {
    let mut guest = guest();
    guest.chain(0, &[(DATA, u32::MAX, true), (DATA, u32::MAX, true)]);
    guest.notify(0);
    assert!(guest.needs_reset());
    let fault = guest.transport.last_fault().unwrap();
    assert_eq!((fault.device.as_str(), fault.queue), ("rng", 0));
    assert!(matches!(fault.kind, FaultKind::Address { len: u32::MAX, .. }));
}
