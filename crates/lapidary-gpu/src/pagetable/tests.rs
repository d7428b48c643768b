//! Page tables, walks and translation caches against a model that knows each page by itself.

use lapidary::sync::Arc;
use proptest::prelude::*;

use super::{
    entry::{Decoded, Entry, GROUP_SHIFT},
    pool::{FANOUT, NodeId, NodePool, NodeQuota},
    space::{AddressSpace, ROOT_LEVEL},
    types::{PAGE_SHIFT, Pat, PteAttrs, Target, VaSpan},
    *,
};
use crate::{
    bus::GpuVa,
    memory::PhysAddr,
    tlb::{Shootdown, Tlb},
};

const PAGE: u64 = 1 << PAGE_SHIFT;
const M2: u64 = 2 << 20;
/// The model's addresses: around a border of tables at every level but the root's.
const BASE: u64 = (1 << 30) - 3 * M2;
const PAGES: u64 = 6 * M2 / PAGE;

type Model = Vec<Option<(Target, PteAttrs)>>;

/// A piece to be mapped or, without a target, unmapped. In pages from [`BASE`] on.
#[derive(Clone, Debug)]
struct Piece {
    start: u64,
    pages: u64,
    target: Option<(Target, PteAttrs)>,
}

impl Piece {
    fn span(&self) -> VaSpan {
        VaSpan::new(GpuVa::new(BASE + self.start * PAGE), self.pages * PAGE).unwrap()
    }

    fn apply(&self, model: &mut Model) {
        for page in 0..self.pages {
            let target = self.target.map(|(target, attrs)| (target.offset(page * PAGE), attrs));
            model[(self.start + page) as usize] = target;
        }
    }
}

/// What is done in one edit.
#[derive(Clone, Debug)]
enum Step {
    Pieces(Vec<Piece>),
    Clear,
}

