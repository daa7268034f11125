//! The event log beside a register, and what keeps the two together when something breaks between them.
//!
//! `eventlog` is the firmware's log (or a header where there is none) and our events after it. Before a register is extended,
//! `.wal_event_entry` says what is about to happen: u64 big-endian length of the log, the value that the register
//! will have, the event's text. What is found there later is brought to its end: did the register get the value, the
//! event is in the log; did it not, it is not. So the log never misses an event that the register holds.
//!
//! Both files are CoCo's in place and form (`/run/attestation-agent`). The log is bounded: what others ask for may fill
//! [`MAX_ASKED`], so that there is always room for what the agent itself records.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::aael::COCO_DOMAIN;
use super::{DIGEST_LEN, Digest, Event, EventError, Register, extended, tcg};

/// Most bytes of events in the log, beyond the firmware's.
pub const MAX_LOG: usize = 1 << 20;
/// Most bytes of them that others than the agent may ask for.
pub const MAX_ASKED: usize = MAX_LOG / 2;

const LOG: &str = "eventlog";
const PENDING: &str = ".wal_event_entry";

/// Why an event is not in the log.
#[derive(Debug, Error)]
pub enum LogError {
    /// The event is out of form.
    #[error(transparent)]
    Event(#[from] EventError),
    /// Events of that domain are the agent's to record.
    #[error("events of the domain {COCO_DOMAIN} are recorded by the agent alone")]
    Reserved,
    /// The limit is reached.
    #[error("event log is full: {used} bytes, at most {most} for this asker")]
    Full {
        /// Bytes in use.
        used: usize,
        /// Limit.
        most: usize,
    },
    /// A file or the register failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The log of before cannot be read.
    #[error("event log of before is damaged: {0}")]
    Damaged(#[from] tcg::TcgError),
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> LogError {
    move |source| LogError::Io { action, source }
}

/// Who wants an event recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// The agent itself.
    Agent,
    /// Somebody through an API: gets less room, and cannot pose as the agent.
    Api,
}

/// What was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// Number of the register in the log.
    pub register: u32,
    /// Its value after it.
    pub value: Digest,
}

/// A register and its log.
pub struct RuntimeLog {
    register: Box<dyn Register>,
    dir: PathBuf,
    /// Bytes before our first event.
    base: usize,
    /// The whole log.
    bytes: Vec<u8>,
    asked: usize,
}

impl std::fmt::Debug for RuntimeLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { dir, base, bytes, asked, .. } = self;
        f.debug_struct("RuntimeLog")
            .field("register", &self.register.number())
            .field("dir", dir)
            .field("base", base)
            .field("bytes", &bytes.len())
            .field("asked", asked)
            .finish()
    }
}

impl RuntimeLog {
    /// Opens the log in `dir`, or begins one after `firmware`, the firmware's log. `register` is made from what the log of
    /// before replays to, for those that live in memory.
    ///
    /// # Errors
    /// When a file cannot be read or written, or is not such a log.
    pub fn open(
        dir: &Path,
        firmware: Option<&[u8]>,
        register: impl FnOnce(&[u8]) -> Result<Box<dyn Register>, tcg::TcgError>,
    ) -> Result<Self, LogError> {
        std::fs::create_dir_all(dir).map_err(failed("make the folder of the event log"))?;
        let mut bytes = firmware.map_or_else(tcg::header, <[u8]>::to_vec);
        let base = bytes.len();
        match read(&dir.join(LOG), base + MAX_LOG) {
            Ok(log) if log.starts_with(&bytes) => bytes = log,
            // Cut before its first event, or of another firmware's log: begun anew.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("read the event log")(error)),
        }
        let pending = Pending::read(dir)?;
        if let Some(pending) = &pending {
            // What was appended of the pending event may be a part of it.
            bytes.truncate(usize::try_from(pending.offset).unwrap_or(usize::MAX).max(base));
        }
        let register = register(&bytes)?;
        // Who asked for the events of before is not known: all count as asked for.
        let asked = bytes.len() - base;
        let mut log = Self { register, dir: dir.to_owned(), base, bytes, asked };
        write_whole(&dir.join(LOG), &log.bytes)?;
        if let Some(pending) = pending {
            log.finish(&pending)?;
        }
        tcg::used_length(&log.bytes).ok_or(tcg::TcgError::Truncated { at: log.bytes.len() })?;
        Ok(log)
    }

