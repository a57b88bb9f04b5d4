use backfill_core::doc::{DocPath, Precondition, Query};
use backfill_driver::port::Store;

use super::{collection, commit, merge, path, put};
use crate::Fixture;

pub(super) async fn a_get_answers_in_the_order_asked_for<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    commit(&store, vec![put("c/a", 1), put("c/b", 2)]).await;
    let paths = ["c/b", "c/none", "c/a", "c/b", "c/none"].map(path);
    let snapshot = store.get(&paths).await.unwrap();
    let ns: Vec<_> = snapshot.docs.iter().map(|d| d.as_ref().and_then(|d| d.int("n"))).collect();
    assert_eq!(ns, [Some(2), None, Some(1), Some(2), None]);
}

pub(super) async fn a_large_get_is_complete<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let paths: Vec<DocPath> = (0..1_200).map(|n| path(&format!("c/{n}"))).collect();
    for chunk in paths.chunks(400) {
        let body = "x".repeat(2_000);
        let write = |p: &DocPath| merge(p.as_str(), Precondition::Any, vec![("b", body.as_str())]);
        commit(&store, chunk.iter().map(write).collect()).await;
    }
    let snapshot = store.get(&paths).await.unwrap();
    assert_eq!(snapshot.docs.len(), paths.len());
    for (path, doc) in paths.iter().zip(&snapshot.docs) {
        assert_eq!(doc.as_ref().map(|d| &d.path), Some(path));
    }
    let found = store.query(&Query::all(collection("c"), 5_000)).await.unwrap();
    assert_eq!(found.docs.len(), paths.len());
}

pub(super) async fn a_get_sees_one_point_in_time<F: Fixture>(fixture: F, space: String) {
    let (writer, reader) = (fixture.open(&space).await, fixture.open(&space).await);
    commit(&writer, vec![put("c/a", 0), put("c/b", 0)]).await;
    let writing = tokio::spawn(async move {
        for n in 1..=60 {
            commit(&writer, vec![put("c/a", n), put("c/b", n)]).await;
        }
    });
    let all = Query::all(collection("c"), 10);
    let mut last = 0;
    while last < 60 {
        let got = reader.get(&[path("c/a"), path("c/b")]).await.unwrap().docs;
        let found = reader.query(&all).await.unwrap().docs;
        for (what, docs) in [("get", got.into_iter().flatten().collect()), ("query", found)] {
            let ns: Vec<_> = docs.iter().map(|d| d.int("n").unwrap()).collect();
            assert_eq!(ns.len(), 2);
            assert!(F::TORN_READS || ns[0] == ns[1], "a {what} saw half of a commit: {ns:?}");
            assert!(ns[0].min(ns[1]) >= last, "a later {what} saw an earlier state");
            last = ns[0].min(ns[1]);
        }
    }
    writing.await.unwrap();
}

pub(super) async fn time_goes_forward_across_clients<F: Fixture>(fixture: F, space: String) {
    let clients = [fixture.open(&space).await, fixture.open(&space).await];
    let mut last = clients[0].get(&[]).await.unwrap().read_time;
    for n in 0..10 {
        for client in &clients {
            let committed = commit(client, vec![put("c/a", n)]).await;
            let snapshot = client.get(&[path("c/a")]).await.unwrap();
            let found = client.query(&Query::all(collection("c"), 1)).await.unwrap();
            for time in [committed.commit_time, snapshot.read_time, found.read_time] {
                assert!(time >= last, "the store's clock went back");
                last = time;
            }
        }
    }
}
