//! Documents as a whole: read from what people have, written as a folder or an OCI layout for a site without a network.
//!
//! [`Bundle::load`] takes a file or folder: the layout of [`Item::path`], an OCI image layout, single certificates (PEM or
//! DER; what they are stands in them), chains, AMD's and Intel's root revocation lists, and Intel's collateral as one JSON file
//! or as a folder of its parts. Other files are left out and listed. Bounded by [`MAX_BUNDLE_FILES`] and
//! [`MAX_BUNDLE_BYTES`]; links are not followed out of the folder, as they are not followed at all.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use kata_cc_kbs_protocol::base64_standard;
use kata_cc_snp::certs::{Certificate, VekExtensions};
use kata_cc_snp::verify::{Product, VekKind};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;
use x509_cert::crl::CertificateList;
use x509_cert::der::Decode as _;

use crate::document::{Document, MAX_DOCUMENT};
use crate::endorser::Collateral;
use crate::item::{IntelTee, Item, PckCa};
use crate::source::{Source, SourceError};

/// Most files of a bundle.
pub const MAX_BUNDLE_FILES: usize = 65_536;

/// Most bytes of a bundle.
pub const MAX_BUNDLE_BYTES: u64 = 256 * 1024 * 1024;

/// Most of AMD's authorities that are kept until the other half of their chain comes: there are two for each line.
const MAX_AUTHORITIES: usize = 64;

/// Deepest folder in a folder.
const MAX_DEPTH: usize = 4;

/// A folder or file that is no bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// A file or folder cannot be read or written.
    #[error("{path}: {why}", path = .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A file is in a place of the layout and is not what belongs there.
    #[error("{name} is not what its place says: it {why}")]
    Content {
        /// Which.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// An OCI layout that breaks its format.
    #[error("OCI layout: {why}")]
    Oci {
        /// What is wrong.
        why: String,
    },
    /// More than is taken.
    #[error("bundle has more than {MAX_BUNDLE_FILES} files or {MAX_BUNDLE_BYTES} bytes")]
    TooLarge,
}

/// An intermediate or root of AMD's that came by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Authority {
    file: String,
    certificate: Certificate,
    /// Whether it is part of a chain by now.
    used: bool,
}

/// A set of documents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle {
    documents: BTreeMap<String, (Item, Document)>,
    /// Parts of collateral, by folder and name.
    parts: BTreeMap<String, BTreeMap<&'static str, Vec<u8>>>,
    authorities: Vec<Authority>,
    /// Files that are none of the known forms.
    pub skipped: Vec<String>,
}

impl Bundle {
    /// Reads a file, a folder, or an OCI layout.
    ///
    /// # Errors
    /// [`BundleError`] when something cannot be read, is in a place it does not belong, or is too much.
    pub fn load(path: &Path) -> Result<Self, BundleError> {
        if path.join("oci-layout").exists() {
            return crate::oci::read(path);
        }
        let mut files = Vec::new();
        collect(path, path, 0, &mut files)?;
        files.sort();
        let mut bundle = Self::default();
        let mut total = 0;
        for (name, file) in files {
            let bytes = read_bounded(&file, 2 * MAX_DOCUMENT)?;
            total += bytes.len() as u64;
            if total > MAX_BUNDLE_BYTES {
                return Err(BundleError::TooLarge);
            }
            bundle.add_file(&name, bytes)?;
        }
        bundle.finish();
        Ok(bundle)
    }

    /// Adds a file by its name below the bundle's folder and its contents. Pure. [`Self::finish`] belongs behind the last.
    ///
    /// # Errors
    /// [`BundleError::Content`] when the name is a place of the layout and the contents are not what belongs there.
    pub fn add_file(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), BundleError> {
        if self.documents.len() >= MAX_BUNDLE_FILES {
            return Err(BundleError::TooLarge);
        }
        if let Some(item) = Item::from_path(name) {
            let item = with_product_of(item, &bytes);
            let document = Document::from_file(&item, bytes)
                .map_err(|why| BundleError::Content { name: name.to_owned(), why })?;
            self.add(item, document);
            return Ok(());
        }
        if let Some(part) = part_name(name) {
            return self.add_part(name, part, bytes);
        }
        if !self.add_by_content(name, &bytes) {
            if self.skipped.len() >= MAX_BUNDLE_FILES {
                return Err(BundleError::TooLarge);
            }
            self.skipped.push(name.to_owned());
        }
        Ok(())
    }

