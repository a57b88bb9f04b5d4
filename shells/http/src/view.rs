//! What this process has read and written, kept in memory: `/diag` and the console's live parts
//! show it without asking the store.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backfill_core::doc::{Document, FieldOp, FieldPath, Fields, Value, Write, WriteOp};
use backfill_core::id::{AccountId, OutboxId, RequestId};
use backfill_core::instance::Instance;
use backfill_core::io::{
    Answer, ChunkId, Event, GatewayCall, GatewayEvent, HoleChange, Ingested, Input, Key, Mode,
    Output, PassiveReason, RunKind, RunResult, Skip, Source, StoreCall, Trigger,
};
use backfill_core::time::{Mono, StoreTime};
use backfill_driver::Observer;
use smol_str::SmolStr;
use tokio::sync::broadcast;

use crate::metrics::Metrics;

/// What is known of accounts and runs. Clones show the same.
#[derive(Clone)]
pub struct View(Arc<Shared>);

struct Shared {
    known: Mutex<Known>,
    outbox: broadcast::Sender<(OutboxId, SmolStr)>,
}

#[derive(Default)]
struct Known {
    accounts: BTreeMap<AccountId, KnownAccount>,
    runs: BTreeMap<AccountId, VecDeque<PastRun>>,
}

/// An account's document as it was last read or written.
#[derive(Clone, Debug, Default)]
struct KnownAccount {
    fields: Fields,
    as_of: StoreTime,
}

/// A run that ended.
#[derive(Clone, Debug)]
pub struct PastRun {
    /// Which kind
    pub kind: RunKind,
    /// Why it was started, if that was seen
    pub trigger: Option<Trigger>,
    /// When it ended, by the store's clock
    pub ended: StoreTime,
    /// How
    pub result: RunResult,
}

impl Default for View {
    fn default() -> Self {
        let (outbox, _) = broadcast::channel(256);
        Self(Arc::new(Shared { known: Mutex::default(), outbox }))
    }
}

impl View {
    /// What is known of an account's document.
    pub fn account(&self, id: &AccountId) -> Option<Fields> {
        self.lock().accounts.get(id).map(|known| known.fields.clone())
    }

    /// The documents of all known accounts.
    pub fn accounts(&self) -> Vec<(AccountId, Fields)> {
        let known = self.lock();
        known.accounts.iter().map(|(id, known)| (id.clone(), known.fields.clone())).collect()
    }

    /// The latest runs of an account that ended here, the newest first.
    pub fn runs(&self, id: &AccountId) -> Vec<PastRun> {
        self.lock().runs.get(id).map(|runs| runs.iter().cloned().collect()).unwrap_or_default()
    }

    /// Takes in documents that were read.
    pub fn learn<'a>(&self, docs: impl IntoIterator<Item = &'a Document>, read_time: StoreTime) {
        let mut known = self.lock();
        for doc in docs {
            known.learn(doc, read_time);
        }
    }

    /// Tells of every outbox document whose status this process changes from now on.
    pub(crate) fn outbox(&self) -> broadcast::Receiver<(OutboxId, SmolStr)> {
        self.0.outbox.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn learn(&mut self, doc: &Document, read_time: StoreTime) {
        let Some(id) = account_of(doc.path.as_str()) else { return };
        let known = self.accounts.entry(id).or_default();
        // A look that began before the latest write shows it as it was.
        if known.as_of <= read_time {
            known.fields.extend(doc.fields.clone());
            known.as_of = read_time;
        }
    }

    fn wrote(&mut self, write: &Write, at: StoreTime) {
        let WriteOp::Merge(changes) = &write.op else { return };
        let Some(id) = account_of(write.path.as_str()) else { return };
        let known = self.accounts.entry(id).or_default();
        for (path, op) in changes {
            apply(&mut known.fields, path, op, at);
        }
        known.as_of = known.as_of.max(at);
    }
}

/// Sees everything the instance does: keeps the [`View`] and counts.
pub struct Witness {
    view: View,
    metrics: Arc<Metrics>,
    pending: BTreeMap<RequestId, Vec<Write>>,
    triggers: BTreeMap<(AccountId, RunKind), Trigger>,
    connections: BTreeMap<AccountId, &'static str>,
    open_holes: BTreeSet<SmolStr>,
    spooled: BTreeSet<(AccountId, ChunkId)>,
    unspooling: BTreeMap<RequestId, (AccountId, ChunkId)>,
}

