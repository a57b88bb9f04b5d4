//! Wrong rules, one by one, to prove that the simulator notices each of them.
//!
//! Only builds with the feature `bugs` can switch one on; in every other build the question is a
//! constant `false` and the wrong branch does not exist.

macro_rules! bugs {
    ($(#[doc = $describe:literal] $bug:ident = $name:literal,)*) => {
        /// One rule that is broken on purpose.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Bug {
            $(#[doc = $describe] $bug,)*
        }

        impl Bug {
            /// Every one, in order of name.
            pub const ALL: &[Self] = &[$(Self::$bug,)*];

            /// What commands and tables call it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$bug => $name,)*
                }
            }

            /// What it does.
            pub const fn describe(self) -> &'static str {
                match self {
                    $(Self::$bug => $describe.trim_ascii_start(),)*
                }
            }

            /// The one with this name.
            pub fn named(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|bug| bug.name() == name)
            }
        }
    };
}

bugs! {
    /// Owners and locks are taken without renewing the own session in the same commit
    AcquireNotTiedToSession = "acquire-not-tied-to-session",
    /// A page is asked for from the oldest known message instead of the hole's upper end
    AnchorAtOldest = "anchor-at-oldest",
    /// An attempt a moment ago does not keep an account from the next one
    BackoffIgnored = "backoff-ignored",
    /// The concurrency cap counts a run only once its lease is held
    CapCountedLate = "cap-counted-late",
    /// Connecting does not need the account's ownership to be confirmed
    ConnectBeforeOwnership = "connect-before-ownership",
    /// An account is taken although its credentials lie on another host
    CredentialsIgnored = "credentials-ignored",
    /// The per-tick cap cuts before accounts in cooldown are filtered out
    CutBeforeFilter = "cut-before-filter",
    /// An expired session is marked dead at first sight
    DeadMarkAfterOneLook = "dead-mark-after-one-look",
    /// The own deadline counts from the answer of a renewal, not from its sending
    DeadlineFromAnswer = "deadline-from-answer",
    /// A short offline drain counts as complete
    DrainTrusted = "drain-trusted",
    /// Effects carry no `not_after`
    EffectsNeverExpire = "effects-never-expire",
    /// The phone is asked for an exhausted hole again and again
    EndlessTries = "endless-tries",
    /// Expiry is judged by the `until` that the holder wrote from its own clock
    ExpiryByWrittenUntil = "expiry-by-written-until",
    /// Commits about an account carry no fence
    FenceMissing = "fence-missing",
    /// Every renewal also touches the account's ownership document
    FenceMovedByRenewal = "fence-moved-by-renewal",
    /// A new WhatsApp id for every attempt to send
    FreshIdPerAttempt = "fresh-id-per-attempt",
    /// Compare-and-set writes leave the document as it is
    GuardDoesNotMoveVersion = "guard-does-not-move-version",
    /// The run after a connect starts although the account has disconnected meanwhile
    JitterIgnoresDisconnect = "jitter-ignores-disconnect",
    /// A boot whose deadline has passed believes again after a late renewal
    LapsedBootBelieves = "lapsed-boot-believes",
    /// Expiry is judged by the local clock
    LocalClockExpiry = "local-clock-expiry",
    /// A takeover does not wait for the lock-delay and does not keep a margin
    MarginMissing = "margin-missing",
    /// No `connected` marker: a crash leaves no disconnect record
    MarkerMissing = "marker-missing",
    /// Sessions are not renewed
    NoRenewal = "no-renewal",
    /// The lease that a Node instance shows on an account is ignored
    NodeLeaseIgnored = "node-lease-ignored",
    /// The lock that a Node instance holds is ignored
    NodeLockIgnored = "node-lock-ignored",
    /// What a Node instance received while it had the accounts is taken for stored
    NodeTrusted = "node-trusted",
    /// Due accounts are ordered by their last success alone
    OrderBySuccessAlone = "order-by-success-alone",
    /// A tick starts while runs of the tick before still work
    OverlappingTicks = "overlapping-ticks",
    /// A history chunk is parsed before it is spooled
    ParseBeforeSpool = "parse-before-spool",
    /// A manual run is accepted and a due tick runs while passive or stepping down
    PassiveGateMissing = "passive-gate-missing",
    /// The lock and the sessions are looked at ten times a second
    PollsWithoutPause = "polls-without-pause",
    /// A released account's connection is closed after the release
    ReleaseBeforeClose = "release-before-close",
    /// After a release with unknown outcome the owner goes on
    ReleaseWithdrawn = "release-withdrawn",
    /// The phone is asked without a reservation
    ReservationNotPersisted = "reservation-not-persisted",
    /// A run's lease names its holder from the first renewal on, not from the start
    RunningBeforeLease = "running-before-lease",
    /// `running: true` in the status keeps an account from ever running again
    RunningTrusted = "running-trusted",
    /// Own label on the lock counts as holding it
    SameInstanceIdTrusted = "same-instance-id-trusted",
    /// A claimed message is sent before the claim is durable
    SendBeforeClaim = "send-before-claim",
    /// Requests to a phone follow each other without spacing
    SpacingIgnored = "spacing-ignored",
    /// Account fields are written without compare-and-set
    StatusWithoutCompareAndSet = "status-without-compare-and-set",
    /// A graceful stop takes the time that a run may want
    StopWaitsForRuns = "stop-waits-for-runs",
    /// A graceful stop leaves the session to expire
    StopWithoutEnd = "stop-without-end",
    /// A successor ignores a reservation that is still in flight
    SuccessorIgnoresReservation = "successor-ignores-reservation",
    /// An unknown outcome counts as failure
    UnknownAsFailure = "unknown-as-failure",
    /// An unknown outcome counts as success
    UnknownAsSuccess = "unknown-as-success",
    /// The next wake-up is asked for a second after something is due
    WakesLate = "wakes-late",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order_lead_back_and_describe() {
        assert!(Bug::ALL.is_sorted_by(|a, b| a.name() < b.name()));
        for bug in Bug::ALL {
            assert_eq!(Bug::named(bug.name()), Some(*bug));
            assert!(bug.describe().len() > 10, "{bug:?}");
        }
        assert_eq!(Bug::named("none-such"), None);
    }
}
