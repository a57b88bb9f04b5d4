//! The description at its word: every answer is one that it describes.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use backfill_core::doc::Value as Field;
use backfill_core::time::StoreTime;
use reqwest::{Method, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::world::{ADMIN, Setup, World};

/// What the API says of itself.
pub(crate) static CONTRACT: LazyLock<Contract> =
    LazyLock::new(|| Contract { api: wa_http::description() });

pub(crate) struct Contract {
    api: Value,
}

/// An answer, and the request that it belongs to.
pub(crate) struct Exchange<'a> {
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    pub(crate) status: StatusCode,
    pub(crate) content_type: &'a str,
    pub(crate) body: &'a Value,
}

impl Contract {
    /// In which respects an answer is not as described. Nothing is said of unknown paths.
    pub(crate) fn violations(&self, answer: &Exchange<'_>) -> Vec<String> {
        let Some(operation) = self.operation(answer.method, answer.path) else { return Vec::new() };
        let responses = &operation["responses"];
        let status = answer.status.as_str();
        let described = responses.get(status).or_else(|| responses.get("default"));
        let Some(described) = described else {
            return vec![format!("status {status} is not described")];
        };
        let Some(contents) = described.get("content") else { return Vec::new() };
        let kind = answer.content_type.split(';').next().unwrap_or_default();
        let Some(content) = contents.get(kind) else {
            return vec![format!("{kind} is not described for status {status}")];
        };
        let schema = self.closed(&content["schema"], false);
        let validator = jsonschema::validator_for(&schema).unwrap();
        validator.iter_errors(answer.body).map(|e| format!("{}: {e}", e.instance_path())).collect()
    }

    /// Every method and path.
    fn operations(&self) -> BTreeSet<(String, String)> {
        let paths = self.api["paths"].as_object().unwrap().iter();
        let methods = |(path, item): (&String, &Value)| -> Vec<(String, String)> {
            item.as_object().unwrap().keys().map(|m| (m.to_uppercase(), path.clone())).collect()
        };
        paths.flat_map(methods).collect()
    }

    fn operation(&self, method: &Method, path: &str) -> Option<&Value> {
        let template = self.template(path)?;
        self.api["paths"][template].get(method.as_str().to_lowercase())
    }

    /// The described path that a request's path is an instance of.
    fn template(&self, path: &str) -> Option<&str> {
        let path = path.split('?').next()?;
        let fits = |template: &&str| {
            template.split('/').count() == path.split('/').count()
                && template
                    .split('/')
                    .zip(path.split('/'))
                    .all(|(t, p)| t.starts_with('{') || t == p)
        };
        self.api["paths"].as_object()?.keys().map(String::as_str).find(fits)
    }

    /// The schema without references, and such that it takes no field that it does not name.
    /// `part`: other schemas name fields of the same object.
    fn closed(&self, schema: &Value, part: bool) -> Value {
        let schema = match schema {
            Value::Array(all) => return all.iter().map(|s| self.closed(s, part)).collect(),
            Value::Object(schema) => schema,
            other => return other.clone(),
        };
        if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
            return self.closed(self.api.pointer(name.trim_start_matches('#')).unwrap(), part);
        }
        let mut closed: Map<String, Value> = schema
            .iter()
            .map(|(key, value)| {
                let inner = match key.as_str() {
                    "allOf" => self.closed(value, true),
                    "oneOf" => self.closed(value, part),
                    _ => self.closed(value, false),
                };
                (key.clone(), inner)
            })
            .collect();
        if !part && (schema.contains_key("properties") || schema.contains_key("allOf")) {
            closed.insert("unevaluatedProperties".into(), false.into());
        }
        Value::Object(closed)
    }
}

#[tokio::test]
async fn what_is_served_is_the_description() {
    let world = World::active().await;
    assert_eq!(world.get("/openapi.json").await.1, CONTRACT.api);
}

