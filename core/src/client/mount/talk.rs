//! What mount and server say to each other, and what of it renews the lease.
//!
//! # The lease
//!
//! A question for the root is a renewal. Its answer proves that the server heard the mount at some
//! time after the question was made, so the lease is counted from then; if the question had to be
//! sent again over another connection that only makes it shorter. A welcome renews it the same way,
//! from when the greeting was sent.
//!
//! # Invariants
//!
//! * A message that can't be dealt with now stays at the head, and those behind it wait.
//! * What breaks the protocol ends the connection; greeting the next term sorts things out.
//!
//! What this module deliberately doesn't know: connections.

use super::orphans::ASKED_MAX;
use super::{Life, Mount};
use crate::client::commit::Committed;
use crate::client::mount::slots::Park;
use crate::client::op;
use crate::format::wire::message::{
    ClientAnswer, ClientRequest, HELD_LOCKS_MAX, HeldLocks, HeldRecord, InoSet, Inos, LockTell,
    ManifestRoot, Outcome, RootNow, ServerAnswer, ServerRequest, Statfs,
};
use crate::format::wire::{ErrorCode, Kind};
use crate::format::{Seq, Term};
use crate::lock::client::Reply;
use crate::lock::{Held, LockName, Mode, ToClient};
use crate::net::{End, Incoming, LinkEvent, Ticket};
use outrider_hal::Instant;
use zerocopy::little_endian::U64;

/// Messages taken in a step.
const MESSAGES_PER_STEP: u32 = 64;

/// A message that no server sends which keeps to the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation;

/// What a message was.
enum Taken {
    /// An answer, which is dealt with.
    Recorded,
    /// An answer, which brought what was asked for.
    Lent,
    /// An answer, of this meaning.
    Committed(Option<Committed>),
    Root(RootNow),
    Numbers(Statfs),
    Failed(ErrorCode),
    /// What was said about compaction was heard.
    Compaction,
    /// A request, to be answered so.
    Answer(Answer),
    /// News of a lock.
    Told(LockTell),
}

/// What a request of the server is answered with.
enum Answer {
    Recall,
    InUse(InoSet),
    Compact(Result<(), ErrorCode>),
    /// What is held, from this key on.
    Recover(crate::format::key::Key),
}

/// A question for the root.
#[derive(Debug, Clone, Copy)]
pub(super) struct RootQuestion {
    /// When it was made.
    pub(super) at: Instant,
    /// It was made because no known root can be read.
    pub(super) wanted: bool,
}

/// The volume's numbers, as the server last told them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    pub(super) volume: op::Statfs,
    pub(super) at: Option<Instant>,
    /// Somebody waits for newer ones.
    pub(super) wanted: bool,
    pub(super) asked: bool,
    /// They are not asked for before this time.
    pub(super) retry_at: Instant,
}

impl Numbers {
    pub(super) fn new(blocks: u64) -> Numbers {
        let volume =
            op::Statfs { blocks, blocks_free: 0, blocks_available: 0, inodes: 0, inodes_free: 0 };
        Numbers { volume, at: None, wanted: false, asked: false, retry_at: Instant(0) }
    }

    /// Whether they must be asked for again before they are told.
    pub(super) fn is_due(&self, now: Instant, age: core::time::Duration) -> bool {
        self.at.is_none_or(|at| at.plus(age) <= now)
    }

    fn learn(&mut self, now: Instant, told: &Statfs) {
        // Of each inode's number there is a lot; the blocks run out before.
        let inodes = u64::MAX >> 1;
        self.volume = op::Statfs {
            blocks: told.blocks,
            blocks_free: told.blocks_free,
            blocks_available: told.blocks_free,
            inodes,
            inodes_free: inodes - told.ino_next.0.min(inodes),
        };
        self.at = Some(now);
    }
}

