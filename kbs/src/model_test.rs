//! The handshake against a model: whatever is called in whatever order, the key broker answers as the model says, and releases a
//! resource only to a guest whose evidence bound the nonce of its own, fresh session and its own key, while session and token last, the
//! policy allows it and the resource is there. What is released is opened with the guest's key, in the form of its version.

use std::sync::{Arc, OnceLock};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, ECDH_P256, PrivateKey, UnparsedPublicKey};
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap as _};
use aws_lc_rs::rsa::{KeySize, Pkcs1PrivateDecryptingKey, PrivateDecryptingKey};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use kata_cc_attestation_service::serve::Peer;
use kata_cc_kbs_client::TeeKey;
use kata_cc_kbs_protocol::jwe::concat_kdf;
use kata_cc_kbs_protocol::rcar::{HashAlgorithm, canonical};
use kata_cc_kbs_protocol::{
    JweResponse, ProtocolVersion, Tee, TeePubKey, base64_standard, base64_url, from_base64_url,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::session::{Context, Guest};
use crate::state::Kbs;
use crate::test_utils::{self, Answer, OPEN_POLICY, send};

const SECRET: &[u8] = b"what must not get out";

/// One call. Numbers choose among what there is: sessions, keys.
#[derive(Debug, Clone)]
enum Step {
    /// A challenge is asked for.
    Auth { version: ProtocolVersion },
    /// A session of which the time has run out.
    Expired { version: ProtocolVersion },
    /// The same after its guest attested: with the token of a session's guest, which is good.
    ExpiredAttested { session: usize },
    /// An attested session as it is when the token of its guest has expired first.
    Lapsed { session: usize },
    /// Another resource policy: one that gives what is in `default`, or none.
    Policy { open: bool },
    /// The resource is written, or deleted.
    Resource { there: bool },
    /// Evidence is sent: in `session`, in the shape of `shape`, with the nonce of session `nonce` and key `key`; the evidence
    /// itself binds the nonce of session `bound` and key `bound_key`.
    Attest {
        session: usize,
        shape: ProtocolVersion,
        nonce: usize,
        key: usize,
        bound: usize,
        bound_key: usize,
    },
    /// A resource is asked for in a session.
    Get { session: usize },
    /// A resource is asked for by the token of a session's guest, `damage`d at one place or not.
    GetByToken { session: usize, damage: Option<usize> },
    /// A resource that the policy denies.
    GetDenied { session: usize },
    /// A session that never was.
    Stranger { get: bool },
}

#[derive(Debug, Clone, PartialEq)]
enum Expected {
    Challenged,
    Answered,
    Attested {
        key: usize,
        token: String,
    },
    /// Attested, with a token that has expired.
    Lapsed {
        token: String,
    },
    Gone,
}

struct Session {
    id: String,
    nonce: String,
    version: ProtocolVersion,
    state: Expected,
}

fn version() -> impl Strategy<Value = ProtocolVersion> {
    prop::sample::select(ProtocolVersion::ALL.to_vec())
}

/// Mostly the same session and key everywhere, or hardly anything would get through.
fn step() -> impl Strategy<Value = Step> {
    let honest =
        (0usize..6, version(), 0..KEYS, any::<bool>()).prop_map(|(session, shape, key, own)| Step::Attest {
            session,
            shape: if own { ProtocolVersion::V0_4_0 } else { shape },
            nonce: session,
            key,
            bound: session,
            bound_key: key,
        });
    let any_attest = (0usize..6, version(), 0usize..6, 0..KEYS, 0usize..6, 0..KEYS).prop_map(
        |(session, shape, nonce, key, bound, bound_key)| Step::Attest {
            session,
            shape,
            nonce,
            key,
            bound,
            bound_key,
        },
    );
    prop_oneof![
        3 => version().prop_map(|version| Step::Auth { version }),
        1 => version().prop_map(|version| Step::Expired { version }),
        1 => (0usize..6).prop_map(|session| Step::ExpiredAttested { session }),
        1 => (0usize..6).prop_map(|session| Step::Lapsed { session }),
        // Open and there more often than not, or hardly anything would be released.
        2 => prop::bool::weighted(0.7).prop_map(|open| Step::Policy { open }),
        2 => prop::bool::weighted(0.7).prop_map(|there| Step::Resource { there }),
        4 => honest,
        3 => any_attest,
        3 => (0usize..6).prop_map(|session| Step::Get { session }),
        2 => (0usize..6, prop::option::of(0usize..2000)).prop_map(|(session, damage)| Step::GetByToken { session, damage }),
        1 => (0usize..6).prop_map(|session| Step::GetDenied { session }),
        1 => any::<bool>().prop_map(|get| Step::Stranger { get }),
    ]
}

/// Two of today's keys, and one as clients of 0.1.1 have.
const KEYS: usize = 3;

fn keys() -> &'static [GuestKey; KEYS] {
    static KEYS: OnceLock<[GuestKey; 3]> = OnceLock::new();
    KEYS.get_or_init(|| [GuestKey::ec(), GuestKey::ec(), GuestKey::rsa1_5()])
}

