//! Vectors, where they are there.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::path::{Path, PathBuf};

use kata_cc_tdx::Collateral;
use serde_json::Value;

/// 2025-07-01: within the dates of the collateral of v4-uptodate.
pub(crate) const NOW: u64 = 1_751_328_000;

const NAMES: [&str; 6] =
    ["v4-a", "v4-gcp-cos113", "v4-uptodate", "v5-gcollateral", "v5-no-tcb-level", "v5-td15"];

pub(crate) fn read(dir: &Path, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(name)).unwrap()
}

/// A quote with what is known about it.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) dir: PathBuf,
    pub(crate) quote: Vec<u8>,
    pub(crate) expected: Value,
}

impl Case {
    pub(crate) fn load(name: &'static str) -> Option<Self> {
        let dir = kata_cc_test_vectors::path("tdx/quotes")?.join(name);
        let expected = serde_json::from_slice(&read(&dir, "expected.json")).unwrap();
        Some(Self { name, quote: read(&dir, "quote.bin"), dir, expected })
    }

    pub(crate) fn collateral(&self) -> Collateral {
        if self.dir.join("collateral.json").exists() {
            return Collateral::from_bundle(&read(&self.dir, "collateral.json")).unwrap();
        }
        Collateral::from_files(|name| std::fs::read(self.dir.join("collateral").join(name)).ok()).unwrap()
    }
}

pub(crate) fn cases() -> Vec<Case> {
    NAMES.into_iter().filter_map(Case::load).collect()
}
