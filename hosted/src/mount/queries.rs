//! Questions about inodes, as extended attributes: their names hold what is asked, their values are
//! the answers that the core writes.
//!
//! | name | question |
//! |---|---|
//! | `outrider.walk.FEED.SEQ.INO.SEQ.INO` | what changed, between two positions of `meta_seq` or `data_seq` |
//! | `outrider.path.INO.DIR.POS` | a path of an inode, from this link on |
//! | `outrider.stat` | what more there is of the inode that has the attribute |
//!
//! The first two may be asked of any inode of the mount; it is of no matter which.
//!
//! What this module deliberately doesn't know: the answers, and who may have them.

use outrider_core::client::op::Op;
use outrider_core::client::op::query::{Feed, Link, Position, Query};
use outrider_core::format::{Ino, Seq};

const WALK: &str = "outrider.walk.";
const PATH: &str = "outrider.path.";
/// The attribute that holds what more there is of an inode.
pub const STAT_XATTR: &str = "outrider.stat";

/// What a feed is called.
#[must_use]
pub fn feed_name(feed: Feed) -> &'static str {
    match feed {
        Feed::Meta => "meta_seq",
        Feed::Data => "data_seq",
    }
}

/// The attribute that holds a part of a feed.
#[must_use]
pub fn walk_xattr(feed: Feed, first: Position, last: Position) -> String {
    let feed = feed_name(feed);
    format!("{WALK}{feed}.{}.{}.{}.{}", first.seq.0, first.ino.0, last.seq.0, last.ino.0)
}

/// The attribute that holds a path.
#[must_use]
pub fn path_xattr(ino: Ino, from: Link) -> String {
    format!("{PATH}{}.{}.{}", ino.0, from.dir.0, from.pos)
}

/// What is asked with an operation, if it is a question.
pub(super) fn parse(op: &Op) -> Option<Query> {
    let Op::Getxattr { ino, name } = op else { return None };
    let name = std::str::from_utf8(name.bytes()).ok()?;
    if name == STAT_XATTR {
        return Some(Query::Stat { ino: *ino });
    }
    if let Some(numbers) = name.strip_prefix(PATH) {
        let [ino, dir, pos] = parse_numbers(numbers)?;
        return Some(Query::Path { ino: Ino(ino), from: Link { dir: Ino(dir), pos } });
    }
    let (feed, numbers) = name.strip_prefix(WALK)?.split_once('.')?;
    let feed = [Feed::Meta, Feed::Data].into_iter().find(|known| feed_name(*known) == feed)?;
    let [first_seq, first_ino, last_seq, last_ino] = parse_numbers(numbers)?;
    let first = Position { seq: Seq(first_seq), ino: Ino(first_ino) };
    let last = Position { seq: Seq(last_seq), ino: Ino(last_ino) };
    Some(Query::Walk { feed, first, last })
}

fn parse_numbers<const COUNT: usize>(text: &str) -> Option<[u64; COUNT]> {
    let numbers: Option<Vec<u64>> = text.split('.').map(|number| number.parse().ok()).collect();
    numbers?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrider_core::client::op::XattrNameBuf;

    fn asked(name: &str) -> Option<Query> {
        let name = XattrNameBuf::parse(name.as_bytes()).expect("a name");
        parse(&Op::Getxattr { ino: Ino(9), name })
    }

    #[test]
    fn a_question_is_what_its_name_says() {
        let (first, last) = (Position { seq: Seq(3), ino: Ino(4) }, Position::LAST);
        for feed in [Feed::Meta, Feed::Data] {
            let name = walk_xattr(feed, first, last);
            assert_eq!(asked(&name), Some(Query::Walk { feed, first, last }), "{name}");
        }
        let from = Link { dir: Ino(5), pos: u64::MAX };
        assert_eq!(asked(&path_xattr(Ino(7), from)), Some(Query::Path { ino: Ino(7), from }));
        assert_eq!(asked(STAT_XATTR), Some(Query::Stat { ino: Ino(9) }));
    }

    #[test]
    fn other_names_are_no_questions() {
        let walk = "outrider.walk.meta_seq.1.2.3";
        for name in [walk, "outrider.walk.orphan.1.2.3.4", "outrider.path.1.2.x", "user.stat"] {
            assert_eq!(asked(name), None, "{name}");
        }
        assert_eq!(asked("outrider.walk.meta_seq.1.2.3.4.5"), None);
        assert_eq!(asked("outrider.path.1.2.18446744073709551616"), None);
    }
}
