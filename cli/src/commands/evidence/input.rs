//! Reading evidence: which form a file has, and which TEE it is of.
//!
//! | form | how it is told |
//! |---|---|
//! | SNP report, or one with its certificate table behind it | 1184 bytes or more, version 2 to 5 |
//! | TDX quote | header of version 4 or 5 with the TEE type of TDX |
//! | HCL report | begins with `HCLA` |
//! | Trustee's JSON | an object; its members say whose |
//!
//! A simulated platform's evidence has the form of the real one: what it is depends on the root that it is checked under.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use kata_cc_azure_vtpm::{AzureEvidence, Hardware, HclReport, hcl};
use kata_cc_kbs_protocol::Tee;
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_snp::{CertTable, REPORT_LEN, Report};
use serde_json::Value;

use crate::commands::read_input;

/// Most bytes of evidence: a TDX event log in base64 has up to 1.4 MB.
const MAX_EVIDENCE: u64 = 4 << 20;

/// TEE type in the header of a TDX quote.
const TEE_TYPE_TDX: u32 = 0x81;

/// TEEs as they are named on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::commands) enum TeeName {
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// SNP behind Azure's vTPM.
    AzSnpVtpm,
    /// TDX behind Azure's vTPM.
    AzTdxVtpm,
    /// The simulated SNP, which protects nothing.
    SimSnp,
    /// The simulated TDX, which protects nothing.
    SimTdx,
    /// Trustee's sample, which proves nothing.
    Sample,
}

impl TeeName {
    const fn tee(self) -> Tee {
        match self {
            Self::Snp => Tee::Snp,
            Self::Tdx => Tee::Tdx,
            Self::AzSnpVtpm => Tee::AzSnpVtpm,
            Self::AzTdxVtpm => Tee::AzTdxVtpm,
            Self::SimSnp => Tee::SimSnp,
            Self::SimTdx => Tee::SimTdx,
            Self::Sample => Tee::Sample,
        }
    }
}

/// Evidence in the form that it came in.
#[derive(Debug)]
pub(in crate::commands) enum Form {
    /// A raw SNP report, and the certificates behind it.
    SnpReport(Box<Report>, CertTable),
    /// A raw TDX quote.
    TdxQuote(Vec<u8>),
    /// An HCL report without a quote of its vTPM.
    Hcl(HclReport),
    /// Trustee's JSON.
    Json(Value),
}

/// What was read.
#[derive(Debug)]
pub(in crate::commands) struct Input {
    /// Whose evidence it is.
    pub(in crate::commands) tee: Tee,
    /// In which form.
    pub(in crate::commands) form: Form,
}

impl Input {
    /// What it is, in words.
    pub(in crate::commands) fn kind(&self) -> String {
        match &self.form {
            Form::SnpReport(_, table) if table.entries.is_empty() => "SNP attestation report".to_owned(),
            Form::SnpReport(_, _) => "SNP attestation report with a certificate table".to_owned(),
            Form::TdxQuote(_) => "TDX quote".to_owned(),
            Form::Hcl(hcl) => format!("HCL report of a vTPM on {}", hcl.hardware().name()),
            Form::Json(_) => format!("evidence of {} as JSON", self.tee),
        }
    }
}

/// Read evidence from a file, `-` being standard input.
pub(in crate::commands) fn read(file: &Path, tee: Option<TeeName>, simulated: bool) -> anyhow::Result<Input> {
    let bytes = read_input(Some(file), MAX_EVIDENCE)
        .with_context(|| format!("{} is not taken as evidence", file.display()))?;
    detect(&bytes, tee.map(TeeName::tee), simulated)
        .with_context(|| format!("{} cannot be read as evidence", file.display()))
}

/// Read evidence from bytes.
pub(in crate::commands) fn detect(bytes: &[u8], tee: Option<Tee>, simulated: bool) -> anyhow::Result<Input> {
    ensure!(!bytes.is_empty(), "it is empty");
    let (seen, form) = if bytes.starts_with(hcl::MAGIC) {
        let hcl = HclReport::parse(bytes)?;
        let tee = match hcl.hardware() {
            Hardware::Snp => Tee::AzSnpVtpm,
            Hardware::Tdx => Tee::AzTdxVtpm,
        };
        (tee, Form::Hcl(hcl))
    } else if is_tdx_quote(bytes) {
        (Tee::Tdx, Form::TdxQuote(bytes.to_vec()))
    } else if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{') {
        let value: Value = serde_json::from_slice(bytes).context("it begins like JSON and is none")?;
        (tee_of(&value, tee)?, Form::Json(value))
    } else {
        (Tee::Snp, snp_report(bytes, tee)?)
    };
    // One form serves hardware and its simulation.
    let named = match (tee, seen) {
        (None, Tee::Snp) if simulated => Tee::SimSnp,
        (None, Tee::Tdx) if simulated => Tee::SimTdx,
        (None, seen) => seen,
        (Some(tee @ (Tee::Snp | Tee::SimSnp)), Tee::Snp) => tee,
        (Some(tee @ (Tee::Tdx | Tee::SimTdx)), Tee::Tdx) => tee,
        (Some(tee), seen) if tee == seen => tee,
        (Some(tee), seen) => bail!("it is evidence of {seen}, --tee says {tee}: leave --tee out"),
    };
    Ok(Input { tee: named, form })
}

