//! From certificates to a verified chain: the part of a verification that does not depend on the report.
//!
//! ARK → ASK or ASVK → VCEK or VLEK by name and signature, the root being the anchor's, each valid at the time of the
//! check, none revoked by the lists given. A [`VerifiedChain`] can be kept and used for every report that the same key
//! signs ([`crate::ChainCache`]).
//!
//! Sources: AMD 57230, chapters 3 (certificates) and 4 (revocation lists); RFC 5280.

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, ParsedPublicKey};
use kata_cc_x509::{ChainError, Crl, check_link, check_root};

use crate::certs::{AMD_SIGNATURE, CertError, Certificate, VekExtensions};
use crate::error::{Role, VekKind, VerifyError};
use crate::product::Product;
use crate::roots;

/// Most revocation lists that are taken with one chain: one of the root, one of the intermediate.
pub const MAX_CRLS: usize = 2;

/// The root that a chain has to end in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustAnchor {
    /// AMD's root of a product, built in.
    Amd(Product),
    /// The root of a simulated platform; has to be configured.
    Simulated(Box<Certificate>),
}

/// A [`TrustAnchor`] by reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor<'a> {
    /// AMD's root of a product, built in.
    Amd(Product),
    /// The root of a simulated platform.
    Simulated(&'a Certificate),
}

impl<'a> From<&'a TrustAnchor> for Anchor<'a> {
    fn from(anchor: &'a TrustAnchor) -> Self {
        match anchor {
            TrustAnchor::Amd(product) => Self::Amd(*product),
            TrustAnchor::Simulated(ark) => Self::Simulated(ark),
        }
    }
}

/// Which kind of anchor a report was verified under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AnchorKind {
    /// AMD's hardware.
    Amd(Product),
    /// A simulated platform.
    Simulated,
}

impl TrustAnchor {
    /// The kind, without the certificate.
    #[must_use]
    pub fn kind(&self) -> AnchorKind {
        Anchor::from(self).kind()
    }
}

impl Anchor<'_> {
    /// The kind, without the certificate.
    #[must_use]
    pub const fn kind(self) -> AnchorKind {
        match self {
            Self::Amd(product) => AnchorKind::Amd(product),
            Self::Simulated(_) => AnchorKind::Simulated,
        }
    }

    /// DER of the root.
    pub(crate) fn der(&self) -> &[u8] {
        match self {
            Self::Amd(product) => roots::product_certs(*product).ark,
            Self::Simulated(ark) => ark.der(),
        }
    }

    fn ark(self) -> Result<Certificate, VerifyError> {
        match self {
            Self::Amd(product) => roots::ark(product).map_err(in_role(Role::Ark)),
            Self::Simulated(ark) => Ok(ark.clone()),
        }
    }
}

/// Certificates that came with a report, each DER (or PEM). What is missing and public is built in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endorsements {
    /// VCEK or VLEK.
    pub vek: Vec<u8>,
    /// ASK or ASVK.
    pub ask: Option<Vec<u8>>,
    /// Root; compared with the anchor, never trusted.
    pub ark: Option<Vec<u8>>,
}

/// What revocation lists are given and demanded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revocation<'a> {
    /// Lists (DER or PEM), at most [`MAX_CRLS`]: the root's, for the intermediate; the intermediate's, for the endorsement key.
    pub lists: &'a [&'a [u8]],
    /// Refuse a chain for which no list of the root is given.
    pub required: bool,
    /// Refuse a list that has ended. Without it, what an ended list revokes is still refused, and
    /// [`CrlStatus::Expired`] tells that it had ended.
    pub refuse_expired: bool,
}

/// What is known about revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CrlStatus {
    /// No list of the root was given.
    Absent,
    /// A list of the root that is in force names none of the chain.
    Checked,
    /// A list of the root that has ended names none of the chain.
    Expired,
}

/// A chain that was verified, and the key that it endorses.
#[derive(Clone)]
pub struct VerifiedChain {
    anchor: AnchorKind,
    kind: VekKind,
    extensions: VekExtensions,
    key: ParsedPublicKey,
    crl: CrlStatus,
    /// From when until when all of it holds, in seconds since 1970.
    valid: (u64, u64),
}

