//! Layers that mean harm, and what whiteouts and links do; `fidelity.rs` compares with other programs.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{MetadataExt as _, symlink};

use kata_cc_image::Limits;
use kata_cc_image::unpack::{Budget, LayerStats, Owner, UnpackError, apply};
use proptest::prelude::*;
use tar::{EntryType, Header};

/// An archive built block by block, names as they are given.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn entry(mut self, kind: u8, path: &str, link: &str, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::new(kind));
        header.set_mode(0o755);
        header.set_size(data.len() as u64);
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str) -> Self {
        self.entry(b'0', path, "", b"data")
    }

    fn dir(self, path: &str) -> Self {
        self.entry(b'5', path, "", b"")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path, target, b"")
    }

    fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(b'1', path, target, b"")
    }

    fn pax(self, key: &str, value: &str) -> Self {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length.to_string().len() + rest != length {
            length += 1;
        }
        self.entry(b'x', "pax", "", format!("{length} {key}={value}\n").as_bytes())
    }
}

/// A root with something beside it that must not be touched.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::write(dir.path().join("outside/victim"), "untouched").unwrap();
        Self { dir }
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("root")
    }

    fn outside(&self) -> String {
        self.dir.path().join("outside").display().to_string()
    }

    fn apply_within(&self, archive: &Archive, limits: Limits) -> Result<LayerStats, UnpackError> {
        let owner = if nix::unistd::geteuid().is_root() { Owner::Preserve } else { Owner::Caller };
        let result = apply(archive.0.as_slice(), &self.root(), owner, &mut Budget::new(limits));
        assert_eq!(std::fs::read_to_string(self.dir.path().join("outside/victim")).unwrap(), "untouched");
        let mut names: Vec<_> = std::fs::read_dir(self.dir.path().join("outside"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["victim"]);
        assert_eq!(std::fs::read_dir(self.dir.path()).unwrap().count(), 2);
        result
    }

    fn apply(&self, archive: &Archive) -> Result<LayerStats, UnpackError> {
        self.apply_within(archive, Limits::default())
    }
}

fn refusal(archive: &Archive) -> UnpackError {
    Place::new().apply(archive).unwrap_err()
}

fn is_path(error: &UnpackError) -> bool {
    matches!(error, UnpackError::Path { .. })
}

#[test]
fn refuses_names_that_climb() {
    for name in ["../outside/victim", "a/../../outside/victim", "..", "a/..", "/../outside/victim"] {
        let error = refusal(&Archive::default().file(name));
        assert!(is_path(&error), "{name}: {error}");
    }
    let error = refusal(&Archive::default().pax("path", "../outside/victim").file("x"));
    assert!(is_path(&error), "{error}");
}

#[test]
fn absolute_names_stay_inside() {
    let place = Place::new();
    place.apply(&Archive::default().file("/etc/passwd")).unwrap();
    assert!(place.root().join("etc/passwd").exists());
}

#[test]
fn links_that_lead_out_lead_back_in() {
    let place = Place::new();
    let outside = place.outside();
    let inside = place.root().join(outside.trim_start_matches('/'));
    let archive = Archive::default()
        .dir(outside.trim_start_matches('/'))
        .symlink("absolute", &outside)
        .file("absolute/victim")
        .dir("up")
        .symlink("up/climb", "../../../../../../up")
        .file("up/climb/file");
    place.apply(&archive).unwrap();
    assert_eq!(std::fs::read(inside.join("victim")).unwrap(), b"data");
    assert_eq!(std::fs::read(place.root().join("up/file")).unwrap(), b"data");
}

#[test]
fn refuses_a_parent_that_leads_nowhere() {
    let place = Place::new();
    let error = place.apply(&Archive::default().symlink("l", "/nowhere").file("l/x")).unwrap_err();
    assert!(is_path(&error), "{error}");
    let error = refusal(&Archive::default().symlink("l", "l").file("l/x"));
    assert!(is_path(&error), "{error}");
    let error = refusal(&Archive::default().file("f").file("f/x"));
    assert!(is_path(&error), "{error}");
}

