//! Processes on a kernel whose mount is a model, which answers when a test says so: whatever comes
//! in between, every call ends.

use super::calls::{OpenFlags, Path, Process};
use super::history::{History, Life};
use super::threads::Threads;
use super::{Failure, Kernel, Pid, Request, Stage};
use crate::model::{Asked, Done, Model, ROOT, User};
use crate::platform::LENT_BYTES;
use crate::rng::{Chance, Rng};
use crate::trace::HostId;
use outrider_core::client::op::{NameBuf, NewMode, Op, OpError, RenameMode, Reply};
use outrider_core::format::Ino;
use outrider_core::format::item::Time;
use std::cell::RefCell;
use std::rc::Rc;

const NOW: Time = Time { sec: 1, nsec: 0 };

/// A path, as people write it.
fn path(text: &str) -> Path {
    let names = text.split('/').map(|name| NameBuf::parse(name.as_bytes()).unwrap());
    names.collect()
}

struct Bench {
    kernel: Kernel,
    threads: Threads,
    model: Model,
    pids: u32,
}

impl Bench {
    fn new(seed: u64) -> Bench {
        let history = Rc::new(RefCell::new(History::default()));
        let life = Life { host: HostId(0), number: 1 };
        Bench {
            kernel: Kernel::new(life, history, Rng::new(seed)),
            threads: Threads::default(),
            model: Model::new(0o755, NOW),
            pids: 0,
        }
    }

    /// A process begins, which makes these calls.
    fn spawn<F: Future<Output = ()> + 'static>(&mut self, calls: impl FnOnce(Process) -> F) -> Pid {
        self.pids += 1;
        let pid = Pid(self.pids);
        let process = Process::new(&self.kernel, pid);
        self.threads.spawn(calls(process));
        self.run();
        pid
    }

    fn run(&mut self) {
        self.kernel.tick();
        self.threads.run(&self.kernel.moves());
    }

    fn execute(&mut self, op: &Op, data: &[u8]) -> Result<Done, OpError> {
        let room = Some(LENT_BYTES);
        self.model.execute(&Asked { user: &User::ROOT, now: NOW, op, data, room })
    }

    /// Answers a request, and lets processes go on.
    fn answer(&mut self, id: u64) {
        let call = self.kernel.0.borrow().requests[&id].call.clone();
        let result = self.execute(&call.op, &call.data);
        let mut state = self.kernel.0.borrow_mut();
        state.queue.retain(|queued| *queued != id);
        state.note_end(id, result);
        drop(state);
        self.run();
    }

    /// The requests that are not answered.
    fn asked(&self, is_meant: impl Fn(&Request) -> bool) -> Vec<u64> {
        let state = self.kernel.0.borrow();
        let waits = |at: &&u64| {
            let request = &state.requests[at];
            request.stage == Stage::Queued && is_meant(request)
        };
        state.requests.keys().filter(waits).copied().collect()
    }

    /// Answers so many requests of a process, one after the other.
    fn serve(&mut self, pid: Pid, count: u32) {
        for _ in 0..count {
            let asked = self.asked(|request| request.pid == Some(pid));
            assert_eq!(asked.len(), 1, "{pid:?} makes one request at a time");
            self.answer(asked[0]);
        }
    }

    /// Answers all that is asked, until nothing is. Then all calls have ended.
    fn serve_all(&mut self) {
        while let Some(id) = self.asked(|_| true).first() {
            self.answer(*id);
        }
        assert_eq!(self.threads.count(), 0, "wait for ever: {}", self.kernel.describe());
    }

    fn find(&mut self, path: &[NameBuf]) -> Result<Ino, OpError> {
        path.iter().try_fold(ROOT, |dir, name| {
            match self.execute(&Op::Lookup { dir, name: name.clone() }, &[])?.reply {
                Reply::Entry(attr) => Ok(attr.ino),
                other => panic!("not an entry: {other:?}"),
            }
        })
    }

    /// The directory of a path's last name, and that name.
    fn place(&mut self, path: &Path) -> Result<(Ino, NameBuf), OpError> {
        let (name, above) = path.split_last().unwrap();
        Ok((self.find(above)?, name.clone()))
    }

    /// Another mount makes a directory.
    fn elsewhere_mkdir(&mut self, path: &Path) -> Result<(), OpError> {
        let (dir, name) = self.place(path)?;
        let mode = NewMode { permissions: 0o755, umask: 0 };
        self.execute(&Op::Mkdir { dir, name, mode }, &[]).map(|_| ())
    }

    /// Another mount moves a name.
    fn elsewhere_rename(
        &mut self,
        from: &Path,
        to: &Path,
        mode: RenameMode,
    ) -> Result<(), OpError> {
        let (dir, name) = self.place(from)?;
        let (to_dir, to_name) = self.place(to)?;
        self.execute(&Op::Rename { dir, name, to_dir, to_name, mode }, &[]).map(|_| ())
    }

    /// A directory `p/c`, of which `c` is the older one, and something in it.
    fn with_young_parent() -> Bench {
        let mut bench = Bench::new(1);
        for name in ["c", "p"] {
            bench.elsewhere_mkdir(&path(name)).unwrap();
        }
        bench.elsewhere_rename(&path("c"), &path("p/c"), RenameMode::Replace).unwrap();
        bench.elsewhere_mkdir(&path("p/c/x")).unwrap();
        bench
    }
}

