//! `--volume`.

use std::path::PathBuf;

use kata_cc_sentry::vfs::host::Sharing;

/// A folder or file of the host, and where the sandbox sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) source: PathBuf,
    pub(crate) destination: Vec<u8>,
    pub(crate) writable: bool,
    pub(crate) sharing: Sharing,
}

/// Of `SRC:DST[:ro,exclusive]`.
pub(crate) fn parse(text: &str) -> Result<Volume, String> {
    let mut parts = text.split(':');
    let (source, destination) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let options = parts.next().unwrap_or_default();
    if source.is_empty() || parts.next().is_some() {
        return Err("a volume is SRC:DST or SRC:DST:OPTIONS".to_owned());
    }
    if !destination.starts_with('/') || destination.split('/').any(|part| part == "..") {
        return Err(format!("{destination:?} is no absolute path in the sandbox without `..`"));
    }
    let mut volume = Volume {
        source: source.into(),
        destination: destination.trim_end_matches('/').into(),
        writable: true,
        sharing: Sharing::Shared,
    };
    if volume.destination.is_empty() {
        return Err("the root is given by --rootfs".to_owned());
    }
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => volume.writable = false,
            "rw" => volume.writable = true,
            "exclusive" => volume.sharing = Sharing::Exclusive,
            "shared" => volume.sharing = Sharing::Shared,
            other => return Err(format!("{other:?} is none of ro, rw, exclusive, shared")),
        }
    }
    Ok(volume)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_read() {
        let volume = parse("/a b:/c/").unwrap();
        assert_eq!((volume.source, &*volume.destination), (PathBuf::from("/a b"), &b"/c"[..]));
        assert!(volume.writable && volume.sharing == Sharing::Shared);
        let volume = parse("a:/c:ro,exclusive").unwrap();
        assert!(!volume.writable && volume.sharing == Sharing::Exclusive);
        for wrong in ["", "a", "a:", ":/b", "a:b", "a:/", "a:/b:rx", "a:/b:ro:x", "a:/../b"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
