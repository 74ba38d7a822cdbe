//! Inodes without names that this mount doesn't use any more, or found lying about: asks whether
//! anybody does, and hands over those that nobody uses, to be deleted.
//!
//! ```text
//!   add --> Waiting --ask--> Asked ----> somebody uses it: forgotten, that mount asks later
//!              ^               |  |
//!              +---- busy -----+  +----> Unused --next_unused--> gone
//! ```
//!
//! # Invariants
//!
//! * One question at a time, which names those that waited, oldest first. The first of them waits a
//!   moment for others, so that removing many files asks little of the server.
//! * Uses of an inode without a name only ever end, so one answer per inode is enough.
//!
//! What this module deliberately doesn't know: messages, and what deleting is.

use super::work::Found;
use super::{Life, Mount, range_bytes};
use crate::client::items::Range;
use crate::format::Ino;
use crate::format::key::{ItemKey, Key, KeyBytes};
use core::time::Duration;
use heapless::Vec;
use outrider_hal::Instant;
use zerocopy::FromBytes;

/// Most inodes that one question names.
pub(super) const ASKED_MAX: usize = 64;
/// How long the first waits for others.
const GATHER: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Asked,
    Unused,
}

/// The inodes.
#[derive(Default)]
pub(super) struct Orphans {
    all: Vec<(Ino, Stage), ASKED_MAX>,
    ask_at: Instant,
    /// A question that could name more is not asked before this time.
    gather_until: Instant,
}

impl Orphans {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.all.is_full()
    }

    /// Adds one, if it isn't there, and there is room.
    pub(super) fn add(&mut self, now: Instant, ino: Ino) {
        if self.of(Stage::Waiting).next().is_none() {
            self.gather_until = now.plus(GATHER);
        }
        if self.all.iter().all(|(known, _)| *known != ino) {
            let _ = self.all.push((ino, Stage::Waiting));
        }
    }

    /// What is to be asked now.
    pub(super) fn question(&self, now: Instant) -> Vec<Ino, ASKED_MAX> {
        if now < self.due_at() || self.is_asking() {
            return Vec::new();
        }
        self.of(Stage::Waiting).collect()
    }

    fn due_at(&self) -> Instant {
        if self.is_full() { self.ask_at } else { self.ask_at.max(self.gather_until) }
    }

    fn is_asking(&self) -> bool {
        self.of(Stage::Asked).next().is_some()
    }

    fn of(&self, stage: Stage) -> impl Iterator<Item = Ino> + '_ {
        self.all.iter().filter(move |(_, at)| *at == stage).map(|(ino, _)| *ino)
    }

    fn turn(&mut self, from: Stage, to: Stage) {
        for (_, stage) in self.all.iter_mut().filter(|(_, stage)| *stage == from) {
            *stage = to;
        }
    }

    /// The question was sent.
    pub(super) fn asked(&mut self) {
        self.turn(Stage::Waiting, Stage::Asked);
    }

    /// The answer: which of those asked, by their place in the question, nobody uses.
    pub(super) fn answered(&mut self, unused: impl Fn(usize) -> bool) {
        let mut at = 0;
        self.all.retain_mut(|(_, stage)| match stage {
            Stage::Waiting | Stage::Unused => true,
            Stage::Asked => {
                let keep = unused(at);
                at += 1;
                *stage = Stage::Unused;
                keep
            }
        });
    }

    /// The question was not answered: it can be asked again.
    pub(super) fn unanswered(&mut self) {
        self.turn(Stage::Asked, Stage::Waiting);
    }

    /// Nothing is asked before this time.
    pub(super) fn ask_later(&mut self, at: Instant) {
        self.ask_at = self.ask_at.max(at);
    }

    /// Leaves those that wait to whoever finds them lying about.
    pub(super) fn abandon(&mut self) {
        self.all.clear();
    }

    /// When there will be something to ask.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let waits = self.of(Stage::Waiting).next().is_some() && !self.is_asking();
        waits.then_some(self.due_at())
    }

    /// The next that nobody uses.
    pub(super) fn next_unused(&mut self) -> Option<Ino> {
        let at = self.all.iter().position(|(_, stage)| *stage == Stage::Unused)?;
        Some(self.all.remove(at).0)
    }
}

/// The search for what crashes have left: one inode at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scan {
    /// When it goes on.
    pub(super) at: Instant,
    /// The first inode not looked for yet in this round.
    from: Ino,
    searching: bool,
}

impl Scan {
    pub(super) const NEW: Scan = Scan { at: Instant(0), from: Ino(0), searching: false };
}

impl Mount<'_> {
    /// Gathers what is to be deleted, and begins to delete what nobody uses.
    pub(super) fn step_orphans(&mut self, now: Instant) {
        if !self.works() {
            return;
        }
        while !self.orphans.is_full()
            && let Some(ino) = self.fs.poll_orphan()
        {
            self.orphans.add(now, ino);
        }
        while self.slots.has_room_for_deletion()
            && let Some(ino) = self.orphans.next_unused()
        {
            self.slots.begin_deletion(ino);
        }
        let scans = self.life == Life::Mounted && !self.scan.searching && !self.orphans.is_full();
        if scans && self.scan.at <= now {
            let bytes = |ino| range_bytes(&Key::orphan(ino));
            let range = Range { first: bytes(self.scan.from), last: bytes(Ino(u64::MAX)) };
            match self.reader.search(range) {
                Ok(()) => self.scan.searching = true,
                Err(_) => self.scan.at = now.plus(self.config.timing.retry),
            }
        }
    }

    /// When the search goes on.
    pub(super) fn scan_timeout(&self) -> Option<Instant> {
        let scans = self.life == Life::Mounted && !self.scan.searching && !self.orphans.is_full();
        scans.then_some(self.scan.at)
    }

    /// The search has found one, or is over.
    pub(super) fn on_searched(&mut self, now: Instant, found: Found) {
        self.scan.searching = false;
        let key = found.ok().flatten();
        let key = key.and_then(|key| KeyBytes::read_from_bytes(&key).ok().map(Key::from));
        match key.map(|key| ItemKey::parse(&key)) {
            Some(Ok(ItemKey::Orphan(ino))) => {
                self.fs.sight(ino);
                if !self.fs.uses(ino) && self.slots.deleting().all(|at| at != ino) {
                    self.orphans.add(now, ino);
                }
                self.scan.from = Ino(ino.0.saturating_add(1));
            }
            Some(_) | None => {
                self.scan.from = Ino(0);
                self.scan.at = now.plus(self.config.timing.orphan_scan);
            }
        }
    }
}
