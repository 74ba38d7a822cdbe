//! The fault atlas: everything that can go wrong, how likely it is in this run, how often it was.
//!
//! # Invariants
//!
//! * No more is injected than the cluster under test [promises](Promise) to survive: fault by
//!   fault, and in how many hosts are impaired and how many blocks are damaged at once.
//! * A fault is counted where its effect is there to be seen, not where the dice fell: a write
//!   counts as lost when a power loss took it, not when it became possible.
//! * Each run draws its own knobs from its seed ("swarm testing", Groce et al., 2012): some faults
//!   are off, others are much more likely than usual. Runs in which everything goes wrong all the
//!   time never get far enough to be interesting.
//!
//! What this module deliberately doesn't know: how any fault is done. That is in the module that
//! stands for the thing that fails.

use crate::rng::{Chance, Rng};
use crate::trace::HostId;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::Range;

macro_rules! faults {
    ($( $(#[$doc:meta])* $fault:ident = $per_million:expr; )*) => {
        /// Something that goes wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Fault { $( $(#[$doc])* $fault, )* }

        impl Fault {
            /// Every fault, in order.
            pub const ALL: &'static [Fault] = &[ $( Fault::$fault, )* ];

            /// How likely it is, at each occasion, in a run that does nothing special about it.
            #[must_use]
            pub const fn usual(self) -> Chance {
                match self { $( Fault::$fault => Chance($per_million), )* }
            }
        }
    };
}

// The occasion differs: each segment, dial, request, action or wake-up, and for those that befall
// a whole host or the whole world, each tick of the fault timer.
faults! {
    /// A segment is lost and sent again after a retransmission timeout.
    NetDrop = 10_000;
    /// A segment is late by up to a second.
    NetDelay = 20_000;
    /// A connection delivers nothing for up to ten minutes, then everything.
    NetStall = 500;
    /// The network takes fewer bytes than the node has.
    NetPartialSend = 200_000;
    /// The network gives fewer bytes than have arrived.
    NetPartialRecv = 200_000;
    /// A connection is reset; what was under way is cut off at any byte.
    NetReset = 20_000;
    /// The reset reaches one end only; the other believes in the connection until it sends.
    NetHalfOpen = 300_000;
    /// Bytes of an older connection arrive after bytes of a newer one between the same hosts.
    NetReorder = 1_000_000;
    /// Nothing gets from one host to another for a while; the other direction works.
    NetOneWay = 20_000;
    /// Two groups of hosts can't reach each other for a while.
    NetPartition = 20_000;
    /// A connection attempt is refused although somebody listens.
    NetRefuse = 20_000;
    /// A connection is accepted that the dialer has given up.
    NetGhost = 20_000;
    /// An endpoint can't be listened at for now.
    NetListenFail = 50_000;
    /// A bit of a stream is flipped on its way.
    NetGarble = 1_000;
    /// A request takes up to thirty seconds, until it is done or until its host hears that it is.
    DiskSlow = 2_000;
    /// A request completes before an older one of the same host.
    DiskReorder = 1_000_000;
    /// A write that no flush covered is gone after a power loss.
    DiskLost = 1_000_000;
    /// A block holds some sectors of one write and some of another after a power loss or crash.
    DiskTorn = 300_000;
    /// A read sees some sectors of a write that is still under way.
    DiskTornRead = 50_000;
    /// A write lands after its node has crashed.
    DiskLateWrite = 500_000;
    /// A write that stood in the queue of a paused node lands after the node has gone on.
    DiskHeldWrite = 800_000;
    /// A flush leaves volatile what other hosts, or the node's former life, have written.
    DiskNarrowFlush = 500_000;
    /// A stored bit is flipped for good.
    DiskRot = 3_000;
    /// A read returns a flipped bit; the medium is sound.
    DiskRotOnce = 3_000;
    /// A read returns another block.
    DiskMisdirectedRead = 3_000;
    /// A write goes to another block.
    DiskMisdirectedWrite = 3_000;
    /// A request fails; a failed write may have been done.
    DiskError = 3_000;
    /// A block can't be read until it is written again.
    DiskBadBlock = 1_000;
    /// Every request of a host fails until it is restarted.
    DiskPathDead = 10_000;
    /// The queue takes no request although it has room.
    DiskQueueFull = 10_000;
    /// A thin-provisioned device has no room for writes for a while.
    DiskFull = 10_000;
    /// The device loses power, the hosts don't: their requests fail until they are restarted.
    DiskReset = 5_000;
    /// Everything loses power at once.
    PowerLoss = 10_000;
    /// A node crashes between two events.
    NodeCrash = 50_000;
    /// A node crashes between two of its actions.
    NodeCrashAtEffect = 200;
    /// A node stands still for up to ten minutes and goes on.
    NodePause = 30_000;
    /// A node stands still between deciding on an action and doing it.
    NodePauseAtEffect = 500;
    /// A node crashes with writes in its queue.
    NodeCrashAtWrite = 10_000;
    /// A node stands still with writes in its queue.
    NodePauseAtWrite = 30_000;
    /// The clock stands still while its node does.
    NodeClockFrozen = 500_000;
    /// A clock runs up to a thousandth fast or slow.
    NodeClockDrift = 500_000;
    /// A clock jumps forward.
    NodeClockJump = 10_000;
    /// A timer goes off late.
    NodeLateTimer = 10_000;
    /// A node is stepped although nothing has happened.
    NodeSpuriousStep = 20_000;
}

const FAULTS: usize = Fault::ALL.len();

/// Some of the faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultSet(u64);

impl FaultSet {
    /// No fault.
    pub const NONE: FaultSet = FaultSet(0);
    /// Every fault.
    pub const ALL: FaultSet = FaultSet((1 << FAULTS) - 1);

    /// All that leave blocks as they were written: what a cluster survives unharmed.
    #[must_use]
    pub fn harmless() -> FaultSet {
        FaultSet::ALL.without(FaultSet::of(&[
            Fault::DiskRot,
            Fault::DiskRotOnce,
            Fault::DiskMisdirectedRead,
            Fault::DiskMisdirectedWrite,
            Fault::DiskBadBlock,
        ]))
    }

    /// These faults.
    #[must_use]
    pub fn of(faults: &[Fault]) -> FaultSet {
        FaultSet(faults.iter().fold(0, |bits, fault| bits | 1 << *fault as u8))
    }

    /// Those that are not in `other`.
    #[must_use]
    pub fn without(self, other: FaultSet) -> FaultSet {
        FaultSet(self.0 & !other.0)
    }

    /// Whether the fault is one of these.
    #[must_use]
    pub fn has(self, fault: Fault) -> bool {
        self.0 & 1 << fault as u8 != 0
    }

    /// The faults, in order.
    pub fn iter(self) -> impl Iterator<Item = Fault> {
        Fault::ALL.iter().copied().filter(move |fault| self.has(*fault))
    }
}

/// What the cluster under test promises to survive. Nothing beyond it is injected.
#[derive(Debug, Clone)]
pub struct Promise {
    /// The kinds of faults.
    pub survives: FaultSet,
    /// How many hosts may be down, paused, cut off or without a disk at once. Loss of all power is
    /// not counted: it is a fault of its own.
    pub hosts_impaired_max: u32,
    /// How many blocks may be damaged (rotten, misdirected, unreadable) at once.
    pub blocks_damaged_max: u32,
    /// The blocks that may be damaged, for a cluster that needs others sound.
    pub damageable: Range<u64>,
}

impl Promise {
    /// Survives nothing: no fault is injected.
    #[must_use]
    pub fn nothing() -> Promise {
        Promise {
            survives: FaultSet::NONE,
            hosts_impaired_max: 0,
            blocks_damaged_max: 0,
            damageable: 0..0,
        }
    }
}

/// How often each fault has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    counts: [u64; FAULTS],
}

impl Coverage {
    /// Nothing has happened.
    #[must_use]
    pub fn new() -> Coverage {
        Coverage { counts: [0; FAULTS] }
    }

    /// How often this fault has happened.
    #[must_use]
    pub fn count(&self, fault: Fault) -> u64 {
        self.counts[fault as usize]
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Coverage) {
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            *sum += count;
        }
    }

    /// Those of `wanted` that have never happened.
    #[must_use]
    pub fn missing(&self, wanted: FaultSet) -> Vec<Fault> {
        wanted.iter().filter(|fault| self.count(*fault) == 0).collect()
    }

    /// One line for each fault.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = String::new();
        for fault in Fault::ALL {
            let _ = writeln!(text, "  {:<22}{:>12}", format!("{fault:?}"), self.count(*fault));
        }
        text
    }
}

