use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use anyhow::{Result, bail};
use wacore::types::events::InboundMessage;
use whatsapp_double::{Fault, Seen};
use whatsapp_rust::transport::DisconnectReason;
use whatsapp_rust::{Client as WhatsApp, InboundDurabilityHook};

use crate::harness::{Client, Options, empty_backend, text_of, world};

#[tokio::test(start_paused = true)]
async fn messages_wait_for_a_device_that_is_away() {
    let (double, account) = world();
    let (anna, ben) =
        (account.contact("15550000002", "102"), account.contact("15550000003", "103"));
    let backend = empty_backend();
    account.seed(&backend).await.unwrap();
    let mut expected = Vec::new();
    for round in 0..4 {
        for contact in [&anna, &ben] {
            let body = format!("{round} from {}", contact.pn().user);
            contact.text(&body);
            expected.push(body);
        }
    }
    assert_eq!(account.unconfirmed().len(), 8);

    let client = Client::start(&double, backend).await;
    let mut received = client.texts(8).await;
    account.wait_drained().await;
    let of_anna: Vec<_> = received.iter().filter(|text| text.ends_with("2")).collect();
    assert!(of_anna.is_sorted(), "{of_anna:?}");
    received.sort();
    expected.sort();
    assert_eq!(received, expected);
    let most = account
        .log()
        .iter()
        .filter_map(|seen| match seen {
            Seen::Receipt(receipt) => Some(receipt.ids.len()),
            _ => None,
        })
        .max();
    assert!(most > Some(1), "no aggregated receipt");
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_long_backlog_comes_in_batches() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let backend = empty_backend();
    account.seed(&backend).await.unwrap();
    let expected: Vec<_> = (0..450).map(|index| format!("text {index}")).collect();
    for text in &expected {
        contact.text(text);
    }
    let client = Client::start(&double, backend).await;
    assert_eq!(client.texts(450).await, expected);
    account.wait_drained().await;
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_not_committed_comes_again() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let backend = empty_backend();
    account.seed(&backend).await.unwrap();
    let commits = Arc::new(Commits::default());
    commits.outcomes.lock().unwrap().extend([false, true]);
    let hook: Arc<dyn InboundDurabilityHook> = commits.clone();
    let options = Options { backend, transport: double.transport(), hook: Some(hook) };
    let client = Client::start_with(&double, options).await;
    client.connected().await;

    let id = contact.text("hold on");
    commits.asked(1).await;
    assert_eq!(account.unconfirmed(), [id.as_str()]);
    account.cut(DisconnectReason::StreamEnded);
    client.message(&id).await;
    account.wait_drained().await;
    assert_eq!(commits.committed(), ["hold on"]);
    assert_eq!(client.texts_so_far(), ["hold on"]);
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_receipt_brings_the_message_back() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    double.inject(Fault::drop_from_client("receipt"));
    let id = contact.text("once");
    client.message(&id).await;
    assert_eq!(account.unconfirmed(), [id]);
    account.cut(DisconnectReason::StreamEnded);
    account.wait_drained().await;
    assert_eq!(client.texts_so_far(), ["once"], "the client drops the repetition");
    client.stop().await;
}

/// In real time: the client lives on a runtime of its own, which is torn down under it.
#[tokio::test]
async fn a_client_that_dies_at_any_moment_loses_nothing() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let backend = empty_backend();
    account.seed(&backend).await.unwrap();
    let commits = Arc::new(Commits::default());
    let mut expected = Vec::new();
    for life in 0..9 {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let hook: Arc<dyn InboundDurabilityHook> = commits.clone();
        let backend = backend.clone();
        let options = Options { backend, transport: double.transport(), hook: Some(hook) };
        let started = double.clone();
        let client = runtime.spawn(async move { Client::start_with(&started, options).await });
        let client = client.await.unwrap();
        client.connected().await;
        let before = commits.times();
        for index in 0..5 {
            let text = format!("life {life} text {index}");
            contact.text(&text);
            expected.push(text);
        }
        commits.asked(before + life % 3).await;
        runtime.shutdown_background();
        drop(client);
        account.wait_gone().await;
    }
    let client = Client::start(&double, backend).await;
    account.wait_drained().await;
    let mut received = commits.committed();
    received.extend(client.texts_so_far());
    received.sort();
    received.dedup();
    assert_eq!(received, expected);
    client.stop().await;
}

/// A store that commits or refuses as told, and commits once it has run out of instructions
#[derive(Default)]
struct Commits {
    outcomes: Mutex<VecDeque<bool>>,
    committed: Mutex<Vec<String>>,
    asked: tokio::sync::watch::Sender<usize>,
}

impl Commits {
    async fn asked(&self, times: usize) {
        self.asked.subscribe().wait_for(|asked| *asked >= times).await.unwrap();
    }

    fn times(&self) -> usize {
        *self.asked.borrow()
    }

    fn committed(&self) -> Vec<String> {
        self.committed.lock().unwrap().clone()
    }
}

#[async_trait::async_trait]
impl InboundDurabilityHook for Commits {
    async fn on_messages(&self, _: Arc<WhatsApp>, batch: &[InboundMessage]) -> Result<()> {
        let commits = self.outcomes.lock().unwrap().pop_front().unwrap_or(true);
        if commits {
            self.committed.lock().unwrap().extend(batch.iter().filter_map(text_of));
        }
        self.asked.send_modify(|asked| *asked += 1);
        if !commits {
            bail!("the store is not there");
        }
        Ok(())
    }
}
