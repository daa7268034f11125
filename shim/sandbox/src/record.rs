//! What happened to a sandbox, stage by stage: `record.jsonl`, kept after its end for `kata-cc ps` and `explain`.
//!
//! A line is `{"t", "stage", "detail": {…}}`; the stages are listed in `docs/design.md`. The newest
//! [`KEPT`] sandboxes are kept.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::log::now;

/// How many sandboxes' records are kept.
pub const KEPT: usize = 200;
const FILE: &str = "record.jsonl";
/// A guest reports stages too; it must not fill the disk with them.
const MAX_STAGES: usize = 1000;

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
}

/// Writes a sandbox's record; clones write to the same file.
#[derive(Clone, Debug)]
pub struct Recorder {
    state: Arc<Mutex<(Option<File>, usize)>>,
    dir: PathBuf,
}

impl Recorder {
    /// Make the folder of a sandbox's record below `records`, and drop the oldest beyond [`KEPT`].
    ///
    /// # Errors
    /// When the folder or file cannot be made.
    pub fn create(records: &Path, id: &str) -> std::io::Result<Self> {
        let dir = records.join(id);
        // An id that is used again starts a new record.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir)?;
        let file = File::options().create(true).append(true).open(dir.join(FILE))?;
        prune(records, KEPT);
        Ok(Self { state: Arc::new(Mutex::new((Some(file), 0))), dir })
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Add a stage.
    pub fn stage(&self, stage: &str, detail: Value) {
        let line = Stage { t: now(), stage: stage.to_owned(), detail };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(file), written) = &mut *state else { return };
        if *written >= MAX_STAGES {
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

/// Remove the oldest record folders beyond `kept`.
pub fn prune(records: &Path, kept: usize) {
    let Ok(entries) = std::fs::read_dir(records) else { return };
    let mut dirs: Vec<_> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    dirs.sort();
    for (_, dir) in dirs.iter().rev().skip(kept) {
        let _ = std::fs::remove_dir_all(dir);
    }
}

/// The stages of a record folder, in order.
///
/// # Errors
/// When there is no record.
pub fn read(dir: &Path) -> std::io::Result<Vec<Stage>> {
    let file = BufReader::new(File::open(dir.join(FILE))?);
    Ok(file.lines().map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok()).collect())
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
    fn the_oldest_go_first() {
        let records = tempfile::tempdir().unwrap();
        for n in 0..5 {
            Recorder::create(records.path(), &format!("pod-{n}")).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        prune(records.path(), 2);
        assert_eq!(list(records.path()), ["pod-3", "pod-4"]);
    }

    #[test]
    fn a_guest_cannot_fill_the_disk_with_stages() {
        let records = tempfile::tempdir().unwrap();
        let recorder = Recorder::create(records.path(), "pod").unwrap();
        for _ in 0..MAX_STAGES + 10 {
            recorder.stage("pulled", json!({}));
        }
        assert_eq!(read(recorder.dir()).unwrap().len(), MAX_STAGES);
    }
}
