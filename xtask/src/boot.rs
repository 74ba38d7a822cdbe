//! The benchmark `boot`: how long it takes from the start of QEMU until a server has answered its
//! first greeting, beside a guest with the same devices that does nothing.
//!
//! Nothing is asserted. What the emulator itself takes stands in the first line; the rest is ours.

use crate::guest::{Guest, Machine, SHARED_BUFFERED, STOP, Scratch, Setup};
use crate::image;
use crate::tools::{Failure, QEMU, Tools, build_program, build_test_program, free_ports, output};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 10;
/// What the server may take longer than the stub, on a machine that does nothing else.
const ABOVE_STUB_MS: u32 = 150;
const PATIENCE: Duration = Duration::from_secs(60);
/// What a round measures, from the start of QEMU.
const MARKS: [&str; 5] = [
    "stub guest: first byte on the console",
    "server: first line on the console",
    "server: elected",
    "server: listening",
    "server: first greeting answered",
];

/// Measures, and prints the medians.
pub(crate) fn run(tools: &Tools) -> Result<(), Failure> {
    if !tools.have(&QEMU) {
        return Err(Failure(format!("{} is needed", QEMU.program)));
    }
    let rig = Rig::new().map_err(Failure)?;
    let mut times = [const { Vec::new() }; MARKS.len()];
    let mut above = Vec::new();
    for _ in 0..ROUNDS {
        let round = rig.round().map_err(Failure)?;
        above.push(round[MARKS.len() - 1].saturating_sub(round[0]));
        times.iter_mut().zip(round).for_each(|(times, time)| times.push(time));
    }
    println!("boot: from the start of QEMU, microvm, TCG, medians of {ROUNDS}");
    for (mark, times) in MARKS.iter().zip(times) {
        println!("  {mark:<40} {:>6} ms", median(times).as_millis());
    }
    println!(
        "  {:<40} {:>6} ms, at most {ABOVE_STUB_MS} wanted",
        "above the stub",
        median(above).as_millis()
    );
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    (times[ROUNDS / 2 - 1] + times[ROUNDS / 2]) / 2
}

struct Rig {
    image: PathBuf,
    stub: PathBuf,
    visit: PathBuf,
    volume: PathBuf,
    port: u16,
    setup: Setup,
    scratch: Scratch,
}

impl Rig {
    fn new() -> Result<Rig, String> {
        let (image, visit) = (image::build()?, build_test_program("visit")?);
        let outrider = build_program(true)?;
        let scratch = Scratch::new("bench")?;
        let (stub, volume) = (scratch.0.join("stub"), scratch.0.join("volume"));
        fs::write(&stub, stub_image()).map_err(|error| format!("{}: {error}", stub.display()))?;
        let port = free_ports(1)?[0];
        let mut mkfs = Command::new(&outrider);
        mkfs.args(["mkfs", "-s", "256M", "-Q", &format!("0,127.0.0.1,{port}")]).arg(&volume);
        output("outrider mkfs", &mut mkfs)?;
        // Nobody else knows of the volume.
        let host = "host=00112233445566778899aabbccddeeff alone";
        let append = format!("slot=0 ip=10.0.2.15/24 gw=10.0.2.2 listen={port} {host}");
        let mut setup = Setup::new(Machine::Microvm, &append);
        setup.forward = format!(",hostfwd=tcp:127.0.0.1:{port}-:{port}");
        setup.disk = ",share-rw=on";
        setup.blockdev = SHARED_BUFFERED;
        Ok(Rig { image, stub, visit, volume, port, setup, scratch })
    }

    fn round(&self) -> Result<[Duration; MARKS.len()], String> {
        let stub = self.run_stub()?;
        let mut visitor = Visitor::start(&self.visit, &self.volume, self.port)?;
        let mut guest =
            Guest::start(&self.setup, &self.image, &self.volume, &self.scratch, PATIENCE)?;
        let mut said = |part| guest.wait_for(part).map(|()| guest.age());
        let first = said("outrider: unikernel")?;
        let elected = said("INFO elected")?;
        let listening = said("INFO listening")?;
        visitor.visit()?;
        let greeted = guest.age();
        visitor.end()?;
        guest.type_in(&[STOP])?;
        guest.wait()?;
        Ok([stub, first, elected, listening, greeted])
    }