#[tokio::test]
async fn every_operation_answers_as_described() {
    let mut setup = Setup::new();
    setup.settings.recent_sync.interval = std::time::Duration::from_secs(1);
    let world = setup.active().await;
    let id = world.connected("0712345678").await;
    let thread = format!("{}__1555@s.whatsapp.net", id.as_str());
    let at = Field::Timestamp(StoreTime::from_secs(1_699_999_000));
    let fields = vec![("accountId", id.text().into()), ("lastMessageAt", at.clone())];
    world.put(&format!("threads/{thread}"), fields).await;
    let message = vec![("body", "hello".into()), ("tsClient", at)];
    world.put(&format!("threads/{thread}/messages/m1"), message).await;

    let login = json!({ "token": ADMIN });
    let request = world.request(Method::POST, "/console/login").json(&login).send().await.unwrap();
    let cookie = request.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    let cookie = cookie.split(';').next().unwrap();
    let id = id.as_str();
    let send = json!({ "accountId": id, "to": "15551234567", "message": "Hi" });
    let calls = [
        ("GET", "/".to_owned(), None),
        ("GET", "/ready".to_owned(), None),
        ("GET", "/diag".to_owned(), None),
        ("GET", "/health".to_owned(), None),
        ("GET", "/metrics".to_owned(), None),
        ("GET", "/openapi.json".to_owned(), None),
        ("GET", "/docs".to_owned(), None),
        ("GET", "/docs.js".to_owned(), None),
        ("GET", "/console".to_owned(), None),
        ("GET", "/console/login".to_owned(), None),
        ("POST", "/console/login".to_owned(), Some(login)),
        ("GET", "/console/session".to_owned(), None),
        ("GET", "/console/console.css".to_owned(), None),
        ("GET", "/console/console.js".to_owned(), None),
        ("GET", "/console/login.js".to_owned(), None),
        ("GET", "/accounts".to_owned(), None),
        ("GET", "/api/whatsapp/accounts".to_owned(), None),
        ("POST", "/api/whatsapp/add-account".to_owned(), Some(json!({ "name": "Other" }))),
        ("GET", format!("/api/whatsapp/qr/{id}"), None),
        ("POST", format!("/api/whatsapp/regenerate-qr/{id}"), None),
        ("POST", format!("/api/whatsapp/backfill/{id}"), None),
        ("POST", format!("/api/whatsapp/backfill/{id}"), None),
        ("POST", "/api/whatsapp/send-message".to_owned(), Some(send)),
        ("GET", format!("/api/whatsapp/threads/{id}"), None),
        ("GET", format!("/api/whatsapp/messages/{id}/{thread}"), None),
        ("GET", format!("/api/whatsapp/inbox/{id}"), None),
        ("GET", "/api/admin/overview".to_owned(), None),
        ("GET", format!("/api/admin/sync/{id}"), None),
        ("DELETE", format!("/api/whatsapp/accounts/{id}"), None),
        ("POST", "/console/logout".to_owned(), None),
    ];
    let mut tried = BTreeSet::new();
    for (method, path, body) in calls {
        let request = world.request(method.parse().unwrap(), &path).header(header::COOKIE, cookie);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        // The console's own cookie reads its page; everything else is for the token.
        let request = if path == "/console" { request } else { request.bearer_auth(ADMIN) };
        let (status, body) = world.answered(method.parse().unwrap(), &path, request).await;
        assert!(status.is_success(), "{method} {path}: {status} {body}");
        tried.insert((method.to_owned(), CONTRACT.template(&path).unwrap().to_owned()));
    }
    assert_eq!(tried, CONTRACT.operations());
}

#[tokio::test]
async fn other_answers_would_be_noticed() {
    let world = World::active().await;
    let id = world.connected("0712345678").await;
    let path = "/api/whatsapp/accounts";
    let (status, good) = world.get(path).await;
    let violations = |status: u16, body: &Value| {
        let status = StatusCode::from_u16(status).unwrap();
        let content_type = "application/json";
        let method = &Method::GET;
        CONTRACT.violations(&Exchange { method, path, status, content_type, body })
    };
    assert_eq!(good["accounts"][0]["id"], id.as_str());
    assert_eq!(violations(status.as_u16(), &good), Vec::<String>::new());
    let changed = |change: fn(&mut Value)| {
        let mut body = good.clone();
        change(&mut body);
        body
    };
    for wrong in [
        changed(|body| body["more"] = 1.into()),
        changed(|body| body["cached"] = "yes".into()),
        changed(|body| body["waMode"] = "sleeping".into()),
        changed(|body| body["accounts"][0]["more"] = 1.into()),
        changed(|body| body["accounts"][0]["id"] = Value::Null),
        changed(|body| drop(body.as_object_mut().unwrap().remove("lockReason"))),
        changed(|body| drop(body.as_object_mut().unwrap().remove("requestId"))),
    ] {
        assert!(!violations(200, &wrong).is_empty(), "{wrong}");
    }
    assert!(!violations(404, &good).is_empty(), "a success as a failure");
}
