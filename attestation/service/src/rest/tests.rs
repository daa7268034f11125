//! The REST interface without a network: every route, what it refuses, and that it is described.

use super::*;
use crate::gate::AdminGate;
use crate::jws::{SigningKey, VerifyingKey};
use crate::service::AttestationService;
use crate::sources::{Sources, TrustedSource};
use crate::store::{Store, StoreKey};
use crate::token::TokenBroker;
use crate::verify::SampleVerifier;
use axum::http::request::Builder;
use kata_cc_kbs_protocol::admin::ReferenceValueMessage;
use kata_cc_kbs_protocol::rcar::{HashAlgorithm, canonical};
use kata_cc_kbs_protocol::{base64_standard, base64_url};
use std::collections::BTreeSet;
use tower::ServiceExt as _;

mod audit;

pub(super) fn key(algorithm: &str) -> SigningKey {
    SigningKey::from_pem(SigningKey::generate_pem(algorithm).unwrap().as_bytes()).unwrap()
}

struct Bench {
    api: Arc<Api>,
    router: Router,
    admin: String,
    signer: SigningKey,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    kind: String,
    id: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }
}

async fn bench() -> Bench {
    let (admin, signer) = (key("EdDSA"), key("ES256"));
    let store = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
    let verifier = Box::new(SampleVerifier { enabled: true });
    let service = AttestationService::new(store, verifier, TokenBroker::new(key("ES256"), "test", 5));
    let service = Arc::new(service.await.unwrap());
    let gate = AdminGate::for_key(admin.public_pem().unwrap().as_bytes()).unwrap();
    let api = Api::new(service, gate).await.unwrap();
    let trusted = TrustedSource {
        name: "release".to_owned(),
        key: VerifyingKey::from_jwk(&signer.jwk()).unwrap(),
        names: Vec::new(),
        subjects: [("vmlinux".to_owned(), "kernel".to_owned())].into(),
        builder: None,
    };
    api.sources.store(Arc::new(Sources { trusted: vec![trusted] }));
    let api = Arc::new(api);
    let claims = json!({"role": "admin", "sub": "alice", "exp": crate::now() + 600});
    let admin = admin.sign(&json!({}), &claims).unwrap();
    Bench { router: router(Arc::clone(&api)), api, admin, signer }
}

impl Bench {
    async fn send(&self, request: Builder, body: impl Into<Body>) -> Answer {
        let request = request.body(body.into()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let header = |name: &str| {
            response.headers().get(name).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default()
        };
        let (status, kind, id) = (response.status().as_u16(), header("content-type"), header("x-request-id"));
        let body = axum::body::to_bytes(response.into_body(), 16 << 20).await.unwrap().to_vec();
        Answer { status, kind, id, body }
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.send(Request::builder().method(method).uri(path), body.to_string()).await
    }

    async fn admin(&self, method: &str, path: &str, body: &Value) -> Answer {
        let token = format!("Bearer {}", self.admin);
        self.send(
            Request::builder().method(method).uri(path).header("authorization", token),
            body.to_string(),
        )
        .await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Request::builder().uri(path), Body::empty()).await
    }

