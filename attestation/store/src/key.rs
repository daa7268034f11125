//! The key under which values are sealed, and where it comes from.
//!
//! AES-256-GCM with 12 bytes of random nonce. Forms of a sealed value: 1, nonce, ciphertext, tag, with namespace and name as
//! associated data (read only: stores of before there were versions); 2, the same with every column of the row as associated
//! data, so that no edit of a row and no swap of two goes unseen.
//!
//! Limit: random nonces bound the number of writes under one key to about 2^32; [`Store::rekey`](crate::Store::rekey) starts anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, hmac, rand};
use zeroize::Zeroizing;

use crate::StoreError;
use crate::secret_file::{read_secret, write_secret};

/// First byte of a value that was sealed before there were versions.
const NAMED: u8 = 1;
/// First byte of a value that is sealed with its row.
const WITH_ROW: u8 = 2;
/// Environment variable in which systemd names the folder of credentials.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// The key under which values are sealed.
#[derive(Clone)]
pub struct StoreKey {
    aead: Arc<LessSafeKey>,
    /// For what is authenticated and not hidden: backups.
    mac: hmac::Key,
}

impl std::fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreKey(..)")
    }
}

impl StoreKey {
    /// Takes 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        let key = UnboundKey::new(&AES_256_GCM, bytes).map_err(|_| StoreError::KeyForm)?;
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"kata-cc store");
        let mut derived = Zeroizing::new([0; 32]);
        salt.extract(bytes)
            .expand(&[b"backup"], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(derived.as_mut()))
            .map_err(|_| StoreError::KeyForm)?;
        let mac = hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref());
        Ok(Self { aead: Arc::new(LessSafeKey::new(key)), mac })
    }

    /// Reads 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Result<Self, StoreError> {
        let bytes = hex::decode(text.trim()).map(Zeroizing::new);
        Self::from_bytes(&bytes.map_err(|_| StoreError::KeyForm)?)
    }

    /// A key that is forgotten with the process.
    pub fn ephemeral() -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        fill(bytes.as_mut());
        // 32 bytes are always a key.
        Self::from_bytes(bytes.as_ref()).unwrap_or_else(|_| unreachable!())
    }

    /// Reads the key file, or makes it with a new key when it does not exist.
    pub fn from_file(path: &Path) -> Result<Self, StoreError> {
        match Self::from_existing_file(path) {
            Err(StoreError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Self::make_file(path)
            }
            read => read,
        }
    }

    /// Reads the key file, which must exist: 64 hexadecimal digits, mode 0600.
    pub fn from_existing_file(path: &Path) -> Result<Self, StoreError> {
        let text = read_secret(path)?;
        Self::from_hex(std::str::from_utf8(&text).map_err(|_| StoreError::KeyForm)?)
    }

    /// Makes a new key and its file, which must not exist.
    pub fn make_file(path: &Path) -> Result<Self, StoreError> {
        let mut bytes = Zeroizing::new([0; 32]);
        fill(bytes.as_mut());
        let mut text = Zeroizing::new(hex::encode(bytes.as_ref()));
        text.push('\n');
        write_secret(path, text.as_bytes())
            .map_err(|source| StoreError::File { path: path.to_owned(), source })?;
        Self::from_hex(&text)
    }

    /// Seals `plain` with `row` as associated data.
    pub(crate) fn seal(&self, row: &[u8], plain: &[u8]) -> Result<Vec<u8>, StoreError> {
        let mut nonce = [0; NONCE_LEN];
        fill(&mut nonce);
        let mut body = plain.to_vec();
        // Fails only above 64 GiB; what could not be sealed is never stored in clear.
        self.aead
            .seal_in_place_append_tag(Nonce::from(&nonce), Aad::from(row), &mut body)
            .map_err(|_| StoreError::Seal)?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + body.len());
        sealed.push(WITH_ROW);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&body);
        Ok(sealed)
    }

    /// The plain text of what [`seal`](Self::seal) made; `named` is the associated data of the older form, where it is read.
    pub(crate) fn unseal(
        &self,
        row: &[u8],
        named: Option<(&str, &str)>,
        sealed: Vec<u8>,
    ) -> Option<Zeroizing<Vec<u8>>> {
        let mut sealed = Zeroizing::new(sealed);
        let (form, rest) = sealed.split_first_mut()?;
        let (nonce, body) = rest.split_first_chunk_mut::<NONCE_LEN>()?;
        let aad = match (*form, named) {
            (WITH_ROW, _) => row.to_vec(),
            (NAMED, Some((namespace, name))) => format!("kata-cc store\0{namespace}\0{name}").into_bytes(),
            _ => return None,
        };
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self.aead.open_in_place(nonce, Aad::from(aad), body).ok()?;
        Some(Zeroizing::new(plain.to_vec()))
    }

    /// Key of the code that authenticates a backup.
    pub(crate) fn mac(&self) -> &hmac::Key {
        &self.mac
    }
}

