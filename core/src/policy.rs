//! Every tunable, validated on construction: an unsafe combination cannot be built.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use smol_str::SmolStr;

use crate::id::InstanceId;

/// The tunables as somebody wrote them down; [`Policy::new`] judges them.
///
/// [`Settings::exclusive`] and [`Settings::shared`] give the defaults.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Settings {
    /// What operators call this process (`INSTANCE_ID`)
    pub instance: InstanceId,
    /// Where other instances and people reach this process, if anywhere
    pub url: Option<SmolStr>,
    /// Whether one instance serves all accounts or several share them (`INSTANCE_MODE`)
    pub mode: InstanceMode,

    /// A session expires when it was not renewed for this long, by the store's clock
    pub session_term: Duration,
    /// A session is renewed this often
    pub session_renewal: Duration,
    /// How far the rate of this process's clock may differ from the store's, in parts per million
    pub clock_rate_ppm: u32,
    /// Own deadlines end this much early, so that closing is done when the term ends
    pub margin: Duration,
    /// Longest time to close a WhatsApp connection
    pub close_timeout: Duration,
    /// Longest wait for the answer to a read
    pub read_timeout: Duration,
    /// Longest wait for the answer to a commit
    pub write_timeout: Duration,
    /// A passive instance looks for the lock this often
    pub passive_retry: Duration,
    /// A new owner waits this long before it connects an account whose owner did not release it
    pub lock_delay: Duration,
    /// A graceful stop gives up waiting for connections to close after this long
    pub stop_timeout: Duration,
    /// Accounts are listed anew this often, hints aside
    pub account_scan: Duration,

    /// Shared mode: at most one account moves voluntarily per this interval
    pub rebalance_interval: Duration,
    /// Shared mode: an account stays at least this long where it is
    pub residency: Duration,
    /// What nobody owned for this long may be taken beyond the fair share, and by who had given it up
    pub unowned_bound: Duration,
    /// An instance that reaches the store but not WhatsApp for this long releases its accounts
    pub cut_off_after: Duration,

    /// Automatic backfill
    pub auto_backfill: AutoBackfill,
    /// The gap filler
    pub recent_sync: RecentSync,
    /// What may be asked of a phone
    pub phone: PhoneLimits,
    /// Sending
    pub outbox: OutboxLimits,

    /// Two connects of one process are at least this far apart
    pub connect_stagger: Duration,
    /// First wait before a reconnect; doubles with every failure
    pub reconnect_min: Duration,
    /// Longest wait before a reconnect
    pub reconnect_max: Duration,
    /// Realtime stamps on an account are written at most once per this interval
    pub realtime_stamp: Duration,
    /// An idle gap filler stamps the account at most once per this interval
    pub idle_stamp: Duration,
    /// Where WhatsApp credentials are kept (`SESSION_STORE`)
    pub credentials: Credentials,
    /// The rule that is broken on purpose
    #[cfg(feature = "bugs")]
    #[cfg_attr(feature = "serde", serde(skip))]
    pub bug: Option<crate::bug::Bug>,
}

/// Where WhatsApp credentials are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Credentials {
    /// On this host: an account paired elsewhere cannot be served here
    Local,
    /// In the common store: they follow the account
    Shared,
}

/// Whether one instance is active at a time or all are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum InstanceMode {
    /// One instance is ACTIVE and serves every account, the others are PASSIVE
    Exclusive,
    /// All instances are ACTIVE and share the accounts
    Shared {
        /// Names the group of instances that share
        cluster: SmolStr,
    },
}

/// Automatic backfill: on connect and periodic.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AutoBackfill {
    /// `AUTO_BACKFILL_ENABLED`
    pub enabled: bool,
    /// `AUTO_BACKFILL_INTERVAL_MS`: a tick this often
    pub interval: Duration,
    /// `AUTO_BACKFILL_COOLDOWN_SUCCESS_MS`: no periodic run this soon after a complete one
    pub cooldown: Duration,
    /// `AUTO_BACKFILL_ATTEMPT_BACKOFF_MS`: no automatic run this soon after any attempt
    pub backoff: Duration,
    /// `AUTO_BACKFILL_LEASE_MS`: term of a run's lease
    pub lease: Duration,
    /// `AUTO_BACKFILL_MAX_ACCOUNTS_PER_TICK`: a tick starts at most this many runs
    pub max_accounts_per_tick: u32,
    /// `AUTO_BACKFILL_MAX_CONCURRENCY`: at most this many runs work at any instant
    pub max_concurrency: u32,
    /// A connect is followed by a run after at least this long
    pub connect_jitter_min: Duration,
    /// and at most this long
    pub connect_jitter_max: Duration,
    /// `WHATSAPP_BACKFILL_THREADS`: newest threads per run
    pub threads: u32,
    /// `WHATSAPP_BACKFILL_COUNT`: depth to reach, in messages per thread
    pub depth: u32,
    /// `WHATSAPP_BACKFILL_MESSAGES_PER_THREAD`: messages per request to the phone, at most 50
    pub page: u32,
}

