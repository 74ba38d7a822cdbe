//! The log: defmt frames on the console, decoded by whoever has this very image.

use super::serial;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};
use defmt::Encoder;

#[defmt::global_logger]
struct Log;

struct Encoding(UnsafeCell<Encoder>);

// SAFETY: there is one processor, and no interrupt handler logs.
unsafe impl Sync for Encoding {}

static ENCODING: Encoding = Encoding(UnsafeCell::new(Encoder::new()));

// SAFETY: one processor, and no interrupt handler logs, so a frame is never begun inside another.
unsafe impl defmt::Logger for Log {
    fn acquire() {
        serial::frame_start();
        // The separator the encoder would send before its first frame has no use here.
        // SAFETY: see the impl; the reference does not outlive the call.
        unsafe { (*ENCODING.0.get()).start_frame(|_| ()) };
    }

    unsafe fn flush() {}

    unsafe fn release() {
        // SAFETY: as in `acquire`.
        unsafe { (*ENCODING.0.get()).end_frame(serial::frame_bytes) };
        serial::frame_end();
    }

    unsafe fn write(bytes: &[u8]) {
        // SAFETY: as in `acquire`.
        unsafe { (*ENCODING.0.get()).write(bytes, serial::frame_bytes) };
    }
}

static MICROS: AtomicU64 = AtomicU64::new(0);

/// Sets the time that the statements from now on carry: microseconds since the clock's start.
pub(crate) fn stamp(micros: u64) {
    MICROS.store(micros, Ordering::Relaxed);
}

defmt::timestamp!("{=u64:us}", MICROS.load(Ordering::Relaxed));
