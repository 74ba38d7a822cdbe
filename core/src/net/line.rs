//! A connection: its buffers, its records, its silence, and the session it carries.
//!
//! ```text
//!              recv_space, on_received                      head, take
//!   driver --------------------------->  records, frames -------------> owner
//!          <---------------------------                  <------------- session
//!              send_bytes, on_sent                          next
//! ```
//!
//! # Invariants
//!
//! * The receive buffer holds at least one record of any size, so a record that has begun can
//!   always be completed. A message stands in it until the owner takes it; what is behind waits,
//!   and when the buffer is full the space for more is empty.
//! * A frame is put into the send buffer whole, and only when it fits. A frame that only
//!   acknowledges is put there when nothing else has carried the acknowledgement for the delay
//!   allowed, or nothing at all was sent for the keepalive time.
//! * A peer is heard when a record of it is whole, so that neither a length that was damaged on its
//!   way nor bytes that come in drips keep a connection waiting for ever. Silence counts only while
//!   this end is listening: not while a message waits for its owner.
//!
//! What this file deliberately doesn't know: who the peer is.

use super::record::{Channel, OVERHEAD_BYTES};
use super::session::{Incoming, Session, Ticket, Verdict};
use super::{End, Timing};
use crate::format::wire::greeting::GREETING_BYTES_MAX;
use crate::format::wire::message::Speaker;
use crate::format::wire::{BODY_BYTES_MAX, Frame, FrameHeader, Message, RECORD_BYTES_MAX};
use outrider_hal::Instant;
use zerocopy::IntoBytes;

/// Sizes of a connection's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineLimits {
    /// Bytes received and not taken. At least [`RECORD_BYTES_MAX`], so that every record fits.
    pub recv_bytes: u32,
    /// Bytes sent and not yet accepted by the driver. At least [`RECORD_BYTES_MAX`].
    pub send_bytes: u32,
}

impl LineLimits {
    /// The least that works.
    pub const MIN: LineLimits =
        LineLimits { recv_bytes: RECORD_BYTES_MAX as u32, send_bytes: RECORD_BYTES_MAX as u32 };

    /// Whether every record fits.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.recv_bytes >= LineLimits::MIN.recv_bytes
            && self.send_bytes >= LineLimits::MIN.send_bytes
    }
}

/// A connection.
pub(super) struct Line<'m> {
    recv: &'m mut [u8],
    recv_start: usize,
    recv_end: usize,
    send: &'m mut [u8],
    send_start: usize,
    send_end: usize,
    incoming: Channel,
    outgoing: Channel,
    body_max: usize,
    /// Bytes of the body of the record at the start of the receive buffer, once it is opened.
    opened: Option<usize>,
    /// The opened record is a message that the owner may take.
    offered: bool,
    ack_sent: u64,
    /// Since when an acknowledgement waits for a frame.
    ack_waits: Option<Instant>,
    heard: Instant,
    spoke: Instant,
}

