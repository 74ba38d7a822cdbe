//! All tests: those of the crates, then the image's acceptance test on QEMU, as it should go and as
//! it should not, then clusters whose voters fail.
//!
//! What needs something that this machine lacks is skipped and counted so; with `CI=true` that is a
//! failure.

mod serving;

use crate::guest::{FILE, Guest, Machine, Scratch, Setup};
use crate::image::{self, PACKAGE};
use crate::tools::{FUSERMOUNT, Failure, QEMU, Tools, cargo, free_ports, output, root};
use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// QEMU's status when the image says that all is well, and that it gave up.
const STATUS_SUCCESS: i32 = 33;
const STATUS_FAILURE: i32 = 35;
/// Time for a guest that has little to do; an emulator on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(60);

const ADDRESSES: &str = "ip=10.0.2.15/24 gw=10.0.2.2 ip=fec0::15/64 gw=fec0::2";
/// The port that guests echo at.
const ECHO_PORT: u16 = 7;

/// How many tests ended how.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Runs the tests whose names contain the filter.
pub(crate) fn run(tools: &Tools, filter: Option<&str>) -> Result<(), Failure> {
    let mut tally = Tally::default();
    // No test of a crate is called so, and to find that out takes long.
    let elsewhere = |filter: &str| filter.starts_with(GUEST) || filter.starts_with(CLUSTER);
    if !filter.is_some_and(elsewhere) {
        run_crate_tests(&[], filter, &mut tally);
        run_crate_tests(&["--package", PACKAGE, "--lib"], filter, &mut tally);
    }
    run_guest_tests(tools, filter, &mut tally);
    run_cluster_tests(tools, filter, &mut tally);
    let Tally { passed, failed, skipped } = tally;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 {
        return Err(Failure::new("tests failed"));
    }
    if skipped > 0 && env::var("CI").is_ok_and(|value| value == "true") {
        return Err(Failure::new("tests were skipped, and CI has all they need"));
    }
    Ok(())
}

/// Runs cargo's tests, and adds up what they say.
fn run_crate_tests(packages: &[&str], filter: Option<&str>, tally: &mut Tally) {
    let mut command = cargo();
    command.args(["test", "--quiet", "--no-fail-fast"]).args(packages).args(filter);
    let mut child = match command.stdout(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(error) => {
            println!("cargo test can't be run: {error}");
            tally.failed += 1;
            return;
        }
    };
    let failed_before = tally.failed;
    let lines = child.stdout.take().map(|out| BufReader::new(out).lines());
    for line in lines.into_iter().flatten().map_while(Result::ok) {
        println!("{line}");
        if let Some(counts) = line.strip_prefix("test result:") {
            add_counts(counts, tally);
        }
    }
    // Without a count of failed tests, something did not even build.
    let success = child.wait().is_ok_and(|status| status.success());
    if !success && tally.failed == failed_before {
        tally.failed += 1;
    }
}

/// Adds up `ok. 3 passed; 0 failed; 1 ignored; ...`.
fn add_counts(counts: &str, tally: &mut Tally) {
    let count = |name: &str| {
        let words: Vec<&str> = counts.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        let at = words.iter().position(|word| *word == name)?;
        words.get(at.checked_sub(1)?)?.parse::<u64>().ok()
    };
    tally.passed += count("passed").unwrap_or(0);
    tally.failed += count("failed").unwrap_or(0);
    tally.skipped += count("ignored").unwrap_or(0);
}

/// What the names of tests of the image on QEMU start with.
const GUEST: &str = "guest::";

/// A test on one machine.
type GuestTest = fn(&Bench<'_>) -> Result<(), String>;

/// What a guest test works with.
struct Bench<'a> {
    machine: Machine,
    image: &'a Path,
    scratch: Scratch,
}

/// The test that mounts what a guest serves.
const MOUNTED: &str = "server_mounted";

const GUEST_TESTS: [(&str, GuestTest); 16] = [
    ("disk", disk),
    ("echo", echo),
    ("client", client),
    ("client_ipv6", client_ipv6),
    ("guards", guards),
    ("options", options),
    ("durability", durability),
    ("disk_errors", disk_errors),
    ("foreign_disk", foreign_disk),
    ("entropy", entropy),
    ("pause", pause),
    ("server", serving::lives_and_stops),
    ("server_killed", serving::is_killed_and_comes_back),
    ("server_refused", serving::is_refused),
    ("server_paused", serving::is_deposed_by_a_pause),
    (MOUNTED, serving::is_mounted_twice),
];

