//! Messages on their way into the store, as a shell's tasks carry them: read, put together, commit,
//! and only then acknowledge.

use std::sync::Arc;

use backfill_core::coverage::PageEnd;
use backfill_core::doc::Document;
use backfill_core::id::RequestId;
use backfill_core::incoming::{
    Author, Content, Incoming, Key, MessageEvent, MessageKind, Record, Status, SyncSource,
};
use backfill_core::ingest::{Batch, Step};
use backfill_core::io::{
    Answer, ChunkId, GatewayEvent, Ingested, Input, PageFacts, Rejection, RunKind, Source,
    StoreCall,
};
use smol_str::{SmolStr, format_smolstr};

use super::store_port::{Dest, JobAnswer};
use super::{Ev, World};
use crate::checker::Touched;
use crate::clock::Real;
use crate::scenario::AccountPlan;
use crate::trace::Entry;
use crate::variant::Slip;
use crate::whatsapp::{
    ConnKey, Mail, MessageRef, Stretch, What, WhatsApp, edited_text, member, message_text,
};

/// A task that stores messages of one account.
#[derive(Debug)]
pub(super) struct Job {
    account: u16,
    origin: Origin,
    batch: Batch,
    mail: Vec<Mail>,
    failures: u32,
}

/// How the messages came.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// A conversation of a history chunk, for a request to parse it
    Chunk { parse: RequestId, chunk: u64, number: u32, conversation: u32 },
    /// An answer of the phone; `request` if it is the one that is waited for
    Page { request: Option<u64>, run: RunKind, thread: u16, lid: bool, more: bool },
    /// Over this connection, live or not
    Realtime { connection: u64 },
}

/// A task gives up after this many failures in a row.
const FAILURES: u32 = 4;

impl World {
    /// Begins to store messages.
    pub(super) fn begin_job(&mut self, p: u32, account: u16, origin: Origin, mail: Vec<Mail>) {
        let source = match origin {
            Origin::Chunk { .. } => SyncSource::HistorySync,
            Origin::Page { run: RunKind::AutoBackfill, .. } => SyncSource::Backfill,
            Origin::Page { run: RunKind::RecentSync, .. } => SyncSource::RecentSync,
            Origin::Realtime { .. } => SyncSource::Realtime,
        };
        let records = mail
            .iter()
            .filter_map(|mail| match origin {
                Origin::Realtime { .. } => record(&self.net, self.now, account, *mail, source),
                Origin::Chunk { .. } => told(&self.net, self.now, account, *mail, false, source),
                Origin::Page { lid, .. } => told(&self.net, self.now, account, *mail, lid, source),
            })
            .filter_map(|record| self.distorted(account, record))
            .collect::<Vec<_>>();
        let id = AccountPlan::account(account);
        // What a shell takes for the store's time is near enough for a bound of a day.
        let now = self.store_clock.store(self.now);
        let twins = match self.slip {
            Some(Slip::TwinsUnknown) => Arc::default(),
            _ => self.net.twins(self.now, account),
        };
        let batch = Batch::new(&id, records, now, &twins);
        if let Origin::Realtime { connection } = origin
            && self.slip == Some(Slip::AckBeforeDurable)
        {
            self.acknowledge(p, account, connection, &mail);
        }
        let job = Job { account, origin, batch, mail, failures: 0 };
        let jobs = &mut self.processes[p as usize].jobs;
        let free = jobs.iter().position(Option::is_none).unwrap_or(jobs.len());
        if free == jobs.len() {
            jobs.push(None);
        }
        jobs[free] = Some(job);
        self.advance_job(p, free as u32);
    }

