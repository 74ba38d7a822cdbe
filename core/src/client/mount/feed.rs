//! Feeds of changes: which inodes changed since when, as far as that can't become untrue.
//!
//! # How a page of a feed is made
//!
//! Servers tell up to which number a feed is *stable*: nothing that is still to become durable
//! bears that number, or an earlier one. They tell it together with a root that has all that does.
//! So a page of what is stable is read from the newest root, beside the item cache and without
//! locks: a lock could only show what isn't stable, and to get it all others would have to commit.
//! The page is one window of one read, which takes its turn with fills.
//!
//! The server is asked for its root first, once for each page, after the page was asked for. So a
//! page is never older than one that ended before on another mount: what has left a feed, because
//! its inode changed again, doesn't come back.
//!
//! # How feeds get on
//!
//! What is stable ends before the first number that any mount may still use. So a mount that
//! changes nothing must let its number pass: while the manifest changes, it sends a transaction of
//! nothing, first after [`MountTiming::pass`](super::MountTiming). As long as the manifest is
//! another in each answer, the pause doubles, [`DOUBLINGS_MAX`] times: a mount that looks on is not
//! to cost a server as much as one that works, and nobody waits for a number to be stable but
//! readers of feeds, who are behind by two pauses at the most.
//!
//! A mount is at rest when the manifest was the same in [`CALM`] answers in a row. The number that
//! the second of them opened is above all that any change bears in that manifest, and the third has
//! closed it. A transaction of nothing changes no manifest, so all mounts come to rest together.
//!
//! # Invariants
//!
//! * The range that is read ends with a number that was stable before the read began.
//! * At most one read at a time. Who waits for it has asked first.
//!
//! What this module deliberately doesn't know: how numbers become stable.

use super::slots::{Park, Stage};
use super::{Life, Mount, range_bytes};
use crate::client::items::Range;
use crate::client::op::query::{Feed, PageWriter, Position, Query};
use crate::client::op::{Op, OpError, Reply};
use crate::error::Error;
use crate::format::key::{Key, KeyBytes};
use crate::format::wire::message::ManifestRoot;
use crate::format::{BlockNo, CommitNo, Ino, Seq};
use outrider_hal::Instant;

/// Answers with the same manifest after which nothing has to pass.
const CALM: u8 = 3;
/// How often the pause between two transactions of nothing doubles.
const DOUBLINGS_MAX: u8 = 2;

/// What is known of changes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Changes {
    /// Questions for a root so far, and which of them was answered last.
    questions: u64,
    answered: u64,
    /// Changes up to this number are all in the newest root.
    stable: Seq,
    /// The request that the reader is at work for, and where its page ends at the latest.
    reading: Option<(usize, Reading)>,
    /// The newest root, and its manifest.
    root: CommitNo,
    manifest: (BlockNo, u64),
    /// Answers that told of this manifest, one after the other.
    calm: u8,
    /// When the last transaction began, and whether it was one of nothing.
    last: Instant,
    was_empty: bool,
    /// How often the pause has doubled.
    doublings: u8,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    stable: Seq,
    last: Position,
}

impl Changes {
    /// Takes note of what is stable, under a root that is known.
    pub(super) fn learn(&mut self, stable: Seq) {
        // Who was told it first says nothing: it stays true.
        self.stable = self.stable.max(stable);
    }

    /// What is stable.
    pub(super) fn stable(&self) -> Seq {
        self.stable
    }

    /// A server is asked for its root.
    pub(super) fn asked(&mut self) {
        self.questions += 1;
    }

    /// It has answered; the root is noted.
    pub(super) fn answered(&mut self) {
        self.answered = self.questions;
    }

    /// Takes note of a root.
    pub(super) fn note_root(&mut self, root: &ManifestRoot) {
        if root.commit < self.root {
            return;
        }
        self.root = root.commit;
        let manifest = (root.blkno, root.seq);
        if manifest != self.manifest {
            (self.manifest, self.calm) = (manifest, 0);
        }
    }

    /// A transaction begins, of nothing or not.
    pub(super) fn passes(&mut self, now: Instant, is_empty: bool) {
        (self.last, self.was_empty) = (now, is_empty);
    }

    /// A transaction was answered, with this root, which is noted.
    pub(super) fn passed(&mut self, root: &ManifestRoot) {
        if (root.blkno, root.seq) == self.manifest {
            self.calm = self.calm.saturating_add(1);
        }
        self.doublings = match self.was_empty && self.calm <= 1 {
            true => (self.doublings + 1).min(DOUBLINGS_MAX),
            false => 0,
        };
    }
}