    /// Boots the stub, with the same devices.
    fn run_stub(&self) -> Result<Duration, String> {
        let fail = |error: std::io::Error| format!("QEMU: {error}");
        let mut command = self.setup.command(&self.stub, &self.volume);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let start = Instant::now();
        let mut child = command.spawn().map_err(fail)?;
        let mut byte = [0];
        let read = child.stdout.as_mut().map(|console| console.read_exact(&mut byte));
        let took = start.elapsed();
        // The stub ends the machine itself, right after its byte.
        child.wait().map_err(fail)?;
        read.ok_or("QEMU has no console")?.map_err(fail)?;
        Ok(took)
    }
}

/// A client that stands ready.
struct Visitor {
    child: Child,
}

impl Visitor {
    fn start(visit: &Path, volume: &Path, port: u16) -> Result<Visitor, String> {
        let mut command = Command::new(visit);
        command.arg("--wait").arg(volume).arg(format!("127.0.0.1:{port}")).arg("30");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn().map_err(|error| format!("visit: {error}"))?;
        Ok(Visitor { child })
    }

    /// Lets it go; returns when its greeting was answered.
    fn visit(&mut self) -> Result<(), String> {
        let fail = |error: std::io::Error| format!("visit: {error}");
        let stdin = self.child.stdin.as_mut().ok_or("visit has no input")?;
        stdin.write_all(b"\n").map_err(fail)?;
        let stdout = self.child.stdout.as_mut().ok_or("visit has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map_err(fail)?;
        if line == "greeted\n" { Ok(()) } else { Err("visit was not greeted".into()) }
    }

    fn end(mut self) -> Result<(), String> {
        let status = self.child.wait().map_err(|error| format!("visit: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("visit: {status}")) }
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The smallest guest: an ELF file with a PVH entry note, which writes a byte to the serial port
/// and ends the machine.
fn stub_image() -> Vec<u8> {
    const LOAD: u64 = 1 << 20;
    const HEADERS: u64 = 64 + 2 * 56;
    const NOTE_BYTES: u64 = 20;
    /// `mov $0x3f8,%dx; mov $'.',%al; out %al,(%dx); mov $0xf4,%dx; mov $0x10,%eax;
    /// out %eax,(%dx); hlt`, in 32-bit mode.
    const CODE: &[u8] = b"\x66\xba\xf8\x03\xb0\x2e\xee\x66\xba\xf4\x00\xb8\x10\x00\x00\x00\xef\xf4";
    let entry = LOAD + HEADERS + NOTE_BYTES;
    let bytes = HEADERS + NOTE_BYTES + CODE.len() as u64;
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let halves = |image: &mut Vec<u8>, values: &[u16]| {
        values.iter().for_each(|value| image.extend(value.to_le_bytes()));
    };
    let words = |image: &mut Vec<u8>, values: &[u32]| {
        values.iter().for_each(|value| image.extend(value.to_le_bytes()));
    };
    let longs = |image: &mut Vec<u8>, values: &[u64]| {
        values.iter().for_each(|value| image.extend(value.to_le_bytes()));
    };
    // An executable for x86-64, its two program headers behind this one, no sections.
    halves(&mut image, &[2, 62]);
    words(&mut image, &[1]);
    longs(&mut image, &[entry, 64, 0]);
    words(&mut image, &[0]);
    halves(&mut image, &[64, 56, 2, 64, 0, 0]);
    // All of the file is loaded.
    words(&mut image, &[1, 5]);
    longs(&mut image, &[0, LOAD, LOAD, bytes, bytes, 4096]);
    // A note: XEN_ELFNOTE_PHYS32_ENTRY.
    words(&mut image, &[4, 4]);
    let note = LOAD + HEADERS;
    longs(&mut image, &[HEADERS, note, note, NOTE_BYTES, NOTE_BYTES, 4]);
    words(&mut image, &[4, 4, 18]);
    image.extend(b"Xen\0");
    words(&mut image, &[u32::try_from(entry).expect("just above 1 MiB")]);
    image.extend(CODE);
    image
}

#[cfg(test)]
mod tests {
    use super::stub_image;
    use object::Object;
    use object::read::elf::ElfFile64;

    #[test]
    fn the_stub_is_an_elf_file() {
        let image = stub_image();
        let elf = ElfFile64::<object::Endianness>::parse(image.as_slice()).unwrap();
        let code = usize::try_from(elf.entry() - (1 << 20)).unwrap();
        assert_eq!(image[code..].len(), 18);
    }
}
