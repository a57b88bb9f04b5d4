//! A trace in words: who did what, and why, with ids that identify nobody.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use backfill_core::doc::{DocPath, FieldOp, Value, Write, WriteOp};
use backfill_core::io::{
    Answer, Command, Event, GatewayCall, GatewayEvent, HoleChange, Input, Key, Mode, Output,
    PassiveReason, Rejection, Reply, RunKind, RunResult, Skip, Source, StoreCall, Trigger,
};

use crate::clock::Real;
use crate::properties;
use crate::scenario::{AccountPlan, Fault, Kind, Scenario, Target};
use crate::trace::{Entry, Trace};

/// One line of a story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// When
    pub at: Real,
    /// Who does it, or to whom it happens
    pub who: Who,
    /// Which account it is about, if it is about one
    pub account: Option<u16>,
    /// How much it matters
    pub weight: Weight,
    /// What, and why
    pub text: String,
}

/// Who does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A process of this instance
    Instance(u8),
    /// The phone of this account
    Phone(u16),
    /// The store, for somebody who is not an instance
    Store,
    /// Nobody: faults, and what is true of all
    World,
}

/// How much something matters to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// What happens all the time
    Routine,
    /// What explains the rest
    Detail,
    /// What a reader follows
    Plain,
    /// What must not be
    Alarm,
}

/// Tells a trace.
pub fn tell(scenario: &Scenario, trace: &Trace) -> Vec<Note> {
    let mut teller = Teller::new(scenario);
    trace.entries().iter().filter_map(|(at, entry)| teller.note(*at, entry)).collect()
}

/// Knows who is who, in a trace that is read from its beginning.
#[derive(Clone, Debug)]
pub struct Teller {
    /// By process, its instance
    instances: Vec<u8>,
    /// By boot, its process
    boots: BTreeMap<String, u32>,
    quiet_from: Real,
}

impl Teller {
    /// For traces of this scenario.
    pub fn new(scenario: &Scenario) -> Self {
        Self { instances: Vec::new(), boots: BTreeMap::new(), quiet_from: scenario.quiet_from }
    }

    /// The instance of a process; 255 for somebody who is not ours.
    pub fn instance(&self, process: u32) -> u8 {
        self.instances.get(process as usize).copied().unwrap_or(u8::MAX)
    }

    /// Text of the checker, with processes by their instance too and accounts by their number.
    pub fn explained(&self, text: &str) -> String {
        let text = masked(text);
        let mut out = String::with_capacity(text.len() + 16);
        let mut rest = text.as_str();
        while let Some(start) = rest.find("process ") {
            let (before, from) = rest.split_at(start + "process ".len());
            out.push_str(before);
            let digits = from.find(|c: char| !c.is_ascii_digit()).unwrap_or(from.len());
            let (number, after) = from.split_at(digits);
            out.push_str(number);
            if let Ok(process) = number.parse()
                && let Some(instance) = self.instances.get::<usize>(process)
            {
                let _ = write!(out, " (i{instance})");
            }
            rest = after;
        }
        out.push_str(rest);
        for (boot, process) in &self.boots {
            if out.contains(boot.as_str()) {
                let session = format!("a session of i{}", self.instance(*process));
                out = out.replace(boot.as_str(), &session);
            }
        }
        out
    }

    /// The instance that a document names as owner, and how a reader knows it.
    pub fn owner(&self, boot: &str) -> (Option<u8>, String) {
        match self.boots.get(boot) {
            Some(process) => {
                let instance = self.instance(*process);
                (Some(instance), format!("i{instance}"))
            }
            None if boot.starts_with("shared:") => (None, "all who share".into()),
            None => (None, "somebody else".into()),
        }
    }

