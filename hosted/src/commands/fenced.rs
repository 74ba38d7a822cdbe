//! `outrider fenced`: an operator's word that a mount is gone for good.
//!
//! # Invariants
//!
//! * It ends well only when what the mount was lent is back, durably, or was before.
//!
//! What this module deliberately doesn't know: what the server does with the word.

use super::Failure;
use super::ask::{self, Target};
use super::device::Image;
use clap::Args;
use outrider_core::format::ClientId;
use outrider_core::format::wire::ErrorCode;
use outrider_core::format::wire::message::{ClientRequest, Gone, ServerAnswer};
use std::path::PathBuf;
use std::time::Duration;

/// How long the server may take: a mount can have been lent much.
const PATIENCE: Duration = Duration::from_secs(30);

/// Say that a mount is gone for good, so that nothing has to be kept back for it any more.
///
/// What a mount that has died was lent, and files that it may still write to, are kept back until
/// somebody proves that nothing of it can reach the device any more. To say so is such a proof: say
/// it only of a host that is switched off, has been booted since, or is cut off from the device. If
/// the mount is not gone, what it still writes can destroy the data of files.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Another mount point of the volume, or its block device or file.
    path: PathBuf,
    /// The mount's number, as outrider status and the servers' logs show it.
    id: u64,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let target = Target::find(&options.path)?;
    let image = Image::open(&target.device)?;
    let (volume, name) = (image.volume()?, image.name());
    let leader = ask::leader(&image, &volume)?.ok_or_else(|| {
        Failure::new(format!(
            "no server listens for {name}; start one with outrider server, and say it again"
        ))
    })?;
    let id = options.id;
    let take = |answer: &ServerAnswer<'_>| matches!(answer, ServerAnswer::Fence).then_some(());
    let request = ClientRequest::Fence(Gone { client: ClientId(id), nonce: None });
    let answer = ask::ask_for(PATIENCE, &volume, &leader, &request, take).map_err(|why| {
        let at = leader.endpoint;
        Failure::new(format!("the leader of {name} at {at} can't be told: {why}; say it again"))
    })?;
    answer.map_err(|error| {
        Failure::new(match error {
            ErrorCode::NotFound => {
                format!("{name} knows no mount {id}, or none any more; see outrider status")
            }
            ErrorCode::Busy => format!("mount {id} of {name} is connected; unmount it instead"),
            error => format!("the leader of {name} refuses ({error:?}); see outrider status"),
        })
    })
}
