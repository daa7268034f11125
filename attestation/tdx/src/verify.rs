//! DCAP verification of a quote: certificate chain, QE, attestation key, signature, TCB levels.
//!
//! Source: the steps of Intel's DCAP quote verification. The status of the platform is a claim for the policy, as in
//! Trustee; what is refused here is a quote that nobody vouches for: no level fits, or its level is revoked.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use kata_cc_x509::{Certificate, ChainError};

use crate::error::{Part, Role, VerifyError};
use crate::pck::{PckCa, PckExtension};
use crate::quote::{QeReport, Quote, Trailing};
use crate::report::TdReportBody;
use crate::tcb::{self, QeIdentity, TcbInfo, TcbStatus, Timestamp};
use crate::trust::{AnchorKind, Expiry, TrustedCollateral, in_role};

/// How strict a verification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Time of the check, in seconds since 1970.
    pub now: u64,
    /// What happens when collateral has expired.
    pub expiry: Expiry,
    /// Whether zeros may follow the quote.
    pub trailing: Trailing,
}

impl Options {
    /// The strict ones, but for zeros after the quote, which several clouds' stacks write.
    #[must_use]
    pub const fn at(now: u64) -> Self {
        Self { now, expiry: Expiry::Refused, trailing: Trailing::Zeros }
    }
}

/// What collateral a quote needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CollateralKey {
    /// Kind of platform.
    pub fmspc: [u8; 6],
    /// Who issued the PCK certificate.
    pub ca: PckCa,
}

impl std::fmt::Display for CollateralKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FMSPC {} (PCK authority: {})", hex::encode_upper(self.fmspc), self.ca.name())
    }
}

impl CollateralKey {
    /// What a quote says it needs. Nothing is verified: wrong collateral is found out later.
    ///
    /// # Errors
    /// [`VerifyError::Chain`] when its PCK certificate cannot be read.
    pub fn of(quote: &Quote) -> Result<Self, VerifyError> {
        let in_pck = in_role(Role::Pck);
        let pck = Certificate::from_der_or_pem(&quote.certificates).map_err(in_pck)?;
        let ca = PckCa::of(&pck).ok_or_else(|| ChainError::Issuer {
            role: Role::Pck,
            seen: pck.issuer_cn(),
            expected: "Intel SGX PCK Platform CA".to_owned(),
        })?;
        Ok(Self { fmspc: PckExtension::of(&pck).map_err(in_pck)?.fmspc, ca })
    }
}

/// Level of one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// What it means.
    pub status: TcbStatus,
    /// When it came to be.
    pub date: Timestamp,
    /// Intel's advisories that concern it.
    pub advisory_ids: Vec<String>,
}

/// Levels of all parts, and what they make together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcbVerdict {
    /// All together.
    pub status: TcbStatus,
    /// Processor, firmware, loader.
    pub platform: Level,
    /// TDX module, where it has versions of its own.
    pub module: Option<Level>,
    /// Quoting enclave.
    pub qe: Level,
}

impl TcbVerdict {
    /// Advisories of all parts, each once, in order.
    #[must_use]
    pub fn advisory_ids(&self) -> Vec<&str> {
        let parts = [Some(&self.platform), self.module.as_ref(), Some(&self.qe)];
        let mut all: Vec<&str> =
            parts.into_iter().flatten().flat_map(|level| &level.advisory_ids).map(String::as_str).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// What the claims say about the collateral.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollateralFacts {
    /// Something has expired (only with [`Expiry::Published`]).
    pub expired: bool,
    /// Earliest date of issue of all pieces and certificates.
    pub earliest_issue: Timestamp,
    /// Latest.
    pub latest_issue: Timestamp,
    /// Earliest end.
    pub earliest_expiration: Timestamp,
    /// Number of the PCK authority's revocation list.
    pub pck_crl_number: Option<u64>,
    /// Number of the root's revocation list.
    pub root_crl_number: Option<u64>,
    /// Lower of the two documents' evaluation numbers.
    pub tcb_evaluation_data_number: u32,
    /// Intel's id of the root's key.
    pub root_key_id: String,
}

/// A quote that its platform and Intel vouch for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The quote.
    pub quote: Quote,
    /// What the chain ends in; says whether this is hardware.
    pub anchor: AnchorKind,
    /// What the PCK certificate says about the platform.
    pub pck: PckExtension,
    /// Levels.
    pub tcb: TcbVerdict,
    /// The collateral.
    pub collateral: CollateralFacts,
}

