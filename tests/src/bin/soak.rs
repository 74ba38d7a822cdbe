//! A volume that is all but full for a long time: two mounts make, write, shorten, rename, link and
//! delete files in directories of their own and in one that they share, and sync.
//!
//! ```text
//! soak [--minutes N] [--seed S]
//! ```
//!
//! The mounts, the volume and the program are told by `MNT0`, `MNT1`, `VOLUME` and `OUTRIDER`, as
//! `cargo xtask hosted --run` does. In the end everything is deleted, and the volume has to be
//! nearly as free as it was when it was new; and, when the mounts have left, just as free.
//!
//! # Invariants
//!
//! * Nothing fails but for want of space, or because the other was quicker with the same name.
//! * A file holds what was written to it, and zeros where it was made longer.
//! * No thread stands still: each operation ends within [`STANDSTILL`].
//! * Deleting goes on at a full volume, and all that is deleted is free [`SETTLED`] later.
//! * The volume is clean when it has settled, and as full as it gets.
//! * When the mounts have left, everybody has as many blocks as on a new volume of the same size,
//!   [`RESTED`] later: nothing is freed, lent or quarantined, and runs and nodes are as many. What
//!   is free and what the next commit has to spare together are the same.
//!
//! What this program deliberately doesn't know: how the servers and mounts were started.

use clap::Parser;
use outrider_tests::rng::Rng;
use rustix::fs::{statvfs, syncfs};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Threads that work in each mount.
const THREADS: u64 = 4;
/// Longer than this no operation may take.
const STANDSTILL: Duration = Duration::from_secs(30);
/// The time in which all files are deleted.
const DELETED: Duration = Duration::from_secs(120);
/// The time in which what was deleted becomes free.
const SETTLED: Duration = Duration::from_secs(120);
/// What of the volume may be missing then: one part in so many. Mounts keep up to twice as many
/// blocks as they ask for, and blocks for four full transactions.
const MISSING_PART: u64 = 16;
/// The time after which nothing is left of deleted files, while there are mounts: they look three
/// times. And the one after which a volume without mounts is at rest.
const RESTED: Duration = Duration::from_secs(180);
/// What `check` ends with when too much is written meanwhile.
const TOO_BUSY: i32 = 8;
/// Files are no longer than this.
const BYTES_MAX: u64 = 60_000;
/// Files that a thread remembers.
const FILES_MAX: usize = 20_000;

#[derive(Parser)]
#[command(name = "soak", about = "Works on a full volume for a long time")]
struct Options {
    /// How long.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// What is drawn differs from seed to seed; the times at which things happen always do.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    match soak(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}

fn told(name: &str) -> Result<PathBuf, String> {
    std::env::var_os(name).map(PathBuf::from).ok_or(format!("{name} is not set"))
}

fn soak(options: &Options) -> Result<(), String> {
    let mounts = [told("MNT0")?, told("MNT1")?];
    let (volume, outrider) = (told("VOLUME")?, told("OUTRIDER")?);
    let fresh = settled(&mounts[0], 0, Duration::from_secs(3))?;
    println!("fresh: {fresh}");
    let work = Work::new(&mounts, options);
    for mount in &mounts {
        fs::create_dir_all(mount.join("both")).map_err(|error| error.to_string())?;
    }
    let outcome = thread::scope(|scope| {
        for index in 0..THREADS * mounts.len() as u64 {
            let work = &work;
            scope.spawn(move || work.run(index));
        }
        work.watch()
    });
    work.report();
    outcome?;
    check(&outrider, &volume)?;
    println!("full: {}", Usage::of(&mounts[0])?);
    let begun = Instant::now();
    delete(&mounts)?;
    println!("deleted in {:.1} s", begun.elapsed().as_secs_f64());
    if begun.elapsed() > DELETED {
        return Err("deleting takes too long".to_owned());
    }
    let least = fresh.free.saturating_sub(fresh.blocks / MISSING_PART);
    let begun = Instant::now();
    let empty = settled(&mounts[0], least, SETTLED)?;
    println!("empty: {empty}, {:.0} s later", begun.elapsed().as_secs_f64());
    if empty.free < least {
        return Err(format!("{} blocks have not come back", fresh.free - empty.free));
    }
    check(&outrider, &volume)?;
    emptied(&outrider, &volume)?;
    leave(&mounts)?;
    rest(&outrider, &volume)
}

/// Waits until no inode is left but the root directory: files whose deletion nobody finished are
/// found by mounts, which look for them once in a while.
fn emptied(outrider: &Path, volume: &Path) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let counts = counts(outrider, volume)?;
        let inodes = counts.as_ref().and_then(|counts| counts["inodes"].as_u64());
        if inodes == Some(1) {
            println!("no inodes left {:.0} s later", begun.elapsed().as_secs_f64());
            return Ok(());
        }
        if begun.elapsed() > RESTED {
            return Err(format!("{inodes:?} inodes are left"));
        }
        thread::sleep(Duration::from_secs(2));
    }
}

