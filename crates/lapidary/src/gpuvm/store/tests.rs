//! The tree against a sorted list, under random splices, its invariants checked after each.

use alloc::vec::Vec;

use proptest::prelude::*;

use super::{Entry, Tree};

/// Replaces everything that overlaps `start..end`, cut to what is outside, with the range itself (if `insert`):
/// on the tree and on the list.
fn replace(tree: &mut Tree, list: &mut Vec<Entry>, start: u64, end: u64, insert: Option<u32>) {
    let place = tree.place(start);
    let run: Vec<Entry> = tree.walk_place(&place).take_while(|entry| entry.start < end).collect();
    let expected: Vec<Entry> =
        list.iter().copied().filter(|entry| entry.end > start && entry.start < end).collect();
    assert_eq!(run, expected);

    let mut new = Vec::new();
    if let Some(first) = run.first().filter(|first| first.start < start) {
        new.push(Entry { end: start, ..*first });
    }
    if let Some(id) = insert {
        new.push(Entry { start, end, id });
    }
    if let Some(last) = run.last().filter(|last| last.end > end) {
        new.push(Entry { start: end, ..*last });
    }
    assert!(tree.reserve(3));
    tree.splice(&place, run.len(), &new);

    let at = list.partition_point(|entry| entry.end <= start);
    list.splice(at..at + run.len(), new);
}

fn agree(tree: &Tree, list: &[Entry]) {
    tree.check().unwrap();
    assert!(tree.walk().eq(list.iter().copied()));
}

#[derive(Clone, Debug)]
enum Op {
    Insert(u64, u64),
    Remove(u64, u64),
    Look(u64),
}

fn ops(space: u64, longest: u64) -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (0..space, 1..8u64).prop_map(|(at, len)| Op::Insert(at, len)),
        1 => (0..space, 1..longest).prop_map(|(at, len)| Op::Insert(at, len)),
        2 => (0..space, 1..longest).prop_map(|(at, len)| Op::Remove(at, len)),
        1 => (0..space).prop_map(Op::Look),
    ];
    prop::collection::vec(op, 1..1500)
}

fn run(ops: Vec<Op>) {
    let (mut tree, mut list) = (Tree::new(), Vec::new());
    for (i, op) in ops.into_iter().enumerate() {
        match op {
            Op::Insert(at, len) => replace(&mut tree, &mut list, at, at + len, Some(i as u32)),
            Op::Remove(at, len) => replace(&mut tree, &mut list, at, at + len, None),
            Op::Look(at) => {
                assert_eq!(tree.first_behind(at), list.iter().copied().find(|entry| entry.end > at));
            }
        }
        agree(&tree, &list);
    }
    replace(&mut tree, &mut list, 0, u64::MAX, None);
    agree(&tree, &list);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn random_splices_in_a_crowded_space(ops in ops(3_000, 40)) {
        run(ops);
    }

    #[test]
    fn random_splices_with_wide_removals(ops in ops(20_000, 6_000)) {
        run(ops);
    }
}

/// Deep enough for three inner levels' worth of splits and merges, checked now and then.
#[test]
fn a_large_tree_grows_and_shrinks() {
    const COUNT: u64 = 300_000;
    let mut tree = Tree::new();
    // A fixed permutation: 7919 has no factor in common with the count.
    for i in 0..COUNT {
        let at = (i * 7919 % COUNT) * 10;
        assert!(tree.reserve(1));
        let place = tree.place(at);
        tree.splice(&place, 0, &[Entry { start: at, end: at + 10, id: i as u32 }]);
    }
    tree.check().unwrap();
    assert_eq!(tree.len(), COUNT as usize);
    for i in 0..COUNT {
        let at = (i * 104_729 % COUNT) * 10;
        let place = tree.place(at);
        assert_eq!(tree.first_behind(at).map(|entry| entry.start), Some(at));
        tree.splice(&place, 1, &[]);
        if i % 20_000 == 0 {
            tree.check().unwrap();
        }
    }
    tree.check().unwrap();
    assert_eq!(tree.len(), 0);
    tree.release_if_empty();
    assert_eq!(tree.bytes(), 0);
}

#[test]
fn ascending_insertion_fills_the_leaves() {
    let mut tree = Tree::new();
    for i in 0..10_000u64 {
        assert!(tree.reserve(1));
        let place = tree.place(i);
        tree.splice(&place, 0, &[Entry { start: i, end: i + 1, id: 0 }]);
    }
    tree.check().unwrap();
    assert!(tree.bytes() < 10_000 * 28, "{} bytes", tree.bytes());
}

/// What a batch of changes does when it is taken back: many entries go in one removal and come back one by one,
/// out of room that was reserved while they were there.
#[test]
fn room_for_putting_back_what_was_removed() {
    for stride in [2, 3, 7, 16] {
        let mut tree = Tree::new();
        for i in 0..5_000u64 {
            assert!(tree.reserve(1));
            let place = tree.place(i * 7919 % 5_000 * 4);
            let start = i * 7919 % 5_000 * 4;
            tree.splice(&place, 0, &[Entry { start, end: start + 4, id: 0 }]);
        }
        let gone: Vec<Entry> =
            tree.walk().enumerate().filter(|(i, _)| i % stride != 0).map(|x| x.1).collect();
        assert!(tree.reserve(gone.len()));
        for entry in &gone {
            let place = tree.place(entry.start);
            tree.splice(&place, 1, &[]);
        }
        let before = tree.bytes();
        for entry in gone.iter().rev() {
            let place = tree.place(entry.start);
            tree.splice(&place, 0, &[*entry]);
        }
        tree.check().unwrap();
        assert_eq!(tree.bytes(), before, "no allocation while entries come back");
    }
}
