//! Every known bug, and how soon fixed seeds notice it.

use std::ops::Range;

use serde::Serialize;

use crate::campaign::{Tier, in_parallel};
use crate::story::masked;
use crate::variant::Variant;

/// Each known bug is caught within so many fixed seeds, from 0 on.
pub const WITHIN: u64 = 250;

/// For each known bug, which check caught it, and in which seed first.
pub const FOUND: [(&str, &str, u64); 57] = [
    ("acquire-not-tied-to-session", "S1", 5),
    ("anchor-at-oldest", "L6", 91),
    ("backoff-ignored", "S8", 0),
    ("cap-counted-late", "S7", 0),
    ("connect-before-ownership", "S5", 0),
    ("credentials-ignored", "S14", 6),
    ("cut-before-filter", "L4", 8),
    ("dead-mark-after-one-look", "S1", 2),
    ("deadline-from-answer", "S2", 2),
    ("drain-trusted", "L6", 57),
    ("effects-never-expire", "S5", 0),
    ("endless-tries", "S7", 0),
    ("expiry-by-written-until", "S1", 1),
    ("fence-missing", "S3", 43),
    ("fence-moved-by-renewal", "S3", 0),
    ("fresh-id-per-attempt", "S13", 0),
    ("guard-does-not-move-version", "S1", 0),
    ("jitter-ignores-disconnect", "S5", 11),
    ("lapsed-boot-believes", "S2", 0),
    ("local-clock-expiry", "S1", 1),
    ("margin-missing", "S2", 2),
    ("marker-missing", "L6", 59),
    ("no-renewal", "L1", 3),
    ("node-lease-ignored", "S1", 1),
    ("node-lock-ignored", "S4", 0),
    ("node-trusted", "L6", 0),
    ("order-by-success-alone", "L4", 0),
    ("overlapping-ticks", "S7", 0),
    ("parse-before-spool", "S12", 5),
    ("passive-gate-missing", "S6", 0),
    ("polls-without-pause", "L3", 0),
    ("release-before-close", "S4", 5),
    ("release-withdrawn", "S2", 13),
    ("reservation-not-persisted", "S4", 0),
    ("running-before-lease", "S11", 0),
    ("running-trusted", "L2", 0),
    ("same-instance-id-trusted", "S1", 5),
    ("send-before-claim", "S13", 0),
    ("spacing-ignored", "S4", 4),
    ("status-without-compare-and-set", "S9", 5),
    ("stop-without-end", "L5", 0),
    ("stop-waits-for-runs", "L5", 0),
    ("successor-ignores-reservation", "S4", 0),
    ("unknown-as-failure", "S9", 0),
    ("unknown-as-success", "S9", 0),
    ("wakes-late", "S10", 0),
    ("ack-before-durable", "S12", 0),
    ("edits-by-arrival", "S12", 8),
    ("failed-write-only-logged", "S12", 8),
    ("late-running-after-ok", "S8", 5),
    ("not-after-unchecked", "S5", 110),
    ("own-taken-for-inbound", "S12", 0),
    ("reports-dropped", "S12", 0),
    ("run-state-unfenced", "S3", 5),
    ("summary-moves-backwards", "S12", 1),
    ("twins-unknown", "S12", 4),
    ("unconditional-release", "S1", 13),
];

/// What became of one known bug.
#[derive(Clone, Debug, Serialize)]
pub struct Mutant {
    /// Its name
    pub name: &'static str,
    /// What it breaks
    pub breaks: &'static str,
    /// How it was noticed; `None` if it survived
    pub caught: Option<Caught>,
}

/// How a known bug was noticed.
#[derive(Clone, Debug, Serialize)]
pub struct Caught {
    /// By which check
    pub check: &'static str,
    /// In which world
    pub seed: u64,
    /// After how many worlds, this one included
    pub after: u64,
    /// By what it saw
    pub text: String,
}

/// Runs every variant on the seeds, in their order, until one of the checks that are there for it
/// notices something that it does not notice in the same world without the bug. `done` is called
/// after each variant.
pub fn hunt(
    tier: Tier,
    variants: &[Variant],
    seeds: Range<u64>,
    jobs: usize,
    done: impl Fn(&Mutant) + Sync,
) -> Vec<Mutant> {
    let work = |found: &mut Vec<(u64, Mutant)>, number: u64| {
        let variant = variants[number as usize];
        let caught = seeds.clone().find_map(|seed| {
            let mut violations = tier.outcome(variant.world(seed), Some(variant)).violations;
            violations.retain(|violation| variant.shown_by().contains(&violation.check));
            if violations.is_empty() {
                return None;
            }
            let innocent = tier.outcome(variant.world(seed), None).violations;
            let by = violations
                .into_iter()
                .find(|found| innocent.iter().all(|known| known.check != found.check))?;
            let after = seed - seeds.start + 1;
            Some(Caught { check: by.check, seed, after, text: masked(&by.text) })
        });
        let mutant = Mutant { name: variant.name(), breaks: variant.describe(), caught };
        done(&mutant);
        found.push((number, mutant));
    };
    let mut found: Vec<(u64, Mutant)> =
        in_parallel(0..variants.len() as u64, jobs, Vec::new, work).into_iter().flatten().collect();
    found.sort_by_key(|(number, _)| *number);
    found.into_iter().map(|(_, mutant)| mutant).collect()
}

/// The table, for people.
pub fn table(mutants: &[Mutant]) -> String {
    let name = mutants.iter().map(|m| m.name.len()).max().unwrap_or(0);
    let breaks = mutants.iter().map(|m| m.breaks.len()).max().unwrap_or(0);
    let mut out = format!(
        "{:name$}  {:breaks$}  {:8}  {:>6}  {:>6}\n",
        "known bug", "what it does", "check", "seeds", "seed"
    );
    for m in mutants {
        let (check, after, seed) = match &m.caught {
            Some(caught) => (caught.check, caught.after.to_string(), caught.seed.to_string()),
            None => ("SURVIVES", "-".into(), "-".into()),
        };
        let row =
            format!("{:name$}  {:breaks$}  {check:8}  {after:>6}  {seed:>6}\n", m.name, m.breaks);
        out.push_str(&row);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_who_survives() {
        let caught = Caught { check: "S2", seed: 107, after: 8, text: String::new() };
        let mutants = [
            Mutant { name: "no-renewal", breaks: "Sessions end", caught: Some(caught) },
            Mutant { name: "harmless", breaks: "Nothing", caught: None },
        ];
        let table = table(&mutants);
        let rows: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1], ["no-renewal", "Sessions", "end", "S2", "8", "107"]);
        assert_eq!(rows[2], ["harmless", "Nothing", "SURVIVES", "-", "-"]);
    }
}
