use std::io::Cursor;

use serde_json::{Value, json};

use super::*;

const SIZE: u64 = format::SMALLEST + 4096 + 512;
const KEY: &[u8] = b"a key of the owner's";
const QUICK: Limits = Limits { argon2_memory_kib: 64, argon2_work_kib: 1 << 20, pbkdf2_iterations: 1 << 20 };

/// A volume of ours in memory, and what it opened to when it was made.
fn made() -> (Cursor<Vec<u8>>, Volume) {
    let mut device = Cursor::new(vec![0xee; usize::try_from(SIZE).unwrap()]);
    let volume = format(&mut device, SIZE, KEY, QUICK).unwrap();
    (device, volume)
}

/// The same with other metadata, both copies whole.
fn with(change: impl FnOnce(&mut Value)) -> Cursor<Vec<u8>> {
    let (mut device, _) = made();
    let header = header::read(&mut device).unwrap();
    let mut json = Value::Object(header.json);
    change(&mut json);
    let copies = header::write(header.size, &header.uuid, json.to_string().as_bytes(), &[[1; 64], [2; 64]]);
    device.get_mut()[..copies.len()].copy_from_slice(&copies);
    device
}

fn refusal(change: impl FnOnce(&mut Value)) -> String {
    open(&mut with(change), SIZE, KEY, QUICK).unwrap_err().to_string()
}

#[test]
fn what_was_made_opens_to_the_same() {
    let (mut device, made) = made();
    let opened = open(&mut device, SIZE, KEY, QUICK).unwrap();
    assert_eq!(*opened.crypt_parameters((253, 7)), *made.crypt_parameters((253, 7)));
    assert_eq!((opened.length(), opened.sectors()), ((1 << 20) + 4096, 2056));
    assert_eq!(opened.uuid(), made.uuid());
    let table = String::from_utf8(opened.crypt_parameters((253, 7)).to_vec()).unwrap();
    assert!(table.starts_with("aes-xts-plain64 ") && table.ends_with(" 0 253:7 32768 1 sector_size:4096"));
    assert_eq!(table.split(' ').nth(1).unwrap().len(), 128);
    assert!(!format!("{opened:?}").contains(table.split(' ').nth(1).unwrap()), "the key is shown");
}

#[test]
fn every_volume_has_a_key_and_a_name_of_its_own() {
    let ((_, a), (_, b)) = (made(), made());
    assert_ne!(*a.key, *b.key);
    assert_ne!(a.uuid(), b.uuid());
}

#[test]
fn another_key_opens_nothing() {
    let (mut device, _) = made();
    for key in [&b"another key"[..], b"a key of the owner's\n"] {
        let error = open(&mut device, SIZE, key, QUICK).unwrap_err();
        assert!(matches!(error, Luks2Error::NoMatch { tried: 1, .. }), "{error}");
        assert!(error.to_string().contains("no keyslot matches"), "{error}");
    }
    assert!(matches!(open(&mut device, SIZE, b"", QUICK), Err(Luks2Error::KeyLength(0))));
    let long = vec![0; MAX_KEY + 1];
    assert!(matches!(open(&mut device, SIZE, &long, QUICK), Err(Luks2Error::KeyLength(_))));
    assert!(matches!(format(&mut device, SIZE, b"", QUICK), Err(Luks2Error::KeyLength(0))));
}

#[test]
fn formatting_leaves_nothing_of_an_older_header() {
    let (mut device, _) = made();
    // A second copy of a larger header, as another program may have made it.
    let old = header::write(256 << 10, "old", b"{}", &[[0; 64], [0; 64]]);
    device.get_mut()[..old.len()].copy_from_slice(&old);
    format(&mut device, SIZE, KEY, QUICK).unwrap();
    device.get_mut()[0] ^= 1;
    open(&mut device, SIZE, KEY, QUICK).unwrap();
    let small = format(&mut device, SMALLEST - 1, KEY, QUICK).unwrap_err();
    assert!(matches!(small, Luks2Error::TooSmall { .. }), "{small}");
}

