//! Byte streams: connections made and accepted, read and written without ever blocking.

use core::fmt;
use core::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Where a node can be reached: an IPv6 address (IPv4 ones are mapped) and a TCP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The address, `::ffff:a.b.c.d` for IPv4.
    pub addr: Ipv6Addr,
    /// The TCP port.
    pub port: u16,
}

impl From<SocketAddr> for Endpoint {
    fn from(from: SocketAddr) -> Endpoint {
        let addr = match from.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Endpoint { addr, port: from.port() }
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(from: Endpoint) -> SocketAddr {
        SocketAddr::new(IpAddr::V6(from.addr).to_canonical(), from.port)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

/// A platform's name for one of its connections. Never reused within a platform's life, so that a
/// stale one finds nothing rather than somebody else's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// Why a connection can't be had, or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetError {
    /// The peer reset or refused the connection, or it can't be reached.
    Closed,
    /// The platform's table of connections is full.
    TooMany,
    /// The local address is not this platform's, or is in use.
    Unavailable,
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NetError::Closed => "connection closed",
            NetError::TooMany => "too many connections",
            NetError::Unavailable => "address unavailable",
        })
    }
}

impl core::error::Error for NetError {}

impl embedded_io::Error for NetError {
    fn kind(&self) -> embedded_io::ErrorKind {
        match self {
            NetError::Closed => embedded_io::ErrorKind::ConnectionReset,
            NetError::TooMany => embedded_io::ErrorKind::OutOfMemory,
            NetError::Unavailable => embedded_io::ErrorKind::AddrNotAvailable,
        }
    }
}

/// One connection, used without blocking: read only after
/// [`read_ready`](embedded_io::ReadReady::read_ready) said yes (0 bytes then mean the peer has
/// finished sending), write only after
/// [`write_ready`](embedded_io::WriteReady::write_ready) said yes. Both transfer what they can,
/// which may be less than asked for.
pub trait Stream:
    embedded_io::ErrorType<Error = NetError>
    + embedded_io::Read
    + embedded_io::Write
    + embedded_io::ReadReady
    + embedded_io::WriteReady
{
}

impl<T> Stream for T where
    T: embedded_io::ErrorType<Error = NetError>
        + embedded_io::Read
        + embedded_io::Write
        + embedded_io::ReadReady
        + embedded_io::WriteReady
{
}

/// The platform's connections.
pub trait Network {
    /// What a connection is.
    type Stream: Stream;

    /// Starts to accept connections at this endpoint; replaces an earlier one.
    fn listen(&mut self, at: Endpoint) -> Result<(), NetError>;

    /// Stops accepting. Connections accepted before live on.
    fn unlisten(&mut self);

    /// A newly accepted connection, if there is one.
    fn accept(&mut self) -> Option<StreamId>;

    /// Starts to connect. The stream becomes ready to write once it is established, and reports
    /// [`NetError::Closed`] when that fails.
    fn connect(&mut self, to: Endpoint) -> Result<StreamId, NetError>;

    /// The connection of this name, while it lives.
    fn stream(&mut self, id: StreamId) -> Option<&mut Self::Stream>;

    /// Ends the connection at once and forgets it. Unknown ids are ignored.
    fn close(&mut self, id: StreamId);
}
