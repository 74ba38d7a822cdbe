//! Changing a tree: plans, and their application.

use super::node::{NodeMut, cost, fits};
use super::walk::{Key, Path, Probe, Range, Step, node, owned};
use super::{Tree, UPDATES_MAX};
use crate::block::{Cache, FrameId, Pins, Plan, Reservation};
use crate::error::{Error, Stop};
use crate::format::btree::{
    BlockRef, HEIGHT_MAX, INNER_ITEMS_MAX, KEY_BYTES_MAX, NODE_BYTES, Node, VALUE_BYTES_MAX,
};
use zerocopy::IntoBytes;

/// A leaf with fewer bytes used is underfull.
const LEAF_BYTES_MIN: usize = NODE_BYTES / 4;
/// An inner node with fewer items is underfull.
const INNER_ITEMS_MIN: usize = INNER_ITEMS_MAX / 4;
/// Siblings are merged if the result is no larger, so that the next insert doesn't split it again.
const LEAF_BYTES_MERGED: usize = NODE_BYTES * 3 / 4;
/// As for leaves, in items.
const INNER_ITEMS_MERGED: usize = INNER_ITEMS_MAX * 3 / 4;

/// A node that was split off to the right, to be put into the parent.
struct Split {
    separator: Key,
    right: BlockRef,
}

