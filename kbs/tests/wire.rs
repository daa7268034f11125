//! Requests of Trustee's clients as they are on the wire, replayed byte for byte against the real `kbs` for each version of the
//! protocol, and the answers compared: status, headers, shape of the body, error bodies.
//!
//! What a request cannot have fixed, since the server chose it, stands in braces: the cookie, the nonce, evidence over that.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::net::SocketAddr;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rsa::{KeySize, Pkcs1PrivateDecryptingKey, PrivateDecryptingKey};
use common::Server;
use common::raw::{Reply, exchange, request};
use kata_cc_kbs_client::{KeyAlgorithm, TeeKey, jwe};
use kata_cc_kbs_protocol::rcar::{HashAlgorithm, canonical};
use kata_cc_kbs_protocol::{
    ErrorInformation, JweResponse, TeePubKey, base64_standard, base64_url, from_base64_url,
};
use serde_json::{Value, json};

const SECRET: &[u8] = b"the resource's bytes \x00\xff";

/// What attestation-agent's client (reqwest) puts into every request.
const AGENT: &[&str] = &[
    "content-type: application/json",
    "user-agent: attestation-agent-kbs-client/0.21.0",
    "accept: */*",
    "host: 127.0.0.1:8080",
];
/// What `kbs-client` puts into every request.
const TOOL: &[&str] = &["user-agent: kbs-client/0.21.0", "accept: */*", "host: 127.0.0.1:8080"];

const POLICY: &str =
    "package policy\ndefault allow = false\nallow {\n\tdata[\"resource-path\"][0] == \"default\"\n}\n";

fn start(folder: &std::path::Path, more: &str) -> (Server, SocketAddr) {
    let config = format!(
        "[http_server]\nsockets = [\"127.0.0.1:0\"]\ninsecure_http = true\n[attestation]\nallow_sample = true\n\
         [storage_backend]\nstorage_type = \"Memory\"\n[admin]\nauthorization_mode = \"InsecureAllowAll\"\n{more}"
    );
    std::fs::write(folder.join("kbs.toml"), config).unwrap();
    let server = Server::start(folder);
    let address = server.endpoint.url.trim_start_matches("http://").parse().unwrap();
    (server, address)
}

fn cookie(session: &str) -> String {
    format!("cookie: kbs-session-id={session}")
}

