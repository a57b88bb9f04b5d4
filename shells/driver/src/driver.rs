//! The loop: inputs into the core, effects out of it.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use backfill_core::id::RequestId;
use backfill_core::instance::Instance;
use backfill_core::io::{CommandId, Event, Input, Mode, Output, Reply};
use backfill_core::policy::Policy;
use backfill_core::time::Mono;
use futures_channel::{mpsc, oneshot};
use futures_util::Stream;

use crate::calls::Calls;
use crate::effects::Effects;
use crate::handle::{Arrival, Arrivals, Handle, Inbox};
use crate::hints::Hints;
use crate::intake::{Intake, Woken};
use crate::port::{Gateway, Runtime, Sleep, Store, StoreError};

/// Sees what goes in and out, for logs and metrics. Called from the loop: it must not block, and
/// not look at the instance through a [`Handle`].
pub trait Observer: Send + 'static {
    /// The instance is made. From these and all its inputs it can be made again.
    fn begins(&mut self, _now: Mono, _policy: &Policy, _seed: &[u8; 32]) {}

    /// The core takes an input.
    fn input(&mut self, _now: Mono, _input: &Input) {}

    /// The core has taken the input, and these are all the things it wants done or
    /// [tells](Output::Event) because of it. None of them has begun.
    fn settled(&mut self, _now: Mono, _instance: &Instance, _outputs: &[Output]) {}

    /// The store did not do what it was asked, and this is why.
    fn store_failed(&mut self, _request: RequestId, _error: &StoreError) {}
}

/// Looks away.
impl Observer for () {}

/// Somebody, or nobody.
impl<O: Observer> Observer for Option<O> {
    fn begins(&mut self, now: Mono, policy: &Policy, seed: &[u8; 32]) {
        if let Some(observer) = self {
            observer.begins(now, policy, seed);
        }
    }

    fn input(&mut self, now: Mono, input: &Input) {
        if let Some(observer) = self {
            observer.input(now, input);
        }
    }

    fn settled(&mut self, now: Mono, instance: &Instance, outputs: &[Output]) {
        if let Some(observer) = self {
            observer.settled(now, instance, outputs);
        }
    }

    fn store_failed(&mut self, request: RequestId, error: &StoreError) {
        if let Some(observer) = self {
            observer.store_failed(request, error);
        }
    }
}

/// Two see more than one.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn begins(&mut self, now: Mono, policy: &Policy, seed: &[u8; 32]) {
        self.0.begins(now, policy, seed);
        self.1.begins(now, policy, seed);
    }

    fn input(&mut self, now: Mono, input: &Input) {
        self.0.input(now, input);
        self.1.input(now, input);
    }

    fn settled(&mut self, now: Mono, instance: &Instance, outputs: &[Output]) {
        self.0.settled(now, instance, outputs);
        self.1.settled(now, instance, outputs);
    }

    fn store_failed(&mut self, request: RequestId, error: &StoreError) {
        self.0.store_failed(request, error);
        self.1.store_failed(request, error);
    }
}

/// One instance, ready to [`run`](Self::run).
pub struct Driver<S, R, O> {
    calls: Calls<S, R>,
    runtime: R,
    handle: Handle,
    observer: O,
    arrivals: Arrivals,
    woken: Woken,
    seed: u64,
}

impl<S: Store, R: Runtime, O: Observer> Driver<S, R, O> {
    /// An instance that begins when [`run`](Self::run) is called, and the way to reach it. The seed
    /// makes its boots and its jitter: never reuse one.
    pub fn new(policy: Policy, seed: [u8; 32], store: S, runtime: R, mut observer: O) -> Self {
        let calls = Calls::new(store, runtime.clone(), &policy);
        let (inbox, arrivals) = Inbox::new();
        let (intake, woken) = Intake::new();
        let now = runtime.now();
        observer.begins(now, &policy, &seed);
        let instance = Instance::new(policy, seed, now);
        let clock = {
            let runtime = runtime.clone();
            move || runtime.now()
        };
        let handle = Handle::new(instance, inbox, intake, clock);
        let seed = seed.iter().fold(0, |seed: u64, byte| seed.rotate_left(8) ^ u64::from(*byte));
        Self { calls, runtime, handle, observer, arrivals, woken, seed }
    }