/// Unmounts all.
fn leave(mounts: &[PathBuf; 2]) -> Result<(), String> {
    for mount in mounts {
        let status = Command::new("fusermount3").arg("-u").arg(mount).status();
        if !status.is_ok_and(|status| status.success()) {
            return Err(format!("{} can't be unmounted", mount.display()));
        }
    }
    Ok(())
}

/// Waits until everybody has as many blocks as on a new volume.
fn rest(outrider: &Path, volume: &Path) -> Result<(), String> {
    let shown = |error: io::Error| error.to_string();
    let bytes = fs::metadata(volume).map_err(shown)?.len();
    let dir = tempfile::tempdir().map_err(shown)?;
    let path = dir.path().join("new");
    let mut mkfs = Command::new(outrider);
    mkfs.args(["mkfs", "-Q", "0,127.0.0.1,7000", "-s", &bytes.to_string()]).arg(&path);
    if !mkfs.status().is_ok_and(|status| status.success()) {
        return Err("a new volume can't be made".to_owned());
    }
    let new = Holders::of(outrider, &path)?.ok_or("the new volume is busy")?;
    println!("new:  {new}");
    let begun = Instant::now();
    loop {
        thread::sleep(Duration::from_secs(2));
        let found = Holders::of(outrider, volume)?;
        let is_over = begun.elapsed() > RESTED;
        if let Some(found) = found.filter(|found| found == &new || is_over) {
            println!("rest: {found}, {:.0} s later", begun.elapsed().as_secs_f64());
            return match found == new {
                true => Ok(()),
                false => Err("not everybody has as many blocks as on a new volume".to_owned()),
            };
        }
        if begun.elapsed() > 2 * RESTED {
            return Err("the volume does not come to rest".to_owned());
        }
    }
}

/// What the checker counts, if the volume is clean. None: too much is written.
fn counts(outrider: &Path, volume: &Path) -> Result<Option<serde_json::Value>, String> {
    let output = Command::new(outrider).args(["check", "--json"]).arg(volume).output();
    let output = output.map_err(|error| format!("check: {error}"))?;
    match output.status.code() {
        Some(0) => {}
        Some(TOO_BUSY) => return Ok(None),
        Some(_) | None => return Err(format!("check ended with {}", output.status)),
    }
    let mut json: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    Ok(Some(json["counts"].take()))
}

/// Who has how many blocks.
struct Holders(BTreeMap<String, u64>);

impl Holders {
    /// As the checker counts them. None: too much is written.
    fn of(outrider: &Path, volume: &Path) -> Result<Option<Holders>, String> {
        let Some(counts) = counts(outrider, volume)? else { return Ok(None) };
        let blocks = counts["blocks"].as_object().ok_or("check does not count blocks")?;
        let count = |(name, count): (&String, &serde_json::Value)| {
            count.as_u64().map(|count| (name.clone(), count))
        };
        Ok(blocks.iter().map(count).collect::<Option<_>>().map(Holders))
    }