/// The gap filler.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RecentSync {
    /// `RECENT_SYNC_ENABLED`
    pub enabled: bool,
    /// `RECENT_SYNC_INTERVAL_MS`: a tick this often
    pub interval: Duration,
    /// `RECENT_SYNC_MAX_THREADS`: newest threads per account and tick
    pub max_threads: u32,
    /// `RECENT_SYNC_MAX_MESSAGES_PER_THREAD`: messages per request to the phone, at most 50
    pub page: u32,
    /// `RECENT_SYNC_LEASE_MS`: term of a run's lease
    pub lease: Duration,
    /// `RECENT_SYNC_LOOKBACK_MS`: holes that end longer ago are left to the backfill
    pub lookback: Duration,
    /// `RECENT_SYNC_MAX_CONCURRENCY`: at most this many runs work at any instant
    pub max_concurrency: u32,
}

/// What may be asked of a phone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PhoneLimits {
    /// `PHONE_REQUEST_SPACING_MS`: two requests of one account are at least this far apart
    pub spacing: Duration,
    /// `PHONE_REQUEST_TIMEOUT_MS`: an answer is waited for this long
    pub timeout: Duration,
    /// A request leaves within this time after its reservation, or not at all
    pub send_window: Duration,
    /// Requests per anchor, after which its hole counts as exhausted
    pub tries: u32,
}

/// Sending.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct OutboxLimits {
    /// The outbox is looked through this often, hints aside
    pub poll: Duration,
    /// A claim is shown to other readers as valid for this long
    pub claim: Duration,
    /// Attempts, after which a message has failed
    pub max_attempts: u32,
    /// First wait before another attempt; doubles with every failure
    pub retry: Duration,
}

impl Settings {
    /// The defaults of exclusive mode.
    pub fn exclusive(instance: InstanceId) -> Self {
        Self {
            instance,
            url: None,
            mode: InstanceMode::Exclusive,
            session_term: secs(90),
            session_renewal: secs(30),
            clock_rate_ppm: 10_000,
            margin: secs(10),
            close_timeout: secs(3),
            read_timeout: secs(2),
            write_timeout: secs(3),
            passive_retry: secs(15),
            lock_delay: secs(5),
            stop_timeout: secs(10),
            account_scan: secs(600),
            rebalance_interval: secs(60),
            residency: secs(600),
            unowned_bound: secs(120),
            cut_off_after: secs(300),
            auto_backfill: AutoBackfill {
                enabled: true,
                interval: secs(720),
                cooldown: secs(21_600),
                backoff: secs(600),
                lease: secs(900),
                max_accounts_per_tick: 3,
                max_concurrency: 1,
                connect_jitter_min: secs(10),
                connect_jitter_max: secs(40),
                threads: 50,
                depth: 100,
                page: 20,
            },
            recent_sync: RecentSync {
                enabled: true,
                interval: secs(120),
                max_threads: 30,
                page: 20,
                lease: secs(300),
                lookback: secs(21_600),
                max_concurrency: 1,
            },
            phone: PhoneLimits {
                spacing: secs(30),
                timeout: secs(60),
                send_window: secs(5),
                tries: 2,
            },
            outbox: OutboxLimits {
                poll: secs(30),
                claim: secs(60),
                max_attempts: 5,
                retry: secs(5),
            },
            connect_stagger: Duration::from_millis(500),
            reconnect_min: secs(1),
            reconnect_max: secs(300),
            realtime_stamp: secs(1),
            idle_stamp: secs(900),
            credentials: Credentials::Local,
            #[cfg(feature = "bugs")]
            bug: None,
        }
    }

