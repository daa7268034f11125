//! One requirement of a policy.
//!
//! Source: containers-policy.json(5), "Policy Requirements". What is known and not built (`signedBy`, `pki`) is read like the others and
//! refuses every image of its scope by name: a policy of a whole machine must not fail for a scope that no guest pulls from.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::error::PolicyError;
use super::identity::SignedIdentity;
use super::json::{Json, Members, cut};

/// What an image must meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// `insecureAcceptAnything`.
    AcceptAnything,
    /// `reject`.
    Reject,
    /// `signedBy`: OpenPGP, not supported.
    SignedBy,
    /// `sigstoreSigned` with `pki`: not supported.
    SignedByPki,
    /// `sigstoreSigned`.
    Sigstore(SigstoreSigned),
}

/// A signature as cosign and skopeo make them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigstoreSigned {
    /// Who must have signed.
    pub(super) signer: Signer,
    /// Keys of the transparency log; the signature must be in it when there are any.
    pub(super) rekor: Vec<Source>,
    /// As what.
    pub(super) identity: SignedIdentity,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Signer {
    /// The holder of one of these keys.
    Keys(Vec<Source>),
    /// Whoever has a certificate of Fulcio for this identity.
    Fulcio { ca: Source, issuer: String, subject: String },
}

/// Where a key or certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// To be read by [`super::KeyMaterial`].
    Path(String),
    /// In the policy: the field's path, and the bytes.
    Data(String, Vec<u8>),
}

impl Source {
    /// For messages.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Path(name) | Self::Data(name, _) => name,
        }
    }
}

const TYPES: &str = "insecureAcceptAnything, reject, sigstoreSigned or signedBy";
const SIGSTORE: &str = "type, keyPath, keyPaths, keyData, keyDatas, fulcio, pki, rekorPublicKeyPath, rekorPublicKeyPaths, \
                        rekorPublicKeyData, rekorPublicKeyDatas, signedIdentity";
const SIGNED_BY: &str = "type, keyType, keyPath, keyPaths, keyData, signedIdentity";

impl Requirement {
    /// The type as it stands in the policy.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::AcceptAnything => "insecureAcceptAnything",
            Self::Reject => "reject",
            Self::SignedBy => "signedBy",
            Self::SignedByPki | Self::Sigstore(_) => "sigstoreSigned",
        }
    }

    /// Reads a list that is not empty.
    pub(super) fn read_all(value: Json, path: &str) -> Result<Vec<Self>, PolicyError> {
        let one = |(number, value): (usize, Json)| Self::read(value, &format!("{path}[{number}]"));
        value.list(path)?.into_iter().enumerate().map(one).collect()
    }

    fn read(value: Json, path: &str) -> Result<Self, PolicyError> {
        let mut members = value.object(path)?;
        let kind = members.needed_text("type")?;
        match kind.as_str() {
            "insecureAcceptAnything" => members.finish("type").map(|()| Self::AcceptAnything),
            "reject" => members.finish("type").map(|()| Self::Reject),
            "signedBy" => signed_by(members),
            "sigstoreSigned" => sigstore(members),
            other => Err(PolicyError::at(&members.path("type"), &cut(other), TYPES)),
        }
    }
}

fn identity(members: &mut Members) -> Result<SignedIdentity, PolicyError> {
    let path = members.path("signedIdentity");
    let given = members.take("signedIdentity").map(|value| SignedIdentity::read(value, &path)).transpose()?;
    Ok(given.unwrap_or(SignedIdentity::MatchRepoDigestOrExact))
}

fn signed_by(mut members: Members) -> Result<Requirement, PolicyError> {
    let kind = members.needed_text("keyType")?;
    if kind != "GPGKeys" {
        return Err(PolicyError::at(&members.path("keyType"), &cut(&kind), "GPGKeys"));
    }
    let sources = sources(&mut members, "key", NO_DATAS)?;
    one_of(&members, usize::from(sources.is_some()), "exactly one of keyPath, keyPaths and keyData")?;
    identity(&mut members)?;
    members.finish(SIGNED_BY)?;
    Ok(Requirement::SignedBy)
}

