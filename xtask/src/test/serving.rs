//! The image as a server: elected and asked, stopped, killed, refused, paused.

use super::{ADDRESSES, Bench, PATIENCE, STATUS_FAILURE, STATUS_SUCCESS, expect, free_port};
use crate::guest::{Guest, SHARED_BUFFERED, STOP, Setup};
use crate::tools::{build_program, build_test_program, output, root};
use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

const HOST: &str = "host=00112233445566778899aabbccddeeff";
const BOOT: &str = "boot=0123456789abcdef0123456789abcdef";
const OTHER_HOST: &str = "host=ffeeddccbbaa99887766554433221100";

/// A volume of one voter, and the programs that look at it.
struct Rig {
    outrider: PathBuf,
    visit: PathBuf,
    volume: PathBuf,
    port: u16,
}

impl Rig {
    fn new(bench: &Bench<'_>) -> Result<Rig, String> {
        let outrider = build_program(true)?;
        let visit = build_test_program("visit")?;
        let volume = bench.scratch.0.join("volume");
        let port = free_port()?;
        let mut mkfs = Command::new(&outrider);
        mkfs.args(["mkfs", "-s", "256M", "-Q", &format!("0,127.0.0.1,{port}")]).arg(&volume);
        output("outrider mkfs", &mut mkfs)?;
        Ok(Rig { outrider, visit, volume, port })
    }

    fn setup(&self, bench: &Bench<'_>, more: &str) -> Setup {
        let port = self.port;
        let mut setup = bench.setup(&format!("slot=0 {ADDRESSES} listen={port} {more}"));
        setup.forward = format!(",hostfwd=tcp:127.0.0.1:{port}-:{port}");
        setup.disk = ",share-rw=on";
        setup.blockdev = SHARED_BUFFERED;
        setup
    }

    fn start(&self, bench: &Bench<'_>, more: &str) -> Result<Guest, String> {
        bench.start_with(&self.setup(bench, more), &self.volume)
    }

    /// A client comes, asks how full the volume is, and goes; it is expected to be this one.
    fn visit(&self, round: u32, client: u32) -> Result<(), String> {
        let mut visit = Command::new(&self.visit);
        visit.arg(&self.volume).arg(format!("127.0.0.1:{}", self.port)).arg("30");
        let told = output("visit", &mut visit)?;
        let expected = format!("round {round}, client {client}, 65536 blocks, ");
        if told.starts_with("greeted\n") && told.contains(&expected) {
            return Ok(());
        }
        Err(format!("a visitor was told '{told}', not '{expected}'"))
    }

    /// Nothing is wrong with the volume.
    fn check(&self) -> Result<(), String> {
        let mut check = Command::new(&self.outrider);
        output("outrider check", check.arg("check").arg(&self.volume))?;
        Ok(())
    }
}

fn stop(mut guest: Guest) -> Result<(), String> {
    guest.type_in(&[STOP])?;
    expect(guest, STATUS_SUCCESS, &["INFO told to stop", "INFO slot let go", "outrider: stopped"])
}

/// It is elected and answers, in 32 MiB, and stops when told to: whoever comes next has the slot at
/// once, on whatever host.
pub(super) fn lives_and_stops(bench: &Bench<'_>) -> Result<(), String> {
    let rig = Rig::new(bench)?;
    let mut guest = rig.start(bench, HOST)?;
    for said in [
        "the server of 64 clients takes",
        "INFO elected: round 1, slot 0",
        "INFO serving",
        "INFO listening",
    ] {
        guest.wait_for(said)?;
    }
    rig.visit(1, 1)?;
    rig.visit(1, 2)?;
    guest.wait_for("INFO client 2 has left")?;
    stop(guest)?;
    rig.check()?;
    let mut next = rig.start(bench, OTHER_HOST)?;
    next.wait_for("INFO listening")?;
    rig.visit(2, 3)?;
    stop(next)?;
    // Stopped before it has taken part.
    let mut early = rig.start(bench, HOST)?;
    early.wait_for("INFO memory: the server")?;
    early.type_in(&[STOP])?;
    expect(early, STATUS_SUCCESS, &["outrider: stopped"])?;
    rig.check()
}

