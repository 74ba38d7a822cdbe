//! What the server does for a request: functions that can be run again from the top.
//!
//! # Invariants
//!
//! * Each plans all it changes, reserves, and applies: one plan for each [`Progress`].
//! * A transaction is one plan. A loan, a farewell and the reading of the clients take several,
//!   each of which leaves the trees in a state that is right by itself: a loan's record then holds
//!   a whole answer that lends less, a leaving client's record goes last.
//! * A numbered request is carried out if its number follows the one in the client's record, and
//!   the same plan stores that number and the answer. The stored number is answered again; any
//!   other is refused. One that is refused has changed nothing, and not used its number.
//! * What a request says is checked against what the trees say, never the other way round.
//!
//! What this module deliberately doesn't know: sessions, and when a commit is durable.

use super::evict;
use crate::block::{Cache, Pins};
use crate::error::{Corruption, Error, Stop};
use crate::format::layout::FIRST_BLKNO;
use crate::format::quorum::{BootId, HostId};
use crate::format::records::{
    ClientKey, ClientPart, ClientRecord, ClientState, FreedKey, LIST_MAX, LoanKey, ManifestKey,
    OpenSeq, OpenSeqKey, OwnerKind, Pool, QuarantineKey, list,
};
use crate::format::root::Extent;
use crate::format::run::SEGMENT_BLOCKS;
use crate::format::wire::greeting::Machine;
use crate::format::wire::message::{
    Emitter, Extent as Lent, ExtentRecord, Extents, FREED_MAX, LOAN_EXTENTS_MAX, Loan, LoanRequest,
    ManifestRoot, Payload, RUNS_MAX, ServerAnswer, Transaction, TransactionDone,
};
use crate::format::wire::{ErrorCode, Kind};
use crate::format::{BlockNo, ClientId, CommitNo, Ino, RunId, Seq};
use crate::lock::GROUP_KEYS;
use crate::mutant::{Mutant, is_active};
use crate::txn::loans::{EXTENTS_HIGH, Loans, NotSo};
use crate::txn::settle::{data_floor, lend_floor, run_zone};
use crate::txn::store::Store;
use crate::txn::takeover::Gone;
use crate::txn::trees::Trees;
use heapless::Vec;
use zerocopy::{FromBytes, IntoBytes};

/// What can be lent, in the order of the sets in [`Scratch`].
const POOLS: [Pool; 4] = [Pool::Data, Pool::Runs, Pool::Inodes, Pool::RunIds];
/// Extents of one pool that a loan request takes out of the free trees at the most.
const TAKES_MAX: u32 = 16;
/// Lists that the extents freed by a transaction make.
const FREED_LISTS: usize = FREED_MAX.div_ceil(LIST_MAX);
/// Shorter extents are of no use for runs: a transaction names few.
const RUN_PIECE_MIN: u64 = 16;

/// What a function has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// A part is done; the rest is for another run.
    More,
    /// All is done. The answer waits for the commit.
    Done,
    /// It was done before, and that is durable.
    Known,
    /// Whoever it belongs to makes it go on.
    Waits,
}

/// Why it didn't.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Halt {
    /// It waits, or the volume failed it.
    Stop(Stop),
    /// The request can't be carried out. It has changed nothing.
    Refuse(ErrorCode),
}

impl From<Stop> for Halt {
    fn from(stop: Stop) -> Halt {
        Halt::Stop(stop)
    }
}

impl From<Error> for Halt {
    fn from(error: Error) -> Halt {
        Halt::Stop(error.into())
    }
}

impl From<NotSo> for Halt {
    fn from(not: NotSo) -> Halt {
        Halt::Refuse(match not {
            NotSo::NotLent | NotSo::Lent => ErrorCode::Invalid,
            NotSo::Full => ErrorCode::TooMany,
        })
    }
}

/// Memory that a run uses and leaves to the next.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// A client's loans, by pool.
    loans: [Loans; 4],
    freed: Vec<Extent, FREED_MAX>,
    answer: Vec<u8, { crate::format::btree::VALUE_BYTES_MAX }>,
}

/// How far a loan request is.
#[derive(Debug, Default)]
pub(super) struct LoanState {
    /// What the client gets.
    pub(super) lent: Vec<ExtentRecord, LOAN_EXTENTS_MAX>,
    /// The number is recorded: from here on it ends with what it has.
    recorded: bool,
    /// Blocks still to be lent, of data and of runs.
    left: Option<[u64; 2]>,
    takes: u32,
    /// The last commit that it changed something in.
    pub(super) commit: CommitNo,
}

/// What runs work on.
pub(super) struct Context<'a, 'm> {
    /// The trees.
    pub(super) store: &'a mut Store<'m>,
    /// The request's blocks.
    pub(super) pins: &'a mut Pins<'m>,
    /// Memory.
    pub(super) scratch: &'a mut Scratch,
    /// Blocks of the volume.
    pub(super) volume_blocks: u64,
}

