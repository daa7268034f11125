//! What is kept of containers between verbs: a folder each below the root (`--root`), with `state.json`, a copy of `config.json`,
//! and for the one whose sandbox it is the sentry's sockets and log.
//!
//! The folder is the claim on the id: made first, removed last. Verbs that change something hold its lock; the file is replaced in one step, so
//! readers need none. A folder without a state and without a holder of its lock is left of a `create` that was killed: the next one takes it over.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cgroup::Groups;
use crate::error::{OciError, io};
use crate::process::Known;

const STATE: &str = "state.json";
const LOCK: &str = "lock";
/// Copy of the bundle's file: hooks after the end and defaults of `exec` are those of the beginning.
pub const CONFIG: &str = "config.json";
/// More than any state is.
const MOST: u64 = 4 << 20;

/// What a container is, in the words of the runtime specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` is at work, or was killed.
    Creating,
    /// It waits for `start`.
    Created,
    /// Its first process runs.
    Running,
    /// It is frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// What is kept of a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Its id.
    pub id: String,
    /// The container whose sandbox it is in: itself, or the first one of its pod.
    pub sandbox: String,
    /// Absolute path of its bundle.
    pub bundle: PathBuf,
    /// Absolute path of its root file system.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339.
    pub created: String,
    /// What the bundle says.
    pub annotations: BTreeMap<String, String>,
    /// Process of the host that stands for its first process.
    pub process: Known,
    /// Whether `create` has not done its work.
    pub creating: bool,
    /// Whether `start` was called.
    pub started: bool,
    /// Whether it is frozen.
    pub paused: bool,
    /// Its control groups.
    pub groups: Option<Groups>,
}

/// What `state` and `list` print, and hooks get.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    /// Version of the specification.
    #[serde(rename = "ociVersion")]
    pub oci_version: &'static str,
    /// Its id.
    pub id: String,
    /// Its process; 0 when it has ended.
    pub pid: u32,
    /// What it is.
    pub status: Status,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its root file system.
    pub rootfs: PathBuf,
    /// When it was created.
    pub created: String,
    /// What the bundle says.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Who owns it, by name.
    pub owner: String,
}

impl State {
    /// What it is now.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            _ if !self.process.alive() => Status::Stopped,
            Self { creating: true, .. } => Status::Creating,
            Self { paused: true, .. } => Status::Paused,
            Self { started: true, .. } => Status::Running,
            _ => Status::Created,
        }
    }

    /// For users and engines.
    #[must_use]
    pub fn shown(&self, owner: &str) -> Shown {
        let status = self.status();
        Shown {
            oci_version: crate::OCI_VERSION,
            id: self.id.clone(),
            pid: if status == Status::Stopped { 0 } else { self.process.pid },
            status,
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            created: self.created.clone(),
            annotations: self.annotations.clone(),
            owner: owner.to_owned(),
        }
    }
}

/// The folder of all containers.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// A container's folder.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

/// A folder whose lock is held.
#[derive(Debug)]
pub struct Locked {
    /// The folder.
    pub folder: Folder,
    /// Held, not read.
    _lock: File,
}

/// Whether a text may name a container: runc's rule, without `/`.
#[must_use]
pub fn is_id(text: &str) -> bool {
    (1..=1024).contains(&text.len())
        && !matches!(text, "." | "..")
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'.' | b'-'))
}