struct World {
    kbs: Arc<Kbs>,
    router: Router,
    sessions: Vec<Session>,
    /// Whether the policy gives what is in `default`.
    open: bool,
    /// Whether the resource is there.
    there: bool,
}

const CLOSED_POLICY: &str = "package policy\nimport rego.v1\ndefault allow := false\n";
const RESOURCE: &str = "/kbs/v0/resource/default/key/1";

impl World {
    async fn new(folder: &std::path::Path) -> Self {
        let kbs = test_utils::kbs(folder, "[protocol]\nallow_rsa1_5 = true\n").await;
        test_utils::set_policy(&kbs, OPEN_POLICY).await;
        let router = test_utils::router(&kbs);
        for path in [RESOURCE, "/kbs/v0/resource/other/key/1"] {
            let put = Request::post(path).body(Body::from(SECRET)).unwrap();
            assert_eq!(send(&router, put).await.status, StatusCode::OK);
        }
        Self { kbs, router, sessions: Vec::new(), open: true, there: true }
    }

    /// Index of the session that a number means; `None` while there is none.
    fn index(&self, number: usize) -> Option<usize> {
        (!self.sessions.is_empty()).then(|| number % self.sessions.len())
    }

    async fn post(&self, path: &str, session: Option<&str>, body: &Value) -> Answer {
        let mut request = Request::post(path);
        if let Some(id) = session {
            request = request.header(header::COOKIE, format!("kbs-session-id={id}"));
        }
        send(&self.router, request.body(Body::from(body.to_string())).unwrap()).await
    }

    async fn get(&self, path: &str, name: header::HeaderName, value: String) -> Answer {
        let request = Request::get(path).header(name, value).body(Body::empty()).unwrap();
        let answer = send(&self.router, request).await;
        assert!(!contains(&answer.body, SECRET), "a secret in clear");
        answer
    }

