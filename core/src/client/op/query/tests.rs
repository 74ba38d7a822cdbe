//! What is written into lent memory, and read from it.

extern crate std;

use super::*;
use std::vec::Vec;

fn at(seq: u64, ino: u64) -> Position {
    Position { seq: Seq(seq), ino: Ino(ino) }
}

#[test]
fn positions_follow_one_another() {
    assert_eq!(at(3, 4).next(), Some(at(3, 5)));
    assert_eq!(at(3, u64::MAX).next(), Some(at(4, 0)));
    assert_eq!(Position::LAST.next(), None);
    let link = Link { dir: Ino(9), pos: u64::MAX };
    assert_eq!(link.next(), Some(Link { dir: Ino(10), pos: 0 }));
}

#[test]
fn a_page_holds_what_fits() {
    let mut bytes = [0xff; 40 + 2 * 16 + 7];
    let mut writer = PageWriter::new(&mut bytes).unwrap();
    assert!(writer.is_empty());
    assert!(writer.push(at(1, 2)) && writer.push(at(3, 4)) && !writer.push(at(5, 6)));
    assert!(writer.is_full());
    let used = writer.finish(Seq(9), at(3, 4), false);
    assert_eq!(used, 72);
    let page = Page::parse(&bytes[..used]).unwrap();
    assert_eq!((page.stable, page.through, page.end), (Seq(9), at(3, 4), false));
    assert_eq!(page.entries().collect::<Vec<_>>(), [at(1, 2), at(3, 4)]);
    assert!(Page::parse(&bytes[..used - 1]).is_none());
    assert!(PageWriter::new(&mut [0; 55]).is_none());
}

#[test]
fn a_page_that_lies_is_none() {
    let mut bytes = [0xff; 256];
    assert!(Page::parse(&bytes).is_none());
    bytes[32..40].fill(0);
    assert_eq!(Page::parse(&bytes).unwrap().entries().len(), 0);
}

#[test]
fn a_path_is_written_from_its_end() {
    let mut bytes = [0; 16 + 9];
    let link = Link { dir: Ino(7), pos: 3 };
    let mut writer = PathWriter::new(&mut bytes);
    assert!(writer.link(link));
    let used = writer.prepend(0, b"name").unwrap();
    assert_eq!(writer.prepend(used, b"a dir"), None);
    let used = writer.prepend(used, b"dirs").unwrap();
    let len = writer.finish(used);
    let path = Path::parse(&bytes[..len]).unwrap();
    assert_eq!((path.link, path.bytes), (link, &b"dirs/name"[..]));
    assert!(Path::parse(&bytes[..15]).is_none());
    assert!(!PathWriter::new(&mut [0; 15]).link(link));
}
