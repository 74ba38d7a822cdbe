//! What leaders owe each other: one acts at a time, what one has confirmed no other destroys, and
//! the newest root leads to nothing that a loss of power could take.
//!
//! # Invariants
//!
//! * A server whose clock stood still in its term, from when it stood for it on, counts as one that
//!   may not act, and so does one that took office after its clock had jumped, as it hasn't waited
//!   for its predecessor's lease: nobody can notice that by itself, and what is done then is
//!   harmless for another reason, which is what the looks at roots and blocks are about.
//! * Roots are looked at whenever one of their blocks has changed, so between any two steps of
//!   nodes.
//!
//! What this module deliberately doesn't know: what stands in the trees.

use crate::check::Checker;
use crate::time::Time;
use crate::trace::HostId;
use crate::world::World;
use outrider_core::format::block::{Magic, Promise, open};
use outrider_core::format::btree::{Node, TreeRoot, parse};
use outrider_core::format::layout::{ROOT_BLKNO, ROOT_PAIRS};
use outrider_core::format::root::Root;
use outrider_core::format::super_block::Super;
use outrider_core::format::{CommitNo, Term};
use outrider_core::quorum::Role;
use outrider_core::server::Server;
use outrider_hal::{Block, BlockNo, Instant};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Longer than a voter waits for a leader's lease before it takes office.
const FOLLOWED: Duration = Duration::from_secs(30);

/// A server's clock, as it was seen at its last step.
#[derive(Debug, Clone, Copy)]
struct Clock {
    boots: u32,
    seen: (Time, Instant),
    /// When it was seen to have jumped ahead.
    jumped: Option<Time>,
    /// The last term that was seen: of the leader it is, or wants to become.
    term: Option<Term>,
    /// The last in which it served.
    served: Option<Term>,
    /// What the server makes of leases in that term is wrong.
    wrong: bool,
}

/// The checker.
pub struct Leaders {
    volume: Super,
    clocks: BTreeMap<HostId, Clock>,
    commits: BTreeMap<(HostId, u32), u64>,
    confirmed: (Term, CommitNo),
    /// The blocks of roots, as they were looked at last.
    known: Vec<Rc<Block>>,
    /// And how often the device had changed there.
    changes: Option<u64>,
    roots: u64,
    nodes: u64,
    /// The last term in which anybody served.
    served: Option<Term>,
    failovers: u64,
}

impl Leaders {
    /// A checker of this volume.
    #[must_use]
    pub fn new(volume: Super) -> Leaders {
        Leaders {
            volume,
            clocks: BTreeMap::new(),
            commits: BTreeMap::new(),
            confirmed: (Term::NONE, CommitNo(0)),
            known: Vec::new(),
            changes: None,
            roots: 0,
            nodes: 0,
            served: None,
            failovers: 0,
        }
    }

    /// The term in which this server may act now, if its clock is right.
    fn acts(&self, world: &World, host: HostId) -> Option<Term> {
        let server = world.guest::<Server<'static>>(host)?;
        let clock = self.clocks.get(&host)?;
        let now = world.clock(host);
        let right = clock.boots == world.boots(host) && !is_slow(clock.seen, (world.now(), now));
        let term = server.serving().filter(|_| server.voter().may_act(now))?;
        let wrong = clock.wrong && clock.term == Some(term);
        (right && world.is_running(host) && !wrong).then_some(term)
    }

    /// Checks that nobody else acts while this server does.
    fn check_office(&mut self, world: &World, host: HostId) -> Result<(), String> {
        let Some(server) = world.guest::<Server<'static>>(host) else { return Ok(()) };
        let (boots, seen) = (world.boots(host), (world.now(), world.clock(host)));
        let fresh = Clock { boots, seen, jumped: None, term: None, served: None, wrong: false };
        let clock = self.clocks.entry(host).or_insert(fresh);
        if clock.boots != boots {
            *clock = fresh;
        }
        if has_jumped(clock.seen, seen) {
            clock.jumped = Some(seen.0);
        }
        let served = server.serving();
        if served > self.served {
            self.failovers += u64::from(self.served.is_some());
            self.served = served;
        }
        // What passed until this step passed in the term of the one before.
        clock.wrong |= is_slow(clock.seen, seen);
        clock.seen = seen;
        let term = match server.voter().role() {
            Role::Standing(term) | Role::Leading(term) | Role::Draining(term) => Some(term),
            Role::Starting
            | Role::Following
            | Role::Stopping
            | Role::Stopped
            | Role::Refused(_) => None,
        };
        if term != clock.term {
            (clock.term, clock.wrong) = (term, false);
        }
        if served != clock.served {
            clock.served = served;
            clock.wrong |= clock.jumped.is_some_and(|at| seen.0.since(at) < FOLLOWED);
        }
        let Some(term) = self.acts(world, host) else { return Ok(()) };
        let other = world.hosts().filter(|other| *other != host);
        match other.filter_map(|other| self.acts(world, other)).next() {
            Some(other) => Err(format!("{term} and {other} act at once")),
            None => Ok(()),
        }
    }

