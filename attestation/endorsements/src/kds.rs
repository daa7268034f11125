//! AMD's key distribution service (AMD 57230, chapter 4).

use async_trait::async_trait;
use kata_cc_snp::Tcb;
use tokio::time::Instant;

use crate::document::Document;
use crate::http::HttpSource;
use crate::item::{Item, vek_name};
use crate::source::{Source, SourceError};

/// Where AMD runs it.
pub(crate) const AMD_KDS: &str = "https://kdsintf.amd.com";

/// The KDS, or a proxy with its interface.
#[derive(Debug)]
pub struct Kds {
    http: HttpSource,
}

impl Kds {
    /// The service that `http` asks.
    #[must_use]
    pub const fn new(http: HttpSource) -> Self {
        Self { http }
    }
}

#[async_trait]
impl Source for Kds {
    fn name(&self) -> &str {
        self.http.name()
    }

    fn is_remote(&self) -> bool {
        true
    }

    async fn get(&self, item: &Item, deadline: Instant) -> Result<Option<Document>, SourceError> {
        let Some(path) = path(item) else { return Ok(None) };
        let answer = self.http.get(&path, &item.to_string(), deadline).await?;
        let document = Document::plain(answer.body);
        document.check(item).map(|()| Some(document)).map_err(|why| SourceError::Unusable {
            service: self.http.name().to_owned(),
            item: item.to_string(),
            why,
        })
    }
}

/// Path and query of an item; `None` when the KDS does not hand it out.
fn path(item: &Item) -> Option<String> {
    Some(match item {
        Item::Vcek { product, chip_id, tcb } => {
            format!("/vcek/v1/{}/{}?{}", product.name(), hex::encode(chip_id), versions(tcb))
        }
        Item::SnpChain { kind, product } => format!("/{}/v1/{}/cert_chain", vek_name(*kind), product.name()),
        Item::SnpCrl { kind, product } => format!("/{}/v1/{}/crl", vek_name(*kind), product.name()),
        _ => return None,
    })
}

/// From Turin on the FMC stands first.
fn versions(tcb: &Tcb) -> String {
    let fmc = tcb.fmc.map(|fmc| format!("fmcSPL={fmc:02}&")).unwrap_or_default();
    format!(
        "{fmc}blSPL={:02}&teeSPL={:02}&snpSPL={:02}&ucodeSPL={:02}",
        tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode
    )
}
