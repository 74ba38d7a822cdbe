//! Processes on a kernel whose mount is a model, which answers when a test says so: whatever comes
//! in between, every call ends.

use super::calls::{OpenFlags, Path, Process};
use super::history::{History, Life};
use super::threads::Threads;
use super::{Failure, Kernel, Pid, Request, Stage};
use crate::model::{Asked, Done, Model, User};
use crate::platform::LENT_BYTES;
use crate::rng::Rng;
use crate::trace::HostId;
use outrider_core::client::op::{NameBuf, Op, OpError, RenameMode};
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
