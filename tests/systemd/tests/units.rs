//! The units of `deploy/`, as their notes say to install them, started by a real systemd: ready by notification, sandboxed as they say, drained by
//! `systemctl stop`, started again after a crash.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kata_cc_test_systemd::{Layout, within};

/// Runs to the end, and gives what it said on both ways out.
#[track_caller]
fn run(line: &str) -> String {
    let (ok, said) = attempt(line);
    assert!(ok, "{line}: {said}");
    said
}

fn attempt(line: &str) -> (bool, String) {
    let output = Command::new("sh").args(["-c", line]).current_dir("/").output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).trim().to_owned())
}

fn property(unit: &str, name: &str) -> String {
    run(&format!("systemctl show --property {name} --value {unit}"))
}

#[track_caller]
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(120), "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn deploy() -> PathBuf {
    let manifest =
        std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    Path::new(&manifest).join("../../deploy").canonicalize().unwrap()
}

/// Puts a program where its unit looks for it. False where it is not built; says so.
fn install(name: &str) -> bool {
    let built = std::env::var_os("KATA_CC_BIN_DIR").map(|dir| Path::new(&dir).join(name));
    let Some(built) = built.filter(|path| path.is_file()) else {
        kata_cc_test_vectors::skip(
            "binaries",
            &format!("{name} is not built, or KATA_CC_BIN_DIR does not say where"),
        );
        return false;
    };
    let place = format!("/usr/bin/{name}");
    run(&format!("touch {place} && mount --bind {} {place}", built.display()));
    let unit = deploy().join(name).join(format!("{name}.service"));
    run(&format!("cp {} /etc/systemd/system/ && systemctl daemon-reload", unit.display()));
    // No word of warning: an option that this systemd does not know would be one.
    assert_eq!(run(&format!("systemd-analyze verify /etc/systemd/system/{name}.service")), "");
    true
}

/// What `systemd-analyze security` finds, tenths: 0 is closed, 100 open.
fn exposure(unit: &str) -> u32 {
    let said = run(&format!("systemd-analyze security --no-pager {unit}.service"));
    let last = said.lines().last().unwrap();
    let figure = last
        .split_whitespace()
        .find_map(|word| word.split_once('.').filter(|(one, _)| one.parse::<u32>().is_ok()));
    let (one, tenth) = figure.unwrap_or_else(|| panic!("{last}"));
    one.parse::<u32>().unwrap() * 10 + tenth.parse::<u32>().unwrap()
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// The first line of the answer.
fn answer(stream: &mut TcpStream) -> String {
    let mut bytes = vec![0; 4096];
    let count = stream.read(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..count]).lines().next().unwrap_or_default().to_owned()
}

fn get(port: u16, path: &str) -> String {
    let mut stream = connect(port);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    answer(&mut stream)
}

/// A service that listens in clear on a port of loopback: from start to stop, twice.
fn lives(unit: &str, port: u16, request: &str) {
    run(&format!("systemctl start {unit}"));
    // With Type=notify, start waits for READY=1.
    assert_eq!((property(unit, "ActiveState"), property(unit, "Type")), ("active".into(), "notify".into()));
    assert_eq!(get(port, "/healthz"), "HTTP/1.1 200 OK");
    is_confined(unit);

    let pid = property(unit, "MainPID");
    run(&format!("systemctl reload {unit}"));
    assert_eq!((property(unit, "ActiveState"), property(unit, "MainPID")), ("active".into(), pid.clone()));
    assert_eq!(get(port, "/healthz"), "HTTP/1.1 200 OK");

    run(&format!("systemctl kill --signal=KILL {unit}"));
    eventually("a new start after a crash", || {
        property(unit, "NRestarts") == "1" && property(unit, "ActiveState") == "active"
    });
    assert_ne!(property(unit, "MainPID"), pid);
    assert_eq!(get(port, "/healthz"), "HTTP/1.1 200 OK");

    let mut running = connect(port);
    write!(running, "POST {request} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{").unwrap();
    // Until its head has been read, a connection is not running a request.
    std::thread::sleep(Duration::from_millis(500));
    run(&format!("systemctl stop --no-block {unit}"));
    eventually("the beginning of its end", || property(unit, "ActiveState") != "active");
    running.write_all(b"}").unwrap();
    let answered = answer(&mut running);
    assert!(answered.starts_with("HTTP/1.1 400"), "what runs is answered: {answered:?}");
    eventually("its end", || property(unit, "ActiveState") == "inactive");
    assert_eq!((property(unit, "Result"), property(unit, "ExecMainStatus")), ("success".into(), "0".into()));
    let log = run(&format!("journalctl --sync; journalctl --no-pager --identifier={unit}"));
    assert!(log.contains("draining") && !log.contains("cut off"), "{log}");

    run(&format!("systemctl start {unit} && systemctl restart {unit}"));
    assert_eq!(get(port, "/healthz"), "HTTP/1.1 200 OK");
    run(&format!("systemctl stop {unit}"));
    assert_eq!(property(unit, "Result"), "success");
}