fn run_guest_tests(tools: &Tools, filter: Option<&str>, tally: &mut Tally) {
    let tests: Vec<(String, Machine, GuestTest)> = Machine::ALL
        .into_iter()
        .flat_map(|machine| {
            GUEST_TESTS.into_iter().map(move |(name, test)| {
                (format!("{GUEST}{}::{name}", machine.name()), machine, test)
            })
        })
        .filter(|(name, _, _)| filter.is_none_or(|filter| name.contains(filter)))
        .collect();
    if tests.is_empty() {
        return;
    }
    if !tools.have(&QEMU) {
        for (name, _, _) in tests {
            println!("test {name} ... skipped: needs {}", QEMU.program);
            tally.skipped += 1;
        }
        return;
    }
    let image = image::build();
    for (name, machine, test) in tests {
        if name.ends_with(MOUNTED) && !(tools.have(&FUSERMOUNT) && Path::new("/dev/fuse").exists())
        {
            println!("test {name} ... skipped: needs {} and /dev/fuse", FUSERMOUNT.program);
            tally.skipped += 1;
            continue;
        }
        let start = Instant::now();
        let result = image.as_ref().map_err(ToString::to_string).and_then(|image| {
            let scratch = Scratch::new(&name.replace("::", "-"))?;
            test(&Bench { machine, image, scratch })
        });
        match result {
            Ok(()) => {
                tally.passed += 1;
                println!("test {name} ... ok ({:.1} s)", start.elapsed().as_secs_f32());
            }
            Err(error) => {
                tally.failed += 1;
                println!("test {name} ... FAILED: {error}");
            }
        }
    }
}

/// What the names of tests of whole clusters start with.
const CLUSTER: &str = "cluster::";

/// Clusters whose voters fail while their mounts are used, for a short time: see `torture`.
const CLUSTER_TESTS: [(&str, &[&str]); 2] = [
    ("torture_hosted", &["--minutes", "0.25", "--every", "4"]),
    ("torture_qemu", &["--qemu", "--mounts", "2", "--minutes", "0.25", "--every", "5"]),
];

fn run_cluster_tests(tools: &Tools, filter: Option<&str>, tally: &mut Tally) {
    for (name, options) in CLUSTER_TESTS {
        let name = format!("{CLUSTER}{name}");
        if filter.is_some_and(|filter| !name.contains(filter)) {
            continue;
        }
        let has_qemu = !options.contains(&"--qemu") || tools.have(&QEMU);
        if !(has_qemu && tools.have(&FUSERMOUNT) && Path::new("/dev/fuse").exists()) {
            println!("test {name} ... skipped: needs {}, QEMU and /dev/fuse", FUSERMOUNT.program);
            tally.skipped += 1;
            continue;
        }
        let start = Instant::now();
        let result =
            env::current_exe().map_err(|error| format!("xtask: {error}")).and_then(|own| {
                let mut torture = Command::new(own);
                torture.current_dir(root()).args(["torture", "--dev"]).args(options);
                Ok(output("cargo xtask torture", &mut torture)?)
            });
        match result {
            Ok(said) => {
                tally.passed += 1;
                said.lines().filter(|line| line.starts_with("torture:")).for_each(|line| {
                    println!("{line}");
                });
                println!("test {name} ... ok ({:.1} s)", start.elapsed().as_secs_f32());
            }
            Err(error) => {
                tally.failed += 1;
                println!("test {name} ... FAILED: {error}");
            }
        }
    }
}

impl Bench<'_> {
    fn start(&self, setup: &Setup) -> Result<Guest, String> {
        let disk = self.scratch.disk()?;
        self.start_with(setup, &disk)
    }

    fn start_with(&self, setup: &Setup, disk: &Path) -> Result<Guest, String> {
        Guest::start(setup, self.image, disk, &self.scratch, PATIENCE)
    }

    /// A directory for another guest at the same time.
    fn beside(&self) -> Result<Scratch, String> {
        let name = self.scratch.0.file_name().unwrap_or_default().to_string_lossy();
        Scratch::new(&format!("{name}-beside"))
    }

    fn setup(&self, append: &str) -> Setup {
        Setup::new(self.machine, append)
    }

    /// Boots, and expects success and these parts of what the guest says.
    fn passes(&self, setup: &Setup, parts: &[&str]) -> Result<(), String> {
        expect(self.start(setup)?, STATUS_SUCCESS, parts)
    }

    /// Boots, and expects that the guest gives up and says why.
    fn fails(&self, setup: &Setup, parts: &[&str]) -> Result<(), String> {
        expect(self.start(setup)?, STATUS_FAILURE, parts)
    }
}

