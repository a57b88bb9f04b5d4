//! WhatsApp and the phones: who wrote what when, and what of it reaches whom.
//!
//! It knows the truth. Nothing here is about processes or the store, and it does nothing by itself:
//! it is told what happens, and what is to happen later or elsewhere lies in its outbox until
//! whoever runs the world takes it out ([`WhatsApp::take`]).
//!
//! What it models: one companion connection per account, a second one replaces the first; a queue
//! of what was not acknowledged, kept 14 days and delivered again at every login; history chunks
//! after linking; pages strictly backwards from a real message, at most 50; a phone that keeps
//! everything and answers as well as the fault plan lets it; edits, reactions, receipts and
//! revokes, which travel like messages; conversations that go by two addresses.

mod line;

use std::collections::BTreeMap;
use std::sync::Arc;

use backfill_core::id::{AccountId, ThreadId};
use backfill_core::io::CloseReason;
use backfill_core::jid::Twins;
use smol_str::{SmolStr, format_smolstr};

use crate::chance::draw;
use crate::clock::Real;
use crate::faults::{FaultPlan, NO_INSTANCE};
use crate::scenario::{AccountPlan, Kind};
use line::{Conn, Line, Live, Thread};

/// All accounts, by their number.
#[derive(Clone, Debug)]
pub struct WhatsApp {
    lines: BTreeMap<u16, Line>,
    out: Vec<(Real, Out)>,
}

/// Names one connection: which process, and which of its requests opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnKey {
    /// The process; every start is another one
    pub process: u32,
    /// The request that opened the connection
    pub request: u64,
}

/// Names one message: the `index`th of its thread, in the order of WhatsApp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageRef {
    /// The conversation, within its account
    pub thread: u16,
    /// Counted from the oldest
    pub index: u32,
}

/// Something that a connection brings and that waits in the queue until it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mail {
    /// What became of a message: a number within the account
    Happening(u32),
    /// A message
    Message(MessageRef),
    /// A message that this client cannot read; it is acknowledged and stays in the queue until it
    /// comes once more
    Unreadable(MessageRef),
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Happening {
    /// Which message
    pub about: MessageRef,
    /// What
    pub what: What,
    /// When, in milliseconds since the Unix epoch
    pub at_ms: i64,
}

/// What can become of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// Its sender changed the text
    Edited,
    /// A receiver's device has it
    Delivered,
    /// The owner of the account reacts to it, or takes that back
    Reacted {
        /// The reaction is taken back
        back: bool,
    },
    /// A receiver has seen it
    Read,
    /// Its sender deleted it
    Revoked,
}

/// What WhatsApp knows of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its key id
    pub id: SmolStr,
    /// When it was sent
    pub second: i64,
    /// The owner of the account wrote it
    pub from_me: bool,
    /// Which member of a group wrote it
    pub sender: u8,
}

/// Messages of one conversation, from one index to before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The conversation
    pub thread: u16,
    /// The first index
    pub from: u32,
    /// After the last index
    pub to: u32,
}

/// What is to happen later, or elsewhere.
#[derive(Clone, Debug)]
pub enum Out {
    /// Something arrives at the process that has this connection
    Deliver(u16, ConnKey, Delivery),
    /// To be told at that time
    Later(u16, Later),
}

/// What a connection brings.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// A part of the history, after linking
    Chunk(u32),
    /// A part of the history that cannot be fetched
    ChunkMissing,
    /// The connection has ended
    Closed(CloseReason),
    /// A message, as it is written
    Live(Mail),
    /// Messages that waited
    Offline(Box<[Mail]>),
    /// All that waited was sent; so many had been announced
    OfflineEnd(u32),
    /// Logged in
    Opened,
    /// An answer of the phone
    Page(Page),
    /// The device was linked
    Paired,
    /// A code to scan
    Pairing,
    /// A message that cannot be decrypted
    Undecryptable(MessageRef),
}

