//! Compaction: what is merged, and by whom.
//!
//! ```text
//!   The planner, a job like the others:
//!
//!            is due             a choice, and a client's turn   enough      durable
//!   Resting ----------> Choosing -----------------> Lending ----------> Lent ---------> Resting
//!      ^                 |  |  |                      | no space                asks the client
//!      |    nothing      |  |  | the server's turn    v
//!      +-----------------+  |  +-------> Chosen ---> Resting: the server's own merge begins
//!      |     durable        | one moves
//!      +------------------ Moving
//!
//!   A client's space, of which it has two:
//!
//!            lent           asked, durable       begun            what came of it is recorded
//!   Free ------------> Asked -------------------------> Out ---------------------------> Free
//!     ^                  | refused                       (known by its number, whether anybody
//!     |   given back     v                                still counts on it or not)
//!     +---------------- Back
//! ```
//!
//! # Who merges
//!
//! A client that has said that it can, and how many at a time, which are two at the most; in turns.
//! If no client can, the server does it by itself, one at a time; so it does while level 0 is far
//! above its threshold, for then transactions wait for it. Moves, by which nothing is written, it
//! makes itself.
//!
//! # When
//!
//! When a level has too many runs; and, on a volume that is left alone, when what was deleted is
//! worth it: see `sweeps`.
//!
//! # Whose the space is
//!
//! Output space is lent: from before the client is asked it stands in the tree of loans under the
//! client's number, in a list of its own for each of the two places. What becomes of it is in the
//! hands of whoever knows that the client writes no more:
//!
//! * The client, by its result or its error: one plan takes the inputs out of the manifest, puts
//!   the outputs in, ends the list, and frees what is left. An error, or a result that can't be,
//!   ends the list, and frees all of it.
//! * The client, welcomed by another server, by saying that nothing from before is under way. Until
//!   it has said so it is asked for nothing: so all lists that stand under its number then are from
//!   before.
//! * Its farewell or its eviction, like everything else that it was lent.
//!
//! Nobody else: when a client has not been heard for a while its runs are given to another, but its
//! space stays its own.
//!
//! # Invariants
//!
//! * Exactly once: a result counts while the space of its number is out, and the plan that records
//!   it ends that. In one session it is delivered once. The next server knows of no number, and has
//!   not been told by the client that it is ready: a late result changes nothing there.
//! * No two merges have an input in common: what is merged, or is about to be, is busy. What was
//!   chosen stays in the manifest until that merge takes it out.
//! * A client is asked when the space, its number and all inputs are durable: the inputs were there
//!   when they were chosen, and the space was taken after that.
//! * Results are judged, not believed: outputs have the numbers and stand at the start of the
//!   extents that were lent, in the order and between the ends of the inputs, in their levels, and
//!   have no more items. What is in them can't be judged.
//! * What fails is tried again after a pause, by another client if there is one. Each failure in a
//!   row doubles the time in which this client isn't asked.
//! * Nothing waits for a client for ever: one that isn't connected loses what it was asked for
//!   after [`DOWN_MAX`], any after [`PATIENCE`]. Nobody waits for a merge but the transactions that
//!   [`is_pressed`](Planner::is_pressed) holds back, and they for no compaction that takes longer
//!   than [`HOLD_MAX`].
//!
//! What this module deliberately doesn't know: how runs are merged, and what makes a good choice.

use super::events::ServerEvent;
use super::holder::{Holder, Taken, blocks_for, end, give_back, unused};
use super::limits::ServerLimits;
use super::requests::{Context, Halt, Progress};
use super::table::{Member, Members, Standing, Work};
use super::{MergeCounters, Server};
use crate::arena::{Arena, ArenaFull};
use crate::error::{Corruption, Error, Stop};
use crate::format::records::{LIST_MAX, ManifestKey};
use crate::format::root::{Extent, LEVELS};
use crate::format::wire::message::{
    AT_ONCE_MAX, Compact, CompactRunRecord, CompactSpaceRecord, Compacted, OUTPUTS_MAX, RUNS_MAX,
    ServerRequest,
};
use crate::format::wire::{ErrorCode, Kind};
use crate::format::{ClientId, RunId};
use crate::lsm::choose::{
    Choice, Chooser, Chosen, Field, LOWERS_MAX, Policy, UPPERS_MAX, move_down,
};
use crate::lsm::manifest::{CHANGE_MAX, Change, Manifest, Run};
use crate::mutant::{Mutant, is_active};
use crate::net::{RequestId, SessionId};
use core::time::Duration;
use heapless::Vec;
use outrider_hal::Instant;
use sweeps::Sweeps;

mod sweeps;

