//! This process's session: the one thing that is renewed, under which everything else is owned.
//!
//! A session is one incarnation. Its document is the head of a chain; ownership of the lock and of
//! accounts is taken and given back in commits of that chain, so that a late one is killed by the
//! next renewal or by a dead mark.

use std::collections::VecDeque;
use std::time::Duration;

use smol_str::SmolStr;

use crate::bug::Bug;
use crate::chain::{Chain, Progress, Snapshot};
use crate::doc::{DocPath, FieldOp, FieldPath, Precondition, Value, Version, Write};
use crate::host::{Host, Route, Timer};
use crate::id::{BootId, Epoch};
use crate::io::{Answer, Key};
use crate::lock::{COMPAT_TERM, FOREIGN_AT, lock_path};
use crate::policy::InstanceMode;
use crate::time::{Mono, StoreTime};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Session {
    chain: Chain,
    op: Option<Op>,
    queue: VecDeque<Op>,
    created: bool,
    ending: bool,
    pub(crate) state: SessionState,
    pub(crate) healthy: bool,
    /// The compat lock's document and version, while this session keeps it
    pub(crate) mirror: Option<Mirror>,
}

/// What a session says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SessionState {
    Active,
    Draining,
    Passive,
}

/// The lock document that other software looks at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mirror {
    pub(crate) path: DocPath,
    pub(crate) precondition: Precondition,
    pub(crate) holder: SmolStr,
    /// Software that is not ours had it last: whoever takes the lock says so
    pub(crate) from_foreign: bool,
}

/// A commit of the session's chain, which is always a renewal too.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    /// Become the owner of something
    Claim(Claim),
    Create,
    /// Set the own session dead: one write frees all it owned
    End,
    /// Say of somebody else's expired session that it is dead
    MarkDead {
        boot: BootId,
        version: Version,
        last_beat: StoreTime,
    },
    /// Keep the compat lock alive
    Mirror,
    Release {
        key: Key,
        path: DocPath,
        version: Version,
        epoch: Epoch,
        /// A document that others watch, so that they look at once; only if it exists
        announce: Option<DocPath>,
    },
    Renew,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Claim {
    pub(crate) key: Key,
    pub(crate) path: DocPath,
    /// The ownership document as it was read
    pub(crate) precondition: Precondition,
    /// The epoch it takes
    pub(crate) epoch: Epoch,
    /// What is written as owner: the boot, or the cluster
    pub(crate) owner: SmolStr,
    /// Its owner had not given it back
    pub(crate) abnormal: bool,
    /// The account's document as it was read: linked nowhere, and so not where this process
    /// could not serve it
    pub(crate) unlinked: Option<(DocPath, Version)>,
    /// Taking the lock takes the compat lock too
    pub(crate) mirror: Option<Mirror>,
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Done(Op, Vec<Option<Version>>),
    /// This boot is over
    Gone,
    Refused(Op, Option<Snapshot>),
}

impl Session {
    /// A session that begins now; its first commit creates it.
    pub(crate) fn begin(host: &mut Host) -> Self {
        let mut session = Self {
            chain: Chain::new(
                host.boot.path(),
                None,
                None,
                (Route::Session, Timer::SessionRetry, None),
            ),
            op: None,
            queue: VecDeque::from([Op::Create]),
            created: false,
            ending: false,
            state: SessionState::Passive,
            healthy: true,
            mirror: None,
        };
        session.pump(host);
        session
    }

    /// Whether there is certainly no document of it: it was not created, and is not being created.
    pub(crate) fn is_unborn(&self) -> bool {
        !self.created && self.op.is_none()
    }

    pub(crate) fn is_created(&self) -> bool {
        self.created
    }

    /// Queues an operation; it follows those that are queued already.
    pub(crate) fn push(&mut self, host: &mut Host, op: Op) {
        if self.ending {
            return;
        }
        if op == Op::End {
            // Nothing may follow, and what waits would only delay it.
            self.queue.clear();
            self.ending = true;
        }
        if op == Op::Mirror {
            // It must not wait until everything else is done.
            if self.op != Some(Op::Mirror) && self.queue.front() != Some(&Op::Mirror) {
                self.queue.push_front(op);
                self.pump(host);
            }
            return;
        }
        if op == Op::Renew && (self.op.is_some() || !self.queue.is_empty()) {
            // Whatever goes next renews the session.
            return;
        }
        self.queue.push_back(op);
        self.pump(host);
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending
    }

