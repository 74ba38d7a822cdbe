//! Whether what several mounts answered can have been answered by one file system, each operation
//! happening at one moment between being asked and being answered.
//!
//! The search is that of Wing and Gong (1993) with Lowe's memory of what has led nowhere (2017): it
//! takes operations one after the other, each time one that began before any of those left has
//! ended, executes it on the [`Model`], and goes on if that gives the same answer. It isn't divided
//! by objects, because a rename or a link is of several. It needs no help from the core, whose word
//! on when something happened would have to be checked in turn. What keeps it short is that each
//! request has a time of its own, which stays in the inode: attributes say who changed them last.
//!
//! # Invariants
//!
//! * An operation whose outcome isn't known happens at one moment after its beginning, or never.
//! * What takes too many tries is said to be undecided, never to be right.
//!
//! What this module deliberately doesn't know: where operations come from.

use super::history::Life;
use crate::model::{Asked, Done, Model, ROOT, User};
use outrider_core::client::op::{Attr, EntryReader, Handle, Op, OpError, Reply};
use outrider_core::format::Ino;
use outrider_core::format::item::{FileKind, Time};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::rc::Rc;

/// Executions of operations until a history is given up.
const TRIES_MAX: usize = 100_000;

/// How an operation ended, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With this answer.
    Known(Result<Done, OpError>),
    /// Nobody knows: it was answered with a failure of the machine, or not at all.
    Unknown,
}

/// An operation that somebody has asked for.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Where: a machine that mounts again gives out the same handles again.
    pub mount: Life,
    /// What.
    pub op: Op,
    /// What came with it.
    pub data: Vec<u8>,
    /// What times became.
    pub now: Time,
    /// Room for the answer.
    pub room: Option<usize>,
    /// When it was asked for.
    pub begun: u64,
    /// When it had ended.
    pub ended: u64,
    /// How.
    pub outcome: Outcome,
}

/// What a search has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none; and where the longest attempt ended.
    Not(String),
    /// It took too many tries.
    Undecided,
}

/// The file system, in one of the states it may be in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    model: Model,
    /// The model's numbers of inodes that were told, and the other way round.
    inos: BTreeMap<Ino, Ino>,
    told: BTreeMap<Ino, Ino>,
    handles: BTreeMap<(Life, Handle), (Ino, Handle)>,
}

/// One operation has been executed; which are left to be tried instead.
struct Frame {
    state: Rc<State>,
    taken: Vec<bool>,
    candidates: Vec<usize>,
    next: usize,
}

/// Looks for an order of these operations in a file system that had one directory, made at this
/// time, with these permissions and nothing in it.
#[must_use]
pub fn check(operations: &[Operation], dir: Ino, permissions: u16, made: Time) -> Verdict {
    let operations: Vec<&Operation> = operations.iter().filter(|of| matters(of)).collect();
    let doubtful = doubtful(&operations);
    let state = Rc::new(State {
        model: Model::new(permissions, made),
        inos: BTreeMap::from([(dir, ROOT)]),
        told: BTreeMap::from([(ROOT, dir)]),
        handles: BTreeMap::new(),
    });
    let taken = vec![false; operations.len()];
    let mut dead: BTreeMap<Vec<bool>, Vec<Rc<State>>> = BTreeMap::new();
    let mut longest = (0, String::new());
    let mut tries = 0;
    let candidates = candidates(&operations, &taken);
    let mut stack = vec![Frame { state, taken, candidates, next: 0 }];
    while let Some(frame) = stack.last_mut() {
        let is_left = |(at, of): (usize, &&Operation)| !frame.taken[at] && is_known(of);
        if !operations.iter().enumerate().any(is_left) {
            return Verdict::Linearizable;
        }
        let Some(at) = frame.candidates.get(frame.next).copied() else {
            let taken = frame.taken.iter().filter(|taken| **taken).count();
            if longest.1.is_empty() || taken > longest.0 {
                longest = (taken, describe(&operations, frame));
            }
            dead.entry(frame.taken.clone()).or_default().push(Rc::clone(&frame.state));
            stack.pop();
            continue;
        };
        frame.next += 1;
        tries += 1;
        if tries > TRIES_MAX {
            return Verdict::Undecided;
        }
        let Some(state) = frame.state.after(operations[at], &doubtful) else { continue };
        let mut taken = frame.taken.clone();
        taken[at] = true;
        if dead.get(&taken).is_some_and(|dead| dead.iter().any(|dead| **dead == state)) {
            continue;
        }
        let candidates = self::candidates(&operations, &taken);
        stack.push(Frame { state: Rc::new(state), taken, candidates, next: 0 });
    }
    Verdict::Not(longest.1)
}

