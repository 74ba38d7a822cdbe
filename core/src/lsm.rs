//! The log-structured tree: what the items of a volume are made of.
//!
//! Clients write sorted runs of items into level 0; merging moves them down through levels in which
//! runs don't overlap, each level eight times as large as the one above. The manifest, a btree,
//! says which runs there are.
//!
//! ```text
//!   a transaction's items ---> build ---> blocks, and an entry of the manifest in level 0
//!   manifest ---> read ---> window: all there is around a key
//!   manifest ---> choose ---> merge ---> blocks, and a change of the manifest
//! ```
//!
//! All of it works on a [block cache](crate::block) and on space the caller gives, on a server as
//! on a mount, whose cache only reads.
//!
//! # Invariants
//!
//! * A run never changes. A lookup goes from newer runs to older ones and ends at the first that
//!   has the key, be it with a value or with a tombstone.
//! * Of two runs in level 0 the one with the greater order is newer; the server gives that number
//!   when it records a run. Every level is newer than the next.
//! * In every level but 0 runs are disjoint and their keys ascend.
//!
//! What this module deliberately doesn't know: transactions, locks, and who merges.

pub mod build;
pub mod choose;
pub mod manifest;
pub mod merge;
pub mod range;
pub mod read;
pub mod window;

pub use range::KeyRange;

#[cfg(test)]
pub(crate) mod tests;