/// `/auth` as each version's client sends it.
fn auth(to: SocketAddr, version: &str) -> Reply {
    let body = match version {
        "0.4.0" => {
            r#"{"version":"0.4.0","tee":"sample","extra-params":{"supported-hash-algorithms":["sha256","sha384","sha512","sm3"]}}"#.to_owned()
        }
        other => format!(r#"{{"version":"{other}","tee":"sample","extra-params":""}}"#),
    };
    exchange(to, &request("POST /kbs/v0/auth", AGENT, body.as_bytes()))
}

fn evidence(bound: &Value) -> String {
    let digest = HashAlgorithm::Sha384.digest(&canonical(bound));
    format!(r#"{{"svn":"1","report_data":"{}"}}"#, base64_standard(&digest))
}

/// `/attest` as each version's client sends it.
fn attest(to: SocketAddr, version: &str, session: &str, nonce: &str, key: &TeePubKey) -> Reply {
    let key = serde_json::to_value(key).unwrap();
    let body = match version {
        "0.4.0" => {
            let bound = json!({"additional-evidence": "", "nonce": nonce, "tee-pubkey": key});
            format!(
                r#"{{"init-data":null,"runtime-data":{{"nonce":"{nonce}","tee-pubkey":{key}}},"tee-evidence":{{"primary_evidence":{},"additional_evidence":""}}}}"#,
                evidence(&bound)
            )
        }
        _ => {
            let text = Value::String(evidence(&json!({"nonce": nonce, "tee-pubkey": key})));
            format!(r#"{{"tee-pubkey":{key},"tee-evidence":{text}}}"#)
        }
    };
    let cookie = cookie(session);
    let headers: Vec<&str> = AGENT.iter().copied().chain([cookie.as_str()]).collect();
    exchange(to, &request("POST /kbs/v0/attest", &headers, body.as_bytes()))
}

fn resource(to: SocketAddr, path: &str, header: &str) -> Reply {
    let headers = ["accept: */*", "user-agent: attestation-agent-kbs-client/0.21.0", "host: x", header];
    let mut bytes = format!("GET /kbs/v0/resource/{path} HTTP/1.1\r\n");
    headers.iter().for_each(|header| bytes += &format!("{header}\r\n"));
    exchange(to, format!("{bytes}\r\n").as_bytes())
}

/// The whole handshake; session id and token.
fn handshake(to: SocketAddr, version: &str, key: &TeePubKey) -> (String, String) {
    let challenge = auth(to, version);
    assert_eq!(challenge.status, 200, "{}", challenge.text());
    let nonce = challenge.json()["nonce"].as_str().unwrap().to_owned();
    // 32 bytes in b64 with padding, and exactly these members in this order.
    assert_eq!(nonce.len(), 44);
    assert_eq!(challenge.text(), format!(r#"{{"nonce":"{nonce}","extra-params":""}}"#));
    assert_eq!(challenge.header("content-type"), Some("application/json"));
    let set = challenge.header("set-cookie").unwrap().to_owned();
    let session = challenge.session();
    assert!(session.len() == 32 && session.bytes().all(|b| b.is_ascii_hexdigit()), "{set}");
    let attributes: Vec<&str> = set.split("; ").skip(1).collect();
    assert!(
        attributes.len() == 1 && attributes[0].starts_with("Expires=") && attributes[0].ends_with(" GMT"),
        "{set}"
    );
    let response = attest(to, version, &session, &nonce, key);
    assert_eq!(response.status, 200, "{version}: {}", response.text());
    assert_eq!(response.session(), session);
    let token = response.json()["token"].as_str().unwrap().to_owned();
    assert_eq!(response.text(), format!(r#"{{"token":"{token}"}}"#));
    // Asked again, the token is told again, whatever the evidence.
    let again = attest(to, version, &session, &nonce, key);
    assert_eq!((again.status, again.text()), (200, response.text()));
    (session, token)
}

/// The error body to the byte, but for the id of the request, which must be the header's: as clients know it, then what problem+json adds.
fn is_error(reply: &Reply, status: u16, name: &str, detail: &str) {
    let id = reply.header("x-request-id").unwrap_or_else(|| panic!("no request id: {reply:?}"));
    assert_eq!(id.len(), 32);
    let detail = Value::String(format!("{detail} (request {id})"));
    let kind = format!("https://github.com/confidential-containers/kbs/errors/{name}");
    let begin = format!(r#"{{"type":"{kind}","detail":{detail},"title":"{name}","status":{status},"#);
    assert!(reply.text().starts_with(&begin), "{} is not {begin}", reply.text());
    let told: ErrorInformation = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(told.name(), name);
    assert_eq!(reply.json()["instance"], format!("urn:kata-cc:request:{id}"));
    assert_eq!((reply.status, reply.header("content-type")), (status, Some("application/problem+json")));
}

fn upload(to: SocketAddr) {
    let octets: Vec<&str> = ["content-type: application/octet-stream"].iter().chain(TOOL).copied().collect();
    let put = exchange(to, &request("POST /kbs/v0/resource/default/key/testfile", &octets, SECRET));
    assert_eq!((put.status, put.body.len()), (200, 0), "{}", put.text());
    let put = exchange(to, &request("POST /kbs/v0/resource/other/key/testfile", &octets, SECRET));
    assert_eq!(put.status, 200);
    let typed: Vec<&str> = ["content-type: application/json"].iter().chain(TOOL).copied().collect();
    let policy = format!(r#"{{"policy":"{}"}}"#, base64_url(POLICY.as_bytes()));
    let put = exchange(to, &request("POST /kbs/v0/resource-policy", &typed, policy.as_bytes()));
    assert_eq!((put.status, put.body.len()), (200, 0), "{}", put.text());
}

#[test]
fn clients_of_every_version_get_their_resource() {
    let folder = tempfile::tempdir().unwrap();
    let (server, to) = start(folder.path(), "");
    upload(to);
    for version in ["0.2.0", "0.4.0"] {
        for algorithm in [KeyAlgorithm::EcdhP256, KeyAlgorithm::EcdhP521, KeyAlgorithm::RsaOaep256] {
            let key = TeeKey::generate(algorithm).unwrap();
            let (session, token) = handshake(to, version, key.public());
            for by in [cookie(&session), format!("authorization: Bearer {token}")] {
                let reply = resource(to, "default/key/testfile", &by);
                assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
                let sealed: JweResponse = serde_json::from_slice(&reply.body).unwrap();
                assert_eq!(
                    jwe::decrypt(&key, &sealed).unwrap().as_slice(),
                    SECRET,
                    "{version} {algorithm:?}"
                );
                // Members in the order of the real server, none besides.
                let names: Vec<String> = reply
                    .text()
                    .split("\":\"")
                    .filter_map(|part| part.rsplit('"').next().map(str::to_owned))
                    .take(5)
                    .collect();
                assert_eq!(names, ["protected", "encrypted_key", "iv", "ciphertext", "tag"]);
            }
        }
    }
    // The key decides, not only the version: attesting works for a client of 0.1.1, its key for RSA1_5 is not answered.
    let (key, _) = rsa1_5();
    let (session, _) = handshake(to, "0.1.1", &key);
    let reply = resource(to, "default/key/testfile", &cookie(&session));
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("JweError") && reply.text().contains("allow_rsa1_5"), "{}", reply.text());
    let (code, log) = server.stop();
    assert_eq!(code, Some(0));
    for version in ["0.1.1", "0.2.0", "0.4.0"] {
        assert!(log.contains(&format!("protocol=\"{version}\"")), "{version} is not in the log");
    }
    assert!(!log.contains("the resource's bytes"));
}

/// What an administrator's tools send, to the byte, and what is answered: of kbs-client, but for the last of each, which our own does.
#[test]
fn administrators_requests_do_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let (server, to) = start(folder.path(), "");
    let send = |bytes: &str| exchange(to, bytes.as_bytes());
    let post = |path: &str, body: &str| {
        let length = body.len();
        send(&format!(
            "POST /kbs/v0/{path} HTTP/1.1\r\ncontent-type: application/json\r\nuser-agent: kbs-client/0.21.0\r\n\
             accept: */*\r\nhost: 127.0.0.1:8080\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
    };
    let call = |method: &str, path: &str| {
        send(&format!(
            "{method} /kbs/v0/{path} HTTP/1.1\r\nuser-agent: kbs-client/0.21.0\r\naccept: */*\r\nhost: 127.0.0.1:8080\r\n\r\n"
        ))
    };

    // `set-attestation-policy`: the text counts from the next handshake on.
    let policy = "package policy\nimport rego.v1\ndefault executables := 33\n";
    let body = format!(
        r#"{{"type":"rego","policy_id":"default_cpu","policy":"{}"}}"#,
        base64_url(policy.as_bytes())
    );
    let set = post("attestation-policy", &body);
    assert_eq!((set.status, set.body.len()), (200, 0), "{}", set.text());
    let read = call("GET", "attestation-policy/default_cpu");
    assert_eq!((read.status, &read.json()["policy"]), (200, &json!(policy)), "{}", read.text());

    // `set-sample-reference-value` writes its members in this order; a name may have slashes.
    let value = base64_standard(br#"{"vendor/model/3":[1,2]}"#);
    let set =
        post("reference-value", &format!(r#"{{"payload":"{value}","type":"sample","version":"0.1.0"}}"#));
    assert_eq!((set.status, set.text().as_str()), (200, ""), "{}", set.text());
    assert_eq!(set.header("content-type"), Some("application/json"));
    let read = call("GET", "reference-value/vendor/model/3");
    assert_eq!((read.status, read.text().as_str()), (200, "[1,2]"));
    assert_eq!(read.header("content-type"), Some("application/json"));
    let read = call("GET", "reference-value/vendor/model");
    is_error(&read, 404, "ResourceNotFound", "reference value vendor/model does not exist");

    // The policies that there are, by name; without their text.
    let listed = call("GET", "resource-policy");
    assert_eq!((listed.status, listed.text().as_str()), (200, r#"["resource-policy"]"#));

    // `delete-resource`: gone for guests, and gone is gone.
    upload(to);
    let key = TeeKey::generate(KeyAlgorithm::EcdhP256).unwrap();
    let (session, _) = handshake(to, "0.4.0", key.public());
    assert_eq!(resource(to, "default/key/testfile", &cookie(&session)).status, 200);
    let deleted = call("DELETE", "resource/default/key/testfile");
    assert_eq!((deleted.status, deleted.body.len()), (200, 0), "{}", deleted.text());
    let missing = "resource kbs:///default/key/testfile does not exist";
    is_error(&resource(to, "default/key/testfile", &cookie(&session)), 404, "ResourceNotFound", missing);
    is_error(&call("DELETE", "resource/default/key/testfile"), 404, "ResourceNotFound", missing);
    assert_eq!(server.stop().0, Some(0));
}

/// The messages of the vectors: what is taken is there as it was sent, what is not is refused for its reason, and changes nothing.
#[test]
fn messages_of_reference_values_are_taken_or_refused() {
    let Some(folder) = kata_cc_test_vectors::path("coco/rvps") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (server, to) = start(dir.path(), "");
    let typed: Vec<&str> = ["content-type: application/json"].iter().chain(TOOL).copied().collect();
    let post = |body: &[u8]| exchange(to, &request("POST /kbs/v0/reference-value", &typed, body));
    let stored = || exchange(to, b"GET /kbs/v0/reference-value HTTP/1.1\r\nhost: x\r\n\r\n").json();
    let nothing = stored();
    let invalid: Vec<Value> =
        serde_json::from_slice(&std::fs::read(folder.join("invalid.json")).unwrap()).unwrap();
    let words = ["version", "sample", "base64", "object", "provenance"];
    assert_eq!(invalid.len(), words.len());
    for (case, word) in invalid.iter().zip(words) {
        let reply = post(case["message"].as_str().unwrap().as_bytes());
        assert_eq!(reply.status, 400, "{}: {}", case["case"], reply.text());
        assert!(
            reply.json()["detail"].as_str().unwrap().contains(word),
            "{}: {}",
            case["case"],
            reply.text()
        );
    }
    // CoRIM as it is, and in a message that says so.
    let corim = std::fs::read(folder.join("unsigned-example-corim.cbor")).unwrap();
    let reply = post(&corim);
    assert!(reply.status == 400 && reply.text().contains("not JSON"), "{}", reply.text());
    let message =
        json!({"version": "0.1.0", "type": "corim", "payload": base64_standard(&corim)}).to_string();
    let reply = post(message.as_bytes());
    assert!(reply.status == 400 && reply.text().contains("only sample is known"), "{}", reply.text());
    assert_eq!(stored(), nothing);

    let digest = |byte: &str| Value::from(byte.repeat(48));
    let expected = json!({
        "snp_launch_measurement": [digest("ab"), digest("cd")], "snp_bootloader": [4, 10], "snp_smt_enabled": true,
        "svn": ["1"], "empty": [],
    });
    for name in ["sample-message.json", "sample-message-no-version.json"] {
        let reply = post(&std::fs::read(folder.join(name)).unwrap());
        assert_eq!((reply.status, reply.body.len()), (200, 0), "{name}: {}", reply.text());
        for (id, value) in expected.as_object().unwrap() {
            let reply = exchange(
                to,
                format!("GET /kbs/v0/reference-value/{id} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes(),
            );
            assert_eq!((reply.status, &reply.json()), (200, value), "{name}: {id}");
            let gone = format!("DELETE /kbs/v0/reference-value/{id} HTTP/1.1\r\nhost: x\r\n\r\n");
            assert_eq!(exchange(to, gone.as_bytes()).status, 200, "{name}: {id}");
        }
    }
    assert_eq!(server.stop().0, Some(0));
}

fn rsa1_5() -> (TeePubKey, Pkcs1PrivateDecryptingKey) {
    use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
    let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = private.as_der().unwrap();
    let text = base64_standard(der.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
    let TeePubKey::RSA { n, e, .. } = TeeKey::from_pem(pem.as_bytes()).unwrap().public().clone() else {
        panic!()
    };
    (TeePubKey::RSA { alg: "RSA1_5".to_owned(), n, e }, Pkcs1PrivateDecryptingKey::new(private).unwrap())
}

#[test]
fn a_client_of_0_1_1_decrypts_as_it_did() {
    let folder = tempfile::tempdir().unwrap();
    let (server, to) = start(folder.path(), "[protocol]\nallow_rsa1_5 = true\n");
    upload(to);
    let (key, private) = rsa1_5();
    let (session, _) = handshake(to, "0.1.1", &key);
    let reply = resource(to, "default/key/testfile", &cookie(&session));
    assert_eq!(reply.status, 200, "{}", reply.text());
    let sealed = reply.json();
    // guest-components v0.10 reads `protected` as JSON, and gives ciphertext and tag to the cipher as one.
    let header: Value = serde_json::from_str(sealed["protected"].as_str().unwrap()).unwrap();
    assert_eq!(header, json!({"alg": "RSA1_5", "enc": "A256GCM"}));
    assert_eq!(sealed["tag"], "");
    let bytes = |name: &str| from_base64_url(sealed[name].as_str().unwrap()).unwrap();
    let mut out = vec![0; private.min_output_size()];
    let content_key = private.decrypt(&bytes("encrypted_key"), &mut out).unwrap();
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, content_key).unwrap());
    let (mut body, iv) = (bytes("ciphertext"), bytes("iv"));
    let nonce = Nonce::try_assume_unique_for_key(&iv).unwrap();
    assert_eq!(cipher.open_in_place(nonce, Aad::empty(), &mut body).unwrap(), SECRET);
    assert_eq!(server.stop().0, Some(0));
}

/// A denial says for programs, too, what failed: of a guest that is not as it should be by its token, of refused evidence by the claim
/// that differed; the log of the verdict says the same, with the policy.
#[test]
fn denials_list_what_failed() {
    let folder = tempfile::tempdir().unwrap();
    let (server, to) = start(folder.path(), "");
    upload(to);
    let key = TeeKey::generate(KeyAlgorithm::EcdhP256).unwrap();
    let (session, _) = handshake(to, "0.4.0", key.public());
    let by = cookie(&session);
    let reply = resource(to, "other/key/testfile", &by);
    assert_eq!(reply.status, 403);
    // Clients that know `type` and `detail` alone read it as before.
    assert_eq!(serde_json::from_slice::<ErrorInformation>(&reply.body).unwrap().name(), "PolicyDeny");
    let body = reply.json();
    let checks = body["checks"].as_array().unwrap_or_else(|| panic!("no checks: {body}"));
    let of = |claim: &str| checks.iter().find(|check| check["claim"] == claim).unwrap();
    let svn = of("svn");
    assert_eq!(
        (&svn["rule"], &svn["seen"], &svn["expected"]),
        (&json!("hardware"), &json!("1"), &json!(null))
    );
    assert_eq!((&svn["submod"], &svn["reference"]), (&json!("cpu0"), &json!("svn")));
    assert_eq!(svn["policy_digest"].as_str().unwrap().len(), 64);
    assert!(svn["what_to_do"].as_str().unwrap().contains("register the version"), "{svn}");
    assert_eq!(of("launch_digest")["seen"], "abcde");
    assert_eq!(checks.len(), 2, "{body}");

    // Evidence over something else.
    let challenge = auth(to, "0.4.0");
    let (session, nonce) = (challenge.session(), challenge.json()["nonce"].as_str().unwrap().to_owned());
    let public = serde_json::to_value(key.public()).unwrap();
    let body = json!({
        "init-data": null, "runtime-data": {"nonce": nonce, "tee-pubkey": public},
        "tee-evidence": {"primary_evidence": serde_json::from_str::<Value>(&evidence(&json!({}))).unwrap(),
            "additional_evidence": ""},
    });
    let other = cookie(&session);
    let headers: Vec<&str> = AGENT.iter().copied().chain([other.as_str()]).collect();
    let reply = exchange(to, &request("POST /kbs/v0/attest", &headers, body.to_string().as_bytes()));
    assert_eq!(reply.status, 401, "{}", reply.text());
    let checks = reply.json()["checks"].clone();
    assert_eq!(
        (&checks[0]["rule"], &checks[0]["claim"]),
        (&json!("report-data"), &json!("report_data")),
        "{checks}"
    );
    assert_ne!(checks[0]["seen"], checks[0]["expected"]);
    assert!(checks[0]["what_to_do"].as_str().unwrap().contains("attest anew"), "{checks}");
    assert_eq!(checks.as_array().unwrap().len(), 1);

    // Where nothing was compared there is no list.
    for reply in [resource(to, "default/key/nothing", &by), resource(to, "default/key/testfile", "a: b")] {
        assert!(reply.status >= 400 && reply.json().get("checks").is_none(), "{}", reply.text());
    }
    let (code, log) = server.stop();
    assert_eq!(code, Some(0));
    let line = log.lines().find(|line| line.contains("claim=\"svn\"")).unwrap_or_else(|| panic!("{log}"));
    for words in [
        "verdict=\"contraindicated\"",
        "submod=\"cpu0\"",
        "rule=\"hardware\"",
        "seen=\"1\"",
        "expected=null",
        "reference=\"svn\"",
        "policy=\"default_cpu\"",
        "policy_digest=\"",
        "what_to_do=\"register the version",
    ] {
        assert!(line.contains(words), "{words} is missing in {line}");
    }
    let refused = log.lines().find(|line| line.contains("reason=\"report-data\"")).unwrap();
    assert!(refused.contains("what_to_do=\"attest anew") && refused.contains("expected="), "{refused}");
}

#[test]
fn errors_have_trustees_bodies() {
    let folder = tempfile::tempdir().unwrap();
    let (server, to) = start(folder.path(), "");
    upload(to);
    let auth_failed = "Attestation error: RCAR handshake Auth failed:";
    // What guest-components' own test looks for.
    for version in ["0.3.0", "1.0.0", "0.4.0-rc.1"] {
        let detail = format!(
            "{auth_failed} KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is {version}; \
             supported are 0.1.1, 0.2.0, 0.4.0"
        );
        is_error(&auth(to, version), 401, "AttestationError", &detail);
    }
    let detail = format!(
        "{auth_failed} failed to parse KBS version: \"new\" is not MAJOR.MINOR.PATCH; supported are 0.1.1, 0.2.0, 0.4.0"
    );
    is_error(&auth(to, "new"), 401, "AttestationError", &detail);

    let reply = resource(to, "default/key/testfile", "a: b");
    is_error(
        &reply,
        401,
        "TokenNotFound",
        "Attestation Token not found: attest first: no attested session and no bearer token",
    );
    let reply = resource(to, "default/key/testfile", "authorization: Bearer a.b.c");
    assert_eq!(reply.status, 401);
    assert!(
        reply.text().contains("/errors/TokenVerifierError\",\"detail\":\"Token Verifier error: "),
        "{}",
        reply.text()
    );

    let key = TeeKey::generate(KeyAlgorithm::EcdhP256).unwrap();
    let (session, _) = handshake(to, "0.4.0", key.public());
    let by = cookie(&session);
    let reply = resource(to, "default/key/nothing", &by);
    is_error(&reply, 404, "ResourceNotFound", "resource kbs:///default/key/nothing does not exist");
    let denied = "Access denied by policy: rule data.policy.allow of resource-policy does not hold for";
    let reply = resource(to, "other/key/testfile", &by);
    assert_eq!(reply.status, 403);
    assert!(
        reply.text().contains("/errors/PolicyDeny\"") && reply.text().contains(denied),
        "{}",
        reply.text()
    );
    // Denied before anybody learns that there is nothing.
    let reply = resource(to, "other/key/nothing", &by);
    assert!(reply.status == 403 && reply.text().contains(denied), "{}", reply.text());
    let reply = resource(to, "default/key", &by);
    is_error(&reply, 404, "InvalidRequestPath", "invalid request path: a resource is repository/type/tag");
    let get = |path: &str| exchange(to, format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
    is_error(&get("/kbs/v0/nebula-ca/credential"), 404, "PluginNotFound", "Plugin nebula-ca not found");
    is_error(
        &get("/kbs/v0/resource/default/key/..%2fx"),
        404,
        "InvalidRequestPath",
        "invalid request path: tag in a resource path must be 1 to 255 of [a-zA-Z0-9_.-] and not start with a dot, seen \"../x\"",
    );

    // Evidence that was made for something else, and the nonce is gone with it.
    let challenge = auth(to, "0.4.0");
    let (session, nonce) = (challenge.session(), challenge.json()["nonce"].as_str().unwrap().to_owned());
    let other = base64_standard(&[7; 32]);
    let reply = attest(to, "0.4.0", &session, &other, key.public());
    assert_eq!(reply.status, 401);
    assert!(
        reply.text().contains("Attest failed: the nonce is not the one of this session"),
        "{}",
        reply.text()
    );
    let reply = attest(to, "0.2.0", &session, &nonce, key.public());
    assert_eq!(reply.status, 401, "the shape of another version: {}", reply.text());
    assert_eq!(attest(to, "0.4.0", &session, &nonce, key.public()).status, 200);
    let reply = exchange(to, b"POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
    assert_eq!((reply.status, reply.header("allow")), (405, Some("GET,HEAD")));
    let health = exchange(to, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!((health.status, health.body.len()), (200, 0));
    assert_eq!(server.stop().0, Some(0));
}
