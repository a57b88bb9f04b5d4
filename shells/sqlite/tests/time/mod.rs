//! The store's clock under everything that happens to a host's clocks.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use backfill_core::doc::DocPath;
use backfill_core::time::StoreTime;
use backfill_driver::port::Store;
use store_contract::Case;
use store_sqlite::{HostClock, SqliteStore};

use crate::Files;
use crate::files::put;

pub(crate) fn cases(files: &Files) -> Vec<Case> {
    let (a, b) = (files.clone(), files.clone());
    vec![
        Case::new("time::a_reboot_does_not_turn_it_back", || reboots(a)),
        Case::new("time::steps_of_the_wall_clock_change_nothing", || steps(b)),
    ]
}

/// A host whose clocks the test sets.
#[derive(Clone, Debug)]
struct Host(Arc<Mutex<Clocks>>);

#[derive(Debug)]
struct Clocks {
    boot: u32,
    since_boot: Duration,
    wall: i64,
}

const HOUR: i64 = 3_600_000_000;
const START: i64 = 1_700_000_000_000_000;

impl Host {
    fn new() -> Self {
        let since_boot = Duration::from_secs(100);
        Self(Arc::new(Mutex::new(Clocks { boot: 1, since_boot, wall: START })))
    }

    fn pass(&self, time: Duration) {
        let mut clocks = self.0.lock().unwrap();
        clocks.since_boot += time;
        clocks.wall += i64::try_from(time.as_micros()).unwrap();
    }

    fn step(&self, micros: i64) {
        self.0.lock().unwrap().wall += micros;
    }

    fn reboot(&self) {
        let mut clocks = self.0.lock().unwrap();
        clocks.boot += 1;
        clocks.since_boot = Duration::from_secs(3);
    }
}

impl HostClock for Host {
    fn boot_id(&self) -> String {
        self.0.lock().unwrap().boot.to_string()
    }

    fn since_boot(&self) -> Duration {
        self.0.lock().unwrap().since_boot
    }

    fn wall_micros(&self) -> i64 {
        self.0.lock().unwrap().wall
    }
}

async fn now(store: &SqliteStore) -> StoreTime {
    let doc = DocPath::parse("c/a").unwrap();
    store.get(&[doc]).await.unwrap().read_time
}

async fn steps(files: Files) {
    let (host, path) = (Host::new(), files.path("steps"));
    let open = || SqliteStore::open_with_clock(&path, Arc::new(host.clone())).unwrap();
    let store = open();
    let first = now(&store).await;
    assert_eq!(first.as_micros(), START, "it starts where people expect it");
    let mut passed = Duration::ZERO;
    for step in [5 * HOUR, -30 * HOUR, 9_000 * HOUR, -9_000 * HOUR] {
        host.step(step);
        let tick = Duration::from_secs(7);
        host.pass(tick);
        passed += tick;
        assert_eq!(now(&store).await, first + passed);
        let committed = store.commit(vec![put("c/a", step)]).await.unwrap();
        assert_eq!(committed.commit_time, first + passed);
        // A process that starts after the step sees the same time.
        assert_eq!(now(&open()).await, first + passed);
    }
    let suspended = Duration::from_secs(86_400);
    host.pass(suspended);
    assert_eq!(now(&store).await, first + passed + suspended, "suspend counts");
}

async fn reboots(files: Files) {
    let (host, path) = (Host::new(), files.path("reboots"));
    let open = || SqliteStore::open_with_clock(&path, Arc::new(host.clone())).unwrap();
    let mut last = StoreTime::EPOCH;
    // A host without a battery wakes up in the past; one with a wrong date comes back from it.
    for (step, idle) in [(0, 1), (-900 * HOUR, 500), (0, 3), (1_000 * HOUR, 90), (-HOUR, 1)] {
        let store = open();
        let started = now(&store).await;
        assert!(started >= last, "a reboot turned the time back");
        assert!(started.as_micros() <= last.as_micros().max(host.wall_micros()) + 60_000_000);
        // Reads alone must hold it as well: nothing is committed in every other life.
        for _ in 0..3 {
            host.pass(Duration::from_secs(idle));
            last = now(&store).await;
        }
        if idle > 1 {
            last = store.commit(vec![put("c/a", step)]).await.unwrap().commit_time;
        }
        drop(store);
        host.reboot();
        host.step(step);
    }
}
