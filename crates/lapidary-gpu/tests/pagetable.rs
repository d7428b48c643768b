//! Page tables: what is mapped where, in which leaves, and where the nodes go.

mod common;

use common::rw;
use lapidary_gpu::{
    Gpu, GpuConfig, GpuVa,
    memory::PhysAddr,
    pagetable::{Needs, PageTableError, Pat, PteAttrs, Target, VaSpan},
};
use proptest::prelude::*;

const K4: u64 = 4 << 10;
const K64: u64 = 64 << 10;
const M2: u64 = 2 << 20;
const G1: u64 = 1 << 30;

fn gpu(nodes: u32) -> Gpu {
    Gpu::new(GpuConfig { engines: vec![], page_table_nodes: nodes, ..GpuConfig::default() }).unwrap()
}

fn vram(addr: u64) -> Target {
    Target::Memory(PhysAddr::vram(addr))
}

fn system(addr: u64) -> Target {
    Target::Memory(PhysAddr::system(addr))
}

#[test]
fn a_leaf_is_the_largest_that_alignment_and_contiguity_allow() {
    let gpu = gpu(1 << 12);
    let space = gpu.create_space(false).unwrap();
    for (va, addr, len, leaf) in [
        (G1, 0, G1, G1),
        (G1, 0, G1 - M2, M2),
        (G1, M2, G1, M2),
        (M2, 0, M2, M2),
        (M2, K64, M2, K64),
        (M2, 0, M2 - K64, K64),
        (M2, K4, M2, K4),
        (K64, 0, K64, K64),
        (K4, 0, K64, K4),
        (K64, 0, K64 - K4, K4),
    ] {
        space.map(GpuVa::new(va), len, system(addr), rw()).unwrap();
        let found = space.translate(GpuVa::new(va)).unwrap();
        assert_eq!(found.size(), leaf, "{len:#x} bytes at {va:#x} to {addr:#x}");
        space.unmap(GpuVa::new(va), len).unwrap();
    }
}

#[test]
fn an_entry_keeps_permission_attribute_and_space() {
    let gpu = gpu(64);
    let space = gpu.create_space(false).unwrap();
    let attrs = PteAttrs { writable: false, pat: Pat::new(31).unwrap() };
    for (va, target) in [(0, vram(K64)), (K64, system(0x1234_5678_9000)), (2 * K64, Target::Null)] {
        space.map(GpuVa::new(va), K64, target, attrs).unwrap();
        let leaf = space.translate(GpuVa::new(va + 5)).unwrap();
        assert_eq!((leaf.target_of(GpuVa::new(va)), leaf.attrs), (target, attrs));
    }
}

#[test]
fn unmapping_part_of_a_large_leaf_keeps_the_rest_as_it_was() {
    let gpu = gpu(64);
    let space = gpu.create_space(false).unwrap();
    space.map(GpuVa::new(G1), G1, vram(G1), rw()).unwrap();
    space.unmap(GpuVa::new(G1 + 3 * M2 + K4), K4).unwrap();
    assert_eq!(space.translate(GpuVa::new(G1 + 3 * M2 + K4)), None);
    for (offset, size) in [(0, M2), (3 * M2, K4), (3 * M2 + 2 * K4, K4), (3 * M2 + K64, K64), (4 * M2, M2)] {
        let leaf = space.translate(GpuVa::new(G1 + offset)).unwrap();
        assert_eq!(leaf.target_of(GpuVa::new(G1 + offset)), vram(G1 + offset));
        assert_eq!(leaf.size(), size, "at {offset:#x}");
    }
}

#[test]
fn a_null_mapping_of_the_whole_space_needs_few_nodes() {
    let gpu = gpu(1024);
    let space = gpu.create_space(false).unwrap();
    space.map(GpuVa::new(0), 1 << 48, Target::Null, rw()).unwrap();
    assert_eq!(gpu.nodes().in_use(), 1 + 512);
    let last = space.translate(GpuVa::new(u64::MAX)).unwrap();
    assert_eq!((last.target, last.span().end()), (Target::Null, 1 << 48));
    space.clear();
    assert_eq!(gpu.nodes().in_use(), 1);
}

#[test]
fn h26_a_cleared_or_dropped_space_gives_all_its_nodes_back() {
    let gpu = gpu(1 << 12);
    let space = gpu.create_space(false).unwrap();
    for step in 0..50 {
        space.map(GpuVa::new(step * G1 + step * K4), 3 * M2, system(step * K4), rw()).unwrap();
    }
    space.clear();
    assert_eq!(gpu.nodes().in_use(), 1);
    space.map(GpuVa::new(0), M2 + K4, system(0), rw()).unwrap();
    drop(space);
    gpu.nodes().reap();
    assert_eq!(gpu.nodes().in_use(), 0);
}