fn is_known(operation: &Operation) -> bool {
    matches!(operation.outcome, Outcome::Known(_))
}

fn is_short(operation: &Operation) -> bool {
    match (&operation.op, &operation.outcome) {
        (Op::Write { len, .. }, Outcome::Known(Ok(done))) => done.reply != Reply::Count(*len),
        (_, _) => false,
    }
}

/// Whether it says something, or may have changed something.
fn matters(operation: &Operation) -> bool {
    match &operation.outcome {
        Outcome::Known(Ok(_)) => true,
        Outcome::Known(Err(error)) => !has_done_nothing(*error),
        Outcome::Unknown => !only_looks(&operation.op),
    }
}

/// Errors of which nothing follows but that nothing has happened.
fn has_done_nothing(error: OpError) -> bool {
    use OpError as E;
    matches!(error, E::Interrupted | E::NoMemory | E::Again | E::TooManyOpen | E::NoSpace | E::Busy)
}

fn only_looks(op: &Op) -> bool {
    match op {
        Op::Open { how, .. } => !how.truncate,
        Op::Lookup { .. }
        | Op::Forget { .. }
        | Op::Getattr { .. }
        | Op::Access { .. }
        | Op::Readlink { .. }
        | Op::Release { .. }
        | Op::Opendir { .. }
        | Op::Readdir { .. }
        | Op::Releasedir { .. }
        | Op::Read { .. }
        | Op::Flush { .. }
        | Op::Fsync { .. }
        | Op::Lseek { .. }
        | Op::Getxattr { .. }
        | Op::Listxattr { .. }
        | Op::Query(_)
        | Op::Statfs => true,
        Op::Setattr { .. }
        | Op::Symlink { .. }
        | Op::Mknod { .. }
        | Op::Mkdir { .. }
        | Op::Create { .. }
        | Op::Unlink { .. }
        | Op::Rmdir { .. }
        | Op::Rename { .. }
        | Op::Link { .. }
        | Op::Write { .. }
        | Op::Fallocate { .. }
        | Op::Setxattr { .. }
        | Op::Removexattr { .. } => false,
    }
}

/// Files of which nobody knows what was written in their blocks, and since when: a write that
/// failed on the device, or ended early, may have left any part of itself there.
fn doubtful(operations: &[&Operation]) -> BTreeMap<Ino, u64> {
    let mut doubtful = BTreeMap::new();
    for operation in operations.iter().filter(|of| !is_known(of) || is_short(of)) {
        let ino = match &operation.op {
            Op::Write { ino, .. } | Op::Setattr { ino, .. } | Op::Open { ino, .. } => *ino,
            _ => continue,
        };
        let since: &mut u64 = doubtful.entry(ino).or_insert(operation.begun);
        *since = operation.begun.min(*since);
    }
    doubtful
}

/// Those that may come next: begun before any of those left has ended. Those that nobody knows
/// about are tried last.
fn candidates(operations: &[&Operation], taken: &[bool]) -> Vec<usize> {
    let left = || operations.iter().enumerate().filter(|(at, _)| !taken[*at]);
    let known = left().filter(|(_, of)| is_known(of));
    let first_end = known.map(|(_, of)| of.ended).min().unwrap_or(u64::MAX);
    let mut all: Vec<(bool, u64, usize)> = left()
        .filter(|(_, of)| of.begun < first_end)
        .map(|(at, of)| (!is_known(of), of.ended, at))
        .collect();
    all.sort_unstable();
    all.into_iter().map(|(_, _, at)| at).collect()
}

fn describe(operations: &[&Operation], frame: &Frame) -> String {
    let mut text = String::from("nothing of this can come next:");
    for at in &frame.candidates {
        let Operation { mount, op, begun, ended, outcome, now, .. } = operations[*at];
        let Life { host, number } = mount;
        let mut model = (*frame.state).clone();
        let expected = model.execute(operations[*at]).map(|expected| match expected {
            Ok(done) => format!("{:?}", done.reply),
            Err(error) => format!("{error:?}"),
        });
        let outcome = match outcome {
            Outcome::Known(Ok(done)) => format!("{:?}, {} bytes", done.reply, done.data.len()),
            Outcome::Known(Err(error)) => format!("{error:?}"),
            Outcome::Unknown => String::from("nobody knows"),
        };
        let _ = write!(
            text,
            "\n  {host}, mount {number}, {begun}..{ended} at {}: {op:?}\n    gave {outcome}\n    \
             not {expected:?}",
            now.sec
        );
    }
    let taken = frame.taken.iter().filter(|taken| **taken).count();
    let _ = write!(text, "\n  after {taken} of {}", operations.len());
    text
}

