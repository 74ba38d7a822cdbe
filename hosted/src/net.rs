//! Connections as non-blocking TCP sockets.
//!
//! # Invariants
//!
//! * A stream is read or written only after `poll` reported it ready, so neither ever blocks and
//!   "nothing there" is never mistaken for "the peer has finished".
//! * A stream's name is never used again.

use embedded_io::{ErrorType, Read, ReadReady, Write, WriteReady};
use outrider_hal::{Endpoint, NetError, Network, StreamId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

/// Connections one node can have: what its limits ask for comes first, this only stops a flood
/// from taking the process's descriptors.
const STREAMS: usize = 1024;

/// A TCP connection, made or being made.
#[derive(Debug)]
pub struct TcpLink {
    socket: TcpStream,
    connecting: bool,
    readable: bool,
    writable: bool,
}

/// The TCP connections of one node.
#[derive(Debug, Default)]
pub struct TcpNetwork {
    listener: Option<TcpListener>,
    acceptable: bool,
    streams: BTreeMap<u64, TcpLink>,
    last_id: u64,
}

impl TcpNetwork {
    /// No connections, listening nowhere.
    #[must_use]
    pub fn new() -> TcpNetwork {
        TcpNetwork::default()
    }

    /// What to sleep on: everything that could become ready and isn't. `wants_write` says which
    /// streams have bytes to send.
    pub fn poll_fds<'a>(
        &'a self,
        fds: &mut Vec<PollFd<'a>>,
        wants_write: impl Fn(StreamId) -> bool,
    ) {
        if let Some(listener) = &self.listener {
            fds.push(PollFd::new(listener, PollFlags::IN));
        }
        for (&id, link) in &self.streams {
            let mut flags = PollFlags::IN;
            if link.connecting || (!link.writable && wants_write(StreamId(id))) {
                flags |= PollFlags::OUT;
            }
            fds.push(PollFd::new(&link.socket, flags));
        }
    }

    /// Learns what has become ready, without waiting.
    pub fn refresh(&mut self) -> io::Result<()> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = Vec::with_capacity(1 + self.streams.len());
        for link in self.streams.values() {
            fds.push(PollFd::new(&link.socket, PollFlags::IN | PollFlags::OUT));
        }
        if let Some(listener) = &self.listener {
            fds.push(PollFd::new(listener, PollFlags::IN));
        }
        match poll(&mut fds, Some(&now)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        if self.listener.is_some() {
            self.acceptable = ready.pop().is_some_and(|flags| !flags.is_empty());
        }
        let failed = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        for (link, flags) in self.streams.values_mut().zip(ready) {
            if link.connecting && flags.intersects(PollFlags::OUT | failed) {
                link.connecting = false;
            }
            // An error is reported by the read or write it makes fail.
            link.readable = flags.intersects(PollFlags::IN | failed);
            link.writable = !link.connecting && flags.intersects(PollFlags::OUT | failed);
        }
        Ok(())
    }

    fn add(&mut self, socket: TcpStream, connecting: bool) -> io::Result<StreamId> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        self.last_id += 1;
        let link = TcpLink { socket, connecting, readable: false, writable: false };
        self.streams.insert(self.last_id, link);
        Ok(StreamId(self.last_id))
    }
}

impl Network for TcpNetwork {
    type Stream = TcpLink;

    fn listen(&mut self, at: Endpoint) -> Result<(), NetError> {
        self.unlisten();
        // The standard library sets SO_REUSEADDR: a restarted node gets its port back at once.
        let listener = TcpListener::bind(SocketAddr::from(at));
        let listener = listener.map_err(|_| NetError::Unavailable)?;
        listener.set_nonblocking(true).map_err(|_| NetError::Unavailable)?;
        self.listener = Some(listener);
        Ok(())
    }

    fn unlisten(&mut self) {
        self.listener = None;
        self.acceptable = false;
    }

    fn accept(&mut self) -> Option<StreamId> {
        if !self.acceptable || self.streams.len() >= STREAMS {
            return None;
        }
        // A failed accept concerns the connection that failed: the next is tried next time.
        match self.listener.as_ref()?.accept() {
            Ok((socket, _)) => self.add(socket, false).ok(),
            Err(_) => {
                self.acceptable = false;
                None
            }
        }
    }

    fn connect(&mut self, to: Endpoint) -> Result<StreamId, NetError> {
        if self.streams.len() >= STREAMS {
            return Err(NetError::TooMany);
        }
        let socket = start_connecting(SocketAddr::from(to)).map_err(|_| NetError::Closed)?;
        self.add(TcpStream::from(socket), true).map_err(|_| NetError::Closed)
    }