    /// Adds a document; one for the same item is replaced.
    pub fn add(&mut self, item: Item, document: Document) {
        self.documents.insert(item.path(), (item, document));
    }

    /// The document for an item.
    #[must_use]
    pub fn get(&self, item: &Item) -> Option<&Document> {
        self.documents.get(&item.path()).map(|(_, document)| document)
    }

    /// All items and documents, by path.
    pub fn iter(&self) -> impl Iterator<Item = (&Item, &Document)> {
        self.documents.values().map(|(item, document)| (item, document))
    }

    /// How many documents there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.documents.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// Writes the layout of [`Item::path`] into `folder`, which is made when absent; files there are replaced.
    ///
    /// # Errors
    /// [`BundleError::Io`].
    pub fn write_folder(&self, folder: &Path) -> Result<(), BundleError> {
        for (path, (_, document)) in &self.documents {
            write_file(&folder.join(path), &document.to_file())?;
        }
        Ok(())
    }

    /// Writes an OCI image layout into `folder`, which must not hold one: an artifact of type
    /// [`crate::oci::ARTIFACT_TYPE`] with one layer for each document, titled with its path. Gives the digest of its manifest.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn write_oci(&self, folder: &Path) -> Result<String, BundleError> {
        crate::oci::write(self, folder)
    }

    /// All collateral for a platform, when the bundle has it.
    #[must_use]
    pub fn collateral(&self, tee: IntelTee, fmspc: [u8; 6], ca: PckCa) -> Option<Collateral> {
        Some(Collateral {
            tcb_info: self.get(&Item::TcbInfo { tee, fmspc })?.clone(),
            qe_identity: self.get(&Item::QeIdentity { tee })?.clone(),
            pck_crl: self.get(&Item::PckCrl { ca })?.clone(),
            root_crl: self.get(&Item::RootCrl)?.bytes.clone(),
        })
    }

    /// Adds what can be told from the contents alone.
    fn add_by_content(&mut self, name: &str, bytes: &[u8]) -> bool {
        if bytes.trim_ascii_start().starts_with(b"{") {
            return self.add_collateral_json(bytes);
        }
        if let Ok(list) = CertificateList::from_der(bytes) {
            return self.add_crl(&list, bytes);
        }
        let chain = if bytes.starts_with(b"-----BEGIN") {
            Certificate::chain_from_pem(bytes)
        } else {
            Certificate::from_der(bytes).map(|certificate| vec![certificate])
        };
        let Ok(chain) = chain else { return false };
        if let [ask, ark] = chain.as_slice()
            && let Some(item) = item_of_chain(ask, ark)
        {
            self.add(item, Document::plain(bytes.to_vec()));
            return true;
        }
        let mut added = false;
        for certificate in chain {
            if let Some(item) = item_of_vek(&certificate) {
                self.add(item, Document::plain(certificate.der().to_vec()));
                added = true;
            } else {
                added |= self.add_authority(name, certificate);
            }
        }
        added
    }

    /// Keeps an intermediate or root of AMD's, and makes a chain of it and those that it belongs to.
    fn add_authority(&mut self, file: &str, certificate: Certificate) -> bool {
        let name = certificate.subject_cn();
        let is_one = |product: Product| {
            let line = product.name();
            [format!("ARK-{line}"), format!("SEV-{line}"), format!("SEV-VLEK-{line}")].contains(&name)
        };
        if !Product::ALL.into_iter().any(is_one) || self.authorities.len() >= MAX_AUTHORITIES {
            return false;
        }
        let mut new = Authority { file: file.to_owned(), certificate, used: false };
        let mut chains = Vec::new();
        for other in &mut self.authorities {
            let before = chains.len();
            for (ask, ark) in [(&new.certificate, &other.certificate), (&other.certificate, &new.certificate)]
            {
                if let Some(item) = item_of_chain(ask, ark).filter(|_| ask.names_issuer(ark)) {
                    chains.push((item, pem(ask.der()) + &pem(ark.der())));
                }
            }
            if chains.len() > before {
                (other.used, new.used) = (true, true);
            }
        }
        for (item, chain) in chains {
            self.add(item, Document::plain(chain.into_bytes()));
        }
        self.authorities.push(new);
        true
    }

    fn add_crl(&mut self, list: &CertificateList, bytes: &[u8]) -> bool {
        let issuer = list.tbs_cert_list.issuer.to_string();
        if issuer.contains("CN=Intel SGX Root CA") {
            self.add(Item::RootCrl, Document::plain(bytes.to_vec()));
            return true;
        }
        // AMD's root signs one list for each intermediate's address; a list by itself does not say which.
        let product = Product::ALL.into_iter().find(|one| issuer.contains(&format!("CN=ARK-{}", one.name())));
        let Some(product) = product else { return false };
        for kind in [VekKind::Vcek, VekKind::Vlek] {
            self.add(Item::SnpCrl { kind, product }, Document::plain(bytes.to_vec()));
        }
        true
    }

    /// Collateral as one JSON object of texts.
    fn add_collateral_json(&mut self, bytes: &[u8]) -> bool {
        let Ok(json) = serde_json::from_slice::<CollateralJson>(bytes) else { return false };
        let Some(collateral) = json.to_collateral() else { return false };
        self.add_collateral(collateral)
    }

    /// Adds collateral whose parts say themselves what they are for. False when they do not.
    pub fn add_collateral(&mut self, collateral: Collateral) -> bool {
        let Some((tee, fmspc)) = tcb_info_subject(&collateral.tcb_info.bytes) else { return false };
        let Some(ca) = ca_of(&collateral.pck_crl.bytes) else { return false };
        let items = [
            (Item::TcbInfo { tee, fmspc }, collateral.tcb_info),
            (Item::QeIdentity { tee }, collateral.qe_identity),
            (Item::PckCrl { ca }, collateral.pck_crl),
            (Item::RootCrl, Document::plain(collateral.root_crl)),
        ];
        if items.iter().any(|(item, document)| document.check(item).is_err()) {
            return false;
        }
        for (item, document) in items {
            self.add(item, document);
        }
        true
    }

    /// Keeps a part of a collateral folder, and puts the parts together as soon as all are there.
    fn add_part(&mut self, name: &str, part: &'static str, bytes: Vec<u8>) -> Result<(), BundleError> {
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        let parts = self.parts.entry(folder.to_owned()).or_default();
        parts.insert(part, bytes);
        if parts.len() < PARTS.len() {
            return Ok(());
        }
        let parts = std::mem::take(parts);
        self.parts.remove(folder);
        if collateral_of_parts(parts).is_some_and(|collateral| self.add_collateral(collateral)) {
            return Ok(());
        }
        let why = "and the parts beside it are no collateral that belongs together".to_owned();
        Err(BundleError::Content { name: name.to_owned(), why })
    }

    /// Lists among the skipped what misses its other parts: pieces of collateral, an intermediate without its root.
    pub fn finish(&mut self) {
        for (folder, parts) in std::mem::take(&mut self.parts) {
            self.skipped.extend(parts.keys().map(|part| format!("{folder}/{part}")));
        }
        let alone = std::mem::take(&mut self.authorities).into_iter().filter(|one| !one.used);
        self.skipped.extend(alone.map(|one| one.file));
    }
}

