//! What was asked of mounts and answered, in rounds: each is played in a directory of its own, by
//! processes on all mounts, and checked when it is over.
//!
//! # Invariants
//!
//! * Moments are counted, not timed: an operation begins before it is handed to a mount, and ends
//!   when its answer is taken. So the span that is remembered is never shorter than it was.
//! * With a mount that dies, changes may go that were answered and not durable. Others can't see
//!   that before the mount's lease is over, so a round is checked up to the last moment at which
//!   each mount that played in it is known to have had its lease. What was answered later counts as
//!   unknown.
//! * So a round that is over is checked when all who played in it are known to have had their lease
//!   at its end, or have left, or as soon as one of them has died. One that was asleep meanwhile
//!   may not know yet that it has. One whose clock stood still may even answer without
//!   its lease: its answers say nothing until it has asked for the lease anew.
//!
//! What this module deliberately doesn't know: how an order is looked for.

use super::linear::{Operation, Outcome, Verdict, check};
use crate::model::Done;
use crate::trace::HostId;
use outrider_core::client::op::{Op, OpError};
use outrider_core::format::Ino;
use outrider_core::format::item::Time;
use std::collections::{BTreeMap, BTreeSet};

/// Operations of a round.
const ROUND_OPERATIONS: usize = 160;

/// The permissions of a round's directory.
pub const DIR_PERMISSIONS: u16 = 0o755;

/// A mount from its start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Life {
    /// Where.
    pub host: HostId,
    /// Which of the host's mounts.
    pub number: u32,
}

/// An operation under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    round: u32,
    at: usize,
}

#[derive(Debug, Default)]
struct Round {
    dir: Option<(Ino, Time)>,
    being_made: bool,
    operations: Vec<Operation>,
    under_way: usize,
    /// Who played and hasn't left.
    lives: BTreeSet<Life>,
    /// When its last operation ended.
    ended: u64,
}

/// How much was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checked {
    /// Rounds that were found right.
    pub rounds: u64,
    /// Rounds that a mount's death has cut short.
    pub cut: u64,
    /// Rounds of which no order was found within the tries.
    pub undecided: u64,
    /// Operations in all of them.
    pub operations: u64,
    /// Pairs of operations that were under way at the same time.
    pub overlaps: u64,
}

/// All rounds.
#[derive(Debug, Default)]
pub struct History {
    moment: u64,
    clock: i64,
    round: u32,
    rounds: BTreeMap<u32, Round>,
    /// The last moment at which each mount is known to have had its lease.
    good: BTreeMap<Life, u64>,
    /// Nothing happens to mounts any more.
    closed: bool,
    checked: Checked,
    wrong: Option<String>,
}

impl History {
    /// A moment after all others.
    pub fn moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// A time that no other request has.
    pub fn time(&mut self) -> Time {
        self.clock += 1;
        Time { sec: 2_000_000 + self.clock, nsec: 0 }
    }

    /// The round that is played.
    #[must_use]
    pub fn round(&self) -> u32 {
        self.round
    }

    /// The directory of a round, when it is there.
    #[must_use]
    pub fn dir(&self, round: u32) -> Option<Ino> {
        self.rounds.get(&round).and_then(|round| round.dir).map(|(ino, _)| ino)
    }

    /// Whether the directory of the round is still to be made, by whoever asks first.
    pub fn is_to_be_made(&mut self, round: u32) -> bool {
        let round = self.rounds.entry(round).or_default();
        !std::mem::replace(&mut round.being_made, true)
    }

    /// The directory has been made at this time; or it could not be made, and there is another
    /// round.
    pub fn made(&mut self, round: u32, life: Life, dir: Option<(Ino, Time)>) {
        match self.rounds.get_mut(&round).filter(|_| dir.is_some()) {
            Some(at) => {
                at.dir = dir;
                at.lives.insert(life);
            }
            None => self.end_round(round),
        }
    }

