//! Fences, reservations and locking of many, against the clock.

mod harness;

use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{Ordering, compiler_fence};

use harness::{Random, SAMPLES, Samples, Selection, in_two_threads, now, prepare_process};
use lapidary::exec::{Duplicates, Exec};
use lapidary::fence::{
    ArrayMode, CallbackId, Fence, FenceContext, Interrupt, Seqno, Signaller, Timestamp, unwrap,
};
use lapidary::resv::{Reservation, Usage};

const MANY: usize = 1_000_000;
const BATCH: usize = 4096;
const BIG: usize = 65_536;

thread_local! {
    static CALLED: Cell<u64> = const { Cell::new(0) };
}

fn count(_: &Fence) {
    CALLED.with(|called| called.set(called.get() + 1));
}

fn fence(context: FenceContext, seqno: usize) -> (Fence, Signaller) {
    Fence::new(context, Seqno(seqno as u64))
}

fn fences(context: FenceContext) -> Vec<(Fence, Option<Signaller>)> {
    (0..BATCH).map(|i| fence(context, i)).map(|(fence, signaller)| (fence, Some(signaller))).collect()
}

fn add(fence: &Fence) -> CallbackId {
    fence.add_callback(count).ok().expect("it has not signalled")
}

fn signal(signaller: Signaller, constant_time: bool) {
    if constant_time {
        signaller.signal_at(Timestamp::from_nanos(1));
    } else {
        signaller.signal();
    }
}

fn fence_benches(select: &Selection) {
    let context = FenceContext::alloc();
    for (kind, constant) in [("vdso", false), ("consttime", true)] {
        // Made, given a callback, signalled, and let go of.
        select.run(
            &format!("fence_cycle_{kind}"),
            MANY,
            || (),
            |(), i| {
                let (fence, signaller) = fence(context, i);
                add(&fence);
                signal(signaller, constant);
            },
            drop,
        );
        let with_callback = || {
            let fences = fences(context);
            for (fence, _) in &fences {
                add(fence);
            }
            fences
        };
        select.run(
            &format!("fence_signal1cb_{kind}"),
            BATCH,
            with_callback,
            |fences, i| {
                signal(fences[i].1.take().expect("signalled once"), constant);
            },
            drop,
        );
    }
    select.run(
        "ktime_get_vdso",
        MANY,
        || (),
        |(), _| {
            black_box(Timestamp::now());
        },
        drop,
    );
    select.run(
        "fence_malloc_init",
        BATCH,
        || Vec::with_capacity(BATCH),
        |made, i| made.push(fence(context, i)),
        drop,
    );
    select.run(
        "fence_add_callback",
        BATCH,
        || fences(context),
        |fences, i| {
            add(&fences[i].0);
        },
        drop,
    );
    select.run(
        "fence_add_remove_callback",
        BATCH,
        || fences(context),
        |fences, i| {
            let fence = &fences[i].0;
            fence.remove_callback(add(fence));
        },
        drop,
    );
    let signalled = || {
        let signalled = |(fence, signaller): (Fence, Option<Signaller>)| {
            signal(signaller.expect("just made"), true);
            Some(fence)
        };
        fences(context).into_iter().map(signalled).collect::<Vec<_>>()
    };
    select.run("fence_final_put", BATCH, signalled, |fences, i| drop(fences[i].take()), drop);
    let (pending, _signaller) = fence(context, 1);
    select.run(
        "fence_get_put",
        MANY,
        || (),
        |(), _| {
            let another = pending.clone();
            compiler_fence(Ordering::SeqCst);
            drop(another);
        },
        drop,
    );
    select.sum("fence_is_signaled_no", MANY, || u64::from(pending.is_signalled()));
    let (done, signaller) = fence(context, 1);
    signaller.signal();
    select.sum("fence_is_signaled_yes", MANY, || u64::from(done.is_signalled()));
    select.sum("fence_add_callback_signaled", MANY, || u64::from(done.add_callback(count).is_err()));
}

/// A reservation with `count` contexts' fences on it.
struct Contexts {
    resv: Reservation,
    signallers: Vec<Signaller>,
    last: FenceContext,
}

