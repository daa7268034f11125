//! `kata-cc image keyprovider`: a key provider of ocicrypt (`cmd`), so that skopeo, buildah and others encrypt for our guests.
//!
//! Source: containers/ocicrypt `docs/keyprovider.md`. One request on standard input, one answer on standard output. A layer key is wrapped
//! into CoCo's packet with a key of a file, under the name that guests ask the key broker for. Keys of the key broker are not
//! fetched: it gives them to attested guests only. `--register` puts the key there instead, as it wraps.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use async_trait::async_trait;
use kata_cc_guest_api::keyprovider::{MAX_INPUT, asks_to_wrap, parameters_of, unwrap, wrap};
use kata_cc_guest_api::sealed::ResourceSource;
use kata_cc_kbs_protocol::ResourcePath;
use zeroize::Zeroizing;

use super::key_file;
use crate::commands::broker::BrokerArguments;
use crate::commands::{block_on, read_input, secret};
use crate::output::Output;

#[derive(Debug, clap::Args)]
pub(crate) struct Keyprovider {
    /// A key and the file with its 32 bytes: kbs:///repository/type/tag=FILE. More than once for several. Without it, the file is
    /// the one that the caller names: skopeo's --encryption-key provider:attestation-agent:keyid=URI::keypath=FILE.
    #[arg(long, value_name = "URI=FILE")]
    key: Vec<String>,
    /// Put the key into the key broker, too, when a layer key is wrapped with it.
    #[arg(long)]
    register: bool,
    #[command(flatten)]
    broker: BrokerArguments,
}

/// Keys of files, by their path in the key broker.
#[derive(Default)]
struct Files(BTreeMap<String, Zeroizing<Vec<u8>>>);

impl Files {
    fn add(&mut self, name: &str, file: &Path) -> anyhow::Result<()> {
        let path = secret::resource_path(name)?;
        self.0.insert(path.to_string(), key_file::read(file)?);
        Ok(())
    }
}

#[async_trait]
impl ResourceSource for Files {
    async fn resource(&self, path: &ResourcePath) -> Result<Zeroizing<Vec<u8>>, String> {
        self.0.get(&path.to_string()).cloned().ok_or_else(|| {
            "no file is named for it: give --key URI=FILE, or keypath=FILE among the parameters".to_owned()
        })
    }
}

/// Answers the request on standard input.
pub(super) fn run(arguments: &Keyprovider, output: &Output) -> anyhow::Result<()> {
    let request = read_input(None, MAX_INPUT as u64)?;
    let mut files = Files::default();
    for key in &arguments.key {
        let (name, file) = key
            .split_once('=')
            .with_context(|| format!("--key must be kbs:///repository/type/tag=FILE, seen {key:?}"))?;
        files.add(name, Path::new(file))?;
    }
    let answer = if asks_to_wrap(&request)? {
        let parameters = parameters_of(&request)?;
        if let Some(file) = parameters.key_path.map(PathBuf::from) {
            files.add(&parameters.key_id, &file)?;
        }
        let answer = block_on(async { Ok(wrap(&request, &files).await?) })?;
        if arguments.register {
            register(&files, &parameters.key_id, &arguments.broker)?;
        }
        answer
    } else {
        ensure!(!arguments.register, "--register is for wrapping, and this request unwraps");
        block_on(async { Ok(unwrap(&request, &files).await?) })?
    };
    output.text(std::str::from_utf8(&answer).context("the answer is no text")?)
}

/// Puts the key of that name into the key broker.
fn register(files: &Files, name: &str, broker: &BrokerArguments) -> anyhow::Result<()> {
    let path = secret::resource_path(name)?;
    let key = files.0.get(&path.to_string()).context("the key is not at hand")?;
    let client = broker.client()?;
    block_on(async {
        client.put_resource(&path, key).await.context("the key was not put into the key broker")
    })
}
