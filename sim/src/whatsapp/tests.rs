use super::*;
use crate::scenario::{Pace, Regime, Scenario, StorePlan, Target};

const KEY: ConnKey = ConnKey { process: 1, request: 7 };

#[test]
fn what_is_not_acknowledged_comes_again_at_the_next_login() {
    let mut w = world(&[]);
    w.open(KEY);
    assert_eq!(w.until(Real(10_000)), ["opened", "end 0"]);
    let m = w.write(Real(20_000));
    assert_eq!(w.until(Real(21_000)), ["live 0"]);
    assert!(w.net.close(0, KEY));
    let second = ConnKey { request: 8, ..KEY };
    w.now = Real(30_000);
    w.open(second);
    assert_eq!(w.until(Real(40_000)), ["opened", "offline 1", "end 1"]);
    w.net.acknowledge(0, KEY, &[Mail::Message(m)]);
    assert_eq!(w.net.waiting(0), 1, "an old connection acknowledges nothing");
    w.net.acknowledge(0, second, &[Mail::Message(m)]);
    assert_eq!(w.net.waiting(0), 0);
}

#[test]
fn a_second_connection_replaces_the_first() {
    let mut w = world(&[]);
    w.open(KEY);
    w.until(Real(5_000));
    let other = ConnKey { process: 2, request: 1 };
    assert_eq!(w.open(other).replaced, Some(KEY));
    assert_eq!(w.until(Real(9_000)), ["closed Replaced", "opened", "end 0"]);
    assert!(w.net.is_current(0, other));
}

#[test]
fn pages_go_strictly_backwards_from_a_real_message() {
    let mut w = world(&[]);
    w.open(KEY);
    w.until(Real(5_000));
    let length = w.net.length(0, 0);
    assert!(length > 60);
    let anchor = MessageRef { thread: 0, index: length - 1 };
    w.ask(anchor, 100);
    let from = length - 51;
    assert_eq!(w.until(Real(50_000)), [format!("page {from}..{} true", length - 1)]);
    w.ask(MessageRef { thread: 0, index: 3 }, 20);
    assert_eq!(w.until(Real(90_000)), ["page 0..3 false"]);
    // An invented anchor is taken and never answered.
    let thread = w.net.thread_id(0, 0).unwrap();
    assert!(w.net.ask_history(w.now, 0, KEY, 1, &thread, ("3EB0F", 0, false), 9, &mut w.faults));
    assert_eq!(w.until(Real(200_000)), Vec::<String>::new());
}

#[test]
fn messages_are_in_order_of_time_and_found_by_their_id() {
    let mut w = world(&[]);
    w.write(Real(5));
    let line = &w.net.lines[&0];
    let seconds: Vec<i64> = (0..w.net.length(0, 0)).map(|i| line.message(at(i)).second).collect();
    assert!(seconds.is_sorted());
    assert_eq!(line.find(&line.message(at(9)).id), Some(at(9)));
    assert_eq!(line.find("3EB0000000000FFFFFFF"), None);
}

#[test]
fn an_unlinked_account_is_paired_and_brings_its_history() {
    let mut w =
        world_of(AccountPlan { linked: false, scan: 15_000, messages: 0, ..account() }, &[]);
    w.open(KEY);
    let seen = w.until(Real(60_000));
    assert_eq!(seen[..4], ["pairing", "paired", "opened", "end 0"]);
    assert!(seen[4..].iter().all(|s| s.starts_with("chunk")), "{seen:?}");
    assert!(seen.len() > 4);
    let total: u32 =
        (0..w.net.lines[&0].chunks.len() as u32).map(|c| w.net.chunk(0, c).len() as u32).sum();
    assert_eq!(total, u32::from(w.net.threads(0)));
}

#[test]
fn nobody_scans_and_pairing_expires() {
    let plan = AccountPlan { linked: false, scan: 9_000_000, messages: 0, ..account() };
    let mut w = world_of(plan, &[]);
    w.open(KEY);
    let seen = w.until(Real(600_000));
    assert_eq!(seen.last().unwrap(), "closed PairingExpired");
}

#[test]
fn faults_silence_phones_and_shorten_drains() {
    let fault = |kind, permille| crate::scenario::Fault {
        from: Real::ZERO,
        to: Real::NEVER,
        kind,
        target: Target::Account(0),
        permille,
        salt: 1,
    };
    for silence in [Kind::PhoneSilent, Kind::PhoneOffline] {
        let mut w = world(&[fault(silence, 1_000), fault(Kind::WaShortDrain, 1_000)]);
        let one = w.write(Real(1_000));
        assert_eq!(one.thread, 0);
        w.open(KEY);
        assert_eq!(w.until(Real(5_000)), ["opened", "end 1"]);
        w.ask(MessageRef { thread: 0, index: 9 }, 5);
        assert_eq!(w.until(Real(100_000)), Vec::<String>::new());
        assert_eq!(w.faults.struck()[silence.index()], 1);
    }
}

