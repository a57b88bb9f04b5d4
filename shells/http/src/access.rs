//! Who calls, and what they may do.

use std::collections::BTreeSet;
use std::net::IpAddr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use backfill_core::time::Mono;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::app::App;
use crate::error::Failure;
use crate::firebase::{Firebase, FirebaseOptions, TokenError};
use crate::limits::Limit;

/// Who may do what.
#[derive(Clone)]
pub struct AccessOptions {
    /// Whoever knows it may do everything
    pub admin_token: String,
    /// Whose ID tokens count, if any
    pub firebase: Option<FirebaseOptions>,
    /// If not empty: only these users may add, pair, delete and backfill accounts
    pub operators: BTreeSet<String>,
    /// or those whose token has this claim set to true
    pub operator_claim: Option<String>,
    /// Requests a minute and token; 0 for no limit
    pub per_token: u32,
    /// Requests a minute and address; 0 for no limit
    pub per_ip: u32,
    /// The address is the last one of `X-Forwarded-For`
    pub behind_proxy: bool,
}

/// Judges callers.
pub(crate) struct Access {
    options: AccessOptions,
    firebase: Option<Firebase>,
    session_key: [u8; 32],
    per_token: Limit<[u8; 32]>,
    per_ip: Limit<IpAddr>,
    logins: Limit<IpAddr>,
}

/// Somebody whose credentials were checked.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) kind: CallerKind,
    pub(crate) uid: String,
    operator: bool,
}

/// How somebody showed who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallerKind {
    Admin,
    Console,
    Firebase,
}

/// A caller who may change accounts.
pub(crate) struct Operator(pub(crate) Caller);

/// A caller with the admin token, or logged in with it.
pub(crate) struct Admin;

/// A login of the console.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Session {
    exp: u64,
    /// To be sent along with every change
    pub(crate) csrf: String,
}

/// The address a request came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) IpAddr);

impl CallerKind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin_token",
            Self::Console => "console",
            Self::Firebase => "firebase",
        }
    }
}

impl Access {
    /// # Errors
    /// The client that fetches Firebase's keys cannot be made.
    pub(crate) fn new(options: AccessOptions) -> Result<Self, reqwest::Error> {
        let session_key = Sha256::new()
            .chain_update(b"wa-backfill console session")
            .chain_update(options.admin_token.as_bytes())
            .finalize();
        Ok(Self {
            firebase: options.firebase.clone().map(Firebase::new).transpose()?,
            session_key: session_key.into(),
            per_token: Limit::new(options.per_token),
            per_ip: Limit::new(options.per_ip),
            logins: Limit::new(LOGINS_PER_MINUTE),
            options,
        })
    }

    pub(crate) fn check_ip(&self, parts: (&HeaderMap, Option<Peer>)) -> Result<(), Failure> {
        let Some(ip) = self.ip(parts.0, parts.1) else { return Ok(()) };
        self.per_ip.take(&ip).map_err(too_many)
    }

    fn ip(&self, headers: &HeaderMap, peer: Option<Peer>) -> Option<IpAddr> {
        let forwarded = || {
            let all = headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?;
            all.rsplit(',').next()?.trim().parse().ok()
        };
        let forwarded = if self.options.behind_proxy { forwarded() } else { None };
        forwarded.or(peer.map(|peer| peer.0))
    }

    /// A login with the admin token.
    pub(crate) fn log_in(
        &self,
        token: &str,
        origin: (&HeaderMap, Option<Peer>),
    ) -> Result<(Session, String), Failure> {
        if let Some(ip) = self.ip(origin.0, origin.1) {
            self.logins.take(&ip).map_err(too_many)?;
        }
        if !self.is_admin_token(token) {
            return Err(unauthorized("The token is wrong."));
        }
        let exp = jsonwebtoken::get_current_timestamp() + SESSION_SECONDS;
        let session = Session { exp, csrf: crate::app::random_hex() };
        let key = EncodingKey::from_secret(&self.session_key);
        let cookie = encode(&Header::new(Algorithm::HS256), &session, &key).map_err(|_| {
            Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The login failed.")
        })?;
        let cookie = format!(
            "{COOKIE}={cookie}; Path=/; Max-Age={SESSION_SECONDS}; HttpOnly; SameSite=Strict"
        );
        Ok((session, cookie))
    }

