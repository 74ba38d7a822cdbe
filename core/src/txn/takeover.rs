//! The first commit of a term: what others may still write is put out of use.
//!
//! # Invariants
//!
//! * What the root's leader may still be writing (its commit reserve), and what a leader of a round
//!   between that one and ours may, goes into quarantine under its round; or, if that leader is
//!   proven gone, it is free.
//! * The first commit writes the takeover reserve of our round. If the root names none, because
//!   more rounds than it names have ended before their first commit, it writes that of one of these
//!   whose leader is proven gone.
//! * It changes the trees of quarantined and freed extents, and takes one extent out of the free
//!   trees. That fits a takeover reserve:
//!
//! | change | blocks at the most |
//! |---|---|
//! | lists of quarantined extents, each next to the other: a path, a leaf for every fourth, their parents | 3 + 8 |
//! | some of these lists in the tree of freed extents instead: a path | 6 |
//! | one extent out of a tree by address: a path | 6 |
//! | the same out of the tree by length: two paths, a sibling on each level, one split | 12 + 5 + 7 |
//! | | 47 of [`TAKEOVER_BLOCKS`] |
//!
//! * Our round's pair of the ring is used only if all leaders of earlier rounds that have it too
//!   are proven gone: by the quorum area, or because nothing of them is quarantined any more. Not
//!   only the last of them: the one before may have stood still for two turns of the ring.
//!
//! What this module deliberately doesn't know: how a commit is written.

use super::kept::Kept;
use super::settle::{Earlier, RESERVE_TARGET, Settling};
use super::trees::Trees;
use crate::block::{Cache, Pins};
use crate::error::Stop;
use crate::format::layout::ROOT_PAIRS;
use crate::format::quorum::SLOTS;
use crate::format::records::{FreedKey, LIST_MAX, OwnerKind, QuarantineKey};
use crate::format::root::{Extent, Root, TAKEOVER_BLOCKS, TAKEOVER_ROUNDS};
use crate::format::{CommitNo, Term};
use crate::mutant::{Mutant, is_active};
use heapless::Vec;
use zerocopy::{FromBytes, IntoBytes};

/// Which leaders of earlier rounds are proven gone: nothing that one of them has submitted can
/// still reach the disk.
///
/// The proof is the quorum area, as it was read after our own claim was durable. Whoever leads a
/// round has made its claim durable before it was elected, and had read no claim of ours by then;
/// nobody that reads ours is elected in an earlier round. So who could still write for a round says
/// so in its own slot: it claims that round, or leads it. A slot that has resigned, or has claimed
/// a later round since, has nothing of the earlier one in flight, whether it is the same voter or
/// another that was started in its place: that is what a voter answers for when it writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gone {
    known: bool,
    acting: Vec<u64, SLOTS>,
}

impl Gone {
    /// Nothing is known of anybody.
    pub const NOBODY: Gone = Gone { known: false, acting: Vec::new() };

    /// All but the leaders of these rounds: one for each slot at the most.
    #[must_use]
    pub fn all_but(rounds: impl IntoIterator<Item = u64>) -> Gone {
        let mut gone = Gone { known: true, acting: Vec::new() };
        for round in rounds {
            gone.known &= gone.acting.push(round).is_ok();
        }
        gone
    }

    /// Whether the leader of this round, if it had one, is proven gone.
    #[must_use]
    pub fn has(&self, round: u64) -> bool {
        self.acting().is_some_and(|acting| !acting.contains(&round))
    }

    /// The rounds whose leaders are not, if anything is known.
    #[must_use]
    pub fn acting(&self) -> Option<&[u64]> {
        self.known.then_some(&self.acting)
    }
}

/// What a takeover has done so far.
#[derive(Debug, Default)]
pub struct TakeoverJob {
    term: Term,
    commit: CommitNo,
    gone: Gone,
    /// The round whose reserve this takeover writes.
    used: u64,
    step: Step,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Is the ring's pair ours to use?
    #[default]
    Pair,
    /// Put away this part of the root's commit reserve.
    Reserve(u16),
    /// Put away the takeover reserve of this round.
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
    /// Begins to take over from the leader of the root with this commit, in the takeover reserve of
    /// the round `used`.
    #[must_use]
    pub fn begin(term: Term, commit: CommitNo, gone: Gone, used: u64) -> TakeoverJob {
        TakeoverJob { term, commit, gone, used, step: Step::Pair }
    }