    /// Tells one entry; `None` for what only pictures show. Entries have to come in order.
    pub fn note(&mut self, at: Real, entry: &Entry) -> Option<Note> {
        let instance = |process: u32| Who::Instance(self.instance(process));
        let (who, account, weight, text) = match entry {
            Entry::Acknowledged { process, account, messages } => {
                let text = format!("acknowledges {} of a{account}", count(*messages, "message"));
                (instance(*process), Some(*account), Weight::Routine, text)
            }
            Entry::Belief { .. } => return None,
            Entry::Commit { process, applied, late, writes } => {
                let who = process.map_or(Who::Store, instance);
                let (about, weight) = self.commit(writes);
                let (weight, text) = match (applied, late) {
                    (true, false) => (weight, format!("store: {about}")),
                    (true, true) => {
                        (Weight::Plain.max(weight), format!("a late request takes effect: {about}"))
                    }
                    (false, false) => {
                        (Weight::Detail, format!("store refuses (precondition): {about}"))
                    }
                    (false, true) => (
                        Weight::Detail,
                        format!("a late request is refused by its precondition: {about}"),
                    ),
                };
                (who, account_of(writes), weight, text)
            }
            Entry::Connection { process, account, open } => {
                let text = if *open {
                    format!("opens a connection of a{account} to WhatsApp")
                } else {
                    format!("has closed the connection of a{account}")
                };
                (instance(*process), Some(*account), Weight::Detail, text)
            }
            Entry::Ended { process, graceful } => {
                let text = if *graceful { "ends, as it was told to" } else { "dies" };
                (instance(*process), None, Weight::Plain, text.into())
            }
            Entry::Fault { fault, on } => {
                let (who, account) = match fault.target {
                    Target::Account(account) => (Who::Phone(account), Some(account)),
                    Target::All => (Who::World, None),
                    Target::Instance(instance) => (Who::Instance(instance), None),
                };
                let text = if *on {
                    format!("FAULT: {}", fault_text(fault, self.quiet_from))
                } else {
                    format!("fault over: {}", kind_text(fault.kind))
                };
                (who, account, Weight::Plain, text)
            }
            Entry::Input { process, input, .. } => {
                let (account, weight, text) = input_text(input)?;
                (instance(*process), account, weight, text)
            }
            Entry::Output { process, output } => {
                if let Output::Event(Event::SessionStarted { boot }) = output {
                    self.boots.insert(boot.as_str().into(), *process);
                }
                let who = Who::Instance(self.instance(*process));
                let (account, weight, text) = self.output_text(output)?;
                (who, account, weight, text)
            }
            Entry::Paused { process, until } => {
                let text =
                    format!("is paused for {}: none of its code runs", span(until.since(at)));
                (instance(*process), None, Weight::Plain, text)
            }
            Entry::Phone { account, process, request, messages } => {
                let instance = self.instance(*process);
                let text = match messages {
                    None => format!("is asked for history by i{instance} (request {request})"),
                    Some(n) => {
                        let n = count(*n, "message");
                        format!("answers i{instance} with {n} (request {request})")
                    }
                };
                (Who::Phone(*account), Some(*account), Weight::Detail, text)
            }
            Entry::Read { process, paths } => {
                let first = paths.first().map_or_else(String::new, |path| self.place(path));
                let more = paths.len().saturating_sub(1);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                (instance(*process), None, Weight::Routine, format!("reads {first}{more}"))
            }
            Entry::Resumed { process } => {
                (instance(*process), None, Weight::Plain, "goes on after the pause".into())
            }
            Entry::Started { process, instance } => {
                let number = *process as usize;
                self.instances.resize(self.instances.len().max(number + 1), u8::MAX);
                self.instances[number] = *instance;
                let text = format!("starts (process {process})");
                (Who::Instance(*instance), None, Weight::Plain, text)
            }
            Entry::Violation { check, text } => {
                let says = properties::says(check);
                let text = format!("VIOLATION of {check} ({says}): {}", self.explained(text));
                (Who::World, None, Weight::Alarm, text)
            }
        };
        Some(Note { at, who, account, weight, text })
    }

