//! Sealed secrets in what a container is made of: environment values and files that begin with `sealed.`.
//!
//! In a confidential guest alone, and after the policy has been asked: it sees the sealed text, as the host does. A file is not
//! opened in its place, where the host copied it to and may copy again: the whole mount is copied into the container's
//! bundle (memory of the guest), with the opened secrets in it. What the host changes afterwards the container does not see. A
//! secret that does not open is an error of the container, which names it and the reason.

use std::fs;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kata_cc_agent_protocol::oci;
use kata_cc_guest_api::GuestApi;
use kata_cc_guest_api::sealed::{MAX_SEALED, PREFIX, SealedError};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use thiserror::Error;
use tracing::{debug, info};

/// Most files and folders of a mount that are looked at.
const MAX_ENTRIES: usize = 4096;
/// Deepest folder that is looked at.
const MAX_DEPTH: usize = 8;
/// Most bytes of a mount that is copied.
const MAX_BYTES: u64 = 64 << 20;
/// Most sealed secrets of a container.
const MAX_SECRETS: usize = 256;

/// Why a container does not get its secrets. Never what is in one.
#[derive(Debug, Error)]
pub(crate) enum UnsealError {
    /// A secret does not open.
    #[error("{place}: {source}")]
    Sealed {
        /// Where it stands.
        place: String,
        /// Why not.
        source: SealedError,
    },
    /// An environment value cannot hold these bytes.
    #[error("{0}: the opened secret is no text without zero bytes, as environment values must be")]
    NotText(String),
    /// A limit.
    #[error("{place} has more than {most} {what}: sealed secrets in it are not opened")]
    TooMuch {
        /// Where.
        place: String,
        /// Limit.
        most: u64,
        /// Of what.
        what: &'static str,
    },
    /// A file cannot be read or written.
    #[error("{place}: {source}")]
    Io {
        /// Which.
        place: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> UnsealError {
    let place = path.display().to_string();
    move |source| UnsealError::Io { place, source }
}

/// Opens sealed secrets; in a guest that is not confidential there is nothing to open them with, and they stay as they are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unsealer(pub(crate) Option<Arc<GuestApi>>);

impl Unsealer {
    /// Opens what is sealed among `NAME=value` entries.
    pub(crate) async fn environment(&self, entries: &mut [String]) -> Result<(), UnsealError> {
        let Some(api) = &self.0 else { return Ok(()) };
        let sealed = |entry: &String| entry.split_once('=').is_some_and(|(_, v)| v.starts_with(PREFIX));
        let places = || "the environment".to_owned();
        if entries.iter().filter(|entry| sealed(entry)).count() > MAX_SECRETS {
            let (most, what) = (MAX_SECRETS as u64, "sealed secrets");
            return Err(UnsealError::TooMuch { place: places(), most, what });
        }
        for entry in entries.iter_mut().filter(|entry| sealed(entry)) {
            let Some((name, value)) = entry.split_once('=') else { continue };
            let place = format!("environment variable {}", name.chars().take(100).collect::<String>());
            let opened = api
                .unseal_for_agent(value.as_bytes())
                .await
                .map_err(|source| UnsealError::Sealed { place: place.clone(), source })?;
            let text = std::str::from_utf8(&opened).ok().filter(|text| !text.contains('\0'));
            let text = text.ok_or_else(|| UnsealError::NotText(place.clone()))?;
            *entry = format!("{name}={text}");
            info!(place, "sealed secret opened");
        }
        Ok(())
    }

    /// Gives mounts whose source is below `shared`, and holds sealed secrets, a copy below `bundle` in which they are open.
    pub(crate) async fn mounts(
        &self,
        shared: &Path,
        bundle: &Path,
        mounts: &mut [oci::Mount],
    ) -> Result<(), UnsealError> {
        let Some(api) = &self.0 else { return Ok(()) };
        for (index, mount) in mounts.iter_mut().enumerate() {
            let source = PathBuf::from(&mount.source);
            let upwards = source.components().any(|c| matches!(c, std::path::Component::ParentDir));
            let below = source.strip_prefix(shared).ok().filter(|p| !upwards && !p.as_os_str().is_empty());
            let Some(below) = below.map(Path::to_owned) else { continue };
            let Some(tree) = Tree::look(&source)? else { continue };
            let copy = bundle.join("unsealed").join(index.to_string());
            fs::create_dir_all(bundle.join("unsealed")).map_err(io(&copy))?;
            let from = Place { shared: fs::File::open(shared).map_err(io(shared))?.into(), below };
            if let Err(error) = tree.copy(&from, &source, &copy, api, &mount.destination).await {
                // What was opened until then has no owner.
                let _ = fs::remove_dir_all(bundle.join("unsealed"));
                return Err(error);
            }
            mount.source = copy.display().to_string();
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Folder,
    Link,
    Plain,
    Sealed,
}

/// What is in a mount: paths from its root, folders before what they hold.
#[derive(Debug)]
struct Tree(Vec<(PathBuf, Kind)>);

impl Tree {
    /// Looks for sealed files; `None` where there are none. Links are not followed.
    fn look(source: &Path) -> Result<Option<Self>, UnsealError> {
        let mut found = Vec::new();
        let mut open = vec![(PathBuf::new(), 0)];
        let (mut bytes, mut sealed) = (0_u64, 0);
        while let Some((path, depth)) = open.pop() {
            let whole = joined(source, &path);
            let metadata = fs::symlink_metadata(&whole).map_err(io(&whole))?;
            let kind = if metadata.is_dir() {
                if depth < MAX_DEPTH {
                    for entry in fs::read_dir(&whole).map_err(io(&whole))? {
                        open.push((path.join(entry.map_err(io(&whole))?.file_name()), depth + 1));
                    }
                }
                Kind::Folder
            } else if metadata.is_symlink() {
                Kind::Link
            } else if metadata.is_file() {
                bytes = bytes.saturating_add(metadata.len());
                match begins_sealed(&whole).map_err(io(&whole))? {
                    true => Kind::Sealed,
                    false => Kind::Plain,
                }
            } else {
                // Devices, pipes and sockets cannot be copied: what holds them is no secret of Kubernetes.
                return Ok(None);
            };
            sealed += usize::from(kind == Kind::Sealed);
            found.push((path, kind));
            if found.len() + open.len() > MAX_ENTRIES {
                debug!(source = %source.display(), "mount is too large to be looked through for sealed secrets");
                break;
            }
        }
        let too_much =
            |most, what| Err(UnsealError::TooMuch { place: source.display().to_string(), most, what });
        match sealed {
            0 => Ok(None),
            _ if found.len() + open.len() > MAX_ENTRIES => too_much(MAX_ENTRIES as u64, "files"),
            _ if bytes > MAX_BYTES => too_much(MAX_BYTES, "bytes"),
            _ if sealed > MAX_SECRETS => too_much(MAX_SECRETS as u64, "sealed secrets"),
            _ => Ok(Some(Self(found))),
        }
    }

    async fn copy(
        &self,
        from: &Place,
        source: &Path,
        copy: &Path,
        api: &GuestApi,
        inside: &str,
    ) -> Result<(), UnsealError> {
        for (path, kind) in &self.0 {
            let (place, to) = (joined(source, path), joined(copy, path));
            let metadata = match kind {
                Kind::Link => {
                    let target = fs::read_link(&place).map_err(io(&place))?;
                    std::os::unix::fs::symlink(target, &to).map_err(io(&to))?;
                    continue;
                }
                Kind::Folder => {
                    fs::create_dir(&to).map_err(io(&to))?;
                    from.open(path, OFlag::O_DIRECTORY).and_then(|f| f.metadata()).map_err(io(&place))?
                }
                Kind::Plain => {
                    let file = from.open(path, OFlag::empty()).map_err(io(&place))?;
                    let metadata = file.metadata().map_err(io(&place))?;
                    let mut copied = write_new(&to, b"").map_err(io(&to))?;
                    std::io::copy(&mut file.take(MAX_BYTES), &mut copied).map_err(io(&to))?;
                    metadata
                }
                Kind::Sealed => {
                    let file = from.open(path, OFlag::empty()).map_err(io(&place))?;
                    let metadata = file.metadata().map_err(io(&place))?;
                    let shown = joined(Path::new(inside), path).display().to_string();
                    let mut text = Vec::new();
                    // One byte more than the limit, so that the parser sees that it is too long.
                    file.take(MAX_SEALED as u64 + 1).read_to_end(&mut text).map_err(io(&place))?;
                    let opened = api
                        .unseal_for_agent(&text)
                        .await
                        .map_err(|source| UnsealError::Sealed { place: format!("file {shown}"), source })?;
                    write_new(&to, &opened).map_err(io(&to))?;
                    info!(place = shown, "sealed secret opened");
                    metadata
                }
            };
            std::os::unix::fs::lchown(&to, Some(metadata.uid()), Some(metadata.gid())).map_err(io(&to))?;
            let mode = fs::Permissions::from_mode(metadata.mode() & 0o7777);
            fs::set_permissions(&to, mode).map_err(io(&to))?;
        }
        Ok(())
    }
}

/// `path` below `root`; the root itself has an empty path, and must not get a slash at its end.
fn joined(root: &Path, path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { root.to_owned() } else { root.join(path) }
}

/// Where a mount lies. Another container may be able to write there while it is copied: what is opened is found by the kernel
/// below the shared folder, and through no link.
struct Place {
    shared: OwnedFd,
    below: PathBuf,
}

impl Place {
    fn open(&self, path: &Path, flags: OFlag) -> std::io::Result<fs::File> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        Ok(openat2(&self.shared, &joined(&self.below, path), how)?.into())
    }
}

fn no_links(path: &Path) -> std::io::Result<fs::File> {
    fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

fn begins_sealed(path: &Path) -> std::io::Result<bool> {
    let mut start = Vec::new();
    no_links(path)?.take(PREFIX.len() as u64).read_to_end(&mut start)?;
    Ok(start == PREFIX.as_bytes())
}

fn write_new(path: &Path, contents: &[u8]) -> std::io::Result<fs::File> {
    use std::io::Write as _;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(contents)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use kata_cc_attester::measure::Event;
    use kata_cc_guest_api::sealed::{Payload, SigningKey};
    use kata_cc_guest_api::{Guest, GuestError, Measured, Settings, Token};
    use kata_cc_kbs_protocol::ResourcePath;
    use serde_json::Value;
    use zeroize::Zeroizing;

    use super::*;

    /// A guest whose key broker has two secrets.
    struct Fake;

    #[async_trait::async_trait]
    impl Guest for Fake {
        fn tee(&self) -> &'static str {
            "sim-snp"
        }
        async fn evidence(&self, _: [u8; 64]) -> Result<Value, GuestError> {
            Err(GuestError::NotSetUp("test"))
        }
        async fn token(&self) -> Result<Token, GuestError> {
            Err(GuestError::NotSetUp("test"))
        }
        async fn resource(&self, path: &ResourcePath) -> Result<Zeroizing<Vec<u8>>, GuestError> {
            match path.to_string().as_str() {
                "app/password/1" => Ok(Zeroizing::new(b"hunter2".to_vec())),
                "app/binary/1" => Ok(Zeroizing::new(vec![0, 255])),
                other => Err(GuestError::Failed(format!("denied {other}"))),
            }
        }
        async fn record(&self, _: &Event) -> Result<Measured, GuestError> {
            Ok(Measured::NotEnabled)
        }
    }

    struct World {
        dir: PathBuf,
        key: SigningKey,
        unsealer: Unsealer,
    }

    impl Drop for World {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }

    fn world(name: &str) -> World {
        let dir = std::env::temp_dir().join(format!("kata-cc-unseal-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        for folder in ["shared", "bundle", "keys"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        let key = SigningKey::generate().unwrap();
        fs::write(dir.join("keys/owner"), key.to_jwks("owner").unwrap().1).unwrap();
        let api = GuestApi::new(Arc::new(Fake), Settings::new(dir.join("keys")));
        World { dir, key, unsealer: Unsealer(Some(Arc::new(api))) }
    }

    impl World {
        fn sealed(&self, uri: &str) -> String {
            Payload::vault(&uri.parse().unwrap()).seal("owner", &self.key).unwrap()
        }
    }

    #[tokio::test]
    async fn environment_values_are_opened() {
        let world = world("env");
        let sealed = world.sealed("kbs:///app/password/1");
        let mut env = vec!["A=1".to_owned(), format!("PASSWORD={sealed}"), format!("NOTE=not {sealed}")];
        let before = env.clone();
        Unsealer::default().environment(&mut env).await.unwrap();
        assert_eq!(env, before, "a plain guest leaves them");
        world.unsealer.environment(&mut env).await.unwrap();
        assert_eq!(env[1], "PASSWORD=hunter2");
        assert_eq!((&env[0], &env[2]), (&before[0], &before[2]));
    }

    #[tokio::test]
    async fn a_secret_that_does_not_open_names_itself_and_the_reason() {
        let world = world("refused");
        let other = SigningKey::generate().unwrap();
        let forged = Payload::vault(&"kbs:///app/password/1".parse().unwrap()).seal("owner", &other).unwrap();
        for (value, reason) in [
            (forged, "signature does not verify"),
            (world.sealed("kbs:///app/other/1"), "denied app/other/1"),
            ("sealed.fakejwsheader.e30.fakesignature".to_owned(), "not signed"),
            (world.sealed("kbs:///app/binary/1"), "no text"),
        ] {
            let mut env = vec![format!("PASSWORD={value}")];
            let refused = world.unsealer.environment(&mut env).await.unwrap_err().to_string();
            assert!(refused.contains("variable PASSWORD") && refused.contains(reason), "{refused}");
            assert!(!refused.contains("hunter2") && !refused.contains(&value[7..]), "{refused}");
        }
    }

    fn mount(source: &Path) -> oci::Mount {
        let mut mount = oci::Mount::new();
        mount.source = source.display().to_string();
        mount.destination = "/etc/app".to_owned();
        mount.type_ = "bind".to_owned();
        mount
    }

    #[tokio::test]
    async fn files_are_opened_in_a_copy_of_their_mount() {
        let world = world("files");
        let (shared, bundle) = (world.dir.join("shared"), world.dir.join("bundle"));
        let volume = shared.join("c1-secret");
        // As the kubelet lays a secret out.
        fs::create_dir_all(volume.join("..2026_1")).unwrap();
        let sealed = format!("{}\n", world.sealed("kbs:///app/password/1"));
        fs::write(volume.join("..2026_1/password"), &sealed).unwrap();
        fs::write(volume.join("..2026_1/user"), "app").unwrap();
        fs::set_permissions(volume.join("..2026_1/password"), fs::Permissions::from_mode(0o440)).unwrap();
        std::os::unix::fs::symlink("..2026_1", volume.join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/password", volume.join("password")).unwrap();
        let plain = shared.join("c1-hosts");
        fs::write(&plain, "127.0.0.1 localhost").unwrap();
        let outside = world.dir.join("outside");
        fs::write(&outside, &sealed).unwrap();
        let single = shared.join("c1-single");
        fs::write(&single, &sealed).unwrap();
        let mut mounts = [
            mount(&volume),
            mount(&plain),
            mount(&outside),
            mount(&shared.join("../outside")),
            mount(&single),
        ];
        world.unsealer.mounts(&shared, &bundle, &mut mounts).await.unwrap();
        let copy = PathBuf::from(&mounts[0].source);
        assert!(copy.starts_with(&bundle));
        assert_eq!(fs::read(copy.join("password")).unwrap(), b"hunter2");
        assert_eq!(fs::read(copy.join("..2026_1/user")).unwrap(), b"app");
        assert_eq!(fs::metadata(copy.join("password")).unwrap().mode() & 0o777, 0o440);
        assert_eq!(mounts[1].source, plain.display().to_string(), "nothing sealed in it");
        assert_eq!(mounts[2].source, outside.display().to_string(), "not of the host's copies");
        assert!(mounts[3].source.ends_with("../outside"));
        assert_eq!(fs::read(&mounts[4].source).unwrap(), b"hunter2");
        // The host's copy stays as it was.
        assert_eq!(fs::read_to_string(volume.join("password")).unwrap(), sealed);
    }

    #[tokio::test]
    async fn a_link_put_in_a_files_or_folders_place_is_not_followed() {
        let world = world("links");
        let (shared, bundle) = (world.dir.join("shared"), world.dir.join("bundle"));
        let outside = world.dir.join("outside");
        fs::create_dir_all(outside.join("folder")).unwrap();
        fs::write(outside.join("folder/file"), "the guest's own").unwrap();
        fs::create_dir_all(shared.join("v")).unwrap();
        std::os::unix::fs::symlink(outside.join("folder"), shared.join("v/folder")).unwrap();
        std::os::unix::fs::symlink(outside.join("folder/file"), shared.join("v/file")).unwrap();
        let Unsealer(Some(api)) = &world.unsealer else { panic!("no api") };
        let from = Place { shared: fs::File::open(&shared).unwrap().into(), below: "v".into() };
        // As they were looked at before another container put links there.
        for path in ["file", "folder/file"] {
            let tree = Tree(vec![(PathBuf::new(), Kind::Folder), (path.into(), Kind::Plain)]);
            let copy = bundle.join(path.replace('/', "-"));
            let refused = tree.copy(&from, &shared.join("v"), &copy, api, "/etc/app").await.unwrap_err();
            assert!(matches!(refused, UnsealError::Io { .. }), "{refused}");
            assert!(!copy.join("file").exists());
        }
    }

    #[tokio::test]
    async fn a_file_that_does_not_open_fails_the_container() {
        let world = world("badfile");
        let (shared, bundle) = (world.dir.join("shared"), world.dir.join("bundle"));
        fs::create_dir(shared.join("v")).unwrap();
        fs::write(shared.join("v/token"), world.sealed("kbs:///app/other/1")).unwrap();
        let mut mounts = [mount(&shared.join("v"))];
        let refused = world.unsealer.mounts(&shared, &bundle, &mut mounts).await.unwrap_err().to_string();
        assert!(refused.contains("/etc/app/token") && refused.contains("denied"), "{refused}");
        assert!(!bundle.join("unsealed").exists(), "nothing that was opened stays");
        fs::write(shared.join("v/token"), format!("sealed.{}", "x".repeat(MAX_SEALED))).unwrap();
        let refused = world.unsealer.mounts(&shared, &bundle, &mut mounts).await.unwrap_err().to_string();
        assert!(refused.contains("bytes"), "{refused}");
    }
}
