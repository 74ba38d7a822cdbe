//! One read of the log-structured tree, through waits, failing devices and roots that have become
//! old.
//!
//! ```text
//!            begin           the cache stops it, and wakes it
//!   Idle -----------> Ready <--------------------------------> Asleep
//!    ^                | ^ |
//!    |                | | +---> Done(Ok), Done(Err) ----> Idle
//!    |                v | renew                  reset
//!    |              Parked: Due --> Asked --> Confirmed
//!    |                |          its root     and that is the
//!    +----------------+          is asked for newest there is
//!          reset
//! ```
//!
//! # Invariants
//!
//! * A job that isn't `Ready` or `Asleep` has nothing of the block cache.
//! * A failed transfer is tried again a few times. What may come from an old root never ends a job:
//!   it is renewed with a newer root, or with the same after a server has confirmed that *after the
//!   failure*. Only if the very same block then fails the very same check is it broken.
//!
//! What this module deliberately doesn't know: the item cache, and who asks for roots.

use crate::arena::{Arena, ArenaFull};
use crate::block::{self, Cache, Pins, RequestId};
use crate::error::{Error, Stop, Wait};
use crate::format::CommitNo;
use crate::format::key::KeyBytes;
use crate::lsm::KeyRange;
use crate::lsm::manifest::Manifest;
use crate::lsm::read::{Fill, Reach, is_stale};
use crate::lsm::window::{Window, WindowLimits};
use crate::node::More;

/// How often a transfer may fail before the job does.
const TRIES: u32 = 4;

/// A durable root.
#[derive(Debug, Clone, Copy)]
pub(super) struct Root {
    pub(super) commit: CommitNo,
    pub(super) manifest: Manifest,
}

/// What a job reads.
#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    /// Around a key.
    Around(KeyBytes, KeyRange, Reach),
    /// The first item of a range.
    First(KeyRange),
}

/// What has been done about a root that doesn't lead where it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// Nothing.
    Due,
    /// A server was asked for its root.
    Asked,
    /// It has answered that this is the newest.
    Confirmed,
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Idle,
    Ready,
    Asleep,
    Parked(Error, Question),
    Done(Result<(), Error>),
}

/// See the module.
pub(super) struct Job<'m> {
    pub(super) id: RequestId,
    pub(super) state: State,
    fill: Fill<'m>,
    pins: Pins<'m>,
    what: What,
    /// Which root it reads.
    pub(super) root: CommitNo,
    /// A failure that no older root explains.
    sure: Option<(CommitNo, Error)>,
    tries: u32,
}