/// Verifies a quote with trusted collateral.
///
/// # Errors
/// [`VerifyError`] names the step that failed, what was seen and what was expected.
pub fn verify(
    quote: &[u8],
    collateral: &TrustedCollateral,
    options: &Options,
) -> Result<Verified, VerifyError> {
    let quote = Quote::parse(quote, options.trailing)?;
    let expired = collateral.check_dates(options.now, options.expiry)?;
    let pck = collateral.check_pck_chain(&quote.certificates, options.now)?;
    check_signatures(&quote, &pck)?;
    let extension = PckExtension::of(&pck).map_err(in_role(Role::Pck))?;
    let info = collateral.tcb_info();
    check_platform(&extension, info)?;
    let qe = qe_level(&quote.qe_report, collateral.qe_identity())?;
    let tcb = evaluate(&quote.body, &extension, info, qe)?;
    let collateral_facts = facts(collateral, &pck, expired);
    Ok(Verified { quote, anchor: collateral.anchor(), pck: extension, tcb, collateral: collateral_facts })
}

/// PCK signs the QE's report, the QE vouches for the attestation key, that signs the quote.
fn check_signatures(quote: &Quote, pck: &Certificate) -> Result<(), VerifyError> {
    let pck_key = pck.p256_public_key().map_err(in_role(Role::Pck))?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, pck_key)
        .verify(&quote.qe_report.bytes, &quote.qe_report_signature)
        .map_err(|_| VerifyError::QeReportSignature)?;
    let bound = digest(&SHA256, &[&quote.attestation_key[..], &quote.qe_auth_data].concat());
    let mut expected = [0; 64];
    for (to, from) in expected.iter_mut().zip(bound.as_ref()) {
        *to = *from;
    }
    if quote.qe_report.report_data != expected {
        return Err(VerifyError::QeBinding {
            seen: hex::encode(quote.qe_report.report_data),
            expected: hex::encode(expected),
        });
    }
    let point = [&[4], &quote.attestation_key[..]].concat();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .verify(&quote.signed, &quote.signature)
        .map_err(|_| VerifyError::QuoteSignature)
}

/// The TCB info is about this kind of platform.
fn check_platform(pck: &PckExtension, info: &TcbInfo) -> Result<(), VerifyError> {
    let same = |field, seen: &[u8], expected: &[u8]| {
        if seen == expected {
            return Ok(());
        }
        Err(VerifyError::OtherPlatform { field, seen: hex::encode(seen), expected: hex::encode(expected) })
    };
    same("FMSPC", &pck.fmspc, &info.fmspc)?;
    same("PCE-ID", &pck.pce_id, &info.pce_id)
}

fn differs(part: Part, field: &'static str, seen: &[u8], expected: &[u8]) -> VerifyError {
    VerifyError::Identity { part, field, seen: hex::encode(seen), expected: hex::encode(expected) }
}

/// The quoting enclave is Intel's, and its level.
fn qe_level(report: &QeReport, identity: &QeIdentity) -> Result<Level, VerifyError> {
    let part = Part::Qe;
    if report.mr_signer != identity.mrsigner {
        return Err(differs(part, "MRSIGNER", &report.mr_signer, &identity.mrsigner));
    }
    if report.isv_prod_id != identity.isvprodid {
        let (seen, expected) = (report.isv_prod_id.to_string(), identity.isvprodid.to_string());
        return Err(VerifyError::Identity { part, field: "ISVPRODID", seen, expected });
    }
    if !tcb::agree(&report.misc_select, &identity.miscselect, &identity.miscselect_mask) {
        return Err(differs(part, "MISCSELECT", &report.misc_select, &identity.miscselect));
    }
    if !tcb::agree(&report.attributes, &identity.attributes, &identity.attributes_mask) {
        return Err(differs(part, "ATTRIBUTES", &report.attributes, &identity.attributes));
    }
    isv_level(part, &identity.tcb_levels, report.isv_svn)
}

fn isv_level(part: Part, levels: &[tcb::IsvLevel], svn: u16) -> Result<Level, VerifyError> {
    let level = tcb::isv_level(levels, svn)
        .ok_or_else(|| VerifyError::NoTcbLevel { part, seen: format!("version {svn}") })?;
    not_revoked(part, level.tcb_status, level.tcb_date, &level.advisory_ids)
}

fn not_revoked(
    part: Part,
    status: TcbStatus,
    date: Timestamp,
    advisory_ids: &[String],
) -> Result<Level, VerifyError> {
    if status == TcbStatus::Revoked {
        let advisories = match advisory_ids {
            [] => "no advisory is named".to_owned(),
            ids => ids.join(", "),
        };
        return Err(VerifyError::TcbRevoked { part, advisories });
    }
    Ok(Level { status, date, advisory_ids: advisory_ids.to_vec() })
}

