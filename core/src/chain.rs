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
    confirmed: Option<Mono>,
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
            confirmed: None,
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
    pub(crate) fn confirmed(&self) -> Option<Mono> {
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
                self.confirmed = self.confirmed.max(Some(sent));
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

        // What has not moved since it was last seen shows an earlier commit: a chain that begins
        // anew over the same document counts its attempts from one again.
        let moved = head.as_ref().map(|doc| doc.version) != self.version;
        let ours = head.as_ref().filter(|doc| {
            moved && doc.str("boot") == Some(host.boot.as_str()) && doc.str("state") != Some("dead")
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
        if moved {
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
        let not_after = host.commit_until();
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
        self.confirmed = self.confirmed.max(Some(sent));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::InstanceId;
    use crate::io::{Output, Rejection, StoreCall};
    use crate::policy::{Policy, Settings};

    /// A chain over one document, and what the store holds of it.
    struct Rig {
        host: Host,
        chain: Chain,
    }

    impl Rig {
        fn new(head: Option<&Document>, fence: Option<Version>) -> Self {
            let policy = Policy::new(Settings::exclusive(InstanceId::parse("i").unwrap())).unwrap();
            let host = Host::new(policy, [7; 32], Mono::from_millis(1_000));
            let fence = fence.map(|version| (path("c/fence"), version));
            let ends = (Route::Session, Timer::SessionRetry, None);
            Self { host, chain: Chain::new(path("c/head"), head, fence, ends) }
        }

        fn commit(&mut self, companions: Vec<Write>) -> Vec<Write> {
            self.chain.commit(&mut self.host, Vec::new(), companions, Mono::NEVER);
            self.sent()
        }

        /// Answers what was asked last, a while later.
        fn answer(&mut self, answer: Answer) -> Progress {
            self.host.now = self.host.now + Duration::from_millis(100);
            self.chain.on_answer(&mut self.host, answer)
        }

        fn read(&mut self, docs: Vec<Option<Document>>) -> Progress {
            let docs = docs.into_iter().map(|doc| doc.map(Arc::new)).collect();
            self.answer(Answer::Read { read_time: StoreTime::from_secs(5), docs })
        }

        /// The commit that was sent last.
        fn sent(&mut self) -> Vec<Write> {
            self.try_sent().expect("a commit was sent")
        }

        fn try_sent(&mut self) -> Option<Vec<Write>> {
            let mut sent = None;
            while let Some(output) = self.host.out.pop_front() {
                if let Output::Store(request) = output {
                    sent = match request.call {
                        StoreCall::Commit(writes) => Some(writes),
                        StoreCall::Get(_) | StoreCall::Query(_) => None,
                    };
                }
            }
            sent
        }

        fn doc(&self, version: i64, attempt: u64) -> Document {
            let fields = [
                ("boot".into(), Value::from(self.host.boot.text())),
                ("attempt".into(), Value::from(attempt)),
                ("beat".into(), Value::from(attempt)),
            ];
            Document {
                path: path("c/head"),
                fields: fields.into(),
                version: Version(version),
                update_time: StoreTime::from_secs(4),
            }
        }
    }

    fn path(p: &str) -> DocPath {
        DocPath::parse(p).unwrap()
    }

    fn companion() -> Vec<Write> {
        vec![Write::merge(path("c/other"), Precondition::Any, vec![("n".into(), 1_i64.into())])]
    }

    fn committed(versions: &[i64]) -> Answer {
        Answer::Committed {
            commit_time: StoreTime::from_secs(3),
            versions: versions.iter().map(|v| Some(Version(*v))).collect(),
        }
    }

    fn number(write: &Write, name: &str) -> Option<i64> {
        let crate::doc::WriteOp::Merge(fields) = &write.op else { return None };
        fields.iter().find(|(field, _)| field.as_str() == name).and_then(|(_, op)| match op {
            FieldOp::Set(value) => value.as_int(),
            _ => None,
        })
    }

    #[test]
    fn each_commit_depends_on_the_one_before_and_counts_on() {
        let mut rig = Rig::new(None, None);
        let first = rig.commit(Vec::new());
        assert_eq!(first[0].precondition, Precondition::Absent);
        assert!(matches!(rig.answer(committed(&[7])), Progress::Applied { .. }));
        let second = rig.commit(Vec::new());
        assert_eq!(second[0].precondition, Precondition::Version(Version(7)));
        assert_eq!((number(&first[0], "beat"), number(&second[0], "beat")), (Some(1), Some(2)));
    }

    #[test]
    fn an_unknown_commit_that_is_seen_counts_from_its_sending() {
        let mut rig = Rig::new(None, None);
        rig.commit(companion());
        let sent = rig.host.now;
        assert_eq!(rig.answer(Answer::Unknown), Progress::Pending);
        let doc = rig.doc(9, 1);
        let Progress::Applied { sent: counted, versions, .. } = rig.read(vec![Some(doc), None])
        else {
            panic!("it was seen applied")
        };
        assert_eq!(counted, sent);
        assert_eq!(versions, [None]);
        assert_eq!(rig.chain.confirmed(), Some(sent));
    }

    #[test]
    fn an_unknown_commit_that_is_not_seen_is_settled_before_it_is_refused() {
        let before = Rig::new(None, None).doc(4, 0);
        let mut rig = Rig::new(Some(&before), None);
        rig.commit(companion());
        rig.answer(Answer::Unknown);
        assert_eq!(rig.read(vec![Some(before), None]), Progress::Pending);
        let settling = rig.sent();
        assert_eq!(settling.len(), 1, "nothing but the head");
        assert_eq!(settling[0].precondition, Precondition::Version(Version(4)));
        assert!(matches!(rig.answer(committed(&[5])), Progress::Refused(Some(_))));
        assert_eq!(rig.commit(Vec::new())[0].precondition, Precondition::Version(Version(5)));
    }

    #[test]
    fn a_commit_that_beats_its_settling_is_applied() {
        let before = Rig::new(None, None).doc(4, 0);
        let mut rig = Rig::new(Some(&before), None);
        rig.commit(companion());
        let sent = rig.host.now;
        rig.answer(Answer::Unknown);
        rig.read(vec![Some(before), None]);
        rig.sent();
        assert_eq!(rig.answer(Answer::Conflict), Progress::Pending);
        let doc = rig.doc(5, 1);
        let progress = rig.read(vec![Some(doc), None]);
        assert!(matches!(progress, Progress::Applied { sent: at, .. } if at == sent));
    }

    #[test]
    fn a_settling_that_is_unknown_itself_is_looked_for() {
        let before = Rig::new(None, None).doc(4, 0);
        let mut rig = Rig::new(Some(&before), None);
        rig.commit(companion());
        rig.answer(Answer::Unknown);
        rig.read(vec![Some(before), None]);
        rig.sent();
        assert_eq!(rig.answer(Answer::Unknown), Progress::Pending);
        let doc = rig.doc(5, 2);
        assert!(matches!(rig.read(vec![Some(doc), None]), Progress::Refused(Some(_))));
    }

    #[test]
    fn an_attempt_of_an_earlier_chain_is_not_taken_for_ones_own() {
        // The same boot owned the account before: its first attempt is what the document shows.
        let before = Rig::new(None, None).doc(4, 1);
        let mut rig = Rig::new(Some(&before), None);
        rig.commit(companion());
        rig.answer(Answer::Unknown);
        assert_eq!(rig.read(vec![Some(before), None]), Progress::Pending, "it is not known yet");
    }

    #[test]
    fn a_dead_mark_over_an_applied_attempt_ends_the_chain() {
        let mut rig = Rig::new(None, None);
        rig.commit(Vec::new());
        rig.answer(Answer::Unknown);
        let mut doc = rig.doc(6, 1);
        doc.fields.insert("state".into(), "dead".into());
        assert_eq!(rig.read(vec![Some(doc)]), Progress::Gone);
    }

    #[test]
    fn a_head_that_somebody_else_moved_or_removed_ends_the_chain() {
        for head in [None, Some(("other", 1)), Some(("", 8))] {
            let before = Rig::new(None, None).doc(4, 0);
            let mut rig = Rig::new(Some(&before), None);
            rig.commit(Vec::new());
            rig.answer(Answer::Conflict);
            let head = head.map(|(boot, attempt)| {
                let mut doc = rig.doc(9, attempt);
                if !boot.is_empty() {
                    doc.fields.insert("boot".into(), boot.into());
                }
                doc
            });
            assert_eq!(rig.read(vec![head]), Progress::Gone);
        }
    }

    #[test]
    fn a_moved_fence_ends_the_chain_even_if_the_head_is_ours() {
        let mut rig = Rig::new(None, Some(Version(2)));
        let writes = rig.commit(Vec::new());
        assert_eq!(writes[1], Write::verify(path("c/fence"), Precondition::Version(Version(2))));
        rig.answer(Answer::Unknown);
        let (head, fence) = (rig.doc(5, 1), rig.doc(3, 1));
        assert_eq!(rig.read(vec![Some(head), Some(fence)]), Progress::Gone);
    }

    #[test]
    fn a_conflict_over_another_document_leaves_the_head_in_use() {
        let before = Rig::new(None, None).doc(4, 0);
        let mut rig = Rig::new(Some(&before), None);
        rig.commit(companion());
        rig.answer(Answer::Conflict);
        assert!(matches!(rig.read(vec![Some(before), None]), Progress::Refused(Some(_))));
        assert!(rig.chain.is_idle());
    }

    #[test]
    fn a_rejected_commit_is_refused_at_once() {
        let mut rig = Rig::new(None, None);
        rig.commit(companion());
        assert_eq!(rig.answer(Answer::Rejected(Rejection::Unavailable)), Progress::Refused(None));
        assert_eq!(rig.chain.confirmed(), None);
    }

    #[test]
    fn a_rejected_repetition_says_nothing_of_the_attempt_before() {
        let before = Rig::new(None, None).doc(4, 0);
        let mut rig = Rig::new(Some(&before), None);
        rig.commit(Vec::new());
        let first = rig.host.now;
        rig.answer(Answer::Unknown);
        rig.read(vec![Some(before)]);
        let rejected = Answer::Rejected(Rejection::Unavailable);
        assert_eq!(rig.answer(rejected), Progress::Pending, "the first may yet be applied");
        let doc = rig.doc(5, 1);
        let progress = rig.read(vec![Some(doc)]);
        assert!(matches!(progress, Progress::Applied { sent, .. } if sent == first));
    }

    #[test]
    fn the_versions_of_a_commit_are_those_of_the_documents_it_was_for() {
        for (fence, answered) in [(None, vec![7, 8]), (Some(Version(2)), vec![7, 2, 8])] {
            let mut rig = Rig::new(None, fence);
            rig.commit(companion());
            assert!(!rig.chain.is_idle());
            let Progress::Applied { versions, .. } = rig.answer(committed(&answered)) else {
                panic!("it was committed")
            };
            assert_eq!(versions, [Some(Version(8))]);
        }
    }

    #[test]
    fn reads_that_fail_are_repeated_after_a_pause() {
        let mut rig = Rig::new(None, None);
        rig.commit(Vec::new());
        rig.answer(Answer::Unknown);
        assert_eq!(rig.answer(Answer::Unknown), Progress::Pending);
        assert_eq!(rig.host.timers.next().map(|(_, t)| t.clone()), Some(Timer::SessionRetry));
        rig.chain.on_retry(&mut rig.host);
        let doc = rig.doc(5, 1);
        assert!(matches!(rig.read(vec![Some(doc)]), Progress::Applied { .. }));
    }

    #[test]
    fn settling_never_outlives_the_session() {
        let before = Rig::new(None, None).doc(4, 0);
        let mut rig = Rig::new(Some(&before), None);
        rig.host.deadline = rig.host.now + Duration::from_millis(900);
        rig.commit(companion());
        rig.answer(Answer::Unknown);
        rig.host.out.clear();
        rig.read(vec![Some(before), None]);
        let Some(Output::Store(request)) = rig.host.out.pop_front() else { panic!("it settles") };
        assert_eq!(request.not_after, rig.host.deadline);
    }
}
