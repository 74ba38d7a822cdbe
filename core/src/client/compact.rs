//! Compaction in a mount: merges runs of the volume that the server has chosen.
//!
//! ```text
//!          asked, and it makes sense        all writes have ended       flushed
//!   Idle ----------------------> Merging -------------------> Flushing -------> Done(runs)
//!    ^                              | an error                   |  an error      |
//!    |                              v                            v                |
//!    |                           Failing --- writes ended ---> Done(error) -------+
//!    |                                                                            |
//!    +------------------------------- answered -----------------------------------+
//!
//!   Another server, or the mount leaves: from anywhere
//!      --> Dropping --- what was with the device has come back ---> Idle
//! ```
//!
//! # Invariants
//!
//! * What is asked is checked before anything is done about it: whatever a server asks, nothing
//!   panics, and only blocks that it has named for new runs are written.
//! * A result is said when all writes have ended and are flushed, an error when all writes have
//!   ended. So whoever hears either knows that nothing of that compaction will be written any more.
//! * Each compaction has one result, said to the server that asked for it. To another it is
//!   nothing: that one is told, once, that nothing from before is under way, and asks for nothing
//!   until then.
//! * It waits for the device and for its own memory, never for a lock, a commit of the mount, or
//!   the item cache: it reads runs as they stand on the device, which never change.
//!
//! # What it takes from others
//!
//! It has a cache and memory of its own. A [`step`](Compactor::step) merges
//! [`ITEMS_PER_STEP`] items at the most, and [`IN_FLIGHT_MAX`] of its block requests are with the
//! device at a time; the mount submits them only when nobody else in it has any to submit.
//!
//! What this module deliberately doesn't know: what is worth merging, and the manifest.

use crate::arena::{Arena, ArenaFull};
use crate::block::{self, Cache, Pins, RequestId};
use crate::error::{Corruption, Stop, Wait};
use crate::format::records::{ManifestEntry, ManifestKey};
use crate::format::root::Extent;
use crate::format::run::SEGMENT_BLOCKS;
use crate::format::super_block::Super;
use crate::format::wire::ErrorCode;
use crate::format::wire::message::{
    AT_ONCE_MAX, COMPACT_CHANGE_MAX, COMPACT_INPUTS_MAX, COMPACT_LOWERS_MAX, COMPACT_UPPERS_MAX,
    Compact, CompactReady, Compacted, OUTPUTS_MAX, RunRecord,
};
use crate::format::{Block, RunId};
use crate::lsm::build::{BuildSpace, Sealed};
use crate::lsm::choose::{Choice, LOWERS_MAX, UPPERS_DOWN_MAX, UPPERS_MAX};
use crate::lsm::manifest::{CHANGE_MAX, Run};
use crate::lsm::merge::{Merge, PINS_PER_MERGE, POOL_MAX, Progress};
use crate::node::More;
use core::fmt;
use heapless::{Deque, Vec};
use outrider_hal::{BlockOp, BlockRequest, Completion, Tag};
use zerocopy::FromZeros;

/// Items merged in a step, by all compactions together.
pub const ITEMS_PER_STEP: u32 = 256;
/// Block requests of compactions that are with the device at a time.
pub const IN_FLIGHT_MAX: u32 = 8;
/// Items merged without looking at anything else.
const ITEMS_PER_RUN: u32 = 64;
/// Tags of a compaction's writes, and after them that of its flush.
const TAGS_PER_JOB: u64 = POOL_MAX as u64 + 1;

const _: () = assert!(POOL_MAX < u32::BITS as usize);
// Whatever is chosen can be asked for.
const _: () = assert!(COMPACT_UPPERS_MAX == UPPERS_MAX && COMPACT_LOWERS_MAX == LOWERS_MAX);
const _: () = assert!(COMPACT_INPUTS_MAX >= UPPERS_MAX && COMPACT_CHANGE_MAX == CHANGE_MAX);
const _: () = assert!(COMPACT_INPUTS_MAX >= UPPERS_DOWN_MAX + LOWERS_MAX);

/// How much a mount merges for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactLimits {
    /// Compactions at a time, at most [`AT_ONCE_MAX`]. 0: it is not to be asked.
    pub at_once: u8,
    /// Blocks of runs in memory, for all of them together.
    pub frames: u32,
}

/// The limit that can't work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompactLimitsError {
    /// More at a time than a server asks for.
    AtOnce,
    /// Not even one compaction could hold what it needs at once; or more than can be numbered.
    Frames,
}

