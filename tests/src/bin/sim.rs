//! Runs simulated clusters, one seed after the other, and stops at the first that goes wrong.
//!
//! ```text
//! sim [--scenario NAME] [--seed FIRST] [--seeds COUNT] [--jobs COUNT] [--twice] [--demand]
//!     [--trace]
//! sim --scenario mount --read-back [--seed FIRST] [--seeds COUNT]
//! sim --scenario NAME --goals
//! sim --story NAME
//! sim --mutants
//! ```
//!
//! Built with `--cfg outrider_mutants` it takes `--mutant NAME`: a run that then is clean shows
//! what the checkers would miss. `--mutants` tries all of them, in seeds and in their stories, and
//! prints what noticed each, after how much work.
//!
//! # Invariants
//!
//! * The exit status is 0 only if every run was clean and, with `--demand`, every fault its
//!   scenario demands has happened, and all that it demands was done.
//! * Whatever goes wrong, a panic of a node included, the command that replays it is printed.
//! * A seed is run by one thread, and what comes of it doesn't depend on how many there are.

use clap::Parser;
use outrider_tests::faults::Coverage;
use outrider_tests::scenario::{ALL, Report, Scenario, mount, stories};
use outrider_tests::second_reader::{Agreed, agree};
use outrider_tests::world::World;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};

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
    /// How many seeds to run at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Say what a proof of the scenario counts, and how much of it there is to be.
    #[arg(long, requires = "scenario")]
    goals: bool,
    /// Run each seed twice and demand that both runs are the same.
    #[arg(long)]
    twice: bool,
    /// Demand that each fault a scenario is built to survive has happened.
    #[arg(long)]
    demand: bool,
    /// Have the reader in Python read each disk at the end, and compare it with what a mount sees.
    /// For scenarios with files.
    #[arg(long)]
    read_back: bool,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
    /// Tell this story instead.
    #[arg(long)]
    story: Option<String>,
    /// Make all nodes make this mistake.
    #[cfg(outrider_mutants)]
    #[arg(long)]
    mutant: Option<String>,
    /// Try each mistake until a seed notices it.
    #[cfg(outrider_mutants)]
    #[arg(long)]
    mutants: bool,
}

/// What stands before the work that was done when something went wrong.
const WORK_BEFORE: &str = "work: ";

/// What was done in the seeds that have been run.
static WORK: Mutex<BTreeMap<&str, u64>> = Mutex::new(BTreeMap::new());

/// What a thread of seeds may have on its stack.
const STACK_BYTES: usize = 32 << 20;

