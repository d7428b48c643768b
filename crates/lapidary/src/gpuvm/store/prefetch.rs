//! Asking for memory before it is needed.

#![allow(unsafe_code, reason = "the processor's hint takes a pointer")]

/// Has the cache lines of `things` on their way while other work goes on. Changes nothing else.
#[inline]
pub(super) fn prefetch<T>(things: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const LINE: usize = 64;
        let (start, bytes) = (things.as_ptr().cast::<i8>(), size_of_val(things));
        for line in (0..bytes).step_by(LINE) {
            // SAFETY: a hint reads nothing and can't fault, and every processor of this kind has it.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = things;
}
