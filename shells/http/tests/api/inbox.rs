//! Reading and sending messages.

use backfill_core::doc::Value as Field;
use backfill_core::time::StoreTime;
use serde_json::json;

use crate::world::World;

async fn thread(world: &World, account: &str, jid: &str, second: i64) {
    let at = Field::Timestamp(StoreTime::from_secs(second));
    let path = format!("threads/{account}__{jid}");
    let ingest = Field::map([("at", at.clone())]);
    let fields = vec![
        ("accountId", account.into()),
        ("clientJid", jid.into()),
        ("displayName", "Somebody".into()),
        ("lastMessageAt", at),
        ("ingest", ingest),
    ];
    world.put(&path, fields).await;
}

async fn message(world: &World, account: &str, jid: &str, id: &str, ts: Field) {
    let path = format!("threads/{account}__{jid}/messages/{id}");
    world.put(&path, vec![("body", id.into()), ("tsClient", ts)]).await;
}

fn at(second: i64) -> Field {
    Field::Timestamp(StoreTime::from_secs(second))
}

#[tokio::test]
async fn threads_come_newest_first() {
    let world = World::active().await;
    thread(&world, "a", "1@s.whatsapp.net", 100).await;
    thread(&world, "a", "2@s.whatsapp.net", 200).await;
    thread(&world, "b", "3@s.whatsapp.net", 300).await;
    let (status, body) = world.get("/api/whatsapp/threads/a?limit=50&orderBy=lastMessageAt").await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["count"], 2);
    assert_eq!(body["threads"][0]["id"], "a__2@s.whatsapp.net");
    assert_eq!(body["threads"][0]["lastMessageAt"], "1970-01-01T00:03:20.000Z");
    assert!(body["threads"][0].get("ingest").is_none());
    assert_eq!(world.get("/api/whatsapp/threads/a?limit=1").await.1["count"], 1);
    for query in ["limit=0", "limit=501", "limit=x", "orderBy=name"] {
        let (status, body) = world.get(&format!("/api/whatsapp/threads/a?{query}")).await;
        assert_eq!((status.as_u16(), &body["error"]), (400, &"bad_request".into()), "{query}");
    }
}

#[tokio::test]
async fn messages_belong_to_a_thread_of_the_account() {
    let world = World::active().await;
    thread(&world, "a", "1@s.whatsapp.net", 100).await;
    message(&world, "a", "1@s.whatsapp.net", "m1", at(90)).await;
    message(&world, "a", "1@s.whatsapp.net", "m2", at(100)).await;
    let path = "/api/whatsapp/messages/a/a__1@s.whatsapp.net";
    let (status, body) = world.get(path).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["count"], 2);
    assert_eq!(body["thread"]["displayName"], "Somebody");
    assert_eq!(body["messages"][0]["id"], "m2");
    assert_eq!(body["messages"][0]["tsClient"], "1970-01-01T00:01:40.000Z");
    assert_eq!(world.get(&format!("{path}?limit=1")).await.1["count"], 1);
    let (status, body) = world.get("/api/whatsapp/messages/b/a__1@s.whatsapp.net").await;
    assert_eq!((status.as_u16(), &body["error"]), (403, &"forbidden".into()));
    let (status, body) = world.get("/api/whatsapp/messages/a/a__9@s.whatsapp.net").await;
    assert_eq!((status.as_u16(), &body["error"]), (404, &"thread_not_found".into()));
}

#[tokio::test]
async fn the_inbox_holds_the_newest_messages_of_all_threads() {
    let world = World::active().await;
    thread(&world, "a", "1@s.whatsapp.net", 100).await;
    thread(&world, "a", "2@s.whatsapp.net", 95).await;
    thread(&world, "a", "3@s.whatsapp.net", 10).await;
    message(&world, "a", "1@s.whatsapp.net", "old", at(80)).await;
    message(&world, "a", "1@s.whatsapp.net", "new", at(100)).await;
    message(&world, "a", "2@s.whatsapp.net", "between", "1970-01-01T00:01:35.000Z".into()).await;
    message(&world, "a", "3@s.whatsapp.net", "oldest", at(10)).await;
    let (status, body) = world.get("/api/whatsapp/inbox/a?limit=2").await;
    assert_eq!(status, 200, "{body}");
    let ids: Vec<_> =
        body["messages"].as_array().unwrap().iter().map(|m| m["id"].clone()).collect();
    assert_eq!(ids, ["new", "between"]);
    assert_eq!(body["count"], 2);
    assert!(body["totalMessages"].as_u64().unwrap() >= 2);
}

