//! The verbs of an OCI runtime (runc's, with its flags) for sandboxes of the sentry.
//!
//! Each verb is a process that lives for milliseconds, so nothing here is asynchronous. What outlives it is `kata-cc-sentry serve`, one for
//! each sandbox, which `create` starts; its process id is the one told, and it ends with the container's first process and with its code.
//!
//! Rooms: [`arguments`] is the command line, [`verbs`] what the verbs do, a file each. [`bundle`] reads and checks `config.json`, [`wire`]
//! makes the agent's messages of it, [`grouping`] tells which containers share a sandbox. [`store`] keeps the state of containers, [`cgroup`] charges and limits
//! them, [`hooks`] runs programs of the host at points of their life. [`monitor`] starts the sentry, [`agent`] speaks to it, [`streams`] hands it
//! descriptors, [`console`] makes terminals, `keeper` stands for a process that has none of its own,
//! `signals` hands signals on. [`log`] is what `--log` asks for.
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod agent;
pub mod arguments;
pub mod bundle;
pub mod cgroup;
pub mod console;
pub mod error;
pub mod grouping;
pub mod hooks;
pub mod images;
mod keeper;
pub mod log;
pub mod monitor;
pub mod process;
mod signals;
mod spawn;
pub mod store;
pub mod streams;
pub mod verbs;
pub mod wire;

use std::ffi::OsString;

pub use error::OciError;

/// The version of the runtime specification that states and new bundles name. Bundles of every 1.x are taken.
pub const OCI_VERSION: &str = "1.0.2";

/// Names under which a program is an OCI runtime without being told the tier.
const NAMES: [&str; 2] = ["kata-cc-runc", "kata-cc-oci"];

/// Options before the verb that take a value.
const WITH_VALUE: [&str; 6] = ["--root", "--log", "--log-format", "--criu", "--rootless", "--tier"];

/// The command line as an OCI runtime's: without `--tier sentry` when that stands before the verb, or as it is when the program's name
/// says so. None when the user means something else.
#[must_use]
pub fn command_line(arguments: &[OsString]) -> Option<Vec<OsString>> {
    let name = arguments.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if NAMES.contains(&name.rsplit('/').next().unwrap_or_default()) {
        return Some(arguments.to_vec());
    }
    let mut rest: Vec<OsString> = arguments.iter().take(1).cloned().collect();
    let mut words = arguments.iter().skip(1);
    let mut ours = false;
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        if text == "--tier=sentry" {
            ours = true;
        } else if text == "--tier" {
            let value = words.next()?;
            if value != "sentry" {
                return None;
            }
            ours = true;
        } else if text.starts_with('-') {
            rest.push(word.clone());
            if WITH_VALUE.contains(&text.as_ref()) {
                rest.extend(words.next().cloned());
            }
        } else {
            rest.push(word.clone());
            break;
        }
    }
    rest.extend(words.cloned());
    ours.then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Option<String> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let found = command_line(&words)?;
        Some(found.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_tier_before_the_verb_makes_an_oci_runtime() {
        assert_eq!(of("kata-cc --tier sentry create x").as_deref(), Some("kata-cc create x"));
        assert_eq!(of("kata-cc --tier=sentry state x").as_deref(), Some("kata-cc state x"));
        assert_eq!(
            of("kata-cc --root /r --tier sentry --log l run x").as_deref(),
            Some("kata-cc --root /r --log l run x")
        );
        assert_eq!(of("/usr/bin/kata-cc-runc state x").as_deref(), Some("/usr/bin/kata-cc-runc state x"));
        assert_eq!(of("kata-cc run --tier sentry image"), None, "that is the other `run`");
        assert_eq!(of("kata-cc --tier vm run image"), None);
        assert_eq!(of("kata-cc doctor"), None);
        assert_eq!(of("kata-cc --tier"), None);
    }
}