#[async_trait]
impl Source for Bundle {
    fn name(&self) -> &'static str {
        "bundle"
    }

    fn is_remote(&self) -> bool {
        false
    }

    async fn get(&self, item: &Item, _deadline: Instant) -> Result<Option<Document>, SourceError> {
        Ok(Self::get(self, item).cloned())
    }
}

/// Collateral in one JSON object: revocation lists in hex, JSON bodies as text without their signature.
#[derive(Debug, serde::Serialize, Deserialize)]
struct CollateralJson {
    pck_crl_issuer_chain: String,
    root_ca_crl: String,
    pck_crl: String,
    tcb_info_issuer_chain: String,
    tcb_info: String,
    tcb_info_signature: String,
    qe_identity_issuer_chain: String,
    qe_identity: String,
    qe_identity_signature: String,
}

impl CollateralJson {
    fn to_collateral(&self) -> Option<Collateral> {
        // The texts go into the bodies byte for byte: the signatures cover them so.
        let body = |name: &str, text: &str, signature: &str| {
            let signature = hex::encode(hex::decode(signature).ok()?);
            Some(format!("{{\"{name}\":{text},\"signature\":\"{signature}\"}}").into_bytes())
        };
        let with_chain = |bytes, chain: &str| Document { bytes, issuer_chain: Some(chain.to_owned()) };
        let tcb_info = body("tcbInfo", &self.tcb_info, &self.tcb_info_signature)?;
        let qe_identity = body("enclaveIdentity", &self.qe_identity, &self.qe_identity_signature)?;
        Some(Collateral {
            tcb_info: with_chain(tcb_info, &self.tcb_info_issuer_chain),
            qe_identity: with_chain(qe_identity, &self.qe_identity_issuer_chain),
            pck_crl: with_chain(hex::decode(&self.pck_crl).ok()?, &self.pck_crl_issuer_chain),
            root_crl: hex::decode(&self.root_ca_crl).ok()?,
        })
    }
}

