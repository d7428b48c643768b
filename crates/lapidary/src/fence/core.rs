//! The fence itself: state, signalling, and what containers and plain fences share.

use std::fmt;

use crate::sync::{
    Arc, LazyLock,
    atomic::{AtomicU64, Ordering},
};

use super::{
    FenceContext, FenceError, Seqno, Timeline, Timestamp,
    array::Array,
    callbacks::{CallbackId, Callbacks, post_arm, run_callbacks, while_panicking},
    chain::Chain,
    shared::Shared,
    word::{Guard, Guarded},
};

/// The state word, above the bit that is its lock. Pending, unless this is set; the error's bits are above it.
const SIGNALLED: u32 = 2;
/// A pending container: looking at it means looking at its members.
const CONTAINER: u32 = 4;
const PENDING: u32 = 0;
const ERROR_SHIFT: u32 = 8;

/// A one-shot completion event; the consumers' half.
///
/// Cloning is cheap and gives a handle to the same fence. See the [module](super) for the rules.
#[derive(Clone)]
pub struct Fence(pub(super) Shared<Inner>);

/// The producer's half of a fence: the right, and the duty, to signal it.
///
/// Dropping it signals the fence with [`FenceError::Cancelled`].
#[derive(Debug)]
#[must_use = "dropping the signaller cancels the fence"]
pub struct Signaller(Option<Fence>);

/// What a fence is made of, what is used most first.
#[repr(C)]
pub(super) struct Inner {
    /// The state, and the callbacks behind the lock that is in it.
    pub(super) state: Guarded<Callbacks>,
    context: FenceContext,
    seqno: Seqno,
    /// Nanoseconds; written before the state becomes signalled.
    timestamp: AtomicU64,
    timeline: Option<Timeline>,
    /// What it is made of, unless it has a signaller.
    container: Option<Box<Container>>,
}

/// A fence made of fences.
pub(super) struct Container {
    made_of: MadeOf,
    /// How deep containers nest in this one, not counting those that follow their members from the start.
    depth: u8,
    /// Whether it follows its members from the start, so that nobody looks at them.
    follows: bool,
}

/// What a container is made of.
pub(super) enum MadeOf {
    /// Members.
    Array(Array),
    /// A link's own fence and the earlier links.
    Chain(Chain),
}

/// Who signals a fence.
pub(super) enum Body<'a> {
    /// A signaller.
    Plain,
    /// The members.
    Array(&'a Array),
    /// The link's own fence and the earlier links.
    Chain(&'a Chain),
}

/// How a fence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) error: Option<FenceError>,
    pub(super) timestamp: Timestamp,
}

impl Outcome {
    pub(super) fn now(error: Option<FenceError>) -> Self {
        Self { error, timestamp: Timestamp::now() }
    }
}

impl Fence {
    /// Containers nested deeper than this follow their members from the start, which bounds every recursion.
    const MAX_IDLE_DEPTH: u8 = 8;

    /// A fence that is not signalled, and its signaller.
    ///
    /// The caller answers for the order: fences of one context signal in the order of their numbers.
    pub fn new(context: FenceContext, seqno: Seqno) -> (Self, Signaller) {
        Self::with_timeline(None, context, seqno)
    }

    pub(super) fn on_timeline(timeline: Timeline, context: FenceContext, seqno: Seqno) -> (Self, Signaller) {
        Self::with_timeline(Some(timeline), context, seqno)
    }

    fn with_timeline(timeline: Option<Timeline>, context: FenceContext, seqno: Seqno) -> (Self, Signaller) {
        let (consumer, producer) = Shared::pair(Inner {
            state: Guarded::new(PENDING, Callbacks::new()),
            context,
            seqno,
            timestamp: AtomicU64::new(0),
            timeline,
            container: None,
        });
        if tracing::level_enabled!(tracing::Level::TRACE) {
            trace_init(context, seqno);
        }
        (Self(consumer), Signaller(Some(Self(producer))))
    }

    /// A fence that has always been signalled. All calls give the same one.
    pub fn signalled() -> Self {
        static STUB: LazyLock<Fence> = LazyLock::new(|| Fence::signalled_at(Timestamp::now()));
        STUB.clone()
    }

    /// A fence of its own that signalled, with success, at the given time.
    pub fn signalled_at(timestamp: Timestamp) -> Self {
        Self(Shared::new(Inner {
            state: Guarded::new(SIGNALLED, Callbacks::new()),
            context: FenceContext::SIGNALLED,
            seqno: Seqno(0),
            timestamp: AtomicU64::new(timestamp.as_nanos()),
            timeline: None,
            container: None,
        }))
    }