    async fn register(&self, values: &Value) {
        let answer = self.admin("POST", "/api/v1/reference-values", &json!({ "values": values })).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// Sample evidence that binds structured runtime data.
fn request(bound: &Value) -> Value {
    let digest = HashAlgorithm::Sha384.digest(&canonical(bound));
    let evidence = json!({"svn": "1", "report_data": base64_standard(&digest)});
    json!({"tee": "sample", "evidence": evidence, "runtime_data": {"structured": bound}})
}

fn evaluate(bound: &Value) -> Value {
    json!({"verification_requests": [request(bound)]})
}

fn assert_problem(answer: &Answer, status: u16, reason: &str, field: Option<&str>) {
    let problem = answer.json();
    assert_eq!((answer.status, answer.kind.as_str()), (status, MEDIA_TYPE), "{problem}");
    assert_eq!(problem["status"], status, "{problem}");
    assert_eq!(problem["reason"], reason, "{problem}");
    assert_eq!(problem["type"], format!("urn:kata-cc:attestation-service:{reason}"));
    assert_eq!(problem["field"].as_str(), field, "{problem}");
    assert_eq!(problem["request_id"], answer.id);
    assert!(!answer.id.is_empty() && !problem["detail"].as_str().unwrap().is_empty());
}

#[test]
fn every_route_is_described_and_every_described_path_is_routed() {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(|method| (path.clone(), method.to_uppercase()))
        })
        .collect();
    let routed: BTreeSet<(String, String)> = routes()
        .into_iter()
        .flat_map(|(path, methods)| methods.into_iter().map(move |(m, _)| (path.to_owned(), m.to_string())))
        .collect();
    assert_eq!(described, routed);
    // References lead somewhere, and names of operations are unique.
    let schemas = &document["components"]["schemas"];
    for name in OPENAPI.split("#/components/schemas/").skip(1) {
        let name = name.split('"').next().unwrap();
        assert!(schemas.get(name).is_some(), "{name}");
    }
    let ids: Vec<_> =
        OPENAPI.split("\"operationId\": \"").skip(1).map(|s| s.split('"').next().unwrap()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
}

#[tokio::test]
async fn what_is_described_answers_by_that_method() {
    let bench = bench().await;
    for (path, methods) in routes() {
        let path = path.replace("{id}", "default_cpu").replace("{name}", "x").replace("{version}", "1");
        for (method, _) in methods {
            let answer = bench.ask(method.as_str(), &path, &json!(null)).await;
            assert_ne!(answer.status, 405, "{method} {path}");
            assert!(answer.status < 500, "{method} {path}: {answer:?}");
            if answer.status == 404 {
                assert_ne!(answer.json()["reason"], "path", "{method} {path}");
            }
        }
        let wrong = bench.ask("PATCH", &path, &json!(null)).await;
        assert_problem(&wrong, 405, "method", None);
    }
    assert_problem(&bench.get("/nothing").await, 404, "path", None);
    assert_eq!(bench.get("/openapi.json").await.json()["openapi"], "3.1.0");
}

#[tokio::test]
async fn a_verdict_and_why() {
    let bench = bench().await;
    let bound = json!({"nonce": "n"});
    let answer = bench.ask("POST", "/api/v1/evaluate", &evaluate(&bound)).await.json();
    assert_eq!(answer["status"], "contraindicated");
    let checks = answer["submods"]["cpu0"]["explanation"].as_array().unwrap();
    let check = checks.iter().find(|check| check["claim"] == "svn").unwrap();
    assert_eq!(
        (&check["rule"], &check["seen"], &check["ok"]),
        (&json!("hardware"), &json!("1"), &json!(false))
    );
    assert_eq!(check["reference"]["state"], "not-registered");
    assert_eq!(
        (&check["policy"]["id"], check["policy"]["digest"].as_str().unwrap().len()),
        (&json!("default_cpu"), 64)
    );
    assert!(!check["what_to_do"].as_str().unwrap().is_empty());
    bench.register(&json!({"svn": ["1"], "launch_digest": ["abcde"]})).await;
    let answer = bench.ask("POST", "/api/v1/evaluate", &evaluate(&bound)).await.json();
    assert_eq!(answer["status"], "affirming");
    let checks = answer["submods"]["cpu0"]["explanation"].as_array().unwrap();
    assert!(checks.len() >= 3 && checks.iter().all(|check| check["ok"] == true), "{checks:?}");
    let svn = checks.iter().find(|check| check["claim"] == "svn").unwrap();
    assert_eq!(
        (&svn["reference"]["state"], &svn["reference"]["source"]["kind"]),
        (&json!("valid"), &json!("rvps"))
    );
    // The token is good, and tells the same.
    let token = &answer["token"];
    let verified = bench.ask("POST", "/api/v1/tokens/verify", &json!({ "token": token })).await.json();
    assert_eq!((&verified["valid"], &verified["alg"]), (&json!(true), &json!("ES256")));
    assert_eq!(verified["claims"]["submods"]["cpu0"]["ear.status"], "affirming");
    let told = bench.ask("POST", "/api/v1/explain", &json!({ "token": token })).await.json();
    assert_eq!(told["submods"]["cpu0"]["findings"], json!([]));
    let told = bench.ask("POST", "/api/v1/explain", &evaluate(&bound)).await.json();
    assert_eq!((&told["status"], told.get("token")), (&json!("affirming"), None));
    // Trustee's path gives the token alone; evidence is base64url there.
    let mut trustee = evaluate(&bound);
    let evidence = trustee["verification_requests"][0]["evidence"].to_string();
    trustee["verification_requests"][0]["evidence"] = json!(base64_url(evidence.as_bytes()));
    trustee["unknown"] = json!("is ignored, as by Trustee");
    let answer = bench.ask("POST", "/attestation", &trustee).await;
    assert_eq!((answer.status, answer.kind.as_str()), (200, "text/plain; charset=utf-8"));
    let token = String::from_utf8(answer.body).unwrap();
    bench.api.service.verify_token(&token, crate::now()).await.unwrap();
    let metrics = String::from_utf8(bench.get("/metrics").await.body).unwrap();
    for words in [
        "verdicts_total{tee=\"sample\",verdict=\"affirming\",reason=\"none\"} 3",
        "step=\"appraise\"",
        "path=\"/attestation\"",
    ] {
        assert!(metrics.contains(words), "{words}: {metrics}");
    }
}

#[tokio::test]
async fn a_challenge_is_answered_once() {
    let bench = bench().await;
    let nonce = bench.ask("POST", "/api/v1/challenge", &json!({})).await.json()["challenge"].clone();
    let with = |bound: &Value, nonce: &Value| {
        let mut request = evaluate(bound);
        request["challenge"] = nonce.clone();
        request
    };
    let other = bench.ask("POST", "/api/v1/evaluate", &with(&json!({"nonce": "n"}), &nonce)).await;
    assert_problem(&other, 422, "challenge-not-bound", Some("runtime_data"));
    let good = with(&json!({"nonce": nonce, "tee-pubkey": {}}), &nonce);
    assert_eq!(bench.ask("POST", "/api/v1/evaluate", &good).await.status, 200);
    let again = bench.ask("POST", "/api/v1/evaluate", &good).await;
    assert_problem(&again, 422, "challenge-answered", Some("challenge"));
    let made_up = with(&json!({"nonce": "x"}), &json!("x"));
    let answer = bench.ask("POST", "/api/v1/evaluate", &made_up).await;
    assert_problem(&answer, 422, "challenge-unknown", Some("challenge"));
    let text = bench.ask("POST", "/challenge", &json!({"tee": "snp", "tee_params": ""})).await;
    assert_eq!((text.status, text.body.len()), (200, 43));
}

/// A key broker may trust our tokens: nobody but the administrator decides what they say.
#[tokio::test]
async fn changes_are_the_administrators() {
    let bench = bench().await;
    let closed =
        router(Arc::new(Api::new(Arc::clone(&bench.api.service), AdminGate::closed()).await.unwrap()));
    let policy = json!({"policy_id": "default_cpu", "policy": base64_url(b"package policy\ntrust_claims := {\"hardware\": 2}")});
    let values =
        serde_json::to_value(ReferenceValueMessage::sample(&[("x".to_owned(), json!(["y"]))].into()))
            .unwrap();
    let calls = [
        ("POST", "/policy", policy),
        ("POST", "/reference-value", values.clone()),
        ("POST", "/api/v1/reference-values", values),
        ("POST", "/api/v1/reference-values", json!({"values": {"x": ["y"]}})),
        ("POST", "/api/v1/reference-values/x/expire", json!({})),
        ("DELETE", "/api/v1/reference-values/x", json!(null)),
        ("PUT", "/api/v1/policies/default_cpu", json!({"policy": "package policy"})),
        ("DELETE", "/api/v1/policies/default_cpu", json!(null)),
        ("POST", "/api/v1/policies/dry-run", json!({"claims": {}})),
        ("POST", "/api/v1/tokens/keys/rotate", json!({})),
    ];
    let jwks = bench.api.service.jwks();
    for (method, path, body) in &calls {
        assert_problem(&bench.ask(method, path, body).await, 401, "admin", Some("authorization"));
        let token = format!("Bearer {}", bench.admin);
        let request = Request::builder().method(*method).uri(*path).header("authorization", token);
        let answer =
            closed.clone().oneshot(request.body(Body::from(body.to_string())).unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
    }
    assert!(bench.api.service.reference_values().await.unwrap().is_empty());
    assert!(bench.api.service.policy("default_cpu").await.unwrap().1);
    assert_eq!(bench.api.service.jwks(), jwks);
    for (method, path, body) in &calls {
        let answer = bench.admin(method, path, body).await;
        assert!((200..300).contains(&answer.status), "{method} {path}: {answer:?}");
    }
}

#[tokio::test]
async fn reference_values_come_end_and_go() {
    let bench = bench().await;
    let path = "/api/v1/reference-values";
    let sign = |iat: i64, value: &str| {
        let claims = json!({"iat": iat, "iss": "ci", "reference_values": {"svn": [value], "a/b": [1]}});
        let token = bench.signer.sign(&json!({}), &claims).unwrap();
        json!({"version": "0.1.0", "type": "signed", "payload": token})
    };
    let now = crate::now();
    let first = bench.ask("POST", path, &sign(now - 20, "1")).await;
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(first.json()["registered"][1]["source"]["signer"], "release");
    assert_eq!(bench.ask("POST", path, &sign(now - 10, "2")).await.status, 200);
    assert_problem(&bench.ask("POST", path, &sign(now - 20, "1")).await, 409, "replay", Some("payload"));
    let one = bench.get("/api/v1/reference-values/svn").await.json();
    assert_eq!((&one["value"], &one["expired"]), (&json!(["2"]), &json!(false)));
    assert_eq!(bench.get("/api/v1/reference-values/a%2Fb").await.json()["value"], json!([1]));
    assert_problem(&bench.get("/api/v1/reference-values/none").await, 404, "not-found", None);
    bench.register(&json!({"launch_digest": ["abcde"]})).await;
    // An added value, beside the one that is there.
    let add = json!({"values": {"svn": "1"}, "add": true});
    let added = bench.admin("POST", path, &add).await.json();
    assert_eq!(added["registered"][0]["value"], json!(["2", "1"]));
    assert_eq!(added["registered"][0]["registered_by"], "alice");
    let status = async || bench.ask("POST", "/api/v1/evaluate", &evaluate(&json!({}))).await.json();
    assert_eq!(status().await["status"], "affirming");
    // What has ended matches nothing, and the verdict says so.
    let ended = bench.admin("POST", "/api/v1/reference-values/svn/expire", &json!({})).await.json();
    assert_eq!(ended["expired"], true);
    let verdict = status().await;
    assert_eq!(verdict["status"], "contraindicated");
    let check = &verdict["submods"]["cpu0"]["explanation"][0];
    assert_eq!((&check["claim"], &check["reference"]["state"]), (&json!("svn"), &json!("expired")));
    assert!(check["what_to_do"].as_str().unwrap().contains("svn expired at"), "{check}");
    let names = async |query: &str| {
        let list = bench.get(&format!("{path}{query}")).await.json();
        let all = list["reference_values"].as_array().unwrap().iter();
        all.map(|one| one["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("").await, ["a/b", "launch_digest"]);
    assert_eq!(names("?expired=true&prefix=s").await, ["svn"]);
    assert_problem(&bench.get(&format!("{path}?colour=red")).await, 400, "request", None);
    let never = json!({"at": null});
    assert_eq!(
        bench.admin("POST", "/api/v1/reference-values/svn/expire", &never).await.json()["expired"],
        false
    );
    assert_eq!(status().await["status"], "affirming");
    assert_eq!(bench.admin("DELETE", "/api/v1/reference-values/svn", &json!(null)).await.status, 204);
    let gone = bench.admin("DELETE", "/api/v1/reference-values/svn", &json!(null)).await;
    assert_problem(&gone, 404, "not-found", Some("name"));
    // An old signed message does not bring it back.
    assert_problem(&bench.ask("POST", path, &sign(now - 5, "1")).await, 409, "replay", Some("payload"));
    let bad_time = json!({"values": {"x": 1}, "expiration": "tomorrow"});
    assert_problem(&bench.admin("POST", path, &bad_time).await, 400, "request", Some("expiration"));
    let null = json!({"values": {"x": [null]}});
    assert_problem(&bench.admin("POST", path, &null).await, 400, "reference-value", Some("values"));
}

#[tokio::test]
async fn policies_have_versions_and_are_tried_before() {
    let bench = bench().await;
    let path = "/api/v1/policies/mine_cpu";
    let text = |value: i8| format!("package policy\ntrust_claims := {{\"hardware\": {value}}}");
    let set = bench.admin("PUT", path, &json!({"policy": text(2)})).await.json();
    assert_eq!(set["by"], "alice");
    bench.admin("PUT", path, &json!({"policy": text(97)})).await;
    let versions = bench.get(&format!("{path}/versions")).await.json()["versions"].clone();
    assert_eq!(versions.as_array().unwrap().len(), 2);
    assert_eq!(versions[1], set);
    let old = bench.get(&format!("{path}/versions/{}", set["version"])).await.json();
    assert_eq!((&old["policy"], &old["digest"]), (&json!(text(2)), &set["digest"]));
    assert_eq!(bench.get(path).await.json()["policy"], text(97));
    assert_problem(&bench.get(&format!("{path}/versions/7")).await, 404, "not-found", None);
    assert_problem(&bench.get(&format!("{path}/versions/x")).await, 400, "request", None);
    let listed = bench.get("/api/v1/policies").await.json();
    let ids: Vec<_> = listed["policies"].as_array().unwrap().iter().map(|one| &one["id"]).collect();
    assert_eq!(ids, ["default_cpu", "default_gpu", "mine_cpu"]);
    // Errors of compilation say where.
    let broken =
        bench.admin("PUT", path, &json!({"policy": "package policy\n\nallow if {\n  input.x ==\n}\n"})).await;
    assert_problem(&broken, 400, "policy", Some("policy"));
    let told = broken.json()["detail"].as_str().unwrap().to_owned();
    assert!(told.contains("at line ") && told.contains("column "), "{told}");
    assert_eq!(bench.get(path).await.json()["policy"], text(97), "what was in force stays so");
    for id in ["a.b", "a%2Fb", &"x".repeat(256), "%20"] {
        let answer = bench.admin("PUT", &format!("/api/v1/policies/{id}"), &json!({"policy": text(2)})).await;
        assert_eq!(answer.status, 404, "{id}");
    }
    // Dry runs: on claims, on evidence, with other values; nothing stays.
    let run = async |body: Value| bench.admin("POST", "/api/v1/policies/dry-run", &body).await;
    let tried = run(json!({"policy": text(3), "claims": {"sample": {}}})).await.json();
    assert_eq!(
        (&tried["status"], &tried["trustworthiness_vector"]["hardware"]),
        (&json!("affirming"), &json!(3))
    );
    let tried = run(json!({"policy_id": "mine_cpu", "claims": {}})).await.json();
    assert_eq!(tried["status"], "contraindicated");
    let values = json!({"svn": ["1"], "launch_digest": ["abcde"]});
    let evidence = json!({"verification_request": request(&json!({})), "reference_values": values.clone()});
    let tried = run(evidence).await.json();
    assert_eq!((&tried["status"], &tried["claims"]["sample"]["svn"]), (&json!("affirming"), &json!("1")));
    assert!(bench.api.service.reference_values().await.unwrap().is_empty());
    // On evidence that is kept, which only administrators see.
    let kept = "/api/v1/evidence/node-1.sample";
    let put = async |path: &str, body: &Value| bench.admin("PUT", path, body).await;
    assert_eq!(put(kept, &request(&json!({}))).await.status, 204);
    let tried = run(json!({"stored_evidence": "node-1.sample", "reference_values": values})).await.json();
    assert_eq!((&tried["status"], &tried["claims"]["sample"]["svn"]), (&json!("affirming"), &json!("1")));
    assert_problem(&run(json!({"stored_evidence": "x"})).await, 404, "not-found", None);
    assert_problem(&run(json!({"stored_evidence": "x", "claims": {}})).await, 400, "request", Some("claims"));
    assert_problem(&put(kept, &json!({"tee": "sample"})).await, 400, "missing-field", Some("evidence"));
    assert_problem(&put("/api/v1/evidence/a%20b", &request(&json!({}))).await, 400, "request", None);
    for (method, path) in [("GET", "/api/v1/evidence"), ("GET", kept), ("PUT", kept), ("DELETE", kept)] {
        assert_problem(
            &bench.ask(method, path, &request(&json!({}))).await,
            401,
            "admin",
            Some("authorization"),
        );
    }
    let all = bench.admin("GET", "/api/v1/evidence", &json!(null)).await.json();
    assert_eq!(all["evidence"][0]["name"], "node-1.sample");
    assert_eq!(bench.admin("GET", kept, &json!(null)).await.json(), request(&json!({})));
    assert_eq!(bench.admin("DELETE", kept, &json!(null)).await.status, 204);
    assert_problem(&bench.admin("DELETE", kept, &json!(null)).await, 404, "not-found", None);
    assert_problem(&run(json!({})).await, 400, "request", Some("claims"));
    assert_problem(
        &run(json!({"claims": {}, "policy_id": "none_cpu"})).await,
        404,
        "policy-id",
        Some("policy_id"),
    );
    assert_problem(
        &run(json!({"claims": {}, "policy": "package policy\ntrust_claims := 3"})).await,
        422,
        "policy-failed",
        Some("policy_ids"),
    );
    // A policy reaches neither network nor files, and does not run for ever.
    for call in ["http.send({\"method\": \"GET\", \"url\": \"http://127.0.0.1/\"})", "opa.runtime()"] {
        let text = format!("package policy\ntrust_claims := {{\"hardware\": 2}} if {call}");
        let answer = run(json!({"claims": {}, "policy": text})).await;
        assert!((400..500).contains(&answer.status), "{call}: {answer:?}");
    }
    let endless = "package policy\ntrust_claims := {\"hardware\": 2} if { some i in numbers.range(1, 100000); some j in numbers.range(1, 100000); i * j == -1 }";
    assert_problem(
        &run(json!({"claims": {}, "policy": endless})).await,
        422,
        "policy-failed",
        Some("policy_ids"),
    );
    assert_eq!(bench.admin("DELETE", path, &json!(null)).await.status, 204);
    assert_problem(&bench.get(path).await, 404, "policy-id", Some("policy_id"));
    assert_eq!(bench.get(&format!("{path}/versions")).await.json()["versions"][0]["digest"], "");
}

#[tokio::test]
async fn keys_are_rotated_by_the_administrator() {
    let bench = bench().await;
    let token = |answer: Value| answer["token"].as_str().unwrap().to_owned();
    let old = token(bench.ask("POST", "/api/v1/evaluate", &evaluate(&json!({}))).await.json());
    let rotated =
        bench.admin("POST", "/api/v1/tokens/keys/rotate", &json!({"algorithm": "EdDSA"})).await.json();
    assert_eq!((&rotated["signing"]["alg"], rotated["keys"].as_array().unwrap().len()), (&json!("EdDSA"), 2));
    let new = token(bench.ask("POST", "/api/v1/evaluate", &evaluate(&json!({}))).await.json());
    let jwks = bench.get("/.well-known/jwks.json").await.json();
    assert_eq!(jwks["keys"][0]["kid"], rotated["signing"]["kid"]);
    for token in [old, new] {
        // A client that has nothing but the key set.
        let mut verifier = crate::token::TokenVerifier::default();
        assert_eq!(verifier.trust_jwks(&jwks), 2);
        verifier.verify(&token, crate::now()).unwrap();
        let answer = bench.ask("POST", "/api/v1/tokens/verify", &json!({ "token": token })).await.json();
        assert_eq!(answer["valid"], true);
    }
    let forged = key("ES256").sign(&json!({}), &json!({"exp": crate::now() + 60})).unwrap();
    let answer = bench.ask("POST", "/api/v1/tokens/verify", &json!({ "token": forged })).await.json();
    assert_eq!((&answer["valid"], &answer["reason"]), (&json!(false), &json!("untrusted-key")));
    assert_problem(
        &bench.ask("POST", "/api/v1/explain", &json!({ "token": forged })).await,
        422,
        "untrusted-key",
        Some("token"),
    );
    let bad = bench.admin("POST", "/api/v1/tokens/keys/rotate", &json!({"algorithm": "none"})).await;
    assert_problem(&bad, 400, "request", Some("algorithm"));
    let metadata = bench.get("/.well-known/openid-configuration").await.json();
    assert_eq!(metadata["jwks_uri"], "/.well-known/jwks.json");
    assert_eq!(metadata["id_token_signing_alg_values_supported"], json!(["ES256", "EdDSA"]));
}

#[tokio::test]
async fn bad_input_is_refused_with_field_and_reason() {
    let bench = bench().await;
    let post = |path: &str| Request::post(path.to_owned());
    let path = "/api/v1/evaluate";
    let nested = format!("{}{}", "[".repeat(4096), "]".repeat(4096));
    let deep = format!("{{\"verification_requests\": {nested}}}");
    type Case = (Builder, Vec<u8>, u16, &'static str, Option<&'static str>);
    let cases: Vec<Case> = vec![
        (post(path), vec![], 400, "syntax", Some("body")),
        (post(path), b"{".to_vec(), 400, "syntax", Some("body")),
        (post(path), b"{}".to_vec(), 400, "missing-field", Some("verification_requests")),
        (
            post(path),
            br#"{"verification_requests": [], "colour": 1}"#.to_vec(),
            400,
            "unknown-field",
            Some("colour"),
        ),
        (post(path), br#"{"verification_requests": 7}"#.to_vec(), 400, "type", Some("body")),
        (
            post(path),
            br#"{"verification_requests": [{"tee": "abacus", "evidence": {}}]}"#.to_vec(),
            400,
            "unknown-tee",
            Some("tee"),
        ),
        (
            post("/attestation"),
            br#"{"verification_requests": [{"tee": "abacus", "evidence": ""}]}"#.to_vec(),
            400,
            "unknown-tee",
            Some("tee"),
        ),
        (post(path), br#"{"verification_requests": []}"#.to_vec(), 400, "request", None),
        (post(path), vec![b'"', 0xff, b'"'], 400, "not-utf8", Some("body")),
        (post(path), nested.clone().into_bytes(), 400, "nested", Some("body")),
        (post(path), deep.into_bytes(), 400, "nested", Some("body")),
        (post(path), vec![b' '; MAX_BODY + 1], 413, "too-large", Some("body")),
        (
            post(path).header("content-type", "text/xml"),
            b"{}".to_vec(),
            415,
            "content-type",
            Some("content-type"),
        ),
        (
            post("/policy").header("authorization", format!("Bearer {}", bench.admin)),
            b"[]".to_vec(),
            400,
            "type",
            Some("body"),
        ),
        (Request::get("/policy/%ff"), vec![], 400, "request", None),
    ];
    for (request, body, status, reason, field) in cases {
        let what = String::from_utf8_lossy(&body).chars().take(60).collect::<String>();
        let answer = bench.send(request, body).await;
        println!("{what}");
        assert_problem(&answer, status, reason, field);
    }
    let evidence = |one: Value| json!({"verification_requests": [one]});
    for (one, status, reason, field) in [
        (json!({"tee": "sample", "evidence": 1}), 400, "request", Some("evidence")),
        (json!({"tee": "sample", "evidence": "!"}), 400, "request", Some("evidence")),
        (json!({"tee": "sample", "evidence": {}}), 422, "malformed", Some("evidence")),
        (json!({"tee": "sgx", "evidence": {}}), 422, "tee-not-supported", None),
        (
            json!({"tee": "sample", "evidence": {}, "runtime_data": {"raw": "%"}}),
            400,
            "request",
            Some("runtime_data"),
        ),
        (
            json!({"tee": "sample", "evidence": {}, "runtime_data_hash_algorithm": "md5"}),
            400,
            "request",
            Some("runtime_data_hash_algorithm"),
        ),
        (
            json!({"tee": "sample", "evidence": {}, "init_data": {"init_data_toml": "x"}}),
            422,
            "init-data",
            None,
        ),
    ] {
        let answer = bench.ask("POST", path, &evidence(one.clone())).await;
        if matches!(reason, "tee-not-supported" | "init-data") {
            // The sample verifier looks at nothing else.
            assert!((400..500).contains(&answer.status), "{one}");
            continue;
        }
        assert_problem(&answer, status, reason, field);
    }
    let mut other = request(&json!({"nonce": "a"}));
    other["runtime_data"] = json!({"structured": {"nonce": "b"}});
    assert_problem(&bench.ask("POST", path, &evidence(other)).await, 422, "report-data", Some("report_data"));
    let mut unknown = evaluate(&json!({}));
    unknown["policy_ids"] = json!(["none"]);
    assert_problem(&bench.ask("POST", path, &unknown).await, 404, "policy-id", Some("policy_id"));
    // The id of a request is the caller's, when it is a name.
    let named = bench.send(Request::get("/healthz").header("x-request-id", "me-1"), Body::empty()).await;
    assert_eq!((named.status, named.id.as_str()), (200, "me-1"));
    let odd = bench.send(Request::get("/healthz").header("x-request-id", "a b"), Body::empty()).await;
    assert_eq!(odd.id.len(), 32);
}

#[tokio::test]
async fn the_policy_source_is_for_administrators() {
    let bench = bench().await;
    let calls = [
        ("GET", "/api/v1/policy-source"),
        ("PUT", "/api/v1/policy-source/pin"),
        ("DELETE", "/api/v1/policy-source/pin"),
    ];
    for (method, path) in calls {
        let answer = bench.send(axum::http::Request::builder().method(method).uri(path), "{}").await;
        assert_eq!(answer.status, 401, "{method} {path}: {}", String::from_utf8_lossy(&answer.body));
    }
}