impl fmt::Display for CompactLimitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CompactLimitsError::AtOnce => "compaction: more at a time than is ever asked for",
            CompactLimitsError::Frames => "compaction: too few blocks for one, or too many",
        })
    }
}

impl CompactLimits {
    /// Whether what is begun always comes to an end.
    pub fn validate(&self) -> Result<(), CompactLimitsError> {
        if self.at_once > AT_ONCE_MAX {
            return Err(CompactLimitsError::AtOnce);
        }
        self.cache().validate().map_err(|_| CompactLimitsError::Frames)
    }

    /// Those of a block cache that is only read from.
    fn cache(&self) -> block::Limits {
        block::Limits {
            frames: self.frames,
            dirty: 0,
            pins: PINS_PER_MERGE,
            creates: 0,
            requests: u32::from(self.at_once).max(1),
            fresh: 0,
            freed: 0,
        }
    }
}

/// What happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Compactions begun.
    pub begun: u64,
    /// Those whose result was said and answered.
    pub done: u64,
    /// Those that failed, and that was said and answered.
    pub failed: u64,
    /// Those that were dropped because another server leads, or the mount leaves.
    pub dropped: u64,
    /// Times it was asked and did not begin.
    pub refused: u64,
    /// Blocks written.
    pub blocks: u64,
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Idle,
    Merging,
    /// The flush is with the device, or still to be submitted.
    Flushing {
        submitted: bool,
    },
    Failing(ErrorCode),
    Dropping,
    Done(Option<ErrorCode>),
}

/// What a job that merges waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    Not,
    /// Blocks that are read.
    Cache,
    /// A write.
    Write,
}

struct Job<'m> {
    request: RequestId,
    pins: Pins<'m>,
    merge: Merge<'m>,
    stage: Stage,
    pause: Pause,
    /// The compaction's number.
    id: u64,
    writes: Deque<Sealed<'m>, POOL_MAX>,
    /// Which tags of writes are with the device.
    tags: u32,
    /// Something was written.
    written: bool,
}

/// What has been said to the server of this term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readiness {
    /// Nothing: what was asked for before is still being dropped, or there is no server.
    Due,
    /// That nothing from before is under way; it has not answered.
    Said,
    /// It knows.
    Known,
}

/// See the module.
pub struct Compactor<'m> {
    limits: CompactLimits,
    volume_blocks: u64,
    cache: Cache<'m>,
    jobs: &'m mut [Job<'m>],
    in_flight: u32,
    readiness: Readiness,
    /// The job whose result has been said and not answered.
    said: Option<usize>,
    /// Nothing is begun any more.
    closed: bool,
    records: &'m mut [RunRecord],
    counters: Counters,
}

impl<'m> Compactor<'m> {
    /// Tags of its block requests are below this. A node that has others too moves them.
    pub const TAGS: u64 = Cache::TAGS + AT_ONCE_MAX as u64 * TAGS_PER_JOB;

