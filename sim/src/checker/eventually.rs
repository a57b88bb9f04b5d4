//! What has to come about once faults have stopped: L1, L2, L3, L4.

use backfill_core::io::Mode;
use backfill_core::policy::Settings;
use std::time::Duration;

use super::{Checker, documents};
use crate::clock::Real;
use crate::scenario::{Regime, Scenario};
use crate::store::SimStore;
use crate::whatsapp::WhatsApp;

impl Checker {
    /// When hand-overs have to be done, and everything that can be connected is.
    pub fn settled(&self) -> Real {
        self.handed_over().after(connect_bound(&self.policy))
    }

    /// When every account has to have an owner.
    pub fn handed_over(&self) -> Real {
        self.quiet_from.after(self.hand_over_bound())
    }

    /// L1: if an instance has healed, every account with credentials has exactly one owner that
    /// believes, from the hand-over bound on. Called at that time; and at the end. Returns when to
    /// look again, if an account has just been given back and its next owner has still time.
    pub fn check_owners(&mut self, at: Real, net: &WhatsApp) -> Option<Real> {
        if self.regime == Regime::Beyond || !self.processes.iter().any(|p| p.alive && !p.paused) {
            return None;
        }
        let mut again = None;
        for position in 0..self.accounts.len() {
            let seen = &self.accounts[position];
            let account = seen.number;
            if seen.deleted || !net.is_linked(account) || self.lies_elsewhere(position) {
                continue;
            }
            let owners = seen
                .holders
                .iter()
                .filter(|p| {
                    self.processes[**p as usize].holds[position]
                        .is_some_and(|(_, until)| until > at)
                })
                .count();
            let taken_by = seen.given_back.after(self.hand_over_after_move());
            let given_back = seen.given_back > Real::ZERO && seen.holders.is_empty();
            if owners == 0 && given_back && at < taken_by {
                again = again.max(Some(taken_by));
            } else if owners != 1 {
                self.violate("L1", at, || format!("account {account} has {owners} owners"));
            }
        }
        again
    }

    /// Whether the account's credentials lie on a host where nothing runs that can serve it.
    fn lies_elsewhere(&self, position: usize) -> bool {
        let Some(home) = self.credentials[position].filter(|_| self.local) else { return false };
        let serves = |p: &super::Process| p.instance == home && p.mode == Mode::Active;
        !self.processes.iter().any(|p| p.alive && !p.paused && serves(p))
    }

    /// L5, second half, called so long after a process that was told to stop has ended and nothing
    /// had disturbed it: what it owned is owned again, if since it was told to stop some other
    /// process that may own it has been there and nothing has disturbed that one or any other.
    pub fn check_hand_over(&mut self, at: Real, process: u32, net: &WhatsApp) {
        let old = &self.processes[process as usize];
        let (Some(asked), Some(ended)) = (old.stop_asked, old.ended) else { return };
        if old.disturbed >= asked {
            return;
        }
        // Who has just started has to begin a session and look around first.
        let ready = Real(asked.0.saturating_sub(SETTLING));
        // Others that were there may have a share in what is free, and must be able to take it.
        let calm = self.processes.iter().enumerate().all(|(number, p)| {
            let old = number as u32 == process || p.ended.is_some_and(|ended| ended < ready);
            let successor = p.started >= ended && p.disturbed == p.started;
            let stops = p.stop_asked.is_some();
            old || (p.alive && !p.paused && !stops && p.disturbed < ready) || (successor && !stops)
        });
        if !calm {
            return;
        }
        let heirs: Vec<u8> = self
            .processes
            .iter()
            .filter(|p| p.alive && !p.paused && p.stop_asked.is_none())
            .filter(|p| p.started < ready && p.disturbed < ready)
            .filter(|p| may_take_over(p.mode))
            .map(|p| p.instance)
            .collect();
        // Whoever is active next in exclusive mode need not be where the credentials are.
        let anywhere = self.shared() || !self.local;
        if self.regime == Regime::Beyond || heirs.is_empty() || !anywhere {
            return;
        }
        for position in old.left.clone() {
            let seen = &self.accounts[usize::from(position)];
            let account = seen.number;
            let home = self.credentials[usize::from(position)];
            let nobody_may = self.local && home.is_some_and(|home| !heirs.contains(&home));
            let owned = seen.owned_since.is_some() || seen.deleted || !net.is_linked(account);
            if !nobody_may && !owned {
                let after = at.since(ended);
                self.violate("L5", at, || {
                    format!("account {account}: nobody took over {after} ms after a graceful stop")
                });
            }
        }
    }

