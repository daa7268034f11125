//! `SecureMount`, as far as it is understood: which volume is asked for, and why this guest does not have it.
//!
//! The confidential data hub formats or opens LUKS2 and ZFS volumes on block devices and mounts a cloud's object store. Here the
//! guest has no `cryptsetup`, `mkfs` or `zpool`, and none is wanted in the measured image: what a container writes goes
//! to encrypted scratch space (`kata_cc_image::Scratch`), whose key never leaves the guest and whose disk nothing mounts again. So
//! each request is refused, with what was asked for and what there is in its place. Names of volume types and options are
//! those of guest-components' `storage/volume_type`.

use std::collections::HashMap;

use thiserror::Error;

/// Why a volume is not mounted.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum VolumeError {
    /// No such type of volume.
    #[error(
        "volume type {0:?} is not known: block-device and alibaba-cloud-oss are, neither of which this guest mounts"
    )]
    Kind(String),
    /// A type that CoCo knows and this guest does not mount.
    #[error(
        "volume type alibaba-cloud-oss is not mounted in this guest: it has no client of that object store"
    )]
    ObjectStore,
    /// An option that must be there is not.
    #[error("option {0} of the block device is missing")]
    Missing(&'static str),
    /// An option with a value that is not known.
    #[error("option {name} of the block device is {seen:?}: {known}")]
    Option {
        /// Its name.
        name: &'static str,
        /// Its value, cut.
        seen: String,
        /// What it can be.
        known: &'static str,
    },
    /// The device is not named as devices are.
    #[error("block device {0:?} is none: deviceId is MAJOR:MINOR, devicePath a path below /dev")]
    Device(String),
    /// An empty device that is to be encrypted under a key of the guest's.
    #[error(
        "block device {device} is not made into a volume: space that is encrypted under a key of this guest alone is there already, it is where containers write"
    )]
    Empty {
        /// Which.
        device: String,
    },
    /// An encrypted volume that was there before.
    #[error(
        "block device {device} is not opened: this guest has no {kind}; data that outlives the pod is fetched by the container itself, with a key of the key broker's"
    )]
    Persistent {
        /// Which.
        device: String,
        /// `luks2` or `zfs`.
        kind: &'static str,
    },
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

/// What is wrong with, or not to be had of, the volume that is asked for. Never what a key option holds: it may be a sealed secret.
#[must_use]
pub fn refusal(kind: &str, options: &HashMap<String, String>) -> VolumeError {
    match kind {
        "block-device" => block_device(options).unwrap_or_else(|error| error),
        "alibaba-cloud-oss" => VolumeError::ObjectStore,
        other => VolumeError::Kind(cut(other)),
    }
}

/// The reason of a request that is in form; an error of one that is not.
fn block_device(options: &HashMap<String, String>) -> Result<VolumeError, VolumeError> {
    let get = |name: &'static str| options.get(name).map(String::as_str);
    let device = match (get("deviceId"), get("devicePath")) {
        (Some(id), _) if is_number(id) => id,
        (None, Some(path)) if is_path(path) => path,
        (None, None) => return Err(VolumeError::Missing("deviceId or devicePath")),
        (Some(other), _) | (None, Some(other)) => return Err(VolumeError::Device(cut(other))),
    };
    let device = cut(device);
    let kind = match get("encryptionType").ok_or(VolumeError::Missing("encryptionType"))? {
        "luks2" => "luks2",
        "zfs" => "zfs",
        other => {
            let (name, seen) = ("encryptionType", cut(other));
            return Err(VolumeError::Option { name, seen, known: "luks2 or zfs" });
        }
    };
    match get("sourceType").ok_or(VolumeError::Missing("sourceType"))? {
        "empty" => Ok(VolumeError::Empty { device }),
        "encrypted" => Ok(VolumeError::Persistent { device, kind }),
        other => {
            let (name, seen) = ("sourceType", cut(other));
            Err(VolumeError::Option { name, seen, known: "empty or encrypted" })
        }
    }
}

fn is_number(text: &str) -> bool {
    text.split_once(':').is_some_and(|(a, b)| a.parse::<u32>().is_ok() && b.parse::<u32>().is_ok())
}

fn is_path(text: &str) -> bool {
    text.strip_prefix("/dev/").is_some_and(|rest| !rest.is_empty() && !rest.split('/').any(|p| p == ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn each_volume_is_refused_for_its_own_reason() {
        let reason = |kind: &str, pairs: &[(&str, &str)]| refusal(kind, &options(pairs)).to_string();
        assert!(reason("nfs", &[]).contains("volume type \"nfs\" is not known"));
        assert!(reason("alibaba-cloud-oss", &[]).contains("object store"));
        let luks = [("deviceId", "254:3"), ("sourceType", "encrypted"), ("encryptionType", "luks2")];
        let words = reason("block-device", &luks);
        assert!(words.contains("254:3") && words.contains("no luks2"), "{words}");
        let empty = [("devicePath", "/dev/vdc"), ("sourceType", "empty"), ("encryptionType", "zfs")];
        let words = reason("block-device", &empty);
        assert!(words.contains("/dev/vdc") && words.contains("where containers write"), "{words}");
    }

    #[test]
    fn a_request_out_of_form_names_its_option() {
        let base = [("deviceId", "254:3"), ("sourceType", "empty"), ("encryptionType", "luks2")];
        let with = |name: &str, value: Option<&str>| {
            let mut changed = options(&base);
            match value {
                Some(value) => changed.insert(name.to_owned(), value.to_owned()),
                None => changed.remove(name),
            };
            refusal("block-device", &changed)
        };
        assert_eq!(with("deviceId", None), VolumeError::Missing("deviceId or devicePath"));
        assert_eq!(with("sourceType", None), VolumeError::Missing("sourceType"));
        assert_eq!(with("encryptionType", None), VolumeError::Missing("encryptionType"));
        for device in ["254", "254:3:1", "x:y", ""] {
            assert_eq!(with("deviceId", Some(device)), VolumeError::Device(device.to_owned()));
        }
        for name in ["sourceType", "encryptionType"] {
            assert!(matches!(with(name, Some("other")), VolumeError::Option { name: n, .. } if n == name));
        }
        let mut path = options(&base[1..]);
        path.insert("devicePath".to_owned(), "/dev/../etc/shadow".to_owned());
        assert!(matches!(refusal("block-device", &path), VolumeError::Device(_)));
    }

    #[test]
    fn a_key_is_never_repeated() {
        let secret = "sealed.very.secret.text";
        let all =
            [("deviceId", "1:2"), ("sourceType", "empty"), ("encryptionType", "luks2"), ("key", secret)];
        assert!(!refusal("block-device", &options(&all)).to_string().contains("sealed."));
    }
}
