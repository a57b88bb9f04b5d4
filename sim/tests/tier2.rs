//! Tier 2: driver and core in nodes of a simulated network.

#[cfg(madsim)]
mod seeds {
    use std::collections::BTreeMap;

    use sim::report::Report;
    use sim::swarm;
    use sim::tier2;
    use sim::trace::Trace;

    /// How many worlds a test run looks at.
    const SEEDS: u64 = 200;

    #[test]
    fn fixed_seeds_violate_nothing() {
        let mut wrong: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let mut simulated = 0;
        for seed in 0..SEEDS {
            let report = run(seed);
            simulated += report.simulated_ms;
            for violation in report.violations {
                let text = format!("seed {seed} at {}: {}", violation.at.0, violation.text);
                wrong.entry(violation.check).or_default().push(text);
            }
        }
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

    fn run(seed: u64) -> Report {
        tier2::run(swarm::scenario(seed), Trace::default()).expect("it is valid").0
    }
}

#[test]
fn the_second_tier_is_not_left_out() {
    assert!(
        cfg!(madsim),
        "built without `--cfg madsim`: RUSTFLAGS in the environment replaces the flags of \
         .cargo/config.toml; unset it, or add `--cfg madsim` to it"
    );
}