/// Compactions that clients are at work on, or have been asked for, at a time.
pub(super) const JOBS_MAX: usize = 8;
/// Runs that are merged at a time: by clients, and by the server.
const BUSY_MAX: usize = (JOBS_MAX + 1) * (UPPERS_MAX + LOWERS_MAX);
/// Entries of the manifest looked at in one run.
const CHOOSER_STEPS: u32 = 16;
/// After a failure of the server's own nothing is chosen for so long, and after the first of a
/// client's it isn't asked.
const RETRY: Duration = Duration::from_secs(5);
/// After a client's failure nothing is chosen for so long.
const RETRY_ELSEWHERE: Duration = Duration::from_secs(1);
/// If there was nothing to choose, although some level has too many runs, this is the time to look
/// again, unless something changes before.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A client that was busy isn't asked for so long.
const BUSY_PAUSE: Duration = Duration::from_secs(2);
/// Who isn't connected for so long loses what it was asked for.
const DOWN_MAX: Duration = Duration::from_secs(5);
/// Who has not said what has come of it after this does too.
const PATIENCE: Duration = Duration::from_secs(60);
/// No transaction is held back because of a compaction that takes longer.
const HOLD_MAX: Duration = Duration::from_secs(10);
/// A client's pause doubles with each failure in a row, so often at the most.
const DOUBLINGS_MAX: u8 = 6;

/// Where the space of one of a client's compactions is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Space {
    #[default]
    Free,
    /// Lent, or being lent, for this compaction; and the question, once it was asked.
    Asked(u64, Option<RequestId>),
    /// The client is at work on this compaction.
    Out(u64),
    /// The client has not begun. It is to be given back, from this time on.
    Back(Instant),
}

impl Space {
    /// For which compaction the client may be writing to it.
    fn out(self) -> Option<u64> {
        match self {
            Space::Asked(id, Some(_)) | Space::Out(id) => Some(id),
            Space::Free | Space::Asked(_, None) | Space::Back(_) => None,
        }
    }
}

/// What a client does for the server, and can.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Helper {
    /// How many at a time; none until it has said so in this term.
    at_once: u8,
    spaces: [Space; AT_ONCE_MAX as usize],
    /// It is asked for nothing until then.
    ask_after: Instant,
    /// Failures in a row.
    failures: u8,
}

impl Helper {
    /// A client that is ready.
    pub(super) fn ready(at_once: u8) -> Helper {
        Helper { at_once, ..Helper::default() }
    }

    /// A place that nothing is lent for, if it can be asked for one more.
    fn vacant(&self) -> Option<u8> {
        let used = self.spaces.iter().filter(|space| **space != Space::Free).count();
        let vacant = self.spaces.iter().position(|space| *space == Space::Free)?;
        (used < usize::from(self.at_once)).then_some(vacant as u8)
    }

    /// Whether what was lent in this place is to be given back.
    pub(super) fn is_back(&self, place: u8) -> bool {
        matches!(self.spaces[usize::from(place)], Space::Back(_))
    }

    /// Nothing is lent in this place any more.
    pub(super) fn release(&mut self, place: u8) {
        self.spaces[usize::from(place)] = Space::Free;
    }

    fn is_willing(&self, now: Instant) -> bool {
        self.at_once > 0 && self.ask_after <= now
    }

    fn on_failure(&mut self, now: Instant) {
        self.ask_after = now.plus(RETRY.saturating_mul(1 << self.failures.min(DOUBLINGS_MAX)));
        self.failures = self.failures.saturating_add(1);
    }
}

/// What a client was asked for.
struct Job {
    client: ClientId,
    id: u64,
    /// None: the entry is free.
    choice: Option<Choice>,
    grants: Vec<(RunId, Extent), CHANGE_MAX>,
    asked_at: Instant,
    /// Since when the client isn't connected.
    down_since: Option<Instant>,
    /// It takes longer than anybody is to wait for it.
    is_slow: bool,
}

impl Job {
    const NONE: Job = Job {
        client: ClientId(0),
        id: 0,
        choice: None,
        grants: Vec::new(),
        asked_at: Instant(0),
        down_since: None,
        is_slow: false,
    };

    /// When it is given to another.
    fn lost_at(&self) -> Option<Instant> {
        self.choice.as_ref()?;
        let down = self.down_since.map(|since| since.plus(DOWN_MAX));
        let late = self.asked_at.plus(PATIENCE);
        Some(down.map_or(late, |down| down.min(late)))
    }

    /// When it has taken so long that nobody waits for it any more.
    fn slow_at(&self) -> Option<Instant> {
        self.choice.as_ref()?;
        (!self.is_slow).then_some(self.asked_at.plus(HOLD_MAX))
    }

