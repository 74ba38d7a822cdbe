//! Which runs of level 0 are joined into fewer that stay there.
//!
//! # Invariants
//!
//! * What is joined are neighbours in age, all of them idle, of at least two ages. So what is made
//!   of them can take the age of the newest: nothing left in the level is between them.
//! * Runs of one age are never taken apart at the newer end: the joined run could not be told from
//!   what is left. At the older end they may be: what is left there has no key in common with its
//!   own kind, and is older than all the others.
//! * Only small runs are joined, no more blocks of them than are worth merging down together, and
//!   only if fewer runs come of it.
//! * A join is *balanced* if its largest run has at most two thirds of all its blocks. If there is
//!   a balanced one, the one chosen is, and saves the most runs; of those that save as many it is
//!   the one with the fewest blocks. If there is none, it is the one with the fewest blocks for
//!   each run that it saves.
//!
//! # What that costs
//!
//! Let B be the blocks that are joined at the most. Let a run of b blocks owe b * log1.5(3B / b).
//! A balanced join of S blocks writes c of them, at most S. Its runs owe together S * (log1.5(3B /
//! S) + 1) or more, because each has at most two thirds of S; what is made of them owes no more
//! than S * log1.5(3B / S), which grows with S up to B, also if items have died. So what is owed
//! falls by what is written, and all balanced joins together write at most what runs owed as they
//! came: of a run of three blocks, for 4 MiB, 17 times its size. This is the worst there can be; of
//! transactions of one size the first eight are joined, then seven, six, and so on, and then what
//! was made of these, which comes to about the size of each transaction's run.
//!
//! If no join is balanced, each run is over twice as large as all the smaller ones next to it
//! together. Of eight neighbours some two or three then have less than a ninth of the blocks, so
//! a run that comes then costs that much at the most.
//!
//! What this module deliberately doesn't know: keys, and what is merged down.

use super::{Policy, UPPERS_MAX};
use crate::format::run::SEGMENT_BLOCKS;
use crate::lsm::manifest::Run;

/// Neighbours in age: the first of them among the oldest, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Join {
    pub(super) from: usize,
    pub(super) count: usize,
    blocks: u64,
    /// How many fewer runs there will be.
    saved: u64,
    balanced: bool,
}

impl Join {
    fn is_better(&self, other: &Join) -> bool {
        match (self.balanced, other.balanced) {
            (true, true) => (self.saved, other.blocks) > (other.saved, self.blocks),
            (false, false) => self.blocks * other.saved < other.blocks * self.saved,
            (balanced, _) => balanced,
        }
    }
}

/// The best join of these runs of level 0, which are the oldest, in the order of age, `idle` or
/// not. If there are [`UPPERS_MAX`], there may be more.
pub(super) fn find(oldest: &[Run], policy: &Policy, idle: impl Fn(&Run) -> bool) -> Option<Join> {
    let fits = |run: &&Run| run.entry.blocks() < policy.small_blocks && idle(run);
    let mut best: Option<Join> = None;
    for from in 0..oldest.len() {
        let (mut blocks, mut most) = (0, 0);
        for (count, run) in (1..).zip(oldest[from..].iter().take_while(fits)) {
            blocks += run.entry.blocks();
            most = most.max(run.entry.blocks());
            if blocks > policy.level_0_blocks {
                break;
            }
            let made = blocks.div_ceil(SEGMENT_BLOCKS);
            let saved = (count as u64).saturating_sub(made);
            let balanced = 3 * most <= 2 * blocks;
            let join = Join { from, count, blocks, saved, balanced };
            let ages = oldest[from].order != run.order;
            if ages
                && saved > 0
                && !splits(oldest, from + count)
                && best.is_none_or(|best| join.is_better(&best))
            {
                best = Some(join);
            }
        }
    }
    best
}

/// Whether runs of one age are on both sides of this place among the oldest, or may be.
pub(super) fn splits(oldest: &[Run], at: usize) -> bool {
    match (oldest[..at].last(), oldest.get(at)) {
        (Some(last), Some(next)) => last.order == next.order,
        (Some(_), None) => oldest.len() == UPPERS_MAX,
        (None, _) => false,
    }
}

#[cfg(test)]
mod tests;
