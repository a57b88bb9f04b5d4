//! The console in a real browser, against a real instance and the WhatsApp double.
//!
//! Pictures of what was seen are left in the target directory, under `tmp/console`.

#![expect(clippy::unwrap_used, reason = "a case fails by panicking")]

mod browser;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use demo::api::until;
use demo::fleet::{Fleet, Instance};
use demo::office::{Desk, desks};
use demo::scan;
use serde_json::{Value, json};
use store_contract::{Case, run};
use whatsapp_double::{Double, MediaServer, WebSocketServer};

use browser::{Browser, ENTER, REQUIRE_BROWSER, Screen};

fn main() -> ExitCode {
    macro_rules! cases {
        ($($test:ident),* $(,)?) => {
            vec![$(Case::new(stringify!($test), || alone($test))),*]
        };
    }
    let cases = cases![
        an_account_is_linked_filled_and_kept_live_by_keyboard_alone,
        the_code_to_scan_renews_itself,
        backfill_is_offered_in_debug_mode_only_and_in_the_menu_only,
        everything_can_be_read_on_a_phone,
        the_documentation_shows_every_path_without_the_internet,
    ];
    let missing = Browser::missing();
    if missing.is_empty() {
        return run(cases);
    }
    let reason = format!("not installed: {}", missing.join(", "));
    if std::env::var(REQUIRE_BROWSER).is_ok_and(|value| value == "1") {
        println!("{REQUIRE_BROWSER} is set, but {reason}");
        return ExitCode::FAILURE;
    }
    run(cases.into_iter().map(|case| case.missing(reason.as_str())).collect())
}

async fn an_account_is_linked_filled_and_kept_live_by_keyboard_alone() {
    let scene = Scene::new(&[("LOG_LEVEL", "trace")]).await;
    let browser = scene.browser(Screen::Desk).await;
    browser.goto(&scene.url("/console")).await.unwrap();
    browser.see("#login").await.unwrap();
    browser.tab_to("#token").await.unwrap();
    browser.press(&format!("not-the-token-at-all{ENTER}")).await.unwrap();
    browser.read("#problem", "The token is wrong.").await.unwrap();
    browser.picture("login").await.unwrap();
    assert_eq!(browser.complaints().await.unwrap().len(), 1, "the refusal itself");
    browser.goto(&scene.url("/console")).await.unwrap();
    scene.log_in(&browser).await;
    browser.read("#mode", "active").await.unwrap();
    browser.read("main", "There are no accounts yet.").await.unwrap();
    browser.picture("no-accounts").await.unwrap();
    // Gone if anything loads the page anew.
    browser.run("window.sameReader = true").await.unwrap();

    browser.tab_to("#new-name").await.unwrap();
    browser.press(&scene.desk.name).await.unwrap();
    browser.tab_to("#new-phone").await.unwrap();
    browser.press(&format!("+{}{ENTER}", scene.desk.number)).await.unwrap();
    scene.scan(&browser).await;
    browser.read(".card .badge", "connected").await.unwrap();
    scene.desk.send_recent(10);
    browser.picture("connected").await.unwrap();

    browser.tab_to("a[id^='inbox-']").await.unwrap();
    browser.press(ENTER).await.unwrap();
    browser.read("#threads", "Customer 2").await.unwrap();
    browser.tab_to("#threads li:nth-child(2) a").await.unwrap();
    browser.press(ENTER).await.unwrap();
    browser.see("#messages li").await.unwrap();
    until("history to arrive", PATIENCE, async || {
        let count = "return document.querySelectorAll('#messages li').length";
        let seen = browser.run(count).await?;
        anyhow::ensure!(seen.as_u64() >= Some(10), "{seen} messages are shown");
        Ok(Some(()))
    })
    .await
    .unwrap();
    browser.picture("history").await.unwrap();
    let open = browser.run("return decodeURIComponent(location.hash)").await.unwrap();
    let contact = scene
        .desk
        .contacts
        .iter()
        .find(|c| open.as_str().is_some_and(|open| open.contains(&c.pn().to_string())));
    contact.unwrap().text("Live and well, and seen at once");
    browser.read("#messages", "Live and well, and seen at once").await.unwrap();
    let lowest = "const m = document.getElementById('messages');
        return m.scrollTop + m.clientHeight >= m.scrollHeight - 8";
    assert_eq!(browser.run(lowest).await.unwrap(), true, "the newest message is out of sight");
    browser.picture("live").await.unwrap();

    browser.tab_to("nav.tabs a:nth-child(2)").await.unwrap();
    browser.press(ENTER).await.unwrap();
    browser.read("main", "History, thread by thread").await.unwrap();
    browser.read("main", "this instance").await.unwrap();
    browser.picture("sync").await.unwrap();
    assert_eq!(browser.run("return window.sameReader").await.unwrap(), true, "it was reloaded");
    assert_eq!(browser.complaints().await.unwrap(), Vec::<Value>::new());

    // Loading every view anew asks for no backfill, and offers none.
    for view in ["#/", "#/account/{id}/inbox", "#/account/{id}/sync"] {
        let id = scene.account().await["id"].as_str().unwrap().to_owned();
        browser.goto("about:blank").await.unwrap();
        let url = scene.url(&format!("/console{}", view.replace("{id}", &id)));
        browser.goto(&url).await.unwrap();
        browser.see("main h1").await.unwrap();
        let offers = browser.run(OFFERS).await.unwrap();
        assert_eq!(offers, json!([]), "{view}");
    }
    scene.no_backfill_was_asked_for().await;
    scene.log_is_discreet().await;
}

