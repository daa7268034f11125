//! A certificate authority of the test's own, made by `openssl`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::run;

/// A CA and one server certificate for `localhost` and `127.0.0.1`.
#[derive(Clone, Debug)]
pub struct Pki {
    /// The CA's certificate.
    pub ca: PathBuf,
    /// The server's certificate, signed by the CA.
    pub certificate: PathBuf,
    /// The server's key.
    pub key: PathBuf,
}

impl Pki {
    /// Where the files of a folder are.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self { ca: dir.join("ca.pem"), certificate: dir.join("server.pem"), key: dir.join("server.key") }
    }

    /// Make them in `dir`.
    pub fn create(dir: &Path) -> anyhow::Result<Self> {
        let pki = Self::at(dir);
        let extensions = dir.join("server.ext");
        std::fs::write(
            &extensions,
            "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n",
        )?;
        let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let openssl =
            |arguments: &[&str]| run(Command::new("openssl").args(arguments).current_dir(dir), 30)?.ok();
        openssl(
            &[
                &["req", "-x509", "-days", "30", "-subj", "/CN=kata-cc test CA"][..],
                &new_key[..],
                &["-addext", "basicConstraints=critical,CA:TRUE", "-keyout", "ca.key", "-out", "ca.pem"],
            ]
            .concat(),
        )?;
        openssl(
            &[
                &["req", "-subj", "/CN=localhost"][..],
                &new_key[..],
                &["-keyout", "server.key", "-out", "server.csr"],
            ]
            .concat(),
        )?;
        openssl(&[
            "x509",
            "-req",
            "-days",
            "30",
            "-in",
            "server.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-extfile",
            "server.ext",
            "-out",
            "server.pem",
        ])?;
        Ok(pki)
    }
}
