//! Choosing what to merge next.
//!
//! ```text
//!   Level(9) ... Level(1) ------------------------------------------> Level 0
//!     | too many runs?                                                  | too many runs?
//!     v                                                                 v
//!   Upper ----> Lowers ----> Deeper ----> a Choice        Collect ----> Lowers, or a Choice
//!     ^           | one is busy, or others are looked at before: the next upper
//!     +-----------+
//!
//!   Sweep(0): Collect ---> Lowers ---> Deeper ----------------------------> a Choice
//!                            | not worth it, or one is busy
//!                            v
//!   Sweep(1) ... Sweep(8): Below ---> Lowers ---> Deeper -----------------> a Choice
//!                            ^          | the same: the next upper
//!                            +----------+
//! ```
//!
//! The deepest level comes first, so that there is room below before something is merged down.
//!
//! # Sweeps
//!
//! A tombstone hides what is below, and both take space until they meet. On a volume that is used
//! they do so as levels fill up. On one that is left alone after much was deleted nothing fills up,
//! so at rest the chooser can be asked for a *sweep*: a merge down that is worth while for what it
//! lets go of, though no level has too many runs. It is chosen as any other, but the newest level
//! comes first, because what hides must get to what is hidden; and it is declined unless
//!
//! * the tombstones of the uppers, times the *patience* it was asked with, are as many as all items
//!   of the inputs; or
//! * all inputs together are no more than [`CRUMBS`] blocks, and fewer runs may come of them.
//!
//! So what a sweep writes is bounded by what may go: as many items for each tombstone as patience
//! says. *Sweeps end*, whoever asks for them how often: each takes its first key at least
//! one level down, or out of the tree; no merge takes an item up, none makes one, and there are
//! finitely many items and levels. A volume to which nothing is written is swept a last time.
//!
//! If everything was deleted, nearly all that is left are tombstones and what they hide, so every
//! level is worth sweeping in its turn, until the tombstones meet the deepest runs and all are
//! gone.
//!
//! # Invariants
//!
//! * Level 0 is merged in the order of age: what goes down are its oldest runs, together, and they
//!   end before the first that is busy. Until they are gone no other leaves the level.
//! * They go down when the oldest [`UPPERS_DOWN_MAX`] have [`Policy::level_0_blocks`] or more.
//!   Until then small runs are *joined*: neighbours in age become one that stays in level 0, with
//!   the order number of the newest of them, so that it is newer than what they were newer than.
//!   Which ones, the module `join` decides. Only if none can be, the oldest go down although they
//!   are less.
//! * In the levels below some runs are looked at, and the one goes down for which the least must be
//!   written again; now and then it is the turn of the run under a cursor, which goes round. The
//!   module `turns` has the rules. Busy ones are passed over, and so are those that overlap a busy
//!   run of the level below; when none is left, the level above has its turn.
//! * Runs that are on top of a merge are not counted any more: they are about to leave their level.
//! * What is chosen has at most [`LOWERS_MAX`] runs of the level below. If the keys of the
//!   uppers go on behind the last of these, what lies there stays in its level: the tail.
//! * Tombstones are left out when no level below that merged into has a run between the ends of
//!   the inputs.
//!
//! # Several merges at a time
//!
//! No run is an input of two, for what is merged is busy. Let the *claim* of a merge be all keys
//! from the least to the greatest of its inputs, up to its tail, in the level merged into: what it
//! merges down lies there. Then, as long as it is under way,
//!
//! 1. *no other run of that level overlaps the claim*. All that did were taken as lowers, or lie
//!    behind the tail. A run gets into the level from the one above, by a merge with a claim in
//!    this same level; or as a tail of a merge into the next, within the run that this tail was of.
//! 2. *Claims in one level are disjoint.* Level 0 has one merge down at a time: of the oldest, up
//!    to the first that is busy. In other levels the runs on top of two merges are disjoint, and of
//!    two lowers each overlaps one of them only, or the later merge would have met a busy run; so
//!    all of the one merge lies before all of the other. By 1, a claim in a level is also disjoint
//!    from the run on top of a merge from that level into the next, which is not among its lowers.
//! 3. *Where no deeper level had a run within the claim, none gets one.* What gets into the next
//!    level comes from a run of this one, which by 1 lies on one side of the claim, merged with
//!    runs of the next that overlap it and are outside the claim too, so on the same side. The same
//!    holds one level further down, where again no run within the claim is on top.
//!
//! By 2 the levels stay disjoint, and by 3 a tombstone that was left out has nothing to hide, even
//! if other merges end while it is merged. A choice is finished before another is begun, so that
//! the later always sees the earlier as busy.
//!
//! A sweep is a merge like the others to all of this.
//!
//! A choice is made in steps, from the manifest as it is at each, and runs come and go between
//! them. What it must not do is take a run and miss an older one that came later to where the walk
//! had been already. So it doesn't look at runs that were recorded after the walk began; and it
//! starts over when the count of finished merges has changed, because a tail comes with an old
//! order.
//!
//! What this module deliberately doesn't know: who merges, and where space comes from.

