//! How guest code runs, and how much of the sentry's defence there is: the same options for `do` and `serve`.

use anyhow::anyhow;
use kata_cc_sentry::defence::Strength;
use kata_cc_sentry::error::Errno;
use kata_cc_sentry::platform::{Kind, Platform};

use crate::platforms::reason;

#[derive(clap::Args)]
pub(crate) struct Confinement {
    /// How guest code runs.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) platform: Kind,
    /// Go on where the host refuses a part of the sentry's defence, with a warning.
    #[arg(long)]
    allow_weak: bool,
    /// For debugging: no namespaces, no filter, all privileges of who runs this.
    #[arg(long, conflicts_with = "allow_weak")]
    no_defence: bool,
}

impl Confinement {
    pub(crate) fn strength(&self) -> Strength {
        match (self.no_defence, self.allow_weak) {
            (true, _) => Strength::Off,
            (false, true) => Strength::Weak,
            (false, false) => Strength::Full,
        }
    }

    pub(crate) fn start_platform(&self) -> anyhow::Result<Box<dyn Platform>> {
        let kind = self.platform;
        let told = |error: Errno| {
            anyhow!(error).context(format!("cannot start the {kind} platform: {}", reason(kind, error)))
        };
        kind.start().map_err(told)
    }
}
