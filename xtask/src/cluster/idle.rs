//! The benchmark `idle`: what three servers and two mounts take of the processor and of the device
//! while nobody does anything.
//!
//! * Processor time is that of all of a node's threads, and of its witness, as the scheduler counts
//!   it. Where others keep the machine busy it is still right.
//! * I/Os are the blocks that the threads which do a node's transfers have read and written, by the
//!   bytes that the system counts for them, and a flush for each write: a voter writes its own block
//!   alone. Of a mount that is at rest there should be none.
//! * Nothing is asserted.

use super::mount::Mount;
use super::process::{LOOK, Process, until};
use super::starter::Starter;
use super::volume::{self, Volume};
use super::{Interrupt, STOP_PATIENCE, seats};
use crate::guest::Scratch;
use crate::tools::{FUSERMOUNT, Failure, Tools, build_program};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

const SERVERS: u8 = 3;
const MOUNTS: u32 = 2;
const SECONDS: u64 = 30;
/// Time for a server to be there.
const PATIENCE: Duration = Duration::from_secs(60);
/// After this long nothing that was begun is at work, and no mount has anything left to say.
const SETTLES: Duration = Duration::from_secs(20);
/// What is wanted of a node: so much of a core, in percent, and so many I/Os in a second.
const PERCENT_MAX: f64 = 1.0;
const IOS_MAX: f64 = 20.0;
/// Bytes of a block.
const BLOCK_BYTES: f64 = 4096.0;

/// Measures, and prints what came of it.
pub(crate) fn run(tools: &Tools, options: &[String]) -> Result<(), Failure> {
    let seconds = parse(options)?;
    if !tools.have(&FUSERMOUNT) {
        return Err(Failure(format!("{} is needed", FUSERMOUNT.program)));
    }
    let outrider = build_program(true)?;
    let interrupt = Interrupt::catch()?;
    let scratch = Scratch::in_memory("idle").map_err(Failure)?;
    let path = scratch.0.join("volume");
    volume::make(&outrider, &path, "1G", SERVERS, &[])?;
    let volume = Volume::prepare(&outrider, &path, "1G", SERVERS)?;
    let (seats, _) = seats(&volume, SERVERS, &scratch.0, false)?;
    let mut servers = Vec::new();
    for seat in &seats {
        servers.push(Starter::Hosted.start(&outrider, &volume, seat)?);
    }
    let outcome = measure(&outrider, &volume, &scratch, &servers, seconds, &interrupt);
    for server in servers {
        server.end(STOP_PATIENCE);
    }
    outcome?.iter().for_each(|line| println!("{line}"));
    Ok(())
}

fn parse(options: &[String]) -> Result<u64, Failure> {
    let wrong = || Failure::new("idle takes --seconds N, nothing else");
    match options {
        [] => Ok(SECONDS),
        [option, count] if option == "--seconds" => {
            count.parse().ok().filter(|count| *count > 0).ok_or_else(wrong)
        }
        _ => Err(wrong()),
    }
}

fn measure(
    outrider: &std::path::Path,
    volume: &Volume,
    scratch: &Scratch,
    servers: &[Process],
    seconds: u64,
    interrupt: &Interrupt,
) -> Result<Vec<String>, Failure> {
    let mut mounts = Vec::new();
    for number in 0..MOUNTS {
        let dir = scratch.0.join(format!("mnt{number}"));
        let name = format!("mount {number}");
        let mount = Mount::start(&name, outrider, &volume.path, dir, None)?;
        mounts.push(mount);
    }
    let measured = mounts.iter_mut().try_for_each(|mount| mount.wait(|| interrupt.came()));
    let measured = measured.and_then(|()| rest(servers, &mounts, seconds, interrupt));
    let mut in_order = true;
    for mount in mounts {
        in_order &= mount.end();
    }
    match (measured, in_order) {
        (measured, true) | (measured @ Err(_), false) => measured,
        (Ok(_), false) => Err(Failure::new("a mount did not end in order")),
    }
}