impl Context<'_, '_> {
    /// The number of the commit that the request would join. While there is none, nothing it plans
    /// is reserved either.
    pub(super) fn commit(&self) -> CommitNo {
        self.store.open_commit().unwrap_or(CommitNo(u64::MAX))
    }
}

pub(super) fn corrupt(trees: &Trees, what: Corruption) -> Error {
    Error::Corrupt { blkno: trees.clients.root().node.blkno(), what }
}

/// The record of a client that is mounted.
fn record(
    client: ClientId,
    trees: &Trees,
    cache: &mut Cache<'_>,
    pins: &mut Pins<'_>,
) -> Result<ClientRecord, Halt> {
    let record = any_record(client, trees, cache, pins)?;
    match record.state == ClientState::Mounted as u8 {
        true => Ok(record),
        false => Err(Halt::Refuse(ErrorCode::Evicted)),
    }
}

/// The record of a client.
pub(super) fn any_record(
    client: ClientId,
    trees: &Trees,
    cache: &mut Cache<'_>,
    pins: &mut Pins<'_>,
) -> Result<ClientRecord, Halt> {
    let key = ClientKey::new(client, ClientPart::Client);
    let value = trees.clients.lookup(key.as_bytes(), cache, pins)?;
    let value = value.ok_or(Halt::Refuse(ErrorCode::Evicted))?;
    let record = ClientRecord::read_from_bytes(value);
    record.map_err(|_| corrupt(trees, Corruption::Bounds).into())
}

/// Whether the request of this number is to be carried out, or was.
fn is_next(number: u64, stored: u64) -> Result<bool, Halt> {
    match number.checked_sub(stored) {
        Some(0) => Ok(is_active(Mutant::NumberedTwice)),
        Some(1) => Ok(true),
        _ => Err(Halt::Refuse(ErrorCode::Invalid)),
    }
}

/// Records a new client, and opens its first transaction.
pub(super) fn greet(
    cx: &mut Context<'_, '_>,
    nonce: [u8; 16],
    machine: Machine,
) -> Result<(ClientId, Seq), Halt> {
    let trees = &mut cx.store.trees;
    let (cache, pins) = (&mut cx.store.cache, &mut *cx.pins);
    let (client, seq) = (trees.next_client, trees.next_seq);
    let mut record = ClientRecord::read_from_bytes(&[0; 128]).expect("as many bytes");
    (record.nonce, record.state) = (nonce, ClientState::Mounted as u8);
    (record.host_id, record.boot_id) = (machine.host.0, machine.boot.0);
    let key = ClientKey::new(client, ClientPart::Client);
    let open = OpenSeqKey { seq: seq.0.into(), client: client.0.into() };
    let floor = OpenSeq { floor: seq.0.into() };
    let mut plan = cache.plan();
    trees.clients.plan_insert(key.as_bytes(), size_of_val(&record), &mut plan, cache, pins)?;
    trees.open_seqs.plan_insert(open.as_bytes(), size_of_val(&floor), &mut plan, cache, pins)?;
    let mut update = cache.reserve(&plan, pins)?;
    trees.clients.put(key.as_bytes(), record.as_bytes(), &mut update, cache);
    trees.open_seqs.put(open.as_bytes(), floor.as_bytes(), &mut update, cache);
    (trees.next_client, trees.next_seq) = (client.next(), seq.next());
    Ok((client, seq))
}

/// Carries out the next part of a loan request.
pub(super) fn loan(
    cx: &mut Context<'_, '_>,
    client: ClientId,
    request: &LoanRequest<'_>,
    state: &mut LoanState,
) -> Result<Progress, Halt> {
    let (trees, cache) = (&cx.store.trees, &mut cx.store.cache);
    let stored = record(client, trees, cache, cx.pins)?;
    if !state.recorded && !is_next(request.number, stored.loan.get())? {
        let key = ClientKey::new(client, ClientPart::LoanAnswer);
        let value = trees.clients.lookup(key.as_bytes(), cache, cx.pins)?.unwrap_or(&[]);
        let answer = ServerAnswer::parse(Kind::Loan, value);
        let Ok(ServerAnswer::Loan(Loan { lent, .. })) = answer else {
            return Err(corrupt(trees, Corruption::Value).into());
        };
        state.lent.clear();
        state.lent.extend(lent.iter().map(ExtentRecord::new));
        return Ok(Progress::Known);
    }
    let wanted = [request.data_blocks, request.run_blocks].map(u64::from);
    let numbers = request.inodes > 0 || request.run_ids > 0 || !request.returned.is_empty();
    let left = *state.left.get_or_insert(wanted);
    if !state.recorded && (numbers || wanted == [0, 0]) {
        exchange(cx, client, request, stored, state)?;
    } else {
        take(cx, client, request.number, stored, state, left)?;
    }
    let left = state.left.unwrap_or_default();
    let over = left == [0, 0] || state.takes >= 2 * TAKES_MAX || state.lent.is_full();
    Ok(if over { Progress::Done } else { Progress::More })
}

