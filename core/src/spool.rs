//! History chunks on their way in: made durable first, then parsed, then forgotten.
//!
//! One chunk per account is parsed at a time. Where a parse has come to is persisted, so that a
//! crash costs little; ingest is idempotent, so that it costs nothing else. A chunk that was
//! announced and lost becomes a gap before it is forgotten.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::account;
use crate::bug::Bug;
use crate::covered::Covered;
use crate::doc::{DocPath, FieldOp, Value};
use crate::host::{AccountRoute, AccountTimer, Host, Route};
use crate::id::{RequestId, ThreadId};
use crate::io::{Answer, ChunkCounts, ChunkId, GatewayCall, Ingested, Lane, ThreadSpan};
use crate::ledger::Purpose;
use crate::tenure::{Stage, Tenure};

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Spool {
    chunks: BTreeMap<ChunkId, ChunkState>,
    /// Per chunk, the request whose answer counts: one that was given up may be answered yet
    awaited: BTreeMap<ChunkId, RequestId>,
    /// What the chunk under way brought, and is not noted in coverage yet
    spans: Vec<ThreadSpan>,
    noting: Vec<ThreadSpan>,
    /// The chunk whose counts are on the account
    counted: Option<ChunkId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum ChunkState {
    /// In memory only
    Arrived,
    /// Lost; the gap is being written
    Missing,
    /// What is to be remembered of it is durable
    Noted,
    /// Parsed; coverage is being read and written
    Noting,
    Parsing,
    Spooled,
    Spooling,
    Unspooling,
}

impl Spool {
    pub(crate) fn is_idle(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Whether something is in memory only.
    pub(crate) fn is_arriving(&self) -> bool {
        let arriving = [ChunkState::Arrived, ChunkState::Spooling];
        arriving.into_iter().any(|state| self.first(state).is_some())
    }

    /// A step failed: it is tried again with the next pump.
    fn interrupted(&mut self, chunk: ChunkId) {
        let Some(state) = self.chunks.get_mut(&chunk) else { return };
        *state = match *state {
            ChunkState::Arrived | ChunkState::Spooling => ChunkState::Arrived,
            ChunkState::Missing => ChunkState::Missing,
            ChunkState::Noted | ChunkState::Unspooling => ChunkState::Noted,
            ChunkState::Noting | ChunkState::Parsing | ChunkState::Spooled => {
                self.spans.clear();
                self.noting.clear();
                ChunkState::Spooled
            }
        };
    }

    fn active(&self) -> Option<ChunkId> {
        let active = [ChunkState::Noting, ChunkState::Parsing, ChunkState::Unspooling];
        active.into_iter().find_map(|state| self.first(state))
    }

    fn first(&self, wanted: ChunkState) -> Option<ChunkId> {
        self.chunks.iter().find(|(_, state)| **state == wanted).map(|(chunk, _)| *chunk)
    }
}

impl Tenure {
    pub(crate) fn on_chunk(&mut self, host: &mut Host, chunk: ChunkId, spooled: bool) {
        let state = if spooled || host.bug(Bug::ParseBeforeSpool) {
            ChunkState::Spooled
        } else {
            ChunkState::Arrived
        };
        self.spool.chunks.entry(chunk).or_insert(state);
        self.pump_spool(host);
    }

    /// What a chunk would have brought is missing. Before the account is ready the report is
    /// passed over: it comes again.
    pub(crate) fn on_chunk_missing(&mut self, host: &mut Host, chunk: ChunkId) {
        if !self.is_ready() || self.spool.chunks.contains_key(&chunk) {
            return;
        }
        self.spool.chunks.insert(chunk, ChunkState::Missing);
        host.incident(Some(&self.id), "history_chunk_missing");
        self.suspect_history(host);
        self.unfilled = true;
        self.ledger.push(Purpose::Chunk(chunk));
    }

    /// Part of a chunk became durable.
    pub(crate) fn on_chunk_progress(&mut self, chunk: ChunkId, cursor: u32, ingested: &Ingested) {
        if self.spool.chunks.get(&chunk) == Some(&ChunkState::Parsing) {
            self.unfilled |= !ingested.threads.is_empty();
            self.spool.spans.extend(ingested.threads.iter().cloned());
            self.sync.cursor = Some((chunk.0, cursor));
            self.ledger.set_sync([
                (account::SPOOL_CHUNK, Value::from(chunk.0).into()),
                (account::SPOOL_CURSOR, Value::from(cursor).into()),
            ]);
            self.ledger.push(Purpose::Patch);
        }
    }

    /// All of a chunk is durable; what came of it rides on the commit that notes what it brought.
    pub(crate) fn on_chunk_stored(&mut self, chunk: ChunkId, counts: ChunkCounts) {
        // A chunk that has to be read once more was counted before.
        let parsing = self.spool.chunks.get(&chunk) == Some(&ChunkState::Parsing);
        if !parsing || self.spool.counted.replace(chunk) == Some(chunk) {
            return;
        }
        let ChunkCounts { saved, skipped, errors, dry_run } = counts;
        let total = saved.saturating_add(skipped).saturating_add(errors);
        let result = Value::map([
            ("saved", Value::from(saved)),
            ("skipped", skipped.into()),
            ("errors", errors.into()),
            ("total", total.into()),
            ("dryRun", dry_run.into()),
        ]);
        self.record.history_syncs = self.record.history_syncs.saturating_add(1);
        self.ledger.set_account(account::HISTORY_SYNC_COUNT, self.record.history_syncs);
        self.ledger.set_account(account::LAST_HISTORY_SYNC_AT, FieldOp::ServerTime);
        self.ledger.set_account(account::LAST_HISTORY_SYNC_RESULT, result);
    }

    pub(crate) fn pump_spool(&mut self, host: &mut Host) {
        if !matches!(self.stage, Stage::Ready | Stage::Leaving) || !host.believing() {
            return;
        }
        let arrived: Vec<ChunkId> = self
            .spool
            .chunks
            .iter()
            .filter(|(_, state)| **state == ChunkState::Arrived)
            .map(|(chunk, _)| *chunk)
            .collect();
        for chunk in arrived {
            self.spool.chunks.insert(chunk, ChunkState::Spooling);
            self.call_spool(host, chunk, GatewayCall::Spool { chunk });
        }
        // Who leaves makes durable what has arrived, and lets it lie for the next owner.
        if !self.is_ready() || self.spool.active().is_some() {
            return;
        }
        if let Some(chunk) = self.spool.first(ChunkState::Noted) {
            self.spool.chunks.insert(chunk, ChunkState::Unspooling);
            self.call_spool(host, chunk, GatewayCall::Unspool { chunk });
        } else if let Some(chunk) = self.spool.first(ChunkState::Spooled) {
            let from = self.sync.cursor.filter(|(at, _)| *at == chunk.0).map_or(0, |(_, n)| n);
            self.spool.chunks.insert(chunk, ChunkState::Parsing);
            self.call_spool(host, chunk, GatewayCall::Parse { chunk, from });
        }
    }

    pub(crate) fn on_spool_answer(
        &mut self,
        host: &mut Host,
        chunk: ChunkId,
        request: RequestId,
        answer: Answer,
    ) {
        if self.spool.awaited.get(&chunk) != Some(&request) {
            return;
        }
        self.spool.awaited.remove(&chunk);
        let Some(state) = self.spool.chunks.get(&chunk).copied() else { return };
        match (state, answer) {
            (ChunkState::Spooling, Answer::Done) => {
                self.spool.chunks.insert(chunk, ChunkState::Spooled);
            }
            (ChunkState::Parsing, Answer::Done) => {
                self.spool.chunks.insert(chunk, ChunkState::Noting);
                self.note_spans(host, chunk);
            }
            (ChunkState::Noting, Answer::Read { docs, .. }) => {
                let spans = std::mem::take(&mut self.spool.noting);
                for (span, doc) in spans.into_iter().zip(docs) {
                    let gap = self.sync.latest_gap();
                    let covered = self
                        .coverage
                        .entry(span.thread)
                        .or_insert_with(|| Covered::parse(doc.as_deref()));
                    let changed =
                        covered.coverage.chunk(&span.low, &span.high, span.messages, span.end);
                    // A thread that was never looked at grows live from its newest message on.
                    let fresh = covered.is_new() && gap == 0;
                    let opened = fresh && covered.coverage.newer(&span.high);
                    covered.note(changed || opened);
                }
                self.ledger.push(Purpose::Chunk(chunk));
            }
            (ChunkState::Unspooling, Answer::Done) => {
                self.spool.chunks.remove(&chunk);
                if self.runs.is_empty() && self.spool.is_idle() {
                    self.coverage.clear();
                }
                if self.unfilled && self.spool.is_idle() {
                    self.fill_soon(host);
                }
            }
            _ if !self.is_ready() => {
                // The next owner is told that it is missing.
                self.spool.chunks.remove(&chunk);
            }
            _ => {
                self.spool.interrupted(chunk);
                let wait = host.about(Duration::from_secs(2));
                host.in_ms(self.timer(AccountTimer::Spool), wait);
                return;
            }
        }
        self.pump_spool(host);
    }

    /// What a chunk brought, or that it is missing, is noted; it is not needed any more.
    pub(crate) fn on_chunk_covered(&mut self, host: &mut Host, chunk: ChunkId) {
        if !self.is_ready() {
            return;
        }
        match self.spool.chunks.get(&chunk) {
            Some(ChunkState::Noting) if !self.spool.spans.is_empty() => {
                self.note_spans(host, chunk);
            }
            Some(ChunkState::Missing | ChunkState::Noting) => {
                self.spool.chunks.insert(chunk, ChunkState::Noted);
                self.pump_spool(host);
            }
            _ => {}
        }
    }

    fn note_spans(&mut self, host: &mut Host, chunk: ChunkId) {
        let coverage = self.id.coverage();
        let rest = self.spool.spans.split_off(self.spool.spans.len().min(SPANS_AT_ONCE));
        let spans = std::mem::replace(&mut self.spool.spans, rest);
        let path = |thread: &ThreadId| DocPath::new(&coverage, thread.as_str()).ok();
        let (noting, paths): (Vec<_>, Vec<_>) =
            spans.into_iter().filter_map(|s| path(&s.thread).map(|p| (s, p))).unzip();
        self.spool.noting = noting;
        if paths.is_empty() {
            self.on_chunk_covered(host, chunk);
            return;
        }
        let route = Route::Account(self.id.clone(), AccountRoute::Spool(chunk));
        let request = host.get(route, Lane::Work, paths);
        self.spool.awaited.insert(chunk, request);
    }

    fn call_spool(&mut self, host: &mut Host, chunk: ChunkId, call: GatewayCall) {
        let request = host.gateway(&self.id, AccountRoute::Spool(chunk), call, host.deadline);
        self.spool.awaited.insert(chunk, request);
    }
}

const SPANS_AT_ONCE: usize = 90;
