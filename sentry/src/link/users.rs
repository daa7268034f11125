//! Who else uses the network namespace of this thread: processes of the host that have the same (`man 7 network_namespaces`).
//!
//! What is taken over is taken from them. A thread that is there for a moment, as plug-ins of the network have them, is none: the namespace of a
//! process' first thread counts. Nor are processes of the sentry's own program: they use no socket of the host's kernel there.
//!
//! Two processes have the same namespace where `/proc/PID/net/dev` is the same file (`proc_tgid_net_lookup` in `fs/proc/proc_net.c`: each namespace
//! has files of its own). Unlike `/proc/PID/ns/net` that may be looked at by a monitor, too, which has given most of its privileges up.

use std::fs;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// `PROC_PID_INIT_INO` (`include/linux/proc_ns.h`): the first namespace of processes.
const FIRST_PIDS: u64 = 0xEFFF_FFFC;

/// A process of somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Other {
    pub(super) pid: u32,
    pub(super) name: String,
}

/// What `/proc` says.
#[derive(Debug, Default)]
pub(super) struct Users {
    /// The first that was found.
    pub(super) other: Option<Other>,
    /// Processes that may not be looked at.
    unseen: usize,
    /// Why nothing at all can be told.
    blind: Option<&'static str>,
}

/// What a file is, however it is called.
type Identity = (u64, u64);

fn identity(path: &Path) -> Result<Identity, Error> {
    fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

/// What this process is.
struct Own {
    namespace: Identity,
    program: Option<Identity>,
    name: String,
}

/// What a process is here.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// It is elsewhere, or gone, or a sentry.
    Elsewhere,
    /// It is in the namespace, with this name.
    Here(String),
    /// The host does not say.
    Unsaid,
}

fn name(process: &Path) -> String {
    fs::read_to_string(process.join("comm")).unwrap_or_default().trim().to_owned()
}

impl Own {
    fn place(&self, process: &Path) -> Place {
        match identity(&process.join("net/dev")) {
            Ok(found) if found == self.namespace => {}
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Place::Unsaid,
            _ => return Place::Elsewhere,
        }
        let name = name(process);
        let ours = match (identity(&process.join("exe")), self.program) {
            (Ok(program), Some(own)) => program == own,
            // Where the program may not be looked at its name has to do.
            _ => name == self.name,
        };
        if ours { Place::Elsewhere } else { Place::Here(name) }
    }
}

/// Looks at all processes that are shown here.
pub(super) fn look() -> Users {
    let proc = Path::new("/proc");
    let Ok(namespace) = identity(&proc.join("thread-self/net/dev")) else {
        return Users { blind: Some("/proc does not show this process"), ..Users::default() };
    };
    let own = proc.join("self");
    let own = Own { namespace, program: identity(&own.join("exe")).ok(), name: name(&own) };
    let mut users = users(proc, &own);
    let pids = fs::metadata(proc.join("self/ns/pid")).map(|found| found.ino());
    if pids.ok() != Some(FIRST_PIDS) {
        users.blind = Some("processes of other namespaces of processes are not shown here");
    }
    users
}

fn users(proc: &Path, own: &Own) -> Users {
    let mut users = Users::default();
    let Ok(processes) = fs::read_dir(proc) else {
        return Users { blind: Some("/proc cannot be read"), ..users };
    };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match own.place(&process.path()) {
            Place::Here(name) if pid != std::process::id() => {
                users.other = Some(Other { pid, name });
                return users;
            }
            Place::Unsaid => users.unseen = users.unseen.saturating_add(1),
            _ => {}
        }
    }
    users
}

impl Users {
    /// Says what could not be told.
    pub(super) fn say_unknown(&self) {
        if let Some(why) = self.blind {
            tracing::info!(why, "whether others use the network namespace cannot be told for certain");
        }
        if self.unseen > 0 {
            tracing::info!(
                processes = self.unseen,
                "whether these use the network namespace cannot be told: they may not be looked at"
            );
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// A folder like `/proc`: each process with its namespace and program.
    fn proc(processes: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in ["pod", "machine", "sentry", "nginx"] {
            fs::write(folder.path().join(file), file).unwrap();
        }
        for (pid, namespace, program) in processes {
            let process = folder.path().join(pid);
            fs::create_dir_all(process.join("net")).unwrap();
            let link = |to: &str, at| std::os::unix::fs::symlink(folder.path().join(to), process.join(at));
            link(namespace, "net/dev").unwrap();
            link(program, "exe").unwrap();
            fs::write(process.join("comm"), format!("{program}\n")).unwrap();
        }
        folder
    }

    fn found(processes: &[(&str, &str, &str)]) -> Users {
        let folder = proc(processes);
        let of = |name: &str| identity(&folder.path().join(name)).unwrap();
        let (namespace, program) = (of("pod"), Some(of("sentry")));
        users(folder.path(), &Own { namespace, program, name: "gone-sentry".to_owned() })
    }

    #[test]
    fn a_process_of_another_program_is_another_user() {
        let users = found(&[("4194301", "machine", "nginx"), ("4194302", "pod", "nginx")]);
        assert_eq!(users.other, Some(Other { pid: 4_194_302, name: "nginx".to_owned() }));
    }

    #[test]
    fn who_is_elsewhere_gone_or_a_sentry_is_none() {
        let processes = [
            ("4194301", "machine", "nginx"),
            ("4194302", "pod", "sentry"),
            ("4194303", "missing", "nginx"),
            ("self", "pod", "nginx"),
        ];
        let users = found(&processes);
        assert_eq!((users.other, users.unseen), (None, 0));
        let own = std::process::id().to_string();
        assert_eq!(found(&[(&own, "pod", "nginx")]).other, None);
    }

    /// One whose program is not told is known by its name.
    #[test]
    fn a_program_that_is_not_told_has_a_name() {
        assert!(found(&[("4194301", "pod", "gone-nginx")]).other.is_some());
        assert!(found(&[("4194301", "pod", "gone-sentry")]).other.is_none());
    }

    #[test]
    fn the_test_finds_its_own_namespace() {
        // Whoever runs the tests is in it, too.
        assert!(look().other.is_some());
    }
}
