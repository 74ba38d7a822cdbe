//! Runs simulated clusters, one seed after the other, and stops at the first that goes wrong.
//!
//! ```text
//! sim [--scenario NAME] [--seed FIRST] [--seeds COUNT] [--twice] [--demand] [--trace]
//! ```
//!
//! Built with `--cfg outrider_mutants` it takes `--mutant NAME`: a run that then is clean shows
//! what the checkers would miss.
//!
//! # Invariants
//!
//! * The exit status is 0 only if every run was clean and, with `--demand`, every fault its
//!   scenario demands has happened.
//! * Whatever goes wrong, a panic of a node included, the command that replays it is printed.

use clap::Parser;
use outrider_tests::faults::Coverage;
use outrider_tests::scenario::{ALL, Report, Scenario};
use std::collections::BTreeMap;
use std::process::ExitCode;

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
}

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
    for (what, count) in work {
        println!("  {what:<22}{count:>12}");
    }
    println!("faults that happened:\n{}", coverage.report());
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
        }
    };
    std::panic::set_hook(Box::new(name_the_seed));
    let mut world = (scenario.world)(seed);
    if options.trace {
        world.trace_mut().print_lines();
    }
    let report = scenario.run(&mut world);
    if let Some(violation) = &report.violation {
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
