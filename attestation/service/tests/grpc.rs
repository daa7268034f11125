//! The gRPC interface of the real binary on loopback, by a client of the same protos; and the bytes on the wire.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use kata_cc_attestation_service::jws::SigningKey;
use kata_cc_attestation_service::token::TokenVerifier;
use kata_cc_grpc_protocol::attestation::attestation_service_client::AttestationServiceClient;
use kata_cc_grpc_protocol::attestation::individual_attestation_request::{InitData, RuntimeData};
use kata_cc_grpc_protocol::attestation::{
    AttestationRequest, AttestationResponse, ChallengeRequest, IndividualAttestationRequest, SetPolicyRequest,
};
use kata_cc_grpc_protocol::health::health_client::HealthClient;
use kata_cc_grpc_protocol::health::{HealthCheckRequest, HealthCheckResponse};
use kata_cc_grpc_protocol::reference::reference_value_provider_service_client::ReferenceValueProviderServiceClient;
use kata_cc_grpc_protocol::reference::{
    ReferenceValueQueryRequest, ReferenceValueQueryResponse, ReferenceValueRegisterRequest,
};
use kata_cc_kbs_protocol::admin::ReferenceValueMessage;
use kata_cc_kbs_protocol::rcar::{HashAlgorithm, canonical};
use kata_cc_kbs_protocol::{base64_standard, base64_url};
use prost::Message as _;
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

/// A running service; ended when dropped.
struct Service {
    child: Child,
    grpc: String,
    rest: String,
    admin: String,
    _log: std::thread::JoinHandle<()>,
}

impl Service {
    fn start(dir: &Path, config: &str) -> Self {
        let key = SigningKey::from_pem(SigningKey::generate_pem("EdDSA").unwrap().as_bytes()).unwrap();
        std::fs::write(dir.join("admin.pem"), key.public_pem().unwrap()).unwrap();
        let config = format!(
            "socket = \"127.0.0.1:0\"\ngrpc_socket = \"127.0.0.1:0\"\nwork_dir = \"work\"\nallow_sample = true\n{config}\n\
             [admin]\npublic_key = \"admin.pem\"\n"
        );
        std::fs::write(dir.join("config.toml"), config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_attestation-service"))
            .arg("--config-file")
            .arg(dir.join("config.toml"))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let (mut rest, mut grpc, mut seen) = (None, None, String::new());
        while rest.is_none() || grpc.is_none() {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "it did not start: {seen}");
            let value = |name: &str| {
                line.split_once(name).and_then(|(_, rest)| rest.split_whitespace().next()).map(str::to_owned)
            };
            rest = rest.or_else(|| value("address="));
            grpc = grpc.or_else(|| value("grpc="));
            seen += &line;
        }
        // Somebody has to read the log, or the service would wait for it.
        let log = std::thread::spawn(move || for _ in log.lines() {});
        let claims = json!({"role": "admin", "exp": kata_cc_attestation_service::now() + 600});
        let admin = format!("Bearer {}", key.sign(&json!({}), &claims).unwrap());
        Self { child, grpc: grpc.unwrap(), rest: rest.unwrap(), admin, _log: log }
    }

    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap().connect().await.unwrap()
    }

    fn as_admin<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.admin.parse().unwrap());
        request
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sample(bound: &Value) -> IndividualAttestationRequest {
    let digest = HashAlgorithm::Sha384.digest(&canonical(bound));
    let evidence = json!({"svn": "1", "report_data": base64_standard(&digest)}).to_string();
    IndividualAttestationRequest {
        tee: "sample".to_owned(),
        evidence: base64_url(evidence.as_bytes()),
        runtime_data: Some(RuntimeData::StructuredRuntimeData(bound.to_string())),
        init_data: None,
        runtime_data_hash_algorithm: String::new(),
    }
}

fn claims(token: &str) -> Value {
    let middle = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&kata_cc_kbs_protocol::from_base64_url(middle).unwrap()).unwrap()
}

