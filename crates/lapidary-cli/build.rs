//! Builds the preload library, which the program carries inside itself.
//!
//! It is a shared library of its own, loaded into client programs and never linked into this one: so it is built by a
//! cargo of its own, in a target folder of its own, always optimised, and ending the process rather than unwinding
//! through a program's frames.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let crates = manifest.parent().expect("the crate lies in crates/");
    for part in ["lapidary-preload", "lapidary-protocol"] {
        println!("cargo::rerun-if-changed={}", crates.join(part).join("src").display());
        println!("cargo::rerun-if-changed={}", crates.join(part).join("Cargo.toml").display());
    }
    let target = out.join("preload");
    let status = Command::new(env::var_os("CARGO").expect("cargo sets it"))
        .args(["build", "--quiet", "--release", "--package", "lapidary-preload", "--manifest-path"])
        .arg(crates.join("lapidary-preload").join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        // A lint run wraps the compiler for workspace members; this is a plain build.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET")
        .status()
        .expect("cargo can be started");
    assert!(status.success(), "building the preload library failed: {status}");
    let library = target.join("release").join("liblapidary_preload.so");
    println!("cargo::rustc-env=LAPIDARY_PRELOAD_LIBRARY={}", library.display());
}
