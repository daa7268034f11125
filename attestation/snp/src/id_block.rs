//! ID block and ID authentication information: what a guest's owner signs before launch.
//!
//! Sources: firmware ABI, tables ID_BLOCK and ID_AUTH_INFO (SNP_LAUNCH_FINISH). The owner states the launch digest,
//! identity and policy that the guest may have ([`IdBlock`]) and signs that with an ID key; an author key may vouch for
//! the ID key ([`IdAuth`]). The firmware refuses a launch that differs, and reports the digests of both keys.
//!
//! [`IdBlock::parse`] and [`IdAuth::parse`] read untrusted bytes: exact lengths, known algorithms, zeros in reserved
//! places. Parsing says nothing about truth, [`IdAuth::verify`] does.

use aws_lc_rs::digest::{SHA384, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey};

use crate::policy::GuestPolicy;
use crate::report::Signature;
use kata_cc_bytes::{Cursor, Truncated};

/// Bytes of an ID block.
pub const ID_BLOCK_LEN: usize = 96;

/// Bytes of the ID authentication information.
pub const ID_AUTH_LEN: usize = 4096;

/// Bytes of a public key in the firmware's form.
pub const PUBLIC_KEY_LEN: usize = 1028;

/// Version of the ID block, the one defined.
pub const ID_BLOCK_VERSION: u32 = 1;

/// ECDSA P-384 with SHA-384, the one key algorithm defined.
pub const KEY_ALGO_ECDSA_P384: u32 = 1;

/// P-384 in the firmware's numbering of curves.
const CURVE_P384: u32 = 2;

/// Bytes that are no ID block or ID authentication information, or such that do not hold together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdBlockError {
    /// Each structure has exactly one length.
    #[error("{structure} has {seen} bytes, expected {expected}")]
    Length {
        /// Which.
        structure: &'static str,
        /// Bytes seen.
        seen: usize,
        /// Its length.
        expected: usize,
    },
    /// Another version than the one defined.
    #[error("ID block has version {seen}, expected {ID_BLOCK_VERSION}")]
    Version {
        /// Version seen.
        seen: u32,
    },
    /// Another key algorithm than the one defined.
    #[error("{key} key has algorithm {seen}, expected {KEY_ALGO_ECDSA_P384} (ECDSA P-384 with SHA-384)")]
    Algorithm {
        /// `ID` or `author`.
        key: &'static str,
        /// Number seen.
        seen: u32,
    },
    /// Another curve than P-384.
    #[error("{key} key is on curve {seen}, expected {CURVE_P384} (P-384)")]
    Curve {
        /// `ID` or `author`.
        key: &'static str,
        /// Number seen.
        seen: u32,
    },
    /// A number is longer than 384 bits.
    #[error("{what} has a number of more than 384 bits")]
    NumberTooLong {
        /// Signature or key.
        what: &'static str,
    },
    /// Reserved bytes carry data.
    #[error("reserved bytes of the ID authentication information at {section} are not zero")]
    ReservedNotZero {
        /// Where.
        section: &'static str,
    },
    /// The ID key did not sign the ID block.
    #[error("ID block is not signed by the ID key beside it: sign the block again after any change")]
    BlockSignature,
    /// The author key did not sign the ID key.
    #[error("ID key is not signed by the author key beside it")]
    KeySignature,
    /// The cryptographic library refused to sign.
    #[error("signing failed: the key is not usable")]
    Signing,
    /// A key that is not on P-384.
    #[error("public key has {seen} bytes, expected the 97 of an uncompressed point on P-384")]
    NotP384 {
        /// Bytes seen.
        seen: usize,
    },
}

/// What the guest's owner states (ID_BLOCK).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdBlock {
    /// Launch digest that the guest has to have.
    pub launch_digest: [u8; 48],
    /// Family of the guest, of the owner's choice.
    pub family_id: [u8; 16],
    /// Image of the guest, of the owner's choice.
    pub image_id: [u8; 16],
    /// Security version of the guest.
    pub guest_svn: u32,
    /// Policy that the guest has to be launched with.
    pub policy: GuestPolicy,
}

