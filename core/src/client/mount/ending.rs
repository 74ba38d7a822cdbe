//! How a mount ends: it leaves in good order, or gives up; and its farewell in either case.
//!
//! ```text
//!   Joining, Mounted --leave--> Leaving -- all durable ---------------> farewell --> Left
//!        |                         |
//!        +-------------------------+-- the server gave it up --> Evicted -- still --> farewell
//!        |                         |
//!        +-------------------------+-- it is refused for good -> Refused -- still --> farewell
//! ```
//!
//! # When the server refuses for good
//!
//! [`Invalid`](ErrorCode::Invalid) and [`Stale`](ErrorCode::Stale), and for a transaction
//! [`TooMany`](ErrorCode::TooMany), say that server and mount don't agree about what is lent or
//! which transaction is open. One of the two is wrong, and no repeat makes it right. A mount that
//! went on would take changes that are never durable, and keep locks that it can't give back, so
//! that other mounts would wait for ever. So after a few tries it gives up, as if it were evicted:
//! what was not durable is lost, every request fails, and it says so. Whoever unmounts it and
//! mounts again has a mount that the servers know.
//!
//! # Invariants
//!
//! * A farewell is said when the mount is *still*: nothing of it is under way to the device or with
//!   the platform, and nothing will be. So it is the proof that what was lent is free, also for one
//!   that was evicted.
//! * A farewell is over when it is answered, or when a voter's block proves that the mount's record
//!   is gone. It may have been the last one, so that the servers have stopped, and the answer lost.
//!   Without either the mount waits: a server that comes later answers.
//! * Who has given up says farewell by itself. That changes nothing for its users: requests fail
//!   until its owner ends it.
//!
//! What this module deliberately doesn't know: what its owner tells people.

use super::{Life, Mount};
use crate::format::Term;
use crate::format::wire::message::ClientRequest;
use crate::format::wire::{ErrorCode, Kind};
use crate::mutant::{Mutant, is_active};
use outrider_hal::Instant;

/// Refusals of one kind in a row after which the mount gives up.
const REFUSALS_MAX: u8 = 4;

/// The ending.
#[derive(Debug, Default)]
pub(super) struct Ending {
    /// Transactions, and loans, that were refused one after the other.
    transactions: u8,
    loans: u8,
    /// Why it has given up, if it was for refusals.
    pub(super) refusal: Option<ErrorCode>,
    /// Nothing more is asked, so that the farewell can be said.
    pub(super) parting: bool,
    /// The session of the time before an eviction is forgotten.
    forgot: bool,
    farewell_sent: bool,
    /// The farewell is not said again before this time.
    farewell_at: Instant,
    /// It was answered, or need not be.
    pub(super) parted: bool,
}

