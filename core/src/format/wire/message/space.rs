//! Payloads about transactions, runs and space.

use super::super::{Malformed, named, reserved, take, whole};
use super::Emitter;
use crate::error::Corruption;
use crate::format::layout::BLOCKS_MAX;
use crate::format::records::ManifestEntry;
use crate::format::{BlockNo, CommitNo, Seq};
use crate::record;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Most runs of a transaction.
pub const RUNS_MAX: usize = 8;
/// Most extents of its loans that a transaction uses.
pub const USED_MAX: usize = 128;
/// Most extents that a transaction frees.
pub const FREED_MAX: usize = 254;
/// Most extents that are lent at once: as many as leave the answer room in the value of a tree's
/// item, where the client's record keeps it.
pub const LOAN_EXTENTS_MAX: usize = 48;
/// Most extents that one loan request gives back.
pub const RETURNED_MAX: usize = 64;

record! {
    /// Where the manifest is.
    pub struct RootRecord [32] {
        /// The commit that wrote it.
        commit: U64,
        /// Address of its root block; 0 when the manifest is empty.
        blkno: U64,
        /// Version of that block.
        seq: U64,
        /// Levels of the tree; 0 when the manifest is empty.
        height: u8,
        /// Zero.
        reserved: [u8; 7],
    }

    /// Part of a pool: blocks, or numbers.
    pub struct ExtentRecord [16] {
        /// The first.
        start: U64,
        /// How many.
        count: U32,
        /// What they are: a [`Pool`].
        pool: u8,
        /// Zero.
        reserved: [u8; 3],
    }

    /// A sorted run that was written, as the manifest is to name it.
    pub struct RunRecord [256] {
        /// Its id from the client's loan, where it stands, and its keys.
        entry: ManifestEntry,
        /// Zero.
        reserved: [u8; 8],
    }

    /// Stands before the lists of a transaction: runs, extents used, extents freed.
    pub struct TransactionRecord [32] {
        /// Number of this transaction of the client, from 1.
        number: U64,
        /// Its place among all clients' transactions, as it was opened.
        seq: U64,
        /// The manifest it was written over.
        root_commit: U64,
        /// Runs.
        runs: U16,
        /// Extents of loans used.
        used: U16,
        /// Extents freed.
        freed: U16,
        /// Zero.
        reserved: [u8; 2],
    }

    /// Stands before the extents that a transaction's answer lends.
    pub struct TransactionDoneRecord [64] {
        /// The transaction.
        number: U64,
        /// The client's next transaction, which is open from now on.
        seq_next: U64,
        /// No change that is still to become durable bears this number, or an earlier one.
        seq_stable: U64,
        /// The manifest with the transaction in it.
        root: RootRecord,
        /// Extents lent.
        extents: U16,
        /// Zero.
        reserved: [u8; 6],
    }

    /// Stands before the extents that a loan request gives back.
    pub struct LoanRequestRecord [32] {
        /// Number of this request of the client, from 1.
        number: U64,
        /// Blocks wanted for file data.
        data_blocks: U32,
        /// Blocks wanted for runs.
        run_blocks: U32,
        /// Inode numbers wanted.
        inodes: U32,
        /// Run ids wanted.
        run_ids: U32,
        /// Extents given back.
        returned: U16,
        /// Zero.
        reserved: [u8; 6],
    }

    /// Stands before the extents that are lent.
    pub struct LoanRecord [16] {
        /// The request.
        number: U64,
        /// Extents lent.
        extents: U16,
        /// Zero.
        reserved: [u8; 6],
    }

    /// What of a loan the server wants back.
    pub struct RecallRecord [8] {
        /// A [`Pool`].
        pool: u8,
        /// Zero.
        reserved: [u8; 3],
        /// How many.
        count: U32,
    }

    /// Where the manifest is, and what is visible.
    pub struct RootNowRecord [48] {
        /// The newest durable manifest.
        root: RootRecord,
        /// No change that is still to become durable bears this number, or an earlier one.
        seq_stable: U64,
        /// The transaction that the asking client has open.
        seq_open: U64,
    }
}

pub use crate::format::records::Pool;

/// A pool that clients are told of: the space of a compaction comes and goes with it.
fn pool(raw: u8) -> Result<Pool, Malformed> {
    match Pool::parse(raw) {
        Ok(Pool::Compaction) | Err(_) => Err(Malformed::Value),
        Ok(pool) => Ok(pool),
    }
}