std::thread_local! {
    /// The command that replays the seed that this thread runs.
    static REPLAY: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The work that says how much it took to find something.
fn work_so_far() -> String {
    let work = WORK.lock().map(|work| work.clone()).unwrap_or_default();
    let count = |what| work.get(what).copied().unwrap_or_default();
    let [commits, crashes, steps] = ["commits confirmed", "crashes", "steps"].map(count);
    format!("{WORK_BEFORE}{commits} commits, {crashes} crashes, {steps} steps")
}

fn add_work(report: &Report) {
    if let Ok(mut work) = WORK.lock() {
        for (what, count) in &report.work {
            *work.entry(what).or_default() += count;
        }
    }
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
    if options.mutants {
        return hunts::run();
    }
    #[cfg(outrider_mutants)]
    if let Err(what) = mistake(&options) {
        eprintln!("{what}");
        return ExitCode::FAILURE;
    }
    if options.goals {
        for (what, count) in scenarios.iter().flat_map(|scenario| scenario.all_goals()) {
            println!("  {what:<30}{count:>14}");
        }
        return ExitCode::SUCCESS;
    }
    name_seeds_of_panics();
    if let Some(name) = &options.story {
        return tell(name);
    }
    for scenario in scenarios {
        if let Err(what) = run_seeds(scenario, &options) {
            eprintln!("{what}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Has the nodes of this thread make the mistake that is asked for.
#[cfg(outrider_mutants)]
fn mistake(options: &Options) -> Result<(), String> {
    use outrider_core::mutant::{Mutant, activate};
    let Some(name) = &options.mutant else { return Ok(()) };
    let named = Mutant::ALL.iter().find(|mutant| format!("{mutant:?}") == *name);
    let mutant = named.ok_or(format!("there is no mutant {name}; there are {:?}", Mutant::ALL))?;
    activate(Some(*mutant));
    Ok(())
}

/// Whatever panics, the command that replays its seed is printed.
fn name_seeds_of_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if let Some(replay) = REPLAY.with_borrow(Option::clone) {
            eprintln!("{replay}");
            eprintln!("{}", work_so_far());
        }
    }));
}

/// Tells a story, and says what a checker found, if anything.
fn tell(name: &str) -> ExitCode {
    let Some(story) = stories::ALL.iter().find(|story| story.name == name) else {
        let names: Vec<&str> = stories::ALL.iter().map(|story| story.name).collect();
        eprintln!("there is no story {name:?}; there are {names:?}");
        return ExitCode::FAILURE;
    };
    match (story.tell)() {
        Ok(()) => ExitCode::SUCCESS,
        Err(violation) => {
            eprintln!("{name}: {violation}");
            ExitCode::FAILURE
        }
    }
}

/// What is known of the seeds of a scenario.
struct Seeds {
    next: u64,
    end: u64,
    coverage: Coverage,
    work: BTreeMap<&'static str, u64>,
    agreed: Agreed,
    failure: Option<String>,
}

/// Runs seeds until there is none left, or one has gone wrong.
fn run_some(scenario: &'static Scenario, options: &Options, seeds: &Mutex<Seeds>) {
    fn lock(seeds: &Mutex<Seeds>) -> MutexGuard<'_, Seeds> {
        seeds.lock().unwrap_or_else(PoisonError::into_inner)
    }
    #[cfg(outrider_mutants)]
    mistake(options).expect("the main thread has made it too");
    loop {
        let seed = {
            let mut seeds = lock(seeds);
            if seeds.next == seeds.end || seeds.failure.is_some() {
                return;
            }
            seeds.next += 1;
            seeds.next - 1
        };
        let result = run_seed(scenario, seed, options);
        let mut seeds = lock(seeds);
        match result {
            Ok((report, agreed)) => {
                seeds.coverage.add(&report.coverage);
                seeds.agreed.add(agreed);
                for (what, count) in &report.work {
                    *seeds.work.entry(what).or_default() += count;
                }
                if options.seeds == 1 {
                    println!("{} seed {seed}: trace hash {:016x}", scenario.name, report.hash);
                }
            }
            Err(what) => seeds.failure = seeds.failure.take().or(Some(what)),
        }
    }
}

