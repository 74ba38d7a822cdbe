//! The space of a merge: taken before anything is written to it, and given up in one plan with what
//! has come of the merge.
//!
//! # Invariants
//!
//! * It stands under whoever writes it, in one list: in quarantine under the leader's round, or in
//!   the tree of loans under the client's number. So it is found by the same proof as all else that
//!   this writer has, whoever leads then.
//! * From the plan that takes it to the one that gives it up the list has all of it: free space,
//!   the list, and the runs that were made never share a block, nor miss one.
//! * Runs that a reader of an older root may come to are freed on a list that nobody takes from
//!   while it reads.
//!
//! What this module deliberately doesn't know: what is merged, and when a commit is durable.

use super::requests::{Context, Halt, corrupt, find_from_cursor, part_at_cursor};
use crate::error::{Corruption, Error, Stop};
use crate::format::records::{FreedKey, LIST_MAX, LoanKey, OwnerKind, Pool, QuarantineKey, list};
use crate::format::root::Extent;
use crate::format::run::SEGMENT_BLOCKS;
use crate::format::{ClientId, RunId};
use crate::lsm::choose::Choice;
use crate::lsm::manifest::{CHANGE_MAX, Change, Run};
use crate::mutant::{Mutant, is_active};
use crate::txn::settle::FREE_MIN;
use heapless::Vec;
use zerocopy::IntoBytes;

/// A shorter extent is of no use, if more is wanted.
const PIECE_MIN: u64 = 16;
/// Lists of this part and later ones are those of merges; the ones before are of reserves.
const PART: u16 = 1 << 15;

const _: () = assert!(CHANGE_MAX <= LIST_MAX);

/// Who writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// The leader of this round.
    Leader(u64),
    /// A client, for the first or the second compaction that it is asked for.
    Client(ClientId, u8),
}

impl Holder {
    fn quarantine_key(round: u64) -> QuarantineKey {
        QuarantineKey { kind: OwnerKind::Round as u8, owner: round.into(), part: PART.into() }
    }

    fn loan_key(client: ClientId, place: u8) -> LoanKey {
        let part = u16::from(place).into();
        LoanKey { client: client.0.into(), pool: Pool::Compaction as u8, part }
    }

    /// Whether a mistake leaves its space without an owner.
    fn is_forgotten(self) -> bool {
        match self {
            Holder::Leader(_) => is_active(Mutant::MergeSpaceUnowned),
            Holder::Client(..) => is_active(Mutant::CompactionSpaceUnowned),
        }
    }
}

/// What has been taken for a merge so far.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// All of it, ascending.
    pub(super) extents: Vec<Extent, CHANGE_MAX>,
    /// What of it the merge is to get, once that is durable, each for the run of this number.
    pub(super) grants: Vec<(RunId, Extent), CHANGE_MAX>,
    /// Blocks that are still to be taken.
    pub(super) wanted: u64,
}

impl Taken {
    /// Begins to take for what was chosen.
    pub(super) fn begin(&mut self, wanted: u64) {
        self.extents.clear();
        self.grants.clear();
        self.wanted = wanted;
    }

    /// Takes one extent, and a number for the run that it is for. `inputs` runs are merged. Whether
    /// that was all.
    pub(super) fn take(
        &mut self,
        holder: Holder,
        inputs: usize,
        run_blocks: u64,
        cx: &mut Context<'_, '_>,
    ) -> Result<bool, Stop> {
        let trees = &mut cx.store.trees;
        let (cache, pins) = (&mut cx.store.cache, &mut *cx.pins);
        let room = CHANGE_MAX.saturating_sub(inputs + self.extents.len()) as u64;
        // Pieces of one size: the last would be too short to be of use.
        let pieces = self.wanted.div_ceil(run_blocks).clamp(1, room.max(1));
        let spare = trees.free.free_blocks().saturating_sub(FREE_MIN);
        let piece = self.wanted.div_ceil(pieces).min(run_blocks).min(spare);
        let found = match piece {
            0 => None,
            _ if room == 0 => None,
            _ => find_from_cursor(piece, trees, cache, pins)?,
        };
        let part = found.map(|whole| (whole, part_at_cursor(whole, piece, trees)));
        let part = part.filter(|(_, part)| part.len() >= piece.min(PIECE_MIN));
        let (whole, part) = part.ok_or(Error::NoSpace)?;
        let mut taken = self.extents.clone();
        let at = taken.partition_point(|other| other.start() < part.start());
        taken.insert(at, part).expect("there is room");
        let bytes = size_of_val(&taken[..]);
        let mut plan = cache.plan();
        let take = trees.free.plan_take(whole, part, &mut plan, cache, pins)?;
        match holder {
            Holder::Leader(round) => {
                let key = Holder::quarantine_key(round);
                trees.quarantine.plan_put(key.as_bytes(), bytes, &mut plan, cache, pins)?;
            }
            Holder::Client(client, place) => {
                let key = Holder::loan_key(client, place);
                trees.loans.plan_put(key.as_bytes(), bytes, &mut plan, cache, pins)?;
            }
        }
        let mut update = cache.reserve(&plan, pins)?;
        let part = trees.free.take(take, &mut update, cache);
        trees.cursor = part.end();
        if !holder.is_forgotten() {
            let bytes = taken.as_bytes();
            match holder {
                Holder::Leader(round) => {
                    let key = Holder::quarantine_key(round);
                    trees.quarantine.put(key.as_bytes(), bytes, &mut update, cache);
                }
                Holder::Client(client, place) => {
                    let key = Holder::loan_key(client, place);
                    trees.loans.put(key.as_bytes(), bytes, &mut update, cache);
                }
            }
        }
        self.extents = taken;
        self.grants.push((trees.next_run, part)).expect("as many as were taken");
        trees.next_run = trees.next_run.next();
        self.wanted = self.wanted.saturating_sub(part.len());
        Ok(self.wanted == 0 || room == 1)
    }
}