impl Default for Coverage {
    fn default() -> Coverage {
        Coverage::new()
    }
}

/// The knobs of one run, and what came of them.
#[derive(Debug)]
pub struct Atlas {
    rng: Rng,
    promise: Promise,
    knobs: [Chance; FAULTS],
    calm: bool,
    coverage: Coverage,
    damaged: BTreeSet<u64>,
    impaired: BTreeSet<HostId>,
}

impl Atlas {
    /// Draws the knobs of a run: each fault is off in one run of three, and otherwise between an
    /// eighth and eight times as likely as usual.
    #[must_use]
    pub fn swarm(root: &Rng, promise: Promise) -> Atlas {
        let mut atlas = Atlas::fixed(root, promise, FaultSet::NONE, 1);
        for fault in Fault::ALL {
            let off = atlas.rng.below(3) == 0;
            let shift = atlas.rng.below(7);
            if !off && atlas.promise.survives.has(*fault) {
                let scaled = (fault.usual().0 << shift) >> 3;
                atlas.knobs[*fault as usize] = Chance(scaled.clamp(1, 1_000_000));
            }
        }
        atlas
    }

    /// Turns on the faults of `on`, each `times` as likely as usual, for tests of single faults.
    #[must_use]
    pub fn fixed(root: &Rng, promise: Promise, on: FaultSet, times: u32) -> Atlas {
        let knobs = std::array::from_fn(|index| {
            let fault = Fault::ALL[index];
            let chance = Chance(fault.usual().0.saturating_mul(times).min(1_000_000));
            if on.has(fault) && promise.survives.has(fault) { chance } else { Chance::NEVER }
        });
        Atlas {
            rng: root.fork("faults"),
            promise,
            knobs,
            calm: false,
            coverage: Coverage::new(),
            damaged: BTreeSet::new(),
            impaired: BTreeSet::new(),
        }
    }