/// Associated data: what is sealed, and the columns beside it, each with its length before it.
pub(crate) fn associated(kind: &str, columns: &[&[u8]]) -> Vec<u8> {
    let mut all = format!("kata-cc {kind}\0").into_bytes();
    for column in columns {
        all.extend_from_slice(&(column.len() as u64).to_be_bytes());
        all.extend_from_slice(column);
    }
    all
}

/// Random bytes. The generator of aws-lc does not fail once it is seeded; a process without entropy must not go on.
pub(crate) fn fill(bytes: &mut [u8]) {
    rand::fill(bytes).unwrap_or_else(|_| std::process::abort());
}

/// Unwraps a key that is kept wrapped by something that never gives its own key away, e.g. a PKCS#11 token.
#[async_trait]
pub trait KeyUnwrapper: Send + Sync {
    /// The 32 bytes in `wrapped`. The error is a sentence without any of them.
    async fn unwrap(&self, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, String>;
}

/// Where the store's key is kept.
#[derive(Clone)]
pub enum KeySource {
    /// A file of 64 hexadecimal digits and mode 0600, made at the first start.
    File(PathBuf),
    /// 64 hexadecimal digits, e.g. of an environment variable.
    Hex(Zeroizing<String>),
    /// A systemd credential (`LoadCredential=`, `LoadCredentialEncrypted=`): 64 hexadecimal digits or 32 bytes.
    Credential(String),
    /// A file that holds the key wrapped.
    Wrapped {
        /// The file.
        file: PathBuf,
        /// What unwraps it.
        unwrapper: Arc<dyn KeyUnwrapper>,
    },
}

impl std::fmt::Debug for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Hex(_) => f.write_str("Hex(..)"),
            Self::Credential(name) => f.debug_tuple("Credential").field(name).finish(),
            Self::Wrapped { file, .. } => {
                f.debug_struct("Wrapped").field("file", file).finish_non_exhaustive()
            }
        }
    }
}

impl KeySource {
    /// Gets the key.
    pub async fn load(&self) -> Result<StoreKey, StoreError> {
        match self {
            Self::File(path) => StoreKey::from_file(path),
            Self::Hex(text) => StoreKey::from_hex(text),
            Self::Credential(name) => {
                let folder = std::env::var_os(CREDENTIALS_DIRECTORY);
                credential(folder.as_deref().map(Path::new), name)
            }
            Self::Wrapped { file, unwrapper } => {
                let error = |source| StoreError::File { path: file.clone(), source };
                let wrapped = std::fs::read(file).map_err(error)?;
                let key = unwrapper.unwrap(&wrapped).await;
                let key = key.map_err(|why| {
                    StoreError::KeySource(format!("{} cannot be unwrapped: {why}", file.display()))
                })?;
                StoreKey::from_bytes(&key)
            }
        }
    }
}

