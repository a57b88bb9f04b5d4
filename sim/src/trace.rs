//! What happened, for people: recorded only when somebody asks for it.

use backfill_core::doc::{DocPath, Write};
use backfill_core::io::{Input, Output};
use backfill_core::time::Mono;

use crate::clock::Real;
use crate::scenario::Fault;

/// A record of a run. Switched off it costs a branch.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    entries: Option<Vec<(Real, Entry)>>,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Entry {
    /// Messages were acknowledged to WhatsApp
    Acknowledged {
        /// By which process
        process: u32,
        /// Of which account
        account: u16,
        /// How many
        messages: u32,
    },
    /// Until when a process believes to own something
    Belief {
        /// Which process
        process: u32,
        /// Which account; `None` is the lock
        account: Option<u16>,
        /// Under which epoch
        epoch: u64,
        /// Until when; [`Real::ZERO`]: not any more
        until: Real,
    },
    /// The store did what it was asked, or refused
    Commit {
        /// Who asked; `None` is somebody who is not ours
        process: Option<u32>,
        /// It was applied
        applied: bool,
        /// It came late, or a second time
        late: bool,
        /// What was asked
        writes: Vec<Write>,
    },
    /// A connection to WhatsApp opened or closed
    Connection {
        /// Whose
        process: u32,
        /// Of which account
        account: u16,
        /// It is open
        open: bool,
    },
    /// A process ended
    Ended {
        /// Which
        process: u32,
        /// It had been asked to
        graceful: bool,
    },
    /// A fault began, or ended
    Fault {
        /// Which
        fault: Fault,
        /// It began
        on: bool,
    },
    /// A process was told something
    Input {
        /// Which
        process: u32,
        /// What its clock showed
        mono: Mono,
        /// What
        input: Input,
    },
    /// A process wants something
    Output {
        /// Which
        process: u32,
        /// What
        output: Output,
    },
    /// A process was paused
    Paused {
        /// Which
        process: u32,
        /// Until when
        until: Real,
    },
    /// A phone was asked, or answered
    Phone {
        /// Of which account
        account: u16,
        /// By, or for, which process
        process: u32,
        /// In which request
        request: u64,
        /// The messages of an answer; `None` is the question
        messages: Option<u32>,
    },
    /// A read
    Read {
        /// Who
        process: u32,
        /// The documents
        paths: Vec<DocPath>,
    },
    /// A process went on
    Resumed {
        /// Which
        process: u32,
    },
    /// A process started
    Started {
        /// Its number
        process: u32,
        /// Of which instance
        instance: u8,
    },
    /// A property was violated
    Violation {
        /// Which
        check: &'static str,
        /// How
        text: String,
    },
}

impl Trace {
    /// A trace that records.
    pub fn recording() -> Self {
        Self { entries: Some(Vec::new()) }
    }

    /// Records something, if recording.
    #[inline]
    pub fn note(&mut self, at: Real, entry: impl FnOnce() -> Entry) {
        if let Some(entries) = &mut self.entries {
            entries.push((at, entry()));
        }
    }

    /// Whether it records.
    pub const fn is_recording(&self) -> bool {
        self.entries.is_some()
    }

    /// What was recorded, in order.
    pub fn entries(&self) -> &[(Real, Entry)] {
        self.entries.as_deref().unwrap_or_default()
    }
}
