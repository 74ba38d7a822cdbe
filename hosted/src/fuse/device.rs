//! The connection to the kernel: threads that read requests, answers by number, and the life of a
//! mount.
//!
//! ```text
//!   attach -> greet (INIT) -> readers run -- the kernel ends the connection --> readers have ended
//!                                            (unmounted, or aborted)
//! ```
//!
//! # Invariants
//!
//! * A request is in the table from before the file system hears of it until its answer: an answer
//!   is written at most once. An interrupt for a request that the file system doesn't know is sent
//!   back to the kernel.

use super::Filesystem;
use super::buffer::{BUFFER_BYTES, Buffer, Pool};
use super::decode::{self, Form, HEAD_BYTES, Memory, Message};
use super::encode;
use super::mounting::{self, Detach, MountPoint, Options};
use super::notify::Notifier;
use super::wire::{InHeader, InitIn, InitOut, OutHeader, init, opcode};
use outrider_core::client::op::{Caller, Lent, Op, OpError, Reply, Request, RequestId};
use outrider_core::format::item::Time;
use rustix::fd::OwnedFd;
use rustix::io::{Errno, readv, writev};
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use zerocopy::{FromBytes, IntoBytes};

/// Background requests (readahead, write-back) under way at a time. Beyond the second number the
/// kernel holds back those it can.
const BACKGROUND: u16 = 512;
const CONGESTION: u16 = BACKGROUND / 4 * 3;

/// Writes up to this size are copied from where they landed, so that many small ones that wait
/// don't each hold a whole buffer.
const COPIED_BYTES_MAX: usize = 32 * 1024;

/// The protocol this was written for.
const MAJOR: u32 = 7;
const MINOR: u32 = 41;

/// What the kernel must offer: Linux 5.11.
const NEEDED: u64 = init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::HANDLE_KILLPRIV_V2;

/// What is used if the kernel offers it.
const WANTED: u64 = NEEDED
    | init::ASYNC_READ
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::INIT_EXT
    | init::DIRECT_IO_ALLOW_MMAP;

/// The kernel's device, and the requests under way.
#[derive(Debug)]
pub(super) struct Device {
    fd: OwnedFd,
    in_flight: Mutex<BTreeMap<u64, Form>>,
}

/// Whether an answer got there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Delivery {
    /// The kernel has it.
    Done,
    /// The connection has ended, or the request was answered before. A lookup that was counted, and
    /// a file that was opened, aren't known to the kernel.
    Gone,
}

impl Device {
    pub(super) fn write(&self, parts: &[IoSlice<'_>]) -> rustix::io::Result<()> {
        // The kernel takes a message as a whole or not at all.
        writev(&self.fd, parts).map(|_| ())
    }

    fn in_flight(&self) -> MutexGuard<'_, BTreeMap<u64, Form>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_answer(&self, unique: u64, error: i32, body: &[IoSlice<'_>]) -> Delivery {
        let bytes: usize = body.iter().map(|part| part.len()).sum();
        let len = (size_of::<OutHeader>() + bytes) as u32;
        let header = OutHeader { len, error, unique };
        let mut parts = Vec::with_capacity(1 + body.len());
        parts.push(IoSlice::new(header.as_bytes()));
        parts.extend(body.iter().map(|part| IoSlice::new(part)));
        match self.write(&parts) {
            Ok(()) => Delivery::Done,
            Err(_) => Delivery::Gone,
        }
    }

    fn refuse(&self, unique: u64, errno: Errno) -> Delivery {
        self.write_answer(unique, -errno.raw_os_error(), &[])
    }
}

/// Answers requests, from any thread.
#[derive(Debug, Clone)]
pub struct Replies(Arc<Device>);

impl Replies {
    /// Answers with how the operation ended, and what it left in the memory it was lent.
    pub fn reply(&self, id: RequestId, result: Result<Reply, OpError>, lent: &[u8]) -> Delivery {
        let Some(form) = self.0.in_flight().remove(&id.0) else { return Delivery::Gone };
        match result {
            Err(error) => self.0.refuse(id.0, decode::errno(error)),
            Ok(reply) => {
                let mut body = Vec::new();
                encode::encode(&reply, form, lent, &mut body);
                self.0.write_answer(id.0, 0, &[IoSlice::new(&body)])
            }
        }
    }

