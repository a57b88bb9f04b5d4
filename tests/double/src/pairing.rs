//! Linking a new device by QR code.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use buffa::Message;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use wacore::pair::PairUtils;
use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Node, SERVER_JID};
use wacore_libsignal::protocol::PublicKey;
use waproto::whatsapp as wa;

use crate::log::Seen;
use crate::noise::Session;
use crate::pair_code::CodeOffer;
use crate::server::{CompanionState, ConnectionId, Phase, State, logged_out};
use crate::signal::SignalDevice;
use crate::stanza::{attribute, bytes, leaf, stream_error};

/// How long the server waits before it asks a freshly paired device to log in. A client that is
/// told at once may still be busy with the pairing and tear its new connection down again.
const RESTART_DELAY: Duration = Duration::from_millis(50);

/// A device that wants to be linked
pub(crate) struct Candidate {
    noise_static: [u8; 32],
    pub(crate) identity: Vec<u8>,
    props: wa::DeviceProps,
    refs: Vec<String>,
    /// Set if it also shows a pairing code
    pub(crate) code: Option<CodeOffer>,
    /// Set once a phone has accepted it
    accepted: Option<Accepted>,
}

struct Accepted {
    account: String,
    device: u16,
    stanza: String,
    details: Vec<u8>,
}

/// A signed statement that a device belongs to an account
pub(crate) struct Identity {
    pub(crate) details: Vec<u8>,
    pub(crate) signed: wa::ADVSignedDeviceIdentity,
}

impl Identity {
    /// Lets a phone vouch for the device with this identity key.
    pub(crate) fn issue(phone: &SignalDevice, device: u16, identity: &[u8]) -> Result<Self> {
        let details = wa::ADVDeviceIdentity {
            raw_id: Some(1),
            timestamp: Some(wacore::time::now_secs() as u64),
            key_index: Some(device.into()),
            ..Default::default()
        }
        .encode_to_vec();
        let signed = wa::ADVSignedDeviceIdentity {
            account_signature: Some(phone.sign(&[&[6, 0], &details, identity])?),
            account_signature_key: Some(phone.identity()),
            details: Some(details.clone()),
            device_signature: None,
        };
        Ok(Self { details, signed })
    }
}

impl State {
    pub(crate) fn candidate(&mut self, id: ConnectionId) -> Option<&mut Candidate> {
        match &mut self.connections.get_mut(&id)?.phase {
            Phase::Pairing(candidate) => Some(candidate),
            Phase::LoggedIn(_) | Phase::Refused => None,
        }
    }

