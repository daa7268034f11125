//! Sealed images against programs of others: erofs-utils reads the file system, GNU tar says what should be in it, veritysetup checks the
//! tree. As root: owners and devices are compared.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use kata_cc_image::Limits;
use kata_cc_sealed_image::{Seal, SealError, seal};
use tar::{Builder, EntryType, Header};

/// An archive that is being made.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, size: usize) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(size as u64);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header
    }

    fn add(mut self, mut header: Header, path: &str, data: &[u8]) -> Self {
        self.0.append_data(&mut header, path, data).unwrap();
        self
    }

    fn file(self, path: &str, data: &[u8]) -> Self {
        self.add(Self::header(EntryType::Regular, data.len()), path, data)
    }

    fn folder(self, path: &str) -> Self {
        self.add(Self::header(EntryType::Directory, 0), path, &[])
    }

    fn link(mut self, kind: EntryType, path: &str, target: &str) -> Self {
        let mut header = Self::header(kind, 0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    /// Extended attributes of what is added next.
    fn xattrs(mut self, all: &[(&str, &[u8])]) -> Self {
        let keys: Vec<_> = all.iter().map(|(name, _)| format!("SCHILY.xattr.{name}")).collect();
        let pairs = keys.iter().zip(all).map(|(key, (_, value))| (key.as_str(), *value));
        self.0.append_pax_extensions(pairs).unwrap();
        self
    }

    fn end(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

struct Sealed {
    folder: tempfile::TempDir,
    seal: Seal,
}

fn try_seal(layers: &[Vec<u8>]) -> Result<Sealed, SealError> {
    let folder = tempfile::tempdir().unwrap();
    let mut file = File::create_new(folder.path().join("image")).unwrap();
    let layers = layers.iter().map(|layer| io::Result::Ok(Cursor::new(layer.as_slice())));
    let seal = seal(layers, &mut file, Limits::default())?;
    Ok(Sealed { folder, seal })
}

fn sealed(layers: &[Vec<u8>]) -> Sealed {
    try_seal(layers).unwrap()
}

impl Sealed {
    fn path(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// All files, as erofs-utils extracts them.
    fn extract(&self) -> PathBuf {
        let to = self.folder.path().join("files");
        let mut command = Command::new("fsck.erofs");
        succeed(command.arg(format!("--extract={}", to.display())).arg(self.path()));
        to
    }
}

fn succeed(command: &mut Command) -> String {
    let out = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}: install erofs-utils, cryptsetup-bin, tar"));
    let text = [out.stdout, out.stderr].map(|part| String::from_utf8_lossy(&part).into_owned()).concat();
    assert!(out.status.success(), "{command:?}: {text}");
    text
}

/// What is compared of a file.
fn describe(path: &Path) -> String {
    let meta = fs::symlink_metadata(path).unwrap();
    let kind = meta.file_type();
    let content = if kind.is_symlink() {
        format!("-> {}", fs::read_link(path).unwrap().display())
    } else if kind.is_file() {
        let mut bytes = Vec::new();
        File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
        format!("{} {}", bytes.len(), hex::encode(digest.as_ref()))
    } else if kind.is_char_device() || kind.is_block_device() {
        format!("device {:x}", meta.rdev())
    } else {
        String::new()
    };
    // Times of links are not set by erofs-utils 1.5.
    let time = if kind.is_symlink() { 0 } else { meta.mtime() };
    let links = if kind.is_dir() { 0 } else { meta.nlink() };
    // erofs-utils 1.5 sets the owner last, which takes the set-user-id bit away
    let mode = meta.mode() & !0o6000;
    format!("{mode:o} {}:{} {time} {links} {content}", meta.uid(), meta.gid())
}

fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            all.insert(name, describe(&path));
            if path.symlink_metadata().unwrap().is_dir() {
                waiting.push(path);
            }
        }
    }
    all
}

/// Bytes that do not repeat.
fn noise(length: usize) -> Vec<u8> {
    (0..length as u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 37) as u8).collect()
}