/// The module is Intel's, and its level, if it has versions.
fn module_level(
    body: &TdReportBody,
    tee_tcb_svn: &[u8; 16],
    info: &TcbInfo,
) -> Result<Option<Level>, VerifyError> {
    let part = Part::Module;
    let version = tcb::module_version(tee_tcb_svn);
    let identity = match version {
        0 => None,
        version => Some(info.module(version).ok_or_else(|| VerifyError::Identity {
            part,
            field: "version",
            seen: tcb::module_id(version),
            expected: "one that the TCB info names".to_owned(),
        })?),
    };
    let module = identity.map_or(&info.tdx_module, |identity| &identity.module);
    if body.mrsigner_seam != module.mrsigner {
        return Err(differs(part, "MRSIGNERSEAM", &body.mrsigner_seam, &module.mrsigner));
    }
    if !tcb::agree(&body.seam_attributes, &module.attributes, &module.attributes_mask) {
        return Err(differs(part, "SEAMATTRIBUTES", &body.seam_attributes, &module.attributes));
    }
    let [svn, ..] = *tee_tcb_svn;
    identity.map(|identity| isv_level(part, &identity.tcb_levels, svn.into())).transpose()
}

/// Levels at one set of versions.
fn levels(
    body: &TdReportBody,
    tee_tcb_svn: &[u8; 16],
    pck: &PckExtension,
    info: &TcbInfo,
    qe: &Level,
) -> Result<TcbVerdict, VerifyError> {
    let module = module_level(body, tee_tcb_svn, info)?;
    let part = Part::Platform;
    let level = info.level(&pck.components, pck.pce_svn, tee_tcb_svn).ok_or_else(|| {
        let (components, tdx) = (hex::encode(pck.components), hex::encode(tee_tcb_svn));
        let seen = format!("components {components}, PCESVN {}, TEE_TCB_SVN {tdx}", pck.pce_svn);
        VerifyError::NoTcbLevel { part, seen }
    })?;
    let platform = not_revoked(part, level.tcb_status, level.tcb_date, &level.advisory_ids)?;
    let with_module = module.iter().fold(platform.status, |status, module| status.converge(module.status));
    Ok(TcbVerdict { status: with_module.converge(qe.status), platform, module, qe: qe.clone() })
}

/// Levels of the platform. When those at launch are out of date and those that run now (TDX 1.5) are not, all that is
/// left to do is to start the guest again.
fn evaluate(
    body: &TdReportBody,
    pck: &PckExtension,
    info: &TcbInfo,
    qe: Level,
) -> Result<TcbVerdict, VerifyError> {
    let mut verdict = levels(body, &body.tee_tcb_svn, pck, info, &qe)?;
    if let (true, Some(td15)) = (verdict.status.is_out_of_date(), &body.td15) {
        let now = levels(body, &td15.tee_tcb_svn2, pck, info, &qe)?.status;
        if !now.is_out_of_date() {
            let configure = verdict.status.needs_configuration() || now.needs_configuration();
            verdict.status = match configure {
                true => TcbStatus::TdRelaunchAdvisedConfigurationNeeded,
                false => TcbStatus::TdRelaunchAdvised,
            };
        }
    }
    Ok(verdict)
}

fn facts(collateral: &TrustedCollateral, pck: &Certificate, expired: bool) -> CollateralFacts {
    let certificates = [pck, collateral.pck_ca(), collateral.root()];
    let pieces = collateral.dates().iter().map(|dates| (dates.issued, dates.until));
    let all = certificates
        .into_iter()
        .map(|cert| (Timestamp(cert.not_before()), Timestamp(cert.not_after())))
        .chain(pieces);
    let mut dates = (Timestamp(u64::MAX), Timestamp(0), Timestamp(u64::MAX));
    for (issued, until) in all {
        dates = (dates.0.min(issued), dates.1.max(issued), dates.2.min(until));
    }
    let (tcb, qe) = (collateral.tcb_info(), collateral.qe_identity());
    CollateralFacts {
        expired,
        earliest_issue: dates.0,
        latest_issue: dates.1,
        earliest_expiration: dates.2,
        pck_crl_number: collateral.pck_crl().number(),
        root_crl_number: collateral.root_crl().number(),
        tcb_evaluation_data_number: tcb.tcb_evaluation_data_number.min(qe.tcb_evaluation_data_number),
        root_key_id: collateral.root_key_id(),
    }
}
