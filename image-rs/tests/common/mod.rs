//! A real registry, images to put there, and a server that lies.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kata_cc_image::digest::Digest;
use serde_json::{Value, json};

/// Says why a test is skipped; true when it is.
pub fn missing(tools: &[&str]) -> bool {
    let absent: Vec<_> =
        tools.iter().filter(|tool| !Path::new("/usr/bin").join(tool).exists()).copied().collect();
    if !absent.is_empty() {
        println!("skipped: not installed: {}", absent.join(", "));
    }
    !absent.is_empty()
}

pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// How the registry is guarded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    Open,
    Tls,
    Basic,
    Bearer,
}

/// Debian's docker-registry on the loopback, with its storage in a temporary folder.
pub struct RegistryServer {
    child: Child,
    pub dir: tempfile::TempDir,
    pub host: String,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl RegistryServer {
    pub fn start(guard: Guard) -> Self {
        let dir = tempfile::Builder::new().prefix("kata-cc-registry").tempdir().unwrap();
        let port = free_port();
        let host = format!("127.0.0.1:{port}");
        let at = |name: &str| dir.path().join(name).display().to_string();
        let mut config = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
            at("storage")
        );
        match guard {
            Guard::Open => {}
            Guard::Tls => {
                certificate(dir.path());
                config.push_str(&format!(
                    "  tls:\n    certificate: {}\n    key: {}\n",
                    at("server.pem"),
                    at("server.key")
                ));
            }
            Guard::Basic => {
                run("htpasswd", &["-Bbc", &at("htpasswd"), "alice", "wonder"]);
                config.push_str(&format!(
                    "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                    at("htpasswd")
                ));
            }
            Guard::Bearer => {
                let realm = token_server(dir.path());
                config.push_str(&format!(
                    "auth:\n  token:\n    realm: {realm}\n    service: test\n    issuer: test-issuer\n    rootcertbundle: {}\n",
                    at("token.pem")
                ));
            }
        }
        std::fs::write(dir.path().join("config.yml"), config).unwrap();
        let child = Command::new("/usr/bin/docker-registry")
            .args(["serve", &at("config.yml")])
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, dir, host };
        for _ in 0..600 {
            if TcpStream::connect(&server.host).is_ok() {
                return server;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the registry does not listen");
    }

    pub fn ca(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("ca.pem")).unwrap()
    }

