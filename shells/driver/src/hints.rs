//! What the store says may have changed.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use backfill_core::doc::{CollectionPath, Comparison, FieldPath, Query};
use backfill_core::io::Hint;
use futures_util::Stream;

use crate::port::{Runtime, Sleep, Store};

/// Watches what the core takes hints about. While the instance is not active only the lock counts.
pub(crate) struct Hints<S, R> {
    store: S,
    runtime: R,
    watches: Vec<Watch>,
    chance: u64,
}

struct Watch {
    hint: Hint,
    query: Query,
    state: State,
}

enum State {
    On(Pin<Box<dyn Stream<Item = ()> + Send>>),
    Off,
    /// The stream has ended; another one begins later
    Resting(Sleep),
}

impl<S: Store, R: Runtime> Hints<S, R> {
    pub(crate) fn new(store: S, runtime: R, seed: u64) -> Self {
        let watch = |hint, query| Watch { hint, query, state: State::Off };
        let queued = Query::all(CollectionPath::root("outbox"), MANY).filter(
            FieldPath::new("status"),
            Comparison::Equal,
            "queued",
        );
        let watches = vec![
            watch(Hint::Lock, Query::all(CollectionPath::root("coordination"), MANY)),
            watch(Hint::Accounts, Query::all(CollectionPath::root("accounts"), MANY)),
            watch(Hint::Outbox, queued),
        ];
        let mut hints = Self { store, runtime, watches, chance: seed };
        hints.set_active(false);
        hints
    }

    pub(crate) fn set_active(&mut self, active: bool) {
        for watch in &mut self.watches {
            let wanted = active || watch.hint == Hint::Lock;
            match (&watch.state, wanted) {
                (State::Off, true) => {
                    watch.state = State::On(Box::pin(self.store.watch(watch.query.clone())));
                }
                (State::On(_) | State::Resting(_), false) => watch.state = State::Off,
                _ => {}
            }
        }
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Hint> {
        for watch in &mut self.watches {
            loop {
                match &mut watch.state {
                    State::Off => break,
                    State::On(stream) => match stream.as_mut().poll_next(cx) {
                        Poll::Pending => break,
                        Poll::Ready(Some(())) => return Poll::Ready(watch.hint),
                        Poll::Ready(None) => {
                            // Not all processes at once.
                            self.chance = self.chance.wrapping_mul(MULTIPLIER).wrapping_add(1);
                            let wait = Duration::from_millis(5_000 + (self.chance >> 33) % 10_000);
                            let end = self.runtime.now() + wait;
                            watch.state = State::Resting(Box::pin(self.runtime.sleep_until(end)));
                        }
                    },
                    State::Resting(rest) => match rest.as_mut().poll(cx) {
                        Poll::Pending => break,
                        Poll::Ready(()) => {
                            let stream = self.store.watch(watch.query.clone());
                            watch.state = State::On(Box::pin(stream));
                        }
                    },
                }
            }
        }
        Poll::Pending
    }
}

const MANY: u32 = 10_000;
const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
