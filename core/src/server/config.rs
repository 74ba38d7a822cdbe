//! What a server is told at its start, and why it can't be made.
//!
//! What this module deliberately doesn't know: what the server makes of it.

use super::LimitsError;
use crate::arena::ArenaFull;
use crate::format::quorum::Slot;
use crate::format::super_block::Super;
use crate::{net, quorum};
use core::time::Duration;
use outrider_hal::Endpoint;

/// How long the server waits for things.
#[derive(Debug, Clone, Copy)]
pub struct ServerTiming {
    /// A commit is begun this long after the first request joined it.
    pub gather: Duration,
    /// Or this long after the first change that nobody waits for.
    pub tidy: Duration,
    /// An endpoint that can't be listened at is tried again after this.
    pub listen_retry: Duration,
    /// A flush that failed while a term ends is tried again after this.
    pub flush_retry: Duration,
    /// A client that is not heard for so long, while it could be, is evicted.
    pub recovery: Duration,
    /// What an evicted client has submitted before has happened by then, or never will: its locks
    /// on file ranges are given to others.
    pub io_lifetime: Duration,
    /// A reader of an older root that is not heard for so long loses its pin.
    pub pin: Duration,
}

impl ServerTiming {
    /// For real devices.
    pub const NORMAL: ServerTiming = ServerTiming {
        gather: Duration::from_millis(1),
        tidy: Duration::from_secs(1),
        listen_retry: Duration::from_secs(1),
        flush_retry: Duration::from_millis(200),
        recovery: Duration::from_secs(30),
        io_lifetime: Duration::from_secs(60),
        pin: Duration::from_secs(15),
    };

    /// For a volume, as its super block says.
    #[must_use]
    pub fn of(volume: &Super) -> ServerTiming {
        let limits = &volume.fields().limits;
        ServerTiming {
            recovery: limits.recovery(),
            io_lifetime: Duration::from_millis(limits.io_lifetime_ms.get().into()),
            ..ServerTiming::NORMAL
        }
    }
}

/// What a server is told at its start.
#[derive(Debug, Clone, Copy)]
pub struct ServerConfig {
    /// The volume, verified.
    pub volume: Super,
    /// The slot it votes and listens in.
    pub slot: Slot,
    /// Where it listens, if not where the volume tells others to connect: when something between
    /// forwards connections.
    pub listen: Option<Endpoint>,
    /// Who it is.
    pub identity: quorum::Identity,
    /// The election's constants.
    pub quorum: quorum::Timing,
    /// Those of connections.
    pub net: net::Timing,
    /// Its own.
    pub timing: ServerTiming,
    /// Random: what it challenges clients with is made from this.
    pub secret: [u8; 32],
}

/// Why a server can't be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartError {
    /// The memory is too small.
    Memory,
    /// The limits don't hold.
    Limits(LimitsError),
    /// The volume has no voter in this slot, or the constants don't fit together.
    Voter(quorum::ConfigError),
    /// The volume can't be written by this code.
    ReadOnly,
}

impl From<ArenaFull> for StartError {
    fn from(_: ArenaFull) -> StartError {
        StartError::Memory
    }
}