/// What a phone sends when asked for history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Who asked, and in which request
    pub asker: (u32, u64),
    /// The messages
    pub stretch: Stretch,
    /// It was asked by the conversation's LID
    pub lid: bool,
    /// Older ones remain
    pub more: bool,
}

/// What the network has to do at a certain time.
#[derive(Clone, Copy, Debug)]
pub enum Later {
    /// A history chunk is ready
    Chunk(u32),
    /// A client notices that nothing comes any more
    NoticeSilence(ConnKey),
    /// The phone answers
    Page(Page),
    /// The next step of linking
    Pair(ConnKey, u8),
    /// A message is sent once more, encrypted anew
    Resend(MessageRef),
    /// Somebody writes
    Traffic,
}

/// What came of opening a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Whose connection had to go
    pub replaced: Option<ConnKey>,
    /// The server could not be reached: nothing was opened
    pub unreachable: bool,
}

/// The process of every client that is not ours.
pub const FOREIGN: u32 = u32::MAX;
/// Messages that a page brings at most, whatever was asked for.
const PAGE: u32 = 50;
/// Codes that are shown before a client gives up.
const CODES: u8 = 6;

impl WhatsApp {
    /// The accounts of a scenario. Traffic begins when somebody carries out what [`take`] gives.
    ///
    /// [`take`]: Self::take
    pub fn new(seed: u64, accounts: &[AccountPlan]) -> Self {
        let mut out = Vec::new();
        let lines = accounts
            .iter()
            .map(|plan| {
                let mut line = Line::new(seed, plan);
                if let Some(wait) = line.next_message() {
                    out.push((Real(wait), Out::Later(plan.id, Later::Traffic)));
                }
                (plan.id, line)
            })
            .collect();
        Self { lines, out }
    }

