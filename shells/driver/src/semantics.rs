//! What commits and queries mean, for stores without an engine that knows Firestore's rules.
//!
//! The simulated store and SQLite are built on these functions; the contract suite holds
//! Firestore itself against the same meaning. Limits are the strictest of all stores, so that a
//! commit that one of them takes is taken by every other.

use std::cmp::Ordering;
use std::sync::Arc;

use backfill_core::doc::{
    Comparison, Cursor, Direction, DocPath, Document, Double, FieldOp, FieldPath, Fields,
    Precondition, Query, Value, Version, Write, WriteOp,
};
use backfill_core::time::StoreTime;

use crate::port::StoreError;

/// At most this many writes in a commit.
pub const MAX_WRITES: usize = 500;
/// At most this many bytes in a commit, as [`write_size`] counts them.
pub const MAX_COMMIT_BYTES: usize = 4_000_000;
/// At most this many bytes in a document, as [`document_size`] counts them.
pub const MAX_DOCUMENT_BYTES: usize = 1_048_576;
/// At most this many maps and arrays inside one another.
pub const MAX_DEPTH: usize = 20;

/// Checks what can be known about a commit without looking at any document.
///
/// # Errors
/// [`StoreError::Invalid`] with the rule that is broken.
pub fn check_commit(writes: &[Write]) -> Result<(), StoreError> {
    if writes.len() > MAX_WRITES {
        return Err(invalid(format!(
            "a commit has {} writes; at most {MAX_WRITES} are allowed",
            writes.len()
        )));
    }
    let mut bytes = 0;
    for write in writes {
        bytes += write_size(write);
        if let WriteOp::Merge(fields) = &write.op {
            check_merge(fields)?;
        }
    }
    if bytes > MAX_COMMIT_BYTES {
        return Err(invalid(format!(
            "a commit has {bytes} bytes; at most {MAX_COMMIT_BYTES} are allowed"
        )));
    }
    let mut changed: Vec<&DocPath> =
        writes.iter().filter(|w| w.op != WriteOp::Verify).map(|w| &w.path).collect();
    changed.sort_unstable();
    if changed.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(invalid("a commit changes one document twice"));
    }
    Ok(())
}

/// Checks a query.
///
/// # Errors
/// [`StoreError::Invalid`] with the rule that is broken.
pub fn check_query(query: &Query) -> Result<(), StoreError> {
    if query.limit == 0 {
        return Err(invalid("a query asks for no document"));
    }
    let mut unequal = query.filters.iter().filter(|f| f.op != Comparison::Equal);
    if let Some(first) = unequal.next() {
        if unequal.any(|f| f.field != first.field) {
            return Err(invalid("a query has inequalities on two fields"));
        }
        if query.order.first().is_some_and(|(field, _)| *field != first.field) {
            return Err(invalid("the field of an inequality is not the first sort key"));
        }
    }
    let comparable = |f: &backfill_core::doc::Filter| {
        f.op == Comparison::Equal || !matches!(f.value, Value::Null | Value::Map(_))
    };
    if !query.filters.iter().all(comparable) {
        return Err(invalid("an inequality compares with null or a map"));
    }
    if let Some(after) = &query.after
        && after.keys.len() != sort_keys(query).len()
    {
        return Err(invalid("a cursor has another number of keys than the query's order"));
    }
    Ok(())
}

/// The sort keys of a query: its order or, if it has none, the field of its inequality.
pub fn sort_keys(query: &Query) -> Vec<(&FieldPath, Direction)> {
    if !query.order.is_empty() {
        return query.order.iter().map(|(field, direction)| (field, *direction)).collect();
    }
    let unequal = query.filters.iter().find(|f| f.op != Comparison::Equal);
    unequal.map(|f| (&f.field, Direction::Ascending)).into_iter().collect()
}

/// The direction in which a query orders documents whose sort keys are equal, by id.
pub fn id_direction(query: &Query) -> Direction {
    query.order.last().map_or(Direction::Ascending, |(_, direction)| *direction)
}

/// The position of `doc` in the order of `query`; `None` if a sort key is missing from it.
pub fn cursor_at(query: &Query, doc: &Document) -> Option<Cursor> {
    let keys = sort_keys(query)
        .into_iter()
        .map(|(field, _)| field_at(&doc.fields, field).cloned())
        .collect::<Option<_>>()?;
    Some(Cursor { keys, id: doc.path.id().into() })
}

