//! The plugin `ca`: short-lived certificates for attested guests.
//!
//! | path | method | who | |
//! |---|---|---|---|
//! | `certificate` | POST (PKCS#10 as PEM or DER), `?hours=` | guest | chain, PEM |
//! | `certificate` | GET `?csr=` (base64url DER) `&hours=` | guest | the same, encrypted: what guest components can ask for |
//! | `chain` | GET | anyone | the authority's chain, PEM |
//! | `crl` | GET | anyone | revocation list, DER |
//! | `certificates`, `certificates/{serial}` | GET | admin | what was issued |
//! | `revoke` | POST `{"serial", "reason"}` | admin | |
//!
//! A key is certified when the evidence bound it: it is the `tee-pubkey` of the caller's token, or its digest is in the
//! runtime data ([`CaConfig::key_digest_paths`]). The caller shows that it has the private half by the request's signature. Names are
//! those that the configuration's templates give for the claims. TEE, verdict and a digest of the claims are in the certificate.
//!
//! Who asks for the same again, e.g. because the answer was lost, gets the same certificate ([`request`]).

mod authority;
mod config;
mod csr;
mod der;
mod record;
mod request;
mod san;
mod signer;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use axum::http::Method;
use kata_cc_attestation_service::now;
use kata_cc_kbs_protocol::{Tee, TeePubKey, base64_standard, from_base64_standard, from_base64_url};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

pub(crate) use config::{CaConfig, NAME};

use self::authority::{Authority, Evidence, Leaf, Revoked, pem, serial};
use self::csr::{Csr, CsrKey, SanName};
use self::record::{Answer, Record, Records, Revocation, Stored};
use self::request::{Request, guest};
use self::san::Template;
use self::signer::Signer;
use super::registry::{Context, SetupError};
use super::request::cut;
use super::{Access, Caller, Plugin, PluginError, PluginRequest, PluginResponse};

/// Seconds that a signed revocation list is given out before another is made. A revocation ends it at once.
const LIST_SECONDS: i64 = 60;
/// How often a certificate is made when the same request is answered elsewhere at the same time.
const TRIES: u32 = 3;
/// Most serial numbers in a listing.
const MAX_LISTED: usize = 10_000;

/// The plugin.
#[derive(Debug)]
pub(crate) struct Ca {
    config: CaConfig,
    templates: Vec<Template>,
    authority: Authority,
    records: Records,
    /// When it was made, and the list.
    list: Mutex<Option<(i64, Vec<u8>)>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RevokeRequest {
    serial: String,
    #[serde(default)]
    reason: Reason,
}

/// Reasons of RFC 5280, 5.3.1, that go for an end entity.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Reason {
    #[default]
    Unspecified,
    KeyCompromise,
    AffiliationChanged,
    Superseded,
    CessationOfOperation,
    PrivilegeWithdrawn,
}

impl Reason {
    fn code(self) -> u8 {
        match self {
            Self::Unspecified => 0,
            Self::KeyCompromise => 1,
            Self::AffiliationChanged => 3,
            Self::Superseded => 4,
            Self::CessationOfOperation => 5,
            Self::PrivilegeWithdrawn => 9,
        }
    }
}

impl Ca {
    /// Opens key and certificate, making what is not there.
    pub(crate) async fn new(config: CaConfig, context: &Context) -> Result<Self, SetupError> {
        let templates = config.check()?;
        let signer = match (&config.token_key_label, &context.token) {
            (None, _) => Signer::from_file(&context.path(&config.key_path))?,
            (Some(label), Some(token)) => Signer::from_token(Arc::clone(token), label).await?,
            (Some(_), None) => {
                return Err(config::value("token_key_label needs [[plugins]] name = \"pkcs11\""));
            }
        };
        let path = context.path(&config.certificate_path);
        let authority = Authority::load(&config, signer, &path, now()).await?;
        let records = Records::new(Arc::clone(&context.store));
        Ok(Self { config, templates, authority, records, list: Mutex::default() })
    }

