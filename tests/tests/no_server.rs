//! A mount whose server is gone: what waits, what fails, and what status says.
//!
//! Needs user 0 and /dev/fuse, and says so where they are lacking.
#![allow(clippy::unwrap_used, reason = "tests")]

use process::{Process, memory_dir, program, until, unused_port};
use rustix::io::Errno;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

#[path = "common/process.rs"]
mod process;

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).stderr(Stdio::null()).status();
    }
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(args).current_dir(dir);
    command
}

fn serve(dir: &Path) -> Process {
    let mut server = Process::start(&mut command(dir, &["server", "--slot", "0", "v"]));
    server.hear("listens at");
    server
}

fn status(dir: &Path, path: &str) -> (Option<i32>, Value) {
    let began = Instant::now();
    let output = command(dir, &["status", "--json", path]).output().unwrap();
    assert!(began.elapsed() < Duration::from_secs(60), "it hangs");
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn without_a_server_requests_fail_after_the_time_and_status_says_why() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        println!("skipped: needs root and /dev/fuse");
        return;
    }
    let dir = memory_dir();
    let voter = format!("0,127.0.0.1,{}", unused_port());
    let args = ["mkfs", "-s", "64M", "--recovery-ms", "11000", "-Q", &voter, "v"];
    assert!(command(dir.path(), &args).output().unwrap().status.success());
    let mut server = serve(dir.path());
    let at = dir.path().join("at");
    fs::create_dir(&at).unwrap();
    let options = ["mount", "-f", "-o", "noserver=eio:1", "v", "at"];
    let mut mount = Process::start(&mut command(dir.path(), &options));
    let _unmount = Unmount(at.clone());
    mount.hear("is mounted at");
    fs::write(at.join("file"), "before").unwrap();

    let (code, shown) = status(dir.path(), "at");
    assert_eq!((code, &shown["leader"]["answers"]), (Some(0), &true.into()));
    let client = &shown["leader"]["mounts"][0];
    assert_eq!((&client["standing"], &client["connected"]), (&"mounted".into(), &true.into()));

    server.kill();
    // What is asked while nobody serves waits at first, and ends in time.
    let (told, ended) = channel();
    let asked = at.clone();
    thread::spawn(move || {
        // What the mount may still answer by itself it does, until its lease is over.
        let mut error = None;
        while error.is_none() {
            error = fs::metadata(asked.join("absent"))
                .err()
                .filter(|error| error.raw_os_error() != Some(Errno::NOENT.raw_os_error()));
            thread::sleep(Duration::from_millis(50));
        }
        told.send(error.unwrap()).unwrap();
    });
    let (code, shown) = status(dir.path(), "at");
    assert_eq!((code, &shown["leader"]["answers"]), (Some(3), &false.into()), "{shown}");
    assert!(shown["trouble"].is_string(), "{shown}");
    assert_eq!(shown["mounted"], at.to_str().unwrap());
    let error = ended.recv_timeout(Duration::from_secs(60)).unwrap().raw_os_error();
    let expected = [Errno::IO, Errno::INTR].map(|errno| Some(errno.raw_os_error()));
    assert!(expected.contains(&error), "{error:?}");
    let (code, _) = status(dir.path(), "at");
    assert_eq!(code, Some(3));

    let mut server = serve(dir.path());
    until("it works again", || {
        (fs::read_to_string(at.join("file")).ok()? == "before").then_some(())
    });
    mount.stop();
    server.stop();
}