/// Takes back what is returned, and lends numbers.
fn exchange(
    cx: &mut Context<'_, '_>,
    client: ClientId,
    request: &LoanRequest<'_>,
    mut stored: ClientRecord,
    state: &mut LoanState,
) -> Result<(), Halt> {
    let commit = cx.commit();
    let number = cx.store.freed_lists();
    let Scratch { loans, freed, answer } = &mut *cx.scratch;
    let trees = &mut cx.store.trees;
    let (cache, pins) = (&mut cx.store.cache, &mut *cx.pins);
    freed.clear();
    for (loans, pool) in loans.iter_mut().zip(POOLS) {
        loans.read(client, pool, trees, cache, pins)?;
        for extent in request.returned.iter().filter(|extent| extent.pool == pool) {
            let extent = Extent::new(BlockNo(extent.start), extent.count.into());
            if !is_active(Mutant::ReturnedStaysLent) {
                loans.remove(extent)?;
            }
            if matches!(pool, Pool::Data | Pool::Runs) {
                freed.push(extent).expect("fewer can be returned");
            }
        }
    }
    // A list in another order would be taken for damage, and what it names never be free again.
    freed.sort_unstable_by_key(Extent::start);
    let mut lent = state.lent.clone();
    // A lock covers a group of inodes: no two clients are to draw from one.
    let first_ino = match request.inodes {
        0 => trees.next_ino.0,
        _ => trees.next_ino.0.next_multiple_of(GROUP_KEYS),
    };
    for (pool, start, count) in [
        (Pool::Inodes, first_ino, request.inodes),
        (Pool::RunIds, trees.next_run.0, request.run_ids),
    ] {
        if count > 0 {
            loans[pool as usize - 1].add(Extent::new(BlockNo(start), count.into()))?;
            lent.push(ExtentRecord::new(Lent { pool, start, count })).expect("the first");
        }
    }
    stored.loan = request.number.into();
    let keys = freed_keys(freed, commit, number);
    emit_loan(request.number, &lent, answer);
    let mut plan = cache.plan();
    for (loans, pool) in loans.iter().zip(POOLS) {
        loans.plan_write(client, pool, trees, &mut plan, cache, pins)?;
    }
    for (key, list) in keys.iter().zip(freed.chunks(LIST_MAX)) {
        let bytes = size_of_val(list);
        trees.freed.plan_insert(key.as_bytes(), bytes, &mut plan, cache, pins)?;
    }
    let kept = Kept { client, record: &stored, part: ClientPart::LoanAnswer, answer };
    kept.plan(trees, &mut plan, cache, pins)?;
    let mut update = cache.reserve(&plan, pins)?;
    for (loans, pool) in loans.iter().zip(POOLS) {
        loans.write(client, pool, trees, &mut update, cache);
    }
    for (key, list) in keys.iter().zip(freed.chunks(LIST_MAX)) {
        trees.freed.put(key.as_bytes(), list.as_bytes(), &mut update, cache);
    }
    kept.write(trees, &mut update, cache);
    trees.next_ino = Ino(first_ino + u64::from(request.inodes));
    trees.next_run = RunId(trees.next_run.0 + u64::from(request.run_ids));
    for _ in &keys {
        cx.store.next_freed_list();
    }
    (state.lent, state.recorded, state.commit) = (lent, true, commit);
    Ok(())
}

/// Lends one extent of the first pool that blocks are still wanted of.
fn take(
    cx: &mut Context<'_, '_>,
    client: ClientId,
    number: u64,
    mut stored: ClientRecord,
    state: &mut LoanState,
    mut left: [u64; 2],
) -> Result<(), Halt> {
    let at = usize::from(left[0] == 0);
    let pool = POOLS[at];
    let commit = cx.commit();
    let Scratch { loans, answer, .. } = &mut *cx.scratch;
    let trees = &mut cx.store.trees;
    let (cache, pins) = (&mut cx.store.cache, &mut *cx.pins);
    let loans = &mut loans[at];
    loans.read(client, pool, trees, cache, pins)?;
    // A fragmented volume gives what it has; the next pool has its turn after so many.
    let served = state.takes >= TAKES_MAX * (at as u32 + 1);
    let full = loans.extents().len() >= EXTENTS_HIGH;
    let wanted = left[at].min(if at == 0 { u32::MAX.into() } else { SEGMENT_BLOCKS });
    let found = match served || full {
        true => None,
        false => find_to_lend(pool, wanted, trees, cache, pins)?,
    };
    let Some((whole, wanted)) = found else {
        left[at] = 0;
        state.left = Some(left);
        let nothing = left == [0, 0] && !state.recorded;
        return match (nothing, full) {
            (false, _) => Ok(()),
            (true, false) => Err(Halt::Refuse(ErrorCode::NoSpace)),
            (true, true) => Err(Halt::Refuse(ErrorCode::TooMany)),
        };
    };
    let part = match at {
        0 => Extent::new(whole.start(), wanted.min(whole.len())),
        _ => part_at_cursor(whole, wanted, trees),
    };
    loans.add(part)?;
    let mut lent = state.lent.clone();
    let count = u32::try_from(part.len()).expect("at most as many as wanted");
    let fits = lent.push(ExtentRecord::new(Lent { pool, start: part.start().0, count }));
    fits.expect("it ended when the answer was full");
    stored.loan = number.into();
    emit_loan(number, &lent, answer);
    let mut plan = cache.plan();
    let take = trees.free.plan_take(whole, part, &mut plan, cache, pins)?;
    loans.plan_write(client, pool, trees, &mut plan, cache, pins)?;
    let kept = Kept { client, record: &stored, part: ClientPart::LoanAnswer, answer };
    kept.plan(trees, &mut plan, cache, pins)?;
    let mut update = cache.reserve(&plan, pins)?;
    let part = trees.free.take(take, &mut update, cache);
    loans.write(client, pool, trees, &mut update, cache);
    kept.write(trees, &mut update, cache);
    if at == 1 {
        trees.cursor = part.end();
    }
    left[at] -= part.len();
    (state.lent, state.recorded, state.left) = (lent, true, Some(left));
    (state.takes, state.commit) = (state.takes + 1, commit);
    Ok(())
}

