//! The commands, as somebody types them.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use sim::properties::PROPERTIES;
use sim::regression::Regression;
use sim::scenario::Kind;
use sim::variant::Variant;

#[test]
fn wrong_arguments_are_named_with_their_value_and_what_is_right() {
    let cases: [(&[&str], [&str; 3]); 10] = [
        (&["campaign", "--seeds", "5..2"], ["--seeds", "'5..2'", "the end comes after the start"]),
        (&["campaign", "--seeds", "many"], ["--seeds", "'many'", "as in 0..20000"]),
        (&["campaign", "--jobs", "0"], ["--jobs", "'0'", "from 1 on"]),
        (&["campaign", "--tier", "3"], ["--tier", "'3'", "1 or 2"]),
        (&["replay", "--seed", "-1"], ["--seed", "'-1'", "a whole number from 0"]),
        (&["replay", "--seed", "1", "--from", "9"], ["--from", "'9'", "as in 1:02:03"]),
        (&["replay", "--seed", "1", "--bug", "rain"], ["--bug", "'rain'", "no-renewal"]),
        (&["shrink", "--seed", "1", "--check", "S0", "--out", "x"], ["--check", "'S0'", "S1, S2"]),
        (&["replay"], ["required", "--seed <N>", "--scenario <FILE>"]),
        (&["replay", "--scenario", "no/such.json"], ["--scenario", "no/such.json", "No such file"]),
    ];
    for (arguments, expected) in cases {
        let output = sim(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        for part in expected {
            assert!(error.contains(part), "{arguments:?}: {part:?} is not in {error}");
        }
    }
}

#[test]
fn a_file_that_is_no_scenario_is_refused_with_the_place() {
    let file = scratch("no-scenario.json");
    std::fs::write(&file, "{\n  \"seed\": \"seven\"\n}").unwrap();
    let output = sim(&["replay", "--scenario", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("is not a scenario") && error.contains("line 2"), "{error}");
}

#[test]
fn a_campaign_reports_all_there_is_to_know() {
    let file = scratch("campaign.json");
    let output =
        sim(&["campaign", "--seeds", "3..6", "--jobs", "2", "--out", file.to_str().unwrap()]);
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let failed = report["failed_seeds"].as_u64().unwrap();
    assert_eq!(output.status.success(), failed == 0);
    assert_eq!((&report["seeds"]["start"], &report["seeds"]["end"]), (&3.into(), &6.into()));
    for number in ["simulated_ms", "events", "simulated_to_real", "events_per_second", "jobs"] {
        assert!(report[number].as_u64().unwrap() > 0, "{number}");
    }
    assert!(report["wall_ms"].is_u64() && report["seeds_per_second"].is_f64());
    assert_eq!(report["faults"].as_object().unwrap().len(), Kind::COUNT);
    assert_eq!(report["checks"].as_object().unwrap().len(), PROPERTIES.len());
    assert!(report["sometimes"].as_object().unwrap().len() >= 17);
    for (counts, never) in [("faults", "never_struck"), ("sometimes", "never_reached")] {
        let never = report[never].as_array().unwrap();
        for (name, count) in report[counts].as_object().unwrap() {
            assert_eq!(never.contains(&name.as_str().into()), *count == 0, "{name}");
        }
    }
    let failures = report["first_failures"].as_array().unwrap();
    assert_eq!(failures.is_empty(), failed == 0);
    for failure in failures {
        assert!(failure["seed"].is_u64() && failure["at_ms"].is_u64());
        assert!(failure["check"].is_string() && failure["text"].is_string());
    }
}

#[test]
fn a_campaign_that_finds_something_fails_and_names_the_seed() {
    // No such campaign can be told to break a rule, so a world that does is replayed instead.
    let output = sim(&["replay", "--seed", "8", "--bug", "fresh-id-per-attempt"]);
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("VIOLATION of S13"), "{told}");
    assert!(told.contains("Broken on purpose: fresh-id-per-attempt"));
}

#[test]
fn a_replay_names_nobody() {
    let output = sim(&["replay", "--seed", "4", "-vv"]);
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.lines().count() > 100);
    for secret in ["account_sim_", "@s.whatsapp.net", "@g.us", "@lid", "+4071", "4079900"] {
        let found = told.lines().find(|line| line.contains(secret));
        assert_eq!(found, None, "{secret}");
    }
}

#[test]
fn one_seed_gives_one_trace_in_two_processes() {
    let output = sim(&["meta", "--seeds", "1..3"]);
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{told}");
    assert!(told.starts_with("2 of 2 worlds are the same"), "{told}");
}

#[test]
fn a_world_is_shrunk_to_a_file_that_still_fails_in_the_same_way() {
    let file = scratch("shrunk.json");
    let path = file.to_str().unwrap();
    let output = sim(&[
        "shrink",
        "--seed",
        "1",
        "--bug",
        "passive-gate-missing",
        "--check",
        "S6",
        "--out",
        path,
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let regression = Regression::from_json(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(regression.check, "S6");
    assert_eq!(
        regression.bug.as_deref().and_then(Variant::named).map(Variant::name),
        Some("passive-gate-missing")
    );
    let before = sim::shrink::size(&sim::swarm::scenario(1));
    let after = sim::shrink::size(&regression.scenario);
    assert!(after * 2 < before, "{before} to {after}");
    let replayed = sim(&["replay", "--scenario", path]);
    assert_eq!(replayed.status.code(), Some(1));
    assert!(String::from_utf8(replayed.stdout).unwrap().contains("VIOLATION of S6"));
}

#[test]
fn known_bugs_make_a_table_and_survivors_fail() {
    let only = |bug| sim(&["mutants", "--seeds", "0..2", "--only", bug]);
    let output = only("passive-gate-missing");
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{told}");
    assert!(told.contains("1 of 1 known bugs are caught by seeds 0..2"), "{told}");
    // No offline queue comes short in two worlds.
    let output = only("drain-trusted");
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("SURVIVES"), "{told}");
}

fn sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sim")).args(arguments).output().unwrap()
}

fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}
