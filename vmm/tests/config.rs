//! Configurations that are refused: by which exit code and in which words. Needs no KVM.

mod common;

use std::path::Path;

use common::{config, folder, vmm, write_config};
use kata_cc_vmm::config::{ConfigError, load, validate};
use kata_cc_vmm_api::{
    BlockConfig, NetConfig, SnpOptions, TdxOptions, TeeConfig, VmConfig, VsockConfig, exit,
};

fn base() -> VmConfig {
    config(Path::new("/run/x"), Path::new("/kernel"))
}

fn refused(change: impl FnOnce(&mut VmConfig)) -> String {
    let mut config = base();
    change(&mut config);
    match validate(&config) {
        Err(ConfigError::Field { field, reason }) => format!("{field}: {reason}"),
        other => panic!("not refused by a field: {other:?}"),
    }
}

fn block(id: &str) -> BlockConfig {
    BlockConfig { id: id.into(), path: None, read_only: true }
}

fn sim(host_data: &str, policy: Option<u64>) -> TeeConfig {
    TeeConfig::SimSnp { platform: "/sim".into(), host_data: host_data.into(), policy }
}

#[test]
fn each_field_is_checked_and_named() {
    validate(&base()).expect("the base is valid");
    assert!(refused(|c| c.id = "a/b".into()).starts_with("id: "));
    assert!(refused(|c| c.id = String::new()).starts_with("id: "));
    assert!(refused(|c| c.vcpus = 0).starts_with("vcpus: 0: give 1 to 64"));
    assert!(refused(|c| c.vcpus = 65).starts_with("vcpus: 65"));
    assert!(refused(|c| c.memory_mib = 63).starts_with("memory_mib: 63"));
    assert!(refused(|c| c.memory_mib = u64::MAX).starts_with("memory_mib: "));
    let long = format!("/{}", "x".repeat(107));
    assert!(refused(|c| c.control_socket = long.into()).starts_with("control_socket: path of 108"));
    assert!(refused(|c| c.control_socket = "".into()).starts_with("control_socket: "));
    assert!(refused(|c| c.block = vec![block("a"), block("a")]).contains("block[1].id: a names another"));
    assert!(refused(|c| c.block = vec![block("vsock")]).contains("block[0].id"));
    assert!(refused(|c| c.block = vec![block("123456789012345678901")]).contains("1 to 20 characters"));
    assert!(refused(|c| c.block = (0..20).map(|n| block(&n.to_string())).collect()).contains("20 devices"));
    let net = |mac: &str| NetConfig { id: "n".into(), tap: "t".into(), mac: mac.into() };
    assert!(refused(|c| c.net = vec![net("02:00:00:00:00")]).starts_with("net[0].mac: "));
    assert!(refused(|c| c.net = vec![net("01:00:00:00:00:01")]).starts_with("net[0].mac: "));
    let vsock = |cid, uds: &str| Some(VsockConfig { cid, uds: uds.into() });
    assert!(refused(|c| c.vsock = vsock(2, "/v")).starts_with("vsock.cid: "));
    assert!(refused(|c| c.vsock = vsock(u32::MAX, "/v")).starts_with("vsock.cid: "));
    let long = format!("/{}", "x".repeat(96));
    assert!(refused(|c| c.vsock = vsock(3, &long)).starts_with("vsock.uds: "));
    let zeros = "0".repeat(64);
    // no TEE starts anything but stage0
    assert!(refused(|c| c.tee = sim(&zeros, None)).starts_with("boot.firmware: a guest under sim-snp"));
    let refused = |change: &dyn Fn(&mut VmConfig)| {
        refused(|c| {
            c.boot.firmware = Some("/stage0".into());
            change(c);
        })
    };
    assert!(refused(&|c| c.tee = sim(&zeros, None)).starts_with("vsock: "));
    assert!(refused(&|c| c.tee = sim("00", None)).starts_with("tee.host_data: "));
    assert!(refused(&|c| c.tee = sim(&zeros, Some(0))).starts_with("tee.policy: "));
    let snp = |host_data: &str, policy| {
        TeeConfig::Snp(SnpOptions { host_data: host_data.into(), policy, ..Default::default() })
    };
    assert!(refused(&|c| c.tee = snp("5a", None)).starts_with("tee.host_data: give 32 bytes"));
    assert!(refused(&|c| c.tee = snp(&zeros, Some(0))).starts_with("tee.policy: "));
    let tdx = TdxOptions { mrconfigid: "0".repeat(96), ..Default::default() };
    let short = TdxOptions { mrconfigid: zeros.clone(), ..Default::default() };
    assert!(refused(&|c| c.tee = TeeConfig::Tdx(short.clone())).starts_with("tee.mrconfigid: give 48 bytes"));
    let owner = TdxOptions { mrowner: Some("x".into()), ..tdx.clone() };
    assert!(refused(&|c| c.tee = TeeConfig::Tdx(owner.clone())).starts_with("tee.mrowner: "));
    let both = TdxOptions { quoting_socket: Some("/q".into()), quoting_vsock_port: Some(4050), ..tdx };
    assert!(refused(&|c| c.tee = TeeConfig::Tdx(both.clone())).starts_with("tee.quoting_socket: "));
}