/// A free extent to lend of, and how many blocks. For files it is the one that fits best, if that
/// lies before the zone for runs, and else the first of the volume: so that what is kept back for
/// runs and merges, and what is wedged between runs, never goes to files, which would grind it to
/// splinters.
fn find_to_lend(
    pool: Pool,
    wanted: u64,
    trees: &Trees,
    cache: &mut Cache<'_>,
    pins: &mut Pins<'_>,
) -> Result<Option<(Extent, u64)>, Stop> {
    let is_run = pool == Pool::Runs;
    let volume_blocks = trees.free.volume_blocks();
    let floor = if is_run { lend_floor(volume_blocks) } else { data_floor(volume_blocks) };
    let wanted = wanted.min(trees.free.free_blocks().saturating_sub(floor));
    if wanted == 0 {
        return Ok(None);
    }
    if is_run {
        let found = find_from_cursor(wanted, trees, cache, pins)?;
        let found = found.filter(|found| found.len() >= wanted.min(RUN_PIECE_MIN));
        return Ok(found.map(|found| (found, wanted)));
    }
    let zone = run_zone(volume_blocks);
    let mark = pins.mark();
    let best = trees.free.find(wanted, cache, pins)?;
    let before = best.filter(|best| best.start().0 + best.len().min(wanted) <= zone.0);
    let found = match before {
        Some(best) => Some(best),
        None => trees.free.find_at(FIRST_BLKNO, cache, pins)?,
    };
    pins.drop_to(mark);
    Ok(found.map(|found| (found, wanted)))
}

/// A free extent for runs: in their zone what is free from the cursor on, or, where that is too
/// short, the shortest of the volume that will do, or the longest.
pub(super) fn find_from_cursor(
    wanted: u64,
    trees: &Trees,
    cache: &mut Cache<'_>,
    pins: &mut Pins<'_>,
) -> Result<Option<Extent>, Stop> {
    let mark = pins.mark();
    let zone = run_zone(trees.free.volume_blocks());
    for from in [trees.cursor.max(zone), zone] {
        let found = trees.free.find_at(from, cache, pins)?;
        pins.drop_to(mark);
        if let Some(found) = found
            && found.end().0 - found.start().0.max(from.0) >= wanted
        {
            return Ok(Some(found));
        }
    }
    trees.free.find(wanted, cache, pins)
}

/// The part of such an extent that is taken: from the cursor on, or of what lies in the zone, if
/// there is enough.
pub(super) fn part_at_cursor(whole: Extent, wanted: u64, trees: &Trees) -> Extent {
    let zone = run_zone(trees.free.volume_blocks());
    let skips = [trees.cursor.max(zone), zone].map(|from| from.0.checked_sub(whole.start().0));
    let enough = |skip: &u64| *skip < whole.len() && whole.len() - skip >= wanted;
    let skip = skips.into_iter().flatten().find(enough).unwrap_or(0);
    Extent::new(whole.start().plus(skip), wanted.min(whole.len() - skip))
}

/// A client's next transaction, as one that it has sent opens it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opened {
    /// Now, with this floor.
    Now { seq_next: Seq, floor: Seq },
    /// Before, which is durable.
    Before { seq_next: Seq },
}

