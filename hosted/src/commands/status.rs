//! `outrider status` and `outrider df`: what the leader says of itself, and of its volume.
//!
//! # Invariants
//!
//! * They never wait for a mount: one that hangs is when people ask.

use super::ask::{self, Asking, Target};
use super::device::{Image, system};
use super::print::Volume;
use super::{Failure, report, size};
use clap::Args;
use outrider_core::format::key::Key;
use outrider_core::format::quorum::Slot;
use outrider_core::format::super_block::Super;
use outrider_core::format::wire::message::{
    ClientRequest, ClientStanding, ClientStatusRecord, LockWaitRecord, ServerAnswer, Statfs, Status,
};
use outrider_core::format::{BLOCK_BYTES, ClientId};
use outrider_core::quorum::Leader;
use outrider_hosted::host::{self, show_id};
use serde_json::{Value, json};
use std::path::PathBuf;

/// The status of a volume without a leader that answers.
const LEADERLESS: u8 = 3;
/// Waiting requests shown.
const WAITS_MAX: usize = 256;

/// Show who leads, how it goes, how each mount and each server stands, and who waits for whom.
///
/// A mount that is `recovering` has not said yet which locks it holds: until all have, or are
/// evicted, nobody is granted any. `evicted_in_ms` is how long one that isn't connected is waited
/// for yet. What is quarantined on account of one that was evicted waits for proof that it writes
/// no more; `locked_ms` is how long its files' ranges do.
///
/// Exits with 0 if the leader answers, and with 3 if nobody leads or the leader doesn't answer; the
/// servers' blocks are shown in any case.
#[derive(Debug, Args)]
pub(crate) struct StatusOptions {
    /// Report as JSON.
    #[arg(long)]
    json: bool,
    /// A mount point, or the block device or file.
    path: PathBuf,
}

/// Show how full a volume is.
#[derive(Debug, Args)]
pub(crate) struct DfOptions {
    /// Report as JSON.
    #[arg(long)]
    json: bool,
    /// A mount point, or the block device or file of a volume that is served.
    path: PathBuf,
}

pub(crate) fn status(options: &StatusOptions) -> Result<u8, Failure> {
    let target = Target::find(&options.path)?;
    let image = Image::open(&target.device)?;
    let found = image.volume()?;
    let leader = ask::leader(&image, &found)?;
    let answer = match &leader {
        Some(leader) => Answer::ask(&found, leader),
        None => Err("no server listens; start one with outrider server".to_owned()),
    };
    let volume = Volume { image, found };
    let value = json!({
        "device": target.device.display().to_string(),
        "mounted": target.mounted.map(|path| path.display().to_string()),
        "leader": leader.as_ref().map(|leader| shown(leader, answer.as_ref().ok())),
        "trouble": answer.as_ref().err(),
        "voters": volume.quorum()?,
        "slots_here": slots_here(&found)?,
    });
    report::show(&value, options.json)?;
    Ok(if answer.is_ok() { 0 } else { LEADERLESS })
}

/// The slots whose servers run on this host as processes, those of mounts included.
fn slots_here(volume: &Super) -> Result<Vec<u8>, Failure> {
    let configured = Slot::ALL.into_iter().filter(|slot| volume.voter(slot.number()).is_some());
    let held = host::slots_held(volume, configured);
    let held = held.map_err(|error| Failure::new(format!("cannot list sockets: {error}")))?;
    Ok(held.into_iter().map(Slot::number).collect())
}

/// All that the leader says.
struct Answer {
    status: Status,
    clients: Vec<ClientStatusRecord>,
    waits: Vec<LockWaitRecord>,
}

impl Answer {
    fn ask(volume: &Super, leader: &Leader) -> Result<Answer, String> {
        let mut asking = Asking::connect(volume, leader)?;
        let status = asking.question(&ClientRequest::Status, |answer| match answer {
            ServerAnswer::Status(status) => Some(*status),
            _ => None,
        })?;
        let (mut clients, mut waits) = (Vec::<ClientStatusRecord>::new(), Vec::new());
        loop {
            let from = clients.last().map_or(0, |last| last.client.get().saturating_add(1));
            let request = ClientRequest::Clients(ClientId(from));
            let more = asking.question(&request, |answer| match answer {
                ServerAnswer::Clients(list) => Some(list.records().to_vec()),
                _ => None,
            })?;
            if more.is_empty() || more[0].client.get() < from {
                break;
            }
            clients.extend(more);
        }
        while waits.len() < WAITS_MAX {
            let request = ClientRequest::Waits(waits.len() as u64);
            let more = asking.question(&request, |answer| match answer {
                ServerAnswer::Waits(list) => Some(list.records().to_vec()),
                _ => None,
            })?;
            if more.is_empty() {
                break;
            }
            waits.extend(more);
        }
        Ok(Answer { status, clients, waits })
    }
}