    /// The file a blob is kept in.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let folder = self.dir.path().join("storage/docker/registry/v2/blobs/sha256");
        folder.join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for RegistryServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn certificate(dir: &Path) {
    let at = |name: &str| dir.join(name).display().to_string();
    let subject = ["-nodes", "-newkey", "rsa:2048"];
    run(
        "openssl",
        &[
            &["req", "-x509", "-days", "2", "-subj", "/CN=test ca"],
            &subject[..],
            &[
                "-addext",
                "basicConstraints=critical,CA:TRUE",
                "-keyout",
                &at("ca.key"),
                "-out",
                &at("ca.pem"),
            ],
        ]
        .concat(),
    );
    run(
        "openssl",
        &[
            &["req", "-subj", "/CN=registry"],
            &subject[..],
            &["-keyout", &at("server.key"), "-out", &at("server.csr")],
        ]
        .concat(),
    );
    std::fs::write(dir.join("ext"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").unwrap();
    run(
        "openssl",
        &[
            "x509",
            "-req",
            "-days",
            "2",
            "-CAcreateserial",
            "-in",
            &at("server.csr"),
            "-CA",
            &at("ca.pem"),
            "-CAkey",
            &at("ca.key"),
            "-extfile",
            &at("ext"),
            "-out",
            &at("server.pem"),
        ],
    );
}

/// A key pair in PEM: private key file, public key file.
pub fn key_pair(dir: &Path, kind: &str) -> (PathBuf, PathBuf) {
    let (private, public) = (dir.join(format!("{kind}.key")), dir.join(format!("{kind}.pub")));
    let at = |path: &Path| path.display().to_string();
    let options: &[&str] = match kind {
        "rsa" => &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        _ => &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
    };
    run("openssl", &[&["genpkey", "-out", &at(&private)], options].concat());
    run("openssl", &["pkey", "-in", &at(&private), "-pubout", "-out", &at(&public)]);
    (private, public)
}

/// Hands out tokens to alice, by the registry's token protocol; gives the realm.
fn token_server(dir: &Path) -> String {
    use aws_lc_rs::rsa::KeyPair;
    use aws_lc_rs::signature::RSA_PKCS1_SHA256;
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    let at = |name: &str| dir.join(name).display().to_string();
    run(
        "openssl",
        &[
            "req",
            "-x509",
            "-days",
            "2",
            "-subj",
            "/CN=tokens",
            "-nodes",
            "-newkey",
            "rsa:2048",
            "-keyout",
            &at("token.key"),
            "-out",
            &at("token.pem"),
        ],
    );
    run(
        "openssl",
        &[
            "pkcs8",
            "-topk8",
            "-nocrypt",
            "-outform",
            "DER",
            "-in",
            &at("token.key"),
            "-out",
            &at("token.der"),
        ],
    );
    run("openssl", &["x509", "-in", &at("token.pem"), "-outform", "DER", "-out", &at("token.crt")]);
    let key = KeyPair::from_pkcs8(&std::fs::read(dir.join("token.der")).unwrap()).unwrap();
    let x5c = STANDARD.encode(std::fs::read(dir.join("token.crt")).unwrap());
    let allowed = STANDARD.encode("alice:wonder");
    let server = Liar::start(move |request| {
        let good =
            request.to_lowercase().contains(&format!("authorization: basic {}", allowed.to_lowercase()));
        if !good {
            return Answer::new(401, "application/json", b"{}".to_vec());
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [x5c]});
        let claims = json!({"iss": "test-issuer", "sub": "alice", "aud": "test", "exp": now + 300, "nbf": now - 60,
            "iat": now - 60, "jti": "1", "access": [{"type": "repository", "name": "test", "actions": ["pull", "push"]}]});
        let text = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &aws_lc_rs::rand::SystemRandom::new(), text.as_bytes(), &mut signature)
            .unwrap();
        let token = format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature));
        Answer::new(
            200,
            "application/json",
            json!({"token": token, "expires_in": 300}).to_string().into_bytes(),
        )
    });
    format!("http://{}/token", server.host)
}

/// What the liar says.
pub struct Answer {
    status: u16,
    kind: String,
    body: Vec<u8>,
    headers: String,
    sent: usize,
    then: Option<Box<dyn FnOnce() + Send>>,
}

impl Answer {
    pub fn new(status: u16, kind: &str, body: Vec<u8>) -> Self {
        Self { status, kind: kind.to_owned(), sent: body.len(), body, headers: String::new(), then: None }
    }

    /// With a header more.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// Breaks off after so many bytes of the body.
    pub fn cut(mut self, sent: usize) -> Self {
        self.sent = sent.min(self.body.len());
        self
    }

    /// Does something after so many bytes, then sends the rest.
    pub fn pause(mut self, sent: usize, then: impl FnOnce() + Send + 'static) -> Self {
        self.then = Some(Box::new(then));
        self.cut(sent)
    }
}

/// An HTTP server that answers what a test wants; its thread ends with the test's process.
pub struct Liar {
    pub host: String,
}

impl Liar {
    pub fn start(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = Arc::clone(&answer);
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    let mut request = String::new();
                    while !request.ends_with("\r\n\r\n") {
                        if reader.read_line(&mut request).unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let answer = answer(&request);
                    let mut stream = stream;
                    let head = format!(
                        "HTTP/1.1 {} x\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: close\r\n{}\r\n",
                        answer.status,
                        answer.kind,
                        answer.body.len(),
                        answer.headers,
                    );
                    let _ = stream.write_all(head.as_bytes());
                    let (first, rest) = answer.body.split_at(answer.sent);
                    let _ = stream.write_all(first);
                    if let Some(then) = answer.then {
                        then();
                        let _ = stream.write_all(rest);
                    }
                });
            }
        });
        Self { host }
    }
}