    /// An operation begins. Nothing of it is kept if its round is over.
    pub fn begin(
        &mut self,
        round: u32,
        life: Life,
        op: &Op,
        data: &[u8],
        now: Time,
        room: Option<usize>,
    ) -> Option<Ticket> {
        let begun = self.moment();
        let at = self.rounds.get_mut(&round)?;
        at.lives.insert(life);
        self.checked.overlaps += at.under_way as u64;
        at.under_way += 1;
        at.operations.push(Operation {
            mount: life,
            op: op.clone(),
            data: data.to_vec(),
            now,
            room,
            begun,
            ended: u64::MAX,
            outcome: Outcome::Unknown,
        });
        let ticket = Ticket { round, at: at.operations.len() - 1 };
        if at.operations.len() >= ROUND_OPERATIONS {
            self.end_round(round);
        }
        Some(ticket)
    }

    /// An operation has ended; how, if that is known.
    pub fn end(&mut self, ticket: Ticket, result: Option<&Result<Done, OpError>>) {
        let ended = self.moment();
        let Some(round) = self.rounds.get_mut(&ticket.round) else { return };
        let operation = &mut round.operations[ticket.at];
        (operation.ended, round.ended) = (ended, ended);
        if let Some(result) = result.filter(|result| **result != Err(OpError::Io)) {
            operation.outcome = Outcome::Known(result.clone());
        }
        round.under_way -= 1;
        self.check_if_over(ticket.round);
    }

    fn end_round(&mut self, round: u32) {
        if self.round == round {
            self.round += 1;
            self.check_if_over(round);
        }
    }

    /// Checks a round, if it is over and nobody who played in it can have died before its end.
    fn check_if_over(&mut self, round: u32) {
        let good = |life: &Life, until| self.good.get(life).is_some_and(|good| *good >= until);
        let over = |at: &Round| {
            let sure = self.closed || at.lives.iter().all(|life| good(life, at.ended));
            round < self.round && at.under_way == 0 && sure
        };
        if self.rounds.get(&round).is_some_and(over) {
            self.judge(round, u64::MAX);
        }
    }

    fn check_all(&mut self) {
        let rounds: Vec<u32> = self.rounds.keys().copied().collect();
        rounds.into_iter().for_each(|round| self.check_if_over(round));
    }

    /// Ends all rounds: from now on no mount dies.
    pub fn close(&mut self) {
        self.closed = true;
        self.end_round(self.round);
        self.check_all();
    }

    /// This mount had its lease at this moment.
    pub fn good(&mut self, life: Life, until: u64) {
        if self.good.insert(life, until) < Some(until) {
            self.check_all();
        }
    }

    /// A mount has made all that it did durable, and ended.
    pub fn left(&mut self, life: Life) {
        for round in self.rounds.values_mut() {
            round.lives.remove(&life);
        }
        self.check_all();
    }

    /// A mount has ended, which had its lease at this moment.
    pub fn died(&mut self, life: Life, good_until: u64) {
        let played = |(_, round): &(&u32, &Round)| round.lives.contains(&life);
        let cut: Vec<u32> = self.rounds.iter().filter(played).map(|(round, _)| *round).collect();
        for round in cut {
            self.checked.cut += 1;
            let others = self.rounds[&round].lives.iter().filter(|other| **other != life);
            let good = others.map(|other| self.good.get(other).copied().unwrap_or_default());
            let until = good.fold(good_until, u64::min);
            self.judge(round, until);
            if self.round == round {
                self.round += 1;
            }
        }
    }

    /// Checks a round up to this moment, and forgets it.
    fn judge(&mut self, number: u32, until: u64) {
        let Some(mut round) = self.rounds.remove(&number) else { return };
        let Some((dir, made)) = round.dir else { return };
        for operation in round.operations.iter_mut().filter(|of| of.ended > until) {
            operation.outcome = Outcome::Unknown;
        }
        self.checked.operations += round.operations.len() as u64;
        match check(&round.operations, dir, DIR_PERMISSIONS, made) {
            Verdict::Linearizable => self.checked.rounds += 1,
            Verdict::Undecided => self.checked.undecided += 1,
            Verdict::Not(why) => {
                self.wrong.get_or_insert(format!("round {number} is not linearizable: {why}"));
            }
        }
    }

    /// How much was checked.
    #[must_use]
    pub fn checked(&self) -> Checked {
        self.checked
    }

