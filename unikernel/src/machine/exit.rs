//! How the image ends: never by returning.

use super::cpu::{outl, triple_fault};
use super::serial::say;
use core::panic::PanicInfo;

/// I/O port of QEMU's isa-debug-exit device. QEMU exits with twice the value written, plus 1.
pub(crate) const PORT: u16 = 0xf4;
/// Value that says: everything asked for is done. QEMU's status is 33.
const SUCCESS: u32 = 0x10;
/// Value that says: given up. QEMU's status is 35.
pub(crate) const FAILURE: u32 = 0x11;

/// Ends QEMU with the status for success. Without its exit device, the machine stops.
pub(crate) fn success() -> ! {
    outl(PORT, SUCCESS);
    super::cpu::halt()
}

/// Ends QEMU with the status for failure. Without its exit device, the machine is reset: a server
/// that has given up must not look like one that is busy.
pub(crate) fn failure() -> ! {
    outl(PORT, FAILURE);
    triple_fault()
}

/// Says in one line why the image will not run, and ends.
macro_rules! refuse {
    ($($arg:tt)*) => {{
        $crate::machine::serial::say!("outrider: {}", format_args!($($arg)*));
        $crate::machine::exit::failure()
    }};
}
pub(crate) use refuse;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("outrider: {info}");
    failure()
}
