//! The deterministic cluster simulator: machines, a disk and a network in virtual time, everything
//! that can go wrong with them, and the checkers that look for what must not happen.
//!
//! A run is a pure function of its seed. `README.md` beside this crate says what each layer of
//! tests proves and how to replay a failure.
//!
//! # Architecture invariants
//!
//! * No wall clock, no thread, no hash map, no float, no address decides anything.
//! * Nodes are driven through [`outrider_core::node::Node`] and nothing else; the simulator knows
//!   no kind of node outside [`scenario`] and [`check`].
//! * What fails is in one module each ([`disk`], [`net`], [`node`]), and knows nothing of the
//!   others; only [`world`] knows them all.

pub mod check;
pub mod crash;
pub mod disk;
pub mod faults;
pub mod hunt;
pub mod image;
pub mod kernel;
pub mod model;
pub mod mount_ops;
pub mod net;
pub mod node;
pub mod planted;
pub mod platform;
pub mod puppet;
pub mod region;
pub mod rng;
pub mod scenario;
pub mod tidy;
pub mod time;
pub mod trace;
pub mod world;