impl<'m> Line<'m> {
    pub(super) fn new(recv: &'m mut [u8], send: &'m mut [u8]) -> Line<'m> {
        Line {
            recv,
            recv_start: 0,
            recv_end: 0,
            send,
            send_start: 0,
            send_end: 0,
            incoming: Channel::NEW,
            outgoing: Channel::NEW,
            body_max: GREETING_BYTES_MAX,
            opened: None,
            offered: false,
            ack_sent: 0,
            ack_waits: None,
            heard: Instant(0),
            spoke: Instant(0),
        }
    }

    /// Begins with a new connection.
    pub(super) fn reset(&mut self, now: Instant) {
        (self.recv_start, self.recv_end) = (0, 0);
        (self.send_start, self.send_end) = (0, 0);
        (self.incoming, self.outgoing) = (Channel::NEW, Channel::NEW);
        self.body_max = GREETING_BYTES_MAX;
        self.opened = None;
        self.offered = false;
        self.ack_sent = 0;
        self.ack_waits = None;
        (self.heard, self.spoke) = (now, now);
    }

    /// The greeting is over: frames follow, under these seeds.
    pub(super) fn rekey(&mut self, now: Instant, incoming: u32, outgoing: u32) {
        self.incoming.rekey(incoming);
        self.outgoing.rekey(outgoing);
        self.body_max = BODY_BYTES_MAX;
        (self.heard, self.spoke) = (now, now);
    }

    /// Where the next bytes go. Empty as long as nothing more can be taken.
    pub(super) fn recv_space(&mut self) -> &mut [u8] {
        if self.recv.len() - self.recv_end < self.recv_start {
            self.recv.copy_within(self.recv_start..self.recv_end, 0);
            self.recv_end -= self.recv_start;
            self.recv_start = 0;
        }
        &mut self.recv[self.recv_end..]
    }

    /// Bytes have been put at the start of `recv_space`.
    pub(super) fn on_received(&mut self, len: usize) {
        assert!(len <= self.recv.len() - self.recv_end, "no more than there was space for");
        self.recv_end += len;
    }

    /// The next bytes to send.
    pub(super) fn send_bytes(&self) -> &[u8] {
        &self.send[self.send_start..self.send_end]
    }

    /// Bytes from the start of `send_bytes` are on their way.
    pub(super) fn on_sent(&mut self, len: usize) {
        assert!(len <= self.send_end - self.send_start, "no more than there was");
        self.send_start += len;
    }

    /// Throws away whatever was received.
    pub(super) fn discard(&mut self) {
        (self.recv_start, self.recv_end) = (0, 0);
        self.opened = None;
        self.offered = false;
    }

    /// The body of the next record, once it is there. The same until `consume`.
    pub(super) fn body(&mut self, now: Instant) -> Result<Option<&[u8]>, End> {
        if self.opened.is_none() {
            let bytes = &mut self.recv[self.recv_start..self.recv_end];
            self.opened = self.incoming.open(bytes, self.body_max)?;
            if self.opened.is_some() {
                self.heard = now;
            }
        }
        Ok(self.opened_body())
    }

    /// Goes on behind the record that `body` gave.
    pub(super) fn consume(&mut self) {
        let body_bytes = self.opened.take().expect("a record was opened");
        self.offered = false;
        self.recv_start += OVERHEAD_BYTES + body_bytes;
        if self.recv_start == self.recv_end {
            (self.recv_start, self.recv_end) = (0, 0);
        }
    }

    /// Appends a record of these two parts to what is sent, if it fits.
    pub(super) fn push(&mut self, now: Instant, head: &[u8], tail: &[u8]) -> bool {
        let bytes = OVERHEAD_BYTES + head.len() + tail.len();
        if self.send.len() - self.send_end < bytes {
            self.send.copy_within(self.send_start..self.send_end, 0);
            self.send_end -= self.send_start;
            self.send_start = 0;
        }
        let Some(record) = self.send[self.send_end..].get_mut(..bytes) else {
            return false;
        };
        let body = &mut record[OVERHEAD_BYTES..];
        body[..head.len()].copy_from_slice(head);
        body[head.len()..].copy_from_slice(tail);
        self.outgoing.seal(record);
        self.send_end += bytes;
        self.spoke = now;
        true
    }

    /// Reads frames until one holds a message for the owner. Work: what is in the buffer.
    pub(super) fn advance<S: Speaker>(
        &mut self,
        now: Instant,
        session: &mut Session<'_, S>,
    ) -> Result<(), End> {
        while !self.offered {
            let Some(body) = self.body(now)? else {
                return Ok(());
            };
            let frame = Frame::parse(body)?;
            session.on_ack(frame.ack)?;
            match frame.message {
                None => self.consume(),
                Some(message) => match session.examine(&message)? {
                    Verdict::Skip => self.consume(),
                    Verdict::Offer => self.offered = true,
                },
            }
        }
        Ok(())
    }

    /// The message offered.
    pub(super) fn message(&self) -> Option<Message<'_>> {
        match self.offered {
            true => Frame::parse(self.opened_body()?).ok()?.message,
            false => None,
        }
    }

    /// The meaning of the message offered.
    pub(super) fn head<S: Speaker>(&self) -> Option<Incoming<'_, S::Peer>> {
        Session::<S>::parse(&self.message()?).ok()
    }

    /// Takes the message offered.
    pub(super) fn take<S: Speaker>(
        &mut self,
        now: Instant,
        session: &mut Session<'_, S>,
    ) -> Option<Ticket> {
        let ticket = session.take(&self.message()?);
        self.consume();
        self.heard = now;
        Some(ticket)
    }

    /// Puts what the session has to send into the buffer, as far as it fits. Work: the buffer.
    pub(super) fn fill<S: Speaker>(
        &mut self,
        now: Instant,
        timing: &Timing,
        session: &mut Session<'_, S>,
    ) {
        while let Some(frame) = session.next() {
            let (ack, payload) = (frame.ack, frame.message.map_or(&[][..], |it| it.payload));
            if !self.push(now, frame.header().as_bytes(), payload) {
                break;
            }
            self.ack_sent = ack;
            session.on_sent();
        }
        let ack = session.ack();
        if ack == self.ack_sent {
            self.ack_waits = None;
        } else if self.ack_waits.is_none() {
            self.ack_waits = Some(now);
        }
        if self.idle_frame_due(timing).is_some_and(|due| due <= now) {
            self.push_ack(now, ack);
        }
    }

    /// Puts a frame into the buffer that only acknowledges.
    pub(super) fn push_ack(&mut self, now: Instant, ack: u64) {
        let frame = Frame { ack, message: None };
        if self.push(now, frame.header().as_bytes(), &[]) {
            self.ack_sent = ack;
            self.ack_waits = None;
        }
    }

    /// The acknowledgement that was put into the buffer last.
    pub(super) fn ack_sent(&self) -> u64 {
        self.ack_sent
    }

    /// When the last record became whole, or the last message was taken.
    pub(super) fn heard(&self) -> Instant {
        self.heard
    }

    /// When the peer will be in doubt, unless it is heard before.
    pub(super) fn doubt_at(&self, timing: &Timing) -> Instant {
        self.heard.plus(timing.doubt())
    }

    /// Whether the peer has been silent for too long.
    pub(super) fn check_silence(&mut self, now: Instant, timing: &Timing) -> Result<(), End> {
        if self.offered {
            self.heard = now;
        }
        match self.heard.plus(timing.silence) <= now {
            true => Err(End::Silent),
            false => Ok(()),
        }
    }

    /// When the line must be looked at although nothing happens.
    pub(super) fn deadline(&self, timing: &Timing) -> Instant {
        let silent = self.heard.plus(timing.silence);
        self.idle_frame_due(timing).map_or(silent, |due| due.min(silent))
    }

    /// When a frame that only acknowledges must go out; never while it doesn't fit.
    fn idle_frame_due(&self, timing: &Timing) -> Option<Instant> {
        let unused = self.send.len() - (self.send_end - self.send_start);
        if unused < OVERHEAD_BYTES + size_of::<FrameHeader>() {
            return None;
        }
        let keepalive = self.spoke.plus(timing.keepalive);
        let ack = self.ack_waits.map(|since| since.plus(timing.ack_delay));
        Some(ack.map_or(keepalive, |ack| ack.min(keepalive)))
    }

    fn opened_body(&self) -> Option<&[u8]> {
        let body_bytes = self.opened?;
        Some(&self.recv[self.recv_start + OVERHEAD_BYTES..][..body_bytes])
    }
}