impl IdBlock {
    /// Reads an ID block.
    ///
    /// # Errors
    /// [`IdBlockError::Length`], [`IdBlockError::Version`].
    pub fn parse(bytes: &[u8]) -> Result<Self, IdBlockError> {
        let wrong_length =
            IdBlockError::Length { structure: "ID block", seen: bytes.len(), expected: ID_BLOCK_LEN };
        if bytes.len() != ID_BLOCK_LEN {
            return Err(wrong_length);
        }
        let read = || -> Result<(Self, u32), Truncated> {
            let mut c = Cursor::new(bytes);
            let (launch_digest, family_id, image_id) = (c.array()?, c.array()?, c.array()?);
            let (version, guest_svn) = (c.u32()?, c.u32()?);
            let policy = GuestPolicy(c.u64()?);
            Ok((Self { launch_digest, family_id, image_id, guest_svn, policy }, version))
        };
        let (block, version) = read().map_err(|_| wrong_length)?;
        if version != ID_BLOCK_VERSION {
            return Err(IdBlockError::Version { seen: version });
        }
        Ok(block)
    }

    /// The 96 bytes that are signed and that SNP_LAUNCH_FINISH takes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; ID_BLOCK_LEN] {
        let mut out = Writer::<ID_BLOCK_LEN>::new();
        out.put(&self.launch_digest);
        out.put(&self.family_id);
        out.put(&self.image_id);
        out.put(&ID_BLOCK_VERSION.to_le_bytes());
        out.put(&self.guest_svn.to_le_bytes());
        out.put(&self.policy.0.to_le_bytes());
        out.bytes
    }
}

/// A public key on P-384 in the firmware's form: both numbers little-endian in 72 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// X coordinate, big-endian.
    x: [u8; 48],
    /// Y coordinate, big-endian.
    y: [u8; 48],
}

impl PublicKey {
    /// From an uncompressed point (0x04, X, Y), as cryptographic libraries give it.
    ///
    /// # Errors
    /// [`IdBlockError::NotP384`] for other lengths or forms.
    pub fn from_point(point: &[u8]) -> Result<Self, IdBlockError> {
        let wrong = IdBlockError::NotP384 { seen: point.len() };
        let coordinates: [u8; 96] =
            point.strip_prefix(&[4]).and_then(|rest| rest.try_into().ok()).ok_or(wrong)?;
        let (mut x, mut y) = ([0; 48], [0; 48]);
        let (first, second) = coordinates.split_at(48);
        x.copy_from_slice(first);
        y.copy_from_slice(second);
        Ok(Self { x, y })
    }

    /// The uncompressed point.
    #[must_use]
    pub fn to_point(&self) -> [u8; 97] {
        let mut out = Writer::<97>::new();
        out.put(&[4]);
        out.put(&self.x);
        out.put(&self.y);
        out.bytes
    }

    /// The 1028 bytes of the firmware's form.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; PUBLIC_KEY_LEN] {
        let mut out = Writer::<PUBLIC_KEY_LEN>::new();
        out.put(&CURVE_P384.to_le_bytes());
        for number in [&self.x, &self.y] {
            let little: Vec<u8> = number.iter().rev().copied().collect();
            out.put(&little);
            out.put(&[0; 24]);
        }
        out.bytes
    }

    /// SHA-384 over [`Self::to_bytes`]: `id_key_digest` or `author_key_digest` of a report.
    #[must_use]
    pub fn digest(&self) -> [u8; 48] {
        let mut out = Writer::<48>::new();
        out.put(digest(&SHA384, &self.to_bytes()).as_ref());
        out.bytes
    }

    fn parse(key: &'static str, bytes: &[u8; PUBLIC_KEY_LEN]) -> Result<Self, IdBlockError> {
        let mut c = Cursor::new(bytes);
        let mut read = || -> Result<_, Truncated> { Ok((c.u32()?, c.array()?, c.array()?, c.slice(880)?)) };
        let Ok((curve, x, y, reserved)) = read() else {
            return Err(IdBlockError::Length { structure: "key", seen: 0, expected: PUBLIC_KEY_LEN });
        };
        if curve != CURVE_P384 {
            return Err(IdBlockError::Curve { key, seen: curve });
        }
        zero("a key's end", reserved)?;
        let fixed =
            Signature { r: x, s: y }.to_fixed().ok_or(IdBlockError::NumberTooLong { what: "public key" })?;
        let mut point = Writer::<97>::new();
        point.put(&[4]);
        point.put(&fixed);
        Self::from_point(&point.bytes)
    }

    fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        signature.to_fixed().is_some_and(|fixed| {
            UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, self.to_point()).verify(message, &fixed).is_ok()
        })
    }
}

