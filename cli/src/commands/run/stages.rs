//! Shows the stages of a start as the record gets them: a spinner on a terminal, plain lines otherwise, one JSON object a
//! line with `--json`.

use std::path::PathBuf;
use std::time::Duration;

use kata_cc_sandbox::log;
use kata_cc_sandbox::record::{self, Stage};
use serde_json::json;

use super::records;
use crate::output::{Output, Progress, printable};

const LOOK: Duration = Duration::from_millis(100);

/// The record of the sandbox that is being started.
pub(super) struct Stages<'a> {
    dir: PathBuf,
    /// Stages before it are of an older sandbox of that id.
    since: String,
    seen: usize,
    output: &'a Output,
    progress: Option<Progress>,
}

impl<'a> Stages<'a> {
    pub(super) fn new(id: &str, image: &str, output: &'a Output) -> Self {
        let progress = output.progress(&format!("kata-cc: starting {} as {id}", printable(image)));
        Self { dir: records::dir(id), since: log::now(), seen: 0, output, progress: Some(progress) }
    }

    /// Show new stages until dropped.
    pub(super) async fn follow(&mut self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.show();
        }
    }

    /// Show what is new.
    pub(super) fn show(&mut self) {
        let stages = record::read(&self.dir).unwrap_or_default();
        let stages: Vec<Stage> = stages.into_iter().filter(|stage| stage.t >= self.since).collect();
        for stage in stages.iter().skip(self.seen) {
            if self.output.json {
                let _ = self.output.line(
                    &json!({"event": "stage", "t": stage.t, "stage": stage.stage, "detail": stage.detail}),
                );
            } else if let (Some(progress), Some(text)) = (&self.progress, describe(stage)) {
                progress.say(&format!("kata-cc: stage {text}"));
            }
        }
        self.seen = self.seen.max(stages.len());
    }

    /// The container has the terminal from here.
    pub(super) fn done(&mut self) {
        self.progress = None;
    }
}

/// A stage in words; a refusal is told in the final message.
fn describe(stage: &Stage) -> Option<String> {
    let detail = |key: &str| records::plain(&stage.detail[key]).unwrap_or_default();
    let text = match stage.stage.as_str() {
        "tier" => format!("tier: {} ({})", detail("tier"), detail("why")),
        "measured" => format!("measured: {}", detail("launch_digest")),
        "attested" => format!("attested: {} ({})", detail("verdict"), detail("tee")),
        "key-released" => format!("key-released: {}", detail("key_id")),
        "pulling" => format!("pulling: {} % of {} bytes", detail("percent"), detail("of")),
        "pulled" => {
            let of_node = match stage.detail["node_bytes"].as_u64() {
                None | Some(0) => String::new(),
                Some(bytes) => format!(", {bytes} of the node's copy"),
            };
            format!(
                "pulled: {} ({} layers, {} bytes{of_node})",
                detail("digest"),
                detail("layers"),
                detail("bytes")
            )
        }
        "refused" | "failed" => return None,
        other => other.to_owned(),
    };
    Some(printable(&text))
}
