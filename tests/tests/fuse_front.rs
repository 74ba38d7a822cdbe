//! The FUSE front-end of `outrider-hosted`, with the model behind it: real mounts, real processes.
//!
//! Needs user 0 and /dev/fuse, and says so where they are lacking.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use outrider_core::client::op::{NameBuf, Op, OpError, Reply, Request, RequestId};
use outrider_core::format::Ino;
use outrider_core::format::item::Time;
use outrider_hosted::fuse::{
    Buffer, Delivery, Filesystem, Mount, Notified, Options, Replies, is_member,
};
use outrider_tests::model::host::{Host, reference_place};
use outrider_tests::model::script::{
    Cast, OpenArg, Outcome, Script, Space, Step, Subject, Value, changes,
};
use outrider_tests::model::{Asked, Model, ROOT, User};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;
use std::fs;
use std::io::{IoSlice, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// The model, answering a kernel. What looks up a name that starts with "parked" is put aside.
struct Served {
    model: Mutex<Model>,
    replies: Replies,
    parked: Mutex<Vec<(RequestId, Request<Buffer>)>>,
    news: Mutex<Sender<News>>,
}

/// What happened to parked requests.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Parked(RequestId),
    Interrupted(RequestId),
}

impl Served {
    fn answer(&self, id: RequestId, request: &Request<Buffer>) {
        let caller = &request.caller;
        let groups = [1000, 2000, 3000].into_iter().filter(|gid| is_member(caller.pid, *gid));
        let groups = if caller.uid == 0 { Vec::new() } else { groups.collect() };
        let user = User { uid: caller.uid, gid: caller.gid, groups };
        let (data, room) = match &request.lent {
            Some(lent) => (&lent.buf[..lent.len], Some(lent.buf.len())),
            None => (&[][..], None),
        };
        let asked = Asked { user: &user, now: request.now, op: &request.op, data, room };
        let done = self.model.lock().unwrap().execute(&asked);
        let delivered = match (&request.op, done) {
            (Op::Forget { .. }, done) => {
                done.expect("the kernel forgets what it knows");
                return;
            }
            (Op::Read { .. }, Ok(done)) => self.replies.reply_data(id, &[IoSlice::new(&done.data)]),
            (_, Ok(done)) => self.replies.reply(id, Ok(done.reply), &done.data),
            (_, Err(error)) => self.replies.reply(id, Err(error), &[]),
        };
        assert_eq!(delivered, Delivery::Done);
    }

    fn take_parked(&self, id: RequestId) -> Request<Buffer> {
        let mut parked = self.parked.lock().unwrap();
        let index = parked.iter().position(|(parked, _)| *parked == id).expect("it is parked");
        parked.swap_remove(index).1
    }
}

impl Filesystem for Served {
    fn handle_request(&self, id: RequestId, request: Request<Buffer>) {
        match &request.op {
            Op::Lookup { name, .. } if name.bytes().starts_with(b"parked") => {
                self.parked.lock().unwrap().push((id, request));
                // A test that doesn't listen any more has failed, and says why itself.
                let _ = self.news.lock().unwrap().send(News::Parked(id));
            }
            _ => self.answer(id, &request),
        }
    }

    fn handle_interrupt(&self, id: RequestId) -> bool {
        let parked = self.parked.lock().unwrap().iter().any(|(parked, _)| *parked == id);
        if parked {
            let _ = self.news.lock().unwrap().send(News::Interrupted(id));
        }
        parked
    }
}

/// A mounted model. Dropping it unmounts it, also from a test that fails.
struct Rig {
    mount: Mount,
    served: Arc<Served>,
    news: Receiver<News>,
    at: PathBuf,
    dir: tempfile::TempDir,
}

/// Counts a test that can't be made here.
fn skipped(needs: &str) {
    println!("skipped: needs {needs}");
}

fn rig_with(options: &Options) -> Option<Rig> {
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
    let at = dir.path().join("mount point");
    fs::create_dir(&at).unwrap();
    let (mount, served, news) = serve(&at, options).unwrap();
    Some(Rig { mount, served, news, at, dir })
}

