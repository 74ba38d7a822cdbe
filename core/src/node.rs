//! What a node is: events in, bounded work, actions out.
//!
//! ```text
//!            handle(now, Event)                  poll_action() -> Action
//!   driver ----------------------->   node   -----------------------------> driver
//!            step(now) -> More?                  poll_timeout() -> Instant
//!            recv_space / Received               send_bytes / Sent
//! ```
//!
//! The driver (the pump over a platform, or the simulator) hands over what has happened, lets the
//! node work, and carries out the actions until there are none. After each call of
//! [`handle`](Node::handle) or [`step`](Node::step) the answers of the `poll_` functions may have
//! changed. Bytes of connections don't travel in events: the driver reads straight into
//! [`recv_space`](Node::recv_space) and writes straight from [`send_bytes`](Node::send_bytes), so a
//! node that can't take more shows an empty space, and the peer feels it through TCP.
//!
//! What this module deliberately doesn't know: any kind of node.

use outrider_hal::{BlockRequest, Completion, Endpoint, Instant, StreamId};

/// Something that has happened to a node.
#[derive(Debug)]
pub enum Event<'m> {
    /// A block request finished; its buffer is the node's again.
    Completed(Completion<'m>),
    /// A peer connected to the endpoint the node listens at.
    Accepted(StreamId),
    /// The connection attempt of this number succeeded.
    Connected {
        /// The number given in [`Action::Connect`].
        attempt: u32,
        /// The new connection.
        stream: StreamId,
    },
    /// The connection attempt of this number failed.
    ConnectFailed {
        /// The number given in [`Action::Connect`].
        attempt: u32,
    },
    /// The endpoint asked for can't be listened at now. The node tries again when it wants to.
    ListenFailed,
    /// This many bytes were put at the start of [`Node::recv_space`].
    Received {
        /// The connection they came from.
        stream: StreamId,
        /// How many; at least one.
        len: usize,
    },
    /// This many bytes from the start of [`Node::send_bytes`] were sent.
    Sent {
        /// The connection they went to.
        stream: StreamId,
        /// How many; at least one.
        len: usize,
    },
    /// The connection has ended. Nothing more is heard of it.
    Closed(StreamId),
}

/// Something the node wants done.
#[derive(Debug)]
pub enum Action<'m> {
    /// Submit this to the block device.
    Block(BlockRequest<'m>),
    /// Accept connections at this endpoint.
    Listen(Endpoint),
    /// Stop accepting connections.
    Unlisten,
    /// Connect; answered by [`Event::Connected`] or [`Event::ConnectFailed`].
    Connect {
        /// Names the attempt.
        attempt: u32,
        /// Where to.
        to: Endpoint,
    },
    /// End the connection. No event follows.
    Close(StreamId),
}

/// Whether a node has more to do right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum More {
    /// Call `step` again soon: the work budget ended before the work did.
    Yes,
    /// Nothing until the next event or timeout.
    No,
}

/// A server, a mount or a voter, as its driver sees it.
pub trait Node<'m> {
    /// Takes note of an event. Cheap: the work it leads to is done by [`step`](Self::step).
    fn handle(&mut self, now: Instant, event: Event<'m>);

    /// Does a bounded amount of work, including what has become due by `now`.
    fn step(&mut self, now: Instant) -> More;

    /// The next action. The driver carries out actions in this order.
    fn poll_action(&mut self) -> Option<Action<'m>>;

    /// When `step` must run next although nothing happens.
    fn poll_timeout(&self) -> Option<Instant>;

    /// Where the next bytes received from this connection go. Empty while the node can't take any,
    /// and for connections it doesn't know.
    fn recv_space(&mut self, stream: StreamId) -> &mut [u8];

    /// The next bytes to send on this connection. Empty when there are none.
    fn send_bytes(&self, stream: StreamId) -> &[u8];
}
