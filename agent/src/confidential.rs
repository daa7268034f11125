//! The confidential start: init-data, its check against the launch, and the key broker's client.
//!
//! Order (docs/design.md, "Confidential start"): the init-data is read from `/dev/vda`; a report is asked for, and its
//! `HOST_DATA` must be the init-data's digest, else the agent stops. Only then is anything of it believed: the
//! policy, the key broker's address and certificate, the image settings. A confidential guest without init-data
//! runs under the measured default policy and knows no key broker.
//!
//! Attestation is lazy: it happens at the first `kbs://` need. Keys of `aa.toml` and `cdh.toml` are Trustee's.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use base64::Engine as _;
use kata_cc_attester as attester;
use kata_cc_image::SecretSource;
use kata_cc_kbs_client::{Endpoint, EvidenceProvider, KbsClient, KbsConfig};
use kata_cc_kbs_protocol::ResourcePath;
use kata_cc_kbs_protocol::initdata::{self, InitData};
use serde::Deserialize;
use tokio::sync::Mutex;
use tracing::info;
use zeroize::Zeroizing;

use crate::config::Tee;

/// The block device of the init-data.
const DEVICE: &str = "/dev/vda";
/// Bytes read of it: the largest document, packed, with header and padding.
const MAX_IMAGE: u64 = initdata::MAX_DOCUMENT as u64 + 4096;

/// Settings out of the init-data.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// Agent policy.
    pub(crate) policy: Option<String>,
    /// Key broker and image settings.
    pub(crate) cdh: Cdh,
    /// Address and certificate by `aa.toml`.
    aa: Aa,
    /// Exact text, sent along with the evidence.
    text: Option<String>,
}

/// `cdh.toml`, as far as it is used.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Cdh {
    kbc: Option<Kbc>,
    /// Image settings.
    pub(crate) image: Image,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Kbc {
    url: String,
    kbs_cert: Option<String>,
}

/// `[image]` of `cdh.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Image {
    /// PEM certificates of registries.
    pub(crate) extra_root_certificates: Vec<String>,
    /// Registries without TLS.
    pub(crate) insecure_registries: Vec<String>,
    /// `sim-snp` counts as confidential.
    pub(crate) allow_simulated_tee: bool,
    /// Resource with docker's `config.json`.
    pub(crate) authenticated_registry_credentials_uri: Option<String>,
    /// The only images that may be pulled, `host/repository@sha256:…`; any without.
    pub(crate) allowed: Option<Vec<String>>,
}

/// `aa.toml`, as far as it is used.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Aa {
    token_configs: TokenConfigs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenConfigs {
    kbs: Option<KbsToken>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct KbsToken {
    url: String,
    cert: Option<String>,
}

/// The attester's name for the TEE.
fn attested_tee(tee: Tee) -> attester::Tee {
    match tee {
        Tee::SimSnp => attester::Tee::SimSnp,
        Tee::Snp => attester::Tee::Snp,
        Tee::None | Tee::Tdx => attester::Tee::None,
    }
}

fn read_image() -> Result<Option<InitData>> {
    let mut image = Vec::new();
    match std::fs::File::open(DEVICE) {
        Ok(file) => file.take(MAX_IMAGE).read_to_end(&mut image).context("read the init-data device")?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        // An empty slot: no medium.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENXIO | libc::ENOMEDIUM)) => return Ok(None),
        Err(e) => return Err(e).context("open the init-data device"),
    };
    match initdata::from_image(&image).context("init-data image")? {
        Some(text) => Ok(Some(InitData::parse(&text).context("init-data")?)),
        None => Ok(None),
    }
}

/// Reads the init-data and checks it against the launch.
pub(crate) async fn load(tee: Tee) -> Result<Settings> {
    let document = tokio::task::spawn_blocking(read_image).await??;
    if tee.is_confidential() {
        let launched = attester::report_host_data(attested_tee(tee)).await.inspect_err(|e| {
            if matches!(e, attester::AttestError::OtherReport) {
                tracing::error!(
                    stage = "refused",
                    by = "agent",
                    reason = %e,
                    expected = "a report that answers this guest's own request",
                    seen = "one that answers another: replayed",
                    what_to_do = "see what answers for the security processor on this host",
                    "replayed report refused"
                );
            }
        });
        check_launch(launched.context("ask for a report to check the init-data by")?, document.as_ref())?;
    }
    settings(document)
}

fn settings(document: Option<InitData>) -> Result<Settings> {
    let Some(document) = document else { return Ok(Settings::default()) };
    let table = |name: &str| document.get(name).unwrap_or_default().to_owned();
    Ok(Settings {
        policy: document.get("policy.rego").map(str::to_owned),
        cdh: toml::from_str(&table("cdh.toml")).context("cdh.toml of the init-data")?,
        aa: toml::from_str(&table("aa.toml")).context("aa.toml of the init-data")?,
        text: Some(document.text().to_owned()),
    })
}

/// Whether the init-data, or that there is none, is what the guest was launched with. A host that withholds a document must
/// not get the default policy under the name of the owner's: `HOST_DATA` is what the key broker sees.
fn check_launch(launched: [u8; 32], document: Option<&InitData>) -> Result<()> {
    let seen: [u8; 32] = document.map_or([0; 32], |d| initdata::fit(&d.digest()));
    match (launched == seen, document) {
        (true, Some(_)) => {
            info!(digest = hex::encode(seen), "init-data is what the guest was launched with");
            return Ok(());
        }
        (true, None) => {
            info!("no init-data: the measured default policy holds, there is no key broker");
            return Ok(());
        }
        (false, _) => {}
    }
    let reason = match document {
        Some(_) => "the init-data is not what the guest was launched with",
        None => "the guest was launched with init-data and there is none",
    };
    tracing::error!(
        stage = "refused",
        by = "agent",
        reason,
        expected = hex::encode(launched),
        seen = hex::encode(seen),
        what_to_do = "launch with the digest of this very init-data as HOST_DATA (zeros without init-data)",
        "init-data refused"
    );
    bail!(reason);
}

struct Evidence(attester::Tee);

#[async_trait]
impl EvidenceProvider for Evidence {
    fn tee(&self) -> kata_cc_kbs_protocol::Tee {
        // A broker is only made for a TEE that has a name there.
        self.0.protocol().unwrap_or(kata_cc_kbs_protocol::Tee::SimSnp)
    }

    async fn evidence(&self, report_data: &[u8]) -> Result<serde_json::Value, String> {
        let field: [u8; 64] = initdata::fit(report_data);
        if report_data.len() > field.len() {
            return Err(format!("report data of {} bytes", report_data.len()));
        }
        attester::evidence(self.0, field).await.map_err(|e| e.to_string())
    }
}

/// The key broker, attested to at the first need.
#[derive(Debug, Clone)]
pub(crate) struct Broker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: KbsClient,
    tee: Tee,
    attested: Mutex<Attested>,
}