/// Opens a file, which is made if it isn't there, and closes it.
async fn create(process: &Process, path: &Path) -> Result<(), Failure> {
    let flags = OpenFlags { create: true, ..OpenFlags::default() };
    let file = process.open(path, flags).await?;
    process.close(file).await
}

async fn rename(process: Process, from: &str, to: &str, mode: RenameMode) {
    // Whether it succeeds is the model's to say.
    let _ = process.rename(&path(from), &path(to), mode).await;
}

/// `p/c/x` is moved to `p/y` while `p/c` is removed. In between, the kernel loses the name of
/// `p/c`.
fn rename_beside_rmdir(lose_name: impl FnOnce(&mut Bench)) {
    let mut bench = Bench::with_young_parent();
    let mover = bench.spawn(|at| rename(at, "p/c/x", "p/y", RenameMode::Replace));
    bench.serve(mover, 2);
    lose_name(&mut bench);
    let remover = bench.spawn(|at| async move {
        let removed = at.remove(&path("p/c"), true).await;
        assert_eq!(removed, Err(Failure::Op(OpError::NotEmpty)), "its turn came first");
    });
    bench.serve(remover, 1);
    // The remover has the lock of `p` and asks for `c`; the mover now takes its locks.
    bench.serve(mover, 1);
    bench.serve(remover, 1);
    bench.serve_all();
}

#[test]
fn a_directory_in_use_is_below_its_parent_when_memory_is_taken_back() {
    rename_beside_rmdir(|bench| bench.kernel.0.borrow_mut().shrink(Chance::ALWAYS));
}

#[test]
fn a_directory_in_use_is_below_its_parent_when_its_name_was_gone_for_a_while() {
    rename_beside_rmdir(|bench| {
        bench.elsewhere_rename(&path("p/c"), &path("away"), RenameMode::Replace).unwrap();
        let looker = bench.spawn(|at| async move {
            assert!(at.stat(&path("p/c")).await.is_err());
        });
        bench.serve(looker, 3);
        bench.elsewhere_rename(&path("away"), &path("p/c"), RenameMode::Replace).unwrap();
    });
}

