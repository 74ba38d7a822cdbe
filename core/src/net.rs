//! Messages between nodes, delivered once and in order, whatever happens to connections.
//!
//! ```text
//!   owner (server or client node)
//!     |  request, answer, recorded        head, take
//!   session    numbers, keeps, resends; drops what comes twice      one per client
//!   greeting   proves the key; says where the session goes on       one per connection
//!   record     length and checksum now; a cipher's place later      one per connection
//!     |  send_bytes, sent                 recv_space, received
//!   driver (sockets, or the simulator)
//! ```
//!
//! A server has [`Links`], a table of connections and sessions; a client has one [`Link`]. Both do
//! nothing by themselves: events and the time come in, `step` works, `poll_` functions tell what
//! has come out of it.
//!
//! # Invariants
//!
//! * A message is offered to its receiver's owner until it is taken, taken once, and only after all
//!   messages sent before it, for as long as both ends' sessions live. A server's sessions live as
//!   long as its term, a client's as long as the mount.
//! * A request is kept by its sender until its answer has been taken. To a server of another term
//!   it is sent again, with all other unanswered ones, in order; but for those that belong to one
//!   term, which are dropped, and so are answers meant for the old server.
//! * An answer is kept by its sender until the receiver's acknowledgement covers it: the owner
//!   there has said that the outcomes of it and of all messages before it are recorded.
//! * Nothing but its slot is given to a connection that has not proved the key, and it keeps no
//!   connection from being served that has.
//! * Whatever a peer sends, it is either a message as it was sent or the end of the connection,
//!   with a reason. The end of a connection is never the end of a session.
//!
//! # Why nothing gets stuck
//!
//! The greeting tells each end how many requests of the shared sort the other may have in its
//! window; of every other kind there is at most one. A request leaves its sender's window when the
//! acknowledgement of its answer is on its way, at the latest with the next request. So the
//! receiver never holds more requests and unacknowledged answers than the windows: it has room for
//! every request that may come and for every answer to it, reserved when the session is carved, and
//! a peer that sends more is at fault. An owner that has room for its windows can therefore always
//! take what stands at the head of a connection, without waiting for a message behind it. Under
//! that condition each end always reads on, each byte sent is read, and each answer, once given,
//! arrives. Recording an outcome must not wait for a later message of the same peer either, since
//! the acknowledgement goes in order, and a window's place is free again only when the answer's is
//! on its way: what a request sets going may wait, the note of it may not. Acknowledgements need no
//! room of their own: they travel in every frame, or alone when there is none to travel in.
//!
//! Nor does what waits at an owner for a place in the window stand in anybody's way. Requests that
//! may take long have a window of one each, which nothing else uses. The shared window's requests
//! are answered when they are taken; in particular those about locks: a lock that is waited for
//! takes up a place in the lock server's queue, which has its own bound and its own refusal, and
//! none in a window. So however many locks are waited for, each release gets through, and each
//! revoke; and a transaction that a revoke waits for has a window of its own.
//!
//! What this module deliberately doesn't know: the volume, who leads, and what messages ask for.

mod asking;
mod greeting;
mod knock;
mod line;
mod link;
mod links;
mod log;
mod record;
mod session;

pub use knock::{Knock, KnockConfig};
pub use line::LineLimits;
pub use link::{Link, LinkConfig, LinkEvent, LinkLimits};
pub use links::{LimitsError, Links, LinksConfig, LinksEvent, LinksLimits, SessionId, TooMany};
pub use record::BadRecord;
pub use session::{Incoming, NotSent, RequestId, SessionLimits, Stale, Ticket};

use crate::format::Term;
use crate::format::wire::{ErrorCode, Malformed, PROTOCOL_VERSION};
use core::fmt;
use core::time::Duration;

/// Bytes of a cluster's key.
pub const KEY_BYTES: usize = 32;

/// The secret that all nodes of a volume share. Never shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ClusterKey(pub [u8; KEY_BYTES]);

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(..)")
    }
}