#[tokio::test]
async fn a_message_is_sent_once() {
    let world = World::active().await;
    let id = world.connected("0712345678").await;
    let body = json!({
        "accountId": id.as_str(), "to": "0799 111 222", "message": "Hello", "clientMessageId": "c1",
    });
    let (status, first) = world.post("/api/whatsapp/send-message", body.clone()).await;
    assert_eq!(status, 200, "{first}");
    assert_eq!(first["status"], "sent", "{first}");
    assert_eq!(first["clientMessageId"], "c1");
    assert!(first.get("duplicate").is_none() && first.get("queued").is_none());
    let (status, second) = world.post("/api/whatsapp/send-message", body).await;
    assert_eq!(status, 200);
    assert_eq!(second["duplicate"], true);
    assert_eq!(second["messageId"], first["messageId"]);
    assert_eq!(world.whatsapp.sent().len(), 1);

    let request = first["messageId"].as_str().unwrap();
    let outbox = world.document(&format!("outbox/{request}")).await.unwrap();
    assert_eq!(outbox["toJid"], "40799111222@s.whatsapp.net");
    assert_eq!(outbox["status"], "sent");
    assert_eq!(outbox["createdByUid"], "admin");
    assert_eq!(
        outbox["payload"].0,
        Field::map([("type", "text".into()), ("text", "Hello".into())])
    );
    let thread = format!("threads/{}__40799111222@s.whatsapp.net", id.as_str());
    let message = world.document(&format!("{thread}/messages/{request}")).await.unwrap();
    assert_eq!(message["direction"], "outbound");
    assert_eq!(message["tsClient"], "2023-11-14T22:13:20.000Z");
    let thread = world.document(&thread).await.unwrap();
    assert_eq!(thread["lastMessageText"], "Hello");
    assert_eq!(thread["lastMessageDirection"], "outbound");
}

#[tokio::test]
async fn without_a_connection_a_message_waits() {
    let world = World::active().await;
    let id = world.added("0712345678").await;
    world.until_status(&id, "qr_ready").await;
    let body = json!({ "accountId": id.as_str(), "to": "15551234567", "message": "Hello" });
    let (status, body) = world.post("/api/whatsapp/send-message", body).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["queued"], true);
    assert!(body["messageId"].is_string() && body["clientMessageId"].is_string());
    world.whatsapp.scan(&id);
    world.until("it is sent", async || world.whatsapp.sent().len() == 1).await;
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused() {
    let world = World::active().await;
    let id = world.connected("0712345678").await;
    let send = async |account: &str, to: &str, message: &str, thread: Option<&str>| {
        let body =
            json!({ "accountId": account, "to": to, "message": message, "threadId": thread });
        let (status, body) = world.post("/api/whatsapp/send-message", body).await;
        (status.as_u16(), body["error"].as_str().unwrap_or_default().to_owned())
    };
    let bad = (400, "bad_request".to_owned());
    assert_eq!(send("account_prod_x", "15551234567", "Hi", None).await.0, 404);
    assert_eq!(send(id.as_str(), "12", "Hi", None).await, bad);
    assert_eq!(send(id.as_str(), "15551234567", "", None).await, bad);
    assert_eq!(send(id.as_str(), "15551234567", "Hi", Some("other__1@g.us")).await, bad);
    assert_eq!(world.whatsapp.sent().len(), 0);
    world.whatsapp.go_deaf();
    assert_eq!(send(id.as_str(), "15551234567", "Hi", None).await.0, 200, "it is tried again");
    assert_eq!(world.whatsapp.sent().len(), 0);
}
