//! What the server takes and how fast it is, with real processes on this machine.
//!
//! WhatsApp's double and the Firestore emulator run beside the server and share its processors. Seen
//! with `cargo run --release -p demo -- measure` on 2 virtual cores:
//!
//! | | |
//! |---|---|
//! | from the start to `/ready`, and to ACTIVE | 31 ms, 121 ms |
//! | other instance ACTIVE after SIGTERM | 0.10 s |
//! | … after kill -9, with a term of 10 s | 15 s |
//! | 1 idle account | 32.3 MB, 0.09 % of one processor |
//! | 30 idle accounts | 38.8 MB, 0.15 % |
//! | 100 idle accounts | 55.5 MB, 0.28 % |
//! | wire to SQLite | 1,128 live messages a second, 41,954 of a history |
//! | wire to Firestore, emulated | 446 and 8,224 |
//! | `/ready` under load, p50 and p99, store running | 0.37 ms, 3.8 ms |
//! | … store stopped | 0.13 ms, 0.63 ms |

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use backfill_core::doc::DocPath;
use backfill_driver::port::Store;
use demo::api::{Api, until};
use demo::fleet::Fleet;
use demo::office::{Desk, desks};
use demo::truth::compare;
use rustix::process::Signal;
use store_firestore::{Credentials, FirestoreStore, Options};
use store_sqlite::SqliteStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use whatsapp_double::{Double, MediaServer, WebSocketServer};

/// Measures what is chosen by part of its name, everything if nothing is. What needs the emulator
/// takes the one at `FIRESTORE_EMULATOR_HOST`.
pub(crate) fn measure(words: &[String]) -> Result<()> {
    let chosen = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word));
    let emulator = std::env::var("FIRESTORE_EMULATOR_HOST").ok();
    let missing = |name| println!("{name}: not measured, FIRESTORE_EMULATOR_HOST is not set");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        if chosen("start") {
            start().await?;
        }
        if chosen("failover-short") {
            failover(Some(10_000), 3).await?;
        }
        if chosen("failover-default") {
            failover(None, 1).await?;
        }
        for accounts in [1, 30, 100] {
            if chosen(&format!("idle-{accounts}")) {
                idle(accounts).await?;
            }
        }
        if chosen("throughput-sqlite") {
            let place = Place::sqlite().await?;
            let store = SqliteStore::open(&place.directory.join("wa-backfill.sqlite"))?;
            throughput("sqlite", &place, &store).await?;
        }
        for name in ["throughput-firestore", "ready"].into_iter().filter(|name| chosen(name)) {
            match (&emulator, name) {
                (None, _) => missing(name),
                (Some(emulator), "ready") => ready_while_the_store_stands_still(emulator).await?,
                (Some(emulator), _) => {
                    let place = Place::firestore(emulator).await?;
                    let credentials = Credentials::Emulator(emulator.clone());
                    let options = Options { project: place.project(), credentials };
                    let store = FirestoreStore::connect(&options).await?;
                    throughput("firestore", &place, &store).await?;
                }
            }
        }
        Ok(())
    })
}

/// From the start of the process to its first answer, and to being ACTIVE, on an empty directory.
async fn start() -> Result<()> {
    let (mut answers, mut active) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let place = Place::sqlite().await?;
        let begun = Instant::now();
        let one = place.fleet(&[])?.start("one", &[]).await?;
        answers.push(begun.elapsed());
        until("it to be active", PATIENCE, async || Ok(one.is_active().await.then_some(())))
            .await?;
        active.push(begun.elapsed());
        one.kill().await?;
    }
    println!("cold start to /ready          {}", spread(answers));
    println!("cold start to ACTIVE          {}", spread(active));
    Ok(())
}

/// From the end of the holder until the other one is ACTIVE, and until it has stored a message
/// that was sent meanwhile.
async fn failover(term: Option<u64>, rounds: usize) -> Result<()> {
    let term_text = term.map(|term| term.to_string());
    let vars: Vec<(&str, &str)> =
        term_text.iter().map(|term| ("INSTANCE_LEASE_MS", term.as_str())).collect();
    let named = term.map_or("90 s (default)".to_owned(), |term| format!("{} s", term / 1_000));
    for graceful in [false, true] {
        let (mut active, mut whole) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let place = Place::sqlite().await?;
            let desks = desks(&place.double, &["Reception"], &[5]);
            let fleet = place.fleet(&vars)?;
            let one = fleet.start("one", &[]).await?;
            one.active(LONG).await?;
            let two = fleet.start("two", &[]).await?;
            let id = desks[0].link(one.api()).await?;
            desks[0].send_recent(5);
            let store = SqliteStore::open(&place.directory.join("wa-backfill.sqlite"))?;
            even(&store, &desks, std::slice::from_ref(&id)).await?;
            let ended = Instant::now();
            if graceful {
                one.signal(Signal::TERM)?;
            } else {
                one.signal(Signal::KILL)?;
            }
            desks[0].contacts[0].text("while nobody listened");
            two.active(LONG).await?;
            active.push(ended.elapsed());
            even(&store, &desks, &[id]).await?;
            whole.push(ended.elapsed());
        }
        let how = if graceful { "SIGTERM" } else { "kill -9" };
        println!("{how}, term {named}: other ACTIVE  {}", spread(active));
        println!("{how}, term {named}: complete      {}", spread(whole));
    }
    Ok(())
}

