//! Asking the leader, as a guest: who that is stands in the voters' blocks.
//!
//! # Invariants
//!
//! * It ends within a few seconds, or as many as it is given, whatever the leader does.
//! * Nothing is written to the device.
//!
//! What this module deliberately doesn't know: what is done with the answer.

use super::Failure;
use super::device::{Image, carved, system};
use outrider_core::arena::{Arena, ArenaFull};
use outrider_core::format::layout::QUORUM_BLKNO;
use outrider_core::format::super_block::Super;
use outrider_core::format::wire::ErrorCode;
use outrider_core::format::wire::greeting::{Machine, Role};
use outrider_core::format::wire::message::{ClientRequest, Outcome, ServerAnswer};
use outrider_core::net::{
    Cluster, ClusterKey, Incoming, LineLimits, Link, LinkConfig, LinkLimits, SessionLimits, Timing,
};
use outrider_core::quorum::{self, Leader, Watcher, WatcherBlocks};
use outrider_hal::{BlockOp, Clock, Completion, Entropy, Instant, IoError, StreamId};
use outrider_hosted::clock::{BootClock, SystemEntropy};
use outrider_hosted::mounts::mounts;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the leader may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// The connection, of which there is one.
const STREAM: StreamId = StreamId(1);

/// A volume, and where it is mounted if that is how it was named.
pub(crate) struct Target {
    pub(crate) device: PathBuf,
    pub(crate) mounted: Option<PathBuf>,
}

impl Target {
    /// The volume that a device is, or that is mounted at a directory.
    pub(crate) fn find(path: &Path) -> Result<Target, Failure> {
        // The table first: to look at a mount without a server would take until there is one, and
        // one whose process is gone can't be looked at.
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let absolute: PathBuf = absolute.components().collect();
        let table = mounts().map_err(|error| system(path, "find the mount of", &error))?;
        let over = table.into_iter().rfind(|mount| mount.path == absolute);
        if let Some(mount) = over.filter(|mount| mount.kind == "fuse.outrider") {
            return Ok(Target { device: mount.source.into(), mounted: Some(mount.path) });
        }
        match path.symlink_metadata().map(|found| found.is_dir()) {
            Ok(false) => Ok(Target { device: path.to_owned(), mounted: None }),
            Ok(true) => {
                let path = path.display();
                Err(Failure::new(format!(
                    "no Outrider volume is mounted at {path}; name its mount point, or its device"
                )))
            }
            Err(error) => Err(system(path, "look at", &error)),
        }
    }
}

/// The leader that the voters' blocks name.
pub(crate) fn leader(image: &Image, volume: &Super) -> Result<Option<Leader>, Failure> {
    let blocks = carved(WatcherBlocks::carve)?;
    let timing = quorum::Timing::of_lease(volume.fields().limits.lease_ms.get());
    let volume = volume.volume();
    let mut watcher = Watcher::new(volume, QUORUM_BLKNO, timing, 0, blocks)
        .expect("what the super block may say holds together");
    let now = BootClock.now();
    while let Some(mut request) = watcher.poll_request(now) {
        let mut result = Err(IoError::Unsupported);
        if let BlockOp::Read(blkno, block) = &mut request.op {
            block.0 = image.read(*blkno)?.0;
            result = Ok(());
        }
        watcher.handle_completion(now, Completion { tag: request.tag, op: request.op, result });
    }
    Ok(watcher.leader())
}

