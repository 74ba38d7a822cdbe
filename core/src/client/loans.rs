//! What a mount is lent: blocks for file data and for runs, numbers for inodes and for runs.
//!
//! ```text
//!           step: something is low, or too much      handle_sent
//!   (none) ------------------------------> unsent --------------> asked
//!     ^                                                             |
//!     +--------- handle_loan, handle_refused -----------------------+
//! ```
//!
//! Of each kind a mount has what is free, here and in [`Blocks`] and [`Inos`]; what it has used, of
//! which the next transaction tells the server; and what is on its way back in a request:
//!
//! ```text
//!   lent = free + reserved for the runs of a transaction + used + going back
//! ```
//!
//! # Invariants
//!
//! * There is one request at a time. It stays the same until it is answered, and its number follows
//!   the last one's that was answered: one that was refused has not used its number.
//! * What was put into a request to be given back is not used any more, whatever comes of that.
//! * Nothing is used that was not lent, lies outside the volume, or is here already.
//! * A mount has blocks for runs before it makes what needs them: while there are fewer than all
//!   the dirty items there may be need, no block for data is asked for, and none, and no number for
//!   an inode, can be taken. If the server has no more either, who needs one fails for want of
//!   space, and the blocks for data go back. So deletes find their way out of a full volume.
//! * The server keeps of each kind up to [`EXTENTS_MAX`] extents for a client, also between the
//!   changes that one message makes. As all that a mount has and all that it has used are fewer
//!   extents than that, no message of its can exceed it.
//!
//! # Refusals
//!
//! [`NoSpace`](ErrorCode::NoSpace): nothing of what was asked for is left. Who waits for blocks is
//! told so. All others say that the server can't just now, or that one of the two is wrong about
//! what is lent. In each case nothing has changed; [`Loans::retry`] asks again.
//!
//! A loan may also be in vain: blocks for runs were lent, and still there are too few, or in too
//! many pieces, for what is to be committed. On a full volume asking at once would bring more of
//! the same, at the cost of a commit each time. So that counts as having less than was asked for:
//! what is of no use is given back, all of it together, and [`patience`](Loans::patience) says how
//! much longer than usual the pause is to be.
//!
//! At a farewell, and at an eviction, the server takes back by itself what it has recorded as lent.
//! So a mount that leaves gives nothing back one by one.
//!
//! What this module deliberately doesn't know: the network, and how long a pause is.

use super::commit::{CommitLimits, Share};
use super::extents::{Extents, NotAdded, Span};
use super::fs::pools::{Gate, INO_USES_MAX, USES_MAX};
use super::fs::{BlockRun, Blocks, Inos, ROOT};
use crate::arena::{Arena, ArenaFull};
use crate::format::records::Pool;
use crate::format::root;
use crate::format::run::SEGMENT_BLOCKS;
use crate::format::super_block::Super;
use crate::format::wire::ErrorCode;
use crate::format::wire::message::{
    Extent, ExtentRecord, Extents as Listed, FREED_MAX, LOAN_EXTENTS_MAX, Loan, LoanRequest,
    RETURNED_MAX, RUNS_MAX, Recall,
};
use crate::format::{BlockNo, Ino, RunId};
use crate::lock::GROUP_KEYS;
use crate::txn::loans::EXTENTS_MAX;
use core::fmt;
use heapless::Vec;

/// Extents of blocks for data that are kept: what is here when more is asked for, and an answer.
const DATA_EXTENTS: usize = LOAN_EXTENTS_MAX + 16;
/// The same for runs, and what a transaction may give back.
const RUN_EXTENTS: usize = DATA_EXTENTS + RUNS_MAX;
/// The same for numbers of runs. These are lent in one piece.
const ID_EXTENTS: usize = LOAN_EXTENTS_MAX + RUNS_MAX;
/// Numbers of runs asked for at a time: for eight transactions at least.
const IDS_WANTED: u32 = 8 * RUNS_MAX as u32;
/// Extents that one request gives back of one kind.
const BACK_MAX: usize = RETURNED_MAX / 2;
/// Blocks for data that a recall leaves to be asked for, and a small volume.
const DATA_MIN: u32 = 64;
/// Nobody borrows a larger part of the volume's blocks at a time for data.
const DATA_PART: u64 = 64;
/// Loans in vain, one after the other, that make the pause longer.
const VAIN_MAX: u32 = 3;

