//! The metadata server: a voter that, while it is elected, carries out what mounts ask.
//!
//! ```text
//!              Elected            root found       first commit           records read
//!   Following --------> Loading -----------> TakingOver -------> Reading -----------> Serving
//!       ^                  |                     |    confirmed     |                    |
//!       |                  +---------------------+------------------+--------------------+
//!       |                         deposed, or anything failed       v
//!       +------------------------------------------------------- Draining
//!                    all I/O has ended and is flushed: resign
//!
//!     stop() leads from anywhere through Draining, if there is a term to end; then the voter lets
//!     go of its slot, and nothing begins any more.
//! ```
//!
//! # Invariants
//!
//! * All that a term has in memory dies with it: requests are dropped unanswered, connections are
//!   closed, and the next term starts from the disk.
//! * Nothing is submitted for the store, nothing taken from a client and nothing answered unless
//!   the voter says that the server may act, asked with the time of this very step.
//! * What changes the volume is answered when the commit it joined is durable *and* a reading of
//!   the claims that began after that shows no later leader. Nobody is admitted before that holds
//!   for the first commit of the term. A request is refused because of a damaged block only after
//!   such a reading, too.
//! * It listens for as long as its voter takes part, whether it leads or not: whoever knocks is
//!   heard, which stands in the voter's block, and whoever wants more is sent away.
//! * Requests that joined a commit are answered in the order of commits; one commit is shared by
//!   all that came while the one before it was under way.
//! * Locks, evictions, readers and questions about nameless inodes are in files of their own; here
//!   is only where they are called.
//!
//! * A transaction that brings runs waits while level 0 is far above its threshold and merging goes
//!   on. Nothing that merging needs waits for a client.
//! * What is freed is free soon: see `jobs`.
//!
//! What this module deliberately doesn't know: sockets, the device, and the clock.

mod claims;
mod compact;
mod config;
mod events;
mod evict;
mod fence;
mod holder;
mod jobs;
mod knocks;
mod leaving;
mod limits;
mod listening;
mod locks;
mod merge;
mod orphans;
mod readers;
mod reports;
mod requests;
mod table;
mod work;

pub use config::{ServerConfig, ServerTiming, StartError};
pub use events::ServerEvent;
pub use fence::Fence;
pub use limits::{LimitsError, PLAN_CREATES, PLAN_PINS, ServerLimits};

use crate::arena::Arena;
use crate::block::RequestId;
use crate::error::Error;
use crate::format::layout::QUORUM_BLKNO;
use crate::format::quorum::Slot;
use crate::format::wire::ErrorCode;
use crate::format::wire::greeting::{Greeting, RANDOM_BYTES, Role};
use crate::format::wire::message::{
    ClientRequest, Emitter, Extents, Loan, ManifestRoot, Outcome, Payload, RootNow, ServerAnswer,
    TransactionDone,
};
use crate::format::{ClientId, CommitNo, Seq, Term};
use crate::mutant::{Mutant, is_active};
use crate::net::{
    Cluster, ClusterKey, Incoming, Links, LinksConfig, LinksEvent, LinksLimits, SessionId,
};
use crate::node::{Action, Event, More, Node};
use crate::quorum::{self, Notice, Slots, Voter, VoterBlocks};
use crate::txn::store::{Store, StoreEvent};
use blake2::{Blake2s256, Digest};
use claims::Claims;
use compact::{Helper, Planner};
use events::Events;
use heapless::{Deque, Vec};
use jobs::Tidying;
use knocks::Knocks;
use listening::Listening;
use locks::{Breach, Locks};
use merge::{Merger, Outcome as MergeOutcome};
use orphans::Orphans;
use outrider_hal::{BlockOp, BlockRequest, Completion, Endpoint, Instant, StreamId, Tag};
use readers::Readers;
use requests::Scratch;
use table::{Member, Members, Stage, Standing, Table, Work};

/// Actions decided on and not yet given out.
const ACTIONS: usize = 64;
/// Requests run in a step.
const RUNS_PER_STEP: u32 = 64;
/// Steps of the store in a step.
const STORE_STEPS: u32 = 64;
/// Transfers submitted again, after they failed, for each commit. A flush never is: it would not
/// tell that what the one before it lost is there.
const RETRIES_MAX: u32 = 64;
/// The flush before a resignation. The voter's tags lie between the store's and this.
const TAG_FLUSH: Tag = Tag(Store::TAGS + Voter::TAGS);
/// Tags of the merge's writes begin here.
const TAG_MERGE: Tag = Tag(TAG_FLUSH.0 + 1);
const _: () = assert!(TAG_MERGE.0.checked_add(Merger::TAGS).is_some());

