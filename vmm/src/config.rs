//! Reads and checks the configuration. What only the system can tell (does a tap exist?) is found out
//! when the devices are made; all else is refused here, with the field's name.

use std::path::{Path, PathBuf};

use kata_cc_boot::layout::{MAX_DEVICES, MEMORY_MIB, VCPUS};
use kata_cc_vmm_api::{TeeConfig, VmConfig};

/// Largest configuration that is read.
const MAX_BYTES: u64 = 1 << 20;
/// Longest id of a sandbox.
const MAX_ID: usize = 128;
/// virtio-blk's serial number.
const MAX_BLOCK_ID: usize = 20;
/// Longest path of a Unix socket, less the `_<port>` that is appended to it.
const MAX_SOCKET_PATH: usize = 107;
const PORT_SUFFIX: usize = "_4294967295".len();
/// SNP GUEST_POLICY when none is given: SMT allowed and the bit that is always one.
pub const DEFAULT_POLICY: u64 = 0x30000;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// More than a configuration can need.
    #[error("{path} has more than 1 MiB", path = .0.display())]
    TooLarge(PathBuf),
    /// Not the document that is expected.
    #[error("{path} is not a valid configuration: {reason}", path = path.display())]
    Syntax {
        /// Its path.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A value is out of range.
    #[error("{field}: {reason}")]
    Field {
        /// Path of the field.
        field: String,
        /// What is wrong and what to give instead.
        reason: String,
    },
}

fn field(field: impl Into<String>, reason: impl Into<String>) -> ConfigError {
    ConfigError::Field { field: field.into(), reason: reason.into() }
}

/// Reads a configuration, TOML if its name ends in `.toml`, else JSON, and checks it.
///
/// # Errors
/// When it cannot be read or is not valid.
pub fn load(path: &Path) -> Result<VmConfig, ConfigError> {
    let read = |source| ConfigError::Read { path: path.into(), source };
    let length = std::fs::metadata(path).map_err(read)?.len();
    if length > MAX_BYTES {
        return Err(ConfigError::TooLarge(path.into()));
    }
    let text = std::fs::read_to_string(path).map_err(read)?;
    let syntax = |reason: String| ConfigError::Syntax { path: path.into(), reason };
    let config: VmConfig = if path.extension().is_some_and(|e| e == "toml") {
        toml::from_str(&text).map_err(|e| syntax(e.to_string()))?
    } else {
        serde_json::from_str(&text).map_err(|e| syntax(e.to_string()))?
    };
    validate(&config)?;
    Ok(config)
}

/// Checks every value that can be checked without touching the system.
///
/// # Errors
/// Names the first field that is wrong.
pub fn validate(config: &VmConfig) -> Result<(), ConfigError> {
    if !is_name(&config.id, MAX_ID) {
        return Err(field("id", "give 1 to 128 characters of A-Z a-z 0-9 _ . -"));
    }
    if !VCPUS.contains(&config.vcpus) {
        return Err(field("vcpus", format!("{}: give 1 to 64", config.vcpus)));
    }
    if !MEMORY_MIB.contains(&config.memory_mib) {
        let reason = format!("{}: give 64 to 1048576 (MiB)", config.memory_mib);
        return Err(field("memory_mib", reason));
    }
    socket_path("control_socket", &config.control_socket, 0)?;
    validate_devices(config)?;
    validate_tee(config)
}

/// Number of virtio devices that a configuration asks for.
#[must_use]
pub fn device_count(config: &VmConfig) -> usize {
    usize::from(config.vsock.is_some()) + usize::from(config.rng) + config.block.len() + config.net.len()
}