#[tokio::test]
async fn trustees_calls_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path(), "");
    let channel = service.channel().await;
    let mut attestation = AttestationServiceClient::new(channel.clone());
    let mut reference = ReferenceValueProviderServiceClient::new(channel.clone());
    let bound = json!({"nonce": "n"});
    let request = |one: IndividualAttestationRequest| AttestationRequest {
        verification_requests: vec![one],
        policy_ids: vec!["default".to_owned()],
    };
    let token = attestation.attestation_evaluate(request(sample(&bound))).await.unwrap().into_inner();
    let token = claims(&token.attestation_token);
    assert_eq!(token["submods"]["cpu0"]["ear.status"], "contraindicated");
    // Reference values: registered by the administrator, seen by everybody.
    let values = [("svn".to_owned(), json!(["1"])), ("launch_digest".to_owned(), json!(["abcde"]))];
    let message = serde_json::to_string(&ReferenceValueMessage::sample(&values.into())).unwrap();
    let register = || ReferenceValueRegisterRequest { message: message.clone() };
    let denied = reference.register_reference_value(register()).await.unwrap_err();
    assert_eq!(denied.code(), Code::Unauthenticated, "{denied:?}");
    reference.register_reference_value(service.as_admin(register())).await.unwrap();
    let mut query = async |name: &str| {
        let request = ReferenceValueQueryRequest { reference_value_id: name.to_owned() };
        reference.query_reference_value(request).await.unwrap().into_inner().reference_value_results
    };
    assert_eq!(query("svn").await.as_deref(), Some("[\"1\"]"));
    assert_eq!(query("none").await, None);
    let token = attestation.attestation_evaluate(request(sample(&bound))).await.unwrap().into_inner();
    assert_eq!(claims(&token.attestation_token)["submods"]["cpu0"]["ear.status"], "affirming");
    // Policies.
    let policy = |text: &str| SetPolicyRequest {
        policy_id: "mine_cpu".to_owned(),
        policy: base64_url(text.as_bytes()),
    };
    let good = "package policy\ntrust_claims := {\"hardware\": 97}";
    assert_eq!(
        attestation.set_attestation_policy(policy(good)).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    attestation.set_attestation_policy(service.as_admin(policy(good))).await.unwrap();
    let mut mine = request(sample(&bound));
    mine.policy_ids = vec!["mine".to_owned()];
    let token = attestation.attestation_evaluate(mine).await.unwrap().into_inner().attestation_token;
    assert_eq!(claims(&token)["submods"]["cpu0"]["ear.appraisal-policy-id"], "mine");
    // Failures are ABORTED and say why.
    let broken = attestation.set_attestation_policy(service.as_admin(policy("package policy\nx if {"))).await;
    let broken = broken.unwrap_err();
    assert!(broken.code() == Code::Aborted && broken.message().contains("line"), "{broken:?}");
    let mut other = sample(&bound);
    other.runtime_data = Some(RuntimeData::StructuredRuntimeData("{\"nonce\":\"m\"}".to_owned()));
    let mut bad_json = sample(&bound);
    bad_json.runtime_data = Some(RuntimeData::StructuredRuntimeData("{".to_owned()));
    let mut bad_init_data = sample(&bound);
    bad_init_data.init_data = Some(InitData::InitDataToml("x".to_owned()));
    for (one, words) in [
        (other, "report_data differs"),
        (bad_json, "structured_runtime_data is not JSON"),
        (bad_init_data, "init"),
        (IndividualAttestationRequest { tee: "abacus".to_owned(), ..sample(&bound) }, "abacus"),
        (IndividualAttestationRequest { evidence: "!".to_owned(), ..sample(&bound) }, "base64url"),
        (
            IndividualAttestationRequest { runtime_data_hash_algorithm: "md5".to_owned(), ..sample(&bound) },
            "md5",
        ),
    ] {
        let status = attestation.attestation_evaluate(request(one)).await.unwrap_err();
        assert!(status.code() == Code::Aborted && status.message().contains(words), "{words}: {status:?}");
    }
    let empty = attestation.attestation_evaluate(AttestationRequest::default()).await.unwrap_err();
    assert_eq!(empty.code(), Code::Aborted);
    let large = IndividualAttestationRequest {
        evidence: "A".repeat(kata_cc_kbs_protocol::MAX_BODY),
        ..sample(&bound)
    };
    let status = attestation.attestation_evaluate(request(large)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    let challenge = ChallengeRequest { inner: [("tee".to_owned(), "snp".to_owned())].into() };
    let challenge = attestation.get_attestation_challenge(challenge).await.unwrap().into_inner();
    assert_eq!(challenge.attestation_challenge.len(), 43);
    assert_eq!(
        attestation.get_attestation_challenge(ChallengeRequest::default()).await.unwrap_err().code(),
        Code::Aborted
    );
    // Health.
    let mut health = HealthClient::new(channel);
    let mut check = async |name: &str| health.check(HealthCheckRequest { service: name.to_owned() }).await;
    for name in ["", "attestation.AttestationService"] {
        assert_eq!(check(name).await.unwrap().into_inner().status, 1, "{name}");
    }
    assert_eq!(check("other.Service").await.unwrap_err().code(), Code::NotFound);
    assert!(service.rest.starts_with("127.0.0.1:"));
}

/// A client that trusts the one certificate that is given to both ports.
#[tokio::test]
async fn tls_is_spoken_where_a_certificate_is_configured() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(dir.path().join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let service =
        Service::start(dir.path(), "tls = { certificate = \"cert.pem\", private_key = \"key.pem\" }");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let address = service.grpc.clone();
    let connect = tower::service_fn(move |_: axum::http::Uri| {
        let (connector, address) = (connector.clone(), address.clone());
        async move {
            let stream = tokio::net::TcpStream::connect(address).await?;
            let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
            let stream = connector.connect(name, stream).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connect).await.unwrap();
    let mut attestation = AttestationServiceClient::new(channel);
    let request =
        AttestationRequest { verification_requests: vec![sample(&json!({}))], policy_ids: Vec::new() };
    let token = attestation.attestation_evaluate(request).await.unwrap().into_inner().attestation_token;
    assert_eq!(TokenVerifier::default().verify(&token, 0).unwrap_err().reason(), "untrusted-key");
    // Without TLS nobody is answered.
    let plain = Endpoint::from_shared(format!("http://{}", service.grpc)).unwrap();
    let refused = match plain.connect().await {
        Err(_) => true,
        Ok(channel) => {
            let request = HealthCheckRequest { service: String::new() };
            HealthClient::new(channel).check(request).await.is_err()
        }
    };
    assert!(refused);
}

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![(number << 3) | 2, u8::try_from(bytes.len()).unwrap()];
    out.extend_from_slice(bytes);
    out
}

/// Field numbers and types, byte by byte: what Trustee's clients send and read.
#[test]
fn messages_are_trustees_on_the_wire() {
    let one = IndividualAttestationRequest {
        tee: "snp".to_owned(),
        evidence: "e30".to_owned(),
        runtime_data: Some(RuntimeData::StructuredRuntimeData("{}".to_owned())),
        init_data: Some(InitData::InitDataToml("x".to_owned())),
        runtime_data_hash_algorithm: "sha384".to_owned(),
    };
    let bytes =
        [field(1, b"snp"), field(3, b"e30"), field(5, b"{}"), field(7, b"x"), field(8, b"sha384")].concat();
    assert_eq!(one.encode_to_vec(), bytes);
    let raw = [field(4, b"AA"), field(6, b"BB")].concat();
    let read = IndividualAttestationRequest::decode(raw.as_slice()).unwrap();
    assert_eq!(read.runtime_data, Some(RuntimeData::RawRuntimeData("AA".to_owned())));
    assert_eq!(read.init_data, Some(InitData::InitDataDigest("BB".to_owned())));
    let request =
        AttestationRequest { verification_requests: vec![one], policy_ids: vec!["default".to_owned()] };
    assert_eq!(request.encode_to_vec(), [field(1, &bytes), field(2, b"default")].concat());
    let answer = AttestationResponse { attestation_token: "t".to_owned() };
    assert_eq!(answer.encode_to_vec(), field(1, b"t"));
    let policy = SetPolicyRequest { policy_id: "a".to_owned(), policy: "b".to_owned() };
    assert_eq!(policy.encode_to_vec(), [field(1, b"a"), field(2, b"b")].concat());
    let challenge = ChallengeRequest { inner: [("tee".to_owned(), "se".to_owned())].into() };
    assert_eq!(challenge.encode_to_vec(), field(1, &[field(1, b"tee"), field(2, b"se")].concat()));
    let message = ReferenceValueRegisterRequest { message: "m".to_owned() };
    assert_eq!(message.encode_to_vec(), field(1, b"m"));
    let query = ReferenceValueQueryRequest { reference_value_id: "n".to_owned() };
    assert_eq!(query.encode_to_vec(), field(1, b"n"));
    let some = ReferenceValueQueryResponse { reference_value_results: Some(String::new()) };
    assert_eq!(some.encode_to_vec(), field(1, b""), "present, though empty");
    assert_eq!(HealthCheckResponse { status: 1 }.encode_to_vec(), [8, 1]);
}
