//! The gateway of a process: connections to WhatsApp, and what comes over them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use backfill_core::id::RequestId;
use backfill_core::io::{
    Answer, ChunkId, CloseReason, Command, CommandId, GatewayCall, GatewayEvent, GatewayRequest,
    Input, Rejection, RunKind,
};

use super::intake::{Origin, history};
use super::people::is_reserved;
use super::{Ev, State, World};
use crate::checker::Touched;
use crate::scenario::{AccountPlan, Kind};
use crate::trace::Entry;
use crate::variant::Slip;
use crate::whatsapp::{ConnKey, Delivery, FOREIGN, Mail, Page};

/// What the gateway of one process has in hand.
#[derive(Debug, Default)]
pub(super) struct Gateway {
    /// By account and the request that opened it
    links: BTreeMap<(u16, u64), Link>,
    /// Requests to connect whose connections were told to close before they began
    closed_early: BTreeSet<u64>,
    /// Requests for history that wait for an answer
    asked: BTreeMap<u64, RunKind>,
    /// Chunks that arrived and are not in the spool yet
    chunks: BTreeMap<(u16, u64), u32>,
}

/// A connection.
#[derive(Debug, Default)]
struct Link {
    open: bool,
    closing: bool,
    /// Arrived, and not yet being stored
    backlog: VecDeque<Arrived>,
    busy: bool,
    /// Of the offline queue, how many became durable
    stored: u32,
}

#[derive(Debug)]
enum Arrived {
    Live(Mail),
    Offline(Box<[Mail]>),
    OfflineEnd(u32),
}

/// What a gateway does next.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A connection is closed
    Closed { account: u16, connection: RequestId, request: RequestId },
    /// A command comes late
    Command(CommandId, Command),
    /// The effect starts, unless it is too late
    Do(Box<GatewayRequest>),
}

/// Live messages that are stored in one go.
const LIVE_BATCH: usize = 50;

impl Gateway {
    /// Account and request of every connection.
    pub(super) fn connections(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        self.links.keys().copied()
    }
}

impl World {
    pub(super) fn ask_gateway(&mut self, p: u32, request: GatewayRequest) {
        let wait = self.processes[p as usize].chance.between(1, 15);
        let step = Step::Do(Box::new(request));
        self.queue.push(self.now.after(wait), Ev::Gateway(p, step));
    }

    pub(super) fn gateway_step(&mut self, p: u32, step: Step) {
        match step {
            Step::Closed { account, connection, request } => {
                self.close_link(p, account, connection);
                self.feed(p, Input::Answer(request, Answer::Done), Touched::NOTHING);
                self.tell(
                    p,
                    account,
                    GatewayEvent::Closed { connection, reason: CloseReason::Asked },
                );
            }
            Step::Command(id, command) => {
                self.feed(p, Input::Command(id, command), Touched::NOTHING);
            }
            Step::Do(request) => self.start_effect(p, *request),
        }
    }