    /// The login that a request's cookie shows.
    pub(crate) fn session(&self, headers: &HeaderMap) -> Option<Session> {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok());
        let cookie = cookies
            .flat_map(|cookies| cookies.split(';'))
            .find_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('='))?;
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = 0;
        let key = DecodingKey::from_secret(&self.session_key);
        Some(decode::<Session>(cookie, &key, &validation).ok()?.claims)
    }

    fn is_admin_token(&self, token: &str) -> bool {
        // Hashed first, so that not even the length shows in the time it takes.
        let hash = |text: &str| Sha256::digest(text.as_bytes());
        hash(token).ct_eq(&hash(&self.options.admin_token)).into()
    }

    async fn caller(&self, parts: &Parts, now: Mono) -> Result<Caller, Failure> {
        let bearer = parts.headers.get(header::AUTHORIZATION);
        let Some(bearer) = bearer else {
            return self.console_caller(parts);
        };
        let token = bearer
            .to_str()
            .ok()
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or_else(|| unauthorized("The Authorization header has to be a bearer token."))?;
        let id: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if self.is_admin_token(token) {
            self.per_token.take(&id).map_err(too_many)?;
            return Ok(Caller { kind: CallerKind::Admin, uid: "admin".into(), operator: true });
        }
        let Some(firebase) = &self.firebase else {
            return Err(unauthorized("The token is wrong."));
        };
        let claims = firebase.verify(token, now).await.map_err(|error| match error {
            TokenError::Invalid => unauthorized("The token is not valid, or has expired."),
            TokenError::Keys => Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "auth_unavailable",
                "Tokens cannot be checked now.",
            )
            .retry_after(10),
        })?;
        self.per_token.take(&Sha256::digest(claims.sub.as_bytes()).into()).map_err(too_many)?;
        let narrowed = !self.options.operators.is_empty() || self.options.operator_claim.is_some();
        let listed = claims.email_verified
            && claims
                .email
                .as_ref()
                .is_some_and(|email| self.options.operators.contains(&email.to_lowercase()));
        let claimed = self.options.operator_claim.as_ref().is_some_and(|name| {
            claims.others.get(name).and_then(serde_json::Value::as_bool) == Some(true)
        });
        let operator = !narrowed || listed || claimed;
        Ok(Caller { kind: CallerKind::Firebase, uid: claims.sub, operator })
    }

    fn console_caller(&self, parts: &Parts) -> Result<Caller, Failure> {
        let session = self
            .session(&parts.headers)
            .ok_or_else(|| unauthorized("A bearer token or a login is needed."))?;
        if !matches!(parts.method, Method::GET | Method::HEAD) {
            let given = parts.headers.get(CSRF_HEADER).map(|value| value.as_bytes());
            let matches = given.is_some_and(|given| given.ct_eq(session.csrf.as_bytes()).into());
            if !matches {
                return Err(Failure::new(
                    StatusCode::FORBIDDEN,
                    "csrf",
                    "The X-CSRF-Token header is missing or wrong.",
                ));
            }
        }
        Ok(Caller { kind: CallerKind::Console, uid: "admin".into(), operator: true })
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Failure> {
        app.access().caller(parts, app.now()).await
    }
}

impl FromRequestParts<App> for Operator {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Failure> {
        let caller = Caller::from_request_parts(parts, app).await?;
        if caller.operator { Ok(Self(caller)) } else { Err(forbidden()) }
    }
}

impl FromRequestParts<App> for Admin {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Failure> {
        let caller = Caller::from_request_parts(parts, app).await?;
        if caller.kind == CallerKind::Firebase { Err(forbidden()) } else { Ok(Self) }
    }
}

fn unauthorized(message: &str) -> Failure {
    Failure::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
}

fn forbidden() -> Failure {
    Failure::new(StatusCode::FORBIDDEN, "forbidden", "These credentials do not allow this.")
}

fn too_many(seconds: u64) -> Failure {
    Failure::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", "Too many requests.")
        .retry_after(seconds)
}

/// Takes the login away.
pub(crate) const LOGGED_OUT: &str = "wa_console=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict";
const COOKIE: &str = "wa_console";
const CSRF_HEADER: &str = "x-csrf-token";
const LOGINS_PER_MINUTE: u32 = 20;
const SESSION_SECONDS: u64 = 12 * 3_600;
