//! Layers that mean harm, and layers of every kind of file compared with GNU tar.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

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

#[test]
fn hard_links_reach_into_lower_layers() {
    let place = Place::new();
    place.apply(&Archive::default().file("d/a")).unwrap();
    place.apply(&Archive::default().hard_link("b", "d/a")).unwrap();
    let inode = |name: &str| std::fs::metadata(place.root().join(name)).unwrap().ino();
    assert_eq!(inode("d/a"), inode("b"));
}

#[derive(Debug, Clone)]
enum Node {
    File { size: u32, mode: u32, xattr: bool },
    Sparse { at: u32 },
    Dir { mode: u32 },
    Symlink(u8),
    HardLink(u8),
    Fifo,
    Device,
    LongName(u8),
}

fn node() -> impl Strategy<Value = Node> {
    prop_oneof![
        (0u32..9000, 0u32..0o10000, any::<bool>()).prop_map(|(size, mode, xattr)| Node::File {
            size,
            mode,
            xattr
        }),
        (1u32..3_000_000).prop_map(|at| Node::Sparse { at }),
        (0o700u32..0o10000).prop_map(|mode| Node::Dir { mode }),
        any::<u8>().prop_map(Node::Symlink),
        any::<u8>().prop_map(Node::HardLink),
        Just(Node::Fifo),
        Just(Node::Device),
        any::<u8>().prop_map(Node::LongName),
    ]
}

fn grow(root: &Path, nodes: &[Node]) {
    let mut files = Vec::new();
    let mut dirs = vec![root.to_owned()];
    for (number, node) in nodes.iter().enumerate() {
        let path = dirs[number * 7 % dirs.len()].join(format!("n{number}-ü"));
        match node {
            Node::File { size, mode, xattr } => {
                std::fs::write(&path, vec![b'a' + u8::try_from(number % 26).unwrap(); *size as usize])
                    .unwrap();
                std::os::unix::fs::chown(&path, Some(1000 + *size), Some(7)).unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).unwrap();
                if *xattr {
                    let _ = xattr::set(&path, "user.kata", b"value\n\0=");
                    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                    let _ = xattr::set(&path, "security.capability", &capability);
                }
                files.push(path);
            }
            Node::Sparse { at } => {
                use std::os::unix::fs::FileExt as _;
                let file = std::fs::File::create(&path).unwrap();
                file.write_at(b"middle", u64::from(*at)).unwrap();
                file.set_len(u64::from(*at) + 5_000_000).unwrap();
                files.push(path);
            }
            Node::Dir { mode } => {
                std::fs::create_dir(&path).unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).unwrap();
                dirs.push(path);
            }
            Node::Symlink(length) => symlink("t/".repeat(usize::from(*length) + 1), &path).unwrap(),
            Node::HardLink(which) => {
                if let Some(target) = files.get(usize::from(*which) % files.len().max(1)) {
                    std::fs::hard_link(target, &path).unwrap();
                }
            }
            Node::Fifo => {
                nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap()
            }
            Node::Device => {
                let kind = nix::sys::stat::SFlag::S_IFCHR;
                let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
                let _ = nix::sys::stat::mknod(&path, kind, mode, nix::sys::stat::makedev(1, 3));
            }
            Node::LongName(length) => {
                let path = path.with_file_name("l".repeat(usize::from(*length).min(240) + 10));
                std::fs::write(path, "x").unwrap();
            }
        }
    }
}

type Facts = (u32, u32, u32, u64, i64, i64, u64, u64, Vec<u8>, Vec<(String, Vec<u8>)>);

/// Everything about a tree that a layer carries.
fn facts(root: &Path) -> BTreeMap<String, Facts> {
    fn walk(root: &Path, path: &Path, out: &mut BTreeMap<String, Facts>) {
        let meta = std::fs::symlink_metadata(path).unwrap();
        let content = if meta.is_file() {
            std::fs::read(path).unwrap()
        } else if meta.is_symlink() {
            std::fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        };
        let size = if meta.is_dir() { 0 } else { meta.size() };
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        let mut attributes: Vec<_> = xattr::list(path)
            .map(|names| {
                let get = |name: std::ffi::OsString| {
                    let value = xattr::get(path, &name).ok().flatten().unwrap_or_default();
                    (name.to_string_lossy().into_owned(), value)
                };
                names.map(get).collect()
            })
            .unwrap_or_default();
        attributes.sort();
        let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        let fact = (
            meta.mode(),
            meta.uid(),
            meta.gid(),
            size,
            meta.mtime(),
            meta.mtime_nsec(),
            links,
            meta.rdev(),
            content,
            attributes,
        );
        out.insert(name, fact);
        if meta.is_dir() {
            for entry in std::fs::read_dir(path).unwrap() {
                walk(root, &entry.unwrap().path(), out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut out);
    out
}

fn tar(args: &[&str], dir: &Path) -> Vec<u8> {
    let output = Command::new("tar").args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "tar {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn unpacks_what_gnu_tar_packs(nodes in prop::collection::vec(node(), 0..24)) {
        if !nix::unistd::geteuid().is_root() || !Path::new("/usr/bin/tar").exists() {
            println!("skipped: needs root and tar");
            return Ok(());
        }
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        std::fs::create_dir(&source).unwrap();
        grow(&source, &nodes);
        for format in [
            &["--xattrs", "--xattrs-include=*", "--format=pax", "--sparse"][..],
            &["--xattrs", "--xattrs-include=*", "--format=pax", "--sparse", "--sparse-version=0.0"],
            &["--xattrs", "--xattrs-include=*", "--format=pax", "--sparse", "--sparse-version=0.1"],
            &["--format=gnu", "--sparse"],
            &["--format=gnu"],
        ] {
            let pack: &[&str] = &["--numeric-owner", "--record-size=4096"];
            let archive = tar(&[pack, format, &["-cf", "-", "."]].concat(), &source);
            let path = dir.path().join("archive");
            std::fs::write(&path, &archive).unwrap();
            let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
            for folder in [&ours, &theirs] {
                let _ = std::fs::remove_dir_all(folder);
                std::fs::create_dir(folder).unwrap();
            }
            apply(archive.as_slice(), &ours, Owner::Preserve, &mut Budget::new(Limits::default())).unwrap();
            let unpack = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "-xpf"];
            tar(&[&unpack[..], &[&path.display().to_string()]].concat(), &theirs);
            prop_assert_eq!(facts(&ours), facts(&theirs), "{:?}", format);
        }
    }

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
