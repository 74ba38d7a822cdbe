//! The measurements, in this order:
//!
//! 1. A new volume is filled, and left alone until nothing is to be merged: what was written, and
//!    what is live of it.
//! 2. Transactions of a thousand changes to random inodes each, until level 0 has one run less than
//!    makes a merge begin: the worst that a reader finds at rest.
//! 3. New mounts rest until they have read ahead. Then each reads the attributes of one random
//!    inode.
//! 4. A mount reads those of many random inodes; those reads count that the device was asked for.
//! 5. Files are created and made durable one by one, and by sixteen writers at a time; before each,
//!    what is to be merged is merged.
//!
//! What this module deliberately doesn't know: what is good.

use crate::cluster::Cluster;
use crate::device::{Device, KINDS, Traffic};
use crate::volume::{content, format};
use outrider_core::client::op::{
    NameBuf, NewMode, NewNode, Op, OpenAccess, OpenHow, Reply, SetAttr,
};
use outrider_core::format::Ino;
use outrider_core::format::super_block::Super;
use outrider_core::lsm::choose::Policy;
use outrider_hal::BLOCK_BYTES;
use outrider_tests::model::Done;
use outrider_tests::rng::Rng;
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

const ROOT: Ino = Ino(1);
/// Directories that the files are in.
const DIRS: u64 = 32;
/// Creates under way at a time.
const DEPTH: usize = 64;
/// Creates are told of, and rated, in so many parts: the last one counts.
const PARTS: u64 = 10;
/// Inodes of all that were made, from which those are drawn that are read and changed.
const KNOWN: usize = 1 << 17;
/// Inodes changed by one of the transactions that fill level 0.
const CHANGED: usize = 1000;
/// Mounts that read one inode each.
const FRESH: u32 = 16;
/// In this time a mount has read ahead.
const READ_AHEAD: Duration = Duration::from_millis(200);
/// Inodes that one mount reads before it is measured: what it keeps is what it will keep then.
const BEFORE: usize = 12_000;
/// Inodes that one mount reads.
const SAMPLES: usize = 4000;
/// Durable creates of each writer: enough for merging to be what it is in the long run.
const DURABLE: u64 = 1000;
/// Writers at a time.
pub(crate) const WRITERS: u64 = 16;

/// Reads from the device for one inode.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cold {
    /// Those that read anything.
    pub(crate) count: u64,
    /// Blocks read by all of these, of each kind.
    pub(crate) reads: [u64; KINDS.len()],
    /// The most that one of them read.
    pub(crate) most: u64,
    /// Their median time.
    pub(crate) median: Duration,
}

/// Small transactions that somebody waits for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Durable {
    /// Files made durable.
    pub(crate) files: u64,
    /// Transactions that it took.
    pub(crate) transactions: u64,
    /// Bytes written, merging apart.
    pub(crate) bytes: u64,
    /// Bytes written by merges meanwhile, and how many these were.
    pub(crate) merge_bytes: u64,
    pub(crate) merges: u64,
    /// Flushes.
    pub(crate) flushes: u64,
    /// Requests to the server.
    pub(crate) requests: u64,
    /// Median time of the processor in the server for one file, or one from each writer.
    pub(crate) server: Duration,
}

/// What was measured at one size.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    /// Files that were created.
    pub(crate) inodes: u64,
    /// Items that a reader finds then.
    pub(crate) items: u64,
    /// Bytes of their keys and values.
    pub(crate) live_bytes: u64,
    /// Bytes written until then, by the server and by the mount, merging apart.
    pub(crate) written: [u64; 2],
    /// Bytes written by merges.
    pub(crate) merge_bytes: u64,
    /// How many merges that were.
    pub(crate) merges: u64,
    /// Transactions of the mount until then.
    pub(crate) transactions: u64,
    /// Bytes of all runs.
    pub(crate) run_bytes: u64,
    /// Bytes that are not free any more.
    pub(crate) space_bytes: u64,
    /// Rate of the last creates, in a second of the processor, which both nodes share.
    pub(crate) creates_per_second: f64,
    /// How long it took to fill the volume.
    pub(crate) filled_in: Duration,
    /// Runs in the uppermost levels when reads are measured.
    pub(crate) levels: [u64; 5],
    /// Blocks from the manifest's root to a leaf.
    pub(crate) manifest_height: u8,
    /// Reads by new mounts before anybody asks.
    pub(crate) ahead: Cold,
    /// Reads for the first inode that they are asked for.
    pub(crate) fresh: Cold,
    /// Reads by a mount in use.
    pub(crate) used: Cold,
    /// Time of the processor in the server for a message about a lock.
    pub(crate) grant: Duration,
    /// Durable files of one writer.
    pub(crate) one: Durable,
    /// Durable files of many.
    pub(crate) many: Durable,
    /// Bytes that the server and the mount were carved from.
    pub(crate) memory: [usize; 2],
    /// The most memory of this process so far, in KiB.
    pub(crate) peak_kib: u64,
}

