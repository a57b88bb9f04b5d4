//! A run as a picture: one HTML file that needs nothing else, for somebody who was not there.

use std::collections::BTreeMap;

use backfill_core::doc::{Value, Write, WriteOp};
use backfill_core::id::{AccountId, Epoch};
use backfill_core::io::{Event, GatewayEvent, Input, Mode, Output, RunKind};
use serde::Serialize;

use crate::clock::Real;
use crate::properties;
use crate::report::Report;
use crate::scenario::{AccountPlan, Fault, Kind, Regime, Scenario, Target};
use crate::story::{
    self, Teller, Weight, Who, fault_text, field, kind_text, mode_text, result_text, run_text, span,
};
use crate::trace::{Entry, Trace};
use crate::variant::Variant;

/// What there is to see of a run. Times are in milliseconds of the world.
#[derive(Clone, Debug, Serialize)]
pub struct Picture {
    seed: u64,
    end: u64,
    quiet_from: u64,
    shared: bool,
    beyond: bool,
    variant: Option<(&'static str, &'static str)>,
    instances: Vec<InstanceLane>,
    accounts: Vec<u16>,
    /// Who owns what, as the documents say
    owners: Vec<Bar>,
    asks: Vec<Ask>,
    faults: Vec<FaultSpan>,
    marks: Vec<Mark>,
    violations: Vec<Flag>,
    notes: Vec<Line>,
    /// What marks and bars say; they name a text by its place here
    texts: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct InstanceLane {
    id: u8,
    label: String,
    modes: Vec<Stretch>,
    pauses: Vec<(u64, u64)>,
    /// What it believed to own
    holds: Vec<Bar>,
    /// Connections to WhatsApp
    links: Vec<Bar>,
    runs: Vec<Run>,
}

/// What an instance was.
#[derive(Clone, Debug, Serialize)]
struct Stretch {
    from: u64,
    to: u64,
    /// `active`, `passive`, `stepping`, `down`
    is: &'static str,
    text: &'static str,
}

/// An account in somebody's hands; the lock if there is no account.
#[derive(Clone, Debug, Serialize)]
struct Bar {
    account: Option<u16>,
    /// Which instance; `None` if it is not one of ours, or all together
    instance: Option<u8>,
    epoch: u64,
    from: u64,
    to: u64,
}

#[derive(Clone, Debug, Serialize)]
struct Run {
    account: u16,
    recent: bool,
    from: u64,
    to: u64,
    text: usize,
}

/// A request to a phone.
#[derive(Clone, Debug, Serialize)]
struct Ask {
    account: u16,
    instance: u8,
    from: u64,
    to: u64,
    /// How many messages came back; `None` if no answer did
    messages: Option<u32>,
}

#[derive(Clone, Debug, Serialize)]
struct FaultSpan {
    from: u64,
    to: u64,
    /// Where it is shown too: `process`, `store`, `phone`, `whatsapp`
    family: &'static str,
    name: String,
    instance: Option<u8>,
    account: Option<u16>,
    /// It happens by chance, not all the time
    chance: bool,
    text: String,
}

/// A small thing that happened.
#[derive(Clone, Debug, Serialize)]
struct Mark {
    at: u64,
    instance: Option<u8>,
    /// `commit`, `refused`, `late`, `unknown`, `event`, `asked`
    kind: &'static str,
    text: usize,
}

#[derive(Clone, Debug, Serialize)]
struct Flag {
    at: u64,
    check: &'static str,
    says: &'static str,
    text: String,
}

/// A line of the story, for the list beside the picture.
#[derive(Clone, Debug, Serialize)]
struct Line {
    at: u64,
    who: String,
    instance: Option<u8>,
    weight: u8,
    text: usize,
}

impl Picture {
    /// The picture of a run.
    pub fn new(
        scenario: &Scenario,
        variant: Option<Variant>,
        report: &Report,
        trace: &Trace,
    ) -> Self {
        let mut painter = Painter::new(scenario);
        for (at, entry) in trace.entries() {
            painter.see(*at, entry);
        }
        painter.finish(variant, report)
    }