    async fn certificate(
        &self,
        request: &PluginRequest,
        claims: (&Value, &[u8; 32]),
        key: &TeePubKey,
    ) -> Result<PluginResponse, PluginError> {
        let (claims, claims_digest) = claims;
        let bad = |why: String| PluginError::BadRequest(why);
        let csr = if request.method == Method::GET {
            request.only(&["csr", "hours"])?;
            let text =
                request.query.get("csr").ok_or_else(|| bad("csr (base64url) is missing".to_owned()))?;
            from_base64_url(text).ok_or_else(|| bad("csr is not base64url".to_owned()))?
        } else {
            request.only(&["hours"])?;
            request.body.to_vec()
        };
        let csr = Csr::read(&csr).map_err(|e| bad(e.to_string()))?;
        let hours = self.hours(request)?;
        self.bound(&csr, claims, key)?;
        let evidence = self.evidence(claims, *claims_digest)?;
        let names = self.names(&csr, claims)?;

        let chain = self.authority.chain();
        let asked = Request { key, csr: &csr, names: &names, hours, evidence: &evidence, chain }.digest()?;
        let guest = guest(claims, &evidence.tee, key)?;
        for _ in 0..TRIES {
            let now = now();
            let before = self.records.answer(&asked).await?;
            if let Some((_, answer)) = &before
                && self.is_good(answer, now).await?
            {
                return self.given_again(answer);
            }
            let end = now.saturating_add(i64::from(hours) * 3600).min(self.authority.end());
            let place = self.place(&guest, now).await?;
            let leaf = Leaf { csr: &csr, names: &names, evidence: &evidence, now, end };
            let issued = self.issue(leaf, &asked, &place, before.as_ref().map(|(stored, _)| stored)).await;
            match issued {
                Ok(Some(response)) => return Ok(response),
                // The same request was answered meanwhile, here or by another replica: that is the answer.
                Ok(None) => self.records.free(&place).await?,
                Err(error) => {
                    self.records.free(&place).await?;
                    return Err(error);
                }
            }
        }
        Err(PluginError::Busy(NAME))
    }

    /// Whether a certificate is given to who asks for the same again: not when it was revoked, nor when more than half of its time is
    /// over, since then it is to be renewed.
    async fn is_good(&self, answer: &Answer, now: i64) -> Result<bool, PluginError> {
        let half = answer.issued.saturating_add(answer.end.saturating_sub(answer.issued) / 2);
        Ok(now < half && !self.records.is_revoked(answer.end, &answer.serial).await?)
    }

    fn given_again(&self, answer: &Answer) -> Result<PluginResponse, PluginError> {
        let der = from_base64_standard(&answer.certificate);
        let der = der.ok_or_else(|| PluginError::Internal("a stored certificate is no base64".to_owned()))?;
        let details = json!({"certificate_digest": answer.certificate_digest, "end": answer.end});
        Ok(self.response(&der).with_event("certificate-given-again", answer.serial.clone(), details))
    }

    fn response(&self, certificate: &[u8]) -> PluginResponse {
        let chain = format!("{}{}", pem("CERTIFICATE", certificate), self.authority.chain());
        PluginResponse::ok("application/pem-certificate-chain", chain.into_bytes())
    }

    /// A place for one more certificate of this guest: who asks again and again would fill the store, and hold names for long.
    async fn place(&self, guest: &str, now: i64) -> Result<String, PluginError> {
        let most = self.config.per_guest;
        let place = self.records.place(guest, most, now).await?;
        place.ok_or_else(|| {
            PluginError::Denied(format!(
                "this guest has {most} certificates that are valid (per_guest of the plugin ca): use one of them, or wait for the end of one"
            ))
        })
    }

    /// Makes a certificate and remembers it; `None` when another was made `before` it for the same request.
    async fn issue(
        &self,
        leaf: Leaf<'_>,
        asked: &str,
        place: &str,
        before: Option<&Stored>,
    ) -> Result<Option<PluginResponse>, PluginError> {
        let serial = serial()?;
        let Leaf { names, evidence, now, end, .. } = leaf;
        let certificate = self.authority.issue(&self.config, &serial, &leaf).await?;
        let record = Record {
            serial: hex::encode(&serial),
            names: names.iter().map(ToString::to_string).collect(),
            tee: evidence.tee.clone(),
            simulated: evidence.simulated,
            status: evidence.status.clone(),
            claims_digest: hex::encode(evidence.claims_digest),
            certificate_digest: hex::encode(digest(&SHA256, &certificate)),
            request: asked.to_owned(),
            issued: now,
            end,
        };
        let answer = Answer {
            serial: record.serial.clone(),
            certificate_digest: record.certificate_digest.clone(),
            issued: now,
            end,
            certificate: base64_standard(&certificate),
        };
        // The place first: a certificate without one would not count.
        self.records.hold(place, end).await?;
        // What is not remembered could not be revoked, so it does not leave.
        if !self.records.add(&record, &answer, before).await? {
            return Ok(None);
        }
        let details = serde_json::to_value(&record).unwrap_or_default();
        Ok(Some(self.response(&certificate).with_event("certificate-issued", record.serial, details)))
    }

