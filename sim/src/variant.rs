//! Worlds in which one rule is broken on purpose, to prove that the checks notice.

use backfill_core::bug::Bug;

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
    /// A live message that could not be stored is logged, acknowledged and forgotten
    FailedWriteOnlyLogged = "failed-write-only-logged",
    /// The commit that says `running` depends on nothing but the fence: a late one undoes `ok`
    LateRunningAfterOk = "late-running-after-ok",
    /// Effects start without a look at their `not_after`
    NotAfterUnchecked = "not-after-unchecked",
    /// A thread's summary is written from the message at hand, whatever it shows already
    SummaryMovesBackwards = "summary-moves-backwards",
}

impl Variant {
    /// Every one: those of the core, then those of the shell.
    pub fn all() -> impl Iterator<Item = Self> {
        let core = Bug::ALL.iter().copied().map(Self::Core);
        core.chain(Slip::ALL.iter().copied().map(Self::Shell))
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
