//! One voter: it watches its slot, joins, follows, claims, leads, and lets go.
//!
//! ```text
//!                  changed, or not proven free
//!     Watching -------------------------------> Ended(Refused)
//!        | unchanged for a lease                   ^  another writer in the slot,
//!        v                                         |  or a newer configuration: from anywhere
//!     Joining ---- first write durable --+         |
//!                                        v
//!        +---------------------------> Following <-------------------------------+
//!        |                               | nobody leads, and it is our turn      |
//!        |  another claim, a sign of     v                                       |
//!        +-- life, or an error ------- Claiming      claim: write, flush, scan   |
//!        |                               | no such thing                         |
//!        +-- error ------------------- Taking        ELECTED: write, flush       |
//!                                        | durable within the lease              |
//!                                        v                                       |
//!                                      Leading       renews; LISTENING           |
//!                   lease over, later    |      | resign()                       |
//!                   claim, outnumbered   v      v                       durable  |
//!                                   Draining -> Resigning -----------------------+
//!                                       resign()
//!     stop() leads from anywhere through Stopping to Ended(Stopped).
//! ```
//!
//! # Invariants
//!
//! * At most one write of the own block is in flight, and a new one waits for the end of the one
//!   before: what the block shows follows the order of the states above.
//! * What the own block is to show is derived from the state, never stored beside it.
//! * The voter may act only in `Leading`, before the end of its lease; nothing leads back there but
//!   a new claim.
//! * In `Draining` nothing is written. `Resigned` is shown only after the owner has said that
//!   nothing of the term is in flight, so whoever reads it has a proof of that.
//! * Nothing is retried without a pause that grows.

use super::mutant::Mutant;
use super::scan::{Scan, ScanBlocks, Sight};
use super::timing::{Timing, TimingError, earlier, ms};
use crate::arena::{Arena, ArenaFull};
use crate::format::Term;
use crate::format::block::Volume;
use crate::format::quorum::{Ballot, BootId, HostId, Incarnation, ROUND_MAX, SLOTS, Slot, State};
use core::time::Duration;
use heapless::Deque;
use outrider_hal::{
    Block, BlockNo, BlockOp, BlockRequest, BlockResult, Completion, Endpoint, Instant, IoError, Tag,
};

/// The slots that are configured, as the super block says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots(u8);

impl Slots {
    /// No slot.
    pub const NONE: Slots = Slots(0);

    /// These and one more.
    #[must_use]
    pub const fn with(self, slot: Slot) -> Slots {
        Slots(self.0 | 1 << slot.number())
    }

    /// Whether this is one of them.
    #[must_use]
    pub const fn contains(self, slot: Slot) -> bool {
        self.0 >> slot.number() & 1 == 1
    }

    /// How many they are.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }
}

/// What a voter is told about the volume.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// The volume.
    pub volume: Volume,
    /// Where its quorum area starts.
    pub base: BlockNo,
    /// The voter's slot.
    pub slot: Slot,
    /// All slots that are configured, with that one.
    pub voters: Slots,
    /// Generation of this configuration.
    pub config_gen: u64,
    /// The constants.
    pub timing: Timing,
    /// First of the [`Voter::TAGS`] tags its requests use.
    pub tag_base: u64,
}

/// An operator's word that an earlier user of the slot is gone for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vouched {
    /// Nobody vouched for anything.
    Nothing,
    /// This one is gone.
    Gone(Incarnation),
    /// Whoever used the slot is gone, though its block can't say who it was.
    Anyone,
}

/// Who the voter is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Drawn at random for this start.
    pub incarnation: Incarnation,
    /// The host. The owner makes sure that one host runs one voter of a slot at a time, and starts
    /// it only when all I/O of the one before has ended.
    pub host: HostId,
    /// The boot of that host. A boot ends all I/O of the boots before it.
    pub boot: BootId,
    /// What an operator said.
    pub vouched: Vouched,
    /// Seed of the jitter; different in each voter.
    pub seed: u64,
}

/// Why a voter can't be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigError {
    /// The slot is not one of the configured ones.
    NotAVoter,
    /// The constants don't fit together.
    Timing(TimingError),
}

/// Why a voter does not take part, or no longer. Final: the owner may start another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Somebody else writes the slot's block: it is in use elsewhere.
    SlotInUse,
    /// The slot's last user was not stopped in good order, ran on another host, and nobody vouched
    /// that it is gone: its late writes could destroy ours.
    Unproven {
        /// The last user.
        incarnation: Incarnation,
        /// Its host.
        host: HostId,
    },
    /// The slot's block is damaged, so that its last user can't be told, and nobody vouched.
    Damaged,
    /// Another voter goes by this newer configuration.
    OutdatedConfig(u64),
    /// No round is left. Only a forged block can bring this about.
    RoundsExhausted,
}

