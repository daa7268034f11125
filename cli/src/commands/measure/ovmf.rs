//! `--ovmf`: launch digests of guests that other monitors start, from a firmware image.

use anyhow::Context;
use kata_cc_measurement::SevHashes;
use kata_cc_measurement::explain::Explanation;
use kata_cc_measurement::firmware::Firmware;
use kata_cc_measurement::ovmf::OvmfGuest;
use kata_cc_measurement::tdx::TdLaunch;
use serde::Serialize;
use std::path::{Path, PathBuf};

use super::explain;
use super::options::{HardwareOptions, Tee};

/// What is told.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    tee: &'static str,
    pub(super) launch_digest: String,
    firmware: PathBuf,
    vcpus: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) explanation: Option<Explanation>,
}

/// The launch digest or MRTD of a firmware image; kernel and initramfs go into the hashes page of SNP.
pub(super) fn predict(
    file: &Path,
    kernel: Option<&Path>,
    initramfs: Option<&Path>,
    options: &HardwareOptions,
) -> anyhow::Result<Answer> {
    let read = |file: &Path| std::fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    let image = read(file)?;
    let firmware = Firmware::parse(&image).with_context(|| file.display().to_string())?;
    let vcpus = options.vcpus.unwrap_or(1);
    let (tee, explained) = match options.tee {
        Some(Tee::Tdx) => {
            anyhow::ensure!(
                kernel.is_none(),
                "a TDVF image measures its kernel into RTMRs, not into MRTD: leave --kernel out"
            );
            let launch = TdLaunch::of_firmware(&firmware).with_context(|| file.display().to_string())?;
            ("tdx", explain::tdx(&launch, options.order()))
        }
        _ => {
            let hashes = match kernel {
                Some(kernel) => {
                    let initramfs = initramfs.map(read).transpose()?.unwrap_or_default();
                    let cmdline = options.cmdline.as_deref().unwrap_or_default();
                    Some(SevHashes::new(&read(kernel)?, &initramfs, cmdline))
                }
                None => None,
            };
            let cpu = options.cpu.context("each VMSA holds the processor's signature: give --cpu")?;
            let guest = OvmfGuest {
                firmware: &firmware,
                image_digest: None,
                hashes,
                vcpus: vcpus.into(),
                cpu,
                features: options.guest_features,
                monitor: options.monitor(),
            };
            ("snp", explain::snp(&guest.snp().with_context(|| file.display().to_string())?))
        }
    };
    Ok(Answer {
        tee,
        launch_digest: hex::encode(explained.digest),
        firmware: file.into(),
        vcpus,
        explanation: options.explain.then_some(explained),
    })
}
