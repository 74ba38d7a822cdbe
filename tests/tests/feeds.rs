//! What the program tells of inodes on kernel mounts: which changed, where they are, what else is
//! known of them, and what a mount tells of itself.
//!
//! Needs user 0 and /dev/fuse, and says so where they are lacking.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use process::{program, until};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use volume::Volume;

#[path = "common/process.rs"]
mod process;
#[path = "common/volume.rs"]
mod volume;

const FILES: u64 = 40;

/// Up to which number all of a feed was shown, and what.
type Shown = (u64, BTreeSet<(u64, u64)>);

fn run(args: &[&str], at: &Path) -> Output {
    Command::new(program()).args(args).arg(at).output().unwrap()
}

/// What a command prints.
fn told(args: &[&str], at: &Path) -> String {
    let output = run(args, at);
    assert!(output.status.success(), "{args:?} {}: {output:?}", at.display());
    String::from_utf8(output.stdout).unwrap()
}

/// A report.
fn json(args: &[&str], at: &Path) -> Value {
    serde_json::from_str(&told(&[args, &["--json"]].concat(), at)).unwrap()
}

/// What a command is refused with.
fn refusal(args: &[&str], at: &Path) -> String {
    let output = run(args, at);
    assert!(!output.status.success() && output.stdout.is_empty(), "{args:?}: {output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

/// Where inodes stand in a feed, in order.
fn walk(feed: &str, first: &str, last: &str, at: &Path) -> Vec<(u64, u64)> {
    let text = told(&["walk-inodes", feed, first, last], at);
    let places = text.lines().map(|line| {
        let numbers: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        assert_eq!((numbers.len(), numbers[1]), (3, 0), "{line}");
        (numbers[0], numbers[2])
    });
    let places: Vec<_> = places.collect();
    assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
    places
}

fn number(field: &str, path: &Path) -> u64 {
    told(&["stat", "-s", field], path).trim().parse().unwrap()
}

fn ino(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

#[test]
fn every_mount_shows_what_each_changed() {
    let Some(volume) = Volume::make("256M") else { return };
    let server = &mut volume.serve();
    let ((one, at_one), (two, at_two)) = (volume.mount("one"), volume.mount("two"));
    let make = |at: &Path, name: &str| {
        let dir = at.join(name);
        fs::create_dir(&dir).unwrap();
        for file in 0..FILES {
            fs::write(dir.join(format!("{file}")), format!("{name} {file}")).unwrap();
        }
    };
    thread::scope(|threads| {
        threads.spawn(|| make(&at_one, "a"));
        threads.spawn(|| make(&at_two, "b"));
    });
    let files = || (0..FILES).flat_map(|file| ["a", "b"].map(|dir| format!("{dir}/{file}")));
    let inodes: BTreeSet<u64> = files().map(|file| ino(&at_one.join(file))).collect();
    let dirs: BTreeSet<u64> = ["a", "b"].map(|dir| ino(&at_two.join(dir))).into();
    let shown = |feed: &str, at: &Path| -> BTreeMap<u64, u64> {
        let places = walk(feed, "0", "-1", at);
        let all: BTreeMap<_, _> = places.iter().map(|(seq, ino)| (*ino, *seq)).collect();
        assert_eq!(all.len(), places.len(), "an inode stands in two places");
        all
    };
    for at in [&at_one, &at_two] {
        let meta = until("all changes are stable", || {
            let meta = shown("meta_seq", at);
            inodes.iter().chain(&dirs).all(|ino| meta.contains_key(ino)).then_some(meta)
        });
        let data = shown("data_seq", at);
        assert!(data.keys().eq(inodes.iter()), "{data:?}");
        for file in files() {
            let path = at.join(file);
            assert_eq!(number("meta_seq", &path), meta[&ino(&path)]);
            assert_eq!(number("data_seq", &path), data[&ino(&path)]);
        }
    }
    // At rest both show the same.
    assert_eq!(walk("meta_seq", "0", "-1", &at_one), walk("meta_seq", "0", "-1", &at_two));
    let whole = walk("data_seq", "0", "-1", &at_one);
    let (seq, middle) = whole[whole.len() / 2];
    let from = format!("{seq}.0.{middle}");
    assert_eq!(walk("data_seq", &from, "-1", &at_two), whole[whole.len() / 2..]);
    assert_eq!(walk("data_seq", "0", &from, &at_two), whole[..=whole.len() / 2]);
    assert_eq!(walk("data_seq", "-1", "0", &at_two), []);
    // What changes moves behind what was shown, and what is removed is shown no more.
    let (moved, removed) = (ino(&at_one.join("a/1")), ino(&at_one.join("b/2")));
    fs::write(at_two.join("a/1"), "other").unwrap();
    fs::remove_file(at_one.join("b/2")).unwrap();
    let last = whole.last().unwrap().0;
    until("the change is stable", || {
        let data = shown("data_seq", &at_one);
        (data.get(&moved)? > &last && !data.contains_key(&removed)).then_some(())
    });
    one.stop();
    two.stop();
    server.stop();
    volume.check();
}

#[test]
fn nothing_appears_behind_a_reader() {
    let Some(volume) = Volume::make("256M") else { return };
    let server = &mut volume.serve();
    let ((one, at_one), (two, at_two)) = (volume.mount("one"), volume.mount("two"));
    let over = AtomicBool::new(false);
    let write = |at: &Path, name: &str| {
        let mut round = 0;
        while !over.load(Ordering::SeqCst) {
            let file = at.join(format!("{name}{}", round % 20));
            fs::write(&file, vec![round as u8; 100 + round]).unwrap();
            if round % 5 == 0 {
                fs::File::open(&file).unwrap().sync_all().unwrap();
            }
            if round % 7 == 0 {
                fs::remove_file(&file).unwrap();
            }
            round += 1;
        }
    };
    let read = || {
        // What was told, and up to which number all of it.
        let mut known: BTreeMap<&str, Shown> = BTreeMap::new();
        let mut reached = 0;
        for round in 0..60 {
            let feed = ["meta_seq", "data_seq"][round / 2 % 2];
            let report = json(&["walk-inodes", feed, "0", "-1"], [&at_one, &at_two][round % 2]);
            let stable = report["stable"].as_u64().unwrap();
            let place = |at: &Value| (at["major"].as_u64().unwrap(), at["ino"].as_u64().unwrap());
            let now: BTreeSet<_> = report["inodes"].as_array().unwrap().iter().map(place).collect();
            if let Some((told, before)) = known.get(feed) {
                let new = now.iter().find(|at| at.0 <= *told && !before.contains(at));
                assert_eq!(new, None, "{feed} up to {told} had been shown");
                assert!(stable >= *told, "{stable} comes after {told}");
            }
            known.insert(feed, (stable, now));
            reached = stable;
        }
        over.store(true, Ordering::SeqCst);
        assert!(reached > 10, "only {reached} numbers became stable");
    };
    thread::scope(|threads| {
        threads.spawn(|| write(&at_one, "x"));
        threads.spawn(|| write(&at_two, "y"));
        threads.spawn(read);
    });
    one.stop();
    two.stop();
    server.stop();
    volume.check();
}

#[test]
fn an_inode_is_found_by_its_number_under_all_its_names() {
    let Some(volume) = Volume::make("256M") else { return };
    let server = &mut volume.serve();
    let ((one, at_one), (two, at_two)) = (volume.mount("one"), volume.mount("two"));
    fs::create_dir_all(at_one.join("some/deep")).unwrap();
    fs::write(at_one.join("some/deep/file"), "x").unwrap();
    fs::hard_link(at_one.join("some/deep/file"), at_one.join("link")).unwrap();
    let file = ino(&at_one.join("link")).to_string();
    let paths = |ino: &str, at: &Path| -> BTreeSet<String> {
        told(&["ino-path", ino], at).lines().map(str::to_owned).collect()
    };
    let both = ["link", "some/deep/file"].map(str::to_owned).into();
    for at in [&at_one, &at_two, &at_two.join("some")] {
        assert_eq!(paths(&file, at), both);
    }
    assert_eq!(paths(&ino(&at_two.join("some/deep")).to_string(), &at_two).len(), 1);
    let report = json(&["ino-path", &file], &at_one);
    assert_eq!(report["paths"].as_array().unwrap().len(), 2);
    fs::rename(at_two.join("some"), at_two.join("other")).unwrap();
    fs::remove_file(at_two.join("link")).unwrap();
    assert_eq!(paths(&file, &at_one), ["other/deep/file".to_owned()].into());
    assert!(refusal(&["ino-path", "1"], &at_one).contains("no name"));
    assert!(refusal(&["ino-path", "123456789"], &at_one).contains("no name"));
    // Not everybody may see what directories hide.
    for args in [&["ino-path", &*file][..], &["walk-inodes", "meta_seq", "0", "-1"]] {
        let mut command = Command::new(program());
        let output = command.args(args).arg(&at_one).uid(1234).gid(1234).output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    }
    one.stop();
    two.stop();
    server.stop();
    volume.check();
}

#[test]
fn a_mount_tells_of_itself() {
    let Some(volume) = Volume::make("256M") else { return };
    let server = &mut volume.serve();
    let (one, at) = volume.mount("one");
    fs::write(at.join("file"), vec![1; 10_000]).unwrap();
    let stat = json(&["stat"], &at.join("file"));
    assert_eq!(stat["files"][0]["online_blocks"], 3);
    assert!(told(&["stat"], &at.join("file")).contains("\noffline_blocks   0\n"));
    assert!(number("data_seq", &at.join("file")) > 0);
    let counters = json(&["counters"], &at.join("file"));
    assert!(counters["fuse.query"].as_u64().unwrap() >= 3, "{counters}");
    assert!(told(&["counters"], &at).lines().is_sorted());
    let statfs = json(&["statfs"], &at);
    assert_eq!(statfs["total_blocks"], 65536);
    assert!(statfs["client"].as_u64().unwrap() > 0 && statfs["fsid"].is_string(), "{statfs}");
    let locks = json(&["locks"], &at);
    let locks = locks["locks"].as_array().unwrap();
    assert!(locks.iter().any(|lock| lock["kind"] == "inodes" && lock["mode"] == "write"));
    assert_eq!(told(&["locks"], &at).lines().count(), locks.len());
    let foreign = Path::new(env!("CARGO_MANIFEST_DIR"));
    for args in [&["counters"][..], &["stat"], &["locks"], &["walk-inodes", "data_seq", "0", "1"]] {
        assert!(refusal(args, foreign).contains("not in a mounted Outrider volume"));
    }
    one.stop();
    server.stop();
    volume.check();
}
