//! `--endorsements`: certificates, revocation lists and collateral from files and folders.
//!
//! What a file is follows from its contents: PEM or DER certificates, a certificate table of an extended report, a
//! revocation list, JSON collateral. A file that is named has to be one of them; in a folder, others are passed over.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use kata_cc_endorsements::{Bundle, IntelTee, Item, PckCa};
use kata_cc_snp::CertTable;
use kata_cc_snp::certs::VekExtensions;
use kata_cc_snp::evidence::{CertEntry, CertType};
use kata_cc_snp::{EndorsementSource, Product, Report, SigningKey, Supply};
use kata_cc_tdx::collateral::files;
use kata_cc_tdx::{Collateral, CollateralKey, CollateralSource};
use kata_cc_x509::{Certificate, Crl};

use crate::commands::read_input;

/// Most bytes of one file.
const MAX_FILE: u64 = 1 << 20;
/// Most files below a folder.
const MAX_FILES: usize = 4096;
/// Folders below a folder: an offline store has one for each chip.
const MAX_DEPTH: usize = 4;

/// A certificate or a revocation list.
#[derive(Debug)]
pub(super) enum Blob {
    Certificate(Box<Certificate>),
    /// With its bytes.
    Crl(Box<Crl>, Vec<u8>),
}

impl Blob {
    /// Read DER or PEM.
    pub(super) fn read(bytes: &[u8]) -> anyhow::Result<Self> {
        match Certificate::from_der_or_pem(bytes) {
            Ok(certificate) => Ok(Self::Certificate(Box::new(certificate))),
            Err(error) => match Crl::from_der_or_pem(bytes) {
                Ok(crl) => Ok(Self::Crl(Box::new(crl), bytes.to_vec())),
                Err(_) => Err(error.into()),
            },
        }
    }
}

/// What was read. Documents of an exported set (`kata-cc endorsements export`) are taken by their places, all others by what they say.
#[derive(Debug, Default)]
pub(super) struct Endorsements {
    pub(super) certificates: Vec<Certificate>,
    /// Revocation lists as they were given.
    pub(super) crls: Vec<(Crl, Vec<u8>)>,
    /// What Intel publishes about platforms, of each a bundle or a folder.
    pub(super) collateral: Vec<Known>,
}

/// Collateral, and for which platforms it is where that is known before anything is verified.
pub(super) type Known = (Option<CollateralKey>, Arc<Collateral>);

/// Read all files and folders.
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Endorsements> {
    let mut all = Endorsements::default();
    for path in paths {
        if path.is_dir() {
            all.add_folder(path)?;
        } else {
            let bytes = read_input(Some(path), MAX_FILE)?;
            all.add(&bytes).with_context(|| format!("{} holds no endorsement", path.display()))?;
        }
    }
    Ok(all)
}

fn list(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        // A link could lead out of the folder or around in it.
        let kind = path.symlink_metadata().with_context(|| format!("cannot read {}", path.display()))?;
        if kind.is_dir() && depth > 0 {
            list(&path, depth - 1, files)?;
        } else if kind.is_file() {
            files.push(path);
        }
        ensure!(files.len() <= MAX_FILES, "{} holds more than {MAX_FILES} files", folder.display());
    }
    Ok(())
}

impl Endorsements {
    fn add_folder(&mut self, folder: &Path) -> anyhow::Result<()> {
        if folder.join("oci-layout").exists() {
            // Its digests are checked: a layout that was changed is refused as a whole.
            return self.add_bundle(&Bundle::load(folder)?);
        }
        let (mut all, mut bundle) = (Vec::new(), Bundle::default());
        list(folder, MAX_DEPTH, &mut all)?;
        for file in all {
            // The answers of Intel's service belong together: each names only a part of the collateral.
            if file.file_name().is_some_and(|name| name == files::TCB_INFO) {
                let beside =
                    |name: &str| Some(read_input(Some(&file.with_file_name(name)), MAX_FILE).ok()?.to_vec());
                let collateral = Collateral::from_files(beside);
                let collateral = collateral.with_context(|| format!("{} is incomplete", folder.display()))?;
                self.collateral.push((None, Arc::new(collateral)));
                continue;
            }
            let bytes = read_input(Some(&file), MAX_FILE)?;
            let place = file.strip_prefix(folder).ok().and_then(Path::to_str);
            match place.and_then(|place| Some((place, Item::from_path(place)?))) {
                Some((place, item)) if !item.is_amd() => bundle.add_file(place, bytes.to_vec())?,
                _ => {
                    let _ = self.add(&bytes);
                }
            }
        }
        self.add_bundle(&bundle)
    }

