//! Accounts: every row of the table that is about them.

use backfill_core::doc::Value as Field;
use backfill_core::time::StoreTime;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{ADMIN, Setup, World};

#[tokio::test]
async fn adding_gives_the_same_account_for_the_same_phone() {
    let world = World::active().await;
    let body = json!({ "name": "Shop", "phone": "0712 345 678" });
    let (status, first) = world.post("/api/whatsapp/add-account", body).await;
    assert_eq!(status, 200, "{first}");
    assert_eq!(first["success"], true);
    assert_eq!(first["instanceId"], "here");
    assert_eq!(first["waMode"], "active");
    let account = &first["account"];
    let id = account["id"].as_str().unwrap();
    assert!(id.starts_with("account_prod_") && id.len() == "account_prod_".len() + 32);
    assert_eq!(account["phone"], "+40712345678");
    assert_eq!(account["status"], "connecting");
    assert!(account["qrCode"].is_null() && account["pairingCode"].is_null());
    assert_eq!(account["createdAt"], "2023-11-14T22:13:20.000Z");

    let body = json!({ "name": "Other", "phone": "+40712345678" });
    let (status, second) = world.post("/api/whatsapp/add-account", body).await;
    assert_eq!(status, 200);
    assert_eq!(second["account"]["id"], id);
    assert_eq!(second["account"]["name"], "Shop", "nothing was written");
    assert_eq!(
        world.get("/api/whatsapp/accounts").await.1["accounts"].as_array().unwrap().len(),
        1
    );
}

#[tokio::test]
async fn accounts_without_a_phone_get_ids_of_their_own() {
    let world = World::active().await;
    let (_, first) = world.post("/api/whatsapp/add-account", json!({ "name": "A" })).await;
    let (_, second) = world.post("/api/whatsapp/add-account", json!({ "name": "A" })).await;
    assert_ne!(first["account"]["id"], second["account"]["id"]);
    assert!(first["account"]["phone"].is_null());
}

#[tokio::test]
async fn what_cannot_be_added_is_refused() {
    let world = World::active().await;
    for body in [json!({ "name": " " }), json!({ "name": "A", "phone": "12" })] {
        let (status, answer) = world.post("/api/whatsapp/add-account", body).await;
        assert_eq!((status.as_u16(), &answer["error"]), (400, &"bad_request".into()));
    }
}

#[tokio::test]
async fn there_are_at_most_as_many_as_allowed() {
    let mut setup = Setup::new();
    setup.max_accounts = 1;
    let world = setup.active().await;
    let id = world.added("0712345678").await;
    let (status, body) = world.post("/api/whatsapp/add-account", json!({ "name": "B" })).await;
    assert_eq!((status.as_u16(), &body["error"]), (429, &"rate_limited".into()));
    assert_eq!(world.added("0712345678").await, id, "it is there already");
}

#[tokio::test]
async fn the_list_has_its_fields() {
    let world = World::active().await;
    let id = world.connected("0712345678").await;
    world
        .until("the list is fresh", async || {
            world.get("/accounts").await.1["accounts"][0]["status"] == "connected"
        })
        .await;
    let (status, body) = world.get("/api/whatsapp/accounts").await;
    assert_eq!(status, 200);
    assert_eq!(body["instanceId"], "here");
    assert_eq!(body["waMode"], "active");
    assert!(body["lockReason"].is_null() && body["cached"].is_boolean());
    let account = body["accounts"][0].as_object().unwrap();
    let mut names: Vec<&str> = account.keys().map(String::as_str).collect();
    names.sort_unstable();
    let expected = [
        "createdAt",
        "id",
        "lastError",
        "lastUpdate",
        "name",
        "pairingCode",
        "passiveModeReason",
        "phone",
        "qrCode",
        "status",
    ];
    assert_eq!(names, expected);
    assert_eq!(account["id"], id.as_str());
    assert!(account["lastUpdate"].as_str().is_some_and(|at| at.ends_with('Z') && at.len() == 24));
}

