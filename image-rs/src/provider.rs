//! Key providers: programs and services of others that wrap and unwrap layer keys.
//!
//! Source: containers/ocicrypt `docs/keyprovider.md` and `keywrap/keyprovider`. `OCICRYPT_KEYPROVIDER_CONFIG` names a JSON file that says
//! how each provider is reached: `cmd` (a program, the request on its standard input, the answer on its standard output), `grpc` (an
//! address) or, in Rust only, `ttrpc`. Requests and answers are JSON. The layer key stands in both, so neither is logged, and both
//! are wiped. What a provider wraps stands in the annotation `…enc.keys.provider.<name>`.
//!
//! Programs are started here ([`CommandProvider`]). Other ways are the caller's ([`Exchange`]): the guest needs none of
//! them, and carries no gRPC.

use std::collections::BTreeMap;
use std::fmt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use zeroize::Zeroizing;

use crate::crypto::KEYS_PROVIDERS;
use crate::keys::{KeyError, KeyPacket, KeyProvider};

/// Variable that names the configuration.
pub const CONFIG_VARIABLE: &str = "OCICRYPT_KEYPROVIDER_CONFIG";
/// Most bytes of an answer, and of a program's complaints.
pub const MAX_ANSWER: usize = 256 << 10;
const TOO_LONG: &str = "is longer than 256 KiB";
const MAX_CONFIG: usize = 64 << 10;
const MAX_PROVIDERS: usize = 64;
/// A person may have to type a code or touch a token.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why a key provider did not serve.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The configuration cannot be read.
    #[error("the configuration of key providers ({CONFIG_VARIABLE}) cannot be read: {0}")]
    Config(String),
    /// It names no such provider.
    #[error("no key provider {name:?} is configured in {CONFIG_VARIABLE}; configured: {known}")]
    Unknown {
        /// The name.
        name: String,
        /// The names in the configuration.
        known: String,
    },
    /// It is reached in a way that is not supported here.
    #[error("key provider {name:?} is reached by {way}, which is not supported here; supported: {known}")]
    Way {
        /// Its name.
        name: String,
        /// The way.
        way: &'static str,
        /// The ways that are.
        known: &'static str,
    },
    /// Its program does not start.
    #[error("key provider {program:?} does not start: {source}")]
    Start {
        /// The program.
        program: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Its program, or the way to it, fails.
    #[error("key provider {at:?} failed: {why}")]
    Failed {
        /// Program or address.
        at: String,
        /// What it says.
        why: String,
    },
    /// It does not answer.
    #[error("key provider {at:?} did not answer within {} s", PATIENCE.as_secs())]
    Silent {
        /// Program or address.
        at: String,
    },
    /// Its answer is not that of the protocol. What is wrong is told without the answer's contents.
    #[error("the answer of key provider {at:?} {why}")]
    Answer {
        /// Program or address.
        at: String,
        /// What is wrong.
        why: &'static str,
    },
}

/// What is asked of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A packet for private options.
    Wrap,
    /// The private options of a packet.
    Unwrap,
}

/// A way to a provider: a request goes there, its answer comes back.
#[async_trait]
pub trait Exchange: Send + Sync {
    /// Program or address, for messages.
    fn at(&self) -> String;

