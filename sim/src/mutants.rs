//! Every known bug, and how soon fixed seeds notice it.

use std::ops::Range;

use serde::Serialize;

use crate::campaign::{in_parallel, outcome};
use crate::story::masked;
use crate::variant::Variant;

/// Each known bug is caught within so many fixed seeds, from 0 on.
pub const WITHIN: u64 = 100;

/// For each known bug, the first seed in which it is caught.
pub const FOUND: [(&str, u64); 46] = [
    ("acquire-not-tied-to-session", 0),
    ("anchor-at-oldest", 29),
    ("cap-counted-late", 0),
    ("connect-before-ownership", 0),
    ("credentials-ignored", 6),
    ("cut-before-filter", 8),
    ("dead-mark-after-one-look", 2),
    ("deadline-from-answer", 2),
    ("drain-trusted", 29),
    ("effects-never-expire", 0),
    ("endless-tries", 0),
    ("expiry-by-written-until", 1),
    ("fence-missing", 43),
    ("fence-moved-by-renewal", 0),
    ("fresh-id-per-attempt", 0),
    ("guard-does-not-move-version", 0),
    ("jitter-ignores-disconnect", 11),
    ("lapsed-boot-believes", 0),
    ("local-clock-expiry", 1),
    ("margin-missing", 2),
    ("marker-missing", 57),
    ("no-renewal", 0),
    ("node-trusted", 0),
    ("order-by-success-alone", 0),
    ("overlapping-ticks", 0),
    ("parse-before-spool", 5),
    ("passive-gate-missing", 0),
    ("release-before-close", 5),
    ("release-withdrawn", 11),
    ("reservation-not-persisted", 0),
    ("running-trusted", 0),
    ("same-instance-id-trusted", 5),
    ("send-before-claim", 0),
    ("spacing-ignored", 4),
    ("status-without-compare-and-set", 0),
    ("successor-ignores-reservation", 0),
    ("unknown-as-failure", 0),
    ("unknown-as-success", 0),
    ("wakes-late", 0),
    ("ack-before-durable", 0),
    ("failed-write-only-logged", 0),
    ("late-running-after-ok", 5),
    ("not-after-unchecked", 26),
    ("run-state-unfenced", 5),
    ("summary-moves-backwards", 1),
    ("unconditional-release", 43),
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
    variants: &[Variant],
    seeds: Range<u64>,
    jobs: usize,
    done: impl Fn(&Mutant) + Sync,
) -> Vec<Mutant> {
    let work = |found: &mut Vec<(u64, Mutant)>, number: u64| {
        let variant = variants[number as usize];
        let caught = seeds.clone().find_map(|seed| {
            let mut violations = outcome(variant.world(seed), Some(variant)).violations;
            violations.retain(|violation| variant.shown_by().contains(&violation.check));
            if violations.is_empty() {
                return None;
            }
            let innocent = outcome(variant.world(seed), None).violations;
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