impl Witness {
    /// Keeps `view` and counts in `metrics`.
    pub fn new(view: View, metrics: Arc<Metrics>) -> Self {
        Self {
            view,
            metrics,
            pending: BTreeMap::new(),
            triggers: BTreeMap::new(),
            connections: BTreeMap::new(),
            open_holes: BTreeSet::new(),
            spooled: BTreeSet::new(),
            unspooling: BTreeMap::new(),
        }
    }

    fn committed(&mut self, request: RequestId, at: StoreTime) {
        let Some(writes) = self.pending.remove(&request) else { return };
        let mut known = self.view.lock();
        for write in &writes {
            known.wrote(write, at);
            let WriteOp::Merge(changes) = &write.op else { continue };
            let set = |name: &str| {
                changes.iter().find(|(path, _)| path.as_str() == name).and_then(
                    |(_, op)| match op {
                        FieldOp::Set(value) => Some(value),
                        FieldOp::Remove | FieldOp::ServerTime => None,
                    },
                )
            };
            if let Some(id) = write.path.as_str().strip_prefix("outbox/")
                && let Ok(id) = OutboxId::parse(id)
                && let Some(status) = set("status").and_then(Value::as_str)
            {
                // Nobody may be waiting for it.
                let _ = self.view.0.outbox.send((id, status.into()));
            }
            if write.path.collection().name() == "coverage" {
                match set("open").and_then(Value::as_bool) {
                    Some(true) => self.open_holes.insert(write.path.as_str().into()),
                    Some(false) => self.open_holes.remove(write.path.as_str()),
                    None => false,
                };
            }
        }
        drop(known);
        self.metrics.set("wa_holes_open", &[], count(self.open_holes.len()));
    }

    fn note_spool(&self) {
        self.metrics.set("wa_spool_chunks", &[], count(self.spooled.len()));
    }

    fn note_connection(&mut self, account: &AccountId, state: &'static str) {
        if state == "closed" {
            self.connections.remove(account);
        } else {
            self.connections.insert(account.clone(), state);
        }
        for state in ["connecting", "open"] {
            let n = self.connections.values().filter(|s| **s == state).count();
            self.metrics.set("wa_connections", &[("state", state)], count(n));
        }
    }

    fn note_ingested(&self, ingested: &Ingested) {
        let source = match ingested.source {
            Source::Chunk { .. } => "history_sync",
            Source::LatePage => "late_page",
            Source::Realtime => "realtime",
        };
        self.metrics.add("wa_messages_total", &[("source", source)], ingested.messages.into());
    }

    fn on_event(&mut self, instance: &Instance, event: &Event) {
        let metrics = Arc::clone(&self.metrics);
        let add = |name, labels: &[_]| metrics.add(name, labels, 1);
        match event {
            Event::Connection { account, state } => self.note_connection(account, state),
            Event::DeadMarked { .. } => add("wa_sessions_marked_dead_total", &[]),
            Event::Fenced { key } => add("wa_fenced_total", &[("key", key_name(key))]),
            Event::Hole { change, .. } => {
                let change = match change {
                    HoleChange::Exhausted => "exhausted",
                    HoleChange::Filled => "filled",
                    HoleChange::Suspected => "suspected",
                };
                add("wa_holes_total", &[("change", change)]);
            }
            Event::Incident { kind, .. } => add("wa_incidents_total", &[("kind", kind)]),
            Event::LeaseLost { key } => {
                add("wa_leases_lost_total", &[("key", key_name(key))]);
                self.forget_tenure(key);
            }
            Event::LeaseReleased { key } => {
                add("wa_leases_released_total", &[("key", key_name(key))]);
                self.forget_tenure(key);
            }
            Event::LeaseTaken { key, .. } => {
                add("wa_leases_taken_total", &[("key", key_name(key))]);
            }
            Event::Mode { mode } => self.note_mode(*mode),
            Event::RunEnded { account, kind, result } => {
                let outcome = if result.ok { "ok" } else { result.error.unwrap_or("error") };
                let kind_name = run_name(*kind);
                add("wa_runs_ended_total", &[("kind", kind_name), ("outcome", outcome)]);
                self.metrics.time("wa_run_seconds", &[("kind", kind_name)], result.duration);
                let source =
                    ("source", if *kind == RunKind::RecentSync { kind_name } else { "backfill" });
                self.metrics.add("wa_messages_total", &[source], result.messages.into());
                let trigger = self.triggers.remove(&(account.clone(), *kind));
                let ended = instance.store_now();
                let run = PastRun { kind: *kind, trigger, ended, result: result.clone() };
                let mut known = self.view.lock();
                let runs = known.runs.entry(account.clone()).or_default();
                runs.push_front(run);
                runs.truncate(KEPT_RUNS);
            }
            Event::RunStarted { account, kind, trigger } => {
                let trigger_name = trigger_name(*trigger);
                add("wa_runs_total", &[("kind", run_name(*kind)), ("trigger", trigger_name)]);
                self.triggers.insert((account.clone(), *kind), *trigger);
            }
            Event::SessionStarted { .. } => self.note_mode(instance.mode()),
            Event::SessionEnded { .. } => {
                self.spooled.clear();
                self.note_spool();
            }
            Event::Skipped { kind, reason, .. } => {
                let labels = [("kind", run_name(*kind)), ("reason", skip_name(*reason))];
                add("wa_run_skips_total", &labels);
            }
            Event::Tick { kind, skipped, .. } => {
                add("wa_ticks_total", &[("kind", run_name(*kind))]);
                for (reason, n) in skipped {
                    let labels = [("kind", run_name(*kind)), ("reason", skip_name(*reason))];
                    metrics.add("wa_run_skips_total", &labels, u64::from(*n));
                }
            }
            Event::UnknownOutcome { key } => {
                let key = key.as_ref().map_or("other", key_name);
                add("wa_unknown_outcomes_total", &[("key", key)]);
            }
        }
    }

