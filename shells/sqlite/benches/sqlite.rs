//! How fast the store on SQLite is, and against what.
//!
//! The yardstick is a bare loop of prepared inserts into the same tables with the same settings,
//! one transaction per batch; the store reads every document first, checks, merges and encodes.
//! Both run in turn, and a ratio is the median of the rounds' ratios.
//!
//! Seen with `cargo bench --workspace --bench sqlite` on 2 virtual cores (goal: 0.7):
//!
//! | per batch | store, msg/s | bare, msg/s | ratio | CPU us per message, store and bare | ratio |
//! |---:|---:|---:|---:|---|---:|
//! | 1 | 4,271 | 5,557 | 0.77 | 132, 94 | 0.69 |
//! | 10 | 20,117 | 26,096 | 0.76 | 33.2, 24.3 | 0.75 |
//! | 100 | 62,805 | 78,189 | 0.81 | 13.1, 10.0 | 0.76 |
//! | 500 | 111,116 | 153,895 | 0.72 | 7.9, 5.3 | 0.67 |
//!
//! New history through ingest: 57,811 msg/s, 14.1 us CPU per message; the same again: 113,413 and
//! 8.7. One durable compare-and-set: p50 0.26 ms, p99 0.34 ms; beside bulk commits of 500: p50
//! 9.5 ms, p99 33 ms.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backfill_core::doc::{DocPath, FieldOp, FieldPath, Precondition, Value, Write};
use backfill_core::ingest::Batch;
use backfill_core::jid::Twins;
use backfill_core::time::StoreTime;
use backfill_driver::ingest::Ingest;
use backfill_driver::port::Store;
use rusqlite::{Connection, params};
use rustix::time::{ClockId, clock_gettime};
use store_contract::{account, history};
use store_sqlite::SqliteStore;
use tokio::time::Instant;

const MESSAGES: u32 = 20_000;
const ROUNDS: usize = 5;

fn main() {
    let directory = std::env::temp_dir().join(format!("bench-sqlite-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory for the files");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime starts").block_on(async {
        println!("{MESSAGES} new messages, durable; median of {ROUNDS} alternating rounds");
        println!(
            "{:>9} {:>11} {:>11} {:>6} {:>13} {:>13} {:>6}",
            "per batch",
            "store msg/s",
            "bare msg/s",
            "ratio",
            "store CPU us",
            "bare CPU us",
            "ratio"
        );
        for size in [1, 10, 100, 500] {
            let messages = if size == 1 { MESSAGES / 10 } else { MESSAGES };
            let (mut store, mut bare) = (Vec::new(), Vec::new());
            for round in 0..ROUNDS {
                let path = |kind| directory.join(format!("{kind}-{size}-{round}"));
                bare.push(bare_loop(&path("bare"), size, messages));
                store.push(commits(&path("store"), size, messages).await);
            }
            let ratio = |of: fn(&Cost) -> f64| {
                median(store.iter().zip(&bare).map(|(store, bare)| of(store) / of(bare)).collect())
            };
            let all = |of: fn(&Cost) -> f64, costs: &[Cost]| median(costs.iter().map(of).collect());
            println!(
                "{size:>9} {:>11.0} {:>11.0} {:>6.2} {:>13.2} {:>13.2} {:>6.2}",
                all(|c| c.per_second, &store),
                all(|c| c.per_second, &bare),
                ratio(|c| c.per_second),
                all(|c| c.cpu_micros, &store),
                all(|c| c.cpu_micros, &bare),
                1.0 / ratio(|c| c.cpu_micros),
            );
        }
        ingest(&directory.join("ingest")).await;
        latency(&directory.join("latency")).await;
    });
    std::fs::remove_dir_all(&directory).expect("the directory is still there");
}

/// What a message cost.
struct Cost {
    per_second: f64,
    cpu_micros: f64,
}

/// Begins to measure; the result ends it.
fn measure() -> impl FnOnce(u32) -> Cost {
    let (cpu, started) = (cpu_time(), Instant::now());
    move |messages| {
        let (cpu, took) = (cpu_time() - cpu, started.elapsed());
        let messages = f64::from(messages);
        Cost {
            per_second: messages / took.as_secs_f64(),
            cpu_micros: cpu.as_secs_f64() * 1e6 / messages,
        }
    }
}

/// Of all threads of this process.
fn cpu_time() -> Duration {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), t.tv_nsec.unsigned_abs() as u32)
}

fn fields(n: u32) -> Vec<(FieldPath, FieldOp)> {
    let text = |s: &str| FieldOp::Set(Value::from(s));
    vec![
        ("accountId".into(), text("account_prod_0123456789abcdef0123456789abcdef")),
        ("body".into(), text(&"a line of text as people write them ".repeat(6))),
        ("clientJid".into(), text("491512345678@s.whatsapp.net")),
        ("direction".into(), text("inbound")),
        ("messageType".into(), text("text")),
        (
            "tsClient".into(),
            FieldOp::Set(StoreTime::from_secs(1_700_000_000 + i64::from(n)).into()),
        ),
        ("updatedAt".into(), FieldOp::ServerTime),
    ]
}

