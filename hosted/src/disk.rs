//! The shared device as a file or block device, with threads that do the transfers.
//!
//! # Invariants
//!
//! * Every request that was taken completes exactly once; its buffer is with the request, then with
//!   one thread, then with the completion.
//! * A flush covers every write that had *completed* before the flush was submitted: nothing is
//!   ordered between requests in flight, as the hal promises nothing there.
//! * All users of a device on one host transfer the same way, directly or through the page cache:
//!   mixed, they would not see each other's writes. Direct is tried first, and what can't do it
//!   (some file systems) can't for any user.
//!
//! What this module deliberately doesn't know: what the blocks hold.

use crate::wait::Bell;
use outrider_hal::{
    BLOCK_BYTES, BlockDevice, BlockNo, BlockOp, BlockRequest, BlockResult, Completion, IoError,
};
use rustix::fs::OFlags;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Transfers that run at one time. A single slow one then holds up nobody.
const THREADS: usize = 8;
/// Requests that may be queued or running.
const QUEUE: usize = 256;

/// How a device is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Writes are refused.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// An open file or block device.
#[derive(Debug)]
pub struct FileDevice {
    shared: Arc<Shared>,
    blocks: u64,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    file: File,
    queues: Mutex<Queues>,
    work: Condvar,
    bell: Bell,
}

#[derive(Debug, Default)]
struct Queues {
    submitted: VecDeque<BlockRequest<'static>>,
    completed: VecDeque<Completion<'static>>,
    running: usize,
    closing: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        // A thread that panicked here holds no half-made state: each critical section is one push
        // or pop.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a file for block transfers, directly where its file system can.
pub fn open_file(path: &Path, access: Access) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(access == Access::ReadWrite);
    let direct = options.clone().custom_flags(OFlags::DIRECT.bits().cast_signed()).open(path);
    match direct {
        Err(error) if error.kind() == ErrorKind::InvalidInput => options.open(path),
        opened => opened,
    }
}

/// Size of an open file or block device in whole blocks.
pub fn count_blocks(mut file: &File) -> io::Result<u64> {
    Ok(file.seek(SeekFrom::End(0))? / BLOCK_BYTES as u64)
}

impl FileDevice {
    /// Opens the device. The bell rings when there are completions.
    pub fn open(path: &Path, access: Access, bell: Bell) -> io::Result<FileDevice> {
        let file = open_file(path, access)?;
        let blocks = count_blocks(&file)?;
        let shared = Arc::new(Shared {
            file,
            queues: Mutex::new(Queues::default()),
            work: Condvar::new(),
            bell,
        });
        let mut device = FileDevice { shared, blocks, threads: Vec::with_capacity(THREADS) };
        for index in 0..THREADS {
            let shared = Arc::clone(&device.shared);
            let thread = std::thread::Builder::new()
                .name(format!("disk-{index}"))
                .spawn(move || transfer_all(&shared))?;
            device.threads.push(thread);
        }
        Ok(device)
    }
}

impl Drop for FileDevice {
    /// Waits for the transfers that are running; those still queued are dropped, as if the node had
    /// stopped before it submitted them.
    fn drop(&mut self) {
        let mut queues = self.shared.lock();
        queues.closing = true;
        queues.submitted.clear();
        drop(queues);
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A transfer thread that panicked has been reported by the panic itself.
            let _ = thread.join();
        }
    }
}

impl BlockDevice<'static> for FileDevice {
    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn submit(&mut self, request: BlockRequest<'static>) -> Result<(), BlockRequest<'static>> {
        let mut queues = self.shared.lock();
        if queues.submitted.len() + queues.running >= QUEUE {
            return Err(request);
        }
        if !is_inside(&request.op, self.blocks) {
            let BlockRequest { tag, op } = request;
            queues.completed.push_back(Completion { tag, op, result: Err(IoError::OutOfRange) });
            drop(queues);
            self.shared.bell.ring();
            return Ok(());
        }
        queues.submitted.push_back(request);
        drop(queues);
        self.shared.work.notify_one();
        Ok(())
    }

    fn poll(&mut self) -> Option<Completion<'static>> {
        self.shared.lock().completed.pop_front()
    }
}

fn is_inside(op: &BlockOp<'_>, blocks: u64) -> bool {
    match op {
        BlockOp::Read(blkno, _) | BlockOp::Write(blkno, _) => blkno.0 < blocks,
        BlockOp::Flush => true,
    }
}

