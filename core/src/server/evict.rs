//! Eviction: what becomes of a client that is not heard any more, and of what it has.
//!
//! ```text
//!             not heard for a recovery window,           idle: Work::Evict
//!             or broke the protocol                      marked, loans quarantined, durable
//!   Mounted ------------------------------> Evicting -------------------------> Evicted
//!                                            ^                                    |
//!                a later term reads the mark |          farewell: it was there    v
//!                                            +---- all the time, and has stopped: gone
//!                                                  or its machine has booted again,
//!                                                  or it was fenced
//! ```
//!
//! # Invariants
//!
//! * Only a leader that listens and may act evicts, and only who it has not heard for a whole
//!   recovery window of listening.
//! * From the decision on the client is not served. Once the mark in its record is durable it never
//!   will be again, by any leader; it comes back as a new client. Nothing of what it has is given
//!   away before that.
//! * The mark comes first, in one plan with the end of its open transaction. After it, its loans go
//!   into quarantine list by list; a leader that dies meanwhile leaves the rest to the next, which
//!   finds the mark.
//! * That its locks on file ranges are not waited for any more is recorded too: a later leader does
//!   not wait again.
//! * Quarantined space waits for proof that the client writes no more: its own farewell, a client
//!   that came later from another boot of the same machine, because a boot ends all I/O of those
//!   before it, or what `fence` has from outside. Time is no proof. Its locks on file ranges wait
//!   for the same proof, or for the lifetime of I/O; all others are free when the eviction is
//!   durable.
//! * That a machine has booted ends no client that is still heard, or not yet evicted: if two
//!   machines by mistake have one name, both go on.
//!
//! What this module deliberately doesn't know: why a client isn't heard.

use super::Server;
use super::events::ServerEvent;
use super::requests::{self, Context, Halt, Progress};
use super::table::{Member, Stage, Standing, Work};
use crate::error::Corruption;
use crate::format::records::{
    ClientKey, ClientPart, ClientRecord, ClientState, FreedKey, LoanKey, OpenSeqKey, OwnerKind,
    Pool, QuarantineKey, list,
};
use crate::format::root::Extent;
use crate::format::{ClientId, CommitNo, Seq};
use crate::mutant::{Mutant, is_active};
use core::time::Duration;
use heapless::Vec;
use outrider_hal::Instant;
use zerocopy::{FromBytes, IntoBytes};

/// An eviction that failed is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// How far an eviction is.
#[derive(Debug, Default)]
pub(super) struct EvictState {
    /// The record says so.
    marked: bool,
    /// Quarantined lists of the client, and their blocks.
    parts: u16,
    blocks: u64,
    /// The last commit that it changed something in.
    pub(super) commit: CommitNo,
    /// It is about the end of the waiting for its writes in place.
    calms: bool,
}

