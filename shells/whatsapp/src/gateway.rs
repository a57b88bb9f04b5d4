//! The gateway: what the core asks, and who does it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backfill_core::doc::{CollectionPath, Query};
use backfill_core::id::{AccountId, RequestId};
use backfill_core::io::{
    Answer, CloseReason, GatewayCall, GatewayEvent, GatewayRequest, Rejection,
};
use backfill_core::jid::Jid;
use backfill_core::time::Mono;
use backfill_driver::Handle;
use backfill_driver::port::{Gateway, Store};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use wacore::store::DevicePropsOverride;
use wacore::store::device::default_history_sync_config;

use waproto::whatsapp::device_props::PlatformType;
use whatsapp_rust::bot::Bot;
use whatsapp_rust::{Client, TokioRuntime};

use crate::account::Account;
use crate::aside::Desk;
use crate::chunk::{Arrivals, Room};
use crate::events::Events;
use crate::gate::Gated;
use crate::history::History;
use crate::hook::Hook;
use crate::http::SharedHttp;
use crate::link::{Link, Used};
use crate::options::Options;
use crate::session::{SessionError, Sessions};
use crate::spool::Keep;
use crate::{page, pair, send};

/// WhatsApp over the real client. Clones are the same gateway.
pub struct WhatsApp<S>(Arc<Shared<S>>);

impl<S> Clone for WhatsApp<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<S> {
    handle: Handle,
    store: S,
    sessions: Sessions<S>,
    options: Options,
    keep: Arc<dyn Keep>,
    readers: Arc<Semaphore>,
    room: Room,
    accounts: Mutex<BTreeMap<AccountId, Arc<Account>>>,
}

impl<S: Store> WhatsApp<S> {
    /// A gateway that reports to the instance which `handle` reaches.
    pub fn new(handle: Handle, store: S, sessions: Sessions<S>, options: Options) -> Self {
        let keep = options.spool.open(&store);
        Self(Arc::new(Shared {
            handle,
            store,
            sessions,
            options,
            keep,
            readers: Arc::new(Semaphore::new(READERS)),
            room: Room::new(),
            accounts: Mutex::default(),
        }))
    }

    /// Reports whose credentials lie here. To be called once, before or soon after the instance
    /// begins: it serves no linked account of which it does not know that.
    ///
    /// # Errors
    /// [`SessionError`] if the sessions of this host cannot be read.
    pub async fn start(&self) -> Result<(), SessionError> {
        let here = self.0.sessions.known().await?;
        for account in here {
            self.0.handle.credentials(account, true);
        }
        Ok(())
    }

    /// The accounts whose credentials lie in the common store and cannot be read from here, with
    /// the reason. Whoever only stands by learns so that it could not take over.
    ///
    /// # Errors
    /// [`SessionError::Store`] if the store does not answer.
    pub async fn unreadable(&self) -> Result<Vec<(AccountId, SessionError)>, SessionError> {
        let accounts = Query::all(CollectionPath::root("accounts"), MOST_ACCOUNTS).select([]);
        let accounts = self.0.store.query(&accounts).await?.docs;
        let mut unreadable = Vec::new();
        for account in accounts.iter().filter_map(|doc| AccountId::parse(doc.path.id()).ok()) {
            match self.0.sessions.check(&account).await {
                Ok(()) => {}
                Err(error @ SessionError::Store(_)) => return Err(error),
                Err(error) => unreadable.push((account, error)),
            }
        }
        Ok(unreadable)
    }
}

impl<S: Store> Gateway for WhatsApp<S> {
    async fn execute(&self, request: GatewayRequest) -> Answer {
        let GatewayRequest { id, account, not_after, call } = request;
        let account = self.account(&account);
        match call {
            GatewayCall::Close { connection } => self.close(&account, connection),
            GatewayCall::Connect => self.connect(account, id, not_after).await,
            GatewayCall::History { thread, anchor, count, run } => {
                page::ask(&account, id, thread, &anchor, count, run).await
            }
            GatewayCall::Logout => self.log_out(&account).await,
            GatewayCall::Parse { chunk, from } => self.history(account).parse(chunk, from).await,
            GatewayCall::Recover => self.history(account).recover().await,
            GatewayCall::Send { outbox, wa_id } => {
                let Shared { handle, store, options, .. } = &*self.0;
                let patience = options.ack_timeout;
                send::send(store, handle, &account, &outbox, wa_id, not_after, patience).await
            }
            GatewayCall::Spool { chunk } => self.history(account).spool(chunk).await,
            GatewayCall::Unspool { chunk } => self.history(account).unspool(chunk).await,
        }
    }
}