mod join;
mod turns;

use self::join::Join;
use self::turns::{Contest, Turns, Verdict};
use super::manifest::{self, CHANGE_MAX, Change, Manifest, Rank, Run};
use super::range::KeyRange;
use crate::block::{Cache, Pins};
use crate::btree::PINS_PER_READ;
use crate::error::{Corruption, Stop};
use crate::format::RunId;
use crate::format::key::{Key, KeyBytes};
use crate::format::records::ManifestKey;
use crate::format::root::LEVELS;
use crate::format::run::SEGMENT_BLOCKS;
use crate::mutant::{Mutant, is_active};
use heapless::Vec;

/// Most runs merged together, of one level.
pub const UPPERS_MAX: usize = 24;
/// Most runs merged down together.
pub const UPPERS_DOWN_MAX: usize = 8;
/// Most runs of the level below that are merged with them.
pub const LOWERS_MAX: usize = 8;
/// Blocks that are merged for the sake of having fewer runs, by a sweep.
pub const CRUMBS: u64 = 16;
/// Most blocks that a step obtains.
pub const PINS_PER_CHOOSE: u32 = 2 * PINS_PER_READ;

/// When there is something to merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Level 0 is merged when it has as many runs. At least 1.
    pub level_0_runs: u64,
    /// Blocks of level 0 that are worth merging down together.
    pub level_0_blocks: u64,
    /// Runs of level 0 with fewer blocks are small.
    pub small_blocks: u64,
    /// Level n, from 1 on, has at most this to the nth runs. At least 2.
    pub fanout: u64,
}

impl Policy {
    /// 4 MiB of level 0 at a time, and each level eight times as large as the one above. So level 1
    /// is what one merge takes with them, and no part of them is written again because it was too
    /// much.
    pub const STANDARD: Policy = Policy {
        level_0_runs: 8,
        level_0_blocks: 4 * SEGMENT_BLOCKS,
        small_blocks: SEGMENT_BLOCKS / 2,
        fanout: LOWERS_MAX as u64,
    };

    /// Whether a level has more runs than it should have.
    #[must_use]
    pub fn is_due(&self, level_runs: &[u64; LEVELS]) -> bool {
        let [level_0, below @ .., _] = level_runs;
        *level_0 >= self.level_0_runs
            || (1..).zip(below).any(|(level, runs)| *runs > self.runs_max(level))
    }

    /// The same, but each merge takes as little as it can: what fits although space is short.
    #[must_use]
    pub fn smallest(&self) -> Policy {
        Policy { level_0_blocks: 1, ..*self }
    }

    /// Runs this level, which is not 0, may have.
    fn runs_max(&self, level: u8) -> u64 {
        self.fanout.saturating_pow(level.into())
    }
}

