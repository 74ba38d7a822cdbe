//! `outrider status` and `outrider df`: what the leader says of itself, and of its volume.
//!
//! # Invariants
//!
//! * They never wait for a mount: one that hangs is when people ask.

use super::ask::{self, Target};
use super::device::{Image, system};
use super::print::Volume;
use super::{Failure, report, size};
use clap::Args;
use outrider_core::format::BLOCK_BYTES;
use outrider_core::format::quorum::Slot;
use outrider_core::format::super_block::Super;
use outrider_core::format::wire::message::{ClientRequest, ServerAnswer, Statfs, Status};
use outrider_core::quorum::Leader;
use outrider_hosted::host;
use serde_json::{Value, json};
use std::path::PathBuf;

/// The status of a volume without a leader that answers.
const LEADERLESS: u8 = 3;

/// Show who leads, how it goes, and how each server stands.
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
    let take = |answer: &ServerAnswer<'_>| match answer {
        ServerAnswer::Status(status) => Some(*status),
        _ => None,
    };
    let answer = match &leader {
        Some(leader) => ask::ask(&found, leader, &ClientRequest::Status, take),
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

/// The leader, and what it says, if it does.
fn shown(leader: &Leader, status: Option<&Status>) -> Value {
    let mut value = json!({
        "term": leader.term.to_string(),
        "endpoint": leader.endpoint.to_string(),
        "answers": status.is_some(),
    });
    if let Some(status) = status {
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
