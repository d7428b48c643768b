use loom::thread;

use super::{core::Inner, shared::Shared};
use crate::{check, join, watch};

fn inner() -> Inner {
    Inner::new(1, 1, false, None)
}

/// Three owners in three threads, one of whom makes another, let go in every order: the last one drops the value, after
/// all others have looked at it.
#[test]
fn the_last_owner_drops_the_value() {
    check(3, || {
        let (one, two) = Shared::pair(inner());
        let three = one.clone();
        let threads = [
            thread::spawn(move || {
                let another = two.clone();
                drop(two);
                another.look();
            }),
            thread::spawn(move || three.look()),
        ];
        one.look();
        drop(one);
        join(threads);
        watch::assert_all_freed();
    });
}

/// Both halves ask for the value when they let go: one of them gets it.
#[test]
fn one_owner_gets_the_value() {
    check(3, || {
        let (one, two) = Shared::pair(inner());
        two.look();
        let other = thread::spawn(move || Shared::into_inner(two).is_some());
        let mine = Shared::into_inner(one).is_some();
        assert!(other.join().unwrap() ^ mine);
        watch::assert_all_freed();
    });
}

/// The last owner goes while a weak reference asks for the value: either it becomes an owner, and the value stays, or there
/// is none. The weak reference goes before, between and after the two steps of the last owner's.
#[test]
fn a_weak_reference_gets_a_live_value_or_none() {
    check(4, || {
        let owner = Shared::new(inner());
        let weak = Shared::downgrade(&owner);
        let asking = thread::spawn(move || {
            let upgraded = weak.upgrade();
            drop(weak);
            if let Some(owner) = upgraded {
                owner.look();
            }
        });
        owner.look();
        drop(owner);
        join([asking]);
        watch::assert_all_freed();
    });
}

/// The last owner and two weak references, made from one another, go at the same time: the memory is freed once, after the
/// value was dropped.
#[test]
fn the_last_reference_frees_the_memory() {
    check(3, || {
        let owner = Shared::new(inner());
        let weak = Shared::downgrade(&owner);
        let other = thread::spawn({
            let weak = Shared::downgrade(&owner);
            move || drop(weak)
        });
        let last = thread::spawn(move || drop(owner));
        assert!(weak.upgrade().is_none_or(|owner| {
            owner.look();
            true
        }));
        drop(weak);
        join([other, last]);
        watch::assert_all_freed();
    });
}
