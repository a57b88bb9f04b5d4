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

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use backfill_core::id::{AccountId, ThreadId};
use backfill_core::io::CloseReason;
use backfill_core::jid::{Jid, Twins};
use smol_str::{SmolStr, format_smolstr};

use crate::chance::{Chance, draw, scale};
use crate::clock::{GENESIS_SECOND, Real};
use crate::faults::{FaultPlan, NO_INSTANCE};
use crate::scenario::{AccountPlan, Kind};

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

#[derive(Clone, Debug)]
struct Line {
    plan: AccountPlan,
    account: AccountId,
    chance: Chance,
    threads: Vec<Thread>,
    linked: bool,
    /// When it was linked for the first time
    linked_since: Option<Real>,
    conn: Option<Conn>,
    /// Not acknowledged, oldest first
    queue: VecDeque<Mail>,
    /// What the server leaves out of the drain under way, and forgets when that ends
    left_out: Vec<Mail>,
    /// What the phone or the server has for the next connection, other than messages
    waiting: Vec<Delivery>,
    chunks: Vec<Vec<Stretch>>,
    sent: BTreeMap<SmolStr, MessageRef>,
    happenings: Vec<Happening>,
    happened_to: BTreeMap<MessageRef, Vec<u32>>,
    /// Which LIDs are which phone numbers; nobody is told before `plan.twins_from`
    twins: Arc<Twins>,
    strangers: Arc<Twins>,
}

#[derive(Clone, Debug)]
struct Conn {
    key: ConnKey,
    /// Nothing overtakes anything on a connection
    last: Real,
    open: bool,
    silent: bool,
}

#[derive(Clone, Debug)]
struct Thread {
    group: bool,
    lid: bool,
    /// Messages older than the world; they are computed, not kept
    old: u32,
    gap: i64,
    live: Vec<Live>,
}

#[derive(Clone, Copy, Debug)]
struct Live {
    second: i64,
    from_me: bool,
    sender: u8,
    sent: bool,
}

/// The process of every client that is not ours.
pub const FOREIGN: u32 = u32::MAX;
/// How long the server keeps what was not acknowledged, in seconds.
const KEPT: i64 = 14 * 24 * 3_600;
/// Messages that one delivery of the offline queue brings at most.
const OFFLINE_BATCH: usize = 400;
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

impl Line {
    fn new(seed: u64, plan: &AccountPlan) -> Self {
        let salt = draw(seed, 0x11_0000 + u64::from(plan.id));
        let threads = (0..plan.threads)
            .map(|n| {
                let d = draw(salt, u64::from(n));
                let group = scale(d, 1_000) < u64::from(plan.groups);
                let lid = !group && scale(draw(d, 1), 1_000) < u64::from(plan.lids);
                // Some conversations are short, so that their beginning is reached.
                let old = match scale(draw(d, 2), 8) {
                    0 => 0,
                    1 => scale(draw(d, 3), 6) as u32,
                    _ => plan.history,
                };
                let gap = 30 + scale(draw(d, 4), 7_200) as i64;
                Thread { group, lid, old: old.min(plan.history), gap, live: Vec::new() }
            })
            .collect::<Vec<Thread>>();
        let mut twins = Twins::default();
        for n in (0..plan.threads).filter(|n| threads[usize::from(*n)].lid) {
            let parse = |text: SmolStr| Jid::parse(text).expect("digits before a known server");
            twins.link(parse(lid(plan.id, n)), parse(jid(plan.id, n, false)));
        }
        Self {
            plan: plan.clone(),
            account: AccountPlan::account(plan.id),
            chance: Chance::new(draw(salt, u64::MAX)),
            threads,
            linked: plan.linked,
            linked_since: plan.linked.then_some(Real::ZERO),
            conn: None,
            queue: VecDeque::new(),
            left_out: Vec::new(),
            waiting: Vec::new(),
            chunks: Vec::new(),
            sent: BTreeMap::new(),
            happenings: Vec::new(),
            happened_to: BTreeMap::new(),
            twins: Arc::new(twins),
            strangers: Arc::default(),
        }
    }

    fn next_message(&mut self) -> Option<u64> {
        if self.plan.messages == 0 || self.threads.is_empty() {
            return None;
        }
        Some(1 + self.chance.waiting(24 * 3_600_000 / u64::from(self.plan.messages)))
    }

    /// Somebody writes a message, or does something to one.
    fn next_mail(&mut self, now: Real) -> Mail {
        let share = u64::from(self.plan.happenings);
        if share > 0
            && self.chance.permille(share)
            && let Some(happening) = self.happen(now)
        {
            return Mail::Happening(happening);
        }
        Mail::Message(self.write(now))
    }

