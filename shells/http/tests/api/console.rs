//! The console's login, and what only the console reads.

use reqwest::{Method, header};
use serde_json::{Value, json};

use crate::world::{ADMIN, Setup, World, answer};

async fn log_in(world: &World) -> (String, String) {
    let request = world.request(Method::POST, "/console/login").json(&json!({ "token": ADMIN }));
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    for flag in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(flag), "{cookie}");
    }
    let cookie = cookie.split(';').next().unwrap().to_owned();
    assert!(!cookie.contains(ADMIN));
    let (_, body) = answer(response).await;
    (cookie, body["csrf"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_login_reads_by_itself_and_changes_only_with_its_token() {
    let world = World::active().await;
    let (cookie, csrf) = log_in(&world).await;
    let session = world.request(Method::GET, "/console/session").header(header::COOKIE, &cookie);
    let (status, body) = answer(session.send().await.unwrap()).await;
    assert_eq!(status, 200);
    assert_eq!(body["csrf"], csrf.as_str());
    assert_eq!(body["debug"], false);
    let add = |csrf: Option<&str>| {
        let request = world
            .request(Method::POST, "/api/whatsapp/add-account")
            .header(header::COOKIE, &cookie)
            .json(&json!({ "name": "A" }));
        match csrf {
            Some(csrf) => request.header("X-CSRF-Token", csrf),
            None => request,
        }
    };
    assert_eq!(add(None).send().await.unwrap().status(), 403);
    assert_eq!(add(Some("wrong")).send().await.unwrap().status(), 403);
    assert_eq!(add(Some(&csrf)).send().await.unwrap().status(), 200);
    let forged =
        world.request(Method::GET, "/console/session").header(header::COOKIE, "wa_console=x.y.z");
    assert_eq!(forged.send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn wrong_tokens_do_not_log_in_and_guessing_is_slow() {
    let world = World::active().await;
    let mut refused = Vec::new();
    for _ in 0..6 {
        let request =
            world.request(Method::POST, "/console/login").json(&json!({ "token": "guess" }));
        refused.push(request.send().await.unwrap().status().as_u16());
    }
    assert_eq!(refused, [401, 401, 401, 401, 401, 429]);
}

#[tokio::test]
async fn the_page_needs_a_login_and_brings_no_foreign_code() {
    let world = World::active().await;
    let response = world.request(Method::GET, "/console").send().await.unwrap();
    assert_eq!(response.status(), 303);
    assert_eq!(response.headers()["location"], "/console/login");
    let (cookie, _) = log_in(&world).await;
    let page = world.request(Method::GET, "/console").header(header::COOKIE, &cookie);
    let (status, html) = answer(page.send().await.unwrap()).await;
    assert_eq!(status, 200);
    let html = html.as_str().unwrap();
    assert!(!html.contains("://") && !html.contains("style=") && !html.contains("onclick"));
    for path in ["/console/console.js", "/console/console.css", "/console/login.js", "/docs.js"] {
        let response = world.request(Method::GET, path).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.text().await.unwrap().len() > 500, "{path}");
    }
}

#[tokio::test]
async fn the_overview_says_how_an_account_stands() {
    let world = World::active().await;
    let id = world.connected("0712345678").await;
    world
        .until("the list is fresh", async || {
            let (_, body) = world.get("/api/admin/overview").await;
            body["accounts"][0]["status"] == "connected"
        })
        .await;
    let (_, body) = world.get("/api/admin/overview").await;
    assert_eq!(body["instance"]["mode"], "active");
    assert_eq!(body["instance"]["storeConnected"], true);
    let account = &body["accounts"][0];
    assert_eq!(account["id"], id.as_str());
    assert_eq!(account["owner"], "here");
    assert_eq!(account["ownedHere"], true);
    assert_eq!(account["connectedHere"], true);
    assert_eq!(account["epoch"], 1);
    assert_eq!(account["verdict"]["state"], "disabled", "backfill is off in this test");
}

#[tokio::test]
async fn the_sync_picture_shows_leases_runs_and_coverage() {
    let mut setup = Setup::new();
    setup.debug = true;
    let world = setup.active().await;
    let id = world.connected("0712345678").await;
    let path = format!("/api/whatsapp/backfill/{}", id.as_str());
    assert_eq!(world.post(&path, Value::Null).await.0, 200);
    let path = format!("/api/admin/sync/{}", id.as_str());
    world
        .until("the run has ended", async || {
            let runs = world.get(&path).await.1["runs"].clone();
            runs.as_array().is_some_and(|runs| !runs.is_empty())
        })
        .await;
    let (status, body) = world.get(&path).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["runs"][0]["kind"], "auto_backfill");
    assert_eq!(body["runs"][0]["trigger"], "manual");
    assert_eq!(body["runs"][0]["ok"], true);
    assert_eq!(body["leases"]["connection"]["held"], true);
    assert_eq!(body["leases"]["connection"]["instanceId"], "here");
    assert_eq!(body["leases"]["connection"]["epoch"], 1);
    assert_eq!(body["openHoles"], 0);
    assert_eq!(world.get("/api/admin/sync/nobody").await.0, 404);
}
