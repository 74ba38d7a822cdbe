//! The operations at work: requests of the platform, and deletions of what nobody uses any more.
//!
//! ```text
//!            begin             run: waits             woken
//!    Free ---------> Ready <--------------> Parked ---------> Ready
//!     ^                |
//!     |                | run: over, or the platform's turn
//!     |                v                                 resumed
//!     +----- Said (an answer to be taken) ---> Away -------------------> Ready
//!             over                        moving data, asking
//! ```
//!
//! # Invariants
//!
//! * The oldest that can run runs first, so each gets its turn, and those that wait for one thing
//!   get it in the order in which they came.
//! * What tells slots apart is kept beside them, so that looking for one touches few bytes.
//!
//! What this module deliberately doesn't know: what an operation does.

use crate::arena::{Arena, ArenaFull};
use crate::client::fs::Task;
use crate::client::items::{Key, Range};
use crate::client::op::{self, Caller, Extent, Op, OpError, Reply, Request, Transfer};
use crate::format::Ino;
use crate::format::item::Time;
use outrider_hal::Instant;

/// What a parked operation waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Park {
    /// A fill; and whether the reader has taken it.
    Fill { at: Key, range: Range, asked: bool },
    /// A durable commit.
    Commit,
    /// The end of the copying for a commit.
    Snapshot,
    /// A lock.
    Lock,
    /// The end of another operation.
    Busy,
    /// Numbers for inodes.
    Inos,
    /// Blocks for file data.
    Blocks,
    /// Newer numbers of the volume.
    Statfs,
    /// Bytes being set to zero on the device.
    Zeroing,
    /// The answer to this question for a root, and then part of a feed of changes.
    Feed { question: u64 },
    /// That part, which the reader is at.
    Reading,
    /// This time: then it is tried again.
    Until(Instant),
}

/// Where a slot is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Free,
    Ready,
    Parked(Park),
    /// There is something to say to the platform: [`Body::say`].
    Said,
    /// The platform moves data.
    Moving,
    /// The platform looks up a group.
    Asking,
}

/// What is to be said to the platform.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is no heap, and transfers are the usual case")]
pub(super) enum Say {
    Done(Result<Reply, OpError>),
    Transfer(Transfer),
    AskMember(u32),
}

/// Whether somebody still waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// Nobody has said otherwise.
    None,
    /// A signal has come: it goes on until this time.
    Due(Instant),
    /// That time has come: it ends where it can.
    Over,
}

#[derive(Debug, Clone, Copy)]
struct State {
    stage: Stage,
    /// Which of all operations it is.
    age: u64,
    id: op::RequestId,
}

/// An operation.
pub(super) struct Body<'m> {
    pub(super) request: Request<&'m mut [u8]>,
    pub(super) task: Task,
    pub(super) say: Option<Say>,
    pub(super) signal: Signal,
    /// It was ended for a signal.
    pub(super) cut: bool,
    /// What is deleted, if it is a deletion.
    pub(super) deletes: Option<Ino>,
    /// What is to be set to zero on the device for it.
    pub(super) zero: Option<Extent>,
    /// How often something it needs could not be read.
    pub(super) failures: u8,
    /// Flushes that had failed when it began.
    pub(super) write_errors: u64,
}

impl Body<'_> {
    fn idle() -> Self {
        let (caller, now) = (Caller::new(0, 0, 0), Time::default());
        let request = Request { caller, now, op: Op::Statfs, lent: None };
        Body {
            request,
            task: Task::answer(),
            say: None,
            signal: Signal::None,
            cut: false,
            deletes: None,
            zero: None,
            failures: 0,
            write_errors: 0,
        }
    }
}

/// The slots.
pub(super) struct Slots<'m> {
    states: &'m mut [State],
    bodies: &'m mut [Body<'m>],
    /// How many of them are for requests; those behind are for deletions.
    requests: usize,
    ages: u64,
    /// Slots that are not free.
    used: usize,
}

