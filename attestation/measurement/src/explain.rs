//! Why a digest is what it is: every measured page with its share, and what two launches differ in, to the
//! byte.
//!
//! An [`Explanation`] is a plain document (JSON for `kata-cc measure --explain`); [`diff`] compares two,
//! also from different machines. The digest of an explanation is not trusted: [`Explanation::check`]
//! computes it again from the steps.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bytes::{address, hex_bytes, optional_hex};
use crate::tdx::MrtdStream;
use crate::{DIGEST_LEN, LaunchDigest, PAGE_SIZE, PageType, hash_page, vmsa};

/// Which algorithm measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tee {
    /// SNP launch digest.
    Snp,
    /// TDX MRTD.
    Tdx,
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the SNP kinds are those of `PageType`")]
pub enum StepKind {
    Normal,
    Vmsa,
    Zero,
    Unmeasured,
    Secrets,
    Cpuid,
    /// TDX: the page is added, its contents are not measured.
    PageAdd,
    /// TDX: the contents of a page that was added before are measured.
    Extend,
    /// TDX: the page is added and its contents are measured at once.
    PageAddExtend,
}

impl From<PageType> for StepKind {
    fn from(page_type: PageType) -> Self {
        match page_type {
            PageType::Normal => Self::Normal,
            PageType::Vmsa => Self::Vmsa,
            PageType::Zero => Self::Zero,
            PageType::Unmeasured => Self::Unmeasured,
            PageType::Secrets => Self::Secrets,
            PageType::Cpuid => Self::Cpuid,
        }
    }
}

impl StepKind {
    const fn page_type(self) -> Option<PageType> {
        match self {
            Self::Normal => Some(PageType::Normal),
            Self::Vmsa => Some(PageType::Vmsa),
            Self::Zero => Some(PageType::Zero),
            Self::Unmeasured => Some(PageType::Unmeasured),
            Self::Secrets => Some(PageType::Secrets),
            Self::Cpuid => Some(PageType::Cpuid),
            Self::PageAdd | Self::Extend | Self::PageAddExtend => None,
        }
    }
}

/// One measured page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Section that it belongs to.
    pub section: String,
    /// Guest address.
    #[serde(with = "address")]
    pub gpa: u64,
    /// How it was measured.
    pub kind: StepKind,
    /// SHA-384 of its contents, when those are measured.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_hex")]
    pub content_sha384: Option<[u8; DIGEST_LEN]>,
    /// The digest with this page in it (for MRTD: as if the launch ended here).
    #[serde(with = "hex_bytes")]
    pub digest_after: [u8; DIGEST_LEN],
    /// Its contents, when they are measured and were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_hex")]
    pub contents: Option<Vec<u8>>,
}

/// A digest and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explanation {
    /// Algorithm.
    pub tee: Tee,
    /// Digest that the launch starts from, when its first pages are known only by that.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_hex")]
    pub seed: Option<[u8; DIGEST_LEN]>,
    /// Launch digest or MRTD.
    #[serde(with = "hex_bytes")]
    pub digest: [u8; DIGEST_LEN],
    /// Every measured page in order.
    pub steps: Vec<Step>,
}

/// An explanation that does not explain its digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// A step of the other algorithm.
    #[error("step {index} ({section} at {gpa:#x}) does not belong to this TEE")]
    OtherTee {
        /// Its number.
        index: usize,
        /// Its section.
        section: String,
        /// Its address.
        gpa: u64,
    },
    /// Contents and their hash do not agree, or are not a page.
    #[error("step {index} ({section} at {gpa:#x}): its contents are not those that its hash names")]
    Contents {
        /// Its number.
        index: usize,
        /// Its section.
        section: String,
        /// Its address.
        gpa: u64,
    },
    /// The steps lead to another digest.
    #[error("the steps lead to {seen} after step {index}, the document says {stated}")]
    Digest {
        /// Number of the step.
        index: usize,
        /// Digest that was computed, in hex.
        seen: String,
        /// Digest that stands in the document, in hex.
        stated: String,
    },
    /// MRTD cannot be computed without the contents.
    #[error("the document has no page contents, without which an MRTD cannot be computed again")]
    NoContents,
}

impl Explanation {
    /// Computes the digest again from the steps.
    ///
    /// # Errors
    /// Names the first step that does not hold.
    pub fn check(&self) -> Result<(), ExplainError> {
        let mut snp = self.seed.map_or_else(LaunchDigest::new, LaunchDigest::with_seed);
        let mut tdx = MrtdStream::new();
        for (index, step) in self.steps.iter().enumerate() {
            let place = || (index, step.section.clone(), step.gpa);
            let page = step.page().map_err(|()| {
                let (index, section, gpa) = place();
                ExplainError::Contents { index, section, gpa }
            })?;
            let after = match (self.tee, step.kind.page_type()) {
                (Tee::Snp, Some(page_type)) => {
                    snp.update_hashed(page_type, step.gpa, &step.content_sha384.unwrap_or([0; DIGEST_LEN]));
                    snp.clone().finish()
                }
                (Tee::Tdx, None) => {
                    step.replay(&mut tdx, page)?;
                    tdx.clone().finish()
                }
                _ => {
                    let (index, section, gpa) = place();
                    return Err(ExplainError::OtherTee { index, section, gpa });
                }
            };
            same(index, &after, &step.digest_after)?;
        }
        let last = match self.tee {
            Tee::Snp => snp.finish(),
            Tee::Tdx => tdx.finish(),
        };
        same(self.steps.len(), &last, &self.digest)
    }
}

