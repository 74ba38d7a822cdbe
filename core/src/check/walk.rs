//! A walk over all items of a tree that goes on behind what is damaged.
//!
//! # Invariants
//!
//! * It ends, whatever the blocks hold: each descent goes one level down from a height that is
//!   bounded, and the caller refuses a node it has seen before.
//! * A node that fails a check is told once, and nothing below it is looked at.
//!
//! What this module deliberately doesn't know: what the items mean.

use crate::block::{Cache, Pins};
use crate::error::{Corruption, Error, Stop};
use crate::format::BlockNo;
use crate::format::block::Magic;
use crate::format::btree::{BlockRef, HEIGHT_MAX, KEY_BYTES_MAX, Node, TreeRoot};

type KeyBuf = heapless::Vec<u8, KEY_BYTES_MAX>;

/// A node on the way from the root.
struct Step {
    at: BlockRef,
    /// What the walk has done with it.
    state: State,
    /// The item to be looked at next.
    slot: usize,
    low: KeyBuf,
    high: Option<KeyBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Met,
    Admitted,
    Checked,
}

/// Where a walk stands.
pub(super) struct Walk {
    kind: u8,
    height: u8,
    path: heapless::Vec<Step, HEIGHT_MAX>,
}

/// What a walk has come to.
pub(super) enum Advance<'c> {
    /// A reference to a node. Ask [`Walk::refuse`] not to follow it.
    Node(BlockNo),
    /// An item, and the block it stands in.
    Item(BlockNo, &'c [u8], &'c [u8]),
    /// Something that took no time to pass.
    Passed,
    /// A node that is not what led to it promised.
    Damaged(Error),
    /// There is nothing more.
    End,
}

fn key_buf(key: &[u8]) -> KeyBuf {
    KeyBuf::from_slice(key).expect("a parsed node has no longer keys")
}

impl Walk {
    /// Over nothing.
    pub(super) fn none() -> Walk {
        Walk { kind: 0, height: 0, path: heapless::Vec::new() }
    }

    /// Over the tree of this kind below a root that was verified.
    pub(super) fn new(kind: u8, root: &TreeRoot) -> Walk {
        let mut walk = Walk { kind, height: root.height, path: heapless::Vec::new() };
        if root.height > 0 {
            walk.push(root.node, KeyBuf::new(), None);
        }
        walk
    }

    fn push(&mut self, at: BlockRef, low: KeyBuf, high: Option<KeyBuf>) {
        let step = Step { at, state: State::Met, slot: 0, low, high };
        self.path.push(step).map_err(drop).expect("as deep as the tree is high");
    }

    /// The node just met is not to be followed.
    pub(super) fn refuse(&mut self) {
        self.path.pop();
    }

    /// Goes to the next thing. Stops only for a block.
    pub(super) fn advance<'c>(
        &mut self,
        cache: &'c mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Advance<'c>, Stop> {
        let level = usize::from(self.height) - self.path.len();
        let Some(step) = self.path.last_mut() else { return Ok(Advance::End) };
        let blkno = step.at.blkno();
        if step.state == State::Met {
            step.state = State::Admitted;
            return Ok(Advance::Node(blkno));
        }
        let frame = match cache.get(step.at, Magic::Btree, pins) {
            Ok(frame) => frame,
            Err(Stop::Wait(wait)) => return Err(wait.into()),
            Err(Stop::Fail(error)) => {
                self.path.pop();
                return Ok(Advance::Damaged(error));
            }
        };
        let node = Node::new(cache.block(frame));
        if step.state == State::Admitted {
            if let Err(what) = check(&node, self.kind, level, step) {
                self.path.pop();
                return Ok(Advance::Damaged(Error::Corrupt { blkno, what }));
            }
            step.state = State::Checked;
        }
        let slot = step.slot;
        if slot >= node.count() {
            self.path.pop();
            return Ok(Advance::Passed);
        }
        step.slot += 1;
        if level == 0 {
            let (key, value) = node.item(slot);
            return Ok(Advance::Item(blkno, key, value));
        }
        let low = if slot > 0 { key_buf(node.key(slot)) } else { step.low.clone() };
        let high = match slot + 1 < node.count() {
            true => Some(key_buf(node.key(slot + 1))),
            false => step.high.clone(),
        };
        self.push(node.child(slot), low, high);
        Ok(Advance::Passed)
    }
}

/// Checks a node against what led to it.
fn check(node: &Node<'_>, kind: u8, level: usize, step: &Step) -> Result<(), Corruption> {
    if node.kind() != kind {
        return Err(Corruption::Kind);
    }
    if usize::from(node.level()) != level {
        return Err(Corruption::Level);
    }
    // The first key of an inner node is empty: it stands for the low end of the range.
    let first = usize::from(level > 0);
    if first < node.count() {
        let too_low = match level > 0 {
            true => !step.low.is_empty() && node.key(first) <= &step.low[..],
            false => node.key(first) < &step.low[..],
        };
        let last = node.key(node.count() - 1);
        if too_low || step.high.as_ref().is_some_and(|high| last >= &high[..]) {
            return Err(Corruption::Order);
        }
    }
    Ok(())
}