/// Looks at all nodes at rest.
fn rest(
    servers: &[Process],
    mounts: &[Mount],
    seconds: u64,
    interrupt: &Interrupt,
) -> Result<Vec<String>, Failure> {
    let leads = || servers.iter().any(Process::is_listening).then_some(());
    until(PATIENCE, leads).ok_or_else(|| Failure::new("nobody leads"))?;
    let leader = servers.iter().map(Process::listening).max();
    let mut nodes: Vec<(String, u32)> = Vec::new();
    for server in servers {
        let leads = if Some(server.listening()) == leader { "leads" } else { "follows" };
        nodes.push((format!("{}, which {leads}", server.name()), server.pid()));
    }
    let pids = mounts.iter().filter_map(Mount::pid).enumerate();
    nodes.extend(pids.map(|(number, pid)| (format!("mount {number}"), pid)));
    sleep(SETTLES, interrupt)?;
    let look = || nodes.iter().map(|(_, pid)| Usage::of(*pid)).collect::<Result<Vec<_>, _>>();
    let (began, before) = (Instant::now(), look()?);
    sleep(Duration::from_secs(seconds), interrupt)?;
    let (took, after) = (began.elapsed().as_secs_f64(), look()?);
    let mut report = vec![format!(
        "idle: {SERVERS} servers, {} mounts, leases of 1 s, at rest for {took:.0} s",
        mounts.len()
    )];
    for ((name, _), (before, after)) in nodes.iter().zip(before.iter().zip(&after)) {
        report.push(row(name, before, after, took));
    }
    Ok(report)
}

fn row(name: &str, before: &Usage, after: &Usage, seconds: f64) -> String {
    let percent = after.processor.saturating_sub(before.processor).as_secs_f64() / seconds * 100.0;
    let blocks = |now: u64, then: u64| now.saturating_sub(then) as f64 / BLOCK_BYTES / seconds;
    let reads = blocks(after.bytes_read, before.bytes_read);
    let writes = blocks(after.bytes_written, before.bytes_written);
    let ios = reads + 2.0 * writes;
    let missed = if percent < PERCENT_MAX && ios < IOS_MAX { "" } else { ": MISSED" };
    format!(
        "    {name:<24} {percent:>5.2} % of a core (below {PERCENT_MAX} wanted), {reads:>4.1} \
         reads, {writes:>3.1} writes and flushes: {ios:>4.1} I/Os in a second (below {IOS_MAX} \
         wanted){missed}"
    )
}

fn sleep(how_long: Duration, interrupt: &Interrupt) -> Result<(), Failure> {
    let until = Instant::now() + how_long;
    while Instant::now() < until {
        if interrupt.came() {
            return Err(Failure::new("interrupted"));
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// What a node has used since it started.
#[derive(Debug, Default)]
struct Usage {
    processor: Duration,
    /// By its transfers. They wake the node by a few bytes each, which count for nothing here.
    bytes_read: u64,
    bytes_written: u64,
}

impl Usage {
    /// Of a process, and of those that it has started.
    fn of(pid: u32) -> Result<Usage, Failure> {
        let failed = |error| Failure(format!("process {pid} can't be looked at: {error}"));
        let mut usage = Usage::default();
        for task in fs::read_dir(format!("/proc/{pid}/task")).map_err(failed)? {
            let task = task.map_err(failed)?.path();
            let read = |name| fs::read_to_string(task.join(name)).map_err(failed);
            let run = read("schedstat")?;
            let run = run.split_whitespace().next().and_then(|run| run.parse().ok());
            usage.processor += Duration::from_nanos(run.unwrap_or(0));
            if read("comm")?.starts_with("disk-") {
                let io = read("io")?;
                usage.bytes_read += counted(&io, "rchar");
                usage.bytes_written += counted(&io, "wchar");
            }
            for child in read("children")?.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                usage.processor += Usage::of(child)?.processor;
            }
        }
        Ok(usage)
    }
}

/// A number in what the system says of a thread's transfers.
fn counted(io: &str, name: &str) -> u64 {
    let line = io.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}
