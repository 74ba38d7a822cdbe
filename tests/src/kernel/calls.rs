//! System calls: which locks each takes, and which requests it makes of the mount.
//!
//! # Invariants
//!
//! * Locks are taken in Linux's order: that of renames between directories; directories, the upper
//!   one first; then what is named in them: directories, then files, by number.
//! * A name that is known is asked for again before it is believed, and its inode is used only if
//!   the answer is the same.
//! * A path that leads to an inode that has gone is walked once more, from the start.
//!
//! What this module deliberately doesn't know: permissions, and symlinks inside a path.

use super::sema::Hold;
use super::threads::until;
use super::{Failure, Held, IO_BYTES, Kernel, Pid, Pin, Signal};
use crate::model::Done;
use outrider_core::client::fs::ROOT;
use outrider_core::client::op::{
    Attr, EntryReader, Handle, NameBuf, NewMode, Op, OpError, OpenAccess, OpenHow, RenameMode,
    Reply, SetAttr, WriteAt,
};
use outrider_core::format::Ino;
use outrider_core::format::item::FileKind;

/// A path: names from the root on.
pub type Path = Vec<NameBuf>;

type Result<T> = std::result::Result<T, Failure>;

/// How to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenFlags {
    /// `O_CREAT`.
    pub create: bool,
    /// `O_EXCL`.
    pub exclusive: bool,
    /// `O_TRUNC`.
    pub truncate: bool,
    /// `O_APPEND`.
    pub append: bool,
}

/// An open file.
#[must_use]
pub struct File {
    pin: Pin,
    handle: Handle,
    append: bool,
}

/// A process, or a thread of one: it makes one call at a time.
#[derive(Clone)]
pub struct Process {
    kernel: Kernel,
    pid: Pid,
}

fn failed<T>(error: OpError) -> Result<T> {
    Err(Failure::Op(error))
}

fn entry(done: &Done) -> Attr {
    match done.reply {
        Reply::Entry(attr) => attr,
        other => panic!("not an entry: {other:?}"),
    }
}

impl Process {
    /// A new process.
    #[must_use]
    pub fn new(kernel: &Kernel, pid: Pid) -> Process {
        kernel.0.borrow_mut().processes.entry(pid).or_default();
        Process { kernel: kernel.clone(), pid }
    }

    /// The mount's kernel.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The process ends; its files are closed.
    pub fn exit(&self) {
        self.kernel.0.borrow_mut().processes.remove(&self.pid);
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        !self.kernel.0.borrow().processes.contains_key(&self.pid)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.kernel.signal(self.pid, signal);
    }

    /// What its next calls are part of. A signal that it handles is handled now.
    pub fn play(&self, round: Option<u32>) {
        let mut state = self.kernel.0.borrow_mut();
        let process = state.processes.entry(self.pid).or_default();
        process.round = round;
        process.signal.take_if(|signal| *signal == Signal::Handled);
    }

