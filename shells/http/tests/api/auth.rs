//! Firebase ID tokens, and who may do what with them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::routing::get;
use axum::{Json, Router};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::Method;
use serde_json::{Value, json};
use wa_http::FirebaseOptions;

use crate::world::{Setup, World, answer};

/// Publishes keys as Google does.
struct Google {
    keys: Arc<Mutex<Vec<Jwk>>>,
    fetched: Arc<AtomicUsize>,
    url: String,
}

impl Google {
    async fn start() -> Self {
        let _ = jsonwebtoken::crypto::rust_crypto::DEFAULT_PROVIDER.install_default();
        let keys = Arc::new(Mutex::new(vec![published("first", &first())]));
        let fetched = Arc::new(AtomicUsize::new(0));
        let (shown, count) = (Arc::clone(&keys), Arc::clone(&fetched));
        let router = Router::new().route(
            "/keys",
            get(async move || {
                count.fetch_add(1, Ordering::Relaxed);
                let keys = shown.lock().unwrap().clone();
                Json(json!({ "keys": keys }))
            }),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { keys, fetched, url }
    }

    fn options(&self) -> FirebaseOptions {
        FirebaseOptions { project: "shop".into(), keys_url: self.url.clone() }
    }

    async fn world(&self) -> World {
        let mut setup = Setup::new();
        setup.access.firebase = Some(self.options());
        setup.active().await
    }
}

fn first() -> EncodingKey {
    EncodingKey::from_rsa_der(include_bytes!("keys/first.der"))
}

fn second() -> EncodingKey {
    EncodingKey::from_rsa_der(include_bytes!("keys/second.der"))
}

fn published(id: &str, key: &EncodingKey) -> Jwk {
    let mut jwk = Jwk::from_encoding_key(key, Algorithm::RS256).unwrap();
    jwk.common.key_id = Some(id.into());
    jwk
}

fn claims() -> Value {
    let now = jsonwebtoken::get_current_timestamp();
    json!({
        "iss": "https://securetoken.google.com/shop",
        "aud": "shop",
        "sub": "user-1",
        "email": "Somebody@Example.com",
        "email_verified": true,
        "iat": now - 10,
        "exp": now + 3_600,
    })
}

fn token(kid: &str, key: &EncodingKey, change: Value) -> String {
    let mut claims = claims();
    for (name, value) in change.as_object().unwrap() {
        claims[name] = value.clone();
    }
    let mut header = Header::new(Algorithm::RS256);
    header.kid = Some(kid.into());
    encode(&header, &claims, key).unwrap()
}

async fn status(world: &World, token: &str) -> u16 {
    let request = world.request(Method::GET, "/api/whatsapp/accounts").bearer_auth(token);
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_valid_token_opens_the_api_but_not_administration() {
    let google = Google::start().await;
    let world = google.world().await;
    let token = token("first", &first(), json!({}));
    assert_eq!(status(&world, &token).await, 200);
    assert_eq!(status(&world, &token).await, 200);
    assert_eq!(google.fetched.load(Ordering::Relaxed), 1, "the keys are kept");
    let add = world.request(Method::POST, "/api/whatsapp/add-account").bearer_auth(&token);
    let (status, _) = answer(add.json(&json!({ "name": "A" })).send().await.unwrap()).await;
    assert_eq!(status, 200, "any verified token may do what the table says");
    for path in ["/metrics", "/api/admin/overview", "/console/session"] {
        let request = world.request(Method::GET, path).bearer_auth(&token);
        assert_eq!(request.send().await.unwrap().status(), 403, "{path}");
    }
}

#[tokio::test]
async fn tokens_that_say_something_else_are_refused() {
    let google = Google::start().await;
    let world = google.world().await;
    let now = jsonwebtoken::get_current_timestamp();
    for change in [
        json!({ "exp": now - 100 }),
        json!({ "aud": "another" }),
        json!({ "iss": "https://securetoken.google.com/another" }),
        json!({ "sub": "" }),
    ] {
        assert_eq!(
            status(&world, &token("first", &first(), change.clone())).await,
            401,
            "{change}"
        );
    }
    assert_eq!(status(&world, &token("first", &second(), json!({}))).await, 401, "another key");
    assert_eq!(status(&world, "nonsense").await, 401);

    // The public key as a shared secret, and no signature at all.
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("first".into());
    let secret = EncodingKey::from_secret(include_bytes!("keys/first.der"));
    assert_eq!(status(&world, &encode(&header, &claims(), &secret).unwrap()).await, 401);
    let valid = token("first", &first(), json!({}));
    let (head, _) = valid.rsplit_once('.').unwrap();
    assert_eq!(status(&world, &format!("{head}.")).await, 401);
}

#[tokio::test]
async fn unknown_keys_are_looked_up_but_not_without_end() {
    let google = Google::start().await;
    google.keys.lock().unwrap().push(published("second", &second()));
    let world = google.world().await;
    assert_eq!(status(&world, &token("second", &second(), json!({}))).await, 200);
    for _ in 0..5 {
        assert_eq!(status(&world, &token("third", &second(), json!({}))).await, 401);
    }
    assert_eq!(google.fetched.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn without_keys_nobody_is_let_in_and_nobody_is_called_a_liar() {
    let mut setup = Setup::new();
    let keys_url = "http://127.0.0.1:9/keys".to_owned();
    setup.access.firebase = Some(FirebaseOptions { project: "shop".into(), keys_url });
    let world = setup.active().await;
    let _ = jsonwebtoken::crypto::rust_crypto::DEFAULT_PROVIDER.install_default();
    assert_eq!(status(&world, &token("first", &first(), json!({}))).await, 503);
}

#[tokio::test]
async fn operators_can_be_named_by_address_or_claim() {
    let google = Google::start().await;
    let mut setup = Setup::new();
    setup.access.firebase = Some(google.options());
    setup.access.operators = ["somebody@example.com".to_owned()].into();
    setup.access.operator_claim = Some("admin".into());
    let world = setup.active().await;
    let add = async |change: Value| {
        let token = token("first", &first(), change);
        let request = world.request(Method::POST, "/api/whatsapp/add-account").bearer_auth(token);
        request.json(&json!({ "name": "A" })).send().await.unwrap().status().as_u16()
    };
    assert_eq!(add(json!({})).await, 200);
    assert_eq!(add(json!({ "email_verified": false })).await, 403);
    assert_eq!(add(json!({ "email": "other@example.com" })).await, 403);
    assert_eq!(add(json!({ "email": "other@example.com", "admin": true })).await, 200);
    assert_eq!(add(json!({ "email": null, "admin": "true" })).await, 403);
    let reader = token("first", &first(), json!({ "email": "other@example.com" }));
    assert_eq!(status(&world, &reader).await, 200, "reading is for everybody");
}
