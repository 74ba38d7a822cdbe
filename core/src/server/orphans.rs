//! The question which nameless inodes nobody uses: one client asks, all others are asked.
//!
//! ```text
//!   asker --Orphans--> server --InUse--> each other mounted client
//!     <-- those that none of them uses --  <-- those that it uses
//! ```
//!
//! # Invariants
//!
//! * An inode is called unused only if every client that is mounted, but the asker, has said so
//!   after the question came, and locks were recovered by then. Uses of a nameless inode only ever
//!   end, so it stays unused.
//! * Whoever can't be asked now, or goes before it has answered, makes the question fail: it is
//!   asked again later. One question is under way at a time.
//!
//! An evicted client is not asked: it was told that its files are gone, or will be.
//!
//! A leader that was paused, and doesn't know that it has a successor, may still answer. Then all
//! its clients have been paused as well: whoever has gone over to the successor can't be asked
//! here. Nor has a client that only the successor knows come to use the inode: the asker saw it
//! without a name in a root of this leader, or an earlier one, and nothing without a name can be
//! opened. What the asker then does needs a commit, which only the successor can make.
//!
//! What this module deliberately doesn't know: what an inode is.

use super::Server;
use super::table::{Member, Standing};
use crate::arena::{Arena, ArenaFull};
use crate::format::wire::message::{INOS_MAX, InoSet, Inos, Outcome, ServerAnswer, ServerRequest};
use crate::format::wire::{ErrorCode, Kind};
use crate::mutant::{Mutant, is_active};
use crate::net::{RequestId, SessionId, Ticket};
use heapless::Vec;
use zerocopy::little_endian::U64;

/// The question under way.
struct Question {
    session: SessionId,
    ticket: Ticket,
    all: InoSet,
    used: InoSet,
}

/// Questions about nameless inodes.
pub(super) struct Orphans<'m> {
    question: Option<Question>,
    /// Who has still to answer.
    asked: &'m mut [Option<(SessionId, RequestId)>],
}

impl<'m> Orphans<'m> {
    pub(super) fn carve(arena: &mut Arena<'m>, clients: u32) -> Result<Orphans<'m>, ArenaFull> {
        Ok(Orphans { question: None, asked: arena.slice(clients, |_| None)? })
    }

    /// The term is over, or the question is.
    pub(super) fn reset(&mut self) {
        self.question = None;
        self.asked.fill(None);
    }
}

impl Server<'_> {
    /// A client's question was taken.
    pub(super) fn on_orphans(
        &mut self,
        session: SessionId,
        ticket: Ticket,
        inos: &Vec<U64, INOS_MAX>,
    ) {
        let inos = Inos::new(inos).expect("it was parsed");
        let is_early = self.locks.server.is_recovering() || !self.can_ask_all(session);
        if self.orphans.question.is_some() || is_early && !is_active(Mutant::OrphansBeforeRecovery)
        {
            let busy = Outcome::Failed(ErrorCode::Busy, None);
            let _ = self.links.answer(session, ticket, &busy);
            return;
        }
        for at in 0..self.members.all().len() {
            let other = self.other(at, session);
            self.orphans.asked[at] = other.map(|other| {
                let name = self.links.request(other, &ServerRequest::InUse(inos));
                (other, name.expect("room was looked for"))
            });
        }
        let (all, used) = (inos.all(), InoSet::default());
        self.orphans.question = Some(Question { session, ticket, all, used });
    }

    /// The session of a mounted client that is not the asker.
    fn other(&self, at: usize, asker: SessionId) -> Option<SessionId> {
        let member = self.members.all().get(at)?;
        let asked = member.standing == Standing::Mounted;
        self.links.find(member.client).filter(|session| {
            let here = !is_active(Mutant::OrphansBeforeRecovery) || self.links.is_up(*session);
            asked && here && *session != asker
        })
    }

    fn can_ask_all(&self, asker: SessionId) -> bool {
        let can_ask = |member: &Member| match member.standing {
            // It is not mounted yet, or any more.
            Standing::Greeting | Standing::Leaving | Standing::Evicted => true,
            Standing::Evicting => false,
            Standing::Mounted => self.links.find(member.client).is_some_and(|session| {
                let asks = self.links.can_request(session, Kind::InUse).is_ok();
                session == asker || self.links.is_up(session) && asks
            }),
        };
        self.members.all().iter().all(can_ask)
    }

    /// A client has said which of them it uses.
    pub(super) fn on_in_use(&mut self, session: SessionId, name: RequestId, used: Option<InoSet>) {
        let asked = self.orphans.asked.iter_mut().find(|asked| **asked == Some((session, name)));
        // Of a question that has failed, nobody waits for the answer.
        let (Some(asked), Some(question)) = (asked, &mut self.orphans.question) else { return };
        *asked = None;
        match used {
            Some(used) => question.used = question.used.union(used),
            None => question.used = question.all,
        }
    }

    /// Answers the question when it can be.
    pub(super) fn step_orphans(&mut self) {
        let Some(Question { session, ticket, all, used }) = &self.orphans.question else { return };
        let waiting = self.orphans.asked.iter().flatten();
        let (mut waits, mut fails) = (false, false);
        for (other, _) in waiting {
            waits = true;
            fails |= !self.links.is_up(*other);
        }
        let outcome = match (waits, fails) {
            (_, true) => Outcome::Failed(ErrorCode::Busy, None),
            (false, false) => Outcome::Done(ServerAnswer::Orphans(all.without(*used))),
            (true, false) => return,
        };
        // Who has gone meanwhile has nobody who waits.
        let _ = self.links.answer(*session, *ticket, &outcome);
        self.orphans.reset();
    }
}
