//! Talking to a running instance.

use std::process::ExitCode;
use std::time::Duration;

use clap::ArgMatches;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Outcome, Refusal, given, preset};
use crate::serve::admin_token_path;

/// A running instance, as the command line reaches it.
pub(super) struct Client {
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Client {
    pub(super) fn new(args: &ArgMatches) -> Result<Self, Refusal> {
        let given = given(args)?;
        let port = given.get("PORT").unwrap_or(preset("PORT"));
        let base = args.get_one::<String>("url").cloned();
        let base = base.unwrap_or_else(|| format!("http://127.0.0.1:{port}"));
        if reqwest::Url::parse(&base).ok().filter(reqwest::Url::has_host).is_none() {
            return Err(Refusal::new(format!("{base} is not a URL like http://127.0.0.1:8080")));
        }
        let token = args
            .get_one::<String>("token")
            .filter(|token| !token.is_empty())
            .cloned()
            .or(given.get("ADMIN_TOKEN").map(str::to_owned));
        let token = match token {
            Some(token) => token,
            None => {
                let dir = given.get("DATA_DIR").unwrap_or(preset("DATA_DIR"));
                let path = admin_token_path(dir.as_ref());
                let token = std::fs::read_to_string(&path).map_err(|error| {
                    Refusal::new(format!(
                        "no admin token: give --token or ADMIN_TOKEN ({}: {error})",
                        path.display()
                    ))
                })?;
                token.trim().to_owned()
            }
        };
        // Two providers may be linked in; a program has to say which.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(35))
            .build()
            .map_err(|error| Refusal::new(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Refusal::new(error.to_string()))?;
        Ok(Self { runtime, http, base: base.trim_end_matches('/').to_owned(), token })
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, Refusal> {
        self.call(Method::GET, path, None)
    }

    /// A call that has to succeed.
    fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Refusal> {
        let request =
            self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let answered = self.runtime.block_on(async {
            let response = request.send().await?;
            Ok::<_, reqwest::Error>((response.status(), response.bytes().await?))
        });
        let (status, body) = answered.map_err(|error| {
            Refusal::new(format!("{} does not answer: {}", self.base, innermost(&error)))
        })?;
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        if status.is_success() {
            return Ok(body);
        }
        Err(Refusal::new(refusal(status.as_u16(), &body)))
    }
}

/// What an answer that is no success says, as people read it.
fn refusal(status: u16, body: &Value) -> String {
    let Some(message) = body["message"].as_str() else {
        return format!("an answer that is not wa-backfill's ({status})");
    };
    let mut text = message.to_owned();
    for (name, about) in [
        ("currentStatus", "Its status is"),
        ("ownerInstanceId", "Ask instance"),
        ("holderInstanceId", "Ask instance"),
    ] {
        if let Some(value) = body[name].as_str() {
            text.push_str(&format!(" {about} {value}."));
        }
    }
    format!("{text} ({status} {})", shown(&body["error"]))
}

/// The cause that nothing else caused.
fn innermost(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

pub(super) fn accounts(args: &ArgMatches) -> Outcome {
    match args.subcommand() {
        Some(("add", args)) => {
            let client = Client::new(args)?;
            let text = |name: &str| args.get_one::<String>(name).cloned();
            let body = json!({ "name": text("name"), "phone": text("phone") });
            let answer = client.call(Method::POST, "/api/whatsapp/add-account", Some(body))?;
            let account = &answer["account"];
            println!("{}  {}", shown(&account["id"]), shown(&account["status"]));
            println!("Scan the QR code: {}/api/whatsapp/qr/{}", client.base, shown(&account["id"]));
        }
        Some(("remove", args)) => {
            let client = Client::new(args)?;
            let path = format!("/api/whatsapp/accounts/{}", id(args)?);
            println!("{}", shown(&client.call(Method::DELETE, &path, None)?["message"]));
        }
        Some((_, args)) => {
            let answer = Client::new(args)?.get("/api/whatsapp/accounts")?;
            let accounts = answer["accounts"].as_array().cloned().unwrap_or_default();
            if accounts.is_empty() {
                println!("There are no accounts.");
            }
            for account in accounts {
                println!(
                    "{}  {:13} {:16} {}",
                    shown(&account["id"]),
                    shown(&account["status"]),
                    shown(&account["phone"]),
                    shown(&account["name"])
                );
            }
        }
        None => return Ok(ExitCode::FAILURE),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn backfill(args: &ArgMatches) -> Outcome {
    let path = format!("/api/whatsapp/backfill/{}", id(args)?);
    println!("{}", shown(&Client::new(args)?.call(Method::POST, &path, None)?["message"]));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn status(args: &ArgMatches) -> Outcome {
    let client = Client::new(args)?;
    let answer = client.get("/api/admin/overview")?;
    let instance = &answer["instance"];
    println!(
        "instance {}: {}{}, lock held by {}, store {}, up {} s",
        shown(&instance["instanceId"]),
        shown(&instance["mode"]),
        instance["reason"].as_str().map(|r| format!(" ({r})")).unwrap_or_default(),
        instance["heldBy"].as_str().unwrap_or("nobody"),
        if instance["storeConnected"] == true { "connected" } else { "not connected" },
        instance["uptime"],
    );
    for account in answer["accounts"].as_array().into_iter().flatten() {
        println!(
            "{}  {:13} owner {}  last success {}  last message {}  next run {}",
            shown(&account["masked"]),
            shown(&account["status"]),
            shown(&account["owner"]),
            shown(&account["lastAutoBackfillSuccessAt"]),
            shown(&account["lastRealtimeMessageAt"]),
            shown(&account["nextRunAt"]),
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The account's id as it may stand in a path.
fn id(args: &ArgMatches) -> Result<String, Refusal> {
    let id = args.get_one::<String>("account").cloned().unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if !id.is_empty() && id.chars().all(plain) {
        Ok(id)
    } else {
        let which = "`wa-backfill accounts list` shows which there are";
        Err(Refusal::new(format!("{id} is not an account's id; {which}")))
    }
}

/// A value as people read it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