    /// Does what is left. Run again from the top when it was stopped for a block.
    pub fn run(
        &mut self,
        root: &Root,
        settling: &mut Settling,
        trees: &mut Trees,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
        kept: &mut Kept<'_>,
    ) -> Result<Outcome, Stop> {
        let commit = self.commit;
        loop {
            self.step = match self.step {
                Step::Pair => {
                    if self.is_pair_shared(root, trees, cache, pins)? {
                        return Ok(Outcome::Unproven);
                    }
                    Step::Reserve(0)
                }
                Step::Reserve(part) => {
                    let mut lists = root.reserve().chunks(LIST_MAX);
                    match lists.nth(usize::from(part)) {
                        None => Step::Round(root.term().round() + 1),
                        Some(list) => {
                            let round = root.term().round();
                            let unowned = self.gone.has(round) || root.term() == Term::NONE;
                            if unowned || is_active(Mutant::ReserveNotQuarantined) {
                                put_freed(commit, settling, list, trees, cache, pins)?;
                            } else {
                                put_quarantine(round, part, list, trees, cache, pins)?;
                            }
                            Step::Reserve(part + 1)
                        }
                    }
                }
                Step::Round(round) if round < self.term.round() && is_named(round, root) => {
                    match root.takeover(round).filter(|_| round != self.used) {
                        Some(reserve) if self.gone.has(round) => {
                            put_freed(commit, settling, &[reserve], trees, cache, pins)?;
                        }
                        Some(reserve) => {
                            put_quarantine(round, 0, &[reserve], trees, cache, pins)?;
                        }
                        None => {}
                    }
                    Step::Round(round + 1)
                }
                Step::Round(_) => Step::Fill,
                Step::Fill => {
                    let rounds = self.term.round() - root.term().round();
                    let rounds = rounds.min(TAKEOVER_ROUNDS as u64);
                    let blocks = RESERVE_TARGET + rounds * TAKEOVER_BLOCKS;
                    let earlier = Earlier { than: self.term.round(), gone: self.gone.clone() };
                    let taken = settling.fill_up(blocks, trees, cache, pins, kept, &earlier)?;
                    return Ok(Outcome::Done(taken));
                }
            };
            pins.restart();
        }
    }

    /// Whether a leader that isn't proven gone may still write our pair of the ring. Work: a lookup
    /// for each leader that something is quarantined of, if nothing else is known.
    fn is_pair_shared(
        &self,
        root: &Root,
        trees: &Trees,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<bool, Stop> {
        let own = self.term.round();
        if let Some(acting) = self.gone.acting() {
            let shares = |round: &u64| *round < own && (own - round).is_multiple_of(ROOT_PAIRS);
            return Ok(acting.iter().any(shares));
        }
        let last = own.saturating_sub(ROOT_PAIRS);
        if last >= root.term().round().max(1) {
            // Nothing of who has led since the root's leader is quarantined yet.
            return Ok(true);
        }
        let mark = pins.mark();
        let mut round = own % ROOT_PAIRS;
        while let Some(found) = quarantined_from(round, trees, cache, pins)? {
            pins.drop_to(mark);
            if found == round || found > last {
                return Ok(found == round);
            }
            round = found + (own - found) % ROOT_PAIRS;
        }
        Ok(false)
    }
}

/// Whether the root has a place for this round's reserve.
fn is_named(round: u64, root: &Root) -> bool {
    round - root.term().round() <= TAKEOVER_ROUNDS as u64
}

/// The round whose takeover reserve this term may write first: its own. If the root has none for
/// it, that of a round whose leader is proven gone; but so might each leader have done that came
/// before this one and had none either, so these must all be gone too.
#[must_use]
pub fn usable_round(root: &Root, term: Term, gone: &Gone) -> Option<u64> {
    let (own, named) = (term.round(), root.term().round() + 1);
    let usable = |round: &u64| root.takeover(*round).is_some();
    if usable(&own) {
        return Some(own);
    }
    let mut earlier = gone.acting()?.iter().filter(|round| (named..own).contains(round));
    let mut named = named..own.min(named + TAKEOVER_ROUNDS as u64);
    named.find(|round| usable(round) && gone.has(*round)).filter(|_| earlier.all(usable))
}

/// The first round, of this and later ones, of whose leader anything is quarantined.
fn quarantined_from(
    round: u64,
    trees: &Trees,
    cache: &mut Cache<'_>,
    pins: &mut Pins<'_>,
) -> Result<Option<u64>, Stop> {
    let from = QuarantineKey { kind: OwnerKind::Round as u8, owner: round.into(), part: 0.into() };
    let found = trees.quarantine.next(from.as_bytes(), cache, pins)?;
    let found = found.and_then(|item| QuarantineKey::ref_from_bytes(item.key).ok());
    Ok(found.filter(|found| found.kind == from.kind).map(|found| found.owner.get()))
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