/// Reads a credential from the folder that systemd made for the service.
fn credential(folder: Option<&Path>, name: &str) -> Result<StoreKey, StoreError> {
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if !plain || name.starts_with('.') {
        return Err(StoreError::KeySource(format!("{name:?} is no name of a systemd credential")));
    }
    let folder = folder.ok_or_else(|| {
        StoreError::KeySource(format!(
            "{CREDENTIALS_DIRECTORY} is not set: start the service by systemd with LoadCredential={name}:FILE"
        ))
    })?;
    let path = folder.join(name);
    // systemd makes it readable by the service alone, by access lists that a mode does not show.
    let error = |source| StoreError::File { path: path.clone(), source };
    let contents = Zeroizing::new(std::fs::read(&path).map_err(error)?);
    match std::str::from_utf8(&contents) {
        Ok(text) if text.trim().len() == 64 => StoreKey::from_hex(text),
        _ => StoreKey::from_bytes(&contents),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn an_open_key_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.key");
        StoreKey::from_file(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(StoreKey::from_file(&path), Err(StoreError::KeyMode { mode: 0o640, .. })));
        assert!(StoreKey::from_hex("00").is_err());
    }

    #[test]
    fn a_value_opens_only_with_its_key_and_its_row() {
        let (key, row) = (StoreKey::ephemeral(), associated("value", &[b"a", b"bc"]));
        let sealed = key.seal(&row, b"secret").unwrap();
        assert_eq!(key.unseal(&row, None, sealed.clone()).unwrap().as_slice(), b"secret");
        let other_row = associated("value", &[b"ab", b"c"]);
        assert!(key.unseal(&other_row, None, sealed.clone()).is_none());
        assert!(StoreKey::ephemeral().unseal(&row, None, sealed.clone()).is_none());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.unseal(&row, Some(("a", "b")), changed).is_none(), "byte {at}");
        }
        for length in 0..sealed.len() {
            assert!(key.unseal(&row, None, sealed[..length].to_vec()).is_none());
        }
    }

    #[test]
    fn credentials_are_read_in_both_forms_and_others_refused() {
        let folder = tempfile::tempdir().unwrap();
        let row = associated("value", &[]);
        let sealed = StoreKey::from_bytes(&[7; 32]).unwrap().seal(&row, b"x").unwrap();
        std::fs::write(folder.path().join("raw"), [7; 32]).unwrap();
        std::fs::write(folder.path().join("hex"), format!("{}\n", hex::encode([7; 32]))).unwrap();
        std::fs::write(folder.path().join("short"), [7; 31]).unwrap();
        for name in ["raw", "hex"] {
            let key = credential(Some(folder.path()), name).unwrap();
            assert!(key.unseal(&row, None, sealed.clone()).is_some());
        }
        assert!(matches!(credential(Some(folder.path()), "short"), Err(StoreError::KeyForm)));
        for name in ["../raw", "", "..", "a/b"] {
            assert!(matches!(credential(Some(folder.path()), name), Err(StoreError::KeySource(_))), "{name}");
        }
        let error = credential(None, "raw").unwrap_err().to_string();
        assert!(error.contains("LoadCredential=raw"), "{error}");
    }

    struct Xor(u8);

    #[async_trait]
    impl KeyUnwrapper for Xor {
        async fn unwrap(&self, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
            if wrapped.is_empty() {
                return Err("nothing to unwrap".to_owned());
            }
            Ok(Zeroizing::new(wrapped.iter().map(|b| b ^ self.0).collect()))
        }
    }

    #[tokio::test]
    async fn a_wrapped_key_goes_through_its_unwrapper() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("store.key.wrapped");
        std::fs::write(&file, [1; 32]).unwrap();
        let source = KeySource::Wrapped { file: file.clone(), unwrapper: Arc::new(Xor(6)) };
        let row = associated("value", &[]);
        let sealed = StoreKey::from_bytes(&[7; 32]).unwrap().seal(&row, b"x").unwrap();
        assert!(source.load().await.unwrap().unseal(&row, None, sealed).is_some());
        std::fs::write(&file, []).unwrap();
        assert!(source.load().await.unwrap_err().to_string().contains("nothing to unwrap"));
        assert!(!format!("{:?}", KeySource::Hex("ab".repeat(32).into())).contains("abab"));
    }
}
