//! What the gateway costs. Memory, files and time are those of the whole process, the server double
//! included, so nothing else may run in it:
//!
//! ```sh
//! cargo test --workspace --test main -- --ignored --exact --nocapture figures::live_messages
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use backfill_core::io::GatewayEvent;
use gateway_whatsapp::Options;
use store_sqlite::SqliteStore;
use tempfile::TempDir;
use tokio::time::Instant;
use whatsapp_double::{Contact, Seen, Via};
use whatsapp_rust::transport::TokioWebSocketTransportFactory;

use crate::harness::process::{open_files, resident, threads};
use crate::harness::store::TestStore;
use crate::harness::{Process, World};
use crate::session::figures::Stored;
use crate::session::kills::start;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures the memory of the process, in which nothing else may run"]
async fn an_idle_account_with_shared_sessions() {
    idle_accounts(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures the memory of the process, in which nothing else may run"]
async fn an_idle_account_with_local_sessions() {
    idle_accounts(true).await;
}

/// The first few pay for what is made once.
async fn idle_accounts(local: bool) {
    const FIRST: u64 = 5;
    const MORE: u64 = 40;
    let (_directory, store) = database();
    let world = World { local, ..World::over(store).await };
    world.link().await;
    let mut others = Vec::new();
    for number in 1..FIRST + MORE {
        others.push(world.another(number).await);
    }
    let server = world.double.listen().await.unwrap();
    let mut options = world.options();
    options.transport = Arc::new(TokioWebSocketTransportFactory::new().with_url(server.url()));
    options.pre_keys = usual(&options).pre_keys;
    let mut settings = world.settings();
    settings.connect_stagger = Duration::from_millis(300);
    let process = world.start_with(world.store.clone(), options, settings).await;
    drained(&process, FIRST).await;
    let before = (resident(), open_files(), threads());
    drained(&process, FIRST + MORE).await;
    println!(
        "{} sessions: {} KiB and {:.1} files more per account, one of them the double's; {} threads \
         more for {MORE}; {before:?} with {FIRST}",
        if local { "local" } else { "shared" },
        (resident() as i64 - before.0 as i64) / MORE as i64,
        (open_files() as f64 - before.1 as f64) / MORE as f64,
        threads() as i64 - before.2 as i64,
    );
    for world in &others {
        assert!(world.account.is_connected());
    }
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time, so that nothing else may run"]
async fn live_messages() {
    let alone = client_alone().await;
    let (_directory, store) = database();
    let world = World::over(store).await;
    world.link().await;
    let contacts = contacts(&world).await;
    let process = world.start().await;
    process.opened(1).await;
    let whole = write(&world, &contacts).await;
    process.stop().await;
    println!("client and its session alone, the double's encryption included: {alone}");
    println!("from the wire into SQLite: {whole}");
}

/// The client with a hook that says yes to everything, and its session in SQLite.
async fn client_alone() -> Pace {
    let (_directory, store) = database();
    let world = World::over(store).await;
    world.link().await;
    let contacts = contacts(&world).await;
    let session = world.session().await;
    let transport = world.double.transport();
    let (bot, mut connected) =
        start(&world.double, session.backend.clone(), transport, Stored).await;
    connected.wait_for(|connected| *connected).await.unwrap();
    let pace = write(&world, &contacts).await;
    bot.shutdown().await;
    pace
}

async fn contacts(world: &World) -> Vec<Contact> {
    let contact = |n| world.account.contact(&format!("155530000{n:02}"), &format!("4000{n:02}"));
    (0..20).map(contact).collect()
}

/// How fast messages are confirmed.
async fn write(world: &World, contacts: &[Contact]) -> Pace {
    // The first message of a chat makes a session.
    for contact in contacts {
        contact.text("hello");
    }
    world.account.wait_drained().await;
    let begin = Pace::begin(world);
    for round in 0..LIVE / contacts.len() as u64 {
        for contact in contacts {
            contact.text(&format!("{round}"));
        }
    }
    world.account.wait_drained().await;
    begin.end(world, LIVE)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time, so that nothing else may run"]
async fn history() {
    const CHATS: u64 = 250;
    const MESSAGES: u64 = 50_000;
    const CHUNKS: usize = 10;
    for dry_run in [true, false] {
        let (_directory, store) = database();
        let world = World::over(store).await;
        world.link().await;
        let phone = world.account.phone();
        for n in 0..CHATS {
            let contact = world.account.contact(&format!("1555200{n:04}"), &format!("300{n:04}"));
            let prefix = format!("m{n}-");
            phone.keep_texts(contact.pn(), &prefix, 1_740_000_000, MESSAGES / CHATS);
        }
        let mut options = world.options();
        options.dry_run = dry_run;
        let process = world.start_with(world.store.clone(), options, world.settings()).await;
        process.opened(1).await;
        let begin = Pace::begin(&world);
        phone.send_all_history(CHUNKS, Via::Blob);
        let stored = |seen: &[GatewayEvent]| {
            let stored = seen.iter().filter(|e| matches!(e, GatewayEvent::ChunkStored { .. }));
            (stored.count() == CHUNKS).then_some(())
        };
        process.seen.until("all chunks", stored).await;
        let pace = begin.end(&world, MESSAGES);
        println!("{}: {pace}", if dry_run { "client, spool and reading alone" } else { "whole" });
        process.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time, so that nothing else may run"]
async fn from_the_scan_to_being_connected() {
    let mut took = Vec::new();
    for _ in 0..11 {
        let world = World::new().await;
        let mut options = world.options();
        options.pre_keys = usual(&options).pre_keys;
        let process = world.start_with(world.store.clone(), options, world.settings()).await;
        world.until_status("qr_ready").await;
        let code = world.code_on_show().await;
        let begun = Instant::now();
        world.account.scan(&code).unwrap();
        process.opened(1).await;
        let opened = begun.elapsed();
        let uploaded = |seen: &Seen| matches!(seen, Seen::KeysUploaded { .. }).then_some(());
        world.account.wait("keys", uploaded).await;
        took.push((opened, begun.elapsed()));
        process.stop().await;
    }
    took.sort_unstable();
    let (opened, reachable) = took[took.len() / 2];
    println!(
        "connected {opened:.1?} after the scan, reachable after {reachable:.1?} (median of 11)"
    );
}

fn database() -> (TempDir, TestStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
    (directory, TestStore::sqlite(store))
}

fn usual(options: &Options) -> Options {
    Options::new(Arc::clone(&options.transport), Arc::clone(&options.http), options.spool.clone())
}

/// So many accounts have emptied their offline queue.
async fn drained(process: &Process, accounts: u64) {
    process
        .seen
        .until("empty queues", |seen| {
            let drained = seen.iter().filter(|e| matches!(e, GatewayEvent::Drained { .. }));
            (drained.count() as u64 >= accounts).then_some(())
        })
        .await;
}

/// How long something takes, and how much of that the store.
struct Pace {
    begun: Instant,
    store: Duration,
    messages: u64,
    took: Duration,
}

impl Pace {
    fn begin(world: &World) -> Self {
        let (begun, store) = (Instant::now(), world.store.spent());
        Self { begun, store, messages: 0, took: Duration::ZERO }
    }

    fn end(self, world: &World, messages: u64) -> Self {
        let store = world.store.spent() - self.store;
        Self { took: self.begun.elapsed(), store, messages, ..self }
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = |time: Duration| time.as_secs_f64() * 1e6 / self.messages as f64;
        let (took, store) = (per(self.took), per(self.store));
        write!(
            f,
            "{:.0} messages/s; {took:.0} µs each, {store:.0} of them in the store",
            1e6 / took
        )
    }
}

const LIVE: u64 = 10_000;
