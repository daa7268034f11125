//! A real HTTP server on loopback that plays AMD's KDS and Intel's PCS, and the recorded documents that it serves.
#![allow(dead_code, reason = "each test program uses a part")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use kata_cc_endorsements::{EndorsementsConfig, Endorser, HttpLimits, Item, KdsConfig, PcsConfig, Retry};
use kata_cc_snp::verify::Product;
use kata_cc_snp::{Report, Tcb};
use serde_json::Value;

/// 2025-09-01: within the validity of every certificate of the vectors.
pub(crate) const NOW: u64 = 1_756_684_800;

/// A recorded report with its certificate.
pub(crate) struct Recorded {
    pub(crate) report: Vec<u8>,
    pub(crate) vcek: Vec<u8>,
    pub(crate) product: Product,
    pub(crate) item: Item,
}

pub(crate) fn recorded(name: &str) -> Option<Recorded> {
    let dir = kata_cc_test_vectors::path("snp/reports")?.join(name);
    let report = std::fs::read(dir.join("report.bin")).unwrap();
    let vcek = std::fs::read(dir.join("vcek.der")).unwrap();
    let parsed = Report::parse(&report).unwrap();
    let product = Product::of(&parsed, None).unwrap_or(Product::Milan);
    let len = if product == Product::Turin { 8 } else { 64 };
    let item = Item::Vcek { product, chip_id: parsed.chip_id[..len].to_vec(), tcb: parsed.reported_tcb };
    Some(Recorded { report, vcek, product, item })
}

/// A chip that nobody has.
pub(crate) fn unknown_chip() -> Item {
    Item::Vcek { product: Product::Milan, chip_id: vec![7; 64], tcb: Tcb::default() }
}

type Handler = Arc<dyn Fn(usize, &str) -> Response + Send + Sync>;

#[derive(Clone)]
struct Shared {
    handler: Handler,
    hits: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<String>>>,
}

/// The server; it ends with the value.
pub(crate) struct Server {
    pub(crate) url: String,
    shared: Shared,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Answers request number `n` (from 0) for a path with query by `handler`.
    pub(crate) async fn start(handler: impl Fn(usize, &str) -> Response + Send + Sync + 'static) -> Self {
        let shared = Shared { handler: Arc::new(handler), hits: Arc::default(), seen: Arc::default() };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(answer).with_state(shared.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shared, task }
    }

    pub(crate) fn hits(&self) -> usize {
        self.shared.hits.load(Ordering::SeqCst)
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.shared.seen.lock().unwrap().clone()
    }

    pub(crate) fn stop(&self) {
        self.task.abort();
    }
}

async fn answer(State(shared): State<Shared>, uri: Uri) -> Response {
    let path = uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    shared.seen.lock().unwrap().push(path.clone());
    (shared.handler)(shared.hits.fetch_add(1, Ordering::SeqCst), &path)
}

pub(crate) fn status(code: u16) -> Response {
    StatusCode::from_u16(code).unwrap().into_response()
}

pub(crate) fn limited(retry_after: &str) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert("Retry-After", retry_after.parse().unwrap());
    (StatusCode::TOO_MANY_REQUESTS, headers).into_response()
}

pub(crate) fn bytes(body: &[u8]) -> Response {
    body.to_vec().into_response()
}

/// Quick waits, and limits small enough to reach.
pub(crate) fn limits() -> HttpLimits {
    HttpLimits { connect: Duration::from_secs(5), attempt: Duration::from_secs(20), body: 64 * 1024 }
}

pub(crate) fn retry() -> Retry {
    Retry { attempts: 4, base: Duration::from_millis(20), cap: Duration::from_millis(100) }
}

pub(crate) fn config(server: &Server) -> EndorsementsConfig {
    EndorsementsConfig {
        kds: KdsConfig { enabled: true, url: server.url.clone() },
        pccs: PcsConfig { enabled: true, url: server.url.clone() },
        deadline_seconds: 30,
        ..EndorsementsConfig::default()
    }
}

pub(crate) fn endorser(config: &EndorsementsConfig) -> Endorser {
    config.build_with(limits(), retry()).unwrap()
}

/// The recorded collateral of one quote.
pub(crate) fn collateral() -> Option<Value> {
    let bytes = kata_cc_test_vectors::read("tdx/quotes/v4-uptodate/collateral.json")?;
    Some(serde_json::from_slice(&bytes).unwrap())
}

/// As in a URL.
pub(crate) fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

pub(crate) fn with_chain(header: &'static str, chain: &str, body: Vec<u8>) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static(header), encoded(chain).parse().unwrap());
    (headers, body).into_response()
}

/// What a PCCS answers.
pub(crate) fn pccs(json: &Value, path: &str) -> Response {
    let text = |name: &str| json[name].as_str().unwrap().to_owned();
    let signed = |member: &str, part: &str| {
        format!("{{\"{member}\":{},\"signature\":\"{}\"}}", text(part), text(&format!("{part}_signature")))
            .into_bytes()
    };
    match path {
        "/tdx/certification/v4/tcb?fmspc=B0C06F000000" => {
            with_chain("tcb-info-issuer-chain", &text("tcb_info_issuer_chain"), signed("tcbInfo", "tcb_info"))
        }
        "/tdx/certification/v4/qe/identity" => with_chain(
            "sgx-enclave-identity-issuer-chain",
            &text("qe_identity_issuer_chain"),
            signed("enclaveIdentity", "qe_identity"),
        ),
        "/sgx/certification/v4/pckcrl?ca=platform&encoding=der" => with_chain(
            "sgx-pck-crl-issuer-chain",
            &text("pck_crl_issuer_chain"),
            hex::decode(text("pck_crl")).unwrap(),
        ),
        "/sgx/certification/v4/rootcacrl" => text("root_ca_crl").into_response(),
        _ => status(404),
    }
}