    /// What the runs that a client says it has made are to be in the manifest, if they can be.
    fn judge(&self, result: &Compacted<'_>, volume_blocks: u64) -> Result<Outputs, Corruption> {
        let choice = self.choice.as_ref().ok_or(Corruption::Mismatch)?;
        let level = choice.uppers.first().map(|run| run.level).ok_or(Corruption::Mismatch)?;
        let order = choice.uppers.iter().map(|run| run.order).max().unwrap_or(0);
        let mut outputs = Outputs::new();
        for entry in result.runs() {
            let (first, _) = entry.range().ok_or(Corruption::Order)?;
            let in_tail = choice.tail_after.is_some_and(|after| first > after);
            let level = if in_tail { level } else { choice.target };
            let key = ManifestKey { level, first, order: order.into() };
            let run = Run::parse(&key, entry, volume_blocks)?;
            let lent = self.grants.iter().find(|(id, _)| *id == run.id());
            let extent = run.entry.extent();
            let stands = lent.is_some_and(|(_, lent)| {
                lent.start() == extent.start() && lent.len() >= extent.len()
            });
            if !stands || outputs.iter().any(|other| other.id() == run.id()) {
                return Err(Corruption::Bounds);
            }
            outputs.push(run).map_err(|_| Corruption::Bounds)?;
        }
        choice.check_outputs(&outputs)?;
        let items = |runs: &mut dyn Iterator<Item = &Run>| -> u64 {
            runs.map(|run| u64::from(run.entry.items.get())).sum()
        };
        let fits = items(&mut outputs.iter()) <= items(&mut choice.runs());
        match fits && (choice.drop_tombstones || !outputs.is_empty()) {
            true => Ok(outputs),
            false => Err(Corruption::Value),
        }
    }
}

/// Runs that were made.
type Outputs = Vec<Run, OUTPUTS_MAX>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Resting,
    Starting,
    Choosing,
    Moving,
    /// The server is to merge it.
    Chosen,
    Lending,
    Lent,
    /// What is to be done is done, and becomes durable.
    Ending,
    /// There was nothing.
    Idle,
    Failed,
}

/// What is chosen for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    /// Some level has too many runs.
    Levels,
    /// The volume is quiet: what was deleted is to go, with this much patience.
    Sweep(u64),
}

/// Who is to merge what is being chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Executor {
    Server,
    Client(ClientId, u8),
}

/// What follows when the planner has come to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    /// The server's own merge is to begin.
    Begin,
    /// This client is to be asked, for what it was lent in this place.
    Ask(ClientId, u8),
}

/// What chooses, and knows what clients are at work on. See the module.
pub(super) struct Planner<'m> {
    policy: Policy,
    level_0_max: u64,
    run_blocks: u64,
    chooser: Option<&'m mut Chooser>,
    stage: Stage,
    /// Its place among the requests.
    place: Option<usize>,
    aim: Aim,
    executor: Executor,
    /// The client that it lends to is gone, or has begun anew.
    is_doomed: bool,
    /// The compaction that is being lent for.
    id: u64,
    taken: Taken,
    jobs: &'m mut [Job],
    not_before: Option<Instant>,
    /// That is because something failed.
    is_failing: bool,
    /// The last failure was for want of space.
    is_cramped: bool,
    /// There is somebody who can merge.
    is_manned: bool,
    last_asked: ClientId,
    sweeps: Sweeps,
    counters: MergeCounters,
}

