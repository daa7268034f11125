//! The operator's side: resources, policies, reference values.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use kata_cc_kbs_protocol::admin::{
    ReferenceValueList, ReferenceValueMessage, ResourceEntry, ResourceList, ResourcePolicyText,
    SetAttestationPolicy, SetResourcePolicy,
};
use kata_cc_kbs_protocol::{ResourcePath, base64_url};
use reqwest::{Method, RequestBuilder};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::ClientError;
use crate::http::{Answer, Endpoint, Http};

/// Seconds that a token which the client signs itself is valid.
const TOKEN_SECONDS: u64 = 300;

enum Key {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

/// How the operator proves who he is.
pub enum AdminAuth {
    /// Not at all; works only with a key broker that lets everybody in.
    None,
    /// A ready bearer token.
    Token(Zeroizing<String>),
    /// A private key, with which a token is signed for each call.
    Key(AdminKey),
}

/// An operator's private key and the role it claims.
pub struct AdminKey {
    key: Key,
    role: String,
}

impl std::fmt::Debug for AdminAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Token(_) => "Token(..)",
            Self::Key(_) => "Key(..)",
        })
    }
}

impl AdminAuth {
    /// Reads a PKCS#8 PEM of an Ed25519 or P-256 key; tokens will name `role`.
    pub fn from_key_pem(pem: &[u8], role: &str) -> Result<Self, ClientError> {
        let unusable = || ClientError::Config("admin key is no PKCS#8 PEM of Ed25519 or P-256".to_owned());
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| unusable())?;
        let der = der.secret_pkcs8_der();
        let key = match EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der) {
            Ok(key) => Key::P256(key),
            Err(_) => Key::Ed25519(Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| unusable())?),
        };
        Ok(Self::Key(AdminKey { key, role: role.to_owned() }))
    }

    /// The bearer token to send now, if any.
    fn token(&self) -> Result<Option<Zeroizing<String>>, ClientError> {
        match self {
            Self::None => Ok(None),
            Self::Token(token) => Ok(Some(token.clone())),
            Self::Key(key) => key.sign().map(Some),
        }
    }
}

impl AdminKey {
    fn sign(&self) -> Result<Zeroizing<String>, ClientError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let algorithm = match self.key {
            Key::Ed25519(_) => "EdDSA",
            Key::P256(_) => "ES256",
        };
        let claims =
            json!({"role": self.role, "iat": now, "exp": now + TOKEN_SECONDS, "iss": "kata-cc-admin"});
        let encode = |value: &Value| base64_url(value.to_string().as_bytes());
        let message = format!("{}.{}", encode(&json!({"alg": algorithm, "typ": "JWT"})), encode(&claims));
        let signature = match &self.key {
            Key::Ed25519(key) => key.try_sign(message.as_bytes()),
            Key::P256(key) => key.sign(&SystemRandom::new(), message.as_bytes()),
        }
        .map_err(|_| ClientError::Config("signing the admin token failed".to_owned()))?;
        Ok(Zeroizing::new(format!("{message}.{}", base64_url(signature.as_ref()))))
    }
}

/// Whose audit log is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditedService {
    /// A key broker's.
    KeyBroker,
    /// That of an attestation service that stands by itself.
    AttestationService,
}

/// Client of an operator.
#[derive(Debug)]
pub struct AdminClient {
    http: Http,
    auth: AdminAuth,
}

impl AdminClient {
    /// Makes the client; nothing is sent yet.
    pub fn new(endpoint: &Endpoint, auth: AdminAuth) -> Result<Self, ClientError> {
        let http = Http::new(endpoint, concat!("kata-cc/", env!("CARGO_PKG_VERSION")))?;
        Ok(Self { http, auth })
    }

    async fn call(&self, what: &str, request: RequestBuilder) -> Result<Answer, ClientError> {
        let request = match self.auth.token()? {
            Some(token) => request.bearer_auth(token.as_str()),
            None => request,
        };
        let answer = self.http.send(request).await?;
        if answer.status.is_success() { Ok(answer) } else { Err(answer.into_error(what)) }
    }

    /// A page of the audit log, JSON Lines as `kbs audit export` writes them: at most `limit` records after number `after`, and the
    /// signed end when there are fewer. Ours, not Trustee's.
    pub async fn audit_page(
        &self,
        of: AuditedService,
        after: u64,
        limit: u64,
    ) -> Result<Vec<u8>, ClientError> {
        let query = format!("after={after}&limit={limit}");
        let request = match of {
            AuditedService::KeyBroker => self.http.request(Method::GET, &format!("/admin/audit?{query}")),
            AuditedService::AttestationService => {
                self.http.at(Method::GET, &format!("/api/v1/audit?{query}"))
            }
        };
        let answer = self.call("audit log", request).await?;
        Ok(answer.body.to_vec())
    }

    /// Asks the attestation service's own interface, in a key broker or by itself. Ours, not Trustee's.
    async fn attestation_call(
        &self,
        of: AuditedService,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        let request = match of {
            AuditedService::KeyBroker => self.http.request(method, &format!("/admin/attestation/{path}")),
            AuditedService::AttestationService => self.http.at(method, &format!("/api/v1/{path}")),
        };
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        self.call(path, request).await?.json("attestation service")
    }

    /// What the attestation service has at a path of its own interface, e.g. `policies` or `policy-source`. Ours, not Trustee's.
    pub async fn attestation(&self, of: AuditedService, path: &str) -> Result<Value, ClientError> {
        self.attestation_call(of, Method::GET, path, None).await
    }

