//! The end of a mount, against a server that a test plays: it greets and refuses as told.

extern crate std;

use super::{Mount, MountConfig, MountLimits, MountState, MountTiming};
use crate::arena::Arena;
use crate::arena::tests::region;
use crate::client::op::{Answer, Caller, Op, OpError, Request, RequestId};
use crate::format::item::Time;
use crate::format::layout::QUORUM_BLKNO;
use crate::format::quorum::{Ballot, BootId, HostId, Incarnation, LEASE_MS_MAX, Slot, State};
use crate::format::super_block::tests::identity;
use crate::format::super_block::{LEASE_MS_MIN, Super, recovery_ms_min};
use crate::format::wire::ErrorCode;
use crate::format::wire::greeting::{Greeting, Machine};
use crate::format::wire::message::{
    ClientRequest, Extents, ManifestRoot, Outcome, RootNow, ServerAnswer, TransactionDone,
};
use crate::format::{ClientId, CommitNo, Ino, Seq, Term};
use crate::mutant::{Mutant, activate};
use crate::net::{
    Cluster, ClusterKey, Incoming, LineLimits, Links, LinksConfig, LinksEvent, LinksLimits,
    SessionLimits, Timing,
};
use crate::node::{Action, Event, Node};
use crate::quorum;
use core::time::Duration;
use outrider_hal::{BlockOp, Completion, Instant, StreamId};
use std::vec::Vec;

const CLIENT: ClientId = ClientId(7);
/// The term of the server.
const TERM: Term = Term::new(5, 0);
const STEP: Duration = Duration::from_millis(20);

/// What the server does.
#[derive(Debug, Clone, Copy, Default)]
struct Manners {
    transactions: Option<ErrorCode>,
    loans: Option<ErrorCode>,
    farewells: Option<ErrorCode>,
    /// It has given the client up.
    evicted: bool,
    /// It is gone, and this is what it has left.
    gone: bool,
    ballot: Option<Ballot>,
}

struct Rig {
    volume: Super,
    mount: Mount<'static>,
    links: Links<'static>,
    manners: Manners,
    now: Instant,
    streams: u64,
    stream: Option<StreamId>,
    greetings: Vec<Greeting>,
    transactions: u32,
    loans: u32,
    farewells: u32,
    /// What the platform was told, once it has looked.
    answers: Vec<(RequestId, Result<(), OpError>)>,
    looks: bool,
}