fn serve(at: &Path, options: &Options) -> std::io::Result<(Mount, Arc<Served>, Receiver<News>)> {
    let (sender, news) = channel();
    let mut made = None;
    let mount = Mount::new(at, options, |replies| {
        let served = Arc::new(Served {
            model: Mutex::new(Model::new(0o777, Time { sec: 1, nsec: 0 })),
            replies,
            parked: Mutex::default(),
            news: Mutex::new(sender),
        });
        made = Some(Arc::clone(&served));
        served
    })?;
    Ok((mount, made.expect("it was made"), news))
}

fn rig() -> Option<Rig> {
    rig_with(&Options::default())
}

impl Rig {
    fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    fn next_news(&self) -> News {
        self.news.recv_timeout(Duration::from_secs(10)).expect("something happens in 10 s")
    }

    fn host(&self) -> Host {
        Host::new(self.at.clone())
    }

    /// Executes an operation behind the kernel's back, as another mount would.
    fn elsewhere(&self, op: &Op, data: &[u8]) -> Reply {
        let now = Time { sec: 2, nsec: 0 };
        let asked = Asked { user: &User::ROOT, now, op, data, room: None };
        self.served.model.lock().unwrap().execute(&asked).expect("root may").reply
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
    let Some(rig) = rig() else { return 0 };
    let Some(place) = reference_place() else {
        skipped("ext4");
        return 0;
    };
    let beside = tempfile::tempdir_in(place).unwrap();
    fs::set_permissions(beside.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let (mut there, mut here) = (Host::new(beside.path().to_owned()), rig.host());
    let (mut there_was, mut here_was) = (there.snapshot(), here.snapshot());
    let mut succeeded = 0;
    for (number, (user, step)) in Script::new(seed, cast, space).take(steps).enumerate() {
        let at = format!("seed {seed}, step {number}, user {}: {step:?}", user.uid);
        let (expected, given) = (there.run(&user, &step), here.run(&user, &step));
        assert!(expected == given || tells_other_reason(&expected, &given), "{at}: {given:?}");
        succeeded += usize::from(expected.is_ok_and(|value| value != Value::Skipped));
        if number % 5 == 0 {
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
    let succeeded: usize = (0..10).map(|seed| compare(seed, Cast::Root, Space::Holes, 600)).sum();
    println!("{succeeded} calls succeeded");
}

#[test]
fn a_mount_does_what_a_directory_does_for_everyone() {
    let seeds = 100..114;
    let succeeded: usize =
        seeds.map(|seed| compare(seed, Cast::Everyone, Space::Reserved, 600)).sum();
    println!("{succeeded} calls succeeded");
}

fn create(mode: u16) -> OpenArg {
    OpenArg { read: true, write: true, create: Some(mode), truncate: false, append: false }
}

const FOR_READING: OpenArg =
    OpenArg { read: true, write: false, create: None, truncate: false, append: false };

#[test]
fn what_is_new_belongs_to_the_caller_or_the_directorys_group() {
    let Some(rig) = rig() else { return };
    let mut host = rig.host();
    let user = User { uid: 1234, gid: 1000, groups: vec![2000] };
    let stranger = User { uid: 1235, gid: 3000, groups: vec![] };
    let root = User::ROOT;
    host.run(&user, &Step::Open { slot: 0, path: vec!["f"], how: create(0o666) }).unwrap();
    let meta = fs::metadata(rig.path("f")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1234, 1000, 0o644));

    host.run(&root, &Step::Mkdir { path: vec!["d"], mode: 0o777 }).unwrap();
    host.run(&root, &Step::Chown { path: vec!["d"], uid: None, gid: Some(2000) }).unwrap();
    host.run(&root, &Step::Chmod { path: vec!["d"], mode: 0o2770 }).unwrap();
    host.run(&user, &Step::Mkdir { path: vec!["d", "sub"], mode: 0o777 }).unwrap();
    let path = vec!["d", "shared"];
    host.run(&user, &Step::Open { slot: 0, path: path.clone(), how: create(0o640) }).unwrap();
    let meta = fs::metadata(rig.path("d/sub")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1234, 2000, 0o2755));
    let meta = fs::metadata(rig.path("d/shared")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1234, 2000, 0o640));

    // A group that isn't the caller's own decides.
    let member = User { uid: 1236, gid: 3000, groups: vec![1000, 2000] };
    let open = Step::Open { slot: 1, path, how: FOR_READING };
    assert_eq!(host.run(&member, &open), Ok(Value::Unit));
    assert_eq!(host.run(&stranger, &open), Err(OpError::AccessDenied));
}

#[test]
fn a_file_without_a_name_lives_until_it_is_closed() {
    let Some(rig) = rig() else { return };
    fs::write(rig.path("a"), b"old").unwrap();
    fs::write(rig.path("b"), b"new").unwrap();
    let old = fs::OpenOptions::new().read(true).write(true).open(rig.path("a")).unwrap();
    fs::rename(rig.path("b"), rig.path("a")).unwrap();
    assert_eq!(fs::read(rig.path("a")).unwrap(), b"new");
    old.write_all_at(b"OLD and longer", 0).unwrap();
    let mut bytes = [0; 14];
    old.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"OLD and longer");
    assert_eq!((old.metadata().unwrap().nlink(), old.metadata().unwrap().len()), (0, 14));
    drop(old);
    fs::remove_file(rig.path("a")).unwrap();
    // RELEASE and FORGET are sent after close(2) has returned.
    let left = || rig.served.model.lock().unwrap().count_inodes();
    for _ in 0..200 {
        if left() == 1 {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(left(), 1);
}

#[test]
fn what_is_appended_goes_to_the_end_wherever_that_is() {
    let Some(rig) = rig() else { return };
    let append = || fs::OpenOptions::new().append(true).create(true).open(rig.path("log")).unwrap();
    let (mut one, mut two) = (append(), append());
    one.write_all(b"1").unwrap();
    two.write_all(b"22").unwrap();
    one.write_all(b"333").unwrap();
    let Reply::Entry(attr) =
        rig.elsewhere(&Op::Lookup { dir: ROOT, name: NameBuf::parse(b"log").unwrap() }, &[])
    else {
        panic!("not found");
    };
    let how = outrider_core::client::op::OpenHow {
        access: outrider_core::client::op::OpenAccess::Write,
        truncate: false,
        strip: false,
    };
    let Reply::Opened(handle) = rig.elsewhere(&Op::Open { ino: attr.ino, how }, &[]) else {
        panic!("not open");
    };
    let at = outrider_core::client::op::WriteAt::End;
    let write = Op::Write { ino: attr.ino, handle, at, len: 4, strip: false };
    rig.elsewhere(&write, b"else");
    one.write_all(b"5").unwrap();
    assert_eq!(fs::read(rig.path("log")).unwrap(), b"122333else5");
}

#[test]
fn large_and_sparse_files_hold_what_was_written() {
    let Some(rig) = rig() else { return };
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).open(rig.path("large")).unwrap();
    let pattern = |at: u64| -> Vec<u8> {
        (0..1u64 << 20).map(|index| ((at + index) / 7 % 251) as u8).collect()
    };
    for at in [3 << 20, 0, 100 << 20] {
        file.write_all_at(&pattern(at), at).unwrap();
    }
    let mut bytes = vec![0; 1 << 20];
    for at in [0, 100 << 20, 3 << 20] {
        file.read_exact_at(&mut bytes, at).unwrap();
        assert!(bytes == pattern(at), "at {at}");
    }
    file.read_exact_at(&mut bytes, 50 << 20).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    let meta = file.metadata().unwrap();
    assert_eq!((meta.len(), meta.blocks()), (101 << 20, 3 * 2048));
    let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap();
    let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(hole)).unwrap();
    assert_eq!((hole, data), (1 << 20, 3 << 20));
    // Unaligned, across requests.
    file.write_all_at(&[7; 3_000_000], 12345).unwrap();
    let mut bytes = vec![0; 3_000_002];
    file.read_exact_at(&mut bytes, 12344).unwrap();
    assert!(bytes[1..3_000_001].iter().all(|byte| *byte == 7));
    assert_eq!(bytes[3_000_001], 0);
}

