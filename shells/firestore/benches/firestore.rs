//! How fast the store on Firestore is, and against what.
//!
//! The yardstick is the emulator's own ceiling: the same gets and commits as requests built
//! beforehand, sent by the raw client with as many in flight. Ratios are within one run, in
//! alternating rounds; the emulator's JIT is warmed up first.
//!
//! Seen with `cargo bench --workspace --bench firestore` on 2 virtual cores, which the emulator
//! shares:
//!
//! | | msg/s | client CPU us per message |
//! |---|---:|---:|
//! | ingest of new history | 12,904 | 16.5 |
//! | the same again | 26,614 | 19.3 |
//! | the raw client, same requests | 13,616 | 6.1 |
//!
//! 1,060 bytes of requests per message. Ratio to the ceiling 0.93 (goal: 0.9), the median of 0.68
//! to 1.27. Lease acquired with 1, 8 and 32 contenders: p50 4.6, 8.6 and 15 ms; p99 10, 19 and
//! 37 ms.

#[expect(dead_code, reason = "the bench connects as the store does, and to an emulator only")]
#[expect(unreachable_pub, reason = "public in the crate it belongs to")]
#[path = "../src/connection.rs"]
mod connection;
#[expect(dead_code, reason = "the bench speaks half of the protocol")]
#[path = "../src/wire.rs"]
mod wire;

use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backfill_core::doc::{DocPath, FieldOp, Precondition, Query, Write};
use backfill_core::ingest::Batch;
use backfill_core::jid::Twins;
use backfill_core::time::StoreTime;
use backfill_driver::ingest::Ingest;
use backfill_driver::port::{Committed, Found, Snapshot, Store, StoreError};
use firestore::FirestoreDb;
use firestore::gcloud_sdk::google::firestore::v1 as pb;
use firestore::gcloud_sdk::prost::Message;
use futures_util::{Stream, stream};
use rustix::time::{ClockId, clock_gettime};
use store_contract::{Emulator, EmulatorError, account, history};
use store_firestore::{Credentials, FirestoreStore, Options, Timeouts};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::Instant;

const PER_CHAT: u32 = 400;
const CHATS: u32 = 30;
const IN_FLIGHT: u32 = 3;
const ROUNDS: u32 = 5;

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime starts");
    // Its memory grows with every write, so each part gets an emulator of its own.
    for part in [Part::Throughput, Part::Contention] {
        let emulator = match Emulator::start_private() {
            Ok(emulator) => emulator,
            Err(EmulatorError::Missing) if !Emulator::required() => {
                println!("not run: {}", EmulatorError::Missing);
                return;
            }
            Err(e) => panic!("{e}"),
        };
        match part {
            Part::Throughput => runtime.block_on(throughput(emulator.host())),
            Part::Contention => runtime.block_on(contention(emulator.host())),
        }
    }
}

#[derive(Clone, Copy)]
enum Part {
    Contention,
    Throughput,
}

async fn open(host: &str, project: String) -> FirestoreStore {
    let credentials = Credentials::Emulator(host.to_owned());
    let store = FirestoreStore::connect(&Options { project, credentials }).await;
    // A cold emulator on a busy machine takes long; what is measured is not whether it does.
    let patient = Duration::from_secs(120);
    let timeouts = Timeouts { get: patient, commit: patient, query: patient };
    store.expect("the emulator answers").with_timeouts(timeouts)
}

/// What a round cost.
struct Cost {
    per_second: f64,
    cpu_micros: f64,
}

