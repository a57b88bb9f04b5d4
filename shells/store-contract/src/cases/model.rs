//! Random histories: the store under test answers as the simulated store does, whatever is asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use backfill_core::doc::{
    Comparison, Direction, DocPath, Document, Double, FieldOp, FieldPath, Precondition, Query,
    Value, Version, Write,
};
use backfill_core::time::StoreTime;
use backfill_driver::port::{Store, StoreError};
use backfill_driver::semantics::cursor_at;
use sim::store::SimStore;

use super::{collection, path};
use crate::Fixture;

const HISTORIES: u64 = 8;
const STEPS: u32 = 80;
/// Names and fields are those of real queries, so that a store's indexes take part.
const COLLECTIONS: [&str; 2] = ["threads", "threads/1/messages"];

pub(super) async fn random_histories_match_the_simulated_store<F: Fixture>(
    fixture: F,
    space: String,
) {
    for seed in 0..HISTORIES {
        let store = fixture.open(&format!("{space}-{seed}")).await;
        let mut pair = Pair { store, model: SimStore::new(), versions: BTreeMap::new() };
        let mut draw = Draw(seed);
        for step in 0..STEPS {
            let at = format!("seed {seed}, step {step}");
            match draw.below(10) {
                0..=5 => pair.commit(draw.writes(step), &at, &mut draw).await,
                6..=7 => pair.query(draw.query(&pair.model), &at).await,
                _ => pair.get(&at).await,
            }
        }
        pair.get(&format!("seed {seed}, end")).await;
    }
}

/// A store and its model.
struct Pair<S> {
    store: S,
    model: SimStore,
    /// Per document the model's versions and what the store calls them
    versions: BTreeMap<DocPath, BTreeMap<Version, Version>>,
}

impl<S: Store> Pair<S> {
    async fn commit(&mut self, mut writes: Vec<Write>, at: &str, draw: &mut Draw) {
        for write in &mut writes {
            if let Precondition::Version(_) = write.precondition {
                let current = self.model.document(&write.path).map(|doc| doc.version);
                let any = self.versions.get(&write.path).into_iter().flat_map(BTreeMap::keys);
                let any = draw.pick(&any.copied().collect::<Vec<_>>());
                // Mostly the document's own version, sometimes one that it once had.
                write.precondition = match (current, any) {
                    (Some(v), _) if draw.below(4) > 0 => Precondition::Version(v),
                    (_, Some(v)) => Precondition::Version(v),
                    _ => Precondition::Exists,
                };
            }
        }
        let mut theirs = writes.clone();
        for write in &mut theirs {
            if let Precondition::Version(v) = &mut write.precondition {
                *v = self.versions[&write.path][v];
            }
        }
        let expected = self.model.commit(StoreTime::EPOCH, &writes);
        match (self.store.commit(theirs).await, expected) {
            (Ok(theirs), Ok(ours)) => {
                for (index, write) in writes.iter().enumerate() {
                    if let (Some(ours), Some(theirs)) =
                        (ours.versions[index], theirs.versions[index])
                    {
                        let known = self.versions.entry(write.path.clone()).or_default();
                        let known = known.insert(ours, theirs);
                        assert!(known.is_none_or(|v| v == theirs), "{at}: {write:?}");
                    }
                }
            }
            (Err(StoreError::Conflict(_)), Err(StoreError::Conflict(_)))
            | (Err(StoreError::Invalid { .. }), Err(StoreError::Invalid { .. })) => {}
            (theirs, ours) => panic!("{at}: {theirs:?} instead of {ours:?} to {writes:?}"),
        }
    }

    async fn get(&self, at: &str) {
        let paths = every_path();
        let theirs = self.store.get(&paths).await.expect("a read succeeds").docs;
        for (path, theirs) in paths.iter().zip(theirs) {
            let ours = self.model.document(path);
            self.assert_same(ours, theirs.as_ref(), at);
        }
    }

