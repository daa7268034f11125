//! Device mapper requests, as bytes.
//!
//! Source: the kernel's `include/uapi/linux/dm-ioctl.h`: `struct dm_ioctl` is 312 bytes, followed by one `struct dm_target_spec` of 40 bytes
//! and the target's parameters. Every request says `DM_SECURE_DATA_FLAG`, so the kernel wipes its copy; ours is wiped on drop.

use std::fs::{File, OpenOptions};
use std::io;

use zeroize::Zeroizing;

use super::sys;

const NAME: &[u8] = b"kata-cc-scratch";
const CONTROL: &str = "/dev/mapper/control";
pub(super) const HEADER: usize = 312;
const TARGET: usize = 40;
const CREATE: u8 = 3;
const REMOVE: u8 = 4;
const SUSPEND: u8 = 6;
const LOAD: u8 = 9;
const SECURE_DATA: u32 = 1 << 15;

pub(super) fn open() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(CONTROL)
}

fn request(body: &[u8], targets: u32) -> Zeroizing<Vec<u8>> {
    let size = HEADER + body.len();
    let mut bytes = Zeroizing::new(vec![0; size]);
    let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    put(0, 4);
    put(12, u32::try_from(size).unwrap_or(u32::MAX));
    put(16, u32::try_from(HEADER).unwrap_or(u32::MAX));
    put(20, targets);
    put(28, SECURE_DATA);
    bytes[48..48 + NAME.len()].copy_from_slice(NAME);
    bytes[HEADER..].copy_from_slice(body);
    bytes
}

/// Makes the device; gives its major and minor number.
pub(super) fn create(mapper: &File) -> io::Result<(u64, u64)> {
    let mut bytes = request(&[], 0);
    sys::device_mapper(mapper, CREATE, &mut bytes)?;
    let mut dev = [0; 8];
    dev.copy_from_slice(&bytes[40..48]);
    Ok(decode(u64::from_ne_bytes(dev)))
}

/// The kernel's `huge_decode_dev`.
fn decode(dev: u64) -> (u64, u64) {
    ((dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}

fn load_body(sectors: u64, parameters: &[u8]) -> Zeroizing<Vec<u8>> {
    let size = (TARGET + parameters.len() + 1).next_multiple_of(8);
    let mut body = Zeroizing::new(vec![0; size]);
    body[8..16].copy_from_slice(&sectors.to_ne_bytes());
    body[24..29].copy_from_slice(b"crypt");
    body[TARGET..TARGET + parameters.len()].copy_from_slice(parameters);
    body
}

/// Loads a table of one crypt target.
pub(super) fn load(mapper: &File, sectors: u64, parameters: &[u8]) -> io::Result<()> {
    sys::device_mapper(mapper, LOAD, &mut request(&load_body(sectors, parameters), 1))
}

/// Starts the device with the table loaded.
pub(super) fn resume(mapper: &File) -> io::Result<()> {
    sys::device_mapper(mapper, SUSPEND, &mut request(&[], 0))
}

/// Removes the device.
pub(super) fn remove(mapper: &File) -> io::Result<()> {
    sys::device_mapper(mapper, REMOVE, &mut request(&[], 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_kernels_layout() {
        let body = load_body(2048, b"p");
        assert_eq!(body.len(), 48);
        assert_eq!(&body[24..30], b"crypt\0");
        assert_eq!(body[40], b'p');
        let bytes = request(&body, 1);
        assert_eq!(bytes.len(), 360);
        assert_eq!(bytes[0], 4);
        assert_eq!(bytes[12..16], 360u32.to_ne_bytes());
        assert_eq!(bytes[16..20], 312u32.to_ne_bytes());
        assert_eq!(bytes[28..32], 0x8000u32.to_ne_bytes());
        assert_eq!(&bytes[48..64], b"kata-cc-scratch\0");
    }

    #[test]
    fn device_numbers() {
        assert_eq!(decode(0xfd00), (253, 0));
        assert_eq!(decode(0x10_fd05), (253, 0x105));
    }
}
