//! The lock server: who has been granted what, who waits, and what has to be given back first.
//!
//! One grant-or-request, an *entry*, exists for each pair of client and lock:
//!
//! ```text
//!                          Request              first in line, and nothing in its way
//!   (none) -------------------------> requested -------------------------------------+
//!     ^                                   ^                                          |
//!     |                                   | Request for another mode                 v
//!     |                                   +---- (stays granted meanwhile) -------- granted
//!     |                                                                            |    ^
//!     |  Release, nothing kept                  in the way of the first in line,   |    |
//!     +----------------------- revoking <------- or idle and room is needed -------+    |
//!                                 |                                                     |
//!                                 +------------- Release, read kept --------------------+
//! ```
//!
//! A client goes through this:
//!
//! ```text
//!           record()            greeting               empty batch
//!   nobody ---------> recorded ---------> recovering ---------------> live
//!     ^  |               |                    |                         ^ |
//!     |  |               |  evict(), farewell()                         | |
//!     |  |               +--------------------+------------+------------|-+
//!     |  |  greeting                                       v            |
//!     |  +------------------------------------------------ | -----------+
//!     |   all removed                                      v
//!     +------------------------------------------------ leaving <---+
//!                                                          |        | release_ghost()
//!                          evicted, may still be writing   |        |
//!                                                          +----> ghost
//! ```
//!
//! # Invariants
//!
//! * Requests for a lock are granted strictly in the order in which they came. The first in line
//!   has every grant that is in its way revoked, once, and waits until all are answered.
//! * Nothing is granted before every recorded client has reported all it holds, or was evicted.
//! * What an evicted client may still be writing in place stays held by its ghost, until the owner
//!   has the proof that no such write is coming, or has waited for long enough. If it was evicted
//!   before it had reported everything, that is every inode group, but for those on which another
//!   client has reported a grant: what it held there can't have been write.
//! * A request that finds no room is refused; until recovery is over, room is kept for all that may
//!   still be reported, so what a client holds always fits. Above the high-water mark the least
//!   recently granted locks are revoked, a few at a time, so that there is room again.
//! * Work is bounded: a message costs a walk over the clients of one lock; leaving, and what
//!   recovery has held up, is done in [`LockServer::step`].
//!
//! What this module deliberately doesn't know: leases, proofs, records of clients on the disk, and
//! whether a client can be reached.

use super::list::{Link, List};
use super::table::Table;
use super::{Held, LockName, Mode, Refusal, Scope, ToClient, ToServer};
use crate::arena::{Arena, ArenaFull};
use crate::format::ClientId;
use crate::format::key::Key;
use crate::mutant::{Mutant, is_active};
use crate::node::More;
use crate::roster::Roster;
use outrider_hal::Instant;

/// What a lock server may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Clients: the live, those to be recovered, and the ghosts of the evicted.
    pub clients: u32,
    /// Entries, which are pairs of a client and a lock that it holds or has asked for; and thereby
    /// locks.
    pub entries: u32,
    /// Entries of one client.
    pub entries_per_client: u32,
    /// Entries above which idle grants are revoked.
    pub entries_high: u32,
    /// Revokes of idle grants that may be unanswered at once.
    pub reclaims: u32,
}

/// Limits under which the server could not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitsError {
    /// Every limit must be at least 1, and a number of slots fits in 31 bits.
    Range,
    /// The high-water mark must be below the number of entries, or requests are refused although
    /// grants could have been revoked in time.
    HighWater,
    /// One client must not be able to fill the table above the high-water mark: room made by
    /// revoking would always go back to it.
    Share,
}

impl Limits {
    /// Checks that they go together.
    pub fn validate(&self) -> Result<(), LimitsError> {
        let slots = 1..1 << 31;
        let each = [self.clients, self.entries, self.entries_per_client, self.reclaims];
        if !each.iter().all(|limit| slots.contains(limit)) {
            return Err(LimitsError::Range);
        }
        if self.entries_high == 0 || self.entries_high >= self.entries {
            return Err(LimitsError::HighWater);
        }
        if self.entries_per_client > self.entries_high {
            return Err(LimitsError::Share);
        }
        Ok(())
    }
}

