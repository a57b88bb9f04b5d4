//! The real client over both stores, killed in the middle of traffic and started again.
//!
//! A life ends at a commit (applied or not, never answered), inside the durability hook (before or
//! after the message was stored), or when everything is done. What must hold: every message is
//! stored, nobody ever has to send one again because it cannot be decrypted, what the client sends
//! can be read, and the device stays linked.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use backfill_core::id::AccountId;
use backfill_driver::port::Store;
use futures_util::{StreamExt, stream};
use gateway_whatsapp::Sessions;
use store_sqlite::SqliteStore;
use tokio::sync::{Notify, watch};
use wacore::types::events::{Event, EventHandler, InboundMessage};
use wacore::types::jid::{JidExt, make_sender_key_name};
use whatsapp_double::{Account, Addressing, Contact, Double, Group, Seen, text};
use whatsapp_rust::bot::{Bot, BotHandle};
use whatsapp_rust::transport::TransportFactory;
use whatsapp_rust::{Client, InboundDurabilityHook, TokioRuntime};

use crate::session::harness::{Common, Dice, NEW_KEY, account, sessions};
use crate::session::trial::Trial;

const SCHEDULES: u64 = 110;
/// So many run at once.
const AT_ONCE: usize = 2;
const PATIENCE: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_session_survives_every_death() {
    let directory = tempfile::tempdir().unwrap();
    stream::iter(0..SCHEDULES)
        .for_each_concurrent(AT_ONCE, async |seed| {
            let mut world = World::new(seed);
            world.seed(Sessions::<SqliteStore>::local(directory.path())).await;
            for _ in 0..2 + world.dice.roll(3) {
                let sessions = Sessions::<SqliteStore>::local(directory.path());
                let death = world.death_in_hook();
                world.live(sessions, death).await;
            }
            world.end(Sessions::<SqliteStore>::local(directory.path())).await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_session_survives_every_death() {
    let common = Common::new();
    stream::iter(0..SCHEDULES)
        .for_each_concurrent(AT_ONCE, async |seed| {
            let mut world = World::new(seed);
            world.seed(common.sessions(&account(seed)).await).await;
            for _ in 0..2 + world.dice.roll(3) {
                let fence = common.acquire(&account(seed)).await;
                if world.dice.roll(3) == 0 {
                    let death = world.death_in_hook();
                    world.live(sessions(common.store.clone(), NEW_KEY, fence), death).await;
                    continue;
                }
                let (commits, applied) = (1 + world.dice.roll(25), world.dice.roll(2) == 0);
                let trial = Trial::stopping(common.store.clone(), commits, applied);
                let killed = Arc::clone(&trial.stopped);
                let death = Death { calls: None, stored: true, killed };
                world.died_in_commit = true;
                world.live(sessions(trial, NEW_KEY, fence), death).await;
            }
            world.end(common.sessions(&account(seed)).await).await;
        })
        .await;
}

/// The one death after which a message has to be sent again, whatever the backend: the session is
/// durable, the sender key that came by it is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_lost_sender_key_has_to_be_sent_again() {
    let common = Common::new();
    let mut asked_again = 0;
    for commits in 1..=16 {
        for applied in [false, true] {
            let id = account(1_000 + 2 * commits + u64::from(applied));
            let mut world = World { id: id.clone(), ..World::new(commits) };
            world.seed(common.sessions(&id).await).await;
            let body = "to the group";
            world.contacts[0].text_to(&world.group, body);
            world.expected.insert(body.to_owned());
            let fence = common.acquire(&id).await;
            let trial = Trial::stopping(common.store.clone(), commits, applied);
            let killed = Arc::clone(&trial.stopped);
            let death = Death { calls: None, stored: true, killed };
            world.begin(sessions(trial, NEW_KEY, fence), death, false).await.unwrap();
            world.account.wait_gone().await;
            world.died_in_commit = true;

            let after = common.sessions(&id).await;
            let session = after.open(&id).await.unwrap();
            let sender = world.contacts[0].lid().to_protocol_address();
            let name = make_sender_key_name(world.group.jid(), &sender);
            let has_session = session.backend.has_session(sender.as_str()).await.unwrap();
            let has_key = session.backend.get_sender_key(name.cache_key()).await.unwrap().is_some();
            session.close().await.unwrap();
            world.end(after).await;

            let log = world.account.log();
            let retry =
                |seen: &Seen| matches!(seen, Seen::Receipt(receipt) if receipt.kind == "retry");
            let again = log.iter().any(retry);
            assert_eq!(again, has_session && !has_key, "{commits} {applied}");
            asked_again += u64::from(again);
        }
    }
    assert!(asked_again > 0, "this death did not come");
}

/// One schedule
struct World {
    dice: Dice,
    id: AccountId,
    double: Double,
    account: Account,
    contacts: [Contact; 2],
    group: Group,
    device: u16,
    lives: u64,
    /// Whether a life ended at a commit, and not in the hook
    died_in_commit: bool,
    expected: BTreeSet<String>,
    stored: Arc<Mutex<BTreeSet<String>>>,
}

/// Where a life ends
struct Death {
    /// At so many calls of the hook
    calls: Option<u64>,
    /// Whether the hook stores first
    stored: bool,
    killed: Arc<Notify>,
}

impl World {
    fn new(seed: u64) -> Self {
        let double = Double::new();
        double.set_patience(PATIENCE);
        let account = double.account("15550000001", "100000000000001");
        let contacts = [
            account.contact("15550000002", "100000000000002"),
            account.contact("15550000003", "100000000000003"),
        ];
        contacts[1].set_addressing(Addressing::Lid);
        let group = account.group("120363000000000001", "Team", &[&contacts[0], &contacts[1]]);
        Self {
            dice: Dice::new(seed),
            id: crate::session::harness::account(seed),
            double,
            account,
            contacts,
            group,
            device: 0,
            lives: 0,
            died_in_commit: false,
            expected: BTreeSet::new(),
            stored: Arc::default(),
        }
    }

    async fn seed<S: Store>(&mut self, sessions: Sessions<S>) {
        let session = sessions.open(&self.id).await.unwrap();
        self.device = self.account.seed(&session.backend).await.unwrap();
        session.close().await.unwrap();
    }

    fn death_in_hook(&mut self) -> Death {
        let calls = Some(1 + self.dice.roll(6));
        Death { calls, stored: self.dice.roll(2) == 0, killed: Arc::default() }
    }

    /// Somebody writes.
    fn write(&mut self) {
        let body = format!("text {} of life {}", self.expected.len(), self.lives);
        match self.dice.roll(5) {
            0 | 1 => self.contacts[0].text(&body),
            2 => self.contacts[1].text(&body),
            3 => self.contacts[0].text_to(&self.group, &body),
            _ => self.account.phone().text(self.contacts[0].pn(), &body),
        };
        self.expected.insert(body);
    }

    /// A life that ends by death, at the latest when nothing is left to do.
    async fn live<S: Store>(&mut self, sessions: Sessions<S>, death: Death) {
        self.lives += 1;
        for _ in 0..self.dice.roll(4) {
            self.write();
        }
        let life = self.begin(sessions, death, false);
        for _ in 0..self.dice.roll(8) {
            self.write();
            tokio::task::yield_now().await;
        }
        life.await.unwrap();
        self.account.wait_gone().await;
    }

    /// The last life ends in peace; then everything must be right.
    async fn end<S: Store>(&mut self, sessions: Sessions<S>) {
        let death = Death { calls: None, stored: true, killed: Arc::default() };
        self.begin(sessions, death, true).await.unwrap();
        assert_eq!(*self.stored.lock().unwrap(), self.expected);
        // The client writes a group's sender key after the session that brought it, in a commit of
        // its own. A death between the two is repaired by asking once more.
        let log = self.account.log();
        let mut lost_keys = BTreeSet::new();
        for seen in &log {
            match seen {
                Seen::Receipt(receipt) if receipt.kind == "retry" => {
                    assert!(receipt.participant.is_some() && self.died_in_commit, "{receipt:?}");
                    lost_keys.extend(&receipt.ids);
                }
                Seen::Connected { device, .. } => assert_eq!(*device, self.device),
                Seen::ResendAsked { id } if lost_keys.contains(id) => {}
                Seen::Paired { .. } | Seen::ResendAsked { .. } | Seen::Unreadable { .. } => {
                    panic!("{seen:?}")
                }
                _ => {}
            }
        }
    }

    /// Runs a client on a runtime of its own, which takes everything with it when it ends.
    fn begin<S: Store>(
        &mut self,
        sessions: Sessions<S>,
        death: Death,
        peaceful: bool,
    ) -> tokio::task::JoinHandle<()> {
        let (id, account, double) = (self.id.clone(), self.account.clone(), self.double.clone());
        let killed = Arc::clone(&death.killed);
        let hook = Hook { death, calls: Mutex::default(), stored: Arc::clone(&self.stored) };
        let sends = self.dice.roll(4);
        let to = if self.dice.roll(2) == 0 { self.contacts[0].pn() } else { self.group.jid() };
        let (to, life) = (to.clone(), self.lives);
        tokio::task::spawn_blocking(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let runtime = runtime.unwrap();
            runtime.block_on(async {
                let session = sessions.open(&id).await.unwrap();
                let backend = session.backend.clone();
                let work = async {
                    let (bot, mut connected) =
                        start(&double, backend, double.transport(), hook).await;
                    connected.wait_for(|connected| *connected).await.unwrap();
                    for number in 0..sends {
                        let body = format!("answer {number} of life {life}");
                        bot.client().send_message(to.clone(), text(&body)).await.unwrap();
                    }
                    account.wait_drained().await;
                    // It can be awaited itself, and is not.
                    (bot,)
                };
                tokio::select! {
                    (bot,) = work => if peaceful {
                        bot.shutdown().await;
                        session.close().await.unwrap();
                    },
                    () = killed.notified() => {}
                }
            });
            runtime.shutdown_timeout(PATIENCE);
        })
    }
}

/// A client on this backend, and whether it is connected
pub(crate) async fn start<T: TransportFactory + 'static>(
    double: &Double,
    backend: Arc<dyn wacore::store::traits::Backend>,
    transport: T,
    hook: impl InboundDurabilityHook + 'static,
) -> (BotHandle, watch::Receiver<bool>) {
    let (connected, is_connected) = watch::channel(false);
    let bot = Bot::builder()
        .with_backend_arc(backend)
        .with_transport_factory(transport)
        .with_http_client(double.media())
        .with_runtime(TokioRuntime)
        .with_version((2, 3000, 1))
        .with_push_name("Double")
        .with_wanted_pre_key_count(40)
        .with_event_handler(Connections(connected))
        .with_inbound_durability_hook(hook)
        .build()
        .await
        .unwrap();
    (bot.spawn(), is_connected)
}

struct Connections(watch::Sender<bool>);

impl EventHandler for Connections {
    fn handle_event(&self, event: Arc<Event>) {
        if let Event::Connected(_) = *event {
            self.0.send_replace(true);
        }
    }
}

/// Stores messages, until death comes
struct Hook {
    death: Death,
    calls: Mutex<u64>,
    stored: Arc<Mutex<BTreeSet<String>>>,
}

#[async_trait]
impl InboundDurabilityHook for Hook {
    async fn on_messages(&self, _: Arc<Client>, batch: &[InboundMessage]) -> anyhow::Result<()> {
        let last = {
            let mut calls = self.calls.lock().unwrap();
            *calls += 1;
            self.death.calls == Some(*calls)
        };
        if !last || self.death.stored {
            self.stored.lock().unwrap().extend(batch.iter().filter_map(text_of));
        }
        if last {
            self.death.killed.notify_one();
            std::future::pending().await
        }
        Ok(())
    }
}

/// The text of a message, also of one that was written on the phone
pub(crate) fn text_of(message: &InboundMessage) -> Option<String> {
    let own = message.message.device_sent_message.as_option();
    let inner = own.and_then(|own| own.message.as_option()).unwrap_or(&message.message);
    inner.conversation.clone()
}
