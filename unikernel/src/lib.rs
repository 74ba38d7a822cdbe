//! The parts of the bare-metal server that need no hardware, and so can be tested anywhere: the
//! command line, time, the memory map, and the TCP stack.
//!
//! # Architecture invariants
//!
//! * No file-system logic, here or in the image: a node is driven, never looked into.
//! * No allocation.
#![no_std]

pub mod net;
pub mod options;
pub mod pvh;
pub mod selftest;
pub mod time;
