//! `outrider witness`: what a server, or a mount, starts beside itself. See
//! [`outrider_hosted::witness`].
//!
//! When a mount has ended that had not left, its witness tells the leader, which then waits no
//! longer for what the mount might still write.
//!
//! # Invariants
//!
//! * The leader is told only when the process has ended, by which all that it had begun is over.
//! * It is told until it has answered that nothing of the mount is left, whoever leads, for a
//!   bounded time. To be told twice changes nothing, and late is as true as early: a number with
//!   its nonce names one mount, for ever.
//!
//! What this module deliberately doesn't know: what the leader makes of it.

use super::Failure;
use super::ask;
use super::device::Image;
use clap::Args;
use outrider_core::format::wire::ErrorCode;
use outrider_core::format::wire::message::{ClientRequest, Gone, ServerAnswer};
use outrider_hosted::report::{tell, to_system_log};
use outrider_hosted::witness::{Name, watch};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a leader is looked for. Who is not heard of it waits as for a mount without a witness.
const PATIENCE: Duration = Duration::from_secs(3600);
/// How long one leader may take: the mount can have been lent much.
const ANSWER: Duration = Duration::from_secs(30);
/// The pause before it is told again, at first and at most. The first is short, because the leader
/// may not have seen yet that the mount's connection has ended.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Watch the process that has started this one; for the program's own use.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Tell in the system's log.
    #[arg(long)]
    log: bool,
    /// It is a mount of the volume on this device.
    #[arg(long, value_name = "DEVICE")]
    device: Option<PathBuf>,
    /// Its number.
    pid: u32,
    /// How long after the end of a lease it is killed.
    grace_ms: u64,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    if options.log {
        to_system_log();
    }
    let grace = Duration::from_millis(options.grace_ms);
    let reports = std::io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let name = reports
        .and_then(|reports| watch(options.pid, grace, reports))
        .map_err(|error| Failure::new(format!("cannot watch process {}: {error}", options.pid)))?;
    if let (Some(name), Some(device)) = (name, &options.device) {
        report(device, name);
    }
    Ok(())
}

/// What has come of telling the leader once.
enum Told {
    /// Nothing is left of the mount.
    Over,
    /// The volume is not there any more.
    Nowhere,
    /// To be said again.
    Again(String),
}

/// Tells whoever leads that the mount has ended, until it is heard.
fn report(device: &Path, name: Name) {
    let (began, mut pause) = (Instant::now(), PAUSE);
    let (client, volume) = (name.client, device.display());
    loop {
        match tell_leader(device, name) {
            Told::Over => {
                return tell(&format!(
                    "the leader of {volume} knows that mount {client} has ended"
                ));
            }
            Told::Nowhere => return,
            Told::Again(why) if began.elapsed() > PATIENCE => {
                return tell(&format!(
                    "nobody could be told that mount {client} of {volume} has ended: {why}"
                ));
            }
            Told::Again(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn tell_leader(device: &Path, name: Name) -> Told {
    if !device.exists() {
        return Told::Nowhere;
    }
    let again = |failure: Failure| Told::Again(failure.what);
    let image = match Image::open(device) {
        Ok(image) => image,
        Err(failure) => return again(failure),
    };
    let found = image.volume().and_then(|volume| Ok((ask::leader(&image, &volume)?, volume)));
    let (leader, volume) = match found {
        Ok((Some(leader), volume)) => (leader, volume),
        Ok((None, _)) => return Told::Again("no server listens".to_owned()),
        Err(failure) => return again(failure),
    };
    let request = ClientRequest::Fence(Gone { client: name.client, nonce: Some(name.nonce) });
    let take = |answer: &ServerAnswer<'_>| matches!(answer, ServerAnswer::Fence).then_some(());
    match ask::ask_for(ANSWER, &volume, &leader, &request, take) {
        Ok(Ok(()) | Err(ErrorCode::NotFound)) => Told::Over,
        Ok(Err(error)) => Told::Again(error.to_string()),
        Err(why) => Told::Again(why),
    }
}
