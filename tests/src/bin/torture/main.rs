//! Work on several mounts of one volume while its servers are killed, stopped and cut off, and
//! then the account of it: what was acknowledged, is there once.
//!
//! ```text
//! torture [--seconds N] [--seed S] [--source DIR] [--longest-ms MS]
//! ```
//!
//! The mounts are told by `MNT0`, `MNT1`, ..., as `cargo xtask torture` does, which also sees to
//! the faults and checks the volume afterwards. On each mount work at the same time:
//!
//! * one that appends records to files of its own, under `flock`, syncs now and then, and renames
//!   the files into a directory that all share;
//! * one that appends records to one file of all, under a lock of `fcntl`;
//! * one that copies a tree of files, compares it through the next mount, builds a small program
//!   in it, runs that, and removes everything.
//!
//! # Invariants
//!
//! * Nothing fails. What has returned is acknowledged.
//! * In the end each acknowledged record is found exactly once, through every mount.
//! * No operation takes longer than is said.
//!
//! What this program deliberately doesn't know: what goes wrong meanwhile, and when.

mod ledger;
mod tree;

use clap::Parser;
use ledger::{Ledger, Records};
use outrider_tests::rng::Rng;
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tree::Tree;

/// Longer than this no operation may stand still: a thread that waits in the kernel can't be waited
/// for.
const STANDSTILL: Duration = Duration::from_secs(60);
/// Records of a file of its own, before the next is begun.
const RECORDS_MAX: u64 = 64;
/// Between two records of one writer.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Parser)]
#[command(name = "torture", about = "Works on mounts whose servers fail, and accounts for it")]
struct Options {
    /// How long.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// What is drawn differs from seed to seed; the times at which things happen always do.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The tree that is copied.
    #[arg(long)]
    source: PathBuf,
    /// How long an operation may take, in milliseconds.
    #[arg(long, default_value_t = 10_000)]
    longest_ms: u64,
}

fn main() -> ExitCode {
    match torture(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("torture: {error}");
            ExitCode::FAILURE
        }
    }
}

