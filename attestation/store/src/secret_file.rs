//! Files that only their owner may read.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use zeroize::Zeroizing;

use crate::StoreError;

/// Most bytes of a secret file.
const MAX_SECRET: u64 = 1 << 20;

/// Reads a file that nobody but its owner may read, at most 1 MiB.
pub fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    let error = |source| StoreError::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(error)?;
    let mode = file.metadata().map_err(error)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StoreError::KeyMode { path: path.to_owned(), mode });
    }
    let mut contents = Zeroizing::new(Vec::new());
    file.take(MAX_SECRET + 1).read_to_end(&mut contents).map_err(error)?;
    if contents.len() as u64 > MAX_SECRET {
        return Err(error(std::io::Error::other("it has more than 1 MiB")));
    }
    Ok(contents)
}

/// Writes a new file of mode 0600; an existing one is an error.
pub fn write_secret(path: &Path, contents: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(contents)?;
    file.sync_all()
}
