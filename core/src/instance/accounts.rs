//! Which accounts to own: finding them, taking them, and giving them back.

use std::collections::BTreeSet;
use std::time::Duration;

use smol_str::SmolStr;

use super::Instance;
use super::ticks::Glance;
use crate::account::{Gaps, Record};
use crate::bug::Bug;
use crate::doc::{CollectionPath, Cursor, FieldPath, Precondition, Query, Value, Version, Write};
use crate::host::{AccountRoute, Host, Route, Timer};
use crate::id::{AccountId, BootId};
use crate::io::{Answer, Event, GatewayCall, Key, Lane, Mode, PassiveReason};
use crate::outbox;
use crate::ownership::{Seen, share};
use crate::policy::Credentials;
use crate::session::{Claim, LIVE, Op};
use crate::tenure::{Stage, Tenure};
use crate::time::Mono;

/// An account, held or not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Account {
    pub(super) record: Record,
    /// The document whose status the record has, if it was read since the account was last held
    pub(super) version: Option<Version>,
    pub(super) seen: Option<Seen>,
    pub(super) tenure: Option<Box<Tenure>>,
    pub(super) unowned_since: Option<Mono>,
    pub(super) released_at: Option<Mono>,
    pub(super) reported_elsewhere: bool,
    /// What an earlier tenure noticed and could not make durable
    pub(super) unsaved: Gaps,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Scan {
    pub(super) under_way: bool,
    pub(super) again: bool,
    pub(super) found: BTreeSet<AccountId>,
    /// Accounts whose ownership is being read
    pub(super) reading: BTreeSet<AccountId>,
    pub(super) looking_up: bool,
}

impl Instance {
    pub(super) fn scan(&mut self) {
        let wait = self.host.about(self.host.policy.account_scan);
        self.host.in_ms(Timer::Scan, wait);
        let gate = self.mode == Mode::Active || self.host.bug(Bug::PassiveGateMissing);
        if !gate {
            return;
        }
        if self.scan.under_way {
            self.scan.again = true;
            return;
        }
        self.scan.under_way = true;
        self.scan.found.clear();
        self.scan_page(None);
    }

    fn scan_page(&mut self, after: Option<Cursor>) {
        let query = Query {
            after,
            select: Some(vec![FieldPath::new("status")]),
            ..Query::all(CollectionPath::root("accounts"), ACCOUNTS_PER_PAGE)
        };
        self.host.query(Route::ScanAccounts, query);
    }

    pub(super) fn on_accounts(&mut self, answer: Answer) {
        let Answer::Found { docs, .. } = answer else {
            self.scan.under_way = false;
            self.soon(Timer::Scan);
            return;
        };
        let last = docs.last().map(|doc| SmolStr::new(doc.path.id()));
        let more = docs.len() >= ACCOUNTS_PER_PAGE as usize;
        for doc in docs {
            let Ok(id) = AccountId::parse(doc.path.id()) else { continue };
            let account = self.accounts.entry(id.clone()).or_insert_with(Account::unknown);
            if account.tenure.is_none() {
                account.record.status = doc.str("status").unwrap_or_default().into();
                account.version = Some(doc.version);
            }
            self.scan.found.insert(id);
        }
        if let (true, Some(id)) = (more, last) {
            self.scan_page(Some(Cursor { keys: Vec::new(), id }));
            return;
        }
        self.scan.under_way = false;
        let found = std::mem::take(&mut self.scan.found);
        self.accounts.retain(|id, account| account.tenure.is_some() || found.contains(id));
        let unheld = self
            .accounts
            .iter()
            .filter(|(_, account)| account.tenure.is_none() && account.record.status != "deleted")
            .map(|(id, _)| id.clone())
            .collect();
        self.read_owners(unheld);
        self.garbage.begin(&mut self.host);
        if std::mem::take(&mut self.scan.again) {
            self.soon(Timer::Scan);
        }
    }

    pub(super) fn read_owners(&mut self, ids: BTreeSet<AccountId>) {
        let fresh: Vec<AccountId> =
            ids.into_iter().filter(|id| self.scan.reading.insert(id.clone())).collect();
        for ids in fresh.chunks(OWNERS_PER_READ) {
            let paths = ids.iter().map(AccountId::connection_path).collect();
            self.host.get(Route::ScanOwners(ids.to_vec()), Lane::Lease, paths);
        }
    }

