//! Fences in `async` code.

use std::{
    future::{Future, IntoFuture},
    pin::Pin,
    task::{Context, Poll, Waker},
};

use crate::sync::{Arc, Mutex};

use super::{CallbackId, Fence, FenceError};

/// Becomes ready, with the fence's status, when the fence signals. Needs no runtime.
#[derive(Debug)]
#[must_use = "a future does nothing unless it is awaited"]
pub struct FenceFuture {
    fence: Fence,
    waiting: Option<Waiting>,
}

/// The callback and the task it wakes.
#[derive(Debug)]
struct Waiting {
    id: CallbackId,
    /// Empty once it was woken. Wakers are foreign code: none is cloned, dropped or woken under the lock.
    waker: Arc<Mutex<Option<Waker>>>,
}

impl IntoFuture for Fence {
    type Output = Result<(), FenceError>;
    type IntoFuture = FenceFuture;

    fn into_future(self) -> FenceFuture {
        FenceFuture { fence: self, waiting: None }
    }
}

impl Future for FenceFuture {
    type Output = Result<(), FenceError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &self.waiting {
            Some(waiting) => {
                let waker = cx.waker().clone();
                let replaced = waiting.waker.lock().replace(waker);
                drop(replaced);
            }
            None => {
                let waker = Arc::new(Mutex::new(Some(cx.waker().clone())));
                let wake = waker.clone();
                let id = self.fence.add_callback(move |_| {
                    let waker = wake.lock().take();
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                });
                self.waiting = id.ok().map(|id| Waiting { id, waker });
            }
        }
        // After the waker is in place, so that a signal in between is not missed.
        self.fence.status().map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for FenceFuture {
    fn drop(&mut self) {
        if let Some(waiting) = &self.waiting {
            self.fence.remove_callback(waiting.id);
        }
    }
}
