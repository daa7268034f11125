//! Layers unpacked by us and by other programs, over generated trees: GNU tar for single layers, umoci for whole images.
//!
//! Compared is all that a layer carries: kinds, content, modes, owners, times, device numbers, which names are one file, extended
//! attributes, access control lists, and that holes stay holes. Needs root; says what is missing and skips otherwise.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/tree.rs"]
mod tree;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Image, missing};
use kata_cc_image::Limits;
use kata_cc_image::unpack::{Budget, Owner, apply};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use proptest::prelude::*;
use tree::{Tree, differences, filled};

/// True, and said, when there is no root or a program is missing.
fn skipped(tools: &[&str]) -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: owners and devices can be set by root only");
        return true;
    }
    missing(tools)
}

/// A file of a generated tree.
#[derive(Debug, Clone)]
enum Node {
    File { size: u32, xattrs: bool, acl: bool },
    Sparse { pieces: Vec<(u32, u16)>, tail: u32 },
    Dir { xattrs: bool, acl: bool },
    Symlink(u16),
    HardLink(u8),
    Fifo,
    Device { block: bool, major: u16, minor: u32 },
}

/// What any file has besides.
#[derive(Debug, Clone)]
struct Attributes {
    name: Vec<u8>,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, u32),
    folder: u8,
}

fn node() -> impl Strategy<Value = Node> {
    prop_oneof![
        4 => (0u32..9000, any::<bool>(), any::<bool>())
            .prop_map(|(size, xattrs, acl)| Node::File { size, xattrs, acl }),
        1 => (prop::collection::vec((0u32..2_000_000, 1u16..9000), 0..12), 0u32..3_000_000)
            .prop_map(|(pieces, tail)| Node::Sparse { pieces, tail }),
        4 => (any::<bool>(), any::<bool>()).prop_map(|(xattrs, acl)| Node::Dir { xattrs, acl }),
        1 => (1u16..2000).prop_map(Node::Symlink),
        2 => any::<u8>().prop_map(Node::HardLink),
        1 => Just(Node::Fifo),
        1 => (any::<bool>(), 0u16..4096, 0u32..(1 << 20))
            .prop_map(|(block, major, minor)| Node::Device { block, major, minor }),
    ]
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let name = prop_oneof![
        6 => "[a-z]{1,12}".prop_map(String::into_bytes),
        1 => (100usize..250).prop_map(|length| vec![b'l'; length]),
        1 => prop::collection::vec(prop_oneof![Just(0xffu8), Just(b'\n'), Just(b' '), Just(b'\\'), Just(0xc3)], 1..8),
    ];
    let id = prop_oneof![4 => 0u32..70_000, 1 => 2_000_000u32..2_200_000, 1 => 0x7fff_fff0u32..0xffff_fff0];
    let seconds = prop_oneof![6 => 0i64..4_000_000_000, 1 => -2_000_000_000i64..0, 1 => 8_000_000_000i64..9_000_000_000];
    (name, 0u32..0o10000, (id.clone(), id), (seconds, 0u32..1_000_000_000), any::<u8>())
        .prop_map(|(name, mode, owner, mtime, folder)| Attributes { name, mode, owner, mtime, folder })
}

