//! The DSDT: one ACPI device per virtio-mmio device, for kernels that set up interrupt lines by ACPI. Such a kernel knows the lines 0
//! to 15 only by what a PC has there, and in a TD not even these: a `virtio_mmio.device=` word then names an interrupt that
//! nobody has set up.
//!
//! The AML holds names and resources, no methods: there is nothing in it that runs. It is made here of the measured command line's
//! words, which are taken out of the line that the kernel gets, so that no device is there twice.
//!
//! Sources: ACPI 6.5, sections 6.4.3 (resource descriptors) and 20.2 (AML); Linux' `drivers/virtio/virtio_mmio.c` (`LNRO0005`).

use super::Writer;
use crate::platform::Termination;

/// A virtio-mmio device as the command line names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// First address.
    pub address: u32,
    /// Interrupt line of the I/O APIC.
    pub line: u8,
}

/// Most devices: as many as there are interrupt lines.
pub const MAX_DEVICES: usize = 24;
/// Bytes of address space of each.
const SIZE: u32 = 0x1000;
/// What a word looks like: `virtio_mmio.device=4K@0x<address>:<line>`.
const WORD: &[u8] = b"virtio_mmio.device=4K@0x";

/// Devices of a command line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Devices {
    all: [Device; MAX_DEVICES],
    count: usize,
}

impl Devices {
    /// The devices, in order.
    #[must_use]
    pub fn as_slice(&self) -> &[Device] {
        self.all.get(..self.count).unwrap_or_default()
    }

    /// Takes the devices' words out of a line; gives how long it is afterwards. What is behind is zeros.
    ///
    /// # Errors
    /// When there are more than [`MAX_DEVICES`], or a word is of another form.
    pub fn take_from(line: &mut [u8]) -> Result<(Self, usize), Termination> {
        let mut devices = Self::default();
        let (mut from, mut to) = (0, 0);
        while from < line.len() {
            let rest = line.get(from..).unwrap_or_default();
            let length = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
            let word = rest.get(..length).unwrap_or_default();
            if word.starts_with(b"virtio_mmio.device=") {
                let device = parse(word).ok_or(Termination::CommandLineDevice)?;
                *devices.all.get_mut(devices.count).ok_or(Termination::CommandLineDevice)? = device;
                devices.count += 1;
            } else {
                if to > 0 {
                    if let Some(byte) = line.get_mut(to) {
                        *byte = b' ';
                    }
                    to += 1;
                }
                line.copy_within(from..from + length, to);
                to += length;
            }
            from += length + 1;
        }
        line.get_mut(to..).unwrap_or_default().fill(0);
        Ok((devices, to))
    }
}

fn parse(word: &[u8]) -> Option<Device> {
    let rest = word.strip_prefix(WORD)?;
    let colon = rest.iter().position(|byte| *byte == b':')?;
    let (address, line) = (rest.get(..colon)?, rest.get(colon + 1..)?);
    let number = |text: &[u8], radix| -> Option<u32> {
        u32::from_str_radix(core::str::from_utf8(text).ok()?, radix).ok()
    };
    let line = number(line, 10).filter(|line| *line < MAX_DEVICES as u32)?;
    Some(Device { address: number(address, 16)?, line: line as u8 })
}

const BYTE_PREFIX: u8 = 0x0A;
const STRING_PREFIX: u8 = 0x0D;
const NAME: u8 = 0x08;
const SCOPE: u8 = 0x10;
const BUFFER: u8 = 0x11;
const EXTENDED: u8 = 0x5B;
const DEVICE: u8 = 0x82;
const ONE: u8 = 0x01;

/// Bytes of a device's resources: 32-bit fixed memory range, extended interrupt, end tag.
const RESOURCES: u8 = 12 + 9 + 2;
/// Interrupt flags: consumer, edge-triggered, active high, exclusive.
const INTERRUPT_FLAGS: u8 = 0b0011;
/// Bytes of a device: its name, four objects.
const DEVICE_BODY: usize =
    4 + (1 + 4 + 1 + 9) + (1 + 4 + 2) + (1 + 4 + 1) + (1 + 4 + 1 + 1 + 2 + RESOURCES as usize);
/// A device with its opcode and its length of two bytes.
const DEVICE_BYTES: usize = 2 + 2 + DEVICE_BODY;