impl Rig {
    fn new() -> Rig {
        let volume = Super::new(&identity()).unwrap();
        let config = MountConfig {
            volume,
            quorum: quorum::Timing::NORMAL,
            net: Timing::DEFAULT,
            timing: MountTiming::NORMAL,
            nonce: [3; 16],
            machine: Machine::default(),
            secret: [4; 32],
            read_only: false,
        };
        let limits = LinksLimits {
            clients_max: 2,
            guests_max: 1,
            half_open_max: 2,
            session: SessionLimits { asks_max: 8, answers_max: 32 },
            line: LineLimits::MIN,
        };
        let carve = |arena: &mut Arena<'static>| {
            let cluster = Cluster::new(volume.fsid(), ClusterKey(volume.fields().cluster_key));
            let links = LinksConfig { cluster, timing: Timing::DEFAULT };
            let links = Links::carve(arena, limits, links).unwrap();
            (Mount::carve(arena, &MountLimits::small(), &config).unwrap(), links)
        };
        let mut measure = Arena::measuring();
        carve(&mut measure);
        let (mount, mut links) = carve(&mut Arena::new(region(measure.bytes_used())).unwrap());
        links.begin(TERM);
        Rig {
            volume,
            mount,
            links,
            manners: Manners::default(),
            now: Instant(1),
            streams: 0,
            stream: None,
            greetings: Vec::new(),
            transactions: 0,
            loans: 0,
            farewells: 0,
            answers: Vec::new(),
            looks: true,
        }
    }

    fn run(&mut self, how_long: Duration) {
        let end = self.now.plus(how_long);
        while self.now < end {
            self.now = self.now.plus(STEP);
            self.turn();
        }
    }

    fn turn(&mut self) {
        let _ = self.mount.step(self.now);
        while let Some(action) = self.mount.poll_action() {
            match action {
                Action::Block(mut request) => {
                    if let BlockOp::Read(at, block) = &mut request.op
                        && let Some(ballot) = self.manners.ballot
                        && *at == ballot.slot.blkno(QUORUM_BLKNO)
                    {
                        ballot.emit(block, &self.volume.volume(), QUORUM_BLKNO);
                    }
                    let done = Completion { tag: request.tag, op: request.op, result: Ok(()) };
                    self.mount.handle(self.now, Event::Completed(done));
                }
                Action::Close(stream) => {
                    self.links.closed(stream);
                    self.stream = None;
                }
                // Nobody is where it knocks.
                Action::Connect { attempt, .. } => {
                    self.mount.handle(self.now, Event::ConnectFailed { attempt });
                }
                action => panic!("{action:?}"),
            }
        }
        while self.looks
            && let Some((id, answer)) = self.mount.poll_answer()
        {
            let Answer::Done { result, .. } = answer else { panic!("nothing is moved") };
            self.answers.push((id, result.map(drop)));
        }
        self.connect();
        if let Some(stream) = self.stream {
            self.carry(stream);
        }
        self.links.step(self.now);
        while let Some((stream, _)) = self.links.poll_close() {
            self.mount.handle(self.now, Event::Closed(stream));
            self.stream = None;
        }
        while let Some(event) = self.links.poll_event() {
            match event {
                LinksEvent::Greeted(stream, greeting) => self.on_greeted(stream, &greeting),
                LinksEvent::Message(session) => self.on_message(session),
                LinksEvent::Up(_) | LinksEvent::Down(..) => {}
            }
        }
    }

    /// Where servers are is not asked here.
    fn connect(&mut self) {
        let stream = StreamId(self.streams + 1);
        if !self.manners.gone && self.mount.way.greet(self.now, stream) {
            self.streams += 1;
            self.stream = Some(stream);
            assert_eq!(self.links.accept(self.now, stream, [self.streams as u8; 16]), Ok(None));
        }
    }

    fn carry(&mut self, stream: StreamId) {
        let bytes = self.mount.send_bytes(stream).to_vec();
        let space = self.links.recv_space(stream);
        let len = bytes.len().min(space.len());
        space[..len].copy_from_slice(&bytes[..len]);
        self.links.received(self.now, stream, len);
        self.mount.handle(self.now, Event::Sent { stream, len });
        let bytes = self.links.send_bytes(stream).to_vec();
        let space = self.mount.recv_space(stream);
        let len = bytes.len().min(space.len());
        space[..len].copy_from_slice(&bytes[..len]);
        self.links.sent(stream, len);
        self.mount.handle(self.now, Event::Received { stream, len });
    }

    fn on_greeted(&mut self, stream: StreamId, greeting: &Greeting) {
        self.greetings.push(*greeting);
        if self.manners.evicted && !greeting.farewell {
            return self.links.refuse(self.now, stream, ErrorCode::Evicted);
        }
        self.links.admit(self.now, stream, CLIENT).unwrap();
    }

    fn on_message(&mut self, session: crate::net::SessionId) {
        let root = ManifestRoot { commit: CommitNo(1), ..ManifestRoot::default() };
        let refused = |error: Option<ErrorCode>, answer| match error {
            Some(error) => Outcome::Failed(error, None),
            None => Outcome::Done(answer),
        };
        let answer = match self.links.head(session) {
            Some(Incoming::Request(ClientRequest::Root)) => {
                let (seq_stable, seq_open) = (Seq(0), Seq(5));
                Outcome::Done(ServerAnswer::Root(RootNow { root, seq_stable, seq_open }))
            }
            Some(Incoming::Request(ClientRequest::Loan(_))) => {
                self.loans += 1;
                Outcome::Failed(self.manners.loans.unwrap_or(ErrorCode::NoSpace), None)
            }
            Some(Incoming::Request(ClientRequest::Transaction(request))) => {
                self.transactions += 1;
                let (number, seq_next, seq_stable) = (request.number, Seq(9), Seq(0));
                let lent = Extents::default();
                let done = TransactionDone { number, seq_next, seq_stable, root, lent };
                refused(self.manners.transactions, ServerAnswer::Transaction(done))
            }
            Some(Incoming::Request(ClientRequest::Farewell)) => {
                self.farewells += 1;
                refused(self.manners.farewells, ServerAnswer::Farewell)
            }
            Some(Incoming::Request(ClientRequest::CompactReady(_))) => {
                Outcome::Done(ServerAnswer::CompactReady)
            }
            Some(Incoming::Request(ClientRequest::LockAsk(_))) => {
                Outcome::Done(ServerAnswer::LockAsk)
            }
            other => panic!("{other:?}"),
        };
        let ticket = self.links.take(self.now, session).unwrap();
        self.links.answer(session, ticket, &answer).unwrap();
    }

    /// Asks for something that waits, because no lock is ever granted.
    fn ask(&mut self, id: u64) -> bool {
        let (caller, now) = (Caller::new(0, 0, 0), Time::default());
        let op = Op::Getattr { ino: Ino(1) };
        let request = Request { caller, now, op, lent: None };
        self.mount.submit(self.now, RequestId(id), request).is_ok()
    }

    fn mounted() -> Rig {
        let mut rig = Rig::new();
        rig.run(Duration::from_secs(1));
        assert_eq!(rig.mount.state(), MountState::Mounted);
        assert!(rig.ask(1));
        rig.run(Duration::from_secs(1));
        assert!(rig.answers.is_empty());
        rig
    }

    /// Somebody waits for a commit, though nothing is dirty.
    fn want_commit(&mut self) {
        self.mount.due.for_lock = true;
    }

    fn evict(&mut self) {
        self.manners.evicted = true;
        let session = self.links.find(CLIENT).unwrap();
        self.links.dismiss(session);
    }
}