/// Asks the leader, and hands over what it answers. Otherwise says why there is no answer.
pub(crate) fn ask<T>(
    volume: &Super,
    leader: &Leader,
    request: &ClientRequest<'_>,
    take: impl Fn(&ServerAnswer<'_>) -> Option<T>,
) -> Result<T, String> {
    let answer = ask_for(PATIENCE, volume, leader, request, take)?;
    answer.map_err(|error| format!("it refuses ({error:?})"))
}

/// The same with as much patience as is given, and with what it refuses for.
pub(crate) fn ask_for<T>(
    patience: Duration,
    volume: &Super,
    leader: &Leader,
    request: &ClientRequest<'_>,
    take: impl Fn(&ServerAnswer<'_>) -> Option<T>,
) -> Result<Result<T, ErrorCode>, String> {
    Asking::connect(volume, leader)?.ask(patience, request, take)
}

/// A guest's connection.
pub(crate) struct Asking {
    link: Link<'static>,
    socket: TcpStream,
}

impl Asking {
    /// Asks, and hands over what is answered, or what it is refused for.
    pub(crate) fn ask<T>(
        &mut self,
        patience: Duration,
        request: &ClientRequest<'_>,
        take: impl Fn(&ServerAnswer<'_>) -> Option<T>,
    ) -> Result<Result<T, ErrorCode>, String> {
        let until = BootClock.now().plus(patience);
        let mut asked = false;
        loop {
            let now = BootClock.now();
            if now >= until {
                return Err("it doesn't answer".to_owned());
            }
            self.turn(now)?;
            if self.link.is_up() && !asked {
                asked = self.link.request(request).is_ok();
                continue;
            }
            let answer = match self.link.head() {
                Some(Incoming::Answer(_, Outcome::Done(answer))) => {
                    let taken = take(&answer).map(Ok);
                    Some(taken.ok_or_else(|| "it answers something else".to_owned()))
                }
                Some(Incoming::Answer(_, Outcome::Failed(error, _))) => Some(Ok(Err(error))),
                Some(Incoming::Request(_)) | None => None,
            };
            if let Some(answer) = answer {
                if let Some(ticket) = self.link.take(now) {
                    self.link.recorded(ticket);
                }
                return answer;
            }
            self.receive()?;
        }
    }

    /// Keeps the connection while nothing is asked: to be called several times a second.
    pub(crate) fn rest(&mut self) -> Result<(), String> {
        self.turn(BootClock.now())?;
        self.receive()?;
        self.turn(BootClock.now())
    }

    /// Asks and waits as long as is usual.
    pub(crate) fn question<T>(
        &mut self,
        request: &ClientRequest<'_>,
        take: impl Fn(&ServerAnswer<'_>) -> Option<T>,
    ) -> Result<T, String> {
        let answer = self.ask(PATIENCE, request, take)?;
        answer.map_err(|error| format!("it refuses ({error:?})"))
    }

    pub(crate) fn connect(volume: &Super, leader: &Leader) -> Result<Asking, String> {
        let failed = |error: std::io::Error| format!("it can't be reached: {error}");
        let mut entropy = SystemEntropy::open().map_err(failed)?;
        let (mut nonce, mut random) = ([0; 16], [0; 16]);
        entropy.fill(&mut nonce);
        entropy.fill(&mut random);
        let config = LinkConfig {
            cluster: Cluster::new(volume.fsid(), ClusterKey(volume.fields().cluster_key)),
            timing: Timing::DEFAULT,
            role: Role::Status,
            nonce,
            machine: Machine::default(),
            read_only: true,
        };
        let limits = LinkLimits {
            session: SessionLimits { asks_max: 1, answers_max: 64 },
            line: LineLimits::MIN,
        };
        let carve = |arena: &mut Arena<'static>| -> Result<_, ArenaFull> {
            Link::carve(arena, &limits, config)
        };
        let mut link = carved(carve).map_err(|failure| failure.what)?;
        let to = SocketAddr::from(leader.endpoint);
        let socket = TcpStream::connect_timeout(&to, PATIENCE).map_err(failed)?;
        socket.set_read_timeout(Some(Duration::from_millis(20))).map_err(failed)?;
        socket.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        link.connect(BootClock.now(), STREAM, random);
        Ok(Asking { link, socket })
    }

    /// Lets the link work, and sends what it has to send.
    fn turn(&mut self, now: Instant) -> Result<(), String> {
        self.link.step(now);
        if let Some((_, end)) = self.link.poll_close() {
            return Err(format!("it ends the connection ({end:?})"));
        }
        loop {
            let bytes = self.link.send_bytes(STREAM);
            if bytes.is_empty() {
                return Ok(());
            }
            let sent = self.socket.write(bytes).map_err(|error| format!("it is gone: {error}"))?;
            self.link.sent(STREAM, sent);
        }
    }

    /// Waits a little for bytes, and takes them.
    fn receive(&mut self) -> Result<(), String> {
        let space = self.link.recv_space(STREAM);
        if space.is_empty() {
            return Ok(());
        }
        match self.socket.read(space) {
            Ok(0) => Err("it has closed the connection".to_owned()),
            Ok(len) => {
                self.link.received(BootClock.now(), STREAM, len);
                Ok(())
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(()),
                _ => Err(format!("it is gone: {error}")),
            },
        }
    }
}
