//! Bringing a payload in: copied once, hashed where the host cannot reach it, compared, and wiped when it
//! is not the measured one.

use kata_cc_stage0_abi::{Sealed, Termination};

use crate::memory::GuestMemory;
use crate::sha256::{Engine, Sha256, equal};

/// Bytes that are copied before they are hashed: few enough to be in the processor's cache still.
const STEP: u64 = 64 << 10;

/// Copies `sealed.length` bytes of shared memory to private memory and proves that they are the measured
/// ones. What is hashed is the copy: the host may change its own at any time.
///
/// # Errors
/// `otherwise`, when they are not; the copy is wiped then.
pub fn bring_in(
    memory: &mut impl GuestMemory,
    engine: Engine,
    (shared, private): (u64, u64),
    sealed: &Sealed,
    otherwise: Termination,
) -> Result<(), Termination> {
    let mut hash = Sha256::new(engine);
    let mut done = 0;
    while done < sealed.length {
        let step = STEP.min(sealed.length - done);
        memory.copy_in(shared + done, private + done, step);
        hash.update(memory.private(private + done, step));
        done += step;
    }
    if equal(&hash.finish(), &sealed.sha256) {
        return Ok(());
    }
    memory.wipe(private, sealed.length);
    Err(otherwise)
}
