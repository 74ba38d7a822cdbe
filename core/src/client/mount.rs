//! The mount: what joins the file operations of one machine to the cluster.
//!
//! ```text
//!            greeted, root known            leave                farewell answered
//!   Joining --------------------> Mounted ----------> Leaving -------------------> Left
//!                                  |   ^
//!              no server, or the   v   |   greeted again, the lease renewed
//!              lease is over      Suspended
//!                                  |
//!                                  |   the server has given the mount up
//!                                  +----------------------------------------> Evicted
//!                                  |   the server refuses what it says
//!                                  +----------------------------------------> Refused
//! ```
//!
//! # Invariants
//!
//! * Every request taken gets one [`Answer::Done`], and its memory comes back with it; a
//!   [`Op::Forget`](super::op::Op::Forget) is always taken and gets none.
//! * Nothing that was read is answered, and nothing is submitted to the device, past the lease,
//!   which runs from when its renewal was *sent*.
//! * A request that a signal has met ends within a second, whether there is a server or not, unless
//!   it is in the middle of several changes, or of a transfer.
//! * A suspended mount keeps all it has and waits. What it has not made durable is lost only when
//!   it is evicted, or when the server refuses its transactions for good: then every request fails
//!   with [`OpError::Io`](super::op::OpError::Io).
//! * A root that a grant brings is known to the cache and to the reader before the lock lets
//!   anybody in.
//!
//! What this module deliberately doesn't know: who its users are, sockets, the device, the clock.

use super::commit::Committer;
use super::compact::{self, Compactor};
use super::fs::Fs;
use super::items::{self, ItemCache};
use super::loans::Loans;
use super::op::{self, Answer, Request, Resume};
use super::reader::Reader;
use crate::arena::{Arena, ArenaFull};
use crate::format::key::{Key, KeyBytes, NameSecret};
use crate::format::super_block::Super;
use crate::format::wire::ErrorCode;
use crate::format::wire::Kind;
use crate::format::wire::greeting::Machine;
use crate::format::{ClientId, CommitNo, Seq};
use crate::lock::client::{LockClient, View};
use crate::lock::{LockName, Mode, ToServer};
use crate::mutant::{Mutant, is_active};
use crate::node::{Action, Event, More, Node};
use crate::quorum::Watcher;
use crate::{net, quorum};
use commits::Due;
use core::time::Duration;
use ending::Ending;
use feed::Changes;
use heapless::Deque;
use orphans::{Orphans, Scan};
use outrider_hal::{BlockRequest, Completion, Instant, StreamId, Tag};
use slots::{Slots, Stage};
use talk::{Numbers, RootQuestion};
use way::Way;
use zerocopy::IntoBytes;
use zeroing::Zeroing;

mod commits;
mod compaction;
mod ending;
mod feed;
mod keep;
mod knocks;
mod limits;
mod orphans;
mod slots;
mod talk;
mod way;
mod work;
mod zeroing;

pub use limits::{LimitsError, MountLimits};

/// Actions decided on and not yet given out.
const ACTIONS: usize = 64;
/// Runs, leaves of the manifest or handfuls of items that the reader looks at in a step.
const READER_BUDGET: u32 = 64;
/// The first tag of the reader's block requests; then those of the others.
const TAG_READER: u64 = 0;
const TAG_COMMIT: u64 = TAG_READER + Reader::TAGS;
const TAG_WATCHER: u64 = TAG_COMMIT + Committer::TAGS;
const TAG_ZEROING: u64 = TAG_WATCHER + Watcher::TAGS;
const TAG_COMPACT: u64 = TAG_ZEROING + (1 << 32);

/// How long a mount waits for things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountTiming {
    /// What was read may be answered this long after the renewal was sent. Less than the time after
    /// which a server evicts a mount it doesn't hear.
    pub lease: Duration,
    /// The lease is renewed this long after the last renewal was sent.
    pub renew: Duration,
    /// A change becomes durable at latest this long after it was made, if nothing asks for it
    /// before and a server can be reached.
    pub commit_age: Duration,
    /// Numbers of the volume are asked for again when they are older than this.
    pub statfs_age: Duration,
    /// The pause after the first attempt to reach a server has failed. Doubles with each further
    /// one.
    pub redial: Duration,
    /// The longest pause.
    pub redial_max: Duration,
    /// What a server had no answer to is asked again after this; a read that failed, too.
    pub retry: Duration,
    /// How often the volume is searched for inodes that nobody uses and that have no name.
    pub orphan_scan: Duration,
    /// A mount that changes nothing lets its number pass this often, or a few times less, while
    /// others change something, so that the feeds of changes get on.
    pub pass: Duration,
}

