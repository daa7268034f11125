//! `SecureMount` requests: which volume is asked for, in the names of guest-components' `storage/volume_type` and their older
//! forms, and why one is not to be had.
//!
//! LUKS2 volumes on block devices are mounted, by the agent itself ([`crate::Guest::secure_mount`]). ZFS, dm-integrity, options of
//! `mkfs` and a cloud's object store are not, and nothing that is asked for is passed over: an option that is not known, or not
//! done, refuses the request by its name.
//!
//! | option | values |
//! |---|---|
//! | `deviceId`, `devicePath` | `MAJOR:MINOR`, or a path below `/dev`; `deviceId` counts when there are both |
//! | `sourceType` | `empty`: made into a volume, what was there is lost; `encrypted`: opened |
//! | `targetType` | `fileSystem`, `device` |
//! | `encryptionType` | `luks2` |
//! | `key` | `sealed.…`, `kbs:///…`, `file:///…`; none with `empty`: a random one, known to nobody |
//! | `filesystemType` | `ext4` |
//! | `dataIntegrity`, `grow` | `false` |
//! | `mapperName` | name of the mapped device |
//!
//! The oldest form (guest-components before 0.13, volume type `BlockDevice`) has `encryptType` `LUKS` and `encryptKey`, and neither `sourceType` nor
//! `targetType`: a file system, on an empty device without a key, on an encrypted one with a key.

use std::collections::HashMap;
use std::path::PathBuf;

use kata_cc_kbs_protocol::ResourcePath;
use serde_json::{Value, json};
use thiserror::Error;

use crate::api::resource_path;

/// Why a volume is not mounted.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum VolumeError {
    /// No such type of volume.
    #[error(
        "volume type {0:?} is not known: block-device and alibaba-cloud-oss are, of which this guest mounts block-device"
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
    /// An option that is not known.
    #[error("option {0:?} of the block device is not known: nothing that is asked for is passed over")]
    Unknown(String),
    /// The same option by two of its names.
    #[error("options {0} and {1} of the block device are one: give one of them")]
    Twice(&'static str, &'static str),
    /// An option with a value that is not known or not done.
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
    /// Encrypted by ZFS.
    #[error("encryptionType zfs is not mounted: this guest has no ZFS, luks2 is what it opens and makes")]
    Zfs,
    /// A key in no form that is known. Its value is not repeated.
    #[error(
        "option key of the block device is none: it begins with \"sealed.\", or is kbs:///REPOSITORY/TYPE/TAG or file:///PATH"
    )]
    Key,
    /// No key for a volume that has one.
    #[error("option key of the block device is missing: an encrypted volume is opened with its key")]
    NoKey,
    /// A flag of the mount that is not taken.
    #[error("mount flag {0:?} is not taken: known are {FLAGS:?}")]
    Flag(String),
}

/// Flags that a request may have.
pub const FLAGS: [&str; 8] = ["ro", "rw", "nosuid", "nodev", "noexec", "noatime", "sync", "dirsync"];

/// A block device, as a request names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// By major and minor number.
    Number(u32, u32),
    /// By a path below `/dev`.
    Path(PathBuf),
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(major, minor) => write!(f, "{major}:{minor}"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// Where a key comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A sealed secret.
    Sealed(String),
    /// A resource of the key broker.
    Resource(ResourcePath),
    /// A file of the guest.
    File(PathBuf),
}

impl std::fmt::Debug for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown())
    }
}

impl KeySource {
    /// As logs and policies see it: of a sealed secret only that it is one.
    fn shown(&self) -> String {
        match self {
            Self::Sealed(_) => "sealed.".to_owned(),
            Self::Resource(path) => path.uri().to_string(),
            Self::File(path) => format!("file://{}", path.display()),
        }
    }

    fn parse(text: &str) -> Result<Self, VolumeError> {
        if text.starts_with("sealed.") {
            return Ok(Self::Sealed(text.to_owned()));
        }
        if let Some(path) = text.strip_prefix("file://").filter(|path| path.starts_with('/')) {
            return Ok(Self::File(path.into()));
        }
        if text.starts_with("kbs://") {
            return resource_path(text).map(Self::Resource).map_err(|_| VolumeError::Key);
        }
        Err(VolumeError::Key)
    }
}

/// A volume that is asked for, in form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// What lies below.
    pub device: Device,
    /// Whether it is made into a volume first; else it is one.
    pub empty: bool,
    /// Whether the open device is what is wanted; else the file system on it.
    pub as_device: bool,
    /// Name of the mapped device, where one is asked for.
    pub mapper_name: Option<String>,
    /// Where the key comes from; none when it is to be random.
    pub key: Option<KeySource>,
    /// Flags of the mount.
    pub flags: Vec<String>,
    /// Where it goes.
    pub mount_point: String,
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

