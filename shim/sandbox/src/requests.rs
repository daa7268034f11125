//! What a sandbox's guest was asked, kept where the node's configuration wants it (`record_requests`), for `kata-cc policy simulate` and `explain`.
//!
//! `requests.jsonl` beside the record: a line is `{"kind": "CreateContainerRequest", "request": {…}}`, the form in which policies see requests. What programs
//! read and write and what is in copied files is left out, and that something was read (the agent asks only when there is something to
//! read, and reads without end would fill the file); variables and arguments are there, as they are in containerd's own files.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kata_cc_agent_protocol::agent::CopyFileRequest;
use kata_cc_agent_protocol::json;
use protobuf::MessageDyn;
use serde_json::json;

/// Name of the file in a record's folder.
const FILE: &str = "requests.jsonl";
/// Most bytes of it.
const MOST: u64 = 16 << 20;
/// Most requests, which is as many as are read again.
const MOST_LINES: usize = 100_000;

/// The file of a sandbox's requests.
#[must_use]
pub fn file_of(records: &Path, sandbox: &str) -> PathBuf {
    records.join(sandbox).join(FILE)
}

/// Writes requests to a file.
#[derive(Debug)]
pub(crate) struct RequestRecorder {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    bytes: u64,
    lines: usize,
    /// Nothing is added any more: what was left out in between would be missing unseen.
    full: bool,
}

impl RequestRecorder {
    /// In the folder of a sandbox's record.
    pub(crate) fn create(record: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).mode(0o600).open(record.join(FILE))?;
        Ok(Self { state: Mutex::new(State { file, bytes: 0, lines: 0, full: false }) })
    }

    /// Adds a request. One that cannot be written is passed over: it must not stop the sandbox.
    pub(crate) fn note(&self, request: &dyn MessageDyn) {
        let descriptor = request.descriptor_dyn();
        let kind = descriptor.name();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.full || kind == "ReadStreamRequest" {
            return;
        }
        let mut value = match <dyn MessageDyn>::downcast_ref::<CopyFileRequest>(request) {
            Some(copy) => json::copy_file(copy),
            None => json::message(request),
        };
        if kind == "WriteStreamRequest" {
            value["data"] = json!([]);
        }
        let Ok(mut line) = serde_json::to_vec(&json!({"kind": kind, "request": value})) else { return };
        line.push(b'\n');
        let bytes = state.bytes + line.len() as u64;
        if bytes > MOST || state.lines >= MOST_LINES {
            state.full = true;
            return;
        }
        if state.file.write_all(&line).is_ok() {
            (state.bytes, state.lines) = (bytes, state.lines + 1);
        } else {
            // No half line.
            let _ = state.file.set_len(state.bytes);
            state.full = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use kata_cc_agent_protocol::agent::{ReadStreamRequest, SignalProcessRequest, WriteStreamRequest};
    use serde_json::Value;

    use super::*;

    #[test]
    fn requests_are_kept_as_policies_see_them_without_what_is_in_files() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = RequestRecorder::create(folder.path()).unwrap();
        recorder.note(&SignalProcessRequest {
            container_id: "c".to_owned(),
            signal: 15,
            ..Default::default()
        });
        recorder.note(&CopyFileRequest {
            path: "/p".to_owned(),
            data: b"secret".to_vec(),
            ..Default::default()
        });
        recorder.note(&ReadStreamRequest::default());
        recorder.note(&WriteStreamRequest { data: b"secret".to_vec(), ..Default::default() });
        let text = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            (&lines[0]["kind"], &lines[0]["request"]["signal"]),
            (&json!("SignalProcessRequest"), &json!(15))
        );
        assert_eq!(lines[1]["request"]["path"], json!("/p"));
        assert_eq!((lines.len(), &lines[2]["kind"]), (3, &json!("WriteStreamRequest")));
        assert!(!text.contains("secret") && !text.contains("115,101"), "{text}");
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &folder.path().join(FILE).metadata().unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn the_file_has_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = RequestRecorder::create(folder.path()).unwrap();
        recorder.state.lock().unwrap().bytes = MOST - 300;
        for _ in 0..100 {
            recorder.note(&SignalProcessRequest::default());
        }
        let length = folder.path().join(FILE).metadata().unwrap().len();
        assert!((1..=300).contains(&length), "{length}");
    }
}