/// Carries out a transaction.
pub(super) fn transaction(
    cx: &mut Context<'_, '_>,
    client: ClientId,
    request: &Transaction<'_>,
) -> Result<Opened, Halt> {
    let commit = cx.commit();
    let number = cx.store.freed_lists();
    let Scratch { loans, freed, answer } = &mut *cx.scratch;
    let trees = &mut cx.store.trees;
    let (cache, pins) = (&mut cx.store.cache, &mut *cx.pins);
    let mut stored = record(client, trees, cache, pins)?;
    if !is_next(request.number, stored.transaction.get())? {
        let key = ClientKey::new(client, ClientPart::TransactionAnswer);
        let value = trees.clients.lookup(key.as_bytes(), cache, pins)?.unwrap_or(&[]);
        let Ok(ServerAnswer::Transaction(done)) = ServerAnswer::parse(Kind::Transaction, value)
        else {
            return Err(corrupt(trees, Corruption::Value).into());
        };
        return Ok(Opened::Before { seq_next: done.seq_next });
    }
    check_freed(request, cx.volume_blocks, freed)?;
    for (loans, pool) in loans.iter_mut().zip(POOLS) {
        loans.read(client, pool, trees, cache, pins)?;
    }
    use_loans(request, cx.volume_blocks, loans)?;
    let seq_next = trees.next_seq;
    let order = if is_active(Mutant::RunsInClientsOrder) { request.seq } else { seq_next };
    let old = OpenSeqKey { seq: request.seq.0.into(), client: client.0.into() };
    let new = OpenSeqKey { seq: seq_next.0.into(), client: client.0.into() };
    // What the client has changed since it put this together bears a number above this one's. It
    // may be less than the next one's, of which the client has yet to hear.
    let floor = if is_active(Mutant::StableTooEarly) { seq_next } else { request.seq.next() };
    let value = OpenSeq { floor: floor.0.into() };
    let done = TransactionDone {
        number: request.number,
        seq_next,
        // This and the root are told as of the commit that is confirmed when it is answered.
        seq_stable: Seq(0),
        root: ManifestRoot::default(),
        lent: Extents::default(),
    };
    emit(&ServerAnswer::Transaction(done), answer);
    stored.transaction = request.number.into();
    let keys = freed_keys(freed, commit, number);
    let mut plan = cache.plan();
    for (index, run) in request.runs().enumerate() {
        let key = run_key(run.range().expect("checked").0, order, index);
        let bytes = size_of_val(run);
        trees.manifest.plan_insert(key.as_bytes(), bytes, &mut plan, cache, pins)?;
    }
    for (loans, pool) in loans.iter().zip(POOLS) {
        loans.plan_write(client, pool, trees, &mut plan, cache, pins)?;
    }
    for (key, list) in keys.iter().zip(freed.chunks(LIST_MAX)) {
        let bytes = size_of_val(list);
        trees.freed.plan_insert(key.as_bytes(), bytes, &mut plan, cache, pins)?;
    }
    match trees.open_seqs.plan_delete(old.as_bytes(), &mut plan, cache, pins) {
        Err(Stop::Fail(Error::NotFound)) => return Err(Halt::Refuse(ErrorCode::Stale)),
        planned => planned?,
    }
    trees.open_seqs.plan_insert(new.as_bytes(), size_of_val(&value), &mut plan, cache, pins)?;
    let kept = Kept { client, record: &stored, part: ClientPart::TransactionAnswer, answer };
    kept.plan(trees, &mut plan, cache, pins)?;
    let mut update = cache.reserve(&plan, pins)?;
    for (index, run) in request.runs().enumerate() {
        let key = run_key(run.range().expect("checked").0, order, index);
        trees.manifest.put(key.as_bytes(), run.as_bytes(), &mut update, cache);
    }
    for (loans, pool) in loans.iter().zip(POOLS) {
        loans.write(client, pool, trees, &mut update, cache);
    }
    for (key, list) in keys.iter().zip(freed.chunks(LIST_MAX)) {
        trees.freed.put(key.as_bytes(), list.as_bytes(), &mut update, cache);
    }
    trees.open_seqs.delete(old.as_bytes(), &mut update, cache);
    trees.open_seqs.put(new.as_bytes(), value.as_bytes(), &mut update, cache);
    kept.write(trees, &mut update, cache);
    trees.next_seq = seq_next.next();
    trees.level_runs[0] = trees.level_runs[0].saturating_add(request.runs().len() as u64);
    for _ in &keys {
        cx.store.next_freed_list();
    }
    Ok(Opened::Now { seq_next, floor })
}

/// Where a run stands in level 0. The number of the transaction that was opened when it was
/// recorded counts up with each that is.
fn run_key(first: crate::format::key::KeyBytes, opened: Seq, index: usize) -> ManifestKey {
    let order = opened.0 * RUNS_MAX as u64 + index as u64;
    ManifestKey { level: 0, first, order: order.into() }
}

