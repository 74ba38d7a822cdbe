//! A tree of files: copied, compared, built upon, removed; each step an operation of its own.
//!
//! What this module deliberately doesn't know: on what it is done.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Files of a tree, at most.
const FILES_MAX: usize = 60;
/// Parts of the program that is built.
const PARTS: u64 = 3;

/// Carries out an operation.
pub(crate) type Operate<'a> = dyn FnMut(&mut dyn FnMut() -> io::Result<()>) -> io::Result<()> + 'a;

/// What is copied: files by their paths below the top.
pub(crate) struct Tree {
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Tree {
    /// Reads the first files of a directory and those below.
    pub(crate) fn read(top: &Path) -> Result<Tree, String> {
        let fail = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
        let (mut files, mut dirs) = (Vec::new(), vec![top.to_path_buf()]);
        while let Some(dir) = dirs.pop() {
            let entries = fs::read_dir(&dir).map_err(|error| fail(&dir, error))?;
            for entry in entries.filter_map(Result::ok) {
                let (path, kind) = (entry.path(), entry.file_type());
                if kind.as_ref().is_ok_and(fs::FileType::is_dir) {
                    dirs.push(path);
                } else if kind.is_ok_and(|kind| kind.is_file()) && files.len() < FILES_MAX {
                    let bytes = fs::read(&path).map_err(|error| fail(&path, error))?;
                    let below = path.strip_prefix(top).unwrap_or(&path).to_path_buf();
                    files.push((below, bytes));
                }
            }
        }
        if files.is_empty() {
            Err(format!("{} has no files", top.display()))
        } else {
            Ok(Tree { files })
        }
    }

    /// Copies it to a place where nothing is.
    pub(crate) fn copy(&self, to: &Path, operate: &mut Operate<'_>) -> io::Result<()> {
        operate(&mut || fs::create_dir(to))?;
        for (below, bytes) in &self.files {
            let path = to.join(below);
            if let Some(dir) = path.parent() {
                operate(&mut || fs::create_dir_all(dir))?;
            }
            operate(&mut || fs::File::create_new(&path)?.write_all(bytes))?;
        }
        Ok(())
    }

    /// That a copy is one.
    pub(crate) fn compare(&self, copy: &Path, operate: &mut Operate<'_>) -> io::Result<()> {
        for (below, bytes) in &self.files {
            let path = copy.join(below);
            operate(&mut || match fs::read(&path)? == *bytes {
                true => Ok(()),
                false => Err(io::Error::other(format!("{} differs", path.display()))),
            })?;
        }
        Ok(())
    }
}

/// Builds a program in a directory of the tree, and runs it. Without a compiler, what it would have
/// been made of is there.
pub(crate) fn build(top: &Path, number: u64, operate: &mut Operate<'_>) -> io::Result<()> {
    let dir = top.join("build");
    operate(&mut || fs::create_dir(&dir))?;
    let calls: String = (0..PARTS).map(|part| format!(" + part{part}()")).collect();
    let declared: String = (0..PARTS).map(|part| format!("int part{part}(void);")).collect();
    let main = format!("{declared} int main(void) {{ return (0{calls}) != {}; }}", number * PARTS);
    operate(&mut || fs::write(dir.join("main.c"), &main))?;
    let mut sources = vec!["main".to_owned()];
    for part in 0..PARTS {
        let name = format!("part{part}");
        let text = format!("int {name}(void) {{ return {number}; }}");
        operate(&mut || fs::write(dir.join(format!("{name}.c")), &text))?;
        sources.push(name);
    }
    if Command::new("cc").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Ok(());
    }
    let mut run = |command: &mut Command| {
        operate(&mut || {
            let output = command.current_dir(&dir).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            if output.status.success() { Ok(()) } else { Err(io::Error::other(said.into_owned())) }
        })
    };
    for name in &sources {
        run(Command::new("cc").args(["-c", &format!("{name}.c")]))?;
    }
    let objects = sources.iter().map(|name| format!("{name}.o"));
    run(Command::new("cc").args(["-o", "program"]).args(objects))?;
    run(&mut Command::new(dir.join("program")))
}

/// Removes a tree.
pub(crate) fn remove(top: &Path, operate: &mut Operate<'_>) -> io::Result<()> {
    let mut entries = Vec::new();
    operate(&mut || {
        entries = fs::read_dir(top)?.collect::<io::Result<Vec<_>>>()?;
        Ok(())
    })?;
    for entry in entries {
        match entry.file_type()?.is_dir() {
            true => remove(&entry.path(), operate)?,
            false => operate(&mut || fs::remove_file(entry.path()))?,
        }
    }
    operate(&mut || fs::remove_dir(top))
}