    pub(super) fn on_owners(&mut self, ids: Vec<AccountId>, answer: Answer) {
        for id in &ids {
            self.scan.reading.remove(id);
        }
        let Answer::Read { docs, .. } = answer else {
            self.soon(Timer::Scan);
            return;
        };
        for (id, doc) in ids.iter().zip(docs) {
            if let Some(account) = self.accounts.get_mut(id)
                && account.tenure.is_none()
            {
                account.seen = Some(Seen::parse(doc.as_deref()));
            }
        }
        self.reconsider();
    }

    pub(super) fn on_owner_sessions(&mut self, boots: Vec<SmolStr>, answer: Answer) {
        self.scan.looking_up = false;
        let Answer::Read { docs, .. } = answer else {
            self.soon(Timer::Scan);
            return;
        };
        for (boot, doc) in boots.into_iter().zip(docs) {
            // A missing document means dead; one that lives is none of ours to judge here.
            let Some(doc) = doc else {
                self.dead.entry(boot).or_insert(false);
                continue;
            };
            if doc.bool(LIVE.as_str()) == Some(true) {
                self.living.insert(boot);
            } else {
                // A session that ended itself had closed everything before.
                self.dead.insert(boot, doc.time("lastBeatAt").is_none());
            }
        }
        self.reconsider();
        self.dead.clear();
    }

    /// Looks at every account that is not held here: take it, give it back, or find out more.
    pub(super) fn reconsider(&mut self) {
        let gate = self.mode == Mode::Active || self.host.bug(Bug::PassiveGateMissing);
        if !gate {
            return;
        }
        let mut unknown = BTreeSet::new();
        let mut look_again = false;
        let mut ops = Vec::new();
        let mut room = self.room();
        let busy: BTreeSet<&Key> = self.session.busy_with().collect();
        for (id, account) in &mut self.accounts {
            let Some(seen) = &account.seen else { continue };
            let key = Key::Account(id.clone());
            if account.tenure.is_some() || account.record.status == "deleted" || busy.contains(&key)
            {
                continue;
            }
            let abnormal = match seen.owner.as_deref() {
                None => false,
                Some(owner) if owner == self.host.boot.as_str() => {
                    if let Some(version) = seen.version {
                        let path = id.connection_path();
                        let epoch = seen.epoch;
                        ops.push(Op::Release { key, path, version, epoch, announce: None });
                    }
                    continue;
                }
                Some(owner) if self.roster.peer(owner).is_some() => {
                    account.unowned_since = None;
                    if account.released_at.take().is_some() {
                        self.vain_moves = 0;
                    }
                    continue;
                }
                Some(owner) => match (self.dead.get(owner), BootId::parse(owner)) {
                    (Some(graceful), _) => !graceful,
                    // There is no session that could be called so, and so none that stands.
                    (None, Err(_)) => true,
                    (None, Ok(boot)) => {
                        if !self.living.contains(owner) {
                            unknown.insert(boot);
                        }
                        continue;
                    }
                },
            };
            let unowned_since = *account.unowned_since.get_or_insert(self.host.now);
            let here = self.credentials.contains(id);
            if !here && needs_credentials(&self.host, &account.record) {
                if !std::mem::replace(&mut account.reported_elsewhere, true) {
                    self.host.incident(Some(id), "session_elsewhere");
                }
                continue;
            }
            let long = self.host.now.since(unowned_since) >= self.host.policy.unowned_bound;
            let pause = self.host.policy.rebalance_interval * 2;
            let just_left = account.released_at.is_some_and(|at| self.host.now.since(at) < pause);
            // A share limits only what others could take too.
            let alone = needs_credentials(&self.host, &account.record)
                && self.host.now >= self.abstain_until;
            if !long && !alone && (room == 0 || just_left) {
                let at = unowned_since + self.host.policy.unowned_bound;
                self.host.timers.set_earliest(Timer::Scan, at);
                continue;
            }
            let unlinked = if here || self.host.policy.credentials == Credentials::Shared {
                None
            } else if let Some(version) = account.version {
                Some((id.path(), version))
            } else {
                look_again = true;
                continue;
            };
            room = room.saturating_sub(1);
            if self.host.bug(Bug::ConnectBeforeOwnership) {
                let until = self.host.deadline;
                self.host.gateway(id, AccountRoute::Unawaited, GatewayCall::Connect, until);
            }
            ops.push(Op::Claim(Claim {
                key,
                path: id.connection_path(),
                precondition: seen.version.map_or(Precondition::Absent, Precondition::Version),
                epoch: seen.epoch.next(),
                owner: self.host.boot.text(),
                abnormal,
                unlinked,
                mirror: None,
            }));
        }
        for op in ops {
            self.session.push(&mut self.host, op);
        }
        if look_again {
            self.soon(Timer::Scan);
        }
        if !unknown.is_empty() && !std::mem::replace(&mut self.scan.looking_up, true) {
            let boots = unknown.iter().take(OWNERS_PER_READ);
            let (boots, paths) = boots.map(|boot| (boot.text(), boot.path())).unzip();
            self.host.get(Route::ScanSessions(boots), Lane::Lease, paths);
        }
    }

