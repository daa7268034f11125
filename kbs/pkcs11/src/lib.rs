//! Messages between the key broker and its PKCS#11 helper, `kata-cc-kbs-pkcs11`.
//!
//! A hardware security module is reached through its vendor's shared object. That object runs in a process of its own,
//! started by the broker, because the broker is a static binary and because the vendor's code must be able neither to
//! crash the broker nor to read its memory. The two talk over the helper's standard input and output: one JSON object a
//! line, at most [`MAX_LINE`] bytes, a [`Reply`] for each [`Request`], in order. The first request opens the token; it
//! carries the PIN, which so is never an argument, a variable of the environment, or in a log.
//!
//! Bytes are base64. What may be secret is a [`Secret`]: wiped when dropped, never printed.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

use std::io::{BufRead, Read as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use zeroize::Zeroizing;

/// Most bytes of a line.
pub const MAX_LINE: usize = 256 << 10;
/// Most bytes of a secret that is read from or written to the token.
pub const MAX_SECRET: usize = 64 << 10;
/// Most bytes that are wrapped at once: a key, not a document.
pub const MAX_WRAP: usize = 1 << 10;
/// Most random bytes at once.
pub const MAX_RANDOM: usize = 4 << 10;

/// Bytes that may be secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes bytes.
    pub fn new(bytes: impl Into<Zeroizing<Vec<u8>>>) -> Self {
        Self(bytes.into())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(&*self.0)))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bytes(deserializer).map(|bytes| Self(Zeroizing::new(bytes)))
    }
}

/// Bytes that are no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bytes(deserializer).map(Self)
    }
}

/// Base64 needs no escapes in JSON, so the text is borrowed from the line and no copy of a secret is left behind.
fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = <&str>::deserialize(deserializer)?;
    STANDARD.decode(text).map_err(|_| serde::de::Error::custom("bytes are not base64"))
}

/// Which token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum TokenChoice {
    /// The one with this label (`CKA_LABEL` of the token, without trailing spaces).
    Label(String),
    /// The one with this serial number.
    Serial(String),
    /// The one in this place of the list of slots that have a token, from 0. The list's order is the module's.
    Index(usize),
}

/// Which key on the token.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum KeyName {
    /// `CKA_LABEL`.
    Label(String),
    /// `CKA_ID`, hexadecimal.
    Id(String),
}

impl std::fmt::Display for KeyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Label(label) => write!(f, "{label:?}"),
            Self::Id(id) => write!(f, "with id {id}"),
        }
    }
}

/// How a key is wrapped. Names of RFC 7518.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WrapAlgorithm {
    /// RSAES-OAEP with SHA-256 and MGF1 with SHA-256. The better of the two where the token has it.
    #[serde(rename = "RSA-OAEP-256")]
    RsaOaep256,
    /// RSAES-OAEP with SHA-1 and MGF1 with SHA-1. Not weaker for wrapping a key; the only one of SoftHSM 2.6.
    #[serde(rename = "RSA-OAEP")]
    RsaOaep,
    /// AES key wrap (RFC 3394) under a key of 256 bits.
    #[serde(rename = "A256KW")]
    A256Kw,
}

impl WrapAlgorithm {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::RsaOaep256 => "RSA-OAEP-256",
            Self::RsaOaep => "RSA-OAEP",
            Self::A256Kw => "A256KW",
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Operation {
    /// Loads the module and logs in. Must be first, and once.
    Open {
        /// The vendor's shared object.
        module: String,
        /// Which token.
        token: TokenChoice,
        /// The user's PIN.
        pin: Secret,
    },
    /// Wraps at most [`MAX_WRAP`] bytes.
    Wrap {
        /// Under which key: an RSA public key or an AES key.
        key: KeyName,
        /// How.
        algorithm: WrapAlgorithm,
        /// What.
        data: Secret,
    },
    /// Undoes [`Operation::Wrap`].
    Unwrap {
        /// Under which key: an RSA private key or an AES key.
        key: KeyName,
        /// How it was wrapped.
        algorithm: WrapAlgorithm,
        /// What was wrapped.
        wrapped: Bytes,
    },
    /// Random bytes of the token, at most [`MAX_RANDOM`].
    Random {
        /// How many.
        length: usize,
    },
    /// ECDSA over a digest. The answer is r and s, one after the other.
    Sign {
        /// EC private key.
        key: KeyName,
        /// Digest, of the length that goes with the curve.
        digest: Bytes,
    },
    /// Public half of an EC key.
    PublicKey {
        /// Which.
        key: KeyName,
    },
    /// Value of a secret object, which must be readable.
    ReadSecret {
        /// `CKA_LABEL`.
        label: String,
    },
    /// Stores a secret object, replacing one of the same label.
    WriteSecret {
        /// `CKA_LABEL`.
        label: String,
        /// At most [`MAX_SECRET`] bytes.
        value: Secret,
    },
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The reply names it.
    pub id: u64,
    /// What is asked.
    pub operation: Operation,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Answer {
    /// The token is open.
    Opened {
        /// Its label.
        label: String,
        /// Its model.
        model: String,
        /// Its serial number.
        serial: String,
    },
    /// What was wrapped, or a signature.
    Public {
        /// The bytes.
        bytes: Bytes,
    },
    /// What was unwrapped, read or drawn.
    Secret {
        /// The bytes.
        bytes: Secret,
    },
    /// A public key.
    EcKey {
        /// `P-256` or `P-384`.
        curve: String,
        /// Uncompressed point: 4, x, y.
        point: Bytes,
    },
    /// It is done.
    Done,
}

/// Kinds of failure, by what the broker does about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The module cannot be loaded.
    Module,
    /// There is no such token.
    Token,
    /// The PIN is wrong or locked. Trying again could lock the token.
    Pin,
    /// There is no such key or object.
    NotFound,
    /// More than one key has this name.
    Ambiguous,
    /// The token, or the key, does not do this algorithm.
    Algorithm,
    /// What is to be unwrapped was not wrapped so, under this key.
    Wrapped,
    /// The request is not understood.
    Request,
    /// The token failed.
    Device,
}

/// A failure.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{detail}")]
#[serde(deny_unknown_fields)]
pub struct HelperError {
    /// Of what kind.
    pub kind: ErrorKind,
    /// What failed.
    pub detail: String,
}

impl HelperError {
    /// Makes one.
    pub fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// Id of the request; 0 when the request could not be read.
    pub id: u64,
    /// Answer or failure.
    pub result: Result<Answer, HelperError>,
}

/// Why a line is no message.
#[derive(Debug, Error)]
pub enum MessageError {
    /// Reading failed.
    #[error("pipe failed: {0}")]
    Io(#[from] std::io::Error),
    /// Longer than [`MAX_LINE`].
    #[error("message is longer than {MAX_LINE} bytes")]
    TooLong,
    /// Not a message. What was seen is not told: it may hold a secret.
    #[error("message is not understood, at column {column}")]
    Json {
        /// Where.
        column: usize,
    },
}

/// Reads a message from the bytes of a line.
pub fn decode<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, MessageError> {
    if line.len() > MAX_LINE {
        return Err(MessageError::TooLong);
    }
    serde_json::from_slice(line).map_err(|e| MessageError::Json { column: e.column() })
}

/// A message as a line, with its line feed.
pub fn encode<T: Serialize>(message: &T) -> Result<Zeroizing<Vec<u8>>, MessageError> {
    // As large as it may become, so that growing leaves no copy of a secret behind.
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_LINE));
    serde_json::to_writer(&mut *line, message).map_err(|e| MessageError::Json { column: e.column() })?;
    if line.len() >= MAX_LINE {
        return Err(MessageError::TooLong);
    }
    line.push(b'\n');
    Ok(line)
}

