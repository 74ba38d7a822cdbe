//! The server's trees as one whole: what changes together, and how it becomes durable.
//!
//! * [`trees`]: all the trees and counters that a root leads to.
//! * [`store`]: the commits that make new versions of them durable.
//! * [`settle`]: what a commit does last: it finds the space for the next one.
//! * [`kept`]: what is kept from being used again, because somebody reads an older root.
//! * [`loans`]: what a client is lent of one pool.
//! * [`takeover`]: what a term does first: it puts out of use what others may still write.

pub mod kept;
pub mod loans;
pub mod settle;
pub mod store;
pub mod takeover;
pub mod trees;

#[cfg(test)]
mod tests;
