//! Voters and their owners over one simulated disk, in virtual time.
//!
//! * A write is seen by others at a random moment between its submission and the end of a flush
//!   submitted after its completion: the hosts' caches are as unhelpful as they may be. A node sees
//!   its own completed writes. A read shows the disk of one moment between submission and
//!   completion.
//! * A crash loses what was not flushed, writes it, or tears it at a sector. A stopped node's
//!   completions, and if so drawn its requests in flight, stand still until it goes on.
//! * Clocks run up to 5 % fast or slow. A *blind* pause is one the node's clock does not show.
//! * The owner of a voter is a register of commits as Z2 and Z6 ask: a ring of 32 pairs of roots, a
//!   leader writes only its own round's, readers take the highest term and commit of all.

extern crate std;

use super::super::*;
use crate::arena::Arena;
use crate::format::block::Volume;
use crate::format::quorum::{Ballot, BootId, HostId, Incarnation, SLOTS, Slot, emit_blank, parse};
use crate::format::{CommitNo, Term};
use core::mem::MaybeUninit;
use outrider_hal::{
    BLOCK_BYTES, Block, BlockNo, BlockOp, BlockRequest, Completion, Endpoint, Instant, IoError,
};
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet};
use std::string::String;
use std::vec::Vec;
use std::{format, vec};

pub(super) const VOLUME: Volume = Volume { fsid: 7, crc_seed: 0x5eed };
pub(super) const BASE: BlockNo = BlockNo(18);
pub(super) const MS: u64 = 1_000_000;
pub(super) const SECOND: u64 = 1000 * MS;
/// Rounds after which a pair of the ring comes round again.
const RING: u64 = 32;
const REGION_BYTES: usize = (SLOTS + 1) * BLOCK_BYTES;

/// xorshift64*, seeded through one multiplication.
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Rng {
        Rng((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { (self.next() >> 16) % end }
    }

    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[repr(align(4096))]
struct Region([MaybeUninit<u8>; REGION_BYTES]);

/// Where the voters of one run live, each start of one in a region of its own.
pub(super) struct Memory(Vec<Region>);

impl Memory {
    pub(super) fn new(starts: usize) -> Memory {
        Memory((0..starts).map(|_| Region([MaybeUninit::uninit(); REGION_BYTES])).collect())
    }
}

/// What happened, so that a run that tested nothing shows.
#[derive(Debug, Default, Clone)]
pub(super) struct Counts {
    pub(super) elections: u64,
    pub(super) answers: u64,
    pub(super) crashes: u64,
    pub(super) restarts: u64,
    pub(super) pauses: u64,
    pub(super) blind_pauses: u64,
    pub(super) late_claims: u64,
    pub(super) late_roots: u64,
    pub(super) torn: u64,
    pub(super) lost_writes: u64,
    pub(super) io_errors: u64,
    pub(super) checks_denied: u64,
    pub(super) resignations: u64,
    pub(super) leases_over: u64,
    pub(super) later_claims: u64,
    pub(super) outranked: u64,
    pub(super) slowest_ms: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Counts) {
        self.elections += other.elections;
        self.answers += other.answers;
        self.crashes += other.crashes;
        self.restarts += other.restarts;
        self.pauses += other.pauses;
        self.blind_pauses += other.blind_pauses;
        self.late_claims += other.late_claims;
        self.late_roots += other.late_roots;
        self.torn += other.torn;
        self.lost_writes += other.lost_writes;
        self.io_errors += other.io_errors;
        self.checks_denied += other.checks_denied;
        self.resignations += other.resignations;
        self.leases_over += other.leases_over;
        self.later_claims += other.later_claims;
        self.outranked += other.outranked;
        self.slowest_ms = self.slowest_ms.max(other.slowest_ms);
    }
}

/// A root: a commit, and the one it was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Root {
    term: Term,
    commit: u64,
    id: usize,
}

enum Op<'m> {
    Voter(BlockRequest<'m>),
    ReadRoots(usize),
    WriteRoot(usize, Root),
    Flush,
}

#[derive(Clone)]
enum Data {
    Claim(usize, Box<Block>),
    Root(usize, Option<Root>),
}

impl Data {
    fn place(&self) -> (bool, usize) {
        match self {
            Data::Claim(at, _) => (false, *at),
            Data::Root(at, _) => (true, *at),
        }
    }
}

struct Cached {
    op: u64,
    data: Data,
    completed: bool,
    submitted: u64,
    /// Elections there had been.
    elections: u64,
    answers: u64,
}

struct InFlight<'m> {
    op: Op<'m>,
    fails: bool,
    /// What a read saw.
    saw: Option<Saw>,
    covers: Vec<u64>,
}