fn transfer_all(shared: &Shared) {
    loop {
        let mut queues = shared.lock();
        let mut request = loop {
            if queues.closing {
                return;
            }
            match queues.submitted.pop_front() {
                Some(request) => break request,
                None => {
                    queues = shared.work.wait(queues).unwrap_or_else(PoisonError::into_inner);
                }
            }
        };
        queues.running += 1;
        drop(queues);
        let result = transfer(&shared.file, &mut request.op);
        let mut queues = shared.lock();
        queues.running -= 1;
        let first = queues.completed.is_empty();
        queues.completed.push_back(Completion { tag: request.tag, op: request.op, result });
        drop(queues);
        if first {
            shared.bell.ring();
        }
    }
}

fn transfer(file: &File, op: &mut BlockOp<'static>) -> BlockResult {
    let at = |blkno: &BlockNo| blkno.0 * BLOCK_BYTES as u64;
    let done = match op {
        BlockOp::Read(blkno, block) => file.read_exact_at(&mut block.0, at(blkno)),
        BlockOp::Write(blkno, block) => file.write_all_at(&block.0, at(blkno)),
        BlockOp::Flush => file.sync_data(),
    };
    done.map_err(|error| transfer_error(&error))
}

/// What to call an error of a transfer.
pub(crate) fn transfer_error(error: &io::Error) -> IoError {
    match error.kind() {
        ErrorKind::UnexpectedEof => IoError::OutOfRange,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => IoError::Unsupported,
        _ if error.raw_os_error() == Some(rustix::io::Errno::BADF.raw_os_error()) => {
            IoError::Unsupported
        }
        _ => IoError::Device,
    }
}

#[cfg(test)]
mod tests {
    use super::{Access, FileDevice};
    use crate::wait::{Bell, wait};
    use outrider_hal::{
        Block, BlockDevice, BlockNo, BlockOp, BlockRequest, Completion, Instant, IoError, Tag,
    };

    const BLOCKS: u64 = 64;

    struct Rig {
        device: FileDevice,
        bell: Bell,
        _dir: tempfile::TempDir,
    }

    fn rig(access: Access) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        std::fs::File::create(&path).unwrap().set_len(BLOCKS * 4096 + 100).unwrap();
        let bell = Bell::new().unwrap();
        Rig { device: FileDevice::open(&path, access, bell.clone()).unwrap(), bell, _dir: dir }
    }

    impl Rig {
        fn submit(&mut self, tag: u64, op: BlockOp<'static>) {
            self.device.submit(BlockRequest { tag: Tag(tag), op }).unwrap();
        }

        fn next(&mut self) -> Completion<'static> {
            loop {
                if let Some(completion) = self.device.poll() {
                    return completion;
                }
                let until = Instant(10_000_000_000);
                wait(&self.bell, &[], Instant(0), Some(until)).unwrap();
            }
        }
    }

    fn block(byte: u8) -> &'static mut Block {
        Box::leak(Box::new(Block([byte; 4096])))
    }

    #[test]
    fn what_was_written_is_read_with_many_in_flight() {
        let mut rig = rig(Access::ReadWrite);
        assert_eq!(rig.device.blocks(), BLOCKS);
        for index in 0..BLOCKS {
            rig.submit(index, BlockOp::Write(BlockNo(index), block(index as u8)));
        }
        for _ in 0..BLOCKS {
            assert_eq!(rig.next().result, Ok(()));
        }
        rig.submit(0, BlockOp::Flush);
        assert_eq!(rig.next().result, Ok(()));
        for index in 0..BLOCKS {
            rig.submit(index, BlockOp::Read(BlockNo(index), block(0xff)));
        }
        for _ in 0..BLOCKS {
            let Completion { tag, op: BlockOp::Read(blkno, block), result } = rig.next() else {
                panic!("not a read");
            };
            assert_eq!((blkno.0, result), (tag.0, Ok(())));
            assert_eq!(block.0, [tag.0 as u8; 4096]);
        }
    }

    #[test]
    fn errors_come_back_with_the_buffer() {
        let mut rig = rig(Access::ReadOnly);
        rig.submit(1, BlockOp::Read(BlockNo(BLOCKS), block(0)));
        assert_eq!(rig.next().result, Err(IoError::OutOfRange));
        rig.submit(2, BlockOp::Write(BlockNo(0), block(0)));
        assert_eq!(rig.next().result, Err(IoError::Unsupported));
    }
}
