use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use backfill_core::doc::{Precondition, Write};
use backfill_driver::port::{Store, StoreError};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::{commit, existing, merge, path, put, written};
use crate::Fixture;

pub(super) async fn one_of_2_wins_each_round<F: Fixture>(fixture: F, space: String) {
    one_wins_each_round(fixture, space, 2, 20).await;
}

pub(super) async fn one_of_8_wins_each_round<F: Fixture>(fixture: F, space: String) {
    one_wins_each_round(fixture, space, 8, 20).await;
}

pub(super) async fn one_of_32_wins_each_round<F: Fixture>(fixture: F, space: String) {
    one_wins_each_round(fixture, space, 32, 10).await;
}

async fn one_wins_each_round<F: Fixture>(fixture: F, space: String, clients: u32, rounds: u32) {
    let first = fixture.open(&space).await;
    commit(&first, vec![put("leases/l", 0)]).await;
    let barrier = Arc::new(Barrier::new(clients as usize));
    let wins = Arc::new(AtomicU32::new(0));
    let mut tasks = JoinSet::new();
    for me in 0..clients {
        let (store, barrier) = (fixture.open(&space).await, Arc::clone(&barrier));
        let wins = Arc::clone(&wins);
        tasks.spawn(async move {
            for round in 0..rounds {
                let seen = existing(&store, "leases/l").await;
                assert_eq!(seen.int("n"), Some(i64::from(round)));
                barrier.wait().await;
                let fields = vec![("n", i64::from(round + 1)), ("owner", i64::from(me))];
                let taken = merge("leases/l", Precondition::Version(seen.version), fields);
                let won = match store.commit(vec![taken]).await {
                    Ok(_) => true,
                    Err(StoreError::Conflict(_)) => false,
                    Err(e) => panic!("client {me} in round {round}: {e:?}"),
                };
                if won {
                    wins.fetch_add(1, Ordering::SeqCst);
                }
                barrier.wait().await;
                let owner = existing(&store, "leases/l").await;
                assert_eq!(wins.load(Ordering::SeqCst), round + 1, "one winner in round {round}");
                assert_eq!(won, owner.int("owner") == Some(i64::from(me)));
                barrier.wait().await;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

pub(super) async fn everybody_gets_through<F: Fixture>(fixture: F, space: String) {
    const CLIENTS: i64 = 8;
    const EACH: i64 = 5;
    let first = fixture.open(&space).await;
    commit(&first, vec![put("c/counter", 0)]).await;
    let mut tasks = JoinSet::new();
    for _ in 0..CLIENTS {
        let store = fixture.open(&space).await;
        tasks.spawn(async move {
            for _ in 0..EACH {
                // Somebody wins every round, so nobody loses more rounds than others have wins.
                let mut lost = 0;
                loop {
                    let seen = existing(&store, "c/counter").await;
                    let next = seen.int("n").unwrap() + 1;
                    let precondition = Precondition::Version(seen.version);
                    match store
                        .commit(vec![merge("c/counter", precondition, vec![("n", next)])])
                        .await
                    {
                        Ok(_) => break,
                        Err(StoreError::Conflict(_)) => lost += 1,
                        Err(e) => panic!("{e:?}"),
                    }
                    assert!(lost < CLIENTS * EACH, "lost more rounds than there are wins");
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(existing(&first, "c/counter").await.int("n"), Some(CLIENTS * EACH));
}

pub(super) async fn the_fence_holds_under_takeover<F: Fixture>(fixture: F, space: String) {
    let (owner, taker) = (fixture.open(&space).await, fixture.open(&space).await);
    for takeover in 0..5_i64 {
        let version = written(&commit(&owner, vec![put("c/lease", 2 * takeover)]).await, 0);
        commit(&owner, vec![put("c/data", 0)]).await;
        let started = Arc::new(Barrier::new(2));
        let ready = Arc::clone(&started);
        let store = owner.clone();
        let writing = tokio::spawn(async move {
            let mut applied = 0;
            loop {
                let fence = Write::verify(path("c/lease"), Precondition::Version(version));
                match store.commit(vec![put("c/data", applied + 1), fence]).await {
                    Ok(_) => applied += 1,
                    Err(StoreError::Conflict(_)) => return applied,
                    Err(e) => panic!("{e:?}"),
                }
                if applied == 3 {
                    ready.wait().await;
                }
            }
        });
        started.wait().await;
        let taken = merge("c/lease", Precondition::Version(version), vec![("n", 2 * takeover + 1)]);
        commit(&taker, vec![taken]).await;
        let frozen = existing(&taker, "c/data").await;
        let applied = writing.await.unwrap();
        assert_eq!(frozen.int("n"), Some(applied), "what was acknowledged is what is there");
        assert_eq!(existing(&taker, "c/data").await, frozen, "a stale owner wrote");
    }
}
