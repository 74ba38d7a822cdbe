//! The volume of a cluster: found or made, and what its super block says.

use crate::tools::{Failure, free_ports, output, succeed};
use rustix::fs::{FlockOperation, OFlags, flock};
use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A volume that servers can use.
pub(crate) struct Volume {
    pub(crate) path: PathBuf,
    fsid: String,
    /// Where the voters of slots 0, 1, ... listen.
    pub(crate) voters: Vec<SocketAddr>,
}

impl Volume {
    /// Looks at the volume, after making it if there is none, and finds these many voters.
    pub(crate) fn prepare(
        outrider: &Path,
        path: &Path,
        size: &str,
        slots: u8,
    ) -> Result<Volume, Failure> {
        if !path.exists() {
            make(outrider, path, size, slots)?;
        }
        let path = path.canonicalize().map_err(|error| fail(path, &error))?;
        let mut print = Command::new(outrider);
        print.args(["print", "--json"]).arg(&path).arg("super");
        let text = output("outrider print", &mut print)?;
        let wrong = || Failure::new("outrider print does not say what is expected of it");
        let json: serde_json::Value = serde_json::from_str(&text).map_err(|_| wrong())?;
        let fsid = json["super"]["fsid"].as_str().ok_or_else(wrong)?.to_owned();
        let voter = |slot: u8| {
            let at = json["super"]["voters"][slot.to_string()].as_str();
            let at = at.and_then(|at| at.parse::<SocketAddr>().ok());
            at.filter(|at| at.ip().is_loopback()).ok_or_else(|| {
                Failure(format!(
                    "{} has no voter with a loopback address in slot {slot}; ask for fewer \
                     --slots, or make it with outrider mkfs -Q {slot},127.0.0.1,PORT",
                    path.display()
                ))
            })
        };
        let voters = (0..slots).map(voter).collect::<Result<_, _>>()?;
        Ok(Volume { path, fsid, voters })
    }

    /// Whether it can be read and written directly, as every user of it on this machine then does.
    pub(crate) fn is_direct(&self) -> bool {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(OFlags::DIRECT.bits().cast_signed());
        options.open(&self.path).is_ok()
    }

    /// Takes hold of a slot of the volume for a guest on this machine, and of the volume, so that
    /// nobody makes another one of it. Whoever has the files open holds them: they are passed on to
    /// the guest's process, and so held until that has ended, with all its transfers, even if this
    /// process is killed before.
    pub(crate) fn hold(&self, slot: u8) -> Result<[File; 2], Failure> {
        let volume = File::open(&self.path).map_err(|error| fail(&self.path, &error))?;
        flock(&volume, FlockOperation::NonBlockingLockShared).map_err(|_| {
            Failure(format!("{} is in use; stop what uses it first", self.path.display()))
        })?;
        let dir = Path::new("/run/lock");
        let dir = if dir.is_dir() { dir.to_path_buf() } else { std::env::temp_dir() };
        let path = dir.join(format!("outrider-guest-{}-{slot}", self.fsid));
        let mut options = OpenOptions::new();
        let file = options.create(true).write(true).truncate(false).open(&path);
        let file = file.map_err(|error| fail(&path, &error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok([volume, file]),
            Err(_) => Err(Failure(format!(
                "slot {slot} of {} is in use by another guest on this machine; stop that first",
                self.path.display()
            ))),
        }
    }
}

fn make(outrider: &Path, path: &Path, size: &str, slots: u8) -> Result<(), Failure> {
    let mut mkfs = Command::new(outrider);
    mkfs.args(["mkfs", "-s", size]);
    for (slot, port) in free_ports(slots.into())?.into_iter().enumerate() {
        mkfs.arg("-Q").arg(format!("{slot},127.0.0.1,{port}"));
    }
    succeed("outrider mkfs", mkfs.arg(path))
}

fn fail(path: &Path, error: &std::io::Error) -> Failure {
    Failure(format!("{}: {error}", path.display()))
}
