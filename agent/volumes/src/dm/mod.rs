//! Devices of the device mapper with one target: `crypt`, or `verity`.
//!
//! Source: the kernel's `include/uapi/linux/dm-ioctl.h`: `struct dm_ioctl` is 312 bytes, followed by one `struct dm_target_spec` of 40 bytes
//! and the target's parameters. Every request says `DM_SECURE_DATA_FLAG`, so the kernel wipes its copy; ours is wiped on drop.

#[allow(unsafe_code)]
mod sys;

use std::fs::{File, OpenOptions};
use std::io;

use thiserror::Error;
use zeroize::Zeroizing;

const CONTROL: &str = "/dev/mapper/control";
const HEADER: usize = 312;
const TARGET: usize = 40;
/// Bytes of a name with its NUL.
const NAME: usize = 128;
const CREATE: u8 = 3;
const REMOVE: u8 = 4;
const SUSPEND: u8 = 6;
const LOAD: u8 = 9;
const READ_ONLY: u32 = 1;
const SECURE_DATA: u32 = 1 << 15;
/// A device that is in use is removed when its last user goes.
const DEFERRED_REMOVE: u32 = 1 << 17;

/// What a device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Encrypts and decrypts.
    Crypt,
    /// Checks what is read against a hash tree; nothing can be written.
    Verity,
}

impl Target {
    const fn name(self) -> &'static [u8] {
        match self {
            Self::Crypt => b"crypt",
            Self::Verity => b"verity",
        }
    }

    const fn flags(self) -> u32 {
        match self {
            Self::Crypt => SECURE_DATA,
            Self::Verity => SECURE_DATA | READ_ONLY | DEFERRED_REMOVE,
        }
    }
}

/// Why there is no device.
#[derive(Debug, Error)]
pub enum MapError {
    /// A step failed.
    #[error("{doing} failed: {source}")]
    Step {
        /// Which.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The name cannot be one.
    #[error(
        "{0:?} is no name of a mapped device: 1 to 127 letters, digits, dots, dashes and underscores are taken"
    )]
    Name(String),
}

fn step(doing: &'static str) -> impl Fn(io::Error) -> MapError {
    move |source| MapError::Step { doing, source }
}

/// A mapped device. Dropped, it is removed, if nobody uses it.
#[derive(Debug)]
pub struct MappedDevice {
    mapper: File,
    target: Target,
    name: String,
    device: (u64, u64),
}

impl MappedDevice {
    /// Makes the device `name`, of `sectors` of 512 bytes, by the parameters of a target. A name in use is an error.
    ///
    /// # Errors
    /// When the name is none or a step fails; what was made before it is taken down again.
    pub fn new(target: Target, name: &str, sectors: u64, parameters: &[u8]) -> Result<Self, MapError> {
        check_name(name)?;
        let mapper = OpenOptions::new().read(true).write(true).open(CONTROL);
        let mapper = mapper.map_err(step("opening the device mapper"))?;
        let device = create(&mapper, target, name).map_err(step("creating the mapped device"))?;
        // From here on dropping it removes the device.
        let made = Self { mapper, target, name: name.to_owned(), device };
        let mut body = request(target, name, &load_body(target, sectors, parameters), 1);
        sys::device_mapper(&made.mapper, LOAD, &mut body).map_err(step("loading the device's table"))?;
        sys::device_mapper(&made.mapper, SUSPEND, &mut request(target, name, &[], 0))
            .map_err(step("starting the mapped device"))?;
        Ok(made)
    }

    /// Its major and minor number.
    #[must_use]
    pub fn device(&self) -> (u64, u64) {
        self.device
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for MappedDevice {
    fn drop(&mut self) {
        // In use, a crypt device lives as long as the machine, another one as long as its users.
        let _ = sys::device_mapper(&self.mapper, REMOVE, &mut request(self.target, &self.name, &[], 0));
    }
}

fn check_name(name: &str) -> Result<(), MapError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let good =
        (1..NAME).contains(&name.len()) && name.bytes().all(plain) && !matches!(name, "." | ".." | "control");
    if good { Ok(()) } else { Err(MapError::Name(name.chars().take(NAME).collect())) }
}

fn request(target: Target, name: &str, body: &[u8], targets: u32) -> Zeroizing<Vec<u8>> {
    let size = HEADER + body.len();
    let mut bytes = Zeroizing::new(vec![0; size]);
    let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    put(0, 4);
    put(12, u32::try_from(size).unwrap_or(u32::MAX));
    put(16, u32::try_from(HEADER).unwrap_or(u32::MAX));
    put(20, targets);
    put(28, target.flags());
    bytes[48..48 + name.len()].copy_from_slice(name.as_bytes());
    bytes[HEADER..].copy_from_slice(body);
    bytes
}

/// Makes the device; gives its major and minor number.
fn create(mapper: &File, target: Target, name: &str) -> io::Result<(u64, u64)> {
    let mut bytes = request(target, name, &[], 0);
    sys::device_mapper(mapper, CREATE, &mut bytes)?;
    let mut dev = [0; 8];
    dev.copy_from_slice(&bytes[40..48]);
    Ok(decode(u64::from_ne_bytes(dev)))
}

/// The kernel's `huge_decode_dev`.
fn decode(dev: u64) -> (u64, u64) {
    ((dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}

fn load_body(target: Target, sectors: u64, parameters: &[u8]) -> Zeroizing<Vec<u8>> {
    let size = (TARGET + parameters.len() + 1).next_multiple_of(8);
    let mut body = Zeroizing::new(vec![0; size]);
    body[8..16].copy_from_slice(&sectors.to_ne_bytes());
    body[24..24 + target.name().len()].copy_from_slice(target.name());
    body[TARGET..TARGET + parameters.len()].copy_from_slice(parameters);
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_kernels_layout() {
        let body = load_body(Target::Crypt, 2048, b"p");
        assert_eq!(body.len(), 48);
        assert_eq!(&body[24..30], b"crypt\0");
        assert_eq!(body[40], b'p');
        let bytes = request(Target::Crypt, "kata-cc-scratch", &body, 1);
        assert_eq!(bytes.len(), 360);
        assert_eq!(bytes[0], 4);
        assert_eq!(bytes[12..16], 360u32.to_ne_bytes());
        assert_eq!(bytes[16..20], 312u32.to_ne_bytes());
        assert_eq!(bytes[28..32], 0x8000u32.to_ne_bytes());
        assert_eq!(&bytes[48..64], b"kata-cc-scratch\0");
        let verity = load_body(Target::Verity, 8, b"1 254:0 254:0");
        assert_eq!((&verity[24..31], verity.len()), (&b"verity\0"[..], 56));
        assert_eq!(request(Target::Verity, "v", &verity, 1)[28..32], 0x2_8001u32.to_ne_bytes());
        assert!(request(Target::Crypt, &"n".repeat(127), &[], 0)[48 + 127..].iter().all(|b| *b == 0));
    }

    #[test]
    fn device_numbers() {
        assert_eq!(decode(0xfd00), (253, 0));
        assert_eq!(decode(0x10_fd05), (253, 0x105));
    }

    #[test]
    fn names_that_are_none_are_refused_before_anything_is_done() {
        for name in ["", ".", "..", "control", "a/b", "a b", "a\0b", "ü", &"n".repeat(128)] {
            assert!(
                matches!(MappedDevice::new(Target::Crypt, name, 8, b""), Err(MapError::Name(_))),
                "{name:?}"
            );
        }
        assert!(check_name(&"n".repeat(127)).is_ok() && check_name("kata-cc-volume-1.a_b").is_ok());
    }
}
