use proptest::collection::vec;
use proptest::prelude::*;

/// Programs that reach the interesting parts: kept short, extended by the fuzzer.
const SEEDS: &[&[u8]] = &[
    b"",
    &[0x00],
    &[0xff; 64],
    // A chain at the buffers, offered and notified; then a loop.
    &[0, 12, 0, 0, 0, 2, 0, 0, 0, 0, 5],
    &[2, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 2, 0, 0, 5, 5],
    // The available index jumps; the device is reset; again.
    &[0, 4, 0, 0x80, 5, 15, 4, 1, 0, 5, 15, 5],
    // A vsock request to the service, through the tx queue.
    &[2, 9, 0, 0, 0, 0, 1, 4, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0x1c, 0, 0, 0, 1, 0x15, 7],
    &[1, 0x0d, 0x1c, 0xff, 0xff, 0xff, 0xff, 0x0d, 0x14, 3, 0, 0, 0, 14, 7, 1],
];

#[test]
fn seeds_run_through_every_target() {
    for target in [super::mmio, super::rng, super::block, super::net, super::vsock] {
        SEEDS.iter().for_each(|seed| target(seed));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mmio_never_panics(data in vec(any::<u8>(), 0..600)) {
        super::mmio(&data);
    }

    #[test]
    fn rng_never_panics(data in vec(any::<u8>(), 0..600)) {
        super::rng(&data);
    }

    #[test]
    fn block_never_panics(data in vec(any::<u8>(), 0..600)) {
        super::block(&data);
    }

    #[test]
    fn net_never_panics(data in vec(any::<u8>(), 0..600)) {
        super::net(&data);
    }

    #[test]
    fn vsock_never_panics(data in vec(any::<u8>(), 0..600)) {
        super::vsock(&data);
    }
}