fn everything() -> Vec<u8> {
    let mut layer = Layer::new().folder("etc/").folder("many/").folder("empty/");
    for size in [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 10_000, 300_000] {
        layer = layer.file(&format!("size-{size}"), &noise(size));
    }
    for n in 0..900 {
        layer = layer.file(&format!("many/{n:04}-{}", "n".repeat(n % 200)), &noise(n));
    }
    let mut device = Layer::header(EntryType::Char, 0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(300).unwrap();
    let mut block = Layer::header(EntryType::Block, 0);
    block.set_device_major(259).unwrap();
    block.set_device_minor(7).unwrap();
    let mut owned = Layer::header(EntryType::Regular, 3);
    owned.set_uid(70_000);
    owned.set_gid(1000);
    owned.set_mode(0o4711);
    layer
        .add(device, "etc/zero", &[])
        .add(block, "etc/disk", &[])
        .add(Layer::header(EntryType::Fifo, 0), "etc/pipe", &[])
        .add(owned, "etc/owned", b"abc")
        .link(EntryType::Symlink, "etc/short", "../size-1")
        .link(EntryType::Symlink, "etc/long", &"x/".repeat(1500))
        .link(EntryType::Link, "etc/linked", "size-10000")
        .file("!first", b"less than a dot")
        .end()
}

#[test]
fn the_files_are_those_that_tar_unpacks() {
    let layer = everything();
    let sealed = sealed(std::slice::from_ref(&layer));
    let expected = sealed.folder.path().join("expected");
    fs::create_dir(&expected).unwrap();
    let archive = sealed.folder.path().join("layer.tar");
    fs::write(&archive, &layer).unwrap();
    succeed(
        Command::new("tar")
            .args(["--numeric-owner", "--delay-directory-restore", "-xpf"])
            .arg(&archive)
            .arg("-C")
            .arg(&expected),
    );
    let (ours, theirs) = (tree(&sealed.extract()), tree(&expected));
    // erofs-utils 1.5 extracts each name of a hard link as a file of its own
    let links = |tree: BTreeMap<String, String>| -> BTreeMap<String, String> {
        tree.into_iter().map(|(name, text)| (name, text.replacen(" 2 10000 ", " 1 10000 ", 1))).collect()
    };
    let (ours, theirs) = (links(ours), links(theirs));
    for (name, text) in &theirs {
        assert_eq!(ours.get(name), Some(text), "{name}");
    }
    assert_eq!(ours.len(), theirs.len());
    let inode = [&0o104_711_u16.to_le_bytes()[..], &[0, 0], &3_u64.to_le_bytes()].concat();
    let file = fs::read(sealed.path()).unwrap();
    assert!(file.windows(inode.len()).any(|window| window == inode), "mode and size of etc/owned");
}

#[test]
fn hard_links_share_an_inode_and_count() {
    let layer = Layer::new().file("a", &noise(5000)).link(EntryType::Link, "b", "a").end();
    let sealed = sealed(&[layer]);
    let of = |name: &str| {
        let out = succeed(Command::new("dump.erofs").arg(format!("--path=/{name}")).arg(sealed.path()));
        let find = |key: &str| {
            let rest = out.split(key).nth(1).unwrap_or_else(|| panic!("no {key} in {out}"));
            rest.split_whitespace().next().unwrap().to_owned()
        };
        (find("NID:"), find("Links:"))
    };
    assert_eq!(of("a"), of("b"));
    assert_eq!(of("a").1, "2");
}

#[test]
fn the_tree_vouches_for_every_block() {
    let sealed = sealed(&[everything()]);
    let Seal { data_blocks, tree_blocks, root_hash } = sealed.seal;
    assert_eq!(fs::metadata(sealed.path()).unwrap().len(), (data_blocks + tree_blocks) * 4096);
    let verify = || {
        let mut command = Command::new("veritysetup");
        command.args(["verify", "--no-superblock", "--hash=sha256", "--salt=-", "--format=1"]);
        command.args(["--data-block-size=4096", "--hash-block-size=4096"]);
        command
            .arg(format!("--data-blocks={data_blocks}"))
            .arg(format!("--hash-offset={}", data_blocks * 4096));
        command.arg(sealed.path()).arg(sealed.path()).arg(hex::encode(root_hash));
        command.output().unwrap_or_else(|error| panic!("install cryptsetup-bin: {error}"))
    };
    let good = verify();
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    let whole = fs::read(sealed.path()).unwrap();
    for place in [0, 1024, whole.len() / 2, (data_blocks * 4096) as usize, whole.len() - 4096] {
        let mut flipped = whole.clone();
        flipped[place] ^= 1;
        fs::write(sealed.path(), &flipped).unwrap();
        assert!(!verify().status.success(), "byte {place}");
    }
}

#[test]
fn later_layers_hide_lower_ones() {
    let lower = Layer::new()
        .folder("keep/")
        .file("keep/one", b"1")
        .file("gone", b"x")
        .folder("opaque/")
        .file("opaque/old", b"old")
        .link(EntryType::Symlink, "alias", "/keep")
        .file("becomes-folder", b"x");
    let upper = Layer::new()
        .file(".wh.gone", b"")
        .file("opaque/new", b"new")
        .file("opaque/.wh..wh..opq", b"")
        .file("alias/two", b"2")
        .file("becomes-folder/inside", b"x")
        .file("keep/.wh.none", b"");
    let layers = [lower.end(), Layer::new().file(".wh.becomes-folder", b"").end(), upper.end()];
    let files = tree(&sealed(&layers).extract());
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    let expected = [
        "alias",
        "becomes-folder",
        "becomes-folder/inside",
        "keep",
        "keep/one",
        "keep/two",
        "opaque",
        "opaque/new",
    ];
    assert_eq!(names, expected);
}

#[test]
fn the_same_layers_are_the_same_bytes() {
    let layers = [everything(), Layer::new().file("many/0001-n", b"other").end()];
    let (a, b) = (sealed(&layers), sealed(&layers));
    assert_eq!(a.seal, b.seal);
    assert_eq!(fs::read(a.path()).unwrap(), fs::read(b.path()).unwrap());
    assert_ne!(sealed(&layers[..1]).seal.root_hash, a.seal.root_hash);
}

#[test]
fn extended_attributes_are_kept() {
    let acl = hex::decode("0200000001000600ffffffff04000400ffffffff20000400ffffffff").unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let big = noise(3000);
    let layer = Layer::new()
        .xattrs(&[("user.note", b"a note"), ("security.capability", &capability)])
        .file("ping", &noise(100))
        .xattrs(&[("system.posix_acl_access", &acl), ("user.big", &big)])
        .file("acl", &noise(2000));
    let sealed = sealed(&[layer.end()]);
    // as they lie in the file: erofs-utils 1.5 does not extract them
    let bytes = fs::read(sealed.path()).unwrap();
    let holds = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    assert!(holds(b"\x04\x01\x06\x00notea note") && holds(b"\x0a\x06\x14\x00capability\x01\x00\x00\x02"));
    assert!(holds(&[&[0, 2, acl.len() as u8, 0], &acl[..]].concat()));
    assert_eq!(tree(&sealed.extract()).len(), 2, "contents beside them are found");
}

#[test]
fn what_no_layer_may_hold_is_refused() {
    let refused = |layer: Layer| match try_seal(&[layer.end()]) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("was sealed"),
    };
    let mut climbing = Layer::header(EntryType::Regular, 0);
    climbing.as_ustar_mut().unwrap().name[..4].copy_from_slice(b"../x");
    climbing.set_cksum();
    let mut raw = Layer::new();
    raw.0.append(&climbing, io::empty()).unwrap();
    for (layer, part) in [
        (raw, "climbs out"),
        (Layer::new().link(EntryType::Link, "a", "none"), "target is not there"),
        (Layer::new().file("f", b"").file("f/x", b""), "not a folder"),
        (Layer::new().link(EntryType::Symlink, "l", "/none").file("l/x", b""), "leads nowhere"),
        (Layer::new().link(EntryType::Symlink, "l", "l").file("l/x", b""), "circles"),
        (Layer::new().xattrs(&[("trusted.overlay.opaque", b"y")]).file("x", b""), "trusted.overlay.opaque"),
        (Layer::new().xattrs(&[("system.strange", b"y")]).file("x", b""), "no place in EROFS"),
    ] {
        let error = refused(layer);
        assert!(error.contains(part), "{part}: {error}");
    }
}

proptest::proptest! {
    /// Archives with changed bytes are sealed or refused; what is sealed is whole.
    #[test]
    fn no_archive_makes_it_panic(changes in proptest::collection::vec((0_usize..40_000, proptest::num::u8::ANY), 1..20)) {
        let mut layer = Layer::new()
            .folder("etc/")
            .xattrs(&[("user.a", b"b")])
            .file("etc/one", &noise(5000))
            .link(EntryType::Link, "etc/two", "etc/one")
            .link(EntryType::Symlink, "alias", "etc")
            .file("alias/three", &noise(100))
            .file("alias/.wh.one", b"")
            .end();
        for (place, byte) in changes {
            let length = layer.len();
            layer[place % length] = byte;
        }
        if let Ok(sealed) = try_seal(&[layer.clone(), layer]) {
            let Seal { data_blocks, tree_blocks, .. } = sealed.seal;
            assert_eq!(fs::metadata(sealed.path()).unwrap().len(), (data_blocks + tree_blocks) * 4096);
        }
    }
}