    /// A container. `depth` is that of its deepest member plus one.
    pub(super) fn container(context: FenceContext, seqno: Seqno, made_of: MadeOf, depth: u8) -> Self {
        let too_deep = depth > Self::MAX_IDLE_DEPTH;
        let container = Container { made_of, depth: if too_deep { 0 } else { depth }, follows: too_deep };
        let fence = Self(Shared::new(Inner {
            state: Guarded::new(CONTAINER, Callbacks::new()),
            context,
            seqno,
            timestamp: AtomicU64::new(0),
            timeline: None,
            container: Some(Box::new(container)),
        }));
        if too_deep && fence.0.state.lock().follow_members() {
            post_arm(fence.clone());
        }
        fence
    }

    /// Whether the fence has signalled. Once true, always true.
    ///
    /// One atomic load for a plain fence and for a signalled one. Seeing true synchronises with the producer.
    #[inline]
    pub fn is_signalled(&self) -> bool {
        let state = self.0.state.word();
        state & SIGNALLED != 0 || (state & CONTAINER != 0 && self.0.poll().is_some())
    }

    /// How the fence ended; `None` while it has not signalled.
    ///
    /// An array ends with the error of the first member in its list that failed, a chain link with that of its own
    /// fence.
    pub fn status(&self) -> Option<Result<(), FenceError>> {
        Some(self.0.poll()?.error.map_or(Ok(()), Err))
    }

    /// When the fence signalled; `None` while it has not.
    pub fn timestamp(&self) -> Option<Timestamp> {
        Some(self.0.poll()?.timestamp)
    }

    /// The context that orders this fence.
    pub fn context(&self) -> FenceContext {
        self.0.context
    }

    /// The fence's place in its context.
    pub fn seqno(&self) -> Seqno {
        self.0.seqno
    }

    /// The timeline that made the fence, if one did.
    pub fn timeline(&self) -> Option<&Timeline> {
        self.0.timeline.as_ref()
    }

    /// Whether both are of one context and this one comes after `other`.
    pub fn is_later_than(&self, other: &Self) -> bool {
        self.0.context == other.0.context && self.0.seqno > other.0.seqno
    }

    /// Whether both are handles to the same fence.
    pub fn ptr_eq(&self, other: &Self) -> bool {
        Shared::ptr_eq(&self.0, &other.0)
    }

    /// Whether the fence is an array or a link of a chain.
    pub fn is_container(&self) -> bool {
        self.0.container.is_some()
    }

    /// Runs `callback` when the fence signals: once, in the signalling thread, outside every lock of the fence, in a
    /// [signalling section](super::signalling()): it must not block.
    ///
    /// The answer is a handle for [`remove_callback`](Self::remove_callback); dropping it changes nothing. If the
    /// last member of a container signals while this runs, the callback may run in this thread before the call
    /// returns.
    ///
    /// # Errors
    /// Gives the callback back if the fence has signalled already.
    pub fn add_callback<F>(&self, callback: F) -> Result<CallbackId, F>
    where
        F: FnOnce(&Fence) + Send + 'static,
    {
        if self.is_signalled() {
            return Err(callback);
        }
        self.register(callback)
    }

    /// Runs `callback` when the fence signals, or now, in this thread, if it has already.
    ///
    /// Otherwise as [`add_callback`](Self::add_callback), for callbacks nobody takes back.
    pub fn on_signal(&self, callback: impl FnOnce(&Fence) + Send + 'static) {
        if let Err(callback) = self.add_callback(callback) {
            callback(self);
        }
    }

    /// Takes a callback back. True if it had not started and now never will; false if it has run, is running, or was
    /// removed before.
    pub fn remove_callback(&self, id: CallbackId) -> bool {
        let (action, released) = self.0.state.lock().remove(id);
        drop(released);
        action.is_some()
    }

    /// Tells the producer that somebody would like the fence to have signalled by `time`. A hint: it may be ignored,
    /// and only the earliest counts.
    pub fn set_deadline(&self, time: Timestamp) {
        let mut todo = vec![self.clone()];
        while let Some(fence) = todo.pop() {
            if fence.is_signalled() {
                continue;
            }
            match fence.0.body() {
                Body::Plain => {
                    let hook = fence.0.state.lock().deadline_hook(time);
                    if let Some(hook) = hook {
                        hook(time);
                    }
                }
                Body::Array(array) => todo.extend(array.members.iter().cloned()),
                Body::Chain(chain) => todo.extend(chain.contained_and_prev()),
            }
        }
    }
}