/// Killed, it comes back in its slot on the same host, and clients find what they knew; on another
/// host it is refused until somebody vouches for the one before it.
pub(super) fn is_killed_and_comes_back(bench: &Bench<'_>) -> Result<(), String> {
    let rig = Rig::new(bench)?;
    let here = format!("{HOST} {BOOT}");
    let mut guest = rig.start(bench, &here)?;
    guest.wait_for("INFO listening")?;
    rig.visit(1, 1)?;
    drop(guest);
    rig.check()?;
    let mut guest = rig.start(bench, &here)?;
    guest.wait_for("INFO listening")?;
    rig.visit(2, 2)?;
    drop(guest);
    let refused = rig.start(bench, OTHER_HOST)?;
    expect(refused, STATUS_FAILURE, &["was not stopped and may write yet", "say fenced="])?;
    let mut guest = rig.start(bench, &format!("{OTHER_HOST} fenced=any"))?;
    guest.wait_for("INFO listening")?;
    rig.visit(3, 3)?;
    stop(guest)?;
    rig.check()
}

/// Two mounts of what it serves: a tree that is copied through one is seen through the other, also
/// when the guest is killed meanwhile and another started, and when all were stopped and started.
pub(super) fn is_mounted_twice(bench: &Bench<'_>) -> Result<(), String> {
    let volume = bench.scratch.0.join("volume");
    for kill in ["KILL=$NODE0", "KILL="] {
        let own = env::current_exe().map_err(|error| format!("xtask: {error}"))?;
        let mut cluster = Command::new(own);
        cluster.current_dir(root()).args(["qemu", "--dev", "--accel", "tcg", "--restart"]);
        cluster.args(["--mounts", "2", "--size", "1G", "--machine", bench.machine.name()]);
        cluster.arg("--volume").arg(&volume).arg("--run");
        // Of what this reads, all is in the workspace, and small.
        cluster.arg(format!("SRC=core FILES=120 {kill} timeout 100 sh tests/scripts/tree.sh"));
        let told = output("cargo xtask qemu", &mut cluster)?;
        if kill == "KILL=" && !told.contains("found and compared what was there before") {
            return Err(format!("it forgot what it had, and said:\n{told}"));
        }
    }
    let outrider = build_program(true)?;
    output("outrider check", Command::new(outrider).arg("check").arg(&volume))?;
    Ok(())
}

/// What can't be served is refused in words.
pub(super) fn is_refused(bench: &Bench<'_>) -> Result<(), String> {
    let setup = bench.setup(&format!("slot=0 {ADDRESSES}"));
    bench.fails(&setup, &["outrider: the disk holds no Outrider volume"])?;
    let rig = Rig::new(bench)?;
    let fails = |setup: &Setup, said: &str| {
        expect(bench.start_with(setup, &rig.volume)?, STATUS_FAILURE, &[said])
    };
    let mut setup = rig.setup(bench, HOST);
    setup.append = format!("slot=3 {ADDRESSES}");
    fails(&setup, "outrider: the volume has no voter in slot 3")?;
    let mut setup = rig.setup(bench, HOST);
    setup.memory = "12M".into();
    fails(&setup, "outrider: not enough memory: the server alone takes")?;
    // A slot that is in use is noticed before anything is written.
    let mut first = rig.start(bench, HOST)?;
    first.wait_for("INFO listening")?;
    let mut setup = rig.setup(bench, HOST);
    setup.forward.clear();
    let control = bench.beside()?;
    let second = Guest::start(&setup, bench.image, &rig.volume, &control, PATIENCE)?;
    expect(second, STATUS_FAILURE, &["outrider: the slot is in use elsewhere"])?;
    rig.visit(1, 1)?;
    stop(first)
}

/// A pause longer than a lease ends the term; another begins.
pub(super) fn is_deposed_by_a_pause(bench: &Bench<'_>) -> Result<(), String> {
    const PAUSE: Duration = Duration::from_secs(4);
    let rig = Rig::new(bench)?;
    let mut guest = rig.start(bench, HOST)?;
    guest.wait_for("INFO listening")?;
    // By then the guest knows where in the second its real-time clock is.
    thread::sleep(Duration::from_millis(1500));
    guest.control(&["stop"])?;
    thread::sleep(PAUSE);
    guest.control(&["cont"])?;
    for said in [
        "the machine stood still for",
        "WARN deposed: round 1: lease over",
        "INFO resigned: round 1",
        "INFO elected: round 2",
        "INFO listening: round 2",
    ] {
        guest.wait_for(said)?;
    }
    rig.visit(2, 1)?;
    stop(guest)?;
    rig.check()
}