    /// The picture as one HTML file, which loads nothing else.
    pub fn to_html(&self) -> String {
        let json = serde_json::to_string(self).expect("a picture has only plain data");
        // Inside a script element only this could end it.
        let json = json.replace("</", "<\\/");
        PAGE.replace("{{style}}", STYLE)
            .replace("{{title}}", &format!("Simulated world, seed {}", self.seed))
            .replace("{{head}}", &self.head())
            .replace("{{lanes}}", &self.lanes())
            .replace("{{script}}", SCRIPT)
            .replace("{{data}}", &json)
    }

    fn head(&self) -> String {
        let many = |n: usize, what: &str| {
            if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
        };
        let (instances, accounts) = (self.instances.len(), self.accounts.len());
        let how = if self.shared { "share the accounts" } else { "take turns (one is active)" };
        let mut out = format!(
            "<h1>World of seed {}</h1><p class=\"facts\">{} {how} · {} · {} simulated",
            self.seed,
            many(instances, "instance"),
            many(accounts, "WhatsApp account"),
            span(self.end)
        );
        if self.beyond {
            out.push_str(" · clocks beyond their bound");
        }
        out.push_str("</p>");
        if let Some((name, does)) = self.variant {
            let (name, does) = (escaped(name), escaped(does));
            out.push_str(&format!(
                "<p class=\"bug\">A rule is broken on purpose: <b>{name}</b>. {does}.</p>"
            ));
        }
        if self.violations.is_empty() {
            out.push_str("<p class=\"verdict good\">✓ Nothing was violated</p>");
            return out;
        }
        out.push_str(&format!(
            "<details class=\"verdict bad\" open><summary>✗ {}</summary><ol>",
            many(self.violations.len(), "violation")
        ));
        for (i, flag) in self.violations.iter().enumerate().take(12) {
            out.push_str(&format!(
                "<li><button type=\"button\" data-violation=\"{i}\">{} · {}</button> {}<span \
                 class=\"says\"> — it must be that {}</span></li>",
                flag.check,
                story::clock(Real(flag.at)),
                escaped(&flag.text),
                escaped(flag.says)
            ));
        }
        out.push_str("</ol></details>");
        out
    }

