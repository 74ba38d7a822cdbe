//! Walking a tree: lookups, and steps of an iteration in both directions.

use super::Tree;
use crate::block::{Cache, FrameId, Pins};
use crate::error::{Corruption, Error, Stop};
use crate::format::BlockNo;
use crate::format::block::Magic;
use crate::format::btree::{BlockRef, HEIGHT_MAX, KEY_BYTES_MAX, Node};
use heapless::Vec;

/// An item of a tree. Valid until the cache is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<'c> {
    /// Address of the leaf it stands in, to be named if the item turns out to mean nothing.
    pub leaf: BlockNo,
    /// Its key.
    pub key: &'c [u8],
    /// Its value.
    pub value: &'c [u8],
}

/// What a leaf says of the items above a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Above {
    /// The next one has this key.
    Item(Key),
    /// It is in another leaf, and its key is not below this one. There may be none.
    Leaf(Key),
    /// There is none.
    Nothing,
}

/// A key of its own, for when the one in a node can't be borrowed.
pub type Key = Vec<u8, KEY_BYTES_MAX>;

/// A copy of a key that is no longer than keys may be.
pub(super) fn owned(key: &[u8]) -> Key {
    Key::from_slice(key).expect("keys in nodes are bounded")
}

/// Where a walk goes.
#[derive(Clone, Copy)]
pub(super) enum Probe<'k> {
    /// To the leaf that covers the key.
    At(&'k [u8]),
    /// To the leaf that covers what is just below the key.
    Below(&'k [u8]),
}

impl Probe<'_> {
    /// The child of an inner node where it goes on.
    pub(super) fn slot(self, node: &Node<'_>) -> usize {
        match self {
            Probe::At(key) => node.search(key).unwrap_or_else(|above| above.saturating_sub(1)),
            Probe::Below(key) => node.search(key).unwrap_or_else(|above| above).saturating_sub(1),
        }
    }
}

/// The keys a node may hold: from the separator at `low`, if any, to below the one at `high`.
#[derive(Clone, Copy, Default)]
pub(super) struct Range {
    low: Option<(FrameId, usize)>,
    high: Option<(FrameId, usize)>,
}

impl Range {
    /// The range of the child at `slot` of a node of this range.
    pub(super) fn of_child(self, frame: FrameId, node: &Node<'_>, slot: usize) -> Range {
        Range {
            low: if slot > 0 { Some((frame, slot)) } else { self.low },
            high: if slot + 1 < node.count() { Some((frame, slot + 1)) } else { self.high },
        }
    }
}

/// A node on a path.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) frame: FrameId,
    /// The child the path goes on with; 0 in a leaf.
    pub(super) slot: usize,
    pub(super) range: Range,
}

/// From the root to a leaf.
pub(super) type Path = Vec<Step, HEIGHT_MAX>;

/// The node in a frame.
pub(super) fn node<'c>(cache: &'c Cache<'_>, frame: FrameId) -> Node<'c> {
    Node::new(cache.block(frame))
}

impl Tree {
    /// The value of the key, if the tree holds it.
    pub fn lookup<'c>(
        &self,
        key: &[u8],
        cache: &'c mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Option<&'c [u8]>, Stop> {
        let path = self.walk(Probe::At(key), cache, pins)?;
        let Some(leaf) = path.last() else { return Ok(None) };
        let node = node(cache, leaf.frame);
        Ok(node.search(key).ok().map(|index| node.item(index).1))
    }

    /// The item with the lowest key that is not below this one. `&[]` finds the first item.
    pub fn next<'c>(
        &self,
        key: &[u8],
        cache: &'c mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Option<Item<'c>>, Stop> {
        let Some((frame, index)) = self.seek(key, cache, pins)? else { return Ok(None) };
        let (key, value) = node(cache, frame).item(index);
        Ok(Some(Item { leaf: cache.address(frame).blkno(), key, value }))
    }

    /// Where the item with the lowest key is that is not below this one.
    fn seek(
        &self,
        key: &[u8],
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Option<(FrameId, usize)>, Stop> {
        let mark = pins.mark();
        let mut from = None;
        loop {
            let key = from.as_deref().unwrap_or(key);
            let path = self.walk(Probe::At(key), cache, pins)?;
            let Some(leaf) = path.last() else { return Ok(None) };
            let leaf_node = node(cache, leaf.frame);
            let index = leaf_node.search(key).unwrap_or_else(|above| above);
            if index < leaf_node.count() {
                return Ok(Some((leaf.frame, index)));
            }
            let Some((parent, slot)) = leaf.range.high else { return Ok(None) };
            from = Some(owned(node(cache, parent).key(slot)));
            pins.drop_to(mark);
        }
    }

    /// The items from this key on, as far as the leaf has them that [`next`](Self::next) is in.
    /// None there: the tree ends before that.
    pub fn leaf_from<'c>(
        &self,
        key: &[u8],
        cache: &'c mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<impl Iterator<Item = Item<'c>> + use<'c>, Stop> {
        let found = self.seek(key, cache, pins)?;
        let leaf = found.map(|(frame, index)| {
            let leaf_node: Node<'c> = node(cache, frame);
            (leaf_node, cache.address(frame).blkno(), index)
        });
        Ok(leaf.into_iter().flat_map(|(node, leaf, index)| {
            (index..node.count()).map(move |index| {
                let (key, value) = node.item(index);
                Item { leaf, key, value }
            })
        }))
    }

