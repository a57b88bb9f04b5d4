//! Tier 2: driver and core in nodes of a simulated network.

#[cfg(madsim)]
mod seeds {
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    use sim::swarm;
    use sim::tier2;
    use sim::trace::Trace;

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
                let world = tier2::run(swarm::scenario(seed), Trace::default());
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

    #[test]
    fn the_same_seed_gives_the_same_run() {
        for seed in 0..4 {
            let traces = [0, 1].map(|_| {
                let scenario = swarm::scenario(seed);
                let (_, trace) = tier2::run(scenario, Trace::recording()).expect("it is valid");
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