    fn hours(&self, request: &PluginRequest) -> Result<u32, PluginError> {
        let Some(text) = request.query.get("hours") else { return Ok(self.config.default_hours) };
        let hours = text.parse::<u32>().ok().filter(|hours| (1..=self.config.max_hours).contains(hours));
        hours.ok_or_else(|| {
            let most = self.config.max_hours;
            PluginError::BadRequest(format!("hours must be 1 to {most} (max_hours), seen {:?}", cut(text)))
        })
    }

    /// Whether the evidence bound this key.
    fn bound(&self, csr: &Csr, claims: &Value, key: &TeePubKey) -> Result<(), PluginError> {
        if same_key(&csr.key, key) {
            return Ok(());
        }
        let seen = digest(&SHA256, &csr.spki);
        for path in &self.config.key_digest_paths {
            let text = claims.pointer(path).and_then(Value::as_str);
            let named = text.and_then(|text| hex::decode(text).ok().or_else(|| from_base64_url(text)));
            if named.as_deref() == Some(seen.as_ref()) {
                return Ok(());
            }
        }
        Err(PluginError::Denied(format!(
            "the key of the signing request (SHA-256 {}) is neither the tee-pubkey of the token nor named in its runtime data: \
             only a key that was bound in evidence is certified",
            hex::encode(seen)
        )))
    }

    fn evidence(&self, claims: &Value, claims_digest: [u8; 32]) -> Result<Evidence, PluginError> {
        let cpu = claims.pointer("/submods/cpu0").unwrap_or(&Value::Null);
        let members = cpu["ear.veraison.annotated-evidence"].as_object();
        let tees: Vec<Tee> =
            members.into_iter().flatten().filter_map(|(name, _)| Tee::from_name(name)).collect();
        let [tee] = tees[..] else {
            let why = format!("the token names {} TEEs in submods.cpu0, one is needed", tees.len());
            return Err(PluginError::Denied(why));
        };
        let name = tee.name();
        let simulated = name.starts_with("sim-") || name.starts_with("sample");
        if simulated && !self.config.allow_simulated_tee {
            return Err(PluginError::Denied(format!(
                "the evidence is {name}, which protects nothing, and allow_simulated_tee of the plugin ca is not set"
            )));
        }
        let status = cpu["ear.status"].as_str().unwrap_or("none").chars().take(32).collect();
        Ok(Evidence { tee: name.to_owned(), status, simulated, claims_digest })
    }

    /// Names of the certificate: those that are asked for, all of which must be allowed; all that are allowed when none is.
    fn names(&self, csr: &Csr, claims: &Value) -> Result<Vec<SanName>, PluginError> {
        let mut allowed = Vec::new();
        for template in &self.templates {
            let name = template.render(claims).map_err(|e| PluginError::Denied(e.to_string()))?;
            allowed.extend(name.filter(|name| !allowed.contains(name)));
        }
        if csr.names.is_empty() {
            return Ok(allowed);
        }
        if let Some(name) = csr.names.iter().find(|name| !allowed.contains(name)) {
            let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
            return Err(PluginError::Denied(format!(
                "the signing request asks for {}; this guest may have: [{}]",
                name.to_string().chars().take(300).collect::<String>(),
                allowed.join(", ")
            )));
        }
        Ok(csr.names.clone())
    }

