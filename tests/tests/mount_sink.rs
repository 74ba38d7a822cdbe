//! Kernel mounts over the file-system operations of the core and a device of blocks: everything a
//! hosted mount consists of, but for the network, the server and what they keep on the device.
//!
//! Needs user 0 and /dev/fuse, and says so where they are lacking.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use outrider_core::client::mount::{Counters, MountState};
use outrider_core::client::op::{
    Answer, Caller, Extent, Lent, Op, OpError, Place, Request, RequestId, Resume,
};
use outrider_core::format::{CommitNo, Ino, Seq};
use outrider_core::lock::client::View;
use outrider_core::lock::{LockName, Mode};
use outrider_hal::{BLOCK_BYTES, Instant};
use outrider_hosted::disk::{Access, open_file};
use outrider_hosted::fuse::{Buffer, Mount, Options};
use outrider_hosted::mount::{
    COUNTERS_XATTR, Core, DataDevice, Facts, Helm, LOCKS_XATTR, PID_XATTR, Piece, STATFS_XATTR,
    Sink,
};
use outrider_tests::model::host::{Host, reference_place};
use outrider_tests::model::script::{Cast, Outcome, Script, Space, Subject, Value, changes};
use outrider_tests::mount_ops::{Ended, Outside, World, memory, root_items};
use rustix::io::Errno;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes of the device, of which the first part is full of what must never be seen.
const DEVICE_BYTES: u64 = 1 << 34;
const SOILED_BYTES: usize = 64 << 20;
/// What happens in the world between two looks at what came of it.
const STEPS: u32 = 300;

/// A request in the world.
struct Active {
    id: RequestId,
    lent: Option<Piece>,
}

/// Mounts that share a world, each as the core of a front-end.
struct Cores {
    world: World<'static>,
    device: fs::File,
    /// The mount that is called into.
    at: usize,
    active: BTreeMap<(usize, u64), Active>,
    said: Vec<VecDeque<(RequestId, Answer<Piece>)>>,
    /// What is forgotten is always taken, and done when there is a slot.
    forgotten: VecDeque<(usize, Request<Piece>)>,
    /// No request is taken.
    full: bool,
    refused: u64,
    state: MountState,
}

impl Cores {
    fn say(&mut self, (mount, task): (usize, u64), ended: Ended) {
        let Some(Active { id, lent }) = self.active.remove(&(mount, task)) else { return };
        let Ended { running, result, deleted } = ended;
        assert!(!deleted);
        let lent = lent.map(|piece| {
            let (bytes, len) = running.lent.expect("it was lent some");
            piece[..len].copy_from_slice(&bytes[..len]);
            Lent { buf: piece, len }
        });
        self.said[mount].push_back((id, Answer::Done { result, lent }));
    }

    fn turn(&mut self) {
        while let Some((mount, Request { caller, now, op, lent: _ })) = self.forgotten.pop_front() {
            let who = (caller.clone(), Vec::new());
            if self.world.begin(mount, who, now, op.clone(), None, Vec::new()).is_none() {
                self.forgotten.push_front((mount, Request { caller, now, op, lent: None }));
                break;
            }
        }
        for _ in 0..STEPS {
            if let Some((mount, ended)) = self.world.step()
                && !ended.deleted
            {
                self.say((mount, ended.running.id), ended);
            }
            while let Some((mount, task, wants)) =
                self.world.outside.as_mut().and_then(VecDeque::pop_front)
            {
                let id = self.active.get(&(mount, task)).map(|active| active.id);
                let answer = match (wants, id) {
                    (Outside::Zero(extent), _) => {
                        zero(&self.device, &extent);
                        self.world.transferred(mount, task, true);
                        continue;
                    }
                    (_, None) => panic!("a deletion moves no data"),
                    (Outside::Transfer(transfer), Some(_)) => Answer::Transfer(transfer),
                    (Outside::AskMember(gid), Some(_)) => Answer::AskMember { gid },
                };
                self.said[mount].push_back((id.expect("it is there"), answer));
            }
            if self.world.is_parked() {
                break;
            }
        }
    }

