//! `kata-cc audit verify`: whether an audit log of a key broker or attestation service is whole: an export, offline, or with `--url` what
//! the service gives page by page.
//!
//! Exit codes: 0 it is, 1 it was changed (the message names the first bad record), 2 it cannot be read.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use kata_cc_kbs_client::AuditedService;
use kata_cc_store::audit::{Known, PublicKey, VerifyError, Whole, verify_export};
use serde_json::json;

use super::broker::BrokerArguments;
use super::read_text;
use crate::output::{Output, note};

mod pages;

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
        /// Read the log of this service, https://HOST:PORT, in place of a file.
        #[arg(long, value_name = "URL", conflicts_with = "file")]
        url: Option<String>,
        /// What listens there.
        #[arg(long, value_enum, default_value = "key-broker", requires = "url")]
        service: Service,
        /// PEM of the certificate (or its root) that the service is known by; nothing else is trusted.
        #[arg(long, env = "KATA_CC_KBS_CERT", value_name = "FILE")]
        kbs_cert: Option<PathBuf>,
        /// Private key (PKCS#8 PEM) that the service knows its auditor by.
        #[arg(long, env = "KATA_CC_KBS_ADMIN_KEY", value_name = "FILE")]
        admin_key: Option<PathBuf>,
        /// Role that the auditor claims by that key.
        #[arg(long, default_value = "admin", value_name = "ROLE")]
        role: String,
        /// File with a bearer token, in place of a key.
        #[arg(long, value_name = "FILE", requires = "url")]
        token: Option<PathBuf>,
        /// The key broker's public key (`kbs audit key`), PEM or hex. Without it the file is only compared with itself.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// A record noted at an earlier check, which the log must still have.
        #[arg(long, value_name = "NUMBER:HASH")]
        after: Option<Known>,
    },
}

/// Whose audit log it is.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Service {
    /// A key broker.
    KeyBroker,
    /// An attestation service that stands by itself; its auditor is its administrator.
    AttestationService,
}

impl From<Service> for AuditedService {
    fn from(service: Service) -> Self {
        match service {
            Service::KeyBroker => Self::KeyBroker,
            Service::AttestationService => Self::AttestationService,
        }
    }
}

/// Runs a command.
pub(crate) fn run(command: Command, output: &Output) -> anyhow::Result<u8> {
    let Command::Verify { file, url, service, kbs_cert, admin_key, role, token, key, after } = command;
    let unreadable = |error: anyhow::Error| {
        output.error(&error);
        Ok(UNREADABLE)
    };
    let key = key.map(|path| Ok(PublicKey::parse(&read_text(&path)?)?)).transpose();
    let key: Option<PublicKey> = match key {
        Ok(key) => key,
        Err(error) => return unreadable(error),
    };
    if let Some(url) = url {
        let broker = BrokerArguments::at(url, kbs_cert, admin_key, &role);
        return match pages::verify(&broker, service.into(), token.as_deref(), key, after) {
            Ok(checked) => told(checked, key.is_some(), output),
            Err(error) => unreadable(error),
        };
    }
    let reader: Box<dyn BufRead + Send> = match file.filter(|file| file.as_os_str() != "-") {
        None => Box::new(BufReader::new(std::io::stdin())),
        Some(path) => match File::open(&path) {
            Ok(file) => Box::new(BufReader::new(file)),
            Err(error) => {
                return unreadable(
                    anyhow::Error::new(error).context(format!("cannot read {}", path.display())),
                );
            }
        },
    };
    told(verify_export(reader, key.as_ref(), after.as_ref()), key.is_some(), output)
}

/// Says what came of it; gives the exit code.
fn told(checked: Result<Whole, VerifyError>, key_given: bool, output: &Output) -> anyhow::Result<u8> {
    match checked {
        Ok(whole) => {
            if !key_given {
                note("no --key: the log fits the key that it names itself, whoever that belongs to");
            }
            if output.json {
                output.document(&json!({
                    "whole": true, "first": whole.first, "records": whole.records, "head": whole.head,
                    "public_key": whole.public_key, "signed": whole.signed, "key_given": key_given,
                }))?;
            } else {
                if whole.first > 1 {
                    output.text(&format!(
                        "records up to {} were archived: the log begins after them\n",
                        whole.first - 1
                    ))?;
                }
                output.text(&format!(
                    "{} records, whole, signed {} by {}\nnote {}:{} for the next check (--after)\n",
                    (whole.records + 1).saturating_sub(whole.first),
                    whole.signed,
                    whole.public_key,
                    whole.records,
                    whole.head
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
        Err(error @ VerifyError::Unreadable { .. }) => {
            output.error(&error.into());
            Ok(UNREADABLE)
        }
    }
}
