//! `kbs backup`, `restore`, `rekey`, `audit`: what an operator does with the store, by the configuration of the service.
//!
//! Exit codes of `audit verify`: 0 the log is whole, 1 it was changed, 2 it cannot be read. Of the others: 0 done, 1 failed.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use kata_cc_store::StoreError;
use kata_cc_store::audit::{Archive, Known, PublicKey};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::config::Config;
use crate::plugins::registry::open_token;
use crate::storage::{self, KeyPlace};

/// Commands that need a configuration and no listening service.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write everything in the store to a file, sealed as it is in the store, while the service may run.
    Backup(Backup),
    /// Fill an empty store from a backup that was made under the same key. Stop the service first.
    Restore(Restore),
    /// Seal everything in the store under a new key. Stop the service (all replicas) first.
    Rekey(Rekey),
    /// The audit log.
    #[command(subcommand)]
    Audit(Audit),
}

#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// File to make.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// File that `kbs backup` made.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace what is in the store.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rekey {
    /// File of the new key, made when it is absent. Needed where the key is not in a file of its own; afterwards give its
    /// contents to whatever holds the key.
    #[arg(long, value_name = "FILE")]
    new_key: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Write the log as JSON Lines, to be checked by `kata-cc audit verify`.
    Export {
        /// File to make; standard output without it.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Check that no record was changed, removed, inserted or moved, and that no stored value was.
    Verify {
        /// A record noted elsewhere, which the log must still have: NUMBER:HASH.
        #[arg(long, value_name = "NUMBER:HASH")]
        after: Option<Known>,
    },
    /// Remove old records that were exported. What stays still proves itself, and says what was removed.
    Prune(Prune),
    /// Print the public key by which exports are checked (PEM).
    Key,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("upto").required(true)))]
pub(crate) struct Prune {
    /// The export that is kept (`kbs audit export`), which must have what is removed. It is checked first.
    #[arg(long, value_name = "FILE")]
    archive: PathBuf,
    /// Remove records up to this one.
    #[arg(long, value_name = "NUMBER", group = "upto")]
    record: Option<u64>,
    /// Remove records of before this time, RFC 3339.
    #[arg(long, value_name = "TIME", group = "upto")]
    before: Option<String>,
    /// Remove all that the export has, but for the last record of the log.
    #[arg(long, group = "upto")]
    all: bool,
}

/// Runs a command.
pub(crate) fn run(command: &Command, config: &Config) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Backup(backup) => save(&backup.file, config).await,
            Command::Restore(restore) => fill(restore, config).await,
            Command::Rekey(rekey) => seal_anew(rekey, config).await,
            Command::Audit(Audit::Verify { after }) => Ok(verify(after.as_ref(), config).await),
            Command::Audit(Audit::Export { output }) => export(output.as_deref(), config).await,
            Command::Audit(Audit::Prune(prune)) => remove_archived(prune, config).await,
            Command::Audit(Audit::Key) => {
                let store = storage::open(config).await?;
                let key: PublicKey = store.audit().public_key();
                store.close().await;
                print(&key.pem())
            }
        }
    })
}

/// Prints a text; a reader that went away is an error, no panic.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(text.as_bytes()).context("standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// A new file of mode 0600 that is there whole or not at all: written beside its place, then moved there.
struct NewFile {
    path: PathBuf,
    part: PathBuf,
    out: BufWriter<File>,
}

impl NewFile {
    fn make(path: &Path) -> anyhow::Result<Self> {
        anyhow::ensure!(!path.exists(), "{} exists, it is not overwritten", path.display());
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part);
        let file = file.with_context(|| format!("{} cannot be made", part.display()))?;
        Ok(Self { path: path.to_owned(), part, out: BufWriter::new(file) })
    }

    fn finish(mut self) -> anyhow::Result<()> {
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        std::fs::hard_link(&self.part, &self.path)
            .with_context(|| format!("{} cannot be made", self.path.display()))?;
        std::fs::remove_file(&self.part)?;
        Ok(())
    }
}

async fn save(path: &Path, config: &Config) -> anyhow::Result<ExitCode> {
    let store = storage::open(config).await?;
    let mut file = NewFile::make(path)?;
    let done = store.backup(&mut file.out).await;
    store.close().await;
    let done = done?;
    file.finish()?;
    print(&format!("{}: {} values, {} audit records\n", path.display(), done.values, done.records))
}

async fn fill(restore: &Restore, config: &Config) -> anyhow::Result<ExitCode> {
    let path = &restore.file;
    File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let store = storage::open(config).await?;
    let done = store.restore(|| File::open(path).map(BufReader::new), restore.force).await?;
    print(&format!("restored {} values, {} audit records\n", done.values, done.records))
}