/// What has been merged since a server started, for status and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MergeCounters {
    /// Merges, those that only moved a run counted.
    pub merges: u64,
    /// Of these, runs that were moved as they are.
    pub moves: u64,
    /// Of these, those that clients made.
    pub by_clients: u64,
    /// Merges that were given up.
    pub failures: u64,
    /// Blocks that the server wrote for its own.
    pub blocks: u64,
    /// Times a client was asked.
    pub asked: u64,
    /// Times it would not.
    pub refused: u64,
    /// Compactions given to another because their client was not heard of.
    pub lost: u64,
    /// Those that a client may have been at work on when it was evicted, lost ones included.
    pub evicted: u64,
    /// Those that a term ended with.
    pub dropped: u64,
    /// Results that could not be.
    pub rejected: u64,
    /// Results that nobody counted on any more.
    pub late: u64,
    /// Results for numbers of which nothing was known.
    pub unknown: u64,
    /// Results whose inputs were gone. None, unless there is a mistake in this code.
    pub contradictions: u64,
}

/// What a server has done since it started, for status and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Terms it was elected in.
    pub elections: u64,
    /// Terms in which it came to serve.
    pub terms_served: u64,
    /// Terms that ended against its will: its lease was over, or another leads.
    pub terms_lost: u64,
    /// Commits confirmed.
    pub commits: u64,
    /// Transactions and loans carried out, those answered again included.
    pub requests: u64,
    /// Requests refused.
    pub refused: u64,
    /// Requests that died with their term.
    pub dropped: u64,
    /// Times its endpoint could not be listened at.
    pub listen_failures: u64,
    /// Freed extents that were forgotten: some of each was free already.
    pub freed_twice: u64,
    /// Lists of freed extents that can't be read.
    pub freed_unreadable: u64,
    /// Transactions that were held back.
    pub held: u64,
    /// What was merged.
    pub merging: MergeCounters,
    /// Clients that it began to evict.
    pub evictions: u64,
    /// Knocks heard.
    pub knocks: u64,
    /// Clients that were fenced.
    pub fences: u64,
    /// Pins that readers had, and lost to the need of others.
    pub pins_lost: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Following,
    Loading(Term),
    TakingOver(Term),
    Reading(Term),
    Serving(Term),
    /// Until nothing is in flight. Then a flush, if one is still to be done, at this time.
    Draining {
        flush: Option<Instant>,
    },
}

/// The last numbers such that what is still to become durable bears later ones.
#[derive(Debug, Clone, Copy, Default)]
struct Stable {
    /// As the commit under way has it.
    closed: Seq,
    /// As the confirmed one has it.
    confirmed: Seq,
}

/// The server. See the module.
pub struct Server<'m> {
    config: ServerConfig,
    endpoint: Endpoint,
    voter: Voter<'m>,
    store: Store<'m>,
    links: Links<'m>,
    table: Table<'m>,
    members: Members<'m>,
    locks: Locks<'m>,
    orphans: Orphans<'m>,
    scratch: Option<&'m mut Scratch>,
    planner: Planner<'m>,
    merger: Merger<'m>,
    readers: Readers<'m>,
    phase: Phase,
    actions: Deque<Action<'m>, ACTIONS>,
    /// Connections that had to make room.
    closes: Deque<StreamId, 16>,
    /// Requests of the store, and the last flush, that have not completed.
    in_flight: u32,
    /// Reads and writes that failed, and are to be submitted again.
    retries: Deque<Completion<'m>, 16>,
    /// How many more may be, until the next commit is confirmed.
    retries_left: u32,
    /// Something was written since the term began.
    written: bool,
    stable: Stable,
    /// When the open commit is to be ended.
    commit_at: Option<Instant>,
    /// The last commit that was confirmed in this term.
    confirmed: CommitNo,
    /// Its manifest.
    root_confirmed: ManifestRoot,
    claims: Claims,
    tidying: Tidying,
    /// When quarantined space is looked at again.
    release_at: Option<Instant>,
    /// Requests in [`Stage::Held`].
    held: u32,
    listening: Listening,
    /// Since when it can be heard as the leader.
    listening_since: Option<Instant>,
    knocks: Knocks<'m>,
    serving_since: Instant,
    /// Whom the platform was asked to cut off, and has not answered for.
    fencing: Option<ClientId>,
    /// It was told to stop.
    stopping: bool,
    /// It is to stop when nobody needs it. Since when that is so, and it serves nobody.
    leaving: Option<Instant>,
    events: Events,
    draws: u64,
    counters: Counters,
}