    /// Carves it. The limits must be valid.
    pub fn carve(
        arena: &mut Arena<'m>,
        limits: &CompactLimits,
        volume: &Super,
    ) -> Result<Compactor<'m>, ArenaFull> {
        assert!(limits.validate().is_ok(), "the node checks its limits before");
        let cache = limits.cache();
        let at_once = u32::from(limits.at_once);
        let mut parts = Vec::<_, { AT_ONCE_MAX as usize }>::new();
        for _ in 0..at_once {
            let carved = (Pins::carve(arena, &cache)?, BuildSpace::carve(arena)?);
            parts.push(carved).map_err(drop).expect("no more than at once");
        }
        let blocks = arena.slice(at_once * POOL_MAX as u32, |_| Block::ZERO)?;
        let mut blocks = blocks.iter_mut();
        let (of, key) = (volume.volume(), volume.fields().name_key);
        let jobs = arena.slice(at_once, |index| {
            let (pins, space) = parts.pop().expect("as many as jobs");
            let mut merge = Merge::new(space, &of, &key);
            blocks.by_ref().take(POOL_MAX).for_each(|block| merge.give_block(block));
            Job {
                request: RequestId { index, generation: 0 },
                pins,
                merge,
                stage: Stage::Idle,
                pause: Pause::Not,
                id: 0,
                writes: Deque::new(),
                tags: 0,
                written: false,
            }
        })?;
        Ok(Compactor {
            limits: *limits,
            volume_blocks: volume.blocks(),
            cache: Cache::carve(arena, &cache, volume.volume())?,
            jobs,
            in_flight: 0,
            readiness: Readiness::Due,
            said: None,
            closed: false,
            records: arena
                .slice(OUTPUTS_MAX as u32, |_| RunRecord::new(&ManifestEntry::new_zeroed()))?,
            counters: Counters::default(),
        })
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether nothing is under way, the reads of what was dropped aside.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.jobs.iter().all(|job| job.stage == Stage::Idle)
    }

    /// A server has welcomed the mount that knows of nothing: what was asked for before is dropped.
    pub fn handle_server(&mut self) {
        self.drop_all();
        (self.readiness, self.said) = (Readiness::Due, None);
    }

    /// Ends it: the mount leaves, or was evicted.
    pub fn close(&mut self) {
        self.drop_all();
        self.closed = true;
    }

    fn drop_all(&mut self) {
        for job in self.jobs.iter_mut().filter(|job| job.stage != Stage::Idle) {
            if job.stage != Stage::Dropping {
                self.counters.dropped += 1;
                job.abandon(&mut self.cache);
            }
            let flushing = matches!(job.stage, Stage::Flushing { submitted: true });
            job.stage = Stage::Dropping;
            // The flush of what is dropped may come back late: as long as that, it is one write.
            job.tags |= if flushing { 1 << POOL_MAX } else { 0 };
            job.settle();
        }
    }

    /// Begins what a server asks for, or says why not: [`ErrorCode::Busy`] and
    /// [`ErrorCode::Stopping`], that it can't now; [`ErrorCode::Invalid`], that nobody can.
    pub fn handle_compact(&mut self, asked: &Compact<'_>) -> Result<(), ErrorCode> {
        let begun = self.begin(asked);
        match begun {
            Ok(()) => self.counters.begun += 1,
            Err(_) => self.counters.refused += 1,
        }
        begun
    }

    fn begin(&mut self, asked: &Compact<'_>) -> Result<(), ErrorCode> {
        if self.closed {
            return Err(ErrorCode::Stopping);
        }
        if self.readiness == Readiness::Due || self.jobs.iter().any(|job| job.id == asked.id) {
            return Err(ErrorCode::Busy);
        }
        let job = self.jobs.iter_mut().find(|job| job.stage == Stage::Idle);
        let job = job.ok_or(ErrorCode::Busy)?;
        let choice = choice(asked, self.volume_blocks).map_err(|_| ErrorCode::Invalid)?;
        check_spaces(asked, &choice, self.volume_blocks).map_err(|_| ErrorCode::Invalid)?;
        job.merge.begin(&choice);
        for (run, extent) in asked.spaces() {
            job.merge.give_space(run, extent).expect("as many as a change may have");
        }
        job.request.generation = job.request.generation.wrapping_add(1);
        job.pins.begin(job.request);
        (job.stage, job.pause, job.id) = (Stage::Merging, Pause::Not, asked.id);
        job.written = false;
        Ok(())
    }

    /// Goes on with all that can go on.
    pub fn step(&mut self) -> More {
        while let Some(RequestId { index, generation }) = self.cache.poll_wake() {
            let job = &mut self.jobs[index as usize];
            if job.request.generation == generation && job.pause == Pause::Cache {
                job.pause = Pause::Not;
            }
        }
        let mut left = ITEMS_PER_STEP;
        while left > 0 {
            let mut ran = false;
            for job in self.jobs.iter_mut().filter(|job| job.is_runnable()) {
                (ran, left) = (true, left.saturating_sub(ITEMS_PER_RUN));
                job.run(&mut self.cache);
            }
            if !ran {
                return More::No;
            }
        }
        More::Yes
    }

    /// The next request to submit.
    pub fn poll_request(&mut self) -> Option<BlockRequest<'m>> {
        if self.in_flight >= IN_FLIGHT_MAX {
            return None;
        }
        let of_jobs = self.jobs.iter_mut().enumerate().find_map(|(index, job)| {
            let (tag, op) = job.poll_request()?;
            let base = Cache::TAGS + index as u64 * TAGS_PER_JOB;
            Some(BlockRequest { tag: Tag(base + u64::from(tag)), op })
        });
        let request = of_jobs.or_else(|| self.cache.poll_transfer())?;
        self.in_flight += 1;
        Some(request)
    }

    /// Takes the completion of one of its requests.
    pub fn handle_completion(&mut self, done: Completion<'m>) {
        self.in_flight -= 1;
        let Some(tag) = done.tag.0.checked_sub(Cache::TAGS) else {
            return self.cache.handle_completion(done);
        };
        let job = &mut self.jobs[(tag / TAGS_PER_JOB) as usize];
        let failed = done.result.is_err();
        match done.op {
            BlockOp::Write(_, block) => {
                job.merge.give_block(block);
                job.tags &= !(1 << (tag % TAGS_PER_JOB));
                self.counters.blocks += u64::from(!failed);
            }
            BlockOp::Flush if job.stage == Stage::Dropping => job.tags &= !(1 << POOL_MAX),
            BlockOp::Flush if !failed => job.stage = Stage::Done(None),
            BlockOp::Flush => job.stage = Stage::Done(Some(ErrorCode::Io)),
            BlockOp::Read(..) => unreachable!("its cache reads"),
        }
        if job.pause == Pause::Write {
            job.pause = Pause::Not;
        }
        if failed && job.stage == Stage::Merging {
            job.fail(ErrorCode::Io, &mut self.cache);
        }
        job.settle();
    }

    /// What is to be told to the server of this term before it asks for anything.
    #[must_use]
    pub fn ready(&self) -> Option<CompactReady> {
        let due = self.readiness == Readiness::Due && !self.closed && self.limits.at_once > 0;
        (due && self.is_idle()).then_some(CompactReady { at_once: self.limits.at_once })
    }

    /// It is on its way.
    pub fn handle_ready_sent(&mut self) {
        self.readiness = Readiness::Said;
    }

    /// The server has answered, or has had no room for it: then it is said again.
    pub fn handle_ready_answered(&mut self, error: Option<ErrorCode>) {
        if self.readiness == Readiness::Said {
            self.readiness = if error.is_some() { Readiness::Due } else { Readiness::Known };
        }
    }

    /// Whether there is a result to be told.
    #[must_use]
    pub fn has_result(&self) -> bool {
        self.said.is_none() && self.jobs.iter().any(|job| matches!(job.stage, Stage::Done(_)))
    }

    /// The next result to be told, one at a time.
    pub fn result(&mut self) -> Option<Compacted<'_>> {
        if self.said.is_some() {
            return None;
        }
        let done = self.jobs.iter().find(|job| matches!(job.stage, Stage::Done(_)))?;
        if let Stage::Done(Some(error)) = done.stage {
            return Some(Compacted::failed(done.id, error));
        }
        let made = done.merge.change().add;
        for (record, run) in self.records.iter_mut().zip(made) {
            *record = RunRecord::new(&run.entry);
        }
        let made = self.records.get(..made.len());
        Some(Compacted::new(done.id, made.expect("no more than a change has")).expect("in order"))
    }

    /// The session has taken it, and sends it again as long as this server leads.
    pub fn handle_result_sent(&mut self) {
        self.said = self.jobs.iter().position(|job| matches!(job.stage, Stage::Done(_)));
    }

    /// The server has answered: with [`ErrorCode::Busy`] it is told again; with anything else that
    /// was it, whatever the server makes of it.
    pub fn handle_result_answered(&mut self, error: Option<ErrorCode>) {
        let Some(job) = self.said.take().map(|at| &mut self.jobs[at]) else { return };
        if error == Some(ErrorCode::Busy) {
            return;
        }
        match job.stage {
            Stage::Done(None) => self.counters.done += 1,
            Stage::Done(Some(_)) => self.counters.failed += 1,
            Stage::Idle
            | Stage::Merging
            | Stage::Flushing { .. }
            | Stage::Failing(_)
            | Stage::Dropping => return,
        }
        job.end();
    }
}

