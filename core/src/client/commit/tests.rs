//! Transactions and loans of a mount against a server that keeps account: what is lent, what each
//! transaction says of it, and which items the runs on the device have.

extern crate std;

use super::super::fs::BlockRun;
use super::super::items::{Edit, Needs, Range, Stop, Wait, key};
use super::super::loans::{LoanLimits, Loans};
use super::{CommitLimits, Committer, Failure, ItemCache, NotNow, Share, items};
use crate::arena::Arena;
use crate::arena::tests::region;
use crate::format::key::{Key, KeyBytes};
use crate::format::records::{ManifestEntry, Pool};
use crate::format::root::Extent;
use crate::format::run::{
    Filter, Index, Items, RunBlock, VALUE_BYTES_MAX, Value, filter_block, filter_hash,
};
use crate::format::super_block::tests::identity;
use crate::format::super_block::{Identity, Super};
use crate::format::wire::ErrorCode;
use crate::format::wire::message::{
    Extent as Lent, ExtentRecord, Extents, Loan, ManifestRoot, Recall, Transaction, TransactionDone,
};
use crate::format::{Block, BlockNo, CommitNo, Ino, Seq};
use crate::lock::GROUP_KEYS;
use crate::node::More;
use crate::txn::loans::{EXTENTS_HIGH, Loans as Account};
use outrider_hal::{BlockOp, Completion, IoError};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::collections::{BTreeMap, BTreeSet};
use std::vec;
use std::vec::Vec;
use zerocopy::IntoBytes;

const VOLUME_BLOCKS: u64 = 1 << 14;
const DIRTY: CommitLimits = CommitLimits { dirty_items: 300, dirty_chunks: 1500 };
const LIMITS: LoanLimits =
    LoanLimits { data_blocks: 200, ino_groups: 6, ino_spare: 3, commit: DIRTY };
const POOLS: [Pool; 4] = [Pool::Data, Pool::Runs, Pool::Inodes, Pool::RunIds];
/// Blocks that the server never lends.
const FREE_MIN: usize = 30;

fn volume() -> Super {
    let identity = Identity { blocks: VOLUME_BLOCKS, ..identity() };
    Super::new(&identity).unwrap()
}

type Values = BTreeMap<items::Key, Option<Vec<u8>>>;
type Answer = (u64, Vec<ExtentRecord>);

fn numbers(extent: &Lent) -> std::ops::Range<u64> {
    extent.start..extent.start + u64::from(extent.count)
}

/// The server: accounts of what is lent, and what it has recorded.
#[derive(Default)]
struct Server {
    accounts: [Account; 4],
    free: BTreeSet<u64>,
    next_ino: u64,
    next_id: u64,
    files: BTreeSet<u64>,
    inos: BTreeSet<u64>,
    runs: Vec<ManifestEntry>,
    items: BTreeMap<items::Key, Vec<u8>>,
    open: Seq,
    next_seq: Seq,
    commit: u64,
    transaction: u64,
    loan: u64,
    loan_answer: Vec<ExtentRecord>,
}

impl Server {
    fn account(&mut self, pool: Pool) -> &mut Account {
        &mut self.accounts[pool as usize - 1]
    }

    fn held(&self, pool: Pool) -> u64 {
        self.accounts[pool as usize - 1].extents().iter().map(Extent::len).sum()
    }

    /// Lends up to so many blocks, in pieces of at most so many.
    fn take(&mut self, pool: Pool, mut wanted: u32, piece: u32, lent: &mut Vec<ExtentRecord>) {
        for turn in 0..16 {
            let full = self.account(pool).extents().len() >= EXTENTS_HIGH;
            if wanted == 0 || full || self.free.len() <= FREE_MIN {
                return;
            }
            // Now from the front, now from the middle.
            let from = if turn % 2 == 0 { 0 } else { VOLUME_BLOCKS / 3 };
            let found = self.free.range(from..).next().or(self.free.first());
            let start = *found.expect("there are more than are kept");
            let most = wanted.min(piece).min((self.free.len() - FREE_MIN) as u32);
            let mut count = 0;
            while count < most && self.free.remove(&(start + u64::from(count))) {
                count += 1;
            }
            self.account(pool).add(Extent::new(BlockNo(start), count.into())).unwrap();
            lent.push(ExtentRecord::new(Lent { pool, start, count }));
            wanted -= count;
        }
    }