impl<'m> Server<'m> {
    /// Carves a server of valid limits, or measures it.
    pub fn carve(
        arena: &mut Arena<'m>,
        limits: &ServerLimits,
        config: &ServerConfig,
    ) -> Result<Server<'m>, StartError> {
        limits.validate().map_err(StartError::Limits)?;
        let volume = &config.volume;
        if !volume.is_writable() {
            return Err(StartError::ReadOnly);
        }
        let voters = Slot::ALL.into_iter().filter(|slot| volume.voter(slot.number()).is_some());
        let voters = voters.fold(Slots::NONE, Slots::with);
        let endpoint = volume.voter(config.slot.number());
        let endpoint = endpoint.ok_or(StartError::Voter(quorum::ConfigError::NotAVoter))?;
        let voter = quorum::Config {
            volume: volume.volume(),
            base: QUORUM_BLKNO,
            slot: config.slot,
            voters,
            config_gen: volume.generation(),
            timing: config.quorum,
            tag_base: Store::TAGS,
        };
        let blocks = VoterBlocks::carve(arena)?;
        let links = LinksConfig {
            cluster: Cluster::new(volume.fsid(), ClusterKey(volume.fields().cluster_key)),
            timing: config.net,
        };
        let job = RequestId { index: 0, generation: 0 };
        Ok(Server {
            config: *config,
            endpoint,
            voter: Voter::new(voter, config.identity, blocks).map_err(StartError::Voter)?,
            store: Store::carve(arena, &limits.cache, volume, job)?,
            links: Links::carve(arena, limits.links, links)?,
            table: Table::carve(arena, limits)?,
            members: Members::carve(arena, limits.links.clients_max.into())?,
            locks: {
                let LinksLimits { clients_max, session, .. } = limits.links;
                Locks::carve(arena, &limits.locks, clients_max, session.answers_max)?
            },
            orphans: Orphans::carve(arena, limits.links.clients_max.into())?,
            scratch: arena.slice(1, |_| Scratch::default())?.first_mut(),
            planner: Planner::carve(arena, limits)?,
            merger: Merger::carve(arena, limits, volume)?,
            readers: Readers::carve(arena, limits)?,
            phase: Phase::Following,
            actions: Deque::new(),
            closes: Deque::new(),
            in_flight: 0,
            retries: Deque::new(),
            retries_left: 0,
            written: false,
            stable: Stable::default(),
            commit_at: None,
            confirmed: CommitNo(0),
            root_confirmed: ManifestRoot::default(),
            claims: Claims::default(),
            tidying: Tidying::NEW,
            release_at: None,
            held: 0,
            listening: Listening::Shut,
            listening_since: None,
            knocks: {
                let lifetime = config.quorum.knock_lifetime();
                Knocks::carve(arena, limits.links.clients_max.into(), lifetime)?
            },
            serving_since: Instant(0),
            fencing: None,
            stopping: false,
            leaving: None,
            events: Events::default(),
            draws: 0,
            counters: Counters::default(),
        })
    }

    /// What it has done.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let blocks = self.merger.blocks();
        let merging = MergeCounters { blocks, ..self.planner.counters() };
        Counters { merging, ..self.counters }
    }

    /// The term in which it serves, if it does.
    #[must_use]
    pub fn serving(&self) -> Option<Term> {
        match self.phase {
            Phase::Serving(term) => Some(term),
            Phase::Following
            | Phase::Loading(_)
            | Phase::TakingOver(_)
            | Phase::Reading(_)
            | Phase::Draining { .. } => None,
        }
    }

    /// The newest root that is durable, and the number of the commit that was confirmed last.
    #[must_use]
    pub fn store(&self) -> &Store<'m> {
        &self.store
    }

    /// The voter.
    #[must_use]
    pub fn voter(&self) -> &Voter<'m> {
        &self.voter
    }

    /// What has happened, oldest first.
    pub fn poll_event(&mut self) -> Option<ServerEvent> {
        self.events.pop()
    }

    /// Ends its term, if it is in one, and lets go of its slot, which a later start then takes at
    /// once. It [`is_over`](Self::is_over) when that is durable.
    pub fn stop(&mut self) {
        self.stopping = true;
        self.end_term();
        if self.phase == Phase::Following {
            self.voter.stop();
        }
    }

    /// Whether it holds no office and nothing of the last one is in flight, its voter's own block
    /// aside.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.phase == Phase::Following && self.in_flight == 0
    }

    /// Whether it does nothing any more, for its last event's reason: it was stopped, or refused.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.voter.role(), quorum::Role::Stopped | quorum::Role::Refused(_))
            && self.voter.is_quiescent()
            && self.phase == Phase::Following
    }

    fn is_in_office(&self) -> bool {
        !matches!(self.phase, Phase::Following | Phase::Draining { .. })
    }

    /// The term is over: what it had in memory dies.
    fn end_term(&mut self) {
        if !self.is_in_office() {
            return;
        }
        if let Some(term) = self.serving().filter(|_| self.members.all().is_empty()) {
            self.voter.vacated(term);
        }
        let dropped = self.table.slots.iter().filter(|slot| slot.stage != Stage::Free).count();
        self.counters.dropped += dropped as u64;
        self.table.clear(&mut self.store.cache);
        self.merger.reset();
        self.planner.reset();
        (self.held, self.tidying, self.release_at) = (0, Tidying::NEW, None);
        self.members.clear();
        self.locks.reset();
        self.orphans.reset();
        self.readers.reset();
        self.listening_since = None;
        self.links.begin(Term::NONE);
        self.commit_at = None;
        self.claims.reset();
        while let Some(failed) = self.retries.pop_front() {
            self.on_transferred(failed);
        }
        self.phase = Phase::Draining { flush: self.written.then_some(Instant(0)) };
    }

    /// Goes on ending a term, whose I/O may still be under way.
    fn step_draining(&mut self, now: Instant) {
        let Phase::Draining { flush } = self.phase else { return };
        match flush {
            _ if self.in_flight > 0 => {}
            Some(at) if at > now => {}
            Some(_) => {
                let request = BlockRequest { tag: TAG_FLUSH, op: BlockOp::Flush };
                if self.actions.push_back(Action::Block(request)).is_ok() {
                    self.in_flight += 1;
                }
            }
            None => {
                self.store.reset();
                self.written = false;
                self.phase = Phase::Following;
                if self.stopping {
                    self.voter.stop();
                } else {
                    self.voter.resign(now);
                }
            }
        }
    }

    fn on_flushed(&mut self, now: Instant, done: &Completion<'m>) {
        let retry = now.plus(self.config.timing.flush_retry);
        self.phase = Phase::Draining { flush: done.result.is_err().then_some(retry) };
    }

    fn step_notices(&mut self, now: Instant) {
        while let Some(notice) = self.voter.poll_notice(now) {
            match notice {
                // Who was told to stop has let go of the slot already.
                Notice::Elected(_) if self.stopping => {}
                Notice::Elected(term) => {
                    self.events.push(ServerEvent::Elected(term));
                    self.counters.elections += 1;
                    self.retries_left = RETRIES_MAX;
                    self.store.load();
                    self.phase = Phase::Loading(term);
                }
                Notice::ClaimsClear(reading) => self.on_claims_clear(now, reading),
                Notice::Deposed(term, loss) => {
                    self.events.push(ServerEvent::Deposed(term, loss));
                    self.counters.terms_lost += 1;
                    self.end_term();
                    if self.phase == Phase::Following && !self.stopping {
                        self.voter.resign(now);
                    }
                }
                Notice::Refused(refusal) => {
                    self.events.push(ServerEvent::Refused(refusal));
                    self.end_term();
                }
                Notice::Stopped(result) => {
                    self.events.push(ServerEvent::Stopped(result));
                    self.end_term();
                }
                Notice::Listening(term) => self.events.push(ServerEvent::Listening(term)),
                Notice::Resigned(term) => self.events.push(ServerEvent::Resigned(term)),
            }
        }
    }

    /// The commit may be answered: all that joined it are.
    fn on_confirmed(&mut self, now: Instant, commit: CommitNo) {
        self.store.confirm(commit);
        self.confirmed = commit;
        self.voter.commit_confirmed(commit);
        self.root_confirmed = self.manifest_root();
        self.retries_left = RETRIES_MAX;
        self.counters.commits += 1;
        self.stable.confirmed = self.stable.closed;
        self.tidying.on_confirmed();
        self.answer_readers(commit);
        if let Phase::TakingOver(term) = self.phase {
            self.phase = Phase::Reading(term);
            let load = Work::Load { client: ClientId(0), seq: None };
            self.table.begin(load, ClientId(0)).expect("no other request");
        }
        for index in 0..self.table.slots.len() {
            if self.table.slots[index].stage == Stage::Joined(commit) {
                self.answer_durable(now, index);
            }
        }
    }

    /// The manifest of the newest durable root.
    fn manifest_root(&self) -> ManifestRoot {
        let Some(root) = self.store.root() else { return ManifestRoot::default() };
        let manifest = &root.fields().manifest;
        ManifestRoot {
            commit: root.commit(),
            blkno: manifest.node.blkno(),
            seq: manifest.node.seq(),
            height: manifest.height,
        }
    }

    /// Answers a request that was carried out, its commit being confirmed.
    fn answer_durable(&mut self, now: Instant, index: usize) {
        let root = self.root_confirmed;
        let slot = &mut self.table.slots[index];
        slot.stage = Stage::Free;
        let client = slot.client;
        let answer = match &slot.work {
            Work::Loan => {
                let lent = Extents::new(&slot.loan.lent).expect("of our own making");
                ServerAnswer::Loan(Loan { number: slot.number, lent })
            }
            Work::Transaction { seq_next } => ServerAnswer::Transaction(TransactionDone {
                number: slot.number,
                seq_next: *seq_next,
                seq_stable: self.stable.confirmed,
                root,
                lent: Extents::default(),
            }),
            Work::Farewell => {
                let word = self.members.remove(client).and_then(|member| member.word);
                self.locks.server.release_ghost(client);
                self.locks.server.farewell(client);
                self.events.push(ServerEvent::Left(client));
                if let Some((session, ticket)) = word {
                    // An operator who doesn't wait any more need not be told.
                    let done = Outcome::Done(ServerAnswer::Fence);
                    let _ = self.links.answer(session, ticket, &done);
                }
                ServerAnswer::Farewell
            }
            Work::Greet { stream, client, .. } => {
                let (stream, client) = (*stream, *client);
                if let Some(member) = self.members.find(client) {
                    (member.standing, member.is_new) = (Standing::Mounted, true);
                    member.recorded_at = now;
                }
                // Who has gone meanwhile comes back with the same nonce.
                self.admit(now, stream, client);
                return;
            }
            Work::Evict(state) => {
                let outcome = state.outcome();
                self.on_evicted(now, client, outcome);
                return;
            }
            Work::Merge => {
                match self.merger.on_durable() {
                    MergeOutcome::GoesOn => self.table.ready(index),
                    MergeOutcome::Made => self.planner.on_own(now, None),
                    MergeOutcome::GivenUp(error) => {
                        self.planner.on_own(now, Some(error));
                        if error == Error::NoSpace {
                            self.give_up_readers(now);
                        }
                    }
                }
                return;
            }
            Work::Compact => return self.on_planned(now),
            Work::Compacted { failed } => {
                if let Some(error) = *failed {
                    self.events.push(ServerEvent::CompactionFailed(client, error));
                }
                ServerAnswer::Compacted
            }
            Work::CompactReady { at_once } => {
                if let Some(member) = self.members.find(client) {
                    member.helper = Helper::ready(*at_once);
                }
                ServerAnswer::CompactReady
            }
            Work::Load { .. } | Work::Tidy | Work::Release { .. } | Work::Settle { .. } => return,
        };
        self.counters.requests += 1;
        if let Some((session, ticket)) = slot.asked {
            // A session that is over has nobody who waits.
            let _ = self.links.answer(session, ticket, &Outcome::Done(answer));
        }
    }

    /// Refuses a request, which has changed nothing.
    fn refuse(&mut self, now: Instant, index: usize, error: ErrorCode) {
        let slot = &mut self.table.slots[index];
        self.store.cache.release(&mut slot.pins);
        slot.stage = Stage::Free;
        self.counters.refused += 1;
        if let Some((session, ticket)) = slot.asked {
            let _ = self.links.answer(session, ticket, &Outcome::Failed(error, None));
        }
        if error == ErrorCode::NoSpace {
            self.give_up_readers(now);
        }
        let slot = &mut self.table.slots[index];
        match slot.work {
            Work::Greet { stream, .. } => self.links.refuse(now, stream, error),
            Work::Farewell => {
                let client = slot.client;
                if let Some(member) = self.members.find(client) {
                    let evicted = member.evicted;
                    member.standing = if evicted { Standing::Evicted } else { Standing::Mounted };
                }
                self.on_eviction_failed(now, client);
            }
            Work::Evict(_) => {
                let client = slot.client;
                self.on_eviction_failed(now, client);
            }
            // Without the records there is no serving.
            Work::Load { .. } => self.end_term(),
            Work::Tidy => self.tidying.on_refused(),
            // None is refused for long: it is tried again, or ends by itself.
            Work::Release { .. } | Work::Compact | Work::Merge | Work::Settle { .. } => {}
            Work::Loan
            | Work::Transaction { .. }
            | Work::Compacted { .. }
            | Work::CompactReady { .. } => {}
        }
    }

    /// All that is recorded has been read: mounts may come.
    fn serve(&mut self, now: Instant) {
        let Phase::Reading(term) = self.phase else { return };
        self.phase = Phase::Serving(term);
        self.release_at = Some(now);
        self.counters.terms_served += 1;
        self.serving_since = now;
        self.links.begin(term);
        self.start_locks(now);
        self.listening_since = (self.listening == Listening::Open).then_some(now);
        self.voter.accepting(self.endpoint);
        self.events.push(ServerEvent::Serving(term));
    }

    fn on_greeted(&mut self, now: Instant, stream: StreamId, greeting: &Greeting) {
        match greeting.role {
            Role::Mount | Role::Status if self.serving().is_none() => {
                self.links.refuse(now, stream, ErrorCode::NotLeader);
            }
            Role::Mount => {
                if let Err(error) = self.greet(now, stream, greeting) {
                    self.counters.refused += 1;
                    self.links.refuse(now, stream, error);
                }
            }
            Role::Knock => {
                self.counters.knocks += 1;
                if self.knocks.hear(now, greeting.nonce) {
                    self.voter.watch_closely(now);
                }
                self.links.answer_knock(now, stream);
            }
            Role::Status => {
                // If there is no room, the guest was told.
                let _ = self.links.admit_guest(now, stream);
            }
        }
    }

    fn greet(
        &mut self,
        now: Instant,
        stream: StreamId,
        greeting: &Greeting,
    ) -> Result<(), ErrorCode> {
        // A later leader has welcomed it: what is recorded of it now isn't known here.
        if self.serving().is_none_or(|term| greeting.term > term) {
            return Err(ErrorCode::Stale);
        }
        let known = match greeting.client {
            Some(client) => self.members.find(client),
            None => {
                let known = self.members.all().iter().find(|known| known.nonce == greeting.nonce);
                let known = known.filter(|_| !is_active(Mutant::GreetingWithoutNonce));
                let client = known.map(|known| known.client);
                client.and_then(|client| self.members.find(client))
            }
        };
        match known.map(|known| *known) {
            Some(known) if known.nonce != greeting.nonce => Err(ErrorCode::Invalid),
            Some(Member {
                standing: Standing::Greeting | Standing::Leaving | Standing::Evicting,
                ..
            }) => Err(ErrorCode::Busy),
            Some(Member { client, standing: Standing::Evicted, .. }) if greeting.farewell => {
                // It has stopped, and says so: the proof that its quarantine waits for.
                let _ = self.links.admit(now, stream, client);
                Ok(())
            }
            Some(Member { standing: Standing::Evicted, .. }) => Err(ErrorCode::Evicted),
            Some(Member { client, standing: Standing::Mounted, .. }) => {
                self.admit(now, stream, client);
                Ok(())
            }
            None => match greeting.client {
                // Its farewell was carried out, and the answer lost.
                Some(client) if greeting.farewell => {
                    let _ = self.links.admit(now, stream, client);
                    Ok(())
                }
                Some(_) => Err(ErrorCode::Evicted),
                None => {
                    let pending = self.table.slots.iter().any(|slot| {
                        slot.stage != Stage::Free
                            && matches!(slot.work,
                                Work::Greet { nonce, .. } if nonce == greeting.nonce)
                    });
                    if pending {
                        return Err(ErrorCode::Busy);
                    }
                    let (nonce, machine) = (greeting.nonce, greeting.machine);
                    let client = ClientId(0);
                    let work = Work::Greet { stream, nonce, machine, client };
                    self.table.begin(work, client).map(drop)
                }
            },
        }
    }

    /// Takes the message at the head of a session.
    fn on_message(&mut self, now: Instant, session: SessionId) {
        let client = self.links.client(session).unwrap_or(ClientId(0));
        let known = self.members.all().iter().find(|member| member.client == client).copied();
        let Some(incoming) = self.links.head(session) else { return };
        let (work, number) = match incoming {
            Incoming::Answer(..) => return self.on_answer(now, session, client),
            Incoming::Request(request) => match request {
                ClientRequest::Transaction(_)
                | ClientRequest::Loan(_)
                | ClientRequest::LockAsk(_)
                | ClientRequest::Orphans(_)
                | ClientRequest::CompactReady(_)
                | ClientRequest::Compacted(_)
                    if known.is_none_or(|known| known.standing != Standing::Mounted) =>
                {
                    (Err(Outcome::Failed(ErrorCode::Evicted, None)), 0)
                }
                ClientRequest::Clients(from) => return self.report_clients(now, session, from),
                ClientRequest::Waits(skip) => return self.report_waits(now, session, skip),
                ClientRequest::Pin(request) => {
                    let Some(ticket) = self.links.take(now, session) else { return };
                    self.links.recorded(session, ticket);
                    return self.on_pin(now, session, ticket, &request);
                }
                ClientRequest::Fence(gone) => {
                    let Some(ticket) = self.links.take(now, session) else { return };
                    self.links.recorded(session, ticket);
                    return self.on_fence_word(session, ticket, &gone);
                }
                ClientRequest::LockAsk(record) => {
                    let Some(ticket) = self.links.take(now, session) else { return };
                    self.links.recorded(session, ticket);
                    if self.on_lock_ask(now, session, ticket, client, &record) == Err(Breach) {
                        self.begin_eviction(client);
                    }
                    return;
                }
                ClientRequest::Orphans(inos) => {
                    let inos = Vec::from_slice(inos.records()).expect("as many as fit");
                    let Some(ticket) = self.links.take(now, session) else { return };
                    self.links.recorded(session, ticket);
                    return self.on_orphans(session, ticket, &inos);
                }
                ClientRequest::Transaction(request) => {
                    (Ok(Work::Transaction { seq_next: Seq(0) }), request.number)
                }
                ClientRequest::Loan(request) => (Ok(Work::Loan), request.number),
                ClientRequest::Compacted(_) => (Ok(Work::Compacted { failed: None }), 0),
                ClientRequest::CompactReady(ready) => {
                    let at_once = ready.at_once;
                    (Ok(Work::CompactReady { at_once }), 0)
                }
                ClientRequest::Farewell if known.is_some() => (Ok(Work::Farewell), 0),
                ClientRequest::Farewell => (Err(Outcome::Done(ServerAnswer::Farewell)), 0),
                ClientRequest::Root => (Err(Outcome::Done(self.root_now(known))), 0),
                ClientRequest::Statfs => (Err(Outcome::Done(self.statfs())), 0),
                ClientRequest::Status => (Err(Outcome::Done(self.status(now))), 0),
            },
        };
        let begun = work.map(|work| self.table.begin(work, client));
        let begun = match begun {
            Ok(begun) => begun.map_err(|error| Outcome::Failed(error, None)),
            Err(outcome) => Err(outcome),
        };
        if let Ok(index) = begun
            && let Some(Incoming::Request(request)) = self.links.head(session)
        {
            let slot = &mut self.table.slots[index];
            let mut emitter = Emitter::new(slot.payload);
            request.emit(&mut emitter);
            (slot.payload_len, slot.number) = (emitter.used(), number);
        }
        let Some(ticket) = self.links.take(now, session) else { return };
        match begun {
            Ok(index) => {
                // It is sent again to the next server, so it need not be to this one.
                self.links.recorded(session, ticket);
                let slot = &mut self.table.slots[index];
                slot.asked = Some((session, ticket));
                let leaves = matches!(slot.work, Work::Farewell);
                if leaves || matches!(slot.work, Work::CompactReady { .. }) {
                    self.forget_compactions(client);
                }
                if let Some(member) = self.members.find(client).filter(|_| leaves) {
                    member.standing = Standing::Leaving;
                }
            }
            Err(outcome) => {
                // The session is there: its message was just taken.
                let _ = self.links.answer(session, ticket, &outcome);
            }
        }
    }

    fn root_now(&self, asking: Option<Member>) -> ServerAnswer<'static> {
        ServerAnswer::Root(RootNow {
            root: self.root_confirmed,
            seq_stable: self.stable.confirmed,
            seq_open: asking.map_or(Seq(0), |member| member.seq),
        })
    }

    fn step_links(&mut self, now: Instant) {
        self.links.step(now);
        if self.serving().is_some() && !self.voter.may_act(now) {
            return;
        }
        while let Some(event) = self.links.poll_event() {
            match event {
                LinksEvent::Greeted(stream, greeting) => self.on_greeted(now, stream, &greeting),
                LinksEvent::Message(session) => self.on_message(now, session),
                LinksEvent::Up(session) => {
                    if let Some(client) = self.links.client(session) {
                        self.events.push(ServerEvent::Up(client));
                    }
                }
                LinksEvent::Down(session, end) => {
                    if let Some(client) = self.links.client(session) {
                        self.events.push(ServerEvent::Down(client, end));
                    }
                }
            }
        }
        let mounts = self.connected() + self.knocking(now);
        self.voter.mounts_reaching(u32::try_from(mounts).unwrap_or(u32::MAX));
    }

    fn step_requests(&mut self, now: Instant) -> More {
        self.begin_jobs(now);
        self.wake_held();
        for _ in 0..RUNS_PER_STEP {
            while let Some(woken) = self.store.poll_wake() {
                self.table.wake(woken);
            }
            if !self.is_in_office() {
                return More::No;
            }
            let Some(index) = self.table.next() else {
                return if self.merger.wants_step() { More::Yes } else { More::No };
            };
            self.run(now, index);
        }
        More::Yes
    }

    /// Moves the store on, and takes note of what has become of it.
    fn step_store(&mut self, now: Instant) -> More {
        let mut more = More::Yes;
        for _ in 0..STORE_STEPS {
            if !self.is_in_office() {
                return More::No;
            }
            let due = self.commit_at.is_some_and(|at| at <= now);
            let may = matches!(self.phase, Phase::Reading(_) | Phase::Serving(_));
            if may && self.store.open_commit().is_some() && (due || self.store.is_commit_wanted()) {
                self.commit_at = None;
                self.store.commit();
            }
            let before = self.store.open_commit();
            more = self.store.step();
            if before.is_some() && self.store.open_commit() != before {
                self.stable.closed = self.members.stable(self.store.trees.next_seq);
                self.commit_at = None;
            }
            match self.store.poll_event() {
                Some(event) => self.on_store_event(now, event),
                None if more == More::No => return More::No,
                None => {}
            }
        }
        more
    }

    fn on_store_event(&mut self, now: Instant, event: StoreEvent) {
        match event {
            StoreEvent::Loaded => {
                let Phase::Loading(term) = self.phase else { return };
                let root = self.store.root().expect("loaded");
                let newest = root.term();
                if newest >= term {
                    self.voter.outranked(now, newest);
                    return self.end_term();
                }
                if self.voter.has_lost(now, root.rank()) {
                    return self.end_term();
                }
                match self.store.take_over(term, &self.gone()) {
                    Ok(()) => self.phase = Phase::TakingOver(term),
                    Err(_) => self.end_term(),
                }
            }
            StoreEvent::Durable(commit) => self.doubt_commit(now, commit),
            StoreEvent::Refused(_) | StoreEvent::Failed(_) => self.end_term(),
        }
    }

    /// Decides what is submitted, closed and listened at.
    fn step_actions(&mut self, now: Instant) -> More {
        while !self.actions.is_full() {
            if let Some(request) = self.voter.poll_request(now) {
                self.act(Action::Block(request));
            } else if let Some(action) = self.poll_listening(now) {
                self.act(action);
            } else if let Some((stream, _)) = self.links.poll_close() {
                self.act(Action::Close(stream));
            } else if let Some(stream) = self.closes.pop_front() {
                self.act(Action::Close(stream));
            } else if self.is_in_office()
                && self.voter.may_act(now)
                && let Some(Completion { tag, op, .. }) = self.retries.pop_front()
            {
                self.act(Action::Block(BlockRequest { tag, op }));
            } else if self.is_in_office()
                && self.voter.may_act(now)
                && let Some(request) = self.store.poll_request()
            {
                self.in_flight += 1;
                self.written |= matches!(request.op, BlockOp::Write(..));
                self.act(Action::Block(request));
            } else if self.is_in_office()
                && self.voter.may_act(now)
                && let Some(request) = self.merger.poll_request(TAG_MERGE)
            {
                (self.in_flight, self.written) = (self.in_flight + 1, true);
                self.act(Action::Block(request));
            } else {
                return More::No;
            }
        }
        // The driver takes these first.
        More::Yes
    }

    fn act(&mut self, action: Action<'m>) {
        assert!(self.actions.push_back(action).is_ok(), "room was looked for");
    }

    /// Bytes that nobody foresees, for a connection.
    fn draw(&mut self) -> [u8; RANDOM_BYTES] {
        self.draws += 1;
        let mut hash = Blake2s256::new();
        hash.update(self.config.secret);
        hash.update(self.draws.to_le_bytes());
        let digest = hash.finalize();
        core::array::from_fn(|at| digest[at])
    }

    fn on_completed(&mut self, now: Instant, done: Completion<'m>) {
        if done.tag == TAG_FLUSH {
            self.in_flight -= 1;
            self.on_flushed(now, &done);
        } else if (Store::TAGS..TAG_FLUSH.0).contains(&done.tag.0) {
            self.voter.handle_completion(now, done);
        } else if done.result.is_err()
            && !matches!(done.op, BlockOp::Flush)
            && self.is_in_office()
            && self.retries_left > 0
            && !self.retries.is_full()
        {
            self.retries_left -= 1;
            assert!(self.retries.push_back(done).is_ok(), "it is not full");
        } else {
            self.on_transferred(done);
        }
    }

    /// A transfer of the store, or a write of the merge, has ended for good.
    fn on_transferred(&mut self, done: Completion<'m>) {
        self.in_flight -= 1;
        match done.tag >= TAG_MERGE {
            true => self.merger.handle_completion(TAG_MERGE, done),
            false => self.store.handle_completion(done),
        }
    }
}

