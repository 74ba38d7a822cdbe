//! Cluster locks: who may read and write which keys.
//!
//! A lock covers a range of keys that follows from its name ([`LockName`]): a group of inodes, a
//! region of an index, a client's private zone, the rename lock. The server ([`server`]) knows who
//! has been granted what and who waits; a client ([`client`]) keeps a grant until the server
//! revokes it, and lets any number of its operations use it.
//!
//! | mode | shared with | may |
//! |---|---|---|
//! | null | everyone | nothing |
//! | read | read | read |
//! | write | nobody | read and write |
//! | write-only | write-only | write, without having read |
//!
//! # Messages about one lock
//!
//! ```text
//!   client                                server
//!     | -- Request(mode) -------------------> |   at most one outstanding per client and lock
//!     | <------------- Grant(mode, gen) ----- |   or Refuse
//!     |                                       |
//!     | <------------- Revoke(to, gen) ------ |   at most one outstanding per client and lock
//!     | -- Release(kept, gen) --------------> |   the answer, or given back unasked
//! ```
//!
//! A session delivers these exactly once and in order, per client and term. The generation is drawn
//! by the server for each grant, so what crosses on the way is told apart and never guessed: a
//! Release that crosses the Revoke of the same grant is its answer; a Revoke of a grant that is
//! gone is answered with nothing kept; a Release of a grant that has been replaced changes nothing.
//! After a failover the new server asks each client what it holds; what it reports then has
//! generation 0.
//!
//! # Invariants
//!
//! * Of two clients' grants of one lock, both are read or both are write-only.
//! * A client is never granted anything on a lock while a revoke to it there is unanswered.
//! * Requests for one lock are granted in the order in which they came.
//! * What a client gives up concerns nobody's grant but its own.
//!
//! What this module deliberately doesn't know: items, blocks, sockets, sessions and leases. It is
//! told of them in a word each.

pub mod client;
pub mod server;

mod list;
mod message;
mod mode;
mod name;
mod table;

pub use message::{Held, Refusal, ToClient, ToServer};
pub use mode::Mode;
pub use name::{GROUP_KEYS, LockName, Scope};

#[cfg(test)]
mod model;
