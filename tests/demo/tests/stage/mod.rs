//! Where a case takes place: a store, phones, and instances that come and go.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backfill_core::doc::{DocPath, Document, FieldOp, Precondition, Write};
use backfill_driver::port::Store;
use backfill_driver::recording::Recording;
use demo::api::until;
use demo::fleet::{Fleet, Instance};
use demo::office::{Desk, desks};
use demo::truth::compare;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sim::hindsight::judge;
use whatsapp_double::{Double, MediaServer, Seen, WebSocketServer};

/// An empty store, and how instances are told of it.
pub(crate) struct Place<S> {
    pub(crate) store: S,
    pub(crate) directory: PathBuf,
    pub(crate) vars: Vec<(String, String)>,
    /// The process that keeps the store, if there is one of our own
    pub(crate) server: Option<u32>,
}

/// A place with phones, a WhatsApp and a fleet.
pub(crate) struct Stage<S> {
    pub(crate) store: S,
    pub(crate) desks: Vec<Desk>,
    pub(crate) fleet: Fleet,
    /// A process has stood still with its connections open, so others had to replace them
    pub(crate) froze: bool,
    server: Option<u32>,
    directory: PathBuf,
    _servers: (WebSocketServer, MediaServer),
}

/// What is short in tests, in seconds: a session's term.
pub(crate) const TERM: Duration = Duration::from_secs(4);
/// Longer than anything takes that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const VARS: [(&str, &str); 12] = [
    ("SESSION_STORE", "shared"),
    ("SESSION_ENCRYPTION_KEY", "test:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
    ("INSTANCE_LEASE_MS", "4000"),
    ("PROCESS_LEASE_MS", "4000"),
    ("LOCK_DELAY_MS", "500"),
    ("AUTO_BACKFILL_CONNECT_DELAY_MIN_MS", "200"),
    ("AUTO_BACKFILL_CONNECT_DELAY_MAX_MS", "600"),
    ("AUTO_BACKFILL_INTERVAL_MS", "2000"),
    ("AUTO_BACKFILL_ATTEMPT_BACKOFF_MS", "3000"),
    ("RECENT_SYNC_INTERVAL_MS", "2000"),
    ("WHATSAPP_BACKFILL_MESSAGES_PER_THREAD", "50"),
    ("PHONE_REQUEST_SPACING_MS", "5000"),
];