    /// Something becomes of one of the newest messages of a conversation.
    fn happen(&mut self, now: Real) -> Option<u32> {
        let n = self.threads.len() as u64;
        let number = self.chance.below(n).min(self.chance.below(n)) as u16;
        let thread = &self.threads[usize::from(number)];
        let back = 1 + self.chance.below(5) as usize;
        let live = thread.live.len().checked_sub(back)?;
        let message = thread.live[live];
        let about = MessageRef { thread: number, index: thread.old + live as u32 };
        let what = match (message.from_me, self.chance.below(8)) {
            (true, 0..3) => What::Delivered,
            (true, 3..6) => What::Read,
            (false, 0..3) => What::Reacted { back: false },
            (false, 3) => What::Reacted { back: true },
            // What the inbox sends cannot be edited from the phone here: its text is the inbox's.
            _ if message.sent => What::Read,
            (_, 4..7) => What::Edited,
            (_, _) => What::Revoked,
        };
        let at_ms = now.second() * 1_000 + (now.0 % 1_000) as i64;
        let happening = self.happenings.len() as u32;
        self.happenings.push(Happening { about, what, at_ms });
        self.happened_to.entry(about).or_default().push(happening);
        Some(happening)
    }

    /// When something that waits was sent, in seconds.
    fn second_of(&self, mail: Mail) -> i64 {
        match mail {
            Mail::Happening(n) => self.happenings[n as usize].at_ms / 1_000,
            Mail::Message(message) | Mail::Unreadable(message) => self.message(message).second,
        }
    }

    /// Somebody writes a message; few conversations have most of them.
    fn write(&mut self, now: Real) -> MessageRef {
        let n = self.threads.len() as u64;
        let number = self.chance.below(n).min(self.chance.below(n)) as u16;
        let from_me = self.chance.permille(u64::from(self.plan.own));
        let sender = self.chance.below(4) as u8;
        let thread = &mut self.threads[usize::from(number)];
        let index = thread.len();
        thread.live.push(Live { second: now.second(), from_me, sender, sent: false });
        MessageRef { thread: number, index }
    }

    fn message(&self, message: MessageRef) -> Message {
        let thread = &self.threads[usize::from(message.thread)];
        if message.index < thread.old {
            let d = draw(
                u64::from(self.plan.id) << 32 | u64::from(message.thread),
                u64::from(message.index),
            );
            let back = i64::from(thread.old - message.index) * thread.gap;
            return Message {
                id: self.id_of(message),
                second: GENESIS_SECOND - back + scale(d, thread.gap as u64) as i64,
                from_me: d & 3 == 0,
                sender: (d >> 2 & 3) as u8,
            };
        }
        let live = thread.live[(message.index - thread.old) as usize];
        let id = if live.sent {
            let sent = self.sent.iter().find(|(_, m)| **m == message).map(|(id, _)| id.clone());
            sent.unwrap_or_else(|| self.id_of(message))
        } else {
            self.id_of(message)
        };
        Message { id, second: live.second, from_me: live.from_me, sender: live.sender }
    }

    fn id_of(&self, m: MessageRef) -> SmolStr {
        format_smolstr!("3EB0{:04X}{:04X}{:08X}", self.plan.id, m.thread, m.index)
    }

    fn find(&self, id: &str) -> Option<MessageRef> {
        if let Some(sent) = self.sent.get(id) {
            return Some(*sent);
        }
        let (account, message) = WhatsApp::parse_id(id).filter(|_| id.len() == 20)?;
        let thread = self.threads.get(usize::from(message.thread))?;
        (account == self.plan.id && message.index < thread.len()).then_some(message)
    }

    fn thread_id(&self, thread: u16) -> Option<ThreadId> {
        self.thread_called(thread, false)
    }

    fn thread_called(&self, thread: u16, lid: bool) -> Option<ThreadId> {
        ThreadId::of_chat(&self.account, &self.jid(thread, lid)?).ok()
    }

    fn jid(&self, thread: u16, by_lid: bool) -> Option<SmolStr> {
        let t = self.threads.get(usize::from(thread))?;
        let known = by_lid && t.lid;
        Some(if known { lid(self.plan.id, thread) } else { jid(self.plan.id, thread, t.group) })
    }

    /// When the owner has scanned a code, in milliseconds since the epoch; only while one shows.
    fn scanned_at(&self, now: Real, step: u8) -> i64 {
        if step == 0 {
            return i64::MAX;
        }
        let shown = now.second() * 1_000 - i64::from(step) * 20_000;
        shown + i64::try_from(self.plan.scan).unwrap_or(i64::MAX / 2)
    }