    fn start_effect(&mut self, p: u32, request: GatewayRequest) {
        let process = &mut self.processes[p as usize];
        let mono = self.hosts[process.host].clock.mono(self.now);
        let instance = process.instance;
        let Some(account) = AccountPlan::number(request.account.as_str()) else {
            return self.gateway_answer(p, request.id, 1, Answer::Rejected(Rejection::Invalid));
        };
        if mono > request.not_after && self.slip != Some(Slip::NotAfterUnchecked) {
            return self.gateway_answer(p, request.id, 1, Answer::Rejected(Rejection::Expired));
        }
        self.checker.effect_starts(self.now, p, mono, &request, &process.core);
        let uncertain = matches!(
            request.call,
            GatewayCall::Connect | GatewayCall::History { .. } | GatewayCall::Send { .. }
        ) && self.faults.strikes(Kind::GatewayUnknown, instance, account).is_some();
        if uncertain && self.processes[p as usize].chance.permille(500) {
            return self.gateway_answer(p, request.id, 2_000, Answer::Unknown);
        }
        let GatewayRequest { id, call, .. } = request;
        let answer = match call {
            GatewayCall::Close { connection } => {
                return self.begin_close(p, account, connection, id);
            }
            GatewayCall::Connect => self.open_link(p, account, id),
            GatewayCall::History { thread, anchor, count, run } => {
                let key = self.connection_of(p, account);
                let sent = key.is_some_and(|key| {
                    let named = (anchor.id.as_str(), anchor.second, anchor.from_me);
                    let (net, faults) = (&mut self.net, &mut self.faults);
                    net.ask_history(self.now, account, key, id.0, &thread, named, count, faults)
                });
                if sent {
                    self.processes[p as usize].gateway.asked.insert(id.0, run);
                    let now = self.store_clock.store(self.now);
                    let reserved = is_reserved(&self.store, &AccountPlan::account(account), now);
                    let anchor = (&thread, anchor.id.as_str());
                    self.checker.phone_asked(self.now, p, account, anchor, reserved);
                    self.trace.note(self.now, || Entry::Phone {
                        account,
                        process: p,
                        request: id.0,
                        messages: None,
                    });
                }
                done_or_unavailable(sent)
            }
            GatewayCall::Logout => {
                self.note_disconnected(account);
                self.net.log_out(self.now, account);
                if self.scenario.pace.local {
                    self.credentials(p, account, false);
                }
                Answer::Done
            }
            GatewayCall::Parse { chunk, from } => {
                match self.spool.get(&(account, chunk.0)).copied() {
                    Some(number) => {
                        return self.parse_conversation(p, account, id, chunk.0, number, from);
                    }
                    None => {
                        let gateway = &self.processes[p as usize].gateway;
                        if gateway.chunks.contains_key(&(account, chunk.0)) {
                            self.checker.violate("S12", self.now, || {
                                format!("process {p} parses a chunk that is not in the spool")
                            });
                        }
                        Answer::Rejected(Rejection::Invalid)
                    }
                }
            }
            GatewayCall::Recover => {
                let range = (account, 0)..=(account, u64::MAX);
                let spooled: Vec<u64> = self.spool.range(range).map(|((_, c), _)| *c).collect();
                for chunk in spooled {
                    let chunk = ChunkId(chunk);
                    self.tell(p, account, GatewayEvent::Chunk { chunk, spooled: true });
                }
                let range = (account, 0)..=(account, u64::MAX);
                let missing: Vec<u64> = self.missing.range(range).map(|(_, c)| *c).collect();
                for chunk in missing {
                    let chunk = ChunkId(chunk);
                    self.tell(p, account, GatewayEvent::ChunkMissing { chunk });
                }
                Answer::Done
            }
            GatewayCall::Send { outbox, wa_id } => self.send_message(p, account, &outbox, &wa_id),
            GatewayCall::Spool { chunk } => {
                let number = self.processes[p as usize].gateway.chunks.remove(&(account, chunk.0));
                match number {
                    Some(number) => {
                        self.spool.insert((account, chunk.0), number);
                        Answer::Done
                    }
                    None if self.spool.contains_key(&(account, chunk.0)) => Answer::Done,
                    None => Answer::Rejected(Rejection::Invalid),
                }
            }
            GatewayCall::Unspool { chunk } => {
                self.spool.remove(&(account, chunk.0));
                self.missing.remove(&(account, chunk.0));
                Answer::Done
            }
        };
        let answer = if uncertain { Answer::Unknown } else { answer };
        let wait = self.processes[p as usize].chance.between(5, 80);
        self.gateway_answer(p, id, wait, answer);
    }

    fn gateway_answer(&mut self, p: u32, id: RequestId, after: u64, answer: Answer) {
        self.queue.push(self.now.after(after), Ev::Answer(p, id, Touched::NOTHING, answer));
    }

    fn tell(&mut self, p: u32, account: u16, event: GatewayEvent) {
        if self.processes[p as usize].state == State::Dead {
            return;
        }
        self.feed(p, Input::Gateway(AccountPlan::account(account), event), Touched::NOTHING);
    }

