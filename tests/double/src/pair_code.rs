//! Linking a new device by a code that is typed in on the phone.

use anyhow::{Context, Result, ensure};
use wacore::crypto::hkdf_sha256_into;
use wacore::pair_code::PairCodeUtils;
use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Node, SERVER_JID};
use wacore_libsignal::crypto::aes_256_gcm_decrypt;
use wacore_libsignal::protocol::{KeyPair, PublicKey};

use crate::Double;
use crate::log::Seen;
use crate::server::{ConnectionId, Phase, State};
use crate::stanza::{attribute, child_bytes, jid, leaf, result};

/// A device that waits for its code to be typed in
pub(crate) struct CodeOffer {
    /// The phone number it wants to be linked to
    account: String,
    reference: String,
    /// The device's ephemeral key, encrypted under the code
    wrapped: Vec<u8>,
    /// Set once the phone has answered
    exchange: Option<Exchange>,
}

struct Exchange {
    ephemeral: KeyPair,
    device_ephemeral: [u8; 32],
}

/// The owner types a code in on the phone. Deriving its key takes a while, so this runs outside the
/// world's lock.
pub(crate) fn enter(double: &Double, account: &str, code: &str) -> Result<()> {
    let code: String = code.chars().filter(|character| *character != '-').collect();
    let (id, wrapped) = double
        .with(|state| {
            state.candidates().find_map(|(id, candidate)| {
                let offer = candidate.code.as_ref().filter(|offer| offer.account == account)?;
                Some((id, offer.wrapped.clone()))
            })
        })
        .context("no device waits to be linked to this number")?;
    let device_ephemeral = PairCodeUtils::decrypt_primary_ephemeral_pub(&wrapped, &code)?;
    let ephemeral = KeyPair::generate(&mut rand::rng());
    let public = ephemeral.public_key.public_key_bytes().try_into()?;
    let wrapped = PairCodeUtils::encrypt_ephemeral_pub(public, &code);
    double.with(|state| {
        let identity = state.account(account).phone.signal.identity();
        let stanza = state.new_id();
        let offer = state.candidate(id).and_then(|candidate| candidate.code.as_mut());
        let offer = offer.context("the device is gone")?;
        offer.exchange = Some(Exchange { ephemeral, device_ephemeral });
        let hello = NodeBuilder::new("link_code_companion_reg")
            .attr("stage", "primary_hello")
            .children([
                leaf("link_code_pairing_wrapped_primary_ephemeral_pub", wrapped),
                leaf("primary_identity_pub", identity),
                leaf("link_code_pairing_ref", offer.reference.clone()),
            ])
            .build();
        let notification = NodeBuilder::new("notification")
            .attr("from", SERVER_JID)
            .attr("id", stanza)
            .attr("t", wacore::time::now_secs())
            .attr("type", "link_code_companion_reg")
            .children([hello])
            .build();
        state.send(id, notification);
        Ok(())
    })
}

impl State {
    /// Handles an IQ of a device that is not linked yet.
    pub(crate) fn pairing_asked(&mut self, id: ConnectionId, stanza: &str, iq: &Node) {
        let Some(request) = iq.get_optional_child("link_code_companion_reg") else {
            return self.send(id, result(stanza, Vec::new()));
        };
        match attribute(request, "stage").as_deref() {
            Some("companion_hello") => {
                let reference = self.new_id();
                let offer = CodeOffer {
                    account: jid(request, "jid")
                        .map(|jid| jid.user.to_string())
                        .unwrap_or_default(),
                    reference: reference.clone(),
                    wrapped: child_bytes(
                        request,
                        "link_code_pairing_wrapped_companion_ephemeral_pub",
                    )
                    .to_vec(),
                    exchange: None,
                };
                if let Some(candidate) = self.candidate(id) {
                    candidate.code = Some(offer);
                }
                let answer = NodeBuilder::new("link_code_companion_reg")
                    .attr("stage", "companion_hello")
                    .children([leaf("link_code_pairing_ref", reference)])
                    .build();
                self.send(id, result(stanza, vec![answer]));
            }
            Some("companion_finish") => {
                self.send(id, result(stanza, Vec::new()));
                let account = jid(request, "jid").map(|jid| jid.user.to_string());
                // A phone that cannot open the bundle says nothing; nor does ours.
                if self.finish_code(id, request).is_err()
                    && let Some(account) = account.filter(|pn| self.accounts.contains_key(pn))
                {
                    self.saw(&account, Seen::CodeRefused);
                }
            }
            _ => self.send(id, result(stanza, Vec::new())),
        }
    }

    fn finish_code(&mut self, id: ConnectionId, finish: &Node) -> Result<()> {
        let candidate = self.candidate(id).context("not being linked")?;
        let offer = candidate.code.take().context("no code was offered")?;
        let exchange = offer.exchange.context("no code was typed in")?;
        let device_identity = candidate.identity.clone();
        let signal = &self.account(&offer.account).phone.signal;

        let device_ephemeral = PublicKey::from_djb_public_key_bytes(&exchange.device_ephemeral)?;
        let shared = exchange.ephemeral.calculate_agreement(&device_ephemeral)?;
        let wrapped = child_bytes(finish, "link_code_pairing_wrapped_key_bundle");
        ensure!(wrapped.len() > 44, "a key bundle of {} bytes", wrapped.len());
        let (salt, rest) = wrapped.split_at(32);
        let (nonce, ciphertext) = rest.split_at(12);
        let mut key = [0; 32];
        let info = b"link_code_pairing_key_bundle_encryption_key";
        hkdf_sha256_into(&shared, Some(salt), info, &mut key)?;
        let mut bundle = Vec::new();
        aes_256_gcm_decrypt(&key, nonce.try_into()?, b"", ciphertext, &mut bundle)?;
        ensure!(bundle.len() == 96, "a key bundle holds three keys");
        let (identity, rest) = bundle.split_at(32);
        let (phone_identity, random) = rest.split_at(32);
        ensure!(identity == device_identity, "the bundle of another device");
        ensure!(phone_identity == signal.identity(), "a bundle for another phone");

        let combined = [&shared[..], &signal.agree(identity)?, random].concat();
        let mut secret = [0; 32];
        hkdf_sha256_into(&combined, None, b"adv_secret", &mut secret)?;
        self.accept_pairing(id, &offer.account, &secret)
    }

    /// The connections that show a QR code or a pairing code.
    pub(crate) fn candidates(
        &self,
    ) -> impl Iterator<Item = (ConnectionId, &crate::pairing::Candidate)> {
        self.connections.iter().filter_map(|(id, connection)| match &connection.phase {
            Phase::Pairing(candidate) => Some((*id, &**candidate)),
            Phase::LoggedIn(_) | Phase::Refused => None,
        })
    }
}