async fn the_code_to_scan_renews_itself() {
    let scene = Scene::new(&[]).await;
    let browser = scene.browser(Screen::Desk).await;
    browser.goto(&scene.url("/console")).await.unwrap();
    scene.log_in(&browser).await;
    scene.add().await;
    let first = browser.attribute("img.qr", "src").await.unwrap();
    browser.picture("code").await.unwrap();
    browser.run("window.sameReader = true").await.unwrap();
    // As long as WhatsApp lets the first one live.
    until("another code", Duration::from_secs(90), async || {
        let shown = browser.attribute("img.qr", "src").await?;
        Ok((shown != first).then_some(()))
    })
    .await
    .unwrap();
    scene.scan(&browser).await;
    browser.read(".card .badge", "connected").await.unwrap();
    assert_eq!(browser.run("return window.sameReader").await.unwrap(), true, "it was reloaded");
}

async fn backfill_is_offered_in_debug_mode_only_and_in_the_menu_only() {
    let scene = Scene::new(&[("CONSOLE_DEBUG", "true")]).await;
    let browser = scene.browser(Screen::Desk).await;
    browser.goto(&scene.url("/console")).await.unwrap();
    scene.log_in(&browser).await;
    scene.add().await;
    scene.scan(&browser).await;
    browser.read(".card .badge", "connected").await.unwrap();
    assert_eq!(browser.run(OFFERS).await.unwrap(), json!([{ "inMenu": true, "shown": false }]));
    scene.no_backfill_was_asked_for().await;

    browser.tab_to("details.menu summary").await.unwrap();
    browser.press(ENTER).await.unwrap();
    browser.see("details.menu[open] button").await.unwrap();
    assert_eq!(browser.run(OFFERS).await.unwrap(), json!([{ "inMenu": true, "shown": true }]));
    browser.picture("menu").await.unwrap();
    browser.tab_to("details.menu[open] button").await.unwrap();
    browser.press(ENTER).await.unwrap();
    until("the request to be counted", PATIENCE, async || {
        let metrics = scene.metrics().await;
        let asked = "wa_manual_backfills_total{caller=\"console\"} 1";
        Ok(metrics.lines().any(|line| line == asked).then_some(()))
    })
    .await
    .unwrap();
}