#[test]
fn writes_never_go_through_a_link() {
    let place = Place::new();
    let victim = format!("{}/victim", place.outside());
    place.apply(&Archive::default().symlink("l", &victim).file("l")).unwrap();
    assert!(std::fs::symlink_metadata(place.root().join("l")).unwrap().is_file());
    // Magic links of /proc are not followed either.
    let error = refusal(&Archive::default().symlink("p", "/proc/self/root").file("p/x"));
    assert!(is_path(&error), "{error}");
}

#[test]
fn refuses_hard_links_to_the_outside() {
    let place = Place::new();
    let victim = format!("{}/victim", place.outside());
    for archive in [
        Archive::default().hard_link("l", &victim),
        Archive::default().symlink("out", &place.outside()).hard_link("l", "out/victim"),
        Archive::default().hard_link("l", "missing"),
        Archive::default().dir("d").hard_link("l", "d"),
        Archive::default().hard_link("l", "/"),
    ] {
        let error = place.apply(&archive).unwrap_err();
        assert!(matches!(error, UnpackError::HardLink { .. }), "{error}");
    }
    let error = place.apply(&Archive::default().hard_link("l", "../outside/victim")).unwrap_err();
    assert!(is_path(&error), "{error}");
}

#[test]
fn whiteouts_do_not_reach_outside() {
    let place = Place::new();
    symlink(place.outside(), place.root().join("l")).unwrap();
    let error = place.apply(&Archive::default().file("l/.wh.victim"));
    assert!(error.is_err());
    assert!(place.apply(&Archive::default().file("l/.wh..wh..opq")).is_err());
    place.apply(&Archive::default().file(".wh.l")).unwrap();
    assert!(std::fs::symlink_metadata(place.root().join("l")).is_err());
}

#[test]
fn refuses_a_whiteout_of_its_own_folder() {
    for name in ["d/.wh.", "d/.wh..", "d/.wh..."] {
        let error = refusal(&Archive::default().dir("d").file(name));
        assert!(is_path(&error), "{name}: {error}");
    }
}

#[test]
fn whiteouts_spare_what_the_same_layer_made() {
    let place = Place::new();
    place.apply(&Archive::default().file("d/old").file("d/sub/old").file("e")).unwrap();
    let top = Archive::default()
        .dir("d")
        .file("d/new")
        .file("d/sub/new")
        .file("d/.wh..wh..opq")
        .file("e")
        .file(".wh.e");
    place.apply(&top).unwrap();
    for (name, there) in
        [("d/old", false), ("d/sub/old", false), ("d/new", true), ("d/sub/new", true), ("e", true)]
    {
        assert_eq!(place.root().join(name).exists(), there, "{name}");
    }
}

#[test]
fn refuses_a_root_that_is_no_folder() {
    assert!(is_path(&refusal(&Archive::default().file("/"))));
    assert!(is_path(&refusal(&Archive::default().symlink(".", "/etc"))));
}

#[test]
fn refuses_entry_types_layers_do_not_have() {
    for kind in [b'V', b'M', b'D', b'Z'] {
        let error = refusal(&Archive::default().entry(kind, "x", "", b""));
        assert!(matches!(error, UnpackError::EntryType { .. }), "{error}");
    }
}

#[test]
fn refuses_broken_archives() {
    let mut sum = Archive::default().file("x");
    sum.0[0] = b'y';
    let mut header = Archive::default().file("x");
    header.0.truncate(300);
    let mut data = Archive::default().file("x");
    data.0.truncate(514);
    let mut sparse = Archive::default().pax("GNU.sparse.map", "0,9");
    sparse = sparse.file("x");
    for archive in [sum, header, data, sparse] {
        let error = refusal(&archive);
        assert!(matches!(error, UnpackError::Malformed { .. }), "{error}");
    }
}

