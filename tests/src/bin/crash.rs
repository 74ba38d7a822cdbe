//! Cuts the power off at every write of small workloads, and recovers.
//!
//! ```text
//! crash [--operations N]        all workloads of up to so many operations, and recoveries cut off
//! crash --acts Append,Fsync     this one
//! ```
//!
//! Built with `--cfg outrider_mutants` it takes `--mutant NAME`: all nodes then make this mistake.
//!
//! # Invariants
//!
//! * The exit status is 0 only if nothing was wrong.

use clap::Parser;
use outrider_tests::crash::Bounds;
use outrider_tests::crash::cuts::Cuts;
use outrider_tests::crash::workload::{Act, all};
use std::process::ExitCode;

/// Cuts the power off at every write of small workloads, and recovers.
#[derive(Debug, Parser)]
struct Options {
    /// Most operations of a workload.
    #[arg(long, default_value_t = 3)]
    operations: u32,
    /// Only the workload of these operations.
    #[arg(long, value_delimiter = ',')]
    acts: Vec<String>,
    /// Make all nodes make this mistake.
    #[cfg(outrider_mutants)]
    #[arg(long)]
    mutant: Option<String>,
}

fn main() -> ExitCode {
    let options = Options::parse();
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
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("{what}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let mut cuts = Cuts::new()?;
    let bounds = Bounds::USUAL;
    if !options.acts.is_empty() {
        let named = |name: &String| {
            let act = Act::ALL.into_iter().find(|act| format!("{act:?}") == *name);
            act.ok_or_else(|| format!("there is no {name}; there are {:?}", Act::ALL))
        };
        let acts: Vec<Act> = options.acts.iter().map(named).collect::<Result<_, _>>()?;
        cuts.of_workload(&acts, &bounds)?;
        cuts.of_recoveries(&acts, &bounds)?;
    } else {
        for operations in 1..=options.operations {
            for acts in all(operations) {
                cuts.of_workload(&acts, &bounds)?;
                if operations < 3 {
                    cuts.of_recoveries(&acts, &bounds)?;
                }
            }
            println!("up to {operations} operations: {}", cuts.totals());
        }
    }
    println!("{}", cuts.totals());
    Ok(())
}