    fn lanes(&self) -> String {
        let lane = |kind: &str, id: &str, name: &str, what: &str| {
            format!(
                "<section class=\"lane {kind}\" data-lane=\"{id}\"><header><h2>{name}</h2><p>{what}\
                 </p><div class=\"rows\"></div></header><div class=\"plot\"></div></section>\n"
            )
        };
        let mut out = lane("faults", "faults", "Faults", "what goes wrong, for whom");
        for instance in &self.instances {
            let id = format!("i{}", instance.id);
            let name = format!("Instance {}", instance.id);
            let what = format!("INSTANCE_ID <b>{}</b>", escaped(&instance.label));
            out.push_str(&lane("instance", &id, &name, &what));
        }
        out.push_str(&lane("store", "store", "Store", "who owns what"));
        out.push_str(&lane("phones", "phones", "Phones", "asked for history"));
        out
    }
}

const PAGE: &str = include_str!("picture/page.html");
const STYLE: &str = include_str!("picture/style.css");
const SCRIPT: &str = include_str!("picture/script.js");

/// Collects what there is to see, entry by entry.
struct Painter<'a> {
    scenario: &'a Scenario,
    teller: Teller,
    texts: BTreeMap<String, usize>,
    lanes: Vec<InstanceLane>,
    /// By process: its mode, since when
    modes: BTreeMap<u32, (Real, Mode)>,
    /// By instance, since when it is down, and how it went
    down: BTreeMap<u8, (Real, &'static str)>,
    holds: BTreeMap<(u32, Option<u16>), (u64, Real, Real)>,
    links: BTreeMap<(u32, u16), Real>,
    runs: BTreeMap<(u32, u16, RunKind), Real>,
    /// By what is owned: by which boot, of which instance, under which epoch, since when
    owners: BTreeMap<Option<u16>, (String, Option<u8>, u64, Real)>,
    asks: BTreeMap<(u32, u64), (u16, Real)>,
    done: Done,
}

#[derive(Default)]
struct Done {
    owners: Vec<Bar>,
    asks: Vec<Ask>,
    marks: Vec<Mark>,
    notes: Vec<Line>,
}

impl<'a> Painter<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let lanes = scenario.instances.iter().map(|instance| InstanceLane {
            id: instance.id,
            label: instance.label.clone(),
            modes: Vec::new(),
            pauses: Vec::new(),
            holds: Vec::new(),
            links: Vec::new(),
            runs: Vec::new(),
        });
        let down = scenario.instances.iter().map(|i| (i.id, (Real::ZERO, "not started yet")));
        Self {
            scenario,
            teller: Teller::new(scenario),
            texts: BTreeMap::new(),
            lanes: lanes.collect(),
            modes: BTreeMap::new(),
            down: down.collect(),
            holds: BTreeMap::new(),
            links: BTreeMap::new(),
            runs: BTreeMap::new(),
            owners: BTreeMap::new(),
            asks: BTreeMap::new(),
            done: Done::default(),
        }
    }

    fn see(&mut self, at: Real, entry: &Entry) {
        if let Some(note) = self.teller.note(at, entry) {
            let instance = if let Who::Instance(i) = note.who { Some(i) } else { None };
            if note.weight >= Weight::Detail {
                let who = match note.who {
                    Who::Instance(instance) => format!("i{instance}"),
                    Who::Phone(account) => format!("phone a{account}"),
                    Who::Store => "somebody".into(),
                    Who::World => String::new(),
                };
                let text = self.text(&note.text);
                let weight = note.weight as u8;
                self.done.notes.push(Line { at: at.0, who, instance, weight, text });
            }
            if let Some(kind) = mark_kind(entry) {
                let text = self.text(&note.text);
                self.done.marks.push(Mark { at: at.0, instance, kind, text });
            }
        }
        match entry {
            Entry::Started { process, instance } => {
                if let Some((since, how)) = self.down.remove(instance) {
                    self.stretch(*instance, since, at, "down", how);
                }
                let starting = Mode::Passive(backfill_core::io::PassiveReason::Starting);
                self.modes.insert(*process, (at, starting));
            }
            Entry::Ended { process, graceful } => {
                self.ends(at, *process);
                let how = if *graceful { "has ended, as it was told to" } else { "has died" };
                self.down.insert(self.teller.instance(*process), (at, how));
            }
            Entry::Paused { process, until } => {
                let (instance, until) = (self.teller.instance(*process), self.limit(*until));
                if let Some(lane) = self.lane(instance) {
                    lane.pauses.push((at.0, until.0));
                }
            }
            Entry::Belief { process, account, epoch, until } => {
                self.believes(at, (*process, *account), *epoch, *until);
            }
            Entry::Input { process, input: Input::Gateway(account, event), .. } => {
                self.hears(at, *process, account, event);
            }
            Entry::Connection { process, account, open: false } => {
                self.unlink(at, *process, *account);
            }
            Entry::Output { process, output: Output::Event(event) } => {
                self.reports(at, *process, event);
            }
            Entry::Commit { applied: true, writes, .. } => self.owns(at, writes),
            Entry::Phone { account, process, request, messages } => match messages {
                None => {
                    self.asks.insert((*process, *request), (*account, at));
                }
                Some(n) => self.answered(at, *process, *request, *account, Some(*n)),
            },
            Entry::Acknowledged { .. }
            | Entry::Commit { .. }
            | Entry::Connection { .. }
            | Entry::Fault { .. }
            | Entry::Input { .. }
            | Entry::Output { .. }
            | Entry::Read { .. }
            | Entry::Resumed { .. }
            | Entry::Violation { .. } => {}
        }
    }

    fn reports(&mut self, at: Real, process: u32, event: &Event) {
        let number = |account: &AccountId| AccountPlan::number(account.as_str());
        match event {
            Event::Mode { mode } => {
                if let Some((since, old)) = self.modes.insert(process, (at, *mode)) {
                    let instance = self.teller.instance(process);
                    self.stretch(instance, since, at, mode_name(old), mode_text(old));
                }
            }
            Event::RunStarted { account, kind, .. } => {
                if let Some(account) = number(account) {
                    self.runs.insert((process, account, *kind), at);
                }
            }
            Event::RunEnded { account, kind, result } => {
                if let Some(account) = number(account) {
                    let text = format!("{}: {}", run_text(*kind), result_text(result));
                    self.run_ends(at, (process, account, *kind), &text);
                }
            }
            _ => {}
        }
    }

    fn hears(&mut self, at: Real, process: u32, account: &AccountId, event: &GatewayEvent) {
        let Some(account) = AccountPlan::number(account.as_str()) else { return };
        match event {
            GatewayEvent::Opened { .. } => {
                self.links.entry((process, account)).or_insert(at);
            }
            GatewayEvent::Closed { .. } => self.unlink(at, process, account),
            _ => {}
        }
    }

    fn unlink(&mut self, at: Real, process: u32, account: u16) {
        let Some(from) = self.links.remove(&(process, account)) else { return };
        let instance = self.teller.instance(process);
        let bar = Bar {
            account: Some(account),
            instance: Some(instance),
            epoch: 0,
            from: from.0,
            to: at.0,
        };
        if let Some(lane) = self.lane(instance) {
            lane.links.push(bar);
        }
    }

    fn run_ends(&mut self, at: Real, run: (u32, u16, RunKind), text: &str) {
        let Some(from) = self.runs.remove(&run) else { return };
        let (process, account, kind) = run;
        let text = self.text(text);
        let recent = kind == RunKind::RecentSync;
        let instance = self.teller.instance(process);
        if let Some(lane) = self.lane(instance) {
            lane.runs.push(Run { account, recent, from: from.0, to: at.0, text });
        }
    }

    /// A belief begins, is prolonged, or ends; `until` [`Real::ZERO`] is the end.
    fn believes(&mut self, at: Real, what: (u32, Option<u16>), epoch: u64, until: Real) {
        if let Some((old, from, old_until)) = self.holds.remove(&what) {
            if old == epoch && old_until >= at && until > at {
                self.holds.insert(what, (old, from, until));
                return;
            }
            self.held(what, old, from, old_until.min(at));
        }
        if until > at {
            self.holds.insert(what, (epoch, at, until));
        }
    }

    fn held(&mut self, what: (u32, Option<u16>), epoch: u64, from: Real, to: Real) {
        if let (process, Some(account)) = what {
            for kind in [RunKind::AutoBackfill, RunKind::RecentSync] {
                let text = format!("{}: ended with the ownership", run_text(kind));
                self.run_ends(to, (process, account, kind), &text);
            }
        }
        let instance = self.teller.instance(what.0);
        let bar = Bar { account: what.1, instance: Some(instance), epoch, from: from.0, to: to.0 };
        if let Some(lane) = self.lane(instance) {
            lane.holds.push(bar);
        }
    }

    fn owns(&mut self, at: Real, writes: &[Write]) {
        for write in writes {
            let WriteOp::Merge(fields) = &write.op else { continue };
            let path = write.path.as_str();
            if let Some(boot) = path.strip_prefix("instances/") {
                let dead = matches!(field(fields, "state"), Some(Value::String(s)) if s == "dead");
                let freed = self.owners.iter().filter(|(_, (owner, ..))| dead && owner == boot);
                for what in freed.map(|(what, _)| *what).collect::<Vec<_>>() {
                    self.disowned(at, what);
                }
                continue;
            }
            let what = if path == "coordination/lock" {
                None
            } else if path.ends_with("/leases/connection")
                && let Some(account) = path.strip_prefix("accounts/").and_then(AccountPlan::number)
            {
                Some(account)
            } else {
                continue;
            };
            let Some(owner) = field(fields, "owner") else { continue };
            let epoch = match field(fields, "epoch") {
                Some(Value::Int(epoch)) => Epoch(u64::try_from(*epoch).unwrap_or(0)),
                _ => Epoch::default(),
            };
            self.disowned(at, what);
            if let Value::String(boot) = owner {
                let (instance, _) = self.teller.owner(boot);
                self.owners.insert(what, (boot.to_string(), instance, epoch.0, at));
            }
        }
    }

    fn disowned(&mut self, at: Real, what: Option<u16>) {
        if let Some((_, instance, epoch, from)) = self.owners.remove(&what) {
            let bar = Bar { account: what, instance, epoch, from: from.0, to: at.0 };
            self.done.owners.push(bar);
        }
    }

    fn answered(
        &mut self,
        at: Real,
        process: u32,
        request: u64,
        account: u16,
        messages: Option<u32>,
    ) {
        let asked = self.asks.remove(&(process, request));
        // What nobody waits for any more was asked at some time before.
        let from = asked.map_or(at, |(_, from)| from);
        let instance = self.teller.instance(process);
        self.done.asks.push(Ask { account, instance, from: from.0, to: at.0, messages });
    }

    fn ends(&mut self, at: Real, process: u32) {
        if let Some((since, mode)) = self.modes.remove(&process) {
            let instance = self.teller.instance(process);
            self.stretch(instance, since, at, mode_name(mode), mode_text(mode));
        }
        let holds: Vec<_> = self.holds.keys().filter(|key| key.0 == process).copied().collect();
        for what in holds {
            self.believes(at, what, 0, Real::ZERO);
        }
        let links: Vec<_> = self.links.keys().filter(|key| key.0 == process).copied().collect();
        for (process, account) in links {
            self.unlink(at, process, account);
        }
        let runs: Vec<_> = self.runs.keys().filter(|key| key.0 == process).copied().collect();
        for run in runs {
            let text = format!("{}: ended with its process", run_text(run.2));
            self.run_ends(at, run, &text);
        }
    }

    fn stretch(
        &mut self,
        instance: u8,
        from: Real,
        to: Real,
        is: &'static str,
        text: &'static str,
    ) {
        if let Some(lane) = self.lane(instance)
            && from < to
        {
            lane.modes.push(Stretch { from: from.0, to: to.0, is, text });
        }
    }

    fn lane(&mut self, instance: u8) -> Option<&mut InstanceLane> {
        self.lanes.iter_mut().find(|lane| lane.id == instance)
    }

    fn text(&mut self, text: &str) -> usize {
        if let Some(known) = self.texts.get(text) {
            return *known;
        }
        let next = self.texts.len();
        self.texts.insert(text.into(), next);
        next
    }

    fn limit(&self, at: Real) -> Real {
        at.min(self.scenario.end)
    }

    fn finish(mut self, variant: Option<Variant>, report: &Report) -> Picture {
        let s = self.scenario;
        let alive: Vec<u32> = self.modes.keys().copied().collect();
        for process in alive {
            self.ends(s.end, process);
        }
        for (instance, (since, how)) in std::mem::take(&mut self.down) {
            self.stretch(instance, since, s.end, "down", how);
        }
        let owned: Vec<Option<u16>> = self.owners.keys().copied().collect();
        for what in owned {
            self.disowned(s.end, what);
        }
        for ((process, _), (account, from)) in std::mem::take(&mut self.asks) {
            let instance = self.teller.instance(process);
            let ask = Ask { account, instance, from: from.0, to: from.0, messages: None };
            self.done.asks.push(ask);
        }
        let mut texts = vec![String::new(); self.texts.len()];
        for (text, place) in self.texts {
            texts[place] = text;
        }
        let teller = self.teller;
        let violations = report.violations.iter().map(|violation| Flag {
            at: violation.at.0.min(s.end.0),
            check: violation.check,
            says: properties::says(violation.check),
            text: teller.explained(&violation.text),
        });
        Picture {
            seed: s.seed,
            end: s.end.0,
            quiet_from: s.quiet_from.0.min(s.end.0),
            shared: s.pace.shared,
            beyond: s.regime == Regime::Beyond,
            variant: variant.map(|variant| (variant.name(), variant.describe())),
            instances: self.lanes,
            accounts: s.accounts.iter().map(|account| account.id).collect(),
            owners: self.done.owners,
            asks: self.done.asks,
            faults: s.faults.iter().filter_map(|f| fault_span(s, f)).chain(node_span(s)).collect(),
            marks: self.done.marks,
            violations: violations.collect(),
            notes: self.done.notes,
            texts,
        }
    }
}