/// Why a term ended against the owner's will.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// No renewal became durable in time.
    LeaseOver,
    /// Another voter stands for this term.
    LaterClaim(Term),
    /// The voter of this slot is reached by more mounts, for two leases now.
    Outnumbered(Slot),
    /// The owner found a root of this term, which is not earlier.
    Outranked(Term),
    /// The voter can't go on at all.
    Refused(Refusal),
}

/// What the owner is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Elected: the owner may read the roots and act while [`Voter::may_act`].
    Elected(Term),
    /// It is durable that the leader of this term listens.
    Listening(Term),
    /// As of a reading that began after this was asked, nobody else claims to lead.
    ClaimsClear(CheckToken),
    /// The term is over. The owner answers and submits nothing more in it, and calls
    /// [`Voter::resign`] once all it has in flight has ended.
    Deposed(Term, Loss),
    /// It is durable that the term is over; the voter follows.
    Resigned(Term),
    /// Nothing will be written any more. In case of an error the block still shows what it did.
    Stopped(BlockResult),
    /// The voter does not take part.
    Refused(Refusal),
}

/// The owner's name for a check of the claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckToken(pub u64);

/// What the voter is, for whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It watches whether its slot is in use, and has written nothing.
    Starting,
    /// It takes part, and somebody else leads, or nobody.
    Following,
    /// It tries to become the leader of this term.
    Standing(Term),
    /// It leads in this term.
    Leading(Term),
    /// Its term is over, and what it has in flight may not be.
    Draining(Term),
    /// It is letting go of its slot.
    Stopping,
    /// It was stopped.
    Stopped,
    /// It does not take part.
    Refused(Refusal),
}

/// The latest trouble with the device, for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The own block can't be written or flushed.
    OwnWrite(IoError),
    /// The block of a configured voter can't be read, or is damaged: nobody can be elected, and no
    /// commit answered, until its voter writes it again or is configured out.
    Blind(Slot),
}

/// The memory of a [`Voter`]: a block for each slot that is read, and one to write.
pub struct VoterBlocks<'m> {
    scan: ScanBlocks<'m>,
    own: Option<&'m mut Block>,
}

impl<'m> VoterBlocks<'m> {
    /// Carves it.
    pub fn carve(arena: &mut Arena<'m>) -> Result<VoterBlocks<'m>, ArenaFull> {
        let scan = ScanBlocks::carve(arena)?;
        let own = arena.slice(1, |_| Block::ZERO)?.first_mut();
        Ok(VoterBlocks { scan, own })
    }
}

#[derive(Debug)]
enum Phase {
    /// Reads its own block until it has not changed for a lease, since this time if it could be
    /// read.
    Watching { since: Option<Instant> },
    /// Makes its first write durable. The slot was last seen free by the scan begun then.
    Joining { watched: Instant },
    /// Takes part. Nobody was seen to lead, and it is to claim at this time, if that is still so.
    Following { claim_at: Option<Instant> },
    /// Makes its claim durable, then waits for the scan of this number.
    Claiming { term: Term, scan: Option<u64> },
    /// Makes it durable that it is elected.
    Taking { term: Term },
    /// Leads.
    Leading(Office),
    /// Waits until the owner has nothing in flight. Then it ends, if this is a refusal.
    Draining { term: Term, refusal: Option<Refusal> },
    /// Makes it durable that it resigned.
    Resigning { term: Term },
    /// Makes it durable that it stopped.
    Stopping,
    /// Does nothing any more, for this reason if it was not stopped.
    Ended(Option<Refusal>),
}

#[derive(Debug)]
struct Office {
    term: Term,
    lease_end: Instant,
    endpoint: Option<Endpoint>,
    listening: bool,
    check: Option<Check>,
    outnumbered_since: Option<Instant>,
}

/// A check of the claims the owner has asked for.
#[derive(Debug, Clone, Copy)]
enum Check {
    /// The first scan that counts is the one of this number; it begins at this time.
    Waiting { token: CheckToken, scan: u64, at: Instant },
    /// Nobody else claims to lead, and the owner has not been told yet.
    Clear(CheckToken),
}

/// What a write of the own block said, and when it was submitted.
#[derive(Debug, Clone, Copy)]
struct Sent {
    state: State,
    term: Term,
    unmount_barrier: u64,
    at: Instant,
}

#[derive(Debug)]
enum Writing {
    Idle,
    Write(Sent),
    FlushDue(Sent),
    Flush(Sent),
}

/// What the own block is to show, and how long after a write it is to be written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Show {
    state: State,
    term: Term,
    again_ms: Option<u32>,
}

/// Notices the owner can leave unread: a whole term's, the end of it, and a start's.
const NOTICES: usize = 8;

const WRITE: u64 = SLOTS as u64;
const FLUSH: u64 = WRITE + 1;

