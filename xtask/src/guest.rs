//! One QEMU guest that runs the image: started, watched, talked to, and ended.
//!
//! * Every wait has a bound; a guest that outlives its owner is killed, by its handle.
//! * Guests see nothing but a scratch disk, and QEMU's own network, which forwards from and to the
//!   loopback addresses of this machine.

use crate::decode::Decoder;
use crate::tools::{QEMU, mounted_below};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// A kind of machine that the image runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Machine {
    /// QEMU's smallest machine.
    Microvm,
    /// A PC with PCI Express.
    Q35,
}

impl Machine {
    pub(crate) const ALL: [Machine; 2] = [Machine::Microvm, Machine::Q35];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Machine::Microvm => "microvm",
            Machine::Q35 => "q35",
        }
    }

    /// QEMU's `-machine`. A microvm has the clock and the timer only when asked for.
    fn option(self) -> &'static str {
        match self {
            Machine::Microvm => "microvm,rtc=on,pit=on",
            Machine::Q35 => "q35",
        }
    }

    fn bus(self) -> &'static str {
        match self {
            Machine::Microvm => "device",
            Machine::Q35 => "pci",
        }
    }
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accel {
    /// The processor, through the kernel.
    Kvm,
    /// An emulator.
    Tcg,
}

impl Accel {
    fn option(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
    }
}

/// What to boot.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) machine: Machine,
    pub(crate) accel: Accel,
    /// QEMU's `-m`.
    pub(crate) memory: String,
    /// The kernel command line.
    pub(crate) append: String,
    /// QEMU's `-cpu`.
    pub(crate) cpu: &'static str,
    /// More properties of the disk, each with its comma.
    pub(crate) disk: &'static str,
    /// QEMU's `-blockdev` for the node `d0`, with `{}` where the image file stands.
    pub(crate) blockdev: &'static str,
    /// `hostfwd` rules of the network, each with its comma.
    pub(crate) forward: String,
    /// Whether there is an entropy device.
    pub(crate) entropy: bool,
    /// Whether nobody wants to know what QEMU itself has to say.
    pub(crate) quiet: bool,
}

/// A plain file as disk.
pub(crate) const FILE: &str = "driver=raw,node-name=d0,file.driver=file,file.filename={}";

/// A file that other processes use at the same time, all of them directly: what a guest has flushed
/// is what they read.
pub(crate) const SHARED_DIRECT: &str = "driver=raw,node-name=d0,cache.direct=on,file.driver=file,\
                                        file.locking=off,file.filename={}";

/// The same on a file system without direct transfers, where all go through the page cache.
pub(crate) const SHARED_BUFFERED: &str =
    "driver=raw,node-name=d0,file.driver=file,file.locking=off,file.filename={}";

/// Memory of a guest, unless asked for otherwise.
pub(crate) const MEMORY: &str = "32M";

impl Setup {
    /// A machine with an ordinary disk.
    pub(crate) fn new(machine: Machine, append: &str) -> Setup {
        Setup {
            machine,
            accel: Accel::Tcg,
            memory: MEMORY.to_owned(),
            append: append.to_owned(),
            cpu: "max",
            disk: "",
            blockdev: FILE,
            forward: String::new(),
            entropy: false,
            quiet: false,
        }
    }

    /// QEMU with this image and disk; its console on standard input and output.
    pub(crate) fn command(&self, image: &Path, disk: &Path) -> Command {
        let bus = self.machine.bus();
        // A comma ends an option's value, and two stand for one.
        let disk = disk.display().to_string().replace(',', ",,");
        let mut command = Command::new(QEMU.program);
        command
            .args(["-machine", self.machine.option(), "-accel", self.accel.option()])
            .args(["-cpu", self.cpu, "-m", &self.memory])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-serial", "stdio"])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
            .arg("-kernel")
            .arg(image)
            .args(["-append", &self.append])
            .args(["-blockdev", &self.blockdev.replace("{}", &disk)])
            .args(["-device".into(), format!("virtio-blk-{bus},drive=d0{}", self.disk)])
            .args(["-netdev".into(), format!("user,id=n0{}", self.forward)])
            .args(["-device".into(), format!("virtio-net-{bus},netdev=n0")]);
        if self.entropy {
            command.args(["-device".into(), format!("virtio-rng-{bus}")]);
        }
        command
    }
}

/// Typed at the console of a serving guest, this asks it to stop.
pub(crate) const STOP: u8 = 4;

