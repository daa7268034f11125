//! Input that is wrong in every way that could be thought of, as bytes against the real `kbs`: the right 4xx, a body that names what is
//! wrong, never a 5xx, never a hang.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::net::SocketAddr;

use common::Server;
use common::raw::{Reply, exchange, request};
use serde_json::{Value, json};

const JSON: &[&str] = &["host: x", "content-type: application/json"];

fn start(folder: &std::path::Path) -> (Server, SocketAddr) {
    let config = "[http_server]\nsockets = [\"127.0.0.1:0\"]\ninsecure_http = true\npayload_request_size = 1\n\
        [attestation]\nallow_sample = true\n[storage_backend]\nstorage_type = \"Memory\"\n\
        [admin]\nauthorization_mode = \"InsecureAllowAll\"\n[limits]\nresource_size = 100\nresource_sizes = { big = 200 }\n";
    std::fs::write(folder.join("kbs.toml"), config).unwrap();
    let server = Server::start(folder);
    let address = server.endpoint.url.trim_start_matches("http://").parse().unwrap();
    (server, address)
}

fn nested(levels: usize) -> String {
    format!("{}{}", "[".repeat(levels), "]".repeat(levels))
}

fn nested_value(levels: usize) -> Value {
    serde_json::from_str(&nested(levels)).unwrap()
}

/// Status, and a text that the body must have.
fn check(what: &str, reply: &Reply, status: u16, part: &str) {
    assert_eq!(reply.status, status, "{what}: {}", reply.text());
    let body = reply.json();
    assert!(
        body["type"].as_str().unwrap().starts_with("https://github.com/confidential-containers/kbs/errors/")
    );
    let detail = body["detail"].as_str().unwrap();
    assert!(detail.contains(part), "{what}: {detail}");
    assert!(detail.len() < 2000, "{what}: {} characters", detail.len());
    assert!(
        detail.ends_with(&format!("(request {})", reply.header("x-request-id").unwrap())),
        "{what}: {detail}"
    );
}