impl MountTiming {
    /// For real devices.
    pub const NORMAL: MountTiming = MountTiming {
        lease: Duration::from_secs(10),
        renew: Duration::from_secs(2),
        commit_age: Duration::from_secs(1),
        statfs_age: Duration::from_secs(1),
        redial: Duration::from_millis(50),
        redial_max: Duration::from_secs(2),
        retry: Duration::from_millis(500),
        orphan_scan: Duration::from_secs(60),
        pass: Duration::from_secs(1),
    };

    /// For a volume whose servers wait this long for a silent mount: a lease is a third of that, so
    /// that a mount that is past it has time to say so, or to be killed, before others have its
    /// locks.
    #[must_use]
    pub fn of_recovery(recovery: Duration) -> MountTiming {
        MountTiming { lease: recovery / 3, renew: recovery / 15, ..MountTiming::NORMAL }
    }

    /// Whether a lease is renewed in time.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let MountTiming { lease, renew, redial, redial_max, retry, orphan_scan, pass, .. } = *self;
        // Two renewals that are lost must not end a lease.
        renew.saturating_mul(3) <= lease
            && redial <= redial_max
            && [renew, redial, retry, orphan_scan, pass].iter().all(|time| !time.is_zero())
    }
}

/// What a mount is told at its start.
#[derive(Debug, Clone, Copy)]
pub struct MountConfig {
    /// The volume, verified.
    pub volume: Super,
    /// The election's constants: how often to look for a leader.
    pub quorum: quorum::Timing,
    /// Those of connections.
    pub net: net::Timing,
    /// Its own.
    pub timing: MountTiming,
    /// Random, new for each mount: tells the server that it is the same mount when it comes again.
    pub nonce: [u8; 16],
    /// Where it runs, by which servers know that it is gone when the machine has booted again.
    pub machine: Machine,
    /// Random: what it greets servers with is made from this.
    pub secret: [u8; 32],
    /// Nothing is changed.
    pub read_only: bool,
}

/// Why a mount can't be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartError {
    /// The memory is too small.
    Memory,
    /// The limits don't hold.
    Limits(LimitsError),
    /// The constants don't fit together.
    Timing,
    /// The volume can't be written by this code.
    ReadOnly,
}

impl From<ArenaFull> for StartError {
    fn from(_: ArenaFull) -> StartError {
        StartError::Memory
    }
}

/// Where a mount is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountState {
    /// No server has welcomed it yet. Requests are taken, and wait.
    Joining,
    /// It works.
    Mounted,
    /// The lease is over, because no server was reached. Requests are taken, and wait.
    Suspended,
    /// It makes everything durable and gives back what it has. No request is taken.
    Leaving,
    /// It has left the volume.
    Left,
    /// The server has given it up. What was not durable is lost, every request fails.
    Evicted,
    /// The server refuses what it says, again and again: the two don't agree about what it was lent
    /// or which transaction is open. What was not durable is lost, every request fails.
    Refused,
}

/// What a mount has done since it started, for status and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Requests answered.
    pub requests: u64,
    /// Runs of operations; what is above `requests` are repeats after a wait.
    pub runs: u64,
    /// Times a server has welcomed it.
    pub greetings: u64,
    /// Connections ended because a server broke the protocol.
    pub violations: u64,
    /// Messages about locks sent.
    pub lock_messages: u64,
    /// Transactions sent.
    pub transactions: u64,
    /// Loan requests sent.
    pub loans: u64,
    /// Roots asked for: renewals of the lease are that.
    pub roots: u64,
    /// Times the volume's numbers were asked for.
    pub statfs: u64,
    /// Questions whether inodes are still in use, sent.
    pub orphan_questions: u64,
    /// Inodes deleted because nobody used them any more.
    pub deleted: u64,
    /// Transactions made durable.
    pub commits: u64,
    /// Locks given back, or lowered.
    pub revokes: u64,
    /// Keys that could not be read.
    pub reads_failed: u64,
    /// Items that were dirty when the mount was evicted, or had to give up.
    pub items_lost: u64,
    /// What was merged for the server.
    pub compaction: compact::Counters,
}

/// Where it is in its life, the lease aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Joining,
    Mounted,
    Leaving,
    Left,
    Evicted,
    Refused,
}