fn expect(guest: Guest, status: i32, parts: &[&str]) -> Result<(), String> {
    let ended = guest.wait()?;
    let said = ended.lines.join("\n");
    if ended.status != Some(status) {
        return Err(format!("status {:?} instead of {status}; it said:\n{said}", ended.status));
    }
    match parts.iter().find(|part| !said.contains(**part)) {
        Some(part) => Err(format!("it never said '{part}', but:\n{said}")),
        None => Ok(()),
    }
}

/// The disk through its deep queue, and with it memory functions, clock, entropy, and the log.
fn disk(bench: &Bench<'_>) -> Result<(), String> {
    let parts = [
        "selftest: memory functions, clock and entropy are fine",
        "INFO disk: write: 2048 requests",
        "INFO disk: up to 86 requests at a time",
        "(src/run.rs:",
        "selftest: passed",
    ];
    bench.passes(&bench.setup("selftest"), &parts)
}

/// An echo over TCP, after a port scan, beside connections that say nothing.
fn echo(bench: &Bench<'_>) -> Result<(), String> {
    const SCAN: usize = 60;
    const IDLE: usize = 20;
    /// QEMU takes one connection at a time over.
    const PACE: Duration = Duration::from_millis(10);
    let port = free_port()?;
    let mut setup = bench.setup(&format!("selftest {ADDRESSES} echo={ECHO_PORT}"));
    setup.forward = format!(",hostfwd=tcp:127.0.0.1:{port}-:{ECHO_PORT}");
    let mut guest = bench.start(&setup)?;
    guest.wait_for("INFO disk: up to")?;
    let fail = |error: std::io::Error| format!("echo: {error}");
    let mut idle = Vec::new();
    for index in 0..SCAN + IDLE {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(fail)?;
        if index >= SCAN {
            idle.push(stream);
        }
        thread::sleep(PACE);
    }
    let sent: Vec<u8> = (0..200_000u32).map(|index| ((index * 31) >> 3) as u8).collect();
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(fail)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
    let mut writer = stream.try_clone().map_err(fail)?;
    let written = sent.clone();
    let sender = thread::spawn(move || writer.write_all(&written));
    let mut got = vec![0; sent.len()];
    (&stream).read_exact(&mut got).map_err(fail)?;
    sender.join().map_err(|_| "the sender panicked")?.map_err(fail)?;
    if got != sent {
        return Err("other bytes came back than were sent".into());
    }
    drop(stream);
    expect(guest, STATUS_SUCCESS, &["selftest: echoed 200000 bytes", "selftest: passed"])
}

fn free_port() -> Result<u16, String> {
    let ports = free_ports(1)?;
    ports.first().copied().ok_or_else(|| "no free port".into())
}

/// A connection that the guest makes.
fn client(bench: &Bench<'_>) -> Result<(), String> {
    client_of(bench, Ipv4Addr::LOCALHOST.into(), "10.0.2.2")
}

/// The same over IPv6.
fn client_ipv6(bench: &Bench<'_>) -> Result<(), String> {
    client_of(bench, Ipv6Addr::LOCALHOST.into(), "[fec0::2]")
}

fn client_of(bench: &Bench<'_>, at: IpAddr, seen_as: &str) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("client: {error}");
    let listener = TcpListener::bind((at, 0)).map_err(fail)?;
    let port = listener.local_addr().map_err(fail)?.port();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut reader = stream.try_clone()?;
        std::io::copy(&mut reader, &mut stream)?;
        stream.shutdown(Shutdown::Both)
    });
    let append = format!("selftest {ADDRESSES} connect={seen_as}:{port}");
    bench.passes(&bench.setup(&append), &["net: client got 262144 bytes back", "selftest: passed"])
}

/// Each planted fault is stopped, named, and ends the machine with a failure.
fn guards(bench: &Bench<'_>) -> Result<(), String> {
    let faults = [
        ("panic", "panicked at unikernel/src/acceptance.rs"),
        ("wx", "write protected at"),
        ("nx", "execute at"),
        ("null", "read unmapped at 0x0000000000000008"),
        ("stack", "stack overflow"),
        ("divide", "divide error (vector 0"),
        ("double", "double fault (vector 8"),
    ];
    faults.iter().try_for_each(|(fault, part)| {
        let setup = bench.setup(&format!("selftest={fault}"));
        bench.fails(&setup, &[part]).map_err(|error| format!("{fault}: {error}"))
    })
}

