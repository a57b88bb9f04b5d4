use backfill_core::doc::{FieldOp, Precondition, Value, Version, Write};
use backfill_driver::port::{Store, StoreError};

use super::{commit, existing, merge, path, put, read, refused, written};
use crate::Fixture;

pub(super) async fn merges_obey_preconditions<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    refused(&store, merge("c/a", Precondition::Exists, vec![("n", 1_i64)])).await;
    refused(&store, merge("c/a", Precondition::Version(Version(1)), vec![("n", 1_i64)])).await;
    assert_eq!(read(&store, "c/a").await, None);

    let first = commit(&store, vec![merge("c/a", Precondition::Absent, vec![("n", 1_i64)])]).await;
    refused(&store, merge("c/a", Precondition::Absent, vec![("n", 2_i64)])).await;
    let doc = existing(&store, "c/a").await;
    assert_eq!(doc.version, written(&first, 0));
    assert_eq!(doc.int("n"), Some(1));

    commit(&store, vec![merge("c/a", Precondition::Exists, vec![("n", 2_i64)])]).await;
    let stale = Precondition::Version(doc.version);
    refused(&store, merge("c/a", stale, vec![("n", 3_i64)])).await;
    let doc = existing(&store, "c/a").await;
    assert_eq!(doc.int("n"), Some(2));
    commit(&store, vec![merge("c/a", Precondition::Version(doc.version), vec![("n", 3_i64)])])
        .await;
    commit(&store, vec![merge("c/a", Precondition::Any, vec![("n", 4_i64)])]).await;
    assert_eq!(existing(&store, "c/a").await.int("n"), Some(4));
}

pub(super) async fn deletes_obey_preconditions<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    refused(&store, Write::delete(path("c/a"), Precondition::Exists)).await;
    commit(&store, vec![Write::delete(path("c/a"), Precondition::Any)]).await;
    commit(&store, vec![Write::delete(path("c/a"), Precondition::Absent)]).await;
    let first = written(&commit(&store, vec![put("c/a", 1)]).await, 0);
    let second = written(&commit(&store, vec![put("c/a", 2)]).await, 0);
    refused(&store, Write::delete(path("c/a"), Precondition::Absent)).await;
    refused(&store, Write::delete(path("c/a"), Precondition::Version(first))).await;
    assert_eq!(existing(&store, "c/a").await.version, second);
    let gone =
        commit(&store, vec![Write::delete(path("c/a"), Precondition::Version(second))]).await;
    assert_eq!(gone.versions, [None]);
    assert_eq!(read(&store, "c/a").await, None);
}

pub(super) async fn a_verify_checks_and_changes_nothing<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let lease = || path("c/lease");
    commit(&store, vec![Write::verify(lease(), Precondition::Absent)]).await;
    commit(&store, vec![Write::verify(lease(), Precondition::Any)]).await;
    assert_eq!(read(&store, "c/lease").await, None, "a verify creates nothing");
    refused(&store, Write::verify(lease(), Precondition::Exists)).await;
    refused(&store, Write::verify(lease(), Precondition::Version(Version(1)))).await;

    let held = written(&commit(&store, vec![put("c/lease", 1)]).await, 0);
    let before = existing(&store, "c/lease").await;
    for (n, precondition) in [Precondition::Version(held), Precondition::Exists, Precondition::Any]
        .into_iter()
        .enumerate()
    {
        let n = i64::try_from(n).unwrap();
        let fenced = vec![put("c/data", n), Write::verify(lease(), precondition)];
        let committed = commit(&store, fenced).await;
        assert_eq!(committed.versions.len(), 2);
        assert!(committed.versions[1].is_none_or(|v| v == held));
        assert_eq!(existing(&store, "c/lease").await, before, "a verify moves nothing");
        assert_eq!(existing(&store, "c/data").await.int("n"), Some(n));
    }

    let guarded = vec![
        Write::verify(lease(), Precondition::Version(held)),
        merge("c/lease", Precondition::Version(held), vec![("n", 2_i64)]),
        Write::verify(lease(), Precondition::Exists),
    ];
    let moved = written(&commit(&store, guarded).await, 1);
    assert_ne!(moved, held);
    for precondition in [Precondition::Version(held), Precondition::Absent] {
        let late = vec![put("c/data", 99), Write::verify(lease(), precondition)];
        assert!(matches!(store.commit(late).await, Err(StoreError::Conflict(_))));
    }
    assert_eq!(existing(&store, "c/data").await.int("n"), Some(2));
}

pub(super) async fn a_failed_precondition_undoes_the_whole_commit<F: Fixture>(
    fixture: F,
    space: String,
) {
    let store = fixture.open(&space).await;
    commit(&store, vec![put("c/a", 1), put("c/b", 1)]).await;
    for failing in 0..4 {
        let mut writes = vec![put("c/a", 2), Write::delete(path("c/b"), Precondition::Any)];
        writes.push(put("c/new", 2));
        writes.insert(failing, merge("c/fence", Precondition::Exists, vec![("n", 2_i64)]));
        assert!(matches!(store.commit(writes).await, Err(StoreError::Conflict(_))));
    }
    assert_eq!(existing(&store, "c/a").await.int("n"), Some(1));
    assert_eq!(existing(&store, "c/b").await.int("n"), Some(1));
    assert_eq!(read(&store, "c/new").await, None);
    assert_eq!(read(&store, "c/fence").await, None);
}

