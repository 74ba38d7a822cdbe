//! Leaders that come and go on one disk: each commits changes, is stopped anywhere, goes on when
//! its successor is already at work, crashes, or loses power. After each of these what the disk
//! holds is what a confirmed commit, or a later one, had made.

extern crate std;

mod readers;

use super::settle::{FREE_MIN, RESERVE_MIN};
use super::store::{Store, StoreEvent, TakeoverError};
use super::takeover::Gone;
use super::trees::Trees;
use crate::arena::Arena;
use crate::arena::tests::region;
use crate::block::{Cache, Chaos, Limits, Pins, RequestId};
use crate::error::{Error, Stop, Wait};
use crate::format::btree::{Node, TreeRoot};
use crate::format::layout::{FIRST_BLKNO, ROOT_BLKNO, spare_blkno};
use crate::format::records::{FreedKey, LoanKey, Pool, QuarantineKey, extent, list};
use crate::format::root::{Extent, Root, RootBlock};
use crate::format::super_block::tests::identity;
use crate::format::super_block::{Identity, Super};
use crate::format::{Block, BlockNo, CommitNo, Term};
use crate::mutant::{Mutant, activate};
use crate::node::More;
use outrider_hal::{BlockOp, BlockRequest, Completion};
use std::collections::{BTreeMap, BTreeSet};
use std::vec;
use std::vec::Vec;
use zerocopy::{FromBytes, IntoBytes};

const BLOCKS: u64 = 1 << 14;
const LIMITS: Limits =
    Limits { frames: 352, dirty: 256, pins: 96, creates: 40, requests: 2, fresh: 64, freed: 256 };
const JOB: RequestId = RequestId { index: 0, generation: 0 };
const REQUEST: RequestId = RequestId { index: 1, generation: 0 };

/// What the leaders have recorded: extents lent, by a number.
type Model = BTreeMap<u16, Vec<Extent>>;

struct Rng(u64);

impl Rng {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// A device with a volatile cache.
#[derive(Default)]
struct Disk {
    blocks: BTreeMap<u64, Block>,
    /// What stood where something was written since the last flush, oldest first.
    unflushed: Vec<(u64, Option<Block>)>,
    /// Blocks that a confirmed commit has lent: a client may have data there.
    lent: BTreeSet<u64>,
    /// Blocks that a reader of an older root relies on.
    read: BTreeSet<u64>,
}

impl Disk {
    fn transfer(&mut self, op: &mut BlockOp<'static>) {
        match op {
            BlockOp::Read(blkno, block) => {
                block.0 = self.blocks.get(&blkno.0).map_or([0; 4096], |block| block.0);
            }
            BlockOp::Write(blkno, block) => {
                assert!(!self.lent.contains(&blkno.0), "{blkno} is written though it is lent");
                assert!(!self.read.contains(&blkno.0), "{blkno} is written though it is read");
                let old = self.blocks.insert(blkno.0, (**block).clone());
                self.unflushed.push((blkno.0, old));
            }
            BlockOp::Flush => self.unflushed.clear(),
        }
    }

    /// Power fails: of what was not flushed, anything may be lost or half there.
    fn lose_power(&mut self, rng: &mut Rng) {
        for (blkno, old) in std::mem::take(&mut self.unflushed).into_iter().rev() {
            let old = old.unwrap_or(Block::ZERO);
            match rng.below(3) {
                0 => {}
                1 => drop(self.blocks.insert(blkno, old)),
                _ => {
                    let sectors = rng.below(8) as usize * 512;
                    let torn = self.blocks.get_mut(&blkno).unwrap();
                    torn.0[sectors..].copy_from_slice(&old.0[sectors..]);
                }
            }
        }
    }
}

struct Leader {
    store: Store<'static>,
    pins: Pins<'static>,
    queue: Vec<BlockRequest<'static>>,
    term: Term,
    /// As the open commit has it.
    model: Model,
    /// What it is told of earlier leaders, once it has loaded.
    asks_gone: bool,
    woken: bool,
}

fn volume() -> Super {
    Super::new(&Identity { blocks: BLOCKS, ..identity() }).unwrap()
}

impl Leader {
    fn new(term: Term, chaos: Option<Chaos>) -> Leader {
        let make = |arena: &mut Arena<'static>| {
            let store = Store::carve(arena, &LIMITS, &volume(), JOB).unwrap();
            (store, Pins::carve(arena, &LIMITS).unwrap())
        };
        let mut measure = Arena::measuring();
        drop(make(&mut measure));
        let mut arena = Arena::new(region(measure.bytes_used())).unwrap();
        let (mut store, mut pins) = make(&mut arena);
        store.cache.inject(chaos);
        pins.begin(REQUEST);
        Leader {
            store,
            pins,
            queue: Vec::new(),
            term,
            model: Model::new(),
            asks_gone: false,
            woken: false,
        }
    }

