//! The clock and the tasks of one process.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use backfill_core::time::Mono;
use backfill_driver::port::Runtime;
use futures_util::task::AtomicWaker;
use madsim::time::TimeHandle;

use crate::clock::{Clock, Real};

/// What a process knows of time: its host's clock, which may drift and stand still.
#[derive(Clone)]
pub(super) struct Local {
    time: TimeHandle,
    clock: Arc<Mutex<Clock>>,
}

impl Local {
    pub(super) fn new(clock: Clock) -> Self {
        Self { time: TimeHandle::current(), clock: Arc::new(Mutex::new(clock)) }
    }

    /// Waits for some of the process's own milliseconds.
    pub(super) async fn rest(&self, ms: u64) {
        self.sleep_until(self.now() + Duration::from_millis(ms)).await;
    }

    fn clock<T>(&self, ask: impl FnOnce(&Clock) -> T) -> T {
        ask(&self.clock.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Real time, which no process can read.
pub(super) fn real(time: &TimeHandle) -> Real {
    Real(u64::try_from(time.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// Waits until a moment of real time.
pub(super) fn alarm(time: &TimeHandle, at: Real, waker: &Waker) {
    if at == Real::NEVER {
        return;
    }
    let wait = Duration::from_millis(at.0).saturating_sub(time.elapsed());
    // Polling it sets the timer; what is left of it then does nothing.
    let sleep = std::pin::pin!(time.sleep(wait));
    let _ = sleep.poll(&mut Context::from_waker(waker)).is_ready();
}

impl Runtime for Local {
    fn now(&self) -> Mono {
        self.clock(|clock| clock.mono(real(&self.time)))
    }

    fn sleep_until(&self, at: Mono) -> impl Future<Output = ()> + Send + 'static {
        Sleep { local: self.clone(), at, bell: None }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(madsim::task::spawn(task));
    }
}

/// One timer for each wait, however often it is polled.
struct Sleep {
    local: Local,
    at: Mono,
    bell: Option<Arc<Bell>>,
}

#[derive(Default)]
struct Bell {
    waker: AtomicWaker,
    rung: AtomicBool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rung.store(true, Ordering::Relaxed);
        self.waker.wake();
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.local.now() >= self.at {
            return Poll::Ready(());
        }
        if let Some(bell) = self.bell.as_ref().filter(|bell| !bell.rung.load(Ordering::Relaxed)) {
            bell.waker.register(cx.waker());
            return Poll::Pending;
        }
        let bell = Arc::new(Bell::default());
        bell.waker.register(cx.waker());
        let real = self.local.clock(|clock| clock.when(self.at.as_millis()));
        alarm(&self.local.time, real, &Waker::from(Arc::clone(&bell)));
        self.bell = Some(bell);
        Poll::Pending
    }
}
