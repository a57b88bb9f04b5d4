//! The course of a session: what came of its commits, and how it ends.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Instance;
use super::accounts::{Account, Scan};
use super::activity::Look;
use super::outgoing::OutboxPoll;
use crate::bug::Bug;
use crate::doc::{Document, Precondition, Version};
use crate::host::Timer;
use crate::io::{Event, Key, Mode, Output, PassiveReason, RunKind};
use crate::ownership::Seen;
use crate::session::{Op, Outcome, Session, SessionState};
use crate::tenure::Stage;
use crate::time::Mono;

impl Instance {
    pub(super) fn on_session(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Gone => self.end_boot(false),
            Outcome::Done(op, versions) => self.on_session_done(op, &versions),
            Outcome::Refused(op, snapshot) => {
                if self.session.is_created() {
                    // A renewal may have been left out for the sake of this operation.
                    self.soon(Timer::Renew);
                }
                let doc = snapshot.map(|s| s.docs.into_iter().next().flatten());
                self.on_session_refused(op, doc);
            }
        }
    }

    fn on_session_done(&mut self, op: Op, versions: &[Option<Version>]) {
        let version = versions.first().copied().flatten();
        if let (Some(mirror), Op::Mirror) = (&mut self.session.mirror, &op) {
            mirror.precondition = version.map_or(Precondition::Any, Precondition::Version);
        }
        match op {
            Op::Create => {
                self.poll_lock();
                if self.host.bug(Bug::PassiveGateMissing) {
                    self.scan();
                }
            }
            Op::End => self.end_boot(true),
            Op::Claim(claim) => match &claim.key {
                Key::Lock => self.on_lock_taken(&claim, versions),
                Key::Account(id) => self.on_account_taken(&id.clone(), &claim, version),
                Key::Run(..) => {}
            },
            Op::MarkDead { boot, .. } => {
                self.roster.remove(boot.as_str());
                self.host.event(Event::DeadMarked { boot: boot.clone() });
                self.dead.insert(boot.text(), false);
                self.decide();
                self.reconsider();
            }
            Op::Mirror if self.is_shared() => {
                let mirror = self.session.mirror.take();
                self.note_taken_over(mirror.is_some_and(|mirror| mirror.from_foreign));
                if self.mode != Mode::Active {
                    self.soon(Timer::Poll);
                }
            }
            Op::Mirror | Op::Renew => {
                if self.host.bug(Bug::FenceMovedByRenewal) {
                    self.touch_fences();
                }
            }
            // If nobody else wants it, it is taken again.
            Op::Release { key: Key::Account(id), .. } => self.read_owners(BTreeSet::from([id])),
            Op::Release { .. } => {}
        }
    }

    fn on_session_refused(&mut self, op: Op, doc: Option<Option<Arc<Document>>>) {
        match op {
            // Nothing was created: the same boot may try again.
            Op::Create if self.stopping => self.end_boot(true),
            Op::Create => self.a_little_later(Timer::Create),
            Op::End => self.a_little_later(Timer::StopTimeout),
            Op::Claim(claim) => match claim.key {
                Key::Account(id) => {
                    let Some(doc) = doc else {
                        self.soon(Timer::Scan);
                        return;
                    };
                    if let Some(account) = self.accounts.get_mut(&id) {
                        account.seen = Some(Seen::parse(doc.as_deref()));
                        // It may have been linked meanwhile.
                        account.version = None;
                    }
                    self.reconsider();
                }
                Key::Lock | Key::Run(..) => self.soon(Timer::Poll),
            },
            Op::Mirror => self.on_mirror_refused(doc),
            Op::MarkDead { .. } => self.soon(Timer::Poll),
            Op::Renew => {}
            // Rule: a process that reads its own boot on what it does not hold releases it.
            Op::Release { key: Key::Account(id), .. } => self.read_owners(BTreeSet::from([id])),
            Op::Release { .. } => {}
        }
    }

    fn on_mirror_refused(&mut self, doc: Option<Option<Arc<Document>>>) {
        if let Some(doc) = doc {
            self.lock.see_compat(doc.as_deref());
            let now = self.host.store_now();
            if self.lock.foreign_holds(&self.host, now) {
                self.host.incident(None, "foreign_lock_holder");
                self.step_down(PassiveReason::HeldByForeign);
                return;
            }
            if self.is_shared() {
                // Somebody else of the cluster may have renewed it.
                self.session.mirror = None;
                self.soon(Timer::Poll);
            } else if let Some(mirror) = &mut self.session.mirror {
                mirror.precondition = Precondition::unchanged(doc.as_deref());
            }
        }
    }

    /// A boot whose deadline has passed once never believes again.
    pub(super) fn check_deadline(&mut self) {
        let passed = self.host.deadline != Mono::ZERO && !self.host.believing();
        if passed && !self.host.bug(Bug::LapsedBootBelieves) {
            self.end_boot(false);
        }
    }

    /// The session is over: everything is dropped at once, and another one begins.
    pub(super) fn end_boot(&mut self, graceful: bool) {
        let held = self.held_accounts();
        for id in &held {
            if !graceful {
                self.host.event(Event::LeaseLost { key: Key::Account(id.clone()) });
            }
            self.drop_tenure(id);
        }
        if self.held_lock.take().is_some() && !graceful {
            self.host.event(Event::LeaseLost { key: Key::Lock });
        }
        let old = self.host.boot.clone();
        self.host.event(Event::SessionEnded { boot: old.clone(), graceful });
        self.roster.end_own(old);
        for account in self.accounts.values_mut() {
            account.seen = None;
        }
        for timer in [
            Timer::Create,
            Timer::Deadline,
            Timer::OutboxPoll,
            Timer::Poll,
            Timer::Rebalance,
            Timer::Renew,
            Timer::Scan,
            Timer::SessionRetry,
            Timer::StopTimeout,
            Timer::Tick(RunKind::AutoBackfill),
            Timer::Tick(RunKind::RecentSync),
        ] {
            self.host.timers.clear(&timer);
        }
        self.host.deadline = Mono::ZERO;
        self.host.shown_until = None;
        self.host.forget(|_| true);
        self.living.clear();
        self.host.clear_lines();
        self.ticked.clear();
        self.look = Look::default();
        self.scan = Scan::default();
        self.outbox = OutboxPoll::default();
        if self.stopping {
            self.stopped = true;
            self.set_mode(Mode::Passive(PassiveReason::Stopped));
            self.host.out.push_back(Output::Stopped);
            return;
        }
        let reason = match self.mode {
            Mode::Passive(reason) => reason,
            Mode::Active | Mode::SteppingDown => PassiveReason::Starting,
        };
        self.set_mode(Mode::Passive(reason));
        self.host.boot = self.host.boot_of(self.boots);
        self.boots += 1;
        self.since = None;
        let boot = self.host.boot.clone();
        self.host.event(Event::SessionStarted { boot });
        self.session = Session::begin(&mut self.host);
    }

    pub(super) fn set_mode(&mut self, mode: Mode) {
        if self.mode != mode {
            self.mode = mode;
            self.host.event(Event::Mode { mode });
        }
    }

    /// Closes everything in order, then ends the session.
    pub(super) fn step_down(&mut self, reason: PassiveReason) {
        if self.mode == Mode::SteppingDown {
            return;
        }
        if reason == PassiveReason::HeldByForeign {
            // Somebody else's by now: there is nothing to give back.
            self.session.mirror = None;
        }
        if self.mode != Mode::Active {
            self.set_mode(Mode::Passive(reason));
            if self.stopping {
                self.end_session();
            }
            return;
        }
        self.set_mode(Mode::SteppingDown);
        self.session.state = SessionState::Draining;
        self.session.withdraw_claims();
        let timeout = self.host.policy.stop_timeout;
        self.host.in_ms(Timer::StopTimeout, timeout);
        let held = self.held_accounts();
        if self.host.bug(Bug::StopWaitsForRuns) {
            let longest = self.host.policy.auto_backfill.lease;
            self.host.in_ms(Timer::StopTimeout, longest);
            return;
        }
        if self.host.bug(Bug::ReleaseBeforeClose) {
            self.session.push(&mut self.host, Op::End);
        }
        for id in &held {
            self.with_tenure(id, |tenure, host| {
                tenure.leave(host);
                tenure.pump(host);
            });
        }
        self.finish_step_down();
    }

    pub(super) fn finish_step_down(&mut self) {
        let open = |account: &Account| {
            account.tenure.as_ref().is_some_and(|tenure| tenure.stage != Stage::Left)
        };
        let ending = self.session.is_ending();
        if self.mode == Mode::SteppingDown && !ending && !self.accounts.values().any(open) {
            self.end_session();
        }
    }

    /// One write frees everything this session owned. What is still connected when the time for
    /// stopping is over is freed by expiry, before which it is closed.
    pub(super) fn end_session(&mut self) {
        if self.session.is_ending() {
            return;
        }
        let connected = |account: &Account| {
            account.tenure.as_ref().is_some_and(|tenure| tenure.link.connection().is_some())
        };
        if self.accounts.values().any(connected) {
            self.end_boot(false);
            return;
        }
        for id in self.held_accounts() {
            self.drop_tenure(&id);
        }
        let timeout = self.host.policy.stop_timeout;
        self.host.in_ms(Timer::StopTimeout, timeout);
        if self.session.is_unborn() || self.host.bug(Bug::StopWithoutEnd) {
            // Another try to create it was to come; there is nothing to end.
            self.end_boot(true);
            return;
        }
        self.session.push(&mut self.host, Op::End);
    }
}
