//! The main job, from pairing to sending: the real server with the real client over a real
//! WebSocket, all in this process, because only here a double can stand in for WhatsApp's
//! certified key.

use std::path::Path;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use wa_server::config::Config;
use wa_server::settings::Given;
use wa_server::{RealWhatsApp, Running, start};
use whatsapp_double::{Double, Via};

use crate::process::temporary;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_is_paired_filled_kept_live_and_can_send() {
    let double = Double::new();
    let account = double.account("15550000001", "100000000000001");
    let contact = account.contact("15550000002", "102");
    let listener = double.listen().await.unwrap();
    let dir = temporary();
    let server = Whole::start(&dir, &listener.url()).await;

    let body = json!({ "name": "Shop", "phone": "15550000001" });
    let added = server.call(Method::POST, "/api/whatsapp/add-account", Some(body)).await;
    let id = added["account"]["id"].as_str().unwrap().to_owned();
    let code = server
        .wait("a pairing code is shown", async || {
            let shown = server.account().await;
            let picture = shown["qrCode"].as_str()?;
            assert!(picture.starts_with("data:image/png;base64,"));
            Some(shown["pairingCode"].as_str()?.to_owned())
        })
        .await;
    account.enter_code(&code).unwrap();
    server
        .wait("it is connected", async || {
            (server.account().await["status"] == "connected").then_some(())
        })
        .await;

    let phone = account.phone();
    phone.keep_texts(contact.pn(), "past", 1_700_000_000, 5);
    phone.send_all_history(1, Via::Inline);
    let threads = format!("/api/whatsapp/threads/{id}");
    let thread = server
        .wait("history arrives", async || {
            let threads = server.call(Method::GET, &threads, None).await;
            Some(threads["threads"].as_array()?.first()?["id"].as_str()?.to_owned())
        })
        .await;
    let messages = format!("/api/whatsapp/messages/{id}/{thread}");
    let bodies = async || -> Vec<Value> {
        let messages = server.call(Method::GET, &messages, None).await;
        messages["messages"].as_array().unwrap().iter().map(|m| m["body"].clone()).collect()
    };
    server.wait("all of it arrives", async || (bodies().await.len() == 5).then_some(())).await;
    contact.text("live and well");
    let live = Value::from("live and well");
    server
        .wait("a live message arrives", async || bodies().await.contains(&live).then_some(()))
        .await;
    server
        .wait("diag shows it", async || {
            let diag = server.call(Method::GET, "/diag", None).await;
            diag["latestRealtime"][0]["lastRealtimeMessageAt"].as_str().map(str::to_owned)
        })
        .await;

    let body = json!({
        "accountId": id, "to": "15550000002", "message": "An answer", "clientMessageId": "c1",
    });
    let sent = server.call(Method::POST, "/api/whatsapp/send-message", Some(body.clone())).await;
    assert_eq!(sent["status"], "sent", "{sent}");
    let again = server.call(Method::POST, "/api/whatsapp/send-message", Some(body)).await;
    assert_eq!(again["duplicate"], true);
    let found = bodies().await.iter().filter(|body| **body == "An answer").count();
    assert_eq!(found, 1);

    server.running.stop().await;
    assert!(!account.is_connected());
    let server = Whole::start(&dir, &listener.url()).await;
    server
        .wait("it connects by itself after a restart", async || {
            (server.call(Method::GET, "/health", None).await["connected"] == 1).then_some(())
        })
        .await;
    server.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_another_key_seals_are_kept_until_the_key_is_back() {
    let double = Double::new();
    let account = double.account("15550000001", "100000000000001");
    let listener = double.listen().await.unwrap();
    let (dir, url) = (temporary(), listener.url());
    let key = |id: &str, byte: &str| format!("{id}:{}=", byte.repeat(43));
    let start = async |key: String| {
        let shared = [("SESSION_STORE", "shared"), ("SESSION_ENCRYPTION_KEY", &*key)];
        Whole::start_with(&dir, &url, &shared).await
    };
    let connected = async |server: &Whole| {
        let connected = async || (server.account().await["status"] == "connected").then_some(());
        server.wait("it is connected", connected).await;
    };
    let server = start(key("k1", "A")).await;
    let body = json!({ "name": "Shop", "phone": "15550000001" });
    server.call(Method::POST, "/api/whatsapp/add-account", Some(body)).await;
    let code = async || server.account().await["pairingCode"].as_str().map(str::to_owned);
    account.enter_code(&server.wait("a pairing code is shown", code).await).unwrap();
    connected(&server).await;
    server.running.stop().await;

    for wrong in [key("k2", "A"), key("k1", "E")] {
        let server = start(wrong).await;
        server
            .wait("it is not connected", async || {
                let overview = server.call(Method::GET, "/api/admin/overview", None).await;
                (overview["accounts"][0]["verdict"]["state"] == "live_broken").then_some(())
            })
            .await;
        let shown = server.account().await;
        assert!(shown["qrCode"].is_null() && shown["pairingCode"].is_null(), "{shown}");
        assert!(!account.is_connected());
        server.running.stop().await;
    }

    let server = start(key("k1", "A")).await;
    connected(&server).await;
    server.running.stop().await;
}

/// A server in this process.
struct Whole {
    running: Running,
    client: reqwest::Client,
}

impl Whole {
    async fn start(data: &Path, whatsapp: &str) -> Self {
        Self::start_with(data, whatsapp, &[]).await
    }

    async fn start_with(data: &Path, whatsapp: &str, more: &[(&str, &str)]) -> Self {
        let data = data.to_str().unwrap();
        let settings = [
            ("DATA_DIR", data),
            ("WHATSAPP_URL", whatsapp),
            ("INSTANCE_ID", "one"),
            ("PORT", "0"),
            ("RATE_LIMIT_PER_TOKEN", "0"),
            ("RATE_LIMIT_PER_IP", "0"),
        ];
        let given = Given::from_lookup(|name| {
            settings
                .iter()
                .chain(more)
                .find(|(n, _)| *n == name)
                .map(|(_, value)| (*value).to_owned())
        });
        let mut running = start(Config::new(&given).unwrap(), RealWhatsApp).await.unwrap();
        assert!(running.handle().await.is_some());
        let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
        let server = Self { running, client };
        server
            .wait("it serves", async || {
                (server.call(Method::GET, "/ready", None).await["ready"] == true).then_some(())
            })
            .await;
        server
    }

    async fn account(&self) -> Value {
        self.call(Method::GET, "/api/whatsapp/accounts", None).await["accounts"][0].clone()
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let url = format!("http://{}{path}", self.running.address());
        let request = self.client.request(method, url).bearer_auth(self.running.admin_token());
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let response = request.send().await.unwrap();
        let status = response.status();
        let body: Value = response.json().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {body}");
        body
    }

    /// Waits for something that follows by itself.
    async fn wait<T>(&self, what: &str, found: impl AsyncFn() -> Option<T>) -> T {
        let waiting = async {
            loop {
                if let Some(found) = found().await {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        match tokio::time::timeout(Duration::from_secs(60), waiting).await {
            Ok(found) => found,
            Err(_) => panic!("never: {what}"),
        }
    }
}