impl<'m> Node<'m> for Server<'m> {
    fn handle(&mut self, now: Instant, event: Event<'m>) {
        match event {
            Event::Completed(done) => self.on_completed(now, done),
            Event::Accepted(stream) => self.on_accepted(now, stream),
            Event::ListenFailed => self.on_listen_failed(now),
            Event::Received { stream, len } => self.links.received(now, stream, len),
            Event::Sent { stream, len } => self.links.sent(stream, len),
            Event::Closed(stream) => self.links.closed(stream),
            // It never connects.
            Event::Connected { .. } | Event::ConnectFailed { .. } => {}
        }
    }

    fn step(&mut self, now: Instant) -> More {
        self.step_notices(now);
        self.step_draining(now);
        self.step_links(now);
        self.step_leaving(now);
        let mut more = More::No;
        if self.is_in_office() && self.voter.may_act(now) {
            if matches!(self.phase, Phase::Serving(_)) {
                self.step_evictions(now);
                self.step_orphans();
                self.step_readers(now);
            }
            for more_of in [self.step_store(now), self.step_requests(now), self.step_store(now)] {
                more = if more_of == More::Yes { More::Yes } else { more };
            }
            if matches!(self.phase, Phase::Serving(_)) {
                more = if self.step_locks(now) == More::Yes { More::Yes } else { more };
            }
            // What was answered goes into the buffers.
            self.links.step(now);
        }
        self.step_notices(now);
        match self.step_actions(now) {
            More::Yes => More::Yes,
            More::No => more,
        }
    }

    fn poll_action(&mut self) -> Option<Action<'m>> {
        self.actions.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let flush = match self.phase {
            Phase::Draining { flush } if self.in_flight == 0 => Some(flush.unwrap_or_default()),
            Phase::Draining { .. }
            | Phase::Following
            | Phase::Loading(_)
            | Phase::TakingOver(_)
            | Phase::Reading(_)
            | Phase::Serving(_) => None,
        };
        let commit = self.commit_at.filter(|_| self.store.open_commit().is_some());
        let listen = match self.listening {
            Listening::From(at) => Some(at),
            Listening::Shut | Listening::Open => None,
        };
        let due = [self.voter.poll_timeout(), self.links.poll_timeout(), commit, flush, listen];
        let others = [
            self.compaction_timeout(),
            self.release_at,
            self.eviction_timeout(),
            self.fence_timeout(),
            self.leaving_timeout(),
            self.readers.timeout(),
        ];
        due.into_iter().chain(others).flatten().min()
    }

    fn recv_space(&mut self, stream: StreamId) -> &mut [u8] {
        self.links.recv_space(stream)
    }

    fn send_bytes(&self, stream: StreamId) -> &[u8] {
        self.links.send_bytes(stream)
    }
}

#[cfg(test)]
mod tests;