    /// Answers a read with the data: fewer bytes than were asked for mean the end of the file.
    pub fn reply_data(&self, id: RequestId, data: &[IoSlice<'_>]) -> Delivery {
        match self.0.in_flight().remove(&id.0) {
            Some(_) => self.0.write_answer(id.0, 0, data),
            None => Delivery::Gone,
        }
    }

    /// How many requests are not answered yet.
    #[must_use]
    pub fn count_in_flight(&self) -> usize {
        self.0.in_flight().len()
    }
}

/// A mounted file system. Dropping it ends it, whoever still uses it.
#[derive(Debug)]
pub struct Mount {
    device: Arc<Device>,
    point: MountPoint,
    readers: Mutex<Vec<JoinHandle<()>>>,
}

impl Mount {
    /// Mounts at an existing directory. `filesystem` makes the file system, given the way to
    /// answer.
    pub fn new<F: Filesystem>(
        at: &Path,
        options: &Options,
        filesystem: impl FnOnce(Replies) -> Arc<F>,
    ) -> io::Result<Mount> {
        let (fd, point) = mounting::attach(at, options)?;
        let device = Arc::new(Device { fd, in_flight: Mutex::default() });
        let mount = Mount { device, point, readers: Mutex::default() };
        greet(&mount.device)?;
        let filesystem = filesystem(Replies(Arc::clone(&mount.device)));
        let pool = Arc::new(Pool::default());
        for index in 0..options.readers.max(1) {
            let device = Arc::clone(&mount.device);
            let filesystem = Arc::clone(&filesystem);
            let reader =
                Reader { device, filesystem, landing: pool.take(), pool: Arc::clone(&pool) };
            let thread = std::thread::Builder::new()
                .name(format!("fuse-{index}"))
                .spawn(move || reader.run())?;
            mount.readers().push(thread);
        }
        Ok(mount)
    }