async fn everything_can_be_read_on_a_phone() {
    let scene = Scene::new(&[]).await;
    let browser = scene.browser(Screen::Phone).await;
    browser.goto(&scene.url("/console")).await.unwrap();
    scene.log_in(&browser).await;
    scene.add().await;
    browser.see("img.qr").await.unwrap();
    fits(&browser, "phone-code").await;
    scene.scan(&browser).await;
    browser.read(".card .badge", "connected").await.unwrap();
    scene.desk.send_recent(10);
    fits(&browser, "phone-accounts").await;
    browser.click("a[id^='inbox-']").await.unwrap();
    browser.read("#threads", "Customer 2").await.unwrap();
    fits(&browser, "phone-threads").await;
    browser.click("#threads a").await.unwrap();
    browser.see("#messages li").await.unwrap();
    fits(&browser, "phone-messages").await;
    browser.click("nav.tabs a:nth-child(2)").await.unwrap();
    browser.read("main", "History, thread by thread").await.unwrap();
    fits(&browser, "phone-sync").await;
}

/// Nothing is cut off at the side, too small to be read or too small to be touched.
async fn fits(browser: &Browser, picture: &str) {
    browser.picture(picture).await.unwrap();
    let found = browser.run(UNFIT).await.unwrap();
    assert_eq!(found, json!([]), "{picture}");
}

async fn the_documentation_shows_every_path_without_the_internet() {
    let scene = Scene::new(&[]).await;
    let browser = scene.browser(Screen::Desk).await;
    browser.goto(&scene.url("/console")).await.unwrap();
    scene.log_in(&browser).await;
    browser.goto(&scene.url("/docs")).await.unwrap();
    let api = scene.instance.api().get("/openapi.json").await.unwrap().body;
    for (path, operations) in api["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            browser.read("#paths", &format!("{} {path}", method.to_uppercase())).await.unwrap();
        }
    }
    browser.picture("docs").await.unwrap();
    let loaded = "return performance.getEntriesByType('resource')
        .map((e) => e.name).filter((name) => !name.startsWith(location.origin))";
    assert_eq!(browser.run(loaded).await.unwrap(), json!([]));
    assert_eq!(browser.complaints().await.unwrap(), Vec::<Value>::new());
}

/// An instance, the phone of a desk, and WhatsApp between them.
struct Scene {
    desk: Desk,
    fleet: Fleet,
    instance: Instance,
    directory: PathBuf,
    _servers: (WebSocketServer, MediaServer),
}