#[test]
fn a_mount_that_is_refused_for_good_gives_up_and_says_so() {
    for error in [ErrorCode::Invalid, ErrorCode::Stale, ErrorCode::TooMany] {
        let mut rig = Rig::mounted();
        let before = rig.transactions;
        rig.manners.transactions = Some(error);
        for _ in 0..20 {
            rig.want_commit();
            rig.run(Duration::from_secs(1));
        }
        assert_eq!(rig.transactions - before, 4, "it has tried a few times");
        assert_eq!((rig.mount.state(), rig.mount.refusal()), (MountState::Refused, Some(error)));
        assert_eq!(rig.answers, [(RequestId(1), Err(OpError::Io))], "who waited was told");
        assert!(!rig.ask(2), "and nothing more is taken");
        // What it was lent is not kept for it, and it looks for no server any more.
        assert!(rig.mount.has_parted());
        assert_eq!((rig.farewells, rig.greetings.len()), (1, 1));
        rig.mount.leave(rig.now);
        rig.run(Duration::from_secs(1));
        assert_eq!(rig.mount.state(), MountState::Refused);
    }
}

#[test]
fn trouble_that_passes_is_waited_for() {
    for error in [ErrorCode::Busy, ErrorCode::Io, ErrorCode::NoSpace] {
        let mut rig = Rig::mounted();
        rig.manners.transactions = Some(error);
        rig.manners.loans = Some(error);
        // An answer may be on its way.
        rig.run(STEP * 5);
        let before = rig.mount.counters().commits;
        for _ in 0..20 {
            rig.want_commit();
            rig.run(Duration::from_secs(1));
        }
        assert!(rig.transactions > 10 && rig.loans > 10);
        assert_eq!(
            (rig.mount.state(), rig.mount.counters().commits),
            (MountState::Mounted, before)
        );
        rig.manners = Manners::default();
        rig.want_commit();
        rig.run(Duration::from_secs(1));
        assert!(rig.mount.counters().commits > before);
    }
}

