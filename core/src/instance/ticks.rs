//! Which runs to start, and when.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Instance;
use crate::bug::Bug;
use crate::eligibility;
use crate::host::Timer;
use crate::id::AccountId;
use crate::io::{Event, Mode, RunKind, Skip, Trigger};

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
        let mut skipped = BTreeMap::new();
        let mut due = Vec::new();
        for id in &self.connected {
            let Some(tenure) = &self.accounts[id].tenure else { continue };
            let cut_early = self.host.bug(Bug::CutBeforeFilter);
            let skip = if tenure.runs.contains_key(&kind) {
                Some(Skip::Running)
            } else if cut_early {
                None
            } else {
                eligibility::refuses(&self.host, &tenure.record, kind, Trigger::Periodic)
            };
            match skip {
                Some(reason) => *skipped.entry(reason).or_insert(0) += 1,
                None => due.push((eligibility::order(&self.host, &tenure.record, id), id)),
            }
        }
        if due.len() > cap {
            due.select_nth_unstable(cap);
            let over = u32::try_from(due.len() - cap).unwrap_or(u32::MAX);
            *skipped.entry(Skip::TickCap).or_insert(0) += over;
            due.truncate(cap);
        }
        due.sort_unstable();
        let start: Vec<AccountId> = due.into_iter().map(|(_, id)| id.clone()).collect();
        self.start_ticked(kind, &start, skipped);
    }

    fn recent_sync_tick(&mut self) {
        let kind = RunKind::RecentSync;
        let mut skipped = BTreeMap::new();
        let mut start = Vec::new();
        let connected: Vec<AccountId> = self.connected.iter().cloned().collect();
        for id in connected {
            let Some(tenure) = self.accounts.get_mut(&id).and_then(|a| a.tenure.as_mut()) else {
                continue;
            };
            if tenure.runs.contains_key(&kind) {
                *skipped.entry(Skip::Running).or_insert(0) += 1;
            } else if tenure.has_holes_to_close() {
                start.push(id);
            } else {
                tenure.stamp_idle_sync(&mut self.host);
                tenure.pump(&mut self.host);
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
        loop {
            let next = self.host.waiting.iter().position(|(kind, _)| self.host.has_slot(*kind));
            let Some((kind, id)) = next.and_then(|i| self.host.waiting.remove(i)) else { return };
            self.with_tenure(&id, |tenure, host| tenure.on_slot(host, kind));
        }
    }
}

const TICK_RETRY: Duration = Duration::from_secs(5);
