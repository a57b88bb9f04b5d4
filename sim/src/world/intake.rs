//! Messages on their way into the store, as a shell's tasks carry them: read, put together, commit,
//! and only then acknowledge.

use std::sync::Arc;

use backfill_core::coverage::{Mark, PageEnd};
use backfill_core::doc::Document;
use backfill_core::id::{RequestId, ThreadId};
use backfill_core::incoming::{
    Content, Incoming, Key, MessageEvent, MessageKind, Record, SyncSource,
};
use backfill_core::ingest::{Batch, Facts, MessageMark, Step};
use backfill_core::io::{
    Answer, ChunkId, GatewayEvent, Ingested, Input, PageFacts, Rejection, RunKind, Source,
    StoreCall, ThreadSpan,
};
use backfill_core::jid::Twins;
use smol_str::format_smolstr;

use super::store_port::{Dest, JobAnswer};
use super::{Ev, World};
use crate::checker::Touched;
use crate::scenario::AccountPlan;
use crate::trace::Entry;
use crate::variant::Slip;
use crate::whatsapp::{ConnKey, MessageRef, Stretch, message_text};

/// A task that stores messages of one account.
#[derive(Debug)]
pub(super) struct Job {
    account: u16,
    origin: Origin,
    batch: Batch,
    messages: Vec<MessageRef>,
    failures: u32,
}

/// How the messages came.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// A conversation of a history chunk, for a request to parse it
    Chunk { parse: RequestId, chunk: u64, number: u32, conversation: u32 },
    /// An answer of the phone; `request` if it is the one that is waited for
    Page { request: Option<u64>, run: RunKind, thread: u16, more: bool },
    /// Over this connection, live or not
    Realtime { connection: u64 },
}

/// A task gives up after this many failures in a row.
const FAILURES: u32 = 4;

impl World {
    /// Begins to store messages.
    pub(super) fn begin_job(
        &mut self,
        p: u32,
        account: u16,
        origin: Origin,
        messages: Vec<MessageRef>,
    ) {
        let source = match origin {
            Origin::Chunk { .. } => SyncSource::HistorySync,
            Origin::Page { run: RunKind::AutoBackfill, .. } => SyncSource::Backfill,
            Origin::Page { run: RunKind::RecentSync, .. } => SyncSource::RecentSync,
            Origin::Realtime { .. } => SyncSource::Realtime,
        };
        let records =
            messages.iter().filter_map(|m| self.record(account, *m, source)).collect::<Vec<_>>();
        let id = AccountPlan::account(account);
        // What a shell takes for the store's time is near enough for a bound of a day.
        let now = self.store_clock.store(self.now);
        let batch = Batch::new(&id, records, now, &Arc::new(Twins::default()));
        if let Origin::Realtime { connection } = origin
            && self.slip == Some(Slip::AckBeforeDurable)
        {
            self.acknowledge(p, account, connection, &messages);
        }
        let job = Job { account, origin, batch, messages, failures: 0 };
        let jobs = &mut self.processes[p as usize].jobs;
        let free = jobs.iter().position(Option::is_none).unwrap_or(jobs.len());
        if free == jobs.len() {
            jobs.push(None);
        }
        jobs[free] = Some(job);
        self.advance_job(p, free as u32);
    }

    pub(super) fn job_answered(&mut self, p: u32, job: u32, answer: JobAnswer) {
        let Some(Some(task)) = self.processes[p as usize].jobs.get_mut(job as usize) else {
            return;
        };
        match answer {
            JobAnswer::Committed => {
                task.failures = 0;
                task.batch.on_committed();
            }
            JobAnswer::Conflict => task.batch.on_conflict(),
            JobAnswer::Again => {}
            JobAnswer::Failed => {
                task.failures += 1;
                if task.failures >= FAILURES {
                    return self.job_failed(p, job);
                }
                let wait = 100 << task.failures;
                let again = Ev::Job(p, job, JobAnswer::Again);
                self.queue.push(self.now.after(wait), again);
                return;
            }
            JobAnswer::Read(mut docs) => {
                task.failures = 0;
                if self.slip == Some(Slip::SummaryMovesBackwards) {
                    docs.iter_mut().flatten().for_each(forget_summary);
                }
                task.batch.on_docs(&docs);
            }
        }
        self.advance_job(p, job);
    }