/// A body of Intel's service: the exact text of the signed member, and the signature in hex.
#[derive(Deserialize)]
struct SignedBody<'a> {
    #[serde(borrow, alias = "enclaveIdentity", rename = "tcbInfo")]
    signed: &'a RawValue,
    signature: String,
}

impl Collateral {
    /// As one JSON object of texts, the form that [`Bundle::load`] and the TDX verifier read.
    ///
    /// # Errors
    /// A sentence when a body is not of the service's form.
    pub fn to_json(&self) -> Result<String, String> {
        let signed = |document: &Document| -> Result<(String, String), String> {
            let body: SignedBody<'_> = serde_json::from_slice(&document.bytes)
                .map_err(|error| format!("is no signed body: {error}"))?;
            Ok((body.signed.get().to_owned(), body.signature))
        };
        let chain = |document: &Document| document.issuer_chain.clone().unwrap_or_default();
        let (tcb_info, tcb_info_signature) = signed(&self.tcb_info)?;
        let (qe_identity, qe_identity_signature) = signed(&self.qe_identity)?;
        let json = CollateralJson {
            pck_crl_issuer_chain: chain(&self.pck_crl),
            root_ca_crl: hex::encode(&self.root_crl),
            pck_crl: hex::encode(&self.pck_crl.bytes),
            tcb_info_issuer_chain: chain(&self.tcb_info),
            tcb_info,
            tcb_info_signature,
            qe_identity_issuer_chain: chain(&self.qe_identity),
            qe_identity,
            qe_identity_signature,
        };
        serde_json::to_string(&json).map_err(|error| error.to_string())
    }
}

/// Names of the parts of a collateral folder.
const PARTS: [&str; 7] = [
    "tcb_info.json",
    "tcb_info_issuer_chain.pem",
    "qe_identity.json",
    "qe_identity_issuer_chain.pem",
    "pck.crl",
    "pck_crl_issuer_chain.pem",
    "root_ca.crl",
];

fn part_name(name: &str) -> Option<&'static str> {
    let file = name.rsplit('/').next()?;
    PARTS.into_iter().find(|part| *part == file)
}

fn collateral_of_parts(mut parts: BTreeMap<&'static str, Vec<u8>>) -> Option<Collateral> {
    let mut take = |name| parts.remove(name);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok();
    Some(Collateral {
        tcb_info: Document {
            bytes: take("tcb_info.json")?,
            issuer_chain: text(take("tcb_info_issuer_chain.pem")?),
        },
        qe_identity: Document {
            bytes: take("qe_identity.json")?,
            issuer_chain: text(take("qe_identity_issuer_chain.pem")?),
        },
        pck_crl: Document { bytes: take("pck.crl")?, issuer_chain: text(take("pck_crl_issuer_chain.pem")?) },
        root_crl: take("root_ca.crl")?,
    })
}

/// For what a TCB info is.
fn tcb_info_subject(body: &[u8]) -> Option<(IntelTee, [u8; 6])> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(rename = "tcbInfo")]
        tcb_info: Subject,
    }
    #[derive(Deserialize)]
    struct Subject {
        id: String,
        fmspc: String,
    }
    let subject = serde_json::from_slice::<Body>(body).ok()?.tcb_info;
    let tee = match subject.id.as_str() {
        "TDX" => IntelTee::Tdx,
        "SGX" => IntelTee::Sgx,
        _ => return None,
    };
    Some((tee, hex::decode(subject.fmspc).ok()?.try_into().ok()?))
}

