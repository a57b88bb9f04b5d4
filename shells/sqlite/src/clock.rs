//! The store's time, from a clock that no administrator sets.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backfill_core::time::StoreTime;
use rusqlite::{Connection, params};
use rustix::time::{ClockId, clock_gettime};

/// How far ahead of what was given the promise reaches that nothing later has been given.
///
/// After a reboot the clock starts no earlier than the promise, so it may start this much late.
const HORIZON: Duration = Duration::from_secs(60);

/// What a host knows about time.
pub trait HostClock: fmt::Debug + Send + Sync {
    /// Names this run of the host's kernel; clocks of two runs cannot be compared
    fn boot_id(&self) -> String;
    /// Time since the host booted, suspend included
    fn since_boot(&self) -> Duration;
    /// Microseconds since the Unix epoch, as the host believes; looked at once per boot
    fn wall_micros(&self) -> i64;
}

/// The clocks of the Linux host that this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinuxClock;

impl HostClock for LinuxClock {
    fn boot_id(&self) -> String {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
    }

    fn since_boot(&self) -> Duration {
        let t = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(t.tv_sec).unwrap_or_default();
        let nanos = u32::try_from(t.tv_nsec).unwrap_or_default();
        Duration::new(seconds, nanos)
    }

    #[expect(clippy::disallowed_methods, reason = "the base of the store's time, once per boot")]
    fn wall_micros(&self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        micros(now)
    }
}

/// The clock of one database file: the same for every process of the host.
#[derive(Debug)]
pub(crate) struct Clock {
    host: Arc<dyn HostClock>,
    /// What to add to the time since boot
    offset: i64,
    /// Nothing later than this may be given before the file promises more
    horizon: AtomicI64,
}

impl Clock {
    /// Reads the file's base of time, or lays a new one if the host has booted since. The caller
    /// holds a write transaction.
    pub(crate) fn open(host: Arc<dyn HostClock>, db: &Connection) -> rusqlite::Result<Self> {
        let boot_id = host.boot_id();
        let (known, offset, horizon): (String, i64, i64) =
            db.query_row("SELECT boot_id, time_offset, horizon FROM state", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
        // A host without boot ids is taken to have booted: late is harmless, early is not.
        let offset = if known == boot_id && !boot_id.is_empty() {
            offset
        } else {
            let offset = host.wall_micros().max(horizon) - micros(host.since_boot());
            db.execute("UPDATE state SET boot_id = ?, time_offset = ?", params![boot_id, offset])?;
            offset
        };
        Ok(Self { host, offset, horizon: AtomicI64::new(horizon) })
    }

    /// The time, which the caller must not give away before it is [`promised`](Self::promised).
    pub(crate) fn now(&self) -> StoreTime {
        StoreTime::from_micros(self.offset.saturating_add(micros(self.host.since_boot())))
    }

    /// Whether the file already promises that nothing later than `time` was given.
    pub(crate) fn promised(&self, time: StoreTime) -> bool {
        time.as_micros() <= self.horizon.load(Ordering::Acquire)
    }

    /// The promise to write with a commit at `time`.
    pub(crate) fn horizon_after(&self, time: StoreTime) -> i64 {
        (time + HORIZON).as_micros()
    }

    /// Notes that a promise has become durable.
    pub(crate) fn promise(&self, horizon: i64) {
        self.horizon.fetch_max(horizon, Ordering::AcqRel);
    }
}

fn micros(d: Duration) -> i64 {
    i64::try_from(d.as_micros()).unwrap_or(i64::MAX)
}