/// The mount. See the module.
pub struct Mount<'m> {
    config: MountConfig,
    life: Life,
    /// When the lease is over.
    lease_until: Instant,
    /// It was over at the last step.
    suspended: bool,
    counters: Counters,
    way: Way<'m>,
    fs: Fs<'m>,
    items: ItemCache<'m>,
    locks: LockClient<'m>,
    reader: Reader<'m>,
    committer: Committer<'m>,
    loans: Loans<'m>,
    slots: Slots<'m>,
    zeroing: Zeroing<'m>,
    compactor: Compactor<'m>,
    /// Nothing about compaction is told before this time, after there was no room for it.
    compact_at: Instant,
    orphans: Orphans,
    scan: Scan,
    feed: Changes,
    due: Due,
    /// The newest root heard of.
    root: CommitNo,
    /// The question for it that is under way.
    root_question: Option<RootQuestion>,
    /// When it is asked again.
    ask_root_at: Instant,
    /// No root that is known can be read.
    root_wanted: bool,
    statfs: Numbers,
    /// When more may be asked for, after there was less than was wanted.
    loan_at: Instant,
    /// What a message about a lock is to be answered with.
    reply: Option<ToServer>,
    /// The lock whose caches are being dropped, and what is kept of it.
    dropping: Option<(LockName, Mode)>,
    ending: Ending,
    actions: Deque<Action<'m>, ACTIONS>,
}

