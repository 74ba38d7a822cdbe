//! How much a mount may hold, and why that is enough.

use crate::client::commit::CommitLimits;
use crate::client::compact::{CompactLimits, CompactLimitsError};
use crate::client::loans::LoanLimits;
use crate::client::reader::{ReaderLimits, ReaderLimitsError};
use crate::client::{fs, items};
use crate::lock;
use crate::lsm::window::WindowLimits;
use crate::net::{LineLimits, LinkLimits, SessionLimits};
use core::time::Duration;

/// Sizes of a mount's pools.
///
/// What they take is what [`Mount::carve`](super::Mount::carve) says of a measuring arena.
#[derive(Debug, Clone, Copy)]
pub struct MountLimits {
    /// Requests at a time, parked ones included.
    pub requests: u32,
    /// Inodes without names that are deleted at a time.
    pub deletions: u32,
    /// Blocks in which zeros are written at a time.
    pub zeroings: u32,
    /// The item cache.
    pub items: items::Limits,
    /// The lock client.
    pub locks: lock::client::Limits,
    /// Inodes and handles in use.
    pub fs: fs::Limits,
    /// The reader.
    pub reader: ReaderLimits,
    /// Blocks for file data that are borrowed at a time.
    pub data_blocks: u32,
    /// Lock groups of inode numbers: one for each directory that things are made in.
    pub ino_groups: u32,
    /// Of those, how many nobody uses yet after a request.
    pub ino_spare: u32,
    /// What is merged for the server.
    pub compaction: CompactLimits,
    /// The connection to the server.
    pub link: LinkLimits,
}

/// Why limits can't work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitsError {
    /// There is no slot for a request, a deletion, or a block to write zeros in.
    Slots,
    /// The item cache could come to a halt.
    Items(items::LimitsError),
    /// The largest change doesn't fit into the item cache.
    Change,
    /// So could the locks.
    Locks(lock::client::LimitsError),
    /// There are fewer operations, or locks for one of them, than are needed.
    Holds,
    /// No inode or handle could be used.
    Fs,
    /// The reader could come to a halt.
    Reader(ReaderLimitsError),
    /// Nothing could be borrowed, or no directory be made.
    Loans,
    /// What is merged for the server could come to a halt.
    Compaction(CompactLimitsError),
    /// The connection's buffers don't hold every record, or nothing could be asked or answered.
    Link,
}

impl MountLimits {
    /// For a hosted mount: some 120 MiB.
    pub const DEFAULT: MountLimits = MountLimits {
        data_blocks: 1 << 14,
        ino_groups: LoanLimits::GROUPS_MAX,
        ino_spare: 4,
        ..MountLimits::of(
            128,
            items::Limits {
                items: 1 << 18,
                chunks: 1 << 18,
                dirty_items: 1 << 15,
                dirty_chunks: 1 << 15,
                ranges: 1 << 15,
                fills: 32,
                change: fs::change_needs(),
            },
            fs::Limits { inodes: 1 << 18, handles: 1 << 16 },
            ReaderLimits {
                fills: 32,
                frames: 12_288,
                ahead: 512,
                window: WindowLimits { items: 1024, bytes: 1 << 16 },
            },
        )
    };

    /// For tests: little of everything.
    #[must_use]
    pub const fn small() -> MountLimits {
        let items = items::Limits {
            items: 4096,
            chunks: 8192,
            dirty_items: 1024,
            dirty_chunks: 3072,
            ranges: 1024,
            fills: 4,
            change: fs::change_needs(),
        };
        let window = WindowLimits { items: 64, bytes: 1 << 14 };
        let reader = ReaderLimits { fills: 4, frames: 256, ahead: 32, window };
        MountLimits::of(16, items, fs::Limits { inodes: 1024, handles: 256 }, reader)
    }

    const fn of(
        requests: u32,
        items: items::Limits,
        fs: fs::Limits,
        reader: ReaderLimits,
    ) -> MountLimits {
        let deletions = 2;
        let ops = requests + deletions + 1;
        let holds = ops * fs::HOLDS_MAX as u32;
        let locks = lock::client::Limits {
            ops,
            holds_per_op: fs::HOLDS_MAX as u32,
            locks: 2 * holds + 1,
            idle: holds,
            grace: Duration::from_millis(50),
            linger: Duration::from_millis(5),
            retry: Duration::from_millis(200),
            retries: 50,
        };
        let session = SessionLimits { asks_max: 32, answers_max: 16 };
        let line = LineLimits {
            recv_bytes: 2 * LineLimits::MIN.recv_bytes,
            send_bytes: 2 * LineLimits::MIN.send_bytes,
        };
        MountLimits {
            requests,
            deletions,
            zeroings: 4,
            items,
            locks,
            fs,
            reader,
            data_blocks: 256,
            ino_groups: 16,
            ino_spare: 2,
            compaction: CompactLimits { at_once: 2, frames: 64 },
            link: LinkLimits { session, line },
        }
    }

    /// Checks what must hold.
    pub fn validate(&self) -> Result<(), LimitsError> {
        if [self.requests, self.deletions, self.zeroings].contains(&0) {
            return Err(LimitsError::Slots);
        }
        self.items.validate().map_err(LimitsError::Items)?;
        if !fs::change_needs().fits(self.items.change) {
            return Err(LimitsError::Change);
        }
        self.locks.validate().map_err(LimitsError::Locks)?;
        // One operation beside those in slots is for what is forgotten.
        let ops = self.requests.saturating_add(self.deletions).saturating_add(1);
        if self.locks.ops < ops || self.locks.holds_per_op < fs::HOLDS_MAX as u32 {
            return Err(LimitsError::Holds);
        }
        // Each operation works on up to six inodes, beside those that are open. What the kernel
        // only knows makes room.
        let inodes = ops.saturating_mul(6).saturating_add(self.fs.handles);
        if self.fs.inodes < inodes || self.fs.handles == 0 {
            return Err(LimitsError::Fs);
        }
        self.reader.validate().map_err(LimitsError::Reader)?;
        self.loans().validate().map_err(|_| LimitsError::Loans)?;
        self.compaction.validate().map_err(LimitsError::Compaction)?;
        let SessionLimits { asks_max, answers_max } = self.link.session;
        if !self.link.line.is_valid() || asks_max == 0 || answers_max == 0 {
            return Err(LimitsError::Link);
        }
        Ok(())
    }

    /// What a transaction may hold: the whole dirty budget.
    pub(super) fn commit(&self) -> CommitLimits {
        let items::Limits { dirty_items, dirty_chunks, .. } = self.items;
        CommitLimits { dirty_items, dirty_chunks }
    }

    /// Who reads only, writes nothing for others either.
    pub(super) fn compact(&self, read_only: bool) -> CompactLimits {
        let CompactLimits { at_once, frames } = self.compaction;
        CompactLimits { at_once: if read_only { 0 } else { at_once }, frames }
    }

    pub(super) fn loans(&self) -> LoanLimits {
        LoanLimits {
            data_blocks: self.data_blocks,
            ino_groups: self.ino_groups,
            ino_spare: self.ino_spare,
            commit: self.commit(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::MountLimits;

    #[test]
    fn the_limits_that_are_offered_hold() {
        assert_eq!(MountLimits::DEFAULT.validate(), Ok(()));
        assert_eq!(MountLimits::small().validate(), Ok(()));
    }
}
