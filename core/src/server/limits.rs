//! How much a server may hold, and why that is enough.

use crate::block;
use crate::btree::{PINS_PER_READ, PINS_PER_UPDATE};
use crate::lock;
use crate::net::{self, LineLimits, LinksLimits, SessionLimits};

/// Sizes of a server's pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// The block cache, its requests being those of [`requests`](Self::requests).
    pub cache: block::Limits,
    /// Connections and sessions.
    pub links: LinksLimits,
    /// Locks.
    pub locks: lock::server::Limits,
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
    /// The lock server could not go on.
    Locks(lock::server::LimitsError),
    /// A client with a record might find no place among those with locks.
    LockClients,
}

/// Blocks that the largest plan, a transaction's, may obtain. Each tree's updates share the upper
/// part of their paths.
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
pub const PLAN_PINS: u32 = 160;
const _: () = assert!(PLAN_PINS > 3 * PINS_PER_UPDATE + 3 * PINS_PER_READ);

/// Blocks it may add: its 29 updates, each a node on 6 levels and a root.
pub const PLAN_CREATES: u32 = 29 * 7;

impl ServerLimits {
    /// Limits for this many mounts.
    #[must_use]
    pub const fn for_clients(clients_max: u16) -> ServerLimits {
        let half_open_max = 8;
        let requests = ServerLimits::requests(clients_max, half_open_max);
        ServerLimits {
            cache: block::Limits {
                frames: 1024,
                dirty: 512,
                pins: PLAN_PINS,
                creates: PLAN_CREATES,
                requests,
                fresh: 128,
                freed: 512,
            },
            links: LinksLimits {
                clients_max,
                guests_max: 4,
                half_open_max,
                session: SessionLimits { asks_max: 16, answers_max: 64 },
                line: LineLimits::MIN,
            },
            locks: ServerLimits::locks(clients_max, 1024),
        }
    }

    /// Limits for locks: so many for each of these clients, one of which may have four times that.
    #[must_use]
    pub const fn locks(clients_max: u16, each: u32) -> lock::server::Limits {
        let clients = clients_max as u32;
        let entries_high = (clients + 4) * each;
        lock::server::Limits {
            // Those with a record, and as many whose locks are still being cleared away.
            clients: 2 * clients,
            entries: entries_high + entries_high / 8,
            entries_per_client: 4 * each,
            entries_high,
            reclaims: 64,
        }
    }

    /// Requests that can be under way at once, as a sum over who has them:
    #[must_use]
    pub const fn requests(clients_max: u16, half_open_max: u16) -> u32 {
        // the store's own, and the job that looks after free space or reads the clients' records;
        2
            // of each mount a transaction and a loan, or its farewell, or its eviction;
            + 2 * clients_max as u32
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
        // What a root's reserve and a takeover's can be, in pieces.
        if self.cache.fresh < crate::format::root::RESERVE_EXTENTS as u32 {
            return Err(LimitsError::Reserve);
        }
        Ok(())
    }
}
