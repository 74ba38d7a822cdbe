//! Compaction as mounts of the bare protocol do it: most do what they are asked, and some do
//! anything else.
//!
//! | a mount | and the server |
//! |---|---|
//! | does it | has the runs |
//! | refuses | gives the space back, and asks another |
//! | begins, and never says what came of it | gives it to another after a while |
//! | says late that it has failed | knows of it, or not any more |
//! | says what can't be | doesn't take it |
//! | says something of what is over | answers, and nothing changes |
//! | answers only after a while | waits as for any answer |
//!
//! # Invariants
//!
//! * Only what was lent is written, and nothing after the mount has said that it is over: that much
//!   a server must be able to count on.
//!
//! What this module deliberately doesn't know: what a server makes of it.

use super::volume;
use crate::rng::Rng;
use crate::time::{MILLI, SECOND};
use outrider_core::arena::{Arena, ArenaFull};
use outrider_core::client::compact::{CompactLimits, Compactor};
use outrider_core::format::records::ManifestEntry;
use outrider_core::format::root::Extent;
use outrider_core::format::wire::message::{
    ClientAnswer, ClientRequest, Compacted, Outcome, RunRecord, ServerRequest,
};
use outrider_core::format::wire::{ErrorCode, Kind};
use outrider_core::net::{Incoming, Link, RequestId, Ticket};
use outrider_core::node::More;
use outrider_hal::{BlockRequest, Completion, Instant, Tag};

/// Tags of its block requests begin here.
pub(super) const TAG_BASE: u64 = 1 << 40;

/// Something that is said at some time.
#[derive(Debug, Clone)]
struct Claim {
    id: u64,
    at: Instant,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Failed(ErrorCode),
    Made(Vec<ManifestEntry>),
}

/// How a mount takes what it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::scenario) enum Manners {
    /// As chance will have it, each time anew: see the module.
    Any,
    /// It does it.
    Good,
    /// It begins, and says nothing any more.
    Silent,
    /// It has said that it is not to be asked.
    Idle,
}

/// A mount's part in compaction.
pub(super) struct Compacting {
    manners: Manners,
    compactor: Compactor<'static>,
    claims: Vec<Claim>,
    /// Requests that are not answered.
    asked: Vec<RequestId>,
    /// One of them is a claim.
    said: bool,
    /// An answer that waits.
    answer: Option<(Ticket, Instant)>,
    retry_at: Instant,
}

impl Compacting {
    pub(super) fn carve(
        arena: &mut Arena<'static>,
        manners: Manners,
    ) -> Result<Compacting, ArenaFull> {
        let at_once = if manners == Manners::Idle { 0 } else { 2 };
        let limits = CompactLimits { at_once, frames: 32 };
        Ok(Compacting {
            manners,
            compactor: Compactor::carve(arena, &limits, &volume())?,
            claims: Vec::new(),
            asked: Vec::new(),
            said: false,
            answer: None,
            retry_at: Instant(0),
        })
    }

    /// The mount is going: nothing is done any more.
    pub(super) fn close(&mut self) {
        self.compactor.handle_server();
        self.claims.clear();
    }

    /// A server that knows of nothing has welcomed the mount, or will.
    pub(super) fn drop_all(&mut self) {
        self.close();
        self.asked.clear();
        (self.said, self.answer) = (false, None);
    }

    /// Whether nothing of it is being written.
    pub(super) fn is_idle(&self) -> bool {
        self.compactor.is_idle()
    }

    pub(super) fn handle_completion(&mut self, done: Completion<'static>) {
        let tag = Tag(done.tag.0 - TAG_BASE);
        self.compactor.handle_completion(Completion { tag, ..done });
    }