#[test]
fn h28_what_leaves_the_space_or_is_misaligned_is_refused_before_anything_changes() {
    let gpu = gpu(64);
    let space = gpu.create_space(false).unwrap();
    let map = |va, len, target| space.map(GpuVa::new(va), len, target, rw()).unwrap_err();
    let top = (1 << 48) - K4;
    assert!(matches!(map(top, 2 * K4, system(0)), PageTableError::OutsideSpace { .. }));
    assert!(matches!(map(K4, u64::MAX, system(0)), PageTableError::OutsideSpace { .. }));
    assert!(matches!(map(K4, 0, system(0)), PageTableError::OutsideSpace { .. }));
    assert!(matches!(map(K4 + 1, K4, system(0)), PageTableError::Misaligned { .. }));
    assert!(matches!(map(K4, K4, system(1)), PageTableError::Misaligned { .. }));
    assert!(matches!(map(K4, 2 * K4, system(top)), PageTableError::AddressTooLarge(_)));
    assert!(space.leaves(VaSpan::ALL, 1).is_empty());
    space.map(GpuVa::new(top), K4, system(0), rw()).unwrap();
    assert!(space.translate(GpuVa::new(top)).is_some());
}

#[test]
fn h29_without_nodes_a_change_is_refused_and_nothing_else_is_harmed() {
    let gpu = gpu(64);
    let space = gpu.create_space(false).unwrap();
    space.map(GpuVa::new(0), K4, system(K4), rw()).unwrap();
    let mut needs = Needs::new();
    needs.map_pages(VaSpan::new(GpuVa::new(0), 58 * M2).unwrap());
    let held = space.reserve(&needs).unwrap();
    assert_eq!(held.len(), 60);
    let error = space.map(GpuVa::new(G1), K4, system(0), rw()).unwrap_err();
    assert!(matches!(error, PageTableError::OutOfNodes { .. }));
    assert_eq!(space.translate(GpuVa::new(G1)), None);
    assert_eq!(space.translate(GpuVa::new(0)).unwrap().target, system(K4));
    drop(held);
    space.map(GpuVa::new(G1), K4, system(0), rw()).unwrap();
}

#[test]
fn h07_nodes_that_an_edit_did_not_need_go_back() {
    let gpu = gpu(1 << 12);
    let space = gpu.create_space(false).unwrap();
    let span = VaSpan::new(GpuVa::new(0), G1).unwrap();
    let mut needs = Needs::new();
    needs.map_pages(span);
    let mut nodes = space.reserve(&needs).unwrap();
    let mut edit = space.edit();
    edit.map(span, vram(0), rw(), &mut nodes).unwrap();
    edit.commit();
    drop(nodes);
    assert_eq!(gpu.nodes().in_use(), 2, "the root and one level");
    space.unmap(GpuVa::new(0), G1).unwrap();
    assert_eq!(gpu.nodes().in_use(), 1);
}

/// A change, as the model keeps it.
#[derive(Clone, Debug)]
struct Change {
    start: u64,
    end: u64,
    /// None unmaps.
    target: Option<(Target, PteAttrs)>,
}

impl Change {
    fn covers(&self, va: u64) -> bool {
        (self.start..self.end).contains(&va)
    }
}

/// Page numbers near the borders of leaves of all sizes.
fn page() -> impl Strategy<Value = u64> {
    let border =
        prop::sample::select(vec![0, K64, 3 * K64, M2, 2 * M2, 5 * M2, G1, G1 + M2, 2 * G1, 512 * G1]);
    (border, -17_i64..18).prop_map(|(border, pages)| (border as i64 / 4096 + pages).max(0) as u64)
}

fn change() -> impl Strategy<Value = Change> {
    let congruent = prop::sample::select(vec![0, K4, K64, M2, G1]);
    let attrs = (any::<bool>(), 0_u8..32)
        .prop_map(|(writable, pat)| PteAttrs { writable, pat: Pat::new(pat).unwrap() });
    (page(), page(), 0..4_u8, congruent, attrs).prop_filter_map("empty", |(a, b, kind, skew, attrs)| {
        let (start, end) = (a.min(b) * 4096, a.max(b) * 4096);
        let target = match kind {
            0 => None,
            1 => Some((Target::Null, attrs)),
            2 => Some((vram(start + skew), attrs)),
            _ => Some((system(start + skew), attrs)),
        };
        (start < end && end - start <= 3 * G1).then_some(Change { start, end, target })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_changes_translates_as_the_last_change_of_each_page_says(
        changes in prop::collection::vec(change(), 1..16),
    ) {
        let gpu = gpu(1 << 13);
        let space = gpu.create_space(false).unwrap();
        for (index, change) in changes.iter().enumerate() {
            let (va, len) = (GpuVa::new(change.start), change.end - change.start);
            match change.target {
                Some((target, attrs)) => space.map(va, len, target, attrs).unwrap(),
                None => space.unmap(va, len).unwrap(),
            }
            let done = &changes[..=index];
            let borders = done.iter().flat_map(|change| [change.start, change.end]);
            for va in borders.flat_map(|border| [border.saturating_sub(1), border, border + K4, border + K64]) {
                let expected = done.iter().rev().find(|change| change.covers(va)).and_then(|change| {
                    let (target, attrs) = change.target?;
                    Some((target.offset(va - change.start), attrs))
                });
                let found = space.translate(GpuVa::new(va)).map(|leaf| (leaf.target_of(GpuVa::new(va)), leaf.attrs));
                prop_assert_eq!(found, expected, "at {:#x}", va);
            }
        }
        for change in &changes {
            space.unmap(GpuVa::new(change.start), change.end - change.start).unwrap();
        }
        prop_assert_eq!(gpu.nodes().in_use(), 1);
    }
}
