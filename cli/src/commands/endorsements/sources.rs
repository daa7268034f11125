//! Where endorsements are taken from: files, folders, OCI layouts, the certificates that evidence brings; and what evidence lacks.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use kata_cc_azure_vtpm::{AzureEvidence, Hardware, HardwareEvidence, HclReport};
use kata_cc_endorsements::{Bundle, Endorser, IntelTee, Item, SnpNeed, vek_item};
use kata_cc_kbs_protocol::{Tee, from_base64_standard};
use kata_cc_snp::certs::{Certificate, VekExtensions};
use kata_cc_snp::verify::VekKind;
use kata_cc_snp::{CertTable, Product, Report, SigningKey};
use kata_cc_tdx::{CollateralKey, Quote, Trailing};

use crate::commands::evidence::input::{Form, Input, detect, snp_parts};
use crate::commands::read_input;

/// Most bytes of a file; evidence with an event log is the largest.
const MAX_FILE: u64 = 4 << 20;

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) bundle: Bundle,
    /// What the evidence among it needs.
    pub(super) wanted: Vec<Wanted>,
}

/// What one piece of evidence needs for its verification.
#[derive(Debug)]
pub(super) enum Wanted {
    /// The certificate of the key that signed a report.
    Snp(Box<Report>, Option<Product>),
    /// The collateral of a kind of platform.
    Tdx(CollateralKey),
}

/// Read all of them.
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Read> {
    let mut read = Read::default();
    for path in paths {
        if path.is_dir() {
            let folder = Bundle::load(path)?;
            ensure!(!folder.is_empty(), "{} holds no endorsement", path.display());
            for (item, document) in folder.iter() {
                read.bundle.add(item.clone(), document.clone());
            }
            let skipped = folder.skipped.iter().map(|name| path.join(name).display().to_string());
            read.bundle.skipped.extend(skipped);
        } else {
            let bytes = read_input(Some(path), MAX_FILE)?;
            read.add(path, &bytes).with_context(|| format!("{} is not taken", path.display()))?;
        }
    }
    read.bundle.finish();
    Ok(read)
}

impl Read {
    fn add(&mut self, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        let name = path.display().to_string();
        match detect(bytes, None, false) {
            Ok(input) => self.add_evidence(&name, &input),
            Err(_) if self.add_document(&name, bytes)? => Ok(()),
            Err(error) => match CertTable::parse(bytes) {
                Ok(table) if !table.entries.is_empty() => {
                    self.add_blobs(&name, table.entries.iter().map(|(_, blob)| blob.as_slice()))
                }
                _ => bail!("it holds no endorsement and is no evidence ({error:#})"),
            },
        }
    }

    /// Whether the bytes are a document.
    fn add_document(&mut self, name: &str, bytes: &[u8]) -> anyhow::Result<bool> {
        let before = self.bundle.skipped.len();
        self.bundle.add_file(name, bytes.to_vec())?;
        let taken = self.bundle.skipped.len() == before;
        self.bundle.skipped.truncate(before);
        Ok(taken)
    }

    fn add_evidence(&mut self, name: &str, input: &Input) -> anyhow::Result<()> {
        match (&input.form, input.tee) {
            (Form::SnpReport(report, table), _) => {
                self.add_report(name, report, table.entries.iter().map(|(_, blob)| blob.as_slice()))
            }
            (Form::TdxQuote(quote), _) => self.add_quote(quote),
            (Form::Hcl(hcl), Tee::AzSnpVtpm) => {
                self.add_report(name, &hcl.snp_report()?.1, std::iter::empty())
            }
            (Form::Json(value), Tee::Snp) => {
                let (report, evidence) = snp_parts(value)?;
                let chain = evidence.cert_chain.unwrap_or_default();
                self.add_report(name, &report, chain.iter().map(|entry| entry.data.as_slice()))
            }
            (Form::Json(value), Tee::Tdx) => {
                let quote = value.get("quote").and_then(|quote| from_base64_standard(quote.as_str()?));
                self.add_quote(&quote.context("its member quote is no base64")?)
            }
            (Form::Json(value), Tee::AzSnpVtpm | Tee::AzTdxVtpm) => {
                let hardware = if input.tee == Tee::AzSnpVtpm { Hardware::Snp } else { Hardware::Tdx };
                let evidence = AzureEvidence::from_json(hardware, value)?;
                match &evidence.hardware {
                    HardwareEvidence::TdQuote(quote) => self.add_quote(quote),
                    HardwareEvidence::Vcek(vcek) => {
                        let report = HclReport::parse(&evidence.hcl_report)?.snp_report()?.1;
                        self.add_report(name, &report, [vcek.as_slice()].into_iter())
                    }
                }
            }
            (_, tee) => bail!("it is evidence of {tee}, which needs no endorsements that could be given"),
        }
    }

