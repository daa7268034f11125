//! The guest firmware stage0: a flat image, built by stable cargo with its own linker script
//! (`guest-firmware/stage0/image.ld`).
//!
//! The image depends on the sources, the compiler and the flags here, not on where it is built: paths are
//! mapped away, there are no debug sections and no build id. Its target folder is its own, so that other
//! flags rebuild nothing else; cargo itself knows when there is nothing to do.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use kata_cc_stage0_abi::{ImageHeader, layout::MEASURED_MAX};

use crate::paths;
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
    let image = image(&paths::target().join("stage0"))?;
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

/// Builds the image in a target folder and gives its bytes.
pub(crate) fn image(target: &Path) -> anyhow::Result<Vec<u8>> {
    step("building stage0");
    let script = paths::root().join("guest-firmware/stage0/image.ld");
    let mut cargo = command("cargo", &["rustc", "--release", "--locked", "--quiet", "--package", PACKAGE]);
    cargo.args(["--bin", "stage0", "--features", "image", "--target", paths::TARGET]);
    for setting in PROFILE {
        cargo.arg("--config").arg(format!("profile.release.{setting}"));
    }
    cargo.args(["--", "-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib", "-Clink-arg=-no-pie"]);
    cargo.args(["-Clink-arg=-static", "-Clink-arg=-Wl,--build-id=none"]);
    cargo.args(["-Clink-arg=-Wl,--defsym=rust_eh_personality=0,--defsym=_Unwind_Resume=0"]);
    cargo.arg(format!("-Clink-arg=-Wl,-T,{}", script.display()));
    // Takes the place of the flags in `.cargo/config.toml`.
    let root = paths::root();
    cargo.env("RUSTFLAGS", format!("-Crelocation-model=static --remap-path-prefix={}=", root.display()));
    cargo.env("CARGO_TARGET_DIR", target).env_remove("CARGO_INCREMENTAL");
    run(&mut cargo).context("stage0 was not built")?;

    let elf = target.join(paths::TARGET).join("release/stage0");
    let flat = elf.with_extension("image");
    let (from, to) = (elf.to_string_lossy(), flat.to_string_lossy());
    run(&mut command("objcopy", &["-O", "binary", "--only-section", ".image", &from, &to]))?;
    let image = std::fs::read(&flat).with_context(|| format!("cannot read {}", flat.display()))?;
    ImageHeader::parse(&image).map_err(|why| anyhow!("{} of {} bytes: {why}", to, image.len()))?;
    let text = root.to_string_lossy();
    let names_path = image.windows(text.len()).any(|window| window == text.as_bytes());
    ensure!(!names_path, "stage0 holds the path of its checkout: it could not be rebuilt elsewhere");
    Ok(image)
}

/// Builds the image twice from nothing, in two folders, and compares the bytes.
pub(crate) fn reproduce() -> anyhow::Result<()> {
    let folder = paths::cache().join("reproduce-stage0");
    let mut digests = Vec::new();
    for round in ["a", "another/folder"] {
        let _ = std::fs::remove_dir_all(&folder);
        let image = image(&folder.join(round))?;
        digests.push(hex::encode(digest(&SHA256, &image)));
    }
    std::fs::remove_dir_all(&folder)?;
    println!("stage0 sha256: {} and {}", digests[0], digests[1]);
    ensure!(digests[0] == digests[1], "two builds of stage0 differ");
    Ok(())
}
