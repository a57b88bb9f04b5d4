//! Makes a failing scenario smaller while it goes on failing in the same way.
//!
//! Delta debugging: entries are left out in halves, quarters and so on down to one by one. What
//! cannot be left out is then made smaller. Nothing that is left out changes what the rest draws.

use crate::campaign::outcome;
use crate::clock::Real;
use crate::report::Violation;
use crate::scenario::{Pace, Scenario};
use crate::variant::Variant;

/// What shrinking came to.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The scenario that is left
    pub scenario: Scenario,
    /// What it violates
    pub violation: Violation,
    /// Worlds that were run
    pub runs: u32,
}

/// Shrinks `scenario` while it violates `check`, or the first property that it violates; `None` if
/// it does not. `tried` is called with each scenario that still fails.
pub fn shrink(
    scenario: Scenario,
    variant: Option<Variant>,
    check: Option<&str>,
    mut tried: impl FnMut(&Scenario),
) -> Option<Shrunk> {
    let violations = outcome(scenario.clone(), variant).violations;
    let violation = match check {
        None => violations.into_iter().next()?,
        Some(check) => violations.into_iter().find(|violation| violation.check == check)?,
    };
    let mut search = Search { scenario, variant, violation, runs: 1 };
    let mut before = None;
    // One pass can make another one worthwhile; the size falls, so this ends.
    while before != Some(size(&search.scenario)) {
        before = Some(size(&search.scenario));
        search.end_early();
        search.thin(|s| &mut s.faults);
        search.thin(|s| &mut s.operations);
        search.thin(|s| &mut s.accounts);
        search.thin(|s| &mut s.instances);
        search.simplify();
        tried(&search.scenario);
    }
    let Search { scenario, violation, runs, .. } = search;
    Some(Shrunk { scenario, violation, runs })
}

/// How much there is in a scenario.
pub fn size(s: &Scenario) -> usize {
    let clocks = s.instances.iter().map(|i| i.clock.rates.len() + i.clock.steps.len());
    let lively = s.accounts.iter().map(|a| {
        usize::from(a.sends > 0) + usize::from(a.threads > 1) + usize::from(a.history > 0)
    });
    s.faults.len()
        + s.operations.len()
        + s.accounts.len()
        + s.instances.len()
        + usize::from(s.node.is_some())
        + clocks.sum::<usize>()
        + lively.sum::<usize>()
}

struct Search {
    scenario: Scenario,
    variant: Option<Variant>,
    violation: Violation,
    runs: u32,
}

impl Search {
    /// Keeps a smaller scenario if it still fails in the same way.
    fn keep_if_failing(&mut self, smaller: Scenario) -> bool {
        self.runs += 1;
        let check = self.violation.check;
        let found = outcome(smaller.clone(), self.variant)
            .violations
            .into_iter()
            .find(|violation| violation.check == check);
        let Some(violation) = found else { return false };
        self.violation = violation;
        self.scenario = smaller;
        true
    }

    /// Leaves out entries of one list.
    fn thin<T: Clone>(&mut self, list: impl Fn(&mut Scenario) -> &mut Vec<T>) {
        let mut chunk = list(&mut self.scenario).len();
        while chunk > 0 {
            let mut from = 0;
            while from < list(&mut self.scenario).len() {
                let mut smaller = self.scenario.clone();
                let entries = list(&mut smaller);
                let to = (from + chunk).min(entries.len());
                entries.drain(from..to);
                if !self.keep_if_failing(smaller) {
                    from = to;
                }
            }
            chunk /= 2;
        }
    }

    /// Ends the world soon after what is always so is violated.
    fn end_early(&mut self) {
        let soon = self.violation.at.after(1_000);
        if soon < self.scenario.end {
            let mut smaller = self.scenario.clone();
            smaller.end = soon;
            self.keep_if_failing(smaller);
        }
    }

    /// Replaces what is special by what is usual, where that does not matter.
    fn simplify(&mut self) {
        self.replace(|s| s.node = None);
        self.replace(|s| s.pace = Pace { shared: s.pace.shared, ..Pace::default() });
        self.replace(|s| s.store.clock.rates.clear());
        for i in 0..self.scenario.instances.len() {
            self.replace(|s| s.instances[i].clock.rates.clear());
            self.replace(|s| s.instances[i].clock.steps.clear());
            self.replace(|s| s.instances[i].start = Real::ZERO);
        }
        for i in 0..self.scenario.accounts.len() {
            self.replace(|s| s.accounts[i].sends = 0);
            self.replace(|s| s.accounts[i].history = 0);
            self.replace(|s| s.accounts[i].messages = 0);
            self.replace(|s| s.accounts[i].threads = 1);
            self.replace(|s| s.accounts[i].linked = true);
            self.replace(|s| s.accounts[i].groups = 0);
        }
        for i in 0..self.scenario.faults.len() {
            self.replace(|s| s.faults[i].permille = 1_000);
        }
    }

    fn replace(&mut self, change: impl Fn(&mut Scenario)) {
        let mut simpler = self.scenario.clone();
        change(&mut simpler);
        if simpler != self.scenario {
            self.keep_if_failing(simpler);
        }
    }
}
