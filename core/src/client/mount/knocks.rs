//! Knocking at the voters: a mount that has lost the leader shows each voter that it reaches it.
//!
//! # Invariants
//!
//! * Nothing is knocked at while a server has welcomed the mount. Whoever has never been welcomed
//!   waits for a whole period first, because it most likely finds a leader within that.
//! * At each voter there is one attempt to connect or one connection, and a new one at most once
//!   in a period. One that hangs keeps no other voter from being knocked at.
//!
//! What this module deliberately doesn't know: who leads, and what the voters make of it.

use super::MountConfig;
use crate::arena::{Arena, ArenaFull};
use crate::format::quorum::{SLOTS, Slot};
use crate::format::wire::greeting::RANDOM_BYTES;
use crate::net::{Cluster, ClusterKey, Knock, KnockConfig};
use core::time::Duration;
use outrider_hal::{Endpoint, Instant, StreamId};

/// A voter's address, and what is under way there.
struct Door<'m> {
    at: Endpoint,
    knock: Knock<'m>,
    /// The attempt to connect that has not been answered.
    attempt: Option<u32>,
    /// No new one before this.
    due: Instant,
}

/// The knocks at all voters.
pub(super) struct Knocks<'m> {
    doors: [Option<Door<'m>>; SLOTS],
    period: Duration,
    /// Since when there is something to knock for; none while there isn't.
    from: Option<Instant>,
}

impl<'m> Knocks<'m> {
    /// Carves those of the volume's voters.
    pub(super) fn carve(
        arena: &mut Arena<'m>,
        config: &MountConfig,
    ) -> Result<Knocks<'m>, ArenaFull> {
        let volume = &config.volume;
        let knock = KnockConfig {
            cluster: Cluster::new(volume.fsid(), ClusterKey(volume.fields().cluster_key)),
            timing: config.net,
            nonce: config.nonce,
            machine: config.machine,
        };
        let mut doors = [const { None }; SLOTS];
        for slot in Slot::ALL {
            let Some(at) = volume.voter(slot.number()) else { continue };
            let knock = Knock::carve(arena, knock)?;
            doors[slot.index()] = Some(Door { at, knock, attempt: None, due: Instant(0) });
        }
        Ok(Knocks { doors, period: config.quorum.knock(), from: None })
    }

    /// Takes note of whether a server is looked for, by a mount that was welcomed before or not.
    pub(super) fn step(&mut self, now: Instant, is_lost: bool, was_welcomed: bool) {
        self.from = match self.from {
            _ if !is_lost => None,
            Some(from) => Some(from),
            None if was_welcomed => Some(now),
            None => Some(now.plus(self.period)),
        };
        for door in self.doors.iter_mut().flatten() {
            door.knock.step(now);
        }
    }

    /// Ends all that are under way.
    pub(super) fn end(&mut self) {
        self.from = None;
        for door in self.doors.iter_mut().flatten() {
            door.attempt = None;
            door.knock.disconnect();
        }
    }

    /// Whether an attempt was one of these; then it knocks over the new connection.
    pub(super) fn connected(
        &mut self,
        now: Instant,
        attempt: u32,
        stream: StreamId,
        random: [u8; RANDOM_BYTES],
    ) -> bool {
        let Some(door) = self.attempted(attempt) else { return false };
        door.attempt = None;
        door.knock.knock(now, stream, random);
        true
    }

    /// An attempt has failed, if it was one of these.
    pub(super) fn connect_failed(&mut self, attempt: u32) {
        if let Some(door) = self.attempted(attempt) {
            door.attempt = None;
        }
    }

    fn attempted(&mut self, attempt: u32) -> Option<&mut Door<'m>> {
        self.doors.iter_mut().flatten().find(|door| door.attempt == Some(attempt))
    }

    /// The knock that has this connection.
    pub(super) fn find(&self, stream: StreamId) -> Option<&Knock<'m>> {
        self.doors.iter().flatten().map(|door| &door.knock).find(|knock| knock.has(stream))
    }

    /// The same, for what it receives.
    pub(super) fn find_mut(&mut self, stream: StreamId) -> Option<&mut Knock<'m>> {
        self.doors.iter_mut().flatten().map(|door| &mut door.knock).find(|knock| knock.has(stream))
    }

    /// A connection to be closed.
    pub(super) fn poll_close(&mut self) -> Option<StreamId> {
        let closed = |door: &mut Door<'_>| door.knock.poll_close();
        self.doors.iter_mut().flatten().find_map(closed).map(|(stream, _)| stream)
    }

    /// Where to connect next; the attempt has this number.
    pub(super) fn poll_connect(&mut self, now: Instant, number: u32) -> Option<Endpoint> {
        let from = self.from?;
        let due = |door: &&mut Door<'_>| door.is_free() && door.due.max(from) <= now;
        let door = self.doors.iter_mut().flatten().find(due)?;
        door.attempt = Some(number);
        door.due = now.plus(self.period);
        Some(door.at)
    }

    /// When something is due although nothing happens.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let doors = self.doors.iter().flatten();
        let times = doors.filter_map(|door| match (self.from, door.is_free()) {
            (Some(from), true) => Some(door.due.max(from)),
            (None, true) => None,
            (_, false) => door.knock.poll_timeout(),
        });
        times.min()
    }
}

impl Door<'_> {
    fn is_free(&self) -> bool {
        self.attempt.is_none() && self.knock.is_idle()
    }
}
