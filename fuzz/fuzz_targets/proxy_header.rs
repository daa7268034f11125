//! PROXY headers that a balancer sends before TLS.
#![no_main]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use kata_cc_attestation_service::serve::read_proxy_header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    let read = {
        let mut reading = pin!(read_proxy_header(&mut rest));
        // Bytes in memory never make it wait.
        let Poll::Ready(read) = reading.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("it waits")
        };
        read
    };
    let used = bytes.len() - rest.len();
    if read.is_ok() {
        // What was read is a header, and not a byte of what follows it.
        assert!(
            bytes.starts_with(b"PROXY ") && bytes[..used].ends_with(b"\r\n")
                || bytes.starts_with(b"\r\n\r\n\0\r\nQUIT\n")
        );
    }
    assert!(used <= 16 + 4096);
});
