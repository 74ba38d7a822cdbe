//! What every offline command does with a device: open it, read its super block, run a node on it.
//!
//! # Invariants
//!
//! * Who only reads opens the device read-only.
//! * Who makes a volume holds the device for itself: a block device is opened exclusively, and
//!   either kind is locked. Servers and mounts hold that lock together with each other.
//! * All reading is direct where it can be: the page cache would show what stood on a shared device
//!   before another host wrote to it.
//!
//! What this module deliberately doesn't know: what is read and written.

use super::Failure;
use outrider_core::arena::{Arena, ArenaFull};
use outrider_core::format::layout::{SUPER_BLKNO, spare_blkno};
use outrider_core::format::quorum::LEASE_MS_MAX;
use outrider_core::format::super_block::{
    LEASE_MS_MIN, Super, SuperError, Unverified, recovery_ms_min,
};
use outrider_core::node::{Action, Event, More, Node};
use outrider_hal::{BLOCK_BYTES, Block, BlockDevice, BlockNo, BlockRequest, Clock, Instant};
use outrider_hosted::clock::BootClock;
use outrider_hosted::disk::{Access, FileDevice, open_file};
use outrider_hosted::memory::region;
use outrider_hosted::wait::{Bell, wait};
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// A device or file that is read.
pub(crate) struct Image {
    file: File,
    blocks: u64,
    name: String,
}

/// An error that the system gave for a path.
pub(crate) fn system(path: &Path, doing: &str, error: &io::Error) -> Failure {
    Failure::new(format!("cannot {doing} {}: {error}", path.display()))
}

impl Image {
    /// Opens a device for reading.
    pub(crate) fn open(path: &Path) -> Result<Image, Failure> {
        let file = open_file(path, Access::ReadOnly);
        Image::of(file.map_err(|error| system(path, "open", &error))?, path)
    }

    /// Looks at a device that is open.
    pub(crate) fn of(mut file: File, path: &Path) -> Result<Image, Failure> {
        let kind = file.metadata().map_err(|error| system(path, "look at", &error))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let name = path.display();
            return Err(Failure::new(format!("{name} is neither a block device nor a file")));
        }
        let bytes = file.seek(SeekFrom::End(0)).map_err(|error| system(path, "read", &error))?;
        let blocks = bytes / BLOCK_BYTES as u64;
        Ok(Image { file, blocks, name: path.display().to_string() })
    }

    /// Size in whole blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// What to call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Reads a block.
    pub(crate) fn read(&self, blkno: BlockNo) -> Result<Box<Block>, Failure> {
        let mut block = Box::new(Block::ZERO);
        if blkno.0 >= self.blocks {
            return Err(Failure::new(format!("{} ends before block {blkno}", self.name)));
        }
        let at = blkno.0 * BLOCK_BYTES as u64;
        let read = self.file.read_exact_at(&mut block.0, at);
        read.map_err(|error| {
            Failure::new(format!("cannot read block {blkno} of {}: {error}", self.name))
        })?;
        Ok(block)
    }

    fn verify(&self) -> Result<Result<Super, SuperError>, Failure> {
        if self.blocks <= SUPER_BLKNO.0 {
            return Ok(Err(SuperError::NoVolume));
        }
        let block = self.read(SUPER_BLKNO)?;
        Ok(Unverified::new(&block).verify(SUPER_BLKNO, self.blocks))
    }

    /// The volume on the device, by its super block.
    pub(crate) fn volume(&self) -> Result<Super, Failure> {
        self.verify()?.map_err(|error| self.explain(error))
    }

    /// The volume on the device, by its super block, or by the spare if that is damaged.
    pub(crate) fn volume_or_spare(&self) -> Result<Super, Failure> {
        let error = match self.verify()? {
            Ok(volume) => return Ok(volume),
            Err(error) => error,
        };
        let damaged = match error {
            SuperError::Corrupt(_) => true,
            // Zeroes are no damage: mkfs was interrupted, or somebody wiped it.
            SuperError::NoVolume => {
                self.blocks > SUPER_BLKNO.0 && self.read(SUPER_BLKNO)?.0 != [0; BLOCK_BYTES]
            }
            SuperError::UnknownFeatures(_)
            | SuperError::Truncated { .. }
            | SuperError::Times { .. } => false,
        };
        if !damaged {
            return Err(self.explain(error));
        }
        let at = spare_blkno(self.blocks);
        let spare = self.read(at)?;
        Unverified::new(&spare).verify(at, self.blocks).map_err(|_| self.explain(error))
    }

    fn no_volume(&self) -> Failure {
        let name = &self.name;
        Failure::new(format!("{name} holds no Outrider volume; outrider mkfs makes one"))
    }

    fn explain(&self, error: SuperError) -> Failure {
        let name = &self.name;
        Failure::new(match error {
            SuperError::NoVolume => return self.no_volume(),
            SuperError::Corrupt(what) => format!(
                "the super block of {name} is damaged ({}); outrider check says what is left",
                super::corruption(what)
            ),
            SuperError::UnknownFeatures(bits) => format!(
                "{name} has features that this program doesn't know (incompat {bits:#x}); \
                 use a newer outrider"
            ),
            SuperError::Truncated { volume, device } => format!(
                "{name} has {device} blocks and its volume {volume}: \
                 give the device back the size it had"
            ),
            SuperError::Times { lease_ms, recovery_ms, io_lifetime_ms } => format!(
                "the super block of {name} has times that contradict each other: a lease of \
                 {lease_ms} ms (it is from {LEASE_MS_MIN} to {LEASE_MS_MAX}), a recovery window of \
                 {recovery_ms} ms (with this lease at least {}), {io_lifetime_ms} ms for late I/O \
                 (at least 1); no outrider writes these",
                recovery_ms_min(lease_ms)
            ),
        })
    }
}

