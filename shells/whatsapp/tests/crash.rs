//! Processes that die at any step between the network and the store.
//!
//! Fault model: a process ends between any two of its reads and writes of the store (its session
//! lies there too), after a commit or instead of its answer, and between any two writes to the
//! network. The store, the server and the phone live on. What the server was told is stored must be
//! stored; nothing may be there twice; what our users wrote arrives under one id.
//!
//! `WA_CRASH_SCHEDULES` says how many schedules are tried.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use backfill_core::alias::outbound_wa_id;
use backfill_core::doc::{FieldPath, Precondition, Value, Write};
use backfill_core::id::OutboxId;
use backfill_core::policy::Settings;
use backfill_driver::port::Store;
use gateway_whatsapp::Spool;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use whatsapp_double::{Contact, Seen, Via};

use crate::harness::store::Life;
use crate::harness::transport::Mortal;
use crate::harness::{World, keys, named, write_outbox};

/// In real time: each process has a runtime of its own, which is torn down under it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_step_is_the_last_nothing_is_lost_and_nothing_is_there_twice() {
    let schedules = std::env::var("WA_CRASH_SCHEDULES").ok();
    let schedules: u64 = schedules.map_or(40, |count| count.parse().unwrap());
    let mut totals = BTreeMap::<&'static str, u64>::new();
    for seed in 0..schedules {
        let _named = Named(seed);
        for (what, count) in Schedule::run(seed).await {
            *totals.entry(what).or_default() += count;
        }
    }
    println!("{schedules} schedules: {totals:?}");
    assert!(totals["died in the middle"] > schedules / 2, "the steps are chosen badly");
}

/// Says which schedule it was that failed, whatever it failed of.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in the schedule of seed {}", self.0);
        }
    }
}

struct Schedule {
    world: World,
    random: StdRng,
    contacts: Vec<Contact>,
    /// Per chat: id and text of what must be there in the end
    expected: BTreeMap<(String, String), String>,
    outbox: Vec<(String, String)>,
    history: BTreeSet<(String, String)>,
    written: u32,
    spool: Spool,
}