    /// Add the documents of an exported set.
    fn add_bundle(&mut self, bundle: &Bundle) -> anyhow::Result<()> {
        for (item, document) in bundle.iter() {
            match item {
                Item::SnpChain { .. } => {
                    self.certificates.extend(Certificate::chain_from_pem(&document.bytes)?);
                }
                // The same list is there for both kinds of keys.
                Item::SnpCrl { .. } if self.crls.iter().any(|(_, known)| *known == document.bytes) => {}
                item if item.is_amd() => self.add(&document.bytes)?,
                Item::TcbInfo { tee: IntelTee::Tdx, fmspc } => self.add_platform(bundle, *fmspc)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Add the collateral of a kind of platform, for each authority that has a list in the set.
    fn add_platform(&mut self, bundle: &Bundle, fmspc: [u8; 6]) -> anyhow::Result<()> {
        for ca in [PckCa::Platform, PckCa::Processor] {
            let Some(collateral) = bundle.collateral(IntelTee::Tdx, fmspc, ca) else { continue };
            let json = collateral
                .to_json()
                .map_err(|why| anyhow::anyhow!("collateral of FMSPC {} {why}", hex::encode_upper(fmspc)))?;
            let collateral = Arc::new(Collateral::from_bundle(json.as_bytes())?);
            self.collateral.push((Some(CollateralKey { fmspc, ca }), collateral));
        }
        Ok(())
    }

    fn add(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{') {
            self.collateral.push((None, Arc::new(Collateral::from_bundle(bytes)?)));
            return Ok(());
        }
        if bytes.starts_with(b"-----BEGIN CERTIFICATE") {
            self.certificates.extend(Certificate::chain_from_pem(bytes)?);
            return Ok(());
        }
        match Blob::read(bytes) {
            Ok(Blob::Certificate(certificate)) => self.certificates.push(*certificate),
            Ok(Blob::Crl(crl, bytes)) => self.crls.push((*crl, bytes)),
            Err(error) => match CertTable::parse(bytes) {
                Ok(table) if !table.entries.is_empty() => {
                    for (_, blob) in &table.entries {
                        match Blob::read(blob)? {
                            Blob::Certificate(certificate) => self.certificates.push(*certificate),
                            Blob::Crl(crl, bytes) => self.crls.push((*crl, bytes)),
                        }
                    }
                }
                _ => bail!("it is no certificate ({error}), no revocation list and no certificate table"),
            },
        }
        Ok(())
    }

    /// The chain for a report, as evidence carries it: from what was given, then from `own`, what came with the evidence. Of
    /// several endorsement keys, the one of the report's chip and firmware. Nothing of it is believed for being given: it has to
    /// end in the root that the verifier trusts.
    pub(super) fn snp_chain(&self, report: &Report, own: Vec<CertEntry>) -> Vec<CertEntry> {
        if self.certificates.is_empty() && self.crls.is_empty() {
            return own;
        }
        let brought = own.iter().filter_map(|entry| Certificate::from_der_or_pem(&entry.data).ok());
        let all: Vec<Certificate> = self.certificates.iter().cloned().chain(brought).collect();
        let mut veks: Vec<(&Certificate, VekExtensions)> =
            all.iter().filter_map(|one| Some((one, VekExtensions::of(one).ok()?))).collect();
        veks.sort_by_key(|(_, extensions)| !belongs(report, extensions));
        let Some((vek, extensions)) = veks.first() else { return own };
        let entry = |cert_type: CertType, der: &[u8]| CertEntry { cert_type, data: der.to_vec() };
        let kind = if extensions.hw_id.is_some() { CertType::VCEK } else { CertType::VLEK };
        let mut entries = vec![entry(kind, vek.der())];
        let authorities = || all.iter().filter(|one| one.check_authority().is_ok());
        let ask = authorities().find(|one| vek.names_issuer(one));
        let ark = ask.and_then(|ask| authorities().find(|one| ask.names_issuer(one)));
        entries.extend(ask.map(|ask| entry(CertType::ASK, ask.der())));
        entries.extend(ark.map(|ark| entry(CertType::ARK, ark.der())));
        let given = self.crls.iter().find(|(crl, _)| ark.is_none_or(|ark| crl.names_issuer(ark)));
        match given {
            Some((_, crl)) => entries.push(entry(CertType::CRL, crl)),
            None => entries.extend(own.into_iter().filter(|entry| entry.cert_type == CertType::CRL)),
        }
        entries
    }
}

impl Endorsements {
    /// Of the endorsement keys that were given, the one of the report's chip and firmware.
    pub(super) fn vek_of(&self, report: &Report) -> Option<&Certificate> {
        let of =
            |one: &&Certificate| VekExtensions::of(one).is_ok_and(|extensions| belongs(report, &extensions));
        self.certificates.iter().find(of)
    }
}

/// Evidence that has no place for more than the endorsement key (Azure's) is verified with what is found here. The roots are the
/// verifier's own.
impl EndorsementSource for Endorsements {
    fn find(&self, report: &Report, product: Product) -> Supply {
        let vek = self.vek_of(report);
        let mut authorities = self.certificates.iter().filter(|one| one.check_authority().is_ok());
        let ask = vek.and_then(|vek| authorities.find(|one| vek.names_issuer(one)));
        let ark = kata_cc_snp::roots::ark(product).ok();
        let crl = self.crls.iter().find(|(crl, _)| ark.as_ref().is_some_and(|ark| crl.names_issuer(ark)));
        Supply {
            vek: vek.map(|vek| vek.der().into()),
            ask: ask.map(|ask| ask.der().into()),
            crl: crl.map(|(_, bytes)| bytes.as_slice().into()),
        }
    }
}

/// Whether an endorsement key was issued for the chip and firmware of this report.
fn belongs(report: &Report, extensions: &VekExtensions) -> bool {
    let chip = match (&extensions.hw_id, report.key_info.signing_key()) {
        (Some(id), SigningKey::Vcek) => report.chip_id == [0; 64] || report.chip_id.starts_with(id),
        (None, SigningKey::Vlek) => true,
        _ => false,
    };
    chip && extensions.tcb == report.reported_tcb
}

/// The collateral that was given, for a verifier to look up.
#[derive(Debug)]
pub(super) struct Given(pub(super) Vec<Known>);

impl CollateralSource for Given {
    /// That of the platform, or any: the verifier finds out that it is of another kind, and says so.
    fn find(&self, key: &CollateralKey) -> Option<Arc<Collateral>> {
        let fmspc = hex::encode(key.fmspc);
        let exact = self.0.iter().find(|(known, _)| *known == Some(*key));
        let named = |(_, one): &&Known| one.tcb_info.text.to_ascii_lowercase().contains(&fmspc);
        exact.or_else(|| self.0.iter().find(named)).or(self.0.first()).map(|(_, one)| Arc::clone(one))
    }
}
