//! Making this node's sealed copy of an image when a guest first asks for it (`[image] seal_at_first_use`).
//!
//! `kata-cc image seal --for-node` does it, beside the guest that meanwhile pulls the image itself, at the lowest priority, in a session of its own:
//! it goes on when the sandbox ends. That two sandboxes do not make the same copy is its business.

use std::process::Stdio;

use tokio::process::Command;

use crate::log::{Log, Source};
use crate::paths;
use crate::process::{self, Netns};

/// Starts it; what comes of it is in the log.
pub(crate) fn begin(image: &str, log: &Log) {
    let mut command = Command::new("nice");
    command.args(["-n", "19"]).arg(paths::program("kata-cc"));
    command.args(["image", "seal", "--for-node", image]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let started =
        process::enter(&mut command, Netns::Inherited, Vec::new(), false).and_then(|()| command.spawn());
    let (image, log) = (image.to_owned(), log.clone());
    let child = match started {
        Ok(child) => child,
        Err(error) => {
            log.add(Source::Shim, "warn", &format!("the node's copy of {image} is not made: {error}"));
            return;
        }
    };
    log.add(Source::Shim, "info", &format!("the node's copy of {image} is being made for the next guest"));
    tokio::spawn(async move {
        let (level, text) = match child.wait_with_output().await {
            Ok(ended) if ended.status.success() => ("info", format!("the node has a copy of {image}")),
            Ok(ended) => {
                let said = String::from_utf8_lossy(&ended.stderr).chars().take(1000).collect::<String>();
                ("warn", format!("the node's copy of {image} was not made: {}", said.trim()))
            }
            Err(error) => ("warn", format!("the node's copy of {image} was not made: {error}")),
        };
        log.add(Source::Shim, level, &text);
    });
}