enum Saw {
    Block(Box<Block>),
    Roots(Option<Root>),
}

enum Event {
    Effect(usize, u64, u64),
    Complete(usize, u64, u64),
    Timer(usize, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Reading { left: usize, best: Option<Root> },
    Proof,
    Idle { next: u64 },
    Writing,
    Flushing,
    Checking(CheckToken),
}

/// What becomes of the reads of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    Fail,
    Hang,
}

/// The write after which a node is to be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prey {
    Any,
    Root,
    Own,
}

struct Owner {
    term: Term,
    step: Step,
    tip: Root,
    new: Root,
    /// Requests out.
    out: usize,
    /// No new work; resign once all has ended and was flushed.
    draining: bool,
    flushed: bool,
    declared: bool,
}

pub(super) struct Node<'m> {
    pub(super) voter: Option<Voter<'m>>,
    start: u64,
    paused_until: u64,
    blind: bool,
    stalls_io: bool,
    /// Added to a delay of each request until then.
    slow_until: u64,
    /// Its reads of the voters' blocks end like this until then.
    reads_until: (u64, Reads),
    /// Requests fail until then, one in this many.
    errors_until: u64,
    errors_one_in: u64,
    offset: u64,
    ppm: i64,
    lost: u64,
    timer: u64,
    ops: BTreeMap<u64, InFlight<'m>>,
    cache: Vec<Cached>,
    owner: Option<Owner>,
    pub(super) notices: Vec<(u64, Notice)>,
    pub(super) listening: Option<Term>,
    pub(super) mounts: u32,
    pub(super) host: u8,
    /// How often its host was booted anew.
    pub(super) boots: u8,
    stopping: bool,
    /// Requests its voter has submitted.
    pub(super) requests: u64,
    ambush: Option<(Prey, u64, bool, bool)>,
}

impl Node<'_> {
    pub(super) fn local(&self, t: u64) -> Instant {
        // A clock that does not show the pause stands still in it.
        let t = if self.blind { t.max(self.paused_until) } else { t } - self.lost;
        let drift = i128::from(t) * i128::from(self.ppm) / 1_000_000;
        Instant(self.offset + (i128::from(t) + drift) as u64)
    }

    fn real(&self, at: Instant) -> u64 {
        let local = i128::from(at.0.saturating_sub(self.offset));
        (local * 1_000_000 / i128::from(1_000_000 + self.ppm)) as u64 + 2 + self.lost
    }
}

impl Node<'_> {
    /// No more slow or failing requests.
    pub(super) fn mend(&mut self) {
        self.ambush = None;
        self.slow_until = 0;
        self.reads_until.0 = 0;
        self.errors_until = 0;
    }

    pub(super) fn resumes_at(&self) -> u64 {
        self.paused_until
    }

    /// Whether it was told to stop.
    pub(super) fn is_leaving(&self) -> bool {
        self.stopping
    }
}

pub(super) struct Sim<'m> {
    pub(super) now: u64,
    events_run: u64,
    memory: core::slice::IterMut<'m, Region>,
    seq: u64,
    events: BTreeMap<(u64, u64), Event>,
    pub(super) rng: Rng,
    pub(super) blocks: Vec<Block>,
    roots: Vec<Option<Root>>,
    parents: Vec<usize>,
    pub(super) nodes: Vec<Node<'m>>,
    voters: Slots,
    pub(super) timing: Timing,
    pub(super) counts: Counts,
    /// Whether a node's clock shows all of its pauses: then leases exclude each other.
    pub(super) clocks_are_honest: bool,
    pub(super) commit_every_ms: u64,
    /// How far the lock reaches that keeps one node out of another's slot.
    pub(super) exclusion: Exclusion,
    /// Whether one request in 500 takes long for no reason.
    pub(super) hiccups: bool,
    /// Whether owners say which commits were confirmed, and ask what was lost: nothing is.
    pub(super) confirms: bool,
    elected: BTreeMap<Term, (usize, u64)>,
    /// The roots leaders have started from.
    starts: Vec<(Term, usize)>,
    answered: Vec<(Term, usize)>,
    pub(super) violations: Vec<String>,
}