impl Inner {
    /// Who signals it.
    #[inline]
    pub(super) fn body(&self) -> Body<'_> {
        match self.container.as_ref().map(|container| &container.made_of) {
            None => Body::Plain,
            Some(MadeOf::Array(array)) => Body::Array(array),
            Some(MadeOf::Chain(chain)) => Body::Chain(chain),
        }
    }

    /// How deep containers nest in it.
    pub(super) fn depth(&self) -> u8 {
        self.container.as_ref().map_or(0, |container| container.depth)
    }

    /// How the fence ended, if it has; looks at the members of a container that does not know yet.
    pub(super) fn poll(&self) -> Option<Outcome> {
        let state = self.state.word();
        if state & SIGNALLED != 0 {
            return Some(self.outcome(state));
        }
        let container = self.container.as_ref().filter(|container| !container.follows)?;
        let outcome = match &container.made_of {
            MadeOf::Array(array) => array.poll()?,
            MadeOf::Chain(chain) => chain.poll()?,
        };
        self.settle(outcome);
        Some(self.outcome(self.state.word()))
    }

    fn outcome(&self, state: u32) -> Outcome {
        Outcome {
            error: FenceError::from_bits(state >> ERROR_SHIFT),
            timestamp: Timestamp::from_nanos(self.timestamp.load(Ordering::Relaxed)),
        }
    }

    /// Whether the state word says signalled; does not look at members.
    #[inline]
    pub(super) fn is_settled(&self) -> bool {
        self.state.word() & SIGNALLED != 0
    }

    /// Makes the fence signalled without running its callbacks. For a container that was found signalled by looking:
    /// its callbacks are run by the thread that signals the last member.
    fn settle(&self, outcome: Outcome) {
        let mut state = self.state.lock();
        self.store_outcome(&mut state, outcome);
        drop(state);
        if let Body::Chain(chain) = self.body() {
            chain.forget_prev();
        }
    }

    /// Writes the state, once. False if the fence had signalled.
    #[inline]
    fn store_outcome(&self, state: &mut Guard<'_, Callbacks>, outcome: Outcome) -> bool {
        if state.word() & SIGNALLED != 0 {
            return false;
        }
        self.timestamp.store(outcome.timestamp.as_nanos(), Ordering::Relaxed);
        state.set_word(SIGNALLED | error_bits(outcome.error) << ERROR_SHIFT);
        true
    }
}

impl Fence {
    /// As [`add_callback`](Self::add_callback), but does not look at the members of a container.
    #[inline]
    pub(super) fn register<F>(&self, callback: F) -> Result<CallbackId, F>
    where
        F: FnOnce(&Fence) + Send + 'static,
    {
        // Not under the lock: it takes memory.
        let callback = Box::new(callback);
        let mut callbacks = self.0.state.lock();
        if callbacks.word() & SIGNALLED != 0 {
            drop(callbacks);
            return Err(*callback);
        }
        let id = callbacks.add(callback);
        if self.0.container.is_some() {
            callbacks.keep_alive(self);
            let arm = callbacks.follow_members();
            drop(callbacks);
            if arm {
                post_arm(self.clone());
            }
        }
        Ok(id)
    }

    /// Signals the fence and has its callbacks run. Does nothing if it had signalled.
    #[inline]
    pub(super) fn finish(self, outcome: Outcome) {
        let inner = &*self.0;
        let mut state = inner.state.lock();
        let first = inner.store_outcome(&mut state, outcome);
        let released = state.release();
        drop(state);
        if let Body::Chain(chain) = inner.body() {
            chain.forget_prev();
        }
        if tracing::level_enabled!(tracing::Level::TRACE) && first {
            inner.trace_signal(outcome);
        }
        run_callbacks(self, released);
    }
}

/// The error's bits of the state word. Most fences have none.
#[inline]
fn error_bits(error: Option<FenceError>) -> u32 {
    #[cold]
    fn failed(error: FenceError) -> u32 {
        error.to_bits()
    }
    error.map_or(0, failed)
}

#[cold]
fn trace_init(context: FenceContext, seqno: Seqno) {
    tracing::trace!(target: "lapidary::fence", context = context.get(), seqno = seqno.get(), "fence init");
}

impl Inner {
    #[cold]
    fn trace_signal(&self, outcome: Outcome) {
        tracing::trace!(
            target: "lapidary::fence",
            context = self.context.get(),
            seqno = self.seqno.get(),
            error = outcome.error.map(tracing::field::display),
            "fence signaled"
        );
    }
}

impl Signaller {
    /// Signals success, now.
    pub fn signal(self) {
        self.finish(Outcome::now(None));
    }

    /// Signals success that happened at `timestamp`, for producers that know better than the clock.
    pub fn signal_at(self, timestamp: Timestamp) {
        self.finish(Outcome { error: None, timestamp });
    }

    /// Signals failure, now.
    pub fn fail(self, error: FenceError) {
        self.finish(Outcome::now(Some(error)));
    }

