use loom::{sync::Arc, thread};

use super::{
    Fence, Seqno,
    desks::desk,
    slot::{DeskId, Pinned, Slot},
};
use crate::{check, join};

fn slot(fence: Option<Fence>) -> Slot {
    Slot::new(fence, DeskId::of(0))
}

fn assert_nothing_is_kept() {
    assert!(desk(0).retired.0.lock().is_empty(), "something is retired though nobody has pinned");
}

/// A reader looks before, while and after the fence is taken out and replaced.
#[test]
fn what_is_found_in_a_place_stays() {
    check(4, || {
        let place = Arc::new(slot(Some(Fence::new(1, 1))));
        let reader = thread::spawn({
            let place = place.clone();
            move || {
                let pinned = Pinned::new(place.desk());
                if let Some(found) = place.load(&pinned) {
                    found.look();
                    // A reference outlives the pin.
                    let own = (*found).clone();
                    drop(pinned);
                    own.look();
                }
            }
        });
        let pinned = Pinned::new(place.desk());
        if let Some(old) = place.load(&pinned) {
            place.replace(&old, Some(Fence::new(1, 2)));
            old.look();
        }
        drop(pinned);
        place.clear();
        join([reader]);
        assert_nothing_is_kept();
    });
}

/// Two threads skip what is finished and a third empties the place: one of them takes each fence out, and all still look at
/// what they found.
#[test]
fn who_replaces_and_who_clears_take_each_fence_out_once() {
    check(2, || {
        let place = Arc::new(slot(Some(Fence::new(1, 1))));
        let skip = |place: &Slot, by: u64| {
            let pinned = Pinned::new(place.desk());
            let Some(old) = place.load(&pinned) else { return };
            place.replace(&old, Some(Fence::new(1, by)));
            old.look();
        };
        let threads = [2, 3].map(|by| {
            let place = place.clone();
            thread::spawn(move || match by {
                2 => skip(&place, by),
                _ => place.clear(),
            })
        });
        skip(&place, 4);
        join(threads);
        // Who found something before the place was emptied puts nothing there afterwards.
        assert!(place.load(&Pinned::new(place.desk())).is_none());
        drop(place);
        assert_nothing_is_kept();
    });
}

/// A reader walks two links while another skips the first of them, which drops that link with what it leads to, and then
/// the chain's end is forgotten: whatever the reader comes to through a link that is gone by then is there.
#[test]
fn a_walker_finds_what_is_behind_a_link_that_was_let_go() {
    check(3, || {
        let last = Fence::new(0, 1);
        let middle = Fence::link(2, slot(Some(last)));
        let head = Fence::link(3, slot(Some(middle)));
        let walker = thread::spawn({
            let head = head.clone();
            move || {
                let pinned = Pinned::new(DeskId::of(0));
                let mut seen = head.seqno();
                let mut next = head.inner().prev.as_ref().and_then(|prev| prev.load(&pinned));
                while let Some(link) = next {
                    assert!(link.seqno() < seen);
                    seen = link.seqno();
                    next = link.inner().prev.as_ref().and_then(|prev| prev.load(&pinned));
                }
            }
        });
        let prev = head.inner().prev.as_ref().unwrap();
        {
            let pinned = Pinned::new(DeskId::of(0));
            let middle = prev.load(&pinned).unwrap();
            let last = middle.inner().prev.as_ref().unwrap().load(&pinned).unwrap();
            assert_eq!(last.seqno(), Seqno(1));
            prev.replace(&middle, Some((*last).clone()));
        }
        prev.clear();
        join([walker]);
        drop(head);
        assert_nothing_is_kept();
    });
}
