//! Trustee's JSON form of SNP evidence: `{"attestation_report": {...}, "cert_chain": [...] | null}`.
//!
//! The report is a structure of numbers and byte arrays as the guest components write it, so
//! the bytes that were signed are put together again ([`ReportJson::to_report`]); whatever was in
//! reserved places is lost and its signature then does not verify. `cert_chain` holds what the
//! host supplied with the extended report. The form is the same for `snp` and `sim-snp`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::cert_table::{CertKind, CertTable};
use crate::policy::{GuestPolicy, KeyInfo, PlatformInfo, SigningKey};
use crate::report::{CpuId, FirmwareVersion, Report, ReportError, Signature};
use crate::tcb::{Tcb, TcbLayout};
use crate::verify::Endorsements;

/// Bytes that JSON carries as an array of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes<const N: usize>(pub [u8; N]);

impl<const N: usize> Serialize for Bytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Bytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<const N: usize>;
        impl<'de, const N: usize> serde::de::Visitor<'de> for Visitor<N> {
            type Value = Bytes<N>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "an array of {N} bytes")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut out = [0; N];
                for (index, byte) in out.iter_mut().enumerate() {
                    *byte =
                        seq.next_element()?.ok_or_else(|| serde::de::Error::invalid_length(index, &self))?;
                }
                match seq.next_element::<u8>()? {
                    None => Ok(Bytes(out)),
                    Some(_) => Err(serde::de::Error::invalid_length(N + 1, &self)),
                }
            }
        }
        deserializer.deserialize_seq(Visitor)
    }
}

/// Evidence as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnpEvidence {
    /// The report.
    pub attestation_report: ReportJson,
    /// Certificates from the host, when it supplied any.
    #[serde(default)]
    pub cert_chain: Option<Vec<CertEntry>>,
}

/// One certificate of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertEntry {
    /// What it is.
    pub cert_type: CertType,
    /// DER.
    pub data: Vec<u8>,
}

/// Names of certificate kinds on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::upper_case_acronyms, missing_docs, reason = "names are those of the wire")]
pub enum CertType {
    VCEK,
    VLEK,
    ASK,
    ARK,
    CRL,
    Empty,
    /// GUID in text form.
    OTHER(String),
}

impl From<CertKind> for CertType {
    fn from(kind: CertKind) -> Self {
        match kind {
            CertKind::Vcek => Self::VCEK,
            CertKind::Vlek => Self::VLEK,
            CertKind::Ask => Self::ASK,
            CertKind::Ark => Self::ARK,
            CertKind::Crl => Self::CRL,
            CertKind::Other(guid) => {
                let text = hex::encode(guid);
                let parts =
                    [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| text.get(range).unwrap_or_default());
                Self::OTHER(parts.join("-"))
            }
        }
    }
}

/// The report's fields under the names of the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "names are those of the wire, meanings those of Report")]
pub struct ReportJson {
    pub version: u32,
    pub guest_svn: u32,
    pub policy: u64,
    pub family_id: Bytes<16>,
    pub image_id: Bytes<16>,
    pub vmpl: u32,
    pub sig_algo: u32,
    pub current_tcb: Tcb,
    pub plat_info: u64,
    pub key_info: u32,
    pub report_data: Bytes<64>,
    pub measurement: Bytes<48>,
    pub host_data: Bytes<32>,
    pub id_key_digest: Bytes<48>,
    pub author_key_digest: Bytes<48>,
    pub report_id: Bytes<32>,
    pub report_id_ma: Bytes<32>,
    pub reported_tcb: Tcb,
    #[serde(default)]
    pub cpuid_fam_id: Option<u8>,
    #[serde(default)]
    pub cpuid_mod_id: Option<u8>,
    #[serde(default)]
    pub cpuid_step: Option<u8>,
    pub chip_id: Bytes<64>,
    pub committed_tcb: Tcb,
    pub current: FirmwareVersion,
    pub committed: FirmwareVersion,
    pub launch_tcb: Tcb,
    #[serde(default)]
    pub launch_mit_vector: Option<u64>,
    #[serde(default)]
    pub current_mit_vector: Option<u64>,
    pub signature: SignatureJson,
}

/// A signature, both numbers little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "names are those of the wire")]
pub struct SignatureJson {
    pub r: Bytes<72>,
    pub s: Bytes<72>,
}

