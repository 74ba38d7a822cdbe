//! The reader of a mount: fills the item cache from the runs on the device.
//!
//! What this module deliberately doesn't know: locks, requests, and the server.

use super::items::{ItemCache, Key, Range};
use crate::arena::{Arena, ArenaFull};
use crate::error::{Corruption, Error};
use crate::format::super_block::Super;
use crate::format::wire::message::ManifestRoot;
use crate::lsm::window::WindowLimits;
use crate::node::More;
use outrider_hal::{BlockRequest, Completion};

/// The size of a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaderLimits {
    /// Fills at once. More than the item cache has are of no use.
    pub fills: u32,
    /// Blocks of runs and of the manifest held in memory.
    pub frames: u32,
    /// What one fill brings at the most.
    pub window: WindowLimits,
}

/// Nothing can be begun now. Ask again after the next event, or the next root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

/// What the node is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReaderEvent {
    /// All wants that were accepted for keys of this range are at their end: run what waits for
    /// them again. It finds its key known, or asks for it again.
    Filled {
        /// The least range that has the keys of those wants.
        range: Range,
    },
    /// The same, but this one key can't be read: what waits for it has failed.
    Failed {
        /// The key.
        at: Key,
        /// The least range that has the keys of those wants, `at` among them.
        range: Range,
        /// Why.
        error: Error,
    },
    /// Every root known is out of date: ask the server for its root, and hand over the answer with
    /// [`Reader::answer_root`], however late it comes. Told once for each answer.
    RootWanted,
    /// The search has ended: the key of the first item, if there is one.
    Searched(Result<Option<Key>, Error>),
}

/// See the module.
pub struct Reader<'m> {
    events: &'m mut [ReaderEvent],
}

impl<'m> Reader<'m> {
    /// Tags of its block requests are below this.
    pub const TAGS: u64 = crate::block::Cache::TAGS;

    /// Carves a reader of this volume, which knows of no root. The limits must be valid.
    pub fn carve(
        arena: &mut Arena<'m>,
        limits: &ReaderLimits,
        volume: &Super,
    ) -> Result<Reader<'m>, ArenaFull> {
        let _ = (limits, volume);
        Ok(Reader { events: arena.slice(0, |_| ReaderEvent::RootWanted)? })
    }

    /// Takes note of a durable root. Older ones than the newest known are ignored.
    ///
    /// Call it with each root that is told to the item cache, before the next [`want`](Self::want).
    /// Fails if there can be no such root.
    pub fn set_root(&mut self, root: &ManifestRoot) -> Result<(), Corruption> {
        let _ = root;
        todo!()
    }

    /// Takes note of the root that a server has named *after* it was asked, because of
    /// [`ReaderEvent::RootWanted`]. If that is the newest one known, what can't be read under it is
    /// broken.
    pub fn answer_root(&mut self, root: &ManifestRoot) -> Result<(), Corruption> {
        let _ = root;
        todo!()
    }

    /// Begins to bring the missing key `at`, and what else of `range` comes with it; `range` is
    /// unknown, and under a lock that lets read. Accepted also if a running fill may bring it.
    ///
    /// Each want that is accepted is answered by one [`ReaderEvent::Filled`] or
    /// [`ReaderEvent::Failed`] whose range has the key; all wants of one key by the same.
    pub fn want(&mut self, items: &mut ItemCache<'_>, at: Key, range: Range) -> Result<(), Busy> {
        let _ = (items, at, range);
        todo!()
    }

    /// Begins to look for the first item in a range, beside the item cache, as of the newest root.
    /// One at a time; answered by [`ReaderEvent::Searched`].
    pub fn search(&mut self, range: Range) -> Result<(), Busy> {
        let _ = range;
        todo!()
    }

    /// Goes on with all that can: looks at `budget` runs, manifest entries or handfuls of items at
    /// the most.
    pub fn step(&mut self, items: &mut ItemCache<'_>, budget: u32) -> More {
        let _ = (items, budget);
        todo!()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ReaderEvent> {
        self.events.first().copied()
    }

    /// The next read to submit. Its completion must be given to
    /// [`handle_completion`](Self::handle_completion).
    pub fn poll_request(&mut self) -> Option<BlockRequest<'m>> {
        todo!()
    }

    /// Takes note of a finished read.
    pub fn handle_completion(&mut self, completion: Completion<'m>) {
        let _ = completion;
        todo!()
    }

    /// Reads that the device has not given back.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        todo!()
    }
}
