//! The virtio devices of the machine, over MMIO (microvm) or PCI (q35).
//!
//! * A device is found once, at the start, and never given back.
//! * Memory is where it is, so an address is an address for the device too.
//! * Nobody reads or writes a buffer while a device has it.

mod block;
mod net;

pub(crate) use block::{BlockError, Disk, Durability};
pub(crate) use net::{NetworkCard, RECEIVE_FRAMES, SEND_FRAMES};

use crate::machine::cpu::{inl, outl};
use crate::machine::paging::{map_device, ring_pages};
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::pci::bus::{Command, ConfigurationAccess, DeviceFunction, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};
use virtio_drivers::transport::{DeviceStatus, DeviceType, SomeTransport, Transport as _};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

/// The way to a device.
pub(crate) type Transport = SomeTransport<'static>;

/// Feature bit of devices that follow version 1 of the specification.
pub(crate) const VERSION_1: u64 = 1 << 32;

/// Memory as virtio-drivers wants it.
pub(crate) struct Dma;

// SAFETY: pages come zeroed from a pool that gives each away once; all memory and all registers
// are mapped where they are.
unsafe impl Hal for Dma {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        match ring_pages(pages) {
            Ok(addr) => (addr, NonNull::new(addr as *mut u8).expect("page 0 is not in the pool")),
            Err(_) => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        // Happens only when a device is given up, on the way to the end.
        0
    }

    unsafe fn mmio_phys_to_virt(addr: PhysAddr, size: usize) -> NonNull<u8> {
        map_device(addr, size as u64).expect("the pool is sized for the devices of one machine");
        NonNull::new(addr as *mut u8).expect("no device has its registers at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.addr().get() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// The devices that a node uses; the first of each kind.
#[derive(Default)]
pub(crate) struct Devices {
    /// The shared disk.
    pub(crate) disk: Option<Transport>,
    /// The network card.
    pub(crate) card: Option<Transport>,
    /// The entropy device.
    pub(crate) entropy: Option<Transport>,
    /// Devices of these kinds beyond the first, and of other kinds.
    pub(crate) unused: u32,
}

impl Devices {
    fn add(&mut self, transport: Transport) {
        let place = match transport.device_type() {
            DeviceType::Block => &mut self.disk,
            DeviceType::Network => &mut self.card,
            DeviceType::EntropySource => &mut self.entropy,
            _ => {
                self.unused += 1;
                return;
            }
        };
        if place.is_none() {
            *place = Some(transport);
        } else {
            self.unused += 1;
        }
    }

    /// Looks for devices on the PCI bus, and without one at the places where a microvm has them.
    pub(crate) fn find() -> Devices {
        let mut devices = Devices::default();
        let mut root = PciRoot::new(Ports);
        if Ports.read_word(DeviceFunction { bus: 0, device: 0, function: 0 }, 0) == u32::MAX {
            devices.find_mmio();
            return devices;
        }
        for (function, info) in root.enumerate_bus(0) {
            let Some(kind) = virtio_device_type(&info) else {
                continue;
            };
            let mut command = Command::MEMORY_SPACE | Command::BUS_MASTER;
            if !matches!(kind, DeviceType::Block | DeviceType::Network) {
                // Nobody acknowledges its interrupts: it would hold a shared pin for ever.
                command |= Command::INTERRUPT_DISABLE;
            }
            root.set_command(function, command);
            if let Ok(transport) = PciTransport::new::<Dma, _>(&mut root, function) {
                devices.add(transport.into());
            }
        }
        devices
    }

    fn find_mmio(&mut self) {
        const BASE: u64 = 0xfeb0_0000;
        const BYTES: usize = 512;
        const PLACES: u64 = 24;
        if map_device(BASE, PLACES * BYTES as u64).is_err() {
            return;
        }
        for place in 0..PLACES {
            let addr = (BASE + place * BYTES as u64) as *mut VirtIOHeader;
            let header = NonNull::new(addr).expect("a constant that is not 0");
            // SAFETY: the registers are mapped, for ever, and each place is taken once. Where there
            // is no device, the header says so or has no magic number.
            if let Ok(transport) = unsafe { MmioTransport::new(header, BYTES) } {
                self.add(transport.into());
            }
        }
    }
}

/// PCI configuration through the ports 0xcf8 and 0xcfc.
struct Ports;

impl Ports {
    fn select(function: DeviceFunction, register: u8) {
        let DeviceFunction { bus, device, function } = function;
        let place = u32::from(bus) << 16 | u32::from(device) << 11 | u32::from(function) << 8;
        outl(0xcf8, 1 << 31 | place | u32::from(register & !3));
    }
}

impl ConfigurationAccess for Ports {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        Ports::select(function, register);
        inl(0xcfc)
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, data: u32) {
        Ports::select(function, register);
        outl(0xcfc, data);
    }

    unsafe fn unsafe_clone(&self) -> Ports {
        Ports
    }
}

/// Resets the device and accepts those of its features that are in `wanted`. `None` when it then
/// refuses to work with us.
fn negotiate(transport: &mut Transport, wanted: u64) -> Option<u64> {
    transport.set_status(DeviceStatus::empty());
    transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
    let features = transport.read_device_features() & (wanted | VERSION_1);
    transport.write_driver_features(features);
    let agreed = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK;
    transport.set_status(agreed);
    // Devices older than version 1 don't know this bit, and take any subset.
    let accepted = transport.get_status().contains(DeviceStatus::FEATURES_OK);
    if features & VERSION_1 != 0 && !accepted {
        return None;
    }
    transport.set_guest_page_size(outrider_unikernel::pvh::PAGE_BYTES as u32);
    Some(features)
}

/// Whether the device must be told of what was just added to the queue.
fn wants_notice<const SIZE: usize>(queue: &VirtQueue<Dma, SIZE>) -> bool {
    // The device first says that it wants to be told, then looks for more. We do it the other way
    // round; without a full barrier both could miss the other's half.
    fence(Ordering::SeqCst);
    queue.should_notify()
}
