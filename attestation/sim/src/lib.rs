//! A throw-away SEV-SNP platform in software: certificate chain, report signing, and the answer to
//! a guest that asks for a report. One of TDX stands beside it ([`tdx`]).
//!
//! Purpose: the whole attestation path runs on any KVM machine. Reports have the real format
//! (version 3) and real signatures, under a root that exists only here. The names in its
//! certificates say so (`ARK-Simulated`), and a verifier accepts it only when that root is configured
//! by hand, and then calls the result `sim-snp`. Nothing here protects memory: the host sees
//! everything.
//!
//! Files of a platform ([`SimPlatform::create`]): `ark.pem`, `ask.pem`, `vcek.pem` and `vcek.key`
//! (PKCS#8, mode 0600). A recorded report beside them (`replay.bin`) makes a platform that answers
//! every request with it, as a hostile host would: to show that a replay is refused. The private keys of root and intermediate are dropped after use and
//! never stored, so a platform cannot issue anything later.
//!
//! Sources: SNP firmware ABI (reports), AMD 57230 (certificate extensions), `docs/design.md`
//! (the exchange on vsock port 1027, [`service`]).
#![forbid(unsafe_code)]

mod certs;
mod folder;
pub mod service;
pub mod tdx;

use std::path::{Path, PathBuf};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use kata_cc_snp::certs::{CertError, Certificate, VekExtensions};
use kata_cc_snp::report::{CpuId, FirmwareVersion, SIGNATURE_ALGO_ECDSA_P384, SIGNED_LEN, Signature};
use kata_cc_snp::{CertKind, CertTable, GuestPolicy, KeyInfo, PlatformInfo, REPORT_LEN, Report, Tcb};

use folder::Folder;

pub use service::{SimLaunch, SimService};

/// Name under which evidence of this platform travels; never `snp`.
pub const TEE_NAME: &str = "sim-snp";

/// Firmware versions that the platform claims; fixed when it is created, as its key is derived for them.
pub const TCB: Tcb = Tcb { fmc: None, bootloader: 4, tee: 0, snp: 24, microcode: 219 };

/// Processor that the platform claims to be (family 0x19: the TCB layout follows from it).
const CPU: CpuId = CpuId { family: 0x19, model: 0x01, stepping: 0x01 };

/// Processor of a platform whose TCB has the FMC: family 0x1A, Turin.
const CPU_WITH_FMC: CpuId = CpuId { family: 0x1A, model: 0x02, stepping: 0x01 };

const FIRMWARE: FirmwareVersion = FirmwareVersion { major: 1, minor: 55, build: 29 };

const ARK_FILE: &str = "ark.pem";
const ASK_FILE: &str = "ask.pem";
const VCEK_FILE: &str = "vcek.pem";
const KEY_FILE: &str = "vcek.key";

/// Where a platform that replays keeps its recorded report.
pub const REPLAY_FILE: &str = "replay.bin";

/// The platform cannot be made, loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// There is something already.
    #[error("{path} exists and is not empty: remove it to make a new simulated platform")]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The private key may be read by others.
    #[error("{path} has mode {mode:o}, expected 600: others may have read the key, make a new platform")]
    KeyMode {
        /// The key file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A stored certificate is not usable.
    #[error("{path} is not a certificate of a simulated platform: {source}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: CertError,
    },
    /// The stored key does not belong to the stored certificate or report, or is no key.
    #[error("{path} is not the key that the files beside it vouch for: make a new platform")]
    Key {
        /// The key file.
        path: PathBuf,
    },
    /// A stored file of another kind is out of form.
    #[error("{path} is out of form: {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The recorded report has another length than a report.
    #[error("{path} has {seen} bytes, a report has {REPORT_LEN}")]
    Replay {
        /// The file.
        path: PathBuf,
        /// Its length.
        seen: usize,
    },
    /// A certificate could not be encoded.
    #[error("cannot encode a certificate: {0}")]
    Encode(#[from] x509_cert::der::Error),
    /// The cryptographic library refused.
    #[error("cryptographic operation failed: {operation}")]
    Crypto {
        /// Which.
        operation: &'static str,
    },
    /// Quotes have version 4 or 5.
    #[error("quote version {seen} does not exist here, expected 4 or 5")]
    QuoteVersion {
        /// Version asked for.
        seen: u16,
    },
    /// Privilege levels are 0 to 3.
    #[error("VMPL {seen} does not exist, expected 0 to 3")]
    Vmpl {
        /// Level asked for.
        seen: u32,
    },
}

