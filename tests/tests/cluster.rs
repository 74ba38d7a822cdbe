//! Clusters of real processes: a server and kernel mounts of one volume, which are killed, and a
//! device that is full.
//!
//! Needs user 0 and /dev/fuse, and says so where they are lacking.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longer than anything takes on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often what is waited for is looked at.
const LOOK: Duration = Duration::from_millis(20);
const FILES: u32 = 300;

/// The program, built first: cargo builds only the programs of the package that is tested.
fn program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let target = test.parent().and_then(Path::parent).unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "outrider-hosted", "--bin", "outrider"]);
        cargo.arg("--target-dir").arg(target.parent().unwrap());
        if target.ends_with("release") {
            cargo.arg("--release");
        }
        cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        assert!(cargo.status().unwrap().success(), "the program can't be built");
        target.join("outrider")
    })
}

/// A process of the program that has come to where it is of use.
struct Process {
    child: Child,
    /// What it says goes somewhere as long as this lives.
    lines: Receiver<String>,
    /// Where it is mounted.
    at: Option<PathBuf>,
}

impl Process {
    /// Starts one, and waits for a line that says this.
    fn start(args: &[&Path], says: &str, at: Option<PathBuf>) -> Process {
        let mut command = Command::new(program());
        let mut child = command.args(args).stderr(Stdio::piped()).spawn().unwrap();
        let (told, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            for line in stderr.lines() {
                // Nobody listens once it is of use; it must be able to speak all the same.
                let _ = told.send(line.unwrap());
            }
        });
        // It ends with this, whatever comes.
        let process = Process { child, lines, at };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = process.lines.recv_timeout(left);
            if line.unwrap_or_else(|_| panic!("it never said {says:?}")).contains(says) {
                return process;
            }
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends in order, as a signal has it.
    fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let child = &mut self.child;
        let status = until("it ends", || child.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(at) = &self.at {
            let mut umount = Command::new("umount");
            let _ = umount.arg("-l").arg(at).stderr(Stdio::null()).status();
        }
    }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited for ever until {what}");
        thread::sleep(LOOK);
    }
}

/// A volume in memory if possible: a lease is short, and a busy disk's flush is not.
struct Volume {
    dir: TempDir,
}

impl Volume {
    /// None, where there can't be mounts.
    fn make(size: &str) -> Option<Volume> {
        let root = rustix::process::geteuid().is_root();
        if !root || !Path::new("/dev/fuse").exists() {
            println!("skipped: needs {}", if root { "/dev/fuse" } else { "root" });
            return None;
        }
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let volume = Volume { dir: dir.unwrap() };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let voter = format!("0,127.0.0.1,{port}");
        let mut mkfs = Command::new(program());
        mkfs.args(["mkfs", "-s", size, "-Q", &voter]).arg(volume.device());
        assert!(mkfs.stdout(Stdio::null()).status().unwrap().success());
        Some(volume)
    }

    fn device(&self) -> PathBuf {
        self.dir.path().join("volume")
    }

    fn serve(&self) -> Process {
        let device = self.device();
        let args = ["server", "--slot", "0"].map(Path::new);
        Process::start(&[&args[..], &[&device]].concat(), "listens at", None)
    }

    fn mount(&self, name: &str) -> (Process, PathBuf) {
        let (device, at) = (self.device(), self.dir.path().join(name));
        fs::create_dir_all(&at).unwrap();
        let args = [Path::new("mount"), Path::new("-f"), &device, &at];
        (Process::start(&args, "is mounted at", Some(at.clone())), at)
    }

