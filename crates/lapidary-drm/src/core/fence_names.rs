//! What fences are called: the names of driver and timeline that a sync_file tells.
//!
//! A fence that a library timeline made has the timeline's name, which in this server reads `DRIVER-TIMELINE`. A fence
//! that its driver numbers itself has none: its context is named here, for as long as the driver's [`NamedContext`]
//! lives. Containers, and fences of which nothing is known any more, are called as kernels call theirs.
//!
//! Contexts are numbered per process, so their names are kept per process. One lock, held for a lookup only.

use std::collections::BTreeMap;

use lapidary::fence::{Fence, FenceContext};
use parking_lot::Mutex;

/// What a fence's driver is called if nothing better is known.
const UNKNOWN_DRIVER: &str = "lapidary";

static CONTEXTS: Mutex<BTreeMap<FenceContext, FenceNames>> = Mutex::new(BTreeMap::new());

/// The names of a fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FenceNames {
    pub(super) driver: String,
    pub(super) timeline: String,
}

impl FenceNames {
    fn new(driver: &str, timeline: &str) -> Self {
        Self { driver: driver.to_owned(), timeline: timeline.to_owned() }
    }

    /// The names of that fence at this moment.
    pub(super) fn of(fence: &Fence) -> Self {
        if let Some(timeline) = fence.timeline() {
            let (driver, name) = timeline.name().split_once('-').unwrap_or((UNKNOWN_DRIVER, timeline.name()));
            return Self::new(driver, name);
        }
        if fence.is_container() {
            let driver = if fence.is_chain() { "dma_fence_chain" } else { "dma_fence_array" };
            return Self::new(driver, "unbound");
        }
        let named = CONTEXTS.lock().get(&fence.context()).cloned();
        named.unwrap_or_else(|| match fence.is_signalled() {
            true => Self::new("detached-driver", "signaled-timeline"),
            false => Self::new(UNKNOWN_DRIVER, ""),
        })
    }
}

/// A context of fences with names, which it has as long as this lives.
#[derive(Debug)]
pub struct NamedContext(FenceContext);

impl NamedContext {
    /// A new context, of that driver and timeline.
    #[must_use]
    pub fn new(driver: &str, timeline: &str) -> Self {
        let context = FenceContext::alloc();
        CONTEXTS.lock().insert(context, FenceNames::new(driver, timeline));
        Self(context)
    }

    /// The context itself.
    #[must_use]
    pub fn context(&self) -> FenceContext {
        self.0
    }
}

impl Drop for NamedContext {
    fn drop(&mut self) {
        CONTEXTS.lock().remove(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use lapidary::fence::{ArrayMode, Seqno, Timeline};

    use super::*;

    fn names(fence: &Fence) -> (String, String) {
        let FenceNames { driver, timeline } = FenceNames::of(fence);
        (driver, timeline)
    }

    fn pair(driver: &str, timeline: &str) -> (String, String) {
        (driver.to_owned(), timeline.to_owned())
    }

    #[test]
    fn a_timelines_name_says_the_driver_first() {
        let (fence, _signaller) = Timeline::new("xe-engine-2").next();
        assert_eq!(names(&fence), pair("xe", "engine-2"));
        let (fence, _signaller) = Timeline::new("ring").next();
        assert_eq!(names(&fence), pair(UNKNOWN_DRIVER, "ring"));
    }

    #[test]
    fn a_context_has_names_as_long_as_its_driver_keeps_them() {
        let named = NamedContext::new("gpu", "queue");
        let (fence, signaller) = Fence::new(named.context(), Seqno(1));
        assert_eq!(names(&fence), pair("gpu", "queue"));
        drop(named);
        assert_eq!(names(&fence), pair(UNKNOWN_DRIVER, ""));
        signaller.signal();
        assert_eq!(names(&fence), pair("detached-driver", "signaled-timeline"));
    }

    #[test]
    fn containers_are_bound_to_no_timeline() {
        let (fence, _signaller) = Timeline::new("ring").next();
        let chain = Fence::chain(None, fence.clone(), 1);
        assert_eq!(names(&chain), pair("dma_fence_chain", "unbound"));
        let array = Fence::array(vec![fence.clone(), chain], ArrayMode::Any);
        assert_eq!(names(&array), pair("dma_fence_array", "unbound"));
    }
}
