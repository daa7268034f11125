//! The file behind a device, which may come and go while the guest runs.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::SECTOR;
use crate::interrupt::Notifier;

/// Why a file could not be put into a slot.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// There is a file already.
    #[error("block slot {0} has a file already; detach it first")]
    Occupied(String),
    /// There is nothing to detach.
    #[error("block slot {0} is empty")]
    Empty(String),
    /// The file holds no whole sector.
    #[error("file for block slot {slot} has {bytes} bytes, less than one sector of 512")]
    TooSmall {
        /// The slot's id.
        slot: String,
        /// Size of the file.
        bytes: u64,
    },
    /// The size of the file cannot be told.
    #[error("size of the file for block slot {slot} cannot be read: {source}")]
    Size {
        /// The slot's id.
        slot: String,
        /// What the system said.
        source: io::Error,
    },
}

pub(super) struct Backing {
    pub(super) file: File,
    pub(super) sectors: u64,
}

#[derive(Default)]
pub(super) struct Contents {
    pub(super) backing: Option<Backing>,
    /// Moves with the capacity, under the same lock: a driver that reads the capacity in two halves and the generation
    /// around them cannot see a mixture.
    pub(super) generation: u32,
}

impl Contents {
    pub(super) fn sectors(&self) -> u64 {
        self.backing.as_ref().map_or(0, |backing| backing.sectors)
    }
}

/// Attaches and detaches the file of a [`Block`](super::Block) from any thread.
#[derive(Clone)]
pub struct Slot {
    pub(super) id: Arc<str>,
    contents: Arc<Mutex<Contents>>,
    notifier: Arc<OnceLock<Arc<Notifier>>>,
}

impl Slot {
    pub(super) fn new(id: &str) -> Self {
        Self { id: id.into(), contents: Arc::default(), notifier: Arc::default() }
    }

    /// The slot's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Puts a file, opened as the device is (read-only or read-write), into the empty slot.
    pub fn attach(&self, mut file: File) -> Result<(), SlotError> {
        let slot = || self.id.to_string();
        // Not the metadata: a block device has a length of zero there.
        let bytes = file.seek(SeekFrom::End(0)).map_err(|source| SlotError::Size { slot: slot(), source })?;
        let sectors = bytes / SECTOR;
        if sectors == 0 {
            return Err(SlotError::TooSmall { slot: slot(), bytes });
        }
        if !bytes.is_multiple_of(SECTOR) {
            tracing::warn!(slot = %self.id, bytes, "size is no multiple of 512; the guest does not see the rest");
        }
        let mut contents = self.lock();
        if contents.backing.is_some() {
            return Err(SlotError::Occupied(slot()));
        }
        contents.backing = Some(Backing { file, sectors });
        self.changed(contents);
        Ok(())
    }

    /// Empties the slot and gives the file back; what the guest asks for afterwards fails.
    pub fn detach(&self) -> Result<File, SlotError> {
        let mut contents = self.lock();
        let backing = contents.backing.take().ok_or_else(|| SlotError::Empty(self.id.to_string()))?;
        self.changed(contents);
        Ok(backing.file)
    }

    /// Capacity in sectors of 512 bytes; 0 when empty.
    pub fn sectors(&self) -> u64 {
        self.lock().sectors()
    }

    pub(super) fn bind(&self, notifier: Arc<Notifier>) {
        let _ = self.notifier.set(notifier);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, mut contents: MutexGuard<'_, Contents>) {
        contents.generation = contents.generation.wrapping_add(1);
        drop(contents);
        if let Some(notifier) = self.notifier.get() {
            notifier.config_changed();
        }
    }
}
