//! The document model: what a store must be able to hold and do.
//!
//! It is the common part of Firestore and SQLite. A document has fields, a [`Version`] for
//! compare-and-set and the store's time of its last change. Compare-and-set inside an atomic
//! commit is the only synchronisation primitive the core asks for.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use smol_str::SmolStr;

pub use crate::fields::Fields;
use crate::time::StoreTime;

/// A field value, in the types Firestore knows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Value {
    /// Present, and nothing; not the same as an absent field
    Null,
    /// True or false
    Bool(bool),
    /// A 64-bit signed integer
    Int(i64),
    /// An IEEE double, compared by its bits
    Double(Double),
    /// A moment, to the microsecond
    Timestamp(StoreTime),
    /// Unicode text
    String(SmolStr),
    /// Raw bytes
    Bytes(Arc<[u8]>),
    /// The full name of another document; kept for foreign fields, never made by the core
    Reference(SmolStr),
    /// Latitude and longitude; kept for foreign fields, never made by the core
    GeoPoint(Double, Double),
    /// An ordered list
    Array(Vec<Self>),
    /// Named values
    Map(Fields),
}

impl Value {
    /// The text, if it is a string.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(s) = self { Some(s) } else { None }
    }

    /// The number, if it is an integer.
    pub fn as_int(&self) -> Option<i64> {
        if let Self::Int(n) = self { Some(*n) } else { None }
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(b) = self { Some(*b) } else { None }
    }

    /// The moment, if it is a timestamp.
    pub fn as_time(&self) -> Option<StoreTime> {
        if let Self::Timestamp(t) = self { Some(*t) } else { None }
    }

    /// The named values, if it is a map.
    pub fn as_map(&self) -> Option<&Fields> {
        if let Self::Map(m) = self { Some(m) } else { None }
    }

    /// The list, if it is one.
    pub fn as_array(&self) -> Option<&[Self]> {
        if let Self::Array(a) = self { Some(a) } else { None }
    }

    /// A map from its entries.
    pub fn map<K: Into<SmolStr>>(entries: impl IntoIterator<Item = (K, Self)>) -> Self {
        Self::Map(entries.into_iter().map(|(k, v)| (k.into(), v)).collect())
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Self::Bool(b)
    }
}

impl From<i64> for Value {
    fn from(n: i64) -> Self {
        Self::Int(n)
    }
}

impl From<u32> for Value {
    fn from(n: u32) -> Self {
        Self::Int(i64::from(n))
    }
}

/// Counters in documents are integers; one beyond `i64::MAX` is stored as `i64::MAX`.
impl From<u64> for Value {
    fn from(n: u64) -> Self {
        Self::Int(i64::try_from(n).unwrap_or(i64::MAX))
    }
}

impl From<StoreTime> for Value {
    fn from(t: StoreTime) -> Self {
        Self::Timestamp(t)
    }
}

impl From<&str> for Value {
    fn from(s: &str) -> Self {
        Self::String(s.into())
    }
}

impl From<SmolStr> for Value {
    fn from(s: SmolStr) -> Self {
        Self::String(s)
    }
}

impl From<String> for Value {
    fn from(s: String) -> Self {
        Self::String(s.into())
    }
}

/// `None` becomes an explicit [`Value::Null`].
impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(v: Option<T>) -> Self {
        v.map_or(Self::Null, Into::into)
    }
}

/// A double that can be a key: equality, order and hash go by IEEE total order.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Double(pub f64);

impl PartialEq for Double {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Double {}

impl PartialOrd for Double {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Double {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl std::hash::Hash for Double {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

/// Where a document lies: collection and id in turn, `accounts/a1/leases/connection`.
///
/// Always an even number of segments; none is empty, `.`, `..`, of the form `__…__`, or longer
/// than 1,500 bytes (Firestore's rules, which every store shares).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DocPath(SmolStr);

impl DocPath {
    /// Parses a path.
    ///
    /// # Errors
    /// [`PathError`] says which rule the path breaks.
    pub fn parse(path: impl Into<SmolStr>) -> Result<Self, PathError> {
        let path = path.into();
        let mut segments = 0;
        for segment in path.split('/') {
            segment_rules(segment)?;
            segments += 1;
        }
        if segments % 2 != 0 {
            return Err(PathError::OddSegments { segments });
        }
        Ok(Self(path))
    }

    /// The document `id` in `collection`.
    ///
    /// # Errors
    /// [`PathError`] if `id` cannot be a document id, for instance because it contains `/`.
    pub fn new(collection: &CollectionPath, id: &str) -> Result<Self, PathError> {
        id_rules(id)?;
        Ok(Self([collection.as_str(), "/", id].concat().into()))
    }