impl Scene {
    async fn new(vars: &[(&str, &str)]) -> Self {
        let directory = directory();
        let double = Double::new();
        let servers = (double.listen().await.unwrap(), double.listen_for_media().await.unwrap());
        let desk = desks(&double, &["Reception"], &[30, 12]).remove(0);
        let (whatsapp, media) = (servers.0.url(), servers.1.url());
        let mut all = vec![("WHATSAPP_URL", &*whatsapp), ("WHATSAPP_MEDIA_URL", &*media)];
        all.extend(VARS.iter().chain(vars));
        let fleet = Fleet::new(env!("CARGO_BIN_EXE_demo"), &["serve"], &directory, &all);
        let instance = fleet.start("one", &[]).await.unwrap();
        instance.active(PATIENCE).await.unwrap();
        Self { desk, fleet, instance, directory, _servers: servers }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.instance.api().base())
    }

    async fn browser(&self, screen: Screen) -> Browser {
        Browser::start(&self.directory, screen).await.unwrap()
    }

    /// Logs in on the page that asks for it.
    async fn log_in(&self, browser: &Browser) {
        browser.see("#login").await.unwrap();
        browser.tab_to("#token").await.unwrap();
        browser.press(&format!("{}{ENTER}", self.fleet.token())).await.unwrap();
        browser.see("#new-name").await.unwrap();
    }

    /// Adds the desk's account behind the page's back.
    async fn add(&self) {
        let number = format!("+{}", self.desk.number);
        self.instance.api().add_account(&self.desk.name, &number).await.unwrap();
    }

    async fn account(&self) -> Value {
        let listed = self.instance.api().get("/api/whatsapp/accounts").await.unwrap();
        listed.body["accounts"][0].clone()
    }

    /// Lets the phone scan what the page shows.
    async fn scan(&self, browser: &Browser) {
        until("a code that can be scanned", PATIENCE, async || {
            let shown = browser.attribute("img.qr", "src").await?;
            self.desk.account.scan(&scan::read(&shown)?)?;
            Ok(Some(()))
        })
        .await
        .unwrap();
    }

    async fn metrics(&self) -> String {
        self.instance.api().text("/metrics").await.unwrap()
    }

    async fn no_backfill_was_asked_for(&self) {
        let metrics = self.metrics().await;
        let asked: Vec<&str> = (metrics.lines())
            .filter(|line| line.starts_with("wa_manual_backfills_total{"))
            .collect();
        assert_eq!(asked.len(), 3, "{metrics}");
        assert!(asked.iter().all(|line| line.ends_with(" 0")), "{asked:?}");
        let requests = metrics.lines().filter(|line| line.starts_with("wa_http_requests_total{"));
        let requests: Vec<&str> = requests.filter(|line| line.contains("/backfill/")).collect();
        assert_eq!(requests, Vec::<&str>::new());
    }

    /// The log says what happened, and nothing of what was said, by whom and with which keys.
    async fn log_is_discreet(&self) {
        let log = std::fs::read_to_string(self.instance.log()).unwrap();
        for tag in ["[realtime]", "[wa-auto-backfill]", "[recent-sync]", "[lock]", "[http]"] {
            assert!(log.contains(tag), "{tag} is missing");
        }
        for line in log.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            assert!(line["message"].as_str().unwrap().starts_with('['), "{line}");
        }
        let people = self.desk.contacts.iter().flat_map(|c| [c.pn(), c.lid()]);
        let mut secrets: Vec<String> = people.map(|jid| jid.user.to_string()).collect();
        secrets.extend(["May I ask", "Certainly", "Live and well"].map(str::to_owned));
        secrets.extend(["s.whatsapp.net", "@lid", SESSION_KEY].map(str::to_owned));
        let account = self.account().await["id"].as_str().unwrap().to_owned();
        secrets.extend([self.desk.number.clone(), self.fleet.token().to_owned(), account]);
        for secret in secrets {
            let line = log.lines().find(|line| line.contains(&secret));
            assert!(line.is_none(), "{secret} is in the log: {line:?}");
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("    the logs are in {}", self.directory.display());
        } else {
            // It lies where the system cleans up.
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

/// A directory that nobody else uses.
fn directory() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("wa-console-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Runs a case on a runtime of its own.
async fn alone<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.unwrap().block_on(test());
    };
    if let Err(failed) = tokio::task::spawn_blocking(run).await {
        std::panic::resume_unwind(failed.into_panic());
    }
}

/// Everything on the page that offers a backfill.
const OFFERS: &str = "
    return [...document.querySelectorAll('button, a:not(.brand), summary, input')]
        .filter((e) => /backfill/i.test(e.textContent + e.value))
        .map((e) => ({ inMenu: e.closest('details.menu') !== null, shown: e.checkVisibility() }))";

/// Everything on the page that does not fit a small screen and a finger. Tables scroll by themselves.
const UNFIT: &str = "
    const problems = [];
    if (document.documentElement.scrollWidth > innerWidth) problems.push('the page scrolls sideways');
    for (const e of document.querySelectorAll('header *, main *')) {
        if (!e.checkVisibility() || e.closest('.scroll, svg')) continue;
        const box = e.getBoundingClientRect();
        const name = e.outerHTML.slice(0, 100);
        if (box.right > innerWidth + 1 || box.left < -1) problems.push('cut off: ' + name);
        if (parseFloat(getComputedStyle(e).fontSize) < 13) problems.push('small text: ' + name);
        const touched = e.matches('button, .button, summary, input, nav a, .threads a');
        if (touched && box.height < 36) problems.push('hard to hit: ' + name);
    }
    return problems";

const PATIENCE: Duration = Duration::from_secs(30);

/// Worth nothing outside these tests.
const SESSION_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

const VARS: [(&str, &str); 7] = [
    ("SESSION_STORE", "shared"),
    ("SESSION_ENCRYPTION_KEY", "test:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
    ("RECENT_SYNC_INTERVAL_MS", "5000"),
    ("INSTANCE_LEASE_MS", "10000"),
    ("AUTO_BACKFILL_CONNECT_DELAY_MIN_MS", "500"),
    ("AUTO_BACKFILL_CONNECT_DELAY_MAX_MS", "1000"),
    ("PHONE_REQUEST_SPACING_MS", "5000"),
];
