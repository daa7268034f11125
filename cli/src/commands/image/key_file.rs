//! Files with the keys that wrap layer keys: 32 bytes.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use crate::commands::read_input;

const KEY_LEN: usize = 32;

/// The key of a file.
pub(super) fn read(file: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let key = read_input(Some(file), KEY_LEN as u64)
        .with_context(|| format!("{} is no key of {KEY_LEN} bytes", file.display()))?;
    anyhow::ensure!(key.len() == KEY_LEN, "{} has {} bytes, a key has {KEY_LEN}", file.display(), key.len());
    Ok(key)
}

/// The key of a file; made, for its owner only, when it is not there. Gives whether it is new.
pub(super) fn read_or_make(file: &Path) -> anyhow::Result<(Zeroizing<Vec<u8>>, bool)> {
    if file.exists() {
        return Ok((read(file)?, false));
    }
    let mut key = Zeroizing::new(vec![0; KEY_LEN]);
    SystemRandom::new().fill(&mut key).map_err(|_| anyhow::anyhow!("there is no randomness to be had"))?;
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    made.and_then(|mut made| made.write_all(&key))
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok((key, true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        assert!(read(&file).is_err());
        let (first, new) = read_or_make(&file).unwrap();
        assert!(new && first.len() == KEY_LEN);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_or_make(&file).unwrap(), (first, false));
        for length in [0, 31, 33, 64] {
            std::fs::write(&file, vec![1; length]).unwrap();
            assert!(read_or_make(&file).is_err(), "{length}");
        }
    }
}