/// Collects what a transaction frees: extents of files, none twice.
fn check_freed(
    request: &Transaction<'_>,
    volume_blocks: u64,
    freed: &mut Vec<Extent, FREED_MAX>,
) -> Result<(), Halt> {
    freed.clear();
    for extent in request.freed.iter() {
        let at = Extent::new(BlockNo(extent.start), extent.count.into());
        if extent.pool != Pool::Data || !at.is_inside(volume_blocks) {
            return Err(Halt::Refuse(ErrorCode::Invalid));
        }
        freed.push(at).expect("bounded by the message");
    }
    freed.sort_unstable_by_key(|extent| extent.start());
    match freed.is_sorted_by(|a, b| a.end() <= b.start()) {
        true => Ok(()),
        false => Err(Halt::Refuse(ErrorCode::Invalid)),
    }
}

/// Takes out of a client's loans what a transaction has used of them.
fn use_loans(
    request: &Transaction<'_>,
    volume_blocks: u64,
    loans: &mut [Loans; 4],
) -> Result<(), Halt> {
    if is_active(Mutant::LoansNotShrunk) {
        return Ok(());
    }
    for run in request.runs() {
        run.check(volume_blocks).map_err(|_| Halt::Refuse(ErrorCode::Invalid))?;
        loans[Pool::Runs as usize - 1].remove(run.extent())?;
        loans[Pool::RunIds as usize - 1].remove(Extent::new(BlockNo(run.run().0), 1))?;
    }
    for extent in request.used.iter() {
        if matches!(extent.pool, Pool::Runs | Pool::RunIds) {
            return Err(Halt::Refuse(ErrorCode::Invalid));
        }
        let at = Extent::new(BlockNo(extent.start), extent.count.into());
        loans[extent.pool as usize - 1].remove(at)?;
    }
    Ok(())
}

/// Takes back the next part of what a leaving client has, whose open transaction is `seq`. Done:
/// its record is gone, and its transaction is not open any more.
pub(super) fn farewell(
    cx: &mut Context<'_, '_>,
    client: ClientId,
    seq: Seq,
) -> Result<Progress, Halt> {
    let commit = cx.commit();
    let number = cx.store.freed_lists();
    let freed = &mut cx.scratch.freed;
    let trees = &mut cx.store.trees;
    let (cache, pins) = (&mut cx.store.cache, &mut *cx.pins);
    let from = LoanKey { client: client.0.into(), pool: 0, part: 0.into() };
    let found = trees.loans.next(from.as_bytes(), cache, pins)?;
    let found = found.and_then(|item| Some((LoanKey::read_from_bytes(item.key).ok()?, item.value)));
    let Some((key, value)) = found.filter(|(key, _)| key.client == from.client) else {
        return match evict::release(cx, client)? {
            true => Ok(Progress::More),
            false => forget(cx, client, seq).map(|()| Progress::Done),
        };
    };
    let blocks = matches!(Pool::parse(key.pool), Ok(Pool::Data | Pool::Runs | Pool::Compaction));
    let copied = list(value).ok().and_then(|list| Vec::from_slice(list).ok());
    *freed = copied.ok_or(corrupt(trees, Corruption::Value))?;
    let to = FreedKey { commit: commit.0.into(), part: number.into() };
    let mut plan = cache.plan();
    trees.loans.plan_delete(key.as_bytes(), &mut plan, cache, pins)?;
    if blocks {
        let bytes = size_of_val(&freed[..]);
        trees.freed.plan_insert(to.as_bytes(), bytes, &mut plan, cache, pins)?;
    }
    let mut update = cache.reserve(&plan, pins)?;
    trees.loans.delete(key.as_bytes(), &mut update, cache);
    if blocks {
        trees.freed.put(to.as_bytes(), freed.as_bytes(), &mut update, cache);
        cx.store.next_freed_list();
    }
    Ok(Progress::More)
}

/// Deletes all that is recorded of a client that has nothing any more. One that was evicted has no
/// open transaction.
fn forget(cx: &mut Context<'_, '_>, client: ClientId, seq: Seq) -> Result<(), Halt> {
    let trees = &mut cx.store.trees;
    let (cache, pins) = (&mut cx.store.cache, &mut *cx.pins);
    let open = OpenSeqKey { seq: seq.0.into(), client: client.0.into() };
    let closed = Some(&open).filter(|_| seq != Seq(0));
    let keys = [ClientPart::Client, ClientPart::TransactionAnswer, ClientPart::LoanAnswer]
        .map(|part| ClientKey::new(client, part));
    let mut there = [false; 3];
    for (key, there) in keys.iter().zip(&mut there) {
        *there = trees.clients.lookup(key.as_bytes(), cache, pins)?.is_some();
    }
    let keys = keys.iter().zip(there).filter(|(_, there)| *there).map(|(key, _)| key);
    let mut plan = cache.plan();
    for key in keys.clone() {
        trees.clients.plan_delete(key.as_bytes(), &mut plan, cache, pins)?;
    }
    if let Some(closed) = closed {
        trees.open_seqs.plan_delete(closed.as_bytes(), &mut plan, cache, pins)?;
    }
    let mut update = cache.reserve(&plan, pins)?;
    for key in keys {
        trees.clients.delete(key.as_bytes(), &mut update, cache);
    }
    if let Some(closed) = closed {
        trees.open_seqs.delete(closed.as_bytes(), &mut update, cache);
    }
    Ok(())
}