/// Runs a scenario's seeds, and prints what was done and what went wrong how often.
fn run_seeds(scenario: &'static Scenario, options: &Options) -> Result<(), String> {
    let seeds = Mutex::new(Seeds {
        next: options.seed,
        end: options.seed.saturating_add(options.seeds),
        coverage: Coverage::new(),
        work: BTreeMap::new(),
        agreed: Agreed::default(),
        failure: None,
    });
    std::thread::scope(|scope| -> Result<(), String> {
        for _ in 0..options.jobs {
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            let run = || run_some(scenario, options, &seeds);
            thread.spawn_scoped(scope, run).map_err(|error| format!("no thread: {error}"))?;
        }
        Ok(())
    })?;
    let Seeds { coverage, work, agreed, failure, .. } =
        seeds.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(failure) = failure {
        return Err(failure);
    }
    println!("{}: {} seeds from {}, all clean", scenario.name, options.seeds, options.seed);
    for (what, count) in &work {
        println!("  {what:<30}{count:>12}");
    }
    if options.read_back {
        let Agreed { paths, items, runs } = agreed;
        println!("both readers agree: {paths} paths, {items} items in {runs} runs");
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

/// Has the disk of a world read by both readers.
fn read_back(world: &World) -> Result<Agreed, String> {
    let image = world.disk().image();
    let volume = mount::volume(&image).ok_or("no volume")?;
    agree(&image, &volume, mount::CLIENTS)
}

fn run_seed(
    scenario: &'static Scenario,
    seed: u64,
    options: &Options,
) -> Result<(Report, Agreed), String> {
    let replay = format!(
        "replay: cargo run -p outrider-tests --bin sim -- --scenario {} --seed {seed} --trace",
        scenario.name
    );
    REPLAY.set(Some(replay.clone()));
    let mut agreed = Agreed::default();
    let mut world = (scenario.world)(seed);
    if options.trace {
        world.trace_mut().print_lines();
    }
    let report = scenario.run(&mut world);
    add_work(&report);
    if let Some(violation) = &report.violation {
        eprintln!("{}", work_so_far());
        return Err(format!("{} seed {seed}: {violation}\n{replay}", scenario.name));
    }
    if options.read_back {
        agreed.add(read_back(&world).map_err(|what| format!("seed {seed}: {what}\n{replay}"))?);
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
    REPLAY.set(None);
    Ok((report, agreed))
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

/// Mistakes, each tried in processes of its own: some end in a panic, and some don't end.
#[cfg(outrider_mutants)]
mod hunts {
    use super::WORK_BEFORE;
    use outrider_core::mutant::Mutant;
    use outrider_tests::hunt::{Hunt, Told, hunt};
    use outrider_tests::scenario::Scenario;
    use std::io::Read;
    use std::process::{Command, ExitCode, Stdio};
    use std::sync::Mutex;
    use std::time::{Duration, Instant};

    /// Mistakes that are tried at a time.
    const WORKERS: usize = 2;
    /// How long one may take to be noticed.
    const PATIENCE: Duration = Duration::from_secs(900);

    /// What stands where something should have been found.
    const NOT_NOTICED: &str = "NOT NOTICED";

    /// What came of one: lines to print, and whether it was noticed.
    type Row = (Vec<String>, bool);

    /// The next one to try, and what came of those before whose turn to be printed has not come.
    struct Progress {
        next: usize,
        printed: usize,
        rows: Vec<Option<Row>>,
        missed: u32,
    }

    /// Tries them all; says what noticed each.
    pub(super) fn run() -> ExitCode {
        let rows = Mutant::ALL.iter().map(|_| None).collect();
        let progress = Mutex::new(Progress { next: 0, printed: 0, rows, missed: 0 });
        std::thread::scope(|scope| {
            for _ in 0..WORKERS {
                scope.spawn(|| work(&progress));
            }
        });
        match progress.into_inner().map_or(1, |progress| progress.missed) {
            0 => ExitCode::SUCCESS,
            missed => {
                eprintln!("{missed} mistakes were not noticed as they should be");
                ExitCode::FAILURE
            }
        }
    }

    fn work(progress: &Mutex<Progress>) {
        loop {
            let Ok(mut now) = progress.lock() else { return };
            let at = now.next;
            let Some(mutant) = Mutant::ALL.get(at) else { return };
            now.next += 1;
            drop(now);
            let row = try_one(*mutant);
            let Ok(mut now) = progress.lock() else { return };
            now.rows[at] = Some(row);
            let mut turn = now.printed;
            while let Some(row) = now.rows.get_mut(turn).and_then(Option::take) {
                row.0.iter().for_each(|line| println!("{line}"));
                now.missed += u32::from(!row.1);
                turn += 1;
            }
            now.printed = turn;
        }
    }

    fn try_one(mutant: Mutant) -> Row {
        let name = format!("{mutant:?}");
        let Hunt { seeds, told } = hunt(mutant);
        let (mut lines, mut noticed) = (Vec::new(), true);
        match seeds {
            None => lines.push(format!("{name:<24}seeds: none, see tests/src/hunt.rs")),
            Some((scenario, seeds)) => {
                let (found, others) = search(&name, scenario, seeds);
                noticed &= found.is_some();
                let said = found.unwrap_or_else(|| NOT_NOTICED.to_owned());
                let but = match others.is_empty() {
                    true => String::new(),
                    false => format!("; it isn't what goes wrong in {others:?}"),
                };
                lines.push(format!("{name:<24}seeds: {} of {seeds}: {said}{but}", scenario.name));
            }
        }
        let (story, said) = match told {
            Told::Core(test) => (test, "(a test of the core)".to_owned()),
            Told::Test(test) => (test, "(a test of this package, run beside this)".to_owned()),
            Told::Story(story) => {
                let arguments = ["--story", story.name];
                let found = found(&name, &arguments, &format!("{}: ", story.name));
                let found = found.filter(|_| is_clean(&arguments));
                noticed &= found.is_some();
                (story.name, found.map_or(NOT_NOTICED.to_owned(), |found| found.said))
            }
        };
        lines.push(format!("{:<24}story: {story}: {said}", ""));
        (lines, noticed)
    }

    /// What noticed the mistake, of the first so many seeds: one that goes wrong without it says
    /// nothing. Those that do are named.
    fn search(mutant: &str, scenario: &Scenario, seeds: u64) -> (Option<String>, Vec<u64>) {
        let (mut first, mut others) = (0, Vec::new());
        while first < seeds {
            let range = [first, seeds - first].map(|number| number.to_string());
            let arguments =
                ["--scenario", scenario.name, "--seed", &range[0], "--seeds", &range[1]];
            let found = found(mutant, &arguments, &format!("{} seed ", scenario.name));
            let Some(Found { seed: Some(seed), said }) = found else { break };
            let number = seed.to_string();
            if is_clean(&["--scenario", scenario.name, "--seed", &number]) {
                return (Some(said), others);
            }
            others.push(seed);
            first = seed + 1;
        }
        (None, others)
    }

    /// Whether nothing goes wrong there without a mistake.
    fn is_clean(arguments: &[&str]) -> bool {
        let Ok(program) = std::env::current_exe() else { return false };
        let mut command = Command::new(program);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// What a process has found.
    struct Found {
        /// In which seed, if there was one.
        seed: Option<u64>,
        /// What, and after how much work.
        said: String,
    }

    /// As what a process noticed the mistake, if it did. A violation stands behind `before`.
    fn found(mutant: &str, arguments: &[&str], before: &str) -> Option<Found> {
        let mut child = Command::new(std::env::current_exe().ok()?)
            .args(["--mutant", mutant])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        let end = Instant::now() + PATIENCE;
        let status = loop {
            match child.try_wait().ok()? {
                Some(status) => break status,
                None if Instant::now() > end => {
                    child.kill().and_then(|()| child.wait()).ok()?;
                    return None;
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let mut said = String::new();
        child.stderr.take()?.read_to_string(&mut said).ok()?;
        if status.success() {
            return None;
        }
        let work = said.lines().find_map(|line| line.strip_prefix(WORK_BEFORE));
        let seed = said.lines().find_map(|line| Some(line.split_once("--seed ")?.1));
        let seed = seed.and_then(|seed| seed.split(' ').next()?.parse().ok());
        // A panic says where it happened in one line, and why in the next.
        let panic = || said.lines().skip_while(|line| !line.contains("panicked at")).nth(1);
        let what = said.lines().find_map(|line| line.strip_prefix(before)).or_else(panic)?;
        let of_seed = what.split_once(": ").filter(|(seed, _)| seed.parse::<u64>().is_ok());
        let what: String = of_seed.map_or(what, |of_seed| of_seed.1).chars().take(120).collect();
        let number = seed.map(|seed: u64| format!("seed {seed}"));
        let parts = [number.as_deref(), work, Some(&what)];
        let said = parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
        Some(Found { seed, said })
    }
}
