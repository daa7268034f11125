//! Reports through the kernel's TSM interface: a folder under `/sys/kernel/config/tsm/report`.
//!
//! Linux 6.7 and later, `Documentation/ABI/testing/configfs-tsm-report`: make a folder, write 64 bytes
//! to `inblob`, read `outblob` (the report) and `auxblob` (certificate table). `generation` counts
//! writes: when it is not one more than before our write, somebody else wrote in between and the
//! report may be theirs, so we ask again. The folder is removed whatever happens.
//!
//! File operations are behind [`TsmFs`], so that the logic is tested against a fake. Not yet run on
//! hardware.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use kata_cc_snp::REPORT_LEN;
use kata_cc_snp::cert_table::MAX_TABLE;

use crate::{AttestError, RawReport};

/// Folder of TSM reports, from the root.
pub const REPORT_DIR: &str = "sys/kernel/config/tsm/report";

/// How often to ask again when another writer interferes.
const ATTEMPTS: u32 = 5;

/// Provider that hands out SNP reports.
const PROVIDER: &str = "sev_guest";

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

    /// One try; `None` when another writer interfered.
    fn ask(&self, report_data: &[u8; 64]) -> Result<Option<RawReport>, AttestError> {
        let before = self.generation()?;
        self.fs
            .write(&self.name, "inblob", report_data)
            .map_err(|source| failed("write", "inblob", source))?;
        let report = match self.fs.read(&self.name, "outblob", REPORT_LEN) {
            Ok(report) => report,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(source) => return Err(failed("read", "outblob", source)),
        };
        let certificates = match self.fs.read(&self.name, "auxblob", MAX_TABLE) {
            Ok(certificates) => certificates,
            // Kernels without extended reports do not have the file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(source) => return Err(failed("read", "auxblob", source)),
        };
        let ours = self.generation()? == before.wrapping_add(1);
        Ok(ours.then_some(RawReport { report, certificates }))
    }
}

fn failed(action: &'static str, path: &str, source: io::Error) -> AttestError {
    AttestError::Tsm { action, path: format!("{REPORT_DIR} {path}"), source }
}

/// A report that holds `report_data`.
pub(crate) fn report<F: TsmFs>(fs: &F, report_data: &[u8; 64]) -> Result<RawReport, AttestError> {
    let entry = Entry::make(fs)?;
    let provider = entry.text("provider")?;
    if provider != PROVIDER {
        return Err(AttestError::Provider { seen: provider });
    }
    for _ in 0..ATTEMPTS {
        if let Some(report) = entry.ask(report_data)? {
            return Ok(report);
        }
    }
    Err(AttestError::Raced { attempts: ATTEMPTS })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// A kernel in memory: one entry, counting generations, with writers of its own.
    struct Fake {
        state: RefCell<State>,
        provider: &'static str,
        auxblob: Option<Vec<u8>>,
    }

    #[derive(Default)]
    struct State {
        entry: Option<String>,
        inblob: Vec<u8>,
        generation: u64,
        interfering: u32,
    }

    impl Fake {
        fn new(interfering: u32) -> Self {
            let state = RefCell::new(State { interfering, generation: 41, ..State::default() });
            Self { state, provider: "sev_guest\n", auxblob: Some(vec![7; 100]) }
        }
    }

    impl TsmFs for Fake {
        fn make_entry(&self, entry: &str) -> io::Result<()> {
            assert!(self.state.borrow_mut().entry.replace(entry.to_owned()).is_none());
            Ok(())
        }

        fn remove_entry(&self, entry: &str) -> io::Result<()> {
            assert_eq!(self.state.borrow_mut().entry.take().as_deref(), Some(entry));
            Ok(())
        }

        fn write(&self, entry: &str, file: &str, bytes: &[u8]) -> io::Result<()> {
            let mut state = self.state.borrow_mut();
            assert_eq!((state.entry.as_deref(), file), (Some(entry), "inblob"));
            state.inblob = bytes.to_vec();
            state.generation += 1;
            if state.interfering > 0 {
                state.interfering -= 1;
                state.generation += 1;
                state.inblob = vec![0xEE; 64];
            }
            Ok(())
        }

        fn read(&self, _entry: &str, file: &str, limit: usize) -> io::Result<Vec<u8>> {
            let state = self.state.borrow();
            let bytes = match file {
                "provider" => self.provider.as_bytes().to_vec(),
                "generation" => format!("{}\n", state.generation).into_bytes(),
                "outblob" => {
                    let mut report = vec![0; REPORT_LEN];
                    report[0x50..0x90].copy_from_slice(&state.inblob);
                    report
                }
                "auxblob" => self.auxblob.clone().ok_or(io::ErrorKind::NotFound)?,
                _ => return Err(io::ErrorKind::NotFound.into()),
            };
            if bytes.len() > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
        }
    }

    #[test]
    fn a_report_and_its_certificates_are_read_and_the_entry_removed() {
        let fake = Fake::new(0);
        let raw = report(&fake, &[3; 64]).expect("report");
        assert_eq!(raw.report[0x50..0x90], [3; 64]);
        assert_eq!(raw.certificates, [7; 100]);
        assert!(fake.state.borrow().entry.is_none());
        let old_kernel = Fake { auxblob: None, ..Fake::new(0) };
        assert!(report(&old_kernel, &[3; 64]).expect("report").certificates.is_empty());
    }

    #[test]
    fn another_writer_is_noticed() {
        let fake = Fake::new(2);
        assert_eq!(report(&fake, &[3; 64]).expect("report").report[0x50..0x90], [3; 64]);
        let refused = report(&Fake::new(99), &[3; 64]);
        assert!(matches!(refused, Err(AttestError::Raced { attempts: ATTEMPTS })));
    }

    #[test]
    fn other_providers_and_oversize_answers_are_refused() {
        let other = Fake { provider: "tdx_guest\n", ..Fake::new(0) };
        assert!(
            matches!(report(&other, &[3; 64]), Err(AttestError::Provider { seen }) if seen == "tdx_guest")
        );
        assert!(other.state.borrow().entry.is_none(), "removed after a refusal too");
        let large = Fake { auxblob: Some(vec![0; MAX_TABLE + 1]), ..Fake::new(0) };
        assert!(matches!(report(&large, &[3; 64]), Err(AttestError::Tsm { .. })));
    }

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