impl<'m> Mount<'m> {
    /// Deals with connections and messages.
    pub(super) fn step_talk(&mut self, now: Instant) {
        self.way.link.step(now);
        self.way.step(now);
        while let Some(end) = self.way.poll_lost(now) {
            self.on_lost(now, end);
        }
        while let Some(event) = self.way.link.poll_event() {
            match event {
                LinkEvent::Up { term, renewed, .. } => {
                    if renewed {
                        self.compactor.handle_server();
                    }
                    self.on_up(now, term);
                }
                LinkEvent::Message => {}
            }
        }
        for _ in 0..MESSAGES_PER_STEP {
            match self.take_message(now) {
                Ok(true) => {}
                Ok(false) => break,
                Err(Violation) => self.break_off(),
            }
        }
    }

    /// A server has welcomed the mount. It asks what is held, as each does in every term.
    fn on_up(&mut self, now: Instant, term: Term) {
        self.counters.greetings += 1;
        if self.life == Life::Evicted {
            // It has no locks, and the farewell is all it says.
            return self.way.welcomed();
        }
        if self.locks.handle_greeting(term, true).is_err() {
            return self.break_off();
        }
        self.way.welcomed();
        self.renew_lease(now, self.way.greeted_at());
        self.ask_root_at = now;
    }

    /// The server has broken the protocol.
    pub(super) fn break_off(&mut self) {
        self.counters.violations += 1;
        self.way.link.disconnect();
    }

    fn on_lost(&mut self, now: Instant, end: End) {
        match end {
            End::Refused { error: ErrorCode::Evicted, proven: true } => self.on_evicted(now),
            End::Farewell => self.on_parted(),
            End::Closed
            | End::Record(_)
            | End::Malformed(_)
            | End::Breach(_)
            | End::Silent
            | End::Late
            | End::Refused { .. }
            | End::Refusing(_)
            | End::OldTerm(_)
            | End::Replaced
            | End::Knocked
            | End::Dropped => {}
        }
    }

    fn renew_lease(&mut self, now: Instant, sent: Instant) {
        let until = sent.plus(self.config.timing.lease);
        self.lease_until = self.lease_until.max(until);
        self.locks.handle_lease(now, until);
    }

    /// Deals with the message at the head, if there is one; says whether to go on.
    fn take_message(&mut self, now: Instant) -> Result<bool, Violation> {
        let taken =
            match self.way.link.head() {
                None => return Ok(false),
                Some(Incoming::Answer(_, Outcome::Done(answer))) => match answer {
                    ServerAnswer::LockAsk
                    | ServerAnswer::Farewell
                    | ServerAnswer::Status(_)
                    | ServerAnswer::Fence
                    | ServerAnswer::Clients(_)
                    | ServerAnswer::Waits(_)
                    | ServerAnswer::Pin(_) => Taken::Recorded,
                    ServerAnswer::Orphans(unused) => {
                        self.orphans.answered(|at| unused.contains(at));
                        Taken::Recorded
                    }
                    ServerAnswer::Transaction(done) => Taken::Committed(
                        self.committer.handle_done(&mut self.items, &mut self.loans, &done),
                    ),
                    ServerAnswer::Loan(loan) => {
                        self.loans.handle_loan(&loan);
                        Taken::Lent
                    }
                    ServerAnswer::Root(now) => Taken::Root(now),
                    ServerAnswer::Statfs(numbers) => Taken::Numbers(numbers),
                    ServerAnswer::CompactReady | ServerAnswer::Compacted => Taken::Compaction,
                },
                Some(Incoming::Answer(_, Outcome::Failed(error, _))) => Taken::Failed(error),
                Some(Incoming::Request(request)) => match request {
                    ServerRequest::LockTell(_) if self.reply.is_some() && !self.ending.parting => {
                        return Ok(false);
                    }
                    ServerRequest::LockTell(tell) => Taken::Told(tell),
                    ServerRequest::Recover(from) => Taken::Answer(Answer::Recover(from.into())),
                    ServerRequest::Recall(recall) => {
                        self.loans.handle_recall(&recall);
                        Taken::Answer(Answer::Recall)
                    }
                    ServerRequest::InUse(inos) => {
                        let mut used = InoSet::default();
                        for (at, ino) in inos.iter().enumerate() {
                            if self.fs.uses(ino) {
                                used.insert(at);
                            }
                        }
                        Taken::Answer(Answer::InUse(used))
                    }
                    ServerRequest::Compact(asked) => {
                        let begun = self.compactor.handle_compact(&asked);
                        Taken::Answer(Answer::Compact(begun))
                    }
                },
            };
        let Some(ticket) = self.way.link.take(now) else { return Ok(false) };
        match taken {
            Taken::Answer(answer) => return self.answer(now, ticket, &answer).map(|()| true),
            Taken::Told(tell) => {
                self.on_told(now, &tell)?;
                let told = Outcome::Done(ClientAnswer::LockTell);
                let _ = self.way.link.answer(ticket, &told);
                return Ok(true);
            }
            Taken::Recorded => {}
            Taken::Lent => self.note_loan_done(),
            Taken::Committed(done) => self.on_committed(now, done)?,
            Taken::Root(root) => self.on_root(now, &root)?,
            Taken::Numbers(numbers) => {
                self.statfs.asked = false;
                self.statfs.learn(now, &numbers);
                self.slots.wake(|park| *park == Park::Statfs);
            }
            Taken::Failed(error) => self.on_failed(now, ticket.kind(), error)?,
            Taken::Compaction => self.on_compaction_answered(now, ticket.kind(), None)?,
        }
        self.way.link.recorded(ticket);
        Ok(true)
    }