/// Memory and processor time of an instance whose accounts are connected and have nothing to do.
async fn idle(accounts: usize) -> Result<()> {
    let place = Place::sqlite().await?;
    let names: Vec<String> = (0..accounts).map(|n| format!("Desk {n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let desks = desks(&place.double, &names, &[5]);
    let fleet = place.fleet(&[
        ("MAX_ACCOUNTS", "200"),
        ("RATE_LIMIT_PER_IP", "0"),
        ("RATE_LIMIT_PER_TOKEN", "0"),
        ("AUTO_BACKFILL_CONNECT_DELAY_MIN_MS", "100"),
        ("AUTO_BACKFILL_CONNECT_DELAY_MAX_MS", "200"),
        ("AUTO_BACKFILL_MAX_CONCURRENCY", "20"),
    ])?;
    let one = fleet.start("one", &[]).await?;
    one.active(PATIENCE).await?;
    let mut ids = Vec::new();
    for desk in &desks {
        ids.push(desk.link(one.api()).await?);
        desk.send_recent(5);
    }
    let store = SqliteStore::open(&place.directory.join("wa-backfill.sqlite"))?;
    even(&store, &desks, &ids).await?;
    // Until the runs after connecting are over.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let pid = one.pid().context("it has ended")?;
    let (before, begun) = (cpu(pid)?, Instant::now());
    tokio::time::sleep(IDLE).await;
    let share = (cpu(pid)? - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    println!(
        "{accounts:>3} idle accounts: {:>5.1} MB resident, {:.2} % of one processor",
        resident(pid)? as f64 / 1e6,
        share * 100.0
    );
    one.kill().await?;
    Ok(())
}

/// Messages a second from WhatsApp's wire into the store: live ones, each encrypted for itself, and
/// those of a history.
async fn throughput(name: &str, place: &Place, store: &impl Store) -> Result<()> {
    let desks = desks(&place.double, &["Reception"], &[5, 5, 5, 5]);
    let one = place.fleet(&[])?.start("one", &[]).await?;
    one.active(PATIENCE).await?;
    let ids = vec![desks[0].link(one.api()).await?];
    desks[0].send_recent(5);
    even(store, &desks, &ids).await?;

    let begun = Instant::now();
    for n in 0..LIVE {
        desks[0].contacts[n % 4].text(&format!("Live message {n}"));
    }
    let account = &desks[0].account;
    until("every message to be confirmed", LONG, async || {
        Ok(account.unconfirmed().is_empty().then_some(()))
    })
    .await?;
    let took = begun.elapsed();
    println!("{name}: {LIVE} live messages in {took:.1?}, {:.0}/s", rate(LIVE, took));
    even(store, &desks, &ids).await?;

    let phone = account.phone();
    let begun_at = 1_600_000_000;
    for contact in &desks[0].contacts {
        phone.keep_texts(contact.pn(), &contact.pn().user, begun_at, HISTORY as u64 / 4);
    }
    let account = DocPath::parse(format!("accounts/{}", ids[0]))?;
    let synced = async || {
        let doc = store.get(std::slice::from_ref(&account)).await?.docs.remove(0);
        anyhow::Ok(doc.and_then(|doc| doc.int("historySyncCount")))
    };
    let before = synced().await?;
    let begun = Instant::now();
    desks[0].send_recent(HISTORY);
    let done = async || Ok((synced().await? > before).then_some(()));
    until("the history to be stored", LONG, done).await?;
    let took = begun.elapsed();
    even(store, &desks, &ids).await?;
    println!("{name}: {HISTORY} of a history in {took:.1?}, {:.0}/s", rate(HISTORY, took));
    one.kill().await?;
    Ok(())
}

/// `/ready` while the store does not answer and many requests wait for it.
async fn ready_while_the_store_stands_still(emulator: &str) -> Result<()> {
    let relay = Relay::new(emulator).await?;
    let place = Place::firestore(&relay.address).await?;
    let desks = desks(&place.double, &["Reception"], &[5]);
    let fleet = place.fleet(&[("RATE_LIMIT_PER_IP", "0"), ("RATE_LIMIT_PER_TOKEN", "0")])?;
    let one = fleet.start("one", &[]).await?;
    one.active(PATIENCE).await?;
    let id = desks[0].link(one.api()).await?;
    for stopped in [false, true] {
        relay.stop(stopped);
        let waiting: Vec<_> = (0..32)
            .map(|_| {
                let (api, path) = (one.api().clone(), format!("/api/whatsapp/threads/{id}"));
                tokio::spawn(async move {
                    loop {
                        // Whatever comes of it: it is load.
                        let _ = api.get(&path).await;
                    }
                })
            })
            .collect();
        let asking: Vec<_> = (0..8).map(|_| tokio::spawn(ask(one.api().clone()))).collect();
        let mut took = Vec::new();
        for asked in asking {
            took.extend(asked.await??);
        }
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
        took.sort_unstable();
        let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
        println!(
            "/ready, store {}: {} asked, p50 {:.1?}, p99 {:.1?}, longest {:.1?}",
            if stopped { "stopped" } else { "running" },
            took.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
    one.kill().await?;
    Ok(())
}

/// The way to a server, on which nothing passes while it is stopped.
struct Relay {
    address: String,
    stopped: Arc<watch::Sender<bool>>,
}

impl Relay {
    async fn new(to: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let stopped = Arc::new(watch::Sender::new(false));
        let (to, state) = (to.to_owned(), stopped.subscribe());
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let Ok(to) = TcpStream::connect(&to).await else { continue };
                let ((from_read, from_write), (to_read, to_write)) =
                    (from.into_split(), to.into_split());
                tokio::spawn(pass(from_read, to_write, state.clone()));
                tokio::spawn(pass(to_read, from_write, state.clone()));
            }
        });
        Ok(Self { address, stopped })
    }

    fn stop(&self, stopped: bool) {
        self.stopped.send_replace(stopped);
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut stopped: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut bytes = vec![0; 64 * 1_024];
    loop {
        let read = from.read(&mut bytes).await?;
        // An error means that the relay is gone.
        if read == 0 || stopped.wait_for(|stopped| !stopped).await.is_err() {
            return Ok(());
        }
        to.write_all(&bytes[..read]).await?;
    }
}

async fn ask(api: Api) -> Result<Vec<Duration>> {
    let (begun, mut took) = (Instant::now(), Vec::new());
    while begun.elapsed() < Duration::from_secs(10) {
        let asked = Instant::now();
        let answer = api.get("/ready").await?;
        ensure!(answer.status == 200, "{answer:?}");
        took.push(asked.elapsed());
    }
    Ok(took)
}

/// A WhatsApp and a place for files of its own.
struct Place {
    double: Double,
    directory: PathBuf,
    servers: (WebSocketServer, MediaServer),
    vars: Vec<(String, String)>,
}

impl Place {
    async fn sqlite() -> Result<Self> {
        Self::new(&[("STORE", "sqlite")]).await
    }

    async fn firestore(emulator: &str) -> Result<Self> {
        let vars = [("STORE", "firestore"), ("FIRESTORE_EMULATOR_HOST", emulator)];
        let mut place = Self::new(&vars).await?;
        place.vars.push(("GOOGLE_CLOUD_PROJECT".into(), place.project()));
        Ok(place)
    }

    async fn new(vars: &[(&str, &str)]) -> Result<Self> {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("wa-measure-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory)?;
        let double = Double::new();
        let servers = (double.listen().await?, double.listen_for_media().await?);
        let vars = vars.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Ok(Self { double, directory, servers, vars })
    }

    fn project(&self) -> String {
        let name = self.directory.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    fn fleet(&self, vars: &[(&str, &str)]) -> Result<Fleet> {
        let (url, media) = (self.servers.0.url(), self.servers.1.url());
        let mut all = vec![
            ("SESSION_STORE", "shared"),
            ("SESSION_ENCRYPTION_KEY", "bench:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
            ("WHATSAPP_URL", url.as_str()),
            ("WHATSAPP_MEDIA_URL", media.as_str()),
        ];
        all.extend(self.vars.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        all.extend(vars);
        Ok(Fleet::new(std::env::current_exe()?, &["serve"], &self.directory, &all))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // It lies where the system cleans up.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Waits until the store holds what the phones hold.
async fn even(store: &impl Store, desks: &[Desk], ids: &[String]) -> Result<()> {
    until("the store to hold what the phones hold", LONG, async || {
        for (desk, id) in desks.iter().zip(ids) {
            let balance = compare(store, id, &desk.account.phone()).await?;
            ensure!(balance.is_even(), "{balance:?}");
        }
        Ok(Some(()))
    })
    .await
}

/// Processor time that a process has used; Linux counts it in hundredths of a second.
fn cpu(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("another /proc/pid/stat")?;
    let mut ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks = ticks.try_fold(0, |sum, ticks| ticks.map(|ticks| sum + ticks))?;
    Ok(Duration::from_millis(ticks * 10))
}

/// Bytes of memory that a process holds.
fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kilobytes.context("no VmRSS")? * 1_024)
}

fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// The middle one, and both ends.
fn spread(mut took: Vec<Duration>) -> String {
    took.sort_unstable();
    match took.as_slice() {
        [] => "nothing".into(),
        [one] => format!("{one:.2?}"),
        all => format!("{:.2?} ({:.2?} to {:.2?})", all[all.len() / 2], all[0], all[all.len() - 1]),
    }
}

const PATIENCE: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(400);
/// Long enough for a tick of recent sync.
const IDLE: Duration = Duration::from_secs(130);
const LIVE: usize = 4_000;
const HISTORY: usize = 40_000;
