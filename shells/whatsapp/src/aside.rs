//! What does not come through the hook: the client has confirmed it already, so it is stored as
//! soon as possible, in order, and what cannot be stored is lost until history brings it again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use backfill_core::id::{RequestId, ThreadId};
use backfill_core::incoming::{Record, SyncSource};
use backfill_core::io::{CloseReason, GatewayEvent};
use backfill_core::jid::Jid;
use backfill_driver::{Handle, Parcel};
use tokio::sync::mpsc::Receiver;
use wacore::pair_code::PairCodeOptions;
use wacore::types::events::InboundMessage;
use wacore::types::message::MessageInfo;

use crate::account::Account;
use crate::convert;
use crate::hook;
use crate::link::Link;

/// Something that goes past the hook.
pub(crate) enum Aside {
    /// A code to type in is wanted beside the one to scan
    AskForCode,
    /// The offline queue is empty
    Drained {
        /// How many messages the server had announced
        announced: u32,
        /// How many of them are safe
        stored: u32,
    },
    /// Messages of channels, and those that the phone repeated for us
    Messages(Arc<[InboundMessage]>),
    /// The codes to scan are used up, one to type in is still valid
    OnlyCodeLeft,
    /// Receipts, names and the like
    Records(Vec<Record>),
    /// A message that could not be decrypted
    Undecryptable {
        /// Which one
        info: Arc<MessageInfo>,
        /// Nobody will send it again
        lost: bool,
    },
}

/// Deals with what goes past the hook of one connection, until the connection is gone.
pub(crate) struct Desk {
    pub(crate) account: Arc<Account>,
    pub(crate) handle: Handle,
    pub(crate) connection: RequestId,
    pub(crate) link: Weak<Link>,
    /// The account's phone number, for a code to type in
    pub(crate) phone: Option<String>,
}

impl Desk {
    pub(crate) async fn serve(self, mut asides: Receiver<Aside>) {
        let mut together = Vec::new();
        while asides.recv_many(&mut together, TOGETHER).await > 0 {
            let mut records = Vec::new();
            for aside in together.drain(..) {
                match aside {
                    Aside::Records(told) => records.extend(told),
                    Aside::Messages(messages) => {
                        let me = self.link.upgrade().map(|link| link.me()).unwrap_or_default();
                        hook::learn(&self.account, &messages);
                        let source = SyncSource::AtMostOnce;
                        let told = |message| convert::message(message, &me, source);
                        records.extend(messages.iter().filter_map(told));
                    }
                    Aside::Undecryptable { info, lost } => {
                        records.push(convert::undecryptable(&info).into());
                        self.store(std::mem::take(&mut records)).await;
                        if !lost {
                            self.report_gap(&info);
                        }
                    }
                    Aside::Drained { announced, stored } => {
                        self.store(std::mem::take(&mut records)).await;
                        let connection = self.connection;
                        self.report(GatewayEvent::Drained { connection, announced, stored });
                    }
                    Aside::AskForCode => self.ask_for_code().await,
                    Aside::OnlyCodeLeft => {
                        let link = self.link.clone();
                        tokio::spawn(async move {
                            tokio::time::sleep(CODE_LIFE).await;
                            if let Some(link) = link.upgrade().filter(|link| !link.is_open()) {
                                link.ends(CloseReason::PairingExpired);
                                link.close();
                            }
                        });
                    }
                }
            }
            self.store(records).await;
        }
    }

    async fn store(&self, records: Vec<Record>) {
        if records.is_empty() {
            return;
        }
        let account = self.account.id.clone();
        let parcel = Parcel { account, records, twins: self.account.twins() };
        // That it failed is reported; there is nobody who would deliver it again.
        if let Err(error) = self.handle.realtime(self.connection, parcel).await {
            let account = &self.account.id;
            tracing::warn!(%account, %error, "[realtime] receipts or names were lost");
        }
    }

    fn report_gap(&self, info: &MessageInfo) {
        let incoming = convert::undecryptable(info);
        let Ok(jid) = Jid::parse(incoming.key.remote_jid) else { return };
        let twins = self.account.twins();
        let jid = twins.canonical(&jid);
        if let Ok(thread) = ThreadId::of_chat(&self.account.id, jid.as_str()) {
            self.report(GatewayEvent::Undecryptable { thread, second: incoming.timestamp });
        }
    }

    async fn ask_for_code(&self) {
        let Some(link) = self.link.upgrade() else { return };
        let (Some(client), Some(phone)) = (link.client(), self.phone.clone()) else { return };
        let options = PairCodeOptions { phone_number: phone, ..PairCodeOptions::default() };
        // The code itself arrives as an event. Without one there is still the picture to scan.
        if client.pair_with_code(options).await.is_err() {
            tracing::info!(account = %self.account.id, "[realtime] no code to type in was given");
        }
    }

    fn report(&self, event: GatewayEvent) {
        self.handle.report(self.account.id.clone(), event);
    }
}

/// How long a code to type in is valid.
const CODE_LIFE: Duration = Duration::from_secs(180);
/// Things that wait are stored together, up to so many.
const TOGETHER: usize = 200;
/// So many things may wait before the connection is given up, because the store cannot follow.
pub(crate) const WAITING: usize = 16_384;
