//! `kata-cc endorsements`: what certificates, revocation lists and collateral there are, and a set of them for a site without a network.
//!
//! `export` writes a folder in the layout of `docs/endorsements.md`, or the same as an OCI artifact, for `--endorsements` of
//! `kata-cc evidence verify` and for `offline_dir` of the services. Nothing here is trust: whoever verifies with the documents checks
//! them against the makers' roots. Exit codes: 0 done; 1 what evidence needs is nowhere to be had; 2 something cannot be read or is
//! damaged.

mod describe;
mod sources;

use std::path::PathBuf;

use anyhow::{bail, ensure};
use kata_cc_endorsements::{Bundle, EndorsementsConfig};
use serde_json::json;

use super::evidence::time;
use super::evidence::unreadable;
use crate::output::{Output, Tone, note, printable};
use describe::{Described, text};
use sources::{Read, Wanted};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Tell what is in files, folders and OCI layouts: of what they are, and from when to when they hold.
    Show(ShowArguments),
    /// Write a folder or an OCI layout of what there is, for a site without a network.
    Export(ExportArguments),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ShowArguments {
    /// Certificates, revocation lists, collateral; a folder or OCI layout of them; evidence, whose certificates are shown.
    #[arg(required = true, value_name = "FILE|DIR")]
    sources: Vec<PathBuf>,
    /// Time to judge at: RFC 3339, a date, or seconds since 1970; now without it.
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    at: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ExportArguments {
    /// Certificates, revocation lists, collateral; a folder or OCI layout of them; evidence, with the certificates in it.
    #[arg(value_name = "SOURCE", required_unless_present = "config")]
    sources: Vec<PathBuf>,
    /// Folder to write, made when it is absent.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Write an OCI image layout, for registries.
    #[arg(long)]
    oci: bool,
    /// Configuration with `[endorsements]`, or its members alone. Of evidence that is named, what it lacks comes from there: folders,
    /// cache, AMD's KDS, Intel's PCS or a PCCS. Without evidence all of its cache and offline folder is taken.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Run it; gives the exit code.
pub(crate) fn run(command: &Command, output: &Output) -> anyhow::Result<u8> {
    match command {
        Command::Show(arguments) => show(arguments, output),
        Command::Export(arguments) => export(arguments, output),
    }
}

fn show(arguments: &ShowArguments, output: &Output) -> anyhow::Result<u8> {
    let read = match sources::read(&arguments.sources) {
        Ok(read) => read,
        Err(error) => return Ok(unreadable(&error, output)),
    };
    let documents = describe::all(&read.bundle, arguments.at.unwrap_or_else(time::now));
    if output.json {
        output.document(&json!({"documents": documents, "skipped": read.bundle.skipped}))?;
    } else {
        output.text(&text(&documents, output))?;
        tell_skipped(&read.bundle);
    }
    Ok(0)
}

fn tell_skipped(bundle: &Bundle) {
    for name in bundle.skipped.iter().take(8) {
        note(&format!(
            "kata-cc: {} is left out: it is no endorsement, or lacks its other part",
            printable(name)
        ));
    }
    if let Some(more) = bundle.skipped.len().checked_sub(8).filter(|more| *more > 0) {
        note(&format!("kata-cc: {more} more files are left out"));
    }
}

fn export(arguments: &ExportArguments, output: &Output) -> anyhow::Result<u8> {
    let read = collect(arguments);
    let (read, config) = match read {
        Ok(read) => read,
        Err(error) => return Ok(unreadable(&error, output)),
    };
    let Read { mut bundle, wanted } = read;
    let problems = fetch(&mut bundle, &wanted, config.as_ref())?;
    ensure!(!bundle.is_empty(), "there is nothing to export: no source holds an endorsement");
    let digest = if arguments.oci {
        Some(bundle.write_oci(&arguments.out)?)
    } else {
        ensure!(
            !arguments.out.join("oci-layout").exists(),
            "{} holds an OCI layout, which would hide the folder: name another folder",
            arguments.out.display()
        );
        bundle.write_folder(&arguments.out)?;
        None
    };
    let documents = describe::all(&bundle, time::now());
    if output.json {
        output.document(&json!({
            "out": arguments.out.display().to_string(), "form": if arguments.oci { "oci" } else { "folder" },
            "digest": digest, "documents": documents, "skipped": bundle.skipped, "problems": problems,
        }))?;
    } else {
        output.text(&done(arguments, &documents, digest.as_deref(), output))?;
        tell_skipped(&bundle);
        for problem in &problems {
            note(&format!("kata-cc: not had: {}", printable(problem)));
        }
    }
    Ok(0)
}

fn done(
    arguments: &ExportArguments,
    documents: &[Described],
    digest: Option<&str>,
    output: &Output,
) -> String {
    let form = if arguments.oci { "an OCI layout" } else { "a folder" };
    let head = format!("wrote {form} of {} documents to {}", documents.len(), arguments.out.display());
    let digest = digest.map(|digest| format!("artifact {digest}\n")).unwrap_or_default();
    format!("{}\n{digest}\n{}", output.paint(Tone::Good, &printable(&head)), text(documents, output))
}

/// What the sources hold, and where more is to come from.
fn collect(arguments: &ExportArguments) -> anyhow::Result<(Read, Option<EndorsementsConfig>)> {
    let mut read = sources::read(&arguments.sources)?;
    let Some(file) = &arguments.config else { return Ok((read, None)) };
    let config = EndorsementsConfig::read_section(file)?;
    if read.wanted.is_empty() {
        let folders: Vec<PathBuf> = [&config.cache_dir, &config.offline_dir]
            .into_iter()
            .flatten()
            .filter(|folder| folder.exists())
            .cloned()
            .collect();
        for (item, document) in sources::read(&folders)?.bundle.iter() {
            read.bundle.add(item.clone(), document.clone());
        }
    }
    Ok((read, Some(config)))
}

/// Gets what evidence lacks; gives what is missing but not needed, such as a revocation list.
fn fetch(
    bundle: &mut Bundle,
    wanted: &[Wanted],
    config: Option<&EndorsementsConfig>,
) -> anyhow::Result<Vec<String>> {
    if let Some(config) = config.filter(|_| !wanted.is_empty()) {
        let endorser = config.build()?;
        return super::block_on(async {
            let mut problems = Vec::new();
            for one in wanted {
                problems.extend(one.fetch(&endorser, bundle).await?);
            }
            Ok(problems)
        });
    }
    for one in wanted {
        if let Some(lack) = one.lacks(bundle) {
            bail!(
                "{lack}: name a file or folder that has it, or a configuration of [endorsements] by --config FILE"
            );
        }
    }
    Ok(Vec::new())
}