    async fn revocation_list(&self) -> Result<Vec<u8>, PluginError> {
        let mut list = self.list.lock().await;
        let now = now();
        if let Some((made, list)) = list.as_ref()
            && (0..LIST_SECONDS).contains(&(now - made))
        {
            return Ok(list.clone());
        }
        let hours = i64::from(self.config.crl_hours);
        // A revoked certificate stays on the list until one list after its end (RFC 5280, 3.3).
        let over = now - 2 * hours * 3600;
        self.records.prune(now - i64::from(self.config.record_days) * 86400, over).await?;
        let mut revoked = Vec::new();
        for revocation in self.records.revocations().await? {
            let serial = hex::decode(&revocation.serial).map_err(|e| PluginError::Internal(e.to_string()))?;
            revoked.push(Revoked { serial, at: revocation.at, reason: revocation.reason });
        }
        // Numbers must grow from list to list, also over restarts and replicas: the clock does.
        let number =
            u64::try_from(time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
        let made = self.authority.revocation_list(&revoked, number, now, now + hours * 3600).await?;
        *list = Some((now, made.clone()));
        Ok(made)
    }

    async fn revoke(&self, request: &PluginRequest, role: &str) -> Result<PluginResponse, PluginError> {
        let body: RevokeRequest = serde_json::from_slice(&request.body).map_err(|e| {
            PluginError::BadRequest(format!("body: {e}; expected {{\"serial\", \"reason\"}}"))
        })?;
        let record = self.records.find(&read_serial(&body.serial)?).await?;
        let revocation = Revocation { serial: record.serial.clone(), at: now(), reason: body.reason.code() };
        self.records.revoke(&record, &revocation).await?;
        *self.list.lock().await = None;
        let details = json!({"reason": format!("{:?}", body.reason), "role": role});
        Ok(PluginResponse::empty().with_event("certificate-revoked", record.serial, details))
    }

    async fn show(&self, serial: &str) -> Result<PluginResponse, PluginError> {
        let record = self.records.find(&read_serial(serial)?).await?;
        let revoked = self.records.revocations().await?.into_iter().find(|r| r.serial == record.serial);
        let mut shown = serde_json::to_value(&record).map_err(|e| PluginError::Internal(e.to_string()))?;
        shown["revoked"] = json!(revoked.map(|revocation| revocation.at));
        Ok(PluginResponse::ok("application/json", shown.to_string().into_bytes()))
    }
}

/// 32 hexadecimal digits; colons, as other tools print them, do not matter.
fn read_serial(text: &str) -> Result<String, PluginError> {
    let serial: String = text.chars().take(64).filter(|c| *c != ':').collect::<String>().to_ascii_lowercase();
    if serial.len() == 32 && serial.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(serial);
    }
    Err(PluginError::BadRequest(format!("a serial number is 32 hexadecimal digits, seen {:?}", cut(text))))
}

fn same_key(csr: &CsrKey, token: &TeePubKey) -> bool {
    let bytes = |text: &str| from_base64_url(text).unwrap_or_default();
    match (csr, token) {
        (CsrKey::Ec { curve, point }, TeePubKey::EC { crv, x, y, .. }) => {
            crv == curve && *point == [&[4][..], &bytes(x), &bytes(y)].concat()
        }
        (CsrKey::Rsa { n, e }, TeePubKey::RSA { n: token_n, e: token_e, .. }) => {
            let number = |text: &str| bytes(text).into_iter().skip_while(|b| *b == 0).collect::<Vec<u8>>();
            *n == number(token_n) && *e == number(token_e)
        }
        _ => false,
    }
}

#[async_trait]
impl Plugin for Ca {
    fn name(&self) -> &'static str {
        NAME
    }

    fn validate_auth(&self, request: &PluginRequest) -> Result<Access, PluginError> {
        let (access, allowed) = match request.segments()[..] {
            ["certificate"] => (Access::Guest, "GET or POST"),
            ["chain" | "crl"] => (Access::Anyone, "GET"),
            ["certificates"] | ["certificates", _] => (Access::Admin, "GET"),
            ["revoke"] => (Access::Admin, "POST"),
            _ => {
                return Err(PluginError::Path(
                    "ca has certificate, chain, crl, certificates and revoke".to_owned(),
                ));
            }
        };
        if allowed.split(" or ").any(|method| method == request.method.as_str()) {
            return Ok(access);
        }
        Err(PluginError::method(&request.method, allowed))
    }

    fn needs_encryption(&self, request: &PluginRequest) -> bool {
        // A certificate is no secret, but guest components decrypt whatever they GET.
        request.method == Method::GET
    }

    async fn handle(
        &self,
        request: &PluginRequest,
        caller: Caller<'_>,
    ) -> Result<PluginResponse, PluginError> {
        let wrong =
            || PluginError::Internal("a caller of another kind than validate_auth asked for".to_owned());
        match (request.segments().as_slice(), caller) {
            (["certificate"], Caller::Guest { claims, claims_digest, key }) => {
                self.certificate(request, (claims, claims_digest), key).await
            }
            (["chain"], _) => {
                let chain = self.authority.chain().as_bytes().to_vec();
                Ok(PluginResponse::ok("application/pem-certificate-chain", chain))
            }
            (["crl"], _) => Ok(PluginResponse::ok("application/pkix-crl", self.revocation_list().await?)),
            (["certificates"], Caller::Admin { .. }) => {
                let serials = self.records.serials(now(), MAX_LISTED).await?;
                let body = json!({"serials": serials}).to_string();
                Ok(PluginResponse::ok("application/json", body.into_bytes()))
            }
            (["certificates", serial], Caller::Admin { .. }) => self.show(serial).await,
            (["revoke"], Caller::Admin { role }) => self.revoke(request, role).await,
            _ => Err(wrong()),
        }
    }
}
