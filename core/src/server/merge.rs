//! Merging: the server keeps the log-structured tree in shape by itself.
//!
//! ```text
//!             is due             a choice           enough, durable         all out
//!   Resting ----------> Choosing --------> Taking <-----------------> Merging --------> Changing
//!     ^ ^ ^                 |  |             |     more space wanted     |                  |
//!     | | |    nothing      |  | one moves   |        no space, an error |         durable  |
//!     | | +-----------------+  v             v                           v                  |
//!     | |           durable  Moving        Giving <----------------------+                  |
//!     | +----------------------+             |                                              |
//!     +--------------------------------------+----------------------------------------------+
//!                                  durable
//! ```
//!
//! # Invariants
//!
//! * At most one merge is under way, and no other node merges. So no run is ever busy, and what has
//!   been chosen stays in the manifest until the merge itself takes it out.
//! * Only what a durable root has is chosen: of level 0 what was recorded before that root, of the
//!   others all, because a merge is over only when its change is durable.
//! * Space is *quarantined* for this very leader's round from the commit that takes it to the one
//!   that names what was made of it, and it is written only in between: the first of these is
//!   confirmed before the first write is submitted, the last write has completed before the second
//!   is joined, and its flush comes before its root. So a merge that ends anywhere leaves nothing
//!   that must be looked for: a successor finds its space where it finds all that this leader may
//!   still be writing, and frees it by the same proof.
//! * Run numbers are taken with the space. Those that aren't used stay unused.
//! * The change is one plan: runs out, runs in, and all space that is left over, or was the
//!   inputs', freed.
//! * A turn merges a bounded number of items, and nobody waits for a merge but the transactions
//!   that [`is_pressed`](Merger::is_pressed) holds back. A merge waits for the device and for
//!   commits, never for a client.
//!
//! A merge that fails gives its space back and is tried again after a pause, and if it was for
//! space, with as few runs as can be. While none is under way nobody is held back: level 0 grows,
//! reading takes longer, and nothing stands still.
//!
//! What this module deliberately doesn't know: what to merge, and the device.

use super::limits::ServerLimits;
use super::requests::{Context, Halt, Progress, find_from_cursor, part_at_cursor};
use crate::arena::{Arena, ArenaFull};
use crate::error::{Corruption, Error, Stop};
use crate::format::records::{FreedKey, LIST_MAX, OwnerKind, QuarantineKey};
use crate::format::root::{Extent, LEVELS};
use crate::format::run::SEGMENT_BLOCKS;
use crate::format::super_block::Super;
use crate::format::wire::message::RUNS_MAX;
use crate::format::{Block, RunId};
use crate::lsm::build::{BuildSpace, Sealed};
use crate::lsm::choose::{Choice, Chooser, Chosen, Field, Policy, move_down};
use crate::lsm::manifest::{CHANGE_MAX, Change, Manifest, Run};
use crate::lsm::merge::{Merge, POOL_MAX, Progress as Merged};
use crate::mutant::{Mutant, is_active};
use crate::txn::settle::FREE_MIN;
use core::time::Duration;
use heapless::{Deque, Vec};
use outrider_hal::{BlockOp, BlockRequest, Completion, Instant, Tag};
use zerocopy::IntoBytes;

/// Items merged without looking at anything else.
const ITEMS_PER_RUN: u32 = 128;
/// Runs of the job in one step of the server.
const RUNS_PER_STEP: u32 = 16;
/// Entries of the manifest looked at in one run.
const CHOOSER_STEPS: u32 = 16;
/// A shorter extent is of no use, if more is wanted.
const PIECE_MIN: u64 = 16;
/// A merge that failed is followed by another after this.
const RETRY: Duration = Duration::from_secs(5);
/// If there was nothing to choose, although some level has too many runs, this is the time to look
/// again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Lists of this part and later ones are those of merges; the ones before are of reserves.
const PART: u16 = 1 << 15;

const _: () = assert!(POOL_MAX <= u32::BITS as usize && CHANGE_MAX <= LIST_MAX);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Resting,
    Starting,
    Choosing,
    Moving,
    Taking,
    Merging,
    Changing,
    Giving,
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

/// How the last merge ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Well,
    Nothing,
    Badly,
}

/// What merges have done, for status and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MergeCounters {
    /// Merges, those that only moved a run counted.
    pub merges: u64,
    /// Of these, runs that were moved as they are.
    pub moves: u64,
    /// Merges that were given up.
    pub failures: u64,
    /// Blocks written.
    pub blocks: u64,
}