    /// That all is where it belongs, once nobody uses the volume.
    fn check(&self) {
        let output = Command::new(program()).arg("check").arg(self.device()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

/// What is in the file of this number: some of a block, or of several.
fn contents(number: u32) -> Vec<u8> {
    let len = number * 97 % 13_000;
    (0..len).map(|at| (at.wrapping_mul(number + 3) >> 3) as u8).collect()
}

fn path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("dir{}", number % 7)).join(format!("file{number}"))
}

fn write(dir: &Path, number: u32) -> io::Result<File> {
    let path = path(dir, number);
    fs::create_dir_all(path.parent().unwrap())?;
    let mut file = File::create(path)?;
    file.write_all(&contents(number))?;
    Ok(file)
}

fn assert_there(dir: &Path, numbers: impl Iterator<Item = u32>) {
    for number in numbers {
        let found = fs::read(path(dir, number)).unwrap();
        assert!(found == contents(number), "file {number} differs");
    }
}

fn bytes_free(at: &Path) -> u64 {
    let told = rustix::fs::statvfs(at).unwrap();
    told.f_bfree * told.f_frsize
}

#[test]
fn a_copy_goes_on_when_the_server_is_killed_and_comes_back() {
    let Some(volume) = Volume::make("256M") else { return };
    let server = volume.serve();
    let ((one, at_one), (two, at_two)) = (volume.mount("one"), volume.mount("two"));
    let dir = at_one.clone();
    let copy = thread::spawn(move || {
        for number in 0..FILES {
            let file = write(&dir, number).unwrap();
            // Some of them can't end without a server.
            if number % 20 == 0 {
                file.sync_all().unwrap();
            }
        }
    });
    until("part of it is copied", || path(&at_one, FILES / 3).exists().then_some(()));
    server.kill();
    let server = volume.serve();
    copy.join().unwrap();
    assert_there(&at_two, 0..FILES);
    one.stop();
    two.stop();
    server.stop();
    volume.check();
}

#[test]
fn what_a_killed_mount_had_synced_is_there_on_another() {
    let Some(volume) = Volume::make("256M") else { return };
    let server = volume.serve();
    let ((one, at_one), (two, at_two)) = (volume.mount("one"), volume.mount("two"));
    for number in 0..FILES {
        let file = write(&at_one, number).unwrap();
        if number == FILES / 2 {
            file.sync_all().unwrap();
        }
    }
    // It has locks, loans and changes that nobody else knows of.
    one.kill();
    // The directories are the dead mount's until the server has given it up.
    assert_there(&at_two, 0..=FILES / 2);
    for number in 0..10 {
        fs::remove_file(path(&at_two, number)).unwrap();
        write(&at_two, FILES + number).unwrap();
    }
    let (one, at_one) = volume.mount("again");
    assert_there(&at_one, 10..=FILES / 2);
    assert_there(&at_one, FILES..FILES + 10);
    one.stop();
    two.stop();
    server.stop();
    volume.check();
}

#[test]
fn what_one_mount_removes_gives_its_space_back_though_another_has_read_it() {
    let Some(volume) = Volume::make("256M") else { return };
    let server = volume.serve();
    let ((one, at_one), (two, at_two)) = (volume.mount("one"), volume.mount("two"));
    let large = vec![7; 32 << 20];
    fs::write(at_one.join("large"), &large).unwrap();
    let mut open = File::open(at_two.join("large")).unwrap();
    let mut copy = Vec::new();
    fs::remove_file(at_one.join("large")).unwrap();
    assert!(!at_two.join("large").exists());
    io::Read::read_to_end(&mut open, &mut copy).unwrap();
    assert!(copy == large, "a file that is open is not what it was");
    fs::write(at_one.join("large"), &large).unwrap();
    assert!(fs::read(at_two.join("large")).unwrap() == large);
    let full = bytes_free(&at_one);
    fs::remove_file(at_one.join("large")).unwrap();
    let freed = large.len() as u64 - (1 << 20);
    until("the space is free", || (bytes_free(&at_one) >= full + freed).then_some(()));
    drop(open);
    one.stop();
    two.stop();
    server.stop();
    volume.check();
}

#[test]
fn a_full_device_says_so_and_is_of_use_again_when_something_was_removed() {
    let Some(volume) = Volume::make("96M") else { return };
    let server = volume.serve();
    let (one, at) = volume.mount("one");
    let mebibyte = vec![5; 1 << 20];
    let mut files = 0;
    let error = loop {
        match fs::write(at.join(format!("{files}")), &mebibyte) {
            Ok(()) => files += 1,
            Err(error) => break error,
        }
        assert!(files < 96, "more was written than there is room for");
    };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(files > 16, "{files} MiB are little");
    for number in 0..files / 2 {
        assert!(fs::read(at.join(format!("{number}"))).unwrap() == mebibyte);
        fs::remove_file(at.join(format!("{number}"))).unwrap();
    }
    let again = at.join("again");
    until("there is room", || {
        let written = fs::write(&again, &mebibyte).and_then(|()| File::open(&again)?.sync_all());
        match written {
            Ok(()) => Some(()),
            Err(error) if error.kind() == io::ErrorKind::StorageFull => None,
            Err(error) => panic!("{error}"),
        }
    });
    assert!(fs::read(&again).unwrap() == mebibyte);
    one.stop();
    server.stop();
    volume.check();
}
