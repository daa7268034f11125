//! Which key broker is meant, and who asks: options shared by all commands that speak to one.

use std::path::PathBuf;

use anyhow::Context;
use kata_cc_kbs_client::{AdminAuth, AdminClient, Endpoint};
use kata_cc_sandbox::NodeConfig;

use super::read_text;

/// The key broker and the operator's key.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BrokerArguments {
    /// The key broker, https://HOST:PORT; the node configuration's without it.
    #[arg(long, env = "KATA_CC_KBS", value_name = "URL")]
    kbs: Option<String>,
    /// PEM of the certificate (or its root) that the key broker is known by; nothing else is trusted.
    #[arg(long, env = "KATA_CC_KBS_CERT", value_name = "FILE")]
    kbs_cert: Option<PathBuf>,
    /// Private key (PKCS#8 PEM, Ed25519 or P-256) that the key broker knows its operator by.
    #[arg(long, env = "KATA_CC_KBS_ADMIN_KEY", value_name = "FILE")]
    admin_key: Option<PathBuf>,
    /// Role that the operator claims.
    #[arg(long, default_value = "admin", value_name = "ROLE", hide = true)]
    admin_role: String,
}

impl BrokerArguments {
    /// A key broker at an address, for commands that may do without one.
    pub(crate) fn at(url: String, kbs_cert: Option<PathBuf>, admin_key: Option<PathBuf>, role: &str) -> Self {
        Self { kbs: Some(url), kbs_cert, admin_key, admin_role: role.to_owned() }
    }

    /// The client; nothing is sent yet.
    pub(crate) fn client(&self) -> anyhow::Result<AdminClient> {
        let auth = match &self.admin_key {
            Some(file) => {
                let pem = std::fs::read(file).map(zeroize::Zeroizing::new);
                let pem = pem.with_context(|| format!("cannot read {}", file.display()))?;
                AdminAuth::from_key_pem(&pem, &self.admin_role)
                    .with_context(|| format!("{}", file.display()))?
            }
            None => AdminAuth::None,
        };
        self.client_as(auth)
    }

    /// The same for who proves himself otherwise.
    pub(crate) fn client_as(&self, auth: AdminAuth) -> anyhow::Result<AdminClient> {
        let (url, certificate) = match &self.kbs {
            Some(url) => (url.clone(), self.kbs_cert.clone()),
            None => {
                let node = NodeConfig::load()?.kbs;
                let node = node.context("no key broker is named: give --kbs URL, or set KATA_CC_KBS")?;
                (node.url, self.kbs_cert.clone().or(node.certificate))
            }
        };
        anyhow::ensure!(
            url.starts_with("https://") || url.starts_with("http://"),
            "the key broker's address must be https://HOST:PORT, seen {url:?}"
        );
        let certificates = certificate.as_deref().map(read_text).transpose()?;
        anyhow::ensure!(
            certificates.is_some() || url.starts_with("http://"),
            "no certificate is named for {url}: give --kbs-cert FILE, or set KATA_CC_KBS_CERT; the system's are not trusted"
        );
        let endpoint =
            Endpoint { url, certificates: certificates.into_iter().collect(), ..Endpoint::default() };
        Ok(AdminClient::new(&endpoint, auth)?)
    }
}