/// The job. See the module.
pub(super) struct Merger<'m> {
    policy: Policy,
    level_0_max: u64,
    run_blocks: u64,
    chooser: Option<&'m mut Chooser>,
    merge: Option<&'m mut Merge<'m>>,
    stage: Stage,
    pause: Pause,
    /// Its place among the requests.
    place: Option<usize>,
    runs_left: u32,
    /// What is quarantined for it, ascending.
    taken: Vec<Extent, CHANGE_MAX>,
    /// What of it the merge is to get, once that is durable.
    grants: Vec<(RunId, Extent), CHANGE_MAX>,
    /// Blocks that are still to be taken.
    wanted: u64,
    /// Blocks to be written.
    writes: Deque<Sealed<'m>, POOL_MAX>,
    /// Which tags are with the device.
    tags: u32,
    write_failed: Option<Error>,
    ended: Ended,
    not_before: Option<Instant>,
    /// The last one was short of space.
    is_cramped: bool,
    counters: MergeCounters,
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
            policy: limits.merging,
            level_0_max: limits.level_0_max,
            run_blocks: limits.run_blocks,
            chooser: arena.slice(1, |_| Chooser::new(limits.merging))?.first_mut(),
            merge,
            stage: Stage::Resting,
            pause: Pause::Not,
            place: None,
            runs_left: 0,
            taken: Vec::new(),
            grants: Vec::new(),
            wanted: 0,
            writes: Deque::new(),
            tags: 0,
            write_failed: None,
            ended: Ended::Well,
            not_before: None,
            is_cramped: false,
            counters: MergeCounters::default(),
        })
    }

    pub(super) fn counters(&self) -> MergeCounters {
        self.counters
    }

    /// Whether a merge should begin.
    pub(super) fn is_due(&mut self, now: Instant, level_runs: &[u64; LEVELS]) -> bool {
        self.not_before = self.not_before.filter(|at| *at > now);
        self.stage == Stage::Resting
            && self.place.is_none()
            && self.not_before.is_none()
            && self.policy.is_due(level_runs)
    }

    /// Whether a merge is under way.
    #[cfg(test)]
    pub(super) fn is_under_way(&self) -> bool {
        self.place.is_some()
    }

    /// When to look again whether a merge is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.place.is_none() && self.stage == Stage::Resting)
    }

    /// Whether transactions with runs are to wait: level 0 is far above its threshold, and merging
    /// goes on.
    pub(super) fn is_pressed(&self, level_runs: &[u64; LEVELS]) -> bool {
        let goes_on = self.place.is_some() || self.not_before.is_none();
        level_runs[0] >= self.level_0_max && goes_on && self.stage != Stage::Stuck
    }

    /// Begins a merge, in this place among the requests.
    pub(super) fn begin(&mut self, place: usize) {
        (self.stage, self.place, self.not_before) = (Stage::Starting, Some(place), None);
        (self.pause, self.ended) = (Pause::Not, Ended::Nothing);
        let policy = if self.is_cramped { self.policy.smallest() } else { self.policy };
        self.chooser.as_deref_mut().expect("carved").adopt(policy);
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
        (self.ended, self.not_before, self.is_cramped) = (Ended::Well, None, false);
        if !is_active(Mutant::StaleTermMemory) {
            self.taken.clear();
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
            Ok(()) => self.counters.blocks += 1,
            Err(error) => self.write_failed = Some(Error::Io { blkno, error }),
        }
        if self.pause == Pause::Write {
            self.pause = Pause::Step;
        }
    }

    /// The commit that the job has joined is confirmed, or it joined none. Whether it goes on.
    pub(super) fn on_durable(&mut self, now: Instant) -> bool {
        match self.stage {
            Stage::Taking => {
                let merge = self.merge.as_deref_mut().expect("carved");
                for (run, extent) in self.grants.iter().copied() {
                    merge.give_space(run, extent).expect("room was looked for");
                }
                self.grants.clear();
                self.stage = Stage::Merging;
                return true;
            }
            Stage::Moving | Stage::Changing | Stage::Giving => self.stage = Stage::Resting,
            Stage::Starting | Stage::Choosing | Stage::Merging | Stage::Resting | Stage::Stuck => {}
        }
        self.place = None;
        self.not_before = match self.ended {
            Ended::Well => None,
            Ended::Nothing => Some(now.plus(LOOK_AGAIN)),
            Ended::Badly => Some(now.plus(RETRY)),
        };
        false
    }

    /// Does the next part. The job ends with [`Progress::Known`].
    pub(super) fn run(&mut self, cx: &mut Context<'_, '_>) -> Result<Progress, Halt> {
        let advanced = match self.stage {
            Stage::Resting | Stage::Stuck => Ok(Progress::Known),
            Stage::Starting | Stage::Choosing => self.choose(cx),
            Stage::Moving => self.move_down(cx),
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
        self.counters.failures += 1;
        (self.stage, self.ended) = (Stage::Giving, Ended::Badly);
        self.is_cramped |= error == Error::NoSpace;
        self.abandon();
        Progress::More
    }

    /// Forgets what was merged. Blocks that the device has come back when it is done.
    fn abandon(&mut self) {
        self.grants.clear();
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

    fn choose(&mut self, cx: &mut Context<'_, '_>) -> Result<Progress, Stop> {
        let chooser = self.chooser.as_deref_mut().expect("carved");
        let durable = cx.store.root().map_or(0, |root| root.fields().next_seq.get());
        let (trees, cache) = (&cx.store.trees, &mut cx.store.cache);
        let field = Field {
            manifest: &Manifest::new(trees.manifest, cx.volume_blocks),
            level_runs: &trees.level_runs,
            busy: &[],
            merges: self.counters.merges,
            next_order: durable.saturating_mul(RUNS_MAX as u64),
        };
        if self.stage == Stage::Starting {
            chooser.begin(&field);
            self.stage = Stage::Choosing;
        }
        for _ in 0..CHOOSER_STEPS {
            match chooser.step(&field, cache, cx.pins)? {
                Chosen::Step => {}
                Chosen::Nothing => {
                    self.stage = Stage::Resting;
                    return Ok(Progress::Known);
                }
                Chosen::Choice => {
                    self.start();
                    return Ok(Progress::More);
                }
            }
        }
        Ok(Progress::More)
    }

    /// Goes on with what was chosen.
    fn start(&mut self) {
        let choice = self.chooser.as_deref().expect("carved").choice();
        self.stage = match choice.moved() {
            Some(_) => Stage::Moving,
            None => {
                self.wanted = blocks_for(choice);
                self.write_failed = None;
                self.merge.as_deref_mut().expect("carved").begin(choice);
                Stage::Taking
            }
        };
    }

    /// Moves a run down as it is.
    fn move_down(&mut self, cx: &mut Context<'_, '_>) -> Result<Progress, Stop> {
        let choice = self.chooser.as_deref().expect("carved").choice();
        let (from, to) = (choice.uppers[0], choice.moved().expect("it was to be moved"));
        let (from, to) = ([from], [to]);
        let change = move_down(&from, &to);
        let trees = &mut cx.store.trees;
        let (cache, pins) = (&mut cx.store.cache, &mut *cx.pins);
        let mut plan = cache.plan();
        change.plan(&trees.manifest, &mut plan, cache, pins)?;
        let mut update = cache.reserve(&plan, pins)?;
        change.apply(&mut trees.manifest, &mut trees.level_runs, &mut update, cache);
        self.ended = Ended::Well;
        self.counters.merges += 1;
        self.counters.moves += 1;
        Ok(Progress::Done)
    }

    /// Takes one extent, and a number for the run that it is for.
    fn take(&mut self, cx: &mut Context<'_, '_>) -> Result<Progress, Stop> {
        let merge = self.merge.as_deref().expect("carved");
        let round = cx.store.term().round();
        let trees = &mut cx.store.trees;
        let (cache, pins) = (&mut cx.store.cache, &mut *cx.pins);
        let room = CHANGE_MAX.saturating_sub(merge.inputs().len() + self.taken.len()) as u64;
        // Pieces of one size: the last would be too short to be of use.
        let pieces = self.wanted.div_ceil(self.run_blocks).clamp(1, room.max(1));
        let spare = trees.free.free_blocks().saturating_sub(FREE_MIN);
        let piece = self.wanted.div_ceil(pieces).min(self.run_blocks).min(spare);
        let found = match piece {
            0 => None,
            _ if room == 0 => None,
            _ => find_from_cursor(piece, trees, cache, pins)?,
        };
        let part = found.map(|whole| (whole, part_at_cursor(whole, piece, trees)));
        let part = part.filter(|(_, part)| part.len() >= piece.min(PIECE_MIN));
        let (whole, part) = part.ok_or(Error::NoSpace)?;
        let mut taken = self.taken.clone();
        let at = taken.partition_point(|other| other.start() < part.start());
        taken.insert(at, part).expect("there is room");
        let key = quarantine_key(round);
        let mut plan = cache.plan();
        let take = trees.free.plan_take(whole, part, &mut plan, cache, pins)?;
        let bytes = size_of_val(&taken[..]);
        trees.quarantine.plan_put(key.as_bytes(), bytes, &mut plan, cache, pins)?;
        let mut update = cache.reserve(&plan, pins)?;
        let part = trees.free.take(take, &mut update, cache);
        trees.cursor = part.end();
        if !is_active(Mutant::MergeSpaceUnowned) {
            trees.quarantine.put(key.as_bytes(), taken.as_bytes(), &mut update, cache);
            self.taken = taken;
        }
        self.grants.push((trees.next_run, part)).expect("as many as were taken");
        trees.next_run = trees.next_run.next();
        self.wanted = self.wanted.saturating_sub(part.len());
        let enough = self.wanted == 0 || room == 1;
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
                (self.stage, self.wanted) = (Stage::Taking, self.run_blocks);
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
        end(&change, &self.taken, &left, cx)?;
        self.taken.clear();
        (self.ended, self.is_cramped) = (Ended::Well, false);
        self.counters.merges += 1;
        Ok(Progress::Done)
    }

    /// Gives back what was taken, once nothing of it is being written.
    fn give_back(&mut self, cx: &mut Context<'_, '_>) -> Result<Progress, Stop> {
        if self.is_writing() {
            return Ok(self.wait_for_write());
        }
        if self.taken.is_empty() {
            self.stage = Stage::Resting;
            return Ok(Progress::Known);
        }
        let nothing = Change { remove: &[], add: &[] };
        end(&nothing, &self.taken, &self.taken, cx)?;
        self.taken.clear();
        Ok(Progress::Done)
    }
}

/// Ends a merge in one plan: makes its change, frees what is left, and has nothing quarantined any
/// more.
fn end(
    change: &Change<'_>,
    taken: &[Extent],
    left: &[Extent],
    cx: &mut Context<'_, '_>,
) -> Result<(), Stop> {
    let freed = FreedKey { commit: cx.commit().0.into(), part: cx.store.freed_lists().into() };
    let quarantined = quarantine_key(cx.store.term().round());
    let trees = &mut cx.store.trees;
    let (cache, pins) = (&mut cx.store.cache, &mut *cx.pins);
    if !left.is_sorted_by(|a, b| a.end() <= b.start()) {
        // Two runs of the manifest stand in one place.
        let blkno = trees.manifest.root().node.blkno();
        return Err(Error::Corrupt { blkno, what: Corruption::Mismatch }.into());
    }
    let mut plan = cache.plan();
    change.plan(&trees.manifest, &mut plan, cache, pins)?;
    if !taken.is_empty() {
        trees.quarantine.plan_delete(quarantined.as_bytes(), &mut plan, cache, pins)?;
    }
    trees.freed.plan_insert(freed.as_bytes(), size_of_val(left), &mut plan, cache, pins)?;
    let mut update = cache.reserve(&plan, pins)?;
    change.apply(&mut trees.manifest, &mut trees.level_runs, &mut update, cache);
    if !taken.is_empty() {
        trees.quarantine.delete(quarantined.as_bytes(), &mut update, cache);
    }
    trees.freed.put(freed.as_bytes(), left.as_bytes(), &mut update, cache);
    cx.store.next_freed_list();
    Ok(())
}

/// Where a leader's merge has its space.
fn quarantine_key(round: u64) -> QuarantineKey {
    QuarantineKey { kind: OwnerKind::Round as u8, owner: round.into(), part: PART.into() }
}

/// About as many blocks as what is made of these runs will take. A tail begins a run of its own.
fn blocks_for(choice: &Choice) -> u64 {
    let blocks: u64 = choice.runs().map(|run: &Run| run.entry.blocks()).sum();
    let tail = if choice.tail_after.is_some() { SEGMENT_BLOCKS / 4 } else { 0 };
    blocks + blocks / 32 + 4 + tail
}
