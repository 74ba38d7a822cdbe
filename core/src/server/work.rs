//! Running what is in the table, a request at a time, and what follows from how that ends.
//!
//! # Invariants
//!
//! * A request is run by itself, once in its turn, and gives back all blocks it has obtained before
//!   it waits for anything but the cache.
//!
//! What this module deliberately doesn't know: what requests do.

use super::requests::{self, Context, Halt, Opened, Progress};
use super::table::{Member, Members, Slot as Place, Stage, Standing, Work};
use super::{Server, Stable, compact, evict};
use crate::error::{Error, Stop, Wait};
use crate::format::wire::message::{ClientRequest, Payload};
use crate::format::wire::{ErrorCode, Kind};
use crate::format::{ClientId, Seq};
use crate::mutant::{Mutant, is_active};
use crate::txn::takeover::Gone;
use outrider_hal::Instant;

impl Server<'_> {
    /// Runs a request once.
    pub(super) fn run(&mut self, now: Instant, index: usize) {
        if self.is_to_wait(index) {
            let slot = &mut self.table.slots[index];
            // What it had obtained may have changed when it goes on.
            self.store.cache.release(&mut slot.pins);
            slot.pins.begin(slot.id);
            slot.stage = Stage::Held;
            self.held += 1;
            self.counters.held += 1;
            return;
        }
        let result = self.carry_out(now, index);
        let slot = &mut self.table.slots[index];
        match result {
            Ok(progress) => {
                self.store.cache.release(&mut slot.pins);
                slot.pins.begin(slot.id);
                match progress {
                    Progress::More => self.table.ready(index),
                    Progress::Done => self.on_done(now, index),
                    Progress::Known => self.answer_durable(now, index),
                    Progress::Waits => self.table.slots[index].stage = Stage::Parked,
                }
                self.want_commit_if_changed(now);
            }
            Err(Halt::Refuse(error)) => self.refuse(now, index, error),
            Err(Halt::Stop(Stop::Fail(Error::Corrupt { .. }))) => {
                self.store.cache.release(&mut slot.pins);
                self.doubt_damage(now, index);
            }
            Err(Halt::Stop(Stop::Fail(error))) => self.refuse(now, index, error.into()),
            Err(Halt::Stop(Stop::Wait(Wait::Again))) => self.table.ready(index),
            Err(Halt::Stop(Stop::Wait(Wait::Block(_) | Wait::Frame | Wait::Commit))) => {
                slot.stage = Stage::Parked;
            }
        }
    }

    /// A request has been carried out, and its answer waits.
    fn on_done(&mut self, now: Instant, index: usize) {
        let slot = &mut self.table.slots[index];
        let open = self.store.open_commit();
        let commit = match &slot.work {
            Work::Load { .. } => {
                slot.stage = Stage::Free;
                return self.serve(now);
            }
            Work::Tidy | Work::Release { .. } | Work::Settle { .. } => {
                slot.stage = Stage::Free;
                if self.tidying.is_behind() {
                    self.want_commit(now.plus(self.config.timing.gather));
                }
                return;
            }
            Work::Loan => slot.loan.commit,
            Work::Evict(state) => state.commit,
            Work::Greet { .. }
            | Work::Transaction { .. }
            | Work::Farewell
            | Work::Compact
            | Work::Compacted { .. }
            | Work::CompactReady { .. }
            | Work::Merge => open.expect("it has just changed it"),
        };
        slot.stage = Stage::Joined(commit);
        let early = is_active(Mutant::AnswerBeforeDurable)
            && matches!(slot.work, Work::Loan | Work::Transaction { .. });
        if commit <= self.confirmed || early {
            self.answer_durable(now, index);
        } else if open == Some(commit) {
            self.want_commit(now.plus(self.config.timing.gather));
        }
    }

    pub(super) fn want_commit(&mut self, at: Instant) {
        self.commit_at = Some(self.commit_at.map_or(at, |already| already.min(at)));
    }

    /// What nobody waits for becomes durable in a while.
    pub(super) fn want_commit_if_changed(&mut self, now: Instant) {
        if self.store.open_commit().is_some() && !self.store.cache.is_unchanged() {
            self.want_commit(now.plus(self.config.timing.tidy));
        }
    }

    fn carry_out(&mut self, now: Instant, index: usize) -> Result<Progress, Halt> {
        let gone = match &self.table.slots[index].work {
            Work::Release { .. } => self.gone(),
            _ => Gone::NOBODY,
        };
        let Server { table, members, store, scratch, stable, config, counters, .. } = self;
        let (planner, merger) = (&mut self.planner, &mut self.merger);
        let Place { work, loan, pins, payload, payload_len, client, .. } = &mut table.slots[index];
        let scratch = scratch.as_deref_mut().expect("carved");
        let volume_blocks = config.volume.blocks();
        let payload = &payload[..*payload_len];
        let mut cx = Context { store, pins, scratch, volume_blocks };
        match work {
            Work::Load { client, seq } => load(&mut cx, client, seq, stable, members),
            Work::Tidy => self.tidying.run(&mut cx, counters),
            Work::Release { from } => requests::release(&mut cx, &gone, from),
            Work::Compact => planner.run(&mut cx, members, merger.inputs()),
            Work::Merge => {
                let progress = merger.run(&mut cx)?;
                if progress == Progress::Done && merger.has_changed() {
                    planner.on_own_change();
                }
                Ok(progress)
            }
            Work::Compacted { failed } => match ClientRequest::parse(Kind::Compacted, payload) {
                Ok(ClientRequest::Compacted(result)) => {
                    let member = members.find(*client);
                    let done = compact::compacted(&mut cx, now, planner, member, &result);
                    let (progress, error) = done.map_err(|halt| match halt {
                        // It is said again, and by then may be possible.
                        Halt::Stop(Stop::Fail(_)) => Halt::Refuse(ErrorCode::Busy),
                        Halt::Stop(Stop::Wait(_)) | Halt::Refuse(_) => halt,
                    })?;
                    *failed = error;
                    Ok(progress)
                }
                _ => Err(Halt::Refuse(ErrorCode::Invalid)),
            },
            Work::CompactReady { .. } => compact::settle(&mut cx, *client, None),
            Work::Settle { place } => {
                let member = members.find(*client);
                let member = member.filter(|member| member.standing == Standing::Mounted);
                let Some(member) = member.filter(|member| member.helper.is_back(*place)) else {
                    return Ok(Progress::Known);
                };
                let progress = compact::settle(&mut cx, *client, Some(*place))?;
                member.helper.release(*place);
                Ok(if progress == Progress::More { Progress::Done } else { progress })
            }
            Work::Greet { nonce, machine, client, .. } => {
                if members.is_full() {
                    return Err(Halt::Refuse(ErrorCode::TooMany));
                }
                let (new, seq) = requests::greet(&mut cx, *nonce, *machine)?;
                let fresh = Member::new(new, *nonce, *machine, Standing::Greeting);
                let member = Member { seq, floor: seq, ..fresh };
                members.add(member).expect("it was not full");
                *client = new;
                Ok(Progress::Done)
            }
            Work::Loan => match ClientRequest::parse(Kind::Loan, payload) {
                Ok(ClientRequest::Loan(request)) => {
                    requests::loan(&mut cx, *client, &request, loan)
                }
                _ => Err(Halt::Refuse(ErrorCode::Invalid)),
            },
            Work::Transaction { seq_next } => {
                match ClientRequest::parse(Kind::Transaction, payload) {
                    Ok(ClientRequest::Transaction(request)) => {
                        match requests::transaction(&mut cx, *client, &request)? {
                            Opened::Before { seq_next: next } => {
                                *seq_next = next;
                                Ok(Progress::Known)
                            }
                            Opened::Now { seq_next: next, floor } => {
                                *seq_next = next;
                                if request.runs().len() > 0 {
                                    planner.on_recorded(now);
                                }
                                if let Some(member) = members.find(*client) {
                                    (member.seq, member.floor) = (next, floor);
                                }
                                Ok(Progress::Done)
                            }
                        }
                    }
                    _ => Err(Halt::Refuse(ErrorCode::Invalid)),
                }
            }
            Work::Farewell => {
                let seq = members.find(*client).map_or(Seq(0), |member| member.seq);
                let progress = requests::farewell(&mut cx, *client, seq)?;
                if progress == Progress::Done {
                    members.close(*client);
                }
                Ok(progress)
            }
            Work::Evict(state) => {
                let seq = members.find(*client).map_or(Seq(0), |member| member.seq);
                let progress = evict::evict(&mut cx, *client, seq, state)?;
                if state.is_marked() {
                    members.close(*client);
                }
                Ok(progress)
            }
        }
    }
}

/// Reads the next recorded client, or, when all are read, the next open transaction.
fn load(
    cx: &mut Context<'_, '_>,
    client: &mut ClientId,
    seq: &mut Option<Seq>,
    stable: &mut Stable,
    members: &mut Members<'_>,
) -> Result<Progress, Halt> {
    let Some(after) = *seq else {
        match requests::next_client(cx, *client)? {
            Some(found) => {
                let standing = if found.evicted { Standing::Evicting } else { Standing::Mounted };
                let is_calm = found.is_calm;
                let new = Member::new(found.client, found.nonce, found.machine, standing);
                let member = Member { is_calm, ..new };
                members.add(member).map_err(Halt::Refuse)?;
                *client = found.client;
            }
            None => *seq = Some(Seq(0)),
        }
        return Ok(Progress::More);
    };
    match requests::next_open(cx, after)? {
        Some(open) => {
            if let Some(member) = members.find(open.client) {
                (member.seq, member.floor) = (open.seq, open.floor);
            }
            *seq = Some(open.seq);
            Ok(Progress::More)
        }
        None => {
            let found = members.stable(cx.store.trees.next_seq);
            (stable.closed, stable.confirmed) = (found, found);
            Ok(Progress::Done)
        }
    }
}