impl<'m> Planner<'m> {
    pub(super) fn carve(
        arena: &mut Arena<'m>,
        limits: &ServerLimits,
    ) -> Result<Planner<'m>, ArenaFull> {
        Ok(Planner {
            policy: limits.merging,
            level_0_max: limits.level_0_max,
            run_blocks: limits.run_blocks,
            chooser: arena.slice(1, |_| Chooser::new(limits.merging))?.first_mut(),
            stage: Stage::Resting,
            place: None,
            aim: Aim::Levels,
            executor: Executor::Server,
            is_doomed: false,
            id: 0,
            taken: Taken::default(),
            jobs: arena.slice(JOBS_MAX as u32, |_| Job::NONE)?,
            not_before: None,
            is_failing: false,
            is_cramped: false,
            is_manned: true,
            last_asked: ClientId(0),
            sweeps: Sweeps::NEW,
            counters: MergeCounters::default(),
        })
    }

    pub(super) fn counters(&self) -> MergeCounters {
        self.counters
    }

    /// The term is over: what was lent stays where a successor finds it.
    pub(super) fn reset(&mut self) {
        self.counters.dropped += self.jobs.iter().filter(|job| job.choice.is_some()).count() as u64;
        self.jobs.iter_mut().for_each(|job| job.choice = None);
        (self.stage, self.place, self.is_doomed) = (Stage::Resting, None, false);
        (self.not_before, self.is_failing, self.is_cramped) = (None, false, false);
        (self.is_manned, self.sweeps) = (true, Sweeps::NEW);
    }

    /// What is merged now, `own` by the server; and how many of each level are on top of a merge.
    fn busy(&self, own: &[Run]) -> (Vec<RunId, BUSY_MAX>, [u64; LEVELS]) {
        let (mut busy, mut pending) = (Vec::new(), [0; LEVELS]);
        let mut add = |run: &Run, on_top: bool| {
            busy.push(run.id()).expect("as many as can be merged at a time");
            pending[usize::from(run.level)] += u64::from(on_top);
        };
        for choice in self.jobs.iter().filter_map(|job| job.choice.as_ref()) {
            choice.uppers.iter().for_each(|run| add(run, true));
            choice.lowers.iter().for_each(|run| add(run, false));
        }
        let level = own.first().map(|run| run.level);
        own.iter().for_each(|run| add(run, Some(run.level) == level));
        (busy, pending)
    }

    /// What should be chosen for, if there is somebody to merge it.
    pub(super) fn due(
        &mut self,
        now: Instant,
        level_runs: &[u64; LEVELS],
        own: &[Run],
    ) -> Option<Aim> {
        self.not_before = self.not_before.filter(|at| *at > now);
        self.is_failing &= self.not_before.is_some();
        if self.place.is_some() || self.not_before.is_some() {
            return None;
        }
        if self.is_wanted(level_runs, own) {
            return Some(Aim::Levels);
        }
        let patience = self.sweeps.due(now)?;
        if self.is_at_work() || !own.is_empty() {
            self.sweeps.put_off(now);
            return None;
        }
        Some(Aim::Sweep(patience))
    }

    /// A transaction has brought runs.
    pub(super) fn on_recorded(&mut self, now: Instant) {
        self.sweeps.on_recorded(now);
    }

    /// Whether a level has too many runs, those left out that are on top of a merge.
    fn is_wanted(&self, level_runs: &[u64; LEVELS], own: &[Run]) -> bool {
        let (_, pending) = self.busy(own);
        let mut idle = *level_runs;
        idle.iter_mut().zip(pending).for_each(|(runs, busy)| *runs = runs.saturating_sub(busy));
        self.policy.is_due(&idle)
    }

    /// When to look again whether something is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let look = self.not_before.or(self.sweeps.poll_timeout());
        let look = look.filter(|_| self.place.is_none());
        let jobs = self.jobs.iter().flat_map(|job| [job.lost_at(), job.slow_at()]);
        jobs.flatten().chain(look).min()
    }

    /// Whether anything is being chosen, or is at work with a client.
    pub(super) fn is_at_work(&self) -> bool {
        self.place.is_some() || self.jobs.iter().any(|job| job.choice.is_some())
    }

    /// Whether transactions with runs are to wait: level 0 is far above its threshold, and merging
    /// goes on, with the server if `own` says so, or is about to.
    pub(super) fn is_pressed(&self, level_runs: &[u64; LEVELS], own: bool) -> bool {
        let is_quick = |job: &Job| job.choice.is_some() && !job.is_slow;
        let begins =
            || self.not_before.is_none() && self.is_manned && self.is_wanted(level_runs, &[]);
        let goes_on = || self.place.is_some() || self.jobs.iter().any(is_quick) || begins();
        self.is_crowded(level_runs) && (own || goes_on())
    }

    fn is_crowded(&self, level_runs: &[u64; LEVELS]) -> bool {
        level_runs[0] >= self.level_0_max
    }

    fn begin(&mut self, place: usize, aim: Aim, executor: Executor) {
        (self.stage, self.place, self.not_before) = (Stage::Starting, Some(place), None);
        (self.aim, self.executor, self.is_doomed) = (aim, executor, false);
        let policy = if self.is_cramped { self.policy.smallest() } else { self.policy };
        let patience = match aim {
            Aim::Levels => None,
            Aim::Sweep(patience) => Some(patience),
        };
        let chooser = self.chooser.as_deref_mut().expect("carved");
        chooser.adopt(policy);
        chooser.aim(patience);
    }

    /// Begins to choose for the server itself.
    #[cfg(test)]
    pub(super) fn begin_own(&mut self, place: usize, aim: Aim) {
        self.begin(place, aim, Executor::Server);
    }

    /// What was chosen.
    pub(super) fn choice(&self) -> &Choice {
        self.chooser.as_deref().expect("carved").choice()
    }

    /// The runs of the manifest have changed.
    fn on_changed(&mut self) {
        self.counters.merges += 1;
        self.is_cramped = false;
        self.look_again();
    }

    /// What was busy is so no more.
    fn look_again(&mut self) {
        if !self.is_failing {
            self.not_before = None;
        }
    }

    /// A merge was given up.
    fn on_failed(&mut self, now: Instant, pause: Duration, is_cramped: bool) {
        self.counters.failures += 1;
        self.is_cramped |= is_cramped;
        self.sweeps.on_nothing();
        (self.not_before, self.is_failing) = (Some(now.plus(pause)), true);
    }

    /// The server's own merge has ended.
    pub(super) fn on_own(&mut self, now: Instant, failed: Option<Error>) {
        match failed {
            Some(error) => self.on_failed(now, RETRY, error == Error::NoSpace),
            None => self.look_again(),
        }
    }

    /// The server's own merge has changed the manifest.
    pub(super) fn on_own_change(&mut self) {
        self.on_changed();
    }

    /// Drops what this client was asked for.
    fn forget(&mut self, client: ClientId) {
        if matches!(self.executor, Executor::Client(of, _) if of == client) {
            self.is_doomed = true;
        }
        for job in self.jobs.iter_mut().filter(|job| job.client == client) {
            job.choice = None;
        }
        self.look_again();
    }

    /// Of these it is counted that an eviction ended them.
    pub(super) fn on_evicted(&mut self, dropped: u64) {
        self.counters.evicted += dropped;
    }

    fn find(&self, id: u64) -> Option<usize> {
        self.jobs.iter().position(|job| job.choice.is_some() && job.id == id)
    }

    /// The commit that the job has joined is confirmed, or it joined none.
    pub(super) fn on_durable(&mut self, now: Instant) -> Next {
        let stage = core::mem::replace(&mut self.stage, Stage::Resting);
        self.place = None;
        match (stage, self.executor) {
            (Stage::Chosen, _) => return Next::Begin,
            (Stage::Lent, Executor::Client(client, place)) if !self.is_doomed => {
                return Next::Ask(client, place);
            }
            (Stage::Idle, _) => match self.aim {
                Aim::Levels => self.not_before = Some(now.plus(LOOK_AGAIN)),
                Aim::Sweep(_) => self.sweeps.on_nothing(),
            },
            (Stage::Failed, _) => {
                let is_cramped = self.is_cramped;
                self.on_failed(now, RETRY, is_cramped);
            }
            (
                Stage::Resting
                | Stage::Starting
                | Stage::Choosing
                | Stage::Moving
                | Stage::Lending
                | Stage::Lent
                | Stage::Ending,
                _,
            ) => {}
        }
        Next::Nothing
    }

    /// Does the next part. It ends with [`Progress::Known`], or when a commit is durable.
    pub(super) fn run(
        &mut self,
        cx: &mut Context<'_, '_>,
        members: &mut Members<'_>,
        own: &[Run],
    ) -> Result<Progress, Halt> {
        if self.is_doomed {
            self.stage = Stage::Ending;
            return Ok(Progress::Known);
        }
        let advanced = match self.stage {
            Stage::Starting | Stage::Choosing => self.choose(cx, own),
            Stage::Moving => self.move_down(cx),
            Stage::Lending => self.lend(cx, members),
            Stage::Resting
            | Stage::Chosen
            | Stage::Lent
            | Stage::Ending
            | Stage::Idle
            | Stage::Failed => Ok(Progress::Known),
        };
        match advanced {
            Ok(progress) => Ok(progress),
            Err(Stop::Wait(wait)) => Err(Stop::Wait(wait).into()),
            Err(Stop::Fail(error)) => {
                if let (Stage::Lending, Some(space)) = (self.stage, self.space(members))
                    && *space != Space::Free
                {
                    *space = Space::Back(Instant(0));
                }
                self.is_cramped |= error == Error::NoSpace;
                self.stage = Stage::Failed;
                Ok(Progress::Known)
            }
        }
    }

    /// The space that is being lent.
    fn space<'a>(&self, members: &'a mut Members<'_>) -> Option<&'a mut Space> {
        let Executor::Client(client, place) = self.executor else { return None };
        let member = members.find(client)?;
        Some(&mut member.helper.spaces[usize::from(place)])
    }

    fn choose(&mut self, cx: &mut Context<'_, '_>, own: &[Run]) -> Result<Progress, Stop> {
        let (mut busy, mut pending) = self.busy(own);
        if is_active(Mutant::CompactionBusyIgnored) {
            busy.clear();
            pending = [0; LEVELS];
        }
        let merges = self.counters.merges;
        let chooser = self.chooser.as_deref_mut().expect("carved");
        let durable = cx.store.root().map_or(0, |root| root.fields().next_seq.get());
        let (trees, cache) = (&cx.store.trees, &mut cx.store.cache);
        let field = Field {
            manifest: &Manifest::new(trees.manifest, cx.volume_blocks),
            level_runs: &trees.level_runs,
            busy: &busy,
            pending: &pending,
            merges,
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
                    self.stage = Stage::Idle;
                    return Ok(Progress::Known);
                }
                Chosen::Choice => {
                    let wanted = blocks_for(chooser.choice()) + self.run_blocks;
                    self.stage = match (chooser.choice().moved(), self.executor) {
                        (Some(_), _) => Stage::Moving,
                        (None, Executor::Server) => Stage::Chosen,
                        (None, Executor::Client(..)) => Stage::Lending,
                    };
                    self.taken.begin(wanted);
                    return Ok(match self.stage {
                        Stage::Chosen => Progress::Known,
                        _ => Progress::More,
                    });
                }
            }
        }
        Ok(Progress::More)
    }

    /// Moves a run down as it is.
    fn move_down(&mut self, cx: &mut Context<'_, '_>) -> Result<Progress, Stop> {
        let choice = self.choice();
        let (from, to) = (choice.uppers[0], choice.moved().expect("it was to be moved"));
        let (from, to) = ([from], [to]);
        let change = move_down(&from, &to);
        let trees = &mut cx.store.trees;
        let (cache, pins) = (&mut cx.store.cache, &mut *cx.pins);
        let mut plan = cache.plan();
        change.plan(&trees.manifest, &mut plan, cache, pins)?;
        let mut update = cache.reserve(&plan, pins)?;
        change.apply(&mut trees.manifest, &mut trees.level_runs, &mut update, cache);
        self.stage = Stage::Ending;
        self.on_changed();
        self.counters.moves += 1;
        Ok(Progress::Done)
    }

    /// Lends the next extent to the client.
    fn lend(
        &mut self,
        cx: &mut Context<'_, '_>,
        members: &mut Members<'_>,
    ) -> Result<Progress, Stop> {
        let Executor::Client(client, place) = self.executor else {
            unreachable!("it is a client's")
        };
        let inputs = self.choice().runs().count();
        let first = self.taken.extents.is_empty();
        let enough = self.taken.take(Holder::Client(client, place), inputs, self.run_blocks, cx)?;
        if first {
            self.id = cx.store.trees.next_job;
            cx.store.trees.next_job += 1;
        }
        let space = self.space(members).expect("it was forgotten, if it is gone");
        *space = Space::Asked(self.id, None);
        if !enough {
            return Ok(Progress::More);
        }
        self.stage = Stage::Lent;
        Ok(Progress::Done)
    }
}