/// The state machine of one voter.
pub struct Voter<'m> {
    config: Config,
    identity: Identity,
    phase: Phase,
    scan: Scan<'m>,
    own: Option<&'m mut Block>,
    writing: Writing,
    /// What the own block durably shows, unless a write failed since.
    shown: Option<(State, Term)>,
    /// When the own block was last submitted.
    written_at: Instant,
    /// When the first write became durable.
    joined_at: Instant,
    /// No claim before this.
    claim_from: Instant,
    /// No write before this.
    retry_at: Instant,
    seq: u64,
    held: Term,
    highest_round: u64,
    mounts: u32,
    unmount_barrier: u64,
    barrier_durable: u64,
    claims_failed: u32,
    reads_failed: u32,
    writes_failed: u32,
    trouble: Option<Trouble>,
    jitter: u64,
    notices: Deque<Notice, NOTICES>,
    pub(super) mutant: Mutant,
}

impl<'m> Voter<'m> {
    /// How many tags from [`Config::tag_base`] on are its own.
    pub const TAGS: u64 = FLUSH + 1;

    /// A voter that watches its slot.
    pub fn new(
        config: Config,
        identity: Identity,
        blocks: VoterBlocks<'m>,
    ) -> Result<Voter<'m>, ConfigError> {
        config.timing.validate().map_err(ConfigError::Timing)?;
        if !config.voters.contains(config.slot) {
            return Err(ConfigError::NotAVoter);
        }
        Ok(Voter {
            config,
            identity,
            phase: Phase::Watching { since: None },
            scan: Scan::new(config.volume, config.base, config.tag_base, blocks.scan),
            own: blocks.own,
            writing: Writing::Idle,
            shown: None,
            written_at: Instant::default(),
            joined_at: Instant::default(),
            claim_from: Instant::default(),
            retry_at: Instant::default(),
            seq: 0,
            held: Term::NONE,
            highest_round: 0,
            mounts: 0,
            unmount_barrier: 0,
            barrier_durable: 0,
            claims_failed: 0,
            reads_failed: 0,
            writes_failed: 0,
            trouble: None,
            jitter: identity.seed,
            notices: Deque::new(),
            mutant: Mutant::None,
        })
    }

    /// What the voter is. May change with every call that takes the time.
    #[must_use]
    pub fn role(&self) -> Role {
        match &self.phase {
            Phase::Watching { .. } | Phase::Joining { .. } => Role::Starting,
            Phase::Following { .. } => Role::Following,
            Phase::Claiming { term, .. } | Phase::Taking { term } => Role::Standing(*term),
            Phase::Leading(office) => Role::Leading(office.term),
            Phase::Draining { term, .. } | Phase::Resigning { term } => Role::Draining(*term),
            Phase::Stopping => Role::Stopping,
            Phase::Ended(None) => Role::Stopped,
            Phase::Ended(Some(refusal)) => Role::Refused(*refusal),
        }
    }

    /// Whether the owner may act as leader now: submit, answer, and use what it has read. To be
    /// asked before each submission and after each completion.
    #[must_use]
    pub fn may_act(&self, now: Instant) -> bool {
        match &self.phase {
            Phase::Leading(office) => now < office.lease_end,
            _ => false,
        }
    }

    /// The latest trouble, until it is over.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        self.trouble
    }

    /// What was last seen of a slot.
    #[must_use]
    pub fn sight(&self, slot: Slot) -> &Sight {
        self.scan.sight(slot)
    }

    /// The unmount barrier that the own block durably shows.
    #[must_use]
    pub fn durable_barrier(&self) -> u64 {
        self.barrier_durable
    }

    /// Takes note of how many mounts reach this voter, its own counted.
    pub fn mounts_reaching(&mut self, mounts: u32) {
        self.mounts = mounts;
    }

    /// Raises the unmount barrier, which the next write then shows; a leader writes at once. See
    /// [`durable_barrier`](Self::durable_barrier).
    pub fn raise_barrier(&mut self, barrier: u64) {
        self.unmount_barrier = self.unmount_barrier.max(barrier);
    }

    /// The leader accepts connections at this endpoint from now on. Ignored out of office.
    pub fn accepting(&mut self, at: Endpoint) {
        if let Phase::Leading(office) = &mut self.phase {
            office.endpoint = Some(at);
        }
    }

    /// Asks whether anybody else claims to lead, as of now. Answered by [`Notice::ClaimsClear`] or
    /// [`Notice::Deposed`]; out of office not at all. A newer token takes an older one's place: its
    /// answer covers both.
    pub fn check_claims(&mut self, now: Instant, token: CheckToken) {
        let scan = self.scan.number() + 1;
        let blindly = self.mutant.answers_before_reread();
        if let Phase::Leading(office) = &mut self.phase {
            office.check = Some(if blindly {
                Check::Clear(token)
            } else {
                Check::Waiting { token, scan, at: now }
            });
        }
    }

    /// The owner read a root of this term. If that is not earlier than its own, its term is over
    /// and its next one will be later: the quorum blocks did not know of all rounds.
    pub fn outranked(&mut self, now: Instant, by: Term) {
        self.highest_round = self.highest_round.max(by.round().min(ROUND_MAX));
        if let Phase::Leading(office) = &self.phase
            && by >= office.term
        {
            self.depose(now, Loss::Outranked(by));
        }
    }

    /// The owner has ended its term, and nothing of it is in flight any more: no write, no answer.
    /// Called in office it hands over at once, after [`Notice::Deposed`] it tells that all is over.
    /// Else it does nothing.
    pub fn resign(&mut self, now: Instant) {
        match self.phase {
            Phase::Leading(Office { term, .. }) | Phase::Draining { term, refusal: None } => {
                self.phase = Phase::Resigning { term };
            }
            Phase::Draining { refusal: Some(refusal), .. } => self.end(Some(refusal)),
            _ => return,
        }
        // The others shall have their turn first.
        if self.config.voters.count() > 1 {
            let wait = self.config.timing.observe() + self.draw(ms(self.config.timing.renew_ms));
            self.claim_from = now.plus(wait);
        }
    }

    /// Lets go of the slot. Nothing of the owner's is in flight any more, as for
    /// [`resign`](Self::resign). Ends with [`Notice::Stopped`] after one attempt to make that
    /// durable, or with none if nothing was ever written.
    pub fn stop(&mut self) {
        match self.phase {
            Phase::Ended(_) | Phase::Stopping => {}
            Phase::Draining { refusal: Some(refusal), .. } => self.end(Some(refusal)),
            Phase::Watching { .. } => self.stopped(Ok(())),
            Phase::Joining { .. } if self.writes_failed == 0 && self.is_not_writing() => {
                self.stopped(Ok(()));
            }
            _ => {
                self.phase = Phase::Stopping;
                self.retry_at = Instant::default();
            }
        }
    }

    /// Whether the voter has no request in flight. Its memory is needed until then.
    #[must_use]
    pub fn is_quiescent(&self) -> bool {
        self.scan.is_idle() && self.is_not_writing()
    }

    /// What there is to tell. To be asked until there is nothing, after each of the calls above.
    pub fn poll_notice(&mut self, now: Instant) -> Option<Notice> {
        self.expire(now);
        if let Some(notice) = self.notices.pop_front() {
            return Some(notice);
        }
        match &mut self.phase {
            Phase::Leading(office) => match office.check {
                Some(Check::Clear(token)) => {
                    office.check = None;
                    Some(Notice::ClaimsClear(token))
                }
                Some(Check::Waiting { .. }) | None => None,
            },
            _ => None,
        }
    }

    /// The next request to submit. A lease counts from here, so a request is to be submitted at
    /// once, or counts as in flight. At most one write, one flush and [`SLOTS`] reads at a time.
    pub fn poll_request(&mut self, now: Instant) -> Option<BlockRequest<'m>> {
        self.expire(now);
        if let Some(request) = self.poll_write(now) {
            return Some(request);
        }
        if self.scan.is_idle() && self.scan_due().is_some_and(|due| due <= now) {
            self.scan.begin(now);
        }
        self.scan.poll_request()
    }

    /// When [`poll_request`](Self::poll_request) or [`poll_notice`](Self::poll_notice) will have
    /// something although nothing happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let lease_end = match &self.phase {
            Phase::Leading(office) => Some(office.lease_end),
            _ => None,
        };
        let write = match self.writing {
            Writing::Idle => self.write_due(),
            Writing::FlushDue(_) => Some(Instant::default()),
            Writing::Write(_) | Writing::Flush(_) => None,
        };
        let scan = if self.scan.is_idle() { self.scan_due() } else { None };
        earlier(lease_end, earlier(write, scan))
    }

    /// Takes the completion of one of its requests.
    pub fn handle_completion(&mut self, now: Instant, done: Completion<'m>) {
        self.expire(now);
        match done.tag.0 - self.config.tag_base {
            WRITE | FLUSH => self.on_write_step(now, done),
            _ => {
                if self.scan.handle_completion(now, done) {
                    self.on_scan(now);
                }
            }
        }
    }
}