/// The options by their newest names.
struct Options<'a>(&'a HashMap<String, String>);

/// Every name, each with the older one.
const NAMES: [(&str, Option<&str>); 11] = [
    ("deviceId", None),
    ("devicePath", None),
    ("sourceType", None),
    ("targetType", None),
    ("encryptionType", Some("encryptType")),
    ("key", Some("encryptKey")),
    ("filesystemType", None),
    ("mkfsOpts", None),
    ("dataIntegrity", None),
    ("mapperName", None),
    ("grow", None),
];

impl<'a> Options<'a> {
    fn new(options: &'a HashMap<String, String>) -> Result<Self, VolumeError> {
        for (name, older) in NAMES {
            if let Some(older) =
                older.filter(|older| options.contains_key(*older) && options.contains_key(name))
            {
                return Err(VolumeError::Twice(name, older));
            }
        }
        let known =
            |name: &&String| NAMES.iter().any(|(new, old)| name == new || Some(name.as_str()) == *old);
        // Its own options go with ZFS: what is said then is that there is no ZFS.
        let zfs = options.get("encryptionType").is_some_and(|value| value == "zfs");
        let other = options.keys().find(|name| !known(name) && !zfs);
        other.map_or(Ok(Self(options)), |name| Err(VolumeError::Unknown(cut(name))))
    }

    fn get(&self, name: &'static str) -> Option<&'a str> {
        let older = NAMES.iter().find(|(new, _)| *new == name).and_then(|(_, older)| *older);
        let value = self.0.get(name).or_else(|| older.and_then(|older| self.0.get(older)));
        value.map(String::as_str)
    }

    /// Whether it is the oldest form.
    fn oldest(&self) -> bool {
        self.0.contains_key("encryptType")
    }

    /// One of two values, the first being `true`.
    fn choice(
        &self,
        name: &'static str,
        values: [&str; 2],
        known: &'static str,
    ) -> Result<Option<bool>, VolumeError> {
        match self.get(name) {
            None => Ok(None),
            Some(value) if value == values[0] => Ok(Some(true)),
            Some(value) if value == values[1] => Ok(Some(false)),
            Some(other) => Err(VolumeError::Option { name, seen: cut(other), known }),
        }
    }

    /// An option that must not be switched on.
    fn off(&self, name: &'static str, known: &'static str) -> Result<(), VolumeError> {
        match self.get(name) {
            None | Some("false") => Ok(()),
            Some(other) => Err(VolumeError::Option { name, seen: cut(other), known }),
        }
    }
}

impl Volume {
    /// Reads a request.
    ///
    /// # Errors
    /// [`VolumeError`] says what is out of form, not known or not done; never what a key option holds.
    pub fn parse(
        kind: &str,
        options: &HashMap<String, String>,
        flags: &[String],
        mount_point: &str,
    ) -> Result<Self, VolumeError> {
        match kind {
            "block-device" | "BlockDevice" => {}
            "alibaba-cloud-oss" => return Err(VolumeError::ObjectStore),
            other => return Err(VolumeError::Kind(cut(other))),
        }
        let options = Options::new(options)?;
        let device = device(options.get("deviceId"), options.get("devicePath"))?;
        encryption(&options)?;
        let key = options.get("key").map(KeySource::parse).transpose()?;
        let empty = options.choice("sourceType", ["empty", "encrypted"], "empty or encrypted")?;
        let empty = match empty {
            None if options.oldest() => key.is_none(),
            None => return Err(VolumeError::Missing("sourceType")),
            Some(empty) => empty,
        };
        if !empty && key.is_none() {
            return Err(VolumeError::NoKey);
        }
        let as_device = options.choice("targetType", ["device", "fileSystem"], "device or fileSystem")?;
        let as_device = match as_device {
            None if options.oldest() => false,
            None => return Err(VolumeError::Missing("targetType")),
            Some(as_device) => as_device,
        };
        not_done(&options)?;
        if let Some(flag) = flags.iter().find(|flag| !FLAGS.contains(&flag.as_str())) {
            return Err(VolumeError::Flag(cut(flag)));
        }
        let mapper_name = options.get("mapperName").map(str::to_owned);
        let (flags, mount_point) = (flags.to_vec(), mount_point.to_owned());
        Ok(Self { device, empty, as_device, mapper_name, key, flags, mount_point })
    }

