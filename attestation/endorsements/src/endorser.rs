//! All sources together: cache, then what lies on this machine, then services.
//!
//! One look-up at a time for each item, so that a thousand guests of one host make one request. What a service refused is
//! remembered for a while. A document that is no longer fresh still serves when nothing newer can be had: whether it
//! is too old is the verifier's decision, not this crate's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use kata_cc_snp::verify::{Product, VekKind};
use kata_cc_snp::{Report, SigningKey, Tcb};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::cache::{Cache, Cached};
use crate::document::Document;
use crate::item::{IntelTee, Item, PckCa};
use crate::lookup::Parsed;
use crate::source::{Source, SourceError};

/// Most refusals that are remembered.
const MAX_REFUSALS: usize = 4096;

/// Longest that a guest waits for a revocation list: without one the verdict says so.
const CRL_WAIT: Duration = Duration::from_secs(5);

/// How long a document of a local folder is kept in memory.
const LOCAL_FRESH: Duration = Duration::from_secs(60);

/// All sources.
#[derive(Debug)]
pub struct Endorser {
    cache: Cache,
    local: Vec<Box<dyn Source>>,
    remote: Vec<Box<dyn Source>>,
    deadline: Duration,
    fetch_crl: bool,
    flights: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    refusals: Mutex<HashMap<String, (Instant, SourceError)>>,
    pub(crate) parsed: Parsed,
}

/// What a report needs.
#[derive(Clone, Copy, Debug)]
pub struct SnpNeed<'a> {
    /// The report; its chip id and reported TCB name the certificate.
    pub report: &'a Report,
    /// Processor line; `None` when the report does not say (version 2).
    pub product: Option<Product>,
    /// The evidence brings its endorsement key's certificate.
    pub has_vek: bool,
    /// The evidence brings the intermediate.
    pub has_ask: bool,
}

/// What was found for a report. Not verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnpSupply {
    /// Certificate of the endorsement key, DER.
    pub vek: Option<Vec<u8>>,
    /// Intermediate and root, PEM.
    pub chain: Option<Vec<u8>>,
    /// Revocation list, DER.
    pub crl: Option<Vec<u8>>,
    /// Why something could not be had.
    pub problems: Vec<SourceError>,
}

/// All that a quote of one platform needs. Not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collateral {
    /// `{"tcbInfo": …, "signature": …}` and its issuers.
    pub tcb_info: Document,
    /// `{"enclaveIdentity": …, "signature": …}` and its issuers.
    pub qe_identity: Document,
    /// DER, and its issuers.
    pub pck_crl: Document,
    /// DER.
    pub root_crl: Vec<u8>,
}

impl Endorser {
    pub(crate) fn new(
        cache: Cache,
        local: Vec<Box<dyn Source>>,
        remote: Vec<Box<dyn Source>>,
        deadline: Duration,
        fetch_crl: bool,
    ) -> Self {
        let (flights, refusals, parsed) = (Mutex::default(), Mutex::default(), Parsed::default());
        Self { cache, local, remote, deadline, fetch_crl, flights, refusals, parsed }
    }

    /// Gets one document, within the configured time.
    ///
    /// # Errors
    /// [`SourceError`] of the last source that was asked.
    pub async fn get(&self, item: &Item) -> Result<Document, SourceError> {
        self.get_by(item, Instant::now() + self.deadline).await
    }