    /// Whether a claim or release of `key` is queued or under way.
    pub(crate) fn is_busy_with(&self, key: &Key) -> bool {
        self.busy_with().any(|busy| busy == key)
    }

    /// Everything of which a claim or release is queued or under way.
    pub(crate) fn busy_with(&self) -> impl Iterator<Item = &Key> {
        self.op.iter().chain(&self.queue).filter_map(|op| match op {
            Op::Claim(claim) => Some(&claim.key),
            Op::Release { key, .. } => Some(key),
            _ => None,
        })
    }

    /// What waits to be taken is not wanted any more.
    pub(crate) fn withdraw_claims(&mut self) {
        self.queue.retain(|op| !matches!(op, Op::Claim(_)));
    }

    pub(crate) fn on_answer(&mut self, host: &mut Host, answer: Answer) -> Option<Outcome> {
        let before = self.chain.confirmed();
        let progress = self.chain.on_answer(host, answer);
        let mut news = self.chain.confirmed() > before;
        if let (Progress::Applied { sent, .. }, Some(op)) = (&progress, &self.op)
            && op.shows_lock()
        {
            let shown = believed(host, *sent, compat_term(host));
            host.shown_until = host.shown_until.max(Some(shown));
            news = true;
        }
        if let Some(sent) = self.chain.confirmed().filter(|_| news) {
            self.confirm(host, sent);
        }
        match progress {
            Progress::Applied { versions, .. } => {
                let op = self.op.take()?;
                self.created = true;
                Some(Outcome::Done(op, versions))
            }
            // Whoever ended it, it is over.
            Progress::Gone if self.op == Some(Op::End) => Some(Outcome::Done(Op::End, Vec::new())),
            Progress::Gone => Some(Outcome::Gone),
            Progress::Pending => None,
            Progress::Refused(snapshot) => Some(Outcome::Refused(self.op.take()?, snapshot)),
        }
    }

    pub(crate) fn on_retry(&mut self, host: &mut Host) {
        self.chain.on_retry(host);
    }

    /// Sends the next operation, if none is under way.
    pub(crate) fn pump(&mut self, host: &mut Host) {
        if self.op.is_some() {
            return;
        }
        let Some(op) = self.queue.pop_front() else { return };
        let companions = self.companions(host, &op);
        let head = self.fields(host, &op);
        let not_after = host.commit_until();
        let claims = matches!(op, Op::Claim(_));
        self.chain.loosen(claims && host.bug(Bug::AcquireNotTiedToSession));
        self.op = Some(op);
        self.chain.commit(host, head, companions, not_after);
    }

    /// A commit that was sent at `sent` is known to have happened.
    fn confirm(&self, host: &mut Host, sent: Mono) {
        let until = believed(host, sent, host.policy.session_term);
        let shown = host.shown_until.filter(|_| self.state != SessionState::Passive);
        host.deadline = shown.map_or(until, |shown| until.min(shown));
        host.timers.set(Timer::Deadline, host.deadline);
        // The compat lock is not renewed by what renews the session alone.
        let lacks_lock = self.mirror.is_some() && !self.op.as_ref().is_some_and(Op::shows_lock);
        if !host.bug(Bug::NoRenewal) && !lacks_lock {
            let renewal = host.policy.session_renewal;
            host.timers.set(Timer::Renew, (sent + renewal).max(host.now));
        }
    }