/// How long before its end a token is not handed out any more.
const TOKEN_MARGIN: Duration = Duration::from_secs(30);
/// Life of a token that does not say: short.
const TOKEN_LIFE: Duration = Duration::from_secs(60);

/// The attestation's token, kept so that a container which asks in a loop does not have the guest attested in a loop (the
/// security processor limits its reports, and the key broker has others to serve).
#[derive(Default)]
struct Attested(Option<(Zeroizing<String>, Instant)>);

impl std::fmt::Debug for Attested {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Attested").field(&self.0.is_some()).finish()
    }
}

impl Attested {
    fn keep(&mut self, token: String, now: Instant) {
        let until = now + token_life(&token).unwrap_or(TOKEN_LIFE);
        self.0 = Some((Zeroizing::new(token), until));
    }

    fn token(&self, now: Instant) -> Option<String> {
        let (token, until) = self.0.as_ref()?;
        (now + TOKEN_MARGIN < *until).then(|| token.as_str().to_owned())
    }
}

/// From issue to expiry: the guest's own clock, which the host set, has no part in it.
fn token_life(token: &str) -> Option<Duration> {
    let claims = claims(token)?;
    let at = |name: &str| claims.get(name)?.as_u64();
    at("exp")?.checked_sub(at("iat")?).map(Duration::from_secs)
}

type Refusal = Box<dyn std::error::Error + Send + Sync>;

impl Broker {
    /// The broker that the settings name, if any.
    pub(crate) fn new(settings: &Settings, tee: Tee, proxy: Option<String>) -> Result<Option<Self>> {
        let by_aa = settings.aa.token_configs.kbs.as_ref().map(|k| (&k.url, &k.cert));
        let by_cdh = settings.cdh.kbc.as_ref().map(|k| (&k.url, &k.kbs_cert));
        let Some((url, certificate)) = by_aa.or(by_cdh).filter(|(url, _)| !url.is_empty()) else {
            return Ok(None);
        };
        let source = attested_tee(tee);
        if source.protocol().is_none() {
            return Ok(None);
        }
        let config = KbsConfig {
            endpoint: Endpoint {
                url: url.clone(),
                certificates: certificate.iter().cloned().collect(),
                proxy,
                timeout: None,
            },
            init_data: settings.text.clone(),
            ..KbsConfig::default()
        };
        let client = KbsClient::new(config, Arc::new(Evidence(source))).context("key broker client")?;
        Ok(Some(Self(Arc::new(Inner { client, tee, attested: Mutex::default() }))))
    }

    async fn attest_once(&self) -> Result<(), Refusal> {
        let mut attested = self.0.attested.lock().await;
        // The client attests anew by itself when the key broker wants that.
        if attested.0.is_some() {
            return Ok(());
        }
        self.attest(&mut attested).await
    }

