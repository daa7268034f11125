//! The boot, from the measured page to the kernel's entry.

use kata_cc_stage0_abi::{BootBlock, BootInfo};

use crate::kernel::Kernel;
use crate::memory::GuestMemory;
use crate::params::{COMMAND_LINE, EfiInfo, Parameters, ZERO_PAGE};
use crate::payload::bring_in;
use crate::places::{LOW_MEMORY_END, Places, Sources};
use crate::platform::{Handover, Payload, PhysRange, Platform, Termination, layout};
use crate::sha256::Engine;
use crate::tables::dsdt::Devices;
use crate::tables::{Writer, acpi, cc_blob, efi, mptable};
use crate::{params, places};

/// How the guest is entered: Linux's 64-bit boot protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First instruction.
    pub address: u64,
    /// Boot parameters, for RSI.
    pub parameters: u64,
}

/// The boot block, before anything else is done: it names the platform.
///
/// # Errors
/// When it is malformed.
pub fn boot_block(memory: &mut impl GuestMemory) -> Result<BootBlock, Termination> {
    let page = memory.private(layout::BOOT_BLOCK, layout::PAGE_SIZE);
    let page = page.first_chunk().ok_or(Termination::BootBlockMagic)?;
    Ok(BootBlock::parse(page)?)
}

/// Brings everything in, verifies it, and prepares the guest.
///
/// # Errors
/// When anything is not as it was measured, or cannot be done.
pub fn boot<P: Platform, M: GuestMemory>(
    platform: &mut P,
    memory: &mut M,
    block: &BootBlock,
) -> Result<Entry, Termination> {
    platform.init(block)?;
    let engine = Engine::choose(|leaf, subleaf| platform.cpuid(leaf, subleaf));
    let info = boot_info(memory)?;
    let (places, sources) = Places::new(info, block)?;
    let mut boot = Boot { platform, memory, block, engine, places };
    boot.places.accept_low(boot.platform)?;
    // Accepted memory holds what the host left in it, until it is written.
    boot.memory.wipe(0, LOW_MEMORY_END);
    let kernel = boot.kernel(&sources)?;
    let devices = boot.command_line(&kernel)?;
    boot.close_low()?;
    let initramfs = boot.initramfs(&sources, &kernel)?;
    boot.platform.prepare_aps(block.vcpus)?;
    let handover = boot.platform.handover();
    boot.tell(&kernel, initramfs, &handover, &devices)?;
    boot.platform.leave()?;
    Ok(Entry { address: kernel.entry, parameters: ZERO_PAGE })
}

/// A private copy of the host's page, read once.
fn boot_info(memory: &mut impl GuestMemory) -> Result<BootInfo, Termination> {
    let mut page = [0; layout::PAGE_SIZE as usize];
    memory.read_shared(layout::BOOT_INFO, &mut page);
    Ok(BootInfo::parse(&page)?)
}

struct Boot<'a, P, M> {
    platform: &'a mut P,
    memory: &'a mut M,
    block: &'a BootBlock,
    engine: Engine,
    places: Places,
}