fn same(index: usize, seen: &[u8; DIGEST_LEN], stated: &[u8; DIGEST_LEN]) -> Result<(), ExplainError> {
    if seen == stated {
        return Ok(());
    }
    Err(ExplainError::Digest { index, seen: hex::encode(seen), stated: hex::encode(stated) })
}

impl Step {
    /// Contents as a page, when they are there; they have to have the stated hash.
    fn page(&self) -> Result<Option<&[u8; PAGE_SIZE]>, ()> {
        let Some(contents) = &self.contents else {
            return Ok(None);
        };
        let page: &[u8; PAGE_SIZE] = contents.as_slice().try_into().map_err(|_| ())?;
        if Some(hash_page(page)) == self.content_sha384 { Ok(Some(page)) } else { Err(()) }
    }

    fn replay(&self, stream: &mut MrtdStream, page: Option<&[u8; PAGE_SIZE]>) -> Result<(), ExplainError> {
        if self.kind != StepKind::Extend {
            stream.page_add(self.gpa);
        }
        if self.kind != StepKind::PageAdd {
            stream.page_extend(self.gpa, page.ok_or(ExplainError::NoContents)?);
        }
        Ok(())
    }
}

/// One thing that two launches differ in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Difference {
    /// They were measured by different algorithms; nothing else is compared.
    Tee {
        /// Algorithm of the first.
        a: Tee,
        /// Algorithm of the second.
        b: Tee,
    },
    /// They start from different digests.
    Seed,
    /// A page that only one of them has.
    OnlyIn {
        /// `a` or `b`.
        side: char,
        /// Section of the page.
        section: String,
        /// Address of the page.
        #[serde(with = "address")]
        gpa: u64,
    },
    /// A page that is measured in another way.
    Kind {
        /// Section of the page.
        section: String,
        /// Address of the page.
        #[serde(with = "address")]
        gpa: u64,
        /// Kind in the first.
        a: StepKind,
        /// Kind in the second.
        b: StepKind,
    },
    /// A page with other contents.
    Contents {
        /// Section of the page.
        section: String,
        /// Address of the page.
        #[serde(with = "address")]
        gpa: u64,
        /// Where and how, when both documents hold the contents.
        #[serde(skip_serializing_if = "Option::is_none")]
        first: Option<DifferingByte>,
        /// How many bytes differ, when both documents hold the contents.
        #[serde(skip_serializing_if = "Option::is_none")]
        bytes: Option<usize>,
    },
    /// The same pages in another order.
    Order {
        /// Number of the first step at which they part.
        step: usize,
    },
}

/// The first byte in which two pages differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DifferingByte {
    /// Offset in the page.
    #[serde(with = "address")]
    pub offset: u64,
    /// Register, when the page is a VMSA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub register: Option<&'static str>,
    /// Byte of the first.
    pub a: u8,
    /// Byte of the second.
    pub b: u8,
}

/// What two launches differ in, in the order of the first; empty when they have the same digest.
#[must_use]
pub fn diff(a: &Explanation, b: &Explanation) -> Vec<Difference> {
    if a.tee != b.tee {
        return vec![Difference::Tee { a: a.tee, b: b.tee }];
    }
    let mut differences = Vec::new();
    if a.seed != b.seed {
        differences.push(Difference::Seed);
    }
    let (by_a, by_b) = (indexed(a), indexed(b));
    for (key, step) in keyed(a) {
        match by_b.get(&key) {
            None => differences.push(only_in('a', step)),
            Some(other) => differences.extend(compare(step, other)),
        }
    }
    for (key, step) in keyed(b) {
        if !by_a.contains_key(&key) {
            differences.push(only_in('b', step));
        }
    }
    if differences.is_empty()
        && let Some(step) = a.steps.iter().zip(&b.steps).position(|(a, b)| (a.gpa, a.kind) != (b.gpa, b.kind))
    {
        differences.push(Difference::Order { step });
    }
    differences
}

/// Section, address, whether it is the second pass over the page, and how often that was seen before.
type Key<'a> = (&'a str, u64, bool, usize);

fn keyed(explanation: &Explanation) -> Vec<(Key<'_>, &Step)> {
    let mut seen = BTreeMap::new();
    explanation
        .steps
        .iter()
        .map(|step| {
            let page = (step.section.as_str(), step.gpa, step.kind == StepKind::Extend);
            let count: &mut usize = seen.entry(page).or_default();
            *count += 1;
            ((page.0, page.1, page.2, *count), step)
        })
        .collect()
}

fn indexed(explanation: &Explanation) -> BTreeMap<Key<'_>, &Step> {
    keyed(explanation).into_iter().collect()
}

fn only_in(side: char, step: &Step) -> Difference {
    Difference::OnlyIn { side, section: step.section.clone(), gpa: step.gpa }
}

fn compare(a: &Step, b: &Step) -> Option<Difference> {
    let (section, gpa) = (a.section.clone(), a.gpa);
    if a.kind != b.kind {
        return Some(Difference::Kind { section, gpa, a: a.kind, b: b.kind });
    }
    if a.content_sha384 == b.content_sha384 {
        return None;
    }
    let pages = a.contents.as_ref().zip(b.contents.as_ref());
    let differing = |(_, (a, b)): &(usize, (&u8, &u8))| a != b;
    let first =
        pages.and_then(|(x, y)| x.iter().zip(y).enumerate().find(differing)).map(|(offset, (&x, &y))| {
            DifferingByte {
                offset: offset as u64,
                register: (a.kind == StepKind::Vmsa).then(|| vmsa::register_at(offset)).flatten(),
                a: x,
                b: y,
            }
        });
    let bytes = pages.map(|(x, y)| x.iter().zip(y).filter(|(x, y)| x != y).count());
    Some(Difference::Contents { section, gpa, first, bytes })
}
