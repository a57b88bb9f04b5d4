//! Stanzas that a companion has not yet confirmed.

use std::collections::VecDeque;

use wacore_binary::Node;

use crate::server::ConnectionId;
use crate::stanza::attribute;

/// What the server owes one companion, in order. An entry leaves only when it is confirmed, so a
/// new connection gets all that an earlier one did not confirm.
#[derive(Default)]
pub(crate) struct Queue {
    entries: VecDeque<Entry>,
}

pub(crate) struct Entry {
    pub(crate) stanza: Node,
    /// The connection it was last written to
    pub(crate) sent_on: Option<ConnectionId>,
}

impl Queue {
    pub(crate) fn push(&mut self, stanza: Node) {
        self.entries.push_back(Entry { stanza, sent_on: None });
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.entries.iter().filter_map(|entry| attribute(&entry.stanza, "id")).collect()
    }

    /// Up to `limit` stanzas that were not written to this connection; they count as written now.
    pub(crate) fn take_unsent(&mut self, connection: ConnectionId, limit: usize) -> Vec<Node> {
        self.entries
            .iter_mut()
            .filter(|entry| entry.sent_on != Some(connection))
            .take(limit)
            .map(|entry| {
                entry.sent_on = Some(connection);
                entry.stanza.clone()
            })
            .collect()
    }

    pub(crate) fn has_unsent(&self, connection: ConnectionId) -> bool {
        self.entries.iter().any(|entry| entry.sent_on != Some(connection))
    }

    /// Forgets on which connection things were written, so that they are written again.
    pub(crate) fn rewind(&mut self) {
        for entry in &mut self.entries {
            entry.sent_on = None;
        }
    }

    /// Removes the stanzas that `confirmed` accepts; returns how many.
    pub(crate) fn confirm(&mut self, confirmed: impl Fn(&Node) -> bool) -> usize {
        let before = self.entries.len();
        self.entries.retain(|entry| !confirmed(&entry.stanza));
        before - self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wacore_binary::builder::NodeBuilder;

    fn queue(ids: &[&str]) -> Queue {
        let mut queue = Queue::default();
        for id in ids {
            queue.push(NodeBuilder::new("message").attr("id", *id).build());
        }
        queue
    }

    fn id(node: &Node) -> String {
        attribute(node, "id").unwrap()
    }

    #[test]
    fn a_new_connection_gets_what_was_not_confirmed() {
        let mut queue = queue(&["a", "b", "c"]);
        let (first, second) = (ConnectionId(1), ConnectionId(2));
        assert_eq!(queue.take_unsent(first, 10).len(), 3);
        assert!(!queue.has_unsent(first));
        assert_eq!(queue.confirm(|node| id(node) == "b"), 1);

        let again: Vec<_> = queue.take_unsent(second, 10).iter().map(id).collect();
        assert_eq!(again, ["a", "c"]);
    }

    #[test]
    fn batches_keep_the_order() {
        let mut queue = queue(&["a", "b", "c"]);
        let connection = ConnectionId(1);
        let ids = |nodes: Vec<Node>| nodes.iter().map(id).collect::<Vec<_>>();
        assert_eq!(ids(queue.take_unsent(connection, 2)), ["a", "b"]);
        assert_eq!(ids(queue.take_unsent(connection, 2)), ["c"]);
        queue.rewind();
        assert_eq!(ids(queue.take_unsent(connection, 9)), ["a", "b", "c"]);
    }
}
