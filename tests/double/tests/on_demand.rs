use std::time::Duration;

use wacore::types::events::Event;
use wacore_binary::Jid;
use waproto::whatsapp as wa;
use waproto::whatsapp::conversation::EndOfHistoryTransferType as End;
use whatsapp_double::{Account, Answer, Contact, Double, PAGE_CAP, Seen, Stored, Via};

use crate::harness::{Client, world};

const START: u64 = 1_700_000_000;

async fn stage(messages: u64) -> (Double, Account, Contact, Client) {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    account.phone().keep_texts(contact.pn(), "m", START, messages);
    (double, account, contact, client)
}

async fn ask(client: &Client, chat: &Jid, anchor: u64, count: i32) -> String {
    let timestamp = (START + anchor) as i64;
    let id = format!("m{anchor}");
    client.api().fetch_message_history(chat, &id, false, timestamp, count).await.unwrap()
}

/// Waits for this many pages; each with the request it claims to answer.
async fn pages(client: &Client, count: usize) -> Vec<(String, wa::HistorySync)> {
    client
        .wait_for_all(&format!("{count} pages"), |events| {
            let pages: Vec<_> = events.iter().filter_map(|event| page(event)).collect();
            (pages.len() >= count).then_some(pages)
        })
        .await
}

fn page(event: &Event) -> Option<(String, wa::HistorySync)> {
    let Event::HistorySync(sync) = event else { return None };
    Some((sync.peer_data_request_session_id()?.to_owned(), sync.get()?.clone()))
}

fn ids(page: &wa::HistorySync) -> Vec<String> {
    let rows = &page.conversations[0].messages;
    rows.iter().map(|row| row.message.key.id.clone().unwrap()).collect()
}

fn end(page: &wa::HistorySync) -> Option<End> {
    page.conversations[0].end_of_history_transfer_type
}

#[tokio::test(start_paused = true)]
async fn pages_go_strictly_backwards_until_nothing_remains() {
    let (_, account, contact, client) = stage(120).await;
    let mut anchor = 119;
    let mut seen = Vec::new();
    for round in 1.. {
        let request = ask(&client, contact.pn(), anchor, 50).await;
        let (answered, page) = pages(&client, round).await.remove(round - 1);
        assert_eq!(answered, request);
        let ids = ids(&page);
        assert!(ids.len() <= PAGE_CAP);
        seen.extend(ids.iter().map(|id| id[1..].parse::<u64>().unwrap()));
        if end(&page) == Some(End::COMPLETE_AND_NO_MORE_MESSAGE_REMAIN_ON_PRIMARY) {
            break;
        }
        assert_eq!(end(&page), Some(End::COMPLETE_BUT_MORE_MESSAGES_REMAIN_ON_PRIMARY));
        anchor = *seen.last().unwrap();
    }
    assert_eq!(seen, (0..119).rev().collect::<Vec<_>>(), "every older message once, in order");
    let asked = account.wait_for_log("three requests", |log| {
        let asked: Vec<_> = log
            .iter()
            .filter_map(|seen| match seen {
                Seen::HistoryAsked(request) => Some(request.anchor.clone()),
                _ => None,
            })
            .collect();
        (asked.len() == 3).then_some(asked)
    });
    assert_eq!(asked.await, ["m119", "m69", "m19"]);
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_anchor_the_phone_does_not_know_is_ignored() {
    let (_, account, contact, client) = stage(20).await;
    let chat = contact.pn();
    let api = client.api();
    let start = START as i64;
    let invented = api.fetch_message_history(chat, "nope", false, start, 50).await.unwrap();
    let milliseconds = (start + 9) * 1_000;
    let wrong_unit = api.fetch_message_history(chat, "m9", false, milliseconds, 50).await.unwrap();
    let good = ask(&client, chat, 9, 50).await;
    let (answered, page) = pages(&client, 1).await.remove(0);
    assert_eq!(answered, good);
    assert_eq!(page.conversations[0].messages.len(), 9);
    for ignored in [invented, wrong_unit] {
        account
            .wait("the request", |seen| match seen {
                Seen::HistoryAsked(request) => (request.id == ignored).then_some(()),
                _ => None,
            })
            .await;
    }
    account.wait_drained().await;
    assert_eq!(pages(&client, 1).await.len(), 1);
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_lid_form_of_a_chat_finds_it_too() {
    let (_, _, contact, client) = stage(5).await;
    ask(&client, contact.lid(), 4, 50).await;
    let (_, page) = pages(&client, 1).await.remove(0);
    assert_eq!(ids(&page), ["m3", "m2", "m1", "m0"]);
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_phone_that_gives_no_more_says_so() {
    let (_, account, contact, client) = stage(100).await;
    account.phone().limit_reach(contact.pn(), 30);
    account.phone().answer_via(Via::Blob);
    ask(&client, contact.pn(), 99, 50).await;
    let (_, page) = pages(&client, 1).await.remove(0);
    assert_eq!(page.conversations[0].messages.len(), 29);
    assert_eq!(end(&page), Some(End::COMPLETE_ON_DEMAND_SYNC_BUT_MORE_MSG_REMAIN_ON_PRIMARY));
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_phone_may_answer_late_twice_wrongly_or_not_at_all() {
    let (double, account, contact, client) = stage(20).await;
    double.set_patience(Duration::from_secs(86_400));
    let (phone, chat) = (account.phone(), contact.pn());
    phone.answer_next_with(Answer::Never);
    let silent = ask(&client, chat, 19, 5).await;
    phone.answer_next_with(Answer::After(Duration::from_secs(3_600)));
    let late = ask(&client, chat, 18, 5).await;
    phone.answer_next_with(Answer::Twice);
    let twice = ask(&client, chat, 17, 5).await;
    phone.answer_next_with(Answer::ForRequest(silent.clone()));
    ask(&client, chat, 16, 5).await;

    let answered: Vec<_> = pages(&client, 4).await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(answered, [twice.clone(), twice, silent, late], "the late one comes last");
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_a_phone_that_is_offline() {
    let (_, account, contact, client) = stage(20).await;
    account.phone().set_online(false);
    let request = ask(&client, contact.pn(), 10, 5).await;
    account
        .wait("the request", |seen| match seen {
            Seen::HistoryAsked(asked) => (asked.id == request).then_some(()),
            _ => None,
        })
        .await;
    account.wait_drained().await;
    assert!(!client.events().iter().any(|event| page(event).is_some()));
    account.phone().set_online(true);
    let (answered, page) = pages(&client, 1).await.remove(0);
    assert_eq!(answered, request);
    assert_eq!(ids(&page), ["m9", "m8", "m7", "m6", "m5"]);
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hole_left_by_the_server_is_on_the_phone() {
    let (_, account, contact, client) = stage(0).await;
    let first = contact.text("seen live");
    client.message(&first).await;
    let newest = account.phone().chat(contact.pn()).messages[0].timestamp;
    let missed = Stored {
        id: "missed".into(),
        participant: None,
        from_me: false,
        timestamp: newest + 1,
        push_name: None,
        message: whatsapp_double::text("never delivered"),
    };
    account.phone().keep(contact.pn(), missed);
    contact.send_as("after", newest + 2, whatsapp_double::text("seen again"));
    client.message("after").await;
    let timestamp = i64::try_from(newest + 2).unwrap();
    client.api().fetch_message_history(contact.pn(), "after", false, timestamp, 50).await.unwrap();
    let (_, page) = pages(&client, 1).await.remove(0);
    assert_eq!(ids(&page), ["missed".to_owned(), first]);
    client.stop().await;
}