    /// Makes a fault so likely, as far as it is promised to be survived.
    #[must_use]
    pub fn with(mut self, fault: Fault, chance: Chance) -> Atlas {
        if self.promise.survives.has(fault) {
            self.knobs[fault as usize] = chance;
        }
        self
    }

    /// Injects nothing from now on.
    pub fn calm(&mut self) {
        self.calm = true;
    }

    /// Whether faults have stopped.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.calm
    }

    /// What has happened so far.
    #[must_use]
    pub fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// Whether this fault is possible at all in this run.
    #[must_use]
    pub fn is_on(&self, fault: Fault) -> bool {
        !self.calm && self.knobs[fault as usize] > Chance::NEVER
    }

    /// Whether the fault is to happen on this occasion. Whoever makes it happen then says so with
    /// [`happened`](Self::happened).
    #[must_use]
    pub fn draw(&mut self, fault: Fault) -> bool {
        self.is_on(fault) && self.rng.chance(self.knobs[fault as usize])
    }

    /// Counts a fault whose effect is there.
    pub fn happened(&mut self, fault: Fault) {
        self.coverage.counts[fault as usize] += 1;
    }

    /// Draws, and counts at once: for faults that take effect without further conditions.
    #[must_use]
    pub fn strike(&mut self, fault: Fault) -> bool {
        let struck = self.draw(fault);
        if struck {
            self.happened(fault);
        }
        struck
    }

    /// Whether the block may be damaged. When it is, [`damage`](Self::damage) says so.
    #[must_use]
    pub fn may_damage(&self, blkno: u64) -> bool {
        let count = self.damaged.len() as u32 + u32::from(!self.damaged.contains(&blkno));
        self.promise.damageable.contains(&blkno) && count <= self.promise.blocks_damaged_max
    }

    /// Notes that the block is damaged.
    pub fn damage(&mut self, blkno: u64) {
        self.damaged.insert(blkno);
    }

    /// Notes that the block was written anew.
    pub fn heal(&mut self, blkno: u64) {
        self.damaged.remove(&blkno);
    }

    /// The blocks that are damaged now.
    #[must_use]
    pub fn damaged(&self) -> &BTreeSet<u64> {
        &self.damaged
    }

    /// The blocks that may be damaged.
    #[must_use]
    pub fn damageable(&self) -> Range<u64> {
        self.promise.damageable.clone()
    }

    /// Whether one more host may be impaired, or this one is already.
    #[must_use]
    pub fn may_impair(&self, host: HostId) -> bool {
        self.impaired.contains(&host)
            || (self.impaired.len() as u32) < self.promise.hosts_impaired_max
    }

    /// Notes that the host is down, paused, cut off or without a disk.
    pub fn impair(&mut self, host: HostId) {
        self.impaired.insert(host);
    }

    /// Notes that nothing is wrong with the host any more.
    pub fn restore(&mut self, host: HostId) {
        self.impaired.remove(&host);
    }
}