    /// Submits what the store wants, and lets the disk do one request of those in flight.
    fn turn(&mut self, disk: &mut Disk, rng: &mut Rng) {
        while let Some(request) = self.store.poll_request() {
            self.queue.push(request);
        }
        if !self.queue.is_empty() {
            let at = rng.below(self.queue.len() as u64) as usize;
            let mut request = self.queue.swap_remove(at);
            disk.transfer(&mut request.op);
            let BlockRequest { tag, op } = request;
            self.store.handle_completion(Completion { tag, op, result: Ok(()) });
        }
        loop {
            while self.store.poll_wake().is_some() {
                self.woken = true;
            }
            if self.store.step() == More::No {
                break;
            }
        }
    }

    /// Runs a request to its end.
    fn run<T>(
        &mut self,
        disk: &mut Disk,
        rng: &mut Rng,
        mut request: impl FnMut(&mut Trees, &mut Cache<'_>, &mut Pins<'_>) -> Result<T, Stop>,
    ) -> Result<T, Error> {
        for _ in 0..100_000 {
            if self.store.open_commit().is_none() {
                return Err(Error::NotFound);
            }
            let (trees, cache) = (&mut self.store.trees, &mut self.store.cache);
            match request(trees, cache, &mut self.pins) {
                Ok(done) => {
                    self.store.cache.release(&mut self.pins);
                    self.pins.begin(REQUEST);
                    return Ok(done);
                }
                Err(Stop::Fail(error)) => {
                    self.store.cache.release(&mut self.pins);
                    self.pins.begin(REQUEST);
                    return Err(error);
                }
                Err(Stop::Wait(Wait::Commit)) => {
                    // The commit is full: the rig ends it, and the request is given up.
                    self.store.cache.release(&mut self.pins);
                    self.pins.begin(REQUEST);
                    self.store.commit();
                    return Err(Error::NoSpace);
                }
                Err(Stop::Wait(Wait::Again)) => {}
                Err(Stop::Wait(Wait::Block(_) | Wait::Frame)) => {
                    while !std::mem::take(&mut self.woken) {
                        self.turn(disk, rng);
                    }
                }
            }
        }
        panic!("a request that gets nowhere");
    }

    /// Lends an extent: out of the free trees, into the tree of loans.
    fn lend(&mut self, number: u16, blocks: u64, disk: &mut Disk, rng: &mut Rng) {
        let lent = self.run(disk, rng, |trees, cache, pins| {
            if trees.free.free_blocks() < blocks + FREE_MIN {
                return Err(Error::NoSpace.into());
            }
            let Some(whole) = trees.free.find(blocks, cache, pins)? else {
                return Err(Error::NoSpace.into());
            };
            let offset = blocks % 3 * whole.len().saturating_sub(blocks) / 3;
            let start = whole.start().plus(offset);
            let part = Extent::new(start, blocks.min(whole.end().0 - start.0));
            let mut plan = cache.plan();
            let take = trees.free.plan_take(whole, part, &mut plan, cache, pins)?;
            let key = loan_key(number);
            trees.loans.plan_insert(key.as_bytes(), 16, &mut plan, cache, pins)?;
            let mut update = cache.reserve(&plan, pins)?;
            let part = trees.free.take(take, &mut update, cache);
            trees.loans.put(key.as_bytes(), [part].as_bytes(), &mut update, cache);
            Ok(part)
        });
        if let Ok(extent) = lent {
            self.model.insert(number, vec![extent]);
        }
    }

    /// Takes a loan back: out of its tree, onto a list of freed extents.
    fn reclaim(&mut self, number: u16, disk: &mut Disk, rng: &mut Rng) {
        let extents = self.model[&number].clone();
        let Some(commit) = self.store.open_commit() else { return };
        let part = self.store.next_freed_list();
        let done = self.run(disk, rng, |trees, cache, pins| {
            let key = loan_key(number);
            let freed = FreedKey { commit: commit.0.into(), part: part.into() };
            let mut plan = cache.plan();
            trees.loans.plan_delete(key.as_bytes(), &mut plan, cache, pins)?;
            trees.freed.plan_insert(freed.as_bytes(), 16, &mut plan, cache, pins)?;
            let mut update = cache.reserve(&plan, pins)?;
            trees.loans.delete(key.as_bytes(), &mut update, cache);
            trees.freed.put(freed.as_bytes(), extents.as_bytes(), &mut update, cache);
            Ok(())
        });
        if done.is_ok() {
            self.model.remove(&number);
        }
    }

