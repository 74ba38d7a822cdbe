//! What a process that stays tells about itself: lines on standard error.

use std::io::{Write, stderr};

/// Tells it in one line. Nobody may be there to read it: that is no error.
pub fn tell(what: &str) {
    let _ = stderr().write_all(format!("outrider: {what}\n").as_bytes());
}
