//! The store's node: a document store behind a network that loses, delays and repeats.

use backfill_core::id::Epoch;
use backfill_core::io::{Answer, Hint, Rejection, StoreCall};
use backfill_driver::port::StoreError;
use madsim::net::Endpoint;

use super::World;
use super::truth::{NOBODY, Truth};
use super::wire::{AskSpool, AskStore, Ear, FromStore, Lines, Reply, STORE, ToStore};
use crate::chance::Chance;
use crate::scenario::Kind;

pub(super) async fn serve(world: World) {
    let endpoint = Endpoint::bind(STORE).await.expect("nobody else is there");
    let seed = world.look(|truth| truth.scenario.seed);
    let server = Server { world, lines: Lines::new() };
    madsim::task::spawn(server.clone().carry_on());
    loop {
        let (process, ear) = server.lines.accept(&endpoint).await;
        let chance = Chance::new(Chance::of(seed, "store").next() ^ u64::from(process));
        madsim::task::spawn(server.clone().listen(process, ear, chance));
    }
}

#[derive(Clone)]
struct Server {
    world: World,
    lines: Lines<FromStore>,
}

/// What the store does later.
pub(super) enum Due {
    Answer {
        process: u32,
        id: u64,
        answer: Answer,
    },
    /// It is answered, unless it is late
    CarryOut(Request),
    Hint(u32, Hint),
}

/// A call, and what the checker wants to know of it.
#[derive(Clone)]
pub(super) struct Request {
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
    async fn listen(self, process: u32, mut ear: Ear<ToStore>, mut chance: Chance) {
        while let Some(ToStore { id, ask }) = ear.hear().await {
            match ask {
                AskStore::Call { call, core, epoch } => {
                    let request = Request { process, id, call, core, epoch, late: false };
                    self.world.look(|truth| truth.take(&mut chance, request));
                }
                AskStore::Spool(account, ask) => {
                    let reply = self.world.look(|truth| truth.spool(account, ask));
                    self.say(process, FromStore::Answer(id, reply));
                }
            }
        }
        self.lines.forget(process);
    }

    /// Does what is due.
    async fn carry_on(self) {
        loop {
            match self.world.next(|truth| &mut truth.due).await {
                Due::Answer { process, id, answer } => {
                    self.say(process, FromStore::Answer(id, Reply::Answer(answer)));
                }
                Due::CarryOut(request) => {
                    let answer = self.world.look(|truth| truth.carry_out(&request));
                    if !request.late {
                        let reply = Reply::Answer(answer);
                        self.say(request.process, FromStore::Answer(request.id, reply));
                    }
                }
                Due::Hint(p, hint) => {
                    self.world
                        .look(|truth| truth.processes[p as usize].hinted[hint as usize] = false);
                    self.say(p, FromStore::Hint(hint));
                }
            }
        }
    }

    fn say(&self, process: u32, message: FromStore) {
        if !self.world.look(|truth| truth.is_cut_off(process, false)) {
            self.lines.say(process, message);
        }
    }
}

impl Truth {
    /// A request arrives; it is carried out now or later, or never.
    fn take(&mut self, chance: &mut Chance, request: Request) {
        self.events += 1;
        let p = request.process;
        let is_commit = matches!(request.call, StoreCall::Commit(_));
        let policy = &self.hosts[self.processes[p as usize].host].policy;
        let timeout = if is_commit { policy.write_timeout } else { policy.read_timeout };
        let timeout = timeout.as_millis() as u64;
        let (fate, delay) = self.fate(p, is_commit, timeout, chance);
        if !matches!(fate, Fate::Usual) || delay > 500 {
            self.checker.disturbed(self.now, p);
        }
        if is_commit
            && matches!(fate, Fate::Usual)
            && let Some(Kind::StoreDuplicate { ms }) =
                self.strikes(p, Kind::StoreDuplicate { ms: 0 })
        {
            let again = Request { late: true, ..request.clone() };
            self.due.push(self.now.after(delay + ms), Due::CarryOut(again));
        }
        let answer = |answer| Due::Answer { process: p, id: request.id, answer };
        match fate {
            Fate::Answered(refusal) => self.due.push(self.now.after(delay), answer(refusal)),
            Fate::Lost => self.note_unknown(&request, false),
            Fate::Late(ms) => {
                let late = Request { late: true, ..request };
                self.due.push(self.now.after(timeout + ms), Due::CarryOut(late));
            }
            Fate::Silent => {
                let applied = matches!(self.carry_out(&request), Answer::Committed { .. });
                self.note_unknown(&request, applied);
            }
            // It takes effect soon after it is sent, or shortly before its answer arrives.
            Fate::Usual if chance.permille(500) => {
                let done = self.carry_out(&request);
                self.due.push(self.now.after(delay), answer(done));
            }
            Fate::Usual => self.due.push(self.now.after(delay), Due::CarryOut(request)),
        }
    }

    /// Nobody will learn what became of a commit.
    fn note_unknown(&mut self, request: &Request, applied: bool) {
        if let StoreCall::Commit(_) = request.call {
            let session = self.checker.touched_by_call(&request.call).session;
            self.checker.unknown(request.process, applied, request.core && session);
        }
    }

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
