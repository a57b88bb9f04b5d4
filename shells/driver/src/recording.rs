//! What one instance was told, written down so that another can be told the same.
//!
//! A core has no clock and no randomness: from its settings, its seed and its inputs it can be made
//! again, and does the same again. A recording holds documents as they are, with names and phone
//! numbers: it is meant for tests on invented accounts.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, Write};

use backfill_core::instance::Instance;
use backfill_core::io::{Input, Output};
use backfill_core::policy::{Policy, PolicyErrors, Settings};
use backfill_core::time::Mono;
use serde::{Deserialize, Serialize};

use crate::Observer;

/// Everything that one instance was told.
#[derive(Clone, Debug)]
pub struct Recording {
    /// What it went by
    pub policy: Policy,
    /// What made its boots and its jitter
    pub seed: [u8; 32],
    /// When it was made, by its own clock
    pub begun: Mono,
    /// What it was told, in order
    pub told: Vec<Told>,
}

/// One input, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// When, by the instance's own clock
    pub now: Mono,
    /// What it was told
    pub input: Input,
    /// The [`digest`] of what it did
    pub did: u64,
}

#[derive(Deserialize, Serialize)]
struct Begun {
    settings: Settings,
    seed: [u8; 32],
    begun: Mono,
}

/// Why a recording cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// It cannot be read at all
    #[error("the recording cannot be read")]
    Io(#[from] std::io::Error),
    /// A line is none of a recording
    #[error("line {line} is none of a recording")]
    Line {
        /// Which, counted from 1
        line: usize,
        /// Why
        source: serde_json::Error,
    },
    /// There is nothing in it
    #[error("the recording is empty")]
    Empty,
    /// Its settings do not fit together
    #[error("the settings of the recording do not fit together")]
    Settings(#[from] PolicyErrors),
}

impl Recording {
    /// Reads what a [`Recorder`] wrote. A last line without an end was being written when the
    /// process died, before anything was done about it; it is left out.
    ///
    /// # Errors
    /// It is not what a recorder writes.
    pub fn read(mut from: impl BufRead) -> Result<Self, RecordingError> {
        let mut text = String::new();
        from.read_to_string(&mut text)?;
        let end = text.rfind('\n').map_or(0, |end| end + 1);
        let mut lines = (1..).zip(text[..end].lines());
        let wrong = |line| move |source| RecordingError::Line { line, source };
        let (line, first) = lines.next().ok_or(RecordingError::Empty)?;
        let begun: Begun = serde_json::from_str(first).map_err(wrong(line))?;
        let told = lines.map(|(line, text)| serde_json::from_str(text).map_err(wrong(line)));
        Ok(Self {
            policy: Policy::new(begun.settings)?,
            seed: begun.seed,
            begun: begun.begun,
            told: told.collect::<Result<_, _>>()?,
        })
    }
}

/// Names what an instance did in answer to one input; the same for as long as the same compiler
/// builds it.
pub fn digest(outputs: &[Output]) -> u64 {
    let mut hasher = DefaultHasher::new();
    outputs.hash(&mut hasher);
    hasher.finish()
}

/// Writes down what an instance is told, before it does anything about it.
#[derive(Debug)]
pub struct Recorder<W> {
    to: W,
    input: Option<Input>,
}

impl<W: Write> Recorder<W> {
    /// Writes there, line by line.
    pub const fn new(to: W) -> Self {
        Self { to, input: None }
    }

    /// # Panics
    /// It cannot be written: a recording with a hole in it would accuse the innocent.
    fn write(&mut self, line: &impl Serialize) {
        let mut text = serde_json::to_vec(line).expect("a recording has only plain values");
        text.push(b'\n');
        self.to.write_all(&text).expect("the recording can be written");
    }
}

impl<W: Write + Send + 'static> Observer for Recorder<W> {
    fn begins(&mut self, now: Mono, policy: &Policy, seed: &[u8; 32]) {
        let begun = Begun { settings: Settings::clone(policy), seed: *seed, begun: now };
        self.write(&begun);
    }

    fn input(&mut self, _now: Mono, input: &Input) {
        self.input = Some(input.clone());
    }

    fn settled(&mut self, now: Mono, _instance: &Instance, outputs: &[Output]) {
        if let Some(input) = self.input.take() {
            self.write(&Told { now, input, did: digest(outputs) });
        }
    }
}
