//! Copy-on-write btrees: sorted maps from short keys to small values, all of the server's tables.
//!
//! Reads and plans walk from the root and may stop for a block; see [`crate::error`]. An update is
//! planned, reserved and applied:
//!
//! ```text
//! let mut plan = cache.plan();
//! free.plan_delete(&old, &mut plan, cache, pins)?;        // any number of updates,
//! free.plan_insert(&new, value.len(), &mut plan, cache, pins)?; // of any trees
//! let mut update = cache.reserve(&plan, pins)?;           // the last that may stop
//! free.delete(&old, &mut update, cache);                  // can't fail
//! free.put(&new, value, &mut update, cache);
//! ```
//!
//! # Invariants
//!
//! * A block is referred to by address and version, and verified against both. A node of the open
//!   commit is changed in place, any other gets a new address first, and so do all nodes above it:
//!   a root once durable leads to the same tree for ever.
//! * Whatever a walk meets is checked against what led there: the kind of tree, the level, and the
//!   range of keys the parent gives. What doesn't match is
//!   [`Error::Corrupt`](crate::error::Error::Corrupt), never a panic.
//! * No node but the root is the only child of its parent or underfull, unless the tree was changed
//!   by a plan of several updates that left no sibling to be merged with in memory. Even an empty
//!   leaf is legal then; the next update nearby takes it away.
//! * An inner node has room for all its separators at full length, so that replacing one never
//!   splits it.
//! * The keys of the updates of one plan are different for each tree.
//!
//! # Why apply never misses a block
//!
//! Claim: from plan to the last apply, every node on the path of every planned key is resident. The
//! plan pins the path, and a pinned or dirty block stays. Apply changes the shape in these ways
//! only: a node is split, into itself and a new one; two siblings, both changeable, are merged into
//! one of them, or share their items anew; a root is put above the old one; a root with one child
//! gives way to that child; an empty root goes. Each replaces resident nodes by resident
//! nodes that cover the same keys, and passes each child on as a whole. So a path that led through
//! resident nodes does so afterwards. Merging, sharing and giving way are optional: where a
//! sibling is not there, they don't happen. The plan pins the siblings of what its deletions may
//! leave underfull, so that with one deletion they always are.
//!
//! # Why the plan counts enough
//!
//! Each clean block that apply may change is pinned and counted by the plan, once. A put adds at
//! most one node on each level and a root. Heights change while a plan is applied: a root that has
//! just grown has two children, and takes more updates to fill than a plan may have
//! ([`UPDATES_MAX`]), so at most one root grows above the planned height (or two, above an empty
//! tree, the first of them a leaf), and whoever comes after it adds no other.
//! Deletions add nothing.
//!
//! What this module deliberately doesn't know: what the keys and values mean, and where roots are
//! kept.

mod node;
mod update;
mod walk;

pub use walk::{Above, Item, Key};

use crate::error::Corruption;
use crate::format::btree::{BlockRef, HEIGHT_MAX, INNER_ITEMS_MAX, TreeRoot};

/// Most updates of one plan.
pub const UPDATES_MAX: u32 = 32;
/// Most blocks that a lookup, or a step of an iteration, obtains.
pub const PINS_PER_READ: u32 = 2 * HEIGHT_MAX as u32;
/// Most blocks that planning an update obtains: the path, and both siblings on all levels but the
/// root's.
pub const PINS_PER_UPDATE: u32 = 3 * HEIGHT_MAX as u32 - 2;
/// Most blocks that an update adds.
pub const CREATES_PER_UPDATE: u32 = HEIGHT_MAX as u32 + 1;

const _: () = assert!((UPDATES_MAX as usize) < INNER_ITEMS_MAX - 2);

/// Which kind of tree a node is part of, so that a node of one can't be taken for one of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeKind(pub u8);

/// A tree: its kind, and its root as of now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tree {
    kind: TreeKind,
    node: BlockRef,
    height: u8,
}

impl Tree {
    /// The tree that holds nothing.
    #[must_use]
    pub const fn empty(kind: TreeKind) -> Tree {
        Tree { kind, node: BlockRef::NONE, height: 0 }
    }

    /// The tree that a root read from a block leads to.
    pub fn open(kind: TreeKind, root: &TreeRoot) -> Result<Tree, Corruption> {
        if root.reserved != [0; 7] {
            return Err(Corruption::Reserved);
        }
        if usize::from(root.height) > HEIGHT_MAX {
            return Err(Corruption::Bounds);
        }
        if (root.height == 0) != (root.node == BlockRef::NONE) {
            return Err(Corruption::Mismatch);
        }
        Ok(Tree { kind, node: root.node, height: root.height })
    }

    /// The root, to be kept in a block.
    #[must_use]
    pub fn root(&self) -> TreeRoot {
        TreeRoot { node: self.node, height: self.height, reserved: [0; 7] }
    }

    /// Which kind of tree it is.
    #[must_use]
    pub fn kind(&self) -> TreeKind {
        self.kind
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.height == 0
    }
}

#[cfg(test)]
pub(crate) mod rig;
#[cfg(test)]
mod tests;