// What is free, what transactions have used, and what is given back.
const _: () = assert!(RUN_EXTENTS + RUNS_MAX + BACK_MAX <= EXTENTS_MAX);
const _: () = assert!(DATA_EXTENTS + USES_MAX + BACK_MAX <= EXTENTS_MAX);
const _: () = assert!(LoanLimits::GROUPS_MAX as usize + INO_USES_MAX + BACK_MAX <= EXTENTS_MAX);

/// How much a mount borrows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoanLimits {
    /// Blocks for file data that it has after a request; with half of that left it asks for more.
    /// On a small volume they are a part of it, if that is less.
    pub data_blocks: u32,
    /// Lock groups of inode numbers: one for each directory that is made or worked in.
    pub ino_groups: u32,
    /// Lock groups that nobody uses yet which it has after a request; with half of that left it
    /// asks for more.
    pub ino_spare: u32,
    /// What runs are needed for.
    pub commit: CommitLimits,
}

/// Why a mount with these limits would not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitsError {
    /// No block for data: no file could be written.
    Data,
    /// No spare lock group, fewer groups than spare ones, or more than the server keeps for one
    /// client.
    Groups,
    /// The dirty items don't fit the runs of one transaction.
    Commit,
}

impl fmt::Display for LimitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LimitsError::Data => "loans: no blocks for data",
            LimitsError::Groups => "loans: the groups of inode numbers are too few or too many",
            LimitsError::Commit => "loans: more dirty items than a transaction can take",
        })
    }
}

impl LoanLimits {
    /// Most lock groups.
    pub const GROUPS_MAX: u32 = 64;

    /// Whether a mount with these limits always makes progress.
    pub fn validate(&self) -> Result<(), LimitsError> {
        if self.data_blocks == 0 {
            Err(LimitsError::Data)
        } else if self.ino_spare == 0
            || self.ino_groups < self.ino_spare
            || self.ino_groups > Self::GROUPS_MAX
        {
            Err(LimitsError::Groups)
        } else if self.commit.run_blocks().is_none() {
            Err(LimitsError::Commit)
        } else {
            Ok(())
        }
    }
}

/// What happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Requests answered.
    pub requests: u64,
    /// Requests refused.
    pub refused: u64,
    /// Blocks lent, for data and for runs.
    pub blocks_lent: u64,
    /// Blocks given back.
    pub blocks_returned: u64,
    /// Loans of blocks for runs that did not help.
    pub vain: u64,
    /// Extents that were lent although they can't be: outside the volume, or lent before.
    pub unusable: u64,
    /// Extents that items said to be freed although they lie outside the volume: they are not told.
    pub broken_frees: u64,
}

/// Blocks reserved for a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// Where. At most a segment.
    pub(super) blocks: Span,
    /// How many of them are for the filter.
    pub(super) filter_blocks: usize,
    /// The run's number.
    pub(super) id: RunId,
}

/// A request, but for what it gives back.
#[derive(Debug, Clone, Copy, Default)]
struct Asked {
    data: u32,
    runs: u32,
    inodes: u32,
    ids: u32,
    sent: bool,
}

/// What the server has just had none of.
#[derive(Debug, Clone, Copy, Default)]
struct Short {
    data: bool,
    runs: bool,
    /// It has refused a request as a whole.
    all: bool,
}

/// See the module.
pub struct Loans<'m> {
    /// For file data.
    pub blocks: Blocks<'m>,
    /// For inodes.
    pub inos: Inos<'m>,
    /// Blocks for runs.
    runs: Extents<'m>,
    /// Numbers for runs.
    ids: Extents<'m>,
    limits: LoanLimits,
    volume_blocks: u64,
    /// Blocks that the largest transaction needs.
    runs_low: u32,
    /// Blocks for data to be had after a request. A recall lowers it, each request doubles it.
    data_target: u32,
    /// The last request that was answered.
    number: u64,
    asked: Option<Asked>,
    /// What the request gives back; if there is none, what the next one begins with.
    returned: Vec<ExtentRecord, RETURNED_MAX>,
    /// What is to be given back by the next request. What doesn't fit remains lent.
    back: Vec<Extent, RETURNED_MAX>,
    /// Blocks for data, and for runs, that the server wants back.
    recalled: [u64; 2],
    short: Short,
    /// The server has had no blocks for runs, and those that are here don't suffice for all the
    /// dirty items there may be.
    starved: bool,
    gate: Gate,
    /// A transaction could not begin.
    runs_wanted: bool,
    /// Since then blocks for runs were lent.
    runs_lent: bool,
    /// How many times in a row that was in vain.
    vain: u32,
    wake: bool,
    closed: bool,
    counters: Counters,
}

