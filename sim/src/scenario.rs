//! What happens to a world, as data: made from a seed, from bytes, or read from a file.
//!
//! Everything that disturbs is a [`Fault`] drawn beforehand. Leaving one out, or an account, an
//! instance or an operation, changes no draw of the others: that is what makes shrinking easy.

use backfill_core::id::{AccountId, InstanceId};
use backfill_core::policy::{Credentials, Policy, PolicyErrors, Settings};
use serde::{Deserialize, Serialize};
use std::time::Duration;

use crate::chance::draw;
use crate::clock::{ClockPlan, Real};

/// One world and its course.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scenario {
    /// Of everything that is not listed here: latencies, texts, who writes when
    pub seed: u64,
    /// What clocks may do
    pub regime: Regime,
    /// When faults stop: all of them end here, except crashes and partitions without an end
    pub quiet_from: Real,
    /// When the world ends
    pub end: Real,
    /// Settings that differ from the defaults
    pub pace: Pace,
    /// The store
    pub store: StorePlan,
    /// The processes
    pub instances: Vec<InstancePlan>,
    /// The WhatsApp accounts
    pub accounts: Vec<AccountPlan>,
    /// A Node instance beside ours, during a migration
    pub node: Option<NodePlan>,
    /// What people ask for
    pub operations: Vec<Operation>,
    /// What goes wrong
    pub faults: Vec<Fault>,
}

/// What clocks may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Regime {
    /// More than the declared bound: fences must hold, beliefs may overlap
    Beyond,
    /// Rates differ by no more than the declared bound, and no pause is uncounted
    Within,
}

/// Settings that differ from the defaults; `None` keeps a default. Times are in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pace {
    /// Several instances share the accounts
    pub shared: bool,
    /// Credentials are kept on the host that linked the account
    pub local: bool,
    /// `auto_backfill.interval`
    pub auto_interval: Option<u64>,
    /// `auto_backfill.cooldown`
    pub auto_cooldown: Option<u64>,
    /// `auto_backfill.backoff`
    pub auto_backoff: Option<u64>,
    /// `auto_backfill.lease`
    pub auto_lease: Option<u64>,
    /// `auto_backfill.max_accounts_per_tick`
    pub auto_per_tick: Option<u32>,
    /// `auto_backfill.max_concurrency`
    pub auto_concurrency: Option<u32>,
    /// `auto_backfill.depth`
    pub depth: Option<u32>,
    /// `recent_sync.interval`
    pub recent_interval: Option<u64>,
    /// `recent_sync.lease`
    pub recent_lease: Option<u64>,
    /// `phone.spacing`
    pub spacing: Option<u64>,
    /// `phone.timeout`
    pub phone_timeout: Option<u64>,
    /// `residency`
    pub residency: Option<u64>,
}

impl Pace {
    /// The settings of the instance with this label.
    pub fn settings(&self, label: InstanceId) -> Settings {
        let mut s =
            if self.shared { Settings::shared(label, "sim") } else { Settings::exclusive(label) };
        s.credentials = if self.local { Credentials::Local } else { Credentials::Shared };
        let ms = |target: &mut Duration, value: Option<u64>| {
            if let Some(value) = value {
                *target = Duration::from_millis(value);
            }
        };
        ms(&mut s.auto_backfill.interval, self.auto_interval);
        ms(&mut s.auto_backfill.cooldown, self.auto_cooldown);
        ms(&mut s.auto_backfill.backoff, self.auto_backoff);
        ms(&mut s.auto_backfill.lease, self.auto_lease);
        ms(&mut s.recent_sync.interval, self.recent_interval);
        ms(&mut s.recent_sync.lease, self.recent_lease);
        ms(&mut s.phone.spacing, self.spacing);
        ms(&mut s.phone.timeout, self.phone_timeout);
        ms(&mut s.residency, self.residency);
        let a = &mut s.auto_backfill;
        a.max_accounts_per_tick = self.auto_per_tick.unwrap_or(a.max_accounts_per_tick);
        a.max_concurrency = self.auto_concurrency.unwrap_or(a.max_concurrency);
        a.depth = self.depth.unwrap_or(a.depth);
        s
    }
}

/// The store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorePlan {
    /// Its clock; steps are those of a rebooted host and come with [`Kind::HostReboot`]
    pub clock: ClockPlan,
    /// Shortest way there and back, in milliseconds
    pub latency_min: u64,
    /// Longest way there and back
    pub latency_max: u64,
}

/// One process, over all its restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstancePlan {
    /// Names it in faults and operations
    pub id: u8,
    /// Its `INSTANCE_ID`; two may have the same by mistake
    pub label: String,
    /// When it first starts
    pub start: Real,
    /// The clock of its host
    pub clock: ClockPlan,
}