    /// As the agent policy sees it: by the newest names, whatever it was asked by.
    #[must_use]
    pub fn question(&self) -> Value {
        let mut options = json!({
            "sourceType": if self.empty { "empty" } else { "encrypted" },
            "targetType": if self.as_device { "device" } else { "fileSystem" },
            "encryptionType": "luks2",
        });
        let device = match &self.device {
            Device::Number(..) => "deviceId",
            Device::Path(_) => "devicePath",
        };
        options[device] = self.device.to_string().into();
        if let Some(key) = &self.key {
            options["key"] = key.shown().into();
        }
        if let Some(name) = &self.mapper_name {
            options["mapperName"] = name.as_str().into();
        }
        json!({
            "volume_type": "block-device", "options": options,
            "flags": self.flags, "mount_point": self.mount_point,
        })
    }
}

fn device(id: Option<&str>, path: Option<&str>) -> Result<Device, VolumeError> {
    let none = |text: &str| VolumeError::Device(cut(text));
    match (id, path) {
        (Some(id), _) => number(id).ok_or_else(|| none(id)),
        (None, Some(path)) if is_path(path) => Ok(Device::Path(path.into())),
        (None, Some(path)) => Err(none(path)),
        (None, None) => Err(VolumeError::Missing("deviceId or devicePath")),
    }
}

fn number(text: &str) -> Option<Device> {
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten();
    let (major, minor) = text.split_once(':')?;
    Some(Device::Number(plain(major)?, plain(minor)?))
}

fn is_path(text: &str) -> bool {
    text.strip_prefix("/dev/").is_some_and(|rest| {
        !rest.is_empty()
            && rest.split('/').all(|part| !matches!(part, "" | "." | ".."))
            && !rest.contains('\0')
    })
}

fn encryption(options: &Options<'_>) -> Result<(), VolumeError> {
    let name = "encryptionType";
    match (options.get(name), options.oldest()) {
        (Some("luks2"), _) | (Some("LUKS" | "luks"), true) => Ok(()),
        (Some("zfs"), _) => Err(VolumeError::Zfs),
        (Some(other), _) => {
            Err(VolumeError::Option { name, seen: cut(other), known: "luks2 is what there is" })
        }
        (None, _) => Err(VolumeError::Missing(name)),
    }
}

/// What CoCo has and this guest has not.
fn not_done(options: &Options<'_>) -> Result<(), VolumeError> {
    let known = "dm-integrity below the encryption is not supported, only \"false\" is; see docs/security-model.md for what that means";
    options.off("dataIntegrity", known)?;
    options.off("grow", "file systems are not grown, only \"false\" is taken")?;
    match options.get("filesystemType") {
        None | Some("ext4") => {}
        Some(other) => {
            let name = "filesystemType";
            return Err(VolumeError::Option { name, seen: cut(other), known: "ext4 is what there is" });
        }
    }
    match options.get("mkfsOpts") {
        None | Some("") => Ok(()),
        Some(other) => {
            let known = "options of mkfs are not supported: the guest makes ext4 by itself, in one way";
            Err(VolumeError::Option { name: "mkfsOpts", seen: cut(other), known })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINT: &str = "/run/kata-containers/sandbox/data";
    const BASE: [(&str, &str); 4] = [
        ("deviceId", "254:3"),
        ("sourceType", "empty"),
        ("targetType", "fileSystem"),
        ("encryptionType", "luks2"),
    ];

    fn options(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn parse(kind: &str, pairs: &[(&str, &str)]) -> Result<Volume, VolumeError> {
        Volume::parse(kind, &options(pairs), &[], POINT)
    }

    /// The base with one option changed or taken away.
    fn with(name: &str, value: Option<&str>) -> Result<Volume, VolumeError> {
        let mut pairs: Vec<_> = BASE.into_iter().filter(|(n, _)| *n != name).collect();
        pairs.extend(value.map(|value| (name, value)));
        parse("block-device", &pairs)
    }

    #[test]
    fn todays_form_is_read() {
        let volume = parse("block-device", &BASE).unwrap();
        assert_eq!(volume.device, Device::Number(254, 3));
        assert!(volume.empty && !volume.as_device && volume.key.is_none());
        let all = [
            ("devicePath", "/dev/vdc"),
            ("sourceType", "encrypted"),
            ("targetType", "device"),
            ("encryptionType", "luks2"),
            ("key", "kbs:///app/disk/1"),
            ("dataIntegrity", "false"),
            ("grow", "false"),
            ("filesystemType", "ext4"),
            ("mkfsOpts", ""),
            ("mapperName", "data"),
        ];
        let volume = parse("block-device", &all).unwrap();
        assert_eq!(volume.device, Device::Path("/dev/vdc".into()));
        assert!(!volume.empty && volume.as_device);
        assert_eq!(volume.question()["options"]["key"], "kbs:///app/disk/1");
        assert_eq!(volume.question()["options"]["mapperName"], "data");
        // The number counts when there are both.
        let both = [&[("deviceId", "7:1")][..], &all].concat();
        assert_eq!(parse("block-device", &both).unwrap().device.to_string(), "7:1");
        for (text, shown) in [
            ("sealed.a.b.c", "sealed."),
            ("file:///run/k", "file:///run/k"),
            ("kbs://h/a/b/c", "kbs:///a/b/c"),
        ] {
            let volume = with("key", Some(text)).unwrap();
            assert_eq!(volume.question()["options"]["key"], shown);
        }
    }

    #[test]
    fn the_oldest_form_is_read_and_the_policy_sees_todays() {
        let oldest = [("deviceId", "7:0"), ("encryptType", "LUKS"), ("dataIntegrity", "false")];
        let volume = parse("BlockDevice", &oldest).unwrap();
        assert!(volume.empty && !volume.as_device);
        let keyed = [&oldest[..], &[("encryptKey", "kbs:///a/b/c")]].concat();
        let volume = parse("block-device", &keyed).unwrap();
        assert!(!volume.empty);
        assert_eq!(
            volume.question(),
            json!({
                "volume_type": "block-device",
                "options": {
                    "deviceId": "7:0", "sourceType": "encrypted", "targetType": "fileSystem",
                    "encryptionType": "luks2", "key": "kbs:///a/b/c",
                },
                "flags": [], "mount_point": POINT,
            })
        );
        let twice = [&keyed[..], &[("key", "kbs:///a/b/d")]].concat();
        assert_eq!(parse("block-device", &twice), Err(VolumeError::Twice("key", "encryptKey")));
        // LUKS is a name of the oldest form only.
        assert!(matches!(with("encryptionType", Some("LUKS")), Err(VolumeError::Option { .. })));
    }

    #[test]
    fn each_volume_that_is_not_mounted_is_refused_for_its_own_reason() {
        assert_eq!(parse("nfs", &BASE), Err(VolumeError::Kind("nfs".to_owned())));
        assert_eq!(parse("alibaba-cloud-oss", &[]), Err(VolumeError::ObjectStore));
        assert_eq!(with("encryptionType", Some("zfs")), Err(VolumeError::Zfs));
        let zfs = [("deviceId", "7:0"), ("encryptionType", "zfs"), ("pool", "p"), ("dataset", "d")];
        assert_eq!(parse("block-device", &zfs), Err(VolumeError::Zfs));
    }

    #[test]
    fn a_request_out_of_form_names_its_option() {
        assert_eq!(with("deviceId", None), Err(VolumeError::Missing("deviceId or devicePath")));
        for name in ["sourceType", "targetType", "encryptionType"] {
            assert_eq!(with(name, None), Err(VolumeError::Missing(name)));
        }
        for device in ["254", "254:3:1", "x:y", "", "+1:2", ":"] {
            assert_eq!(with("deviceId", Some(device)), Err(VolumeError::Device(device.to_owned())));
        }
        for path in ["/dev/../etc/shadow", "/dev/", "/dev//vda", "vda", "/etc/shadow", "/dev/./vda"] {
            let pairs = [&BASE[1..], &[("devicePath", path)]].concat();
            assert_eq!(parse("block-device", &pairs), Err(VolumeError::Device(path.to_owned())));
        }
        for (name, value) in [
            ("sourceType", "other"),
            ("targetType", "filesystem"),
            ("encryptionType", "luks1"),
            ("dataIntegrity", "true"),
            ("dataIntegrity", ""),
            ("grow", "true"),
            ("filesystemType", "xfs"),
            ("mkfsOpts", "-m 0"),
        ] {
            let seen = with(name, Some(value));
            assert!(matches!(&seen, Err(VolumeError::Option { name: n, .. }) if *n == name), "{seen:?}");
        }
        assert_eq!(with("colour", Some("blue")), Err(VolumeError::Unknown("colour".to_owned())));
        assert_eq!(with("pool", Some("p")), Err(VolumeError::Unknown("pool".to_owned())));
        assert_eq!(with("sourceType", Some("encrypted")), Err(VolumeError::NoKey));
        for key in ["", "secret", "sealed", "https://x/y", "file://relative", "kbs:///a", "kbs:///../a/b"] {
            assert_eq!(with("key", Some(key)), Err(VolumeError::Key), "{key}");
        }
        let flags = ["ro".to_owned(), "remount".to_owned()];
        let flagged = Volume::parse("block-device", &options(&BASE), &flags, POINT);
        assert_eq!(flagged, Err(VolumeError::Flag("remount".to_owned())));
    }

    #[test]
    fn a_key_is_never_repeated() {
        let secret = "sealed.very.secret.text";
        let volume = with("key", Some(secret)).unwrap();
        for text in [format!("{volume:?}"), volume.question().to_string()] {
            assert!(!text.contains("very"), "{text}");
        }
        let wrong = with("key", Some("hunter2")).unwrap_err().to_string();
        assert!(!wrong.contains("hunter2"), "{wrong}");
    }
}