/// What is to be merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Runs of one level. In level 0 neighbours in age.
    pub uppers: Vec<Run, UPPERS_MAX>,
    /// Runs of the level below, in the order of keys.
    pub lowers: Vec<Run, LOWERS_MAX>,
    /// The level to merge into: that of `lowers`, or that of `uppers`.
    pub target: u8,
    /// Keys of the uppers behind this one stay in their level.
    pub tail_after: Option<KeyBytes>,
    /// Tombstones needn't be kept.
    pub drop_tombstones: bool,
}

impl Choice {
    const NOTHING: Choice = Choice {
        uppers: Vec::new(),
        lowers: Vec::new(),
        target: 0,
        tail_after: None,
        drop_tombstones: false,
    };

    /// The runs that are busy from now on.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.uppers.iter().chain(&self.lowers)
    }

    /// The run as it is one level further down, if that is all there is to do: nothing is read or
    /// written. To be [moved](move_down) by the caller.
    #[must_use]
    pub fn moved(&self) -> Option<Run> {
        let [run] = &self.uppers[..] else { return None };
        let down = run.level != self.target && self.lowers.is_empty();
        let whole = !self.drop_tombstones || run.entry.tombstones == 0;
        (down && whole).then_some(Run { level: self.target, ..*run })
    }

    /// Whether a choice that somebody else made can be merged.
    pub fn check(&self) -> Result<(), Corruption> {
        let Some(level) = self.uppers.first().map(|run| run.level) else {
            return Err(Corruption::Bounds);
        };
        let below = self.lowers.iter().all(|run| run.level == self.target);
        let one_level = self.uppers.iter().all(|run| run.level == level);
        if !below || !one_level || self.uppers.len() > 1 && level > 0 {
            return Err(Corruption::Level);
        }
        let joins = self.target == level && self.lowers.is_empty() && !self.drop_tombstones;
        let down = self.target == level + 1 && usize::from(self.target) < LEVELS;
        if !(down || joins && self.tail_after.is_none()) {
            return Err(Corruption::Value);
        }
        match self.lowers.is_sorted_by(|a, b| a.range().last < b.range().first) {
            true => Ok(()),
            false => Err(Corruption::Order),
        }
    }

    /// Whether these runs, which somebody else made, can be what the choice was merged to: in the
    /// order in which they were made. What is in them can't be checked, nor where they stand.
    pub fn check_outputs(&self, outputs: &[Run]) -> Result<(), Corruption> {
        if self.uppers.len() + self.lowers.len() + outputs.len() > CHANGE_MAX {
            return Err(Corruption::Bounds);
        }
        let (hull, order) = (self.hull(), self.uppers.iter().map(|run| run.order).max());
        for run in outputs {
            let range = run.range();
            let fits = match self.tail_after {
                Some(after) if range.first > after => run.level == self.uppers[0].level,
                Some(after) => run.level == self.target && range.last <= after,
                None => run.level == self.target,
            };
            if !fits || hull.common(&range) != Some(range) || Some(run.order) != order {
                return Err(Corruption::Mismatch);
            }
        }
        match outputs.is_sorted_by(|a, b| a.range().last < b.range().first) {
            true => Ok(()),
            false => Err(Corruption::Order),
        }
    }

    /// From the least key of all inputs to the greatest.
    fn hull(&self) -> KeyRange {
        let ranges = self.runs().map(Run::range);
        ranges.reduce(|a, b| a.hull(&b)).expect("something was chosen")
    }
}

/// The change that moves a run down.
#[must_use]
pub fn move_down<'a>(from: &'a [Run; 1], to: &'a [Run; 1]) -> Change<'a> {
    Change { remove: from, add: to }
}

/// What has come of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Chosen {
    /// Nothing yet: step again.
    Step,
    /// There is a [`Chooser::choice`].
    Choice,
    /// There is nothing to merge now.
    Nothing,
}

