//! Electing the leader through the shared disk, and nothing but the disk.
//!
//! Each voter owns one block, its [`Ballot`](crate::format::quorum::Ballot), and writes no other.
//! A [`Voter`] claims, leads, and lets go by writing it; it learns of the others by reading theirs.
//! A [`Watcher`] only reads. No voter asks for votes: how many are configured, or run, decides
//! nothing, so one voter of seven can lead alone.
//!
//! ```text
//!   claim   CLAIMING r+1, flush | read all: no rival, no life | ELECTED, flush | read the roots
//!   commit  blocks, flush, root, flush | read all: no later round | answer
//! ```
//!
//! # Invariants
//!
//! * No two leaders are elected in one round, so no two have one term, and none shares its pair in
//!   the ring of roots with another of its round; but for one whose predecessor in the slot is gone
//!   and whose block was damaged, see below.
//! * A commit that was answered is in the history read by every leader of a later term.
//! * As long as clocks show the time that passes, at most one voter at a time may act.
//! * A leader that renews is deposed only by an owner's word, a configuration, or more mounts that
//!   reach another voter; never by a voter that starts, rejoins, or stands.
//! * After the last fault, one voter that runs is enough for a leader to listen again.
//!
//! # What this rests on
//!
//! 1. A write is seen by all readers at the latest when a flush submitted after its completion has
//!    completed. Until then it may be seen by some, by none, and may be lost.
//! 2. A read shows what stood on the disk at one moment between its submission and its completion.
//! 3. One sector is written whole or not at all, and what a ballot says fits into one.
//! 4. A request that has completed, even with an error, has no effect later. One that has not may
//!    have its effect at any time, for as long as its host was not booted anew or proven gone.
//! 5. One writer for each slot; see below.
//!
//! Time appears nowhere in this list. Clocks decide how long somebody *waits*, and so how long a
//! leader without a successor may go on answering from memory; they never decide what is durable.
//!
//! # Why a slot has one writer
//!
//! Its owner holds a lock ([`Exclusion`]) that lets one voter of a slot run at a time, on one boot
//! of one host at least, and that outlives all its I/O. Against a second host stand the slot's own
//! block and a watch. A voter that starts goes on only if the block's last writer was stopped in
//! good order, ran on the same host, or is vouched for (see [`Refusal`]); and before its first
//! write it watches the block for a lease, in which whoever is in the slot writes twice. After that
//! write it waits again, and claims only if a reading still shows the block as its own. What is
//! left is two starts in one slot in the same lease, one of them stopped for long between its last
//! look and its first write: an operator's mistake and a fault together, noticed with the next
//! scan.
//!
//! The watch is left out where the first reading shows that it can't see anybody:
//!
//! * *The last writer ran in this very boot of this host, and was not stopped in good order.* By
//!   the lock it is gone, with its I/O and its lease. A voter of another host that is in the slot
//!   would have written last; one that starts there is refused as long as this stands, unless
//!   somebody vouches for a voter which its own host may start again. A reboot is told by the
//!   boot's id, so two hosts of one name (copies of one machine) don't pass for each other.
//! * *The lock reaches as far as the volume does, and the block is blank, or its last writer was
//!   stopped.* Then nobody is in the slot, and the lock keeps out whoever else starts. In this case
//!   there is no second wait either.
//!
//! A block that says stopped proves nothing without such a lock: two hosts may both have just found
//! it so. There the watch stays.
//!
//! # When the own block is damaged
//!
//! A block that can be read and is invalid doesn't tell who wrote it last. Whoever that was may be
//! stopped on another host, with a write under way that would take a claim made here from the sight
//! of others; waiting for any time is no proof that it is not. So the voter is refused, unless the
//! lock reaches as far as the volume, by which nobody else has anything under way, or an operator
//! vouches for it. Then it watches for the longest lease that a block can speak of, because this
//! one may have spoken of any: who is in the slot in spite of all heals the block in that time, and
//! a reading that was wrong is made good by the next one. After that the voter writes the block
//! anew, as one that was never elected, and claims or follows like any other: what claims and
//! leases there are in other slots, it still sees. Which rounds its slot was elected in it learns
//! from the roots, by [`Voter::outranked`]. A term without a durable root may come a second time;
//! its first holder is gone with all its I/O, and nobody was ever admitted in it.
//!
//! # Why an answered commit is not lost
//!
//! Say that a slot *stands* for round `r` from the moment its claim is durable. It stands for `r`
//! or a later round for ever, unless it withdraws without having been elected: a resignation, a
//! stop and a successor in the slot keep the last term held.
//!
//! **Two candidates of one round.** Each makes its claim durable before it begins to read. Whoever
//! made it durable last reads the other's, or a later state of that slot, and withdraws. So at most
//! one of them is elected.
//!
//! **Two leaders, L of round `l` and its successor S of a later round `s`.** L commits: its root is
//! durable at time `A`, and after `A` it begins to read S's block, at some moment `B`. S's claim is
//! durable at time `C`, and after `C` it begins to read the roots.
//! * `B` after `C`: L sees a slot that stands for a round later than its own, and answers nothing.
//!   Its root may be read by S or not; both are right for a commit that nobody was told of.
//! * `B` before `C`: then `A < B < C`, so S reads L's root, and what S commits is made from it.
//!
//! **A stop anywhere** only moves these moments. L stopped ...
//! * before its root is submitted, or the root being in flight: it lands in L's own pair of the
//!   ring, whenever that is, with L's term; readers prefer S's. `A` is then late, hence `B` after
//!   `C`: unanswered.
//! * between the root's flush and the reading, or with reads in flight: each block is read at one
//!   moment `B` after `A`, and the argument holds for that moment. L may have seen S's block before
//!   `C` and be stopped after that: the answer is late, and still right.
//! * with a renewal in flight: it lands in L's own block, which says what it always said: `l < s`.
//! * with its lease believed valid because its clock stood still: it goes on, until the next
//!   reading for a commit or the next scan shows S. It answers no commit meanwhile, but may answer
//!   from memory; that is what a second clock, or a witness beside the node, is for.
//!
//! S stopped ...
//! * with its claim in flight: the claim is not durable, S has read nothing that counts.
//! * between claim and ELECTED: others see a claim without a sign of life and wait it out, as they
//!   would a lease. S does nothing with it after a lease from the claim's submission.
//! * with ELECTED in flight: its owner has not been told, and is told nothing once a lease from the
//!   submission has passed.
//! * after that, S is an L.
//!
//! # Why two leases don't overlap
//!
//! A voter claims when no other slot that claims or leads shows a sign of life, and takes office
//! only if a reading after its own claim finds the same. A slot shows none when it was read
//! unchanged from the completion of one read to the beginning of another, a whole
//! [`Timing::observe_ms`] later. What was seen first had been submitted before that, so its lease,
//! which counts from the submission, is over, as far as the two clocks' rates are within
//! [`DRIFT_PERCENT`]. A newer renewal had not landed by then; when it completes, its sender finds
//! its lease over, and a term whose lease was over once does not come back. A claim counts as the
//! first renewal, ELECTED as the second.
//!
//! Two that claim at the same time see each other, withdraw both, and come back after pauses drawn
//! at random from a range that doubles. To meet less often, a voter also holds back before it
//! claims for the first time, the longer the more voters that write come before it in the order of
//! slots, unless all other configured slots are blank or stopped: nobody is there to meet.
//!
//! When somebody has lost the leader ([`Voter::watch_closely`]), a voter that follows reads more
//! often for a moment. It believes nobody but the blocks: of a leader that was killed it sees the
//! last renewal soon, and so waits little longer than it must; of one that has let go it sees that.
//!
//! The lease of an earlier voter in the *own* slot needs no wait: it is gone (5), and so is its
//! lease. Where no other slot claims or leads there is no lease to wait for at all.
//!
//! # What can't be read
//!
//! A block that is invalid or can't be read says nothing: nobody can tell whether its voter claims.
//! Torn writes don't make a block invalid (3), so this is damage. While a *configured* voter's
//! block is so, no voter is elected and no commit is answered; its voter heals it with its next
//! write, and an operator can configure the voter out, which vouches that it is gone. Of a slot
//! that is not configured a valid block counts like any other, and only what can't be read is left
//! out. A newer configuration in any block ends the term of a leader that goes by an older one.
//! Retries come after pauses that double.
//!
//! A leader whose device denies it these readings for longer than such a pause, while its renewals
//! get through, lets go: it can answer no commit, and keeps whoever can from office. One that reads
//! damage stays, because all others read the same.
//!
//! What this module deliberately doesn't know: roots, connections, what a leader does, and who is
//! right. It never imports `block`, `btree`, `net` or `lock`.

mod scan;
mod timing;
mod voter;
mod watcher;

pub use scan::Sight;
pub use timing::{DRIFT_PERCENT, Timing, TimingError};
pub use voter::{
    CheckToken, Config, ConfigError, Exclusion, Identity, Loss, Notice, Refusal, Role, Slots,
    Trouble, Voter, VoterBlocks, Vouched,
};
pub use watcher::{Leader, Watcher, WatcherBlocks};

#[cfg(test)]
mod tests;
