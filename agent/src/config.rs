//! Configuration from the kernel command line (`/proc/cmdline`), by Kata's names.
//!
//! The command line is part of the launch measurement in a confidential guest; it is read once, at the start.
//! Unknown parameters are the kernel's or another's and are passed over. `KATA_AGENT_SERVER_ADDR` and
//! `KATA_AGENT_LOG_LEVEL` override, as with Kata's agent; they serve tests without a VM (in a guest, the kernel
//! turns unknown `NAME=value` parameters into PID 1's environment, so they are as measured as the rest).

/// Which hardware protects this guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tee {
    /// None: a plain VM.
    None,
    /// Simulated SNP.
    SimSnp,
    /// Simulated TDX.
    SimTdx,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
}

impl Tee {
    /// Name on the wire and in logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::SimSnp => "sim-snp",
            Self::SimTdx => "sim-tdx",
            Self::Snp => "snp",
            Self::Tdx => "tdx",
        }
    }

    /// Whether the host is not trusted.
    pub(crate) fn is_confidential(self) -> bool {
        self != Self::None
    }
}

/// The agent's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// `agent.log`.
    pub(crate) log_level: tracing::Level,
    /// `agent.server_addr`.
    pub(crate) server_addr: String,
    /// `kata_cc.tee` as written; `None` when absent.
    pub(crate) tee: Option<String>,
    /// `agent.guest_components_rest_api`: which guest APIs are served.
    pub(crate) guest_api: Option<String>,
}

impl Config {
    /// From the text of `/proc/cmdline`.
    pub(crate) fn parse(cmdline: &str) -> Self {
        let mut config = Self {
            log_level: tracing::Level::INFO,
            server_addr: "vsock://-1:1024".to_owned(),
            tee: None,
            guest_api: None,
        };
        for (name, value) in cmdline.split_whitespace().filter_map(|p| p.split_once('=')) {
            config.set(name, value);
        }
        config
    }

    /// From this machine.
    pub(crate) fn load() -> Self {
        let mut config = Self::parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default());
        for (variable, name) in
            [("KATA_AGENT_SERVER_ADDR", "agent.server_addr"), ("KATA_AGENT_LOG_LEVEL", "agent.log")]
        {
            if let Ok(value) = std::env::var(variable) {
                config.set(name, &value);
            }
        }
        config
    }

    fn set(&mut self, name: &str, value: &str) {
        match name {
            "agent.log" => {
                self.log_level = match value {
                    "trace" => tracing::Level::TRACE,
                    "debug" => tracing::Level::DEBUG,
                    "warn" => tracing::Level::WARN,
                    "error" | "critical" => tracing::Level::ERROR,
                    _ => tracing::Level::INFO,
                }
            }
            "agent.server_addr" => self.server_addr = value.to_owned(),
            "kata_cc.tee" => self.tee = Some(value.to_owned()),
            "agent.guest_components_rest_api" => self.guest_api = Some(value.to_owned()),
            _ => {}
        }
    }

    /// The TEE: what the command line says, else what the hardware shows.
    ///
    /// A name that is not known is an error: guessing "none" would select the weak policy.
    pub(crate) fn tee(&self) -> Result<Tee, String> {
        let hardware = if std::path::Path::new("/dev/sev-guest").exists() {
            Tee::Snp
        } else if std::path::Path::new("/dev/tdx_guest").exists() {
            Tee::Tdx
        } else {
            Tee::None
        };
        decide(self.tee.as_deref(), hardware)
    }
}

fn decide(said: Option<&str>, hardware: Tee) -> Result<Tee, String> {
    match (said, hardware) {
        (Some("sim-snp"), Tee::None) => Ok(Tee::SimSnp),
        (Some("sim-tdx"), Tee::None) => Ok(Tee::SimTdx),
        (None | Some("none"), Tee::None) => Ok(Tee::None),
        // Real hardware is not weakened by a word.
        (None, hardware) => Ok(hardware),
        (Some(said), hardware) if said == hardware.name() => Ok(hardware),
        (Some(said), hardware) => {
            Err(format!("kata_cc.tee={said} on the command line, but the hardware shows {}", hardware.name()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn katas_names_are_read() {
        let c = Config::parse("quiet agent.log=debug agent.server_addr=unix:///x kata_cc.tee=sim-snp a=b");
        assert_eq!(c.log_level, tracing::Level::DEBUG);
        assert_eq!(c.server_addr, "unix:///x");
        assert_eq!(c.tee.as_deref(), Some("sim-snp"));
    }

    #[test]
    fn the_tee_is_never_guessed_down() {
        assert_eq!(decide(None, Tee::None), Ok(Tee::None));
        assert_eq!(decide(Some("none"), Tee::None), Ok(Tee::None));
        assert_eq!(decide(None, Tee::Snp), Ok(Tee::Snp));
        assert_eq!(decide(Some("sim-snp"), Tee::None), Ok(Tee::SimSnp));
        assert_eq!(decide(Some("sim-tdx"), Tee::None), Ok(Tee::SimTdx));
        assert!(decide(Some("none"), Tee::Snp).is_err());
        assert!(decide(Some("sim-tdx"), Tee::Tdx).is_err());
        assert!(decide(Some("sim-snp"), Tee::Snp).is_err());
        assert!(decide(Some("snp"), Tee::None).is_err());
        assert!(decide(Some("whatever"), Tee::None).is_err());
    }
}
