//! A long history arrives while people go on writing.
//!
//! `WA_LOAD_MESSAGES` and `WA_LOAD_CHATS` say how long it is.

use std::collections::BTreeSet;
use std::time::Duration;

use backfill_core::doc::Query;
use backfill_core::id::ThreadId;
use backfill_driver::port::Store;
use store_sqlite::SqliteStore;
use tokio::time::Instant;
use whatsapp_double::Via;

use crate::harness::World;
use crate::harness::process::resident;
use crate::harness::store::TestStore;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_history_arrives_complete_in_bounded_memory_while_people_write() {
    let setting = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |value| value.parse().unwrap())
    };
    let messages = setting("WA_LOAD_MESSAGES", 100_000);
    let chats = setting("WA_LOAD_CHATS", 500);
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
    let world = World::over(TestStore::sqlite(store)).await;
    world.link().await;
    let phone = world.account.phone();
    for n in 0..chats {
        let contact = world.account.contact(&format!("1555200{n:04}"), &format!("300{n:04}"));
        phone.keep_texts(contact.pn(), &format!("m{n}-"), 1_740_000_000, messages / chats);
    }
    let writer = world.account.contact("15550000002", "102");
    let process = world.start().await;
    process.opened(1).await;
    phone.send_all_history(20, Via::Blob);
    let before = resident();
    let begun = Instant::now();

    let mut peak = before;
    let mut slowest = Duration::ZERO;
    let mut live = 0;
    let stored = loop {
        let sent = Instant::now();
        let id = writer.text("in between");
        world.until_message("15550000002@s.whatsapp.net", &id).await;
        slowest = slowest.max(sent.elapsed());
        live += 1;
        peak = peak.max(resident());
        let stored: u64 = process
            .seen
            .ingested()
            .iter()
            .filter(|ingested| matches!(ingested.source, backfill_core::io::Source::Chunk { .. }))
            .map(|ingested| u64::from(ingested.messages))
            .sum();
        if stored >= messages {
            break stored;
        }
        assert!(begun.elapsed() < Duration::from_secs(1_800), "{stored} of {messages}");
    };
    let took = begun.elapsed();
    println!(
        "{stored} messages of {chats} chats in {took:.1?} ({:.0}/s), {live} live ones meanwhile, \
         the slowest in {slowest:.1?}; memory {before} KiB before, {peak} KiB at most",
        stored as f64 / took.as_secs_f64()
    );
    for n in 0..chats {
        let chat = format!("1555200{n:04}@s.whatsapp.net");
        let thread = ThreadId::of_chat(&world.id, &chat).unwrap();
        let all = Query::all(thread.messages(), u32::MAX).select([]);
        let found = world.store.query(&all).await.unwrap().docs;
        let found: BTreeSet<&str> = found.iter().map(|doc| doc.path.id()).collect();
        let kept: Vec<String> = (0..messages / chats).map(|m| format!("m{n}-{m}")).collect();
        assert_eq!(found, kept.iter().map(String::as_str).collect());
    }
    assert!(peak < before + 256 * 1_024, "{before} KiB before, {peak} KiB at most");
    process.stop().await;
}
