//! Proofs that take longer than anybody waits for: seeds of the simulator, gathered over sittings.
//!
//! A scenario's log, `proof/sim-NAME.log`, is headed by the commit that it was made at and the
//! command that does the same again. Then it says how far the seeds have come towards what the
//! scenario wants counted in a proof; sums of all that was done and of what went wrong follow.
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
/// What it took, as a log names it.
const TOOK: &str = "seconds of a processor";

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
    /// End sooner, once everything that the scenario wants counted has been.
    #[arg(long)]
    until_reached: bool,
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

/// Counts that a proof is to reach.
type Goals = BTreeMap<String, u64>;

impl Tally {
    /// How much there was of this.
    fn count(&self, what: &str) -> u64 {
        self.sums.get(what).copied().unwrap_or_default()
    }

    /// The goals that are not reached.
    fn missing<'g>(&self, goals: &'g Goals) -> Vec<&'g str> {
        let goals = goals.iter().filter(|(what, goal)| self.count(what) < **goal);
        goals.map(|(what, _)| what.as_str()).collect()
    }

    /// The text of a log.
    fn emit(&self, scenario: &str, goals: &Goals) -> String {
        let Tally { commit, seeds, sums } = self;
        let mut text = format!(
            "commit {commit}\ncommand cargo xtask sim --scenario {scenario} --seeds {seeds}\n\n\
             {scenario}: {seeds} seeds from 0, all clean\n\n"
        );
        let missing = self.missing(goals).len();
        let _ = writeln!(text, "wanted: {} counts, of which {missing} are missing", goals.len());
        for (what, goal) in goals {
            let count = self.count(what);
            let said = if count < *goal { "missing" } else { "reached" };
            let _ = writeln!(text, "{said}  {what:<30}{count:>14} of {goal}");
        }
        text.push_str("\nall that was counted\n");
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

    /// Adds what a run of the simulator has printed about so many seeds, some at a time.
    fn add(&mut self, seeds: u64, took: Duration, jobs: u16, printed: &str) {
        self.seeds += seeds;
        *self.sums.entry(TOOK.to_owned()).or_default() += took.as_secs() * u64::from(jobs);
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
    let Options { scenario, minutes, jobs, .. } = options;
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
    let of = |options: &[String]| {
        let scenario = ["--scenario".to_owned(), scenario.clone()];
        sim_output(&[&scenario, options].concat())
    };
    let goals = counts(&of(&["--goals".to_owned()])?);
    let start = Instant::now();
    loop {
        let began = Instant::now();
        let printed = of(&[
            format!("--seed={}", tally.seeds),
            format!("--seeds={batch}"),
            format!("--jobs={jobs}"),
        ])?;
        tally.add(batch, began.elapsed(), *jobs, &printed);
        store(&path, &tally.emit(scenario, &goals))?;
        if start.elapsed() >= patience || options.until_reached && tally.missing(&goals).is_empty()
        {
            print!("{}", tally.emit(scenario, &goals));
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Goals, TOOK, Tally};
    use std::time::Duration;

    const PRINTED: &str = "server: 2 seeds from 0, all clean\n  commits confirmed    7\n  \
                           crashes 1\nfaults that happened:\n  NetDrop    3\n\n";

    #[test]
    fn what_is_printed_is_summed_up_and_read_back() {
        let mut tally = Tally { commit: "abc".to_owned(), ..Tally::default() };
        tally.add(2, Duration::from_secs(3), 2, PRINTED);
        tally.add(3, Duration::from_secs(4), 2, PRINTED);
        assert_eq!((tally.seeds, tally.sums["commits confirmed"]), (5, 14));
        assert_eq!((tally.sums["NetDrop"], tally.sums.len()), (6, 4));
        assert_eq!(tally.count(TOOK), 14);
        let goals = [("crashes", 2), ("NetDrop", 7), ("DiskRot", 1)];
        let goals: Goals = goals.map(|(what, goal)| (what.to_owned(), goal)).into();
        assert_eq!(tally.missing(&goals), ["DiskRot", "NetDrop"]);
        let text = tally.emit("server", &goals);
        assert!(text.contains("wanted: 3 counts, of which 2 are missing"));
        assert_eq!(Tally::parse(&text), Some(tally));
    }

    #[test]
    fn another_text_is_no_log() {
        assert_eq!(Tally::parse(""), None);
        assert_eq!(Tally::parse("commit abc\ncommand x\n"), None);
    }
}