    /// How long taking over from a process that has given everything back may take, in
    /// milliseconds: the longest wait of a passive instance, or a shared one's look at the others,
    /// for the hint may be lost; and rounds of reading and writing, of which every account takes
    /// one.
    pub fn hand_over_after_stop(&self) -> u64 {
        let look =
            if self.shared() { self.policy.session_term / 3 } else { self.policy.passive_retry };
        self.taken_after(look + look / 5)
    }

    /// How long it takes until accounts are taken by somebody who finds out so much later that they
    /// are free, in milliseconds.
    fn taken_after(&self, found_out: Duration) -> u64 {
        let rounds = Duration::from_secs(3) + Duration::from_millis(300) * self.ids.len() as u32;
        (found_out + rounds).as_millis() as u64
    }

    /// How long an account that was given back to be shared out anew may be without an owner, in
    /// milliseconds: where the hint of it is lost nobody else looks soon, and whoever gave it back
    /// may take it again once it has been nobody's for the bound of rule 12.
    fn hand_over_after_move(&self) -> u64 {
        self.taken_after(self.policy.unowned_bound)
    }

    /// Detection (a term, one more if the last renewal arrived late), two looks a third of a term
    /// apart, of which the later may come a poll late, lock-delay and a retry. Who shares may wait for
    /// the bound of rule 12 beyond that, and what a Node instance left behind counts for its term.
    fn hand_over_bound(&self) -> u64 {
        let p = &self.policy;
        let (poll, unowned) = if self.shared() {
            (p.session_term / 3, p.unowned_bound)
        } else {
            (p.passive_retry, Duration::ZERO)
        };
        let poll = poll + poll / 5;
        let marked = p.session_term * 2 + p.session_term / 3 + poll * 2;
        let left_behind =
            if self.beside_node { NODE_TERM + p.margin + poll } else { Duration::ZERO };
        self.taken_after(marked + unowned + left_behind + p.lock_delay + poll)
    }

    /// L4, as it goes: a tick does not serve one account while another that is connected to the same
    /// process, has waited longer and may have a run, waits on and on.
    pub(super) fn started_before_others(&mut self, at: Real, process: u32, position: u16) {
        let auto = &self.policy.auto_backfill;
        // It was chosen some time ago, perhaps, and waited for its turn.
        let slack = auto.interval * 2 + Duration::from_secs(60);
        let (interval, now) = (auto.interval.as_millis() as u64, self.latest_commit);
        let p = &self.processes[process as usize];
        let ticks = p.ticks;
        let Some(chosen) = self.accounts.get(usize::from(position)) else { return };
        let waited = chosen.waited;
        let mut starved = None;
        for (other, seen) in self.accounts.iter_mut().enumerate() {
            let here = seen
                .connection
                .is_some_and(|(q, since)| q == process && at.since(since) > interval * 2 + 60_000);
            let runs = p.runs.iter().any(|(of, ..)| usize::from(*of) == other);
            let waits = other != usize::from(position)
                && here
                && !runs
                && !seen.deleted
                && seen.waits < waited
                && seen.due + slack < now;
            if !waits {
                continue;
            }
            if seen.passed_at != ticks {
                seen.passed += 1;
                seen.passed_at = ticks;
            }
            if seen.passed > PASSED {
                seen.passed = 0;
                starved = Some(seen.number);
            }
        }
        if let (Some(number), Regime::Within) = (starved, self.regime) {
            self.violate("L4", at, || {
                format!("account {number} waits while others have their turn again and again")
            });
        }
    }

    /// Whether somebody owns the account and is connected.
    pub(super) fn is_served(&self, position: u16, net: &WhatsApp) -> bool {
        let seen = &self.accounts[usize::from(position)];
        !seen.deleted && seen.connection.is_some() && net.is_linked(seen.number)
    }

    pub(super) fn finish_eventually(
        &mut self,
        at: Real,
        scenario: &Scenario,
        store: &SimStore,
        net: &WhatsApp,
    ) {
        if self.regime == Regime::Beyond || !scenario.instances.iter().any(|i| scenario.heals(i.id))
        {
            return;
        }
        let settled = self.settled();
        if at >= self.handed_over() {
            self.check_owners(at, net);
        }
        if at >= settled {
            self.finish_connections(at, net);
            self.finish_runs(at, store, net);
            self.finish_load(at);
            self.finish_turns(at, settled, net);
            self.finish_holes(at, scenario, settled, store, net);
        }
    }

