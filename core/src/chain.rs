//! A chain of commits that all change one document, the head.
//!
//! Each commit carries compare-and-set on the head, raises its `beat` and names its writer by
//! (`boot`, `attempt`). So the head's history is a line, and "did my commit happen?" always has an
//! answer there: after a conflict or an unknown outcome the head is read again. A commit is
//! settled only when it was seen applied, or when the version it depended on has moved; if neither
//! is so after an unknown outcome, a further commit that changes the head alone moves it.
//! At most one commit is under way.

use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;

use crate::bug::Bug;
use crate::doc::{DocPath, Document, FieldOp, FieldPath, Precondition, Value, Version, Write};
use crate::host::{Host, Route, Timer};
use crate::io::{Answer, Event, Key, Lane};
use crate::time::{Mono, StoreTime};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Chain {
    head: DocPath,
    route: Route,
    retry: Timer,
    key: Option<Key>,
    /// A document whose version every commit depends on, without changing it
    fence: Option<(DocPath, Version)>,
    version: Option<Version>,
    beat: u64,
    attempt: u64,
    flight: Option<Flight>,
    /// When the latest commit that is known to have happened was sent
    confirmed: Mono,
    /// The commit under way does not look at the head
    loose: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Flight {
    stage: Stage,
    /// The attempts that carry what the owner wanted: number and when sent. More than one only if
    /// nothing but the head is to change, so that each further one is as good as the first
    wanted: Vec<(u64, Mono)>,
    /// Further attempts that only move the head: number and when sent
    settling: Vec<(u64, Mono)>,
    head: Vec<(FieldPath, FieldOp)>,
    /// Some attempt may yet be applied
    unsettled: bool,
    companions: Vec<DocPath>,
    docs: Option<Snapshot>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Committing,
    Reading,
    Settling,
    Resting,
}

/// What a chain read after a commit did not simply succeed: the commit's other documents, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Snapshot {
    pub(crate) read_time: StoreTime,
    pub(crate) docs: Vec<Option<Arc<Document>>>,
}

/// How far a commit has come.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Progress {
    /// It happened
    Applied {
        /// When it was sent
        sent: Mono,
        /// The store's time of the commit
        commit_time: StoreTime,
        /// The versions of its other documents, in order
        versions: Vec<Option<Version>>,
    },
    /// It did not and cannot happen any more, because the head or the fence is not ours any more
    Gone,
    /// Not known yet
    Pending,
    /// It did not happen and will not; what is there instead, where that was read
    Refused(Option<Snapshot>),
}

