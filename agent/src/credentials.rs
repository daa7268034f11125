//! `[[credentials]]` of `cdh.toml`: files that the guest fetches from its key broker when it starts.
//!
//! As in CoCo's confidential data hub they may lie below its own folder only. They are the guest's, not a container's: keys of those
//! who sign sealed secrets (`sealed-secret/NAME`) are the use. One that is not had ends the guest: what comes after relies on it.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use kata_cc_image::SecretSource;
use kata_cc_kbs_protocol::ResourceUri;
use serde::Deserialize;
use thiserror::Error;
use tracing::info;

/// The data hub's folder, CoCo's `KBS_RESOURCE_STORAGE_DIR`.
pub(crate) const FOLDER: &str = "/run/confidential-containers/cdh";
/// Most files.
const MAX_FILES: usize = 64;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Credential {
    /// Where it goes.
    path: String,
    /// What goes there: `kbs:///repository/type/tag`.
    resource_uri: String,
}

/// Why the guest has not its credentials.
#[derive(Debug, Error)]
pub(crate) enum CredentialError {
    /// Too many.
    #[error("[[credentials]] of cdh.toml has {0} entries, {MAX_FILES} at most")]
    TooMany(usize),
    /// A path outside of the folder, or spelled in a way that could lead there.
    #[error("[[credentials]] path {0:?} must be below {base} and have no `.`, `..` or doubled `/`", base = FOLDER)]
    Path(String),
    /// A path twice, or one that is a folder of another.
    #[error("[[credentials]] path {0:?} stands there twice, or is a folder of another")]
    Twice(String),
    /// Not the name of a resource.
    #[error("[[credentials]] resource_uri {uri:?}: {why}")]
    Uri {
        /// What stands there.
        uri: String,
        /// What is wrong.
        why: String,
    },
    /// There is nobody to ask.
    #[error("[[credentials]] of cdh.toml cannot be fetched: the init-data names no key broker")]
    NoBroker,
    /// The key broker did not give it.
    #[error("[[credentials]] {uri} for {path}: {why}")]
    Refused {
        /// Where it was to go.
        path: String,
        /// The resource.
        uri: String,
        /// What the key broker says.
        why: String,
    },
    /// The file cannot be written.
    #[error("[[credentials]] {path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// Fetches all into the data hub's folder.
pub(crate) async fn fetch<S: SecretSource>(
    credentials: &[Credential],
    broker: Option<&S>,
) -> Result<(), CredentialError> {
    fetch_below(Path::new("/"), credentials, broker).await
}

/// As [`fetch`], with another root folder in place of `/`.
async fn fetch_below<S: SecretSource>(
    root: &Path,
    credentials: &[Credential],
    broker: Option<&S>,
) -> Result<(), CredentialError> {
    // All are looked at before the first is asked for.
    let places = check(credentials)?;
    if credentials.is_empty() {
        return Ok(());
    }
    let broker = broker.ok_or(CredentialError::NoBroker)?;
    for (Credential { path, resource_uri: uri }, place) in credentials.iter().zip(places) {
        let contents = broker.get(uri).await.map_err(|error| CredentialError::Refused {
            path: path.clone(),
            uri: uri.clone(),
            why: error.to_string(),
        })?;
        let place = root.join(place.strip_prefix("/").unwrap_or(&place));
        let written = write(&place, &contents);
        written.map_err(|source| CredentialError::Io { path: path.clone(), source })?;
        info!(path, uri, "credential fetched");
    }
    Ok(())
}

fn check(credentials: &[Credential]) -> Result<Vec<PathBuf>, CredentialError> {
    if credentials.len() > MAX_FILES {
        return Err(CredentialError::TooMany(credentials.len()));
    }
    let mut places = BTreeSet::new();
    for Credential { path, resource_uri: uri } in credentials {
        if !is_inside(path) {
            return Err(CredentialError::Path(path.chars().take(200).collect()));
        }
        let name = uri.parse::<ResourceUri>();
        name.map_err(|why| CredentialError::Uri {
            uri: uri.chars().take(200).collect(),
            why: why.to_string(),
        })?;
        let place = PathBuf::from(path);
        let nested = places.iter().any(|p: &PathBuf| p.starts_with(&place) || place.starts_with(p));
        if nested || !places.insert(place) {
            return Err(CredentialError::Twice(path.clone()));
        }
    }
    Ok(credentials.iter().map(|c| PathBuf::from(&c.path)).collect())
}

/// By the text: a `Path` hides a `.` and a doubled `/`, and one path shall have one spelling.
fn is_inside(path: &str) -> bool {
    let below = path.strip_prefix(FOLDER).and_then(|rest| rest.strip_prefix('/'));
    below.is_some_and(|rest| {
        !rest.contains('\0') && rest.split('/').all(|part| !matches!(part, "" | "." | ".."))
    })
}

fn write(path: &Path, contents: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(contents)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use zeroize::Zeroizing;

    use super::*;

    struct Fake;

    #[async_trait::async_trait]
    impl SecretSource for Fake {
        async fn get(
            &self,
            uri: &str,
        ) -> Result<Zeroizing<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> {
            match uri {
                "kbs:///default/signing/owner" => Ok(Zeroizing::new(b"jwk".to_vec())),
                other => Err(format!("key broker has no {other}").into()),
            }
        }
    }

    fn entry(path: &str, uri: &str) -> Credential {
        Credential { path: path.to_owned(), resource_uri: uri.to_owned() }
    }

    fn below(name: &str) -> String {
        format!("{FOLDER}/{name}")
    }

    const OWNER: &str = "kbs:///default/signing/owner";

    #[tokio::test]
    async fn files_are_fetched_for_the_guest_alone() {
        let root = std::env::temp_dir().join(format!("kata-cc-credentials-{}", std::process::id()));
        let wanted = [entry(&below("sealed-secret/owner"), OWNER)];
        fetch_below(&root, &wanted, Some(&Fake)).await.unwrap();
        let file = root.join(below("sealed-secret/owner").trim_start_matches('/'));
        assert_eq!(std::fs::read(&file).unwrap(), b"jwk");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        // What is there already is not overwritten.
        assert!(matches!(
            fetch_below(&root, &wanted, Some(&Fake)).await.unwrap_err(),
            CredentialError::Io { .. }
        ));
        let missing = [entry(&below("kbs/other"), "kbs:///default/signing/other")];
        let refused = fetch_below(&root, &missing, Some(&Fake)).await.unwrap_err().to_string();
        assert!(refused.contains("kbs/other") && refused.contains("has no kbs:///default"), "{refused}");
        std::fs::remove_dir_all(&root).unwrap();
        fetch_below::<Fake>(&root, &[], None).await.unwrap();
        let nobody = fetch_below::<Fake>(&root, &wanted, None).await.unwrap_err();
        assert!(matches!(nobody, CredentialError::NoBroker), "{nobody}");
        assert!(!root.exists());
    }

    #[test]
    fn paths_and_names_are_checked_before_anything_is_asked_for() {
        for path in [
            "/etc/passwd",
            FOLDER,
            "/run/confidential-containers/cdh-other/x",
            &below("../cdh.sock"),
            &below("a/./b"),
            &below("a//b"),
            &below("a/"),
            "relative",
            "",
        ] {
            let refused = check(&[entry(path, OWNER)]).unwrap_err();
            assert!(matches!(refused, CredentialError::Path(_)), "{path}: {refused}");
        }
        for uri in ["", "kbs:///a/b", "https://x/a/b/c", "default/signing/owner"] {
            let refused = check(&[entry(&below("a"), uri)]).unwrap_err();
            assert!(matches!(refused, CredentialError::Uri { .. }), "{uri}: {refused}");
        }
        let twice = [entry(&below("a/b"), OWNER), entry(&below("a"), OWNER)];
        assert!(matches!(check(&twice).unwrap_err(), CredentialError::Twice(_)));
        let many = vec![entry(&below("a"), OWNER); MAX_FILES + 1];
        assert!(matches!(check(&many).unwrap_err(), CredentialError::TooMany(65)));
    }

    #[test]
    fn cocos_table_is_read() {
        #[derive(Deserialize)]
        struct File {
            credentials: Vec<Credential>,
        }
        let text = format!("[[credentials]]\npath = '{}'\nresource_uri = '{OWNER}'", below("kbs/x"));
        let file: File = toml::from_str(&text).unwrap();
        assert_eq!(file.credentials, [entry(&below("kbs/x"), OWNER)]);
    }
}
