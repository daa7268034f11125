//! Command line: the caller's words and then one `virtio_mmio.device=` for each device.

use std::fmt::Write;

use crate::layout;

/// Why a command line was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// Something other than printable ASCII, which the kernel would cut off or misread.
    #[error("command line has the byte {byte:#04x} at {position}: only printable ASCII may be there")]
    BadByte {
        /// The byte.
        byte: u8,
        /// Where it is.
        position: usize,
    },
    /// Longer than the kernel takes.
    #[error("command line has {bytes} bytes with its devices, the kernel takes {max}: shorten it")]
    TooLong {
        /// Its length with the final zero.
        bytes: usize,
        /// The most.
        max: usize,
    },
    /// The caller's words must not announce devices themselves.
    #[error("command line names a virtio_mmio.device: the VMM adds these words itself")]
    OwnDevice,
}

pub(crate) fn build(base: &str, devices: usize, max: usize) -> Result<String, CmdlineError> {
    let bad = base.bytes().enumerate().find(|(_, byte)| !(0x20..0x7f).contains(byte));
    if let Some((position, byte)) = bad {
        return Err(CmdlineError::BadByte { byte, position });
    }
    if base.contains("virtio_mmio.device=") {
        return Err(CmdlineError::OwnDevice);
    }
    let mut line = base.trim().to_owned();
    for (address, irq) in (0..devices).filter_map(layout::device) {
        let space = if line.is_empty() { "" } else { " " };
        // writing to a String cannot fail
        let _ = write!(line, "{space}virtio_mmio.device=4K@{address:#x}:{irq}");
    }
    let bytes = line.len() + 1;
    if bytes > max {
        return Err(CmdlineError::TooLong { bytes, max });
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_come_last() {
        assert_eq!(
            build("quiet  ", 2, 2048).as_deref(),
            Ok("quiet virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6")
        );
        assert_eq!(build("", 0, 2048).as_deref(), Ok(""));
    }

    #[test]
    fn refuses_what_the_kernel_would_misread() {
        let bad = |byte, position| Err(CmdlineError::BadByte { byte, position });
        assert_eq!(build("a\0b", 0, 2048), bad(0, 1));
        assert_eq!(build("a\nb", 0, 2048), bad(b'\n', 1));
        assert_eq!(build("ä", 0, 2048), bad(0xc3, 0));
        assert_eq!(build(&"x".repeat(2048), 0, 2048), Err(CmdlineError::TooLong { bytes: 2049, max: 2048 }));
        assert_eq!(build("virtio_mmio.device=4K@0x1000:5", 0, 2048), Err(CmdlineError::OwnDevice));
    }
}
