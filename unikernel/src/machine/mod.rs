//! The processor and the parts of a PC that every machine has.
//!
//! What is unsafe about running without an operating system is in here and in `virtio`.

pub(crate) mod clock;
pub(crate) mod cpu;
pub(crate) mod entropy;
pub(crate) mod exit;
pub(crate) mod interrupts;
pub(crate) mod log;
pub(crate) mod paging;
pub(crate) mod serial;
pub(crate) mod traps;