/// A directory for the files of one guest, removed at the end.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Result<Scratch, String> {
        let dir = std::env::temp_dir().join(format!("outrider-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok(Scratch(dir))
    }

    /// The same in memory, if there is a file system for that.
    pub(crate) fn in_memory(name: &str) -> Result<Scratch, String> {
        let memory = Path::new("/dev/shm");
        if !memory.is_dir() {
            return Scratch::new(name);
        }
        let dir = memory.join(format!("outrider-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok(Scratch(dir))
    }

    /// An empty disk of 64 MiB.
    pub(crate) fn disk(&self) -> Result<PathBuf, String> {
        let path = self.0.join("disk");
        let sized = File::create(&path).and_then(|file| file.set_len(64 << 20));
        sized.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is mounted there is not ours to remove.
        if mounted_below(&self.0) {
            eprintln!("xtask: {} has something mounted, and is left", self.0.display());
            return;
        }
        // A directory left behind in the place for temporary files hurts nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running guest.
pub(crate) struct Guest {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    control: PathBuf,
    started: Instant,
    deadline: Instant,
}

/// How a guest ended: its status, and all it said.
pub(crate) struct Ended {
    pub(crate) status: Option<i32>,
    pub(crate) lines: Vec<String>,
}

impl Guest {
    /// Starts the image on such a machine; it has `patience` to end.
    pub(crate) fn start(
        setup: &Setup,
        image: &Path,
        disk: &Path,
        scratch: &Scratch,
        patience: Duration,
    ) -> Result<Guest, String> {
        let control = scratch.0.join("control");
        let mut command = setup.command(image, disk);
        command.args(["-qmp".into(), format!("unix:{},server=on,wait=off", control.display())]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(if setup.quiet { Stdio::null() } else { Stdio::inherit() });
        let elf = fs::read(image).map_err(|error| format!("{}: {error}", image.display()))?;
        let decoder = Decoder::new(&elf)?;
        let started = Instant::now();
        let mut child = command.spawn().map_err(|error| format!("QEMU: {error}"))?;
        let console = child.stdout.take().ok_or("QEMU has no console")?;
        let lines = watch(console, decoder);
        let deadline = started + patience;
        Ok(Guest { child, lines, seen: Vec::new(), control, started, deadline })
    }

    /// How long ago QEMU was started.
    pub(crate) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    fn next_line(&mut self) -> Result<String, RecvTimeoutError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let line = self.lines.recv_timeout(left)?;
        self.seen.push(line.clone());
        Ok(line)
    }

    /// Waits until the guest says something that contains `part`.
    pub(crate) fn wait_for(&mut self, part: &str) -> Result<(), String> {
        loop {
            match self.next_line() {
                Ok(line) if line.contains(part) => return Ok(()),
                Ok(_) => {}
                Err(_) => return Err(format!("it never said '{part}', but:\n{}", self.said())),
            }
        }
    }

    /// Waits until the guest has ended.
    pub(crate) fn wait(mut self) -> Result<Ended, String> {
        loop {
            match self.next_line() {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("it did not end, and said:\n{}", self.said()));
                }
            }
        }
        // The console is closed: QEMU is about to end.
        while Instant::now() < self.deadline {
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    let lines = std::mem::take(&mut self.seen);
                    return Ok(Ended { status: status.code(), lines });
                }
                Ok(None) => thread::sleep(Duration::from_millis(2)),
                Err(error) => return Err(format!("QEMU: {error}")),
            }
        }
        Err(format!("QEMU did not end; the guest said:\n{}", self.said()))
    }

    /// Types at the guest's console.
    pub(crate) fn type_in(&mut self, bytes: &[u8]) -> Result<(), String> {
        let console = self.child.stdin.as_mut().ok_or("QEMU has no console")?;
        let typed = console.write_all(bytes).and_then(|()| console.flush());
        typed.map_err(|error| format!("QEMU's console: {error}"))
    }

    /// Sends commands to QEMU's monitor, and waits for the answer to each.
    pub(crate) fn control(&self, commands: &[&str]) -> Result<(), String> {
        control(&self.control, commands)
    }

    fn said(&self) -> String {
        self.seen.join("\n")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends commands to QEMU's monitor at this socket, and waits for the answer to each.
pub(crate) fn control(socket: &Path, commands: &[&str]) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("QEMU's monitor: {error}");
    let mut stream = UnixStream::connect(socket).map_err(fail)?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(fail)?;
    let mut answers = BufReader::new(stream.try_clone().map_err(fail)?).lines();
    for command in ["qmp_capabilities"].iter().chain(commands) {
        writeln!(stream, "{{\"execute\": \"{command}\"}}").map_err(fail)?;
        loop {
            let answer = answers.next().ok_or("QEMU's monitor hung up")?.map_err(fail)?;
            if answer.contains("\"error\"") {
                return Err(format!("QEMU's monitor: {answer}"));
            }
            if answer.contains("\"return\"") {
                break;
            }
        }
    }
    Ok(())
}

fn watch(mut console: ChildStdout, mut decoder: Decoder) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(len) = console.read(&mut bytes) {
            let lines = decoder.take(&bytes[..len]);
            if len == 0 || lines.into_iter().any(|line| sender.send(line).is_err()) {
                return;
            }
        }
    });
    receiver
}
