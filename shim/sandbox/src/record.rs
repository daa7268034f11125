//! What happened to a sandbox, stage by stage: `record.jsonl`, kept after its end for `kata-cc ps` and `explain`.
//!
//! A line is `{"t", "stage", "detail": {…}}`; the stages are listed in `docs/design.md`. The newest
//! [`KEPT`] sandboxes are kept.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::log::now;

/// How many sandboxes' records are kept.
pub const KEPT: usize = 200;
const FILE: &str = "record.jsonl";
/// Most stages of the host's own.
const MAX_STAGES: usize = 1000;
/// Most stages that a guest reports. Counted apart: any of its programs can report some, and they must neither fill the disk
/// nor keep the host from telling how the sandbox ended.
const MAX_GUEST_STAGES: usize = 500;

/// One stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// When, RFC 3339 with microseconds.
    pub t: String,
    /// Which.
    pub stage: String,
    /// What is to be said of it.
    #[serde(default)]
    pub detail: Value,
    /// The guest says so; the host has not seen it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guest: bool,
}

#[derive(Debug)]
struct State {
    file: File,
    /// Stages written: of the host, of the guest.
    written: [usize; 2],
}

/// Writes a sandbox's record; clones write to the same file.
#[derive(Clone, Debug)]
pub struct Recorder {
    state: Arc<Mutex<State>>,
    dir: PathBuf,
}

impl Recorder {
    /// Make the folder of a sandbox's record below `records`, and drop the oldest beyond [`KEPT`].
    ///
    /// What an earlier sandbox of that id has left there is removed: the caller must have claimed the id (made its
    /// run-time folder), else it takes away the record of one that runs.
    ///
    /// # Errors
    /// When the folder or file cannot be made.
    pub fn create(records: &Path, id: &str) -> std::io::Result<Self> {
        let dir = records.join(id);
        // An id that is used again starts a new record.
        let _ = std::fs::remove_dir_all(&dir);
        // For root alone: containers' output stands beside the record.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        // An earlier version made it for all to read.
        std::fs::set_permissions(records, std::fs::Permissions::from_mode(0o700))?;
        let file = File::options().create(true).append(true).mode(0o600).open(dir.join(FILE))?;
        prune(records, KEPT, |id| crate::paths::run_dir().join(id).exists());
        Ok(Self { state: Arc::new(Mutex::new(State { file, written: [0; 2] })), dir })
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Add a stage.
    pub fn stage(&self, stage: &str, detail: Value) {
        self.write(stage, detail, false);
    }

    /// Add a stage that the guest reports. The time is the host's.
    pub fn guest_stage(&self, stage: &str, detail: Value) {
        self.write(stage, detail, true);
    }

    fn write(&self, stage: &str, detail: Value, guest: bool) {
        let line = Stage { t: now(), stage: stage.to_owned(), detail, guest };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { file, written: [of_host, of_guest] } = &mut *state;
        let (written, most) = if guest { (of_guest, MAX_GUEST_STAGES) } else { (of_host, MAX_STAGES) };
        if *written >= most {
            return;
        }
        *written += 1;
        if let Ok(mut bytes) = serde_json::to_vec(&line) {
            bytes.push(b'\n');
            // A record that cannot be written must not stop the sandbox.
            let _ = file.write_all(&bytes);
        }
    }
}

/// Remove the oldest record folders beyond `kept`, but none of a sandbox that is `alive`.
pub fn prune(records: &Path, kept: usize, alive: impl Fn(&str) -> bool) {
    let Ok(entries) = std::fs::read_dir(records) else { return };
    let mut dirs: Vec<_> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    dirs.sort();
    for (_, dir) in dirs.iter().rev().skip(kept) {
        if !dir.file_name().and_then(|name| name.to_str()).is_some_and(&alive) {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

/// The stages of a record folder, in order.
///
/// # Errors
/// When there is no record.
pub fn read(dir: &Path) -> std::io::Result<Vec<Stage>> {
    let file = BufReader::new(File::open(dir.join(FILE))?);
    // By bytes: a damaged line that is no text must not hide what stands behind it.
    let lines = file.split(b'\n').map_while(Result::ok);
    Ok(lines.filter_map(|line| serde_json::from_slice(&line).ok()).collect())
}

/// Ids of all sandboxes with a record, the newest last.
#[must_use]
pub fn list(records: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(records) else { return Vec::new() };
    let mut ids: Vec<_> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            Some((entry.metadata().ok()?.modified().ok()?, entry.file_name().into_string().ok()?))
        })
        .collect();
    ids.sort();
    ids.into_iter().map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stages_are_kept_in_order() {
        let records = tempfile::tempdir().unwrap();
        let recorder = Recorder::create(records.path(), "pod").unwrap();
        recorder.stage("created", json!({"image": "x"}));
        recorder.stage("exited", json!({"code": 0}));
        let stages = read(&records.path().join("pod")).unwrap();
        assert_eq!(
            stages.iter().map(|stage| stage.stage.as_str()).collect::<Vec<_>>(),
            ["created", "exited"]
        );
        assert!(stages[0].t <= stages[1].t);
        assert_eq!(list(records.path()), ["pod"]);
    }

    #[test]
    fn records_and_logs_are_for_their_owner_alone() {
        let records = tempfile::tempdir().unwrap();
        std::fs::create_dir(records.path().join("sandboxes")).unwrap();
        let recorder = Recorder::create(&records.path().join("sandboxes"), "pod").unwrap();
        crate::log::Log::open(recorder.dir()).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(recorder.dir().parent().unwrap()), 0o700);
        assert_eq!(mode(recorder.dir()), 0o700);
        assert_eq!(mode(&recorder.dir().join(FILE)), 0o600);
        assert_eq!(mode(&crate::log::file(recorder.dir())), 0o600);
    }

    #[test]
    fn the_oldest_go_first() {
        let records = tempfile::tempdir().unwrap();
        for n in 0..5 {
            Recorder::create(records.path(), &format!("pod-{n}")).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        prune(records.path(), 2, |id| id == "pod-1");
        assert_eq!(list(records.path()), ["pod-1", "pod-3", "pod-4"], "one that runs keeps its record");
    }

    #[test]
    fn a_guest_neither_fills_the_record_nor_silences_the_host() {
        let records = tempfile::tempdir().unwrap();
        let recorder = Recorder::create(records.path(), "pod").unwrap();
        for _ in 0..2 * MAX_STAGES {
            recorder.guest_stage("pulled", json!({}));
        }
        recorder.stage("failed", json!({"by": "vmm"}));
        let stages = read(recorder.dir()).unwrap();
        assert_eq!(stages.len(), MAX_GUEST_STAGES + 1);
        assert!(stages[0].guest);
        let last = stages.last().unwrap();
        assert_eq!((last.stage.as_str(), last.guest), ("failed", false));
        for _ in 0..2 * MAX_STAGES {
            recorder.stage("x", json!({}));
        }
        assert_eq!(read(recorder.dir()).unwrap().len(), MAX_GUEST_STAGES + MAX_STAGES);
    }
}