#[test]
fn the_handshake_takes_nothing_amiss() {
    let folder = tempfile::tempdir().unwrap();
    let (server, to) = start(folder.path());
    let auth = |headers: &[&str], body: &[u8]| exchange(to, &request("POST /kbs/v0/auth", headers, body));
    let good = json!({"version": "0.4.0", "tee": "sample", "extra-params": ""});
    assert_eq!(auth(JSON, good.to_string().as_bytes()).status, 200);
    // Clients that name no content type are believed.
    let challenge = auth(&["host: x"], good.to_string().as_bytes());
    assert_eq!(challenge.status, 200);
    let with = |name: &str, value: Value| {
        let mut body = good.clone();
        body[name] = value;
        body.to_string().into_bytes()
    };
    for (what, body, status, part) in [
        ("empty", Vec::new(), 400, "not JSON"),
        ("no JSON", b"version=0.4.0".to_vec(), 400, "not JSON"),
        ("cut off", b"{\"version\":\"0.4.0\"".to_vec(), 400, "not JSON"),
        ("more behind it", [good.to_string().as_bytes(), b"{}"].concat(), 400, "trailing"),
        ("an array", b"[]".to_vec(), 400, "expected an object, seen an array"),
        ("not UTF-8", b"{\"version\":\"\xff\xfe\"}".to_vec(), 400, "not JSON"),
        ("a lone surrogate", br#"{"version":"\ud800"}"#.to_vec(), 400, "not JSON"),
        (
            "twice",
            br#"{"version":"0.4.0","version":"0.2.0","tee":"sample","extra-params":""}"#.to_vec(),
            400,
            "member \"version\" is there twice",
        ),
        ("deep", with("extra-params", serde_json::from_str(&nested(40)).unwrap()), 400, "nested deeper"),
        ("very deep", format!("{{\"extra-params\":{}", nested(100_000)).into_bytes(), 400, "nested deeper"),
        ("unknown member", with("workload_id", json!("x")), 400, "member workload_id is not known here"),
        (
            "unknown TEE",
            with("tee", json!("enclave")),
            400,
            "member tee is not understood: \"enclave\" is no TEE",
        ),
        (
            "TEE of another kind",
            with("tee", json!(["snp"])),
            400,
            "member tee is not understood: expected a text, seen an array",
        ),
        ("no version", br#"{"tee":"sample","extra-params":""}"#.to_vec(), 400, "member version is missing"),
        ("version of another kind", with("version", json!(4)), 400, "expected a text, seen a number"),
        ("long version", with("version", json!("9".repeat(100_000))), 401, "failed to parse KBS version"),
        ("too large", with("extra-params", json!("x".repeat(1 << 20))), 413, "more than 1048576 bytes"),
    ] {
        check(what, &auth(JSON, &body), status, part);
    }
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/cbor",
    ] {
        let kind = format!("content-type: {kind}");
        check(&kind, &auth(&["host: x", &kind], good.to_string().as_bytes()), 415, "send application/json");
    }
    let session = format!("cookie: kbs-session-id={}", challenge.session());
    let nonce = challenge.json()["nonce"].clone();
    let key = json!({"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "A".repeat(43), "y": "A".repeat(43)});
    let good = json!({
        "runtime-data": {"nonce": nonce, "tee-pubkey": key},
        "tee-evidence": {"primary_evidence": {"svn": "1", "report_data": ""}, "additional_evidence": ""},
    });
    let with = |pointer: &str, value: Value| {
        let mut body = good.clone();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[name] = value;
        body.to_string().into_bytes()
    };
    let headers: Vec<&str> = JSON.iter().copied().chain([session.as_str()]).collect();
    let attest = |headers: &[&str], body: &[u8]| exchange(to, &request("POST /kbs/v0/attest", headers, body));
    for (what, body, status, part) in [
        ("empty", Vec::new(), 400, "not JSON"),
        ("nothing in it", b"{}".to_vec(), 400, "member runtime-data is missing"),
        ("unknown member", with("/x", json!(1)), 400, "member x is not known here"),
        (
            "key with a name",
            with("/runtime-data/tee-pubkey/kid", json!("k")),
            400,
            "member runtime-data.tee-pubkey.kid is not known here",
        ),
        (
            "key of another kind",
            with("/runtime-data/tee-pubkey/kty", json!("oct")),
            400,
            "known are EC and RSA",
        ),
        (
            "long key",
            with("/runtime-data/tee-pubkey/x", json!("A".repeat(100_000))),
            400,
            "member x of tee-pubkey has 100000 characters",
        ),
        ("unknown curve", with("/runtime-data/tee-pubkey/crv", json!("P-1")), 400, "unknown curve"),
        (
            "init-data of another format",
            with("/init-data", json!({"format": "json", "body": "{}"})),
            400,
            "member init-data.format",
        ),
        (
            "deep evidence",
            with("/tee-evidence/primary_evidence", serde_json::from_str(&nested(60)).unwrap()),
            400,
            "nested deeper",
        ),
        (
            "member twice in evidence",
            good.to_string().replace("\"svn\":\"1\"", "\"svn\":\"1\",\"svn\":\"2\"").into_bytes(),
            400,
            "\"svn\" is there twice",
        ),
        (
            "another nonce",
            with("/runtime-data/nonce", json!("x".repeat(100_000))),
            401,
            "the nonce is not the one of this session",
        ),
        (
            "too large",
            with("/tee-evidence/additional_evidence", json!("x".repeat(1 << 20))),
            413,
            "more than 1048576 bytes",
        ),
    ] {
        check(what, &attest(&headers, &body), status, part);
    }
    for (what, cookie) in [
        ("no cookie", "a: b".to_owned()),
        ("another cookie", "cookie: a=b; kbs-session=1".to_owned()),
        ("unknown session", "cookie: kbs-session-id=00000000000000000000000000000000".to_owned()),
        ("long session", format!("cookie: kbs-session-id={}", "x".repeat(50_000))),
    ] {
        check(
            what,
            &attest(&["host: x", &cookie], good.to_string().as_bytes()),
            401,
            "RCAR handshake Attest failed: ",
        );
    }
    // None of that has taken the challenge: this does.
    check("bad evidence", &attest(&headers, good.to_string().as_bytes()), 401, "report_data differs");
    check("again", &attest(&headers, good.to_string().as_bytes()), 401, "the nonce was used before");
    let (code, log) = server.stop();
    assert_eq!(code, Some(0));
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn administration_takes_nothing_amiss() {
    let folder = tempfile::tempdir().unwrap();
    let (server, to) = start(folder.path());
    let send = |line: &str, headers: &[&str], body: &[u8]| exchange(to, &request(line, headers, body));
    let octets = ["host: x", "content-type: application/octet-stream"];
    assert_eq!(send("POST /kbs/v0/resource/a/b/c", &octets, &[7; 100]).status, 200);
    assert_eq!(send("POST /kbs/v0/resource/big/b/c", &octets, &[7; 200]).status, 200);
    check(
        "resource",
        &send("POST /kbs/v0/resource/a/b/c", &octets, &[7; 101]),
        413,
        "more than 100 bytes, which is the most that is taken (limits.resource_size)",
    );
    check(
        "big",
        &send("POST /kbs/v0/resource/big/b/c", &octets, &[7; 201]),
        413,
        "limits.resource_sizes.big",
    );
    for (what, line, body, status, part) in [
        (
            "policy in another alphabet",
            "POST /kbs/v0/resource-policy",
            json!({"policy": "cGFja2FnZSBwb2xpY3k="}).to_string(),
            400,
            "base64url without padding",
        ),
        (
            "no policy",
            "POST /kbs/v0/resource-policy",
            json!({"policy": "cGFja2FnZQ"}).to_string(),
            400,
            "does not compile",
        ),
        (
            "another member",
            "POST /kbs/v0/resource-policy",
            json!({"policy": "cGFja2FnZQ", "id": 1}).to_string(),
            400,
            "unknown field `id`",
        ),
        (
            "attestation policy id",
            "POST /kbs/v0/attestation-policy",
            json!({"policy_id": "../x", "policy": ""}).to_string(),
            404,
            "does not exist or is no name",
        ),
        (
            "reference values",
            "POST /kbs/v0/reference-value",
            json!({"type": "swid", "payload": ""}).to_string(),
            400,
            "only sample is known",
        ),
        ("path that is no UTF-8", "GET /kbs/v0/reference-value/%ff%fe", String::new(), 400, "not understood"),
        ("method", "PATCH /kbs/v0/auth", String::new(), 405, "does not take that method"),
        ("no path", "GET /kbs", String::new(), 404, "/kbs"),
    ] {
        check(what, &send(line, JSON, body.as_bytes()), status, part);
    }
    let long = format!("GET /kbs/v0/resource/a/b/{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(100 << 10));
    let reply = exchange(to, long.as_bytes());
    assert!((400..500).contains(&reply.status), "{}", reply.status);
    let (code, log) = server.stop();
    assert_eq!(code, Some(0));
    assert!(!log.contains("panicked"), "{log}");
}

/// Our own paths answer problem+json: status, what is wrong in words, and which member or parameter it is, where it is one.
#[test]
fn administration_names_field_and_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (server, to) = start(folder.path());
    let dry_run = "POST /kbs/v0/admin/resource-policy/dry-run";
    let claims = json!({});
    for (what, line, body, status, field, reason) in [
        ("no body", dry_run, String::new(), 400, None, "not JSON"),
        ("no JSON", dry_run, "resource=a".to_owned(), 400, None, "not JSON"),
        ("deep", dry_run, json!({"claims": nested_value(60)}).to_string(), 400, None, "nested deeper"),
        ("twice", dry_run, r#"{"resource":"a/b/c","resource":"a/b/d"}"#.to_owned(), 400, None, "there twice"),
        (
            "unknown member",
            dry_run,
            json!({"resource": "a/b/c", "colour": 1}).to_string(),
            400,
            Some("colour"),
            "unknown field",
        ),
        (
            "no resource",
            dry_run,
            json!({"claims": claims}).to_string(),
            400,
            Some("resource"),
            "missing field",
        ),
        (
            "resource of another kind",
            dry_run,
            json!({"resource": 1, "claims": claims}).to_string(),
            400,
            Some("resource"),
            "expected a string",
        ),
        (
            "policy of another kind",
            dry_run,
            json!({"resource": "a/b/c", "claims": claims, "policy": true}).to_string(),
            400,
            Some("policy"),
            "expected a string",
        ),
        (
            "query of another kind",
            dry_run,
            json!({"resource": "a/b/c", "claims": claims, "query": {"a": [1]}}).to_string(),
            400,
            Some("query"),
            "expected a string",
        ),
        (
            "nothing to try on",
            dry_run,
            json!({"resource": "a/b/c"}).to_string(),
            400,
            Some("claims"),
            "exactly one of claims, token and session",
        ),
        (
            "two to try on",
            dry_run,
            json!({"resource": "a/b/c", "claims": claims, "session": "x"}).to_string(),
            400,
            Some("claims"),
            "exactly one of claims, token and session",
        ),
        (
            "claims of another kind",
            dry_run,
            json!({"resource": "a/b/c", "claims": [1]}).to_string(),
            400,
            Some("claims"),
            "expected an object",
        ),
        (
            "no path",
            dry_run,
            json!({"resource": "a", "claims": claims}).to_string(),
            400,
            Some("resource"),
            "repository/type/tag",
        ),
        (
            "no token",
            dry_run,
            json!({"resource": "a/b/c", "token": "x"}).to_string(),
            400,
            Some("token"),
            "token",
        ),
        (
            "no session",
            dry_run,
            json!({"resource": "a/b/c", "session": "x"}).to_string(),
            400,
            Some("session"),
            "no attested guest",
        ),
        (
            "no policy",
            dry_run,
            json!({"resource": "a/b/c", "claims": claims, "policy": "package"}).to_string(),
            400,
            Some("policy"),
            "does not compile",
        ),
        (
            "page",
            "GET /kbs/v0/admin/resources?limit=0",
            String::new(),
            400,
            Some("limit"),
            "\"0\" is no number from 1 to 10000",
        ),
        (
            "no number",
            "GET /kbs/v0/admin/resources?limit=many",
            String::new(),
            400,
            Some("limit"),
            "\"many\" is no number",
        ),
        (
            "parameter",
            "GET /kbs/v0/admin/resources?colour=red",
            String::new(),
            400,
            Some("query"),
            "\"colour\" is not known here",
        ),
        (
            "parameter twice",
            "GET /kbs/v0/admin/resources?limit=1&limit=2",
            String::new(),
            400,
            Some("query"),
            "twice",
        ),
        (
            "records",
            "GET /kbs/v0/admin/audit?limit=0",
            String::new(),
            400,
            Some("limit"),
            "\"0\" is no number from 1",
        ),
        (
            "records after",
            "GET /kbs/v0/admin/audit?after=-1",
            String::new(),
            400,
            Some("after"),
            "\"-1\" is no number",
        ),
        (
            "history of a path",
            "GET /kbs/v0/admin/resources/a/..%2f/c/history",
            String::new(),
            404,
            Some("path"),
            "resource path",
        ),
        (
            "history of nothing",
            "GET /kbs/v0/admin/resources/a/b/c/history",
            String::new(),
            404,
            None,
            "does not exist",
        ),
        (
            "policy of no name",
            "GET /kbs/v0/attestation-policy/..%2fx",
            String::new(),
            404,
            None,
            "does not exist or is no name",
        ),
        (
            "reference value",
            "DELETE /kbs/v0/reference-value/a/b",
            String::new(),
            404,
            None,
            "reference value a/b does not exist",
        ),
        ("method", "PATCH /kbs/v0/admin/resources", String::new(), 405, None, "does not take that method"),
        ("nothing", "GET /kbs/v1", String::new(), 404, Some("path"), "/kbs/v1"),
    ] {
        let reply = exchange(to, &request(line, JSON, body.as_bytes()));
        check(what, &reply, status, reason);
        assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{what}");
        let problem = reply.json();
        assert_eq!(problem["status"], status, "{what}");
        assert_eq!(problem["field"].as_str(), field, "{what}: {problem}");
        if field.is_some() {
            assert!(problem["reason"].as_str().unwrap().contains(reason), "{what}: {problem}");
        }
    }
    let kind = exchange(to, &request(dry_run, &["host: x", "content-type: text/plain"], b"{}"));
    check("media type", &kind, 415, "send application/json");
    assert_eq!(kind.json()["field"], "content-type");
    let (code, log) = server.stop();
    assert_eq!(code, Some(0));
    assert!(!log.contains("panicked"), "{log}");
}

/// A token that is not valid yet or any more by the key broker's clock: told so, and by how much.
#[test]
fn clocks_that_differ_are_told() {
    use kata_cc_attestation_service::jws::SigningKey;
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    common::init(dir, &[]);
    let key = SigningKey::from_pem(&std::fs::read(dir.join("admin.key")).unwrap()).unwrap();
    let config = std::fs::read_to_string(dir.join("kbs.toml")).unwrap();
    let config =
        config.replace("private_key = \"tls.key\"\ncertificate = \"tls.crt\"", "insecure_http = true");
    std::fs::write(dir.join("kbs.toml"), config).unwrap();
    std::fs::remove_file(dir.join("tls.crt")).unwrap();
    let server = Server::start(dir);
    let to: SocketAddr = server.endpoint.url.trim_start_matches("http://").parse().unwrap();
    let now = kata_cc_attestation_service::now();
    let call = |claims: Value| {
        let token = key.sign(&json!({}), &claims).unwrap();
        let bearer = format!("authorization: Bearer {token}");
        exchange(to, &request("GET /kbs/v0/resource-policy", &["host: x", &bearer], b""))
    };
    // A minute is forgiven.
    assert_eq!(call(json!({"role": "admin", "exp": now - 30})).status, 200);
    assert_eq!(call(json!({"role": "admin", "exp": now + 600, "nbf": now + 30})).status, 200);
    check("past", &call(json!({"role": "admin", "exp": now - 3600})), 401, "token expired 3");
    check(
        "future",
        &call(json!({"role": "admin", "exp": now + 7200, "nbf": now + 3600})),
        401,
        "not valid yet, for another 3",
    );
    check("no end", &call(json!({"role": "admin"})), 401, "no expiry");
    check("another role", &call(json!({"role": "guest", "exp": now + 60})), 403, "role guest may not GET it");
    assert_eq!(server.stop().0, Some(0));
}
