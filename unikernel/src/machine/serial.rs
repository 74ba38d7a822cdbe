//! The console: the first serial port, polled.
//!
//! * A byte that the port does not take within a bound is dropped: a log never stops the node.
//!
//! Two kinds of bytes share the line. A log frame starts with [`FRAME_START`], and ends with 0; it
//! holds no other 0. Everything outside of frames is plain text, so what is said before the log
//! exists, and after all else has failed, can be read without a decoder.

use super::cpu::{inb, outb};
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

/// Announces a log frame. No text holds it.
pub(crate) const FRAME_START: u8 = 1;
const FRAME_END: u8 = 0;

const PORT: u16 = 0x3f8;
const LINE_STATUS: u16 = PORT + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
const RECEIVED: u8 = 1;
/// How often the port is asked whether it is ready before a byte is dropped.
const SPINS: u32 = 100_000;

static IN_FRAME: AtomicBool = AtomicBool::new(false);

/// Programs the port: 115200 8N1, FIFOs on, no interrupts.
pub(crate) fn init() {
    for (offset, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
        outb(PORT + offset, value);
    }
}

fn put(byte: u8) {
    for _ in 0..SPINS {
        if inb(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
            outb(PORT, byte);
            return;
        }
    }
}

/// A byte that was typed at the other end, if there is one.
pub(crate) fn take() -> Option<u8> {
    (inb(LINE_STATUS) & RECEIVED != 0).then(|| inb(PORT))
}

/// Opens a log frame.
pub(crate) fn frame_start() {
    IN_FRAME.store(true, Ordering::Relaxed);
    put(FRAME_START);
}

/// Writes bytes of an open log frame.
pub(crate) fn frame_bytes(bytes: &[u8]) {
    bytes.iter().copied().for_each(put);
}

/// Notes that the open log frame has ended: the encoder has written its final 0.
pub(crate) fn frame_end() {
    IN_FRAME.store(false, Ordering::Relaxed);
}

/// Plain text, in lines. Cuts off a log frame that has not ended.
pub(crate) struct Text;

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if IN_FRAME.swap(false, Ordering::Relaxed) {
            put(FRAME_END);
        }
        for byte in text.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(if byte == FRAME_START { b'?' } else { byte });
        }
        Ok(())
    }
}

/// Prints a line of plain text.
macro_rules! say {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        // The port drops what it can't take; there is nobody to tell.
        let _ = writeln!($crate::machine::serial::Text, $($arg)*);
    }};
}
pub(crate) use say;
