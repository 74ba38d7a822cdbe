//! The few instructions that Rust has no words for.

use core::arch::asm;

/// Reads a byte from an I/O port.
pub(crate) fn inb(port: u16) -> u8 {
    let value: u8;
    // SAFETY: reading a port has no effect on memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// Writes a byte to an I/O port. No port that is used here makes a device write to memory.
pub(crate) fn outb(port: u16, value: u8) {
    // SAFETY: see above.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Reads 32 bits from an I/O port.
pub(crate) fn inl(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as for `inb`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
    value
}

/// Writes 32 bits to an I/O port.
pub(crate) fn outl(port: u16, value: u32) {
    // SAFETY: as for `outb`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) };
}

/// The address whose access faulted last.
pub(crate) fn fault_address() -> u64 {
    let value: u64;
    // SAFETY: reading CR2 has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack)) };
    value
}

/// The time stamp counter, not read before the instructions ahead of it are done.
pub(crate) fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: every processor of long mode has it, and nothing forbids it at ring 0.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Waits for an interrupt, with interrupts enabled only meanwhile. One that has become pending
/// before ends the wait at once: `sti` takes effect after the instruction that follows it.
pub(crate) fn wait_for_interrupt() {
    // SAFETY: the handlers run on stacks of their own and touch no memory of Rust's.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Stops for ever.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off, nothing runs any more.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Resets the machine: a fault that can't be delivered.
pub(crate) fn triple_fault() -> ! {
    let none = [0u8; 10];
    // SAFETY: nothing is expected to work afterwards.
    unsafe {
        asm!("lidt [{}]", "int3", in(reg) &raw const none, options(nostack));
    }
    halt()
}
