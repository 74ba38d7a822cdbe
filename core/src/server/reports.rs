//! What the server says of itself, of its clients, and of who waits for whom.
//!
//! # Invariants
//!
//! * A report is made of what is in memory, at once: it waits for no client, no device and no
//!   recovery.
//! * Long ones come in parts. Between two of these anything may change.
//!
//! What this module deliberately doesn't know: who reads them.

use super::Server;
use super::table::{Member, Standing};
use crate::format::ClientId;
use crate::format::wire::message::{
    ClientList, ClientStanding, ClientStatusRecord, LIST_RECORDS_MAX, LockWaitRecord, Outcome,
    ServerAnswer, Statfs, Status, WaitList,
};
use crate::lock::Mode;
use crate::net::SessionId;
use crate::txn::settle::data_floor;
use core::time::Duration;
use heapless::Vec;
use outrider_hal::Instant;

fn ms(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

impl Server<'_> {
    pub(super) fn statfs(&self) -> ServerAnswer<'static> {
        let (trees, blocks) = (&self.store.trees, self.config.volume.blocks());
        ServerAnswer::Statfs(Statfs {
            blocks,
            blocks_free: trees.free.free_blocks().saturating_sub(data_floor(blocks)),
            ino_next: trees.next_ino,
        })
    }

    pub(super) fn status(&self, now: Instant) -> ServerAnswer<'static> {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let leading = now.since(self.serving_since).as_millis();
        ServerAnswer::Status(Status {
            term: self.store.term(),
            commit: self.confirmed,
            leading_ms: u64::try_from(leading).unwrap_or(u64::MAX),
            clients: count(self.members.all().len()),
            clients_connected: count(self.connected()),
            clients_recovering: count(self.locks.server.unrecovered().count()),
            clients_quarantined: count(self.members.all().iter().filter(|m| m.is_out()).count()),
            locks: self.locks.server.granted(),
            lock_waiters: count(self.locks.server.waiting().count()),
            blocks_quarantined: self.members.all().iter().map(|member| member.quarantined).sum(),
        })
    }

    pub(super) fn connected(&self) -> usize {
        self.links.sessions().filter(|(session, _)| self.links.is_up(*session)).count()
    }

    /// Answers how clients stand, from this one on.
    pub(super) fn report_clients(&mut self, now: Instant, session: SessionId, from: ClientId) {
        let Some(ticket) = self.links.take(now, session) else { return };
        self.links.recorded(session, ticket);
        let (mut list, mut from) = (Vec::<_, LIST_RECORDS_MAX>::new(), from);
        while let Some(member) = self.next_member(from) {
            if list.push(self.client_status(now, &member)).is_err() {
                break;
            }
            from = member.client.next();
        }
        let list = ClientList::new(&list).expect("of our own making");
        let _ = self.links.answer(session, ticket, &Outcome::Done(ServerAnswer::Clients(list)));
    }

    fn next_member(&self, from: ClientId) -> Option<Member> {
        let behind = self.members.all().iter().filter(|member| member.client >= from);
        behind.min_by_key(|member| member.client).copied()
    }

    fn client_status(&self, now: Instant, member: &Member) -> ClientStatusRecord {
        let client = member.client;
        let up = self.links.find(client).is_some_and(|session| self.links.is_up(session));
        let mounted = member.standing == Standing::Mounted;
        let lost_at = self.lost_at(member).filter(|_| mounted && !up);
        let left = |until: Option<Instant>| until.map_or(0, |until| ms(until.since(now)));
        let recovering = self.locks.server.unrecovered().any(|other| other == client);
        let connected = if up { ClientStatusRecord::CONNECTED } else { 0 };
        let recovering = if recovering { ClientStatusRecord::RECOVERING } else { 0 };
        let standing = match member.standing {
            Standing::Greeting => ClientStanding::Greeting,
            Standing::Mounted => ClientStanding::Mounted,
            Standing::Leaving => ClientStanding::Leaving,
            Standing::Evicting => ClientStanding::Evicting,
            Standing::Evicted => ClientStanding::Evicted,
        };
        ClientStatusRecord {
            client: client.into(),
            host_id: member.machine.host.0,
            boot_id: member.machine.boot.0,
            blocks_quarantined: member.quarantined.into(),
            awaited_ms: left(lost_at).into(),
            locked_ms: left(member.ghost_until).into(),
            fences_failed: member.fence_failures.into(),
            standing: standing as u8,
            flags: connected | recovering,
            reserved: [0; 4],
        }
    }

    /// Answers who waits for whom, without the first so many.
    pub(super) fn report_waits(&mut self, now: Instant, session: SessionId, skip: u64) {
        let Some(ticket) = self.links.take(now, session) else { return };
        self.links.recorded(session, ticket);
        let locks = &self.locks.server;
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let waits = locks.waiting().skip(skip).take(LIST_RECORDS_MAX).map(|wait| {
            let mut others = locks.holders(&wait.name).filter(|held| held.client != wait.client);
            let holder = others.next();
            let ghost = holder.is_some_and(|holder| holder.ghost);
            LockWaitRecord {
                waiter: wait.client.into(),
                holder: holder.map_or(ClientId(0), |holder| holder.client).into(),
                waits_ms: ms(now.since(wait.since)).into(),
                name: wait.name.start().into(),
                wanted: wait.wanted as u8,
                held: holder.map_or(Mode::Null, |holder| holder.mode) as u8,
                flags: if ghost { LockWaitRecord::GHOST } else { 0 },
                reserved: [0; 14],
            }
        });
        let waits: Vec<_, LIST_RECORDS_MAX> = waits.collect();
        let list = WaitList::new(&waits).expect("of our own making");
        let _ = self.links.answer(session, ticket, &Outcome::Done(ServerAnswer::Waits(list)));
    }
}
