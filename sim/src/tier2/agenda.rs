//! What is to happen when, and who waits for it.

use std::task::{Context, Poll, Waker};

use madsim::time::TimeHandle;

use super::clock::{alarm, real};
use crate::clock::Real;
use crate::queue::Queue;

/// Events of one task, which has them when their time comes.
pub(super) struct Agenda<E> {
    time: TimeHandle,
    queue: Queue<E>,
    waits: Option<Waker>,
    /// When the next alarm of the task rings: there is one at a time, unless something comes
    /// before it
    alarm: Real,
}

impl<E> Agenda<E> {
    pub(super) fn new() -> Self {
        let time = TimeHandle::current();
        Self { time, queue: Queue::new(), waits: None, alarm: Real::NEVER }
    }

    pub(super) fn push(&mut self, at: Real, event: E) {
        self.queue.push(at, event);
        if let Some(waits) = self.waits.take_if(|_| at <= real(&self.time)) {
            waits.wake();
        }
        self.set_alarm();
    }

    /// The next event, if its time has come.
    pub(super) fn poll_next(&mut self, cx: &Context<'_>) -> Poll<E> {
        let now = real(&self.time);
        if self.alarm <= now {
            self.alarm = Real::NEVER;
        }
        if self.queue.next().is_some_and(|at| at <= now)
            && let Some((_, event)) = self.queue.pop()
        {
            return Poll::Ready(event);
        }
        self.waits = Some(cx.waker().clone());
        self.set_alarm();
        Poll::Pending
    }

    fn set_alarm(&mut self) {
        if let (Some(waits), Some(at)) = (&self.waits, self.queue.next())
            && at < self.alarm
        {
            self.alarm = at;
            alarm(&self.time, at, waits);
        }
    }
}
