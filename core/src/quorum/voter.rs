//! One voter: it watches its slot, joins, follows, claims, leads, and lets go.
//!
//! ```text
//!                  changed, or not proven free
//!     Watching -------------------------------> Ended(Refused)
//!        | unchanged for a lease, or               ^  another writer in the slot,
//!        v nobody else can be in it                |  or a newer configuration: from anywhere
//!     Joining ---- first write durable --+         |
//!                                        v
//!        +---------------------------> Following <-------------------------------+
//!        |                               | nobody leads, and it is our turn      |
//!        |                               v                                       |
//!        +-- error ------------------- Claiming      CLAIMING: write, flush      |
//!        |   another claim, a sign of    v                                       |
//!        +-- life, error, lease over - Looking       scan                        |
//!        |                               | no such thing                         |
//!        +-- error, lease over ------- Taking        ELECTED: write, flush       |
//!                                        | durable within both leases            |
//!                                        v                                       |
//!                                      Leading       renews; LISTENING           |
//!                   lease over, later    |      | resign()                       |
//!                   claim, outnumbered   v      v                       durable  |
//!                                   Draining -> Resigning -----------------------+
//!                                       resign()
//!     stop() leads from anywhere through Stopping to Ended(Stopped); a refusal that leaves it its
//!     slot, through Draining, if it leads, and Stopping to Ended(Refused).
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
//! * Who is refused lets go as one that is stopped does, if the slot is its own: nothing of it is
//!   in flight, and nobody shall have to prove that. Who may not be alone in it writes no more.
//! * Nothing is retried without a pause that grows.
//!
//! What this module deliberately doesn't know: what its owner does in office, and whether a root
//! exists.

mod judge;
mod write;

use self::write::{FLUSH, WRITE, Writing};
use super::scan::{Scan, ScanBlocks, Sight};
use super::timing::{Timing, TimingError, earlier, ms};
use crate::arena::{Arena, ArenaFull};
use crate::format::block::Volume;
use crate::format::quorum::{BootId, HostId, Incarnation, ROUND_MAX, Slot, State};
use crate::format::{CommitNo, Term};
use crate::mutant::{Mutant, is_active};
use heapless::Deque;
use outrider_hal::{
    Block, BlockNo, BlockRequest, BlockResult, Completion, Endpoint, Instant, IoError,
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
    /// Whoever used the slot is gone, though its block can't say who it was. Damage may also hide
    /// that the slot was elected: the operator answers for it that no leader of an earlier term is
    /// still stopped somewhere.
    Anyone,
}

/// How far the lock reaches by which the owner makes sure that one voter of a slot runs at a time,
/// and is started only when all I/O of the one before has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exclusion {
    /// To one boot of one host. By mistake another host may be told to use the slot too.
    Host,
    /// To whoever can use the volume, because all of them are in reach of the lock.
    Volume,
}

/// Who the voter is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Drawn at random for this start.
    pub incarnation: Incarnation,
    /// The host, the same after a reboot.
    pub host: HostId,
    /// The boot of that host. A boot ends all I/O of the boots before it.
    pub boot: BootId,
    /// What keeps other voters out of the slot.
    pub exclusion: Exclusion,
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
    /// A root that was durable can't be read any more. Who went on from the one before it would
    /// undo what was answered, and take for free what is in use.
    RootLost {
        /// This commit was confirmed in this term.
        confirmed: (Term, CommitNo),
        /// The newest root that can be read is of this one.
        newest: (Term, CommitNo),
    },
}

