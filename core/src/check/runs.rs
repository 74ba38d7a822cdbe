//! The runs of the manifest, in memory: what the tree says is read once, while its nodes are sure
//! to be there.
//!
//! # Invariants
//!
//! * Runs stand in the order of their keys in the manifest: by level, then least key, then order.
//! * Memory is bounded by [`capacity`]; runs beyond it are counted and not kept.
//!
//! What this module deliberately doesn't know: what is in the runs.

use crate::arena::{Arena, ArenaFull};
use crate::format::BlockNo;
use crate::format::key::KeyBytes;
use crate::format::records::{ManifestEntry, ManifestKey};
use crate::format::run::RunBlock;

/// Runs that memory is carved for on a volume of so many blocks: four times as many as commits wait
/// for, and an eighth of the volume in segments.
pub(super) const fn capacity(blocks: u64) -> u32 {
    let most = 4096 + blocks / 2048;
    let fit = blocks / 3;
    let least = if most < fit { most } else { fit };
    if least > 1 << 24 { 1 << 24 } else { least as u32 }
}

/// A run, as the manifest has it.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) key: ManifestKey,
    pub(super) entry: ManifestEntry,
    /// The leaf of the manifest it stands in.
    pub(super) leaf: BlockNo,
}

impl Run {
    pub(super) fn block(&self, index: u32) -> RunBlock {
        let blkno = self.entry.extent().start().plus(index.into());
        RunBlock { blkno, run: self.entry.run(), index }
    }

    pub(super) fn first(&self) -> KeyBytes {
        self.key.first
    }

    pub(super) fn last(&self) -> KeyBytes {
        self.entry.range().map_or(self.key.first, |(_, last)| last)
    }

    /// Runs of which this is the same don't overlap.
    fn peers(&self) -> (u8, u64) {
        let is_level_0 = self.key.level == 0;
        (self.key.level, if is_level_0 { self.key.order.get() } else { 0 })
    }

    /// What precedes is newer, of items with one key.
    pub(super) fn age(&self) -> (u8, u64) {
        (self.key.level, !self.key.order.get())
    }
}

/// The table.
pub(super) struct Runs<'m> {
    runs: &'m mut [Option<Run>],
    /// Numbers of runs, to be sorted.
    scratch: &'m mut [u32],
    len: usize,
    is_full: bool,
}

/// What two runs can have wrong with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clash {
    /// They overlap though nothing says which is newer.
    Overlap,
    /// They have one number.
    Number,
}

impl<'m> Runs<'m> {
    pub(super) fn carve(arena: &mut Arena<'m>, blocks: u64) -> Result<Runs<'m>, ArenaFull> {
        Ok(Runs {
            runs: arena.slice(capacity(blocks), |_| None)?,
            scratch: arena.slice(capacity(blocks), |_| 0)?,
            len: 0,
            is_full: false,
        })
    }

    pub(super) fn clear(&mut self) {
        (self.len, self.is_full) = (0, false);
    }

    /// Keeps a run, if there is room.
    pub(super) fn push(&mut self, run: Run) {
        match self.runs.get_mut(self.len) {
            Some(place) => {
                *place = Some(run);
                self.scratch[self.len] = self.len as u32;
                self.len += 1;
            }
            None => self.is_full = true,
        }
    }

    /// Whether there are more than were kept.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, at: usize) -> Option<&Run> {
        self.runs[..self.len].get(at)?.as_ref()
    }

    fn sorted(&self, at: usize) -> Option<&Run> {
        self.get(*self.scratch[..self.len].get(at)? as usize)
    }

    /// Gets ready to be asked for runs that overlap.
    pub(super) fn sort_by_age(&mut self) {
        let (runs, scratch) = (&self.runs, &mut self.scratch[..self.len]);
        let place = |at: &u32| runs[*at as usize].as_ref().map(|run| (run.peers(), run.first()));
        scratch.sort_unstable_by_key(place);
    }

    /// Gets ready to be asked for runs of one number.
    pub(super) fn sort_by_number(&mut self) {
        let (runs, scratch) = (&self.runs, &mut self.scratch[..self.len]);
        let place = |at: &u32| runs[*at as usize].as_ref().map(|run| run.entry.run());
        scratch.sort_unstable_by_key(place);
    }

    /// What the run at this place of the order and the one before it have wrong.
    pub(super) fn clash(&self, at: usize, clash: Clash) -> Option<&Run> {
        let (before, run) = (self.sorted(at.checked_sub(1)?)?, self.sorted(at)?);
        let is_so = match clash {
            Clash::Overlap => before.peers() == run.peers() && before.last() >= run.first(),
            Clash::Number => before.entry.run() == run.entry.run(),
        };
        is_so.then_some(run)
    }
}
