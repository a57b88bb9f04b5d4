//! Instances that do not serve: passive, or owner of other accounts.

use std::time::Duration;

use backfill_core::id::InstanceId;
use backfill_core::policy::Settings;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Setup, World};

async fn beside(world: &Setup, name: &str) -> World {
    let mut other = Setup::new();
    other.settings = world.settings.clone();
    other.settings.instance = InstanceId::parse(name).unwrap();
    other.file = world.file.clone();
    other.start().await
}

#[tokio::test]
async fn a_passive_instance_says_who_serves_and_changes_nothing() {
    let setup = Setup::new();
    let template = Setup { file: setup.file.clone(), ..Setup::new() };
    let active = setup.active().await;
    let id = active.connected("0712345678").await;
    let passive = beside(&template, "there").await;
    passive
        .until("it knows who serves", async || passive.get("/ready").await.1["heldBy"] == "here")
        .await;
    let (status, body) = passive.get("/ready").await;
    assert_eq!(status, 200);
    assert_eq!(body["ready"], false);
    assert_eq!(body["mode"], "passive");
    assert_eq!(body["reason"], "lock_held_by_other_instance");
    assert_eq!(body["lockStatus"], "held_by_other");

    let id = id.as_str();
    let changes = [
        (Method::POST, "/api/whatsapp/add-account".to_owned(), json!({ "name": "B" })),
        (Method::POST, "/api/whatsapp/add-account".to_owned(), json!(["not even a body"])),
        (Method::POST, format!("/api/whatsapp/regenerate-qr/{id}"), Value::Null),
        (Method::DELETE, format!("/api/whatsapp/accounts/{id}"), Value::Null),
        (Method::POST, format!("/api/whatsapp/backfill/{id}"), Value::Null),
        (
            Method::POST,
            "/api/whatsapp/send-message".to_owned(),
            json!({ "accountId": id, "to": "15551234567", "message": "Hi" }),
        ),
    ];
    for (method, path, body) in changes {
        let (status, body) = match method {
            Method::DELETE => passive.delete(&path).await,
            _ => passive.post(&path, body).await,
        };
        assert_eq!(status, 503, "{path}");
        assert_eq!(body["success"], false);
        assert_eq!(body["error"], "instance_passive");
        assert_eq!(body["mode"], "passive");
        assert_eq!(body["waMode"], "passive");
        assert_eq!(body["instanceId"], "there");
        assert_eq!(body["holderInstanceId"], "here");
        assert_eq!(body["retryAfterSeconds"], 15);
        assert!(body["message"].is_string() && body["requestId"].is_string());
    }
    let (status, body) = passive.get("/api/whatsapp/accounts").await;
    assert_eq!(status, 200);
    assert_eq!(body["waMode"], "passive");
    assert_eq!(body["lockReason"], "lock_held_by_other_instance");
    assert_eq!(body["accounts"][0]["passiveModeReason"], "lock_held_by_other_instance");
    assert_eq!(active.whatsapp.sent().len(), 0);
}

#[tokio::test]
async fn a_graceful_stop_lets_the_other_one_serve_at_once() {
    let mut setup = Setup::new();
    setup.settings.passive_retry = Duration::from_secs(15);
    let template = Setup { file: setup.file.clone(), ..Setup::new() };
    let active = setup.active().await;
    let passive = beside(&template, "there").await;
    passive
        .until("it knows who serves", async || passive.get("/ready").await.1["heldBy"] == "here")
        .await;
    active.stop().await;
    passive.until("it serves", async || passive.get("/ready").await.1["ready"] == true).await;
}

#[tokio::test]
async fn in_shared_mode_the_owner_is_named() {
    let mut setup = Setup::new();
    setup.settings = Settings::shared(InstanceId::parse("here").unwrap(), "c");
    setup.settings.credentials = backfill_core::policy::Credentials::Shared;
    setup.settings.connect_stagger = Duration::ZERO;
    let template =
        Setup { file: setup.file.clone(), settings: setup.settings.clone(), ..Setup::new() };
    let owner = setup.active().await;
    let id = owner.connected("0712345678").await;
    let other = beside(&template, "there").await;
    other.until("it serves too", async || other.get("/ready").await.1["ready"] == true).await;
    assert_eq!(other.get("/ready").await.1["heldBy"], "shared:c");
    let path = format!("/api/whatsapp/backfill/{}", id.as_str());
    other
        .until("it has seen the account", async || {
            other.post(&path, Value::Null).await.1["ownerInstanceId"] == "here"
        })
        .await;
    let (status, body) = other.post(&path, Value::Null).await;
    assert_eq!(status, 503);
    assert_eq!(body["error"], "not_owner");
    assert!(body["retryAfterSeconds"].as_u64().is_some_and(|s| s > 0));

    let body = json!({ "accountId": id.as_str(), "to": "15551234567", "message": "Hi" });
    let (status, body) = other.post("/api/whatsapp/send-message", body).await;
    assert_eq!(status, 200, "{body}");
    owner.until("the owner sends it", async || owner.whatsapp.sent().len() == 1).await;
    assert_eq!(other.whatsapp.sent().len(), 0);
}
