//! A client that stays for one question, over a real network: it greets the server as a mount, asks
//! how full the volume is, and says farewell.
//!
//! ```text
//! visit [--wait] VOLUME ADDR:PORT SECONDS
//! ```
//!
//! With `--wait` it connects only when a line has come in. It prints `greeted` when its greeting is
//! answered, and in the end one line of what it was told.
//!
//! # Invariants
//!
//! * It ends: with what it was told, or when its time is up. A connection that comes to nothing is
//!   tried again until then.
//! * Between two tries it is one client: the same nonce, the same session.
//!
//! What this module deliberately doesn't know: who the server is, and where it runs.

use outrider_core::arena::{Arena, REGION_ALIGN};
use outrider_core::format::layout::SUPER_BLKNO;
use outrider_core::format::super_block::{Super, Unverified};
use outrider_core::format::wire::greeting::{Machine, Role};
use outrider_core::format::wire::message::{
    ClientAnswer, ClientRequest, HeldLocks, InoSet, Outcome, ServerAnswer, ServerRequest, Statfs,
};
use outrider_core::format::{BLOCK_BYTES, Block, ClientId, Term};
use outrider_core::net::{
    Cluster, ClusterKey, Incoming, LineLimits, Link, LinkConfig, LinkEvent, LinkLimits,
    SessionLimits, Timing,
};
use outrider_core::server::ServerLimits;
use outrider_hal::{Instant, StreamId};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant as Time};

/// Time for a connection to come to something before another is tried.
const TRY: Duration = Duration::from_millis(1500);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a read waits for bytes.
const READ: Duration = Duration::from_millis(1);

fn main() -> ExitCode {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let wait = words.first().is_some_and(|word| word == "--wait");
    if wait {
        words.remove(0);
    }
    match run(&words, wait) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("visit: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String], wait: bool) -> Result<String, String> {
    let usage = || "usage: visit [--wait] VOLUME ADDR:PORT SECONDS".to_owned();
    let [volume, at, seconds] = words else { return Err(usage()) };
    let at: SocketAddr = at.parse().map_err(|_| usage())?;
    let patience = Duration::from_secs(seconds.parse().map_err(|_| usage())?);
    let volume = read_volume(Path::new(volume))?;
    let mut visitor = Visitor::new(&volume)?;
    if wait {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map_err(|error| error.to_string())?;
    }
    let (term, client, statfs) = visitor.visit(at, patience)?;
    let Statfs { blocks, blocks_free, .. } = statfs;
    let (round, id) = (term.round(), client.0);
    Ok(format!("round {round}, client {id}, {blocks} blocks, {blocks_free} free"))
}

/// Reads the super block of a volume.
fn read_volume(path: &Path) -> Result<Super, String> {
    let fail = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(fail)?;
    let blocks = file.metadata().map_err(fail)?.len() / BLOCK_BYTES as u64;
    let mut block = Box::new(Block::ZERO);
    file.read_exact_at(&mut block.0, SUPER_BLKNO.0 * BLOCK_BYTES as u64).map_err(fail)?;
    let verified = Unverified::new(&block).verify(SUPER_BLKNO, blocks);
    verified.map_err(|error| format!("{}: {error:?}", path.display()))
}

/// Random bytes.
fn draw<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    let random = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    random.map(|()| bytes).map_err(|error| format!("/dev/urandom: {error}"))
}

struct Visitor {
    link: Link<'static>,
    start: Time,
    streams: u64,
    greeted: Option<(Term, ClientId)>,
    statfs: Option<Statfs>,
}

impl Visitor {
    fn new(volume: &Super) -> Result<Visitor, String> {
        let key = ClusterKey(volume.fields().cluster_key);
        let config = LinkConfig {
            cluster: Cluster::new(volume.fsid(), key),
            timing: Timing::DEFAULT,
            role: Role::Mount,
            nonce: draw()?,
            machine: Machine::default(),
            read_only: false,
        };
        let asks = ServerLimits::for_clients(1).links.session.asks_max;
        let limits = LinkLimits {
            session: SessionLimits { asks_max: 1, answers_max: asks },
            line: LineLimits::MIN,
        };
        let mut measure = Arena::measuring();
        let full = |_| "the link has no room".to_owned();
        let _ = Link::carve(&mut measure, &limits, config).map_err(full)?;
        let bytes = measure.bytes_used();
        // The process ends with the visit.
        let region = vec![MaybeUninit::uninit(); bytes + REGION_ALIGN].leak();
        let pad = region.as_ptr().align_offset(REGION_ALIGN);
        let mut arena = Arena::new(&mut region[pad..][..bytes]).map_err(full)?;
        let link = Link::carve(&mut arena, &limits, config).map_err(full)?;
        Ok(Visitor { link, start: Time::now(), streams: 0, greeted: None, statfs: None })
    }

