//! Paths that need no credentials, and what all paths have in common.

use reqwest::Method;
use serde_json::Value;

use crate::world::{Setup, World, answer};

#[tokio::test]
async fn ready_says_who_holds_the_lock() {
    let world = World::active().await;
    let response = world.request(Method::GET, "/ready").send().await.unwrap();
    assert_eq!(response.status(), 200);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["ready"], true);
    assert_eq!(body["mode"], "active");
    assert_eq!(body["instanceId"], "here");
    assert_eq!(body["lockStatus"], "held_by_this_instance");
    assert_eq!(body["heldBy"], "here");
    assert!(body["lockExpiresInSeconds"].as_u64().is_some_and(|left| left > 30 && left <= 90));
    assert_eq!(body["timestamp"], "2023-11-14T22:13:20.000Z");
    assert!(body.get("reason").is_none());
}

#[tokio::test]
async fn diag_shows_connected_accounts_masked() {
    let world = World::active().await;
    let id = world.connected("0712345678").await;
    let (status, body) = world.get("/diag").await;
    assert_eq!(status, 200);
    assert_eq!(body["firestoreConnected"], true);
    assert_eq!(body["mode"], "active");
    let latest = body["latestRealtime"].as_array().unwrap();
    assert_eq!(latest.len(), 1, "{body}");
    assert_eq!(latest[0]["accountId"], id.masked().as_str());
    for name in [
        "lastRealtimeIngestAt",
        "lastRealtimeMessageAt",
        "lastRealtimeError",
        "lastRecentSyncAt",
        "lastRecentSyncStatus",
        "lastRecentSyncErrors",
    ] {
        assert!(latest[0].get(name).is_some(), "{name} is missing");
    }
    assert!(!body.to_string().contains(id.as_str()));
}

#[tokio::test]
async fn health_has_its_fields() {
    let world = World::active().await;
    world.connected("0712345678").await;
    let (status, body) = world.get("/health").await;
    assert_eq!(status, 200);
    assert_eq!(body["ok"], true);
    assert_eq!(body["status"], "healthy");
    assert_eq!(body["service"], "whatsapp-backend");
    assert_eq!(body["commit"], "abc");
    assert_eq!(body["accounts_total"], 1);
    assert_eq!(body["connected"], 1);
    assert_eq!(body["firestore"], "connected");
    for name in ["version", "instanceId", "bootTimestamp", "uptime", "timestamp", "requestId"] {
        assert!(!body[name].is_null(), "{name} is missing");
    }
}

#[tokio::test]
async fn open_paths_answer_while_the_store_is_silent() {
    let world = World::active().await;
    world.store.stalled.store(true, std::sync::atomic::Ordering::Relaxed);
    for path in ["/", "/ready", "/diag", "/health"] {
        let response = world.request(Method::GET, path).send();
        let response = tokio::time::timeout(std::time::Duration::from_secs(2), response).await;
        assert_eq!(response.expect("it answers").unwrap().status(), 200, "{path}");
    }
}

#[tokio::test]
async fn everything_else_needs_credentials() {
    let world = World::active().await;
    let (_, api) = world.get("/openapi.json").await;
    let paths = api["paths"].as_object().unwrap();
    let add = &paths["/api/whatsapp/add-account"]["post"]["responses"];
    assert!(add["401"].is_object() && add["503"].is_object(), "{add}");
    assert!(add["429"]["description"].as_str().is_some_and(|d| d.contains("MAX_ACCOUNTS")));
    assert!(paths["/ready"]["get"]["responses"]["401"].is_null());
    let mut open = Vec::new();
    for (path, operations) in paths {
        for (method, operation) in operations.as_object().unwrap() {
            let filled =
                path.replace("{id}", "x").replace("{accountId}", "x").replace("{threadId}", "x");
            let named = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let request = world.request(named, &filled);
            let status = request.send().await.unwrap().status().as_u16();
            let expected = match (operation["security"].is_array(), path.as_str()) {
                (true, "/api/whatsapp/qr/{id}") => 303,
                (true, _) => 401,
                (false, _) => {
                    open.push(format!("{method} {path}"));
                    continue;
                }
            };
            assert_eq!(status, expected, "{method} {path}");
        }
    }
    let expected = [
        "get /",
        "get /console",
        "get /console/console.css",
        "get /console/console.js",
        "get /console/login",
        "post /console/login",
        "get /console/login.js",
        "get /diag",
        "get /docs",
        "get /docs.js",
        "get /health",
        "get /ready",
    ];
    assert_eq!(open, expected);
}

