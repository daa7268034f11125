//! `kata-cc-bench NAME`: measures ours and a peer in turn, in the same run, and prints JSON rows for `./x bench`.
//!
//! [`boot`]: a microVM beside QEMU's. [`confidential_boot`]: the same by stage0, beside one that enters its kernel directly. [`image`]: a pull beside
//! skopeo's and umoci's. [`node_cache`]: a pod with the node's copy of its image beside one without. [`kbs`]: the key broker beside the bare signatures that its work needs. [`snp`]: the verifier
//! of SNP reports beside the same.

mod boot;
mod confidential_boot;
mod image;
mod kbs;
mod node_cache;
mod snp;

use anyhow::bail;
use serde_json::{Value, json};

fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("boot") => boot::boot(),
        Some("confidential-boot") => confidential_boot::confidential_boot(),
        Some("image") => image::image(),
        Some("image-layout") => image::layout(),
        // of `image` itself
        Some("peak") => image::peak(),
        Some("kbs") => kbs::kbs(),
        Some("node-cache") => node_cache::node_cache(),
        Some("snp") => snp::snp(),
        other => {
            bail!("usage: kata-cc-bench boot|confidential-boot|image|kbs|node-cache|snp (got {other:?})")
        }
    }
}

/// What is aimed at.
enum Aim {
    /// Ours over the peer's, at most.
    Ratio(f64),
    /// Ours, at most, in the row's unit.
    Most(f64),
}

/// A row of `./x bench`: medians of ours and the peer's.
fn compared(metric: &str, unit: &str, (ours, peer): (&[f64], &[f64]), peer_name: &str, aim: Aim) -> Value {
    let repeated = ours.len();
    let (ours, ours_min) = median_and_least(ours.iter().copied());
    let (peer, peer_min) = median_and_least(peer.iter().copied());
    let ratio = ours / peer;
    let (target, met) = match aim {
        Aim::Ratio(most) => (format!("ratio <= {most}"), ratio <= most),
        Aim::Most(most) => (format!("<= {most} {unit}"), ours <= most),
    };
    json!({
        "metric": metric, "unit": unit, "ours": ours, "ours_min": ours_min, "peer": peer, "peer_min": peer_min,
        "peer_name": peer_name, "ratio": ratio, "target": target, "met": met, "repeated": repeated,
    })
}

fn median_and_least(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    };
    (median, values[0])
}
