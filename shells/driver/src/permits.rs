//! At most so many at once, first come, first served.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_channel::oneshot;

/// A number of permits.
#[derive(Clone)]
pub(crate) struct Permits(Arc<Mutex<State>>);

/// One of them; dropping it passes it on.
pub(crate) struct Permit(Option<Permits>);

struct State {
    free: usize,
    waiting: VecDeque<oneshot::Sender<Permit>>,
}

impl Permits {
    pub(crate) fn new(count: usize) -> Self {
        Self(Arc::new(Mutex::new(State { free: count, waiting: VecDeque::new() })))
    }

    /// Waits for a permit.
    pub(crate) async fn take(&self) -> Permit {
        let turn = {
            let mut state = self.state();
            if state.free > 0 {
                state.free -= 1;
                return Permit(Some(self.clone()));
            }
            let (pass, turn) = oneshot::channel();
            state.waiting.push_back(pass);
            turn
        };
        turn.await.expect("who waits is in the queue until a permit is passed on")
    }

    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.state().free
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.state().waiting.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(permits) = self.0.take() else { return };
        loop {
            let next = {
                let mut state = permits.state();
                match state.waiting.pop_front() {
                    Some(next) => next,
                    None => {
                        state.free += 1;
                        return;
                    }
                }
            };
            match next.send(Self(Some(permits.clone()))) {
                Ok(()) => return,
                // It does not wait any more: the next in line.
                Err(mut unwanted) => unwanted.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn permits_pass_in_order_and_past_those_who_gave_up() {
        let permits = Permits::new(1);
        let first = permits.take().now_or_never().unwrap();
        let mut second = Box::pin(permits.take());
        let mut third = Box::pin(permits.take());
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        drop(first);
        let third = third.now_or_never().unwrap();
        assert!(permits.take().now_or_never().is_none());
        drop(third);
        assert!(permits.take().now_or_never().is_some());
    }

    #[test]
    fn a_permit_that_was_passed_to_somebody_who_left_comes_back() {
        let permits = Permits::new(1);
        let first = permits.take().now_or_never().unwrap();
        let mut second = Box::pin(permits.take());
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        drop(second);
        assert!(permits.take().now_or_never().is_some());
    }
}