impl<S: Store> WhatsApp<S> {
    fn account(&self, id: &AccountId) -> Arc<Account> {
        let mut accounts = self.0.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let account = accounts.entry(id.clone());
        Arc::clone(account.or_insert_with(|| Arc::new(Account::new(id.clone()))))
    }

    fn arrivals(&self, account: &Arc<Account>) -> Arrivals {
        Arrivals {
            account: Arc::clone(account),
            handle: self.0.handle.clone(),
            keep: Arc::clone(&self.0.keep),
            room: self.0.room.clone(),
            patience: self.0.options.history_timeout,
        }
    }

    fn history(&self, account: Arc<Account>) -> History {
        History {
            arrivals: self.arrivals(&account),
            account,
            handle: self.0.handle.clone(),
            keep: Arc::clone(&self.0.keep),
            readers: Arc::clone(&self.0.readers),
            dry_run: self.0.options.dry_run,
        }
    }

    fn close(&self, account: &Account, connection: RequestId) -> Answer {
        match account.link(connection) {
            Some(link) => link.close(),
            None => closed(&self.0.handle, &account.id, connection),
        }
        Answer::Done
    }

    async fn connect(&self, account: Arc<Account>, id: RequestId, not_after: Mono) -> Answer {
        let (link, asides) = Link::new(id, &account, &self.0.handle);
        account.add_link(&link);
        let opened = self.open(&account, &link, asides, not_after);
        let refused = match timeout(OPEN_LIMIT, opened).await {
            Ok(Ok(())) => return Answer::Done,
            Ok(Err(rejection)) => rejection,
            Err(_) => Rejection::Unavailable,
        };
        link.gate.shut();
        account.remove_link(id);
        if link.is_closing() {
            closed(&self.0.handle, &account.id, id);
        }
        Answer::Rejected(refused)
    }

    /// Prepares a client, and lets it go.
    async fn open(
        &self,
        account: &Arc<Account>,
        link: &Arc<Link>,
        asides: tokio::sync::mpsc::Receiver<crate::aside::Aside>,
        not_after: Mono,
    ) -> Result<(), Rejection> {
        let Shared { handle, sessions, options, .. } = &*self.0;
        let turn = Arc::clone(&account.session).lock_owned().await;
        let session = sessions.open(&account.id).await.map_err(|error| {
            tracing::warn!(account = %account.id, %error, "[realtime] the session cannot be opened");
            Rejection::Unavailable
        })?;
        let backend = Arc::clone(&session.backend);
        let device = backend.load().await.map_err(|_| Rejection::Unavailable)?;
        let linked = device.is_some_and(|device| device.pn.is_some());
        let known = backend.get_all_lid_mappings().await.map_err(|_| Rejection::Unavailable)?;
        account.learn(known.iter().filter_map(|entry| {
            let jid = |user: &str, server| Jid::parse(format!("{user}@{server}")).ok();
            Some((jid(&entry.lid, "lid")?, jid(&entry.phone_number, "s.whatsapp.net")?))
        }));
        let phone = if linked { None } else { self.phone(account).await };

        let arrivals = self.arrivals(account);
        let hook = Hook {
            account: Arc::clone(account),
            handle: handle.clone(),
            link: Arc::downgrade(link),
            history: arrivals.clone(),
        };
        let gated = Gated { inner: Arc::clone(&options.transport), gate: link.gate.clone() };
        let mut builder = Bot::builder()
            .with_backend_arc(backend)
            .with_transport_factory(gated)
            .with_http_client(SharedHttp(Arc::clone(&options.http)))
            .with_runtime(TokioRuntime)
            .with_device_props(device_props(options))
            .with_wanted_pre_key_count(options.pre_keys)
            .with_event_handler(Events::new(link, arrivals))
            .with_inbound_durability_hook(hook);
        if let Some(version) = options.version {
            builder = builder.with_version(version);
        }
        let bot = builder.build().await.map_err(|error| {
            tracing::warn!(account = %account.id, %error, "[realtime] the client cannot be built");
            Rejection::Unavailable
        })?;

        let desk = Desk {
            account: Arc::clone(account),
            handle: handle.clone(),
            connection: link.id,
            link: Arc::downgrade(link),
            phone,
        };
        if link.is_closing() {
            return Err(Rejection::Unavailable);
        }
        if handle.now() > not_after || !handle.believes(&account.id) {
            return Err(Rejection::Expired);
        }
        tokio::spawn(desk.serve(asides));
        let (gateway, id) = (self.clone(), account.id.clone());
        let wipe = move || async move { gateway.wipe(&id).await };
        let used = Used { session, turn };
        tokio::spawn(Arc::clone(link).run(bot, used, options.close_timeout, wipe));
        Ok(())
    }