async fn throughput(host: &str) {
    let messages = PER_CHAT * CHATS;
    println!(
        "{messages} new messages, {IN_FLIGHT} batches of {PER_CHAT} in flight, {ROUNDS} rounds"
    );
    let (mut ratios, mut costs) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let store = open(host, format!("ingest-{round}")).await;
        let recorders: Vec<Recorder> = (0..IN_FLIGHT)
            .map(|_| Recorder { store: store.clone(), log: Arc::default() })
            .collect();
        let now = store.get(&[]).await.expect("a read").read_time;
        let ours = ingest(recorders.clone(), now).await;
        let raw = Raw::connect(host, &format!("replay-{round}")).await;
        let logs: Vec<_> = recorders.iter().map(|recorder| raw.requests(recorder)).collect();
        let bytes = logs.iter().flatten().map(Request::bytes).sum::<usize>() as f64;
        let bytes = bytes / f64::from(messages);
        let ceiling = measured(messages, raw.send(logs)).await;
        // Once more behind the ceiling, so that neither side always has the younger emulator.
        let store_behind = open(host, format!("behind-{round}")).await;
        let behind = ingest(vec![store_behind; IN_FLIGHT as usize], now).await;
        let again = ingest(vec![store.clone(); IN_FLIGHT as usize], now).await;
        // The first round warms the emulator up.
        if round > 0 {
            let both = (ours.per_second * behind.per_second).sqrt();
            ratios.push(both / ceiling.per_second);
            costs.push((ours, again, ceiling, bytes));
        }
    }
    let of = |pick: fn(&(Cost, Cost, Cost, f64)) -> f64| median(costs.iter().map(pick).collect());
    println!(
        "ingest of new history: {:.0} msg/s, {:.1} us CPU",
        of(|c| c.0.per_second),
        of(|c| c.0.cpu_micros)
    );
    println!(
        "the same again:        {:.0} msg/s, {:.1} us CPU",
        of(|c| c.1.per_second),
        of(|c| c.1.cpu_micros)
    );
    println!(
        "raw client's ceiling:  {:.0} msg/s, {:.1} us CPU",
        of(|c| c.2.per_second),
        of(|c| c.2.cpu_micros)
    );
    println!("requests: {:.0} bytes per message", of(|c| c.3));
    println!("ratio to the ceiling: {:.2} (rounds {ratios:.2?})", median(ratios.clone()));
}

