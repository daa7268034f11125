//! Boots the real guest kernel. Skips, saying why, where KVM cannot run it (`kata-cc-vmm --probe`) or where
//! there is no kernel. In the lab one test costs some ten seconds.

mod boot_stage0;
mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use common::{Running, config, folder, kernel, no_kvm, wait_for};
use kata_cc_vmm_api::{BlockConfig, ControlReply, ControlRequest, Phase, VmConfig, VsockConfig, exit};

/// A guest of one script, or the reason why there is none.
struct Guest {
    folder: tempfile::TempDir,
    config: VmConfig,
}

impl Guest {
    fn new(name: &str, file: &str, script: &str) -> Option<Self> {
        let skip = |reason: &str| eprintln!("{name} skips: {reason}");
        if let Some(reason) = no_kvm() {
            skip(&format!("kvm is not usable: {reason}"));
            return None;
        }
        let (Some(kernel), true) = (kernel(file), Path::new("/bin/busybox").exists()) else {
            skip("no guest kernel in the build cache, or no static busybox");
            return None;
        };
        let folder = folder();
        let mut config = config(folder.path(), &kernel);
        config.boot.initramfs = Some(initramfs(folder.path(), script));
        Some(Self { folder, config })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&self) -> Running {
        Running::start(self.folder.path(), &self.config)
    }
}

/// A newc archive with busybox and a script as `/init`.
fn initramfs(folder: &Path, script: &str) -> PathBuf {
    let mut archive = Vec::new();
    let mut entry = |name: &str, mode: u32, content: &[u8]| {
        let size = content.len();
        let name_size = name.len() + 1;
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}",
            0, 0, 0, 1, 0, 0, 0, 0, 0, 0
        );
        archive.extend_from_slice(header.as_bytes());
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    for directory in ["bin", "dev", "proc", "sys"] {
        entry(directory, 0o040_755, b"");
    }
    let busybox = std::fs::read("/bin/busybox").expect("busybox");
    entry("bin/busybox", 0o100_755, &busybox);
    let prelude = "#!/bin/busybox sh\n/bin/busybox --install /bin\nexport PATH=/bin\n\
         mount -t proc proc /proc; mount -t devtmpfs dev /dev; mount -t sysfs sys /sys\n";
    entry("init", 0o100_755, format!("{prelude}{script}\n").as_bytes());
    entry("TRAILER!!!", 0, b"");
    let path = folder.join("initramfs");
    std::fs::write(&path, archive).expect("written");
    path
}

struct Control(BufReader<UnixStream>);

impl Control {
    fn connect(guest: &Guest) -> Self {
        Self(BufReader::new(UnixStream::connect(guest.path("vmm.sock")).expect("control socket")))
    }

    fn ask(&mut self, request: &ControlRequest) -> ControlReply {
        self.ask_text(&serde_json::to_string(request).expect("json"))
    }

    fn ask_text(&mut self, text: &str) -> ControlReply {
        writeln!(self.0.get_mut(), "{text}").expect("sent");
        let mut line = String::new();
        self.0.read_line(&mut line).expect("reply");
        serde_json::from_str(&line).expect("json")
    }

    fn phase(&mut self) -> Phase {
        match self.ask(&ControlRequest::State) {
            ControlReply::State(state) => state.phase,
            other => panic!("no state: {other:?}"),
        }
    }
}

#[test]
fn vmlinux_reaches_init_and_a_reset_is_seen() {
    let script = "echo CPUS $(nproc) UP $(cat /proc/uptime); cat /proc/cmdline; reboot -f";
    let Some(mut guest) = Guest::new("vmlinux", "vmlinux", script) else { return };
    guest.config.vcpus = 2;
    guest.config.rng = true;
    let mut vm = guest.start();
    assert_eq!(vm.exit_code(), exit::GUEST_RESET);
    let console = std::fs::read_to_string(guest.path("console")).expect("console");
    assert!(console.contains("CPUS 2 UP "), "{console}");
    assert!(console.contains("quiet virtio_mmio.device=4K@0xd0000000:5"), "{console}");
    assert!(!guest.path("vmm.sock").exists());
}

#[test]
fn bzimage_reaches_init() {
    let Some(guest) = Guest::new("bzimage", "bzImage", "echo INIT; reboot -f") else { return };
    let mut vm = guest.start();
    assert_eq!(vm.exit_code(), exit::GUEST_RESET);
    wait_for(&guest.path("console"), "INIT");
}

#[test]
fn memory_above_the_hole_is_there() {
    let script = "grep MemTotal /proc/meminfo; echo END; reboot -f";
    let Some(mut guest) = Guest::new("memory", "vmlinux", script) else { return };
    guest.config.memory_mib = 3074;
    let mut vm = guest.start();
    let console = wait_for(&guest.path("console"), "END");
    let total: u64 = console
        .split_whitespace()
        .skip_while(|word| *word != "MemTotal:")
        .nth(1)
        .and_then(|word| word.parse().ok())
        .expect("MemTotal");
    assert!(total > 2_900_000, "{console}");
    assert_eq!(vm.exit_code(), exit::GUEST_RESET);
}

#[test]
fn a_kernel_panic_ends_the_vm() {
    let Some(guest) = Guest::new("panic", "vmlinux", "echo c > /proc/sysrq-trigger") else { return };
    let mut vm = guest.start();
    assert_eq!(vm.exit_code(), exit::GUEST_RESET);
}