/// One WhatsApp account, and the phone it lives on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountPlan {
    /// Names it in faults and operations
    pub id: u16,
    /// There are credentials when the world begins; otherwise it is paired in its course
    pub linked: bool,
    /// How many conversations it has
    pub threads: u16,
    /// How many of a thousand conversations are groups
    pub groups: u16,
    /// Of a thousand direct conversations, how many appear under a LID as well
    pub lids: u16,
    /// From when on it is known which LID is which phone number
    #[serde(default)]
    pub twins_from: Real,
    /// Of a thousand things that happen in conversations, how many are not messages but what
    /// becomes of messages: edits, reactions, receipts, revokes
    #[serde(default)]
    pub happenings: u16,
    /// The instance on whose host the credentials lie, where they are kept on hosts
    #[serde(default)]
    pub home: u8,
    /// Messages per conversation that are older than the world
    pub history: u32,
    /// New messages per day
    pub messages: u32,
    /// Of a thousand new messages, how many are the owner's
    pub own: u16,
    /// Messages per day that users of the inbox send
    pub sends: u32,
    /// Shortest time the phone takes to answer, in milliseconds
    pub phone_min: u64,
    /// Longest time the phone takes to answer
    pub phone_max: u64,
    /// How long the owner takes to scan a code, in milliseconds
    pub scan: u64,
}

impl AccountPlan {
    /// The account's id: `account_sim_`, its number, and digits that look the part.
    pub fn account(id: u16) -> AccountId {
        let tail = draw(0xacc0, u64::from(id));
        AccountId::parse(format!("{ACCOUNT_PREFIX}{id:08x}{tail:016x}{:08x}", tail as u32))
            .expect("hexadecimal digits are a path segment")
    }

    /// The number in an id that [`account`](Self::account) made, or in a path or thread id that
    /// goes on with it.
    pub fn number(text: &str) -> Option<u16> {
        let digits = text.strip_prefix(ACCOUNT_PREFIX)?.get(4..8)?;
        u16::from_str_radix(digits, 16).ok()
    }
}

const ACCOUNT_PREFIX: &str = "account_sim_";

/// A Node instance, which knows leases only by its own wall clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePlan {
    /// When it starts
    pub start: Real,
    /// When it ends
    pub end: Real,
    /// It ends by a crash, and leaves its locks behind
    pub crash: bool,
    /// How far its wall clock is from WhatsApp's, in milliseconds
    pub wall_offset: i64,
    /// It connects accounts and runs backfills, not only keeps the lock
    #[serde(default)]
    pub serves: bool,
}

/// Something that people ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// When
    pub at: Real,
    /// Whom they ask
    pub instance: u8,
    /// For which account
    pub account: u16,
    /// What
    pub ask: Ask,
}

/// What people ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Ask {
    /// A manual backfill
    Backfill,
    /// Remove the account
    Delete,
    /// A new code
    RegenerateQr,
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// From when on
    pub from: Real,
    /// Until when; [`Real::NEVER`] for ever
    pub to: Real,
    /// What
    pub kind: Kind,
    /// To whom
    pub target: Target,
    /// How often of a thousand times; kinds that are a state ignore it
    pub permille: u16,
    /// Of its draws
    pub salt: u64,
}

/// To whom something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Target {
    /// An account, its phone and its connection
    Account(u16),
    /// Everybody
    All,
    /// A process
    Instance(u8),
}

/// What goes wrong. Times are in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// The process dies at `from` and starts anew at `to`
    Crash,
    /// Events of a connection reach the process twice
    DuplicateDelivery,
    /// Another client logs in with the account's credentials at `from`, and goes
    ForeignClient,
    /// The process stops, and its own clock with it: outside the declared bound
    Freeze,
    /// An effect on WhatsApp is answered Unknown, whether it happened or not
    GatewayUnknown,
    /// Hints are not delivered
    HintsLost,
    /// A history chunk is announced and cannot be fetched
    HistoryChunkMissing,
    /// All processes die at `from` and start at `to`; the store's clock has gone `ms` too far
    HostReboot {
        /// How far
        ms: u64,
    },
    /// The device is unlinked at `from`
    LoggedOut,
    /// The process stops, its clock goes on
    Pause,
    /// The process stops for `ms` between deciding an effect and checking `not_after`
    PauseAtSend {
        /// How long
        ms: u64,
    },
    /// The phone answers for another request, and then right
    PhoneAnswersOther,
    /// The phone answers after `ms` more
    PhoneLate {
        /// How much later
        ms: u64,
    },
    /// The phone is off: it answers nothing
    PhoneOffline,
    /// The phone ignores a request
    PhoneSilent,
    /// The phone answers twice
    PhoneTwice,
    /// The process is told to stop at `from` and starts anew at `to`
    Stop,
    /// A commit is refused although its preconditions hold
    StoreConflict,
    /// The store is not available
    StoreDown,
    /// A commit is applied again `ms` later, if its preconditions still hold
    StoreDuplicate {
        /// How much later
        ms: u64,
    },
    /// A request is applied `ms` later than it was given up
    StoreLate {
        /// How much later
        ms: u64,
    },
    /// The store did it, and its answer is lost
    StoreLosesReply,
    /// The request is lost
    StoreLosesRequest,
    /// No request gets through, in both directions or one
    StorePartition {
        /// Requests are lost, otherwise only answers
        requests: bool,
    },
    /// The store takes `ms` longer
    StoreSlow {
        /// How much longer
        ms: u64,
    },
    /// A message cannot be decrypted when it first comes
    Undecryptable,
    /// Connections break at `from`, and cannot be opened until `to`
    WaDown,
    /// The server announces more offline messages than it delivers; the rest is gone
    WaShortDrain,
    /// The connection seems open, and nothing comes through it
    WaSilent,
}

