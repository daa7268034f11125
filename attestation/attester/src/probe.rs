//! Which ways to evidence this guest has, and why not the others.
//!
//! In the order in which they are tried: `configfs` TSM reports, `/dev/sev-guest`, `/dev/tdx_guest`, the quote generation
//! service, the simulated security processor. The agent logs the list at its start, so that a guest which cannot attest
//! says in one place what is missing.

use std::fmt;
use std::path::Path;

use crate::{CMDLINE_PARAMETER, SEV_DEVICE, Tee, tdx, tsm};

/// A way to evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `/sys/kernel/config/tsm/report`.
    ConfigfsTsm,
    /// `/dev/sev-guest`.
    SevGuest,
    /// `/dev/tdx_guest`: TD reports.
    TdxGuest,
    /// Intel's quote generation service, for quotes where there is no `configfs`.
    Qgs,
    /// The simulated security processor.
    Simulated,
}

impl Way {
    /// Name for logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConfigfsTsm => "configfs-tsm",
            Self::SevGuest => "/dev/sev-guest",
            Self::TdxGuest => "/dev/tdx_guest",
            Self::Qgs => "quote generation service",
            Self::Simulated => "simulated security processor",
        }
    }
}

/// One way, and whether it can be gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Which.
    pub way: Way,
    /// The TEE whose evidence comes this way, or why none does.
    pub state: Result<Tee, String>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            Ok(tee) => write!(f, "{}: {tee}", self.way.name()),
            Err(why) => write!(f, "{}: not here, {why}", self.way.name()),
        }
    }
}

/// Looks at all ways. `cmdline` is the text of `/proc/cmdline`, `/dev` and `/sys` are below `root`.
#[must_use]
pub fn probe(cmdline: &str, root: &Path) -> Vec<Found> {
    let found = |way, state| Found { way, state };
    vec![
        found(Way::ConfigfsTsm, configfs(root)),
        found(Way::SevGuest, device(root, SEV_DEVICE, Tee::Snp)),
        found(Way::TdxGuest, device(root, tdx::DEVICE, Tee::Tdx)),
        found(Way::Qgs, service(root)),
        found(Way::Simulated, simulated(cmdline)),
    ]
}

fn configfs(root: &Path) -> Result<Tee, String> {
    let dir = root.join(tsm::REPORT_DIR);
    if !dir.is_dir() {
        return Err(format!(
            "there is no /{} (Linux 6.7 or later with CONFIG_TSM_REPORTS, configfs mounted)",
            tsm::REPORT_DIR
        ));
    }
    let provider = tsm::provider(&tsm::Configfs::new(dir)).map_err(|error| error.to_string())?;
    [(tsm::Provider::SevGuest, Tee::Snp), (tsm::Provider::TdxGuest, Tee::Tdx)]
        .into_iter()
        .find_map(|(known, tee)| (known.name() == provider).then_some(tee))
        .ok_or_else(|| format!("its provider {provider:?} is not known"))
}

fn device(root: &Path, path: &str, tee: Tee) -> Result<Tee, String> {
    match std::fs::OpenOptions::new().read(true).write(true).open(root.join(path)) {
        Ok(_) => Ok(tee),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(format!("there is no /{path} (the processor does not offer it, or the kernel has no driver)"))
        }
        Err(error) => Err(format!("/{path} cannot be opened: {error}")),
    }
}

fn service(root: &Path) -> Result<Tee, String> {
    match tdx::qgs_port(root) {
        Some(_) if tdx::device(root).exists() => Ok(Tee::Tdx),
        Some(_) => Err(format!("it needs the TD report of /{}", tdx::DEVICE)),
        None => Err(format!("/{} names no port", tdx::QGS_CONFIG)),
    }
}

fn simulated(cmdline: &str) -> Result<Tee, String> {
    match Tee::named(cmdline) {
        Some("sim-snp") => Ok(Tee::SimSnp),
        Some("sim-tdx") => Ok(Tee::SimTdx),
        Some(other) => Err(format!("the command line says {CMDLINE_PARAMETER}={other}")),
        None => Err(format!("the command line does not say {CMDLINE_PARAMETER}=sim-snp or sim-tdx")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_has_its_reason() {
        let root = tempfile::tempdir().expect("temporary folder");
        let all = probe("console=ttyS0", root.path());
        assert_eq!(all.len(), 5);
        for found in &all {
            let text = found.to_string();
            assert!(found.state.is_err() && text.contains("not here, "), "{text}");
        }
        let said = all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        for part in ["CONFIG_TSM_REPORTS", "/dev/sev-guest", "/dev/tdx_guest", "names no port", "sim-snp"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn what_is_there_names_its_tee() {
        let root = tempfile::tempdir().expect("temporary folder");
        for dir in ["dev", "etc"] {
            std::fs::create_dir(root.path().join(dir)).expect("folder");
        }
        for file in [SEV_DEVICE, tdx::DEVICE] {
            std::fs::write(root.path().join(file), b"").expect("file");
        }
        std::fs::write(root.path().join(tdx::QGS_CONFIG), "port=4050\n").expect("file");
        let all = probe("kata_cc.tee=sim-snp", root.path());
        let states: Vec<_> = all.into_iter().skip(1).map(|found| found.state).collect();
        assert_eq!(states, [Ok(Tee::Snp), Ok(Tee::Tdx), Ok(Tee::Tdx), Ok(Tee::SimSnp)]);
    }
}
