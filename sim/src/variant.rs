//! Worlds in which one rule is broken on purpose, to prove that the checks notice.

use backfill_core::bug::Bug;

use crate::scenario::Scenario;
use crate::{focus, swarm};

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// By the core
    Core(Bug),
    /// By the shell around it
    Shell(Slip),
}

macro_rules! slips {
    ($(#[doc = $describe:literal] $slip:ident = $name:literal,)*) => {
        /// What a shell can get wrong although its core is right.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Slip {
            $(#[doc = $describe] $slip,)*
        }

        impl Slip {
            /// Every one, in order of name.
            pub const ALL: &[Self] = &[$(Self::$slip,)*];

            const fn name(self) -> &'static str {
                match self {
                    $(Self::$slip => $name,)*
                }
            }

            const fn describe(self) -> &'static str {
                match self {
                    $(Self::$slip => $describe.trim_ascii_start(),)*
                }
            }
        }
    };
}

slips! {
    /// A message is acknowledged to WhatsApp before its commit
    AckBeforeDurable = "ack-before-durable",
    /// Whichever edit of a message arrives last counts as the latest
    EditsByArrival = "edits-by-arrival",
    /// A live message that could not be stored is logged, acknowledged and forgotten
    FailedWriteOnlyLogged = "failed-write-only-logged",
    /// The commit that says `running` depends on nothing but the fence: a late one undoes `ok`
    LateRunningAfterOk = "late-running-after-ok",
    /// Effects start without a look at their `not_after`
    NotAfterUnchecked = "not-after-unchecked",
    /// What the owner writes on the phone is stored as if somebody else had written it
    OwnTakenForInbound = "own-taken-for-inbound",
    /// What becomes of a message that is not stored yet is acknowledged and forgotten
    ReportsDropped = "reports-dropped",
    /// Writes of a run's state depend on nothing: neither fence nor compare-and-set
    RunStateUnfenced = "run-state-unfenced",
    /// A thread's summary is written from the message at hand, whatever it shows already
    SummaryMovesBackwards = "summary-moves-backwards",
    /// Nobody is told which LID is which phone number
    TwinsUnknown = "twins-unknown",
    /// Releases overwrite whatever is there, by now perhaps somebody else's
    UnconditionalRelease = "unconditional-release",
}

impl Variant {
    /// Every one: those of the core, then those of the shell.
    pub fn all() -> impl Iterator<Item = Self> {
        let core = Bug::ALL.iter().copied().map(Self::Core);
        core.chain(Slip::ALL.iter().copied().map(Self::Shell))
    }

    /// The rule of the core that is broken; `None` if it is the shell's.
    pub const fn bug(self) -> Option<Bug> {
        match self {
            Self::Core(bug) => Some(bug),
            Self::Shell(_) => None,
        }
    }

    /// What commands, files and tables call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Core(bug) => bug.name(),
            Self::Shell(slip) => slip.name(),
        }
    }

    /// What it does.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Core(bug) => bug.describe(),
            Self::Shell(slip) => slip.describe(),
        }
    }

    /// The checks that have to notice it: others may stumble over what follows from it, which
    /// proves nothing.
    pub fn shown_by(self) -> &'static [&'static str] {
        match self {
            Self::Core(bug) => match bug {
                Bug::AcquireNotTiedToSession => &["S1", "S2", "S3"],
                Bug::AnchorAtOldest | Bug::DrainTrusted | Bug::MarkerMissing => &["L6"],
                Bug::NodeLeaseIgnored => &["S1"],
                Bug::NodeLockIgnored => &["S4"],
                Bug::NodeTrusted => &["L6"],
                Bug::BackoffIgnored => &["S8"],
                Bug::CapCountedLate | Bug::EndlessTries | Bug::OverlappingTicks => &["S7"],
                Bug::ConnectBeforeOwnership | Bug::JitterIgnoresDisconnect => &["S5"],
                Bug::CredentialsIgnored => &["S14"],
                Bug::CutBeforeFilter | Bug::OrderBySuccessAlone => &["L4"],
                Bug::DeadMarkAfterOneLook => &["S1"],
                Bug::DeadlineFromAnswer | Bug::LapsedBootBelieves => &["S2"],
                Bug::EffectsNeverExpire => &["S5"],
                Bug::ExpiryByWrittenUntil | Bug::LocalClockExpiry => &["S1"],
                Bug::FenceMissing => &["S3"],
                Bug::FenceMovedByRenewal => &["S3"],
                Bug::NoRenewal => &["L1"],
                Bug::FreshIdPerAttempt | Bug::SendBeforeClaim => &["S13"],
                Bug::GuardDoesNotMoveVersion => &["S1", "S9"],
                Bug::MarginMissing => &["S2"],
                Bug::ParseBeforeSpool => &["S12"],
                Bug::PassiveGateMissing => &["S6"],
                Bug::PollsWithoutPause => &["L3"],
                Bug::ReleaseBeforeClose => &["S4"],
                Bug::ReleaseWithdrawn => &["S1", "S2", "S3"],
                Bug::ReservationNotPersisted | Bug::SpacingIgnored => &["S4"],
                Bug::RunningBeforeLease => &["S11"],
                Bug::RunningTrusted => &["L2"],
                Bug::SameInstanceIdTrusted => &["S1", "S2"],
                Bug::StatusWithoutCompareAndSet => &["S9"],
                Bug::StopWaitsForRuns | Bug::StopWithoutEnd => &["L5"],
                Bug::SuccessorIgnoresReservation => &["S4"],
                Bug::UnknownAsFailure | Bug::UnknownAsSuccess => &["S9"],
                Bug::WakesLate => &["S10"],
            },
            Self::Shell(slip) => match slip {
                Slip::AckBeforeDurable | Slip::FailedWriteOnlyLogged => &["S12"],
                Slip::EditsByArrival | Slip::OwnTakenForInbound => &["S12"],
                Slip::LateRunningAfterOk => &["S8", "S11"],
                Slip::NotAfterUnchecked => &["S5"],
                Slip::RunStateUnfenced => &["S1", "S3"],
                Slip::ReportsDropped | Slip::SummaryMovesBackwards => &["S12"],
                Slip::TwinsUnknown => &["S12"],
                Slip::UnconditionalRelease => &["S1", "S3"],
            },
        }
    }

    /// The world of a seed in which it is looked for: mostly any.
    pub fn world(self, seed: u64) -> Scenario {
        match self {
            Self::Core(Bug::NodeLeaseIgnored | Bug::NodeLockIgnored | Bug::NodeTrusted) => {
                focus::migrations(seed)
            }
            Self::Core(Bug::OrderBySuccessAlone) => focus::failing(seed),
            Self::Core(Bug::OverlappingTicks) => focus::slow_runs(seed),
            Self::Core(Bug::RunningTrusted) => focus::crashes(seed),
            Self::Core(Bug::StopWaitsForRuns | Bug::StopWithoutEnd) => focus::handovers(seed),
            Self::Core(Bug::SuccessorIgnoresReservation) => focus::handovers(seed),
            _ => swarm::scenario(seed),
        }
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|variant| variant.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_lead_back() {
        let names: BTreeSet<&str> = Variant::all().map(Variant::name).collect();
        assert_eq!(names.len(), Variant::all().count());
        for variant in Variant::all() {
            assert_eq!(Variant::named(variant.name()), Some(variant));
        }
        assert!(Variant::all().count() >= 30);
    }
}
