//! Runs operations, parks them where they wait, and hands over what is to be said of them.
//!
//! What this module deliberately doesn't know: how what they wait for is brought about.

use super::slots::{Park, Say, Signal, Stage};
use super::{Life, Mount};
use crate::client::fs::{Context, Step, Wait};
use crate::client::op::query::Query;
use crate::client::op::{self, Answer, Op, OpError, Request, Resume};
use crate::client::reader::ReaderEvent;
use crate::error::Error;
use crate::lock::client::{Class, OpId};
use crate::node::More;
use core::time::Duration;
use outrider_hal::Instant;

/// Runs of operations in a step.
const RUNS_PER_STEP: u32 = 64;
/// How long a request goes on after a signal has come for it. Most signals are handled, by programs
/// that don't expect EINTR from files; who is killed meanwhile waits no longer than that.
const PATIENCE: Duration = Duration::from_secs(1);
/// Times that something must fail to be read until an operation that has changed something ends.
const FAILURES_MAX: u8 = 5;

/// What a run works on: everything but the file system itself, and the operation.
macro_rules! context {
    ($mount:expr, $now:expr, $op:expr) => {
        Context {
            items: &mut $mount.items,
            reader: Some(&mut $mount.reader),
            locks: &mut $mount.locks,
            inos: &mut $mount.loans.inos,
            blocks: &mut $mount.loans.blocks,
            op: OpId($op),
            class: Class::Ordinary,
            now: $now,
            seq: $mount.committer.seq().unwrap_or_default(),
            committed: $mount.committer.committed(),
            volume: $mount.statfs.volume,
        }
    };
}

