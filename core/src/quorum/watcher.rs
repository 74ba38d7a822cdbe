//! Looking for the leader without taking part: what mounts do, and nodes that are not voters.
//!
//! # Invariants
//!
//! * Only a leader that listens is ever reported, and none while a later term than its own has been
//!   elected: a connection attempt to it would find nobody, or somebody deposed.
//! * Blocks that are invalid or can't be read count as no leader. A watcher decides nothing, so it
//!   need not be careful. What a block says of a term that is over stays true, however old it is.
//! * While it looks it reads the voters' blocks once per interval, however often it is asked. The
//!   interval is short at first and grows up to the usual one, and beyond that while the device
//!   fails. While it rests it reads nothing.
//!
//! What this module deliberately doesn't know: whether the leader it reports is alive. Its block
//! stands as it wrote it last; connecting is the test, and [`Leader::seq`] tells whether it writes.

use super::scan::{Scan, ScanBlocks, Sight};
use super::timing::{CLOSE, Timing, TimingError, ms};
use crate::arena::{Arena, ArenaFull};
use crate::format::Term;
use crate::format::block::Volume;
use crate::format::quorum::{SLOTS, Slot, State};
use outrider_hal::{BlockNo, BlockRequest, Completion, Endpoint, Instant};

/// Readings at the same interval, before it doubles: while a leader hands over, which takes a few
/// transfers, and while it is about to be replaced, which takes a lease, somebody waits.
const READINGS_CLOSE: u32 = 4;
const READINGS: u32 = 8;

/// A leader that accepts connections, as its block says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leader {
    /// Its term.
    pub term: Term,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Number of the write that said so. It grows while the leader lives.
    pub seq: u64,
}

/// Looks for the leader.
pub struct Watcher<'m> {
    timing: Timing,
    scan: Scan<'m>,
    looking: bool,
    /// Readings since it began to look.
    readings: u32,
    failures: u32,
    leader: Option<Leader>,
}

/// The memory of a [`Watcher`]: a block for each slot.
pub struct WatcherBlocks<'m>(ScanBlocks<'m>);

impl<'m> WatcherBlocks<'m> {
    /// Carves it.
    pub fn carve(arena: &mut Arena<'m>) -> Result<WatcherBlocks<'m>, ArenaFull> {
        Ok(WatcherBlocks(ScanBlocks::carve(arena)?))
    }
}

impl<'m> Watcher<'m> {
    /// How many tags from the first one given are its own.
    pub const TAGS: u64 = SLOTS as u64;

    /// A watcher of the quorum area that starts at `base`, looking at once.
    pub fn new(
        volume: Volume,
        base: BlockNo,
        timing: Timing,
        tag_base: u64,
        blocks: WatcherBlocks<'m>,
    ) -> Result<Watcher<'m>, TimingError> {
        timing.validate()?;
        let scan = Scan::new(volume, base, tag_base, blocks.0);
        Ok(Watcher { timing, scan, looking: true, readings: 0, failures: 0, leader: None })
    }

    /// Looks for a leader from now on.
    pub fn look(&mut self) {
        if !self.looking {
            self.readings = 0;
        }
        self.looking = true;
    }

    /// Stops reading: a leader was found, and is enough until it is lost.
    pub fn rest(&mut self) {
        self.looking = false;
    }

    /// Whether it reads.
    #[must_use]
    pub fn is_looking(&self) -> bool {
        self.looking
    }

    /// The newest leader that listens, as of the last time all blocks were read. May change with
    /// each completion.
    #[must_use]
    pub fn leader(&self) -> Option<Leader> {
        self.leader
    }

    /// What was last seen of a slot.
    #[must_use]
    pub fn sight(&self, slot: Slot) -> &Sight {
        self.scan.sight(slot)
    }

    /// Whether a leader of this term or a later one is seen to have left no client recorded.
    /// Whoever was welcomed in this term or before, and greets nobody anew, is gone from the
    /// records for good, whoever leads now or is about to: `PROOFS.md`, case 40a.
    #[must_use]
    pub fn is_vacated(&self, since: Term) -> bool {
        let mut ballots = Slot::ALL.iter().filter_map(|slot| self.scan.sight(*slot).ballot());
        ballots.any(|ballot| ballot.vacant && ballot.held >= since)
    }

    /// Takes the completion of one of its requests.
    pub fn handle_completion(&mut self, now: Instant, done: Completion<'m>) {
        if !self.scan.handle_completion(now, done) {
            return;
        }
        let failed = |slot: &Slot| matches!(self.scan.sight(*slot), Sight::Unreadable(_));
        let failing = Slot::ALL.iter().all(failed);
        self.failures = if failing { self.failures.saturating_add(1) } else { 0 };
        self.leader = self.newest();
    }

    /// The next request to submit: at most [`SLOTS`] reads each interval.
    pub fn poll_request(&mut self, now: Instant) -> Option<BlockRequest<'m>> {
        if self.scan.is_idle() && self.poll_timeout().is_some_and(|due| due <= now) {
            self.scan.begin(now);
            self.readings = self.readings.saturating_add(1);
        }
        self.scan.poll_request()
    }

    /// When [`poll_request`](Self::poll_request) will have something again.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.looking || !self.scan.is_idle() {
            return None;
        }
        if self.scan.number() == 0 {
            return Some(Instant::default());
        }
        let interval = match self.readings.checked_sub(READINGS_CLOSE * CLOSE) {
            None => self.timing.close(self.readings / READINGS_CLOSE),
            Some(readings) => self.timing.pause(1 + readings / READINGS),
        };
        let interval = interval.min(ms(self.timing.scan_ms));
        let interval = interval.max(self.timing.pause(self.failures));
        Some(self.scan.began().plus(interval))
    }

    fn newest(&self) -> Option<Leader> {
        let ballots = Slot::ALL.iter().filter_map(|slot| self.scan.sight(*slot).ballot());
        let newest = ballots.max_by_key(|ballot| ballot.held)?;
        match newest.state {
            State::Listening => {
                Some(Leader { term: newest.held, endpoint: newest.endpoint?, seq: newest.seq })
            }
            // A claim on top of an office ends the office.
            State::Idle | State::Claiming | State::Elected | State::Resigned | State::Stopped => {
                None
            }
        }
    }
}
