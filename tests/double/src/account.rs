//! A WhatsApp account as the tests handle it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use buffa::Message;
use wacore::store::Device;
use wacore::store::device::{CachedNoiseCert, CachedServerCertChain};
use wacore::store::traits::{AppStateSyncKey, Backend};
use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Jid, Node};
use wacore_libsignal::protocol::KeyPair;
use wacore_libsignal::store::record_helpers::new_pre_key_record;
use whatsapp_rust::transport::DisconnectReason;

use crate::contact::{Addressing, Contact, Group, Person};
use crate::keys::{KeyBundle, SignedKey};
use crate::log::Seen;
use crate::pairing::Identity;
use crate::phone::Phone;
use crate::server::{CompanionState, ConnectionId, GroupState, logged_out};
use crate::signal::SignalDevice;
use crate::stanza::stream_error;
use crate::{Double, pair_code};

/// How many one-time keys a seeded device has at the server
pub const SEEDED_KEYS: u32 = 30;

/// An account: its phone, its linked devices, and what the server saw of them
#[derive(Clone)]
pub struct Account {
    double: Double,
    pn: Jid,
    lid: Jid,
}

impl Account {
    pub(crate) fn new(double: Double, pn: Jid, lid: Jid) -> Self {
        Self { double, pn, lid }
    }

    /// The account's phone number.
    pub fn pn(&self) -> &Jid {
        &self.pn
    }

    /// The account's LID.
    pub fn lid(&self) -> &Jid {
        &self.lid
    }

    /// The owner's phone.
    pub fn phone(&self) -> Phone {
        Phone::new(self.double.clone(), self.key())
    }

    /// Puts an already linked device into an empty backend; it logs in without pairing, by Noise
    /// IK. Returns its device number.
    ///
    /// The device has [`SEEDED_KEYS`] one-time keys at the server, so contacts can write to it
    /// before it connects for the first time. Fails if the backend does.
    pub async fn seed(&self, backend: &Arc<dyn Backend>) -> Result<u16> {
        let mut device = Device::new();
        let number = self.register(&mut device)?;
        let mut keys = Vec::new();
        for id in 1..=SEEDED_KEYS {
            let pair = KeyPair::generate(&mut rand::rng());
            let record = new_pre_key_record(id, &pair).encode_to_vec();
            backend.store_prekey(id, &record, true).await?;
            keys.push((id, pair.public_key.public_key_bytes().to_vec()));
        }
        device.next_pre_key_id = SEEDED_KEYS + 1;
        device.first_unupload_pre_key_id = SEEDED_KEYS + 1;
        device.server_has_prekeys = true;
        let bundle = KeyBundle::new(
            device.registration_id,
            device.identity_key.public_key.public_key_bytes().to_vec(),
            SignedKey {
                id: device.signed_pre_key_id,
                public: device.signed_pre_key.public_key.public_key_bytes().to_vec(),
                signature: device.signed_pre_key_signature.to_vec(),
            },
            keys.into_iter().collect(),
        );
        self.double.with(|state| {
            let companions = &mut state.account(&self.key()).companions;
            companions.get_mut(&number).expect("just registered").keys = Some(bundle);
        });
        let (key_id, key_data, lid_migrated) = self.double.with(|state| {
            let owner = state.account(&self.key());
            let app_state = &owner.phone.app_state;
            (app_state.key_id.clone(), app_state.key.to_vec(), owner.lid_migrated)
        });
        device.lid_migrated = lid_migrated;
        let key = AppStateSyncKey { key_data, fingerprint: Vec::new(), timestamp: 0 };
        backend.set_sync_key(&key_id, key).await?;
        backend.create().await?;
        backend.save(&device).await?;
        Ok(number)
    }

    /// Lets devices linked from now on address direct chats by LID.
    pub fn migrate_to_lids(&self) {
        self.double.with(|state| state.account(&self.key()).lid_migrated = true);
    }

    /// The owner scans a QR code with the phone, which links the device that shows it.
    ///
    /// Fails if no waiting connection shows this code, or if the code contradicts what its device
    /// told the server.
    pub fn scan(&self, code: &str) -> Result<()> {
        self.double.with(|state| state.scan(&self.key(), code))
    }

    /// The owner types a pairing code in on the phone, which links the device that shows it. A
    /// wrong code is not noticed here; as in reality, nothing more happens then.
    ///
    /// Fails if no device waits to be linked to this account's number.
    pub fn enter_code(&self, code: &str) -> Result<()> {
        pair_code::enter(&self.double, &self.key(), code)
    }

