//! Runtime measurements: what was started in this guest after its launch.
//!
//! An [`Event`] (CoCo's AAEL form, [`aael`]) is hashed into a [`Register`] and written to a [`RuntimeLog`]; whoever has the
//! register's value and the log can replay the one from the other.
//!
//! What that proves depends on the register:
//!
//! - TDX ([`Rtmr`]): the register is the TDX module's and stands in every quote. Nobody, the agent included, can take an
//!   event back. A verifier who replays the log against the quote knows that nothing was left out or changed.
//! - SNP and the simulated TEE ([`SoftwareRegister`]): the processor has no such register. The chain is kept in the agent's
//!   memory, so it proves only that the agent says so: it is as good as the measured agent and kernel are, and worthless once
//!   either was taken over. It is not in the report; it travels beside it, to the key broker over the connection whose key
//!   the report binds. It does catch a log file that was edited, cut or mixed up on its way.
//!
//! [`tcg`] reads logs of this form.

pub mod aael;
mod log;
mod register;
pub mod tcg;

pub use aael::{Event, EventError};
pub use log::{Asker, LogError, MAX_ASKED, MAX_LOG, Recorded, RuntimeLog};
pub(crate) use register::check_run_time;
pub use register::{Register, Rtmr, SoftwareRegister};

/// Bytes of a register and of a digest: SHA-384.
pub const DIGEST_LEN: usize = 48;

/// A register's value, or what it is extended by.
pub type Digest = [u8; DIGEST_LEN];

pub(crate) fn sha384(parts: &[&[u8]]) -> Digest {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA384);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; DIGEST_LEN];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// The value after an extension.
#[must_use]
pub fn extended(value: &Digest, by: &Digest) -> Digest {
    sha384(&[value, by])
}
