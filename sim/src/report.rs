//! What came of a run.

use serde::Serialize;

use crate::clock::Real;
use crate::scenario::Kind;

/// What came of one run of one scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The scenario's seed
    pub seed: u64,
    /// What was wrong, in the order in which it was noticed
    pub violations: Vec<Violation>,
    /// How often each of the things happened that have to happen sometimes
    pub sometimes: Sometimes,
    /// How often each fault struck, by name
    pub faults: Vec<(&'static str, u64)>,
    /// Events that the world carried out
    pub events: u64,
    /// How many there were of each kind, and how many requests of each kind went to the store
    pub census: Vec<(&'static str, u64)>,
    /// How long the world lived, in milliseconds
    pub simulated_ms: u64,
}

/// Something that must never be so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Which property: `S1` … `S13`, `L1` … `L6`
    pub check: &'static str,
    /// When
    pub at: Real,
    /// What
    pub text: String,
}

macro_rules! sometimes {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a campaign has to reach, and how often a run did.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Sometimes {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Sometimes {
            /// Name and count of each.
            pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }

            /// Adds what another run reached.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

sometimes! {
    /// Every process was down for longer than a session's term
    all_down_longer_than_a_term,
    /// A tick left accounts for later because it had started as many as it may
    cap_reached,
    /// The rate of a clock changed while its instance held something, or the store's was stepped
    clock_step_while_holding,
    /// A tick passed an account over for cooldown or backoff, and a later one started it
    cooldown_blocked_then_released,
    /// The phone answered once more after it had answered
    duplicate_reply_ignored,
    /// What of an account's history lies within the depth of the backfill was judged
    depth_judged,
    /// Messages of a history page or chunk created their thread
    history_before_its_thread,
    /// A hole was given up
    hole_exhausted,
    /// A hole was closed
    hole_filled,
    /// A disconnection that may have lost messages was found
    hole_found,
    /// A request that came late, or a second time, was refused by a precondition
    late_apply_refused,
    /// What an account received within the lookback of recent sync was judged
    lookback_judged,
    /// An instance that held accounts stopped being active
    mode_flip_while_holding,
    /// An account was given back by one living instance and taken by another
    rebalanced,
    /// A renewal took effect although its sender had no answer, and the session went on
    renewal_lost_then_confirmed,
    /// An instance stayed passive because another has the same label
    same_instance_id_twice,
    /// A write of somebody who had lost the account was refused by the fence
    stale_write_refused,
    /// An account was taken from a process that had died
    takeover_after_crash,
    /// An account was taken from a paused process, which woke up afterwards
    takeover_after_pause,
    /// The outcome of a commit was unknown, and it had been applied
    unknown_had_applied,
    /// The outcome of a commit was unknown, and it had not been applied
    unknown_had_not_applied,
}

/// Names and counts of the faults that struck at least once.
pub fn fault_counts(struck: &[u64; Kind::COUNT]) -> Vec<(&'static str, u64)> {
    struck.iter().enumerate().filter(|(_, n)| **n > 0).map(|(i, n)| (Kind::name(i), *n)).collect()
}