/// A message that no client sends which keeps to the protocol. The client's session must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// The client has not greeted, or has gone.
    Unknown,
    /// A request, while the client still has to report what it holds.
    NotRecovered,
    /// A batch that was not asked for.
    NotRecovering,
    /// A request while another of the same client for the lock is outstanding.
    Outstanding,
    /// The batch's names are not in order, or before where it was to start.
    Order,
    /// The batch holds something that another client has reported, in modes that exclude each
    /// other.
    Conflict,
    /// The batch holds more than one client may have, or than there is room for.
    TooMany,
}

/// No more clients fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientsFull;

/// Why a client can't be greeted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GreetingError {
    /// No more clients fit.
    Full,
    /// It has been evicted, or has said farewell.
    Gone,
}

/// Where a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The slot is free.
    Nobody,
    /// Recorded by an earlier server, not heard of yet.
    Recorded,
    /// Reporting what it holds.
    Recovering {
        /// Where the next batch starts.
        from: Key,
        /// The batch has been asked for.
        asked: bool,
    },
    /// Served.
    Live,
    /// Its entries are being removed.
    Leaving(Leaving),
    /// Evicted; what it may still write stays held.
    Ghost(Ghost),
}

/// How a client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// It holds nothing any more.
    Clean,
    /// What it may still write stays held.
    Evicted(Ghost),
}

/// What is known of what an evicted client may still write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ghost {
    /// It had reported all it held.
    Known,
    /// It had not.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
struct Client {
    id: ClientId,
    standing: Standing,
    /// Its entries.
    entries: List,
    /// Of an evicted client, those that its ghost keeps.
    kept: List,
    /// Entries with a message to be sent.
    outbox: List,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    client: u32,
    lock: u32,
    /// What is granted.
    mode: Mode,
    /// Which grant.
    generation: u64,
    /// What is asked for; null when nothing is.
    wanted: Mode,
    /// What the unanswered revoke lets the client keep.
    revoke: Option<Mode>,
    /// The revoke makes room, nobody waits for it.
    reclaim: bool,
    /// The grant is to be sent.
    grant_due: bool,
    /// The revoke is to be sent.
    revoke_due: bool,
    /// When it was asked for, or granted, or revoked: whatever was last.
    since: Instant,
}

impl Entry {
    const FREE: Entry = Entry {
        client: 0,
        lock: 0,
        mode: Mode::Null,
        generation: 0,
        wanted: Mode::Null,
        revoke: None,
        reclaim: false,
        grant_due: false,
        revoke_due: false,
        since: Instant(0),
    };
}

#[derive(Debug, Clone, Copy)]
struct Lock {
    entries: List,
    /// Entries with a request, the first in line first.
    queue: List,
    /// A client has reported a grant of it to this server.
    reported: bool,
}

/// How far recovery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Clients are being recorded.
    Recording,
    /// Recorded clients have still to report.
    Recovering,
    /// The locks from this slot on have still to be looked at for requests that waited.
    Resuming(u32),
    /// Requests are granted as they come.
    Serving,
}

/// A request that waits, for status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The lock.
    pub name: LockName,
    /// Who waits.
    pub client: ClientId,
    /// For what.
    pub wanted: Mode,
    /// Since when.
    pub since: Instant,
    /// How many are before it.
    pub ahead: u32,
}

/// A grant, for status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Who holds it.
    pub client: ClientId,
    /// How.
    pub mode: Mode,
    /// What an unanswered revoke lets it keep.
    pub revoke: Option<Mode>,
    /// The holder was evicted, and is not known to have stopped.
    pub ghost: bool,
    /// Since when: granted, or revoked.
    pub since: Instant,
}

/// What the server has done, for status. All since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Grants.
    pub grants: u64,
    /// Revokes because of a request.
    pub revokes: u64,
    /// Revokes to make room.
    pub reclaims: u64,
    /// Requests refused.
    pub refusals: u64,
    /// Releases of grants that had been replaced or were gone.
    pub stale_releases: u64,
    /// Grants reported in recovery.
    pub recovered: u64,
}

