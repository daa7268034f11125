//! Exported audit logs from anywhere: refused or whole, and an edit of a whole log is found or changes nothing that is told.
#![no_main]

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use kata_cc_store::audit::{Known, PublicKey, Whole};
use kata_cc_store::verify_export;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    if let Ok(whole) = verify_export(data, None, None) {
        told_again(data, &whole);
    }
    // Hashes and signatures keep a fuzzer out: with the input's lines as records, it is let in.
    let (edit, lines) = data.split_at(data.len().min(4));
    let (log, records) = signed_log(lines);
    let whole = verify_export(log.as_bytes(), None, None).expect("a log as the store writes it");
    assert_eq!(whole.records, records);
    told_again(log.as_bytes(), &whole);
    let [high, low, xor, cut] = edit else { return };
    let place = usize::from(u16::from_be_bytes([*high, *low])) % log.len();
    let mut edited = log.into_bytes();
    edited[place] ^= xor;
    if cut & 1 == 1 {
        edited.truncate(place);
    }
    if let Ok(seen) = verify_export(edited.as_slice(), None, None) {
        assert_eq!(seen, whole);
    }
});

/// What was told of a log holds when it is demanded, and another key or end does not.
fn told_again(log: &[u8], whole: &Whole) {
    let key = PublicKey::parse(&whole.public_key).expect("a key as it was told");
    let mut known: Known =
        format!("{}:{}", whole.records, whole.head).parse().expect("an end as it was told");
    assert_eq!(verify_export(log, Some(&key), Some(&known)).expect("what was told"), *whole);
    let other = PublicKey::parse(&"5a".repeat(32)).expect("digits");
    assert!(key == other || verify_export(log, Some(&other), None).is_err());
    if known.seq > 0 {
        known.hash[0] ^= 1;
        assert!(verify_export(log, None, Some(&known)).is_err());
    }
    known.seq += 1;
    assert!(verify_export(log, None, Some(&known)).is_err());
}

/// The log whose records are the lines that are JSON objects, and their number. A checkpoint stands after each line that begins
/// with a blank, and at the end.
fn signed_log(lines: &[u8]) -> (String, u64) {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("32 bytes");
    let key = pair.public_key().as_ref();
    let mut log = format!("{{\"audit\":1,\"public_key\":\"{}\"}}\n", hex(key));
    let mut hash = sha256(&[b"kata-cc audit genesis\0", key]);
    let mut seq = 0_u64;
    for line in lines.split(|byte| *byte == b'\n') {
        let Some((text, canonical)) = record(line) else { continue };
        seq += 1;
        hash = sha256(&[b"kata-cc audit record\0", &hash, &seq.to_be_bytes(), &canonical]);
        let _ = writeln!(log, "{{\"seq\":{seq},\"hash\":\"{}\",\"record\":{text}}}", hex(&hash));
        if line.first() == Some(&b' ') {
            checkpoint(&mut log, &pair, seq, &hash);
        }
    }
    checkpoint(&mut log, &pair, seq, &hash);
    (log, seq)
}

/// A line as the text of a record, and its canonical form.
fn record(line: &[u8]) -> Option<(&str, Vec<u8>)> {
    let text = std::str::from_utf8(line).ok()?;
    // Wrapped, as it will stand: serde_json reads so many levels only.
    let wrapped: Value = serde_json::from_str(&format!("{{\"record\":{text}}}")).ok()?;
    let value = wrapped
        .get("record")
        .filter(|value| value.is_object() && wrapped.as_object().is_some_and(|all| all.len() == 1))?;
    Some((text, serde_json_canonicalizer::to_vec(value).ok()?))
}

fn checkpoint(log: &mut String, pair: &Ed25519KeyPair, seq: u64, hash: &[u8]) {
    let time = "2026-01-01T00:00:00Z";
    let mut signed = b"kata-cc audit checkpoint\0".to_vec();
    for column in [seq.to_be_bytes().as_slice(), hash, time.as_bytes()] {
        signed.extend_from_slice(&(column.len() as u64).to_be_bytes());
        signed.extend_from_slice(column);
    }
    let _ = writeln!(
        log,
        "{{\"checkpoint\":{{\"seq\":{seq},\"hash\":\"{}\",\"time\":\"{time}\",\"signature\":\"{}\"}}}}",
        hex(hash),
        hex(pair.sign(&signed).as_ref())
    );
}

fn sha256(parts: &[&[u8]]) -> Vec<u8> {
    digest(&SHA256, &parts.concat()).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
