//! Takes requests from the kernel's front-end and sees them through the core.
//!
//! See the [module above](super) for what goes where, and the order of locks.

use super::data::{DataDevice, block_start};
use super::memory::{Memory, PIECE_BYTES_MIN, Piece};
use super::movers::{Data, Job, Leave, Movers};
use super::queries;
use super::report::{COUNTERS_XATTR, LOCKS_XATTR, PID_XATTR, STATFS_XATTR, Tally, report_locks};
use super::{Core, Helm};
use crate::fuse::{Buffer, Filesystem, Replies, is_member};
use outrider_core::client::fs::ROOT;
use outrider_core::client::mount::MountState;
use outrider_core::client::op::query::QUERY_BYTES_MAX;
use outrider_core::client::op::{
    Answer, Lent, Op, OpError, Reply, Request, RequestId, Resume, Transfer,
};
use outrider_hal::{BLOCK_BYTES, IoError};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

/// Threads that move data. More transfers than that wait for one to end.
const MOVERS: usize = 8;

/// What is kept of a request until it is answered.
#[derive(Debug)]
struct Pending {
    /// The thread that asks.
    pid: u32,
    /// What its answer depends on.
    what: What,
    /// A signal has come for it.
    interrupted: bool,
}

#[derive(Debug)]
enum What {
    /// Nothing more.
    Plain,
    /// The kernel takes at most so many bytes.
    Sized(usize),
    /// It reads from this place on; the room, once there is something to read.
    Read { at: u64, len: u32, room: Option<Piece> },
    /// It writes this; where, once that is known. While a mover has the data, they aren't here.
    Write { base: Option<u64>, data: Option<Buffer> },
}

/// A request on its way to the core.
struct Waiting {
    id: RequestId,
    request: Request<Buffer>,
}

/// A transfer for which there is no memory yet.
struct Starved {
    id: RequestId,
    transfer: Transfer,
}

/// What the core says.
type Answers = VecDeque<(RequestId, Answer<Piece>)>;

/// The front-end of a mount.
pub struct Sink<H: Helm> {
    helm: H,
    replies: OnceLock<Replies>,
    memory: Memory,
    movers: Movers,
    queue: Mutex<VecDeque<Waiting>>,
    pending: Mutex<BTreeMap<RequestId, Pending>>,
    starved: Mutex<VecDeque<Starved>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Requests end with an error instead of waiting.
    failing: AtomicBool,
    tally: Tally,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked here holds no half-made state: each critical section is one push or
    // pop. The program aborts anyway.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<H: Helm> Sink<H> {
    /// A front-end for a core, with the device for its data. It takes requests once it is
    /// [attached](Self::attach).
    ///
    /// # Errors
    ///
    /// If there are no threads to be had.
    pub fn new(helm: H, device: DataDevice) -> io::Result<Arc<Sink<H>>> {
        let sink = Arc::new(Sink {
            helm,
            replies: OnceLock::new(),
            memory: Memory::new(),
            movers: Movers::new(device),
            queue: Mutex::default(),
            pending: Mutex::default(),
            starved: Mutex::default(),
            threads: Mutex::default(),
            failing: AtomicBool::new(false),
            tally: Tally::default(),
        });
        for index in 0..MOVERS {
            let mover = Arc::clone(&sink);
            let thread = std::thread::Builder::new().name(format!("mover-{index}"));
            let thread = thread.spawn(move || {
                mover.movers.run(|id, data, result| mover.on_moved(id, data, result));
            })?;
            locked(&sink.threads).push(thread);
        }
        Ok(sink)
    }

    /// Says where answers go.
    pub fn attach(&self, replies: Replies) {
        // Who attaches a second time changes nothing.
        let _ = self.replies.set(replies);
    }

    /// Ends its threads, when the kernel has ended the connection: answers have nowhere to go then.
    pub fn close(&self) {
        self.movers.close();
        for thread in std::mem::take(&mut *locked(&self.threads)) {
            // A thread that panicked has been reported by the panic itself.
            let _ = thread.join();
        }
    }

