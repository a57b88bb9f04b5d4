//! History that the phone is asked for.

use std::time::Duration;

use backfill_core::coverage::PageEnd;
use backfill_core::io::{Command, GatewayCall, GatewayEvent, Reply, Source};
use backfill_core::policy::Settings;
use whatsapp_double::{Answer, HistoryRequest, Seen};

use crate::harness::{Process, World};

const ANNA: &str = "15550000002@s.whatsapp.net";
const START: u64 = 1_749_990_000;

/// A chat with old messages that never reached us, and a process that looks for them.
async fn searching(answer: Answer) -> (World, Process) {
    let world = World::linked().await;
    let anna = world.account.contact("15550000002", "102");
    world.account.phone().keep_texts(anna.pn(), "old", START, 60);
    world.account.phone().answer_with(answer);
    let process = world.start_with(world.store.clone(), world.options(), settings(&world)).await;
    process.opened(1).await;
    let live = anna.text("live");
    world.until_message(ANNA, &live).await;
    assert_eq!(process.command(Command::Backfill).await, Reply::Accepted);
    (world, process)
}

fn settings(world: &World) -> Settings {
    let mut settings = world.settings();
    settings.auto_backfill.enabled = true;
    settings.auto_backfill.interval = Duration::from_secs(86_400);
    settings
}

async fn asked(world: &World) -> HistoryRequest {
    world
        .account
        .wait("a request", |seen| match seen {
            Seen::HistoryAsked(request) => Some(request.clone()),
            _ => None,
        })
        .await
}

fn pages(process: &Process) -> Vec<(u32, PageEnd)> {
    let events = process.seen.events();
    let pages = events.iter().filter_map(|event| match event {
        GatewayEvent::Page { page, .. } => Some((page.messages, page.end)),
        _ => None,
    });
    pages.collect()
}

#[tokio::test(start_paused = true)]
async fn the_phone_is_asked_in_seconds_and_its_pages_are_stored() {
    let (world, process) = searching(Answer::Once).await;
    let request = asked(&world).await;
    let live = world.messages().into_values().next().unwrap();
    assert_eq!(request.anchor_timestamp, live.int("key.timestamp").unwrap());
    assert!(request.anchor_timestamp < 10_000_000_000, "seconds, whatever the field is called");
    assert_eq!(Some(request.anchor.as_str()), live.str("waMessageId"));
    world.until("all", async || (world.messages().len() == 61).then_some(())).await;
    let old = world.message(ANNA, "old0").await.unwrap();
    assert_eq!(old.str("syncSource"), Some("backfill"));
    process
        .seen
        .until("the end", |seen| {
            seen.iter()
                .any(|event| match event {
                    GatewayEvent::Page { page, .. } => page.end == PageEnd::EndOfHistory,
                    _ => false,
                })
                .then_some(())
        })
        .await;
    let all = pages(&process);
    assert_eq!(all.iter().map(|(messages, _)| messages).sum::<u32>(), 60);
    let more = all.iter().filter(|(_, end)| *end == PageEnd::MoreRemains).count();
    assert_eq!(more, all.len() - 1);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_complete_run_the_phone_has_six_hours_of_peace() {
    const SIX_HOURS: Duration = Duration::from_secs(6 * 3_600);
    let world = World::linked().await;
    let anna = world.account.contact("15550000002", "102");
    let mut settings = world.settings();
    settings.auto_backfill.enabled = true;
    let process = world.start_with(world.store.clone(), world.options(), settings).await;
    process.opened(1).await;
    anna.text("live");
    let success =
        async || world.document(world.id.path().as_str()).await?.time("lastAutoBackfillSuccessAt");
    let first = world.until("a run", success).await;
    tokio::time::sleep(SIX_HOURS - Duration::from_secs(60)).await;
    assert_eq!(success().await, Some(first));
    tokio::time::sleep(Duration::from_secs(20 * 60)).await;
    let second = success().await.unwrap();
    assert!(second.since(first) >= SIX_HOURS);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_twice_changes_nothing() {
    let (world, process) = searching(Answer::Twice).await;
    world.until("all", async || (world.messages().len() == 61).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let requests = process.seen.calls();
    let requests =
        requests.iter().filter(|c| matches!(c.call, GatewayCall::History { .. })).count();
    assert_eq!(pages(&process).len(), requests);
    let late = process.seen.ingested();
    let late = late.iter().filter(|ingested| ingested.source == Source::LatePage).count();
    assert_eq!(late, requests);
    assert_eq!(world.messages().len(), 61);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_stored_all_the_same() {
    let (world, process) = searching(Answer::After(Duration::from_secs(600))).await;
    asked(&world).await;
    let before = world.messages().len();
    assert_eq!(before, 1);
    world.account.phone().answer_with(Answer::Never);
    tokio::time::sleep(Duration::from_secs(700)).await;
    world.until("the page", async || (world.messages().len() > 1).then_some(())).await;
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_for_another_request_is_not_taken_for_ours() {
    let (world, process) = searching(Answer::ForRequest("SOMEBODY-ELSE".into())).await;
    world.until("the page", async || (world.messages().len() > 1).then_some(())).await;
    assert!(pages(&process).is_empty());
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_phone_that_is_silent_is_not_asked_again_and_again() {
    let (world, process) = searching(Answer::Never).await;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    let log = world.account.log();
    let asked = log.iter().filter(|seen| matches!(seen, Seen::HistoryAsked(_))).count();
    assert!((1..=2).contains(&asked), "{asked}");
    process.stop().await;
}