    fn task(&self, id: RequestId) -> Option<u64> {
        let mut active = self.active.iter();
        active.find(|((mount, _), active)| *mount == self.at && active.id == id).map(|(at, _)| at.1)
    }
}

/// Writes zeros as a mount does: a block at a time.
fn zero(device: &fs::File, extent: &Extent) {
    let Place::Blocks(block) = extent.place else { panic!("nothing to zero") };
    let (from, at) = (extent.at as usize % BLOCK_BYTES, block.0 * BLOCK_BYTES as u64);
    let mut bytes = Buffer::new(BLOCK_BYTES);
    device.read_exact_at(&mut bytes, at).unwrap();
    bytes[from..from + extent.len as usize].fill(0);
    device.write_all_at(&bytes, at).unwrap();
}

impl Core for Cores {
    fn submit(
        &mut self,
        _: Instant,
        id: RequestId,
        request: Request<Piece>,
    ) -> Result<(), Request<Piece>> {
        let Request { caller, now, op, lent } = request;
        if matches!(op, Op::Forget { .. }) {
            self.forgotten.push_back((self.at, Request { caller, now, op, lent }));
            return Ok(());
        }
        if self.full || self.state == MountState::Left {
            self.refused += 1;
            return Err(Request { caller, now, op, lent });
        }
        let copy = lent.as_ref().map(|lent| (lent.buf.to_vec(), lent.len));
        let who: (Caller, Vec<u32>) = (caller.clone(), Vec::new());
        let begun = self.world.begin(self.at, who, now, op.clone(), copy, Vec::new());
        let Some(task) = begun else {
            self.refused += 1;
            return Err(Request { caller, now, op, lent });
        };
        let active = Active { id, lent: lent.map(|lent| lent.buf) };
        self.active.insert((self.at, task), active);
        Ok(())
    }

    fn poll_answer(&mut self) -> Option<(RequestId, Answer<Piece>)> {
        self.said[self.at].pop_front()
    }

    fn resume(&mut self, _: Instant, id: RequestId, resume: Resume) {
        let Some(task) = self.task(id) else { return };
        match resume {
            Resume::Transferred(result) => {
                self.world.transferred(self.at, task, result.is_ok());
            }
            Resume::Member { gid, member } => self.world.told(self.at, task, gid, member),
            Resume::Interrupted => {
                if let Some(ended) = self.world.interrupt(self.at, task) {
                    self.say((self.at, task), ended);
                }
            }
        }
    }

    fn work(&mut self, _: Instant) {
        self.turn();
    }

    fn state(&self) -> MountState {
        self.state
    }

    fn counters(&self) -> Counters {
        Counters { commits: self.world.counts.commits, ..Counters::default() }
    }

    fn facts(&self) -> Facts {
        Facts { fsid: 0xfeed, client: None, stable: Seq(7), root: CommitNo(0) }
    }

    fn locks(&self) -> Vec<View> {
        let view = |at: u64| View {
            name: LockName::inode(Ino(at << 10)),
            mode: Mode::Read,
            asked: Mode::Write,
            revoke: None,
            users: [1, 0, 0],
            waiters: 2,
        };
        (0..5000).map(view).collect()
    }
}

/// One of the mounts.
#[derive(Clone)]
struct Wheel {
    at: usize,
    shared: Arc<(Mutex<Cores>, Condvar)>,
}

impl Helm for Wheel {
    type Core = Cores;

    fn with<R>(&self, act: impl FnOnce(&mut Cores, Instant) -> R) -> R {
        let mut cores = self.shared.0.lock().unwrap();
        cores.at = self.at;
        let result = act(&mut cores, Instant(0));
        self.shared.1.notify_one();
        result
    }
}