/// Writes the definition block behind the table's header; nothing when there are no devices.
///
/// # Errors
/// When the place is too small.
pub fn body(out: &mut Writer<'_>, devices: &[Device]) -> Result<(), Termination> {
    if devices.is_empty() {
        return Ok(());
    }
    out.put(&[SCOPE])?;
    out.put(&length(5 + devices.len() * DEVICE_BYTES))?;
    out.put(b"\\_SB_")?;
    for (number, device) in devices.iter().enumerate() {
        out.put(&[EXTENDED, DEVICE])?;
        out.put(&length(DEVICE_BODY))?;
        let number = number as u8;
        out.put(&[b'V', b'R', b'0' + number / 10, b'0' + number % 10])?;
        out.put(&[NAME])?;
        out.put(b"_HID")?;
        out.put(&[STRING_PREFIX])?;
        out.put(b"LNRO0005\0")?;
        out.put(&[NAME])?;
        out.put(b"_UID")?;
        out.put(&[BYTE_PREFIX, number])?;
        out.put(&[NAME])?;
        out.put(b"_CCA")?;
        out.put(&[ONE, NAME])?;
        out.put(b"_CRS")?;
        // the buffer's length counts its own length, the size and the bytes
        out.put(&[BUFFER, 1 + 2 + RESOURCES, BYTE_PREFIX, RESOURCES])?;
        out.put(&[0x86, 9, 0, 1])?;
        out.put(&device.address.to_le_bytes())?;
        out.put(&SIZE.to_le_bytes())?;
        out.put(&[0x89, 6, 0, INTERRUPT_FLAGS, 1])?;
        out.put(&u32::from(device.line).to_le_bytes())?;
        out.put(&[0x79, 0])?;
    }
    Ok(())
}

/// A package length of two bytes, which counts itself (ACPI 6.5, 20.2.4).
const fn length(bytes: usize) -> [u8; 2] {
    let bytes = bytes + 2;
    [0x40 | (bytes & 0xF) as u8, (bytes >> 4) as u8]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(line: &str) -> (Vec<Device>, String) {
        let mut bytes = line.as_bytes().to_vec();
        let (devices, length) = Devices::take_from(&mut bytes).expect("a good line");
        assert!(bytes[length..].iter().all(|byte| *byte == 0));
        (devices.as_slice().to_vec(), String::from_utf8(bytes[..length].to_vec()).expect("ASCII"))
    }

    #[test]
    fn the_devices_words_are_taken_out_of_the_line() {
        let device = |address, line| Device { address, line };
        let line = "quiet virtio_mmio.device=4K@0xd0000000:5 a=b virtio_mmio.device=4K@0xd0012000:23";
        assert_eq!(
            taken(line),
            (vec![device(0xd000_0000, 5), device(0xd001_2000, 23)], "quiet a=b".to_owned())
        );
        assert_eq!(taken("quiet"), (vec![], "quiet".to_owned()));
        assert_eq!(taken(""), (vec![], String::new()));
        assert_eq!(
            taken("virtio_mmio.device=4K@0xd0000000:5"),
            (vec![device(0xd000_0000, 5)], String::new())
        );
    }

    #[test]
    fn a_word_of_another_form_is_refused() {
        for word in [
            "=",
            "=4K@0x:5",
            "=4K@0xd0000000",
            "=4K@0xd0000000:24",
            "=4K@0xd0000000:-1",
            "=8K@0xd0000000:5",
            "=4K@0x1d0000000:5",
        ] {
            let mut line = format!("a virtio_mmio.device{word}").into_bytes();
            let refused = Devices::take_from(&mut line).map(|_| ());
            assert_eq!(refused, Err(Termination::CommandLineDevice), "{word}");
        }
        let mut many = "virtio_mmio.device=4K@0xd0000000:5 ".repeat(MAX_DEVICES + 1).into_bytes();
        assert_eq!(Devices::take_from(&mut many).map(|_| ()), Err(Termination::CommandLineDevice));
    }

    #[test]
    fn a_device_is_the_aml_that_a_compiler_makes_of_it() {
        let mut place = [0; 256];
        let mut out = Writer::new(&mut place);
        body(&mut out, &[Device { address: 0xd000_b000, line: 16 }]).expect("room");
        let length = out.length();
        // iasl of: Scope (\_SB) { Device (VR00) { Name (_HID, "LNRO0005") Name (_UID, 0x00) Name (_CCA, One)
        //   Name (_CRS, ResourceTemplate () { Memory32Fixed (ReadWrite, 0xD000B000, 0x00001000)
        //   Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 16 } }) } }
        let expected = [
            &[0x10, 0x4B, 0x04][..],
            b"\\_SB_",
            &[0x5B, 0x82, 0x42, 0x04],
            b"VR00",
            &[0x08],
            b"_HID",
            &[0x0D],
            b"LNRO0005\0",
            &[0x08],
            b"_UID",
            &[0x0A, 0x00, 0x08],
            b"_CCA",
            &[0x01, 0x08],
            b"_CRS",
            &[0x11, 0x1A, 0x0A, 0x17],
            &[0x86, 0x09, 0x00, 0x01, 0x00, 0xB0, 0x00, 0xD0, 0x00, 0x10, 0x00, 0x00],
            &[0x89, 0x06, 0x00, 0x03, 0x01, 0x10, 0x00, 0x00, 0x00, 0x79, 0x00],
        ]
        .concat();
        assert_eq!(place[..length], expected);
        let mut none = Writer::new(&mut place);
        body(&mut none, &[]).expect("room");
        assert_eq!(none.length(), 0);
    }
}
