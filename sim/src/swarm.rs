//! Scenarios from a seed.
//!
//! Not only what goes wrong is drawn, but which kinds can go wrong in this run at all, and how
//! often: a run in which everything fails a little finds less than many in which few things fail
//! a lot.

use crate::chance::{Chance, draw};
use crate::clock::{ClockPlan, Real};
use crate::scenario::{
    AccountPlan, Ask, Fault, InstancePlan, Kind, NodePlan, Operation, Pace, Regime, Scenario,
    StorePlan, Target,
};

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// The scenario of a seed.
pub fn scenario(seed: u64) -> Scenario {
    let mut c = Chance::of(seed, "shape");
    let regime = if c.permille(100) { Regime::Beyond } else { Regime::Within };
    let stormy = c.between(10, 90) * MINUTE;
    let shared = c.permille(450);
    let pace = pace(&mut c, shared);
    let instances = instances(&mut Chance::of(seed, "instances"), regime);
    let accounts = accounts(&mut Chance::of(seed, "accounts"));
    // Long enough for hand-over, reconnects, a few ticks, and some holes.
    let quiet = c.between(25, 60) * MINUTE;
    let store = StorePlan {
        clock: ClockPlan::steady(c.below(1_000), drift(&mut c, 4_000)),
        latency_min: c.between(1, 10),
        latency_max: c.between(10, 120),
    };
    let mut scenario = Scenario {
        seed,
        regime,
        quiet_from: Real(stormy),
        end: Real(stormy + quiet),
        pace,
        store,
        instances,
        accounts,
        node: None,
        operations: Vec::new(),
        faults: Vec::new(),
    };
    let mut c = Chance::of(seed, "faults");
    scenario.faults = faults(&mut c, &scenario);
    scenario.operations = operations(&mut Chance::of(seed, "operations"), &scenario);
    let mut c = Chance::of(seed, "node");
    if c.permille(80) {
        let start = c.below(stormy / 2);
        scenario.node = Some(NodePlan {
            start: Real(start),
            end: Real(c.between(start, stormy)),
            crash: c.permille(500),
            wall_offset: c.below(4_000) as i64 - 2_000,
            serves: c.permille(500),
        });
    }
    let mut c = Chance::of(seed, "conversations");
    if c.permille(500) {
        converse(&mut c, &mut scenario);
    }
    link_in_time(&mut Chance::of(seed, "links"), &mut scenario);
    if Chance::of(seed, "patience").permille(100) {
        wait_for_depth(&mut scenario);
    }
    if Chance::of(seed, "credentials").permille(120) {
        keep_credentials_on_hosts(&mut scenario);
    }
    scenario
}

/// Where backfills come soon, there is time for all that they have to fetch.
fn wait_for_depth(s: &mut Scenario) {
    let (Some(interval), Some(cooldown)) = (s.pace.auto_interval, s.pace.auto_cooldown) else {
        return;
    };
    let per_tick = u64::from(s.pace.auto_per_tick.unwrap_or(1));
    let ticks = s.accounts.len() as u64 / per_tick + 3;
    s.end = s.end.after(cooldown + ticks * interval + 90 * MINUTE);
}

/// Messages are edited, read and revoked, and some people go by two addresses.
fn converse(c: &mut Chance, s: &mut Scenario) {
    let happenings = c.pick(&[0, 100, 400, 700]);
    let lids = c.pick(&[0, 0, 300, 1_000]);
    let known = if c.permille(500) { 0 } else { c.below(s.quiet_from.0) };
    for account in &mut s.accounts {
        account.happenings = happenings;
        account.lids = lids;
        account.twins_from = Real(known);
    }
}

/// History comes soon after an account is linked, so only then can a chunk of it be missing.
fn link_in_time(c: &mut Chance, s: &mut Scenario) {
    for fault in s.faults.iter_mut().filter(|fault| fault.kind == Kind::HistoryChunkMissing) {
        let meets = |account: &&mut AccountPlan| match fault.target {
            Target::Account(id) => account.id == id,
            Target::All | Target::Instance(_) => true,
        };
        let Some(account) = s.accounts.iter_mut().find(meets).filter(|_| c.permille(500)) else {
            continue;
        };
        fault.from = Real::ZERO;
        account.linked = false;
        account.scan = account.scan.min(30 * SECOND);
    }
}

