//! Worlds made for one thing: where chance alone would take too long to bring it about.

use crate::chance::Chance;
use crate::clock::{ClockPlan, Real};
use crate::scenario::{
    AccountPlan, Fault, InstancePlan, Kind, NodePlan, Pace, Regime, Scenario, StorePlan, Target,
};

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;

/// Processes die in the middle of runs, and come back.
pub fn crashes(seed: u64) -> Scenario {
    let mut c = Chance::of(seed, "crashes");
    let mut s = calm(seed, 1, 2);
    s.pace = Pace {
        auto_interval: Some(MINUTE),
        auto_backoff: Some(MINUTE),
        auto_cooldown: Some(2 * MINUTE),
        auto_lease: Some(90 * SECOND),
        spacing: Some(5 * SECOND),
        phone_timeout: Some(10 * SECOND),
        ..s.pace
    };
    s.quiet_from = Real(20 * MINUTE);
    s.end = Real(60 * MINUTE);
    let mut from = 0;
    while from < s.quiet_from.0 {
        from += c.between(20, 120) * SECOND;
        fault(&mut s, Kind::Crash, Target::All, from, 5 * SECOND);
    }
    s
}

/// Three accounts lose their connection again and again, so that their runs fail; the others have
/// nothing to complain of but that.
pub fn failing(seed: u64) -> Scenario {
    let mut c = Chance::of(seed, "failing");
    let mut s = calm(seed, 1, 8);
    s.pace = Pace {
        auto_interval: Some(72 * SECOND),
        auto_backoff: Some(MINUTE),
        auto_cooldown: Some(150 * SECOND),
        auto_per_tick: Some(3),
        auto_concurrency: Some(3),
        spacing: Some(5 * SECOND),
        ..s.pace
    };
    s.quiet_from = Real(90 * MINUTE);
    s.end = Real(95 * MINUTE);
    for account in 0..3_u16 {
        // Always something to ask a phone that never answers, so that every run is cut off.
        let plan = &mut s.accounts[usize::from(account)];
        (plan.threads, plan.messages) = (400, 20_000);
        let from_now_on = s.quiet_from.0;
        fault(&mut s, Kind::PhoneOffline, Target::Account(account), 0, from_now_on);
        // Not from the beginning, so that their first run does not come to its end; then soon after
        // every tick, so that the run after the reconnect falls into the backoff.
        fault(&mut s, Kind::WaDown, Target::Account(account), 0, MINUTE);
        for tick in 1..75 {
            let from = tick * 72 * SECOND + c.between(11, 13) * SECOND;
            fault(&mut s, Kind::WaDown, Target::Account(account), from, SECOND);
        }
    }
    s
}

/// Instances hand over to each other while a slow phone has been asked.
pub fn handovers(seed: u64) -> Scenario {
    let mut c = Chance::of(seed, "handovers");
    let mut s = calm(seed, 2, 2);
    for account in &mut s.accounts {
        (account.phone_min, account.phone_max) = (30 * SECOND, 55 * SECOND);
    }
    s.pace = Pace {
        shared: c.permille(500),
        auto_interval: Some(MINUTE),
        auto_backoff: Some(20 * SECOND),
        auto_cooldown: Some(30 * SECOND),
        ..s.pace
    };
    s.quiet_from = Real(60 * MINUTE);
    s.end = Real(65 * MINUTE);
    let mut from = 0;
    for turn in 0_u64.. {
        from += c.between(70, 140) * SECOND;
        if from >= s.quiet_from.0 {
            break;
        }
        fault(&mut s, Kind::Stop, Target::Instance((turn % 2) as u8), from, 15 * SECOND);
    }
    s
}

/// A Node instance has the accounts for a while, and cannot read all that comes.
pub fn migrations(seed: u64) -> Scenario {
    let mut c = Chance::of(seed, "migrations");
    let mut s = calm(seed, 2, 2);
    s.pace = Pace {
        shared: c.permille(500),
        // What a Node instance leaves behind is met soon.
        auto_backoff: Some(20 * SECOND),
        recent_interval: Some(30 * SECOND),
        spacing: Some(5 * SECOND),
        ..s.pace
    };
    let start = c.between(2, 6) * MINUTE;
    // In the middle of a run.
    let end = start + c.between(5, 10) * MINUTE + 15 * SECOND;
    s.node = Some(NodePlan {
        start: Real(start),
        end: Real(end),
        crash: c.permille(500),
        wall_offset: 0,
        serves: true,
    });
    for account in &mut s.accounts {
        (account.threads, account.messages) = (3, 20_000);
    }
    s.end = Real(80 * MINUTE);
    // Ours stop in time, as whoever migrates back and forth sees to.
    fault(&mut s, Kind::Stop, Target::All, start - 10 * SECOND, 40 * SECOND);
    fault(&mut s, Kind::Undecryptable, Target::All, start + MINUTE, end - start - MINUTE);
    s
}

/// Runs that take longer than a tick's interval.
pub fn slow_runs(seed: u64) -> Scenario {
    let mut s = calm(seed, 1, 6);
    s.pace = Pace {
        auto_interval: Some(MINUTE),
        auto_backoff: Some(MINUTE),
        auto_cooldown: Some(2 * MINUTE),
        auto_per_tick: Some(3),
        auto_concurrency: Some(1),
        spacing: Some(5 * SECOND),
        phone_timeout: Some(60 * SECOND),
        ..s.pace
    };
    for account in &mut s.accounts {
        (account.phone_min, account.phone_max) = (20 * SECOND, 50 * SECOND);
    }
    s
}

/// A world without faults, whose accounts have much that a backfill can fetch.
fn calm(seed: u64, instances: u8, accounts: u16) -> Scenario {
    Scenario {
        seed,
        regime: Regime::Within,
        quiet_from: Real(30 * MINUTE),
        end: Real(60 * MINUTE),
        pace: Pace::default(),
        store: StorePlan { clock: ClockPlan::steady(0, 100), latency_min: 5, latency_max: 40 },
        instances: (0..instances)
            .map(|id| InstancePlan {
                id,
                label: format!("i{id}"),
                start: Real(u64::from(id) * 2_000),
                clock: ClockPlan::steady(1_000, 0),
            })
            .collect(),
        accounts: (0..accounts)
            .map(|id| AccountPlan {
                id,
                linked: true,
                threads: 12,
                groups: 200,
                lids: 0,
                twins_from: Real::ZERO,
                happenings: 0,
                home: 0,
                history: 300,
                messages: 500,
                own: 300,
                sends: 0,
                phone_min: 500,
                phone_max: 3_000,
                scan: 10_000,
            })
            .collect(),
        node: None,
        operations: Vec::new(),
        faults: Vec::new(),
    }
}

fn fault(s: &mut Scenario, kind: Kind, target: Target, from: u64, length: u64) {
    let (from, to) = (Real(from), Real(from + length));
    s.faults.push(Fault { from, to, kind, target, permille: 1_000, salt: 0 });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campaign::outcome;

    #[test]
    fn nothing_is_wrong_in_them_by_themselves() {
        for world in [crashes, failing, handovers, migrations, slow_runs] {
            let violations = outcome(world(1), None).violations;
            assert!(violations.is_empty(), "{violations:#?}");
        }
    }
}
