//! Looks user and group names up in the container's own `/etc/passwd` and `/etc/group`.
//!
//! The files come from an image: at most [`MAX_FILE`] bytes are read, lines that do not parse are skipped.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

/// Bytes read of either file.
const MAX_FILE: u64 = 1 << 20;

/// Numbers a name resolved to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ids {
    /// User.
    pub(crate) uid: u32,
    /// Primary group.
    pub(crate) gid: u32,
    /// Groups that list the user.
    pub(crate) groups: Vec<u32>,
    /// Home folder, when the user has an entry.
    pub(crate) home: Option<String>,
}

/// Why a user cannot be determined.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum UserError {
    /// No entry of this name.
    #[error("the image has no {what} named {name:?}: name one by number or add it to /etc/{file}")]
    Unknown {
        /// `user` or `group`.
        what: &'static str,
        /// The name.
        name: String,
        /// `passwd` or `group`.
        file: &'static str,
    },
}

/// Resolves `user[:group]`, each a name or a number, against files below `/`.
pub(crate) fn resolve(spec: &str) -> Result<Ids, UserError> {
    resolve_in(spec, &read(Path::new("/etc/passwd")), &read(Path::new("/etc/group")))
}

/// Resolves `user[:group]` against the files below `root`, a root file system that nobody has entered yet. No user
/// means the first.
pub(crate) fn resolve_below(root: &Path, spec: &str) -> Result<Ids, UserError> {
    let read = |name: &str| read_below(root, name).unwrap_or_default();
    let spec = if spec.is_empty() { "0" } else { spec };
    resolve_in(spec, &read("etc/passwd"), &read("etc/group"))
}

/// Reads a file of an image: links in it lead to nothing outside of it.
fn read_below(root: &Path, name: &str) -> std::io::Result<String> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(root, flags, Mode::empty())?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = File::from(openat2(&root, name, how)?);
    let mut bytes = Vec::new();
    if file.metadata()?.is_file() {
        file.take(MAX_FILE).read_to_end(&mut bytes)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Home folder of user `uid`.
pub(crate) fn home_of(uid: u32) -> Option<String> {
    let passwd = read(Path::new("/etc/passwd"));
    entries(&passwd)
        .find(|f| f.get(2).and_then(|n| n.parse().ok()) == Some(uid))
        .and_then(|f| f.get(5).map(|h| (*h).to_owned()))
        .filter(|h| h.starts_with('/'))
}

fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    let regular = std::fs::metadata(path).is_ok_and(|m| m.is_file());
    if let (true, Ok(file)) = (regular, File::open(path)) {
        // What was read before an error still counts: absence of an entry is reported by name.
        let _ = file.take(MAX_FILE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|l| !l.starts_with('#')).map(|l| l.trim().split(':').collect())
}

fn resolve_in(spec: &str, passwd: &str, group: &str) -> Result<Ids, UserError> {
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let number = user.parse::<u32>().ok();
    let entry = entries(passwd).find(|f| {
        f.first() == Some(&user) || number.is_some() && f.get(2).and_then(|n| n.parse().ok()) == number
    });
    let field = |n: usize| entry.as_ref().and_then(|f| f.get(n)).and_then(|v| v.parse::<u32>().ok());
    let uid = field(2).or(number).or((user.is_empty()).then_some(0));
    let Some(uid) = uid else {
        return Err(UserError::Unknown { what: "user", name: user.to_owned(), file: "passwd" });
    };
    let name = entry.as_ref().and_then(|f| f.first().copied()).unwrap_or(user);
    let gid = match wanted_group {
        None | Some("") => field(3).unwrap_or(0),
        Some(wanted) => group_id(wanted, group)?,
    };
    let groups = match wanted_group {
        Some(g) if !g.is_empty() => Vec::new(),
        _ => entries(group)
            .filter(|f| f.get(3).is_some_and(|m| m.split(',').any(|u| u == name)))
            .filter_map(|f| f.get(2)?.parse().ok())
            .collect(),
    };
    let home = entry.as_ref().and_then(|f| f.get(5)).map(|h| (*h).to_owned());
    Ok(Ids { uid, gid, groups, home })
}

fn group_id(wanted: &str, group: &str) -> Result<u32, UserError> {
    entries(group)
        .find(|f| f.first() == Some(&wanted))
        .and_then(|f| f.get(2)?.parse().ok())
        .or_else(|| wanted.parse().ok())
        .ok_or_else(|| UserError::Unknown { what: "group", name: wanted.to_owned(), file: "group" })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/var/www:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\nmail:x:8:web,other\nlogs:x:9:web\n";

    #[test]
    fn a_name_brings_its_groups() {
        let ids = resolve_in("web", PASSWD, GROUP).unwrap();
        assert_eq!((ids.uid, ids.gid, ids.groups), (33, 33, vec![8, 9]));
        assert_eq!(ids.home.as_deref(), Some("/var/www"));
    }

    #[test]
    fn an_images_own_files_are_read_and_no_others() {
        let root = std::env::temp_dir().join(format!("kata-cc-users-{}", std::process::id()));
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(root.join("etc/passwd"), PASSWD).unwrap();
        std::fs::write(root.join("group"), GROUP).unwrap();
        std::os::unix::fs::symlink("/group", root.join("etc/group")).unwrap();
        let ids = resolve_below(&root, "web").unwrap();
        assert_eq!((ids.uid, ids.gid, ids.groups), (33, 33, vec![8, 9]));
        assert_eq!(resolve_below(&root, "").unwrap().uid, 0);
        std::fs::remove_file(root.join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("../../../../../../../../etc/passwd", root.join("etc/passwd")).unwrap();
        assert!(resolve_below(&root, "daemon").is_err());
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn numbers_need_no_entry() {
        let ids = resolve_in("1000:1001", PASSWD, GROUP).unwrap();
        assert_eq!((ids.uid, ids.gid, ids.groups), (1000, 1001, vec![]));
    }

    #[test]
    fn a_group_can_be_named() {
        assert_eq!(resolve_in("web:mail", PASSWD, GROUP).unwrap().gid, 8);
    }

    #[test]
    fn unknown_names_are_refused() {
        assert!(resolve_in("nobody", PASSWD, GROUP).is_err());
        let error = resolve_in("web:nogroup", PASSWD, GROUP).unwrap_err();
        assert!(error.to_string().contains("no group named \"nogroup\""));
    }
}