    /// Offers QR codes to a client that registers.
    pub(crate) fn offer_pairing(&mut self, id: ConnectionId, session: &Session) {
        let Some(data) = session.payload.device_pairing_data.as_option() else {
            return self.end_stream(id, logged_out());
        };
        let props = data.device_props.as_deref().unwrap_or_default();
        let refs: Vec<String> = (0..6).map(|_| format!("2@{}", self.new_id())).collect();
        let candidate = Candidate {
            noise_static: session.client_static,
            identity: data.e_ident.clone().unwrap_or_default(),
            props: wa::DeviceProps::decode_from_slice(props).unwrap_or_default(),
            refs: refs.clone(),
            code: None,
            accepted: None,
        };
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.phase = Phase::Pairing(Box::new(candidate));
        }
        let offer = NodeBuilder::new("pair-device")
            .children(refs.into_iter().map(|reference| leaf("ref", reference)))
            .build();
        let stanza = self.new_id();
        self.send(id, pairing_iq(&stanza, offer));
    }

    pub(crate) fn pairing_refs(&mut self) -> Vec<String> {
        self.candidates().flat_map(|(_, candidate)| candidate.refs.clone()).collect()
    }

    /// The phone of an account scans a QR code.
    pub(crate) fn scan(&mut self, account: &str, code: &str) -> Result<()> {
        let (reference, noise, identity) = PairUtils::parse_qr_code(code)?;
        let secret = code.split(',').nth(3).context("a QR code without ADV secret")?;
        let secret = BASE64_STANDARD.decode(secret)?;
        let (id, candidate) = self
            .candidates()
            .find(|(_, candidate)| candidate.refs.contains(&reference))
            .context("the QR code has expired")?;
        ensure!(candidate.noise_static == noise, "the QR code shows another Noise key");
        ensure!(candidate.identity == identity, "the QR code shows another identity key");
        self.accept_pairing(id, account, &secret)
    }

    /// The phone vouches for a device that it shares `secret` with.
    pub(crate) fn accept_pairing(
        &mut self,
        id: ConnectionId,
        account: &str,
        secret: &[u8],
    ) -> Result<()> {
        let identity = self.candidate(id).context("not being linked")?.identity.clone();
        let stanza = self.new_id();
        let owner = self.account(account);
        owner.last_device += 1;
        let device = owner.last_device;
        let Identity { details, signed } = Identity::issue(&owner.phone.signal, device, &identity)?;
        let signed = signed.encode_to_vec();
        let mut mac = Hmac::<Sha256>::new_from_slice(secret)?;
        mac.update(&signed);
        let container = wa::ADVSignedDeviceIdentityHMAC {
            details: Some(signed),
            hmac: Some(mac.finalize().into_bytes().to_vec()),
            account_type: None,
        };
        let props = wa::ClientPairingProps {
            is_chat_db_lid_migrated: Some(owner.lid_migrated),
            ..Default::default()
        };
        let success = NodeBuilder::new("pair-success")
            .children([
                leaf("device-identity", container.encode_to_vec()),
                leaf("client-props", props.encode_to_vec()),
                NodeBuilder::new("platform").attr("name", "android").build(),
                NodeBuilder::new("device")
                    .attr("jid", owner.pn.with_device(device))
                    .attr("lid", owner.lid.with_device(device))
                    .build(),
            ])
            .build();
        let accepted = Accepted { account: account.to_owned(), device, stanza, details };
        let iq = pairing_iq(&accepted.stanza, success);
        if let Some(candidate) = self.candidate(id) {
            candidate.accepted = Some(accepted);
        }
        self.send(id, iq);
        Ok(())
    }

    /// The device accepted the pairing, or refused it.
    pub(crate) fn pairing_answered(&mut self, id: ConnectionId, iq: &Node) {
        let Some(candidate) = self.candidate(id) else { return };
        let Some(accepted) = &candidate.accepted else { return };
        if attribute(iq, "id").as_deref() != Some(&accepted.stanza) {
            return;
        }
        let identity = iq
            .get_optional_child("pair-device-sign")
            .and_then(|sign| sign.get_optional_child("device-identity"));
        let Some(identity) = identity.filter(|identity| signed_by(candidate, accepted, identity))
        else {
            return self.end_stream(id, stream_error(Some(401), None));
        };
        let props = Box::new(candidate.props.clone());
        let mut companion = CompanionState::new(candidate.noise_static, bytes(identity).to_vec());
        companion.fresh = true;
        let (account, device) = (accepted.account.clone(), accepted.device);
        self.account(&account).companions.insert(device, companion);
        self.saw(&account, Seen::Paired { device, props });
        self.after(RESTART_DELAY, move |state| {
            state.end_stream(id, stream_error(Some(515), None));
        });
    }
}

/// Whether the device put its own signature under the phone's.
fn signed_by(candidate: &Candidate, accepted: &Accepted, identity: &Node) -> bool {
    let Ok(identity) = wa::ADVSignedDeviceIdentity::decode_from_slice(bytes(identity)) else {
        return false;
    };
    let Ok(key) = PublicKey::from_djb_public_key_bytes(&candidate.identity) else { return false };
    let account_key = identity.account_signature_key.unwrap_or_default();
    let signed = [&[6, 1], &accepted.details[..], &candidate.identity, &account_key].concat();
    key.verify_signature(&signed, &identity.device_signature.unwrap_or_default())
}

fn pairing_iq(stanza: &str, child: Node) -> Node {
    NodeBuilder::new("iq")
        .attr("from", SERVER_JID)
        .attr("type", "set")
        .attr("id", stanza)
        .attr("xmlns", "md")
        .attr("t", wacore::time::now_secs())
        .children([child])
        .build()
}
