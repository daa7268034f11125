//! Stands in for `kata-cc-vmm`: its control socket, and its vsock socket in front of the fake agent. No guest, no KVM.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use kata_cc_vmm_api::{ControlReply, ControlRequest, Phase, VmConfig, VmState, exit};

use super::World;

/// Be the monitor, with this configuration file, until killed or stopped.
pub(crate) fn monitor(config: &Path) {
    // As `--die-with-parent`: a test that fails leaves no process.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).unwrap();
    let config: VmConfig = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
    let control = UnixListener::bind(&config.control_socket).unwrap();
    let vsock = UnixListener::bind(config.vsock.unwrap().uds).unwrap();
    eprintln!("{{\"level\":\"info\",\"msg\":\"the fake monitor runs\"}}");
    std::thread::spawn(move || {
        for stream in control.incoming() {
            std::thread::spawn(move || answer(stream.unwrap()));
        }
    });
    for stream in vsock.incoming() {
        std::thread::spawn(move || carry(stream.unwrap()));
    }
}

#[allow(clippy::exit, reason = "a stopped monitor exits, and the threads of a test harness do not hinder it")]
fn answer(stream: UnixStream) {
    let mut to = stream.try_clone().unwrap();
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        let request = serde_json::from_str(&line).unwrap();
        let reply = match request {
            ControlRequest::State => ControlReply::State(VmState {
                phase: Phase::Running,
                launch_digest: None,
                tee: "none".into(),
            }),
            _ => ControlReply::Done,
        };
        let mut text = serde_json::to_vec(&reply).unwrap();
        text.push(b'\n');
        let _ = to.write_all(&text);
        if request == ControlRequest::Stop {
            std::process::exit(exit::OK);
        }
    }
}

/// `CONNECT 1024`, then both ways. A guest that does not listen shows by an end, as the real device does.
fn carry(mut host: UnixStream) {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        if !matches!(host.read(&mut byte), Ok(1)) {
            return;
        }
        line.push(byte[0]);
    }
    assert_eq!(line, b"CONNECT 1024\n");
    let Ok(agent) = UnixStream::connect(World::agent()) else { return };
    host.write_all(b"OK 1073741824\n").unwrap();
    let (back_from, back_to) = (agent.try_clone().unwrap(), host.try_clone().unwrap());
    std::thread::spawn(move || one_way(back_from, back_to));
    one_way(host, agent);
}

fn one_way(mut from: UnixStream, mut to: UnixStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