impl<'m> Slots<'m> {
    pub(super) fn carve(
        arena: &mut Arena<'m>,
        requests: u32,
        deletions: u32,
    ) -> Result<Slots<'m>, ArenaFull> {
        let count = requests + deletions;
        let free = State { stage: Stage::Free, age: 0, id: op::RequestId(0) };
        Ok(Slots {
            states: arena.slice(count, |_| free)?,
            bodies: arena.slice(count, |_| Body::idle())?,
            requests: requests as usize,
            ages: 0,
            used: 0,
        })
    }

    /// How many are at work.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        self.states.len() as u32
    }

    /// Takes a request, if there is a free slot.
    #[expect(clippy::result_large_err, reason = "there is no heap, and its owner gets it back")]
    pub(super) fn begin(
        &mut self,
        id: op::RequestId,
        request: Request<&'m mut [u8]>,
    ) -> Result<usize, Request<&'m mut [u8]>> {
        let free = self.states[..self.requests].iter().position(|at| at.stage == Stage::Free);
        let Some(at) = free else { return Err(request) };
        self.enter(at, id);
        self.bodies[at].request = request;
        Ok(at)
    }

    /// Begins a deletion; says whether there was a free slot.
    pub(super) fn begin_deletion(&mut self, ino: Ino) -> bool {
        let mut states = self.states.iter().enumerate().skip(self.requests);
        let Some((at, _)) = states.find(|(_, state)| state.stage == Stage::Free) else {
            return false;
        };
        self.enter(at, op::RequestId(0));
        self.bodies[at].task = Task::delete(ino);
        self.bodies[at].deletes = Some(ino);
        true
    }

    /// Whether a deletion could begin.
    pub(super) fn has_room_for_deletion(&self) -> bool {
        self.states.iter().skip(self.requests).any(|state| state.stage == Stage::Free)
    }

    /// Inodes that are being deleted.
    pub(super) fn deleting(&self) -> impl Iterator<Item = Ino> + '_ {
        self.bodies[self.requests.min(self.bodies.len())..].iter().filter_map(|body| body.deletes)
    }

    fn enter(&mut self, at: usize, id: op::RequestId) {
        self.ages += 1;
        self.used += 1;
        self.states[at] = State { stage: Stage::Ready, age: self.ages, id };
        self.bodies[at] = Body::idle();
    }

    /// Frees a slot; what it held is given back.
    pub(super) fn end(&mut self, at: usize) -> Body<'m> {
        self.used -= 1;
        self.states[at].stage = Stage::Free;
        core::mem::replace(&mut self.bodies[at], Body::idle())
    }

    pub(super) fn body(&mut self, at: usize) -> &mut Body<'m> {
        &mut self.bodies[at]
    }

    pub(super) fn stage(&self, at: usize) -> Stage {
        self.states[at].stage
    }

    pub(super) fn stand(&mut self, at: usize, stage: Stage) {
        self.states[at].stage = stage;
    }

    pub(super) fn id(&self, at: usize) -> op::RequestId {
        self.states[at].id
    }

    /// Those that are not free. The first free slot is the one that is taken, so these stand close
    /// together.
    fn at_work(&self) -> impl Iterator<Item = (usize, &State)> {
        let states = self.states.iter().enumerate();
        states.filter(|(_, at)| at.stage != Stage::Free).take(self.used)
    }

    /// The slot of a request at work.
    pub(super) fn find(&self, id: op::RequestId) -> Option<usize> {
        let states = self.states[..self.requests].iter();
        states.enumerate().find(|(_, at)| at.stage != Stage::Free && at.id == id).map(|(at, _)| at)
    }

    /// The oldest of those whose stage is of this sort.
    pub(super) fn oldest(&self, sort: impl Fn(&Stage) -> bool) -> Option<usize> {
        let of_sort = self.at_work().filter(|(_, at)| sort(&at.stage));
        of_sort.min_by_key(|(_, at)| at.age).map(|(at, _)| at)
    }

    /// The oldest that was ended for a signal, and has not said so.
    pub(super) fn oldest_cut(&self) -> Option<usize> {
        let cut =
            self.at_work().filter(|(at, state)| state.stage == Stage::Said && self.bodies[*at].cut);
        cut.min_by_key(|(_, at)| at.age).map(|(at, _)| at)
    }

    /// Looks which of those that a signal has met should have ended by now. One of them that can
    /// end: neither the platform nor the device has a part in it at the moment.
    pub(super) fn overdue(
        &mut self,
        now: Instant,
        ends: impl Fn(&Body<'_>) -> bool,
    ) -> Option<usize> {
        for at in 0..self.requests {
            let body = &mut self.bodies[at];
            match body.signal {
                Signal::Due(due) if due <= now => body.signal = Signal::Over,
                Signal::None | Signal::Due(_) | Signal::Over => {}
            }
            let rests = match self.states[at].stage {
                Stage::Ready => true,
                Stage::Parked(park) => park != Park::Zeroing,
                Stage::Said => !matches!(body.say, Some(Say::Done(_))),
                Stage::Free | Stage::Moving | Stage::Asking => false,
            };
            if rests && body.signal == Signal::Over && ends(body) {
                return Some(at);
            }
        }
        None
    }

    /// When the next of those that a signal has met is to end.
    pub(super) fn next_signal(&self) -> Option<Instant> {
        let states = self.states[..self.requests].iter().enumerate();
        let due = states.filter_map(|(at, state)| match (state.stage, self.bodies[at].signal) {
            (Stage::Free, _) | (_, Signal::None | Signal::Over) => None,
            (_, Signal::Due(due)) => Some(due),
        });
        due.min()
    }

    /// The oldest that waits for bytes to be set to zero, which has not begun.
    pub(super) fn next_to_zero(&self) -> Option<usize> {
        let waiting = self.at_work().filter(|(at, state)| {
            state.stage == Stage::Parked(Park::Zeroing) && self.bodies[*at].zero.is_some()
        });
        waiting.min_by_key(|(_, at)| at.age).map(|(at, _)| at)
    }

    /// Lets those run that wait for something of this sort.
    pub(super) fn wake(&mut self, sort: impl Fn(&Park) -> bool) {
        let at_work = self.states.iter_mut().filter(|state| state.stage != Stage::Free);
        for state in at_work.take(self.used) {
            if let Stage::Parked(park) = &state.stage
                && sort(park)
            {
                state.stage = Stage::Ready;
            }
        }
    }

    /// Whether any waits for something of this sort.
    pub(super) fn waits(&self, sort: impl Fn(&Park) -> bool) -> bool {
        self.at_work().any(|(_, at)| matches!(&at.stage, Stage::Parked(park) if sort(park)))
    }

    /// The first time that one waits for.
    pub(super) fn next_time(&self) -> Option<Instant> {
        let times = self.at_work().filter_map(|(_, at)| match at.stage {
            Stage::Parked(Park::Until(at)) => Some(at),
            Stage::Parked(_)
            | Stage::Free
            | Stage::Ready
            | Stage::Said
            | Stage::Moving
            | Stage::Asking => None,
        });
        times.min()
    }
}