#[test]
fn refuses_what_exceeds_limits() {
    let limit = |archive: &Archive, limits: Limits, name: &str| {
        let error = Place::new().apply_within(archive, limits).unwrap_err();
        assert!(matches!(error, UnpackError::Limit { limit, .. } if limit == name), "{name}: {error}");
    };
    let many = Archive::default().file("a").file("b").file("c");
    limit(&many, Limits { max_files: 2, ..Limits::default() }, "max_files");
    limit(&many, Limits { max_unpacked_bytes: 8, ..Limits::default() }, "max_unpacked_bytes");
    let deep = Archive::default().file("a/b/c/d");
    limit(&deep, Limits { max_depth: 3, ..Limits::default() }, "max_depth");
    limit(&deep, Limits { max_path: 4, ..Limits::default() }, "max_path");
    let long = Archive::default().pax("comment", &"x".repeat(4000)).file("a");
    limit(&long, Limits { max_entry_header: 1024, ..Limits::default() }, "max_entry_header");
    // A sparse file costs nothing to store and everything to copy.
    let hole = Archive::default().pax("GNU.sparse.size", "1000000000000").file("a");
    let error = Place::new().apply(&hole).unwrap_err();
    assert!(matches!(error, UnpackError::Malformed { .. } | UnpackError::Limit { .. }), "{error}");
    let mut trailing = Archive::default().file("a");
    trailing.0.resize(trailing.0.len() + (1 << 20), 0);
    limit(&trailing, Limits { max_unpacked_bytes: 1 << 16, ..Limits::default() }, "max_unpacked_bytes");
}

#[test]
fn refuses_attributes_that_steer_overlays() {
    let error = refusal(&Archive::default().pax("SCHILY.xattr.trusted.overlay.redirect", "/etc").dir("d"));
    assert!(matches!(error, UnpackError::Attribute { .. }), "{error}");
}

/// What a layer does not name keeps its times, though something in it changes; a folder that is there by implication has none.
#[test]
fn folders_keep_the_times_that_layers_gave_them() {
    let place = Place::new();
    let mtime = |name: &str| std::fs::metadata(place.root().join(name)).unwrap().mtime();
    place.apply(&Archive::default().pax("mtime", "1000").dir("d").file("d/old").file("d/gone")).unwrap();
    assert_eq!(mtime("d"), 1000);
    place.apply(&Archive::default().file("d/new").file("d/.wh.gone").hard_link("d/link", "d/old")).unwrap();
    assert_eq!(mtime("d"), 1000);
    place.apply(&Archive::default().file("d/.wh..wh..opq").file("made/for/file")).unwrap();
    assert_eq!((mtime("d"), mtime("made"), mtime("made/for")), (1000, 0, 0));
    place.apply(&Archive::default().pax("mtime", "2000").dir("d").file("d/x")).unwrap();
    assert_eq!(mtime("d"), 2000);
}

#[test]
fn access_control_lists_of_names_are_left_out_and_broken_ones_refused() {
    let list = |text: &str| Archive::default().pax("SCHILY.acl.access", text).file("f");
    let named = list("user::rw-,user:daemon:r--,group::r--,mask::r--,other::---");
    assert_eq!(Place::new().apply(&named).unwrap().attributes_left_out, 1);
    let plain = list("user::rw-,group::r--,other::---");
    assert_eq!(Place::new().apply(&plain).unwrap().attributes_left_out, 0);
    let error = refusal(&list("user:rwx"));
    assert!(matches!(error, UnpackError::Malformed { why, .. } if why.contains("access control")), "{error}");
}

#[test]
fn hard_links_reach_into_lower_layers() {
    let place = Place::new();
    place.apply(&Archive::default().file("d/a")).unwrap();
    place.apply(&Archive::default().hard_link("b", "d/a")).unwrap();
    let inode = |name: &str| std::fs::metadata(place.root().join(name)).unwrap().ino();
    assert_eq!(inode("d/a"), inode("b"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_panics_on_changed_archives(at in 0usize..4096, value: u8, cut in 0usize..4096) {
        let mut archive = Archive::default()
            .dir("d").pax("GNU.sparse.map", "0,4").file("d/f").symlink("d/l", "f").hard_link("h", "d/f").file("d/.wh.x");
        let length = archive.0.len();
        archive.0[at % length] = value;
        archive.0.truncate(length - cut % length);
        let place = Place::new();
        let _ = apply(archive.0.as_slice(), &place.root(), Owner::Caller, &mut Budget::new(Limits::default()));
        prop_assert_eq!(std::fs::read_dir(place.dir.path()).unwrap().count(), 2);
    }
}