    async fn query(&self, query: Query, at: &str) {
        let ours = self.model.query(StoreTime::EPOCH, &query).expect("a drawn query is valid");
        let theirs = self.store.query(&query).await.expect("a query is answered");
        let ids = |docs: &[Arc<Document>]| {
            docs.iter().map(|d| d.path.id().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(ids(&theirs.docs), ids(&ours.docs), "{at}: {query:?}");
        for (ours, theirs) in ours.docs.iter().zip(&theirs.docs) {
            self.assert_same(Some(ours), Some(theirs), at);
        }
    }

    fn assert_same(&self, ours: Option<&Arc<Document>>, theirs: Option<&Arc<Document>>, at: &str) {
        let ours = ours.map(|d| (&d.path, &d.fields, Some(&d.version)));
        let theirs = theirs.map(|d| (&d.path, &d.fields, Some(&d.version)));
        let renamed = ours.map(|(path, fields, v)| {
            (path, fields, v.and_then(|v| self.versions.get(path)?.get(v)))
        });
        assert_eq!(theirs, renamed, "{at}");
    }
}

/// A splitmix64 stream.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let n = u64::try_from(n).expect("a usize fits");
        usize::try_from((z ^ (z >> 31)) % n).expect("less than a usize")
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len())].clone()) }
    }

    fn writes(&mut self, step: u32) -> Vec<Write> {
        let mut paths = every_path();
        let count = 1 + self.below(4);
        let mut writes = Vec::new();
        for _ in 0..count {
            let path = paths.swap_remove(self.below(paths.len()));
            let precondition = match self.below(6) {
                0 => Precondition::Absent,
                1 => Precondition::Exists,
                2 | 3 => Precondition::Version(Version(0)),
                _ => Precondition::Any,
            };
            writes.push(match self.below(8) {
                0 => Write::delete(path, precondition),
                1 => Write::verify(path, precondition),
                _ => Write::merge(path, precondition, self.changes(step)),
            });
        }
        writes
    }

    fn changes(&mut self, step: u32) -> Vec<(FieldPath, FieldOp)> {
        // The beat makes every merge a change, so that no version depends on no-op writes.
        let mut changes = vec![("beat".into(), FieldOp::from(step))];
        let fields: &[&[&'static str]] = &[
            &["accountId"],
            &["accountId", "lastMessageAt"],
            &["lastMessageAt", "tsClient"],
            &["m.x", "m.y"],
            &["m"],
            &["m.x", "tsClient"],
            &["m.n.x", "lastMessageAt"],
        ];
        for field in self.pick(fields).unwrap_or_default() {
            let op = if self.below(5) == 0 { FieldOp::Remove } else { self.value().into() };
            changes.push((FieldPath::new(field), op));
        }
        changes
    }

    fn value(&mut self) -> Value {
        let n = i64::try_from(self.below(3)).expect("small");
        match self.below(9) {
            0 => Value::Null,
            1 => Value::Bool(n == 0),
            2 | 3 => Value::Int(n),
            4 => Value::Double(Double(0.5 * (n + 1) as f64)),
            5 => StoreTime::from_micros(n).into(),
            6 => ["", "a", "ü"][self.below(3)].into(),
            7 => Value::Array(vec![n.into(), Value::Null]),
            _ => Value::map([("x", Value::Int(n))]),
        }
    }

    fn query(&mut self, model: &SimStore) -> Query {
        let name = COLLECTIONS[self.below(2)];
        let limit = u32::try_from(1 + self.below(6)).expect("small");
        let mut query = Query::all(collection(name), limit);
        let fields = ["accountId", "lastMessageAt", "tsClient", "m.x"].map(FieldPath::new);
        let field = fields[self.below(4)].clone();
        let directions = [Direction::Ascending, Direction::Descending];
        if self.below(2) == 0 {
            let value = self.value();
            query = query.filter(fields[self.below(2)].clone(), Comparison::Equal, value);
        }
        let unequal = [Comparison::Greater, Comparison::LessOrEqual];
        if self.below(3) == 0 {
            let value = Value::from(i64::try_from(self.below(3)).expect("small"));
            query = query.filter(field.clone(), unequal[self.below(2)], value);
        }
        if self.below(2) == 0 {
            query = query.order_by(field, directions[self.below(2)]);
            if self.below(2) == 0 {
                query = query.order_by("beat".into(), directions[self.below(2)]);
            }
        }
        let start = self.pick(&model.collection(name).cloned().collect::<Vec<_>>());
        if let Some(start) = start
            && self.below(3) == 0
        {
            query.after = cursor_at(&query, &start);
        }
        if self.below(4) == 0 {
            query = query.select(["accountId".into(), "m.x".into()]);
        }
        query
    }
}

fn every_path() -> Vec<DocPath> {
    let ids = ["1", "2", "3", "4", "a", "b"];
    let of = |collection: &str| ids.map(|id| path(&format!("{collection}/{id}")));
    COLLECTIONS.map(of).concat()
}
