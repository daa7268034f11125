//! `--explain` and `measure diff`: what a digest is made of, and what two launches differ in.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use kata_cc_measurement::explain::{Difference, Explanation, StepKind, Tee, diff};
use kata_cc_measurement::snp::SnpLaunch;
use kata_cc_measurement::tdx::{PassOrder, TdLaunch};

use crate::commands::read_input;
use crate::output::Output;

/// Most measured bytes whose contents go into an explanation; with OVMF each page is named by its hash.
const CONTENTS_MAX: u64 = 512 << 10;
/// Largest document that is compared.
const DOCUMENT_MAX: u64 = 64 << 20;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Compare two launches, to the byte: files made by `kata-cc --json measure --explain`.
    Diff {
        /// First explanation; - for standard input.
        a: PathBuf,
        /// Second explanation.
        b: PathBuf,
    },
}

/// Explains an SNP launch.
pub(super) fn snp(launch: &SnpLaunch<'_>) -> Explanation {
    let bytes: usize = launch.sections().iter().map(|section| section.bytes.len()).sum();
    launch.explain(bytes as u64 <= CONTENTS_MAX)
}

/// Explains a TDX launch.
pub(super) fn tdx(launch: &TdLaunch<'_>, order: PassOrder) -> Explanation {
    let measured = launch.regions().iter().filter(|region| region.measured);
    launch.explain(order, measured.map(|region| region.len).sum::<u64>() <= CONTENTS_MAX)
}

/// One line per page.
pub(super) fn table(explanation: &Explanation) -> String {
    let mut text = String::from(
        "section                          address          kind             SHA-384 of the page  digest after it\n",
    );
    for step in &explanation.steps {
        let hash = step.content_sha384.map_or_else(|| "not measured".to_owned(), |hash| short(&hash));
        let kind = kind(step.kind);
        // writing into a string cannot fail
        let _ = writeln!(
            text,
            "{:<32} {:<16} {kind:<16} {hash:<20} {}",
            step.section,
            format!("{:#x}", step.gpa),
            short(&step.digest_after)
        );
    }
    let _ = writeln!(text, "{} pages", explanation.steps.len());
    text
}

fn short(digest: &[u8; 48]) -> String {
    hex::encode(&digest[..8])
}

const fn kind(kind: StepKind) -> &'static str {
    match kind {
        StepKind::Normal => "normal",
        StepKind::Vmsa => "vmsa",
        StepKind::Zero => "zero",
        StepKind::Unmeasured => "unmeasured",
        StepKind::Secrets => "secrets",
        StepKind::Cpuid => "cpuid",
        StepKind::PageAdd => "page-add",
        StepKind::Extend => "extend",
        StepKind::PageAddExtend => "page-add-extend",
    }
}

/// Runs `measure diff`. Exit code 1 when they differ.
pub(super) fn run(command: &Command, output: &Output) -> anyhow::Result<u8> {
    let Command::Diff { a, b } = command;
    let (a, b) = (read(a)?, read(b)?);
    let differences = diff(&a, &b);
    if output.json {
        output.document(&serde_json::json!({
            "same": a.digest == b.digest,
            "a": hex::encode(a.digest),
            "b": hex::encode(b.digest),
            "differences": differences,
        }))?;
    } else {
        output.text(&format!("a {}\nb {}\n", hex::encode(a.digest), hex::encode(b.digest)))?;
        for difference in &differences {
            output.text(&(describe(difference) + "\n"))?;
        }
        if differences.is_empty() {
            output.text("no difference\n")?;
        }
    }
    Ok(u8::from(a.digest != b.digest))
}

/// Reads an explanation and computes its digest again: one that does not hold is refused.
fn read(file: &Path) -> anyhow::Result<Explanation> {
    let name = || format!("{} is not an explanation", file.display());
    let bytes = read_input(Some(file), DOCUMENT_MAX)?;
    let document: serde_json::Value = serde_json::from_slice(&bytes).with_context(name)?;
    // the whole answer of `measure --explain`, or the explanation alone
    let explanation = document.get("explanation").unwrap_or(&document);
    let explanation: Explanation = serde_json::from_value(explanation.clone()).with_context(name)?;
    let without_contents =
        explanation.tee == Tee::Tdx && explanation.steps.iter().all(|step| step.contents.is_none());
    if !without_contents {
        explanation.check().with_context(|| format!("{} does not hold together", file.display()))?;
    }
    Ok(explanation)
}

fn describe(difference: &Difference) -> String {
    match difference {
        Difference::Tee { a, b } => format!("different TEEs: {a:?} and {b:?}"),
        Difference::Seed => "they start from different digests".to_owned(),
        Difference::OnlyIn { side, section, gpa } => format!("only in {side}: {section} at {gpa:#x}"),
        Difference::Kind { section, gpa, a, b } => {
            format!("{section} at {gpa:#x}: {} in a, {} in b", kind(*a), kind(*b))
        }
        Difference::Contents { section, gpa, first, bytes } => {
            let Some((first, bytes)) = first.as_ref().zip(*bytes) else {
                return format!("{section} at {gpa:#x}: other contents");
            };
            let register = first.register.map(|name| format!(" ({name})")).unwrap_or_default();
            let (offset, a, b) = (first.offset, first.a, first.b);
            format!(
                "{section} at {gpa:#x}: {bytes} bytes differ, the first at {offset:#x}{register}: {a:#04x} in a, {b:#04x} in b"
            )
        }
        Difference::Order { step } => format!("the same pages in another order from step {step} on"),
    }
}