#[test]
fn a_large_directory_is_listed_while_it_is_emptied() {
    let Some(rig) = rig() else { return };
    let count = 10_000;
    fs::create_dir(rig.path("many")).unwrap();
    {
        // Made behind the kernel, so that only the listing takes time.
        let dir = Ino(fs::metadata(rig.path("many")).unwrap().ino());
        for number in 0..count {
            let name = NameBuf::parse(format!("a name of some length {number}").as_bytes());
            let mode = outrider_core::client::op::NewMode { permissions: 0o644, umask: 0 };
            let node = outrider_core::client::op::NewNode::Regular;
            let op = Op::Mknod { dir, name: name.unwrap(), mode, node };
            let Reply::Entry(attr) = rig.elsewhere(&op, &[]) else { panic!("not made") };
            rig.elsewhere(&Op::Forget { ino: attr.ino, lookups: 1 }, &[]);
        }
    }
    let mut removed = 0;
    for entry in fs::read_dir(rig.path("many")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
        removed += 1;
    }
    assert_eq!(removed, count);
    fs::remove_dir(rig.path("many")).unwrap();
}

#[test]
fn attributes_symlinks_and_the_volume_are_told() {
    let Some(rig) = rig() else { return };
    fs::write(rig.path("f"), b"").unwrap();
    let value = vec![0x5a; 65535];
    let set = rustix::fs::XattrFlags::CREATE;
    rustix::fs::setxattr(rig.path("f"), "user.large", &value, set).unwrap();
    let mut got = vec![0; 65536];
    assert_eq!(rustix::fs::getxattr(rig.path("f"), "user.large", &mut got), Ok(65535));
    assert_eq!(got[..65535], value);
    assert_eq!(
        rustix::fs::getxattr(rig.path("f"), "user.large", &mut got[..10]),
        Err(Errno::RANGE)
    );
    let acl = rustix::fs::getxattr(rig.path("f"), "system.posix_acl_access", &mut got);
    assert_eq!(acl, Err(Errno::OPNOTSUPP));

    let target = "t".repeat(4095);
    std::os::unix::fs::symlink(&target, rig.path("s")).unwrap();
    assert_eq!(fs::read_link(rig.path("s")).unwrap(), Path::new(&target));
    let long = rig.path(&"n".repeat(256));
    assert_eq!(
        fs::metadata(long).unwrap_err().raw_os_error(),
        Some(Errno::NAMETOOLONG.raw_os_error())
    );
    fs::write(rig.path(&"n".repeat(255)), b"").unwrap();

    let volume = rustix::fs::statvfs(&rig.at).unwrap();
    assert_eq!((volume.f_frsize, volume.f_blocks, volume.f_namemax), (4096, 1 << 20, 255));
}

