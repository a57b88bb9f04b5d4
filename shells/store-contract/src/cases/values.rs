use std::sync::Arc;

use backfill_core::doc::{DocPath, Double, FieldOp, FieldPath, Precondition, Query, Value, Write};
use backfill_core::time::StoreTime;
use backfill_driver::port::Store;

use super::{collection, commit, existing, merge, path};
use crate::Fixture;

pub(super) async fn every_value_comes_back_as_it_was<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let reference = "projects/p/databases/(default)/documents/c/other";
    let values = [
        Value::Null,
        Value::Bool(true),
        Value::Bool(false),
        Value::Int(0),
        Value::Int(i64::MIN),
        Value::Int(i64::MAX),
        Value::Double(Double(0.1)),
        Value::Double(Double(-0.0)),
        Value::Double(Double(f64::NAN)),
        Value::Double(Double(f64::NEG_INFINITY)),
        Value::Double(Double(f64::MAX)),
        Value::Double(Double(3.0)),
        Value::from(""),
        Value::from("zwölf Boxkämpfer \u{1F600} \0 \u{10FFFF} \"'\\"),
        Value::Bytes(Arc::from([])),
        Value::Bytes((0..=255).collect()),
        Value::Reference(reference.into()),
        Value::GeoPoint(Double(-89.5), Double(179.25)),
        Value::Array(vec![]),
        Value::Array(vec![
            Value::Null,
            Value::Int(1),
            Value::Null,
            Value::map([("x", Value::Null)]),
        ]),
        Value::Map([].into()),
        Value::map([
            ("a-b", Value::Int(1)),
            ("a.b", Value::Int(2)),
            ("`", Value::Int(3)),
            ("ключ", Value::Null),
            (" ", Value::map([("deep", Value::Array(vec![]))])),
        ]),
    ];
    let names: Vec<String> = (0..values.len()).map(|i| format!("f{i}")).collect();
    let fields = names.iter().zip(&values).map(|(n, v)| (n.as_str(), v.clone())).collect();
    commit(&store, vec![merge("c/a", Precondition::Absent, fields)]).await;
    let read = existing(&store, "c/a").await;
    let found = store.query(&Query::all(collection("c"), 10)).await.unwrap();
    assert_eq!(*found.docs, [Arc::clone(&read)], "a query reads what a get reads");
    for (name, value) in names.iter().zip(&values) {
        assert_eq!(read.value(name), Some(value), "field {name}");
    }
    assert_eq!(read.fields.len(), values.len());
}

pub(super) async fn timestamps_keep_their_microseconds<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    for micros in [
        0,
        1,
        -1,
        999_999,
        -999_999,
        1_700_000_000_123_456,
        -62_135_596_800_000_000,
        253_402_300_799_999_999,
    ] {
        let time = StoreTime::from_micros(micros);
        commit(&store, vec![merge("c/a", Precondition::Any, vec![("at", time)])]).await;
        assert_eq!(existing(&store, "c/a").await.time("at"), Some(time));
    }
}

pub(super) async fn foreign_fields_survive<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let foreign = Value::map([
        ("odd-key.with`dots", Value::from(StoreTime::from_micros(1_234_567_891))),
        ("list", Value::Array(vec![Value::Null, Value::Double(Double(0.5))])),
        ("geo", Value::GeoPoint(Double(1.0), Double(2.0))),
    ]);
    let theirs =
        vec![("foreign", foreign.clone()), ("m", Value::map([("theirs", foreign.clone())]))];
    commit(&store, vec![merge("c/a", Precondition::Any, theirs)]).await;
    for n in 0..3_i64 {
        let ours = vec![("ours", n), ("m.ours", n)];
        commit(&store, vec![merge("c/a", Precondition::Exists, ours)]).await;
    }
    let doc = existing(&store, "c/a").await;
    assert_eq!(doc.value("foreign"), Some(&foreign));
    assert_eq!(doc.value("m.theirs"), Some(&foreign));
    assert_eq!(doc.int("m.ours"), Some(2));
}

