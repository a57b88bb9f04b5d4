//! The file: who may read it, copies of it, versions of its schema; and the order of commits.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use backfill_core::doc::{CollectionPath, DocPath, FieldOp, Precondition, Query, Write};
use backfill_driver::port::{Store, StoreError};
use rusqlite::Connection;
use store_contract::{Case, Fixture};
use store_sqlite::SqliteStore;
use tokio::task::JoinSet;

use crate::Files;

pub(crate) fn cases(files: &Files) -> Vec<Case> {
    let [a, b, c, d] = [files.clone(), files.clone(), files.clone(), files.clone()];
    vec![
        Case::new("files::a_backup_is_one_moment_of_a_busy_file", || backup(a)),
        Case::new("files::a_newer_schema_is_left_alone", || newer_schema(b)),
        Case::new("files::leases_go_before_bulk", || leases_first(c)),
        Case::new("files::only_the_owner_may_read", || owner_only(d)),
    ]
}

pub(crate) fn put(p: &str, n: i64) -> Write {
    let path = DocPath::parse(p).unwrap();
    Write::merge(path, Precondition::Any, vec![("n".into(), FieldOp::from(n))])
}

async fn backup(files: Files) {
    let store = files.open("backup-source").await;
    let copy = files.path("backup-copy");
    store.commit(vec![put("c/a", 0), put("c/b", 0)]).await.unwrap();
    let busy = store.clone();
    let writing = tokio::spawn(async move {
        for n in 1..=100 {
            busy.commit(vec![put("c/a", n), put("c/b", n)]).await.unwrap();
        }
    });
    store.backup(&copy).await.unwrap();
    assert!(matches!(store.backup(&copy).await, Err(StoreError::Unavailable(Some(_)))));
    writing.await.unwrap();

    let copied = SqliteStore::open(&copy).unwrap();
    let all = Query::all(CollectionPath::root("c"), 10);
    let docs = copied.query(&all).await.unwrap().docs;
    assert_eq!(docs.len(), 2);
    assert_eq!(docs[0].int("n"), docs[1].int("n"), "half of a commit is in the copy");
    let last = store.commit(vec![put("c/a", -1)]).await.unwrap().versions[0];
    let next = copied.commit(vec![put("c/a", -1)]).await.unwrap().versions[0];
    assert!(next > last, "the copy would give versions again that the original gave");
}

async fn newer_schema(files: Files) {
    let path = files.path("newer");
    let store = files.open("newer").await;
    store.commit(vec![put("c/a", 1)]).await.unwrap();
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 1_000).unwrap();
    let refused = store.commit(vec![put("c/a", 2)]).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(Some(_)))), "{refused:?}");
    assert!(matches!(SqliteStore::open(&path), Err(StoreError::Unavailable(Some(_)))));
    let doc = store.get(&[DocPath::parse("c/a").unwrap()]).await.unwrap().docs[0].clone();
    assert_eq!(doc.unwrap().int("n"), Some(1));
}

async fn leases_first(files: Files) {
    const BULK: u32 = 40;
    let store = files.open("lanes").await;
    let done = Arc::new(AtomicU32::new(0));
    let mut bulk = JoinSet::new();
    for batch in 0..BULK {
        let (store, done) = (store.clone(), Arc::clone(&done));
        bulk.spawn(async move {
            let writes = (0..400).map(|n| put(&format!("threads/t{batch}/messages/{n}"), n));
            store.commit(writes.collect()).await.unwrap();
            done.fetch_add(1, Ordering::SeqCst);
        });
    }
    while done.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    store.commit(vec![put("accounts/a/leases/connection", 1)]).await.unwrap();
    let before = done.load(Ordering::SeqCst);
    assert!(before < BULK / 2, "{before} bulk commits went before a lease");
    while let Some(result) = bulk.join_next().await {
        result.unwrap();
    }
}

async fn owner_only(files: Files) {
    let store = files.open("private").await;
    store.commit(vec![put("c/a", 1)]).await.unwrap();
    for suffix in ["", "-wal", "-shm"] {
        let path = files.path(&format!("private{suffix}"));
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{suffix:?} is open to others");
    }
}