    /// The core, for who drives it.
    pub fn helm(&self) -> &H {
        &self.helm
    }

    /// Whether requests end with an error from now on instead of waiting for a server: those under
    /// way, if they have changed nothing yet, and those that come.
    pub fn fail_requests(&self, failing: bool) {
        self.failing.store(failing, Ordering::SeqCst);
        if !failing {
            return;
        }
        let waiting = std::mem::take(&mut *locked(&self.queue));
        let mut ended = Vec::new();
        for waiting in waiting {
            match waiting.request.op {
                Op::Release { .. } | Op::Releasedir { .. } => {
                    locked(&self.queue).push_back(waiting);
                }
                _ => ended.push(waiting.id),
            }
        }
        for id in ended {
            self.finish(id, Err(OpError::Io), None);
        }
        let pending: Vec<RequestId> = locked(&self.pending).keys().copied().collect();
        for id in pending {
            self.enter(|core, now| core.resume(now, id, Resume::Interrupted));
        }
    }

    /// Says whether data may be moved: as long as the lease of the core lasts.
    pub fn allow_transfers(&self, leave: Leave) {
        self.movers.allow(leave);
    }

    /// Takes what the core has said, as found by who drives it.
    pub fn deliver(&self, answers: &mut Answers) {
        let mut freed = false;
        loop {
            while let Some((id, answer)) = answers.pop_front() {
                match answer {
                    Answer::Done { result, lent } => {
                        self.finish(id, result, lent);
                        freed = true;
                    }
                    Answer::Transfer(transfer) => self.begin_transfer(id, transfer),
                    Answer::AskMember { gid } => {
                        let pid = locked(&self.pending).get(&id).map_or(0, |pending| pending.pid);
                        let resume = Resume::Member { gid, member: is_member(pid, gid) };
                        answers.extend(self.ask(|core, now| core.resume(now, id, resume)).1);
                    }
                }
            }
            if !freed {
                return;
            }
            freed = false;
            answers.extend(self.feed(None));
        }
    }

    /// Calls into the core, lets it work, and takes what it has to say.
    fn ask<R>(&self, act: impl FnOnce(&mut H::Core, outrider_hal::Instant) -> R) -> (R, Answers) {
        self.helm.with(|core, now| {
            let result = act(core, now);
            core.work(now);
            (result, collect(core))
        })
    }

    /// The same, and sees to what it says.
    fn enter(&self, act: impl FnOnce(&mut H::Core, outrider_hal::Instant)) {
        let ((), mut answers) = self.ask(act);
        self.deliver(&mut answers);
    }

    /// Hands requests to the core while it takes them, the new one last.
    fn feed(&self, new: Option<Waiting>) -> Answers {
        let mut answers = Answers::new();
        let (mut refused, mut back) = (Vec::new(), None);
        let mut queue = locked(&self.queue);
        queue.extend(new);
        while let Some(waiting) = queue.pop_front() {
            match self.submit(waiting, &mut answers) {
                Submitted::Taken => {}
                Submitted::Refused(id, error, lent) => refused.push((id, error, lent)),
                Submitted::Full(waiting, lent) => {
                    self.tally.note_queued();
                    back = lent;
                    queue.push_front(waiting);
                    break;
                }
            }
        }
        drop(queue);
        back.into_iter().for_each(|lent| self.give(lent.buf));
        for (id, error, lent) in refused {
            self.finish(id, Err(error), lent);
        }
        answers
    }

    fn submit(&self, waiting: Waiting, answers: &mut Answers) -> Submitted {
        let Waiting { id, request } = waiting;
        if locked(&self.pending).get(&id).is_none_or(|pending| pending.interrupted) {
            return Submitted::Refused(id, OpError::Interrupted, None);
        }
        let Ok(lent) = self.lend(&request) else {
            return Submitted::Full(Waiting { id, request }, None);
        };
        let Request { caller, now: time, op, lent: brought } = request;
        let request = Request { caller, now: time, op, lent };
        let ((refused, state), said) = self.ask(|core, now| {
            let refused = core.submit(now, id, request).err();
            (refused, core.state())
        });
        answers.extend(said);
        let Some(Request { caller, now, op, lent }) = refused else { return Submitted::Taken };
        match state {
            MountState::Joining | MountState::Mounted | MountState::Suspended => {
                let request = Request { caller, now, op, lent: brought };
                Submitted::Full(Waiting { id, request }, lent)
            }
            MountState::Leaving | MountState::Left | MountState::Evicted | MountState::Refused => {
                Submitted::Refused(id, OpError::Io, lent)
            }
        }
    }

