//! PKCS#7: layer keys wrapped for certificates, as skopeo's `--encryption-key pkcs7:certificate.pem` makes them.
//!
//! Sources: RFC 5652 (CMS, section 6, EnvelopedData), RFC 5084 (AES-GCM in CMS), RFC 8017 (RSAES-PKCS1-v1_5), containers/ocicrypt
//! `keywrap/pkcs7`, and envelopes that skopeo 1.9 and 1.18 made. One envelope serves all certificates: the content key stands in it
//! once for each, encrypted by RSA PKCS#1 v1.5; the content is under AES-128-GCM, its tag at the end.
//!
//! The Go library below ocicrypt writes the parameters of AES-GCM in a form of its own: in a further SEQUENCE, the outer one with the
//! tag of a primitive (0x10), and the nonce as `[4]`. That form is written, since it is the only one that ocicrypt reads; that of
//! RFC 5084 is read too. Crates for CMS refuse it, so elements are taken one by one (crate `der`).
//! AES-CBC and DES are refused: nothing would tell a changed envelope. Which certificate an entry is for is not
//! looked at: the private key opens its own entry, so no certificate is needed to open.
//!
//! Not for a place where somebody else sees how opening fails (PKCS#1 v1.5): tools use it, the guest does not. All ways to fail give
//! the same error.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rsa::{Pkcs1PrivateDecryptingKey, Pkcs1PublicEncryptingKey, PublicEncryptingKey};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier};
use x509_cert::der::{Decode as _, Encode as _, Reader as _, SliceReader, Tag, TagNumber, Tagged as _};
use zeroize::Zeroizing;

use super::der::{element, tag};
use super::{CryptoError, malformed, rsa};

const WHAT: &str = "pkcs7 packet";
const MAX: usize = 64 << 10;
/// Recipients of one envelope, and elements of one level.
const MAX_ELEMENTS: usize = 64;

const ENVELOPED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.3");
const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const AES_128_GCM_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.1.6");
const AES_256_GCM_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.1.46");

/// Length of the tag, the only one in use.
const TAG_LEN: u8 = 16;

/// An envelope, read.
struct Envelope<'a> {
    /// The content key, encrypted for each recipient.
    keys: Vec<&'a [u8]>,
    cipher: &'static Algorithm,
    nonce: [u8; NONCE_LEN],
    /// Ciphertext and tag.
    content: Vec<u8>,
}

/// Opens an envelope with the private key `pem`.
///
/// # Errors
/// When it is malformed, of another cipher, or made for other keys only.
pub fn open(packet: &[u8], pem: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let envelope = parse(packet)?;
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|e| malformed("private key", e))?;
    let key = rsa::private_key(&key).ok_or(CryptoError::Unwrap { what: WHAT })?;
    let key = Pkcs1PrivateDecryptingKey::new(key).map_err(|_| CryptoError::Library("RSA"))?;
    let mut room = Zeroizing::new(vec![0; key.min_output_size()]);
    for wrapped in &envelope.keys {
        let Ok(content_key) = key.decrypt(wrapped, &mut room) else { continue };
        let Ok(unbound) = UnboundKey::new(envelope.cipher, content_key) else { continue };
        let mut data = Zeroizing::new(envelope.content.clone());
        let nonce = Nonce::assume_unique_for_key(envelope.nonce);
        let opened = LessSafeKey::new(unbound).open_in_place(nonce, Aad::empty(), &mut data);
        if let Ok(length) = opened.map(|plain| plain.len()) {
            data.truncate(length);
            return Ok(data);
        }
    }
    Err(CryptoError::Unwrap { what: WHAT })
}