impl Tree {
    /// Plans to insert a key, which must not be there: [`Error::Exists`].
    pub fn plan_insert(
        &self,
        key: &[u8],
        value_bytes: usize,
        plan: &mut Plan,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(), Stop> {
        match self.plan_update(key, value_bytes, plan, cache, pins)? {
            Some(_) => Err(Error::Exists.into()),
            None => Ok(()),
        }
    }

    /// Plans to replace the value of a key, which must be there: [`Error::NotFound`].
    pub fn plan_replace(
        &self,
        key: &[u8],
        value_bytes: usize,
        plan: &mut Plan,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(), Stop> {
        match self.plan_update(key, value_bytes, plan, cache, pins)? {
            Some(_) => Ok(()),
            None => Err(Error::NotFound.into()),
        }
    }

    /// Plans to insert a key, or to replace its value.
    pub fn plan_put(
        &self,
        key: &[u8],
        value_bytes: usize,
        plan: &mut Plan,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(), Stop> {
        self.plan_update(key, value_bytes, plan, cache, pins).map(drop)
    }

    /// Plans to change the key's value. What the item takes of its leaf now, if it is there.
    fn plan_update(
        &self,
        key: &[u8],
        value_bytes: usize,
        plan: &mut Plan,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Option<usize>, Stop> {
        assert!(!key.is_empty() && key.len() <= KEY_BYTES_MAX && value_bytes <= VALUE_BYTES_MAX);
        let path = self.walk(Probe::At(key), cache, pins)?;
        let held = found(&path, key, cache);
        if usize::from(self.height) == HEIGHT_MAX
            && node(cache, path[0].frame).count() + UPDATES_MAX as usize > INNER_ITEMS_MAX
        {
            return Err(Error::NoSpace.into());
        }
        begin_update(plan, held);
        plan.add_creates(u32::from(self.height).max(1) + 1);
        touch_path(&path, plan, cache)?;
        Ok(held)
    }

    /// Plans to delete a key, which must be there: [`Error::NotFound`].
    pub fn plan_delete(
        &self,
        key: &[u8],
        plan: &mut Plan,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(), Stop> {
        let path = self.walk(Probe::At(key), cache, pins)?;
        let Some(held) = found(&path, key, cache) else {
            return Err(Error::NotFound.into());
        };
        begin_update(plan, Some(held));
        plan.deletes += 1;
        touch_path(&path, plan, cache)?;
        for pair in path.windows(2) {
            if may_underflow(&node(cache, pair[1].frame), plan) {
                self.plan_siblings(&pair[0], plan, cache, pins)?;
            }
        }
        Ok(())
    }

    /// Pins the siblings of the child that the step leads to.
    fn plan_siblings(
        &self,
        parent: &Step,
        plan: &mut Plan,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(), Stop> {
        for slot in [parent.slot.checked_sub(1), parent.slot.checked_add(1)].into_iter().flatten() {
            let node = node(cache, parent.frame);
            if slot < node.count() {
                let range = parent.range.of_child(parent.frame, &node, slot);
                let (at, level) = (node.child(slot), node.level() - 1);
                let frame = self.fetch(at, level, range, cache, pins)?;
                let home = Some((parent.frame, slot));
                cache.touch(frame, home, plan)?;
            }
        }
        Ok(())
    }

    /// Inserts the key, or replaces its value. Planned with this key and this length of value.
    pub fn put(
        &mut self,
        key: &[u8],
        value: &[u8],
        update: &mut Reservation,
        cache: &mut Cache<'_>,
    ) {
        let path = self.dirty_path(key, update, cache);
        let split = match path.last() {
            Some(leaf) => self.put_in_leaf(leaf.frame, &path, key, value, update, cache),
            None => {
                let leaf = self.create(0, update, cache);
                NodeMut::new(cache.block_mut(leaf)).insert(0, key, value);
                (self.node, self.height) = (cache.address(leaf), 1);
                None
            }
        };
        self.put_split(split, &path, update, cache);
        cache.settle_update();
    }

    fn put_in_leaf(
        &self,
        leaf: FrameId,
        path: &Path,
        key: &[u8],
        value: &[u8],
        update: &mut Reservation,
        cache: &mut Cache<'_>,
    ) -> Option<Split> {
        let mut page = NodeMut::new(cache.block_mut(leaf));
        let index = match page.node().search(key) {
            Ok(index) if page.node().item(index).1.len() == value.len() => {
                page.overwrite(index, value);
                return None;
            }
            Ok(index) => {
                page.remove(index..index + 1);
                index
            }
            Err(index) => index,
        };
        if fits(&page.node(), cost(key, value)) {
            page.insert(index, key, value);
            return None;
        }
        let at = if index == page.node().count() && is_rightmost(path, cache) {
            index
        } else {
            split_point(&node(cache, leaf), index, cost(key, value))
        };
        let right = self.split_off(leaf, index, at, (key, value), update, cache);
        let (low, high) = (node(cache, leaf), node(cache, right));
        let separator = separator(low.key(low.count() - 1), high.key(0));
        Some(Split { separator, right: cache.address(right) })
    }

    /// Puts what was split off into the nodes above the leaf, the root last.
    fn put_split(
        &mut self,
        split: Option<Split>,
        path: &Path,
        update: &mut Reservation,
        cache: &mut Cache<'_>,
    ) {
        let Some(mut split) = split else { return };
        for step in path.iter().rev().skip(1) {
            match self.put_in_inner(step, path, &split, update, cache) {
                Some(above) => split = above,
                None => return,
            }
        }
        assert!(usize::from(self.height) < HEIGHT_MAX, "checked by the plan");
        let root = self.create(self.height, update, cache);
        let mut page = NodeMut::new(cache.block_mut(root));
        page.insert(0, &[], self.node.as_bytes());
        page.insert(1, &split.separator, split.right.as_bytes());
        (self.node, self.height) = (cache.address(root), self.height + 1);
    }

    fn put_in_inner(
        &self,
        step: &Step,
        path: &Path,
        split: &Split,
        update: &mut Reservation,
        cache: &mut Cache<'_>,
    ) -> Option<Split> {
        let mut page = NodeMut::new(cache.block_mut(step.frame));
        let (index, count) = (step.slot + 1, page.node().count());
        if count < INNER_ITEMS_MAX {
            page.insert(index, &split.separator, split.right.as_bytes());
            return None;
        }
        let append = index == count && is_rightmost(path, cache);
        let at = if append { count * 3 / 4 } else { count / 2 };
        let item = (&*split.separator, split.right.as_bytes());
        let right = self.split_off(step.frame, index, at, item, update, cache);
        let separator = owned(node(cache, right).key(0));
        set_key(right, 0, &[], cache);
        Some(Split { separator, right: cache.address(right) })
    }

    /// Splits a node before item `at` of the sequence that the new item, standing at `index`, is
    /// part of. Returns the new right sibling.
    fn split_off(
        &self,
        left: FrameId,
        index: usize,
        at: usize,
        (key, value): (&[u8], &[u8]),
        update: &mut Reservation,
        cache: &mut Cache<'_>,
    ) -> FrameId {
        let right = self.create(node(cache, left).level(), update, cache);
        let goes_left = index < at;
        let first = if goes_left { at - 1 } else { at };
        let (block, from, scratch) = cache.block_pair(right, left);
        let from = Node::new(from);
        let moved = first..from.count();
        NodeMut::new((block, scratch)).copy_from(0, &from, moved.clone());
        NodeMut::new(cache.block_mut(left)).remove(moved);
        let (target, index) = if goes_left { (left, index) } else { (right, index - at) };
        NodeMut::new(cache.block_mut(target)).insert(index, key, value);
        right
    }

    /// Deletes the key. Planned with this key.
    pub fn delete(&mut self, key: &[u8], update: &mut Reservation, cache: &mut Cache<'_>) {
        let path = self.dirty_path(key, update, cache);
        let leaf = path.last().expect("the plan found the key");
        let mut page = NodeMut::new(cache.block_mut(leaf.frame));
        let index = page.node().search(key).expect("the plan found the key");
        page.remove(index..index + 1);
        for pair in path.windows(2).rev() {
            if !is_underfull(&node(cache, pair[1].frame)) {
                break;
            }
            refill(&pair[0], update, cache);
        }
        self.shrink(update, cache);
        cache.settle_update();
    }

    /// Lets a root with one child give way to it, and an empty root go.
    fn shrink(&mut self, update: &Reservation, cache: &mut Cache<'_>) {
        while let Some(frame) = cache.changeable(self.node, update) {
            let root = node(cache, frame);
            if root.count() > 1 || root.count() == 1 && root.level() == 0 {
                return;
            }
            if root.level() == 0 {
                (self.node, self.height) = (BlockRef::NONE, 0);
            } else {
                (self.node, self.height) = (root.child(0), self.height - 1);
            }
            cache.discard(frame);
        }
    }

    /// Gives every node on the path of the key to the open commit.
    fn dirty_path(&mut self, key: &[u8], update: &Reservation, cache: &mut Cache<'_>) -> Path {
        let mut path = Path::new();
        let mut at = self.node;
        for level in (0..self.height).rev() {
            let frame = cache.resident(at).expect("the path of a planned key is resident");
            let new = cache.dirty(frame, update);
            match path.last() {
                None => self.node = new,
                Some(&Step { frame, slot, .. }) => set_child(frame, slot, new, cache),
            }
            let node = node(cache, frame);
            let slot = if level > 0 { Probe::At(key).slot(&node) } else { 0 };
            let step = Step { frame, slot, range: Range::default() };
            path.push(step).map_err(drop).expect("the height is bounded");
            if level > 0 {
                at = node.child(slot);
            }
        }
        path
    }

    fn create(&self, level: u8, update: &mut Reservation, cache: &mut Cache<'_>) -> FrameId {
        let frame = cache.create(update);
        NodeMut::new(cache.block_mut(frame)).init(self.kind.0, level);
        frame
    }
}

/// What the key's item takes of the leaf at the path's end.
fn found(path: &Path, key: &[u8], cache: &Cache<'_>) -> Option<usize> {
    let leaf = node(cache, path.last()?.frame);
    leaf.search(key).ok().map(|index| leaf.cost(index))
}

/// Counts on changing every node of the path.
fn touch_path(path: &Path, plan: &mut Plan, cache: &mut Cache<'_>) -> Result<(), Error> {
    let mut home = None;
    for step in path {
        cache.touch(step.frame, home, plan)?;
        home = Some((step.frame, step.slot));
    }
    Ok(())
}

fn begin_update(plan: &mut Plan, removed: Option<usize>) {
    plan.updates += 1;
    assert!(plan.updates <= UPDATES_MAX, "more updates than a plan may have");
    plan.bytes_removed += removed.unwrap_or(0);
}

fn is_underfull(node: &Node<'_>) -> bool {
    if node.level() == 0 {
        node.bytes_used() < LEAF_BYTES_MIN
    } else {
        node.count() < INNER_ITEMS_MIN
    }
}

/// Whether a node may become underfull by what is planned so far: by all of it, as any of it may
/// concern this node.
fn may_underflow(node: &Node<'_>, plan: &Plan) -> bool {
    if node.level() == 0 {
        node.bytes_used() < LEAF_BYTES_MIN + plan.bytes_removed
    } else {
        node.count() < INNER_ITEMS_MIN + plan.deletes as usize
    }
}

/// Whether the path goes along the tree's right edge.
fn is_rightmost(path: &Path, cache: &Cache<'_>) -> bool {
    let mut inner = path.iter().rev().skip(1);
    inner.all(|step| step.slot + 1 == node(cache, step.frame).count())
}

/// Where to split a leaf that is too full for an item of this cost at `index`, so that both
/// sides are about equal: the first item of the right side, the new one counted.
fn split_point(leaf: &Node<'_>, index: usize, added: usize) -> usize {
    let total = leaf.bytes_used() + added;
    let mut left = 0;
    for at in 0..=leaf.count() {
        let cost = match at.cmp(&index) {
            core::cmp::Ordering::Less => leaf.cost(at),
            core::cmp::Ordering::Equal => added,
            core::cmp::Ordering::Greater => leaf.cost(at - 1),
        };
        if at > 0 && left + cost / 2 >= total / 2 {
            return at;
        }
        left += cost;
    }
    leaf.count()
}

/// The shortest key that is above `low` and not above `high`.
fn separator(low: &[u8], high: &[u8]) -> Key {
    let common = low.iter().zip(high).take_while(|(low, high)| low == high).count();
    owned(&high[..high.len().min(common + 1)])
}

fn set_child(frame: FrameId, slot: usize, child: BlockRef, cache: &mut Cache<'_>) {
    NodeMut::new(cache.block_mut(frame)).overwrite(slot, child.as_bytes());
}

fn set_key(frame: FrameId, slot: usize, key: &[u8], cache: &mut Cache<'_>) {
    let mut page = NodeMut::new(cache.block_mut(frame));
    let child = page.node().child(slot);
    page.remove(slot..slot + 1);
    page.insert(slot, key, child.as_bytes());
}

/// Merges the underfull child that the step leads to with a sibling, or lets them share their items
/// anew, if there is one that this update may change.
fn refill(parent: &Step, update: &Reservation, cache: &mut Cache<'_>) {
    let node = node(cache, parent.frame);
    let here = node.child(parent.slot);
    let here = cache.resident(here).expect("on the path");
    let left = parent
        .slot
        .checked_sub(1)
        .and_then(|slot| Some((slot + 1, cache.changeable(node.child(slot), update)?, here)));
    let right = || {
        let slot = parent.slot + 1;
        let at = (slot < node.count()).then(|| node.child(slot))?;
        Some((slot, here, cache.changeable(at, update)?))
    };
    let Some((slot, left, right)) = left.or_else(right) else { return };
    for (slot, frame) in [(slot - 1, left), (slot, right)] {
        let at = cache.dirty(frame, update);
        set_child(parent.frame, slot, at, cache);
    }
    if merges(&super::walk::node(cache, left), &super::walk::node(cache, right)) {
        merge(parent.frame, slot, left, right, cache);
    } else {
        share(parent.frame, slot, left, right, cache);
    }
}

fn merges(left: &Node<'_>, right: &Node<'_>) -> bool {
    if left.level() == 0 {
        left.bytes_used() + right.bytes_used() <= LEAF_BYTES_MERGED
    } else {
        left.count() + right.count() <= INNER_ITEMS_MERGED
    }
}

/// Moves all of `right`, the child at `slot`, into `left`.
fn merge(parent: FrameId, slot: usize, left: FrameId, right: FrameId, cache: &mut Cache<'_>) {
    lower(parent, slot, right, cache);
    let (block, from, scratch) = cache.block_pair(left, right);
    let mut page = NodeMut::new((block, scratch));
    let from = Node::new(from);
    page.copy_from(page.node().count(), &from, 0..from.count());
    NodeMut::new(cache.block_mut(parent)).remove(slot..slot + 1);
    cache.discard(right);
}

/// Moves items between `left` and `right`, the child at `slot`, until both have about the same.
fn share(parent: FrameId, slot: usize, left: FrameId, right: FrameId, cache: &mut Cache<'_>) {
    lower(parent, slot, right, cache);
    let (low, high) = (node(cache, left), node(cache, right));
    let is_leaf = low.level() == 0;
    let weight = |node: &Node<'_>, at| if is_leaf { node.cost(at) } else { 1 };
    let sum = |node: &Node<'_>| (0..node.count()).map(|at| weight(node, at)).sum::<usize>();
    let (mut left_sum, half) = (sum(&low), sum(&low).midpoint(sum(&high)));
    if left_sum < half {
        let mut moved = 0;
        while left_sum + weight(&high, moved) / 2 < half {
            left_sum += weight(&high, moved);
            moved += 1;
        }
        let (block, from, scratch) = cache.block_pair(left, right);
        let mut page = NodeMut::new((block, scratch));
        page.copy_from(page.node().count(), &Node::new(from), 0..moved);
        NodeMut::new(cache.block_mut(right)).remove(0..moved);
    } else {
        let mut first = low.count();
        while left_sum - weight(&low, first - 1) / 2 > half {
            first -= 1;
            left_sum -= weight(&low, first);
        }
        let (block, from, scratch) = cache.block_pair(right, left);
        let from = Node::new(from);
        let moved = first..from.count();
        NodeMut::new((block, scratch)).copy_from(0, &from, moved.clone());
        NodeMut::new(cache.block_mut(left)).remove(moved);
    }
    let (low, high) = (node(cache, left), node(cache, right));
    let key =
        if is_leaf { separator(low.key(low.count() - 1), high.key(0)) } else { owned(high.key(0)) };
    set_key(parent, slot, &key, cache);
    if !is_leaf {
        set_key(right, 0, &[], cache);
    }
}

/// Gives the first item of an inner node the key that stands for it in the parent, at `slot`.
fn lower(parent: FrameId, slot: usize, child: FrameId, cache: &mut Cache<'_>) {
    if node(cache, child).level() > 0 {
        let key = owned(node(cache, parent).key(slot));
        set_key(child, 0, &key, cache);
    }
}
