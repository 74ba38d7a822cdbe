//! Readers of older roots, and what is pinned for them.
//!
//! ```text
//!   New             that commit is confirmed: answered           Renew with a root
//!   ----> Asked(the commit under way) -----------> Any root ------------------------> That root
//!              |                                      |   ^ Renew                     |   ^ Renew
//!              |                                      |   +---                        |   +---
//!              +------------------+-------------------+---------------+---------------+
//!                                 v                                   v
//!                     its lease is over, or End      all: the store had to give up what it kept,
//!                                                    space is short, or the term is over
//! ```
//!
//! A reader is no client: nothing is recorded of it, it is lent nothing, and nobody waits for it.
//! It reads the device by itself. What it asks for is that what it reads isn't used again; see the
//! store's `kept` for how that is done.
//!
//! # Invariants
//!
//! * A pin that is answered for holds from the commit that the answer names on, without a break, as
//!   long as asking for more of it succeeds. It is answered for when that commit is confirmed.
//! * A pin holds no longer than its lease after its reader was heard last, whatever the reader
//!   does. The readers are bounded, and so is what is noted for all of them together.
//! * Nobody is refused space for the sake of readers: below [`keep_floor`] there are no pins, and
//!   there are none any more when a request finds too little.
//! * The root that a reader has chosen stays the one it reads.
//! * All of this is a term's, and a number is given out once: a reader that comes to another leader
//!   is told that it has no pin.
//!
//! A reader that was told after it had read a block that its pin holds, and that finds no root of a
//! later term in the ring after that, knows that the block was not used again before it was read:
//! this leader answers for its own term, and a later one writes nothing that an older root leads to
//! before a root of its own is durable. No clock is needed for that.
//!
//! What this module deliberately doesn't know: what readers read.

use super::{Server, ServerLimits};
use crate::arena::{Arena, ArenaFull};
use crate::format::wire::ErrorCode;
use crate::format::wire::message::{Outcome, Pin, PinRequest, ServerAnswer};
use crate::format::{CommitNo, RunId, Term};
use crate::net::{SessionId, Ticket};
use crate::txn::kept::Keeping;
use crate::txn::settle::keep_floor;
use outrider_hal::Instant;

/// A reader.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader {
    pub(super) number: u64,
    /// The oldest commit whose root it may read.
    since: CommitNo,
    /// The commit of the root that it reads, and the lowest number of runs that aren't in it, once
    /// it has chosen.
    chosen: Option<(CommitNo, RunId)>,
    until: Instant,
    /// It waits for the first answer.
    asked: Option<Asked>,
}

/// Who waits for an answer.
type Asked = (SessionId, Ticket);

/// The readers.
pub(super) struct Readers<'m> {
    places: &'m mut [Option<Reader>],
    /// Numbers given out.
    numbers: u64,
}

impl<'m> Readers<'m> {
    pub(super) fn carve(
        arena: &mut Arena<'m>,
        limits: &ServerLimits,
    ) -> Result<Readers<'m>, ArenaFull> {
        Ok(Readers { places: arena.slice(limits.readers_max.into(), |_| None)?, numbers: 0 })
    }

    /// There are none any more.
    pub(super) fn reset(&mut self) {
        self.places.fill(None);
    }

    fn all(&self) -> impl Iterator<Item = &Reader> {
        self.places.iter().flatten()
    }

    /// Lets in a reader of roots of this commit and later ones.
    pub(super) fn begin(
        &mut self,
        since: CommitNo,
        until: Instant,
        asked: Option<Asked>,
    ) -> Result<(), ErrorCode> {
        let place = self.places.iter_mut().find(|place| place.is_none());
        let place = place.ok_or(ErrorCode::TooMany)?;
        self.numbers += 1;
        let number = self.numbers;
        *place = Some(Reader { number, since, chosen: None, until, asked });
        Ok(())
    }

    /// Goes on with a reader, which may have chosen a root up to this newest one.
    pub(super) fn renew(
        &mut self,
        number: u64,
        chosen: Option<(CommitNo, RunId)>,
        newest: CommitNo,
        until: Instant,
    ) -> Result<Reader, ErrorCode> {
        let reader = self.places.iter_mut().flatten().find(|reader| reader.number == number);
        let reader = reader.ok_or(ErrorCode::NotFound)?;
        if let Some((commit, _)) = chosen {
            let is_other = reader.chosen.is_some_and(|(before, _)| before != commit);
            if is_other || commit < reader.since || commit > newest {
                return Err(ErrorCode::Invalid);
            }
            reader.chosen = reader.chosen.or(chosen);
        }
        reader.until = until;
        Ok(*reader)
    }

    /// Lets a reader go.
    pub(super) fn end(&mut self, number: u64) -> Result<Reader, ErrorCode> {
        let is_it =
            |place: &&mut Option<Reader>| place.is_some_and(|reader| reader.number == number);
        let place = self.places.iter_mut().find(is_it);
        place.and_then(Option::take).ok_or(ErrorCode::NotFound)
    }

    /// Lets one go whose lease is over, or any if all are to.
    pub(super) fn expire(&mut self, now: Instant, all: bool) -> Option<Reader> {
        let is_over =
            |place: &&mut Option<Reader>| place.is_some_and(|reader| all || reader.until <= now);
        self.places.iter_mut().find(is_over).and_then(Option::take)
    }

    /// What all of them may come to.
    pub(super) fn keeping(&self) -> Option<Keeping> {
        let any = (CommitNo(u64::MAX), RunId(u64::MAX));
        let chosen = || self.all().map(|reader| reader.chosen.unwrap_or(any));
        Some(Keeping {
            since: self.all().map(|reader| reader.since).min()?,
            upto: chosen().map(|(commit, _)| commit).max()?,
            runs: chosen().map(|(_, run)| run).max()?,
        })
    }

    /// When the next lease is over.
    pub(super) fn timeout(&self) -> Option<Instant> {
        self.all().map(|reader| reader.until).min()
    }
}