    /// Blocks that are free, or will be for a commit.
    fn spare(&self) -> u64 {
        ["free", "reserve"].iter().filter_map(|name| self.0.get(*name)).sum()
    }
}

impl PartialEq for Holders {
    fn eq(&self, other: &Holders) -> bool {
        let others = |of: &Holders| {
            let mut others = of.0.clone();
            others.retain(|name, _| name != "free" && name != "reserve");
            others
        };
        self.spare() == other.spare() && others(self) == others(other)
    }
}

impl std::fmt::Display for Holders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} free or in reserve;", self.spare())?;
        self.0.iter().try_for_each(|(name, blocks)| write!(f, " {name} {blocks}"))
    }
}

/// How full a volume is, in blocks.
#[derive(Debug, Clone, Copy)]
struct Usage {
    blocks: u64,
    free: u64,
}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} blocks free", self.free, self.blocks)
    }
}

impl Usage {
    fn of(mount: &Path) -> Result<Usage, String> {
        let found = statvfs(mount).map_err(|error| format!("statfs: {error}"))?;
        Ok(Usage { blocks: found.f_blocks, free: found.f_bavail })
    }
}

/// Waits until so many blocks are free, and two looks in a row say the same.
fn settled(mount: &Path, least: u64, patience: Duration) -> Result<Usage, String> {
    let end = Instant::now() + patience;
    let mut before = Usage::of(mount)?;
    loop {
        thread::sleep(Duration::from_secs(2));
        let now = Usage::of(mount)?;
        if (now.free >= least && now.free == before.free) || Instant::now() > end {
            return Ok(now);
        }
        before = now;
    }
}

fn check(outrider: &Path, volume: &Path) -> Result<(), String> {
    let status = Command::new(outrider).arg("check").arg(volume).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("check ended with {status}")),
        Err(error) => Err(format!("check: {error}")),
    }
}

/// Deletes everything, each mount its part.
fn delete(mounts: &[PathBuf; 2]) -> Result<(), String> {
    let part = |at: usize| -> io::Result<()> {
        let mount = &mounts[at];
        for entry in fs::read_dir(mount)? {
            let name = entry?.file_name();
            let theirs = name.to_string_lossy().ends_with(if at == 0 { "-1" } else { "-0" });
            if !theirs && (at == 0 || name != "both") {
                fs::remove_dir_all(mount.join(&name))?;
            }
        }
        syncfs(File::open(mount)?).map_err(io::Error::from)
    };
    thread::scope(|scope| {
        let parts = [0, 1].map(|at| scope.spawn(move || part(at)));
        parts.into_iter().try_for_each(|part| match part.join() {
            Ok(done) => done.map_err(|error| format!("deleting: {error}")),
            Err(_) => Err("deleting: a thread has died".to_owned()),
        })
    })
}

/// What the threads share.
struct Work {
    mounts: [PathBuf; 2],
    seed: u64,
    begun: Instant,
    end: Instant,
    /// What has gone wrong first.
    failure: Mutex<Option<String>>,
    failed: AtomicBool,
    /// Milliseconds after the beginning at which each thread began what it is at; none: it ended.
    at: Vec<AtomicU64>,
    operations: AtomicU64,
    refused: AtomicU64,
    longest_ms: AtomicU64,
    /// Free blocks of a thousand, as somebody saw a short time ago.
    free_share: AtomicU64,
}

