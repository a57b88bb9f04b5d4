//! Gets and queries, on connections that only read.

use std::sync::Arc;

use backfill_core::doc::{
    Comparison, Direction, DocPath, Document, FieldPath, Filter, Query, Value, Version,
};
use backfill_core::time::StoreTime;
use backfill_driver::port::{Found, Snapshot};
use backfill_driver::semantics::{find, id_direction, matches, selected, sort_keys};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::clock::Clock;
use crate::failure::damaged;
use crate::schema::INDEXES;
use crate::{codec, key};

/// Reads documents by path.
pub(crate) fn get(db: &Connection, clock: &Clock, paths: &[DocPath]) -> rusqlite::Result<Snapshot> {
    let tx = db.unchecked_transaction()?;
    let read_time = read_time(&tx, clock)?;
    let mut statement = tx.prepare_cached(
        "SELECT d.name, d.version, d.update_time, d.fields FROM documents d \
         JOIN collections c ON c.id = d.collection WHERE c.path = ? AND d.name = ?",
    )?;
    let mut docs = Vec::with_capacity(paths.len());
    for path in paths {
        let collection = path.collection();
        let doc = statement
            .query_row([collection.as_str(), path.id()], |row| document(row, path.clone()))
            .optional()?;
        docs.push(doc.map(Arc::new));
    }
    Ok(Snapshot { read_time, docs })
}

/// Answers a query, from an index if there is one for it.
pub(crate) fn query(db: &Connection, clock: &Clock, query: &Query) -> rusqlite::Result<Found> {
    let tx = db.unchecked_transaction()?;
    let read_time = read_time(&tx, clock)?;
    let collection: Option<i64> = tx
        .prepare_cached("SELECT id FROM collections WHERE path = ?")?
        .query_row([query.collection.as_str()], |row| row.get(0))
        .optional()?;
    let docs = match (collection, Plan::new(query)) {
        (None, _) => Vec::new(),
        (Some(collection), Some(plan)) => plan.run(&tx, collection, query)?,
        (Some(collection), None) => scan(&tx, collection, query)?,
    };
    Ok(Found { read_time, docs })
}

/// The time of a transaction's snapshot. Reading it takes the snapshot, so that whatever this
/// transaction will see was committed no later.
fn read_time(db: &Connection, clock: &Clock) -> rusqlite::Result<StoreTime> {
    let last: i64 =
        db.prepare_cached("SELECT last_commit FROM state")?.query_row([], |row| row.get(0))?;
    Ok(clock.now().max(StoreTime::from_micros(last)))
}

/// A stretch of an index that holds exactly what a query asks for, in its order.
struct Plan {
    index: i64,
    /// From here
    low: Vec<u8>,
    /// To here, exclusive
    high: Vec<u8>,
    direction: Direction,
}

impl Plan {
    fn new(query: &Query) -> Option<Self> {
        let keys = sort_keys(query);
        let direction = id_direction(query);
        if keys.iter().any(|(_, d)| *d != direction) {
            return None;
        }
        let equal: Vec<&Filter> =
            query.filters.iter().filter(|f| f.op == Comparison::Equal).collect();
        let serves = |name: &str, fields: &[FieldPath]| {
            let (first, rest) = fields.split_at_checked(equal.len())?;
            let ordered = rest.iter().eq(keys.iter().map(|(field, _)| *field));
            let filter = |field: &FieldPath| equal.iter().find(|f| f.field == *field);
            let values: Option<Vec<&Value>> =
                first.iter().map(|field| filter(field).map(|f| &f.value)).collect();
            values.filter(|_| ordered && name == query.collection.name())
        };
        let (index, values) = (0_i64..)
            .zip(&INDEXES)
            .find_map(|(index, (name, fields))| Some((index, serves(name, fields)?)))?;

        let mut prefix = Vec::with_capacity(64);
        for value in values {
            key::push(&mut prefix, value);
        }
        let with = |value: &Value, above: bool| {
            let mut bound = prefix.clone();
            key::push(&mut bound, value);
            bound.extend(above.then_some(key::ABOVE));
            bound
        };
        let (mut low, mut high) = (prefix.clone(), prefix.clone());
        high.push(key::ABOVE);
        for filter in query.filters.iter().filter(|f| f.op != Comparison::Equal) {
            // A comparison finds values of its own type only.
            let rank = key::rank(&filter.value);
            let (first, past) =
                ([prefix.as_slice(), &[rank]].concat(), [prefix.as_slice(), &[rank + 1]].concat());
            let (from, to) = match filter.op {
                Comparison::Equal => continue,
                Comparison::Greater => (with(&filter.value, true), past),
                Comparison::GreaterOrEqual => (with(&filter.value, false), past),
                Comparison::Less => (first, with(&filter.value, false)),
                Comparison::LessOrEqual => (first, with(&filter.value, true)),
            };
            low = low.max(from);
            high = high.min(to);
        }
        if let Some(after) = &query.after {
            let mut position = prefix;
            for value in &after.keys {
                key::push(&mut position, value);
            }
            position.extend(after.id.as_bytes());
            match direction {
                Direction::Ascending => {
                    // The least key behind the position.
                    position.push(0);
                    low = low.max(position);
                }
                Direction::Descending => high = high.min(position),
            }
        }
        Some(Self { index, low, high, direction })
    }

