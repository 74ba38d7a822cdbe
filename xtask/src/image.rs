//! Builds the bootable image, and proves what can be read from it.
//!
//! * No allocator is linked in.
//! * Every segment is written or executed, never both, and each lies on pages of its own.
//! * What is loaded is smaller than [`BYTES_MAX`].

use crate::tools::{Failure, cargo, succeed, target};
use object::elf::{PF_W, PF_X, PT_LOAD};
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object, ObjectSymbol};
use std::fs;
use std::path::PathBuf;

/// The unikernel's package.
pub(crate) const PACKAGE: &str = "outrider-unikernel";
const BYTES_MAX: u64 = 3 << 19;
const PAGE_BYTES: u64 = 4096;

/// Parts of symbol names that only an allocator has.
const ALLOCATOR_SYMBOLS: [&str; 7] = [
    "__rust_alloc",
    "__rust_realloc",
    "__rust_dealloc",
    "__rdl_",
    "__rg_",
    "malloc",
    "alloc5alloc",
];

/// Builds the image; answers where it is.
pub(crate) fn build() -> Result<PathBuf, Failure> {
    let mut command = cargo();
    command.args(["build", "--quiet", "--release", "--package", PACKAGE, "--bins"]);
    succeed("building the image", &mut command)?;
    Ok(target().join("release/outrider-image"))
}

/// Builds the image, prints its size, and audits it.
pub(crate) fn run() -> Result<(), Failure> {
    let path = build()?;
    let bytes = fs::read(&path).map_err(|error| Failure(format!("{}: {error}", path.display())))?;
    let report = audit(&bytes).map_err(|error| Failure(format!("{}: {error}", path.display())))?;
    println!("{}", path.display());
    println!("{report}");
    Ok(())
}

/// What the image takes.
struct Report {
    file: u64,
    memory: u64,
    text: u64,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "loaded {} KiB (code {} KiB), in memory {} KiB; no allocator; no segment both written \
             and executed",
            self.file / 1024,
            self.text / 1024,
            self.memory / 1024
        )
    }
}

fn audit(bytes: &[u8]) -> Result<Report, String> {
    let elf = ElfFile64::<Endianness>::parse(bytes).map_err(|error| error.to_string())?;
    let symbols: Vec<&str> = elf.symbols().filter_map(|symbol| symbol.name().ok()).collect();
    for symbol in &symbols {
        if let Some(part) = ALLOCATOR_SYMBOLS.iter().find(|part| symbol.contains(*part)) {
            return Err(format!("it holds an allocator ({part}): {symbol}"));
        }
    }
    if !symbols.contains(&"memcpy") {
        return Err("it has no symbols to audit".into());
    }
    audit_segments(&elf)
}

fn audit_segments(elf: &ElfFile64<'_, Endianness>) -> Result<Report, String> {
    let endian = elf.endian();
    let mut report = Report { file: 0, memory: 0, text: 0 };
    let mut end = 0;
    let loaded = elf.elf_program_headers().iter().filter(|h| h.p_type(endian) == PT_LOAD);
    for header in loaded {
        let (addr, flags) = (header.p_vaddr(endian), header.p_flags(endian));
        if flags & (PF_W | PF_X) == PF_W | PF_X {
            return Err(format!("the segment at {addr:#x} is both written and executed"));
        }
        if addr % PAGE_BYTES != 0 || addr < end {
            return Err(format!("the segment at {addr:#x} shares a page with another"));
        }
        end = addr + header.p_memsz(endian);
        report.file += header.p_filesz(endian);
        report.memory += header.p_memsz(endian);
        if flags & PF_X != 0 {
            report.text += header.p_filesz(endian);
        }
    }
    if report.text == 0 {
        return Err("it has no code".into());
    }
    if report.file > BYTES_MAX {
        return Err(format!("it loads {} bytes, more than {BYTES_MAX}", report.file));
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::audit;
    use std::fs;

    #[test]
    fn a_program_with_an_allocator_does_not_pass() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        let error = audit(&own).err().unwrap();
        assert!(error.contains("allocator"), "{error}");
    }
}
