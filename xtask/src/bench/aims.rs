//! What the figures should reach.
//!
//! An aim is a bound of its own, a part of another figure of the same run, or a part of what it is compared with. The last
//! kind counts only in a comparison with figures of that name, which are meant to be those of the kernel's own code,
//! compiled for user space; there, whatever has no aim of its own should at least be as fast, and address spaces must end
//! up with the same mappings (`sum` in the remark).

use std::collections::BTreeMap;
use std::fmt;

use super::figure::Figure;

/// Bounds on the device, as its clients see it.
const AT_MOST: &[(&str, f64)] = &[
    // KiB.
    ("idle_memory", 20.0 * 1024.0),
    // Nothing is due in a server whose clients are idle; a page fault or a late timer of its own may be.
    ("idle_processor", 1e6),
    ("ioctl_hot", 2_000.0),
    // A hundred thousand mappings per second and client.
    ("vm_bind_array_1", 10_000.0),
    ("vm_bind_array_2", 10_000.0),
];

/// The least part of another figure's speed.
const OF_SPEED: &[(&str, &str, f64)] = &[("copy_64M", "memcpy_64M", 0.8)];

/// The most part of what the kernel's code takes.
const OF_THEIRS: &[(&str, f64)] = &[
    ("map_rand_19000", 0.30),
    ("map_rand_1000000", 0.35),
    ("map_asc_19000", 0.40),
    ("map_asc_1000000", 0.60),
    ("churn", 0.30),
    ("churn_oplist", 0.35),
    ("sparse_rebind_100k", 0.22),
    ("find_first_rand_19000", 0.25),
    ("find_first_rand_1000000", 0.25),
    ("walk_rand_19000", 0.30),
    ("walk_rand_1000000", 0.10),
    ("teardown_rand_19000", 0.50),
    ("teardown_rand_1000000", 0.40),
    ("fence_cycle_vdso", 0.80),
    ("fence_cycle_consttime", 0.70),
    ("resv_lock_reserve_add_unlock_1ctx", 0.90),
    ("resv_lock_reserve_add_unlock_16ctx", 0.60),
    ("resv_for_each_unlocked_1", 0.80),
    ("resv_for_each_unlocked_4", 0.50),
    ("resv_for_each_unlocked_16", 0.35),
    ("resv_test_signaled_idle_1", 0.80),
    ("resv_test_signaled_idle_16", 0.40),
    ("chain_walk_4096(per link)", 0.70),
    ("drm_exec_prepare_1obj", 0.90),
    ("drm_exec_prepare_16obj", 0.70),
    ("drm_exec_prepare_256obj", 0.30),
];

/// Unless told otherwise.
const AS_FAST: f64 = 1.0;

/// How a figure stands to an aim.
#[derive(Debug, PartialEq)]
pub(super) struct Verdict {
    name: String,
    what: String,
    pub(super) met: bool,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.what)
    }
}

/// Judges all figures that there is an aim for.
pub(super) fn verdicts(ours: &[Figure], theirs: &BTreeMap<String, Figure>) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let mut add = |figure: &Figure, what, met| {
        verdicts.push(Verdict { name: figure.name.clone(), what, met });
    };
    for figure in ours {
        if let Some((_, bound)) = AT_MOST.iter().find(|(name, _)| figure.name == *name) {
            add(figure, format!("{:.0}, at most {bound:.0} wanted", figure.median), figure.median <= *bound);
        }
        if let Some((_, other, least)) = OF_SPEED.iter().find(|(name, ..)| figure.name == *name)
            && let Some(other) = ours.iter().find(|figure| figure.name == *other)
        {
            let part = other.median / figure.median;
            let what = format!("{part:.2} of the speed of {}, at least {least} wanted", other.name);
            add(figure, what, part >= *least);
        }
        let Some(theirs) = theirs.get(&figure.name) else { continue };
        let aim = OF_THEIRS.iter().find(|(name, _)| figure.name == *name).map_or(AS_FAST, |(_, aim)| *aim);
        let ratio = figure.median / theirs.median;
        // To the precision that the aims have.
        let met = (ratio * 100.0).round() <= aim * 100.0;
        add(figure, format!("{ratio:.2} of theirs, at most {aim:.2} wanted"), met);
        if let (Some(sum), Some(theirs)) = (figure.remark("sum"), theirs.remark("sum")) {
            add(figure, format!("checksum {sum}, theirs is {theirs}"), sum == theirs);
        }
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use super::super::figure::tests::figure;
    use super::*;

    fn judged(ours: &[Figure], theirs: &[Figure]) -> Vec<(String, bool)> {
        let theirs = theirs.iter().map(|figure| (figure.name.clone(), figure.clone())).collect();
        verdicts(ours, &theirs).into_iter().map(|verdict| (verdict.to_string(), verdict.met)).collect()
    }

    #[test]
    fn a_bound_is_inclusive_and_a_ratio_is_of_one_run() {
        let ours = [figure("ioctl_hot", 2_000.0), figure("copy_64M", 10.0), figure("memcpy_64M", 7.0)];
        let copy = "copy_64M: 0.70 of the speed of memcpy_64M, at least 0.8 wanted".to_owned();
        assert_eq!(judged(&ours, &[])[1], (copy, false));
        assert!(judged(&ours, &[])[0].1);
        assert_eq!(judged(&ours[1..2], &[]), []);
    }

    #[test]
    fn in_a_comparison_what_has_no_aim_should_be_as_fast() {
        let ours = [figure("churn", 31.0), figure("chain_init", 99.0), figure("alone", 1.0)];
        let theirs = [figure("churn", 100.0), figure("chain_init", 100.0)];
        let met: Vec<bool> = judged(&ours, &theirs).into_iter().map(|(_, met)| met).collect();
        assert_eq!(met, [false, true]);
    }

    #[test]
    fn mappings_must_come_out_the_same() {
        let with_sum = |sum: &str| Figure::read(&format!("x\tchurn\t1\t1\t1\t1\tsum={sum} live=3")).unwrap();
        assert!(judged(&[with_sum("a")], &[with_sum("a")])[1].1);
        assert_eq!(
            judged(&[with_sum("a")], &[with_sum("b")])[1],
            ("churn: checksum a, theirs is b".to_owned(), false)
        );
    }
}
