//! How the servers of a cluster are started: as processes, or as guests.
//!
//! * A slot of the volume is held until the guest in it has ended, so a guest may say that it runs
//!   on the host of the one before it, which is gone with all that it had in flight.

use super::process::{Farewell, Output, Process};
use super::volume::Volume;
use super::{AccelChoice, Options};
use crate::decode::Decoder;
use crate::guest::{Accel, Guest, SHARED_BUFFERED, SHARED_DIRECT, STOP, Scratch, Setup};
use crate::tools::Failure;
use rustix::io::{FdFlags, fcntl_setfd};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Time in which a guest must say its first line, or its accelerator doesn't work.
const PROBE: Duration = Duration::from_secs(3);

/// Starts servers.
pub(super) enum Starter {
    Guests { image: PathBuf, elf: Vec<u8>, setup: Box<Setup> },
    Hosted,
}

/// A server's place.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    pub(super) slot: u8,
    /// Where it listens: what connects to the address that the volume names must get here.
    pub(super) at: SocketAddr,
    /// Where a guest's monitor listens.
    pub(super) control: PathBuf,
}

impl Starter {
    pub(super) fn guests(
        image: PathBuf,
        volume: &Volume,
        options: &Options,
        scratch: &Scratch,
    ) -> Result<Starter, Failure> {
        let elf = fs::read(&image).map_err(|e| Failure(format!("{}: {e}", image.display())))?;
        let mut setup = Setup::new(options.machine, "");
        setup.memory.clone_from(&options.memory);
        setup.accel = match options.accel {
            AccelChoice::Kvm => Accel::Kvm,
            AccelChoice::Tcg => Accel::Tcg,
            AccelChoice::Auto if has_kvm(&setup, &image, scratch) => Accel::Kvm,
            AccelChoice::Auto => Accel::Tcg,
        };
        setup.disk = ",share-rw=on";
        setup.blockdev = if volume.is_direct() { SHARED_DIRECT } else { SHARED_BUFFERED };
        Ok(Starter::Guests { image, elf, setup: Box::new(setup) })
    }

    /// Whether servers are guests.
    pub(super) fn is_guests(&self) -> bool {
        matches!(self, Starter::Guests { .. })
    }

    pub(super) fn start(
        &self,
        outrider: &Path,
        volume: &Volume,
        seat: &Seat,
    ) -> Result<Process, Failure> {
        let Seat { slot, at, control } = seat;
        let name = format!("server {slot}");
        let Starter::Guests { image, elf, setup } = self else {
            let mut command = Command::new(outrider);
            command.args(["server", "--slot", &slot.to_string()]);
            if *at != volume.voters[usize::from(*slot)] {
                command.args(["--listen", &at.to_string()]);
            }
            command.arg(&volume.path);
            return Process::start(&name, &command, Output::Lines, Farewell::Signal);
        };
        let mut setup = setup.clone();
        let port = at.port();
        setup.append = format!("slot={slot} ip=10.0.2.15/24 gw=10.0.2.2 listen={port}");
        setup.append.push_str(&who());
        setup.forward = format!(",hostfwd=tcp:{at}-:{port}");
        let decoder = Decoder::new(elf).map_err(Failure)?;
        let held = volume.hold(*slot)?;
        if held.everywhere {
            setup.append.push_str(" alone");
        }
        for file in &held.files {
            fcntl_setfd(file, FdFlags::empty())
                .map_err(|error| Failure(format!("a lock can't be passed on: {error}")))?;
        }
        let mut command = setup.command(image, &volume.path);
        command.args(["-qmp".into(), format!("unix:{},server=on,wait=off", control.display())]);
        let output = Output::Frames(Box::new(decoder));
        let process = Process::start(&name, &command, output, Farewell::Byte(STOP));
        // From here on the guest's process alone holds the slot.
        drop(held);
        process
    }
}

/// Whether a guest gets as far as its first line with KVM. That the device is there says little.
fn has_kvm(setup: &Setup, image: &Path, scratch: &Scratch) -> bool {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    // It refuses this command line, in words.
    let setup = Setup { accel: Accel::Kvm, append: "kvm".into(), quiet: true, ..setup.clone() };
    let said = scratch.disk().and_then(|disk| {
        let guest = Guest::start(&setup, image, &disk, scratch, PROBE)?;
        guest.wait()
    });
    let works = said.is_ok_and(|ended| ended.lines.iter().any(|line| line.contains("'kvm'")));
    eprintln!("xtask: guests run under {}", if works { "KVM" } else { "TCG; KVM does not work" });
    works
}

/// The ids of the host that guests on this machine run on, and of its boot, as the image takes
/// them: the machine's, with every bit turned, so that they are nobody else's. Without them a
/// killed guest's slot has to be vouched for.
fn who() -> String {
    let id = |path| {
        let digits = fs::read_to_string(path).ok()?.trim().replace('-', "");
        u128::from_str_radix(&digits, 16).ok().map(|id| format!("{:032x}", !id))
    };
    let (host, boot) = (id("/etc/machine-id"), id("/proc/sys/kernel/random/boot_id"));
    match (host, boot) {
        (Some(host), Some(boot)) => format!(" host={host} boot={boot}"),
        (Some(host), None) => format!(" host={host}"),
        (None, _) => String::new(),
    }
}