/// What a choice is made from.
#[derive(Debug, Clone, Copy)]
pub struct Field<'a> {
    /// The runs there are.
    pub manifest: &'a Manifest,
    /// How many in each level.
    pub level_runs: &'a [u64; LEVELS],
    /// Those that are being merged.
    pub busy: &'a [RunId],
    /// How many of those in each level are on top of a merge, and so about to leave it.
    pub pending: &'a [u64; LEVELS],
    /// Counts up with each change that removes runs.
    pub merges: u64,
    /// The order number that the next run gets when it is recorded.
    pub next_order: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Level(u8),
    /// Looking for a run of this level that isn't busy.
    Upper(u8),
    /// Going through level 0.
    Collect,
    /// Going through the level below the uppers.
    Lowers,
    /// Looking at this level, below the target, for anything older.
    Deeper(u8),
    Chosen,
    /// Entering a level for a sweep.
    Sweep(u8),
    /// Looking for a run of this level that is worth sweeping.
    Below(u8),
}

/// See the module.
#[derive(Debug)]
pub struct Chooser {
    policy: Policy,
    /// With how much patience a sweep is looked for, if one is.
    sweep: Option<u64>,
    /// Where the next upper run of each level is looked for.
    turns: Turns,
    /// Those that were looked at for this choice; whether one of them was taken.
    contest: Contest,
    decided: bool,
    phase: Phase,
    merges: u64,
    /// Where the walk goes on.
    at: ManifestKey,
    /// Runs of this level that the walk has met, and whether it began again at the least keys.
    met: u64,
    wrapped: bool,
    /// Runs of level 0 from this order on came after the walk began.
    order_end: u64,
    /// The oldest runs of level 0, oldest first; and whether there are more.
    oldest: Vec<Run, UPPERS_MAX>,
    choice: Choice,
}

/// The last level that is merged into another.
const DEEPEST: u8 = LEVELS as u8 - 2;

fn start_of(level: u8) -> ManifestKey {
    manifest::key(level, &Rank { order: 0, first: Key::MIN.into() })
}

impl Chooser {
    /// A chooser that begins with the least keys.
    #[must_use]
    pub fn new(policy: Policy) -> Chooser {
        assert!(policy.level_0_runs > 0 && policy.fanout > 1);
        Chooser {
            policy,
            sweep: None,
            turns: Turns::new(),
            contest: Contest::none(),
            decided: false,
            phase: Phase::Level(DEEPEST),
            merges: 0,
            at: start_of(0),
            met: 0,
            wrapped: false,
            order_end: 0,
            oldest: Vec::new(),
            choice: Choice::NOTHING,
        }
    }

    /// Chooses by this policy from the next [`begin`](Self::begin) on.
    pub fn adopt(&mut self, policy: Policy) {
        assert!(policy.level_0_runs > 0 && policy.fanout > 1);
        self.policy = policy;
    }

    /// Chooses a sweep from the next [`begin`](Self::begin) on, with so much patience; with none,
    /// for levels that have too many runs.
    pub fn aim(&mut self, sweep: Option<u64>) {
        self.sweep = sweep;
    }

    /// Starts to choose.
    pub fn begin(&mut self, field: &Field<'_>) {
        self.merges = field.merges;
        self.choice.uppers.clear();
        self.choice.lowers.clear();
        (self.choice.tail_after, self.choice.drop_tombstones) = (None, false);
        self.phase = match self.sweep {
            Some(_) => Phase::Sweep(0),
            None => Phase::Level(DEEPEST),
        };
    }

    /// What was chosen.
    #[must_use]
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// Goes on choosing, by one entry of the manifest. Stops like any restartable function.
    pub fn step(
        &mut self,
        field: &Field<'_>,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Chosen, Stop> {
        if self.merges != field.merges {
            self.begin(field);
        }
        let mark = pins.mark();
        let chosen = match self.phase {
            Phase::Level(level) => self.enter_level(level, field),
            Phase::Upper(level) => {
                self.find_upper(level, field, cache, pins)?;
                Chosen::Step
            }
            Phase::Collect => self.collect(field, cache, pins)?,
            Phase::Lowers => self.find_lower(field, cache, pins)?,
            Phase::Deeper(level) => self.look_deeper(level, field, cache, pins)?,
            Phase::Chosen => Chosen::Choice,
            Phase::Sweep(level) => self.enter_sweep(level, field),
            Phase::Below(level) => {
                self.find_worth(level, field, cache, pins)?;
                Chosen::Step
            }
        };
        pins.drop_to(mark);
        cache.drop_leftovers(pins);
        Ok(chosen)
    }

