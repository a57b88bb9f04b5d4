//! Reading and building stanzas.

use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Jid, Node, NodeContent, SERVER_JID};

pub(crate) fn attribute(node: &Node, name: &str) -> Option<String> {
    node.attrs.get(name).map(|value| value.as_str().into_owned())
}

pub(crate) fn jid(node: &Node, name: &str) -> Option<Jid> {
    node.attrs.get(name).and_then(|value| value.to_jid())
}

pub(crate) fn bytes(node: &Node) -> &[u8] {
    match &node.content {
        Some(NodeContent::Bytes(bytes)) => bytes,
        Some(NodeContent::String(text)) => text.as_bytes(),
        _ => &[],
    }
}

pub(crate) fn child_bytes<'a>(node: &'a Node, tag: &str) -> &'a [u8] {
    node.get_optional_child(tag).map_or(&[], bytes)
}

/// The big-endian number in a child, as keys carry their ids.
pub(crate) fn child_number(node: &Node, tag: &str) -> u32 {
    child_bytes(node, tag).iter().fold(0, |number, byte| (number << 8) | u32::from(*byte))
}

/// The three bytes that key ids are sent as.
pub(crate) fn three_bytes(id: u32) -> Vec<u8> {
    id.to_be_bytes()[1..].to_vec()
}

pub(crate) fn leaf(tag: &'static str, content: impl Into<Vec<u8>>) -> Node {
    NodeBuilder::new(tag).bytes(content.into()).build()
}

pub(crate) fn result(id: &str, children: Vec<Node>) -> Node {
    let iq = NodeBuilder::new("iq").attr("from", SERVER_JID).attr("id", id).attr("type", "result");
    if children.is_empty() { iq.build() } else { iq.children(children).build() }
}

pub(crate) fn error(id: &str, code: u16, text: &str) -> Node {
    let error = NodeBuilder::new("error").attr("code", code).attr("text", text).build();
    NodeBuilder::new("iq")
        .attr("from", SERVER_JID)
        .attr("id", id)
        .attr("type", "error")
        .children([error])
        .build()
}

/// An `<ib>` around one child.
pub(crate) fn information(child: Node) -> Node {
    NodeBuilder::new("ib").attr("from", SERVER_JID).children([child]).build()
}

pub(crate) fn stream_error(code: Option<u16>, conflict: Option<&str>) -> Node {
    let mut error = NodeBuilder::new("stream:error");
    if let Some(code) = code {
        error = error.attr("code", code);
    }
    if let Some(conflict) = conflict {
        error = error.children([NodeBuilder::new("conflict").attr("type", conflict).build()]);
    }
    error.build()
}
