//! What is to be done later.

use std::collections::{BTreeMap, BTreeSet};

use crate::time::Mono;

/// At most one moment per key; the earliest is found at once however many there are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Timers<K: Ord> {
    by_time: BTreeSet<(Mono, K)>,
    by_key: BTreeMap<K, Mono>,
}

impl<K: Clone + Ord> Timers<K> {
    pub(crate) fn new() -> Self {
        Self { by_time: BTreeSet::new(), by_key: BTreeMap::new() }
    }

    /// Sets the moment for `key`, instead of any earlier setting.
    pub(crate) fn set(&mut self, key: K, at: Mono) {
        if let Some(old) = self.by_key.insert(key.clone(), at) {
            if old == at {
                return;
            }
            self.by_time.remove(&(old, key.clone()));
        }
        self.by_time.insert((at, key));
    }

    /// Sets the moment for `key` unless an earlier one is set.
    pub(crate) fn set_earliest(&mut self, key: K, at: Mono) {
        if self.by_key.get(&key).is_none_or(|set| *set > at) {
            self.set(key, at);
        }
    }

    pub(crate) fn clear(&mut self, key: &K) {
        if let Some(at) = self.by_key.remove(key) {
            self.by_time.remove(&(at, key.clone()));
        }
    }

    pub(crate) fn at(&self, key: &K) -> Option<Mono> {
        self.by_key.get(key).copied()
    }

    pub(crate) fn is_set(&self, key: &K) -> bool {
        self.by_key.contains_key(key)
    }

    /// Whether the moment of `key` has come.
    pub(crate) fn is_due(&self, key: &K, now: Mono) -> bool {
        self.by_key.get(key).is_some_and(|at| *at <= now)
    }

    pub(crate) fn next(&self) -> Option<(Mono, &K)> {
        self.by_time.first().map(|(at, key)| (*at, key))
    }

    /// Takes out the earliest key whose moment has come.
    pub(crate) fn pop_due(&mut self, now: Mono) -> Option<K> {
        let (at, _) = self.by_time.first()?;
        if *at > now {
            return None;
        }
        let (_, key) = self.by_time.pop_first()?;
        self.by_key.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_moment_and_the_earliest_comes_first() {
        let mut t = Timers::new();
        t.set("a", Mono::from_millis(5));
        t.set("b", Mono::from_millis(3));
        t.set("a", Mono::from_millis(2));
        t.set_earliest("b", Mono::from_millis(4));
        assert_eq!(t.next(), Some((Mono::from_millis(2), &"a")));
        assert_eq!(t.pop_due(Mono::from_millis(1)), None);
        assert_eq!(t.pop_due(Mono::from_millis(9)), Some("a"));
        assert_eq!(t.pop_due(Mono::from_millis(9)), Some("b"));
        assert_eq!(t.pop_due(Mono::from_millis(9)), None);
    }

    #[test]
    fn a_cleared_key_never_comes() {
        let mut t = Timers::new();
        t.set("a", Mono::from_millis(5));
        t.clear(&"a");
        assert_eq!(t.next(), None);
    }

    #[test]
    fn a_moment_has_come_as_soon_as_it_is_reached() {
        let (mut t, [three, four, five]) = (Timers::new(), [3, 4, 5].map(Mono::from_millis));
        t.set("a", five);
        t.set("b", Mono::NEVER);
        assert!(t.is_set(&"a") && !t.is_set(&"c"));
        assert!(!t.is_due(&"a", four) && t.is_due(&"a", five) && !t.is_due(&"b", five));
        assert_eq!((t.pop_due(four), t.pop_due(five)), (None, Some("a")));
        assert!(!t.is_set(&"a") && !t.is_due(&"a", five));
        t.set_earliest("a", four);
        t.set_earliest("a", five);
        assert_eq!(t.at(&"a"), Some(four));
        t.set_earliest("a", three);
        assert_eq!((t.at(&"a"), t.next()), (Some(three), Some((three, &"a"))));
    }
}
