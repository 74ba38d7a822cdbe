//! Judging what a scan has shown: when to read again, whether to claim, whether the term is over.
//!
//! What this module deliberately doesn't know: how the own block is written.

use super::{
    Check, Exclusion, Identity, Loss, Notice, Office, Phase, Refusal, Trouble, Voter, Vouched,
};
use crate::format::Term;
use crate::format::quorum::{Ballot, ROUND_MAX, Slot, State};
use crate::mutant::{Mutant, is_active};
use crate::quorum::scan::Sight;
use crate::quorum::timing::{Timing, earlier, ms};
use core::time::Duration;
use outrider_hal::{BlockResult, Instant};

/// Readings at the same interval, before it doubles, while it is watched closely.
const ALERT_SCANS: u32 = 2;

impl Voter<'_> {
    pub(super) fn scan_due(&self) -> Option<Instant> {
        if self.scan.number() == 0 {
            return Some(Instant::default());
        }
        let timing = &self.config.timing;
        let began = self.scan.began();
        let interval = match began < self.alert_until {
            true => timing.close(self.alert_scans / ALERT_SCANS),
            false => ms(timing.scan_ms),
        };
        let usual = began.plus(interval.max(timing.pause(self.reads_failed)));
        let later = |at: Instant| (at > began).then_some(at);
        match &self.phase {
            Phase::Watching { .. } => {
                let quiet = self.scan.quiet_at(self.config.slot, timing).and_then(later);
                earlier(Some(usual), quiet)
            }
            Phase::Joining { .. } => Some(usual),
            Phase::Following { .. } | Phase::Leading(_) if self.is_look_due() => Some(began),
            Phase::Following { claim_at } => {
                let quiet = self.others().filter_map(|ballot| {
                    let active = ballot.state.is_active();
                    if active {
                        self.scan.quiet_at(ballot.slot, timing).and_then(later)
                    } else {
                        None
                    }
                });
                let next = claim_at.unwrap_or(self.confirmed());
                earlier(earlier(Some(usual), later(next)), quiet.min())
            }
            Phase::Looking { .. } => Some(began),
            Phase::Leading(office) => match office.check {
                Some(Check::Waiting { at, .. }) => Some(at),
                Some(Check::Clear(_)) | None => {
                    Some(began.plus(timing.lease().max(timing.pause(self.reads_failed))))
                }
            },
            Phase::Claiming { .. }
            | Phase::Taking { .. }
            | Phase::Draining { .. }
            | Phase::Resigning { .. }
            | Phase::Stopping { .. }
            | Phase::Ended(_) => None,
        }
    }

    /// Whether a scan is wanted that shows who else is leaving.
    fn is_look_due(&self) -> bool {
        self.leaving_scan.is_some_and(|scan| self.scan.number() < scan)
    }

    /// What the other slots' voters say.
    pub(super) fn others(&self) -> impl Iterator<Item = &Ballot> {
        let own = self.config.slot;
        let others = Slot::ALL.into_iter().filter(move |slot| *slot != own);
        others.filter_map(|slot| self.scan.sight(slot).ballot())
    }

    fn wrote(&self, ballot: &Ballot) -> bool {
        ballot.incarnation == self.identity.incarnation
    }

    /// A configured voter's slot, the own one included, of which it is not known what it says.
    fn blind_spot(&self) -> Option<Slot> {
        let unknown = |slot: &Slot| {
            self.config.voters.contains(*slot) && !self.scan.sight(*slot).is_certain()
        };
        Slot::ALL.into_iter().find(unknown)
    }

    /// Whether the device has failed to read a configured voter's block.
    fn is_denied(&self) -> bool {
        let configured = Slot::ALL.into_iter().filter(|slot| self.config.voters.contains(*slot));
        let mut sights = configured.map(|slot| self.scan.sight(slot));
        sights.any(|sight| matches!(sight, Sight::Unreadable(_)))
    }

    pub(super) fn on_scan(&mut self, now: Instant) {
        self.take_note();
        if let Some(refusal) = self.refusal() {
            self.refuse(now, refusal);
            return;
        }
        match self.phase {
            Phase::Watching { .. } => self.on_scan_watching(),
            Phase::Following { claim_at } => self.on_scan_following(now, claim_at),
            Phase::Looking { term, scan, lease_end } if self.scan.number() >= scan => {
                self.on_scan_looking(now, term, lease_end);
            }
            Phase::Leading(_) => self.on_scan_leading(now),
            Phase::Joining { .. }
            | Phase::Claiming { .. }
            | Phase::Looking { .. }
            | Phase::Taking { .. }
            | Phase::Draining { .. }
            | Phase::Resigning { .. }
            | Phase::Stopping { .. }
            | Phase::Ended(_) => {}
        }
    }

    /// Remembers the maxima of all blocks, and whether they could be read.
    fn take_note(&mut self) {
        for slot in Slot::ALL {
            if let Some(ballot) = self.scan.sight(slot).ballot() {
                self.highest_round = self.highest_round.max(ballot.highest_round);
                self.confirmed = self.confirmed.max(ballot.confirmed);
            }
        }
        match self.blind_spot() {
            Some(slot) => {
                self.reads_failed = self.reads_failed.saturating_add(1);
                self.trouble = Some(Trouble::Blind(slot));
            }
            None => {
                self.reads_failed = 0;
                if matches!(self.trouble, Some(Trouble::Blind(_))) {
                    self.trouble = None;
                }
            }
        }
    }

    /// Why this voter must not go on, if the last scan shows a reason.
    fn refusal(&self) -> Option<Refusal> {
        let newest = self.others().map(|ballot| ballot.config_gen).max();
        if let Some(config_gen) = newest.filter(|newest| *newest > self.config.config_gen) {
            return Some(Refusal::OutdatedConfig(config_gen));
        }
        let own = self.scan.sight(self.config.slot);
        match self.phase {
            Phase::Watching { since } => {
                let changed = since? != self.scan.unchanged_since(self.config.slot)?;
                // A first write that failed may have reached the disk all the same.
                let ours = own.ballot().is_some_and(|ballot| self.wrote(ballot));
                (changed && !ours).then_some(Refusal::SlotInUse)
            }
            Phase::Joining { .. } | Phase::Stopping { .. } | Phase::Ended(_) => None,
            Phase::Following { .. }
            | Phase::Claiming { .. }
            | Phase::Looking { .. }
            | Phase::Taking { .. }
            | Phase::Leading(_)
            | Phase::Draining { .. }
            | Phase::Resigning { .. } => match own {
                Sight::Valid(ballot) if self.wrote(ballot) => None,
                // The first write became durable while this scan was under way.
                _ if self.scan.began() < self.joined_at => None,
                Sight::Valid(_) | Sight::Blank => Some(Refusal::SlotInUse),
                Sight::Unread | Sight::Invalid(_) | Sight::Unreadable(_) => None,
            },
        }
    }

    /// Whether the own block shows that no other voter can be in the slot, so that there is nothing
    /// to watch for.
    fn is_alone(&self) -> bool {
        let Identity { host, boot, exclusion, .. } = self.identity;
        match (self.scan.sight(self.config.slot), exclusion) {
            (Sight::Valid(last), _) if last.state != State::Stopped => {
                (last.host, last.boot) == (host, boot)
            }
            (Sight::Blank | Sight::Valid(_), Exclusion::Volume) => true,
            (Sight::Blank | Sight::Valid(_), Exclusion::Host) => false,
            (Sight::Unread | Sight::Invalid(_) | Sight::Unreadable(_), _) => false,
        }
    }

    /// The slot is free once its block has not changed for a lease, or nobody else can be in it,
    /// and its last user is proven gone.
    fn on_scan_watching(&mut self) {
        let slot = self.config.slot;
        let since = self.scan.unchanged_since(slot);
        self.phase = Phase::Watching { since };
        let Identity { vouched, exclusion, .. } = self.identity;
        let anyone_is_gone = vouched == Vouched::Anyone || exclusion == Exclusion::Volume;
        if matches!(self.scan.sight(slot), Sight::Invalid(_)) && !anyone_is_gone {
            // Whoever runs in it heals it soon, and the next reading may show that it is sound.
            let patience = self.config.timing.observe();
            if since.is_some_and(|since| since.plus(patience) <= self.scan.began()) {
                self.end(Some(Refusal::Damaged));
            }
            return;
        }
        if !self.is_alone() && !self.scan.is_quiet(slot, &self.config.timing) {
            return;
        }
        match *self.scan.sight(slot) {
            Sight::Blank => {}
            Sight::Valid(last) => {
                let proven = last.state == State::Stopped
                    || last.host == self.identity.host
                    || vouched == Vouched::Gone(last.incarnation)
                    || vouched == Vouched::Anyone;
                if !proven {
                    let Ballot { incarnation, host, .. } = last;
                    self.end(Some(Refusal::Unproven { incarnation, host }));
                    return;
                }
                self.seq = last.seq;
                self.held = last.held;
                if last.vacant {
                    self.vacated = last.held;
                }
            }
            // Whoever it was, it is gone.
            Sight::Invalid(_) => {}
            Sight::Unread | Sight::Unreadable(_) => unreachable!("it was seen not to change"),
        }
        self.phase = Phase::Joining { watched: self.scan.began() };
    }

    /// Whether the lease of an active voter is over, as the last scan shows.
    fn is_over(&self, ballot: &Ballot) -> bool {
        if is_active(Mutant::EvictByOwnClock) {
            return self.scan.began().since(self.joined_at) >= self.config.timing.observe();
        }
        self.scan.is_quiet(ballot.slot, &self.config.timing)
    }

    /// Whether somebody may be leading, or about to.
    fn is_led(&self) -> bool {
        self.others().any(|ballot| ballot.state.is_active() && !self.is_over(ballot))
    }

    /// Another voter that writes, and that more mounts reach than this one.
    fn better_reached(&self) -> Option<Slot> {
        let better = |ballot: &&Ballot| {
            ballot.mounts > self.mounts
                && ballot.state != State::Stopped
                && !self.scan.is_quiet(ballot.slot, &self.config.timing)
        };
        self.others().find(better).map(|ballot| ballot.slot)
    }

    fn on_scan_following(&mut self, now: Instant, claim_at: Option<Instant>) {
        if self.is_led() {
            self.claims_failed = 0;
        }
        if self.is_led() || self.blind_spot().is_some() || self.writes_failed > 0 {
            self.phase = Phase::Following { claim_at: None };
            return;
        }
        match claim_at {
            Some(at) if at <= self.scan.began() => self.claim(now),
            Some(_) => {}
            None => self.plan_claim(now),
        }
    }

    /// When whoever may have joined in the same slot at the same time has written.
    fn confirmed(&self) -> Instant {
        match self.identity.exclusion {
            Exclusion::Host => self.joined_at.plus(ms(self.config.timing.renew_ms)),
            Exclusion::Volume => self.joined_at,
        }
    }

    /// Nobody leads: claims, or says when.
    fn plan_claim(&mut self, now: Instant) {
        let from = self.claim_from.max(self.confirmed());
        let handicap = self.handicap();
        if handicap.is_zero() && from <= self.scan.began() {
            self.claim(now);
        } else {
            self.phase = Phase::Following { claim_at: Some(now.plus(handicap).max(from)) };
        }
    }

    /// Whether another configured voter may be running.
    fn has_company(&self) -> bool {
        Slot::ALL.into_iter().any(|slot| {
            let other = slot != self.config.slot && self.config.voters.contains(slot);
            let gone = match self.scan.sight(slot) {
                Sight::Blank => true,
                Sight::Valid(ballot) => ballot.state == State::Stopped,
                Sight::Unread | Sight::Invalid(_) | Sight::Unreadable(_) => false,
            };
            other && !gone
        })
    }

    /// Whether it is of a configured voter that writes.
    pub(super) fn writes(&self, ballot: &Ballot) -> bool {
        self.config.voters.contains(ballot.slot)
            && ballot.state != State::Stopped
            && !self.scan.is_quiet(ballot.slot, &self.config.timing)
    }

    /// How many other configured voters that write come before this one.
    fn rank(&self) -> u32 {
        let before =
            self.others().filter(|ballot| ballot.slot < self.config.slot && self.writes(ballot));
        before.fold(0, |rank, _| rank + 1)
    }

    /// How long to hold back for others that may be about to claim: they all see at about the same
    /// time that nobody leads, and come one after the other.
    fn handicap(&mut self) -> Duration {
        if !self.has_company() {
            return Duration::ZERO;
        }
        let most = ms(self.config.timing.renew_ms);
        let turn = most * self.rank() / 4;
        let jitter = if turn.is_zero() { turn } else { self.draw(most / 8) };
        let wait = (turn + jitter).min(most);
        match self.better_reached() {
            Some(_) => wait + self.config.timing.observe(),
            None => wait,
        }
    }

    fn claim(&mut self, now: Instant) {
        let round = self.highest_round + 1;
        if round > ROUND_MAX {
            self.refuse(now, Refusal::RoundsExhausted);
            return;
        }
        self.highest_round = round;
        let term = Term::new(round, self.config.slot.number());
        self.phase = Phase::Claiming { term };
    }

    /// The claim is durable, and this scan began afterwards.
    fn on_scan_looking(&mut self, now: Instant, term: Term, lease_end: Instant) {
        let own = self.scan.sight(self.config.slot).ballot();
        let stands = own.is_some_and(|ballot| ballot.seq == self.seq);
        let rivalled = self.others().any(|ballot| ballot.term.round() >= term.round());
        if !stands || rivalled || self.is_led() || self.blind_spot().is_some() {
            self.withdraw(now);
        } else {
            self.floor = self.confirmed;
            self.phase = Phase::Taking { term, lease_end };
        }
    }

    /// Gives up a claim, and comes back after a pause that grows and that nobody shares.
    pub(super) fn withdraw(&mut self, now: Instant) {
        self.claims_failed = self.claims_failed.saturating_add(1);
        let Timing { renew_ms, retry_max_ms, .. } = self.config.timing;
        let range = u64::from(renew_ms) << self.claims_failed.min(31);
        let range = Duration::from_millis(range.min(u64::from(retry_max_ms)));
        self.claim_from = now.plus(self.draw(range));
        self.phase = Phase::Following { claim_at: None };
    }

    fn on_scan_leading(&mut self, now: Instant) {
        let (began, unreadable) = (self.scan.began(), self.is_denied());
        if let Phase::Leading(office) = &mut self.phase
            && !unreadable
        {
            office.read_at = office.read_at.max(began);
        }
        let Phase::Leading(Office { term, check, outnumbered_since, .. }) = self.phase else {
            return;
        };
        let later = |ballot: &&Ballot| {
            ballot.term.round() > term.round() || ballot.held.round() == term.round()
        };
        let by = self.others().find(later).map(|ballot| ballot.term);
        if let Some(by) = by {
            self.depose(now, Loss::LaterClaim(by));
            return;
        }
        let better = self.better_reached();
        let since = better.map(|_| outnumbered_since.unwrap_or(now));
        if let (Some(slot), Some(since)) = (better, since)
            && now.since(since) >= self.config.timing.lease() * 2
        {
            self.depose(now, Loss::Outnumbered(slot));
            return;
        }
        let check = match check {
            Some(Check::Waiting { token, scan, .. }) if self.scan.number() >= scan => {
                Some(if self.blind_spot().is_none() {
                    Check::Clear(token)
                } else {
                    let at = now.plus(self.config.timing.pause(self.reads_failed));
                    Check::Waiting { token, scan, at }
                })
            }
            other => other,
        };
        if let Phase::Leading(office) = &mut self.phase {
            office.outnumbered_since = since;
            office.check = check;
        }
    }

    /// Ends a term, or a claim, whose lease is over.
    pub(super) fn expire(&mut self, now: Instant) {
        match &self.phase {
            Phase::Leading(office) if now >= office.lease_end => {
                self.depose(now, Loss::LeaseOver);
            }
            Phase::Leading(office) if now.since(office.read_at) >= self.config.timing.blind() => {
                self.depose(now, Loss::Blind);
            }
            Phase::Looking { lease_end, .. } | Phase::Taking { lease_end, .. }
                if now >= *lease_end && !is_active(Mutant::ClaimWithoutLease) =>
            {
                self.withdraw(now);
            }
            Phase::Watching { .. }
            | Phase::Joining { .. }
            | Phase::Following { .. }
            | Phase::Claiming { .. }
            | Phase::Looking { .. }
            | Phase::Taking { .. }
            | Phase::Leading(_)
            | Phase::Draining { .. }
            | Phase::Resigning { .. }
            | Phase::Stopping { .. }
            | Phase::Ended(_) => {}
        }
    }

    pub(super) fn depose(&mut self, now: Instant, loss: Loss) {
        let Phase::Leading(Office { term, .. }) = self.phase else {
            return;
        };
        let refusal = match loss {
            Loss::Refused(refusal) => Some(refusal),
            Loss::LeaseOver
            | Loss::LaterClaim(_)
            | Loss::Outnumbered(_)
            | Loss::Outranked(_)
            | Loss::Blind => None,
        };
        self.withdraw(now);
        self.phase = Phase::Draining { term, refusal };
        self.notify(Notice::Deposed(term, loss));
    }

    /// Takes no part any more, once a term that goes on has ended.
    pub(super) fn refuse(&mut self, now: Instant, refusal: Refusal) {
        match &mut self.phase {
            Phase::Leading(_) => self.depose(now, Loss::Refused(refusal)),
            Phase::Draining { refusal: pending, .. } => *pending = Some(refusal),
            Phase::Watching { .. }
            | Phase::Joining { .. }
            | Phase::Following { .. }
            | Phase::Claiming { .. }
            | Phase::Looking { .. }
            | Phase::Taking { .. }
            | Phase::Resigning { .. } => self.let_go(refusal),
            Phase::Stopping { .. } | Phase::Ended(_) => {}
        }
    }

    /// Ends for this reason, and nothing of a term is in flight.
    pub(super) fn let_go(&mut self, refusal: Refusal) {
        if refusal.leaves_the_slot() {
            self.phase = Phase::Stopping { refusal: Some(refusal) };
            self.retry_at = Instant::default();
        } else {
            self.end(Some(refusal));
        }
    }

    /// The attempt to make it durable that it stopped has ended like this.
    pub(super) fn has_let_go(&mut self, refusal: Option<Refusal>, result: BlockResult) {
        match refusal {
            Some(_) => self.end(refusal),
            None => self.stopped(result),
        }
    }

    pub(super) fn end(&mut self, refusal: Option<Refusal>) {
        self.phase = Phase::Ended(refusal);
        if let Some(refusal) = refusal {
            self.notify(Notice::Refused(refusal));
        }
    }

    pub(super) fn stopped(&mut self, result: BlockResult) {
        self.end(None);
        self.notify(Notice::Stopped(result));
    }

    pub(super) fn notify(&mut self, notice: Notice) {
        self.notices.push_back(notice).expect("the owner reads its notices");
    }

    /// A random part of the duration: splitmix64.
    pub(super) fn draw(&mut self, most: Duration) -> Duration {
        self.jitter = self.jitter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.jitter;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(((u128::from(z) * u128::from(most)) >> 64) as u64)
    }
}
