//! The store's node: a document store behind a network that loses, delays and repeats.

use backfill_core::id::Epoch;
use backfill_core::io::{Answer, Rejection, StoreCall};
use backfill_driver::port::StoreError;
use madsim::net::Endpoint;

use super::truth::{NOBODY, Truth};
use super::wire::{AskSpool, AskStore, Reply, STORE, ToProcess, ToStore, receive, send};
use super::{World, process};
use crate::chance::Chance;
use crate::scenario::Kind;

/// So many messages are on their way from the network card to the program at once.
const EARS: usize = 4;

pub(super) async fn serve(world: World) {
    let endpoint = Endpoint::bind(STORE).await.expect("nobody else is there");
    let seed = world.look(|truth| truth.scenario.seed);
    let ears = (0..EARS).map(|ear| {
        let server = Server { world: world.clone(), endpoint: endpoint.clone() };
        madsim::task::spawn(
            server.listen(Chance::new(Chance::of(seed, "store").next() ^ ear as u64)),
        )
    });
    for ear in ears.collect::<Vec<_>>() {
        ear.await.ok();
    }
}

#[derive(Clone)]
struct Server {
    world: World,
    endpoint: Endpoint,
}

/// A call, and what the checker wants to know of it.
#[derive(Clone)]
struct Request {
    process: u32,
    id: u64,
    call: StoreCall,
    core: bool,
    epoch: Option<Epoch>,
    /// Nobody waits for it any more, or it was carried out before
    late: bool,
}

/// What becomes of a request.
enum Fate {
    /// Answered at once, and not carried out
    Answered(Answer),
    /// Never heard of again
    Lost,
    /// Carried out after this many more milliseconds than its sender waits
    Late(u64),
    /// Carried out, and its answer is lost
    Silent,
    Usual,
}

impl Server {
    async fn listen(self, mut chance: Chance) {
        loop {
            let ToStore { process, id, ask } = receive(&self.endpoint).await;
            match ask {
                AskStore::Call { call, core, epoch } => {
                    let late = false;
                    self.take(&mut chance, Request { process, id, call, core, epoch, late });
                }
                AskStore::Spool(account, ask) => {
                    let reply = self.world.look(|truth| truth.spool(account, ask));
                    self.reply(process, id, reply);
                }
            }
            self.tell_hints(&mut chance);
        }
    }

    fn take(&self, chance: &mut Chance, request: Request) {
        let p = request.process;
        let (fate, delay, again, timeout) = self.world.look(|truth| {
            truth.events += 1;
            let is_commit = matches!(request.call, StoreCall::Commit(_));
            let policy = &truth.hosts[truth.processes[p as usize].host].policy;
            let timeout = if is_commit { policy.write_timeout } else { policy.read_timeout };
            let timeout = timeout.as_millis() as u64;
            let (fate, delay) = truth.fate(p, is_commit, timeout, chance);
            if is_commit && matches!(fate, Fate::Lost) {
                let session = truth.checker.touched_by_call(&request.call).session;
                truth.checker.unknown(p, false, request.core && session);
            }
            if !matches!(fate, Fate::Usual) || delay > 500 {
                truth.checker.disturbed(truth.now, p);
            }
            let again = match (is_commit, &fate) {
                (true, Fate::Usual) => truth.strikes(p, Kind::StoreDuplicate { ms: 0 }),
                _ => None,
            };
            (fate, delay, again, timeout)
        });
        if let Some(Kind::StoreDuplicate { ms }) = again {
            let request = Request { late: true, ..request.clone() };
            self.after(delay + ms, move |server| drop(server.carry_out(&request)));
        }
        match fate {
            Fate::Answered(answer) => {
                self.after(delay, move |server| server.answer(p, request.id, answer));
            }
            Fate::Lost => {}
            Fate::Late(ms) => {
                let request = Request { late: true, ..request };
                self.after(timeout + ms, move |server| drop(server.carry_out(&request)));
            }
            Fate::Silent => {
                let applied = matches!(self.carry_out(&request), Answer::Committed { .. });
                if let StoreCall::Commit(_) = request.call {
                    self.world.look(|truth| {
                        let session = truth.checker.touched_by_call(&request.call).session;
                        truth.checker.unknown(p, applied, request.core && session);
                    });
                }
            }
            // It takes effect soon after it is sent, or shortly before its answer arrives.
            Fate::Usual if chance.permille(500) => {
                let answer = self.carry_out(&request);
                self.after(delay, move |server| server.answer(p, request.id, answer));
            }
            Fate::Usual => self.after(delay, move |server| {
                let answer = server.carry_out(&request);
                server.answer(p, request.id, answer);
            }),
        }
    }