    /// Reaches the instance.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs the instance until a [`Stop`](backfill_core::io::Command::Stop) is carried out.
    pub async fn run<G: Gateway>(self, gateway: G) {
        let Self { calls, runtime, handle, observer, arrivals, woken, seed } = self;
        let hints = Hints::new(calls.clone(), runtime.clone(), seed);
        runtime.spawn(woken.serve(handle.clone(), calls.clone()));
        let effects = Effects::new(calls, gateway, handle.inbox().clone());
        let mut running = Running {
            runtime,
            handle,
            observer,
            arrivals,
            effects,
            hints,
            sleep: None,
            replies: BTreeMap::new(),
            commands: 0,
            stopped: false,
        };
        running.feed(Input::Timeout);
        while !running.stopped {
            let wake = running.handle.look(|instance| instance.poll_timeout()).map(|(at, _)| at);
            let turn = poll_fn(|cx| running.poll_turn(cx, wake)).await;
            running.take(turn);
        }
        running.handle.intake().close();
    }
}

struct Running<S, G, R, O> {
    runtime: R,
    handle: Handle,
    observer: O,
    arrivals: Arrivals,
    effects: Effects<S, G, R>,
    hints: Hints<Calls<S, R>, R>,
    /// Until when, at the latest
    sleep: Option<(Mono, Sleep)>,
    replies: BTreeMap<CommandId, oneshot::Sender<Reply>>,
    commands: u64,
    stopped: bool,
}

/// What happened.
enum Turn {
    Arrived(Arrival),
    Fed(Input),
}

impl<S: Store, G: Gateway, R: Runtime, O: Observer> Running<S, G, R, O> {
    /// What happens next, the most urgent first.
    fn poll_turn(&mut self, cx: &mut Context<'_>, wake: Option<Mono>) -> Poll<Turn> {
        if let Poll::Ready(arrival) = poll_arrival(&mut self.arrivals.urgent, cx) {
            return Poll::Ready(Turn::Arrived(arrival));
        }
        if let Some(wake) = wake
            && self.poll_clock(cx, wake).is_ready()
        {
            return Poll::Ready(Turn::Fed(Input::Timeout));
        }
        if let Poll::Ready(arrival) = poll_arrival(&mut self.arrivals.usual, cx) {
            return Poll::Ready(Turn::Arrived(arrival));
        }
        self.hints.poll_next(cx).map(|hint| Turn::Fed(Input::Hint(hint)))
    }

    /// Ready when the clock shows `wake`; that a sleep has ended says nothing.
    fn poll_clock(&mut self, cx: &mut Context<'_>, wake: Mono) -> Poll<()> {
        loop {
            if self.runtime.now() >= wake {
                return Poll::Ready(());
            }
            // One that ends too early costs less than another one.
            let mut sleep = match self.sleep.take() {
                Some((until, sleep)) if until <= wake => (until, sleep),
                _ => (wake, Box::pin(self.runtime.sleep_until(wake)) as Sleep),
            };
            if sleep.1.as_mut().poll(cx).is_pending() {
                self.sleep = Some(sleep);
                return Poll::Pending;
            }
        }
    }

    fn take(&mut self, turn: Turn) {
        match turn {
            Turn::Arrived(Arrival::Answer(id, answer, error)) => {
                if let Some(error) = error {
                    self.observer.store_failed(id, &error);
                }
                self.feed(Input::Answer(id, answer));
            }
            Turn::Arrived(Arrival::Command(command, reply)) => {
                self.commands += 1;
                let id = CommandId(self.commands);
                self.replies.insert(id, reply);
                self.feed(Input::Command(id, command));
            }
            Turn::Arrived(Arrival::Input(input)) | Turn::Fed(input) => self.feed(input),
        }
    }

    fn feed(&mut self, input: Input) {
        let now = self.runtime.now();
        self.observer.input(now, &input);
        let (handle, observer) = (&self.handle, &mut self.observer);
        let outputs = handle.change(|instance| {
            instance.handle_input(now, input);
            let outputs: Vec<Output> = std::iter::from_fn(|| instance.poll_output()).collect();
            observer.settled(now, instance, &outputs);
            outputs
        });
        for output in outputs {
            match output {
                Output::Event(Event::Mode { mode }) => self.hints.set_active(mode == Mode::Active),
                Output::Event(_) => {}
                Output::Gateway(request) => self.effects.ask_gateway(request),
                Output::Reply(id, reply) => {
                    if let Some(replied) = self.replies.remove(&id) {
                        // Whoever asked may have left.
                        replied.send(reply).ok();
                    }
                }
                Output::Stopped => self.stopped = true,
                Output::Store(request) => self.effects.ask_store(request),
            }
        }
    }
}

/// The loop itself holds a way in, so there is no end of arrivals.
fn poll_arrival(
    arrivals: &mut mpsc::UnboundedReceiver<Arrival>,
    cx: &mut Context<'_>,
) -> Poll<Arrival> {
    match Pin::new(arrivals).poll_next(cx) {
        Poll::Ready(Some(arrival)) => Poll::Ready(arrival),
        Poll::Ready(None) | Poll::Pending => Poll::Pending,
    }
}