impl<'m> Job<'m> {
    fn is_runnable(&self) -> bool {
        self.stage == Stage::Merging && self.pause == Pause::Not
    }

    fn is_writing(&self) -> bool {
        self.tags != 0 || !self.writes.is_empty()
    }

    fn run(&mut self, cache: &mut Cache<'m>) {
        let progress = match self.merge.step(ITEMS_PER_RUN, cache, &mut self.pins) {
            Ok(progress) => progress,
            Err(Stop::Wait(Wait::Again)) => return,
            Err(Stop::Wait(Wait::Block(_) | Wait::Frame)) => {
                self.pause = Pause::Cache;
                return;
            }
            Err(Stop::Wait(Wait::Commit)) => unreachable!("nothing is changed"),
            Err(Stop::Fail(error)) => return self.fail(error.into(), cache),
        };
        cache.release(&mut self.pins);
        self.pins.begin(self.request);
        match progress {
            Progress::Step => {}
            Progress::Write => {
                let sealed = self.merge.poll_write().expect("it said so");
                self.writes.push_back(sealed).map_err(drop).expect("as many as there is memory");
                self.written = true;
            }
            Progress::Block | Progress::Change if self.is_writing() => self.pause = Pause::Write,
            Progress::Block => unreachable!("a merge gets on with the memory it has"),
            Progress::Space => self.fail(ErrorCode::NoSpace, cache),
            Progress::Change if self.written => self.stage = Stage::Flushing { submitted: false },
            Progress::Change => self.stage = Stage::Done(None),
        }
    }