/// Whether a precondition holds for a document with this version, or for none.
pub fn holds(precondition: Precondition, version: Option<Version>) -> bool {
    match precondition {
        Precondition::Any => true,
        Precondition::Absent => version.is_none(),
        Precondition::Exists => version.is_some(),
        Precondition::Version(wanted) => version == Some(wanted),
    }
}

/// The fields of a document after a merge; `None` if the merge changes nothing.
///
/// # Errors
/// [`StoreError::Invalid`] if the document would become too large.
pub fn merged(
    path: &DocPath,
    before: Option<&Fields>,
    changes: &[(FieldPath, FieldOp)],
    commit_time: StoreTime,
) -> Result<Option<Fields>, StoreError> {
    if let Some(fields) = before
        && !changes.iter().any(|(field, op)| changes_field(fields, field, op, commit_time))
    {
        return Ok(None);
    }
    let mut fields = match before {
        Some(fields) => fields.clone(),
        None => Fields::with_capacity(changes.len()),
    };
    for (field, op) in changes {
        match op {
            FieldOp::Remove => remove(&mut fields, field),
            FieldOp::ServerTime => set(&mut fields, field, Value::Timestamp(commit_time)),
            FieldOp::Set(value) => set(&mut fields, field, value.clone()),
        }
    }
    let bytes = document_size(path, &fields);
    if bytes > MAX_DOCUMENT_BYTES {
        return Err(invalid(format!(
            "a document would have {bytes} bytes; at most {MAX_DOCUMENT_BYTES} are allowed"
        )));
    }
    Ok(Some(fields))
}

/// The answer to a query over all documents of its collection, given in the order of their ids.
pub fn find<'a>(
    query: &Query,
    docs: impl DoubleEndedIterator<Item = &'a Arc<Document>>,
) -> Vec<Arc<Document>> {
    let keys = sort_keys(query);
    let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
    let matching = docs.filter(|doc| matches(query, doc));
    let found: Vec<&Arc<Document>> = match keys.split_first() {
        None => {
            let after = |doc: &&Arc<Document>| {
                query.after.as_ref().is_none_or(|after| *after.id < *doc.path.id())
            };
            matching.filter(after).take(limit).collect()
        }
        Some(((first, direction), rest)) => {
            // The first key tells most documents apart; the others are looked up where it does not.
            let place = |doc: &'a Arc<Document>| {
                let key = field_at(&doc.fields, first)?;
                let complete = rest.iter().all(|(field, _)| field_at(&doc.fields, field).is_some());
                (complete && is_after(query, &keys, doc)).then_some((key, doc))
            };
            let mut places: Vec<(&Value, &Arc<Document>)> = match id_direction(query) {
                Direction::Ascending => matching.filter_map(place).collect(),
                Direction::Descending => matching.rev().filter_map(place).collect(),
            };
            // They are in the order of their ids, and stay so where all keys are equal.
            places.sort_by(|(a, doc), (b, other)| {
                directed(compare(a, b), *direction).then_with(|| {
                    let values = |doc: &'a Document| {
                        rest.iter().filter_map(|(field, _)| field_at(&doc.fields, field))
                    };
                    compare_keys(rest, values(doc), values(other))
                })
            });
            places.into_iter().take(limit).map(|(_, doc)| doc).collect()
        }
    };
    match &query.select {
        None => found.into_iter().cloned().collect(),
        Some(select) => found.into_iter().map(|doc| Arc::new(selected(doc, select))).collect(),
    }
}

/// Whether a document satisfies every filter of a query.
pub fn matches(query: &Query, doc: &Document) -> bool {
    query.filters.iter().all(|filter| {
        let Some(value) = field_at(&doc.fields, &filter.field) else { return false };
        if type_rank(value) != type_rank(&filter.value) {
            return false;
        }
        let ordering = compare(value, &filter.value);
        match filter.op {
            Comparison::Equal => ordering.is_eq(),
            Comparison::Greater => ordering.is_gt(),
            Comparison::GreaterOrEqual => ordering.is_ge(),
            Comparison::Less => ordering.is_lt(),
            Comparison::LessOrEqual => ordering.is_le(),
        }
    })
}

/// The document with only the selected fields.
pub fn selected(doc: &Document, select: &[FieldPath]) -> Document {
    let mut fields = Fields::new();
    for field in select {
        if let Some(value) = field_at(&doc.fields, field) {
            set(&mut fields, field, value.clone());
        }
    }
    let (path, version, update_time) = (doc.path.clone(), doc.version, doc.update_time);
    Document { path, fields, version, update_time }
}

