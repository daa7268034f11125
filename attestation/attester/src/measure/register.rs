//! The registers that events are hashed into.

use std::io;
use std::path::{Path, PathBuf};

use super::{DIGEST_LEN, Digest, extended};

/// Folder of the TDX registers, from the root (Linux 6.16 and later).
const RTMR_DIR: &str = "sys/devices/virtual/misc/tdx_guest/measurements";

/// A register that can only be extended.
pub trait Register: Send {
    /// Its number in the event log.
    fn number(&self) -> u32;

    /// Whether the processor keeps it and shows it in its evidence.
    fn is_hardware(&self) -> bool;

    /// Its value.
    ///
    /// # Errors
    /// As the kernel says.
    fn value(&self) -> io::Result<Digest>;

    /// Extends it.
    ///
    /// # Errors
    /// As the kernel says.
    fn extend(&mut self, by: &Digest) -> io::Result<()>;
}

/// A runtime measurement register of TDX.
#[derive(Debug, Clone)]
pub struct Rtmr {
    path: PathBuf,
    index: u8,
}

impl Rtmr {
    /// Register 2 or 3 (the others are the firmware's), below `root`.
    ///
    /// # Errors
    /// When the kernel does not offer it, or the register is not one for run time.
    pub fn open(root: &Path, index: u8) -> io::Result<Self> {
        check_run_time(index)?;
        let path = root.join(RTMR_DIR).join(format!("rtmr{index}:sha384"));
        let rtmr = Self { path, index };
        rtmr.value()?;
        Ok(rtmr)
    }
}

impl Register for Rtmr {
    fn number(&self) -> u32 {
        u32::from(self.index) + 1
    }

    fn is_hardware(&self) -> bool {
        true
    }

    fn value(&self) -> io::Result<Digest> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        std::fs::File::open(&self.path)?.take(DIGEST_LEN as u64 + 1).read_to_end(&mut bytes)?;
        bytes.try_into().map_err(|_| io::ErrorKind::InvalidData.into())
    }

    fn extend(&mut self, by: &Digest) -> io::Result<()> {
        use std::io::Write as _;
        let mut file = std::fs::OpenOptions::new().write(true).open(&self.path)?;
        // The kernel takes one write as one extension: it must not be split or repeated.
        match file.write(by)? {
            DIGEST_LEN => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

/// Whether a guest may extend RTMR`index` itself.
pub(crate) fn check_run_time(index: u8) -> io::Result<()> {
    if matches!(index, 2 | 3) {
        return Ok(());
    }
    let why = format!("RTMR{index} is the firmware's: 2 and 3 can be extended at run time");
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// A register in the agent's memory, for TEEs that have none. See the module for what it proves.
#[derive(Debug, Clone)]
pub struct SoftwareRegister {
    number: u32,
    value: Digest,
}

impl SoftwareRegister {
    /// A register with this number in the log and this value: zeros, or what a log replays to.
    #[must_use]
    pub const fn new(number: u32, value: Digest) -> Self {
        Self { number, value }
    }
}

impl Register for SoftwareRegister {
    fn number(&self) -> u32 {
        self.number
    }

    fn is_hardware(&self) -> bool {
        false
    }

    fn value(&self) -> io::Result<Digest> {
        Ok(self.value)
    }

    fn extend(&mut self, by: &Digest) -> io::Result<()> {
        self.value = extended(&self.value, by);
        Ok(())
    }
}