    fn fields(&self, host: &Host, op: &Op) -> Vec<(FieldPath, FieldOp)> {
        let state = match (op, self.state) {
            (Op::End, _) => "dead",
            (Op::Claim(Claim { key: Key::Lock, .. }), _) | (_, SessionState::Active) => "active",
            (_, SessionState::Draining) => "draining",
            (_, SessionState::Passive) => "passive",
        };
        let ttl = u64::try_from(host.policy.session_term.as_millis()).unwrap_or(u64::MAX);
        let mut fields = vec![
            (STATE, Value::from(state).into()),
            (LIVE, Value::from(*op != Op::End).into()),
            (TTL, Value::from(ttl).into()),
            (HEALTHY, Value::from(self.healthy).into()),
        ];
        if host.bug(Bug::ExpiryByWrittenUntil)
            && let Some(now) = host.clock.local(host.now)
        {
            fields.push((UNTIL, Value::from(now + host.policy.session_term).into()));
        }
        if *op == Op::Create {
            fields.push((INSTANCE_ID, Value::from(host.policy.instance.text()).into()));
            fields.push((SINCE, FieldOp::ServerTime));
            fields.push((URL, Value::from(host.policy.url.clone()).into()));
            let mode = match &host.policy.mode {
                InstanceMode::Exclusive => SmolStr::new_static("exclusive"),
                InstanceMode::Shared { cluster } => smol_str::format_smolstr!("shared:{cluster}"),
            };
            fields.push((MODE, Value::from(mode).into()));
        }
        fields
    }

    fn companions(&self, host: &Host, op: &Op) -> Vec<Write> {
        match op {
            Op::Create | Op::Renew => Vec::new(),
            Op::Claim(claim) => {
                let mut fields = vec![
                    (OWNER, Value::from(claim.owner.clone()).into()),
                    (INSTANCE_ID, Value::from(host.policy.instance.text()).into()),
                    (EPOCH, Value::from(claim.epoch.0).into()),
                ];
                if claim.mirror.as_ref().is_some_and(|mirror| mirror.from_foreign) {
                    fields.push((FOREIGN_AT, FieldOp::ServerTime));
                }
                let mut writes = vec![Write::merge(claim.path.clone(), claim.precondition, fields)];
                writes.extend(claim.mirror.as_ref().map(|mirror| mirror.held(host, true)));
                writes.extend(claim.unlinked.iter().map(|(account, version)| {
                    Write::verify(account.clone(), Precondition::Version(*version))
                }));
                writes
            }
            // A cluster's stays with those that remain.
            Op::End if matches!(host.policy.mode, InstanceMode::Shared { .. }) => Vec::new(),
            Op::End => self.mirror.iter().map(Mirror::released).collect(),
            Op::Mirror => {
                let taken_over = self.mirror.as_ref().filter(|mirror| mirror.from_foreign);
                let held = self.mirror.iter().map(|mirror| mirror.held(host, false));
                held.chain(taken_over.map(|_| {
                    let fields = vec![(FOREIGN_AT, FieldOp::ServerTime)];
                    Write::merge(lock_path(), Precondition::Any, fields)
                }))
                .collect()
            }
            Op::MarkDead { boot, version, last_beat } => vec![Write::merge(
                boot.path(),
                Precondition::Version(*version),
                vec![
                    (STATE, Value::from("dead").into()),
                    (LIVE, Value::from(false).into()),
                    (LAST_BEAT_AT, Value::from(*last_beat).into()),
                ],
            )],
            Op::Release { path, version, epoch, announce, .. } => {
                let mut writes = vec![Write::merge(
                    path.clone(),
                    Precondition::Version(*version),
                    vec![(OWNER, Value::Null.into()), (EPOCH, Value::from(epoch.0).into())],
                )];
                writes.extend(announce.iter().map(|watched| {
                    let fields = vec![(UPDATED_AT, FieldOp::ServerTime)];
                    Write::merge(watched.clone(), Precondition::Exists, fields)
                }));
                writes
            }
        }
    }
}

impl Op {
    /// Whether it writes in the compat lock that it is held.
    fn shows_lock(&self) -> bool {
        matches!(self, Self::Mirror | Self::Claim(Claim { mirror: Some(_), .. }))
    }
}

/// Until when what a commit took that was sent at `sent` is believed.
fn believed(host: &Host, sent: Mono, term: Duration) -> Mono {
    let (from, held) = if host.bug(Bug::DeadlineFromAnswer) {
        (host.now, term)
    } else if host.bug(Bug::MarginMissing) {
        (sent, term)
    } else {
        (sent, host.policy.belief(term))
    };
    from + held
}