    fn output_text(&self, output: &Output) -> Option<(Option<u16>, Weight, String)> {
        Some(match output {
            Output::Event(event) => self.event_text(event)?,
            Output::Gateway(request) => {
                let account = AccountPlan::number(request.account.as_str());
                let of = account_text(request.account.as_str());
                let (weight, text) = match &request.call {
                    GatewayCall::Close { .. } => {
                        (Weight::Detail, format!("wants the connection of {of} closed"))
                    }
                    GatewayCall::Connect => (Weight::Detail, format!("wants to connect {of}")),
                    GatewayCall::History { count: most, run, .. } => (
                        Weight::Detail,
                        format!(
                            "wants up to {most} older messages of a thread of {of}, for its {}",
                            run_text(*run)
                        ),
                    ),
                    GatewayCall::Logout => (Weight::Plain, format!("wants {of} logged out")),
                    GatewayCall::Parse { chunk, from } => {
                        (Weight::Routine, format!("parses chunk {} of {of} from {from}", chunk.0))
                    }
                    GatewayCall::Recover => {
                        (Weight::Routine, format!("asks what lies in the spool of {of}"))
                    }
                    GatewayCall::Send { .. } => {
                        (Weight::Detail, format!("sends a message of {of}"))
                    }
                    GatewayCall::Spool { chunk } => {
                        (Weight::Routine, format!("spools chunk {} of {of}", chunk.0))
                    }
                    GatewayCall::Unspool { chunk } => {
                        (Weight::Routine, format!("is done with chunk {} of {of}", chunk.0))
                    }
                };
                (account, weight, text)
            }
            Output::Reply(_, reply) => (None, Weight::Plain, reply_text(reply)),
            Output::Stopped => (None, Weight::Plain, "has handed everything over".into()),
            Output::Store(request) => {
                let StoreCall::Commit(writes) = &request.call else { return None };
                let (about, _) = self.commit(writes);
                let id = request.id.0;
                (
                    account_of(writes),
                    Weight::Routine,
                    format!("sends a commit (request {id}): {about}"),
                )
            }
        })
    }

    fn event_text(&self, event: &Event) -> Option<(Option<u16>, Weight, String)> {
        let number = |account: &backfill_core::id::AccountId| AccountPlan::number(account.as_str());
        let of = |account: &backfill_core::id::AccountId| account_text(account.as_str());
        let key_account = |key: &Key| match key {
            Key::Account(account) | Key::Run(account, _) => number(account),
            Key::Lock => None,
        };
        Some(match event {
            Event::Connection { account, state } => (
                number(account),
                Weight::Plain,
                format!("connection of {} is {state}", of(account)),
            ),
            Event::DeadMarked { boot } => {
                let (_, who) = self.owner(boot.as_str());
                (None, Weight::Plain, format!("marks an expired session of {who} dead"))
            }
            Event::Fenced { key } => (
                key_account(key),
                Weight::Plain,
                format!("a write was refused by the fence: {} is somebody else's", key_text(key)),
            ),
            Event::Hole { account, change } => {
                let (weight, what) = match change {
                    HoleChange::Exhausted => (Weight::Plain, "gives up a hole in the history of"),
                    HoleChange::Filled => (Weight::Plain, "has closed a hole in the history of"),
                    HoleChange::Suspected => (Weight::Plain, "suspects a hole in the history of"),
                };
                (number(account), weight, format!("{what} {}", of(account)))
            }
            Event::Incident { account, kind } => {
                let about = account.as_ref().map(|a| format!(" about {}", of(a)));
                let text = format!("incident{}: {kind}", about.unwrap_or_default());
                (account.as_ref().and_then(number), Weight::Plain, text)
            }
            Event::LeaseLost { key } => (
                key_account(key),
                Weight::Plain,
                format!("LOSES {} against its will", key_text(key)),
            ),
            Event::LeaseReleased { key } => {
                (key_account(key), Weight::Plain, format!("gives {} back", key_text(key)))
            }
            Event::LeaseTaken { key, epoch } => {
                let weight =
                    if matches!(key, Key::Run(..)) { Weight::Detail } else { Weight::Plain };
                (key_account(key), weight, format!("takes {}, epoch {}", key_text(key), epoch.0))
            }
            Event::Mode { mode } => (None, Weight::Plain, format!("is now {}", mode_text(*mode))),
            Event::RunEnded { account, kind, result } => {
                let text = format!(
                    "ends the {} of {}: {}",
                    run_text(*kind),
                    of(account),
                    result_text(result)
                );
                (number(account), Weight::Plain, text)
            }
            Event::RunStarted { account, kind, trigger } => {
                let why = match trigger {
                    Trigger::Connect => "it has connected",
                    Trigger::Manual => "somebody asked for it",
                    Trigger::Periodic => "it is due",
                };
                let text =
                    format!("starts a {} of {}, because {why}", run_text(*kind), of(account));
                (number(account), Weight::Plain, text)
            }
            Event::SessionEnded { graceful, .. } => {
                let how = if *graceful { "on purpose" } else { "by losing it" };
                (None, Weight::Plain, format!("ends its session {how}: it holds nothing any more"))
            }
            Event::SessionStarted { .. } => (None, Weight::Plain, "begins a new session".into()),
            Event::Skipped { account, kind, reason } => {
                let (kind, why) = (run_text(*kind), skip_text(*reason));
                let text = format!("does not start a {kind} of {}: {why}", of(account));
                (number(account), Weight::Detail, text)
            }
            Event::Tick { kind, connected, started, skipped } => {
                let idle = *started == 0;
                let weight = if idle { Weight::Detail } else { Weight::Plain };
                let mut text = format!(
                    "{} tick: {} connected, {started} started",
                    run_text(*kind),
                    count(*connected, "account")
                );
                for (skip, n) in skipped.iter().filter(|(_, n)| **n > 0) {
                    let _ = write!(text, "; {n} not, {}", skip_text(*skip));
                }
                (None, weight, text)
            }
            Event::UnknownOutcome { key } => {
                let about = key.as_ref().map(|key| format!(" about {}", key_text(key)));
                let account = key.as_ref().and_then(key_account);
                let about = about.unwrap_or_default();
                let text = format!("does not know whether its commit{about} took effect");
                (account, Weight::Detail, text)
            }
        })
    }