/// Each account can be served on one host only.
fn keep_credentials_on_hosts(s: &mut Scenario) {
    s.pace.local = true;
    for account in &mut s.accounts {
        let home = draw(s.seed, 0x4000 + u64::from(account.id)) % s.instances.len() as u64;
        account.home = s.instances[home as usize].id;
    }
}

/// A day as the benchmark wants it: so many instances and accounts for 24 hours, per account 50
/// threads, 500 messages and 4 disconnects; everything else at the defaults of its mode, with some
/// faults of the store. Phones have `history` older messages of each thread.
pub fn day(seed: u64, shared: bool, instances: u8, accounts: u16, history: u32) -> Scenario {
    let mut c = Chance::of(seed, "day");
    let mut faults = Vec::new();
    for account in 0..accounts {
        for _ in 0..4 {
            let from = c.below(23 * HOUR);
            let to = Real(from + c.between(SECOND, 5 * MINUTE));
            let target = Target::Account(account);
            let kind = Kind::WaDown;
            faults.push(Fault { from: Real(from), to, kind, target, permille: 1_000, salt: 0 });
        }
    }
    for kind in [
        Kind::StoreLosesReply,
        Kind::StoreLosesRequest,
        Kind::StoreSlow { ms: 2_500 },
        Kind::StoreConflict,
    ] {
        let salt = c.next();
        let (from, to) = (Real::ZERO, Real(23 * HOUR));
        faults.push(Fault { from, to, kind, target: Target::All, permille: 2, salt });
    }
    for instance in 0..instances {
        let from = c.below(22 * HOUR);
        let target = Target::Instance(instance);
        let to = Real(from + 2 * MINUTE);
        let kind = Kind::Crash;
        faults.push(Fault { from: Real(from), to, kind, target, permille: 1_000, salt: 0 });
    }
    Scenario {
        seed,
        regime: Regime::Within,
        quiet_from: Real(23 * HOUR),
        end: Real(24 * HOUR),
        pace: Pace { shared, ..Pace::default() },
        store: StorePlan { clock: ClockPlan::steady(0, 100), latency_min: 5, latency_max: 40 },
        instances: (0..instances)
            .map(|id| InstancePlan {
                id,
                label: format!("i{id}"),
                start: Real(u64::from(id) * 2_000),
                clock: ClockPlan::steady(1_000, drift(&mut c, 1_000)),
            })
            .collect(),
        accounts: (0..accounts)
            .map(|id| AccountPlan {
                id,
                linked: true,
                threads: 50,
                groups: 200,
                lids: 0,
                twins_from: Real::ZERO,
                happenings: 0,
                home: 0,
                history,
                messages: 500,
                own: 300,
                sends: 0,
                phone_min: 500,
                phone_max: 8_000,
                scan: 10_000,
            })
            .collect(),
        node: None,
        operations: Vec::new(),
        faults,
    }
}

fn pace(c: &mut Chance, shared: bool) -> Pace {
    if c.permille(250) {
        return Pace { shared, ..Pace::default() };
    }
    // Everything sooner, so that a run sees many ticks; the seconds that safety hangs on stay.
    let interval = c.between(1, 6) * MINUTE;
    let backoff = c.between(1, 5) * MINUTE;
    Pace {
        shared,
        local: false,
        auto_interval: Some(interval),
        auto_backoff: Some(backoff),
        auto_cooldown: Some(backoff + c.between(1, 30) * MINUTE),
        auto_lease: Some(c.between(90, 900) * SECOND),
        auto_per_tick: Some(c.between(1, 4) as u32),
        auto_concurrency: Some(c.between(1, 3) as u32),
        depth: Some(c.pick(&[20, 50, 100])),
        recent_interval: Some(c.between(30, 180) * SECOND),
        recent_lease: Some(c.between(90, 300) * SECOND),
        spacing: Some(c.between(5, 30) * SECOND),
        phone_timeout: Some(c.between(10, 60) * SECOND),
        residency: Some(c.between(1, 10) * MINUTE),
    }
}

