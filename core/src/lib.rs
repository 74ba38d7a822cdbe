//! Outrider's core: everything that is Outrider, and no input or output.
//!
//! A node (a server, a mount, a voter) is a plain state machine: events come in, bounded work is
//! done, actions come out; see [`node`]. `DESIGN.md` beside this crate says why things are as they
//! are, `FORMAT.md` and `WIRE.md` what the bytes on the device and between nodes mean.
//!
//! # Architecture invariants
//!
//! * No allocation: every byte of memory is carved from one region at the start ([`arena`]).
//! * No clock, no thread, no socket, no file: a run is a pure function of its events.
//! * No interior mutability, no callback, no `async`.
//! * Whatever came from a disk, a network or a user is parsed once, into a type that says so, and
//!   never asserted.
#![no_std]

pub mod alloc;
pub mod arena;
pub mod block;
pub mod btree;
pub mod check;
pub mod client;
pub mod crc32c;
pub mod error;
pub mod format;
pub mod lock;
pub mod lsm;
pub mod mkfs;
pub mod mutant;
pub mod net;
pub mod node;
pub mod pump;
pub mod quorum;
mod roster;
pub mod server;
pub mod tune;
pub mod txn;
