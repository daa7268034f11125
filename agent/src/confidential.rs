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

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use base64::Engine as _;
use kata_cc_attester as attester;
use kata_cc_guest_api::Features;
use kata_cc_image::SecretSource;
use kata_cc_kbs_client::{
    ClientError, Endpoint, EvidenceProvider, KbsClient, KbsConfig, KeyAlgorithm, RetryPolicy, ServiceClient,
};
use kata_cc_kbs_protocol::ResourcePath;
use kata_cc_kbs_protocol::initdata::{self, InitData};
use serde::Deserialize;
use tokio::sync::Mutex;
use tracing::info;
use zeroize::Zeroizing;

use crate::config::Tee;
use crate::credentials::Credential;
use crate::measure::{EventLog, Measurements};

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
    /// The field of the launch that holds the init-data's digest.
    pub(crate) launched: Vec<u8>,
}

impl Settings {
    /// Runtime measurements.
    pub(crate) fn event_log(&self) -> &EventLog {
        &self.aa.eventlog_config
    }

    /// Which guest APIs are served: what the init-data says, else the command line (both are measured), else CoCo's default.
    pub(crate) fn features(&self, command_line: Option<&str>) -> Result<Features> {
        let said = self.cdh.guest_api.features.as_deref().or(command_line);
        let said = said.unwrap_or(Features::DEFAULT.name());
        Features::from_name(said).with_context(|| {
            format!("guest API features {said:?} are not known: all, attestation, resource or none")
        })
    }
}

/// `cdh.toml`, as far as it is used.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Cdh {
    kbc: Option<Kbc>,
    /// Image settings.
    pub(crate) image: Image,
    /// Open sealed secrets whatever their signature (CoCo's name).
    pub(crate) skip_sealed_secret_verification: bool,
    /// Guest API.
    guest_api: GuestApi,
    /// Files that are fetched at the start.
    pub(crate) credentials: Vec<Credential>,
}

/// `[guest_api]` of `cdh.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GuestApi {
    /// `all`, `attestation`, `resource` or `none`.
    features: Option<String>,
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
    /// A simulated TEE counts as confidential.
    pub(crate) allow_simulated_tee: bool,
    /// Resource with docker's `config.json`.
    pub(crate) authenticated_registry_credentials_uri: Option<String>,
    /// The only images that may be pulled, `host/repository@sha256:…`; any without.
    pub(crate) allowed: Option<Vec<String>>,
    /// Seals of images (JSON) that the host may hand over as block devices.
    pub(crate) seals: Vec<String>,
    /// Pins of images' chunk lists (JSON): these lists count although nobody signed them.
    pub(crate) chunk_pins: Vec<String>,
    /// Which signatures an image must have: the text of a `policy.json` (CoCo's name).
    pub(crate) image_security_policy: Option<String>,
    /// The resource that holds that text, in place of it (CoCo's name).
    pub(crate) image_security_policy_uri: Option<String>,
    /// Mirrors, other locations, blocked registries: the text of a `registries.conf` (CoCo's name).
    pub(crate) registry_config: Option<String>,
    /// The resource that holds that text, in place of it (CoCo's name).
    pub(crate) registry_configuration_uri: Option<String>,
    /// Layers fetched at the same time (CoCo's name).
    pub(crate) max_concurrent_layer_downloads_per_image: Option<usize>,
}

/// `aa.toml`, as far as it is used.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Aa {
    token_configs: TokenConfigs,
    eventlog_config: EventLog,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenConfigs {
    kbs: Option<KbsToken>,
    coco_as: Option<ServiceToken>,
}

/// Where tokens of type `coco_as` come from. CoCo knows the address alone, and no certificate.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ServiceToken {
    url: String,
    /// Certificate (PEM) of the service or its CA: an https address needs it.
    cert: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct KbsToken {
    url: String,
    cert: Option<String>,
    /// Kind of the key that resources are encrypted to, by Trustee's names.
    tee_key_algorithm: Option<String>,
}

