//! Which runs to start, and when.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Instance;
use crate::account::Stamps;
use crate::bug::Bug;
use crate::eligibility;
use crate::host::Timer;
use crate::id::AccountId;
use crate::io::{Event, Mode, RunKind, Skip, Trigger};
use crate::tenure::Tenure;

/// What ticks have to know of a connected account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Glance {
    stamps: Stamps,
    /// A backfill is under way
    backfills: bool,
    /// A recent sync is under way
    syncs: bool,
    /// A recent sync has something to do
    has_holes: bool,
}

impl Glance {
    pub(super) fn at(tenure: &Tenure) -> Self {
        Self {
            stamps: tenure.record.stamps,
            backfills: tenure.runs.contains_key(&RunKind::AutoBackfill),
            syncs: tenure.runs.contains_key(&RunKind::RecentSync),
            has_holes: tenure.has_holes_to_close(),
        }
    }
}

impl Instance {
    pub(super) fn tick(&mut self, kind: RunKind) {
        let (enabled, interval) = match kind {
            RunKind::AutoBackfill => {
                (self.host.policy.auto_backfill.enabled, self.host.policy.auto_backfill.interval)
            }
            RunKind::RecentSync => {
                (self.host.policy.recent_sync.enabled, self.host.policy.recent_sync.interval)
            }
        };
        if self.mode != Mode::Active || !enabled {
            return;
        }
        if self.last_tick_works(kind) && !self.host.bug(Bug::OverlappingTicks) {
            let soon = self.host.now + TICK_RETRY;
            self.host.timers.set(Timer::Tick(kind), soon);
            return;
        }
        self.host.in_ms(Timer::Tick(kind), interval);
        match kind {
            RunKind::AutoBackfill => self.backfill_tick(),
            RunKind::RecentSync => self.recent_sync_tick(),
        }
    }

    pub(super) fn last_tick_works(&self, kind: RunKind) -> bool {
        self.ticked.get(&kind).is_some_and(|started| {
            started.iter().any(|id| {
                let tenure = self.accounts.get(id).and_then(|account| account.tenure.as_ref());
                tenure
                    .and_then(|t| t.runs.get(&kind))
                    .is_some_and(|run| run.works || run.is_queued())
            })
        })
    }

    fn backfill_tick(&mut self) {
        let kind = RunKind::AutoBackfill;
        let cap = self.host.policy.auto_backfill.max_accounts_per_tick as usize;
        let now = self.host.store_now();
        let cut_early = self.host.bug(Bug::CutBeforeFilter);
        let mut skipped = BTreeMap::new();
        let mut due = Vec::new();
        for (id, glance) in &self.connected {
            let skip = if glance.backfills {
                Some(Skip::Running)
            } else if cut_early {
                None
            } else {
                eligibility::refuses(&self.host, now, &glance.stamps, kind, Trigger::Periodic)
            };
            match skip {
                Some(reason) => *skipped.entry(reason).or_insert(0) += 1,
                None => due.push((eligibility::waits_since(&self.host, &glance.stamps), id)),
            }
        }
        // Those who have waited alike stay in the order of their ids.
        due.sort_by_key(|(since, _)| *since);
        if due.len() > cap {
            let over = u32::try_from(due.len() - cap).unwrap_or(u32::MAX);
            *skipped.entry(Skip::TickCap).or_insert(0) += over;
            due.truncate(cap);
        }
        let start: Vec<AccountId> = due.into_iter().map(|(_, id)| id.clone()).collect();
        self.start_ticked(kind, &start, skipped);
    }

    fn recent_sync_tick(&mut self) {
        let kind = RunKind::RecentSync;
        let mut skipped = BTreeMap::new();
        let mut start = Vec::new();
        for (id, glance) in &self.connected {
            if glance.syncs {
                *skipped.entry(Skip::Running).or_insert(0) += 1;
            } else if glance.has_holes {
                start.push(id.clone());
            } else {
                *skipped.entry(Skip::Idle).or_insert(0) += 1;
            }
        }
        self.start_ticked(kind, &start, skipped);
    }

    fn start_ticked(&mut self, kind: RunKind, start: &[AccountId], skipped: BTreeMap<Skip, u32>) {
        let connected = u32::try_from(self.connected.len()).unwrap_or(u32::MAX);
        let started = u32::try_from(start.len()).unwrap_or(u32::MAX);
        self.host.event(Event::Tick { kind, connected, started, skipped });
        for id in start {
            self.with_tenure(id, |tenure, host| {
                tenure.start_run(host, kind, Trigger::Periodic);
                tenure.pump(host);
            });
        }
        self.ticked.insert(kind, start.iter().cloned().collect());
    }

    pub(super) fn give_slots(&mut self) {
        while let Some((kind, id)) = self.host.next_in_line() {
            self.with_tenure(&id, |tenure, host| tenure.on_slot(host, kind));
        }
    }
}

const TICK_RETRY: Duration = Duration::from_secs(5);