impl<S: Store> Stage<S> {
    /// Phones with so many messages in each of their chats.
    pub(crate) async fn new(place: Place<S>, phones: usize, chats: &[u64]) -> Self {
        let double = Double::new();
        let servers = (double.listen().await.unwrap(), double.listen_for_media().await.unwrap());
        let names = ["Reception", "Sales", "Workshop"];
        let desks = desks(&double, &names[..phones], chats);
        let (url, media) = (servers.0.url(), servers.1.url());
        let mut vars: Vec<(&str, &str)> = VARS.to_vec();
        vars.extend([("WHATSAPP_URL", url.as_str()), ("WHATSAPP_MEDIA_URL", media.as_str())]);
        vars.extend(place.vars.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let program = env!("CARGO_BIN_EXE_demo");
        let fleet = Fleet::new(program, &["serve"], &place.directory, &vars).recorded();
        let Place { store, directory, server, .. } = place;
        Self { store, desks, fleet, froze: false, server, directory, _servers: servers }
    }

    /// Ends all instances, and has the simulator's checker judge what each of them was told and did.
    pub(crate) async fn end(self, instances: Vec<Instance>) {
        for instance in instances {
            instance.kill().await.unwrap();
        }
        let recordings = self.fleet.recordings().unwrap();
        let read = |path| Recording::read(BufReader::new(File::open(path).unwrap())).unwrap();
        let recordings: Vec<Recording> = recordings.iter().map(read).collect();
        let judgement = judge(&recordings);
        assert_eq!(judgement.violations, [], "of {} processes", recordings.len());
        println!(
            "    judged: {} processes, {} inputs, {} commits",
            recordings.len(),
            judgement.inputs,
            judgement.commits
        );
        for desk in &self.desks {
            let log = desk.account.log();
            let replaced = log.iter().any(|seen| matches!(seen, Seen::Replaced { .. }));
            assert!(!replaced || self.froze, "{} was connected twice at once", desk.name);
        }
    }

    /// The process that keeps the store stands still as long as the value lives.
    pub(crate) fn stop_store(&self) -> Stopped {
        let server = self.server.and_then(|server| Pid::from_raw(server as i32));
        let server = server.expect("the store has a process of our own");
        kill_process(server, Signal::STOP).unwrap();
        Stopped(server)
    }

    /// Freezes an instance between two of its commits: in the midst of one it would keep the lock
    /// of SQLite's file, and nobody else on the host could go on.
    pub(crate) async fn freeze(&self, instance: &Instance) {
        let path = DocPath::parse("probe/freeze").unwrap();
        let between = async || {
            instance.signal(Signal::STOP)?;
            let fields = vec![("at".into(), FieldOp::ServerTime)];
            let probe = vec![Write::merge(path.clone(), Precondition::Any, fields)];
            let written = tokio::time::timeout(Duration::from_secs(1), self.store.commit(probe));
            if matches!(written.await, Ok(Ok(_))) {
                return Ok(Some(()));
            }
            instance.signal(Signal::CONT)?;
            Ok(None)
        };
        until("an instance that stands still between two commits", PATIENCE, between)
            .await
            .unwrap();
    }

    /// Starts an instance and waits until it is active.
    pub(crate) async fn active(&self, name: &str, vars: &[(&str, &str)]) -> Instance {
        let instance = self.start(name, vars).await;
        instance.active(PATIENCE).await.unwrap();
        instance
    }

    pub(crate) async fn start(&self, name: &str, vars: &[(&str, &str)]) -> Instance {
        self.fleet.start(name, vars).await.unwrap()
    }

    /// Links every phone through an instance, and lets it send its newest messages.
    pub(crate) async fn link(&self, instance: &Instance, recent: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for desk in &self.desks {
            ids.push(desk.link(instance.api()).await.unwrap());
            desk.send_recent(recent);
        }
        ids
    }

    /// Waits until the store holds exactly what the phones hold.
    pub(crate) async fn even(&self, ids: &[String]) {
        let even = async || {
            for (desk, id) in self.desks.iter().zip(ids) {
                let balance = compare(&self.store, id, &desk.account.phone()).await?;
                anyhow::ensure!(balance.is_even(), "{balance:?}");
            }
            Ok(Some(()))
        };
        until("the store to hold what the phones hold", PATIENCE * 2, even).await.unwrap();
    }

    pub(crate) async fn doc(&self, path: &str) -> Option<Arc<Document>> {
        let path = DocPath::parse(path).unwrap();
        self.store.get(&[path]).await.unwrap().docs.remove(0)
    }

    /// Waits until an account's document shows something.
    pub(crate) async fn account<T>(
        &self,
        what: &str,
        id: &str,
        pick: impl Fn(&Document) -> Option<T>,
    ) -> T {
        let path = format!("accounts/{id}");
        let look = async || Ok(self.doc(&path).await.as_deref().and_then(&pick));
        until(what, PATIENCE, look).await.unwrap()
    }
}

/// A process that stands still. It goes on when this is dropped.
pub(crate) struct Stopped(Pid);

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).expect("it is still there");
    }
}

impl<S> Drop for Stage<S> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("    the logs are in {}", self.directory.display());
        } else {
            // It lies where the system cleans up.
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

/// The messages in an instance's log.
pub(crate) fn log(instance: &Instance) -> Vec<Value> {
    let text = std::fs::read_to_string(instance.log()).unwrap();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
