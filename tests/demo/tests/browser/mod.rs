//! Chromium without a screen, driven over the WebDriver protocol.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use demo::api::until;
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};

/// With this variable set to `1`, a missing browser fails the tests that need it.
pub(crate) const REQUIRE_BROWSER: &str = "WA_BACKFILL_REQUIRE_BROWSER";

/// On which kind of screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Screen {
    Desk,
    Phone,
}

/// A browser with one page. It is killed when dropped.
pub(crate) struct Browser {
    client: reqwest::Client,
    session: String,
    process: Child,
}

impl Browser {
    /// The programs that are needed and not installed.
    pub(crate) fn missing() -> Vec<&'static str> {
        let path = env::var_os("PATH").unwrap_or_default();
        let installed = |name: &&str| env::split_paths(&path).any(|dir| dir.join(name).is_file());
        ["chromium", "chromedriver"].into_iter().filter(|name| !installed(name)).collect()
    }

    /// Starts one that keeps its files in this directory.
    pub(crate) async fn start(directory: &Path, screen: Screen) -> Result<Self> {
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // So that its browser ends with it.
            .process_group(0)
            .spawn()
            .context("chromedriver cannot be started")?;
        let said = process.stdout.take().context("chromedriver has no output")?;
        let port = tokio::time::timeout(PATIENCE, port(said)).await;
        let port = port.context("chromedriver does not start")??;
        let profile = format!("--user-data-dir={}", directory.join("browser").display());
        let flags = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage"];
        let flags = [&flags[..], &["--window-size=1280,900", &profile]].concat();
        let mut options = json!({ "args": flags });
        if screen == Screen::Phone {
            let metrics = json!({ "width": 360, "height": 740, "pixelRatio": 2 });
            options["mobileEmulation"] = json!({ "deviceMetrics": metrics });
        }
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": { "browser": "SEVERE" },
        } } });
        let client = reqwest::Client::builder().timeout(PATIENCE * 2).build()?;
        let sessions = format!("http://127.0.0.1:{port}/session");
        let mut browser = Self { client, session: sessions, process };
        let begun = browser.command(Method::POST, "", wanted).await?;
        let id = begun["sessionId"].as_str().context("the browser does not start")?;
        browser.session = format!("{}/{id}", browser.session);
        Ok(browser)
    }

    pub(crate) async fn goto(&self, url: &str) -> Result<()> {
        self.command(Method::POST, "/url", json!({ "url": url })).await.map(drop)
    }

    /// What a script answers.
    pub(crate) async fn run(&self, script: &str) -> Result<Value> {
        self.command(Method::POST, "/execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// Waits until something is to be seen.
    pub(crate) async fn see(&self, what: &str) -> Result<()> {
        let seen = format!("return document.querySelector({}).checkVisibility()", json!(what));
        until(&format!("{what} to be seen"), PATIENCE, async || {
            Ok((self.run(&seen).await? == true).then_some(()))
        })
        .await
    }

    /// Waits until this text is to be read there.
    pub(crate) async fn read(&self, place: &str, text: &str) -> Result<()> {
        let says = format!("return document.querySelector({}).innerText", json!(place));
        until(&format!("{place} to say {text:?}"), PATIENCE, async || {
            let said = self.run(&says).await?;
            ensure!(said.as_str().is_some_and(|said| said.contains(text)), "it says {said}");
            Ok(Some(()))
        })
        .await
    }

    /// An attribute of something that is to be seen.
    pub(crate) async fn attribute(&self, what: &str, name: &str) -> Result<String> {
        self.see(what).await?;
        let (what, name) = (json!(what), json!(name));
        let found = self
            .run(&format!("return document.querySelector({what}).getAttribute({name})"))
            .await?;
        Ok(found.as_str().context("there is no such attribute")?.to_owned())
    }

    /// Goes to something with the tabulator alone, as people without a mouse do.
    pub(crate) async fn tab_to(&self, what: &str) -> Result<()> {
        self.see(what).await?;
        let there = format!("return document.activeElement.matches({})", json!(what));
        for _ in 0..MOST_TABS {
            if self.run(&there).await? == true {
                let outline = "return getComputedStyle(document.activeElement).outlineStyle";
                ensure!(self.run(outline).await? != "none", "{what} does not show its focus");
                return Ok(());
            }
            self.press(TAB).await?;
        }
        bail!("{what} cannot be reached with the keyboard")
    }

    /// Presses these keys, wherever the focus is.
    pub(crate) async fn press(&self, keys: &str) -> Result<()> {
        let strokes: Vec<Value> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key })))
            .collect();
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": strokes });
        self.command(Method::POST, "/actions", json!({ "actions": [keyboard] })).await.map(drop)
    }

    /// Clicks on something.
    pub(crate) async fn click(&self, what: &str) -> Result<()> {
        self.see(what).await?;
        self.run(&format!("document.querySelector({}).click()", json!(what))).await.map(drop)
    }

    /// Takes a picture of the page.
    pub(crate) async fn picture(&self, name: &str) -> Result<()> {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("console");
        std::fs::create_dir_all(&directory)?;
        let png = self.command(Method::GET, "/screenshot", Value::Null).await?;
        let png = BASE64_STANDARD.decode(png.as_str().context("there is no picture")?)?;
        Ok(std::fs::write(directory.join(format!("{name}.png")), png)?)
    }

    /// What the browser had to complain about since the last time.
    pub(crate) async fn complaints(&self) -> Result<Vec<Value>> {
        let log = self.command(Method::POST, "/se/log", json!({ "type": "browser" })).await?;
        let entries = log.as_array().context("there is no log")?;
        Ok(entries.iter().map(|entry| entry["message"].clone()).collect())
    }

    /// One command of the protocol.
    async fn command(&self, method: Method, path: &str, body: Value) -> Result<Value> {
        let request = self.client.request(method, format!("{}{path}", self.session));
        let request = if body.is_null() { request } else { request.json(&body) };
        let mut answer: Value = request.send().await?.json().await?;
        let value = answer["value"].take();
        ensure!(value["error"].is_null(), "{}: {}", value["error"], value["message"]);
        Ok(value)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let id = self.process.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(id) = id {
            // It may have ended by itself.
            let _ = kill_process_group(id, Signal::KILL);
        }
    }
}

/// Where chromedriver listens, as it says.
async fn port(said: impl AsyncRead + Unpin) -> Result<u16> {
    let mut lines = BufReader::new(said).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some((_, port)) = line.split_once("started successfully on port ") {
            return Ok(port.trim_end_matches('.').parse()?);
        }
    }
    bail!("chromedriver ended at once")
}

/// The keys, as the protocol writes them.
pub(crate) const ENTER: &str = "\u{E007}";
const TAB: &str = "\u{E004}";
const PATIENCE: Duration = Duration::from_secs(30);
const MOST_TABS: usize = 60;