    /// Gives up. What is with the device comes back.
    fn fail(&mut self, error: ErrorCode, cache: &mut Cache<'m>) {
        self.abandon(cache);
        self.stage = Stage::Failing(error);
        self.settle();
    }

    fn abandon(&mut self, cache: &mut Cache<'m>) {
        if self.stage == Stage::Merging {
            cache.release(&mut self.pins);
        }
        self.merge.abandon();
        while let Some(sealed) = self.writes.pop_front() {
            self.merge.give_block(sealed.block);
        }
    }

    /// What was given up has ended when nothing of it is with the device.
    fn settle(&mut self) {
        match self.stage {
            Stage::Failing(error) if self.tags == 0 => self.stage = Stage::Done(Some(error)),
            Stage::Dropping if self.tags == 0 => self.end(),
            Stage::Idle
            | Stage::Merging
            | Stage::Flushing { .. }
            | Stage::Failing(_)
            | Stage::Dropping
            | Stage::Done(_) => {}
        }
    }

    fn end(&mut self) {
        self.merge.abandon();
        (self.stage, self.id) = (Stage::Idle, 0);
    }

    fn poll_request(&mut self) -> Option<(u32, BlockOp<'m>)> {
        if let Stage::Flushing { submitted: submitted @ false } = &mut self.stage {
            *submitted = true;
            return Some((POOL_MAX as u32, BlockOp::Flush));
        }
        let Sealed { blkno, block } = self.writes.pop_front()?;
        let tag = self.tags.trailing_ones();
        self.tags |= 1 << tag;
        Some((tag, BlockOp::Write(blkno, block)))
    }
}

/// What a server asks for, if it can be merged.
fn choice(asked: &Compact<'_>, volume_blocks: u64) -> Result<Choice, Corruption> {
    let run = |level: u8, (order, entry): (u64, &ManifestEntry)| {
        let (first, _) = entry.range().ok_or(Corruption::Order)?;
        let key = ManifestKey { level, first, order: order.into() };
        Run::parse(&key, entry, volume_blocks)
    };
    let uppers = asked.uppers().map(|upper| run(asked.level(), upper));
    let lowers = asked.lowers().map(|lower| run(asked.target, lower));
    let choice = Choice {
        uppers: uppers.collect::<Result<_, _>>()?,
        lowers: lowers.collect::<Result<_, _>>()?,
        target: asked.target,
        tail_after: asked.tail_after,
        drop_tombstones: asked.drop_tombstones,
    };
    choice.check()?;
    Ok(choice)
}

/// Checks that new runs can stand where they are to stand: on the volume, in nobody's way.
fn check_spaces(
    asked: &Compact<'_>,
    choice: &Choice,
    volume_blocks: u64,
) -> Result<(), Corruption> {
    let mut taken: Vec<Extent, CHANGE_MAX> = choice.runs().map(|run| run.entry.extent()).collect();
    let mut runs: Vec<RunId, CHANGE_MAX> = choice.runs().map(Run::id).collect();
    for (run, extent) in asked.spaces() {
        if extent.len() > SEGMENT_BLOCKS || !extent.is_inside(volume_blocks) || runs.contains(&run)
        {
            return Err(Corruption::Bounds);
        }
        runs.push(run).map_err(|_| Corruption::Bounds)?;
        taken.push(extent).map_err(|_| Corruption::Bounds)?;
    }
    taken.sort_unstable_by_key(Extent::start);
    match taken.is_sorted_by(|a, b| a.end() <= b.start()) {
        true => Ok(()),
        false => Err(Corruption::Mismatch),
    }
}

#[cfg(test)]
mod tests;
