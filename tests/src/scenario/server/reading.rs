//! A reader of older roots: it has one pinned, reads all that it leads to, slowly, and starts over.
//!
//! ```text
//!   Asking ----> Ring ----> Choosing ----> Reading ----> Doubting ----> Looking ----> Asking
//!     a pin      newest     that root      all blocks    has the pin    is there a root of a
//!                root                                    held?          later term?
//! ```
//!
//! # Invariants
//!
//! * It reads nodes and runs, and nothing of what they say but where there is more to read.
//! * What it says of a root it says after the pin was answered for, and the ring read after that.
//!
//! What this module deliberately doesn't know: how a pin is kept.

use super::LINK;
use crate::check::readers::Log;
use crate::node::{Boot, Guest, Program};
use crate::rng::Rng;
use crate::scenario::caller::Caller;
use crate::time::{MILLI, SECOND};
use outrider_core::arena::Arena;
use outrider_core::format::block::{self, Magic, Promise, Volume};
use outrider_core::format::btree::{self, BlockRef, Node as TreeNode, TreeRoot};
use outrider_core::format::layout::{ROOT_BLKNO, ROOT_PAIRS};
use outrider_core::format::records::ManifestEntry;
use outrider_core::format::root::Root;
use outrider_core::format::super_block::Super;
use outrider_core::format::wire::ErrorCode;
use outrider_core::format::wire::greeting::{Machine, Role};
use outrider_core::format::wire::message::{ClientRequest, Outcome, Pin, PinRequest, ServerAnswer};
use outrider_core::net::{Incoming, LinkEvent};
use outrider_core::node::{Action, Event, More, Node};
use outrider_hal::{Block, BlockNo, BlockOp, BlockRequest, Completion, Instant, StreamId, Tag};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use zerocopy::FromBytes;

/// From one block to the next: so that all of them take longer than many commits, and some longer
/// than a lease.
const PACE: Duration = MILLI.saturating_mul(100);
/// After a pin was refused.
const REST: Duration = SECOND.saturating_mul(2);
/// From one request for more to the next.
const RENEW: Duration = SECOND.saturating_mul(5);
const ROOTS: u64 = 2 * ROOT_PAIRS;
const TAG: Tag = Tag(2000);
/// Number of the kind of the manifest's nodes.
const MANIFEST: u8 = 3;

/// A reader's program.
pub struct Reading {
    /// The volume.
    pub volume: Super,
    /// What all readers have found.
    pub log: Rc<RefCell<Log>>,
}

impl Reading {
    fn carve(&self, arena: &mut Arena<'static>, nonce: [u8; 16]) -> Reader {
        Reader {
            caller: Caller::carve(
                arena,
                &LINK,
                &self.volume,
                Role::Status,
                nonce,
                Machine::default(),
            ),
            buffer: arena.one(Block::ZERO).expect("measured"),
            volume: self.volume,
            log: Rc::clone(&self.log),
            entropy: Rng::new(0),
            phase: Phase::Asking,
            pin: None,
            root: None,
            left: Vec::new(),
            wrong: None,
            is_superseded: false,
            asked: false,
            renew_at: Instant(0),
            next_at: Instant(0),
            actions: VecDeque::new(),
        }
    }
}

impl Program for Reading {
    fn region_bytes(&self) -> usize {
        let mut arena = Arena::measuring();
        drop(self.carve(&mut arena, [0; 16]));
        arena.bytes_used()
    }

    fn start(&self, mut boot: Boot) -> Box<dyn Guest> {
        let mut arena = Arena::new(boot.region).expect("regions are aligned");
        let mut nonce = [0; 16];
        boot.entropy.fill(&mut nonce);
        let mut reader = self.carve(&mut arena, nonce);
        reader.entropy = boot.entropy;
        Box::new(reader)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Asking,
    /// The root of this number is read.
    Ring(u64),
    Choosing,
    Reading,
    Doubting,
    /// So is it again.
    Looking(u64),
}

/// A block that is to be read, and what it must be.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    Node(BlockRef),
    Run(Promise),
}

/// A reader.
pub struct Reader {
    caller: Caller,
    buffer: Option<&'static mut Block>,
    volume: Super,
    log: Rc<RefCell<Log>>,
    entropy: Rng,
    phase: Phase,
    pin: Option<Pin>,
    root: Option<Root>,
    left: Vec<Wanted>,
    /// The first block that was something else.
    wrong: Option<String>,
    /// A root of a later term was seen.
    is_superseded: bool,
    /// A request is unanswered.
    asked: bool,
    renew_at: Instant,
    next_at: Instant,
    actions: VecDeque<Action<'static>>,
}

impl Reader {
    fn volume(&self) -> Volume {
        self.volume.volume()
    }