    /// Moves one freed extent into the free trees.
    fn enter_freed(&mut self, disk: &mut Disk, rng: &mut Rng) {
        let _ = self.run(disk, rng, |trees, cache, pins| {
            let Some(item) = trees.freed.first(cache, pins)? else { return Ok(()) };
            let key = *FreedKey::ref_from_bytes(item.key).unwrap();
            let extents = list(item.value).unwrap().to_vec();
            let (last, rest) = extents.split_last().unwrap();
            let mut plan = cache.plan();
            let give = trees.free.plan_give(*last, &mut plan, cache, pins)?;
            match rest.is_empty() {
                true => trees.freed.plan_delete(key.as_bytes(), &mut plan, cache, pins)?,
                false => {
                    let bytes = size_of_val(rest);
                    trees.freed.plan_replace(key.as_bytes(), bytes, &mut plan, cache, pins)?;
                }
            }
            let mut update = cache.reserve(&plan, pins)?;
            trees.free.give(give, &mut update, cache);
            match rest.is_empty() {
                true => trees.freed.delete(key.as_bytes(), &mut update, cache),
                false => trees.freed.put(key.as_bytes(), rest.as_bytes(), &mut update, cache),
            }
            Ok(())
        });
    }

    /// The leader of this round is proven gone: what it could have written is free.
    fn release_quarantine(&mut self, round: u64, disk: &mut Disk, rng: &mut Rng) {
        let Some(commit) = self.store.open_commit() else { return };
        let part = self.store.next_freed_list();
        let _ = self.run(disk, rng, |trees, cache, pins| {
            let from = QuarantineKey { kind: 1, owner: round.into(), part: 0.into() };
            let Some(item) = trees.quarantine.next(from.as_bytes(), cache, pins)? else {
                return Ok(());
            };
            let key = *QuarantineKey::ref_from_bytes(item.key).unwrap();
            if key.owner.get() != round {
                return Ok(());
            }
            let extents = list(item.value).unwrap().to_vec();
            let freed = FreedKey { commit: commit.0.into(), part: part.into() };
            let mut plan = cache.plan();
            trees.quarantine.plan_delete(key.as_bytes(), &mut plan, cache, pins)?;
            let bytes = size_of_val(&extents[..]);
            trees.freed.plan_insert(freed.as_bytes(), bytes, &mut plan, cache, pins)?;
            let mut update = cache.reserve(&plan, pins)?;
            trees.quarantine.delete(key.as_bytes(), &mut update, cache);
            trees.freed.put(freed.as_bytes(), extents.as_bytes(), &mut update, cache);
            Ok(())
        });
    }
}

fn loan_key(number: u16) -> LoanKey {
    LoanKey { client: 7.into(), pool: Pool::Data as u8, part: number.into() }
}

/// The newest root, as any reader finds it.
fn newest_root(disk: &Disk) -> Root {
    let open = |at: u64| {
        let blkno = ROOT_BLKNO.plus(at);
        Root::open(disk.blocks.get(&blkno.0)?, &volume().volume(), blkno, BLOCKS).ok()
    };
    (0..64).filter_map(open).max_by_key(Root::rank).expect("a volume has a root")
}

/// Is shown each item of a tree.
type Visit<'a> = dyn FnMut(&mut Census, &[u8], &[u8]) + 'a;

/// What a walk over the whole volume finds.
struct Census {
    owners: Vec<Option<&'static str>>,
    loans: Model,
}

impl Census {
    fn add(&mut self, extent: Extent, owner: &'static str) {
        assert!(extent.is_inside(BLOCKS), "{owner}: {extent:?}");
        for blkno in extent.start().0..extent.end().0 {
            if let Some(other) = self.owners[blkno as usize].replace(owner) {
                panic!("block {blkno} belongs to {other} and to {owner}");
            }
        }
    }

