//! Tier 2: driver and core in nodes of a simulated network.

#[cfg(madsim)]
mod seeds {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    use sim::campaign::Tier;
    use sim::mutants;
    use sim::swarm;
    use sim::tier2;
    use sim::trace::Trace;
    use sim::variant::Variant;

    /// How many worlds a test run looks at.
    const SEEDS: u64 = 200;

    #[test]
    fn fixed_seeds_violate_nothing() {
        let (next, simulated) = (AtomicU64::new(0), AtomicU64::new(0));
        let wrong: Mutex<BTreeMap<&str, Vec<String>>> = Mutex::default();
        let look = || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= SEEDS {
                    return;
                }
                let world = tier2::run(swarm::scenario(seed), None, Trace::default());
                let (report, _) = world.expect("every seed gives a valid scenario");
                simulated.fetch_add(report.simulated_ms, Ordering::Relaxed);
                for violation in report.violations {
                    let text = format!("seed {seed} at {}: {}", violation.at.0, violation.text);
                    wrong.lock().unwrap().entry(violation.check).or_default().push(text);
                }
            }
        };
        std::thread::scope(|threads| {
            threads.spawn(look);
            look();
        });
        let (wrong, simulated) = (wrong.into_inner().unwrap(), simulated.into_inner());
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert!(simulated > SEEDS * 30 * 60_000, "worlds end early: {simulated} ms");
    }

    /// One or two known bugs for each check that can fail here: what no bug can violate says nothing.
    #[test]
    fn broken_rules_are_noticed_here_too() {
        let names = [
            "dead-mark-after-one-look",
            "lapsed-boot-believes",
            "fence-moved-by-renewal",
            "release-before-close",
            "connect-before-ownership",
            "passive-gate-missing",
            "cap-counted-late",
            "backoff-ignored",
            "unknown-as-failure",
            "running-before-lease",
            "send-before-claim",
            "credentials-ignored",
            "no-renewal",
            "running-trusted",
            "polls-without-pause",
            "order-by-success-alone",
            "stop-waits-for-runs",
            "stop-without-end",
            "node-trusted",
        ];
        let variants = names.map(|name| Variant::named(name).expect("it is known"));
        let found = mutants::hunt(Tier::Two, &variants, 0..20, 2, |_| ());
        let missed: Vec<&str> =
            found.iter().filter(|m| m.caught.is_none()).map(|m| m.name).collect();
        assert!(missed.is_empty(), "{missed:?}");
        let checks: BTreeSet<&str> =
            found.iter().filter_map(|m| Some(m.caught.as_ref()?.check)).collect();
        assert!(checks.len() >= 18, "{checks:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_run() {
        for seed in 0..4 {
            let traces = [0, 1].map(|_| {
                let scenario = swarm::scenario(seed);
                let (_, trace) =
                    tier2::run(scenario, None, Trace::recording()).expect("it is valid");
                format!("{:?}", trace.entries())
            });
            assert!(traces[0] == traces[1], "seed {seed}");
            assert!(traces[0].len() > 1_000, "seed {seed} does nothing");
        }
    }
}

#[cfg(not(madsim))]
#[test]
fn the_second_tier_is_not_left_out() {
    panic!(
        "built without `--cfg madsim`: RUSTFLAGS in the environment replaces the flags of \
         .cargo/config.toml; unset it, or add `--cfg madsim` to it"
    );
}