    /// What a commit is about, and how much that matters.
    pub fn commit(&self, writes: &[Write]) -> (String, Weight) {
        let mut weight = Weight::Routine;
        let mut parts: Vec<String> = Vec::new();
        let mut messages = 0;
        for write in writes {
            let WriteOp::Merge(fields) = &write.op else {
                if write.op == WriteOp::Delete {
                    parts.push(format!("deletes {}", self.place(&write.path)));
                }
                continue;
            };
            let path = write.path.as_str();
            if path.starts_with("threads/") {
                if path.matches('/').count() > 1 {
                    messages += 1;
                }
                continue;
            }
            let mut part = self.place(&write.path);
            let owns = path == "coordination/lock" || path.ends_with("/leases/connection");
            if owns && let Some(owner) = field(fields, "owner") {
                weight = Weight::Plain;
                let owner = match owner {
                    Value::String(boot) => self.owner(boot).1,
                    _ => "nobody".into(),
                };
                let _ = write!(part, " := {owner}");
                if let Some(Value::Int(epoch)) = field(fields, "epoch") {
                    let _ = write!(part, ", epoch {epoch}");
                }
            } else if path.starts_with("instances/")
                && let Some(Value::String(state)) = field(fields, "state")
            {
                let _ = write!(part, " is {state}");
            } else if path.matches('/').count() == 1
                && path.starts_with("accounts/")
                && let Some(Value::String(status)) = field(fields, "status")
            {
                let _ = write!(part, " is {status}");
            }
            parts.push(part);
        }
        if messages > 0 {
            let whose = account_of(writes).map_or_else(String::new, |a| format!(" of a{a}"));
            parts.push(format!("{}{whose}", count(messages, "message")));
        }
        parts.dedup();
        let text = match parts.len() {
            0 => "a thread's summary".into(),
            1..=4 => parts.join("; "),
            n => format!("{}; and {} more", parts[..3].join("; "), n - 3),
        };
        (text, weight)
    }

    /// A document, in words.
    fn place(&self, path: &DocPath) -> String {
        let path = path.as_str();
        let mut segments = path.split('/');
        let (collection, id) = (segments.next().unwrap_or_default(), segments.next());
        let id = id.unwrap_or_default();
        let below: Vec<&str> = segments.collect();
        let of = || account_text(id);
        match (collection, below.as_slice()) {
            ("instances", []) => format!("session of {}", self.owner(id).1),
            ("coordination", []) => "the lock".into(),
            ("accounts", []) => format!("account {}", of()),
            ("accounts", ["leases", "connection"]) => format!("owner of {}", of()),
            ("accounts", ["leases", "autoBackfill"]) => format!("backfill lease of {}", of()),
            ("accounts", ["leases", "recentSync"]) => format!("recent sync lease of {}", of()),
            ("accounts", ["sync", ..]) => format!("sync state of {}", of()),
            ("accounts", ["coverage", ..]) => format!("coverage of a thread of {}", of()),
            ("threads", []) => format!("a thread of {}", of()),
            ("threads", _) => format!("a message of {}", of()),
            ("outbox", _) => "an outbox document".into(),
            ("wa_metrics", _) => "the lock that a Node instance knows".into(),
            _ => format!("a document of {collection}"),
        }
    }
}