#[test]
fn many_threads_work_at_once() {
    let Some(rig) = rig() else { return };
    thread::scope(|scope| {
        for thread in 0..8 {
            let at = &rig.at;
            scope.spawn(move || {
                let dir = at.join(format!("d{thread}"));
                fs::create_dir(&dir).unwrap();
                for round in 0..100 {
                    let (one, two) = (dir.join("one"), at.join(format!("two {thread}")));
                    let text = format!("{thread} {round}");
                    fs::write(&one, &text).unwrap();
                    fs::rename(&one, &two).unwrap();
                    assert_eq!(fs::read_to_string(&two).unwrap(), text);
                    fs::remove_file(&two).unwrap();
                }
                fs::remove_dir(&dir).unwrap();
            });
        }
    });
    assert_eq!(fs::read_dir(&rig.at).unwrap().count(), 0);
    assert_eq!(rig.mount.replies().count_in_flight(), 0);
}

#[test]
fn a_shared_mapping_reaches_the_file() {
    let Some(rig) = rig() else { return };
    fs::write(rig.path("mapped"), vec![b'.'; 8192]).unwrap();
    let program = "import mmap, sys\n\
        f = open(sys.argv[1], 'r+b')\n\
        m = mmap.mmap(f.fileno(), 8192)\n\
        assert m[5000:5001] == b'.'\n\
        m[5000:5004] = b'mmap'\n\
        m.flush()\n\
        assert open(sys.argv[1], 'rb').read()[5000:5004] == b'mmap'\n";
    let mut python = Command::new("python3");
    match python.args(["-c", program]).arg(rig.path("mapped")).status() {
        Err(_) => return skipped("python3"),
        Ok(status) => assert!(status.success()),
    }
    assert_eq!(fs::read(rig.path("mapped")).unwrap()[4999..5005], *b".mmap.");
}