    /// Carries out a loan request, or repeats its answer.
    fn lend(&mut self, loans: &Loans<'_>, piece: u32) -> Result<Answer, ErrorCode> {
        let request = loans.request().unwrap();
        if request.number == self.loan {
            return Ok((self.loan, self.loan_answer.clone()));
        }
        assert_eq!(request.number, self.loan + 1);
        let mut lent = Vec::new();
        for extent in request.returned.iter() {
            let blocks = Extent::new(BlockNo(extent.start), extent.count.into());
            self.account(extent.pool).remove(blocks).expect("what is given back is lent");
            if matches!(extent.pool, Pool::Data | Pool::Runs) {
                self.free.extend(numbers(&extent));
            }
        }
        let first_ino = self.next_ino;
        for (pool, start, count) in [
            (Pool::Inodes, first_ino, request.inodes),
            (Pool::RunIds, self.next_id, request.run_ids),
        ] {
            if count > 0 {
                self.account(pool).add(Extent::new(BlockNo(start), count.into())).unwrap();
                lent.push(ExtentRecord::new(Lent { pool, start, count }));
            }
        }
        self.next_ino += u64::from(request.inodes);
        self.next_id += u64::from(request.run_ids);
        self.take(Pool::Data, request.data_blocks, piece, &mut lent);
        self.take(Pool::Runs, request.run_blocks, piece, &mut lent);
        if self.free.len() < FREE_MIN + 20 {
            self.merge();
        }
        if lent.is_empty() && request.returned.is_empty() {
            return Err(ErrorCode::NoSpace);
        }
        self.loan = request.number;
        self.loan_answer = lent.clone();
        Ok((self.loan, lent))
    }

    /// All runs are merged away, to somewhere else.
    fn merge(&mut self) {
        for run in self.runs.drain(..) {
            self.free.extend(run.extent().start().0..run.extent().end().0);
        }
    }

    /// Carries out a transaction, if it was not before. It may say that an item is deleted which
    /// doesn't exist here, if that was ever copied.
    fn commit(
        &mut self,
        request: &Transaction<'_>,
        disk: &BTreeMap<u64, Block>,
        want: &Snapshot,
        copied: &BTreeSet<items::Key>,
    ) {
        if request.number == self.transaction {
            return;
        }
        assert_eq!(request.number, self.transaction + 1);
        assert_eq!(request.seq, self.open);
        let mut used = [BTreeSet::new(), BTreeSet::new()];
        for extent in request.used.iter() {
            let inode = usize::from(extent.pool == Pool::Inodes);
            assert!(inode == 1 || extent.pool == Pool::Data);
            let blocks = Extent::new(BlockNo(extent.start), extent.count.into());
            self.account(extent.pool).remove(blocks).expect("what is used is lent");
            used[inode].extend(numbers(&extent));
        }
        assert_eq!(used, [want.used.clone(), want.inos.clone()]);
        let mut all = Values::new();
        for run in request.runs() {
            run.check(VOLUME_BLOCKS).unwrap();
            self.account(Pool::Runs).remove(run.extent()).expect("a run stands in what is lent");
            let id = Extent::new(BlockNo(run.run().0), 1);
            self.account(Pool::RunIds).remove(id).expect("its number is lent");
            read_run(run, disk, &mut all);
            self.runs.push(*run);
        }
        all.retain(|key, value| {
            value.is_some() || want.items.contains_key(key) || !copied.contains(key)
        });
        assert_eq!(all, want.items);
        self.files.extend(&used[0]);
        self.inos.extend(&used[1]);
        let mut freed = BTreeSet::new();
        for extent in request.freed.iter() {
            for block in numbers(&extent) {
                assert!(self.files.remove(&block), "only what a file had is freed");
                freed.insert(block);
            }
        }
        assert_eq!(freed, want.freed);
        self.free.extend(freed);
        for (key, value) in all {
            match value {
                Some(value) => self.items.insert(key, value),
                None => self.items.remove(&key),
            };
        }
        if self.runs.len() > 20 {
            self.merge();
        }
        self.transaction = request.number;
        self.commit += 1;
        self.open = self.next_seq;
        self.next_seq = Seq(self.next_seq.0 + 7);
    }
}

/// Reads the items of a run, and looks each one up as a reader would.
fn read_run(run: &ManifestEntry, disk: &BTreeMap<u64, Block>, to: &mut Values) {
    let (volume, super_block) = (volume().volume(), volume());
    let at = |index: u16| RunBlock {
        blkno: run.extent().start().plus(index.into()),
        run: run.run(),
        index: index.into(),
    };
    let block = |index: u16| &disk[&at(index).blkno.0];
    let (blocks, indices) = (run.item_blocks.get(), run.index_blocks.get());
    let filters = run.filter_blocks.get();
    let firsts = (blocks..blocks + indices)
        .flat_map(|index| Index::open(block(index), &volume, &at(index)).unwrap().keys());
    let firsts: Vec<&KeyBytes> = firsts.collect();
    assert_eq!(firsts.len(), usize::from(blocks));
    let mut count = 0;
    for index in 0..blocks {
        let items = Items::open(block(index), &volume, &at(index)).unwrap();
        assert_eq!(items.get(0).0, firsts[usize::from(index)]);
        for number in 0..items.count() {
            let (key, value) = items.get(number);
            let hash = filter_hash(&super_block.fields().name_key, key);
            let filter = blocks + indices + filter_block(hash, filters.into()) as u16;
            let filter = Filter::open(block(filter), &volume, &at(filter)).unwrap();
            assert!(filter.may_contain(hash));
            let value = match value {
                Value::Bytes(bytes) => Some(bytes.to_vec()),
                Value::Tombstone => None,
            };
            let before = to.insert(key.as_bytes().try_into().unwrap(), value);
            assert!(before.is_none(), "an item is in one run");
            count += 1;
        }
    }
    assert_eq!(run.items.get(), count);
    assert_eq!(*run.range().unwrap().0.as_bytes(), *firsts[0].as_bytes());
}

