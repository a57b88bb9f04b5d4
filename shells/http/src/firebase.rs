//! Firebase ID tokens: RS256, signed by one of the keys that Google publishes and rotates.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use backfill_core::time::Mono;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use reqwest::header::CACHE_CONTROL;
use serde::Deserialize;
use serde_json::Value;

/// Where Google publishes the keys.
pub const KEYS_URL: &str =
    "https://www.googleapis.com/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com";

/// Which tokens count.
#[derive(Clone, Debug)]
pub struct FirebaseOptions {
    /// The Firebase project: audience and issuer
    pub project: String,
    /// Where the public keys are
    pub keys_url: String,
}

/// Judges tokens.
pub(crate) struct Firebase {
    options: FirebaseOptions,
    client: reqwest::Client,
    keys: RwLock<Keys>,
    /// One fetch at a time; when the latest began
    fetching: tokio::sync::Mutex<Option<Mono>>,
}

#[derive(Default)]
struct Keys {
    by_id: BTreeMap<String, Arc<DecodingKey>>,
    fresh_until: Mono,
    usable_until: Mono,
}

/// What a token says of its bearer.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Claims {
    pub(crate) sub: String,
    pub(crate) email: Option<String>,
    #[serde(default)]
    pub(crate) email_verified: bool,
    #[serde(flatten)]
    pub(crate) others: BTreeMap<String, Value>,
}

/// Why a token does not count.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("the keys cannot be fetched")]
    Keys,
    #[error("the token is not valid")]
    Invalid,
}

impl Firebase {
    pub(crate) fn new(options: FirebaseOptions) -> Result<Self, reqwest::Error> {
        // Two providers may be linked in; a program has to say which.
        let _ = jsonwebtoken::crypto::rust_crypto::DEFAULT_PROVIDER.install_default();
        let client = reqwest::Client::builder()
            .timeout(FETCH_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self {
            options,
            client,
            keys: RwLock::default(),
            fetching: tokio::sync::Mutex::default(),
        })
    }

    /// Judges a token.
    pub(crate) async fn verify(&self, token: &str, now: Mono) -> Result<Claims, TokenError> {
        let header = decode_header(token).map_err(|_| TokenError::Invalid)?;
        if header.alg != Algorithm::RS256 {
            return Err(TokenError::Invalid);
        }
        let kid = header.kid.ok_or(TokenError::Invalid)?;
        let key = self.key(&kid, now).await?;
        let mut validation = Validation::new(Algorithm::RS256);
        validation.set_audience(&[&self.options.project]);
        validation.set_issuer(&[format!("{ISSUER}{}", self.options.project)]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        validation.leeway = LEEWAY.as_secs();
        let claims =
            decode::<Claims>(token, &key, &validation).map_err(|_| TokenError::Invalid)?.claims;
        let usable = !claims.sub.is_empty() && claims.sub.len() <= 128;
        if usable { Ok(claims) } else { Err(TokenError::Invalid) }
    }

    async fn key(&self, kid: &str, now: Mono) -> Result<Arc<DecodingKey>, TokenError> {
        if let Some(key) = self.known(kid, |keys| now < keys.fresh_until) {
            return Ok(key);
        }
        {
            let mut fetching = self.fetching.lock().await;
            // Somebody may have fetched meanwhile, and unknown ids must not make us ask without end.
            let known = self.known(kid, |keys| now < keys.fresh_until);
            let lately = fetching.is_some_and(|at| now.since(at) < FETCH_SPACING);
            if known.is_none() && !lately {
                *fetching = Some(now);
                self.fetch(now).await;
            }
        }
        let usable = |keys: &Keys| now < keys.usable_until;
        self.known(kid, usable).ok_or_else(|| {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            if usable(&keys) { TokenError::Invalid } else { TokenError::Keys }
        })
    }

    fn known(&self, kid: &str, counts: impl Fn(&Keys) -> bool) -> Option<Arc<DecodingKey>> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        counts(&keys).then(|| keys.by_id.get(kid).cloned())?
    }

    async fn fetch(&self, now: Mono) {
        let fetched = async {
            let response = self.client.get(&self.options.keys_url).send().await?;
            let response = response.error_for_status()?;
            let header = response.headers().get(CACHE_CONTROL).and_then(|v| v.to_str().ok());
            let fresh = max_age(header.unwrap_or_default());
            Ok::<_, reqwest::Error>((fresh, response.json::<JwkSet>().await?))
        };
        let (fresh, set) = match fetched.await {
            Ok(fetched) => fetched,
            Err(error) => {
                tracing::warn!(
                    "[http] the keys of Firebase could not be fetched: {}",
                    error.without_url()
                );
                return;
            }
        };
        let by_id: BTreeMap<_, _> = set
            .keys
            .iter()
            .filter_map(|jwk| {
                let kid = jwk.common.key_id.clone()?;
                Some((kid, Arc::new(DecodingKey::from_jwk(jwk).ok()?)))
            })
            .collect();
        if !by_id.is_empty() {
            let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
            *keys = Keys { by_id, fresh_until: now + fresh, usable_until: now + fresh + STALE };
        }
    }
}

/// How long a response may be kept: what it says, within reason.
fn max_age(cache_control: &str) -> Duration {
    let seconds = cache_control
        .split(',')
        .filter_map(|part| part.trim().strip_prefix("max-age="))
        .find_map(|seconds| seconds.parse().ok());
    let said = seconds.map_or(Duration::from_secs(3_600), Duration::from_secs);
    said.clamp(Duration::from_secs(300), Duration::from_secs(24 * 3_600))
}

const ISSUER: &str = "https://securetoken.google.com/";
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// The keys are fetched at most this often.
const FETCH_SPACING: Duration = Duration::from_secs(10);
/// Keys that could not be fetched anew are used for this much longer.
const STALE: Duration = Duration::from_secs(6 * 3_600);
const LEEWAY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_kept_is_kept_within_reason() {
        let secs = Duration::from_secs;
        assert_eq!(max_age("public, max-age=20124, must-revalidate"), secs(20_124));
        assert_eq!(max_age("max-age=1"), secs(300));
        assert_eq!(max_age("no-store"), secs(3_600));
        assert_eq!(max_age("max-age=99999999"), secs(86_400));
    }
}