/// What two nodes must agree on before they talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    /// The volume.
    pub fsid: u64,
    /// Proved by both in every greeting.
    pub key: ClusterKey,
    /// Oldest protocol version spoken.
    pub version_min: u16,
    /// Newest protocol version spoken.
    pub version_max: u16,
    /// Features known.
    pub features: u64,
    /// Those of them that this node can't do without.
    pub features_required: u64,
}

impl Cluster {
    /// This code's versions and features, for a volume.
    #[must_use]
    pub const fn new(fsid: u64, key: ClusterKey) -> Cluster {
        Cluster {
            fsid,
            key,
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            features: 0,
            features_required: 0,
        }
    }
}

/// How long things wait. These bound waiting only; nothing is decided by them but the end of a
/// connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// An acknowledgement waits this long for a frame to travel in.
    pub ack_delay: Duration,
    /// Something is sent at least this often.
    pub keepalive: Duration,
    /// A connection whose peer is not heard for this long ends.
    pub silence: Duration,
    /// A greeting takes at most this long.
    pub greeting: Duration,
}

impl Timing {
    /// For nodes in one machine room.
    pub const DEFAULT: Timing = Timing {
        ack_delay: Duration::from_millis(20),
        keepalive: Duration::from_secs(1),
        silence: Duration::from_secs(5),
        greeting: Duration::from_secs(5),
    };

    /// A peer that was not heard for this long has missed two chances to be: it may be gone.
    /// Nothing ends for that alone.
    #[must_use]
    pub const fn doubt(&self) -> Duration {
        self.keepalive.saturating_mul(2)
    }

    /// Whether a peer that works is heard in time.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        // An acknowledgement that waits longer than the next frame makes no sense.
        self.ack_delay <= self.keepalive
            // One lost chance to send in time must not look like silence.
            && self.doubt() < self.silence
            && !self.keepalive.is_zero()
            && !self.greeting.is_zero()
    }
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The peer closed it, or the network did.
    Closed,
    /// What arrived is not a record.
    Record(BadRecord),
    /// What arrived is not a greeting, a frame or a payload.
    Malformed(Malformed),
    /// What arrived is well formed, but may not be said here.
    Breach(Breach),
    /// The peer was not heard for too long.
    Silent,
    /// The greeting took too long.
    Late,
    /// The peer refuses to go on.
    Refused {
        /// Why.
        error: ErrorCode,
        /// Whether it proved the key. If not, anybody may have said so, and it is only a hint.
        proven: bool,
    },
    /// This node refuses to go on, and has told the peer why.
    Refusing(ErrorCode),
    /// The server leads an older term than one that was greeted before.
    OldTerm(Term),
    /// The client has a newer connection.
    Replaced,
    /// The session is over: the farewell was answered.
    Farewell,
    /// The knock was heard.
    Knocked,
    /// The owner wanted it.
    Dropped,
}

/// What may not be said here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    /// Messages are missing before this one.
    Gap,
    /// Acknowledged, or said to be received, is what was never sent, or less than before.
    Ack,
    /// The names of requests don't count up.
    RequestOrder,
    /// The sender does not ask this kind of request.
    Asker,
    /// More requests are unanswered than was agreed.
    Window,
    /// The answer belongs to no request.
    Unasked,
    /// The session that goes on at one end is not there at the other.
    Resume,
    /// The client has another id than before, or none.
    Identity,
    /// A guest asks for more than reports: the status, and how full the volume is.
    Guest,
}

impl From<BadRecord> for End {
    fn from(bad: BadRecord) -> End {
        End::Record(bad)
    }
}

impl From<Malformed> for End {
    fn from(malformed: Malformed) -> End {
        End::Malformed(malformed)
    }
}

impl From<Breach> for End {
    fn from(breach: Breach) -> End {
        End::Breach(breach)
    }
}

#[cfg(test)]
mod tests;