/// What a report is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportRequest {
    /// Bytes of the guest's choice.
    pub report_data: [u8; 64],
    /// Privilege level of the request, 0 to 3.
    pub vmpl: u32,
    /// Launch digest.
    pub measurement: [u8; 48],
    /// Bytes of the host's choice at launch (digest of the init-data).
    pub host_data: [u8; 32],
    /// Guest policy.
    pub policy: u64,
    /// Guest's instance id.
    pub report_id: [u8; 32],
    /// Security version of the guest, from an ID block.
    pub guest_svn: u32,
}

impl Default for ReportRequest {
    fn default() -> Self {
        Self {
            report_data: [0; 64],
            vmpl: 0,
            measurement: [0; 48],
            host_data: [0; 32],
            policy: GuestPolicy::DEFAULT.0,
            report_id: [0; 32],
            guest_svn: 0,
        }
    }
}

/// A loaded platform: certificates and the key that signs reports.
pub struct SimPlatform {
    ark: Certificate,
    ask: Certificate,
    vcek: Certificate,
    chip_id: [u8; 64],
    tcb: Tcb,
    key: EcdsaKeyPair,
    replay: Option<[u8; REPORT_LEN]>,
}

impl std::fmt::Debug for SimPlatform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimPlatform").field("vcek", &self.vcek.subject_cn()).finish_non_exhaustive()
    }
}

impl SimPlatform {
    /// Makes a platform in `dir`, which must not exist or be empty. Takes seconds: two RSA-4096 keys.
    ///
    /// # Errors
    /// [`SimError`]; nothing is left behind then.
    pub fn create(dir: &Path) -> Result<Self, SimError> {
        Self::create_at(dir, &TCB)
    }