impl State {
    /// The state after this operation, if it can have been answered as it was.
    fn after(&self, operation: &Operation, doubtful: &BTreeMap<Ino, u64>) -> Option<State> {
        if operation.outcome == Outcome::Known(Err(OpError::Stale)) {
            return self.may_be_stale(operation).then(|| self.clone());
        }
        let mut state = self.clone();
        let expected = state.execute(operation)?;
        let doubted = match &operation.op {
            Op::Read { ino, .. } => doubtful.get(ino).is_some_and(|since| *since < operation.ended),
            _ => false,
        };
        let fits = match (&operation.outcome, &expected) {
            (Outcome::Unknown, expected) => expected.is_ok(),
            (Outcome::Known(Err(error)), expected) => *expected == Err(*error),
            (Outcome::Known(Ok(_)), Err(_)) => false,
            (Outcome::Known(Ok(done)), Ok(expected)) => {
                state.fits(operation, done, expected, doubted)
            }
        };
        fits.then_some(state)
    }

    /// An inode that has no name any more may be gone for who doesn't have it open.
    fn may_be_stale(&self, operation: &Operation) -> bool {
        let inos = named(&operation.op);
        let gone = |ino: &Ino| {
            let Some(known) = self.inos.get(ino) else { return false };
            let open = self
                .handles
                .iter()
                .any(|((mount, _), (of, _))| *mount == operation.mount && of == known);
            !open && self.model.links(*known) == Some(0)
        };
        inos.iter().any(gone)
    }

    /// Executes it on the model; nothing if it names what isn't there yet.
    fn execute(&mut self, operation: &Operation) -> Option<Result<Done, OpError>> {
        let mut op = self.translated(operation)?;
        // A short write is a whole one of what was written.
        if let (Op::Write { len, .. }, Outcome::Known(Ok(done))) = (&mut op, &operation.outcome)
            && let Reply::Count(count) = done.reply
            && count > 0
        {
            *len = count.min(*len);
        }
        let asked = Asked {
            user: &User::ROOT,
            now: operation.now,
            op: &op,
            data: &operation.data,
            room: operation.room,
        };
        Some(self.model.execute(&asked))
    }

    /// The operation with the model's numbers.
    fn translated(&self, operation: &Operation) -> Option<Op> {
        let mut op = operation.op.clone();
        for ino in numbers(&mut op) {
            *ino = *self.inos.get(ino)?;
        }
        if let Some(handle) = handle(&mut op) {
            *handle = self.handles.get(&(operation.mount, *handle))?.1;
        }
        Some(op)
    }

    /// Whether the answer is the one expected; what it tells is remembered.
    fn fits(&mut self, operation: &Operation, done: &Done, expected: &Done, doubted: bool) -> bool {
        let mount = operation.mount;
        match (&done.reply, &expected.reply) {
            (Reply::Entry(attr), Reply::Entry(expected))
            | (Reply::Attr(attr), Reply::Attr(expected)) => self.same(attr, expected),
            (Reply::Opened(handle), Reply::Opened(expected)) => {
                let Some(ino) = named(&operation.op).first().and_then(|ino| self.inos.get(ino))
                else {
                    return false;
                };
                self.handles.insert((mount, *handle), (*ino, *expected)).is_none()
            }
            (Reply::Created(attr, handle), Reply::Created(wanted, expected)) => {
                let opened = (wanted.ino, *expected);
                self.same(attr, wanted) && self.handles.insert((mount, *handle), opened).is_none()
            }
            (Reply::Bytes, Reply::Bytes) => match operation.op {
                Op::Readdir { .. } => self.same_list(&done.data, &expected.data),
                _ => done.data == expected.data,
            },
            (Reply::Count(count), Reply::Count(expected_count)) => {
                count == expected_count && (doubted || done.data == expected.data)
            }
            (Reply::Empty, Reply::Empty) => {
                if let Op::Release { handle, .. } | Op::Releasedir { handle, .. } = operation.op {
                    self.handles.remove(&(mount, handle));
                }
                true
            }
            (reply, expected) => reply == expected,
        }
    }

