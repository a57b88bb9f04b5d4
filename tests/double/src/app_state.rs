//! The application state that a phone shares with its companions: address book, archived chats and
//! the like, as encrypted and chained patches per collection.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use buffa::{Message, MessageField};
use wacore::appstate::hash::{HashState, generate_patch_mac};
use wacore::appstate::{ExpandedAppStateKeys, encode_record, expand_app_state_keys};
use wacore_binary::Node;
use wacore_binary::builder::NodeBuilder;
use waproto::whatsapp::{self as wa, syncd_mutation::SyncdOperation};

use crate::stanza::{attribute, bytes, leaf};

pub(crate) struct AppState {
    pub(crate) key_id: Vec<u8>,
    pub(crate) key: [u8; 32],
    collections: BTreeMap<String, Collection>,
}

#[derive(Default)]
struct Collection {
    state: HashState,
    /// The newest value MAC of each index MAC
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    patches: Vec<Vec<u8>>,
}

impl AppState {
    pub(crate) fn new() -> Self {
        Self { key_id: vec![0, 0, 0, 0, 0, 1], key: rand::random(), collections: BTreeMap::new() }
    }

    /// Sets one entry of a collection; returns the collection's new version.
    pub(crate) fn set(
        &mut self,
        collection: &str,
        index: &str,
        value: &wa::SyncActionValue,
        schema: i32,
    ) -> Result<u64> {
        let keys = expand_app_state_keys(&self.key);
        let (mutation, _) = encode_record(
            SyncdOperation::SET,
            index.as_bytes(),
            value,
            &keys,
            &self.key_id,
            &rand::random(),
            schema,
        );
        let patch = wa::SyncdPatch {
            mutations: vec![mutation],
            key_id: MessageField::some(wa::KeyId { id: Some(self.key_id.clone()) }),
            ..Default::default()
        };
        let entry = self.collections.entry(collection.to_owned()).or_default();
        entry.append(collection, patch, Some(&keys))
    }

    /// Answers for one `<collection>` of a sync request, and takes over the patch it may carry.
    pub(crate) fn sync(&mut self, asked: &Node) -> Result<Node> {
        let name = attribute(asked, "name").unwrap_or_default();
        let known = attribute(asked, "version").and_then(|version| version.parse().ok());
        let collection = self.collections.entry(name.clone()).or_default();
        if let Some(patch) = asked.get_optional_child("patch") {
            ensure!(known == Some(collection.state.version), "a patch on an old version");
            let patch = wa::SyncdPatch::decode_from_slice(bytes(patch))?;
            collection.append(&name, patch, None)?;
            return Ok(described(&name, collection.state.version).build());
        }
        let missing = collection.patches.iter().skip(known.unwrap_or_default() as usize);
        let missing: Vec<Node> = missing.map(|patch| leaf("patch", patch.clone())).collect();
        let answer = described(&name, collection.state.version);
        if missing.is_empty() {
            return Ok(answer.build());
        }
        Ok(answer.children([NodeBuilder::new("patches").children(missing).build()]).build())
    }
}

impl Collection {
    /// Chains a patch to the collection, and signs it if it is the phone's own.
    fn append(
        &mut self,
        name: &str,
        mut patch: wa::SyncdPatch,
        keys: Option<&ExpandedAppStateKeys>,
    ) -> Result<u64> {
        let version = self.state.version + 1;
        let values = &self.values;
        let (_, outcome) =
            self.state.update_hash(&patch.mutations, |index, _| Ok(values.get(index).cloned()));
        outcome?;
        self.state.version = version;
        for mutation in &patch.mutations {
            let index = mutation.record.index.blob.clone().unwrap_or_default();
            let value = mutation.record.value.blob.clone().unwrap_or_default();
            if mutation.operation.is_some_and(|operation| operation == SyncdOperation::REMOVE) {
                self.values.remove(&index);
            } else {
                let mac = value[value.len().saturating_sub(32)..].to_vec();
                self.values.insert(index, mac);
            }
        }
        patch.version = MessageField::some(wa::SyncdVersion { version: Some(version) });
        if let Some(keys) = keys {
            let mac = self.state.generate_snapshot_mac(name, &keys.snapshot_mac);
            patch.snapshot_mac = Some(mac);
            patch.patch_mac = Some(generate_patch_mac(&patch, name, &keys.patch_mac, version));
        }
        self.patches.push(patch.encode_to_vec());
        Ok(version)
    }
}

fn described(name: &str, version: u64) -> NodeBuilder {
    NodeBuilder::new("collection").attr("name", name).attr("version", version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(version: u64) -> Node {
        described("regular", version).build()
    }

    fn patches(answer: &Node) -> usize {
        let patches = answer.get_optional_child("patches").and_then(Node::children);
        patches.map_or(0, <[Node]>::len)
    }

    #[test]
    fn only_missing_patches_are_sent() {
        let mut state = AppState::new();
        let answer = state.sync(&asked(0)).unwrap();
        assert_eq!(attribute(&answer, "version").as_deref(), Some("0"));
        for round in 1..=3 {
            let value = wa::SyncActionValue::default();
            assert_eq!(state.set("regular", r#"["x"]"#, &value, 1).unwrap(), round);
        }
        assert_eq!(patches(&state.sync(&asked(0)).unwrap()), 3);
        assert_eq!(patches(&state.sync(&asked(2)).unwrap()), 1);
        assert_eq!(patches(&state.sync(&asked(3)).unwrap()), 0);
    }
}