/// Seals everything anew. Whatever moment it is interrupted at, doing it again completes it: the new key is on disk before
/// anything is sealed under it, the old key stays in a file beside it.
async fn seal_anew(rekey: &Rekey, config: &Config) -> anyhow::Result<ExitCode> {
    let token = open_token(&config.plugins, &config.base).await?;
    let token = token.as_deref();
    let place = KeyPlace::of(config);
    let (new_path, wrapped, replaces) = match (&place, &rekey.new_key) {
        (KeyPlace::Nowhere, _) => anyhow::bail!("a store in memory has no key to change"),
        (_, Some(path)) => (path.clone(), None, None),
        (KeyPlace::File { path, wrapped }, None) => {
            anyhow::ensure!(path.exists(), "{} does not exist: there is no key to change", path.display());
            (beside(path, ".new"), wrapped.as_ref(), Some(path))
        }
        (KeyPlace::Elsewhere(_), None) => {
            anyhow::bail!("the key is not in a file of its own: name one for the new key with --new-key FILE")
        }
    };
    let new = storage::key_file(&new_path, wrapped, token).await?;
    let count = match storage::open_with(config, place.load(token).await?).await {
        Ok(store) => Some(store.rekey(&new).await?),
        // An earlier run was interrupted after everything was sealed anew.
        Err(error) => {
            let done = storage::open_with(config, new).await.map_err(|_| error)?;
            done.close().await;
            None
        }
    };
    let mut told = match count {
        Some(count) => format!("{count} values are sealed under the new key\n"),
        None => "the store was sealed under the new key already\n".to_owned(),
    };
    match replaces {
        Some(path) => {
            let old = beside(path, ".old");
            // A second link first: at no moment is there no key at the usual place.
            let _ = std::fs::remove_file(&old);
            std::fs::hard_link(path, &old).with_context(|| format!("{} cannot be made", old.display()))?;
            std::fs::rename(&new_path, path)
                .with_context(|| format!("{} cannot be moved to its place", new_path.display()))?;
            told += &format!(
                "{} is the new key; {} is the old one, which older backups need\n",
                path.display(),
                old.display()
            );
        }
        None => told += &format!("{} is the new key: give it to the service\n", new_path.display()),
    }
    print(&told)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

async fn export(output: Option<&Path>, config: &Config) -> anyhow::Result<ExitCode> {
    let store = storage::open(config).await?;
    match output {
        None => {
            let mut out = BufWriter::new(std::io::stdout());
            store.audit().export(&mut out).await?;
            out.flush().context("standard output")?;
        }
        Some(path) => {
            let mut file = NewFile::make(path)?;
            store.audit().export(&mut file.out).await?;
            file.finish()?;
        }
    }
    store.close().await;
    Ok(ExitCode::SUCCESS)
}

/// Who removed records, in the audit log.
const PRUNER: &str = "kbs audit prune";

async fn remove_archived(prune: &Prune, config: &Config) -> anyhow::Result<ExitCode> {
    let path = &prune.archive;
    let before = prune.before.as_deref().map(|text| {
        OffsetDateTime::parse(text, &Rfc3339)
            .with_context(|| format!("--before {text:?} is no time in RFC 3339"))
    });
    let before = before.transpose()?;
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let store = storage::open(config).await?;
    let audit = store.audit();
    let archive = Archive::verify(BufReader::new(file), &audit.public_key())
        .with_context(|| format!("{} does not prove what it holds, nothing was removed", path.display()))?;
    let upto = match before {
        None => prune.record,
        Some(time) => Some(audit.last_before(time).await?.context("no record is older than that")?),
    };
    let pruned = audit.prune(&archive, upto, PRUNER).await?;
    store.close().await;
    print(&format!(
        "{} records up to {}:{} were removed; {} has them: keep it\n",
        pruned.removed,
        pruned.upto,
        pruned.hash,
        path.display()
    ))
}

async fn verify(after: Option<&Known>, config: &Config) -> ExitCode {
    let outcome: anyhow::Result<_> = async {
        let store = storage::open(config).await?;
        let whole = store.audit().verify(after).await?;
        let values = store.verify_values().await?;
        store.close().await;
        Ok((whole, values))
    }
    .await;
    match outcome {
        Ok((whole, values)) => {
            let told = format!(
                "audit records {} to {} are whole, and {values} values; noted elsewhere, {}:{} finds an older copy of the store\n",
                whole.first, whole.records, whole.records, whole.head
            );
            print(&told).unwrap_or(ExitCode::FAILURE)
        }
        Err(error) => {
            eprintln!("kbs: {error:#}");
            match error.downcast_ref() {
                Some(StoreError::Audit(tampered)) => {
                    eprintln!("kbs: first bad record: {}", tampered.first_bad());
                    ExitCode::from(1)
                }
                Some(StoreError::Sealed { .. }) => ExitCode::from(1),
                _ => ExitCode::from(2),
            }
        }
    }
}