#[test]
fn a_parked_request_is_answered_later_by_another_thread() {
    let Some(rig) = rig() else { return };
    fs::write(rig.path("other"), b"").unwrap();
    let at = rig.path("parked");
    thread::scope(|scope| {
        let waiter = scope.spawn(move || fs::metadata(at));
        let News::Parked(id) = rig.next_news() else { panic!("not parked") };
        for _ in 0..10 {
            fs::metadata(rig.path("other")).unwrap();
        }
        assert!(!waiter.is_finished());
        let request = rig.served.take_parked(id);
        rig.served.answer(id, &request);
        assert_eq!(waiter.join().unwrap().unwrap_err().kind(), std::io::ErrorKind::NotFound);
        // Nobody waits for a second answer.
        let again = rig.mount.replies().reply(id, Err(OpError::Io), &[]);
        assert_eq!(again, Delivery::Gone);
    });
}

#[test]
fn a_signal_ends_a_process_that_waits() {
    let Some(rig) = rig() else { return };
    for signal in ["-TERM", "-KILL"] {
        let mut child = Command::new("stat")
            .arg(rig.path("parked"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let News::Parked(id) = rig.next_news() else { panic!("not parked") };
        let status = Command::new("kill").args([signal, &child.id().to_string()]).status();
        assert!(status.unwrap().success());
        assert_eq!(rig.next_news(), News::Interrupted(id));
        assert_eq!(child.try_wait().unwrap(), None);
        drop(rig.served.take_parked(id));
        let answered = rig.mount.replies().reply(id, Err(OpError::Interrupted), &[]);
        assert_eq!(answered, Delivery::Done);
        assert!(!child.wait().unwrap().success());
    }
    // Interrupts go on working, and so does everything else.
    fs::write(rig.path("other"), b"").unwrap();
}

#[test]
fn a_busy_mount_is_unmounted_only_lazily() {
    let Some(rig) = rig() else { return };
    fs::write(rig.path("f"), b"content").unwrap();
    let mut file = fs::File::open(rig.path("f")).unwrap();
    let busy = rig.mount.unmount().unwrap_err();
    assert_eq!(busy.raw_os_error(), Some(Errno::BUSY.raw_os_error()));
    rig.mount.detach().unwrap();
    assert!(!rig.path("f").exists());
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "content");
    drop(file);
    rig.mount.wait();
    rig.mount.unmount().unwrap();
}

#[test]
fn an_idle_mount_is_unmounted_by_anybody() {
    let Some(rig) = rig() else { return };
    fs::write(rig.path("f"), b"").unwrap();
    assert!(Command::new("umount").arg(&rig.at).status().unwrap().success());
    rig.mount.wait();
    assert_eq!(fs::read_dir(&rig.at).unwrap().count(), 0);
}

#[test]
fn aborting_frees_who_waits() {
    let Some(rig) = rig() else { return };
    let at = rig.path("parked");
    thread::scope(|scope| {
        let waiter = scope.spawn(move || fs::metadata(at));
        let News::Parked(id) = rig.next_news() else { panic!("not parked") };
        rig.mount.abort().unwrap();
        assert!(waiter.join().unwrap().is_err());
        assert_eq!(rig.mount.replies().reply(id, Err(OpError::Io), &[]), Delivery::Gone);
    });
    rig.mount.wait();
}

#[test]
fn notifications_say_what_they_found() {
    let Some(rig) = rig() else { return };
    fs::write(rig.path("f"), b"").unwrap();
    let name = |text: &str| NameBuf::parse(text.as_bytes()).unwrap();
    let keep = fs::File::open(rig.path("f")).unwrap();
    let ino = Ino(keep.metadata().unwrap().ino());
    let notifier = rig.mount.notifier();
    let known = || fs::metadata(rig.path("f")).map(|_| ()).unwrap();
    assert_eq!(notifier.drop_attributes(ino).unwrap(), Notified::Forgotten);
    assert_eq!(notifier.drop_pages(ino).unwrap(), Notified::Forgotten);
    assert_eq!(notifier.drop_pages(Ino(9999)).unwrap(), Notified::Unknown);
    known();
    assert_eq!(notifier.expire_entry(ROOT, &name("f")).unwrap(), Notified::Forgotten);
    known();
    assert_eq!(notifier.drop_entry(ROOT, &name("f")).unwrap(), Notified::Forgotten);
    assert_eq!(notifier.drop_entry(ROOT, &name("none")).unwrap(), Notified::Unknown);
    known();
    assert_eq!(notifier.delete_entry(ROOT, &name("f"), ino).unwrap(), Notified::Forgotten);
    known();
    match notifier.expire_all() {
        Ok(found) => assert_eq!(found, Notified::Forgotten),
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(Errno::INVAL.raw_os_error()));
            skipped("Linux 6.16 for the epoch");
        }
    }
    known();
}