/// The term that is written to the compat lock.
fn compat_term(host: &Host) -> Duration {
    match host.policy.mode {
        InstanceMode::Exclusive => host.policy.session_term,
        // One session renews it for all of a cluster, and not with each renewal.
        InstanceMode::Shared { .. } => COMPAT_TERM.max(host.policy.session_term),
    }
}

impl Mirror {
    fn held(&self, host: &Host, acquired: bool) -> Write {
        let until = host.clock.now(host.now, 0).unwrap_or_default() + compat_term(host);
        let mut fields = vec![
            (HOLDER_INSTANCE_ID, Value::from(self.holder.clone()).into()),
            (LEASE_UNTIL, Value::Int(until.as_millis()).into()),
            (UPDATED_AT, FieldOp::ServerTime),
        ];
        if acquired {
            fields.push((ACQUIRED_AT, FieldOp::ServerTime));
        }
        Write::merge(self.path.clone(), self.precondition, fields)
    }

    fn released(&self) -> Write {
        Write::merge(
            self.path.clone(),
            self.precondition,
            vec![
                (LEASE_UNTIL, Value::Int(0).into()),
                (PREVIOUS_HOLDER, Value::from(self.holder.clone()).into()),
                (UPDATED_AT, FieldOp::ServerTime),
            ],
        )
    }
}