    /// The memory that the core is lent for a request; an error if it must be waited for.
    fn lend(&self, request: &Request<Buffer>) -> Result<Option<Lent<Piece>>, NoMemory> {
        let Some(Lent { buf, len }) = &request.lent else { return Ok(None) };
        let piece = match request.op {
            // The core never sees the data of files.
            Op::Write { .. } => return Ok(None),
            // What is in the list counts, so it must be no longer than the kernel takes.
            Op::Readdir { .. } => self.memory.take_within(buf.len()),
            _ => self.memory.take(buf.len()),
        };
        let piece = piece.ok_or(NoMemory)?;
        piece[..*len].copy_from_slice(&buf[..*len]);
        Ok(Some(Lent { buf: piece, len: *len }))
    }

    /// Answers a request.
    fn finish(&self, id: RequestId, result: Result<Reply, OpError>, lent: Option<Lent<Piece>>) {
        let pending = locked(&self.pending).remove(&id);
        if let (Some(pending), Some(replies)) = (pending, self.replies.get()) {
            self.reply(replies, id, result, lent.as_ref(), pending);
        }
        if let Some(lent) = lent {
            self.give(lent.buf);
        }
    }

    fn reply(
        &self,
        replies: &Replies,
        id: RequestId,
        result: Result<Reply, OpError>,
        lent: Option<&Lent<Piece>>,
        pending: Pending,
    ) {
        let bytes = lent.map_or(&[][..], |lent| &lent.buf[..lent.len]);
        let result = match result {
            // It was given up, but not for a signal.
            Err(OpError::Interrupted) if !pending.interrupted => Err(OpError::Io),
            result => result,
        };
        // What the connection doesn't take any more, the kernel has forgotten with all the rest.
        let _ = match (pending.what, result) {
            (What::Read { at, room, .. }, Ok(Reply::Count(count))) => {
                let skip = (at - block_start(at)) as usize;
                let data = room.as_deref().and_then(|room| room.get(skip..skip + count as usize));
                let delivery = replies.reply_data(id, &[IoSlice::new(data.unwrap_or_default())]);
                room.into_iter().for_each(|room| self.give(room));
                delivery
            }
            (What::Read { room, .. }, result) => {
                room.into_iter().for_each(|room| self.give(room));
                replies.reply(id, result, &[])
            }
            (What::Sized(max), Ok(Reply::Bytes)) if bytes.len() > max => {
                replies.reply(id, Err(OpError::Range), &[])
            }
            (_, result) => replies.reply(id, result, bytes),
        };
    }

    /// Takes memory back. Who waits for some gets it.
    fn give(&self, piece: Piece) {
        self.memory.give(piece);
        let starved = std::mem::take(&mut *locked(&self.starved));
        for Starved { id, transfer } in starved {
            self.begin_transfer(id, transfer);
        }
    }

    /// Has data moved.
    fn begin_transfer(&self, id: RequestId, transfer: Transfer) {
        // Held until it is known whether there is memory: what is given back afterwards finds the
        // starved one.
        let mut starved = locked(&self.starved);
        let data = self.data(id, &transfer);
        if let Err(Missing::Memory) = data {
            starved.push_back(Starved { id, transfer });
            return;
        }
        drop(starved);
        match data {
            Ok((base, data)) => {
                self.tally.note_transfer();
                self.movers.start(Job { id, transfer, base, data });
            }
            Err(Missing::Memory | Missing::Data) => {
                let resume = Resume::Transferred(Err(IoError::Unsupported));
                self.enter(|core, now| core.resume(now, id, resume));
            }
        }
    }