fn writes(batch: u32, size: u32) -> Vec<Write> {
    let write = |n: u32| {
        let id = (batch * size + n).wrapping_mul(2_654_435_761);
        let path = DocPath::parse(format!("threads/t{}/messages/3EB0{id:08X}", n % 50));
        Write::merge(path.expect("a valid path"), Precondition::Absent, fields(n))
    };
    (0..size).map(write).collect()
}

async fn commits(path: &Path, size: u32, messages: u32) -> Cost {
    let store = SqliteStore::open(path).expect("the file opens");
    let commits: Vec<Vec<Write>> = (0..messages / size).map(|batch| writes(batch, size)).collect();
    let measured = measure();
    for commit in commits {
        store.commit(commit).await.expect("the commit is applied");
    }
    measured(messages)
}

/// Rows as large as the store's, an index entry for each, and nothing read or encoded.
fn bare_loop(path: &Path, size: u32, messages: u32) -> Cost {
    drop(SqliteStore::open(path).expect("the file opens"));
    let mut db = Connection::open(path).expect("the file opens");
    db.pragma_update(None, "synchronous", "full").expect("a setting");
    db.pragma_update(None, "wal_autocheckpoint", 4_000).expect("a setting");
    db.pragma_update(None, "cache_size", -32_000).expect("a setting");
    let body = vec![b'x'; 430];
    let row = |at: u32| {
        let n = at % size;
        let name = format!("3EB0{:08X}", at.wrapping_mul(2_654_435_761));
        let key = [&[4], n.to_be_bytes().as_slice(), &[0; 4], name.as_bytes()].concat();
        (n, name, key)
    };
    let rows: Vec<(u32, String, Vec<u8>)> = (0..messages).map(row).collect();
    let measured = measure();
    for batch in rows.chunks(usize::try_from(size).expect("a small number")) {
        let tx = db.transaction().expect("a transaction");
        for (n, name, key) in batch {
            let thread = n % 50;
            tx.prepare_cached(
                "INSERT INTO documents(collection, name, version, update_time, fields) \
                 VALUES(?, ?, ?, ?, ?)",
            )
            .and_then(|mut s| s.execute(params![thread, name, n, n, body]))
            .expect("an insert");
            tx.prepare_cached("INSERT INTO entries VALUES(0, ?, ?, ?)")
                .and_then(|mut s| s.execute(params![thread, key, tx.last_insert_rowid()]))
                .expect("an insert");
        }
        tx.commit().expect("a commit");
    }
    measured(messages)
}

async fn ingest(path: &Path) {
    let store = SqliteStore::open(path).expect("the file opens");
    let ingest = Ingest::new(store.clone(), 8 << 20);
    for (name, note) in [("new history", "read, merged, written"), ("again", "read, not written")] {
        let measured = measure();
        for chat in 0..MESSAGES / 400 {
            let now = store.get(&[]).await.expect("a read").read_time;
            let records = history(chat..chat + 1, 400);
            let mut batch = Batch::new(&account(), records, now, &Twins::default().into());
            black_box(ingest.store(now, &mut batch).await.expect("it is stored"));
        }
        let Cost { per_second, cpu_micros } = measured(MESSAGES);
        println!("ingest, {name}: {per_second:.0} msg/s, {cpu_micros:.1} us CPU ({note})");
    }
}

async fn latency(path: &Path) {
    let store = SqliteStore::open(path).expect("the file opens");
    let lease = || DocPath::parse("accounts/a/leases/connection").expect("a valid path");
    for busy in [false, true] {
        let (bulk, done) = (store.clone(), Arc::new(AtomicU32::new(0)));
        let counted = Arc::clone(&done);
        let writing = tokio::spawn(async move {
            for batch in (0..).take_while(|_| busy) {
                bulk.commit(writes(batch, 500)).await.expect("the commit is applied");
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        while busy && done.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
        let before = done.load(Ordering::Relaxed);
        let mut took = Vec::new();
        for n in 0..400_i64 {
            let doc = store.get(&[lease()]).await.expect("a read").docs.remove(0);
            let precondition = Precondition::unchanged(doc.as_deref());
            let beat = vec![("beat".into(), FieldOp::from(n + i64::from(busy) * 1_000))];
            let started = Instant::now();
            store.commit(vec![Write::merge(lease(), precondition, beat)]).await.expect("a beat");
            took.push(started.elapsed());
        }
        let beside = done.load(Ordering::Relaxed) - before;
        writing.abort();
        took.sort_unstable();
        println!(
            "one durable compare-and-set, beside {beside} bulk commits of 500: p50 {:?} p99 {:?}",
            took[took.len() / 2],
            took[took.len() * 99 / 100]
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