    fn tree(&mut self, disk: &Disk, at: &TreeRoot, owner: &'static str, each: &mut Visit<'_>) {
        if at.height == 0 {
            return;
        }
        let blkno = at.node.blkno();
        let block = &disk.blocks.get(&blkno.0).expect("a referenced node was written");
        let promise = crate::format::block::Promise {
            magic: crate::format::block::Magic::Btree,
            blkno,
            seq: Some(at.node.seq()),
        };
        crate::format::block::open(block, &volume().volume(), &promise).expect("a node");
        crate::format::btree::parse(block).expect("a sane node");
        self.add(Extent::new(blkno, 1), owner);
        let node = Node::new(block);
        assert_eq!(node.level() + 1, at.height);
        for index in 0..node.count() {
            if node.level() > 0 {
                let child =
                    TreeRoot { node: node.child(index), height: at.height - 1, reserved: [0; 7] };
                self.tree(disk, &child, owner, each);
            } else {
                let (key, value) = node.item(index);
                each(self, key, value);
            }
        }
    }
}

/// Every block of the volume is in exactly one place; returns the loans.
fn census(disk: &Disk, root: &RootBlock) -> Model {
    let mut census = Census { owners: vec![None; BLOCKS as usize], loans: Model::new() };
    let mut by_length = BTreeSet::new();
    let mut by_block = BTreeSet::new();
    census.tree(disk, &root.free_by_block, "node", &mut |census, key, value| {
        let free = extent(
            crate::format::records::BlockKey::ref_from_bytes(key).unwrap().last,
            crate::format::records::Length::ref_from_bytes(value).unwrap(),
            BLOCKS,
        );
        let free = free.unwrap();
        census.add(free, "free");
        by_block.insert((free.start(), free.len()));
    });
    census.tree(disk, &root.free_by_length, "node", &mut |_, key, _| {
        let key = crate::format::records::LengthKey::ref_from_bytes(key).unwrap();
        let free = key.extent(BLOCKS).unwrap();
        by_length.insert((free.start(), free.len()));
    });
    assert_eq!(by_block, by_length);
    let sum: u64 = by_block.iter().map(|free| free.1).sum();
    assert_eq!(sum, root.free_blocks.get());
    census.tree(disk, &root.loans, "node", &mut |census, key, value| {
        let key = LoanKey::ref_from_bytes(key).unwrap();
        let extents = list(value).unwrap();
        extents.iter().for_each(|extent| census.add(*extent, "loan"));
        census.loans.insert(key.part.get(), extents.to_vec());
    });
    for tree in [&root.freed, &root.quarantine] {
        census.tree(disk, tree, "node", &mut |census, _, value| {
            let extents = list(value).unwrap();
            extents.iter().for_each(|extent| census.add(*extent, "waiting"));
        });
    }
    for start in root.takeover.iter().filter(|start| start.get() != 0) {
        let blocks = crate::format::root::TAKEOVER_BLOCKS;
        census.add(Extent::new(BlockNo(start.get()), blocks), "takeover reserve");
    }
    for extent in root.reserve.iter().filter(|extent| !extent.is_empty()) {
        census.add(*extent, "commit reserve");
    }
    let mut all = FIRST_BLKNO.0 as usize..spare_blkno(BLOCKS).0 as usize;
    let leaked = all.find(|blkno| census.owners[*blkno].is_none());
    assert_eq!(leaked, None, "a block has leaked");
    census.loans
}

#[derive(Debug, Default)]
struct Counts {
    commits: u64,
    confirmed: u64,
    deposed: u64,
    crashes: u64,
    pauses: u64,
    power_failures: u64,
    late_writes: u64,
    takeovers: u64,
    refused: u64,
}

struct World {
    disk: Disk,
    rng: Rng,
    /// Who leads, as far as it knows.
    leader: Option<Leader>,
    /// Leaders that have a successor, and go on.
    paused: Vec<Leader>,
    /// Requests of crashed nodes that may still reach the disk.
    stray: Vec<(u64, BlockRequest<'static>)>,
    /// Highest round claimed.
    claimed: u64,
    /// Which state each commit made: it is known before its root is written.
    states: BTreeMap<(Term, CommitNo), Model>,
    confirmed: (Term, CommitNo),
    counts: Counts,
    mutant: Option<RigMutant>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut world = World {
            disk: Disk::default(),
            rng: Rng(seed),
            leader: None,
            paused: Vec::new(),
            stray: Vec::new(),
            claimed: 0,
            states: BTreeMap::new(),
            confirmed: (Term::NONE, CommitNo(0)),
            counts: Counts::default(),
            mutant: None,
        };
        let mut maker = Leader::new(Term::NONE, None);
        maker.store.format();
        world.states.insert((Term::NONE, CommitNo(1)), Model::new());
        let mut asked = false;
        loop {
            maker.turn(&mut world.disk, &mut world.rng);
            if !asked && maker.store.open_commit() == Some(CommitNo(1)) {
                maker.store.commit();
                asked = true;
            }
            if let Some(event) = maker.store.poll_event() {
                assert_eq!(event, StoreEvent::Durable(CommitNo(1)));
                break;
            }
        }
        world.confirmed = (Term::NONE, CommitNo(1));
        world.check();
        world
    }