fn instances(c: &mut Chance, regime: Regime) -> Vec<InstancePlan> {
    let count = c.pick(&[1, 2, 2, 2, 3, 3, 3, 4, 5, 7]);
    let twins = count > 1 && c.permille(100);
    (0..count)
        .map(|id| InstancePlan {
            id,
            label: format!("i{}", if twins && id == 1 { 0 } else { id }),
            start: Real(if c.permille(700) { c.below(5 * SECOND) } else { c.below(20 * MINUTE) }),
            clock: own_clock(c, regime),
        })
        .collect()
}

fn own_clock(c: &mut Chance, regime: Regime) -> ClockPlan {
    let start = c.below(1_000 * HOUR);
    // The store's rate may be off by as much the other way; both together stay within 1 %.
    let bound = match regime {
        Regime::Beyond => 300_000,
        Regime::Within => 5_500,
    };
    let mut clock = ClockPlan::steady(start, drift(c, bound));
    for _ in 0..c.pick(&[0, 0, 1, 3]) {
        clock.rates.push((Real(c.below(2 * HOUR)), drift(c, bound)));
    }
    clock.rates.sort_by_key(|(at, _)| *at);
    clock
}

fn drift(c: &mut Chance, bound: i32) -> i32 {
    if c.permille(300) {
        return 0;
    }
    c.below(2 * bound as u64 + 1) as i32 - bound
}

fn accounts(c: &mut Chance) -> Vec<AccountPlan> {
    let count = c.pick(&[1, 1, 1, 2, 2, 3, 4, 6, 10, 30]);
    let threads = if count > 6 { 8 } else { c.pick(&[1, 4, 12, 30]) };
    (0..count)
        .map(|id| {
            let phone_min = c.between(200, 3_000);
            AccountPlan {
                id,
                linked: c.permille(800),
                threads: c.between(1, threads) as u16,
                groups: c.pick(&[0, 200, 1_000]),
                lids: 0,
                twins_from: Real::ZERO,
                happenings: 0,
                home: 0,
                history: c.pick(&[0, 10, 60, 300]),
                messages: c.pick(&[0, 50, 500, 500, 5_000]),
                own: c.pick(&[0, 300, 900]),
                sends: c.pick(&[0, 0, 20, 400]),
                phone_min,
                phone_max: phone_min + c.below(12_000),
                scan: c.pick(&[5 * SECOND, 30 * SECOND, 90 * SECOND, 10 * HOUR]),
            }
        })
        .collect()
}

fn operations(c: &mut Chance, s: &Scenario) -> Vec<Operation> {
    let count = c.pick(&[0, 0, 1, 3, 8]);
    (0..count)
        .map(|_| Operation {
            at: Real(c.below(s.quiet_from.0)),
            instance: c.pick(&s.instances.iter().map(|i| i.id).collect::<Vec<_>>()),
            account: c.pick(&s.accounts.iter().map(|a| a.id).collect::<Vec<_>>()),
            ask: c.pick(&[
                Ask::Backfill,
                Ask::Backfill,
                Ask::Backfill,
                Ask::RegenerateQr,
                Ask::RegenerateQr,
                Ask::Delete,
            ]),
        })
        .collect()
}

/// How often something happens in a run.
#[derive(Clone, Copy)]
enum Weather {
    Never,
    Rarely,
    Often,
    Always,
}

