//! What the items of a volume must have in common: a pass over the newest of each key.
//!
//! ```text
//!   Gather --------> Climb --------> Peel --------> Locate -------> done
//!   all items, by    directories     differences    their items
//!   inode            one by one      one by one     are looked up
//!                                       |                            ^
//!                                       +------ there are none ------+
//! ```
//!
//! # Invariants
//!
//! * Runs have been checked, and all their items could be read.
//! * Items are gone through in the order of their keys: first the indices, then inode by inode.
//!
//! What this module deliberately doesn't know: what the items of one inode must have in common.

use super::clients::Clients;
use super::differences::{Difference, Differences, Element, Pair};
use super::directories::Directories;
use super::finding::{Counts, Holder, Id, Limit, Log, Wrong};
use super::inode::{InodeCheck, ROOT};
use super::merge::{At, Merge, Next as Step};
use super::records::Records;
use super::runs::Runs;
use crate::arena::{Arena, ArenaFull};
use crate::block::{Cache, Pins};
use crate::error::Stop;
use crate::format::key::{ItemKey, Key, KeyBytes, NameSecret};
use crate::format::root::Extent;
use crate::format::run::{Items as ItemBlock, Value};
use crate::format::super_block::Super;
use crate::format::{BlockNo, Ino};
use crate::node::More;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Gather,
    /// Up from the directory of this place.
    Climb(usize),
    Peel,
    /// The item of the difference of this number is looked for.
    Locate(usize),
    Done,
}

/// What items are held against, and what comes of that.
pub(super) struct Ground<'a, 'm> {
    pub(super) volume_blocks: u64,
    pub(super) runs: &'a Runs<'m>,
    pub(super) clients: &'a mut Clients<'m>,
    pub(super) records: &'a mut Records,
    pub(super) counts: &'a mut Counts,
    pub(super) log: &'a mut Log,
}

pub(super) struct Items<'m> {
    phase: Phase,
    frames: u32,
    merge: Merge<'m>,
    inode: InodeCheck,
    has_root: bool,
    differences: Differences<'m>,
    directories: Directories<'m>,
    /// The last item that was looked up.
    met: Option<(KeyBytes, BlockNo)>,
}

