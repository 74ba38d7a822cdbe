//! Connections as non-blocking TCP sockets.
//!
//! # Invariants
//!
//! * Neither a read nor a write ever blocks, and "nothing there" is never mistaken for "the peer
//!   has finished": a stream is read only after a look has shown that there is something.
//! * A socket is told of once for each change (edge-triggered), and what was told is remembered
//!   until the socket itself denies it. So a node that can't take more costs no wakeups, and what
//!   has come meanwhile is not forgotten.
//! * A stream's name is never used again.

use embedded_io::{ErrorType, Read, ReadReady, Write, WriteReady};
use outrider_hal::{Endpoint, NetError, Network, StreamId};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Connections one node can have: what its limits ask for comes first, this only stops a flood
/// from taking the process's descriptors.
const STREAMS: usize = 1024;
/// Changes taken from the system at a time.
const CHANGES: usize = 64;
/// The listener among the names of streams.
const LISTENER: u64 = 0;

/// A TCP connection, made or being made.
#[derive(Debug)]
pub struct TcpLink {
    socket: TcpStream,
    connecting: bool,
    readable: bool,
    writable: bool,
}

/// The TCP connections of one node.
#[derive(Debug)]
pub struct TcpNetwork {
    epoll: Arc<OwnedFd>,
    listener: Option<TcpListener>,
    acceptable: bool,
    streams: BTreeMap<u64, TcpLink>,
    last_id: u64,
}

impl TcpNetwork {
    /// No connections, listening nowhere.
    pub fn new() -> io::Result<TcpNetwork> {
        Ok(TcpNetwork {
            epoll: Arc::new(epoll::create(CreateFlags::CLOEXEC)?),
            listener: None,
            acceptable: false,
            streams: BTreeMap::new(),
            last_id: LISTENER,
        })
    }

    /// What to sleep on: it can be read when [`refresh`](Self::refresh) has something to learn.
    #[must_use]
    pub fn readiness(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.epoll)
    }

    /// Learns what has become ready, without waiting.
    pub fn refresh(&mut self) -> io::Result<()> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            let mut changes = [MaybeUninit::<Event>::uninit(); CHANGES];
            let (changes, _) = match epoll::wait(&self.epoll, &mut changes, Some(&now)) {
                Ok(changes) => changes,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for change in &*changes {
                let (id, flags) = (change.data.u64(), change.flags);
                if id == LISTENER {
                    self.acceptable = true;
                } else if let Some(link) = self.streams.get_mut(&id) {
                    link.on_change(flags);
                }
            }
            if changes.len() < CHANGES {
                return Ok(());
            }
        }
    }

    fn add(&mut self, socket: TcpStream, connecting: bool) -> io::Result<StreamId> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        self.last_id += 1;
        let all = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, &socket, EventData::new_u64(self.last_id), all)?;
        let link = TcpLink { socket, connecting, readable: false, writable: false };
        self.streams.insert(self.last_id, link);
        Ok(StreamId(self.last_id))
    }

    fn start_listening(&mut self, at: Endpoint) -> io::Result<()> {
        // The standard library sets SO_REUSEADDR: a restarted node gets its port back at once.
        let listener = TcpListener::bind(SocketAddr::from(at))?;
        listener.set_nonblocking(true)?;
        let changes = EventFlags::IN | EventFlags::ET;
        epoll::add(&self.epoll, &listener, EventData::new_u64(LISTENER), changes)?;
        self.listener = Some(listener);
        Ok(())
    }
}

impl TcpLink {
    fn on_change(&mut self, flags: EventFlags) {
        // An error is reported by the read or write it makes fail.
        let failed = EventFlags::ERR | EventFlags::HUP;
        if flags.intersects(EventFlags::OUT | failed) {
            self.connecting = false;
            self.writable = true;
        }
        self.readable |= flags.intersects(EventFlags::IN | EventFlags::RDHUP | failed);
    }
}

impl Network for TcpNetwork {
    type Stream = TcpLink;

    fn listen(&mut self, at: Endpoint) -> Result<(), NetError> {
        self.unlisten();
        self.start_listening(at).map_err(|_| NetError::Unavailable)
    }

    fn unlisten(&mut self) {
        self.listener = None;
        self.acceptable = false;
    }

    fn accept(&mut self) -> Option<StreamId> {
        if !self.acceptable || self.streams.len() >= STREAMS {
            return None;
        }
        match self.listener.as_ref()?.accept() {
            Ok((socket, _)) => self.add(socket, false).ok(),
            Err(error) => {
                // Any other failure concerns a connection that failed, or will pass: the next
                // accept is tried in the next turn.
                self.acceptable = error.kind() != ErrorKind::WouldBlock;
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
        if self.connecting || !self.readable {
            return Ok(false);
        }
        let looked = self.socket.peek(&mut [0; 1]);
        self.readable = !looked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        Ok(self.readable)
    }
}

impl Read for TcpLink {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, NetError> {
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
        match io::Write::write(&mut self.socket, bytes) {
            Ok(len) => Ok(len),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.writable = false;
                Ok(0)
            }
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
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};
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
        let mut network = TcpNetwork::new().unwrap();
        // The system chooses the port: one that was free a moment ago may be in use.
        network.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let at = network.listener.as_ref().unwrap().local_addr().unwrap();
        (network, at.into())
    }

    fn pair() -> (TcpNetwork, StreamId, TcpNetwork, StreamId) {
        let (mut server, at) = listening();
        let mut client = TcpNetwork::new().unwrap();
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
        let mut client = TcpNetwork::new().unwrap();
        let refused = client.connect(free_endpoint());
        let error = refused.map(|id| {
            eventually(|| {
                client.refresh().unwrap();
                client.stream(id).unwrap().write_ready().err()
            })
        });
        assert!(matches!(error, Ok(NetError::Closed) | Err(NetError::Closed)));
        let (_server, at) = listening();
        assert_eq!(TcpNetwork::new().unwrap().listen(at), Err(NetError::Unavailable));
    }
}
