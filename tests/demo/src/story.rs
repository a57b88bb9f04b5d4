//! What the demo shows, in order.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use demo::api::until;
use demo::fleet::{Fleet, Instance};
use demo::office::{Desk, desks};
use demo::truth::{Balance, compare};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;
use store_sqlite::SqliteStore;
use whatsapp_double::{Double, Seen};

/// Tells the story; `false` if something did not come out as it should.
pub(crate) fn tell(once: bool) -> Result<bool> {
    let directory = Directory::new()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            told = stage(once, &directory.0) => told,
            _ = tokio::signal::ctrl_c() => Ok(true),
        }
    })
}

async fn stage(once: bool, directory: &Path) -> Result<bool> {
    say("WhatsApp is a double on this machine; nothing leaves it.");
    let double = Double::new();
    let (whatsapp, media) = (double.listen().await?, double.listen_for_media().await?);
    let desks = desks(&double, &["Reception", "Sales", "Workshop"], &CHATS);

    let (url, media_url) = (whatsapp.url(), media.url());
    let mut vars = VARS.to_vec();
    vars.extend([("WHATSAPP_URL", url.as_str()), ("WHATSAPP_MEDIA_URL", media_url.as_str())]);
    let fleet = Fleet::new(std::env::current_exe()?, &["serve"], directory, &vars);
    let first = fleet.start("first", &[]).await?;
    first.active(PATIENCE).await?;
    let second = fleet.start("second", &[]).await?;
    show_ways(&fleet, &[&first, &second]);

    say("Three phones scan the QR codes that the first instance shows.");
    let begun = Instant::now();
    let mut ids = Vec::new();
    for desk in &desks {
        ids.push(desk.link(first.api()).await?);
        desk.send_recent(SENT_BY_ITSELF);
    }
    say(&format!("All are linked after {:.1} s.", begun.elapsed().as_secs_f64()));

    say(&format!(
        "Each phone has sent the newest {SENT_BY_ITSELF} messages of every chat. The rest is asked \
         for, page by page, {} s apart.",
        SPACING_MS / 1_000
    ));
    let store = SqliteStore::open(&directory.join("wa-backfill.sqlite"))?;
    let shelf = Shelf { store, desks: &desks, ids: &ids };
    shelf.fill().await?;
    say(&format!("History is complete after {:.1} s.", begun.elapsed().as_secs_f64()));

    let mut took = Vec::new();
    for round in 0..LIVE_ROUNDS {
        for desk in &desks {
            let sent = Instant::now();
            desk.contacts[round % desk.contacts.len()].text("Is anybody there?");
            shelf.even("a live message", PATIENCE).await?;
            took.push(sent.elapsed());
        }
    }
    took.sort_unstable();
    say(&format!(
        "{} live messages were stored, half of them within {} ms.",
        took.len(),
        took[took.len() / 2].as_millis()
    ));

    let to = desks[0].contacts[0].pn().to_string();
    let asked = json!({ "accountId": ids[0], "to": to, "message": "Good morning!" });
    let answer = first.api().post("/api/whatsapp/send-message", asked).await?;
    anyhow::ensure!(answer.status == 200, "the message was not taken: {answer:?}");
    let arrived = desks[0].account.wait_for_log("the message", |log| {
        log.iter().any(|seen| matches!(seen, Seen::Message(_))).then_some(())
    });
    tokio::time::timeout(PATIENCE, arrived).await.context("the message was not sent")?;
    say("A message was sent through the outbox.");

    say("The first instance is killed, as by kill -9, while messages keep coming.");
    let killed = Instant::now();
    first.kill().await?;
    for desk in &desks {
        desk.contacts[0].text("Hello? I wrote while nobody was listening.");
    }
    second.active(PATIENCE).await?;
    say(&format!("The second is active after {:.1} s.", killed.elapsed().as_secs_f64()));
    for (desk, id) in desks.iter().zip(&ids) {
        desk.connected(second.api(), id).await?;
    }
    let balance = shelf.even("what was sent meanwhile", PATIENCE).await?;
    say(&format!("It has everything after {:.1} s.", killed.elapsed().as_secs_f64()));

    println!();
    println!("    messages on the phones  {:>6}", balance.expected);
    println!("    of which in the store   {:>6}", balance.stored);
    println!("    not on the phones       {:>6}", balance.foreign);
    println!("    stored twice            {:>6}", balance.twice);
    println!();
    if !once {
        show_ways(&fleet, &[&second]);
        say("A message arrives every few seconds. Press Ctrl-C to end.");
        for round in 0_usize.. {
            tokio::time::sleep(Duration::from_secs(3)).await;
            let desk = &desks[round % desks.len()];
            desk.contacts[round % desk.contacts.len()].text("And another question.");
        }
    }
    let code = second.stop(PATIENCE).await?;
    say(&format!("The second instance was asked to stop, and ended with {code:?}."));
    Ok(balance.is_even() && code == Some(0))
}

