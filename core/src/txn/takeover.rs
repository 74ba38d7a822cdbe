//! The first commit of a term: what others may still write is put out of use.
//!
//! # Invariants
//!
//! * What the root's leader may still be writing (its commit reserve), and what a leader of a round
//!   between that one and ours may, goes into quarantine under its round; or, if the root's leader
//!   is proven gone, its reserve is free.
//! * It changes the trees of quarantined and freed extents, and takes one extent out of the free
//!   trees. That fits a takeover reserve:
//!
//! | change | blocks at the most |
//! |---|---|
//! | lists of quarantined extents, each next to the other: a path, a leaf for every fourth, their parents | 3 + 8 |
//! | one extent out of a tree by address: a path | 6 |
//! | the same out of the tree by length: two paths, a sibling on each level, one split | 12 + 5 + 7 |
//! | | 41 of [`TAKEOVER_BLOCKS`] |
//!
//! * Our round's pair of the ring is used only if the leader that used it last is proven gone: as
//!   long as it is not, something of it is quarantined.
//!
//! What this module deliberately doesn't know: how a commit is written.

use super::settle::{RESERVE_TARGET, Settling};
use super::trees::Trees;
use crate::block::{Cache, Pins};
use crate::error::Stop;
use crate::format::layout::ROOT_PAIRS;
use crate::format::records::{FreedKey, LIST_MAX, OwnerKind, QuarantineKey};
use crate::format::root::{Extent, Root, TAKEOVER_BLOCKS};
use crate::format::{CommitNo, Term};
use crate::mutant::{Mutant, is_active};
use zerocopy::{FromBytes, IntoBytes};

/// What a takeover has done so far.
#[derive(Debug, Default)]
pub struct TakeoverJob {
    term: Term,
    /// The root's leader is proven gone.
    gone: bool,
    step: Step,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Is the ring's pair ours to use?
    #[default]
    Pair,
    /// Put away this part of the root's commit reserve.
    Reserve(u16),
    /// Quarantine the takeover reserve of this round.
    Round(u64),
    /// Find the next commit's reserve.
    Fill,
}

/// How a takeover ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All is done; this was taken for reserves, if anything was free.
    Done(Option<Extent>),
    /// A leader that isn't proven gone may still write our round's pair of the ring.
    Unproven,
}

impl TakeoverJob {
    /// Begins to take over from the leader of the root.
    #[must_use]
    pub fn begin(term: Term, gone: bool) -> TakeoverJob {
        TakeoverJob { term, gone, step: Step::Pair }
    }

    /// Does what is left. Run again from the top when it was stopped for a block.
    pub fn run(
        &mut self,
        root: &Root,
        commit: CommitNo,
        settling: &mut Settling,
        trees: &mut Trees,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Outcome, Stop> {
        loop {
            self.step = match self.step {
                Step::Pair => {
                    let last = self.term.round().checked_sub(ROOT_PAIRS);
                    if let Some(last) = last.filter(|last| *last > 0)
                        && has_quarantine(last, trees, cache, pins)?
                    {
                        return Ok(Outcome::Unproven);
                    }
                    Step::Reserve(0)
                }
                Step::Reserve(part) => {
                    let mut lists = root.reserve().chunks(LIST_MAX);
                    match lists.nth(usize::from(part)) {
                        None => Step::Round(root.term().round() + 1),
                        Some(list) => {
                            let unowned = self.gone || root.term() == Term::NONE;
                            if unowned || is_active(Mutant::ReserveNotQuarantined) {
                                put_freed(commit, settling, list, trees, cache, pins)?;
                            } else {
                                let round = root.term().round();
                                put_quarantine(round, part, list, trees, cache, pins)?;
                            }
                            Step::Reserve(part + 1)
                        }
                    }
                }
                Step::Round(round) if round < self.term.round() => {
                    if let Some(reserve) = root.takeover(round) {
                        put_quarantine(round, 0, &[reserve], trees, cache, pins)?;
                    }
                    Step::Round(round + 1)
                }
                Step::Round(_) => Step::Fill,
                Step::Fill => {
                    let rounds = self.term.round() - root.term().round();
                    let blocks = RESERVE_TARGET + rounds * TAKEOVER_BLOCKS;
                    let taken = settling.fill_up(blocks, trees, cache, pins)?;
                    return Ok(Outcome::Done(taken));
                }
            };
            pins.restart();
        }
    }
}

/// Whether anything is quarantined on account of the leader of this round.
fn has_quarantine(
    round: u64,
    trees: &Trees,
    cache: &mut Cache<'_>,
    pins: &mut Pins<'_>,
) -> Result<bool, Stop> {
    let from = QuarantineKey { kind: OwnerKind::Round as u8, owner: round.into(), part: 0.into() };
    let found = trees.quarantine.next(from.as_bytes(), cache, pins)?;
    let found = found.and_then(|item| QuarantineKey::ref_from_bytes(item.key).ok());
    Ok(found.is_some_and(|found| found.kind == from.kind && found.owner == from.owner))
}

fn put_quarantine(
    round: u64,
    part: u16,
    list: &[Extent],
    trees: &mut Trees,
    cache: &mut Cache<'_>,
    pins: &mut Pins<'_>,
) -> Result<(), Stop> {
    let kind = OwnerKind::Round as u8;
    let key = QuarantineKey { kind, owner: round.into(), part: part.into() };
    let mut plan = cache.plan();
    let bytes = size_of_val(list);
    trees.quarantine.plan_insert(key.as_bytes(), bytes, &mut plan, cache, pins)?;
    let mut update = cache.reserve_closing(&plan, pins)?;
    trees.quarantine.put(key.as_bytes(), list.as_bytes(), &mut update, cache);
    Ok(())
}

fn put_freed(
    commit: CommitNo,
    settling: &mut Settling,
    list: &[Extent],
    trees: &mut Trees,
    cache: &mut Cache<'_>,
    pins: &mut Pins<'_>,
) -> Result<(), Stop> {
    let key = FreedKey { commit: commit.0.into(), part: settling.lists().into() };
    let mut plan = cache.plan();
    trees.freed.plan_insert(key.as_bytes(), size_of_val(list), &mut plan, cache, pins)?;
    let mut update = cache.reserve_closing(&plan, pins)?;
    settling.next_list();
    trees.freed.put(key.as_bytes(), list.as_bytes(), &mut update, cache);
    Ok(())
}