impl Work {
    fn new(mounts: &[PathBuf; 2], options: &Options) -> Work {
        let begun = Instant::now();
        Work {
            mounts: mounts.clone(),
            seed: options.seed,
            begun,
            end: begun + Duration::from_secs_f64(options.minutes * 60.0),
            failure: Mutex::new(None),
            failed: AtomicBool::new(false),
            at: (0..2 * THREADS).map(|_| AtomicU64::new(0)).collect(),
            operations: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            longest_ms: AtomicU64::new(0),
            free_share: AtomicU64::new(1000),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn fail(&self, what: String) {
        self.failed.store(true, Ordering::Relaxed);
        self.failure.lock().expect("nobody dies with it").get_or_insert(what);
    }

    /// Looks after the threads until all have ended, or one stands still.
    fn watch(&self) -> Result<(), String> {
        loop {
            thread::sleep(Duration::from_millis(500));
            match Usage::of(&self.mounts[0]) {
                Ok(usage) => {
                    let share = usage.free * 1000 / usage.blocks.max(1);
                    self.free_share.store(share, Ordering::Relaxed);
                }
                Err(error) => self.fail(error),
            }
            let now = self.now_ms();
            let busy = self.at.iter().map(|at| at.load(Ordering::Relaxed));
            let busy: Vec<u64> = busy.filter(|at| *at != u64::MAX).collect();
            if busy.is_empty() {
                break;
            }
            let since = busy.iter().min().copied().unwrap_or(now);
            if now.saturating_sub(since) > STANDSTILL.as_millis() as u64 {
                // A thread that waits in the kernel can't be waited for.
                eprintln!("soak: an operation has not ended for {} ms", now - since);
                std::process::exit(1);
            }
        }
        self.failure.lock().expect("nobody dies with it").take().map_or(Ok(()), Err)
    }

    fn report(&self) {
        println!(
            "{} operations, {} refused for want of space, the longest took {} ms",
            self.operations.load(Ordering::Relaxed),
            self.refused.load(Ordering::Relaxed),
            self.longest_ms.load(Ordering::Relaxed)
        );
    }

    /// A thread's work.
    fn run(&self, index: u64) {
        let mount = (index % 2) as usize;
        let mut worker = Worker {
            rng: Rng::new(self.seed.wrapping_mul(1000) + index),
            top: self.mounts[mount].join(format!("{}-{mount}", index / 2)),
            both: self.mounts[mount].join("both"),
            made: 0,
            index,
            files: Vec::new(),
        };
        if let Err(error) = fs::create_dir_all(&worker.top) {
            self.fail(format!("{}: {error}", worker.top.display()));
        }
        while Instant::now() < self.end && !self.failed.load(Ordering::Relaxed) {
            let begun = self.now_ms();
            self.at[index as usize].store(begun, Ordering::Relaxed);
            match worker.step(self.free_share.load(Ordering::Relaxed)) {
                Ok(()) => {}
                Err(Fault::Io(error)) if error.kind() == ErrorKind::StorageFull => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                }
                // Files in the directory of both are renamed and deleted by both.
                Err(Fault::Io(error)) if error.kind() == ErrorKind::NotFound => {}
                Err(Fault::Io(error)) => self.fail(format!("thread {index}: {error}")),
                Err(Fault::Wrong(what)) => self.fail(format!("thread {index}: {what}")),
            }
            self.operations.fetch_add(1, Ordering::Relaxed);
            self.longest_ms.fetch_max(self.now_ms() - begun, Ordering::Relaxed);
        }
        self.at[index as usize].store(u64::MAX, Ordering::Relaxed);
    }
}

/// What a step may end with.
enum Fault {
    Io(io::Error),
    Wrong(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        Fault::Io(error)
    }
}

/// A file, and the byte it is full of.
struct Made {
    path: PathBuf,
    byte: u8,
}

struct Worker {
    rng: Rng,
    top: PathBuf,
    both: PathBuf,
    made: u64,
    index: u64,
    files: Vec<Made>,
}

impl Worker {
    /// Does something: on a full volume deleting is likelier than making.
    fn step(&mut self, free_share: u64) -> Result<(), Fault> {
        let make = match free_share {
            0..10 => 30,
            10..50 => 45,
            _ => 70,
        };
        let full = self.files.len() >= FILES_MAX;
        match self.rng.below(100) {
            _ if self.files.is_empty() => self.make(),
            drawn if drawn < make && !full => self.make(),
            _ if self.rng.below(2) == 0 => self.delete(),
            drawn => {
                let at = self.rng.below(self.files.len() as u64) as usize;
                match drawn % 7 {
                    0 => self.write(at),
                    1 => self.rename(at),
                    2 => self.link(at),
                    3 => self.resize(at),
                    4 => self.read(at),
                    5 => self.mark(at),
                    _ => self.list(),
                }
            }
        }
    }