/// Writing the own block.
impl<'m> Voter<'m> {
    fn show(&self) -> Option<Show> {
        let timing = &self.config.timing;
        let at_rest = if self.held == Term::NONE { State::Idle } else { State::Resigned };
        let heartbeat = Some(timing.heartbeat_ms);
        let (state, term, again_ms) = match &self.phase {
            Phase::Watching { .. } | Phase::Draining { .. } | Phase::Ended(_) => return None,
            Phase::Joining { .. } | Phase::Following { .. } => (at_rest, self.held, heartbeat),
            Phase::Claiming { term, .. } => (State::Claiming, *term, None),
            Phase::Taking { term } => (State::Elected, *term, None),
            Phase::Leading(Office { term, endpoint, .. }) => match endpoint {
                None => (State::Elected, *term, Some(timing.renew_ms)),
                Some(_) => (State::Listening, *term, Some(timing.renew_ms)),
            },
            Phase::Resigning { term } => (State::Resigned, *term, None),
            Phase::Stopping => (State::Stopped, self.held, None),
        };
        Some(Show { state, term, again_ms })
    }

    fn write_due(&self) -> Option<Instant> {
        let show = self.show()?;
        let barrier_due =
            matches!(self.phase, Phase::Leading(_)) && self.unmount_barrier > self.barrier_durable;
        let due = if self.shown == Some((show.state, show.term)) && !barrier_due {
            self.written_at.plus(ms(show.again_ms?))
        } else {
            Instant::default()
        };
        Some(due.max(self.retry_at))
    }