    /// The same with other security versions; with an FMC among them its reports have the layout of Turin.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn create_at(dir: &Path, tcb: &Tcb) -> Result<Self, SimError> {
        let mut chip_id = [0; 64];
        fill_random(&mut chip_id)?;
        folder::create(dir, |folder| store(folder, &certs::issue(&chip_id, tcb)?))?;
        Self::load(dir)
    }

    /// Loads a platform that was made before.
    ///
    /// # Errors
    /// [`SimError`] says which file is missing or wrong.
    pub fn load(dir: &Path) -> Result<Self, SimError> {
        let (ark, ask, vcek) =
            (load_cert(dir, ARK_FILE)?, load_cert(dir, ASK_FILE)?, load_cert(dir, VCEK_FILE)?);
        let path = dir.join(KEY_FILE);
        let pkcs8 = Folder::at(dir).read_key(KEY_FILE)?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &pkcs8)
            .map_err(|_| SimError::Key { path: path.clone() })?;
        let in_vcek = |source| SimError::Certificate { path: dir.join(VCEK_FILE), source };
        let public = aws_lc_rs::signature::KeyPair::public_key(&key).as_ref();
        if public != vcek.p384_public_key().map_err(in_vcek)? {
            return Err(SimError::Key { path });
        }
        let extensions = VekExtensions::of(&vcek).map_err(in_vcek)?;
        let chip_id = extensions
            .hw_id
            .and_then(|id| <[u8; 64]>::try_from(id).ok())
            .ok_or_else(|| in_vcek(CertError::BadExtension { name: "hwID" }))?;
        Ok(Self { ark, ask, vcek, chip_id, tcb: extensions.tcb, key, replay: load_replay(dir)? })
    }

    /// Loads the platform in `dir`, or makes it when there is none.
    ///
    /// # Errors
    /// As [`Self::load`] and [`Self::create`].
    pub fn load_or_create(dir: &Path) -> Result<Self, SimError> {
        if dir.join(KEY_FILE).exists() {
            return Self::load(dir);
        }
        match Self::create(dir) {
            // Another process was faster.
            Err(SimError::Exists { .. }) if dir.join(KEY_FILE).exists() => Self::load(dir),
            other => other,
        }
    }

    /// A signed report; of a platform that replays, the recorded one.
    ///
    /// # Errors
    /// [`SimError::Vmpl`] for a level that does not exist, [`SimError::Crypto`] when signing fails.
    pub fn report(&self, request: &ReportRequest) -> Result<[u8; REPORT_LEN], SimError> {
        if request.vmpl > 3 {
            return Err(SimError::Vmpl { seen: request.vmpl });
        }
        if let Some(recorded) = self.replay {
            return Ok(recorded);
        }
        self.sign_report(&self.unsigned(request))
    }

    /// Signs a report as it is, whatever it says: a simulated platform vouches for nothing.
    ///
    /// # Errors
    /// [`SimError::Crypto`] when signing fails.
    pub fn sign_report(&self, report: &Report) -> Result<[u8; REPORT_LEN], SimError> {
        let mut report = report.clone();
        let bytes = report.to_bytes();
        let signature = bytes
            .get(..SIGNED_LEN)
            .and_then(|part| self.key.sign(&SystemRandom::new(), part).ok())
            .and_then(|signature| <[u8; 96]>::try_from(signature.as_ref()).ok())
            .ok_or(SimError::Crypto { operation: "signing a report" })?;
        report.signature = Signature::from_fixed(&signature);
        Ok(report.to_bytes())
    }

    /// What the host supplies beside a report: VCEK, ASK, ARK.
    #[must_use]
    pub fn certificate_table(&self) -> Vec<u8> {
        let entry = |kind, cert: &Certificate| (kind, cert.der().to_vec());
        let entries = vec![
            entry(CertKind::Vcek, &self.vcek),
            entry(CertKind::Ask, &self.ask),
            entry(CertKind::Ark, &self.ark),
        ];
        CertTable { entries }.to_bytes()
    }

    /// The root, to be configured where simulated evidence is to be accepted.
    ///
    /// # Errors
    /// [`SimError::Encode`] when it cannot be encoded, which for a loaded root does not happen.
    pub fn ark_pem(&self) -> Result<String, SimError> {
        certs::pem(self.ark.der())
    }

    /// The root as a certificate.
    #[must_use]
    pub const fn ark(&self) -> &Certificate {
        &self.ark
    }

    fn unsigned(&self, request: &ReportRequest) -> Report {
        Report {
            version: 3,
            guest_svn: request.guest_svn,
            policy: GuestPolicy(request.policy),
            family_id: [0; 16],
            image_id: [0; 16],
            vmpl: request.vmpl,
            signature_algo: SIGNATURE_ALGO_ECDSA_P384,
            current_tcb: self.tcb,
            platform_info: PlatformInfo(1),
            key_info: KeyInfo(0),
            report_data: request.report_data,
            measurement: request.measurement,
            host_data: request.host_data,
            id_key_digest: [0; 48],
            author_key_digest: [0; 48],
            report_id: request.report_id,
            report_id_ma: [0xFF; 32],
            reported_tcb: self.tcb,
            cpuid: Some(if self.tcb.fmc.is_some() { CPU_WITH_FMC } else { CPU }),
            chip_id: self.chip_id,
            committed_tcb: self.tcb,
            current_version: FIRMWARE,
            committed_version: FIRMWARE,
            launch_tcb: self.tcb,
            launch_mit_vector: None,
            current_mit_vector: None,
            signature: Signature::ZERO,
        }
    }
}

fn fill_random(bytes: &mut [u8]) -> Result<(), SimError> {
    SystemRandom::new().fill(bytes).map_err(|_| SimError::Crypto { operation: "drawing random bytes" })
}

fn load_cert(dir: &Path, name: &str) -> Result<Certificate, SimError> {
    let bytes = Folder::at(dir).read(name)?;
    Certificate::from_der_or_pem(&bytes)
        .map_err(|source| SimError::Certificate { path: dir.join(name), source })
}

fn load_replay(dir: &Path) -> Result<Option<[u8; REPORT_LEN]>, SimError> {
    let path = dir.join(REPLAY_FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(SimError::Io { action: "read", path, source }),
    };
    let seen = bytes.len();
    bytes.try_into().map(Some).map_err(|_| SimError::Replay { path, seen })
}

/// Writes all files of a platform into a new folder.
fn store(folder: &Folder, issued: &certs::Issued) -> Result<(), SimError> {
    folder.write(ARK_FILE, 0o644, certs::pem(&issued.ark)?.as_bytes())?;
    folder.write(ASK_FILE, 0o644, certs::pem(&issued.ask)?.as_bytes())?;
    folder.write(VCEK_FILE, 0o644, certs::pem(&issued.vcek)?.as_bytes())?;
    folder.write(KEY_FILE, 0o600, &issued.vcek_key)
}
