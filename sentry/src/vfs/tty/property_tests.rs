//! The discipline against the host's: the same bytes in under the same settings, the same bytes out at both ends.

#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proptest::prelude::*;

use super::discipline::Discipline;
use super::termios::{Termios, flag};

#[derive(Debug, Clone)]
enum Step {
    Type(Vec<u8>),
    Print(Vec<u8>),
    Read(usize),
    Set(Termios),
}

fn ask<T>(fd: &OwnedFd, request: libc::Ioctl, value: &mut T) {
    // SAFETY: `value` is as large as the request of each caller wants it.
    assert_eq!(unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(value)) }, 0);
}

struct Host {
    master: OwnedFd,
    slave: OwnedFd,
}

impl Host {
    fn new() -> Self {
        let pty = nix::pty::openpty(None, None).unwrap();
        for fd in [&pty.master, &pty.slave] {
            let mut on = 1i32;
            ask(fd, libc::FIONBIO, &mut on);
        }
        Self { master: pty.master, slave: pty.slave }
    }

    fn set(&self, termios: &Termios) {
        let mut bytes = [0; 36];
        bytes.copy_from_slice(&termios.to_bytes()[..36]);
        ask(&self.slave, libc::TCSETS, &mut bytes);
    }

    fn available(&self) -> usize {
        let mut count = 0i32;
        ask(&self.slave, libc::FIONREAD, &mut count);
        usize::try_from(count).unwrap()
    }

    /// What comes out of the master, `expected` bytes of it being waited for.
    fn drain(&self, expected: usize) -> Vec<u8> {
        let (mut all, until) = (Vec::new(), Instant::now() + Duration::from_millis(500));
        loop {
            let mut bytes = [0; 4096];
            match nix::unistd::read(&self.master, &mut bytes) {
                Ok(count) => all.extend_from_slice(&bytes[..count]),
                Err(_) => {
                    let missing = all.len() < expected && Instant::now() < until;
                    let timeout = if missing { PollTimeout::from(20u8) } else { PollTimeout::from(2u8) };
                    let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
                    if poll(&mut fds, timeout).unwrap() == 0 && !missing {
                        return all;
                    }
                }
            }
        }
    }

    fn settle(&self, available: usize) {
        let until = Instant::now() + Duration::from_millis(500);
        std::thread::sleep(Duration::from_millis(2));
        while self.available() != available && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Without IXON: what is out before a STOP depends on when the host's kernel passes echoes on.
fn settings() -> impl Strategy<Value = Termios> {
    let i = flag::ISTRIP | flag::INLCR | flag::IGNCR | flag::ICRNL | flag::IUCLC | flag::PARMRK | flag::IUTF8;
    let o = flag::OPOST | flag::OLCUC | flag::ONLCR | flag::OCRNL | flag::ONOCR | flag::ONLRET;
    let l = flag::ISIG
        | flag::ECHO
        | flag::ECHOE
        | flag::ECHOK
        | flag::ECHONL
        | flag::ECHOCTL
        | flag::ECHOPRT
        | flag::ECHOKE
        | flag::IEXTEN;
    (any::<u32>(), any::<u32>(), any::<u32>(), any::<bool>(), 0..4u8).prop_map(
        move |(a, b, c, tabs, lines)| {
            let mut termios = Termios {
                input: a & i,
                output: b & o | if tabs { flag::XTABS } else { 0 },
                local: c & l | flag::NOFLSH | if lines > 0 { flag::ICANON } else { 0 },
                ..Termios::default()
            };
            termios.chars[super::termios::place::EOL] = b'|';
            termios.chars[super::termios::place::EOL2] = 255;
            termios
        },
    )
}

/// Bytes among which those with a meaning are frequent.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let special = prop::sample::select(vec![
        3, 28, 127, 21, 4, 17, 19, 26, 18, 15, 23, 22, b'|', 255, b'\n', b'\r', b'\t', 8, 0, 0xc3, 0xa4,
        b'_', b' ',
    ]);
    prop::collection::vec(prop_oneof![special, b'a'..=b'f', any::<u8>()], 1..24)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => bytes().prop_map(Step::Type),
        3 => bytes().prop_map(Step::Print),
        3 => (1..30usize).prop_map(Step::Read),
        1 => settings().prop_map(Step::Set),
    ];
    prop::collection::vec(step, 1..10)
}

fn check(first: &Termios, steps: &[Step]) -> Result<(), TestCaseError> {
    let host = Host::new();
    let (mut ours, mut output, mut told) = (Discipline::default(), VecDeque::new(), Vec::new());
    host.set(first);
    ours.set_termios(*first, &mut output, &mut told);
    for step in steps {
        match step {
            Step::Type(bytes) => {
                prop_assert_eq!(ours.receive(bytes, &mut output, &mut told), bytes.len());
                prop_assert_eq!(nix::unistd::write(&host.master, bytes), Ok(bytes.len()));
            }
            Step::Print(bytes) => {
                let count = ours.write(bytes, &mut output, 65_536);
                prop_assert_eq!(nix::unistd::write(&host.slave, bytes).unwrap_or(0), count);
            }
            Step::Read(size) => {
                let (mut mine, mut theirs) = (vec![0; *size], vec![0; *size]);
                let mine_count = ours.readable(1).then(|| ours.read(&mut mine));
                prop_assert_eq!(nix::unistd::read(&host.slave, &mut theirs).ok(), mine_count, "{:?}", step);
                prop_assert_eq!(mine, theirs);
            }
            Step::Set(termios) => {
                host.set(termios);
                ours.set_termios(*termios, &mut output, &mut told);
            }
        }
        let mine: Vec<u8> = output.drain(..).collect();
        prop_assert_eq!(host.drain(mine.len()), mine, "{:?}", step);
        host.settle(ours.available());
        prop_assert_eq!(host.available(), ours.available(), "{:?}", step);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn the_discipline_does_as_the_hosts(first in settings(), steps in steps()) {
        check(&first, &steps)?;
    }
}

#[test]
fn a_signal_flushes_unless_told_not_to() {
    let (mut line, mut output, mut told) = (Discipline::default(), VecDeque::new(), Vec::new());
    line.receive(b"one\ntwo\x03", &mut output, &mut told);
    assert_eq!(output.drain(..).collect::<Vec<_>>(), b"^C");
    assert!(!line.readable(1));
    let mut termios = *line.termios();
    termios.local |= flag::NOFLSH;
    line.set_termios(termios, &mut output, &mut told);
    line.receive(b"one\ntwo\x1a", &mut output, &mut told);
    assert_eq!(output.drain(..).collect::<Vec<_>>(), b"one\r\ntwo^Z");
    assert!(line.readable(1));
}

#[test]
fn a_line_too_long_keeps_its_beginning() {
    let (mut line, mut output, mut told) = (Discipline::default(), VecDeque::new(), Vec::new());
    assert_eq!(line.receive(&[b'x'; 5000], &mut output, &mut told), 5000);
    assert_eq!(line.receive(b"\n", &mut output, &mut told), 1);
    let mut bytes = [0; 6000];
    assert_eq!(line.read(&mut bytes), 4096);
    assert_eq!(bytes[4095], b'\n');
}
