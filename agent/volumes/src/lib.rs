//! Encrypted volumes of a guest, down to the kernel's dm-crypt.
//!
//! - [`luks2`]: LUKS2 headers read and written, keyslots opened. No `cryptsetup` in the measured image.
//! - [`ext4`]: an empty ext4 file system. No `mkfs` there either.
//! - [`dm`]: mapped devices; also below the scratch space of `image-rs`.
//! - [`device`]: all of it on a block device.
//!
//! The first two are bytes in and bytes out: devices are anything that reads, writes and seeks. Where a volume may be mounted, and
//! who may ask for one, is the agent's.
#![deny(unsafe_code)]

pub mod device;
pub mod dm;
pub mod ext4;
pub mod luks2;

/// Random bytes of the crypto library, for keys and names.
///
/// # Errors
/// When there are none.
pub fn random<const N: usize>() -> Result<zeroize::Zeroizing<[u8; N]>, luks2::Luks2Error> {
    let mut bytes = zeroize::Zeroizing::new([0; N]);
    aws_lc_rs::rand::fill(bytes.as_mut()).map_err(|_| luks2::Luks2Error::Crypto("making random bytes"))?;
    Ok(bytes)
}