fn validate_devices(config: &VmConfig) -> Result<(), ConfigError> {
    let devices = device_count(config);
    if devices > MAX_DEVICES {
        return Err(field(
            "block, net",
            format!("{devices} devices: there are interrupts for {MAX_DEVICES}"),
        ));
    }
    let mut ids = vec!["vsock", "rng"];
    for (index, block) in config.block.iter().enumerate() {
        let name = format!("block[{index}].id");
        if !is_name(&block.id, MAX_BLOCK_ID) {
            return Err(field(name, "give 1 to 20 characters of A-Z a-z 0-9 _ . -"));
        }
        unique(&mut ids, &block.id, name)?;
    }
    for (index, net) in config.net.iter().enumerate() {
        let name = format!("net[{index}].id");
        if !is_name(&net.id, MAX_ID) {
            return Err(field(name, "give 1 to 128 characters of A-Z a-z 0-9 _ . -"));
        }
        unique(&mut ids, &net.id, name)?;
        if let Err(error) = net.mac.parse::<kata_cc_devices::net::Mac>() {
            return Err(field(format!("net[{index}].mac"), error.to_string()));
        }
    }
    if let Some(vsock) = &config.vsock {
        if vsock.cid < 3 || vsock.cid == u32::MAX {
            return Err(field("vsock.cid", "give 3 to 4294967294"));
        }
        socket_path("vsock.uds", &vsock.uds, PORT_SUFFIX)?;
    }
    Ok(())
}

fn validate_tee(config: &VmConfig) -> Result<(), ConfigError> {
    if config.tee != TeeConfig::None && config.boot.firmware.is_none() {
        let tee = config.tee.name();
        return Err(field("boot.firmware", format!("a guest under {tee} starts by stage0: give its image")));
    }
    let vsock = match config.tee.is_simulated() && config.vsock.is_none() {
        true => Err(field("vsock", "the simulated tee answers over vsock: configure it")),
        false => Ok(()),
    };
    match &config.tee {
        TeeConfig::None => Ok(()),
        TeeConfig::SimSnp { host_data, policy, .. } => validate_snp(host_data, *policy).and(vsock),
        TeeConfig::SimTdx { mrconfigid, .. } => hex_bytes::<48>("tee.mrconfigid", mrconfigid).and(vsock),
        TeeConfig::Snp(snp) => validate_snp(&snp.host_data, snp.policy),
        TeeConfig::Tdx(tdx) => {
            hex_bytes::<48>("tee.mrconfigid", &tdx.mrconfigid)?;
            for (name, value) in [("tee.mrowner", &tdx.mrowner), ("tee.mrownerconfig", &tdx.mrownerconfig)] {
                value.as_ref().map_or(Ok([0; 48]), |value| hex_bytes(name, value))?;
            }
            match (&tdx.quoting_socket, tdx.quoting_vsock_port) {
                (Some(_), Some(_)) => {
                    Err(field("tee.quoting_socket", "give it or quoting_vsock_port, not both"))
                }
                _ => Ok(()),
            }
        }
    }
}

fn validate_snp(host_data: &str, policy: Option<u64>) -> Result<(), ConfigError> {
    hex_bytes::<32>("tee.host_data", host_data)?;
    if policy.unwrap_or(DEFAULT_POLICY) & (1 << 17) == 0 {
        return Err(field("tee.policy", "bit 17 of an snp policy must be set"));
    }
    Ok(())
}

/// Bytes of a field in hex.
///
/// # Errors
/// Names the field and how many bytes it has.
pub(crate) fn hex_bytes<const N: usize>(name: &str, text: &str) -> Result<[u8; N], ConfigError> {
    let mut bytes = [0; N];
    match hex::decode_to_slice(text, &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(field(name, format!("give {N} bytes in hex ({} digits)", 2 * N))),
    }
}

fn unique<'a>(ids: &mut Vec<&'a str>, id: &'a str, name: String) -> Result<(), ConfigError> {
    if ids.contains(&id) {
        return Err(field(name, format!("{id} names another device already")));
    }
    ids.push(id);
    Ok(())
}

fn is_name(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn socket_path(name: &str, path: &Path, suffix: usize) -> Result<(), ConfigError> {
    let bytes = path.as_os_str().len();
    if bytes == 0 || bytes + suffix > MAX_SOCKET_PATH {
        let most = MAX_SOCKET_PATH - suffix;
        return Err(field(name, format!("path of {bytes} bytes: a unix socket takes 1 to {most} here")));
    }
    Ok(())
}