/// Holds a device together with the others that use its volume, for as long as what is returned
/// lives: nobody makes another volume on it meanwhile.
pub(crate) fn hold(path: &Path) -> Result<File, Failure> {
    let file = File::open(path).map_err(|error| system(path, "open", &error))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(in_use(path)),
        Err(error) => Err(system(path, "lock", &error.into())),
    }
}

fn in_use(path: &Path) -> Failure {
    Failure::new(format!("{} is in use; stop what uses it first", path.display()))
}

/// Opens a device for writing, and for nobody else. The file is made if `create` says so.
pub(crate) fn open_alone(path: &Path, create: bool) -> Result<File, Failure> {
    let is_device = path.metadata().is_ok_and(|found| found.file_type().is_block_device());
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if is_device {
        options.custom_flags(OFlags::EXCL.bits().cast_signed());
    } else {
        options.create_new(create);
    }
    let file = options.open(path).map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::BUSY.raw_os_error() => in_use(path),
        Some(_) | None => system(path, "open", &error),
    })?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(in_use(path)),
        Err(error) => Err(system(path, "lock", &error.into())),
    }
}

/// Memory for a node, carved by `carve` after it has been measured by it.
pub(crate) fn carved<T>(
    mut carve: impl FnMut(&mut Arena<'static>) -> Result<T, ArenaFull>,
) -> Result<T, Failure> {
    let mut measure = Arena::measuring();
    let full = |ArenaFull| Failure::new("the volume is too large for this machine's memory");
    carve(&mut measure).map_err(full)?;
    let bytes = measure.bytes_used();
    let region = region(bytes).map_err(|_| {
        Failure::new(format!("this takes {} MiB of memory; there is less", bytes >> 20))
    })?;
    let mut arena = Arena::new(region).map_err(full)?;
    carve(&mut arena).map_err(full)
}

/// Runs a node on a device until it has nothing more to do; `each` looks at it now and then.
pub(crate) fn drive<N: Node<'static>>(
    node: &mut N,
    path: &Path,
    access: Access,
    mut each: impl FnMut(&mut N),
) -> Result<(), Failure> {
    let failed = |error: io::Error| system(path, "use", &error);
    let bell = Bell::new().map_err(failed)?;
    let mut device = FileDevice::open(path, access, bell.clone()).map_err(failed)?;
    let mut held: Option<BlockRequest<'static>> = None;
    let mut in_flight = 0u32;
    loop {
        let now = BootClock.now();
        let mut worked = node.step(now) == More::Yes;
        each(node);
        while let Some(request) = held.take().or_else(|| next_request(node)) {
            match device.submit(request) {
                Ok(()) => (in_flight, worked) = (in_flight + 1, true),
                Err(request) => {
                    held = Some(request);
                    break;
                }
            }
        }
        while let Some(completion) = device.poll() {
            (in_flight, worked) = (in_flight - 1, true);
            node.handle(now, Event::Completed(completion));
        }
        if worked {
            continue;
        }
        if in_flight == 0 {
            return Ok(());
        }
        let far = Instant(now.0 + 60_000_000_000);
        wait(&bell, &[], now, Some(far)).map_err(failed)?;
    }
}

fn next_request(node: &mut impl Node<'static>) -> Option<BlockRequest<'static>> {
    match node.poll_action()? {
        Action::Block(request) => Some(request),
        Action::Listen(_) | Action::Unlisten | Action::Connect { .. } | Action::Close(_) => None,
    }
}
