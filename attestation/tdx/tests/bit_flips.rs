//! Every bit of a valid quote, and at least one of every byte of its collateral, flipped one at a time: each flip is refused, but for
//! those in text that no signature covers, and these change nothing of the verdict.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Case, NOW};
use kata_cc_tdx::quote::Trailing;
use kata_cc_tdx::{
    Collateral, Options, Quote, QuoteError, TrustAnchor, TrustedCollateral, Verified, VerifyError, verify,
};

fn flip(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    changed[bit / 8] ^= 1 << (bit % 8);
    changed
}

/// Runs `check` for each bit on all processors, and gives what it returned, in order.
fn each_bit<T: Send>(bits: usize, check: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let mut results: Vec<(usize, T)> = std::thread::scope(|scope| {
        let worker = || {
            let mut mine = Vec::new();
            loop {
                let bit = next.fetch_add(1, Ordering::Relaxed);
                if bit >= bits {
                    return mine;
                }
                mine.push((bit, check(bit)));
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    results.sort_by_key(|(bit, _)| *bit);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The kind of a refusal: the name of its variant.
fn kind(error: &VerifyError) -> String {
    let text = format!("{error:?}");
    text.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}

/// All that a verdict says, but for the text of the certificates as it came.
fn without_text(mut verified: Verified) -> Verified {
    verified.quote.certificates.clear();
    verified
}

#[test]
fn every_bit_of_a_quote_counts() {
    let Some(case) = Case::load("v4-uptodate") else { return };
    let trusted = TrustedCollateral::new(&case.collateral(), &TrustAnchor::Intel).unwrap();
    let padding = case.expected["trailing"].as_u64().unwrap() as usize;
    let quote = &case.quote[..case.quote.len() - padding];
    let options = Options { trailing: Trailing::Refused, ..Options::at(NOW) };
    let expected = without_text(verify(quote, &trusted, &options).unwrap());
    // The chain is the last thing in the quote: PEM, where line breaks and what stands around the certificates are
    // covered by no signature.
    let chain = quote.len() - expected_chain(quote);
    let results = each_bit(quote.len() * 8, |bit| {
        verify(&flip(quote, bit), &trusted, &options).map(without_text).map_err(|error| kind(&error))
    });
    let mut kinds = BTreeMap::<String, usize>::new();
    for (bit, result) in results.into_iter().enumerate() {
        match result {
            Err(kind) => *kinds.entry(kind).or_default() += 1,
            Ok(verified) => {
                assert!(
                    bit / 8 >= chain,
                    "bit {bit} of the quote is accepted, and is none of the chain's text"
                );
                assert_eq!(verified, expected, "bit {bit}");
                *kinds.entry("accepted, nothing changes".to_owned()).or_default() += 1;
            }
        }
    }
    println!("{} bits: {kinds:?}", quote.len() * 8);
    for kind in ["Quote", "QuoteSignature", "QeBinding", "QeReportSignature", "Chain"] {
        assert!(kinds.contains_key(kind), "{kind}");
    }
    // Body and header: all of them.
    assert!(kinds["QuoteSignature"] >= 584 * 8);
    // Line breaks and the lines around the certificates are a small part of the text.
    assert!(kinds["accepted, nothing changes"] < 3678, "{kinds:?}");
}

fn expected_chain(quote: &[u8]) -> usize {
    Quote::parse(quote, Trailing::Refused).unwrap().certificates.len()
}

#[test]
fn every_length_but_the_whole_is_refused() {
    for case in common::cases() {
        let padding = case.expected["trailing"].as_u64().unwrap() as usize;
        let whole = case.quote.len() - padding;
        for len in 0..whole {
            let error = Quote::parse(&case.quote[..len], Trailing::Zeros).unwrap_err();
            assert!(matches!(error, QuoteError::Truncated { .. }), "{} {len}: {error}", case.name);
        }
        assert!(Quote::parse(&case.quote[..whole], Trailing::Refused).is_ok());
    }
}

/// Every byte of the long parts, each at another bit than the one before it: every bit would take a minute of processor time. Of the
/// short parts it is every bit.
const STRIDE: usize = 7;

/// Flips every `step`th bit of one part of the collateral; gives how many flips were accepted with the same meaning.
fn flip_part(
    collateral: &Collateral,
    bytes: &[u8],
    step: usize,
    set: impl Fn(&mut Collateral, Vec<u8>) -> bool + Sync,
) -> usize {
    let (case, whole) = (Case::load("v4-uptodate").unwrap(), collateral.clone());
    let trusted = TrustedCollateral::new(&whole, &TrustAnchor::Intel).unwrap();
    let options = Options::at(NOW);
    let expected = verify(&case.quote, &trusted, &options).unwrap();
    let accepted = each_bit(bytes.len() * 8 / step, |index| {
        let mut changed = whole.clone();
        // What is no text is refused before it can be set.
        if !set(&mut changed, flip(bytes, index * step)) {
            return false;
        }
        let Ok(trusted) = TrustedCollateral::new(&changed, &TrustAnchor::Intel) else { return false };
        let verified = verify(&case.quote, &trusted, &options).unwrap();
        assert_eq!(verified, expected, "bit {}", index * step);
        true
    });
    accepted.into_iter().filter(|accepted| *accepted).count()
}

#[test]
fn every_byte_of_the_collateral_counts() {
    let Some(case) = Case::load("v4-uptodate") else { return };
    let whole = case.collateral();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok();
    let accepted = flip_part(&whole, whole.tcb_info.text.as_bytes(), STRIDE, |to, bytes| {
        text(bytes).map(|text| to.tcb_info.text = text).is_some()
    });
    assert_eq!(accepted, 0, "TCB info");
    let accepted = flip_part(&whole, whole.qe_identity.text.as_bytes(), 1, |to, bytes| {
        text(bytes).map(|text| to.qe_identity.text = text).is_some()
    });
    assert_eq!(accepted, 0, "QE identity");
    let accepted = flip_part(&whole, &whole.tcb_info.signature, 1, |to, bytes| {
        to.tcb_info.signature = bytes.try_into().unwrap();
        true
    });
    assert_eq!(accepted, 0, "signature of the TCB info");
    let accepted = flip_part(&whole, &whole.qe_identity.signature, 1, |to, bytes| {
        to.qe_identity.signature = bytes.try_into().unwrap();
        true
    });
    assert_eq!(accepted, 0, "signature of the QE identity");
    let accepted = flip_part(&whole, &whole.root_ca_crl, 1, |to, bytes| {
        to.root_ca_crl = bytes;
        true
    });
    assert_eq!(accepted, 0, "root CRL");
    let accepted = flip_part(&whole, &whole.pck_crl, STRIDE, |to, bytes| {
        to.pck_crl = bytes;
        true
    });
    assert_eq!(accepted, 0, "PCK CRL");
}

type Set = fn(&mut Collateral, Vec<u8>) -> bool;

/// Chains are PEM: as in the quote, flips outside of the certificates change nothing.
#[test]
fn every_byte_of_the_issuer_chains_counts_or_changes_nothing() {
    let Some(case) = Case::load("v4-uptodate") else { return };
    let whole = case.collateral();
    let sets: [(&[u8], Set); 2] = [
        (&whole.tcb_info.issuer_chain, |to, bytes| {
            to.tcb_info.issuer_chain = bytes;
            true
        }),
        (&whole.pck_crl_issuer_chain, |to, bytes| {
            to.pck_crl_issuer_chain = bytes;
            true
        }),
    ];
    for (bytes, set) in sets {
        let accepted = flip_part(&whole, bytes, STRIDE, set);
        println!("{accepted} of {} flips change nothing", bytes.len() * 8 / STRIDE);
        assert!(accepted < bytes.len() / 3);
    }
}