impl From<&Report> for ReportJson {
    fn from(report: &Report) -> Self {
        Self {
            version: report.version,
            guest_svn: report.guest_svn,
            policy: report.policy.0,
            family_id: Bytes(report.family_id),
            image_id: Bytes(report.image_id),
            vmpl: report.vmpl,
            sig_algo: report.signature_algo,
            current_tcb: report.current_tcb,
            plat_info: report.platform_info.0,
            key_info: report.key_info.0,
            report_data: Bytes(report.report_data),
            measurement: Bytes(report.measurement),
            host_data: Bytes(report.host_data),
            id_key_digest: Bytes(report.id_key_digest),
            author_key_digest: Bytes(report.author_key_digest),
            report_id: Bytes(report.report_id),
            report_id_ma: Bytes(report.report_id_ma),
            reported_tcb: report.reported_tcb,
            cpuid_fam_id: report.cpuid.map(|cpu| cpu.family),
            cpuid_mod_id: report.cpuid.map(|cpu| cpu.model),
            cpuid_step: report.cpuid.map(|cpu| cpu.stepping),
            chip_id: Bytes(report.chip_id),
            committed_tcb: report.committed_tcb,
            current: report.current_version,
            committed: report.committed_version,
            launch_tcb: report.launch_tcb,
            launch_mit_vector: report.launch_mit_vector,
            current_mit_vector: report.current_mit_vector,
            signature: SignatureJson { r: Bytes(report.signature.r), s: Bytes(report.signature.s) },
        }
    }
}

impl ReportJson {
    /// Back to the structure that was signed.
    ///
    /// # Errors
    /// [`ReportError`] for versions this software does not know and for fields that the version
    /// demands and that are missing.
    pub fn to_report(&self) -> Result<Report, ReportError> {
        let report = Report {
            version: self.version,
            guest_svn: self.guest_svn,
            policy: GuestPolicy(self.policy),
            family_id: self.family_id.0,
            image_id: self.image_id.0,
            vmpl: self.vmpl,
            signature_algo: self.sig_algo,
            current_tcb: self.current_tcb,
            platform_info: PlatformInfo(self.plat_info),
            key_info: KeyInfo(self.key_info),
            report_data: self.report_data.0,
            measurement: self.measurement.0,
            host_data: self.host_data.0,
            id_key_digest: self.id_key_digest.0,
            author_key_digest: self.author_key_digest.0,
            report_id: self.report_id.0,
            report_id_ma: self.report_id_ma.0,
            reported_tcb: self.reported_tcb,
            cpuid: self.cpuid()?,
            chip_id: self.chip_id.0,
            committed_tcb: self.committed_tcb,
            current_version: self.current,
            committed_version: self.committed,
            launch_tcb: self.launch_tcb,
            launch_mit_vector: self.launch_mit_vector,
            current_mit_vector: self.current_mit_vector,
            signature: Signature { r: self.signature.r.0, s: self.signature.s.0 },
        };
        // The bytes decide: parsing them applies every rule of the binary form, and shows fields
        // that contradict the version or the processor family.
        let parsed = Report::parse(&report.to_bytes())?;
        let layout = |tcb: &Tcb| if tcb.fmc.is_some() { TcbLayout::Family1A } else { TcbLayout::Family19 };
        if layout(&parsed.reported_tcb) != layout(&report.reported_tcb) {
            return Err(ReportError::MissingField { version: self.version, field: "reported_tcb.fmc" });
        }
        Ok(parsed)
    }

    fn cpuid(&self) -> Result<Option<CpuId>, ReportError> {
        if self.version < 3 {
            return Ok(None);
        }
        let need = |value: Option<u8>, field| {
            value.ok_or(ReportError::MissingField { version: self.version, field })
        };
        Ok(Some(CpuId {
            family: need(self.cpuid_fam_id, "cpuid_fam_id")?,
            model: need(self.cpuid_mod_id, "cpuid_mod_id")?,
            stepping: need(self.cpuid_step, "cpuid_step")?,
        }))
    }
}

impl SnpEvidence {
    /// Evidence from a report and the certificate table beside it.
    #[must_use]
    pub fn new(report: &Report, table: &CertTable) -> Self {
        let entries: Vec<_> = table
            .entries
            .iter()
            .map(|(kind, data)| CertEntry { cert_type: (*kind).into(), data: data.clone() })
            .collect();
        Self { attestation_report: report.into(), cert_chain: (!entries.is_empty()).then_some(entries) }
    }

    /// The revocation list that the host supplied, if any.
    #[must_use]
    pub fn crl(&self) -> Option<&[u8]> {
        let all = self.cert_chain.as_deref().unwrap_or_default();
        all.iter().find(|entry| entry.cert_type == CertType::CRL).map(|entry| entry.data.as_slice())
    }

    /// The certificates by their place in the chain; the first of each kind counts. The
    /// endorsement key is empty when there is none.
    #[must_use]
    pub fn endorsements(&self) -> Endorsements {
        let find = |kind: &CertType| {
            let all = self.cert_chain.as_deref().unwrap_or_default();
            all.iter().find(|entry| entry.cert_type == *kind).map(|entry| entry.data.clone())
        };
        // A platform may supply both kinds; the report says which one signed.
        let (first, second) = match KeyInfo(self.attestation_report.key_info).signing_key() {
            SigningKey::Vlek => (CertType::VLEK, CertType::VCEK),
            _ => (CertType::VCEK, CertType::VLEK),
        };
        Endorsements {
            vek: find(&first).or_else(|| find(&second)).unwrap_or_default(),
            ask: find(&CertType::ASK),
            ark: find(&CertType::ARK),
        }
    }
}
