//! Whether to be active: what the lock and the other sessions show.

use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;

use super::Instance;
use crate::bug::Bug;
use crate::doc::{Document, Precondition, Version};
use crate::host::{Route, Timer};
use crate::id::Epoch;
use crate::io::{Answer, Event, Key, Lane, Mode, PassiveReason, RunKind};
use crate::lock::{COMPAT_TERM, compat_path, lock_path};
use crate::policy::InstanceMode;
use crate::roster::Roster;
use crate::session::{Claim, Mirror, Op, SessionState};
use crate::time::{Mono, StoreTime};

/// A look at the lock and then at the sessions: one at a time, and made use of as a whole, so that
/// what is known about sessions is never older than what is known about the lock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Look {
    pub(super) under_way: bool,
    pub(super) asked: Mono,
    pub(super) again: bool,
    /// The lock and the compat lock
    pub(super) locks: (StoreTime, Vec<Option<Arc<Document>>>),
    pub(super) sessions: Vec<(StoreTime, Vec<Arc<Document>>)>,
}

impl Instance {
    pub(super) fn poll_lock(&mut self) {
        let term = self.host.policy.session_term;
        let every = match self.mode {
            Mode::Active if self.is_shared() => term / 3,
            Mode::Active | Mode::SteppingDown => term * 4,
            Mode::Passive(_) => self.host.policy.passive_retry,
        };
        let wait = if self.host.bug(Bug::PollsWithoutPause) {
            Duration::from_millis(100)
        } else {
            self.host.about(every)
        };
        self.host.in_ms(Timer::Poll, wait);
        if std::mem::replace(&mut self.look.under_way, true) {
            self.look.again = true;
            return;
        }
        self.look.asked = self.host.now;
        let paths = vec![lock_path(), compat_path()];
        self.host.get(Route::PollLock, Lane::Lease, paths);
    }

    pub(super) fn on_lock(&mut self, answer: Answer) {
        let Answer::Read { read_time, docs } = answer else {
            self.looked();
            return;
        };
        self.look.locks = (read_time, docs);
        // Afterwards, so that an owner that is not among them is certainly dead or missing.
        self.look.sessions.clear();
        self.host.query_in(Lane::Lease, Route::PollSessions, Roster::query(None));
    }

    pub(super) fn on_sessions(&mut self, answer: Answer) {
        let Answer::Found { read_time, docs } = answer else {
            self.looked();
            return;
        };
        let own = docs.iter().find(|doc| doc.path.id() == self.host.boot.as_str());
        if let Some(doc) = own {
            self.since = doc.time("since");
        }
        let next = Roster::next_page(&docs);
        self.look.sessions.push((read_time, docs));
        if next.is_some() {
            self.host.query_in(Lane::Lease, Route::PollSessions, Roster::query(next));
            return;
        }
        self.living.clear();
        let (read_time, locks) = std::mem::take(&mut self.look.locks);
        let mut locks = locks.into_iter();
        self.lock.see(locks.next().flatten().as_deref());
        self.lock.see_compat(locks.next().flatten().as_deref());
        self.lock.read_time = read_time;
        self.host.foreign_at = self.host.foreign_at.max(self.lock.foreign_at);
        if self.is_shared()
            && let Some(left) = self.lock.shared_for()
        {
            let shown = self.look.asked + self.host.policy.belief(left);
            self.host.shown_until = self.host.shown_until.max(Some(shown));
        }
        let pages = std::mem::take(&mut self.look.sessions);
        self.looked();
        let marks = self.roster.learn(&self.host, &pages);
        for (boot, version, last_beat) in marks.into_iter().take(MARKS_PER_POLL) {
            self.session.push(&mut self.host, Op::MarkDead { boot, version, last_beat });
        }
        self.decide();
        self.reconsider();
    }

    /// A look at lock and sessions is done, or has failed.
    fn looked(&mut self) {
        self.look.under_way = false;
        if std::mem::take(&mut self.look.again) {
            self.soon(Timer::Poll);
        }
    }

    /// Whether to become active, stay passive or step down.
    pub(super) fn decide(&mut self) {
        let now = self.lock.read_time;
        let foreign = self.lock.foreign_holds(&self.host, now);
        let owner = self.lock.owner.clone();
        let cluster = match &self.host.policy.mode {
            InstanceMode::Exclusive => None,
            InstanceMode::Shared { cluster } => Some(smol_str::format_smolstr!("shared:{cluster}")),
        };
        let ours = owner.is_some()
            && (owner == cluster || owner.as_deref() == Some(self.host.boot.as_str()));
        let alive = owner.as_deref().is_some_and(|owner| self.lock_owner_lives(owner));
        let locked = ours || alive || foreign;
        self.unlocked_since =
            if locked { None } else { self.unlocked_since.or(Some(self.host.now)) };
        // Where nobody else takes it, there is nobody to leave it to.
        let unwanted = self
            .unlocked_since
            .is_some_and(|at| self.host.now.since(at) >= self.host.policy.unowned_bound);

        match self.mode {
            Mode::SteppingDown => {}
            Mode::Active if foreign => {
                self.host.incident(None, "foreign_lock_holder");
                self.step_down(PassiveReason::HeldByForeign);
            }
            Mode::Active if !ours => self.step_down(PassiveReason::HeldByOther),
            Mode::Active => self.keep_shared_mirror(now),
            Mode::Passive(_) if self.stopping => {}
            Mode::Passive(_) if self.host.now < self.abstain_until && !unwanted => {
                self.set_mode(Mode::Passive(PassiveReason::CutOff));
            }
            Mode::Passive(_)
                if self.since.is_some_and(|at| self.roster.elder(&self.host, at).is_some())
                    && !self.host.bug(Bug::SameInstanceIdTrusted) =>
            {
                self.set_mode(Mode::Passive(PassiveReason::DuplicateInstanceId));
            }
            Mode::Passive(_) if foreign => {
                self.set_mode(Mode::Passive(PassiveReason::HeldByForeign));
            }
            Mode::Passive(_) if cluster.is_some() && ours => {
                self.keep_shared_mirror(now);
                if self.session.mirror.is_none() {
                    self.activate(None);
                }
            }
            Mode::Passive(_) if alive && !self.trusts_label(owner.as_deref()) => {
                self.set_mode(Mode::Passive(PassiveReason::HeldByOther));
            }
            Mode::Passive(_) => self.claim_lock(cluster),
        }
    }

