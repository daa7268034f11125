//! The guest firmware stage0: a flat image, built by stable cargo with its own linker script
//! (`guest-firmware/stage0/image.ld`).
//!
//! The image depends on the sources, the compiler and the flags here, not on where it is built: paths are
//! mapped away ([`Place`]), there are no debug sections and no build id. Its target folder is its own, so that
//! other flags rebuild nothing else; cargo itself knows when there is nothing to do.

use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use aws_lc_rs::digest::{SHA256, digest};
use kata_cc_stage0_abi::{ImageHeader, layout::MEASURED_MAX};

use crate::paths;
use crate::place::Place;
use crate::shell::{command, run, step};

const PACKAGE: &str = "kata-cc-stage0";
/// Boot block, secrets, CPUID and reset page.
const OTHER_MEASURED: usize = 4 * 4096;

/// Size matters more than speed: SHA-256 is done by the processor, the rest is a few microseconds.
const PROFILE: [&str; 7] = [
    "panic=\"abort\"",
    "opt-level=\"s\"",
    "lto=\"fat\"",
    "codegen-units=1",
    "debug=false",
    "strip=\"none\"",
    "incremental=false",
];

/// Builds the image and puts it into the share folder.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    let image = image(&Place::here(&paths::target().join("stage0")))?;
    let header = ImageHeader::parse(&image)?;
    let place = paths::share().join("stage0");
    crate::guest_image::replace(&place, &image)?;
    step(&format!(
        "stage0: {} ({} KiB, {} KiB measured of at most {}; {} KiB of zeros; sha256 {})",
        place.display(),
        image.len() >> 10,
        (image.len() + OTHER_MEASURED) >> 10,
        MEASURED_MAX >> 10,
        header.working_memory >> 10,
        hex::encode(digest(&SHA256, &image)),
    ));
    Ok(place)
}

/// Builds the image in a place and gives its bytes.
pub(crate) fn image(place: &Place) -> anyhow::Result<Vec<u8>> {
    step("building stage0");
    let mut cargo = place.cargo(&["rustc", "--release", "--locked", "--quiet", "--package", PACKAGE])?;
    cargo.args(["--bin", "stage0", "--features", "image", "--target", paths::TARGET]);
    for setting in PROFILE {
        cargo.arg("--config").arg(format!("profile.release.{setting}"));
    }
    cargo.args(["--", "-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib", "-Clink-arg=-no-pie"]);
    cargo.args(["-Clink-arg=-static", "-Clink-arg=-Wl,--build-id=none"]);
    cargo.args(["-Clink-arg=-Wl,--defsym=rust_eh_personality=0,--defsym=_Unwind_Resume=0"]);
    // The linker runs in the checkout's root.
    cargo.arg("-Clink-arg=-Wl,-T,guest-firmware/stage0/image.ld");
    // Takes the place of the flags in `.cargo/config.toml`.
    cargo.env("RUSTFLAGS", "-Crelocation-model=static");
    run(&mut cargo).context("stage0 was not built")?;

    let elf = place.target.join(paths::TARGET).join("release/stage0");
    let flat = elf.with_extension("image");
    let (from, to) = (elf.to_string_lossy(), flat.to_string_lossy());
    run(&mut command("objcopy", &["-O", "binary", "--only-section", ".image", &from, &to]))?;
    let image = std::fs::read(&flat).with_context(|| format!("cannot read {}", flat.display()))?;
    ImageHeader::parse(&image).map_err(|why| anyhow!("{} of {} bytes: {why}", to, image.len()))?;
    if let Some(path) = place.path_in(&image) {
        bail!("stage0 holds the path {}: it could not be rebuilt elsewhere", path.display());
    }
    Ok(image)
}
