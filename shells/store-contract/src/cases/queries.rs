use backfill_core::doc::{
    CollectionPath, Comparison, Direction, Double, FieldPath, Precondition, Query, Value,
};
use backfill_core::time::StoreTime;
use backfill_driver::port::Store;
use backfill_driver::semantics::cursor_at;

use super::{collection, commit, merge, path, put};
use crate::Fixture;

const DESC: Direction = Direction::Descending;
const ASC: Direction = Direction::Ascending;

async fn ids(store: &impl Store, query: Query) -> Vec<String> {
    let found = store.query(&query).await.expect("the query is answered");
    found.docs.iter().map(|d| d.path.id().to_owned()).collect()
}

fn all(name: &'static str) -> Query {
    Query::all(CollectionPath::root(name), 1_000)
}

pub(super) async fn a_collection_is_listed_by_id<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    assert_eq!(ids(&store, all("c")).await, [""; 0]);
    let writes = ["c/b", "c/B", "c/a", "c/a1", "c/ä", "c/a/c/below", "d/other", "c/parent/x/y"]
        .map(|p| put(p, 1));
    commit(&store, writes.into()).await;
    assert_eq!(ids(&store, all("c")).await, ["B", "a", "a1", "b", "ä"]);
    assert_eq!(ids(&store, Query::all(collection("c/a/c"), 9)).await, ["below"]);
    assert_eq!(ids(&store, Query::all(collection("c/parent/x"), 9)).await, ["y"]);
}

pub(super) async fn filters_compare_within_a_type<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let values: [(&str, Value); 9] = [
        ("c/absent", Value::Null),
        ("c/int1", 1_i64.into()),
        ("c/int2", 2_i64.into()),
        ("c/double", Value::Double(Double(1.5))),
        ("c/text1", "1".into()),
        ("c/text2", "2".into()),
        ("c/time1", StoreTime::from_micros(1).into()),
        ("c/time2", StoreTime::from_micros(2).into()),
        ("c/yes", true.into()),
    ];
    let writes = values.map(|(p, v)| {
        let field = if p == "c/absent" { "other" } else { "v" };
        merge(p, Precondition::Any, vec![(field, v)])
    });
    commit(&store, writes.into()).await;
    let by = |op, value: Value| all("c").filter("v".into(), op, value);
    let one = || Value::from(1_i64);
    assert_eq!(ids(&store, by(Comparison::Equal, one())).await, ["int1"]);
    assert_eq!(ids(&store, by(Comparison::Equal, true.into())).await, ["yes"]);
    assert_eq!(ids(&store, by(Comparison::Greater, one())).await, ["double", "int2"]);
    assert_eq!(
        ids(&store, by(Comparison::GreaterOrEqual, one())).await,
        ["int1", "double", "int2"]
    );
    assert_eq!(ids(&store, by(Comparison::Less, 2_i64.into())).await, ["int1", "double"]);
    assert_eq!(ids(&store, by(Comparison::LessOrEqual, "1".into())).await, ["text1"]);
    let time = StoreTime::from_micros;
    assert_eq!(ids(&store, by(Comparison::LessOrEqual, time(1).into())).await, ["time1"]);
    assert_eq!(ids(&store, by(Comparison::Less, time(1).into())).await, [""; 0]);
    let between = by(Comparison::Greater, one()).filter("v".into(), Comparison::Less, 2_i64);
    assert_eq!(ids(&store, between).await, ["double"]);
}

pub(super) async fn nested_fields_are_found<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    for (p, n) in [("c/a", 3_i64), ("c/b", 1), ("c/c", 3)] {
        commit(&store, vec![merge(p, Precondition::Any, vec![("m.n", n)])]).await;
    }
    commit(&store, vec![merge("c/d", Precondition::Any, vec![("m", 3_i64)])]).await;
    let field = || FieldPath::new("m.n");
    let query = all("c").filter(field(), Comparison::Equal, 3_i64);
    assert_eq!(ids(&store, query).await, ["a", "c"]);
    assert_eq!(ids(&store, all("c").order_by(field(), DESC)).await, ["c", "a", "b"]);
}

pub(super) async fn limits_cut_after_the_order<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let writes = [("c/a", 2), ("c/b", 1), ("c/c", 3), ("c/d", 2)].map(|(p, n)| put(p, n));
    commit(&store, writes.into()).await;
    let first = |n, direction| Query { limit: n, ..all("c").order_by("n".into(), direction) };
    assert_eq!(ids(&store, first(1, DESC)).await, ["c"]);
    assert_eq!(ids(&store, first(2, ASC)).await, ["b", "a"]);
    assert_eq!(ids(&store, first(3, DESC)).await, ["c", "d", "a"]);
    assert_eq!(ids(&store, first(u32::MAX, ASC)).await, ["b", "a", "d", "c"]);
    assert_eq!(ids(&store, Query { limit: 2, ..all("c") }).await, ["a", "b"]);
}