impl Server<'_> {
    /// The client is not served any more.
    pub(super) fn begin_eviction(&mut self, client: ClientId) {
        if let Some(session) = self.links.find(client) {
            self.links.dismiss(session);
            // What was to be said to it is said to nobody.
            self.send_refusals();
        }
        if let Some(member) = self.members.find(client)
            && member.standing == Standing::Mounted
        {
            member.standing = Standing::Evicting;
            self.counters.evictions += 1;
        }
        let dropped = self.forget_compactions(client);
        self.planner.on_evicted(dropped);
    }

    /// When a client has not been heard for too long, unless it is heard until then.
    pub(super) fn lost_at(&self, member: &Member) -> Option<Instant> {
        let listening = self.listening_since?;
        let session = self.links.find(member.client);
        let heard = session.and_then(|session| self.links.heard(session));
        // Who was just recorded may have lost its connection before it could be welcomed.
        let since = match is_active(Mutant::EvictionWithoutWindow) {
            true => member.recorded_at,
            false => listening.max(member.recorded_at),
        };
        let heard = heard.map_or(since, |heard| heard.max(since));
        Some(heard.plus(self.config.timing.recovery))
    }

    /// Begins the evictions that are due, and ends the waiting for writes that can't be coming.
    pub(super) fn step_evictions(&mut self, now: Instant) {
        for at in 0..self.members.all().len() {
            let member = self.members.all()[at];
            let lost = self.lost_at(&member).is_some_and(|lost| lost <= now);
            if member.standing == Standing::Mounted && lost {
                self.begin_eviction(member.client);
            }
            if member.ghost_until.is_some_and(|until| until <= now) {
                self.locks.server.release_ghost(member.client);
                self.members.all_mut()[at].ghost_until = None;
            }
            let member = self.members.all()[at];
            let rebooted = self.members.all().iter().any(|later| later.proves_gone(&member));
            let is_gone = member.is_gone || rebooted;
            let evict = |calms| Work::Evict(EvictState { calms, ..EvictState::default() });
            let work = match member.standing {
                Standing::Evicting => evict(false),
                Standing::Evicted if is_gone => Work::Farewell,
                Standing::Evicted if member.ghost_until.is_none() && !member.is_calm => evict(true),
                Standing::Evicted | Standing::Mounted | Standing::Greeting | Standing::Leaving => {
                    continue;
                }
            };
            let mut slots = self.table.slots.iter().filter(|slot| slot.stage != Stage::Free);
            let busy = slots.any(|slot| slot.client == member.client);
            if !busy && member.retry_at <= now {
                self.members.all_mut()[at].retry_at = Instant(0);
                let leaves = matches!(work, Work::Farewell);
                // If all slots are taken, there is a next time.
                if self.table.begin(work, member.client).is_ok() && leaves {
                    self.members.all_mut()[at].standing = Standing::Leaving;
                }
            }
        }
    }

    /// When there is something to do though nothing happens.
    pub(super) fn eviction_timeout(&self) -> Option<Instant> {
        let due = self.members.all().iter().flat_map(|member| {
            let at = match member.standing {
                Standing::Mounted => self.lost_at(member),
                Standing::Evicting | Standing::Evicted => {
                    Some(member.retry_at).filter(|at| *at > Instant(0))
                }
                Standing::Greeting | Standing::Leaving => None,
            };
            [at, member.ghost_until]
        });
        due.flatten().min()
    }

    /// An eviction is durable: what the client held is others', but for what it may still write.
    pub(super) fn on_evicted(&mut self, now: Instant, client: ClientId, done: Evicted) {
        let Evicted { blocks, is_calm } = done;
        if is_calm {
            if let Some(member) = self.members.find(client) {
                member.is_calm = true;
            }
            return;
        }
        self.locks.server.evict(client);
        self.events.push(ServerEvent::Evicted(client));
        let until = now.plus(self.config.timing.io_lifetime);
        if let Some(member) = self.members.find(client) {
            (member.standing, member.evicted) = (Standing::Evicted, true);
            member.quarantined = blocks;
            if !member.is_calm {
                member.ghost_until = member.ghost_until.or(Some(until));
            }
        }
    }

    /// An eviction could not be carried out.
    pub(super) fn on_eviction_failed(&mut self, now: Instant, client: ClientId) {
        if let Some(member) = self.members.find(client) {
            member.retry_at = now.plus(RETRY);
        }
    }
}

/// How an eviction has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Evicted {
    /// Blocks that are quarantined on account of the client.
    blocks: u64,
    /// It was about the end of the waiting for its writes in place.
    is_calm: bool,
}

impl EvictState {
    /// Its record says that it is evicted, and it has no open transaction.
    pub(super) fn is_marked(&self) -> bool {
        self.marked
    }

    /// How it has ended.
    pub(super) fn outcome(&self) -> Evicted {
        Evicted { blocks: self.blocks, is_calm: self.calms }
    }
}