async fn ingest<S: Store>(workers: Vec<S>, now: StoreTime) -> Cost {
    measured(PER_CHAT * CHATS, async {
        let mut tasks = JoinSet::new();
        for (worker, store) in (0..CHATS).zip(workers) {
            let ingest = Ingest::new(store, 8 << 20);
            tasks.spawn(async move {
                for chat in (worker..CHATS).step_by(IN_FLIGHT as usize) {
                    let records = history(chat..chat + 1, PER_CHAT);
                    let twins = Arc::new(Twins::default());
                    let mut batch = Batch::new(&account(), records, now, &twins);
                    black_box(ingest.store(now, &mut batch).await.expect("it is stored"));
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("no panic");
        }
    })
    .await
}

/// A store that notes what it is asked.
#[derive(Clone)]
struct Recorder {
    store: FirestoreStore,
    log: Arc<Mutex<Vec<Asked>>>,
}

#[derive(Clone)]
enum Asked {
    Commit(Vec<Write>),
    Get(Vec<DocPath>),
}

impl Store for Recorder {
    async fn get(&self, paths: &[DocPath]) -> Result<Snapshot, StoreError> {
        self.log.lock().expect("no panic").push(Asked::Get(paths.to_vec()));
        self.store.get(paths).await
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        self.log.lock().expect("no panic").push(Asked::Commit(writes.clone()));
        self.store.commit(writes).await
    }

    async fn query(&self, query: &Query) -> Result<Found, StoreError> {
        self.store.query(query).await
    }

    fn watch(&self, _: Query) -> impl Stream<Item = ()> + Send + 'static {
        stream::pending()
    }
}

/// The raw client, and requests built before the clock runs.
#[derive(Clone)]
struct Raw {
    db: FirestoreDb,
}

enum Request {
    Commit(pb::CommitRequest),
    Get(pb::BatchGetDocumentsRequest),
}

impl Request {
    fn bytes(&self) -> usize {
        match self {
            Self::Commit(request) => request.encoded_len(),
            Self::Get(request) => request.encoded_len(),
        }
    }
}

impl Raw {
    async fn connect(host: &str, project: &str) -> Self {
        // With other credentials the emulator would evaluate its rules for every document.
        let credentials = connection::Credentials::Emulator(host.to_owned());
        let options = connection::Options { project: project.into(), credentials };
        let db = connection::connect(&options).await;
        Self { db: db.expect("the emulator answers") }
    }

    fn requests(&self, recorder: &Recorder) -> Vec<Request> {
        let names = wire::Names::new(self.db.get_documents_path());
        let database = self.db.get_database_path().clone();
        let log = recorder.log.lock().expect("no panic");
        let request = |asked: &Asked| match asked {
            Asked::Get(paths) => Request::Get(pb::BatchGetDocumentsRequest {
                database: database.clone(),
                documents: paths.iter().map(|path| names.document(path)).collect(),
                ..Default::default()
            }),
            Asked::Commit(writes) => {
                let mut writes: Vec<_> = writes.iter().map(|write| names.write(write)).collect();
                for write in &mut writes {
                    // Versions are another database's; absence is checked as before.
                    let exists = Some(pb::precondition::ConditionType::Exists(false));
                    let absent = |p: &pb::Precondition| p.condition_type == exists;
                    write.current_document = write.current_document.take().filter(absent);
                }
                let database = database.clone();
                Request::Commit(pb::CommitRequest { database, writes, ..Default::default() })
            }
        };
        log.iter().map(request).collect()
    }

    async fn send(&self, logs: Vec<Vec<Request>>) {
        let mut tasks = JoinSet::new();
        for log in logs {
            let mut client = self.db.client().get();
            tasks.spawn(async move {
                for request in log {
                    match request {
                        Request::Commit(request) => {
                            client.commit(request).await.expect("the commit is applied");
                        }
                        Request::Get(request) => {
                            let answers = client.batch_get_documents(request).await;
                            let mut answers = answers.expect("a read").into_inner();
                            while let Some(answer) = answers.message().await.expect("a read") {
                                black_box(answer);
                            }
                        }
                    }
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("no panic");
        }
    }
}

async fn measured(messages: u32, work: impl Future<Output = ()>) -> Cost {
    let (cpu, started) = (cpu_time(), Instant::now());
    work.await;
    let cpu = cpu_time() - cpu;
    Cost {
        per_second: f64::from(messages) / started.elapsed().as_secs_f64(),
        cpu_micros: cpu.as_secs_f64() * 1e6 / f64::from(messages),
    }
}

/// Rounds that nobody counts: a cold emulator takes seconds for its first.
const WARM_UP: u32 = 20;

async fn contention(host: &str) {
    let lease = || DocPath::parse("accounts/a/leases/connection").expect("a valid path");
    for contenders in [1, 8, 32] {
        let barrier = Arc::new(Barrier::new(contenders));
        let mut tasks = JoinSet::new();
        for _ in 0..contenders {
            let store = open(host, format!("lease-{contenders}")).await;
            let barrier = Arc::clone(&barrier);
            tasks.spawn(async move {
                let mut won = Vec::new();
                for round in 0..WARM_UP + 100 {
                    barrier.wait().await;
                    let started = Instant::now();
                    let doc = store.get(&[lease()]).await.expect("a read").docs.remove(0);
                    let epoch = doc.as_ref().and_then(|doc| doc.int("epoch")).unwrap_or(0);
                    let change = vec![("epoch".into(), FieldOp::from(epoch + 1))];
                    let precondition = Precondition::unchanged(doc.as_deref());
                    match store.commit(vec![Write::merge(lease(), precondition, change)]).await {
                        Ok(_) if round < WARM_UP => {}
                        Ok(_) => won.push(started.elapsed()),
                        Err(StoreError::Conflict(_)) => {}
                        Err(e) => panic!("{e:?}"),
                    }
                }
                won
            });
        }
        let mut won: Vec<Duration> = Vec::new();
        while let Some(times) = tasks.join_next().await {
            won.extend(times.expect("no panic"));
        }
        won.sort_unstable();
        let (p50, p99) = (won[won.len() / 2], won[won.len() * 99 / 100]);
        println!("lease acquired with {contenders} contenders: p50 {p50:?} p99 {p99:?}");
    }
}

fn cpu_time() -> Duration {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), t.tv_nsec.unsigned_abs() as u32)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
