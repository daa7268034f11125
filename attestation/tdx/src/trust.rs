//! From collateral to trusted collateral: chains to the anchor, signatures, revocation of the signers.
//!
//! What is checked here depends neither on a quote nor on the time: dates are kept, and compared at each verification
//! ([`TrustedCollateral::check_dates`]). So one piece of collateral serves many quotes.

use aws_lc_rs::digest::{SHA384, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use kata_cc_x509::{CertError, Certificate, ChainError, Crl, SignatureAlgorithm, check_link, check_root};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::collateral::{Collateral, CollateralError, SignedDocument};
use crate::error::{Item, Role, VerifyError};
use crate::roots;
use crate::tcb::{QeIdentity, TcbInfo, Timestamp};

const ECDSA: SignatureAlgorithm = SignatureAlgorithm::EcdsaP256Sha256;

/// The root that every chain has to end in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustAnchor {
    /// Intel's, built in.
    Intel,
    /// The root of a simulated platform; has to be configured.
    Simulated(Box<Certificate>),
}

/// Which kind of anchor a quote was verified under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AnchorKind {
    /// Intel's hardware.
    Intel,
    /// A simulated platform.
    Simulated,
}

impl TrustAnchor {
    /// The kind, without the certificate.
    #[must_use]
    pub const fn kind(&self) -> AnchorKind {
        match self {
            Self::Intel => AnchorKind::Intel,
            Self::Simulated(_) => AnchorKind::Simulated,
        }
    }

    fn root(&self) -> Result<Certificate, CertError> {
        match self {
            Self::Intel => roots::intel(),
            Self::Simulated(root) => Ok(root.as_ref().clone()),
        }
    }
}

/// What happens when collateral has expired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Expiry {
    /// The quote is refused.
    #[default]
    Refused,
    /// It is a claim (`collateral_expiration_status`), for the policy to judge.
    Published,
}

/// From when to when a piece of collateral holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dates {
    /// Which.
    pub item: Item,
    /// When it was issued.
    pub issued: Timestamp,
    /// When it ends.
    pub until: Timestamp,
}

/// Collateral whose signatures lead to the anchor.
#[derive(Clone, Debug)]
pub struct TrustedCollateral {
    anchor: AnchorKind,
    root: Certificate,
    tcb_info: TcbInfo,
    qe_identity: QeIdentity,
    root_crl: Crl,
    pck_crl: Crl,
    pck_ca: Certificate,
    dates: Vec<Dates>,
}

/// What both documents begin with.
#[derive(Deserialize)]
struct Kind {
    id: String,
    version: u32,
}

impl TrustedCollateral {
    /// Verifies collateral under an anchor. Dates are not compared: there is no time here.
    ///
    /// # Errors
    /// [`VerifyError`] names the step that failed, what was seen and what was expected.
    pub fn new(collateral: &Collateral, anchor: &TrustAnchor) -> Result<Self, VerifyError> {
        let in_root = in_role(Role::Root);
        let root = anchor.root().map_err(in_root)?;
        root.check_authority().map_err(in_root)?;
        check_link(Role::Root, &root, &root, ECDSA)?;
        // Roots first: a chain of another maker is told as that, not as one of its signatures.
        let pck_ca = beside_root(Role::PckCa, &collateral.pck_crl_issuer_chain, &root)?;
        let tcb_signer = beside_root(Role::TcbSigning, &collateral.tcb_info.issuer_chain, &root)?;
        let qe_signer = beside_root(Role::TcbSigning, &collateral.qe_identity.issuer_chain, &root)?;
        let root_crl = crl(Item::RootCrl, &collateral.root_ca_crl, &root)?;
        check_revocation(Role::Root, &root, &root_crl)?;
        check_issued_by_root(Role::PckCa, &pck_ca, &root, &root_crl)?;
        check_ca(&pck_ca)?;
        check_issued_by_root(Role::TcbSigning, &tcb_signer, &root, &root_crl)?;
        check_issued_by_root(Role::TcbSigning, &qe_signer, &root, &root_crl)?;
        let pck_crl = crl(Item::PckCrl, &collateral.pck_crl, &pck_ca)?;
        let tcb_info: TcbInfo = document(Item::TcbInfo, &collateral.tcb_info, &tcb_signer, ("TDX", 3, "3"))?;
        if tcb_info.tcb_type != 0 {
            let seen = tcb_info.tcb_type.to_string();
            return Err(VerifyError::CollateralKind {
                item: Item::TcbInfo,
                field: "tcbType",
                seen,
                expected: "0",
            });
        }
        let qe_identity: QeIdentity =
            document(Item::QeIdentity, &collateral.qe_identity, &qe_signer, ("TD_QE", 2, "2"))?;
        let certificate =
            |item, cert: &Certificate| dates(item, Timestamp(cert.not_before()), Timestamp(cert.not_after()));
        let list = |item, crl: &Crl| dates(item, Timestamp(crl.this_update()), Timestamp(crl.next_update()));
        let dates = vec![
            dates(Item::TcbInfo, tcb_info.issue_date, tcb_info.next_update),
            dates(Item::QeIdentity, qe_identity.issue_date, qe_identity.next_update),
            list(Item::RootCrl, &root_crl),
            list(Item::PckCrl, &pck_crl),
            certificate(Item::TcbSigningCertificate, &tcb_signer),
            certificate(Item::TcbSigningCertificate, &qe_signer),
            certificate(Item::PckCaCertificate, &pck_ca),
        ];
        Ok(Self { anchor: anchor.kind(), root, tcb_info, qe_identity, root_crl, pck_crl, pck_ca, dates })
    }