#[test]
fn refusals_with_a_success_between_them_are_forgotten() {
    let mut rig = Rig::mounted();
    for round in 0..20 {
        rig.manners.transactions = (round % 3 > 0).then_some(ErrorCode::Invalid);
        rig.want_commit();
        // Not as long as a pause and a half: one try in each round.
        rig.run(Duration::from_millis(700));
    }
    assert_eq!(rig.mount.state(), MountState::Mounted);
}

#[test]
fn a_mount_whose_loans_are_refused_for_good_gives_up_too() {
    let mut rig = Rig::mounted();
    rig.manners.loans = Some(ErrorCode::TooMany);
    rig.run(Duration::from_secs(20));
    assert_eq!(rig.mount.state(), MountState::Mounted, "that passes when some are used");
    rig.manners.loans = Some(ErrorCode::Invalid);
    rig.run(Duration::from_secs(20));
    assert_eq!(rig.mount.refusal(), Some(ErrorCode::Invalid));
    assert!(rig.mount.has_parted());
}

#[test]
fn who_is_evicted_says_farewell_when_nothing_of_it_is_under_way() {
    let mut rig = Rig::mounted();
    rig.looks = false;
    rig.evict();
    rig.run(Duration::from_secs(10));
    assert_eq!(rig.mount.state(), MountState::Evicted);
    assert_eq!(rig.farewells, 0, "the platform has something of it still");
    let greeted = rig.greetings.len();
    rig.looks = true;
    rig.run(Duration::from_secs(1));
    assert_eq!(rig.answers, [(RequestId(1), Err(OpError::Io))]);
    let [farewell] = rig.greetings[greeted..] else { panic!("{:?}", rig.greetings) };
    assert!(farewell.farewell && farewell.client == Some(CLIENT));
    assert!(rig.mount.has_parted() && rig.farewells == 1);
    assert_eq!(rig.mount.state(), MountState::Evicted, "for its users nothing has changed");
    rig.run(Duration::from_secs(60));
    assert_eq!(rig.greetings.len(), greeted + 1, "and it asks for nothing more");
}

/// What the voter of slot 0 shows that has stopped, and held this term last.
fn stopped(held: Term, vacant: bool) -> Ballot {
    Ballot {
        slot: Slot::ALL[0],
        seq: 9,
        state: State::Stopped,
        term: held,
        held,
        highest_round: 9,
        config_gen: 1,
        confirmed: (TERM, CommitNo(1)),
        lease_ms: 1000,
        mounts: 0,
        incarnation: Incarnation([1; 16]),
        host: HostId([2; 16]),
        boot: BootId([3; 16]),
        endpoint: None,
        leaving: false,
        vacant,
    }
}

/// A mount whose server is gone for ever, and has left this, says farewell: whether it waits.
fn waits(life: MountState, held: Term, vacant: bool) -> bool {
    let mut rig = Rig::new();
    rig.run(Duration::from_secs(1));
    rig.manners.farewells = Some(ErrorCode::Busy);
    if life == MountState::Evicted {
        rig.evict();
    } else if life == MountState::Refused {
        rig.manners.transactions = Some(ErrorCode::Invalid);
    } else {
        rig.mount.leave(rig.now);
    }
    for _ in 0..10 {
        // Only a mount that goes on working has anything to commit.
        if life == MountState::Refused {
            rig.want_commit();
        }
        rig.run(Duration::from_secs(1));
    }
    assert!(rig.farewells > 0);
    assert_eq!(rig.mount.state(), life);
    let ballot = Some(stopped(held, vacant));
    rig.manners = Manners { gone: true, ballot, ..rig.manners };
    rig.mount.way.link.disconnect();
    rig.run(Duration::from_secs(60));
    let ended = rig.mount.has_parted();
    let end = if life == MountState::Leaving && ended { MountState::Left } else { life };
    assert_eq!(rig.mount.state(), end);
    // It looks for nobody any more.
    assert_eq!(rig.mount.way.watcher.is_looking(), !ended);
    !ended
}