    /// The defaults of shared mode.
    pub fn shared(instance: InstanceId, cluster: impl Into<SmolStr>) -> Self {
        Self {
            mode: InstanceMode::Shared { cluster: cluster.into() },
            session_term: secs(30),
            session_renewal: secs(10),
            margin: secs(5),
            ..Self::exclusive(instance)
        }
    }
}

/// Settings that fit together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy(Settings);

impl Policy {
    /// Accepts settings that fit together.
    ///
    /// # Errors
    /// Every problem there is, not only the first.
    pub fn new(settings: Settings) -> Result<Self, PolicyErrors> {
        let problems = problems(&settings);
        if problems.is_empty() { Ok(Self(settings)) } else { Err(PolicyErrors(problems)) }
    }

    /// How long after sending a renewal that took effect the sender may still believe.
    pub fn belief(&self, term: Duration) -> Duration {
        belief(term, self.0.clock_rate_ppm, self.0.margin)
    }
}

impl Deref for Policy {
    type Target = Settings;

    fn deref(&self) -> &Settings {
        &self.0
    }
}

/// All that is wrong with some settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyErrors(pub Vec<PolicyError>);

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyErrors {}

/// One thing that is wrong with some settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}: {expected}")]
pub struct PolicyError {
    /// The field of [`Settings`], with dots
    pub field: &'static str,
    /// What it is
    pub value: String,
    /// What would be right, and why
    pub expected: String,
}