impl<'m> Job<'m> {
    /// Carves the job that is this request to the cache.
    pub(super) fn carve(
        arena: &mut Arena<'m>,
        index: u32,
        cache: &block::Limits,
        window: &WindowLimits,
        filter_key: &[u8; 16],
    ) -> Result<Job<'m>, ArenaFull> {
        Ok(Job {
            id: RequestId { index, generation: 0 },
            state: State::Idle,
            fill: Fill::carve(arena, window, filter_key)?,
            pins: Pins::carve(arena, cache)?,
            what: What::First(KeyRange::all()),
            root: CommitNo(0),
            sure: None,
            tries: 0,
        })
    }

    /// Begins to read under this root.
    pub(super) fn begin(&mut self, what: What, root: &Root) {
        assert!(self.state == State::Idle);
        self.id.generation = self.id.generation.wrapping_add(1);
        self.pins.begin(self.id);
        (self.what, self.sure, self.tries) = (what, None, 0);
        self.renew(root);
    }

    /// Begins anew, under this root.
    pub(super) fn renew(&mut self, root: &Root) {
        match &self.what {
            What::Around(key, range, reach) => {
                self.fill.begin(&root.manifest, key, range, *reach);
            }
            What::First(range) => self.fill.begin_search(&root.manifest, range),
        }
        (self.root, self.state) = (root.commit, State::Ready);
    }

    /// Ends, wherever it is.
    pub(super) fn reset(&mut self, cache: &mut Cache<'m>) {
        if self.state != State::Idle {
            cache.release(&mut self.pins);
            self.state = State::Idle;
        }
    }

    /// What was found, and meanwhile how far that reaches.
    pub(super) fn window(&self) -> &Window<'m> {
        self.fill.window()
    }

    /// The first item of a search that is done.
    pub(super) fn first(&self) -> Option<&KeyBytes> {
        self.fill.first().map(|(key, _)| key)
    }

    /// Whether it can go on now.
    pub(super) fn is_runnable(&self, newest: Option<&Root>) -> bool {
        match self.state {
            State::Ready => true,
            State::Parked(_, Question::Confirmed) => true,
            State::Parked(_, Question::Due | Question::Asked) => self.is_old(newest),
            State::Idle | State::Asleep | State::Done(_) => false,
        }
    }

    /// Whether there is a newer root than the one it reads.
    fn is_old(&self, newest: Option<&Root>) -> bool {
        newest.is_some_and(|newest| newest.commit > self.root)
    }

    /// Whether it can't go on unless a server is asked for its root.
    pub(super) fn is_question_due(&self, newest: Option<&Root>) -> bool {
        matches!(self.state, State::Parked(_, Question::Due)) && !self.is_old(newest)
    }

    /// A server is being asked for its root.
    pub(super) fn on_asked(&mut self) {
        if let State::Parked(_, question @ Question::Due) = &mut self.state {
            *question = Question::Asked;
        }
    }

    /// A server was asked for its root and has answered, if that makes sense, with this one.
    pub(super) fn on_answer(&mut self, commit: Option<CommitNo>) {
        if let State::Parked(error, question @ Question::Asked) = &mut self.state {
            if commit == Some(self.root) {
                self.sure = Some((self.root, *error));
                *question = Question::Confirmed;
            } else {
                *question = Question::Due;
            }
        }
    }

    /// Goes on reading, `budget` runs or leaves of the manifest at the most. Says what failed, if
    /// something did.
    pub(super) fn step(
        &mut self,
        budget: u32,
        cache: &mut Cache<'m>,
        newest: &Root,
    ) -> Option<Error> {
        match self.fill.step(budget, cache, &mut self.pins) {
            Ok(More::Yes) | Err(Stop::Wait(Wait::Again)) => None,
            Ok(More::No) => {
                cache.release(&mut self.pins);
                self.state = State::Done(Ok(()));
                None
            }
            Err(Stop::Wait(Wait::Block(_) | Wait::Frame)) => {
                self.state = State::Asleep;
                None
            }
            Err(Stop::Wait(Wait::Commit)) => unreachable!("nothing is changed"),
            Err(Stop::Fail(error)) => {
                cache.release(&mut self.pins);
                self.state = self.judge(error, self.is_old(Some(newest)));
                Some(error)
            }
        }
    }

    /// What becomes of a job that has met this, under a root that may be known to be old.
    fn judge(&mut self, error: Error, is_old: bool) -> State {
        match error {
            Error::Io { .. } => {
                self.tries += 1;
                if self.tries < TRIES { State::Ready } else { State::Done(Err(error)) }
            }
            Error::Corrupt { .. } => {
                let open = is_stale(&error) && self.sure != Some((self.root, error));
                if open || is_old {
                    State::Parked(error, Question::Due)
                } else {
                    State::Done(Err(error))
                }
            }
            Error::NoSpace | Error::Exists | Error::NotFound => State::Done(Err(error)),
        }
    }

    /// Gives up what lies outside what has been read so far: the range from now on.
    pub(super) fn narrow(&mut self) -> KeyRange {
        let narrowed = *self.fill.window().range();
        if let What::Around(_, range, _) = &mut self.what {
            *range = narrowed;
        }
        narrowed
    }
}
