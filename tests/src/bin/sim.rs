//! Runs simulated clusters, one seed after the other, and stops at the first that goes wrong.
//!
//! ```text
//! sim [--scenario NAME] [--seed FIRST] [--seeds COUNT] [--twice] [--demand] [--trace]
//! sim --mutants
//! ```
//!
//! Built with `--cfg outrider_mutants` it takes `--mutant NAME`: a run that then is clean shows
//! what the checkers would miss. `--mutants` tries all of them, and prints which seed noticed each.
//!
//! # Invariants
//!
//! * The exit status is 0 only if every run was clean and, with `--demand`, every fault its
//!   scenario demands has happened, and all that it demands was done.
//! * Whatever goes wrong, a panic of a node included, the command that replays it is printed.

use clap::Parser;
use outrider_tests::faults::Coverage;
use outrider_tests::scenario::{ALL, Report, Scenario};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

/// Simulates clusters under faults.
#[derive(Debug, Parser)]
struct Options {
    /// The scenario; all of them, one after the other, if not given.
    #[arg(long)]
    scenario: Option<String>,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Run each seed twice and demand that both runs are the same.
    #[arg(long)]
    twice: bool,
    /// Demand that each fault a scenario is built to survive has happened.
    #[arg(long)]
    demand: bool,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
    /// Make all nodes make this mistake.
    #[cfg(outrider_mutants)]
    #[arg(long)]
    mutant: Option<String>,
    /// Try each mistake until a seed notices it.
    #[cfg(outrider_mutants)]
    #[arg(long)]
    mutants: bool,
}

/// What stands before the number of steps when something went wrong.
const STEPS_BEFORE: &str = "steps: ";

/// Steps of nodes in the seeds that have been run, to be told if a node panics.
static STEPS: AtomicU64 = AtomicU64::new(0);