/// The value at a field path.
pub fn field_at<'a>(fields: &'a Fields, field: &FieldPath) -> Option<&'a Value> {
    fields.at(field.as_str())
}

/// Firestore's order of values: first by type, then by value; integers and doubles are one type.
pub fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Int(a), Value::Int(b)) => a.cmp(b),
        (Value::Int(a), Value::Double(b)) => compare_numbers(*a, *b),
        (Value::Double(a), Value::Int(b)) => compare_numbers(*b, *a).reverse(),
        (Value::Double(a), Value::Double(b)) => compare_doubles(*a, *b),
        (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
        (Value::Reference(a), Value::Reference(b)) => a.split('/').cmp(b.split('/')),
        (Value::GeoPoint(a, b), Value::GeoPoint(c, d)) => {
            compare_doubles(*a, *c).then_with(|| compare_doubles(*b, *d))
        }
        (Value::Array(a), Value::Array(b)) => {
            let differing = a.iter().zip(b).map(|(a, b)| compare(a, b)).find(|o| o.is_ne());
            differing.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (Value::Map(a), Value::Map(b)) => {
            let differing = a
                .iter()
                .zip(b)
                .map(|((ka, va), (kb, vb))| ka.cmp(kb).then_with(|| compare(va, vb)))
                .find(|o| o.is_ne());
            differing.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        _ => type_rank(a).cmp(&type_rank(b)),
    }
}

/// The size of a document, counted as Firestore counts it.
pub fn document_size(path: &DocPath, fields: &Fields) -> usize {
    16 + path.as_str().len() + 1 + 32 + fields_size(fields)
}

/// About how many bytes a write takes in a request; an upper bound for documents like ours.
pub fn write_size(write: &Write) -> usize {
    let fields = match &write.op {
        WriteOp::Delete | WriteOp::Verify => 0,
        WriteOp::Merge(fields) => fields
            .iter()
            .map(|(field, op)| {
                let value = if let FieldOp::Set(value) = op { value_size(value) } else { 12 };
                2 * field.as_str().len() + value + 12
            })
            .sum(),
    };
    150 + write.path.as_str().len() + fields
}

fn check_merge(fields: &[(FieldPath, FieldOp)]) -> Result<(), StoreError> {
    let mut names: Vec<&str> = Vec::with_capacity(fields.len());
    for (field, op) in fields {
        names.push(field.as_str());
        let mut depth = 0;
        for segment in field.segments() {
            check_key(segment)?;
            depth += 1;
        }
        if let FieldOp::Set(value) = op {
            check_value(value, depth)?;
        }
    }
    names.sort_unstable();
    let overlap =
        |a: &str, b: &str| b.strip_prefix(a).is_some_and(|s| s.is_empty() || s.starts_with('.'));
    // A dot sorts before every character of an identifier, so parent and child are neighbours.
    if names.windows(2).any(|pair| overlap(pair[0], pair[1])) {
        return Err(invalid("a merge names a field twice, or a map and a field inside it"));
    }
    Ok(())
}

fn check_value(value: &Value, depth: usize) -> Result<(), StoreError> {
    match value {
        Value::Array(items) => {
            check_depth(depth)?;
            for item in items {
                if matches!(item, Value::Array(_)) {
                    return Err(invalid("an array contains an array"));
                }
                check_value(item, depth + 1)?;
            }
        }
        Value::Map(fields) => {
            check_depth(depth)?;
            for (key, value) in fields {
                check_key(key)?;
                check_value(value, depth + 1)?;
            }
        }
        Value::Timestamp(t) if !TIMESTAMPS.contains(&t.as_micros()) => {
            return Err(invalid("a timestamp lies outside the years 1 to 9999"));
        }
        _ => {}
    }
    Ok(())
}

/// 0001-01-01T00:00:00Z to 9999-12-31T23:59:59.999999Z, in microseconds.
const TIMESTAMPS: std::ops::RangeInclusive<i64> = -62_135_596_800_000_000..=253_402_300_799_999_999;

fn check_depth(depth: usize) -> Result<(), StoreError> {
    if depth > MAX_DEPTH {
        return Err(invalid(format!("values are nested deeper than {MAX_DEPTH} levels")));
    }
    Ok(())
}

fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > 1_500 {
        return Err(invalid("a field name is empty or longer than 1500 bytes"));
    }
    if key.len() >= 4 && key.starts_with("__") && key.ends_with("__") {
        return Err(invalid("a field name has the reserved form `__…__`"));
    }
    Ok(())
}