/// Wraps `options` for all the certificates (PEM or DER).
///
/// # Errors
/// When there are none or too many, or one is no certificate of an RSA key.
pub fn seal(options: &[u8], certificates: &[&[u8]]) -> Result<Vec<u8>, CryptoError> {
    if certificates.is_empty() || certificates.len() > MAX_ELEMENTS {
        return Err(malformed(WHAT, format!("it can be made for 1 to {MAX_ELEMENTS} certificates")));
    }
    let mut key = Zeroizing::new([0; 16]);
    let mut nonce = [0; NONCE_LEN];
    aws_lc_rs::rand::fill(key.as_mut()).map_err(|_| CryptoError::Library("random"))?;
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| CryptoError::Library("random"))?;
    let mut recipients = Vec::new();
    for certificate in certificates {
        recipients.push(recipient(certificate, key.as_ref())?);
    }
    // A SET OF is sorted in DER.
    recipients.sort_by(|a, b| a.as_slice().cmp(b.as_slice()));
    let recipients: Vec<&[u8]> = recipients.iter().map(|one| one.as_slice()).collect();

    let mut content = Zeroizing::new(options.to_vec());
    let unbound = UnboundKey::new(&AES_128_GCM, key.as_ref()).map_err(|_| CryptoError::Library("AES-GCM"))?;
    let seal = LessSafeKey::new(unbound)
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut content)
        .map_err(|_| CryptoError::Library("AES-GCM"))?;
    content.extend_from_slice(seal.as_ref());

    let cipher = element(tag::SEQUENCE, &[&oid(AES_128_GCM_ID)?, &gcm_parameters(&nonce)]);
    let content = element(tag::CONTEXT_0, &[&element(tag::OCTETS, &[&content])]);
    let content = element(tag::SEQUENCE, &[&oid(DATA)?, &cipher, &content]);
    let recipients = element(tag::SET, &recipients);
    let envelope = element(tag::SEQUENCE, &[&version_0(), &recipients, &content]);
    let wrapped = element(tag::CONTEXT_0, &[&envelope]);
    Ok(element(tag::SEQUENCE, &[&oid(ENVELOPED_DATA)?, &wrapped]).to_vec())
}

fn oid(id: ObjectIdentifier) -> Result<Vec<u8>, CryptoError> {
    id.to_der().map_err(|_| CryptoError::Library("DER"))
}

fn version_0() -> Zeroizing<Vec<u8>> {
    element(tag::INTEGER, &[&[0]])
}

/// The parameters in ocicrypt's form (see the module's text).
fn gcm_parameters(nonce: &[u8]) -> Zeroizing<Vec<u8>> {
    let length = element(tag::INTEGER, &[&[TAG_LEN]]);
    element(OCICRYPT_PARAMETERS, &[&element(tag::SEQUENCE, &[&element(OCICRYPT_NONCE, &[nonce]), &length])])
}

const OCICRYPT_PARAMETERS: u8 = 0x10;
const OCICRYPT_NONCE: u8 = 0x84;

/// The content key for the owner of a certificate.
fn recipient(certificate: &[u8], key: &[u8]) -> Result<Vec<u8>, CryptoError> {
    const CERTIFICATE: &str = "certificate of a recipient";
    let certificate = kata_cc_x509::Certificate::from_der_or_pem(certificate)
        .map_err(|error| malformed(CERTIFICATE, error))?;
    let parsed =
        x509_cert::Certificate::from_der(certificate.der()).map_err(|error| malformed(CERTIFICATE, error))?;
    let spki = certificate.spki_der().map_err(|error| malformed(CERTIFICATE, error))?;
    let public = PublicEncryptingKey::from_der(&spki)
        .map_err(|_| malformed(CERTIFICATE, "it is not of an RSA key of 2048 bits or more"))?;
    let public = Pkcs1PublicEncryptingKey::new(public).map_err(|_| CryptoError::Library("RSA"))?;
    let mut wrapped = vec![0; public.ciphertext_size()];
    let length = public.encrypt(key, &mut wrapped).map_err(|_| CryptoError::Library("RSA"))?.len();
    wrapped.truncate(length);
    let der = |result: x509_cert::der::Result<Vec<u8>>| result.map_err(|e| malformed(CERTIFICATE, e));
    let issuer = der(parsed.tbs_certificate.issuer.to_der())?;
    let serial = der(parsed.tbs_certificate.serial_number.to_der())?;
    let name = element(tag::SEQUENCE, &[&issuer, &serial]);
    let algorithm = element(tag::SEQUENCE, &[&oid(RSA)?]);
    let made = element(tag::SEQUENCE, &[&version_0(), &name, &algorithm, &element(tag::OCTETS, &[&wrapped])]);
    Ok(made.to_vec())
}

/// The elements that fill `bytes`.
fn elements(bytes: &[u8]) -> Result<Vec<AnyRef<'_>>, CryptoError> {
    let mut reader = SliceReader::new(bytes).map_err(|e| malformed(WHAT, e))?;
    let mut found = Vec::new();
    while !reader.is_finished() {
        if found.len() == MAX_ELEMENTS {
            return Err(malformed(WHAT, format!("it has more than {MAX_ELEMENTS} elements in one")));
        }
        found.push(AnyRef::decode(&mut reader).map_err(|e| malformed(WHAT, e))?);
    }
    Ok(found)
}

/// The contents of an element of that tag.
fn of_tag<'a>(element: Option<&AnyRef<'a>>, tag: Tag, what: &'static str) -> Result<&'a [u8], CryptoError> {
    let found = element.ok_or_else(|| malformed(WHAT, format!("it has no {what}")))?;
    if found.tag() != tag {
        return Err(malformed(WHAT, format!("its {what} is no {tag}")));
    }
    Ok(found.value())
}