    /// Answers a request that was taken.
    fn answer(&mut self, now: Instant, ticket: Ticket, answer: &Answer) -> Result<(), Violation> {
        let mut records = heapless::Vec::<HeldRecord, HELD_LOCKS_MAX>::new();
        let answer = match answer {
            Answer::Recall => ClientAnswer::Recall,
            Answer::InUse(used) => ClientAnswer::InUse(*used),
            Answer::Compact(Ok(())) => ClientAnswer::Compact,
            Answer::Compact(Err(error)) => {
                let _ = self.way.link.answer(ticket, &Outcome::Failed(*error, None));
                return Ok(());
            }
            Answer::Recover(from) => {
                let from = ToClient::Recover { from: *from };
                match self.locks.handle_message(now, self.way.link.term(), &from) {
                    Ok(Reply::Batch(_)) => {}
                    Ok(Reply::Nothing | Reply::Message(_)) | Err(_) => return Err(Violation),
                }
                let ToClient::Recover { from } = from else { return Err(Violation) };
                let none = Held { name: LockName::RENAME, mode: Mode::Null };
                let mut batch = [none; HELD_LOCKS_MAX];
                let len = self.locks.recover(from, &mut batch);
                records.extend(batch[..len].iter().map(Held::emit));
                ClientAnswer::Recover(HeldLocks::new(&records).map_err(|_| Violation)?)
            }
        };
        // If it is stale, nobody waits for it.
        let _ = self.way.link.answer(ticket, &Outcome::Done(answer));
        Ok(())
    }

    /// The server says something about a lock. The root that comes with a grant is known before the
    /// grant counts.
    fn on_told(&mut self, now: Instant, tell: &LockTell) -> Result<(), Violation> {
        let message = ToClient::parse(&tell.lock).map_err(|_| Violation)?;
        if self.ending.parting {
            // The farewell gives back all of them.
            return Ok(());
        }
        if let Some(root) = &tell.root {
            self.note_root(root)?;
        }
        match self.locks.handle_message(now, self.way.link.term(), &message) {
            Ok(Reply::Nothing) => Ok(()),
            Ok(Reply::Message(reply)) => {
                self.reply = Some(reply);
                Ok(())
            }
            Ok(Reply::Batch(_)) | Err(_) => Err(Violation),
        }
    }

    /// Takes note of a durable root.
    pub(super) fn note_root(&mut self, root: &ManifestRoot) -> Result<(), Violation> {
        self.reader.set_root(root).map_err(|_| Violation)?;
        self.items.note_root(root.commit);
        self.root = self.root.max(root.commit);
        self.feed.note_root(root);
        Ok(())
    }

