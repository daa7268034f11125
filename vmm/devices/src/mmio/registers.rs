//! Names of the registers and of the status bits (VIRTIO 1.2, table 4.2.2).

macro_rules! registers {
    ($($name:ident = $offset:literal, $doc:literal;)*) => {
        /// A control register.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u64)]
        pub enum Register {
            $(#[doc = $doc] $name = $offset,)*
        }

        impl Register {
            /// Every register that exists here.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The register at an offset.
            pub fn at(offset: u64) -> Option<Self> {
                match offset {
                    $($offset => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

registers! {
    Magic = 0x000, "`virt`.";
    Version = 0x004, "2.";
    DeviceId = 0x008, "Device type.";
    VendorId = 0x00c, "Vendor.";
    DeviceFeatures = 0x010, "32 bits of what is offered.";
    DeviceFeaturesSel = 0x014, "Which 32 bits.";
    DriverFeatures = 0x020, "32 bits of what is accepted.";
    DriverFeaturesSel = 0x024, "Which 32 bits.";
    QueueSel = 0x030, "The queue that the queue registers mean.";
    QueueSizeMax = 0x034, "Largest size; 0 for no such queue.";
    QueueSize = 0x038, "Size in use.";
    QueueReady = 0x044, "1 when the driver has set the queue up.";
    QueueNotify = 0x050, "Index of a queue with new buffers.";
    InterruptStatus = 0x060, "Why the line was raised.";
    InterruptAck = 0x064, "What was handled.";
    Status = 0x070, "Device status; see [`status`].";
    QueueDescLow = 0x080, "Descriptor table.";
    QueueDescHigh = 0x084, "Descriptor table.";
    QueueDriverLow = 0x090, "Available ring.";
    QueueDriverHigh = 0x094, "Available ring.";
    QueueDeviceLow = 0x0a0, "Used ring.";
    QueueDeviceHigh = 0x0a4, "Used ring.";
    ShmSel = 0x0ac, "Shared memory region; there is none.";
    ShmLenLow = 0x0b0, "All ones: no region.";
    ShmLenHigh = 0x0b4, "All ones: no region.";
    ShmBaseLow = 0x0b8, "All ones: no region.";
    ShmBaseHigh = 0x0bc, "All ones: no region.";
    ConfigGeneration = 0x0fc, "Changes with the configuration space.";
}

/// Where the configuration space begins.
pub(super) const CONFIG_SPACE: u64 = 0x100;

/// Bits of the status register (VIRTIO 1.2, section 2.1).
pub mod status {
    /// The guest has seen the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// It has a driver for it.
    pub const DRIVER: u32 = 2;
    /// The driver runs.
    pub const DRIVER_OK: u32 = 4;
    /// Features are agreed.
    pub const FEATURES_OK: u32 = 8;
    /// The device gave up.
    pub const NEEDS_RESET: u32 = 64;
    /// The driver gave up.
    pub const FAILED: u32 = 128;
}
