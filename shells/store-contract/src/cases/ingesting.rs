use std::sync::Arc;

use backfill_core::doc::{CollectionPath, Query};
use backfill_core::incoming::Record;
use backfill_core::ingest::Batch;
use backfill_core::jid::Twins;
use backfill_core::time::StoreTime;
use backfill_driver::billing::Counted;
use backfill_driver::ingest::Ingest;
use backfill_driver::port::Store;
use futures_util::future::poll_immediate;
use tokio::task::JoinSet;

use crate::{Fixture, account, history};

const NOW: StoreTime = StoreTime::from_secs(1_800_000_000);

fn batch(records: Vec<Record>) -> Batch {
    Batch::new(&account(), records, NOW, &Arc::new(Twins::default()))
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
    let facts = Ingest::new(store.clone(), 10).store(&mut batch(history(0..3, 100))).await.unwrap();
    assert_eq!(facts.rejected, []);
    assert_eq!(facts.threads.iter().map(|t| t.new).sum::<u32>(), 300);
    assert_eq!(stored(&store).await, [100, 100, 100]);

    let first = store.operations();
    let again = Ingest::new(store.clone(), 1_000);
    let facts = again.store(&mut batch(history(0..3, 100))).await.unwrap();
    assert_eq!(facts.threads.iter().map(|t| t.new).sum::<u32>(), 0);
    let second = store.operations();
    assert_eq!((second.writes, second.deletes), (first.writes, first.deletes));
    assert!(second.reads > first.reads);

    again.store(&mut batch(history(0..3, 100))).await.unwrap();
    assert_eq!(store.operations(), second, "what was read just now is remembered");
}

pub(super) async fn overlapping_batches_store_each_message_once<F: Fixture>(
    fixture: F,
    space: String,
) {
    let mut tasks = JoinSet::new();
    for worker in 0..4_u32 {
        let ingest = Ingest::new(fixture.open(&space).await, 100);
        tasks.spawn(async move {
            let mut records = history(0..3, 40);
            let at = records.len() * worker as usize / 4;
            records.rotate_left(at);
            for part in records.chunks(30) {
                let facts = ingest.store(&mut batch(part.to_vec())).await.unwrap();
                assert_eq!(facts.rejected, []);
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
        let ingest = Ingest::new(store.clone(), 100);
        let mut records = batch(history(0..2, 300));
        let mut storing = Box::pin(ingest.store(&mut records));
        for _ in 0..polls {
            if poll_immediate(&mut storing).await.is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    Ingest::new(store.clone(), 100).store(&mut batch(history(0..2, 300))).await.unwrap();
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
    let facts = Ingest::new(store.clone(), 100).store(&mut batch(records)).await.unwrap();
    assert_eq!(facts.rejected.iter().map(|r| r.record).collect::<Vec<_>>(), [7]);
    assert_eq!(stored(&store).await, [19, 20]);
}