/// Reads one line; `None` at the end of the stream.
pub fn read_line(reader: &mut impl BufRead) -> Result<Option<Zeroizing<Vec<u8>>>, MessageError> {
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_LINE + 1));
    let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX).saturating_add(1);
    reader.by_ref().take(limit).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop() != Some(b'\n') {
        return Err(if line.len() >= MAX_LINE {
            MessageError::TooLong
        } else {
            MessageError::Io(std::io::ErrorKind::UnexpectedEof.into())
        });
    }
    Ok(Some(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Operation> {
        let key = KeyName::Label("k".to_owned());
        vec![
            Operation::Open {
                module: "/usr/lib/x.so".to_owned(),
                token: TokenChoice::Label("t".to_owned()),
                pin: Secret::new(b"1234".to_vec()),
            },
            Operation::Wrap {
                key: key.clone(),
                algorithm: WrapAlgorithm::RsaOaep256,
                data: Secret::new(vec![1; 32]),
            },
            Operation::Unwrap {
                key: key.clone(),
                algorithm: WrapAlgorithm::A256Kw,
                wrapped: Bytes(vec![2; 40]),
            },
            Operation::Random { length: 32 },
            Operation::Sign { key: KeyName::Id("0a".to_owned()), digest: Bytes(vec![3; 32]) },
            Operation::PublicKey { key },
            Operation::ReadSecret { label: "a/b/c".to_owned() },
            Operation::WriteSecret { label: "a/b/c".to_owned(), value: Secret::new(b"x".to_vec()) },
        ]
    }

    #[test]
    fn messages_survive_the_pipe_and_secrets_are_not_printed() {
        for operation in samples() {
            let request = Request { id: 7, operation };
            let line = encode(&request).unwrap();
            let read = read_line(&mut &line[..]).unwrap().unwrap();
            assert_eq!(decode::<Request>(&read).unwrap(), request);
        }
        let printed = format!("{:?}", samples());
        assert!(printed.contains("Secret(..)") && !printed.contains("49, 50"), "{printed}");
        let reply = Reply { id: 7, result: Err(HelperError::new(ErrorKind::Pin, "PIN is wrong")) };
        let line = encode(&reply).unwrap();
        assert_eq!(
            line.as_slice(),
            b"{\"id\":7,\"result\":{\"Err\":{\"kind\":\"pin\",\"detail\":\"PIN is wrong\"}}}\n"
        );
        assert_eq!(decode::<Reply>(line.trim_ascii_end()).unwrap(), reply);
    }

    #[test]
    fn what_is_no_message_is_refused_without_being_told() {
        for line in [
            &b""[..],
            b"{}",
            b"{\"id\":1,\"operation\":\"colour\"}",
            b"{\"id\":1,\"operation\":{\"random\":{\"length\":1,\"colour\":1}}}",
            b"{\"id\":1,\"operation\":{\"write-secret\":{\"label\":\"a\",\"value\":\"not base64!\"}}}",
            b"\xff",
        ] {
            let error = decode::<Request>(line).unwrap_err().to_string();
            assert!(error.contains("not understood") && !error.contains("colour"), "{error}");
        }
        assert!(matches!(read_line(&mut &b""[..]), Ok(None)));
        assert!(matches!(read_line(&mut &b"cut"[..]), Err(MessageError::Io(_))));
        let long = vec![b'x'; MAX_LINE + 10];
        assert!(matches!(read_line(&mut &long[..]), Err(MessageError::TooLong)));
        let large = Operation::WriteSecret { label: String::new(), value: Secret::new(vec![0; MAX_LINE]) };
        assert!(matches!(encode(&Request { id: 1, operation: large }), Err(MessageError::TooLong)));
    }
}
