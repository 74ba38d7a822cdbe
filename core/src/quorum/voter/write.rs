//! Writing the own block: one write, its flush, and what follows from both.
//!
//! What this module deliberately doesn't know: what the other voters' blocks say.

use super::{Notice, Office, Phase, Trouble, Voter};
use crate::format::Term;
use crate::format::quorum::{Ballot, SLOTS, State, seq_after};
use crate::mutant::{Mutant, is_active};
use crate::quorum::timing::ms;
use outrider_hal::{BlockOp, BlockRequest, Completion, Instant, IoError, Tag};

pub(super) const WRITE: u64 = SLOTS as u64;
pub(super) const FLUSH: u64 = WRITE + 1;

/// What a write of the own block said, and when it was submitted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    state: State,
    term: Term,
    leaving: bool,
    at: Instant,
}

#[derive(Debug)]
pub(super) enum Writing {
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

impl<'m> Voter<'m> {
    fn show(&self) -> Option<Show> {
        let timing = &self.config.timing;
        let at_rest = if self.held == Term::NONE { State::Idle } else { State::Resigned };
        let heartbeat = Some(timing.heartbeat_ms);
        let (state, term, again_ms) = match &self.phase {
            Phase::Watching { .. } | Phase::Draining { .. } | Phase::Ended(_) => return None,
            Phase::Joining { .. } | Phase::Following { .. } => (at_rest, self.held, heartbeat),
            Phase::Claiming { term } | Phase::Looking { term, .. } => {
                (State::Claiming, *term, None)
            }
            Phase::Taking { term, .. } => (State::Elected, *term, None),
            Phase::Leading(Office { term, endpoint, .. }) => match endpoint {
                None => (State::Elected, *term, Some(timing.renew_ms)),
                Some(_) => (State::Listening, *term, Some(timing.renew_ms)),
            },
            Phase::Resigning { term } => (State::Resigned, *term, None),
            Phase::Stopping { .. } => (State::Stopped, self.held, None),
        };
        Some(Show { state, term, again_ms })
    }

    pub(super) fn write_due(&self) -> Option<Instant> {
        let show = self.show()?;
        let told = self.leaving_shown == self.leaving;
        let due = if self.shown == Some((show.state, show.term)) && told {
            self.written_at.plus(ms(show.again_ms?))
        } else {
            Instant::default()
        };
        Some(due.max(self.retry_at))
    }

    pub(super) fn is_not_writing(&self) -> bool {
        match self.writing {
            Writing::Idle => true,
            Writing::Write(_) | Writing::FlushDue(_) | Writing::Flush(_) => false,
        }
    }

    pub(super) fn poll_write(&mut self, now: Instant) -> Option<BlockRequest<'m>> {
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
        if !self.is_not_writing() || self.write_due().is_none_or(|due| due > now) {
            return None;
        }
        let show = self.show()?;
        let ballot = self.ballot(show);
        let block = self.own.take().expect("the block is ours while nothing is written");
        ballot.emit(block, &self.config.volume, self.config.base);
        self.seq = ballot.seq;
        self.written_at = now;
        let Ballot { state, term, leaving, .. } = ballot;
        self.writing = Writing::Write(Sent { state, term, leaving, at: now });
        let blkno = self.config.slot.blkno(self.config.base);
        Some(self.request(WRITE, BlockOp::Write(blkno, block)))
    }

    fn request(&self, tag: u64, op: BlockOp<'m>) -> BlockRequest<'m> {
        BlockRequest { tag: Tag(self.config.tag_base + tag), op }
    }

    fn ballot(&self, show: Show) -> Ballot {
        let held = match show.state {
            State::Idle | State::Claiming => self.held,
            State::Elected | State::Listening | State::Resigned | State::Stopped => show.term,
        };
        Ballot {
            slot: self.config.slot,
            seq: seq_after(self.seq),
            state: show.state,
            term: show.term,
            held,
            highest_round: self.highest_round,
            config_gen: self.config.config_gen,
            confirmed: self.confirmed,
            lease_ms: self.config.timing.lease_ms,
            mounts: self.mounts,
            incarnation: self.identity.incarnation,
            host: self.identity.host,
            boot: self.identity.boot,
            endpoint: self.office().and_then(|office| office.endpoint),
            leaving: self.leaving,
            vacant: show.state == State::Stopped && held != Term::NONE && held == self.vacated,
        }
    }

    pub(super) fn on_write_step(&mut self, now: Instant, done: Completion<'m>) {
        if let BlockOp::Write(_, block) = done.op {
            self.own = Some(block);
        }
        let step = core::mem::replace(&mut self.writing, Writing::Idle);
        match (step, done.result) {
            (Writing::Write(sent), Ok(())) => self.writing = Writing::FlushDue(sent),
            (Writing::Flush(sent), Ok(())) => {
                self.writes_failed = 0;
                self.shown = Some((sent.state, sent.term));
                self.on_leaving_shown(sent.leaving);
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

    /// The own block durably shows whether this voter is leaving.
    fn on_leaving_shown(&mut self, leaving: bool) {
        self.leaving_shown = leaving;
        if leaving && self.leaving && self.leaving_scan.is_none() {
            self.leaving_scan = Some(self.scan.number() + 1);
        }
    }

    /// The own block durably shows this.
    fn on_shown(&mut self, now: Instant, sent: Sent) {
        let lease_from = if is_active(Mutant::LeaseFromCompletion) { now } else { sent.at };
        let lease_end = lease_from.plus(self.config.timing.lease());
        match &mut self.phase {
            Phase::Joining { .. } => {
                self.joined_at = now;
                self.phase = Phase::Following { claim_at: None };
            }
            Phase::Claiming { term } => {
                let term = *term;
                if (sent.state, sent.term) == (State::Claiming, term) {
                    let scan = self.scan.number() + 1;
                    self.phase = Phase::Looking { term, scan, lease_end };
                    if is_active(Mutant::ClaimWithoutLook) {
                        self.phase = Phase::Taking { term, lease_end };
                    }
                }
            }
            Phase::Taking { term, .. } => {
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
            Phase::Stopping { refusal } => {
                let refusal = *refusal;
                if sent.state == State::Stopped {
                    self.has_let_go(refusal, Ok(()));
                }
            }
            Phase::Watching { .. }
            | Phase::Following { .. }
            | Phase::Looking { .. }
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
            read_at: now,
        });
        self.notify(Notice::Elected(term));
    }

    fn on_write_failed(&mut self, now: Instant, error: IoError) {
        self.writes_failed = self.writes_failed.saturating_add(1);
        self.retry_at = now.plus(self.config.timing.pause(self.writes_failed));
        self.shown = None;
        self.trouble = Some(Trouble::OwnWrite(error));
        match &self.phase {
            Phase::Claiming { .. } | Phase::Looking { .. } | Phase::Taking { .. } => {
                self.withdraw(now);
            }
            Phase::Stopping { refusal } => {
                let refusal = *refusal;
                self.has_let_go(refusal, Err(error));
            }
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
