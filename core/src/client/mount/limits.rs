//! How much a mount may hold, and why that is enough.

use crate::client::{fs, items};
use crate::lock;
use core::time::Duration;

/// Sizes of a mount's pools.
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
}

impl MountLimits {
    /// For a hosted mount.
    pub const DEFAULT: MountLimits = MountLimits::of(
        128,
        items::Limits {
            items: 1 << 18,
            chunks: 1 << 18,
            dirty_items: 1 << 16,
            dirty_chunks: 1 << 16,
            ranges: 1 << 15,
            fills: 32,
            change: fs::change_needs(),
        },
        fs::Limits { inodes: 1 << 18, handles: 1 << 16 },
    );

    /// For tests: as small as is useful.
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
        MountLimits::of(16, items, fs::Limits { inodes: 1024, handles: 256 })
    }

    const fn of(requests: u32, items: items::Limits, fs: fs::Limits) -> MountLimits {
        let deletions = 2;
        let ops = requests + deletions + 1;
        let locks = lock::client::Limits {
            ops,
            holds_per_op: fs::HOLDS_MAX as u32,
            locks: 2 * ops * fs::HOLDS_MAX as u32 + 1,
            idle: ops * fs::HOLDS_MAX as u32,
            grace: Duration::from_millis(50),
            linger: Duration::from_millis(5),
            retry: Duration::from_millis(200),
            retries: 50,
        };
        MountLimits { requests, deletions, zeroings: 4, items, locks, fs }
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
        // One slot beside those of requests and deletions is for what is forgotten.
        let ops = self.requests.saturating_add(self.deletions).saturating_add(1);
        if self.locks.ops < ops || self.locks.holds_per_op < fs::HOLDS_MAX as u32 {
            return Err(LimitsError::Holds);
        }
        Ok(())
    }
}
