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
//! * One question at a time, which names those that waited, oldest first.
//! * Uses of an inode without a name only ever end, so one answer per inode is enough.
//!
//! What this module deliberately doesn't know: messages, and what deleting is.

use crate::format::Ino;
use heapless::Vec;
use outrider_hal::Instant;

/// Most inodes that one question names.
pub(super) const ASKED_MAX: usize = 64;

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
}

impl Orphans {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.all.is_full()
    }

    /// Adds one, if it isn't there, and there is room.
    pub(super) fn add(&mut self, ino: Ino) {
        if self.all.iter().all(|(known, _)| *known != ino) {
            let _ = self.all.push((ino, Stage::Waiting));
        }
    }

    /// What is to be asked now.
    pub(super) fn question(&self, now: Instant) -> Vec<Ino, ASKED_MAX> {
        if now < self.ask_at || self.is_asking() {
            return Vec::new();
        }
        self.of(Stage::Waiting).collect()
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
        waits.then_some(self.ask_at)
    }

    /// The next that nobody uses.
    pub(super) fn next_unused(&mut self) -> Option<Ino> {
        let at = self.all.iter().position(|(_, stage)| *stage == Stage::Unused)?;
        Some(self.all.remove(at).0)
    }
}
