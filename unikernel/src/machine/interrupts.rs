//! The interrupt controllers, used for one thing: to end a HLT.
//!
//! * All device interrupts and the timer have one vector, whose handler only acknowledges it at the
//!   local APIC; nobody has to know which device is wired to which pin.
//! * Pins are edge-triggered, so a device whose interrupt has not been acknowledged yet can't
//!   interrupt again and again. In return the loop must see every device's interrupt status at zero
//!   before it sleeps, or a shared pin stays high and the next edge never comes.

use super::cpu::outb;
use super::paging::map_device;
use super::traps::{INTERRUPT_VECTOR, SPURIOUS_VECTOR};
use core::ptr::{read_volatile, write_volatile};

const APIC: u64 = 0xfee0_0000;
/// The register whose write ends the interrupt being served.
pub(crate) const APIC_EOI: u32 = 0xfee0_00b0;
const APIC_SPURIOUS: u64 = 0xf0;
const APIC_TIMER: u64 = 0x320;
const APIC_TIMER_COUNT: u64 = 0x380;
const APIC_TIMER_NOW: u64 = 0x390;
const APIC_TIMER_DIVIDE: u64 = 0x3e0;
const APIC_MASKED: u32 = 1 << 16;
const APIC_ENABLE: u32 = 1 << 8;
const DIVIDE_BY_16: u32 = 3;

/// Where I/O APICs are: every machine has the first, a microvm with ACPI a second.
const IO_APICS: [u64; 2] = [0xfec0_0000, 0xfec1_0000];
const IO_APIC_VERSION: u32 = 1;
/// The timer of 1981 (pins 0 and 2) and the keyboard (1) are not wanted.
const FIRST_PIN: u32 = 3;

fn apic_read(register: u64) -> u32 {
    // SAFETY: the local APIC's registers are mapped by `init`; reading these has no effect.
    unsafe { read_volatile((APIC + register) as *const u32) }
}

fn apic_write(register: u64, value: u32) {
    // SAFETY: as above; the registers written here affect interrupts only.
    unsafe { write_volatile((APIC + register) as *mut u32, value) };
}

/// Sets the controllers up. `false` when their registers can't be mapped.
pub(crate) fn init() -> bool {
    // The controllers of 1976: off.
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    if map_device(APIC, 4096).is_err() {
        return false;
    }
    apic_write(APIC_SPURIOUS, APIC_ENABLE | u32::from(SPURIOUS_VECTOR));
    apic_write(APIC_TIMER_DIVIDE, DIVIDE_BY_16);
    apic_write(APIC_TIMER, u32::from(INTERRUPT_VECTOR));
    IO_APICS.into_iter().all(|base| {
        let mapped = map_device(base, 4096).is_ok();
        if mapped {
            route_pins(base);
        }
        mapped
    })
}

/// Sends each pin of the I/O APIC, if there is one, to this processor, edge-triggered.
fn route_pins(base: u64) {
    let access = |register: u32, value: Option<u32>| {
        // SAFETY: the two registers of the I/O APIC (or of nothing) are mapped by `init`; they
        // affect interrupts only.
        unsafe {
            write_volatile(base as *mut u32, register);
            match value {
                Some(value) => write_volatile((base + 0x10) as *mut u32, value),
                None => return read_volatile((base + 0x10) as *const u32),
            }
        }
        0
    };
    let version = access(IO_APIC_VERSION, None);
    let last_pin = version >> 16 & 0xff;
    // Where nothing answers, all bits read the same.
    if version == 0 || version == u32::MAX || last_pin > 239 {
        return;
    }
    for pin in 0..=last_pin {
        let masked = if pin < FIRST_PIN { APIC_MASKED } else { 0 };
        access(0x11 + 2 * pin, Some(0));
        access(0x10 + 2 * pin, Some(u32::from(INTERRUPT_VECTOR) | masked));
    }
}

/// Starts the timer: an interrupt after this many of its ticks.
pub(crate) fn arm_timer(ticks: u32) {
    apic_write(APIC_TIMER_COUNT, ticks.max(1));
}

/// Ticks left until the timer's interrupt.
pub(crate) fn timer_ticks() -> u32 {
    apic_read(APIC_TIMER_NOW)
}