    pub(super) fn poll_request(&mut self) -> Option<BlockRequest<'static>> {
        let request = self.compactor.poll_request()?;
        Some(BlockRequest { tag: Tag(TAG_BASE + request.tag.0), op: request.op })
    }

    /// Takes the message at the head, if it is about this. Whether it was.
    pub(super) fn on_message(
        &mut self,
        now: Instant,
        link: &mut Link<'static>,
        entropy: &mut Rng,
    ) -> bool {
        let answered = match link.head() {
            Some(Incoming::Request(ServerRequest::Compact(_))) => {
                self.on_asked(now, link, entropy);
                return true;
            }
            Some(Incoming::Answer(name, outcome)) if self.asked.contains(&name) => {
                self.asked.retain(|asked| *asked != name);
                outcome.error()
            }
            Some(Incoming::Answer(..) | Incoming::Request(_)) | None => return false,
        };
        let ticket = link.take(now).expect("it was there");
        link.recorded(ticket);
        if answered.is_some() {
            self.retry_at = now.plus(500 * MILLI);
        }
        match ticket.kind() {
            Kind::CompactReady => self.compactor.handle_ready_answered(answered),
            _ if std::mem::take(&mut self.said) => {}
            _ => self.compactor.handle_result_answered(answered),
        }
        true
    }

    fn on_asked(&mut self, now: Instant, link: &mut Link<'static>, entropy: &mut Rng) {
        let Some(Incoming::Request(ServerRequest::Compact(asked))) = link.head() else { return };
        let is_odd = self.manners == Manners::Any;
        let manner = match self.manners {
            Manners::Any => entropy.below(20),
            Manners::Silent => 1,
            Manners::Good | Manners::Idle => u64::MAX,
        };
        let mut error = None;
        let late = now.plus(entropy.within(1..=90) as u32 * SECOND);
        match manner {
            0 => error = Some(ErrorCode::Busy),
            // Nothing is ever said.
            1 => {}
            2 => {
                let what = What::Failed(ErrorCode::Io);
                self.claims.push(Claim { id: asked.id, at: late, what });
            }
            3 => {
                let entry = *asked.uppers().next().expect("one at least").1;
                let space = asked.spaces().next();
                let made = match (space, entropy.below(3)) {
                    (None, _) | (_, 0) => vec![entry],
                    (Some(_), 1) if !asked.drop_tombstones => Vec::new(),
                    (Some((run, extent)), _) => vec![astray(entry, run.0, extent)],
                };
                let at = now.plus(entropy.within(0..=2000) as u32 * MILLI);
                self.claims.push(Claim { id: asked.id, at, what: What::Made(made) });
            }
            _ => {
                error = self.compactor.handle_compact(&asked).err();
                if manner == 4 {
                    // It is over by then, or very late.
                    let what = What::Failed(ErrorCode::Io);
                    self.claims.push(Claim { id: asked.id + 1_000_000, at: late, what });
                }
            }
        }
        let ticket = link.take(now).expect("it was there");
        match error {
            Some(error) => drop(link.answer(ticket, &Outcome::Failed(error, None))),
            None if is_odd && entropy.below(10) == 0 && self.answer.is_none() => {
                // What is behind it doesn't wait for that.
                link.recorded(ticket);
                let at = now.plus(entropy.within(0..=3000) as u32 * MILLI);
                self.answer = Some((ticket, at));
            }
            None => drop(link.answer(ticket, &Outcome::Done(ClientAnswer::Compact))),
        }
    }

    /// Goes on, and says what there is to say. A mount that is leaving says nothing new.
    pub(super) fn step(&mut self, now: Instant, link: &mut Link<'static>, leaving: bool) -> More {
        let more = self.compactor.step();
        if let Some((ticket, _)) = self.answer.take_if(|(_, at)| *at <= now) {
            let _ = link.answer(ticket, &Outcome::Done(ClientAnswer::Compact));
        }
        if !link.is_up() || leaving || self.retry_at > now {
            return more;
        }
        if let Some(ready) = self.compactor.ready()
            && let Ok(name) = link.request(&ClientRequest::CompactReady(ready))
        {
            self.asked.push(name);
            self.compactor.handle_ready_sent();
        }
        if link.can_request(Kind::Compacted).is_err() || self.said {
            return more;
        }
        if let Some(result) = self.compactor.result() {
            if let Ok(name) = link.request(&ClientRequest::Compacted(result)) {
                self.asked.push(name);
                self.compactor.handle_result_sent();
            }
        } else if let Some(due) = self.claims.iter().position(|claim| claim.at <= now) {
            let Claim { id, what, .. } = self.claims.remove(due);
            let entries = match &what {
                What::Failed(_) => Vec::new(),
                What::Made(made) => made.iter().map(RunRecord::new).collect(),
            };
            let result = match what {
                What::Failed(error) => Compacted::failed(id, error),
                What::Made(_) => Compacted::new(id, &entries).expect("these can be runs"),
            };
            if let Ok(name) = link.request(&ClientRequest::Compacted(result)) {
                self.asked.push(name);
                self.said = true;
            }
        }
        more
    }

    /// When there is something to say that can be said. Otherwise the answer to what was said
    /// before is what happens next.
    pub(super) fn timeout(&self, link: &Link<'static>, leaving: bool) -> Option<Instant> {
        let can = |kind| !leaving && link.can_request(kind).is_ok();
        let free = can(Kind::Compacted) && !self.said;
        let says = self.compactor.ready().is_some() && can(Kind::CompactReady)
            || self.compactor.has_result() && free;
        let claims = self.claims.iter().filter(|_| free);
        let claims = claims.map(|claim| claim.at.max(self.retry_at));
        let answer = self.answer.as_ref().map(|(_, at)| *at);
        claims.chain(says.then_some(self.retry_at)).chain(answer).min()
    }
}

/// The same run, said to stand right behind the start of what was lent for this number.
fn astray(mut entry: ManifestEntry, run: u64, extent: Extent) -> ManifestEntry {
    entry.run = run.into();
    entry.blkno = (extent.start().0 + 1).into();
    entry
}
