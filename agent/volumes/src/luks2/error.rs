//! Why a LUKS2 volume is not opened or made.

use std::io;

use thiserror::Error;

/// What is wrong with one copy of a header.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum HeaderFault {
    /// The device ends before it.
    #[error("the device ends before it")]
    Short,
    /// No magic bytes.
    #[error("no LUKS2 magic bytes")]
    Magic,
    /// Another version of LUKS.
    #[error("version {0}, only 2 is read (convert a LUKS1 volume: `cryptsetup convert --type luks2`)")]
    Version(u16),
    /// A size that the format does not have.
    #[error("header size {0}, the format has 16 KiB to 4 MiB in powers of two")]
    Size(u64),
    /// It says that it lies somewhere else.
    #[error("it says that it lies at {seen}, and lies at {at}")]
    Place {
        /// What it says.
        seen: u64,
        /// Where it lies.
        at: u64,
    },
    /// A checksum of another kind.
    #[error("checksum algorithm {0:?}, only sha256 is read")]
    ChecksumKind(String),
    /// The checksum is wrong.
    #[error("the checksum does not match")]
    Checksum,
    /// No JSON in the JSON area.
    #[error("its JSON area holds no JSON object: {0}")]
    Json(String),
}

/// Why a volume is not opened or made.
#[derive(Debug, Error)]
pub enum Luks2Error {
    /// The device failed.
    #[error("{doing} the device failed: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Neither copy of the header can be used.
    #[error("no usable LUKS2 header: first copy: {first}; second copy: {second}")]
    NoHeader {
        /// What is wrong with the first.
        first: HeaderFault,
        /// What is wrong with the second.
        second: HeaderFault,
    },
    /// A member of the metadata is missing or of the wrong type.
    #[error("LUKS2 metadata: {place} is out of form: {why}")]
    Form {
        /// Which member.
        place: String,
        /// What the parser says.
        why: String,
    },
    /// A member of the metadata has a value that is not taken.
    #[error("LUKS2 metadata: {place} is {seen}: {allowed}")]
    Refused {
        /// Which member.
        place: String,
        /// What it holds, cut.
        seen: String,
        /// What is taken.
        allowed: &'static str,
    },
    /// A keyslot asks for more than the guest is willing to spend on it.
    #[error(
        "LUKS2 keyslot {keyslot} wants {wanted} {unit}, of which {left} are allowed: make one that wants less (`cryptsetup luksConvertKey --pbkdf-memory … --pbkdf-force-iterations …`), or give the guest more memory"
    )]
    TooCostly {
        /// Which.
        keyslot: String,
        /// How much it wants.
        wanted: u64,
        /// Of what.
        unit: &'static str,
        /// What is left of the limit.
        left: u64,
    },
    /// No keyslot can be tried.
    #[error("LUKS2 volume {uuid} has no keyslot for its data: it was erased")]
    NoKeyslot {
        /// Which volume.
        uuid: String,
    },
    /// The key is none of this volume's.
    #[error(
        "no keyslot matches: the key opens none of the {tried} keyslots of LUKS2 volume {uuid} (a line feed at the end of a key counts; `cryptsetup luksOpen --test-passphrase --key-file FILE DEVICE` tells)"
    )]
    NoMatch {
        /// Which volume.
        uuid: String,
        /// How many were tried.
        tried: usize,
    },
    /// No key, or too long a one.
    #[error("a key of {0} bytes: LUKS2 takes 1 to 8388608")]
    KeyLength(usize),
    /// The device is too small to be made into a volume.
    #[error("the device has {seen} bytes, a LUKS2 volume needs {wanted} at least")]
    TooSmall {
        /// Its size.
        seen: u64,
        /// What is needed.
        wanted: u64,
    },
    /// A computation failed.
    #[error("{0} failed")]
    Crypto(&'static str),
}

impl Luks2Error {
    /// For `map_err` of device operations.
    pub(crate) fn io(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    pub(crate) fn refused(place: impl Into<String>, seen: impl ToString, allowed: &'static str) -> Self {
        // Written by others: cut, and shown escaped.
        let seen = seen.to_string().chars().take(64).flat_map(char::escape_debug).collect();
        Self::Refused { place: place.into(), seen, allowed }
    }
}
