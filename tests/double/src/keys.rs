//! The keys a linked device has uploaded, as the server keeps them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use wacore::prekeys::compute_key_bundle_digest;
use wacore_binary::Node;
use wacore_binary::builder::NodeBuilder;
use wacore_libsignal::protocol::{IdentityKey, PreKeyBundle, PublicKey};

use crate::stanza::{bytes, child_bytes, child_number, leaf, three_bytes};

pub(crate) struct KeyBundle {
    pub(crate) registration_id: u32,
    pub(crate) identity: Vec<u8>,
    pub(crate) signed: SignedKey,
    /// By id: a client may upload the same window twice, and a key handed out twice is undecryptable
    pub(crate) one_time: BTreeMap<u32, Vec<u8>>,
    /// Whether the owner has been told that few keys are left
    warned: bool,
}

/// The server asks for more keys when fewer are left
const FEW_KEYS: usize = 5;

pub(crate) struct SignedKey {
    pub(crate) id: u32,
    pub(crate) public: Vec<u8>,
    pub(crate) signature: Vec<u8>,
}

impl SignedKey {
    fn parse(skey: &Node) -> Self {
        Self {
            id: child_number(skey, "id"),
            public: child_bytes(skey, "value").to_vec(),
            signature: child_bytes(skey, "signature").to_vec(),
        }
    }
}

impl KeyBundle {
    /// Reads an upload. Keys already known under the same id are replaced.
    pub(crate) fn merge(known: Option<Self>, upload: &Node) -> Result<Self> {
        let skey = upload.get_optional_child("skey").context("an upload without signed key")?;
        let list = upload.get_optional_child("list").context("an upload without keys")?;
        let mut one_time = known.map(|known| known.one_time).unwrap_or_default();
        for key in list.get_children_by_tag("key") {
            one_time.insert(child_number(key, "id"), child_bytes(key, "value").to_vec());
        }
        let identity = child_bytes(upload, "identity").to_vec();
        ensure!(identity.len() == 32, "an identity key of {} bytes", identity.len());
        Ok(Self {
            registration_id: child_number(upload, "registration"),
            identity,
            signed: SignedKey::parse(skey),
            one_time,
            warned: false,
        })
    }

    pub(crate) fn new(
        registration_id: u32,
        identity: Vec<u8>,
        signed: SignedKey,
        one_time: BTreeMap<u32, Vec<u8>>,
    ) -> Self {
        Self { registration_id, identity, signed, one_time, warned: false }
    }

    /// How many keys are left, if they are few and this was not said before.
    pub(crate) fn running_low(&mut self) -> Option<usize> {
        let left = self.one_time.len();
        let low = left < FEW_KEYS && !self.warned;
        low.then(|| {
            self.warned = true;
            left
        })
    }

    pub(crate) fn rotate(&mut self, rotation: &Node) {
        if let Some(skey) = rotation.get_optional_child("skey") {
            self.signed = SignedKey::parse(skey);
        }
    }

    /// A bundle for one sender. Uses up a one-time key while there are any.
    pub(crate) fn take(&mut self) -> Result<PreKeyBundle> {
        let one_time = match self.one_time.pop_first() {
            Some((id, public)) => Some((id.into(), PublicKey::from_djb_public_key_bytes(&public)?)),
            None => None,
        };
        self.bundle(one_time)
    }

    /// The bundle of the same device with the fresh keys that a retry receipt carries.
    pub(crate) fn renewed_by(&self, keys: &Node) -> Result<PreKeyBundle> {
        let key = keys.get_optional_child("key").context("a retry without a one-time key")?;
        let skey = keys.get_optional_child("skey").context("a retry without a signed key")?;
        let public = PublicKey::from_djb_public_key_bytes(child_bytes(key, "value"))?;
        let signed = SignedKey::parse(skey);
        Self {
            registration_id: self.registration_id,
            identity: child_bytes(keys, "identity").to_vec(),
            signed,
            one_time: BTreeMap::new(),
            warned: true,
        }
        .bundle(Some((child_number(key, "id").into(), public)))
    }

    fn bundle(
        &self,
        one_time: Option<(wacore_libsignal::protocol::PreKeyId, PublicKey)>,
    ) -> Result<PreKeyBundle> {
        Ok(PreKeyBundle::new(
            self.registration_id,
            0.into(),
            one_time,
            self.signed.id.into(),
            PublicKey::from_djb_public_key_bytes(&self.signed.public)?,
            self.signed.signature.clone(),
            IdentityKey::new(PublicKey::from_djb_public_key_bytes(&self.identity)?),
        )?)
    }

    /// What a client compares with its own state.
    pub(crate) fn digest(&self) -> Node {
        let publics: Vec<&[u8]> = self.one_time.values().map(Vec::as_slice).collect();
        let SignedKey { id, public, signature } = &self.signed;
        let hash = compute_key_bundle_digest(&self.identity, public, signature, &publics);
        NodeBuilder::new("digest")
            .children([
                leaf("registration", self.registration_id.to_be_bytes()),
                leaf("type", [5]),
                leaf("identity", self.identity.clone()),
                NodeBuilder::new("skey")
                    .children([
                        leaf("id", three_bytes(*id)),
                        leaf("value", public.clone()),
                        leaf("signature", signature.clone()),
                    ])
                    .build(),
                NodeBuilder::new("list")
                    .children(self.one_time.keys().map(|id| leaf("id", three_bytes(*id))))
                    .build(),
                leaf("hash", hash),
            ])
            .build()
    }
}

/// The ids in an upload, for the log.
pub(crate) fn uploaded_ids(upload: &Node) -> Vec<u32> {
    let list = upload.get_optional_child("list");
    list.into_iter()
        .flat_map(|list| list.get_children_by_tag("key"))
        .map(|key| key.get_optional_child("id").map_or(&[][..], bytes))
        .map(|id| id.iter().fold(0, |number, byte| (number << 8) | u32::from(*byte)))
        .collect()
}