/// Where the manifest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ManifestRoot {
    /// The commit that wrote it.
    pub commit: CommitNo,
    /// Address of its root block; 0 when the manifest is empty.
    pub blkno: BlockNo,
    /// Version of that block.
    pub seq: u64,
    /// Levels of the tree; 0 when the manifest is empty.
    pub height: u8,
}

impl ManifestRoot {
    pub(super) fn parse(record: &RootRecord) -> Result<ManifestRoot, Malformed> {
        reserved(&record.reserved)?;
        if (record.height == 0) != (record.blkno.get() == 0) {
            return Err(Malformed::Value);
        }
        Ok(ManifestRoot {
            commit: record.commit.into(),
            blkno: BlockNo(record.blkno.get()),
            seq: record.seq.get(),
            height: record.height,
        })
    }

    pub(super) fn record(&self) -> RootRecord {
        RootRecord {
            commit: self.commit.into(),
            blkno: self.blkno.0.into(),
            seq: self.seq.into(),
            height: self.height,
            reserved: [0; 7],
        }
    }
}

/// Where the manifest is, and what is visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootNow {
    /// The newest durable manifest.
    pub root: ManifestRoot,
    /// No transaction up to this one is open.
    pub seq_stable: Seq,
    /// The transaction that the asking client has open: how it learns of its first. Means nothing
    /// while an answer to a transaction is under way.
    pub seq_open: Seq,
}

impl RootNow {
    pub(super) fn parse(payload: &[u8]) -> Result<RootNow, Malformed> {
        let record: &RootNowRecord = whole(payload)?;
        let root = ManifestRoot::parse(&record.root)?;
        let (seq_stable, seq_open) = (record.seq_stable.into(), record.seq_open.into());
        Ok(RootNow { root, seq_stable, seq_open })
    }

    pub(super) fn record(&self) -> RootNowRecord {
        RootNowRecord {
            root: self.root.record(),
            seq_stable: self.seq_stable.into(),
            seq_open: self.seq_open.into(),
        }
    }
}

/// Part of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// What it consists of.
    pub pool: Pool,
    /// The first.
    pub start: u64,
    /// How many; at least one, and the last exists.
    pub count: u32,
}

impl ExtentRecord {
    /// This extent, as it travels.
    #[must_use]
    pub fn new(extent: Extent) -> ExtentRecord {
        ExtentRecord {
            start: extent.start.into(),
            count: extent.count.into(),
            pool: extent.pool as u8,
            reserved: [0; 3],
        }
    }

    fn parse(&self) -> Result<Extent, Malformed> {
        reserved(&self.reserved)?;
        let extent =
            Extent { pool: pool(self.pool)?, start: self.start.get(), count: self.count.get() };
        extends(extent.start, extent.count)?;
        Ok(extent)
    }
}

/// Some extents, each one checked. They may overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extents<'p>(&'p [ExtentRecord]);

impl<'p> Extents<'p> {
    /// These extents, if each is in order.
    pub fn new(extents: &'p [ExtentRecord]) -> Result<Extents<'p>, Malformed> {
        extents.iter().try_for_each(|extent| extent.parse().map(|_| ()))?;
        Ok(Extents(extents))
    }

    /// The extents.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Extent> + use<'p> {
        self.0.iter().map(|extent| extent.parse().expect("checked when this was made"))
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(
        payload: &'p [u8],
        count: U16,
        max: usize,
    ) -> Result<(Extents<'p>, &'p [u8]), Malformed> {
        let (extents, rest) = take_slice(payload, count, max)?;
        Ok((Extents::new(extents)?, rest))
    }
}

impl RunRecord {
    /// This run, as it travels.
    #[must_use]
    pub fn new(entry: &ManifestEntry) -> RunRecord {
        RunRecord { entry: *entry, reserved: [0; 8] }
    }

    pub(super) fn parse(&self) -> Result<&ManifestEntry, Malformed> {
        reserved(&self.reserved)?;
        run_entry(&self.entry)?;
        Ok(&self.entry)
    }
}

/// Checks that this can be a run of the largest volume.
pub(super) fn run_entry(entry: &ManifestEntry) -> Result<(), Malformed> {
    entry.check(BLOCKS_MAX).map_err(|what| match what {
        Corruption::Reserved => Malformed::Reserved,
        Corruption::Bounds | Corruption::Order => Malformed::Range,
        Corruption::Checksum
        | Corruption::Kind
        | Corruption::Volume
        | Corruption::Misdirected
        | Corruption::Stale
        | Corruption::Level
        | Corruption::Value
        | Corruption::Mismatch => Malformed::Value,
    })
}

/// What a client transaction wrote, all to be recorded in one commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transaction<'p> {
    /// Number of this transaction of the client, from 1: the durable number that makes it happen
    /// once, whatever number of servers it is sent to.
    pub number: u64,
    /// Its place among all clients' transactions.
    pub seq: Seq,
    /// The manifest it was written over.
    pub root_commit: CommitNo,
    runs: &'p [RunRecord],
    /// What it used of the client's loans of data blocks and inode numbers. Its runs say themselves
    /// which blocks and numbers they have.
    pub used: Extents<'p>,
    /// What it freed.
    pub freed: Extents<'p>,
}