    fn run(
        &self,
        db: &Connection,
        collection: i64,
        query: &Query,
    ) -> rusqlite::Result<Vec<Arc<Document>>> {
        let sql = match self.direction {
            Direction::Ascending => {
                "SELECT d.name, d.version, d.update_time, d.fields FROM entries e \
                 JOIN documents d ON d.id = e.document \
                 WHERE e.field_index = ? AND e.collection = ? AND e.key >= ? AND e.key < ? \
                 ORDER BY e.key LIMIT ?"
            }
            Direction::Descending => {
                "SELECT d.name, d.version, d.update_time, d.fields FROM entries e \
                 JOIN documents d ON d.id = e.document \
                 WHERE e.field_index = ? AND e.collection = ? AND e.key >= ? AND e.key < ? \
                 ORDER BY e.key DESC LIMIT ?"
            }
        };
        let mut statement = db.prepare_cached(sql)?;
        let bounds = params![self.index, collection, self.low, self.high, query.limit];
        let mut rows = statement.query(bounds)?;
        let mut docs = Vec::new();
        while let Some(row) = rows.next()? {
            let doc = named_document(row, query)?;
            docs.push(Arc::new(match &query.select {
                None => doc,
                Some(select) => selected(&doc, select),
            }));
        }
        Ok(docs)
    }
}

/// Looks at every document of the collection, as far as it must.
fn scan(db: &Connection, collection: i64, query: &Query) -> rusqlite::Result<Vec<Arc<Document>>> {
    let by_id = sort_keys(query).is_empty();
    let start = query.after.as_ref().filter(|_| by_id).map_or("", |after| after.id.as_str());
    let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
    let mut statement = db.prepare_cached(
        "SELECT name, version, update_time, fields FROM documents \
         WHERE collection = ? AND name > ? ORDER BY name",
    )?;
    let mut rows = statement.query(params![collection, start])?;
    let mut docs = Vec::new();
    while let Some(row) = rows.next()? {
        let doc = named_document(row, query)?;
        if matches(query, &doc) {
            docs.push(Arc::new(doc));
        }
        if by_id && docs.len() == limit {
            break;
        }
    }
    Ok(find(query, docs.iter()))
}

fn named_document(row: &Row<'_>, query: &Query) -> rusqlite::Result<Document> {
    let name = row.get_ref(0)?.as_str()?;
    let path = DocPath::new(&query.collection, name).map_err(|_| damaged())?;
    document(row, path)
}

fn document(row: &Row<'_>, path: DocPath) -> rusqlite::Result<Document> {
    Ok(Document {
        path,
        fields: codec::decode(row.get_ref(3)?.as_blob()?).ok_or_else(damaged)?,
        version: Version(row.get(1)?),
        update_time: StoreTime::from_micros(row.get(2)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use backfill_core::doc::CollectionPath;

    #[test]
    fn the_queries_of_the_inbox_use_an_index() {
        let inbox = || {
            Query::all(CollectionPath::root("threads"), 50)
                .filter("accountId".into(), Comparison::Equal, "a")
                .order_by("lastMessageAt".into(), Direction::Descending)
        };
        let outbox = || {
            Query::all(CollectionPath::root("outbox"), 50)
                .filter("status".into(), Comparison::Equal, "queued")
                .filter("nextAttemptAt".into(), Comparison::LessOrEqual, StoreTime::EPOCH)
        };
        let chat = Query::all(CollectionPath::parse("threads/t/messages").unwrap(), 50)
            .order_by("tsClient".into(), Direction::Descending);
        let indexed = |query: Query| Plan::new(&query).map(|plan| plan.index);
        assert_eq!(indexed(chat), Some(0));
        assert_eq!(indexed(outbox()), Some(1));
        assert_eq!(
            indexed(outbox().order_by("nextAttemptAt".into(), Direction::Ascending)),
            Some(1)
        );
        assert_eq!(indexed(inbox()), Some(2));
        assert_eq!(indexed(inbox().filter("isLid".into(), Comparison::Equal, true)), Some(3));
        assert_eq!(indexed(inbox().filter("other".into(), Comparison::Equal, true)), None);
        assert_eq!(indexed(Query::all(CollectionPath::root("outbox"), 50)), None);
    }
}