    /// The whole path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment.
    pub fn id(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The collection that holds the document.
    pub fn collection(&self) -> CollectionPath {
        let cut = self.0.rfind('/').unwrap_or(0);
        CollectionPath(SmolStr::new(&self.0[..cut]))
    }

    /// A collection below this document.
    pub fn child(&self, name: &'static str) -> CollectionPath {
        CollectionPath([self.as_str(), "/", name].concat().into())
    }
}

impl Borrow<str> for DocPath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DocPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DocPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A collection of documents: `accounts`, `threads/t1/messages`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CollectionPath(SmolStr);

impl CollectionPath {
    /// A top-level collection.
    pub const fn root(name: &'static str) -> Self {
        Self(SmolStr::new_static(name))
    }

    /// Parses a path.
    ///
    /// # Errors
    /// [`PathError`] says which rule the path breaks; the number of segments must be odd.
    pub fn parse(path: impl Into<SmolStr>) -> Result<Self, PathError> {
        let path = path.into();
        let mut segments = 0;
        for segment in path.split('/') {
            segment_rules(segment)?;
            segments += 1;
        }
        if segments % 2 == 0 {
            return Err(PathError::EvenSegments { segments });
        }
        Ok(Self(path))
    }

    /// The whole path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment: the collection's own name.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

impl fmt::Display for CollectionPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CollectionPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A segment is empty
    #[error("a path segment is empty")]
    Empty,
    /// A collection path has an even number of segments
    #[error("a collection path needs an odd number of segments, this one has {segments}")]
    EvenSegments {
        /// How many it has
        segments: usize,
    },
    /// A segment is too long
    #[error("a path segment has {bytes} bytes; at most 1500 are allowed")]
    Long {
        /// How many bytes it has
        bytes: usize,
    },
    /// A document path has an odd number of segments
    #[error("a document path needs an even number of segments, this one has {segments}")]
    OddSegments {
        /// How many it has
        segments: usize,
    },
    /// A segment is `.`, `..` or `__…__`
    #[error("`.`, `..` and `__…__` are reserved and cannot be path segments")]
    Reserved,
    /// An id contains a slash
    #[error("an id cannot contain `/`")]
    Slash,
}

/// Names a field, or with dots a field inside a map: `lastAutoBackfillStatus.running`.
///
/// Every segment is an identifier (`[A-Za-z_][A-Za-z0-9_]*`), so that no store has to quote it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldPath(SmolStr);

impl FieldPath {
    /// A path known at compile time.
    ///
    /// # Panics
    /// If a segment is not an identifier; in a `const` that is a compile-time error.
    pub const fn new(path: &'static str) -> Self {
        assert!(is_field_path(path.as_bytes()), "not a dotted path of identifiers");
        Self(SmolStr::new_static(path))
    }

    /// Parses a path made at run time.
    pub fn parse(path: &str) -> Option<Self> {
        is_field_path(path.as_bytes()).then(|| Self(path.into()))
    }

    /// The whole path, with dots.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The whole path, as shared text.
    pub fn text(&self) -> SmolStr {
        self.0.clone()
    }

    /// The segments, outermost first.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }
}

impl From<&'static str> for FieldPath {
    /// # Panics
    /// If a segment is not an identifier: field names in code are literals.
    fn from(path: &'static str) -> Self {
        Self::new(path)
    }
}

impl fmt::Debug for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Identifies one state of one document; opaque, never reused, in no known relation to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Version(pub i64);

/// A document as a store returned it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Document {
    /// Where it lies
    pub path: DocPath,
    /// Its fields; after a query with a selection only the selected ones
    pub fields: Fields,
    /// For compare-and-set; unchanged by a write that changes nothing
    pub version: Version,
    /// The store's time of the last change
    pub update_time: StoreTime,
}

impl Document {
    /// The value at `name`, which may be a dotted path.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.fields.at(name)
    }

    /// The text at `name`; `None` also if it has another type.
    pub fn str(&self, name: &str) -> Option<&str> {
        self.value(name)?.as_str()
    }

    /// The integer at `name`; `None` also if it has another type.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.value(name)?.as_int()
    }

    /// The non-negative integer at `name`; `None` also if it has another type or sign.
    pub fn count(&self, name: &str) -> Option<u64> {
        u64::try_from(self.int(name)?).ok()
    }

    /// The truth value at `name`; `None` also if it has another type.
    pub fn bool(&self, name: &str) -> Option<bool> {
        self.value(name)?.as_bool()
    }

