//! Outrider on Linux: what `outrider-hal` asks of a platform, from files, sockets and clocks.
//!
//! # Architecture invariants
//!
//! * There is no file-system logic here: whatever Outrider decides, `outrider-core` decides.
//! * The thread that drives a node never blocks in a transfer: [`disk`] has threads of its own, and
//!   [`net`] only does what is ready. It sleeps in one place, [`wait`].

pub mod clock;
pub mod disk;
pub mod fence;
pub mod fuse;
pub mod host;
pub mod memory;
pub mod mount;
pub mod mounts;
pub mod net;
pub mod node;
pub mod report;
pub mod signals;
pub mod wait;
pub mod witness;