    pub(super) fn on_account_taken(
        &mut self,
        id: &AccountId,
        claim: &Claim,
        version: Option<Version>,
    ) {
        let Some(account) = self.accounts.get_mut(id) else { return };
        account.seen = None;
        account.unowned_since = None;
        let Some(version) =
            version.filter(|_| self.mode == Mode::Active || self.host.bug(Bug::PassiveGateMissing))
        else {
            // Not wanted any more, or not certain: it is read again, and given back.
            self.read_owners(BTreeSet::from([id.clone()]));
            return;
        };
        self.host.event(Event::LeaseTaken { key: claim.key.clone(), epoch: claim.epoch });
        if account.released_at.take().is_some() {
            self.vain_moves = self.vain_moves.saturating_add(1);
        }
        let unsaved = std::mem::take(&mut account.unsaved);
        let tenure =
            Tenure::begin(&mut self.host, id.clone(), claim.epoch, version, claim.abnormal)
                .remembering(unsaved);
        account.tenure = Some(Box::new(tenure));
    }

    /// Lets an account's owner part act, and sees what became of it.
    pub(super) fn with_tenure(&mut self, id: &AccountId, act: impl FnOnce(&mut Tenure, &mut Host)) {
        let Some(account) = self.accounts.get_mut(id) else { return };
        let Some(tenure) = &mut account.tenure else { return };
        act(tenure, &mut self.host);
        let stage = tenure.stage;
        let glance = tenure.is_connected().then(|| Glance::at(tenure));
        match (self.connected.get_mut(id), glance) {
            (Some(known), Some(now)) => *known = now,
            (Some(_), None) => {
                self.connected.remove(id);
            }
            (None, Some(now)) => {
                self.connected.insert(id.clone(), now);
                self.host.query(Route::OutboxClaimed(id.clone()), outbox::processing(id, None));
                self.poll_outbox();
            }
            (None, None) => {}
        }
        match stage {
            Stage::Loading | Stage::Ready | Stage::Leaving => {}
            Stage::Left => self.on_left(id),
            Stage::Lost => {
                let key = Key::Account(id.clone());
                self.host.event(Event::Fenced { key: key.clone() });
                self.host.event(Event::LeaseLost { key });
                self.drop_tenure(id);
                self.read_owners(BTreeSet::from([id.clone()]));
                self.finish_step_down();
            }
        }
    }

    pub(super) fn drop_tenure(&mut self, id: &AccountId) {
        self.connected.remove(id);
        let Some(account) = self.accounts.get_mut(id) else { return };
        account.seen = None;
        if let Some(tenure) = account.tenure.take() {
            account.record = tenure.record.clone();
            account.version = None;
            account.unsaved = tenure.unsaved_gaps();
            tenure.abandon(&mut self.host);
        }
    }

    fn on_left(&mut self, id: &AccountId) {
        if self.mode == Mode::SteppingDown {
            self.finish_step_down();
            return;
        }
        let Some(account) = self.accounts.get_mut(id) else { return };
        let Some(tenure) = &mut account.tenure else { return };
        let key = Key::Account(id.clone());
        let (version, epoch) = (tenure.fence(), tenure.epoch);
        let exists = tenure.exists();
        if self.host.bug(Bug::ReleaseWithdrawn) {
            tenure.stage = Stage::Ready;
            tenure.want_connection(&mut self.host);
        } else {
            // A deleted account that is added again is as good as new.
            let deleted = tenure.record.status == "deleted";
            account.released_at = (!deleted).then_some(self.host.now);
            self.host.event(Event::LeaseReleased { key: key.clone() });
            self.drop_tenure(id);
        }
        if !exists {
            // Somebody deleted the document: until it is found again there is no such account.
            self.accounts.remove(id);
        }
        let announce = exists.then(|| id.path());
        let op = Op::Release { key, path: id.connection_path(), version, epoch, announce };
        self.session.push(&mut self.host, op);
    }

    pub(super) fn held_accounts(&self) -> Vec<AccountId> {
        self.accounts.iter().filter(|(_, a)| a.tenure.is_some()).map(|(id, _)| id.clone()).collect()
    }

