//! `./x run`: what a newcomer sees first.

use anyhow::bail;

use crate::shell::step;
use crate::{binaries, guest_image, lab, paths, suites};

/// How long the demonstration may take, in minutes.
const MINUTES: u32 = 40;

/// Build everything and show the confidential path, good and refused.
pub(crate) fn run() -> anyhow::Result<()> {
    binaries::build()?;
    guest_image::build()?;
    let host = lab::choose()?;
    suites::prepare_material()?;
    let demo = paths::binaries().join("kata-cc-demo");
    let material = paths::material();
    step("the demonstration starts");
    match host.run(&demo, &["show", &material.to_string_lossy()], MINUTES, false)? {
        0 => Ok(()),
        code => bail!("the demonstration failed with exit code {code}: see the table above"),
    }
}
