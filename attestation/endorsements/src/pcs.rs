//! Intel's provisioning certification service (PCS API v4), or a PCCS with its interface.

use async_trait::async_trait;
use tokio::time::Instant;

use crate::document::Document;
use crate::http::{Answer, HttpSource};
use crate::item::{IntelTee, Item};
use crate::source::{Source, SourceError};

/// Where Intel runs it.
pub(crate) const INTEL_PCS: &str = "https://api.trustedservices.intel.com";

/// Where Intel publishes the root's revocation list; a PCCS has it itself.
const INTEL_CERTIFICATES: &str = "https://certificates.trustedservices.intel.com";

/// The PCS or a PCCS.
#[derive(Debug)]
pub struct Pcs {
    http: HttpSource,
    /// Only beside Intel's own service: the host with the root's revocation list.
    root_crl: Option<HttpSource>,
}

impl Pcs {
    /// The service that `http` asks; `root_crl` is the host of the root's revocation list where that is another.
    #[must_use]
    pub const fn new(http: HttpSource, root_crl: Option<HttpSource>) -> Self {
        Self { http, root_crl }
    }

    /// Address of the root's revocation list that belongs to `base`, when it is on another host.
    #[must_use]
    pub(crate) fn root_crl_base(base: &str) -> Option<&'static str> {
        (base.trim_end_matches('/') == INTEL_PCS).then_some(INTEL_CERTIFICATES)
    }

    async fn fetch(&self, item: &Item, deadline: Instant) -> Result<Option<Document>, SourceError> {
        let what = item.to_string();
        if *item == Item::RootCrl {
            let bytes = match &self.root_crl {
                Some(http) => http.get("/IntelSGXRootCA.der", &what, deadline).await?.body,
                None => self.http.get("/sgx/certification/v4/rootcacrl", &what, deadline).await?.body,
            };
            return Ok(Some(Document::plain(from_hex_text(bytes))));
        }
        let Some((path, header)) = path(item) else { return Ok(None) };
        let answer = self.http.get(&path, &what, deadline).await?;
        let chain = issuer_chain(&answer, header).map_err(|why| self.unusable(item, why))?;
        let bytes =
            if matches!(item, Item::PckCrl { .. }) { from_hex_text(answer.body) } else { answer.body };
        Ok(Some(Document { bytes, issuer_chain: Some(chain) }))
    }

    fn unusable(&self, item: &Item, why: String) -> SourceError {
        SourceError::Unusable { service: self.http.name().to_owned(), item: item.to_string(), why }
    }
}

#[async_trait]
impl Source for Pcs {
    fn name(&self) -> &str {
        self.http.name()
    }

    fn is_remote(&self) -> bool {
        true
    }

    async fn get(&self, item: &Item, deadline: Instant) -> Result<Option<Document>, SourceError> {
        let Some(document) = self.fetch(item, deadline).await? else { return Ok(None) };
        document.check(item).map_err(|why| self.unusable(item, why))?;
        Ok(Some(document))
    }
}

/// Path of an item and the header that its issuer chain is in.
fn path(item: &Item) -> Option<(String, &'static str)> {
    Some(match item {
        Item::TcbInfo { tee, fmspc } => (
            format!("/{}/certification/v4/tcb?fmspc={}", tee.name(), hex::encode_upper(fmspc)),
            "TCB-Info-Issuer-Chain",
        ),
        Item::QeIdentity { tee: IntelTee::Tdx } => {
            ("/tdx/certification/v4/qe/identity".to_owned(), "SGX-Enclave-Identity-Issuer-Chain")
        }
        Item::QeIdentity { tee: IntelTee::Sgx } => {
            ("/sgx/certification/v4/qe/identity".to_owned(), "SGX-Enclave-Identity-Issuer-Chain")
        }
        Item::PckCrl { ca } => (
            format!("/sgx/certification/v4/pckcrl?ca={}&encoding=der", ca.name()),
            "SGX-PCK-CRL-Issuer-Chain",
        ),
        _ => return None,
    })
}

/// The chain of a header, which is PEM in URL encoding.
fn issuer_chain(answer: &Answer, header: &str) -> Result<String, String> {
    let value = answer.headers.get(header).ok_or_else(|| format!("comes without the header {header}"))?;
    let text = value.to_str().map_err(|_| format!("has a header {header} that is no text"))?;
    percent_decode(text).ok_or_else(|| format!("has a header {header} with a broken URL encoding"))
}

/// Undoes URL encoding (RFC 3986, 2.1). A `+` stays: it is a digit of base64.
fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?];
        out.extend(hex::decode(digits).ok()?);
    }
    String::from_utf8(out).ok()
}

/// A PCCS sends revocation lists as hex text where Intel sends DER.
fn from_hex_text(bytes: Vec<u8>) -> Vec<u8> {
    match std::str::from_utf8(&bytes).ok().and_then(|text| hex::decode(text.trim()).ok()) {
        Some(der) if !der.is_empty() => der,
        _ => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_encoding_is_undone_and_broken_one_refused() {
        assert_eq!(percent_decode("a%0Ab%2Bc+d").as_deref(), Some("a\nb+c+d"));
        for broken in ["%", "%1", "%zz", "%FF"] {
            assert_eq!(percent_decode(broken), None, "{broken}");
        }
    }

    #[test]
    fn hex_text_becomes_bytes_and_der_stays() {
        assert_eq!(from_hex_text(b"3003\n".to_vec()), [0x30, 3]);
        assert_eq!(from_hex_text(vec![0x30, 0x82]), [0x30, 0x82]);
        assert!(from_hex_text(Vec::new()).is_empty());
    }
}