    /// Signals with the given status, now.
    pub fn signal_with(self, status: Result<(), FenceError>) {
        self.finish(Outcome::now(status.err()));
    }

    fn finish(mut self, outcome: Outcome) {
        if let Some(fence) = self.0.take() {
            fence.finish(outcome);
        }
    }

    /// The fence this signals.
    pub fn fence(&self) -> &Fence {
        match &self.0 {
            Some(fence) => fence,
            None => unreachable!("only signalling takes the fence, and that consumes the signaller"),
        }
    }

    /// Has `hook` called, in the asking thread, with each deadline hint that is earlier than all before. The hook is
    /// dropped when the fence signals. It must not block.
    pub fn on_deadline(&self, hook: impl Fn(Timestamp) + Send + Sync + 'static) {
        let replaced = self.fence().0.state.lock().set_deadline_hook(Arc::new(hook));
        drop(replaced);
    }
}

impl Drop for Signaller {
    fn drop(&mut self) {
        if let Some(fence) = self.0.take() {
            // A producer that panics drops it on its way.
            while_panicking(|| fence.finish(Outcome::now(Some(FenceError::Cancelled))));
        }
    }
}

impl Drop for Inner {
    /// Lets go of members one after the other instead of one inside the other: a chain may have a million links.
    fn drop(&mut self) {
        if self.container.is_none() {
            return;
        }
        let mut dropped = Vec::new();
        self.release_members(&mut dropped);
        while let Some(fence) = dropped.pop() {
            if let Some(mut inner) = Shared::into_inner(fence.0) {
                inner.release_members(&mut dropped);
            }
        }
    }
}

impl Inner {
    /// Moves what this container holds of other fences to `into`, and withdraws what it registered with them.
    fn release_members(&mut self, into: &mut Vec<Fence>) {
        match self.container.take().map(|container| container.made_of) {
            None => {}
            Some(MadeOf::Array(array)) => array.release(into),
            Some(MadeOf::Chain(chain)) => chain.release(into),
        }
    }
}

/// What the kernel calls describing a fence: timeline, context, number, state.
impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.0.body() {
            Body::Plain => "Fence",
            Body::Array(_) => "FenceArray",
            Body::Chain(_) => "FenceChain",
        };
        let name = self.0.timeline.as_ref().map_or("", Timeline::name);
        write!(f, "{kind}({name}{}:{}", self.0.context.get(), self.0.seqno.get())?;
        // Not a poll: describing a fence must not walk a chain.
        let state = self.0.state.word();
        match state & SIGNALLED {
            0 => f.write_str(", pending)"),
            _ => match FenceError::from_bits(state >> ERROR_SHIFT) {
                None => f.write_str(", signalled)"),
                Some(error) => write!(f, ", failed: {error})"),
            },
        }
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fence::ArrayMode, sync::unit_test};

    fn fence() -> (Fence, Signaller) {
        Fence::new(FenceContext::alloc(), Seqno(1))
    }

    /// H21: what nobody wants goes at once, signalled or not, and leaves nothing with its members.
    #[test]
    fn h21_an_unwanted_container_is_freed_and_withdraws_from_its_members() {
        unit_test(|| {
            let (one, _one) = fence();
            let (two, _two) = fence();
            let containers = [
                Fence::array(vec![one.clone(), two.clone()], ArrayMode::All),
                Fence::array(vec![one.clone(), two.clone()], ArrayMode::Any),
                Fence::chain(Some(Fence::chain(None, one.clone(), 1)), two.clone(), 2),
            ];
            for container in containers {
                let Ok(id) = container.add_callback(|_| ()) else { panic!("it has not signalled") };
                assert!(two.0.state.lock().pending_count() > 0);
                let weak = Shared::downgrade(&container.0);
                drop(container.clone());
                assert!(weak.upgrade().is_some());
                assert!(container.remove_callback(id));
                drop(container);
                assert!(weak.upgrade().is_none());
                assert_eq!(one.0.state.lock().pending_count(), 0);
                assert_eq!(two.0.state.lock().pending_count(), 0);
            }
        });
    }

    /// H21: a container with a callback lives for it, and goes with it.
    #[test]
    fn h21_a_container_is_kept_by_its_callback_and_freed_after_it() {
        unit_test(|| {
            let (one, signaller) = fence();
            let array = Fence::array(vec![one, Fence::signalled()], ArrayMode::All);
            array.on_signal(|_| ());
            let weak = Shared::downgrade(&array.0);
            drop(array);
            assert!(weak.upgrade().is_some());
            signaller.signal();
            assert!(weak.upgrade().is_none());
        });
    }
}
