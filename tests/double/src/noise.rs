//! The responder's half of WhatsApp's Noise handshakes: XX, IK and XXfallback.

use anyhow::{Context, Result, bail, ensure};
use buffa::{Message, MessageField};
use wacore_binary::consts::{
    NOISE_PATTERN_IK, NOISE_PATTERN_XX, NOISE_PATTERN_XXFALLBACK, WA_CONN_HEADER,
};
use wacore_libsignal::protocol::KeyPair;
use wacore_noise::{NoiseCipher, NoiseHandshake};
use waproto::whatsapp::{self as wa, HandshakeMessage, handshake_message::ServerHello};

use crate::chain;

/// Which handshake a client completed
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// The client used the static key it had remembered; one round trip
    Ik,
    /// The client knew no static key and verified the certificate chain
    Xx,
    /// The client's remembered static key was not ours and it fell back to the chain
    XxFallback,
}

/// A finished handshake: the ciphers of both directions and what the client said about itself
pub(crate) struct Session {
    pub(crate) handshake: Handshake,
    pub(crate) client_static: [u8; 32],
    pub(crate) payload: wa::ClientPayload,
    send: NoiseCipher,
    receive: NoiseCipher,
    sent: u32,
    received: u32,
}

impl Session {
    pub(crate) fn seal(&mut self, plaintext: &[u8]) -> Result<Vec<u8>> {
        let sealed = self.send.encrypt_with_counter(self.sent, plaintext)?;
        self.sent += 1;
        Ok(sealed)
    }

    pub(crate) fn open(&mut self, mut frame: Vec<u8>) -> Result<Vec<u8>> {
        self.receive.decrypt_in_place_with_counter(self.received, &mut frame)?;
        self.received += 1;
        Ok(frame)
    }
}

/// What a ClientHello leads to
pub(crate) enum Reply {
    /// Send these bytes; the session is up
    Finished(Vec<u8>, Box<Session>),
    /// Send these bytes and wait for the client's second message
    Pending(Vec<u8>, Box<Pending>),
}

/// A chain-verified handshake that waits for the ClientFinish
pub(crate) struct Pending {
    handshake: Handshake,
    noise: NoiseHandshake,
    ephemeral: KeyPair,
}

/// Answers a ClientHello. `own` is the static key of seeded devices; everybody else is shown the
/// published chain, or a `forged` one for that key.
pub(crate) fn answer_hello(own: &KeyPair, forged: bool, frame: &[u8]) -> Result<Reply> {
    let presented = if forged { Static::Own(own) } else { Static::Published };
    let hello = HandshakeMessage::decode_from_slice(frame)?
        .client_hello
        .into_option()
        .context("the first frame is not a ClientHello")?;
    let client_ephemeral = key(hello.ephemeral.as_deref())?;
    let (Some(encrypted_static), Some(encrypted_payload)) = (hello.r#static, hello.payload) else {
        return present_chain(presented, Handshake::Xx, &client_ephemeral);
    };
    for static_key in [Static::Own(own), Static::Published] {
        let attempt =
            finish_ik(static_key, &client_ephemeral, &encrypted_static, &encrypted_payload);
        if let Some((hello, session)) = attempt? {
            return Ok(Reply::Finished(hello, Box::new(session)));
        }
    }
    present_chain(presented, Handshake::XxFallback, &client_ephemeral)
}

impl Pending {
    pub(crate) fn finish(mut self, frame: &[u8]) -> Result<Session> {
        let finish = HandshakeMessage::decode_from_slice(frame)?
            .client_finish
            .into_option()
            .context("the second frame is not a ClientFinish")?;
        let encrypted_static = finish.r#static.context("ClientFinish without a static key")?;
        let encrypted_payload = finish.payload.context("ClientFinish without a payload")?;
        let client_static = key(Some(&self.noise.decrypt(&encrypted_static)?))?;
        self.noise.mix_shared_secret(self.ephemeral.private_key.serialize(), &client_static)?;
        let payload = self.noise.decrypt(&encrypted_payload)?;
        session(self.handshake, self.noise, client_static, &payload)
    }
}

#[derive(Clone, Copy)]
enum Static<'a> {
    Own(&'a KeyPair),
    Published,
}

