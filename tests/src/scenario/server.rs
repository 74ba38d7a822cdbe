//! Three voters, one of which is the metadata server, and mounts that speak the bare protocol.
//!
//! Each mount greets, borrows space, writes the blocks of its runs to the device, flushes, and
//! records them in numbered transactions that also free some of the data it used before. The server
//! merges the runs, a few at a time, so that much of that happens in a short run. After a
//! number of those it says farewell, and comes back as another client. The servers take turns as
//! they crash, pause and come back.
//!
//! # Invariants
//!
//! * A request is logged before it is sent, and sent again unchanged: what a number stands for is
//!   known to the checker whatever becomes of the mount.
//!
//! A voter that crashed writes nothing late: whoever starts a voter answers for it that the I/O of
//! the one before has ended. One that was paused does.

mod compact;
mod locking;
pub mod merge;
pub mod reading;

pub(in crate::scenario) use compact::Manners;

use crate::check::compaction::{
    BEGUN, COMPLETED, Compactions, DROPPED, EVICTED, LATE, LOST, REFUSED, REJECTED, UNKNOWN,
};
use crate::check::leaders::Leaders;
use crate::check::server::{Log, Servers};
use crate::faults::{Atlas, Fault, FaultSet, Promise};
use crate::image::Image;
use crate::net::Net;
use crate::node::{Boot, Guest, Program};
use crate::rng::Rng;
use crate::scenario::Scenario;
use crate::scenario::caller::Caller;
use crate::time::{MILLI, MINUTE, SECOND};
use crate::trace::HostId;
use crate::world::World;
use compact::Compacting;
use locking::Locking;
use merge::{Made, Maker, RUN_BLOCKS};
use outrider_core::arena::{Arena, REGION_ALIGN};
use outrider_core::block::{Limits, RequestId};
use outrider_core::format::layout::{QUORUM_BLKNO, SUPER_BLKNO, spare_blkno};
use outrider_core::format::quorum::{BootId, HostId as QuorumHost, Incarnation, Slot, emit_blank};
use outrider_core::format::records::Pool;
use outrider_core::format::super_block::{ClusterLimits, Identity as Volume, Super};
use outrider_core::format::wire::greeting::{Machine, Role};
use outrider_core::format::wire::message::{
    ClientAnswer, ClientRequest, Extent, ExtentRecord, Extents, LoanRequest, Outcome, RunRecord,
    ServerAnswer, ServerRequest, Transaction,
};
use outrider_core::format::wire::{ErrorCode, Kind};
use outrider_core::format::{ClientId, CommitNo, Seq, Term};
use outrider_core::lock::{LockName, Mode};
use outrider_core::net::{
    Incoming, LineLimits, LinkEvent, LinkLimits, SessionLimits, Timing as NetTiming,
};
use outrider_core::node::{Action, Event, More, Node};
use outrider_core::quorum::{Exclusion, Identity, Timing, Vouched};
use outrider_core::server::{Server, ServerConfig, ServerLimits, ServerTiming};
use outrider_core::txn::store::{Store, StoreEvent};
use outrider_hal::{
    Block, BlockNo, BlockOp, BlockRequest, Completion, Endpoint, Instant, StreamId, Tag,
};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::time::Duration;

/// Blocks of the volume.
pub const BLOCKS: u64 = 1 << 14;
/// Servers; the mounts come after them.
pub const SERVERS: u16 = 3;
/// Mounts.
pub const MOUNTS: u16 = 3;
const PORT: u16 = 7000;
/// Clients whose record may be there at once: a mount that crashes leaves one behind.
const CLIENTS: u16 = 200;
/// Transactions before a farewell.
const TRANSACTIONS: u64 = 12;
/// Farewells that each mount has to come to after faults have stopped.
pub const FAREWELLS: u64 = 2;

/// Locks that each must have been granted after it booted last.
pub const GRANTS: u64 = 30;

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "server",
    demands,
    demanded_work: &[BEGUN, COMPLETED, LOST, EVICTED, DROPPED, REFUSED, REJECTED, LATE, UNKNOWN],
    goals: &[
        ("commits confirmed", 100_000),
        ("crashes", 10_000),
        ("evictions begun", 1_000),
        ("wake-ups with queued I/O", 1_000),
    ],
    fault_goal: None,
    world,
    faulty: MINUTE,
    settles_within: MINUTE.saturating_mul(4),
};

