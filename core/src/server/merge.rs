//! Merging by the server itself: what no client can do for it.
//!
//! ```text
//!            a choice           enough, durable         all out             made        durable
//!   Resting ---------> Taking <-----------------> Merging ----> Changing --------> Ending ----+
//!      ^ ^                |     more space wanted     |             |                         |
//!      | |                v     no space, an error    v             |                         |
//!      | +------------ Giving <-----------------------+-------------+                         |
//!      |     durable                                                                          |
//!      +--------------------------------------------------------------------------------------+
//! ```
//!
//! # Invariants
//!
//! * At most one merge of the server's own is under way. What is chosen, and for whom, is decided
//!   in [`compact`](super::compact), which knows what is merged elsewhere.
//! * Space is *quarantined* for this very leader's round from the commit that takes it to the one
//!   that names what was made of it, and it is written only in between: the first of these is
//!   confirmed before the first write is submitted, the last write has completed before the second
//!   is joined, and its flush comes before its root. So a merge that ends anywhere leaves nothing
//!   that must be looked for: a successor finds its space where it finds all that this leader may
//!   still be writing, and frees it by the same proof.
//! * Run numbers are taken with the space. Those that aren't used stay unused.
//! * The change is one plan: runs out, runs in, and all space that is left over, or was the
//!   inputs', freed.
//! * A turn merges a bounded number of items. A merge waits for the device and for commits, never
//!   for a client.
//!
//! A merge that fails gives its space back and is tried again after a pause, and if it was for
//! space, with as few runs as can be.
//!
//! What this module deliberately doesn't know: what to merge, and the device.

use super::holder::{Holder, Taken, blocks_for, end};
use super::limits::ServerLimits;
use super::requests::{Context, Halt, Progress};
use crate::arena::{Arena, ArenaFull};
use crate::error::{Error, Stop};
use crate::format::Block;
use crate::format::records::LIST_MAX;
use crate::format::root::Extent;
use crate::format::super_block::Super;
use crate::lsm::build::{BuildSpace, Sealed};
use crate::lsm::choose::Choice;
use crate::lsm::manifest::{Change, Run};
use crate::lsm::merge::{Merge, POOL_MAX, Progress as Merged};
use crate::mutant::{Mutant, is_active};
use heapless::{Deque, Vec};
use outrider_hal::{BlockOp, BlockRequest, Completion, Tag};

/// Items merged without looking at anything else.
const ITEMS_PER_RUN: u32 = 128;
/// Runs of the job in one step of the server.
const RUNS_PER_STEP: u32 = 16;

const _: () = assert!(POOL_MAX <= u32::BITS as usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Resting,
    Taking,
    Merging,
    Changing,
    Giving,
    /// What is to be done is done, and becomes durable.
    Ending,
    /// What was taken can't be given back. No merge follows in this term; a later one frees it.
    Stuck,
}

/// What the job waits for that the cache doesn't know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    Not,
    /// The next step of the server.
    Step,
    /// A write.
    Write,
}

/// How far a merge of the server's own is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It goes on.
    GoesOn,
    /// It is over, and was made.
    Made,
    /// It was given up, for this reason.
    GivenUp(Error),
}

/// The job. See the module.
pub(super) struct Merger<'m> {
    run_blocks: u64,
    merge: Option<&'m mut Merge<'m>>,
    stage: Stage,
    pause: Pause,
    /// Its place among the requests.
    place: Option<usize>,
    runs_left: u32,
    /// What is quarantined for it.
    taken: Taken,
    /// Blocks to be written.
    writes: Deque<Sealed<'m>, POOL_MAX>,
    /// Which tags are with the device.
    tags: u32,
    /// A write that failed.
    write_failed: Option<Error>,
    /// Why it was given up.
    failed: Option<Error>,
    blocks: u64,
}

impl<'m> Merger<'m> {
    /// Tags of its requests, counted from where the server lets them begin.
    pub(super) const TAGS: u64 = POOL_MAX as u64;

