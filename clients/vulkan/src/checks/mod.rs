//! What is checked, a module for each subject.
//!
//! A check is a function that gets the device and says what it has done, why it can't run, or what is wrong. Names are
//! `subject.check`.

mod buffers;
mod device;
mod host_pointer;
mod images;
pub(crate) mod sharing;
mod sparse;
mod sync;

use std::ffi::CStr;

use anyhow::Result;

use crate::gpu::{Choice, Context};

/// How a check ended, when nothing is wrong.
pub(crate) enum Outcome {
    /// It passed; a few words on what was done.
    Passed(String),
    /// It can't run on this device; why.
    Skipped(String),
}

/// A check and its name.
pub(crate) struct Check {
    /// `subject.check`.
    pub(crate) name: String,
    /// Runs it.
    pub(crate) run: CheckFn,
}

type CheckFn = Box<dyn Fn(&Context, &Choice) -> Result<Outcome>>;

impl Check {
    fn new(name: impl Into<String>, run: impl Fn(&Context) -> Result<Outcome> + 'static) -> Check {
        Check { name: name.into(), run: Box::new(move |context, _| run(context)) }
    }
}

/// Every check, in the order they run.
pub(crate) fn all() -> Vec<Check> {
    let subjects = [
        device::checks(),
        buffers::checks(),
        images::checks(),
        sync::checks(),
        sparse::checks(),
        sharing::checks(),
        host_pointer::checks(),
    ];
    subjects.into_iter().flatten().collect()
}

fn passed(detail: impl Into<String>) -> Result<Outcome> {
    Ok(Outcome::Passed(detail.into()))
}

fn skipped(reason: impl Into<String>) -> Result<Outcome> {
    Ok(Outcome::Skipped(reason.into()))
}

/// Why a check can't run without these extensions; nothing when they are there.
fn missing(context: &Context, extensions: &[&CStr]) -> Option<String> {
    let missing: Vec<_> = extensions.iter().filter(|name| !context.has(name)).collect();
    let names: Vec<_> = missing.iter().map(|name| name.to_string_lossy()).collect();
    (!names.is_empty()).then(|| format!("the device lacks {}", names.join(", ")))
}
