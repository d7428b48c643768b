//! Contexts that are configured first and made at their first use.
//!
//! A program creates a context, sets its parameters one by one (its address space above all), and uses it. What the
//! context *is* (its engines' state, its queues, its timeline) depends on the parameters, so until the first use there is
//! only a *proto-context*: the parameters, which can still be changed. The first use *fixes* it: a context is made from
//! them, once, and is this context's for good.
//!
//! ```text
//!                       ┌── fix ────▶ fixed ── close ──▶ fixed, and closed
//!   new ──▶ proto ──────┤
//!           ▲   │       └── close ──▶ closed: none was made, none will be
//!           └───┘
//!     configure, fix that fails
//! ```
//!
//! What holds:
//!
//! - Whoever asks first makes it; who loses the race waits for the winner and gets the winner's. There are never two, and
//!   nobody sees a context that is half made.
//! - A parameter is set before that, and is what the context is made from, or setting it is refused. It is never set and
//!   ignored.
//! - Making it may fail (no memory). Nothing has changed then: the parameters can be mended, the next use tries again.
//! - Looking it up again is one atomic load and a reference, and gives a full reference: a context that was found is there
//!   for as long as it is held, whoever destroys its handle meanwhile.
//! - After [`ProtoContext::close`] none is made any more, so a driver that destroys a context ends what there is, and nothing
//!   can come to be behind its back from a look-up that was on its way.
//!
//! # Locking
//!
//! One lock, under which parameters are set and the context is made: both are the driver's code and may sleep. It comes before
//! all others of the [library](crate): making a context takes the locks of address spaces, reservations and queues. What the
//! driver's code is given must not be used to reach the same proto-context again. Parameters that have served are dropped
//! outside the lock.
//!
//! What this module leaves to others: what the parameters are and what they mean (the driver), and the numbers by which a
//! program names contexts ([`HandleTable`](crate::gem::HandleTable), whose values can be `Arc<ProtoContext<..>>`).

use std::fmt;

use thiserror::Error;

use crate::sync::{Arc, Mutex, OnceLock};

/// Why a proto-context can't be configured, or a context not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ProtoError {
    /// The context was used: its parameters are fixed.
    #[error("the context was used, its parameters are fixed")]
    Fixed,
    /// The context was destroyed before its first use.
    #[error("the context is closed")]
    Closed,
}

/// A context `X`, or the parameters `C` that it will be made from. See the [module](self).
///
/// # Invariants
/// `context` is set once, with `stage` locked and on the way from `Proto` to `Spent`.
pub struct ProtoContext<C, X> {
    context: OnceLock<Arc<X>>,
    stage: Mutex<Stage<C>>,
}

/// What can still happen.
enum Stage<C> {
    /// Parameters can be set, the context can be made.
    Proto(C),
    /// The context was made from the parameters, or never will be.
    Spent,
}

impl<C, X> ProtoContext<C, X> {
    /// A proto-context with these parameters.
    pub const fn new(parameters: C) -> Self {
        Self { context: OnceLock::new(), stage: Mutex::new(Stage::Proto(parameters)) }
    }

    /// Has `change` read or change the parameters, and answers what it does. It runs under the lock; if it finds that it
    /// has to refuse, it is for it to have changed nothing.
    ///
    /// # Errors
    /// [`ProtoError`], and `change` does not run.
    pub fn configure<R>(&self, change: impl FnOnce(&mut C) -> R) -> Result<R, ProtoError> {
        match &mut *self.stage.lock() {
            Stage::Proto(parameters) => Ok(change(parameters)),
            Stage::Spent => Err(self.why_spent()),
        }
    }

    /// The context, if it was made. One atomic load and a reference.
    #[inline]
    pub fn context(&self) -> Option<Arc<X>> {
        self.context.get().cloned()
    }

    /// The context, made by `build` from the parameters if this is its first use. `build` runs under the lock.
    ///
    /// # Errors
    /// What `build` fails with, and [`ProtoError::Closed`]. It stays a proto-context then, or closed.
    #[inline]
    pub fn fix<E: From<ProtoError>>(&self, build: impl FnOnce(&C) -> Result<X, E>) -> Result<Arc<X>, E> {
        match self.context.get() {
            Some(context) => Ok(context.clone()),
            None => self.fix_first(build),
        }
    }

    #[cold]
    fn fix_first<E: From<ProtoError>>(&self, build: impl FnOnce(&C) -> Result<X, E>) -> Result<Arc<X>, E> {
        let mut stage = self.stage.lock();
        let Stage::Proto(parameters) = &*stage else {
            // Somebody was faster.
            return self.context().ok_or_else(|| self.why_spent().into());
        };
        let built = Arc::new(build(parameters)?);
        let context = self.context.get_or_init(|| built).clone();
        let spent = std::mem::replace(&mut *stage, Stage::Spent);
        drop(stage);
        drop(spent);
        Ok(context)
    }

    /// Sees to it that no context is made from now on, and answers the one that was, for the caller to end. That one can still
    /// be looked up here. A context that is being made is waited for.
    pub fn close(&self) -> Option<Arc<X>> {
        let unused = std::mem::replace(&mut *self.stage.lock(), Stage::Spent);
        drop(unused);
        self.context()
    }

    fn why_spent(&self) -> ProtoError {
        if self.context.get().is_some() { ProtoError::Fixed } else { ProtoError::Closed }
    }
}

impl<C, X> fmt::Debug for ProtoContext<C, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProtoContext").field("fixed", &self.context.get().is_some()).finish_non_exhaustive()
    }
}