    /// Puts a stanza of the test's own making into the queues of all companions. It leaves them
    /// when it is acknowledged.
    pub fn push(&self, stanza: &Node) {
        self.double.with(|state| state.post_plain(&self.key(), stanza));
    }

    /// Makes a contact with this phone number and LID known to the world, or finds it again.
    pub fn contact(&self, pn: &str, lid: &str) -> Contact {
        let (pn, lid) = (Jid::pn(pn), Jid::lid(lid));
        self.double.with(|state| {
            state.directory.learn(&pn, &lid);
            state.people.entry(pn.user.to_string()).or_insert_with(|| Person {
                pn: pn.clone(),
                lid: lid.clone(),
                name: format!("Contact {}", pn.user),
                addressing: Addressing::Pn,
                answers_retries: true,
                signal: SignalDevice::new(),
            });
        });
        Contact::new(self.double.clone(), self.key(), pn, lid)
    }

    /// Makes a group of the account and these contacts.
    pub fn group(&self, id: &str, subject: &str, members: &[&Contact]) -> Group {
        let jid = Jid::group(id);
        let members = members.iter().map(|contact| contact.pn().user.to_string());
        let members = members.chain([self.key()]).collect();
        self.double.with(|state| {
            let admins = Default::default();
            let group = GroupState { subject: subject.to_owned(), members, admins };
            state.groups.insert(jid.to_string(), group);
            state.chat(&self.key(), &jid).name = Some(subject.to_owned());
        });
        Group::new(self.double.clone(), self.key(), jid)
    }

    /// Everything seen so far, in order.
    pub fn log(&self) -> Vec<Seen> {
        self.double.with(|state| state.account(&self.key()).log.clone())
    }

    /// Waits until something seen, now or earlier, satisfies `pick`. Panics when the
    /// world's patience is over, saying `what` it waited for.
    pub async fn wait<T>(&self, what: &str, pick: impl Fn(&Seen) -> Option<T>) -> T {
        let seen = AtomicUsize::new(0);
        self.wait_for_log(what, |log| {
            log[seen.swap(log.len(), Ordering::Relaxed)..].iter().find_map(&pick)
        })
        .await
    }

    /// Waits like [`wait`](Self::wait), for a condition over the whole log.
    pub async fn wait_for_log<T>(&self, what: &str, pick: impl Fn(&[Seen]) -> Option<T>) -> T {
        let found = self.double.until(|state| pick(&state.account(&self.key()).log));
        match tokio::time::timeout(self.double.patience(), found).await {
            Ok(found) => found,
            Err(_) => panic!("waited in vain for {what}; seen: {:#?}", self.log()),
        }
    }

    /// Waits until a receipt that is not a retry covers this message; returns its type.
    pub async fn wait_receipt(&self, id: &str) -> String {
        let what = format!("a receipt for {id}");
        self.wait(&what, |seen| match seen {
            Seen::Receipt(receipt)
                if receipt.kind != "retry" && receipt.ids.iter().any(|i| i == id) =>
            {
                Some(receipt.kind.clone())
            }
            _ => None,
        })
        .await
    }

    /// Waits until the server has nothing left that a companion has not confirmed.
    pub async fn wait_drained(&self) {
        let empty = self.double.until(|state| {
            let companions = &state.account(&self.key()).companions;
            companions.values().all(|companion| companion.queue.len() == 0).then_some(())
        });
        if tokio::time::timeout(self.double.patience(), empty).await.is_err() {
            panic!("never confirmed: {:?}", self.unconfirmed());
        }
    }

    /// Waits until no companion is connected. Panics when the world's patience is over.
    pub async fn wait_gone(&self) {
        let gone =
            self.double.until(|state| connections(state, &self.key()).is_empty().then_some(()));
        if tokio::time::timeout(self.double.patience(), gone).await.is_err() {
            panic!("a companion is still connected");
        }
    }

    /// The ids that the server will deliver again on the next connection.
    pub fn unconfirmed(&self) -> Vec<String> {
        self.double.with(|state| {
            let companions = &state.account(&self.key()).companions;
            companions.values().flat_map(|companion| companion.queue.ids()).collect()
        })
    }

    /// Whether a companion is connected.
    pub fn is_connected(&self) -> bool {
        self.double.with(|state| !connections(state, &self.key()).is_empty())
    }