    async fn run(&mut self, step: &Step) {
        match step {
            Step::Auth { version } => {
                let body = json!({"version": version, "tee": "sample", "extra-params": ""});
                let answer = self.post("/kbs/v0/auth", None, &body).await;
                assert_eq!(answer.status, StatusCode::OK);
                let cookie = answer.headers[header::SET_COOKIE].to_str().unwrap();
                let id = cookie.split(['=', ';']).nth(1).unwrap().to_owned();
                let nonce = answer.json()["nonce"].as_str().unwrap().to_owned();
                assert!(self.sessions.iter().all(|session| session.nonce != nonce && session.id != id));
                self.sessions.push(Session { id, nonce, version: *version, state: Expected::Challenged });
            }
            Step::Expired { version } => {
                self.past(*version).await;
            }
            Step::ExpiredAttested { session } => self.expired_attested(*session).await,
            Step::Lapsed { session } => self.lapsed(*session).await,
            Step::Policy { open } => {
                self.open = *open;
                test_utils::set_policy(&self.kbs, if *open { OPEN_POLICY } else { CLOSED_POLICY }).await;
            }
            Step::Resource { there } => self.resource(*there).await,
            Step::Attest { session, shape, nonce, key, bound, bound_key } => {
                let numbers = (self.index(*session), self.index(*nonce), self.index(*bound));
                if let (Some(session), Some(nonce), Some(bound)) = numbers {
                    self.attest(session, *shape, (nonce, *key), (bound, *bound_key)).await;
                }
            }
            Step::Get { session } => {
                let Some(index) = self.index(*session) else { return };
                let session = &self.sessions[index];
                let cookie = format!("a=b; kbs-session-id={}", session.id);
                let answer = self.get(RESOURCE, header::COOKIE, cookie).await;
                self.released(session, &answer, session.version);
            }
            Step::GetByToken { session, damage } => {
                let Some(index) = self.index(*session) else { return };
                let session = &self.sessions[index];
                let (Expected::Attested { token, .. } | Expected::Lapsed { token }) = &session.state else {
                    return;
                };
                let mut token = token.clone().into_bytes();
                if let Some(at) = damage {
                    let at = at % token.len();
                    // The last bits of base64 may mean nothing; a dot always does.
                    token[at] = if token[at] == b'.' { b'A' } else { b'.' };
                }
                let bearer = format!("Bearer {}", String::from_utf8(token).unwrap());
                let answer = self.get(RESOURCE, header::AUTHORIZATION, bearer).await;
                match damage {
                    None => self.released(session, &answer, ProtocolVersion::V0_4_0),
                    Some(_) => assert_eq!(answer.status, StatusCode::UNAUTHORIZED),
                }
            }
            Step::GetDenied { session } => {
                let Some(index) = self.index(*session) else { return };
                let session = &self.sessions[index];
                let cookie = format!("kbs-session-id={}", session.id);
                let answer = self.get("/kbs/v0/resource/other/key/1", header::COOKIE, cookie).await;
                let attested = matches!(session.state, Expected::Attested { .. });
                let expected = if attested { StatusCode::FORBIDDEN } else { StatusCode::UNAUTHORIZED };
                assert_eq!(answer.status, expected);
            }
            Step::Stranger { get: true } => {
                let cookie = "kbs-session-id=00000000000040008000000000000000".to_owned();
                let answer = self.get(RESOURCE, header::COOKIE, cookie).await;
                assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
            }
            Step::Stranger { get: false } => {
                let body = body(ProtocolVersion::V0_4_0, "n", 0, &evidence("n", 0, ProtocolVersion::V0_4_0));
                for id in [None, Some("00000000000040008000000000000000"), Some("")] {
                    let answer = self.post("/kbs/v0/attest", id, &body).await;
                    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
                }
            }
        }
    }

    async fn resource(&mut self, there: bool) {
        let request = if there { Request::post(RESOURCE) } else { Request::delete(RESOURCE) };
        let body = if there { Body::from(SECRET) } else { Body::empty() };
        let answer = send(&self.router, request.body(body).unwrap()).await;
        let expected = if there || self.there { StatusCode::OK } else { StatusCode::NOT_FOUND };
        assert_eq!(answer.status, expected);
        self.there = there;
    }

    /// A session that was opened ten seconds ago and ends after `seconds`; its id and nonce. The handler cannot be made to wait.
    async fn open_session(&mut self, version: ProtocolVersion, seconds: i64) -> (String, String) {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let nonce = base64_standard(id.as_bytes());
        let context = Context { tee: Tee::Sample, version, nonce: nonce.clone() };
        let peer = Peer::of([127, 0, 0, 1].into());
        let begin = kata_cc_attestation_service::now() - 10;
        self.kbs.sessions.open(&id, peer, &context, (begin, begin + seconds)).await.unwrap();
        (id, nonce)
    }

    /// As a session is after its time.
    async fn past(&mut self, version: ProtocolVersion) -> usize {
        let (id, nonce) = self.open_session(version, 9).await;
        self.sessions.push(Session { id, nonce, version, state: Expected::Gone });
        self.sessions.len() - 1
    }

    /// Notes in a session that was opened ten seconds ago that its guest attested a second later.
    async fn attest_in_store(&self, id: &str, nonce: &str, version: ProtocolVersion, token: &str) {
        let then = kata_cc_attestation_service::now() - 9;
        let sent = version.has_runtime_data().then_some(nonce);
        self.kbs.sessions.take(id, sent, then).await.unwrap();
        let guest = Guest { version, token: token.to_owned() };
        self.kbs.sessions.attested(id, &guest, true, then).await.unwrap();
    }