impl Static<'_> {
    fn public(self) -> [u8; 32] {
        match self {
            Self::Own(pair) => public(pair),
            Self::Published => chain::STATIC_KEY,
        }
    }

    fn mix(self, noise: &mut NoiseHandshake, their_public: &[u8; 32]) -> Result<()> {
        match self {
            Self::Own(pair) => {
                noise.mix_shared_secret(pair.private_key.serialize(), their_public)?;
            }
            Self::Published => noise.mix_into_key(&chain::agreement(their_public))?,
        }
        Ok(())
    }
}

/// Completes IK if the ClientHello was made for `static_key`, and is `None` otherwise.
fn finish_ik(
    static_key: Static<'_>,
    client_ephemeral: &[u8; 32],
    encrypted_static: &[u8],
    encrypted_payload: &[u8],
) -> Result<Option<(Vec<u8>, Session)>> {
    let mut noise = NoiseHandshake::new(NOISE_PATTERN_IK, &WA_CONN_HEADER)?;
    noise.authenticate(&static_key.public());
    noise.authenticate(client_ephemeral);
    static_key.mix(&mut noise, client_ephemeral)?;
    let Ok(client_static) = noise.decrypt(encrypted_static) else {
        return Ok(None);
    };
    let client_static = key(Some(&client_static))?;
    static_key.mix(&mut noise, &client_static)?;
    let payload = noise.decrypt(encrypted_payload)?;

    let ephemeral = KeyPair::generate(&mut rand::rng());
    let server_ephemeral = public(&ephemeral);
    noise.authenticate(&server_ephemeral);
    noise.mix_shared_secret(ephemeral.private_key.serialize(), client_ephemeral)?;
    noise.mix_shared_secret(ephemeral.private_key.serialize(), &client_static)?;
    let certificate = noise.encrypt(&chain::CERTIFICATE_CHAIN)?;
    let hello = server_hello(ServerHello {
        ephemeral: Some(server_ephemeral.to_vec()),
        payload: Some(certificate),
        ..Default::default()
    });
    Ok(Some((hello, session(Handshake::Ik, noise, client_static, &payload)?)))
}

fn present_chain(
    presented: Static<'_>,
    handshake: Handshake,
    client_ephemeral: &[u8; 32],
) -> Result<Reply> {
    ensure!(chain::install(), "a crypto provider was in place before the double was created");
    let pattern = match handshake {
        Handshake::Xx => NOISE_PATTERN_XX,
        Handshake::XxFallback => NOISE_PATTERN_XXFALLBACK,
        Handshake::Ik => bail!("IK presents no chain"),
    };
    let mut noise = NoiseHandshake::new(pattern, &WA_CONN_HEADER)?;
    let ephemeral = KeyPair::generate(&mut rand::rng());
    let server_ephemeral = public(&ephemeral);
    noise.authenticate(client_ephemeral);
    noise.authenticate(&server_ephemeral);
    noise.mix_shared_secret(ephemeral.private_key.serialize(), client_ephemeral)?;
    let encrypted_static = noise.encrypt(&presented.public())?;
    presented.mix(&mut noise, client_ephemeral)?;
    let certificate = match presented {
        Static::Own(_) => noise.encrypt(&chain::forged_for(&presented.public()))?,
        Static::Published => noise.encrypt(&chain::CERTIFICATE_CHAIN)?,
    };
    let hello = server_hello(ServerHello {
        ephemeral: Some(server_ephemeral.to_vec()),
        r#static: Some(encrypted_static),
        payload: Some(certificate),
        ..Default::default()
    });
    Ok(Reply::Pending(hello, Box::new(Pending { handshake, noise, ephemeral })))
}

fn session(
    handshake: Handshake,
    noise: NoiseHandshake,
    client_static: [u8; 32],
    payload: &[u8],
) -> Result<Session> {
    // `finish` names the directions from the initiator's side.
    let (receive, send) = noise.finish()?;
    let payload = wa::ClientPayload::decode_from_slice(payload)?;
    Ok(Session { handshake, client_static, payload, send, receive, sent: 0, received: 0 })
}

fn server_hello(hello: ServerHello) -> Vec<u8> {
    HandshakeMessage { server_hello: MessageField::some(hello), ..Default::default() }
        .encode_to_vec()
}

fn public(pair: &KeyPair) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(pair.public_key.public_key_bytes());
    bytes
}

fn key(bytes: Option<&[u8]>) -> Result<[u8; 32]> {
    bytes.and_then(|bytes| bytes.try_into().ok()).context("a Noise key must be 32 bytes")
}