fn input_text(input: &Input) -> Option<(Option<u16>, Weight, String)> {
    Some(match input {
        Input::Answer(id, answer) => {
            let id = id.0;
            let (weight, text) = match answer {
                Answer::Conflict => (Weight::Detail, format!("request {id}: conflict")),
                Answer::Rejected(why) => {
                    let why = match why {
                        Rejection::Denied => "access is denied",
                        Rejection::Expired => "it came too late to start",
                        Rejection::Invalid => "it cannot be carried out",
                        Rejection::Unavailable => "the other side cannot be reached",
                    };
                    (Weight::Detail, format!("request {id} did not happen: {why}"))
                }
                Answer::Unknown => {
                    (Weight::Detail, format!("request {id}: nobody knows whether it happened"))
                }
                Answer::Committed { .. }
                | Answer::Done
                | Answer::Found { .. }
                | Answer::Read { .. } => (Weight::Routine, format!("request {id} is answered")),
            };
            (None, weight, text)
        }
        Input::Command(_, command) => {
            let (account, text) = match command {
                Command::Backfill(a) => (Some(a), "is asked for a backfill of"),
                Command::DeleteAccount(a) => (Some(a), "is asked to remove"),
                Command::RegenerateQr(a) => (Some(a), "is asked for a new code for"),
                Command::Stop => (None, "is told to stop"),
            };
            let of = account.map(|a| format!(" {}", account_text(a.as_str()))).unwrap_or_default();
            let number = account.and_then(|a| AccountPlan::number(a.as_str()));
            (number, Weight::Plain, format!("{text}{of}"))
        }
        Input::Credentials(account, here) => {
            let whether = if *here { "are" } else { "are not" };
            let of = account_text(account.as_str());
            let number = AccountPlan::number(account.as_str());
            (number, Weight::Detail, format!("credentials of {of} {whether} here"))
        }
        Input::Gateway(account, event) => {
            let of = account_text(account.as_str());
            let (weight, text) = gateway_text(event, &of);
            (AccountPlan::number(account.as_str()), weight, text)
        }
        Input::Hint(hint) => {
            let of = format!("{hint:?}").to_lowercase();
            (None, Weight::Routine, format!("hears that something may have changed: {of}"))
        }
        Input::Ingested(account, ingested) => {
            let how = match ingested.source {
                Source::Chunk { chunk, .. } => format!("of chunk {}", chunk.0),
                Source::LatePage => "of a page that came too late".into(),
                Source::Realtime => "that came live".into(),
            };
            let n = count(ingested.messages, "message");
            let text = format!("{n} of {} {how} are durable", account_text(account.as_str()));
            (AccountPlan::number(account.as_str()), Weight::Routine, text)
        }
        Input::Timeout => return None,
    })
}

fn gateway_text(event: &GatewayEvent, of: &str) -> (Weight, String) {
    match event {
        GatewayEvent::Chunk { chunk, spooled } => {
            let how = if *spooled { "lies in the spool" } else { "arrives" };
            (Weight::Detail, format!("history chunk {} of {of} {how}", chunk.0))
        }
        GatewayEvent::ChunkMissing { chunk } => {
            (Weight::Plain, format!("history chunk {} of {of} cannot be fetched", chunk.0))
        }
        GatewayEvent::ChunkStored { chunk, .. } => {
            (Weight::Routine, format!("history chunk {} of {of} is stored", chunk.0))
        }
        GatewayEvent::Closed { reason, .. } => {
            let why = reason.as_str().replace('_', " ");
            (Weight::Plain, format!("connection of {of} has ended: {why}"))
        }
        GatewayEvent::Drained { announced, stored, .. } => (
            Weight::Detail,
            format!("offline queue of {of} delivered: {stored} of {announced} stored"),
        ),
        GatewayEvent::IngestFailed { .. } => {
            (Weight::Plain, format!("a live message of {of} cannot be stored"))
        }
        GatewayEvent::Opened { .. } => (Weight::Detail, format!("{of} is logged in")),
        GatewayEvent::Page { page, .. } => {
            let n = count(page.messages, "message");
            (Weight::Detail, format!("a page of {n} of {of} is durable"))
        }
        GatewayEvent::Pairing { .. } => (Weight::Detail, format!("has a code to link {of}")),
        GatewayEvent::Paired { .. } => (Weight::Plain, format!("{of} is linked")),
        GatewayEvent::Undecryptable { .. } => {
            (Weight::Detail, format!("a message of {of} cannot be decrypted"))
        }
    }
}