#[tokio::test]
async fn unknown_paths_and_methods_answer_in_json() {
    let world = World::active().await;
    let (status, body) = world.get("/api/ai/settings").await;
    assert_eq!((status.as_u16(), &body["error"]), (404, &"not_found".into()));
    assert_eq!(body["success"], false);
    let (status, body) = world.delete("/api/whatsapp/add-account").await;
    assert_eq!((status.as_u16(), &body["error"]), (405, &"method_not_allowed".into()));
}

#[tokio::test]
async fn request_ids_are_echoed_if_they_are_plain() {
    let world = World::active().await;
    let request = world.request(Method::GET, "/health").header("X-Request-Id", "abc-123");
    let (_, body) = answer(request.send().await.unwrap()).await;
    assert_eq!(body["requestId"], "abc-123");
    let long = "x".repeat(300);
    let request = world.request(Method::GET, "/health").header("X-Request-Id", &long);
    let (_, body) = answer(request.send().await.unwrap()).await;
    assert_eq!(body["requestId"].as_str().map(str::len), Some(32));
}

#[tokio::test]
async fn answers_tell_browsers_to_be_careful() {
    let world = World::active().await;
    for path in ["/ready", "/console/login", "/nowhere"] {
        let response = world.request(Method::GET, path).send().await.unwrap();
        let headers = response.headers();
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"));
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["x-frame-options"], "DENY");
    }
}

#[tokio::test]
async fn large_bodies_and_headers_are_refused() {
    let world = World::active().await;
    let body = serde_json::json!({ "name": "x".repeat(200_000) });
    let (status, body) = world.post("/api/whatsapp/add-account", body).await;
    assert_eq!((status.as_u16(), &body["error"]), (413, &"payload_too_large".into()));
    let request = world.request(Method::GET, "/ready").header("X-Large", "x".repeat(60_000));
    let refused = request.send().await.map_or(true, |response| response.status() == 431);
    assert!(refused);
    let (status, body) = world.post("/api/whatsapp/add-account", serde_json::json!([1])).await;
    assert_eq!((status.as_u16(), &body["error"]), (422, &"bad_request".into()));
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let world = World::active().await;
    let id = world.connected("0712345678").await;
    world.post(&format!("/api/whatsapp/backfill/{}", id.as_str()), Value::Null).await;
    world
        .until("the run has started", async || {
            world.measures("wa_runs_total{kind=\"auto_backfill\",trigger=\"manual\"} 1")
        })
        .await;
    let (status, text) = world.get("/metrics").await;
    assert_eq!(status, 200);
    let text = text.as_str().unwrap();
    for line in [
        "wa_mode{mode=\"active\"} 1",
        "wa_accounts{status=\"connected\"} 1",
        "wa_connections{state=\"open\"} 1",
        "wa_manual_backfills_total{caller=\"admin_token\"} 1",
        "wa_runs_total{kind=\"auto_backfill\",trigger=\"manual\"} 1",
        "wa_leases_taken_total{key=\"lock\"} 1",
        "wa_leases_taken_total{key=\"account\"} 1",
        "wa_store_connected 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
    }
    assert!(text.contains("wa_store_operations_total{op=\"write\"}"));
    assert!(text.contains("wa_store_commit_seconds_bucket"));
    assert!(!text.contains(id.as_str()) && !text.contains("712345678"));
}

#[tokio::test]
async fn addresses_have_a_limit_that_open_paths_do_not_share() {
    let mut setup = Setup::new();
    setup.access.per_ip = 40;
    let world = setup.active().await;
    let mut last = None;
    for _ in 0..11 {
        last = Some(world.request(Method::GET, "/accounts").send().await.unwrap());
    }
    let last = last.unwrap();
    assert_eq!(last.status(), 429);
    assert!(last.headers().contains_key("retry-after"));
    let body: Value = last.json().await.unwrap();
    assert_eq!(body["error"], "rate_limited");
    assert_eq!(world.request(Method::GET, "/ready").send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn tokens_have_a_limit() {
    let mut setup = Setup::new();
    setup.access.per_token = 40;
    let world = setup.active().await;
    let mut last = None;
    for _ in 0..11 {
        last = Some(world.get("/accounts").await.0);
    }
    assert_eq!(last.unwrap(), 429);
}
