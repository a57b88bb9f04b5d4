//! WhatsApp's node: it hears processes, and brings them what the network has for them.

use std::sync::Arc;

use backfill_core::id::OutboxId;
use backfill_core::incoming::SyncSource;
use backfill_core::io::{Answer, CloseReason, Rejection};
use madsim::net::Endpoint;

use super::World;
use super::truth::{State, Truth};
use super::wire::{
    AskWhatsApp, Brought, Chunk, Ear, FromWhatsApp, Lines, SayToWhatsApp, ToWhatsApp, WHATSAPP,
};
use crate::chance::Chance;
use crate::scenario::{AccountPlan, Kind};
use crate::trace::Entry;
use crate::whatsapp::{ConnKey, Delivery, Mail, Out};
use crate::world::{intake, node, people};

pub(super) async fn serve(world: World) {
    let endpoint = Endpoint::bind(WHATSAPP).await.expect("nobody else is there");
    let seed = world.look(|truth| truth.scenario.seed);
    let server = Server { world, lines: Lines::new() };
    madsim::task::spawn(server.clone().bring());
    loop {
        let (process, ear) = server.lines.accept(&endpoint).await;
        let chance = Chance::new(Chance::of(seed, "whatsapp").next() ^ u64::from(process));
        madsim::task::spawn(server.clone().listen(process, ear, chance));
    }
}

#[derive(Clone)]
struct Server {
    world: World,
    lines: Lines<FromWhatsApp>,
}

impl Server {
    async fn listen(self, process: u32, mut ear: Ear<ToWhatsApp>, mut chance: Chance) {
        while let Some(ToWhatsApp { account, say }) = ear.hear().await {
            let answer = self.world.look(|truth| truth.hear(process, account, say, &mut chance));
            if let Some((id, answer)) = answer {
                self.lines.say(process, FromWhatsApp::Answer(id, answer));
            }
        }
        self.lines.forget(process);
    }

    /// Carries out what is to happen, when its time comes.
    async fn bring(self) {
        loop {
            match self.world.next(|truth| &mut truth.later).await {
                Out::Deliver(account, key, delivery) => {
                    let brought = self.world.look(|truth| truth.bring(account, key, delivery));
                    let Some(brought) = brought else { continue };
                    let connection = key.request;
                    let message = FromWhatsApp::Brought { account, connection, brought };
                    self.lines.say(key.process, message);
                }
                Out::Later(account, later) => self.world.look(|truth| {
                    let linked = truth.net.is_linked(account);
                    truth.net.handle(truth.now, account, later, &mut truth.faults);
                    if !linked && truth.net.is_linked(account) {
                        // Its credentials lie where its connection ends.
                        let by = truth.net.connection(account).map(|key| key.process as usize);
                        let at = by.and_then(|p| truth.processes.get(p)).map(|p| p.instance);
                        truth.checker.linked(account, at);
                    }
                }),
            }
        }
    }
}

impl Truth {
    /// What a process says to WhatsApp, and the answer if it asks something.
    fn hear(
        &mut self,
        p: u32,
        account: u16,
        say: SayToWhatsApp,
        chance: &mut Chance,
    ) -> Option<(u64, Answer)> {
        self.events += 1;
        if !self.is_alive(p) {
            return None; // The connection it came over is closed.
        }
        match say {
            SayToWhatsApp::Acknowledge { connection, mail } => {
                let key = ConnKey { process: p, request: connection };
                self.net.acknowledge(account, key, &mail);
                None
            }
            SayToWhatsApp::Ask(id, ask) => Some((id, self.answer(p, account, ask, chance))),
        }
    }