impl<'p> Transaction<'p> {
    pub(super) const BYTES_MAX: usize = size_of::<TransactionRecord>()
        + RUNS_MAX * size_of::<RunRecord>()
        + (USED_MAX + FREED_MAX) * size_of::<ExtentRecord>();

    /// A transaction, if its lists are within their bounds and each run is in order.
    pub fn new(
        number: u64,
        seq: Seq,
        root_commit: CommitNo,
        runs: &'p [RunRecord],
        used: Extents<'p>,
        freed: Extents<'p>,
    ) -> Result<Transaction<'p>, Malformed> {
        if number == 0 || seq == Seq(0) {
            return Err(Malformed::Zero);
        }
        if runs.len() > RUNS_MAX || used.len() > USED_MAX || freed.len() > FREED_MAX {
            return Err(Malformed::Count);
        }
        runs.iter().try_for_each(|run| run.parse().map(|_| ()))?;
        Ok(Transaction { number, seq, root_commit, runs, used, freed })
    }

    /// The runs. Each can be one of the largest volume; whether it can of this one, is not checked.
    pub fn runs(&self) -> impl ExactSizeIterator<Item = &'p ManifestEntry> + use<'p> {
        self.runs.iter().map(|run| &run.entry)
    }

    pub(super) fn parse(payload: &'p [u8]) -> Result<Transaction<'p>, Malformed> {
        let (record, rest) = take::<TransactionRecord>(payload)?;
        reserved(&record.reserved)?;
        let (runs, rest) = take_slice(rest, record.runs, RUNS_MAX)?;
        let (used, rest) = Extents::take(rest, record.used, USED_MAX)?;
        let (freed, rest) = Extents::take(rest, record.freed, FREED_MAX)?;
        end(rest)?;
        let (seq, root_commit) = (record.seq.into(), record.root_commit.into());
        Transaction::new(record.number.get(), seq, root_commit, runs, used, freed)
    }

    pub(super) fn emit(&self, to: &mut Emitter<'_>) {
        to.put(&TransactionRecord {
            number: self.number.into(),
            seq: self.seq.into(),
            root_commit: self.root_commit.into(),
            runs: (self.runs.len() as u16).into(),
            used: (self.used.len() as u16).into(),
            freed: (self.freed.len() as u16).into(),
            reserved: [0; 2],
        });
        to.put(self.runs);
        to.put(self.used.0);
        to.put(self.freed.0);
    }
}

/// A transaction is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionDone<'p> {
    /// The transaction.
    pub number: u64,
    /// The client's next transaction.
    pub seq_next: Seq,
    /// No transaction up to this one is open.
    pub seq_stable: Seq,
    /// The manifest with the transaction in it.
    pub root: ManifestRoot,
    /// What the client is lent on top of what it has.
    pub lent: Extents<'p>,
}

impl<'p> TransactionDone<'p> {
    pub(super) const BYTES_MAX: usize =
        size_of::<TransactionDoneRecord>() + LOAN_EXTENTS_MAX * size_of::<ExtentRecord>();

    pub(super) fn parse(payload: &'p [u8]) -> Result<TransactionDone<'p>, Malformed> {
        let (record, rest) = take::<TransactionDoneRecord>(payload)?;
        reserved(&record.reserved)?;
        let (lent, rest) = Extents::take(rest, record.extents, LOAN_EXTENTS_MAX)?;
        end(rest)?;
        Ok(TransactionDone {
            number: named(record.number)?,
            seq_next: Seq(named(record.seq_next)?),
            seq_stable: record.seq_stable.into(),
            root: ManifestRoot::parse(&record.root)?,
            lent,
        })
    }

    pub(super) fn emit(&self, to: &mut Emitter<'_>) {
        to.put(&TransactionDoneRecord {
            number: self.number.into(),
            seq_next: self.seq_next.into(),
            seq_stable: self.seq_stable.into(),
            root: self.root.record(),
            extents: (self.lent.len() as u16).into(),
            reserved: [0; 6],
        });
        to.put(self.lent.0);
    }
}

/// A client wants to borrow, and gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoanRequest<'p> {
    /// Number of this loan request of the client, from 1: the durable number that makes it happen
    /// once, whatever number of servers it is sent to.
    pub number: u64,
    /// Blocks wanted for file data.
    pub data_blocks: u32,
    /// Blocks wanted for runs.
    pub run_blocks: u32,
    /// Inode numbers wanted.
    pub inodes: u32,
    /// Run ids wanted.
    pub run_ids: u32,
    /// What is given back.
    pub returned: Extents<'p>,
}