/// A mode, and why.
pub fn mode_text(mode: Mode) -> &'static str {
    match mode {
        Mode::Active => "active: it serves accounts",
        Mode::Passive(PassiveReason::CutOff) => "passive: WhatsApp cannot be reached",
        Mode::Passive(PassiveReason::DuplicateInstanceId) => {
            "passive: an older process has the same INSTANCE_ID"
        }
        Mode::Passive(PassiveReason::HeldByForeign) => "passive: a Node instance holds the lock",
        Mode::Passive(PassiveReason::HeldByOther) => "passive: another instance holds the lock",
        Mode::Passive(PassiveReason::Starting) => "passive: it knows nothing yet",
        Mode::Passive(PassiveReason::Stopped) => "passive: it was told to stop",
        Mode::SteppingDown => "stepping down: it closes what it has",
    }
}

/// A run's kind.
pub const fn run_text(kind: RunKind) -> &'static str {
    match kind {
        RunKind::AutoBackfill => "backfill",
        RunKind::RecentSync => "recent sync",
    }
}

/// How a run ended.
pub fn result_text(result: &RunResult) -> String {
    let how = match (result.ok, result.error) {
        (true, _) => "ok".into(),
        (false, Some(error)) => format!("failed, {error}"),
        (false, None) => "failed".into(),
    };
    format!(
        "{how}; {}, {}, {} left, after {}",
        count(result.threads, "thread"),
        count(result.messages, "message"),
        result.remaining,
        span(result.duration.as_millis() as u64)
    )
}

/// What a fault does, to whom, how often and until when.
pub fn fault_text(fault: &Fault, quiet_from: Real) -> String {
    let whom = match fault.target {
        Target::Account(account) => format!("a{account}"),
        Target::All => "everybody".into(),
        Target::Instance(instance) => format!("i{instance}"),
    };
    let often = if fault.permille < 1_000 && !is_state(fault.kind) {
        format!(", {} % of the times", f64::from(fault.permille) / 10.0)
    } else {
        String::new()
    };
    let until = match fault.to {
        Real::NEVER => "for ever".into(),
        to => format!("until {}", clock(to.min(quiet_from))),
    };
    format!("{} for {whom}{often}, {until}", kind_text(fault.kind))
}

/// What a fault is, with its size.
pub fn kind_text(kind: Kind) -> String {
    let name = Kind::name(kind.index());
    match kind {
        Kind::HostReboot { ms }
        | Kind::PauseAtSend { ms }
        | Kind::PhoneLate { ms }
        | Kind::StoreDuplicate { ms }
        | Kind::StoreLate { ms }
        | Kind::StoreSlow { ms } => format!("{name} ({})", span(ms)),
        _ => name.into(),
    }
}

/// Whether a fault of this kind holds all the time, not by chance.
pub(crate) const fn is_state(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Crash
            | Kind::ForeignClient
            | Kind::Freeze
            | Kind::HostReboot { .. }
            | Kind::LoggedOut
            | Kind::Pause
            | Kind::PhoneOffline
            | Kind::Stop
            | Kind::StorePartition { .. }
            | Kind::WaDown
            | Kind::WaSilent
    )
}

/// A moment of the world's time: `h:mm:ss.mmm`.
pub fn clock(at: Real) -> String {
    let ms = at.0;
    format!("{}:{:02}:{:02}.{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60, ms % 1_000)
}

/// A length of time, to two units.
pub fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 if ms.is_multiple_of(1_000) => format!("{} s", ms / 1_000),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms / 1_000 % 60),
        _ => format!("{} h {} min", ms / 3_600_000, ms / 60_000 % 60),
    }
}