pub(super) async fn cursors_page_through_ties<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let mut writes = Vec::new();
    for n in 0..60_i64 {
        let time = StoreTime::from_micros(n / 7);
        let fields = vec![("t", Value::from(time)), ("k", (n % 2).into())];
        writes.push(merge(&format!("c/{n:02}"), Precondition::Any, fields));
    }
    commit(&store, writes).await;
    let t = || FieldPath::new("t");
    let k = || FieldPath::new("k");
    for whole in [
        all("c"),
        all("c").order_by(t(), ASC),
        all("c").order_by(t(), DESC),
        all("c").order_by(k(), ASC).order_by(t(), DESC),
        all("c").filter(k(), Comparison::Equal, 1_i64).order_by(t(), DESC),
        all("c").filter(t(), Comparison::Greater, StoreTime::from_micros(2)),
        all("c")
            .filter(t(), Comparison::LessOrEqual, StoreTime::from_micros(5))
            .order_by(t(), DESC),
    ] {
        let expected = ids(&store, whole.clone()).await;
        assert!(expected.len() >= 24);
        let (mut paged, mut after) = (Vec::new(), None);
        loop {
            let page = Query { limit: 8, after, ..whole.clone() };
            let found = store.query(&page).await.unwrap().docs;
            let Some(last) = found.last() else { break };
            after = Some(cursor_at(&whole, last).expect("what was found has the sort keys"));
            paged.extend(found.iter().map(|d| d.path.id().to_owned()));
        }
        assert_eq!(paged, expected, "{whole:?}");
    }
}

pub(super) async fn a_selection_brings_only_its_fields<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let fields = vec![("a", Value::Int(1)), ("m.x", Value::Int(2)), ("m.y", Value::Int(3))];
    let version = commit(&store, vec![merge("c/d", Precondition::Any, fields)]).await.versions[0];
    let one = async |query: Query| store.query(&query).await.unwrap().docs.remove(0);
    let doc = one(all("c").select(["m.x".into(), "absent".into()])).await;
    assert_eq!(doc.fields, [("m".into(), Value::map([("x", Value::Int(2))]))].into());
    assert_eq!(Some(doc.version), version);
    let doc = one(all("c").select([])).await;
    assert_eq!((doc.path.clone(), doc.fields.len()), (path("c/d"), 0));
    assert_eq!(Some(doc.version), version);
}

pub(super) async fn the_inbox_is_ordered_by_its_newest_message<F: Fixture>(
    fixture: F,
    space: String,
) {
    let store = fixture.open(&space).await;
    let mut writes = Vec::new();
    for n in 0..40_i64 {
        let fields = vec![
            ("accountId", Value::from(if n % 4 == 0 { "a1" } else { "a2" })),
            ("isLid", (n % 8 == 0).into()),
            ("lastMessageAt", StoreTime::from_secs(1_000 + (n * 7) % 40).into()),
        ];
        writes.push(merge(&format!("threads/t{n:02}"), Precondition::Any, fields));
    }
    let unseen = vec![("accountId", Value::from("a1")), ("isLid", true.into())];
    writes.push(merge("threads/unseen", Precondition::Any, unseen));
    commit(&store, writes).await;
    let newest = |limit| Query {
        limit,
        ..all("threads")
            .filter("accountId".into(), Comparison::Equal, "a1")
            .order_by("lastMessageAt".into(), DESC)
    };
    assert_eq!(
        ids(&store, newest(100)).await,
        ["t28", "t16", "t04", "t32", "t20", "t08", "t36", "t24", "t12", "t00"]
    );
    assert_eq!(ids(&store, newest(3)).await, ["t28", "t16", "t04"]);
    let lids = newest(100).filter("isLid".into(), Comparison::Equal, true);
    assert_eq!(ids(&store, lids).await, ["t16", "t32", "t08", "t24", "t00"]);
}

pub(super) async fn an_outbox_is_polled<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let job = |p: &str, status: &str, at: i64| {
        let fields = vec![
            ("status", Value::from(status)),
            ("nextAttemptAt", StoreTime::from_secs(at).into()),
        ];
        merge(p, Precondition::Any, fields)
    };
    let writes = vec![
        job("outbox/later", "queued", 9),
        job("outbox/second", "queued", 2),
        job("outbox/sent", "sent", 1),
        job("outbox/first", "queued", 1),
    ];
    commit(&store, writes).await;
    let due = |now| {
        all("outbox")
            .filter("status".into(), Comparison::Equal, "queued")
            .filter("nextAttemptAt".into(), Comparison::LessOrEqual, StoreTime::from_secs(now))
            .order_by("nextAttemptAt".into(), ASC)
    };
    assert_eq!(ids(&store, due(5)).await, ["first", "second"]);
    commit(&store, vec![job("outbox/first", "processing", 1)]).await;
    commit(&store, vec![job("outbox/second", "queued", 7)]).await;
    assert_eq!(ids(&store, due(5)).await, [""; 0]);
    assert_eq!(ids(&store, due(9)).await, ["second", "later"]);
}