#[test]
fn unknown_fields_and_wrong_types_are_refused() {
    let folder = folder();
    let path = folder.path().join("vm.json");
    for (text, expected) in [
        ("{", "EOF"),
        (r#"{"id":"a","nope":1}"#, "unknown field `nope`"),
        (r#"{"id":"a","vcpus":-1}"#, "invalid value"),
        (r#"{"id":"a","vcpus":1,"memory_mib":64}"#, "missing field `boot`"),
    ] {
        std::fs::write(&path, text).expect("written");
        let error = load(&path).expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn toml_says_the_same_as_json() {
    let folder = folder();
    let path = folder.path().join("vm.toml");
    let text = r#"
        id = "test"
        vcpus = 1
        memory_mib = 128
        console = "/run/x/console"
        control_socket = "/run/x/vmm.sock"
        [boot]
        kernel = "/kernel"
        cmdline = "console=ttyS0 reboot=k panic=-1 quiet"
    "#;
    std::fs::write(&path, text).expect("written");
    assert_eq!(load(&path).expect("valid"), base());
}

/// Runs the binary; gives exit code and log.
fn run(arguments: &[&str]) -> (i32, String) {
    let output = vmm().args(arguments).output().expect("vmm runs");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), log)
}

#[test]
fn the_binary_refuses_with_exit_code_2_and_leaves_nothing() {
    let folder = folder();
    let text = |path: &Path| path.to_str().expect("utf-8").to_owned();
    let missing = text(&folder.path().join("none.json"));
    let (code, log) = run(&["--config", &missing]);
    assert_eq!(code, exit::BAD_CONFIG);
    assert!(log.contains("cannot read"), "{log}");

    let good = write_config(folder.path(), &config(folder.path(), Path::new("/nonexistent/vmlinux")));
    let (code, log) = run(&["--check", "--config", &text(&good)]);
    assert_eq!((code, log.as_str()), (exit::OK, ""));
    let (code, log) = run(&["--config", &text(&good)]);
    assert_eq!(code, exit::BAD_CONFIG);
    assert!(log.contains("kernel /nonexistent/vmlinux"), "{log}");

    let kernel = folder.path().join("kernel");
    std::fs::write(&kernel, b"not a kernel").expect("written");
    let bad = write_config(folder.path(), &config(folder.path(), &kernel));
    let (code, log) = run(&["--config", &text(&bad)]);
    assert_eq!(code, exit::BAD_CONFIG);
    assert!(log.contains("neither an ELF vmlinux nor a bzImage"), "{log}");

    let mut left: Vec<_> = std::fs::read_dir(folder.path())
        .expect("folder")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["kernel", "vm.json"]);
    assert_eq!(run(&[]).0, exit::BAD_CONFIG);
    assert_eq!(run(&["--nonsense"]).0, exit::BAD_CONFIG);
    assert_eq!(run(&["--check"]).0, exit::BAD_CONFIG);
    assert_eq!(run(&["--version"]).0, exit::OK);
}

#[test]
fn a_block_slot_takes_neither_folder_nor_fifo() {
    let folder = folder();
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    for path in [folder.path(), &fifo] {
        let error = kata_cc_vmm::files::open_block(path, true).expect_err("refused");
        assert!(error.to_string().contains("neither a regular file nor a block device"), "{error}");
    }
}