/// Makes a volume, fills it, and measures.
pub(crate) fn measure(dir: &Path, inodes: u64, seed: u64) -> io::Result<Figures> {
    let mut device = Device::create(dir, (1 << 18) + inodes * 3 / 8)?;
    let volume = format(&mut device);
    // Best effort: without it, the most memory is that of all sizes until then.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let bench = Bench {
        cluster: Cluster::new(device, volume, seed),
        volume,
        rng: Rng::new(seed).fork("engine"),
        known: Vec::with_capacity(KNOWN),
        made: 0,
        names: 0,
    };
    Ok(bench.run(inodes))
}

struct Bench {
    cluster: Cluster,
    volume: Super,
    rng: Rng,
    /// Each of those that were made is among these with the same probability.
    known: Vec<Ino>,
    made: u64,
    names: u64,
}

impl Bench {
    fn run(mut self, inodes: u64) -> Figures {
        let mut figures = Figures { inodes, ..Figures::default() };
        self.cluster.run_for(Duration::from_secs(2));
        let free = self.free_blocks();
        self.cluster.mount();
        figures.memory = self.cluster.memory();
        let dirs: Vec<Ino> = (0..DIRS).map(|_| self.make_dir()).collect();
        let start = Instant::now();
        figures.creates_per_second = self.fill(&dirs, inodes);
        self.settle();
        figures.filled_in = start.elapsed();
        self.tell(inodes, "settled");
        let merged = self.merge_bytes();
        figures.merge_bytes = merged.iter().sum();
        let written = self.cluster.traffic().map(|traffic| traffic.bytes_written());
        figures.written = [written[0] - merged[0], written[1] - merged[1]];
        figures.merges = self.cluster.server().counters().merging.merges;
        figures.transactions = self.cluster.platform().mount.counters().commits;
        self.cluster.unmount();
        self.cluster.run_for(Duration::from_secs(3));
        figures.space_bytes = free.saturating_sub(self.free_blocks()) * BLOCK_BYTES as u64;
        let root = *self.cluster.server().store().root().expect("it leads").fields();
        let found = content(&self.cluster.device, &self.volume, &root.manifest);
        figures.items = found.items;
        figures.live_bytes = found.live_bytes;
        figures.run_bytes = found.run_bytes;
        self.crowd_level_0();
        figures.levels = self.levels();
        let root = *self.cluster.server().store().root().expect("it leads").fields();
        figures.manifest_height = root.manifest.height;
        [figures.ahead, figures.fresh] = self.read_fresh();
        self.cluster.mount();
        self.cluster.run_for(READ_AHEAD);
        let (server, requests) = (self.cluster.server_time(), self.cluster.requests());
        let _ = self.read_many(BEFORE);
        figures.used = self.read_many(SAMPLES);
        let grants = u32::try_from(self.cluster.requests() - requests).unwrap_or(u32::MAX);
        figures.grant = (self.cluster.server_time() - server) / grants.max(1);
        figures.one = self.make_durable(&dirs, 1);
        figures.many = self.make_durable(&dirs, WRITERS);
        self.cluster.unmount();
        figures.peak_kib = peak_kib();
        figures
    }

    /// A name that no file has: all of one length, in no order.
    fn name(&mut self) -> NameBuf {
        self.names += 1;
        // Odd multipliers and shifts keep different numbers different.
        let mixed = self.names.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        NameBuf::parse(format!("{mixed:016x}").as_bytes()).expect("a sane name")
    }

    fn make_dir(&mut self) -> Ino {
        let name = self.name();
        let op = Op::Mkdir { dir: ROOT, name, mode: MODE };
        entry(&self.cluster.call(op).expect("nothing fails"))
    }

    /// Creates so many files; answers how many the last ones were in a second of the processor.
    fn fill(&mut self, dirs: &[Ino], inodes: u64) -> f64 {
        let (mut begun, mut under_way) = (0, VecDeque::new());
        let part = inodes.div_ceil(PARTS);
        let (mut rate, mut from) = (0.0, (0, processor_time()));
        while begun < inodes || !under_way.is_empty() {
            while begun < inodes && under_way.len() < DEPTH {
                begun += 1;
                let dir = *self.rng.pick(dirs).expect("there are some");
                let (name, node) = (self.name(), NewNode::Regular);
                let op = Op::Mknod { dir, name, mode: MODE, node };
                under_way.push_back(self.cluster.begin(op));
            }
            let Some(first) = under_way.pop_front() else { break };
            self.cluster.until("a create", |cluster| cluster.platform().has_ended(first));
            let done = self.cluster.platform().take(first).expect("it has ended");
            let ino = entry(&done.expect("nothing fails"));
            self.know(ino);
            self.forget(ino);
            if self.made.is_multiple_of(part) || self.made == inodes {
                let now = (self.made, processor_time());
                rate = (now.0 - from.0) as f64 / (now.1 - from.1).as_secs_f64();
                from = now;
                self.tell(self.made, &format!("{rate:.0}/s"));
            }
        }
        rate
    }