impl Mount<'_> {
    /// When a transaction of nothing is due, if nothing has changed here until then.
    pub(super) fn pass_time(&self) -> Option<Instant> {
        let waits = self.life == Life::Mounted && self.feed.calm < CALM;
        let pause = self.config.timing.pass.saturating_mul(1 << self.feed.doublings);
        (waits && self.items.usage().dirty_items == 0).then(|| self.feed.last.plus(pause))
    }

    /// Begins a walk: it waits for a root.
    pub(super) fn run_walk(&mut self, at: usize) {
        let question = self.feed.questions + 1;
        let request = &mut self.slots.body(at).request;
        let room = request.lent.as_mut().map(|lent| PageWriter::new(lent.buf).is_some());
        match (request.caller.uid, room) {
            (0, Some(true)) => self.slots.stand(at, Stage::Parked(Park::Feed { question })),
            (0, Some(false)) => self.finish(at, Err(OpError::Range)),
            (0, None) => self.finish(at, Err(OpError::Invalid)),
            (1.., _) => self.finish(at, Err(OpError::NotPermitted)),
        }
    }

    /// Whether a walk waits for a root that nobody has asked for yet.
    pub(super) fn wants_feed(&self) -> bool {
        let asked = self.feed.questions;
        self.slots.waits(|park| matches!(park, Park::Feed { question } if *question > asked))
    }

    /// Has the reader look for the next page that is waited for.
    pub(super) fn step_feed(&mut self) {
        let Changes { answered, stable, .. } = self.feed;
        while let Some(at) = self.slots.oldest(|stage| {
            matches!(stage, Stage::Parked(Park::Feed { question }) if *question <= answered)
        }) {
            let request = &mut self.slots.body(at).request;
            let (Op::Query(Query::Walk { feed, first, last }), Some(lent)) =
                (&request.op, &mut request.lent)
            else {
                return;
            };
            let (feed, first, last) = (*feed, *first, (*last).min(end(stable)));
            if first > last {
                let writer = PageWriter::new(lent.buf).expect("it was there before");
                lent.len = writer.finish(stable, last, true);
                self.finish(at, Ok(Reply::Bytes));
                continue;
            }
            let (from, to) = (range_bytes(&key(feed, first)), range_bytes(&key(feed, last)));
            if self.reader.scan(Range { first: from, last: to }).is_err() {
                return;
            }
            self.feed.reading = Some((at, Reading { stable, last }));
            self.slots.stand(at, Stage::Parked(Park::Reading));
        }
    }

    /// The reader has read a part of a feed, or can't.
    pub(super) fn on_scanned(&mut self, result: Result<(), Error>) {
        let reading = self.feed.reading.take();
        let waits = |at: &usize| self.slots.stage(*at) == Stage::Parked(Park::Reading);
        if let Some((at, reading)) = reading.filter(|(at, _)| waits(at)) {
            match result {
                Ok(()) => self.show(at, &reading),
                Err(_) => self.finish(at, Err(OpError::Io)),
            }
        }
        self.reader.end_scan();
        self.step_feed();
    }

    /// Puts what was read into a page.
    fn show(&mut self, at: usize, reading: &Reading) {
        let request = &mut self.slots.body(at).request;
        let (Op::Query(Query::Walk { first, .. }), Some(lent)) =
            (&mut request.op, &mut request.lent)
        else {
            return;
        };
        let (Some(found), Some(mut writer)) = (self.reader.scanned(), PageWriter::new(lent.buf))
        else {
            return;
        };
        let mut through = position(found.last());
        for key in found.keys() {
            let at = position(key);
            if !writer.push(at) {
                break;
            }
            through = if writer.is_full() { at } else { through };
        }
        let is_end = through >= reading.last;
        if let (true, false, Some(next)) = (writer.is_empty(), is_end, through.next()) {
            *first = next;
            let known = Park::Feed { question: self.feed.answered };
            return self.slots.stand(at, Stage::Parked(known));
        }
        lent.len = writer.finish(reading.stable, through, is_end);
        self.finish(at, Ok(Reply::Bytes));
    }
}

/// The last position with this number.
fn end(seq: Seq) -> Position {
    Position { seq, ..Position::LAST }
}

fn key(feed: Feed, at: Position) -> Key {
    match feed {
        Feed::Meta => Key::meta_seq(at.seq, at.ino),
        Feed::Data => Key::data_seq(at.seq, at.ino),
    }
}

/// Where a key stands that is between two of a feed. It may be no entry's: what is told of keys up
/// to it is told of its position, too.
fn position(key: &KeyBytes) -> Position {
    let Key { second, third, .. } = Key::from(*key);
    Position { seq: Seq(second), ino: Ino(third) }
}
