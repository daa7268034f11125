//! Signatures of images (payloads, log entries, bundles, statements, names: whoever can write to a registry wrote them), and the policy.
#![no_main]

use kata_cc_image::signature::{Bundle, Entry, Named, Policy, SignedIdentity, SimpleSigning, Statement};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let image = Named::parse("host.io:5000/team/app:1").expect("a name");
    if let Ok(policy) = Policy::parse(bytes) {
        let (scope, requirements) = policy.requirements(&image);
        // A policy without a requirement for an image would let everything pass.
        assert!(!requirements.is_empty() && !scope.to_string().is_empty());
    }
    let _ = Bundle::parse(bytes);
    let _ = Statement::parse("application/vnd.in-toto+json", bytes);
    if let Ok(payload) = SimpleSigning::parse(bytes) {
        let _ = SignedIdentity::MatchRepository.check(&image, Some(&payload.reference));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = Entry::from_annotation(text);
    if let Some(named) = Named::parse(text) {
        // A name is itself, in every kind of match.
        for identity in [SignedIdentity::MatchRepository, SignedIdentity::MatchDigestOnly] {
            assert!(identity.check(&named, Some(text)).is_ok());
        }
    } else {
        assert!(SignedIdentity::MatchRepository.check(&image, Some(text)).is_err());
    }
});