impl<'m> Items<'m> {
    pub(super) fn carve(arena: &mut Arena<'m>, volume: &Super) -> Result<Items<'m>, ArenaFull> {
        let name_key = volume.fields().name_key;
        Ok(Items {
            phase: Phase::Done,
            frames: 0,
            merge: Merge::carve(arena, volume.blocks())?,
            inode: InodeCheck::new(NameSecret(name_key)),
            has_root: false,
            differences: Differences::carve(arena, &name_key)?,
            directories: Directories::carve(arena, volume.blocks())?,
            met: None,
        })
    }

    /// Starts over: with the root's next inode, these runs, and a cache of so many frames.
    pub(super) fn begin(&mut self, next_ino: u64, runs: &Runs<'_>, frames: u32) {
        (self.phase, self.frames, self.has_root) = (Phase::Gather, frames, false);
        self.merge.begin(runs, frames);
        self.inode.begin(next_ino);
        self.differences.clear();
        self.directories.clear();
    }

    /// Goes on: by an item, a directory, or a look at all differences.
    pub(super) fn step(
        &mut self,
        ground: &mut Ground<'_, '_>,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<More, Stop> {
        match self.phase {
            Phase::Gather => match self.merge.next(ground.runs, cache, pins)? {
                Step::Item(at) => self.gather(&at, ground, cache),
                Step::Passed => {}
                Step::End => self.end_gather(ground),
            },
            Phase::Climb(at) => self.climb(at, ground),
            Phase::Peel => self.peel(ground),
            Phase::Locate(at) => match self.differences.get(at) {
                Some(found) => self.locate(at, &found, ground, cache, pins)?,
                None => self.phase = Phase::Done,
            },
            Phase::Done => {}
        }
        Ok(if self.phase == Phase::Done { More::No } else { More::Yes })
    }

    fn gather(&mut self, at: &At, ground: &mut Ground<'_, '_>, cache: &Cache<'_>) {
        let Value::Bytes(value) = ItemBlock::opened(cache.block(at.frame)).get(at.item).1 else {
            return;
        };
        ground.counts.items_newest += 1;
        let key = Key::from(at.key);
        // What is no item's key was told with its block.
        let Ok(item) = ItemKey::parse(&key) else { return };
        let index = match item {
            ItemKey::MetaSeq { seq, ino } => Some((Pair::Meta, [seq.0, ino.0, 0])),
            ItemKey::DataSeq { seq, ino } => Some((Pair::Data, [seq.0, ino.0, 0])),
            ItemKey::Orphan(ino) => Some((Pair::Orphan, [ino.0, 0, 0])),
            ItemKey::Inode(_)
            | ItemKey::Xattr { .. }
            | ItemKey::Dirent { .. }
            | ItemKey::Readdir { .. }
            | ItemKey::Backref { .. }
            | ItemKey::Symlink { .. }
            | ItemKey::Extent { .. } => None,
        };
        if let Some((pair, at)) = index {
            self.differences.put(&Element { pair, at, digest: 0 }, true);
            return;
        }
        let (ino, place) = (Ino(key.first), (at.blkno, key));
        if self.inode.ino() != ino {
            self.end_inode(ground);
            self.inode.enter(ino, place, ground.log);
            if ground.clients.is_ino_lent(ino) {
                ground.log.put_item(Id::Number, place, Wrong::MISMATCH);
            }
        }
        let (log, differences) = (&mut *ground.log, &mut self.differences);
        let extent = self.inode.take(&item, value, place, log, differences);
        // One that lies outside was told with its block.
        if let Some(extent) = extent.filter(|extent| extent.is_inside(ground.volume_blocks)) {
            ground.records.claim(extent, Holder::Files, Some(place), ground.counts);
        }
    }

    fn end_inode(&mut self, ground: &mut Ground<'_, '_>) {
        let ino = self.inode.ino();
        let Some(summary) = self.inode.end(ground.log) else { return };
        self.has_root |= ino == ROOT;
        ground.counts.inodes += 1;
        if summary.is_directory {
            ground.counts.directories += 1;
            let parent = summary.parent.unwrap_or(Ino(0));
            self.directories.push(ino, parent, self.inode.place().0);
        }
    }

    fn end_gather(&mut self, ground: &mut Ground<'_, '_>) {
        self.end_inode(ground);
        if !self.has_root {
            let place = (BlockNo(0), Key::inode(ROOT));
            ground.log.put_item(Id::RootDirectory, place, Wrong::MISMATCH);
        }
        let is_full = self.directories.is_full();
        if is_full {
            ground.log.limit = Some(Limit::Directories);
        }
        self.phase = if is_full { Phase::Peel } else { Phase::Climb(0) };
    }

    fn climb(&mut self, at: usize, ground: &mut Ground<'_, '_>) {
        if at == self.directories.len() {
            self.phase = Phase::Peel;
            return;
        }
        if let Some((ino, blkno)) = self.directories.climb(at) {
            ground.log.put_item(Id::DirLoop, (blkno, Key::inode(ino)), Wrong::MISMATCH);
        }
        self.phase = Phase::Climb(at + 1);
    }

    fn peel(&mut self, ground: &mut Ground<'_, '_>) {
        if self.differences.look() {
            return;
        }
        if self.differences.is_left() {
            ground.log.put(Id::Unnamed, Extent::new(BlockNo(0), 0), Wrong::MISMATCH);
        }
        self.differences.sort();
        self.merge.begin(ground.runs, self.frames);
        (self.phase, self.met) = (Phase::Locate(0), None);
    }

    /// Tells a difference when its item has been met.
    fn locate(
        &mut self,
        at: usize,
        found: &Difference,
        ground: &mut Ground<'_, '_>,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(), Stop> {
        let met = match self.met {
            // Two differences may be told at one item.
            Some((key, blkno)) if key >= found.key => Some((key, blkno)),
            Some(_) | None => {
                let met = match self.merge.next(ground.runs, cache, pins)? {
                    Step::Item(item) => Some((item.key, item.blkno)),
                    Step::Passed => return Ok(()),
                    Step::End => None,
                };
                self.met = met.or(self.met);
                if met.is_some_and(|(key, _)| key < found.key) {
                    return Ok(());
                }
                met
            }
        };
        let blkno = met.filter(|(key, _)| *key == found.key).map_or(BlockNo(0), |(_, at)| at);
        self.phase = Phase::Locate(at + 1);
        if !found.is_told {
            let id = match found.element.pair {
                Pair::Entry => Id::DirentTwin,
                Pair::Link => Id::Backref,
                Pair::Meta => Id::MetaIndex,
                Pair::Data => Id::DataIndex,
                Pair::Orphan => Id::Orphan,
            };
            ground.log.put_item(id, (blkno, found.key.into()), Wrong::MISMATCH);
        }
        Ok(())
    }
}
