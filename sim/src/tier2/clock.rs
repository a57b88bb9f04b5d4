//! The clock and the tasks of one process.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use backfill_core::time::Mono;
use backfill_driver::port::Runtime;
use madsim::time::TimeHandle;

use crate::clock::{Clock, Real};

/// What a process knows of time: its host's clock, which may drift and stand still.
#[derive(Clone)]
pub(super) struct Local(Arc<Host>);

struct Host {
    time: TimeHandle,
    clock: Mutex<Clock>,
    waits: Mutex<Waits>,
}

/// Everything that waits in a process, by when its wait ends. Most of it is limits of calls, which
/// nobody waits for to the end: one alarm, for the first, is enough.
struct Waits {
    wakers: BTreeMap<(Real, u64), Waker>,
    number: u64,
    bell: Option<Waker>,
    alarm: Real,
}

impl Local {
    pub(super) fn new(clock: Clock) -> Self {
        let waits = Waits { wakers: BTreeMap::new(), number: 0, bell: None, alarm: Real::NEVER };
        let local = Self(Arc::new(Host {
            time: TimeHandle::current(),
            clock: Mutex::new(clock),
            waits: Mutex::new(waits),
        }));
        drop(madsim::task::spawn(local.clone().ring()));
        local
    }

    /// Waits for some of the process's own milliseconds.
    pub(super) async fn rest(&self, ms: u64) {
        self.sleep_until(self.now() + Duration::from_millis(ms)).await;
    }

    /// Wakes whoever has waited long enough.
    async fn ring(self) {
        poll_fn(|cx| {
            let now = real(&self.0.time);
            let mut waits = self.waits();
            waits.bell = Some(cx.waker().clone());
            let later = waits.wakers.split_off(&(now.after(1), 0));
            let ended = std::mem::replace(&mut waits.wakers, later);
            waits.alarm = Real::NEVER;
            waits.set_alarm(&self.0.time);
            drop(waits);
            ended.into_values().for_each(Waker::wake);
            Poll::Pending
        })
        .await
    }

    fn clock<T>(&self, ask: impl FnOnce(&Clock) -> T) -> T {
        ask(&self.0.clock.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.0.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waits {
    fn set_alarm(&mut self, time: &TimeHandle) {
        if let (Some((&(at, _), _)), Some(bell)) = (self.wakers.first_key_value(), &self.bell)
            && at < self.alarm
        {
            self.alarm = at;
            alarm(time, at, bell);
        }
    }
}

/// Real time, which no process can read.
pub(super) fn real(time: &TimeHandle) -> Real {
    let elapsed = time.elapsed();
    Real(elapsed.as_secs() * 1_000 + u64::from(elapsed.subsec_millis()))
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
        self.clock(|clock| clock.mono(real(&self.0.time)))
    }

    fn sleep_until(&self, at: Mono) -> impl Future<Output = ()> + Send + 'static {
        Sleep { local: self.clone(), at, wait: None }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(madsim::task::spawn(task));
    }
}

struct Sleep {
    local: Local,
    at: Mono,
    /// Its place among the waits
    wait: Option<(Real, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.local.now() >= self.at {
            return Poll::Ready(());
        }
        let Self { local, at, wait } = &mut *self;
        let mut waits = local.waits();
        if let Some(waker) = wait.and_then(|wait| waits.wakers.get_mut(&wait)) {
            waker.clone_from(cx.waker());
            return Poll::Pending;
        }
        let end = local.clock(|clock| clock.when(at.as_millis()));
        waits.number += 1;
        let place = (end, waits.number);
        waits.wakers.insert(place, cx.waker().clone());
        waits.set_alarm(&local.0.time);
        drop(waits);
        self.wait = Some(place);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(wait) = self.wait {
            self.local.waits().wakers.remove(&wait);
        }
    }
}