fn invalid(reason: impl Into<String>) -> StoreError {
    StoreError::Invalid { reason: reason.into() }
}

fn changes_field(fields: &Fields, field: &FieldPath, op: &FieldOp, now: StoreTime) -> bool {
    let current = field_at(fields, field);
    match op {
        FieldOp::Remove => current.is_some(),
        FieldOp::ServerTime => current != Some(&Value::Timestamp(now)),
        FieldOp::Set(value) => current != Some(value),
    }
}

fn set(fields: &mut Fields, field: &FieldPath, value: Value) {
    let Some((parents, last)) = field.as_str().rsplit_once('.') else {
        fields.insert(field.text(), value);
        return;
    };
    let mut fields = fields;
    for parent in parents.split('.') {
        let slot = fields.get_or_insert(parent.into(), Value::Null);
        if slot.as_map().is_none() {
            *slot = Value::Map(Fields::new());
        }
        let Value::Map(inner) = slot else { return };
        fields = inner;
    }
    fields.insert(last.into(), value);
}

fn remove(fields: &mut Fields, field: &FieldPath) {
    let (parents, last) = match field.as_str().rsplit_once('.') {
        None => (None, field.as_str()),
        Some((parents, last)) => (Some(parents), last),
    };
    let mut fields = fields;
    for parent in parents.into_iter().flat_map(|p| p.split('.')) {
        let Some(Value::Map(inner)) = fields.get_mut(parent) else { return };
        fields = inner;
    }
    fields.remove(last);
}

/// Whether a document comes after the position from which the query goes on.
fn is_after(query: &Query, keys: &[(&FieldPath, Direction)], doc: &Document) -> bool {
    query.after.as_ref().is_none_or(|after| {
        let values = keys.iter().filter_map(|(field, _)| field_at(&doc.fields, field));
        let id = || directed(doc.path.id().cmp(&after.id), id_direction(query));
        compare_keys(keys, values, after.keys.iter()).then_with(id).is_gt()
    })
}

/// The order of two documents, of each of which the values of the sort keys are given.
fn compare_keys<'a>(
    keys: &[(&FieldPath, Direction)],
    values: impl Iterator<Item = &'a Value>,
    others: impl Iterator<Item = &'a Value>,
) -> Ordering {
    let orderings = keys.iter().zip(values.zip(others));
    let mut orderings = orderings.map(|((_, to), (a, b))| directed(compare(a, b), *to));
    orderings.find(|ordering| ordering.is_ne()).unwrap_or(Ordering::Equal)
}

fn directed(ordering: Ordering, direction: Direction) -> Ordering {
    match direction {
        Direction::Ascending => ordering,
        Direction::Descending => ordering.reverse(),
    }
}

fn type_rank(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Int(_) | Value::Double(_) => 2,
        Value::Timestamp(_) => 3,
        Value::String(_) => 4,
        Value::Bytes(_) => 5,
        Value::Reference(_) => 6,
        Value::GeoPoint(..) => 7,
        Value::Array(_) => 8,
        Value::Map(_) => 9,
    }
}

/// NaN comes before every other number; the two zeros are equal.
fn compare_doubles(a: Double, b: Double) -> Ordering {
    match (a.0.is_nan(), b.0.is_nan()) {
        (false, false) => a.0.partial_cmp(&b.0).unwrap_or(Ordering::Equal),
        (a, b) => b.cmp(&a),
    }
}

/// Compares exactly: an integer beyond 2^53 is not rounded.
fn compare_numbers(int: i64, double: Double) -> Ordering {
    let d = double.0;
    if d.is_nan() {
        return Ordering::Greater;
    }
    // 2^63 is the first double that no integer reaches.
    if d >= 9_223_372_036_854_775_808.0 {
        return Ordering::Less;
    }
    if d < -9_223_372_036_854_775_808.0 {
        return Ordering::Greater;
    }
    let whole = d.trunc();
    int.cmp(&(whole as i64)).then_with(|| whole.partial_cmp(&d).unwrap_or(Ordering::Equal))
}

fn fields_size(fields: &Fields) -> usize {
    fields.iter().map(|(key, value)| key.len() + 1 + value_size(value)).sum()
}

