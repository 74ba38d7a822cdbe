//! Which run of a level that has too many goes down: the one that costs least of those that are
//! looked at, and each in its turn.
//!
//! ```text
//!   begin ---> weigh* ---------------------> taken
//!              a run that can go down,       the next choice in this level looks
//!              and what lies below it        at the runs behind the last of these
//! ```
//!
//! # Invariants
//!
//! * A choice looks at [`LOOKS_MAX`] runs at the most, and takes the one with the fewest blocks
//!   below it for each of its own. The first that has none below it is taken at once: it only
//!   moves.
//! * One in [`TURN`] choices of a level is the turn of the run under a cursor, whatever it costs.
//!   The cursor goes round, so a run that can go down has its turn when those before it have had
//!   theirs, however much lies below it: tombstones come down.
//! * Only what has been taken counts: a choice that is begun anew looks at the same runs again.
//!
//! What this module deliberately doesn't know: the manifest, and which runs are busy.

use crate::format::key::{Key, KeyBytes};
use crate::format::root::LEVELS;
use crate::lsm::manifest::Run;
use crate::lsm::range::after;

/// Most runs that are looked at for one choice.
pub(super) const LOOKS_MAX: u32 = 32;
/// So many choices of a level have one that is the cursor's.
pub(super) const TURN: u8 = 16;

/// Where choices of one level go on.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The run at this key or behind it has the next turn.
    turn: KeyBytes,
    /// Those from this key on are looked at next.
    look: KeyBytes,
    /// Choices since the last turn.
    since: u8,
}

/// Where choices of all levels go on.
#[derive(Debug)]
pub(super) struct Turns {
    levels: [Place; LEVELS],
}

/// The runs of a level that were looked at for one choice.
#[derive(Debug)]
pub(super) struct Contest {
    level: u8,
    is_turn: bool,
    looks: u32,
    /// The cheapest, and the blocks below it.
    best: Option<(Run, u64)>,
    /// The first key of the last one.
    last: KeyBytes,
}

/// What is to be done after a run was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Look at another.
    Next,
    /// It goes down.
    Take,
    /// One before it does: [`Contest::best`].
    Before,
}

impl Turns {
    /// Begins with the least keys.
    pub(super) fn new() -> Turns {
        let start = Key::MIN.into();
        Turns { levels: [Place { turn: start, look: start, since: 0 }; LEVELS] }
    }

    /// Begins a choice in this level: which runs are to be looked at, from this key on.
    pub(super) fn begin(&self, level: u8) -> (Contest, KeyBytes) {
        let place = self.levels[usize::from(level)];
        let is_turn = place.since + 1 >= TURN;
        let from = if is_turn { place.turn } else { place.look };
        (Contest { level, is_turn, looks: 0, best: None, last: from }, from)
    }

    /// One of them was taken.
    pub(super) fn taken(&mut self, contest: &Contest) {
        let place = &mut self.levels[usize::from(contest.level)];
        let next = after(&contest.last).unwrap_or(Key::MIN.into());
        match contest.is_turn {
            true => (place.turn, place.since) = (next, 0),
            false => (place.look, place.since) = (next, place.since + 1),
        }
    }
}

impl Contest {
    /// Nobody competes.
    pub(super) fn none() -> Contest {
        Contest { level: 0, is_turn: true, looks: 0, best: None, last: KeyBytes::ZERO }
    }

    /// Looks at a run that can go down, with so many blocks below it.
    pub(super) fn weigh(&mut self, run: &Run, below: u64) -> Verdict {
        self.looks += 1;
        self.last = run.range().first;
        let costs_less = |&(best, its): &(Run, u64)| {
            u128::from(below) * u128::from(best.entry.blocks())
                < u128::from(its) * u128::from(run.entry.blocks())
        };
        let is_best = self.best.as_ref().is_none_or(costs_less);
        if is_best {
            self.best = Some((*run, below));
        }
        match (self.is_turn || below == 0 || self.looks >= LOOKS_MAX, is_best) {
            (false, _) => Verdict::Next,
            (true, true) => Verdict::Take,
            (true, false) => Verdict::Before,
        }
    }

    /// The cheapest so far.
    pub(super) fn best(&self) -> Option<Run> {
        self.best.map(|(run, _)| run)
    }
}

#[cfg(test)]
mod tests;