/// Kernel mounts, and the thread that drives their cores. Dropping it unmounts them.
struct Rig {
    sinks: Vec<Arc<Sink<Wheel>>>,
    mounts: Vec<Mount>,
    ats: Vec<PathBuf>,
    shared: Arc<(Mutex<Cores>, Condvar)>,
    ended: Arc<AtomicBool>,
    driver: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

/// Counts a test that can't be made here.
fn skipped(needs: &str) {
    println!("skipped: needs {needs}");
}

fn rig(mounts: usize, seed: u64) -> Option<Rig> {
    if !rustix::process::geteuid().is_root() {
        skipped("root");
        return None;
    }
    if !Path::new("/dev/fuse").exists() {
        skipped("/dev/fuse");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let volume = dir.path().join("volume");
    fs::write(&volume, vec![0xee; SOILED_BYTES]).unwrap();
    fs::File::options().write(true).open(&volume).unwrap().set_len(DEVICE_BYTES).unwrap();
    let mut world = World::new(Vec::leak(memory(mounts)), mounts, seed, root_items());
    world.outside = Some(VecDeque::new());
    let cores = Cores {
        world,
        device: open_file(&volume, Access::ReadWrite).unwrap(),
        at: 0,
        active: BTreeMap::new(),
        said: (0..mounts).map(|_| VecDeque::new()).collect(),
        forgotten: VecDeque::new(),
        full: false,
        refused: 0,
        state: MountState::Mounted,
    };
    let mut rig = Rig {
        sinks: Vec::new(),
        mounts: Vec::new(),
        ats: Vec::new(),
        shared: Arc::new((Mutex::new(cores), Condvar::new())),
        ended: Arc::new(AtomicBool::new(false)),
        driver: None,
        _dir: dir,
    };
    for at in 0..mounts {
        let wheel = Wheel { at, shared: Arc::clone(&rig.shared) };
        let device = DataDevice::open(&volume, Access::ReadWrite).unwrap();
        rig.sinks.push(Sink::new(wheel, device).unwrap());
    }
    let (sinks, shared, ended) = (rig.sinks.clone(), Arc::clone(&rig.shared), rig.ended.clone());
    rig.driver = Some(thread::spawn(move || drive(&sinks, &shared, &ended)));
    for (index, sink) in rig.sinks.iter().enumerate() {
        let at = rig._dir.path().join(format!("mount{index}"));
        fs::create_dir(&at).unwrap();
        let mount = Mount::new(&at, &Options::default(), |replies| {
            sink.attach(replies);
            Arc::clone(sink)
        });
        rig.mounts.push(mount.unwrap());
        rig.ats.push(at);
    }
    Some(rig)
}

/// Turns the world while there is something to do.
fn drive(sinks: &[Arc<Sink<Wheel>>], shared: &(Mutex<Cores>, Condvar), ended: &AtomicBool) {
    while !ended.load(Ordering::SeqCst) {
        let mut cores = shared.0.lock().unwrap();
        cores.turn();
        let said: Vec<_> = cores.said.iter_mut().map(std::mem::take).collect();
        if said.iter().all(VecDeque::is_empty) {
            // A mount that waits for another's lock goes on when the other's idle time is over.
            let pause = if cores.world.is_parked() { 20 } else { 1 };
            drop(shared.1.wait_timeout(cores, Duration::from_millis(pause)).unwrap());
            continue;
        }
        drop(cores);
        for (sink, mut said) in sinks.iter().zip(said) {
            sink.deliver(&mut said);
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.mounts.clear();
        for sink in &self.sinks {
            sink.close();
        }
        self.ended.store(true, Ordering::SeqCst);
        if let Some(driver) = self.driver.take() {
            let ended = driver.join();
            assert!(thread::panicking() || ended.is_ok());
        }
    }
}

impl Rig {
    fn path(&self, name: &str) -> PathBuf {
        self.ats[0].join(name)
    }

    fn cores<R>(&self, act: impl FnOnce(&mut Cores) -> R) -> R {
        act(&mut self.shared.0.lock().unwrap())
    }
}

/// Of two reasons to refuse, the kernel gives that of permissions first in a directory of its own.
/// A mount it asks for permission last, when it has found out itself what the names are.
fn tells_other_reason(expected: &Outcome, given: &Outcome) -> bool {
    use OpError::{
        AccessDenied, Exists, IsDirectory, NotDirectory, NotEmpty, NotFound, NotPermitted,
    };
    let others =
        [AccessDenied, NotPermitted, NotFound, Exists, IsDirectory, NotDirectory, NotEmpty];
    let others = others.map(Err);
    matches!(expected, Err(AccessDenied | NotPermitted)) && others.contains(given)
}

fn compare(seed: u64, cast: Cast, space: Space, steps: usize) -> usize {
    let Some(rig) = rig(1, seed) else { return 0 };
    let Some(place) = reference_place() else {
        skipped("ext4");
        return 0;
    };
    let beside = tempfile::tempdir_in(place).unwrap();
    fs::set_permissions(beside.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let (mut there, mut here) =
        (Host::new(beside.path().to_owned()), Host::new(rig.ats[0].clone()));
    let (mut there_was, mut here_was) = (there.snapshot(), here.snapshot());
    let mut succeeded = 0;
    for (number, (user, step)) in Script::new(seed, cast, space).take(steps).enumerate() {
        let at = format!("seed {seed}, step {number}, user {}: {step:?}", user.uid);
        let (expected, given) = (there.run(&user, &step), here.run(&user, &step));
        assert!(
            expected == given || tells_other_reason(&expected, &given),
            "{at}: {given:?}, not {expected:?}"
        );
        succeeded += usize::from(expected.is_ok_and(|value| value != Value::Skipped));
        if number % 20 == 0 {
            let (there_is, here_is) = (there.snapshot(), here.snapshot());
            let expected = changes(&there_was, &there_is);
            assert_eq!(expected, changes(&here_was, &here_is), "at the latest after {at}");
            (there_was, here_was) = (there_is, here_is);
        }
    }
    assert_eq!(there.contents(), here.contents(), "seed {seed}");
    drop(here);
    succeeded
}

#[test]
fn a_mount_does_what_a_directory_does_for_user_0() {
    let succeeded: usize = (0..4).map(|seed| compare(seed, Cast::Root, Space::Holes, 400)).sum();
    println!("{succeeded} calls succeeded");
}

#[test]
fn a_mount_does_what_a_directory_does_for_everyone() {
    let seeds = 100..104;
    let succeeded: usize =
        seeds.map(|seed| compare(seed, Cast::Everyone, Space::Reserved, 400)).sum();
    println!("{succeeded} calls succeeded");
}

fn pattern(at: u64, len: usize) -> Vec<u8> {
    (at..at + len as u64).map(|at| (at / 7 % 251) as u8).collect()
}

#[test]
fn large_and_sparse_files_hold_what_was_written() {
    let Some(rig) = rig(1, 1) else { return };
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).open(rig.path("large")).unwrap();
    for at in [3 << 20, 0, 100 << 20] {
        file.write_all_at(&pattern(at, 1 << 20), at).unwrap();
    }
    let mut bytes = vec![0; 1 << 20];
    for at in [0, 100 << 20, 3 << 20] {
        file.read_exact_at(&mut bytes, at).unwrap();
        assert!(bytes == pattern(at, 1 << 20), "at {at}");
    }
    file.read_exact_at(&mut bytes, 50 << 20).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    // Unaligned, across requests and the ends of what is there.
    file.write_all_at(&pattern(12345, 3_000_000), 12345).unwrap();
    let mut bytes = vec![0; 3_000_002];
    file.read_exact_at(&mut bytes, 12344).unwrap();
    assert!(bytes[1..3_000_001] == pattern(12345, 3_000_000));
    assert_eq!(file.metadata().unwrap().len(), 101 << 20);
    // The tail of a block that was never written, and what lies behind an end that moved.
    let small = fs::File::create_new(rig.path("small")).unwrap();
    small.write_all_at(b"x", 5000).unwrap();
    small.set_len(4500).unwrap();
    small.set_len(9000).unwrap();
    assert!(fs::read(rig.path("small")).unwrap() == vec![0; 9000]);
    small.sync_all().unwrap();
}

#[test]
fn many_threads_work_at_once_and_wait_for_a_slot() {
    let Some(rig) = rig(1, 2) else { return };
    let threads: usize = 12;
    thread::scope(|scope| {
        for thread in 0..threads {
            let at = &rig.ats[0];
            scope.spawn(move || {
                let dir = at.join(format!("d{thread}"));
                fs::create_dir(&dir).unwrap();
                for round in 0..15 {
                    let (one, two) = (dir.join("one"), at.join(format!("two {thread}")));
                    let text = format!("{thread} {round}").repeat(1000 * (round % 4) + 1);
                    fs::write(&one, &text).unwrap();
                    fs::rename(&one, &two).unwrap();
                    assert!(fs::read_to_string(&two).unwrap() == text);
                    fs::remove_file(&two).unwrap();
                }
                fs::remove_dir(&dir).unwrap();
            });
        }
    });
    assert_eq!(fs::read_dir(&rig.ats[0]).unwrap().count(), 0);
    assert!(rig.cores(|cores| cores.refused) > 0, "nobody has waited");
    let counters = counters(&rig);
    assert_eq!(counters["fuse.mkdir"], threads as u64);
    assert!(counters["sink.queued"] > 0 && counters["mount.commits"] > 0);
}

fn counters(rig: &Rig) -> BTreeMap<String, u64> {
    let mut bytes = vec![0; 65536];
    let len = rustix::fs::getxattr(&rig.ats[0], COUNTERS_XATTR, &mut bytes).unwrap();
    let text = std::str::from_utf8(&bytes[..len]).unwrap();
    let lines = text.lines().map(|line| line.split_once(' ').unwrap());
    lines.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

#[test]
fn large_directories_lists_and_attributes_come_whole() {
    let Some(rig) = rig(1, 3) else { return };
    let name = |number| format!("a name of some length that is counted {number}");
    for number in 0..400 {
        fs::write(rig.path(&name(number)), b"").unwrap();
    }
    let mut seen: Vec<String> = fs::read_dir(&rig.ats[0])
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut expected: Vec<String> = (0..400).map(name).collect();
    seen.sort();
    expected.sort();
    assert_eq!(seen, expected);
    let file = rig.path(&name(0));
    let value = vec![0x5a; 65535];
    let set = rustix::fs::XattrFlags::CREATE;
    rustix::fs::setxattr(&file, "user.large", &value, set).unwrap();
    let mut got = vec![0; 65536];
    assert_eq!(rustix::fs::getxattr(&file, "user.large", &mut got), Ok(65535));
    assert!(got[..65535] == value);
    assert_eq!(rustix::fs::getxattr(&file, "user.large", &mut got[..10]), Err(Errno::RANGE));
    assert_eq!(rustix::fs::listxattr(&file, &mut got[..3]), Err(Errno::RANGE));
    let target = "t".repeat(4000);
    std::os::unix::fs::symlink(&target, rig.path("s")).unwrap();
    assert_eq!(fs::read_link(rig.path("s")).unwrap(), Path::new(&target));
    assert_eq!(fs::metadata(&file).unwrap().nlink(), 1);
}

#[test]
fn the_mount_tells_its_process_and_user_0_its_counters() {
    let Some(rig) = rig(1, 4) else { return };
    let mut bytes = [0; 16];
    let len = rustix::fs::getxattr(&rig.ats[0], PID_XATTR, &mut bytes).unwrap();
    assert_eq!(&bytes[..len], std::process::id().to_string().as_bytes());
    fs::write(rig.path("f"), b"x").unwrap();
    assert_eq!(counters(&rig)["fuse.create"], 1);
    let ask =
        format!("import os; os.setuid(1234); os.getxattr({:?}, 'outrider.counters')", rig.ats[0]);
    match Command::new("python3").args(["-c", &ask]).stderr(Stdio::null()).status() {
        Err(_) => skipped("python3"),
        Ok(status) => assert!(!status.success()),
    }
    let mut bytes = vec![0; 65536];
    let len = rustix::fs::getxattr(&rig.ats[0], STATFS_XATTR, &mut bytes[..]).unwrap();
    let text = std::str::from_utf8(&bytes[..len]).unwrap();
    assert_eq!(text, "fsid 000000000000feed\nclient 0\ncommitted_seq 7\nroot_commit 0\n");
    let mut lines = Vec::new();
    loop {
        let name = format!("{LOCKS_XATTR}{}", lines.len());
        let len = rustix::fs::getxattr(&rig.ats[0], name, &mut bytes[..]).unwrap();
        let text = std::str::from_utf8(&bytes[..len]).unwrap();
        if text.is_empty() {
            break;
        }
        lines.extend(text.lines().map(str::to_owned));
    }
    assert_eq!((lines.len(), &*lines[4999]), (5000, "inodes 5118976 read write - 1 0 0 2"));
    // They are attributes of the root only.
    let none = rustix::fs::getxattr(rig.path("f"), COUNTERS_XATTR, &mut bytes);
    assert_eq!(none, Err(Errno::OPNOTSUPP));
}

/// Starts a process that asks for something, and waits until the mount has refused its request a
/// slot.
fn start_waiting(rig: &Rig) -> std::process::Child {
    let before = rig.cores(|cores| {
        cores.full = true;
        cores.refused
    });
    let mut command = Command::new("stat");
    let command = command.arg(rig.path("nothing")).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    while rig.cores(|cores| cores.refused) == before {
        thread::sleep(Duration::from_millis(1));
    }
    child
}

#[test]
fn a_signal_ends_who_waits_for_a_slot() {
    let Some(rig) = rig(1, 5) else { return };
    let mut child = start_waiting(&rig);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    rig.cores(|cores| cores.full = false);
    fs::write(rig.path("f"), b"goes on").unwrap();
}

#[test]
fn requests_fail_instead_of_waiting_when_told_to() {
    let Some(rig) = rig(1, 6) else { return };
    fs::write(rig.path("f"), b"x").unwrap();
    let mut child = start_waiting(&rig);
    rig.sinks[0].fail_requests(true);
    assert!(!child.wait().unwrap().success());
    let failed = fs::metadata(rig.path("f")).unwrap_err();
    assert_eq!(failed.raw_os_error(), Some(Errno::IO.raw_os_error()));
    rig.cores(|cores| cores.full = false);
    rig.sinks[0].fail_requests(false);
    assert_eq!(fs::read(rig.path("f")).unwrap(), b"x");
    // A core that has ended takes nothing, and nobody waits for it.
    rig.cores(|cores| cores.state = MountState::Left);
    let failed = fs::metadata(rig.path("f")).unwrap_err();
    assert_eq!(failed.raw_os_error(), Some(Errno::IO.raw_os_error()));
}

#[test]
fn two_mounts_show_one_tree() {
    let Some(rig) = rig(2, 7) else { return };
    let (one, two) = (&rig.ats[0], &rig.ats[1]);
    for round in 0..20 {
        let (name, other) = (format!("file{round}"), format!("moved{round}"));
        let text = format!("round {round}").repeat(300);
        fs::write(one.join(&name), &text).unwrap();
        assert!(fs::read_to_string(two.join(&name)).unwrap() == text);
        fs::rename(two.join(&name), two.join(&other)).unwrap();
        assert!(!one.join(&name).exists());
        let appended = fs::File::options().append(true).open(two.join(&other)).unwrap();
        std::io::Write::write_all(&mut &appended, b"more").unwrap();
        assert!(fs::read_to_string(one.join(&other)).unwrap() == text.clone() + "more");
        fs::remove_file(one.join(&other)).unwrap();
        assert_eq!(fs::read_dir(two).unwrap().count(), 0);
    }
}