    fn is_not_writing(&self) -> bool {
        match self.writing {
            Writing::Idle => true,
            Writing::Write(_) | Writing::FlushDue(_) | Writing::Flush(_) => false,
        }
    }

    fn poll_write(&mut self, now: Instant) -> Option<BlockRequest<'m>> {
        if let Phase::Joining { watched } = self.phase
            && self.is_not_writing()
            && now.since(watched) > self.config.timing.observe()
        {
            // Stopped between the last look and the first write: somebody may have come.
            self.scan.forget(self.config.slot, now);
            self.phase = Phase::Watching { since: Some(now) };
        }
        if let Writing::FlushDue(sent) = self.writing {
            if self.show().is_some_and(|show| (show.state, show.term) == (sent.state, sent.term)) {
                self.writing = Writing::Flush(sent);
                return Some(self.request(FLUSH, BlockOp::Flush));
            }
            self.shown = None;
            self.writing = Writing::Idle;
        }
        match self.writing {
            Writing::Idle if self.write_due().is_some_and(|due| due <= now) => {}
            _ => return None,
        }
        let show = self.show()?;
        let ballot = self.ballot(show);
        let block = self.own.take().expect("the block is ours while nothing is written");
        ballot.emit(block, &self.config.volume, self.config.base);
        self.seq = ballot.seq;
        self.written_at = now;
        let Ballot { state, term, unmount_barrier, .. } = ballot;
        self.writing = Writing::Write(Sent { state, term, unmount_barrier, at: now });
        let blkno = self.config.slot.blkno(self.config.base);
        Some(self.request(WRITE, BlockOp::Write(blkno, block)))
    }

    fn request(&self, tag: u64, op: BlockOp<'m>) -> BlockRequest<'m> {
        BlockRequest { tag: Tag(self.config.tag_base + tag), op }
    }

    fn ballot(&self, show: Show) -> Ballot {
        let endpoint = match &self.phase {
            Phase::Leading(office) => office.endpoint,
            _ => None,
        };
        let held = match show.state {
            State::Idle | State::Claiming => self.held,
            State::Elected | State::Listening | State::Resigned | State::Stopped => show.term,
        };
        Ballot {
            slot: self.config.slot,
            seq: self.seq + 1,
            state: show.state,
            term: show.term,
            held,
            highest_round: self.highest_round,
            config_gen: self.config.config_gen,
            unmount_barrier: self.unmount_barrier,
            lease_ms: self.config.timing.lease_ms,
            mounts: self.mounts,
            incarnation: self.identity.incarnation,
            host: self.identity.host,
            boot: self.identity.boot,
            endpoint,
        }
    }

    fn on_write_step(&mut self, now: Instant, done: Completion<'m>) {
        if let BlockOp::Write(_, block) = done.op {
            self.own = Some(block);
        }
        let step = core::mem::replace(&mut self.writing, Writing::Idle);
        match (step, done.result) {
            (Writing::Write(sent), Ok(())) => self.writing = Writing::FlushDue(sent),
            (Writing::Flush(sent), Ok(())) => {
                self.writes_failed = 0;
                self.shown = Some((sent.state, sent.term));
                self.barrier_durable = self.barrier_durable.max(sent.unmount_barrier);
                if matches!(self.trouble, Some(Trouble::OwnWrite(_))) {
                    self.trouble = None;
                }
                self.on_shown(now, sent);
            }
            (Writing::Write(_) | Writing::Flush(_), Err(error)) => {
                self.on_write_failed(now, error);
            }
            (Writing::Idle | Writing::FlushDue(_), _) => unreachable!("no such request is out"),
        }
    }

    /// The own block durably shows this.
    fn on_shown(&mut self, now: Instant, sent: Sent) {
        let lease_from = if self.mutant.leases_from_completion() { now } else { sent.at };
        let lease_end = lease_from.plus(self.config.timing.lease());
        match &mut self.phase {
            Phase::Joining { .. } => {
                self.joined_at = now;
                self.phase = Phase::Following { claim_at: None };
            }
            Phase::Claiming { term, scan } => {
                if (sent.state, sent.term) == (State::Claiming, *term) {
                    *scan = Some(self.scan.number() + 1);
                }
            }
            Phase::Taking { term } => {
                let term = *term;
                if (sent.state, sent.term) == (State::Elected, term) {
                    self.take_office(now, term, lease_end);
                }
            }
            Phase::Leading(office) => {
                if sent.term == office.term {
                    office.lease_end = office.lease_end.max(lease_end);
                    if sent.state == State::Listening && !office.listening {
                        office.listening = true;
                        let term = office.term;
                        self.notify(Notice::Listening(term));
                    }
                }
            }
            Phase::Resigning { term } => {
                let term = *term;
                if sent.state == State::Resigned {
                    self.phase = Phase::Following { claim_at: None };
                    self.notify(Notice::Resigned(term));
                }
            }
            Phase::Stopping => {
                if sent.state == State::Stopped {
                    self.stopped(Ok(()));
                }
            }
            Phase::Watching { .. }
            | Phase::Following { .. }
            | Phase::Draining { .. }
            | Phase::Ended(_) => {}
        }
    }

    fn take_office(&mut self, now: Instant, term: Term, lease_end: Instant) {
        self.held = term;
        if now >= lease_end {
            self.withdraw(now);
            return;
        }
        self.claims_failed = 0;
        self.phase = Phase::Leading(Office {
            term,
            lease_end,
            endpoint: None,
            listening: false,
            check: None,
            outnumbered_since: None,
        });
        self.notify(Notice::Elected(term));
    }

    fn on_write_failed(&mut self, now: Instant, error: IoError) {
        self.writes_failed = self.writes_failed.saturating_add(1);
        self.retry_at = now.plus(self.config.timing.pause(self.writes_failed));
        self.shown = None;
        self.trouble = Some(Trouble::OwnWrite(error));
        match &self.phase {
            Phase::Claiming { .. } | Phase::Taking { .. } => self.withdraw(now),
            Phase::Stopping => self.stopped(Err(error)),
            Phase::Watching { .. }
            | Phase::Joining { .. }
            | Phase::Following { .. }
            | Phase::Leading(_)
            | Phase::Draining { .. }
            | Phase::Resigning { .. }
            | Phase::Ended(_) => {}
        }
    }
}