    fn now(&self) -> Instant {
        Instant(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn visit(
        &mut self,
        at: SocketAddr,
        patience: Duration,
    ) -> Result<(Term, ClientId, Statfs), String> {
        let deadline = Time::now() + patience;
        let mut last = "no time".to_owned();
        while Time::now() < deadline {
            match self.try_once(at, deadline) {
                Ok(told) => return Ok(told),
                Err(error) => last = error,
            }
            std::thread::sleep(PAUSE);
        }
        Err(format!("{at}: {last}"))
    }

    /// Makes one connection, and goes on as far as it carries.
    fn try_once(
        &mut self,
        at: SocketAddr,
        deadline: Time,
    ) -> Result<(Term, ClientId, Statfs), String> {
        let fail = |error: std::io::Error| error.to_string();
        let mut tcp = TcpStream::connect_timeout(&at, TRY).map_err(fail)?;
        tcp.set_nodelay(true).map_err(fail)?;
        tcp.set_read_timeout(Some(READ)).map_err(fail)?;
        tcp.set_write_timeout(Some(TRY)).map_err(fail)?;
        self.streams += 1;
        let stream = StreamId(self.streams);
        self.link.connect(self.now(), stream, draw()?);
        let patience = deadline.min(Time::now() + TRY);
        let mut outcome = Ok(None);
        while matches!(outcome, Ok(None)) {
            outcome = self.turn(&mut tcp, stream);
            if matches!(outcome, Ok(None)) && Time::now() >= patience && !self.link.is_up() {
                outcome = Err("no answer".into());
            }
        }
        self.link.disconnect();
        while self.link.poll_close().is_some() {}
        outcome.map(|told| told.expect("the loop has ended"))
    }

    fn turn(
        &mut self,
        tcp: &mut TcpStream,
        stream: StreamId,
    ) -> Result<Option<(Term, ClientId, Statfs)>, String> {
        self.link.step(self.now());
        while let Some(event) = self.link.poll_event() {
            match event {
                LinkEvent::Up { term, client, .. } => {
                    if self.greeted.replace((term, client)).is_none() {
                        println!("greeted");
                    }
                    // If it can't be sent again, it was sent, and is sent again by itself.
                    let _ = self.link.request(&ClientRequest::Statfs);
                }
                LinkEvent::Message => self.on_message()?,
            }
        }
        self.link.step(self.now());
        let bytes = self.link.send_bytes(stream);
        if !bytes.is_empty() {
            let len = tcp.write(bytes).map_err(|error| error.to_string())?;
            self.link.sent(stream, len);
        }
        if self.link.is_parted()
            && let (Some((term, client)), Some(statfs)) = (self.greeted, self.statfs)
        {
            return Ok(Some((term, client, statfs)));
        }
        if let Some((_, end)) = self.link.poll_close() {
            return Err(format!("{end:?}"));
        }
        match tcp.read(self.link.recv_space(stream)) {
            Ok(0) => Err("the connection was closed".into()),
            Ok(len) => {
                self.link.received(self.now(), stream, len);
                Ok(None)
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(None),
                _ => Err(error.to_string()),
            },
        }
    }

    /// Takes the message at the head. It holds and uses nothing, and says so.
    fn on_message(&mut self) -> Result<(), String> {
        let (mut answer, mut leave) = (None, false);
        match self.link.head() {
            Some(Incoming::Request(request)) => {
                answer = Some(match request {
                    ServerRequest::LockTell(_) => ClientAnswer::LockTell,
                    ServerRequest::Recover(_) => {
                        ClientAnswer::Recover(HeldLocks::new(&[]).expect("none are in order"))
                    }
                    ServerRequest::Recall(_) => ClientAnswer::Recall,
                    ServerRequest::InUse(_) => ClientAnswer::InUse(InoSet(0)),
                    ServerRequest::Compact(_) => return Err("asked to merge unready".into()),
                });
            }
            Some(Incoming::Answer(_, Outcome::Done(ServerAnswer::Statfs(statfs)))) => {
                self.statfs = Some(statfs);
                leave = true;
            }
            Some(Incoming::Answer(_, Outcome::Done(ServerAnswer::Farewell))) => {}
            other => return Err(format!("an unexpected message: {other:?}")),
        }
        let Some(ticket) = self.link.take(self.now()) else { return Ok(()) };
        match answer {
            // A session that was renewed meanwhile is asked again.
            Some(answer) => drop(self.link.answer(ticket, &Outcome::Done(answer))),
            None => self.link.recorded(ticket),
        }
        if leave {
            let farewell = self.link.request(&ClientRequest::Farewell);
            farewell.map(drop).map_err(|error| format!("no farewell: {error:?}"))?;
        }
        Ok(())
    }
}