/// A mount, and what it is waited for.
fn show_client(record: &ClientStatusRecord) -> Value {
    let standing = match ClientStanding::parse(record.standing) {
        Some(ClientStanding::Greeting) => "greeting",
        Some(ClientStanding::Mounted) => "mounted",
        Some(ClientStanding::Leaving) => "leaving",
        Some(ClientStanding::Evicting) => "evicting",
        Some(ClientStanding::Evicted) | None => "evicted",
    };
    let is_out = matches!(standing, "evicting" | "evicted");
    let awaited = "farewell, reboot of its host, fence, or outrider fenced";
    json!({
        "client": record.client.get(),
        "standing": standing,
        "connected": record.flags & ClientStatusRecord::CONNECTED != 0,
        "recovering": record.flags & ClientStatusRecord::RECOVERING != 0,
        "evicted_in_ms": (record.awaited_ms.get() > 0).then_some(record.awaited_ms.get()),
        "blocks_quarantined": record.blocks_quarantined.get(),
        "locked_ms": record.locked_ms.get(),
        "fences_failed": record.fences_failed.get(),
        "proof_awaited": is_out.then_some(awaited),
        "host": show_id(record.host_id),
        "boot": show_id(record.boot_id),
    })
}

/// Who waits for whom.
fn show_wait(record: &LockWaitRecord) -> Value {
    let mode = |mode| match mode {
        1 => "read",
        2 => "write",
        3 => "write-only",
        _ => "nothing",
    };
    let holder = Some(record.holder.get()).filter(|holder| *holder > 0);
    json!({
        "client": record.waiter.get(),
        "wants": mode(record.wanted),
        "lock": Key::from(record.name).to_string(),
        "waits_ms": record.waits_ms.get(),
        "holder": holder,
        "holds": holder.map(|_| mode(record.held)),
        "holder_evicted": record.flags & LockWaitRecord::GHOST != 0,
    })
}

/// The leader, and what it says, if it does.
fn shown(leader: &Leader, answer: Option<&Answer>) -> Value {
    let mut value = json!({
        "term": leader.term.to_string(),
        "endpoint": leader.endpoint.to_string(),
        "answers": answer.is_some(),
    });
    if let Some(Answer { status, clients, waits }) = answer {
        let more = json!({
            "term": status.term.to_string(),
            "commit": status.commit.0,
            "leading_ms": status.leading_ms,
            "clients": status.clients,
            "clients_connected": status.clients_connected,
            "clients_recovering": status.clients_recovering,
            "clients_quarantined": status.clients_quarantined,
            "locks": status.locks,
            "lock_waiters": status.lock_waiters,
            "blocks_quarantined": status.blocks_quarantined,
            "mounts": clients.iter().map(show_client).collect::<Vec<_>>(),
            "waits": waits.iter().map(show_wait).collect::<Vec<_>>(),
        });
        if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
            value.extend(more);
        }
    }
    value
}

pub(crate) fn df(options: &DfOptions) -> Result<(), Failure> {
    let target = Target::find(&options.path)?;
    let space = match &target.mounted {
        Some(path) => {
            let found = rustix::fs::statvfs(path);
            let found = found.map_err(|error| system(path, "ask", &error.into()))?;
            let scale = |blocks: u64| {
                u64::try_from(u128::from(blocks) * u128::from(found.f_frsize) / BLOCK_BYTES as u128)
                    .unwrap_or(u64::MAX)
            };
            (scale(found.f_blocks), scale(found.f_bfree))
        }
        None => served(&target)?,
    };
    let (blocks, free) = space;
    let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_BYTES as u64);
    let (all, used) = (bytes(blocks), bytes(blocks.saturating_sub(free)));
    if options.json {
        let value = json!({
            "device": target.device.display().to_string(),
            "mounted": target.mounted.map(|path| path.display().to_string()),
            "bytes": all,
            "bytes_used": used,
            "bytes_free": all.saturating_sub(used),
        });
        return report::show(&value, true);
    }
    let line = format!(
        "{}: {} of {} used, {} free\n",
        target.device.display(),
        size::show(used),
        size::show(all),
        size::show(all.saturating_sub(used)),
    );
    report::put(line.as_bytes())
}

/// Blocks of a volume and those that are free, as its leader says.
fn served(target: &Target) -> Result<(u64, u64), Failure> {
    let image = Image::open(&target.device)?;
    let volume = image.volume()?;
    let name = image.name();
    let leader = ask::leader(&image, &volume)?.ok_or_else(|| {
        Failure::new(format!("no server listens for {name}; start one with outrider server"))
    })?;
    let take = |answer: &ServerAnswer<'_>| match answer {
        ServerAnswer::Statfs(Statfs { blocks, blocks_free, .. }) => Some((*blocks, *blocks_free)),
        _ => None,
    };
    ask::ask(&volume, &leader, &ClientRequest::Statfs, take).map_err(|why| {
        let at = leader.endpoint;
        Failure::new(format!("the leader of {name} at {at} can't be asked: {why}; try again"))
    })
}