/// Judging what was read.
impl Voter<'_> {
    fn scan_due(&self) -> Option<Instant> {
        if self.scan.number() == 0 {
            return Some(Instant::default());
        }
        let timing = &self.config.timing;
        let began = self.scan.began();
        let usual = began.plus(ms(timing.scan_ms).max(timing.pause(self.reads_failed)));
        let later = |at: Instant| (at > began).then_some(at);
        match &self.phase {
            Phase::Watching { .. } => {
                let quiet = self.scan.quiet_at(self.config.slot, timing).and_then(later);
                earlier(Some(usual), quiet)
            }
            Phase::Joining { .. } => Some(usual),
            Phase::Following { claim_at } => {
                let quiet = self.others().filter_map(|ballot| {
                    let active = ballot.state.is_active();
                    if active {
                        self.scan.quiet_at(ballot.slot, timing).and_then(later)
                    } else {
                        None
                    }
                });
                earlier(earlier(Some(usual), claim_at.and_then(later)), quiet.min())
            }
            Phase::Claiming { scan, .. } => scan.map(|_| began),
            Phase::Leading(office) => match office.check {
                Some(Check::Waiting { at, .. }) => Some(at),
                Some(Check::Clear(_)) | None => {
                    Some(began.plus(timing.lease().max(timing.pause(self.reads_failed))))
                }
            },
            Phase::Taking { .. }
            | Phase::Draining { .. }
            | Phase::Resigning { .. }
            | Phase::Stopping
            | Phase::Ended(_) => None,
        }
    }

    /// What the other slots' voters say.
    fn others(&self) -> impl Iterator<Item = &Ballot> {
        let own = self.config.slot;
        let others = Slot::ALL.into_iter().filter(move |slot| *slot != own);
        others.filter_map(|slot| self.scan.sight(slot).ballot())
    }

    fn wrote(&self, ballot: &Ballot) -> bool {
        ballot.incarnation == self.identity.incarnation
    }

    /// A configured voter's slot, the own one included, of which it is not known what it says.
    fn blind_spot(&self) -> Option<Slot> {
        let unknown = |slot: &Slot| {
            self.config.voters.contains(*slot) && !self.scan.sight(*slot).is_certain()
        };
        Slot::ALL.into_iter().find(unknown)
    }

    fn on_scan(&mut self, now: Instant) {
        self.take_note();
        if let Some(refusal) = self.refusal() {
            self.refuse(now, refusal);
            return;
        }
        match self.phase {
            Phase::Watching { .. } => self.on_scan_watching(),
            Phase::Following { claim_at } => self.on_scan_following(now, claim_at),
            Phase::Claiming { term, scan: Some(number) } if self.scan.number() >= number => {
                self.on_scan_claiming(now, term);
            }
            Phase::Leading(_) => self.on_scan_leading(now),
            Phase::Joining { .. }
            | Phase::Claiming { .. }
            | Phase::Taking { .. }
            | Phase::Draining { .. }
            | Phase::Resigning { .. }
            | Phase::Stopping
            | Phase::Ended(_) => {}
        }
    }

    /// Remembers the maxima of all blocks, and whether they could be read.
    fn take_note(&mut self) {
        for slot in Slot::ALL {
            if let Some(ballot) = self.scan.sight(slot).ballot() {
                self.highest_round = self.highest_round.max(ballot.highest_round);
                self.unmount_barrier = self.unmount_barrier.max(ballot.unmount_barrier);
            }
        }
        match self.blind_spot() {
            Some(slot) => {
                self.reads_failed = self.reads_failed.saturating_add(1);
                self.trouble = Some(Trouble::Blind(slot));
            }
            None => {
                self.reads_failed = 0;
                if matches!(self.trouble, Some(Trouble::Blind(_))) {
                    self.trouble = None;
                }
            }
        }
    }

    /// Why this voter must not go on, if the last scan shows a reason.
    fn refusal(&self) -> Option<Refusal> {
        let newest = self.others().map(|ballot| ballot.config_gen).max();
        if let Some(config_gen) = newest.filter(|newest| *newest > self.config.config_gen) {
            return Some(Refusal::OutdatedConfig(config_gen));
        }
        let own = self.scan.sight(self.config.slot);
        match self.phase {
            Phase::Watching { since } => {
                let changed = since? != self.scan.unchanged_since(self.config.slot)?;
                // A first write that failed may have reached the disk all the same.
                let ours = own.ballot().is_some_and(|ballot| self.wrote(ballot));
                (changed && !ours).then_some(Refusal::SlotInUse)
            }
            Phase::Joining { .. } | Phase::Stopping | Phase::Ended(_) => None,
            _ => match own {
                Sight::Valid(ballot) if self.wrote(ballot) => None,
                // The first write became durable while this scan was under way.
                _ if self.scan.began() < self.joined_at => None,
                Sight::Valid(_) | Sight::Blank => Some(Refusal::SlotInUse),
                Sight::Unread | Sight::Invalid(_) | Sight::Unreadable(_) => None,
            },
        }
    }
}

