//! A pin at the leader, for a program that reads a volume in use.
//!
//! # Invariants
//!
//! * It is only ever a help: without a leader, without room or after the leader has lost it, what
//!   is read is read as if there had never been one.
//! * A thread keeps the connection and asks in time, whatever the reader is doing. A connection
//!   that breaks is made anew, as long as the pin may still be there.
//! * That a pin holds is said by the leader's answer to a question asked just then, never by this
//!   program's clock.
//!
//! What this module deliberately doesn't know: what is read.

use super::ask::{Asking, leader};
use super::device::Image;
use outrider_core::format::CommitNo;
use outrider_core::format::root::Root;
use outrider_core::format::super_block::Super;
use outrider_core::format::wire::ErrorCode;
use outrider_core::format::wire::message::{ClientRequest, Pin, PinRequest, ServerAnswer};
use outrider_core::quorum::Leader;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

/// How long the leader may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// The connection is looked after so often.
const LOOK: Duration = Duration::from_millis(500);

/// A question for the thread: whether the pin holds, with the root that is read once it is chosen.
struct Question {
    commit: Option<CommitNo>,
    to: Sender<bool>,
}

/// A pin that is held as long as this lives.
pub(crate) struct Pinning {
    pin: Pin,
    /// None once it is over.
    questions: Option<Sender<Question>>,
    thread: Option<JoinHandle<()>>,
}

impl Pinning {
    /// Asks the leader for a pin, if there is one that answers. The roots of the ring that are read
    /// after this are those it is for.
    pub(crate) fn begin(image: &Image, volume: &Super) -> Option<Pinning> {
        let leader = leader(image, volume).ok()??;
        let mut asking = Asking::connect(volume, &leader).ok()?;
        let pin = ask(&mut asking, PinRequest::New).ok()?.ok()?;
        let (questions, asked) = channel();
        let now = Instant::now();
        let (volume, lease) = (*volume, Duration::from_millis(pin.lease_ms.into()));
        let (asking, commit) = (Some(asking), None);
        let mut holder = Holder { volume, leader, asking, pin, lease, heard: now, commit };
        let thread = spawn(move || holder.hold(&asked));
        Some(Pinning { pin, questions: Some(questions), thread: Some(thread) })
    }

    /// Whether what this root leads to is kept: it was read from the ring after the pin began. No
    /// other root's is any more.
    pub(crate) fn choose(&mut self, root: &Root) -> bool {
        let fits = root.term() == self.pin.term && root.commit() >= self.pin.commit;
        fits && self.question(Some(root.commit()))
    }

    /// Asks whether it has held until now.
    pub(crate) fn holds(&mut self) -> bool {
        self.question(None)
    }

    fn question(&mut self, commit: Option<CommitNo>) -> bool {
        let (to, answer) = channel();
        let asked = self
            .questions
            .as_ref()
            .is_some_and(|questions| questions.send(Question { commit, to }).is_ok());
        asked && answer.recv().unwrap_or(false)
    }
}

impl Drop for Pinning {
    fn drop(&mut self) {
        self.questions = None;
        if let Some(thread) = self.thread.take() {
            // It has nothing to say that matters any more.
            let _ = thread.join();
        }
    }
}

/// What the thread has.
struct Holder {
    volume: Super,
    leader: Leader,
    asking: Option<Asking>,
    pin: Pin,
    lease: Duration,
    /// When the last question was asked that was answered well.
    heard: Instant,
    commit: Option<CommitNo>,
}

impl Holder {
    /// Keeps the pin until nobody has questions any more, or it is lost; then every question is
    /// answered by silence, which is a no.
    fn hold(&mut self, questions: &Receiver<Question>) {
        loop {
            match questions.recv_timeout(LOOK) {
                Ok(Question { commit, to }) => {
                    self.commit = self.commit.or(commit);
                    let holds = self.renew_or_reconnect();
                    // Who asked waits.
                    let _ = to.send(holds);
                    if !holds {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let is_well = self.asking.as_mut().is_some_and(|asking| asking.rest().is_ok());
                    if !is_well {
                        self.asking = None;
                    }
                    if self.heard.elapsed() > self.lease / 3 && !self.renew_or_reconnect() {
                        return;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return self.end(),
            }
        }
    }

    /// Asks for more of the pin, over another connection if this one is gone. Whether it holds, as
    /// far as can be found out while it may.
    fn renew_or_reconnect(&mut self) -> bool {
        loop {
            let asked_at = Instant::now();
            let (term, number) = (self.pin.term, self.pin.number);
            let request = PinRequest::Renew { term, number, commit: self.commit };
            let answer = self.asking.as_mut().map(|asking| ask(asking, request));
            match answer {
                Some(Ok(Ok(pin))) => {
                    self.heard = asked_at;
                    return pin.term == term && pin.number == number;
                }
                Some(Ok(Err(_))) => return false,
                Some(Err(_)) | None => {}
            }
            if self.heard.elapsed() > self.lease {
                return false;
            }
            self.asking = Asking::connect(&self.volume, &self.leader).ok();
            if self.asking.is_none() {
                std::thread::sleep(LOOK);
            }
        }
    }

    fn end(&mut self) {
        let (term, number) = (self.pin.term, self.pin.number);
        if let Some(asking) = &mut self.asking {
            // If it isn't heard, the pin ends with its lease.
            let _ = ask(asking, PinRequest::End { term, number });
        }
    }
}

fn ask(asking: &mut Asking, request: PinRequest) -> Result<Result<Pin, ErrorCode>, String> {
    asking.ask(PATIENCE, &ClientRequest::Pin(request), |answer| match answer {
        ServerAnswer::Pin(pin) => Some(*pin),
        _ => None,
    })
}