    fn unlink(&mut self) {
        self.linked = false;
        self.queue.clear();
        self.waiting.clear();
    }

    fn link(&mut self, now: Real, out: &mut Vec<(Real, Out)>) {
        self.linked = true;
        self.linked_since.get_or_insert(now);
        let first = self.chunks.len() as u32;
        let depth = 5 + self.chance.below(30) as u32;
        let per_chunk = 1 + self.chance.below(8) as usize;
        let conversations: Vec<Stretch> = (0..self.threads.len() as u16)
            .filter_map(|thread| {
                let to = self.threads[usize::from(thread)].len();
                (to > 0).then(|| Stretch { thread, from: to.saturating_sub(depth), to })
            })
            .collect();
        self.chunks.extend(conversations.chunks(per_chunk).map(<[Stretch]>::to_vec));
        for chunk in first..self.chunks.len() as u32 {
            let wait = 1_000 + u64::from(chunk - first) * 400 + self.chance.below(2_000);
            out.push((now.after(wait), Out::Later(self.plan.id, Later::Chunk(chunk))));
        }
    }

    fn log_in(
        &mut self,
        now: Real,
        may_lose: bool,
        faults: &mut FaultPlan,
        out: &mut Vec<(Real, Out)>,
    ) {
        if let Some(conn) = &mut self.conn {
            conn.open = true;
        }
        self.push(now.after(30), Delivery::Opened, out);
        let oldest = now.second() - KEPT;
        while self.queue.front().is_some_and(|mail| self.second_of(*mail) < oldest) {
            self.queue.pop_front();
        }
        let announced = self.queue.len() as u32;
        self.left_out.clear();
        let short = announced > 0
            && may_lose
            && faults.strikes(Kind::WaShortDrain, NO_INSTANCE, self.plan.id).is_some();
        if short {
            let gone = 1 + self.chance.below(u64::from(announced)) as usize;
            let at = self.chance.below((announced as usize - gone) as u64 + 1) as usize;
            self.left_out.extend(self.queue.range(at..at + gone));
        }
        let left_out = &self.left_out;
        let waiting: Vec<Mail> =
            self.queue.iter().copied().filter(|mail| !left_out.contains(mail)).collect();
        for batch in waiting.chunks(OFFLINE_BATCH) {
            self.push(now, Delivery::Offline(batch.into()), out);
        }
        self.push(now, Delivery::OfflineEnd(announced), out);
        for delivery in std::mem::take(&mut self.waiting) {
            self.push(now, delivery, out);
        }
    }

    fn deliver(
        &mut self,
        now: Real,
        mail: Mail,
        faults: &mut FaultPlan,
        out: &mut Vec<(Real, Out)>,
    ) {
        if !self.conn.as_ref().is_some_and(|conn| conn.open && !conn.silent) {
            return;
        }
        let id = self.plan.id;
        if let Mail::Message(message) = mail
            && faults.strikes(Kind::Undecryptable, NO_INSTANCE, id).is_some()
        {
            self.push(now, Delivery::Undecryptable(message), out);
            return;
        }
        self.push(now, Delivery::Live(mail), out);
        if faults.strikes(Kind::DuplicateDelivery, NO_INSTANCE, id).is_some() {
            self.push(now, Delivery::Live(mail), out);
        }
    }

    /// Sends something over the connection, after what was sent before.
    fn push(&mut self, now: Real, delivery: Delivery, out: &mut Vec<(Real, Out)>) {
        let Some(conn) = &mut self.conn else { return };
        if conn.silent {
            return;
        }
        let at = conn.last.max(now.after(5 + self.chance.below(60)));
        conn.last = at;
        out.push((at, Out::Deliver(self.plan.id, conn.key, delivery)));
    }

    fn push_or_keep(&mut self, now: Real, delivery: Delivery, out: &mut Vec<(Real, Out)>) {
        if self.conn.as_ref().is_some_and(|conn| conn.open && !conn.silent) {
            self.push(now, delivery, out);
        } else if self.linked {
            self.waiting.push(delivery);
        }
    }
}

impl Thread {
    fn len(&self) -> u32 {
        self.old + self.live.len() as u32
    }
}

fn lid(account: u16, thread: u16) -> SmolStr {
    // As long as a phone number's address, so that both are read alike.
    format_smolstr!("90{account:03}{thread:05}{account:05}@lid")
}