    /// What is moved for a request, and where in the file it begins.
    fn data(&self, id: RequestId, transfer: &Transfer) -> Result<(u64, Data), Missing> {
        let first = transfer.extents.first().ok_or(Missing::Data)?.at;
        let mut all = locked(&self.pending);
        match all.get_mut(&id).map(|pending| &mut pending.what) {
            Some(What::Read { at, len, room }) => {
                let bytes = room_bytes(*at, *len, transfer);
                let piece = room.take().or_else(|| self.memory.take(bytes));
                Ok((*at, Data::Room(piece.ok_or(Missing::Memory)?)))
            }
            Some(What::Write { base, data }) => {
                let data = data.take().ok_or(Missing::Data)?;
                Ok((*base.get_or_insert(first), Data::Bytes(data)))
            }
            Some(What::Plain | What::Sized(_)) | None => Err(Missing::Data),
        }
    }

    fn on_moved(&self, id: RequestId, moved: Data, result: Result<(), IoError>) {
        let mut all = locked(&self.pending);
        let left = match (all.get_mut(&id).map(|pending| &mut pending.what), moved) {
            (Some(What::Read { room, .. }), Data::Room(piece)) => room.replace(piece),
            (Some(What::Write { data, .. }), Data::Bytes(bytes)) => {
                *data = Some(bytes);
                None
            }
            (_, Data::Room(piece)) => Some(piece),
            (_, Data::Bytes(_)) => None,
        };
        drop(all);
        left.into_iter().for_each(|piece| self.give(piece));
        self.enter(|core, now| core.resume(now, id, Resume::Transferred(result)));
    }

    /// What the mount tells of itself; nothing for all other requests.
    fn tell(&self, request: &Request<Buffer>) -> Option<Result<Vec<u8>, OpError>> {
        let Op::Getxattr { ino: ROOT, name } = &request.op else { return None };
        if name.bytes() == PID_XATTR.as_bytes() {
            return Some(Ok(std::process::id().to_string().into_bytes()));
        }
        let name = std::str::from_utf8(name.bytes()).ok()?;
        let skip = name.strip_prefix(LOCKS_XATTR).map(str::parse);
        if name != COUNTERS_XATTR && name != STATFS_XATTR && !matches!(skip, Some(Ok(_))) {
            return None;
        }
        if request.caller.uid != 0 {
            return Some(Err(OpError::NoData));
        }
        let text = if let Some(Ok(skip)) = skip {
            report_locks(&self.helm.with(|core, _| core.locks()), skip)
        } else if name == STATFS_XATTR {
            self.helm.with(|core, _| core.facts()).report()
        } else {
            let (state, counters) = self.helm.with(|core, _| (core.state(), core.counters()));
            self.tally.report(state, &counters)
        };
        Some(Ok(text.into_bytes()))
    }

    fn answer_told(&self, id: RequestId, told: Result<Vec<u8>, OpError>, room: Option<usize>) {
        let Some(replies) = self.replies.get() else { return };
        let _ = match (told, room) {
            (Err(error), _) => replies.reply(id, Err(error), &[]),
            (Ok(text), None) => replies.reply(id, Ok(Reply::Size(text.len() as u32)), &[]),
            (Ok(text), Some(room)) if text.len() > room => {
                replies.reply(id, Err(OpError::Range), &[])
            }
            (Ok(text), Some(_)) => replies.reply(id, Ok(Reply::Bytes), &text),
        };
    }

    /// How long an answer to a question may be: it isn't the same the next time.
    fn answer_size(&self, id: RequestId) {
        if let Some(replies) = self.replies.get() {
            let _ = replies.reply(id, Ok(Reply::Size(QUERY_BYTES_MAX as u32)), &[]);
        }
    }