/// What the unit says is so for the process.
fn is_confined(unit: &str) {
    let pid = property(unit, "MainPID");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap_or_else(|| panic!("{name}: {status}")).trim().to_owned()
    };
    assert!(!field("Uid").split_whitespace().any(|uid| uid == "0"), "{status}");
    for set in ["CapEff", "CapPrm", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".into(), "2".into()));
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).unwrap();
    assert!(root.split(' ').nth(3).unwrap().split(',').any(|option| option == "ro"), "{root}");
    assert!(exposure(unit) <= 15, "systemd-analyze security gives {unit} {} tenths", exposure(unit));
}

#[test]
fn the_key_brokers_unit() {
    within(Layout::V2, "the_key_brokers_unit", || {
        if !install("kbs") {
            return;
        }
        // As the note in the unit says, but for the address.
        run(&format!(
            "cp {}/kbs/kbs.sysusers /usr/lib/sysusers.d/kbs.conf && systemd-sysusers",
            deploy().display()
        ));
        run("install -d -o kbs -g kbs -m 0700 /etc/kbs /var/lib/kbs");
        run(
            "setpriv --reuid kbs --regid kbs --clear-groups kbs init /etc/kbs --state /var/lib/kbs --socket 127.0.0.1:8443 --name kbs.example",
        );
        run("systemctl start kbs");
        assert_eq!(property("kbs", "ActiveState"), "active", "with TLS, as it was made");
        is_confined("kbs");
        run("systemctl stop kbs");
        assert_eq!(
            run("stat --format '%U %a' /var/lib/kbs /var/lib/kbs/kbs.db /etc/kbs/tls.key"),
            "kbs 700\nkbs 600\nkbs 600"
        );
        // In clear, for what follows.
        run(
            "sed -i -e '/^private_key/d' -e '/^certificate/d' -e 's/^sockets.*/&\\ninsecure_http = true/' /etc/kbs/kbs.toml",
        );
        lives("kbs", 8443, "/kbs/v0/auth");

        run("echo nonsense >>/etc/kbs/kbs.toml");
        assert!(!attempt("systemctl start kbs").0, "a configuration that is no good");
        let told = || run("journalctl --no-pager --identifier=kbs").contains("is not understood: line");
        eventually("what is wrong in the log", told);
        run("systemctl stop kbs");
    });
}

#[test]
fn the_attestation_services_unit() {
    within(Layout::V2, "the_attestation_services_unit", || {
        const CONFIG: &str = "/etc/kata-cc/attestation-service.toml";
        let unit = "attestation-service";
        if !install(unit) {
            return;
        }
        run(&format!("mkdir -p /etc/kata-cc && cp {}/{unit}/config.toml {CONFIG}", deploy().display()));
        lives(unit, 8080, "/attestation");
        let state = run(
            "stat --dereference --format '%a' /var/lib/kata-cc/attestation-service /var/lib/private/kata-cc/attestation-service/store.key",
        );
        assert_eq!(state, "700\n600");

        // TLS, with a key that root alone can read: as the note in the unit says.
        run(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=a.example -addext subjectAltName=DNS:a.example \
             -keyout /etc/kata-cc/tls.key -out /etc/kata-cc/tls.pem && chmod 600 /etc/kata-cc/tls.key",
        );
        let place = format!("/run/credentials/{unit}.service");
        run(&format!(
            "sed -i 's|^# tls = .*|tls = {{ certificate = \"{place}/tls.pem\", private_key = \"{place}/tls.key\" }}|' {CONFIG}"
        ));
        run(&format!("mkdir -p /etc/systemd/system/{unit}.service.d"));
        let lines = "[Service]\nLoadCredential=tls.pem:/etc/kata-cc/tls.pem\nLoadCredential=tls.key:/etc/kata-cc/tls.key\n";
        std::fs::write(format!("/etc/systemd/system/{unit}.service.d/tls.conf"), lines).unwrap();
        run("systemctl daemon-reload");
        run(&format!("systemctl start {unit}"));
        eventually("TLS", || run(&format!("journalctl --no-pager --identifier={unit}")).contains("tls=true"));
        run(&format!("systemctl stop {unit}"));
        assert_eq!(property(unit, "Result"), "success");
    });
}
