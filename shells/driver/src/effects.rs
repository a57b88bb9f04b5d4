//! What the core wants done, each in a task of its own.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use backfill_core::id::AccountId;
use backfill_core::io::{Answer, GatewayCall, GatewayRequest, Lane, Rejection, StoreRequest};
use futures_channel::oneshot;
use futures_util::future::{Either, select};

use crate::calls::{Calls, answer_to, reach};
use crate::handle::{Arrival, Inbox};
use crate::permits::Permits;
use crate::port::{Gateway, Runtime, Store};

pub(crate) struct Effects<S, G, R> {
    calls: Calls<S, R>,
    gateway: G,
    inbox: Inbox,
    work: Permits,
    /// Per account, told when its latest call of the gateway has been polled once
    begun: BTreeMap<AccountId, oneshot::Receiver<()>>,
}

impl<S: Store, G: Gateway, R: Runtime> Effects<S, G, R> {
    pub(crate) fn new(calls: Calls<S, R>, gateway: G, inbox: Inbox) -> Self {
        let work = Permits::new(WORK_AT_ONCE);
        Self { calls, gateway, inbox, work, begun: BTreeMap::new() }
    }

    pub(crate) fn ask_store(&self, request: StoreRequest) {
        let (calls, inbox) = (self.calls.clone(), self.inbox.clone());
        let work = (request.lane == Lane::Work).then(|| self.work.clone());
        let StoreRequest { id, not_after, lane, call } = request;
        self.calls.runtime.spawn(async move {
            let permit = match work {
                Some(work) => Some(work.take().await),
                None => None,
            };
            let (answer, error) = if calls.runtime.now() > not_after {
                (Answer::Rejected(Rejection::Expired), None)
            } else {
                match calls.carry_out(call).await {
                    Ok(answer) => (answer, None),
                    Err(error) => (answer_to(&error), Some(error)),
                }
            };
            drop(permit);
            let arrival = Arrival::Answer(id, answer, error);
            match lane {
                Lane::Lease => inbox.urgent(arrival),
                Lane::Work => inbox.usual(arrival),
            }
        });
    }

    pub(crate) fn ask_gateway(&mut self, request: GatewayRequest) {
        let (gateway, runtime) = (self.gateway.clone(), self.calls.runtime.clone());
        let inbox = self.inbox.clone();
        let (begins, begun) = oneshot::channel();
        let before = self.begun.insert(request.account.clone(), begun);
        self.calls.runtime.spawn(async move {
            if let Some(before) = before {
                // That the call before was given up is as good as that it has begun.
                before.await.ok();
            }
            let id = request.id;
            if runtime.now() > request.not_after {
                let expired = Answer::Rejected(Rejection::Expired);
                return inbox.usual(Arrival::Answer(id, expired, None));
            }
            let end = reach(&runtime, runtime.now() + patience(&request.call));
            let mut call = pin!(gateway.execute(request));
            let mut begins = Some(begins);
            let call = poll_fn(|cx| {
                let polled: Poll<Answer> = call.as_mut().poll(cx);
                begins.take();
                polled
            });
            match select(call, pin!(end)).await {
                Either::Left((answer, _)) => inbox.usual(Arrival::Answer(id, answer, None)),
                Either::Right(((), call)) => {
                    inbox.usual(Arrival::Answer(id, Answer::Unknown, None));
                    // What has begun is brought to its end: a connection that is half closed, say.
                    call.await;
                }
            }
        });
    }
}

/// How long the core waits for a call of the gateway. History chunks are as large as they are; the core
/// waits for them without a limit of its own.
const fn patience(call: &GatewayCall) -> Duration {
    match call {
        GatewayCall::Parse { .. } | GatewayCall::Spool { .. } | GatewayCall::Unspool { .. } => {
            Duration::from_secs(15 * 60)
        }
        _ => Duration::from_secs(30),
    }
}

