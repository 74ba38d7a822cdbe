//! How much a server may hold, and why that is enough.

use crate::block;
use crate::btree::{CREATES_PER_UPDATE, PINS_PER_READ, PINS_PER_UPDATE};
use crate::format::run::SEGMENT_BLOCKS;
use crate::format::super_block::ClusterLimits;
use crate::lock;
use crate::lsm::choose::{PINS_PER_CHOOSE, Policy};
use crate::lsm::manifest::CHANGE_MAX;
use crate::lsm::merge::PINS_PER_MERGE;
use crate::net::{self, LineLimits, LinksLimits, SessionLimits};
use crate::txn::settle::MARGIN;

/// Sizes of a server's pools, and of what it keeps in shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// The block cache, its requests being those of [`requests`](Self::requests).
    pub cache: block::Limits,
    /// Connections and sessions.
    pub links: LinksLimits,
    /// When runs are merged.
    pub merging: Policy,
    /// With as many runs in level 0 transactions wait for a merge, as long as merging goes on. Far
    /// above `merging.level_0_runs`: until then reading takes longer, which is all that many runs
    /// do.
    pub level_0_max: u64,
    /// Blocks of a merged run at the most: no more than a segment's, and less for tests only.
    pub run_blocks: u64,
    /// Locks.
    pub locks: lock::server::Limits,
    /// Readers of older roots at a time, each of which has a connection of its own.
    pub readers_max: u16,
}

/// Why limits can't work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitsError {
    /// The block cache could come to a halt.
    Cache(block::LimitsError),
    /// So could the connections.
    Links(net::LimitsError),
    /// There are more or fewer requests than can be under way.
    Requests,
    /// The largest plan would not fit: see [`PLAN_PINS`] and [`PLAN_CREATES`].
    Plan,
    /// The commit reserve that a root names would not fit.
    Reserve,
    /// Level 0 would be full before it is merged.
    LevelZero,
    /// A merged run has no blocks, or more than a segment.
    RunBlocks,
    /// The lock server could not go on.
    Locks(lock::server::LimitsError),
    /// A client with a record might find no place among those with locks.
    LockClients,
}

/// Blocks that the largest plan may obtain. A transaction's updates of each tree share the upper
/// part of their paths:
///
/// | for | blocks |
/// |---|---|
/// | 8 runs anywhere in the manifest: paths that share a root | 8 * 5 + 1 |
/// | 5 lists of freed extents, side by side | 6 + 2 |
/// | 12 lists of loans, of one client: two paths, and what a deletion may be merged with | 2 * 16 |
/// | one transaction closed, another opened: two paths, one with its siblings | 16 + 6 |
/// | record and answer, side by side | 6 + 6 |
/// | the reads that came before | 3 * 12 |
/// | | 151 |
///
/// The end of a merge takes more:
///
/// | for | blocks |
/// |---|---|
/// | 30 runs out of the manifest or into it: paths, with what a deletion may be merged with, that share a root | 30 * 15 + 1 |
/// | its list of quarantined extents: a path with its siblings | 16 |
/// | a list of freed extents: a path | 6 |
/// | | 473 |
pub const PLAN_PINS: u32 = 480;
const _: () = assert!(PLAN_PINS > 3 * PINS_PER_UPDATE + 3 * PINS_PER_READ);
const _: () = assert!(PLAN_PINS >= CHANGE_MAX as u32 * (PINS_PER_UPDATE - 1) + 1 + 16 + 6);
const _: () = assert!(PLAN_PINS >= PINS_PER_MERGE && PLAN_PINS >= PINS_PER_CHOOSE);

/// Blocks it may add, each update a node on 6 levels and a root: a transaction's 29, or a merge's
/// 29 runs into the manifest, at least one being taken out, and a list of freed extents.
pub const PLAN_CREATES: u32 = 30 * 7;
const _: () = assert!(PLAN_CREATES >= CHANGE_MAX as u32 * CREATES_PER_UPDATE);

