//! A virtio network card, as smoltcp wants a device.
//!
//! # Invariants
//!
//! * Every receive frame is with the device, or being looked at; it goes back when that is over.
//! * A send frame is with the device, or free. When none is free nothing is received either, since
//!   an answer could not be sent; the device then holds frames back, and at last the sender does.
//! * A device that breaks the protocol is used no more.

use super::{Dma, Transport, VERSION_1, negotiate, wants_notice};
use core::ptr::NonNull;
use heapless::Vec;
use outrider_core::arena::{Arena, ArenaFull};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{InterruptStatus, Transport as _};

/// Frames that the device may fill before we look.
pub(crate) const RECEIVE_FRAMES: usize = 128;
/// Frames that may wait to be sent.
pub(crate) const SEND_FRAMES: usize = 64;

const FRAME_BYTES: usize = 2048;
/// Ethernet header and the usual payload.
const MTU: usize = 1514;

const QUEUE_RECEIVE: u16 = 0;
const QUEUE_SEND: u16 = 1;

const FEATURE_MAC: u64 = 1 << 5;

/// Room for the header that precedes each frame: 12 bytes, 10 before version 1.
const HEADER_BYTES: usize = 12;
const HEADER_BYTES_LEGACY: usize = 10;

/// A frame with its header.
#[repr(align(64))]
struct Frame([u8; FRAME_BYTES]);

/// Frames that are lent to a queue one by one, by number.
struct Frames(NonNull<Frame>);

impl Frames {
    fn carve(arena: &mut Arena<'static>, count: usize) -> Result<Frames, ArenaFull> {
        let frames = arena.slice(count as u32, |_| Frame([0; FRAME_BYTES]))?;
        Ok(Frames(NonNull::from(frames).cast()))
    }

    /// The bytes of a frame.
    ///
    /// # Safety
    ///
    /// `number` is less than the count that was carved. The device does not have the frame, or no
    /// more than address and length of the slice are used.
    unsafe fn bytes(&mut self, number: usize) -> &'static mut [u8; FRAME_BYTES] {
        // SAFETY: as the caller says.
        unsafe { &mut (*self.0.as_ptr().add(number)).0 }
    }
}

/// Why a network card can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CardError {
    /// The device refuses to agree on features, or has no address.
    Features,
    /// The device's rings are too short, or can't be set up.
    Ring,
    /// The device's configuration can't be read.
    Config,
    /// The arena has no room for the frames.
    Memory,
}

struct Receiver {
    queue: VirtQueue<Dma, RECEIVE_FRAMES>,
    frames: Frames,
    frame_of: [u8; RECEIVE_FRAMES],
    header_bytes: usize,
    notify: bool,
    broken: bool,
}

impl Receiver {
    fn give(&mut self, number: u8) {
        // SAFETY: the frame is not with the device, and numbers are below RECEIVE_FRAMES. The
        // queue uses address and length only; the bytes are not touched until `take`.
        let head = unsafe {
            let bytes = self.frames.bytes(usize::from(number));
            self.queue.add(&[], &mut [&mut bytes[..]])
        };
        let head = head.expect("there are as many descriptors as frames");
        self.frame_of[usize::from(head)] = number;
        self.notify = true;
    }

    /// Takes the next frame from the device: its number, and its length with the header.
    fn take(&mut self) -> Option<(u8, usize)> {
        if self.broken {
            return None;
        }
        let head = self.queue.peek_used()?;
        let Some(&number) = self.frame_of.get(usize::from(head)) else {
            self.broken = true;
            return None;
        };
        // SAFETY: this is the frame that `give` gave to the queue under this head.
        let taken = unsafe {
            let bytes = self.frames.bytes(usize::from(number));
            self.queue.pop_used(head, &[], &mut [&mut bytes[..]])
        };
        match taken {
            Ok(len) => Some((number, (len as usize).min(FRAME_BYTES))),
            Err(_) => {
                self.broken = true;
                None
            }
        }
    }
}

struct Sender {
    queue: VirtQueue<Dma, SEND_FRAMES>,
    frames: Frames,
    frame_of: [(u8, u16); SEND_FRAMES],
    free: Vec<u8, SEND_FRAMES>,
    header_bytes: usize,
    notify: bool,
    broken: bool,
}

impl Sender {
    /// Takes back what the device has sent.
    fn reclaim(&mut self) {
        while !self.broken
            && let Some(head) = self.queue.peek_used()
        {
            let Some(&(number, len)) = self.frame_of.get(usize::from(head)) else {
                self.broken = true;
                return;
            };
            // SAFETY: this is the part of the frame that `send` gave to the queue under this head.
            let taken = unsafe {
                let bytes = self.frames.bytes(usize::from(number));
                self.queue.pop_used(head, &[&bytes[..usize::from(len)]], &mut [])
            };
            if taken.is_err() || self.free.push(number).is_err() {
                self.broken = true;
            }
        }
    }

    fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let number = self.free.pop().expect("a token is handed out only for a free frame");
        // SAFETY: a free frame is not with the device.
        let bytes = unsafe { self.frames.bytes(usize::from(number)) };
        let whole = self.header_bytes + len;
        bytes[..self.header_bytes].fill(0);
        let result = fill(&mut bytes[self.header_bytes..whole]);
        // SAFETY: the frame is touched no more until `reclaim` has taken it back.
        let head = unsafe { self.queue.add(&[&bytes[..whole]], &mut []) };
        let head = head.expect("there are as many descriptors as frames");
        self.frame_of[usize::from(head)] = (number, whole as u16);
        self.notify = true;
        result
    }
}

/// A virtio network card.
pub(crate) struct NetworkCard {
    transport: Transport,
    receiver: Receiver,
    sender: Sender,
    mac: [u8; 6],
}

impl NetworkCard {
    /// Takes the card into use.
    pub(crate) fn new(
        mut transport: Transport,
        arena: &mut Arena<'static>,
    ) -> Result<NetworkCard, CardError> {
        let features = negotiate(&mut transport, FEATURE_MAC)
            .filter(|features| features & FEATURE_MAC != 0)
            .ok_or(CardError::Features)?;
        let mac = transport
            .read_consistent(|| transport.read_config_space(0))
            .map_err(|_| CardError::Config)?;
        let header_bytes =
            if features & VERSION_1 != 0 { HEADER_BYTES } else { HEADER_BYTES_LEGACY };
        let ring = |_| CardError::Ring;
        let memory = |_| CardError::Memory;
        let receiver = Receiver {
            queue: VirtQueue::new(&mut transport, QUEUE_RECEIVE, false, false).map_err(ring)?,
            frames: Frames::carve(arena, RECEIVE_FRAMES).map_err(memory)?,
            frame_of: [0; RECEIVE_FRAMES],
            header_bytes,
            notify: false,
            broken: false,
        };
        let sender = Sender {
            queue: VirtQueue::new(&mut transport, QUEUE_SEND, false, false).map_err(ring)?,
            frames: Frames::carve(arena, SEND_FRAMES).map_err(memory)?,
            frame_of: [(0, 0); SEND_FRAMES],
            free: (0..SEND_FRAMES as u8).collect(),
            header_bytes,
            notify: false,
            broken: false,
        };
        let mut card = NetworkCard { transport, receiver, sender, mac };
        // Sent frames are taken back when the next one is to be sent: nobody waits for them.
        card.sender.queue.set_dev_notify(false);
        card.transport.finish_init();
        for number in 0..RECEIVE_FRAMES as u8 {
            card.receiver.give(number);
        }
        card.kick();
        Ok(card)
    }

    /// The card's Ethernet address.
    pub(crate) fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Tells the device about frames to send and to fill since the last call.
    pub(crate) fn kick(&mut self) {
        if core::mem::take(&mut self.receiver.notify) && wants_notice(&self.receiver.queue) {
            self.transport.notify(QUEUE_RECEIVE);
        }
        if core::mem::take(&mut self.sender.notify) && wants_notice(&self.sender.queue) {
            self.transport.notify(QUEUE_SEND);
        }
    }

    /// Takes note of the device's interrupt; `true` when there was one.
    pub(crate) fn acknowledge(&mut self) -> bool {
        self.transport.ack_interrupt() != InterruptStatus::empty()
    }
}

impl Device for NetworkCard {
    type RxToken<'a> = ReceivedFrame<'a>;
    type TxToken<'a> = FreeFrame<'a>;

    fn receive(&mut self, now: Instant) -> Option<(ReceivedFrame<'_>, FreeFrame<'_>)> {
        self.transmit(now)?;
        let (number, len) = self.receiver.take()?;
        let received = ReceivedFrame { receiver: &mut self.receiver, number, len };
        Some((received, FreeFrame(&mut self.sender)))
    }

    fn transmit(&mut self, _: Instant) -> Option<FreeFrame<'_>> {
        self.sender.reclaim();
        let usable = !self.sender.broken && !self.sender.free.is_empty();
        usable.then_some(FreeFrame(&mut self.sender))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MTU;
        capabilities.max_burst_size = Some(RECEIVE_FRAMES);
        capabilities
    }
}

/// A frame that was received. It goes back to the device when it is dropped.
pub(crate) struct ReceivedFrame<'a> {
    receiver: &'a mut Receiver,
    number: u8,
    len: usize,
}

impl RxToken for ReceivedFrame<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        // SAFETY: the device does not have the frame until this token is dropped.
        let bytes = unsafe { self.receiver.frames.bytes(usize::from(self.number)) };
        look(bytes.get(self.receiver.header_bytes..self.len).unwrap_or(&[]))
    }
}

impl Drop for ReceivedFrame<'_> {
    fn drop(&mut self) {
        self.receiver.give(self.number);
    }
}

/// A frame that can be filled and sent.
pub(crate) struct FreeFrame<'a>(&'a mut Sender);

impl TxToken for FreeFrame<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        self.0.send(len, fill)
    }
}