#[test]
fn a_farewell_is_over_when_a_leader_since_the_welcome_has_left_nobody_recorded() {
    for life in [MountState::Leaving, MountState::Evicted, MountState::Refused] {
        for later in [TERM, Term::new(7, 0)] {
            assert!(!waits(life, later, true), "{life:?} {later:?}");
            assert!(waits(life, later, false), "{life:?} {later:?}");
        }
    }
}

#[test]
fn who_believes_an_earlier_vacancy_would_leave_its_record_behind() {
    let earlier = Term::new(4, 0);
    assert!(waits(MountState::Leaving, earlier, true));
    activate(Some(Mutant::VacancyBeforeWelcome));
    assert!(!waits(MountState::Leaving, earlier, true));
    activate(None);
}

#[test]
fn a_farewell_is_said_until_it_is_heard() {
    for evicted in [true, false] {
        let mut rig = Rig::mounted();
        rig.manners.farewells = Some(ErrorCode::Busy);
        rig.manners.transactions = Some(ErrorCode::Invalid);
        if evicted {
            rig.evict();
        }
        for _ in 0..10 {
            rig.want_commit();
            rig.run(Duration::from_secs(1));
        }
        assert!(rig.farewells > 3 && rig.farewells < 30, "{}", rig.farewells);
        // Connections break meanwhile.
        rig.mount.way.link.disconnect();
        rig.run(Duration::from_secs(3));
        rig.manners.farewells = None;
        rig.run(Duration::from_secs(3));
        assert!(rig.mount.has_parted());
    }
}

#[test]
fn who_is_refused_and_then_evicted_parts_too() {
    let mut rig = Rig::mounted();
    rig.looks = false;
    rig.manners.transactions = Some(ErrorCode::Stale);
    for _ in 0..4 {
        rig.want_commit();
        rig.run(Duration::from_secs(1));
    }
    assert_eq!(rig.mount.state(), MountState::Refused);
    rig.evict();
    rig.run(Duration::from_secs(5));
    assert_eq!(rig.mount.state(), MountState::Evicted);
    rig.looks = true;
    rig.run(Duration::from_secs(5));
    assert!(rig.mount.has_parted());
}

/// Inequality I8 of `PROOFS.md`: a leader that did not notice its pause renews the lease of a mount
/// for the last time when it has read the claims, which it does once per lease, and only while that
/// mount has not given up the connection. By then no successor has evicted the mount.
#[test]
fn a_lease_that_a_stopped_leader_renews_is_over_before_its_successor_evicts_the_mount() {
    let ms = |count: u32| Duration::from_millis(count.into());
    let (slow, fast) = (100 + quorum::DRIFT_PERCENT, 100 - quorum::DRIFT_PERCENT);
    for lease_ms in (LEASE_MS_MIN..=LEASE_MS_MAX).step_by(50) {
        let election = quorum::Timing::of_lease(lease_ms);
        let recovery = ms(recovery_ms_min(lease_ms));
        let mount = MountTiming::of_recovery(recovery);
        assert!(mount.is_valid());
        let answers = Timing::DEFAULT.silence + 2 * ms(election.lease_ms) + mount.lease;
        let evicted = ms(election.observe_ms) + recovery;
        assert!(answers * slow < evicted * fast, "a lease of {lease_ms} ms");
    }
}