    async fn expired_attested(&mut self, number: usize) {
        let Some(index) = self.index(number) else { return };
        let Expected::Attested { token, .. } = &self.sessions[index].state else { return };
        let (token, version) = (token.clone(), self.sessions[index].version);
        let at = self.past(version).await;
        let Session { id, nonce, .. } = &self.sessions[at];
        self.attest_in_store(id, nonce, version, &token).await;
    }

    /// The claims of a session's guest in a token that was given long ago.
    async fn lapsed(&mut self, number: usize) {
        let Some(index) = self.index(number) else { return };
        let Expected::Attested { token, .. } = &self.sessions[index].state else { return };
        let claims = from_base64_url(token.split('.').nth(1).unwrap()).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        let broker = self.kbs.service.broker();
        let long_ago = kata_cc_attestation_service::now() - broker.lifetime() - 600;
        let token = broker.issue(&claims["submods"], long_ago).unwrap();
        let version = self.sessions[index].version;
        let (id, nonce) = self.open_session(version, 300).await;
        self.attest_in_store(&id, &nonce, version, &token).await;
        self.sessions.push(Session { id, nonce, version, state: Expected::Lapsed { token } });
    }

    async fn attest(
        &mut self,
        at: usize,
        shape: ProtocolVersion,
        (nonce, key): (usize, usize),
        (bound, bound_key): (usize, usize),
    ) {
        let sent_nonce = self.sessions[nonce].nonce.clone();
        let bound_nonce = self.sessions[bound].nonce.clone();
        let body = body(shape, &sent_nonce, key, &evidence(&bound_nonce, bound_key, shape));
        let session = &self.sessions[at];
        let answer = self.post("/kbs/v0/attest", Some(&session.id), &body).await;
        let same_shape = shape.has_runtime_data() == session.version.has_runtime_data();
        // What takes the challenge: the right nonce, or a shape that sends none in a session that expects none.
        let takes = if shape.has_runtime_data() { nonce == at && same_shape } else { same_shape };
        let good = takes && bound == at && bound_key == key;
        let (expected, state) = match &session.state {
            Expected::Attested { token, .. } | Expected::Lapsed { token } => {
                assert_eq!(answer.json()["token"], **token);
                (StatusCode::OK, session.state.clone())
            }
            Expected::Challenged if good => {
                let token =
                    answer.json()["token"].as_str().unwrap_or_else(|| panic!("{}", answer.json())).to_owned();
                (StatusCode::OK, Expected::Attested { key, token })
            }
            Expected::Challenged if takes => (StatusCode::UNAUTHORIZED, Expected::Answered),
            other => (StatusCode::UNAUTHORIZED, other.clone()),
        };
        assert_eq!(answer.status, expected, "{}", answer.json());
        self.sessions[at].state = state;
    }

    /// Whether an answer is what a session may have: the secret for its guest's key, or nothing.
    fn released(&self, session: &Session, answer: &Answer, form: ProtocolVersion) {
        let Expected::Attested { key, .. } = &session.state else {
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{:?}", session.state);
            return;
        };
        let expected = match (self.open, self.there) {
            (false, _) => StatusCode::FORBIDDEN,
            (true, false) => StatusCode::NOT_FOUND,
            (true, true) => StatusCode::OK,
        };
        assert_eq!(answer.status, expected);
        if expected != StatusCode::OK {
            return;
        }
        let sealed: JweResponse = serde_json::from_slice(&answer.body).unwrap();
        for (number, one) in keys().iter().enumerate() {
            let opened = one.open(&sealed, form);
            let expected = (number == *key).then_some(SECRET);
            assert_eq!(opened.as_deref(), expected, "{form}, key {number}, of the guest is {key}");
        }
    }
}

/// A guest's key, and how it opens what it gets.
struct GuestKey {
    public: TeePubKey,
    private: Private,
}

enum Private {
    Ec(PrivateKey),
    Rsa(Box<Pkcs1PrivateDecryptingKey>),
}