/// Whether a text may name a container, a sandbox or a namespace of containerd (its own rule, with its length limit
/// doubled as Kubernetes' ids need no more than 64).
#[must_use]
pub fn is_identifier(text: &str) -> bool {
    text.len() <= 128
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

impl Store {
    /// Below a root; without one below `/run/kata-cc-oci`, or the user's own run-time folder where this is not root.
    #[must_use]
    pub fn new(root: Option<PathBuf>) -> Self {
        let runtime = || std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let default = || {
            let run = if nix::unistd::geteuid().is_root() { None } else { runtime() };
            run.unwrap_or_else(|| "/run".into()).join("kata-cc-oci")
        };
        Self { root: root.unwrap_or_else(default) }
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn folder(&self, id: &str) -> Result<Folder, OciError> {
        if !is_id(id) {
            return Err(OciError::Id(id.to_owned()));
        }
        Ok(Folder { path: self.root.join(id) })
    }

    fn missing(&self, id: &str) -> OciError {
        OciError::Missing { id: id.to_owned(), root: self.root.clone() }
    }

    /// Claims an id.
    ///
    /// # Errors
    /// It is taken, or cannot be one.
    pub fn claim(&self, id: &str) -> Result<Locked, OciError> {
        let folder = self.folder(id)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&self.root)
            .map_err(io(format!("cannot make {}", self.root.display())))?;
        // Twice: what a `create` that was killed has left is taken away, and the way is free.
        for _ in 0..2 {
            match DirBuilder::new().mode(0o700).create(&folder.path) {
                Ok(()) => return folder.lock(),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io(format!("cannot make {}", folder.path.display()))(error)),
            }
            if folder.path.join(STATE).exists() || !folder.remove_abandoned() {
                break;
            }
        }
        Err(OciError::Exists(id.to_owned()))
    }

    /// A container, to look at.
    ///
    /// # Errors
    /// There is none, or its state is damaged.
    pub fn load(&self, id: &str) -> Result<(Folder, State), OciError> {
        let folder = self.folder(id)?;
        match folder.read()? {
            Some(state) => Ok((folder, state)),
            None => Err(self.missing(id)),
        }
    }

    /// A container, to change.
    ///
    /// # Errors
    /// See [`Store::load`].
    pub fn lock(&self, id: &str) -> Result<(Locked, State), OciError> {
        let folder = self.folder(id)?;
        if folder.read()?.is_none() {
            return Err(self.missing(id));
        }
        let locked = folder.lock()?;
        // Who held it may have deleted it.
        match folder.read()? {
            Some(state) => Ok((locked, state)),
            None => Err(self.missing(id)),
        }
    }

    /// What is left of a container whose state cannot be used; none when there is nothing.
    ///
    /// # Errors
    /// The id cannot be one.
    pub fn remains(&self, id: &str) -> Result<Option<Folder>, OciError> {
        let folder = self.folder(id)?;
        Ok(folder.path.is_dir().then_some(folder))
    }

    /// The folder of a container that is known to be there.
    pub(crate) fn folder_of(&self, id: &str) -> Folder {
        Folder { path: self.root.join(id) }
    }

    /// All containers, by id. What is damaged or half made is not one.
    ///
    /// # Errors
    /// The root cannot be read.
    pub fn list(&self) -> Result<Vec<(State, String)>, OciError> {
        use std::os::unix::fs::MetadataExt;
        let entries = match std::fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io(format!("cannot read {}", self.root.display()))(error)),
        };
        let mut all: Vec<(State, String)> = entries
            .filter_map(Result::ok)
            .filter_map(|entry| {
                let state = Folder { path: entry.path() }.read().ok().flatten()?;
                Some((state, owner(entry.metadata().ok()?.uid())))
            })
            .collect();
        all.sort_by(|(one, _), (other, _)| one.id.cmp(&other.id));
        Ok(all)
    }
}

/// Name of a user; the number when it has none.
fn owner(uid: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("#{uid}"))
}

impl Folder {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn open_lock(&self) -> std::io::Result<File> {
        File::options().create(true).truncate(false).write(true).mode(0o600).open(self.path.join(LOCK))
    }

    fn lock(&self) -> Result<Locked, OciError> {
        let lock = self.open_lock().and_then(|lock| lock.lock().map(|()| lock));
        let lock = lock.map_err(io(format!("cannot lock {}", self.path.display())))?;
        Ok(Locked { folder: self.clone(), _lock: lock })
    }

    /// Takes away what nobody holds; whether it did.
    fn remove_abandoned(&self) -> bool {
        let Ok(lock) = self.open_lock() else { return false };
        lock.try_lock().is_ok() && !self.path.join(STATE).exists() && self.remove().is_ok()
    }