    /// The first thing that was found wrong.
    #[must_use]
    pub fn wrong(&self) -> Option<&String> {
        self.wrong.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::{History, Life};
    use crate::model::Done;
    use crate::trace::HostId;
    use outrider_core::client::op::{NameBuf, Op, OpError, Reply};
    use outrider_core::format::Ino;

    const DIR: Ino = Ino(9);
    const ONE: Life = Life { host: HostId(1), number: 1 };
    const OTHER: Life = Life { host: HostId(2), number: 1 };

    fn begun() -> History {
        let mut history = History::default();
        assert!(history.is_to_be_made(0) && !history.is_to_be_made(0));
        let now = history.time();
        history.made(0, ONE, Some((DIR, now)));
        history
    }

    /// Somebody asks for a name, and is told this.
    fn ask(history: &mut History, life: Life, op: &Op, result: &Result<Done, OpError>) -> u64 {
        let now = history.time();
        let ticket = history.begin(0, life, op, &[], now, None).unwrap();
        history.end(ticket, Some(result));
        history.moment()
    }

    fn rmdir() -> Op {
        Op::Rmdir { dir: DIR, name: NameBuf::parse(b"x").unwrap() }
    }

    const ABSENT: Result<Done, OpError> = Err(OpError::NotFound);
    const REMOVED: Result<Done, OpError> = Ok(Done { reply: Reply::Empty, data: Vec::new() });

    #[test]
    fn a_round_is_judged_when_it_is_over() {
        let mut history = begun();
        ask(&mut history, ONE, &rmdir(), &ABSENT);
        history.close();
        assert_eq!((history.checked().rounds, history.round()), (1, 1));
        let mut history = begun();
        ask(&mut history, ONE, &rmdir(), &REMOVED);
        assert!(history.wrong().is_none(), "it isn't over");
        history.close();
        assert!(history.wrong().is_some(), "nobody had made it");
    }

    #[test]
    fn a_round_waits_for_whoever_may_have_died() {
        let begun = || {
            let mut history = begun();
            let good = ask(&mut history, ONE, &rmdir(), &ABSENT);
            // Somebody else sees what it can't have seen, had the first not died.
            ask(&mut history, OTHER, &rmdir(), &REMOVED);
            history.end_round(0);
            assert!(history.wrong().is_none() && history.checked().rounds == 0);
            let now = history.moment();
            history.good(OTHER, now);
            assert!(history.wrong().is_none() && history.checked().rounds == 0);
            (history, good)
        };
        let (mut history, good) = begun();
        history.died(ONE, good);
        assert!(history.wrong().is_none());
        assert_eq!((history.checked().cut, history.checked().rounds), (1, 1));
        let (mut history, good) = begun();
        history.good(ONE, good);
        assert!(history.wrong().is_none());
        let now = history.moment();
        history.good(ONE, now);
        assert!(history.wrong().is_some(), "it hadn't died");
        let (mut history, _) = begun();
        history.left(ONE);
        assert!(history.wrong().is_some(), "it had left");
    }

    #[test]
    fn what_came_after_the_last_lease_of_a_dead_mount_is_not_judged() {
        let mut history = begun();
        let good = ask(&mut history, ONE, &rmdir(), &ABSENT);
        ask(&mut history, OTHER, &rmdir(), &REMOVED);
        history.died(ONE, good);
        assert!(history.wrong().is_none());
        assert_eq!((history.checked().cut, history.checked().rounds), (1, 1));
        let mut history = begun();
        let good = ask(&mut history, OTHER, &rmdir(), &REMOVED);
        history.good(OTHER, good);
        history.died(ONE, good);
        assert!(history.wrong().is_some());
        // Another that was asleep may have lost what it answered, as well.
        let mut history = begun();
        ask(&mut history, OTHER, &rmdir(), &ABSENT);
        let asleep_since = history.moment();
        history.good(OTHER, asleep_since);
        let good = ask(&mut history, OTHER, &rmdir(), &REMOVED);
        history.died(ONE, good);
        assert!(history.wrong().is_none());
        assert_eq!((history.checked().cut, history.checked().rounds), (1, 1));
        // Who has left has lost nothing.
        let mut history = begun();
        ask(&mut history, OTHER, &rmdir(), &ABSENT);
        history.left(ONE);
        history.died(ONE, 0);
        assert_eq!(history.checked().cut, 0);
    }
}
