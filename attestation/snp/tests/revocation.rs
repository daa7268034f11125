//! Revocation lists, and the cache of verified chains: what is revoked, ended or no longer valid is refused, cached or not.
#![allow(clippy::unwrap_used, missing_docs)]

mod authority;

use authority::{ARK_SERIAL, ASK_SERIAL, Authority, Chip, DAY, NOW, Signer};
use kata_cc_snp::certs::CertError;
use kata_cc_snp::verify::{Role, Verified, verify_with};
use kata_cc_snp::{ChainCache, CrlStatus, Endorsements, Revocation, VerifiedChain, VerifyError};
use kata_cc_x509::ChainError;

fn check(of: &Authority, revocation: &Revocation<'_>, now: u64) -> Result<Verified, VerifyError> {
    let (anchor, given) = (of.anchor(), of.endorsements());
    verify_with(&of.sign(&of.unsigned()), (&anchor).into(), || {
        VerifiedChain::verify(&given, (&anchor).into(), revocation, now).map(Box::new)
    })
}

fn given<'a>(lists: &'a [&'a [u8]]) -> Revocation<'a> {
    Revocation { lists, ..Revocation::default() }
}

#[test]
fn the_verdict_says_what_is_known_about_revocation() {
    let of = Authority::new(Chip::MILAN);
    assert_eq!(check(&of, &Revocation::default(), NOW).unwrap().crl, CrlStatus::Absent);
    let refused = check(&of, &Revocation { required: true, ..Revocation::default() }, NOW).unwrap_err();
    assert_eq!(refused, VerifyError::CrlMissing { issuer: "ARK-Test".into() });
    let list = of.crl(Signer::Ark, &[99], NOW + DAY);
    let strict = Revocation { lists: &[&list], required: true, refuse_expired: true };
    assert_eq!(check(&of, &strict, NOW).unwrap().crl, CrlStatus::Checked);
    // A list of the intermediate alone says nothing of the intermediate.
    let of_ask = of.crl(Signer::Ask, &[], NOW + DAY);
    assert_eq!(check(&of, &given(&[&of_ask]), NOW).unwrap().crl, CrlStatus::Absent);
    assert_eq!(check(&of, &given(&[&of_ask, &list]), NOW).unwrap().crl, CrlStatus::Checked);
}

#[test]
fn a_list_that_has_ended_is_refused_or_told() {
    let of = Authority::new(Chip::MILAN);
    let list = of.crl(Signer::Ark, &[], NOW + DAY);
    let later = NOW + DAY + 1;
    assert_eq!(check(&of, &given(&[&list]), later).unwrap().crl, CrlStatus::Expired);
    let strict = Revocation { refuse_expired: true, ..given(&[]) };
    let refused = check(&of, &Revocation { lists: &[&list], ..strict }, later).unwrap_err();
    assert!(
        matches!(&refused, VerifyError::Crl(_)) && refused.to_string().contains("is valid from"),
        "{refused}"
    );
    // One that is not yet in force is not believed in either case.
    let refused = check(&of, &given(&[&list]), NOW - 3 * DAY).unwrap_err();
    assert!(matches!(refused, VerifyError::Crl(_)), "{refused}");
    // What it revokes stays revoked.
    let list = of.crl(Signer::Ark, &[ASK_SERIAL], NOW + DAY);
    assert!(matches!(
        check(&of, &given(&[&list]), later),
        Err(VerifyError::Chain(ChainError::Revoked { .. }))
    ));
}

#[test]
fn a_revoked_certificate_is_refused_by_its_serial_number() {
    let of = Authority::new(Chip::MILAN);
    let numbered = Authority::new(Chip { serial: 77, ..Chip::MILAN });
    for (of, signer, serial, role, text) in [
        (&of, Signer::Ark, ARK_SERIAL, Role::Ark, "01"),
        (&of, Signer::Ark, ASK_SERIAL, Role::Ask, "02"),
        (&of, Signer::Ask, 0, Role::Vek, "00"),
        (&numbered, Signer::Ask, 77, Role::Vek, "4d"),
        (&numbered, Signer::Ark, 77, Role::Vek, "4d"),
    ] {
        let list = of.crl(signer, &[3, serial], NOW + DAY);
        let issuer = if signer == Signer::Ark { "ARK-Test" } else { "SEV-Test" }.to_owned();
        let refused = check(of, &given(&[&list]), NOW).unwrap_err();
        assert_eq!(
            refused,
            VerifyError::Chain(ChainError::Revoked { role, serial: text.to_owned(), issuer })
        );
        assert!(refused.to_string().contains(&format!("serial number {text} was revoked")), "{refused}");
    }
    // The root's numbers are not the intermediate's: 0 in the root's list is no endorsement key.
    let list = of.crl(Signer::Ark, &[0], NOW + DAY);
    check(&of, &given(&[&list]), NOW).unwrap();
}

#[test]
fn lists_that_nobody_of_the_chain_signed_are_refused() {
    let (of, other) = (Authority::new(Chip::MILAN), Authority::new(Chip::MILAN));
    let foreign = other.crl(Signer::Ark, &[], NOW + DAY);
    let refused = check(&of, &given(&[&foreign]), NOW).unwrap_err();
    assert_eq!(refused, VerifyError::CrlSignature { issuer: "ARK-Test".into() });
    let mut changed = of.crl(Signer::Ark, &[99], NOW + DAY);
    let at = changed.windows(3).position(|part| part == [2, 1, 99]).unwrap();
    changed[at + 2] = 98;
    assert!(matches!(check(&of, &given(&[&changed]), NOW), Err(VerifyError::CrlSignature { .. })));
    assert!(matches!(check(&of, &given(&[b"list"]), NOW), Err(VerifyError::Crl(_))));
}

#[test]
fn a_chain_is_verified_once_and_ends_when_it_ends() {
    let of = Authority::new(Chip::MILAN);
    let (anchor, endorsements) = (of.anchor(), of.endorsements());
    let list = of.crl(Signer::Ark, &[], NOW + DAY);
    let cache = ChainCache::new(8);
    let chain =
        |revocation: &Revocation<'_>, now| cache.chain(&endorsements, (&anchor).into(), revocation, now);

    let first = chain(&given(&[&list]), NOW).unwrap();
    let again = chain(&given(&[&list]), NOW + DAY).unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &again) && cache.len() == 1);
    // The list ends: verified anew, with another result.
    let later = chain(&given(&[&list]), NOW + DAY + 1).unwrap();
    assert_eq!((first.crl(), later.crl()), (CrlStatus::Checked, CrlStatus::Expired));
    assert_eq!(chain(&given(&[&list]), NOW).unwrap().crl(), CrlStatus::Checked);
    // The certificates end: refused, though the chain is cached.
    for now in [NOW - 101 * DAY, NOW + 101 * DAY] {
        let refused = chain(&Revocation::default(), now).unwrap_err();
        assert!(
            matches!(
                &refused,
                VerifyError::Chain(ChainError::Certificate {
                    role: Role::Ark,
                    source: CertError::Validity { .. }
                })
            ),
            "{refused}"
        );
    }
    // What is demanded is part of the question.
    let strict = Revocation { refuse_expired: true, lists: &[&list], required: true };
    assert!(chain(&strict, NOW + DAY + 1).is_err());
    // So is a revocation that comes later.
    let revoking = of.crl(Signer::Ark, &[ASK_SERIAL], NOW + DAY);
    assert!(matches!(chain(&given(&[&revoking]), NOW), Err(VerifyError::Chain(ChainError::Revoked { .. }))));
}