    fn check(&self) {
        let root = newest_root(&self.disk);
        assert!(root.rank() >= self.confirmed, "a confirmed commit is lost");
        let loans = census(&self.disk, root.fields());
        assert_eq!(Some(&loans), self.states.get(&root.rank()), "at {:?}", root.rank());
    }

    fn elect(&mut self) {
        self.claimed += 1;
        let term = Term::new(self.claimed, self.rng.below(7) as u8);
        let chaos = self.rng.one_in(2).then(|| Chaos::new(self.rng.0, 6));
        let mut leader = Leader::new(term, chaos);
        // Nobody else can write what the last leader could: it has crashed, and nothing strays.
        leader.store.load();
        leader.asks_gone = !self.rng.one_in(3);
        self.leader = Some(leader);
        self.counts.takeovers += 1;
    }

    fn is_gone(&self, round: u64) -> bool {
        !self.paused.iter().chain(&self.leader).any(|leader| leader.term.round() == round)
            && !self.stray.iter().any(|(owner, _)| *owner == round)
    }

    /// What the quorum area would say: it has room for seven.
    fn gone(&self) -> Gone {
        let leaders = self.paused.iter().chain(&self.leader).map(|leader| leader.term.round());
        let acting: BTreeSet<u64> =
            leaders.chain(self.stray.iter().map(|(owner, _)| *owner)).collect();
        Gone::all_but(acting)
    }

    /// Lets a leader do something. False: it is none any more.
    fn act(&mut self, leader: &mut Leader) -> bool {
        leader.turn(&mut self.disk, &mut self.rng);
        match leader.store.poll_event() {
            Some(StoreEvent::Loaded) => {
                let root = leader.store.root().unwrap();
                leader.model = self.states[&root.rank()].clone();
                let gone = if leader.asks_gone { self.gone() } else { Gone::NOBODY };
                let next = (leader.term, root.commit().next());
                match leader.store.take_over(leader.term, &gone) {
                    Ok(()) => drop(self.states.insert(next, leader.model.clone())),
                    Err(TakeoverError::Round | TakeoverError::Late) => {
                        self.counts.refused += 1;
                        return false;
                    }
                }
            }
            Some(StoreEvent::Durable(commit)) => {
                self.counts.commits += 1;
                let looks = self.mutant != Some(RigMutant::AnswerBeforeLook);
                if looks && self.claimed > leader.term.round() {
                    self.counts.deposed += 1;
                    return false;
                }
                self.counts.confirmed += 1;
                self.confirmed = self.confirmed.max((leader.term, commit));
                leader.store.confirm(commit);
                self.disk.lent.clear();
                for extent in self.states[&(leader.term, commit)].values().flatten() {
                    self.disk.lent.extend(extent.start().0..extent.end().0);
                }
                self.check();
            }
            Some(StoreEvent::Refused(_)) => {
                self.counts.refused += 1;
                return false;
            }
            Some(StoreEvent::Failed(error)) => {
                // Only under a successor may blocks change beneath a leader.
                assert!(
                    self.claimed > leader.term.round(),
                    "{}: {error:?} {:?}",
                    leader.term,
                    leader.store,
                );
                self.counts.deposed += 1;
                return false;
            }
            None => {}
        }
        self.request(leader);
        true
    }

    fn request(&mut self, leader: &mut Leader) {
        let Some(commit) = leader.store.open_commit() else { return };
        let (disk, rng) = (&mut self.disk, &mut self.rng);
        let number = rng.below(400) as u16;
        match rng.below(8) {
            0..=2 if leader.model.contains_key(&number) => leader.reclaim(number, disk, rng),
            0..=2 => {
                let blocks = 1 + rng.below(90);
                leader.lend(number, blocks, disk, rng);
            }
            3 | 6 => leader.enter_freed(disk, rng),
            4 if self.claimed > 1 => {
                let round = 1 + self.rng.below(self.claimed - 1);
                let later = round > leader.term.round();
                let unproven = self.mutant == Some(RigMutant::QuarantineEndsUnproven);
                let proven = unproven || self.is_gone(round);
                if !later && proven && round != leader.term.round() {
                    leader.release_quarantine(round, &mut self.disk, &mut self.rng);
                }
            }
            5 => leader.store.commit(),
            _ => {}
        }
        if leader.store.is_commit_wanted() {
            leader.store.commit();
        }
        if leader.store.open_commit() == Some(commit) {
            self.states.insert((leader.term, commit), leader.model.clone());
        }
    }

