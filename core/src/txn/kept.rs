//! What is kept from being used again, because somebody reads an older root.
//!
//! ```text
//!              keep(Some)                  a list can't be noted, or its blocks are needed
//!   Nothing ----------------> Keeping ---------------------------------------------------+
//!      ^                       |   ^ keep(Some): for more readers, or fewer              |
//!      |      keep(None)       |   |                                                     |
//!      +-----------------------+---+                         Keeping nothing, and lost <-+
//! ```
//!
//! A root leads to nodes and runs. A node is freed by the commit that copies or drops it, a run by
//! the one that merges it. Without readers the nodes that commit n frees are the first that commit
//! n + 1 writes, and runs are free a few commits later. For readers, what they may come to is put
//! on lists of freed extents, which are noted here, and nobody takes from a list that is noted.
//!
//! # Invariants
//!
//! * While it keeps, nothing is written to a block that a root leads to which is read: one of a
//!   commit from `since` on that no reader has excluded.
//! * What a root of commit c leads to was freed by a commit behind c: a node of version c or less,
//!   or a run whose number was given out by then. All else is none of a reader's, and is used again
//!   as ever. So what is kept is bounded by what the roots lead to, however much is written
//!   meanwhile, apart from runs that share a list with them.
//! * Nothing of this is durable: with the term it is gone, and the lists are lists as others.
//! * It is given up, for all readers at once, when a list can't be noted, when a commit would have
//!   less than its least reserve without what is kept, and when nothing else is free.
//!
//! What this module deliberately doesn't know: who reads, and for how long.

use crate::arena::{Arena, ArenaFull};
use crate::format::records::FreedKey;
use crate::format::root::Extent;
use crate::format::{CommitNo, RunId};
use crate::mutant::{Mutant, is_active};

/// Lists that can be noted. As many as are entered into the free trees within the commits that a
/// list may wait, once nobody reads any more.
pub const LISTS_MAX: u32 = 512;

/// What readers may come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeping {
    /// Roots of this commit and later ones: what it and those before it have freed is none of them.
    pub since: CommitNo,
    /// Of them, those up to this commit's; the greatest number if not all readers have chosen.
    pub upto: CommitNo,
    /// Runs with a smaller number than this.
    pub runs: RunId,
}

/// A list of freed extents that nobody takes from.
#[derive(Debug, Clone, Copy, Default)]
struct Noted {
    commit: u64,
    part: u32,
    blocks: u64,
}

impl Noted {
    fn key(&self) -> (u64, u32) {
        (self.commit, self.part)
    }
}

/// What is kept.
pub struct Kept<'m> {
    keeping: Option<Keeping>,
    /// In the order of their keys.
    lists: &'m mut [Noted],
    len: usize,
    /// On all of them.
    blocks: u64,
    /// It was given up.
    is_lost: bool,
    /// Where the first list stood that was noted and isn't any more.
    released: Option<FreedKey>,
}

impl<'m> Kept<'m> {
    pub(super) fn carve(arena: &mut Arena<'m>) -> Result<Kept<'m>, ArenaFull> {
        Ok(Kept {
            keeping: None,
            lists: arena.slice(LISTS_MAX, |_| Noted::default())?,
            len: 0,
            blocks: 0,
            is_lost: false,
            released: None,
        })
    }

    /// Forgets everything: the term is over.
    pub(super) fn reset(&mut self) {
        (self.keeping, self.len, self.blocks) = (None, 0, 0);
        (self.is_lost, self.released) = (false, None);
    }

    /// Readers have come, gone, or said what they read.
    pub(super) fn keep(&mut self, keeping: Option<Keeping>) {
        self.keeping = keeping;
        let since = keeping.map_or(u64::MAX, |keeping| keeping.since.0);
        let over = self.noted().partition_point(|list| list.commit <= since);
        if let Some(first) = self.noted()[..over].first().copied() {
            let first = FreedKey { commit: first.commit.into(), part: first.part.into() };
            // What was released before and not asked for stands in front of it.
            self.released.get_or_insert(first);
        }
        self.lists.copy_within(over..self.len, 0);
        self.len -= over;
        self.blocks = self.noted().iter().map(|list| list.blocks).sum();
    }

    /// Keeps nothing any more, although it is read.
    pub(crate) fn give_up(&mut self) {
        if self.keeping.is_some() {
            self.keep(None);
            self.is_lost = true;
        }
    }

    /// Whether it was given up since it was asked last: no reader can rely on anything.
    pub(crate) fn take_lost(&mut self) -> bool {
        core::mem::take(&mut self.is_lost)
    }

    /// The first of the lists that are not noted any more since it was asked last.
    pub(crate) fn take_released(&mut self) -> Option<FreedKey> {
        self.released.take()
    }

    /// Nodes of versions up to this one are kept if this commit frees them; 0: none.
    #[must_use]
    pub(super) fn version(&self, commit: CommitNo) -> u64 {
        self.behind(commit).map_or(0, |keeping| keeping.upto.0)
    }

    /// Whether this commit's list of what was made of these runs is to be noted.
    #[must_use]
    pub(crate) fn has_any(&self, commit: CommitNo, mut runs: impl Iterator<Item = RunId>) -> bool {
        self.behind(commit).is_some_and(|keeping| runs.any(|run| run < keeping.runs))
    }

    /// What is kept of that which this commit frees.
    fn behind(&self, commit: CommitNo) -> Option<Keeping> {
        self.keeping.filter(|keeping| keeping.since < commit && !is_active(Mutant::PinIgnored))
    }

    /// Blocks on the lists that are noted.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Whether another list could not be noted.
    #[must_use]
    pub(super) fn is_full(&self) -> bool {
        self.len == self.lists.len()
    }

    /// Nobody takes from this list, the last there is.
    pub(crate) fn note(&mut self, key: &FreedKey, extents: &[Extent]) {
        if self.keeping.is_none() {
            return;
        }
        if self.is_full() {
            return self.give_up();
        }
        let blocks = extents.iter().map(Extent::len).sum();
        let list = Noted { commit: key.commit.get(), part: key.part.get(), blocks };
        assert!(self.noted().last().is_none_or(|last| last.key() < list.key()), "lists count up");
        self.lists[self.len] = list;
        self.len += 1;
        self.blocks += blocks;
    }

    /// Whether nobody takes from this list.
    #[must_use]
    pub(crate) fn has(&self, key: &FreedKey) -> bool {
        let key = (key.commit.get(), key.part.get());
        self.noted().binary_search_by_key(&key, Noted::key).is_ok()
    }

    fn noted(&self) -> &[Noted] {
        &self.lists[..self.len]
    }
}