/// Records what has come of a compaction. With an error, that was why it was given up.
pub(super) fn compacted(
    cx: &mut Context<'_, '_>,
    now: Instant,
    planner: &mut Planner<'_>,
    member: Option<&mut Member>,
    result: &Compacted<'_>,
) -> Result<(Progress, Option<ErrorCode>), Halt> {
    let member = member.filter(|member| member.standing == Standing::Mounted);
    let place = member.as_ref().and_then(|member| {
        member.helper.spaces.iter().position(|space| space.out() == Some(result.id))
    });
    let (Some(member), Some(place)) = (member, place) else {
        // Of another server's time, or said twice.
        planner.counters.unknown += 1;
        return Ok((Progress::Known, None));
    };
    let holder = Holder::Client(member.client, place as u8);
    let job = planner.find(result.id);
    let judged = job.map(|job| match result.error {
        Some(error) => Err(error),
        None => planner.jobs[job].judge(result, cx.volume_blocks).map_err(|_| ErrorCode::Invalid),
    });
    let helper = &mut member.helper;
    let failed = match (judged, job) {
        (Some(Ok(outputs)), Some(job)) => {
            let Job { choice, grants, .. } = &mut planner.jobs[job];
            let made = record(choice.as_ref().expect("found"), grants, &outputs, holder, cx);
            if made == Err(Stop::Fail(Error::NotFound)) {
                // An input has gone, which only its own merge may take out.
                planner.counters.contradictions += 1;
                *choice = None;
                return Ok((Progress::More, None));
            }
            made?;
            helper.failures = 0;
            planner.counters.by_clients += 1;
            planner.on_changed();
            None
        }
        (judged, _) => {
            give_back(member.client, place as u8, cx)?;
            planner.counters.late += u64::from(job.is_none());
            let error = judged.and_then(Result::err);
            if let Some(error) = error {
                helper.on_failure(now);
                planner.counters.rejected += u64::from(result.error.is_none());
                planner.on_failed(now, RETRY_ELSEWHERE, error == ErrorCode::NoSpace);
            }
            error
        }
    };
    helper.spaces[place] = Space::Free;
    if let Some(job) = job {
        planner.jobs[job].choice = None;
    }
    Ok((Progress::Done, failed))
}