/// The attester's name for the TEE.
pub(crate) fn attested_tee(tee: Tee) -> attester::Tee {
    match tee {
        Tee::SimSnp => attester::Tee::SimSnp,
        Tee::SimTdx => attester::Tee::SimTdx,
        Tee::Snp => attester::Tee::Snp,
        Tee::Tdx => attester::Tee::Tdx,
        Tee::None => attester::Tee::None,
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
    let mut field = Vec::new();
    if tee.is_confidential() {
        let launched = attester::init_data_field(attested_tee(tee)).await.inspect_err(|e| {
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
        field = launched.context("ask for a report to check the init-data by")?;
        check_launch(&field, document.as_ref())?;
    }
    Ok(Settings { launched: field, ..settings(document)? })
}

fn settings(document: Option<InitData>) -> Result<Settings> {
    let Some(document) = document else { return Ok(Settings::default()) };
    let table = |name: &str| document.get(name).unwrap_or_default().to_owned();
    Ok(Settings {
        policy: document.get("policy.rego").map(str::to_owned),
        cdh: toml::from_str(&table("cdh.toml")).context("cdh.toml of the init-data")?,
        aa: toml::from_str(&table("aa.toml")).context("aa.toml of the init-data")?,
        text: Some(document.text().to_owned()),
        launched: Vec::new(),
    })
}

/// Whether the init-data, or that there is none, is what the guest was launched with. A host that withholds a document must
/// not get the default policy under the name of the owner's: `HOST_DATA` (`MRCONFIGID` of TDX) is what the key broker sees.
fn check_launch(launched: &[u8], document: Option<&InitData>) -> Result<()> {
    let digest = document.map(InitData::digest).unwrap_or_default();
    let seen: Vec<u8> = digest.into_iter().chain(std::iter::repeat(0)).take(launched.len()).collect();
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
        what_to_do = "launch with the digest of this very init-data as HOST_DATA or MRCONFIGID (zeros without init-data)",
        "init-data refused"
    );
    bail!(reason);
}

struct Evidence(attester::Tee, Arc<Measurements>);

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
        let measured = self.1.snapshot().await.map_err(|e| e.to_string())?;
        attester::evidence_with(self.0, field, measured).await.map_err(|e| e.to_string())
    }
}

/// The key broker, attested to at the first need.
#[derive(Debug, Clone)]
pub(crate) struct Broker(Arc<Inner>);

struct Inner {
    client: KbsClient,
    tee: Tee,
    /// The token that was last told of. The client keeps tokens, and attests anew by itself when the key broker wants that.
    told: Mutex<Zeroizing<String>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { client, tee, .. } = self;
        f.debug_struct("Inner").field("client", client).field("tee", tee).finish_non_exhaustive()
    }
}

/// Client of the attestation service that the settings name for tokens of type `coco_as`, if any.
pub(crate) fn attestation_service(
    settings: &Settings,
    tee: Tee,
    proxy: Option<String>,
    measurements: Arc<Measurements>,
) -> Result<Option<ServiceClient>> {
    let source = attested_tee(tee);
    let named = settings.aa.token_configs.coco_as.as_ref().filter(|service| !service.url.is_empty());
    let (Some(service), true) = (named, source.protocol().is_some()) else { return Ok(None) };
    let endpoint = Endpoint {
        url: service.url.clone(),
        certificates: service.cert.iter().cloned().collect(),
        proxy,
        timeout: None,
    };
    let evidence = Arc::new(Evidence(source, measurements));
    let client = ServiceClient::new(&endpoint, settings.text.clone(), RetryPolicy::default(), evidence);
    client.map(Some).context("client of the attestation service, [token_configs.coco_as] of aa.toml")
}

type Refusal = Box<dyn std::error::Error + Send + Sync>;

impl Broker {
    /// The broker that the settings name, if any.
    pub(crate) fn new(
        settings: &Settings,
        tee: Tee,
        proxy: Option<String>,
        measurements: Arc<Measurements>,
    ) -> Result<Option<Self>> {
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
            key_algorithm: key_algorithm(&settings.aa)?,
            ..KbsConfig::default()
        };
        let evidence = Arc::new(Evidence(source, measurements));
        let client = KbsClient::new(config, evidence).context("key broker client")?;
        Ok(Some(Self(Arc::new(Inner { client, tee, told: Mutex::default() }))))
    }

    /// Attests unless a token of before is good for a while yet; tells of a new one.
    async fn attested(&self) -> Result<Zeroizing<String>, Refusal> {
        let tee = self.0.tee.name();
        let token = self.0.client.token().await.inspect_err(|e| refused("attestation", tee, e))?;
        let mut told = self.0.told.lock().await;
        if *told != token {
            let verdict = verdict(&token).unwrap_or_else(|| "accepted".to_owned());
            info!(stage = "attested", tee, verdict, "the key broker accepts this guest");
            told.clone_from(&token);
        }
        Ok(token)
    }

    /// A resource by its URI.
    pub(crate) async fn resource(&self, uri: &str) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        let path: ResourcePath = uri.parse()?;
        // Only the first time: whether the session still holds is the key broker's to say.
        if self.0.told.lock().await.is_empty() {
            self.attested().await?;
        }
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
    pub(crate) async fn token(&self) -> Result<Zeroizing<String>, Refusal> {
        self.attested().await
    }

    /// The private key that the token's holder needs, PEM.
    pub(crate) fn key_pem(&self) -> Result<Zeroizing<String>, ClientError> {
        self.0.client.key().to_pem()
    }
}