/// First byte that a request asks for.
pub fn range(request: &str) -> Option<usize> {
    let (_, rest) = request.split_once("range: bytes=")?;
    rest.split('-').next()?.parse().ok()
}

/// A layer with the files given.
pub fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_600_000_000);
        builder.append_data(&mut header, path, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Bytes that do not compress, so that a layer has about their length.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(step).collect()
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::read::GzEncoder::new(data, flate2::Compression::fast()).read_to_end(&mut out).unwrap();
    out
}

/// Parts of an image: manifest, configuration, and all blobs by digest.
pub struct Image {
    pub manifest: Value,
    pub blobs: Vec<(Digest, Vec<u8>)>,
}

impl Image {
    /// From layers: media type, blob, unpacked archive.
    pub fn new(layers: &[(&str, Vec<u8>, &[u8])]) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|(_, _, plain)| Digest::sha256(plain).to_string()).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = config.to_string().into_bytes();
        let describe = |kind: &str, data: &[u8]| json!({"mediaType": kind, "digest": Digest::sha256(data).to_string(), "size": data.len()});
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|(kind, blob, _)| describe(kind, blob)).collect::<Vec<_>>()});
        let mut blobs = vec![(Digest::sha256(&config), config)];
        blobs.extend(layers.iter().map(|(_, blob, _)| (Digest::sha256(blob), blob.clone())));
        Self { manifest, blobs }
    }

    /// A base layer (gzip) and one of changes (zstd) that deletes, replaces and adds.
    pub fn sample() -> Self {
        let base = layer(&[("etc/hello", b"secret-marker"), ("etc/gone", b"x"), ("old/a", b"1")]);
        let top =
            layer(&[("etc/.wh.gone", b""), ("etc/new", b"new"), ("old/.wh..wh..opq", b""), ("old/b", b"2")]);
        Self::new(&[
            ("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&base), &base),
            (
                "application/vnd.oci.image.layer.v1.tar+zstd",
                zstd::encode_all(top.as_slice(), 3).unwrap(),
                &top,
            ),
        ])
    }

    /// Writes it as an OCI layout folder with the tag `t`.
    pub fn layout(&self, dir: &Path) {
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let manifest = self.manifest.to_string().into_bytes();
        let digest = Digest::sha256(&manifest);
        for (digest, data) in self.blobs.iter().chain([&(digest.clone(), manifest.clone())]) {
            std::fs::write(blobs.join(digest.hex()), data).unwrap();
        }
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest.to_string(), "size": manifest.len(), "annotations": {"org.opencontainers.image.ref.name": "t"}}]});
        std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    }

    /// A server that serves it, whatever tag is asked for.
    pub fn serve(self) -> Liar {
        Liar::start(move |request| self.answer(request))
    }

    /// What an honest registry says to a request.
    pub fn answer(&self, request: &str) -> Answer {
        let path = request.split(' ').nth(1).unwrap_or_default();
        if path.contains("/manifests/") {
            let manifest = self.manifest.to_string().into_bytes();
            return Answer::new(200, "application/vnd.oci.image.manifest.v1+json", manifest);
        }
        let Some((_, data)) = self.blobs.iter().find(|(digest, _)| path.ends_with(digest.as_str())) else {
            return Answer::new(if path == "/v2/" { 200 } else { 404 }, "application/json", b"{}".to_vec());
        };
        match range(request) {
            None => Answer::new(200, "application/octet-stream", data.clone()),
            Some(from) => Answer::new(206, "application/octet-stream", data[from..].to_vec())
                .header("content-range", &format!("bytes {from}-{}/{}", data.len() - 1, data.len())),
        }
    }
}
