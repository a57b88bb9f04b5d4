//! A run as text, for people.

use std::fmt::Write as _;
use std::ops::Range;

use crate::clock::Real;
use crate::properties;
use crate::report::Report;
use crate::scenario::{Regime, Scenario};
use crate::story::{Note, Weight, Who, clock, fault_text, masked, span};

/// What of a story is told.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Nothing that matters less
    pub least: Weight,
    /// Nothing before or after
    pub times: Range<Real>,
    /// Only what is about this account, or about none
    pub account: Option<u16>,
    /// Only what this instance does, or what happens to all
    pub instance: Option<u8>,
}

impl Chosen {
    /// Everything that matters at least so much.
    pub const fn all(least: Weight) -> Self {
        Self { least, times: Real::ZERO..Real::NEVER, account: None, instance: None }
    }

    /// Whether a note is told.
    pub fn includes(&self, note: &Note) -> bool {
        let here = note.weight >= self.least && self.times.contains(&note.at);
        let account = match (self.account, note.account) {
            (Some(wanted), Some(account)) => wanted == account,
            _ => true,
        };
        let instance = match (self.instance, note.who) {
            (Some(wanted), Who::Instance(instance)) => wanted == instance,
            _ => true,
        };
        note.weight == Weight::Alarm || (here && account && instance)
    }
}

/// What kind of world it is.
pub fn head(s: &Scenario) -> String {
    let mut out = format!(
        "World of seed {}: {} instances ({}), {} accounts, {}; faults stop at {}\n",
        s.seed,
        s.instances.len(),
        if s.pace.shared { "sharing the accounts" } else { "one of them active at a time" },
        s.accounts.len(),
        span(s.end.0),
        clock(s.quiet_from),
    );
    if s.regime == Regime::Beyond {
        out.push_str("Clocks go beyond their declared bound: only fences have to hold.\n");
    }
    for instance in &s.instances {
        let Ok(policy) = s.policy(instance) else { continue };
        let _ = writeln!(
            out,
            "  i{}: INSTANCE_ID {}, starts at {}, session term {}",
            instance.id,
            instance.label,
            clock(instance.start),
            span(policy.session_term.as_millis() as u64),
        );
    }
    if let Some(node) = &s.node {
        let (from, to) = (clock(node.start), clock(node.end));
        let how = if node.crash { "and leaves its locks behind" } else { "and tidies up" };
        let _ = writeln!(out, "  a Node instance runs from {from} to {to}, {how}");
    }
    for fault in &s.faults {
        let _ = writeln!(out, "  {} {}", clock(fault.from), fault_text(fault, s.quiet_from));
    }
    out
}

/// One line for a note.
pub fn line(note: &Note) -> String {
    let who = match note.who {
        Who::Instance(instance) => format!("i{instance}"),
        Who::Phone(account) => format!("phone a{account}"),
        Who::Store => "somebody".into(),
        Who::World => "*".into(),
    };
    let mark = if note.weight == Weight::Alarm { ">>" } else { "  " };
    format!("{mark} {:>12}  {who:9}  {}", clock(note.at), note.text)
}

/// What was wrong.
pub fn verdict(report: &Report) -> String {
    if report.violations.is_empty() {
        return "Nothing was violated.\n".into();
    }
    let mut out = format!("{} violations:\n", report.violations.len());
    for violation in &report.violations {
        let (check, at) = (violation.check, clock(violation.at));
        let _ = writeln!(out, "  {at} {check}: {}", masked(&violation.text));
        let _ = writeln!(out, "      {check} says: {}", properties::says(check));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_always_told() {
        let note = |who, account, weight, at| Note {
            at: Real(at),
            who,
            account,
            weight,
            text: String::new(),
        };
        let chosen = Chosen {
            times: Real(10)..Real(20),
            account: Some(1),
            instance: Some(0),
            ..Chosen::all(Weight::Plain)
        };
        let told = [
            note(Who::World, None, Weight::Alarm, 99),
            note(Who::Instance(0), Some(1), Weight::Plain, 10),
            note(Who::Phone(1), Some(1), Weight::Plain, 19),
            note(Who::World, None, Weight::Plain, 15),
        ];
        assert!(told.iter().all(|note| chosen.includes(note)));
        let untold = [
            note(Who::Instance(0), Some(2), Weight::Plain, 10),
            note(Who::Instance(1), Some(1), Weight::Plain, 10),
            note(Who::Instance(0), Some(1), Weight::Detail, 10),
            note(Who::Instance(0), Some(1), Weight::Plain, 20),
        ];
        assert!(!untold.iter().any(|note| chosen.includes(note)));
    }
}
