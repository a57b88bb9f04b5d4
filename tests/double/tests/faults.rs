use std::time::Duration;

use whatsapp_double::{EPOCH_MS, Fault};
use whatsapp_rust::transport::DisconnectReason;

use crate::harness::{Client, world};

#[tokio::test(start_paused = true)]
async fn a_lost_message_comes_with_the_next_delivery() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    double.inject(Fault::drop_to_client("message"));
    let lost = contact.text("lost");
    let next = contact.text("next");
    client.message(&next).await;
    account.wait_receipt(&next).await;
    assert_eq!(account.unconfirmed(), [lost.as_str()]);
    assert_eq!(client.texts_so_far(), ["next"]);
    account.redeliver();
    client.message(&lost).await;
    account.wait_drained().await;
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_delayed_message_is_overtaken() {
    let (double, account) = world();
    double.set_patience(Duration::from_secs(3_600));
    let contact = account.contact("15550000002", "102");
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    double.inject(Fault::delay_to_client("message", Duration::from_secs(600)));
    contact.text("first");
    contact.text("second");
    assert_eq!(client.texts(2).await, ["second", "first"]);
    account.wait_drained().await;
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_duplicated_message_is_delivered_once() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    double.inject(Fault::duplicate_to_client("message").always());
    for body in ["one", "two", "three"] {
        contact.text(body);
    }
    assert_eq!(client.texts(3).await, ["one", "two", "three"]);
    account.wait_drained().await;
    double.heal();
    contact.text("four");
    assert_eq!(client.texts(4).await, ["one", "two", "three", "four"]);
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_fault_can_be_aimed() {
    let (double, account) = world();
    let anna = account.contact("15550000002", "102");
    let ben = account.contact("15550000003", "103");
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    let target = anna.pn().to_string();
    double.inject(
        Fault::drop_to_client("message").always().when(move |stanza| {
            stanza.attrs.get("from").is_some_and(|from| from.as_str() == target)
        }),
    );
    let lost = anna.text("from anna");
    let kept = ben.text("from ben");
    client.message(&kept).await;
    account.wait_receipt(&kept).await;
    assert_eq!(account.unconfirmed(), [lost]);
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_may_break_at_any_stanza() {
    let (double, account) = world();
    double.set_patience(Duration::from_secs(600));
    let contact = account.contact("15550000002", "102");
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    let faults: [fn(&'static str) -> Fault; 2] = [Fault::cut_to_client, Fault::cut_from_client];
    for (round, (fault, tag)) in [
        (faults[0], "message"),
        (faults[1], "receipt"),
        (faults[0], "success"),
        (faults[0], "ib"),
        (faults[1], "iq"),
    ]
    .into_iter()
    .enumerate()
    {
        double.inject(fault(tag));
        contact.text(&format!("round {round}"));
        if round > 1 {
            account.cut(DisconnectReason::StreamEnded);
        }
        account.wait_drained().await;
        assert_eq!(client.texts(round + 1).await.len(), round + 1);
    }
    let expected: Vec<_> = (0..5).map(|round| format!("round {round}")).collect();
    assert_eq!(client.texts_so_far(), expected);
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn equal_ids_of_different_authors_are_different_messages() {
    let (double, account) = world();
    let anna = account.contact("15550000002", "102");
    let ben = account.contact("15550000003", "103");
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    double.inject(Fault::drop_from_client("receipt"));
    anna.send_as("same", EPOCH_MS as u64 / 1_000, whatsapp_double::text("from anna"));
    client.texts(1).await;
    ben.send_as("same", EPOCH_MS as u64 / 1_000, whatsapp_double::text("from ben"));
    account.wait_receipt("same").await;
    assert_eq!(client.texts(2).await, ["from anna", "from ben"]);
    assert_eq!(account.unconfirmed(), ["same"], "the receipt was for the other one");
    account.redeliver();
    account.wait_drained().await;
    client.stop().await;
}
