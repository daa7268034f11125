//! Evidence of devices beside the CPU: what classes there are, which verifiers, and where others are plugged in.
//!
//! Trustee names a submod of its token by class and index (`cpu0`, `gpu0`, `gpu1`) and appraises each by a policy of its
//! class (`default_cpu`, `default_gpu`). Built in is the sample device, whose evidence anybody can make up. There is no
//! verifier for NVIDIA's evidence: it is refused in so many words, and a [`DeviceVerifier`] can be plugged in
//! ([`crate::service::AttestationService::with_devices`]).

use kata_cc_kbs_protocol::{Tee, from_base64_standard};
use serde_json::{Value, json};

use crate::verify::{Evidence, Reason, Refusal, Verified};

/// What a piece of evidence is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// The guest itself.
    Cpu,
    /// An accelerator.
    Gpu,
    /// A switch between accelerators.
    Switch,
    /// A group of accelerators that are protected together.
    Ppcie,
}

impl Class {
    /// Name in submods and policy ids.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
            Self::Switch => "switch",
            Self::Ppcie => "ppcie",
        }
    }
}

/// Whether evidence of this kind is about a device, which never stands for a guest.
pub fn is_device(tee: Tee) -> bool {
    matches!(tee, Tee::Nvidia | Tee::NvidiaDpu | Tee::Hygondcu | Tee::Sampledevice)
}

/// Verified evidence of one device.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// Its class.
    pub class: Class,
    /// What it says.
    pub verified: Verified,
}

/// Verifies evidence of one kind of device. Pure: it gets the evidence, what that has to bind, and the time.
pub trait DeviceVerifier: Send + Sync {
    /// Kind of evidence, by its name on the wire.
    fn tee(&self) -> Tee;

    /// Verifies evidence, which may be of several devices, at `now` (seconds since 1970). Must refuse evidence whose report data is not
    /// `evidence.report_data` when that is given. The order of the result is that of the submods.
    fn verify(&self, evidence: &Evidence<'_>, now: i64) -> Result<Vec<Device>, Refusal>;
}

/// Trustee's sample device: evidence that anybody can make up. For trying out clients.
#[derive(Debug, Clone, Copy)]
pub struct SampleDevice {
    /// Whether it is enabled at all.
    pub enabled: bool,
}

impl DeviceVerifier for SampleDevice {
    fn tee(&self) -> Tee {
        Tee::Sampledevice
    }

    fn verify(&self, evidence: &Evidence<'_>, _now: i64) -> Result<Vec<Device>, Refusal> {
        if !self.enabled {
            return Err(Refusal::new(
                Reason::SampleNotEnabled,
                "sample evidence of a device proves nothing and is not enabled ([attestation] allow_sample = true enables it)",
            ));
        }
        let malformed =
            |what: &str| Refusal::new(Reason::Malformed, format!("evidence of the sample device: {what}"));
        let svn = evidence.evidence.get("svn").and_then(Value::as_str);
        let svn = svn.ok_or_else(|| malformed("the text svn is missing"))?;
        let report_data = match evidence.evidence.get("report_data") {
            None => "",
            Some(value) => value.as_str().ok_or_else(|| malformed("report_data is no text"))?,
        };
        let seen = from_base64_standard(report_data).ok_or_else(|| malformed("report_data is not base64"))?;
        if let Some(expected) = evidence.report_data
            && seen != expected
        {
            let (seen, expected) = (hex::encode(seen), hex::encode(expected));
            let why = "the device's evidence was made for another nonce or key";
            return Err(Refusal::differs(Reason::ReportData, "report_data", seen, expected, why));
        }
        let verified = Verified {
            claims: json!({"svn": svn}),
            init_data: String::new(),
            report_data: report_data.to_owned(),
        };
        Ok(vec![Device { class: Class::Gpu, verified }])
    }
}

/// The verifiers of devices that were plugged in.
#[derive(Default)]
pub struct Devices(Vec<Box<dyn DeviceVerifier>>);

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|verifier| verifier.tee())).finish()
    }
}

impl Devices {
    /// Adds a verifier; it comes before one that is built in, and before one that was plugged in earlier for the same kind.
    pub fn plug(&mut self, verifier: Box<dyn DeviceVerifier>) {
        self.0.insert(0, verifier);
    }

    /// Verifies evidence of a device. `samples`: whether sample evidence is enabled.
    pub(crate) fn verify(
        &self,
        evidence: &Evidence<'_>,
        samples: bool,
        now: i64,
    ) -> Result<Vec<Device>, Refusal> {
        if let Some(verifier) = self.0.iter().find(|verifier| verifier.tee() == evidence.tee) {
            return verifier.verify(evidence, now);
        }
        if evidence.tee == Tee::Sampledevice {
            return SampleDevice { enabled: samples }.verify(evidence, now);
        }
        Err(Refusal::new(
            Reason::TeeNotSupported,
            format!(
                "no verifier for {} evidence is built in: leave the device's evidence out, or use a build with a verifier for it",
                evidence.tee
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verify(enabled: bool, tee: Tee, evidence: &Value) -> Result<Vec<Device>, Refusal> {
        let evidence = Evidence { tee, evidence, report_data: Some(b"digest"), init_data: None };
        Devices::default().verify(&evidence, enabled, 0)
    }

    #[test]
    fn the_sample_device_works_where_it_is_enabled() {
        let evidence = json!({"svn": "1", "report_data": "ZGlnZXN0"});
        let devices = verify(true, Tee::Sampledevice, &evidence).unwrap();
        assert_eq!(devices.len(), 1);
        assert_eq!((devices[0].class, &devices[0].verified.claims), (Class::Gpu, &json!({"svn": "1"})));
        let refused = verify(false, Tee::Sampledevice, &evidence).unwrap_err();
        assert_eq!(refused.reason, Reason::SampleNotEnabled);
        for (evidence, reason) in [
            (json!({"svn": "1", "report_data": "ZGlnZXN0AA=="}), Reason::ReportData),
            (json!({"svn": "1"}), Reason::ReportData),
            (json!({"svn": "1", "report_data": "!"}), Reason::Malformed),
            (json!({"svn": "1", "report_data": 1}), Reason::Malformed),
            (json!({"svn": 1, "report_data": "ZGlnZXN0"}), Reason::Malformed),
            (json!([]), Reason::Malformed),
        ] {
            let refused = verify(true, Tee::Sampledevice, &evidence).unwrap_err();
            assert_eq!(refused.reason, reason, "{evidence}: {refused}");
        }
    }

    #[test]
    fn nvidia_is_refused_until_a_verifier_is_plugged_in() {
        let refused = verify(true, Tee::Nvidia, &json!({})).unwrap_err();
        assert_eq!(refused.reason, Reason::TeeNotSupported);
        assert!(refused.message.starts_with("no verifier for nvidia evidence is built in"), "{refused}");

        struct Plugged;
        impl DeviceVerifier for Plugged {
            fn tee(&self) -> Tee {
                Tee::Nvidia
            }
            fn verify(&self, _: &Evidence<'_>, _: i64) -> Result<Vec<Device>, Refusal> {
                Ok(Vec::new())
            }
        }
        let mut devices = Devices::default();
        devices.plug(Box::new(Plugged));
        let evidence =
            Evidence { tee: Tee::Nvidia, evidence: &json!({}), report_data: None, init_data: None };
        assert_eq!(devices.verify(&evidence, false, 0), Ok(Vec::new()));
        assert_eq!(format!("{devices:?}"), "[Nvidia]");
    }
}
