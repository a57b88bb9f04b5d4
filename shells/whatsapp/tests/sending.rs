//! What our users write, on its way out.

use std::time::Duration;

use backfill_core::alias::outbound_wa_id;
use backfill_core::id::OutboxId;
use whatsapp_double::{Fault, Seen};

use crate::harness::{World, write_outbox};

const ANNA: &str = "15550000002@s.whatsapp.net";

/// What reached the recipient, by id.
fn received(world: &World) -> Vec<(String, String)> {
    let log = world.account.log();
    let messages = log.iter().filter_map(|seen| match seen {
        Seen::Message(sent) if sent.recipient.user == "15550000002" => {
            Some((sent.id.clone(), sent.message.conversation.clone().unwrap_or_default()))
        }
        _ => None,
    });
    messages.collect()
}

#[tokio::test(start_paused = true)]
async fn a_message_of_the_app_leaves_under_its_own_id_and_keeps_its_document() {
    let world = World::linked().await;
    let anna = world.account.contact("15550000002", "102");
    let process = world.start().await;
    process.opened(1).await;
    let begun = tokio::time::Instant::now();
    let outbox = write_outbox(&world, ANNA, "c1", "from the app").await;
    world.until_sent(&outbox).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());

    let wa_id = outbound_wa_id(&OutboxId::parse(outbox.as_str()).unwrap());
    assert_eq!(received(&world), [(wa_id.to_string(), "from the app".to_owned())]);
    anna.deliver(&wa_id);
    anna.read(&wa_id);
    let read = async || {
        let message = world.message(ANNA, &outbox).await?;
        (message.str("status") == Some("read")).then_some(message)
    };
    let message = world.until("a read message", read).await;
    assert_eq!(message.str("waMessageId"), Some(wa_id.as_str()));
    assert_eq!(message.str("clientMessageId"), Some("c1"));
    assert_eq!(world.message(ANNA, &wa_id).await, None);
    assert_eq!(world.messages().len(), 1);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_server_does_not_confirm_is_sent_again_under_the_same_id() {
    let world = World::linked().await;
    world.account.contact("15550000002", "102");
    let process = world.start().await;
    process.opened(1).await;
    let lost = Fault::drop_to_client("ack")
        .when(|node| node.attrs.get("class").is_some_and(|class| class.as_str() == "message"));
    world.double.inject(lost);
    let outbox = write_outbox(&world, ANNA, "c1", "twice on the way").await;
    world.until_sent(&outbox).await;
    let received = received(&world);
    assert_eq!(received.len(), 2);
    assert_eq!(received[0], received[1]);
    assert_eq!(world.messages().len(), 1);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_written_while_away_leaves_with_the_next_connection() {
    let world = World::linked().await;
    world.account.contact("15550000002", "102");
    let outbox = write_outbox(&world, ANNA, "c1", "waited").await;
    let process = world.start().await;
    world.until_sent(&outbox).await;
    assert_eq!(received(&world).len(), 1);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_has_no_address_or_no_text_fails_for_good() {
    let world = World::linked().await;
    let process = world.start().await;
    process.opened(1).await;
    for (chat, unique, body) in [("nobody", "c1", "text"), (ANNA, "c2", "")] {
        let outbox = write_outbox(&world, chat, unique, body).await;
        let path = format!("outbox/{outbox}");
        world
            .until("a failure", async || {
                let doc = world.document(&path).await?;
                (doc.str("status") == Some("failed")).then_some(())
            })
            .await;
    }
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_to_a_group_reaches_its_members() {
    let world = World::linked().await;
    let anna = world.account.contact("15550000002", "102");
    let group = world.account.group("120363000000000001", "Team", &[&anna]);
    let process = world.start().await;
    process.opened(1).await;
    let chat = group.jid().to_string();
    let outbox = write_outbox(&world, &chat, "c1", "to all").await;
    world.until_sent(&outbox).await;
    let message = world.message(&chat, &outbox).await.unwrap();
    assert_eq!(message.str("status"), Some("sent"));
    assert!(received(&world).iter().any(|(_, body)| body == "to all"));
    process.stop().await;
}