fn fault_span(s: &Scenario, fault: &Fault) -> Option<FaultSpan> {
    let to = s.fault_end(fault).min(s.end);
    let (instance, account) = match fault.target {
        Target::Account(account) => (None, Some(account)),
        Target::All => (None, None),
        Target::Instance(instance) => (Some(instance), None),
    };
    (fault.from < to).then(|| FaultSpan {
        from: fault.from.0,
        to: to.0,
        family: family(fault.kind),
        name: kind_text(fault.kind),
        instance,
        account,
        chance: fault.permille < 1_000 && !story::is_state(fault.kind),
        text: fault_text(fault, s.quiet_from),
    })
}

/// A Node instance beside ours is not a fault, but it disturbs.
fn node_span(s: &Scenario) -> Option<FaultSpan> {
    let node = s.node.as_ref()?;
    let (from, to) = (node.start.min(s.end), node.end.min(s.end));
    let how = if node.crash { "leaves its locks behind" } else { "tidies up" };
    Some(FaultSpan {
        from: from.0,
        to: to.0,
        family: "process",
        name: "Node instance runs".into(),
        instance: None,
        account: None,
        chance: false,
        text: format!("a Node instance, which knows only its own wall clock, runs and {how}"),
    })
}

const fn family(kind: Kind) -> &'static str {
    match kind {
        Kind::Crash
        | Kind::Freeze
        | Kind::HostReboot { .. }
        | Kind::Pause
        | Kind::PauseAtSend { .. }
        | Kind::Stop => "process",
        Kind::HintsLost
        | Kind::StoreConflict
        | Kind::StoreDown
        | Kind::StoreDuplicate { .. }
        | Kind::StoreLate { .. }
        | Kind::StoreLosesReply
        | Kind::StoreLosesRequest
        | Kind::StorePartition { .. }
        | Kind::StoreSlow { .. } => "store",
        Kind::PhoneAnswersOther
        | Kind::PhoneLate { .. }
        | Kind::PhoneOffline
        | Kind::PhoneSilent
        | Kind::PhoneTwice => "phone",
        Kind::DuplicateDelivery
        | Kind::ForeignClient
        | Kind::GatewayUnknown
        | Kind::HistoryChunkMissing
        | Kind::LoggedOut
        | Kind::Undecryptable
        | Kind::WaDown
        | Kind::WaShortDrain
        | Kind::WaSilent => "whatsapp",
    }
}

const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Active => "active",
        Mode::Passive(_) => "passive",
        Mode::SteppingDown => "stepping",
    }
}

fn mark_kind(entry: &Entry) -> Option<&'static str> {
    match entry {
        Entry::Commit { late: true, .. } => Some("late"),
        Entry::Commit { applied: true, .. } => Some("commit"),
        Entry::Commit { applied: false, .. } => Some("refused"),
        Entry::Output { output: Output::Event(event), .. } => match event {
            Event::UnknownOutcome { .. } => Some("unknown"),
            Event::DeadMarked { .. }
            | Event::Fenced { .. }
            | Event::Incident { .. }
            | Event::LeaseLost { .. } => Some("event"),
            _ => None,
        },
        Entry::Input { input: Input::Command(..), .. } => Some("asked"),
        _ => None,
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