/// What a transaction must say.
#[derive(Debug, Clone, Default, PartialEq)]
struct Snapshot {
    items: Values,
    used: BTreeSet<u64>,
    inos: BTreeSet<u64>,
    freed: BTreeSet<u64>,
}

struct World {
    items: ItemCache<'static>,
    loans: Loans<'static>,
    committer: Committer<'static>,
    server: Server,
    /// What is on the medium, and what only the device's cache has.
    disk: BTreeMap<u64, Block>,
    cached: BTreeMap<u64, Block>,
    /// All items, as tasks see them.
    model: BTreeMap<items::Key, Vec<u8>>,
    /// What has changed since the last snapshot; what the snapshot has.
    open: Snapshot,
    sent: Snapshot,
    /// Blocks that files have.
    files: BTreeSet<u64>,
    /// Keys that were copied, once.
    copied: BTreeSet<items::Key>,
    /// Those of them that may exist at the server: their deletion has not become durable since.
    persistent: BTreeSet<items::Key>,
    last_done: Option<(u64, Seq)>,
    /// The request has been carried out, and the answer is on its way.
    loan_answer: Option<Result<Answer, ErrorCode>>,
    waits: u32,
    /// No more is changed than fits what is lent, as in a mount.
    narrows: bool,
}

impl World {
    fn new(blocks: usize) -> World {
        let cache = items::Limits {
            items: 2000,
            chunks: 12_000,
            dirty_items: DIRTY.dirty_items,
            dirty_chunks: DIRTY.dirty_chunks,
            ranges: 50,
            fills: 1,
            change: Needs { items: 4, value_bytes: 4 * VALUE_BYTES_MAX as u32 },
        };
        let carve = |arena: &mut Arena<'static>| {
            let items = ItemCache::carve(arena, &cache).unwrap();
            let loans = Loans::carve(arena, &LIMITS, &volume()).unwrap();
            (items, loans, Committer::carve(arena, &DIRTY, &volume()).unwrap())
        };
        let mut measure = Arena::measuring();
        carve(&mut measure);
        let bytes = measure.bytes_used();
        let mut arena = Arena::new(region(bytes)).unwrap();
        let (mut items, loans, mut committer) = carve(&mut arena);
        assert_eq!(arena.bytes_used(), bytes);
        let all = Range { first: key::FIRST, last: key::LAST };
        let fill = items.fill_begin(&all, &key::FIRST, CommitNo(1)).unwrap();
        items.fill_end(fill, &key::LAST).unwrap();
        committer.open(Seq(5));
        let free = (300..300 + blocks as u64 * 2).filter(|block| block % 67 < 40).take(blocks);
        let server = Server {
            free: free.collect(),
            next_ino: 2 * GROUP_KEYS,
            next_id: 9,
            open: Seq(5),
            next_seq: Seq(12),
            commit: 1,
            ..Server::default()
        };
        World {
            items,
            loans,
            committer,
            server,
            disk: BTreeMap::new(),
            cached: BTreeMap::new(),
            model: BTreeMap::new(),
            open: Snapshot::default(),
            sent: Snapshot::default(),
            files: BTreeSet::new(),
            copied: BTreeSet::new(),
            persistent: BTreeSet::new(),
            last_done: None,
            loan_answer: None,
            waits: 0,
            narrows: false,
        }
    }

    /// Changes one item.
    fn change(&mut self, number: u64, value: Option<Vec<u8>>) -> bool {
        let name: items::Key =
            KeyBytes::from(Key::inode(Ino(number))).as_bytes().try_into().unwrap();
        if self.narrows {
            let max = self.committer.dirty_max(&self.loans);
            self.items.narrow(max.dirty_items, max.dirty_chunks);
        }
        let exists = self.model.contains_key(&name);
        let edit = match &value {
            Some(value) if exists => Edit::Replace { key: name, value },
            Some(value) => Edit::Create { key: name, value },
            None if exists => Edit::Delete { key: name },
            None => return true,
        };
        let plan = match self.items.plan(&[edit]) {
            Ok(plan) => plan,
            Err(Stop::Wait(Wait::Commit | Wait::Snapshot)) => {
                self.waits += 1;
                return false;
            }
            Err(stop) => panic!("{stop:?}"),
        };
        self.items.apply(plan, &[edit]);
        match value.clone() {
            Some(value) => self.model.insert(name, value),
            None => self.model.remove(&name),
        };
        if value.is_none() && !self.persistent.contains(&name) {
            self.open.items.remove(&name);
        } else {
            self.open.items.insert(name, value);
        }
        true
    }

    /// A file gets blocks: an item and the pool change together.
    fn allocate(&mut self, number: u64, wanted: u64) {
        let Some(run) = self.loans.blocks.peek(wanted) else { return };
        if self.change(number, Some(run.first.0.to_le_bytes().to_vec())) {
            self.loans.blocks.take(run);
            for block in run.first.0..run.first.0 + run.len {
                assert!(self.files.insert(block), "block {block} is taken twice");
                assert!(self.open.used.insert(block));
            }
        }
    }

    fn make(&mut self, dir: u64, directory: bool) {
        let Some(ino) = self.loans.inos.peek(Ino(dir), directory) else { return };
        if self.change(ino.0, Some([1; 90].to_vec())) {
            self.loans.inos.take(Ino(dir), directory);
            assert!(self.open.inos.insert(ino.0) && !self.server.inos.contains(&ino.0));
        }
    }

    fn free(&mut self, number: u64, at: usize, len: u64) {
        let Some(first) = self.files.iter().copied().nth(at % self.files.len().max(1)) else {
            return;
        };
        let len = (1..len).find(|more| !self.files.contains(&(first + more))).unwrap_or(len);
        let room = self.loans.blocks.has_room(1);
        if room && self.change(number, Some([2; 30].to_vec())) {
            self.loans.blocks.free(BlockRun { first: BlockNo(first), len });
            for block in first..first + len {
                assert!(self.files.remove(&block));
                self.open.freed.insert(block);
            }
        }
    }

    fn begin(&mut self) {
        let root = CommitNo(self.server.commit);
        match self.committer.begin(&mut self.items, &mut self.loans, root) {
            Ok(generation) => {
                assert!(generation.is_some() || self.open.items.is_empty());
                // What was never copied, and is deleted, leaves nothing to commit.
                let none = self.open.items.is_empty() && self.copied.is_empty();
                assert!(generation.is_none() || !none);
                self.sent = core::mem::take(&mut self.open);
                assert_eq!(self.committer.is_copying(), generation.is_some());
            }
            Err(NotNow::Busy | NotNow::Loan) => {}
            Err(NotNow::Closed) => panic!("it is open"),
        }
    }

    fn step(&mut self, budget: u32) {
        let copying = self.committer.is_copying();
        let more = self.committer.step(&mut self.items, &mut self.loans, budget);
        // Changes go on when the last item is copied, be it noticed in this step or in the next.
        if copying && (more == More::No || self.items.commit_peek().is_none()) {
            self.copied.extend(self.sent.items.keys());
            self.persistent.extend(self.sent.items.keys());
        }
        self.note_failure(None);
    }

    /// What a failed attempt had is the open transaction's, unless it has changed since.
    fn note_failure(&mut self, expected: Option<ErrorCode>) {
        let Some(failure) = self.committer.poll_failure() else {
            assert!(expected.is_none());
            return;
        };
        if let Some(error) = expected {
            assert_eq!(failure, Failure::Refused(error));
        }
        let sent = core::mem::take(&mut self.sent);
        for (key, value) in sent.items {
            self.open.items.entry(key).or_insert(value);
        }
        self.open.used.extend(sent.used);
        self.open.inos.extend(sent.inos);
        self.open.freed.extend(sent.freed);
    }

    /// The device carries out some requests, newest first or not.
    fn device(&mut self, count: u32, fails: u32) {
        let mut requests: Vec<_> =
            (0..count).map_while(|_| self.committer.poll_request()).collect();
        assert_eq!(self.committer.in_flight(), requests.len() as u32);
        if fails.is_multiple_of(2) {
            requests.reverse();
        }
        for (at, request) in requests.into_iter().enumerate() {
            let failed = fails > 0 && (at as u32).is_multiple_of(fails);
            assert!(request.tag.0 < Committer::TAGS);
            match &request.op {
                // A failed write may have been done, in part.
                BlockOp::Write(blkno, block) => {
                    let mut written = (**block).clone();
                    if failed {
                        written.0[100..].fill(0);
                    }
                    self.cached.insert(blkno.0, written);
                }
                // A failed flush may have lost everything.
                BlockOp::Flush if failed => self.cached.clear(),
                BlockOp::Flush => self.disk.append(&mut self.cached),
                BlockOp::Read(..) => panic!("nothing is read"),
            }
            let result = if failed { Err(IoError::Device) } else { Ok(()) };
            let completion = Completion { tag: request.tag, op: request.op, result };
            self.committer.handle_completion(completion);
        }
        self.note_failure(None);
    }

    fn send(&mut self, refuse: Option<ErrorCode>, lose: bool) {
        let Some(transaction) = self.committer.transaction() else { return };
        // What only the device's cache has, is lost now.
        if refuse.is_none() {
            self.server.commit(&transaction, &self.disk, &self.sent, &self.copied);
        } else if self.server.transaction == transaction.number {
            // It was carried out before, and so is not refused.
            return self.send(None, lose);
        }
        let sent = self.committer.is_unsent();
        self.committer.handle_sent();
        assert!(!self.committer.is_unsent());
        if lose {
            // It is sent again, to another server perhaps.
            return;
        }
        let (items, loans) = (&mut self.items, &mut self.loans);
        if let Some(error) = refuse {
            self.committer.handle_refused(items, loans, error);
            assert!(sent || self.committer.is_idle());
            return self.note_failure(Some(error));
        }
        let seq = self.committer.seq().unwrap();
        let done = self.done(self.server.transaction, self.server.open);
        let (items, loans) = (&mut self.items, &mut self.loans);
        let committed = self.committer.handle_done(items, loans, &done).unwrap();
        assert!(committed.seq == self.committer.committed() && committed.seq < seq);
        assert!(self.committer.seq().unwrap() >= seq);
        self.last_done = Some((done.number, done.seq_next));
        let sent = core::mem::take(&mut self.sent);
        for (key, _) in sent.items.iter().filter(|(_, value)| value.is_none()) {
            self.persistent.remove(key);
        }
    }

    fn done(&self, number: u64, seq_next: Seq) -> TransactionDone<'static> {
        let root = ManifestRoot { commit: CommitNo(self.server.commit), ..ManifestRoot::default() };
        TransactionDone { number, seq_next, seq_stable: Seq(0), root, lent: Extents::default() }
    }

    /// An answer that was given already comes once more.
    fn repeat(&mut self) {
        if let Some((number, seq_next)) = self.last_done {
            let done = self.done(number, seq_next);
            let before = (self.committer.seq(), self.committer.is_idle());
            let (items, loans) = (&mut self.items, &mut self.loans);
            assert!(self.committer.handle_done(items, loans, &done).is_none());
            assert_eq!((self.committer.seq(), self.committer.is_idle()), before);
        }
        let number = self.server.loan;
        if self.loan_answer.is_none() && self.loans.request().is_none_or(|r| r.number > number) {
            let available = (self.loans.blocks.available(), self.loans.run_blocks());
            let lent = self.server.loan_answer.clone();
            self.loans.handle_loan(&Loan { number, lent: Extents::new(&lent).unwrap() });
            assert_eq!((self.loans.blocks.available(), self.loans.run_blocks()), available);
        }
    }

    /// The request goes to the server, or its answer comes.
    fn borrow(&mut self, piece: u32, refuse: Option<ErrorCode>) {
        self.loans.step();
        match self.loan_answer.take() {
            Some(Ok((number, lent))) => {
                self.loans.handle_loan(&Loan { number, lent: Extents::new(&lent).unwrap() });
            }
            Some(Err(error)) => self.loans.handle_refused(error),
            None if self.loans.request().is_some() => {
                self.loans.handle_sent();
                let known = self.loans.request().unwrap().number == self.server.loan;
                let answer = match refuse.filter(|_| !known) {
                    Some(error) => Err(error),
                    None => self.server.lend(&self.loans, piece),
                };
                self.loan_answer = Some(answer);
            }
            None => {}
        }
    }

    /// The answer is lost on its way: the request is sent again.
    fn lose_loan(&mut self) {
        self.loan_answer = None;
    }

    /// What the server has lent is here, used, or on its way.
    fn check(&self) {
        let on_way = |pool| {
            let answered = match &self.loan_answer {
                Some(Ok((_, lent))) => &lent[..],
                Some(Err(_)) | None => &[],
            };
            let known = self.loans.request().is_some_and(|r| r.number == self.server.loan);
            let answered = if known { &self.server.loan_answer[..] } else { answered };
            let count = |records: &[ExtentRecord]| -> u64 {
                let records = records.iter().filter(|record| record.pool == pool as u8);
                records.map(|record| u64::from(record.count.get())).sum()
            };
            count(answered)
        };
        let used = |open: &BTreeSet<u64>, sent: &BTreeSet<u64>| {
            let told =
                self.committer.transaction().is_some_and(|t| t.number == self.server.transaction);
            (open.len() + if told { 0 } else { sent.len() }) as u64
        };
        let known = self.loans.request().is_some_and(|r| r.number == self.server.loan);
        for pool in [Pool::Data, Pool::Inodes] {
            let back = self.loans.going_back(pool, !known);
            let here = match pool {
                Pool::Data => {
                    self.loans.blocks.available() + used(&self.open.used, &self.sent.used)
                }
                _ => self.loans.inos.available() + used(&self.open.inos, &self.sent.inos),
            };
            assert_eq!(self.server.held(pool), here + back + on_way(pool), "{pool:?}");
        }
        if self.committer.is_idle() {
            let back = self.loans.going_back(Pool::Runs, !known);
            let here = self.loans.run_blocks();
            assert_eq!(self.server.held(Pool::Runs), here + back + on_way(Pool::Runs));
        }
        for pool in POOLS {
            let account = &self.server.accounts[pool as usize - 1];
            assert!(account.extents().len() < crate::txn::loans::EXTENTS_MAX);
        }
    }

    /// Everything works again: all that is dirty becomes durable.
    fn finish(&mut self) {
        for _ in 0..200 {
            self.loans.retry();
            self.borrow(40, None);
            self.borrow(40, None);
            let dirty = self.items.usage().dirty_items > 0 || !self.open_is_empty();
            if self.committer.is_idle() && dirty {
                self.begin();
            }
            self.step(1000);
            self.device(500, 0);
            self.device(500, 0);
            self.step(1000);
            self.send(None, false);
            self.check();
        }
        assert!(self.open_is_empty(), "{:?} {}", self.items.usage(), self.loans.run_blocks());
        let all: BTreeMap<_, _> = self.model.clone();
        assert_eq!(self.server.items, all);
        assert_eq!(self.server.files, self.files);
        assert_eq!(self.items.usage().dirty_items, 0);
    }

    fn open_is_empty(&self) -> bool {
        self.open == Snapshot::default() && self.sent == Snapshot::default()
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Change(u64, Option<usize>),
    Burst(u64, u64, usize),
    Allocate(u64, u64),
    Make(u64, bool),
    Free(u64, usize, u64),
    Begin,
    Copy(u32),
    Device(u32, u32),
    Send(Option<ErrorCode>, bool),
    Repeat,
    Borrow(u32, Option<ErrorCode>),
    LoseLoan,
    Retry,
    Recall(bool, u32),
}

