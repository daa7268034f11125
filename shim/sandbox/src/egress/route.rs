//! How an allowed target is reached: from the node itself, or by the proxy of its site.
//!
//! A site's proxy is asked as HTTP says (RFC 9110 §9.3.6, RFC 9112 §3.2.2). It looks names up by itself, so where it may go is its own to
//! decide; what the allow-list's `*:port` does not mean is refused here as far as the node can tell the address.

use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{Allowed, allow, read_head, split_authority};

/// How long the node looks for a name that its site's proxy will look up anyway.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// The way out of a node.
#[derive(Clone, Debug, Default)]
pub struct Route {
    /// Host and port of the site's proxy.
    proxy: Option<(String, u16)>,
    /// Hosts that are reached without it, and the ends of names (`.example`).
    direct: Vec<String>,
}

/// Why a site's proxy is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RouteError {
    /// It is not `http://host:port`.
    #[error(
        "[egress] proxy {0:?} must be http://host:port, without a user: no credentials are sent to a proxy"
    )]
    Proxy(String),
    /// An exception that is no name.
    #[error(
        "[egress] direct entry {0:?} must be a host, or the end of its name with a dot before it (.example)"
    )]
    Direct(String),
}

/// A target that was reached.
pub(super) struct Reached {
    pub(super) target: TcpStream,
    /// Whether it is the site's proxy that reads what comes: plain requests then name their target.
    pub(super) by_proxy: bool,
}

impl Route {
    /// By `proxy`, if there is one, but for what `direct` names.
    ///
    /// # Errors
    /// When one of them has another form.
    pub fn parse(proxy: Option<&str>, direct: &[String]) -> Result<Self, RouteError> {
        let proxy = proxy.map(|text| {
            let address = text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
            let split = address.and_then(|address| split_authority(address, None));
            let found = split.filter(|(host, _)| !host.contains('*'));
            found
                .map(|(host, port)| (host.to_owned(), port))
                .ok_or_else(|| RouteError::Proxy(text.to_owned()))
        });
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
        if let Some(wrong) = direct.iter().find(|entry| entry.is_empty() || !entry.bytes().all(fits)) {
            return Err(RouteError::Direct(wrong.clone()));
        }
        let direct = direct.iter().map(|entry| entry.to_ascii_lowercase()).collect();
        Ok(Self { proxy: proxy.transpose()?, direct })
    }

    fn proxy_for(&self, host: &str) -> Option<&(String, u16)> {
        let host = host.to_ascii_lowercase();
        let is_direct =
            |entry: &String| host == *entry || (entry.starts_with('.') && host.ends_with(entry.as_str()));
        self.proxy.as_ref().filter(|_| !self.direct.iter().any(is_direct))
    }

    /// Connects to a target, `tunnel` when bytes are then passed on as they come. None when its address is one that the allow-list's
    /// entry for any host does not mean.
    pub(super) async fn reach(
        &self,
        host: &str,
        port: u16,
        allowed: Allowed,
        tunnel: bool,
    ) -> std::io::Result<Option<Reached>> {
        let Some(proxy) = self.proxy_for(host) else {
            // The addresses that were looked at are connected to: a name that changes meanwhile changes nothing.
            return match allow::targets(host, port, allowed).await?.as_slice() {
                [] => Ok(None),
                some => Ok(Some(Reached { target: TcpStream::connect(some).await?, by_proxy: false })),
            };
        };
        if allowed == Allowed::ByPort && (is_local_name(host) || is_refused_here(host, port).await) {
            return Ok(None);
        }
        let target = ask_proxy(proxy, tunnel.then(|| authority(host, port))).await?;
        Ok(Some(Reached { target, by_proxy: !tunnel }))
    }
}

/// Whether the node itself finds nothing but addresses that an entry for any host does not mean. It may know no names of the world where
/// a proxy does: then it finds nothing, which is no refusal.
async fn is_refused_here(host: &str, port: u16) -> bool {
    let found = tokio::time::timeout(LOOKUP_TIMEOUT, allow::targets(host, port, Allowed::ByPort)).await;
    matches!(found, Ok(Ok(targets)) if targets.is_empty())
}

/// Connects to a proxy, and by it to `tunnel_to` when bytes are then to be passed on as they come.
async fn ask_proxy((host, port): &(String, u16), tunnel_to: Option<String>) -> std::io::Result<TcpStream> {
    let told = |what: String| std::io::Error::other(format!("the site's proxy {host}:{port} {what}"));
    let connected = TcpStream::connect((host.as_str(), *port)).await;
    let mut proxy = connected.map_err(|error| told(format!("cannot be reached: {error}")))?;
    let Some(target) = tunnel_to else { return Ok(proxy) };
    proxy.write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes()).await?;
    let (head, more) = read_head(&mut proxy).await.map_err(|why| told(format!("did not answer: {why}")))?;
    let head = String::from_utf8_lossy(&head);
    let line = head.split("\r\n").next().unwrap_or_default();
    let code = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)).unwrap_or_default();
    if code.len() != 3 || !code.starts_with('2') {
        let printable: String = line.chars().filter(|c| !c.is_control()).take(200).collect();
        return Err(told(format!("refused the connection: {printable}")));
    }
    if !more.is_empty() {
        return Err(told("sent more than its answer before it was spoken to".to_owned()));
    }
    Ok(proxy)
}

