use std::sync::Arc;

use backfill_core::doc::{
    Comparison, Cursor, Direction, FieldOp, FieldPath, Precondition, Query, Value, Write,
};
use backfill_core::time::StoreTime;
use backfill_driver::port::{Store, StoreError};

use super::{collection, commit, existing, merge, path, put, read};
use crate::Fixture;

async fn invalid(store: &impl Store, writes: Vec<Write>) {
    let shown = format!("{:.200}", format!("{writes:?}"));
    match store.commit(writes).await {
        Err(StoreError::Invalid { reason }) => assert!(!reason.is_empty()),
        answer => panic!("{answer:?} to {shown}"),
    }
}

pub(super) async fn a_commit_has_at_most_500_writes<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let writes = |n| (0..n).map(|n| put(&format!("c/{n}"), n)).collect::<Vec<_>>();
    invalid(&store, writes(501)).await;
    assert_eq!(read(&store, "c/0").await, None);
    assert_eq!(commit(&store, writes(500)).await.versions.len(), 500);
    assert_eq!(existing(&store, "c/499").await.int("n"), Some(499));
}

pub(super) async fn a_commit_has_a_byte_limit<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let body = "x".repeat(390_000);
    let writes = |n: usize| -> Vec<Write> {
        let write = |n| merge(&format!("c/{n}"), Precondition::Any, vec![("body", body.as_str())]);
        (0..n).map(write).collect()
    };
    invalid(&store, writes(11)).await;
    assert_eq!(read(&store, "c/0").await, None);
    commit(&store, writes(10)).await;
    assert_eq!(existing(&store, "c/9").await.str("body"), Some(body.as_str()));
}

pub(super) async fn a_document_cannot_grow_too_large<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let bytes = |n: usize| Value::Bytes(Arc::from(vec![7; n]));
    let with = |field: &str, n| vec![merge("c/a", Precondition::Any, vec![(field, bytes(n))])];
    invalid(&store, with("x", 1_048_577)).await;
    assert_eq!(read(&store, "c/a").await, None);
    commit(&store, with("x", 500_000)).await;
    commit(&store, with("y", 500_000)).await;
    invalid(&store, [with("z", 100_000), vec![put("c/b", 1)]].concat()).await;
    assert_eq!(read(&store, "c/b").await, None, "nothing of the commit was applied");
    let doc = existing(&store, "c/a").await;
    assert_eq!(doc.fields.keys().collect::<Vec<_>>(), ["x", "y"]);
    assert_eq!(doc.value("y"), Some(&bytes(500_000)));
}

pub(super) async fn impossible_writes_are_refused<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let with = |value: Value| vec![merge("c/a", Precondition::Any, vec![("v", value)])];
    let nested = |depth| (0..depth).fold(Value::Int(1), |inner, _| Value::map([("m", inner)]));
    invalid(&store, vec![put("c/a", 1), put("c/b", 1), put("c/a", 2)]).await;
    invalid(&store, vec![put("c/a", 1), Write::delete(path("c/a"), Precondition::Any)]).await;
    invalid(&store, with(Value::Array(vec![Value::Array(vec![])]))).await;
    invalid(&store, with(Value::map([("__x__", Value::Null)]))).await;
    invalid(&store, with(Value::map([("", Value::Null)]))).await;
    invalid(&store, with(nested(21))).await;
    invalid(&store, with(StoreTime::from_micros(253_402_300_800_000_000).into())).await;
    invalid(&store, with(StoreTime::from_micros(i64::MIN).into())).await;
    let fields = |names: &[&'static str]| -> Vec<Write> {
        let fields = names.iter().map(|n| (FieldPath::new(n), FieldOp::from(1_i64))).collect();
        vec![Write::merge(path("c/a"), Precondition::Any, fields)]
    };
    invalid(&store, fields(&["a", "a"])).await;
    invalid(&store, fields(&["a.b.c", "x", "a.b"])).await;
    invalid(&store, fields(&["__name__"])).await;
    assert_eq!(read(&store, "c/a").await, None);
    commit(&store, with(nested(19))).await;
    commit(&store, fields(&["a_b", "a.b", "ab"])).await;
}

pub(super) async fn impossible_queries_are_refused<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    commit(&store, vec![put("c/a", 1)]).await;
    let all = || Query::all(collection("c"), 10);
    let greater = |query: Query, field: &'static str| {
        query.filter(FieldPath::new(field), Comparison::Greater, 1_i64)
    };
    for query in [
        Query::all(collection("c"), 0),
        greater(greater(all(), "x"), "y"),
        greater(all(), "x").order_by("y".into(), Direction::Ascending),
        all().filter("x".into(), Comparison::Less, Value::Null),
        Query { after: Some(Cursor { keys: vec![Value::Int(1)], id: "a".into() }), ..all() },
    ] {
        let answer = store.query(&query).await;
        assert!(matches!(answer, Err(StoreError::Invalid { .. })), "{answer:?} to {query:?}");
    }
}