    fn held(&self) -> usize {
        let busy: BTreeSet<&Key> = self.session.busy_with().collect();
        let claiming = |id: &AccountId| busy.contains(&Key::Account(id.clone()));
        self.accounts.iter().filter(|(id, a)| a.tenure.is_some() || claiming(id)).count()
    }

    /// How many more accounts this instance may take.
    fn room(&self) -> usize {
        if !self.is_shared() {
            return usize::MAX;
        }
        if self.host.now < self.abstain_until {
            return 0;
        }
        self.share().saturating_sub(self.held())
    }

    fn share(&self) -> usize {
        let accounts = self.accounts.values().filter(|a| a.record.status != "deleted").count();
        let able = |peer: &crate::roster::Peer| peer.active && peer.healthy && !peer.expired;
        let peers = self.roster.peers().filter(|(_, peer)| able(peer)).count();
        share(accounts, 1 + peers)
    }

    pub(super) fn rebalance(&mut self) {
        let wait = self.host.about(self.host.policy.rebalance_interval);
        self.host.in_ms(Timer::Rebalance, wait);
        if self.mode != Mode::Active {
            return;
        }
        self.check_reach();
        if self.host.now >= self.abstain_until {
            self.session.healthy = true;
        }
        if !self.is_shared() || self.held() <= self.share() {
            return;
        }
        let pause = match self.vain_moves {
            0 => self.host.policy.rebalance_interval,
            // Others are able by the look of it, and take nothing.
            vain => self.host.policy.residency * (1 << vain.min(8)),
        };
        let settled = self.last_move.is_none_or(|at| self.host.now.since(at) >= pause);
        let resident = |tenure: &Tenure| {
            tenure.is_ready() && self.host.now.since(tenure.since) >= self.host.policy.residency
        };
        let candidate = self
            .accounts
            .iter()
            .find(|(_, account)| {
                // What can be served only here stays here.
                let bound = |t: &Tenure| needs_credentials(&self.host, &t.record);
                account.tenure.as_ref().is_some_and(|t| !bound(t) && resident(t))
            })
            .map(|(id, _)| id.clone());
        if let (true, Some(id)) = (settled, candidate) {
            self.last_move = Some(self.host.now);
            self.with_tenure(&id, |tenure, host| {
                tenure.leave(host);
                tenure.pump(host);
            });
        }
    }

    /// Who cannot reach WhatsApp makes room for somebody who can.
    fn check_reach(&mut self) {
        let limit = self.host.policy.cut_off_after;
        let links = || self.accounts.values().filter_map(|a| a.tenure.as_ref()).map(|t| &t.link);
        let reached = links().any(|link| link.is_open());
        let cut_off = !reached && links().any(|link| link.cut_off_for() >= limit);
        if reached {
            self.abstain_for = Duration::ZERO;
            self.session.healthy = true;
        }
        if !cut_off {
            return;
        }
        let term = self.host.policy.session_term;
        self.abstain_for = (self.abstain_for * 2).min(MAX_ABSTAIN).max(term * 2);
        self.abstain_until = self.host.now + self.abstain_for;
        self.session.healthy = false;
        self.host.incident(None, "whatsapp_unreachable");
        if !self.is_shared() {
            self.step_down(PassiveReason::CutOff);
            return;
        }
        let held = self.held_accounts();
        for id in &held {
            self.with_tenure(id, |tenure, host| {
                tenure.leave(host);
                tenure.pump(host);
            });
        }
    }

    pub(super) fn touch_fences(&mut self) {
        let writes: Vec<Write> = self
            .accounts
            .iter()
            .filter(|(_, account)| account.tenure.is_some())
            .map(|(id, _)| {
                let beat = Value::from(self.host.now.as_millis());
                let fields = vec![(FieldPath::new("beat"), beat.into())];
                Write::merge(id.connection_path(), Precondition::Any, fields)
            })
            .collect();
        let not_after = self.host.deadline;
        self.host.commit(Route::Nobody, Lane::Lease, writes, not_after);
    }
}

impl Account {
    fn unknown() -> Self {
        Self {
            record: Record::default(),
            version: None,
            seen: None,
            tenure: None,
            unowned_since: None,
            released_at: None,
            reported_elsewhere: false,
            unsaved: Gaps::default(),
        }
    }
}

/// Whether an account can be served only where its credentials lie.
fn needs_credentials(host: &Host, record: &Record) -> bool {
    let local = host.policy.credentials == Credentials::Local;
    local && record.is_paired() && !host.bug(Bug::CredentialsIgnored)
}

const ACCOUNTS_PER_PAGE: u32 = 300;
const MAX_ABSTAIN: Duration = Duration::from_secs(3_600);
const OWNERS_PER_READ: usize = 100;