#[test]
fn a_read_only_mount_changes_nothing() {
    let options = Options { read_only: true, ..Options::default() };
    let Some(rig) = rig_with(&options) else { return };
    let refused = fs::create_dir(rig.path("d")).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::read_dir(&rig.at).unwrap().count(), 0);
}

#[test]
fn devices_and_set_user_id_work_unless_refused() {
    let strict = Options { nodev: true, nosuid: true, ..Options::default() };
    for (options, allowed) in [(Options::default(), true), (strict, false)] {
        let Some(rig) = rig_with(&options) else { return };
        let null = rustix::fs::makedev(1, 3);
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(CWD, rig.path("null"), kind, Mode::from_raw_mode(0o666), null).unwrap();
        assert_eq!(fs::read(rig.path("null")).is_ok(), allowed);
        fs::copy("/usr/bin/id", rig.path("id")).unwrap();
        // To be executed, it need not be readable.
        fs::set_permissions(rig.path("id"), fs::Permissions::from_mode(0o4711)).unwrap();
        let id = Command::new(rig.path("id")).args(["-u"]).uid(1234).gid(1234).output().unwrap();
        let effective = String::from_utf8_lossy(&id.stdout).trim().to_owned();
        assert_eq!(effective, if allowed { "0" } else { "1234" });
    }
}

#[test]
fn writing_clears_set_user_id_for_users() {
    let Some(rig) = rig() else { return };
    let mode = |name: &str| fs::metadata(rig.path(name)).unwrap().mode() & 0o7777;
    let mut host = rig.host();
    let user = User { uid: 1234, gid: 1234, groups: vec![] };
    let how = OpenArg { read: true, write: true, create: None, truncate: false, append: false };
    for (name, who, left) in [("a", &user, 0o777), ("b", &User::ROOT, 0o6777)] {
        fs::write(rig.path(name), b"x").unwrap();
        fs::set_permissions(rig.path(name), fs::Permissions::from_mode(0o6777)).unwrap();
        host.run(who, &Step::Open { slot: 0, path: vec![name], how }).unwrap();
        host.run(who, &Step::Write { slot: 0, at: 0, len: 1, byte: b'y' }).unwrap();
        assert_eq!(mode(name), left);
        fs::set_permissions(rig.path(name), fs::Permissions::from_mode(0o6777)).unwrap();
        host.run(who, &Step::Ftruncate { slot: 0, size: 0 }).unwrap();
        assert_eq!(mode(name), left);
        fs::set_permissions(rig.path(name), fs::Permissions::from_mode(0o6777)).unwrap();
        let cut = OpenArg { truncate: true, ..how };
        host.run(who, &Step::Open { slot: 0, path: vec![name], how: cut }).unwrap();
        assert_eq!(mode(name), left);
    }
}

/// What the child process of the next tests runs, and what tells it how.
const CHILD: &str = "child_that_mounts";
const CHILD_AT: &str = "OUTRIDER_TEST_MOUNT_AT";
const CHILD_MAY_MOUNT: &str = "OUTRIDER_TEST_MAY_MOUNT";