    fn on_root(&mut self, now: Instant, told: &RootNow) -> Result<(), Violation> {
        let Some(question) = self.root_question.take() else { return Err(Violation) };
        self.note_root(&told.root)?;
        self.feed.learn(told.seq_stable);
        self.feed.answered();
        if question.wanted {
            self.root_wanted = false;
            self.reader.answer_root(&told.root).map_err(|_| Violation)?;
        }
        self.renew_lease(now, question.at);
        self.way.proven();
        if self.committer.seq().is_none() {
            if told.seq_open == Seq(0) {
                return Err(Violation);
            }
            self.committer.open(told.seq_open);
            if self.life == Life::Joining {
                self.life = Life::Mounted;
            }
        }
        Ok(())
    }

    fn on_failed(&mut self, now: Instant, kind: Kind, error: ErrorCode) -> Result<(), Violation> {
        let later = now.plus(self.config.timing.retry);
        match kind {
            Kind::Orphans => {
                self.orphans.unanswered();
                self.orphans.ask_later(later);
                if self.life == Life::Leaving {
                    self.orphans.abandon();
                }
            }
            Kind::Statfs => {
                self.statfs.asked = false;
                self.statfs.retry_at = later;
            }
            Kind::Root => {
                self.root_question = None;
                self.ask_root_at = later;
            }
            Kind::Loan => {
                self.loans.handle_refused(error);
                self.loan_at = later;
                self.note_loan_refused(now, error);
            }
            Kind::Transaction => self.on_commit_refused(now, error),
            Kind::Farewell => self.on_farewell_failed(later),
            Kind::LockAsk
            | Kind::Status
            | Kind::Fence
            | Kind::Clients
            | Kind::Waits
            | Kind::Pin => return Err(Violation),
            Kind::CompactReady | Kind::Compacted => {
                self.on_compaction_answered(now, kind, Some(error))?;
            }
            Kind::LockTell | Kind::Recover | Kind::Recall | Kind::InUse | Kind::Compact => {
                return Err(Violation);
            }
        }
        Ok(())
    }

    /// Asks what is to be asked.
    pub(super) fn step_questions(&mut self, now: Instant) {
        if !self.way.link.is_up() {
            return;
        }
        if self.ending.parting {
            return;
        }
        self.send_lock_messages(now);
        let due = self.ask_root_at <= now || self.root_wanted || self.wants_feed();
        if due && self.root_question.is_none() && self.ask(&ClientRequest::Root) {
            self.counters.roots += 1;
            self.feed.asked();
            self.root_question = Some(RootQuestion { at: now, wanted: self.root_wanted });
            self.ask_root_at = now.plus(self.config.timing.renew);
        }
        let due = self.statfs.wanted && !self.statfs.asked && self.statfs.retry_at <= now;
        if due && self.ask(&ClientRequest::Statfs) {
            self.counters.statfs += 1;
            (self.statfs.wanted, self.statfs.asked) = (false, true);
        }
        self.ask_about_orphans(now);
    }

    /// Sends a request, if there is room for it.
    fn ask(&mut self, request: &ClientRequest<'_>) -> bool {
        self.way.link.request(request).is_ok()
    }

    fn send_lock_messages(&mut self, now: Instant) {
        while self.way.link.can_request(Kind::LockAsk).is_ok() {
            let message = match self.reply.take() {
                Some(reply) => Some(reply),
                None => self.locks.poll_message(now),
            };
            let Some(message) = message else { return };
            let sent = self.ask(&ClientRequest::LockAsk(message.emit()));
            assert!(sent, "room was looked for");
            self.counters.lock_messages += 1;
        }
    }

    fn ask_about_orphans(&mut self, now: Instant) {
        let question = self.orphans.question(now);
        if question.is_empty() {
            return;
        }
        let records: heapless::Vec<_, ASKED_MAX> =
            question.iter().map(|ino| U64::new(ino.0)).collect();
        let Ok(inos) = Inos::new(&records) else { return self.orphans.abandon() };
        if self.ask(&ClientRequest::Orphans(inos)) {
            self.counters.orphan_questions += 1;
            self.orphans.asked();
        }
    }
}