/// The author key and what it signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Author {
    /// The author's key.
    pub key: PublicKey,
    /// Over the 1028 bytes of the ID key.
    pub signature: Signature,
}

/// Keys and signatures for an ID block (ID_AUTH_INFO).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdAuth {
    /// Key that signed the block.
    pub id_key: PublicKey,
    /// Over the 96 bytes of the block.
    pub signature: Signature,
    /// Whoever vouches for the ID key, if anybody does.
    pub author: Option<Author>,
}

impl IdAuth {
    /// Signs a block, and the ID key when there is an author.
    ///
    /// # Errors
    /// [`IdBlockError::NotP384`] for a key of another kind, [`IdBlockError::Signing`].
    pub fn sign(
        block: &IdBlock,
        id_key: &EcdsaKeyPair,
        author: Option<&EcdsaKeyPair>,
    ) -> Result<Self, IdBlockError> {
        let public = PublicKey::from_point(id_key.public_key().as_ref())?;
        let signature = sign(id_key, &block.to_bytes())?;
        let author = author
            .map(|key| {
                let signature = sign(key, &public.to_bytes())?;
                Ok(Author { key: PublicKey::from_point(key.public_key().as_ref())?, signature })
            })
            .transpose()?;
        Ok(Self { id_key: public, signature, author })
    }

    /// Reads the structure. An author whose key and signature are all zero is none.
    ///
    /// # Errors
    /// [`IdBlockError`] says which rule the bytes break.
    pub fn parse(bytes: &[u8]) -> Result<Self, IdBlockError> {
        let wrong_length = IdBlockError::Length {
            structure: "ID authentication information",
            seen: bytes.len(),
            expected: ID_AUTH_LEN,
        };
        if bytes.len() != ID_AUTH_LEN {
            return Err(wrong_length);
        }
        let fields = AuthFields::read(bytes).map_err(|_| wrong_length)?;
        zero("0x8", fields.reserved_head)?;
        zero("0x644", fields.reserved_middle)?;
        zero("0xc84", fields.reserved_tail)?;
        if fields.id_key_algo != KEY_ALGO_ECDSA_P384 {
            return Err(IdBlockError::Algorithm { key: "ID", seen: fields.id_key_algo });
        }
        let blank = fields.author_key.iter().chain(fields.author_signature).all(|byte| *byte == 0);
        let author = if blank {
            None
        } else {
            if fields.author_key_algo != KEY_ALGO_ECDSA_P384 {
                return Err(IdBlockError::Algorithm { key: "author", seen: fields.author_key_algo });
            }
            let key = PublicKey::parse("author", fields.author_key)?;
            Some(Author { key, signature: parse_signature("0x6a0", fields.author_signature)? })
        };
        Ok(Self {
            id_key: PublicKey::parse("ID", fields.id_key)?,
            signature: parse_signature("0x60", fields.id_signature)?,
            author,
        })
    }

