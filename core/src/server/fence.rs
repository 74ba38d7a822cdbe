//! Proof from outside that an evicted client writes no more: a program that has cut it off, its
//! witness's report, or an operator's word.
//!
//! ```text
//!                  poll_fence()              fenced(gone)
//!   Evicted -----------------> asked about --------------> gone: Work::Farewell
//!      ^                            |
//!      +--- a pause that doubles ---+  fenced(not gone)
//!
//!   Mounted, not connected, or any of these -- a word from outside --> gone, evicted first
//! ```
//!
//! # Invariants
//!
//! * Nothing waits for a fence but the reuse of what its client may still write: metadata are safe,
//!   and the volume is served, with and without one.
//! * The platform is asked about a client only once it is durable that it was evicted, about one
//!   client at a time, and only by a leader that may act. So a leader that was deposed meanwhile
//!   has at worst cut off somebody who had lost everything already.
//! * Only success proves something. A failure, or no answer in time, which is the platform's to
//!   notice, is no proof and is followed by another question after a pause.
//! * Numbers of clients are never used twice, so an answer is true in a later term too.
//! * A word about a client that is connected is refused, and so is a witness's about another than
//!   it has watched, whatever number that has. A witness that is refused for the first reason, or
//!   not answered, says it again; to say it twice is harmless.
//!
//! What this module deliberately doesn't know: how a machine is cut off, and how a witness watches.

use super::Server;
use super::table::{Member, Standing};
use crate::format::ClientId;
use crate::format::wire::ErrorCode;
use crate::format::wire::greeting::Machine;
use crate::format::wire::message::{Gone, Outcome};
use crate::mutant::{Mutant, is_active};
use crate::net::{SessionId, Ticket};
use core::time::Duration;
use outrider_hal::Instant;

/// The first pause after a fence that failed.
const RETRY: Duration = Duration::from_secs(10);
/// The longest one.
const RETRY_MAX: Duration = Duration::from_secs(600);

/// Who is to be cut off from the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// The client.
    pub client: ClientId,
    /// Where it ran.
    pub machine: Machine,
    /// Times that it has failed in this term.
    pub failures: u16,
}

impl Server<'_> {
    /// Somebody to be cut off, for a platform that can do that. To be answered by
    /// [`fenced`](Self::fenced), before which there is no other. To be asked after each step; a
    /// platform that never asks has nobody fenced.
    pub fn poll_fence(&mut self, now: Instant) -> Option<Fence> {
        self.serving()?;
        if self.fencing.is_some() || !self.voter.may_act(now) {
            return None;
        }
        let wants = |member: &&mut Member| {
            member.standing == Standing::Evicted && !member.is_gone && member.fence_at <= now
        };
        let member = self.members.all_mut().iter_mut().find(wants)?;
        member.fence_at = Instant(0);
        let (client, machine, failures) = (member.client, member.machine, member.fence_failures);
        self.fencing = Some(client);
        Some(Fence { client, machine, failures })
    }

    /// What has come of a fence: whether the client certainly writes no more, and nothing that it
    /// submitted can still reach the device.
    pub fn fenced(&mut self, now: Instant, client: ClientId, is_gone: bool) {
        if self.fencing == Some(client) {
            self.fencing = None;
        }
        let is_gone = is_gone || is_active(Mutant::FenceFailureIsProof);
        self.counters.fences += u64::from(is_gone);
        let Some(member) = self.members.find(client) else { return };
        if is_gone {
            member.is_gone = true;
        } else {
            let pause = RETRY * (1 << u32::from(member.fence_failures.min(6)));
            member.fence_failures = member.fence_failures.saturating_add(1);
            member.fence_at = now.plus(pause.min(RETRY_MAX));
        }
    }

    /// When the platform can be asked again though nothing happens.
    pub(super) fn fence_timeout(&self) -> Option<Instant> {
        let idle = self.serving().is_some() && self.fencing.is_none();
        let waits = |member: &&Member| {
            member.standing == Standing::Evicted && !member.is_gone && member.fence_at > Instant(0)
        };
        let waiting = self.members.all().iter().filter(|_| idle).filter(waits);
        waiting.map(|member| member.fence_at).min()
    }

    /// An operator, or its witness, says that a client is gone for good. It is answered when
    /// nothing of that client is waited for any more, and that is durable: where its farewell would
    /// be answered.
    pub(super) fn on_fence_word(&mut self, session: SessionId, ticket: Ticket, gone: &Gone) {
        let client = gone.client;
        let up = self.links.find(client).is_some_and(|session| self.links.is_up(session));
        let is_other = |member: &Member| gone.nonce.is_some_and(|nonce| nonce != member.nonce);
        let error = match self.members.find(client) {
            None => ErrorCode::NotFound,
            Some(member) if is_other(&*member) => ErrorCode::NotFound,
            Some(member) if up || member.standing == Standing::Greeting => ErrorCode::Busy,
            Some(member) => {
                member.is_gone = true;
                member.word = Some((session, ticket));
                if member.standing == Standing::Mounted {
                    self.begin_eviction(client);
                }
                return;
            }
        };
        let _ = self.links.answer(session, ticket, &Outcome::Failed(error, None));
    }
}
