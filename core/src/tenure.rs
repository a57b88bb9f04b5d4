//! One account while this process owns it: what is known, what is under way, what comes next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::account::{self, Gaps, Record, SyncState};
use crate::bug::Bug;
use crate::chain::{Progress, Snapshot};
use crate::covered::Covered;
use crate::doc::{Comparison, Cursor, Document, FieldOp, FieldPath, Query, Value, Version, Write};
use crate::eligibility;
use crate::host::{AccountRoute, AccountTimer, Host, Route, Timer};
use crate::id::{AccountId, BootId, Epoch, OutboxId, RequestId, ThreadId};
use crate::io::{
    Answer, CloseReason, Event, GatewayCall, GatewayEvent, HoleChange, Ingested, Lane, RunKind,
    Source, Trigger,
};
use crate::ledger::{Companion, Draft, Ledger, Purpose};
use crate::link::{Link, LinkState};
use crate::outbox::Sending;
use crate::phone::Phone;
use crate::run::{Run, RunLease};
use crate::spool::Spool;
use crate::time::{Mono, StoreTime};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tenure {
    pub(crate) id: AccountId,
    pub(crate) epoch: Epoch,
    pub(crate) since: Mono,
    pub(crate) stage: Stage,
    pub(crate) record: Record,
    pub(crate) link: Link,
    pub(crate) runs: BTreeMap<RunKind, Run>,
    pub(crate) sending: BTreeMap<OutboxId, Sending>,
    pub(crate) ledger: Ledger,
    pub(crate) sync: SyncState,
    pub(crate) phone: Phone,
    pub(crate) spool: Spool,
    /// Coverage documents that are in use
    pub(crate) coverage: BTreeMap<ThreadId, Covered>,
    /// Threads with news that no gap has been compared with yet
    pub(crate) dirty: BTreeSet<ThreadId>,
    /// Threads with a hole at the tail, which waits for the next message
    pub(crate) tails: BTreeSet<ThreadId>,
    /// Threads that every gap was compared with
    pub(crate) clean: BTreeSet<ThreadId>,
    /// Threads in which the last run that looked has left a hole that the phone may fill
    pub(crate) open_holes: BTreeSet<ThreadId>,
    /// The newest threads have to be looked at, whatever is known of them
    pub(crate) survey_due: bool,
    pub(crate) leases: BTreeMap<RunKind, RunLease>,
    pub(crate) account_version: Option<Version>,
    realtime: Realtime,
    again: BTreeSet<Purpose>,
    /// What an earlier tenure of this process could not make durable, until it is loaded
    unsaved: Gaps,
    /// The account's document is there
    exists: bool,
    fence: Version,
    /// Its predecessor did not give the account back
    abnormal: bool,
    /// No connection before this
    not_before: Mono,
    /// History has come, or was lost, that no backfill has looked at
    pub(crate) unfilled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// Its documents are being read
    Loading,
    Ready,
    /// Everything is being closed
    Leaving,
    /// Everything is closed; the account can be given back
    Left,
    /// Somebody else owns it
    Lost,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Realtime {
    stamped: Option<Mono>,
    waiting: bool,
    newest_second: i64,
    failed: bool,
}

impl Tenure {
    /// Begins with a claim that was confirmed just now.
    pub(crate) fn begin(
        host: &mut Host,
        id: AccountId,
        epoch: Epoch,
        fence: Version,
        abnormal: bool,
    ) -> Self {
        let delay = if abnormal && !host.bug(Bug::MarginMissing) {
            host.policy.lock_delay
        } else {
            Duration::ZERO
        };
        let tenure = Self {
            ledger: Ledger::new(&id, None, fence),
            id,
            epoch,
            since: host.now,
            stage: Stage::Loading,
            record: Record::default(),
            link: Link::new(),
            runs: BTreeMap::new(),
            sending: BTreeMap::new(),
            sync: SyncState::default(),
            phone: Phone::default(),
            spool: Spool::default(),
            coverage: BTreeMap::new(),
            dirty: BTreeSet::new(),
            tails: BTreeSet::new(),
            clean: BTreeSet::new(),
            open_holes: BTreeSet::new(),
            survey_due: false,
            leases: BTreeMap::new(),
            account_version: None,
            realtime: Realtime::default(),
            again: BTreeSet::new(),
            unsaved: Gaps::default(),
            exists: true,
            fence,
            abnormal,
            not_before: host.now + delay,
            unfilled: false,
        };
        tenure.load(host);
        tenure
    }

    /// Takes over what an earlier tenure of this process noticed and could not make durable.
    pub(crate) fn remembering(mut self, gaps: Gaps) -> Self {
        self.unsaved = gaps;
        self
    }

    /// What this tenure noticed and may not have made durable.
    pub(crate) fn unsaved_gaps(&self) -> Gaps {
        if self.ledger.carries(&account::GAPS) { self.sync.gaps() } else { self.unsaved.clone() }
    }

    /// Whether the account's document was there when it was read.
    pub(crate) fn exists(&self) -> bool {
        self.exists
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.stage == Stage::Ready
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.is_ready() && self.link.is_open()
    }

    pub(crate) fn fence(&self) -> Version {
        self.fence
    }

    /// Ends everything in order; [`Stage::Left`] follows.
    pub(crate) fn leave(&mut self, host: &mut Host) {
        match self.stage {
            Stage::Loading => self.stage = Stage::Left,
            Stage::Ready => {
                self.stage = Stage::Leaving;
                self.abort_runs(host, "stopped");
                self.hang_up(host);
                self.leave_if_done(host);
            }
            Stage::Leaving | Stage::Left | Stage::Lost => {}
        }
    }

    /// Drops everything at once: nothing may be written about the account any more.
    pub(crate) fn abandon(mut self, host: &mut Host) {
        host.forget(|route| matches!(route, Route::Account(id, _) if *id == self.id));
        for (_, run) in std::mem::take(&mut self.runs) {
            run.drop_slot(host);
        }
        if let LinkState::Connecting(connection) | LinkState::Open(connection) = self.link.state {
            host.close(&self.id, connection);
        }
        for timer in [
            AccountTimer::Again,
            AccountTimer::Connect,
            AccountTimer::ConnectRun,
            AccountTimer::Idle,
            AccountTimer::LedgerRetry,
            AccountTimer::Load,
            AccountTimer::LoadOpen,
            AccountTimer::Phone,
            AccountTimer::Recover,
            AccountTimer::Run(RunKind::AutoBackfill),
            AccountTimer::Run(RunKind::RecentSync),
            AccountTimer::Spool,
            AccountTimer::Stamp,
        ] {
            host.timers.clear(&self.timer(timer));
        }
    }

    pub(crate) fn on_answer(
        &mut self,
        host: &mut Host,
        route: AccountRoute,
        request: RequestId,
        answer: Answer,
    ) {
        match route {
            AccountRoute::Connect => self.on_connect_answer(host, request, &answer),
            AccountRoute::Ledger => self.on_ledger(host, answer),
            AccountRoute::Load => self.on_loaded(host, answer),
            AccountRoute::LoadMarker => self.on_marker(host, answer),
            AccountRoute::LoadOpen => self.on_open(host, answer),
            // Whatever came of it: nothing more can be done about the account here.
            AccountRoute::Logout => self.leave(host),
            AccountRoute::Recover if answer == Answer::Done => {}
            AccountRoute::Recover => {
                host.in_ms(self.timer(AccountTimer::Recover), Duration::from_secs(5));
            }
            AccountRoute::Unawaited => {}
            AccountRoute::Run(kind) => self.on_run_answer(host, kind, request, answer),
            AccountRoute::Send(outbox) => self.on_send_answer(host, &outbox, &answer),
            AccountRoute::Spool(chunk) => self.on_spool_answer(host, chunk, request, answer),
        }
        self.pump(host);
    }

    pub(crate) fn on_timer(&mut self, host: &mut Host, timer: AccountTimer) {
        match timer {
            AccountTimer::Again => {
                for purpose in std::mem::take(&mut self.again) {
                    self.ledger.push(purpose);
                }
            }
            AccountTimer::Connect => self.connect_when_possible(host),
            AccountTimer::ConnectRun => {
                if self.is_connected() || host.bug(Bug::JitterIgnoresDisconnect) {
                    let started = self.start_run(host, RunKind::AutoBackfill, Trigger::Connect);
                    if !started && self.unfilled {
                        self.fill_soon(host);
                    }
                }
            }
            AccountTimer::Idle => self.stamp_idle_sync(host),
            AccountTimer::LedgerRetry => self.ledger.on_retry(host),
            AccountTimer::Load => self.load(host),
            AccountTimer::LoadOpen => self.load_open(host, None),
            AccountTimer::Phone => self.on_phone_timer(host),
            AccountTimer::Recover => self.recover(host),
            AccountTimer::Run(kind) => self.on_run_timer(host, kind),
            AccountTimer::Spool => self.pump_spool(host),
            AccountTimer::Stamp => self.stamp_realtime(host),
        }
        self.pump(host);
    }

    pub(crate) fn on_gateway(&mut self, host: &mut Host, event: GatewayEvent) {
        match event {
            GatewayEvent::Chunk { chunk, spooled } => self.on_chunk(host, chunk, spooled),
            GatewayEvent::ChunkMissing { chunk } => self.on_chunk_missing(host, chunk),
            GatewayEvent::ChunkStored { chunk, counts } => self.on_chunk_stored(chunk, counts),
            GatewayEvent::Closed { connection, reason } => self.on_closed(host, connection, reason),
            GatewayEvent::Drained { connection, announced, stored } => {
                self.on_drained(host, connection, announced, stored);
            }
            GatewayEvent::IngestFailed { connection } => {
                if self.link.state == LinkState::Open(connection) {
                    self.realtime.failed = true;
                    self.ledger.set_account(account::LAST_REALTIME_ERROR, "store_write_failed");
                    self.ledger.push(Purpose::Patch);
                    // Only a new connection makes the server deliver it again.
                    self.hang_up(host);
                }
            }
            GatewayEvent::Opened { connection } => self.on_opened(host, connection),
            GatewayEvent::Page { request, page } => self.on_page(host, request, &page),
            GatewayEvent::Paired { connection } => {
                if self.link.connection() == Some(connection) {
                    // A new registration: the server keeps nothing of the time before.
                    self.sync.suspect |= self.sync.disconnected.is_some();
                    self.ledger.set_sync(self.sync.disconnect_fields());
                    self.set_pairing(None, None);
                }
            }
            GatewayEvent::Pairing { connection, qr, code } => {
                if self.link.connection() == Some(connection) {
                    self.link.reached();
                    self.set_status("qr_ready");
                    self.set_pairing(qr, code);
                }
            }
            GatewayEvent::Undecryptable { thread, second } if self.stage == Stage::Loading => {
                self.unsaved.add(thread, second);
            }
            GatewayEvent::Undecryptable { thread, second } => {
                self.sync.add_thread_gap(thread.clone(), second, second);
                self.ledger.set_sync(self.sync.gap_fields());
                self.ledger.push(Purpose::Patch);
                self.clean.remove(&thread);
                self.tails.remove(&thread);
                self.dirty.insert(thread);
                host.event(Event::Hole { account: self.id.clone(), change: HoleChange::Suspected });
            }
        }
        self.pump(host);
    }

    pub(crate) fn on_ingested(&mut self, host: &mut Host, ingested: &Ingested) {
        for twin in ingested.threads.iter().filter_map(|span| span.twin.as_ref()) {
            if self.sync.thread_gaps.contains_key(twin) {
                // The message that its tail waits for may be this one.
                self.tails.remove(twin);
                self.dirty.insert(twin.clone());
            }
        }
        match ingested.source {
            Source::Chunk { chunk, cursor } => self.on_chunk_progress(chunk, cursor, ingested),
            Source::LatePage => {}
            Source::Realtime => {
                self.realtime.newest_second =
                    self.realtime.newest_second.max(ingested.newest_second);
                self.realtime.waiting = true;
                for span in &ingested.threads {
                    let waited = self.tails.remove(&span.thread);
                    let behind = !self.sync.gaps.is_empty() && !self.clean.contains(&span.thread);
                    let looked_at = self.runs.values().any(|run| run.looks_at(&span.thread));
                    if waited
                        || behind
                        || looked_at
                        || self.sync.thread_gaps.contains_key(&span.thread)
                    {
                        self.dirty.insert(span.thread.clone());
                    }
                }
                match self.realtime.stamped {
                    Some(at) if host.now.since(at) < host.policy.realtime_stamp => {
                        let at = at + host.policy.realtime_stamp;
                        host.timers.set_earliest(self.timer(AccountTimer::Stamp), at);
                    }
                    _ => self.stamp_realtime(host),
                }
            }
        }
        self.pump(host);
    }

    /// Sends what can be sent now.
    pub(crate) fn pump(&mut self, host: &mut Host) {
        if !matches!(self.stage, Stage::Ready | Stage::Leaving) {
            return;
        }
        if self.stage == Stage::Leaving && self.ledger.is_idle() && self.ledger.has_fields() {
            // Nothing else comes that they could ride on.
            self.ledger.push(Purpose::Patch);
        }
        while host.believing() {
            let Some(purpose) = self.ledger.next() else { break };
            if let Some(draft) = self.draft(host, &purpose) {
                self.ledger.commit(host, purpose, draft);
                break;
            }
        }
        self.leave_if_done(host);
    }

    /// An account field changes with the next commit, which is to come soon.
    pub(crate) fn set_status(&mut self, status: &'static str) {
        if self.record.status != status {
            self.record.status = status.into();
            self.ledger.set_account(account::STATUS, status);
            self.ledger.set_account(account::UPDATED_AT, FieldOp::ServerTime);
            self.ledger.push(Purpose::Patch);
        }
    }

    pub(crate) fn timer(&self, timer: AccountTimer) -> Timer {
        Timer::Account(self.id.clone(), timer)
    }

    /// Connects, unless the account is not to be connected.
    pub(crate) fn want_connection(&mut self, host: &mut Host) {
        if self.link.state == LinkState::Off && self.record.wants_connection() {
            self.link.state = LinkState::Waiting { turn: None };
            self.connect_when_possible(host);
        }
    }

    fn load(&self, host: &mut Host) {
        let paths = vec![
            self.id.path(),
            self.id.sync_path(),
            self.id.auto_backfill_path(),
            self.id.recent_sync_path(),
        ];
        host.get(self.route(AccountRoute::Load), Lane::Lease, paths);
    }

    fn on_loaded(&mut self, host: &mut Host, answer: Answer) {
        if self.stage != Stage::Loading {
            return;
        }
        let Answer::Read { docs, .. } = answer else {
            host.in_ms(self.timer(AccountTimer::Load), Duration::from_secs(1));
            return;
        };
        let mut docs = docs.into_iter();
        let mut next = || docs.next().flatten();
        let (account, sync, auto, recent) = (next(), next(), next(), next());
        if account.is_none() {
            self.exists = false;
            self.stage = Stage::Left;
            return;
        }
        self.record = Record::parse(account.as_deref());
        self.account_version = account.map(|doc| doc.version);
        self.sync = SyncState::parse(sync.as_deref());
        self.ledger = Ledger::new(&self.id, sync.as_deref(), self.fence);
        if sync.is_none() && self.record.is_paired() {
            // Linked by somebody who leaves no record: since when it was away nobody knows.
            let longest = OFFLINE_QUEUE - Duration::from_secs(3_600);
            self.sync.note_disconnect(host.store_now() - longest, self.record.last_message);
            self.ledger.set_sync(self.sync.disconnect_fields());
        }
        if self.sync.remember(std::mem::take(&mut self.unsaved)) {
            self.ledger.set_sync(self.sync.gap_fields());
        }
        self.leases.insert(RunKind::AutoBackfill, RunLease::parse(auto.as_deref()));
        self.leases.insert(RunKind::RecentSync, RunLease::parse(recent.as_deref()));
        if !host.bug(Bug::SuccessorIgnoresReservation) {
            self.phone.adopt(host, self.sync.asked, self.abnormal);
        }

        match self.sync.connected.as_deref().map(BootId::parse) {
            Some(Ok(boot)) => {
                host.get(self.route(AccountRoute::LoadMarker), Lane::Lease, vec![boot.path()]);
            }
            Some(Err(_)) => {
                self.note_crash(host, None);
                self.ready(host);
            }
            None => self.ready(host),
        }
    }

    /// The predecessor's session says until when it was certainly alive.
    fn on_marker(&mut self, host: &mut Host, answer: Answer) {
        if self.stage != Stage::Loading {
            return;
        }
        let Answer::Read { docs, .. } = answer else {
            host.in_ms(self.timer(AccountTimer::Load), Duration::from_secs(1));
            return;
        };
        let doc = docs.into_iter().next().flatten();
        let last_beat = doc.map(|doc| doc.time("lastBeatAt").unwrap_or(doc.update_time));
        self.note_crash(host, last_beat);
        self.ready(host);
    }

    fn note_crash(&mut self, host: &mut Host, last_beat: Option<StoreTime>) {
        let now = host.store_now();
        let from = last_beat.or(self.sync.connected_since).unwrap_or(now);
        // It died before its own drain was complete: what that showed is not known.
        self.sync.suspect |= self.sync.disconnected.is_some();
        self.sync.note_disconnect(from, self.record.last_message);
        self.sync.connected = None;
        self.ledger.set_sync(self.sync.disconnect_fields());
        self.ledger.set_sync([(account::CONNECTED_BOOT, Value::Null.into())]);
    }

    fn ready(&mut self, host: &mut Host) {
        self.stage = Stage::Ready;
        // News that its predecessor had no time to note lie among the newest.
        self.survey_due = true;
        self.load_open(host, None);
        self.recover(host);
        if host.policy.recent_sync.enabled {
            host.in_ms(self.timer(AccountTimer::Idle), host.policy.recent_sync.interval);
        }
        self.want_connection(host);
    }

    /// Asks for what lies in the spool, and what got lost on the way there.
    fn recover(&self, host: &mut Host) {
        host.gateway(&self.id, AccountRoute::Recover, GatewayCall::Recover, host.deadline);
    }

    fn load_open(&self, host: &mut Host, after: Option<Cursor>) {
        let open = Query { after, ..Query::all(self.id.coverage(), OPEN_PER_PAGE) }
            .filter(FieldPath::new("open"), Comparison::Equal, true)
            .select([FieldPath::new("open")]);
        host.query(self.route(AccountRoute::LoadOpen), open);
    }

    /// Threads that an earlier owner left with something to do are looked at like those with news.
    fn on_open(&mut self, host: &mut Host, answer: Answer) {
        let Answer::Found { docs, .. } = answer else {
            host.in_ms(self.timer(AccountTimer::LoadOpen), Duration::from_secs(5));
            return;
        };
        let last = docs.last().filter(|_| docs.len() >= OPEN_PER_PAGE as usize);
        if let Some(last) = last {
            self.load_open(host, Some(Cursor { keys: Vec::new(), id: last.path.id().into() }));
        }
        let threads = docs.iter().filter_map(|doc| ThreadId::parse(doc.path.id()).ok());
        self.dirty.extend(threads.filter(|thread| !self.clean.contains(thread)));
    }

    fn connect_when_possible(&mut self, host: &mut Host) {
        let LinkState::Waiting { turn } = self.link.state else { return };
        if !self.is_ready() || !host.believing() {
            return;
        }
        if host.is_closing(&self.id) {
            // When that one is closed, it goes on.
            return;
        }
        if self.not_before > host.now {
            host.timers.set(self.timer(AccountTimer::Connect), self.not_before);
            return;
        }
        // Each has a turn of its own, so that it is woken once, however many wait.
        let turn = turn.unwrap_or_else(|| host.turn_to_connect());
        if turn > host.now {
            self.link.state = LinkState::Waiting { turn: Some(turn) };
            host.timers.set(self.timer(AccountTimer::Connect), turn);
            return;
        }
        self.link.state = LinkState::Marking;
        if host.bug(Bug::MarkerMissing) {
            self.connect(host);
            return;
        }
        self.ledger.push(Purpose::Connect);
    }

    fn connect(&mut self, host: &mut Host) {
        if self.link.state != LinkState::Marking {
            return;
        }
        let not_after = host.deadline;
        let id = host.gateway(&self.id, AccountRoute::Connect, GatewayCall::Connect, not_after);
        self.link.state = LinkState::Connecting(id);
        host.event(Event::Connection { account: self.id.clone(), state: "connecting" });
    }

    fn on_connect_answer(&mut self, host: &mut Host, request: RequestId, answer: &Answer) {
        if self.link.state != LinkState::Connecting(request) {
            return;
        }
        match answer {
            Answer::Rejected(_) => self.closed(host, CloseReason::Lost),
            // It may be open or opening: only a close says for certain that it is not.
            Answer::Unknown => self.hang_up(host),
            _ => {}
        }
    }

    fn on_opened(&mut self, host: &mut Host, connection: RequestId) {
        if self.link.state != LinkState::Connecting(connection) {
            return;
        }
        self.link.opened(host, connection);
        self.set_status("connected");
        self.set_pairing(None, None);
        self.ledger.set_account(account::LAST_ERROR, Value::Null);
        host.event(Event::Connection { account: self.id.clone(), state: "open" });
        if host.policy.auto_backfill.enabled {
            let wait = connect_jitter(host);
            host.in_ms(self.timer(AccountTimer::ConnectRun), wait);
        }
        self.pump_phone(host);
    }

    /// After a device was linked its history comes when the phone sends it, often after the run
    /// that follows the connect; that run's success must not keep what came later waiting for the
    /// cooldown.
    pub(crate) fn fill_soon(&mut self, host: &mut Host) {
        if host.policy.auto_backfill.enabled && self.is_connected() {
            let wait =
                connect_jitter(host).max(eligibility::backoff_left(host, &self.record.stamps));
            host.in_ms(self.timer(AccountTimer::ConnectRun), wait);
        }
    }

    fn on_drained(&mut self, host: &mut Host, connection: RequestId, announced: u32, stored: u32) {
        if self.link.connection() != Some(connection) {
            return;
        }
        let Some(since) = self.sync.disconnected else { return };
        let now = host.store_now();
        let complete = stored >= announced || host.bug(Bug::DrainTrusted);
        // What somebody else received in the meantime is not delivered again.
        let foreign = host.foreign_at.is_some_and(|at| at >= since) && !host.bug(Bug::NodeTrusted);
        let suspect = self.sync.suspect || foreign;
        if !complete || suspect || now.since(since) > OFFLINE_QUEUE {
            // WhatsApp's clock may be another than the store's.
            let from = since.as_secs().saturating_sub(CLOCK_SLACK);
            let from = self.sync.last_before.map_or(from, |last| from.min(last));
            let to = now.as_secs().saturating_add(CLOCK_SLACK);
            let newest = self.realtime.newest_second.min(to.saturating_add(BELIEVABLE));
            self.suspect(host, from, to.max(newest));
        }
        self.sync.disconnected = None;
        self.sync.last_before = None;
        self.sync.suspect = false;
        self.ledger.set_sync(self.sync.disconnect_fields());
        self.ledger.push(Purpose::Patch);
    }

    /// Messages may be missing in every thread between these seconds.
    fn suspect(&mut self, host: &mut Host, from: i64, to: i64) {
        self.sync.add_gap(from, to);
        self.clean.clear();
        self.ledger.set_sync(self.sync.gap_fields());
        host.event(Event::Hole { account: self.id.clone(), change: HoleChange::Suspected });
    }

    /// A lost history chunk may have held anything from before the present connection.
    pub(crate) fn suspect_history(&mut self, host: &mut Host) {
        let opened = host.store_now() - self.link.open_for(host.now);
        self.suspect(host, FIRST_SECOND, opened.as_secs().saturating_add(CLOCK_SLACK));
    }

    fn on_closed(&mut self, host: &mut Host, connection: RequestId, reason: CloseReason) {
        if self.link.connection() == Some(connection) {
            self.closed(host, reason);
        } else if !host.timers.is_set(&self.timer(AccountTimer::Connect)) {
            // One of an earlier tenure, which the next one waits for.
            self.connect_when_possible(host);
        }
    }

    fn closed(&mut self, host: &mut Host, reason: CloseReason) {
        let asked = matches!(self.link.state, LinkState::Closing(_));
        let was_open = self.link.is_open() || asked;
        host.event(Event::Connection { account: self.id.clone(), state: "closed" });
        if was_open && self.sync.disconnected.is_none() {
            let newest = Some(self.realtime.newest_second).filter(|second| *second > 0);
            self.sync.note_disconnect(host.store_now(), newest.or(self.record.last_message));
        }
        self.sync.suspect |= was_open && reason == CloseReason::Replaced;
        self.sync.connected = None;
        self.ledger.set_sync(self.sync.disconnect_fields());
        self.ledger.set_sync([(account::CONNECTED_BOOT, Value::Null.into())]);
        self.ledger.set_account(account::LAST_DISCONNECTED_AT, FieldOp::ServerTime);
        self.ledger.set_account(account::LAST_DISCONNECT_REASON, reason.as_str());
        self.ledger.push(Purpose::Patch);
        self.abort_runs(host, "disconnected");
        self.phone.disconnected();

        let (wait, contested) = self.link.lost(host, reason);
        if contested {
            host.incident(Some(&self.id), "connection_contested");
        }
        if !self.record.wants_connection() {
            self.link.state = LinkState::Off;
            return;
        }
        match reason {
            CloseReason::LoggedOut => {
                self.link.state = LinkState::Off;
                self.set_status("logged_out");
                host.incident(Some(&self.id), "logged_out");
            }
            CloseReason::PairingExpired => {
                self.link.state = LinkState::Off;
                self.set_status("needs_qr");
                self.set_pairing(None, None);
            }
            CloseReason::Asked | CloseReason::Lost | CloseReason::Replaced => {
                // One that was never linked has no credentials that would have to be looked for.
                let linked = was_open || self.record.is_paired();
                self.set_status(if linked { "disconnected" } else { "connecting" });
                host.in_ms(self.timer(AccountTimer::Connect), wait);
            }
        }
        self.leave_if_done(host);
    }

    /// Closes the connection, if there is one; its end is reported.
    pub(crate) fn hang_up(&mut self, host: &mut Host) {
        match self.link.state {
            LinkState::Connecting(id) | LinkState::Open(id) => {
                self.link.state = LinkState::Closing(id);
                host.close(&self.id, id);
            }
            LinkState::Marking | LinkState::Waiting { .. } => {
                self.ledger.withdraw(&Purpose::Connect);
                self.link.state = LinkState::Off;
            }
            LinkState::Closing(_) | LinkState::Off => {}
        }
    }

    fn leave_if_done(&mut self, host: &Host) {
        if self.stage != Stage::Leaving {
            return;
        }
        let closed = self.link.connection().is_none() || host.bug(Bug::ReleaseBeforeClose);
        let durable = self.ledger.is_idle() && !self.ledger.has_fields();
        if closed && self.runs.is_empty() && durable && !self.spool.is_arriving() {
            self.stage = Stage::Left;
        }
    }

    fn stamp_realtime(&mut self, host: &mut Host) {
        if !std::mem::take(&mut self.realtime.waiting) {
            return;
        }
        self.realtime.stamped = Some(host.now);
        let message_at = StoreTime::from_secs(self.realtime.newest_second);
        self.ledger.set_account(account::LAST_REALTIME_INGEST_AT, FieldOp::ServerTime);
        self.ledger.set_account(account::LAST_REALTIME_MESSAGE_AT, message_at);
        if std::mem::take(&mut self.realtime.failed) {
            self.ledger.set_account(account::LAST_REALTIME_ERROR, FieldOp::Remove);
        }
        self.ledger.push(Purpose::Patch);
    }

    fn set_pairing(&mut self, qr: Option<smol_str::SmolStr>, code: Option<smol_str::SmolStr>) {
        self.ledger.set_account(account::QR_CODE, Value::from(qr));
        self.ledger.set_account(account::PAIRING_CODE, Value::from(code));
        self.ledger.push(Purpose::Patch);
    }

    /// What a purpose needs of its commit; `None` if there is no point in it any more.
    fn draft(&mut self, host: &Host, purpose: &Purpose) -> Option<Draft> {
        let mut draft = Draft::default();
        match purpose {
            Purpose::Chunk(_) | Purpose::Cover(_) => draft.writes = self.coverage_writes(),
            Purpose::Connect => draft.sync.extend([
                (account::CONNECTED_BOOT, Value::from(host.boot.text()).into()),
                (account::CONNECTED_SINCE, FieldOp::ServerTime),
            ]),
            Purpose::OutboxClaim(id) | Purpose::OutboxEnd(id) => {
                draft.writes = self.outbox_writes(host, id, purpose)?;
            }
            Purpose::Patch if !self.ledger.has_fields() => return None,
            Purpose::Patch => {}
            Purpose::Reserve(kind) => self.draft_reservation(*kind, &mut draft)?,
            Purpose::RunBeat(kind) | Purpose::RunEnd(kind) | Purpose::RunStart(kind) => {
                self.draft_run(host, *kind, purpose, &mut draft)?;
            }
        }
        Some(draft)
    }

    fn on_ledger(&mut self, host: &mut Host, answer: Answer) {
        let Some((purpose, companions, progress)) = self.ledger.on_answer(host, answer) else {
            return;
        };
        match progress {
            Progress::Applied { sent, commit_time, versions } => {
                host.observe(commit_time);
                self.note_versions(&companions, &versions);
                self.on_applied(host, purpose, sent, commit_time);
            }
            Progress::Gone => self.stage = Stage::Lost,
            Progress::Pending => {}
            Progress::Refused(snapshot) => {
                self.note_docs(&companions, snapshot.as_ref());
                self.on_refused(host, purpose, snapshot.is_some());
            }
        }
    }

    fn on_applied(
        &mut self,
        host: &mut Host,
        purpose: Purpose,
        sent: Mono,
        commit_time: StoreTime,
    ) {
        match purpose {
            Purpose::Chunk(chunk) => self.on_chunk_covered(host, chunk),
            Purpose::Connect => {
                self.sync.connected = Some(host.boot.text());
                self.connect(host);
            }
            Purpose::OutboxClaim(id) => self.on_outbox_claimed(host, &id),
            Purpose::OutboxEnd(id) => {
                self.sending.remove(&id);
            }
            Purpose::Patch => {}
            Purpose::Cover(_)
            | Purpose::Reserve(_)
            | Purpose::RunBeat(_)
            | Purpose::RunEnd(_)
            | Purpose::RunStart(_) => self.on_run_applied(host, &purpose, sent, commit_time),
        }
    }

    fn on_refused(&mut self, host: &mut Host, purpose: Purpose, conflict: bool) {
        match purpose {
            Purpose::Connect => {
                if self.link.state == LinkState::Marking {
                    self.link.state = LinkState::Waiting { turn: None };
                    let wait = host.about(Duration::from_secs(2));
                    host.in_ms(self.timer(AccountTimer::Connect), wait);
                }
            }
            Purpose::OutboxClaim(id) => {
                // Somebody changed it: the next poll sees how it is now.
                self.sending.remove(&id);
            }
            Purpose::Chunk(_) | Purpose::OutboxEnd(_) | Purpose::Patch => self.again(host, purpose),
            Purpose::Cover(_)
            | Purpose::Reserve(_)
            | Purpose::RunBeat(_)
            | Purpose::RunEnd(_)
            | Purpose::RunStart(_) => self.on_run_refused(host, &purpose, conflict),
        }
    }

    /// Commits once more, a little later.
    pub(crate) fn again(&mut self, host: &mut Host, purpose: Purpose) {
        self.again.insert(purpose);
        let wait = host.about(Duration::from_secs(2));
        host.timers.set_earliest(self.timer(AccountTimer::Again), host.now + wait);
    }

    fn note_versions(&mut self, companions: &[Companion], versions: &[Option<Version>]) {
        for (companion, version) in companions.iter().zip(versions) {
            match companion {
                Companion::Account => self.account_version = *version,
                Companion::Alias => {}
                Companion::Coverage(thread) => {
                    if let Some(covered) = self.coverage.get_mut(thread) {
                        covered.written(*version);
                    }
                    self.note_compared(thread);
                }
                Companion::Outbox(id) => {
                    if let Some(sending) = self.sending.get_mut(id) {
                        sending.version = *version;
                    }
                }
                Companion::RunLease(kind) => {
                    if let Some(lease) = self.leases.get_mut(kind) {
                        lease.version = *version;
                    }
                }
            }
        }
    }

    /// A thread whose durable coverage has seen every gap need not be compared again.
    pub(crate) fn note_compared(&mut self, thread: &ThreadId) {
        let latest = self.sync.gaps_of(thread).last().map_or(0, |gap| gap.seq);
        let compared = self.coverage.get(thread).is_some_and(|covered| {
            let coverage = &covered.coverage;
            covered.is_saved() && coverage.is_live() && coverage.applied_gap() >= latest
        });
        if compared {
            self.clean.insert(thread.clone());
            self.dirty.remove(thread);
            self.tails.remove(thread);
            if self.sync.thread_gaps.remove(thread).is_some() {
                self.ledger.set_sync(self.sync.gap_fields());
                self.ledger.push(Purpose::Patch);
            }
        }
    }

    fn note_docs(&mut self, companions: &[Companion], snapshot: Option<&Snapshot>) {
        let none = Vec::new();
        let docs: &Vec<Option<Arc<Document>>> = snapshot.map_or(&none, |s| &s.docs);
        for (i, companion) in companions.iter().enumerate() {
            let doc = docs.get(i).map(Option::as_deref);
            match companion {
                Companion::Coverage(thread) => {
                    // What was not written is still to be written, unless somebody else did.
                    let Some(covered) = self.coverage.get_mut(thread) else { continue };
                    if !covered.refused(doc) {
                        self.coverage.remove(thread);
                    }
                }
                Companion::RunLease(kind) => {
                    if let Some(doc) = doc {
                        self.leases.insert(*kind, RunLease::parse(doc));
                    }
                }
                Companion::Account => {
                    if let Some(doc) = doc {
                        self.account_version = doc.map(|d| d.version);
                    }
                }
                Companion::Outbox(id) => {
                    let Some(doc) = doc else { continue };
                    match doc {
                        Some(doc) if doc.str("status") == Some("processing") => {
                            if let Some(sending) = self.sending.get_mut(id) {
                                sending.version = Some(doc.version);
                            }
                        }
                        // Somebody else has the say over it now.
                        _ => {
                            self.sending.remove(id);
                        }
                    }
                }
                Companion::Alias => {}
            }
        }
    }

    fn coverage_writes(&mut self) -> Vec<(Companion, Write)> {
        let account = &self.id;
        self.coverage
            .iter_mut()
            .filter(|(_, covered)| covered.is_unsaved())
            .take(MAX_COVERAGE_WRITES)
            .filter_map(|(thread, covered)| {
                Some((Companion::Coverage(thread.clone()), covered.write(account, thread)?))
            })
            .collect()
    }

    fn route(&self, route: AccountRoute) -> Route {
        Route::Account(self.id.clone(), route)
    }
}

fn connect_jitter(host: &mut Host) -> Duration {
    let auto = &host.policy.auto_backfill;
    let (min, max) = (auto.connect_jitter_min, auto.connect_jitter_max);
    host.jitter(min, max)
}

/// The server keeps messages for a device that is away for this long.
const OFFLINE_QUEUE: Duration = Duration::from_secs(14 * 24 * 3_600);
/// A message is not believed to be from further ahead than this, in seconds.
const BELIEVABLE: i64 = 24 * 3_600;
/// No message is older.
const FIRST_SECOND: i64 = 1;
/// How far WhatsApp's clock and the store's may be apart, in seconds.
const CLOCK_SLACK: i64 = 120;
/// A commit holds at most this many coverage documents.
const MAX_COVERAGE_WRITES: usize = 100;
/// So many threads that an earlier owner left open are read at once.
const OPEN_PER_PAGE: u32 = 200;