    /// Whether the attributes are these; a number that is new is remembered.
    fn same(&mut self, attr: &Attr, expected: &Attr) -> bool {
        self.same_ino(attr.ino, expected.ino) && {
            let is_directory = attr.kind == FileKind::Directory;
            // How much space a file takes, and how large a directory is, are a mount's own affair.
            let size = if is_directory { attr.size } else { expected.size };
            let expected = Attr { ino: attr.ino, sectors: attr.sectors, size, ..*expected };
            *attr == expected
        }
    }

    fn same_ino(&mut self, ino: Ino, expected: Ino) -> bool {
        match (self.inos.get(&ino), self.told.get(&expected)) {
            (None, None) => {
                self.inos.insert(ino, expected);
                self.told.insert(expected, ino);
                true
            }
            (known, told) => known == Some(&expected) && told == Some(&ino),
        }
    }

    /// Whether a list of entries begins as the one expected. It may end before, but not at once.
    fn same_list(&mut self, list: &[u8], expected: &[u8]) -> bool {
        let wanted: Vec<_> = EntryReader::new(expected).collect();
        let listed: Vec<_> = EntryReader::new(list).collect();
        if listed.is_empty() != wanted.is_empty() || listed.len() > wanted.len() {
            return false;
        }
        listed.iter().zip(&wanted).all(|(entry, wanted)| {
            let dots = entry.name == b"." || entry.name == b"..";
            let alike =
                entry.name == wanted.name && entry.kind == wanted.kind && entry.next == wanted.next;
            let same = match (&entry.attr, &wanted.attr) {
                // What is above the directory isn't part of the model.
                _ if dots => true,
                (Some(attr), Some(wanted)) => self.same(attr, wanted),
                (None, None) => self.same_ino(entry.ino, wanted.ino),
                (_, _) => false,
            };
            alike && same
        })
    }
}

/// The inodes that an operation names.
fn named(op: &Op) -> Vec<Ino> {
    numbers(&mut op.clone()).into_iter().map(|ino| *ino).collect()
}

fn numbers(op: &mut Op) -> Vec<&mut Ino> {
    match op {
        Op::Lookup { dir, .. }
        | Op::Symlink { dir, .. }
        | Op::Mknod { dir, .. }
        | Op::Mkdir { dir, .. }
        | Op::Create { dir, .. }
        | Op::Unlink { dir, .. }
        | Op::Rmdir { dir, .. } => vec![dir],
        Op::Rename { dir, to_dir, .. } => vec![dir, to_dir],
        Op::Link { ino, dir, .. } => vec![ino, dir],
        Op::Forget { ino, .. }
        | Op::Getattr { ino }
        | Op::Setattr { ino, .. }
        | Op::Access { ino, .. }
        | Op::Readlink { ino }
        | Op::Open { ino, .. }
        | Op::Release { ino, .. }
        | Op::Opendir { ino }
        | Op::Readdir { ino, .. }
        | Op::Releasedir { ino, .. }
        | Op::Read { ino, .. }
        | Op::Write { ino, .. }
        | Op::Flush { ino, .. }
        | Op::Fsync { ino, .. }
        | Op::Fallocate { ino, .. }
        | Op::Lseek { ino, .. }
        | Op::Getxattr { ino, .. }
        | Op::Setxattr { ino, .. }
        | Op::Listxattr { ino }
        | Op::Removexattr { ino, .. } => vec![ino],
        Op::Query(_) | Op::Statfs => Vec::new(),
    }
}

fn handle(op: &mut Op) -> Option<&mut Handle> {
    match op {
        Op::Setattr { handle, .. } => handle.as_mut(),
        Op::Release { handle, .. }
        | Op::Readdir { handle, .. }
        | Op::Releasedir { handle, .. }
        | Op::Read { handle, .. }
        | Op::Write { handle, .. }
        | Op::Flush { handle, .. }
        | Op::Fsync { handle, .. }
        | Op::Fallocate { handle, .. }
        | Op::Lseek { handle, .. } => Some(handle),
        Op::Lookup { .. }
        | Op::Forget { .. }
        | Op::Getattr { .. }
        | Op::Access { .. }
        | Op::Readlink { .. }
        | Op::Symlink { .. }
        | Op::Mknod { .. }
        | Op::Mkdir { .. }
        | Op::Create { .. }
        | Op::Unlink { .. }
        | Op::Rmdir { .. }
        | Op::Rename { .. }
        | Op::Link { .. }
        | Op::Open { .. }
        | Op::Opendir { .. }
        | Op::Getxattr { .. }
        | Op::Setxattr { .. }
        | Op::Listxattr { .. }
        | Op::Removexattr { .. }
        | Op::Query(_)
        | Op::Statfs => None,
    }
}

#[cfg(test)]
mod tests;
