//! Messages as they come, and what happens to them.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backfill_core::io::{GatewayCall, GatewayEvent};
use wacore_binary::builder::NodeBuilder;
use waproto::buffa::MessageField;
use waproto::whatsapp as wa;
use waproto::whatsapp::message::protocol_message::Type;
use whatsapp_double::{Addressing, Fault, text};

use crate::harness::World;

const ANNA: &str = "15550000002@s.whatsapp.net";

fn key(id: &str, from_me: bool) -> MessageField<wa::MessageKey> {
    MessageField::some(wa::MessageKey {
        id: Some(id.into()),
        from_me: Some(from_me),
        ..Default::default()
    })
}

fn protocol(protocol: wa::message::ProtocolMessage) -> wa::Message {
    wa::Message { protocol_message: MessageField::some(protocol), ..Default::default() }
}

fn revoke(key: MessageField<wa::MessageKey>) -> wa::Message {
    protocol(wa::message::ProtocolMessage { key, r#type: Some(Type::REVOKE), ..Default::default() })
}

fn edit(id: &str, body: &str) -> wa::Message {
    protocol(wa::message::ProtocolMessage {
        key: key(id, true),
        r#type: Some(Type::MESSAGE_EDIT),
        edited_message: MessageField::some(text(body)),
        timestamp_ms: Some(wacore::time::now_millis()),
        ..Default::default()
    })
}

fn reaction(key: MessageField<wa::MessageKey>, emoji: &str) -> wa::Message {
    wa::Message {
        reaction_message: MessageField::some(wa::message::ReactionMessage {
            key,
            text: Some(emoji.into()),
            sender_timestamp_ms: Some(wacore::time::now_millis()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_stored_is_not_confirmed_and_comes_again() {
    let world = World::linked().await;
    let anna = world.account.contact("15550000002", "102");
    let ben = world.account.contact("15550000003", "103");
    let process = world.start().await;
    process.opened(1).await;
    let before = anna.text("before");
    world.until_message(ANNA, &before).await;
    world.account.wait_drained().await;

    world.store.broken.store(true, Ordering::Release);
    let ids = [anna.text("one"), ben.text("two"), anna.text("three")];
    process
        .seen
        .until("a failed commit", |seen| {
            seen.iter().find(|e| matches!(e, GatewayEvent::IngestFailed { .. })).map(|_| ())
        })
        .await;
    assert_eq!(world.messages().len(), 1);
    let owed = world.account.unconfirmed();
    assert!(ids.iter().all(|id| owed.contains(id)), "{owed:?}");

    world.store.broken.store(false, Ordering::Release);
    process.opened(2).await;
    world.account.wait_drained().await;
    assert_eq!(world.messages().len(), 4);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_offline_queue_is_counted() {
    let world = World::linked().await;
    let anna = world.account.contact("15550000002", "102");
    let ben = world.account.contact("15550000003", "103");
    for round in 0..250 {
        anna.text(&format!("{round}"));
        ben.text(&format!("{round}"));
    }
    let process = world.start().await;
    let drained = process
        .seen
        .until("a drain", |seen| {
            seen.iter().find_map(|event| match event {
                GatewayEvent::Drained { announced, stored, .. } => Some((*announced, *stored)),
                _ => None,
            })
        })
        .await;
    assert_eq!(drained, (500, 500));
    assert_eq!(world.messages().len(), 500);
    world.account.wait_drained().await;
    process.stop().await;

    // What is confirmed already, but was delivered again, is not missing.
    let id = anna.text("once more");
    let process = world.start().await;
    world.double.inject(Fault::drop_from_client("receipt").always());
    world.until_message(ANNA, &id).await;
    process.stop().await;
    world.double.heal();
    assert!(!world.account.unconfirmed().is_empty());
    let process = world.start().await;
    world.account.wait_drained().await;
    let drained = process.seen.until("a drain", |seen| {
        seen.iter().find_map(|event| match event {
            GatewayEvent::Drained { announced, stored, .. } => Some((*announced, *stored)),
            _ => None,
        })
    });
    assert_eq!(drained.await, (1, 1));
    process.stop().await;
    assert_eq!(world.messages().len(), 501);
}

#[tokio::test(start_paused = true)]
async fn a_drain_whose_commit_fails_says_so() {
    let world = World::linked().await;
    let anna = world.account.contact("15550000002", "102");
    for round in 0..5 {
        anna.text(&format!("{round}"));
    }
    world.store.broken.store(true, Ordering::Release);
    let process = world.start().await;
    let drained = process
        .seen
        .until("a drain", |seen| {
            seen.iter().find_map(|event| match event {
                GatewayEvent::Drained { announced, stored, .. } => Some((*announced, *stored)),
                _ => None,
            })
        })
        .await;
    assert_eq!(drained, (5, 0));
    world.store.broken.store(false, Ordering::Release);
    world.account.wait_drained().await;
    assert_eq!(world.messages().len(), 5);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn messages_can_be_edited_deleted_and_reacted_to_by_both_sides() {
    let world = World::linked().await;
    let anna = world.account.contact("15550000002", "102");
    let phone = world.account.phone();
    let process = world.start().await;
    process.opened(1).await;

    let hers = anna.text("helo");
    let gone = anna.text("oops");
    let mine = phone.text(anna.pn(), "mine");
    anna.send(edit(&hers, "hello"));
    anna.send(revoke(key(&gone, true)));
    anna.send(reaction(key(&mine, false), "👍"));
    anna.send(reaction(key(&hers, true), "😀"));
    // Nobody edits or deletes what another wrote.
    anna.send(edit(&mine, "forged"));
    anna.send(revoke(key(&mine, false)));
    let last = anna.text("last");
    world.until_message(ANNA, &last).await;
    world.account.wait_drained().await;

    let message = async |id: &str| world.message(ANNA, id).await.unwrap();
    let hers = message(&hers).await;
    assert_eq!(hers.str("body"), Some("hello"));
    assert_eq!(hers.value("reactions").unwrap().as_map().unwrap().len(), 1);
    let gone = message(&gone).await;
    assert_eq!((gone.bool("revoked"), gone.str("body")), (Some(true), Some("")));
    let mine = message(&mine).await;
    assert_eq!((mine.str("body"), mine.str("direction")), (Some("mine"), Some("outbound")));
    assert_eq!(mine.bool("revoked"), None);
    assert_eq!(mine.value("reactions").unwrap().as_map().unwrap().len(), 1);
    assert_eq!(world.messages().len(), 4);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_picture_keeps_all_it_takes_to_fetch_it_later() {
    let world = World::linked().await;
    let anna = world.account.contact("15550000002", "102");
    let process = world.start().await;
    process.opened(1).await;
    let image = wa::message::ImageMessage {
        url: Some("https://mmg.whatsapp.net/x.enc".into()),
        mimetype: Some("image/jpeg".into()),
        caption: Some("look".into()),
        direct_path: Some("/x.enc".into()),
        media_key: Some(vec![1; 32]),
        file_sha256: Some(vec![2; 32]),
        file_enc_sha256: Some(vec![3; 32]),
        file_length: Some(9),
        ..Default::default()
    };
    let id =
        anna.send(wa::Message { image_message: MessageField::some(image), ..Default::default() });
    let message = world.until_message(ANNA, &id).await;
    assert_eq!((message.str("messageType"), message.str("body")), (Some("image"), Some("look")));
    let text = ["type", "mimetype", "caption", "url", "directPath"];
    let text = text.map(|name| message.str(&format!("media.{name}")).unwrap().to_owned());
    let told = ["image", "image/jpeg", "look", "https://mmg.whatsapp.net/x.enc", "/x.enc"];
    assert_eq!(text, told);
    for name in ["mediaKey", "fileSha256", "fileEncSha256", "fileLength"] {
        assert!(message.value(&format!("media.{name}")).is_some(), "{name}");
    }
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_account_is_stamped_once_a_second_at_most() {
    let world = World::linked().await;
    let anna = world.account.contact("15550000002", "102");
    let process = world.start().await;
    process.opened(1).await;
    let account = async || world.document(world.id.path().as_str()).await.unwrap();
    let mut stamps = BTreeSet::new();
    for round in 0..200 {
        anna.text(&format!("{round}"));
        tokio::time::sleep(Duration::from_millis(50)).await;
        stamps.extend(account().await.time("lastRealtimeIngestAt"));
    }
    world.account.wait_drained().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!((9..=11).contains(&stamps.len()), "{} in ten seconds", stamps.len());
    let newest = world.messages().into_values().filter_map(|m| m.int("key.timestamp")).max();
    let stamped = account().await.time("lastRealtimeMessageAt").unwrap();
    assert_eq!(Some(stamped.as_secs()), newest);

    world.store.broken.store(true, Ordering::Release);
    let late = anna.text("later");
    world.until("an error", async || account().await.str("lastRealtimeError").map(drop)).await;
    // The server has to deliver it again, and is not pestered.
    tokio::time::sleep(Duration::from_secs(600)).await;
    let calls = process.seen.calls();
    let connects = calls.iter().filter(|request| request.call == GatewayCall::Connect).count();
    assert!((5..=20).contains(&connects), "{connects}");
    assert!(world.account.unconfirmed().contains(&late));
    world.store.broken.store(false, Ordering::Release);
    world.until_message(ANNA, &late).await;
    world
        .until("no error", async || {
            account().await.str("lastRealtimeError").is_none().then_some(())
        })
        .await;
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn groups_know_who_wrote_what_under_either_id() {
    let world = World::linked().await;
    let anna = world.account.contact("15550000002", "102");
    let ben = world.account.contact("15550000003", "103");
    let group = world.account.group("120363000000000001", "Team", &[&anna, &ben]);
    let process = world.start().await;
    process.opened(1).await;
    let one = anna.text_to(&group, "one");
    let two = ben.text_to(&group, "two");
    let own = group.own_text("mine");
    let chat = group.jid().to_string();
    for (id, sender) in
        [(&one, Some(ANNA)), (&two, Some("15550000003@s.whatsapp.net")), (&own, None)]
    {
        let message = world.until_message(&chat, id).await;
        assert_eq!(message.str("senderJid"), sender, "by number, although it came by LID");
    }
    world.account.wait_drained().await;
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn in_a_group_only_admins_delete_what_others_wrote() {
    let world = World::linked().await;
    let anna = world.account.contact("15550000002", "102");
    let ben = world.account.contact("15550000003", "103");
    let group = world.account.group("120363000000000001", "Team", &[&anna, &ben]);
    let process = world.start().await;
    process.opened(1).await;
    let chat = group.jid().to_string();
    let hers = |id: &str| {
        MessageField::some(wa::MessageKey {
            id: Some(id.into()),
            from_me: Some(false),
            participant: Some(anna.lid().to_string()),
            ..Default::default()
        })
    };
    let kept = anna.text_to(&group, "kept");
    world.until_message(&chat, &kept).await;
    ben.send_to(&group, revoke(hers(&kept)));
    let own = ben.text_to(&group, "my own");
    ben.send_to(&group, revoke(key(&own, true)));
    world.account.wait_drained().await;
    let revoked = async |id: &str| world.message(&chat, id).await.unwrap().bool("revoked");
    assert_eq!(revoked(&kept).await, None);
    assert_eq!(revoked(&own).await, Some(true));

    group.promote(&ben);
    ben.send_to(&group, revoke(hers(&kept)));
    world.account.wait_drained().await;
    assert_eq!(revoked(&kept).await, Some(true));
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn both_names_of_a_person_lead_to_one_chat_also_after_a_restart() {
    let world = World::linked().await;
    let anna = world.account.contact("15550000002", "102");
    let process = world.start().await;
    process.opened(1).await;
    let by_number = anna.text("as number");
    world.until_message(ANNA, &by_number).await;
    anna.set_addressing(Addressing::Lid);
    let by_lid = anna.text("as lid");
    world.until_message(ANNA, &by_lid).await;
    let from_phone = world.account.phone().text(anna.lid(), "to the lid");
    world.until_message(ANNA, &from_phone).await;
    world.account.wait_drained().await;
    process.stop().await;

    let process = world.start().await;
    process.opened(1).await;
    let again = world.account.phone().text(anna.lid(), "to the lid again");
    world.until_message(ANNA, &again).await;
    assert_eq!(world.messages().len(), 4);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn receipts_raise_the_status_of_our_messages() {
    let world = World::linked().await;
    let anna = world.account.contact("15550000002", "102");
    let process = world.start().await;
    process.opened(1).await;
    let id = world.account.phone().text(anna.pn(), "read me");
    let status = |wanted: &'static str| {
        let (world, id) = (&world, &id);
        world.until(wanted, async move || {
            let message = world.message(ANNA, id).await?;
            (message.str("status") == Some(wanted)).then_some(())
        })
    };
    status("sent").await;
    anna.deliver(&id);
    status("delivered").await;
    anna.read(&id);
    status("read").await;
    anna.deliver(&id);
    let marker = anna.text("after");
    world.until_message(ANNA, &marker).await;
    status("read").await;
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_message_leaves_a_place_for_its_repetition() {
    let world = World::linked().await;
    let anna = world.account.contact("15550000002", "102");
    let process = world.start().await;
    process.opened(1).await;
    world.double.inject(Fault::corrupt_message());
    let id = anna.text("second");
    world
        .until("the repetition", async || {
            let message = world.message(ANNA, &id).await?;
            (message.str("body") == Some("second")).then_some(())
        })
        .await;
    let gap = |seen: &[GatewayEvent]| {
        seen.iter().find(|event| matches!(event, GatewayEvent::Undecryptable { .. })).cloned()
    };
    process.seen.until("the gap", gap).await;
    let message = world.message(ANNA, &id).await.unwrap();
    assert_eq!((message.str("placeholder"), message.bool("atMostOnce")), (None, None));
    assert_eq!(world.messages().len(), 1);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_only_the_phone_can_repeat_is_stored_from_the_event() {
    let world = World::linked().await;
    let anna = world.account.contact("15550000002", "102");
    anna.answer_retries(false);
    let process = world.start().await;
    process.opened(1).await;
    world.double.inject(Fault::corrupt_message());
    let id = anna.text("only on the phone");
    world
        .until("the phone's copy", async || {
            let message = world.message(ANNA, &id).await?;
            (message.str("body") == Some("only on the phone")).then_some(())
        })
        .await;
    let message = world.message(ANNA, &id).await.unwrap();
    assert_eq!(message.bool("atMostOnce"), Some(true));
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_channels_messages_are_stored_from_the_event() {
    let world = World::linked().await;
    let process = world.start().await;
    process.opened(1).await;
    let plain = waproto::codec::message_to_vec(&text("news"));
    let stanza = NodeBuilder::new("message")
        .attr("from", "120363000000000009@newsletter")
        .attr("id", "NEWS1")
        .attr("server_id", "7")
        .attr("t", wacore::time::now_secs())
        .attr("type", "text")
        .children([NodeBuilder::new("plaintext").bytes(plain).build()])
        .build();
    world.account.push(&stanza);
    let message = world.until_message("120363000000000009@newsletter", "NEWS1").await;
    assert_eq!(message.str("body"), Some("news"));
    assert_eq!(message.str("syncSource"), Some("realtime"));
    assert_eq!(message.bool("atMostOnce"), Some(true));
    let anna = world.account.contact("15550000002", "102");
    let id = anna.text("through the hook");
    assert_eq!(world.until_message(ANNA, &id).await.bool("atMostOnce"), None);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn names_come_from_messages_and_the_address_book() {
    let world = World::linked().await;
    let anna = world.account.contact("15550000002", "102");
    let process = world.start().await;
    process.opened(1).await;
    let id = anna.text("hello");
    world.until_message(ANNA, &id).await;
    let path = format!("contacts/{}__{ANNA}", world.id.as_str());
    let contact = world.until("a contact", || world.document(&path)).await;
    assert_eq!(contact.str("notify"), Some("Contact 15550000002"));
    world.account.phone().add_to_address_book(&anna, "Anna Pop");
    world
        .until("the name", async || {
            let contact = world.document(&path).await?;
            (contact.str("name") == Some("Anna Pop")).then_some(())
        })
        .await;
    process.stop().await;
}

/// The hook must not let one chat wait for another.
#[tokio::test(start_paused = true)]
async fn many_chats_at_once() {
    let world = World::linked().await;
    let process = world.start().await;
    process.opened(1).await;
    let contacts: Vec<_> = (0..40)
        .map(|n| world.account.contact(&format!("1555100{n:04}"), &format!("200{n:04}")))
        .collect();
    for round in 0..10 {
        for contact in &contacts {
            contact.text(&format!("{round}"));
        }
    }
    world.account.wait_drained().await;
    assert_eq!(world.messages().len(), 400);
    process.stop().await;
}