/// Whose revocation list it is.
fn ca_of(crl: &[u8]) -> Option<PckCa> {
    let issuer = CertificateList::from_der(crl).ok()?.tbs_cert_list.issuer.to_string();
    [(PckCa::Platform, "CN=Intel SGX PCK Platform CA"), (PckCa::Processor, "CN=Intel SGX PCK Processor CA")]
        .into_iter()
        .find_map(|(ca, name)| issuer.contains(name).then_some(ca))
}

fn item_of_vek(certificate: &Certificate) -> Option<Item> {
    let extensions = VekExtensions::of(certificate).ok()?;
    let (product, tcb) = (Product::from_name(&extensions.product_name)?, extensions.tcb);
    match (extensions.hw_id, extensions.csp_id) {
        (Some(chip_id), None) => Some(Item::Vcek { product, chip_id, tcb }),
        (None, Some(_)) => Some(Item::Vlek { product, tcb }),
        _ => None,
    }
}

/// A certificate as PEM, in lines of 64 characters (RFC 7468).
#[must_use]
pub fn pem(der: &[u8]) -> String {
    let text = base64_standard(der);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for (index, character) in text.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            pem.push('\n');
        }
        pem.push(character);
    }
    pem + "\n-----END CERTIFICATE-----\n"
}

fn item_of_chain(ask: &Certificate, ark: &Certificate) -> Option<Item> {
    let product = Product::ALL.into_iter().find(|one| ark.subject_cn() == format!("ARK-{}", one.name()))?;
    let kind = match ask.subject_cn().strip_prefix("SEV-")? {
        name if name == product.name() => VekKind::Vcek,
        name if name.strip_prefix("VLEK-") == Some(product.name()) => VekKind::Vlek,
        _ => return None,
    };
    Some(Item::SnpChain { kind, product })
}

/// A chip's path does not say the processor line; its certificate does.
fn with_product_of(item: Item, bytes: &[u8]) -> Item {
    match item {
        Item::Vcek { product, chip_id, tcb } => {
            let named = Certificate::from_der(bytes)
                .ok()
                .and_then(|certificate| VekExtensions::of(&certificate).ok())
                .and_then(|extensions| Product::from_name(&extensions.product_name));
            Item::Vcek { product: named.unwrap_or(product), chip_id, tcb }
        }
        other => other,
    }
}

/// Regular files below `folder`, as names with `/`.
fn collect(
    root: &Path,
    path: &Path,
    depth: usize,
    files: &mut Vec<(String, PathBuf)>,
) -> Result<(), BundleError> {
    let failed = |error: std::io::Error| BundleError::Io { path: path.to_owned(), why: error.to_string() };
    // The root itself may be a link, as `/etc/…/current` often is.
    let kind = if depth == 0 { std::fs::metadata(path) } else { std::fs::symlink_metadata(path) };
    let kind = kind.map_err(failed)?;
    if kind.is_file() {
        if files.len() == MAX_BUNDLE_FILES {
            return Err(BundleError::TooLarge);
        }
        let relative = path.strip_prefix(root).ok().filter(|relative| !relative.as_os_str().is_empty());
        let name = relative.map_or_else(|| path.file_name().map(Path::new), Some);
        files.push((name.unwrap_or(path).to_string_lossy().into_owned(), path.to_owned()));
    } else if kind.is_dir() && depth <= MAX_DEPTH {
        for entry in std::fs::read_dir(path).map_err(failed)? {
            collect(root, &entry.map_err(failed)?.path(), depth + 1, files)?;
        }
    }
    Ok(())
}

/// A file of at most `most` bytes.
pub(crate) fn read_bounded(path: &Path, most: usize) -> Result<Vec<u8>, BundleError> {
    let failed = |why: String| BundleError::Io { path: path.to_owned(), why };
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
    if bytes.len() > most {
        return Err(failed(format!("has more than {most} bytes")));
    }
    Ok(bytes)
}

/// Written beside and renamed.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), BundleError> {
    let failed = |error: std::io::Error| BundleError::Io { path: path.to_owned(), why: error.to_string() };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let staged = crate::cache::staged_name(path);
    std::fs::write(&staged, bytes).and_then(|()| std::fs::rename(&staged, path)).map_err(|error| {
        std::fs::remove_file(&staged).ok();
        failed(error)
    })
}