impl Contexts {
    fn new(count: usize, usage: Usage) -> Self {
        let resv = Reservation::new();
        let contexts: Vec<_> = (0..count).map(|_| FenceContext::alloc()).collect();
        let mut guard = resv.lock();
        guard.reserve(count).expect("memory");
        let add = |context: &FenceContext| {
            let (fence, signaller) = fence(*context, 1);
            guard.add_fence(fence, usage);
            signaller
        };
        let signallers = contexts.iter().map(add).collect();
        drop(guard);
        Self { resv, signallers, last: contexts[count - 1] }
    }

    /// Fences of the last context, each later than the one before.
    fn later(&self) -> Vec<(Fence, Signaller)> {
        (0..BIG).map(|i| fence(self.last, 2 + i)).collect()
    }
}

fn resv_benches(select: &Selection) {
    let resv = Reservation::new();
    select.run("resv_lock_unlock_noctx", MANY, || (), |(), _| drop(black_box(resv.lock())), drop);
    let none = Interrupt::none();
    // One operation's ticket for all, as the kernel's benchmark has it.
    let mut exec = Exec::new(Duplicates::Allow, &none);
    select.run(
        "resv_lock_unlock_ctx",
        MANY,
        || (),
        |(), _| {
            exec.lock(&resv).expect("nobody else");
            exec.unlock(&resv);
        },
        drop,
    );
    drop(exec);
    for contexts in [1, 4, 16] {
        let bookkeep = || {
            let contexts = Contexts::new(contexts, Usage::Bookkeep);
            let later = contexts.later();
            (contexts, later)
        };
        let name = format!("resv_add_fence_replace_{contexts}ctx");
        if select.wants(&name) {
            let mut samples = Samples::default();
            for _ in 0..=SAMPLES {
                let (contexts, later) = bookkeep();
                let mut guard = contexts.resv.lock();
                guard.reserve(BIG).expect("memory");
                let begin = now();
                for (fence, _) in &later {
                    guard.add_fence(fence.clone(), Usage::Bookkeep);
                }
                samples.add((now() - begin) / BIG as f64);
            }
            samples.print(&name, "");
        }
        let name = format!("resv_lock_reserve_add_unlock_{contexts}ctx");
        select.run(
            &name,
            BIG,
            bookkeep,
            |(contexts, later), i| {
                let mut guard = contexts.resv.lock();
                guard.reserve(1).expect("memory");
                guard.add_fence(later[i].0.clone(), Usage::Bookkeep);
            },
            drop,
        );
        let read = Contexts::new(contexts, Usage::Read);
        let address = |fence: &Fence| fence as *const Fence as usize as u64;
        let guard = read.resv.lock();
        let locked =
            || guard.iter(Usage::Bookkeep).map(|(fence, _)| address(&fence)).fold(0, u64::wrapping_add);
        select.sum(&format!("resv_for_each_locked_{contexts}"), MANY, locked);
        select.sum(&format!("resv_for_each_unlocked_{contexts}"), MANY / 4, || {
            read.resv
                .snapshot(Usage::Bookkeep)
                .iter()
                .map(|(fence, _)| address(&fence))
                .fold(0, u64::wrapping_add)
        });
        let idle = || u64::from(read.resv.is_idle(Usage::Bookkeep));
        select.sum(&format!("resv_test_signaled_busy_{contexts}"), MANY, idle);
        read.signallers.into_iter().for_each(Signaller::signal);
        select.sum(&format!("resv_test_signaled_idle_{contexts}"), MANY / 4, idle);
    }
}