    fn advance_job(&mut self, p: u32, job: u32) {
        let Some(Some(task)) = self.processes[p as usize].jobs.get_mut(job as usize) else {
            return;
        };
        match task.batch.step() {
            Step::Commit(writes) => {
                self.send(p, Dest::Job(job), StoreCall::Commit(writes), None);
            }
            Step::Read(paths) => self.send(p, Dest::Job(job), StoreCall::Get(paths), None),
            Step::Done => self.job_done(p, job),
        }
    }

    fn take_job(&mut self, p: u32, job: u32) -> Option<Job> {
        self.processes[p as usize].jobs.get_mut(job as usize)?.take()
    }

    fn job_done(&mut self, p: u32, job: u32) {
        let Some(task) = self.take_job(p, job) else { return };
        let facts = task.batch.facts();
        let id = AccountPlan::account(task.account);
        let history = !matches!(task.origin, Origin::Realtime { .. });
        if history && facts.threads.iter().any(|thread| thread.is_new_thread) {
            self.checker.history_before_thread();
        }
        match task.origin {
            Origin::Realtime { connection } => {
                self.acknowledge(p, task.account, connection, &task.messages);
                let ingested = ingested(Source::Realtime, &facts, PageEnd::Unstated);
                self.feed(p, Input::Ingested(id, ingested), Touched::NOTHING);
                self.realtime_done(p, task.account, connection, Some(task.messages.len()));
            }
            Origin::Page { request: Some(request), thread, more, .. } => {
                self.checker.phone_answered(self.now, p, task.account);
                let Some(thread) = self.net.thread_id(task.account, thread) else { return };
                let page = page_facts(thread, &facts, more);
                let event = GatewayEvent::Page { request: RequestId(request), page };
                self.feed(p, Input::Gateway(id, event), Touched::NOTHING);
            }
            Origin::Page { request: None, more, .. } => {
                let ingested = ingested(Source::LatePage, &facts, page_end(more));
                self.feed(p, Input::Ingested(id, ingested), Touched::NOTHING);
            }
            Origin::Chunk { parse, chunk, number, conversation } => {
                let stretch =
                    self.net.chunk(task.account, number).get(conversation as usize).copied();
                let end = page_end(stretch.is_some_and(|s| s.from > 0));
                let source = Source::Chunk { chunk: ChunkId(chunk), cursor: conversation + 1 };
                let ingested = ingested(source, &facts, end);
                self.feed(p, Input::Ingested(id, ingested), Touched::NOTHING);
                self.parse_conversation(p, task.account, parse, chunk, number, conversation + 1);
            }
        }
    }

    /// Acknowledges durable messages to WhatsApp, which only the owner may.
    fn acknowledge(&mut self, p: u32, account: u16, connection: u64, messages: &[MessageRef]) {
        let process = &self.processes[p as usize];
        let mono = self.hosts[process.host].clock.mono(self.now);
        let belief = process.core.belief(&AccountPlan::account(account));
        if belief.is_none_or(|belief| mono >= belief.until) {
            return;
        }
        let key = ConnKey { process: p, request: connection };
        self.checker.acknowledged(self.now, p, account, messages);
        self.net.acknowledge(account, key, messages);
        let messages = messages.len() as u32;
        self.trace.note(self.now, || Entry::Acknowledged { process: p, account, messages });
    }

