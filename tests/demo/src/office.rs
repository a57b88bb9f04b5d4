//! A company's phones, with years of chats on them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use waproto::whatsapp::conversation::EndOfHistoryTransferType;
use waproto::whatsapp::history_sync::HistorySyncType;
use whatsapp_double::{Account, Contact, Double, Stored, Via, text};

use crate::api::{Api, until};
use crate::scan;

/// One phone and the people it writes with.
#[derive(Clone)]
pub struct Desk {
    /// What the company calls it
    pub name: String,
    /// Its number, digits only
    pub number: String,
    /// The account, as WhatsApp's server knows it
    pub account: Account,
    /// The people
    pub contacts: Vec<Contact>,
}

/// Makes phones whose chats hold so many messages each, the newest a minute ago.
pub fn desks(double: &Double, names: &[&str], chats: &[u64]) -> Vec<Desk> {
    let desk = |(number, name): (usize, &&str)| {
        let digits = format!("4930555{number:04}");
        let account = double.account(&digits, &format!("1000000000{number:04}"));
        let contact = |index: usize| {
            let person = number * 100 + index;
            account.contact(&format!("4940555{person:05}"), &format!("2000000000{person:05}"))
        };
        let contacts: Vec<Contact> = (0..chats.len()).map(contact).collect();
        let desk = Desk { name: (*name).into(), number: digits, account, contacts };
        for (index, count) in chats.iter().enumerate() {
            desk.fill(index, *count);
        }
        desk
    };
    names.iter().enumerate().map(desk).collect()
}

impl Desk {
    /// Puts `count` messages, from both sides, into the chat with a contact.
    fn fill(&self, contact: usize, count: u64) {
        let chat = self.contacts[contact].pn();
        let phone = self.account.phone();
        phone.name_chat(chat, &format!("Customer {}", contact + 1));
        let newest = now() - 60;
        for index in 0..count {
            let from_me = index % 3 == 1;
            let body =
                if from_me { "Certainly, we will see to it." } else { "May I ask something?" };
            let stored = Stored {
                id: format!("3EB0{:02X}{:02X}{index:08X}", self.number.len(), contact),
                participant: None,
                from_me,
                timestamp: newest - (count - index) * 600,
                push_name: (!from_me).then(|| format!("Customer {}", contact + 1)),
                message: text(&format!("{body} ({})", index + 1)),
            };
            phone.keep(chat, stored);
        }
    }

    /// Adds the account, and lets the phone scan the code that the API shows. Answers its id.
    ///
    /// # Errors
    /// It is not connected within a minute.
    pub async fn link(&self, api: &Api) -> Result<String> {
        let id = api.add_account(&self.name, &format!("+{}", self.number)).await?;
        let scanned = async || {
            let shown = api.account(&id).await?;
            let picture = shown["qrCode"].as_str();
            self.account.scan(&scan::read(picture.context("no code is shown")?)?)?;
            Ok(Some(()))
        };
        until("a QR code that can be scanned", PATIENCE, scanned).await?;
        self.connected(api, &id).await?;
        Ok(id)
    }

    /// Waits until the API says that the account is connected.
    ///
    /// # Errors
    /// It does not within a minute.
    pub async fn connected(&self, api: &Api, id: &str) -> Result<()> {
        let connected =
            async || Ok((api.account(id).await?["status"] == "connected").then_some(()));
        until(&format!("{} to be connected", self.name), PATIENCE, connected).await
    }

    /// Sends the newest `count` messages of every chat to the linked device, as a phone does after
    /// it was linked; the rest remains on the phone.
    pub fn send_recent(&self, count: usize) {
        let phone = self.account.phone();
        let chats: Vec<_> = phone.chats().into_iter().map(|chat| chat.jid).collect();
        let mut sync = phone.history_of(HistorySyncType::RECENT, &chats);
        for conversation in &mut sync.conversations {
            if conversation.messages.len() > count {
                // They come newest first.
                conversation.messages.truncate(count);
                conversation.end_of_history_transfer_type = Some(MORE_REMAIN);
            }
        }
        (sync.chunk_order, sync.progress) = (Some(1), Some(100));
        phone.send_history(&sync, Via::Blob);
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

const MORE_REMAIN: EndOfHistoryTransferType =
    EndOfHistoryTransferType::COMPLETE_BUT_MORE_MESSAGES_REMAIN_ON_PRIMARY;
const PATIENCE: Duration = Duration::from_secs(60);