    fn answer(&mut self, p: u32, account: u16, ask: AskWhatsApp, chance: &mut Chance) -> Answer {
        let instance = self.processes[p as usize].instance;
        let key = |request| ConnKey { process: p, request };
        let uncertain = matches!(
            ask,
            AskWhatsApp::Connect { .. } | AskWhatsApp::History { .. } | AskWhatsApp::Send { .. }
        ) && self.faults.strikes(Kind::GatewayUnknown, instance, account).is_some();
        if uncertain && chance.permille(500) {
            return Answer::Unknown;
        }
        let done = match ask {
            AskWhatsApp::Close { connection } => {
                self.net.close(account, key(connection));
                self.processes[p as usize].connections.remove(&(account, connection));
                self.checker.disconnected(self.now, p, account);
                self.trace.note(self.now, || Entry::Connection {
                    process: p,
                    account,
                    open: false,
                });
                true
            }
            AskWhatsApp::Connect { connection } => {
                let opening =
                    self.net.open(self.now, account, key(connection), instance, &mut self.faults);
                if !opening.unreachable {
                    self.processes[p as usize].connections.insert((account, connection));
                    let replaced = opening.replaced.map(|old| old.process);
                    self.checker.connected(self.now, p, account, replaced);
                    self.trace.note(self.now, || Entry::Connection {
                        process: p,
                        account,
                        open: true,
                    });
                }
                !opening.unreachable
            }
            AskWhatsApp::History { connection, request, thread, anchor, count } => {
                let named = (anchor.id.as_str(), anchor.second, anchor.from_me);
                let (net, faults) = (&mut self.net, &mut self.faults);
                let key = key(connection);
                let sent =
                    net.ask_history(self.now, account, key, request, &thread, named, count, faults);
                if sent {
                    let id = AccountPlan::account(account);
                    let reserved = people::is_reserved(&self.store, &id, self.store_time());
                    let anchor = (&thread, anchor.id.as_str());
                    self.checker.phone_asked(self.now, p, account, anchor, reserved);
                    self.trace.note(self.now, || Entry::Phone {
                        account,
                        process: p,
                        request,
                        messages: None,
                    });
                }
                sent
            }
            AskWhatsApp::Logout => {
                self.note_disconnected(account);
                self.net.log_out(self.now, account);
                self.checker.unlinked(account, instance);
                true
            }
            AskWhatsApp::Send { connection, outbox, thread, wa_id } => {
                let sent = self.net.send(self.now, account, key(connection), &thread, &wa_id);
                if sent {
                    let doc = OutboxId::parse(outbox.clone()).ok().map(|id| id.path());
                    let doc = doc.and_then(|path| self.store.document(&path));
                    let claimed = doc.is_some_and(|doc| doc.str("waMessageId") == Some(&*wa_id));
                    self.checker.sent(self.now, p, &outbox, &wa_id, claimed);
                }
                sent
            }
        };
        match (uncertain, done) {
            (true, _) => Answer::Unknown,
            (false, true) => Answer::Done,
            (false, false) => Answer::Rejected(Rejection::Unavailable),
        }
    }

    /// What a delivery looks like to the client it reaches; `None` if there is nobody.
    fn bring(&mut self, account: u16, key: ConnKey, delivery: Delivery) -> Option<Brought> {
        self.events += 1;
        if !self.is_alive(key.process) {
            node::receive(&mut self.net, self.now, account, key, &delivery);
            return None;
        }
        let now = self.now;
        let record =
            |mail: Mail| intake::record(&self.net, now, account, mail, SyncSource::Realtime);
        let told = |mail: &[Mail], lid, source| {
            let told = |mail: &Mail| intake::told(&self.net, now, account, *mail, lid, source);
            mail.iter().filter_map(told).collect()
        };
        Some(match delivery {
            Delivery::Chunk(number) => {
                let chunk = self.next_chunk;
                self.next_chunk += 1;
                let content: Chunk = self
                    .net
                    .chunk(account, number)
                    .iter()
                    .map(|stretch| {
                        let mail = intake::history(&self.net, account, *stretch);
                        let records = told(&mail, false, SyncSource::HistorySync);
                        (stretch.from > 0, mail, records)
                    })
                    .collect();
                Brought::Chunk(chunk, Arc::new(content))
            }
            Delivery::ChunkMissing => {
                let chunk = self.next_chunk;
                self.next_chunk += 1;
                self.missing.insert((account, chunk));
                Brought::ChunkMissing(chunk)
            }
            Delivery::Closed(reason) => {
                self.processes[key.process as usize].connections.remove(&(account, key.request));
                self.net.close(account, key);
                self.checker.disconnected(self.now, key.process, account);
                if reason == CloseReason::LoggedOut {
                    let instance = self.processes[key.process as usize].instance;
                    self.checker.unlinked(account, instance);
                }
                Brought::Closed(reason)
            }
            Delivery::Live(mail) => Brought::Live(mail, record(mail)?),
            Delivery::Offline(mail) => Brought::Offline(
                mail.iter().filter_map(|mail| Some((*mail, record(*mail)?))).collect(),
            ),
            Delivery::OfflineEnd(announced) => Brought::OfflineEnd(announced),
            Delivery::Opened => Brought::Opened,
            Delivery::Page(page) => {
                let (process, request) = page.asker;
                let messages = page.stretch.to - page.stretch.from;
                self.trace.note(self.now, || Entry::Phone {
                    account,
                    process,
                    request,
                    messages: Some(messages),
                });
                let mail = intake::history(&self.net, account, page.stretch);
                Brought::Page {
                    asker: page.asker,
                    thread: self.net.thread_called(account, page.stretch.thread, page.lid)?,
                    more: page.more,
                    records: told(&mail, page.lid, SyncSource::Backfill),
                    mail,
                    twins: self.net.twins(self.now, account),
                }
            }
            Delivery::Paired => {
                let instance = self.processes[key.process as usize].instance;
                self.checker.linked(account, Some(instance));
                Brought::Paired
            }
            Delivery::Pairing => Brought::Pairing,
            Delivery::Undecryptable(message) => {
                let thread = self.net.home(self.now, account, message)?;
                let second = self.net.message(account, message)?.second;
                let mail = Mail::Unreadable(message);
                let record = record(mail)?;
                // A client that stands still tells the server nothing.
                if self.processes[key.process as usize].state == State::Running {
                    self.net.unreadable(self.now, account, key, message);
                    let lost = (thread.clone(), second);
                    self.checker.undecryptable(key.process, account, message, lost);
                }
                Brought::Undecryptable { thread, second, mail, record }
            }
        })
    }
}
