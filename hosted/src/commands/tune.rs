//! `outrider tune`: changes what a volume is configured to be, while nobody uses it.
//!
//! # Invariants
//!
//! * Nothing is written before everything that can be refused was looked at.
//! * It is refused while anybody uses the volume on this host, while a voter writes its block, and
//!   as long as a client is recorded: what a mount has read of the configuration holds until it has
//!   left. An operator can answer for all of these.
//!
//! What this module deliberately doesn't know: the order of writing, which the core knows.

use super::device::{Image, carved, drive, open_alone, system};
use super::mkfs::{self, Label, Voter, parse_label, parse_voter};
use super::print::Volume;
use super::server::parse_vouched;
use super::{Failure, USAGE, report};
use clap::Args;
use outrider_core::error::Error;
use outrider_core::format::layout::QUORUM_BLKNO;
use outrider_core::format::quorum::{Ballot, HostId, SLOTS, Slot, parse};
use outrider_core::format::super_block::{Changes, Super};
use outrider_core::quorum::Vouched;
use outrider_core::tune::{Obstacle, Tune, forget_commits, settle};
use outrider_hal::{Block, Entropy};
use outrider_hosted::clock::SystemEntropy;
use outrider_hosted::disk::Access;
use outrider_hosted::host::{FileLock, SlotLock, lock_in_file, machine, show_id};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Change a volume's servers, label or times, while nobody uses it.
///
/// All mounts must have left, and all servers be stopped. Whatever becomes of this command, the
/// volume is configured wholly as before or wholly anew. Programs that were started before must be
/// started again.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A voter, as for mkfs. Those that are given are all there will be: to add one, or to change
    /// an address, give the others too; one that isn't given is left out.
    #[arg(short = 'Q', value_name = "NR,ADDR,PORT", value_parser = parse_voter)]
    voters: Vec<Voter>,
    /// A name for the volume, of at most 64 bytes; nothing for none.
    #[arg(short = 'L', value_name = "LABEL", value_parser = parse_label)]
    label: Option<Label>,
    /// How long the leader's lease runs, in milliseconds: from 100 to 60000. See mkfs.
    #[arg(long, value_name = "MS")]
    lease_ms: Option<u32>,
    /// How long a mount that isn't heard is waited for, in milliseconds: at least 9000 and two
    /// leases. See mkfs.
    #[arg(long, value_name = "MS")]
    recovery_ms: Option<u32>,
    /// How long file ranges of an evicted mount stay locked without proof that it writes no more,
    /// in milliseconds: longer than any write can be under way.
    #[arg(long, value_name = "MS")]
    io_lifetime_ms: Option<u32>,
    /// Go on from the newest root that can be read, although servers have confirmed later commits.
    ///
    /// What those changed is lost, and what uses the blocks that they took may be damaged. For a
    /// volume whose servers say that its newest root is lost, after outrider check has shown what
    /// is left.
    #[arg(long)]
    forget_commits: bool,
    /// The operator's word that a server of this id is gone for good; may be given several times.
    ///
    /// Needed for a server that was not stopped in good order, on another host; the refusal names
    /// the id. `any` speaks for all servers and all mounts: of a copy of a volume, from a snapshot
    /// or a backup, nobody else makes use. If one comes back it can destroy metadata.
    #[arg(long, value_name = "ID", value_parser = parse_vouched)]
    fenced: Vec<Vouched>,
    /// The block device or file.
    device: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let path = &options.device;
    let image = Image::open(path)?;
    let found = image.volume()?;
    let name = path.display();
    if !found.is_writable() {
        return Err(Failure::new(format!(
            "{name} has features that this program can only read; use a newer outrider"
        )));
    }
    let changes = changes(options, &found)?;
    let _alone = open_alone(path, false)?;
    let locks = Locks::take(path, &found)?;
    let ballots = ballots(options, &image, &found, &locks)?;
    let volume = Volume { image, found };
    let recorded = volume.recorded()?;
    let all_gone = options.fenced.contains(&Vouched::Anyone);
    if !all_gone && let Some((client, state)) = recorded.first() {
        let way = match options.forget_commits {
            false => {
                "unmount it, or, if it has died, start a server and tell it with outrider fenced; \
                 of a copy of a volume that nobody uses, --fenced any says so for all"
            }
            true => "make sure that every mount has ended, and say so with --fenced any",
        };
        return Err(Failure::new(format!(
            "mount {client} of {name} is recorded as {state} ({} in all); {way}",
            recorded.len()
        )));
    }
    carry_out(options, &volume.found, &changes, ballots)
}

/// What is to be changed.
fn changes(options: &Options, found: &Super) -> Result<Changes, Failure> {
    let voters = match options.voters.is_empty() {
        true => None,
        false => Some(mkfs::voters(&options.voters)?),
    };
    let Options { lease_ms, recovery_ms, io_lifetime_ms, .. } = *options;
    let label = options.label.map(|label| label.0);
    let changes = Changes { voters, label, lease_ms, recovery_ms, io_lifetime_ms };
    let wrong = |what: &str| Err(Failure { status: USAGE, what: what.to_owned() });
    if changes == Changes::default() && !options.forget_commits {
        return wrong("nothing is to be changed; see outrider tune --help");
    }
    if io_lifetime_ms == Some(0) {
        return wrong("--io-lifetime-ms is at least 1");
    }
    let limits = &found.fields().limits;
    let lease_ms = lease_ms.unwrap_or(limits.lease_ms.get());
    mkfs::check_times(lease_ms, recovery_ms.unwrap_or(limits.recovery_ms.get()))?;
    Ok(changes)
}

