//! Reading ahead: what nearly every read will need, fetched once, when the first root is known.
//!
//! ```text
//!            begin
//!   Nothing -------> Upper: the manifest's root and its children
//!      ^               |
//!      |               v
//!      +---------- Runs: from the newest level down, leaves of the manifest and filters,
//!   the budget     but those of the deepest level
//!   is spent, or
//!   something failed
//! ```
//!
//! A mount that knows nothing would ask the filter of each run of level 0 for the first key it
//! reads, one after the other or not. This asks for them before anybody waits.
//!
//! # Invariants
//!
//! * It reads one block at a time and gives way: it has no frame while others run short of them,
//!   and a read of somebody else waits for one of its reads at the most.
//! * It is worth a bounded number of blocks. Whatever fails ends it: who needs that block will be
//!   told.
//!
//! What this module deliberately doesn't know: whether anybody will read.

use crate::arena::{Arena, ArenaFull};
use crate::block::{self, Cache, Pins, RequestId};
use crate::error::{Stop, Wait};
use crate::format::block::Magic;
use crate::format::key::{Key, Zone};
use crate::format::records::ManifestKey;
use crate::lsm::manifest::{self, Manifest, Rank};
use crate::node::More;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Nothing,
    /// This child of the manifest's root comes next.
    Upper(usize),
    /// This filter block of the first run from this key on comes next.
    Runs(ManifestKey, u16),
}

/// See the module.
pub(super) struct Ahead<'m> {
    id: RequestId,
    pins: Pins<'m>,
    phase: Phase,
    asleep: bool,
    /// Blocks that may be read.
    budget: u32,
    /// Blocks that were.
    spent: u32,
}

impl<'m> Ahead<'m> {
    /// Carves what is this request to the cache, and may read so many blocks.
    pub(super) fn carve(
        arena: &mut Arena<'m>,
        index: u32,
        cache: &block::Limits,
        budget: u32,
    ) -> Result<Ahead<'m>, ArenaFull> {
        let id = RequestId { index, generation: 0 };
        let pins = Pins::carve(arena, cache)?;
        Ok(Ahead { id, pins, phase: Phase::Nothing, asleep: false, budget, spent: 0 })
    }

    /// The first root is known.
    pub(super) fn begin(&mut self) {
        if self.budget > 0 {
            self.pins.begin(self.id);
            self.phase = Phase::Upper(0);
        }
    }

    /// What it waits for is there.
    pub(super) fn wake(&mut self) {
        self.asleep = false;
    }

    /// Goes on, by `budget` runs or blocks at the most.
    pub(super) fn step(&mut self, budget: u32, manifest: &Manifest, cache: &mut Cache<'m>) -> More {
        for _ in 0..budget {
            if self.asleep || self.phase == Phase::Nothing {
                return More::No;
            }
            if self.spent == self.budget {
                self.phase = Phase::Nothing;
                cache.release(&mut self.pins);
                return More::No;
            }
            match self.advance(manifest, cache) {
                Ok(next) => {
                    self.phase = next;
                    self.pins.drop_to(0);
                    cache.drop_leftovers(&mut self.pins);
                }
                Err(Stop::Wait(Wait::Again)) => {}
                Err(Stop::Wait(Wait::Block(_))) => {
                    (self.asleep, self.spent) = (true, self.spent + 1);
                }
                Err(Stop::Wait(Wait::Frame | Wait::Commit) | Stop::Fail(_)) => {
                    self.phase = Phase::Nothing;
                }
            }
            if self.phase == Phase::Nothing {
                cache.release(&mut self.pins);
            }
        }
        More::Yes
    }

    /// Obtains one more block, and says what comes then.
    fn advance(&mut self, manifest: &Manifest, cache: &mut Cache<'m>) -> Result<Phase, Stop> {
        match self.phase {
            Phase::Nothing => Ok(Phase::Nothing),
            Phase::Upper(child) if manifest.has_upper(child, cache, &mut self.pins)? => {
                Ok(Phase::Upper(child + 1))
            }
            Phase::Upper(_) => {
                let start = Rank { order: 0, first: Key::MIN.into() };
                Ok(Phase::Runs(manifest::key(0, &start), 0))
            }
            Phase::Runs(from, filter) => self.next_filter(&from, filter, manifest, cache),
        }
    }

    fn next_filter(
        &mut self,
        from: &ManifestKey,
        filter: u16,
        manifest: &Manifest,
        cache: &mut Cache<'m>,
    ) -> Result<Phase, Stop> {
        let deepest = manifest.deepest(cache, &mut self.pins)?;
        self.pins.drop_to(0);
        let Some(run) = manifest.next(from, cache, &mut self.pins)? else {
            return Ok(Phase::Nothing);
        };
        if run.level > 0 && Some(run.level) == deepest {
            return Ok(Phase::Nothing);
        }
        // Indices are scanned, which asks no filter.
        let is_asked = !run.entry.zones[Zone::Fs as usize - 1].is_empty();
        // It may be another than the one whose filters came before this, if the root has changed.
        if is_asked && filter < run.place().filter_blocks() {
            cache.get_run(&run.place().filter(filter), Magic::RunFilter, &mut self.pins)?;
            return Ok(Phase::Runs(run.key(), filter + 1));
        }
        Ok(manifest::key_after(&run.key()).map_or(Phase::Nothing, |next| Phase::Runs(next, 0)))
    }
}
