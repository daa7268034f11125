//! The handshake against a model: whatever is called in whatever order, the key broker answers as the model says, and releases a
//! resource only to a guest whose evidence bound the nonce of its own, fresh session and its own key.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use kata_cc_attestation_service::serve::Peer;
use kata_cc_kbs_client::{KeyAlgorithm, TeeKey, jwe};
use kata_cc_kbs_protocol::rcar::{HashAlgorithm, canonical};
use kata_cc_kbs_protocol::{JweResponse, ProtocolVersion, Tee, base64_standard};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::session::Context;
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
    Attested { key: usize, token: String },
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
    let honest = (0usize..6, version(), 0usize..2, any::<bool>()).prop_map(|(session, shape, key, own)| {
        Step::Attest {
            session,
            shape: if own { ProtocolVersion::V0_4_0 } else { shape },
            nonce: session,
            key,
            bound: session,
            bound_key: key,
        }
    });
    let any_attest = (0usize..6, version(), 0usize..6, 0usize..2, 0usize..6, 0usize..2).prop_map(
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
        4 => honest,
        3 => any_attest,
        3 => (0usize..6).prop_map(|session| Step::Get { session }),
        2 => (0usize..6, prop::option::of(0usize..2000)).prop_map(|(session, damage)| Step::GetByToken { session, damage }),
        1 => (0usize..6).prop_map(|session| Step::GetDenied { session }),
        1 => any::<bool>().prop_map(|get| Step::Stranger { get }),
    ]
}

fn keys() -> &'static [TeeKey; 2] {
    static KEYS: OnceLock<[TeeKey; 2]> = OnceLock::new();
    KEYS.get_or_init(|| {
        let make = || TeeKey::generate(KeyAlgorithm::EcdhP256).unwrap();
        [make(), make()]
    })
}

struct World {
    kbs: Arc<Kbs>,
    router: Router,
    sessions: Vec<Session>,
}

impl World {
    async fn new(folder: &std::path::Path) -> Self {
        let kbs = test_utils::kbs(folder, "").await;
        test_utils::set_policy(&kbs, OPEN_POLICY).await;
        let router = test_utils::router(&kbs);
        for path in ["/kbs/v0/resource/default/key/1", "/kbs/v0/resource/other/key/1"] {
            let put = Request::post(path).body(Body::from(SECRET)).unwrap();
            assert_eq!(send(&router, put).await.status, StatusCode::OK);
        }
        Self { kbs, router, sessions: Vec::new() }
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
            Step::Expired { version } => self.expired(*version).await,
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
                let answer = self.get("/kbs/v0/resource/default/key/1", header::COOKIE, cookie).await;
                self.released(session, &answer, session.version);
            }
            Step::GetByToken { session, damage } => {
                let Some(index) = self.index(*session) else { return };
                let session = &self.sessions[index];
                let Expected::Attested { token, .. } = &session.state else { return };
                let mut token = token.clone().into_bytes();
                if let Some(at) = damage {
                    let at = at % token.len();
                    // The last bits of base64 may mean nothing; a dot always does.
                    token[at] = if token[at] == b'.' { b'A' } else { b'.' };
                }
                let bearer = format!("Bearer {}", String::from_utf8(token).unwrap());
                let answer = self.get("/kbs/v0/resource/default/key/1", header::AUTHORIZATION, bearer).await;
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
                let answer = self.get("/kbs/v0/resource/default/key/1", header::COOKIE, cookie).await;
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

    /// As a session is after its time; the handler cannot be made to wait.
    async fn expired(&mut self, version: ProtocolVersion) {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let nonce = base64_standard(id.as_bytes());
        let context = Context { tee: Tee::Sample, version, nonce: nonce.clone() };
        let peer = Peer::of([127, 0, 0, 1].into());
        let now = kata_cc_attestation_service::now();
        self.kbs.sessions.open(&id, peer, &context, (now - 10, now - 1)).await.unwrap();
        self.sessions.push(Session { id, nonce, version, state: Expected::Gone });
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
            Expected::Attested { token, .. } => {
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
        assert_eq!(answer.status, StatusCode::OK);
        if form == ProtocolVersion::V0_1_1 {
            // Its form is tested where it is made.
            return;
        }
        let sealed: JweResponse = serde_json::from_slice(&answer.body).unwrap();
        let keys = keys();
        assert_eq!(jwe::decrypt(&keys[*key], &sealed).unwrap().as_slice(), SECRET);
        assert!(jwe::decrypt(&keys[1 - *key], &sealed).is_err());
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Sample evidence for a nonce and a key, hashed as the version's clients do.
fn evidence(nonce: &str, key: usize, shape: ProtocolVersion) -> Value {
    let mut bound = json!({"nonce": nonce, "tee-pubkey": keys()[key].public()});
    if shape.has_runtime_data() {
        bound["additional-evidence"] = json!("");
    }
    let digest = HashAlgorithm::Sha384.digest(&canonical(&bound));
    json!({"svn": "1", "report_data": base64_standard(&digest)})
}

fn body(shape: ProtocolVersion, nonce: &str, key: usize, evidence: &Value) -> Value {
    let key = keys()[key].public();
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