    /// Says how far it is.
    fn tell(&self, made: u64, what: &str) {
        let written: u64 = self.cluster.traffic().iter().map(Traffic::bytes_written).sum();
        eprintln!(
            "engine: {made} inodes, {what}: {} bytes written for each; runs {:?}",
            written / made.max(1),
            self.levels()
        );
    }

    /// Keeps an inode in mind, or one of those before it (reservoir sampling: Vitter, 1985).
    fn know(&mut self, ino: Ino) {
        self.made += 1;
        if self.known.len() < KNOWN {
            return self.known.push(ino);
        }
        let at = self.rng.below(self.made) as usize;
        if let Some(place) = self.known.get_mut(at) {
            *place = ino;
        }
    }

    fn forget(&mut self, ino: Ino) {
        let id = self.cluster.begin(Op::Forget { ino, lookups: 1 });
        self.cluster.until("a forget", |cluster| cluster.platform().has_ended(id));
        // It has no answer.
        let _ = self.cluster.platform().take(id);
    }

    /// Waits until everything is durable, and nothing is to be merged.
    fn settle(&mut self) {
        loop {
            self.cluster.until("rest", |cluster| {
                let dirty = cluster.platform().mount.usage().dirty_items;
                dirty == 0 && !Policy::STANDARD.is_due(&level_runs(cluster))
            });
            let merges = self.cluster.server().counters().merging.merges;
            self.cluster.run_for(Duration::from_millis(1500));
            if self.cluster.server().counters().merging.merges == merges {
                return;
            }
        }
    }

    /// Fills level 0 up to one run less than makes a merge begin, with runs all over the inodes.
    fn crowd_level_0(&mut self) {
        self.cluster.mount();
        while self.levels()[0] + 1 < Policy::STANDARD.level_0_runs {
            for _ in 0..CHANGED {
                let ino = self.random_ino();
                let permissions = Some(0o600 + (self.rng.below(0o100)) as u16);
                let set = SetAttr { permissions, ..SAME };
                let op = Op::Setattr { ino, handle: None, set };
                self.cluster.call(op).expect("nothing fails");
            }
            let commits = self.cluster.platform().mount.counters().commits;
            self.cluster.until("a commit", |cluster| {
                let mount = &cluster.platform().mount;
                mount.counters().commits > commits && mount.usage().dirty_items == 0
            });
            self.cluster.run_for(Duration::from_millis(50));
        }
        self.cluster.unmount();
        self.cluster.run_for(Duration::from_secs(2));
    }

    fn random_ino(&mut self) -> Ino {
        *self.rng.pick(&self.known).expect("there are some")
    }

    /// What some new mounts read before anybody asks, and then for one inode each.
    fn read_fresh(&mut self) -> [Cold; 2] {
        let (mut ahead, mut reads) = (Vec::new(), Vec::new());
        for _ in 0..FRESH {
            self.cluster.mount();
            self.cluster.run_for(READ_AHEAD);
            let [_, traffic] = self.cluster.traffic();
            ahead.push((traffic, READ_AHEAD));
            reads.push(self.read_one());
            self.cluster.unmount();
        }
        [cold(ahead), cold(reads)]
    }

    fn read_many(&mut self, count: usize) -> Cold {
        let reads = (0..count).map(|_| self.read_one()).collect();
        cold(reads)
    }

    /// Reads the attributes of a random inode: what the mount read for that, and how long it took.
    fn read_one(&mut self) -> (Traffic, Duration) {
        let ino = self.random_ino();
        let [_, before] = self.cluster.traffic();
        let start = Instant::now();
        self.cluster.call(Op::Getattr { ino }).expect("nothing fails");
        let took = start.elapsed();
        let [_, after] = self.cluster.traffic();
        (after - before, took)
    }