/// Kind of the guest's key, P-256 when nothing is said.
fn key_algorithm(aa: &Aa) -> Result<KeyAlgorithm> {
    let said = aa.token_configs.kbs.as_ref().and_then(|kbs| kbs.tee_key_algorithm.as_deref());
    let Some(said) = said else { return Ok(KeyAlgorithm::default()) };
    KeyAlgorithm::from_name(said).with_context(|| {
        format!(
            "tee_key_algorithm {said:?} is not known: ECDH-ES+A256KW-P256, ECDH-ES+A256KW-P521 or RSA-OAEP-256"
        )
    })
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
        let of_tdx: [u8; 48] = initdata::fit(&document.digest());
        check_launch(&digest, Some(&document)).unwrap();
        check_launch(&of_tdx, Some(&document)).unwrap();
        check_launch(&[0; 32], None).unwrap();
        check_launch(&[0; 48], None).unwrap();
        let withheld = check_launch(&digest, None).unwrap_err();
        assert!(withheld.to_string().contains("there is none"), "{withheld}");
        assert!(check_launch(&[0; 32], Some(&document)).is_err());
        assert!(check_launch(&[1; 32], Some(&document)).is_err());
        assert!(check_launch(&[&digest[..], &[1; 16]].concat(), Some(&document)).is_err());
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
    fn the_guest_apis_switches_are_read() {
        let settings = |cdh: &str| Settings { cdh: toml::from_str(cdh).unwrap(), ..Settings::default() };
        let features = |cdh: &str, command_line| settings(cdh).features(command_line).unwrap().name();
        assert_eq!(features("", None), "resource");
        assert_eq!(features("", Some("all")), "all");
        assert_eq!(features("[guest_api]\nfeatures='none'", Some("resource")), "none");
        assert!(settings("[guest_api]\nfeatures='some'").features(None).is_err());
        assert!(!settings("").cdh.skip_sealed_secret_verification);
        assert!(settings("skip_sealed_secret_verification = true").cdh.skip_sealed_secret_verification);
    }

    #[test]
    fn an_attestation_service_by_https_needs_its_certificate() {
        let made = |aa: &str, tee| {
            let settings = Settings { aa: toml::from_str(aa).unwrap(), ..Settings::default() };
            attestation_service(&settings, tee, None, Arc::default())
        };
        let plain = "[token_configs.coco_as]\nurl='http://as:8080'";
        assert!(made(plain, Tee::SimSnp).unwrap().is_some());
        assert!(made(plain, Tee::None).unwrap().is_none() && made("", Tee::SimSnp).unwrap().is_none());
        let refused = made("[token_configs.coco_as]\nurl='https://as:8080'", Tee::SimSnp).unwrap_err();
        assert!(format!("{refused:#}").contains("needs the certificate"), "{refused:#}");
    }

    #[test]
    fn the_key_is_of_the_kind_that_is_named() {
        let named = |text: &str| key_algorithm(&toml::from_str(text).unwrap());
        assert_eq!(named("").unwrap(), KeyAlgorithm::EcdhP256);
        let kbs = |name: &str| format!("[token_configs.kbs]\nurl='https://k'\ntee_key_algorithm='{name}'");
        assert_eq!(named(&kbs("RSA-OAEP-256")).unwrap(), KeyAlgorithm::RsaOaep256);
        assert!(named(&kbs("ML-KEM-768+A192KW")).unwrap_err().to_string().contains("not known"));
    }

    #[test]
    fn a_verdict_is_read_from_a_token() {
        let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .encode(r#"{"submods":{"cpu0":{"ear.status":"affirming"}}}"#);
        assert_eq!(verdict(&format!("h.{payload}.s")).as_deref(), Some("affirming"));
        assert_eq!(verdict("nonsense"), None);
    }
}
