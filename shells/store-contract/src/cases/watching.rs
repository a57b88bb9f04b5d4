use std::pin::pin;
use std::time::Duration;

use backfill_core::doc::Query;
use backfill_driver::port::Store;
use futures_util::future::{Either, select};
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep, timeout};

use super::{collection, commit, existing, put};
use crate::{Deaf, Fixture};

pub(super) async fn a_change_is_hinted_at<F: Fixture>(fixture: F, space: String) {
    let (watcher, writer) = (fixture.open(&space).await, fixture.open(&space).await);
    let mut hints = pin!(watcher.watch(Query::all(collection("c"), 10)));
    let mut n = 0;
    // A watch may take a moment to begin, so writes go on until the first hint.
    loop {
        n += 1;
        commit(&writer, vec![put("c/a", n)]).await;
        if let Ok(hint) = timeout(Duration::from_millis(500), hints.next()).await {
            assert_eq!(hint, Some(()), "a watch does not end");
            break;
        }
        assert!(n < 40, "no hint came");
    }
    for n in 100..105 {
        // Hints of earlier writes may still be under way.
        while timeout(Duration::from_millis(50), hints.next()).await.is_ok() {}
        commit(&writer, vec![put("c/a", n)]).await;
        let hint = timeout(Duration::from_secs(10), hints.next()).await;
        assert_eq!(hint.expect("a hint comes"), Some(()));
        assert_eq!(existing(&watcher, "c/a").await.int("n"), Some(n));
    }
}

/// Follows a counter the way every reader of the port does: hints wake it, the poll is the
/// authority. Returns how long each change took to be seen.
async fn follow(
    reader: impl Store,
    writer: impl Store,
    poll: Duration,
    changes: i64,
) -> Vec<Duration> {
    let query = Query::all(collection("c"), 10);
    let mut hints = Box::pin(reader.watch(query.clone()));
    let mut latencies = Vec::new();
    for n in 1..=changes {
        while hints.next().now_or_never().is_some() {}
        commit(&writer, vec![put("c/a", n)]).await;
        let written = Instant::now();
        loop {
            let hint = hints.next();
            let due = pin!(sleep(poll));
            if let Either::Left((None, _)) = select(hint, due).await {
                panic!("a watch does not end");
            }
            let seen = reader.query(&query).await.unwrap().docs[0].int("n").unwrap();
            assert!(seen <= n);
            if seen == n {
                break;
            }
        }
        latencies.push(written.elapsed());
    }
    latencies
}

pub(super) async fn lost_hints_cost_only_latency<F: Fixture>(fixture: F, space: String) {
    let (reader, writer) = (fixture.open(&space).await, fixture.open(&space).await);
    let poll = Duration::from_millis(300);
    let deaf = follow(Deaf(reader.clone()), writer.clone(), poll, 3).await;
    assert!(deaf.iter().all(|latency| *latency >= poll), "no hint can have come: {deaf:?}");
    let hinted = follow(reader, writer, Duration::from_secs(20), 8).await;
    // A first hint may be lost while the watch begins; the poll makes up for it.
    let quick = hinted.iter().filter(|latency| **latency < Duration::from_secs(5)).count();
    assert!(quick >= 7, "hints did not wake the reader: {hinted:?}");
}