    /// The number of an account that is not linked yet, if it has one.
    async fn phone(&self, account: &Account) -> Option<String> {
        let snapshot = self.0.store.get(&[account.id.path()]).await.ok()?;
        let doc = snapshot.docs.into_iter().next()??;
        pair::digits(doc.str("phoneE164")?)
    }

    async fn log_out(&self, account: &Arc<Account>) -> Answer {
        if let Some(client) = account.open_link().and_then(|link| link.client()) {
            // Tells the server, and hangs up whatever it says.
            timeout(LOGOUT_LIMIT, Client::logout(&client)).await.ok();
        }
        for link in account.links() {
            link.close();
        }
        // Whoever uses the session is on the way out.
        let session = Arc::clone(&account.session);
        let Ok(_session) = timeout(LOGOUT_LIMIT, session.lock_owned()).await else {
            return Answer::Unknown;
        };
        self.wipe(&account.id).await;
        if self.0.keep.clear(&account.id).await.is_err() {
            tracing::warn!(account = %account.id, "[realtime] what was spooled could not be removed");
        }
        Answer::Done
    }

    async fn wipe(&self, account: &AccountId) {
        match self.0.sessions.wipe(account).await {
            Ok(()) => self.0.handle.credentials(account.clone(), false),
            Err(error) => {
                tracing::warn!(%account, %error, "[realtime] the session could not be wiped")
            }
        }
    }
}

/// An address as the client wants it.
pub(crate) fn wire(jid: &Jid) -> Option<wacore_binary::Jid> {
    jid.as_str().parse().ok()
}

fn closed(handle: &Handle, account: &AccountId, connection: RequestId) {
    let reason = CloseReason::Asked;
    handle.report(account.clone(), GatewayEvent::Closed { connection, reason });
}

/// What the device says about itself when it is linked: it decides how much history comes.
fn device_props(options: &Options) -> DevicePropsOverride {
    let mut config = default_history_sync_config();
    config.on_demand_ready = Some(true);
    config.complete_on_demand_ready = Some(true);
    let mut platform = PlatformType::CHROME;
    if options.full_history {
        // Only desktop programs are given more than a few months.
        platform = PlatformType::DESKTOP;
        config.full_sync_days_limit = Some(FULL_HISTORY_DAYS);
        config.full_sync_size_mb_limit = Some(FULL_HISTORY_MB);
        config.storage_quota_mb = Some(FULL_HISTORY_MB);
    }
    DevicePropsOverride::new()
        .with_os(options.device_name.as_str())
        .with_platform_type(platform)
        .with_require_full_sync(options.full_history)
        .with_history_sync_config(config)
}

const FULL_HISTORY_DAYS: u32 = 3_650;
const FULL_HISTORY_MB: u32 = 102_400;
/// How long the server may take to unlink us, and a session to become free for that.
const LOGOUT_LIMIT: Duration = Duration::from_secs(10);
/// How long a client may take to be prepared, the end of the one before included.
const OPEN_LIMIT: Duration = Duration::from_secs(20);
/// More than can be added.
const MOST_ACCOUNTS: u32 = 1_000;
/// Chunks of all accounts that are read at once.
const READERS: usize = 2;
