//! Gives the image, and nothing else in the workspace, its linker script and link arguments.

use std::env;

fn main() {
    let dir = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it for build scripts");
    let script = format!("{dir}/image.ld");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={script}");
    let args = [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        // Loaded where it is linked; the prebuilt `core` doesn't care where that is.
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,noexecstack",
        "-Wl,-z,max-page-size=4096",
        // Named by the unwinding tables of the prebuilt `core`; nothing unwinds here.
        "-Wl,--defsym=rust_eh_personality=0",
        "-Wl,-Tdefmt.x",
    ];
    for arg in args {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    println!("cargo:rustc-link-arg-bins=-Wl,-T{script}");
    // Statements below this level are not compiled in.
    println!("cargo:rustc-env=DEFMT_LOG=info");
}
