//! The records of the trees: each parsed, held against the root's counters and against the records
//! before it, and asked for the blocks it stands for.
//!
//! # Invariants
//!
//! * An extent that is to be claimed lies in the part of the volume that is allocated from.
//!
//! What this module deliberately doesn't know: who else has claimed it.

use super::TreeName;
use super::clients::Clients;
use super::finding::{Counts, Holder, Id, Log, Wrong};
use super::inode::Place;
use super::map::Map;
use super::runs::{Run, Runs};
use crate::error::Corruption;
use crate::format::records::{
    BlockKey, ClientKey, ClientPart, ClientRecord, ClientState, FreedKey, LIST_MAX, Length,
    LengthKey, LoanKey, ManifestEntry, ManifestKey, OpenSeq, OpenSeqKey, OwnerKind, Pool,
    QuarantineKey, extent, list,
};
use crate::format::root::{Extent, LEVELS, Root};
use crate::format::wire::message::AT_ONCE_MAX;
use crate::format::{BlockNo, ClientId};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// What the extents of a free tree add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sum {
    pub(super) extents: u64,
    pub(super) blocks: u64,
}

/// Blocks that somebody has.
#[derive(Clone, Copy)]
pub(super) struct Claim {
    pub(super) extent: Extent,
    /// The item that says so, if one does.
    pub(super) item: Option<Place>,
}

/// The numbers that the root says come next, and its own.
#[derive(Clone, Copy, Default)]
struct Counters {
    client: u64,
    ino: u64,
    seq: u64,
    run: u64,
    commit: u64,
    round: u64,
}

/// What records are put into and held against.
pub(super) struct Ground<'a, 'm> {
    pub(super) map: &'a mut Map<'m>,
    pub(super) runs: &'a mut Runs<'m>,
    pub(super) clients: &'a mut Clients<'m>,
    pub(super) counts: &'a mut Counts,
    pub(super) log: &'a mut Log,
}

pub(super) struct Records {
    volume_blocks: u64,
    counters: Counters,
    /// Extents of the record taken last that are to be claimed.
    pub(super) claims: heapless::Vec<Claim, LIST_MAX>,
    /// By block, by length.
    pub(super) free_sums: [Sum; 2],
    pub(super) level_runs: [u64; LEVELS],
    /// Behind the last free extent by block.
    free_end: u64,
    /// The last list of loans, and the end of its last extent.
    last_loan: Option<(LoanKey, u64)>,
    /// Trees that were not read wholly: one bit each.
    partial: u8,
}

/// A structure that fills these bytes.
fn whole<T>(bytes: &[u8]) -> Result<&T, Corruption>
where
    T: FromBytes + Immutable + KnownLayout + Unaligned,
{
    T::ref_from_bytes(bytes).map_err(|_| Corruption::Bounds)
}

fn nothing(bytes: &[u8]) -> Result<(), Corruption> {
    if bytes.is_empty() { Ok(()) } else { Err(Corruption::Bounds) }
}

/// The run that a record of the manifest stands for.
fn run_entry<'v>(
    key: &'v [u8],
    value: &'v [u8],
    volume_blocks: u64,
) -> Result<(&'v ManifestKey, &'v ManifestEntry), Corruption> {
    let (key, entry) = (whole::<ManifestKey>(key)?, whole::<ManifestEntry>(value)?);
    entry.check(volume_blocks)?;
    if usize::from(key.level) >= LEVELS {
        return Err(Corruption::Level);
    }
    match entry.range() {
        Some((first, _)) if first == key.first => Ok((key, entry)),
        Some(_) | None => Err(Corruption::Mismatch),
    }
}

impl Records {
    pub(super) fn new(volume_blocks: u64) -> Records {
        Records {
            volume_blocks,
            counters: Counters::default(),
            claims: heapless::Vec::new(),
            free_sums: [Sum::default(); 2],
            level_runs: [0; LEVELS],
            free_end: 0,
            last_loan: None,
            partial: 0,
        }
    }

    /// Starts over, with what this root says.
    pub(super) fn begin(&mut self, root: &Root) {
        let fields = root.fields();
        let counters = Counters {
            client: fields.next_client.get(),
            ino: fields.next_ino.get(),
            seq: fields.next_seq.get(),
            run: fields.next_run.get(),
            commit: root.commit().0.saturating_add(1),
            round: root.term().round().saturating_add(1),
        };
        *self = Records { counters, ..Records::new(self.volume_blocks) };
    }

