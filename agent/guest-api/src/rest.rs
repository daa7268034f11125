//! REST for containers: `127.0.0.1:8006`, paths and answers of api-server-rest.
//!
//! | path | answer |
//! |---|---|
//! | `GET /info` | `{"version", "tee", "additional_tees", "feature"}` |
//! | `GET /aa/token?token_type=kbs` | `{"token", "tee_keypair"}` |
//! | `GET /aa/evidence?runtime_data=…[&encoding=base64]` | evidence |
//! | `GET /aa/additional-evidence?runtime_data=…` | evidence of devices |
//! | `POST /aa/aael` `{"domain", "operation", "content"}` | records an event |
//! | `GET /cdh/resource/{repository}/{type}/{tag}` | the resource |
//!
//! Loopback only: containers share the guest's network, so every container of the sandbox may ask, and nobody outside can;
//! the listener that the agent gives takes connections by the device `lo`, and a peer of another address is refused here once
//! more. One request a connection, answered and closed; sizes, numbers and times are bounded.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use kata_cc_kbs_protocol::from_base64_url;
use serde::Deserialize;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::api::{ApiError, GuestApi};

/// Port of api-server-rest.
pub const PORT: u16 = 8006;

/// Longest request head.
const MAX_HEAD: usize = 16 << 10;
/// Longest request body.
const MAX_REQUEST: usize = 32 << 10;
/// Most connections at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one exchange may take: a handshake with the key broker may be in it.
const LONGEST: Duration = Duration::from_secs(180);