/// The lock server of one term.
pub struct LockServer<'m> {
    limits: Limits,
    phase: Phase,
    clients: &'m mut [Client],
    /// Those of them that are somebody.
    roster: Roster<'m>,
    /// Recorded clients that have not reported everything.
    unrecovered: u32,
    /// Ghosts of which it is not known what they held.
    ghosts_unknown: u32,
    /// Clients that are leaving.
    leaving: u32,
    table: Table<'m>,
    locks: &'m mut [Lock],
    entries: &'m mut [Entry],
    /// Entries that were used in this term; the others, and their links, mean nothing yet.
    touched: u32,
    /// Those of them that are not in use.
    free: List,
    /// In `Client::entries`, `Client::kept` or `free`.
    by_client: &'m mut [Link],
    /// In `Lock::entries`.
    by_lock: &'m mut [Link],
    /// In `Lock::queue`.
    in_queue: &'m mut [Link],
    /// In `Client::outbox`.
    in_outbox: &'m mut [Link],
    /// In `ages`.
    in_ages: &'m mut [Link],
    /// Grants that are not being revoked, the least recent first.
    ages: List,
    /// Unanswered revokes that make room.
    reclaims: u32,
    /// Generation of the latest grant.
    generation: u64,
    counters: Counters,
}

impl<'m> LockServer<'m> {
    /// A server of valid limits that knows no clients yet.
    pub fn carve(arena: &mut Arena<'m>, limits: &Limits) -> Result<LockServer<'m>, ArenaFull> {
        let entries = limits.entries;
        Ok(LockServer {
            limits: *limits,
            phase: Phase::Recording,
            clients: arena.slice(limits.clients, |_| Client {
                id: ClientId(0),
                standing: Standing::Nobody,
                entries: List::EMPTY,
                kept: List::EMPTY,
                outbox: List::EMPTY,
            })?,
            roster: Roster::carve(arena, limits.clients)?,
            unrecovered: 0,
            ghosts_unknown: 0,
            leaving: 0,
            table: Table::carve(arena, entries)?,
            locks: arena.slice(entries, |_| Lock {
                entries: List::EMPTY,
                queue: List::EMPTY,
                reported: false,
            })?,
            entries: arena.slice(entries, |_| Entry::FREE)?,
            touched: 0,
            free: List::EMPTY,
            by_client: arena.slice(entries, |_| Link::FREE)?,
            by_lock: arena.slice(entries, |_| Link::FREE)?,
            in_queue: arena.slice(entries, |_| Link::FREE)?,
            in_outbox: arena.slice(entries, |_| Link::FREE)?,
            in_ages: arena.slice(entries, |_| Link::FREE)?,
            ages: List::EMPTY,
            reclaims: 0,
            generation: 0,
            counters: Counters::default(),
        })
    }

    /// Forgets everything: another term begins. Work: what the last one has used.
    pub fn reset(&mut self) {
        self.phase = Phase::Recording;
        for client in self.clients.iter_mut() {
            client.standing = Standing::Nobody;
            (client.entries, client.kept, client.outbox) = (List::EMPTY, List::EMPTY, List::EMPTY);
        }
        self.roster.clear();
        (self.unrecovered, self.ghosts_unknown, self.leaving) = (0, 0, 0);
        self.table.clear();
        self.touched = 0;
        (self.free, self.ages) = (List::EMPTY, List::EMPTY);
        (self.reclaims, self.generation) = (0, 0);
        self.counters = Counters::default();
    }

    /// Names a client that an earlier server has recorded: it may hold locks. Before [`start`]
    /// only.
    ///
    /// [`start`]: Self::start
    pub fn record(&mut self, id: ClientId) -> Result<(), ClientsFull> {
        assert!(self.phase == Phase::Recording, "clients are recorded before the start");
        if self.client(id).is_none() {
            self.add_client(id, Standing::Recorded)?;
            self.unrecovered += 1;
        }
        Ok(())
    }

    /// All recorded clients have been named: recovery begins, and is over if there were none.
    pub fn start(&mut self) {
        assert!(self.phase == Phase::Recording, "a server starts once");
        self.phase = Phase::Recovering;
        self.check_recovered();
    }

    /// A client has been greeted in this term. One that was recorded is asked what it holds, any
    /// other is taken to hold nothing. Greeting again changes nothing.
    pub fn handle_greeting(&mut self, id: ClientId) -> Result<(), GreetingError> {
        let Some(at) = self.client(id) else {
            return match self.add_client(id, Standing::Live) {
                Ok(_) => Ok(()),
                Err(ClientsFull) => Err(GreetingError::Full),
            };
        };
        let client = &mut self.clients[at as usize];
        match client.standing {
            Standing::Recorded => {
                client.standing = Standing::Recovering { from: Key::MIN, asked: false };
                Ok(())
            }
            Standing::Recovering { .. } | Standing::Live => Ok(()),
            Standing::Nobody | Standing::Leaving(_) | Standing::Ghost(_) => {
                Err(GreetingError::Gone)
            }
        }
    }

    /// A message from a client. What is returned is to be sent to it at once.
    pub fn handle_message(
        &mut self,
        now: Instant,
        id: ClientId,
        message: &ToServer,
    ) -> Result<Option<ToClient>, Violation> {
        let client = self.client(id).ok_or(Violation::Unknown)?;
        match self.clients[client as usize].standing {
            Standing::Live => {}
            Standing::Recorded | Standing::Recovering { .. } => {
                return Err(Violation::NotRecovered);
            }
            Standing::Nobody | Standing::Leaving(_) | Standing::Ghost(_) => {
                return Err(Violation::Unknown);
            }
        }
        match *message {
            ToServer::Request { name, mode } => self.on_request(now, client, name, mode),
            ToServer::Release { name, generation, kept } => {
                self.on_release(now, client, name, generation, kept);
                Ok(None)
            }
        }
    }

    /// A batch of what a recovering client holds, in the order of the names, from where it was
    /// asked to start; an empty one ends its recovery. After a violation the client can only be
    /// evicted.
    pub fn handle_batch(
        &mut self,
        now: Instant,
        id: ClientId,
        batch: &[Held],
    ) -> Result<(), Violation> {
        let client = self.client(id).ok_or(Violation::Unknown)?;
        let Standing::Recovering { from, asked: true } = self.clients[client as usize].standing
        else {
            return Err(Violation::NotRecovering);
        };
        let Some(last) = batch.last() else {
            self.clients[client as usize].standing = Standing::Live;
            self.unrecovered -= 1;
            self.check_recovered();
            return Ok(());
        };
        let mut least = from;
        for held in batch {
            let start = held.name.start();
            if start < least {
                return Err(Violation::Order);
            }
            if from == Key::MIN || !is_active(Mutant::FirstBatchOnly) {
                self.restore(now, client, held)?;
            }
            least = start.next().ok_or(Violation::Order)?;
        }
        let from = last.name.start().next().ok_or(Violation::Order)?;
        self.clients[client as usize].standing = Standing::Recovering { from, asked: false };
        Ok(())
    }

    /// The client has unmounted: it holds nothing.
    pub fn farewell(&mut self, id: ClientId) {
        self.leave(id, |_| Leaving::Clean);
    }

    /// The client was evicted: it is not known whether it has stopped. File ranges it could write
    /// stay held until [`release_ghost`](Self::release_ghost).
    pub fn evict(&mut self, id: ClientId) {
        self.leave(id, Leaving::Evicted);
    }

    /// An evicted client is proven to have stopped, or its writes can't be coming any more.
    pub fn release_ghost(&mut self, id: ClientId) {
        let Some(at) = self.client(id) else { return };
        let client = &mut self.clients[at as usize];
        let ghost = match client.standing {
            Standing::Ghost(ghost) => {
                self.leaving += 1;
                ghost
            }
            Standing::Leaving(Leaving::Evicted(ghost)) => ghost,
            Standing::Nobody
            | Standing::Recorded
            | Standing::Recovering { .. }
            | Standing::Live
            | Standing::Leaving(Leaving::Clean) => return,
        };
        client.standing = Standing::Leaving(Leaving::Clean);
        if ghost == Ghost::Unknown {
            self.ghosts_unknown -= 1;
            if self.ghosts_unknown == 0 && !self.is_recovering() {
                self.phase = Phase::Resuming(0);
            }
        }
    }

    /// Does up to `budget` units of work: entries of leaving clients removed, locks looked at after
    /// recovery, idle grants revoked.
    pub fn step(&mut self, now: Instant, budget: u32) -> More {
        for _ in 0..budget {
            let worked = if self.leaving > 0 {
                self.step_leaving(now);
                true
            } else if let Phase::Resuming(slot) = self.phase {
                self.step_resuming(now, slot);
                true
            } else {
                self.step_reclaim(now)
            };
            if !worked {
                return More::No;
            }
        }
        More::Yes
    }

    /// The next message for this client.
    pub fn poll_message(&mut self, id: ClientId) -> Option<ToClient> {
        let at = self.client(id)?;
        let client = &mut self.clients[at as usize];
        if let Standing::Recovering { from, asked: asked @ false } = &mut client.standing {
            *asked = true;
            return Some(ToClient::Recover { from: *from });
        }
        let index = client.outbox.pop_front(self.in_outbox)?;
        let entry = &mut self.entries[index as usize];
        let name = self.table.name(entry.lock).expect("an entry's lock has a name");
        let generation = entry.generation;
        if entry.grant_due {
            entry.grant_due = false;
            if entry.revoke_due {
                client.outbox.push_back(self.in_outbox, index);
            }
            return Some(ToClient::Grant { name, generation, mode: entry.mode });
        }
        entry.revoke_due = false;
        let to = entry.revoke.expect("a revoke that is due");
        Some(ToClient::Revoke { name, generation, to })
    }

    /// Whether there are recorded clients that have neither reported all they hold nor been
    /// evicted.
    #[must_use]
    pub fn is_recovering(&self) -> bool {
        matches!(self.phase, Phase::Recording | Phase::Recovering)
    }

    /// The clients that recovery waits for.
    pub fn unrecovered(&self) -> impl Iterator<Item = ClientId> + '_ {
        self.clients.iter().filter_map(|client| match client.standing {
            Standing::Recorded | Standing::Recovering { .. } => Some(client.id),
            Standing::Nobody | Standing::Live | Standing::Leaving(_) | Standing::Ghost(_) => None,
        })
    }

