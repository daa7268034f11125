//! LUKS2 headers, which the host writes: read or refused within the limits, and nothing opens to a key that nobody chose.
#![no_main]

use std::io::{self, Read, Seek, SeekFrom};

use kata_cc_volumes::luks2::{self, Limits};
use libfuzzer_sys::fuzz_target;

const SIZE: u64 = 32 << 20;
const LIMITS: Limits = Limits { argon2_memory_kib: 64, argon2_work_kib: 512, pbkdf2_iterations: 4096 };

/// A device that begins with some bytes; the rest is zeros.
struct Device<'a> {
    bytes: &'a [u8],
    at: u64,
}

impl Read for Device<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(SIZE.saturating_sub(self.at)).unwrap_or(0).min(out.len());
        for (byte, at) in out[..left].iter_mut().zip(self.at..) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
        self.at += left as u64;
        Ok(left)
    }
}

impl Seek for Device<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let SeekFrom::Start(at) = to else { return Err(io::ErrorKind::Unsupported.into()) };
        self.at = at;
        Ok(at)
    }
}

// A JSON area, which gets a header with the right checksums; anything else is the device itself.
fuzz_target!(|data: &[u8]| {
    let header = if data.starts_with(b"{") { luks2::header_of(data) } else { None };
    let bytes = header.as_deref().unwrap_or(data);
    let readable = luks2::inspect(&mut Device { bytes, at: 0 }, SIZE).is_ok();
    let opened = luks2::open(&mut Device { bytes, at: 0 }, SIZE, b"key", LIMITS);
    assert!(opened.is_err(), "opened by a key that nobody chose: {opened:?}");
    let named = matches!(
        opened,
        Err(luks2::Luks2Error::NoMatch { .. }
            | luks2::Luks2Error::NoKeyslot { .. }
            | luks2::Luks2Error::TooCostly { .. }
            | luks2::Luks2Error::Crypto(_))
    );
    assert_eq!(readable, named, "inspect and open differ: {opened:?}");
});