    /// What a report's verification needs beside what the evidence brings. Nothing found is no error: the verifier
    /// decides, and the problems say why.
    pub async fn snp(&self, need: &SnpNeed<'_>) -> SnpSupply {
        let mut supply = SnpSupply::default();
        let Some(product) = need.product else {
            supply.problems.push(SourceError::NoSource {
                item: "endorsement key's certificate".to_owned(),
                hint: "the report does not say which processor line it comes from (version 2): configure it",
            });
            return supply;
        };
        let kind = match need.report.key_info.signing_key() {
            SigningKey::Vlek => VekKind::Vlek,
            _ => VekKind::Vcek,
        };
        let deadline = Instant::now() + self.deadline;
        let vek = async {
            match (need.has_vek, vek_item(need.report, product, kind)) {
                (true, _) => Ok(None),
                (false, Some(item)) => self.get_by(&item, deadline).await.map(Some),
                (false, None) => Err(SourceError::NoSource {
                    item: "endorsement key's certificate".to_owned(),
                    hint: "the platform masks its chip id, so nobody can look it up: have the host supply the certificate",
                }),
            }
        };
        let crl = async {
            if !self.fetch_crl {
                return Ok(None);
            }
            let wait = deadline.min(Instant::now() + CRL_WAIT);
            self.get_by(&Item::SnpCrl { kind, product }, wait).await.map(Some)
        };
        // One after the other: the service takes one request at a time, and the certificate matters more.
        for (slot, result) in [(&mut supply.vek, vek.await), (&mut supply.crl, crl.await)] {
            match result {
                Ok(document) => *slot = document.map(|document| document.bytes),
                Err(error) => supply.problems.push(error),
            }
        }
        if !need.has_ask {
            // The built-in intermediates serve; only somebody who brought others means them.
            supply.chain = self.local_only(&Item::SnpChain { kind, product }).await.map(|chain| chain.bytes);
        }
        supply
    }

    /// Intel's collateral for one platform.
    ///
    /// # Errors
    /// [`SourceError`] for the first part that cannot be had.
    pub async fn collateral(
        &self,
        tee: IntelTee,
        fmspc: [u8; 6],
        ca: PckCa,
    ) -> Result<Collateral, SourceError> {
        let deadline = Instant::now() + self.deadline;
        Ok(Collateral {
            tcb_info: self.get_by(&Item::TcbInfo { tee, fmspc }, deadline).await?,
            qe_identity: self.get_by(&Item::QeIdentity { tee }, deadline).await?,
            pck_crl: self.get_by(&Item::PckCrl { ca }, deadline).await?,
            root_crl: self.get_by(&Item::RootCrl, deadline).await?.bytes,
        })
    }

    async fn get_by(&self, item: &Item, deadline: Instant) -> Result<Document, SourceError> {
        let path = item.path();
        if let Some(cached) = self.cache.get(item).await.filter(Cached::is_fresh) {
            return Ok(cached.document);
        }
        let flight = self.flight(&path);
        let _turn =
            tokio::time::timeout_at(deadline, flight.lock()).await.map_err(|_| SourceError::Unavailable {
                service: "another look-up of the same".to_owned(),
                why: format!("the {item} did not come in time"),
            })?;
        // Whoever had the turn before may have got it.
        let cached = self.cache.get(item).await;
        if let Some(cached) = cached.as_ref().filter(|cached| cached.is_fresh()) {
            return Ok(cached.document.clone());
        }
        let mut old = cached.map(|cached| cached.document);
        let mut failure = None;
        match self.ask(&self.local, item, deadline).await {
            Ok(Some(document)) if is_current(&document, item) => {
                self.cache.put_in_memory(item, &document, SystemTime::now() + LOCAL_FRESH);
                return Ok(document);
            }
            Ok(Some(document)) => old = Some(newer(item, old, document)),
            Ok(None) => {}
            Err(error) => failure = Some(error),
        }
        match self.ask_services(&path, item, deadline).await {
            Ok(Some(document)) => {
                self.cache.put(item, &document).await;
                return Ok(document);
            }
            Ok(None) => {}
            Err(error) => failure = Some(error),
        }
        match (old, failure) {
            (Some(document), failure) => {
                // For the look-up that follows; it stays what it is, not fresh.
                self.cache.put_in_memory(item, &document, SystemTime::now());
                let why = failure.map(|failure| failure.to_string()).unwrap_or_default();
                info!(%item, why, "nothing newer can be had, an old endorsement serves");
                Ok(document)
            }
            (None, Some(failure)) => Err(failure),
            (None, None) => Err(SourceError::NoSource { item: item.to_string(), hint: self.hint(item) }),
        }
    }