/// A list that lets one more user and group in.
fn acl(user: u32) -> Vec<u8> {
    let none = u32::MAX;
    let mut bytes = vec![2, 0, 0, 0];
    for (tag, permissions, id) in
        [(1u16, 6u16, none), (2, 5, user), (4, 4, none), (8, 7, user + 1), (16, 5, none), (32, 0, none)]
    {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn set_attributes(path: &Path, xattrs: bool, list: bool, kind: char) {
    if xattrs {
        xattr::set(path, "user.kata", b"value\n\0=").unwrap();
        xattr::set(path, "user.empty", b"").unwrap();
        xattr::set(path, "trusted.other", &[0xff; 40]).unwrap();
        if kind == 'f' {
            let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            xattr::set(path, "security.capability", &capability).unwrap();
        }
    }
    if list {
        xattr::set(path, "system.posix_acl_access", &acl(12345)).unwrap();
        if kind == 'd' {
            xattr::set(path, "system.posix_acl_default", &acl(54321)).unwrap();
        }
    }
}

/// What a format can hold; the rest is cut to it before packing.
#[derive(Debug, Clone, Copy)]
struct Holds {
    max_id: u32,
    nanoseconds: bool,
    seconds: (i64, i64),
    device: (u16, u32),
    xattrs: bool,
    acls: bool,
    max_name: usize,
}

const USTAR: Holds = Holds {
    max_id: 0o7_777_777,
    nanoseconds: false,
    seconds: (0, 0o77_777_777_777),
    device: (4095, 0o7_777_777),
    xattrs: false,
    acls: false,
    // with `./` and folders; longer ones cannot always be split
    max_name: 12,
};
const GNU: Holds = Holds { max_id: u32::MAX - 1, seconds: (i64::MIN, i64::MAX), max_name: 255, ..USTAR };
const PAX: Holds = Holds { nanoseconds: true, xattrs: true, acls: true, ..GNU };

/// Makes the tree; folders' modes and times last, the deepest first.
fn grow(root: &Path, nodes: &[(Node, Attributes)], holds: Holds) {
    let (mut files, mut dirs) = (Vec::new(), vec![root.to_owned()]);
    let mut late = Vec::new();
    for (number, (node, own)) in nodes.iter().enumerate() {
        let mut name = own.name.clone();
        name.truncate(holds.max_name - 4);
        name.extend_from_slice(number.to_string().as_bytes());
        let folder = &dirs[usize::from(own.folder) % dirs.len()];
        let path: PathBuf = folder.join(OsStr::from_bytes(&name));
        let (mut xattrs, mut list, mut kind) = (false, false, 'o');
        match node {
            Node::File { size, xattrs: with, acl } => {
                std::fs::write(&path, vec![b'a' + u8::try_from(number % 26).unwrap(); *size as usize])
                    .unwrap();
                (xattrs, list, kind) = (*with, *acl, 'f');
                files.push(path.clone());
            }
            Node::Sparse { pieces, tail } => {
                let file = std::fs::File::create(&path).unwrap();
                let mut at = 0;
                for (gap, length) in pieces {
                    at += u64::from(*gap);
                    file.write_all_at(&vec![b'S'; usize::from(*length)], at).unwrap();
                    at += u64::from(*length);
                }
                file.set_len(at + u64::from(*tail)).unwrap();
                files.push(path.clone());
            }
            Node::Dir { xattrs: with, acl } => {
                std::fs::create_dir(&path).unwrap();
                (xattrs, list, kind) = (*with, *acl, 'd');
                if path.components().count() < 20 {
                    dirs.push(path.clone());
                }
            }
            Node::Symlink(length) => {
                let length = usize::from(*length).min(if holds.max_name < 255 { 90 } else { 2000 });
                symlink("t".repeat(length), &path).unwrap();
                kind = 'l';
            }
            Node::HardLink(which) => {
                if let Some(target) = files.get(usize::from(*which) % files.len().max(1)) {
                    std::fs::hard_link(target, &path).unwrap();
                }
                continue;
            }
            Node::Fifo => nix::unistd::mkfifo(&path, Mode::S_IRUSR).unwrap(),
            Node::Device { block, major, minor } => {
                let kind = if *block { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
                let device =
                    makedev((*major).min(holds.device.0).into(), (*minor).min(holds.device.1).into());
                mknod(&path, kind, Mode::S_IRUSR, device).unwrap();
            }
        }
        let id = |id: u32| Some(id % (holds.max_id.saturating_add(1)).max(1));
        std::os::unix::fs::lchown(&path, id(own.owner.0), id(own.owner.1)).unwrap();
        late.push((path, own, kind, xattrs && holds.xattrs, list && holds.acls));
    }
    for (path, own, kind, xattrs, list) in late.iter().rev() {
        if *kind != 'l' {
            let mode = if *kind == 'd' { own.mode | 0o700 } else { own.mode };
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        set_attributes(path, *xattrs, *list, *kind);
        let seconds = own.mtime.0.clamp(holds.seconds.0, holds.seconds.1);
        let time = TimeSpec::new(seconds, if holds.nanoseconds { own.mtime.1.into() } else { 0 });
        utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
    }
    let time = TimeSpec::new(1_000_000_000, 0);
    utimensat(nix::fcntl::AT_FDCWD, root, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
}

fn tar(args: &[&str], dir: &Path) -> Vec<u8> {
    let output = Command::new("tar").args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "tar {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn fresh(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir(&path).unwrap();
    path
}

fn unpack(archive: &[u8], root: &Path) {
    apply(archive, root, Owner::Preserve, &mut Budget::new(Limits::default())).unwrap();
}

const FORMATS: [(&[&str], Holds); 7] = [
    (&["--format=pax", "--xattrs", "--xattrs-include=*", "--acls", "--sparse"], PAX),
    (&["--format=pax", "--acls", "--sparse", "--sparse-version=0.0"], Holds { xattrs: false, ..PAX }),
    (
        &["--format=pax", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.1"],
        Holds { acls: false, ..PAX },
    ),
    (&["--format=gnu", "--sparse"], GNU),
    (&["--format=gnu"], GNU),
    (&["--format=ustar"], USTAR),
    (&["--format=v7"], USTAR),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn single_layers_are_as_gnu_tar_unpacks_them(
        nodes in prop::collection::vec((node(), attributes()), 0..24),
        format in 0..FORMATS.len(),
    ) {
        if skipped(&["tar"]) {
            return Ok(());
        }
        let dir = tempfile::tempdir().unwrap();
        let (format, holds) = FORMATS[format];
        let mut nodes = nodes;
        if format[0] == "--format=v7" {
            // It has no devices and pipes.
            nodes.retain(|(node, _)| !matches!(node, Node::Fifo | Node::Device { .. }));
        }
        if holds.max_name < 255 {
            // Names of 100 bytes: nothing deep.
            nodes.iter_mut().for_each(|(_, own)| own.folder %= 4);
        }
        let source = fresh(dir.path(), "source");
        grow(&source, &nodes, holds);
        let pack: &[&str] = &["--numeric-owner", "--record-size=4096"];
        let archive = tar(&[pack, format, &["-cf", "-", "."]].concat(), &source);
        let path = dir.path().join("archive");
        std::fs::write(&path, &archive).unwrap();
        let (ours, theirs) = (fresh(dir.path(), "ours"), fresh(dir.path(), "theirs"));
        unpack(&archive, &ours);
        let flags = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--same-owner", "-xpf"];
        tar(&[&flags[..], &[&path.display().to_string()]].concat(), &theirs);
        let (ours, theirs) = (Tree::read(&ours), Tree::read(&theirs));
        let found = [differences(&ours, &theirs), filled(&ours, &theirs)].concat();
        prop_assert!(found.is_empty(), "{:?}:\n{}", format, found.join("\n"));
        // And nothing was lost on the way, be it by both.
        let found = differences(&ours, &Tree::read(&source));
        prop_assert!(found.is_empty(), "{:?}, the source:\n{}", format, found.join("\n"));
    }
}

/// An entry of a generated layer, over few names, so that layers meet.
#[derive(Debug, Clone)]
struct Change {
    path: Vec<u8>,
    what: What,
    mode: u32,
    owner: (u32, u32),
    mtime: u32,
    attributes: Vec<(&'static str, u8)>,
}

#[derive(Debug, Clone)]
enum What {
    File(u16),
    Dir,
    Symlink(u8),
    HardLink(Vec<u8>),
    Fifo,
    Device,
    Whiteout,
    Opaque,
}

fn few_paths() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0usize..3, 1..4).prop_map(|parts| {
        parts.iter().map(|part| ["a", "b", "c"][*part]).collect::<Vec<_>>().join("/").into_bytes()
    })
}

fn change() -> impl Strategy<Value = Change> {
    let what = prop_oneof![
        4 => (0u16..5000).prop_map(What::File),
        4 => Just(What::Dir),
        1 => any::<u8>().prop_map(What::Symlink),
        2 => few_paths().prop_map(What::HardLink),
        1 => Just(What::Fifo),
        1 => Just(What::Device),
        3 => Just(What::Whiteout),
        2 => Just(What::Opaque),
    ];
    let names = prop_oneof![Just("trusted.one"), Just("trusted.two"), Just("security.three")];
    let attributes = prop::collection::vec((names, 1u8..9), 0..3);
    (few_paths(), what, 0u32..0o10000, (0u32..70_000, 0u32..70_000), any::<u32>(), attributes).prop_map(
        |(path, what, mode, owner, mtime, attributes)| Change { path, what, mode, owner, mtime, attributes },
    )
}

/// What is there while a layer is written: only changes that make sense are kept, so that both programs take the image.
#[derive(Default)]
struct Model {
    kinds: std::collections::BTreeMap<Vec<u8>, char>,
}

impl Model {
    fn parent_is_folder(&self, path: &[u8]) -> bool {
        match path.iter().rposition(|byte| *byte == b'/') {
            None => true,
            Some(at) => self.kinds.get(&path[..at]) == Some(&'d'),
        }
    }

    fn remove(&mut self, path: &[u8], itself: bool, spare: &std::collections::BTreeSet<Vec<u8>>) {
        let below = [path, b"/"].concat();
        self.kinds.retain(|name, _| {
            !(name.starts_with(&below) || (itself && name == path))
                || spare.iter().any(|kept| kept == name || kept.starts_with(&[name, &b"/"[..]].concat()))
        });
    }

    /// The archive of a layer.
    fn layer(&mut self, changes: &[Change]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut named = std::collections::BTreeSet::new();
        for change in changes {
            // Whether a name of this layer may be named again, or be hidden by it, is told differently everywhere.
            if named.contains(&change.path) || !self.parent_is_folder(&change.path) {
                continue;
            }
            let mut header = tar::Header::new_gnu();
            header.set_mode(change.mode);
            header.set_uid(change.owner.0.into());
            header.set_gid(change.owner.1.into());
            header.set_mtime(change.mtime.into());
            header.set_size(0);
            let (folder, name) = match change.path.iter().rposition(|byte| *byte == b'/') {
                None => (&b""[..], change.path.as_slice()),
                Some(at) => (&change.path[..=at], &change.path[at + 1..]),
            };
            let path = |path: &[u8]| PathBuf::from(OsStr::from_bytes(path));
            let mut data = Vec::new();
            let mut link = None;
            let mut at = change.path.clone();
            let was = self.kinds.get(&change.path).copied();
            let kind = match &change.what {
                What::File(size) => {
                    data = vec![b'a' + u8::try_from(change.mode % 26).unwrap(); usize::from(*size)];
                    header.set_size(data.len() as u64);
                    Some(('f', tar::EntryType::Regular))
                }
                What::Dir => Some(('d', tar::EntryType::Directory)),
                What::Symlink(length) => {
                    link = Some(vec![b't'; usize::from(*length) % 90 + 1]);
                    Some(('l', tar::EntryType::Symlink))
                }
                What::HardLink(target) => {
                    let usable = matches!(self.kinds.get(target), Some('f' | 'p' | 'c'));
                    let hides = target.starts_with(&[&change.path[..], b"/"].concat());
                    if !usable || hides || *target == change.path {
                        continue;
                    }
                    link = Some(target.clone());
                    Some((self.kinds[target], tar::EntryType::Link))
                }
                What::Fifo => Some(('p', tar::EntryType::Fifo)),
                What::Device => {
                    header.set_device_major(change.mode % 4096).unwrap();
                    header.set_device_minor(change.mtime % 256).unwrap();
                    Some(('c', tar::EntryType::Char))
                }
                What::Whiteout | What::Opaque => None,
            };
            match (kind, &change.what) {
                (Some((kind, entry)), _) => {
                    header.set_entry_type(entry);
                    if !(kind == 'd' && was == Some('d')) {
                        self.remove(&change.path, true, &std::collections::BTreeSet::new());
                        named.retain(|name: &Vec<u8>| !name.starts_with(&[&change.path[..], b"/"].concat()));
                    }
                    self.kinds.insert(change.path.clone(), kind);
                    named.insert(change.path.clone());
                }
                (None, What::Whiteout) if was.is_some() => {
                    // What this layer put below would have to stay: said apart, in archive.rs.
                    if named.iter().any(|name| name.starts_with(&[&change.path[..], b"/"].concat())) {
                        continue;
                    }
                    self.remove(&change.path, true, &named);
                    at = [folder, b".wh.", name].concat();
                    header.set_entry_type(tar::EntryType::Regular);
                }
                (None, What::Opaque) if was == Some('d') => {
                    self.remove(&change.path, false, &named);
                    at = [&change.path[..], b"/.wh..wh..opq"].concat();
                    header.set_entry_type(tar::EntryType::Regular);
                }
                _ => continue,
            }
            let named_attributes = kind.is_some_and(|(_, entry)| entry != tar::EntryType::Link);
            let attributes = change.attributes.iter().filter(|_| named_attributes);
            let records: std::collections::BTreeMap<_, _> = attributes
                .map(|(name, length)| (format!("SCHILY.xattr.{name}"), vec![b'v'; usize::from(*length)]))
                .collect();
            if !records.is_empty() {
                let records = records.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
                builder.append_pax_extensions(records).unwrap();
            }
            match link {
                Some(target) => builder.append_link(&mut header, path(&at), path(&target)).unwrap(),
                None => builder.append_data(&mut header, path(&at), data.as_slice()).unwrap(),
            }
        }
        builder.into_inner().unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn images_are_as_umoci_unpacks_them(
        layers in prop::collection::vec(prop::collection::vec(change(), 0..14), 1..5)
    ) {
        if skipped(&["umoci"]) {
            return Ok(());
        }
        let dir = tempfile::tempdir().unwrap();
        let (mut model, ours) = (Model::default(), fresh(dir.path(), "ours"));
        // umoci gives the root no times that a layer does not give.
        let mut root = tar::Header::new_gnu();
        root.set_mode(0o755);
        root.set_mtime(1_000_000_000);
        root.set_size(0);
        root.set_entry_type(tar::EntryType::Directory);
        root.set_uid(0);
        root.set_gid(0);
        let mut first = tar::Builder::new(Vec::new());
        first.append_data(&mut root, "./", std::io::empty()).unwrap();
        let mut archives = vec![first.into_inner().unwrap()];
        archives.extend(layers.iter().map(|changes| model.layer(changes)));
        let mut budget = Budget::new(Limits::default());
        for archive in &archives {
            apply(archive.as_slice(), &ours, Owner::Preserve, &mut budget).unwrap();
        }
        let kind = "application/vnd.oci.image.layer.v1.tar";
        let parts: Vec<_> = archives.iter().map(|archive| (kind, archive.clone(), archive.as_slice())).collect();
        Image::new(&parts).layout(&dir.path().join("layout"));
        let theirs = dir.path().join("theirs");
        let name = format!("{}:t", dir.path().join("layout").display());
        let output = Command::new("umoci").args(["raw", "unpack", "--image", &name]).arg(&theirs).output().unwrap();
        prop_assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let (ours, theirs) = (Tree::read(&ours), Tree::read(&theirs));
        let found = [differences(&ours, &theirs), filled(&ours, &theirs)].concat();
        prop_assert!(found.is_empty(), "{}", found.join("\n"));
        // Both of them, and what the layers say.
        let there: Vec<_> = ours.files.iter().filter(|(path, _)| !path.is_empty()).map(|(path, facts)| (path.clone(), facts.kind)).collect();
        prop_assert_eq!(there, model.kinds.into_iter().collect::<Vec<_>>());
    }
}