pub(super) async fn several_documents_are_written_at_once<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    commit(&store, vec![put("c/gone", 1)]).await;
    let committed = commit(
        &store,
        vec![
            put("c/a", 1),
            Write::delete(path("c/gone"), Precondition::Exists),
            put("c/a/d/b", 2),
            merge::<i64>("c/empty", Precondition::Absent, vec![]),
        ],
    )
    .await;
    assert_eq!(committed.versions[1], None);
    let paths = [path("c/a"), path("c/gone"), path("c/a/d/b"), path("c/empty")];
    let snapshot = store.get(&paths).await.unwrap();
    for (index, doc) in snapshot.docs.iter().enumerate() {
        assert_eq!(doc.as_ref().map(|d| d.version), committed.versions[index]);
        if let Some(doc) = doc {
            assert_eq!(doc.update_time, committed.commit_time);
            assert_eq!(doc.path, paths[index]);
        }
    }
    assert_eq!(existing(&store, "c/empty").await.fields.len(), 0);
}

pub(super) async fn an_empty_commit_is_applied<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let committed = commit(&store, vec![]).await;
    assert_eq!(committed.versions, []);
    let before = store.get(&[]).await.unwrap();
    assert_eq!(before.docs, []);
    assert!(before.read_time >= committed.commit_time);
}

pub(super) async fn server_time_is_the_time_of_the_commit<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let before = store.get(&[path("c/a")]).await.unwrap().read_time;
    let stamped = merge("c/a", Precondition::Any, vec![("at", FieldOp::ServerTime)]);
    let nested = merge("c/b", Precondition::Any, vec![("m.at", FieldOp::ServerTime)]);
    let committed = commit(&store, vec![stamped, nested]).await;
    let after = store.get(&[path("c/a"), path("c/b")]).await.unwrap();
    assert!(before <= committed.commit_time);
    assert!(committed.commit_time <= after.read_time);
    for (doc, field) in after.docs.iter().zip(["at", "m.at"]) {
        let doc = doc.as_ref().unwrap();
        assert_eq!(doc.update_time, committed.commit_time);
        let stamp = doc.time(field).expect("a timestamp");
        let apart = stamp.as_micros().abs_diff(committed.commit_time.as_micros());
        assert!(apart < 1_000_000, "{apart} us between the field and the commit");
    }
}

pub(super) async fn a_merge_leaves_other_fields_alone<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    commit(&store, vec![merge("c/a", Precondition::Any, vec![("kept", 1_i64), ("gone", 2_i64)])])
        .await;
    let changes = vec![
        ("gone", FieldOp::Remove),
        ("never_there", FieldOp::Remove),
        ("new", FieldOp::from("x")),
    ];
    let committed = commit(&store, vec![merge("c/a", Precondition::Exists, changes)]).await;
    let doc = existing(&store, "c/a").await;
    assert_eq!(doc.version, written(&committed, 0));
    let expected = [("kept".into(), Value::Int(1)), ("new".into(), "x".into())].into();
    assert_eq!(doc.fields, expected);

    let all = vec![("kept", FieldOp::Remove), ("new", FieldOp::Remove)];
    commit(&store, vec![merge("c/a", Precondition::Exists, all)]).await;
    assert_eq!(existing(&store, "c/a").await.fields.len(), 0, "empty, not gone");
}

pub(super) async fn a_no_op_write_is_applied<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let first = commit(&store, vec![put("c/a", 1)]).await;
    let held = Precondition::Version(written(&first, 0));
    let again = commit(&store, vec![merge("c/a", held, vec![("n", 1_i64)])]).await;
    // Whether the version moved is nobody's business; that it is the document's is.
    let doc = existing(&store, "c/a").await;
    assert_eq!(doc.version, written(&again, 0));
    assert!(again.commit_time >= first.commit_time);
    commit(&store, vec![merge("c/a", Precondition::Version(doc.version), vec![("n", 2_i64)])])
        .await;
    assert_eq!(existing(&store, "c/a").await.int("n"), Some(2));
}

pub(super) async fn versions_are_never_reused<F: Fixture>(fixture: F, space: String) {
    let store = fixture.open(&space).await;
    let mut seen = std::collections::BTreeSet::new();
    let mut last_time = None;
    for n in 0..20 {
        let committed = commit(&store, vec![put("c/a", n % 2)]).await;
        assert!(seen.insert(written(&committed, 0)), "a version came twice");
        assert!(last_time <= Some(committed.commit_time));
        last_time = Some(committed.commit_time);
        if n % 3 == 0 {
            commit(&store, vec![Write::delete(path("c/a"), Precondition::Exists)]).await;
        }
    }
    let current = existing(&store, "c/a").await.version;
    for version in seen.into_iter().filter(|v| *v != current) {
        let stale = Precondition::Version(version);
        refused(&store, merge("c/a", stale, vec![("n", 77_i64)])).await;
    }
}