impl<'m> Mount<'m> {
    /// Takes a request; see [`Mount::submit`].
    #[expect(clippy::result_large_err, reason = "there is no heap, and its owner gets it back")]
    pub(super) fn take(
        &mut self,
        now: Instant,
        id: op::RequestId,
        mut request: Request<&'m mut [u8]>,
    ) -> Result<(), Request<&'m mut [u8]>> {
        if matches!(request.op, Op::Forget { .. }) {
            // It needs nothing that it would have to wait for, so it has no slot, but one name.
            let mut task = crate::client::fs::Task::answer();
            let mut cx = context!(self, now, self.slots.count());
            let _ = self.fs.run(&mut cx, &mut task, &mut request);
            return Ok(());
        }
        match self.life {
            Life::Joining | Life::Mounted => {}
            Life::Leaving | Life::Left | Life::Evicted | Life::Refused => return Err(request),
        }
        let at = self.slots.begin(id, request)?;
        self.slots.body(at).write_errors = self.committer.write_errors();
        Ok(())
    }

    /// Takes what the platform says of a request; see [`Mount::resume`].
    pub(super) fn on_resumed(&mut self, now: Instant, id: op::RequestId, resume: Resume) {
        let Some(at) = self.slots.find(id) else { return };
        match (self.slots.stage(at), resume) {
            (Stage::Moving, Resume::Transferred(result)) => {
                self.slots.body(at).task.transferred(result.is_ok());
                self.slots.stand(at, Stage::Ready);
            }
            (Stage::Asking, Resume::Member { gid, member }) => {
                self.slots.body(at).request.caller.groups.tell(gid, member);
                self.slots.stand(at, Stage::Ready);
            }
            (_, Resume::Interrupted) => {
                let body = self.slots.body(at);
                if body.signal == Signal::None {
                    body.signal = Signal::Due(now.plus(PATIENCE));
                }
            }
            (
                Stage::Free
                | Stage::Ready
                | Stage::Parked(_)
                | Stage::Said
                | Stage::Moving
                | Stage::Asking,
                Resume::Transferred(_) | Resume::Member { .. },
            ) => {}
        }
    }

    /// The next thing to say; see [`Mount::poll_answer`].
    pub(super) fn next_answer(&mut self) -> Option<(op::RequestId, Answer<&'m mut [u8]>)> {
        let at = if self.suspended && !self.has_ended() {
            // What ends for a signal says nothing that was read.
            self.slots.oldest_cut()?
        } else {
            self.slots.oldest(|stage| *stage == Stage::Said)?
        };
        let id = self.slots.id(at);
        let mut say = self.slots.body(at).say.take().expect("there is something to say");
        if self.has_ended() && !matches!(say, Say::Done(_)) {
            say = Say::Done(Err(OpError::Io));
        }
        let answer = match say {
            Say::Transfer(transfer) => {
                self.slots.stand(at, Stage::Moving);
                Answer::Transfer(transfer)
            }
            Say::AskMember(gid) => {
                self.slots.stand(at, Stage::Asking);
                Answer::AskMember { gid }
            }
            Say::Done(result) => {
                self.counters.requests += 1;
                Answer::Done { result, lent: self.slots.end(at).request.lent }
            }
        };
        Some((id, answer))
    }

    /// Runs what can run. If anything has, there is more to do: it may wait for what others bring,
    /// or have let go of what they wait for.
    pub(super) fn step_work(&mut self, now: Instant) -> More {
        self.step_ready(now);
        self.step_zeroing();
        self.slots.wake(|park| matches!(park, Park::Until(at) if *at <= now));
        let mut more = More::No;
        for _ in 0..RUNS_PER_STEP {
            let Some(at) = self.slots.oldest(|stage| *stage == Stage::Ready) else { break };
            self.run(now, at);
            more = More::Yes;
        }
        more
    }

    /// Whether an operation could go on.
    pub(super) fn has_ready(&self) -> bool {
        self.may_submit() && self.slots.oldest(|stage| *stage == Stage::Ready).is_some()
    }

    /// Runs one operation.
    fn run(&mut self, now: Instant, at: usize) {
        self.counters.runs += 1;
        let statfs_due = self.statfs.is_due(now, self.config.timing.statfs_age);
        let mut cx = context!(self, now, at as u32);
        let body = self.slots.body(at);
        if body.deletes.is_none() && matches!(body.request.op, Op::Statfs) && statfs_due {
            self.statfs.wanted = true;
            return self.slots.stand(at, Stage::Parked(Park::Statfs));
        }
        if let (None, Op::Query(Query::Walk { .. })) = (body.deletes, &body.request.op) {
            return self.run_walk(at);
        }
        let step = self.fs.run(&mut cx, &mut body.task, &mut body.request);
        match step {
            Step::Done(result) => self.finish(at, result),
            Step::Wait(wait) => self.park(at, wait),
            Step::Transfer(transfer) => self.say(at, Say::Transfer(transfer)),
            Step::AskMember(gid) => self.say(at, Say::AskMember(gid)),
            Step::Zero(extent) => {
                body.zero = Some(extent);
                self.slots.stand(at, Stage::Parked(Park::Zeroing));
            }
        }
    }

    /// Ends what a signal has met, and what is not over in time: also without a lease or a server,
    /// as these may not come back.
    pub(super) fn step_signals(&mut self, now: Instant) {
        let hopeless = !self.may_submit();
        while let Some(at) =
            self.slots.overdue(now, |body| body.task.ending(&body.request.op, hopeless).is_some())
        {
            let mut cx = context!(self, now, at as u32);
            let body = self.slots.body(at);
            let ending = body.task.ending(&body.request.op, hopeless);
            let result = ending.expect("that was looked at");
            self.fs.give_up(&mut cx, &mut body.task);
            body.cut = true;
            self.slots.wake(|park| *park == Park::Busy);
            self.say(at, Say::Done(result));
        }
    }

    fn say(&mut self, at: usize, say: Say) {
        self.slots.body(at).say = Some(say);
        self.slots.stand(at, Stage::Said);
    }

    /// An operation is over, and holds nothing any more.
    pub(super) fn finish(&mut self, at: usize, result: Result<op::Reply, OpError>) {
        self.slots.wake(|park| *park == Park::Busy);
        let write_errors = self.committer.write_errors();
        let body = self.slots.body(at);
        let syncs = matches!(body.request.op, Op::Fsync { .. });
        match body.deletes {
            // What was lost with a failed flush, nobody can write again.
            None if syncs && body.write_errors < write_errors => {
                self.say(at, Say::Done(result.and(Err(OpError::Io))));
            }
            None => self.say(at, Say::Done(result)),
            // If it has failed, it will be found lying about.
            Some(_) => {
                self.slots.end(at);
                self.counters.deleted += u64::from(result.is_ok());
            }
        }
    }

    fn park(&mut self, at: usize, wait: Wait) {
        let park = match wait {
            Wait::Fill { at, range, asked } => Park::Fill { at, range, asked },
            Wait::Commit => Park::Commit,
            Wait::Snapshot => Park::Snapshot,
            Wait::Lock(_) => Park::Lock,
            Wait::Busy(_) => Park::Busy,
            Wait::Inos(_) => Park::Inos,
            Wait::Blocks => Park::Blocks,
        };
        self.slots.stand(at, Stage::Parked(park));
    }

    /// Ends an operation with this error if it has changed nothing; else it is tried again later,
    /// and ends where it is if that doesn't help: as after a crash, which each change allows for.
    pub(super) fn fail(&mut self, now: Instant, at: usize, error: OpError) {
        let mut cx = context!(self, now, at as u32);
        let body = self.slots.body(at);
        body.failures += u8::from(error == OpError::Io);
        if body.task.has_changed() && body.failures < FAILURES_MAX {
            let later = now.plus(self.config.timing.retry);
            return self.slots.stand(at, Stage::Parked(Park::Until(later)));
        }
        self.fs.give_up(&mut cx, &mut body.task);
        self.finish(at, Err(error));
    }

    /// Has the reader bring what operations wait for, and runs them when it is there.
    pub(super) fn step_fills(&mut self, now: Instant) -> More {
        while let Some(at) = self
            .slots
            .oldest(|stage| matches!(stage, Stage::Parked(Park::Fill { asked: false, .. })))
        {
            let Stage::Parked(Park::Fill { at: key, range, .. }) = self.slots.stage(at) else {
                break;
            };
            if self.reader.want(&mut self.items, key, range).is_err() {
                break;
            }
            let asked = Park::Fill { at: key, range, asked: true };
            self.slots.stand(at, Stage::Parked(asked));
        }
        self.step_feed();
        let more = self.reader.step(&mut self.items, super::READER_BUDGET);
        while let Some(event) = self.reader.poll_event() {
            self.on_reader_event(now, event);
        }
        more
    }

    fn on_reader_event(&mut self, now: Instant, event: ReaderEvent) {
        match event {
            ReaderEvent::Filled { range } => self.slots.wake(
                |park| matches!(park, Park::Fill { at, asked: true, .. } if range.contains(at)),
            ),
            ReaderEvent::Failed { at: failed, range, error: _ } => {
                self.counters.reads_failed += 1;
                let of_key = |stage: &Stage| match stage {
                    Stage::Parked(Park::Fill { at, asked: true, .. }) => *at == failed,
                    Stage::Parked(_)
                    | Stage::Free
                    | Stage::Ready
                    | Stage::Said
                    | Stage::Moving
                    | Stage::Asking => false,
                };
                while let Some(at) = self.slots.oldest(of_key) {
                    self.fail(now, at, OpError::Io);
                }
                self.slots.wake(
                    |park| matches!(park, Park::Fill { at, asked: true, .. } if range.contains(at)),
                );
            }
            ReaderEvent::RootWanted => self.root_wanted = true,
            ReaderEvent::Searched(found) => self.on_searched(now, found),
            ReaderEvent::Scanned(result) => self.on_scanned(result),
        }
    }

    /// Names the operations whose locks have come.
    fn step_ready(&mut self, now: Instant) {
        while let Some((op, result)) = self.locks.poll_ready() {
            let at = op.0 as usize;
            if at >= self.slots.count() as usize
                || !matches!(self.slots.stage(at), Stage::Parked(Park::Lock))
            {
                continue;
            }
            match result {
                Ok(()) => self.slots.stand(at, Stage::Ready),
                Err(_) => self.fail(now, at, OpError::Again),
            }
        }
    }

    /// Sets bytes to zero for the operations that wait for that.
    fn step_zeroing(&mut self) {
        self.end_zeroing();
        while self.zeroing.has_room()
            && let Some(at) = self.slots.next_to_zero()
            && let Some(extent) = self.slots.body(at).zero.take()
        {
            self.zeroing.begin(at, &extent);
        }
    }

    /// Names the operations whose bytes are zero now, or can't be set to zero.
    fn end_zeroing(&mut self) {
        while let Some((at, ok)) = self.zeroing.poll_ended() {
            self.slots.body(at).task.transferred(ok);
            self.slots.stand(at, Stage::Ready);
        }
    }

    /// Ends all operations with an error, but those that the platform or the device has a part in:
    /// these end when they come back.
    pub(super) fn fail_all(&mut self, now: Instant) {
        self.zeroing.abandon();
        self.end_zeroing();
        while let Some(at) = self.slots.next_to_zero() {
            self.slots.body(at).zero = None;
            self.slots.stand(at, Stage::Ready);
        }
        while let Some(at) = self.slots.oldest(|stage| match stage {
            Stage::Free | Stage::Said | Stage::Moving | Stage::Asking => false,
            Stage::Parked(park) => *park != Park::Zeroing,
            Stage::Ready => true,
        }) {
            let mut cx = context!(self, now, at as u32);
            let body = self.slots.body(at);
            self.fs.give_up(&mut cx, &mut body.task);
            match body.deletes {
                Some(_) => drop(self.slots.end(at)),
                None => self.say(at, Say::Done(Err(OpError::Io))),
            }
        }
    }
}

/// How a search for what lies about has ended.
pub(super) type Found = Result<Option<crate::client::items::Key>, Error>;