struct Tiny {
    net: WhatsApp,
    faults: FaultPlan,
    queue: crate::queue::Queue<Out>,
    now: Real,
}

impl Tiny {
    fn open(&mut self, key: ConnKey) -> Opening {
        self.net.open(self.now, 0, key, 0, &mut self.faults)
    }

    fn write(&mut self, now: Real) -> MessageRef {
        self.now = now;
        let line = self.net.lines.get_mut(&0).unwrap();
        let m = line.write(now);
        line.queue.push_back(Mail::Message(m));
        line.deliver(now, Mail::Message(m), &mut self.faults, &mut self.net.out);
        m
    }

    fn ask(&mut self, anchor: MessageRef, count: u32) {
        let message = self.net.message(0, anchor).unwrap();
        let thread = self.net.thread_id(0, anchor.thread).unwrap();
        let anchor = (&*message.id, message.second, message.from_me);
        let f = &mut self.faults;
        assert!(self.net.ask_history(self.now, 0, KEY, 1, &thread, anchor, count, f));
    }

    /// Runs the network, and says what was delivered.
    fn until(&mut self, end: Real) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            for (at, out) in self.net.take() {
                self.queue.push(at, out);
            }
            if self.queue.next().is_none_or(|at| at > end) {
                self.now = end;
                return seen;
            }
            let (at, out) = self.queue.pop().unwrap();
            self.faults.advance(at);
            match out {
                Out::Later(account, later) => {
                    self.net.handle(at, account, later, &mut self.faults);
                }
                Out::Deliver(_, _, delivery) => seen.push(match delivery {
                    Delivery::Chunk(c) => format!("chunk {c}"),
                    Delivery::ChunkMissing => "no chunk".into(),
                    Delivery::Closed(reason) => format!("closed {reason:?}"),
                    Delivery::Live(Mail::Message(m)) => format!("live {}", m.thread),
                    Delivery::Live(mail) => format!("live {mail:?}"),
                    Delivery::Offline(batch) => format!("offline {}", batch.len()),
                    Delivery::OfflineEnd(n) => format!("end {n}"),
                    Delivery::Opened => "opened".into(),
                    Delivery::Page(p) => {
                        format!("page {}..{} {}", p.stretch.from, p.stretch.to, p.more)
                    }
                    Delivery::Paired => "paired".into(),
                    Delivery::Pairing => "pairing".into(),
                    Delivery::Undecryptable(_) => "undecryptable".into(),
                }),
            }
        }
    }
}

fn at(index: u32) -> MessageRef {
    MessageRef { thread: 0, index }
}

fn account() -> AccountPlan {
    AccountPlan {
        id: 0,
        linked: true,
        threads: 1,
        groups: 0,
        lids: 0,
        twins_from: Real::ZERO,
        happenings: 0,
        home: 0,
        history: 100,
        messages: 0,
        own: 300,
        sends: 0,
        phone_min: 1_000,
        phone_max: 3_000,
        scan: 0,
    }
}

fn world(faults: &[crate::scenario::Fault]) -> Tiny {
    world_of(account(), faults)
}

fn world_of(plan: AccountPlan, faults: &[crate::scenario::Fault]) -> Tiny {
    let scenario = Scenario {
        seed: 1,
        regime: Regime::Within,
        quiet_from: Real(1_000_000),
        end: Real(1_000_000),
        pace: Pace::default(),
        store: StorePlan {
            clock: crate::clock::ClockPlan::default(),
            latency_min: 1,
            latency_max: 2,
        },
        instances: Vec::new(),
        accounts: vec![plan],
        node: None,
        operations: Vec::new(),
        faults: faults.to_vec(),
    };
    // A seed for which the only conversation is a long one.
    let seed = (0..100).find(|s| WhatsApp::new(*s, &scenario.accounts).length(0, 0) > 60).unwrap();
    let mut faults = FaultPlan::new(&scenario);
    faults.advance(Real::ZERO);
    let net = WhatsApp::new(seed, &scenario.accounts);
    Tiny { net, faults, queue: crate::queue::Queue::new(), now: Real::ZERO }
}
