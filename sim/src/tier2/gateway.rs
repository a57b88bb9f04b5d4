//! A process's client of WhatsApp.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backfill_core::id::{AccountId, RequestId, ThreadId};
use backfill_core::incoming::{Record, SyncSource};
use backfill_core::io::{
    Answer, ChunkCounts, ChunkId, CloseReason, GatewayCall, GatewayEvent, GatewayRequest,
    Rejection, RunKind,
};
use backfill_core::jid::Twins;
use backfill_driver::port::{Gateway, Runtime, Store};
use backfill_driver::{Handle, Parcel};
use futures_channel::mpsc;
use futures_util::StreamExt;

use super::clock::Local;
use super::wire::{AskSpool, AskStore, AskWhatsApp, Brought, Chunk, Reply, Wire};
use crate::chance::Chance;
use crate::scenario::AccountPlan;
use crate::trace::Entry;
use crate::whatsapp::{ConnKey, Mail};
use crate::world::intake::page_end;

/// The client of one process, over all its connections.
#[derive(Clone)]
pub(super) struct Client(Arc<Inner>);

struct Inner {
    handle: Handle,
    wire: Wire,
    local: Local,
    close_timeout: Duration,
    state: Mutex<State>,
}

struct State {
    chance: Chance,
    /// By account and the request that opened it
    links: BTreeMap<(u16, u64), Link>,
    /// Requests for history that wait for an answer
    asked: BTreeMap<u64, (RunKind, ThreadId)>,
    /// Chunks that arrived and are not in the spool yet
    chunks: BTreeMap<(u16, u64), Arc<Chunk>>,
}

/// A connection.
struct Link {
    open: bool,
    closing: bool,
    arrivals: mpsc::UnboundedSender<Arrived>,
}

enum Arrived {
    Live(Mail, Record),
    Offline(Vec<(Mail, Record)>),
    OfflineEnd(u32),
}

/// Live messages that are stored in one go.
const LIVE_BATCH: usize = 50;

impl Client {
    pub(super) fn new(
        handle: Handle,
        wire: Wire,
        local: Local,
        chance: Chance,
        close_timeout: Duration,
    ) -> Self {
        let state = State {
            chance,
            links: BTreeMap::new(),
            asked: BTreeMap::new(),
            chunks: BTreeMap::new(),
        };
        Self(Arc::new(Inner { handle, wire, local, close_timeout, state: Mutex::new(state) }))
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.0.handle
    }

    /// Something arrives over a connection.
    pub(super) fn brought(&self, account: u16, connection: u64, brought: Brought) {
        let id = AccountPlan::account(account);
        let report = |event| self.0.handle.report(id.clone(), event);
        let request = RequestId(connection);
        let mut state = self.state();
        let Some(link) = state.links.get_mut(&(account, connection)) else { return };
        let arrived = match brought {
            Brought::Chunk(chunk, content) => {
                state.chunks.insert((account, chunk), content);
                return report(GatewayEvent::Chunk { chunk: ChunkId(chunk), spooled: false });
            }
            Brought::ChunkMissing(chunk) => {
                return report(GatewayEvent::ChunkMissing { chunk: ChunkId(chunk) });
            }
            Brought::Closed(reason) => {
                state.links.remove(&(account, connection));
                if reason == CloseReason::LoggedOut {
                    self.0.handle.credentials(id.clone(), false);
                }
                return report(GatewayEvent::Closed { connection: request, reason });
            }
            Brought::Live(message, record) => Arrived::Live(message, record),
            Brought::Offline(messages) => Arrived::Offline(messages),
            Brought::OfflineEnd(announced) => Arrived::OfflineEnd(announced),
            Brought::Opened => {
                link.open = true;
                return report(GatewayEvent::Opened { connection: request });
            }
            Brought::Page { asker, thread, more, mail, records, twins } => {
                let mine = asker.0 == self.0.wire.process();
                let asked = mine.then(|| state.asked.remove(&asker.1)).flatten();
                drop(state);
                let request = asked.as_ref().map(|_| RequestId(asker.1));
                let parcel = Parcel { account: id, records, twins };
                self.page(account, request, asked, thread, more, mail, parcel);
                return;
            }
            Brought::Paired => {
                self.0.handle.credentials(id.clone(), true);
                return report(GatewayEvent::Paired { connection: request });
            }
            Brought::Pairing => {
                let qr = Some("data:image/png;base64,AA==".into());
                return report(GatewayEvent::Pairing { connection: request, qr, code: None });
            }
            Brought::Undecryptable { thread, second, mail, record } => {
                report(GatewayEvent::Undecryptable { thread, second });
                Arrived::Live(mail, record)
            }
        };
        link.arrivals.unbounded_send(arrived).ok();
    }

