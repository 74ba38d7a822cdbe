//! A virtio disk with many requests in flight.
//!
//! # Invariants
//!
//! * Data moves straight between the device and the submitter's block; nothing is copied.
//! * A block that the device may be using is held as an address, not as a reference, and becomes a
//!   reference again with the request's completion.
//! * Every accepted request completes once. A device that breaks the protocol is reset, so that it
//!   touches no memory any more; all that it had, and all that it is given from then on, fails.
//! * A flush is never answered by us, unless the disk was declared to write through.
//!
//! What this module deliberately doesn't know: interrupts. The loop polls, and sees to it that it
//! wakes.

use super::{Dma, Transport, negotiate, wants_notice};
use core::ptr::{NonNull, read_volatile, write_volatile};
use heapless::{Deque, Vec};
use outrider_core::arena::{Arena, ArenaFull};
use outrider_hal::{
    BLOCK_BYTES, Block, BlockDevice, BlockNo, BlockOp, BlockRequest, BlockResult, Completion,
    IoError, Tag,
};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport as _};

/// Descriptors of the ring; QEMU's default size.
const RING: usize = 256;
/// A request takes three descriptors: header, block, status.
const DESCRIPTORS: usize = 3;
/// Requests in flight at most.
pub(crate) const DEPTH: usize = RING / DESCRIPTORS;

const QUEUE: u16 = 0;
const SECTOR_BYTES: u64 = 512;
const SECTORS_PER_BLOCK: u64 = BLOCK_BYTES as u64 / SECTOR_BYTES;

const FEATURE_READ_ONLY: u64 = 1 << 5;
const FEATURE_FLUSH: u64 = 1 << 9;

const TYPE_READ: u32 = 0;
const TYPE_WRITE: u32 = 1;
const TYPE_FLUSH: u32 = 4;

const STATUS_OK: u8 = 0;
const STATUS_UNSUPPORTED: u8 = 2;
const STATUS_PENDING: u8 = 0xff;

/// What makes a completed write durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// A flush that the device carries out.
    Flush,
    /// Nothing more: the operator has said that this disk writes through.
    WriteThrough,
}

/// Why a disk can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockError {
    /// The device refuses to agree on features.
    Features,
    /// The device has no FLUSH, so nothing written to it is known to be durable.
    NoFlush,
    /// The device's ring is shorter than 256, or can't be set up.
    Ring,
    /// The device's configuration can't be read.
    Config,
    /// The arena has no room for the requests.
    Memory,
}

/// What the device reads and writes besides the block.
#[repr(C)]
struct Wire {
    header: [u8; 16],
    status: u8,
}

/// A request that the device has.
#[derive(Clone, Copy)]
struct Flight {
    tag: Tag,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Read(BlockNo, NonNull<Block>),
    Write(BlockNo, NonNull<Block>),
    Flush,
}

/// A virtio disk.
pub(crate) struct Disk {
    transport: Transport,
    queue: VirtQueue<Dma, RING>,
    wires: NonNull<Wire>,
    flights: [Option<Flight>; DEPTH],
    free: Vec<u8, DEPTH>,
    /// The flight whose chain starts at this descriptor.
    flight_of: [u8; RING],
    /// Completions that need no device, in order.
    done: Deque<Completion<'static>, DEPTH>,
    blocks: u64,
    durability: Durability,
    read_only: bool,
    notify: bool,
    broken: bool,
}

impl Disk {
    /// Takes the disk into use. `durability` says whether one without FLUSH is acceptable; if the
    /// disk has FLUSH, it is used in any case.
    pub(crate) fn new(
        mut transport: Transport,
        durability: Durability,
        arena: &mut Arena<'static>,
    ) -> Result<Disk, BlockError> {
        let features = negotiate(&mut transport, FEATURE_READ_ONLY | FEATURE_FLUSH)
            .ok_or(BlockError::Features)?;
        let durability = match (features & FEATURE_FLUSH != 0, durability) {
            (true, _) => Durability::Flush,
            (false, Durability::WriteThrough) => Durability::WriteThrough,
            (false, Durability::Flush) => return Err(BlockError::NoFlush),
        };
        let sectors = transport
            .read_consistent(|| transport.read_config_space::<[u32; 2]>(0))
            .map_err(|_| BlockError::Config)?;
        let sectors = u64::from(sectors[1]) << 32 | u64::from(sectors[0]);
        let queue =
            VirtQueue::new(&mut transport, QUEUE, false, false).map_err(|_| BlockError::Ring)?;
        let wires = carve_wires(arena).map_err(|_| BlockError::Memory)?;
        transport.finish_init();
        Ok(Disk {
            transport,
            queue,
            wires,
            flights: [None; DEPTH],
            free: (0..DEPTH as u8).rev().collect(),
            flight_of: [0; RING],
            done: Deque::new(),
            blocks: sectors / SECTORS_PER_BLOCK,
            durability,
            read_only: features & FEATURE_READ_ONLY != 0,
            notify: false,
            broken: false,
        })
    }