fn problems(s: &Settings) -> Vec<PolicyError> {
    let mut found = Vec::new();
    let mut check = |ok: bool, field: &'static str, value: String, expected: String| {
        if !ok {
            found.push(PolicyError { field, value, expected });
        }
    };

    let positive = [
        ("session_term", s.session_term),
        ("session_renewal", s.session_renewal),
        ("margin", s.margin),
        ("close_timeout", s.close_timeout),
        ("read_timeout", s.read_timeout),
        ("write_timeout", s.write_timeout),
        ("passive_retry", s.passive_retry),
        ("stop_timeout", s.stop_timeout),
        ("account_scan", s.account_scan),
        ("rebalance_interval", s.rebalance_interval),
        ("cut_off_after", s.cut_off_after),
        ("auto_backfill.interval", s.auto_backfill.interval),
        ("auto_backfill.backoff", s.auto_backfill.backoff),
        ("auto_backfill.lease", s.auto_backfill.lease),
        ("recent_sync.interval", s.recent_sync.interval),
        ("recent_sync.lease", s.recent_sync.lease),
        ("recent_sync.lookback", s.recent_sync.lookback),
        ("phone.timeout", s.phone.timeout),
        ("phone.send_window", s.phone.send_window),
        ("outbox.poll", s.outbox.poll),
        ("outbox.claim", s.outbox.claim),
        ("outbox.retry", s.outbox.retry),
        ("reconnect_min", s.reconnect_min),
        ("realtime_stamp", s.realtime_stamp),
    ];
    for (field, value) in positive {
        check(value >= MS, field, show(value), "must be at least 1 ms".into());
    }
    for (field, value) in positive {
        check(value <= YEAR, field, show(value), "must be at most 365 days".into());
    }

    let bounded = [
        ("lock_delay", s.lock_delay),
        ("residency", s.residency),
        ("unowned_bound", s.unowned_bound),
        ("auto_backfill.cooldown", s.auto_backfill.cooldown),
        ("auto_backfill.connect_jitter_max", s.auto_backfill.connect_jitter_max),
        ("phone.spacing", s.phone.spacing),
        ("connect_stagger", s.connect_stagger),
        ("reconnect_max", s.reconnect_max),
        ("idle_stamp", s.idle_stamp),
    ];
    for (field, value) in bounded {
        check(value <= YEAR, field, show(value), "must be at most 365 days".into());
    }

    let counts = [
        ("auto_backfill.max_accounts_per_tick", s.auto_backfill.max_accounts_per_tick, u32::MAX),
        ("auto_backfill.max_concurrency", s.auto_backfill.max_concurrency, u32::MAX),
        ("auto_backfill.threads", s.auto_backfill.threads, 500),
        ("auto_backfill.depth", s.auto_backfill.depth, 100_000),
        ("auto_backfill.page", s.auto_backfill.page, 50),
        ("recent_sync.max_threads", s.recent_sync.max_threads, 500),
        ("recent_sync.page", s.recent_sync.page, 50),
        ("recent_sync.max_concurrency", s.recent_sync.max_concurrency, u32::MAX),
        ("phone.tries", s.phone.tries, 2),
        ("outbox.max_attempts", s.outbox.max_attempts, 100),
    ];
    for (field, value, most) in counts {
        let range = match most {
            u32::MAX => "must be at least 1".to_owned(),
            _ => format!("must be from 1 to {most}"),
        };
        check((1..=most).contains(&value), field, value.to_string(), range);
    }

    check(
        s.clock_rate_ppm <= 100_000,
        "clock_rate_ppm",
        s.clock_rate_ppm.to_string(),
        "must be at most 100000 (10 %)".into(),
    );
    check(
        s.session_renewal < s.session_term / 2,
        "session_renewal",
        show(s.session_renewal),
        format!("must be below half of session_term ({})", show(s.session_term)),
    );
    let drift = s.session_term.saturating_mul(s.clock_rate_ppm.min(100_000)) / 1_000_000;
    check(
        s.margin > drift.saturating_mul(2),
        "margin",
        show(s.margin),
        format!("must be above twice what clocks may drift in a term ({})", show(drift)),
    );
    check(
        s.margin >= s.close_timeout,
        "margin",
        show(s.margin),
        format!("must not be below close_timeout ({})", show(s.close_timeout)),
    );
    check(
        s.stop_timeout >= s.close_timeout,
        "stop_timeout",
        show(s.stop_timeout),
        format!("must not be below close_timeout ({})", show(s.close_timeout)),
    );
    let belief = belief(s.session_term, s.clock_rate_ppm, s.margin);
    let worst_renewal = s
        .session_renewal
        .saturating_add(s.write_timeout.saturating_add(s.read_timeout).saturating_mul(2));
    check(
        worst_renewal <= belief,
        "session_renewal",
        show(s.session_renewal),
        format!(
            "with two write and read timeouts it is {}, more than the {} for which a renewal holds",
            show(worst_renewal),
            show(belief)
        ),
    );
    for (field, lease) in
        [("auto_backfill.lease", s.auto_backfill.lease), ("recent_sync.lease", s.recent_sync.lease)]
    {
        check(
            belief_exceeds_third(lease, s),
            field,
            show(lease),
            format!("is too short to be renewed each third with a margin of {}", show(s.margin)),
        );
    }
    check(
        s.auto_backfill.backoff <= s.auto_backfill.cooldown,
        "auto_backfill.backoff",
        show(s.auto_backfill.backoff),
        format!("must not be above the cooldown ({})", show(s.auto_backfill.cooldown)),
    );
    check(
        s.auto_backfill.connect_jitter_min <= s.auto_backfill.connect_jitter_max,
        "auto_backfill.connect_jitter_min",
        show(s.auto_backfill.connect_jitter_min),
        format!("must not be above the maximum ({})", show(s.auto_backfill.connect_jitter_max)),
    );
    check(
        s.phone.spacing >= secs(5),
        "phone.spacing",
        show(s.phone.spacing),
        "must be at least 5 s, or the phone stops answering".into(),
    );
    check(
        s.phone.send_window <= secs(5),
        "phone.send_window",
        show(s.phone.send_window),
        "must be at most 5 s".into(),
    );
    check(
        s.reconnect_min <= s.reconnect_max,
        "reconnect_min",
        show(s.reconnect_min),
        format!("must not be above reconnect_max ({})", show(s.reconnect_max)),
    );
    if let InstanceMode::Shared { cluster } = &s.mode {
        check(
            !cluster.is_empty(),
            "mode.cluster",
            "empty".into(),
            "must name the group of instances that share the accounts".into(),
        );
    }
    found
}

fn belief(term: Duration, ppm: u32, margin: Duration) -> Duration {
    let drift = term.saturating_mul(ppm.min(1_000_000)) / 1_000_000;
    term.saturating_sub(drift).saturating_sub(margin)
}

fn belief_exceeds_third(lease: Duration, s: &Settings) -> bool {
    let renewal = (lease / 3)
        .saturating_add(s.write_timeout.saturating_add(s.read_timeout).saturating_mul(2));
    renewal <= belief(lease, s.clock_rate_ppm, s.margin)
}