const fn context_0(constructed: bool) -> Tag {
    Tag::ContextSpecific { constructed, number: TagNumber::N0 }
}

fn object_id(element: Option<&AnyRef<'_>>, what: &'static str) -> Result<ObjectIdentifier, CryptoError> {
    let bytes = of_tag(element, Tag::ObjectIdentifier, what)?;
    ObjectIdentifier::from_bytes(bytes).map_err(|e| malformed(WHAT, e))
}

fn unsupported(what: &'static str, seen: ObjectIdentifier, known: &'static str) -> CryptoError {
    CryptoError::Unsupported { what, seen: seen.to_string(), known }
}

fn parse(packet: &[u8]) -> Result<Envelope<'_>, CryptoError> {
    if packet.len() > MAX {
        return Err(malformed(WHAT, "longer than 64 KiB"));
    }
    let outer = elements(packet)?;
    if outer.len() > 1 {
        return Err(malformed(WHAT, "something follows it"));
    }
    let info = elements(of_tag(outer.first(), Tag::Sequence, "content")?)?;
    let kind = object_id(info.first(), "content type")?;
    if kind != ENVELOPED_DATA {
        return Err(unsupported("pkcs7 content type", kind, "1.2.840.113549.1.7.3 (enveloped data)"));
    }
    let envelope = elements(of_tag(info.get(1), context_0(true), "enveloped data")?)?;
    let envelope = elements(of_tag(envelope.first(), Tag::Sequence, "enveloped data")?)?;
    of_tag(envelope.first(), Tag::Integer, "version")?;
    let keys = elements(of_tag(envelope.get(1), Tag::Set, "set of recipients")?)?;
    let keys = keys.iter().filter_map(|one| recipients_key(one).transpose()).collect::<Result<_, _>>()?;
    let content = elements_of_content(of_tag(envelope.get(2), Tag::Sequence, "encrypted content")?)?;
    Ok(Envelope { keys, ..content })
}

/// The encrypted content key of a recipient; `None` when it is encrypted in another way: others may do.
fn recipients_key<'a>(recipient: &AnyRef<'a>) -> Result<Option<&'a [u8]>, CryptoError> {
    // Other kinds of recipients (key agreement, passwords) are tagged by context.
    if recipient.tag() != Tag::Sequence {
        return Ok(None);
    }
    let parts = elements(recipient.value())?;
    let algorithm = elements(of_tag(parts.get(2), Tag::Sequence, "algorithm of a recipient")?)?;
    let wrapped = of_tag(parts.get(3), Tag::OctetString, "key of a recipient")?;
    let rsa = object_id(algorithm.first(), "algorithm of a recipient")? == RSA;
    Ok(rsa.then_some(wrapped))
}

fn elements_of_content(bytes: &[u8]) -> Result<Envelope<'static>, CryptoError> {
    let parts = elements(bytes)?;
    let [kind, cipher, content] = parts.as_slice() else {
        return Err(malformed(WHAT, "its encrypted content has not three parts"));
    };
    let kind = object_id(Some(kind), "type of content")?;
    if kind != DATA {
        return Err(unsupported("type of pkcs7 content", kind, "1.2.840.113549.1.7.1 (data)"));
    }
    let cipher = of_tag(Some(cipher), Tag::Sequence, "cipher")?;
    let mut reader = SliceReader::new(cipher).map_err(|e| malformed(WHAT, e))?;
    let id = ObjectIdentifier::decode(&mut reader).map_err(|e| malformed(WHAT, e))?;
    let cipher = match id {
        AES_128_GCM_ID => &AES_128_GCM,
        AES_256_GCM_ID => &AES_256_GCM,
        other => return Err(unsupported("pkcs7 cipher", other, "AES-128-GCM, AES-256-GCM")),
    };
    let rest = reader.remaining_len();
    let nonce = read_nonce(reader.read_slice(rest).map_err(|e| malformed(WHAT, e))?)?;
    let content = match content.tag() {
        tag if tag == context_0(false) => content.value().to_vec(),
        // In pieces, each an OCTET STRING.
        tag if tag == context_0(true) => {
            let mut whole = Vec::new();
            for piece in elements(content.value())? {
                whole.extend_from_slice(of_tag(Some(&piece), Tag::OctetString, "piece of content")?);
            }
            whole
        }
        _ => return Err(malformed(WHAT, "its content is not tagged [0]")),
    };
    Ok(Envelope { keys: Vec::new(), cipher, nonce, content })
}