fn value_size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 1,
        Value::Int(_) | Value::Double(_) | Value::Timestamp(_) => 8,
        Value::String(s) => s.len() + 1,
        Value::Bytes(b) => b.len(),
        Value::Reference(r) => 16 + r.len() + 1,
        Value::GeoPoint(..) => 16,
        Value::Array(items) => items.iter().map(value_size).sum(),
        Value::Map(fields) => 32 + fields_size(fields),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_touches_the_named_fields_only() {
        let path = DocPath::parse("a/b").unwrap();
        let before: Fields = [
            ("foreign".into(), Value::Int(1)),
            ("m".into(), Value::map([("x", Value::Int(1)), ("y", Value::Int(2))])),
        ]
        .into();
        let changes = [
            ("m.x".into(), FieldOp::from(5_i64)),
            ("m.y".into(), FieldOp::Remove),
            ("at".into(), FieldOp::ServerTime),
        ];
        let now = StoreTime::from_secs(7);
        let after = merged(&path, Some(&before), &changes, now).unwrap().unwrap();
        let expected: Fields = [
            ("at".into(), Value::Timestamp(now)),
            ("foreign".into(), Value::Int(1)),
            ("m".into(), Value::map([("x", Value::Int(5))])),
        ]
        .into();
        assert_eq!(after, expected);
        assert_eq!(merged(&path, Some(&after), &changes, now).unwrap(), None);
    }

    #[test]
    fn overlapping_fields_are_refused_wherever_they_stand() {
        let merge = |names: &[&'static str]| {
            let path = DocPath::parse("a/b").unwrap();
            let fields = names.iter().map(|n| (FieldPath::new(n), FieldOp::Remove)).collect();
            check_commit(&[Write::merge(path, Precondition::Any, fields)]).is_err()
        };
        assert!(merge(&["a.b", "a1", "a"]));
        assert!(merge(&["a", "a"]));
        assert!(!merge(&["a.b", "a.c", "a_b", "a1"]));
    }

    #[test]
    fn what_is_found_is_in_the_order_of_all_keys_and_goes_on_after_a_cursor() {
        let docs = [("a", 1, 2), ("b", 1, 1), ("c", 2, 1), ("d", 1, 2), ("f", 0, 5)];
        let doc = |(id, x, y): (&str, i64, i64)| {
            let path = DocPath::parse(format!("q/{id}")).unwrap();
            let fields = [("x".into(), Value::Int(x)), ("y".into(), Value::Int(y))].into();
            Arc::new(Document { path, fields, version: Version(1), update_time: StoreTime::EPOCH })
        };
        let mut docs: Vec<Arc<Document>> = docs.into_iter().map(doc).collect();
        let mut incomplete = Document::clone(&docs[0]);
        incomplete.path = DocPath::parse("q/e").unwrap();
        incomplete.fields.remove("y");
        docs.insert(4, Arc::new(incomplete));
        let found = |query: &Query| -> Vec<Arc<Document>> { find(query, docs.iter()) };
        let ids = |found: &[Arc<Document>]| found.iter().map(|d| d.path.id()).collect::<String>();
        let all = Query::all(backfill_core::doc::CollectionPath::root("q"), 9);
        for (x, y, order) in [
            (Direction::Descending, Direction::Ascending, "cbadf"),
            (Direction::Ascending, Direction::Descending, "fdabc"),
        ] {
            let query = all.clone().order_by("x".into(), x).order_by("y".into(), y);
            assert_eq!(ids(&found(&query)), order);
            for (n, last) in found(&query).iter().enumerate() {
                let after = cursor_at(&query, last);
                let rest = found(&Query { after, ..query.clone() });
                assert_eq!(ids(&rest), order[n + 1..]);
                let limit = n as u32 + 1;
                assert_eq!(ids(&found(&Query { limit, ..query.clone() })), order[..=n]);
            }
        }
    }

    #[test]
    fn numbers_compare_exactly_across_types() {
        let int = Value::Int;
        let double = |d| Value::Double(Double(d));
        let big = 9_007_199_254_740_993;
        assert_eq!(compare(&int(big), &double(9_007_199_254_740_992.0)), Ordering::Greater);
        assert_eq!(compare(&int(3), &double(3.0)), Ordering::Equal);
        assert_eq!(compare(&int(-3), &double(-3.5)), Ordering::Greater);
        assert_eq!(compare(&int(3), &double(3.5)), Ordering::Less);
        assert_eq!(compare(&int(i64::MIN), &double(f64::NAN)), Ordering::Greater);
        assert_eq!(compare(&int(i64::MAX), &double(f64::INFINITY)), Ordering::Less);
        assert_eq!(compare(&double(0.0), &double(-0.0)), Ordering::Equal);
    }
}