impl Chain {
    /// A chain over a document that was read, or found missing, just now.
    pub(crate) fn new(
        head: DocPath,
        doc: Option<&Document>,
        fence: Option<(DocPath, Version)>,
        (route, retry, key): (Route, Timer, Option<Key>),
    ) -> Self {
        Self {
            head,
            route,
            retry,
            key,
            fence,
            version: doc.map(|d| d.version),
            beat: doc.and_then(|d| d.count("beat")).unwrap_or(0),
            attempt: 0,
            flight: None,
            confirmed: Mono::ZERO,
            loose: false,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.flight.is_none()
    }

    /// Leaves out the compare-and-set on the head, which is wrong.
    pub(crate) fn loosen(&mut self, loose: bool) {
        self.loose = loose;
    }

    /// When the latest commit that is known to have happened was sent.
    pub(crate) fn confirmed(&self) -> Mono {
        self.confirmed
    }

    /// Sends a commit: the head's fields and other writes, which must name distinct documents.
    pub(crate) fn commit(
        &mut self,
        host: &mut Host,
        head: Vec<(FieldPath, FieldOp)>,
        companions: Vec<Write>,
        not_after: Mono,
    ) {
        debug_assert!(self.is_idle(), "one commit at a time");
        self.attempt += 1;
        self.flight = Some(Flight {
            stage: Stage::Committing,
            wanted: vec![(self.attempt, host.now)],
            settling: Vec::new(),
            head: if companions.is_empty() { head.clone() } else { Vec::new() },
            unsettled: false,
            companions: companions.iter().map(|w| w.path.clone()).collect(),
            docs: None,
        });
        self.send(host, head, companions, not_after);
    }

    /// Takes the answer to whatever the chain asked last.
    pub(crate) fn on_answer(&mut self, host: &mut Host, answer: Answer) -> Progress {
        let Some(mut flight) = self.flight.take() else { return Progress::Pending };
        match (flight.stage, answer) {
            (Stage::Committing, Answer::Committed { commit_time, versions }) => {
                let sent = flight.latest();
                self.advance(versions.first().copied().flatten(), sent);
                let skip = 1 + usize::from(self.fenced(host));
                Progress::Applied {
                    sent,
                    commit_time,
                    versions: versions.into_iter().skip(skip).collect(),
                }
            }
            (Stage::Settling, Answer::Committed { versions, .. }) => {
                self.advance(versions.first().copied().flatten(), flight.latest());
                Progress::Refused(flight.docs)
            }
            (Stage::Committing, Answer::Rejected(_)) if !flight.unsettled => {
                Progress::Refused(None)
            }
            (Stage::Committing, Answer::Unknown) if host.bug(Bug::UnknownAsFailure) => {
                Progress::Refused(None)
            }
            (Stage::Committing, Answer::Unknown) if host.bug(Bug::UnknownAsSuccess) => {
                let sent = flight.latest();
                self.confirmed = self.confirmed.max(sent);
                let none = vec![None; flight.companions.len()];
                let commit_time = host.clock.now(host.now, 0).unwrap_or_default();
                Progress::Applied { sent, commit_time, versions: none }
            }
            (Stage::Committing | Stage::Settling, answer) => {
                if answer == Answer::Unknown {
                    flight.unsettled = true;
                    host.event(Event::UnknownOutcome { key: self.key.clone() });
                }
                flight.stage = Stage::Reading;
                self.flight = Some(flight);
                self.read(host);
                Progress::Pending
            }
            (Stage::Reading, Answer::Read { read_time, docs }) => {
                self.on_read(host, flight, read_time, docs)
            }
            (Stage::Reading | Stage::Resting, _) => {
                flight.stage = Stage::Resting;
                self.flight = Some(flight);
                let wait = host.about(Duration::from_millis(500));
                host.in_ms(self.retry.clone(), wait);
                Progress::Pending
            }
        }
    }

    /// Goes on after a pause.
    pub(crate) fn on_retry(&mut self, host: &mut Host) {
        if let Some(flight) = &mut self.flight
            && flight.stage == Stage::Resting
        {
            flight.stage = Stage::Reading;
            self.read(host);
        }
    }

    fn on_read(
        &mut self,
        host: &mut Host,
        mut flight: Flight,
        read_time: StoreTime,
        docs: Vec<Option<Arc<Document>>>,
    ) -> Progress {
        let mut docs = docs.into_iter();
        let head = docs.next().flatten();
        if let Some((_, version)) = &self.fence {
            let fence = docs.next().flatten();
            if fence.is_none_or(|doc| doc.version != *version) && !host.bug(Bug::FenceMissing) {
                return Progress::Gone;
            }
        }
        let snapshot = Snapshot { read_time, docs: docs.collect() };

        let ours = head.as_ref().filter(|doc| {
            doc.str("boot") == Some(host.boot.as_str()) && doc.str("state") != Some("dead")
        });
        let applied = ours.and_then(|doc| doc.count("attempt"));
        let wanted = flight.wanted.iter().find(|(attempt, _)| applied == Some(*attempt));
        if let (Some(doc), Some((_, sent))) = (ours, wanted) {
            self.advance(Some(doc.version), *sent);
            self.beat = doc.count("beat").unwrap_or(self.beat);
            let versions =
                snapshot.docs.iter().map(|doc| doc.as_ref().map(|d| d.version)).collect();
            return Progress::Applied { sent: *sent, commit_time: doc.update_time, versions };
        }
        let settled = flight.settling.iter().find(|(attempt, _)| applied == Some(*attempt));
        if let (Some(doc), Some((_, sent))) = (ours, settled) {
            self.advance(Some(doc.version), *sent);
            self.beat = doc.count("beat").unwrap_or(self.beat);
            return Progress::Refused(Some(snapshot));
        }
        if head.as_ref().map(|doc| doc.version) != self.version {
            return Progress::Gone;
        }
        if !flight.unsettled {
            return Progress::Refused(Some(snapshot));
        }
        // The head has not moved, so an earlier attempt may yet be applied: move it.
        self.attempt += 1;
        let head = flight.head.clone();
        if flight.companions.is_empty() {
            flight.wanted.push((self.attempt, host.now));
            flight.stage = Stage::Committing;
        } else {
            flight.settling.push((self.attempt, host.now));
            flight.stage = Stage::Settling;
        }
        flight.docs = Some(snapshot);
        self.flight = Some(flight);
        let not_after = host.now + host.policy.write_timeout;
        self.send(host, head, Vec::new(), not_after);
        Progress::Pending
    }

    fn send(
        &self,
        host: &mut Host,
        head: Vec<(FieldPath, FieldOp)>,
        companions: Vec<Write>,
        not_after: Mono,
    ) {
        let mut fields = head;
        if !host.bug(Bug::GuardDoesNotMoveVersion) {
            fields.push((BEAT, Value::from(self.beat + 1).into()));
            fields.push((ATTEMPT, Value::from(self.attempt).into()));
        }
        fields.push((BOOT, Value::String(boot_text(host)).into()));
        let precondition = self.version.map_or(Precondition::Absent, Precondition::Version);
        let unguarded = self.fence.is_some() && host.bug(Bug::StatusWithoutCompareAndSet);
        let precondition = if unguarded || self.loose { Precondition::Any } else { precondition };
        let mut writes = Vec::with_capacity(2 + companions.len());
        writes.push(Write::merge(self.head.clone(), precondition, fields));
        if let (Some((path, version)), true) = (&self.fence, self.fenced(host)) {
            writes.push(Write::verify(path.clone(), Precondition::Version(*version)));
        }
        writes.extend(companions);
        host.commit(self.route.clone(), Lane::Lease, writes, not_after);
    }

    fn read(&self, host: &mut Host) {
        let Some(flight) = &self.flight else { return };
        let mut paths = Vec::with_capacity(2 + flight.companions.len());
        paths.push(self.head.clone());
        paths.extend(self.fence.as_ref().map(|(path, _)| path.clone()));
        paths.extend(flight.companions.iter().cloned());
        host.get(self.route.clone(), Lane::Lease, paths);
    }

    fn advance(&mut self, version: Option<Version>, sent: Mono) {
        self.version = version.or(self.version);
        self.beat += 1;
        self.confirmed = self.confirmed.max(sent);
    }

    fn fenced(&self, host: &Host) -> bool {
        self.fence.is_some() && !host.bug(Bug::FenceMissing)
    }
}

impl Flight {
    /// When the latest attempt was sent.
    fn latest(&self) -> Mono {
        self.wanted.iter().chain(&self.settling).map(|(_, sent)| *sent).max().unwrap_or(Mono::ZERO)
    }
}

fn boot_text(host: &Host) -> SmolStr {
    host.boot.text()
}

const ATTEMPT: FieldPath = FieldPath::new("attempt");
const BEAT: FieldPath = FieldPath::new("beat");
const BOOT: FieldPath = FieldPath::new("boot");