    async fn attest(&self, attested: &mut Attested) -> Result<(), Refusal> {
        let tee = self.0.tee.name();
        let asked = Instant::now();
        match self.0.client.attest().await {
            Ok(done) => {
                let verdict = verdict(&done.token).unwrap_or_else(|| "accepted".to_owned());
                info!(stage = "attested", tee, verdict, "the key broker accepts this guest");
                attested.keep(done.token, asked);
                Ok(())
            }
            Err(e) => {
                refused("attestation", tee, &e);
                Err(e.into())
            }
        }
    }

    /// A resource by its URI.
    pub(crate) async fn resource(&self, uri: &str) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        let path: ResourcePath = uri.parse()?;
        self.attest_once().await?;
        match self.0.client.get_resource(&path).await {
            Ok(bytes) => {
                info!(stage = "key-released", key_id = uri, "the key broker released a resource");
                Ok(bytes)
            }
            Err(e) => {
                refused(uri, self.0.tee.name(), &e);
                Err(e.into())
            }
        }
    }

    /// The attestation token.
    pub(crate) async fn token(&self) -> Result<String, Refusal> {
        let mut attested = self.0.attested.lock().await;
        if attested.token(Instant::now()).is_none() {
            self.attest(&mut attested).await?;
        }
        // One that is nearly over when it comes is all there is.
        Ok(attested.0.as_ref().map(|(token, _)| token.as_str().to_owned()).unwrap_or_default())
    }
}

fn refused(what: &str, tee: &str, error: &dyn std::error::Error) {
    tracing::error!(
        stage = "refused",
        by = "key broker",
        what,
        tee,
        reason = %error,
        expected = "evidence and claims that the key broker's policies accept",
        seen = %error,
        what_to_do = "compare the guest's launch digest and init-data with the key broker's reference values and policies",
        "the key broker refuses"
    );
}

/// `ear.status` of the first submodule of a token; the broker has checked it, this is for the record.
fn verdict(token: &str) -> Option<String> {
    let claims = claims(token)?;
    let module = claims.get("submods")?.as_object()?.values().next()?;
    Some(match module.get("ear.status")? {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    })
}

/// The claims of a token whose signature the caller need not check: it came from the key broker itself, over TLS.
fn claims(token: &str) -> Option<serde_json::Value> {
    let payload = token.split('.').nth(1)?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[async_trait]
impl SecretSource for Broker {
    async fn get(&self, uri: &str) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        self.resource(uri).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_data_is_neither_changed_nor_withheld() {
        let text = "algorithm = \"sha256\"\nversion = \"0.1.0\"\n[data]\n\"policy.rego\" = \"package agent_policy\"\n";
        let document = InitData::parse(text).unwrap();
        let digest: [u8; 32] = initdata::fit(&document.digest());
        check_launch(digest, Some(&document)).unwrap();
        check_launch([0; 32], None).unwrap();
        let withheld = check_launch(digest, None).unwrap_err();
        assert!(withheld.to_string().contains("there is none"), "{withheld}");
        assert!(check_launch([0; 32], Some(&document)).is_err());
        assert!(check_launch([1; 32], Some(&document)).is_err());
    }

    #[test]
    fn trustees_files_are_read() {
        let cdh: Cdh = toml::from_str(
            "[kbc]\nname='cc_kbc'\nurl='https://k'\nkbs_cert='PEM'\n[image]\nallow_simulated_tee=true\ninsecure_registries=['r:5000']",
        )
        .unwrap();
        assert!(cdh.image.allow_simulated_tee);
        assert_eq!(cdh.kbc.unwrap().url, "https://k");
        let aa: Aa = toml::from_str("[token_configs.kbs]\nurl='https://k'\ncert='PEM'").unwrap();
        assert_eq!(aa.token_configs.kbs.unwrap().cert.as_deref(), Some("PEM"));
        toml::from_str::<Cdh>("").unwrap();
    }

    #[test]
    fn a_token_is_kept_until_shortly_before_its_end() {
        let token =
            |claims: &str| format!("h.{}.s", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims));
        let (mut kept, start) = (Attested::default(), Instant::now());
        assert_eq!(kept.token(start), None);
        let long = token(r#"{"iat": 1000, "exp": 1300}"#);
        kept.keep(long.clone(), start);
        assert_eq!(kept.token(start + Duration::from_secs(269)), Some(long));
        assert_eq!(kept.token(start + Duration::from_secs(270)), None);
        for odd in [token(r#"{"iat": 5, "exp": 1}"#), token("{}"), "nonsense".to_owned()] {
            kept.keep(odd, start);
            assert_eq!(kept.token(start + TOKEN_LIFE), None);
        }
    }

    #[test]
    fn a_verdict_is_read_from_a_token() {
        let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .encode(r#"{"submods":{"cpu0":{"ear.status":"affirming"}}}"#);
        assert_eq!(verdict(&format!("h.{payload}.s")).as_deref(), Some("affirming"));
        assert_eq!(verdict("nonsense"), None);
    }
}
