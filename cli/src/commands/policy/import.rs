//! `kata-cc policy import`: what other projects' files say, in our terms.

use std::path::PathBuf;

use anyhow::Context as _;
use kata_cc_policy::contrast::{self, Imported};
use serde_json::json;

use super::super::read_input;
use crate::output::{Output, note, printable};

#[derive(Debug, clap::Args)]
pub(crate) struct Import {
    /// Whose form it is.
    #[arg(long, value_enum)]
    from: Form,
    /// The file; `-` is standard input.
    file: PathBuf,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Form {
    /// A manifest.json of Contrast.
    Contrast,
}

/// Prints reference values as a file of a policy bundle's `reference-values/`; what else the file says goes to standard error.
pub(super) fn run(arguments: &Import, output: &Output) -> anyhow::Result<()> {
    let Form::Contrast = arguments.from;
    let text = read_input(Some(&arguments.file), contrast::MAX_MANIFEST as u64)?;
    let imported = contrast::import(&text).with_context(|| arguments.file.display().to_string())?;
    let Imported { values, settings, notes } = &imported;
    if output.json {
        return output.document(&json!({"values": values, "settings": settings, "notes": notes}));
    }
    if !settings.is_empty() {
        note("kata-cc: for the attestation service's configuration:\n[attestation.snp]");
        settings.iter().for_each(|line| note(&printable(line)));
    }
    notes.iter().for_each(|line| note(&format!("kata-cc: {}", printable(line))));
    output.document(&json!({"values": values}))
}