fn sigstore(mut members: Members) -> Result<Requirement, PolicyError> {
    let keys = sources(&mut members, "key", EVERY)?;
    let rekor = sources(&mut members, "rekorPublicKey", EVERY)?;
    let path = members.path("fulcio");
    let fulcio = members.take("fulcio").map(|value| fulcio(value, &path)).transpose()?;
    let pki = members.take("pki").is_some();
    let identity = identity(&mut members)?;
    let given = [keys.is_some(), fulcio.is_some(), pki].into_iter().filter(|given| *given).count();
    one_of(&members, given, "exactly one of keyPath, keyPaths, keyData, keyDatas, fulcio and pki")?;
    let here = members.here().to_owned();
    members.finish(SIGSTORE)?;
    if pki {
        return Ok(Requirement::SignedByPki);
    }
    let rekor = rekor.unwrap_or_default();
    let signer = match (keys, fulcio) {
        (Some(keys), _) => Signer::Keys(keys),
        // A certificate of Fulcio is good for minutes, and only the log tells when it was used.
        (None, Some(_)) if rekor.is_empty() => {
            return Err(PolicyError::at(
                &here,
                "fulcio alone",
                "a rekorPublicKeyPath or rekorPublicKeyData beside it",
            ));
        }
        (None, Some(fulcio)) => fulcio,
        (None, None) => return Ok(Requirement::SignedByPki),
    };
    Ok(Requirement::Sigstore(SigstoreSigned { signer, rekor, identity }))
}

fn one_of(members: &Members, given: usize, expected: &str) -> Result<(), PolicyError> {
    match given {
        1 => Ok(()),
        0 => Err(PolicyError::at(members.here(), "none", expected)),
        _ => Err(PolicyError::at(members.here(), "several", expected)),
    }
}

fn fulcio(value: Json, path: &str) -> Result<Signer, PolicyError> {
    let mut members = value.object(path)?;
    let ca = sources(&mut members, "ca", ONE)?.and_then(|mut all| all.pop());
    one_of(&members, usize::from(ca.is_some()), "exactly one of caPath and caData")?;
    let (issuer, subject) = (members.needed_text("oidcIssuer")?, members.needed_text("subjectEmail")?);
    let here = members.here().to_owned();
    members.finish("caPath, caData, oidcIssuer, subjectEmail")?;
    let ca = ca.ok_or_else(|| PolicyError::at(&here, "none", "caPath or caData"))?;
    Ok(Signer::Fulcio { ca, issuer, subject })
}

/// Fields that name keys: `keyPath` and so on. All of them, and those that are not lists of data.
const EVERY: &[&str] = &["Path", "Paths", "Data", "Datas"];
const NO_DATAS: &[&str] = &["Path", "Paths", "Data"];
const ONE: &[&str] = &["Path", "Data"];

/// The fields `stem` with one of `ends` behind it: at most one of them.
fn sources(members: &mut Members, stem: &str, ends: &[&str]) -> Result<Option<Vec<Source>>, PolicyError> {
    let mut found: Vec<Vec<Source>> = Vec::new();
    for end in ends {
        let name = format!("{stem}{end}");
        let path = members.path(&name);
        let texts = match end.ends_with('s') {
            true => members.texts(&name)?,
            false => members.text(&name)?.map(|text| vec![text]),
        };
        let Some(texts) = texts else { continue };
        let one = |text: String| match end.starts_with("Path") {
            true => Ok(Source::Path(text)),
            false => data(&path, &text),
        };
        found.push(texts.into_iter().map(one).collect::<Result<_, _>>()?);
    }
    if found.len() > 1 {
        return Err(PolicyError::at(members.here(), &format!("several fields {stem}…"), "one of them"));
    }
    Ok(found.pop())
}