    fn note_mode(&self, mode: Mode) {
        for name in ["active", "passive", "stepping_down"] {
            let on = if name == mode_name(mode) { 1.0 } else { 0.0 };
            self.metrics.set("wa_mode", &[("mode", name)], on);
        }
    }

    fn forget_tenure(&mut self, key: &Key) {
        let Key::Account(id) = key else { return };
        self.spooled.retain(|(account, _)| account != id);
        self.note_spool();
        let path = smol_str::format_smolstr!("{}/", id.path());
        self.open_holes.retain(|coverage| !coverage.starts_with(path.as_str()));
        self.metrics.set("wa_holes_open", &[], count(self.open_holes.len()));
        self.note_connection(id, "closed");
    }
}

impl Observer for Witness {
    fn input(&mut self, _now: Mono, input: &Input) {
        match input {
            Input::Answer(request, answer) => {
                match answer {
                    Answer::Committed { commit_time, .. } => self.committed(*request, *commit_time),
                    Answer::Read { read_time, docs } => {
                        self.view.learn(docs.iter().flatten().map(|doc| &**doc), *read_time);
                    }
                    Answer::Found { read_time, docs } => {
                        self.view.learn(docs.iter().map(|doc| &**doc), *read_time);
                    }
                    Answer::Done => {
                        if let Some(chunk) = self.unspooling.remove(request) {
                            self.spooled.remove(&chunk);
                            self.note_spool();
                        }
                    }
                    Answer::Conflict | Answer::Rejected(_) | Answer::Unknown => {}
                }
                self.pending.remove(request);
                self.unspooling.remove(request);
            }
            Input::Gateway(account, GatewayEvent::Chunk { chunk, .. }) => {
                self.spooled.insert((account.clone(), *chunk));
                self.note_spool();
            }
            Input::Ingested(_, ingested) => self.note_ingested(ingested),
            _ => {}
        }
    }

    fn settled(&mut self, _now: Mono, instance: &Instance, outputs: &[Output]) {
        for output in outputs {
            match output {
                Output::Event(event) => self.on_event(instance, event),
                Output::Gateway(request) => {
                    if let GatewayCall::Unspool { chunk } = request.call {
                        self.unspooling.insert(request.id, (request.account.clone(), chunk));
                    }
                }
                Output::Store(request) => {
                    let StoreCall::Commit(writes) = &request.call else { continue };
                    let shown = |write: &&Write| {
                        let path = write.path.as_str();
                        account_of(path).is_some()
                            || path.starts_with("outbox/")
                            || write.path.collection().name() == "coverage"
                    };
                    let kept: Vec<Write> = writes.iter().filter(shown).cloned().collect();
                    if !kept.is_empty() {
                        self.pending.insert(request.id, kept);
                    }
                }
                Output::Reply(..) | Output::Stopped => {}
            }
        }
    }
}

/// What a run is called in documents, logs and metrics.
pub const fn run_name(kind: RunKind) -> &'static str {
    match kind {
        RunKind::AutoBackfill => "auto_backfill",
        RunKind::RecentSync => "recent_sync",
    }
}

/// Why a run was started, as documents say it.
pub const fn trigger_name(trigger: Trigger) -> &'static str {
    match trigger {
        Trigger::Connect => "connect",
        Trigger::Manual => "manual",
        Trigger::Periodic => "periodic",
    }
}

