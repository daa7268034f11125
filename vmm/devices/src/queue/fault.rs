//! What a guest did to a virtqueue that it must not do.

use std::fmt;

/// A guest broke the contract of a virtqueue: the device stops until the driver resets it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest broke queue {queue} of device {device}: {kind}; the device waits for a reset")]
pub struct GuestFault {
    /// Name of the device.
    pub device: String,
    /// Index of the queue.
    pub queue: u16,
    /// What was wrong.
    pub kind: FaultKind,
}

/// What was wrong with a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// The driver set `DRIVER_OK` without making the queue ready.
    NotReady,
    /// Zero, no power of two, or larger than offered.
    BadSize(u16),
    /// A ring is misaligned or not wholly in memory.
    BadRing {
        /// `descriptor table`, `available ring` or `used ring`.
        ring: &'static str,
        /// Its guest address.
        address: u64,
    },
    /// Two rings of the queue share memory.
    RingsOverlap,
    /// The available index ran ahead of what was ever made available.
    AvailIndexJump {
        /// Index in the ring.
        index: u16,
        /// Where the device is.
        next: u16,
    },
    /// A head or `next` index beyond the table.
    DescriptorIndex(u16),
    /// More descriptors than the queue has: a loop.
    ChainTooLong,
    /// More bytes than the device accepts in a chain.
    ChainTooLarge {
        /// The device's limit.
        limit: u64,
    },
    /// A descriptor points outside memory.
    Address {
        /// Guest address.
        address: u64,
        /// Length of the descriptor.
        len: u32,
    },
    /// A readable descriptor after a writable one.
    Order,
    /// An indirect descriptor, which was never offered.
    Indirect,
    /// The ring or a buffer could not be accessed although it was checked.
    Access,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady => f.write_str("it was not made ready"),
            Self::BadSize(size) => write!(f, "size {size} is not a power of two up to the offered one"),
            Self::BadRing { ring, address } => {
                write!(f, "{ring} at {address:#x} is misaligned or outside memory")
            }
            Self::RingsOverlap => f.write_str("its rings overlap"),
            Self::AvailIndexJump { index, next } => {
                write!(f, "available index {index} is more than a queue ahead of {next}")
            }
            Self::DescriptorIndex(index) => write!(f, "descriptor index {index} is beyond the table"),
            Self::ChainTooLong => f.write_str("chain has more descriptors than the queue (a loop)"),
            Self::ChainTooLarge { limit } => write!(f, "chain has more than {limit} bytes"),
            Self::Address { address, len } => {
                write!(f, "descriptor of {len} bytes at {address:#x} is outside memory")
            }
            Self::Order => f.write_str("readable descriptor after a writable one"),
            Self::Indirect => f.write_str("indirect descriptor, which was not offered"),
            Self::Access => f.write_str("memory that was checked cannot be accessed"),
        }
    }
}