    async fn ask(
        &self,
        sources: &[Box<dyn Source>],
        item: &Item,
        deadline: Instant,
    ) -> Result<Option<Document>, SourceError> {
        let mut failure = None;
        for source in sources {
            match source.get(item, deadline).await {
                Ok(Some(document)) => return Ok(Some(document)),
                Ok(None) => {}
                Err(error) => {
                    warn!(source = source.name(), %item, %error, "source does not help");
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(None), Err)
    }

    /// Services, unless one refused the same a moment ago.
    async fn ask_services(
        &self,
        path: &str,
        item: &Item,
        deadline: Instant,
    ) -> Result<Option<Document>, SourceError> {
        if self.remote.is_empty() {
            return Ok(None);
        }
        if let Some((until, error)) = lock(&self.refusals).get(path)
            && *until > Instant::now()
        {
            return Err(error.clone());
        }
        let result = self.ask(&self.remote, item, deadline).await;
        if let Err(error) = &result {
            self.remember(path, error);
        }
        result
    }

    fn remember(&self, path: &str, error: &SourceError) {
        let mut refusals = lock(&self.refusals);
        let now = Instant::now();
        if refusals.len() >= MAX_REFUSALS {
            refusals.retain(|_, (until, _)| *until > now);
        }
        // Still full: all are recent, and one that is not remembered only costs a request.
        if refusals.len() < MAX_REFUSALS {
            refusals.insert(path.to_owned(), (now + error.remember_for(), error.clone()));
        }
    }

    /// A document that is in memory, fresh or not; nothing is read or asked.
    pub(crate) fn in_memory(&self, item: &Item) -> Option<Document> {
        self.cache.in_memory(item)
    }

    /// A document of this machine, kept in memory for the look-up.
    async fn local_only(&self, item: &Item) -> Option<Document> {
        if let Some(cached) = self.cache.get(item).await.filter(Cached::is_fresh) {
            return Some(cached.document);
        }
        let document = self.ask(&self.local, item, Instant::now()).await.ok().flatten()?;
        self.cache.put_in_memory(item, &document, SystemTime::now() + LOCAL_FRESH);
        Some(document)
    }

    /// The lock of an item; those that nobody holds are forgotten.
    fn flight(&self, path: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(path).and_then(Weak::upgrade) {
            return flight;
        }
        flights.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::new(tokio::sync::Mutex::new(()));
        flights.insert(path.to_owned(), Arc::downgrade(&flight));
        flight
    }

    const fn hint(&self, item: &Item) -> &'static str {
        if !self.remote.is_empty() {
            return "no configured service hands it out";
        }
        if item.is_amd() {
            "have the host supply it with the report, put it into endorsements.offline_dir, or set endorsements.kds.enabled"
        } else {
            "put it into endorsements.offline_dir, or set endorsements.pccs.enabled"
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Not beyond its own `nextUpdate`, or without one.
fn is_current(document: &Document, item: &Item) -> bool {
    document.next_update(item).is_none_or(|next| next > SystemTime::now())
}

fn newer(item: &Item, old: Option<Document>, other: Document) -> Document {
    match old {
        Some(old) if old.next_update(item) >= other.next_update(item) => old,
        _ => other,
    }
}

/// The certificate of the key that signed a report; `None` when the report does not name its chip.
#[must_use]
pub fn vek_item(report: &Report, product: Product, kind: VekKind) -> Option<Item> {
    let tcb: Tcb = report.reported_tcb;
    if kind == VekKind::Vlek {
        return Some(Item::Vlek { product, tcb });
    }
    if report.chip_id == [0; 64] {
        return None;
    }
    // From Turin on the id has 8 bytes and the rest of the field is zero.
    let len = if product == Product::Turin { 8 } else { 64 };
    Some(Item::Vcek { product, chip_id: report.chip_id.get(..len)?.to_vec(), tcb })
}