    /// Extends the register by an event and writes it to the log.
    ///
    /// # Errors
    /// When the event is refused or something failed: then it is in neither of both, or (when the log's file failed after the
    /// register was extended) this and the next call say so until the file can be written again.
    pub fn record(&mut self, event: &Event, asker: Asker) -> Result<Recorded, LogError> {
        if asker == Asker::Api && event.domain() == COCO_DOMAIN {
            return Err(LogError::Reserved);
        }
        if let Some(pending) = Pending::read(&self.dir)? {
            self.finish(&pending)?;
        }
        let (entry, digest) = event.entry(self.register.number());
        let (used, most) = match asker {
            Asker::Agent => (self.bytes.len() - self.base, MAX_LOG),
            Asker::Api => (self.asked, MAX_ASKED),
        };
        if used + entry.len() > most {
            return Err(LogError::Full { used, most });
        }
        let before = self.register.value().map_err(failed("read the register"))?;
        let value = extended(&before, &digest);
        Pending { offset: self.bytes.len() as u64, value, text: event.text() }.write(&self.dir)?;
        if let Err(error) = self.register.extend(&digest) {
            // Whether it was extended all the same is seen by its value, now or at the next call.
            if self.register.value().is_ok_and(|now| now == before) {
                Pending::remove(&self.dir)?;
            }
            return Err(failed("extend the register")(error));
        }
        self.append(&entry)?;
        if asker == Asker::Api {
            self.asked += entry.len();
        }
        Ok(Recorded { register: self.register.number(), value })
    }

    fn append(&mut self, entry: &[u8]) -> Result<(), LogError> {
        let path = self.dir.join(LOG);
        let file = OpenOptions::new().append(true).open(path);
        file.and_then(|mut file| file.write_all(entry)).map_err(failed("write the event log"))?;
        self.bytes.extend_from_slice(entry);
        Pending::remove(&self.dir)
    }

    /// Brings what was begun to its end.
    fn finish(&mut self, pending: &Pending) -> Result<(), LogError> {
        write_whole(&self.dir.join(LOG), &self.bytes)?;
        if self.register.value().map_err(failed("read the register"))? != pending.value {
            tracing::warn!(event = pending.text, "an event was begun and not measured: it is not in the log");
            return Pending::remove(&self.dir);
        }
        let (entry, _) = Event::parse(&pending.text)?.entry(self.register.number());
        tracing::warn!(event = pending.text, "an event was measured and not written: it is in the log now");
        self.append(&entry)
    }

    /// The whole log, the firmware's part first.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the processor keeps the register.
    #[must_use]
    pub fn is_hardware(&self) -> bool {
        self.register.is_hardware()
    }

    /// Number of the register in the log.
    #[must_use]
    pub fn register(&self) -> u32 {
        self.register.number()
    }

    /// Value of the register.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn value(&self) -> Result<Digest, LogError> {
        self.register.value().map_err(failed("read the register"))
    }
}

/// What is about to happen.
struct Pending {
    offset: u64,
    value: Digest,
    text: String,
}

impl Pending {
    /// `None` when nothing is under way. One that is cut was never acted upon: the register is extended after it is whole.
    fn read(dir: &Path) -> Result<Option<Self>, LogError> {
        let bytes = match read(&dir.join(PENDING), 8 + DIGEST_LEN + super::aael::MAX_TEXT) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read the pending event")(error)),
        };
        let read = || {
            let (offset, rest) = bytes.split_first_chunk::<8>()?;
            let (value, text) = rest.split_first_chunk::<DIGEST_LEN>()?;
            let text = std::str::from_utf8(text).ok().filter(|text| !text.is_empty())?.to_owned();
            Some(Self { offset: u64::from_be_bytes(*offset), value: *value, text })
        };
        match read() {
            Some(pending) => Ok(Some(pending)),
            None => Self::remove(dir).map(|()| None),
        }
    }

    fn write(&self, dir: &Path) -> Result<(), LogError> {
        let bytes = [&self.offset.to_be_bytes()[..], &self.value, self.text.as_bytes()].concat();
        write_whole(&dir.join(PENDING), &bytes)
    }

    fn remove(dir: &Path) -> Result<(), LogError> {
        std::fs::remove_file(dir.join(PENDING)).map_err(failed("remove the pending event"))
    }
}

fn read(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// Writes a file that is there as a whole or as it was.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), LogError> {
    let beside = path.with_extension("new");
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(failed("write the event log"))
}
