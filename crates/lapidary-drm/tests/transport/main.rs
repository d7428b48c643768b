//! The transport with real programs: descriptors, calls, signals, deaths, paths.
#![allow(unsafe_code)]

#[path = "../support/mod.rs"]
mod support;

mod calls;
mod descriptors;
mod hostile;
mod parts;
mod paths;
mod processes;

/// Not a test of its own: what a client program does. The tests start this program anew with a part to play.
#[test]
fn client() {
    let Some(part) = std::env::var_os("LAPIDARY_TEST_PART") else { return };
    let part = part.to_str().expect("the part's name");
    parts::play(part);
}