impl Schedule {
    async fn run(seed: u64) -> BTreeMap<&'static str, u64> {
        let world = World::linked().await;
        let contacts = (0..4)
            .map(|n| world.account.contact(&format!("155510000{n:02}"), &format!("2000{n:02}")))
            .collect();
        // Both kinds of spool, in turns.
        let spool = match seed % 2 {
            0 => Spool::disk(world.directory.path().join("spool")),
            _ => Spool::shared(keys()),
        };
        let mut schedule = Self {
            spool,
            world,
            random: StdRng::seed_from_u64(seed),
            contacts,
            expected: BTreeMap::new(),
            outbox: Vec::new(),
            history: BTreeSet::new(),
            written: 0,
        };
        let mut totals = BTreeMap::<&'static str, u64>::new();
        let lives = schedule.random.random_range(1..=3);
        for _ in 0..lives {
            let steps = schedule.random.random_range(1..=160);
            let died = schedule.live(steps).await;
            *totals.entry("died in the middle").or_default() += u64::from(died);
            *totals.entry("lives").or_default() += 1;
        }
        totals.insert("history lost and known to be", u64::from(schedule.survive().await));
        totals.insert("messages", schedule.expected.len() as u64);
        totals
    }

    /// A process that ends at a step, or once it has nothing left to do.
    async fn live(&mut self, steps: u64) -> bool {
        let life = Life::ending_after(steps);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let store = self.world.store.of(&life);
        let mut options = self.world.options();
        let inner = self.world.double.transport();
        options.transport = Arc::new(Mortal { inner, life: life.clone() });
        options.history_timeout = Duration::from_millis(500);
        options.spool = self.spool.clone();
        let settings = settings(&self.world);
        let before = self.random.random_range(0..4);
        self.happen(before).await;
        let process = {
            let _entered = runtime.enter();
            self.world.prepare(store, options, settings)
        };
        let running = runtime.spawn(process.run());
        let during = self.random.random_range(0..12);
        self.happen(during).await;
        let died = tokio::select! {
            () = life.ended() => true,
            _ = self.settled() => false,
        };
        life.end();
        runtime.shutdown_background();
        drop(running);
        self.world.account.wait_gone().await;
        self.bury().await;
        died
    }

    /// What goes on in the world.
    async fn happen(&mut self, count: u32) {
        for _ in 0..count {
            self.written += 1;
            let text = format!("text {}", self.written);
            let contact = self.contacts[self.random.random_range(0..self.contacts.len())].clone();
            let chat = contact.pn().to_string();
            match self.random.random_range(0..10) {
                0 => {
                    let unique = format!("c{}", self.written);
                    let id = write_outbox(&self.world, &chat, &unique, &text).await;
                    self.outbox.push((id, text));
                }
                1 if self.history.is_empty() => self.send_history(),
                2 | 3 => {
                    let id = self.world.account.phone().text(contact.pn(), &text);
                    self.expected.insert((chat, id), text);
                }
                _ => {
                    let id = contact.text(&text);
                    self.expected.insert((chat, id), text);
                }
            }
            if self.random.random_range(0..4) == 0 {
                tokio::time::sleep(Duration::from_millis(self.random.random_range(0..8))).await;
            }
        }
    }

    fn send_history(&mut self) {
        let phone = self.world.account.phone();
        let chats: Vec<_> = self.contacts.iter().map(|contact| contact.pn().clone()).collect();
        for (n, chat) in chats.iter().enumerate() {
            phone.keep_texts(chat, &format!("h{n}-"), 1_749_000_000, 10);
            for m in 0..10 {
                self.history.insert((chat.to_string(), format!("h{n}-{m}")));
            }
        }
        let sync =
            phone.history_of(waproto::whatsapp::history_sync::HistorySyncType::RECENT, &chats);
        phone.send_history(&sync, Via::Blob);
    }

    /// Everybody knows that the process is dead. That they find out is the core's business.
    async fn bury(&self) {
        let instances = self.world.store.documents("instances/").into_iter();
        let dead = |path| {
            let fields = vec![
                (FieldPath::new("state"), Value::from("dead").into()),
                (FieldPath::new("live"), Value::from(false).into()),
            ];
            Write::merge(path, Precondition::Exists, fields)
        };
        let writes: Vec<_> = instances.map(|doc| dead(doc.path.clone())).collect();
        if !writes.is_empty() {
            self.world.store.commit(writes).await.unwrap();
        }
    }

    /// A process that lives, and what is there in the end. Whether history was lost.
    async fn survive(&mut self) -> bool {
        let world = &self.world;
        let mut options = world.options();
        options.history_timeout = Duration::from_millis(500);
        options.spool = self.spool.clone();
        let process = world.start_with(world.store.clone(), options, settings(world)).await;
        process.opened(1).await;
        let lost = self.settled().await;
        process.stop().await;

        let documents = world.message_documents();
        let stored: BTreeMap<_, _> = documents.iter().map(named).collect();
        assert_eq!(documents.len(), stored.len(), "something is there twice");
        let mut count = 0;
        for (key, text) in &self.expected {
            assert_eq!(stored[key].str("body"), Some(text.as_str()));
            count += 1;
        }
        let ours: BTreeMap<String, &String> = self
            .outbox
            .iter()
            .map(|(id, text)| (outbound_wa_id(&OutboxId::parse(id.as_str()).unwrap()).into(), text))
            .collect();
        for ((_, id), doc) in &stored {
            if let Some(text) = ours.get(id) {
                assert_eq!(doc.str("body"), Some(text.as_str()));
                count += 1;
            }
        }
        count += self.history.iter().filter(|key| stored.contains_key(key)).count();
        assert_eq!(stored.len(), count, "something is there that never was");
        for seen in world.account.log() {
            if let Seen::Message(sent) = seen
                && let Some(body) = &sent.message.conversation
            {
                assert_eq!(ours.get(&sent.id), Some(&body), "sent under another id");
            }
        }
        lost
    }

    /// Waits until all that was said is stored and confirmed, and all that was written is sent.
    /// Whether history was lost, which is then known.
    async fn settled(&self) -> bool {
        let world = &self.world;
        world.account.wait_drained().await;
        for (outbox, _) in &self.outbox {
            world.until_sent(outbox).await;
        }
        world
            .until("all that was confirmed", async || {
                let stored = world.messages();
                self.expected.keys().all(|key| stored.contains_key(key)).then_some(())
            })
            .await;
        world
            .until("history, or the gap that it leaves", async || {
                let stored = world.messages();
                let there = self.history.iter().all(|key| stored.contains_key(key));
                (there || self.has_gap().await).then_some(!there)
            })
            .await
    }

    /// Whether it is noted for good that anything from before may be missing.
    async fn has_gap(&self) -> bool {
        let Some(sync) = self.world.document(self.world.id.sync_path().as_str()).await else {
            return false;
        };
        let gaps = sync.value("gaps").and_then(Value::as_array).unwrap_or_default();
        gaps.iter().any(|gap| gap.as_map().unwrap()["from"].as_int() == Some(1))
    }
}

fn settings(world: &World) -> Settings {
    let mut settings = world.settings();
    settings.lock_delay = Duration::ZERO;
    settings.connect_stagger = Duration::ZERO;
    settings.reconnect_min = Duration::from_millis(20);
    settings.outbox.retry = Duration::from_millis(50);
    // Each life and each lost answer costs one.
    settings.outbox.max_attempts = 100;
    settings.outbox.poll = Duration::from_secs(1);
    settings
}