#[test]
fn a_flipped_bit_in_one_copy_is_got_over_in_both_it_is_refused() {
    let (device, _) = made();
    // Magic, version, size, sequence, checksum kind, salt, place, checksum, JSON, zeros behind it.
    let places = [0, 7, 14, 23, 73, 110, 262, 450, 4100, 16_000];
    for at in places {
        for copies in [&[0][..], &[16 << 10]] {
            let mut one = device.clone();
            copies.iter().for_each(|copy| one.get_mut()[copy + at] ^= 4);
            open(&mut one, SIZE, KEY, QUICK).unwrap_or_else(|e| panic!("{at} of {copies:?}: {e}"));
        }
        let mut both = device.clone();
        both.get_mut()[at] ^= 4;
        both.get_mut()[(16 << 10) + at] ^= 4;
        let error = open(&mut both, SIZE, KEY, QUICK).unwrap_err();
        assert!(matches!(error, Luks2Error::NoHeader { .. }), "{at}: {error}");
    }
}

#[test]
fn each_fault_of_a_header_is_named() {
    let fault = |change: &dyn Fn(&mut [u8])| {
        let (mut device, _) = made();
        change(&mut device.get_mut()[..16 << 10]);
        device.get_mut()[16 << 10] = 0;
        match open(&mut device, SIZE, KEY, QUICK).unwrap_err() {
            Luks2Error::NoHeader { first, second: HeaderFault::Magic } => first,
            other => panic!("{other}"),
        }
    };
    assert_eq!(fault(&|b| b[0] = 0), HeaderFault::Magic);
    assert_eq!(fault(&|b| b[7] = 1), HeaderFault::Version(1));
    assert_eq!(fault(&|b| b[8] = 1), HeaderFault::Size((1 << 56) + (16 << 10)));
    assert_eq!(fault(&|b| b[263] = 9), HeaderFault::Place { seen: 9, at: 0 });
    assert_eq!(fault(&|b| b[72] = b'\n'), HeaderFault::ChecksumKind("?ha256".to_owned()));
    assert_eq!(fault(&|b| b[4097] ^= 1), HeaderFault::Checksum);
    let sign = |b: &mut [u8]| {
        b[448..512].fill(0);
        let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b);
        b[448..480].copy_from_slice(sum.as_ref());
    };
    for at in [4096, (16 << 10) - 1] {
        let seen = fault(&|b| {
            b[at] = b'x';
            sign(b);
        });
        assert!(matches!(seen, HeaderFault::Json(_)), "{seen}");
    }
    let mut short = Cursor::new(made().0.into_inner()[..8192].to_vec());
    let error = open(&mut short, 8192, KEY, QUICK).unwrap_err();
    assert!(matches!(error, Luks2Error::NoHeader { first: HeaderFault::Short, .. }), "{error}");
}

#[test]
fn the_newer_copy_counts() {
    let (mut device, _) = made();
    let old = header::read(&mut device).unwrap();
    let mut newer = header::write(old.size, "newer", b"{}", &[[0; 64], [0; 64]]);
    newer[(16 << 10) + 23] = 2;
    let second = &mut newer[16 << 10..];
    second[448..512].fill(0);
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, second);
    second[448..480].copy_from_slice(sum.as_ref());
    device.get_mut()[16 << 10..32 << 10].copy_from_slice(&newer[16 << 10..]);
    assert_eq!(header::read(&mut device).unwrap().uuid, "newer");
}

#[test]
fn every_other_way_of_encrypting_is_refused() {
    for cipher in ["cipher_null-ecb", "aes-cbc-essiv:sha256", "aes-xts-plain", "serpent-xts-plain64", ""] {
        let words = refusal(|j| j["segments"]["0"]["encryption"] = cipher.into());
        assert!(words.contains("segment 0: encryption") && words.contains("only aes-xts-plain64"), "{words}");
        let words = refusal(|j| j["keyslots"]["0"]["area"]["encryption"] = cipher.into());
        assert!(words.contains("keyslot 0: area.encryption"), "{words}");
    }
    let words = refusal(|j| j["segments"]["0"]["integrity"] = json!({"type": "hmac(sha256)"}));
    assert!(words.contains("dm-integrity"), "{words}");
    for kind in ["linear", "hw-opal-crypt", "hw-opal"] {
        let words = refusal(|j| j["segments"]["0"]["type"] = kind.into());
        assert!(words.contains("only crypt"), "{words}");
    }
}

