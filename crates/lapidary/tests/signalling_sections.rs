//! H24: in a signalling section, taking a reservation or waiting for a fence is caught in debug builds, with both places named.

#![cfg(debug_assertions)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use lapidary::{
    exec::{Duplicates, Exec, ExecError},
    fence::{self, ArrayMode, Deadline, Fence, FenceContext, Interrupt, Seqno, Signaller, WaitQueue},
    resv::{Reservation, Usage},
    syncobj::{self, Syncobj, WaitFlags},
};

fn fence() -> (Fence, Signaller) {
    Fence::new(FenceContext::alloc(), Seqno(1))
}

/// The message of the panic that `blocking` ends in.
fn caught(blocking: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(blocking)).expect_err("nothing was caught");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

/// Each is in this file, on a line of its own.
fn assert_names_both_places(message: &str) {
    let lines: Vec<_> = message.split(file!()).skip(1).map(|place| place.split(':').nth(1)).collect();
    assert!(matches!(lines[..], [Some(blocking), Some(other)] if blocking != other), "{message}");
}

#[test]
fn h24_whatever_blocks_is_caught_with_both_places_named() {
    let none = &Interrupt::none();
    let never = Deadline::never();
    let resv = &Reservation::new();
    let (fence, _signaller) = &fence();
    let fences = std::slice::from_ref(fence);
    let syncobj = &Syncobj::new(false);
    let points = &[(syncobj.clone(), 1)];
    let queue = &WaitQueue::new();
    let duplicates = Duplicates::Allow;
    let array = &Fence::array(vec![fence.clone(), Fence::signalled()], ArrayMode::All);
    let blocking: [(&str, &dyn Fn()); 14] = [
        ("Fence::wait", &|| _ = fence.wait(never, none)),
        ("Fence::wait of a container", &|| _ = array.wait(never, none)),
        ("wait_any", &|| _ = fence::wait_any(fences, never, none)),
        ("wait_all", &|| _ = fence::wait_all(fences, never, none)),
        ("WaitQueue::wait", &|| _ = queue.wait(never, none, || None::<()>)),
        ("Reservation::lock", &|| _ = resv.lock()),
        ("Reservation::lock_interruptible", &|| _ = resv.lock_interruptible(none)),
        ("Reservation::wait", &|| _ = resv.wait(Usage::Read, never, none)),
        ("Exec::lock_all", &|| _ = Exec::lock_all([resv], duplicates, none)),
        ("Exec::run", &|| _ = Exec::run(duplicates, none, |exec| exec.lock_owned(resv.clone()))),
        ("Exec::prepare", &|| _ = Exec::new(duplicates, none).prepare(resv, 1)),
        ("syncobj::wait", &|| _ = syncobj::wait(points, WaitFlags::default(), never, none)),
        ("Syncobj::wait_fence", &|| _ = syncobj.wait_fence(1, never, none)),
        ("Syncobj::transfer_when_submitted", &|| {
            _ = syncobj.transfer_when_submitted(1, syncobj, 1, never, none);
        }),
    ];
    for (name, blocking) in blocking {
        let message = caught(|| {
            let _section = fence::signalling();
            blocking();
        });
        println!("{name}: {message}");
        assert_names_both_places(&message);
    }
    assert!(!resv.is_locked());
}

#[test]
fn h24_it_is_caught_even_if_it_would_not_block_this_time() {
    let (never, none) = (Deadline::never(), &Interrupt::none());
    let (signalled, idle, queue) = (Fence::signalled(), Reservation::new(), WaitQueue::new());
    let syncobj = Syncobj::new(true);
    let points = [(syncobj.clone(), 0)];
    let blocking: [&dyn Fn(); 5] = [
        &|| _ = signalled.wait(never, none),
        &|| _ = queue.wait(never, none, || Some(())),
        &|| _ = idle.wait(Usage::Bookkeep, never, none),
        &|| _ = syncobj::wait(&points, WaitFlags::default(), never, none),
        &|| _ = syncobj.wait_fence(0, never, none),
    ];
    for blocking in blocking {
        let message = caught(|| {
            let _section = fence::signalling();
            blocking();
        });
        assert_names_both_places(&message);
    }
}

#[test]
fn h24_trying_and_polling_are_allowed_and_the_section_ends() {
    let resv = Reservation::new();
    let (fence, _signaller) = fence();
    let (none, poll) = (Interrupt::none(), Deadline::poll());
    {
        let _outer = fence::signalling();
        let _inner = fence::signalling();
        assert!(resv.try_lock().is_some());
        assert!(Exec::new(Duplicates::Allow, &none).try_lock(&resv));
        assert!(fence.wait(poll, &none).is_err());
        assert!(resv.wait(Usage::Bookkeep, poll, &none).is_ok());
        assert!(syncobj::wait(&[(Syncobj::new(true), 0)], WaitFlags::default(), poll, &none).is_ok());
    }
    drop(resv.lock());
}

#[test]
fn h24_a_callback_is_in_a_signalling_section() {
    // Of a plain fence, and of a container.
    for armed in [false, true] {
        let (fence, signaller) = fence();
        let resv = Reservation::new();
        let fence = if armed { Fence::chain(None, fence, 1) } else { fence };
        fence.on_signal(move |_| drop(resv.lock()));
        let message = caught(|| signaller.signal());
        assert!(
            message.starts_with("reservation lock at ") && message.contains("section begun at "),
            "{message}"
        );
        // The thread is in no section afterwards.
        drop(Reservation::new().lock());
    }
}

/// The same for locks in the wrong order: one that is held while another one is waited for.
#[test]
fn h24_locking_a_second_reservation_past_exec_is_caught_with_both_places_named() {
    let (one, two) = (Reservation::new(), Reservation::new());
    let none = Interrupt::none();
    let held = one.lock();
    for message in
        [caught(|| drop(two.lock())), caught(|| _ = Exec::lock_all([&two], Duplicates::Allow, &none))]
    {
        assert_names_both_places(&message);
    }
    assert!(two.try_lock().is_some());
    drop(held);
    drop(two.lock());
    // Also while a set is locked, for what is not of that set.
    let set = Exec::lock_all([&one], Duplicates::Allow, &none).unwrap();
    for message in
        [caught(|| drop(two.lock())), caught(|| _ = Exec::new(Duplicates::Allow, &none).lock(&two))]
    {
        assert_names_both_places(&message);
    }
    drop(set);
    let locked: Result<_, ExecError> = Exec::lock_all([&one, &two], Duplicates::Allow, &none);
    assert_eq!(locked.map(|set| set.len()), Ok(2));
}
