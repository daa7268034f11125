//! Whether one signature satisfies one requirement.
//!
//! Nothing of a signature is believed before its signer is: first key or certificate (and the log, where it is asked for), then what was
//! signed, then which image and name that is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kata_cc_x509::Certificate;

use super::bundle::{Bundle, Content, Statement, pre_authentication};
use super::certificate::{Fulcio, Presented};
use super::error::Reason;
use super::fetch::{Attached, Form};
use super::identity::{Named, SignedIdentity};
use super::json::cut;
use super::key::{PublicKey, names};
use super::material::KeyMaterial;
use super::payload::SimpleSigning;
use super::rekor::{About, Entry};
use super::requirement::{Signer, SigstoreSigned, Source};
use crate::digest::Digest;

/// The image whose signatures are looked at.
pub(super) struct Image<'a> {
    pub(super) named: &'a Named,
    /// Its manifest, and the index that led to it.
    pub(super) subjects: &'a [Subject],
}

/// A manifest or an index, digest checked.
pub(crate) struct Subject {
    pub(crate) digest: Digest,
    pub(crate) bytes: Vec<u8>,
}

/// A requirement with its keys at hand.
pub(super) struct Trust {
    signer: Trusted,
    rekor: Vec<PublicKey>,
    identity: SignedIdentity,
}

enum Trusted {
    Keys(Vec<PublicKey>),
    Fulcio(Fulcio),
}

/// A key that cannot be used: its name in the policy, why, and what to do.
pub(super) type Unusable = (String, String, &'static str);

/// What a signer put a signature under.
struct Signed<'a> {
    /// The bytes that the signature covers.
    covered: &'a [u8],
    /// The bytes whose digest is logged.
    logged: &'a [u8],
    signature: &'a [u8],
}

impl Trust {
    /// Fetches and reads the keys of a requirement.
    pub(super) async fn load(wanted: &SigstoreSigned, material: &dyn KeyMaterial) -> Result<Self, Unusable> {
        let signer = match &wanted.signer {
            Signer::Keys(sources) => Trusted::Keys(keys(sources, material).await?),
            Signer::Fulcio { ca, issuer, subject } => {
                let bytes = read(ca, material).await?;
                let roots = Certificate::chain_from_pem(&bytes).map_err(|error| {
                    (ca.name().to_owned(), error.to_string(), "give Fulcio's root certificates in PEM")
                })?;
                Trusted::Fulcio(Fulcio { roots, issuer: issuer.clone(), subject: subject.clone() })
            }
        };
        Ok(Self { signer, rekor: keys(&wanted.rekor, material).await?, identity: wanted.identity.clone() })
    }

    /// Whether a signature satisfies the requirement.
    pub(super) fn check(&self, image: &Image<'_>, form: &Form) -> Result<(), Reason> {
        match form {
            Form::Broken(reason) => Err(reason.clone()),
            Form::Attached(attached) => self.check_attached(image, attached),
            Form::Bundle(bytes) => self.check_bundle(image, &Bundle::parse(bytes)?),
        }
    }

    fn check_attached(&self, image: &Image<'_>, attached: &Attached) -> Result<(), Reason> {
        let text = attached.signature.as_deref().unwrap_or_default();
        let signature = STANDARD.decode(text).map_err(|error| Reason::malformed("signature", error))?;
        let signed = Signed { covered: &attached.payload, logged: &attached.payload, signature: &signature };
        let entries = match &attached.bundle {
            Some(text) if !self.rekor.is_empty() => vec![Entry::from_annotation(text)?],
            _ => Vec::new(),
        };
        let presented = match (&self.signer, &attached.certificate) {
            (Trusted::Fulcio(_), Some(pem)) => Some(Presented::from_pem(pem, attached.chain.as_deref())?),
            _ => None,
        };
        self.check_signer(&signed, presented.as_ref(), &entries, "no log entry")?;
        let payload = SimpleSigning::parse(&attached.payload)?;
        image.check_digest(&payload.digest)?;
        self.check_identity(image, Some(&payload.reference))
    }

    fn check_bundle(&self, image: &Image<'_>, bundle: &Bundle) -> Result<(), Reason> {
        let absent =
            if bundle.without_set == 0 { "no log entry" } else { "log entries without a signed timestamp" };
        let check = |covered: &[u8], logged: &[u8], signature: &[u8]| {
            let signed = Signed { covered, logged, signature };
            self.check_signer(&signed, bundle.certificate.as_ref(), &bundle.entries, absent)
        };
        match &bundle.content {
            Content::Envelope(kind, payload, signatures) => {
                let covered = pre_authentication(kind, payload);
                let mut checked = Err(Reason::malformed("bundle", "its envelope has no signature"));
                for signature in signatures {
                    checked = check(&covered, payload, signature);
                    if checked.is_ok() {
                        break;
                    }
                }
                checked?;
                self.check_statement(image, &Statement::parse(kind, payload)?)
            }
            Content::Message(digest, signature) => {
                let named = image.subjects.iter().find(|one| *digest == sha256(&one.bytes));
                let Some(subject) = named else {
                    return Err(image.other_digest(format!("sha256:{}", hex::encode(digest))));
                };
                check(&subject.bytes, &subject.bytes, signature)?;
                self.check_identity(image, None)
            }
        }
    }