/// Each with the place that the refusal must name.
#[test]
fn every_number_out_of_bounds_is_refused_by_name() {
    type Change = fn(&mut Value);
    let cases: &[(&str, Change)] = &[
        ("requirements", |j| j["config"]["requirements"] = json!({"mandatory": ["online-reencrypt-v2"]})),
        ("json_size", |j| j["config"]["json_size"] = "4096".into()),
        ("keyslots_size", |j| j["config"]["keyslots_size"] = "18446744073709547520".into()),
        ("keyslots_size", |j| j["config"]["keyslots_size"] = "4097".into()),
        ("keyslots_size", |j| j["config"]["keyslots_size"] = "-4096".into()),
        ("2 segments", |j| j["segments"]["1"] = j["segments"]["0"].clone()),
        ("0 segments", |j| j["segments"] = json!({})),
        ("iv_tweak", |j| j["segments"]["0"]["iv_tweak"] = "8".into()),
        ("sector_size", |j| j["segments"]["0"]["sector_size"] = 513.into()),
        ("segment: offset", |j| j["segments"]["0"]["offset"] = "32768".into()),
        ("segment: offset", |j| j["segments"]["0"]["offset"] = "16777728".into()),
        ("segment: offset", |j| j["segments"]["0"]["offset"] = "18446744073709547520".into()),
        ("segment: offset", |j| j["segments"]["0"]["offset"] = "+16777216".into()),
        ("segment: size", |j| j["segments"]["0"]["size"] = "1056768".into()),
        ("segment: size", |j| j["segments"]["0"]["size"] = "0".into()),
        ("digests", |j| j["digests"]["1"] = j["digests"]["0"].clone()),
        ("digests", |j| j["digests"]["0"]["segments"] = json!([])),
        ("digest 0: type", |j| j["digests"]["0"]["type"] = "none".into()),
        ("digest 0: hash", |j| j["digests"]["0"]["hash"] = "sha1".into()),
        ("digest 0: digest", |j| j["digests"]["0"]["digest"] = "AA==".into()),
        ("digest 0: digest", |j| j["digests"]["0"]["digest"] = "".into()),
        ("digest 0", |j| j["digests"]["0"]["iterations"] = 0.into()),
        ("key_size", |j| j["keyslots"]["0"]["key_size"] = 16.into()),
        ("key_size", |j| j["keyslots"]["0"]["key_size"] = u64::MAX.into()),
        ("area.key_size", |j| j["keyslots"]["0"]["area"]["key_size"] = 0.into()),
        ("af.type", |j| j["keyslots"]["0"]["af"]["type"] = "plain".into()),
        ("af.stripes", |j| j["keyslots"]["0"]["af"]["stripes"] = 1.into()),
        ("af.hash", |j| j["keyslots"]["0"]["af"]["hash"] = "crc32".into()),
        ("area.type", |j| j["keyslots"]["0"]["area"]["type"] = "checksum".into()),
        ("keyslot 0: area", |j| j["keyslots"]["0"]["area"]["offset"] = "4096".into()),
        ("keyslot 0: area", |j| j["keyslots"]["0"]["area"]["offset"] = "32769".into()),
        ("keyslot 0: area", |j| j["keyslots"]["0"]["area"]["offset"] = "18446744073709547520".into()),
        ("area.size", |j| j["keyslots"]["0"]["area"]["size"] = "4096".into()),
        ("areas must not overlap", |j| j["keyslots"]["1"] = j["keyslots"]["0"].clone()),
        ("kdf.type", |j| j["keyslots"]["0"]["kdf"]["type"] = "scrypt".into()),
        ("kdf.cost", |j| j["keyslots"]["0"]["kdf"]["cpus"] = 0.into()),
        ("kdf.cost", |j| j["keyslots"]["0"]["kdf"]["cpus"] = u32::MAX.into()),
        ("kdf.cost", |j| j["keyslots"]["0"]["kdf"]["time"] = 0.into()),
        ("kdf.cost", |j| j["keyslots"]["0"]["kdf"]["memory"] = 0.into()),
        ("KiB of memory", |j| j["keyslots"]["0"]["kdf"]["memory"] = u32::MAX.into()),
        ("KiB of passes", |j| j["keyslots"]["0"]["kdf"]["time"] = u32::MAX.into()),
        ("iterations of PBKDF2", |j| j["digests"]["0"]["iterations"] = u32::MAX.into()),
        ("kdf.salt", |j| j["keyslots"]["0"]["kdf"]["salt"] = "*".into()),
        ("kdf.hash", |j| j["keyslots"]["0"]["kdf"] = json!({"type": "pbkdf2", "salt": "AAAA"})),
        ("has no keyslot", |j| j["keyslots"] = json!({})),
        ("has no keyslot", |j| j["digests"]["0"]["keyslots"] = json!([])),
        ("has no keyslot", |j| j["keyslots"]["0"]["priority"] = 0.into()),
        ("has no keyslot", |j| j["keyslots"]["0"]["type"] = "of-tomorrow".into()),
        ("keyslots is out of form", |j| j["keyslots"] = json!([])),
    ];
    for (place, change) in cases {
        let words = refusal(*change);
        assert!(words.contains(place), "{place}: {words}");
    }
}