impl<P: Platform, M: GuestMemory> Boot<'_, P, M> {
    /// The file is verified as a whole where there is room, then its parts are put where they belong.
    fn kernel(&mut self, sources: &Sources) -> Result<Kernel, Termination> {
        let sealed = self.block.kernel;
        let file = self.places.take_high(self.platform, sealed.length, layout::MMIO_HOLE)?;
        let from_to = (sources.kernel.start(), file.start());
        bring_in(self.memory, self.engine, from_to, &sealed, Termination::KernelHash)?;
        self.platform.measured(Payload::Kernel, &sealed.sha256)?;
        self.release(sources.kernel, sealed.length)?;

        let bytes = self.memory.private(file.start(), sealed.length);
        let kernel = Kernel::parse(bytes, self.block.kernel_kind)?;
        self.places.take_at(self.platform, kernel.start, kernel.end - kernel.start)?;
        for segment in kernel.segments() {
            self.memory.copy_private(file.start() + segment.offset, segment.address, segment.content);
            let rest = segment.memory - segment.content;
            if rest > 0 {
                self.memory.wipe(segment.address + segment.content, rest);
            }
        }
        self.memory.wipe(file.start(), sealed.length);
        self.places.give_back(file)?;
        Ok(kernel)
    }

    /// The verified command line; its devices, when the guest shall find them by ACPI.
    fn command_line(&mut self, kernel: &Kernel) -> Result<Devices, Termination> {
        let sealed = self.block.command_line;
        if sealed.length > kernel.command_line_max {
            return Err(Termination::CommandLineTooLong);
        }
        let from_to = (layout::COMMAND_LINE, COMMAND_LINE);
        bring_in(self.memory, self.engine, from_to, &sealed, Termination::CommandLineHash)?;
        self.memory.wipe(COMMAND_LINE + sealed.length, 1);
        self.platform.measured(Payload::CommandLine, &sealed.sha256)?;
        if !self.block.acpi_devices {
            return Ok(Devices::default());
        }
        let line = self.memory.private(COMMAND_LINE, sealed.length);
        Devices::take_from(line).map(|(devices, _)| devices)
    }

    /// Command line and boot info were read: their pages become private, so that nothing of the first 2 MiB stays in the
    /// host's reach. The guest never uses them.
    fn close_low(&mut self) -> Result<(), Termination> {
        let pages = PhysRange::new(layout::COMMAND_LINE, layout::SHARED_END).ok_or(Termination::Panic)?;
        self.memory.wipe_shared(pages.start(), pages.length());
        Ok(self.platform.unshare(pages)?)
    }

    /// Address and bytes of the verified initramfs.
    fn initramfs(&mut self, sources: &Sources, kernel: &Kernel) -> Result<Option<(u64, u64)>, Termination> {
        let (Some(sealed), Some(source)) = (self.block.initramfs, sources.initramfs) else {
            return Ok(None);
        };
        let place = self.places.take_high(self.platform, sealed.length, kernel.initramfs_end)?;
        let from_to = (source.start(), place.start());
        bring_in(self.memory, self.engine, from_to, &sealed, Termination::InitramfsHash)?;
        self.platform.measured(Payload::Initramfs, &sealed.sha256)?;
        self.release(source, sealed.length)?;
        Ok(Some((place.start(), sealed.length)))
    }

    /// The host's copy is of no more use: its place becomes the guest's.
    fn release(&mut self, source: PhysRange, length: u64) -> Result<(), Termination> {
        self.memory.wipe_shared(source.start(), length);
        self.places.reclaim(self.platform, source)
    }

    /// Tables and boot parameters.
    fn tell(
        &mut self,
        kernel: &Kernel,
        initramfs: Option<(u64, u64)>,
        handover: &Handover,
        devices: &Devices,
    ) -> Result<(), Termination> {
        let vcpus = u8::try_from(self.block.vcpus).map_err(|_| Termination::BootBlockVcpus)?;
        let mp_page = self.memory.private(mptable::MP_TABLE, layout::PAGE_SIZE);
        mp_page.fill(0);
        mptable::build(mp_page, vcpus)?;

        let unaccepted = match handover.lazy_memory {
            true => Some(self.unaccepted()?),
            false => None,
        };
        let ram = self.places.ram();
        let place = self.memory.private(layout::TABLES, layout::TABLES_END - layout::TABLES);
        place.fill(0);
        let machine = acpi::Machine {
            vcpus,
            ap_mailbox: handover.ap_mailbox,
            event_log: handover.event_log,
            devices: devices.as_slice(),
        };
        let tables = write_tables(place, &machine, handover, unaccepted, ram)?;
        let page = self.memory.private(ZERO_PAGE, layout::PAGE_SIZE);
        let page = page.first_chunk_mut().ok_or(Termination::TablesTooLarge)?;
        let told = Parameters {
            ram,
            whole_units: handover.lazy_memory,
            initramfs,
            rsdp: tables.rsdp,
            cc_blob: tables.cc_blob,
            setup_data: tables.setup_data,
            efi: tables.efi,
        };
        params::build(page, kernel, &told)
    }

    /// Address of the table of unaccepted memory.
    fn unaccepted(&mut self) -> Result<u64, Termination> {
        let bytes = efi::unaccepted_bytes(self.places.ram());
        let place = PhysRange::covering(layout::UNACCEPTED, bytes)
            .filter(|place| place.end() <= layout::TABLES)
            .ok_or(Termination::TablesTooLarge)?;
        self.platform.accept(place)?;
        let place = self.memory.private(place.start(), place.length());
        let places: &places::Places = &self.places;
        efi::unaccepted(place, places.ram(), |unit| places.is_accepted(unit))?;
        Ok(layout::UNACCEPTED)
    }
}

/// Where the tables came to lie.
#[derive(Default)]
struct Written {
    rsdp: u64,
    cc_blob: Option<u64>,
    setup_data: u64,
    efi: Option<EfiInfo>,
}

fn write_tables(
    place: &mut [u8],
    machine: &acpi::Machine<'_>,
    handover: &Handover,
    unaccepted: Option<u64>,
    ram: &[kata_cc_stage0_abi::MemoryRange],
) -> Result<Written, Termination> {
    let base = layout::TABLES;
    let mut out = Writer::new(place);
    let mut written = Written { rsdp: acpi::build(&mut out, base, machine)?, ..Written::default() };
    if handover.cc_blob {
        out.align(16)?;
        let blob = base + out.length() as u64;
        out.put(&cc_blob::blob())?;
        out.align(16)?;
        let node = base + out.length() as u64;
        out.put(&cc_blob::node(blob as u32))?;
        (written.cc_blob, written.setup_data) = (Some(blob), node);
    }
    if let Some(unaccepted) = unaccepted {
        let tables = efi::Tables { rsdp: written.rsdp, cc_blob: written.cc_blob, unaccepted };
        written.efi = Some(efi::build(&mut out, base, &tables, ram)?);
    }
    Ok(written)
}