impl GuestKey {
    fn ec() -> Self {
        let private = PrivateKey::generate(&ECDH_P256).unwrap();
        let public = private.compute_public_key().unwrap();
        let (x, y) = public.as_ref()[1..].split_at(32);
        let public = TeePubKey::EC {
            crv: "P-256".to_owned(),
            alg: "ECDH-ES+A256KW".to_owned(),
            x: base64_url(x),
            y: base64_url(y),
        };
        Self { public, private: Private::Ec(private) }
    }

    fn rsa1_5() -> Self {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = private.as_der().unwrap();
        let text = base64_standard(der.as_ref());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
        let TeePubKey::RSA { n, e, .. } = TeeKey::from_pem(pem.as_bytes()).unwrap().public().clone() else {
            panic!()
        };
        let private = Private::Rsa(Box::new(Pkcs1PrivateDecryptingKey::new(private).unwrap()));
        Self { public: TeePubKey::RSA { alg: "RSA1_5".to_owned(), n, e }, private }
    }

    /// What is sealed to this key in the form of a version. In 0.1.1 the header is JSON in clear, the cipher does not bind it, and the tag
    /// is behind the ciphertext.
    fn open(&self, sealed: &JweResponse, form: ProtocolVersion) -> Option<Vec<u8>> {
        let old = form == ProtocolVersion::V0_1_1;
        let header =
            if old { sealed.protected.clone().into_bytes() } else { from_base64_url(&sealed.protected)? };
        let header: Value = serde_json::from_slice(&header).unwrap();
        let wrapped = from_base64_url(&sealed.encrypted_key)?;
        let content_key = match (&self.private, header["alg"].as_str()?) {
            (Private::Ec(private), "ECDH-ES+A256KW") => {
                let coordinate = |name: &str| from_base64_url(header["epk"][name].as_str().unwrap()).unwrap();
                let point = [vec![4], coordinate("x"), coordinate("y")].concat();
                let peer = UnparsedPublicKey::new(&ECDH_P256, point);
                let kek = agreement::agree(private, peer, (), |shared| Ok(concat_kdf(shared))).ok()?;
                let mut content_key = vec![0; 32];
                AesKek::new(&AES_256, kek.as_ref()).ok()?.unwrap(&wrapped, &mut content_key).ok()?.to_vec()
            }
            (Private::Rsa(private), "RSA1_5") => {
                let mut content_key = vec![0; private.min_output_size()];
                private.decrypt(&wrapped, &mut content_key).ok()?.to_vec()
            }
            _ => return None,
        };
        let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &content_key).ok()?);
        let nonce = Nonce::try_assume_unique_for_key(&from_base64_url(&sealed.iv)?).ok()?;
        assert_eq!(old, sealed.tag.is_empty());
        let mut body = [from_base64_url(&sealed.ciphertext)?, from_base64_url(&sealed.tag)?].concat();
        let bound = if old { Aad::from(&b""[..]) } else { Aad::from(sealed.protected.as_bytes()) };
        Some(cipher.open_in_place(nonce, bound, &mut body).ok()?.to_vec())
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Sample evidence for a nonce and a key, hashed as the version's clients do.
fn evidence(nonce: &str, key: usize, shape: ProtocolVersion) -> Value {
    let mut bound = json!({"nonce": nonce, "tee-pubkey": keys()[key].public});
    if shape.has_runtime_data() {
        bound["additional-evidence"] = json!("");
    }
    let digest = HashAlgorithm::Sha384.digest(&canonical(&bound));
    json!({"svn": "1", "report_data": base64_standard(&digest)})
}

fn body(shape: ProtocolVersion, nonce: &str, key: usize, evidence: &Value) -> Value {
    let key = &keys()[key].public;
    if shape.has_runtime_data() {
        return json!({
            "init-data": null,
            "runtime-data": {"nonce": nonce, "tee-pubkey": key},
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
        });
    }
    json!({"tee-pubkey": key, "tee-evidence": evidence.to_string()})
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_released_but_to_whom_attested(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let mut world = World::new(folder.path()).await;
            for step in &steps {
                world.run(step).await;
            }
        });
    }
}
