//! Proofs that take longer than anybody waits for: seeds of the simulator, gathered over sittings.
//!
//! A scenario's log, `proof/sim-NAME.log`, is headed by the commit that it was made at and the
//! command that does the same again; sums of what was done and of what went wrong follow.
//!
//! # Invariants
//!
//! * A log counts seeds that were clean, each once, and all of the same code. Where code that they
//!   depend on has changed since, it begins anew.
//! * What is written is whole: a sitting that ends early, or badly, leaves the log as it was after
//!   the last batch.
//!
//! What this module deliberately doesn't know: what is simulated.

use crate::simulate::sim_output;
use crate::tools::{Failure, output, root};
use clap::Args;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What a scenario's seeds depend on.
const CODE: &[&str] = &["core", "hal", "tests/src", "Cargo.toml", "Cargo.lock"];
/// Seeds that are run before the log is written again, for each that runs at a time.
const BATCH: u64 = 50;

/// What is to be proved, and for how long.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The scenario.
    scenario: String,
    /// For how long; the batch that is under way then is still finished.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// How many seeds to run at a time.
    #[arg(long, default_value_t = 1)]
    jobs: u16,
}

/// What the seeds of a log came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    /// The commit they were run at.
    commit: String,
    /// All seeds below this one.
    seeds: u64,
    sums: BTreeMap<String, u64>,
}

impl Tally {
    /// The text of a log.
    fn emit(&self, scenario: &str) -> String {
        let Tally { commit, seeds, sums } = self;
        let mut text = format!(
            "commit {commit}\ncommand cargo xtask sim --scenario {scenario} --seeds {seeds}\n\n\
             {scenario}: {seeds} seeds from 0, all clean\n"
        );
        for (what, count) in sums {
            let _ = writeln!(text, "  {what:<30}{count:>14}");
        }
        text
    }

    /// What such a text says, if it is one.
    fn parse(text: &str) -> Option<Tally> {
        let commit = text.lines().find_map(|line| line.strip_prefix("commit "))?.to_owned();
        let command = text.lines().find_map(|line| line.strip_prefix("command "))?;
        let seeds = command.rsplit_once(' ')?.1.parse().ok()?;
        Some(Tally { commit, seeds, sums: counts(text) })
    }

    /// Adds what a run of the simulator has printed about so many seeds.
    fn add(&mut self, seeds: u64, printed: &str) {
        self.seeds += seeds;
        for (what, count) in counts(printed) {
            *self.sums.entry(what).or_default() += count;
        }
    }
}

/// Indented lines that end in a number are counts of what stands before it.
fn counts(text: &str) -> BTreeMap<String, u64> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("  "));
    let count = |line: &str| {
        let (what, count) = line.rsplit_once(' ')?;
        Some((what.trim_end().to_owned(), count.parse().ok()?))
    };
    lines.filter_map(count).collect()
}

/// Git, asked something in the workspace's root.
fn git(arguments: &[&str]) -> Result<String, Failure> {
    let mut git = Command::new("git");
    output("git", git.current_dir(root()).args(arguments)).map(|text| text.trim().to_owned())
}

/// Whether the code that seeds depend on is the same at this commit and at the present one.
fn is_same(commit: &str) -> bool {
    let mut git = Command::new("git");
    git.current_dir(root()).args(["diff", "--quiet", commit, "HEAD", "--"]).args(CODE);
    git.status().is_ok_and(|status| status.success())
}

fn load(path: &Path) -> Option<Tally> {
    Tally::parse(&fs::read_to_string(path).ok()?).filter(|tally| is_same(&tally.commit))
}

fn store(path: &Path, text: &str) -> Result<(), Failure> {
    let fail = |error: std::io::Error| Failure(format!("{}: {error}", path.display()));
    let new = path.with_extension("tmp");
    fs::create_dir_all(path.parent().expect("a file")).map_err(fail)?;
    fs::write(&new, text).and_then(|()| fs::rename(&new, path)).map_err(fail)
}

/// Runs seeds for a while, and adds them to the log.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let Options { scenario, minutes, jobs } = options;
    let patience = Duration::try_from_secs_f64(minutes * 60.0)
        .map_err(|_| Failure::new("--minutes takes a number of minutes"))?;
    let mut status = vec!["status", "--porcelain", "--"];
    status.extend(CODE);
    if !git(&status)?.is_empty() {
        return Err(Failure::new("what is proved must be committed: `git status` names changes"));
    }
    let path = root().join(format!("proof/sim-{scenario}.log"));
    let fresh = || -> Result<Tally, Failure> {
        Ok(Tally { commit: git(&["rev-parse", "HEAD"])?, ..Tally::default() })
    };
    let mut tally = load(&path).map_or_else(fresh, Ok)?;
    let batch = BATCH * u64::from(*jobs);
    let start = Instant::now();
    loop {
        let printed = sim_output(&[
            "--scenario".to_owned(),
            scenario.clone(),
            format!("--seed={}", tally.seeds),
            format!("--seeds={batch}"),
            format!("--jobs={jobs}"),
        ])?;
        tally.add(batch, &printed);
        store(&path, &tally.emit(scenario))?;
        if start.elapsed() >= patience {
            print!("{}", tally.emit(scenario));
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    const PRINTED: &str = "server: 2 seeds from 0, all clean\n  commits confirmed    7\n  \
                           crashes 1\nfaults that happened:\n  NetDrop    3\n\n";

    #[test]
    fn what_is_printed_is_summed_up_and_read_back() {
        let mut tally = Tally { commit: "abc".to_owned(), ..Tally::default() };
        tally.add(2, PRINTED);
        tally.add(3, PRINTED);
        assert_eq!((tally.seeds, tally.sums["commits confirmed"]), (5, 14));
        assert_eq!((tally.sums["NetDrop"], tally.sums.len()), (6, 3));
        assert_eq!(Tally::parse(&tally.emit("server")), Some(tally));
    }

    #[test]
    fn another_text_is_no_log() {
        assert_eq!(Tally::parse(""), None);
        assert_eq!(Tally::parse("commit abc\ncommand x\n"), None);
    }
}