/// Why an account was passed over.
pub const fn skip_name(skip: Skip) -> &'static str {
    match skip {
        Skip::Backoff => "backoff",
        Skip::Cooldown => "cooldown",
        Skip::HeldByOther => "held_by_other",
        Skip::Idle => "idle",
        Skip::TickCap => "tick_cap",
        Skip::Running => "running",
    }
}

/// What a lease is about.
pub const fn key_name(key: &Key) -> &'static str {
    match key {
        Key::Account(_) => "account",
        Key::Lock => "lock",
        Key::Run(_, kind) => run_name(*kind),
    }
}

/// What a mode is called.
pub const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Active => "active",
        Mode::Passive(_) => "passive",
        Mode::SteppingDown => "stepping_down",
    }
}

/// Why an instance does not serve; `None` while it does.
pub const fn reason_name(mode: Mode) -> Option<&'static str> {
    Some(match mode {
        Mode::Active => return None,
        Mode::SteppingDown => "stepping_down",
        Mode::Passive(PassiveReason::CutOff) => "whatsapp_unreachable",
        Mode::Passive(PassiveReason::DuplicateInstanceId) => "duplicate_instance_id",
        Mode::Passive(PassiveReason::HeldByForeign) => "lock_held_by_foreign_instance",
        Mode::Passive(PassiveReason::HeldByOther) => "lock_held_by_other_instance",
        Mode::Passive(PassiveReason::Starting) => "starting",
        Mode::Passive(PassiveReason::Stopped) => "stopped",
    })
}

fn account_of(path: &str) -> Option<AccountId> {
    let id = path.strip_prefix("accounts/").filter(|id| !id.contains('/'))?;
    AccountId::parse(id).ok()
}

fn apply(fields: &mut Fields, path: &FieldPath, op: &FieldOp, at: StoreTime) {
    let segments: Vec<&str> = path.segments().collect();
    let Some((last, outer)) = segments.split_last() else { return };
    let mut within = fields;
    for name in outer {
        let value = within.get_or_insert(SmolStr::new(name), Value::Null);
        if value.as_map().is_none() {
            *value = Value::Map(Fields::new());
        }
        let Value::Map(map) = value else { return };
        within = map;
    }
    match op {
        FieldOp::Remove => {
            within.remove(last);
        }
        FieldOp::ServerTime => {
            within.insert(SmolStr::new(last), Value::Timestamp(at));
        }
        FieldOp::Set(value) => {
            within.insert(SmolStr::new(last), value.clone());
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "no gauge comes near 2^52")]
const fn count(n: usize) -> f64 {
    n as f64
}

/// So many runs of an account are kept.
const KEPT_RUNS: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_applied_as_a_store_would() {
        let mut known = Known::default();
        let id = AccountId::parse("account_prod_1").unwrap();
        let at = StoreTime::from_secs(5);
        let changes = vec![
            ("status".into(), Value::from("connected").into()),
            ("a.b".into(), Value::Int(1).into()),
            ("a.c".into(), FieldOp::ServerTime),
            ("gone".into(), FieldOp::Remove),
        ];
        known.accounts.entry(id.clone()).or_default().fields.insert("gone".into(), Value::Null);
        known.wrote(&Write::merge(id.path(), backfill_core::doc::Precondition::Any, changes), at);
        let expected = Fields::from([
            ("status".into(), "connected".into()),
            ("a".into(), Value::map([("b", Value::Int(1)), ("c", Value::Timestamp(at))])),
        ]);
        assert_eq!(known.accounts[&id].fields, expected);
    }

    #[test]
    fn an_old_look_does_not_undo_a_write() {
        let mut known = Known::default();
        let id = AccountId::parse("account_prod_1").unwrap();
        let status = |s: &str| vec![("status".into(), Value::from(s).into())];
        let any = backfill_core::doc::Precondition::Any;
        known.wrote(&Write::merge(id.path(), any, status("new")), StoreTime::from_secs(9));
        let old = Document {
            path: id.path(),
            fields: [("status".into(), "old".into())].into(),
            version: backfill_core::doc::Version(1),
            update_time: StoreTime::from_secs(1),
        };
        known.learn(&old, StoreTime::from_secs(8));
        assert_eq!(known.accounts[&id].fields["status"], "new".into());
        known.learn(&old, StoreTime::from_secs(10));
        assert_eq!(known.accounts[&id].fields["status"], "old".into());
    }
}