#[tokio::test]
async fn pairing_shows_a_picture_and_can_begin_again() {
    let world = World::active().await;
    let id = world.added("0712345678").await;
    world.until_status(&id, "qr_ready").await;
    let page = format!("/api/whatsapp/qr/{}", id.as_str());
    let (status, html) = world.get(&page).await;
    assert_eq!(status, 200);
    assert!(html.as_str().unwrap().contains("src=\"data:image/png;base64,AAAA\""), "{html}");

    let again = format!("/api/whatsapp/regenerate-qr/{}", id.as_str());
    let (status, body) = world.post(&again, Value::Null).await;
    assert_eq!((status.as_u16(), &body["status"]), (202, &"already_in_progress".into()));
    world.whatsapp.expire(&id);
    world.until_status(&id, "needs_qr").await;
    let (status, body) = world.post(&again, Value::Null).await;
    assert_eq!((status.as_u16(), &body["status"]), (200, &"in_progress".into()));
    assert_eq!(body["success"], true);
    assert!(body["message"].is_string() && body["requestId"].is_string());
    world.until_status(&id, "qr_ready").await;
    world.whatsapp.scan(&id);
    world.until_status(&id, "connected").await;
    assert!(world.get(&page).await.1.as_str().unwrap().contains("is connected"));

    let (status, body) =
        world.post("/api/whatsapp/regenerate-qr/account_prod_x", Value::Null).await;
    assert_eq!((status.as_u16(), &body["error"]), (404, &"account_not_found".into()));
    let (status, html) = world.get("/api/whatsapp/qr/account_prod_x").await;
    assert_eq!(status, 404);
    assert!(html.as_str().unwrap().contains("<!doctype html>"));
}

#[tokio::test]
async fn deleting_keeps_the_document() {
    let world = World::active().await;
    let id = world.connected("0712345678").await;
    let path = format!("/api/whatsapp/accounts/{}", id.as_str());
    let (status, body) = world.delete(&path).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["accountId"], id.as_str());
    assert_eq!(body["status"], "deleted");
    world.until_status(&id, "deleted").await;
    world.until("it is gone", async || world.delete(&path).await.0 == 404).await;
    assert_eq!(world.get("/accounts").await.1["accounts"], json!([]));
    assert_eq!(world.added("0712345678").await, id, "it can come back");
    world.until_status(&id, "qr_ready").await;
}

#[tokio::test]
async fn a_backfill_is_started_once() {
    let world = World::active().await;
    let (status, body) = world.post("/api/whatsapp/backfill/account_prod_x", Value::Null).await;
    assert_eq!((status.as_u16(), &body["error"]), (404, &"account_not_found".into()));

    let waiting = world.added("0700000000").await;
    world.until_status(&waiting, "qr_ready").await;
    let path = format!("/api/whatsapp/backfill/{}", waiting.as_str());
    let (status, body) = world.post(&path, Value::Null).await;
    assert_eq!((status.as_u16(), &body["error"]), (409, &"invalid_state".into()));
    assert_eq!(body["currentStatus"], "qr_ready");

    let id = world.connected("0712345678").await;
    a_thread_with_a_message(&world, id.as_str()).await;
    let path = format!("/api/whatsapp/backfill/{}", id.as_str());
    let (status, body) = world.post(&path, Value::Null).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["success"], true);
    assert_eq!(body["message"], "Backfill started (runs asynchronously)");
    assert_eq!(body["accountId"], id.as_str());
    world
        .until("the document says that it runs", async || {
            let doc = world.document(id.path().as_str()).await.unwrap();
            doc.contains_key("lastAutoBackfillStatus")
        })
        .await;
    let (status, body) = world.post(&path, Value::Null).await;
    assert_eq!(status, 200);
    assert_eq!(body["alreadyRunning"], true, "{body}");
    assert_eq!(body["run"]["running"], true, "{body}");
    assert_eq!(body["run"]["trigger"], "manual");
    assert!(world.measures("wa_runs_total{kind=\"auto_backfill\",trigger=\"manual\"} 1"));
    assert!(world.measures("wa_manual_backfills_total{caller=\"admin_token\"} 4"));
}

async fn a_thread_with_a_message(world: &World, account: &str) {
    let at = Field::Timestamp(StoreTime::from_secs(1_699_999_000));
    let thread = format!("threads/{account}__1555@s.whatsapp.net");
    world.put(&thread, vec![("accountId", account.into()), ("lastMessageAt", at.clone())]).await;
    let key = Field::map([
        ("id", Field::from("3EB0AA")),
        ("remoteJid", "1555@s.whatsapp.net".into()),
        ("fromMe", false.into()),
        ("timestamp", Field::Int(1_699_999_000)),
    ]);
    let message = vec![
        ("accountId", account.into()),
        ("direction", "inbound".into()),
        ("body", "hello".into()),
        ("tsClient", at),
        ("waMessageId", "3EB0AA".into()),
        ("key", key),
    ];
    world.put(&format!("{thread}/messages/3EB0AA"), message).await;
}

#[tokio::test]
async fn a_browser_without_a_login_is_sent_to_it() {
    let world = World::active().await;
    let response = world.request(Method::GET, "/api/whatsapp/qr/x").send().await.unwrap();
    assert_eq!(response.status(), 303);
    assert_eq!(response.headers()["location"], "/console/login");
    let wrong = world.request(Method::GET, "/accounts").bearer_auth(format!("{ADMIN}x"));
    assert_eq!(wrong.send().await.unwrap().status(), 401);
}