fn container_benches(select: &Selection) {
    for length in [16, 256, 4096] {
        let (fences, _signallers): (Vec<_>, Vec<_>) =
            (0..length).map(|_| fence(FenceContext::alloc(), 1)).unzip();
        let link = |(prev, point): (Option<Fence>, u64), own: &Fence| {
            (Some(Fence::chain(prev, own.clone(), point)), point + 1)
        };
        let head = fences.iter().fold((None, 1), link).0.expect("at least one link");
        let rounds = 4_000_000 / length / 8;
        let time = |name: String, links: usize, mut round: Box<dyn FnMut() + '_>| {
            if !select.wants(&name) {
                return;
            }
            let mut samples = Samples::default();
            for _ in 0..=SAMPLES {
                let begin = now();
                (0..rounds).for_each(|_| round());
                samples.add((now() - begin) / (rounds * links) as f64);
            }
            samples.print(&name, "");
        };
        let walk = || {
            let mut sum = 0;
            for link in head.chain_links().iter() {
                sum += link.seqno().get();
            }
            black_box(sum);
        };
        time(format!("chain_walk_{length}(per link)"), length, Box::new(walk));
        let find = || drop(black_box(black_box(&head).chain_point(length as u64 / 2)));
        time(format!("chain_find_seqno_mid_{length}(per link)"), length / 2, Box::new(find));
    }
    let (own, _signaller) = fence(FenceContext::alloc(), 1);
    select.run(
        "chain_init",
        BATCH,
        || Vec::with_capacity(BATCH),
        |links, i| {
            links.push(Fence::chain(None, own.clone(), i as u64 + 1));
        },
        drop,
    );
    for count in [4, 16] {
        let (fences, _signallers): (Vec<_>, Vec<_>) =
            (0..count).map(|_| fence(FenceContext::alloc(), 1)).unzip();
        let array = Fence::array(fences, ArrayMode::All);
        select.sum(&format!("unwrap_array_{count}"), MANY / 4, || {
            let (mut plain, mut sum) = (unwrap(&array), 0u64);
            while let Some(address) = plain.look(|fence| fence as *const Fence as u64) {
                sum = sum.wrapping_add(address);
            }
            sum
        });
    }
}

fn exec_benches(select: &Selection) {
    for count in [1, 16, 256] {
        let resvs: Vec<Reservation> = (0..count).map(|_| Reservation::new()).collect();
        let none = Interrupt::none();
        select.run(
            &format!("drm_exec_prepare_{count}obj"),
            20_000 / count + 50,
            || (),
            |(), _| {
                let (exec, ()) = Exec::run(Duplicates::Refuse, &none, |exec| {
                    resvs.iter().try_for_each(|resv| exec.prepare(resv, 1))
                })
                .expect("nobody else");
                drop(black_box(exec));
            },
            drop,
        );
    }
}

/// Two threads at the same reservations: on one that both lock for each fence, and on four of sixteen at a time, in any
/// order, so that they meet, wound and back off. By the clock on the wall.
fn contended_benches(select: &Selection) {
    const OPERATIONS: usize = 100_000;
    let timeline = [FenceContext::alloc(), FenceContext::alloc()];
    let none = Interrupt::none();
    let one = Reservation::new();
    let add_to_one = |thread: u64| {
        for i in 0..OPERATIONS {
            let (fence, _signaller) = fence(timeline[thread as usize], i);
            let mut guard = one.lock();
            guard.reserve(1).expect("memory");
            guard.add_fence(fence, Usage::Bookkeep);
        }
    };
    let many: Vec<Reservation> = (0..16).map(|_| Reservation::new()).collect();
    let lock_many = |thread: u64| {
        let mut rng = Random(thread);
        for i in 0..OPERATIONS {
            let chosen = [(); 4].map(|()| &many[rng.below(16) as usize]);
            let (fence, _signaller) = fence(timeline[thread as usize], i);
            let mut exec = Exec::lock_all(chosen, Duplicates::Allow, &none).expect("nobody interrupts");
            for guard in exec.guards() {
                guard.reserve(1).expect("memory");
                guard.add_fence(fence.clone(), Usage::Bookkeep);
            }
        }
    };
    let benches: [(&str, &(dyn Fn(u64) + Sync)); 2] =
        [("resv_2threads_lock_reserve_add_unlock", &add_to_one), ("drm_exec_2threads_4of16", &lock_many)];
    for (name, work) in benches {
        if !select.wants(name) {
            continue;
        }
        let mut samples = Samples::default();
        for _ in 0..=SAMPLES {
            let Some(time) = in_two_threads(work) else { break };
            samples.add(time / (2 * OPERATIONS) as f64);
        }
        samples.print(name, "wall clock, per operation of either thread");
    }
}

fn main() {
    prepare_process(256 << 20);
    let select = Selection::from_arguments();
    fence_benches(&select);
    resv_benches(&select);
    container_benches(&select);
    exec_benches(&select);
    contended_benches(&select);
    black_box(CALLED.with(Cell::get));
}