    fn trusts_label(&self, owner: Option<&str>) -> bool {
        let peer = owner.and_then(|owner| self.roster.peer(owner));
        self.host.bug(Bug::SameInstanceIdTrusted)
            && peer.is_some_and(|peer| peer.instance == self.host.policy.instance.as_str())
    }

    pub(super) fn lock_owner_lives(&self, owner: &str) -> bool {
        if owner.starts_with("shared:") {
            return self.roster.peers().any(|(_, peer)| peer.mode == owner);
        }
        self.roster.peer(owner).is_some()
    }

    fn claim_lock(&mut self, cluster: Option<SmolStr>) {
        if self.session.is_busy_with(&Key::Lock) {
            return;
        }
        let holder = cluster.clone().unwrap_or_else(|| {
            smol_str::format_smolstr!("{}#{}", self.host.policy.instance, self.host.boot)
        });
        let mirror = self.mirror(holder);
        let claim = Claim {
            key: Key::Lock,
            path: lock_path(),
            precondition: self.lock.unchanged(),
            epoch: self.lock.epoch.next(),
            owner: cluster.unwrap_or_else(|| self.host.boot.text()),
            abnormal: false,
            unlinked: None,
            mirror: Some(mirror),
        };
        self.session.push(&mut self.host, Op::Claim(claim));
    }

    pub(super) fn on_lock_taken(&mut self, claim: &Claim, versions: &[Option<Version>]) {
        self.host.event(Event::LeaseTaken { key: Key::Lock, epoch: claim.epoch });
        // Looks that began before it was taken show it as it was.
        self.host.forget(|route| matches!(route, Route::PollLock | Route::PollSessions));
        self.look = Look::default();
        self.lock.owner = Some(claim.owner.clone());
        self.lock.epoch = claim.epoch;
        self.note_taken_over(claim.mirror.as_ref().is_some_and(|mirror| mirror.from_foreign));
        if !self.is_shared() {
            let version = versions.get(1).copied().flatten();
            self.session.mirror = claim.mirror.clone().map(|mirror| Mirror {
                precondition: version.map_or(Precondition::Any, Precondition::Version),
                from_foreign: false,
                ..mirror
            });
        }
        self.activate(Some(claim.epoch));
    }

    fn activate(&mut self, lock: Option<Epoch>) {
        self.held_lock = lock.filter(|_| !self.is_shared());
        self.session.state = SessionState::Active;
        if lock.is_none() {
            // Others share by the number of active sessions, so it is said at once.
            self.session.push(&mut self.host, Op::Renew);
        }
        self.set_mode(Mode::Active);
        self.scan();
        let auto = self.host.policy.auto_backfill.interval;
        self.host.in_ms(Timer::Tick(RunKind::AutoBackfill), auto);
        let recent = self.host.policy.recent_sync.interval;
        self.host.in_ms(Timer::Tick(RunKind::RecentSync), recent);
        let rebalance = self.host.about(self.host.policy.rebalance_interval);
        self.host.in_ms(Timer::Rebalance, rebalance);
        self.poll_outbox();
    }

    /// Whichever shared session sees it first keeps the compat lock alive for all.
    fn keep_shared_mirror(&mut self, read_time: StoreTime) {
        let InstanceMode::Shared { cluster } = &self.host.policy.mode else { return };
        let renewed = COMPAT_TERM * 2 / 3;
        if self.lock.compat_until() > read_time + renewed || self.session.mirror.is_some() {
            return;
        }
        self.session.mirror = Some(self.mirror(smol_str::format_smolstr!("shared:{cluster}")));
        self.session.push(&mut self.host, Op::Mirror);
    }

    /// The compat lock as it is to be after it was read.
    fn mirror(&self, holder: SmolStr) -> Mirror {
        Mirror {
            path: compat_path(),
            precondition: self.lock.compat_unchanged(),
            holder,
            from_foreign: self.lock.foreign_had(),
        }
    }

    /// From software that is not ours the compat lock was taken over just now, if it was.
    pub(super) fn note_taken_over(&mut self, from_foreign: bool) {
        if from_foreign {
            self.host.foreign_at = self.host.foreign_at.max(Some(self.host.store_now()));
        }
    }
}

const MARKS_PER_POLL: usize = 5;
