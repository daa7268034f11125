//! `kbs init`: a folder with all that a key broker needs to start: TLS key and certificate, an administrator's key pair,
//! a configuration that lets that administrator in.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kata_cc_attestation_service::jws::SigningKey;
use kata_cc_attestation_service::store::write_secret;

/// What to make.
#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    /// Folder to fill; made when absent. Nothing in it is overwritten.
    dir: PathBuf,
    /// Folder for what the key broker writes, when it may not write where the configuration is: store, store key, key of tokens.
    /// Made when absent.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8443")]
    socket: SocketAddr,
    /// Names and addresses that the TLS certificate is for; localhost, 127.0.0.1 and the socket's address are always in.
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
    /// Root of a simulated platform (ark.pem) that is to be trusted. For tests: simulated evidence protects nothing.
    #[arg(long, value_name = "ARK")]
    simulated: Option<PathBuf>,
}

/// Fills the folder.
pub(crate) fn run(init: &Init) -> anyhow::Result<()> {
    let dir = &init.dir;
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let ip = init.socket.ip();
    if !ip.is_unspecified() && ip != IpAddr::from([127, 0, 0, 1]) {
        names.push(ip.to_string());
    }
    names.extend(init.names.iter().cloned());
    let tls = rcgen::generate_simple_self_signed(names).context("making the TLS certificate")?;
    write(dir, "tls.key", &zeroize::Zeroizing::new(tls.signing_key.serialize_pem()))?;
    write(dir, "tls.crt", &tls.cert.pem())?;
    let admin = SigningKey::generate_pem("EdDSA")?;
    write(dir, "admin.key", &admin)?;
    write(dir, "admin.pub", &SigningKey::from_pem(admin.as_bytes())?.public_pem()?)?;
    let state = match &init.state {
        None => String::new(),
        Some(state) => state_section(state)?,
    };
    let simulated = match &init.simulated {
        None => String::new(),
        Some(anchor) => {
            let anchor = std::path::absolute(anchor)?;
            format!(
                "\n# Simulated evidence protects nothing. The default resource policy denies it all the same.\n\
                 [attestation.simulated]\ntrust_anchor = {:?}\n",
                anchor.display().to_string()
            )
        }
    };
    let config = format!(
        r#"# Key broker. Relative paths are relative to this file.
[http_server]
sockets = ["{}"]
private_key = "tls.key"
certificate = "tls.crt"

[attestation_service]
timeout = 5

[storage_backend]
storage_type = "Sqlite"

# The administrator holds admin.key; move it off this machine.
[admin]
authorization_mode = "AuthenticatedAuthorization"

[admin.authentication.bearer_jwt]
identity_providers = [{{ public_key_uri = "admin.pub" }}]

[admin.authorization.regex_acl]
acls = [{{ role = "admin", allowed_endpoints = "^/kbs/.+$" }}]
{state}{simulated}"#,
        init.socket
    );
    write(dir, "kbs.toml", &config)?;
    println!("made {0}/kbs.toml; start with: kbs -c {0}/kbs.toml", dir.display());
    Ok(())
}

/// Settings of all that is written while the key broker runs.
fn state_section(state: &Path) -> anyhow::Result<String> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .with_context(|| format!("making {}", state.display()))?;
    let state = std::path::absolute(state)?;
    let path = |name: &str| toml::Value::String(state.join(name).display().to_string());
    Ok(format!(
        "\n[storage_backend.backends.sqlite]\nfile_path = {}\nkey_path = {}\n\n\
         [attestation_service.attestation_token_broker.signer]\nkey_path = {}\n",
        path("kbs.db"),
        path("store.key"),
        path("token.key"),
    ))
}

fn write(dir: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = dir.join(name);
    write_secret(&path, text.as_bytes())
        .with_context(|| format!("writing {} (nothing is overwritten)", path.display()))
}