    fn after(&self, ms: u64, act: impl FnOnce(&Self) + Send + 'static) {
        let server = self.clone();
        madsim::task::spawn(async move {
            server.world.time.sleep(std::time::Duration::from_millis(ms)).await;
            act(&server);
        });
    }

    fn answer(&self, p: u32, id: u64, answer: Answer) {
        self.reply(p, id, Reply::Answer(answer));
    }

    fn reply(&self, p: u32, id: u64, reply: Reply) {
        let endpoint = self.endpoint.clone();
        madsim::task::spawn(async move {
            send(&endpoint, &process::address(p), ToProcess::Answer(id, reply)).await;
        });
    }

    fn carry_out(&self, request: &Request) -> Answer {
        self.world.look(|truth| truth.carry_out(request))
    }

    fn tell_hints(&self, chance: &mut Chance) {
        for (p, hint) in self.world.look(|truth| std::mem::take(&mut truth.hints)) {
            let wait = chance.between(20, 600);
            self.after(wait, move |server| {
                server
                    .world
                    .look(|truth| truth.processes[p as usize].hinted[hint as usize] = false);
                let endpoint = server.endpoint.clone();
                madsim::task::spawn(async move {
                    send(&endpoint, &process::address(p), ToProcess::Hint(hint)).await;
                });
            });
        }
    }
}

impl Truth {
    fn fate(&mut self, p: u32, is_commit: bool, timeout: u64, chance: &mut Chance) -> (Fate, u64) {
        let plan = &self.scenario.store;
        let mut delay = chance.between(plan.latency_min, plan.latency_max);
        if self.faults.is_quiet() {
            return (Fate::Usual, delay);
        }
        if let Some(Kind::StoreSlow { ms }) = self.strikes(p, Kind::StoreSlow { ms: 0 }) {
            delay += ms;
        }
        let fate = if self.strikes(p, Kind::StoreDown).is_some() {
            Fate::Answered(Answer::Rejected(Rejection::Unavailable))
        } else if self.strikes(p, Kind::StoreLosesRequest).is_some() {
            Fate::Lost
        } else if is_commit && self.strikes(p, Kind::StoreConflict).is_some() {
            Fate::Answered(Answer::Conflict)
        } else if let Some(Kind::StoreLate { ms }) = self.strikes(p, Kind::StoreLate { ms: 0 }) {
            Fate::Late(ms)
        } else if self.strikes(p, Kind::StoreLosesReply).is_some() {
            Fate::Silent
        } else if delay >= timeout {
            Fate::Late(delay - timeout)
        } else {
            Fate::Usual
        };
        (fate, delay)
    }

    fn strikes(&mut self, p: u32, kind: Kind) -> Option<Kind> {
        let instance = self.processes[p as usize].instance;
        self.faults.strikes(kind, instance, NOBODY).map(|fault| fault.kind)
    }

    fn carry_out(&mut self, request: &Request) -> Answer {
        let now = self.store_clock.store(self.now);
        let result = match &request.call {
            StoreCall::Get(paths) => {
                let snapshot = self.store.get(now, paths);
                Ok(Answer::Read { read_time: snapshot.read_time, docs: snapshot.docs })
            }
            StoreCall::Query(query) => self
                .store
                .query(now, query)
                .map(|found| Answer::Found { read_time: found.read_time, docs: found.docs }),
            StoreCall::Commit(writes) => {
                let by = request.core.then_some(request.process);
                let committed = self.commit(by, request.epoch, request.late, writes);
                committed.map(|(commit_time, versions)| Answer::Committed { commit_time, versions })
            }
        };
        result.unwrap_or_else(|error| match error {
            StoreError::Conflict(_) => Answer::Conflict,
            StoreError::Denied(_) => Answer::Rejected(Rejection::Denied),
            StoreError::Invalid { .. } => Answer::Rejected(Rejection::Invalid),
            StoreError::Unavailable(_) => Answer::Rejected(Rejection::Unavailable),
            StoreError::Unknown(_) => Answer::Unknown,
        })
    }

    fn spool(&mut self, account: u16, ask: AskSpool) -> Reply {
        match ask {
            AskSpool::Get(chunk) => Reply::Chunk(self.spool.get(&(account, chunk)).cloned()),
            AskSpool::List => {
                let range = (account, 0)..=(account, u64::MAX);
                let spooled = self.spool.range(range.clone()).map(|((_, chunk), _)| *chunk);
                let missing = self.missing.range(range).map(|(_, chunk)| *chunk);
                Reply::Chunks { spooled: spooled.collect(), missing: missing.collect() }
            }
            AskSpool::Put(chunk, content) => {
                self.spool.insert((account, chunk), content);
                Reply::Answer(Answer::Done)
            }
            AskSpool::Remove(chunk) => {
                self.spool.remove(&(account, chunk));
                self.missing.remove(&(account, chunk));
                Reply::Answer(Answer::Done)
            }
        }
    }
}