fn faults(c: &mut Chance, s: &Scenario) -> Vec<Fault> {
    let mut faults = Vec::new();
    // How much is on at all is drawn first: calm runs, and storms.
    let share = c.pick(&[0, 100, 250, 500, 800]);
    let kinds = kinds(c);
    for (kind, of) in kinds {
        if kind.beyond() && s.regime == Regime::Within {
            continue;
        }
        let weather = if c.permille(share) {
            c.pick(&[Weather::Rarely, Weather::Rarely, Weather::Often, Weather::Always])
        } else {
            Weather::Never
        };
        let windows = match weather {
            Weather::Never => 0,
            Weather::Rarely => c.between(1, 2),
            Weather::Often => c.between(3, 12),
            Weather::Always => 1,
        };
        for window in 0..windows {
            let (from, to) = match (weather, of) {
                (Weather::Always, Of::Chance) => (0, s.quiet_from.0),
                _ => {
                    let from = c.below(s.quiet_from.0);
                    (from, from + length(c, kind))
                }
            };
            let permille = match weather {
                Weather::Always => c.between(20, 300),
                _ => c.pick(&[50, 200, 600, 1_000]),
            };
            let target = target(c, kind, s);
            let salt = draw(c.next(), window);
            faults.push(Fault {
                from: Real(from),
                to: Real(to),
                kind,
                target,
                permille: permille as u16,
                salt,
            });
        }
    }
    deploy(c, s, &mut faults);
    forever(c, s, &mut faults);
    faults
}

/// Whether a kind is a matter of chance each time, or a state.
#[derive(Clone, Copy)]
enum Of {
    Chance,
    State,
}

fn kinds(c: &mut Chance) -> Vec<(Kind, Of)> {
    use Of::{Chance as C, State as S};
    let late = c.pick(&[100, 3_000, 20_000, 100_000]);
    vec![
        (Kind::Crash, S),
        (Kind::DuplicateDelivery, C),
        (Kind::ForeignClient, S),
        (Kind::Freeze, S),
        (Kind::GatewayUnknown, C),
        (Kind::HintsLost, C),
        (Kind::HistoryChunkMissing, C),
        (Kind::HostReboot { ms: c.between(0, 10) * MINUTE }, S),
        (Kind::LoggedOut, S),
        (Kind::Pause, S),
        (Kind::PauseAtSend { ms: c.pick(&[500, 5_000, 60_000, 200_000]) }, C),
        (Kind::PhoneAnswersOther, C),
        (Kind::PhoneLate { ms: c.pick(&[5_000, 30_000, 120_000]) }, C),
        (Kind::PhoneOffline, S),
        (Kind::PhoneSilent, C),
        (Kind::PhoneTwice, C),
        (Kind::Stop, S),
        (Kind::StoreConflict, C),
        (Kind::StoreDown, C),
        (Kind::StoreDuplicate { ms: late }, C),
        (Kind::StoreLate { ms: late }, C),
        (Kind::StoreLosesReply, C),
        (Kind::StoreLosesRequest, C),
        (Kind::StorePartition { requests: true }, S),
        (Kind::StorePartition { requests: false }, S),
        (Kind::StoreSlow { ms: c.pick(&[500, 1_500, 2_900, 10_000]) }, C),
        (Kind::Undecryptable, C),
        (Kind::WaDown, S),
        (Kind::WaShortDrain, C),
        (Kind::WaSilent, S),
    ]
}

/// How long one of a kind takes, in milliseconds.
fn length(c: &mut Chance, kind: Kind) -> u64 {
    match kind {
        Kind::Crash => c.pick(&[1, 5, 40, 100, 400]) * SECOND,
        Kind::Pause | Kind::Freeze => c.pick(&[2, 20, 45, 100, 300]) * SECOND,
        Kind::PauseAtSend { .. } => c.pick(&[1, 10, 100]) * SECOND,
        Kind::Stop => c.between(5, 60) * SECOND,
        Kind::HostReboot { .. } => c.between(10, 300) * SECOND,
        Kind::WaDown => c.pick(&[1, 10, 60, 400, 1_000]) * SECOND,
        Kind::PhoneOffline => c.pick(&[1, 10, 60]) * MINUTE,
        Kind::StorePartition { .. } | Kind::StoreDown => c.pick(&[2, 10, 45, 120, 600]) * SECOND,
        _ => c.pick(&[10, 60, 600, 3_000]) * SECOND,
    }
}