/// What keeps servers of this host out, and so proves that those before have ended.
struct Locks {
    _slots: Vec<SlotLock>,
    files: Vec<FileLock>,
    host: HostId,
}

impl Locks {
    fn take(path: &Path, volume: &Super) -> Result<Locks, Failure> {
        let failed = |error| system(path, "change", &error);
        let (mut slots, mut files) = (Vec::new(), Vec::new());
        for slot in Slot::ALL {
            let in_use = || {
                let name = path.display();
                Failure::new(format!("slot {slot} of {name} is in use on this host; stop it first"))
            };
            slots.push(SlotLock::take(volume, slot).map_err(failed)?.ok_or_else(in_use)?);
            match lock_in_file(path, slot).map_err(failed)? {
                FileLock::InUse => return Err(in_use()),
                lock @ (FileLock::Held(_) | FileLock::Unproven) => files.push(lock),
            }
        }
        let host = machine(volume).map_err(failed)?.host;
        Ok(Locks { _slots: slots, files, host })
    }

    /// Whether nobody else who can use the volume can be in the slot.
    fn reach_all(&self, slot: Slot) -> bool {
        matches!(self.files[slot.index()], FileLock::Held(_))
    }
}

fn quorum_blocks(image: &Image) -> Result<Vec<(Slot, Box<Block>)>, Failure> {
    let read = |slot: Slot| Ok((slot, image.read(slot.blkno(QUORUM_BLKNO))?));
    Slot::ALL.into_iter().map(read).collect()
}

/// What voters' blocks are to say first.
fn ballots(
    options: &Options,
    image: &Image,
    found: &Super,
    locks: &Locks,
) -> Result<[Option<Ballot>; SLOTS], Failure> {
    let blocks = quorum_blocks(image)?;
    let (mut ballots, mut lease_ms) = ([None; SLOTS], 0);
    for (slot, block) in &blocks {
        let says = parse(block, &found.volume(), QUORUM_BLKNO, *slot);
        let anyone = [Vouched::Anyone];
        let vouched = if locks.reach_all(*slot) { &anyone[..] } else { &options.fenced };
        let settled = settle(*slot, says, locks.host, vouched).map_err(explain)?;
        if let Some(ballot) = settled {
            if ballot.host != locks.host && !locks.reach_all(*slot) {
                lease_ms = lease_ms.max(ballot.lease_ms);
            }
            ballots[slot.index()] = Some(ballot);
        }
        if options.forget_commits {
            let stopped = settled.or(says.ok().flatten());
            ballots[slot.index()] = stopped.map(forget_commits);
        }
    }
    // Whoever is said to be gone, and is not, writes within a lease.
    std::thread::sleep(Duration::from_millis(u64::from(lease_ms) * 2));
    for ((slot, before), (_, after)) in blocks.iter().zip(quorum_blocks(image)?) {
        if before.0 != after.0 {
            let name = image.name();
            let what = format!("the server of slot {slot} of {name} is running; stop it first");
            return Err(Failure::new(what));
        }
    }
    Ok(ballots)
}

fn explain(obstacle: Obstacle) -> Failure {
    Failure::new(match obstacle {
        Obstacle::Unproven { slot, state, incarnation } => format!(
            "the server of slot {slot} was not stopped in good order{}; start it and stop it, or, \
             if it is gone for good, say so with --fenced {}",
            if state.is_active() { ", and claims to lead" } else { "" },
            show_id(incarnation.0)
        ),
        Obstacle::Damaged(slot, what) => format!(
            "the block of slot {slot} is damaged ({}), so nobody knows who used it; if no server \
             of that slot is there any more, say so with --fenced any",
            super::corruption(what)
        ),
    })
}

fn carry_out(
    options: &Options,
    found: &Super,
    changes: &Changes,
    ballots: [Option<Ballot>; SLOTS],
) -> Result<(), Failure> {
    let path = &options.device;
    let mut entropy = SystemEntropy::open()
        .map_err(|error| Failure::new(format!("cannot open /dev/urandom: {error}")))?;
    let mut key = [0; 32];
    entropy.fill(&mut key);
    let tune = carved(|arena| Tune::carve(arena, found, changes, key, ballots))?;
    let mut tune = tune.map_err(|what| {
        Failure::new(format!("no volume can be so ({})", super::corruption(what)))
    })?;
    let mut outcome = None;
    drive(&mut tune, path, Access::ReadWrite, |tune| outcome = tune.poll_outcome().or(outcome))?;
    let name = path.display();
    match outcome.or(tune.poll_outcome()) {
        Some(Ok(())) => {
            let generation = tune.volume().generation();
            let line = format!("{name}: configuration {generation}\n");
            report::put(line.as_bytes())
        }
        Some(Err(Error::Io { blkno, .. })) => Err(Failure::new(format!(
            "cannot write block {blkno} of {name}; see the system's log, and do it again: until \
             then it may be configured as before or anew"
        ))),
        Some(Err(_)) | None => Err(Failure::new(format!("{name} could not be changed; try again"))),
    }
}