impl<'m> Mount<'m> {
    /// Carves a mount of valid limits, or measures it.
    pub fn carve(
        arena: &mut Arena<'m>,
        limits: &MountLimits,
        config: &MountConfig,
    ) -> Result<Mount<'m>, StartError> {
        limits.validate().map_err(StartError::Limits)?;
        let volume = &config.volume;
        if !config.timing.is_valid() || !config.net.is_valid() {
            return Err(StartError::Timing);
        }
        if !volume.is_writable() && !config.read_only {
            return Err(StartError::ReadOnly);
        }
        let way = Way::carve(arena, &limits.link, config, TAG_WATCHER)?;
        let secret = NameSecret(volume.fields().name_key);
        Ok(Mount {
            config: *config,
            life: Life::Joining,
            lease_until: Instant(0),
            suspended: true,
            counters: Counters::default(),
            way: way.ok_or(StartError::Timing)?,
            fs: Fs::carve(arena, &limits.fs, secret)?,
            items: ItemCache::carve(arena, &limits.items)?,
            locks: LockClient::carve(arena, &limits.locks)?,
            reader: Reader::carve(arena, &limits.reader, volume)?,
            committer: Committer::carve(arena, &limits.commit(), volume)?,
            loans: Loans::carve(arena, &limits.loans(), volume)?,
            slots: Slots::carve(arena, limits.requests, limits.deletions)?,
            zeroing: Zeroing::carve(arena, limits.zeroings, TAG_ZEROING)?,
            compactor: Compactor::carve(arena, &limits.compact(config.read_only), volume)?,
            compact_at: Instant(0),
            orphans: Orphans::default(),
            scan: Scan::NEW,
            feed: Changes::default(),
            due: Due::default(),
            root: CommitNo(0),
            root_question: None,
            ask_root_at: Instant(0),
            root_wanted: false,
            statfs: Numbers::new(volume.blocks()),
            loan_at: Instant(0),
            reply: None,
            dropping: None,
            ending: Ending::default(),
            actions: Deque::new(),
        })
    }

    /// Takes a request. Gives it back when all slots are taken, which ends with an answer, or when
    /// the mount has ended or is about to: see [`state`](Self::state). It is worked on in the next
    /// [`step`](Node::step).
    #[expect(clippy::result_large_err, reason = "there is no heap, and its owner gets it back")]
    pub fn submit(
        &mut self,
        now: Instant,
        id: op::RequestId,
        request: Request<&'m mut [u8]>,
    ) -> Result<(), Request<&'m mut [u8]>> {
        self.take(now, id, request)
    }

    /// The next thing to say to the platform. To be asked until there is nothing after each
    /// [`step`](Node::step), before much time goes by: an answer is made under the lease.
    pub fn poll_answer(&mut self) -> Option<(op::RequestId, Answer<&'m mut [u8]>)> {
        self.next_answer()
    }

    /// The platform has done what an answer asked for, or wants the request to end. Of a request
    /// that has ended, nothing.
    pub fn resume(&mut self, now: Instant, id: op::RequestId, resume: Resume) {
        self.on_resumed(now, id, resume);
    }

    /// Leaves the volume: takes no more requests, finishes those at work, makes everything durable
    /// and says farewell, by which all that was lent goes back. Waits for a server if there is
    /// none, but not for one that it has never met. Handles need not be closed.
    pub fn leave(&mut self, now: Instant) {
        let _ = now;
        match self.life {
            Life::Joining | Life::Mounted => self.life = Life::Leaving,
            Life::Leaving | Life::Left | Life::Evicted | Life::Refused => {}
        }
    }

    /// Where it is in its life, as of the last step.
    #[must_use]
    pub fn state(&self) -> MountState {
        match self.life {
            Life::Joining => MountState::Joining,
            Life::Mounted if self.suspended => MountState::Suspended,
            Life::Mounted => MountState::Mounted,
            Life::Leaving => MountState::Leaving,
            Life::Left => MountState::Left,
            Life::Evicted => MountState::Evicted,
            Life::Refused => MountState::Refused,
        }
    }

    /// Why it is [`MountState::Refused`].
    #[must_use]
    pub fn refusal(&self) -> Option<ErrorCode> {
        self.ending.refusal
    }

    /// Whether a server has heard its farewell: nothing is kept for it there any more, and nothing
    /// of it is under way.
    #[must_use]
    pub fn has_parted(&self) -> bool {
        self.ending.parted
    }

    /// When the lease is over, while it may act: submit, and answer what it has read.
    #[must_use]
    pub fn lease_end(&self) -> Option<Instant> {
        self.may_submit().then_some(self.lease_until)
    }

    /// Whether no transfer of it is under way, by itself or by the platform.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let transfers = self.committer.in_flight() > 0 || self.zeroing.in_flight() > 0;
        !transfers && self.slots.oldest(|stage| *stage == Stage::Moving).is_none()
    }

    /// What it has done.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters { compaction: self.compactor.counters(), ..self.counters }
    }

    /// What it was told at its start.
    #[must_use]
    pub fn config(&self) -> &MountConfig {
        &self.config
    }

    /// Its number among the clients, once a server has given it one.
    #[must_use]
    pub fn client(&self) -> Option<ClientId> {
        self.way.link.client()
    }

    /// Requests at work.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.slots.used()
    }

    /// The newest root heard of.
    #[must_use]
    pub fn root(&self) -> CommitNo {
        self.root
    }

    /// No change that is still to become durable, of any mount, bears this number, or an earlier
    /// one, as far as it has heard.
    #[must_use]
    pub fn stable(&self) -> Seq {
        self.feed.stable()
    }

    /// The locks it has, or waits for.
    pub fn locks(&self) -> impl Iterator<Item = View> + '_ {
        self.locks.views()
    }

    /// Inodes that are looked up, open, or worked on.
    #[must_use]
    pub fn inodes_used(&self) -> u32 {
        self.fs.inodes_used()
    }

    /// Files and directories that are open.
    #[must_use]
    pub fn handles_open(&self) -> u32 {
        self.fs.handles_open()
    }

    /// What is cached, and how much of it is dirty.
    #[must_use]
    pub fn usage(&self) -> items::Usage {
        self.items.usage()
    }

    /// Whether operations are carried out, the lease aside.
    fn works(&self) -> bool {
        match self.life {
            Life::Mounted => true,
            // It may have been told to leave before it had begun.
            Life::Leaving => self.committer.seq().is_some(),
            Life::Joining | Life::Left | Life::Evicted | Life::Refused => false,
        }
    }

    /// Whether all that is left is to end what was begun.
    fn has_ended(&self) -> bool {
        match self.life {
            Life::Left | Life::Evicted | Life::Refused => true,
            Life::Joining | Life::Mounted | Life::Leaving => false,
        }
    }

    /// Whether anything may be submitted that touches the volume.
    fn may_submit(&self) -> bool {
        self.works() && !self.suspended
    }

    /// Decides what is submitted, and which connections are made and closed.
    fn step_actions(&mut self, now: Instant) -> More {
        while !self.actions.is_full() {
            let may = self.may_submit();
            let action = if let Some(action) = self.way.poll_action(now) {
                action
            } else if let Some(request) = self.way.watcher.poll_request(now) {
                Action::Block(request)
            } else if let Some(request) = may.then(|| self.reader.poll_request()).flatten() {
                Action::Block(tagged(request, TAG_READER))
            } else if let Some(request) = may.then(|| self.committer.poll_request()).flatten() {
                Action::Block(tagged(request, TAG_COMMIT))
            } else if let Some(request) = may.then(|| self.zeroing.poll_request()).flatten() {
                Action::Block(request)
            } else if let Some(request) = may.then(|| self.compactor.poll_request()).flatten() {
                Action::Block(tagged(request, TAG_COMPACT))
            } else {
                return More::No;
            };
            assert!(self.actions.push_back(action).is_ok(), "room was looked for");
        }
        // The driver takes these first.
        More::Yes
    }

    fn on_completed(&mut self, now: Instant, done: Completion<'m>) {
        match done.tag.0 {
            TAG_READER..TAG_COMMIT => self.reader.handle_completion(untagged(done, TAG_READER)),
            TAG_COMMIT..TAG_WATCHER => {
                self.committer.handle_completion(untagged(done, TAG_COMMIT));
            }
            TAG_WATCHER..TAG_ZEROING => self.way.watcher.handle_completion(now, done),
            TAG_ZEROING..TAG_COMPACT => self.zeroing.handle_completion(done),
            TAG_COMPACT.. => self.compactor.handle_completion(untagged(done, TAG_COMPACT)),
        }
    }
}