impl Mount<'_> {
    /// A transaction was carried out.
    pub(super) fn note_transaction_done(&mut self) {
        self.ending.transactions = 0;
    }

    /// A loan was made.
    pub(super) fn note_loan_done(&mut self) {
        self.ending.loans = 0;
    }

    /// A transaction was refused.
    pub(super) fn note_transaction_refused(&mut self, now: Instant, error: ErrorCode) {
        if disagrees(error) || error == ErrorCode::TooMany {
            self.ending.transactions += 1;
            self.judge_refusals(now, error);
        }
    }

    /// A loan was refused. That there are too many extents passes when some are used.
    pub(super) fn note_loan_refused(&mut self, now: Instant, error: ErrorCode) {
        if disagrees(error) {
            self.ending.loans += 1;
            self.judge_refusals(now, error);
        }
    }

    fn judge_refusals(&mut self, now: Instant, error: ErrorCode) {
        let most = self.ending.transactions.max(self.ending.loans);
        if most >= REFUSALS_MAX && !self.has_ended() {
            self.ending.refusal = Some(error);
            self.give_up(now, Life::Refused);
        }
    }

    /// The server has given the mount up: what it had is others' now.
    pub(super) fn on_evicted(&mut self, now: Instant) {
        if self.life != Life::Evicted {
            self.give_up(now, Life::Evicted);
            self.way.end();
        }
    }

    fn give_up(&mut self, now: Instant, life: Life) {
        if !self.has_ended() {
            self.counters.items_lost += u64::from(self.items.usage().dirty_items);
        }
        self.life = life;
        self.ending.parting = true;
        self.loans.close();
        self.orphans.abandon();
        self.fail_all(now);
    }

    /// The farewell was answered, or need not be.
    pub(super) fn on_parted(&mut self) {
        match self.life {
            Life::Joining | Life::Mounted | Life::Leaving => self.life = Life::Left,
            Life::Left | Life::Evicted | Life::Refused => {}
        }
        self.ending.parted = true;
        self.way.end();
    }

    /// The farewell was refused.
    pub(super) fn on_farewell_failed(&mut self, later: Instant) {
        self.ending.farewell_sent = false;
        self.ending.farewell_at = later;
    }

    /// Goes on ending.
    pub(super) fn step_ending(&mut self, now: Instant) {
        match self.life {
            Life::Joining | Life::Mounted | Life::Left => {}
            Life::Leaving => self.step_leaving(now),
            Life::Evicted | Life::Refused if self.ending.parted || !self.is_still() => {}
            Life::Evicted | Life::Refused if self.is_forgotten() => self.on_parted(),
            Life::Refused => self.say_farewell(now),
            Life::Evicted => {
                if self.ending.forgot || !self.way.link.is_idle() {
                    return self.say_farewell(now);
                }
                self.ending.forgot = true;
                self.ending.farewell_sent = false;
                self.way.link.forget_messages();
                self.say_farewell(now);
                self.way.begin_again();
            }
        }
    }

    /// When all is durable and nothing at work, the farewell is said, as soon as everything asked
    /// before has been answered.
    fn step_leaving(&mut self, now: Instant) {
        if self.way.link.client().is_none() && !self.way.link.is_up() {
            // No server has ever heard of it, or one that has will notice by itself.
            self.life = Life::Left;
            return self.way.end();
        }
        let durable = self.committer.is_idle() && self.items.usage().dirty_items == 0;
        if self.is_still() && self.orphans.is_empty() && durable {
            self.loans.close();
            self.ending.parting = true;
            if self.is_forgotten() {
                return self.on_parted();
            }
            self.say_farewell(now);
        }
    }

    fn say_farewell(&mut self, now: Instant) {
        let due = !self.ending.farewell_sent && self.ending.farewell_at <= now;
        if due && self.way.link.can_request(Kind::Farewell).is_ok() {
            self.ending.farewell_sent = self.way.link.request(&ClientRequest::Farewell).is_ok();
        }
    }

    /// Whether a leader that has welcomed it, or a later one, has stopped in good order and left no
    /// client recorded. So its farewell was carried out, or somebody has proved that it is gone: it
    /// waits for no answer, and perhaps nobody is left to give one. What an earlier leader left
    /// says nothing: this mount was recorded after that.
    fn is_forgotten(&self) -> bool {
        let welcomed = self.way.link.term();
        let since = if is_active(Mutant::VacancyBeforeWelcome) { Term::NONE } else { welcomed };
        self.way.link.client().is_some() && self.way.watcher.is_vacated(since)
    }

    /// When the farewell is said again.
    pub(super) fn ending_timeout(&self) -> Option<Instant> {
        let Ending { parting, farewell_sent, parted, farewell_at, .. } = self.ending;
        (parting && !farewell_sent && !parted && farewell_at > Instant(0)).then_some(farewell_at)
    }

    /// Whether nothing of it is under way to the device or with the platform.
    pub(super) fn is_still(&self) -> bool {
        self.slots.used() == 0
            && self.committer.in_flight() == 0
            && self.zeroing.in_flight() == 0
            && self.compactor.is_idle()
    }
}

/// Whether a refusal says that server and mount don't agree.
fn disagrees(error: ErrorCode) -> bool {
    matches!(error, ErrorCode::Invalid | ErrorCode::Stale)
}