    /// The 4096 bytes that SNP_LAUNCH_FINISH takes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; ID_AUTH_LEN] {
        let mut out = Writer::<ID_AUTH_LEN>::new();
        out.put(&KEY_ALGO_ECDSA_P384.to_le_bytes());
        out.put(&if self.author.is_some() { KEY_ALGO_ECDSA_P384 } else { 0 }.to_le_bytes());
        out.seek(0x40);
        out.put(&signature_bytes(&self.signature));
        out.put(&self.id_key.to_bytes());
        if let Some(author) = &self.author {
            out.seek(0x680);
            out.put(&signature_bytes(&author.signature));
            out.put(&author.key.to_bytes());
        }
        out.bytes
    }

    /// Checks both signatures, as the firmware does at launch.
    ///
    /// # Errors
    /// [`IdBlockError::BlockSignature`], [`IdBlockError::KeySignature`].
    pub fn verify(&self, block: &IdBlock) -> Result<(), IdBlockError> {
        if !self.id_key.verifies(&block.to_bytes(), &self.signature) {
            return Err(IdBlockError::BlockSignature);
        }
        match &self.author {
            Some(author) if !author.key.verifies(&self.id_key.to_bytes(), &author.signature) => {
                Err(IdBlockError::KeySignature)
            }
            _ => Ok(()),
        }
    }
}

/// The structure's parts as they lie in memory.
struct AuthFields<'a> {
    id_key_algo: u32,
    author_key_algo: u32,
    reserved_head: &'a [u8],
    id_signature: &'a [u8; 512],
    id_key: &'a [u8; PUBLIC_KEY_LEN],
    reserved_middle: &'a [u8],
    author_signature: &'a [u8; 512],
    author_key: &'a [u8; PUBLIC_KEY_LEN],
    reserved_tail: &'a [u8],
}

impl<'a> AuthFields<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Truncated> {
        fn sized<const N: usize>(bytes: &[u8]) -> Result<&[u8; N], Truncated> {
            bytes.try_into().map_err(|_| Truncated)
        }
        let mut c = Cursor::new(bytes);
        Ok(Self {
            id_key_algo: c.u32()?,
            author_key_algo: c.u32()?,
            reserved_head: c.slice(56)?,
            id_signature: sized(c.slice(512)?)?,
            id_key: sized(c.slice(PUBLIC_KEY_LEN)?)?,
            reserved_middle: c.slice(60)?,
            author_signature: sized(c.slice(512)?)?,
            author_key: sized(c.slice(PUBLIC_KEY_LEN)?)?,
            reserved_tail: c.slice(ID_AUTH_LEN - 0xC84)?,
        })
    }
}

fn zero(section: &'static str, bytes: &[u8]) -> Result<(), IdBlockError> {
    if bytes.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(IdBlockError::ReservedNotZero { section }) }
}

fn sign(key: &EcdsaKeyPair, message: &[u8]) -> Result<Signature, IdBlockError> {
    let made = key.sign(&SystemRandom::new(), message).map_err(|_| IdBlockError::Signing)?;
    let fixed = <[u8; 96]>::try_from(made.as_ref()).map_err(|_| IdBlockError::Signing)?;
    Ok(Signature::from_fixed(&fixed))
}

/// A signature in its 512 bytes: R and S, then zeros.
fn signature_bytes(signature: &Signature) -> [u8; 512] {
    let mut out = Writer::<512>::new();
    out.put(&signature.r);
    out.put(&signature.s);
    out.bytes
}

fn parse_signature(section: &'static str, bytes: &[u8; 512]) -> Result<Signature, IdBlockError> {
    let too_long = IdBlockError::NumberTooLong { what: "signature" };
    let mut c = Cursor::new(bytes);
    let mut read = || -> Result<_, Truncated> { Ok((c.array()?, c.array()?, c.slice(368)?)) };
    let (r, s, rest) = read().map_err(|_| too_long)?;
    zero(section, rest)?;
    let signature = Signature { r, s };
    signature.to_fixed().map(|_| signature).ok_or(too_long)
}