impl<'p> LoanRequest<'p> {
    pub(super) const BYTES_MAX: usize =
        size_of::<LoanRequestRecord>() + RETURNED_MAX * size_of::<ExtentRecord>();

    pub(super) fn parse(payload: &'p [u8]) -> Result<LoanRequest<'p>, Malformed> {
        let (record, rest) = take::<LoanRequestRecord>(payload)?;
        reserved(&record.reserved)?;
        let (returned, rest) = Extents::take(rest, record.returned, RETURNED_MAX)?;
        end(rest)?;
        Ok(LoanRequest {
            number: named(record.number)?,
            data_blocks: record.data_blocks.get(),
            run_blocks: record.run_blocks.get(),
            inodes: record.inodes.get(),
            run_ids: record.run_ids.get(),
            returned,
        })
    }

    pub(super) fn emit(&self, to: &mut Emitter<'_>) {
        to.put(&LoanRequestRecord {
            number: self.number.into(),
            data_blocks: self.data_blocks.into(),
            run_blocks: self.run_blocks.into(),
            inodes: self.inodes.into(),
            run_ids: self.run_ids.into(),
            returned: (self.returned.len() as u16).into(),
            reserved: [0; 6],
        });
        to.put(self.returned.0);
    }
}

/// What a client is lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loan<'p> {
    /// The request.
    pub number: u64,
    /// What the client is lent on top of what it has.
    pub lent: Extents<'p>,
}

impl<'p> Loan<'p> {
    pub(super) const BYTES_MAX: usize =
        size_of::<LoanRecord>() + LOAN_EXTENTS_MAX * size_of::<ExtentRecord>();

    pub(super) fn parse(payload: &'p [u8]) -> Result<Loan<'p>, Malformed> {
        let (record, rest) = take::<LoanRecord>(payload)?;
        reserved(&record.reserved)?;
        let (lent, rest) = Extents::take(rest, record.extents, LOAN_EXTENTS_MAX)?;
        end(rest)?;
        Ok(Loan { number: named(record.number)?, lent })
    }

    pub(super) fn emit(&self, to: &mut Emitter<'_>) {
        to.put(&LoanRecord {
            number: self.number.into(),
            extents: (self.lent.len() as u16).into(),
            reserved: [0; 6],
        });
        to.put(self.lent.0);
    }
}

/// What of a loan the server wants back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recall {
    /// Of what.
    pub pool: Pool,
    /// How many.
    pub count: u32,
}

impl Recall {
    pub(super) fn parse(payload: &[u8]) -> Result<Recall, Malformed> {
        let record: &RecallRecord = whole(payload)?;
        reserved(&record.reserved)?;
        Ok(Recall { pool: pool(record.pool)?, count: record.count.get() })
    }

    pub(super) fn record(&self) -> RecallRecord {
        RecallRecord { pool: self.pool as u8, reserved: [0; 3], count: self.count.into() }
    }
}

/// As many structures as the count says, if it is within its bound, and what follows them.
pub(super) fn take_slice<T: FromBytes + KnownLayout + Immutable>(
    bytes: &[u8],
    count: U16,
    max: usize,
) -> Result<(&[T], &[u8]), Malformed> {
    let count = usize::from(count.get());
    if count > max {
        return Err(Malformed::Count);
    }
    <[T]>::ref_from_prefix_with_elems(bytes, count).map_err(|_| Malformed::Length)
}

/// Checks that nothing follows.
pub(super) fn end(rest: &[u8]) -> Result<(), Malformed> {
    if rest.is_empty() { Ok(()) } else { Err(Malformed::Length) }
}

/// Checks that there is something, and that its last number exists.
pub(super) fn extends(start: u64, count: u32) -> Result<(), Malformed> {
    match count.checked_sub(1).and_then(|more| start.checked_add(more.into())) {
        Some(_) => Ok(()),
        None => Err(Malformed::Range),
    }
}
