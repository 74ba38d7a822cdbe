//! The benchmark's table: what was measured, and beside it what is wanted.
//!
//! What this module deliberately doesn't know: how it was measured.

use crate::device::KINDS;
use crate::lonely::Reads;
use crate::measure::{Cold, Durable, Figures, WRITERS};
use outrider_core::lsm::choose::Policy;
use std::time::Duration;

/// Prints what was measured in trees that were built at once.
pub(crate) fn print_reads(trees: &[Reads]) {
    println!("engine: reads of a mount's reader, default mount memory, in trees built at once");
    let row = |what: &str, wanted: &str, value: &dyn Fn(&Reads) -> String| {
        let values: Vec<String> = trees.iter().map(|at| format!("{:>22}", value(at))).collect();
        println!("  {what:<46}{}  {wanted}", values.concat());
    };
    row("inodes", "", &|at| at.inodes.to_string());
    row("runs of levels 0, 1, ...; manifest's height", "", &|at| {
        format!("{:?}; {}", at.levels, at.manifest_height)
    });
    let part = |title: &str, wanted: &str, of: fn(&Reads) -> &Cold| {
        println!("{title}");
        row("reads; most", wanted, &|at| total(of(at)));
        for (kind, (name, _)) in KINDS.iter().enumerate() {
            row(&format!("  {name}"), "", &|at| {
                format!("{:.2}", ratio(of(at).reads[kind], of(at).count))
            });
        }
    };
    part("read ahead, once, before anybody asks", "", |at| &at.ahead);
    part("the first inode after that", "<= 6", |at| &at.first);
    part("an inode, by a reader in use", "<= 6", |at| &at.used);
    let few = trees.first().map_or(Duration::ZERO, |at| at.used.median);
    row("median time, us; ratio", "<= 1.5", &|at| {
        let time = at.used.median.as_secs_f64();
        format!("{:.1}; {:.2}", time * 1e6, time / few.as_secs_f64())
    });
}

/// Prints the table.
pub(crate) fn print(figures: &[Figures]) {
    println!(
        "engine: default mount memory, level 0 at {} of {} runs; the device is a sparse file",
        figures.first().map_or(0, |figures| figures.levels[0]),
        Policy::STANDARD.level_0_runs
    );
    let row = |what: &str, wanted: &str, value: &dyn Fn(&Figures) -> String| {
        let values: Vec<String> =
            figures.iter().map(|figures| format!("{:>22}", value(figures))).collect();
        println!("  {what:<46}{}  {wanted}", values.concat());
    };
    row("inodes", "", &|at| at.inodes.to_string());
    row("items, of bytes on average", "", &|at| {
        format!("{}, {:.0}", at.items, ratio(at.live_bytes, at.items))
    });
    row("runs of levels 0, 1, ...; manifest's height", "", &|at| {
        format!("{:?}; {}", at.levels, at.manifest_height)
    });
    println!("what a new mount reads, once, before anybody asks");
    reads(&row, "", |at| &at.ahead);
    println!("the first inode that a new mount is asked for after that");
    reads(&row, "<= 6", |at| &at.fresh);
    println!("cold read of an inode by a mount in use");
    reads(&row, "<= 6", |at| &at.used);
    let few = figures.first().copied().unwrap_or_default();
    row("median time, us; ratio", "<= 1.5", &|at| {
        let (time, base) = (at.used.median.as_secs_f64(), few.used.median.as_secs_f64());
        format!("{:.1}; {:.2}", time * 1e6, time / base)
    });
    println!("creates in random order");
    row("a second of the processor; ratio", ">= 0.7", &|at| {
        let rate = at.creates_per_second;
        format!("{rate:.0}; {:.2}", rate / few.creates_per_second)
    });
    row("seconds to fill and settle", "", &|at| format!("{:.0}", at.filled_in.as_secs_f64()));
    row("write amplification", "< 12 at 10^6, < 16 at 10^7", &|at| {
        format!("{:.2}", ratio(at.written.iter().sum::<u64>() + at.merge_bytes, at.live_bytes))
    });
    row("  of it mount, merges, server", "", &|at| {
        let [server, mount] = at.written;
        let parts = [mount, at.merge_bytes, server];
        parts.map(|part| format!("{:.2}", ratio(part, at.live_bytes))).join(", ")
    });
    row("  transactions, KiB of each; merges", "", &|at| {
        let kib = ratio(at.written[1], at.transactions) / 1024.0;
        format!("{}, {kib:.0}; {}", at.transactions, at.merges)
    });
    row("space used over live bytes; runs alone", "< 1.3", &|at| {
        let of = |bytes| ratio(bytes, at.live_bytes);
        format!("{:.2}; {:.2}", of(at.space_bytes), of(at.run_bytes))
    });
    println!("a file created and made durable, by one writer");
    durable(&row, |at| &at.one);
    println!("the same by {WRITERS} writers at a time");
    durable(&row, |at| &at.many);
    println!("server and memory");
    row("server's processor time for a lock message, us", "", &|at| {
        format!("{:.1}", at.grant.as_secs_f64() * 1e6)
    });
    row("memory carved by mount and server, MiB", "", &|at| {
        let [server, mount] = at.memory.map(|bytes| bytes as f64 / f64::from(1 << 20));
        format!("{mount:.1}, {server:.1}")
    });
    row("most memory of the process, MiB", "", &|at| (at.peak_kib / 1024).to_string());
}

type Row<'a> = dyn Fn(&str, &str, &dyn Fn(&Figures) -> String) + 'a;

fn reads(row: &Row<'_>, wanted: &str, of: fn(&Figures) -> &Cold) {
    row("reads; most", wanted, &|at| total(of(at)));
    for (kind, (name, _)) in KINDS.iter().enumerate() {
        row(&format!("  {name}"), "", &|at| {
            format!("{:.2}", ratio(of(at).reads[kind], of(at).count))
        });
    }
}

fn total(cold: &Cold) -> String {
    format!("{:.2}; {}", ratio(cold.reads.iter().sum(), cold.count), cold.most)
}

fn durable(row: &Row<'_>, of: fn(&Figures) -> &Durable) {
    row("files for each transaction", "", &|at| {
        format!("{:.2}", ratio(of(at).files, of(at).transactions))
    });
    let kib = |bytes: u64, of: u64| ratio(bytes, of) / 1024.0;
    row("KiB written for a transaction", "< 96", &|at| {
        format!("{:.1}", kib(of(at).bytes, of(at).transactions))
    });
    row("KiB merged meanwhile; all, for a file", "", &|at| {
        let Durable { bytes, merge_bytes, transactions, files, .. } = *of(at);
        let of_file = kib(bytes + merge_bytes, files);
        format!("{:.1}; {of_file:.1}", kib(merge_bytes, transactions))
    });
    row("merges for a transaction", "", &|at| {
        format!("{:.2}", ratio(of(at).merges, of(at).transactions))
    });
    row("requests for a transaction", "1", &|at| {
        format!("{:.2}", ratio(of(at).requests, of(at).transactions))
    });
    row("flushes for a transaction; for a file", "", &|at| {
        let Durable { flushes, transactions, files, .. } = *of(at);
        format!("{:.2}; {:.2}", ratio(flushes, transactions), ratio(flushes, files))
    });
    row("server's processor time for a transaction, us", "", &|at| {
        format!("{:.0}", of(at).server.as_secs_f64() * 1e6)
    });
}

fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}
