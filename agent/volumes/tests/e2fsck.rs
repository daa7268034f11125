//! The empty file systems that are made here, as Debian's e2fsprogs see them; that the kernel mounts them the lab shows
//! (`tests/tests/volumes.rs`).
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

use std::fs::File;
use std::process::Command;

use kata_cc_volumes::ext4::{self, Identity};

fn told(program: &str, words: &[&str]) -> (bool, String) {
    let output = Command::new(format!("/usr/sbin/{program}"))
        .args(words)
        .output()
        .unwrap_or_else(|e| panic!("{program} does not start ({e}): `apt-get install e2fsprogs`"));
    let text = [&output.stdout[..], &output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn made(size: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    let identity = Identity { uuid: *b"\x12\x34ASDFGHJKLQWERT", hash_seed: [7; 16], now: 1_700_000_000 };
    ext4::make(&mut file.as_file(), size, identity).unwrap();
    file
}

#[test]
fn e2fsck_finds_nothing_to_mend() {
    for size in [1 << 20, 5 << 20, (16 << 20) + 4096, (128 << 20) + 12_345, 400 << 20, 3 << 30, 70 << 30] {
        let file = made(size);
        let path = file.path().to_str().unwrap();
        let (good, text) = told("e2fsck", &["-f", "-n", path]);
        assert!(good, "{size}: {text}");
        let (_, text) = told("dumpe2fs", &["-h", path]);
        for line in ["metadata_csum", "Errors behavior:          Remount read-only", "clean"] {
            assert!(text.contains(line), "{size}: {text}");
        }
        assert_eq!(text.contains("has_journal"), size > 8 << 20, "{size}: {text}");
    }
}

#[test]
fn files_are_written_and_read_back() {
    let file = made(200 << 20);
    let path = file.path().to_str().unwrap();
    let source = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(source.path(), vec![0x5a; 3 << 20]).unwrap();
    let copy = source.path().with_extension("copy");
    let write = format!("write {} big", source.path().display());
    for request in ["mkdir folder", &write, &format!("dump big {}", copy.display())] {
        let (good, text) = told("debugfs", &["-w", "-R", request, path]);
        assert!(good && !text.contains("rror"), "{request}: {text}");
    }
    assert_eq!(std::fs::read(&copy).unwrap(), vec![0x5a; 3 << 20]);
    std::fs::remove_file(copy).unwrap();
    let (good, text) = told("e2fsck", &["-f", "-n", path]);
    assert!(good, "{text}");
}

#[test]
fn e2fsck_sees_a_flipped_bit_in_each_record() {
    let file = made(200 << 20);
    let path = file.path().to_str().unwrap();
    let bytes = std::fs::read(path).unwrap();
    // Superblock, group table, block bitmap, root's inode, root's block.
    let layout = [1024 + 0x68, 4096 + 12, 2 * 4096 + 1000, 4 * 4096 + 256 + 8, (4 + 512) * 4096 + 100];
    for at in layout {
        let damaged = tempfile::NamedTempFile::new().unwrap();
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        std::fs::write(damaged.path(), &changed).unwrap();
        let (good, text) = told("e2fsck", &["-f", "-n", damaged.path().to_str().unwrap()]);
        assert!(!good || text.contains("checksum does not match"), "{at}: {text}");
    }
    assert!(ext4::make(&mut File::open("/dev/null").unwrap(), 4096, identity()).is_err());
}

fn identity() -> Identity {
    Identity { uuid: [0; 16], hash_seed: [0; 16], now: 0 }
}