    /// Whether it was killed, or its mount has ended: it has no more to do than to exit.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let state = self.kernel.0.borrow();
        let killed = |at: &super::Running| at.signal == Some(Signal::Kill);
        state.aborted || state.processes.get(&self.pid).is_none_or(killed)
    }

    /// Waits for a while.
    pub async fn sleep(&self, ticks: u64) {
        let end = self.kernel.0.borrow().ticks + ticks;
        until(|| {
            let state = self.kernel.0.borrow();
            (state.ticks >= end || state.aborted).then_some(())
        })
        .await;
    }

    fn send(&self, op: Op, data: Vec<u8>) -> Result<u64> {
        let round = self.kernel.0.borrow().processes.get(&self.pid).and_then(|at| at.round);
        // What is above a round's directory isn't part of the round.
        let above = matches!(&op, Op::Lookup { dir: ROOT, .. } | Op::Mkdir { dir: ROOT, .. });
        let round = round.filter(|_| !above);
        self.kernel.send(Some(self.pid), round, op, data).ok_or(Failure::NotConnected)
    }

    async fn ask(&self, op: Op) -> Result<Done> {
        self.ask_with(op, Vec::new()).await
    }

    async fn ask_with(&self, op: Op, data: Vec<u8>) -> Result<Done> {
        let id = self.send(op, data)?;
        self.kernel.answer(self.pid, id).await
    }

    async fn lock(&self, pin: &Pin, hold: Hold) -> Held {
        self.kernel.lock(Some(pin.ino), hold).await
    }

    /// Finds a name in a directory, whose lock is held already, or not.
    async fn lookup(&self, dir: &Pin, name: &NameBuf, locked: bool) -> Result<Option<(Pin, Attr)>> {
        let key = (dir.ino, name.clone());
        let op = Op::Lookup { dir: dir.ino, name: name.clone() };
        let mut held = None;
        loop {
            let known = self.kernel.0.borrow().names.get(&key).copied();
            if let Some(ino) = known {
                let pin = self.kernel.pin(ino);
                if let Some(attr) = self.revalidate(&pin, op.clone()).await? {
                    return Ok(Some((pin, attr)));
                }
                // Only if it is still that inode which has the name.
                let mut state = self.kernel.0.borrow_mut();
                if state.names.get(&key) == Some(&ino) {
                    state.drop_name(dir.ino, name);
                }
                continue;
            }
            if !locked && held.is_none() {
                held = Some(self.lock(dir, Hold::Shared).await);
                continue;
            }
            if self.kernel.0.borrow().in_lookup.contains(&key) {
                let over = || !self.kernel.0.borrow().in_lookup.contains(&key);
                until(|| over().then_some(())).await;
                continue;
            }
            self.kernel.0.borrow_mut().in_lookup.insert(key.clone());
            let found = self.ask(op).await;
            let mut state = self.kernel.0.borrow_mut();
            state.in_lookup.remove(&key);
            state.moves.note();
            drop(state);
            return match found {
                Ok(done) => self.learn(dir, name, &entry(&done)).map(Some),
                Err(Failure::Op(OpError::NotFound)) => Ok(None),
                Err(failure) => Err(failure),
            };
        }
    }

    /// Asks whether a name is still this inode's.
    async fn revalidate(&self, pin: &Pin, op: Op) -> Result<Option<Attr>> {
        match self.ask(op).await {
            Ok(done) => {
                let attr = entry(&done);
                let mut state = self.kernel.0.borrow_mut();
                if attr.ino == pin.ino {
                    state.count_lookup(&attr);
                    return Ok(Some(attr));
                }
                state.forgets.push_back((attr.ino, 1));
                Ok(None)
            }
            Err(
                failure @ (Failure::Op(OpError::Interrupted | OpError::NoMemory)
                | Failure::Interrupted
                | Failure::NotConnected),
            ) => Err(failure),
            Err(Failure::Op(_)) => Ok(None),
        }
    }

    /// An answer says that the name is this inode's, and has counted a lookup.
    fn learn(&self, dir: &Pin, name: &NameBuf, attr: &Attr) -> Result<(Pin, Attr)> {
        let mut state = self.kernel.0.borrow_mut();
        state.count_lookup(attr);
        if attr.kind == FileKind::Directory {
            state.check_move(dir.ino, attr.ino).map_err(Failure::Op)?;
        }
        if state.names.get(&(dir.ino, name.clone())) != Some(&attr.ino) {
            state.drop_name(dir.ino, name);
            state.give_name(dir.ino, name, attr.ino, attr.kind);
        }
        drop(state);
        Ok((self.kernel.pin(attr.ino), *attr))
    }

    async fn walk(&self, path: &[NameBuf]) -> Result<(Pin, FileKind)> {
        let mut at = (self.kernel.pin(ROOT), FileKind::Directory);
        for name in path {
            if at.1 != FileKind::Directory {
                return failed(OpError::NotDirectory);
            }
            let found = self.lookup(&at.0, name, false).await?;
            let (pin, attr) = found.ok_or(Failure::Op(OpError::NotFound))?;
            at = (pin, attr.kind);
        }
        Ok(at)
    }

    /// The directory of a path's last name, and that name.
    async fn parent<'p>(&self, path: &'p Path) -> Result<(Pin, &'p NameBuf)> {
        let (name, directories) = path.split_last().expect("a path has names");
        match self.walk(directories).await? {
            (dir, FileKind::Directory) => Ok((dir, name)),
            _ => failed(OpError::NotDirectory),
        }
    }

    async fn retried<T>(&self, call: impl AsyncFn() -> Result<T>) -> Result<T> {
        match call().await {
            Err(Failure::Op(OpError::Stale)) => call().await,
            result => result,
        }
    }

    /// Makes a directory.
    pub async fn mkdir(&self, path: &Path) -> Result<Attr> {
        let mode = NewMode { permissions: 0o755, umask: 0 };
        self.retried(async || self.make(path, |dir, name| Op::Mkdir { dir, name, mode }, &[]).await)
            .await
    }

    /// Makes a symlink.
    pub async fn symlink(&self, path: &Path, target: &[u8]) -> Result<Attr> {
        self.retried(async || self.make(path, |dir, name| Op::Symlink { dir, name }, target).await)
            .await
    }

    async fn make(
        &self,
        path: &Path,
        op: impl Fn(Ino, NameBuf) -> Op,
        data: &[u8],
    ) -> Result<Attr> {
        let (dir, name) = self.parent(path).await?;
        let _held = self.lock(&dir, Hold::Exclusive).await;
        if self.lookup(&dir, name, true).await?.is_some() {
            return failed(OpError::Exists);
        }
        let done = self.ask_with(op(dir.ino, name.clone()), data.to_vec()).await?;
        self.learn(&dir, name, &entry(&done)).map(|(_, attr)| attr)
    }

    /// Gives an inode another name.
    pub async fn link(&self, path: &Path, to: &Path) -> Result<()> {
        self.retried(async || {
            let (pin, kind) = self.walk(path).await?;
            let (dir, name) = self.parent(to).await?;
            let _held = self.lock(&dir, Hold::Exclusive).await;
            if self.lookup(&dir, name, true).await?.is_some() {
                return failed(OpError::Exists);
            }
            if kind == FileKind::Directory {
                return failed(OpError::NotPermitted);
            }
            let _inode = self.lock(&pin, Hold::Exclusive).await;
            let op = Op::Link { ino: pin.ino, dir: dir.ino, name: name.clone() };
            let done = self.ask(op).await?;
            self.learn(&dir, name, &entry(&done)).map(|_| ())
        })
        .await
    }

    /// Opens a file, and makes it first if asked to.
    pub async fn open(&self, path: &Path, flags: OpenFlags) -> Result<File> {
        self.retried(async || {
            let (dir, name) = self.parent(path).await?;
            let known = self.kernel.0.borrow().names.contains_key(&(dir.ino, name.clone()));
            let exclusive = flags.create && flags.exclusive;
            let found = if (known || !flags.create) && !exclusive {
                self.lookup(&dir, name, false).await?
            } else {
                None
            };
            let found = match found {
                Some(found) => Some(found),
                None if flags.create => {
                    let _held = self.lock(&dir, Hold::Exclusive).await;
                    match self.lookup(&dir, name, true).await? {
                        Some(_) if flags.exclusive => return failed(OpError::Exists),
                        Some(found) => Some(found),
                        None => return self.create(&dir, name, flags).await,
                    }
                }
                None => None,
            };
            let (pin, attr) = found.ok_or(Failure::Op(OpError::NotFound))?;
            match attr.kind {
                FileKind::Regular => self.open_inode(pin, flags).await,
                FileKind::Symlink => failed(OpError::Loop),
                _ => failed(OpError::IsDirectory),
            }
        })
        .await
    }

    async fn create(&self, dir: &Pin, name: &NameBuf, flags: OpenFlags) -> Result<File> {
        let op = Op::Create {
            dir: dir.ino,
            name: name.clone(),
            mode: NewMode { permissions: 0o644, umask: 0 },
            how: how(flags),
            exclusive: flags.exclusive,
        };
        let Reply::Created(attr, handle) = self.ask(op).await?.reply else {
            panic!("not created");
        };
        let (pin, _) = self.learn(dir, name, &attr)?;
        Ok(File { pin, handle, append: flags.append })
    }

    async fn open_inode(&self, pin: Pin, flags: OpenFlags) -> Result<File> {
        let done = self.ask(Op::Open { ino: pin.ino, how: how(flags) }).await?;
        let Reply::Opened(handle) = done.reply else { panic!("not opened") };
        Ok(File { pin, handle, append: flags.append })
    }

    /// Closes a file. It is closed also if that fails.
    pub async fn close(&self, file: File) -> Result<()> {
        let (ino, handle) = (file.pin.ino, file.handle);
        drop(self.lock(&file.pin, Hold::Exclusive).await);
        let flushed = self.ask(Op::Flush { ino, handle }).await;
        self.release(Op::Release { ino, handle });
        flushed.map(|_| ())
    }

    /// Asks for what nobody waits for.
    fn release(&self, op: Op) {
        let round = self.kernel.0.borrow().processes.get(&self.pid).and_then(|at| at.round);
        // Without a connection there is nothing to be closed any more.
        let _ = self.kernel.send(None, round, op, Vec::new());
    }

    /// Reads; each piece by a request of its own, all at once.
    pub async fn read(&self, file: &File, at: u64, len: u32) -> Result<Vec<u8>> {
        let (ino, handle) = (file.pin.ino, file.handle);
        let mut pieces = Vec::new();
        for from in (0..len).step_by(IO_BYTES as usize) {
            let len = IO_BYTES.min(len - from);
            let op = Op::Read { ino, handle, at: at + u64::from(from), len };
            pieces.push((len, self.send(op, Vec::new())));
        }
        let (mut bytes, mut whole, mut error) = (Vec::new(), true, None);
        for (len, sent) in pieces {
            let read = match sent {
                Ok(id) => self.kernel.answer(self.pid, id).await,
                Err(failure) => Err(failure),
            };
            match read {
                Ok(done) if whole => {
                    whole = done.data.len() == len as usize;
                    bytes.extend(done.data);
                }
                Ok(_) => {}
                Err(failure) => {
                    whole = false;
                    error = error.or(Some(failure));
                }
            }
        }
        match error {
            Some(failure) if bytes.is_empty() => Err(failure),
            _ => Ok(bytes),
        }
    }

    /// Writes, a piece after the other, under the file's lock. Where a piece of an append goes is
    /// the mount's to say: the kernel sends an offset along, from the size that it remembers, and
    /// the front-end takes no notice of it.
    pub async fn write(&self, file: &File, at: u64, data: &[u8]) -> Result<usize> {
        let (ino, handle) = (file.pin.ino, file.handle);
        let _held = self.lock(&file.pin, Hold::Exclusive).await;
        let mut written = 0;
        for piece in data.chunks(IO_BYTES as usize) {
            let at = if file.append { WriteAt::End } else { WriteAt::Offset(at + written as u64) };
            let op = Op::Write { ino, handle, at, len: piece.len() as u32, strip: false };
            let done = match self.ask_with(op, piece.to_vec()).await {
                Ok(done) => done,
                Err(_) if written > 0 => break,
                Err(failure) => return Err(failure),
            };
            let Reply::Count(count) = done.reply else { panic!("not written") };
            written += count as usize;
            if (count as usize) < piece.len() {
                break;
            }
        }
        Ok(written)
    }

    /// Makes a file durable.
    pub async fn fsync(&self, file: &File) -> Result<()> {
        let _held = self.lock(&file.pin, Hold::Exclusive).await;
        let (ino, handle) = (file.pin.ino, file.handle);
        self.ask(Op::Fsync { ino, handle, data_only: false }).await.map(|_| ())
    }

    /// Gives an open file another size.
    pub async fn ftruncate(&self, file: &File, size: u64) -> Result<()> {
        let _held = self.lock(&file.pin, Hold::Exclusive).await;
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        let op = Op::Setattr { ino: file.pin.ino, handle: Some(file.handle), set };
        self.ask(op).await.map(|_| ())
    }

    /// An open file's attributes.
    pub async fn fstat(&self, file: &File) -> Result<()> {
        self.ask(Op::Getattr { ino: file.pin.ino }).await.map(|_| ())
    }

    /// Attributes.
    pub async fn stat(&self, path: &Path) -> Result<()> {
        self.retried(async || {
            let (pin, _) = self.walk(path).await?;
            self.ask(Op::Getattr { ino: pin.ino }).await.map(|_| ())
        })
        .await
    }

    /// Changes permissions.
    pub async fn chmod(&self, path: &Path, permissions: u16) -> Result<()> {
        self.retried(async || {
            let (pin, _) = self.walk(path).await?;
            let _held = self.lock(&pin, Hold::Exclusive).await;
            let set = SetAttr { permissions: Some(permissions), ..SetAttr::default() };
            self.ask(Op::Setattr { ino: pin.ino, handle: None, set }).await.map(|_| ())
        })
        .await
    }

    /// A symlink's target.
    pub async fn readlink(&self, path: &Path) -> Result<Vec<u8>> {
        self.retried(async || {
            let (pin, kind) = self.walk(path).await?;
            if kind != FileKind::Symlink {
                return failed(OpError::Invalid);
            }
            self.ask(Op::Readlink { ino: pin.ino }).await.map(|done| done.data)
        })
        .await
    }

    /// Removes a name: of a directory, or of something else.
    pub async fn remove(&self, path: &Path, directory: bool) -> Result<()> {
        self.retried(async || {
            let (dir, name) = self.parent(path).await?;
            let _held = self.lock(&dir, Hold::Exclusive).await;
            let found = self.lookup(&dir, name, true).await?;
            let (pin, attr) = found.ok_or(Failure::Op(OpError::NotFound))?;
            match (directory, attr.kind) {
                (true, FileKind::Directory) => {}
                (true, _) => return failed(OpError::NotDirectory),
                (false, FileKind::Directory) => return failed(OpError::IsDirectory),
                (false, _) => {}
            }
            let _inode = self.lock(&pin, Hold::Exclusive).await;
            let (dir_ino, name) = (dir.ino, name.clone());
            let op = match directory {
                true => Op::Rmdir { dir: dir_ino, name: name.clone() },
                false => Op::Unlink { dir: dir_ino, name: name.clone() },
            };
            self.ask(op).await?;
            self.kernel.0.borrow_mut().drop_name(dir_ino, &name);
            Ok(())
        })
        .await
    }

    /// Moves a name.
    pub async fn rename(&self, path: &Path, to: &Path, mode: RenameMode) -> Result<()> {
        self.retried(async || {
            let (dir, name) = self.parent(path).await?;
            let (to_dir, to_name) = self.parent(to).await?;
            let _directories = self.lock_directories(&dir, &to_dir).await;
            let found = self.lookup(&dir, name, true).await?;
            let replaced = self.lookup(&to_dir, to_name, true).await?;
            let (pin, attr) = found.ok_or(Failure::Op(OpError::NotFound))?;
            self.check_rename(&dir, &pin, &to_dir, replaced.as_ref().map(|(pin, _)| pin), mode)?;
            if replaced.as_ref().is_some_and(|(other, _)| other.ino == pin.ino) {
                return Ok(());
            }
            let mut held = Vec::new();
            let across = dir.ino != to_dir.ino;
            for ino in rename_locks(across, mode, (&pin, &attr), replaced.as_ref()) {
                held.push(self.kernel.lock(Some(ino), Hold::Exclusive).await);
            }
            let op = Op::Rename {
                dir: dir.ino,
                name: name.clone(),
                to_dir: to_dir.ino,
                to_name: to_name.clone(),
                mode,
            };
            self.ask(op).await?;
            let mut state = self.kernel.0.borrow_mut();
            state.names.remove(&(dir.ino, name.clone()));
            match (mode, &replaced) {
                (RenameMode::Exchange, Some((other, attr))) => {
                    state.give_name(dir.ino, name, other.ino, attr.kind);
                }
                (_, _) => state.drop_name(to_dir.ino, to_name),
            }
            state.give_name(to_dir.ino, to_name, pin.ino, attr.kind);
            Ok(())
        })
        .await
    }

    fn check_rename(
        &self,
        dir: &Pin,
        pin: &Pin,
        to_dir: &Pin,
        replaced: Option<&Pin>,
        mode: RenameMode,
    ) -> Result<()> {
        let state = self.kernel.0.borrow();
        match (mode, replaced) {
            (RenameMode::NoReplace, Some(_)) => return failed(OpError::Exists),
            (RenameMode::Exchange, None) => return failed(OpError::NotFound),
            (_, _) => {}
        }
        if state.is_within(to_dir.ino, pin.ino) {
            return failed(OpError::Invalid);
        }
        match replaced {
            Some(other) if state.is_within(dir.ino, other.ino) => match mode {
                RenameMode::Exchange => failed(OpError::Invalid),
                RenameMode::Replace | RenameMode::NoReplace => failed(OpError::NotEmpty),
            },
            Some(_) | None => Ok(()),
        }
    }

    /// Locks both directories of a rename, and for two different ones keeps other such renames out.
    async fn lock_directories(&self, dir: &Pin, to_dir: &Pin) -> Vec<Held> {
        if dir.ino == to_dir.ino {
            return vec![self.lock(dir, Hold::Exclusive).await];
        }
        let mut held = vec![self.kernel.lock(None, Hold::Exclusive).await];
        let to_above = self.kernel.0.borrow().is_within(dir.ino, to_dir.ino);
        let order = if to_above { [to_dir, dir] } else { [dir, to_dir] };
        for pin in order {
            held.push(self.lock(pin, Hold::Exclusive).await);
        }
        held
    }

    /// Lists a directory.
    pub async fn list(&self, path: &Path) -> Result<usize> {
        self.retried(async || {
            let (dir, kind) = self.walk(path).await?;
            if kind != FileKind::Directory {
                return failed(OpError::NotDirectory);
            }
            let Reply::Opened(handle) = self.ask(Op::Opendir { ino: dir.ino }).await?.reply else {
                panic!("not opened");
            };
            let listed = self.list_open(&dir, handle).await;
            self.release(Op::Releasedir { ino: dir.ino, handle });
            listed
        })
        .await
    }

    async fn list_open(&self, dir: &Pin, handle: Handle) -> Result<usize> {
        let (mut from, mut count) = (0, 0);
        loop {
            let _held = self.lock(dir, Hold::Shared).await;
            let op = Op::Readdir { ino: dir.ino, handle, from, plus: true };
            let list = self.ask(op).await?.data;
            let Some(last) = EntryReader::new(&list).last() else { return Ok(count) };
            from = last.next;
            for listed in EntryReader::new(&list).filter(|at| !matches!(at.name, b"." | b"..")) {
                count += 1;
                let name = NameBuf::parse(listed.name).expect("names are names");
                let attr = listed.attr.expect("attributes were asked for");
                if self.kernel.0.borrow().in_lookup.contains(&(dir.ino, name.clone())) {
                    self.kernel.0.borrow_mut().forgets.push_back((attr.ino, 1));
                } else {
                    // One that was moved meanwhile isn't remembered.
                    let _ = self.learn(dir, &name, &attr);
                }
            }
        }
    }
}

fn how(flags: OpenFlags) -> OpenHow {
    OpenHow { access: OpenAccess::ReadWrite, truncate: flags.truncate, strip: false }
}

/// What a rename locks below the two directories, in this order: directories first, as whoever
/// makes a link to a file has the lock of a directory and wants that of the file. A directory that
/// stays in the one where it is isn't locked.
fn rename_locks(
    across: bool,
    mode: RenameMode,
    (pin, attr): (&Pin, &Attr),
    replaced: Option<&(Pin, Attr)>,
) -> Vec<Ino> {
    let is_file = |attr: &Attr| attr.kind != FileKind::Directory;
    let mut locked = Vec::new();
    if across || is_file(attr) {
        locked.push((is_file(attr), pin.ino));
    }
    if let Some((pin, attr)) = replaced
        && (across || mode != RenameMode::Exchange || is_file(attr))
    {
        locked.push((is_file(attr), pin.ino));
    }
    locked.sort_unstable();
    locked.into_iter().map(|(_, ino)| ino).collect()
}