    #[expect(clippy::too_many_arguments, reason = "a page has these parts")]
    fn page(
        &self,
        account: u16,
        request: Option<RequestId>,
        asked: Option<(RunKind, ThreadId)>,
        thread: ThreadId,
        more: bool,
        mail: Vec<Mail>,
        mut parcel: Parcel,
    ) {
        let client = self.clone();
        if let Some((RunKind::RecentSync, _)) = asked {
            for record in &mut parcel.records {
                if let Record::Message(message) = record {
                    message.source = SyncSource::RecentSync;
                }
            }
        }
        let thread = asked.map_or(thread, |(_, thread)| thread);
        madsim::task::spawn(async move {
            let p = client.0.wire.process();
            match request {
                None => client.0.wire.world().look(|truth| truth.checker.duplicate_reply()),
                // The phone has answered, whatever becomes of the answer.
                Some(_) => client.0.wire.world().look(|truth| {
                    truth.checker.phone_answered(truth.now, p, account);
                }),
            }
            // What cannot be stored stays on the phone, and whoever asked will ask again.
            if client.0.handle.page(request, thread, page_end(more), parcel).await.is_ok() {
                client.0.wire.world().look(|truth| {
                    truth.checker.history_stored(account, &mail);
                });
            }
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open connection of an account.
    fn connection(&self, account: u16) -> Option<u64> {
        let state = self.state();
        let mut links = state.links.range((account, 0)..=(account, u64::MAX));
        links.find(|(_, link)| link.open && !link.closing).map(|((_, request), _)| *request)
    }

    async fn connect(&self, account: u16, id: RequestId) -> Answer {
        let (arrivals, arrived) = mpsc::unbounded();
        let key = (account, id.0);
        self.state().links.insert(key, Link { open: false, closing: false, arrivals });
        let asked = self.0.wire.ask_whatsapp(account, AskWhatsApp::Connect { connection: id.0 });
        madsim::task::spawn(self.clone().take_in(account, id, arrived));
        let answer = asked.await;
        if let Answer::Rejected(_) = answer {
            self.state().links.remove(&key);
            // A client may find out at once, or after having said that it would try.
            if self.state().chance.permille(500) {
                return answer;
            }
            let client = self.clone();
            madsim::task::spawn(async move {
                client.0.local.rest(500).await;
                let reason = CloseReason::Lost;
                let event = GatewayEvent::Closed { connection: id, reason };
                client.0.handle.report(AccountPlan::account(account), event);
            });
            return Answer::Done;
        }
        answer
    }

    /// Stores what has arrived, in order, and acknowledges it.
    async fn take_in(
        self,
        account: u16,
        connection: RequestId,
        mut arrived: mpsc::UnboundedReceiver<Arrived>,
    ) {
        let id = AccountPlan::account(account);
        let mut stored = 0;
        let mut next = arrived.next().await;
        while let Some(one) = next.take() {
            let batch = match one {
                Arrived::Live(message, record) => {
                    let mut batch = vec![(message, record)];
                    while batch.len() < LIVE_BATCH {
                        match arrived.try_recv() {
                            Ok(Arrived::Live(message, record)) => batch.push((message, record)),
                            Ok(other) => {
                                next = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    batch
                }
                Arrived::Offline(batch) => batch,
                Arrived::OfflineEnd(announced) => {
                    let process = self.0.wire.process();
                    let key = ConnKey { process, request: connection.0 };
                    self.0.wire.world().look(|truth| truth.net.drained(account, key));
                    let event = GatewayEvent::Drained { connection, announced, stored };
                    self.0.handle.report(id.clone(), event);
                    next = arrived.next().await;
                    continue;
                }
            };
            let (mail, records): (Vec<Mail>, Vec<Record>) = batch.into_iter().unzip();
            let parcel = Parcel { account: id.clone(), records, twins: self.twins(account) };
            if self.0.handle.realtime(connection, parcel).await.is_ok() {
                stored += u32::try_from(mail.len()).unwrap_or(u32::MAX);
                self.acknowledge(account, connection.0, mail);
            }
            if next.is_none() {
                next = arrived.next().await;
            }
        }
    }

    /// What this client knows by now of which LID is which phone number.
    fn twins(&self, account: u16) -> Arc<Twins> {
        self.0.wire.world().look(|truth| truth.net.twins(truth.now, account))
    }

    fn acknowledge(&self, account: u16, connection: u64, mail: Vec<Mail>) {
        let process = self.0.wire.process();
        self.0.wire.world().look(|truth| {
            truth.checker.acknowledged(truth.now, process, account, &mail);
            let count = mail.len() as u32;
            truth.trace.note(truth.now, || Entry::Acknowledged {
                process,
                account,
                messages: count,
            });
        });
        self.0.wire.acknowledge(account, connection, mail);
    }

    async fn close(&self, account: u16, connection: RequestId) -> Answer {
        let key = (account, connection.0);
        let wait = {
            let mut state = self.state();
            if let Some(link) = state.links.get_mut(&key) {
                link.closing = true;
            }
            // Mostly at once, sometimes as slowly as is allowed.
            let close = self.0.close_timeout.as_millis() as u64;
            match state.chance.below(8) {
                0 => close * 8 / 10,
                _ => state.chance.between(5, 60),
            }
        };
        self.0.local.rest(wait).await;
        let ask = AskWhatsApp::Close { connection: connection.0 };
        self.0.wire.ask_whatsapp(account, ask).await;
        self.state().links.remove(&key);
        let event = GatewayEvent::Closed { connection, reason: CloseReason::Asked };
        self.0.handle.report(AccountPlan::account(account), event);
        Answer::Done
    }

    async fn spool(&self, account: u16, ask: AskSpool) -> Reply {
        self.0.wire.ask_store(AskStore::Spool(account, ask)).await
    }

    async fn parse(&self, id: &AccountId, account: u16, chunk: ChunkId, from: u32) -> Answer {
        let Reply::Chunk(Some(content)) = self.spool(account, AskSpool::Get(chunk.0)).await else {
            return Answer::Rejected(Rejection::Invalid);
        };
        let mut counts = ChunkCounts::default();
        for (n, (more, mail, records)) in content.iter().enumerate().skip(from as usize) {
            let records = records.clone();
            let parcel = Parcel { account: id.clone(), records, twins: self.twins(account) };
            let cursor = u32::try_from(n + 1).unwrap_or(u32::MAX);
            let done = self.0.handle.conversation(chunk, cursor, page_end(*more), parcel).await;
            let Ok(facts) = done else {
                return Answer::Rejected(Rejection::Unavailable);
            };
            for thread in &facts.threads {
                counts.saved += thread.new;
                counts.skipped += thread.total - thread.new;
            }
            let new_thread = facts.threads.iter().any(|thread| thread.is_new_thread);
            self.0.wire.world().look(|truth| {
                if new_thread {
                    truth.checker.history_before_thread();
                }
                truth.checker.history_stored(account, mail);
            });
        }
        self.0.handle.report(id.clone(), GatewayEvent::ChunkStored { chunk, counts });
        Answer::Done
    }

    /// An effect that needs ownership starts now; `false` if it is too late for it.
    fn starts(&self, request: &GatewayRequest) -> bool {
        let now = self.0.local.now();
        if now > request.not_after {
            return false;
        }
        let p = self.0.wire.process();
        self.0.handle.look(|core| {
            self.0.wire.world().look(|truth| {
                truth.checker.effect_starts(truth.now, p, now, request, core);
            });
        });
        true
    }
}

impl Gateway for Client {
    async fn execute(&self, request: GatewayRequest) -> Answer {
        let Some(account) = AccountPlan::number(request.account.as_str()) else {
            return Answer::Rejected(Rejection::Invalid);
        };
        let slow = matches!(request.call, GatewayCall::Send { .. });
        if !slow && !self.starts(&request) {
            return Answer::Rejected(Rejection::Expired);
        }
        match &request.call {
            GatewayCall::Close { connection } => self.close(account, *connection).await,
            GatewayCall::Connect => self.connect(account, request.id).await,
            GatewayCall::History { thread, anchor, count, run } => {
                let Some(connection) = self.connection(account) else {
                    return Answer::Rejected(Rejection::Unavailable);
                };
                self.state().asked.insert(request.id.0, (*run, thread.clone()));
                let ask = AskWhatsApp::History {
                    connection,
                    request: request.id.0,
                    thread: thread.clone(),
                    anchor: anchor.clone(),
                    count: *count,
                };
                self.0.wire.ask_whatsapp(account, ask).await
            }
            GatewayCall::Logout => {
                let answer = self.0.wire.ask_whatsapp(account, AskWhatsApp::Logout).await;
                self.0.handle.credentials(request.account.clone(), false);
                answer
            }
            GatewayCall::Parse { chunk, from } => {
                self.parse(&request.account, account, *chunk, *from).await
            }
            GatewayCall::Recover => {
                let list = self.spool(account, AskSpool::List).await;
                if let Reply::Chunks { spooled, missing } = list {
                    let spooled = spooled.into_iter().map(ChunkId);
                    let spooled = spooled.map(|chunk| GatewayEvent::Chunk { chunk, spooled: true });
                    let missing = missing.into_iter().map(ChunkId);
                    let missing = missing.map(|chunk| GatewayEvent::ChunkMissing { chunk });
                    for event in spooled.chain(missing) {
                        self.0.handle.report(request.account.clone(), event);
                    }
                }
                Answer::Done
            }
            GatewayCall::Send { outbox, wa_id } => {
                let read = self.0.wire.get(&[outbox.path()]).await;
                let doc = read.ok().and_then(|read| read.docs.into_iter().next().flatten());
                let thread = doc.and_then(|doc| ThreadId::parse(doc.str("threadId")?).ok());
                let (Some(thread), Some(connection)) = (thread, self.connection(account)) else {
                    return Answer::Rejected(Rejection::Unavailable);
                };
                if !self.starts(&request) {
                    return Answer::Rejected(Rejection::Expired);
                }
                let ask = AskWhatsApp::Send {
                    connection,
                    outbox: outbox.text(),
                    thread,
                    wa_id: wa_id.clone(),
                };
                self.0.wire.ask_whatsapp(account, ask).await
            }
            GatewayCall::Spool { chunk } => {
                let content = self.state().chunks.get(&(account, chunk.0)).cloned();
                let Some(content) = content else {
                    return Answer::Rejected(Rejection::Invalid);
                };
                let done = self.spool(account, AskSpool::Put(chunk.0, content)).await;
                self.state().chunks.remove(&(account, chunk.0));
                match done {
                    Reply::Answer(answer) => answer,
                    Reply::Chunk(_) | Reply::Chunks { .. } => Answer::Unknown,
                }
            }
            GatewayCall::Unspool { chunk } => {
                match self.spool(account, AskSpool::Remove(chunk.0)).await {
                    Reply::Answer(answer) => answer,
                    Reply::Chunk(_) | Reply::Chunks { .. } => Answer::Unknown,
                }
            }
        }
    }
}