    /// The evicted clients whose ghosts hold something, and how many locks; none if that is not
    /// known, and every inode group is held.
    pub fn ghosts(&self) -> impl Iterator<Item = (ClientId, Option<u32>)> + '_ {
        self.clients.iter().filter_map(|client| match client.standing {
            Standing::Ghost(Ghost::Known) => Some((client.id, Some(client.kept.len()))),
            Standing::Ghost(Ghost::Unknown) => Some((client.id, None)),
            Standing::Nobody
            | Standing::Recorded
            | Standing::Recovering { .. }
            | Standing::Live
            | Standing::Leaving(_) => None,
        })
    }

    /// The requests that wait. Those of one lock follow each other, the first in line first.
    pub fn waiting(&self) -> impl Iterator<Item = Waiting> + '_ {
        let queues = (0..self.table.slots())
            .filter_map(|lock| Some((self.table.name(lock)?, self.locks[lock as usize].queue)));
        queues.flat_map(move |(name, queue)| {
            queue.iter(self.in_queue).zip(0..).map(move |(index, ahead)| {
                let entry = &self.entries[index as usize];
                let client = self.clients[entry.client as usize].id;
                Waiting { name, client, wanted: entry.wanted, since: entry.since, ahead }
            })
        })
    }

    /// The grants of a lock.
    pub fn holders(&self, name: &LockName) -> impl Iterator<Item = Holder> + '_ {
        let lock = self.table.find(name).map(|slot| self.locks[slot as usize].entries);
        let indices = lock.unwrap_or(List::EMPTY).iter(self.by_lock);
        indices.map(|index| &self.entries[index as usize]).filter_map(|entry| {
            let client = &self.clients[entry.client as usize];
            (entry.mode != Mode::Null).then_some(Holder {
                client: client.id,
                mode: entry.mode,
                revoke: entry.revoke,
                ghost: !client.standing.answers(),
                since: entry.since,
            })
        })
    }

    /// Grants that clients and ghosts have.
    #[must_use]
    pub fn granted(&self) -> u32 {
        let taken = (0..self.table.slots()).filter(|lock| self.table.name(*lock).is_some());
        let entries = taken.flat_map(|lock| self.locks[lock as usize].entries.iter(self.by_lock));
        entries.filter(|entry| self.entries[*entry as usize].mode != Mode::Null).count() as u32
    }

    /// Entries in use.
    #[must_use]
    pub fn entries_used(&self) -> u32 {
        self.touched - self.free.len()
    }

    fn entries_free(&self) -> u32 {
        self.limits.entries - self.entries_used()
    }

    /// What the server has done.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn client(&self, id: ClientId) -> Option<u32> {
        self.roster.find(id)
    }

    fn add_client(&mut self, id: ClientId, standing: Standing) -> Result<u32, ClientsFull> {
        let free = |client: &Client| client.standing == Standing::Nobody;
        let at = self.clients.iter().position(free).ok_or(ClientsFull)?;
        self.clients[at].id = id;
        self.clients[at].standing = standing;
        self.roster.insert(id, at as u32);
        Ok(at as u32)
    }

    fn check_recovered(&mut self) {
        if self.phase == Phase::Recovering && self.unrecovered == 0 {
            self.phase = Phase::Resuming(0);
        }
    }

    fn on_request(
        &mut self,
        now: Instant,
        client: u32,
        name: LockName,
        mode: Mode,
    ) -> Result<Option<ToClient>, Violation> {
        let index = match self.find_entry(client, &name) {
            Some(index) if self.entries[index as usize].wanted != Mode::Null => {
                return Err(Violation::Outstanding);
            }
            Some(index) => index,
            None => match self.check_room().and_then(|()| self.add_entry(client, name)) {
                Ok(index) => index,
                Err(refusal) => {
                    self.counters.refusals += 1;
                    return Ok(Some(ToClient::Refuse { name, mode, refusal }));
                }
            },
        };
        let entry = &mut self.entries[index as usize];
        entry.wanted = mode;
        entry.since = now;
        let lock = entry.lock;
        self.locks[lock as usize].queue.push_back(self.in_queue, index);
        self.process(now, lock);
        Ok(None)
    }

    fn on_release(
        &mut self,
        now: Instant,
        client: u32,
        name: LockName,
        generation: u64,
        kept: Mode,
    ) {
        let current = self.find_entry(client, &name).filter(|index| {
            let entry = &self.entries[*index as usize];
            let granted = entry.mode != Mode::Null && !entry.grant_due;
            granted && entry.generation == generation && entry.mode.covers(kept)
        });
        let Some(index) = current else {
            self.counters.stale_releases += 1;
            return;
        };
        let entry = &mut self.entries[index as usize];
        let lock = entry.lock;
        entry.mode = kept;
        if entry.revoke.is_some_and(|to| to.covers(kept)) {
            self.end_revoke(index);
        }
        let entry = &mut self.entries[index as usize];
        if entry.mode == Mode::Null {
            self.ages.remove(self.in_ages, index);
            if entry.wanted == Mode::Null {
                self.remove_entry(index);
            }
        } else if entry.revoke.is_none() {
            self.ages.ensure(self.in_ages, index);
        }
        self.process(now, lock);
    }

    /// Takes up a grant that a client reports.
    fn restore(&mut self, now: Instant, client: u32, held: &Held) -> Result<(), Violation> {
        if held.mode == Mode::Null {
            return Err(Violation::Order);
        }
        let index = self.add_entry(client, held.name).map_err(|_| Violation::TooMany)?;
        let lock = self.entries[index as usize].lock;
        let conflict = self.locks[lock as usize].entries.iter(self.by_lock).any(|other| {
            let other = &self.entries[other as usize];
            !other.mode.admits(held.mode, false)
        });
        if conflict {
            self.remove_entry(index);
            return Err(Violation::Conflict);
        }
        let entry = &mut self.entries[index as usize];
        entry.mode = held.mode;
        entry.since = now;
        self.locks[lock as usize].reported = true;
        self.counters.recovered += 1;
        self.age(index);
        Ok(())
    }

    /// Grants what can be granted of a lock, and revokes what is in the way of the first in line.
    fn process(&mut self, now: Instant, lock: u32) {
        if self.is_recovering() && !is_active(Mutant::GrantInRecovery) {
            return;
        }
        while let Some(head) = self.locks[lock as usize].queue.front() {
            if !self.clear_way(now, lock, head) {
                return;
            }
            self.grant(now, lock, head);
        }
    }

    /// Whether nothing is in the way of the request. What is, is being revoked afterwards.
    fn clear_way(&mut self, now: Instant, lock: u32, head: u32) -> bool {
        let Entry { client, wanted, revoke, .. } = self.entries[head as usize];
        let name = self.table.name(lock).expect("a lock with entries has a name");
        let unknown = self.ghosts_unknown > 0
            && name.covers_file_blocks()
            && !self.locks[lock as usize].reported;
        let mut clear = !unknown && revoke.is_none();
        let mut next = self.locks[lock as usize].entries.front();
        while let Some(index) = next {
            next = List::next(self.by_lock, index);
            let entry = &self.entries[index as usize];
            if entry.mode.admits(wanted, entry.client == client) {
                continue;
            }
            clear = is_active(Mutant::GrantBeforeRelease);
            let answers = self.clients[entry.client as usize].standing.answers();
            if answers && entry.revoke.is_none() {
                let to = entry.mode.revoked_for(wanted);
                self.revoke(now, index, to);
                self.counters.revokes += 1;
            }
        }
        clear
    }

    fn grant(&mut self, now: Instant, lock: u32, index: u32) {
        self.locks[lock as usize].queue.remove(self.in_queue, index);
        self.generation += 1;
        let entry = &mut self.entries[index as usize];
        entry.mode = entry.wanted;
        entry.wanted = Mode::Null;
        entry.generation = self.generation;
        entry.grant_due = true;
        entry.since = now;
        self.counters.grants += 1;
        self.send(index);
        self.ages.remove(self.in_ages, index);
        self.age(index);
    }

    /// Notes that the grant is the latest. A private zone is held for as long as its client is
    /// mounted, so it is never idle.
    fn age(&mut self, index: u32) {
        let name = self.table.name(self.entries[index as usize].lock);
        if !matches!(name.map(|name| name.scope()), Some(Scope::Private(_))) {
            self.ages.ensure(self.in_ages, index);
        }
    }

    fn revoke(&mut self, now: Instant, index: u32, to: Mode) {
        self.ages.remove(self.in_ages, index);
        let entry = &mut self.entries[index as usize];
        entry.revoke = Some(to);
        entry.revoke_due = true;
        if entry.wanted == Mode::Null {
            entry.since = now;
        }
        self.send(index);
    }

    fn send(&mut self, index: u32) {
        let client = &mut self.clients[self.entries[index as usize].client as usize];
        client.outbox.ensure(self.in_outbox, index);
    }

    /// The revoke is answered, or there is nobody to answer it.
    fn end_revoke(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        if entry.reclaim {
            self.reclaims -= 1;
        }
        entry.revoke = None;
        entry.reclaim = false;
        entry.revoke_due = false;
        if !entry.grant_due {
            let client = &mut self.clients[entry.client as usize];
            client.outbox.remove(self.in_outbox, index);
        }
    }

    /// Whether a request may take an entry, or recovery may need it.
    fn check_room(&self) -> Result<(), Refusal> {
        let reserved = u64::from(self.unrecovered) * u64::from(self.limits.entries_per_client);
        if self.unrecovered > 0 && u64::from(self.entries_free()) <= reserved {
            return Err(Refusal::Recovering);
        }
        Ok(())
    }

    fn find_entry(&self, client: u32, name: &LockName) -> Option<u32> {
        let lock = self.table.find(name)?;
        let mut entries = self.locks[lock as usize].entries.iter(self.by_lock);
        entries.find(|index| self.entries[*index as usize].client == client)
    }

    /// An entry that was not used in this term, if there is one.
    fn touch(&mut self) -> Option<u32> {
        let index = self.touched;
        if index == self.limits.entries {
            return None;
        }
        self.touched += 1;
        for links in [
            &mut self.by_client,
            &mut self.by_lock,
            &mut self.in_queue,
            &mut self.in_outbox,
            &mut self.in_ages,
        ] {
            links[index as usize] = Link::FREE;
        }
        Some(index)
    }

    /// An entry of a client that has none for the lock.
    fn add_entry(&mut self, client: u32, name: LockName) -> Result<u32, Refusal> {
        if self.clients[client as usize].entries.len() >= self.limits.entries_per_client {
            return Err(Refusal::ClientFull);
        }
        let index = self.free.pop_front(self.by_client).or_else(|| self.touch());
        let index = index.ok_or(Refusal::Full)?;
        let lock = self.table.find(&name).unwrap_or_else(|| {
            let lock = self.table.insert(name).expect("there are as many locks as entries");
            let fresh = Lock { entries: List::EMPTY, queue: List::EMPTY, reported: false };
            self.locks[lock as usize] = fresh;
            lock
        });
        self.entries[index as usize] = Entry { client, lock, ..Entry::FREE };
        self.clients[client as usize].entries.push_back(self.by_client, index);
        self.locks[lock as usize].entries.push_back(self.by_lock, index);
        Ok(index)
    }

    /// Frees an entry, and its lock if that was the last.
    fn remove_entry(&mut self, index: u32) {
        self.silence(index);
        let Entry { client, lock, .. } = self.entries[index as usize];
        self.clients[client as usize].entries.remove(self.by_client, index);
        self.discard(index, lock);
    }

    /// Frees an entry that is in none of its client's lists.
    fn discard(&mut self, index: u32, lock: u32) {
        self.locks[lock as usize].entries.remove(self.by_lock, index);
        self.free.push_back(self.by_client, index);
        if self.locks[lock as usize].entries.is_empty() {
            self.table.remove(lock);
        }
    }

    /// Takes an entry's request back, and whatever was to be sent.
    fn silence(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.wanted = Mode::Null;
        entry.grant_due = false;
        let (client, lock) = (entry.client, entry.lock);
        self.end_revoke(index);
        self.clients[client as usize].outbox.remove(self.in_outbox, index);
        self.locks[lock as usize].queue.remove(self.in_queue, index);
        self.ages.remove(self.in_ages, index);
    }

    fn leave(&mut self, id: ClientId, how: impl Fn(Ghost) -> Leaving) {
        let Some(at) = self.client(id) else { return };
        let ghost = match self.clients[at as usize].standing {
            Standing::Recorded | Standing::Recovering { .. } => {
                self.unrecovered -= 1;
                Ghost::Unknown
            }
            Standing::Live => Ghost::Known,
            Standing::Nobody | Standing::Leaving(_) | Standing::Ghost(_) => return,
        };
        let how = how(ghost);
        if how == Leaving::Evicted(Ghost::Unknown) {
            self.ghosts_unknown += 1;
        }
        self.leaving += 1;
        self.clients[at as usize].standing = Standing::Leaving(how);
        self.check_recovered();
    }

    /// Removes one entry of a leaving client, or, after the last, the client.
    fn step_leaving(&mut self, now: Instant) {
        let leaving = |client: &Client| matches!(client.standing, Standing::Leaving(_));
        let at = self.clients.iter().position(leaving).expect("a client is leaving");
        let client = &mut self.clients[at];
        let Standing::Leaving(how) = client.standing else { return };
        if let Some(index) = client.entries.pop_front(self.by_client) {
            self.silence(index);
            let Entry { lock, mode, .. } = self.entries[index as usize];
            let name = self.table.name(lock).expect("an entry's lock has a name");
            let writes = mode == Mode::Write && name.covers_file_blocks();
            if writes && matches!(how, Leaving::Evicted(_)) {
                self.clients[at].kept.push_back(self.by_client, index);
            } else {
                self.discard(index, lock);
            }
            self.process_if_any(now, lock);
            return;
        }
        let gone = match how {
            Leaving::Clean => match client.kept.pop_front(self.by_client) {
                Some(index) => {
                    let lock = self.entries[index as usize].lock;
                    self.discard(index, lock);
                    self.process_if_any(now, lock);
                    return;
                }
                None => true,
            },
            Leaving::Evicted(Ghost::Known) => client.kept.is_empty(),
            Leaving::Evicted(Ghost::Unknown) => false,
        };
        client.standing = match how {
            Leaving::Evicted(ghost) if !gone => Standing::Ghost(ghost),
            Leaving::Evicted(_) | Leaving::Clean => Standing::Nobody,
        };
        if client.standing == Standing::Nobody {
            self.roster.remove(client.id);
        }
        self.leaving -= 1;
    }

    fn process_if_any(&mut self, now: Instant, lock: u32) {
        if self.table.name(lock).is_some() {
            self.process(now, lock);
        }
    }

    fn step_resuming(&mut self, now: Instant, slot: u32) {
        self.process_if_any(now, slot);
        self.phase =
            if slot + 1 < self.table.slots() { Phase::Resuming(slot + 1) } else { Phase::Serving };
    }

    /// Revokes the least recent grant, if there are too many. Says whether it did.
    fn step_reclaim(&mut self, now: Instant) -> bool {
        let full = self.entries_used() > self.limits.entries_high;
        if !full || self.is_recovering() || self.reclaims >= self.limits.reclaims {
            return false;
        }
        let Some(index) = self.ages.front() else { return false };
        self.revoke(now, index, Mode::Null);
        self.entries[index as usize].reclaim = true;
        self.reclaims += 1;
        self.counters.reclaims += 1;
        true
    }
}

impl Standing {
    /// Whether a revoke can be answered.
    fn answers(self) -> bool {
        match self {
            Standing::Recorded | Standing::Recovering { .. } | Standing::Live => true,
            Standing::Nobody | Standing::Leaving(_) | Standing::Ghost(_) => false,
        }
    }
}

#[cfg(test)]
mod tests;