/// Requests of the work lane that the store has before it at once.
const WORK_AT_ONCE: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handle::Arrivals;
    use crate::testing::{Hand, Mood, Shelf};
    use backfill_core::doc::{DocPath, Precondition, Write};
    use backfill_core::id::RequestId;
    use backfill_core::io::StoreCall;
    use backfill_core::policy::{Policy, Settings};
    use backfill_core::time::Mono;
    use std::sync::{Arc, Mutex};

    #[test]
    fn what_comes_too_late_never_reaches_the_store() {
        let mut w = World::new();
        w.hand.pass(Duration::from_secs(10));
        w.ask(1, Lane::Work, 9_999);
        w.ask(2, Lane::Work, 10_000);
        assert_eq!(w.answers(), ["2 Committed", "1 Rejected(Expired)"]);
        assert_eq!(w.store.commits(), 1);
    }

    #[test]
    fn a_lost_answer_is_unknown_for_a_commit_and_nothing_for_a_read() {
        let mut w = World::new();
        w.store.set(Mood::Silent);
        w.ask(1, Lane::Lease, 60_000);
        let call = StoreCall::Get(vec![path()]);
        let not_after = Mono::from_millis(60_000);
        w.effects.ask_store(StoreRequest { id: RequestId(2), not_after, lane: Lane::Lease, call });
        w.hand.pass(Duration::from_millis(1_999));
        assert_eq!(w.answers(), [""; 0]);
        w.hand.pass(Duration::from_millis(1_001));
        assert_eq!(w.answers(), ["2 Rejected(Unavailable)", "1 Unknown"]);
        assert_eq!(w.store.commits(), 1, "it was applied all the same");
    }

    #[test]
    fn leases_go_past_work_that_waits() {
        let mut w = World::new();
        w.store.set(Mood::Silent);
        for id in 0..WORK_AT_ONCE as u64 + 1 {
            w.ask(id, Lane::Work, 2_000);
        }
        w.hand.settle();
        w.store.set(Mood::Fine);
        w.ask(99, Lane::Lease, 2_000);
        assert_eq!(w.answers(), ["99 Committed"]);
        w.hand.pass(Duration::from_secs(5));
        let late = w.answers();
        // The one that had to wait for a place found that it was too late.
        assert_eq!(late.len(), WORK_AT_ONCE + 1);
        assert_eq!(late.iter().filter(|a| a.ends_with("Rejected(Expired)")).count(), 1);
        assert_eq!(w.store.commits(), WORK_AT_ONCE + 1);
    }

    #[test]
    fn calls_of_one_account_begin_in_the_order_of_the_core() {
        let mut w = World::new();
        let connection = RequestId(1);
        for (id, call) in [(1, GatewayCall::Connect), (2, GatewayCall::Close { connection })] {
            let account = AccountId::parse("a").unwrap();
            let not_after = Mono::NEVER;
            w.effects.ask_gateway(GatewayRequest { id: RequestId(id), account, not_after, call });
        }
        // The test's runtime polls what was spawned last first.
        w.hand.settle();
        assert_eq!(*w.gateway.begun.lock().unwrap(), [1, 2]);
        assert_eq!(w.answers(), ["2 Done"]);
    }

    #[test]
    fn a_call_that_takes_too_long_is_unknown_and_goes_on() {
        let mut w = World::new();
        let account = AccountId::parse("a").unwrap();
        let (not_after, call) = (Mono::NEVER, GatewayCall::Connect);
        w.effects.ask_gateway(GatewayRequest { id: RequestId(1), account, not_after, call });
        w.hand.pass(Duration::from_secs(29));
        assert_eq!(w.answers(), [""; 0]);
        w.hand.pass(Duration::from_secs(1));
        assert_eq!(w.answers(), ["1 Unknown"]);
        assert_eq!(*w.gateway.ended.lock().unwrap(), [0; 0]);
        w.hand.pass(Duration::from_secs(60));
        assert_eq!(*w.gateway.ended.lock().unwrap(), [1]);
        assert_eq!(w.answers(), [""; 0]);
    }

    struct World {
        hand: Hand,
        store: Shelf,
        gateway: Slow,
        effects: Effects<Shelf, Slow, Hand>,
        arrivals: Arrivals,
    }

    impl World {
        fn new() -> Self {
            let hand = Hand::default();
            let store = Shelf::new(&hand);
            let gateway = Slow { hand: hand.clone(), begun: Arc::default(), ended: Arc::default() };
            let label = backfill_core::id::InstanceId::parse("i").unwrap();
            let policy = Policy::new(Settings::exclusive(label)).unwrap();
            let calls = Calls::new(store.clone(), hand.clone(), &policy);
            let (inbox, arrivals) = Inbox::new();
            let effects = Effects::new(calls, gateway.clone(), inbox);
            Self { hand, store, gateway, effects, arrivals }
        }

        /// Asks for a commit.
        fn ask(&self, id: u64, lane: Lane, not_after: u64) {
            let fields = vec![("n".into(), (id as i64).into())];
            let call = StoreCall::Commit(vec![Write::merge(path(), Precondition::Any, fields)]);
            let not_after = Mono::from_millis(not_after);
            self.effects.ask_store(StoreRequest { id: RequestId(id), not_after, lane, call });
        }

        /// What has arrived since, each as id and kind.
        fn answers(&mut self) -> Vec<String> {
            self.hand.settle();
            let mut answers = Vec::new();
            for arrivals in [&mut self.arrivals.urgent, &mut self.arrivals.usual] {
                while let Ok(arrival) = arrivals.try_recv() {
                    let Arrival::Answer(id, answer, _) = arrival else { panic!("no answer") };
                    let kind = match answer {
                        Answer::Committed { .. } => "Committed".into(),
                        answer => format!("{answer:?}"),
                    };
                    answers.push(format!("{} {kind}", id.0));
                }
            }
            answers
        }
    }

    /// Connecting takes a minute.
    #[derive(Clone)]
    struct Slow {
        hand: Hand,
        begun: Arc<Mutex<Vec<u64>>>,
        ended: Arc<Mutex<Vec<u64>>>,
    }

    impl Gateway for Slow {
        async fn execute(&self, request: GatewayRequest) -> Answer {
            self.begun.lock().unwrap().push(request.id.0);
            if request.call == GatewayCall::Connect {
                reach(&self.hand, self.hand.now() + Duration::from_secs(60)).await;
            }
            self.ended.lock().unwrap().push(request.id.0);
            Answer::Done
        }
    }

    fn path() -> DocPath {
        DocPath::parse("c/d").unwrap()
    }
}