pub(crate) const EPOCH: FieldPath = FieldPath::new("epoch");
pub(crate) const HOLDER_INSTANCE_ID: FieldPath = FieldPath::new("holderInstanceId");
pub(crate) const INSTANCE_ID: FieldPath = FieldPath::new("instanceId");
pub(crate) const LIVE: FieldPath = FieldPath::new("live");
pub(crate) const OWNER: FieldPath = FieldPath::new("owner");
const ACQUIRED_AT: FieldPath = FieldPath::new("acquiredAt");
const HEALTHY: FieldPath = FieldPath::new("gatewayHealthy");
const LAST_BEAT_AT: FieldPath = FieldPath::new("lastBeatAt");
const LEASE_UNTIL: FieldPath = FieldPath::new("leaseUntil");
const MODE: FieldPath = FieldPath::new("mode");
const PREVIOUS_HOLDER: FieldPath = FieldPath::new("previousHolder");
const SINCE: FieldPath = FieldPath::new("since");
const STATE: FieldPath = FieldPath::new("state");
const TTL: FieldPath = FieldPath::new("ttlMs");
const UNTIL: FieldPath = FieldPath::new("until");
const UPDATED_AT: FieldPath = FieldPath::new("updatedAt");
const URL: FieldPath = FieldPath::new("url");

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::doc::Document;
    use crate::id::{AccountId, InstanceId};
    use crate::io::{Output, Rejection, StoreCall};
    use crate::lock::compat_path;
    use crate::policy::{Policy, Settings};

    /// A session that has the lock of exclusive mode, and what the store holds of it.
    struct Rig {
        host: Host,
        session: Session,
        version: i64,
    }

    impl Rig {
        fn new() -> Self {
            let policy = Policy::new(Settings::exclusive(InstanceId::parse("i").unwrap())).unwrap();
            let mut host = Host::new(policy, [7; 32], Mono::from_millis(1_000));
            let session = Session::begin(&mut host);
            let mut rig = Self { host, session, version: 0 };
            rig.succeed();
            let mirror = Mirror {
                path: compat_path(),
                precondition: Precondition::Any,
                holder: "i#boot".into(),
                from_foreign: false,
            };
            rig.push(claim(Key::Lock, lock_path(), Some(mirror.clone())));
            rig.succeed();
            rig.session.mirror = Some(mirror);
            rig.session.state = SessionState::Active;
            rig
        }

        fn push(&mut self, op: Op) {
            self.session.push(&mut self.host, op);
        }

        fn wait(&mut self, seconds: u64) {
            self.host.now = self.host.now + Duration::from_secs(seconds);
        }

        /// The documents of the commit that was sent last.
        fn sent(&mut self) -> Vec<DocPath> {
            let mut sent = Vec::new();
            while let Some(output) = self.host.out.pop_front() {
                if let Output::Store(request) = output
                    && let StoreCall::Commit(writes) = request.call
                {
                    sent = writes.into_iter().map(|write| write.path).collect();
                }
            }
            sent
        }

        fn succeed(&mut self) -> Option<Outcome> {
            let documents = self.sent().len();
            self.answer(documents)
        }

        /// The commit under way succeeds, which changes so many documents; the next one goes.
        fn answer(&mut self, documents: usize) -> Option<Outcome> {
            self.version += 1;
            let versions = vec![Some(Version(self.version)); documents];
            let answer = Answer::Committed { commit_time: StoreTime::from_secs(3), versions };
            let outcome = self.session.on_answer(&mut self.host, answer);
            self.session.pump(&mut self.host);
            outcome
        }

        /// What was sent last never arrived: it is read, and the session's document is moved.
        fn lose(&mut self) -> Option<Outcome> {
            assert_eq!(self.session.on_answer(&mut self.host, Answer::Unknown), None);
            let head = Document {
                path: self.host.boot.path(),
                fields: [("boot".into(), Value::from(self.host.boot.text()))].into(),
                version: Version(self.version),
                update_time: StoreTime::from_secs(3),
            };
            let docs = vec![Some(Arc::new(head)), None];
            let read = Answer::Read { read_time: StoreTime::from_secs(4), docs };
            assert_eq!(self.session.on_answer(&mut self.host, read), None);
            assert_eq!(self.sent(), [self.host.boot.path()]);
            self.answer(1)
        }
    }

    fn account(name: &str) -> AccountId {
        AccountId::parse(name).unwrap()
    }

    fn take(name: &str) -> Op {
        claim(Key::Account(account(name)), account(name).connection_path(), None)
    }

    fn release(name: &str) -> Op {
        Op::Release {
            key: Key::Account(account(name)),
            path: account(name).connection_path(),
            version: Version(1),
            epoch: Epoch(1),
            announce: None,
        }
    }

    fn claim(key: Key, path: DocPath, mirror: Option<Mirror>) -> Op {
        Op::Claim(Claim {
            key,
            path,
            precondition: Precondition::Absent,
            epoch: Epoch(1),
            owner: "boot".into(),
            abnormal: false,
            unlinked: None,
            mirror,
        })
    }

    #[test]
    fn it_is_believed_no_longer_than_the_compat_lock_shows_it() {
        let mut rig = Rig::new();
        let until = rig.host.deadline;
        assert_eq!(until, rig.host.now + rig.host.policy.belief(rig.host.policy.session_term));
        rig.wait(30);
        rig.push(Op::Mirror);
        let outcome = rig.lose();
        assert!(matches!(outcome, Some(Outcome::Refused(Op::Mirror, _))), "{outcome:?}");
        assert_eq!(rig.host.deadline, until, "the session was renewed, the compat lock was not");
        rig.push(Op::Mirror);
        rig.succeed();
        assert_eq!(rig.host.deadline, until + Duration::from_secs(30));
    }

    #[test]
    fn taking_accounts_does_not_put_off_the_renewal_of_the_compat_lock() {
        let mut rig = Rig::new();
        let due = rig.host.timers.at(&Timer::Renew);
        assert!(due.is_some());
        for name in ["a", "b"] {
            rig.wait(20);
            rig.push(take(name));
            rig.succeed();
            assert_eq!(rig.host.timers.at(&Timer::Renew), due);
        }
    }

    #[test]
    fn a_refusal_renews_nothing_and_says_nothing_of_when_to_try_again() {
        let mut rig = Rig::new();
        let until = rig.host.deadline;
        rig.wait(40);
        rig.host.timers.clear(&Timer::Renew);
        rig.push(Op::Mirror);
        let refused = Answer::Rejected(Rejection::Unavailable);
        let outcome = rig.session.on_answer(&mut rig.host, refused);
        assert_eq!(outcome, Some(Outcome::Refused(Op::Mirror, None)));
        assert_eq!((rig.host.timers.at(&Timer::Renew), rig.host.deadline), (None, until));
    }

    #[test]
    fn the_compat_lock_is_renewed_before_what_waits_and_only_once() {
        let mut rig = Rig::new();
        rig.push(take("a"));
        assert_eq!(rig.sent(), [rig.host.boot.path(), account("a").connection_path()]);
        rig.push(take("b"));
        rig.push(Op::Mirror);
        rig.push(Op::Mirror);
        // Whatever goes renews the session.
        rig.push(Op::Renew);
        rig.answer(2);
        assert_eq!(rig.sent(), [rig.host.boot.path(), compat_path()]);
        // One that is under way need not wait for another.
        rig.push(Op::Mirror);
        rig.answer(2);
        assert_eq!(rig.sent(), [rig.host.boot.path(), account("b").connection_path()]);
        rig.push(Op::Renew);
        rig.answer(2);
        assert_eq!(rig.sent(), []);
        rig.push(Op::Renew);
        assert_eq!(rig.sent(), [rig.host.boot.path()]);
    }

    #[test]
    fn what_waits_to_be_taken_can_be_withdrawn() {
        let mut rig = Rig::new();
        assert_eq!(rig.session.busy_with().count(), 0);
        for op in [take("a"), take("b"), release("c")] {
            rig.push(op);
        }
        let busy = |rig: &Rig| {
            ["a", "b", "c", "d"].map(|name| rig.session.is_busy_with(&Key::Account(account(name))))
        };
        assert_eq!(busy(&rig), [true, true, true, false]);
        rig.session.withdraw_claims();
        assert_eq!(busy(&rig), [true, false, true, false], "what was sent is under way");
    }

    #[test]
    fn nothing_follows_the_end_which_frees_the_compat_lock_of_exclusive_mode() {
        for shared in [false, true] {
            let mut rig = Rig::new();
            if shared {
                let label = InstanceId::parse("i").unwrap();
                rig.host.policy = Policy::new(Settings::shared(label, "c")).unwrap().into();
            }
            rig.push(take("a"));
            rig.push(take("b"));
            assert!(!rig.session.is_ending());
            rig.push(Op::End);
            rig.push(take("c"));
            assert!(rig.session.is_ending());
            rig.sent();
            rig.answer(2);
            let mut freed = vec![rig.host.boot.path()];
            freed.extend((!shared).then(compat_path));
            assert_eq!(rig.sent(), freed);
            assert_eq!(
                rig.answer(freed.len()),
                Some(Outcome::Done(Op::End, vec![Some(Version(rig.version)); freed.len() - 1]))
            );
            assert_eq!(rig.sent(), []);
        }
    }

    #[test]
    fn who_wanted_to_end_and_finds_it_ended_is_done() {
        for (op, outcome) in
            [(Op::End, Outcome::Done(Op::End, Vec::new())), (Op::Mirror, Outcome::Gone)]
        {
            let mut rig = Rig::new();
            rig.push(op);
            assert_eq!(rig.session.on_answer(&mut rig.host, Answer::Unknown), None);
            let read = Answer::Read { read_time: StoreTime::from_secs(4), docs: vec![None, None] };
            assert_eq!(rig.session.on_answer(&mut rig.host, read), Some(outcome));
        }
    }

    #[test]
    fn it_is_unborn_while_it_was_not_created_and_is_not_being_created() {
        let policy = Policy::new(Settings::exclusive(InstanceId::parse("i").unwrap())).unwrap();
        let mut host = Host::new(policy, [7; 32], Mono::from_millis(1_000));
        let mut session = Session::begin(&mut host);
        assert!(!session.is_unborn() && !session.is_created());
        let refused = Answer::Rejected(Rejection::Unavailable);
        let outcome = session.on_answer(&mut host, refused);
        assert_eq!(outcome, Some(Outcome::Refused(Op::Create, None)));
        assert!(session.is_unborn());
        let created = Rig::new().session;
        assert!(created.is_created() && !created.is_unborn());
    }
}
