//! Configuration of the daemon: a file (TOML, or JSON when it ends in `.json`), and arguments, which win. Unknown members are refused.
//! Relative paths are relative to the file's folder.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use ipnet::IpNet;
use kata_cc_attestation_service::ear::DEFAULT_ISSUER;
use kata_cc_attestation_service::follow::PolicySourceConfig;
use kata_cc_attestation_service::serve::networks;
use kata_cc_attestation_service::sources::Sources;
use kata_cc_attestation_service::store::{PostgresOptions, PostgresTls, Store, StoreKey, read_secret};
use kata_cc_attestation_service::trusted::ReferenceValuesConfig;
use kata_cc_daemon::telemetry::{Log, Telemetry};
use serde::Deserialize;

/// All of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Address of the REST interface.
    pub(crate) socket: SocketAddr,
    /// Address of the gRPC interface; none without it.
    pub(crate) grpc_socket: Option<SocketAddr>,
    /// Balancers (addresses, networks) that say who is behind them by the PROXY protocol, on both interfaces.
    pub(crate) trusted_proxies: Vec<String>,
    /// Address under which clients reach the REST interface, for its metadata.
    pub(crate) public_url: Option<String>,
    /// Folder for the store and the keys; made when absent.
    pub(crate) work_dir: PathBuf,
    pub(crate) store: StoreConfig,
    pub(crate) tls: Option<Tls>,
    pub(crate) admin: Admin,
    pub(crate) token: Token,
    pub(crate) simulated: Option<Simulated>,
    /// Highest VMPL that an SNP report may come from; 0 unless an SVSM is expected.
    pub(crate) max_vmpl: u32,
    /// What is demanded of SNP reports.
    pub(crate) snp: kata_cc_verifier::SnpSettings,
    /// What is demanded of TDX quotes.
    pub(crate) tdx: kata_cc_verifier::TdxSettings,
    /// Trustee's sample TEE, which anybody can make up.
    pub(crate) allow_sample: bool,
    /// File that says where endorsements come from that evidence does not bring (TOML).
    pub(crate) endorsements: Option<PathBuf>,
    pub(crate) reference_values: ReferenceValuesConfig,
    /// Policy bundle that is followed.
    pub(crate) policy_source: Option<PolicySourceConfig>,
    pub(crate) telemetry: Telemetry,
    pub(crate) log: Log,
    /// Folder that relative paths start from.
    #[serde(skip)]
    pub(crate) base: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: SocketAddr::from(([127, 0, 0, 1], 8080)),
            grpc_socket: None,
            trusted_proxies: Vec::new(),
            public_url: None,
            work_dir: "/var/lib/kata-cc/attestation-service".into(),
            store: StoreConfig::default(),
            tls: None,
            admin: Admin::default(),
            token: Token::default(),
            simulated: None,
            max_vmpl: 0,
            snp: kata_cc_verifier::SnpSettings::default(),
            tdx: kata_cc_verifier::TdxSettings::default(),
            allow_sample: false,
            endorsements: None,
            reference_values: ReferenceValuesConfig::default(),
            policy_source: None,
            telemetry: Telemetry::default(),
            log: Log::default(),
            base: PathBuf::new(),
        }
    }
}

/// `[store]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StoreConfig {
    /// Key of the store, 64 hexadecimal digits, mode 0600, the same for all replicas; `store.key` in the work folder without it. Made
    /// when absent.
    pub(crate) key: Option<PathBuf>,
    /// The database of replicas; a file in the work folder without it.
    pub(crate) postgres: Option<Postgres>,
}

/// `[store.postgres]`. Without a member, the default of the key broker's `[storage_backend.backends.postgres]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Postgres {
    /// Name or address; a path is the folder of a Unix socket.
    host: Option<String>,
    port: Option<u16>,
    db: Option<String>,
    username: Option<String>,
    /// File of mode 0600 with the password; a newline at its end is no part of it.
    password_file: Option<PathBuf>,
    /// How the connection is protected; `verify-full` unless set, but `disable` to this machine.
    tls: Option<PostgresProtection>,
    /// PEM of the roots that are trusted.
    tls_root_certificates: Option<PathBuf>,
    /// Most connections of this replica.
    connections: Option<u32>,
}

/// How a connection to the database is protected.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PostgresProtection {
    Disable,
    VerifyCa,
    VerifyFull,
}

/// `[tls]`, for both interfaces.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    /// PEM, leaf first.
    pub(crate) certificate: PathBuf,
    /// PEM.
    pub(crate) private_key: PathBuf,
}

/// `[admin]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Admin {
    /// Public key (PEM) of the administrator.
    pub(crate) public_key: Option<PathBuf>,
}

/// `[token]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Token {
    /// ES256, ES384 or EdDSA, for the key that is made at the first start.
    pub(crate) algorithm: String,
    /// Minutes that a token is valid.
    pub(crate) minutes: u32,
    /// `iss`.
    pub(crate) issuer: String,
    /// PKCS#8 PEM, mode 0600; `token.key` in the work folder without it.
    pub(crate) key: Option<PathBuf>,
    /// Certificates for the key (PEM), its own first.
    pub(crate) certificates: Option<PathBuf>,
}

impl Default for Token {
    fn default() -> Self {
        Self {
            algorithm: "ES256".to_owned(),
            minutes: 5,
            issuer: DEFAULT_ISSUER.to_owned(),
            key: None,
            certificates: None,
        }
    }
}