    /// The item with the highest key that is not above this one. `&[0xff; KEY_BYTES_MAX]` finds the
    /// last item.
    pub fn prev<'c>(
        &self,
        key: &[u8],
        cache: &'c mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Option<Item<'c>>, Stop> {
        let mark = pins.mark();
        let mut below: Option<Key> = None;
        let (frame, index) = loop {
            let probe = below.as_deref().map_or(Probe::At(key), Probe::Below);
            let path = self.walk(probe, cache, pins)?;
            let Some(leaf) = path.last() else { return Ok(None) };
            let leaf_node = node(cache, leaf.frame);
            let end = match probe {
                Probe::At(key) => leaf_node.search(key).map_or_else(|above| above, |at| at + 1),
                Probe::Below(key) => leaf_node.search(key).unwrap_or_else(|above| above),
            };
            if end > 0 {
                break (leaf.frame, end - 1);
            }
            let Some((parent, slot)) = leaf.range.low else { return Ok(None) };
            below = Some(owned(node(cache, parent).key(slot)));
            pins.drop_to(mark);
        };
        let (key, value) = node(cache, frame).item(index);
        Ok(Some(Item { leaf: cache.address(frame).blkno(), key, value }))
    }

    /// The item with the highest key that is not above this one, and what is above it, as far as
    /// the leaf can tell that the key belongs to: for those who would not read another to know
    /// exactly.
    pub fn around<'c>(
        &self,
        key: &[u8],
        cache: &'c mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(Option<Item<'c>>, Above), Stop> {
        let mark = pins.mark();
        let path = self.walk(Probe::At(key), cache, pins)?;
        let Some(leaf) = path.last() else { return Ok((None, Above::Nothing)) };
        let leaf_node = node(cache, leaf.frame);
        let index = leaf_node.search(key).map_or_else(|above| above, |at| at + 1);
        let above = match leaf.range.high {
            _ if index < leaf_node.count() => Above::Item(owned(leaf_node.key(index))),
            Some((parent, slot)) => Above::Leaf(owned(node(cache, parent).key(slot))),
            None => Above::Nothing,
        };
        if let Some(index) = index.checked_sub(1) {
            let (key, value) = node(cache, leaf.frame).item(index);
            let leaf = cache.address(leaf.frame).blkno();
            return Ok((Some(Item { leaf, key, value }), above));
        }
        pins.drop_to(mark);
        Ok((self.prev(key, cache, pins)?, above))
    }

    /// The item with the lowest key.
    pub fn first<'c>(
        &self,
        cache: &'c mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Option<Item<'c>>, Stop> {
        self.next(&[], cache, pins)
    }

    /// The item with the highest key.
    pub fn last<'c>(
        &self,
        cache: &'c mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Option<Item<'c>>, Stop> {
        self.prev(&[0xff; KEY_BYTES_MAX], cache, pins)
    }

    /// Obtains the root and its child of this number, for what is to be done with them later.
    /// Whether there is such a child.
    pub fn has_upper(
        &self,
        child: usize,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<bool, Stop> {
        let Some(below) = self.height.checked_sub(2) else { return Ok(false) };
        let frame = self.fetch(self.node, below + 1, Range::default(), cache, pins)?;
        let root = node(cache, frame);
        if child >= root.count() {
            return Ok(false);
        }
        let (at, range) = (root.child(child), Range::default().of_child(frame, &root, child));
        self.fetch(at, below, range, cache, pins)?;
        Ok(true)
    }

    /// Obtains the nodes from the root to the leaf. Empty if the tree is.
    pub(super) fn walk(
        &self,
        probe: Probe<'_>,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Path, Stop> {
        let mut path = Path::new();
        let (mut at, mut range) = (self.node, Range::default());
        for level in (0..self.height).rev() {
            let frame = self.fetch(at, level, range, cache, pins)?;
            let node = node(cache, frame);
            let slot = if level > 0 { probe.slot(&node) } else { 0 };
            path.push(Step { frame, slot, range }).map_err(drop).expect("the height is bounded");
            if level > 0 {
                (at, range) = (node.child(slot), range.of_child(frame, &node, slot));
            }
        }
        Ok(path)
    }

    /// Obtains a node and checks it against what led to it.
    pub(super) fn fetch(
        &self,
        at: BlockRef,
        level: u8,
        range: Range,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<FrameId, Stop> {
        let frame = cache.get(at, Magic::Btree, pins)?;
        let found = node(cache, frame);
        let corrupt = |what| Err(Error::Corrupt { blkno: at.blkno(), what }.into());
        if found.kind() != self.kind.0 {
            return corrupt(Corruption::Kind);
        }
        if found.level() != level {
            return corrupt(Corruption::Level);
        }
        // The first key of an inner node is empty: it stands for the low end of the range.
        let first = usize::from(level > 0);
        if first < found.count() {
            let key = found.key(first);
            let too_low = range.low.is_some_and(|(parent, slot)| {
                let low = node(cache, parent).key(slot);
                if level > 0 { key <= low } else { key < low }
            });
            let last = found.key(found.count() - 1);
            let too_high =
                range.high.is_some_and(|(parent, slot)| last >= node(cache, parent).key(slot));
            if too_low || too_high {
                return corrupt(Corruption::Order);
            }
        }
        Ok(frame)
    }
}