    /// The answer to a request, of at most [`MAX_ANSWER`] bytes.
    ///
    /// # Errors
    /// When there is none.
    async fn exchange(
        &self,
        operation: Operation,
        request: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, ProviderError>;
}

/// How a provider is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// By a program.
    Command(CommandProvider),
    /// By gRPC, without TLS.
    Grpc {
        /// `HOST:PORT`.
        address: String,
    },
    /// In a way that this project has no client for.
    Other(&'static str),
}

#[derive(Deserialize)]
struct WireConfig {
    #[serde(rename = "key-providers")]
    providers: BTreeMap<String, WireProvider>,
}

#[derive(Deserialize)]
struct WireProvider {
    cmd: Option<CommandProvider>,
    #[serde(default)]
    grpc: String,
    #[serde(rename = "grpc-tls")]
    grpc_tls: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    ttrpc: String,
}

/// Reads a configuration: providers by name.
///
/// # Errors
/// When it is too long, not that JSON, or a provider says no way.
pub fn read_config(json: &[u8]) -> Result<BTreeMap<String, Way>, ProviderError> {
    let wrong = |why: String| ProviderError::Config(why);
    if json.len() > MAX_CONFIG {
        return Err(wrong("it is longer than 64 KiB".to_owned()));
    }
    let config: WireConfig = serde_json::from_slice(json).map_err(|e| wrong(e.to_string()))?;
    if config.providers.len() > MAX_PROVIDERS {
        return Err(wrong(format!("it has more than {MAX_PROVIDERS} providers")));
    }
    let way = |(name, wire): (String, WireProvider)| {
        let way = match wire {
            WireProvider { cmd: Some(command), .. } => Way::Command(command),
            WireProvider { grpc_tls: Some(_), .. } => Way::Other("gRPC over TLS"),
            WireProvider { grpc, .. } if !grpc.is_empty() => Way::Grpc { address: grpc },
            WireProvider { ttrpc, .. } if !ttrpc.is_empty() => Way::Other("ttrpc"),
            _ => return Err(wrong(format!("provider {name:?} has neither cmd nor grpc"))),
        };
        Ok((name, way))
    };
    config.providers.into_iter().map(way).collect()
}

/// A provider that is a program: started for each request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct CommandProvider {
    /// The program.
    pub path: String,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
}

/// Reads all, up to a bound.
async fn all(from: Option<impl AsyncRead + Unpin>) -> std::io::Result<Zeroizing<Vec<u8>>> {
    // Room from the start: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_ANSWER + 1));
    if let Some(from) = from {
        from.take(MAX_ANSWER as u64 + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

#[async_trait]
impl Exchange for CommandProvider {
    fn at(&self) -> String {
        self.path.clone()
    }

    async fn exchange(&self, _: Operation, request: &[u8]) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        let mut child = tokio::process::Command::new(&self.path)
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| ProviderError::Start { program: self.path.clone(), source })?;
        let (input, output, complaints) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let send = async {
            if let Some(mut input) = input {
                // A program may answer without reading all; what it says counts, not this.
                let _ = input.write_all(request).await;
                let _ = input.shutdown().await;
            }
        };
        let run = async {
            let ((), output, complaints) = tokio::join!(send, all(output), all(complaints));
            Ok::<_, std::io::Error>((output?, complaints?, child.wait().await?))
        };
        let failed = |why: String| ProviderError::Failed { at: self.path.clone(), why };
        let (output, complaints, status) = tokio::time::timeout(PATIENCE, run)
            .await
            .map_err(|_| ProviderError::Silent { at: self.path.clone() })?
            .map_err(|error| failed(error.to_string()))?;
        // A program that is cut off as it goes on writing ends by a signal: that is not the reason to tell.
        if output.len() > MAX_ANSWER {
            return Err(ProviderError::Answer { at: self.path.clone(), why: TOO_LONG });
        }
        if !status.success() {
            let last: String = String::from_utf8_lossy(&complaints).trim().chars().take(400).collect();
            return Err(failed(format!("{status}: {last}")));
        }
        Ok(output)
    }
}

/// A provider by its name, with the parameters that somebody gave for it.
#[derive(Clone)]
pub struct NamedProvider {
    /// Its name in the configuration and in the annotation.
    pub name: String,
    /// Parameters, as it reads them; none is allowed.
    pub parameters: String,
    /// The way to it.
    pub exchange: Arc<dyn Exchange>,
}

impl NamedProvider {
    /// The annotation that its packets stand in.
    pub fn annotation(&self) -> String {
        format!("{KEYS_PROVIDERS}{}", self.name)
    }

    /// A packet for the private options `options`.
    ///
    /// # Errors
    /// When the provider gives none.
    pub async fn wrap(&self, options: &[u8]) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        let config = self.parameters();
        let before = format!(
            r#"{{"op":"keywrap","keywrapparams":{{"ec":{{"Parameters":{config},"DecryptConfig":{{"Parameters":{{}}}}}},"optsdata":""#
        );
        let request = with_base64(&before, options, r#""},"keyunwrapparams":{"dc":null,"annotation":null}}"#);
        self.ask(Operation::Wrap, &request).await
    }

    /// The private options of a packet.
    ///
    /// # Errors
    /// When the provider gives none.
    pub async fn unwrap(&self, packet: &[u8]) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        let config = self.parameters();
        let before = format!(
            r#"{{"op":"keyunwrap","keywrapparams":{{"ec":null,"optsdata":null}},"keyunwrapparams":{{"dc":{{"Parameters":{config}}},"annotation":""#
        );
        self.ask(Operation::Unwrap, &with_base64(&before, packet, "\"}}")).await
    }

    fn parameters(&self) -> serde_json::Value {
        serde_json::json!({ self.name.as_str(): [STANDARD.encode(&self.parameters)] })
    }

    async fn ask(&self, operation: Operation, request: &[u8]) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        let answer = self.exchange.exchange(operation, request).await?;
        read_answer(operation, &answer).map_err(|why| ProviderError::Answer { at: self.exchange.at(), why })
    }
}