    fn add_report<'a>(
        &mut self,
        name: &str,
        report: &Report,
        blobs: impl Iterator<Item = &'a [u8]>,
    ) -> anyhow::Result<()> {
        let blobs: Vec<&[u8]> = blobs.collect();
        let product = blobs
            .iter()
            .find_map(|blob| Product::of(report, Some(&Certificate::from_der_or_pem(blob).ok()?)));
        let product = product.or_else(|| Product::of(report, None));
        self.add_blobs(name, blobs.into_iter())?;
        self.wanted.push(Wanted::Snp(Box::new(report.clone()), product));
        Ok(())
    }

    fn add_blobs<'a>(&mut self, name: &str, blobs: impl Iterator<Item = &'a [u8]>) -> anyhow::Result<()> {
        for (index, blob) in blobs.enumerate() {
            let name = format!("{name}, certificate {index}");
            // The host fills the table, and may put anything there.
            if !self.add_document(&name, blob)? {
                check_product(blob)?;
                self.bundle.skipped.push(name);
            }
        }
        Ok(())
    }

    fn add_quote(&mut self, quote: &[u8]) -> anyhow::Result<()> {
        let quote = Quote::parse(quote, Trailing::Zeros)?;
        self.wanted.push(Wanted::Tdx(CollateralKey::of(&quote)?));
        Ok(())
    }
}

/// An endorsement key of a line that AMD has no root for.
fn check_product(blob: &[u8]) -> anyhow::Result<()> {
    let extensions = Certificate::from_der_or_pem(blob).ok().and_then(|one| VekExtensions::of(&one).ok());
    let Some(extensions) = extensions else { return Ok(()) };
    ensure!(
        Product::from_name(&extensions.product_name).is_some(),
        "its endorsement key is of the line {:?}, expected Milan, Genoa or Turin: a simulated platform's certificates travel with its evidence alone",
        extensions.product_name
    );
    Ok(())
}

impl Wanted {
    fn item(&self) -> Option<Item> {
        match self {
            Self::Snp(report, product) => {
                let kind = match report.key_info.signing_key() {
                    SigningKey::Vlek => VekKind::Vlek,
                    _ => VekKind::Vcek,
                };
                vek_item(report, (*product)?, kind)
            }
            Self::Tdx(_) => None,
        }
    }

    /// What is missing, in words.
    pub(super) fn lacks(&self, bundle: &Bundle) -> Option<String> {
        match self {
            Self::Tdx(key) => bundle
                .collateral(IntelTee::Tdx, key.fmspc, key.ca)
                .is_none()
                .then(|| format!("there is no collateral for {key}")),
            Self::Snp(report, _) => {
                // A platform that masks its chip id names no certificate: one of its versions will do.
                let tcb = report.reported_tcb;
                let same = |item: &Item| matches!(item, Item::Vcek { tcb: seen, .. } if *seen == tcb);
                let item = self.item();
                let found = match &item {
                    Some(item) => bundle.get(item).is_some(),
                    None => bundle.iter().any(|(item, _)| same(item)),
                };
                let what = item.map_or_else(
                    || format!("certificate of the report's endorsement key for ({tcb})"),
                    |item| item.to_string(),
                );
                (!found).then(|| format!("there is no {what}"))
            }
        }
    }

    /// Gets what is missing; gives what could not be had and is not needed.
    pub(super) async fn fetch(
        &self,
        endorser: &Endorser,
        bundle: &mut Bundle,
    ) -> anyhow::Result<Vec<String>> {
        let lack = self.lacks(bundle);
        match self {
            Self::Tdx(_) if lack.is_none() => Ok(Vec::new()),
            Self::Tdx(key) => {
                let got = endorser.collateral(IntelTee::Tdx, key.fmspc, key.ca).await;
                let got = got.with_context(|| lack.clone().unwrap_or_default())?;
                ensure!(
                    bundle.add_collateral(got),
                    "what was got for {key} is no collateral that belongs together"
                );
                Ok(Vec::new())
            }
            Self::Snp(report, product) => {
                let need = SnpNeed { report, product: *product, has_vek: lack.is_none(), has_ask: false };
                let supply = endorser.snp(&need).await;
                for (name, bytes) in [("vek", supply.vek), ("chain", supply.chain), ("crl", supply.crl)] {
                    if let Some(bytes) = bytes {
                        bundle.add_file(name, bytes)?;
                    }
                }
                bundle.finish();
                let problems: Vec<String> = supply.problems.iter().map(ToString::to_string).collect();
                match self.lacks(bundle) {
                    Some(lack) => bail!("{lack}: {}", problems.join("; ")),
                    None => Ok(problems),
                }
            }
        }
    }
}
