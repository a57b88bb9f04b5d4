//! The owner's phone: what it holds, what it sends, and how it answers its companions.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use anyhow::{Context, Result};
use buffa::{Message, MessageField};
use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Jid, SERVER_JID};
use waproto::whatsapp as wa;
use waproto::whatsapp::history_sync::HistorySyncType;
use waproto::whatsapp::message::peer_data_operation_request_response_message::PeerDataOperationResult;
use waproto::whatsapp::message::peer_data_operation_request_response_message::peer_data_operation_result::PlaceholderMessageResendResponse;
use waproto::whatsapp::message::protocol_message::Type;

use crate::app_state::AppState;
use crate::contact::now;
use crate::delivery::{Destination, Letter, Sender};
use crate::history::{Chat, Stored, Via};
use crate::log::{HistoryRequest, Seen};
use crate::server::State;
use crate::signal::SignalDevice;
use crate::{Contact, Double, text};

/// What a phone does with an on-demand history request
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Answer it that much later
    After(Duration),
    /// Answer as if another request, with this id, had been asked
    ForRequest(String),
    /// Say nothing
    Never,
    /// Answer it once, at once
    Once,
    /// Answer it twice
    Twice,
}

/// The phone of an account
#[derive(Clone)]
pub struct Phone {
    double: Double,
    account: String,
}

pub(crate) struct PhoneState {
    pub(crate) signal: SignalDevice,
    pub(crate) app_state: AppState,
    /// Ground truth, by chat id in its phone number form
    pub(crate) chats: BTreeMap<String, Chat>,
    /// What to do with the next requests, before the default applies
    answers: VecDeque<Answer>,
    answer: Answer,
    answer_via: Via,
    offline: bool,
    /// Requests that arrived while it was offline
    waiting: Vec<(u16, Asked)>,
    /// Whether it gives out messages that a companion could not read
    resends: bool,
}

/// What a companion wants from its phone
enum Asked {
    History(HistoryRequest),
    Resend {
        /// The request's id
        id: String,
        chat: String,
        message: String,
    },
}

impl PhoneState {
    pub(crate) fn new() -> Self {
        Self {
            signal: SignalDevice::new(),
            app_state: AppState::new(),
            chats: BTreeMap::new(),
            answers: VecDeque::new(),
            answer: Answer::Once,
            answer_via: Via::Inline,
            offline: false,
            waiting: Vec::new(),
            resends: true,
        }
    }
}

impl Phone {
    pub(crate) fn new(double: Double, account: String) -> Self {
        Self { double, account }
    }

    /// What a chat holds, by either form of its id. Panics if there is no such chat.
    pub fn chat(&self, jid: &Jid) -> Chat {
        self.double.with(|state| {
            let key = state.directory.key(jid).to_string();
            state.account(&self.account).phone.chats.get(&key).expect("no such chat").clone()
        })
    }

    /// All chats, ordered by id.
    pub fn chats(&self) -> Vec<Chat> {
        self.double
            .with(|state| state.account(&self.account).phone.chats.values().cloned().collect())
    }

    /// Puts a message into the ground truth without sending it: it can reach a companion only as
    /// history.
    pub fn keep(&self, chat: &Jid, stored: Stored) {
        self.double.with(|state| state.keep(&self.account, chat, stored));
    }

    /// Keeps `count` incoming texts with ids `{prefix}0…` and timestamps from `start` in Unix
    /// seconds, one second apart.
    pub fn keep_texts(&self, chat: &Jid, prefix: &str, start: u64, count: u64) {
        for index in 0..count {
            let stored = Stored {
                id: format!("{prefix}{index}"),
                participant: None,
                from_me: false,
                timestamp: start + index,
                push_name: None,
                message: text(&format!("{prefix} {index}")),
            };
            self.keep(chat, stored);
        }
    }

    /// Names a chat, as the address book does.
    pub fn name_chat(&self, chat: &Jid, name: &str) {
        self.double.with(|state| state.chat(&self.account, chat).name = Some(name.to_owned()));
    }