    /// What makes a completed write durable on this disk.
    pub(crate) fn durability(&self) -> Durability {
        self.durability
    }

    /// Whether writes will be refused.
    pub(crate) fn read_only(&self) -> bool {
        self.read_only
    }

    /// Tells the device about what was submitted since the last call.
    pub(crate) fn kick(&mut self) {
        if core::mem::take(&mut self.notify) && wants_notice(&self.queue) {
            self.transport.notify(QUEUE);
        }
    }

    /// Whether [`poll`](BlockDevice::poll) has something to give, which no interrupt may announce.
    pub(crate) fn ready(&self) -> bool {
        let failed = self.broken && self.flights.iter().any(Option::is_some);
        !self.done.is_empty() || failed || !self.broken && self.queue.can_pop()
    }

    /// Takes note of the device's interrupt; `true` when there was one.
    pub(crate) fn acknowledge(&mut self) -> bool {
        self.transport.ack_interrupt() != InterruptStatus::empty()
    }

    fn wire(&self, flight: u8) -> *mut Wire {
        // SAFETY: there are DEPTH of them, and flights are numbered from 0 to DEPTH - 1.
        unsafe { self.wires.as_ptr().add(usize::from(flight)) }
    }

    /// Why this operation can't be given to the device.
    fn refusal(&self, op: &BlockOp<'static>) -> Option<BlockResult> {
        if self.broken {
            return Some(Err(IoError::Device));
        }
        match op {
            BlockOp::Read(at, _) | BlockOp::Write(at, _) if at.0 >= self.blocks => {
                Some(Err(IoError::OutOfRange))
            }
            BlockOp::Write(..) if self.read_only => Some(Err(IoError::Unsupported)),
            BlockOp::Flush => match self.durability {
                Durability::Flush => None,
                Durability::WriteThrough => Some(Ok(())),
            },
            BlockOp::Read(..) | BlockOp::Write(..) => None,
        }
    }

    fn start(&mut self, flight: u8, tag: Tag, op: BlockOp<'static>) {
        let (kind, code, at) = match op {
            BlockOp::Read(at, block) => (Kind::Read(at, NonNull::from(block)), TYPE_READ, at),
            BlockOp::Write(at, block) => (Kind::Write(at, NonNull::from(block)), TYPE_WRITE, at),
            BlockOp::Flush => (Kind::Flush, TYPE_FLUSH, BlockNo(0)),
        };
        let mut header = [0; 16];
        header[..4].copy_from_slice(&code.to_le_bytes());
        header[8..].copy_from_slice(&(at.0 * SECTORS_PER_BLOCK).to_le_bytes());
        let wire = self.wire(flight);
        // SAFETY: the device does not have this flight, so its wire is ours.
        unsafe { write_volatile(wire, Wire { header, status: STATUS_PENDING }) };
        let head = self.with_buffers(flight, kind, |queue, inputs, outputs| {
            // SAFETY: the wire and the block belong to the flight, and nobody touches them until
            // `finish` has taken the chain back.
            unsafe { queue.add(inputs, outputs) }
        });
        let head = head.expect("a free flight has its descriptors free");
        self.flight_of[usize::from(head)] = flight;
        self.flights[usize::from(flight)] = Some(Flight { tag, kind });
        self.notify = true;
    }