impl Refusal {
    /// Whether nobody but the voter is in its slot, so that it may write its block once more.
    fn leaves_the_slot(self) -> bool {
        match self {
            Refusal::RoundsExhausted | Refusal::RootLost { .. } => true,
            Refusal::SlotInUse
            | Refusal::Unproven { .. }
            | Refusal::Damaged
            | Refusal::OutdatedConfig(_) => false,
        }
    }
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
    /// The device has denied it a reading of the voters' blocks, by errors or by no answer, for
    /// longer than attempts are apart; so it can answer no commit, and perhaps another can.
    Blind,
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
    /// Carves it. What a measuring arena gives is not enough to make a voter of.
    pub fn carve(arena: &mut Arena<'m>) -> Result<VoterBlocks<'m>, ArenaFull> {
        let scan = ScanBlocks::carve(arena)?;
        let own = arena.slice(1, |_| Block::ZERO)?.first_mut();
        Ok(VoterBlocks { scan, own })
    }
}

#[derive(Debug)]
enum Phase {
    /// Reads its own block until it has not changed for a lease, since this time if it could be
    /// read; or until it shows that nobody else can be in the slot.
    Watching { since: Option<Instant> },
    /// Makes its first write durable. The slot was last seen free by the scan begun then.
    Joining { watched: Instant },
    /// Takes part. Nobody was seen to lead, and it is to claim at this time, if that is still so.
    Following { claim_at: Option<Instant> },
    /// Makes its claim durable.
    Claiming { term: Term },
    /// Waits for the scan of this number. A claim is a lease already: others take it for dead once
    /// it has stood unchanged for that long, so nothing comes of it after its end.
    Looking { term: Term, scan: u64, lease_end: Instant },
    /// Makes it durable that it is elected.
    Taking { term: Term, lease_end: Instant },
    /// Leads.
    Leading(Office),
    /// Waits until the owner has nothing in flight. Then it ends, if this is a refusal.
    Draining { term: Term, refusal: Option<Refusal> },
    /// Makes it durable that it resigned.
    Resigning { term: Term },
    /// Makes it durable that it stopped. Then it ends, for this reason if it was not told to.
    Stopping { refusal: Option<Refusal> },
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
    /// When the last reading began that the device has not denied.
    read_at: Instant,
}

/// A check of the claims the owner has asked for.
#[derive(Debug, Clone, Copy)]
enum Check {
    /// The first scan that counts is the one of this number; it begins at this time.
    Waiting { token: CheckToken, scan: u64, at: Instant },
    /// Nobody else claims to lead, and the owner has not been told yet.
    Clear(CheckToken),
}

/// Notices the owner can leave unread: a whole term's, the end of it, and a start's.
const NOTICES: usize = 8;

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
    /// Blocks are read more often until this.
    alert_until: Instant,
    /// Readings begun since that is so.
    alert_scans: u32,
    /// Number of the last write of the own block.
    seq: u64,
    /// The last term this slot was elected in.
    held: Term,
    /// The last term of which it is known that no client was recorded when it ended.
    vacated: Term,
    highest_round: u64,
    mounts: u32,
    /// It is to be said that this voter is leaving.
    leaving: bool,
    /// What of that the own block durably shows.
    leaving_shown: bool,
    /// Number of the first scan that began when it did.
    leaving_scan: Option<u64>,
    /// The newest commit that any voter has seen confirmed.
    confirmed: (Term, CommitNo),
    /// The same when the last claim was found to be alone: what was confirmed before it.
    floor: (Term, CommitNo),
    claims_failed: u32,
    reads_failed: u32,
    writes_failed: u32,
    trouble: Option<Trouble>,
    jitter: u64,
    notices: Deque<Notice, NOTICES>,
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
            alert_until: Instant::default(),
            alert_scans: 0,
            seq: 0,
            held: Term::NONE,
            vacated: Term::NONE,
            highest_round: 0,
            mounts: 0,
            leaving: false,
            leaving_shown: false,
            leaving_scan: None,
            confirmed: (Term::NONE, CommitNo(0)),
            floor: (Term::NONE, CommitNo(0)),
            claims_failed: 0,
            reads_failed: 0,
            writes_failed: 0,
            trouble: None,
            jitter: identity.seed,
            notices: Deque::new(),
        })
    }

    /// What the voter is. May change with every call that takes the time.
    #[must_use]
    pub fn role(&self) -> Role {
        match &self.phase {
            Phase::Watching { .. } | Phase::Joining { .. } => Role::Starting,
            Phase::Following { .. } => Role::Following,
            Phase::Claiming { term } | Phase::Looking { term, .. } | Phase::Taking { term, .. } => {
                Role::Standing(*term)
            }
            Phase::Leading(office) => Role::Leading(office.term),
            Phase::Draining { term, .. } | Phase::Resigning { term } => Role::Draining(*term),
            Phase::Stopping { .. } => Role::Stopping,
            Phase::Ended(None) => Role::Stopped,
            Phase::Ended(Some(refusal)) => Role::Refused(*refusal),
        }
    }

    /// Whether the owner may act as leader now: submit, answer, and use what it has read. To be
    /// asked before each submission and after each completion.
    #[must_use]
    pub fn may_act(&self, now: Instant) -> bool {
        self.office().is_some_and(|office| now < office.lease_end)
    }

    /// When its lease is over, while it leads: what [`may_act`](Self::may_act) goes by.
    #[must_use]
    pub fn lease_end(&self) -> Option<Instant> {
        self.office().map(|office| office.lease_end)
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

    /// Whether another configured voter writes and isn't leaving, as far as the last reading shows:
    /// one that would lead if this one let go.
    #[must_use]
    pub fn has_successor(&self) -> bool {
        self.others().any(|ballot| self.writes(ballot) && !ballot.leaving)
    }

    /// Says, or takes back, that this voter is about to let go of its slot. See
    /// [`has_looked_around`](Self::has_looked_around).
    pub fn announce_leaving(&mut self, leaving: bool) {
        if self.leaving != leaving {
            (self.leaving, self.leaving_scan) = (leaving, None);
        }
    }

    /// Whether a reading shows who else is leaving that began when the own block durably showed
    /// that this voter is. Of two that look around so, one at least sees the other: so not each of
    /// two that leave in the same moment takes the other for its successor.
    #[must_use]
    pub fn has_looked_around(&self) -> bool {
        let ended = if self.scan.is_idle() { self.scan.number() + 1 } else { self.scan.number() };
        self.leaving_scan.is_some_and(|scan| scan < ended)
    }

    /// Takes note of how many mounts reach this voter, its own counted.
    pub fn mounts_reaching(&mut self, mounts: u32) {
        self.mounts = mounts;
    }

    /// Takes note that somebody has lost the leader: for a short while a voter that follows reads
    /// all blocks as often as it would after a failure, and a few times more often at first. What
    /// it then sees of a leader that was killed is its last renewal, and one that was stopped says
    /// so.
    pub fn watch_closely(&mut self, now: Instant) {
        if self.alert_until <= now {
            self.alert_scans = 0;
        }
        self.alert_until = now.plus(ms(self.config.timing.renew_ms) * 2);
    }

    /// Takes note of a commit of this term that is confirmed, which the next write then shows.
    /// Ignored out of office.
    pub fn commit_confirmed(&mut self, commit: CommitNo) {
        if let Phase::Leading(Office { term, .. }) = self.phase {
            self.confirmed = self.confirmed.max((term, commit));
        }
    }

    /// The owner ends this term, and no client is recorded, which is confirmed. Once the voter has
    /// stopped, its block says so, unless it has held a later term meanwhile.
    pub fn vacated(&mut self, term: Term) {
        self.vacated = term;
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
        let blindly = is_active(Mutant::AnswerBeforeReread);
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

    /// The owner has read the ring, and the newest root in it ranks so. If a commit that ranks
    /// after it was confirmed before this term began, its root was durable by then and is lost: the
    /// voter takes part no longer, lets go of its slot in good order, and the answer is true.
    pub fn has_lost(&mut self, now: Instant, newest: (Term, CommitNo)) -> bool {
        let leads = matches!(self.phase, Phase::Leading(_));
        let has_lost = leads && newest < self.floor && !is_active(Mutant::LostRootIgnored);
        if has_lost {
            self.refuse(now, Refusal::RootLost { confirmed: self.floor, newest });
        }
        has_lost
    }

    /// The owner has ended its term, and nothing of it is in flight any more: every write has
    /// completed and was followed by a flush, and no answer is under way. Called in office it hands
    /// over at once, after [`Notice::Deposed`] it tells that all is over. Else it does nothing.
    pub fn resign(&mut self, now: Instant) {
        match self.phase {
            Phase::Leading(Office { term, .. }) | Phase::Draining { term, refusal: None } => {
                self.phase = Phase::Resigning { term };
            }
            Phase::Draining { refusal: Some(refusal), .. } => self.let_go(refusal),
            Phase::Watching { .. }
            | Phase::Joining { .. }
            | Phase::Following { .. }
            | Phase::Claiming { .. }
            | Phase::Looking { .. }
            | Phase::Taking { .. }
            | Phase::Resigning { .. }
            | Phase::Stopping { .. }
            | Phase::Ended(_) => return,
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
            Phase::Ended(_) | Phase::Stopping { .. } => {}
            Phase::Draining { refusal: Some(refusal), .. } => self.let_go(refusal),
            Phase::Watching { .. } => self.stopped(Ok(())),
            Phase::Joining { .. } if self.writes_failed == 0 && self.is_not_writing() => {
                self.stopped(Ok(()));
            }
            Phase::Joining { .. }
            | Phase::Following { .. }
            | Phase::Claiming { .. }
            | Phase::Looking { .. }
            | Phase::Taking { .. }
            | Phase::Leading(_)
            | Phase::Draining { refusal: None, .. }
            | Phase::Resigning { .. } => {
                self.phase = Phase::Stopping { refusal: None };
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
        if let Phase::Leading(office) = &mut self.phase
            && let Some(Check::Clear(token)) = office.check
        {
            office.check = None;
            return Some(Notice::ClaimsClear(token));
        }
        None
    }

    /// The next request to submit. A lease counts from here, so a request is to be submitted at
    /// once, or counts as in flight. At most one write or flush, and one read of each slot, at a
    /// time.
    pub fn poll_request(&mut self, now: Instant) -> Option<BlockRequest<'m>> {
        self.expire(now);
        if let Some(request) = self.poll_write(now) {
            return Some(request);
        }
        if self.scan.is_idle() && self.scan_due().is_some_and(|due| due <= now) {
            self.scan.begin(now);
            self.alert_scans = self.alert_scans.saturating_add(1);
        }
        self.scan.poll_request()
    }

    /// When [`poll_request`](Self::poll_request) or [`poll_notice`](Self::poll_notice) will have
    /// something although nothing happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let lease_end = self.office().map(|office| office.lease_end);
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
    fn office(&self) -> Option<&Office> {
        if let Phase::Leading(office) = &self.phase { Some(office) } else { None }
    }
}
