//! Fakes of the kernel's interfaces that hand out recorded evidence.

use std::cell::RefCell;
use std::io;

use kata_cc_attester::tsm::TsmFs;

/// What a fake kernel does beside answering.
#[derive(Default)]
pub struct Script {
    /// Writers that come between, so many times.
    pub interfering: u32,
    /// Reads of `outblob` that fail with this error, so many times.
    pub failing: (u32, i32),
    /// Error of every write of `inblob`.
    pub refusing: Option<i32>,
    /// Error of making an entry.
    pub no_entry: Option<i32>,
    /// `privlevel_floor`.
    pub floor: Option<u8>,
}

/// A TSM interface in memory: one entry, counting generations.
pub struct FakeTsm {
    pub provider: &'static str,
    pub outblob: Vec<u8>,
    pub auxblob: Option<Vec<u8>>,
    pub manifest: Option<Vec<u8>>,
    pub script: RefCell<Script>,
    pub entry: RefCell<Option<String>>,
    pub written: RefCell<Vec<(String, Vec<u8>)>>,
    generation: RefCell<u64>,
}

impl FakeTsm {
    pub fn new(provider: &'static str, outblob: Vec<u8>, auxblob: Option<Vec<u8>>) -> Self {
        Self {
            provider,
            outblob,
            auxblob,
            manifest: None,
            script: RefCell::default(),
            entry: RefCell::default(),
            written: RefCell::default(),
            generation: RefCell::new(41),
        }
    }

    pub fn with(self, script: Script) -> Self {
        *self.script.borrow_mut() = script;
        self
    }
}

fn refuse(code: i32) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(code))
}

impl TsmFs for FakeTsm {
    fn make_entry(&self, entry: &str) -> io::Result<()> {
        self.script.borrow().no_entry.map_or(Ok(()), refuse)?;
        assert!(self.entry.borrow_mut().replace(entry.to_owned()).is_none());
        Ok(())
    }

    fn remove_entry(&self, entry: &str) -> io::Result<()> {
        assert_eq!(self.entry.borrow_mut().take().as_deref(), Some(entry));
        Ok(())
    }

    fn write(&self, entry: &str, file: &str, bytes: &[u8]) -> io::Result<()> {
        assert_eq!(self.entry.borrow().as_deref(), Some(entry));
        let mut script = self.script.borrow_mut();
        if file == "inblob" {
            script.refusing.map_or(Ok(()), refuse)?;
            if script.interfering > 0 {
                script.interfering -= 1;
                *self.generation.borrow_mut() += 1;
            }
        }
        *self.generation.borrow_mut() += 1;
        self.written.borrow_mut().push((file.to_owned(), bytes.to_vec()));
        Ok(())
    }

    fn read(&self, _: &str, file: &str, limit: usize) -> io::Result<Vec<u8>> {
        let absent = || io::Error::from(io::ErrorKind::NotFound);
        let mut script = self.script.borrow_mut();
        if file == "outblob" && script.failing.0 > 0 {
            script.failing.0 -= 1;
            refuse(script.failing.1)?;
        }
        let bytes = match file {
            "provider" => format!("{}\n", self.provider).into_bytes(),
            "generation" => format!("{}\n", self.generation.borrow()).into_bytes(),
            "privlevel_floor" => script.floor.map(|f| format!("{f}\n").into_bytes()).ok_or_else(absent)?,
            "outblob" => self.outblob.clone(),
            "auxblob" => self.auxblob.clone().ok_or_else(absent)?,
            "manifestblob" => self.manifest.clone().ok_or_else(absent)?,
            _ => return Err(absent()),
        };
        if bytes.len() > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
    }
}