fn piece() -> impl Strategy<Value = Piece> {
    // Borders of leaves of all sizes, and pages beside them.
    let border = prop_oneof![
        3 => (0..=6_u64).prop_map(|n| n * 512),
        3 => (0..=96 * 2_u64).prop_map(|n| n * 16),
        2 => 0..=PAGES,
    ];
    let near = (border, -1_i64..=1).prop_map(|(page, by)| (page as i64 + by).clamp(0, PAGES as i64) as u64);
    // How far the memory is from an alignment that allows the largest leaves.
    let skew = prop::sample::select(vec![0, 0, 0, PAGE, 1 << GROUP_SHIFT, M2]);
    let attrs = (any::<bool>(), 0_u8..3)
        .prop_map(|(writable, pat)| PteAttrs { writable, pat: Pat::new(pat).unwrap() });
    (near.clone(), near, 0..5_u8, skew, attrs).prop_filter_map("empty", |(a, b, kind, skew, attrs)| {
        let (start, end) = (a.min(b), a.max(b));
        let at = BASE + start * PAGE + skew;
        let target = match kind {
            0 | 1 => None,
            2 => Some(Target::Null),
            3 => Some(Target::Memory(PhysAddr::vram(at))),
            _ => Some(Target::Memory(PhysAddr::system(at))),
        };
        let target = target.map(|target| (target, attrs));
        (start < end).then_some(Piece { start, pages: end - start, target })
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => prop::collection::vec(piece(), 1..4).prop_map(Step::Pieces),
        1 => Just(Step::Clear),
    ]
}

/// Counts nodes, and grants up to a limit.
struct Counted {
    taken: std::sync::atomic::AtomicU32,
    limit: u32,
}

impl Counted {
    fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self { taken: std::sync::atomic::AtomicU32::new(0), limit })
    }

    fn taken(&self) -> u32 {
        self.taken.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl NodeQuota for Counted {
    fn take(&self, count: u32) -> bool {
        let granted = self.taken() + count <= self.limit;
        if granted {
            self.taken.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
        }
        granted
    }

    fn give_back(&self, count: u32) {
        self.taken.fetch_sub(count, std::sync::atomic::Ordering::Relaxed);
    }
}

/// An address space with one engine's cache, and what it should say.
struct Bench {
    pool: Arc<NodePool>,
    shootdown: Arc<Shootdown>,
    quota: Arc<Counted>,
    space: AddressSpace,
    tlb: Tlb,
    generation: u64,
    model: Model,
}

impl Bench {
    fn new() -> Self {
        let (pool, shootdown) = (Arc::new(NodePool::new(1 << 12)), Arc::new(Shootdown::new(1)));
        let quota = Counted::new(1 << 12);
        let space =
            AddressSpace::new(Arc::clone(&pool), Arc::clone(&shootdown), quota.clone(), false).unwrap();
        let model = vec![None; PAGES as usize];
        Self { pool, shootdown, quota, space, tlb: Tlb::new(), generation: 0, model }
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Clear => {
                self.space.clear();
                self.model.fill(None);
            }
            Step::Pieces(pieces) => {
                let mut needs = Needs::new();
                for piece in pieces {
                    match piece.target {
                        Some((target, _)) => needs.map(piece.span(), target),
                        None => needs.unmap(piece.span()),
                    }
                }
                let mut nodes = self.space.reserve(&needs).unwrap();
                let mut edit = self.space.edit();
                for piece in pieces {
                    match piece.target {
                        Some((target, attrs)) => edit.map(piece.span(), target, attrs, &mut nodes).unwrap(),
                        None => edit.unmap(piece.span(), &mut nodes).unwrap(),
                    }
                    piece.apply(&mut self.model);
                }
                edit.commit();
            }
        }
    }

    /// What an engine sees at a page: the cache first, then the tables, as its accesses do.
    fn translate(&mut self, page: u64) -> Option<(Target, PteAttrs)> {
        let va = GpuVa::new(BASE + page * PAGE);
        let asid = self.space.asid();
        let online = self.shootdown.online(0, &mut self.generation, &mut self.tlb);
        let leaf = self.tlb.lookup(asid, va).or_else(|| {
            let leaf = self.space.walk(va)?;
            self.tlb.insert(asid, va, leaf);
            Some(leaf)
        });
        drop(online);
        leaf.map(|leaf| (leaf.target_of(va), leaf.attrs))
    }

    fn check(&mut self) {
        for page in 0..PAGES {
            let (va, expected) = (GpuVa::new(BASE + page * PAGE), self.model[page as usize]);
            let walked = self.space.walk(va).map(|leaf| (leaf.target_of(va), leaf.attrs));
            assert_eq!(walked, expected, "the walk at {va}");
            // Half of the pages were looked at before the change, and are cached.
            if page % 2 == 0 {
                assert_eq!(self.translate(page), expected, "the cache at {va}");
            }
        }
        self.check_leaves();
        let nodes = self.check_node(self.space.root, ROOT_LEVEL);
        assert_eq!((self.pool.in_use(), self.quota.taken()), (nodes, nodes), "no node is lost");
    }

    /// Leaves are aligned, in order, apart, and there are as many pages of them as are mapped.
    fn check_leaves(&self) {
        let leaves = self.space.leaves(VaSpan::ALL, usize::MAX);
        let mut end = 0;
        for leaf in &leaves {
            assert!(leaf.span().start() >= end && leaf.span().start().is_multiple_of(leaf.size()));
            assert!(leaf.target.is_aligned(leaf.size()), "{leaf:?}");
            end = leaf.span().end();
        }
        let pages: u64 = leaves.iter().map(|leaf| leaf.size() / PAGE).sum();
        assert_eq!(pages as usize, self.model.iter().flatten().count());
    }

    /// Counts are right, no table but the root is empty, and groups are whole. The number of nodes.
    fn check_node(&self, id: NodeId, level: u32) -> u32 {
        let node = self.pool.node(id);
        let entries: Vec<Entry> = (0..FANOUT).map(|at| node.load(at)).collect();
        let present = entries.iter().filter(|entry| entry.is_present()).count();
        assert_eq!(node.is_empty(), present == 0);
        assert!(present > 0 || level == ROOT_LEVEL, "an empty table at level {level}");
        for group in entries.chunks(1 << (GROUP_SHIFT - PAGE_SHIFT)).filter(|_| level == 0) {
            if let Some(first) = group.iter().find(|entry| entry.is_grouped()) {
                let start = group[0].target();
                for (page, entry) in (0..).zip(group) {
                    assert!(entry.is_grouped() && entry.attrs() == first.attrs(), "half a group");
                    assert_eq!(entry.target(), start.offset(page * PAGE));
                }
            }
        }
        let below = entries.iter().map(|entry| match entry.decode() {
            Decoded::Node(child) => self.check_node(child, level - 1),
            Decoded::Absent | Decoded::Leaf => 0,
        });
        1 + below.sum::<u32>()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn entries_walks_and_caches_say_what_was_mapped_last(steps in prop::collection::vec(step(), 1..10)) {
        let mut bench = Bench::new();
        for step in steps {
            bench.apply(&step);
            bench.check();
        }
        let Bench { pool, quota, space, .. } = bench;
        drop(space);
        pool.reap();
        prop_assert_eq!((pool.in_use(), quota.taken()), (0, 0));
    }

    /// The mappings of an address space as a driver keeps them: they don't overlap, and each goes as a whole.
    #[test]
    fn what_was_mapped_as_a_piece_goes_without_nodes(
        pieces in prop::collection::vec(piece(), 1..12),
        order in prop::collection::vec(any::<prop::sample::Index>(), 12),
    ) {
        let mut bench = Bench::new();
        let mut mapped: Vec<Piece> = Vec::new();
        for piece in pieces {
            let apart = |other: &Piece| !other.span().overlaps(piece.span());
            if piece.target.is_some() && mapped.iter().all(apart) {
                bench.apply(&Step::Pieces(vec![piece.clone()]));
                mapped.push(piece);
            }
        }
        for index in order {
            if mapped.is_empty() {
                break;
            }
            let gone = mapped.swap_remove(index.index(mapped.len()));
            let mut edit = bench.space.edit();
            edit.unmap(gone.span(), &mut bench.space.no_nodes()).unwrap();
            edit.commit();
            Piece { target: None, ..gone }.apply(&mut bench.model);
            bench.check();
        }
    }
}

#[test]
fn a_stretch_that_is_mapped_whole_again_has_large_leaves_again() {
    let mut bench = Bench::new();
    let memory = (Target::Memory(PhysAddr::vram(0)), PteAttrs::default());
    let whole = Piece { start: 0, pages: 1024, target: Some(memory) };
    bench.apply(&Step::Pieces(vec![whole.clone()]));
    let nodes = bench.pool.in_use();
    let sizes = |bench: &Bench| {
        let leaves = bench.space.leaves(VaSpan::ALL, usize::MAX);
        leaves.iter().map(super::types::Leaf::size).collect::<Vec<_>>()
    };
    assert_eq!(sizes(&bench), [M2, M2]);
    // Cut in the middle of the first, filled again: the pieces stay apart.
    let hole = Piece { start: 100, pages: 1, target: None };
    bench.apply(&Step::Pieces(vec![hole.clone()]));
    let filling = (Target::Memory(PhysAddr::vram(100 * PAGE)), PteAttrs::default());
    bench.apply(&Step::Pieces(vec![Piece { target: Some(filling), ..hole }]));
    bench.check();
    assert_eq!(bench.pool.in_use(), nodes + 1);
    // Mapped as one again.
    bench.apply(&Step::Pieces(vec![whole]));
    bench.check();
    assert_eq!((sizes(&bench), bench.pool.in_use()), (vec![M2, M2], nodes));
}

#[test]
fn h29_a_quota_is_asked_before_anything_changes_and_gets_back_what_is_not_used() {
    let (pool, shootdown) = (Arc::new(NodePool::new(1 << 12)), Arc::new(Shootdown::new(1)));
    let quota = Counted::new(5);
    let space = AddressSpace::new(Arc::clone(&pool), shootdown, quota.clone(), false).unwrap();
    let page = |n: u64| (GpuVa::new(n << 30), PAGE, Target::Null, PteAttrs::default());
    let map = |(va, len, target, attrs)| space.map(va, len, target, attrs);
    map(page(0)).unwrap();
    assert_eq!(quota.taken(), 4);
    let refused = map(page(1)).unwrap_err();
    assert!(matches!(refused, PageTableError::OverQuota { needed: 3 }), "{refused}");
    assert_eq!((space.translate(GpuVa::new(1 << 30)), quota.taken(), pool.in_use()), (None, 4, 4));
    let mut edit = space.edit();
    edit.unmap(VaSpan::new(GpuVa::new(0), PAGE).unwrap(), &mut space.no_nodes()).unwrap();
    edit.commit();
    map(page(1)).unwrap();
    drop(space);
    assert_eq!(quota.taken(), 0);
}