    fn enter_level(&mut self, level: u8, field: &Field<'_>) -> Chosen {
        let pending = field.pending[usize::from(level)];
        let runs = field.level_runs[usize::from(level)].saturating_sub(pending);
        if level == 0 {
            if runs < self.policy.level_0_runs {
                return Chosen::Nothing;
            }
            self.begin_collecting(field);
        } else if runs > self.policy.runs_max(level) {
            let (contest, first) = self.turns.begin(level);
            (self.contest, self.decided) = (contest, false);
            self.at = manifest::key(level, &Rank { order: 0, first });
            (self.met, self.wrapped, self.phase) = (0, false, Phase::Upper(level));
        } else {
            self.phase = Phase::Level(level - 1);
        }
        Chosen::Step
    }

    fn begin_collecting(&mut self, field: &Field<'_>) {
        self.oldest.clear();
        self.order_end = field.next_order;
        (self.at, self.phase) = (start_of(0), Phase::Collect);
    }

    fn enter_sweep(&mut self, level: u8, field: &Field<'_>) -> Chosen {
        if level > DEEPEST {
            return Chosen::Nothing;
        }
        if level == 0 {
            self.begin_collecting(field);
        } else if field.level_runs[usize::from(level)] > 0 {
            (self.at, self.phase) = (start_of(level), Phase::Below(level));
        } else {
            self.phase = Phase::Sweep(level + 1);
        }
        Chosen::Step
    }

    /// Looks whether the next run of this level may be worth sweeping.
    fn find_worth(
        &mut self,
        level: u8,
        field: &Field<'_>,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(), Stop> {
        let run = field.manifest.next(&self.at, cache, pins)?.filter(|run| run.level == level);
        let Some(run) = run else {
            self.phase = Phase::Sweep(level + 1);
            return Ok(());
        };
        // Each run is looked at once: what comes in between starts the choice over.
        self.at = manifest::key_after(&run.key()).unwrap_or(start_of(level + 1));
        let promises = self.lets_go(&[run], &[]) || run.entry.blocks() < CRUMBS;
        if promises && !field.busy.contains(&run.id()) {
            self.take_upper(level, run);
        }
        Ok(())
    }

    /// Whether the tombstones of these uppers are enough for a sweep of all these runs.
    fn lets_go(&self, uppers: &[Run], lowers: &[Run]) -> bool {
        let tombstones = uppers.iter().map(|run| u64::from(run.entry.tombstones.get()));
        let all = uppers.iter().chain(lowers);
        let items: u64 = all.map(|run| u64::from(run.entry.items.get())).sum();
        let tombstones: u64 = tombstones.sum();
        tombstones.saturating_mul(self.sweep.unwrap_or(0)) >= items.max(1)
    }

    /// Whether what was chosen is worth a sweep.
    fn is_worth_while(&self) -> bool {
        let Choice { uppers, lowers, .. } = &self.choice;
        let blocks: u64 = self.choice.runs().map(|run| run.entry.blocks()).sum();
        let crumbs = blocks <= CRUMBS && uppers.len() + lowers.len() > 1;
        self.lets_go(uppers, lowers) || crumbs
    }

    /// These uppers are not merged down now: goes on with others, if it need not be these.
    fn decline(&mut self) -> Chosen {
        let level = self.choice.target - 1;
        self.phase = match (level, self.sweep) {
            (0, Some(_)) => Phase::Sweep(1),
            // Level 0 has no other choice.
            (0, None) => return Chosen::Nothing,
            (_, Some(_)) => Phase::Below(level),
            (_, None) => Phase::Upper(level),
        };
        Chosen::Step
    }