    /// The moment at `name`; `None` also if it has another type.
    pub fn time(&self, name: &str) -> Option<StoreTime> {
        self.value(name)?.as_time()
    }
}

/// What must hold for a commit to be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Precondition {
    /// Nothing: the write always applies
    Any,
    /// The document does not exist
    Absent,
    /// The document exists
    Exists,
    /// The document exists and has this version
    Version(Version),
}

impl Precondition {
    /// The state just read: its version, or its absence.
    pub fn unchanged(doc: Option<&Document>) -> Self {
        doc.map_or(Self::Absent, |d| Self::Version(d.version))
    }
}

/// One write of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// The document
    pub path: DocPath,
    /// What must hold; if any precondition of a commit fails, nothing of it is applied
    pub precondition: Precondition,
    /// What to do
    pub op: WriteOp,
}

impl Write {
    /// Sets the given fields and leaves every other one alone; creates the document if need be.
    pub fn merge(
        path: DocPath,
        precondition: Precondition,
        fields: Vec<(FieldPath, FieldOp)>,
    ) -> Self {
        Self { path, precondition, op: WriteOp::Merge(fields) }
    }

    /// Checks the precondition and changes nothing, not even the version: the fence.
    pub fn verify(path: DocPath, precondition: Precondition) -> Self {
        Self { path, precondition, op: WriteOp::Verify }
    }

    /// Removes the document; that it does not exist is no error.
    pub fn delete(path: DocPath, precondition: Precondition) -> Self {
        Self { path, precondition, op: WriteOp::Delete }
    }
}

/// What a write does to its document.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WriteOp {
    /// Remove it
    Delete,
    /// Change the named fields, leave the others alone
    Merge(Vec<(FieldPath, FieldOp)>),
    /// Only check the precondition
    Verify,
}

/// What a merge does to one field.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FieldOp {
    /// Take the field away
    Remove,
    /// Set it to the store's time of the commit, possibly truncated to the millisecond
    ServerTime,
    /// Set it to a value; a map replaces the whole map
    Set(Value),
}

impl<T: Into<Value>> From<T> for FieldOp {
    fn from(v: T) -> Self {
        Self::Set(v.into())
    }
}

/// A question for the documents of one collection.
///
/// Documents that lack a field named in `filters` or `order` are not found. The document id is the
/// last sort key, in the direction of the one before it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Query {
    /// Which collection
    pub collection: CollectionPath,
    /// All must match; a comparison matches only values of the same type
    pub filters: Vec<Filter>,
    /// Sort keys, most significant first; without any, by document id ascending
    pub order: Vec<(FieldPath, Direction)>,
    /// Start after this position
    pub after: Option<Cursor>,
    /// At most this many documents
    pub limit: u32,
    /// Only these fields are wanted; `None` wants all, an empty list none
    pub select: Option<Vec<FieldPath>>,
}

impl Query {
    /// All documents of a collection, at most `limit`.
    pub fn all(collection: CollectionPath, limit: u32) -> Self {
        Self {
            collection,
            filters: Vec::new(),
            order: Vec::new(),
            after: None,
            limit,
            select: None,
        }
    }

    /// Adds a condition.
    #[must_use]
    pub fn filter(mut self, field: FieldPath, op: Comparison, value: impl Into<Value>) -> Self {
        self.filters.push(Filter { field, op, value: value.into() });
        self
    }

    /// Adds a less significant sort key.
    #[must_use]
    pub fn order_by(mut self, field: FieldPath, direction: Direction) -> Self {
        self.order.push((field, direction));
        self
    }

    /// Asks for these fields only.
    #[must_use]
    pub fn select(mut self, fields: impl IntoIterator<Item = FieldPath>) -> Self {
        self.select = Some(fields.into_iter().collect());
        self
    }
}

/// One condition of a query.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Filter {
    /// The field that is looked at
    pub field: FieldPath,
    /// How it is compared
    pub op: Comparison,
    /// What it is compared with
    pub value: Value,
}

/// How a query compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Comparison {
    /// Equal
    Equal,
    /// The field is greater than the value
    Greater,
    /// The field is greater than the value or equal
    GreaterOrEqual,
    /// The field is less than the value
    Less,
    /// The field is less than the value or equal
    LessOrEqual,
}

/// Which end of a sort order comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Smallest first
    Ascending,
    /// Greatest first
    Descending,
}

/// A position in a query's order: the sort keys of a document and its id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// One value per sort key of the query
    pub keys: Vec<Value>,
    /// The document's id
    pub id: SmolStr,
}

