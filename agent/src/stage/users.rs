//! Looks user and group names up in the container's own `/etc/passwd` and `/etc/group`.
//!
//! The files come from an image: at most [`MAX_FILE`] bytes are read, lines that do not parse are skipped.

use std::fs::File;
use std::io::Read;
use std::path::Path;

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