fn main() -> ExitCode {
    let options = Options::parse();
    let scenarios: Vec<&Scenario> = match &options.scenario {
        None => ALL.iter().collect(),
        Some(name) => match Scenario::find(name) {
            Some(scenario) => vec![scenario],
            None => {
                let names: Vec<&str> = ALL.iter().map(|scenario| scenario.name).collect();
                eprintln!("there is no scenario {name}; there are {}", names.join(", "));
                return ExitCode::FAILURE;
            }
        },
    };
    #[cfg(outrider_mutants)]
    if options.mutants {
        return hunts::run();
    }
    #[cfg(outrider_mutants)]
    if let Some(name) = &options.mutant {
        use outrider_core::mutant::{Mutant, activate};
        let named = Mutant::ALL.iter().find(|mutant| format!("{mutant:?}") == *name);
        let Some(mutant) = named else {
            eprintln!("there is no mutant {name}; there are {:?}", Mutant::ALL);
            return ExitCode::FAILURE;
        };
        activate(Some(*mutant));
    }
    for scenario in scenarios {
        if let Err(what) = run_seeds(scenario, &options) {
            eprintln!("{what}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Runs a scenario's seeds, and prints what was done and what went wrong how often.
fn run_seeds(scenario: &'static Scenario, options: &Options) -> Result<(), String> {
    let mut coverage = Coverage::new();
    let mut work: BTreeMap<&'static str, u64> = BTreeMap::new();
    let end = options.seed.saturating_add(options.seeds);
    for seed in options.seed..end {
        let report = run_seed(scenario, seed, options)?;
        coverage.add(&report.coverage);
        for (what, count) in report.work {
            *work.entry(what).or_default() += count;
        }
        if end - options.seed == 1 {
            println!("{} seed {seed}: trace hash {:016x}", scenario.name, report.hash);
        }
    }
    println!("{}: {} seeds from {}, all clean", scenario.name, options.seeds, options.seed);
    for (what, count) in &work {
        println!("  {what:<30}{count:>12}");
    }
    println!("faults that happened:\n{}", coverage.report());
    let undone = |what: &&&str| work.get(**what).is_none_or(|count| *count == 0);
    let undone: Vec<_> = scenario.demanded_work.iter().filter(undone).collect();
    if options.demand && !undone.is_empty() {
        return Err(format!("{}: was never done: {undone:?}", scenario.name));
    }
    let missing = coverage.missing((scenario.demands)());
    if options.demand && !missing.is_empty() {
        return Err(format!("{}: never happened: {missing:?}", scenario.name));
    }
    Ok(())
}

fn run_seed(scenario: &'static Scenario, seed: u64, options: &Options) -> Result<Report, String> {
    let replay = format!(
        "replay: cargo run -p outrider-tests --bin sim -- --scenario {} --seed {seed} --trace",
        scenario.name
    );
    let name_the_seed = {
        let replay = replay.clone();
        let report = std::panic::take_hook();
        move |panic: &std::panic::PanicHookInfo<'_>| {
            report(panic);
            eprintln!("{replay}");
            eprintln!("{STEPS_BEFORE}{}", STEPS.load(Ordering::Relaxed));
        }
    };
    std::panic::set_hook(Box::new(name_the_seed));
    let mut world = (scenario.world)(seed);
    if options.trace {
        world.trace_mut().print_lines();
    }
    let report = scenario.run(&mut world);
    let steps = report.work.iter().find(|(what, _)| *what == "steps").map_or(0, |work| work.1);
    STEPS.fetch_add(steps, Ordering::Relaxed);
    if let Some(violation) = &report.violation {
        eprintln!("{STEPS_BEFORE}{}", STEPS.load(Ordering::Relaxed));
        return Err(format!("{} seed {seed}: {violation}\n{replay}", scenario.name));
    }
    if options.twice {
        // The first world still stands, so that addresses differ between the two.
        let again = scenario.run(&mut (scenario.world)(seed));
        if again.hash != report.hash {
            let line = first_difference(scenario, seed);
            return Err(format!(
                "{} seed {seed}: two runs differ: {line}\n{replay}",
                scenario.name
            ));
        }
    }
    let _ = std::panic::take_hook();
    Ok(report)
}

/// Runs the seed twice more, with text, and says where they part.
fn first_difference(scenario: &Scenario, seed: u64) -> String {
    let worlds = [(); 2].map(|()| {
        let mut world = (scenario.world)(seed);
        world.trace_mut().keep_lines();
        scenario.run(&mut world);
        world
    });
    let [one, two] = worlds.each_ref().map(|world| world.trace().lines());
    let differ = one.iter().zip(two).find(|(one, two)| one != two);
    match differ {
        Some((one, two)) => format!("\n  {one}\n  {two}"),
        None => "not so when run again".to_owned(),
    }
}

/// Mistakes, each tried in a process of its own: some end in a panic.
#[cfg(outrider_mutants)]
mod hunts {
    use super::STEPS_BEFORE;
    use outrider_core::mutant::Mutant;
    use outrider_tests::hunt::{Hunt, hunt};
    use std::process::{Command, ExitCode};

    /// Tries them all; says which seed noticed each.
    pub(super) fn run() -> ExitCode {
        println!("{:<24}{:<10}{:>6}{:>12}  noticed as", "mistake", "scenario", "seeds", "steps");
        let mut missed = 0;
        for mutant in Mutant::ALL {
            let name = format!("{mutant:?}");
            let Some(Hunt { scenario, seeds }) = hunt(*mutant) else {
                println!("{name:<24}-  (tests in the core)");
                continue;
            };
            let (steps, seed, what) = match noticed(&name, scenario.name, seeds) {
                Ok(Some(noticed)) => noticed,
                Ok(None) => {
                    missed += 1;
                    println!("{name:<24}{:<10}{seeds:>6}{:>12}  NOT NOTICED", scenario.name, "");
                    continue;
                }
                Err(error) => {
                    eprintln!("{name}: {error}");
                    return ExitCode::FAILURE;
                }
            };
            println!("{name:<24}{:<10}{:>6}{steps:>12}  {what}", scenario.name, seed + 1);
        }
        match missed {
            0 => ExitCode::SUCCESS,
            _ => {
                eprintln!("{missed} mistakes were not noticed");
                ExitCode::FAILURE
            }
        }
    }

    /// Steps until the mistake was noticed, the seed, and as what.
    type Noticed = (u64, u64, String);

    fn noticed(mutant: &str, scenario: &str, seeds: u64) -> std::io::Result<Option<Noticed>> {
        let seeds = seeds.to_string();
        let arguments = ["--mutant", mutant, "--scenario", scenario, "--seeds", &seeds];
        let output = Command::new(std::env::current_exe()?).args(arguments).output()?;
        if output.status.success() {
            return Ok(None);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let number = |before: &str| {
            let after = said.lines().find_map(|line| line.split_once(before))?.1;
            after.split(' ').next()?.parse().ok()
        };
        let (steps, seed) = (number(STEPS_BEFORE), number("--seed "));
        let (Some(steps), Some(seed)) = (steps, seed) else {
            return Err(std::io::Error::other(said.into_owned()));
        };
        // A panic says where it happened in one line, and why in the next.
        let of_seed = format!("{scenario} seed {seed}: ");
        let violation = said.lines().find_map(|line| line.strip_prefix(&of_seed));
        let panic = || said.lines().skip_while(|line| !line.contains("panicked at")).nth(1);
        let what = violation.or_else(panic).unwrap_or("an end without words");
        let what: String = what.chars().take(110).collect();
        Ok(Some((steps, seed, what)))
    }
}
