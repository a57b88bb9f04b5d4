//! Faults on the way between the server and its clients.

use std::fmt;
use std::time::Duration;

use wacore_binary::{Node, NodeContent};

/// Something that goes wrong with stanzas on one direction of the wire.
///
/// A fault applies to the next stanza that matches, once, unless [`times`](Self::times) or
/// [`always`](Self::always) says otherwise. Of several matching faults the oldest applies.
pub struct Fault {
    side: Side,
    tag: &'static str,
    matches: Option<Matcher>,
    effect: Effect,
    remaining: Option<u32>,
}

type Matcher = Box<dyn Fn(&Node) -> bool + Send>;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    FromClient,
    ToClient,
}

#[derive(Clone, Copy)]
pub(crate) enum Effect {
    /// Flip a bit in each encrypted part
    Corrupt,
    /// Break the connection instead of delivering
    Cut,
    /// Deliver that much later; what follows overtakes it
    Delay(Duration),
    Drop,
    /// Deliver twice in a row
    Duplicate,
}

impl Fault {
    /// Damages the ciphertexts of the next `<message>` to a client.
    pub fn corrupt_message() -> Self {
        Self::new(Side::ToClient, "message", Effect::Corrupt)
    }

    /// Breaks the connection when the client sends a stanza, which is lost.
    pub fn cut_from_client(tag: &'static str) -> Self {
        Self::new(Side::FromClient, tag, Effect::Cut)
    }

    /// Breaks the connection instead of delivering a stanza to the client.
    pub fn cut_to_client(tag: &'static str) -> Self {
        Self::new(Side::ToClient, tag, Effect::Cut)
    }

    /// Delivers a stanza to the client later than those that follow it.
    pub fn delay_to_client(tag: &'static str, by: Duration) -> Self {
        Self::new(Side::ToClient, tag, Effect::Delay(by))
    }

    /// Loses a stanza that the client sent.
    pub fn drop_from_client(tag: &'static str) -> Self {
        Self::new(Side::FromClient, tag, Effect::Drop)
    }

    /// Loses a stanza on its way to the client.
    pub fn drop_to_client(tag: &'static str) -> Self {
        Self::new(Side::ToClient, tag, Effect::Drop)
    }

    /// Processes a stanza of the client as if it had been sent twice.
    pub fn duplicate_from_client(tag: &'static str) -> Self {
        Self::new(Side::FromClient, tag, Effect::Duplicate)
    }

    /// Delivers a stanza to the client twice.
    pub fn duplicate_to_client(tag: &'static str) -> Self {
        Self::new(Side::ToClient, tag, Effect::Duplicate)
    }

    /// Keeps the fault in place for ever.
    pub fn always(mut self) -> Self {
        self.remaining = None;
        self
    }

    /// Applies the fault to the next `count` matching stanzas.
    pub fn times(mut self, count: u32) -> Self {
        self.remaining = Some(count);
        self
    }

    /// Narrows the fault to stanzas that satisfy `condition`.
    pub fn when(mut self, condition: impl Fn(&Node) -> bool + Send + 'static) -> Self {
        self.matches = Some(Box::new(condition));
        self
    }

    fn new(side: Side, tag: &'static str, effect: Effect) -> Self {
        Self { side, tag, matches: None, effect, remaining: Some(1) }
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault").field("tag", &self.tag).finish_non_exhaustive()
    }
}

/// The faults in place
#[derive(Default)]
pub(crate) struct Faults {
    list: Vec<Fault>,
}

impl Faults {
    pub(crate) fn add(&mut self, fault: Fault) {
        self.list.push(fault);
    }

    pub(crate) fn clear(&mut self) {
        self.list.clear();
    }

    /// What happens to this stanza; uses up one application of the fault.
    pub(crate) fn strike(&mut self, side: Side, node: &Node) -> Option<Effect> {
        let index = self.list.iter().position(|fault| {
            fault.side == side
                && fault.remaining != Some(0)
                && node.tag == fault.tag
                && fault.matches.as_ref().is_none_or(|matches| matches(node))
        })?;
        let fault = &mut self.list[index];
        if let Some(remaining) = &mut fault.remaining {
            *remaining -= 1;
        }
        let effect = fault.effect;
        self.list.retain(|fault| fault.remaining != Some(0));
        Some(effect)
    }
}

/// The stanza with a bit flipped in every ciphertext.
pub(crate) fn corrupted(node: &Node) -> Node {
    let mut node = node.clone();
    if let Some(NodeContent::Nodes(children)) = &mut node.content {
        for child in children.iter_mut().filter(|child| child.tag == "enc") {
            if let Some(NodeContent::Bytes(bytes)) = &mut child.content
                && let Some(last) = bytes.last_mut()
            {
                *last ^= 1;
            }
        }
    }
    node
}

#[cfg(test)]
mod tests {
    use super::*;
    use wacore_binary::builder::NodeBuilder;

    #[test]
    fn a_fault_wears_off() {
        let mut faults = Faults::default();
        let message = NodeBuilder::new("message").attr("id", "1").build();
        faults.add(Fault::drop_to_client("message").times(2));
        assert!(faults.strike(Side::FromClient, &message).is_none());
        assert!(faults.strike(Side::ToClient, &message).is_some());
        assert!(faults.strike(Side::ToClient, &message).is_some());
        assert!(faults.strike(Side::ToClient, &message).is_none());
    }

    #[test]
    fn a_condition_narrows_a_fault() {
        let mut faults = Faults::default();
        let peer = NodeBuilder::new("message").attr("category", "peer").build();
        let text = NodeBuilder::new("message").build();
        faults.add(
            Fault::drop_to_client("message").always().when(|n| n.attrs.contains_key("category")),
        );
        assert!(faults.strike(Side::ToClient, &text).is_none());
        assert!(faults.strike(Side::ToClient, &peer).is_some());
    }
}