fn demands() -> FaultSet {
    FaultSet::harmless()
}

/// The volume, as mkfs makes it.
#[must_use]
pub fn volume() -> Super {
    volume_of(ClusterLimits::standard())
}

/// The same for as many mounts and locks.
pub(super) fn volume_of(limits: ClusterLimits) -> Super {
    let mut voters = [None; 7];
    for host in 0..SERVERS {
        voters[usize::from(host)] = Some(Endpoint { addr: Net::addr(HostId(host)), port: PORT });
    }
    let identity = Volume {
        fsid: 0x5ca1ab1e,
        uuid: [5; 16],
        label: [0; 64],
        blocks: BLOCKS,
        crc_seed: 77,
        name_key: [7; 16],
        cluster_key: [9; 32],
        voters,
        limits,
    };
    Super::new(&identity).expect("a sane volume")
}

fn world(seed: u64) -> World {
    let promise = Promise {
        survives: demands(),
        hosts_impaired_max: 3,
        blocks_damaged_max: 0,
        damageable: 0..0,
    };
    populate(World::new(seed, promise, formatted(&volume())), &Setting::ordinary(Manners::Any)).0
}

/// The same machines; nothing goes wrong by itself, but of these faults each that can happen does.
/// What mounts are asked to merge they merge.
#[must_use]
pub fn quiet(seed: u64, faults: &[Fault]) -> World {
    quiet_with(seed, faults, Manners::Good)
}

/// The same with mounts that begin what they are asked to merge, and never say what came of it.
#[must_use]
pub fn unanswered(seed: u64) -> World {
    quiet_with(seed, &[], Manners::Silent)
}

/// The same with mounts that merge nothing, so that the servers do it by themselves.
#[must_use]
pub fn unhelped(seed: u64) -> World {
    quiet_with(seed, &[], Manners::Idle)
}

fn quiet_with(seed: u64, faults: &[Fault], manners: Manners) -> World {
    let survives = FaultSet::of(faults);
    let promise = Promise { survives, hosts_impaired_max: 3, ..Promise::nothing() };
    let root = Rng::new(seed);
    let atlas = Atlas::fixed(&root, promise, survives, 1_000_000);
    let world = World::with_atlas(&root, atlas, formatted(&volume()));
    populate(world, &Setting::ordinary(manners)).0
}

/// What differs between worlds of these machines.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) manners: Manners,
    pub(super) mounts: u16,
    /// Clients whose record may be there at once.
    pub(super) clients: u16,
    /// A mount that is not heard for so long is evicted.
    pub(super) recovery: Duration,
    /// For how long the locks of who was evicted are kept from others.
    pub(super) io_lifetime: Duration,
    /// Mounts say on which machine they are. They never say that it was booted anew: what was
    /// under way before that may land after it.
    pub(super) names_machines: bool,
    /// A mount rests so long before it does the next thing.
    pub(super) rest: Duration,
    /// Data blocks of a transaction at the most.
    pub(super) data_blocks: u64,
}

impl Setting {
    fn ordinary(manners: Manners) -> Setting {
        Setting {
            manners,
            mounts: MOUNTS,
            clients: CLIENTS,
            recovery: SECOND * 12,
            io_lifetime: SECOND * 5,
            names_machines: false,
            rest: MILLI * 20,
            data_blocks: 40,
        }
    }

    /// How long a mount that was heard may go on.
    fn lease(&self) -> Duration {
        self.recovery * 7 / 12
    }
}

/// Adds the machines, and who looks at them; and the log of what mounts ask.
pub(super) fn populate(mut world: World, setting: &Setting) -> (World, Rc<RefCell<Log>>) {
    let log = Rc::new(RefCell::new(Log::of_lease(setting.lease())));
    let Setting { recovery, io_lifetime, .. } = *setting;
    let timing = ServerTiming { recovery, io_lifetime, ..ServerTiming::NORMAL };
    for me in 0..SERVERS {
        let limits = limits(setting.clients);
        world.add_host("server", Serving { me, volume: volume(), limits, timing });
    }
    for _ in 0..setting.mounts {
        world.add_host("mount", Mounting { log: Rc::clone(&log), setting: *setting });
    }
    world.add_checker(Servers::new(Rc::clone(&log)));
    world.add_checker(Compactions::default());
    world.add_checker(Leaders::new(volume()));
    (world, log)
}