impl std::fmt::Debug for VerifiedChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerifiedChain")
            .field("anchor", &self.anchor)
            .field("kind", &self.kind)
            .field("extensions", &self.extensions)
            .field("crl", &self.crl)
            .field("valid", &self.valid)
            .finish_non_exhaustive()
    }
}

impl VerifiedChain {
    /// Verifies a chain. `now` in seconds since 1970.
    ///
    /// # Errors
    /// [`VerifyError`] names the certificate or list and what is wrong with it.
    pub fn verify(
        endorsements: &Endorsements,
        anchor: Anchor<'_>,
        revocation: &Revocation<'_>,
        now: u64,
    ) -> Result<Self, VerifyError> {
        let vek = load(Role::Vek, &endorsements.vek)?;
        let extensions = VekExtensions::of(&vek).map_err(in_role(Role::Vek))?;
        let kind = vek_kind(&extensions)?;
        let ark = anchor.ark()?;
        if let Some(bytes) = &endorsements.ark {
            compare_root(bytes, &ark)?;
        }
        let ask = intermediate(endorsements, anchor, kind)?;
        let mut valid = Validity::ALWAYS;
        verify_authorities(&ark, &ask, now)?;
        verify_link(Role::Vek, &vek, &ask, now)?;
        for certificate in [&ark, &ask, &vek] {
            valid.narrow(certificate.not_before(), certificate.not_after());
        }
        let crl = check_revocation(revocation, &ark, &ask, &vek, now, &mut valid)?;
        let point = vek.p384_public_key().map_err(in_role(Role::Vek))?;
        // A point that is not on the curve cannot have signed anything.
        let key = ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point)
            .map_err(|_| VerifyError::Signature { kind })?;
        Ok(Self { anchor: anchor.kind(), kind, extensions, key, crl, valid: (valid.from, valid.until) })
    }

    /// Whether everything in it still holds at `now`: certificates valid, lists as they were.
    #[must_use]
    pub const fn holds_at(&self, now: u64) -> bool {
        self.valid.0 <= now && now <= self.valid.1
    }

    /// What the chain ends in.
    #[must_use]
    pub const fn anchor(&self) -> AnchorKind {
        self.anchor
    }

    /// Kind of the endorsement key.
    #[must_use]
    pub const fn kind(&self) -> VekKind {
        self.kind
    }

    /// What the endorsement key's certificate says.
    #[must_use]
    pub const fn extensions(&self) -> &VekExtensions {
        &self.extensions
    }

    /// What is known about revocation.
    #[must_use]
    pub const fn crl(&self) -> CrlStatus {
        self.crl
    }

    /// Whether the key made this signature (`r || s`, big-endian).
    pub(crate) fn signed(&self, message: &[u8], signature: &[u8; 96]) -> bool {
        self.key.verify_sig(message, signature).is_ok()
    }
}

/// A time span that gets smaller.
struct Validity {
    from: u64,
    until: u64,
}

impl Validity {
    const ALWAYS: Self = Self { from: 0, until: u64::MAX };

    fn narrow(&mut self, from: u64, until: u64) {
        self.from = self.from.max(from);
        self.until = self.until.min(until);
    }
}

fn in_role(role: Role) -> impl Fn(CertError) -> VerifyError {
    move |source| ChainError::Certificate { role, source }.into()
}

fn load(role: Role, bytes: &[u8]) -> Result<Certificate, VerifyError> {
    if bytes.is_empty() {
        return Err(VerifyError::MissingCertificate { role });
    }
    Certificate::from_der_or_pem(bytes).map_err(in_role(role))
}

fn vek_kind(extensions: &VekExtensions) -> Result<VekKind, VerifyError> {
    match (&extensions.hw_id, &extensions.csp_id) {
        (Some(_), None) => Ok(VekKind::Vcek),
        (None, Some(_)) => Ok(VekKind::Vlek),
        (Some(_), Some(_)) => Err(VerifyError::VekForm { seen: "both" }),
        (None, None) => Err(VerifyError::VekForm { seen: "neither" }),
    }
}

