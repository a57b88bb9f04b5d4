//! The HTTP API of one instance, as its callers use it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Speaks to one instance with the admin token.
#[derive(Clone)]
pub struct Api {
    client: reqwest::Client,
    base: String,
    token: String,
}

/// An answer: status code and body.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status code
    pub status: u16,
    /// The body, null if it is no JSON
    pub body: Value,
}

impl Api {
    /// For the instance at `base`, for example `http://127.0.0.1:8080`.
    ///
    /// # Errors
    /// This machine cannot make HTTP clients.
    pub fn new(base: impl Into<String>, token: impl Into<String>) -> Result<Self> {
        // Another part of the process may have chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build()?;
        Ok(Self { client, base: base.into(), token: token.into() })
    }

    /// `http://127.0.0.1:port`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// A GET.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(self.client.get(format!("{}{path}", self.base))).await
    }

    /// A GET of something that is no JSON.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn text(&self, path: &str) -> Result<String> {
        let request = self.client.get(format!("{}{path}", self.base)).bearer_auth(&self.token);
        Ok(request.send().await?.text().await?)
    }

    /// A POST with a JSON body.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn post(&self, path: &str, body: Value) -> Result<Answer> {
        self.send(self.client.post(format!("{}{path}", self.base)).json(&body)).await
    }

    /// A DELETE.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn delete(&self, path: &str) -> Result<Answer> {
        self.send(self.client.delete(format!("{}{path}", self.base))).await
    }

    /// Adds an account, or finds the one with this phone; answers its id.
    ///
    /// # Errors
    /// It is refused, for instance because the instance is passive.
    pub async fn add_account(&self, name: &str, phone: &str) -> Result<String> {
        let asked = json!({ "name": name, "phone": phone });
        let answer = self.post("/api/whatsapp/add-account", asked).await?;
        let id = answer.body["account"]["id"].as_str();
        Ok(id.with_context(|| format!("no account: {answer:?}"))?.to_owned())
    }

    /// The account as the list of accounts has it.
    ///
    /// # Errors
    /// There is no list, or it is not in it.
    pub async fn account(&self, id: &str) -> Result<Value> {
        let listed = self.get("/api/whatsapp/accounts").await?;
        let accounts = listed.body["accounts"].as_array().context("there is no list")?;
        let account = accounts.iter().find(|account| account["id"] == id);
        Ok(account.context("the account is not in the list")?.clone())
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer> {
        let response = request.bearer_auth(&self.token).send().await?;
        let status = response.status().as_u16();
        let body = response.json().await.unwrap_or(Value::Null);
        Ok(Answer { status, body })
    }
}

/// Looks again and again until there is something to see; what fails counts as nothing yet.
///
/// # Errors
/// It took longer than `patience`; says what was waited for and what was seen last.
pub async fn until<T>(
    what: &str,
    patience: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + patience;
    loop {
        let seen = look().await;
        let last = match seen {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => String::new(),
            Err(error) => format!(" ({error:#})"),
        };
        if Instant::now() > end {
            bail!("waited {} s in vain for {what}{last}", patience.as_secs());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

const PAUSE: Duration = Duration::from_millis(100);