/// A device with an empty volume.
pub(super) fn formatted(volume: &Super) -> Image {
    let mut image = Image::new(BLOCKS);
    for blkno in [SUPER_BLKNO, spare_blkno(BLOCKS)] {
        let mut block = Block::ZERO;
        volume.seal(&mut block, blkno);
        image.write(blkno.0, Rc::new(block));
    }
    for slot in Slot::ALL {
        let mut block = Block::ZERO;
        emit_blank(&mut block, &volume.volume(), QUORUM_BLKNO, slot);
        image.write(slot.blkno(QUORUM_BLKNO).0, Rc::new(block));
    }
    let limits = Limits { requests: 1, ..ServerLimits::for_clients(1).cache };
    let job = RequestId { index: 0, generation: 0 };
    let mut measure = Arena::measuring();
    drop(Store::carve(&mut measure, &limits, volume, job));
    let mut region = vec![MaybeUninit::uninit(); measure.bytes_used() + REGION_ALIGN];
    let pad = region.as_ptr().align_offset(REGION_ALIGN);
    let mut arena = Arena::new(&mut region[pad..]).expect("aligned");
    let mut store = Store::carve(&mut arena, &limits, volume, job).expect("measured");
    store.format();
    let mut asked = false;
    loop {
        while store.poll_wake().is_some() {}
        while store.step() == More::Yes {}
        if !asked && store.open_commit().is_some() {
            asked = true;
            store.commit();
            continue;
        }
        if let Some(event) = store.poll_event() {
            assert_eq!(event, StoreEvent::Durable(CommitNo(1)));
            return image;
        }
        while let Some(BlockRequest { tag, mut op }) = store.poll_request() {
            match &mut op {
                BlockOp::Read(blkno, block) => block.0 = image.block(blkno.0).0,
                BlockOp::Write(blkno, block) => image.write(blkno.0, Rc::new((**block).clone())),
                BlockOp::Flush => {}
            }
            store.handle_completion(Completion { tag, op, result: Ok(()) });
        }
    }
}

fn limits(clients: u16) -> ServerLimits {
    const LOCKS: u32 = 8;
    let all = u32::from(clients) + 4;
    let locks = ClusterLimits {
        locks_per_client: (4 * LOCKS).into(),
        locks: (all * LOCKS).into(),
        ..ClusterLimits::for_clients(clients.into())
    };
    ServerLimits { locks: ServerLimits::of(&locks).locks, ..merge::limits(clients) }
}

/// A server's program.
pub(super) struct Serving {
    pub(super) me: u16,
    pub(super) volume: Super,
    pub(super) limits: ServerLimits,
    pub(super) timing: ServerTiming,
}

impl Serving {
    fn config(&self, entropy: &mut Rng, boots: u32) -> ServerConfig {
        let mut incarnation = [0; 16];
        entropy.fill(&mut incarnation);
        let mut secret = [0; 32];
        entropy.fill(&mut secret);
        ServerConfig {
            volume: self.volume,
            slot: Slot::new(self.me as u8).expect("a slot"),
            listen: None,
            identity: Identity {
                incarnation: Incarnation(incarnation),
                host: QuorumHost([self.me as u8 + 1; 16]),
                boot: BootId([boots as u8; 16]),
                exclusion: Exclusion::Host,
                vouched: Vouched::Nothing,
                seed: entropy.number(),
            },
            quorum: Timing::NORMAL,
            net: NetTiming::DEFAULT,
            timing: self.timing,
            secret,
        }
    }
}

impl Program for Serving {
    fn io_lifetime(&self) -> Duration {
        Duration::ZERO
    }

    fn lease(&self) -> Duration {
        MILLI * Timing::NORMAL.lease_ms
    }

    fn region_bytes(&self) -> usize {
        let mut arena = Arena::measuring();
        drop(Server::carve(&mut arena, &self.limits, &self.config(&mut Rng::new(0), 0)));
        arena.bytes_used()
    }

    fn start(&self, mut boot: Boot) -> Box<dyn Guest> {
        let config = self.config(&mut boot.entropy, boot.boots);
        let mut arena = Arena::new(boot.region).expect("regions are aligned");
        Box::new(Server::carve(&mut arena, &self.limits, &config).expect("measured"))
    }
}

