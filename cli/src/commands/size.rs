//! `--cpus` and `--memory`, the same for `run` and `measure`, so that both come to the same size of VM and so to the
//! same launch digest.

use kata_cc_sandbox::sizing::Limits;

const MAX_CPUS: u64 = 64;
/// 1 TiB, as much as a VM can have.
const MAX_MEMORY: u64 = 1 << 40;

/// Limits of the container; the VM is sized from them.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct SizeArguments {
    /// CPUs of the container, e.g. 0.5 or 2; the node's default without it.
    #[arg(long, value_name = "N", value_parser = cpu_millis)]
    cpus: Option<u64>,
    /// Memory of the container, e.g. 256M or 1G; the guest's own need is added to it.
    #[arg(long, value_name = "SIZE", value_parser = memory_bytes)]
    memory: Option<u64>,
}

impl SizeArguments {
    /// As limits of a pod.
    pub(crate) fn limits(self) -> Limits {
        Limits { cpu_millis: self.cpus, memory_bytes: self.memory }
    }
}

/// Thousandths of a CPU from `2`, `0.5`, `1.25`.
fn cpu_millis(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("expected a number of CPUs between 0.001 and {MAX_CPUS}, such as 0.5 or 2, seen {text:?}");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| (1..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let fraction: u64 = format!("{fraction:0<3}").parse().map_err(|_| wrong())?;
    let millis = whole * 1000 + fraction;
    if (1..=MAX_CPUS * 1000).contains(&millis) { Ok(millis) } else { Err(wrong()) }
}

/// Bytes from `1048576`, `256M`, `256MiB`, `1G`; units are powers of 1024, as with Docker.
fn memory_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("expected a size up to 1024G, such as 256M or 1G, seen {text:?}");
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "ki" | "kib" => 10,
        "m" | "mi" | "mib" => 20,
        "g" | "gi" | "gib" => 30,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let bytes = number.checked_mul(1 << shift).ok_or_else(wrong)?;
    if (1..=MAX_MEMORY).contains(&bytes) { Ok(bytes) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_read_exactly() {
        for (text, millis) in [("1", 1000), ("0.5", 500), ("1.25", 1250), ("64", 64_000), ("0.001", 1)] {
            assert_eq!(cpu_millis(text), Ok(millis), "{text}");
        }
        for text in [
            "",
            "0",
            "0.0",
            "-1",
            "65",
            "1e3",
            "NaN",
            "1.",
            ".5",
            "0.0001",
            "64.001",
            "1,5",
            "18446744073709551616",
        ] {
            assert!(cpu_millis(text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory_is_read_as_docker_does() {
        for (text, bytes) in
            [("1048576", 1 << 20), ("256M", 256 << 20), ("1g", 1 << 30), ("512MiB", 512 << 20), ("4k", 4096)]
        {
            assert_eq!(memory_bytes(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "0",
            "M",
            "-1",
            "1.5G",
            "10T",
            "1025G",
            "99999999999999999999",
            "18446744073709551615G",
            "5 M",
        ] {
            assert!(memory_bytes(text).is_err(), "{text}");
        }
    }
}