#[test]
fn what_the_format_may_get_is_passed_over() {
    let mut device = with(|j| {
        j["config"]["flags"] = json!(["of-tomorrow"]);
        j["tokens"] = json!({"0": {"type": "systemd-tpm2", "keyslots": []}});
        j["keyslots"]["1"] = json!({"type": "of-tomorrow", "area": 7});
        j["segments"]["0"]["colour"] = "blue".into();
        j["more"] = json!({});
    });
    open(&mut device, SIZE, KEY, QUICK).unwrap();
}

#[test]
fn a_costly_keyslot_does_not_hide_another_one() {
    let mut device = with(|j| {
        let mut other = j["keyslots"]["0"].clone();
        other["area"]["offset"] = "1048576".into();
        other["priority"] = 2.into();
        other["kdf"]["memory"] = 65.into();
        j["keyslots"]["7"] = other;
        j["digests"]["0"]["keyslots"] = json!(["7", "0"]);
    });
    open(&mut device, SIZE, KEY, QUICK).unwrap();
    let error = open(&mut device, SIZE, b"other", QUICK).unwrap_err();
    assert!(matches!(error, Luks2Error::TooCostly { wanted: 65, left: 64, .. }), "{error}");
}

mod hostile {
    use proptest::prelude::*;

    use super::*;

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<u64>().prop_map(|n| n.to_string().into()),
            prop::sample::select(vec!["0", "dynamic", "crypt", "luks2", "4096", "32768", "pbkdf2", "AAAA"])
                .prop_map(Value::from),
        ];
        leaf.prop_recursive(2, 8, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::hash_map("[0-2]", inner, 0..3).prop_map(|m| json!(m)),
            ]
        })
    }

    fn pointers(value: &Value, at: String, all: &mut Vec<String>) {
        for (name, inner) in value.as_object().into_iter().flatten() {
            let place = format!("{at}/{name}");
            all.push(place.clone());
            pointers(inner, place, all);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// Whatever stands at any place: an answer without a panic, and what is accepted lies on the device.
        #[test]
        fn any_member_may_be_anything(which in any::<prop::sample::Index>(), value in any_json()) {
            let mut device = with(|json| {
                let mut all = Vec::new();
                pointers(json, String::new(), &mut all);
                *json.pointer_mut(which.get(&all[..]).as_str()).unwrap() = value;
            });
            if let Ok(volume) = open(&mut device, SIZE, KEY, QUICK) {
                prop_assert!(volume.offset >= 32 << 10);
                prop_assert!(volume.offset + volume.length <= SIZE);
                prop_assert!(volume.length > 0);
            }
        }

        #[test]
        fn any_bytes_are_no_header(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
            prop_assert!(open(&mut Cursor::new(bytes), SIZE, KEY, QUICK).is_err());
        }
    }
}
