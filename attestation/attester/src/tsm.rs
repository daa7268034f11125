//! Reports through the kernel's TSM interface: a folder under `/sys/kernel/config/tsm/report`.
//!
//! Linux 6.7 and later, `Documentation/ABI/testing/configfs-tsm-report`: make a folder, write 64 bytes
//! to `inblob`, read `outblob` (report or quote) and `auxblob` (certificate table). `generation` counts
//! writes: when it is not as many more as we wrote, somebody else wrote in between and the
//! report may be theirs, so we ask again. The folder is removed whatever happens.
//!
//! `privlevel` and its floor: a guest under an SVSM runs at a lower privilege level than 0 and can have reports for its own
//! level and those below only; what is not said is left to the kernel. `service_provider` `svsm` asks the SVSM for a report
//! instead: its report data is then SHA-512 of ours and the manifest of its services (58019, attestation protocol), which
//! [`Answer::binds`] knows.
//!
//! File operations are behind [`TsmFs`], so that the logic is tested against a fake. Not yet run on
//! hardware.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use kata_cc_snp::REPORT_LEN;
use kata_cc_snp::cert_table::MAX_TABLE;

use crate::quote::MAX_QUOTE;
use crate::{AttestError, RawReport};

/// Folder of TSM reports, from the root.
pub const REPORT_DIR: &str = "sys/kernel/config/tsm/report";

/// How often to ask again when another writer interferes.
const ATTEMPTS: u32 = 5;

/// Most bytes of an SVSM's manifest of services.
const MAX_MANIFEST: usize = 64 << 10;

/// Lowest privilege of an SNP guest.
const LAST_LEVEL: u8 = 3;

/// Who is behind the interface, as the file `provider` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// `sev_guest`: SNP reports.
    SevGuest,
    /// `tdx_guest`: TDX quotes.
    TdxGuest,
}

impl Provider {
    /// The name in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SevGuest => "sev_guest",
            Self::TdxGuest => "tdx_guest",
        }
    }

    /// Most bytes of its answer.
    const fn limit(self) -> usize {
        match self {
            Self::SevGuest => REPORT_LEN,
            Self::TdxGuest => MAX_QUOTE,
        }
    }
}

/// What to ask for.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Report data.
    pub report_data: [u8; 64],
    /// Whose reports are expected.
    pub provider: Provider,
    /// Privilege level (VMPL) of the report; the kernel's choice when `None`.
    pub privilege_level: Option<u8>,
    /// Ask the SVSM (`service_provider` `svsm`).
    pub svsm: bool,
}

impl Request {
    /// A request that leaves everything else to the kernel.
    #[must_use]
    pub const fn new(provider: Provider, report_data: [u8; 64]) -> Self {
        Self { report_data, provider, privilege_level: None, svsm: false }
    }
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// SNP report or TDX quote.
    pub outblob: Vec<u8>,
    /// Certificate table of SNP, may be empty.
    pub auxblob: Vec<u8>,
    /// Manifest of an SVSM's services, when it was asked.
    pub manifest: Option<Vec<u8>>,
}

impl Answer {
    /// Whether the report data within the report, given here, is what the request makes of its own.
    #[must_use]
    pub fn binds(&self, asked: &[u8; 64], seen: &[u8; 64]) -> bool {
        let Some(manifest) = &self.manifest else { return asked == seen };
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA512);
        context.update(asked);
        context.update(manifest);
        context.finish().as_ref() == seen
    }
}

/// What is done with the interface's files. Names are relative: `<entry>` or `<entry>/<file>`.
pub trait TsmFs {
    /// Makes an entry.
    ///
    /// # Errors
    /// As the kernel says.
    fn make_entry(&self, entry: &str) -> io::Result<()>;
    /// Removes an entry.
    ///
    /// # Errors
    /// As the kernel says.
    fn remove_entry(&self, entry: &str) -> io::Result<()>;
    /// Writes a file of an entry, in one write.
    ///
    /// # Errors
    /// As the kernel says.
    fn write(&self, entry: &str, file: &str, bytes: &[u8]) -> io::Result<()>;
    /// Reads a file of an entry, `limit` bytes at most.
    ///
    /// # Errors
    /// As the kernel says.
    fn read(&self, entry: &str, file: &str, limit: usize) -> io::Result<Vec<u8>>;
}

/// The real thing.
#[derive(Clone, Debug)]
pub struct Configfs {
    dir: PathBuf,
}

impl Configfs {
    /// The interface in this folder.
    #[must_use]
    pub const fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn path(&self, entry: &str, file: &str) -> PathBuf {
        self.dir.join(Path::new(entry)).join(file)
    }
}

impl TsmFs for Configfs {
    fn make_entry(&self, entry: &str) -> io::Result<()> {
        std::fs::create_dir(self.dir.join(entry))
    }

    fn remove_entry(&self, entry: &str) -> io::Result<()> {
        std::fs::remove_dir(self.dir.join(entry))
    }

    fn write(&self, entry: &str, file: &str, bytes: &[u8]) -> io::Result<()> {
        use std::io::Write as _;
        let mut file = std::fs::OpenOptions::new().write(true).open(self.path(entry, file))?;
        // The kernel takes each write as a whole value.
        if file.write(bytes)? == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn read(&self, entry: &str, file: &str, limit: usize) -> io::Result<Vec<u8>> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        std::fs::File::open(self.path(entry, file))?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
    }
}

/// An entry that is removed in the end.
struct Entry<'a, F: TsmFs> {
    fs: &'a F,
    name: String,
}

