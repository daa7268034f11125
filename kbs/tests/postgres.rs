//! The real `kbs` on PostgreSQL by TLS and with a password: what is let in, and what is refused, in which words, without the password in
//! any of them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../attestation/store/tests/common/mod.rs"]
mod database;

use std::path::Path;
use std::process::Command;

use database::{Postgres, holds};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

const PASSWORD: &str = "correct horse battery staple";
const WRONG: &str = "incorrect horse battery staple";

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// `kbs --check` with settings of the database; whether it could, and everything that it said.
fn check(dir: &Path, settings: &str) -> (bool, String) {
    let config = dir.join("kbs.toml");
    let text = format!(
        "[http_server]\nsockets = [\"127.0.0.1:0\"]\ninsecure_http = true\n[storage_backend]\nstorage_type = \"Postgres\"\n\
         [storage_backend.backends.postgres]\nusername = \"broker\"\nkey_path = \"store.key\"\n{settings}"
    );
    std::fs::write(&config, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_kbs"))
        .args(["--check", "-c"])
        .arg(&config)
        .env("RUST_LOG", "trace")
        .env_remove("NOTIFY_SOCKET")
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    for password in [PASSWORD, WRONG] {
        assert!(
            !holds(&said, password.as_bytes()),
            "the password is told: {}",
            String::from_utf8_lossy(&said)
        );
    }
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn by_tls_and_with_a_password_or_not_at_all() {
    let (ours, others) = (authority("database"), authority("somebody else"));
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &ours).unwrap();
    let Some(postgres) = Postgres::start_tls(&certificate.pem(), &key.serialize_pem()) else { return };
    postgres.sql("postgres", &format!("CREATE ROLE broker LOGIN PASSWORD '{PASSWORD}'"));
    postgres.sql("postgres", "ALTER DATABASE kbs OWNER TO broker");
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    std::fs::write(dir.join("root.pem"), ours.pem()).unwrap();
    std::fs::write(dir.join("other.pem"), others.pem()).unwrap();
    let secret =
        |name: &str, text: &str| kata_cc_store::write_secret(&dir.join(name), text.as_bytes()).unwrap();
    secret("password", &format!("{PASSWORD}\n"));
    secret("wrong", &format!("{WRONG}\n"));
    let port = postgres.tcp_port();
    let settings = |host: &str, password: &str, more: &str| {
        format!("host = \"{host}\"\nport = {port}\n{password}\n{more}\n")
    };
    let (right, wrong) = ("password_file = \"password\"", "password_file = \"wrong\"");
    let full = "tls = \"verify-full\"\ntls_root_certificates = \"root.pem\"";
    let ca = "tls = \"verify-ca\"\ntls_root_certificates = \"root.pem\"";

    for (host, password, tls) in [
        ("localhost", right, full),
        ("localhost", &*format!("password = \"{PASSWORD}\""), full),
        // The certificate is for the name only.
        ("127.0.0.1", right, ca),
    ] {
        let (fine, said) = check(dir, &settings(host, password, tls));
        assert!(fine && said.contains("configuration is fine"), "{said}");
    }
    assert_eq!(postgres.sql("kbs", "SELECT count(*) FROM store_state"), "1");

    for (host, password, tls, words) in [
        ("localhost", wrong, full, &["refuses the password of \"broker\""][..]),
        ("localhost", &*format!("password = \"{WRONG}\""), full, &["refuses the password of \"broker\""]),
        ("localhost", "", full, &["password"]),
        // Of another authority, of none that the system knows, for another name.
        (
            "localhost",
            right,
            "tls = \"verify-full\"\ntls_root_certificates = \"other.pem\"",
            &["certificate is not trusted", "tls_root_certificates"],
        ),
        (
            "localhost",
            right,
            "tls = \"verify-ca\"\ntls_root_certificates = \"other.pem\"",
            &["certificate is not trusted"],
        ),
        ("localhost", right, "tls = \"verify-full\"", &["certificate is not trusted"]),
        ("127.0.0.1", right, full, &["certificate is not trusted"]),
        // In clear, which this server does not want.
        ("localhost", right, "tls = \"disable\"", &["does not let \"broker\" in", "no encryption"]),
    ] {
        let (fine, said) = check(dir, &settings(host, password, tls));
        let last = said.lines().last().unwrap_or_default();
        assert!(!fine && last.starts_with("kbs: "), "{host} {password} {tls}: {said}");
        let server = format!("no connection to PostgreSQL at {host}:{port}");
        for word in words.iter().copied().chain([server.as_str()]) {
            assert!(last.contains(word), "{word:?} is not in {last}");
        }
    }
    assert!(!holds(postgres.log().as_bytes(), WRONG.as_bytes()), "the server logs it");
}