/// `[simulated]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Simulated {
    /// Roots of simulated platforms (PEM, `roots.pem`). Whoever has their keys can make up any evidence.
    pub(crate) trust_anchor: PathBuf,
}

impl Config {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let name = || format!("configuration file {}", path.display());
        let text = std::fs::read_to_string(path).with_context(name)?;
        let mut config: Self = if path.extension().is_some_and(|extension| extension == "json") {
            serde_json::from_str(&text).with_context(name)?
        } else {
            toml::from_str(&text).with_context(name)?
        };
        config.base = path.parent().map(Path::to_owned).unwrap_or_default();
        Ok(config)
    }

    /// Networks of the balancers.
    pub(crate) fn proxies(&self) -> anyhow::Result<Vec<IpNet>> {
        networks(&self.trusted_proxies).map_err(anyhow::Error::msg)
    }

    /// Checks what a type does not say.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.proxies()?;
        self.policy_source.as_ref().map_or(Ok(()), PolicySourceConfig::check)?;
        anyhow::ensure!(
            (1..=1440).contains(&self.token.minutes),
            "token.minutes is {}, expected 1 to 1440",
            self.token.minutes
        );
        anyhow::ensure!(
            ["ES256", "ES384", "EdDSA"].contains(&self.token.algorithm.as_str()),
            "token.algorithm is {:?}, expected ES256, ES384 or EdDSA",
            self.token.algorithm
        );
        Ok(())
    }

    /// A path as it is to be opened.
    pub(crate) fn path(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// Opens the store.
    pub(crate) async fn open_store(&self) -> anyhow::Result<Store> {
        let dir = self.path(&self.work_dir);
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let key = self.store.key.as_ref().map_or_else(|| dir.join("store.key"), |path| self.path(path));
        let key = StoreKey::from_file(&key).with_context(|| format!("key {}", key.display()))?;
        Ok(match &self.store.postgres {
            None => Store::open(&dir.join("service.db"), key).await?,
            Some(postgres) => Store::postgres(&self.postgres(postgres)?, key).await?,
        })
    }

    fn postgres(&self, postgres: &Postgres) -> anyhow::Result<PostgresOptions> {
        let mut options = PostgresOptions { db: "attestation".to_owned(), ..PostgresOptions::default() };
        let given = postgres.clone();
        options.host = given.host.unwrap_or(options.host);
        options.port = given.port.unwrap_or(options.port);
        options.db = given.db.unwrap_or(options.db);
        options.username = given.username.unwrap_or(options.username);
        options.connections = given.connections.unwrap_or(options.connections);
        options.root_certificates = given.tls_root_certificates.map(|path| self.path(&path));
        options.tls = given.tls.map(|tls| match tls {
            PostgresProtection::Disable => PostgresTls::Disable,
            PostgresProtection::VerifyCa => PostgresTls::VerifyCa,
            PostgresProtection::VerifyFull => PostgresTls::VerifyFull,
        });
        if let Some(path) = given.password_file {
            let path = self.path(&path);
            let contents = read_secret(&path)?;
            let text =
                std::str::from_utf8(&contents).with_context(|| format!("{} is not UTF-8", path.display()))?;
            options.password = Some(text.trim_end_matches(['\r', '\n']).to_owned().into());
        }
        Ok(options)
    }

    /// Keys that may sign reference values.
    pub(crate) fn sources(&self) -> anyhow::Result<Sources> {
        Ok(self.reference_values.sources(&self.base)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_and_json_are_read_and_unknown_members_refused() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            Config::read(&path)
        };
        let text = "socket = \"127.0.0.1:1\"\ngrpc_socket = \"127.0.0.1:2\"\n[token]\nminutes = 7\n\
            [[reference_values.trusted]]\nname = \"ci\"\npublic_key = \"ci.pem\"\nsubjects = { kernel = \"tdvfkernel\" }";
        let config = read("a.toml", text).unwrap();
        assert_eq!((config.token.minutes, config.grpc_socket.unwrap().port()), (7, 2));
        assert_eq!(config.path(Path::new("x")), folder.path().join("x"));
        assert!(config.sources().unwrap_err().to_string().contains("\"ci\""));
        let json = r#"{"socket": "127.0.0.1:1", "token": {"minutes": 7}}"#;
        assert_eq!(read("a.json", json).unwrap().token.minutes, 7);
        for wrong in ["colour = 1", "[token]\nseconds = 3", "socket = 3"] {
            let told = format!("{:#}", read("b.toml", wrong).unwrap_err());
            assert!(told.contains("b.toml"), "{told}");
        }
        let text = "[store.postgres]\nhost = \"db.example\"\ntls = \"verify-ca\"\npassword_file = \"none\"";
        let config = read("d.toml", text).unwrap();
        let mut postgres = config.store.postgres.clone().unwrap();
        let told = config.postgres(&postgres).unwrap_err().to_string();
        assert!(told.contains("none"), "{told}");
        postgres.password_file = None;
        let options = config.postgres(&postgres).unwrap();
        assert_eq!(
            (options.host.as_str(), options.port, options.db.as_str()),
            ("db.example", 5432, "attestation")
        );
        assert_eq!(options.tls, Some(PostgresTls::VerifyCa));
        let check = |text: &str| read("c.toml", text).unwrap().check().unwrap_err().to_string();
        assert!(check("[token]\nminutes = 0").contains("1 to 1440"));
        assert!(check("[token]\nalgorithm = \"RS256\"").contains("EdDSA"));
    }
}