/// A mount's program.
struct Mounting {
    log: Rc<RefCell<Log>>,
    setting: Setting,
}

const LINK: LinkLimits =
    LinkLimits { session: SessionLimits { asks_max: 8, answers_max: 16 }, line: LineLimits::MIN };

/// What the link, the watcher and the runs are carved from.
fn carve(
    arena: &mut Arena<'static>,
    nonce: [u8; 16],
    machine: Machine,
    setting: &Setting,
) -> Mount {
    Mount {
        caller: Caller::carve(arena, &LINK, &volume(), Role::Mount, nonce, machine),
        buffer: arena.slice(1, |_| Block::ZERO).expect("measured").first_mut(),
        maker: Maker::carve(arena).expect("measured"),
        compacting: Compacting::carve(arena, setting.manners).expect("measured"),
        log: Rc::default(),
        entropy: Rng::new(0),
        nonce,
        boots: 0,
        state: State::Root,
        waits: false,
        seq: Seq(0),
        transactions: 0,
        loans_number: 0,
        have: Have::default(),
        writes: VecDeque::new(),
        farewells: 0,
        stepped: Instant(0),
        evicted: false,
        is_writing: false,
        locking: Locking::new(setting.lease()),
        setting: *setting,
        actions: VecDeque::new(),
        next_at: Instant(0),
    }
}

impl Program for Mounting {
    fn lease(&self) -> Duration {
        self.setting.lease()
    }

    fn region_bytes(&self) -> usize {
        let mut arena = Arena::measuring();
        drop(carve(&mut arena, [0; 16], Machine::default(), &self.setting));
        arena.bytes_used()
    }

    fn start(&self, mut boot: Boot) -> Box<dyn Guest> {
        let mut arena = Arena::new(boot.region).expect("regions are aligned");
        let mut nonce = [0; 16];
        boot.entropy.fill(&mut nonce);
        let host = match self.setting.names_machines {
            true => QuorumHost(boot.addr.addr.octets()),
            false => QuorumHost::default(),
        };
        let machine = Machine { host, boot: BootId::default() };
        let mut mount = carve(&mut arena, nonce, machine, &self.setting);
        mount.log = Rc::clone(&self.log);
        mount.boots = boot.boots;
        mount.entropy = boot.entropy;
        Box::new(mount)
    }
}

/// What a mount is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Learns its first transaction.
    Root,
    Loan,
    /// Writes the blocks of its next transaction.
    Writing,
    Flushing,
    Transaction,
    Farewell,
}

/// What a mount has borrowed, and used.
#[derive(Debug, Default)]
struct Have {
    data: Vec<(u64, u64)>,
    runs: Vec<(u64, u64)>,
    run_ids: Vec<(u64, u64)>,
    used: Vec<(u64, u64)>,
    /// The transaction under way.
    next: Option<Planned>,
}

/// A transaction as it was logged.
#[derive(Debug, Clone)]
struct Planned {
    seq: Seq,
    runs: Vec<Made>,
    used: Vec<(u64, u64)>,
    freed: Vec<(u64, u64)>,
}

impl Planned {
    /// The blocks to be written.
    fn blocks(&self) -> VecDeque<u64> {
        let runs = self.runs.iter().flat_map(|run| run.blocks.keys().copied());
        runs.chain(self.used.iter().flat_map(|&(start, len)| start..start + len)).collect()
    }

    /// What a block is to hold, if it is one of a run.
    fn block(&self, blkno: u64) -> Option<&Block> {
        self.runs.iter().find_map(|run| run.blocks.get(&blkno))
    }
}

/// A mount.
pub struct Mount {
    caller: Caller,
    buffer: Option<&'static mut Block>,
    maker: Maker,
    compacting: Compacting,
    log: Rc<RefCell<Log>>,
    entropy: Rng,
    nonce: [u8; 16],
    boots: u32,
    state: State,
    /// A request, or I/O, is under way.
    waits: bool,
    seq: Seq,
    transactions: u64,
    loans_number: u64,
    have: Have,
    writes: VecDeque<u64>,
    farewells: u64,
    locking: Locking,
    setting: Setting,
    stepped: Instant,
    /// A server has said so.
    evicted: bool,
    /// I/O is under way.
    is_writing: bool,
    actions: VecDeque<Action<'static>>,
    next_at: Instant,
}