/// What follows from it.
impl Voter<'_> {
    /// The slot is free once its block has not changed for a lease and its last user is proven gone.
    fn on_scan_watching(&mut self) {
        let slot = self.config.slot;
        self.phase = Phase::Watching { since: self.scan.unchanged_since(slot) };
        if !self.scan.is_quiet(slot, &self.config.timing) {
            return;
        }
        let vouched = self.identity.vouched;
        match *self.scan.sight(slot) {
            Sight::Blank => {}
            Sight::Valid(last) => {
                let proven = last.state == State::Stopped
                    || last.host == self.identity.host
                    || vouched == Vouched::Gone(last.incarnation)
                    || vouched == Vouched::Anyone;
                if !proven {
                    let Ballot { incarnation, host, .. } = last;
                    self.end(Some(Refusal::Unproven { incarnation, host }));
                    return;
                }
                self.seq = last.seq;
                self.held = last.held;
            }
            Sight::Invalid(_) if vouched == Vouched::Anyone => {}
            Sight::Invalid(_) => {
                self.end(Some(Refusal::Damaged));
                return;
            }
            Sight::Unread | Sight::Unreadable(_) => unreachable!("it was seen not to change"),
        }
        self.phase = Phase::Joining { watched: self.scan.began() };
    }

    /// Whether the lease of an active voter is over, as the last scan shows.
    fn is_over(&self, ballot: &Ballot) -> bool {
        if self.mutant.evicts_by_own_clock() {
            return self.scan.began().since(self.joined_at) >= self.config.timing.observe();
        }
        self.scan.is_quiet(ballot.slot, &self.config.timing)
    }

    /// Whether somebody may be leading, or about to.
    fn is_led(&self) -> bool {
        self.others().any(|ballot| ballot.state.is_active() && !self.is_over(ballot))
    }

    /// Another voter that writes, and that more mounts reach than this one.
    fn better_reached(&self) -> Option<Slot> {
        let better = |ballot: &&Ballot| {
            ballot.mounts > self.mounts
                && ballot.state != State::Stopped
                && !self.scan.is_quiet(ballot.slot, &self.config.timing)
        };
        self.others().find(better).map(|ballot| ballot.slot)
    }

    fn on_scan_following(&mut self, now: Instant, claim_at: Option<Instant>) {
        if self.is_led() {
            self.claims_failed = 0;
        }
        if self.is_led() || self.blind_spot().is_some() || self.writes_failed > 0 {
            self.phase = Phase::Following { claim_at: None };
            return;
        }
        match claim_at {
            Some(at) if at <= self.scan.began() => self.claim(now),
            Some(_) => {}
            None => {
                let at = now.plus(self.handicap()).max(self.claim_from);
                let confirmed = self.joined_at.plus(ms(self.config.timing.renew_ms));
                self.phase = Phase::Following { claim_at: Some(at.max(confirmed)) };
            }
        }
    }

    /// How long to hold back for others that may be about to claim.
    fn handicap(&mut self) -> Duration {
        if self.config.voters.count() == 1 {
            return Duration::ZERO;
        }
        let jitter = self.draw(ms(self.config.timing.renew_ms));
        match self.better_reached() {
            Some(_) => jitter + self.config.timing.observe(),
            None => jitter,
        }
    }

    fn claim(&mut self, now: Instant) {
        let round = self.highest_round + 1;
        if round > ROUND_MAX {
            self.refuse(now, Refusal::RoundsExhausted);
            return;
        }
        self.highest_round = round;
        let term = Term::new(round, self.config.slot.number());
        self.phase = Phase::Claiming { term, scan: None };
        if self.mutant.claims_without_look() {
            self.phase = Phase::Taking { term };
        }
    }

    /// The claim is durable, and this scan began afterwards.
    fn on_scan_claiming(&mut self, now: Instant, term: Term) {
        let own = self.scan.sight(self.config.slot).ballot();
        let stands = own.is_some_and(|ballot| ballot.seq == self.seq);
        let rivalled = self.others().any(|ballot| ballot.term.round() >= term.round());
        if !stands || rivalled || self.is_led() || self.blind_spot().is_some() {
            self.withdraw(now);
        } else {
            self.phase = Phase::Taking { term };
        }
    }

    /// Gives up a claim, and comes back after a pause that grows and that nobody shares.
    fn withdraw(&mut self, now: Instant) {
        self.claims_failed = self.claims_failed.saturating_add(1);
        let Timing { renew_ms, retry_max_ms, .. } = self.config.timing;
        let range = u64::from(renew_ms) << self.claims_failed.min(31);
        let range = Duration::from_millis(range.min(u64::from(retry_max_ms)));
        self.claim_from = now.plus(self.draw(range));
        self.phase = Phase::Following { claim_at: None };
    }

    fn on_scan_leading(&mut self, now: Instant) {
        let Phase::Leading(Office { term, check, outnumbered_since, .. }) = self.phase else {
            return;
        };
        let later = |ballot: &&Ballot| {
            ballot.term.round() > term.round() || ballot.held.round() == term.round()
        };
        let by = self.others().find(later).map(|ballot| ballot.term);
        if let Some(by) = by {
            self.depose(now, Loss::LaterClaim(by));
            return;
        }
        let better = self.better_reached();
        let since = better.map(|_| outnumbered_since.unwrap_or(now));
        if let (Some(slot), Some(since)) = (better, since)
            && now.since(since) >= self.config.timing.lease() * 2
        {
            self.depose(now, Loss::Outnumbered(slot));
            return;
        }
        let check = match check {
            Some(Check::Waiting { token, scan, .. }) if self.scan.number() >= scan => {
                Some(if self.blind_spot().is_none() {
                    Check::Clear(token)
                } else {
                    let at = now.plus(self.config.timing.pause(self.reads_failed));
                    Check::Waiting { token, scan, at }
                })
            }
            other => other,
        };
        if let Phase::Leading(office) = &mut self.phase {
            office.outnumbered_since = since;
            office.check = check;
        }
    }

    /// Ends a term whose lease is over.
    fn expire(&mut self, now: Instant) {
        if let Phase::Leading(office) = &self.phase
            && now >= office.lease_end
        {
            self.depose(now, Loss::LeaseOver);
        }
    }

    fn depose(&mut self, now: Instant, loss: Loss) {
        let Phase::Leading(Office { term, .. }) = self.phase else {
            return;
        };
        let refusal = match loss {
            Loss::Refused(refusal) => Some(refusal),
            Loss::LeaseOver | Loss::LaterClaim(_) | Loss::Outnumbered(_) | Loss::Outranked(_) => {
                None
            }
        };
        self.withdraw(now);
        self.phase = Phase::Draining { term, refusal };
        self.notify(Notice::Deposed(term, loss));
    }

    /// Takes no part any more, once a term that goes on has ended.
    fn refuse(&mut self, now: Instant, refusal: Refusal) {
        match &mut self.phase {
            Phase::Leading(_) => self.depose(now, Loss::Refused(refusal)),
            Phase::Draining { refusal: pending, .. } => *pending = Some(refusal),
            Phase::Watching { .. }
            | Phase::Joining { .. }
            | Phase::Following { .. }
            | Phase::Claiming { .. }
            | Phase::Taking { .. }
            | Phase::Resigning { .. } => self.end(Some(refusal)),
            Phase::Stopping | Phase::Ended(_) => {}
        }
    }

    fn end(&mut self, refusal: Option<Refusal>) {
        self.phase = Phase::Ended(refusal);
        if let Some(refusal) = refusal {
            self.notify(Notice::Refused(refusal));
        }
    }

    fn stopped(&mut self, result: BlockResult) {
        self.end(None);
        self.notify(Notice::Stopped(result));
    }

    fn notify(&mut self, notice: Notice) {
        self.notices.push_back(notice).expect("the owner reads its notices");
    }

    /// A random part of the duration: splitmix64.
    fn draw(&mut self, most: Duration) -> Duration {
        self.jitter = self.jitter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.jitter;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(((u128::from(z) * u128::from(most)) >> 64) as u64)
    }
}
