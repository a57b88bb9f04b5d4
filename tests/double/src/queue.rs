//! Stanzas that a companion has not yet confirmed.

use std::collections::BTreeMap;

use wacore_binary::Node;

use crate::stanza::attribute;

/// What the server owes one companion, in order. An entry leaves only when it is confirmed, so a
/// new connection gets all that an earlier one did not confirm.
#[derive(Default)]
pub(crate) struct Queue {
    /// By sequence number
    entries: BTreeMap<u64, Node>,
    /// Sequence numbers by stanza id, which need not be unique
    by_id: BTreeMap<String, Vec<u64>>,
    /// The next sequence number to give out
    next: u64,
    /// Everything below this was written to the current connection
    written: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, stanza: Node) {
        let id = attribute(&stanza, "id").unwrap_or_default();
        self.by_id.entry(id).or_default().push(self.next);
        self.entries.insert(self.next, stanza);
        self.next += 1;
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.entries.values().filter_map(|stanza| attribute(stanza, "id")).collect()
    }

    /// Up to `limit` stanzas that were not written to the current connection; they count as written
    /// now.
    pub(crate) fn take_unwritten(&mut self, limit: usize) -> Vec<Node> {
        let taken: Vec<_> = self.entries.range(self.written..).take(limit).collect();
        let stanzas = taken.iter().map(|(_, stanza)| (*stanza).clone()).collect();
        self.written = taken.last().map_or(self.next, |(sequence, _)| **sequence + 1);
        stanzas
    }

    pub(crate) fn has_unwritten(&self) -> bool {
        self.entries.range(self.written..).next().is_some()
    }

    /// Starts over, as a new connection does.
    pub(crate) fn rewind(&mut self) {
        self.written = 0;
    }

    /// Removes the stanzas with this id that `confirmed` accepts.
    pub(crate) fn confirm(&mut self, id: &str, confirmed: impl Fn(&Node) -> bool) {
        let Some(sequences) = self.by_id.get_mut(id) else { return };
        sequences.retain(|sequence| {
            let keep = !confirmed(&self.entries[sequence]);
            if !keep {
                self.entries.remove(sequence);
            }
            keep
        });
        if sequences.is_empty() {
            self.by_id.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wacore_binary::builder::NodeBuilder;

    fn queue(ids: &[&str]) -> Queue {
        let mut queue = Queue::default();
        for (number, id) in ids.iter().enumerate() {
            queue.push(NodeBuilder::new("message").attr("id", *id).attr("n", number).build());
        }
        queue
    }

    fn numbers(nodes: &[Node]) -> Vec<String> {
        nodes.iter().filter_map(|node| attribute(node, "n")).collect()
    }

    #[test]
    fn a_new_connection_gets_what_was_not_confirmed() {
        let mut queue = queue(&["a", "b", "c"]);
        assert_eq!(queue.take_unwritten(10).len(), 3);
        assert!(!queue.has_unwritten());
        queue.confirm("b", |_| true);
        queue.rewind();
        assert_eq!(numbers(&queue.take_unwritten(10)), ["0", "2"]);
        assert_eq!(queue.ids(), ["a", "c"]);
    }

    #[test]
    fn batches_keep_the_order() {
        let mut queue = queue(&["a", "b", "c"]);
        assert_eq!(numbers(&queue.take_unwritten(2)), ["0", "1"]);
        queue.push(NodeBuilder::new("message").attr("id", "d").attr("n", 3).build());
        assert_eq!(numbers(&queue.take_unwritten(2)), ["2", "3"]);
        assert!(queue.take_unwritten(2).is_empty());
    }

    #[test]
    fn equal_ids_are_told_apart() {
        let mut queue = queue(&["same", "same"]);
        queue.confirm("same", |node| attribute(node, "n").as_deref() == Some("1"));
        assert_eq!(numbers(&queue.take_unwritten(9)), ["0"]);
        queue.confirm("other", |_| true);
        queue.confirm("same", |_| true);
        assert_eq!(queue.len(), 0);
    }
}