const TAG_DATA: Tag = Tag(1000);

/// Takes up to `count` numbers from the front of what there is.
fn cut(from: &mut Vec<(u64, u64)>, count: u64) -> Option<(u64, u64)> {
    let (start, len) = from.first_mut()?;
    let taken = (*start, count.min(*len));
    (*start, *len) = (*start + taken.1, *len - taken.1);
    if *len == 0 {
        from.remove(0);
    }
    Some(taken)
}

fn sum(of: &[(u64, u64)]) -> u64 {
    of.iter().map(|extent| extent.1).sum()
}

fn records(pool: Pool, of: &[(u64, u64)]) -> Vec<ExtentRecord> {
    let record = |&(start, count): &(u64, u64)| {
        ExtentRecord::new(Extent { pool, start, count: count as u32 })
    };
    of.iter().map(record).collect()
}

impl Mount {
    /// Whether it has not been welcomed by anybody yet, and somebody is about to.
    #[must_use]
    pub fn is_greeting(&self) -> bool {
        self.caller.is_greeting()
    }

    /// The newest term whose leader has welcomed it.
    #[must_use]
    pub fn term(&self) -> Term {
        self.caller.link.term()
    }

    /// Whether it is merging something.
    #[must_use]
    pub fn is_merging(&self) -> bool {
        !self.compacting.is_idle()
    }

    /// Farewells said in this life.
    #[must_use]
    pub fn farewells(&self) -> u64 {
        self.farewells
    }