#[async_trait]
impl KeyProvider for NamedProvider {
    async fn unwrap_key(&self, packet: &KeyPacket) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        if packet.annotation != self.annotation() {
            return Err(KeyError::Scheme { scheme: packet.scheme().to_owned() });
        }
        Ok(self.unwrap(&packet.bytes).await?)
    }
}

/// A JSON text around the base64 of secret bytes, without copies of them.
fn with_base64(before: &str, bytes: &[u8], after: &str) -> Zeroizing<Vec<u8>> {
    let encoded = Zeroizing::new(STANDARD.encode(bytes));
    let mut out = Zeroizing::new(Vec::with_capacity(before.len() + encoded.len() + after.len()));
    for part in [before, &encoded, after] {
        out.extend_from_slice(part.as_bytes());
    }
    out
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Answer {
    keywrapresults: Wrapped,
    keyunwrapresults: Unwrapped,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Wrapped {
    annotation: Bytes,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Unwrapped {
    optsdata: Bytes,
}

/// Bytes as base64 text (Go) or as an array of numbers (Rust).
#[derive(Default)]
struct Bytes(Zeroizing<Vec<u8>>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Both;
        impl<'de> Visitor<'de> for Both {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("base64 text, an array of bytes, or null")
            }

            fn visit_unit<E>(self) -> Result<Bytes, E> {
                Ok(Bytes::default())
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Bytes, E> {
                STANDARD
                    .decode(text)
                    .map(|bytes| Bytes(Zeroizing::new(bytes)))
                    .map_err(|_| E::custom("base64"))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Bytes, A::Error> {
                let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_ANSWER));
                while let Some(byte) = numbers.next_element::<u8>()? {
                    if bytes.len() == MAX_ANSWER {
                        return Err(A::Error::custom("too long"));
                    }
                    bytes.push(byte);
                }
                Ok(Bytes(bytes))
            }
        }
        deserializer.deserialize_any(Both)
    }
}

/// The bytes that an answer brings; what is wrong with it is told without its contents.
///
/// # Errors
/// When it is too long, not the protocol's JSON, or brings nothing.
pub fn read_answer(operation: Operation, json: &[u8]) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    if json.len() > MAX_ANSWER {
        return Err(TOO_LONG);
    }
    let answer: Answer =
        serde_json::from_slice(json).map_err(|_| "is not the JSON of the key provider protocol")?;
    let bytes = match operation {
        Operation::Wrap => answer.keywrapresults.annotation.0,
        Operation::Unwrap => answer.keyunwrapresults.optsdata.0,
    };
    if bytes.is_empty() {
        return Err(match operation {
            Operation::Wrap => "has no keywrapresults.annotation",
            Operation::Unwrap => "has no keyunwrapresults.optsdata",
        });
    }
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn configurations_say_how_each_provider_is_reached() {
        let json = br#"{"key-providers":{"a":{"cmd":{"path":"/p","args":["x"]}},"b":{"grpc":"127.0.0.1:5"},
            "c":{"ttrpc":"unix:///s"},"d":{"grpc":"h:1","grpc-tls":{"root-ca-file":"/x"}},"e":{"cmd":{"path":"/q"}}}}"#;
        let config = read_config(json).unwrap();
        let command = |path: &str, args: &[&str]| {
            Way::Command(CommandProvider {
                path: path.to_owned(),
                args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            })
        };
        assert_eq!(config["a"], command("/p", &["x"]));
        assert_eq!(config["b"], Way::Grpc { address: "127.0.0.1:5".to_owned() });
        assert_eq!(config["c"], Way::Other("ttrpc"));
        assert_eq!(config["d"], Way::Other("gRPC over TLS"));
        assert_eq!(config["e"], command("/q", &[]));
        let long = vec![b' '; MAX_CONFIG + 1];
        for (json, why) in [
            (&br#"{"key-providers":{"a":{}}}"#[..], "neither cmd nor grpc"),
            (b"{}", "key-providers"),
            (b"[", "EOF"),
            (&long, "64 KiB"),
        ] {
            let error = read_config(json).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn answers_are_read_in_both_forms_and_refused_without_their_contents() {
        for json in [
            r#"{"keywrapresults":{"annotation":"AQL/"}}"#,
            r#"{"keywrapresults":{"annotation":[1,2,255]},"keyunwrapresults":{"optsdata":null}}"#,
        ] {
            assert_eq!(read_answer(Operation::Wrap, json.as_bytes()).unwrap().as_slice(), [1, 2, 255]);
            assert!(read_answer(Operation::Unwrap, json.as_bytes()).unwrap_err().contains("optsdata"));
        }
        for json in [
            "",
            "secret",
            r#"{"keywrapresults":{"annotation":[256]}}"#,
            r#"{"keywrapresults":{"annotation":"!"}}"#,
        ] {
            assert!(
                read_answer(Operation::Wrap, json.as_bytes()).unwrap_err().contains("not the JSON"),
                "{json}"
            );
        }
        let long = vec![b' '; MAX_ANSWER + 1];
        assert!(read_answer(Operation::Wrap, &long).unwrap_err().contains("256 KiB"));
    }

    fn shell(script: &str) -> NamedProvider {
        let exchange =
            CommandProvider { path: "/bin/sh".to_owned(), args: vec!["-c".to_owned(), script.to_owned()] };
        NamedProvider { name: "test".to_owned(), parameters: "p".to_owned(), exchange: Arc::new(exchange) }
    }

    #[tokio::test]
    async fn a_program_is_asked_by_ocicrypts_protocol() {
        let dir = tempfile::tempdir().unwrap();
        let seen = dir.path().join("seen");
        let provider = shell(&format!(
            "cat > {}; echo '{{\"keywrapresults\":{{\"annotation\":\"aGk=\"}}}}'",
            seen.display()
        ));
        assert_eq!(provider.wrap(b"options").await.unwrap().as_slice(), b"hi");
        let request: serde_json::Value = serde_json::from_slice(&std::fs::read(&seen).unwrap()).unwrap();
        assert_eq!(request["op"], "keywrap");
        assert_eq!(request["keywrapparams"]["ec"]["Parameters"]["test"][0], STANDARD.encode("p"));
        assert_eq!(request["keywrapparams"]["optsdata"], STANDARD.encode("options"));
        assert!(provider.unwrap(b"packet").await.unwrap_err().to_string().contains("optsdata"));
        let request: serde_json::Value = serde_json::from_slice(&std::fs::read(&seen).unwrap()).unwrap();
        assert_eq!(request["op"], "keyunwrap");
        assert_eq!(request["keyunwrapparams"]["annotation"], STANDARD.encode("packet"));
    }

    #[tokio::test]
    async fn programs_that_fail_are_told_apart() {
        for (script, why) in [
            ("echo no such token >&2; exit 3", "no such token"),
            ("exit 0", "not the JSON"),
            ("head -c 300000 /dev/zero", "256 KiB"),
        ] {
            let error = shell(script).wrap(b"x").await.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let exchange =
            Arc::new(CommandProvider { path: "/nonexistent/provider".to_owned(), args: Vec::new() });
        let gone = NamedProvider { name: "n".to_owned(), parameters: String::new(), exchange };
        assert!(matches!(gone.wrap(b"x").await, Err(ProviderError::Start { .. })));
        let other = KeyPacket { annotation: format!("{KEYS_PROVIDERS}other"), bytes: Vec::new() };
        assert!(matches!(gone.unwrap_key(&other).await, Err(KeyError::Scheme { .. })));
    }
}