/// What may be the id of a document.
pub(crate) fn id_rules(id: &str) -> Result<(), PathError> {
    segment_rules(id)?;
    if id.contains('/') { Err(PathError::Slash) } else { Ok(()) }
}

fn segment_rules(segment: &str) -> Result<(), PathError> {
    if segment.is_empty() {
        return Err(PathError::Empty);
    }
    if segment.len() > 1_500 {
        return Err(PathError::Long { bytes: segment.len() });
    }
    let dunder = segment.len() >= 4 && segment.starts_with("__") && segment.ends_with("__");
    if segment == "." || segment == ".." || dunder {
        return Err(PathError::Reserved);
    }
    Ok(())
}

const fn is_field_path(path: &[u8]) -> bool {
    let mut i = 0;
    let mut at_start = true;
    while i < path.len() {
        let b = path[i];
        let letter = b.is_ascii_alphabetic() || b == b'_';
        match (at_start, b) {
            (true, _) if letter => at_start = false,
            (false, b'.') => at_start = true,
            (false, _) if letter || b.is_ascii_digit() => {}
            _ => return false,
        }
        i += 1;
    }
    !at_start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_paths_alternate_collection_and_id() {
        let p = DocPath::parse("accounts/a1/leases/connection").unwrap();
        assert_eq!(p.id(), "connection");
        assert_eq!(p.collection().as_str(), "accounts/a1/leases");
        assert_eq!(p.collection().name(), "leases");
        assert_eq!(DocPath::parse("accounts"), Err(PathError::OddSegments { segments: 1 }));
        assert_eq!(DocPath::parse("accounts//x/y"), Err(PathError::Empty));
        assert_eq!(DocPath::parse(""), Err(PathError::Empty));
        assert_eq!(CollectionPath::parse("accounts/a1/leases").unwrap(), p.collection());
        assert_eq!(CollectionPath::parse("a/b"), Err(PathError::EvenSegments { segments: 2 }));
        assert_eq!(
            (p.to_string(), p.collection().to_string()),
            (p.as_str().into(), "accounts/a1/leases".into())
        );
    }

    #[test]
    fn odd_ids_are_refused_and_unusual_ones_are_not() {
        let c = CollectionPath::root("threads");
        assert_eq!(DocPath::new(&c, "a/b"), Err(PathError::Slash));
        assert_eq!(DocPath::new(&c, ".."), Err(PathError::Reserved));
        assert_eq!(DocPath::new(&c, "__x__"), Err(PathError::Reserved));
        assert_eq!(DocPath::new(&c, &"x".repeat(1_501)), Err(PathError::Long { bytes: 1_501 }));
        let longest = "x".repeat(1_500);
        for id in ["a__[object Object]", "ü#?%", "___", "a b", &longest] {
            assert_eq!(DocPath::new(&c, id).unwrap().id(), id);
        }
    }

    #[test]
    fn field_paths_are_dotted_identifiers() {
        for good in ["a", "_a1", "status.running", "a.b.c"] {
            assert_eq!(FieldPath::parse(good).unwrap().as_str(), good);
            let path = FieldPath::parse(good).unwrap();
            assert_eq!(path.as_str(), good);
            assert_eq!(path.segments().collect::<Vec<_>>().join("."), good);
        }
        for bad in ["", ".", "a.", ".a", "a..b", "1a", "a-b", "a b", "ä"] {
            assert_eq!(FieldPath::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn doubles_are_keys_even_where_numbers_are_not() {
        let keys = [f64::NEG_INFINITY, -0.0, 0.0, 1.5, f64::NAN].map(Double);
        assert!(keys.is_sorted_by(|a, b| a < b));
        for (i, a) in keys.iter().enumerate() {
            for (j, b) in keys.iter().enumerate() {
                assert_eq!(a == b, i == j, "{a:?} {b:?}");
            }
        }
        let unlike: std::collections::BTreeSet<u64> = keys
            .iter()
            .map(|key| {
                use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
                BuildHasherDefault::<DefaultHasher>::default().hash_one(key)
            })
            .collect();
        assert_eq!(unlike.len(), keys.len());
    }

    #[test]
    fn values_are_read_by_type_and_by_path() {
        let doc = Document {
            path: DocPath::parse("a/b").unwrap(),
            fields: [("m".into(), Value::map([("n", Value::Int(-1))]))].into(),
            version: Version(1),
            update_time: StoreTime::EPOCH,
        };
        assert_eq!(doc.int("m.n"), Some(-1));
        assert_eq!(doc.count("m.n"), None);
        assert_eq!(doc.str("m.n"), None);
        assert_eq!(doc.int("m.n.o"), None);
        assert_eq!(doc.int("x"), None);
    }
}