fn torture(options: &Options) -> Result<(), String> {
    let mounts: Vec<PathBuf> =
        (0..).map_while(|at| std::env::var_os(format!("MNT{at}"))).map(PathBuf::from).collect();
    let first = mounts.first().ok_or("MNT0 is not set")?;
    fs::create_dir_all(first.join("names")).map_err(|error| error.to_string())?;
    File::create(first.join("all")).map_err(|error| error.to_string())?;
    let tree = Tree::read(&options.source)?;
    let work = Work::new(&mounts, options, tree);
    let ledgers: Vec<Ledger> = thread::scope(|scope| {
        let start = |mount: usize, job: Job| {
            let work = &work;
            scope.spawn(move || work.run(mount, job))
        };
        let jobs = [Job::Own, Job::Shared, Job::Tree];
        let threads: Vec<_> = (0..mounts.len())
            .flat_map(|mount| jobs.map(|job| (mount, job)))
            .map(|(mount, job)| start(mount, job))
            .collect();
        work.watch();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    work.report(ledgers)
}

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Own,
    Shared,
    Tree,
}

/// What the threads share.
struct Work {
    mounts: Vec<PathBuf>,
    seed: u64,
    longest_ms: u64,
    tree: Tree,
    begun: Instant,
    end: Instant,
    failure: Mutex<Option<String>>,
    failed: AtomicBool,
    /// Milliseconds after the beginning at which each thread began what it is at; `u64::MAX`: it
    /// ended.
    at: Vec<AtomicU64>,
    operations: AtomicU64,
    longest: AtomicU64,
    trees: AtomicU64,
}

const JOBS: usize = 3;

impl Work {
    fn new(mounts: &[PathBuf], options: &Options, tree: Tree) -> Work {
        let begun = Instant::now();
        Work {
            mounts: mounts.to_vec(),
            seed: options.seed,
            longest_ms: options.longest_ms,
            tree,
            begun,
            end: begun + Duration::from_secs_f64(options.seconds),
            failure: Mutex::new(None),
            failed: AtomicBool::new(false),
            at: (0..mounts.len() * JOBS).map(|_| AtomicU64::new(0)).collect(),
            operations: AtomicU64::new(0),
            longest: AtomicU64::new(0),
            trees: AtomicU64::new(0),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.end && !self.failed.load(Ordering::Relaxed)
    }

    fn fail(&self, what: String) {
        self.failed.store(true, Ordering::Relaxed);
        self.failure.lock().expect("nobody dies with it").get_or_insert(what);
    }

    /// Looks after the threads until all have ended, or one stands still.
    fn watch(&self) {
        loop {
            thread::sleep(Duration::from_millis(200));
            let now = self.now_ms();
            let busy = self.at.iter().map(|at| at.load(Ordering::Relaxed));
            let Some(since) = busy.filter(|at| *at != u64::MAX).min() else { return };
            if now.saturating_sub(since) > STANDSTILL.as_millis() as u64 {
                eprintln!("torture: an operation has not ended for {} ms", now - since);
                std::process::exit(1);
            }
        }
    }

    fn run(&self, mount: usize, job: Job) -> Ledger {
        let index = mount * JOBS + job as usize;
        let rng = Rng::new(self.seed.wrapping_mul(1000) + index as u64);
        let mut worker =
            Worker { work: self, index, mount, rng, ledger: Ledger::default(), done: 0 };
        let outcome = match job {
            Job::Own => worker.append_to_own(),
            Job::Shared => worker.append_to_shared(),
            Job::Tree => worker.grow_trees(),
        };
        if let Err(error) = outcome {
            self.fail(format!("mount {mount}, {job:?}: {error}"));
        }
        self.at[index].store(u64::MAX, Ordering::Relaxed);
        worker.ledger
    }

    /// Reads everything through every mount, and tells.
    fn report(&self, ledgers: Vec<Ledger>) -> Result<(), String> {
        if let Some(failure) = self.failure.lock().expect("nobody dies with it").take() {
            return Err(failure);
        }
        let mut all = Ledger::default();
        ledgers.into_iter().for_each(|ledger| all.merge(ledger));
        let mut wrong = 0;
        for mount in &self.mounts {
            let found = all.compare(mount)?;
            wrong += found.lost + found.doubled + found.strange;
            println!("torture: through {}: {found}", mount.display());
        }
        let longest = self.longest.load(Ordering::Relaxed);
        println!(
            "torture: {} operations, {} records acknowledged, {} trees copied and compared, the \
             longest operation took {longest} ms",
            self.operations.load(Ordering::Relaxed),
            all.acknowledged(),
            self.trees.load(Ordering::Relaxed),
        );
        match wrong {
            0 if longest <= self.longest_ms => Ok(()),
            0 => Err(format!("an operation took longer than {} ms", self.longest_ms)),
            _ => Err(format!("{wrong} records are not as they were acknowledged")),
        }
    }
}

struct Worker<'a> {
    work: &'a Work,
    index: usize,
    mount: usize,
    rng: Rng,
    ledger: Ledger,
    /// Files or trees made.
    done: u64,
}

impl Worker<'_> {
    fn dir(&self) -> &Path {
        &self.work.mounts[self.mount]
    }

    /// Does something that counts as one operation.
    fn operate<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let begun = self.work.now_ms();
        self.work.at[self.index].store(begun, Ordering::Relaxed);
        let result = act();
        self.work.operations.fetch_add(1, Ordering::Relaxed);
        let now = self.work.now_ms();
        self.work.longest.fetch_max(now - begun, Ordering::Relaxed);
        self.work.at[self.index].store(now, Ordering::Relaxed);
        result
    }

    fn append_to_own(&mut self) -> io::Result<()> {
        while self.work.goes_on() {
            self.done += 1;
            let mut name = format!("own{}-{}", self.mount, self.done);
            let mut file = {
                let path = self.dir().join(&name);
                self.operate(|| OpenOptions::new().append(true).create_new(true).open(path))?
            };
            let mut records = Records::new(self.index, self.done);
            while records.count < RECORDS_MAX && self.work.goes_on() {
                let record = records.next();
                self.operate(|| {
                    flock(&file, FlockOperation::LockExclusive)?;
                    file.write_all(record.as_bytes())?;
                    Ok(flock(&file, FlockOperation::Unlock)?)
                })?;
                records.count += 1;
                if self.rng.below(8) == 0 {
                    self.operate(|| file.sync_all())?;
                }
                if self.rng.below(16) == 0 {
                    let to = format!("names/{}-{}-{}", self.mount, self.done, records.count);
                    let paths = [self.dir().join(&name), self.dir().join(&to)];
                    self.operate(|| fs::rename(&paths[0], &paths[1]))?;
                    name = to;
                }
                thread::sleep(PAUSE);
            }
            self.ledger.note(name, records);
        }
        Ok(())
    }

    fn append_to_shared(&mut self) -> io::Result<()> {
        let mut records = Records::new(self.index, 0);
        let path = self.dir().join("all");
        let mut file = self.operate(|| OpenOptions::new().append(true).open(path))?;
        while self.work.goes_on() {
            let record = records.next();
            self.operate(|| {
                fcntl_lock(&file, FlockOperation::LockExclusive)?;
                file.write_all(record.as_bytes())?;
                Ok(fcntl_lock(&file, FlockOperation::Unlock)?)
            })?;
            records.count += 1;
            if self.rng.below(16) == 0 {
                self.operate(|| file.sync_data())?;
            }
            thread::sleep(PAUSE);
        }
        self.ledger.note("all".to_owned(), records);
        Ok(())
    }

    fn grow_trees(&mut self) -> io::Result<()> {
        let next = self.work.mounts[(self.mount + 1) % self.work.mounts.len()].clone();
        while self.work.goes_on() {
            self.done += 1;
            let name = format!("tree{}-{}", self.mount, self.done);
            let (here, there) = (self.dir().join(&name), next.join(&name));
            let tree = &self.work.tree;
            let mut operate = |act: &mut dyn FnMut() -> io::Result<()>| self.operate(act);
            tree.copy(&here, &mut operate)?;
            tree.compare(&there, &mut operate)?;
            tree::build(&here, self.done, &mut operate)?;
            tree::remove(&here, &mut operate)?;
            self.work.trees.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}
