//! What people may want to know of an instance. No decision depends on it.

use std::time::Duration;

use smol_str::SmolStr;

use super::Instance;
use crate::host::Timer;
use crate::id::{AccountId, Epoch};
use crate::io::{Mode, RunKind};
use crate::policy::InstanceMode;
use crate::time::{Mono, StoreTime};

/// Who holds the lock, as far as this instance knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LockInsight {
    /// The holder's label, `shared:<cluster>`, or what other software wrote
    pub holder: SmolStr,
    /// This instance holds it, or is one of those that share it
    pub own: bool,
    /// How long it holds if nobody renews it
    pub expires_in: Option<Duration>,
}

/// An account, as far as this instance knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AccountInsight {
    /// Its status when it was last looked at
    pub status: SmolStr,
    /// The label of the instance that owns it
    pub owner: Option<SmolStr>,
    /// This instance owns it
    pub own: bool,
    /// The fencing token of its latest owner
    pub epoch: Epoch,
    /// It is connected here
    pub connected: bool,
}

impl Instance {
    /// Who holds the lock; `None` if nobody is known to.
    pub fn lock_insight(&self) -> Option<LockInsight> {
        let label = || self.host.policy.instance.text();
        let left = |until: Mono| Some(until.since(self.host.now));
        if let Some(belief) = self.lock_belief() {
            return Some(LockInsight {
                holder: label(),
                own: true,
                expires_in: left(belief.until),
            });
        }
        let own = self.mode == Mode::Active;
        if let (true, InstanceMode::Shared { cluster }) = (own, &self.host.policy.mode) {
            let holder = smol_str::format_smolstr!("shared:{cluster}");
            return Some(LockInsight { holder, own, expires_in: left(self.host.deadline) });
        }
        let left = self.lock.compat_until().since(self.store_now());
        let expires_in = Some(left).filter(|left| !left.is_zero());
        if self.lock.foreign_holds(&self.host, self.lock.read_time) {
            let holder = self.lock.compat_holder()?.clone();
            return Some(LockInsight { holder, own: false, expires_in });
        }
        let owner = self.lock.owner.as_ref()?;
        let holder = if owner.starts_with("shared:") {
            self.lock_owner_lives(owner).then(|| owner.clone())?
        } else {
            self.roster.peer(owner)?.instance.clone()
        };
        Some(LockInsight { holder, own: false, expires_in })
    }

    /// One account; `None` if it is not known here.
    pub fn account_insight(&self, id: &AccountId) -> Option<AccountInsight> {
        let account = self.accounts.get(id)?;
        let seen = account.seen.as_ref();
        if let Some(tenure) = &account.tenure {
            return Some(AccountInsight {
                status: tenure.record.status.clone(),
                owner: Some(self.host.policy.instance.text()),
                own: true,
                epoch: tenure.epoch,
                connected: tenure.is_connected(),
            });
        }
        let owner = seen.and_then(|seen| seen.owner.as_deref());
        Some(AccountInsight {
            status: account.record.status.clone(),
            owner: owner.and_then(|boot| self.roster.peer(boot)).map(|peer| peer.instance.clone()),
            own: false,
            epoch: seen.map_or(Epoch::default(), |seen| seen.epoch),
            connected: false,
        })
    }

    /// The accounts that are known here.
    pub fn account_ids(&self) -> impl Iterator<Item = &AccountId> {
        self.accounts.keys()
    }

    /// When the next tick for this kind of run is decided.
    pub fn next_tick(&self, kind: RunKind) -> Option<Mono> {
        self.host.timers.at(&Timer::Tick(kind))
    }

    /// The store's time now, or a little less; the epoch before the store has said anything.
    pub fn store_now(&self) -> StoreTime {
        self.host.store_now()
    }
}
