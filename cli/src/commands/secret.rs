//! `kata-cc secret`: what a key broker keeps and gives to guests that proved what they are.
//!
//! Contents go in and never come back out to an operator: the key broker hands a secret to an attested guest only, so
//! `get` and `list` tell path, size and time.

use std::path::PathBuf;

use anyhow::Context;
use kata_cc_kbs_protocol::ResourcePath;
use serde_json::json;

use super::broker::BrokerArguments;
use super::{block_on, read_input, sealed};
use crate::output::{Output, note, printable, table};

/// Most bytes of a secret; the key broker's limit of a body.
const MAX_SECRET: u64 = kata_cc_kbs_protocol::MAX_BODY as u64;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Store a secret, replacing an older one.
    Put {
        /// repository/type/tag, or kbs:///repository/type/tag.
        path: String,
        /// File with the secret; standard input without it.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        broker: BrokerArguments,
    },
    /// Tell size and time of a secret; the contents go to attested guests only.
    Get {
        /// repository/type/tag, or kbs:///repository/type/tag.
        path: String,
        #[command(flatten)]
        broker: BrokerArguments,
    },
    /// List secrets.
    List {
        #[command(flatten)]
        broker: BrokerArguments,
    },
    /// Remove a secret.
    Rm {
        /// repository/type/tag, or kbs:///repository/type/tag.
        path: String,
        #[command(flatten)]
        broker: BrokerArguments,
    },
    /// Make a sealed secret, which may lie in a Kubernetes secret and opens in a guest alone.
    #[command(subcommand)]
    Seal(sealed::Seal),
    /// Open a sealed secret here, with keys that are at hand.
    Unseal(sealed::Unseal),
    /// Make a key pair that signs sealed secrets.
    Keygen(sealed::Keygen),
}

/// A path in either form.
pub(super) fn resource_path(text: &str) -> anyhow::Result<ResourcePath> {
    let named = || format!("{:?} names no secret", text.chars().take(300).collect::<String>());
    if text.contains("://") {
        let uri: kata_cc_kbs_protocol::ResourceUri = text.parse().with_context(named)?;
        return Ok(uri.path);
    }
    text.parse().with_context(named)
}

/// Run it.
pub(crate) fn run(command: Command, output: &Output) -> anyhow::Result<u8> {
    match command {
        Command::Seal(command) => return sealed::seal(&command, output),
        Command::Unseal(arguments) => return sealed::unseal(&arguments, output),
        Command::Keygen(arguments) => return sealed::keygen(&arguments, output),
        Command::Put { path, file, broker } => {
            let path = resource_path(&path)?;
            let client = broker.client()?;
            let secret = read_input(file.as_deref(), MAX_SECRET)?;
            anyhow::ensure!(!secret.is_empty(), "the secret is empty: give --file FILE, or pipe it in");
            block_on(async {
                client.put_resource(&path, &secret).await.context("the secret was not stored")
            })?;
            if output.json {
                output.document(&json!({"stored": path.uri(), "size": secret.len()}))?;
            } else {
                output.text(&format!("stored {} ({} bytes)\n", path.uri(), secret.len()))?;
            }
        }
        Command::Get { path, broker } => {
            let path = resource_path(&path)?;
            let client = broker.client()?;
            let entry = block_on(async { Ok(client.resource_metadata(&path).await?) })?;
            if output.json {
                output.document(&entry)?;
            } else {
                let modified = printable(&entry.modified);
                output.text(&format!("{}  {} bytes  {modified}\n", path.uri(), entry.size))?;
                note("kata-cc: the key broker gives the contents to attested guests only");
            }
        }
        Command::List { broker } => {
            let client = broker.client()?;
            let entries = block_on(async { Ok(client.list_resources().await?) })?;
            if output.json {
                output.document(&entries)?;
            } else {
                let rows: Vec<_> = entries
                    .iter()
                    .map(|entry| {
                        vec![printable(&entry.path), entry.size.to_string(), printable(&entry.modified)]
                    })
                    .collect();
                output.text(&table(&["PATH", "BYTES", "MODIFIED"], &rows))?;
            }
        }
        Command::Rm { path, broker } => {
            let path = resource_path(&path)?;
            let client = broker.client()?;
            block_on(async { client.delete_resource(&path).await.context("the secret was not removed") })?;
            if output.json {
                output.document(&json!({"removed": path.uri()}))?;
            } else {
                output.text(&format!("removed {}\n", path.uri()))?;
            }
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_may_be_written_either_way() {
        for text in ["a/b/c", "kbs:///a/b/c", "kbs://kbs.example:8080/a/b/c"] {
            assert_eq!(resource_path(text).unwrap().uri(), "kbs:///a/b/c", "{text}");
        }
        for text in ["", "a/b", "a/b/c/d", "../b/c", "kbs:///a/b", "http://x/a/b/c"] {
            assert!(resource_path(text).is_err(), "{text}");
        }
    }
}