#[test]
fn control_socket_pause_resume_stop() {
    let script = "i=0; while true; do echo TICK $i; i=$((i+1)); usleep 20000; done";
    let Some(mut guest) = Guest::new("control", "vmlinux", script) else { return };
    guest.config.vcpus = 2;
    guest.config.vsock = Some(VsockConfig { cid: 3, uds: guest.path("vsock") });
    let mut vm = guest.start();
    let console = guest.path("console");
    wait_for(&console, "TICK 2");
    let mode = guest.path("vmm.sock").metadata().expect("socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut control = Control::connect(&guest);
    assert_eq!(control.phase(), Phase::Running);

    assert_eq!(control.ask(&ControlRequest::Pause), ControlReply::Done);
    assert_eq!(control.phase(), Phase::Paused);
    let before = std::fs::read(&console).expect("console").len();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(std::fs::read(&console).expect("console").len(), before, "nothing runs");
    assert_eq!(control.ask(&ControlRequest::Resume), ControlReply::Done);
    wait_for(&console, "TICK 20");

    for bad in ["nonsense", "{}", r#"{"op":"detach_block"}"#, r#"{"op":"explode"}"#] {
        assert!(matches!(control.ask_text(bad), ControlReply::Error { .. }), "{bad}");
    }
    let ControlReply::Metrics(metrics) = control.ask(&ControlRequest::Metrics) else { panic!("no metrics") };
    assert!(metrics["serial.bytes"] > 0, "{metrics:?}");

    // a second connection beside the first
    assert_eq!(Control::connect(&guest).ask(&ControlRequest::Stop), ControlReply::Done);
    assert_eq!(vm.exit_code(), exit::OK);
    assert!(!guest.path("vmm.sock").exists());
    assert!(!guest.path("vsock").exists());
}

#[test]
fn sigterm_stops_even_a_paused_vm() {
    let Some(guest) = Guest::new("sigterm", "vmlinux", "echo UP; sleep 1000") else { return };
    let mut vm = guest.start();
    wait_for(&guest.path("console"), "UP");
    assert_eq!(Control::connect(&guest).ask(&ControlRequest::Pause), ControlReply::Done);
    let pid = nix::unistd::Pid::from_raw(vm.0.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signal");
    assert_eq!(vm.exit_code(), exit::OK);
    assert!(!guest.path("vmm.sock").exists());
}

#[test]
fn block_slots_are_filled_and_emptied_while_it_runs() {
    let script = "while [ $(cat /sys/block/vdb/size) = 0 ]; do usleep 20000; done; \
         echo GOT $(head -c 5 /dev/vdb); \
         while [ $(cat /sys/block/vdb/size) != 0 ]; do usleep 20000; done; \
         echo FIRST $(head -c 5 /dev/vda); echo wrote | dd of=/dev/vda conv=fsync 2>/dev/null; \
         echo GONE; reboot -f";
    let Some(mut guest) = Guest::new("block", "vmlinux", script) else { return };
    let disk = |name: &str, text: &str| {
        let path = guest.path(name);
        let mut content = text.as_bytes().to_vec();
        content.resize(64 << 10, 0);
        std::fs::write(&path, content).expect("disk");
        path
    };
    let (first, second) = (disk("first", "hello"), disk("second", "world"));
    guest.config.block = vec![
        BlockConfig { id: "a".into(), path: Some(first.clone()), read_only: false },
        BlockConfig { id: "b".into(), path: None, read_only: true },
    ];
    let mut vm = guest.start();
    wait_for(&guest.path("log"), "vcpus start");
    let mut control = Control::connect(&guest);
    let attach =
        |slot: &str, path: &Path| ControlRequest::AttachBlock { slot: slot.into(), path: path.into() };
    assert!(matches!(control.ask(&attach("zzz", &second)), ControlReply::Error { .. }));
    assert!(matches!(control.ask(&attach("b", Path::new("/none"))), ControlReply::Error { .. }));
    assert_eq!(control.ask(&attach("b", &second)), ControlReply::Done);
    assert!(matches!(control.ask(&attach("b", &second)), ControlReply::Error { .. }));
    wait_for(&guest.path("console"), "GOT world");
    assert_eq!(control.ask(&ControlRequest::DetachBlock { slot: "b".into() }), ControlReply::Done);
    wait_for(&guest.path("console"), "GONE");
    assert_eq!(vm.exit_code(), exit::GUEST_RESET);
    wait_for(&guest.path("console"), "FIRST hello");
    let mut written = [0; 5];
    std::fs::File::open(first).and_then(|mut f| f.read_exact(&mut written)).expect("disk");
    assert_eq!(&written, b"wrote");
}

#[test]
fn a_log_reader_that_dies_does_not_end_the_vm() {
    let Some(guest) = Guest::new("log", "vmlinux", "echo UP; sleep 1000") else { return };
    let path = common::write_config(guest.folder.path(), &guest.config);
    let mut child = common::vmm()
        .arg("--config")
        .arg(path)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .map(Running)
        .expect("vmm starts");
    drop(child.0.stderr.take());
    wait_for(&guest.path("console"), "UP");
    assert_eq!(Control::connect(&guest).ask(&ControlRequest::Stop), ControlReply::Done);
    assert_eq!(child.exit_code(), exit::OK);
    assert!(!guest.path("vmm.sock").exists());
}
