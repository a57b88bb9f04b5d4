//! A run over one account: choose threads, find what is missing, ask the phone for it page by page.
//!
//! Both kinds of run are the same machine with different goals: the backfill extends history
//! downwards to a depth, the recent sync closes holes. A run holds a lease of its own, and a slot
//! while it works; waiting until the phone may be asked again takes no slot.

mod lease;
mod result;

use std::collections::BTreeSet;
use std::time::Duration;

use smol_str::SmolStr;

pub(crate) use lease::RunLease;
use lease::{lease_path, lease_term};

use crate::account::{self, Record};
use crate::bug::Bug;
use crate::coverage::{Anchor, Coverage, Goal, Mark};
use crate::covered::Covered;
use crate::doc::{
    CollectionPath, Comparison, Direction, DocPath, Document, FieldOp, FieldPath, Query, Value,
};
use crate::eligibility;
use crate::host::{AccountRoute, AccountTimer, Host, Route};
use crate::id::{AccountId, RequestId, ThreadId};
use crate::io::{
    Answer, Event, GatewayCall, HoleChange, Key, Lane, PageFacts, RunKind, RunResult, Skip, Trigger,
};
use crate::jid::{Jid, JidKind};
use crate::ledger::{Companion, Draft, Purpose};
use crate::phone::PhoneState;
use crate::tenure::Tenure;
use crate::thread::redirected;
use crate::time::{Mono, StoreTime};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Run {
    kind: RunKind,
    pub(crate) trigger: Trigger,
    step: Step,
    /// It takes a slot
    pub(crate) works: bool,
    /// It stands in the line for a slot
    in_line: bool,
    begun: Mono,
    /// When its lease is not certain any more
    pub(crate) deadline: Option<Mono>,
    threads: Vec<Work>,
    /// The read whose answer it waits for
    reading: Option<RequestId>,
    retries: u32,
    asked: u32,
    messages: u32,
    errors: u32,
    error: Option<&'static str>,
    /// It looks at the newest threads and compares them with the gaps up to this one; otherwise only
    /// at those that are known to need it
    surveys: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// The phone was asked
    Asking {
        thread: ThreadId,
        anchor: Anchor,
    },
    /// What a page brought is being written
    Covering,
    /// Account and lease are being read
    Checking,
    Choosing,
    Ending,
    /// Whether a LID's thread leads elsewhere is being read
    Following(ThreadId),
    /// Coverage is being read
    Loading(Vec<ThreadId>),
    /// The newest message of a thread is being looked up
    Looking(ThreadId),
    /// Waits for a slot to begin
    Queued,
    /// A reservation is being written
    Reserving {
        thread: ThreadId,
        anchor: Anchor,
    },
    Starting,
    /// Waits until the phone may be asked
    Waiting {
        thread: ThreadId,
        anchor: Anchor,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Work {
    thread: ThreadId,
    messages: u32,
    /// It was compared with the gaps
    looked: bool,
}

impl Work {
    fn new(thread: ThreadId) -> Self {
        Self { thread, messages: 0, looked: false }
    }
}

impl Run {
    /// Gives back its slot, if it has one.
    pub(crate) fn drop_slot(mut self, host: &mut Host) {
        self.release_slot(host);
    }

    fn release_slot(&mut self, host: &mut Host) {
        if std::mem::take(&mut self.works)
            && let Some(working) = host.working.get_mut(&self.kind)
        {
            *working = working.saturating_sub(1);
        }
    }

    fn take_slot(&mut self, host: &mut Host) {
        if !self.works {
            self.works = true;
            *host.working.entry(self.kind).or_insert(0) += 1;
        }
    }

    /// Whether the newest message of the thread is being looked up.
    pub(crate) fn looks_at(&self, thread: &ThreadId) -> bool {
        matches!(&self.step, Step::Following(looked) | Step::Looking(looked) if looked == thread)
    }

    pub(crate) fn is_queued(&self) -> bool {
        self.step == Step::Queued
    }

    fn share_is_used(&self, host: &Host) -> bool {
        let half = lease_term(host, self.kind) / 2;
        self.asked >= REQUESTS_PER_RUN || host.now.since(self.begun) >= half
    }
}

impl Tenure {
    /// Starts a run, unless one of its kind is under way. Whether it may start was decided before.
    pub(crate) fn start_run(&mut self, host: &mut Host, kind: RunKind, trigger: Trigger) -> bool {
        if self.runs.contains_key(&kind) {
            return false;
        }
        if trigger == Trigger::Connect && eligibility::backs_off(host, &self.record.stamps) {
            let account = self.id.clone();
            host.event(Event::Skipped { account, kind, reason: Skip::Backoff });
            return false;
        }
        self.runs.insert(
            kind,
            Run {
                kind,
                trigger,
                step: Step::Queued,
                works: false,
                in_line: false,
                begun: host.now,
                deadline: None,
                threads: Vec::new(),
                reading: None,
                retries: 0,
                asked: 0,
                messages: 0,
                errors: 0,
                error: None,
                surveys: None,
            },
        );
        self.seek_slot(host, kind);
        true
    }

    /// Whether a recent sync has anything to do.
    pub(crate) fn has_holes_to_close(&self) -> bool {
        self.needs_survey() || self.in_need().next().is_some()
    }

    /// Whether any of the newest threads may lack messages.
    fn needs_survey(&self) -> bool {
        self.survey_due || self.sync.latest_gap() > self.sync.surveyed
    }

    /// Threads that a recent sync has to look at, however old they are; some may come twice.
    fn in_need(&self) -> impl Iterator<Item = &ThreadId> {
        let gaps = self.sync.thread_gaps.keys().filter(|thread| !self.tails.contains(*thread));
        self.dirty.iter().chain(&self.open_holes).chain(gaps)
    }

    /// Shows now and then that the gap filler has nothing to do. Each account does so in its own
    /// time: a tick over thousands would have thousands of commits at once.
    pub(crate) fn stamp_idle_sync(&mut self, host: &mut Host) {
        let busy = self.runs.contains_key(&RunKind::RecentSync) || self.has_holes_to_close();
        let idle = self.is_connected() && !busy;
        let again = if idle { host.policy.idle_stamp } else { host.policy.recent_sync.interval };
        host.in_ms(self.timer(AccountTimer::Idle), again);
        if idle {
            self.ledger.set_account(account::LAST_RECENT_SYNC_AT, FieldOp::ServerTime);
            self.ledger.push(Purpose::Patch);
        }
    }

    /// A slot may be free for the run.
    pub(crate) fn on_slot(&mut self, host: &mut Host, kind: RunKind) {
        if let Some(run) = self.runs.get_mut(&kind) {
            run.in_line = false;
            match run.step {
                Step::Queued => self.seek_slot(host, kind),
                Step::Waiting { .. } => self.pump_phone(host),
                _ => {}
            }
        }
        self.pump(host);
    }

    pub(crate) fn abort_runs(&mut self, host: &mut Host, error: &'static str) {
        for kind in [RunKind::AutoBackfill, RunKind::RecentSync] {
            self.fail_run(host, kind, error);
        }
    }

    pub(crate) fn on_run_timer(&mut self, host: &mut Host, kind: RunKind) {
        let Some(run) = self.runs.get(&kind) else { return };
        match (&run.step, run.deadline) {
            (Step::Checking, _) => self.check(host, kind),
            (_, Some(deadline)) if host.now >= deadline => {
                host.event(Event::LeaseLost { key: Key::Run(self.id.clone(), kind) });
                self.fail_run(host, kind, "lease_expired");
            }
            (Step::Ending, _) => {
                self.ledger.push(Purpose::RunEnd(kind));
                host.in_ms(self.timer(AccountTimer::Run(kind)), Duration::from_secs(5));
            }
            (Step::Waiting { .. }, _) if run.share_is_used(host) => self.end_run(host, kind),
            (_, Some(_)) => {
                if !host.bug(Bug::NoRenewal) {
                    self.ledger.push(Purpose::RunBeat(kind));
                }
                self.watch_lease(host, kind);
            }
            (_, None) => {}
        }
    }

    pub(crate) fn on_run_answer(
        &mut self,
        host: &mut Host,
        kind: RunKind,
        request: RequestId,
        answer: Answer,
    ) {
        let Some(run) = self.runs.get_mut(&kind) else { return };
        let asked = self.phone.awaited().is_some_and(|(_, awaited, _)| awaited == request);
        if !asked && run.reading.take_if(|reading| *reading == request).is_none() {
            // An earlier run, or an earlier step, wanted to know.
            return;
        }
        match (run.step.clone(), answer) {
            (Step::Checking, Answer::Read { read_time, docs }) => {
                let mut docs = docs.into_iter();
                let account = docs.next().flatten();
                let lease = docs.next().flatten();
                self.on_checked(host, kind, read_time, account.as_deref(), lease.as_deref());
            }
            (Step::Checking, _) => self.check_again(host, kind),
            (Step::Choosing, Answer::Found { docs, .. }) => {
                let chosen =
                    docs.iter().filter_map(|doc| ThreadId::parse(doc.path.id()).ok()).collect();
                self.on_chosen(host, kind, chosen);
            }
            (Step::Loading(threads), Answer::Read { docs, .. }) => {
                for (thread, doc) in threads.into_iter().zip(docs) {
                    self.coverage.entry(thread).or_insert_with(|| Covered::parse(doc.as_deref()));
                }
                self.plan(host, kind);
            }
            (Step::Looking(thread), Answer::Found { docs, .. }) => {
                let newest = docs.iter().find_map(|doc| newest_mark(doc));
                self.on_looked(host, kind, &thread, newest.as_ref());
            }
            (Step::Following(thread), Answer::Read { docs, .. }) => {
                let doc = docs.into_iter().next().flatten();
                self.on_followed(host, kind, &thread, doc.as_deref());
            }
            (Step::Asking { thread, anchor }, Answer::Rejected(_)) => {
                // It was not asked, so the try does not count.
                if let Some(covered) = self.coverage.get_mut(&thread) {
                    covered.coverage.unasked(&anchor);
                    covered.note(true);
                }
                self.phone.not_asked(host);
                if let Some(run) = self.runs.get_mut(&kind) {
                    run.errors += 1;
                }
                self.plan(host, kind);
            }
            (Step::Choosing | Step::Following(_) | Step::Loading(_) | Step::Looking(_), _) => {
                self.fail_run(host, kind, "store_unavailable");
            }
            _ => {}
        }
    }

    pub(crate) fn on_run_applied(
        &mut self,
        host: &mut Host,
        purpose: &Purpose,
        sent: Mono,
        commit_time: StoreTime,
    ) {
        match *purpose {
            Purpose::RunStart(kind) => self.on_started(host, kind, sent, commit_time),
            Purpose::RunBeat(kind) => {
                let term = lease_term(host, kind);
                let belief = host.policy.belief(term);
                self.bump_lease(kind);
                if let Some(run) = self.runs.get_mut(&kind) {
                    run.deadline = Some(sent + belief);
                }
                self.watch_lease(host, kind);
            }
            Purpose::RunEnd(kind) => self.on_ended(host, kind, commit_time),
            Purpose::Reserve(kind) => self.on_reserved(host, kind, sent),
            Purpose::Cover(kind)
                if self.runs.get(&kind).is_some_and(|run| run.step == Step::Covering) =>
            {
                self.plan(host, kind);
            }
            _ => {}
        }
    }

    pub(crate) fn on_run_refused(&mut self, host: &mut Host, purpose: &Purpose, conflict: bool) {
        match *purpose {
            Purpose::RunStart(kind) => {
                let Some(run) = self.runs.get_mut(&kind) else { return };
                if run.step == Step::Starting {
                    run.step = Step::Checking;
                    self.check_again(host, kind);
                } else {
                    // It was aborted while the lease was being taken, and has none.
                    let error = run.error.unwrap_or("store_unavailable");
                    self.drop_run(host, kind, error);
                }
            }
            Purpose::RunBeat(kind) => self.again(host, Purpose::RunBeat(kind)),
            Purpose::RunEnd(kind) => self.again(host, Purpose::RunEnd(kind)),
            Purpose::Reserve(kind) | Purpose::Cover(kind) => {
                let error = if conflict { "store_conflict" } else { "store_unavailable" };
                self.fail_run(host, kind, error);
            }
            _ => {}
        }
    }

    /// The phone answered.
    pub(crate) fn on_page(&mut self, host: &mut Host, request: RequestId, page: &PageFacts) {
        let Some((kind, awaited, _)) = self.phone.awaited() else { return };
        if awaited != request {
            return;
        }
        let Some(run) = self.runs.get_mut(&kind) else { return };
        let Step::Asking { thread, anchor, .. } = &run.step else { return };
        if page.thread != *thread {
            return;
        }
        let (thread, anchor) = (thread.clone(), anchor.clone());
        run.step = Step::Covering;
        run.messages = run.messages.saturating_add(page.messages);
        if let Some(work) = run.threads.iter_mut().find(|work| work.thread == thread) {
            work.messages = work.messages.saturating_add(page.messages);
        }
        self.phone.answered(host);
        if let Some(covered) = self.coverage.get_mut(&thread) {
            let holes = covered.coverage.holes().len();
            covered.coverage.page(&anchor, page.oldest.as_ref(), page.messages, page.end);
            covered.note(true);
            if covered.coverage.holes().len() < holes {
                let account = self.id.clone();
                host.event(Event::Hole { account, change: HoleChange::Filled });
            }
        }
        self.ledger.push(Purpose::Cover(kind));
        self.pump_phone(host);
    }

    /// The phone may be asked again, or has not answered in time.
    pub(crate) fn on_phone_timer(&mut self, host: &mut Host) {
        if let Some((kind, _, until)) = self.phone.awaited()
            && host.now >= until
        {
            self.phone.state = PhoneState::Free;
            if let Some(run) = self.runs.get_mut(&kind)
                && let Step::Asking { thread, anchor, .. } = &run.step
            {
                run.errors += 1;
                let exhausted = self.coverage.get(thread).is_some_and(|covered| {
                    covered.coverage.stretches().iter().any(|s| s.low == *anchor && s.exhausted)
                });
                run.step = Step::Covering;
                if exhausted {
                    let account = self.id.clone();
                    host.event(Event::Hole { account, change: HoleChange::Exhausted });
                }
                self.plan(host, kind);
            }
        }
        self.pump_phone(host);
    }

    /// Lets the next run ask the phone, if it may be asked.
    pub(crate) fn pump_phone(&mut self, host: &mut Host) {
        let timer = self.timer(AccountTimer::Phone);
        if let Some((_, _, until)) = self.phone.awaited() {
            host.timers.set(timer, until);
            return;
        }
        if !self.is_connected() {
            return;
        }
        for kind in [RunKind::RecentSync, RunKind::AutoBackfill] {
            let Some(run) = self.runs.get_mut(&kind) else { continue };
            let Step::Waiting { thread, anchor } = &run.step else { continue };
            if !self.phone.is_free(host.now) {
                if self.phone.state == PhoneState::Free {
                    host.timers.set(timer, self.phone.free_at);
                }
                return;
            }
            if !run.works && !host.has_slot(kind) {
                if !std::mem::replace(&mut run.in_line, true) {
                    host.stand_in_line(kind, &self.id);
                }
                continue;
            }
            let (thread, anchor) = (thread.clone(), anchor.clone());
            let Some(covered) = self.coverage.get_mut(&thread) else {
                self.fail_run(host, kind, "store_conflict");
                return;
            };
            let wanted = covered.coverage.next_anchor(goal(host, kind));
            if wanted.as_ref() != Some(&anchor) && !host.bug(Bug::AnchorAtOldest) {
                // The other kind of run has asked with it while this one waited.
                self.plan(host, kind);
                return self.pump_phone(host);
            }
            run.take_slot(host);
            if !host.bug(Bug::EndlessTries) {
                covered.coverage.asked(&anchor, host.policy.phone.tries);
            }
            covered.note(true);
            self.phone.state = PhoneState::Reserving(kind);
            run.step = Step::Reserving { thread, anchor };
            if host.bug(Bug::ReservationNotPersisted) {
                self.on_reserved(host, kind, host.now);
            } else {
                self.ledger.push(Purpose::Reserve(kind));
            }
            return;
        }
    }

    pub(crate) fn draft_reservation(&mut self, kind: RunKind, draft: &mut Draft) -> Option<()> {
        let run = self.runs.get(&kind)?;
        let Step::Reserving { thread, anchor, .. } = &run.step else { return None };
        let covered = self.coverage.get_mut(thread)?;
        let write = covered.write(&self.id, thread)?;
        let tries =
            covered.coverage.stretches().iter().find(|s| s.low == *anchor).map_or(0, |s| s.tries);
        draft.sync.extend([
            (account::ASKED_AT, FieldOp::ServerTime),
            (account::ASKED_THREAD, Value::from(thread.text()).into()),
            (account::ASKED_ANCHOR, Value::from(anchor.id.clone()).into()),
            (account::ASKED_TRY, Value::from(tries).into()),
        ]);
        draft.writes.push((Companion::Coverage(thread.clone()), write));
        Some(())
    }

    fn seek_slot(&mut self, host: &mut Host, kind: RunKind) {
        let Some(run) = self.runs.get_mut(&kind) else { return };
        if host.has_slot(kind) {
            if !host.bug(Bug::CapCountedLate) {
                run.take_slot(host);
            }
            run.step = Step::Checking;
            self.check(host, kind);
        } else if !std::mem::replace(&mut run.in_line, true) {
            host.stand_in_line(kind, &self.id);
        }
    }

    fn check(&mut self, host: &mut Host, kind: RunKind) {
        let Some(run) = self.runs.get_mut(&kind) else { return };
        let paths = vec![self.id.path(), lease_path(&self.id, kind)];
        run.reading = Some(host.get(run_route(&self.id, kind), Lane::Work, paths));
    }

    fn check_again(&mut self, host: &mut Host, kind: RunKind) {
        let Some(run) = self.runs.get_mut(&kind) else { return };
        run.retries += 1;
        if run.retries > START_RETRIES {
            self.drop_run(host, kind, "store_unavailable");
            return;
        }
        let wait = host.jitter(Duration::from_millis(100), Duration::from_millis(500));
        host.in_ms(self.timer(AccountTimer::Run(kind)), wait);
    }

    fn on_checked(
        &mut self,
        host: &mut Host,
        kind: RunKind,
        read_time: StoreTime,
        account: Option<&Document>,
        lease: Option<&Document>,
    ) {
        self.account_version = account.map(|doc| doc.version);
        let mut fresh = Record::parse(account);
        fresh.status = std::mem::take(&mut self.record.status);
        // Its write may be on its way.
        fresh.history_syncs = fresh.history_syncs.max(self.record.history_syncs);
        let lease = RunLease::parse(lease);
        let foreign = fresh.held_by_foreign(kind, read_time, lease_term(host, kind))
            && !host.bug(Bug::NodeLeaseIgnored);
        self.leases.insert(kind, lease);
        self.record = fresh;
        let Some(run) = self.runs.get_mut(&kind) else { return };
        let skip = if foreign {
            Some(Skip::HeldByOther)
        } else {
            eligibility::refuses(host, host.store_now(), &self.record.stamps, kind, run.trigger)
        };
        if let Some(reason) = skip {
            host.event(Event::Skipped { account: self.id.clone(), kind, reason });
            self.remove_run(host, kind);
            if kind == RunKind::AutoBackfill && self.unfilled {
                self.fill_soon(host);
            }
            return;
        }
        run.step = Step::Starting;
        self.ledger.push(Purpose::RunStart(kind));
    }

    fn on_started(&mut self, host: &mut Host, kind: RunKind, sent: Mono, commit_time: StoreTime) {
        self.bump_lease(kind);
        let lease = self.leases.entry(kind).or_default();
        lease.epoch += 1;
        let epoch = crate::id::Epoch(lease.epoch);
        if kind == RunKind::AutoBackfill {
            self.record.stamps.last_auto_attempt_at = Some(commit_time);
            self.record.stamps.running = true;
        }
        let surveys = kind == RunKind::AutoBackfill
            || self.needs_survey()
            || self.in_need().nth(MAX_EXTRA_THREADS).is_some();
        let Some(run) = self.runs.get_mut(&kind) else { return };
        run.take_slot(host);
        run.deadline = Some(sent + host.policy.belief(lease_term(host, kind)));
        host.event(Event::LeaseTaken { key: Key::Run(self.id.clone(), kind), epoch });
        host.event(Event::RunStarted { account: self.id.clone(), kind, trigger: run.trigger });
        // If it was aborted while the lease was being taken, its end is on the way.
        if run.step == Step::Starting && surveys {
            run.step = Step::Choosing;
            run.surveys = Some(self.sync.latest_gap());
            let route = run_route(&self.id, kind);
            let limit = match kind {
                RunKind::AutoBackfill => host.policy.auto_backfill.threads,
                RunKind::RecentSync => host.policy.recent_sync.max_threads,
            };
            let query = Query::all(CollectionPath::root("threads"), limit)
                .filter(FieldPath::new("accountId"), Comparison::Equal, self.id.text())
                .order_by(FieldPath::new("lastMessageAt"), Direction::Descending)
                .select([FieldPath::new("lastMessageAt")]);
            run.reading = Some(host.query(route, query));
        } else if run.step == Step::Starting {
            self.on_chosen(host, kind, Vec::new());
        }
        self.watch_lease(host, kind);
    }

    fn on_chosen(&mut self, host: &mut Host, kind: RunKind, mut chosen: Vec<ThreadId>) {
        if kind == RunKind::AutoBackfill {
            // What comes from now on is for another run.
            self.unfilled = false;
        }
        if kind == RunKind::RecentSync {
            let extra = self.in_need().filter(|thread| !chosen.contains(*thread));
            let extra: BTreeSet<ThreadId> = extra.take(MAX_EXTRA_THREADS).cloned().collect();
            chosen.extend(extra);
        }
        let missing: Vec<ThreadId> =
            chosen.iter().filter(|t| !self.coverage.contains_key(*t)).cloned().collect();
        let Some(run) = self.runs.get_mut(&kind) else { return };
        run.threads = chosen.into_iter().map(Work::new).collect();
        if missing.is_empty() {
            self.plan(host, kind);
            return;
        }
        let coverage = self.id.coverage();
        let (missing, paths) = missing
            .into_iter()
            .filter_map(|t| DocPath::new(&coverage, t.as_str()).ok().map(|path| (t, path)))
            .unzip::<_, _, Vec<_>, Vec<_>>();
        run.step = Step::Loading(missing);
        run.reading = Some(host.get(run_route(&self.id, kind), Lane::Work, paths));
    }

    /// Decides what the run does next.
    fn plan(&mut self, host: &mut Host, kind: RunKind) {
        let goal = goal(host, kind);
        let Some(run) = self.runs.get_mut(&kind) else { return };
        if run.error.is_some() {
            self.end_run(host, kind);
            return;
        }
        // Every thread is compared before the phone is asked about the first: however soon the run
        // has used its share, what is open is known then.
        for work in run.threads.iter_mut().filter(|work| !work.looked) {
            let Some(covered) = self.coverage.get_mut(&work.thread) else { continue };
            // News that come from now on are for the next run.
            self.dirty.remove(&work.thread);
            if run.trigger == Trigger::Manual {
                let forgiven = covered.coverage.forgive();
                covered.note(forgiven);
            }
            let behind = covered.coverage.applied_gap() < self.sync.latest_gap()
                || self.sync.thread_gaps.contains_key(&work.thread);
            if behind || !covered.coverage.is_live() {
                run.step = Step::Looking(work.thread.clone());
                // A comparison leaves out the times that the inbox wrote as text, which would come
                // first; ingest clamps what lies further ahead.
                let ahead = host.store_now() + Duration::from_secs(25 * 3_600);
                let query = Query::all(work.thread.messages(), NEWEST_CANDIDATES)
                    .filter(FieldPath::new("tsClient"), Comparison::LessOrEqual, ahead)
                    .order_by(FieldPath::new("tsClient"), Direction::Descending)
                    .select([FieldPath::new("key"), FieldPath::new("tsClient")]);
                run.reading = Some(host.query(run_route(&self.id, kind), query));
                return;
            }
            work.looked = true;
        }
        if run.share_is_used(host) {
            self.end_run(host, kind);
            return;
        }
        let mut fillable = run.threads.iter().filter_map(|work| {
            let coverage = &self.coverage.get(&work.thread)?.coverage;
            Some((&work.thread, coverage, coverage.next_anchor(goal)?))
        });
        let next = match kind {
            RunKind::AutoBackfill => fillable.next(),
            RunKind::RecentSync => fillable.max_by_key(|(_, _, anchor)| anchor.second),
        };
        let Some((thread, coverage, mut anchor)) = next else {
            self.end_run(host, kind);
            return;
        };
        if host.bug(Bug::AnchorAtOldest) {
            anchor = coverage.stretches().first().map_or(anchor, |s| s.low.clone());
        }
        run.step = Step::Waiting { thread: thread.clone(), anchor };
        run.release_slot(host);
        self.pump_phone(host);
    }

    fn on_looked(
        &mut self,
        host: &mut Host,
        kind: RunKind,
        thread: &ThreadId,
        newest: Option<&Mark>,
    ) {
        if let Some(covered) = self.coverage.get_mut(thread) {
            let new = covered.is_new();
            let coverage = &mut covered.coverage;
            let mut changed = false;
            if new && coverage.stretches().is_empty() {
                // Nobody has looked at this thread: nothing is known but its newest message.
                if let Some(newest) = newest {
                    *coverage = Coverage::starting_at(newest, 0);
                    changed = true;
                }
            }
            for gap in self.sync.gaps_of(thread) {
                changed |= coverage.suspect(gap, newest);
            }
            if let Some(newest) = newest {
                changed |= coverage.newer(newest);
            }
            let live = coverage.is_live();
            covered.note(changed);
            if !live {
                // Its tail waits for the next message.
                self.tails.insert(thread.clone());
            }
            self.note_compared(thread);
            let is_lid = || thread.jid(&self.id).is_some_and(is_lid);
            if !live && self.sync.thread_gaps.contains_key(thread) && is_lid() {
                // The message that it waits for may have come under the chat's phone number.
                if let Some(run) = self.runs.get_mut(&kind) {
                    run.step = Step::Following(thread.clone());
                    let route = run_route(&self.id, kind);
                    run.reading = Some(host.get(route, Lane::Work, vec![thread.path()]));
                }
                return;
            }
        }
        self.go_on(host, kind, thread);
    }

    /// A thread that waits for a message is read: if it leads to another, that one lacks what it
    /// lacks.
    fn on_followed(
        &mut self,
        host: &mut Host,
        kind: RunKind,
        thread: &ThreadId,
        doc: Option<&Document>,
    ) {
        let chat = doc.and_then(|doc| redirected(&self.id, &doc.fields));
        if let Some(to) = chat.and_then(|chat| ThreadId::of_chat(&self.id, chat.as_str()).ok()) {
            self.sync.move_thread_gap(thread, to.clone());
            self.ledger.set_sync(self.sync.gap_fields());
            self.ledger.push(Purpose::Patch);
            self.clean.remove(&to);
            self.tails.remove(&to);
            self.dirty.insert(to);
        }
        self.go_on(host, kind, thread);
    }

    /// One more thread was compared: what is known now is written now and then.
    fn go_on(&mut self, host: &mut Host, kind: RunKind, thread: &ThreadId) {
        let Some(run) = self.runs.get_mut(&kind) else { return };
        if let Some(work) = run.threads.iter_mut().find(|work| work.thread == *thread) {
            work.looked = true;
        }
        let unsaved = self.coverage.values().filter(|covered| covered.is_unsaved()).count();
        if unsaved >= COVER_AT_ONCE {
            run.step = Step::Covering;
            self.ledger.push(Purpose::Cover(kind));
        } else {
            self.plan(host, kind);
        }
    }

    fn on_reserved(&mut self, host: &mut Host, kind: RunKind, sent: Mono) {
        if self.phone.state != PhoneState::Reserving(kind) {
            return;
        }
        let connected = self.is_connected();
        let Some(run) = self.runs.get_mut(&kind) else {
            self.phone.not_asked(host);
            return;
        };
        match std::mem::replace(&mut run.step, Step::Covering) {
            Step::Reserving { thread, anchor } if connected => {
                let page = match kind {
                    RunKind::AutoBackfill => host.policy.auto_backfill.page,
                    RunKind::RecentSync => host.policy.recent_sync.page,
                };
                let lease = run.deadline.unwrap_or(host.now);
                let window = sent + host.policy.phone.send_window;
                let not_after = window.min(host.deadline).min(lease);
                run.asked += 1;
                let call = GatewayCall::History {
                    thread: thread.clone(),
                    anchor: anchor.clone(),
                    count: page,
                    run: kind,
                };
                run.step = Step::Asking { thread, anchor };
                let request = host.gateway(&self.id, AccountRoute::Run(kind), call, not_after);
                self.phone.asked(host, kind, request, sent);
                self.pump_phone(host);
            }
            step => {
                run.step = step;
                self.phone.not_asked(host);
                self.pump_phone(host);
            }
        }
    }

    fn fail_run(&mut self, host: &mut Host, kind: RunKind, error: &'static str) {
        let Some(run) = self.runs.get_mut(&kind) else { return };
        if run.step == Step::Ending {
            return;
        }
        run.error.get_or_insert(error);
        match run.step {
            Step::Queued | Step::Checking => self.drop_run(host, kind, error),
            // Nothing of it has left, and nothing is to leave.
            Step::Starting if self.ledger.withdraw(&Purpose::RunStart(kind)) => {
                self.drop_run(host, kind, error);
            }
            // If its lease turns out to be taken, that is given back.
            _ => self.end_run(host, kind),
        }
    }

    fn end_run(&mut self, host: &mut Host, kind: RunKind) {
        let Some(run) = self.runs.get_mut(&kind) else { return };
        run.step = Step::Ending;
        if self.phone.state == PhoneState::Reserving(kind) {
            self.phone.not_asked(host);
        }
        if self.coverage.values().any(Covered::is_unsaved) {
            self.ledger.push(Purpose::Cover(kind));
        }
        self.ledger.push(Purpose::RunEnd(kind));
    }

    /// Ends a run that holds no lease.
    fn drop_run(&mut self, host: &mut Host, kind: RunKind, error: &'static str) {
        let account = self.id.clone();
        let result = RunResult { ok: false, error: Some(error), ..self.result(host, kind) };
        host.event(Event::RunEnded { account, kind, result });
        self.remove_run(host, kind);
    }

    fn on_ended(&mut self, host: &mut Host, kind: RunKind, commit_time: StoreTime) {
        self.bump_lease(kind);
        let Some(run) = self.runs.get(&kind) else { return };
        let done: Vec<(ThreadId, bool)> =
            run.threads.iter().map(|work| (work.thread.clone(), work.looked)).collect();
        let surveys = run.surveys;
        let recent = goal(host, RunKind::RecentSync);
        let result = self.result(host, kind);
        let mut all_known = result.ok;
        for (thread, looked) in done {
            let covered = self.coverage.get(&thread).filter(|covered| looked && covered.is_saved());
            all_known &= covered.is_some();
            // What is not known for ever, or not filled yet, is looked at again, be the thread
            // among the newest then or not.
            self.open_holes.remove(&thread);
            match covered.map(|covered| covered.coverage.next_anchor(recent)) {
                None => {
                    self.clean.remove(&thread);
                    self.dirty.insert(thread);
                }
                Some(Some(_)) => {
                    self.open_holes.insert(thread);
                }
                Some(None) => {}
            }
        }
        match kind {
            RunKind::AutoBackfill => {
                self.record.stamps.running = false;
                if result.ok {
                    self.record.stamps.last_auto_at = Some(commit_time);
                }
                if result.is_complete() {
                    self.record.stamps.last_auto_success_at = Some(commit_time);
                }
            }
            RunKind::RecentSync => {
                host.in_ms(self.timer(AccountTimer::Idle), host.policy.idle_stamp);
                if result.ok && surveys.is_some() {
                    // What it has left is known.
                    self.survey_due = false;
                }
                if let Some(gap) = surveys.filter(|gap| all_known && *gap > self.sync.surveyed) {
                    self.sync.surveyed = gap;
                    self.ledger.set_sync(self.sync.gap_fields());
                    self.ledger.push(Purpose::Patch);
                }
            }
        }
        host.event(Event::LeaseReleased { key: Key::Run(self.id.clone(), kind) });
        host.event(Event::RunEnded { account: self.id.clone(), kind, result });
        self.remove_run(host, kind);
    }

    fn remove_run(&mut self, host: &mut Host, kind: RunKind) {
        if let Some(mut run) = self.runs.remove(&kind) {
            run.release_slot(host);
        }
        host.timers.clear(&self.timer(AccountTimer::Run(kind)));
        if self.runs.is_empty() && self.spool.is_idle() {
            self.coverage.clear();
        }
        self.pump_phone(host);
    }
}

impl Trigger {
    /// As documents name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Manual => "manual",
            Self::Periodic => "periodic",
        }
    }
}