/// Serves until the task is dropped.
pub async fn serve(listener: TcpListener, api: Arc<GuestApi>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let api = Arc::clone(&api);
                tokio::spawn(async move {
                    connection(stream, peer, api).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "REST API: accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, api: Arc<GuestApi>) {
    let service = hyper::service::service_fn(move |request| {
        let api = Arc::clone(&api);
        async move { Ok::<_, Infallible>(answer(&api, peer, request).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(MAX_HEAD).keep_alive(false);
    let served = tokio::time::timeout(LONGEST, http.serve_connection(TokioIo::new(stream), service)).await;
    // A client that is gone, or sends no HTTP, has no use for an error.
    if let Ok(Err(error)) = served {
        tracing::debug!(%error, "REST connection ended");
    }
}

/// A body that is wiped when it was sent.
struct Answer(Option<Bytes>);

impl Answer {
    fn secret(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(Some(Bytes::from_owner(bytes)))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

fn response(status: StatusCode, kind: &'static str, body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

fn text(status: StatusCode, words: impl Into<String>) -> Response<Answer> {
    response(status, "text/plain; charset=utf-8", Answer(Some(Bytes::from(words.into()))))
}

fn json(value: &serde_json::Value) -> Response<Answer> {
    response(StatusCode::OK, "application/json", Answer(Some(Bytes::from(value.to_string()))))
}

fn octets(bytes: Zeroizing<Vec<u8>>) -> Response<Answer> {
    response(StatusCode::OK, "application/octet-stream", Answer::secret(bytes))
}

fn bad_request() -> Response<Answer> {
    text(StatusCode::BAD_REQUEST, "BAD REQUEST")
}

fn not_allowed(allowed: &'static str) -> Response<Answer> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static(allowed));
    response
}

fn refused(error: &ApiError) -> Response<Answer> {
    match error {
        ApiError::Disabled(_) => text(StatusCode::NOT_FOUND, error.to_string()),
        ApiError::Busy => {
            let mut response = text(StatusCode::TOO_MANY_REQUESTS, error.to_string());
            response.headers_mut().insert(RETRY_AFTER, hyper::header::HeaderValue::from_static("1"));
            response
        }
        ApiError::Input(why) => {
            tracing::debug!(why, "bad request");
            bad_request()
        }
        _ => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn answer(api: &GuestApi, peer: SocketAddr, request: Request<Incoming>) -> Response<Answer> {
    if !peer.ip().is_loopback() {
        return text(StatusCode::FORBIDDEN, "Forbidden");
    }
    let path = request.uri().path().to_owned();
    let get = request.method() == Method::GET;
    match path.as_str() {
        "/info" if get => info(api),
        "/aa/token" | "/aa/evidence" | "/aa/additional-evidence" if get => {
            let query = Query(request.uri().query().unwrap_or(""));
            attestation(api, &path, query).await.unwrap_or_else(|error| refused(&error))
        }
        "/aa/aael" if request.method() == Method::POST => match whole(request.into_body()).await {
            Some(body) => record(api, &body).await,
            None => text(StatusCode::PAYLOAD_TOO_LARGE, "the event is too long, or did not come in time"),
        },
        "/aa/aael" => not_allowed("POST"),
        "/info" | "/aa/token" | "/aa/evidence" | "/aa/additional-evidence" => not_allowed("GET"),
        other => match (other.strip_prefix("/cdh/resource/"), other.split('/').nth(1)) {
            (Some(resource), _) if get => {
                // A path, and not a URI: the key broker is the configured one.
                let found = match resource.contains(':') {
                    true => Err(ApiError::Input("a resource is repository/type/tag".to_owned())),
                    false => api.resource(resource).await,
                };
                found.map_or_else(|error| refused(&error), octets)
            }
            (Some(_), _) => not_allowed("GET"),
            (None, Some("aa")) if !api.features().attestation => refused(&ApiError::Disabled("Attestation")),
            (None, Some("cdh")) if !api.features().resource => refused(&ApiError::Disabled("Resource")),
            _ => text(StatusCode::NOT_FOUND, "URL NOT FOUND"),
        },
    }
}

fn info(api: &GuestApi) -> Response<Answer> {
    let mut info = json!({"version": env!("CARGO_PKG_VERSION"), "feature": api.features().name()});
    let additional = api.additional_tees();
    if let Some(members) = info.as_object_mut() {
        if api.features().attestation {
            members.insert("tee".to_owned(), api.tee().into());
        }
        if !additional.is_empty() {
            members.insert("additional_tees".to_owned(), additional.into());
        }
    }
    json(&info)
}

async fn attestation(api: &GuestApi, path: &str, query: Query<'_>) -> Result<Response<Answer>, ApiError> {
    // Switched off is told before what is wrong with the question.
    if !api.features().attestation {
        return Err(ApiError::Disabled("Attestation"));
    }
    if path == "/aa/token" {
        let token_type =
            query.get("token_type").ok_or_else(|| ApiError::Input("no token_type".to_owned()))?;
        let token_type = String::from_utf8_lossy(&token_type).into_owned();
        return api.token(&token_type).await.map(octets).or_else(|error| match error {
            // As the real server does: what it asks of the attestation agent and does not get is an error of its own.
            ApiError::Input(why) => Ok(text(StatusCode::INTERNAL_SERVER_ERROR, why)),
            other => Err(other),
        });
    }
    let runtime_data =
        query.get("runtime_data").ok_or_else(|| ApiError::Input("no runtime_data".to_owned()))?;
    let runtime_data = match query.get("encoding").as_deref() {
        None => runtime_data,
        Some(b"base64") => std::str::from_utf8(&runtime_data)
            .ok()
            .and_then(|encoded| from_base64_url(encoded.trim_end_matches('=')))
            .ok_or_else(|| ApiError::Input("runtime_data is no URL-safe base64".to_owned()))?,
        Some(_) => return Err(ApiError::Input("encoding is not base64".to_owned())),
    };
    let evidence = match path {
        "/aa/evidence" => api.evidence(&runtime_data).await?,
        _ => api.additional_evidence(&runtime_data).await?,
    };
    Ok(octets(Zeroizing::new(evidence)))
}

#[derive(Deserialize)]
struct Aael {
    domain: String,
    operation: String,
    content: String,
}

async fn record(api: &GuestApi, body: &[u8]) -> Response<Answer> {
    if !api.features().attestation {
        return refused(&ApiError::Disabled("Attestation"));
    }
    let Ok(event) = serde_json::from_slice::<Aael>(body) else { return bad_request() };
    match api.record(&event.domain, &event.operation, &event.content).await {
        Ok(result) => json(&json!({"result": result.name()})),
        Err(error) => refused(&error),
    }
}

/// A body up to the limit; `None` when it is longer, breaks off, or takes too long.
async fn whole(body: Incoming) -> Option<Vec<u8>> {
    let reading = async {
        let mut body = pin!(body);
        let mut bytes = Vec::new();
        while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            let Ok(data) = frame.ok()?.into_data() else { continue };
            if bytes.len() + data.len() > MAX_REQUEST {
                return None;
            }
            bytes.extend_from_slice(&data);
        }
        Some(bytes)
    };
    tokio::time::timeout(PATIENCE, reading).await.ok().flatten()
}

/// A query of an address (`application/x-www-form-urlencoded`).
#[derive(Clone, Copy)]
struct Query<'a>(&'a str);

impl Query<'_> {
    /// The first value of that name.
    fn get(self, name: &str) -> Option<Vec<u8>> {
        let mut pairs = self.0.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.find(|(key, _)| unescaped(key) == name.as_bytes()).map(|(_, value)| unescaped(value))
    }
}

/// `+` is a blank, `%XX` a byte; a `%` without two digits stays.
fn unescaped(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).and_then(|d| char::from(*d).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'+', ..) => out.push(b' '),
            (b'%', Some(high), Some(low)) => {
                // Two hexadecimal digits are a byte.
                out.push(u8::try_from(high * 16 + low).unwrap_or_default());
                rest = after.get(2..).unwrap_or_default();
                continue;
            }
            _ => out.push(*first),
        }
        rest = after;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn queries_are_unescaped() {
        let query = Query("a=1&runtime_data=x%20y+z%2&b&a=2&c%3d=3");
        assert_eq!(query.get("runtime_data").unwrap(), b"x y z%2");
        assert_eq!((query.get("a").unwrap(), query.get("b").unwrap()), (b"1".to_vec(), Vec::new()));
        assert_eq!(query.get("c=").unwrap(), b"3");
        assert!(query.get("d").is_none());
    }

    proptest! {
        #[test]
        fn what_is_escaped_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let escaped: String = bytes.iter().map(|b| format!("%{b:02X}")).collect();
            prop_assert_eq!(unescaped(&escaped), bytes);
        }
    }
}