    pub(super) fn begin_tree(&mut self) {
        (self.free_end, self.last_loan) = (0, None);
    }

    pub(super) fn is_partial(&self, name: TreeName) -> bool {
        self.partial & 1 << name as u8 != 0
    }

    pub(super) fn set_partial(&mut self, name: TreeName) {
        self.partial |= 1 << name as u8;
    }

    /// Parses a record; what is to be claimed for it is in `claims` afterwards.
    pub(super) fn take(
        &mut self,
        name: TreeName,
        (leaf, key, value): (BlockNo, &[u8], &[u8]),
        ground: &mut Ground<'_, '_>,
    ) -> Result<(), Corruption> {
        match name {
            TreeName::FreeByBlock => self.take_free(key, value, ground),
            TreeName::FreeByLength => {
                nothing(value)?;
                let free = whole::<LengthKey>(key)?.extent(self.volume_blocks)?;
                self.count_free(1, free, ground.map);
                Ok(())
            }
            TreeName::Manifest => self.take_run(leaf, key, value, ground),
            TreeName::Clients => self.take_client(leaf, key, value, ground),
            TreeName::Loans => self.take_loan(leaf, key, value, ground),
            TreeName::OpenSeqs => {
                let open = whole::<OpenSeq>(value)?;
                let key = whole::<OpenSeqKey>(key)?;
                self.check_next(leaf, key.seq.get(), self.counters.seq, ground.log);
                if !ground.clients.take_open_seq(ClientId(key.client.get())) {
                    ground.log.put(Id::Client, Extent::new(leaf, 1), Wrong::MISMATCH);
                }
                // Its number was opened after what its client may still have changed before.
                if open.floor.get() > key.seq.get() { Err(Corruption::Order) } else { Ok(()) }
            }
            TreeName::Freed => {
                let commit = whole::<FreedKey>(key)?.commit.get();
                self.check_next(leaf, commit, self.counters.commit, ground.log);
                self.claim_list(list(value)?, Holder::Freed, ground)
            }
            TreeName::Quarantine => self.take_quarantine(leaf, key, value, ground),
        }
    }

    /// Tells if a number was never given out.
    fn check_next(&self, leaf: BlockNo, says: u64, next: u64, log: &mut Log) {
        if says >= next {
            log.put(Id::Next, Extent::new(leaf, 1), Wrong::Count { says, is: next });
        }
    }

    fn take_free(
        &mut self,
        key: &[u8],
        value: &[u8],
        ground: &mut Ground<'_, '_>,
    ) -> Result<(), Corruption> {
        let (key, length) = (whole::<BlockKey>(key)?, whole::<Length>(value)?);
        let free = extent(key.last, length, self.volume_blocks)?;
        // Free extents neither overlap nor touch.
        if free.start().0 <= self.free_end {
            return Err(Corruption::Order);
        }
        self.free_end = free.end().0;
        self.count_free(0, free, ground.map);
        self.claim_list(&[free], Holder::Free, ground)
    }

    fn count_free(&mut self, tree: usize, free: Extent, map: &mut Map<'_>) {
        let sum = &mut self.free_sums[tree];
        sum.extents += 1;
        sum.blocks = sum.blocks.saturating_add(free.len());
        map.toggle(free);
    }

    fn take_run(
        &mut self,
        leaf: BlockNo,
        key: &[u8],
        value: &[u8],
        ground: &mut Ground<'_, '_>,
    ) -> Result<(), Corruption> {
        let (key, entry) = run_entry(key, value, self.volume_blocks)?;
        self.level_runs[usize::from(key.level)] += 1;
        let run = entry.run().0;
        self.check_next(leaf, run, self.counters.run, ground.log);
        ground.runs.push(Run { key: *key, entry: *entry, leaf });
        self.claim_list(&[entry.extent()], Holder::Runs, ground)
    }

