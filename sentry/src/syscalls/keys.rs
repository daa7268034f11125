//! Keys of the kernel (`man 7 keyrings`). There are none: whoever asks hears what containers usually hear, whose profiles refuse these calls.

use super::Entry;
use crate::call::Call;
use crate::error::{Errno, SysResult};

const NONE: &str = "there are no keys: EPERM, as by containers' usual profiles";

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::partial(libc::SYS_add_key, "add_key", refuse, NONE),
    Entry::partial(libc::SYS_request_key, "request_key", refuse, NONE),
    Entry::partial(libc::SYS_keyctl, "keyctl", refuse, NONE),
];

fn refuse(_: &mut Call<'_>, _: [u64; 6]) -> SysResult {
    Err(Errno::EPERM.into())
}