    fn readers(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A way to make the kernel forget things.
    #[must_use]
    pub fn notifier(&self) -> Notifier {
        Notifier(Arc::clone(&self.device))
    }

    /// A way to answer requests.
    #[must_use]
    pub fn replies(&self) -> Replies {
        Replies(Arc::clone(&self.device))
    }

    /// Unmounts, unless something in it is in use: then EBUSY. Nothing happens if that was done
    /// before, by whomever.
    pub fn unmount(&self) -> io::Result<()> {
        self.point.detach(Detach::IfIdle)
    }

    /// Takes the mount from the tree. It goes on for those who use it, until the last has ended.
    pub fn detach(&self) -> io::Result<()> {
        self.point.detach(Detach::Lazily)
    }

    /// Ends the connection: all that is under way or comes later fails.
    pub fn abort(&self) -> io::Result<()> {
        self.point.abort()
    }

    /// Waits until the kernel has ended the connection: nobody uses the mount any more, or it was
    /// aborted. All that was looked up or open is forgotten.
    pub fn wait(&self) {
        let readers = std::mem::take(&mut *self.readers());
        for reader in readers {
            // A reader that panicked has been reported by the panic itself.
            let _ = reader.join();
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let aborted = self.abort();
        let detached = self.detach();
        // Without either, the readers end when somebody else unmounts: not to be waited for here.
        if aborted.is_ok() && detached.is_ok() {
            self.wait();
        }
    }
}

/// Agrees with the kernel on the protocol.
fn greet(device: &Device) -> io::Result<()> {
    let mut message = vec![0; 2 * BUFFER_BYTES];
    let len = loop {
        match rustix::io::read(&device.fd, &mut message) {
            Err(Errno::INTR) => {}
            result => break result?,
        }
    };
    let unsupported = |what: &str| io::Error::new(io::ErrorKind::Unsupported, what.to_owned());
    let short = || unsupported("the kernel's first FUSE message is too short");
    let (header, body) = InHeader::read_from_prefix(&message[..len]).map_err(|_| short())?;
    let (offer, _) = InitIn::read_from_prefix(body).map_err(|_| short())?;
    if header.opcode != opcode::INIT || offer.major != MAJOR {
        let _ = device.refuse(header.unique, Errno::PROTO);
        return Err(unsupported("the kernel speaks another FUSE protocol than 7"));
    }
    let offered = u64::from(offer.flags) | u64::from(offer.flags2) << 32;
    if offered & NEEDED != NEEDED {
        let _ = device.refuse(header.unique, Errno::PROTO);
        return Err(unsupported("the kernel's FUSE is too old: Linux 5.11 or later is needed"));
    }
    let agreed = offered & WANTED;
    let answer = InitOut {
        major: MAJOR,
        minor: offer.minor.min(MINOR),
        max_readahead: offer.max_readahead,
        flags: agreed as u32,
        flags2: (agreed >> 32) as u32,
        max_background: BACKGROUND,
        congestion_threshold: CONGESTION,
        max_write: BUFFER_BYTES as u32,
        time_gran: 1,
        max_pages: (BUFFER_BYTES / 4096) as u16,
        ..InitOut::default()
    };
    match device.write_answer(header.unique, 0, &[IoSlice::new(answer.as_bytes())]) {
        Delivery::Done => Ok(()),
        Delivery::Gone => Err(unsupported("the kernel ended the connection")),
    }
}

/// A thread that reads requests.
struct Reader<F> {
    device: Arc<Device>,
    filesystem: Arc<F>,
    pool: Arc<Pool>,
    landing: Buffer,
}

impl<F: Filesystem> Reader<F> {
    fn run(mut self) {
        let mut head = [0; HEAD_BYTES];
        let mut message = Vec::new();
        loop {
            let mut parts = [IoSliceMut::new(&mut head), IoSliceMut::new(&mut self.landing)];
            let len = match readv(&self.device.fd, &mut parts) {
                Ok(len) => len,
                // The request was interrupted before it was read, or this thread was.
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => continue,
                // Unmounted or aborted.
                Err(_) => return,
            };
            let landed = len.saturating_sub(HEAD_BYTES);
            let Ok((header, body)) = InHeader::read_from_prefix(&head[..len.min(HEAD_BYTES)])
            else {
                continue;
            };
            let decoded = if header.opcode == opcode::WRITE {
                decode::decode(&header, body, landed)
            } else {
                message.clear();
                message.extend_from_slice(body);
                message.extend_from_slice(&self.landing[..landed]);
                decode::decode(&header, &message, 0)
            };
            self.on_message(&header, decoded);
        }
    }

    fn on_message(&mut self, header: &InHeader, message: Message) {
        match message {
            Message::Operation(op, memory, form) => {
                self.device.in_flight().insert(header.unique, form);
                let lent = self.lend(memory);
                self.hand_over(header, op, lent);
            }
            Message::Forget(forgets) => {
                for (ino, lookups) in forgets {
                    self.hand_over(header, Op::Forget { ino, lookups }, None);
                }
            }
            Message::Interrupt(unique) => {
                if !self.filesystem.handle_interrupt(RequestId(unique)) {
                    // Not heard of yet, or answered: the kernel knows which, and repeats it or not.
                    let _ = self.device.refuse(header.unique, Errno::AGAIN);
                }
            }
            Message::Destroy => {
                let _ = self.device.write_answer(header.unique, 0, &[]);
            }
            Message::Refused(errno) => {
                let _ = self.device.refuse(header.unique, errno);
            }
        }
    }

    fn lend(&mut self, memory: Memory) -> Option<Lent<Buffer>> {
        match memory {
            Memory::None => None,
            Memory::Room(size) => Some(Lent { buf: Buffer::new(size), len: 0 }),
            Memory::Payload(buf) => {
                let len = buf.len();
                Some(Lent { buf, len })
            }
            Memory::Landed(len) if len <= COPIED_BYTES_MAX => {
                Some(Lent { buf: Buffer::copy(&self.landing[..len]), len })
            }
            Memory::Landed(len) => {
                let fresh = self.pool.take();
                Some(Lent { buf: std::mem::replace(&mut self.landing, fresh), len })
            }
        }
    }

    fn hand_over(&self, header: &InHeader, op: Op, lent: Option<Lent<Buffer>>) {
        let now = clock_gettime(ClockId::Realtime);
        let now = Time { sec: now.tv_sec, nsec: now.tv_nsec as u32 };
        let caller = Caller::new(header.uid, header.gid, header.pid);
        let request = Request { caller, now, op, lent };
        self.filesystem.handle_request(RequestId(header.unique), request);
    }
}