    /// What the chains end in; says whether this is hardware.
    #[must_use]
    pub const fn anchor(&self) -> AnchorKind {
        self.anchor
    }

    /// The root.
    #[must_use]
    pub const fn root(&self) -> &Certificate {
        &self.root
    }

    /// TCB info.
    #[must_use]
    pub const fn tcb_info(&self) -> &TcbInfo {
        &self.tcb_info
    }

    /// Identity of the quoting enclave.
    #[must_use]
    pub const fn qe_identity(&self) -> &QeIdentity {
        &self.qe_identity
    }

    /// Revocation list of the root.
    #[must_use]
    pub const fn root_crl(&self) -> &Crl {
        &self.root_crl
    }

    /// Revocation list of the PCK authority.
    #[must_use]
    pub const fn pck_crl(&self) -> &Crl {
        &self.pck_crl
    }

    /// The authority that signed that list.
    #[must_use]
    pub const fn pck_ca(&self) -> &Certificate {
        &self.pck_ca
    }

    /// Dates of each piece.
    #[must_use]
    pub fn dates(&self) -> &[Dates] {
        &self.dates
    }

    /// SHA-384 over the root's public point, in hex: Intel's `root_key_id`.
    #[must_use]
    pub fn root_key_id(&self) -> String {
        hex::encode(digest(&SHA384, self.root.p256_public_key().unwrap_or_default()))
    }

    /// Compares all dates with `now` (seconds since 1970). `Ok(true)` means that something has expired, which only
    /// [`Expiry::Published`] lets pass.
    ///
    /// # Errors
    /// [`VerifyError::NotYetValid`] always, [`VerifyError::Expired`] unless it is only published.
    pub fn check_dates(&self, now: u64, expiry: Expiry) -> Result<bool, VerifyError> {
        let now = Timestamp(now);
        if let Some(Dates { item, issued, .. }) = self.dates.iter().find(|dates| dates.issued > now) {
            return Err(VerifyError::NotYetValid { item: *item, issued: *issued, now });
        }
        match self.dates.iter().find(|dates| dates.until < now) {
            None => Ok(false),
            Some(_) if expiry == Expiry::Published => Ok(true),
            Some(Dates { item, until, .. }) => Err(VerifyError::Expired { item: *item, until: *until, now }),
        }
    }

    /// Verifies the chain of a quote's PCK: PCK, authority, root. The authority has to be the one whose revocation
    /// list is here.
    pub(crate) fn check_pck_chain(&self, pem: &[u8], now: u64) -> Result<Certificate, VerifyError> {
        let chain = load_chain(Role::Pck, pem)?;
        let [pck, pck_ca, root] = <[Certificate; 3]>::try_from(chain)
            .map_err(|chain| VerifyError::ChainLength { role: Role::Pck, seen: chain.len(), expected: 3 })?;
        check_root(Role::Root, &root, &self.root, ECDSA)?;
        // Known certificates were verified with the collateral; only dates are left.
        if pck_ca != self.pck_ca {
            check_ca(&pck_ca)?;
            check_issued_by_root(Role::PckCa, &pck_ca, &self.root, &self.root_crl)?;
            if !self.pck_crl.names_issuer(&pck_ca) {
                return Err(VerifyError::CrlIssuer {
                    item: Item::PckCrl,
                    seen: self.pck_crl.issuer_cn(),
                    expected: pck_ca.subject_cn(),
                });
            }
            check_crl_signature(Item::PckCrl, &self.pck_crl, &pck_ca)?;
        }
        check_link(Role::Pck, &pck, &pck_ca, ECDSA)?;
        let in_pck = in_role(Role::Pck);
        pck.check_end_entity().map_err(in_pck)?;
        check_revocation(Role::Pck, &pck, &self.pck_crl)?;
        for (role, certificate) in [(Role::Root, &self.root), (Role::PckCa, &pck_ca), (Role::Pck, &pck)] {
            certificate.check_validity(now).map_err(in_role(role))?;
        }
        Ok(pck)
    }
}