    /// What is to happen, and when; taken out.
    pub fn take(&mut self) -> impl Iterator<Item = (Real, Out)> + '_ {
        self.out.drain(..)
    }

    /// Whether [`take`](Self::take) would give something.
    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Somebody logs in. What follows arrives as deliveries, `Opened` or `Pairing` first.
    pub fn open(
        &mut self,
        now: Real,
        account: u16,
        key: ConnKey,
        instance: u8,
        faults: &mut FaultPlan,
    ) -> Opening {
        let Some(line) = self.lines.get_mut(&account) else {
            return Opening { replaced: None, unreachable: true };
        };
        if faults.on(Kind::WaDown, instance, account) {
            return Opening { replaced: None, unreachable: true };
        }
        let out = &mut self.out;
        let replaced = line.conn.take().map(|old| {
            out.push((
                old.last.max(now).after(20),
                Out::Deliver(account, old.key, Delivery::Closed(CloseReason::Replaced)),
            ));
            old.key
        });
        line.conn = Some(Conn { key, last: now, open: false, silent: false });
        if line.linked {
            // What somebody else takes away while none of ours is there, nobody can notice.
            let noticed = key.process != FOREIGN || replaced.is_some();
            line.log_in(now, noticed, faults, out);
        } else {
            out.push((now.after(200), Out::Later(account, Later::Pair(key, 0))));
        }
        Opening { replaced, unreachable: false }
    }

    /// Whether this is the account's connection.
    pub fn is_current(&self, account: u16, key: ConnKey) -> bool {
        self.lines
            .get(&account)
            .and_then(|line| line.conn.as_ref())
            .is_some_and(|conn| conn.key == key)
    }

    /// The account's connection.
    pub fn connection(&self, account: u16) -> Option<ConnKey> {
        self.lines.get(&account)?.conn.as_ref().map(|conn| conn.key)
    }

    /// A connection ends without a word: the client closed it, or died. `true` if it was there.
    pub fn close(&mut self, account: u16, key: ConnKey) -> bool {
        let current = self.is_current(account, key);
        if let Some(line) = self.lines.get_mut(&account)
            && current
        {
            line.conn = None;
        }
        current
    }

    /// The network or the server ends the account's connection; the client is told `reason`.
    pub fn cut(&mut self, now: Real, account: u16, reason: CloseReason) {
        let Some(line) = self.lines.get_mut(&account) else { return };
        if reason == CloseReason::LoggedOut {
            line.unlink();
        }
        if let Some(conn) = line.conn.take() {
            let delivery = Out::Deliver(account, conn.key, Delivery::Closed(reason));
            self.out.push((conn.last.max(now).after(10), delivery));
        }
    }

    /// From now on nothing comes through the account's connection; the client notices in a minute.
    pub fn silence(&mut self, now: Real, account: u16) {
        let Some(line) = self.lines.get_mut(&account) else { return };
        if let Some(conn) = &mut line.conn
            && !conn.silent
        {
            conn.silent = true;
            let notice = now.after(57_000 + line.chance.below(10_000));
            self.out.push((notice, Out::Later(account, Later::NoticeSilence(conn.key))));
        }
    }

    /// The owner unlinks the device, or the client logs out.
    pub fn log_out(&mut self, now: Real, account: u16) {
        self.cut(now, account, CloseReason::LoggedOut);
    }

    /// Messages are acknowledged: they are not delivered again.
    pub fn acknowledge(&mut self, account: u16, key: ConnKey, messages: &[Mail]) {
        let Some(line) = self.lines.get_mut(&account) else { return };
        if !line.conn.as_ref().is_some_and(|conn| conn.key == key && !conn.silent) {
            return;
        }
        if let [one] = messages {
            if let Some(i) = line.queue.iter().position(|queued| queued == one) {
                line.queue.remove(i);
            }
        } else {
            line.queue.retain(|queued| !messages.contains(queued));
        }
    }

    /// A client cannot read a message, and tells the server: its sender sends it once more, or it is
    /// gone.
    pub fn unreadable(&mut self, now: Real, account: u16, key: ConnKey, message: MessageRef) {
        let current = self.is_current(account, key);
        let Some(line) = self.lines.get_mut(&account).filter(|_| current) else { return };
        if line.chance.permille(500) {
            let again = now.after(line.chance.between(500, 5_000));
            self.out.push((again, Out::Later(account, Later::Resend(message))));
        } else {
            line.queue.retain(|queued| *queued != Mail::Message(message));
        }
    }

    /// A client is through with the offline queue, and so is the server: what was left out is gone.
    /// Before that the next connection gets it.
    pub fn drained(&mut self, account: u16, key: ConnKey) {
        let current = self.is_current(account, key);
        if let Some(line) = self.lines.get_mut(&account).filter(|_| current) {
            let left_out = std::mem::take(&mut line.left_out);
            line.queue.retain(|message| !left_out.contains(message));
        }
    }

    /// The phone is asked for at most `count` messages before the one with this id. `true` if
    /// such a request leaves: what comes of it is the phone's business.
    #[expect(clippy::too_many_arguments, reason = "a request for history has these parts")]
    pub fn ask_history(
        &mut self,
        now: Real,
        account: u16,
        key: ConnKey,
        request: u64,
        thread: &ThreadId,
        anchor: (&str, i64, bool),
        count: u32,
        faults: &mut FaultPlan,
    ) -> bool {
        let Some(line) = self.lines.get_mut(&account) else { return false };
        if !line.conn.as_ref().is_some_and(|conn| conn.key == key && conn.open) {
            return false;
        }
        let silent = line.conn.as_ref().is_some_and(|conn| conn.silent)
            || faults.holds(Kind::PhoneOffline, NO_INSTANCE, account)
            || faults.strikes(Kind::PhoneSilent, NO_INSTANCE, account).is_some();
        let known = line.find(anchor.0).filter(|found| {
            let message = line.message(*found);
            let called =
                |lid| line.thread_called(found.thread, lid).is_some_and(|id| id == *thread);
            (called(false) || called(true))
                && message.second == anchor.1
                && message.from_me == anchor.2
        });
        let (Some(anchor), false) = (known, silent) else { return true };
        let count = count.min(PAGE);
        let from = anchor.index.saturating_sub(count);
        let lid = line.thread_called(anchor.thread, true).is_some_and(|id| id == *thread);
        let stretch = Stretch { thread: anchor.thread, from, to: anchor.index };
        let page = Page { asker: (key.process, request), stretch, lid, more: from > 0 };
        let mut wait = line.chance.between(line.plan.phone_min, line.plan.phone_max);
        if let Some(Kind::PhoneLate { ms }) =
            faults.strikes(Kind::PhoneLate { ms: 0 }, NO_INSTANCE, account).map(|f| f.kind)
        {
            wait += ms;
        }
        let at = now.after(wait);
        if faults.strikes(Kind::PhoneAnswersOther, NO_INSTANCE, account).is_some() {
            let other = Page { asker: (key.process, u64::MAX), ..page };
            self.out.push((now.after(wait / 2), Out::Later(account, Later::Page(other))));
        }
        self.out.push((at, Out::Later(account, Later::Page(page))));
        if faults.strikes(Kind::PhoneTwice, NO_INSTANCE, account).is_some() {
            let again = at.after(line.chance.below(20_000));
            self.out.push((again, Out::Later(account, Later::Page(page))));
        }
        true
    }

    /// A client sends a message under an id of its own choice. Sent again, it is the same message.
    /// `true` if the server took it.
    pub fn send(
        &mut self,
        now: Real,
        account: u16,
        key: ConnKey,
        thread: &ThreadId,
        id: &SmolStr,
    ) -> bool {
        let Some(line) = self.lines.get_mut(&account) else { return false };
        if !line.conn.as_ref().is_some_and(|conn| conn.key == key && conn.open && !conn.silent) {
            return false;
        }
        let Some(number) = thread_number(&line.account, thread) else { return true };
        let Some(conversation) = line.threads.get_mut(usize::from(number)) else { return true };
        if !line.sent.contains_key(id) {
            let index = conversation.len();
            let live = Live { second: now.second(), from_me: true, sender: 0, sent: true };
            conversation.live.push(live);
            line.sent.insert(id.clone(), MessageRef { thread: number, index });
        }
        true
    }

    /// Carries out what was to happen at this time.
    pub fn handle(&mut self, now: Real, account: u16, later: Later, faults: &mut FaultPlan) {
        let Some(line) = self.lines.get_mut(&account) else { return };
        let out = &mut self.out;
        match later {
            Later::Traffic => {
                let mail = line.next_mail(now);
                if line.linked {
                    line.queue.push_back(mail);
                    line.deliver(now, mail, faults, out);
                }
                if let Some(wait) = line.next_message() {
                    out.push((now.after(wait), Out::Later(account, Later::Traffic)));
                }
            }
            Later::Resend(message) => {
                let mail = Mail::Message(message);
                if line.queue.contains(&mail) {
                    line.push(now, Delivery::Live(mail), out);
                }
            }
            Later::Page(page) => line.push_or_keep(now, Delivery::Page(page), out),
            Later::Chunk(chunk) => {
                let missing = faults.strikes(Kind::HistoryChunkMissing, NO_INSTANCE, account);
                let delivery = match missing {
                    Some(_) => Delivery::ChunkMissing,
                    None => Delivery::Chunk(chunk),
                };
                line.push_or_keep(now, delivery, out);
            }
            Later::NoticeSilence(key) => {
                if line.conn.as_ref().is_some_and(|conn| conn.key == key) {
                    line.conn = None;
                    let lost = Delivery::Closed(CloseReason::Lost);
                    out.push((now, Out::Deliver(account, key, lost)));
                }
            }
            Later::Pair(key, step) => {
                // The client has a part in linking: nothing comes of it on a connection gone silent.
                if line.conn.as_ref().is_none_or(|conn| conn.key != key || conn.silent) {
                    return;
                }
                let scanned = now.second() * 1_000 >= line.scanned_at(now, step);
                if line.linked || scanned {
                    line.link(now, out);
                    line.push(now, Delivery::Paired, out);
                    line.log_in(now.after(500), true, faults, out);
                } else if step < CODES {
                    line.push(now, Delivery::Pairing, out);
                    out.push((now.after(20_000), Out::Later(account, Later::Pair(key, step + 1))));
                } else {
                    line.conn = None;
                    let expired = Delivery::Closed(CloseReason::PairingExpired);
                    out.push((now, Out::Deliver(account, key, expired)));
                }
            }
        }
    }

    /// What WhatsApp knows of a message.
    pub fn message(&self, account: u16, message: MessageRef) -> Option<Message> {
        let line = self.lines.get(&account)?;
        (message.index < line.threads.get(usize::from(message.thread))?.len())
            .then(|| line.message(message))
    }

    /// The id of a conversation, in its canonical form.
    pub fn thread_id(&self, account: u16, thread: u16) -> Option<ThreadId> {
        self.lines.get(&account)?.thread_id(thread)
    }

    /// The id of a conversation under one of its addresses: its LID, if it has one and that is
    /// asked for.
    pub fn thread_called(&self, account: u16, thread: u16, lid: bool) -> Option<ThreadId> {
        self.lines.get(&account)?.thread_called(thread, lid)
    }

    /// The address of a conversation: its LID, if it has one and that is asked for.
    pub fn jid(&self, account: u16, thread: u16, lid: bool) -> Option<SmolStr> {
        self.lines.get(&account)?.jid(thread, lid)
    }

    /// Whether a message comes under the LID of its conversation. As long as nobody knows that both
    /// addresses are one person's, all of a conversation come under the same.
    pub fn comes_by_lid(&self, now: Real, account: u16, message: MessageRef) -> bool {
        let Some(line) = self.lines.get(&account) else { return false };
        let salt = u64::from(account) << 16 | u64::from(message.thread);
        let of = if now < line.plan.twins_from { u64::MAX } else { u64::from(message.index) };
        self.has_lid(account, message.thread) && draw(salt, of) & 1 == 1
    }

    /// Whether an answer that was asked for under one of a conversation's addresses comes under its
    /// LID.
    pub fn answers_by_lid(&self, now: Real, account: u16, thread: u16, asked: bool) -> bool {
        let Some(line) = self.lines.get(&account) else { return false };
        if now < line.plan.twins_from {
            return self.comes_by_lid(now, account, MessageRef { thread, index: 0 });
        }
        asked
    }

    /// Whether a conversation goes by two addresses.
    pub fn has_lid(&self, account: u16, thread: u16) -> bool {
        self.lines
            .get(&account)
            .and_then(|line| line.threads.get(usize::from(thread)))
            .is_some_and(|t| t.lid)
    }

    /// What a client knows by now of which LID is which phone number.
    pub fn twins(&self, now: Real, account: u16) -> Arc<Twins> {
        let Some(line) = self.lines.get(&account) else { return Arc::default() };
        Arc::clone(if now < line.plan.twins_from { &line.strangers } else { &line.twins })
    }

    /// The conversation in which a client puts a message by now, as far as it knows.
    pub fn home(&self, now: Real, account: u16, message: MessageRef) -> Option<ThreadId> {
        let line = self.lines.get(&account)?;
        let lid = now < line.plan.twins_from && self.comes_by_lid(now, account, message);
        line.thread_called(message.thread, lid)
    }

    /// What became of messages, by number.
    pub fn happenings(&self, account: u16) -> &[Happening] {
        self.lines.get(&account).map_or(&[], |line| &line.happenings)
    }

    /// What became of a message, by number.
    pub fn happened_to(&self, account: u16, message: MessageRef) -> &[u32] {
        self.lines
            .get(&account)
            .and_then(|line| line.happened_to.get(&message))
            .map_or(&[], Vec::as_slice)
    }

    /// How many conversations an account has.
    pub fn threads(&self, account: u16) -> u16 {
        self.lines.get(&account).map_or(0, |line| line.threads.len() as u16)
    }

    /// How many messages a conversation has.
    pub fn length(&self, account: u16, thread: u16) -> u32 {
        self.lines
            .get(&account)
            .and_then(|line| line.threads.get(usize::from(thread)))
            .map_or(0, Thread::len)
    }

    /// Whether a conversation is a group.
    pub fn is_group(&self, account: u16, thread: u16) -> bool {
        self.lines
            .get(&account)
            .and_then(|line| line.threads.get(usize::from(thread)))
            .is_some_and(|t| t.group)
    }

    /// The conversations of a history chunk.
    pub fn chunk(&self, account: u16, chunk: u32) -> &[Stretch] {
        self.lines
            .get(&account)
            .and_then(|line| line.chunks.get(chunk as usize))
            .map_or(&[], Vec::as_slice)
    }

    /// Whether the account's credentials are good.
    pub fn is_linked(&self, account: u16) -> bool {
        self.lines.get(&account).is_some_and(|line| line.linked)
    }

    /// The account and message that an id names, if it is one of WhatsApp's own making.
    pub fn parse_id(id: &str) -> Option<(u16, MessageRef)> {
        let digits = id.strip_prefix("3EB0")?.as_bytes();
        // Another sender's message with the same id is told apart behind a tilde.
        if digits.get(16).is_some_and(|next| *next != b'~') {
            return None;
        }
        let digits = digits.get(..16)?;
        let mut number = 0_u64;
        for digit in digits {
            number = number << 4 | u64::from((*digit as char).to_digit(16)?);
        }
        let message = MessageRef { thread: (number >> 32) as u16, index: number as u32 };
        Some(((number >> 48) as u16, message))
    }

    /// The message that a client sent under an id of its own.
    pub fn find_sent(&self, id: &str) -> Option<(u16, MessageRef)> {
        self.lines.iter().find_map(|(account, line)| Some((*account, *line.sent.get(id)?)))
    }

    /// Whether a client sent the message, under an id of its own.
    pub fn was_sent(&self, account: u16, message: MessageRef) -> bool {
        self.lines
            .get(&account)
            .and_then(|line| line.threads.get(usize::from(message.thread)))
            .and_then(|thread| thread.live.get(message.index.checked_sub(thread.old)? as usize))
            .is_some_and(|live| live.sent)
    }

    /// When the account was linked for the first time: what was written before never was to reach
    /// us by itself.
    pub fn linked_since(&self, account: u16) -> Option<Real> {
        self.lines.get(&account)?.linked_since
    }

    /// How many messages wait for being acknowledged.
    pub fn waiting(&self, account: u16) -> usize {
        self.lines.get(&account).map_or(0, |line| line.queue.len())
    }
}

/// What a message says.
pub fn message_text(account: u16, message: MessageRef) -> SmolStr {
    format_smolstr!("a{account}t{}m{}", message.thread, message.index)
}

/// The address of a member of a group.
pub fn member(number: u8) -> SmolStr {
    format_smolstr!("4079900{number:03}@s.whatsapp.net")
}

/// What a message says after an edit.
pub fn edited_text(account: u16, message: MessageRef, number: u32) -> SmolStr {
    format_smolstr!("{} edited {number}", message_text(account, message))
}

/// The number of a conversation, from its id.
pub fn thread_number(account: &AccountId, thread: &ThreadId) -> Option<u16> {
    let jid = thread.jid(account)?;
    jid.get(5..10)?.parse().ok()
}

#[cfg(test)]
mod tests;