impl Server<'_> {
    /// Carries out what a reader asks for.
    pub(super) fn on_pin(
        &mut self,
        now: Instant,
        session: SessionId,
        ticket: Ticket,
        request: &PinRequest,
    ) {
        self.step_readers(now);
        let outcome = match *request {
            PinRequest::New => match self.begin_reader(now, (session, ticket)) {
                Ok(()) => return,
                Err(error) => Outcome::Failed(error, None),
            },
            PinRequest::Renew { term, number, commit } => {
                match self.renew_reader(now, term, number, commit) {
                    Ok(pin) => Outcome::Done(ServerAnswer::Pin(pin)),
                    Err(error) => Outcome::Failed(error, None),
                }
            }
            PinRequest::End { term, number } => match self.end_reader(term, number) {
                Ok(pin) => Outcome::Done(ServerAnswer::Pin(pin)),
                Err(error) => Outcome::Failed(error, None),
            },
        };
        // A reader that is gone doesn't wait.
        let _ = self.links.answer(session, ticket, &outcome);
    }

    fn begin_reader(&mut self, now: Instant, asked: Asked) -> Result<(), ErrorCode> {
        if self.is_short_of_space() {
            return Err(ErrorCode::NoSpace);
        }
        let until = now.plus(self.config.timing.pin);
        self.readers.begin(self.store.commit_now(), until, Some(asked))?;
        self.keep_for_readers();
        if self.store.open_commit().is_some() {
            self.want_commit(now.plus(self.config.timing.gather));
        }
        Ok(())
    }

    fn renew_reader(
        &mut self,
        now: Instant,
        term: Term,
        number: u64,
        commit: Option<CommitNo>,
    ) -> Result<Pin, ErrorCode> {
        if term != self.store.term() {
            return Err(ErrorCode::NotFound);
        }
        // A root may be read that is durable and not confirmed yet. All its runs have numbers that
        // were given out by now.
        let newest = self.confirmed.next();
        let chosen = commit.map(|commit| (commit, self.store.trees.next_run));
        let until = now.plus(self.config.timing.pin);
        let reader = self.readers.renew(number, chosen, newest, until)?;
        self.keep_for_readers();
        Ok(reader.pin(term, self.config.timing.pin.as_millis()))
    }

    fn end_reader(&mut self, term: Term, number: u64) -> Result<Pin, ErrorCode> {
        if term != self.store.term() {
            return Err(ErrorCode::NotFound);
        }
        let reader = self.readers.end(number)?;
        self.keep_for_readers();
        Ok(reader.pin(term, 0))
    }

    /// Answers who waited for this commit.
    pub(super) fn answer_readers(&mut self, commit: CommitNo) {
        let (term, lease) = (self.store.term(), self.config.timing.pin.as_millis());
        for reader in self.readers.places.iter_mut().flatten() {
            if reader.since <= commit
                && let Some((session, ticket)) = reader.asked.take()
            {
                let pin = Outcome::Done(ServerAnswer::Pin(reader.pin(term, lease)));
                // One that is gone is forgotten with its lease.
                let _ = self.links.answer(session, ticket, &pin);
            }
        }
    }

    /// Forgets readers whose lease is over; and all of them, if what was kept for them is lost or
    /// wanted.
    pub(super) fn step_readers(&mut self, now: Instant) {
        let is_wanted = self.store.kept.blocks() > 0 && self.is_short_of_space();
        let is_lost = self.store.kept.take_lost() || is_wanted;
        let mut has_changed = false;
        while let Some(reader) = self.readers.expire(now, is_lost) {
            has_changed = true;
            self.counters.pins_lost += u64::from(is_lost);
            if let Some((session, ticket)) = reader.asked {
                let busy = Outcome::Failed(ErrorCode::Busy, None);
                let _ = self.links.answer(session, ticket, &busy);
            }
        }
        if has_changed {
            self.keep_for_readers();
        }
    }

    /// A request has found too little space: there are no readers any more, if that helps.
    pub(super) fn give_up_readers(&mut self, now: Instant) {
        if self.store.kept.blocks() > 0 {
            self.store.kept.give_up();
            self.step_readers(now);
        }
    }

    fn is_short_of_space(&self) -> bool {
        self.store.trees.free.free_blocks() < keep_floor(self.config.volume.blocks())
    }

    fn keep_for_readers(&mut self) {
        self.store.keep(self.readers.keeping());
    }
}

impl Reader {
    fn pin(&self, term: Term, lease_ms: u128) -> Pin {
        let lease_ms = u32::try_from(lease_ms).unwrap_or(u32::MAX);
        Pin { term, number: self.number, commit: self.since, lease_ms }
    }
}