fn target(c: &mut Chance, kind: Kind, s: &Scenario) -> Target {
    let instance = |c: &mut Chance| Target::Instance(s.instances[index(c, s.instances.len())].id);
    let account = |c: &mut Chance| Target::Account(s.accounts[index(c, s.accounts.len())].id);
    match kind {
        Kind::HostReboot { .. } => Target::All,
        Kind::Crash | Kind::Pause | Kind::Freeze | Kind::Stop => {
            if c.permille(120) {
                Target::All
            } else {
                instance(c)
            }
        }
        Kind::ForeignClient | Kind::LoggedOut => account(c),
        Kind::DuplicateDelivery
        | Kind::HistoryChunkMissing
        | Kind::PhoneAnswersOther
        | Kind::PhoneLate { .. }
        | Kind::PhoneOffline
        | Kind::PhoneSilent
        | Kind::PhoneTwice
        | Kind::Undecryptable
        | Kind::WaShortDrain
        | Kind::WaSilent => {
            if c.permille(400) {
                Target::All
            } else {
                account(c)
            }
        }
        Kind::WaDown => match c.below(3) {
            0 => Target::All,
            1 => instance(c),
            _ => account(c),
        },
        _ => {
            if c.permille(400) {
                Target::All
            } else {
                instance(c)
            }
        }
    }
}

/// A rolling deploy: one instance after the other stops and starts.
fn deploy(c: &mut Chance, s: &Scenario, faults: &mut Vec<Fault>) {
    if !c.permille(150) {
        return;
    }
    let mut from = c.below(s.quiet_from.0);
    for instance in &s.instances {
        let down = c.between(1, 20) * SECOND;
        faults.push(Fault {
            from: Real(from),
            to: Real(from + down),
            kind: Kind::Stop,
            target: Target::Instance(instance.id),
            permille: 1_000,
            salt: 0,
        });
        from += down + c.between(0, 60) * SECOND;
    }
}

/// Some instances die, or are cut off, and never come back; at least one does.
fn forever(c: &mut Chance, s: &Scenario, faults: &mut Vec<Fault>) {
    if s.instances.len() < 2 || !c.permille(200) {
        return;
    }
    let survivor = index(c, s.instances.len());
    for (i, instance) in s.instances.iter().enumerate() {
        if i == survivor || c.permille(500) {
            continue;
        }
        let kind = c.pick(&[
            Kind::Crash,
            Kind::Crash,
            Kind::StorePartition { requests: true },
            Kind::StorePartition { requests: false },
        ]);
        faults.push(Fault {
            from: Real(c.below(s.quiet_from.0)),
            to: Real::NEVER,
            kind,
            target: Target::Instance(instance.id),
            permille: 1_000,
            salt: 0,
        });
    }
}

fn index(c: &mut Chance, len: usize) -> usize {
    c.below(len as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_gives_a_scenario_that_can_be_written_and_read() {
        for seed in 0..500 {
            let scenario = scenario(seed);
            assert!(scenario.instances.iter().any(|i| scenario.heals(i.id)), "{seed}");
            for instance in &scenario.instances {
                assert!(
                    scenario.policy(instance).is_ok(),
                    "{seed}: {:?}",
                    scenario.policy(instance)
                );
            }
            if seed < 20 {
                let text = scenario.to_json();
                assert_eq!(Scenario::from_json(&text).unwrap(), scenario);
            }
        }
    }

    #[test]
    fn every_kind_of_fault_is_drawn_in_some_run_and_missing_in_some() {
        let mut with = [0_u32; Kind::COUNT];
        for seed in 0..500 {
            let mut seen = [false; Kind::COUNT];
            for fault in &scenario(seed).faults {
                seen[fault.kind.index()] = true;
            }
            for (count, seen) in with.iter_mut().zip(seen) {
                *count += u32::from(seen);
            }
        }
        for (i, runs) in with.iter().enumerate() {
            assert!((1..450).contains(runs), "{}: {runs}", Kind::name(i));
        }
    }
}
