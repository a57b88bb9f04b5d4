//! What happens when the server stops answering, goes away, or its answer is lost.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backfill_core::doc::{CollectionPath, DocPath, FieldOp, Precondition, Query, Write};
use backfill_driver::port::{Store, StoreError};
use futures_util::StreamExt;
use rustix::process::{Pid, Signal, kill_process};
use store_contract::{Case, Emulator};
use store_firestore::{Credentials, FirestoreStore, Options, Timeouts};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("outages::a_lost_answer_is_unknown", a_lost_answer_is_unknown),
        Case::new("outages::a_restarted_server_is_found_again", a_restarted_server_is_found_again),
        Case::new("outages::a_silent_server_costs_a_deadline", a_silent_server_costs_a_deadline),
        Case::new("outages::no_server_is_unavailable", no_server_is_unavailable),
    ]
}

const SHORT: Timeouts = Timeouts {
    get: Duration::from_millis(400),
    commit: Duration::from_millis(400),
    query: Duration::from_millis(400),
};

async fn open(host: &str) -> Result<FirestoreStore, StoreError> {
    let credentials = Credentials::Emulator(host.to_owned());
    FirestoreStore::connect(&Options { project: "outages".into(), credentials }).await
}

fn path(p: &str) -> DocPath {
    DocPath::parse(p).unwrap()
}

fn put(n: i64) -> Vec<Write> {
    vec![Write::merge(path("c/a"), Precondition::Any, vec![("n".into(), FieldOp::from(n))])]
}

async fn n(store: &FirestoreStore) -> Result<Option<i64>, StoreError> {
    Ok(store.get(&[path("c/a")]).await?.docs[0].as_ref().and_then(|doc| doc.int("n")))
}

/// Commits until the store takes it, at most a minute.
async fn commit_when_it_answers(store: &FirestoreStore, value: i64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(e) = store.commit(put(value)).await {
        assert!(Instant::now() < deadline, "no answer: {e:?}");
        tokio::task::yield_now().await;
    }
}

/// Stops a process and lets it go on when dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(emulator: &Emulator) -> Self {
        let pid = i32::try_from(emulator.pid().unwrap()).unwrap();
        let pid = Pid::from_raw(pid).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).unwrap();
    }
}

async fn a_silent_server_costs_a_deadline() {
    let emulator = Emulator::start_private().unwrap();
    let patient = open(emulator.host()).await.unwrap();
    commit_when_it_answers(&patient, 1).await;
    let store = patient.clone().with_timeouts(SHORT);
    let all = Query::all(CollectionPath::root("c"), 10);
    let stopped = Stopped::new(&emulator);
    // Far from the deadline, for machines that are busy; far from a hang.
    let bound = Duration::from_secs(5);

    let started = Instant::now();
    let committed = store.commit(put(2)).await;
    assert!(matches!(committed, Err(StoreError::Unknown(_))), "{committed:?}");
    assert!(started.elapsed() >= SHORT.commit && started.elapsed() < bound);

    let started = Instant::now();
    let (got, found) = (store.get(&[path("c/a")]).await, store.query(&all).await);
    assert!(matches!(got, Err(StoreError::Unavailable(_))), "{got:?}");
    assert!(matches!(found, Err(StoreError::Unavailable(_))), "{found:?}");
    assert!(started.elapsed() < 2 * bound);

    let started = Instant::now();
    let calls = (0..40).map(|_| store.get(&[]));
    let answers = futures_util::future::join_all(calls).await;
    assert!(answers.iter().all(Result::is_err));
    assert!(started.elapsed() < bound, "many callers wait no longer than one");

    drop(stopped);
    let seen = n(&patient).await.unwrap();
    assert!(seen == Some(1) || seen == Some(2), "an unknown outcome is one of the two");
    commit_when_it_answers(&store, 3).await;
    assert_eq!(n(&patient).await.unwrap(), Some(3));
}

async fn a_restarted_server_is_found_again() {
    let emulator = Emulator::start_private().unwrap();
    let port = emulator.host().rsplit_once(':').unwrap().1.parse().unwrap();
    let store = open(emulator.host()).await.unwrap();
    commit_when_it_answers(&store, 1).await;
    let mut hints = pin!(store.watch(Query::all(CollectionPath::root("c"), 10)));
    assert_eq!(timeout(Duration::from_secs(10), hints.next()).await, Ok(Some(())));

    drop(emulator);
    let refused = store.commit(put(2)).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_) | StoreError::Unknown(_))));
    let refused = store.commit(put(2)).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "never sent: {refused:?}");

    let emulator = Emulator::start_own(port).unwrap();
    // Its documents are gone with it; what counts is that it is used again.
    commit_when_it_answers(&store, 5).await;
    assert_eq!(n(&store).await.unwrap(), Some(5));
    let hinted = timeout(Duration::from_secs(30), hints.next()).await;
    assert_eq!(hinted, Ok(Some(())), "the listener is back too");
    drop(emulator);
}

async fn no_server_is_unavailable() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let started = Instant::now();
    let answer = open(&unused.to_string()).await.map(drop);
    assert!(matches!(answer, Err(StoreError::Unavailable(Some(_)))), "{answer:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

async fn a_lost_answer_is_unknown() {
    let emulator = Emulator::start_private().unwrap();
    let direct = open(emulator.host()).await.unwrap();
    let proxy = Proxy::start(emulator.host()).await;
    let store = open(&proxy.host).await.unwrap().with_timeouts(SHORT);
    commit_when_it_answers(&store, 1).await;
    let version = direct.get(&[path("c/a")]).await.unwrap().docs[0].as_ref().unwrap().version;

    proxy.swallow.store(true, Ordering::SeqCst);
    let change = vec![("n".into(), FieldOp::from(2_i64))];
    let write = || Write::merge(path("c/a"), Precondition::Version(version), change.clone());
    let lost = store.commit(vec![write()]).await;
    assert!(matches!(lost, Err(StoreError::Unknown(_))), "{lost:?}");
    let deadline = Instant::now() + Duration::from_secs(30);
    while n(&direct).await.unwrap() != Some(2) {
        assert!(Instant::now() < deadline, "it was never applied");
    }
    let again = direct.commit(vec![write()]).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "a repetition is refused: {again:?}");
}

/// Passes everything on to the emulator, and its answers back unless they are to be lost.
struct Proxy {
    host: String,
    swallow: Arc<AtomicBool>,
}

impl Proxy {
    async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let swallow = Arc::new(AtomicBool::new(false));
        let (target, swallowing) = (target.to_owned(), Arc::clone(&swallow));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&target).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                tokio::spawn(
                    async move { tokio::io::copy(&mut from_client, &mut to_server).await },
                );
                let swallowing = Arc::clone(&swallowing);
                tokio::spawn(async move {
                    let mut buffer = vec![0; 65_536];
                    while let Ok(read) = from_server.read(&mut buffer).await {
                        let lost = swallowing.load(Ordering::SeqCst);
                        if read == 0 || !lost && to_client.write_all(&buffer[..read]).await.is_err()
                        {
                            return;
                        }
                    }
                });
            }
        });
        Self { host, swallow }
    }
}
