use std::sync::Arc;

use backfill_core::doc::{CollectionPath, DocPath, FieldOp, Precondition, Query, Write};
use backfill_core::incoming::{MessageEvent, Record};
use backfill_core::ingest::{Batch, Facts, Rejection};
use backfill_core::time::StoreTime;
use backfill_driver::billing::Counted;
use backfill_driver::ingest::Ingest;
use backfill_driver::port::Store;
use futures_util::future::poll_immediate;
use tokio::task::JoinSet;

use super::commit;
use crate::{Fixture, account, history};

/// A client of a store that ingests into it.
struct Client<S> {
    store: S,
    ingest: Ingest<S>,
}

impl<S: Store> Client<S> {
    fn new(store: S, capacity: usize) -> Self {
        Self { store: store.clone(), ingest: Ingest::new(store, capacity) }
    }

    async fn now(&self) -> StoreTime {
        self.store.get(&[]).await.unwrap().read_time
    }

    async fn put(&self, records: Vec<Record>) -> Facts {
        let now = self.now().await;
        let mut batch = Batch::new(&account(), records, now, &Arc::default());
        self.ingest.store(now, &mut batch).await.unwrap()
    }
}

fn new(facts: &Facts) -> u32 {
    facts.threads.iter().map(|thread| thread.new).sum()
}

/// How many messages each thread has, by thread.
async fn stored(store: &impl Store) -> Vec<usize> {
    let threads = CollectionPath::root("threads");
    let threads = store.query(&Query::all(threads, 1_000)).await.unwrap().docs;
    let mut counts = Vec::new();
    for thread in threads {
        assert!(thread.time("lastMessageAt").is_some(), "an inbox would not show it");
        let messages = Query::all(thread.path.child("messages"), 10_000);
        counts.push(store.query(&messages).await.unwrap().docs.len());
    }
    counts
}

pub(super) async fn what_is_stored_already_costs_no_writes<F: Fixture>(fixture: F, space: String) {
    let store = Counted::new(fixture.open(&space).await);
    let first = Client::new(store.clone(), 0).put(history(0..3, 100)).await;
    assert_eq!(first.rejected, []);
    assert_eq!(new(&first), 300);
    assert_eq!(stored(&store).await, [100, 100, 100]);

    let before = store.operations();
    let client = Client::new(store.clone(), 1 << 20);
    assert_eq!(new(&client.put(history(0..3, 100)).await), 0);
    let once = store.operations();
    assert_eq!((once.writes, once.deletes), (before.writes, before.deletes));
    assert_eq!(once.reads - before.reads, 300 + 3 + 1, "messages, threads, and the time");

    client.put(history(0..3, 100)).await;
    let twice = store.operations();
    assert_eq!(twice.writes, before.writes);
    assert_eq!(twice.reads - once.reads, 1, "what was read just now is remembered");
}

pub(super) async fn a_new_message_in_a_known_chat_costs_one_read_and_two_writes<F: Fixture>(
    fixture: F,
    space: String,
) {
    let store = Counted::new(fixture.open(&space).await);
    let client = Client::new(store.clone(), 1 << 20);
    let mut records = history(0..1, 8)
        .into_iter()
        .filter(|record| matches!(record, Record::Message(message) if !message.key.from_me));
    for warm_up in [1, 1] {
        client.put(records.by_ref().take(warm_up).collect()).await;
    }
    for record in records {
        let now = client.now().await;
        let before = store.operations();
        let mut batch = Batch::new(&account(), vec![record], now, &Arc::default());
        client.ingest.store(now, &mut batch).await.unwrap();
        let after = store.operations();
        // The thread is as this client's latest commit left it, on every store.
        assert_eq!((after.reads - before.reads, after.writes - before.writes), (1, 2));
    }
}

pub(super) async fn overlapping_batches_store_each_message_once<F: Fixture>(
    fixture: F,
    space: String,
) {
    let mut tasks = JoinSet::new();
    for worker in 0..4_usize {
        let client = Client::new(fixture.open(&space).await, 1 << 20);
        tasks.spawn(async move {
            let mut records = history(0..3, 40);
            let at = records.len() * worker / 4;
            records.rotate_left(at);
            for part in records.chunks(30) {
                assert_eq!(client.put(part.to_vec()).await.rejected, []);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(stored(&fixture.open(&space).await).await, [40, 40, 40]);
}

pub(super) async fn what_is_cut_off_goes_on<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    for polls in 0..12 {
        // A crash at any point: the future is dropped, the batch is lost with it.
        let client = Client::new(store.clone(), 1 << 20);
        let mut storing = Box::pin(client.put(history(0..2, 300)));
        for _ in 0..polls {
            if poll_immediate(&mut storing).await.is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    Client::new(store.clone(), 0).put(history(0..2, 300)).await;
    assert_eq!(stored(&store).await, [300, 300]);
}

pub(super) async fn a_bad_document_does_not_fail_its_neighbours<F: Fixture>(
    fixture: F,
    space: String,
) {
    let store = fixture.open(&space).await;
    let mut records = history(0..2, 20);
    if let Record::Message(message) = &mut records[7] {
        message.key.id = "no/id".into();
    }
    // Somebody else's field leaves no room in one message's document for what is to be added.
    let Record::Message(message) = &mut records[12] else { panic!("history is messages") };
    let MessageEvent::Content(content) = &mut message.event else { panic!("with content") };
    content.body = "y".repeat(200_000).into();
    let id = &message.key.id;
    let thread = format!("threads/{}__{}", account().as_str(), message.key.remote_jid);
    let full = DocPath::parse(format!("{thread}/messages/{id}")).unwrap();
    let theirs = vec![("theirs".into(), FieldOp::from("x".repeat(900_000).as_str()))];
    commit(&store, vec![Write::merge(full.clone(), Precondition::Absent, theirs)]).await;

    let facts = Client::new(store.clone(), 1 << 20).put(records).await;
    let mut rejected: Vec<_> = facts.rejected.iter().map(|r| r.record).collect();
    rejected.sort_unstable();
    assert_eq!(rejected, [7, 12]);
    assert!(facts.rejected.iter().any(|r| r.reason == Rejection::Store));
    assert_eq!(stored(&store).await, [19, 20], "the full one was there before");
    let full = store.get(&[full]).await.unwrap().docs.remove(0).unwrap();
    assert_eq!(full.fields.len(), 1, "and is as it was");
}
