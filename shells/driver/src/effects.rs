//! What the core wants done, each in a task of its own.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use backfill_core::id::AccountId;
use backfill_core::io::{Answer, GatewayCall, GatewayRequest, Lane, Rejection, StoreRequest};
use futures_channel::oneshot;

use crate::calls::{Calls, answer_to, within};
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
            let answer = if runtime.now() > request.not_after {
                Answer::Rejected(Rejection::Expired)
            } else {
                let patience = patience(&request.call);
                let mut call = pin!(gateway.execute(request));
                let mut begins = Some(begins);
                let call = poll_fn(|cx| {
                    let polled: Poll<Answer> = call.as_mut().poll(cx);
                    begins.take();
                    polled
                });
                within(&runtime, patience, call).await.unwrap_or(Answer::Unknown)
            };
            inbox.usual(Arrival::Answer(id, answer, None));
        });
    }
}

/// How long a call of the gateway may take. History chunks are as large as they are; the core
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
