//! `/proc/sys`: settings of the kernel, as a container on Linux 6.12 finds them (`Documentation/admin-guide/sysctl`).
//!
//! A setting is fixed, or kept when it is written and valid: nothing else comes of it, except for the names of the machine.

use std::sync::{Arc, Weak};

use super::super::generated::{Branch, Source, Text};
use super::super::sync::lock;
use super::system::{RELEASE, VERSION};
use crate::error::Errno;
use crate::kernel::Kernel;
use crate::task::namespaces::Names;
use crate::task::{capability, current};
use crate::vfs::{Caller, Flags};

mod table;

/// Longest name of the machine.
const NAME_MAX: usize = 64;
/// Longest text of a setting.
const TEXT_MAX: usize = 256;

/// What can be done with a setting.
#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// Nothing: whoever opens it for writing gets EACCES, root too (`proc_sys_permission`).
    Fixed,
    /// Numbers within a range, as many as there are.
    Number(i64, i64),
    /// Words.
    Text,
    /// Made when it is read.
    Made(fn(&Kernel) -> Result<String, Errno>),
    /// The name of the machine, or its domain.
    Name {
        /// Whether it is the domain.
        domain: bool,
    },
    /// Only written, to no effect.
    Trigger,
}

/// A setting.
pub(super) struct Setting {
    /// Below `/proc/`.
    path: &'static str,
    value: &'static str,
    rule: Rule,
}

impl Setting {
    fn mode(&self) -> u32 {
        match self.rule {
            Rule::Fixed | Rule::Made(_) => 0o444,
            Rule::Trigger => 0o200,
            _ => 0o644,
        }
    }

    fn read(&self, kernel: &Kernel) -> Result<Vec<u8>, Errno> {
        let mut text = match self.rule {
            Rule::Made(make) => make(kernel)?.into_bytes(),
            Rule::Name { domain } => {
                let names = names(kernel);
                let uts = lock(names.uts());
                if domain { uts.domain.clone() } else { uts.host.clone() }
            }
            Rule::Trigger => return Err(Errno::EINVAL),
            _ => kernel.proc.setting(self.path).unwrap_or_else(|| self.value.as_bytes().to_vec()),
        };
        text.push(b'\n');
        Ok(text)
    }

    fn write(&'static self, kernel: &Kernel, caller: &Caller, from: &[u8]) -> Result<(), Errno> {
        let text = std::str::from_utf8(from).map_err(|_| Errno::EINVAL)?.trim_end_matches(['\n', '\0']);
        match self.rule {
            Rule::Fixed | Rule::Made(_) => return Err(Errno::EPERM),
            Rule::Trigger => {}
            Rule::Number(least, most) => {
                let words: Vec<_> = text.split_whitespace().collect();
                let valid =
                    |word: &&str| word.parse::<i64>().is_ok_and(|number| (least..=most).contains(&number));
                let wanted = self.value.split_whitespace().count();
                if words.is_empty() || words.len() > wanted || !words.iter().all(valid) {
                    return Err(Errno::EINVAL);
                }
                // Numbers behind the last that was written stay what they were.
                let now = kernel.proc.setting(self.path);
                let now = now.unwrap_or_else(|| self.value.as_bytes().to_vec());
                let now = String::from_utf8_lossy(&now).into_owned();
                let rest = now.split_whitespace().skip(words.len());
                let all: Vec<_> = words.iter().copied().chain(rest).collect();
                kernel.proc.set(self.path, all.join("\t").into_bytes());
            }
            Rule::Text => {
                if text.len() > TEXT_MAX {
                    return Err(Errno::EINVAL);
                }
                kernel.proc.set(self.path, text.as_bytes().to_vec());
            }
            Rule::Name { domain } => {
                let names = names(kernel);
                if !caller.credentials.capable_in(names.owner(), capability::SYS_ADMIN) {
                    return Err(Errno::EPERM);
                }
                let text = text.as_bytes();
                let name = text.get(..NAME_MAX).unwrap_or(text).to_vec();
                let mut uts = lock(names.uts());
                *(if domain { &mut uts.domain } else { &mut uts.host }) = name;
            }
        }
        Ok(())
    }
}

/// The names that whoever asks sees.
fn names(kernel: &Kernel) -> Arc<Names> {
    let task = current();
    Arc::clone(
        &task.map_or_else(|| Arc::clone(kernel.tasks.first_namespaces()), |task| task.namespaces()).names,
    )
}

/// An open setting.
struct Opened {
    setting: &'static Setting,
    kernel: Weak<Kernel>,
    caller: Caller,
}

impl Source for Opened {
    fn read(&self) -> Result<Vec<u8>, Errno> {
        self.setting.read(&*self.kernel.upgrade().ok_or(Errno::EIO)?)
    }

    fn write(&self, from: &[u8]) -> Result<(), Errno> {
        self.setting.write(&*self.kernel.upgrade().ok_or(Errno::EIO)?, &self.caller, from)
    }
}

/// Puts all settings into a tree.
pub(super) fn build(kernel: &Weak<Kernel>, root: &mut Branch) {
    for setting in table::SETTINGS {
        let kernel = Weak::clone(kernel);
        let open = move |caller: &Caller, flags: Flags| {
            if flags.writable() && setting.mode() & 0o222 == 0 {
                return Err(Errno::EACCES);
            }
            Ok(Text::boxed(Opened { setting, kernel: Weak::clone(&kernel), caller: caller.clone() }))
        };
        root.put(setting.path, Branch::File(setting.mode(), Box::new(open)));
    }
}

/// A random UUID (RFC 9562, version 4).
fn uuid() -> Result<String, Errno> {
    let mut bytes = [0; 16];
    crate::random::fill(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

fn new_uuid(_: &Kernel) -> Result<String, Errno> {
    uuid()
}

/// One and the same as long as the sandbox runs.
fn boot_id(kernel: &Kernel) -> Result<String, Errno> {
    if let Some(known) = kernel.proc.boot_id.get() {
        return Ok(known.clone());
    }
    let fresh = uuid()?;
    Ok(kernel.proc.boot_id.get_or_init(|| fresh).clone())
}