    /// Holds an earlier policy bundle in force: that of `digest`, else the one before the current. Ours, not Trustee's.
    pub async fn pin_policy_bundle(
        &self,
        of: AuditedService,
        digest: Option<&str>,
    ) -> Result<Value, ClientError> {
        let body = digest.map_or_else(|| json!({}), |digest| json!({"digest": digest}));
        self.attestation_call(of, Method::PUT, "policy-source/pin", Some(&body)).await
    }

    /// Lets the policy source decide again. Ours, not Trustee's.
    pub async fn resume_policy_source(&self, of: AuditedService) -> Result<Value, ClientError> {
        self.attestation_call(of, Method::DELETE, "policy-source/pin", None).await
    }

    /// Stores a resource, replacing an older one.
    pub async fn put_resource(&self, path: &ResourcePath, contents: &[u8]) -> Result<(), ClientError> {
        let request = self
            .http
            .request(Method::POST, &format!("/resource/{path}"))
            .header(reqwest::header::CONTENT_TYPE, "application/octet-stream")
            .body(contents.to_vec());
        self.call(&path.uri(), request).await.map(drop)
    }

    /// Removes a resource.
    pub async fn delete_resource(&self, path: &ResourcePath) -> Result<(), ClientError> {
        let request = self.http.request(Method::DELETE, &format!("/resource/{path}"));
        self.call(&path.uri(), request).await.map(drop)
    }

    /// Lists resources: paths, sizes, times. Contents cannot be read back, only guests get them. Ours, not Trustee's.
    pub async fn list_resources(&self) -> Result<Vec<ResourceEntry>, ClientError> {
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            // A path has no character that means anything in a query.
            let page = self.http.request(Method::GET, &format!("/admin/resources?after={after}"));
            let page: ResourceList = self.call("resource list", page).await?.json("resource list")?;
            all.extend(page.resources);
            match page.next {
                Some(next) if next > after => after = next,
                _ => return Ok(all),
            }
        }
    }

    /// What a listing tells of one resource. Ours, not Trustee's.
    pub async fn resource_metadata(&self, path: &ResourcePath) -> Result<ResourceEntry, ClientError> {
        let name = path.to_string();
        // The first that begins with a name is that name, if it is there.
        let page = self.http.request(Method::GET, &format!("/admin/resources?limit=1&prefix={name}"));
        let page: ResourceList = self.call(&path.uri(), page).await?.json("resource list")?;
        let found = page.resources.into_iter().find(|entry| entry.path == name);
        found.ok_or_else(|| ClientError::NotFound {
            what: path.uri(),
            detail: format!("resource {name} does not exist"),
        })
    }

    /// Sets the resource policy (Rego text).
    pub async fn set_resource_policy(&self, text: &str) -> Result<(), ClientError> {
        let body = SetResourcePolicy { policy: base64_url(text.as_bytes()) };
        let request = self.http.request(Method::POST, "/resource-policy").json(&body);
        self.call("resource policy", request).await.map(drop)
    }

    /// The resource policy. Ours, not Trustee's.
    pub async fn resource_policy(&self) -> Result<ResourcePolicyText, ClientError> {
        let request = self.http.request(Method::GET, "/resource-policy/text");
        self.call("resource policy", request).await?.json("resource policy")
    }

    /// Sets an attestation policy (Rego text); `id` is e.g. `default_cpu`.
    pub async fn set_attestation_policy(&self, id: &str, text: &str) -> Result<(), ClientError> {
        let body = SetAttestationPolicy {
            kind: Some("rego".to_owned()),
            policy_id: id.to_owned(),
            policy: base64_url(text.as_bytes()),
        };
        let request = self.http.request(Method::POST, "/attestation-policy").json(&body);
        self.call("attestation policy", request).await.map(drop)
    }

    /// An attestation policy. Ours, not Trustee's.
    pub async fn attestation_policy(&self, id: &str) -> Result<ResourcePolicyText, ClientError> {
        let request = self.http.request(Method::GET, &format!("/attestation-policy/{id}"));
        self.call("attestation policy", request).await?.json("attestation policy")
    }

    /// Sets reference values; each replaces the older one of its name.
    pub async fn set_reference_values(&self, values: &BTreeMap<String, Value>) -> Result<(), ClientError> {
        let body = ReferenceValueMessage::sample(values);
        let request = self.http.request(Method::POST, "/reference-value").json(&body);
        self.call("reference values", request).await.map(drop)
    }

    /// One reference value.
    pub async fn reference_value(&self, name: &str) -> Result<Value, ClientError> {
        let request = self.http.request(Method::GET, &format!("/reference-value/{name}"));
        self.call("reference value", request).await?.json("reference value")
    }

    /// All reference values. Ours, not Trustee's.
    pub async fn reference_values(&self) -> Result<BTreeMap<String, Value>, ClientError> {
        let answer =
            self.call("reference values", self.http.request(Method::GET, "/reference-value")).await?;
        Ok(answer.json::<ReferenceValueList>("reference values")?.reference_values)
    }

    /// Removes a reference value. Ours, not Trustee's.
    pub async fn delete_reference_value(&self, name: &str) -> Result<(), ClientError> {
        let request = self.http.request(Method::DELETE, &format!("/reference-value/{name}"));
        self.call("reference value", request).await.map(drop)
    }
}