impl<'m> Loans<'m> {
    /// Carves empty pools. The limits must be valid.
    pub fn carve(
        arena: &mut Arena<'m>,
        limits: &LoanLimits,
        volume: &Super,
    ) -> Result<Loans<'m>, ArenaFull> {
        assert!(limits.validate().is_ok());
        let runs_low = limits.commit.run_blocks().expect("just validated");
        let part = u32::try_from(volume.blocks() / DATA_PART).unwrap_or(u32::MAX).max(DATA_MIN);
        let limits = &LoanLimits { data_blocks: limits.data_blocks.min(part), ..*limits };
        Ok(Loans {
            blocks: Blocks::carve(arena, DATA_EXTENTS as u32, FREED_MAX as u32)?,
            inos: Inos::carve(arena, limits.ino_groups)?,
            runs: Extents::carve(arena, RUN_EXTENTS as u32)?,
            ids: Extents::carve(arena, ID_EXTENTS as u32)?,
            limits: *limits,
            volume_blocks: volume.blocks(),
            runs_low: runs_low as u32,
            data_target: limits.data_blocks,
            number: 0,
            asked: None,
            returned: Vec::new(),
            back: Vec::new(),
            recalled: [0; 2],
            short: Short::default(),
            starved: false,
            gate: Gate::Wait,
            runs_wanted: false,
            runs_lent: false,
            vain: 0,
            wake: false,
            closed: false,
            counters: Counters::default(),
        })
    }

    /// Makes a request if one is due and none is under way. To be called at each step of the node,
    /// before [`request`](Self::request).
    pub fn step(&mut self) {
        self.update_gate();
        if self.closed || self.asked.is_some() || self.short.all {
            return;
        }
        if self.returned.is_empty() {
            self.give_back_surplus();
        }
        while !self.returned.is_full()
            && let Some(extent) = self.back.pop()
        {
            self.returned.push(ExtentRecord::new(extent)).expect("it is not full");
        }
        let asked = self.wants();
        let wants = [asked.data, asked.runs, asked.inodes, asked.ids];
        if wants != [0; 4] || !self.returned.is_empty() {
            self.asked = Some(asked);
        }
    }

    /// What is low.
    fn wants(&mut self) -> Asked {
        let mut asked = Asked::default();
        let (runs, low) = (self.runs.count(), u64::from(self.runs_low));
        let data = self.blocks.available();
        let target = u64::from(self.data_target);
        let room = self.blocks.room() >= LOAN_EXTENTS_MAX;
        if runs >= low && !self.short.data && room && data * 2 <= target {
            asked.data = (target - data) as u32;
            self.data_target = self.data_target.saturating_mul(2).min(self.limits.data_blocks);
        }
        if !self.short.runs && self.has_room_for_runs() && (runs < 2 * low || self.runs_wanted) {
            asked.runs = (3 * low).saturating_sub(runs).max(low) as u32;
        }
        if self.ids.count() < 2 * RUNS_MAX as u64 {
            asked.ids = IDS_WANTED;
        }
        let spare = self.inos.spare();
        if spare * 2 <= self.limits.ino_spare as usize {
            let groups = (self.limits.ino_spare as usize - spare).min(self.inos.room());
            asked.inodes = groups as u32 * GROUP_KEYS as u32;
        }
        asked
    }

    /// Whether an answer, and what a transaction may give back, can be kept.
    fn has_room_for_runs(&self) -> bool {
        self.runs.room() >= LOAN_EXTENTS_MAX + RUNS_MAX
    }

    /// Collects what the server wants back, and what is of no use here.
    fn give_back_surplus(&mut self) {
        let available = self.blocks.available();
        let above = available.saturating_sub(2 * u64::from(self.limits.data_blocks));
        let mut data = match self.starved {
            true => available,
            false => above.max(self.recalled[0].min(available)),
        };
        for _ in 0..BACK_MAX / 2 {
            let wanted = u32::try_from(data).unwrap_or(u32::MAX);
            if wanted == 0 || self.back.is_full() {
                break;
            }
            let Some(span) = self.blocks.give_back(wanted) else { break };
            data -= u64::from(span.len);
            self.give_back(Pool::Data, span);
        }
        let runs = self.runs.count();
        let above = runs.saturating_sub(4 * u64::from(self.runs_low));
        let spare = runs.saturating_sub(self.runs_low.into());
        let mut surplus = above.max(self.recalled[1].min(spare));
        // Splinters, of which no transaction can use as many, or which leave no room for more.
        let crowded = runs < 2 * u64::from(self.runs_low) && !self.has_room_for_runs();
        let splinters = (self.runs_wanted || crowded) && self.runs.len() > RUNS_MAX;
        while self.back.len() < BACK_MAX {
            let splinter = splinters && self.runs.len() > RUNS_MAX;
            if surplus == 0 && !splinter {
                break;
            }
            let spans = self.runs.spans().iter().enumerate();
            let Some((at, _)) = spans.min_by_key(|(_, span)| span.len) else { break };
            let wanted = if splinter { u32::MAX } else { surplus.min(u32::MAX.into()) as u32 };
            let span = self.runs.take_last(at, wanted);
            surplus = surplus.saturating_sub(span.len.into());
            self.give_back(Pool::Runs, span);
        }
        self.recalled = [0; 2];
    }

    fn give_back(&mut self, pool: Pool, span: Span) {
        if matches!(pool, Pool::Data | Pool::Runs) {
            self.counters.blocks_returned += u64::from(span.len);
        }
        // What there is no room for is nobody's until the farewell.
        let _ = self.back.push(Extent { pool, start: span.first, count: span.len });
    }

    /// The request, from when it may be sent until it is answered; the same all the time.
    #[must_use]
    pub fn request(&self) -> Option<LoanRequest<'_>> {
        let asked = self.asked?;
        let returned = Listed::new(&self.returned).expect("of our own making");
        Some(LoanRequest {
            number: self.number + 1,
            data_blocks: asked.data,
            run_blocks: asked.runs,
            inodes: asked.inodes,
            run_ids: asked.ids,
            returned,
        })
    }

    /// Whether there is a request which has still to be given to the session. That sends it again
    /// when needed.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        self.asked.is_some_and(|asked| !asked.sent)
    }

    /// The session has taken the request.
    pub fn handle_sent(&mut self) {
        if let Some(asked) = &mut self.asked {
            asked.sent = true;
        }
    }

    /// Takes note of an answer. One that was answered before changes nothing.
    pub fn handle_loan(&mut self, loan: &Loan<'_>) {
        let Some(asked) = self.asked.filter(|asked| asked.sent) else { return };
        if loan.number != self.number + 1 {
            return;
        }
        self.number = loan.number;
        self.asked = None;
        self.returned.clear();
        self.counters.requests += 1;
        self.runs_wanted &= asked.runs == 0;
        self.runs_lent |= asked.runs > 0;
        self.accept(&loan.lent);
        let got = |pool| loan.lent.iter().any(|extent| extent.pool == pool);
        self.note_short(asked.data > 0 && !got(Pool::Data), asked.runs > 0 && !got(Pool::Runs));
    }

    /// The server has refused the request that was sent, which has changed nothing there. Nothing
    /// is asked for again before [`retry`](Self::retry).
    pub fn handle_refused(&mut self, error: ErrorCode) {
        let Some(asked) = self.asked.filter(|asked| asked.sent) else { return };
        self.asked = None;
        self.counters.refused += 1;
        if error == ErrorCode::NoSpace {
            self.note_short(asked.data > 0, asked.runs > 0);
        } else {
            self.short.all = true;
        }
    }

    /// The server has none of what was asked for: who waits for it must know.
    fn note_short(&mut self, data: bool, runs: bool) {
        self.short.data |= data;
        self.short.runs |= runs;
        if data {
            self.blocks.refuse();
        }
        self.starved |= runs && self.runs.count() < u64::from(self.runs_low);
        self.update_gate();
        self.wake = true;
    }

    fn update_gate(&mut self) {
        let low = self.runs.count() < u64::from(self.runs_low);
        self.starved &= low;
        let gate = match low {
            _ if self.closed || self.starved => Gate::Fail,
            true => Gate::Wait,
            false => Gate::Open,
        };
        self.wake |= gate != self.gate;
        self.gate = gate;
        self.blocks.gate(gate);
        self.inos.gate(gate);
    }

    /// The server wants something back. Numbers of inodes and runs are not scarce, and stay.
    pub fn handle_recall(&mut self, recall: &Recall) {
        match recall.pool {
            Pool::Data => {
                self.recalled[0] += u64::from(recall.count);
                let left = self.blocks.available().saturating_sub(self.recalled[0]);
                let left = u32::try_from(left).unwrap_or(u32::MAX).max(DATA_MIN);
                self.data_target = left.min(self.data_target);
            }
            Pool::Runs => self.recalled[1] += u64::from(recall.count),
            Pool::Inodes | Pool::RunIds | Pool::Compaction => {}
        }
    }

    /// Asks again for what the server had none of: to be called after a pause, while
    /// [`is_short`](Self::is_short).
    pub fn retry(&mut self) {
        self.short = Short::default();
    }

    /// How many times as long as usual the pause before [`retry`](Self::retry) is to be.
    #[must_use]
    pub fn patience(&self) -> u32 {
        1 << self.vain.min(VAIN_MAX)
    }

    /// Whether the server had less than was asked for, or less than is of use.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.short.data || self.short.runs || self.short.all
    }

    /// Whether the open transaction must be committed soon: what it used and freed is much of what
    /// a transaction can name. When it is all, tasks wait for blocks, numbers or a commit.
    #[must_use]
    pub fn is_commit_wanted(&self) -> bool {
        self.blocks.used.is_long() || self.blocks.freed.is_long() || self.inos.used.is_long()
    }

    /// Whether, since this was last asked, something has changed for those who wait for
    /// [`fs::Wait::Blocks`](super::fs::Wait) or [`fs::Wait::Inos`](super::fs::Wait): run them
    /// again.
    pub fn poll_wake(&mut self) -> bool {
        core::mem::take(&mut self.wake)
    }

    /// The mount has left, or was evicted: what it was lent is void. Nothing can be taken any more,
    /// and nothing is asked for.
    pub fn close(&mut self) {
        self.closed = true;
        self.asked = None;
        self.update_gate();
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Blocks for runs that are here and free.
    #[must_use]
    pub fn run_blocks(&self) -> u64 {
        self.runs.count()
    }

    /// How much of a kind is to be given back, and, if `asked`, is in the request.
    #[cfg(test)]
    pub(super) fn going_back(&self, pool: Pool, asked: bool) -> u64 {
        let back = self.back.iter().filter(|extent| extent.pool == pool);
        let back: u64 = back.map(|extent| u64::from(extent.count)).sum();
        let returned: u64 = spans(&self.returned, pool).map(|span| u64::from(span.len)).sum();
        back + if asked { returned } else { 0 }
    }

    /// Whether nothing can be taken for want of blocks for runs.
    #[cfg(test)]
    pub(super) fn is_starved(&self) -> bool {
        self.starved
    }

    /// Takes in what is lent.
    pub(super) fn accept(&mut self, lent: &Listed<'_>) {
        for extent in lent.iter() {
            let Extent { pool, start, count } = extent;
            let span = Span { first: start, len: count };
            let inside = root::Extent::new(BlockNo(start), count.into());
            let inside = inside.checked_end().is_some() && inside.is_inside(self.volume_blocks);
            let added = match pool {
                Pool::Data | Pool::Runs if !inside => Err(NotAdded::Overlaps),
                Pool::Data => self.accept_data(span),
                Pool::Runs => self.runs.add(span),
                Pool::Inodes => self.accept_inos(span),
                Pool::RunIds if start == 0 => Err(NotAdded::Overlaps),
                Pool::RunIds => self.ids.add(span),
                Pool::Compaction => Err(NotAdded::Overlaps),
            };
            match added {
                Ok(()) if matches!(pool, Pool::Data | Pool::Runs) => {
                    self.counters.blocks_lent += u64::from(count);
                }
                Ok(()) => {}
                Err(NotAdded::Full) => self.give_back(pool, span),
                Err(NotAdded::Overlaps) => self.counters.unusable += 1,
            }
        }
        self.update_gate();
        self.wake = true;
    }

    fn accept_data(&mut self, span: Span) -> Result<(), NotAdded> {
        let room = self.blocks.room() > 0;
        match self.blocks.lend(BlockRun { first: BlockNo(span.first), len: span.len.into() }) {
            true => Ok(()),
            false if room => Err(NotAdded::Overlaps),
            false => Err(NotAdded::Full),
        }
    }

    /// Divides numbers into lock groups.
    fn accept_inos(&mut self, span: Span) -> Result<(), NotAdded> {
        if span.first <= ROOT.0 || self.inos.has_some_of(span.first, span.end()) {
            return Err(NotAdded::Overlaps);
        }
        let mut first = span.first;
        while first < span.end() {
            let end = span.end().min((first | (GROUP_KEYS - 1)).saturating_add(1));
            if !self.inos.lend(Ino(first), end - first) {
                let len = (span.end() - first) as u32;
                self.give_back(Pool::Inodes, Span { first, len });
                break;
            }
            first = end;
        }
        Ok(())
    }

    /// How much of the dirty budget the runs of one transaction can hold with the blocks that are
    /// here: all of it, or some sixteenths.
    pub(super) fn fitting(&self) -> CommitLimits {
        let all = self.limits.commit;
        // The longest, ascending.
        let mut longest = Vec::<u64, RUNS_MAX>::new();
        for span in self.runs.spans() {
            let len = u64::from(span.len);
            let at = longest.partition_point(|other| *other < len);
            if !longest.is_full() {
                longest.insert(at, len).expect("it is not full");
            } else if at > 0 {
                longest[..at].rotate_left(1);
                longest[at - 1] = len;
            }
        }
        let part = (1..=16).rev().map(|part| all.sixteenths(part));
        part.into_iter().find(|part| fits(longest.clone(), part.share())).unwrap_or_default()
    }

    /// Reserves blocks and numbers for the runs of these items: as many pieces as a transaction can
    /// name, in the order in which they are to be filled. None: there isn't enough, and more will
    /// be asked for.
    pub(super) fn reserve(&mut self, mut share: Share) -> Option<Vec<Piece, RUNS_MAX>> {
        let mut pieces = Vec::new();
        while share.bytes > 0 {
            let piece = match pieces.is_full() {
                true => None,
                false => self.reserve_piece(&mut share),
            };
            let Some(piece) = piece else {
                pieces.iter().for_each(|piece| self.forfeit(piece, 0, false));
                self.want_runs();
                return None;
            };
            pieces.push(piece).expect("it is not full");
        }
        (self.runs_lent, self.vain) = (false, 0);
        Some(pieces)
    }

    /// A transaction can't begin with what is here. If more was lent since the last one couldn't,
    /// that was in vain.
    fn want_runs(&mut self) {
        self.runs_wanted = true;
        if core::mem::take(&mut self.runs_lent) {
            self.vain = self.vain.saturating_add(1);
            self.counters.vain += 1;
            self.note_short(false, true);
        }
    }

    /// The shortest extent that takes all that is left or a whole segment, or else the longest.
    fn reserve_piece(&mut self, share: &mut Share) -> Option<Piece> {
        let wanted = share.blocks().unwrap_or(SEGMENT_BLOCKS) as u32;
        let spans = self.runs.spans().iter().enumerate();
        let fitting = spans.clone().filter(|(_, span)| span.len >= wanted);
        let fitting = fitting.min_by_key(|(_, span)| span.len);
        let (at, span) = fitting.or_else(|| spans.max_by_key(|(_, span)| span.len))?;
        let len = span.len.min(wanted);
        let filter_blocks = share.part(len.into())?;
        (!self.ids.is_empty()).then(|| Piece {
            blocks: self.runs.take(at, len),
            filter_blocks,
            id: RunId(self.ids.take(0, 1).first),
        })
    }

    /// Gives up what a piece has left when so many of its blocks are used, and its number if that
    /// isn't.
    pub(super) fn forfeit(&mut self, piece: &Piece, blocks_used: u32, id_used: bool) {
        let (mut rest, used) = (piece.blocks, blocks_used.min(piece.blocks.len));
        rest.first += u64::from(used);
        rest.len -= used;
        if self.runs.add(rest).is_err() {
            self.give_back(Pool::Runs, rest);
        }
        let id = Span { first: piece.id.0, len: 1 };
        if !id_used && self.ids.add(id).is_err() {
            self.give_back(Pool::RunIds, id);
        }
    }

    /// Takes back what runs of a failed transaction had. Their numbers are not used again: blocks
    /// that bear them have been written.
    pub(super) fn restore_run(&mut self, run: RunId, blocks: Span) {
        let id = Span { first: run.0, len: 1 };
        match self.back.last_mut().filter(|last| last.pool == Pool::RunIds) {
            Some(last) if last.start + u64::from(last.count) == id.first => last.count += 1,
            Some(_) | None => self.give_back(Pool::RunIds, id),
        }
        if self.runs.add(blocks).is_err() {
            self.give_back(Pool::Runs, blocks);
        }
    }

    /// Closes the lists of what the open transaction has used and freed, and copies them. There is
    /// room for as many as a message can have. Returns how many of each there are.
    pub(super) fn cut(
        &mut self,
        used: &mut [ExtentRecord],
        freed: &mut [ExtentRecord],
    ) -> (usize, usize) {
        let data = self.blocks.used.spans().iter().map(|span| record(Pool::Data, span));
        let inos = self.inos.used.spans().iter().map(|span| record(Pool::Inodes, span));
        let used_len = fill(used, data.chain(inos));
        let inside = |span: &&Span| {
            let extent = root::Extent::new(BlockNo(span.first), span.len.into());
            extent.checked_end().is_some() && extent.is_inside(self.volume_blocks)
        };
        let all = self.blocks.freed.spans();
        let told = all.iter().filter(inside).map(|span| record(Pool::Data, span));
        let freed_len = fill(freed, told);
        self.counters.broken_frees += (all.len() - freed_len) as u64;
        self.blocks.used.cut();
        self.blocks.freed.cut();
        self.inos.used.cut();
        (used_len, freed_len)
    }

    /// The transaction that was cut is durable.
    pub(super) fn settle(&mut self) {
        self.blocks.used.settle();
        self.blocks.freed.settle();
        self.inos.used.settle();
        self.wake = true;
    }

    /// The transaction that was cut has failed: the next names what it did.
    pub(super) fn restore(&mut self, used: &[ExtentRecord], freed: &[ExtentRecord]) {
        self.blocks.used.restore(spans(used, Pool::Data));
        self.inos.used.restore();
        self.blocks.freed.restore(spans(freed, Pool::Data));
        self.wake = true;
    }
}

/// Whether runs in extents of these lengths hold all of this, if [`Loans::reserve`] fills them.
fn fits(mut lengths: Vec<u64, RUNS_MAX>, mut share: Share) -> bool {
    for _ in 0..RUNS_MAX {
        if share.bytes == 0 {
            break;
        }
        let Some(longest) = lengths.iter_mut().max() else { return false };
        let taken = share.blocks().unwrap_or(SEGMENT_BLOCKS).min(*longest);
        if share.part(taken).is_none() {
            return false;
        }
        *longest -= taken;
    }
    share.bytes == 0
}

fn spans(records: &[ExtentRecord], pool: Pool) -> impl Iterator<Item = Span> {
    let records = records.iter().filter(move |record| record.pool == pool as u8);
    records.map(|record| Span { first: record.start.get(), len: record.count.get() })
}

fn record(pool: Pool, span: &Span) -> ExtentRecord {
    ExtentRecord::new(Extent { pool, start: span.first, count: span.len })
}

fn fill(to: &mut [ExtentRecord], from: impl Iterator<Item = ExtentRecord>) -> usize {
    to.iter_mut().zip(from).map(|(to, from)| *to = from).count()
}
