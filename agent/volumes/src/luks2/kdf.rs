//! From a key or passphrase to the key of a keyslot, within limits: the numbers come from whoever wrote the header.

use std::num::NonZeroU32;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use aws_lc_rs::pbkdf2;
use zeroize::{Zeroize as _, Zeroizing};

use super::error::Luks2Error;
use super::metadata::{Hash, Kdf};

/// What the guest is willing to spend on opening one volume.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// KiB of memory that one keyslot may use (Argon2).
    pub argon2_memory_kib: u32,
    /// KiB of memory times passes over it, of all keyslots that are tried.
    pub argon2_work_kib: u64,
    /// Iterations of PBKDF2, of all keyslots that are tried.
    pub pbkdf2_iterations: u64,
}

impl Default for Limits {
    /// What `cryptsetup` makes of itself on a fast machine (1 GiB, some 10 million iterations), a few times over: half a minute or so.
    fn default() -> Self {
        Self { argon2_memory_kib: 1 << 20, argon2_work_kib: 32 << 20, pbkdf2_iterations: 1 << 26 }
    }
}

impl Limits {
    /// As the default, with memory for Argon2 of no more than half of `available` bytes: a header must not be able to end the guest.
    #[must_use]
    pub fn within(available: u64) -> Self {
        let limits = Self::default();
        let half = u32::try_from(available / 2 / 1024).unwrap_or(u32::MAX);
        Self { argon2_memory_kib: limits.argon2_memory_kib.min(half), ..limits }
    }

    /// Takes the cost of a derivation off what is left.
    pub(super) fn spend(&mut self, keyslot: &str, kdf: &Kdf) -> Result<(), Luks2Error> {
        let costly = |wanted: u64, unit, left: u64| {
            let keyslot = keyslot.to_owned();
            Err(Luks2Error::TooCostly { keyslot, wanted, unit, left })
        };
        match kdf {
            Kdf::Pbkdf2 { iterations, .. } => {
                let wanted = u64::from(iterations.get());
                match self.pbkdf2_iterations.checked_sub(wanted) {
                    Some(left) => self.pbkdf2_iterations = left,
                    None => return costly(wanted, "iterations of PBKDF2", self.pbkdf2_iterations),
                }
            }
            Kdf::Argon2 { time, memory, .. } => {
                let (limit, wanted) = (u64::from(self.argon2_memory_kib), u64::from(*memory));
                if wanted > limit {
                    return costly(wanted, "KiB of memory for Argon2", limit);
                }
                let work = wanted * u64::from(*time);
                match self.argon2_work_kib.checked_sub(work) {
                    Some(left) => self.argon2_work_kib = left,
                    None => return costly(work, "KiB of passes of Argon2", self.argon2_work_kib),
                }
            }
        }
        Ok(())
    }
}

fn hmac(hash: Hash) -> pbkdf2::Algorithm {
    match hash {
        Hash::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
        Hash::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
    }
}

/// PBKDF2 of `secret`.
pub(super) fn pbkdf2(hash: Hash, iterations: NonZeroU32, salt: &[u8], secret: &[u8], out: &mut [u8]) {
    pbkdf2::derive(hmac(hash), iterations, salt, secret, out);
}

/// Whether PBKDF2 of `secret` is `expected`, compared without a trace of where it differs.
pub(super) fn pbkdf2_is(
    hash: Hash,
    iterations: NonZeroU32,
    salt: &[u8],
    secret: &[u8],
    expected: &[u8],
) -> bool {
    pbkdf2::verify(hmac(hash), iterations, salt, secret, expected).is_ok()
}

/// The key of a keyslot. Its cost must have been [spent](Limits::spend).
pub(super) fn derive(kdf: &Kdf, secret: &[u8], length: usize) -> Result<Zeroizing<Vec<u8>>, Luks2Error> {
    let mut key = Zeroizing::new(vec![0; length]);
    match kdf {
        Kdf::Pbkdf2 { hash, iterations, salt } => pbkdf2(*hash, *iterations, salt, secret, &mut key),
        Kdf::Argon2 { id, time, memory, cpus, salt } => {
            let failed = |_| Luks2Error::Crypto("Argon2");
            let algorithm = if *id { Algorithm::Argon2id } else { Algorithm::Argon2i };
            let params = Params::new(*memory, *time, *cpus, Some(length)).map_err(failed)?;
            let mut blocks = memory_of(params.block_count())?;
            let argon2 = Argon2::new(algorithm, Version::V0x13, params);
            let made = argon2.hash_password_into_with_memory(secret, salt, &mut key, &mut blocks[..]);
            blocks.iter_mut().for_each(|block| block.zeroize());
            made.map_err(failed)?;
        }
    }
    Ok(key)
}

/// Memory for Argon2, or an error where there is none: an allocation that fails must not end the agent.
fn memory_of(blocks: usize) -> Result<Vec<Block>, Luks2Error> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(blocks).map_err(|_| Luks2Error::Crypto("getting memory for Argon2"))?;
    memory.resize(blocks, Block::default());
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argon2_as_the_reference_program() {
        // phc-winner-argon2, src/test.c: version 0x13, t=2, m=2^8, p=1, "password", "somesalt".
        for (id, expected) in [
            (false, "89e9029f4637b295beb027056a7336c414fadd43f6b208645281cb214a56452f"),
            (true, "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"),
        ] {
            let salt = b"somesalt".to_vec();
            let kdf = Kdf::Argon2 { id, time: 2, memory: 256, cpus: 1, salt };
            assert_eq!(hex::encode(&*derive(&kdf, b"password", 32).unwrap()), expected);
        }
    }

    #[test]
    fn limits_are_used_up() {
        let mut limits = Limits { argon2_memory_kib: 1024, argon2_work_kib: 5000, pbkdf2_iterations: 1500 };
        let argon2 = |memory| Kdf::Argon2 { id: true, time: 4, memory, cpus: 1, salt: vec![0; 32] };
        assert!(matches!(
            limits.spend("0", &argon2(1025)),
            Err(Luks2Error::TooCostly { wanted: 1025, left: 1024, .. })
        ));
        limits.spend("0", &argon2(1024)).unwrap();
        assert!(matches!(limits.spend("1", &argon2(1024)), Err(Luks2Error::TooCostly { left: 904, .. })));
        let pbkdf2 =
            Kdf::Pbkdf2 { hash: Hash::Sha256, iterations: NonZeroU32::new(1000).unwrap(), salt: vec![0; 32] };
        limits.spend("2", &pbkdf2).unwrap();
        let words = limits.spend("3", &pbkdf2).unwrap_err().to_string();
        assert!(words.contains("keyslot 3 wants 1000 iterations of PBKDF2, of which 500"), "{words}");
    }

    #[test]
    fn a_small_guest_spends_half_of_its_memory() {
        assert_eq!(Limits::within(256 << 20).argon2_memory_kib, 128 << 10);
        assert_eq!(Limits::within(u64::MAX).argon2_memory_kib, 1 << 20);
    }
}