    fn open_link(&mut self, p: u32, account: u16, id: RequestId) -> Answer {
        if self.processes[p as usize].gateway.closed_early.remove(&id.0) {
            return Answer::Rejected(Rejection::Unavailable);
        }
        let key = ConnKey { process: p, request: id.0 };
        let instance = self.processes[p as usize].instance;
        let opening = self.net.open(self.now, account, key, instance, &mut self.faults);
        if opening.unreachable {
            // A client may find out at once, or after having said that it would try.
            if self.processes[p as usize].chance.permille(500) {
                return Answer::Rejected(Rejection::Unavailable);
            }
            let closed = Delivery::Closed(CloseReason::Lost);
            self.processes[p as usize].gateway.links.insert((account, id.0), Link::default());
            self.queue.push(self.now.after(500), Ev::Deliver(account, key, closed));
            return Answer::Done;
        }
        self.processes[p as usize].gateway.links.insert((account, id.0), Link::default());
        self.checker.connected(self.now, p, account, opening.replaced.map(|old| old.process));
        self.trace.note(self.now, || Entry::Connection { process: p, account, open: true });
        Answer::Done
    }

    /// Another client takes the account's connection, and leaves soon.
    pub(super) fn foreign_login(&mut self, account: u16) {
        let key = ConnKey { process: FOREIGN, request: self.now.0 };
        self.note_disconnected(account);
        self.net.open(self.now, account, key, u8::MAX, &mut self.faults);
        self.net.close(account, key);
    }

    fn begin_close(&mut self, p: u32, account: u16, connection: RequestId, request: RequestId) {
        let process = &mut self.processes[p as usize];
        let close = self.hosts[process.host].policy.close_timeout.as_millis() as u64;
        // Mostly at once, sometimes as slowly as is allowed.
        let wait = match process.chance.below(8) {
            0 => close * 9 / 10,
            _ => process.chance.between(5, 60),
        };
        match process.gateway.links.get_mut(&(account, connection.0)) {
            Some(link) => link.closing = true,
            None => drop(process.gateway.closed_early.insert(connection.0)),
        }
        let step = Step::Closed { account, connection, request };
        self.queue.push(self.now.after(wait), Ev::Gateway(p, step));
    }

    fn close_link(&mut self, p: u32, account: u16, connection: RequestId) {
        let link = self.processes[p as usize].gateway.links.remove(&(account, connection.0));
        let key = ConnKey { process: p, request: connection.0 };
        self.net.close(account, key);
        if link.is_some() {
            self.checker.disconnected(self.now, p, account);
            self.trace.note(self.now, || Entry::Connection { process: p, account, open: false });
        }
    }

    /// WhatsApp ends the account's connection, whoever has it.
    pub(super) fn note_disconnected(&mut self, account: u16) {
        if let Some(key) = self.net.connection(account) {
            self.checker.disconnected(self.now, key.process, account);
        }
    }

    pub(super) fn connection_of(&self, p: u32, account: u16) -> Option<ConnKey> {
        let range = (account, 0)..=(account, u64::MAX);
        self.processes[p as usize]
            .gateway
            .links
            .range(range)
            .find(|(_, link)| link.open && !link.closing)
            .map(|((_, request), _)| ConnKey { process: p, request: *request })
    }