/// Base64, as containers-image writes data; CoCo writes the PEM text itself.
fn data(path: &str, text: &str) -> Result<Source, PolicyError> {
    if text.trim_start().starts_with("-----BEGIN") {
        return Ok(Source::Data(path.to_owned(), text.as_bytes().to_vec()));
    }
    let bytes = STANDARD.decode(text.trim());
    let bytes =
        bytes.map_err(|_| PolicyError::at(path, "no base64", "base64 of a PEM text, or the PEM text"))?;
    Ok(Source::Data(path.to_owned(), bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(members: &str) -> Result<Requirement, PolicyError> {
        let text = format!(r#"[{{{members}}}]"#);
        Requirement::read_all(Json::parse(text.as_bytes()).unwrap(), "r").map(|mut all| all.pop().unwrap())
    }

    const FULCIO: &str =
        r#""type":"sigstoreSigned","fulcio":{"caPath":"/ca","oidcIssuer":"i","subjectEmail":"s"}"#;

    #[test]
    fn every_form_of_keys() {
        for keys in [
            r#""keyPath":"kbs:///default/cosign-public-key/test""#,
            r#""keyPaths":["/a","/b"]"#,
            r#""keyData":"LS0tLS0=""#,
            r#""keyData":"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----""#,
            r#""keyDatas":["LS0tLS0=","LS0tLS0="]"#,
        ] {
            for rekor in ["", r#","rekorPublicKeyPath":"/r""#, r#","rekorPublicKeyDatas":["LS0tLS0="]"#] {
                let read = read(&format!(r#""type":"sigstoreSigned",{keys}{rekor}"#)).unwrap();
                assert!(matches!(read, Requirement::Sigstore(_)), "{keys}{rekor}");
            }
        }
        assert!(read(&format!(r#"{FULCIO},"rekorPublicKeyData":"LS0tLS0=""#)).is_ok());
    }

    #[test]
    fn what_is_known_and_not_built_is_read() {
        let text = r#""type":"signedBy","keyType":"GPGKeys","keyPath":"/k.gpg""#;
        assert_eq!(read(text).unwrap(), Requirement::SignedBy);
        let text = r#""type":"sigstoreSigned","pki":{"caRootsPath":"/ca","subjectEmail":"x"}"#;
        assert_eq!(read(text).unwrap(), Requirement::SignedByPki);
    }

    #[test]
    fn what_contradicts_itself_is_refused_with_its_path() {
        let bad_fulcio = r#""type":"sigstoreSigned","rekorPublicKeyPath":"/r","fulcio":"#;
        for (text, path) in [
            (r#""type":"sigstoreSigned""#.to_owned(), "r[0]"),
            (r#""type":"sigstoreSigned","keyPath":"/a","keyData":"LS0tLS0=""#.to_owned(), "r[0]"),
            (r#""type":"sigstoreSigned","keyPath":"/a","pki":{}"#.to_owned(), "r[0]"),
            (r#""type":"sigstoreSigned","keyPaths":[]"#.to_owned(), "r[0].keyPaths"),
            (r#""type":"sigstoreSigned","keyPaths":["/a",1]"#.to_owned(), "r[0].keyPaths[1]"),
            (r#""type":"sigstoreSigned","keyData":"%""#.to_owned(), "r[0].keyData"),
            (r#""type":"sigstoreSigned","keyPath":"/a","keys":1"#.to_owned(), "r[0].keys"),
            (r#""type":"signedBy","keyType":"X509","keyPath":"/a""#.to_owned(), "r[0].keyType"),
            (r#""type":"signedBy","keyType":"GPGKeys""#.to_owned(), "r[0]"),
            (FULCIO.to_owned(), "r[0]"),
            (format!(r#"{bad_fulcio}{{"caPath":"/c","oidcIssuer":"i"}}"#), "r[0].fulcio.subjectEmail"),
            (format!(r#"{bad_fulcio}{{"oidcIssuer":"i","subjectEmail":"s"}}"#), "r[0].fulcio"),
            (
                format!(r#"{bad_fulcio}{{"caPath":"/c","oidcIssuer":"i","subjectEmail":"s","subject":"t"}}"#),
                "r[0].fulcio.subject",
            ),
        ] {
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(&format!("at {path}:")), "{text}: {error}");
        }
    }
}