    fn name(&mut self) -> PathBuf {
        self.made += 1;
        let name = format!("f{}-{}", self.index, self.made);
        match self.made % 500 {
            _ if self.rng.below(8) == 0 => self.both.join(name),
            1 => {
                self.top.push(format!("d{}", self.made % 7));
                match fs::create_dir_all(&self.top) {
                    Ok(()) => self.top.join(name),
                    Err(_) => {
                        self.top.pop();
                        self.top.join(name)
                    }
                }
            }
            250 if self.top.components().count() > self.both.components().count() => {
                self.top.pop();
                self.top.join(name)
            }
            _ => self.top.join(name),
        }
    }

    fn make(&mut self) -> Result<(), Fault> {
        let path = self.name();
        let byte = 1 + self.rng.below(255) as u8;
        let len = self.rng.below(40_000) as usize;
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        // What could not be written is not there, or is there in part.
        self.files.push(Made { path, byte });
        Ok(file.write_all_at(&vec![byte; len], 0)?)
    }

    fn delete(&mut self) -> Result<(), Fault> {
        let at = self.rng.below(self.files.len() as u64) as usize;
        let Made { path, .. } = self.files.swap_remove(at);
        Ok(fs::remove_file(path)?)
    }

    fn write(&mut self, at: usize) -> Result<(), Fault> {
        let Made { path, byte } = &self.files[at];
        let file = OpenOptions::new().write(true).open(path)?;
        file.write_all_at(&[*byte; 100], self.rng.below(BYTES_MAX))?;
        if self.rng.below(2) == 0 {
            file.sync_all()?;
        }
        Ok(())
    }

    fn rename(&mut self, at: usize) -> Result<(), Fault> {
        let to = self.name();
        fs::rename(&self.files[at].path, &to)?;
        self.files[at].path = to;
        Ok(())
    }

    fn link(&mut self, at: usize) -> Result<(), Fault> {
        let path = self.name();
        fs::hard_link(&self.files[at].path, &path)?;
        let byte = self.files[at].byte;
        self.files.push(Made { path, byte });
        Ok(())
    }

    fn resize(&mut self, at: usize) -> Result<(), Fault> {
        let file = OpenOptions::new().write(true).open(&self.files[at].path)?;
        Ok(file.set_len(self.rng.below(BYTES_MAX))?)
    }

    fn read(&mut self, at: usize) -> Result<(), Fault> {
        let Made { path, byte } = &self.files[at];
        let mut bytes = Vec::new();
        File::open(path)?.read_to_end(&mut bytes)?;
        match bytes.iter().position(|found| found != byte && *found != 0) {
            None => Ok(()),
            Some(at) => {
                let what = format!("{}: byte {at} is {}, not {byte}", path.display(), bytes[at]);
                Err(Fault::Wrong(what))
            }
        }
    }

    /// What a backup does now and then.
    fn mark(&mut self, at: usize) -> Result<(), Fault> {
        Ok(File::open(&self.files[at].path)?.sync_all()?)
    }

    fn list(&mut self) -> Result<(), Fault> {
        let dir = if self.rng.below(4) == 0 { &self.both } else { &self.top };
        for entry in fs::read_dir(dir)? {
            entry?;
        }
        Ok(())
    }
}