fn intermediate(
    endorsements: &Endorsements,
    anchor: Anchor<'_>,
    kind: VekKind,
) -> Result<Certificate, VerifyError> {
    match (&endorsements.ask, anchor) {
        (Some(bytes), _) => load(Role::Ask, bytes),
        (None, Anchor::Amd(product)) => {
            let certs = roots::product_certs(product);
            load(Role::Ask, if kind == VekKind::Vcek { certs.ask } else { certs.asvk })
        }
        (None, Anchor::Simulated(_)) => Err(VerifyError::MissingCertificate { role: Role::Ask }),
    }
}

/// The evidence's root is compared, never trusted.
fn compare_root(bytes: &[u8], expected: &Certificate) -> Result<(), VerifyError> {
    if bytes == expected.der() {
        return Ok(());
    }
    Ok(check_root(Role::Ark, &load(Role::Ark, bytes)?, expected, AMD_SIGNATURE)?)
}

fn verify_authorities(ark: &Certificate, ask: &Certificate, now: u64) -> Result<(), VerifyError> {
    ark.check_authority().map_err(in_role(Role::Ark))?;
    ask.check_authority().map_err(in_role(Role::Ask))?;
    verify_link(Role::Ark, ark, ark, now)?;
    verify_link(Role::Ask, ask, ark, now)
}

fn verify_link(role: Role, cert: &Certificate, issuer: &Certificate, now: u64) -> Result<(), VerifyError> {
    check_link(role, cert, issuer, AMD_SIGNATURE)?;
    cert.check_validity(now).map_err(in_role(role))
}

/// Applies the lists; `valid` ends where a list's state would change.
fn check_revocation(
    revocation: &Revocation<'_>,
    ark: &Certificate,
    ask: &Certificate,
    vek: &Certificate,
    now: u64,
    valid: &mut Validity,
) -> Result<CrlStatus, VerifyError> {
    let mut status = CrlStatus::Absent;
    for bytes in revocation.lists.iter().take(MAX_CRLS) {
        let list = Crl::from_der_or_pem(bytes)?;
        let expired = check_list(&list, revocation.refuse_expired, ark, ask, now)?;
        if expired {
            valid.narrow(list.next_update().saturating_add(1), u64::MAX);
        } else {
            valid.narrow(list.this_update(), list.next_update());
        }
        let revoked = |role, certificate: &Certificate| ChainError::Revoked {
            role,
            serial: hex::encode(certificate.serial()),
            issuer: list.issuer_cn(),
        };
        if list.names_issuer(ark) {
            status = if expired { CrlStatus::Expired } else { CrlStatus::Checked };
            for (role, certificate) in [(Role::Ark, ark), (Role::Ask, ask)] {
                if list.revokes(certificate.serial()) {
                    return Err(revoked(role, certificate).into());
                }
            }
        }
        // All endorsement keys have serial number 0 so far: in the root's list, which has the root's numbers, that
        // says nothing; in a list of their own issuer it revokes them all, and is meant to.
        let own_issuer = list.covers(vek);
        let numbered = vek.serial().iter().any(|byte| *byte != 0);
        if (own_issuer || numbered) && list.revokes(vek.serial()) {
            return Err(revoked(Role::Vek, vek).into());
        }
    }
    if status == CrlStatus::Absent && revocation.required {
        return Err(VerifyError::CrlMissing { issuer: ark.subject_cn() });
    }
    Ok(status)
}

/// Issuer, signature and time of a list; true when it has ended and that is tolerated.
fn check_list(
    list: &Crl,
    refuse_expired: bool,
    ark: &Certificate,
    ask: &Certificate,
    now: u64,
) -> Result<bool, VerifyError> {
    let Some(issuer) = [ark, ask].into_iter().find(|issuer| list.names_issuer(issuer)) else {
        return Err(VerifyError::CrlIssuer {
            seen: list.issuer_cn(),
            expected: format!("{}' or '{}", ark.subject_cn(), ask.subject_cn()),
        });
    };
    if !list.signed_by(issuer, AMD_SIGNATURE)? {
        return Err(VerifyError::CrlSignature { issuer: issuer.subject_cn() });
    }
    let expired = now > list.next_update();
    if !expired || refuse_expired {
        list.check_validity(now)?;
    }
    Ok(expired)
}