pub(super) async fn null_is_not_absent<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    commit(&store, vec![merge("c/a", Precondition::Any, vec![("x", Value::Null)])]).await;
    commit(&store, vec![merge("c/b", Precondition::Any, vec![("y", Value::Null)])]).await;
    assert_eq!(existing(&store, "c/a").await.value("x"), Some(&Value::Null));
    assert_eq!(existing(&store, "c/b").await.value("x"), None);
    let null = Query::all(collection("c"), 10).filter(
        "x".into(),
        backfill_core::doc::Comparison::Equal,
        Value::Null,
    );
    let found = store.query(&null).await.unwrap().docs;
    assert_eq!(found.iter().map(|d| d.path.id()).collect::<Vec<_>>(), ["a"]);
    commit(&store, vec![merge("c/a", Precondition::Any, vec![("x", FieldOp::Remove)])]).await;
    assert_eq!(existing(&store, "c/a").await.value("x"), None);
}

pub(super) async fn nested_fields_are_set_and_removed<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let change = async |changes: Vec<(&str, FieldOp)>| {
        commit(&store, vec![merge("c/a", Precondition::Any, changes)]).await;
        existing(&store, "c/a").await.fields.clone()
    };
    let fields = change(vec![("m.a", 1_i64.into()), ("m.b.c", 2_i64.into())]).await;
    let b = Value::map([("c", Value::Int(2))]);
    assert_eq!(fields, [("m".into(), Value::map([("a", 1_i64.into()), ("b", b)]))].into());

    let fields = change(vec![("m.a", 3_i64.into()), ("m.b.c", FieldOp::Remove)]).await;
    let empty = Value::Map([].into());
    let m = Value::map([("a", 3_i64.into()), ("b", empty.clone())]);
    assert_eq!(fields, [("m".into(), m)].into(), "siblings stay, an emptied map stays");

    let fields = change(vec![("m", Value::map([("z", Value::Int(9))]).into())]).await;
    assert_eq!(fields, [("m".into(), Value::map([("z", Value::Int(9))]))].into());

    let fields = change(vec![("m", 5_i64.into())]).await;
    assert_eq!(fields, [("m".into(), Value::Int(5))].into());

    let fields = change(vec![("m.a", 1_i64.into())]).await;
    assert_eq!(
        fields,
        [("m".into(), Value::map([("a", Value::Int(1))]))].into(),
        "a map takes the place of a value that is none"
    );
    let fields = change(vec![("m", FieldOp::Remove)]).await;
    assert!(fields.is_empty());
}

pub(super) async fn odd_ids_are_ids<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let long = "x".repeat(1_400);
    let ids = [
        "account_prod_0123__[object Object]",
        "49170@s.whatsapp.net",
        "ünï\u{1F600}",
        "#?%25&=+ ;:,'\"\\`*~",
        "...",
        ".x",
        "___",
        "_",
        "\u{1}",
        long.as_str(),
    ];
    let threads = collection("threads");
    let paths: Vec<DocPath> = ids.iter().map(|id| DocPath::new(&threads, id).unwrap()).collect();
    let mut writes = Vec::new();
    for (path, n) in paths.iter().zip(0_i64..) {
        let field = || vec![(FieldPath::new("n"), FieldOp::from(n))];
        writes.push(Write::merge(path.clone(), Precondition::Absent, field()));
        // The whole name of a document has its own limit, which the long id alone nears.
        if path.as_str().len() < 100 {
            let below = DocPath::new(&path.child("messages"), "3EB0~x").unwrap();
            writes.push(Write::merge(below, Precondition::Absent, field()));
        }
    }
    commit(&store, writes).await;
    let snapshot = store.get(&paths).await.unwrap();
    for (n, doc) in (0_i64..).zip(&snapshot.docs) {
        assert_eq!(doc.as_ref().and_then(|d| d.int("n")), Some(n));
    }
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    let found = store.query(&Query::all(threads, 100)).await.unwrap().docs;
    assert_eq!(found.iter().map(|d| d.path.id()).collect::<Vec<_>>(), sorted);
    let below = path("threads/ünï\u{1F600}").child("messages");
    let found = store.query(&Query::all(below, 100)).await.unwrap().docs;
    assert_eq!(found.iter().map(|d| d.int("n")).collect::<Vec<_>>(), [Some(2)]);
}