fn refusal() -> impl Strategy<Value = Option<ErrorCode>> {
    prop_oneof![
        8 => Just(None),
        1 => Just(Some(ErrorCode::Busy)),
        1 => Just(Some(ErrorCode::Io)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let value = prop::option::weighted(0.7, 0usize..=VALUE_BYTES_MAX);
    let fails = prop_oneof![6 => Just(0u32), 1 => Just(1), 1 => 2u32..9];
    prop_oneof![
        6 => (1u64..60, value).prop_map(|(key, value)| Step::Change(key, value)),
        2 => (1u64..300, 1u64..120, 0usize..300).prop_map(|(a, b, c)| Step::Burst(a, b, c)),
        4 => (1u64..60, 1u64..60).prop_map(|(key, count)| Step::Allocate(key, count)),
        3 => (1u64..9, any::<bool>()).prop_map(|(dir, new)| Step::Make(dir, new)),
        3 => (1u64..60, 0usize..500, 1u64..40).prop_map(|(a, b, c)| Step::Free(a, b, c)),
        3 => Just(Step::Begin),
        5 => (1u32..200).prop_map(Step::Copy),
        8 => (1u32..40, fails).prop_map(|(count, fails)| Step::Device(count, fails)),
        4 => (refusal(), prop::bool::weighted(0.2)).prop_map(|(error, l)| Step::Send(error, l)),
        1 => Just(Step::Repeat),
        6 => (3u32..80, refusal()).prop_map(|(piece, error)| Step::Borrow(piece, error)),
        1 => Just(Step::LoseLoan),
        1 => Just(Step::Retry),
        1 => (any::<bool>(), 1u32..300).prop_map(|(data, count)| Step::Recall(data, count)),
    ]
}

impl World {
    fn take(&mut self, step: Step) {
        match step {
            Step::Change(key, len) => {
                self.change(key, len.map(|len| vec![key as u8; len]));
            }
            Step::Burst(first, count, len) => {
                for key in first..first + count {
                    self.change(1000 + key, Some(vec![key as u8; len]));
                }
            }
            Step::Allocate(key, wanted) => self.allocate(key, wanted),
            Step::Make(dir, directory) => self.make(dir, directory),
            Step::Free(key, at, len) => self.free(key, at, len),
            Step::Begin => self.begin(),
            Step::Copy(budget) => self.step(budget),
            Step::Device(count, fails) => self.device(count, fails),
            Step::Send(refuse, lose) => self.send(refuse, lose),
            Step::Repeat => self.repeat(),
            Step::Borrow(piece, refuse) => self.borrow(piece, refuse),
            Step::LoseLoan => self.lose_loan(),
            Step::Retry => self.loans.retry(),
            Step::Recall(data, count) => {
                let pool = if data { Pool::Data } else { Pool::Runs };
                self.loans.handle_recall(&Recall { pool, count });
            }
        }
        self.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn nothing_is_lost_and_accounts_agree(
        blocks in 150usize..1500,
        narrows in any::<bool>(),
        steps in prop::collection::vec(step(), 0..400),
    ) {
        let mut world = World::new(blocks);
        world.narrows = narrows;
        for _ in 0..4 {
            world.borrow(50, None);
        }
        for step in steps {
            world.take(step);
        }
        world.finish();
    }
}

/// The model above is worth what it meets.
#[test]
fn everything_happens() {
    let mut runner = TestRunner::deterministic();
    let (mut committed, mut lent) = (super::Counters::default(), 0);
    let (mut refused, mut starved, mut waits, mut unwritten) = (0, 0, 0, 0);
    for _ in 0..60 {
        let steps = prop::collection::vec(step(), 300..400).new_tree(&mut runner).unwrap();
        let mut world = World::new(250);
        for _ in 0..4 {
            world.borrow(50, None);
        }
        for step in steps.current() {
            world.take(step);
            world.loans.step();
            starved += u32::from(world.loans.is_starved());
        }
        unwritten += u32::from(!world.open_is_empty());
        world.finish();
        let (counters, loans) = (world.committer.counters(), world.loans.counters());
        committed.transactions += counters.transactions;
        committed.failures += counters.failures;
        committed.runs += counters.runs;
        committed.flushes_failed += counters.flushes_failed;
        lent += loans.blocks_lent;
        refused += loans.refused;
        waits += world.waits;
        assert_eq!((loans.unusable, loans.broken_frees), (0, 0));
    }
    assert!(committed.transactions > 150, "{committed:?}");
    assert!(committed.failures > 20 && committed.flushes_failed > 20, "{committed:?}");
    assert!(committed.runs > committed.transactions, "{committed:?}");
    assert!(lent > 5000 && refused > 20, "{lent} {refused}");
    assert!(starved > 20 && waits > 20 && unwritten > 20, "{starved} {waits} {unwritten}");
}

#[test]
fn a_full_volume_lets_go_of_what_it_has() {
    let mut world = World::new(260);
    for round in 0..200 {
        for _ in 0..4 {
            world.loans.retry();
            world.borrow(60, None);
        }
        world.allocate(1 + round % 50, 8);
        if round % 3 == 0 {
            world.begin();
            world.step(1000);
            world.device(500, 0);
            world.device(500, 0);
            world.send(None, false);
            world.step(1000);
            world.check();
        }
    }
    // Nothing can be taken any more, and who waits is told so.
    assert!(world.loans.blocks.peek(1).is_none() && world.loans.blocks.is_refused());
    assert!(world.loans.is_short());
    while !world.files.is_empty() {
        world.free(1, 0, 20);
        world.begin();
        world.step(1000);
        world.device(500, 0);
        world.device(500, 0);
        world.send(None, false);
        world.step(1000);
        world.loans.retry();
        world.borrow(60, None);
        world.borrow(60, None);
        world.check();
    }
    world.finish();
    assert!(world.loans.blocks.peek(1).is_some() && !world.loans.blocks.is_refused());
}

#[test]
fn splinters_are_exchanged_when_they_leave_no_room() {
    let loans = &mut World::new(1000).loans;
    let answer = |loans: &mut Loans<'_>, lent: &[ExtentRecord]| {
        loans.retry();
        loans.step();
        let request = loans.request().expect("more is wanted");
        let (number, returned) = (request.number, request.returned.iter().count());
        loans.handle_sent();
        loans.handle_loan(&Loan { number, lent: Extents::new(lent).unwrap() });
        returned
    };
    let blocks = |start, count| ExtentRecord::new(Lent { pool: Pool::Runs, start, count });
    let splinters: Vec<_> = (0..17).map(|at| blocks(1000 + 2 * at, 1)).collect();
    assert_eq!(answer(loans, &splinters), 0);
    // They are too few blocks for a transaction, and too many extents to be lent more.
    let few = loans.run_blocks();
    assert!(few == 17 && loans.inos.peek(Ino(1), false).is_none());
    assert!(answer(loans, &[]) > 0 && loans.run_blocks() < few);
    assert!(loans.request().is_none());
    loans.retry();
    loans.step();
    assert!(loans.request().is_some_and(|request| request.run_blocks > 0));
}

/// A transaction can name a few pieces: of short ones it can't have as many as all that may be
/// dirty needs. So less may be, and what is always fits, also when an attempt has failed.
#[test]
fn a_transaction_fits_the_pieces_that_are_lent() {
    for piece in 3..40 {
        let mut world = World::new(1500);
        world.narrows = true;
        let (mut at, mut attempts) = (0, 0);
        for round in 0..40 {
            (0..4).for_each(|_| world.borrow(piece, None));
            let change_all = |world: &mut World, at: &mut u64| {
                let changed = (0..600).take_while(|_| {
                    *at = (*at + 1) % 290;
                    world.change(1000 + *at, Some(vec![round; 300 + (*at % 100) as usize]))
                });
                changed.count()
            };
            let changed = change_all(&mut world, &mut at);
            assert!(changed > 0 && changed < 600, "{piece}: {changed} changed");
            world.begin();
            assert!(!world.committer.is_idle(), "{piece}: there are not enough pieces");
            attempts += 1;
            world.step(1000);
            // Changes go on while it is on its way, as far as there is room for them.
            change_all(&mut world, &mut at);
            (0..4).for_each(|_| world.device(500, 0));
            world.send((round % 3 == 0).then_some(ErrorCode::Busy), false);
            world.step(1000);
            world.begin();
            attempts += u32::from(!world.committer.is_idle());
            world.step(1000);
            (0..4).for_each(|_| world.device(500, 0));
            world.send(None, false);
            world.step(1000);
        }
        assert_eq!(world.loans.counters().vain, 0, "{piece}");
        assert!(attempts > 60, "{piece}: {attempts}");
        world.finish();
    }
}

/// Items of which no few splinters can hold the runs.
const MUCH: Share = Share { items: 300, bytes: 100_000 };

#[test]
fn a_loan_in_vain_is_followed_by_a_pause() {
    let mut world = World::new(1000);
    let answer = |loans: &mut Loans<'_>, lent: &[ExtentRecord]| {
        loans.step();
        let Some(number) = loans.request().map(|request| request.number) else { return false };
        loans.handle_sent();
        loans.handle_loan(&Loan { number, lent: Extents::new(lent).unwrap() });
        true
    };
    let lend = |pool, start, count| ExtentRecord::new(Lent { pool, start, count });
    let few = [lend(Pool::RunIds, 9, 64), lend(Pool::Inodes, 4096, 3072), lend(Pool::Runs, 300, 1)];
    assert!(answer(&mut world.loans, &few));
    let mut patience = Vec::new();
    for pause in 0..6 {
        // What is to be committed doesn't fit blocks that lie in so many pieces.
        assert!(world.loans.reserve(MUCH).is_none());
        let mut requests = 0;
        for turn in 0..40 {
            let at = 1000 + 16 * (40 * pause + turn);
            let splinters: Vec<_> = (0..8).map(|n| lend(Pool::Runs, at + 2 * n, 1)).collect();
            let wants = {
                world.loans.step();
                world.loans.request().is_some_and(|request| request.run_blocks > 0)
            };
            requests += u32::from(answer(&mut world.loans, if wants { &splinters } else { &[] }));
            assert!(world.loans.reserve(MUCH).is_none());
        }
        assert!(requests <= 4, "{requests} requests without a pause");
        assert!(world.loans.is_short());
        patience.push(world.loans.patience());
        world.loans.retry();
    }
    assert!(patience.is_sorted() && patience.last() == Some(&8), "{patience:?}");
    let whole = [lend(Pool::Runs, 12_000, 256)];
    assert!(answer(&mut world.loans, &whole) && world.loans.reserve(MUCH).is_some());
    assert_eq!(world.loans.patience(), 1);
}

#[test]
fn changes_after_the_snapshot_are_not_durable_with_it() {
    let mut world = World::new(1000);
    world.borrow(100, None);
    world.borrow(100, None);
    world.change(1, Some(vec![1; 10]));
    let first = world.committer.seq().unwrap();
    world.begin();
    assert!(!world.change(2, Some(vec![2; 10])), "changes wait for the copy");
    world.step(1000);
    let second = world.committer.seq().unwrap();
    assert!(second > first && world.change(2, Some(vec![2; 10])));
    world.device(100, 0);
    world.device(100, 0);
    world.send(None, false);
    assert!(world.committer.committed() >= first && world.committer.committed() < second);
    world.step(1000);
    world.begin();
    world.step(1000);
    world.device(100, 0);
    world.device(100, 0);
    world.send(None, false);
    assert!(world.committer.committed() >= second);
    world.finish();
}

impl World {
    /// All that is dirty, in one transaction. Returns what the server was told of an inode:
    /// nothing, that it is deleted, or its value.
    fn transact(&mut self, number: u64) -> Option<Option<Vec<u8>>> {
        self.step(1000);
        self.begin();
        self.step(1000);
        self.device(100, 0);
        self.device(100, 0);
        let mut told = Values::new();
        if let Some(transaction) = self.committer.transaction() {
            transaction.runs().for_each(|run| read_run(run, &self.disk, &mut told));
        }
        self.send(None, false);
        self.step(1000);
        let key = KeyBytes::from(Key::inode(Ino(number)));
        told.remove(key.as_bytes())
    }
}

#[test]
fn what_never_left_is_deleted_without_a_trace() {
    let mut world = World::new(1000);
    world.borrow(100, None);
    world.borrow(100, None);
    let some = Some([1; 10].to_vec());
    world.change(1, some.clone());
    assert_eq!(world.transact(1), Some(some.clone()));
    world.change(1, None);
    assert_eq!(world.transact(1), Some(None), "the server has it");
    // The deletion is durable and gone from memory. Who comes after it has never left.
    world.change(1, some);
    world.change(1, None);
    assert_eq!(world.items.usage().dirty_items, 0);
    assert_eq!(world.transact(1), None);
    world.finish();
}

#[test]
fn what_a_failed_attempt_had_is_deleted_with_a_tombstone() {
    let mut world = World::new(1000);
    world.borrow(100, None);
    world.borrow(100, None);
    world.change(1, Some([1; 10].to_vec()));
    world.begin();
    world.step(1000);
    for _ in 0..3 * super::TRIES {
        world.device(100, 1);
        world.step(1000);
    }
    assert_eq!(world.committer.counters().failures, 1);
    // Nobody knows what became of the copy.
    world.change(1, None);
    assert_eq!(world.transact(1), Some(None));
    world.finish();
}

#[test]
fn what_is_deleted_while_its_copy_is_under_way_does_not_come_back() {
    let mut world = World::new(1000);
    world.borrow(100, None);
    world.borrow(100, None);
    world.change(1, Some([1; 10].to_vec()));
    world.begin();
    world.step(1000);
    // Copied, and not answered. It goes, comes, and goes.
    world.change(1, None);
    world.change(1, Some([2; 10].to_vec()));
    world.change(1, None);
    world.device(100, 0);
    world.device(100, 0);
    world.send(None, false);
    assert_eq!(world.server.items.len(), 1);
    assert_eq!(world.transact(1), Some(None));
    assert!(world.server.items.is_empty());
    world.finish();
}

#[test]
fn limits_say_what_does_not_fit_a_transaction() {
    let fits = |dirty_items, dirty_chunks| {
        let commit = CommitLimits { dirty_items, dirty_chunks };
        let limits = LoanLimits { commit, ..LIMITS };
        assert_eq!(limits.validate().is_ok(), commit.run_blocks().is_some());
        commit.run_blocks()
    };
    assert_eq!(fits(0, 0), None);
    assert_eq!(fits(1, 9), Some(3));
    assert!(fits(20_000, 80_000).is_some_and(|blocks| blocks < 8 * 256));
    assert_eq!(fits(20_000, 120_000), None);
    let groups = LoanLimits { ino_groups: 65, ..LIMITS };
    assert!(groups.validate().is_err());
}
