//! Encrypted volumes on the guest's own kernel: device mapper, ext4, block devices of the monitor; and the same volumes as cryptsetup and
//! e2fsprogs see them outside, both ways. cryptsetup en- and decrypts plain files by itself, so this machine needs no device mapper.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use kata_cc_tests::process::{Finished, run};
use kata_cc_tests::{binaries, machines_run_here, pack_initramfs, share};

const MARKER: &str = "what is written here must not be seen outside\n";
const KEY: &[u8] = b"a key\nof the owner's \x00\xff";
const QUICK: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
/// A guest in the lab is slow, and opens a volume by Argon2 some times.
const LIMIT: u64 = 900;

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    fn tool(&self, program: &str, words: &[&str]) -> anyhow::Result<Finished> {
        run(Command::new(format!("/usr/sbin/{program}")).args(words), 300)?.ok()
    }

    /// A disk of `size` bytes.
    fn disk(&self, name: &str, size: u64) -> anyhow::Result<String> {
        let path = self.at(name);
        std::fs::File::create(&path)?.set_len(size)?;
        Ok(path)
    }

    /// A volume of cryptsetup's with a file system of mkfs's, and the marker in it.
    fn foreign(&self) -> anyhow::Result<String> {
        let (disk, key, tree) = (self.disk("foreign", 96 << 20)?, self.at("key"), self.at("tree"));
        std::fs::create_dir_all(Path::new(&tree).join("folder"))?;
        std::fs::write(Path::new(&tree).join("folder/marker"), MARKER)?;
        self.tool("mkfs.ext4", &["-q", "-F", "-b", "4096", "-d", &tree, &disk, "60M"])?;
        let head = ["reencrypt", "--encrypt", "--batch-mode", "--type", "luks2", "--force-offline-reencrypt"];
        let shape = ["--reduce-device-size", "32M", "--sector-size", "4096", "--key-file", &key, &disk];
        self.tool("cryptsetup", &[&head[..], &QUICK, &shape].concat())?;
        Ok(disk)
    }

    /// An initial file system with busybox, the program, key and marker.
    fn initramfs(&self) -> anyhow::Result<PathBuf> {
        let root = self.folder.path().join("root");
        for folder in ["bin", "dev", "proc", "sys", "mnt"] {
            std::fs::create_dir_all(root.join(folder))?;
        }
        let script = "#!/bin/busybox sh\n/bin/busybox --install /bin\nexport PATH=/bin RUST_BACKTRACE=0\n\
             mount -t proc proc /proc; mount -t devtmpfs dev /dev; mount -t sysfs sys /sys\n\
             /volumes; echo ENDED $?; reboot -f\n";
        std::fs::write(root.join("init"), script)?;
        std::fs::write(root.join("key"), KEY)?;
        std::fs::write(root.join("marker"), MARKER)?;
        std::fs::copy("/bin/busybox", root.join("bin/busybox"))?;
        std::fs::copy(env!("CARGO_BIN_EXE_kata-cc-volume-guest"), root.join("volumes"))?;
        run(Command::new("chmod").arg("755").arg(root.join("init")), 10)?.ok()?;
        let archive = self.folder.path().join("initramfs");
        pack_initramfs(&root, &archive)?;
        Ok(archive)
    }

    /// Boots the guest with the disks; gives what it said.
    fn boot(&self, disks: &[&str]) -> anyhow::Result<String> {
        let disks: Vec<_> =
            disks.iter().map(|path| serde_json::json!({"id": Path::new(path).file_name().unwrap_or_default().to_string_lossy(), "path": path})).collect();
        let config = serde_json::json!({
            "id": "volumes", "vcpus": 1, "memory_mib": 512, "rng": true, "block": disks,
            "boot": {
                "kernel": share().join("vmlinux"), "initramfs": self.initramfs()?,
                "cmdline": "console=ttyS0 reboot=k panic=-1 quiet",
            },
            "console": self.at("console"), "control_socket": self.at("vmm.sock"),
        });
        std::fs::write(self.at("vm.json"), config.to_string())?;
        let mut vmm = Command::new(binaries().join("kata-cc-vmm"));
        vmm.args(["--die-with-parent", "--config", &self.at("vm.json")]).stdin(Stdio::null());
        let done = run(&mut vmm, LIMIT)?;
        let console = std::fs::read(self.at("console")).unwrap_or_default();
        Ok(format!("{}\n{}", String::from_utf8_lossy(&console), done.text()))
    }
}

#[test]
fn volumes_are_made_and_opened_on_the_guests_kernel_and_by_others() -> anyhow::Result<()> {
    if !machines_run_here() {
        return Ok(());
    }
    let folder = tempfile::Builder::new().prefix("kct-volumes-").tempdir_in("/run")?;
    let bench = Bench { folder };
    std::fs::write(bench.at("key"), KEY)?;
    let (own, foreign) = (bench.disk("own", 64 << 20)?, bench.foreign()?);
    let said = bench.boot(&[&own, &foreign])?;
    println!("{said}");
    ensure!(said.contains("PASSED all") && said.contains("ENDED 0"), "{said}");

    for disk in [&own, &foreign] {
        let bytes = std::fs::read(disk)?;
        ensure!(!contains(&bytes, MARKER.as_bytes()) && !contains(&bytes, KEY), "{disk} holds plain text");
    }
    // What the guest's kernel wrote, decrypted by cryptsetup.
    let (key, header) = (bench.at("key"), bench.at("header"));
    bench.tool("cryptsetup", &["luksOpen", "--test-passphrase", "--key-file", &key, &own])?;
    let head = ["reencrypt", "--decrypt", "--batch-mode", "--force-offline-reencrypt"];
    bench.tool("cryptsetup", &[&head[..], &["--header", &header, "--key-file", &key, &own]].concat())?;
    bench.tool("e2fsck", &["-f", "-n", &own])?;
    let seen = bench.tool("debugfs", &["-R", "cat /folder/marker", &own])?;
    ensure!(seen.stdout == MARKER, "{}", seen.text());
    Ok(())
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    let text = text.get(..16).context("short").unwrap_or(text);
    bytes.windows(text.len()).any(|window| window == text)
}