impl ServerLimits {
    /// Limits for what a volume lets its mounts have: of all servers of it the same, so that what
    /// a mount holds from one fits into the next. More than any server can do is as much as any can
    /// do, which [`validate`](Self::validate) or the memory refuses.
    #[must_use]
    pub const fn of(cluster: &ClusterLimits) -> ServerLimits {
        let clients = cluster.clients.get();
        let clients_max = if clients > u16::MAX as u32 { u16::MAX } else { clients as u16 };
        let (half_open_max, guests_max, readers_max) = (8, 4, 2);
        let requests = ServerLimits::requests(clients_max, half_open_max);
        ServerLimits {
            cache: block::Limits {
                // What is dirty, what one plan pins, and a third as much again for what is read.
                frames: 1664,
                // The largest plan, and what settling may change.
                dirty: PLAN_PINS + PLAN_CREATES + MARGIN.dirty,
                pins: PLAN_PINS,
                creates: PLAN_CREATES,
                requests,
                fresh: 128,
                // As many extents as the largest plan and settling may free.
                freed: PLAN_PINS + MARGIN.freed,
            },
            links: LinksLimits {
                clients_max,
                // Readers, and programs that ask for a report.
                guests_max,
                half_open_max,
                session: SessionLimits { asks_max: 16, answers_max: 64 },
                line: LineLimits::MIN,
            },
            merging: Policy::STANDARD,
            level_0_max: 1024,
            run_blocks: SEGMENT_BLOCKS,
            locks: lock::server::Limits {
                // Those with a record, and as many whose locks are still being cleared away.
                clients: 2 * clients_max as u32,
                entries: cluster.locks.get().saturating_add(cluster.locks.get() / 8),
                entries_per_client: cluster.locks_per_client.get(),
                entries_high: cluster.locks.get(),
                reclaims: 64,
            },
            readers_max,
        }
    }

    /// Limits for this many mounts.
    #[must_use]
    pub const fn for_clients(clients_max: u16) -> ServerLimits {
        ServerLimits::of(&ClusterLimits::for_clients(clients_max as u32))
    }

    /// Requests that can be under way at once, as a sum over who has them:
    #[must_use]
    pub const fn requests(clients_max: u16, half_open_max: u16) -> u32 {
        // the store's own, the job that looks after free space or reads the clients' records, the
        // one that chooses what is merged, and the one that merges;
        4
            // of each mount a transaction, a loan, and what it says of a compaction, or what it was
            // lent for one being given back; or its farewell, or its eviction;
            + 3 * clients_max as u32
            // of each connection in the greeting a new record; and as many whose connection has
            // ended since, to be waited for before another takes its place.
            + 2 * half_open_max as u32
    }

    /// Checks what must hold.
    pub fn validate(&self) -> Result<(), LimitsError> {
        self.cache.validate().map_err(LimitsError::Cache)?;
        self.links.validate().map_err(LimitsError::Links)?;
        self.locks.validate().map_err(LimitsError::Locks)?;
        if self.locks.clients < 2 * u32::from(self.links.clients_max) {
            return Err(LimitsError::LockClients);
        }
        let LinksLimits { clients_max, half_open_max, .. } = self.links;
        if self.cache.requests != ServerLimits::requests(clients_max, half_open_max) {
            return Err(LimitsError::Requests);
        }
        if self.cache.pins < PLAN_PINS || self.cache.creates < PLAN_CREATES {
            return Err(LimitsError::Plan);
        }
        if self.level_0_max <= self.merging.level_0_runs {
            return Err(LimitsError::LevelZero);
        }
        if !(1..=SEGMENT_BLOCKS).contains(&self.run_blocks) {
            return Err(LimitsError::RunBlocks);
        }
        // What a root's reserve and a takeover's can be, in pieces.
        if self.cache.fresh < crate::format::root::RESERVE_EXTENTS as u32 {
            return Err(LimitsError::Reserve);
        }
        Ok(())
    }
}