    /// A record as a wrong shell would hand it in, if it did.
    fn distorted(&self, account: u16, mut record: Record) -> Option<Record> {
        let Record::Message(message) = &mut record else { return Some(record) };
        match (self.slip, &mut message.event) {
            (Some(Slip::EditsByArrival), MessageEvent::Edit { at_ms, .. }) => {
                *at_ms = self.now.second() * 1_000 + (self.now.0 % 1_000) as i64;
            }
            (Some(Slip::OwnTakenForInbound), MessageEvent::Content(_)) => {
                message.key.from_me = false;
            }
            (Some(Slip::ReportsDropped), event) if !matches!(event, MessageEvent::Content(_)) => {
                let (_, about) = WhatsApp::parse_id(&message.key.id)?;
                return self.checker.has_message(account, about).then_some(record);
            }
            _ => {}
        }
        Some(record)
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
        if history {
            self.checker.history_stored(task.account, &task.mail);
        }
        match task.origin {
            Origin::Realtime { connection } => {
                self.acknowledge(p, task.account, connection, &task.mail);
                let ingested = Ingested::new(Source::Realtime, &facts, PageEnd::Unstated);
                self.feed(p, Input::Ingested(id, ingested), Touched::NOTHING);
                self.realtime_done(p, task.account, connection, Some(task.mail.len()));
            }
            Origin::Page { request: Some(request), thread, lid, more, .. } => {
                self.checker.phone_answered(self.now, p, task.account);
                let Some(thread) = self.net.thread_called(task.account, thread, lid) else {
                    return;
                };
                let page = PageFacts::new(thread, &facts, page_end(more));
                let event = GatewayEvent::Page { request: RequestId(request), page };
                self.feed(p, Input::Gateway(id, event), Touched::NOTHING);
            }
            Origin::Page { request: None, more, .. } => {
                let ingested = Ingested::new(Source::LatePage, &facts, page_end(more));
                self.feed(p, Input::Ingested(id, ingested), Touched::NOTHING);
            }
            Origin::Chunk { parse, chunk, number, conversation } => {
                let stretch =
                    self.net.chunk(task.account, number).get(conversation as usize).copied();
                let end = page_end(stretch.is_some_and(|s| s.from > 0));
                let source = Source::Chunk { chunk: ChunkId(chunk), cursor: conversation + 1 };
                let ingested = Ingested::new(source, &facts, end);
                self.feed(p, Input::Ingested(id, ingested), Touched::NOTHING);
                self.parse_conversation(p, task.account, parse, chunk, number, conversation + 1);
            }
        }
    }

    /// Acknowledges durable messages to WhatsApp, which only the owner may.
    fn acknowledge(&mut self, p: u32, account: u16, connection: u64, mail: &[Mail]) {
        let process = &self.processes[p as usize];
        let mono = self.hosts[process.host].clock.mono(self.now);
        let belief = process.core.belief(&AccountPlan::account(account));
        if belief.is_none_or(|belief| mono >= belief.until) {
            return;
        }
        let key = ConnKey { process: p, request: connection };
        self.checker.acknowledged(self.now, p, account, mail);
        self.net.acknowledge(account, key, mail);
        let messages = mail.len() as u32;
        self.trace.note(self.now, || Entry::Acknowledged { process: p, account, messages });
    }

