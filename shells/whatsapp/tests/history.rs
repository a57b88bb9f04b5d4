//! History that the phone sends by itself.

use std::sync::atomic::Ordering;
use std::time::Duration;

use backfill_core::coverage::PageEnd;
use backfill_core::doc::Value;
use backfill_core::io::{GatewayCall, GatewayEvent, Source};
use gateway_whatsapp::Spool;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use waproto::buffa::MessageField;
use waproto::whatsapp::history_sync::HistorySyncType;
use whatsapp_double::{Stored, Via, text};

use crate::harness::{Process, World, keys};

const START: u64 = 1_740_000_000;

fn fill(world: &World, chats: u64, messages: u64) {
    let phone = world.account.phone();
    for n in 0..chats {
        let contact = world.account.contact(&format!("1555100{n:04}"), &format!("200{n:04}"));
        phone.keep_texts(contact.pn(), &format!("m{n}-"), START, messages);
        phone.name_chat(contact.pn(), &format!("Name {n}"));
    }
}

async fn until_unspooled(process: &Process, chunks: usize) {
    process
        .seen
        .until("chunks", |seen| {
            let arrived = seen.iter().filter(|e| matches!(e, GatewayEvent::Chunk { .. })).count();
            (arrived >= chunks).then_some(())
        })
        .await;
    process
        .store()
        .clone()
        .changes()
        .wait_for(|_| {
            let calls = process.seen.calls();
            calls.iter().filter(|c| matches!(c.call, GatewayCall::Unspool { .. })).count() >= chunks
        })
        .await
        .unwrap();
}

/// What `lastHistorySyncResult` says: saved, skipped, errors, total, dryRun.
async fn result(world: &World) -> (i64, i64, i64, i64, bool) {
    let account = world.document(world.id.path().as_str()).await.unwrap();
    let result = account.value("lastHistorySyncResult").unwrap().as_map().unwrap();
    let number = |name: &str| result[name].as_int().unwrap();
    let counts = (number("saved"), number("skipped"), number("errors"), number("total"));
    (counts.0, counts.1, counts.2, counts.3, result["dryRun"].as_bool().unwrap())
}

fn is_missing(event: &GatewayEvent) -> bool {
    matches!(event, GatewayEvent::ChunkMissing { .. })
}

fn reported(seen: &[GatewayEvent]) -> Option<()> {
    seen.iter().any(is_missing).then_some(())
}

fn spooled(world: &World) -> usize {
    let directory = world.directory.path().join("spool");
    let Ok(accounts) = std::fs::read_dir(directory) else { return 0 };
    accounts.map(|entry| std::fs::read_dir(entry.unwrap().path()).unwrap().count()).sum()
}

#[tokio::test(start_paused = true)]
async fn all_of_it_arrives_and_the_spool_is_empty_again() {
    let world = World::linked().await;
    fill(&world, 10, 60);
    let process = world.start().await;
    process.opened(1).await;
    world.account.phone().send_all_history(3, Via::Blob);
    world.until("600 messages", async || (world.messages().len() == 600).then_some(())).await;
    until_unspooled(&process, 3).await;
    let message = world.message("15551000003@s.whatsapp.net", "m3-7").await.unwrap();
    assert_eq!(message.str("syncSource"), Some("history_sync"));
    assert_eq!(message.int("key.timestamp"), Some(START as i64 + 7));
    let thread = world.thread("15551000003@s.whatsapp.net").await.unwrap();
    assert_eq!(thread.str("displayName"), Some("Name 3"));
    assert_eq!(thread.int("lastMessageAtMs"), Some((START as i64 + 59) * 1_000));
    // Of every conversation the core learned how far it reaches.
    let spans: Vec<_> = process
        .seen
        .ingested()
        .into_iter()
        .filter(|ingested| matches!(ingested.source, Source::Chunk { .. }))
        .flat_map(|ingested| ingested.threads)
        .collect();
    assert_eq!(spans.len(), 10);
    assert!(spans.iter().all(|span| span.messages == 60 && span.end == PageEnd::Unstated));
    process.stop().await;
    assert_eq!(spooled(&world), 0);
    let account = world.document(world.id.path().as_str()).await.unwrap();
    assert_eq!(account.int("historySyncCount"), Some(3));
    assert!(account.time("lastHistorySyncAt").is_some());
    let (saved, skipped, errors, total, dry_run) = result(&world).await;
    assert_eq!((saved, skipped, errors, dry_run), (total, 0, 0, false));

    // Once more, with a message that cannot be stored.
    let process = world.start().await;
    process.opened(1).await;
    let mut sync = world.account.phone().history_of(
        HistorySyncType::RECENT,
        &[world.account.contact("15551000003", "2000003").pn().clone()],
    );
    let row = &mut sync.conversations[0].messages[0];
    let mut message = row.message.take().unwrap();
    message.key.get_or_insert_default().id = Some("a/b".into());
    row.message = MessageField::some(message);
    world.account.phone().send_history(&sync, Via::Inline);
    until_unspooled(&process, 1).await;
    process.stop().await;
    assert_eq!(result(&world).await, (0, 59, 1, 60, false));
    let account = world.document(world.id.path().as_str()).await.unwrap();
    assert_eq!(account.int("historySyncCount"), Some(4));
}

