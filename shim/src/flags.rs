//! The command line that containerd uses, in the style of Go's `flag` package.
//!
//! One or two dashes, the value as the next argument or after `=`, boolean flags without a value (or with
//! `=true`/`=false`), flags end at the first word that is none or at `--`. That word is the action; none means
//! "be the server". Unknown flags are refused, as Go does, since a flag that means something to a later containerd
//! must not be ignored silently.

use std::path::PathBuf;

pub use kata_cc_oci::store::is_identifier;
use thiserror::Error;

/// What the shim was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Action {
    /// Serve the task API (no action word).
    #[default]
    Serve,
    /// `start`: make sure that a server runs, answer its address.
    Start,
    /// `delete`: clean up after a server that is gone.
    Delete,
    /// `-v`: print the version.
    Version,
    /// `-info`: describe the runtime.
    Info,
}

/// All flags.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Flags {
    /// What to do.
    pub action: Action,
    /// containerd namespace.
    pub namespace: String,
    /// Task id.
    pub id: String,
    /// containerd's gRPC address.
    pub address: String,
    /// containerd's binary (unused: events go over ttrpc).
    pub publish_binary: String,
    /// Bundle, for `delete`.
    pub bundle: Option<PathBuf>,
    /// Path of the server's socket.
    pub socket: Option<PathBuf>,
    /// Verbose log.
    pub debug: bool,
}

/// Why a command line was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FlagError {
    /// A flag that this shim does not know.
    #[error("unknown flag {0}: the shim is started by containerd, see `containerd-shim-kata-cc-v2 -v`")]
    Unknown(String),
    /// The flag is the last word but needs a value.
    #[error("flag {0} needs a value")]
    NoValue(String),
    /// A boolean flag with something else than true or false.
    #[error("flag {0} takes true or false, not {1:?}")]
    NotBoolean(String, String),
    /// A word after the flags that is no action.
    #[error("unknown action {0:?}: expected start or delete")]
    Action(String),
    /// The action needs a flag that is absent.
    #[error("action needs -{0}")]
    Missing(&'static str),
    /// Id or namespace that could leave a folder or a log line.
    #[error(
        "-{0} {1:?} is not a containerd identifier: 1 to 128 of [A-Za-z0-9_.-], starting with a letter or digit"
    )]
    Identifier(&'static str, String),
}

impl Flags {
    /// Parse the arguments after the program's name.
    pub fn parse<I: IntoIterator<Item = String>>(arguments: I) -> Result<Self, FlagError> {
        let mut flags = Self::default();
        let mut info = None;
        let mut words = arguments.into_iter();
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
                flags.action = action(&word)?;
                break;
            };
            if word == "--" {
                if let Some(word) = words.next() {
                    flags.action = action(&word)?;
                }
                break;
            }
            let name = name.strip_prefix('-').unwrap_or(name);
            let (name, inline) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            match name {
                "debug" => flags.debug = boolean(name, inline)?,
                "v" | "version" => info = boolean(name, inline)?.then_some(Action::Version),
                "info" => info = boolean(name, inline)?.then_some(Action::Info),
                _ => {
                    let slot = flags.value(name)?;
                    let value =
                        inline.or_else(|| words.next()).ok_or_else(|| FlagError::NoValue(name.to_owned()))?;
                    slot(&mut flags, value);
                }
            }
        }
        if let Some(asked) = info {
            flags.action = asked;
        }
        flags.check()
    }

    fn value(&self, name: &str) -> Result<fn(&mut Self, String), FlagError> {
        Ok(match name {
            "namespace" => |flags, value| flags.namespace = value,
            "id" => |flags, value| flags.id = value,
            "address" => |flags, value| flags.address = value,
            "publish-binary" => |flags, value| flags.publish_binary = value,
            "bundle" => |flags, value| flags.bundle = Some(value.into()),
            "socket" => |flags, value| flags.socket = Some(value.into()),
            // accepted and unused: there is no separate debug server
            "debug-socket" => |_, _| (),
            _ => return Err(FlagError::Unknown(name.to_owned())),
        })
    }

    fn check(self) -> Result<Self, FlagError> {
        if matches!(self.action, Action::Version | Action::Info) {
            return Ok(self);
        }
        for (name, value) in [("namespace", &self.namespace), ("id", &self.id)] {
            if value.is_empty() {
                return Err(FlagError::Missing(name));
            }
            if !is_identifier(value) {
                return Err(FlagError::Identifier(name, value.clone()));
            }
        }
        Ok(self)
    }
}

fn action(word: &str) -> Result<Action, FlagError> {
    match word {
        "start" => Ok(Action::Start),
        "delete" => Ok(Action::Delete),
        other => Err(FlagError::Action(other.to_owned())),
    }
}

fn boolean(name: &str, inline: Option<String>) -> Result<bool, FlagError> {
    match inline.as_deref() {
        None | Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Ok(true),
        Some("false" | "0" | "f" | "F" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(FlagError::NotBoolean(name.to_owned(), other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, FlagError> {
        Flags::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn containerds_own_lines_are_understood() {
        let flags = parse(
            "-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd \
             -id c1 -debug start",
        )
        .unwrap();
        assert_eq!(flags.action, Action::Start);
        assert_eq!((flags.namespace.as_str(), flags.id.as_str()), ("k8s.io", "c1"));
        assert_eq!(flags.address, "/run/containerd/containerd.sock");
        assert!(flags.debug);
        let flags = parse("-namespace=default -id c1 -bundle /run/b delete").unwrap();
        assert_eq!(flags.action, Action::Delete);
        assert_eq!(flags.bundle.unwrap().to_str(), Some("/run/b"));
    }

    #[test]
    fn both_dash_styles_and_inline_booleans() {
        assert!(!parse("--namespace n --id i --debug=false").unwrap().debug);
        assert!(parse("--namespace n --id i --debug=T").unwrap().debug);
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert_eq!(parse("-namespace n -id i -- start").unwrap().action, Action::Start);
    }

    #[test]
    fn bad_lines_are_refused_with_the_reason() {
        assert_eq!(parse("-nope x"), Err(FlagError::Unknown("nope".into())));
        assert_eq!(parse("-id"), Err(FlagError::NoValue("id".into())));
        assert_eq!(parse("-namespace n -id i restart"), Err(FlagError::Action("restart".into())));
        assert_eq!(parse("-namespace n start"), Err(FlagError::Missing("id")));
        assert_eq!(parse("-namespace n -id ../x start"), Err(FlagError::Identifier("id", "../x".into())));
        assert_eq!(parse("-debug=perhaps"), Err(FlagError::NotBoolean("debug".into(), "perhaps".into())));
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_it_panic(words in proptest::collection::vec(".{0,12}", 0..8)) {
            let _ = Flags::parse(words);
        }
    }
}
