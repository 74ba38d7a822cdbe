//! A server's network, which can be cut: what connects to the address that the volume names goes
//! through here to where the server listens.
//!
//! * A connection is passed on byte by byte, in order. Silence holds bytes back, and delivers them
//!   late; an end ends all connections, and new ones until it is healed.
//! * Threads end with their connection, and with this.

use crate::tools::Failure;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

/// How often a thread looks whether something has changed.
const LOOK: Duration = Duration::from_millis(20);
/// Time for a server to take a connection.
const CONNECT: Duration = Duration::from_secs(1);

/// What a network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Weather {
    /// It works.
    Fair,
    /// Nothing gets through.
    Silent,
    /// Connections end.
    Broken,
    /// It is not needed any more.
    Gone,
}

#[derive(Debug, Clone)]
struct Shared(Arc<AtomicU8>);

impl Shared {
    fn now(&self) -> Weather {
        let now = self.0.load(Ordering::Relaxed);
        let all = [Weather::Fair, Weather::Silent, Weather::Broken];
        all.into_iter().find(|weather| *weather as u8 == now).unwrap_or(Weather::Gone)
    }
}

/// A network.
#[derive(Debug)]
pub(super) struct Wire(Shared);

impl Wire {
    /// Leads from one address to another.
    pub(super) fn new(from: SocketAddr, to: SocketAddr) -> Result<Wire, Failure> {
        let wire = TcpListener::bind(from).and_then(|listener| Wire::of(listener, to));
        wire.map_err(|error| Failure(format!("a wire at {from}: {error}")))
    }

    /// Leads from where this listens to an address.
    fn of(listener: TcpListener, to: SocketAddr) -> std::io::Result<Wire> {
        listener.set_nonblocking(true)?;
        let shared = Shared(Arc::new(AtomicU8::new(Weather::Fair as u8)));
        let theirs = shared.clone();
        thread::spawn(move || accept_all(&listener, to, &theirs));
        Ok(Wire(shared))
    }

    /// From now on it does this.
    pub(super) fn turn(&self, weather: Weather) {
        self.0.0.store(weather as u8, Ordering::Relaxed);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.turn(Weather::Gone);
    }
}

fn accept_all(listener: &TcpListener, to: SocketAddr, shared: &Shared) {
    while shared.now() != Weather::Gone {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(LOOK);
            continue;
        };
        if shared.now() == Weather::Broken {
            continue;
        }
        let shared = shared.clone();
        thread::spawn(move || {
            // What can't be passed on ends.
            let _ = connect(&stream, to, &shared);
        });
    }
}

fn connect(client: &TcpStream, to: SocketAddr, shared: &Shared) -> std::io::Result<()> {
    let server = TcpStream::connect_timeout(&to, CONNECT)?;
    for stream in [client, &server] {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
    }
    let back = (server.try_clone()?, client.try_clone()?, shared.clone());
    thread::spawn(move || pass(&back.0, &back.1, &back.2));
    pass(client, &server, shared);
    Ok(())
}

/// Passes on what comes, until either end has closed.
fn pass(mut from: &TcpStream, mut to: &TcpStream, shared: &Shared) {
    let mut bytes = [0; 16 << 10];
    loop {
        match shared.now() {
            Weather::Fair => {}
            Weather::Silent => {
                thread::sleep(LOOK);
                continue;
            }
            Weather::Broken | Weather::Gone => break,
        }
        match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(len) if to.write_all(&bytes[..len]).is_err() => break,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    // Fails only when it is closed already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::{Weather, Wire};
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::time::Duration;

    #[test]
    fn it_passes_on_holds_back_and_ends() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = listener.local_addr().unwrap();
        let wire = Wire::of(listener, server.local_addr().unwrap()).unwrap();
        let mut client = TcpStream::connect(at).unwrap();
        let (mut served, _) = server.accept().unwrap();
        let mut byte = [0];
        client.write_all(b"a").unwrap();
        served.read_exact(&mut byte).unwrap();
        wire.turn(Weather::Silent);
        std::thread::sleep(Duration::from_millis(100));
        client.write_all(b"b").unwrap();
        served.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(served.read_exact(&mut byte).is_err(), "it is silent");
        wire.turn(Weather::Fair);
        served.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        served.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"b");
        wire.turn(Weather::Broken);
        assert_eq!(served.read(&mut byte).unwrap(), 0, "it ends");
        assert!(TcpStream::connect(at).unwrap().read(&mut byte).is_ok_and(|len| len == 0));
    }
}
