//! What an entry of a layer asks for, the same for all who apply layers: to a folder (`super::apply`), or to a tree that becomes a
//! sealed image (`kata-cc-sealed-image`).
//!
//! Source: OCI image-spec `layer.md` (whiteouts), AUFS (`.wh..wh.` names, its own records). What is refused whatever it is
//! applied to is refused here.

use super::entry::{Entry, Kind};
use super::{UnpackError, show};
use crate::Limits;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Longest target of a symbolic link (`PATH_MAX` without its zero byte).
const MAX_LINK: usize = 4095;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'e> {
    /// Describe the root folder.
    Root,
    /// Hide what lower layers have in the folder.
    Opaque {
        /// Components of the folder.
        folder: Vec<&'e [u8]>,
    },
    /// Hide what lower layers have under a name.
    Whiteout {
        /// Components of the folder.
        folder: Vec<&'e [u8]>,
        /// The name.
        name: &'e [u8],
    },
    /// Nothing: a record of AUFS.
    Nothing,
    /// Make the entry.
    Make {
        /// Components of the folder.
        folder: Vec<&'e [u8]>,
        /// The name.
        name: &'e [u8],
    },
}

/// What the entry asks for.
///
/// # Errors
/// When its path, link, owner or an attribute is one that layers may not have, or a limit is exceeded.
pub fn step<'e>(entry: &'e Entry, limits: &Limits) -> Result<Step<'e>, UnpackError> {
    let refuse = |why| UnpackError::Path { path: show(&entry.path), why };
    let mut folder = components(&entry.path, limits)?;
    let Some(name) = folder.pop() else {
        if entry.kind != Kind::Dir {
            return Err(refuse("it names the root, which is a folder"));
        }
        check(entry)?;
        return Ok(Step::Root);
    };
    if name == OPAQUE {
        return Ok(Step::Opaque { folder });
    }
    match name.strip_prefix(WHITEOUT) {
        Some(b"" | b"." | b"..") => Err(refuse("it is a whiteout of the folder it stands in")),
        // AUFS keeps its own records under such names; they are no content.
        Some(target) if target.starts_with(WHITEOUT) => Ok(Step::Nothing),
        Some(name) => Ok(Step::Whiteout { folder, name }),
        None => {
            check(entry)?;
            Ok(Step::Make { folder, name })
        }
    }
}

/// Refuses what no file of a layer may have.
fn check(entry: &Entry) -> Result<(), UnpackError> {
    let refuse = |why| UnpackError::Path { path: show(&entry.path), why };
    if entry.kind == Kind::HardLink {
        return Ok(());
    }
    if entry.kind == Kind::Symlink
        && (entry.link.is_empty() || entry.link.contains(&0) || entry.link.len() > MAX_LINK)
    {
        return Err(refuse("its link target is empty, too long, or holds a zero byte"));
    }
    owner(entry)?;
    // The guest's own overlay mounts obey these: a layer could make them show other files.
    let steers = |name: &[u8]| name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    match entry.xattrs.iter().find(|(name, _)| steers(name)) {
        Some((name, _)) => Err(UnpackError::Attribute { path: show(&entry.path), name: show(name) }),
        None => Ok(()),
    }
}

/// User and group of an entry.
///
/// # Errors
/// When they do not fit 32 bits, or stand for "unchanged".
pub fn owner(entry: &Entry) -> Result<(u32, u32), UnpackError> {
    let id = |value: u64| {
        u32::try_from(value).ok().filter(|id| *id != u32::MAX).ok_or_else(|| UnpackError::Path {
            path: show(&entry.path),
            why: "its owner or group does not fit 32 bits",
        })
    };
    Ok((id(entry.uid)?, id(entry.gid)?))
}

/// Cuts a path into components: a leading `/` and `.` components mean nothing, `..` is refused.
///
/// # Errors
/// When the path is refused or too long.
pub fn components<'p>(path: &'p [u8], limits: &Limits) -> Result<Vec<&'p [u8]>, UnpackError> {
    let refuse = |why| UnpackError::Path { path: show(path), why };
    if path.len() > limits.max_path {
        return Err(UnpackError::Limit { limit: "max_path", max: limits.max_path as u64 });
    }
    if path.contains(&0) {
        return Err(refuse("it holds a zero byte"));
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(refuse("it climbs out with ..")),
            _ if part.len() > 255 => return Err(refuse("a component is longer than 255 bytes")),
            _ => parts.push(part),
        }
    }
    if parts.len() > limits.max_depth {
        return Err(UnpackError::Limit { limit: "max_depth", max: limits.max_depth as u64 });
    }
    Ok(parts)
}
