//! `kata-cc evidence`: print and verify attestation evidence from a file, without any network.
//!
//! Exit codes: 0 shown or verified; 1 refused, with the reasons on standard output; 2 the file, or one given beside it, cannot be
//! read. What is believed and how is `kata-cc-verifier`'s, the same code as in key broker and attestation service.

mod certificates;
pub(super) mod input;
pub(super) mod judge;
pub(super) mod page;
pub(super) mod references;
mod show_azure;
mod show_snp;
mod show_tdx;
pub(super) mod time;
pub(super) mod verify;

use std::path::PathBuf;

use input::{Form, Input, TeeName};
use judge::Judge;
use kata_cc_azure_vtpm::{Hardware, HardwareEvidence, HclReport};
use kata_cc_kbs_protocol::Tee;
use page::{Page, Section};
use references::Requirement;
use serde_json::Value;

use crate::output::{Output, Tone};

/// Exit code for what cannot be read.
pub(super) const UNREADABLE: u8 = 2;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Print every field of evidence. Nothing is verified.
    Show(ShowArguments),
    /// Verify evidence offline, and say why it is refused.
    Verify(VerifyArguments),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ShowArguments {
    /// SNP report, TDX quote, HCL report, or Trustee's evidence as JSON; `-` is standard input.
    file: PathBuf,
    /// TEE that it is of; seen from the file without it.
    #[arg(long, value_enum)]
    tee: Option<TeeName>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArguments {
    /// SNP report, TDX quote, HCL report, or Trustee's evidence as JSON; `-` is standard input.
    file: PathBuf,
    #[command(flatten)]
    given: Given,
    /// What a claim has to be: CLAIM=VALUE, CLAIM>=NUMBER or CLAIM<=NUMBER; may be repeated.
    #[arg(long, value_name = "CLAIM=VALUE", value_parser = Requirement::parse)]
    require: Vec<Requirement>,
}

/// What is given beside evidence that is to be judged.
#[derive(Debug, Default, clap::Args)]
pub(in crate::commands) struct Given {
    /// TEE that it is of; seen from the file without it.
    #[arg(long, value_enum)]
    tee: Option<TeeName>,
    /// Certificates (PEM, DER, or a certificate table), revocation lists or collateral; a file, a folder or an OCI layout of them
    /// (`kata-cc endorsements export`), may be repeated.
    #[arg(long, value_name = "FILE|DIR")]
    endorsements: Vec<PathBuf>,
    /// Time to judge at: RFC 3339, a date, or seconds since 1970; now without it.
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub(in crate::commands) at: Option<u64>,
    /// What the report data has to be, in hex; shorter than the field it is padded with zeros.
    #[arg(long, value_name = "HEX", value_parser = hex_bytes)]
    report_data: Option<Hex>,
    /// Init-data that the guest has to be started with: the document, or its digest in hex.
    #[arg(long, value_name = "FILE|HEX")]
    init_data: Option<String>,
    /// Reference values: RVPS message, output of `kata-cc measure --json`, or a JSON object from names to values.
    #[arg(long, value_name = "FILE")]
    reference_values: Option<PathBuf>,
    /// Root of a simulated platform (its ark.pem), whose evidence proves nothing; for tests, may be repeated.
    #[arg(long, value_name = "FILE")]
    simulated_root: Vec<PathBuf>,
}

impl Given {
    /// The options that were given, but for the time, which is not of evidence alone.
    pub(in crate::commands) fn options(&self) -> Vec<&'static str> {
        let all = [
            ("--tee", self.tee.is_some()),
            ("--endorsements", !self.endorsements.is_empty()),
            ("--report-data", self.report_data.is_some()),
            ("--init-data", self.init_data.is_some()),
            ("--reference-values", self.reference_values.is_some()),
            ("--simulated-root", !self.simulated_root.is_empty()),
        ];
        all.into_iter().filter_map(|(name, given)| given.then_some(name)).collect()
    }
}

/// Bytes from hex, as one argument.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hex(Vec<u8>);

fn hex_bytes(text: &str) -> Result<Hex, String> {
    let bytes = hex::decode(text).ok().filter(|bytes| (1..=64).contains(&bytes.len()));
    bytes.map(Hex).ok_or_else(|| {
        format!("expected 1 to 64 bytes in hex, seen {:?}", text.chars().take(40).collect::<String>())
    })
}

