//! Clusters of real processes: a server and kernel mounts of one volume, which are killed, and a
//! device that is full.
//!
//! Needs user 0 and /dev/fuse, and says so where they are lacking.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use process::until;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
use volume::Volume;

#[path = "common/process.rs"]
mod process;
#[path = "common/volume.rs"]
mod volume;

const FILES: u32 = 300;

/// What is in the file of this number: some of a block, or of several.
fn contents(number: u32) -> Vec<u8> {
    let len = number * 97 % 13_000;
    (0..len).map(|at| (at.wrapping_mul(number + 3) >> 3) as u8).collect()
}

fn path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("dir{}", number % 7)).join(format!("file{number}"))
}

fn write(dir: &Path, number: u32) -> io::Result<File> {
    let path = path(dir, number);
    fs::create_dir_all(path.parent().unwrap())?;
    let mut file = File::create(path)?;
    file.write_all(&contents(number))?;
    Ok(file)
}

fn assert_there(dir: &Path, numbers: impl Iterator<Item = u32>) {
    for number in numbers {
        let found = fs::read(path(dir, number)).unwrap();
        assert!(found == contents(number), "file {number} differs");
    }
}

fn bytes_free(at: &Path) -> u64 {
    let told = rustix::fs::statvfs(at).unwrap();
    told.f_bfree * told.f_frsize
}

#[test]
fn a_copy_goes_on_when_the_server_is_killed_and_comes_back() {
    let Some(volume) = Volume::make("256M") else { return };
    let mut server = volume.serve();
    let ((one, at_one), (two, at_two)) = (volume.mount("one"), volume.mount("two"));
    let dir = at_one.clone();
    let copy = thread::spawn(move || {
        for number in 0..FILES {
            let file = write(&dir, number).unwrap();
            // Some of them can't end without a server.
            if number % 20 == 0 {
                file.sync_all().unwrap();
            }
        }
    });
    until("part of it is copied", || path(&at_one, FILES / 3).exists().then_some(()));
    server.kill();
    let mut server = volume.serve();
    copy.join().unwrap();
    assert_there(&at_two, 0..FILES);
    one.stop();
    two.stop();
    server.stop();
    volume.check();
}

#[test]
fn what_a_killed_mount_had_synced_is_there_on_another() {
    let Some(volume) = Volume::make("256M") else { return };
    let mut server = volume.serve();
    let ((one, at_one), (two, at_two)) = (volume.mount("one"), volume.mount("two"));
    for number in 0..FILES {
        let file = write(&at_one, number).unwrap();
        if number == FILES / 2 {
            file.sync_all().unwrap();
        }
    }
    // It has locks, loans and changes that nobody else knows of.
    one.kill();
    // The directories are the dead mount's until the server has given it up.
    assert_there(&at_two, 0..=FILES / 2);
    for number in 0..10 {
        fs::remove_file(path(&at_two, number)).unwrap();
        write(&at_two, FILES + number).unwrap();
    }
    let (one, at_one) = volume.mount("again");
    assert_there(&at_one, 10..=FILES / 2);
    assert_there(&at_one, FILES..FILES + 10);
    one.stop();
    two.stop();
    server.stop();
    volume.check();
}

/// A process that this one has started.
fn child_of(pid: u32) -> Option<Pid> {
    let mut tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.find_map(|task| {
        let children = fs::read_to_string(task.unwrap().path().join("children")).ok()?;
        Pid::from_raw(children.split_whitespace().next()?.parse().unwrap())
    })
}

#[test]
fn a_mount_that_is_stopped_for_too_long_is_killed() {
    let Some(volume) = Volume::make("256M") else { return };
    let mut server = volume.serve();
    let (mut mount, at) = volume.mount("mount");
    write(&at, 0).unwrap().sync_all().unwrap();
    // Past its lease, and back before others might have its locks.
    mount.process.signal(Signal::STOP);
    thread::sleep(Duration::from_secs(12));
    mount.process.signal(Signal::CONT);
    write(&at, 1).unwrap().sync_all().unwrap();
    // It is never without a witness for long.
    let pid = mount.process.id();
    let witness = child_of(pid).unwrap();
    kill_process(witness, Signal::KILL).unwrap();
    mount.process.hear("here is another");
    until("there is another", || child_of(pid).filter(|found| *found != witness));
    write(&at, 2).unwrap().sync_all().unwrap();
    mount.process.signal(Signal::STOP);
    assert_eq!(mount.process.end().signal(), Some(9));
    mount.process.hear("is killed");
    drop(mount);
    let (mount, at) = volume.mount("again");
    assert_there(&at, 0..3);
    mount.stop();
    server.stop();
    volume.check();
}

#[test]
fn what_one_mount_removes_gives_its_space_back_though_another_has_read_it() {
    let Some(volume) = Volume::make("256M") else { return };
    let mut server = volume.serve();
    let ((one, at_one), (two, at_two)) = (volume.mount("one"), volume.mount("two"));
    let large = vec![7; 32 << 20];
    fs::write(at_one.join("large"), &large).unwrap();
    let mut open = File::open(at_two.join("large")).unwrap();
    let mut copy = Vec::new();
    fs::remove_file(at_one.join("large")).unwrap();
    assert!(!at_two.join("large").exists());
    io::Read::read_to_end(&mut open, &mut copy).unwrap();
    assert!(copy == large, "a file that is open is not what it was");
    fs::write(at_one.join("large"), &large).unwrap();
    assert!(fs::read(at_two.join("large")).unwrap() == large);
    let full = bytes_free(&at_one);
    fs::remove_file(at_one.join("large")).unwrap();
    let freed = large.len() as u64 - (1 << 20);
    until("the space is free", || (bytes_free(&at_one) >= full + freed).then_some(()));
    drop(open);
    one.stop();
    two.stop();
    server.stop();
    volume.check();
}

#[test]
fn a_full_device_says_so_and_is_of_use_again_when_something_was_removed() {
    let Some(volume) = Volume::make("96M") else { return };
    let mut server = volume.serve();
    let (one, at) = volume.mount("one");
    let mebibyte = vec![5; 1 << 20];
    let mut files = 0;
    let error = loop {
        match fs::write(at.join(format!("{files}")), &mebibyte) {
            Ok(()) => files += 1,
            Err(error) => break error,
        }
        assert!(files < 96, "more was written than there is room for");
    };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(files > 16, "{files} MiB are little");
    for number in 0..files / 2 {
        assert!(fs::read(at.join(format!("{number}"))).unwrap() == mebibyte);
        fs::remove_file(at.join(format!("{number}"))).unwrap();
    }
    let again = at.join("again");
    until("there is room", || {
        let written = fs::write(&again, &mebibyte).and_then(|()| File::open(&again)?.sync_all());
        match written {
            Ok(()) => Some(()),
            Err(error) if error.kind() == io::ErrorKind::StorageFull => None,
            Err(error) => panic!("{error}"),
        }
    });
    assert!(fs::read(&again).unwrap() == mebibyte);
    one.stop();
    server.stop();
    volume.check();
}