#[test]
fn no_directory_is_found_elsewhere_while_a_name_moves_between_two() {
    let mut bench = Bench::new(1);
    for name in ["a", "a/d", "a/d/x"] {
        bench.elsewhere_mkdir(&path(name)).unwrap();
    }
    bench.spawn(|at| async move { assert_eq!(at.stat(&path("a/d")).await, Ok(())) });
    bench.serve_all();
    // The maker has the lock of `a`, for which the mover waits: as `d` lies in it.
    let maker = bench.spawn(|at| async move { assert!(at.mkdir(&path("a/z")).await.is_ok()) });
    bench.serve(maker, 2);
    let mover = bench.spawn(|at| rename(at, "a/d/x", "a/y", RenameMode::Replace));
    bench.serve(mover, 3);
    bench.elsewhere_rename(&path("a/d"), &path("d"), RenameMode::Replace).unwrap();
    let looker = bench.spawn(|at| async move {
        assert_eq!(at.stat(&path("d")).await, Err(Failure::Op(OpError::Stale)));
    });
    bench.serve(looker, 2);
    bench.serve_all();
    bench.spawn(|at| async move { assert_eq!(at.stat(&path("d")).await, Ok(())) });
    bench.serve_all();
}

#[test]
fn an_exchange_locks_the_directory_before_the_file() {
    let mut bench = Bench::new(1);
    bench.spawn(|at| async move {
        create(&at, &path("f")).await.unwrap();
        for directory in ["e", "e/d"] {
            at.mkdir(&path(directory)).await.unwrap();
        }
    });
    bench.serve_all();
    // The one has the lock of `e/d` and asks for `g` in it; the other takes both locks; then the
    // one wants that of `f`.
    let linker = bench.spawn(|at| async move {
        let linked = at.link(&path("f"), &path("e/d/g")).await;
        assert!(linked.is_ok(), "nobody was before it: {linked:?}");
    });
    bench.serve(linker, 3);
    let mover = bench.spawn(|at| rename(at, "f", "e/d", RenameMode::Exchange));
    bench.serve(mover, 3);
    bench.serve(linker, 1);
    bench.serve_all();
}

/// What one process does. What comes of a call is the model's to say.
async fn make_calls(process: Process, mut rng: Rng) {
    for _ in 0..12 {
        let (from, to) = (random_path(&mut rng), random_path(&mut rng));
        let _ = match rng.below(20) {
            0..4 => process.mkdir(&from).await.map(|_| ()),
            4..6 => process.remove(&from, true).await,
            6 => process.remove(&from, false).await,
            7 => process.link(&from, &to).await,
            8..12 => process.rename(&from, &to, RenameMode::Replace).await,
            12..15 => process.rename(&from, &to, RenameMode::Exchange).await,
            15 => process.stat(&from).await,
            16..18 => process.list(&from).await.map(|_| ()),
            _ => create(&process, &from).await,
        };
    }
    process.exit();
}

fn random_path(rng: &mut Rng) -> Path {
    let names = ["a", "b"];
    let mut random = Path::new();
    while random.is_empty() || random.len() < 4 && rng.below(2) == 0 {
        random.extend(path(names[rng.below(2) as usize]));
    }
    random
}

/// Other mounts move directories, memory is taken back, and answers come in any order.
fn every_call_ends(seed: u64) {
    let mut bench = Bench::new(seed);
    let mut rng = Rng::new(seed).fork("bench");
    for _ in 0..5 {
        let calls = Rng::new(rng.number());
        bench.spawn(|at| make_calls(at, calls));
    }
    loop {
        let asked = bench.asked(|_| true);
        let Some(id) = rng.pick(&asked) else { break };
        bench.answer(*id);
        let (from, to) = (random_path(&mut rng), random_path(&mut rng));
        // What can't be done isn't done.
        match rng.below(40) {
            0..3 => drop(bench.elsewhere_rename(&from, &to, RenameMode::Replace)),
            3 => drop(bench.elsewhere_rename(&from, &to, RenameMode::Exchange)),
            4 => drop(bench.elsewhere_mkdir(&from)),
            5..8 => bench.kernel.0.borrow_mut().shrink(Chance(500_000)),
            _ => {}
        }
    }
    assert_eq!(bench.threads.count(), 0, "seed {seed}: {}", bench.kernel.describe());
    bench.kernel.shrink_all();
    let state = bench.kernel.0.borrow();
    assert!(state.inodes.keys().all(|ino| *ino == ROOT), "seed {seed}: inodes are left");
}

#[test]
fn whatever_is_moved_every_call_ends() {
    (0..15_000).for_each(every_call_ends);
}
