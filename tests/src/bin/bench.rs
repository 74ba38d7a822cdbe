//! Benchmarks: each measures something of ours and something to compare it with, in one run, so
//! that a slow or busy machine shows in both.
//!
//! ```text
//! bench [NAME]...
//! ```
//!
//! What is simulated is told in virtual time, which is the same everywhere.
//!
//! Nothing is asserted: a number that is worse than it should be is for people to see.

use outrider_core::crc32c::crc32c;
use outrider_core::format::block::{Magic, Promise, Volume, open, seal};
use outrider_core::format::{BLOCK_BYTES, Block, BlockNo};
use outrider_tests::scenario::crowd::{Crowd, Took};
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A benchmark: its name, and what runs it.
type Bench = (&'static str, fn());

const ALL: &[Bench] = &[("block-open", block_open), (CROWD, crowd)];
/// Takes minutes, so it must be named.
const CROWD: &str = "crowd";

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|name| ALL.iter().all(|(known, _)| known != *name)) {
        let known: Vec<_> = ALL.iter().map(|(name, _)| *name).collect();
        eprintln!("bench: there is no {unknown}; there are: {}", known.join(", "));
        return ExitCode::FAILURE;
    }
    for (name, bench) in ALL {
        let by_default = wanted.is_empty() && *name != CROWD;
        if by_default || wanted.iter().any(|wanted| wanted == name) {
            println!("{name}");
            bench();
        }
    }
    ExitCode::SUCCESS
}

/// Rounds of a measurement; the median counts.
const ROUNDS: usize = 15;

/// Median time of a round of each of several works that are done in turn.
fn medians<const N: usize>(mut works: [&mut dyn FnMut(); N]) -> [Duration; N] {
    let mut times = [const { Vec::new() }; N];
    for _ in 0..ROUNDS {
        for (work, times) in works.iter_mut().zip(&mut times) {
            let start = Instant::now();
            work();
            times.push(start.elapsed());
        }
    }
    times.map(|mut times: Vec<Duration>| {
        times.sort_unstable();
        times[ROUNDS / 2]
    })
}

/// Opening blocks, as the cache does with each that it has read.
fn block_open() {
    const BLOCKS: usize = 4096;
    const VOLUME: Volume = Volume { fsid: 1, crc_seed: 2 };
    let mut blocks = vec![Block([0x5a; BLOCK_BYTES]); BLOCKS];
    for (blkno, block) in (0..).zip(&mut blocks) {
        seal(block, &VOLUME, Magic::Btree, BlockNo(blkno), 3);
    }
    let mut opened = || {
        for (blkno, block) in (0..).zip(&blocks) {
            let promise = Promise { magic: Magic::Btree, blkno: BlockNo(blkno), seq: Some(3) };
            black_box(open(block, &VOLUME, &promise)).expect("sealed above");
        }
    };
    let mut ours = || {
        for block in &blocks {
            black_box(crc32c(&block.0));
        }
    };
    let mut oracle = || {
        for block in &blocks {
            black_box(::crc32c::crc32c(&block.0));
        }
    };
    let mut copy = Block::ZERO;
    let mut copied = || {
        for block in &blocks {
            copy.0.copy_from_slice(&block.0);
            black_box(&copy);
        }
    };
    let times = medians([&mut opened, &mut ours, &mut oracle, &mut copied]);
    let bytes = (BLOCKS * BLOCK_BYTES) as f64;
    let names = ["open and verify", "our CRC-32C alone", "the crate crc32c", "copying the block"];
    for (name, time) in names.iter().zip(times) {
        println!("  {name:<20} {:6.2} GB/s", bytes / time.as_secs_f64() / 1e9);
    }
}

/// Two hundred mounts of a simulated cluster with ten thousand locks each, whose leader crashes.
fn crowd() {
    let crowd = Crowd { mounts: 200, locks: 10_000 };
    let start = Instant::now();
    let took = match crowd.gather(1).run() {
        Ok(took) => took,
        Err(what) => return println!("  it went wrong: {what}"),
    };
    let Took { granted, gathering, election, welcome, recovery, recovered, server_bytes } = took;
    println!("  {} mounts with {} locks each, {granted} in all", crowd.mounts, crowd.locks);
    println!("  memory of a server            {:>10} MiB", server_bytes >> 20);
    println!("  all granted after             {gathering:>14.3?}");
    println!("  another leads after           {election:>14.3?}");
    println!("  all mounts welcomed after     {welcome:>14.3?}");
    println!("  {recovered} locks recovered after {recovery:>10.3?}, below 5 s wanted");
    println!("  simulated in                  {:>14.3?}", start.elapsed());
}