    fn start_over(&mut self, at: Instant) {
        (self.phase, self.next_at) = (Phase::Asking, at);
        (self.pin, self.root, self.wrong, self.is_superseded) = (None, None, None, false);
        self.left.clear();
    }

    /// Asks what the phase wants to know, or for more of the pin when it is time.
    fn ask(&mut self, now: Instant) {
        if self.asked || !self.caller.link.is_up() || self.next_at > now {
            return;
        }
        let commit = self.root.as_ref().map(Root::commit);
        let renew =
            |pin: &Pin, commit| PinRequest::Renew { term: pin.term, number: pin.number, commit };
        let request = match (self.phase, &self.pin) {
            (Phase::Asking, _) => PinRequest::New,
            (Phase::Choosing | Phase::Doubting, Some(pin)) => renew(pin, commit),
            (Phase::Reading, Some(pin)) if self.renew_at <= now => renew(pin, commit),
            (_, _) => return,
        };
        self.asked = self.caller.link.request(&ClientRequest::Pin(request)).is_ok();
        self.renew_at = now.plus(RENEW);
    }

    fn on_answer(&mut self, now: Instant, answer: Result<Pin, ErrorCode>) {
        self.asked = false;
        let mut log = self.log.borrow_mut();
        match (answer, self.phase) {
            (Ok(pin), Phase::Asking) => {
                (self.pin, self.phase) = (Some(pin), Phase::Ring(0));
            }
            (Ok(_), Phase::Choosing) => {
                let root = self.root.as_ref().expect("chosen").fields();
                let trees = [
                    &root.free_by_block,
                    &root.free_by_length,
                    &root.manifest,
                    &root.clients,
                    &root.loans,
                    &root.open_seqs,
                    &root.freed,
                    &root.quarantine,
                ];
                let nodes = trees.into_iter().filter(|tree: &&TreeRoot| tree.height > 0);
                self.left = nodes.map(|tree| Wanted::Node(tree.node)).collect();
                self.phase = Phase::Reading;
            }
            (Ok(_), Phase::Doubting) => self.phase = Phase::Looking(0),
            (Ok(_), Phase::Ring(_) | Phase::Reading | Phase::Looking(_)) => {}
            (Err(_), Phase::Asking) => {
                log.refused += 1;
                self.next_at = now.plus(REST);
            }
            (Err(error), _) => {
                log.lost += 1;
                if error != ErrorCode::NotFound {
                    log.demand(format!("a pin that was given is refused: {error:?}"));
                }
                drop(log);
                self.start_over(now.plus(PACE));
            }
        }
    }

    fn on_message(&mut self, now: Instant) {
        let answer = match self.caller.link.head() {
            Some(Incoming::Answer(_, Outcome::Done(ServerAnswer::Pin(pin)))) => Ok(pin),
            Some(Incoming::Answer(_, Outcome::Failed(error, _))) => Err(error),
            Some(Incoming::Answer(..) | Incoming::Request(_)) | None => return,
        };
        let ticket = self.caller.link.take(now).expect("it was there");
        self.caller.link.recorded(ticket);
        self.on_answer(now, answer);
    }

    /// Reads the next block, if it is time.
    fn read(&mut self, now: Instant) {
        let blkno = match self.phase {
            Phase::Ring(number) | Phase::Looking(number) => ROOT_BLKNO.plus(number),
            Phase::Reading if self.next_at <= now => match self.left.last() {
                Some(Wanted::Node(at)) => at.blkno(),
                Some(Wanted::Run(promise)) => promise.blkno,
                None => {
                    self.phase = Phase::Doubting;
                    return self.ask(now);
                }
            },
            Phase::Reading | Phase::Asking | Phase::Choosing | Phase::Doubting => return,
        };
        if let Some(buffer) = self.buffer.take() {
            let op = BlockOp::Read(blkno, buffer);
            self.actions.push_back(Action::Block(BlockRequest { tag: TAG, op }));
        }
    }

    fn on_read(&mut self, now: Instant, done: Completion<'static>) {
        let (BlockOp::Read(blkno, block) | BlockOp::Write(blkno, block)) = done.op else {
            unreachable!("it only reads")
        };
        if done.result.is_err() {
            // Nothing is known of the block: another time.
            self.next_at = now.plus(PACE);
        } else {
            match self.phase {
                Phase::Ring(number) => self.on_root(now, number, blkno, block),
                Phase::Looking(number) => self.on_look(now, number, blkno, block),
                Phase::Reading => self.on_block(now, block),
                Phase::Asking | Phase::Choosing | Phase::Doubting => {}
            }
        }
        self.buffer = Some(block);
    }

