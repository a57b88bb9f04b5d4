//! What sessions cost: operations, bytes and memory. The figures are printed; bounds are asserted.

use std::sync::Arc;

use async_trait::async_trait;
use backfill_core::doc::{Query, Value};
use backfill_driver::billing::{Counted, Operations};
use backfill_driver::port::Store;
use gateway_whatsapp::{Session, Sessions};
use store_sqlite::SqliteStore;
use wacore::store::InMemoryBackend;
use wacore::store::traits::SignalStore;
use wacore::types::events::InboundMessage;
use whatsapp_double::Double;
use whatsapp_rust::{Client, InboundDurabilityHook};

use crate::harness::process::{open_files, resident, threads};
use crate::session::harness::{Common, NEW_KEY, account, sessions};
use crate::session::kills::start;
use crate::session::trial::Trial;

/// Says yes to everything.
pub(crate) struct Stored;

#[async_trait]
impl InboundDurabilityHook for Stored {
    async fn on_messages(&self, _: Arc<Client>, _: &[InboundMessage]) -> anyhow::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_costs_two_commits_and_an_idle_account_nothing() {
    const MESSAGES: u64 = 200;
    let common = Common::new();
    let counted = Counted::new(common.store.clone());
    let trial = Trial::faulty(counted.clone(), 0, 0);
    let fence = common.acquire(&account(1)).await;
    let sessions = sessions(trial.clone(), NEW_KEY, fence);
    let double = Double::new();
    let owner = double.account("15550000001", "100000000000001");
    let contact = owner.contact("15550000002", "100000000000002");
    let session = sessions.open(&account(1)).await.unwrap();
    owner.seed(&session.backend).await.unwrap();
    let (bot, mut connected) =
        start(&double, session.backend.clone(), double.transport(), Stored).await;
    connected.wait_for(|connected| *connected).await.unwrap();
    owner.wait_receipt(&contact.text("hello")).await;
    // Whatever login leaves behind is over once a second message has been confirmed.
    owner.wait_receipt(&contact.text("hello again")).await;

    let mut before = (trial.commits(), counted.operations());
    let mut cost = |what: &str| {
        let now = (trial.commits(), counted.operations());
        let commits = (now.0 - before.0) as f64 / MESSAGES as f64;
        let per = |count: fn(&Operations) -> u64| {
            (count(&now.1) - count(&before.1)) as f64 / MESSAGES as f64
        };
        let reads = count_of(&now.1, &before.1, |operations| operations.reads);
        println!(
            "{what}: per message {commits:.2} commits, {:.2} writes, {:.2} deletes; {reads} reads",
            per(|operations| operations.writes),
            per(|operations| operations.deletes),
        );
        before = now;
        (commits, reads)
    };
    for index in 0..MESSAGES {
        owner.wait_receipt(&contact.text(&format!("text {index}"))).await;
    }
    owner.wait_drained().await;
    let (one_by_one, reads) = cost("one by one");
    assert!(one_by_one < 2.6, "{one_by_one}");
    assert_eq!(reads, 0);
    for index in 0..MESSAGES {
        contact.text(&format!("text {index}"));
    }
    owner.wait_drained().await;
    assert!(cost("in a burst").0 < 2.6);
    bot.shutdown().await;
    session.close().await.unwrap();
    cost("(closing)");

    for index in 0..MESSAGES {
        contact.text(&format!("text {index}"));
    }
    let session = sessions.open(&account(1)).await.unwrap();
    let (bot, _) = start(&double, session.backend.clone(), double.transport(), Stored).await;
    owner.wait_drained().await;
    let (commits, reads) = cost("missed while away");
    // How many share a commit depends on how busy the machine is.
    assert!(commits < one_by_one, "{commits}");
    assert!(reads < 100, "{reads} reads to open");
    bot.shutdown().await;
    session.close().await.unwrap();
}

fn count_of(now: &Operations, before: &Operations, count: fn(&Operations) -> u64) -> u64 {
    count(now) - count(before)
}

#[tokio::test]
async fn a_large_account_fits_into_few_documents() {
    let common = Common::new();
    let sessions = common.sessions(&account(1)).await;
    let size = async |what: &str| {
        let query = Query::all(account(1).path().child("session"), 500);
        let docs = common.store.query(&query).await.unwrap().docs;
        let bytes: usize = docs
            .iter()
            .map(|doc| match &doc.fields["data"] {
                Value::Bytes(bytes) => bytes.len(),
                _ => 0,
            })
            .sum();
        println!("{what}: {} documents, {bytes} bytes", docs.len());
        (docs.len(), bytes)
    };
    let session = sessions.open(&account(1)).await.unwrap();
    fill(&session).await;
    size("812 one-time keys").await;
    for contact in 0..500_u32 {
        let address = format!("{}@lid", 100_000_000_000_000_u64 + u64::from(contact));
        session.backend.put_session(&address, &[contact as u8; 700]).await.unwrap();
        session.backend.put_identity(&address, [1; 32]).await.unwrap();
    }
    session.close().await.unwrap();
    let (documents, bytes) = size("and 500 contacts").await;
    assert!(documents < 100 && bytes < 1_000_000);
}

/// What a linked account has without any contact: its device and its one-time keys.
async fn fill(session: &Session) {
    session.backend.create().await.unwrap();
    session.backend.store_prekeys_batch(&prekeys(), true).await.unwrap();
}

fn prekeys() -> Vec<(u32, bytes::Bytes)> {
    (1..=812).map(|id| (id, vec![id as u8; 76].into())).collect()
}

/// Looks at the whole process, so it has to run alone: `--ignored --exact`.
#[tokio::test]
#[ignore = "measures the memory of the process, in which nothing else may run"]
async fn memory_per_idle_session() {
    const SESSIONS: u64 = 60;
    let common = Common::new();
    let directory = tempfile::tempdir().unwrap();
    let local = Sessions::<SqliteStore>::local(directory.path());
    let mut kept = Vec::new();
    for _ in 0..5 {
        // Warm up what is made once.
        let backend = InMemoryBackend::new();
        backend.store_prekeys_batch(&prekeys(), true).await.unwrap();
    }
    measure_one(&common.sessions(&account(0)).await, 0, &mut kept).await;
    measure_one(&local, 0, &mut kept).await;

    let before = (resident(), threads(), open_files());
    let mut backends = Vec::new();
    for _ in 0..SESSIONS {
        let backend = InMemoryBackend::new();
        backend.store_prekeys_batch(&prekeys(), true).await.unwrap();
        backends.push(backend);
    }
    report("the client's own backend in memory", before, SESSIONS);
    let before = (resident(), threads(), open_files());
    for number in 1..=SESSIONS {
        let sessions = common.sessions(&account(number)).await;
        measure_one(&sessions, number, &mut kept).await;
    }
    report("shared", before, SESSIONS);
    let before = (resident(), threads(), open_files());
    for number in 1..=SESSIONS {
        measure_one(&local, number, &mut kept).await;
    }
    report("local", before, SESSIONS);
    assert_eq!(kept.len() as u64, 2 * SESSIONS + 2);
}

/// Opens a session as it is found after a restart.
async fn measure_one<S: Store>(sessions: &Sessions<S>, number: u64, kept: &mut Vec<Session>) {
    let session = sessions.open(&account(number)).await.unwrap();
    fill(&session).await;
    session.close().await.unwrap();
    kept.push(sessions.open(&account(number)).await.unwrap());
}

fn report(what: &str, before: (u64, usize, usize), sessions: u64) {
    println!(
        "{what}: {} KiB per session, {} threads and {} files for all",
        (resident() - before.0) / sessions,
        threads() - before.1,
        open_files() - before.2,
    );
}
