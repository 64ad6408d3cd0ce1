//! How the program is linked.

use std::{env, process::Command};

/// The C library whose loader reads packed relocations, of 2022.
const PACKED_SINCE: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Relocations of a program that may lie anywhere are 750 KiB, each of which is read at the start and from then on counts as the
    // process's memory; packed they are 9. A program with them says on an older system that it cannot start, so it is made where its
    // own library would do: images have the one of the machine that builds, or a newer one.
    if env::var_os("HOST") == env::var_os("TARGET")
        && library().is_some_and(|it| it >= PACKED_SINCE)
    {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of this machine's glibc; of others nothing.
fn library() -> Option<(u32, u32)> {
    let said = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .output()
        .ok()?;
    let said = String::from_utf8(said.stdout).ok()?;
    let (major, minor) = said.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