/// Does nothing unless a test below started it: then it mounts, and unmounts when it is told to.
#[test]
fn child_that_mounts() {
    let Some(at) = std::env::var_os(CHILD_AT) else { return };
    if std::env::var_os(CHILD_MAY_MOUNT).is_none() {
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::SYS_ADMIN);
        sets.permitted.remove(CapabilitySet::SYS_ADMIN);
        rustix::thread::set_capabilities(None, sets).unwrap();
    }
    let (mount, _served, _news) = serve(Path::new(&at), &Options::default()).unwrap();
    fs::write(Path::new(&at).join("ready"), b"").unwrap();
    println!("ready");
    std::io::stdin().read_exact(&mut [0; 1]).unwrap();
    mount.unmount().unwrap();
    mount.wait();
}

/// A process that mounts. Dropping it kills it, and takes away what it mounted.
struct Child {
    process: std::process::Child,
    at: PathBuf,
}

impl Child {
    fn start(at: &Path, may_mount: bool) -> Child {
        fs::create_dir(at).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", CHILD, "--nocapture"]).env(CHILD_AT, at);
        if may_mount {
            command.env(CHILD_MAY_MOUNT, "");
        }
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Child { process: pipes.spawn().unwrap(), at: at.to_owned() };
        let mut said = Vec::new();
        let mut byte = [0; 1];
        let stdout = child.process.stdout.as_mut().expect("it is a pipe");
        while !said.ends_with(b"ready\n") {
            stdout.read_exact(&mut byte).unwrap();
            said.push(byte[0]);
        }
        child
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let mut umount = Command::new("umount");
        let _ = umount.arg("-l").arg(&self.at).stderr(Stdio::null()).status();
    }
}

#[test]
fn a_mount_whose_process_was_killed_can_be_taken_away() {
    let Some(rig) = rig() else { return };
    let at = rig.dir.path().join("left");
    let mut child = Child::start(&at, true);
    assert!(at.join("ready").exists());
    child.process.kill().unwrap();
    child.process.wait().unwrap();
    let dead = fs::metadata(at.join("ready")).unwrap_err();
    assert_eq!(dead.raw_os_error(), Some(Errno::NOTCONN.raw_os_error()));
    let refused = serve(&at, &Options::default()).err().expect("something is mounted");
    assert!(refused.to_string().contains("umount -l"), "{refused}");
    assert!(Command::new("umount").arg("-l").arg(&at).status().unwrap().success());
    let (mount, _served, _news) = serve(&at, &Options::default()).unwrap();
    fs::write(at.join("again"), b"").unwrap();
    mount.unmount().unwrap();
}

#[test]
fn who_may_not_mount_does_so_through_the_helper() {
    let Some(rig) = rig() else { return };
    if Command::new("fusermount3").arg("-V").stdout(Stdio::null()).status().is_err() {
        return skipped("fusermount3");
    }
    let at = rig.dir.path().join("own");
    let mut child = Child::start(&at, false);
    let mounted = || {
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        table.lines().find(|line| line.contains(at.to_str().unwrap())).map(str::to_owned)
    };
    let line = mounted().unwrap();
    assert!(line.contains("fuse.outrider") && line.contains("nosuid,nodev"), "{line}");
    assert!(at.join("ready").exists());
    child.process.stdin.as_mut().expect("it is a pipe").write_all(b"!").unwrap();
    assert!(child.process.wait().unwrap().success());
    assert_eq!(mounted(), None);
}

#[test]
fn opening_for_direct_transfers_works() {
    let Some(rig) = rig() else { return };
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true);
    options.custom_flags(OFlags::DIRECT.bits().cast_signed());
    let file = options.open(rig.path("direct")).unwrap();
    file.write_all_at(&[1; 10_000], 5).unwrap();
    let mut bytes = [0; 10_006];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 10_005);
    assert_eq!((bytes[4], bytes[5], bytes[10_004]), (0, 1, 1));
    let access = rustix::fs::Access::EXEC_OK;
    let denied = rustix::fs::accessat(CWD, rig.path("direct"), access, AtFlags::empty());
    assert_eq!(denied, Err(Errno::ACCESS));
}