    /// Enters somebody into the address book, and tells the companions.
    pub fn add_to_address_book(&self, contact: &Contact, full_name: &str) {
        self.name_chat(contact.pn(), full_name);
        let value = wa::SyncActionValue {
            timestamp: Some(wacore::time::now_millis()),
            contact_action: MessageField::some(wa::sync_action_value::ContactAction {
                full_name: Some(full_name.to_owned()),
                first_name: full_name.split(' ').next().map(str::to_owned),
                lid_jid: Some(contact.lid().to_string()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let index = format!(r#"["contact","{}"]"#, contact.pn());
        self.set_state("critical_unblock_low", &index, &value, 2);
    }

    /// Sets an entry of the application state, and tells the companions. `index` is the JSON array
    /// that names the entry, `schema` the version of its format.
    pub fn set_state(
        &self,
        collection: &str,
        index: &str,
        value: &wa::SyncActionValue,
        schema: i32,
    ) {
        self.double.with(|state| {
            let phone = &mut state.account(&self.account).phone;
            let version = phone
                .app_state
                .set(collection, index, value, schema)
                .expect("the phone's own patch continues its own state");
            let changed = NodeBuilder::new("collection")
                .attr("name", collection)
                .attr("version", version)
                .build();
            let notification = NodeBuilder::new("notification")
                .attr("from", SERVER_JID)
                .attr("id", state.new_id())
                .attr("t", now())
                .attr("type", "server_sync")
                .children([changed])
                .build();
            state.post_plain(&self.account, &notification);
        });
    }

    /// Lets on-demand pages of a chat reach back no further than its newest `count` messages.
    pub fn limit_reach(&self, chat: &Jid, count: usize) {
        self.double.with(|state| state.chat(&self.account, chat).reach = Some(count));
    }

    /// The owner writes a text to a chat on the phone; returns its id.
    pub fn text(&self, chat: &Jid, body: &str) -> String {
        self.double.with(|state| {
            let id = state.new_id();
            let message = text(body);
            let stored = Stored {
                id: id.clone(),
                participant: None,
                from_me: true,
                timestamp: now(),
                push_name: None,
                message: message.clone(),
            };
            state.keep(&self.account, chat, stored);
            let copy = wa::Message {
                device_sent_message: MessageField::some(wa::message::DeviceSentMessage {
                    destination_jid: Some(chat.to_string()),
                    message: MessageField::some(message),
                    ..Default::default()
                }),
                ..Default::default()
            };
            let to = Destination::OwnCopy(chat.clone());
            let letter = Letter { id: id.clone(), timestamp: now(), message: copy, to };
            state.post(&self.account, &Sender::Phone, &letter);
            id
        })
    }

    /// A history sync with everything in these chats, and what goes with it.
    pub fn history_of(&self, sync_type: HistorySyncType, chats: &[Jid]) -> wa::HistorySync {
        self.double.with(|state| {
            let keys: Vec<String> =
                chats.iter().map(|jid| state.directory.key(jid).to_string()).collect();
            let phone = &state.account(&self.account).phone;
            let chats = keys.iter().filter_map(|key| phone.chats.get(key));
            history(sync_type, chats)
        })
    }

    /// Sends a history sync to all companions; returns the notification's id.
    pub fn send_history(&self, sync: &wa::HistorySync, via: Via) -> String {
        self.double
            .with(|state| state.send_history(&self.account, None, sync, via, None))
            .expect("a history sync can be encoded")
    }

    /// Sends the whole ground truth in `chunks` parts of type `RECENT`, with order and progress.
    pub fn send_all_history(&self, chunks: usize, via: Via) {
        let chats = self.chats();
        let size = chats.len().div_ceil(chunks.max(1)).max(1);
        let parts: Vec<_> = chats.chunks(size).collect();
        for (index, part) in parts.iter().enumerate() {
            let mut sync = history(HistorySyncType::RECENT, part.iter());
            sync.chunk_order = Some(index as u32 + 1);
            sync.progress = Some(((index + 1) * 100 / parts.len()) as u32);
            self.send_history(&sync, via);
        }
    }

    /// Sets what happens to on-demand requests from now on.
    pub fn answer_with(&self, answer: Answer) {
        self.double.with(|state| state.account(&self.account).phone.answer = answer);
    }

    /// Sets what happens to the next on-demand request only; repeated calls line up.
    pub fn answer_next_with(&self, answer: Answer) {
        self.double.with(|state| state.account(&self.account).phone.answers.push_back(answer));
    }

    /// Chooses how on-demand pages travel. The default is inline.
    pub fn answer_via(&self, via: Via) {
        self.double.with(|state| state.account(&self.account).phone.answer_via = via);
    }

    /// Chooses whether the phone gives out messages that a companion could not read and asked for.
    /// The default is yes.
    pub fn set_resends(&self, resends: bool) {
        self.double.with(|state| state.account(&self.account).phone.resends = resends);
    }

    /// Takes the phone off the network or brings it back. Requests wait for it meanwhile.
    pub fn set_online(&self, online: bool) {
        self.double.with(|state| {
            let phone = &mut state.account(&self.account).phone;
            phone.offline = !online;
            if online {
                for (device, asked) in std::mem::take(&mut phone.waiting) {
                    state.phone_asked(&self.account, device, asked);
                }
            }
        });
    }
}

impl State {
    pub(crate) fn chat(&mut self, account: &str, jid: &Jid) -> &mut Chat {
        let key = self.directory.key(jid);
        let lid = self.people.get(key.user.as_str()).map(|person| person.lid.clone());
        let lid = lid.filter(|_| key.is_pn());
        let chats = &mut self.account(account).phone.chats;
        chats.entry(key.to_string()).or_insert_with(|| Chat::new(key, lid))
    }

    pub(crate) fn keep(&mut self, account: &str, chat: &Jid, stored: Stored) {
        self.chat(account, chat).insert(stored);
    }

    /// Sends a companion that has just uploaded keys what has waited for them, and first of all,
    /// after pairing, the keys of the application state.
    pub(crate) fn greet(&mut self, account: &str, device: u16) {
        let Some(companion) = self.account(account).companions.get_mut(&device) else { return };
        let waiting = std::mem::take(&mut companion.waiting);
        if std::mem::take(&mut companion.fresh) {
            self.share_key(account, device);
        }
        for letter in waiting {
            self.post_to(account, device, &Sender::Phone, &letter);
        }
    }

    fn share_key(&mut self, account: &str, device: u16) {
        let AppState { key_id, key, .. } = &self.account(account).phone.app_state;
        let key = wa::message::AppStateSyncKey {
            key_id: MessageField::some(wa::message::AppStateSyncKeyId {
                key_id: Some(key_id.clone()),
            }),
            key_data: MessageField::some(wa::message::AppStateSyncKeyData {
                key_data: Some(key.to_vec()),
                fingerprint: MessageField::some(wa::message::AppStateSyncKeyFingerprint {
                    raw_id: Some(1),
                    current_index: Some(device.into()),
                    device_indexes: vec![0, device.into()],
                }),
                timestamp: Some(wacore::time::now_millis()),
            }),
        };
        let share = wa::message::ProtocolMessage {
            r#type: Some(Type::APP_STATE_SYNC_KEY_SHARE),
            app_state_sync_key_share: MessageField::some(wa::message::AppStateSyncKeyShare {
                keys: vec![key],
            }),
            ..Default::default()
        };
        self.send_peer(account, Some(device), share);
    }

    /// Handles what a companion sent to its own phone.
    pub(crate) fn peer_message(
        &mut self,
        account: &str,
        device: u16,
        id: &str,
        message: &wa::Message,
    ) {
        let request = message
            .protocol_message
            .as_option()
            .and_then(|protocol| protocol.peer_data_operation_request_message.as_option());
        let Some(request) = request else { return };
        let mut asked = Vec::new();
        if let Some(history) = request.history_sync_on_demand_request.as_option() {
            let request = HistoryRequest {
                id: id.to_owned(),
                chat: history.chat_jid.clone().unwrap_or_default(),
                anchor: history.oldest_msg_id.clone().unwrap_or_default(),
                anchor_from_me: history.oldest_msg_from_me.unwrap_or_default(),
                anchor_timestamp: history.oldest_msg_timestamp_ms.unwrap_or_default(),
                count: history.on_demand_msg_count.unwrap_or_default(),
            };
            self.saw(account, Seen::HistoryAsked(request.clone()));
            asked.push(Asked::History(request));
        }
        for resend in &request.placeholder_message_resend_request {
            let key = &resend.message_key;
            let chat = key.remote_jid.clone().unwrap_or_default();
            let message = key.id.clone().unwrap_or_default();
            self.saw(account, Seen::ResendAsked { id: message.clone() });
            asked.push(Asked::Resend { id: id.to_owned(), chat, message });
        }
        for asked in asked {
            self.phone_asked(account, device, asked);
        }
    }

    fn phone_asked(&mut self, account: &str, device: u16, asked: Asked) {
        let phone = &mut self.account(account).phone;
        if phone.offline {
            return phone.waiting.push((device, asked));
        }
        match asked {
            Asked::History(request) => self.history_asked(account, device, request),
            Asked::Resend { id, chat, message } => {
                self.resend_asked(account, device, id, &chat, &message)
            }
        }
    }

    /// Gives a companion the message it could not read, in the clear.
    fn resend_asked(&mut self, account: &str, device: u16, id: String, chat: &str, message: &str) {
        let Ok(jid) = chat.parse::<Jid>() else { return };
        let key = self.directory.key(&jid).to_string();
        let phone = &self.account(account).phone;
        let row = phone
            .chats
            .get(&key)
            .filter(|_| phone.resends)
            .and_then(|chat| Some(chat.row(chat.messages.iter().find(|m| m.id == message)?)));
        let Some(row) = row else { return };
        let result = PeerDataOperationResult {
            placeholder_message_resend_response: MessageField::some(
                PlaceholderMessageResendResponse {
                    web_message_info_bytes: Some(row.encode_to_vec()),
                },
            ),
            ..Default::default()
        };
        let response = wa::message::PeerDataOperationRequestResponseMessage {
            peer_data_operation_request_type: Some(
                wa::message::PeerDataOperationRequestType::PLACEHOLDER_MESSAGE_RESEND,
            ),
            stanza_id: Some(id),
            peer_data_operation_result: vec![result],
        };
        let message = wa::message::ProtocolMessage {
            r#type: Some(Type::PEER_DATA_OPERATION_REQUEST_RESPONSE_MESSAGE),
            peer_data_operation_request_response_message: MessageField::some(response),
            ..Default::default()
        };
        self.send_peer(account, Some(device), message);
    }

    fn history_asked(&mut self, account: &str, device: u16, request: HistoryRequest) {
        let phone = &mut self.account(account).phone;
        let answer = phone.answers.pop_front().unwrap_or_else(|| phone.answer.clone());
        match answer {
            Answer::After(delay) => {
                let account = account.to_owned();
                self.after(delay, move |state| state.answer_history(&account, device, &request));
            }
            Answer::ForRequest(id) => {
                self.answer_history(account, device, &HistoryRequest { id, ..request });
            }
            Answer::Never => {}
            Answer::Once => self.answer_history(account, device, &request),
            Answer::Twice => {
                self.answer_history(account, device, &request);
                self.answer_history(account, device, &request);
            }
        }
    }

    fn answer_history(&mut self, account: &str, device: u16, request: &HistoryRequest) {
        let Ok(jid) = request.chat.parse::<Jid>() else { return };
        let key = self.directory.key(&jid).to_string();
        let phone = &self.account(account).phone;
        let via = phone.answer_via;
        let page = phone.chats.get(&key).and_then(|chat| {
            chat.page_before(
                &request.anchor,
                request.anchor_from_me,
                request.anchor_timestamp,
                request.count,
            )
        });
        // A phone says nothing about an anchor it does not know.
        let Some(page) = page else { return };
        let sync = wa::HistorySync {
            sync_type: HistorySyncType::ON_DEMAND,
            conversations: vec![page],
            ..Default::default()
        };
        let session = Some(request.id.clone());
        self.send_history(account, Some(device), &sync, via, session)
            .expect("a page can be encoded");
    }

    fn send_history(
        &mut self,
        account: &str,
        device: Option<u16>,
        sync: &wa::HistorySync,
        via: Via,
        session: Option<String>,
    ) -> Result<String> {
        let notification =
            self.blobs.notify(sync, via, session).context("building a history notification")?;
        let message = wa::message::ProtocolMessage {
            r#type: Some(Type::HISTORY_SYNC_NOTIFICATION),
            history_sync_notification: MessageField::some(notification),
            ..Default::default()
        };
        Ok(self.send_peer(account, device, message))
    }

    /// The phone writes to its companions, or to one of them.
    fn send_peer(
        &mut self,
        account: &str,
        device: Option<u16>,
        message: wa::message::ProtocolMessage,
    ) -> String {
        let id = self.new_id();
        let letter = Letter {
            id: id.clone(),
            timestamp: now(),
            message: wa::Message {
                protocol_message: MessageField::some(message),
                ..Default::default()
            },
            to: Destination::Peer,
        };
        match device {
            Some(device) => self.post_to(account, device, &Sender::Phone, &letter),
            None => self.post(account, &Sender::Phone, &letter),
        }
        id
    }
}

fn history<'a>(
    sync_type: HistorySyncType,
    chats: impl Iterator<Item = &'a Chat>,
) -> wa::HistorySync {
    let mut sync = wa::HistorySync { sync_type, ..Default::default() };
    for chat in chats {
        if let Some(lid) = &chat.lid {
            sync.phone_number_to_lid_mappings.push(wa::PhoneNumberToLIDMapping {
                pn_jid: Some(chat.jid.to_string()),
                lid_jid: Some(lid.to_string()),
            });
        }
        if let Some(name) = chat.messages.iter().rev().find_map(|m| m.push_name.clone()) {
            sync.pushnames
                .push(wa::Pushname { id: Some(chat.jid.to_string()), pushname: Some(name) });
        }
        sync.conversations.push(chat.conversation(&chat.messages, None));
    }
    sync
}