fn show(d: Duration) -> String {
    if d.as_millis().is_multiple_of(1_000) {
        format!("{} s", d.as_secs())
    } else {
        format!("{} ms", d.as_millis())
    }
}

const fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

const MS: Duration = Duration::from_millis(1);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::exclusive(InstanceId::parse("i1").unwrap())
    }

    fn fields(s: Settings) -> Vec<&'static str> {
        Policy::new(s).err().map(|e| e.0.iter().map(|p| p.field).collect()).unwrap_or_default()
    }

    #[test]
    fn the_defaults_of_both_modes_fit_together() {
        assert_eq!(fields(settings()), Vec::<&str>::new());
        assert_eq!(fields(Settings::shared(settings().instance, "c")), Vec::<&str>::new());
        let shared = Settings::shared(settings().instance, "c");
        assert_eq!(shared.mode, InstanceMode::Shared { cluster: "c".into() });
        assert_eq!((shared.session_term, shared.session_renewal), (secs(30), secs(10)));
        assert_eq!(fields(shared), Vec::<&str>::new());
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let mut s = settings();
        s.session_renewal = secs(45);
        s.margin = Duration::from_millis(1_800);
        s.auto_backfill.interval = Duration::ZERO;
        s.auto_backfill.max_concurrency = 0;
        s.auto_backfill.backoff = secs(21_601);
        s.phone.spacing = secs(4);
        s.phone.tries = 3;
        s.mode = InstanceMode::Shared { cluster: SmolStr::default() };
        assert_eq!(
            fields(s),
            [
                "auto_backfill.interval",
                "auto_backfill.max_concurrency",
                "phone.tries",
                "session_renewal",
                "margin",
                "margin",
                "auto_backfill.backoff",
                "phone.spacing",
                "mode.cluster",
            ]
        );
    }

    #[test]
    fn every_duration_has_a_limit() {
        let mut s = settings();
        s.phone.spacing = Duration::MAX;
        s.reconnect_max = Duration::MAX;
        s.lock_delay = Duration::MAX;
        assert_eq!(fields(s), ["lock_delay", "phone.spacing", "reconnect_max"]);
    }

    #[test]
    fn stopping_leaves_time_to_close() {
        let mut s = settings();
        s.stop_timeout = secs(2);
        assert_eq!(fields(s), ["stop_timeout"]);
    }

    #[test]
    fn a_renewal_that_could_come_too_late_is_refused() {
        let mut s = settings();
        s.write_timeout = secs(15);
        s.read_timeout = secs(15);
        assert!(fields(s).contains(&"session_renewal"));
    }

    #[test]
    fn errors_name_field_value_and_what_is_right() {
        let mut s = settings();
        s.phone.spacing = Duration::from_millis(4_500);
        let text = Policy::new(s).unwrap_err().to_string();
        assert_eq!(
            text,
            "phone.spacing is 4500 ms: must be at least 5 s, or the phone stops answering"
        );
    }

    #[test]
    fn each_problem_has_a_line_of_its_own() {
        let mut s = settings();
        s.auto_backfill.max_accounts_per_tick = 0;
        s.auto_backfill.page = 51;
        let text = Policy::new(s).unwrap_err().to_string();
        assert_eq!(
            text,
            "auto_backfill.max_accounts_per_tick is 0: must be at least 1\n\
             auto_backfill.page is 51: must be from 1 to 50"
        );
    }

    #[test]
    fn a_renewal_holds_for_the_term_without_drift_and_margin() {
        let mut s = settings();
        (s.clock_rate_ppm, s.margin) = (10_000, secs(10));
        assert_eq!(Policy::new(s).unwrap().belief(secs(100)), secs(100 - 1 - 10));
    }

    #[test]
    fn a_run_lease_that_could_not_be_renewed_in_time_is_refused() {
        let mut s = settings();
        s.recent_sync.lease = secs(20);
        assert_eq!(fields(s), ["recent_sync.lease"]);
    }

    #[test]
    fn absurd_durations_are_refused_without_overflow() {
        let mut s = settings();
        s.session_term = Duration::MAX;
        s.write_timeout = Duration::MAX;
        s.clock_rate_ppm = u32::MAX;
        assert!(!fields(s).is_empty());
    }
}