/// The nonce among the parameters of AES-GCM: in RFC 5084's form, or in ocicrypt's.
fn read_nonce(parameters: &[u8]) -> Result<[u8; NONCE_LEN], CryptoError> {
    let mut parameters = parameters.to_vec();
    let ocicrypts = parameters.first() == Some(&OCICRYPT_PARAMETERS);
    if ocicrypts {
        parameters[0] = tag::SEQUENCE;
    }
    let outer = elements(&parameters)?;
    let mut inner = elements(of_tag(outer.first(), Tag::Sequence, "parameters")?)?;
    let nonce_tag = if ocicrypts {
        inner = elements(of_tag(inner.first(), Tag::Sequence, "parameters")?)?;
        Tag::ContextSpecific { constructed: false, number: TagNumber::N4 }
    } else {
        Tag::OctetString
    };
    let nonce = of_tag(inner.first(), nonce_tag, "nonce")?;
    // Left out, the length is 12 (RFC 5084): too short for the library, and nobody writes it.
    if of_tag(inner.get(1), Tag::Integer, "length of the tag")? != [TAG_LEN] {
        return Err(malformed(WHAT, "its tag has not 16 bytes"));
    }
    <[u8; NONCE_LEN]>::try_from(nonce).map_err(|_| malformed(WHAT, "its nonce has not 12 bytes"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pair() -> (Vec<u8>, Vec<u8>) {
        let key =
            rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
        let certificate = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
        (key.serialize_pem().into_bytes(), certificate.pem().into_bytes())
    }

    /// `bytes` with the only occurrence of `from` replaced; both of one length, so that lengths around stay right.
    fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
        assert_eq!(from.len(), to.len());
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        let mut out = bytes.to_vec();
        out[at..at + to.len()].copy_from_slice(to);
        out
    }

    #[test]
    fn every_recipient_opens_and_nobody_else() {
        let (first, second, other) = (pair(), pair(), pair());
        let packet = seal(b"options", &[&first.1, &second.1]).unwrap();
        for key in [&first.0, &second.0] {
            assert_eq!(open(&packet, key).unwrap().as_slice(), b"options");
        }
        assert!(matches!(open(&packet, &other.0), Err(CryptoError::Unwrap { .. })));
        let mut changed = packet.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(matches!(open(&changed, &first.0), Err(CryptoError::Unwrap { .. })));
    }

    #[test]
    fn other_forms_are_refused_by_name() {
        let (key, certificate) = pair();
        let packet = seal(b"options", &[&certificate]).unwrap();
        let id = |text: &str| ObjectIdentifier::new_unwrap(text).to_der().unwrap();
        let gcm = id("2.16.840.1.101.3.4.1.6");
        let cases: [(Vec<u8>, &str); 6] = [
            (replaced(&packet, &gcm, &id("2.16.840.1.101.3.4.1.2")), "2.16.840.1.101.3.4.1.2"),
            (
                replaced(&packet, &oid(ENVELOPED_DATA).unwrap(), &id("1.2.840.113549.1.7.2")),
                "1.2.840.113549.1.7.2",
            ),
            (replaced(&packet, &[2, 1, TAG_LEN], &[2, 1, 12]), "16 bytes"),
            (replaced(&packet, &[OCICRYPT_NONCE, 12], &[0x85, 12]), "nonce"),
            ([packet.clone(), vec![5, 0]].concat(), "follows"),
            (vec![0x30; MAX + 1], "64 KiB"),
        ];
        for (bytes, why) in cases {
            let error = open(&bytes, &key).unwrap_err().to_string();
            assert!(error.contains(why), "{error}, not {why}");
        }
        let many = vec![certificate.as_slice(); MAX_ELEMENTS + 1];
        assert!(seal(b"x", &many).unwrap_err().to_string().contains("1 to 64"));
        assert!(seal(b"x", &[]).is_err());
        let curve = rcgen::KeyPair::generate().unwrap();
        let curve = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&curve).unwrap();
        assert!(seal(b"x", &[curve.pem().as_bytes()]).unwrap_err().to_string().contains("RSA key"));
    }

    #[test]
    fn parameters_are_read_in_both_forms() {
        let nonce = [9; NONCE_LEN];
        assert_eq!(read_nonce(&gcm_parameters(&nonce)).unwrap(), nonce);
        let length = element(tag::INTEGER, &[&[TAG_LEN]]);
        let standard = element(tag::SEQUENCE, &[&element(tag::OCTETS, &[&nonce]), &length]);
        assert_eq!(read_nonce(&standard).unwrap(), nonce);
        for short in [&nonce[..11], &[]] {
            let parameters = element(tag::SEQUENCE, &[&element(tag::OCTETS, &[short]), &length]);
            assert!(read_nonce(&parameters).unwrap_err().to_string().contains("12 bytes"));
        }
    }
}