/// Carries out the next part of an eviction of a client whose open transaction is `seq`. That it is
/// open no more is said by [`EvictState::is_marked`].
pub(super) fn evict(
    cx: &mut Context<'_, '_>,
    client: ClientId,
    seq: Seq,
    state: &mut EvictState,
) -> Result<Progress, Halt> {
    if state.calms {
        calm(cx, client, state)?;
        return Ok(Progress::Done);
    }
    if !state.marked {
        return mark(cx, client, seq, state).map(|()| Progress::More);
    }
    count_lists(cx, client, state)?;
    let commit = cx.commit();
    let number = cx.store.freed_lists();
    let trees = &mut cx.store.trees;
    let (cache, pins) = (&mut cx.store.cache, &mut *cx.pins);
    let from = LoanKey { client: client.0.into(), pool: 0, part: 0.into() };
    let found = trees.loans.next(from.as_bytes(), cache, pins)?;
    let found = found.and_then(|item| Some((LoanKey::read_from_bytes(item.key).ok()?, item.value)));
    let Some((key, value)) = found.filter(|(key, _)| key.client == from.client) else {
        return Ok(Progress::Done);
    };
    let blocks = matches!(Pool::parse(key.pool), Ok(Pool::Data | Pool::Runs | Pool::Compaction));
    let lent = list(value).map_err(|what| requests::corrupt(trees, what))?;
    let lent: Vec<Extent, { crate::format::records::LIST_MAX }> =
        Vec::from_slice(lent).map_err(|_| requests::corrupt(trees, Corruption::Bounds))?;
    let to = quarantine_key(client, state.parts);
    let freed = FreedKey { commit: commit.0.into(), part: number.into() };
    let frees = blocks && is_active(Mutant::EvictionFreesLoans);
    let mut plan = cache.plan();
    trees.loans.plan_delete(key.as_bytes(), &mut plan, cache, pins)?;
    if frees {
        let bytes = size_of_val(&lent[..]);
        trees.freed.plan_insert(freed.as_bytes(), bytes, &mut plan, cache, pins)?;
    } else if blocks {
        let bytes = size_of_val(&lent[..]);
        trees.quarantine.plan_insert(to.as_bytes(), bytes, &mut plan, cache, pins)?;
    }
    let mut update = cache.reserve(&plan, pins)?;
    trees.loans.delete(key.as_bytes(), &mut update, cache);
    if frees {
        trees.freed.put(freed.as_bytes(), lent.as_bytes(), &mut update, cache);
        cx.store.next_freed_list();
    } else if blocks {
        trees.quarantine.put(to.as_bytes(), lent.as_bytes(), &mut update, cache);
    }
    state.commit = commit;
    Ok(Progress::More)
}

/// Marks the record, and ends the open transaction.
fn mark(
    cx: &mut Context<'_, '_>,
    client: ClientId,
    seq: Seq,
    state: &mut EvictState,
) -> Result<(), Halt> {
    let commit = cx.commit();
    let trees = &mut cx.store.trees;
    let (cache, pins) = (&mut cx.store.cache, &mut *cx.pins);
    let mut record = requests::any_record(client, trees, cache, pins)?;
    if record.state == ClientState::Evicted as u8 {
        state.marked = true;
        return Ok(());
    }
    record.state = ClientState::Evicted as u8;
    let key = ClientKey::new(client, ClientPart::Client);
    let open = OpenSeqKey { seq: seq.0.into(), client: client.0.into() };
    let closed = Some(&open).filter(|_| seq != Seq(0));
    let bytes = size_of_val(&record);
    let mut plan = cache.plan();
    trees.clients.plan_replace(key.as_bytes(), bytes, &mut plan, cache, pins)?;
    if let Some(closed) = closed {
        trees.open_seqs.plan_delete(closed.as_bytes(), &mut plan, cache, pins)?;
    }
    let mut update = cache.reserve(&plan, pins)?;
    trees.clients.put(key.as_bytes(), record.as_bytes(), &mut update, cache);
    if let Some(closed) = closed {
        trees.open_seqs.delete(closed.as_bytes(), &mut update, cache);
    }
    (state.marked, state.commit) = (true, commit);
    Ok(())
}

