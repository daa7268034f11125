//! `kata-cc audit verify`: whether an exported audit log of a key broker is whole, offline.
//!
//! Exit codes: 0 it is, 1 it was changed (the message names the first bad record), 2 it cannot be read.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use kata_cc_store::audit::{Known, PublicKey, VerifyError, verify_export};
use serde_json::json;

use super::read_text;
use crate::output::{Output, note};

/// Exit code for a log that was changed.
const TAMPERED: u8 = 1;
/// Exit code for what cannot be read.
const UNREADABLE: u8 = 2;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Check that no record of an exported log (`kbs audit export`) was changed, removed, inserted or moved.
    Verify {
        /// The export, JSON Lines; standard input without it.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// The key broker's public key (`kbs audit key`), PEM or hex. Without it the file is only compared with itself.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// A record noted at an earlier check, which the log must still have.
        #[arg(long, value_name = "NUMBER:HASH")]
        after: Option<Known>,
    },
}

/// Runs a command.
pub(crate) fn run(command: Command, output: &Output) -> anyhow::Result<u8> {
    let Command::Verify { file, key, after } = command;
    let unreadable = |error: anyhow::Error| {
        output.error(&error);
        Ok(UNREADABLE)
    };
    let key = key.map(|path| Ok(PublicKey::parse(&read_text(&path)?)?)).transpose();
    let key: Option<PublicKey> = match key {
        Ok(key) => key,
        Err(error) => return unreadable(error),
    };
    let reader: Box<dyn BufRead> = match file.filter(|file| file.as_os_str() != "-") {
        None => Box::new(std::io::stdin().lock()),
        Some(path) => match File::open(&path) {
            Ok(file) => Box::new(BufReader::new(file)),
            Err(error) => {
                return unreadable(
                    anyhow::Error::new(error).context(format!("cannot read {}", path.display())),
                );
            }
        },
    };
    match verify_export(reader, key.as_ref(), after.as_ref()) {
        Ok(whole) => {
            if key.is_none() {
                note("no --key: the log fits the key that it names itself, whoever that belongs to");
            }
            if output.json {
                output.document(&json!({
                    "whole": true, "records": whole.records, "head": whole.head,
                    "public_key": whole.public_key, "signed": whole.signed, "key_given": key.is_some(),
                }))?;
            } else {
                output.text(&format!(
                    "{} records, whole, signed {} by {}\nnote {}:{} for the next check (--after)\n",
                    whole.records, whole.signed, whole.public_key, whole.records, whole.head
                ))?;
            }
            Ok(0)
        }
        Err(VerifyError::Tampered(tampered)) => {
            if output.json {
                output.document(&json!({
                    "whole": false, "first_bad": tampered.first_bad(), "why": tampered.to_string(),
                }))?;
            }
            let first = tampered.first_bad();
            output.error(&anyhow::anyhow!("the audit log was changed, first bad record {first}: {tampered}"));
            Ok(TAMPERED)
        }
        Err(error @ VerifyError::Unreadable { .. }) => unreadable(error.into()),
    }
}
