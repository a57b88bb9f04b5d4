//! Named values: what a document holds, or a map inside one.

use std::fmt;

use smol_str::SmolStr;

use crate::doc::Value;

/// Named values, ordered by name.
///
/// A sorted list and no tree: documents have some ten fields, are copied whole at every change, and
/// live in stores by the hundred thousand.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fields(Vec<(SmolStr, Value)>);

impl Fields {
    /// No values.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// No values, and room for so many.
    pub fn with_capacity(fields: usize) -> Self {
        Self(Vec::with_capacity(fields))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of this name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.find(name).map(|at| &self.0[at].1)
    }

    /// The value at a dotted path of names.
    pub fn at(&self, path: &str) -> Option<&Value> {
        match path.split_once('.') {
            None => self.get(path),
            Some((name, rest)) => self.get(name)?.as_map()?.at(rest),
        }
    }

    /// The value of this name, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Value> {
        self.find(name).map(|at| &mut self.0[at].1)
    }

    /// The value of this name, to be changed; `value` if there was none.
    pub fn get_or_insert(&mut self, name: SmolStr, value: Value) -> &mut Value {
        let at = self.find(&name).unwrap_or_else(|| {
            let at = self.0.partition_point(|(known, _)| *known < name);
            self.0.insert(at, (name, value));
            at
        });
        &mut self.0[at].1
    }

    /// Whether there is a value of this name.
    pub fn contains_key(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Sets a value, and gives the one it replaces.
    pub fn insert(&mut self, name: SmolStr, value: Value) -> Option<Value> {
        if let Some(known) = self.get_mut(&name) {
            return Some(std::mem::replace(known, value));
        }
        let at = self.0.partition_point(|(known, _)| *known < name);
        self.0.insert(at, (name, value));
        None
    }

    /// Takes a value out.
    pub fn remove(&mut self, name: &str) -> Option<Value> {
        self.find(name).map(|at| self.0.remove(at).1)
    }

    /// Keeps what `keep` wants to be kept.
    pub fn retain(&mut self, mut keep: impl FnMut(&SmolStr, &mut Value) -> bool) {
        self.0.retain_mut(|(name, value)| keep(name, value));
    }

    /// Names and values, in order of name.
    pub fn iter(&self) -> Iter<'_> {
        self.0.iter().map(|(name, value)| (name, value))
    }

    /// The names, in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &SmolStr> + ExactSizeIterator {
        self.0.iter().map(|(name, _)| name)
    }

    /// The values, in order of name.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &Value> + ExactSizeIterator {
        self.0.iter().map(|(_, value)| value)
    }

    /// The values, in order of name, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Value> {
        self.0.iter_mut().map(|(_, value)| value)
    }

    /// Where a name is. Among few names most differ in length already, so that looking at each is
    /// faster than a search.
    fn find(&self, name: &str) -> Option<usize> {
        if self.0.len() <= FEW {
            return self.0.iter().position(|(known, _)| known.as_str() == name);
        }
        self.0.binary_search_by(|(known, _)| known.as_str().cmp(name)).ok()
    }
}

const FEW: usize = 32;
type Iter<'a> = std::iter::Map<
    std::slice::Iter<'a, (SmolStr, Value)>,
    fn(&'a (SmolStr, Value)) -> (&'a SmolStr, &'a Value),
>;

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

/// Of several values of one name the last counts.
impl FromIterator<(SmolStr, Value)> for Fields {
    fn from_iter<I: IntoIterator<Item = (SmolStr, Value)>>(entries: I) -> Self {
        let mut fields: Vec<_> = entries.into_iter().collect();
        fields.sort_by(|(a, _), (b, _)| a.cmp(b));
        fields.dedup_by(|later, first| {
            let same = later.0 == first.0;
            if same {
                std::mem::swap(later, first);
            }
            same
        });
        Self(fields)
    }
}

impl<const N: usize> From<[(SmolStr, Value); N]> for Fields {
    fn from(entries: [(SmolStr, Value); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl Extend<(SmolStr, Value)> for Fields {
    fn extend<I: IntoIterator<Item = (SmolStr, Value)>>(&mut self, entries: I) {
        for (name, value) in entries {
            self.insert(name, value);
        }
    }
}

impl std::ops::Index<&str> for Fields {
    type Output = Value;

    /// # Panics
    /// If there is no value of this name.
    fn index(&self, name: &str) -> &Value {
        self.get(name).expect("there is a value of this name")
    }
}

impl IntoIterator for Fields {
    type Item = (SmolStr, Value);
    type IntoIter = std::vec::IntoIter<(SmolStr, Value)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Fields {
    type Item = (&'a SmolStr, &'a Value);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(entries: &[(&str, i64)]) -> Fields {
        entries.iter().map(|(name, n)| (SmolStr::new(name), Value::Int(*n))).collect()
    }

    #[test]
    fn names_are_in_order_and_the_last_value_of_one_counts() {
        let f = fields(&[("b", 1), ("a", 2), ("b", 3), ("c", 4), ("b", 5)]);
        assert_eq!(f, fields(&[("a", 2), ("b", 5), ("c", 4)]));
        assert_eq!(f.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(format!("{f:?}"), r#"{"a": Int(2), "b": Int(5), "c": Int(4)}"#);
    }

    #[test]
    fn values_are_set_found_and_taken_out_by_name() {
        let mut f = fields(&[("b", 1)]);
        assert_eq!(f.insert("c".into(), Value::Int(2)), None);
        assert_eq!(f.insert("a".into(), Value::Int(3)), None);
        assert_eq!(f.insert("b".into(), Value::Int(4)), Some(Value::Int(1)));
        assert_eq!(f.get_or_insert("b".into(), Value::Null), &Value::Int(4));
        *f.get_or_insert("d".into(), Value::Null) = Value::Int(5);
        assert_eq!(f, fields(&[("a", 3), ("b", 4), ("c", 2), ("d", 5)]));
        assert_eq!((f.at("c"), f.at("c.d"), f.at("x.y")), (Some(&Value::Int(2)), None, None));
        assert_eq!(f.remove("c"), Some(Value::Int(2)));
        assert_eq!((f.remove("c"), f.get("c"), f.contains_key("c")), (None, None, false));
        assert_eq!((f.remove("c"), f.get("c"), f.contains_key("c")), (None, None, false));
        f.values_mut().for_each(|value| *value = Value::Int(value.as_int().unwrap() + 10));
        assert_eq!(f, fields(&[("a", 13), ("b", 14), ("d", 15)]));
        f.retain(|name, _| name == "a");
        assert_eq!((f.len(), f.get("a")), (1, Some(&Value::Int(13))));
        assert_eq!((f.len(), f.get("a")), (1, Some(&Value::Int(13))));
        assert!(f.contains_key("a") && !f.is_empty());
        assert_eq!(f.remove("a"), Some(Value::Int(13)));
        assert_eq!((f.len(), f.is_empty()), (0, true));
    }
}