impl<F: TsmFs> Drop for Entry<'_, F> {
    fn drop(&mut self) {
        if let Err(error) = self.fs.remove_entry(&self.name) {
            tracing::warn!(entry = self.name, %error, "cannot remove TSM report entry");
        }
    }
}

impl<'a, F: TsmFs> Entry<'a, F> {
    fn make(fs: &'a F) -> Result<Self, AttestError> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("kata-cc-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        fs.make_entry(&name).map_err(|source| failed("make", &name, source))?;
        Ok(Self { fs, name })
    }

    fn text(&self, file: &str) -> Result<String, AttestError> {
        let bytes = self.fs.read(&self.name, file, 64).map_err(|source| failed("read", file, source))?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    fn generation(&self) -> Result<u64, AttestError> {
        let text = self.text("generation")?;
        text.parse().map_err(|_| failed("read", "generation", io::ErrorKind::InvalidData.into()))
    }

    fn write(&self, file: &str, bytes: &[u8]) -> Result<(), AttestError> {
        self.fs.write(&self.name, file, bytes).map_err(|source| failed("write", file, source))
    }

    /// A blob of the answer; `None` when another writer interfered.
    fn blob(&self, file: &str, limit: usize) -> Result<Option<Vec<u8>>, AttestError> {
        match self.fs.read(&self.name, file, limit) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(source) => Err(failed("read", file, source)),
        }
    }

    /// As [`Self::blob`], empty where the kernel does not have the file.
    fn optional_blob(&self, file: &str, limit: usize) -> Result<Option<Vec<u8>>, AttestError> {
        match self.blob(file, limit) {
            Err(AttestError::Tsm { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Some(Vec::new()))
            }
            other => other,
        }
    }

    /// The level to write, if any: what is asked for must not be below the floor of this guest.
    fn level(&self, asked: Option<u8>) -> Result<Option<u8>, AttestError> {
        let Some(asked) = asked else { return Ok(None) };
        let floor = match self.text("privlevel_floor") {
            Ok(text) => text
                .parse()
                .map_err(|_| failed("read", "privlevel_floor", io::ErrorKind::InvalidData.into()))?,
            Err(AttestError::Tsm { source, .. }) if source.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        match (floor..=LAST_LEVEL).contains(&asked) {
            true => Ok(Some(asked)),
            false => Err(AttestError::PrivilegeLevel { asked, floor }),
        }
    }

    /// One try; `None` when another writer interfered.
    fn ask(&self, request: &Request, level: Option<u8>) -> Result<Option<Answer>, AttestError> {
        let before = self.generation()?;
        let mut writes = 1;
        if let Some(level) = level {
            self.write("privlevel", level.to_string().as_bytes())?;
            writes += 1;
        }
        if request.svsm {
            self.write("service_provider", b"svsm")?;
            writes += 1;
        }
        self.write("inblob", &request.report_data)?;
        let Some(outblob) = self.blob("outblob", request.provider.limit())? else { return Ok(None) };
        let auxblob = match request.provider {
            // Kernels without extended reports do not have the file.
            Provider::SevGuest => self.optional_blob("auxblob", MAX_TABLE)?,
            Provider::TdxGuest => Some(Vec::new()),
        };
        let Some(auxblob) = auxblob else { return Ok(None) };
        let manifest = match request.svsm {
            true => match self.blob("manifestblob", MAX_MANIFEST)? {
                None => return Ok(None),
                some => some,
            },
            false => None,
        };
        let ours = self.generation()? == before.wrapping_add(writes);
        Ok(ours.then_some(Answer { outblob, auxblob, manifest }))
    }
}

fn failed(action: &'static str, path: &str, source: io::Error) -> AttestError {
    AttestError::Tsm { action, path: format!("{REPORT_DIR} {path}"), source }
}

/// The provider that is behind the interface.
pub(crate) fn provider<F: TsmFs>(fs: &F) -> Result<String, AttestError> {
    Entry::make(fs)?.text("provider")
}

/// Asks, and again while another writer interferes.
///
/// # Errors
/// [`AttestError`] says which step failed.
pub fn ask<F: TsmFs>(fs: &F, request: &Request) -> Result<Answer, AttestError> {
    let entry = Entry::make(fs)?;
    let provider = entry.text("provider")?;
    if provider != request.provider.name() {
        return Err(AttestError::Provider { seen: provider, expected: request.provider.name() });
    }
    let level = entry.level(request.privilege_level)?;
    for _ in 0..ATTEMPTS {
        if let Some(answer) = entry.ask(request, level)? {
            return Ok(answer);
        }
    }
    Err(AttestError::Raced { attempts: ATTEMPTS })
}

/// An SNP report that holds `report_data`, with the certificates that the host supplies.
pub(crate) fn report<F: TsmFs>(fs: &F, report_data: &[u8; 64]) -> Result<RawReport, AttestError> {
    let answer = ask(fs, &Request::new(Provider::SevGuest, *report_data))?;
    Ok(RawReport { report: answer.outblob, certificates: answer.auxblob })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_with_a_limit() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let configfs = Configfs::new(dir.path().to_owned());
        configfs.make_entry("one").expect("folder");
        std::fs::write(dir.path().join("one/inblob"), b"").expect("file");
        configfs.write("one", "inblob", &[5; 64]).expect("written");
        assert_eq!(configfs.read("one", "inblob", 64).expect("read"), [5; 64]);
        assert!(configfs.read("one", "inblob", 63).is_err());
        assert!(configfs.write("one", "absent", &[1]).is_err());
    }
}