    /// What it is doing, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let client = self.caller.link.client();
        let waiting = self.locking.waiting();
        let (state, up) = (self.state, self.caller.link.is_up());
        let grants = self.grants();
        format!("{client:?} {state:?} waits {} up {up} {grants} locks, {waiting:?}", self.waits)
    }

    /// Locks granted in this life.
    #[must_use]
    pub fn grants(&self) -> u64 {
        self.locking.grants
    }

    /// Whether it has said farewell: it has nothing any more.
    fn is_leaving(&self) -> bool {
        self.caller.link.is_parted() || self.state == State::Farewell && self.waits
    }

    /// Whether it says nothing new any more.
    fn is_going(&self) -> bool {
        self.state == State::Farewell || self.caller.link.is_parted()
    }

    /// What it holds, whatever its lease.
    pub fn held(&self) -> impl Iterator<Item = (LockName, Mode)> + '_ {
        self.locking.held().filter(|_| !self.is_leaving())
    }

    /// Whether it uses this nameless inode.
    #[must_use]
    pub fn uses(&self, ino: u64) -> bool {
        !self.is_leaving() && self.locking.uses().contains(&ino)
    }

    /// When the question was made, on its clock, that its lease counts from, and the question under
    /// way.
    #[must_use]
    pub fn renewals(&self) -> (Instant, Option<Instant>) {
        self.locking.renewals()
    }

    fn client(&self) -> ClientId {
        self.caller.link.client().expect("greeted")
    }

    /// Decides on the next transaction, and logs it.
    fn plan_transaction(&mut self) -> bool {
        let have = &mut self.have;
        if sum(&have.runs) < 8 || sum(&have.run_ids) < 2 || have.data.is_empty() {
            return false;
        }
        let mut runs = Vec::new();
        for _ in 0..self.entropy.within(1..=2) {
            let Some((start, blocks)) = cut(&mut have.runs, RUN_BLOCKS) else { break };
            if blocks < RUN_BLOCKS {
                continue;
            }
            let (run, _) = cut(&mut have.run_ids, 1).expect("two are there");
            runs.push(self.maker.make(run, start, &mut self.entropy));
        }
        let most = self.setting.data_blocks;
        let used = cut(&mut have.data, self.entropy.within(1..=most));
        let used: Vec<_> = used.into_iter().collect();
        let mut freed = Vec::new();
        while have.used.len() > 3 {
            let at = self.entropy.below(have.used.len() as u64) as usize;
            freed.push(have.used.swap_remove(at));
        }
        have.used.extend(&used);
        let planned = Planned { seq: self.seq, runs, used, freed };
        self.writes = planned.blocks();
        let client = self.client();
        let number = self.transactions + 1;
        let runs = planned.runs.clone();
        self.log.borrow_mut().plan(client, number, runs, &planned.used, &planned.freed);
        self.have.next = Some(planned);
        self.note_lent(&mut self.log.borrow_mut());
        true
    }

    /// Starts what the state asks for.
    fn start(&mut self) {
        match self.state {
            State::Root => self.waits = self.caller.link.request(&ClientRequest::Root).is_ok(),
            State::Loan => {
                let number = self.loans_number + 1;
                let mut returned: Vec<(u64, u64)> = match self.entropy.below(4) {
                    0 => (0..2).filter_map(|_| cut(&mut self.have.data, 4)).collect(),
                    _ => Vec::new(),
                };
                // No order is promised.
                returned.reverse();
                let returned = records(Pool::Data, &returned);
                let returned = Extents::new(&returned).expect("sane");
                let (data_blocks, run_blocks) = (self.entropy.within(40..=120) as u32, 32);
                let (inodes, run_ids) = (10_240, 8);
                let request =
                    LoanRequest { number, data_blocks, run_blocks, inodes, run_ids, returned };
                self.caller.link.request(&ClientRequest::Loan(request)).expect("one at a time");
                self.note_lent(&mut self.log.borrow_mut());
                self.waits = true;
            }
            State::Writing => self.write_next(),
            State::Flushing => {
                let request = BlockRequest { tag: TAG_DATA, op: BlockOp::Flush };
                self.is_writing = true;
                self.actions.push_back(Action::Block(request));
                self.waits = true;
            }
            State::Transaction => {
                let planned = self.have.next.clone().expect("planned");
                let runs: Vec<_> =
                    planned.runs.iter().map(|run| RunRecord::new(&run.entry)).collect();
                let (used, freed) =
                    (records(Pool::Data, &planned.used), records(Pool::Data, &planned.freed));
                let transaction = Transaction::new(
                    self.transactions + 1,
                    planned.seq,
                    CommitNo(1),
                    &runs,
                    Extents::new(&used).expect("sane"),
                    Extents::new(&freed).expect("sane"),
                );
                let request = ClientRequest::Transaction(transaction.expect("sane"));
                self.caller.link.request(&request).expect("one at a time");
                self.waits = true;
            }
            State::Farewell => {
                // What was taken before must have been acknowledged, and nothing be under way.
                self.compacting.close();
                self.waits = self.compacting.is_idle()
                    && self.caller.link.request(&ClientRequest::Farewell).is_ok();
                if self.waits {
                    self.log.borrow_mut().gone(self.client());
                }
            }
        }
    }

    /// Writes the next block: of a run, or who it belongs to, all over.
    fn write_next(&mut self) {
        let Some(&blkno) = self.writes.front() else {
            self.state = State::Flushing;
            return;
        };
        let stamp = Log::stamp(self.client(), self.transactions + 1);
        let buffer = self.buffer.take().expect("one at a time");
        match self.have.next.as_ref().and_then(|planned| planned.block(blkno)) {
            Some(block) => buffer.0 = block.0,
            None => buffer.0.chunks_mut(16).for_each(|chunk| chunk.copy_from_slice(&stamp)),
        }
        let op = BlockOp::Write(BlockNo(blkno), buffer);
        self.is_writing = true;
        self.actions.push_back(Action::Block(BlockRequest { tag: TAG_DATA, op }));
        self.waits = true;
    }

    fn on_data(&mut self, done: Completion<'static>) {
        (self.waits, self.is_writing) = (false, false);
        match done.op {
            BlockOp::Write(_, buffer) => {
                self.buffer = Some(buffer);
                if done.result.is_ok() {
                    self.writes.pop_front();
                }
            }
            BlockOp::Flush if done.result.is_ok() => self.state = State::Transaction,
            BlockOp::Flush => self.restart_writes(),
            BlockOp::Read(..) => unreachable!("it reads nothing"),
        }
    }

    /// A failed flush says nothing of what was written before.
    fn restart_writes(&mut self) {
        let planned = self.have.next.as_ref().expect("planned");
        self.writes = planned.blocks();
        self.state = State::Writing;
    }

    /// Takes note of what is lent, for the checker.
    fn note_lent(&self, log: &mut Log) {
        if let Some(client) = self.caller.link.client() {
            log.has(client, self.have.data.iter().chain(&self.have.runs));
        }
    }

    /// Takes what is about locks and nameless inodes. Whether it was.
    fn on_lock_message(&mut self, now: Instant) -> bool {
        let client = self.caller.link.client().unwrap_or_default();
        let log = Rc::clone(&self.log);
        let mut log = log.borrow_mut();
        match self.caller.link.head() {
            Some(Incoming::Request(ServerRequest::LockTell(tell))) => {
                let ticket = self.caller.link.take(now).expect("it was there");
                let _ = self.caller.link.answer(ticket, &Outcome::Done(ClientAnswer::LockTell));
                self.locking.on_tell(now, &tell, &mut log);
            }
            Some(Incoming::Request(ServerRequest::Recover(from))) => {
                let ticket = self.caller.link.take(now).expect("it was there");
                self.locking.on_recover(now, &mut self.caller.link, ticket, from.into(), &mut log);
            }
            Some(Incoming::Request(ServerRequest::InUse(inos))) => {
                let answer = Outcome::Done(ClientAnswer::InUse(self.locking.in_use(&inos)));
                let ticket = self.caller.link.take(now).expect("it was there");
                let _ = self.caller.link.answer(ticket, &answer);
            }
            Some(Incoming::Answer(name, Outcome::Done(ServerAnswer::Statfs(_)))) => {
                self.locking.on_answer(now, name);
                let ticket = self.caller.link.take(now).expect("it was there");
                self.caller.link.recorded(ticket);
            }
            Some(Incoming::Answer(_, outcome)) => {
                let unused = match outcome {
                    Outcome::Done(ServerAnswer::Orphans(unused)) => Some(unused),
                    Outcome::Done(ServerAnswer::LockAsk) => None,
                    Outcome::Failed(ErrorCode::Busy, None) => None,
                    Outcome::Done(_) | Outcome::Failed(..) => return false,
                };
                let ticket = self.caller.link.take(now).expect("it was there");
                self.caller.link.recorded(ticket);
                if ticket.kind() == Kind::Orphans {
                    self.locking.on_orphans(unused, client, &mut log);
                }
            }
            Some(Incoming::Request(_)) | None => return false,
        }
        true
    }

    fn on_message(&mut self, now: Instant) {
        if self.compacting.on_message(now, &mut self.caller.link, &mut self.entropy)
            || self.on_lock_message(now)
        {
            return;
        }
        let client = self.caller.link.client().unwrap_or_default();
        let mut log = self.log.borrow_mut();
        match self.caller.link.head() {
            Some(Incoming::Answer(_, Outcome::Done(answer))) => match answer {
                ServerAnswer::Root(root) => {
                    (self.seq, self.state) = (root.seq_open, State::Loan);
                }
                ServerAnswer::Loan(loan) => {
                    self.loans_number += 1;
                    log.answered_loan(client, loan.number, self.loans_number);
                    for extent in loan.lent.iter() {
                        let extent_of = (extent.start, u64::from(extent.count));
                        match extent.pool {
                            Pool::Data => self.have.data.push(extent_of),
                            Pool::Runs => self.have.runs.push(extent_of),
                            Pool::RunIds => {
                                log.lent_ids(extent_of);
                                self.have.run_ids.push(extent_of);
                            }
                            Pool::Inodes => log.lent_inodes(extent_of),
                            Pool::Compaction => unreachable!("no message speaks of it"),
                        }
                    }
                    self.state = State::Writing;
                }
                ServerAnswer::Transaction(done) => {
                    self.transactions += 1;
                    log.answered(client, done.number, self.transactions);
                    log.opened(self.seq, done.seq_next, done.seq_stable);
                    log.recorded(client, done.number, done.seq_next);
                    log.saw(self.caller.link.term(), done.root.commit);
                    self.seq = done.seq_next;
                    self.have.next = None;
                    self.state = match self.transactions >= TRANSACTIONS {
                        true => State::Farewell,
                        false => State::Writing,
                    };
                }
                ServerAnswer::Farewell => {
                    self.farewells += 1;
                    log.parted(client);
                }
                ServerAnswer::LockAsk
                | ServerAnswer::Orphans(_)
                | ServerAnswer::Statfs(_)
                | ServerAnswer::Status(_)
                | ServerAnswer::CompactReady
                | ServerAnswer::Compacted
                | ServerAnswer::Fence
                | ServerAnswer::Clients(_)
                | ServerAnswer::Waits(_)
                | ServerAnswer::Pin(_) => {}
            },
            Some(Incoming::Answer(_, Outcome::Failed(error, _))) => {
                log.refused(client, error);
                // The volume is full of what mounts that crashed have left: go home.
                if self.state == State::Loan {
                    self.state = State::Farewell;
                }
                self.next_at = now.plus(SECOND);
            }
            Some(Incoming::Request(_)) | None => return,
        }
        self.note_lent(&mut log);
        drop(log);
        self.waits = false;
        let ticket = self.caller.link.take(now).expect("it was there");
        self.caller.link.recorded(ticket);
    }

    /// Comes back as another client.
    fn start_over(&mut self) {
        self.entropy.fill(&mut self.nonce);
        self.caller.link.restart(self.nonce);
        self.state = State::Root;
        (self.waits, self.transactions, self.loans_number) = (false, 0, 0);
        self.have = Have::default();
        self.writes.clear();
        self.compacting.drop_all();
        let grants = self.locking.grants;
        self.locking = Locking::new(self.setting.lease());
        self.locking.grants = grants;
    }

    fn step_work(&mut self, now: Instant) {
        if !self.caller.link.is_up()
            || self.waits
            || self.next_at > now
            || self.caller.link.is_parted()
        {
            return;
        }
        self.next_at = now.plus(self.setting.rest);
        if self.state == State::Writing && self.have.next.is_none() && !self.plan_transaction() {
            self.state = State::Loan;
        }
        self.start();
    }

    fn step_connection(&mut self, now: Instant) {
        self.evicted |= self.caller.step(now, &mut self.actions);
        if self.evicted && !self.is_writing {
            self.evicted = false;
            self.log.borrow_mut().evicted(self.caller.link.client().unwrap_or_default());
            self.start_over();
        }
        if !self.caller.is_dialing() && self.caller.link.is_parted() && self.caller.link.is_idle() {
            self.start_over();
        }
        if !self.evicted {
            self.caller.dial(now, &mut self.actions);
        }
    }
}