/// What has become of a freed extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entered {
    /// It is free.
    Free,
    /// It is forgotten: some of it was free already, or can't be.
    Skipped,
    /// Its list can't be read, and is passed over.
    Unreadable,
    /// Its list is kept for a reader, and is passed over.
    Kept,
    /// There is none.
    Nothing,
}

/// Moves one freed extent into the free trees: the last of the first list from `from` on, which is
/// where the next is looked for.
///
/// What is freed is what clients say. An extent that is free already was freed twice, by a client
/// that lies or by one that is broken, and nobody can tell whose it is now. It is dropped from its
/// list: at worst some blocks belong to nobody until `check` tells of them, and everything behind
/// it gets on. A list that can't be read stays where it is.
pub(super) fn enter_freed(cx: &mut Context<'_, '_>, from: &mut FreedKey) -> Result<Entered, Halt> {
    let trees = &mut cx.store.trees;
    let (cache, pins) = (&mut cx.store.cache, &mut *cx.pins);
    let Some(item) = trees.freed.next(from.as_bytes(), cache, pins)? else {
        return Ok(Entered::Nothing);
    };
    let node = trees.freed.root().node.blkno();
    let unaligned = Error::Corrupt { blkno: node, what: Corruption::Bounds };
    let key = FreedKey::read_from_bytes(item.key).map_err(|_| unaligned)?;
    *from = key;
    let behind = FreedKey { part: key.part.get().saturating_add(1).into(), ..key };
    if cx.store.kept.has(&key) {
        *from = behind;
        return Ok(Entered::Kept);
    }
    let Ok(extents) = list(item.value) else {
        *from = behind;
        return Ok(Entered::Unreadable);
    };
    let extents: Vec<Extent, LIST_MAX> = Vec::from_slice(extents).expect("a list is bounded");
    let (last, rest) = extents.split_last().expect("a list is not empty");
    let mut plan = cache.plan();
    let give = match trees.free.plan_give(*last, &mut plan, cache, pins) {
        Err(Stop::Fail(Error::Exists)) => {
            plan = cache.plan();
            None
        }
        planned => Some(planned?),
    };
    match rest.is_empty() {
        true => trees.freed.plan_delete(key.as_bytes(), &mut plan, cache, pins)?,
        false => {
            let bytes = size_of_val(rest);
            trees.freed.plan_replace(key.as_bytes(), bytes, &mut plan, cache, pins)?;
        }
    }
    let mut update = cache.reserve(&plan, pins)?;
    if let Some(give) = give {
        trees.free.give(give, &mut update, cache);
    }
    match rest.is_empty() {
        true => trees.freed.delete(key.as_bytes(), &mut update, cache),
        false => trees.freed.put(key.as_bytes(), rest.as_bytes(), &mut update, cache),
    }
    Ok(if give.is_some() { Entered::Free } else { Entered::Skipped })
}

/// Frees the next list, from `from` on, of what leaders of earlier rounds might have written who
/// are proven gone.
pub(super) fn release(
    cx: &mut Context<'_, '_>,
    gone: &Gone,
    from: &mut QuarantineKey,
) -> Result<Progress, Halt> {
    let freed = FreedKey { commit: cx.commit().0.into(), part: cx.store.freed_lists().into() };
    let own = cx.store.term().round();
    let trees = &mut cx.store.trees;
    let (cache, pins) = (&mut cx.store.cache, &mut *cx.pins);
    let Some(item) = trees.quarantine.next(from.as_bytes(), cache, pins)? else {
        return Ok(Progress::Known);
    };
    let key = QuarantineKey::read_from_bytes(item.key);
    let key = key.map_err(|_| corrupt(trees, Corruption::Bounds))?;
    if key.kind != OwnerKind::Round as u8 {
        return Ok(Progress::Known);
    }
    let extents = list(item.value).ok().filter(|_| {
        let round = key.owner.get();
        round < own && (gone.has(round) || is_active(Mutant::QuarantineEndsByTime))
    });
    let Some(extents) = extents else {
        *from = match key.part.get().checked_add(1) {
            Some(part) => QuarantineKey { part: part.into(), ..key },
            None => QuarantineKey {
                owner: key.owner.get().saturating_add(1).into(),
                part: 0.into(),
                ..key
            },
        };
        return Ok(Progress::More);
    };
    let extents: Vec<Extent, LIST_MAX> = Vec::from_slice(extents).expect("a list is bounded");
    let mut plan = cache.plan();
    trees.quarantine.plan_delete(key.as_bytes(), &mut plan, cache, pins)?;
    let bytes = size_of_val(&extents[..]);
    trees.freed.plan_insert(freed.as_bytes(), bytes, &mut plan, cache, pins)?;
    let mut update = cache.reserve(&plan, pins)?;
    trees.quarantine.delete(key.as_bytes(), &mut update, cache);
    trees.freed.put(freed.as_bytes(), extents.as_bytes(), &mut update, cache);
    cx.store.next_freed_list();
    Ok(Progress::More)
}

