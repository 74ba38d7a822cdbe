//! The programs that the chores call, and how they come onto this machine.

use std::fmt::Display;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::{env, fmt, fs};

/// Why a chore failed, in one line that says what to do where something can be done.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

impl Failure {
    pub(crate) fn new(message: impl Display) -> Failure {
        Failure(message.to_string())
    }
}

impl From<Failure> for String {
    fn from(failure: Failure) -> String {
        failure.0
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().expect("xtask lies in the workspace").to_path_buf()
}

/// Cargo, run in the workspace's root. The toolchain is the one that runs this.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Builds the program `outrider`; answers where it is.
pub(crate) fn build_program(dev: bool) -> Result<PathBuf, Failure> {
    let mut command = cargo();
    command.args(["build", "--quiet", "--package", "outrider-hosted", "--bin", "outrider"]);
    let dir = if dev { "debug" } else { "release" };
    if !dev {
        command.arg("--release");
    }
    succeed("building outrider", &mut command)?;
    Ok(target().join(dir).join("outrider"))
}

/// Builds a program of the crate `outrider-tests`; answers where it is.
pub(crate) fn build_test_program(name: &str) -> Result<PathBuf, Failure> {
    let mut command = cargo();
    command.args(["build", "--quiet", "--package", "outrider-tests", "--bin", name]);
    succeed(&format!("building {name}"), &mut command)?;
    Ok(target().join("debug").join(name))
}

/// Ports of 127.0.0.1 that nobody used a moment ago, and that the system gives to nobody who leaves
/// the choice to it, as everybody who connects to something does.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>, Failure> {
    const PORTS: Range<u16> = 10_000..32_000;
    static ASKED: AtomicU16 = AtomicU16::new(0);
    // Processes that run side by side look in different places.
    let first = std::process::id().wrapping_mul(61);
    let asked = || first.wrapping_add(ASKED.fetch_add(1, Ordering::Relaxed).into());
    let port = |nth: u32| PORTS.start + (nth % u32::from(PORTS.end - PORTS.start)) as u16;
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let free: Vec<u16> = PORTS.map(|_| port(asked())).filter(is_free).take(count).collect();
    if free.len() < count {
        return Err(Failure::new("no free port"));
    }
    Ok(free)
}

/// Whether something is mounted at this directory or below. Asks the system, and not the mount,
/// which may not answer.
pub(crate) fn mounted_below(dir: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    points.map(|point| point.replace("\\040", " ")).any(|point| Path::new(&point).starts_with(dir))
}

/// Runs the command; fails with what it is called when it does.
pub(crate) fn succeed(what: &str, command: &mut Command) -> Result<(), Failure> {
    eprintln!("xtask: {what}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure(format!("{what} failed: {status}"))),
        Err(error) => Err(Failure(format!("{what} can't be run: {error}"))),
    }
}

/// What the command prints; fails with what it is called when it does.
pub(crate) fn output(what: &str, command: &mut Command) -> Result<String, Failure> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Failure(format!("{what} can't be run: {error}")))?;
    if !output.status.success() {
        return Err(Failure(format!("{what} failed: {}", output.status)));
    }
    String::from_utf8(output.stdout).map_err(|_| Failure(format!("{what} printed no text")))
}

/// A program that a chore needs, and the Debian package it is in.
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

/// The emulator that boots the image.
pub(crate) const QEMU: Tool = Tool { program: "qemu-system-x86_64", package: "qemu-system-x86" };

/// What unmounts a file system of a user.
pub(crate) const FUSERMOUNT: Tool = Tool { program: "fusermount3", package: "fuse3" };

/// How missing tools are dealt with.
pub(crate) struct Tools {
    /// Install them, where that is possible without asking.
    pub(crate) install: bool,
}

impl Tools {
    /// Sees to it that the tool is there; `false` when it is not to be had.
    pub(crate) fn have(&self, tool: &Tool) -> bool {
        if find(tool.program).is_some() {
            return true;
        }
        if !self.install || !is_root() || find("apt-get").is_none() {
            eprintln!("xtask: {} is missing: apt-get install {}", tool.program, tool.package);
            return false;
        }
        let apt = |arguments: &[&str]| {
            let what = format!("apt-get {}", arguments.join(" "));
            let mut command = Command::new("apt-get");
            command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
            // What apt says is no result of ours.
            command.stdin(Stdio::null()).stdout(Stdio::null());
            succeed(&what, &mut command)
        };
        let installed = apt(&["-qq", "update"])
            .and_then(|()| apt(&["-qq", "install", "-y", "--no-install-recommends", tool.package]));
        if let Err(failure) = installed {
            eprintln!("xtask: {failure}");
        }
        find(tool.program).is_some()
    }
}

/// Where the program is, as the shell would find it.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn is_root() -> bool {
    output("id -u", Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::mounted_below;
    use std::path::Path;

    #[test]
    fn mount_points_are_known() {
        assert!(mounted_below(Path::new("/proc")));
        assert!(!mounted_below(Path::new("/proc/self")));
        assert!(!mounted_below(Path::new("/pro")));
    }
}