fn run_route(account: &AccountId, kind: RunKind) -> Route {
    Route::Account(account.clone(), AccountRoute::Run(kind))
}

fn goal(host: &Host, kind: RunKind) -> Goal {
    match kind {
        RunKind::AutoBackfill => Goal::Depth(host.policy.auto_backfill.depth),
        RunKind::RecentSync => {
            Goal::Since((host.store_now() - host.policy.recent_sync.lookback).as_secs())
        }
    }
}

/// The message that a document of `threads/{id}/messages` holds, if the phone knows it.
fn newest_mark(doc: &Document) -> Option<Mark> {
    let second = doc.time("tsClient")?.as_secs();
    let id = doc.str("key.id").filter(|id| !id.is_empty())?;
    Some(Mark {
        second,
        id: Some(id.into()),
        from_me: doc.bool("key.fromMe").unwrap_or(false),
        participant: doc.str("key.participant").map(SmolStr::from),
    })
}

fn is_lid(jid: &str) -> bool {
    Jid::parse(jid).is_ok_and(|jid| jid.kind() == JidKind::Lid)
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

const COVER_AT_ONCE: usize = 50;
const MAX_EXTRA_THREADS: usize = 20;
/// Outbound messages that were never sent have no key; this many are passed over.
const NEWEST_CANDIDATES: u32 = 10;
const REQUESTS_PER_RUN: u32 = 32;
const START_RETRIES: u32 = 3;