    /// The lowers are chosen: goes on with the levels below, unless it is a sweep that is not worth
    /// while, or others are to be looked at before.
    fn end_lowers(&mut self) -> Chosen {
        let is_contest = self.choice.target > 1 && !self.decided;
        if self.sweep.is_some() && !self.is_worth_while() {
            return self.decline();
        }
        if self.sweep.is_none() && is_contest && !self.weigh() {
            return Chosen::Step;
        }
        self.phase = Phase::Deeper(self.choice.target + 1);
        Chosen::Step
    }

    /// Whether it is this run that goes down, of those that were looked at.
    fn weigh(&mut self) -> bool {
        let level = self.choice.target - 1;
        let below = self.choice.lowers.iter().map(|run| run.entry.blocks()).sum();
        let run = self.choice.uppers.last().expect("it was looked at");
        let verdict = self.contest.weigh(run, below);
        match verdict {
            Verdict::Next => self.phase = Phase::Upper(level),
            Verdict::Before => self.end_looking(level),
            Verdict::Take => self.turns.taken(&self.contest),
        }
        verdict == Verdict::Take
    }

    /// There are no more to be looked at: takes the best, if there is one.
    fn end_looking(&mut self, level: u8) {
        let Some(best) = self.contest.best().filter(|_| !self.decided) else {
            self.phase = Phase::Level(level - 1);
            return;
        };
        self.turns.taken(&self.contest);
        self.decided = true;
        self.take_upper(level, best);
    }

    /// Looks at the next run of this level.
    fn find_upper(
        &mut self,
        level: u8,
        field: &Field<'_>,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(), Stop> {
        let all_met = self.met >= field.level_runs[usize::from(level)];
        let run = field.manifest.next(&self.at, cache, pins)?.filter(|run| run.level == level);
        let Some(run) = run.filter(|_| !all_met) else {
            if self.wrapped || all_met {
                self.end_looking(level);
            } else {
                (self.at, self.wrapped) = (start_of(level), true);
            }
            return Ok(());
        };
        self.met += 1;
        self.at = manifest::key_after(&run.key()).unwrap_or(self.at);
        if !field.busy.contains(&run.id()) {
            self.take_upper(level, run);
        }
        Ok(())
    }

    /// Goes on with what lies below this run of this level.
    fn take_upper(&mut self, level: u8, run: Run) {
        self.choice.uppers.clear();
        self.choice.uppers.push(run).expect("there is room for one");
        self.merge_down(level);
    }

    /// The uppers are chosen: goes on with the level below.
    fn merge_down(&mut self, level: u8) {
        self.choice.lowers.clear();
        (self.choice.target, self.choice.tail_after) = (level + 1, None);
        self.phase = Phase::Lowers;
    }

    /// Looks for the next run of the level below that lies between the ends of the uppers.
    fn find_lower(
        &mut self,
        field: &Field<'_>,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Chosen, Stop> {
        let target = self.choice.target;
        let uppers = self.choice.uppers.iter().map(Run::range);
        let hull = uppers.reduce(|a, b| a.hull(&b)).expect("chosen before");
        let found = match self.choice.lowers.last() {
            None => self.first_lower(&hull, field, cache, pins)?,
            Some(last) => match manifest::key_after(&last.key()) {
                Some(from) => field.manifest.next(&from, cache, pins)?,
                None => None,
            },
        };
        let found = found.filter(|run| run.level == target && run.range().overlaps(&hull));
        let Some(run) = found else { return Ok(self.end_lowers()) };
        if let Some(last) = self.choice.lowers.last()
            && last.range().last >= run.range().first
        {
            return Err(field.manifest.corrupt(Corruption::Order).into());
        }
        if field.busy.contains(&run.id()) && !self.choice.lowers.is_full() {
            return Ok(self.decline());
        }
        if let Err(_too_many) = self.choice.lowers.push(run) {
            self.choice.tail_after = self.choice.lowers.last().map(|last| last.range().last);
            return Ok(self.end_lowers());
        }
        Ok(Chosen::Step)
    }