impl<'m> Sim<'m> {
    pub(super) fn new(memory: &'m mut Memory, voters: usize, seed: u64) -> Sim<'m> {
        let mut blocks = vec![Block::ZERO; SLOTS];
        for slot in Slot::ALL {
            emit_blank(&mut blocks[slot.index()], &VOLUME, BASE, slot);
        }
        let mut rng = Rng::new(seed);
        let nodes = (0..voters)
            .map(|slot| Node {
                voter: None,
                start: 0,
                paused_until: 0,
                blind: false,
                stalls_io: false,
                slow_until: 0,
                reads_until: (0, Reads::Fail),
                errors_until: 0,
                errors_one_in: 1,
                offset: rng.below(1000 * SECOND),
                ppm: rng.below(90_000) as i64 - 45_000,
                lost: 0,
                timer: u64::MAX,
                ops: BTreeMap::new(),
                cache: Vec::new(),
                owner: None,
                notices: Vec::new(),
                listening: None,
                mounts: 1,
                host: slot as u8,
                boots: 0,
                stopping: false,
                requests: 0,
                ambush: None,
            })
            .collect();
        let all = Slot::ALL[..voters].iter().fold(Slots::NONE, |slots, slot| slots.with(*slot));
        Sim {
            now: SECOND,
            events_run: 0,
            memory: memory.0.iter_mut(),
            seq: 0,
            events: BTreeMap::new(),
            rng,
            blocks,
            roots: {
                let mut roots = vec![None; 2 * RING as usize];
                roots[0] = Some(Root { term: Term::NONE, commit: 0, id: 0 });
                roots
            },
            parents: vec![0],
            nodes,
            voters: all,
            timing: Timing::NORMAL,
            counts: Counts::default(),
            clocks_are_honest: true,
            commit_every_ms: 100,
            exclusion: Exclusion::Host,
            hiccups: false,
            confirms: false,
            elected: BTreeMap::new(),
            starts: Vec::new(),
            answered: Vec::new(),
            violations: Vec::new(),
        }
    }

    fn violation(&mut self, what: &str) {
        self.violations.push(format!("at {} ms: {what}", self.now / MS));
    }

    /// Starts the node in its own slot.
    pub(super) fn start(&mut self, node: usize) -> bool {
        self.start_in(node, Slot::ALL[node], Vouched::Nothing)
    }

    /// Starts the node in a slot; `false` when the memory for starts is used up.
    pub(super) fn start_in(&mut self, node: usize, slot: Slot, vouched: Vouched) -> bool {
        let Some(region) = self.memory.next() else { return false };
        let config = Config {
            volume: VOLUME,
            base: BASE,
            slot,
            voters: self.voters,
            config_gen: 1,
            timing: self.timing,
            tag_base: 100,
        };
        let seed = self.rng.next();
        let mut incarnation = [0; 16];
        incarnation[..8].copy_from_slice(&self.rng.next().to_le_bytes());
        let it = &mut self.nodes[node];
        it.start += 1;
        let mut boot = [it.host; 16];
        boot[0] = it.boots;
        let identity = Identity {
            incarnation: Incarnation(incarnation),
            host: HostId([it.host; 16]),
            boot: BootId(boot),
            exclusion: self.exclusion,
            vouched,
            seed,
        };
        let mut arena = Arena::new(&mut region.0).unwrap();
        let blocks = VoterBlocks::carve(&mut arena).unwrap();
        let mut voter = Voter::new(config, identity, blocks).unwrap();
        voter.mounts_reaching(it.mounts);
        it.voter = Some(voter);
        it.listening = None;
        it.stopping = false;
        self.counts.restarts += 1;
        self.drive(node);
        true
    }

    pub(super) fn is_up(&self, node: usize) -> bool {
        self.nodes[node].voter.is_some()
    }

    /// The node is gone at once. What it had not flushed is lost, or written, or torn.
    pub(super) fn crash(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        it.voter = None;
        it.owner = None;
        it.listening = None;
        it.ops.clear();
        if it.blind && it.paused_until > self.now {
            it.lost -= it.paused_until - self.now;
        }
        it.blind = false;
        it.paused_until = 0;
        it.slow_until = 0;
        it.reads_until.0 = 0;
        it.errors_until = 0;
        it.ambush = None;
        it.start += 1;
        self.counts.crashes += 1;
        for cached in std::mem::take(&mut self.nodes[node].cache) {
            match self.rng.below(3) {
                0 => self.counts.lost_writes += 1,
                1 => self.apply(&cached),
                _ => self.tear(&cached),
            }
        }
    }

    /// The same of the whole host.
    pub(super) fn reboot(&mut self, node: usize) {
        self.crash(node);
        self.nodes[node].boots += 1;
    }

    fn tear(&mut self, cached: &Cached) {
        self.counts.torn += 1;
        let torn = match &cached.data {
            Data::Root(at, _) => Data::Root(*at, None),
            Data::Claim(at, new) => {
                let mut block = Box::new(self.blocks[*at].clone());
                for sector in (0..BLOCK_BYTES).step_by(512) {
                    if self.rng.one_in(2) {
                        block.0[sector..sector + 512].copy_from_slice(&new.0[sector..sector + 512]);
                    }
                }
                Data::Claim(*at, block)
            }
        };
        self.apply(&Cached { data: torn, ..*cached });
    }

    /// The node stands still. Its requests in flight do too, if `stalls_io`.
    pub(super) fn pause(&mut self, node: usize, length: u64, blind: bool, stalls_io: bool) {
        let it = &mut self.nodes[node];
        if it.paused_until > self.now {
            return;
        }
        it.paused_until = self.now + length;
        it.blind = blind;
        it.stalls_io = stalls_io;
        self.counts.pauses += 1;
        if blind {
            self.counts.blind_pauses += 1;
            it.lost += length;
        }
    }

    /// The node is stopped right after it submits its next write of this kind.
    pub(super) fn ambush(
        &mut self,
        node: usize,
        prey: Prey,
        length: u64,
        blind: bool,
        stalls_io: bool,
    ) {
        self.nodes[node].ambush = Some((prey, length, blind, stalls_io));
    }

    pub(super) fn slow(&mut self, node: usize, length: u64) {
        self.nodes[node].slow_until = self.now + length;
    }

    /// Only what it reads of the voters' blocks ends like this.
    pub(super) fn spoil_reads(&mut self, node: usize, length: u64, how: Reads) {
        self.nodes[node].reads_until = (self.now + length, how);
    }

    pub(super) fn fail_io(&mut self, node: usize, length: u64, one_in: u64) {
        self.nodes[node].errors_until = self.now + length;
        self.nodes[node].errors_one_in = one_in;
    }

    /// The owner ends its term as soon as what it has in flight has ended.
    pub(super) fn resign(&mut self, node: usize) {
        if let Some(owner) = &mut self.nodes[node].owner {
            owner.draining = true;
        }
        self.drive(node);
    }

    pub(super) fn stop(&mut self, node: usize) {
        self.nodes[node].stopping = true;
        self.drive(node);
    }

    pub(super) fn reach(&mut self, node: usize, mounts: u32) {
        self.nodes[node].mounts = mounts;
        if let Some(voter) = &mut self.nodes[node].voter {
            voter.mounts_reaching(mounts);
        }
    }

    fn acts(&self, node: usize) -> bool {
        self.nodes[node].paused_until <= self.now && self.may_act(node)
    }

    /// The node that runs and may act now, by its own clock.
    pub(super) fn leader(&self) -> Option<usize> {
        (0..self.nodes.len()).find(|node| self.acts(*node))
    }

    pub(super) fn listening(&self) -> Option<usize> {
        let leads = |node: &usize| self.acts(*node) && self.nodes[*node].listening.is_some();
        (0..self.nodes.len()).find(leads)
    }

    pub(super) fn term(&self, node: usize) -> Option<Term> {
        match self.nodes[node].voter.as_ref()?.role() {
            Role::Leading(term) => Some(term),
            _ => None,
        }
    }

    pub(super) fn terms_elected(&self) -> usize {
        self.elected.len()
    }

    pub(super) fn answers_of(&self, term: Term) -> usize {
        self.answered.iter().filter(|(by, _)| *by == term).count()
    }

    /// What the slot's block says on the disk.
    pub(super) fn ballot(&self, slot: usize) -> Option<Ballot> {
        parse(&self.blocks[slot], &VOLUME, BASE, Slot::ALL[slot]).unwrap()
    }

    pub(super) fn has_noticed(&self, node: usize, notice: Notice) -> bool {
        self.nodes[node].notices.iter().any(|(_, seen)| *seen == notice)
    }

    /// Puts a root of this term on the disk, as if a leader had made it that nobody knows of.
    pub(super) fn plant_root(&mut self, term: Term) {
        let id = self.parents.len();
        self.parents.push(0);
        self.roots[2 * (term.round() % RING) as usize] = Some(Root { term, commit: 1, id });
    }

    /// The roots of this term rot.
    pub(super) fn lose_roots(&mut self, term: Term) {
        let pair = (term.round() % RING) as usize;
        self.roots[2 * pair..2 * pair + 2].fill(None);
    }

    /// Runs until somebody listens.
    pub(super) fn run_until_led(&mut self) -> usize {
        let end = self.now + 10 * SECOND;
        assert!(!self.run_while(end, |sim| sim.listening().is_none()), "nobody leads");
        self.listening().unwrap()
    }

    fn may_act(&self, node: usize) -> bool {
        let it = &self.nodes[node];
        it.voter.as_ref().is_some_and(|voter| voter.may_act(it.local(self.now)))
    }

    /// Runs until this time.
    pub(super) fn run_until(&mut self, end: u64) {
        while self.run_event(end) {}
        self.now = end;
    }

    /// Runs until the condition holds; `false` if it did not until this time.
    pub(super) fn run_while(&mut self, end: u64, go_on: impl Fn(&Sim<'m>) -> bool) -> bool {
        while go_on(self) {
            if !self.run_event(end) {
                self.now = end;
                return go_on(self);
            }
        }
        false
    }

    fn run_event(&mut self, end: u64) -> bool {
        let Some(((at, _), event)) = self.events.pop_first() else { return false };
        if at > end {
            self.schedule(at, event);
            return false;
        }
        self.now = self.now.max(at);
        self.events_run += 1;
        assert!(self.events_run < 1_000_000, "something spins");
        match event {
            Event::Timer(node, start) => {
                let it = &self.nodes[node];
                if it.start == start && it.timer == at {
                    if it.paused_until > self.now {
                        self.nodes[node].timer = it.paused_until;
                        self.schedule(self.nodes[node].timer, Event::Timer(node, start));
                    } else {
                        self.nodes[node].timer = u64::MAX;
                        self.drive(node);
                    }
                }
            }
            Event::Effect(node, start, op) => self.on_effect(node, start, op),
            Event::Complete(node, start, op) => self.on_complete(node, start, op),
        }
        true
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.seq += 1;
        self.events.insert((at.max(self.now), self.seq), event);
    }

    fn submit(&mut self, node: usize, op: Op<'m>) {
        self.seq += 1;
        let id = self.seq;
        let it = &mut self.nodes[node];
        it.requests += u64::from(matches!(op, Op::Voter(_)));
        let is_read = matches!(op, Op::Voter(BlockRequest { op: BlockOp::Read(..), .. }));
        let (spoilt, how) = (is_read && it.reads_until.0 > self.now, it.reads_until.1);
        let fails = it.errors_until > self.now && self.rng.one_in(it.errors_one_in)
            || spoilt && how == Reads::Fail;
        let hangs = if spoilt && how == Reads::Hang { it.reads_until.0 - self.now } else { 0 };
        let slow = it.slow_until > self.now;
        let mut delay = self.rng.between(MS / 5, 3 * MS);
        if slow || self.hiccups && self.rng.one_in(500) {
            delay += self.rng.below(1200 * MS);
        }
        let complete = self.now + delay + hangs;
        let mut effect = self.now + self.rng.below(delay);
        let mut covers = Vec::new();
        let write = match &op {
            Op::Voter(BlockRequest { op: BlockOp::Write(at, block), .. }) => {
                Some(Data::Claim((at.0 - BASE.0) as usize, Box::new(Block::clone(block))))
            }
            Op::WriteRoot(at, root) => Some(Data::Root(*at, Some(*root))),
            Op::Voter(BlockRequest { op: BlockOp::Flush, .. }) | Op::Flush => {
                covers = it.cache.iter().filter(|c| c.completed).map(|c| c.op).collect();
                None
            }
            Op::Voter(BlockRequest { op: BlockOp::Read(..), .. }) | Op::ReadRoots(_) => None,
        };
        let is_own = matches!(write, Some(Data::Claim(..)));
        let is_root = matches!(write, Some(Data::Root(..)));
        if let Some(data) = write {
            let dropped = fails && self.rng.one_in(2);
            if !dropped {
                let elections = self.counts.elections;
                let answers = self.counts.answers;
                let submitted = self.now;
                let cached =
                    Cached { op: id, data, completed: false, submitted, elections, answers };
                self.nodes[node].cache.push(cached);
            }
            if self.rng.one_in(4) && !fails {
                effect = complete + self.rng.below(SECOND);
            }
        }
        let flight = InFlight { op, fails, saw: None, covers };
        let start = self.nodes[node].start;
        self.nodes[node].ops.insert(id, flight);
        self.schedule(effect, Event::Effect(node, start, id));
        self.schedule(complete, Event::Complete(node, start, id));
        if let Some((prey, length, blind, stalls_io)) = self.nodes[node].ambush
            && (is_root && prey != Prey::Own || is_own && prey != Prey::Root)
        {
            self.nodes[node].ambush = None;
            self.pause(node, length, blind, stalls_io);
        }
    }

    /// A write reaches the disk, or a read looks at it.
    fn on_effect(&mut self, node: usize, start: u64, op: u64) {
        let it = &self.nodes[node];
        if it.start != start {
            return;
        }
        if it.paused_until > self.now && it.stalls_io {
            let at = it.paused_until + self.rng.below(300 * MS);
            self.schedule(at, Event::Effect(node, start, op));
            return;
        }
        self.land(node, op);
        self.look(node, op);
    }

    fn look(&mut self, node: usize, op: u64) {
        let Some(flight) = self.nodes[node].ops.get(&op) else { return };
        if flight.saw.is_some() {
            return;
        }
        let saw = match &flight.op {
            Op::Voter(BlockRequest { op: BlockOp::Read(at, _), .. }) => {
                let place = (at.0 - BASE.0) as usize;
                let mut block = Box::new(self.blocks[place].clone());
                for cached in &self.nodes[node].cache {
                    if let (Data::Claim(at, data), true) = (&cached.data, cached.completed)
                        && *at == place
                    {
                        block = data.clone();
                    }
                }
                Saw::Block(block)
            }
            Op::ReadRoots(part) => {
                let part = &self.roots[part * 16..part * 16 + 16];
                Saw::Roots(part.iter().flatten().max().copied())
            }
            Op::Voter(_) | Op::WriteRoot(..) | Op::Flush => return,
        };
        self.nodes[node].ops.get_mut(&op).unwrap().saw = Some(saw);
    }

    /// A cached write reaches the disk, after the earlier ones to its place.
    fn land(&mut self, node: usize, op: u64) {
        let cache = &mut self.nodes[node].cache;
        let Some(index) = cache.iter().position(|cached| cached.op == op) else { return };
        let cached = cache.remove(index);
        cache.retain(|other| other.op > op || other.data.place() != cached.data.place());
        self.apply(&cached);
    }

    fn apply(&mut self, cached: &Cached) {
        match &cached.data {
            Data::Claim(at, block) => {
                if self.counts.elections > cached.elections
                    && self.now > cached.submitted + u64::from(self.timing.lease_ms) * MS
                {
                    self.counts.late_claims += 1;
                }
                self.blocks[*at] = Block::clone(block);
            }
            Data::Root(at, root) => {
                if let Some(root) = root
                    && self.counts.answers > cached.answers
                    && self.answered.last().is_some_and(|(term, _)| *term > root.term)
                {
                    self.counts.late_roots += 1;
                }
                self.roots[*at] = *root;
            }
        }
    }

    fn on_complete(&mut self, node: usize, start: u64, op: u64) {
        let it = &self.nodes[node];
        if it.start != start {
            return;
        }
        if it.paused_until > self.now {
            let mut at = it.paused_until + self.rng.below(20 * MS);
            if it.stalls_io {
                at += self.rng.below(300 * MS);
            }
            self.schedule(at, Event::Complete(node, start, op));
            return;
        }
        self.look(node, op);
        let it = &mut self.nodes[node];
        let flight = it.ops.remove(&op).unwrap();
        if !flight.fails {
            for covered in flight.covers {
                self.land(node, covered);
            }
        }
        if let Some(cached) = self.nodes[node].cache.iter_mut().find(|cached| cached.op == op) {
            cached.completed = true;
            if flight.fails {
                // What failed is not heard of later.
                self.land(node, op);
            }
        }
        if flight.fails {
            self.counts.io_errors += 1;
        }
        let result = if flight.fails { Err(IoError::Device) } else { Ok(()) };
        let now = self.nodes[node].local(self.now);
        match flight.op {
            Op::Voter(BlockRequest { tag, mut op }) => {
                if let (BlockOp::Read(_, block), Some(Saw::Block(saw))) = (&mut op, flight.saw) {
                    **block = *saw;
                }
                let voter = self.nodes[node].voter.as_mut().unwrap();
                voter.handle_completion(now, Completion { tag, op, result });
            }
            Op::ReadRoots(_) => {
                let Some(Saw::Roots(best)) = flight.saw else { unreachable!() };
                self.on_owner_io(node, result, best);
            }
            Op::WriteRoot(..) | Op::Flush => self.on_owner_io(node, result, None),
        }
        self.drive(node);
    }

    /// Lets the node do what it can, and notes when it wants to be called again.
    fn drive(&mut self, node: usize) {
        while self.nodes[node].paused_until <= self.now {
            let now = self.nodes[node].local(self.now);
            let Some(voter) = self.nodes[node].voter.as_mut() else { return };
            if let Some(notice) = voter.poll_notice(now) {
                self.on_notice(node, notice);
                continue;
            }
            if self.step_owner(node) {
                continue;
            }
            let voter = self.nodes[node].voter.as_mut().unwrap();
            match voter.poll_request(now) {
                Some(request) => self.submit(node, Op::Voter(request)),
                None => break,
            }
        }
        let it = &mut self.nodes[node];
        let Some(voter) = &it.voter else { return };
        let mut at = voter.poll_timeout().map(|at| it.real(at));
        let owner_at = match &it.owner {
            Some(Owner { step: Step::Idle { next }, draining: false, .. }) => Some(*next),
            Some(Owner { step: Step::Proof, draining: false, .. }) => Some(self.now + 50 * MS),
            _ => None,
        };
        if let Some(owner_at) = owner_at {
            at = Some(at.map_or(owner_at, |at| at.min(owner_at)));
        }
        if let Some(at) = at {
            let at = at.max(self.now + 1);
            if it.timer != at {
                it.timer = at;
                let event = Event::Timer(node, it.start);
                self.schedule(at, event);
            }
        }
    }

    fn on_notice(&mut self, node: usize, notice: Notice) {
        let now = self.now;
        self.nodes[node].notices.push((now, notice));
        match notice {
            Notice::Elected(term) => self.on_elected(node, term),
            Notice::Listening(term) => self.nodes[node].listening = Some(term),
            Notice::ClaimsClear(token) => self.on_clear(node, token),
            Notice::Deposed(_, loss) => {
                match loss {
                    Loss::LeaseOver => self.counts.leases_over += 1,
                    Loss::LaterClaim(_) => self.counts.later_claims += 1,
                    Loss::Outranked(_) => self.counts.outranked += 1,
                    Loss::Outnumbered(_) | Loss::Refused(_) | Loss::Blind => {}
                }
                self.nodes[node].listening = None;
                let owner = self.nodes[node].owner.as_mut().unwrap();
                if matches!(owner.step, Step::Checking(_)) {
                    self.counts.checks_denied += 1;
                }
                owner.draining = true;
            }
            Notice::Resigned(_) => {
                self.counts.resignations += 1;
                self.nodes[node].owner = None;
                self.nodes[node].listening = None;
            }
            Notice::Stopped(_) | Notice::Refused(_) => {
                self.nodes[node].owner = None;
                self.nodes[node].listening = None;
            }
        }
    }

    fn on_elected(&mut self, node: usize, term: Term) {
        self.counts.elections += 1;
        let start = self.nodes[node].start;
        if let Some(before) = self.elected.insert(term, (node, start)) {
            self.violation(&format!("term {term} of {node} was {before:?}'s"));
        }
        if self.clocks_are_honest {
            for other in 0..self.nodes.len() {
                if other != node && self.may_act(other) {
                    let theirs = self.term(other);
                    self.violation(&format!(
                        "{node} elected in {term}, {other} acts in {theirs:?}"
                    ));
                }
            }
        }
        let nothing = Root { term: Term::NONE, commit: 0, id: 0 };
        self.nodes[node].owner = Some(Owner {
            term,
            step: Step::Reading { left: 4, best: None },
            tip: nothing,
            new: nothing,
            out: 0,
            draining: false,
            flushed: true,
            declared: false,
        });
        for part in 0..4 {
            self.submit_owned(node, Op::ReadRoots(part));
        }
    }

    fn submit_owned(&mut self, node: usize, op: Op<'m>) {
        self.nodes[node].owner.as_mut().unwrap().out += 1;
        self.submit(node, op);
    }

    fn on_owner_io(&mut self, node: usize, result: Result<(), IoError>, root: Option<Root>) {
        let may_act = self.may_act(node);
        let now = self.nodes[node].local(self.now);
        let owner = self.nodes[node].owner.as_mut().unwrap();
        owner.out -= 1;
        if owner.draining {
            owner.flushed |= owner.step == Step::Flushing && result.is_ok();
            return;
        }
        if result.is_err() {
            owner.draining = true;
            return;
        }
        match &mut owner.step {
            Step::Reading { left, best } => {
                *best = (*best).max(root);
                *left -= 1;
                if *left == 0 {
                    let best = best.unwrap();
                    self.on_roots_read(node, best);
                }
            }
            Step::Writing if may_act => {
                owner.step = Step::Flushing;
                self.submit_owned(node, Op::Flush);
            }
            Step::Flushing if may_act => {
                owner.flushed = true;
                let token = CheckToken(owner.new.id as u64);
                owner.step = Step::Checking(token);
                let voter = self.nodes[node].voter.as_mut().unwrap();
                voter.check_claims(now, token);
            }
            Step::Writing | Step::Flushing => {}
            Step::Proof | Step::Idle { .. } | Step::Checking(_) => unreachable!(),
        }
    }

    fn on_roots_read(&mut self, node: usize, best: Root) {
        let now = self.nodes[node].local(self.now);
        let term = self.nodes[node].owner.as_ref().unwrap().term;
        if best.term >= term {
            self.nodes[node].voter.as_mut().unwrap().outranked(now, best.term);
            return;
        }
        let history = self.history(best.id);
        let lost = |(by, id): &&(Term, usize)| *by < term && !history.contains(id);
        if let Some((by, id)) = self.answered.iter().find(lost).copied() {
            self.violation(&format!("{term} read roots without answered commit {id} of {by}"));
        }
        let voter = self.nodes[node].voter.as_mut().unwrap();
        if self.confirms && voter.has_lost(now, (best.term, CommitNo(best.commit))) {
            self.violation(&format!("{term} misses a commit later than {}", best.commit));
            return;
        }
        self.starts.push((term, best.id));
        let owner = self.nodes[node].owner.as_mut().unwrap();
        owner.tip = best;
        owner.step = Step::Proof;
    }

    fn history(&self, tip: usize) -> BTreeSet<usize> {
        let mut all = BTreeSet::from([tip, 0]);
        let mut id = tip;
        while id != 0 {
            id = self.parents[id];
            all.insert(id);
        }
        all
    }

    fn on_clear(&mut self, node: usize, token: CheckToken) {
        let may_act = self.may_act(node);
        let owner = self.nodes[node].owner.as_mut().unwrap();
        if owner.step != Step::Checking(token) || owner.draining || !may_act {
            return;
        }
        owner.tip = owner.new;
        let (term, id, commit) = (owner.term, owner.new.id, CommitNo(owner.new.commit));
        owner.step = Step::Idle { next: self.now + self.rng.below(self.commit_every_ms * MS * 2) };
        if self.confirms {
            self.nodes[node].voter.as_mut().unwrap().commit_confirmed(commit);
        }
        self.counts.answers += 1;
        if self.clocks_are_honest
            && let Some((later, _)) = self.answered.iter().find(|(by, _)| *by > term).copied()
        {
            self.violation(&format!("{term} answered after {later} had"));
        }
        for (later, start) in self.starts.clone() {
            if later > term && !self.history(start).contains(&id) {
                self.violation(&format!("{term} answered commit {id}, which {later} had not read"));
            }
        }
        self.answered.push((term, id));
    }

    /// Whether no root of a term so early that it shares a pair with this one can still land.
    fn is_ring_proven(&self, term: Term) -> bool {
        let early = |cached: &Cached| match &cached.data {
            Data::Root(_, Some(root)) => root.term.round() + RING <= term.round(),
            Data::Root(_, None) | Data::Claim(..) => false,
        };
        !self.nodes.iter().any(|node| node.cache.iter().any(early))
    }

    /// The owner's next action; `true` if there may be another.
    fn step_owner(&mut self, node: usize) -> bool {
        let may_act = self.may_act(node);
        let now = self.nodes[node].local(self.now);
        let stopping = self.nodes[node].stopping;
        let Some(owner) = &mut self.nodes[node].owner else {
            if stopping {
                let voter = self.nodes[node].voter.as_mut().unwrap();
                let before = voter.role();
                voter.stop();
                return voter.role() != before;
            }
            return false;
        };
        owner.draining |= stopping;
        if owner.draining {
            if owner.out > 0 || owner.declared {
                return false;
            }
            if !owner.flushed {
                owner.step = Step::Flushing;
                self.submit_owned(node, Op::Flush);
                return false;
            }
            owner.declared = true;
            let voter = self.nodes[node].voter.as_mut().unwrap();
            if stopping {
                voter.stop();
            } else {
                voter.resign(now);
            }
            return true;
        }
        if !may_act {
            return false;
        }
        match owner.step {
            Step::Proof => {
                let term = owner.term;
                if self.is_ring_proven(term) {
                    let owner = self.nodes[node].owner.as_mut().unwrap();
                    owner.step = Step::Idle { next: self.now };
                    self.nodes[node].voter.as_mut().unwrap().accepting(endpoint(node));
                    return true;
                }
            }
            Step::Idle { next } if next <= self.now => {
                let id = self.parents.len();
                self.parents.push(owner.tip.id);
                owner.new = Root { term: owner.term, commit: owner.tip.commit + 1, id };
                let pair = (owner.term.round() % RING) as usize;
                let at = 2 * pair + (owner.new.commit % 2) as usize;
                let write = Op::WriteRoot(at, owner.new);
                owner.step = Step::Writing;
                owner.flushed = false;
                self.submit_owned(node, write);
            }
            Step::Reading { .. }
            | Step::Idle { .. }
            | Step::Writing
            | Step::Flushing
            | Step::Checking(_) => {}
        }
        false
    }
}

pub(super) fn endpoint(node: usize) -> Endpoint {
    std::net::SocketAddr::from(([127, 0, 0, 1], 9000 + node as u16)).into()
}