/// Names that mean the machine which looks them up (RFC 6761 §6.3).
fn is_local_name(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

fn authority(host: &str, port: u16) -> String {
    match host.parse() {
        Ok(IpAddr::V6(_)) => format!("[{host}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}

/// A request head in origin form, made one in absolute form.
pub(super) fn absolute_form(head: &[u8], host: &str, port: u16) -> Vec<u8> {
    let method = head.iter().position(|byte| *byte == b' ').map_or(0, |at| at + 1);
    let (before, after) = head.split_at(method);
    [before, format!("http://{}", authority(host, port)).as_bytes(), after].concat()
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_proxy_has_one_form_and_exceptions_are_names() {
        let parse = |proxy: &str| Route::parse(Some(proxy), &[]);
        for good in ["http://proxy.example:3128", "http://proxy:80/", "http://[::1]:3128"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in [
            "proxy:3128",
            "https://proxy:3128",
            "http://proxy",
            "http://u:p@proxy:1",
            "http://*:1",
            "http://p:1/x",
        ] {
            assert_eq!(parse(bad).unwrap_err(), RouteError::Proxy(bad.into()));
        }
        let direct = ["kbs.example".to_owned(), ".svc.local".to_owned()];
        let route = Route::parse(Some("http://p:1"), &direct).unwrap();
        for (host, by_proxy) in [
            ("KBS.example", false),
            ("x.kbs.example", true),
            ("a.b.SVC.local", false),
            ("svc.local", true),
            ("other", true),
        ] {
            assert_eq!(route.proxy_for(host).is_some(), by_proxy, "{host}");
        }
        assert!(Route::parse(None, &["a b".to_owned()]).is_err());
        assert!(Route::default().proxy_for("any").is_none());
    }

    #[test]
    fn a_plain_request_names_its_target_to_a_proxy() {
        let head = b"GET /v2/ HTTP/1.1\r\nHost: r:5000\r\n\r\n";
        assert_eq!(absolute_form(head, "r", 5000), b"GET http://r:5000/v2/ HTTP/1.1\r\nHost: r:5000\r\n\r\n");
        assert_eq!(absolute_form(b"GET / HTTP/1.1", "::1", 80), b"GET http://[::1]:80/ HTTP/1.1");
    }

    /// A proxy on loopback that answers each connection so; gives the route by it, and what it was asked.
    async fn proxy(answer: &'static str) -> (Route, tokio::task::JoinHandle<String>) {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let route = Route::parse(Some(&format!("http://{}", server.local_addr().unwrap())), &[]).unwrap();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = server.accept().await.unwrap();
            let (head, _) = read_head(&mut stream).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            let mut echo = [0; 5];
            if stream.read_exact(&mut echo).await.is_ok() {
                stream.write_all(&echo).await.unwrap();
            }
            String::from_utf8(head).unwrap()
        });
        (route, asked)
    }

    #[tokio::test]
    async fn a_tunnel_goes_by_the_proxy_which_alone_knows_the_name() {
        let (route, asked) = proxy("HTTP/1.1 200 OK\r\n\r\n").await;
        let reached = route.reach("registry.invalid", 443, Allowed::ByPort, true).await.unwrap().unwrap();
        assert!(!reached.by_proxy);
        let (mut target, mut echo) = (reached.target, [0; 5]);
        target.write_all(b"hello").await.unwrap();
        target.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"hello");
        assert_eq!(
            asked.await.unwrap(),
            "CONNECT registry.invalid:443 HTTP/1.1\r\nHost: registry.invalid:443\r\n\r\n"
        );
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_or_speaks_out_of_turn_is_told() {
        for (answer, words) in [
            ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407 Proxy Authentication Required"),
            ("HTTP/1.1 2\r\n\r\n", "refused the connection"),
            ("SSH-2.0-x\r\n\r\n", "refused the connection"),
            ("HTTP/1.1 200 OK\r\n\r\nx", "before it was spoken to"),
        ] {
            let (route, asked) = proxy(answer).await;
            let error = route.reach("r.invalid", 443, Allowed::ByName, true).await.err().unwrap().to_string();
            assert!(error.contains(words), "{error}");
            asked.abort();
        }
    }

    #[tokio::test]
    async fn any_host_is_not_this_node_by_a_proxy_either() {
        let (route, asked) = proxy("HTTP/1.1 200 OK\r\n\r\n").await;
        for own in ["127.0.0.1", "169.254.169.254", "::1", "localhost", "a.LOCALHOST."] {
            assert!(route.reach(own, 443, Allowed::ByPort, true).await.unwrap().is_none(), "{own}");
        }
        assert!(!asked.is_finished(), "the proxy was not asked");
        asked.abort();
    }
}
