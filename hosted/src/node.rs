//! Runs a node: one thread turns its pump, and any other may call into the node.
//!
//! ```text
//!   owner's threads --- Handle::with ---> [ lock: node ] <--- pump thread
//!                          rings the bell                       turn, Owner::collect
//!                                                               unlock, Owner::deliver
//!                                                               sleep: bell, sockets, deadline
//! ```
//!
//! # Invariants
//!
//! * The node is touched only under its lock. The pump thread holds it for one turn, which is
//!   bounded and never waits for a transfer or a peer, and never while it sleeps or delivers.
//! * The lock is handed on in order of arrival: a pump with always more to do starves nobody, and
//!   nobody starves it.
//! * No call is left lying: whoever has called into the node rings the bell after it has let go of
//!   the lock, so a turn begins after every call. Completions ring it too.
//!
//! # Order of locks
//!
//! The node's lock comes after all locks of its owner: take what you need first, then call
//! [`Handle::with`], and take nothing inside. What [`Owner::collect`] does happens under the node's
//! lock as well, so it takes no locks but such as are never held while calling into the node.
//! [`Owner::deliver`] is called with nothing held.
//!
//! What this module deliberately doesn't know: any kind of node, and what its owner wants from it.

use crate::clock::BootClock;
use crate::disk::FileDevice;
use crate::net::TcpNetwork;
use crate::wait::{Bell, wait};
use outrider_core::node::Node;
use outrider_core::pump::{Pump, Wake};
use outrider_hal::{Clock, Instant};
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// A node on this system.
pub type HostedPump<N> = Pump<'static, N, FileDevice, TcpNetwork, BootClock>;

/// What the pump does after a turn, as its owner says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another turn at once: the owner has called into the node.
    Again,
    /// It sleeps, if the node has nothing to do.
    Sleep,
    /// The same, but until then at the latest.
    SleepUntil(Instant),
    /// It ends. The node is not driven any more.
    End,
}

/// Whom a node is driven for.
pub trait Owner<N>: Send + 'static {
    /// Looks at the node after a turn, and takes what it has for its owner. The node is locked: no
    /// waiting, no locks that are ever held around a call into the node.
    fn collect(&mut self, now: Instant, node: &mut N) -> Next;

    /// Passes on what was collected, with the node unlocked. The node waits meanwhile.
    fn deliver(&mut self);
}

struct Shared<N> {
    /// Held only while waiting for `pump`, so that those who wait get it in turn: who has just let
    /// go of the pump finds this taken by the one who waits.
    queue: Mutex<()>,
    pump: Mutex<HostedPump<N>>,
    bell: Bell,
}

impl<N> Shared<N> {
    fn lock(&self) -> MutexGuard<'_, HostedPump<N>> {
        // Who panics in a call into the node leaves it as the node was: that is for tests only, the
        // program aborts.
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let pump = self.pump.lock().unwrap_or_else(PoisonError::into_inner);
        drop(queue);
        pump
    }
}

/// Calls into a node that a [`Runner`] drives, from any thread.
pub struct Handle<N>(Arc<Shared<N>>);

impl<N> Clone for Handle<N> {
    fn clone(&self) -> Handle<N> {
        Handle(Arc::clone(&self.0))
    }
}

impl<N: Node<'static>> Handle<N> {
    /// Calls into the node, with the time, and sees to it that a turn follows. Short: the node
    /// stands still meanwhile.
    pub fn with<R>(&self, act: impl FnOnce(&mut N, Instant) -> R) -> R {
        let mut pump = self.0.lock();
        let now = pump.clock_mut().now();
        let result = act(pump.node_mut(), now);
        drop(pump);
        self.0.bell.ring();
        result
    }

    /// Sees to it that a turn follows, for an owner that has something to say in
    /// [`Owner::collect`].
    pub fn wake(&self) {
        self.0.bell.ring();
    }
}

/// A node with the thread that drives it.
pub struct Runner<N> {
    handle: Handle<N>,
    thread: JoinHandle<io::Result<()>>,
}

impl<N: Node<'static> + Send + 'static> Runner<N> {
    /// Starts to drive a node. The bell is the one its device rings.
    ///
    /// # Errors
    ///
    /// If there is no thread to be had.
    pub fn start(
        pump: HostedPump<N>,
        bell: Bell,
        mut owner: impl Owner<N>,
    ) -> io::Result<Runner<N>> {
        let shared = Shared { queue: Mutex::new(()), pump: Mutex::new(pump), bell };
        let shared = Arc::new(shared);
        let handle = Handle(Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("node".to_owned())
            .spawn(move || drive(&shared, &mut owner))?;
        Ok(Runner { handle, thread })
    }

    /// To call into the node.
    #[must_use]
    pub fn handle(&self) -> Handle<N> {
        self.handle.clone()
    }

    /// Waits until the owner has ended it.
    ///
    /// # Errors
    ///
    /// When the system could not tell any more what has become ready.
    pub fn join(self) -> io::Result<()> {
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn drive<N: Node<'static>>(shared: &Shared<N>, owner: &mut impl Owner<N>) -> io::Result<()> {
    let sockets = shared.lock().network_mut().readiness();
    loop {
        let mut pump = shared.lock();
        pump.network_mut().refresh()?;
        let wake = pump.turn();
        let now = pump.clock_mut().now();
        let next = owner.collect(now, pump.node_mut());
        drop(pump);
        owner.deliver();
        let until = match (next, wake) {
            (Next::End, _) => return Ok(()),
            (Next::Again, _) | (Next::Sleep | Next::SleepUntil(_), Wake::Now) => continue,
            (Next::Sleep, Wake::At(at)) => Some(at),
            (Next::Sleep, Wake::Event) => None,
            (Next::SleepUntil(until), Wake::At(at)) => Some(at.min(until)),
            (Next::SleepUntil(until), Wake::Event) => Some(until),
        };
        wait(&shared.bell, &[sockets.as_fd()], BootClock.now(), until)?;
    }
}