/// A command line that is not understood starts nothing.
fn options(bench: &Bench<'_>) -> Result<(), String> {
    let lines = [
        ("selftest slott=1", "outrider: unknown option 'slott=1'"),
        ("selftest ip=10.0.2.15", "outrider: malformed option 'ip=10.0.2.15'"),
        ("ip=10.0.2.15/24", "outrider: nothing to do"),
        ("slot=0", "outrider: a server needs an address"),
    ];
    lines.iter().try_for_each(|(line, part)| bench.fails(&bench.setup(line), &[part]))
}

/// A disk without FLUSH is used only when it is declared to write through.
fn durability(bench: &Bench<'_>) -> Result<(), String> {
    let mut setup = bench.setup("selftest");
    setup.disk = ",write-cache=off,config-wce=off";
    bench.fails(&setup, &["outrider: the disk has no FLUSH"])?;
    setup.append.push_str(" disk=writethrough");
    bench.passes(&setup, &["write-through", "selftest: passed"])
}

/// What the device can't do arrives as an error.
fn disk_errors(bench: &Bench<'_>) -> Result<(), String> {
    let mut setup = bench.setup("selftest");
    setup.blockdev = "driver=raw,node-name=d0,file.driver=blkdebug,file.image.driver=file,\
                      file.image.filename={},file.inject-error.0.event=flush_to_disk,\
                      file.inject-error.0.errno=5";
    bench.fails(&setup, &["selftest failed: Flush(Device)"])?;
    setup.blockdev = "driver=raw,read-only=on,node-name=d0,file.driver=file,\
                      file.filename={}";
    bench.fails(&setup, &["Unsupported)"])
}

/// A disk that holds something is not overwritten; one that holds our pattern is.
fn foreign_disk(bench: &Bench<'_>) -> Result<(), String> {
    let setup = bench.setup("selftest");
    assert_eq!(setup.blockdev, FILE);
    let disk = bench.scratch.disk()?;
    for _ in 0..2 {
        expect(bench.start_with(&setup, &disk)?, STATUS_SUCCESS, &["selftest: passed"])?;
    }
    let disk = bench.scratch.disk()?;
    let content = vec![b'x'; 1 << 20];
    std::fs::write(&disk, &content).map_err(|error| error.to_string())?;
    expect(bench.start_with(&setup, &disk)?, STATUS_FAILURE, &["NotScratch"])?;
    let after = std::fs::read(&disk).map_err(|error| error.to_string())?;
    if after == content { Ok(()) } else { Err("it wrote to the disk".into()) }
}

/// Without a source of entropy nothing starts; a virtio device is one.
fn entropy(bench: &Bench<'_>) -> Result<(), String> {
    let mut setup = bench.setup("selftest");
    setup.cpu = "qemu64";
    bench.fails(&setup, &["outrider: no entropy"])?;
    setup.entropy = true;
    bench.passes(&setup, &["entropy: virtio-rng", "selftest: passed"])
}

/// Time that the machine stands still shows as time that went by.
fn pause(bench: &Bench<'_>) -> Result<(), String> {
    const LINGER: Duration = Duration::from_secs(8);
    const PAUSE: Duration = Duration::from_secs(4);
    let start = Instant::now();
    let setup = bench.setup(&format!("selftest linger={}", LINGER.as_secs()));
    let mut guest = bench.start(&setup)?;
    guest.wait_for("INFO disk: up to")?;
    // By then the guest knows where in the second its real-time clock is.
    thread::sleep(Duration::from_millis(2500));
    guest.control(&["stop"])?;
    thread::sleep(PAUSE);
    guest.control(&["cont"])?;
    expect(guest, STATUS_SUCCESS, &["the machine stood still for", "selftest: passed"])?;
    let took = start.elapsed();
    // Had the pause not counted, the guest would have lingered longer.
    if took < LINGER || took > LINGER + PAUSE * 3 / 4 {
        return Err(format!("lingering {LINGER:?} took {took:?}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Tally, add_counts};

    #[test]
    fn counts_are_added_up() {
        let mut tally = Tally { passed: 1, failed: 0, skipped: 0 };
        add_counts(" ok. 12 passed; 1 failed; 3 ignored; 0 measured; 0 filtered out;", &mut tally);
        assert_eq!((tally.passed, tally.failed, tally.skipped), (13, 1, 3));
    }
}