    pub(super) fn carve(
        arena: &mut Arena<'m>,
        limits: &ServerLimits,
        volume: &Super,
    ) -> Result<Merger<'m>, ArenaFull> {
        let mut space = Some(BuildSpace::carve(arena)?);
        let (of, key) = (volume.volume(), volume.fields().name_key);
        let made = arena.slice(1, |_| Merge::new(space.take().expect("one merge"), &of, &key))?;
        let mut merge = made.first_mut();
        for block in arena.slice(POOL_MAX as u32, |_| Block::ZERO)? {
            merge.as_deref_mut().expect("not measuring").give_block(block);
        }
        Ok(Merger {
            run_blocks: limits.run_blocks,
            merge,
            stage: Stage::Resting,
            pause: Pause::Not,
            place: None,
            runs_left: 0,
            taken: Taken::default(),
            writes: Deque::new(),
            tags: 0,
            write_failed: None,
            failed: None,
            blocks: 0,
        })
    }

    /// Blocks written since it was made.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Whether a merge can begin.
    pub(super) fn is_resting(&self) -> bool {
        self.stage == Stage::Resting && self.place.is_none()
    }

    /// The runs that it merges, those of the upper level first.
    pub(super) fn inputs(&self) -> &[Run] {
        match self.stage {
            Stage::Taking | Stage::Merging | Stage::Changing => {
                self.merge.as_deref().expect("carved").inputs()
            }
            Stage::Resting | Stage::Giving | Stage::Ending | Stage::Stuck => &[],
        }
    }

    /// Begins to merge what was chosen, in this place among the requests.
    pub(super) fn begin(&mut self, place: usize, choice: &Choice) {
        (self.stage, self.place, self.pause) = (Stage::Taking, Some(place), Pause::Not);
        (self.write_failed, self.failed) = (None, None);
        self.taken.wanted = blocks_for(choice);
        self.merge.as_deref_mut().expect("carved").begin(choice);
    }

    /// A step of the server begins: the place of the job, if it was waiting for that.
    pub(super) fn wake(&mut self) -> Option<usize> {
        self.runs_left = RUNS_PER_STEP;
        if self.pause != Pause::Step {
            return None;
        }
        self.pause = Pause::Not;
        self.place
    }

    /// Whether the job only waits for the next step.
    pub(super) fn wants_step(&self) -> bool {
        self.pause == Pause::Step
    }

    /// The term is over. What was taken stays where a successor finds it.
    pub(super) fn reset(&mut self) {
        self.abandon();
        (self.stage, self.pause, self.place) = (Stage::Resting, Pause::Not, None);
        if !is_active(Mutant::StaleTermMemory) {
            self.taken.begin(0);
        }
    }

    /// The next write to submit, its tag counted from this one.
    pub(super) fn poll_request(&mut self, base: Tag) -> Option<BlockRequest<'m>> {
        let Sealed { blkno, block } = self.writes.pop_front()?;
        let tag = self.tags.trailing_ones();
        self.tags |= 1 << tag;
        let tag = Tag(base.0 + u64::from(tag));
        Some(BlockRequest { tag, op: BlockOp::Write(blkno, block) })
    }

    /// Takes note of a write that has ended, which may be one of an earlier term.
    pub(super) fn handle_completion(&mut self, base: Tag, done: Completion<'m>) {
        self.tags &= !(1 << (done.tag.0 - base.0));
        let BlockOp::Write(blkno, block) = done.op else { unreachable!("it only writes") };
        self.merge.as_deref_mut().expect("carved").give_block(block);
        match done.result {
            Ok(()) => self.blocks += 1,
            Err(error) => self.write_failed = Some(Error::Io { blkno, error }),
        }
        if self.pause == Pause::Write {
            self.pause = Pause::Step;
        }
    }

    /// Whether it has just put what it made into the manifest.
    pub(super) fn has_changed(&self) -> bool {
        self.stage == Stage::Ending && self.failed.is_none()
    }

    /// The commit that the job has joined is confirmed, or it joined none.
    pub(super) fn on_durable(&mut self) -> Outcome {
        match self.stage {
            Stage::Taking => {
                let merge = self.merge.as_deref_mut().expect("carved");
                for (run, extent) in self.taken.grants.iter().copied() {
                    merge.give_space(run, extent).expect("room was looked for");
                }
                self.taken.grants.clear();
                self.stage = Stage::Merging;
                return Outcome::GoesOn;
            }
            Stage::Ending | Stage::Giving => self.stage = Stage::Resting,
            Stage::Merging | Stage::Changing | Stage::Resting | Stage::Stuck => {}
        }
        self.place = None;
        self.failed.take().map_or(Outcome::Made, Outcome::GivenUp)
    }

    /// Does the next part. The job ends with [`Progress::Known`].
    pub(super) fn run(&mut self, cx: &mut Context<'_, '_>) -> Result<Progress, Halt> {
        let advanced = match self.stage {
            Stage::Resting | Stage::Ending | Stage::Stuck => Ok(Progress::Known),
            Stage::Taking => self.take(cx),
            Stage::Merging => self.merge(cx),
            Stage::Changing => self.change(cx),
            Stage::Giving => self.give_back(cx),
        };
        match advanced {
            Ok(progress) => Ok(progress),
            Err(Stop::Wait(wait)) => Err(Stop::Wait(wait).into()),
            Err(Stop::Fail(error)) => Ok(self.give_up(error)),
        }
    }

    fn give_up(&mut self, error: Error) -> Progress {
        if self.stage == Stage::Giving {
            self.stage = Stage::Stuck;
            return Progress::Known;
        }
        (self.stage, self.failed) = (Stage::Giving, Some(error));
        self.abandon();
        Progress::More
    }

    /// Forgets what was merged. Blocks that the device has come back when it is done.
    fn abandon(&mut self) {
        self.taken.grants.clear();
        let Some(merge) = self.merge.as_deref_mut() else { return };
        merge.abandon();
        while let Some(sealed) = self.writes.pop_front() {
            merge.give_block(sealed.block);
        }
    }

    fn is_writing(&self) -> bool {
        self.tags != 0 || !self.writes.is_empty()
    }

    fn wait_for_write(&mut self) -> Progress {
        self.pause = Pause::Write;
        Progress::Waits
    }

    fn take(&mut self, cx: &mut Context<'_, '_>) -> Result<Progress, Stop> {
        let inputs = self.merge.as_deref().expect("carved").inputs().len();
        let holder = Holder::Leader(cx.store.term().round());
        let enough = self.taken.take(holder, inputs, self.run_blocks, cx)?;
        Ok(if enough { Progress::Done } else { Progress::More })
    }

    fn merge(&mut self, cx: &mut Context<'_, '_>) -> Result<Progress, Stop> {
        if let Some(error) = self.write_failed {
            return Err(error.into());
        }
        let merge = self.merge.as_deref_mut().expect("carved");
        match merge.step(ITEMS_PER_RUN, &mut cx.store.cache, cx.pins)? {
            Merged::Step => {
                self.runs_left = self.runs_left.saturating_sub(1);
                if self.runs_left > 0 {
                    return Ok(Progress::More);
                }
                self.pause = Pause::Step;
                Ok(Progress::Waits)
            }
            Merged::Write => {
                let sealed = merge.poll_write().expect("it said so");
                self.writes.push_back(sealed).expect("as many as there is memory for");
                Ok(Progress::More)
            }
            Merged::Block if self.is_writing() => Ok(self.wait_for_write()),
            Merged::Block => unreachable!("a merge gets on with the memory it has"),
            Merged::Space => {
                (self.stage, self.taken.wanted) = (Stage::Taking, self.run_blocks);
                Ok(Progress::More)
            }
            Merged::Change if self.is_writing() => Ok(self.wait_for_write()),
            Merged::Change => {
                self.stage = Stage::Changing;
                Ok(Progress::More)
            }
        }
    }

    /// Puts what was made in the place of what it was made of.
    fn change(&mut self, cx: &mut Context<'_, '_>) -> Result<Progress, Stop> {
        if let Some(error) = self.write_failed {
            return Err(error.into());
        }
        let merge = self.merge.as_deref().expect("carved");
        let mut change = merge.change();
        let inputs = change.remove.iter().map(|run| run.entry.extent());
        let mut left: Vec<Extent, LIST_MAX> = inputs.chain(merge.unused()).collect();
        left.sort_unstable_by_key(|extent| extent.start());
        if is_active(Mutant::InputsFreedEarly) {
            change = Change { remove: &[], add: &[] };
        }
        end(&change, Holder::Leader(cx.store.term().round()), &left, cx)?;
        self.taken.begin(0);
        self.stage = Stage::Ending;
        Ok(Progress::Done)
    }

    /// Gives back what was taken, once nothing of it is being written.
    fn give_back(&mut self, cx: &mut Context<'_, '_>) -> Result<Progress, Stop> {
        if self.is_writing() {
            return Ok(self.wait_for_write());
        }
        if self.taken.extents.is_empty() {
            self.stage = Stage::Resting;
            return Ok(Progress::Known);
        }
        let nothing = Change { remove: &[], add: &[] };
        end(&nothing, Holder::Leader(cx.store.term().round()), &self.taken.extents, cx)?;
        self.taken.begin(0);
        self.stage = Stage::Ending;
        Ok(Progress::Done)
    }
}