#[test]
fn the_cache_is_bounded_and_never_answers_for_another_chain() {
    let of: Vec<Authority> = (0..3).map(|_| Authority::new(Chip::MILAN)).collect();
    let cache = ChainCache::new(2);
    let (first, last) = (&of[0], &of[2]);
    for one in &of {
        cache.chain(&one.endorsements(), (&one.anchor()).into(), &Revocation::default(), NOW).unwrap();
    }
    assert_eq!(cache.len(), 2);
    // The same certificates under another root, and other certificates under the same.
    let foreign = cache.chain(&last.endorsements(), (&first.anchor()).into(), &Revocation::default(), NOW);
    assert!(
        matches!(foreign, Err(VerifyError::Chain(ChainError::Signature { role: Role::Ask, .. }))),
        "{foreign:?}"
    );
    let swapped = Endorsements { vek: first.endorsements().vek, ..last.endorsements() };
    let foreign = cache.chain(&swapped, (&last.anchor()).into(), &Revocation::default(), NOW);
    assert!(
        matches!(foreign, Err(VerifyError::Chain(ChainError::Signature { role: Role::Vek, .. }))),
        "{foreign:?}"
    );
    let bad_root = Endorsements { ark: Some(first.ark.der().to_vec()), ..last.endorsements() };
    let foreign = cache.chain(&bad_root, (&last.anchor()).into(), &Revocation::default(), NOW);
    assert!(matches!(foreign, Err(VerifyError::Chain(ChainError::Root { .. }))), "{foreign:?}");
}
