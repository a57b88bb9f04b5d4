//! The main job, from pairing to sending, through the real client and a real WebSocket.

use reqwest::Method;
use serde_json::{Value, json};
use whatsapp_double::{Double, Via};

use crate::process::{Server, temporary};

#[test]
fn an_account_is_paired_filled_kept_live_and_can_send() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _context = runtime.enter();
    let double = Double::new();
    let account = double.account("15550000001", "100000000000001");
    let contact = account.contact("15550000002", "102");
    let listener = runtime.block_on(double.listen()).unwrap();

    let dir = temporary();
    let url = listener.url();
    let mut server = Server::start(&dir, &[("WHATSAPP_URL", &url), ("INSTANCE_ID", "one")]);
    server.until_ready(true);
    let body = json!({ "name": "Shop", "phone": "15550000001" });
    let added = server.call(Method::POST, "/api/whatsapp/add-account", Some(body));
    let id = added["account"]["id"].as_str().unwrap().to_owned();
    let code = server.wait("a pairing code is shown", |server| {
        let accounts = server.call(Method::GET, "/api/whatsapp/accounts", None);
        let shown = &accounts["accounts"][0];
        let picture = shown["qrCode"].as_str()?;
        assert!(picture.starts_with("data:image/png;base64,"));
        Some(shown["pairingCode"].as_str()?.to_owned())
    });
    account.enter_code(&code).unwrap();
    let status = |server: &Server| {
        let accounts = server.call(Method::GET, "/api/whatsapp/accounts", None);
        accounts["accounts"][0]["status"].as_str().unwrap().to_owned()
    };
    server.wait("it is connected", |server| (status(server) == "connected").then_some(()));

    let phone = account.phone();
    let chat = contact.pn().clone();
    phone.keep_texts(&chat, "past", 1_700_000_000, 5);
    phone.send_all_history(1, Via::Inline);
    let threads = format!("/api/whatsapp/threads/{id}");
    let thread = server.wait("history arrives", |server| {
        let threads = server.call(Method::GET, &threads, None);
        Some(threads["threads"].as_array()?.first()?["id"].as_str()?.to_owned())
    });
    let messages = format!("/api/whatsapp/messages/{id}/{thread}");
    let bodies = |server: &Server| -> Vec<Value> {
        let messages = server.call(Method::GET, &messages, None);
        messages["messages"].as_array().unwrap().iter().map(|m| m["body"].clone()).collect()
    };
    server.wait("all of it arrives", |server| (bodies(server).len() == 5).then_some(()));
    contact.text("live and well");
    server.wait("a live message arrives", |server| {
        bodies(server).contains(&"live and well".into()).then_some(())
    });
    server.wait("diag shows it", |server| {
        let diag = server.get("/diag");
        diag["latestRealtime"][0]["lastRealtimeMessageAt"].as_str().map(str::to_owned)
    });

    let body = json!({
        "accountId": id, "to": "15550000002", "message": "An answer", "clientMessageId": "c1",
    });
    let sent = server.call(Method::POST, "/api/whatsapp/send-message", Some(body.clone()));
    assert_eq!(sent["status"], "sent", "{sent}");
    let again = server.call(Method::POST, "/api/whatsapp/send-message", Some(body));
    assert_eq!(again["duplicate"], true);
    server.wait("the sent message is in the thread once", |server| {
        let found = bodies(server).iter().filter(|body| **body == "An answer").count();
        assert!(found <= 1);
        (found == 1).then_some(())
    });

    assert_eq!(server.terminate(), Some(0));
    let log = server.log();
    assert!(
        log.contains("[realtime] stored") && log.contains("[realtime] connection open"),
        "{log}"
    );
    for secret in ["live and well", "15550000002", "An answer", "15550000001", id.as_str()] {
        assert!(!log.contains(secret), "the log shows {secret}");
    }
    let mut server = Server::start(&dir, &[("WHATSAPP_URL", &url), ("INSTANCE_ID", "one")]);
    server.wait("it connects by itself after a restart", |server| {
        (server.get("/health")["connected"] == 1).then_some(())
    });
    assert_eq!(server.terminate(), Some(0));
}