    fn step(&mut self) {
        match self.leader.take() {
            None => self.elect(),
            Some(mut leader) => {
                if self.act(&mut leader) {
                    self.leader = Some(leader);
                } else {
                    self.crash(leader);
                }
            }
        }
        if !self.paused.is_empty() && self.rng.one_in(32) {
            let at = self.rng.below(self.paused.len() as u64) as usize;
            let mut leader = self.paused.swap_remove(at);
            if self.act(&mut leader) {
                self.paused.push(leader);
            } else {
                self.crash(leader);
            }
        }
        if !self.stray.is_empty() && self.rng.one_in(200) {
            let at = self.rng.below(self.stray.len() as u64) as usize;
            let (_, mut request) = self.stray.swap_remove(at);
            self.disk.transfer(&mut request.op);
            self.counts.late_writes += 1;
        }
        match self.rng.below(2000) {
            0 | 1 if self.paused.len() < 3 => {
                self.paused.extend(self.leader.take());
                self.counts.pauses += 1;
            }
            2 | 3 => {
                if let Some(leader) = self.leader.take() {
                    self.crash(leader);
                }
                self.check();
            }
            4 => {
                // Who is paused on another host has no power failure; the device has.
                self.leader = None;
                self.paused.clear();
                self.stray.clear();
                self.disk.lose_power(&mut self.rng);
                self.counts.power_failures += 1;
                self.check();
            }
            _ => {}
        }
    }

    /// The node is gone; what it had submitted may still arrive, in any order, or never.
    fn crash(&mut self, leader: Leader) {
        self.counts.crashes += 1;
        let round = leader.term.round();
        for request in leader.queue {
            if matches!(request.op, BlockOp::Write(..)) && self.rng.one_in(2) {
                self.stray.push((round, request));
            }
        }
    }
}

/// Mistakes of whoever uses the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RigMutant {
    /// Commits are confirmed without a look at the claims.
    AnswerBeforeLook,
    /// Quarantined space is used although its owner may still write.
    QuarantineEndsUnproven,
}

fn run(seed: u64, steps: u32, mutant: Option<RigMutant>, total: &mut Counts) {
    let mut world = World::new(seed);
    world.mutant = mutant;
    for _ in 0..steps {
        world.step();
    }
    let counts = &world.counts;
    total.commits += counts.commits;
    total.confirmed += counts.confirmed;
    total.deposed += counts.deposed;
    total.crashes += counts.crashes;
    total.pauses += counts.pauses;
    total.power_failures += counts.power_failures;
    total.late_writes += counts.late_writes;
    total.takeovers += counts.takeovers;
    total.refused += counts.refused;
}

#[test]
fn no_confirmed_commit_is_lost_and_no_block_has_two_owners() {
    let mut total = Counts::default();
    for seed in 0..24 {
        run(seed, 6000, None, &mut total);
    }
    std::println!("{total:?}");
    assert!(total.confirmed > 1000 && total.deposed > 10 && total.power_failures > 10);
    assert!(total.late_writes > 10);
}

/// A leader of this round, which has loaded the newest root.
fn loaded(round: u64, disk: &mut Disk, rng: &mut Rng) -> Leader {
    let mut leader = Leader::new(Term::new(round, 0), None);
    leader.store.load();
    while leader.store.poll_event() != Some(StoreEvent::Loaded) {
        leader.turn(disk, rng);
    }
    leader
}

/// Drives a takeover to the end of its first commit.
fn first_commit(leader: &mut Leader, disk: &mut Disk, rng: &mut Rng) -> CommitNo {
    loop {
        leader.turn(disk, rng);
        match leader.store.poll_event() {
            Some(StoreEvent::Durable(commit)) => return commit,
            Some(event) => panic!("{event:?}"),
            None => {}
        }
    }
}