/// Records that what an evicted client may still write in place is not waited for any more.
fn calm(cx: &mut Context<'_, '_>, client: ClientId, state: &mut EvictState) -> Result<(), Halt> {
    let commit = cx.commit();
    let trees = &mut cx.store.trees;
    let (cache, pins) = (&mut cx.store.cache, &mut *cx.pins);
    let mut record = requests::any_record(client, trees, cache, pins)?;
    record.flags |= ClientRecord::CALM;
    let key = ClientKey::new(client, ClientPart::Client);
    let mut plan = cache.plan();
    let bytes = size_of_val(&record);
    trees.clients.plan_replace(key.as_bytes(), bytes, &mut plan, cache, pins)?;
    let mut update = cache.reserve(&plan, pins)?;
    trees.clients.put(key.as_bytes(), record.as_bytes(), &mut update, cache);
    state.commit = commit;
    Ok(())
}

/// Counts the client's lists that are in quarantine already.
fn count_lists(
    cx: &mut Context<'_, '_>,
    client: ClientId,
    state: &mut EvictState,
) -> Result<(), Halt> {
    let (trees, cache) = (&cx.store.trees, &mut cx.store.cache);
    let mark = cx.pins.mark();
    loop {
        let key = quarantine_key(client, state.parts);
        let found = trees.quarantine.lookup(key.as_bytes(), cache, cx.pins)?;
        let Some(value) = found else { break };
        let extents = list(value).map_err(|what| requests::corrupt(trees, what))?;
        state.blocks += extents.iter().map(Extent::len).sum::<u64>();
        state.parts += 1;
        cx.pins.drop_to(mark);
    }
    cx.pins.drop_to(mark);
    Ok(())
}

/// Moves a quarantined list of a client that is proven gone to what is freed. Whether there was
/// one.
pub(super) fn release(cx: &mut Context<'_, '_>, client: ClientId) -> Result<bool, Halt> {
    let commit = cx.commit();
    let number = cx.store.freed_lists();
    let trees = &mut cx.store.trees;
    let (cache, pins) = (&mut cx.store.cache, &mut *cx.pins);
    let from = quarantine_key(client, 0);
    let found = trees.quarantine.next(from.as_bytes(), cache, pins)?;
    let found =
        found.and_then(|item| Some((QuarantineKey::read_from_bytes(item.key).ok()?, item.value)));
    let ours = |key: &QuarantineKey| key.kind == from.kind && key.owner == from.owner;
    let Some((key, value)) = found.filter(|(key, _)| ours(key)) else { return Ok(false) };
    let waits = list(value).map_err(|what| requests::corrupt(trees, what))?;
    let waits: Vec<Extent, { crate::format::records::LIST_MAX }> =
        Vec::from_slice(waits).map_err(|_| requests::corrupt(trees, Corruption::Bounds))?;
    let to = FreedKey { commit: commit.0.into(), part: number.into() };
    let bytes = size_of_val(&waits[..]);
    let mut plan = cache.plan();
    trees.quarantine.plan_delete(key.as_bytes(), &mut plan, cache, pins)?;
    trees.freed.plan_insert(to.as_bytes(), bytes, &mut plan, cache, pins)?;
    let mut update = cache.reserve(&plan, pins)?;
    trees.quarantine.delete(key.as_bytes(), &mut update, cache);
    trees.freed.put(to.as_bytes(), waits.as_bytes(), &mut update, cache);
    cx.store.next_freed_list();
    Ok(true)
}

fn quarantine_key(client: ClientId, part: u16) -> QuarantineKey {
    QuarantineKey { kind: OwnerKind::Client as u8, owner: client.0.into(), part: part.into() }
}