    /// One subject has to be this image, under a name that holds for it.
    fn check_statement(&self, image: &Image<'_>, statement: &Statement) -> Result<(), Reason> {
        let is_image = |hash: &str| image.subjects.iter().any(|one| hex::encode(sha256(&one.bytes)) == hash);
        let mut checked = None;
        for (name, hash) in &statement.subjects {
            if is_image(hash) {
                let name = Some(name.as_str()).filter(|name| !name.is_empty());
                match self.check_identity(image, name) {
                    Ok(()) => return Ok(()),
                    Err(reason) => checked = Some(reason),
                }
            }
        }
        let seen = || {
            let all: Vec<_> =
                statement.subjects.iter().map(|(_, hash)| format!("sha256:{}", cut(hash))).collect();
            if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
        };
        Err(checked.unwrap_or_else(|| image.other_digest(seen())))
    }

    /// Whether one of the requirement's signers made the signature.
    fn check_signer(
        &self,
        signed: &Signed<'_>,
        presented: Option<&Presented>,
        entries: &[Entry],
        absent: &str,
    ) -> Result<(), Reason> {
        match &self.signer {
            Trusted::Keys(keys) => {
                let by = keys.iter().find(|key| key.verifies(signed.covered, signed.signature));
                let key = by.ok_or_else(|| Reason::WrongKey { expected: names(keys) })?;
                if self.rekor.is_empty() {
                    return Ok(());
                }
                self.logged(signed, key.der(), entries, absent).map(|_| ())
            }
            Trusted::Fulcio(fulcio) => {
                let none = || Reason::UntrustedCertificate {
                    seen: "there is none, the signature was made with a key".to_owned(),
                    expected: "Fulcio made".to_owned(),
                };
                let presented = presented.ok_or_else(none)?;
                let time = self.logged(signed, &presented.leaf, entries, absent)?;
                let key = fulcio.key(presented, time)?;
                if key.verifies(signed.covered, signed.signature) {
                    return Ok(());
                }
                Err(Reason::WrongKey { expected: format!("the certificate's key {}", key.fingerprint()) })
            }
        }
    }

    /// When the log took this very signature in, in seconds since 1970.
    fn logged(
        &self,
        signed: &Signed<'_>,
        signer: &[u8],
        entries: &[Entry],
        absent: &str,
    ) -> Result<u64, Reason> {
        let about = About { signature: signed.signature, signer, payload: signed.logged };
        let expected = "an entry with a timestamp signed by a Rekor key of the policy";
        let mut reason = Reason::NotLogged { seen: absent.to_owned(), expected };
        for entry in entries {
            match entry.verify(&self.rekor).and_then(|logged| logged.check(&about).map(|()| logged.time)) {
                Ok(time) => return Ok(time),
                Err(other) => reason = other,
            }
        }
        Err(reason)
    }

    fn check_identity(&self, image: &Image<'_>, signed: Option<&str>) -> Result<(), Reason> {
        self.identity.check(image.named, signed).map_err(|expected| Reason::WrongIdentity {
            seen: signed.map_or_else(
                || "no name, as Sigstore bundles are".to_owned(),
                |name| format!("{:?}", cut(name)),
            ),
            expected,
        })
    }
}

impl Image<'_> {
    fn check_digest(&self, signed: &Digest) -> Result<(), Reason> {
        if self.subjects.iter().any(|one| signed.of_same_kind(&one.bytes) == *signed) {
            return Ok(());
        }
        Err(self.other_digest(signed.to_string()))
    }

    fn other_digest(&self, seen: String) -> Reason {
        let digests: Vec<_> = self.subjects.iter().map(|one| one.digest.to_string()).collect();
        Reason::OtherDigest { seen, expected: digests.join(" or its index ") }
    }
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().to_vec()
}

async fn keys(sources: &[Source], material: &dyn KeyMaterial) -> Result<Vec<PublicKey>, Unusable> {
    let mut keys = Vec::new();
    for source in sources {
        let bytes = read(source, material).await?;
        let what_to_do = "give the signer's public key in PEM, as in cosign.pub";
        keys.push(PublicKey::from_pem(&bytes).map_err(|why| (source.name().to_owned(), why, what_to_do))?);
    }
    Ok(keys)
}

async fn read(source: &Source, material: &dyn KeyMaterial) -> Result<Vec<u8>, Unusable> {
    match source {
        Source::Data(_, bytes) => Ok(bytes.clone()),
        Source::Path(path) => material.read(path).await.map_err(|error| {
            let what_to_do = "see that it is there and that this machine or guest may have it";
            (path.clone(), kata_cc_causes::causes(&error), what_to_do)
        }),
    }
}