/// Fills a fixed structure from its start; what is not written stays zero, what does not fit is left out.
struct Writer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    const fn new() -> Self {
        Self { bytes: [0; N], at: 0 }
    }

    fn put(&mut self, part: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.at).zip(part) {
            *to = *from;
        }
        self.at += part.len();
    }

    const fn seek(&mut self, at: usize) {
        self.at = at;
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::ECDSA_P384_SHA384_FIXED_SIGNING;

    use super::*;

    fn key() -> EcdsaKeyPair {
        EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap()
    }

    fn block() -> IdBlock {
        IdBlock {
            launch_digest: [1; 48],
            family_id: [2; 16],
            image_id: [3; 16],
            guest_svn: 4,
            policy: GuestPolicy::DEFAULT,
        }
    }

    #[test]
    fn what_is_signed_verifies_and_round_trips() {
        for author in [None, Some(key())] {
            let auth = IdAuth::sign(&block(), &key(), author.as_ref()).unwrap();
            auth.verify(&block()).unwrap();
            let read = IdAuth::parse(&auth.to_bytes()).unwrap();
            assert_eq!(read, auth);
            assert_eq!(read.author.is_some(), author.is_some());
            let other = IdBlock { guest_svn: 5, ..block() };
            assert_eq!(read.verify(&other), Err(IdBlockError::BlockSignature));
        }
        assert_eq!(IdBlock::parse(&block().to_bytes()), Ok(block()));
    }

    #[test]
    fn an_id_key_that_its_author_did_not_sign_is_refused() {
        let author = key();
        let mut auth = IdAuth::sign(&block(), &key(), Some(&author)).unwrap();
        auth.author = IdAuth::sign(&block(), &key(), Some(&author)).unwrap().author;
        assert_eq!(auth.verify(&block()), Err(IdBlockError::KeySignature));
    }

    #[test]
    fn what_breaks_the_form_is_refused() {
        let good = IdAuth::sign(&block(), &key(), Some(&key())).unwrap().to_bytes();
        let refused = |at: usize, value: u8| {
            let mut bytes = good;
            bytes[at] = value;
            IdAuth::parse(&bytes).unwrap_err()
        };
        assert_eq!(refused(0, 2), IdBlockError::Algorithm { key: "ID", seen: 2 });
        assert_eq!(refused(4, 0), IdBlockError::Algorithm { key: "author", seen: 0 });
        assert_eq!(refused(0x240, 1), IdBlockError::Curve { key: "ID", seen: 1 });
        assert_eq!(refused(0x880, 0), IdBlockError::Curve { key: "author", seen: 0 });
        for (at, section) in [(0x3F, "0x8"), (0x644, "0x644"), (0xFFF, "0xc84"), (0x643, "a key's end")] {
            assert_eq!(refused(at, 1), IdBlockError::ReservedNotZero { section });
        }
        assert_eq!(refused(0x40 + 48, 1), IdBlockError::NumberTooLong { what: "signature" });
        assert_eq!(refused(0x244 + 71, 1), IdBlockError::NumberTooLong { what: "public key" });
        assert!(matches!(IdAuth::parse(&good[1..]), Err(IdBlockError::Length { seen: 4095, .. })));
        let mut bytes = block().to_bytes();
        bytes[80] = 2;
        assert_eq!(IdBlock::parse(&bytes), Err(IdBlockError::Version { seen: 2 }));
        assert!(matches!(IdBlock::parse(&bytes[1..]), Err(IdBlockError::Length { seen: 95, .. })));
        assert_eq!(PublicKey::from_point(&[4; 65]), Err(IdBlockError::NotP384 { seen: 65 }));
    }

    proptest::proptest! {
        #[test]
        fn any_block_round_trips(bytes in proptest::collection::vec(proptest::num::u8::ANY, ID_BLOCK_LEN)) {
            if let Ok(block) = IdBlock::parse(&bytes) {
                let written = block.to_bytes();
                proptest::prop_assert_eq!(written.as_slice(), bytes.as_slice());
            }
        }
    }
}
