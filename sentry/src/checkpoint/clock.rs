//! What time it is for a container that goes on, and what of the host's clock it may have been stopped in.

use std::ops::Range;

use super::image::sha256;
use super::{CheckpointError, Setting, host};
use crate::error::Errno;
use crate::kernel::Kernel;
use crate::time::Reading;

/// Where stubs have the host's vDSO, and the digest of its code.
pub(super) fn host_vdso(kernel: &Kernel) -> (Vec<Range<u64>>, [u8; 32]) {
    let host = kernel.platform.host_vdso();
    host.map_or((Vec::new(), [0; 32]), |host| (host.parts().to_vec(), sha256(&host.bytes())))
}

/// Lets clocks go on from what they showed. In a pod of several containers they are the pod's: for this one they jump.
pub(super) fn restore(place: &Setting<'_>, saved: Reading) -> Result<(), CheckpointError> {
    let gone_on = if place.alone { place.kernel.go_on_from(saved) } else { Ok(false) };
    let gone_on = gone_on.map_err(|errno| match errno {
        Errno::EINVAL => CheckpointError::State("its clock"),
        errno => host("the vDSO")(errno),
    })?;
    if !gone_on {
        let (then, now) = (saved.monotonic, place.kernel.clocks.monotonic());
        tracing::warn!(
            ?then,
            ?now,
            "the monotonic clock is other containers', too, and does not go on from the checkpoint's"
        );
    }
    Ok(())
}