    fn take_client(
        &mut self,
        leaf: BlockNo,
        key: &[u8],
        value: &[u8],
        ground: &mut Ground<'_, '_>,
    ) -> Result<(), Corruption> {
        let key = whole::<ClientKey>(key)?;
        let part = ClientPart::parse(key.part)?;
        let record = match part {
            ClientPart::TransactionAnswer | ClientPart::LoanAnswer => None,
            ClientPart::Client => Some(client_record(value)?),
        };
        let number = ClientId(key.client.get());
        self.check_next(leaf, number.0, self.counters.client, ground.log);
        if !ground.clients.take_part(number, part, record, leaf) {
            ground.log.put(Id::Client, Extent::new(leaf, 1), Wrong::MISMATCH);
        }
        Ok(())
    }

    fn take_loan(
        &mut self,
        leaf: BlockNo,
        key: &[u8],
        value: &[u8],
        ground: &mut Ground<'_, '_>,
    ) -> Result<(), Corruption> {
        let (key, extents) = (*whole::<LoanKey>(key)?, list(value)?);
        let pool = Pool::parse(key.pool)?;
        let at = Extent::new(leaf, 1);
        let end = extents.last().map_or(0, |extent| extent.end().0);
        let before = self.last_loan.replace((key, end));
        let before =
            before.filter(|(before, _)| (before.client, before.pool) == (key.client, key.pool));
        let (part, low) = before.map_or((0, 0), |(key, end)| (u32::from(key.part.get()) + 1, end));
        let ordered = match pool {
            // Of two lists each is there or not, and they have nothing to do with each other.
            Pool::Compaction => key.part.get() < u16::from(AT_ONCE_MAX),
            Pool::Data | Pool::Runs | Pool::Inodes | Pool::RunIds => {
                u32::from(key.part.get()) == part && extents[0].start().0 >= low
            }
        };
        if !ordered {
            ground.log.put(Id::Lists, at, Corruption::Order);
        }
        if !ground.clients.has(ClientId(key.client.get())) {
            ground.log.put(Id::Client, at, Wrong::MISMATCH);
        }
        let next = match pool {
            Pool::Data | Pool::Runs | Pool::Compaction => {
                return self.claim_list(extents, Holder::Lent, ground);
            }
            Pool::Inodes => self.counters.ino,
            Pool::RunIds => self.counters.run,
        };
        self.check_next(leaf, end.saturating_sub(1), next, ground.log);
        ground.clients.take_numbers(pool, extents, leaf);
        Ok(())
    }

    fn take_quarantine(
        &mut self,
        leaf: BlockNo,
        key: &[u8],
        value: &[u8],
        ground: &mut Ground<'_, '_>,
    ) -> Result<(), Corruption> {
        let key = whole::<QuarantineKey>(key)?;
        let owner = key.owner.get();
        match OwnerKind::parse(key.kind)? {
            OwnerKind::Round => {
                self.check_next(leaf, owner, self.counters.round, ground.log);
            }
            OwnerKind::Client => {
                if !ground.clients.has(ClientId(owner)) {
                    ground.log.put(Id::Client, Extent::new(leaf, 1), Wrong::MISMATCH);
                }
            }
        }
        self.claim_list(list(value)?, Holder::Quarantine, ground)
    }

    fn claim_list(
        &mut self,
        extents: &[Extent],
        holder: Holder,
        ground: &mut Ground<'_, '_>,
    ) -> Result<(), Corruption> {
        if !extents.iter().all(|extent| extent.is_inside(self.volume_blocks)) {
            return Err(Corruption::Bounds);
        }
        for extent in extents {
            self.claim(*extent, holder, None, ground.counts);
        }
        Ok(())
    }

    /// Somebody has this extent, which lies in the volume.
    pub(super) fn claim(
        &mut self,
        extent: Extent,
        holder: Holder,
        item: Option<Place>,
        counts: &mut Counts,
    ) {
        let blocks = &mut counts.blocks[holder as usize];
        *blocks = blocks.saturating_add(extent.len());
        let claim = Claim { extent, item };
        self.claims.push(claim).map_err(drop).expect("claims are worked off first");
    }
}

fn client_record(value: &[u8]) -> Result<&ClientRecord, Corruption> {
    let record = whole::<ClientRecord>(value)?;
    ClientState::parse(record.state)?;
    if record.reserved != [0; 14] {
        return Err(Corruption::Reserved);
    }
    if record.flags & !7 != 0 { Err(Corruption::Value) } else { Ok(record) }
}