    /// Calls `use_them` with the chain of a request: what the device reads, what it writes.
    fn with_buffers<R>(
        &mut self,
        flight: u8,
        kind: Kind,
        use_them: impl for<'a> FnOnce(
            &mut VirtQueue<Dma, RING>,
            &'a [&'a [u8]],
            &'a mut [&'a mut [u8]],
        ) -> R,
    ) -> R {
        let wire = self.wire(flight);
        // SAFETY: wire and block are valid memory of ours. The queue takes no more than their
        // addresses and lengths from the slices.
        let (header, status) =
            unsafe { (&(*wire).header, core::slice::from_mut(&mut (*wire).status)) };
        match kind {
            Kind::Read(_, block) => {
                // SAFETY: as above.
                let block = unsafe { &mut (*block.as_ptr()).0 };
                use_them(&mut self.queue, &[header], &mut [block, status])
            }
            Kind::Write(_, block) => {
                // SAFETY: as above.
                let block = unsafe { &(*block.as_ptr()).0 };
                use_them(&mut self.queue, &[header, block], &mut [status])
            }
            Kind::Flush => use_them(&mut self.queue, &[header], &mut [status]),
        }
    }

    /// Takes back the next chain the device is done with; `None` when there is none.
    fn finish(&mut self) -> Option<Completion<'static>> {
        let head = self.queue.peek_used()?;
        let flight = self.flight_of.get(usize::from(head)).copied();
        let known = flight.and_then(|flight| Some((flight, self.flight(flight)?)));
        let Some((flight, Flight { tag, kind })) = known else {
            self.give_up();
            return None;
        };
        let taken = self.with_buffers(flight, kind, |queue, inputs, outputs| {
            // SAFETY: these are the buffers that `start` gave to the queue under this head.
            unsafe { queue.pop_used(head, inputs, outputs) }
        });
        if taken.is_err() {
            self.give_up();
            return None;
        }
        // SAFETY: the device is done with the wire.
        let status = unsafe { read_volatile(&raw const (*self.wire(flight)).status) };
        let result = match status {
            STATUS_OK => Ok(()),
            STATUS_UNSUPPORTED => Err(IoError::Unsupported),
            _ => Err(IoError::Device),
        };
        self.flights[usize::from(flight)] = None;
        self.free.push(flight).expect("there is room for every flight");
        Some(landed(tag, kind, result))
    }

    fn flight(&self, number: u8) -> Option<Flight> {
        self.flights.get(usize::from(number)).copied().flatten()
    }

    /// Resets a device that has broken the protocol. Afterwards it uses no memory of ours (virtio
    /// 1.2, 2.4.2), so that what it had can be given back, as failed.
    fn give_up(&mut self) {
        self.broken = true;
        self.transport.set_status(DeviceStatus::empty());
        while self.transport.get_status() != DeviceStatus::empty() {
            core::hint::spin_loop();
        }
    }

    /// The next request that went down with the device.
    fn wreck(&mut self) -> Option<Completion<'static>> {
        let Flight { tag, kind } = self.flights.iter_mut().find_map(Option::take)?;
        Some(landed(tag, kind, Err(IoError::Device)))
    }
}

/// The completion of a request that the device no longer has.
fn landed(tag: Tag, kind: Kind, result: BlockResult) -> Completion<'static> {
    // SAFETY: the block came as an exclusive reference, which was not used since, and the device
    // is done with it.
    let block = |block: NonNull<Block>| unsafe { &mut *block.as_ptr() };
    let op = match kind {
        Kind::Read(at, addr) => BlockOp::Read(at, block(addr)),
        Kind::Write(at, addr) => BlockOp::Write(at, block(addr)),
        Kind::Flush => BlockOp::Flush,
    };
    Completion { tag, op, result }
}

fn carve_wires(arena: &mut Arena<'static>) -> Result<NonNull<Wire>, ArenaFull> {
    let wires = arena.slice(DEPTH as u32, |_| Wire { header: [0; 16], status: 0 })?;
    Ok(NonNull::from(wires).cast())
}

impl BlockDevice<'static> for Disk {
    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn submit(&mut self, request: BlockRequest<'static>) -> Result<(), BlockRequest<'static>> {
        if let Some(result) = self.refusal(&request.op) {
            let BlockRequest { tag, op } = request;
            let done = self.done.push_back(Completion { tag, op, result });
            return done.map_err(|Completion { tag, op, .. }| BlockRequest { tag, op });
        }
        let Some(flight) = self.free.pop() else {
            return Err(request);
        };
        self.start(flight, request.tag, request.op);
        Ok(())
    }

    fn poll(&mut self) -> Option<Completion<'static>> {
        if let Some(completion) = self.done.pop_front() {
            return Some(completion);
        }
        if !self.broken
            && let Some(completion) = self.finish()
        {
            return Some(completion);
        }
        if self.broken { self.wreck() } else { None }
    }
}