/// The store, and what should be in it.
struct Shelf<'a> {
    store: SqliteStore,
    desks: &'a [Desk],
    ids: &'a [String],
}

impl Shelf<'_> {
    /// Waits until the history of every phone is in the store, and shows how far it is.
    async fn fill(&self) -> Result<()> {
        let style = ProgressStyle::with_template("    {prefix:10} {bar:40} {pos:>4}/{len} {msg}")?;
        let bars = MultiProgress::new();
        let bars: Vec<ProgressBar> = (self.desks.iter())
            .map(|desk| {
                let bar = bars.add(ProgressBar::new(0).with_style(style.clone()));
                bar.with_prefix(desk.name.clone())
            })
            .collect();
        let looked = async || {
            let mut all = true;
            for (bar, (desk, id)) in bars.iter().zip(self.desks.iter().zip(self.ids)) {
                let balance = compare(&self.store, id, &desk.account.phone()).await?;
                bar.set_length(balance.expected as u64);
                bar.set_position(balance.stored as u64);
                if balance.is_even() {
                    bar.finish_with_message("complete");
                }
                all &= balance.is_even();
            }
            Ok(all.then_some(()))
        };
        until("the history to be complete", FILL_PATIENCE, looked).await
    }

    /// Waits until the store holds exactly what the phones hold, and answers how much that is.
    async fn even(&self, what: &str, patience: Duration) -> Result<Balance> {
        let looked = async || {
            let mut sum = Balance::default();
            for (desk, id) in self.desks.iter().zip(self.ids) {
                let balance = compare(&self.store, id, &desk.account.phone()).await?;
                sum.expected += balance.expected;
                sum.stored += balance.stored;
                sum.foreign += balance.foreign;
                sum.twice += balance.twice;
            }
            Ok(sum.is_even().then_some(sum))
        };
        until(&format!("{what} to be in the store"), patience, looked).await
    }
}

/// How to look at it.
fn show_ways(fleet: &Fleet, instances: &[&Instance]) {
    println!();
    for instance in instances {
        let base = instance.api().base();
        println!(
            "    {:7} console {base}/console   log {}",
            instance.name(),
            instance.log().display()
        );
        println!("            curl -s {base}/ready");
        println!(
            "            curl -s -H 'Authorization: Bearer {}' {base}/api/whatsapp/accounts",
            fleet.token()
        );
    }
    println!("    The console asks for the token: {}", fleet.token());
    println!();
}

fn say(line: &str) {
    println!("• {line}");
}

/// A directory for the files of one run, removed at its end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("wa-backfill-demo-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // It lies where the system cleans up.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How many messages each chat of each phone holds.
const CHATS: [u64; 6] = [12, 45, 60, 70, 30, 25];
/// So many of them the phone sends by itself.
const SENT_BY_ITSELF: usize = 20;
const LIVE_ROUNDS: usize = 5;
const SPACING_MS: u64 = 5_000;
const PATIENCE: Duration = Duration::from_secs(60);
const FILL_PATIENCE: Duration = Duration::from_secs(300);

/// Terms short enough to watch. The key is worth nothing outside this run.
const VARS: [(&str, &str); 11] = [
    ("STORE", "sqlite"),
    ("SESSION_STORE", "shared"),
    ("SESSION_ENCRYPTION_KEY", "demo:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
    ("INSTANCE_LEASE_MS", "10000"),
    ("LOCK_DELAY_MS", "1000"),
    ("AUTO_BACKFILL_CONNECT_DELAY_MIN_MS", "500"),
    ("AUTO_BACKFILL_CONNECT_DELAY_MAX_MS", "2000"),
    ("AUTO_BACKFILL_ATTEMPT_BACKOFF_MS", "3000"),
    ("AUTO_BACKFILL_MAX_CONCURRENCY", "3"),
    ("WHATSAPP_BACKFILL_MESSAGES_PER_THREAD", "50"),
    ("PHONE_REQUEST_SPACING_MS", "5000"),
];