    fn job_failed(&mut self, p: u32, job: u32) {
        let Some(task) = self.take_job(p, job) else { return };
        match task.origin {
            Origin::Realtime { connection } if self.slip == Some(Slip::FailedWriteOnlyLogged) => {
                self.acknowledge(p, task.account, connection, &task.mail);
                self.realtime_done(p, task.account, connection, Some(task.mail.len()));
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
        let mail = history(&self.net, account, stretch);
        self.begin_job(p, account, origin, mail);
    }
}

/// Something that came over a connection, as a gateway hands it in.
pub(crate) fn record(
    net: &WhatsApp,
    now: Real,
    account: u16,
    mail: Mail,
    source: SyncSource,
) -> Option<Record> {
    let lid = net.comes_by_lid(now, account, about(net, account, mail)?);
    handed_in(net, account, mail, lid, source)
}

/// Part of an answer that was asked for under one of the conversation's addresses, as a gateway
/// hands it in.
pub(crate) fn told(
    net: &WhatsApp,
    now: Real,
    account: u16,
    mail: Mail,
    lid: bool,
    source: SyncSource,
) -> Option<Record> {
    let lid = net.answers_by_lid(now, account, about(net, account, mail)?.thread, lid);
    handed_in(net, account, mail, lid, source)
}

/// The message that something is, or is about.
fn about(net: &WhatsApp, account: u16, mail: Mail) -> Option<MessageRef> {
    match mail {
        Mail::Happening(n) => net.happenings(account).get(n as usize).map(|h| h.about),
        Mail::Message(message) | Mail::Unreadable(message) => Some(message),
    }
}

fn handed_in(
    net: &WhatsApp,
    account: u16,
    mail: Mail,
    lid: bool,
    source: SyncSource,
) -> Option<Record> {
    let text = |body| {
        MessageEvent::Content(Content { kind: MessageKind::Text, body, ..Content::default() })
    };
    let message = about(net, account, mail)?;
    let happening = match mail {
        Mail::Happening(n) => Some((n, *net.happenings(account).get(n as usize)?)),
        Mail::Message(_) | Mail::Unreadable(_) => None,
    };
    let known = net.message(account, message)?;
    let jid = net.jid(account, message.thread, lid)?;
    let group = net.is_group(account, message.thread);
    let participant: Option<SmolStr> = (group && !known.from_me).then(|| member(known.sender));
    let sender = || match known.from_me {
        true => Author::Me,
        false => Author::Person(participant.clone().unwrap_or_else(|| jid.clone())),
    };
    let event = match (mail, happening) {
        (Mail::Unreadable(_), _) => MessageEvent::Undecryptable { sender_name: None },
        (_, None) => text(message_text(account, message)),
        (_, Some((n, happening))) => match happening.what {
            What::Delivered => MessageEvent::Receipt(Status::Delivered),
            What::Edited => MessageEvent::Edit {
                by: sender(),
                body: edited_text(account, message, n),
                at_ms: happening.at_ms,
            },
            What::Reacted { back } => {
                let emoji = if back { SmolStr::default() } else { format_smolstr!("+{n}") };
                MessageEvent::Reaction { by: Author::Me, emoji, at_ms: happening.at_ms }
            }
            What::Read => MessageEvent::Receipt(Status::Read),
            What::Revoked => MessageEvent::Revoke { by: sender() },
        },
    };
    let timestamp = happening.map_or(known.second, |(_, happening)| happening.at_ms / 1_000);
    Some(Record::Message(Incoming {
        key: Key { id: known.id, remote_jid: jid, from_me: known.from_me, participant },
        timestamp,
        source,
        event,
    }))
}

/// Leaves nothing of a thread's summary.
fn forget_summary(doc: &mut Arc<Document>) {
    let path = doc.path.as_str();
    if path.starts_with("threads/") && path.matches('/').count() == 1 {
        Arc::make_mut(doc)
            .fields
            .retain(|name, _| !name.starts_with("lastMessage") && name != "ingest");
    }
}

/// What a phone tells of a stretch: the messages, oldest first, each followed by what became of it.
pub(crate) fn history(net: &WhatsApp, account: u16, stretch: Stretch) -> Vec<Mail> {
    let thread = stretch.thread;
    let mut mail = Vec::with_capacity((stretch.to - stretch.from) as usize);
    for index in stretch.from..stretch.to {
        let message = MessageRef { thread, index };
        mail.push(Mail::Message(message));
        mail.extend(net.happened_to(account, message).iter().map(|n| Mail::Happening(*n)));
    }
    mail
}

pub(crate) const fn page_end(more: bool) -> PageEnd {
    if more { PageEnd::MoreRemains } else { PageEnd::EndOfHistory }
}