    /// Whether a request is to be refused before the core hears of it, and why.
    fn refusal(&self, request: &Request<Buffer>) -> Option<OpError> {
        let room = request.lent.as_ref().map_or(usize::MAX, |lent| lent.buf.len());
        match request.op {
            Op::Readdir { .. } if room < PIECE_BYTES_MIN => Some(OpError::Invalid),
            // These end something, which goes on meanwhile if they are lost.
            Op::Release { .. } | Op::Releasedir { .. } => None,
            _ => self.failing.load(Ordering::SeqCst).then_some(OpError::Io),
        }
    }
}

/// There is no memory to lend.
struct NoMemory;

/// Why no data can be moved.
enum Missing {
    /// There is no room for them now.
    Memory,
    /// The request has none.
    Data,
}

/// What became of a request that was handed to the core.
#[expect(clippy::large_enum_variant, reason = "it is passed on at once, and never kept")]
enum Submitted {
    Taken,
    /// It ends with this error; the memory it was lent.
    Refused(RequestId, OpError, Option<Lent<Piece>>),
    /// It must wait; the memory it was lent.
    Full(Waiting, Option<Lent<Piece>>),
}

/// Everything the core has to say.
pub(super) fn collect(core: &mut impl Core) -> Answers {
    std::iter::from_fn(|| core.poll_answer()).collect()
}

/// Room for all that is to be read, if this is the first of its transfers: an end before the
/// request's is the file's, unless there were more extents than a transfer names.
fn room_bytes(base: u64, len: u32, transfer: &Transfer) -> usize {
    let last = transfer.extents.last().filter(|_| !transfer.extents.is_full());
    let end = base + u64::from(len);
    let end = last.map_or(end, |last| end.min(last.at + u64::from(last.len)));
    (end - block_start(base)).next_multiple_of(BLOCK_BYTES as u64) as usize
}

fn what(op: &Op, lent: &mut Option<Lent<Buffer>>) -> What {
    match op {
        Op::Getxattr { .. } | Op::Listxattr { .. } | Op::Query(_) => {
            What::Sized(lent.as_ref().map_or(0, |lent| lent.buf.len()))
        }
        Op::Read { at, len, .. } => What::Read { at: *at, len: *len, room: None },
        Op::Write { .. } => What::Write { base: None, data: lent.take().map(|lent| lent.buf) },
        _ => What::Plain,
    }
}

impl<H: Helm> Filesystem for Sink<H> {
    fn handle_request(&self, id: RequestId, mut request: Request<Buffer>) {
        if let Some(query) = queries::parse(&request.op) {
            request.op = Op::Query(query);
            if request.lent.is_none() {
                return self.answer_size(id);
            }
        }
        self.tally.note_request(&request.op);
        if let Some(told) = self.tell(&request) {
            let room = request.lent.map(|lent| lent.buf.len());
            return self.answer_told(id, told, room);
        }
        if let Op::Forget { .. } = request.op {
            let Request { caller, now: time, op, lent: _ } = request;
            let request = Request { caller, now: time, op, lent: None };
            // One that isn't taken has come after the end.
            return self.enter(|core, now| drop(core.submit(now, id, request)));
        }
        if let Some(error) = self.refusal(&request) {
            if let Some(replies) = self.replies.get() {
                let _ = replies.reply(id, Err(error), &[]);
            }
            return;
        }
        let what = what(&request.op, &mut request.lent);
        let pending = Pending { pid: request.caller.pid, what, interrupted: false };
        locked(&self.pending).insert(id, pending);
        let mut answers = self.feed(Some(Waiting { id, request }));
        self.deliver(&mut answers);
    }

    fn handle_interrupt(&self, id: RequestId) -> bool {
        // Who hands it to the core just now looks at this before, or is overtaken by nothing.
        match locked(&self.pending).get_mut(&id) {
            Some(pending) => pending.interrupted = true,
            None => return false,
        }
        let mut queue = locked(&self.queue);
        let waiting = queue.iter().position(|waiting| waiting.id == id);
        let waiting = waiting.and_then(|at| queue.remove(at));
        drop(queue);
        match waiting {
            Some(_) => self.finish(id, Err(OpError::Interrupted), None),
            None => self.enter(|core, now| core.resume(now, id, Resume::Interrupted)),
        }
        true
    }
}