    pub(super) fn deliver(&mut self, account: u16, key: ConnKey, delivery: Delivery) {
        let p = key.process;
        let connection = RequestId(key.request);
        let gateway = &mut self.processes[p as usize].gateway;
        let Some(link) = gateway.links.get_mut(&(account, key.request)) else { return };
        match delivery {
            Delivery::Chunk(number) => {
                let chunk = self.next_chunk;
                self.next_chunk += 1;
                gateway.chunks.insert((account, chunk), number);
                let event = GatewayEvent::Chunk { chunk: ChunkId(chunk), spooled: false };
                self.tell(p, account, event);
            }
            Delivery::ChunkMissing => {
                let chunk = self.next_chunk;
                self.next_chunk += 1;
                self.missing.insert((account, chunk));
                let chunk = ChunkId(chunk);
                self.tell(p, account, GatewayEvent::ChunkMissing { chunk });
            }
            Delivery::Closed(reason) => {
                if reason == CloseReason::LoggedOut && self.scenario.pace.local {
                    self.credentials(p, account, false);
                }
                self.close_link(p, account, connection);
                self.tell(p, account, GatewayEvent::Closed { connection, reason });
            }
            Delivery::Live(message) => {
                link.backlog.push_back(Arrived::Live(message));
                self.pump_link(p, account, key.request);
            }
            Delivery::Offline(messages) => {
                link.backlog.push_back(Arrived::Offline(messages));
                self.pump_link(p, account, key.request);
            }
            Delivery::OfflineEnd(announced) => {
                link.backlog.push_back(Arrived::OfflineEnd(announced));
                self.pump_link(p, account, key.request);
            }
            Delivery::Opened => {
                link.open = true;
                self.tell(p, account, GatewayEvent::Opened { connection });
            }
            Delivery::Page(page) => self.page(p, account, page),
            Delivery::Paired => {
                if self.scenario.pace.local {
                    self.credentials(p, account, true);
                }
                self.tell(p, account, GatewayEvent::Paired { connection });
            }
            Delivery::Pairing => {
                let qr = Some("data:image/png;base64,AA==".into());
                self.tell(p, account, GatewayEvent::Pairing { connection, qr, code: None });
            }
            Delivery::Undecryptable(message) => {
                link.backlog.push_back(Arrived::Live(Mail::Unreadable(message)));
                self.net.unreadable(self.now, account, key, message);
                let thread = self.net.home(self.now, account, message);
                let known = self.net.message(account, message);
                if let (Some(thread), Some(known)) = (thread, known) {
                    let second = known.second;
                    let lost = (thread.clone(), second);
                    self.checker.undecryptable(p, account, message, lost);
                    self.tell(p, account, GatewayEvent::Undecryptable { thread, second });
                }
                self.pump_link(p, account, key.request);
            }
        }
    }

    fn page(&mut self, p: u32, account: u16, page: Page) {
        let asked = &mut self.processes[p as usize].gateway.asked;
        let mine = page.asker.0 == p;
        let run = mine.then(|| asked.remove(&page.asker.1)).flatten();
        if run.is_none() {
            self.checker.duplicate_reply();
        }
        let (request, count) = (page.asker.1, page.stretch.to - page.stretch.from);
        self.trace.note(self.now, || Entry::Phone {
            account,
            process: p,
            request,
            messages: Some(count),
        });
        let origin = Origin::Page {
            request: run.map(|_| request),
            run: run.unwrap_or(RunKind::AutoBackfill),
            thread: page.stretch.thread,
            lid: page.lid,
            more: page.more,
        };
        let mail = history(&self.net, account, page.stretch);
        self.begin_job(p, account, origin, mail);
    }

    /// Stores what has arrived, in order, one batch at a time.
    fn pump_link(&mut self, p: u32, account: u16, connection: u64) {
        let gateway = &mut self.processes[p as usize].gateway;
        let Some(link) = gateway.links.get_mut(&(account, connection)) else { return };
        if link.busy {
            return;
        }
        let batch = match link.backlog.pop_front() {
            None => return,
            Some(Arrived::Live(message)) => {
                let mut batch = vec![message];
                while batch.len() < LIVE_BATCH
                    && let Some(Arrived::Live(_)) = link.backlog.front()
                    && let Some(Arrived::Live(message)) = link.backlog.pop_front()
                {
                    batch.push(message);
                }
                batch
            }
            Some(Arrived::Offline(messages)) => messages.into_vec(),
            Some(Arrived::OfflineEnd(announced)) => {
                let stored = link.stored;
                self.net.drained(account, ConnKey { process: p, request: connection });
                let connection = RequestId(connection);
                self.tell(p, account, GatewayEvent::Drained { connection, announced, stored });
                return self.pump_link(p, account, connection.0);
            }
        };
        link.busy = true;
        self.begin_job(p, account, Origin::Realtime { connection }, batch);
    }

    /// A batch is stored, or could not be.
    pub(super) fn realtime_done(
        &mut self,
        p: u32,
        account: u16,
        connection: u64,
        stored: Option<usize>,
    ) {
        let gateway = &mut self.processes[p as usize].gateway;
        let Some(link) = gateway.links.get_mut(&(account, connection)) else { return };
        link.busy = false;
        link.stored += stored.unwrap_or(0) as u32;
        self.pump_link(p, account, connection);
    }
}

pub(super) const fn done_or_unavailable(done: bool) -> Answer {
    if done { Answer::Done } else { Answer::Rejected(Rejection::Unavailable) }
}