#[test]
fn any_number_of_rounds_may_come_to_nothing() {
    let mut world = World::new(5);
    let (disk, rng) = (&mut world.disk, &mut world.rng);
    let mut first = loaded(1, disk, rng);
    first.store.take_over(Term::new(1, 0), &Gone::NOBODY).unwrap();
    first_commit(&mut first, disk, rng);
    // Each of these ends before its first commit is durable.
    for round in 2..=60 {
        let mut leader = loaded(round, disk, rng);
        let taken = leader.store.take_over(Term::new(round, 0), &Gone::NOBODY);
        assert_eq!(taken.is_ok(), round <= 32, "round {round}");
        (0..3).for_each(|_| leader.turn(disk, rng));
    }
    // Round 40 had no reserve of its own: it may have written any that was proven to be over. The
    // leader of round 29 would share our pair of the ring, the first one has the root.
    let term = Term::new(61, 0);
    for (acting, expected) in
        [(&[40][..], Err(TakeoverError::Round)), (&[1, 7, 13], Ok(())), (&[], Ok(()))]
    {
        let mut disk = Disk { blocks: disk.blocks.clone(), ..Disk::default() };
        let mut leader = loaded(61, &mut disk, rng);
        let gone = Gone::all_but(acting.iter().copied());
        assert_eq!(leader.store.take_over(term, &gone), expected, "{acting:?}");
        if expected.is_ok() {
            let commit = first_commit(&mut leader, &mut disk, rng);
            let root = newest_root(&disk);
            assert_eq!(root.rank(), (term, commit));
            assert!((62..62 + 31).all(|round| root.takeover(round).is_some()));
            census(&disk, root.fields());
        }
    }
    let mut leader = loaded(61, disk, rng);
    leader.store.take_over(term, &Gone::all_but([29])).unwrap();
    let refused = std::iter::repeat_with(|| {
        leader.turn(disk, rng);
        leader.store.poll_event()
    });
    let refused = refused.take(1000).flatten().next();
    assert_eq!(refused, Some(StoreEvent::Refused(TakeoverError::Round)));
}

fn reserved(leader: &Leader) -> u64 {
    leader.store.root().unwrap().reserve().iter().map(Extent::len).sum()
}

/// Leaders die one after the other, and take the reserves of all with them. When it is known that
/// they are gone, the last one needs no room for a request to get that space.
#[test]
fn what_leaders_leave_behind_who_are_gone_fills_the_reserve() {
    let mut world = World::new(6);
    let (disk, rng) = (&mut world.disk, &mut world.rng);
    let mut round = 0;
    let mut leader = loop {
        round += 1;
        let mut leader = loaded(round, disk, rng);
        leader.store.take_over(Term::new(round, 0), &Gone::NOBODY).unwrap();
        let commit = first_commit(&mut leader, disk, rng);
        leader.store.confirm(commit);
        if reserved(&leader) < RESERVE_MIN {
            break leader;
        }
    };
    assert!(!leader.store.is_commit_wanted(), "nothing is free");
    leader.store.earlier_gone(Gone::NOBODY);
    assert!(!leader.store.is_commit_wanted(), "nothing is known");
    leader.store.earlier_gone(Gone::all_but([round - 1]));
    while reserved(&leader) < RESERVE_MIN {
        assert!(leader.store.is_commit_wanted(), "{} blocks", reserved(&leader));
        leader.store.commit();
        let commit = first_commit(&mut leader, disk, rng);
        leader.store.confirm(commit);
    }
    census(disk, newest_root(disk).fields());
}

/// Goes on until the root of the next commit is to be written: that write, which is kept.
fn root_write(leader: &mut Leader, disk: &mut Disk, rng: &mut Rng) -> (BlockNo, Block) {
    leader.store.commit();
    loop {
        while let Some(request) = leader.store.poll_request() {
            match request.op {
                BlockOp::Write(blkno, block) if blkno < FIRST_BLKNO => {
                    return (blkno, block.clone());
                }
                BlockOp::Read(..) | BlockOp::Write(..) | BlockOp::Flush => {
                    leader.queue.push(request);
                }
            }
        }
        leader.turn(disk, rng);
    }
}

