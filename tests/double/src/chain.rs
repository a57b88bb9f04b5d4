//! WhatsApp's published certificate chain, and the key agreement that lets a test server present it.
//!
//! A Noise XX client verifies two signatures up to a root key that only WhatsApp holds, so a server
//! of our own cannot issue a chain. It can present the real one, which is public, but it does not
//! have the private half of the static key the chain certifies. [`install`] closes that gap from
//! the other side: it replaces X25519 in this test process, for that one public key, by a hash
//! that both ends can compute. Every signature check of the client stays as it is, no cargo feature
//! is involved, and nothing can reach a production binary, because this is code of a test crate.

use std::sync::OnceLock;

use buffa::{Message, MessageField};
use sha2::{Digest, Sha256};
use wacore_libsignal::crypto::{
    CryptoProviderError, GcmInPlaceBuffer, RustCryptoProvider, SignalCryptoProvider, TransportAead,
    set_crypto_provider,
};
use wacore_libsignal::protocol::PrivateKey;
use waproto::whatsapp as wa;
use waproto::whatsapp::cert_chain::NoiseCertificate;
use waproto::whatsapp::cert_chain::noise_certificate::Details;

/// The server static key that [`CERTIFICATE_CHAIN`] certifies
pub(crate) const STATIC_KEY: [u8; 32] = [
    0x58, 0x54, 0xd3, 0x33, 0xd8, 0xe1, 0x39, 0x75, 0xab, 0xd6, 0x59, 0x7b, 0xba, 0xdd, 0xd4, 0x9d,
    0x69, 0x35, 0xce, 0xd2, 0x5c, 0x93, 0xa4, 0x4b, 0xd3, 0xad, 0xe5, 0x08, 0xf2, 0xbe, 0xc3, 0x30,
];

/// WhatsApp's `CertChain`, encoded, as its servers sent it between March and July 2025
#[rustfmt::skip]
pub(crate) const CERTIFICATE_CHAIN: [u8; 241] = [
    0x0a, 0x77, 0x0a, 0x33, 0x08, 0xc9, 0x02, 0x10, 0x03, 0x1a, 0x20, 0x58, 0x54, 0xd3, 0x33, 0xd8,
    0xe1, 0x39, 0x75, 0xab, 0xd6, 0x59, 0x7b, 0xba, 0xdd, 0xd4, 0x9d, 0x69, 0x35, 0xce, 0xd2, 0x5c,
    0x93, 0xa4, 0x4b, 0xd3, 0xad, 0xe5, 0x08, 0xf2, 0xbe, 0xc3, 0x30, 0x20, 0xd0, 0x8f, 0x87, 0xbf,
    0x06, 0x28, 0xd0, 0xc9, 0x9f, 0xc4, 0x06, 0x12, 0x40, 0x19, 0xcb, 0xee, 0x71, 0xb6, 0x3b, 0xb8,
    0x04, 0x8a, 0xf2, 0x69, 0xf3, 0xaa, 0x7c, 0x13, 0xc6, 0x2a, 0x1f, 0xd8, 0x9a, 0xc4, 0xef, 0x25,
    0x09, 0xd1, 0xd7, 0x8d, 0x68, 0x26, 0x7f, 0x40, 0x39, 0x3b, 0x49, 0xa9, 0xcc, 0x38, 0xdb, 0x05,
    0xe3, 0x5a, 0x6c, 0x5b, 0xf3, 0xba, 0x61, 0x72, 0xa4, 0xc5, 0x32, 0x5f, 0x25, 0xf3, 0x63, 0x33,
    0x8c, 0xf8, 0xf3, 0x53, 0x5a, 0x4c, 0xd9, 0x52, 0x05, 0x12, 0x76, 0x0a, 0x32, 0x08, 0x03, 0x10,
    0x00, 0x1a, 0x20, 0x1c, 0x51, 0xa9, 0xac, 0x30, 0x39, 0x94, 0xc6, 0xc8, 0xd0, 0xb9, 0x2e, 0xa1,
    0x87, 0x8a, 0x53, 0x34, 0x76, 0x59, 0x9c, 0xc5, 0x99, 0xfb, 0xea, 0x35, 0x99, 0x7d, 0x9a, 0xa9,
    0x0c, 0xce, 0x62, 0x20, 0x80, 0x91, 0xae, 0xbe, 0x06, 0x28, 0xff, 0xde, 0xb7, 0xdc, 0x06, 0x12,
    0x40, 0x27, 0x0f, 0x29, 0x46, 0x48, 0x53, 0x9f, 0xed, 0x48, 0x70, 0xe2, 0x50, 0x54, 0xdd, 0x4e,
    0x95, 0x98, 0x3a, 0xba, 0x29, 0x18, 0x9c, 0x2b, 0xa6, 0xc8, 0xee, 0xda, 0x70, 0x55, 0x55, 0x5f,
    0x75, 0x37, 0x40, 0xf5, 0xec, 0x19, 0x2a, 0xb6, 0x4c, 0x26, 0xc2, 0x6d, 0x6a, 0xde, 0x6d, 0x20,
    0xb9, 0xf7, 0x74, 0xae, 0xe3, 0x71, 0x20, 0xa6, 0xb2, 0x03, 0x95, 0xf5, 0x3c, 0x66, 0x05, 0x85,
    0x07,
];

