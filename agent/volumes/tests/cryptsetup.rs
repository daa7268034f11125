//! Both ways with Debian's cryptsetup (package `cryptsetup-bin`), on plain files: no device mapper is needed for what is
//! done here.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output};

use kata_cc_volumes::luks2::{self, Limits, Luks2Error};

const KEY: &[u8] = b"passphrase\nwith a line feed, and bytes \x00\xff";
const SIZE: u64 = 32 << 20;

fn cryptsetup(words: &[&str]) -> Output {
    Command::new("/usr/sbin/cryptsetup")
        .args(words)
        .output()
        .expect("cryptsetup does not start: `apt-get install cryptsetup-bin`, or run the tests by `./x test`")
}

fn ok(words: &[&str]) -> String {
    let output = cryptsetup(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key"), KEY).unwrap();
        std::fs::write(dir.path().join("other"), b"other").unwrap();
        File::create(dir.path().join("disk")).unwrap().set_len(SIZE).unwrap();
        Self { dir }
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn disk(&self) -> File {
        File::options().read(true).write(true).open(Path::new(&self.at("disk"))).unwrap()
    }

    fn format(&self, words: &[&str]) {
        let (disk, key) = (self.at("disk"), self.at("key"));
        let head = ["luksFormat", "--batch-mode", "--type", "luks2", &disk, &key];
        ok(&[&head[..], words].concat());
    }

    fn open(&self, key: &[u8]) -> Result<luks2::Volume, Luks2Error> {
        luks2::open(&mut self.disk(), SIZE, key, Limits::default())
    }
}

#[test]
fn what_cryptsetup_makes_is_opened() {
    let quick = ["--pbkdf-force-iterations", "4", "--pbkdf-memory", "32768"];
    let pbkdf2 = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    for words in [
        [&["--pbkdf", "argon2id", "--pbkdf-parallel", "1"][..], &quick].concat(),
        [&["--pbkdf", "argon2id", "--pbkdf-parallel", "4"][..], &quick].concat(),
        [&["--pbkdf", "argon2i", "--pbkdf-parallel", "2"][..], &quick].concat(),
        pbkdf2.to_vec(),
        [&["--hash", "sha512"][..], &pbkdf2].concat(),
        [&["--key-size", "256", "--sector-size", "512"][..], &pbkdf2].concat(),
        [&["--luks2-metadata-size", "64k", "--luks2-keyslots-size", "512k"][..], &pbkdf2].concat(),
    ] {
        let bench = Bench::new();
        bench.format(&words);
        let volume = bench.open(KEY).unwrap_or_else(|e| panic!("{words:?}: {e}"));
        let dump = ok(&["luksDump", &bench.at("disk")]);
        assert!(dump.contains(volume.uuid()), "{dump}");
        assert!(matches!(bench.open(b"other"), Err(Luks2Error::NoMatch { tried: 1, .. })), "{words:?}");
        // The volume key itself, as cryptsetup has it.
        let (disk, key, master) = (bench.at("disk"), bench.at("key"), bench.at("master"));
        let dumping = ["luksDump", "--batch-mode", "--dump-volume-key", "--key-file", &key];
        ok(&[&dumping[..], &["--volume-key-file", &master, &disk]].concat());
        let table = String::from_utf8(volume.crypt_parameters((7, 0)).to_vec()).unwrap();
        let master = hex::encode(std::fs::read(master).unwrap());
        assert_eq!(table.split(' ').nth(1), Some(master.as_str()), "{words:?}");
    }
}

#[test]
fn what_is_made_cryptsetup_opens() {
    let bench = Bench::new();
    let volume = luks2::format(&mut bench.disk(), SIZE, KEY, Limits::default()).unwrap();
    let (disk, key, other) = (bench.at("disk"), bench.at("key"), bench.at("other"));
    let test = ["luksOpen", "--test-passphrase", &disk, "--key-file"];
    ok(&[&test[..], &[&key]].concat());
    let refused = cryptsetup(&[&test[..], &[&other]].concat());
    assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stderr));
    let dump = ok(&["luksDump", &disk]);
    for line in [volume.uuid(), "argon2id", "aes-xts-plain64", "offset: 16777216", "sector: 4096"] {
        assert!(dump.contains(line), "{line}: {dump}");
    }
    assert!(ok(&["isLuks", "--type", "luks2", "--verbose", &disk]).contains("successful"));
    // A second key of cryptsetup's, beside ours; then ours is taken away.
    let quick = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    ok(&[&["luksAddKey", "--key-file", &key, &disk, &other][..], &quick].concat());
    let second = bench.open(b"other").unwrap();
    assert_eq!(*second.crypt_parameters((7, 0)), *volume.crypt_parameters((7, 0)));
    bench.open(KEY).unwrap();
    ok(&["luksRemoveKey", "--batch-mode", &disk, &key]);
    assert!(matches!(bench.open(KEY), Err(Luks2Error::NoMatch { tried: 1, .. })));
    ok(&["luksErase", "--batch-mode", &disk]);
    assert!(matches!(bench.open(b"other"), Err(Luks2Error::NoKeyslot { .. })));
}

#[test]
fn other_volumes_of_cryptsetups_are_refused_by_name() {
    let quick = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    for (words, reason) in [
        (&["--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"][..], "only aes-xts-plain64"),
        (&["--hash", "sha1"], "sha256 and sha512"),
    ] {
        let bench = Bench::new();
        bench.format(&[words, &quick].concat());
        let error = bench.open(KEY).unwrap_err().to_string();
        assert!(error.contains(reason), "{words:?}: {error}");
    }
    let bench = Bench::new();
    let (disk, key) = (bench.at("disk"), bench.at("key"));
    ok(&["luksFormat", "--batch-mode", "--type", "luks1", "--pbkdf-force-iterations", "1000", &disk, &key]);
    assert!(bench.open(KEY).unwrap_err().to_string().contains("version 1"));
    assert!(luks2::inspect(&mut File::open(bench.at("other")).unwrap(), 5).is_err());
}