    /// The first run of the level below that may lie between the ends.
    fn first_lower(
        &self,
        hull: &KeyRange,
        field: &Field<'_>,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Option<Run>, Stop> {
        let target = self.choice.target;
        let floor = field.manifest.floor(target, &hull.first, cache, pins)?;
        if floor.is_some_and(|run| run.range().overlaps(hull)) {
            return Ok(floor);
        }
        let from = manifest::key(target, &Rank { order: 0, first: hull.first });
        field.manifest.next(&from, cache, pins)
    }

    /// Looks whether a deeper level has anything that a tombstone might have to hide.
    fn look_deeper(
        &mut self,
        level: u8,
        field: &Field<'_>,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Chosen, Stop> {
        self.choice.drop_tombstones =
            usize::from(level) >= LEVELS || is_active(Mutant::DeletionsDroppedEarly);
        if !self.choice.drop_tombstones {
            let hull = self.choice.hull();
            let floor = field.manifest.floor(level, &hull.last, cache, pins)?;
            if floor.is_none_or(|run| !run.range().overlaps(&hull)) {
                self.phase = Phase::Deeper(level + 1);
                return Ok(Chosen::Step);
            }
        }
        self.phase = Phase::Chosen;
        Ok(Chosen::Choice)
    }

    /// Notes the next run of level 0, if it is one of the oldest.
    fn collect(
        &mut self,
        field: &Field<'_>,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Chosen, Stop> {
        let run = field.manifest.next(&self.at, cache, pins)?.filter(|run| run.level == 0);
        let Some(run) = run else { return Ok(self.choose_oldest(field)) };
        self.at = manifest::key_after(&run.key()).unwrap_or(start_of(1));
        if run.order >= self.order_end {
            return Ok(Chosen::Step);
        }
        let at = self.oldest.partition_point(|other| other.rank() < run.rank());
        if self.oldest.is_full() && at < UPPERS_MAX {
            self.oldest.pop();
        }
        if at < UPPERS_MAX {
            self.oldest.insert(at, run).expect("there is room");
        }
        Ok(Chosen::Step)
    }

    fn choose_oldest(&mut self, field: &Field<'_>) -> Chosen {
        if is_active(Mutant::LevelZeroOutOfOrder) && !self.oldest.is_empty() {
            self.oldest.remove(0);
        }
        let idle = |run: &Run| !field.busy.contains(&run.id());
        let ready = self.oldest.iter().take_while(|run| idle(run)).count();
        if self.sweep.is_some() {
            if ready == 0 {
                self.phase = Phase::Sweep(1);
            } else {
                self.choose_aged(0, ready.min(UPPERS_DOWN_MAX));
                self.merge_down(0);
            }
            return Chosen::Step;
        }
        let blocks = |runs: &[Run]| runs.iter().map(|run| run.entry.blocks()).sum::<u64>();
        let enough = (1..=ready.min(UPPERS_DOWN_MAX))
            .find(|&count| blocks(&self.oldest[..count]) >= self.policy.level_0_blocks);
        let joined = match enough {
            Some(_) => None,
            None => join::find(&self.oldest, &self.policy, idle),
        };
        if let Some(Join { from, count, .. }) = joined {
            self.choose_aged(from, count);
            self.choice.lowers.clear();
            (self.choice.target, self.choice.tail_after) = (0, None);
            (self.choice.drop_tombstones, self.phase) = (false, Phase::Chosen);
            return Chosen::Choice;
        }
        if ready == 0 {
            return Chosen::Nothing;
        }
        self.choose_aged(0, enough.unwrap_or(ready.min(UPPERS_DOWN_MAX)));
        self.merge_down(0);
        Chosen::Step
    }

    /// Chooses so many of the oldest, from this one on. Fewer if that would take apart runs of one
    /// order, unless all are: what is made of them gets that order, and could not be told from
    /// those left, which are newer than the rest of it.
    fn choose_aged(&mut self, from: usize, count: usize) {
        let whole = (1..=count).rev().find(|count| !join::splits(&self.oldest, from + count));
        let runs = &self.oldest[from..][..whole.unwrap_or(count)];
        self.choice.uppers.clear();
        self.choice.uppers.extend(runs.iter().copied());
    }
}
