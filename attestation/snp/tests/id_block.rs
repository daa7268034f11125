//! The ID block of other tools: read, verified, its keys' digests, and built again from the same keys.
#![allow(clippy::unwrap_used, missing_docs)]

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kata_cc_snp::{GuestPolicy, IdAuth, IdBlock};
use serde_json::Value;

fn key(pem: &str) -> EcdsaKeyPair {
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &STANDARD.decode(body).unwrap()).unwrap()
}

#[test]
fn blocks_of_other_tools_are_read_verified_and_built_again() {
    let Some(dir) = kata_cc_test_vectors::path("snp/id-block") else { return };
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let expected: Value = serde_json::from_slice(&read("expected.json")).unwrap();
    let text = |name: &str| expected[name].as_str().unwrap().to_owned();
    let bytes = STANDARD.decode(text("id_block_base64")).unwrap();

    let block = IdBlock::parse(&bytes).unwrap();
    assert_eq!(hex::encode(block.launch_digest), text("launch_digest"));
    assert_eq!(hex::encode(block.family_id), text("family_id"));
    assert_eq!(hex::encode(block.image_id), text("image_id"));
    assert_eq!((block.guest_svn, block.policy), (0, GuestPolicy(0x3_0000)));
    assert_eq!(block.to_bytes().as_slice(), bytes);

    let auth_bytes = read("auth_block.bin");
    let auth = IdAuth::parse(&auth_bytes).unwrap();
    auth.verify(&block).unwrap();
    assert_eq!(auth.to_bytes().as_slice(), auth_bytes);
    assert_eq!(auth_bytes[0x40..0x240], read("id_sig.bin"));
    assert_eq!(auth_bytes[0x680..0x880], read("auth_sig.bin"));
    assert_eq!(STANDARD.encode(auth.id_key.digest()), text("id_key_digest_base64"));
    assert_eq!(STANDARD.encode(auth.author.unwrap().key.digest()), text("author_key_digest_base64"));

    // Signatures have a random part: the same keys, other signatures, and they verify.
    let (id_key, author_key) = (read("id_key.pem"), read("author_key.pem"));
    let keys = [id_key, author_key].map(|pem| key(std::str::from_utf8(&pem).unwrap()));
    let built = IdAuth::sign(&block, &keys[0], Some(&keys[1])).unwrap();
    built.verify(&block).unwrap();
    assert_eq!((built.id_key, built.author.unwrap().key), (auth.id_key, auth.author.unwrap().key));
    IdAuth::parse(&built.to_bytes()).unwrap().verify(&block).unwrap();
}