    /// Checks the newest root on the device.
    fn check_roots(&mut self, world: &World, host: HostId) -> Result<(), String> {
        let Some(server) = world.guest::<Server<'static>>(host) else { return Ok(()) };
        let commits = server.counters().commits;
        let before = self.commits.insert((host, world.boots(host)), commits).unwrap_or_default();
        let root = server.store().root().filter(|_| commits > before);
        self.confirmed = self.confirmed.max(root.map_or(self.confirmed, Root::rank));
        let end = ROOT_BLKNO.plus(2 * ROOT_PAIRS);
        let changes = world.disk().changes(ROOT_BLKNO.0..end.0);
        if self.changes == Some(changes) {
            return Ok(());
        }
        self.changes = Some(changes);
        let now: Vec<&Rc<Block>> = blknos().map(|blkno| world.disk().content(blkno)).collect();
        let same = |(one, other): (&Rc<Block>, &&Rc<Block>)| Rc::ptr_eq(one, other);
        if self.known.len() == now.len() && self.known.iter().zip(&now).all(same) {
            return Ok(());
        }
        self.known = now.into_iter().cloned().collect();
        let opened = blknos().zip(&self.known).filter_map(|(blkno, block)| {
            Root::open(block, &self.volume.volume(), blkno, self.volume.blocks()).ok()
        });
        let newest = opened.max_by_key(Root::rank).ok_or("no root can be read")?;
        if newest.rank() < self.confirmed {
            let (newest, confirmed) = (newest.rank(), self.confirmed);
            return Err(format!(
                "the newest root is {newest:?}, though {confirmed:?} was confirmed"
            ));
        }
        self.roots += 1;
        let fields = newest.fields();
        let trees = [
            &fields.free_by_block,
            &fields.free_by_length,
            &fields.manifest,
            &fields.clients,
            &fields.loans,
            &fields.open_seqs,
            &fields.freed,
            &fields.quarantine,
        ];
        let in_tree = |what| format!("the newest root, {:?}: {what}", newest.rank());
        trees.into_iter().try_for_each(|tree| self.check_durable(world, tree)).map_err(in_tree)
    }

    /// Checks that no block of this tree would be lost with the power.
    fn check_durable(&mut self, world: &World, at: &TreeRoot) -> Result<(), String> {
        if at.height == 0 {
            return Ok(());
        }
        self.nodes += 1;
        let blkno = at.node.blkno();
        let block = world.disk().durable().block(blkno.0);
        let promise = Promise { magic: Magic::Btree, blkno, seq: Some(at.node.seq()) };
        let opened = open(block, &self.volume.volume(), &promise).and_then(|()| parse(block));
        opened.map_err(|what| format!("block {blkno} is not durable: {what:?}"))?;
        let node = Node::new(block);
        if node.level() == 0 {
            return Ok(());
        }
        (0..node.count()).try_for_each(|index| {
            let (height, reserved) = (at.height - 1, [0; 7]);
            self.check_durable(world, &TreeRoot { node: node.child(index), height, reserved })
        })
    }
}

/// The blocks of all roots.
fn blknos() -> impl Iterator<Item = BlockNo> {
    (0..2 * ROOT_PAIRS).map(|at| ROOT_BLKNO.plus(at))
}

/// Whether a clock stood still between two looks at it: what drift does is far less.
pub(crate) fn is_slow(before: (Time, Instant), after: (Time, Instant)) -> bool {
    let really = after.0.since(before.0);
    after.1.since(before.1) < really - really / 200
}

/// Whether a clock jumped ahead between two looks at it.
fn has_jumped(before: (Time, Instant), after: (Time, Instant)) -> bool {
    let really = after.0.since(before.0);
    after.1.since(before.1) > really + really / 200 + Duration::from_millis(1)
}

impl Checker for Leaders {
    fn name(&self) -> &'static str {
        "leaders"
    }

    fn after_step(&mut self, world: &World, host: HostId) -> Result<(), String> {
        self.check_office(world, host)?;
        self.check_roots(world, host)
    }

    fn work(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("failovers", self.failovers),
            ("commits confirmed", self.commits.values().sum()),
            ("roots looked at", self.roots),
            ("nodes found durable", self.nodes),
        ]
    }
}