#[tokio::test(start_paused = true)]
async fn history_right_after_linking_is_not_missed() {
    let world = World::new().await;
    fill(&world, 3, 20);
    let process = world.start().await;
    world.until_status("qr_ready").await;
    world.account.scan(&world.code_on_show().await).unwrap();
    world
        .account
        .wait("the device", |seen| {
            matches!(seen, whatsapp_double::Seen::Paired { .. }).then_some(())
        })
        .await;
    world.account.phone().send_all_history(1, Via::Blob);
    world.until("60 messages", async || (world.messages().len() == 60).then_some(())).await;
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_parse_that_fails_goes_on_where_it_was() {
    let world = World::linked().await;
    fill(&world, 6, 10);
    let process = world.start().await;
    process.opened(1).await;
    world.account.phone().send_all_history(1, Via::Inline);
    world.until("some", async || (world.messages().len() >= 20).then_some(())).await;
    world.store.broken.store(true, Ordering::Release);
    let before = world.messages().len();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(world.messages().len() <= before + 20);
    world.store.broken.store(false, Ordering::Release);
    world.until("all", async || (world.messages().len() == 60).then_some(())).await;
    until_unspooled(&process, 1).await;
    process.stop().await;
    assert_eq!(spooled(&world), 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_spooled_is_read_by_the_next_process() {
    let world = World::linked().await;
    fill(&world, 4, 10);
    world.store.broken.store(true, Ordering::Release);
    let process = world.start().await;
    process.opened(1).await;
    world.account.phone().send_all_history(2, Via::Inline);
    let spooled_calls = || {
        let calls = process.seen.calls();
        calls.iter().filter(|c| matches!(c.call, GatewayCall::Parse { .. })).count()
    };
    world.until("a parse", async || (spooled_calls() >= 1).then_some(())).await;
    process.stop().await;
    assert!(spooled(&world) > 0);
    world.store.broken.store(false, Ordering::Release);

    let process = world.start().await;
    world.until("all", async || (world.messages().len() == 40).then_some(())).await;
    process
        .seen
        .until("what lay in the spool", |seen| {
            seen.iter().find(|e| matches!(e, GatewayEvent::Chunk { spooled: true, .. })).map(|_| ())
        })
        .await;
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_spool_out_of_reach_is_looked_into_again() {
    let world = World::linked().await;
    fill(&world, 4, 10);
    world.store.broken.store(true, Ordering::Release);
    let process = world.start().await;
    process.opened(1).await;
    world.account.phone().send_all_history(1, Via::Inline);
    let parsed =
        || process.seen.calls().iter().any(|c| matches!(c.call, GatewayCall::Parse { .. }));
    world.until("a parse", async || parsed().then_some(())).await;
    process.stop().await;
    world.store.broken.store(false, Ordering::Release);

    let (spool, aside) =
        (world.directory.path().join("spool"), world.directory.path().join("aside"));
    std::fs::rename(&spool, &aside).unwrap();
    std::fs::write(&spool, "no directory").unwrap();
    let process = world.start().await;
    process.opened(1).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(world.messages().len() < 40);
    std::fs::remove_file(&spool).unwrap();
    std::fs::rename(&aside, &spool).unwrap();
    world.until("all", async || (world.messages().len() == 40).then_some(())).await;
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn names_and_empty_chats_come_with_history() {
    let world = World::linked().await;
    fill(&world, 1, 5);
    let chat = world.account.contact("15551000000", "2000000").pn().clone();
    let mut sync = world.account.phone().history_of(HistorySyncType::INITIAL_BOOTSTRAP, &[chat]);
    sync.pushnames.push(waproto::whatsapp::Pushname {
        id: Some("15551000009@s.whatsapp.net".into()),
        pushname: Some("Nine".into()),
    });
    sync.conversations.push(waproto::whatsapp::Conversation {
        id: "120363000000000007@g.us".into(),
        name: Some("Quiet group".into()),
        conversation_timestamp: Some(START),
        archived: Some(true),
        ..Default::default()
    });
    let process = world.start().await;
    process.opened(1).await;
    world.account.phone().send_history(&sync, Via::Inline);
    until_unspooled(&process, 1).await;
    let path = format!("contacts/{}__15551000009@s.whatsapp.net", world.id.as_str());
    let contact = world.document(&path).await.unwrap();
    assert_eq!(contact.str("notify"), Some("Nine"));
    let thread = world.thread("120363000000000007@g.us").await.unwrap();
    assert_eq!(thread.str("displayName"), Some("Quiet group"));
    assert_eq!(thread.int("lastMessageAtMs"), Some(START as i64 * 1_000));
    assert_eq!(thread.bool("archived"), Some(true));
    assert_eq!(world.messages().len(), 5);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_cannot_be_fetched_is_reported() {
    let world = World::linked().await;
    fill(&world, 2, 10);
    let process = world.start().await;
    process.opened(1).await;
    world.double.media().fail_next(&[404; 8]);
    world.account.phone().send_all_history(1, Via::Blob);
    // The client says nothing of it, so it takes a while; virtual here.
    tokio::time::sleep(Duration::from_secs(240)).await;
    process.seen.until("the report", reported).await;
    // Once the core has noted it for good, nothing is left of it.
    world.until("an empty spool", async || (spooled(&world) == 0).then_some(())).await;
    let reports = process.seen.events();
    assert_eq!(reports.iter().filter(|event| is_missing(event)).count(), 1);
    process.stop().await;
    // Whoever asks the phone next knows that anything before may be missing; another gap is there
    // because the account was linked by somebody who left no record of it.
    let sync = world.document(world.id.sync_path().as_str()).await.unwrap();
    let gaps = sync.value("gaps").unwrap().as_array().unwrap();
    let first = |gap: &Value| gap.as_map().unwrap()["from"].as_int().unwrap();
    assert_eq!(gaps.iter().filter(|gap| first(gap) == 1).count(), 1, "{gaps:?}");
    let incidents = world.store.documents("incidents/");
    let types: Vec<_> = incidents.iter().map(|doc| doc.str("type").unwrap()).collect();
    assert_eq!(types, ["history_chunk_missing"]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_what_is_being_fetched() {
    let world = World::linked().await;
    fill(&world, 4, 10);
    let process = world.start().await;
    process.opened(1).await;
    world.double.media().set_delay(Duration::from_millis(800));
    world.account.phone().send_all_history(2, Via::Blob);
    // The server has been told by then that it arrived.
    world.account.wait_drained().await;
    process.stop().await;
    assert!(world.messages().len() < 40);
    let process = world.start().await;
    world.until("all", async || (world.messages().len() == 40).then_some(())).await;
    until_unspooled(&process, 2).await;
    assert!(!process.seen.events().iter().any(is_missing));
    process.stop().await;
    assert_eq!(spooled(&world), 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_chunk_held_is_asked_for() {
    let world = World::linked().await;
    fill(&world, 2, 60);
    let mut settings = world.settings();
    settings.auto_backfill.enabled = true;
    let process = world.start_with(world.store.clone(), world.options(), settings).await;
    process.opened(1).await;
    world.double.media().fail_next(&[404; 8]);
    world.account.phone().send_all_history(1, Via::Blob);
    process.seen.until("the report", reported).await;
    // The first run has found nothing to do, and would not come again for six hours.
    assert_eq!(world.messages().len(), 0);
    for n in 0..2 {
        world.account.contact(&format!("1555100{n:04}"), &format!("200{n:04}")).text("live");
    }
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!(world.messages().len(), 122);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_a_process_lost_is_reported_by_the_next() {
    let world = World::linked().await;
    fill(&world, 2, 10);
    let process = world.start().await;
    process.opened(1).await;
    world.double.media().fail_next(&[404; 8]);
    world.account.phone().send_all_history(1, Via::Blob);
    world.account.wait_drained().await;
    process.stop().await;
    world.double.media().heal();
    let process = world.start().await;
    process.seen.until("the report", reported).await;
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_stores_nothing() {
    let world = World::linked().await;
    fill(&world, 3, 10);
    let mut options = world.options();
    options.dry_run = true;
    let process = world.start_with(world.store.clone(), options, world.settings()).await;
    process.opened(1).await;
    world.account.phone().send_all_history(1, Via::Inline);
    until_unspooled(&process, 1).await;
    let id = world.account.contact("15550000002", "102").text("live");
    world.until_message("15550000002@s.whatsapp.net", &id).await;
    assert_eq!(world.messages().len(), 1);
    process.stop().await;
    assert_eq!(result(&world).await, (0, 30, 0, 30, true));
}

#[tokio::test(start_paused = true)]
async fn both_names_of_a_person_are_known_before_messages_use_either() {
    let world = World::linked().await;
    fill(&world, 2, 5);
    let mut sync = world.account.phone().history_of(
        HistorySyncType::RECENT,
        &[world.account.contact("15551000000", "2000000").pn().clone()],
    );
    // The phone files the chat under the LID and says only at the end whose it is.
    let chat = &mut sync.conversations[0];
    chat.id = "2000000@lid".into();
    chat.pn_jid = None;
    chat.lid_jid = None;
    for row in &mut chat.messages {
        let mut message = row.message.take().unwrap();
        message.key.get_or_insert_default().remote_jid = Some("2000000@lid".into());
        row.message = MessageField::some(message);
    }
    let process = world.start().await;
    process.opened(1).await;
    world.account.phone().send_history(&sync, Via::Inline);
    world.until_message("15551000000@s.whatsapp.net", "m0-4").await;
    until_unspooled(&process, 1).await;
    assert_eq!(world.messages().len(), 5);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_chunk_gives_what_it_has_and_is_reported() {
    let world = World::linked().await;
    fill(&world, 3, 10);
    let process = world.start().await;
    process.opened(1).await;
    let spool = world.directory.path().join("spool");
    world.store.broken.store(true, Ordering::Release);
    world.account.phone().send_all_history(1, Via::Inline);
    let parses = || {
        let calls = process.seen.calls();
        calls.iter().filter(|c| matches!(c.call, GatewayCall::Parse { .. })).count()
    };
    world.until("another parse", async || (parses() >= 2).then_some(())).await;
    let account = std::fs::read_dir(&spool).unwrap().next().unwrap().unwrap().path();
    for file in std::fs::read_dir(account).unwrap() {
        std::fs::write(file.unwrap().path(), b"WBH1 and nonsense").unwrap();
    }
    // The one under way may have read it before.
    let before = parses();
    world.until("a parse of it", async || (parses() > before).then_some(())).await;
    world.store.broken.store(false, Ordering::Release);
    process.seen.until("the report", reported).await;
    until_unspooled(&process, 1).await;
    process.stop().await;
    assert_eq!(spooled(&world), 0);
}

#[tokio::test(start_paused = true)]
async fn a_spool_in_the_common_store_is_encrypted_and_kept_in_pieces() {
    let world = World::linked().await;
    let contact = world.account.contact("15551000000", "2000000");
    let mut random = StdRng::seed_from_u64(7);
    for n in 0..1_500 {
        // What cannot be compressed, so that one piece is not enough.
        let body: String =
            (0..2_000).map(|_| char::from(random.random_range(b'0'..=b'z'))).collect();
        let stored = Stored {
            id: format!("m{n}"),
            participant: None,
            from_me: false,
            timestamp: START + n,
            push_name: None,
            message: text(&format!("secret {body}")),
        };
        world.account.phone().keep(contact.pn(), stored);
    }
    world.store.broken.store(true, Ordering::Release);
    let options = || {
        let mut options = world.options();
        options.spool = Spool::shared(keys());
        options
    };
    let process = world.start_with(world.store.clone(), options(), world.settings()).await;
    process.opened(1).await;
    world.account.phone().send_all_history(1, Via::Blob);
    let parses = || {
        let calls = process.seen.calls();
        calls.iter().filter(|c| matches!(c.call, GatewayCall::Parse { .. })).count()
    };
    world.until("a parse", async || (parses() >= 1).then_some(())).await;
    process.stop().await;
    let prefix = format!("accounts/{}/spool/", world.id.as_str());
    let spooled = world.store.documents(&prefix);
    assert!(spooled.len() >= 3, "{}", spooled.len());
    for doc in &spooled {
        if let Some(data) = doc.value("data") {
            let backfill_core::doc::Value::Bytes(data) = data else { panic!("no bytes") };
            assert!(data.len() < 900_000);
            assert!(!data.windows(6).any(|bytes| bytes == b"secret"));
        }
    }
    assert!(!world.directory.path().join("spool").exists());

    // Another host, with the same key.
    world.store.broken.store(false, Ordering::Release);
    let process = world.start_with(world.store.clone(), options(), world.settings()).await;
    world.until("all", async || (world.messages().len() == 1_500).then_some(())).await;
    let left = || {
        let docs = world.store.documents(&prefix);
        docs.iter().filter(|doc| !doc.path.as_str().ends_with("/announced")).count()
    };
    world.until("an empty spool", async || (left() == 0).then_some(())).await;
    process.stop().await;
}