    fn job_failed(&mut self, p: u32, job: u32) {
        let Some(task) = self.take_job(p, job) else { return };
        match task.origin {
            Origin::Realtime { connection } if self.slip == Some(Slip::FailedWriteOnlyLogged) => {
                self.acknowledge(p, task.account, connection, &task.messages);
                self.realtime_done(p, task.account, connection, Some(task.messages.len()));
            }
            Origin::Realtime { connection } => {
                let id = AccountPlan::account(task.account);
                let event = GatewayEvent::IngestFailed { connection: RequestId(connection) };
                self.feed(p, Input::Gateway(id, event), Touched::NOTHING);
                self.realtime_done(p, task.account, connection, None);
            }
            // The messages stay on the phone, and whoever asked will ask again.
            Origin::Page { .. } => {}
            Origin::Chunk { parse, .. } => {
                let answer = Answer::Rejected(Rejection::Unavailable);
                self.feed(p, Input::Answer(parse, answer), Touched::NOTHING);
            }
        }
    }

    /// Stores one conversation of a chunk after the other.
    pub(super) fn parse_conversation(
        &mut self,
        p: u32,
        account: u16,
        parse: RequestId,
        chunk: u64,
        number: u32,
        conversation: u32,
    ) {
        if self.processes[p as usize].state == super::State::Dead {
            return;
        }
        let Some(stretch) = self.net.chunk(account, number).get(conversation as usize).copied()
        else {
            let done = Ev::Answer(p, parse, Touched::NOTHING, Answer::Done);
            self.queue.push(self.now, done);
            return;
        };
        let origin = Origin::Chunk { parse, chunk, number, conversation };
        self.begin_job(p, account, origin, messages(stretch));
    }

    fn record(&self, account: u16, message: MessageRef, source: SyncSource) -> Option<Record> {
        let known = self.net.message(account, message)?;
        let (jid, _) = self.net.jids(account, message.thread)?;
        let group = self.net.is_group(account, message.thread);
        let participant = (group && !known.from_me)
            .then(|| format_smolstr!("4079900{:03}@s.whatsapp.net", known.sender));
        let content = Content {
            kind: MessageKind::Text,
            body: message_text(account, message),
            ..Content::default()
        };
        Some(Record::Message(Incoming {
            key: Key { id: known.id, remote_jid: jid, from_me: known.from_me, participant },
            timestamp: known.second,
            source,
            event: MessageEvent::Content(content),
        }))
    }
}

/// Leaves nothing of a thread's summary.
fn forget_summary(doc: &mut Arc<Document>) {
    let path = doc.path.as_str();
    if path.starts_with("threads/") && path.matches('/').count() == 1 {
        Arc::make_mut(doc).fields.retain(|name, _| !name.starts_with("lastMessage"));
    }
}

/// The messages of a stretch, oldest first.
pub(super) fn messages(stretch: Stretch) -> Vec<MessageRef> {
    let thread = stretch.thread;
    (stretch.from..stretch.to).map(|index| MessageRef { thread, index }).collect()
}

const fn page_end(more: bool) -> PageEnd {
    if more { PageEnd::MoreRemains } else { PageEnd::EndOfHistory }
}

fn mark(mark: &MessageMark) -> Mark {
    Mark {
        second: mark.second,
        id: Some(mark.id.clone()),
        from_me: mark.from_me,
        participant: mark.participant.clone(),
    }
}

fn page_facts(thread: ThreadId, facts: &Facts, more: bool) -> PageFacts {
    let found = facts.threads.first();
    PageFacts {
        thread,
        oldest: found.and_then(|thread| thread.oldest.as_ref()).map(mark),
        messages: found.map_or(0, |thread| thread.total),
        end: page_end(more),
    }
}

fn ingested(source: Source, facts: &Facts, end: PageEnd) -> Ingested {
    let threads: Vec<ThreadSpan> = facts
        .threads
        .iter()
        .filter_map(|thread| {
            Some(ThreadSpan {
                thread: thread.thread.clone(),
                low: mark(thread.oldest.as_ref()?),
                high: mark(thread.newest.as_ref()?),
                messages: thread.total,
                end,
            })
        })
        .collect();
    Ingested {
        source,
        messages: threads.iter().map(|thread| thread.messages).sum(),
        newest_second: threads.iter().map(|thread| thread.high.second).max().unwrap_or(0),
        threads,
    }
}