/// What of these grants isn't part of a run that was made.
pub(super) fn unused(grants: &[(RunId, Extent)], outputs: &[Run]) -> impl Iterator<Item = Extent> {
    grants.iter().filter_map(|(run, extent)| {
        let output = outputs.iter().find(|output| output.id() == *run);
        let used = output.map_or(0, |output| output.entry.blocks());
        let rest = Extent::new(extent.start().plus(used), extent.len().checked_sub(used)?);
        (!rest.is_empty()).then_some(rest)
    })
}

/// Ends a merge in one plan: makes its change, frees what is left, and its list is no more.
pub(super) fn end(
    change: &Change<'_>,
    holder: Holder,
    left: &[Extent],
    cx: &mut Context<'_, '_>,
) -> Result<(), Stop> {
    let commit = cx.commit();
    let freed = FreedKey { commit: commit.0.into(), part: cx.store.freed_lists().into() };
    let trees = &mut cx.store.trees;
    let (cache, pins) = (&mut cx.store.cache, &mut *cx.pins);
    if !left.is_sorted_by(|a, b| a.end() <= b.start()) {
        // Two runs of the manifest stand in one place.
        let blkno = trees.manifest.root().node.blkno();
        return Err(Error::Corrupt { blkno, what: Corruption::Mismatch }.into());
    }
    let mut plan = cache.plan();
    change.plan(&trees.manifest, &mut plan, cache, pins)?;
    let listed = !holder.is_forgotten();
    match holder {
        _ if !listed => {}
        Holder::Leader(round) => {
            let key = Holder::quarantine_key(round);
            trees.quarantine.plan_delete(key.as_bytes(), &mut plan, cache, pins)?;
        }
        Holder::Client(client, place) => {
            let key = Holder::loan_key(client, place);
            trees.loans.plan_delete(key.as_bytes(), &mut plan, cache, pins)?;
        }
    }
    trees.freed.plan_insert(freed.as_bytes(), size_of_val(left), &mut plan, cache, pins)?;
    let mut update = cache.reserve(&plan, pins)?;
    change.apply(&mut trees.manifest, &mut trees.level_runs, &mut update, cache);
    match holder {
        _ if !listed => {}
        Holder::Leader(round) => {
            let key = Holder::quarantine_key(round);
            trees.quarantine.delete(key.as_bytes(), &mut update, cache);
        }
        Holder::Client(client, place) => {
            let key = Holder::loan_key(client, place);
            trees.loans.delete(key.as_bytes(), &mut update, cache);
        }
    }
    trees.freed.put(freed.as_bytes(), left.as_bytes(), &mut update, cache);
    cx.store.next_freed_list();
    if cx.store.kept.has_any(commit, change.remove.iter().map(Run::id)) {
        cx.store.kept.note(&freed, left);
    }
    Ok(())
}

/// Frees what a client has for this compaction, of which nothing has come. Whether it had anything.
pub(super) fn give_back(
    client: ClientId,
    place: u8,
    cx: &mut Context<'_, '_>,
) -> Result<bool, Halt> {
    let key = Holder::loan_key(client, place);
    let (trees, cache) = (&cx.store.trees, &mut cx.store.cache);
    let mark = cx.pins.mark();
    let Some(value) = trees.loans.lookup(key.as_bytes(), cache, cx.pins)? else { return Ok(false) };
    let lent = list(value).map_err(|what| corrupt(trees, what))?;
    let lent: Vec<Extent, LIST_MAX> =
        Vec::from_slice(lent).map_err(|_| corrupt(trees, Corruption::Bounds))?;
    cx.pins.drop_to(mark);
    let nothing = Change { remove: &[], add: &[] };
    end(&nothing, Holder::Client(client, place), &lent, cx)?;
    Ok(true)
}

/// About as many blocks as what is made of these runs will take. A tail begins a run of its own.
pub(super) fn blocks_for(choice: &Choice) -> u64 {
    let blocks: u64 = choice.runs().map(|run: &Run| run.entry.blocks()).sum();
    let tail = if choice.tail_after.is_some() { SEGMENT_BLOCKS / 4 } else { 0 };
    blocks + blocks / 32 + 4 + tail
}