/// Puts what a client has made in the place of what it was made of.
fn record(
    choice: &Choice,
    grants: &[(RunId, Extent)],
    outputs: &[Run],
    holder: Holder,
    cx: &mut Context<'_, '_>,
) -> Result<(), Stop> {
    let inputs: Vec<Run, CHANGE_MAX> = choice.runs().copied().collect();
    let freed = inputs.iter().map(|run| run.entry.extent()).chain(unused(grants, outputs));
    let mut left: Vec<Extent, LIST_MAX> = freed.collect();
    left.sort_unstable_by_key(|extent| extent.start());
    let change = match is_active(Mutant::InputsFreedEarly) {
        true => Change { remove: &[], add: &[] },
        false => Change { remove: &inputs, add: outputs },
    };
    end(&change, holder, &left, cx)
}

/// Gives back what a client has not used, in this place or in all. [`Progress::Known`] if that is
/// nothing any more.
pub(super) fn settle(
    cx: &mut Context<'_, '_>,
    client: ClientId,
    place: Option<u8>,
) -> Result<Progress, Halt> {
    let places = place.map_or(0..AT_ONCE_MAX, |place| place..place + 1);
    for place in places {
        if give_back(client, place, cx)? {
            return Ok(Progress::More);
        }
    }
    Ok(Progress::Known)
}

