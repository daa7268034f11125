//! One HTTP client for both: pinned certificates, optional proxy, bounded bodies, errors with the server's words.

use std::sync::Arc;
use std::time::Duration;

use kata_cc_causes::causes;
use kata_cc_kbs_protocol::{ErrorInformation, MAX_BODY};
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use zeroize::Zeroizing;

use crate::ClientError;

/// Trustee's words for a client of another protocol version; it takes exactly one.
const VERSION_MISMATCH: &str = "KBS Client Protocol Version Mismatch";

/// JWE expands contents by a third.
const MAX_ANSWER: usize = 2 * MAX_BODY;

/// Where the key broker is and how it is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// `https://host[:port]`, or `http://` where the network is trusted; a guest's client refuses that.
    pub url: String,
    /// PEM certificates that are trusted, as roots or as the server's own. Nothing else is.
    pub certificates: Vec<String>,
    /// HTTP proxy that all connections go through, e.g. `http://127.0.0.1:3128`.
    pub proxy: Option<String>,
    /// Whole time of one call; 60 s when absent.
    pub timeout: Option<Duration>,
}

/// Accepts a chain to a pinned root, or the pinned certificate itself. The latter also where the certificate calls itself a
/// CA, has expired by the guest's (hostile) clock, or was made for another name: it is the same key.
#[derive(Debug)]
struct Pinned {
    certificates: Vec<CertificateDer<'static>>,
    chain: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.certificates.iter().any(|pinned| pinned == end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// TLS that trusts exactly `certificates`.
fn tls(certificates: &[String]) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    let mut pinned = Vec::new();
    for pem in certificates {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|e| format!("certificate is no PEM: {e}"))?;
            roots.add(certificate.clone()).map_err(|e| format!("certificate cannot be used: {e}"))?;
            pinned.push(certificate);
        }
    }
    if pinned.is_empty() {
        return Err("an https address needs the certificate of the key broker or of its CA".to_owned());
    }
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|e| e.to_string())?;
    let verifier = Arc::new(Pinned { certificates: pinned, chain });
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: reqwest::Client,
    base: String,
}

impl Http {
    pub(crate) fn new(endpoint: &Endpoint, user_agent: &str) -> Result<Self, ClientError> {
        let config = |why: String| ClientError::Config(why);
        let base = endpoint.url.trim_end_matches('/').to_owned();
        let parsed = reqwest::Url::parse(&base).map_err(|e| config(format!("address {base:?}: {e}")))?;
        let mut builder = reqwest::Client::builder()
            .user_agent(user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(Duration::from_secs(15))
            .timeout(endpoint.timeout.unwrap_or(Duration::from_secs(60)));
        builder = match parsed.scheme() {
            "https" => builder.tls_backend_preconfigured(tls(&endpoint.certificates).map_err(config)?),
            // Without a provider the builder would look for the process-wide one, which nobody needs here.
            "http" => builder.tls_backend_preconfigured(no_tls()?),
            other => return Err(config(format!("address must be http or https, seen {other:?}"))),
        };
        if let Some(proxy) = &endpoint.proxy {
            let proxy = reqwest::Proxy::all(proxy).map_err(|e| config(format!("proxy {proxy:?}: {e}")))?;
            builder = builder.proxy(proxy);
        }
        let client = builder.build().map_err(|e| config(causes(&e)))?;
        Ok(Self { client, base })
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{}{path}", self.base, kata_cc_kbs_protocol::PATH_PREFIX))
    }

    /// A request outside of the key broker's protocol.
    pub(crate) fn at(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Answer, ClientError> {
        let transport =
            |e: reqwest::Error| ClientError::Transport { url: self.base.clone(), why: causes(&e) };
        let mut response = request.send().await.map_err(transport)?;
        let status = response.status();
        let retry_after = retry_after(&response);
        let cookie = session_cookie(&response);
        let mut body = Zeroizing::new(Vec::new());
        while let Some(chunk) = response.chunk().await.map_err(transport)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(ClientError::Protocol {
                    what: response.url().path().to_owned(),
                    why: format!("it has more than {MAX_ANSWER} bytes"),
                });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, cookie, retry_after, body })
    }
}

fn no_tls() -> Result<ClientConfig, ClientError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| ClientError::Config(e.to_string()))?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth())
}

fn session_cookie(response: &Response) -> Option<String> {
    response.headers().get_all(header::SET_COOKIE).iter().find_map(|value| {
        let (name, value) = value.to_str().ok()?.split(';').next()?.split_once('=')?;
        (name.trim() == kata_cc_kbs_protocol::SESSION_COOKIE).then(|| value.trim().to_owned())
    })
}

/// `Retry-After` in seconds. A date is passed over: the guest's clock is its host's.
fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) cookie: Option<String>,
    /// How long to wait, when the server says.
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

impl Answer {
    /// Name and text of an error answer, whatever its content type.
    pub(crate) fn error(&self) -> (String, String) {
        match serde_json::from_slice::<ErrorInformation>(&self.body) {
            Ok(error) => (error.name().to_owned(), error.detail),
            Err(_) => {
                let text = String::from_utf8_lossy(&self.body);
                let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
                ("no error body".to_owned(), text)
            }
        }
    }

    /// The error for an answer that is not a success.
    pub(crate) fn into_error(self, what: &str) -> ClientError {
        let (name, detail) = self.error();
        let what = what.to_owned();
        match self.status {
            StatusCode::NOT_FOUND => ClientError::NotFound { what, detail },
            StatusCode::FORBIDDEN => ClientError::Denied { what, detail },
            _ if name == "PolicyDeny" => ClientError::Denied { what, detail },
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => {
                let (status, retry_after) = (self.status.as_u16(), self.retry_after);
                ClientError::Busy { what, status, detail, retry_after }
            }
            _ if detail.contains(VERSION_MISMATCH) => ClientError::Version { detail },
            status => ClientError::Refused { what, status: status.as_u16(), name, detail },
        }
    }

    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self, what: &str) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body)
            .map_err(|e| ClientError::Protocol { what: what.to_owned(), why: e.to_string() })
    }
}