impl Node<'static> for Mount {
    fn handle(&mut self, now: Instant, event: Event<'static>) {
        match event {
            Event::Completed(done) if done.tag == TAG_DATA => self.on_data(done),
            Event::Completed(done) if done.tag.0 >= compact::TAG_BASE => {
                self.compacting.handle_completion(done);
            }
            event => self.caller.handle(now, event, &mut self.entropy, &mut self.actions),
        }
    }

    fn step(&mut self, now: Instant) -> More {
        self.step_connection(now);
        while let Some(event) = self.caller.link.poll_event() {
            match event {
                LinkEvent::Up { term, client, renewed } => {
                    if renewed {
                        self.compacting.drop_all();
                    }
                    let mut log = self.log.borrow_mut();
                    log.greeted(client, self.nonce, self.boots);
                    self.locking.on_up(term, &mut log);
                }
                LinkEvent::Message => self.on_message(now),
            }
        }
        self.step_work(now);
        let leaving = self.is_going();
        if !self.evicted {
            let mut log = self.log.borrow_mut();
            self.locking.step(now, &mut self.caller.link, leaving, &mut self.entropy, &mut log);
        }
        self.stepped = now;
        let mut more = More::No;
        if !self.evicted {
            more = self.compacting.step(now, &mut self.caller.link, leaving);
        }
        self.caller.link.step(now);
        while let Some(request) = self.compacting.poll_request() {
            self.actions.push_back(Action::Block(request));
        }
        self.caller.poll_requests(now, &mut self.actions);
        more
    }

    fn poll_action(&mut self) -> Option<Action<'static>> {
        self.actions.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let works = self.caller.link.is_up() && !self.waits && !self.caller.link.is_parted();
        let work = works.then_some(self.next_at);
        let up = self.caller.link.is_up() && !self.caller.link.is_parted();
        let locks = up.then(|| self.locking.timeout(self.stepped)).flatten();
        let compacting = up.then(|| self.compacting.timeout(&self.caller.link, self.is_going()));
        let times = [work, locks, compacting.flatten(), self.caller.poll_timeout()];
        times.into_iter().flatten().min()
    }

    fn recv_space(&mut self, stream: StreamId) -> &mut [u8] {
        self.caller.link.recv_space(stream)
    }

    fn send_bytes(&self, stream: StreamId) -> &[u8] {
        self.caller.link.send_bytes(stream)
    }
}