impl Kind {
    /// How many kinds there are.
    pub const COUNT: usize = 30;

    /// A number below [`COUNT`](Self::COUNT) that differs from every other kind's.
    pub const fn index(self) -> usize {
        match self {
            Self::Crash => 0,
            Self::DuplicateDelivery => 1,
            Self::ForeignClient => 2,
            Self::Freeze => 3,
            Self::GatewayUnknown => 4,
            Self::HintsLost => 5,
            Self::HistoryChunkMissing => 6,
            Self::HostReboot { .. } => 7,
            Self::LoggedOut => 8,
            Self::Pause => 9,
            Self::PauseAtSend { .. } => 10,
            Self::PhoneAnswersOther => 11,
            Self::PhoneLate { .. } => 12,
            Self::PhoneOffline => 13,
            Self::PhoneSilent => 14,
            Self::PhoneTwice => 15,
            Self::Stop => 16,
            Self::StoreConflict => 17,
            Self::StoreDown => 18,
            Self::StoreDuplicate { .. } => 19,
            Self::StoreLate { .. } => 20,
            Self::StoreLosesReply => 21,
            Self::StoreLosesRequest => 22,
            Self::StorePartition { requests: true } => 23,
            Self::StorePartition { requests: false } => 24,
            Self::StoreSlow { .. } => 25,
            Self::Undecryptable => 26,
            Self::WaDown => 27,
            Self::WaShortDrain => 28,
            Self::WaSilent => 29,
        }
    }

    /// What reports call it.
    pub const fn name(index: usize) -> &'static str {
        NAMES[index]
    }

    /// Whether it is outside the declared bound on clocks.
    pub const fn beyond(self) -> bool {
        matches!(self, Self::Freeze)
    }
}

const NAMES: [&str; Kind::COUNT] = [
    "crash",
    "duplicate delivery",
    "foreign client",
    "freeze",
    "gateway unknown",
    "hints lost",
    "history chunk missing",
    "host reboot",
    "logged out",
    "pause",
    "pause at send",
    "phone answers other",
    "phone late",
    "phone offline",
    "phone silent",
    "phone twice",
    "stop",
    "store conflict",
    "store down",
    "store duplicate",
    "store late",
    "store loses reply",
    "store loses request",
    "store partition (requests)",
    "store partition (replies)",
    "store slow",
    "undecryptable",
    "whatsapp down",
    "whatsapp short drain",
    "whatsapp silent",
];

impl Scenario {
    /// The policy of one instance.
    ///
    /// # Errors
    /// What is wrong with the scenario's settings.
    pub fn policy(&self, instance: &InstancePlan) -> Result<Policy, PolicyErrors> {
        let label = InstanceId::parse(instance.label.as_str())
            .unwrap_or_else(|_| InstanceId::parse("unnamed").expect("a word is a path segment"));
        Policy::new(self.pace.settings(label))
    }

    /// When a fault is over: at the latest when all is quiet, unless it never ends.
    pub fn fault_end(&self, fault: &Fault) -> Real {
        let stays = matches!(fault.kind, Kind::Crash | Kind::StorePartition { .. });
        if fault.to == Real::NEVER && stays { Real::NEVER } else { fault.to.min(self.quiet_from) }
    }

    /// Whether an instance is still alive and connected when all is quiet.
    pub fn heals(&self, instance: u8) -> bool {
        !self.faults.iter().any(|f| {
            self.fault_end(f) == Real::NEVER
                && (f.target == Target::All || f.target == Target::Instance(instance))
        })
    }

    /// The scenario as text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a scenario has only plain data")
    }

    /// Reads a scenario.
    ///
    /// # Errors
    /// Where the text is not a scenario.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_knows_its_number() {
        for id in [0, 1, 29, u16::MAX] {
            let account = AccountPlan::account(id);
            assert_eq!(AccountPlan::number(account.as_str()), Some(id));
            assert_eq!(account.as_str().len(), "account_sim_".len() + 32);
        }
        assert_eq!(AccountPlan::number("account_prod_0"), None);
    }

    #[test]
    fn settings_differ_only_where_asked() {
        let label = || InstanceId::parse("i").unwrap();
        let defaults =
            Settings { credentials: Credentials::Shared, ..Settings::exclusive(label()) };
        assert_eq!(Pace::default().settings(label()), defaults);
        let pace = Pace { shared: true, spacing: Some(5_000), ..Pace::default() };
        let settings = pace.settings(label());
        assert_eq!(settings.phone.spacing, Duration::from_secs(5));
        assert_eq!(settings.session_term, Duration::from_secs(30));
    }
}
