//! What an OCI `cgroupsPath` means.

use std::io;
use std::path::{Component, PathBuf};

/// The path that an OCI `cgroupsPath` means below the root: as it stands, or `slice:prefix:name` as engines write for
/// systemd (`a-b.slice` lies in `a.slice`: systemd.slice(5)). None when it names none.
///
/// # Errors
/// It leaves the root.
pub fn below_the_root(cgroups_path: &str) -> io::Result<Option<PathBuf>> {
    let refused =
        || io::Error::new(io::ErrorKind::InvalidInput, "it must not leave the control groups' root");
    let mut path = PathBuf::new();
    let text = cgroups_path.trim_matches('/');
    match *text.split(':').collect::<Vec<_>>() {
        [slice, prefix, name] => {
            let stem = slice.strip_suffix(".slice").unwrap_or(slice).trim_start_matches('-');
            if stem.contains('/') || name.is_empty() || name.contains('/') || prefix.contains('/') {
                return Err(refused());
            }
            // "-.slice" and none are the root.
            for (at, _) in stem.match_indices('-').chain([(stem.len(), "")]).filter(|(at, _)| *at > 0) {
                path.push(format!("{}.slice", &stem[..at]));
            }
            path.push(unit(prefix, name));
        }
        _ => path.push(text),
    }
    if path.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(refused());
    }
    Ok(Some(path).filter(|path| !path.as_os_str().is_empty()))
}

/// systemd's unit of a container.
pub(super) fn unit(prefix: &str, name: &str) -> String {
    let unit = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}-{name}") };
    if unit.ends_with(".slice") { unit } else { format!("{unit}.scope") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_forms_become_paths_below_the_root() {
        let path = |name| below_the_root(name).unwrap().map(|path| path.to_str().unwrap().to_owned());
        assert_eq!(path("/default/c1").as_deref(), Some("default/c1"));
        assert_eq!(path("kubepods/burstable/pod1/c1").as_deref(), Some("kubepods/burstable/pod1/c1"));
        assert_eq!(
            path("kubepods-burstable-pod1.slice:cri-containerd:c1").as_deref(),
            Some(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-c1.scope"
            )
        );
        assert_eq!(path(":docker:c1").as_deref(), Some("docker-c1.scope"));
        assert_eq!(path("-.slice:docker:c1").as_deref(), Some("docker-c1.scope"));
        assert_eq!(path("system.slice::c1").as_deref(), Some("system.slice/c1.scope"));
        assert_eq!(path("/"), None);
        assert_eq!(path(""), None);
        for bad in ["../x", "/a/../../x", "a/./../..", "s.slice:a/..:x", "../s.slice:a:x", "s.slice:a:"] {
            assert!(below_the_root(bad).is_err(), "{bad}");
        }
    }
}