impl Server<'_> {
    /// Chooses what is to be merged when something is due, and looks after what clients do.
    pub(super) fn begin_compactions(&mut self, now: Instant) {
        self.drop_lost(now);
        self.begin_settling(now);
        let level_runs = self.store.trees.level_runs;
        let executor = self.executor(now);
        self.planner.is_manned = executor.is_some();
        let Some(aim) = self.planner.due(now, &level_runs, self.merger.inputs()) else { return };
        if let Some(executor) = executor
            && let Ok(index) = self.table.begin(Work::Compact, ClientId(0))
        {
            if let Executor::Client(client, _) = executor {
                self.planner.last_asked = client;
            }
            self.planner.begin(index, aim, executor);
        } else {
            self.planner.sweeps.put_off(now);
        }
    }

    /// Who merges what is chosen next: a client in turn, or the server if none can, or if level 0
    /// is crowded.
    fn executor(&self, now: Instant) -> Option<Executor> {
        let willing = |member: &&Member| {
            member.standing == Standing::Mounted
                && member.helper.is_willing(now)
                && self.links.find(member.client).is_some_and(|session| self.links.is_up(session))
        };
        let can = |member: &Member| {
            let session = self.links.find(member.client)?;
            let asks = self.links.can_request(session, Kind::Compact).is_ok();
            let place = member.helper.vacant().filter(|_| asks)?;
            Some((member.client, place))
        };
        let is_free = self.planner.jobs.iter().any(|job| job.choice.is_none());
        let members = || self.members.all().iter().filter(willing);
        let last = self.planner.last_asked;
        let candidates = members().filter_map(can).filter(|_| is_free);
        let next = candidates.min_by_key(|(client, _)| (*client <= last, *client));
        let by_itself =
            members().next().is_none() || self.planner.is_crowded(&self.store.trees.level_runs);
        let own = (by_itself && self.merger.is_resting()).then_some(Executor::Server);
        next.map(|(client, place)| Executor::Client(client, place)).or(own)
    }

    /// Counts no more on those who have not been heard of.
    fn drop_lost(&mut self, now: Instant) {
        for at in 0..self.planner.jobs.len() {
            let client = self.planner.jobs[at].client;
            let session = self.links.find(client);
            let is_up = session.is_some_and(|session| self.links.is_up(session));
            let job = &mut self.planner.jobs[at];
            job.down_since = if is_up { None } else { Some(job.down_since.unwrap_or(now)) };
            job.is_slow |= job.slow_at().is_some_and(|at| at <= now);
            if job.lost_at().is_some_and(|at| at <= now) {
                job.choice = None;
                self.planner.counters.lost += 1;
                self.planner.look_again();
                let event = ServerEvent::CompactionFailed(client, ErrorCode::NotConnected);
                self.events.push(event);
            }
        }
    }

    /// Begins to give back what clients have not begun to use.
    fn begin_settling(&mut self, now: Instant) {
        for at in 0..self.members.all().len() {
            let Member { client, standing, helper, .. } = self.members.all()[at];
            let due = |space: &Space| matches!(space, Space::Back(from) if *from <= now);
            if standing == Standing::Mounted
                && let Some(place) = helper.spaces.iter().position(due)
                && self.table.begin(Work::Settle { place: place as u8 }, client).is_ok()
            {
                // Tried again if it fails.
                self.members.all_mut()[at].helper.spaces[place] = Space::Back(now.plus(RETRY));
            }
        }
    }

    /// When something is to be given back.
    pub(super) fn compaction_timeout(&self) -> Option<Instant> {
        let spaces = self.members.all().iter().flat_map(|member| member.helper.spaces);
        let back = spaces.filter_map(|space| match space {
            Space::Back(from) => Some(from),
            Space::Free | Space::Asked(..) | Space::Out(_) => None,
        });
        back.chain(self.planner.poll_timeout()).min()
    }

    /// What was chosen can be merged.
    pub(super) fn on_planned(&mut self, now: Instant) {
        match self.planner.on_durable(now) {
            Next::Nothing => {}
            Next::Begin => {
                if let Ok(index) = self.table.begin(Work::Merge, ClientId(0)) {
                    self.merger.begin(index, self.planner.choice());
                }
            }
            Next::Ask(client, place) => self.ask(now, client, place),
        }
    }

    fn ask(&mut self, now: Instant, client: ClientId, place: u8) {
        let session = self.links.find(client);
        let name = session.and_then(|session| self.send_choice(session));
        let id = self.planner.id;
        let Some(member) = self.members.find(client) else { return };
        let space = &mut member.helper.spaces[usize::from(place)];
        let free = self.planner.jobs.iter().position(|job| job.choice.is_none());
        let (Some(name), Some(free)) = (name, free) else {
            // It has not been asked.
            *space = Space::Back(now);
            return;
        };
        *space = Space::Asked(id, Some(name));
        self.planner.counters.asked += 1;
        let choice = self.planner.choice().clone();
        let grants = core::mem::take(&mut self.planner.taken.grants);
        let job = &mut self.planner.jobs[free];
        (job.client, job.id, job.choice, job.grants) = (client, id, Some(choice), grants);
        (job.asked_at, job.down_since, job.is_slow) = (now, None, false);
    }

    fn send_choice(&mut self, session: SessionId) -> Option<RequestId> {
        let (choice, id) = (self.planner.choice(), self.planner.id);
        let record = |run: &Run| CompactRunRecord::new(run.order, &run.entry);
        let uppers: Vec<_, UPPERS_MAX> = choice.uppers.iter().map(record).collect();
        let lowers: Vec<_, LOWERS_MAX> = choice.lowers.iter().map(record).collect();
        let grants = self.planner.taken.grants.iter();
        let spaces: Vec<_, CHANGE_MAX> =
            grants.map(|(run, extent)| CompactSpaceRecord::new(*run, *extent)).collect();
        let fixed = Compact::fixed(id, choice.target, choice.drop_tombstones, choice.tail_after);
        let compact = Compact::new(fixed, &uppers, &lowers, &spaces).ok()?;
        self.links.request(session, &ServerRequest::Compact(compact)).ok()
    }

    /// A client has begun, or has not.
    pub(super) fn on_compact_answer(
        &mut self,
        now: Instant,
        client: ClientId,
        name: RequestId,
        error: Option<ErrorCode>,
    ) {
        let Some(member) = self.members.find(client) else { return };
        let helper = &mut member.helper;
        for space in &mut helper.spaces {
            let Space::Asked(id, Some(of)) = *space else { continue };
            if of != name {
                continue;
            }
            let Some(_) = error else {
                *space = Space::Out(id);
                continue;
            };
            *space = Space::Back(now);
            helper.ask_after = now.plus(BUSY_PAUSE);
            self.planner.counters.refused += 1;
            if let Some(job) = self.planner.find(id) {
                self.planner.jobs[job].choice = None;
                self.planner.look_again();
            }
        }
    }

    /// A client is gone, or says that it compacts nothing: it is asked for nothing more, and what
    /// it was asked for is given to others. What it was lent is another's business. How many
    /// compactions it may have been at work on.
    pub(super) fn forget_compactions(&mut self, client: ClientId) -> u64 {
        self.planner.forget(client);
        let Some(member) = self.members.find(client) else { return 0 };
        let helper = core::mem::take(&mut member.helper);
        helper.spaces.iter().filter(|space| space.out().is_some()).count() as u64
    }
}

#[cfg(test)]
mod tests;