#[test]
fn a_root_that_lands_turns_of_the_ring_later_destroys_nothing() {
    let mut world = World::new(6);
    let (disk, rng) = (&mut world.disk, &mut world.rng);
    let mut first = loaded(1, disk, rng);
    first.store.take_over(Term::new(1, 0), &Gone::NOBODY).unwrap();
    let commit = first_commit(&mut first, disk, rng);
    first.store.confirm(commit);
    let (blkno, late) = root_write(&mut first, disk, rng);
    // It is stopped for as long as all of these need. One of them can't read a voter's block.
    for round in 2..=98 {
        let term = Term::new(round, 0);
        let gone = if round == 65 { Gone::NOBODY } else { Gone::all_but([1]) };
        let mut leader = loaded(round, disk, rng);
        leader.store.take_over(term, &gone).unwrap();
        let mut commits = 0;
        while commits < 2 {
            leader.turn(disk, rng);
            match leader.store.poll_event() {
                Some(StoreEvent::Durable(commit)) => {
                    let mut later = Disk { blocks: disk.blocks.clone(), ..Disk::default() };
                    later.blocks.insert(blkno.0, late.clone());
                    assert_eq!(newest_root(&later).rank(), (term, commit), "a root is lost");
                    leader.store.confirm(commit);
                    (0..40).for_each(|_| leader.enter_freed(disk, rng));
                    leader.store.commit();
                    commits += 1;
                }
                Some(StoreEvent::Refused(TakeoverError::Round)) => break,
                Some(event) => panic!("{round}: {event:?}"),
                None => {}
            }
        }
        assert_eq!(commits == 0, round % 32 == 1, "round {round}");
    }
}

#[test]
fn what_is_found_is_the_shortest_that_will_do_or_the_longest() {
    let mut world = World::new(7);
    let (disk, rng) = (&mut world.disk, &mut world.rng);
    let mut leader = loaded(1, disk, rng);
    leader.store.take_over(Term::new(1, 0), &Gone::NOBODY).unwrap();
    let (mut shorter, mut longer) = (0, 0);
    for number in 0..300 {
        let blocks = 1 + rng.below(300);
        leader.lend(number, blocks, disk, rng);
        leader.turn(disk, rng);
        if let Some(StoreEvent::Durable(commit)) = leader.store.poll_event() {
            leader.store.confirm(commit);
        }
        let wanted = 1 + rng.below(6000);
        let seen = leader.run(disk, rng, |trees, cache, pins| {
            let (mut all, mut from) = (Vec::new(), FIRST_BLKNO);
            while let Some(free) = trees.free.find_at(from, cache, pins)? {
                all.push(free);
                from = free.end();
            }
            Ok((all, trees.free.find(wanted, cache, pins)?))
        });
        let Ok((all, found)) = seen else { continue };
        let lens = || all.iter().map(Extent::len);
        let expected = lens().filter(|len| *len >= wanted).min().or(lens().max());
        assert_eq!(found.map(|found| found.len()), expected, "{wanted} of {all:?}");
        assert!(found.is_none_or(|found| all.contains(&found)));
        let short = found.is_some_and(|found| found.len() < wanted);
        (shorter, longer) = (shorter + u32::from(short), longer + u32::from(!short));
    }
    assert!(shorter > 20 && longer > 20, "{shorter} {longer}");
}

/// The seeds above would notice if the store, or who uses it, made one of these mistakes.
fn caught(name: &str, core: Option<Mutant>, rig: Option<RigMutant>) {
    for seed in 0..60 {
        let outcome = std::panic::catch_unwind(|| {
            activate(core);
            run(seed, 6000, rig, &mut Counts::default());
        });
        activate(None);
        if outcome.is_err() {
            std::println!("{name}: caught by seed {seed}");
            return;
        }
    }
    panic!("{name} was not noticed");
}

#[test]
fn shared_roots_are_noticed() {
    caught("shared roots", Some(Mutant::SharedRoots), None);
}

#[test]
fn a_root_before_its_blocks_is_noticed() {
    caught("root before flush", Some(Mutant::RootBeforeFlush), None);
}

#[test]
fn a_first_commit_outside_its_reserve_is_noticed() {
    caught("takeover outside its reserve", Some(Mutant::TakeoverOutsideReserve), None);
}

#[test]
fn a_reserve_used_without_proof_is_noticed() {
    caught("reserve not quarantined", Some(Mutant::ReserveNotQuarantined), None);
}

#[test]
fn a_commit_without_a_reserve_is_noticed() {
    caught("no commit reserve", Some(Mutant::NoCommitReserve), None);
}

#[test]
fn an_answer_before_the_look_is_noticed() {
    caught("answer before the look", None, Some(RigMutant::AnswerBeforeLook));
}

#[test]
fn a_quarantine_that_ends_unproven_is_noticed() {
    caught("quarantine ends unproven", None, Some(RigMutant::QuarantineEndsUnproven));
}