fn is_tdx_quote(bytes: &[u8]) -> bool {
    let Some((head, _)) = bytes.split_first_chunk::<8>() else { return false };
    let [v0, v1, _, _, t0, t1, t2, t3] = *head;
    matches!(u16::from_le_bytes([v0, v1]), 4 | 5) && u32::from_le_bytes([t0, t1, t2, t3]) == TEE_TYPE_TDX
}

fn snp_report(bytes: &[u8], tee: Option<Tee>) -> anyhow::Result<Form> {
    let version = bytes.first_chunk::<4>().map(|head| u32::from_le_bytes(*head));
    let looks_like_one = version.is_some_and(|version| version <= 0xFF);
    if !looks_like_one && !matches!(tee, Some(Tee::Snp | Tee::SimSnp)) {
        let head = hex::encode(bytes.get(..8).unwrap_or(bytes));
        bail!(
            "it is no evidence that is known ({} bytes, beginning with {head}): expected an SNP report (1184 bytes), a TDX quote, an HCL report, or Trustee's evidence as JSON",
            bytes.len()
        );
    }
    let (report, table) = bytes.split_at_checked(REPORT_LEN).unwrap_or((bytes, &[]));
    let report = Report::parse(report).context("it is no SNP report")?;
    let table = if table.is_empty() {
        CertTable::default()
    } else {
        CertTable::parse(table).context("what follows the SNP report is no certificate table")?
    };
    Ok(Form::SnpReport(Box::new(report), table))
}

fn tee_of(value: &Value, named: Option<Tee>) -> anyhow::Result<Tee> {
    let has = |name: &str| value.get(name).is_some();
    if has("primary_evidence") || has("tee-evidence") {
        bail!("it is a whole attestation request: give the member primary_evidence alone");
    }
    let seen = if has("attestation_report") {
        Some(Tee::Snp)
    } else if let Some(hardware) = AzureEvidence::hardware_of(value) {
        Some(match hardware {
            Hardware::Snp => Tee::AzSnpVtpm,
            Hardware::Tdx => Tee::AzTdxVtpm,
        })
    } else if value.get("quote").is_some_and(Value::is_string) {
        Some(Tee::Tdx)
    } else if has("svn") && has("report_data") {
        Some(Tee::Sample)
    } else {
        None
    };
    let members = || {
        let names = value.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
        names.take(8).collect::<Vec<_>>().join(", ")
    };
    seen.or(named).with_context(|| {
        format!(
            "its members ({}) are those of no evidence that is known: expected attestation_report (snp), quote (tdx), hcl_report with vcek (az-snp-vtpm) or td_quote (az-tdx-vtpm)",
            members()
        )
    })
}

/// The report and certificates inside SNP's JSON.
pub(in crate::commands) fn snp_parts(value: &Value) -> anyhow::Result<(Report, SnpEvidence)> {
    let evidence: SnpEvidence =
        serde::Deserialize::deserialize(value).context("it is no evidence of snp in Trustee's form")?;
    Ok((evidence.attestation_report.to_report()?, evidence))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(bytes: &[u8]) -> String {
        format!("{:#}", detect(bytes, None, false).unwrap_err())
    }

    #[test]
    fn what_is_no_evidence_says_what_was_seen() {
        assert_eq!(refused(b""), "it is empty");
        assert!(refused(b"\x7fELF\x02\x01\x01\0 and more").contains("beginning with 7f454c4602010100"));
        assert!(refused(b"{\"a\": 1}").contains("its members (a)"));
        assert!(refused(b"{").contains("begins like JSON and is none"));
        assert!(refused(b"{\"primary_evidence\": {}}").contains("whole attestation request"));
        assert!(refused(&[3, 0, 0, 0]).contains("report has 4 bytes, expected 1184"));
        assert!(refused(b"HCLA").contains("HCL report has 4 bytes"));
    }

    #[test]
    fn evidence_is_told_by_its_form() {
        let tee = |value: Value, tee, simulated| {
            detect(value.to_string().as_bytes(), tee, simulated).map(|input| input.tee)
        };
        let snp = || json!({"attestation_report": {}});
        assert_eq!(tee(snp(), None, false).unwrap(), Tee::Snp);
        assert_eq!(tee(snp(), None, true).unwrap(), Tee::SimSnp);
        assert_eq!(tee(snp(), Some(Tee::SimSnp), false).unwrap(), Tee::SimSnp);
        assert!(tee(snp(), Some(Tee::Tdx), false).is_err());
        assert_eq!(tee(json!({"quote": "x"}), None, false).unwrap(), Tee::Tdx);
        assert_eq!(tee(json!({"quote": {}, "report": [], "vcek": ""}), None, true).unwrap(), Tee::AzSnpVtpm);
        assert_eq!(tee(json!({"svn": "1", "report_data": ""}), None, false).unwrap(), Tee::Sample);
        let mut quote = vec![4, 0, 2, 0, 0x81, 0, 0, 0];
        quote.resize(700, 0);
        assert_eq!(detect(&quote, None, false).unwrap().tee, Tee::Tdx);
    }
}
