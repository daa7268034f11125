//! What the agent measures at run time: the images that it pulls, and what containers ask for through the guest API.
//!
//! Switched on by `[eventlog_config] enable_eventlog = true` in `aa.toml` (off by default, as in CoCo). Once it is on an image that
//! cannot be recorded does not run: a verifier who relies on the log must not see less than there was. What a log proves
//! on which TEE is told in [`kata_cc_attester::measure`].

use std::path::Path;

use anyhow::{Context as _, Result};
use kata_cc_attester::measure::{
    Asker, Event, LogError, Register, Rtmr, RuntimeLog, SoftwareRegister, aael, tcg,
};
use kata_cc_attester::sim_tdx::SimRtmr;
use kata_cc_attester::{LogSnapshot, tdx};
use kata_cc_guest_api::{GuestError, Measured};
use serde::Deserialize;
use tokio::sync::Mutex;
use tracing::info;

use crate::config::Tee;

/// Folder of the log, CoCo's.
const FOLDER: &str = "/run/attestation-agent";

/// `[eventlog_config]` of `aa.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct EventLog {
    /// The register, as a PCR; on TDX 17 is RTMR3.
    init_pcr: u32,
    /// Whether anything is recorded.
    enable_eventlog: bool,
}

impl Default for EventLog {
    fn default() -> Self {
        Self { init_pcr: 17, enable_eventlog: false }
    }
}

impl EventLog {
    /// Which RTMR of a TD the register is.
    fn rtmr(&self) -> u8 {
        let ccmr = aael::ccmr_of_pcr(u64::from(self.init_pcr));
        u8::try_from(ccmr.saturating_sub(1)).unwrap_or(u8::MAX)
    }
}

/// Register and log, when they are switched on.
#[derive(Debug, Default)]
pub(crate) struct Measurements(Option<Mutex<RuntimeLog>>);

impl Measurements {
    /// Opens the log. A TDX guest whose kernel does not offer its registers does not start: a log without them would look
    /// like one with them.
    pub(crate) fn start(tee: Tee, config: &EventLog) -> Result<Self> {
        Self::start_in(Path::new("/"), Path::new(FOLDER), tee, config)
    }

    fn start_in(root: &Path, folder: &Path, tee: Tee, config: &EventLog) -> Result<Self> {
        if !config.enable_eventlog || !tee.is_confidential() {
            return Ok(Self::default());
        }
        let log = match tee {
            Tee::Tdx => {
                let index = config.rtmr();
                let rtmr = Rtmr::open(root, index).with_context(|| {
                    format!("enable_eventlog is set, and RTMR{index} cannot be extended here (Linux 6.16 or later)")
                })?;
                let firmware = tdx::firmware_log(root).context("read the firmware's event log")?;
                RuntimeLog::open(folder, firmware.as_deref(), |_| Ok(Box::new(rtmr)))
            }
            Tee::SimTdx => {
                let index = config.rtmr();
                let rtmr = SimRtmr::open(index)
                    .with_context(|| format!("RTMR{index} of the simulated TDX module cannot be extended"))?;
                RuntimeLog::open(folder, None, |_| Ok(Box::new(rtmr)))
            }
            _ => {
                let number = config.init_pcr;
                RuntimeLog::open(folder, None, |log| {
                    let register = SoftwareRegister::new(number, tcg::replay(log, number)?);
                    Ok(Box::new(register) as Box<dyn Register>)
                })
            }
        };
        let log = log.context("open the event log")?;
        info!(register = log.register(), hardware = log.is_hardware(), "images are measured at run time");
        Ok(Self(Some(Mutex::new(log))))
    }

    /// Records that an image was pulled.
    pub(crate) async fn pulled(&self, reference: &str, digest: &str) -> Result<(), LogError> {
        let Some(log) = &self.0 else { return Ok(()) };
        let event = Event::pull_image(reference, digest)?;
        log.lock().await.record(&event, Asker::Agent).map(|_| ())
    }

    /// Records what somebody in the guest asks for.
    pub(crate) async fn asked(&self, event: &Event) -> Result<Measured, GuestError> {
        let Some(log) = &self.0 else { return Ok(Measured::NotEnabled) };
        match log.lock().await.record(event, Asker::Api) {
            Ok(_) => Ok(Measured::Recorded),
            Err(error @ (LogError::Reserved | LogError::Event(_))) => {
                Err(GuestError::Input(error.to_string()))
            }
            Err(error) => Err(GuestError::Failed(error.to_string())),
        }
    }

    /// The log's state, for evidence.
    pub(crate) async fn snapshot(&self) -> Result<Option<LogSnapshot>, LogError> {
        match &self.0 {
            Some(log) => LogSnapshot::take(&*log.lock().await).map(Some),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: EventLog = EventLog { init_pcr: 17, enable_eventlog: true };

    #[tokio::test]
    async fn images_are_recorded_when_it_is_switched_on() {
        let root = std::env::temp_dir().join(format!("kata-cc-measure-{}", std::process::id()));
        let start = |tee, config: &EventLog| Measurements::start_in(&root, &root.join("log"), tee, config);
        let off = start(Tee::SimSnp, &EventLog::default()).unwrap();
        off.pulled("r/i:1", "sha256:00").await.unwrap();
        assert!(off.snapshot().await.unwrap().is_none());
        let event = Event::new("example.com", "x", "").unwrap();
        assert_eq!(off.asked(&event).await, Ok(Measured::NotEnabled));

        let on = start(Tee::SimSnp, &ON).unwrap();
        on.pulled("r/i:1", "sha256:00").await.unwrap();
        assert_eq!(on.asked(&event).await, Ok(Measured::Recorded));
        let posing = Event::pull_image("evil", "sha256:00").unwrap();
        assert!(matches!(on.asked(&posing).await, Err(GuestError::Input(_))));
        let bytes = std::fs::read(root.join("log/eventlog")).unwrap();
        let events: Vec<Event> =
            tcg::events(&bytes).map(Result::unwrap).filter_map(|e| Event::of(&e)).collect();
        assert_eq!(events[0].operation(), "PullImage");
        assert_eq!(events[0].content(), r#"{"image":"r/i:1","digest":"sha256:00"}"#);
        assert_eq!(events.len(), 2);
        assert!(on.snapshot().await.unwrap().is_some());

        let refused = format!("{:#}", start(Tee::Tdx, &ON).unwrap_err());
        assert!(refused.contains("RTMR3 cannot be extended"), "{refused}");
        std::fs::remove_dir_all(&root).unwrap();
    }
}
