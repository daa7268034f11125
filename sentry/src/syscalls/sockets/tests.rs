//! Tests of system calls of sockets, with guest memory.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::kernel::Kernel;
use crate::task::Task;
use crate::testing::{BASE, FlatThread};

/// Addresses of things in guest memory.
const PAIR: u64 = BASE;
const NAME: u64 = BASE + 0x100;
const LENGTH: u64 = BASE + 0x180;
const HEADER: u64 = BASE + 0x200;
const PARTS: u64 = BASE + 0x300;
const CONTROL: u64 = BASE + 0x400;
const DATA: u64 = BASE + 0x1000;

fn with_call(test: impl FnOnce(&mut Call<'_>)) {
    let kernel = Kernel::for_test();
    let task = Task::for_test(&kernel);
    let mut thread = FlatThread::new(0x1_0000);
    test(&mut Call { kernel: &kernel, task: &task, thread: &mut thread });
}

fn pair(call: &mut Call<'_>, kind: i32) -> [u64; 2] {
    let kind = kind.unsigned_abs().into();
    assert_eq!(socketpair(call, [1, kind, 0, PAIR, 0, 0]), Ok(0));
    [PAIR, PAIR + 4].map(|at| call.read_u32(at).unwrap().into())
}

/// Writes a `struct msghdr` of one part, with room for control data.
fn header(call: &Call<'_>, length: u64, control: u64) {
    call.write(PARTS, &[DATA, length].map(u64::to_le_bytes).concat()).unwrap();
    let fields = [NAME, 0, PARTS, 1, CONTROL, control, 0].map(u64::to_le_bytes).concat();
    call.write(HEADER, &fields).unwrap();
}

fn errno(errno: Errno) -> SysResult {
    Err(errno.into())
}

#[test]
fn sends_and_receives() {
    with_call(|call| {
        let [one, other] = pair(call, libc::SOCK_STREAM);
        call.write(DATA, b"hello").unwrap();
        assert_eq!(transfer::sendto(call, [one, DATA, 5, 0, 0, 0]), Ok(5));
        assert_eq!(transfer::recvfrom(call, [other, DATA + 100, 100, 0, 0, 0]), Ok(5));
        assert_eq!(&call.read_array::<5>(DATA + 100).unwrap(), b"hello");
        let not_now = libc::MSG_DONTWAIT.unsigned_abs().into();
        assert_eq!(transfer::recvfrom(call, [other, DATA, 100, not_now, 0, 0]), errno(Errno::EAGAIN));
        assert_eq!(transfer::sendto(call, [one, 8, 5, 0, 0, 0]), errno(Errno::EFAULT));
        assert_eq!(transfer::sendto(call, [99, DATA, 5, 0, 0, 0]), errno(Errno::EBADF));
        assert_eq!(shutdown(call, [one, 3, 0, 0, 0, 0]), errno(Errno::EINVAL));
        assert_eq!(shutdown(call, [one, 1, 0, 0, 0, 0]), Ok(0));
        assert_eq!(transfer::sendto(call, [one, DATA, 5, 0, 0, 0]), errno(Errno::EPIPE));
        assert_eq!(transfer::recvfrom(call, [other, DATA, 100, 0, 0, 0]), Ok(0));
    });
}

#[test]
fn plain_reads_and_writes_are_one_message_and_wait_no_longer_than_they_may() {
    with_call(|call| {
        let [one, other] = pair(call, libc::SOCK_DGRAM);
        let target = |call: &Call<'_>, fd| Target::find(call, fd).unwrap();
        call.write(DATA, b"hello").unwrap();
        let (from, to) = (target(call, one), target(call, other));
        assert_eq!(write(call, &from, &[(DATA, 2), (DATA + 2, 3)], false), Ok(5));
        assert_eq!(read(call, &to, &[(DATA + 64, 0)], false), Ok(0));
        assert_eq!(read(call, &to, &[(DATA + 64, 1), (DATA + 128, 9)], false), Ok(5));
        assert_eq!(&call.read_array::<4>(DATA + 128).unwrap(), b"ello");
        assert_eq!(read(call, &to, &[(DATA, 9)], true), errno(Errno::EAGAIN));
        call.write(DATA, &[0u64.to_le_bytes(), 1000u64.to_le_bytes()].concat()).unwrap();
        let [level, name] = [libc::SOL_SOCKET, libc::SO_RCVTIMEO].map(|number| number.unsigned_abs().into());
        assert_eq!(setsockopt(call, [other, level, name, DATA, 16, 0]), Ok(0));
        assert_eq!(read(call, &to, &[(DATA, 9)], false), errno(Errno::EAGAIN));
    });
}

#[test]
fn errors_come_in_the_order_of_linux() {
    with_call(|call| {
        let [one, _] = pair(call, libc::SOCK_STREAM);
        let kernel = 0xffff_8000_0000_1000;
        assert_eq!(transfer::sendto(call, [99, kernel, 5, 0, 0, 0]), errno(Errno::EFAULT));
        assert_eq!(transfer::sendto(call, [one, DATA, 5, 0, NAME, 200]), errno(Errno::EINVAL));
        assert_eq!(transfer::sendto(call, [one, DATA, 5, 0, NAME, 0]), Ok(5));
        assert_eq!(transfer::sendto(call, [one, DATA, 5, 0, NAME, 16]), errno(Errno::EISCONN));
        assert_eq!(getsockopt(call, [one, 6, 1, 8, 8, 0]), errno(Errno::EOPNOTSUPP));
        assert_eq!(socket(call, [99, 15, 0, 0, 0, 0]), errno(Errno::EAFNOSUPPORT));
        assert_eq!(socketpair(call, [99, 1, 0, 8, 0, 0]), errno(Errno::EFAULT));
    });
}

#[test]
fn descriptors_come_with_messages() {
    with_call(|call| {
        let [one, other] = pair(call, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC);
        header(call, 3, 24);
        let control = [20u64.to_le_bytes(), [1, 0, 0, 0, 1, 0, 0, 0], one.to_le_bytes()].concat();
        call.write(CONTROL, &control).unwrap();
        assert_eq!(transfer::sendmsg(call, [one, HEADER, 0, 0, 0, 0]), Ok(3));
        assert_eq!(transfer::sendmsg(call, [one, HEADER, 0, 0, 0, 0]), Ok(3));
        header(call, 2, 64);
        let flags = libc::MSG_CMSG_CLOEXEC.cast_unsigned().into();
        assert_eq!(transfer::recvmsg(call, [other, HEADER, flags, 0, 0, 0]), Ok(2));
        let told = call.read_u32(HEADER + 48).unwrap().cast_signed();
        assert_eq!(told, libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC);
        assert_eq!((call.read_u64(HEADER + 40), call.read_u64(CONTROL)), (Ok(24), Ok(20)));
        let fd = call.read_u32(CONTROL + 16).unwrap().cast_signed();
        let files = call.task.files();
        assert_eq!(files.is_close_on_exec(fd), Ok(true));
        assert_eq!(files.get(fd).unwrap().id(), files.get(int(one)).unwrap().id());
        header(call, 3, 8);
        assert_eq!(transfer::recvmsg(call, [other, HEADER, 0, 0, 0, 0]), Ok(3));
        assert_eq!(call.read_u32(HEADER + 48).unwrap().cast_signed(), libc::MSG_CTRUNC);
        assert_eq!(call.kernel.net.flight.used(), 0);
    });
}

#[test]
fn credentials_come_with_messages() {
    with_call(|call| {
        let [one, other] = pair(call, libc::SOCK_DGRAM);
        call.write(DATA, &1i32.to_le_bytes()).unwrap();
        let passes = [other, 1, libc::SO_PASSCRED.unsigned_abs().into(), DATA, 4, 0];
        assert_eq!(setsockopt(call, passes), Ok(0));
        assert_eq!(transfer::sendto(call, [one, DATA, 4, 0, 0, 0]), Ok(4));
        header(call, 4, 64);
        assert_eq!(transfer::recvmsg(call, [other, HEADER, 0, 0, 0, 0]), Ok(4));
        assert_eq!((call.read_u64(HEADER + 40), call.read_u64(CONTROL)), (Ok(32), Ok(28)));
        assert_eq!((call.read_u64(CONTROL + 8), call.read_u64(CONTROL + 16)), (Ok(0x2_0000_0001), Ok(1)));
    });
}

#[test]
fn a_connection_by_address() {
    with_call(|call| {
        let kind = (libc::SOCK_STREAM | libc::SOCK_NONBLOCK).unsigned_abs().into();
        let listening = socket(call, [2, kind, 0, 0, 0, 0]).unwrap();
        call.write(NAME, &[2, 0, 0, 0, 127, 0, 0, 1]).unwrap();
        call.write(LENGTH, &16u32.to_le_bytes()).unwrap();
        assert_eq!(bind(call, [listening, NAME, 8, 0, 0, 0]), errno(Errno::EINVAL));
        assert_eq!(bind(call, [listening, NAME, 16, 0, 0, 0]), Ok(0));
        assert_eq!(listen(call, [listening, 5, 0, 0, 0, 0]), Ok(0));
        assert_eq!(accept(call, [listening, 0, 0, 0, 0, 0]), errno(Errno::EAGAIN));
        assert_eq!(getsockname(call, [listening, NAME, LENGTH, 0, 0, 0]), Ok(0));
        let client = socket(call, [2, 1, 0, 0, 0, 0]).unwrap();
        assert_eq!(connect(call, [client, NAME, 16, 0, 0, 0]), Ok(0));
        let server = accept4(call, [listening, NAME, LENGTH, 0, 0, 0]).unwrap();
        assert_eq!(call.read_u32(LENGTH), Ok(16));
        call.task.files().close(int(server)).unwrap();
        assert_eq!(transfer::recvfrom(call, [client, DATA, 10, 0, 0, 0]), Ok(0));
    });
}

#[test]
fn waiting_has_an_end() {
    with_call(|call| {
        let [one, other] = pair(call, libc::SOCK_STREAM);
        call.write(DATA, &[0u64, 20_000].map(u64::to_le_bytes).concat()).unwrap();
        let timeout = [one, 1, libc::SO_RCVTIMEO.unsigned_abs().into(), DATA, 16, 0];
        assert_eq!(setsockopt(call, timeout), Ok(0));
        let start = Instant::now();
        assert_eq!(transfer::recvfrom(call, [one, DATA, 10, 0, 0, 0]), errno(Errno::EAGAIN));
        assert!(start.elapsed() >= Duration::from_millis(20));
        // What came before the deadline is had.
        assert_eq!(transfer::sendto(call, [other, DATA, 3, 0, 0, 0]), Ok(3));
        let all = libc::MSG_WAITALL.unsigned_abs().into();
        assert_eq!(transfer::recvfrom(call, [one, DATA, 10, all, 0, 0]), Ok(3));
    });
}

#[test]
fn many_messages() {
    with_call(|call| {
        let [one, other] = pair(call, libc::SOCK_DGRAM);
        for at in [HEADER, HEADER + 64] {
            call.write(PARTS, &[DATA, 4].map(u64::to_le_bytes).concat()).unwrap();
            call.write(at, &[0, 0, PARTS, 1, 0, 0, 0, 0].map(u64::to_le_bytes).concat()).unwrap();
        }
        assert_eq!(transfer::sendmmsg(call, [one, HEADER, 2, 0, 0, 0]), Ok(2));
        let one_at_least = libc::MSG_WAITFORONE.unsigned_abs().into();
        call.write(HEADER + 128, &[0, 0, PARTS, 1, 0, 0, 0, 0].map(u64::to_le_bytes).concat()).unwrap();
        assert_eq!(transfer::recvmmsg(call, [other, HEADER, 3, one_at_least, 0, 0]), Ok(2));
        assert_eq!((call.read_u32(HEADER + 56), call.read_u32(HEADER + 120)), (Ok(4), Ok(4)));
    });
}

#[test]
fn a_netlink_dump() {
    with_call(|call| {
        let fd = socket(call, [16, 3, 0, 0, 0, 0]).unwrap();
        let request = [[20, 0, 0, 0, 18, 0, 1, 3], [1, 0, 0, 0, 0, 0, 0, 0], [0; 8]].concat();
        call.write(DATA, &request).unwrap();
        assert_eq!(transfer::sendto(call, [fd, DATA, 20, 0, 0, 0]), Ok(20));
        assert!(transfer::recvfrom(call, [fd, DATA, 8192, 0, 0, 0]).unwrap() > 100);
        assert_eq!(call.read_array::<2>(DATA + 4), Ok([16, 0]));
    });
}