    fn stream(&mut self, id: StreamId) -> Option<&mut TcpLink> {
        self.streams.get_mut(&id.0)
    }

    fn close(&mut self, id: StreamId) {
        self.streams.remove(&id.0);
    }
}

fn start_connecting(to: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

impl ErrorType for TcpLink {
    type Error = NetError;
}

impl ReadReady for TcpLink {
    fn read_ready(&mut self) -> Result<bool, NetError> {
        Ok(self.readable && !self.connecting)
    }
}

impl Read for TcpLink {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, NetError> {
        self.readable = false;
        io::Read::read(&mut self.socket, bytes).map_err(|_| NetError::Closed)
    }
}

impl WriteReady for TcpLink {
    fn write_ready(&mut self) -> Result<bool, NetError> {
        if self.connecting {
            return Ok(false);
        }
        match sockopt::socket_error(self.socket.as_fd()) {
            Ok(Ok(())) => Ok(self.writable),
            Ok(Err(_)) | Err(_) => Err(NetError::Closed),
        }
    }
}

impl Write for TcpLink {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, NetError> {
        self.writable = false;
        match io::Write::write(&mut self.socket, bytes) {
            Ok(len) => Ok(len),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(_) => Err(NetError::Closed),
        }
    }

    fn flush(&mut self) -> Result<(), NetError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::TcpNetwork;
    use embedded_io::{Read, ReadReady, Write, WriteReady};
    use outrider_hal::{Endpoint, NetError, Network, StreamId};
    use std::net::{Ipv4Addr, TcpListener};
    use std::time::{Duration, Instant};

    /// Tries until something is there, for at most ten seconds.
    fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(value) = attempt() {
                return value;
            }
            assert!(Instant::now() < deadline, "nothing came");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn free_endpoint() -> Endpoint {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().into()
    }

    fn listening() -> (TcpNetwork, Endpoint) {
        let mut network = TcpNetwork::new();
        let at = free_endpoint();
        network.listen(at).unwrap();
        (network, at)
    }

    fn pair() -> (TcpNetwork, StreamId, TcpNetwork, StreamId) {
        let (mut server, at) = listening();
        let mut client = TcpNetwork::new();
        let there = client.connect(at).unwrap();
        let here = eventually(|| {
            server.refresh().unwrap();
            server.accept()
        });
        eventually(|| {
            client.refresh().unwrap();
            client.stream(there).unwrap().write_ready().unwrap().then_some(())
        });
        (server, here, client, there)
    }

    fn receive(network: &mut TcpNetwork, id: StreamId, bytes: &mut [u8]) -> usize {
        eventually(|| {
            network.refresh().unwrap();
            let stream = network.stream(id).unwrap();
            stream.read_ready().unwrap().then(|| stream.read(bytes).unwrap())
        })
    }

    #[test]
    fn bytes_arrive_and_the_end_is_seen() {
        let (mut server, here, mut client, there) = pair();
        assert!(!server.stream(here).unwrap().read_ready().unwrap());
        assert_eq!(client.stream(there).unwrap().write(b"hello").unwrap(), 5);
        let mut bytes = [0; 16];
        assert_eq!(receive(&mut server, here, &mut bytes), 5);
        assert_eq!(&bytes[..5], b"hello");
        client.close(there);
        assert!(client.stream(there).is_none());
        assert_eq!(receive(&mut server, here, &mut bytes), 0);
    }

    #[test]
    fn a_full_stream_takes_no_more_and_later_does() {
        let (mut server, here, mut client, there) = pair();
        let chunk = [7; 65536];
        let mut sent = 0;
        loop {
            client.refresh().unwrap();
            let stream = client.stream(there).unwrap();
            if !stream.write_ready().unwrap() {
                break;
            }
            sent += stream.write(&chunk).unwrap();
        }
        let mut received = 0;
        let mut bytes = vec![0; 65536];
        while received < sent {
            received += receive(&mut server, here, &mut bytes);
        }
        assert_eq!(received, sent);
        eventually(|| {
            client.refresh().unwrap();
            client.stream(there).unwrap().write_ready().unwrap().then_some(())
        });
    }

    #[test]
    fn a_refused_connection_is_reported_and_a_taken_port_too() {
        let mut client = TcpNetwork::new();
        let refused = client.connect(free_endpoint());
        let error = refused.map(|id| {
            eventually(|| {
                client.refresh().unwrap();
                client.stream(id).unwrap().write_ready().err()
            })
        });
        assert!(matches!(error, Ok(NetError::Closed) | Err(NetError::Closed)));
        let (_server, at) = listening();
        assert_eq!(TcpNetwork::new().listen(at), Err(NetError::Unavailable));
    }
}