    /// Creates files and makes each durable, with so many writers at a time.
    fn make_durable(&mut self, dirs: &[Ino], writers: u64) -> Durable {
        self.settle();
        // What is asked once for each directory is not what a transaction asks.
        for _ in 0..3 {
            self.durable_round(dirs, writers);
        }
        let traffic = self.cluster.traffic();
        let (merged, requests) = (self.merge_bytes(), self.cluster.requests());
        let commits = self.cluster.platform().mount.counters().commits;
        let merges = self.cluster.server().counters().merging.merges;
        let mut times = Vec::new();
        for _ in 0..DURABLE {
            let server = self.cluster.server_time();
            self.durable_round(dirs, writers);
            times.push(self.cluster.server_time() - server);
        }
        times.sort_unstable();
        let [server, mount] = self.cluster.traffic();
        let (server, mount) = (server - traffic[0], mount - traffic[1]);
        let merge_bytes = self.merge_bytes().iter().sum::<u64>() - merged.iter().sum::<u64>();
        Durable {
            files: DURABLE * writers,
            transactions: self.cluster.platform().mount.counters().commits - commits,
            bytes: server.bytes_written() + mount.bytes_written() - merge_bytes,
            merge_bytes,
            merges: self.cluster.server().counters().merging.merges - merges,
            flushes: server.flushes + mount.flushes,
            requests: self.cluster.requests() - requests,
            server: times[times.len() / 2],
        }
    }

    fn durable_round(&mut self, dirs: &[Ino], writers: u64) {
        let how = OpenHow { access: OpenAccess::Write, truncate: false, strip: false };
        let mut made = Vec::new();
        for writer in 0..writers {
            let (dir, name) = (dirs[writer as usize % dirs.len()], self.name());
            let op = Op::Create { dir, name, mode: MODE, how, exclusive: true };
            made.push(self.cluster.begin(op));
        }
        let made = self.all(made).into_iter().map(|done| match done.reply {
            Reply::Created(attr, handle) => (attr.ino, handle),
            other => panic!("a file was wanted, not {other:?}"),
        });
        let made: Vec<_> = made.collect();
        let fsync = |cluster: &mut Cluster, (ino, handle)| {
            cluster.begin(Op::Fsync { ino, handle, data_only: false })
        };
        let synced = made.iter().map(|made| fsync(&mut self.cluster, *made)).collect();
        self.all(synced);
        for (ino, handle) in made {
            self.cluster.call(Op::Release { ino, handle }).expect("nothing fails");
            self.forget(ino);
        }
    }

    /// Waits for all of these calls.
    fn all(&mut self, calls: Vec<u64>) -> Vec<Done> {
        let cluster = &mut self.cluster;
        cluster
            .until("calls", |cluster| calls.iter().all(|call| cluster.platform().has_ended(*call)));
        let taken = calls.into_iter().map(|call| cluster.platform().take(call));
        taken.map(|done| done.expect("it has ended").expect("nothing fails")).collect()
    }

    /// Bytes written by merges, by the server and by the mount.
    fn merge_bytes(&mut self) -> [u64; 2] {
        let server = self.cluster.server().counters().merging.blocks;
        let mount = self.cluster.platform().mount.counters().compaction.blocks;
        [server, mount].map(|blocks| blocks * BLOCK_BYTES as u64)
    }

    fn free_blocks(&self) -> u64 {
        self.cluster.server().store().root().expect("it leads").fields().free_blocks.get()
    }

    fn levels(&self) -> [u64; 5] {
        let runs = level_runs(&self.cluster);
        std::array::from_fn(|level| runs[level])
    }
}

const MODE: NewMode = NewMode { permissions: 0o644, umask: 0 };
const SAME: SetAttr = SetAttr {
    permissions: None,
    uid: None,
    gid: None,
    size: None,
    atime: None,
    mtime: None,
    strip: false,
};

fn entry(done: &Done) -> Ino {
    match done.reply {
        Reply::Entry(attr) => attr.ino,
        other => panic!("an inode was wanted, not {other:?}"),
    }
}

fn level_runs(cluster: &Cluster) -> [u64; outrider_core::format::root::LEVELS] {
    let root = cluster.server().store().root().expect("it leads");
    root.fields().level_runs.map(|runs| runs.get())
}

/// Those that read anything.
pub(crate) fn cold(all: Vec<(Traffic, Duration)>) -> Cold {
    let read: Vec<_> = all.into_iter().filter(|(traffic, _)| traffic.read() > 0).collect();
    let mut times: Vec<Duration> = read.iter().map(|(_, took)| *took).collect();
    times.sort_unstable();
    let sum = |kind: usize| read.iter().map(|(traffic, _)| traffic.reads[kind]).sum();
    Cold {
        count: read.len() as u64,
        reads: std::array::from_fn(sum),
        most: read.iter().map(|(traffic, _)| traffic.read()).max().unwrap_or(0),
        median: times.get(times.len() / 2).copied().unwrap_or_default(),
    }
}

/// Time of the processor that this thread has had: on a busy machine, the only one that means
/// something.
pub(crate) fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// The most memory this process had so far.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}
