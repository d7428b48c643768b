//! The lock-free parts of fences and reservations under a model checker.
//!
//! The library's own files are included here with the primitives of `loom` in [`sync`], which runs a model in every order
//! that its threads can take, as far as [`check`] bounds them, and with every value that a load may see by the watch
//! model. A fence is a stand-in for the real one ([`fence::core`]): it notices if it is looked at while or after it is
//! dropped, or never dropped. What the parts do under a lock, and how they work together, is in `interleavings`.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "the library's files are part of it")]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

mod fence;
mod resv;
mod sync;
mod watch;

/// Runs `model` in every order with at most `preemptions` of threads that could have gone on.
///
/// `loom` leaves out orders that it takes for the same as others, and can be wrong about a load before other threads' loads
/// of the same place. So the model's first thread writes, and others, which run after it unless they are preferred, read:
/// what they read may be older than what is there.
fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
        watch::assert_all_freed();
    });
    println!("{} orders", runs.load(Ordering::Relaxed));
}

fn join(threads: impl IntoIterator<Item = loom::thread::JoinHandle<()>>) {
    for thread in threads {
        thread.join().expect("a thread panicked");
    }
}