/// Run it.
pub(crate) fn run(command: &Command, output: &Output) -> anyhow::Result<u8> {
    match command {
        Command::Show(arguments) => show(arguments, output),
        Command::Verify(arguments) => verify(arguments, output),
    }
}

/// Tell why something cannot be read; the exit code says that it is not the evidence's fault.
pub(super) fn unreadable(error: &anyhow::Error, output: &Output) -> u8 {
    output.error(error);
    UNREADABLE
}

fn show(arguments: &ShowArguments, output: &Output) -> anyhow::Result<u8> {
    let shown = input::read(&arguments.file, arguments.tee, false)
        .and_then(|input| page_of(&input).map(|page| (input, page)));
    let (input, page) = match shown {
        Ok(shown) => shown,
        Err(error) => return Ok(unreadable(&error, output)),
    };
    if output.json {
        let mut json = page.json();
        json["evidence"] = input.kind().into();
        json["tee"] = input.tee.name().into();
        json["verified"] = false.into();
        output.document(&json)?;
    } else {
        let head = output.paint(Tone::Doubtful, "nothing of this is verified: see kata-cc evidence verify");
        output.text(&format!("{}\n{head}\n\n{}", input.kind(), page.text(output)))?;
    }
    Ok(0)
}

fn page_of(input: &Input) -> anyhow::Result<Page> {
    let mut sections = Vec::new();
    match &input.form {
        Form::SnpReport(report, table) => {
            sections.extend(show_snp::report(report));
            let blobs = table.entries.iter().map(|(kind, blob)| (format!("{kind:?}"), blob.clone()));
            sections.extend(show_snp::certificates(&blobs.collect::<Vec<_>>()));
        }
        Form::TdxQuote(quote) => sections.extend(show_tdx::quote(quote)?),
        Form::Hcl(hcl) => sections.extend(hcl_sections(hcl)?),
        Form::Json(value) => sections.extend(json_sections(input.tee, value)?),
    }
    Ok(Page(sections))
}

fn hcl_sections(hcl: &HclReport) -> anyhow::Result<Vec<Section>> {
    let mut sections = show_azure::hcl(hcl)?;
    if hcl.hardware() == Hardware::Snp {
        sections.extend(show_snp::report(&hcl.snp_report()?.1));
    }
    Ok(sections)
}

fn json_sections(tee: Tee, value: &Value) -> anyhow::Result<Vec<Section>> {
    Ok(match tee {
        Tee::Snp | Tee::SimSnp => {
            let (report, evidence) = input::snp_parts(value)?;
            let chain = evidence.cert_chain.unwrap_or_default();
            let blobs = chain.into_iter().map(|entry| (format!("{:?}", entry.cert_type), entry.data));
            let mut sections = show_snp::report(&report);
            sections.extend(show_snp::certificates(&blobs.collect::<Vec<_>>()));
            sections
        }
        Tee::Tdx | Tee::SimTdx => show_tdx::evidence(value)?,
        Tee::AzSnpVtpm | Tee::AzTdxVtpm => {
            let hardware = if tee == Tee::AzSnpVtpm { Hardware::Snp } else { Hardware::Tdx };
            let (evidence, hcl) = show_azure::decode(hardware, value)?;
            let mut sections = show_azure::quote(&evidence.quote)?;
            sections.extend(hcl_sections(&hcl)?);
            match &evidence.hardware {
                HardwareEvidence::Vcek(vcek) => {
                    sections.extend(show_snp::certificates(&[("VCEK".to_owned(), vcek.clone())]));
                }
                HardwareEvidence::TdQuote(quote) => sections.extend(show_tdx::quote(quote)?),
            }
            sections
        }
        _ => {
            let mut section = Section::new("sample", "Sample evidence: anybody can make it up");
            for name in ["svn", "report_data"] {
                section.row(name, value.get(name).cloned().unwrap_or_default());
            }
            vec![section]
        }
    })
}

fn verify(arguments: &VerifyArguments, output: &Output) -> anyhow::Result<u8> {
    let mut answer = match Judge::read(&arguments.file, &arguments.given) {
        Ok(judge) => judge.judge(&arguments.given, &arguments.require),
        Err(error) => return Ok(unreadable(&error, output)),
    };
    let code = answer.conclude();
    if output.json {
        output.document(&answer)?;
    } else {
        output.text(&answer.text(output))?;
    }
    Ok(code)
}
