//! The tree against a sorted list, under random splices, its invariants checked after each; and each thing that happens to
//! nodes, as the folder's head draws it.

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
    // Nodes are asked for only where that is said to be needed, and no more are used than was said.
    let (leaves, inners) = tree.nodes();
    let fits = tree.fits(&place, run.len(), new.len());
    let more = if fits { (0, 0) } else { (1, tree.depth() + 1) };
    if !fits && !tree.has_room(3) {
        assert!(tree.reserve(3));
    }
    let bytes = tree.bytes();
    tree.splice(&place, run.len(), &new);
    assert!(tree.nodes().0 <= leaves + more.0 && tree.nodes().1 <= inners + more.1);
    assert_eq!(tree.bytes(), bytes, "a splice asks for no memory");

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

/// A tree of entries ten apart, five long, put in in ascending order: full leaves, but for the last.
fn full_leaves(count: u64) -> Tree {
    let mut tree = Tree::new();
    for i in 0..count {
        put(&mut tree, 10 * i, 10 * i + 5);
    }
    tree
}

fn put(tree: &mut Tree, start: u64, end: u64) {
    assert!(tree.reserve(1));
    let place = tree.place(start);
    tree.splice(&place, 0, &[Entry { start, end, id: 0 }]);
    tree.check().unwrap();
}

/// Removes those that start in `from..to`.
fn remove(tree: &mut Tree, from: u64, to: u64) {
    let place = tree.place(from);
    let count = tree.walk_place(&place).take_while(|entry| entry.start < to).count();
    tree.splice(&place, count, &[]);
    tree.check().unwrap();
}

#[test]
fn a_full_leaf_splits_in_the_middle() {
    let mut tree = full_leaves(32);
    assert_eq!((tree.depth(), tree.fill()), (0, vec![32]));
    put(&mut tree, 47, 48);
    assert_eq!((tree.depth(), tree.fill(), tree.separators()), (1, vec![17, 16], &[160][..]));
    // The upper half takes what its start leads to.
    let mut tree = full_leaves(32);
    put(&mut tree, 167, 168);
    assert_eq!((tree.fill(), tree.separators()), (vec![16, 17], &[160][..]));
}

#[test]
fn behind_all_others_a_full_leaf_stays_full() {
    let mut tree = full_leaves(32);
    put(&mut tree, 320, 325);
    assert_eq!((tree.fill(), tree.separators()), (vec![32, 1], &[320][..]));
    // Elsewhere an entry at a leaf's end is like any other.
    put(&mut tree, 317, 318);
    assert_eq!((tree.fill(), tree.separators()), (vec![16, 17, 1], &[160, 320][..]));
}

#[test]
fn an_entry_that_reaches_over_a_separator_raises_it() {
    let mut tree = full_leaves(64);
    assert_eq!((tree.fill(), tree.separators()), (vec![32, 32], &[320][..]));
    // Given a gap on both sides of the separator
    remove(&mut tree, 300, 350);
    assert_eq!((tree.fill(), tree.separators()), (vec![30, 29], &[320][..]));
    // When an entry is put over it, it lies behind that entry
    put(&mut tree, 300, 345);
    assert_eq!((tree.fill(), tree.separators()), (vec![31, 29], &[345][..]));
    assert_eq!(tree.first_behind(340).map(|entry| entry.start), Some(300));
    // And stays there when the entry goes.
    remove(&mut tree, 300, 301);
    assert_eq!(tree.separators(), [345]);
    assert_eq!(tree.first_behind(340).map(|entry| entry.start), Some(350));
}

#[test]
fn a_quarter_full_leaf_merges_with_a_sibling_if_both_fill_three_quarters() {
    let mut tree = full_leaves(96);
    assert_eq!(tree.fill(), [32, 32, 32]);
    // Too much together: it stays alone.
    remove(&mut tree, 320, 560);
    assert_eq!(tree.fill(), [32, 8, 32]);
    remove(&mut tree, 640, 770);
    remove(&mut tree, 770, 800);
    assert_eq!(tree.fill(), [32, 8, 16]);
    // The right one goes.
    remove(&mut tree, 560, 561);
    assert_eq!((tree.fill(), tree.separators()), (vec![32, 23], &[320][..]));
    // To the left, where there is nothing to the right.
    remove(&mut tree, 0, 160);
    remove(&mut tree, 570, 920);
    assert_eq!((tree.depth(), tree.fill()), (0, vec![20]));
}

#[test]
fn an_empty_leaf_goes_and_a_root_with_one_child_gives_way_to_it() {
    let mut tree = full_leaves(96);
    remove(&mut tree, 320, 640);
    assert_eq!((tree.fill(), tree.separators()), (vec![32, 32], &[640][..]));
    remove(&mut tree, 0, 320);
    assert_eq!((tree.depth(), tree.fill(), tree.nodes()), (0, vec![32], (1, 0)));
    remove(&mut tree, 0, 1000);
    assert_eq!((tree.fill(), tree.nodes()), (vec![], (0, 0)));
}

#[test]
fn a_full_inner_node_splits_and_what_is_left_of_it_merges() {
    // 64 full leaves under one root; one more, along the right edge, leaves 63 to the left.
    let mut tree = full_leaves(64 * 32);
    assert_eq!((tree.depth(), tree.nodes()), (1, (64, 1)));
    put(&mut tree, 20_480, 20_485);
    assert_eq!((tree.depth(), tree.nodes()), (2, (65, 3)));
    assert_eq!(tree.separators(), [320 * 63]);
    // In the middle it is halved.
    let mut tree = full_leaves(64 * 32);
    put(&mut tree, 7, 8);
    assert_eq!((tree.depth(), tree.nodes()), (2, (65, 3)));
    assert_eq!(tree.separators(), [320 * 32]);
    // Whole leaves go until the two can be one, and the tree is a level lower.
    for leaf in 1..64 {
        remove(&mut tree, 320 * leaf, 320 * (leaf + 1));
    }
    assert_eq!((tree.depth(), tree.fill()), (1, vec![17, 16]));
}

#[test]
fn a_wide_splice_takes_a_tail_whole_leaves_and_a_head() {
    let mut tree = full_leaves(128);
    let place = tree.place(100);
    let count = tree.walk_place(&place).take_while(|entry| entry.start < 1000).count();
    assert_eq!(count, 90);
    tree.splice(
        &place,
        count,
        &[Entry { start: 100, end: 997, id: 1 }, Entry { start: 998, end: 999, id: 2 }],
    );
    tree.check().unwrap();
    // Ten and the first new one, and 28 of the last: the second new one lies behind the separator.
    assert_eq!((tree.fill(), tree.separators()), (vec![11, 29], &[997][..]));
}