    /// L1, second half: and its owner is connected.
    fn finish_connections(&mut self, at: Real, net: &WhatsApp) {
        for position in 0..self.accounts.len() as u16 {
            let account = self.number(position);
            let seen = &self.accounts[usize::from(position)];
            let elsewhere = self.lies_elsewhere(usize::from(position));
            if !seen.deleted && net.is_linked(account) && seen.connection.is_none() && !elsewhere {
                self.violate("L1", at, || format!("account {account} is not connected"));
            }
        }
    }

    /// L2: no account says that a run is under way unless one holds its lease; judged where a tick
    /// could have repaired it, on accounts that have been connected for long enough.
    fn finish_runs(&mut self, at: Real, store: &SimStore, net: &WhatsApp) {
        let auto = &self.policy.auto_backfill;
        let turns = self.turns();
        let wait = auto.backoff.as_millis() as u64
            + turns * auto.interval.as_millis() as u64
            + self.accounts.len() as u64 * auto.lease.as_millis() as u64;
        for position in 0..self.accounts.len() {
            let since = self.accounts[position].connection.map(|(_, since)| since);
            if !self.is_served(position as u16, net)
                || since.is_none_or(|since| since.max(self.quiet_from).after(wait) > at)
            {
                continue;
            }
            let id = &self.ids[position];
            let Some(doc) = store.document(&id.path()) else { continue };
            if doc.bool("lastAutoBackfillStatus.running") != Some(true) {
                continue;
            }
            let lease = store.document(&id.auto_backfill_path());
            if !lease.is_some_and(|lease| documents::is_live(lease, store.last_commit())) {
                let account = self.accounts[position].number;
                self.violate("L2", at, || format!("account {account}: `running` for ever"));
            }
        }
    }

    /// L3: while all is quiet a process asks for no more than 4,000 effects per hour, and 2,000
    /// more for every account of the world.
    fn finish_load(&mut self, at: Real) {
        let ms = at.since(self.quiet_from);
        let accounts = self.accounts.len() as u64;
        for process in 0..self.processes.len() {
            let p = &self.processes[process];
            let effects = p.effects - p.effects_before_quiet;
            let most = (4_000 + 2_000 * accounts) * ms / 3_600_000 + 500;
            if effects > most {
                self.violate("L3", at, || {
                    format!("process {process}: {effects} effects in {ms} quiet ms, of {most}")
                });
            }
        }
    }

    /// Ticks that it takes to serve all accounts, and two more.
    fn turns(&self) -> u64 {
        let most = u64::from(self.policy.auto_backfill.max_accounts_per_tick);
        (self.accounts.len() as u64).div_ceil(most) + 2
    }

    /// L4: an account that is connected and eligible all the time gets a backfill within the ticks
    /// that it takes to serve all accounts, and two more; each may wait for a run before it.
    fn finish_turns(&mut self, at: Real, settled: Real, net: &WhatsApp) {
        let auto = &self.policy.auto_backfill;
        if !auto.enabled {
            return;
        }
        let turns = self.turns();
        let wait = auto.cooldown.max(auto.backoff).as_millis() as u64
            + turns * auto.interval.as_millis() as u64
            + self.accounts.len() as u64 * auto.lease.as_millis() as u64;
        if at < settled.after(wait) {
            return;
        }
        for position in 0..self.accounts.len() as u16 {
            let seen = &self.accounts[usize::from(position)];
            let since = seen.connection.map(|(_, since)| since);
            if self.is_served(position, net)
                && seen.runs_in_quiet == 0
                && since.is_some_and(|since| since.after(wait) < at)
            {
                let account = seen.number;
                self.violate("L4", at, || format!("account {account} never had its turn"));
            }
        }
    }
}

/// Whether an instance in this mode may take what becomes free, if only it finds out.
const fn may_take_over(mode: Mode) -> bool {
    use backfill_core::io::PassiveReason as Why;
    matches!(mode, Mode::Active | Mode::Passive(Why::HeldByOther | Why::Starting))
}

/// So many ticks may serve others first: what they chose may have waited in line.
const PASSED: u64 = 2;

/// How long before a stop another process has to have been there, in milliseconds.
const SETTLING: u64 = 60_000;

/// How long a Node instance's lock lasts, and what its clock may be off.
const NODE_TERM: Duration = Duration::from_secs(92);

/// The longest wait before a reconnect, and the connecting.
fn connect_bound(policy: &Settings) -> u64 {
    (policy.reconnect_max + policy.reconnect_max / 5 + Duration::from_secs(30)).as_millis() as u64
}
