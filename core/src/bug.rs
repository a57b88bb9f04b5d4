//! Wrong rules, one by one, to prove that the simulator notices each of them.
//!
//! Only builds with the feature `bugs` can switch one on; in every other build the question is a
//! constant `false` and the wrong branch does not exist.

/// One rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    not(feature = "bugs"),
    allow(dead_code, reason = "named at the sites, never switched on")
)]
pub enum Bug {
    /// Owners and locks are taken without renewing the own session in the same commit
    AcquireNotTiedToSession,
    /// A page is asked for from the oldest known message instead of the hole's upper end
    AnchorAtOldest,
    /// The concurrency cap counts a run only once its lease is held
    CapCountedLate,
    /// The per-tick cap cuts before accounts in cooldown are filtered out
    CutBeforeFilter,
    /// An expired session is marked dead at first sight
    DeadMarkAfterOneLook,
    /// The own deadline counts from the answer of a renewal, not from its sending
    DeadlineFromAnswer,
    /// A short offline drain counts as complete
    DrainTrusted,
    /// Effects carry no `not_after`
    EffectsNeverExpire,
    /// The phone is asked for an exhausted hole again and again
    EndlessTries,
    /// Expiry is judged by the `until` that the holder wrote from its own clock
    ExpiryByWrittenUntil,
    /// Every renewal also touches the account's ownership document
    FenceMovedByRenewal,
    /// Commits about an account carry no fence
    FenceMissing,
    /// A new WhatsApp id for every attempt to send
    FreshIdPerAttempt,
    /// Compare-and-set writes leave the document as it is
    GuardDoesNotMoveVersion,
    /// A claimed message is sent before the claim is durable
    SendBeforeClaim,
    /// The run after a connect starts although the account has disconnected meanwhile
    JitterIgnoresDisconnect,
    /// A boot whose deadline has passed believes again after a late renewal
    LapsedBootBelieves,
    /// Expiry is judged by the local clock
    LocalClockExpiry,
    /// A takeover does not wait for the lock-delay and does not keep a margin
    MarginMissing,
    /// No `connected` marker: a crash leaves no disconnect record
    MarkerMissing,
    /// Sessions are not renewed
    NoRenewal,
    /// Due accounts are ordered by their last success alone
    OrderBySuccessAlone,
    /// Connecting does not need the account's ownership to be confirmed
    ConnectBeforeOwnership,
    /// A tick starts while runs of the tick before still work
    OverlappingTicks,
    /// A history chunk is parsed before it is spooled
    ParseBeforeSpool,
    /// A manual run is accepted and a due tick runs while passive or stepping down
    PassiveGateMissing,
    /// A released account's connection is closed after the release
    ReleaseBeforeClose,
    /// After a release with unknown outcome the owner goes on
    ReleaseWithdrawn,
    /// The phone is asked without a reservation
    ReservationNotPersisted,
    /// A run's state is written without looking whether it changed meanwhile
    RunStateUnguarded,
    /// `running: true` in the status keeps an account from ever running again
    RunningTrusted,
    /// Own label on the lock counts as holding it
    SameInstanceIdTrusted,
    /// Requests to a phone follow each other without spacing
    SpacingIgnored,
    /// Account fields are written without compare-and-set
    StatusWithoutCompareAndSet,
    /// A successor ignores a reservation that is still in flight
    SuccessorIgnoresReservation,
    /// An unknown outcome counts as failure
    UnknownAsFailure,
    /// An unknown outcome counts as success
    UnknownAsSuccess,
    /// Releases overwrite whatever is there
    UnconditionalRelease,
}