fn jid(account: u16, thread: u16, group: bool) -> SmolStr {
    if group {
        format_smolstr!("12036{thread:05}{account:05}@g.us")
    } else {
        format_smolstr!("40700{thread:05}{account:05}@s.whatsapp.net")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Pace, Regime, Scenario, StorePlan, Target};

    const KEY: ConnKey = ConnKey { process: 1, request: 7 };

    #[test]
    fn what_is_not_acknowledged_comes_again_at_the_next_login() {
        let mut w = world(&[]);
        w.open(KEY);
        assert_eq!(w.until(Real(10_000)), ["opened", "end 0"]);
        let m = w.write(Real(20_000));
        assert_eq!(w.until(Real(21_000)), ["live 0"]);
        assert!(w.net.close(0, KEY));
        let second = ConnKey { request: 8, ..KEY };
        w.now = Real(30_000);
        w.open(second);
        assert_eq!(w.until(Real(40_000)), ["opened", "offline 1", "end 1"]);
        w.net.acknowledge(0, KEY, &[Mail::Message(m)]);
        assert_eq!(w.net.waiting(0), 1, "an old connection acknowledges nothing");
        w.net.acknowledge(0, second, &[Mail::Message(m)]);
        assert_eq!(w.net.waiting(0), 0);
    }

    #[test]
    fn a_second_connection_replaces_the_first() {
        let mut w = world(&[]);
        w.open(KEY);
        w.until(Real(5_000));
        let other = ConnKey { process: 2, request: 1 };
        assert_eq!(w.open(other).replaced, Some(KEY));
        assert_eq!(w.until(Real(9_000)), ["closed Replaced", "opened", "end 0"]);
        assert!(w.net.is_current(0, other));
    }

    #[test]
    fn pages_go_strictly_backwards_from_a_real_message() {
        let mut w = world(&[]);
        w.open(KEY);
        w.until(Real(5_000));
        let length = w.net.length(0, 0);
        assert!(length > 60);
        let anchor = MessageRef { thread: 0, index: length - 1 };
        w.ask(anchor, 100);
        let from = length - 51;
        assert_eq!(w.until(Real(50_000)), [format!("page {from}..{} true", length - 1)]);
        w.ask(MessageRef { thread: 0, index: 3 }, 20);
        assert_eq!(w.until(Real(90_000)), ["page 0..3 false"]);
        // An invented anchor is taken and never answered.
        let thread = w.net.thread_id(0, 0).unwrap();
        assert!(w.net.ask_history(
            w.now,
            0,
            KEY,
            1,
            &thread,
            ("3EB0F", 0, false),
            9,
            &mut w.faults
        ));
        assert_eq!(w.until(Real(200_000)), Vec::<String>::new());
    }

    #[test]
    fn messages_are_in_order_of_time_and_found_by_their_id() {
        let mut w = world(&[]);
        w.write(Real(5));
        let line = &w.net.lines[&0];
        let seconds: Vec<i64> =
            (0..w.net.length(0, 0)).map(|i| line.message(at(i)).second).collect();
        assert!(seconds.is_sorted());
        assert_eq!(line.find(&line.message(at(9)).id), Some(at(9)));
        assert_eq!(line.find("3EB0000000000FFFFFFF"), None);
    }

    #[test]
    fn an_unlinked_account_is_paired_and_brings_its_history() {
        let mut w =
            world_of(AccountPlan { linked: false, scan: 15_000, messages: 0, ..account() }, &[]);
        w.open(KEY);
        let seen = w.until(Real(60_000));
        assert_eq!(seen[..4], ["pairing", "paired", "opened", "end 0"]);
        assert!(seen[4..].iter().all(|s| s.starts_with("chunk")), "{seen:?}");
        assert!(seen.len() > 4);
        let total: u32 =
            (0..w.net.lines[&0].chunks.len() as u32).map(|c| w.net.chunk(0, c).len() as u32).sum();
        assert_eq!(total, u32::from(w.net.threads(0)));
    }

    #[test]
    fn nobody_scans_and_pairing_expires() {
        let plan = AccountPlan { linked: false, scan: 9_000_000, messages: 0, ..account() };
        let mut w = world_of(plan, &[]);
        w.open(KEY);
        let seen = w.until(Real(600_000));
        assert_eq!(seen.last().unwrap(), "closed PairingExpired");
    }

    #[test]
    fn faults_silence_phones_and_shorten_drains() {
        let fault = |kind, permille| crate::scenario::Fault {
            from: Real::ZERO,
            to: Real::NEVER,
            kind,
            target: Target::Account(0),
            permille,
            salt: 1,
        };
        for silence in [Kind::PhoneSilent, Kind::PhoneOffline] {
            let mut w = world(&[fault(silence, 1_000), fault(Kind::WaShortDrain, 1_000)]);
            let one = w.write(Real(1_000));
            assert_eq!(one.thread, 0);
            w.open(KEY);
            assert_eq!(w.until(Real(5_000)), ["opened", "end 1"]);
            w.ask(MessageRef { thread: 0, index: 9 }, 5);
            assert_eq!(w.until(Real(100_000)), Vec::<String>::new());
            assert_eq!(w.faults.struck()[silence.index()], 1);
        }
    }

    struct Tiny {
        net: WhatsApp,
        faults: FaultPlan,
        queue: crate::queue::Queue<Out>,
        now: Real,
    }

    impl Tiny {
        fn open(&mut self, key: ConnKey) -> Opening {
            self.net.open(self.now, 0, key, 0, &mut self.faults)
        }

        fn write(&mut self, now: Real) -> MessageRef {
            self.now = now;
            let line = self.net.lines.get_mut(&0).unwrap();
            let m = line.write(now);
            line.queue.push_back(Mail::Message(m));
            line.deliver(now, Mail::Message(m), &mut self.faults, &mut self.net.out);
            m
        }

        fn ask(&mut self, anchor: MessageRef, count: u32) {
            let message = self.net.message(0, anchor).unwrap();
            let thread = self.net.thread_id(0, anchor.thread).unwrap();
            let anchor = (&*message.id, message.second, message.from_me);
            let f = &mut self.faults;
            assert!(self.net.ask_history(self.now, 0, KEY, 1, &thread, anchor, count, f));
        }

        /// Runs the network, and says what was delivered.
        fn until(&mut self, end: Real) -> Vec<String> {
            let mut seen = Vec::new();
            loop {
                for (at, out) in self.net.take() {
                    self.queue.push(at, out);
                }
                if self.queue.next().is_none_or(|at| at > end) {
                    self.now = end;
                    return seen;
                }
                let (at, out) = self.queue.pop().unwrap();
                self.faults.advance(at);
                match out {
                    Out::Later(account, later) => {
                        self.net.handle(at, account, later, &mut self.faults);
                    }
                    Out::Deliver(_, _, delivery) => seen.push(match delivery {
                        Delivery::Chunk(c) => format!("chunk {c}"),
                        Delivery::ChunkMissing => "no chunk".into(),
                        Delivery::Closed(reason) => format!("closed {reason:?}"),
                        Delivery::Live(Mail::Message(m)) => format!("live {}", m.thread),
                        Delivery::Live(mail) => format!("live {mail:?}"),
                        Delivery::Offline(batch) => format!("offline {}", batch.len()),
                        Delivery::OfflineEnd(n) => format!("end {n}"),
                        Delivery::Opened => "opened".into(),
                        Delivery::Page(p) => {
                            format!("page {}..{} {}", p.stretch.from, p.stretch.to, p.more)
                        }
                        Delivery::Paired => "paired".into(),
                        Delivery::Pairing => "pairing".into(),
                        Delivery::Undecryptable(_) => "undecryptable".into(),
                    }),
                }
            }
        }
    }

    fn at(index: u32) -> MessageRef {
        MessageRef { thread: 0, index }
    }

    fn account() -> AccountPlan {
        AccountPlan {
            id: 0,
            linked: true,
            threads: 1,
            groups: 0,
            lids: 0,
            twins_from: Real::ZERO,
            happenings: 0,
            home: 0,
            history: 100,
            messages: 0,
            own: 300,
            sends: 0,
            phone_min: 1_000,
            phone_max: 3_000,
            scan: 0,
        }
    }

    fn world(faults: &[crate::scenario::Fault]) -> Tiny {
        world_of(account(), faults)
    }

    fn world_of(plan: AccountPlan, faults: &[crate::scenario::Fault]) -> Tiny {
        let scenario = Scenario {
            seed: 1,
            regime: Regime::Within,
            quiet_from: Real(1_000_000),
            end: Real(1_000_000),
            pace: Pace::default(),
            store: StorePlan {
                clock: crate::clock::ClockPlan::default(),
                latency_min: 1,
                latency_max: 2,
            },
            instances: Vec::new(),
            accounts: vec![plan],
            node: None,
            operations: Vec::new(),
            faults: faults.to_vec(),
        };
        // A seed for which the only conversation is a long one.
        let seed =
            (0..100).find(|s| WhatsApp::new(*s, &scenario.accounts).length(0, 0) > 60).unwrap();
        let mut faults = FaultPlan::new(&scenario);
        faults.advance(Real::ZERO);
        let net = WhatsApp::new(seed, &scenario.accounts);
        Tiny { net, faults, queue: crate::queue::Queue::new(), now: Real::ZERO }
    }
}