    /// Delivers what is not confirmed once more, over the open connection.
    pub fn redeliver(&self) {
        self.double.with(|state| state.resend(&self.key()));
    }

    /// Cuts the connections of the account's companions.
    pub fn cut(&self, reason: DisconnectReason) {
        self.double.with(|state| {
            for id in connections(state, &self.key()) {
                state.close(id, reason.clone());
            }
        });
    }

    /// Sends a stream error with this code, and closes.
    pub fn stream_error(&self, code: u16) {
        self.end_streams(&stream_error(Some(code), None));
    }

    /// Says that another connection has taken this one's place, and closes.
    pub fn replace(&self) {
        self.end_streams(&stream_error(None, Some("replaced")));
    }

    /// The owner unlinks all devices on the phone.
    pub fn unlink(&self) {
        self.end_streams(&stream_error(Some(401), Some("device_removed")));
        self.double.with(|state| state.account(&self.key()).companions.clear());
    }

    /// Lets the open connections go silent: nothing is answered, and nothing is closed.
    pub fn silence(&self) {
        self.double.with(|state| {
            for id in connections(state, &self.key()) {
                state.connections.get_mut(&id).expect("just listed").silent = true;
            }
        });
    }

    /// Answers further logins with `<failure reason="401"/>`, as after an unlinking.
    pub fn refuse_logins(&self) {
        self.set_refusal(Some(logged_out()));
    }

    /// Answers further logins with a temporary ban.
    pub fn ban(&self, code: u32, expires_in: Duration) {
        let failure = NodeBuilder::new("failure")
            .attr("reason", "402")
            .attr("code", code)
            .attr("expire", expires_in.as_secs())
            .build();
        self.set_refusal(Some(failure));
    }

    /// Answers further logins with `<failure reason/>`, for example 503.
    pub fn fail_logins(&self, reason: u16) {
        self.set_refusal(Some(NodeBuilder::new("failure").attr("reason", reason).build()));
    }

    /// Lets logins succeed again.
    pub fn accept_logins(&self) {
        self.set_refusal(None);
    }

    fn set_refusal(&self, refusal: Option<Node>) {
        self.double.with(|state| state.account(&self.key()).refusal = refusal);
    }

    fn end_streams(&self, error: &Node) {
        self.double.with(|state| {
            for id in connections(state, &self.key()) {
                state.end_stream(id, error.clone());
            }
        });
    }

    /// Makes a device one of this account's, on both sides.
    fn register(&self, device: &mut Device) -> Result<u16> {
        let account = self.key();
        let identity = device.identity_key.public_key.public_key_bytes().to_vec();
        let (number, Identity { details, mut signed }, static_key) = self.double.with(|state| {
            let static_key = *static_public(&state.static_key);
            let owner = state.account(&account);
            owner.last_device += 1;
            let issued = Identity::issue(&owner.phone.signal, owner.last_device, &identity)?;
            anyhow::Ok((owner.last_device, issued, static_key))
        })?;
        let account_key = signed.account_signature_key.clone().unwrap_or_default();
        let own_signature = device.identity_key.private_key.calculate_signature(
            &[&[6, 1], &details[..], &identity, &account_key].concat(),
            &mut rand::rng(),
        )?;
        signed.device_signature = Some(own_signature.to_vec());
        let noise_static = *static_public(&device.noise_key);
        let companion = CompanionState::new(noise_static, signed.encode_to_vec());
        self.double.with(|state| {
            state.account(&account).companions.insert(number, companion);
        });

        device.pn = Some(self.pn.with_device(number));
        device.lid = Some(self.lid.with_device(number));
        device.push_name = "Double".to_owned();
        device.account = Some(Arc::new(signed));
        let certificate =
            |key| CachedNoiseCert { key, not_before: 0, not_after: i64::from(u32::MAX) };
        device.server_cert_chain = Some(CachedServerCertChain {
            intermediate: certificate([0; 32]),
            leaf: certificate(static_key),
        });
        Ok(number)
    }

    fn key(&self) -> String {
        self.pn.user.to_string()
    }
}

fn connections(state: &mut crate::server::State, account: &str) -> Vec<ConnectionId> {
    let companions = &state.account(account).companions;
    companions.values().filter_map(|companion| companion.connection).collect()
}

fn static_public(pair: &KeyPair) -> &[u8; 32] {
    pair.public_key.public_key_bytes().try_into().expect("a public key has 32 bytes")
}