/// Text of the checker with accounts by their number in the scenario.
pub fn masked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(ACCOUNT) {
        out.push_str(&rest[..start]);
        let id = &rest[start..];
        let digits = id[ACCOUNT.len()..].find(|c: char| !c.is_ascii_hexdigit());
        let end = digits.map_or(id.len(), |n| ACCOUNT.len() + n);
        out.push_str(&account_text(&id[..end]));
        rest = &id[end..];
        // A thread's id goes on with the other side's.
        if let Some(jid) = rest.strip_prefix("__") {
            out.push_str("__...");
            let end = jid.find(|c: char| !(c.is_ascii_alphanumeric() || "@.-_:".contains(c)));
            rest = &jid[end.unwrap_or(jid.len())..];
        }
    }
    out.push_str(rest);
    out
}

const ACCOUNT: &str = "account_sim_";

fn key_text(key: &Key) -> String {
    match key {
        Key::Account(account) => account_text(account.as_str()),
        Key::Lock => "the lock".into(),
        Key::Run(account, kind) => {
            format!("the {} lease of {}", run_text(*kind), account_text(account.as_str()))
        }
    }
}

fn reply_text(reply: &Reply) -> String {
    match reply {
        Reply::Accepted => "replies: accepted".into(),
        Reply::AlreadyInProgress => "replies: under way already".into(),
        Reply::AccountNotFound => "replies: no such account".into(),
        Reply::InvalidState { status } => format!("replies: not while it is {status}"),
        Reply::NotOwner { .. } => "replies: another instance owns it".into(),
        Reply::Passive => "replies: passive".into(),
    }
}

const fn skip_text(skip: Skip) -> &'static str {
    match skip {
        Skip::Backoff => "tried too recently",
        Skip::Cooldown => "done too recently",
        Skip::HeldByOther => "a foreign instance holds the lease",
        Skip::Idle => "nothing to do",
        Skip::TickCap => "the tick has started as many as it may",
        Skip::Running => "a run is under way",
    }
}

fn account_text(id: &str) -> String {
    AccountPlan::number(id).map_or_else(|| "an account".into(), |number| format!("a{number}"))
}

/// The account that a commit is about, if it is about one.
pub fn account_of(writes: &[Write]) -> Option<u16> {
    writes.iter().find_map(|write| {
        let mut segments = write.path.as_str().split('/');
        let collection = segments.next()?;
        let id = segments.next()?;
        matches!(collection, "accounts" | "threads").then(|| AccountPlan::number(id)).flatten()
    })
}

/// What a write sets a field to.
pub fn field<'a>(
    fields: &'a [(backfill_core::doc::FieldPath, FieldOp)],
    name: &str,
) -> Option<&'a Value> {
    fields.iter().find_map(|(path, op)| match op {
        FieldOp::Set(value) if path.as_str() == name => Some(value),
        _ => None,
    })
}

fn count(n: u32, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        assert_eq!(clock(Real(3_723_004)), "1:02:03.004");
        let spans = [7, 2_000, 2_900, 61_000, 5_400_000].map(span);
        assert_eq!(spans, ["7 ms", "2 s", "2.9 s", "1 min 1 s", "1 h 30 min"]);
    }

    #[test]
    fn nobody_can_be_identified() {
        let account = AccountPlan::account(3);
        let text = format!("accounts/{}/leases/connection was", account.as_str());
        assert_eq!(masked(&text), "accounts/a3/leases/connection was");
        let text = format!("threads/{}__4079@s.whatsapp.net/messages", account.as_str());
        assert_eq!(masked(&text), "threads/a3__.../messages");
    }

    #[test]
    fn a_fault_says_whom_how_often_and_until_when() {
        let fault = Fault {
            from: Real::ZERO,
            to: Real(90_000),
            kind: Kind::StoreSlow { ms: 2_900 },
            target: Target::Instance(1),
            permille: 205,
            salt: 0,
        };
        let text = fault_text(&fault, Real(60_000));
        assert_eq!(text, "store slow (2.9 s) for i1, 20.5 % of the times, until 0:01:00.000");
    }
}
