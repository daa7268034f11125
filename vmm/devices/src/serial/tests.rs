use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::*;

fn line() -> Arc<EventFd> {
    Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())
}

fn counter(serial: &Serial, name: &str) -> u64 {
    serial.counters().find(|(counter, _)| counter == name).unwrap().1
}

#[test]
fn lines_reach_the_writer() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let serial = Serial::new(line(), Box::new(ours));
    for byte in b"hello\nwor" {
        serial.write(0, &[*byte]);
    }
    let mut text = [0; 64];
    assert_eq!(theirs.read(&mut text).unwrap(), 6);
    assert_eq!(&text[..6], b"hello\n");
    serial.flush();
    assert_eq!(theirs.read(&mut text).unwrap(), 3);
    assert_eq!(counter(&serial, "serial.bytes"), 9);
}

#[test]
fn transmitter_is_always_empty() {
    let serial = Serial::new(line(), Box::new(io::sink()));
    let mut status = [0];
    serial.write(0, b"x");
    serial.read(5, &mut status);
    assert_eq!(status[0] & 0x60, 0x60);
}

/// A sink that stopped reading loses bytes; the guest never waits.
#[test]
fn flood_into_a_stopped_sink_is_lost_and_counted() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let serial = Serial::new(line(), Box::new(ours));
    for _ in 0..1 << 20 {
        serial.write(0, b"x");
    }
    let (written, lost) = (counter(&serial, "serial.bytes"), counter(&serial, "serial.lost_bytes"));
    assert!(lost > 0);
    assert_eq!(written + lost, 1 << 20);
    drop(theirs);
    serial.write(0, b"\n");
}

struct Broken;

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn full_disk_is_no_matter() {
    let serial = Serial::new(line(), Box::new(Broken));
    b"hello\n".iter().for_each(|byte| serial.write(0, &[*byte]));
    assert_eq!(counter(&serial, "serial.lost_bytes"), 6);
}

/// CVE-2020-27173: in loopback mode the guest filled an input FIFO without bound.
#[test]
fn cve_2020_27173_loopback_flood_is_bounded() {
    let serial = Serial::new(line(), Box::new(io::sink()));
    serial.write(4, &[0x10]);
    for _ in 0..100_000 {
        serial.write(0, b"x");
    }
    assert!(serial.input_fifo_len() <= 64);
}

/// Every register, every value, every width, again and again.
#[test]
fn registers_take_anything() {
    let serial = Serial::new(line(), Box::new(io::sink()));
    for value in 0..=255_u8 {
        for offset in 0..=255_u8 {
            let mut data = [0; 4];
            serial.write(offset, &[value]);
            serial.write(offset, &[value; 4]);
            serial.read(offset, &mut data[..1]);
            serial.read(offset, &mut data);
            assert_eq!(data, [0; 4]);
        }
    }
}

#[test]
fn reset_command_is_seen_once_it_comes() {
    let event = line();
    let port = ResetPort::new(event.clone());
    let mut status = [0xff];
    port.read(&mut status);
    assert_eq!(status, [0]);
    for value in 0..=0xff_u8 {
        assert_eq!(port.write(&[value]), value == 0xfe);
    }
    assert!(!port.write(&[0xfe, 0xfe]));
    assert!(port.requested());
    assert_eq!(event.read().unwrap(), 1);
}