/// Lets clients in this process complete a handshake against [`STATIC_KEY`].
///
/// Idempotent. Must run before the first cryptographic call of the process, since the client fixes
/// its provider on first use; returns false if something else got there first.
pub(crate) fn install() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| set_crypto_provider(PublishedStatic).is_ok())
}

/// A chain that certifies `key` in all but its signatures.
pub(crate) fn forged_for(key: &[u8; 32]) -> Vec<u8> {
    let certificate = |serial, issuer, key: Vec<u8>| NoiseCertificate {
        details: Some(
            Details {
                serial: Some(serial),
                issuer_serial: Some(issuer),
                key: Some(key),
                not_before: Some(0),
                not_after: Some(u32::MAX.into()),
            }
            .encode_to_vec(),
        ),
        signature: Some(vec![0; 64]),
    };
    wa::CertChain {
        leaf: MessageField::some(certificate(2, 1, key.to_vec())),
        intermediate: MessageField::some(certificate(1, 0, vec![9; 32])),
    }
    .encode_to_vec()
}

/// What X25519 yields in this process between a key pair and [`STATIC_KEY`].
pub(crate) fn agreement(their_public: &[u8; 32]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"double");
    hash.update(their_public);
    hash.update(STATIC_KEY);
    hash.finalize().into()
}

struct PublishedStatic;

impl SignalCryptoProvider for PublishedStatic {
    fn x25519_agreement(
        &self,
        private_key: &[u8; 32],
        their_public_key: &[u8; 32],
    ) -> Result<[u8; 32], CryptoProviderError> {
        if their_public_key != &STATIC_KEY {
            return RustCryptoProvider.x25519_agreement(private_key, their_public_key);
        }
        let public = PrivateKey::deserialize(private_key)
            .and_then(|key| key.public_key())
            .map_err(|_| CryptoProviderError::BadInput)?;
        let mut bytes = [0; 32];
        bytes.copy_from_slice(public.public_key_bytes());
        Ok(agreement(&bytes))
    }

    fn aes_256_cbc_encrypt(
        &self,
        key: &[u8; 32],
        iv: &[u8; 16],
        plaintext: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), CryptoProviderError> {
        RustCryptoProvider.aes_256_cbc_encrypt(key, iv, plaintext, out)
    }

    fn aes_256_cbc_decrypt(
        &self,
        key: &[u8; 32],
        iv: &[u8; 16],
        ciphertext: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), CryptoProviderError> {
        RustCryptoProvider.aes_256_cbc_decrypt(key, iv, ciphertext, out)
    }

    fn aes_256_cbc_decrypt_in_place(
        &self,
        key: &[u8; 32],
        iv: &[u8; 16],
        buffer: &mut Vec<u8>,
    ) -> Result<(), CryptoProviderError> {
        RustCryptoProvider.aes_256_cbc_decrypt_in_place(key, iv, buffer)
    }

    fn aes_256_gcm_encrypt(
        &self,
        key: &[u8; 32],
        nonce: &[u8; 12],
        aad: &[u8],
        plaintext: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), CryptoProviderError> {
        RustCryptoProvider.aes_256_gcm_encrypt(key, nonce, aad, plaintext, out)
    }

    fn aes_256_gcm_decrypt(
        &self,
        key: &[u8; 32],
        nonce: &[u8; 12],
        aad: &[u8],
        ciphertext_with_tag: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), CryptoProviderError> {
        RustCryptoProvider.aes_256_gcm_decrypt(key, nonce, aad, ciphertext_with_tag, out)
    }

    fn aes_256_gcm_encrypt_in_place(
        &self,
        key: &[u8; 32],
        nonce: &[u8; 12],
        aad: &[u8],
        buffer: &mut dyn GcmInPlaceBuffer,
    ) -> Result<(), CryptoProviderError> {
        RustCryptoProvider.aes_256_gcm_encrypt_in_place(key, nonce, aad, buffer)
    }

    fn aes_256_gcm_decrypt_in_place(
        &self,
        key: &[u8; 32],
        nonce: &[u8; 12],
        aad: &[u8],
        buffer: &mut dyn GcmInPlaceBuffer,
    ) -> Result<(), CryptoProviderError> {
        RustCryptoProvider.aes_256_gcm_decrypt_in_place(key, nonce, aad, buffer)
    }

    fn hmac_sha256(&self, key: &[u8], input: &[u8]) -> [u8; 32] {
        RustCryptoProvider.hmac_sha256(key, input)
    }

    fn hmac_sha256_two_part(&self, key: &[u8], first: &[u8], second: &[u8]) -> [u8; 32] {
        RustCryptoProvider.hmac_sha256_two_part(key, first, second)
    }

    fn transport_aead(
        &'static self,
        key: &[u8; 32],
    ) -> Result<Box<dyn TransportAead>, CryptoProviderError> {
        static PLAIN: RustCryptoProvider = RustCryptoProvider;
        PLAIN.transport_aead(key)
    }
}