impl<'m> Node<'m> for Mount<'m> {
    fn handle(&mut self, now: Instant, event: Event<'m>) {
        match event {
            Event::Completed(done) => self.on_completed(now, done),
            Event::Accepted(_)
            | Event::Connected { .. }
            | Event::ConnectFailed { .. }
            | Event::ListenFailed
            | Event::Received { .. }
            | Event::Sent { .. }
            | Event::Closed(_) => self.way.handle(now, &event),
        }
    }

    fn step(&mut self, now: Instant) -> More {
        self.step_talk(now);
        self.suspended = self.locks.is_suspended(now);
        if self.suspended && self.life == Life::Mounted && is_active(Mutant::EvictionByLease) {
            self.on_evicted(now);
        }
        if !self.has_ended() {
            self.step_signals(now);
        }
        let mut more = More::No;
        if self.may_submit() {
            for more_of in [
                self.step_fills(now),
                self.step_locks(now),
                self.step_work(now),
                self.step_commit(now),
            ] {
                more = if more_of == More::Yes { More::Yes } else { more };
            }
            self.step_orphans(now);
        } else if self.has_ended() {
            self.fail_all(now);
        }
        self.step_loans(now);
        if self.step_compaction(now) == More::Yes {
            more = More::Yes;
        }
        self.step_questions(now);
        self.step_ending(now);
        // What was asked and answered goes into the buffers.
        self.way.link.step(now);
        match self.step_actions(now) {
            More::Yes => More::Yes,
            More::No if self.has_ready() => More::Yes,
            More::No => more,
        }
    }

    fn poll_action(&mut self) -> Option<Action<'m>> {
        self.actions.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let link = &self.way.link;
        let up = link.is_up() && !self.ending.parting && link.can_request(Kind::Root).is_ok();
        let root = (up && self.root_question.is_none()).then_some(self.ask_root_at);
        let statfs =
            (up && self.statfs.wanted && !self.statfs.asked).then_some(self.statfs.retry_at);
        let orphans = up.then(|| self.orphans.poll_timeout()).flatten();
        let loan = self.loans.is_short().then_some(self.loan_at);
        let works = self.may_submit();
        let due = [
            self.way.poll_timeout(),
            root,
            statfs,
            orphans,
            loan,
            works.then(|| self.locks.poll_timeout()).flatten(),
            works.then(|| self.slots.next_time()).flatten(),
            self.slots.next_signal(),
            works.then(|| self.scan_timeout()).flatten(),
            self.commit_timeout(),
            self.compaction_timeout(),
            self.ending_timeout(),
            works.then_some(self.lease_until).filter(|_| !is_active(Mutant::AnswerAfterLease)),
        ];
        due.into_iter().flatten().min()
    }

    fn recv_space(&mut self, stream: StreamId) -> &mut [u8] {
        self.way.recv_space(stream)
    }

    fn send_bytes(&self, stream: StreamId) -> &[u8] {
        self.way.send_bytes(stream)
    }
}

/// A component's request, under its own range of tags.
fn tagged(request: BlockRequest<'_>, base: u64) -> BlockRequest<'_> {
    BlockRequest { tag: Tag(base + request.tag.0), op: request.op }
}

fn untagged(done: Completion<'_>, base: u64) -> Completion<'_> {
    Completion { tag: Tag(done.tag.0 - base), ..done }
}

/// A key as the item cache has it.
fn range_bytes(key: &Key) -> items::Key {
    let mut bytes = [0; items::KEY_BYTES];
    bytes.copy_from_slice(KeyBytes::from(*key).as_bytes());
    bytes
}

/// The keys that a lock covers.
fn lock_range(name: &LockName) -> items::Range {
    let range = name.range();
    items::Range { first: range_bytes(&range.first()), last: range_bytes(&range.last()) }
}

#[cfg(test)]
mod tests;