pub(crate) fn in_role(role: Role) -> impl Fn(CertError) -> VerifyError + Copy {
    move |source| ChainError::Certificate { role, source }.into()
}

const fn dates(item: Item, issued: Timestamp, until: Timestamp) -> Dates {
    Dates { item, issued, until }
}

fn load_chain(role: Role, pem: &[u8]) -> Result<Vec<Certificate>, VerifyError> {
    Certificate::chain_from_pem(pem).map_err(in_role(role))
}

fn check_ca(certificate: &Certificate) -> Result<(), VerifyError> {
    certificate.check_authority().map_err(in_role(Role::PckCa))
}

/// The first of a chain of two; the second is the anchor's root. Nothing else is verified.
fn beside_root(role: Role, pem: &[u8], root: &Certificate) -> Result<Certificate, VerifyError> {
    let chain = load_chain(role, pem)?;
    let [certificate, named] = <[Certificate; 2]>::try_from(chain)
        .map_err(|chain| VerifyError::ChainLength { role, seen: chain.len(), expected: 2 })?;
    check_root(Role::Root, &named, root, ECDSA)?;
    Ok(certificate)
}

/// The root issued it and has not revoked it.
fn check_issued_by_root(
    role: Role,
    certificate: &Certificate,
    root: &Certificate,
    crl: &Crl,
) -> Result<(), VerifyError> {
    check_link(role, certificate, root, ECDSA)?;
    check_revocation(role, certificate, crl)
}

/// The list has to be about the certificate's issuer, so that none is left out by bringing another list.
fn check_revocation(role: Role, certificate: &Certificate, crl: &Crl) -> Result<(), VerifyError> {
    if !crl.covers(certificate) {
        let item = if role == Role::Pck { Item::PckCrl } else { Item::RootCrl };
        return Err(VerifyError::CrlIssuer {
            item,
            seen: crl.issuer_cn(),
            expected: certificate.issuer_cn(),
        });
    }
    if crl.revokes(certificate.serial()) {
        let serial = hex::encode(certificate.serial());
        return Err(ChainError::Revoked { role, serial, issuer: crl.issuer_cn() }.into());
    }
    Ok(())
}

fn crl(item: Item, bytes: &[u8], issuer: &Certificate) -> Result<Crl, VerifyError> {
    let crl = Crl::from_der_or_pem(bytes).map_err(|source| VerifyError::Crl { item, source })?;
    if !crl.names_issuer(issuer) {
        return Err(VerifyError::CrlIssuer { item, seen: crl.issuer_cn(), expected: issuer.subject_cn() });
    }
    check_crl_signature(item, &crl, issuer)?;
    Ok(crl)
}

fn check_crl_signature(item: Item, crl: &Crl, issuer: &Certificate) -> Result<(), VerifyError> {
    if !crl.signed_by(issuer, ECDSA).map_err(|source| VerifyError::Crl { item, source })? {
        return Err(VerifyError::CollateralSignature { item, signer: issuer.subject_cn() });
    }
    Ok(())
}

/// Verifies a document's signature over its exact bytes, then reads it.
fn document<T: DeserializeOwned>(
    item: Item,
    document: &SignedDocument,
    signer: &Certificate,
    (id, version, version_text): (&'static str, u32, &'static str),
) -> Result<T, VerifyError> {
    let in_signer = in_role(Role::TcbSigning);
    // The root issues authorities and this signer, nothing else.
    signer.check_end_entity().map_err(in_signer)?;
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, signer.p256_public_key().map_err(in_signer)?);
    if key.verify(document.text.as_bytes(), &document.signature).is_err() {
        return Err(VerifyError::CollateralSignature { item, signer: signer.subject_cn() });
    }
    let kind: Kind = read(item, &document.text)?;
    if kind.id != id {
        return Err(VerifyError::CollateralKind { item, field: "id", seen: kind.id, expected: id });
    }
    if kind.version != version {
        let seen = kind.version.to_string();
        return Err(VerifyError::CollateralKind { item, field: "version", seen, expected: version_text });
    }
    read(item, &document.text)
}

fn read<T: DeserializeOwned>(item: Item, text: &str) -> Result<T, VerifyError> {
    let what = if item == Item::TcbInfo { "TCB info" } else { "QE identity" };
    Ok(serde_json::from_str(text).map_err(|error| CollateralError::Json { what, why: error.to_string() })?)
}