    /// Its state; none when there is none.
    ///
    /// # Errors
    /// It is damaged.
    pub fn read(&self) -> Result<Option<State>, OciError> {
        let path = self.path.join(STATE);
        let damaged = |reason: String| OciError::State { path: path.clone(), reason };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(io(format!("cannot read {}", path.display()))(error)),
        };
        let mut text = String::new();
        std::io::Read::read_to_string(&mut std::io::Read::take(file, MOST), &mut text)
            .map_err(|error| damaged(error.to_string()))?;
        serde_json::from_str(&text).map(Some).map_err(|error| damaged(error.to_string()))
    }

    /// Takes it away with all that is in it.
    ///
    /// # Errors
    /// What the host says.
    pub fn remove(&self) -> Result<(), OciError> {
        // The state first: a folder without is one that nobody wants any more.
        let _ = std::fs::remove_file(self.path.join(STATE));
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(io(format!("cannot remove {}", self.path.display()))(error))
            }
            _ => Ok(()),
        }
    }
}

impl Locked {
    /// Replaces the state.
    ///
    /// # Errors
    /// What the host says.
    pub fn write(&self, state: &State) -> Result<(), OciError> {
        let new = self.folder.file("state.json.new");
        let written = serde_json::to_vec_pretty(state).map_err(std::io::Error::from).and_then(|bytes| {
            std::fs::write(&new, bytes)?;
            std::fs::rename(&new, self.folder.file(STATE))
        });
        written.map_err(io(format!("cannot keep the state in {}", self.folder.path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(id: &str) -> State {
        State {
            id: id.into(),
            sandbox: id.into(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: "2026-01-01T00:00:00Z".into(),
            annotations: BTreeMap::new(),
            process: Known::of(std::process::id()).unwrap(),
            creating: false,
            started: false,
            paused: false,
            groups: None,
        }
    }

    #[test]
    fn an_id_is_claimed_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Some(dir.path().join("r")));
        assert!(matches!(store.load("a"), Err(OciError::Missing { .. })));
        let locked = store.claim("a").unwrap();
        assert!(matches!(store.claim("a"), Err(OciError::Exists(_))), "it is being made");
        assert!(store.list().unwrap().is_empty());
        locked.write(&state("a")).unwrap();
        drop(locked);
        assert!(matches!(store.claim("a"), Err(OciError::Exists(_))));
        let (folder, read) = store.load("a").unwrap();
        assert_eq!(read, state("a"));
        assert_eq!(store.list().unwrap().len(), 1);
        folder.remove().unwrap();
        assert!(matches!(store.lock("a"), Err(OciError::Missing { .. })));
        store.claim("a").unwrap();
    }

    #[test]
    fn what_a_killed_create_has_left_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Some(dir.path().to_owned()));
        drop(store.claim("a").unwrap());
        std::fs::write(dir.path().join("a/agent.sock"), "").unwrap();
        let locked = store.claim("a").unwrap();
        assert!(!locked.folder.file("agent.sock").exists());
    }

    #[test]
    fn the_state_follows_the_process() {
        let mut state = State { creating: true, ..state("a") };
        assert_eq!(state.status(), Status::Creating);
        state.creating = false;
        assert_eq!(state.status(), Status::Created);
        state.started = true;
        assert_eq!(state.status(), Status::Running);
        state.paused = true;
        assert_eq!(state.status(), Status::Paused);
        state.process.start += 1;
        assert_eq!(state.status(), Status::Stopped);
        let shown = serde_json::to_value(state.shown("")).unwrap();
        assert_eq!(shown["pid"], 0);
        assert!(shown.get("annotations").is_none());
    }

    #[test]
    fn a_damaged_state_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Some(dir.path().to_owned()));
        let locked = store.claim("a").unwrap();
        std::fs::write(locked.folder.file(STATE), "{").unwrap();
        let error = store.load("a").unwrap_err().to_string();
        assert!(error.contains("state.json is damaged") && error.contains("delete --force"), "{error}");
        assert!(store.list().unwrap().is_empty());
        assert!(store.remains("a").unwrap().is_some());
    }

    #[test]
    fn ids_cannot_leave_the_root() {
        let store = Store::new(Some("/nowhere".into()));
        for bad in ["", ".", "..", "a/b", "a b", "ä", "\0"] {
            assert!(matches!(store.claim(bad), Err(OciError::Id(_))), "{bad}");
        }
        assert!(is_id("a+b_c.d-e") && is_id("-x"));
        assert!(!is_identifier("-x") && is_identifier("x-1"));
    }
}