/// A client as its record tells it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recorded {
    /// Who it is.
    pub(super) client: ClientId,
    /// What it drew before its first greeting.
    pub(super) nonce: [u8; 16],
    /// Where it runs.
    pub(super) machine: Machine,
    /// It was evicted.
    pub(super) evicted: bool,
    /// It was, and what it may still write in place is not waited for any more.
    pub(super) is_calm: bool,
}

/// The recorded client that follows this one.
pub(super) fn next_client(
    cx: &mut Context<'_, '_>,
    after: ClientId,
) -> Result<Option<Recorded>, Halt> {
    let (trees, cache) = (&cx.store.trees, &mut cx.store.cache);
    let from = ClientKey::new(after.next(), ClientPart::Client);
    let Some(item) = trees.clients.next(from.as_bytes(), cache, cx.pins)? else { return Ok(None) };
    let key = ClientKey::read_from_bytes(item.key);
    let record = ClientRecord::read_from_bytes(item.value);
    let (Ok(key), Ok(record)) = (key, record) else {
        return Err(corrupt(trees, Corruption::Value).into());
    };
    let evicted = record.state == ClientState::Evicted as u8;
    let is_calm = evicted && record.flags & ClientRecord::CALM != 0;
    let client = ClientId(key.client.get());
    let machine = Machine { host: HostId(record.host_id), boot: BootId(record.boot_id) };
    Ok(Some(Recorded { client, nonce: record.nonce, machine, evicted, is_calm }))
}

/// An open transaction as the tree tells it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open {
    /// Its number.
    pub(super) seq: Seq,
    /// Whose it is.
    pub(super) client: ClientId,
    /// What that client has changed, and is not durable, bears this number or a later one.
    pub(super) floor: Seq,
}

/// The open transaction that follows this one.
pub(super) fn next_open(cx: &mut Context<'_, '_>, after: Seq) -> Result<Option<Open>, Halt> {
    let (trees, cache) = (&cx.store.trees, &mut cx.store.cache);
    let from = OpenSeqKey { seq: after.next().0.into(), client: 0.into() };
    let Some(item) = trees.open_seqs.next(from.as_bytes(), cache, cx.pins)? else {
        return Ok(None);
    };
    let key = OpenSeqKey::read_from_bytes(item.key);
    let value = OpenSeq::read_from_bytes(item.value);
    let (Ok(key), Ok(value)) = (key, value) else {
        return Err(corrupt(trees, Corruption::Bounds).into());
    };
    let (seq, floor) = (Seq(key.seq.get()), Seq(value.floor.get()));
    Ok(Some(Open { seq, client: ClientId(key.client.get()), floor }))
}

/// A client's record, and the answer that goes with it.
struct Kept<'a> {
    client: ClientId,
    record: &'a ClientRecord,
    part: ClientPart,
    answer: &'a [u8],
}

impl Kept<'_> {
    fn keys(&self) -> [ClientKey; 2] {
        [ClientPart::Client, self.part].map(|part| ClientKey::new(self.client, part))
    }

    fn plan(
        &self,
        trees: &Trees,
        plan: &mut crate::block::Plan,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(), Stop> {
        let [record, answer] = self.keys();
        let bytes = size_of::<ClientRecord>();
        trees.clients.plan_replace(record.as_bytes(), bytes, plan, cache, pins)?;
        trees.clients.plan_put(answer.as_bytes(), self.answer.len(), plan, cache, pins)
    }

    fn write(
        &self,
        trees: &mut Trees,
        update: &mut crate::block::Reservation,
        cache: &mut Cache<'_>,
    ) {
        let [record, answer] = self.keys();
        trees.clients.put(record.as_bytes(), self.record.as_bytes(), update, cache);
        trees.clients.put(answer.as_bytes(), self.answer, update, cache);
    }
}

fn freed_keys(freed: &[Extent], commit: CommitNo, number: u32) -> Vec<FreedKey, FREED_LISTS> {
    let count = freed.len().div_ceil(LIST_MAX) as u32;
    let key = |part: u32| FreedKey { commit: commit.0.into(), part: part.into() };
    (number..number + count).map(key).collect()
}

fn emit_loan(number: u64, lent: &[ExtentRecord], to: &mut Vec<u8, 896>) {
    let lent = Extents::new(lent).expect("of our own making");
    emit(&ServerAnswer::Loan(Loan { number, lent }), to);
}

fn emit(answer: &ServerAnswer<'_>, to: &mut Vec<u8, 896>) {
    to.resize_default(to.capacity()).expect("its capacity");
    let mut emitter = Emitter::new(to);
    answer.emit(&mut emitter);
    let used = emitter.used();
    to.truncate(used);
}