#[cfg(test)]
mod tests {
    use super::{Atlas, Coverage, Fault, FaultSet, Promise};
    use crate::rng::Rng;
    use crate::trace::HostId;

    fn promise() -> Promise {
        Promise {
            survives: FaultSet::of(&[Fault::NetReset, Fault::DiskRot]),
            hosts_impaired_max: 1,
            blocks_damaged_max: 2,
            damageable: 10..20,
        }
    }

    #[test]
    fn nothing_beyond_the_promise_is_injected() {
        for seed in 0..50 {
            let mut atlas = Atlas::swarm(&Rng::new(seed), promise());
            for fault in Fault::ALL.iter().filter(|fault| !promise().survives.has(**fault)) {
                assert!(!atlas.is_on(*fault) && !atlas.strike(*fault));
            }
        }
        let mut atlas = Atlas::swarm(&Rng::new(0), promise());
        assert!(atlas.may_impair(HostId(1)));
        atlas.impair(HostId(1));
        assert!(atlas.may_impair(HostId(1)) && !atlas.may_impair(HostId(2)));
        atlas.restore(HostId(1));
        assert!(atlas.may_impair(HostId(2)) && !atlas.may_damage(9));
        atlas.damage(10);
        atlas.damage(11);
        assert!(atlas.may_damage(10) && !atlas.may_damage(12));
        atlas.heal(10);
        assert!(atlas.may_damage(12));
    }

    #[test]
    fn each_fault_is_off_in_some_runs_and_on_in_others() {
        let on = |seed| Atlas::swarm(&Rng::new(seed), promise()).is_on(Fault::NetReset);
        let runs = (0..300).filter(|seed| on(*seed)).count();
        assert!((150..250).contains(&runs), "on in {runs} of 300 runs");
    }

    #[test]
    fn calm_is_calm_and_counts_stay() {
        let survives = FaultSet::of(&[Fault::NetReset]);
        let promise = Promise { survives, ..promise() };
        let mut atlas = Atlas::fixed(&Rng::new(0), promise, FaultSet::ALL, 1_000_000);
        assert!(atlas.strike(Fault::NetReset) && !atlas.strike(Fault::NetDrop));
        atlas.calm();
        assert!(!atlas.strike(Fault::NetReset));
        assert_eq!(atlas.coverage().count(Fault::NetReset), 1);
        let missing = Coverage::new().missing(FaultSet::of(&[Fault::NetDrop]));
        assert_eq!(missing, [Fault::NetDrop]);
    }
}