    fn on_root(&mut self, now: Instant, number: u64, blkno: BlockNo, block: &Block) {
        let root = Root::open(block, &self.volume(), blkno, self.volume.blocks()).ok();
        let best = self.root.as_ref().map(Root::rank);
        if let Some(root) = root.filter(|root| Some(root.rank()) > best) {
            self.root = Some(root);
        }
        self.phase = Phase::Ring(number + 1);
        if number + 1 < ROOTS {
            return;
        }
        let pin = self.pin.expect("the ring is read under a pin");
        let fits = |root: &Root| root.term() == pin.term && root.commit() >= pin.commit;
        match self.root.as_ref().is_some_and(fits) {
            true => self.phase = Phase::Choosing,
            false => {
                self.log.borrow_mut().superseded += 1;
                self.start_over(now.plus(PACE));
            }
        }
    }

    fn on_block(&mut self, now: Instant, block: &Block) {
        self.next_at = now.plus(PACE);
        let Some(wanted) = self.left.pop() else { return };
        self.log.borrow_mut().blocks += 1;
        let volume = self.volume();
        let opened = match wanted {
            Wanted::Run(promise) => block::open(block, &volume, &promise),
            Wanted::Node(at) => {
                let seq = Some(at.seq());
                let promise = Promise { magic: Magic::Btree, blkno: at.blkno(), seq };
                block::open(block, &volume, &promise).and_then(|()| btree::parse(block))
            }
        };
        match (opened, wanted) {
            (Ok(()), Wanted::Node(_)) => self.follow(&TreeNode::new(block)),
            (Ok(()), Wanted::Run(_)) => {}
            (Err(what), _) => {
                self.wrong = Some(format!("{wanted:?} is not there: {what:?}"));
                self.phase = Phase::Doubting;
            }
        }
    }

    /// What a node leads to is to be read.
    fn follow(&mut self, node: &TreeNode<'_>) {
        for index in 0..node.count() {
            if node.level() > 0 {
                self.left.push(Wanted::Node(node.child(index)));
            } else if node.kind() == MANIFEST {
                let entry = ManifestEntry::read_from_bytes(node.item(index).1);
                let entry = entry.expect("a manifest has entries");
                let items = u64::from(entry.item_blocks.get());
                let indexes = u64::from(entry.index_blocks.get());
                self.left.extend((0..entry.blocks()).map(|at| {
                    let magic = match at {
                        at if at < items => Magic::RunItems,
                        at if at < items + indexes => Magic::RunIndex,
                        _ => Magic::RunFilter,
                    };
                    let blkno = entry.extent().start().plus(at);
                    Wanted::Run(Promise { magic, blkno, seq: Some(entry.run().0) })
                }));
            }
        }
    }

    fn on_look(&mut self, now: Instant, number: u64, blkno: BlockNo, block: &Block) {
        let root = Root::open(block, &self.volume(), blkno, self.volume.blocks()).ok();
        let term = self.root.as_ref().map(Root::term);
        self.is_superseded |= root.is_some_and(|root| Some(root.term()) > term);
        self.phase = Phase::Looking(number + 1);
        if number + 1 < ROOTS {
            return;
        }
        let mut log = self.log.borrow_mut();
        match self.wrong.take() {
            _ if self.is_superseded => log.superseded += 1,
            Some(what) => log.demand(what),
            None => log.whole += 1,
        }
        drop(log);
        self.start_over(now.plus(PACE));
    }
}

impl Node<'static> for Reader {
    fn handle(&mut self, now: Instant, event: Event<'static>) {
        match event {
            Event::Completed(done) if done.tag == TAG => self.on_read(now, done),
            event => self.caller.handle(now, event, &mut self.entropy, &mut self.actions),
        }
    }

    fn step(&mut self, now: Instant) -> More {
        self.caller.step(now, &mut self.actions);
        self.caller.dial(now, &mut self.actions);
        while let Some(event) = self.caller.link.poll_event() {
            match event {
                // What was asked over another connection is asked again.
                LinkEvent::Up { .. } => self.asked = false,
                LinkEvent::Message => self.on_message(now),
            }
        }
        self.ask(now);
        self.read(now);
        self.caller.link.step(now);
        self.caller.poll_requests(now, &mut self.actions);
        More::No
    }

    fn poll_action(&mut self) -> Option<Action<'static>> {
        self.actions.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let up = self.caller.link.is_up() && !self.asked;
        let next = match self.phase {
            Phase::Asking | Phase::Choosing | Phase::Doubting => up.then_some(self.next_at),
            Phase::Reading => {
                let read = self.buffer.is_some().then_some(self.next_at);
                read.into_iter().chain(up.then_some(self.renew_at)).min()
            }
            Phase::Ring(_) | Phase::Looking(_) => self.buffer.is_some().then_some(Instant(0)),
        };
        [next, self.caller.poll_timeout()].into_iter().flatten().min()
    }

    fn recv_space(&mut self, stream: StreamId) -> &mut [u8] {
        self.caller.link.recv_space(stream)
    }

    fn send_bytes(&self, stream: StreamId) -> &[u8] {
        self.caller.link.send_bytes(stream)
    }
}
