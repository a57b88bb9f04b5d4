//! What becomes of messages: S12, S13, L6.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backfill_core::alias::Alias;
use backfill_core::coverage::Coverage;
use backfill_core::doc::{DocPath, Document, Value};
use backfill_core::id::ThreadId;
use backfill_core::incoming::Status;
use backfill_core::time::StoreTime;
use smol_str::SmolStr;

use super::Checker;
use crate::clock::Real;
use crate::scenario::{AccountPlan, Regime, Scenario};
use crate::store::SimStore;
use crate::whatsapp::{
    Mail, Message, MessageRef, What, WhatsApp, edited_text, member, message_text, thread_number,
};

/// Which messages the store has.
#[derive(Clone, Debug, Default)]
pub(super) struct Messages {
    /// By position and conversation, a bit per message
    stored: Vec<Vec<Vec<u64>>>,
    /// By outbox document, under which WhatsApp id it was sent
    sent: BTreeMap<SmolStr, SmolStr>,
    /// Threads to which the inbox wrote by itself
    inbox: BTreeSet<(u16, u16)>,
    /// By position and conversation, when its first message was stored
    begun: BTreeMap<(u16, u16), Real>,
    /// By process and position, messages that it was told it could not decrypt, and that it has not
    /// made durable
    undecrypted: BTreeMap<(u32, u16), Vec<Undecrypted>>,
    /// Of the commit that is being looked at
    created: Vec<(u16, MessageRef)>,
    gone: Vec<(u16, MessageRef)>,
    /// Of what became of messages, what the store has to show: acknowledged, or part of a history
    /// that is stored
    told: BTreeSet<(u16, u32)>,
}

/// A message that a process could not decrypt.
#[derive(Clone, Debug)]
struct Undecrypted {
    message: MessageRef,
    thread: ThreadId,
    second: i64,
}

/// What is missing and could be filled.
#[derive(Clone, Copy, Debug, Default)]
struct Fillable {
    messages: u32,
    /// How many requests to the phone it takes to fill all holes, of which some lack nothing
    requests: u64,
    /// The newest of them in one of the threads
    newest: Option<MessageRef>,
}

/// How many requests to the phone it took to fill an account's holes when all had settled.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ToFill {
    lookback: u64,
    depth: u64,
}

/// The direction that documents show.
fn direction_of(message: &Message) -> &'static str {
    if message.from_me { "outbound" } else { "inbound" }
}

/// The threads of a conversation, one for each of its names.
fn names(account: u16, thread: u16, net: &WhatsApp) -> impl Iterator<Item = ThreadId> {
    let known = [false, true].into_iter().filter(move |lid| !lid || net.has_lid(account, thread));
    known.filter_map(move |lid| net.thread_called(account, thread, lid))
}

/// The document of a message, under whichever name its conversation has it.
fn stored_message<'a>(
    account: u16,
    message: MessageRef,
    store: &'a SimStore,
    net: &WhatsApp,
) -> Option<&'a Arc<Document>> {
    let id = net.message(account, message)?.id;
    if net.was_sent(account, message) {
        // What left through the outbox has the document that the inbox made for it.
        let owner = AccountPlan::account(account);
        let alias = store.document(&Alias::path(&owner, &id)?)?;
        let Alias { thread, message } = Alias::parse(&owner, alias)?;
        return store.document(&DocPath::new(&thread.messages(), message.as_str()).ok()?);
    }
    names(account, message.thread, net)
        .find_map(|thread| store.document(&DocPath::new(&thread.messages(), &id).ok()?))
}

/// So many of the newest messages of every conversation are compared with what WhatsApp knows.
const LOOKED_AT: usize = 200;

impl Messages {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let threads = scenario.accounts.iter().map(|a| vec![Vec::new(); usize::from(a.threads)]);
        Self { stored: threads.collect(), ..Self::default() }
    }

    fn has(&self, position: u16, message: MessageRef) -> bool {
        self.stored
            .get(usize::from(position))
            .and_then(|threads| threads.get(usize::from(message.thread)))
            .and_then(|bits| bits.get((message.index / 64) as usize))
            .is_some_and(|word| word >> (message.index % 64) & 1 == 1)
    }

    /// Notes that a message is stored. `false` if it was already, `None` if there is no such one.
    fn insert(&mut self, position: u16, message: MessageRef) -> Option<bool> {
        let bits =
            self.stored.get_mut(usize::from(position))?.get_mut(usize::from(message.thread))?;
        let word = (message.index / 64) as usize;
        if bits.len() <= word {
            bits.resize(word + 1, 0);
        }
        let bit = 1 << (message.index % 64);
        let new = bits[word] & bit == 0;
        bits[word] |= bit;
        Some(new)
    }
}

impl Checker {
    /// A commit wrote to `threads/…`: notes which messages have a readable document now, and which
    /// have lost theirs.
    ///
    /// S12: a message that nobody edited or revoked says what was sent.
    pub(super) fn message_written(
        &mut self,
        at: Real,
        path: &DocPath,
        before: Option<&Document>,
        after: Option<&Document>,
    ) {
        let Some((_, id)) = path.as_str().split_once("/messages/") else { return };
        let Some((account, message)) = WhatsApp::parse_id(id) else { return };
        let whole = |doc: &Document| doc.str("placeholder").is_none();
        let was = before.is_some_and(whole);
        let after = after.filter(|doc| whole(doc));
        let is = after.is_some();
        if let Some(doc) = after
            && doc.value("editedAt").is_none()
            && doc.value("revoked").is_none()
            && doc.str("body") != Some(&message_text(account, message))
        {
            let MessageRef { thread, index } = message;
            self.violate("S12", at, || {
                format!("account {account}: message {index} of thread {thread} has another text")
            });
        }
        match (was, is) {
            (false, true) => self.messages.created.push((account, message)),
            (true, false) => self.messages.gone.push((account, message)),
            (true, true) | (false, false) => {}
        }
    }

    /// A commit that wrote to `threads/…` is done.
    ///
    /// S12: no message loses its document, and none gets a second one; it may move.
    pub(super) fn messages_committed(&mut self, at: Real) {
        let gone = std::mem::take(&mut self.messages.gone);
        let created = std::mem::take(&mut self.messages.created);
        for (account, message) in &gone {
            if !created.contains(&(*account, *message)) {
                let MessageRef { thread, index } = *message;
                self.violate("S12", at, || {
                    format!("account {account}: message {index} of thread {thread} is gone")
                });
            }
        }
        for (account, message) in &created {
            let position = self.position(*account);
            let moved = gone.contains(&(*account, *message));
            self.messages.begun.entry((position, message.thread)).or_insert(at);
            if self.messages.insert(position, *message) == Some(false) && !moved {
                let MessageRef { thread, index } = *message;
                self.violate("S12", at, || {
                    format!("account {account}: message {index} of {thread} is stored twice")
                });
            }
        }
        self.messages.gone = gone;
        self.messages.gone.clear();
        self.messages.created = created;
        self.messages.created.clear();
    }

    /// Messages are acknowledged to WhatsApp.
    ///
    /// S12: each is in the store. What becomes of messages is looked at when the world ends.
    pub fn acknowledged(&mut self, at: Real, process: u32, account: u16, mail: &[Mail]) {
        self.told(account, mail);
        let position = self.position(account);
        for mail in mail {
            if let Mail::Message(message) = mail
                && !self.messages.has(position, *message)
            {
                let MessageRef { thread, index } = *message;
                self.violate("S12", at, || {
                    format!(
                        "process {process} acknowledged message {index} of thread {thread} of \
                         account {account}, which is not stored"
                    )
                });
            }
        }
    }

    /// A page or a conversation of a chunk is stored. What is known of the conversation may have
    /// other ends now, so that the phone is asked with each of them as if for the first time.
    pub fn history_stored(&mut self, account: u16, mail: &[Mail]) {
        self.told(account, mail);
        let position = usize::from(self.position(account));
        let stored = mail.iter().find_map(|mail| match mail {
            Mail::Message(message) => Some(message.thread),
            Mail::Happening(_) | Mail::Unreadable(_) => None,
        });
        if let (Some(thread), Some(seen)) = (stored, self.accounts.get_mut(position)) {
            let id = AccountPlan::account(account);
            seen.tries.retain(|(asked, _), _| thread_number(&id, asked) != Some(thread));
        }
    }

    /// These are in the store, or ought to be.
    fn told(&mut self, account: u16, mail: &[Mail]) {
        for mail in mail {
            if let Mail::Happening(n) = mail {
                self.messages.told.insert((account, *n));
            }
        }
    }

    /// A message of the outbox leaves for WhatsApp.
    ///
    /// S13: always under the id under which it left the first time, and not before a claim made
    /// that id durable. The claim itself may have been given back meanwhile: a sending whose outcome
    /// is unknown may still happen.
    pub fn sent(
        &mut self,
        at: Real,
        process: u32,
        outbox: &SmolStr,
        wa_id: &SmolStr,
        claimed: bool,
    ) {
        if !claimed {
            self.violate("S13", at, || {
                format!("process {process} sent {outbox} before the claim was durable")
            });
        }
        let first = self.messages.sent.entry(outbox.clone()).or_insert_with(|| wa_id.clone());
        if first != wa_id {
            let first = first.clone();
            self.violate("S13", at, || {
                format!("process {process} sent {outbox} as {wa_id}, after {first}")
            });
        }
    }

    /// A process is told that a message cannot be decrypted. Nobody else ever learns of it, unless
    /// the process makes it durable.
    pub fn undecryptable(
        &mut self,
        process: u32,
        account: u16,
        message: MessageRef,
        (thread, second): (ThreadId, i64),
    ) {
        let key = (process, self.position(account));
        let lost = Undecrypted { message, thread, second };
        self.messages.undecrypted.entry(key).or_default().push(lost);
    }

    /// A process wrote what it knows of an account: among it, which messages may be missing.
    pub(super) fn gaps_written(&mut self, process: u32, position: u16, sync: &Document) {
        let Some(told) = self.messages.undecrypted.get_mut(&(process, position)) else { return };
        let entries = |name| {
            let list = sync.value(name).and_then(Value::as_array).unwrap_or_default();
            list.iter().filter_map(Value::as_map)
        };
        let noted = |thread: &ThreadId, second: i64| {
            entries("gaps").chain(entries("threadGaps")).any(|gap| {
                let at = |name: &str| gap.get(name).and_then(Value::as_int);
                let named = gap.get("thread").and_then(Value::as_str);
                named.is_none_or(|named| named == thread.as_str())
                    && at("from").is_some_and(|from| from <= second)
                    && at("to").is_some_and(|to| second <= to)
            })
        };
        told.retain(|lost| !noted(&lost.thread, lost.second));
    }

    /// The inbox wrote to a thread by itself.
    pub fn inbox_wrote(&mut self, account: u16, thread: u16) {
        self.messages.inbox.insert((account, thread));
    }

    /// Whether the store has a message, by the position of its account.
    pub fn has_message(&self, account: u16, message: MessageRef) -> bool {
        self.messages.has(self.position(account), message)
    }

    /// A message of history created its thread.
    pub fn history_before_thread(&mut self) {
        self.sometimes.history_before_its_thread += 1;
    }

    /// S12: what became of messages shows, whatever the order in which it was told: what was
    /// acknowledged in any case, what was not perhaps.
    fn finish_happenings(&mut self, at: Real, store: &SimStore, net: &WhatsApp) {
        for position in 0..self.accounts.len() as u16 {
            let account = self.number(position);
            let about: BTreeSet<MessageRef> =
                net.happenings(account).iter().map(|happening| happening.about).collect();
            for message in about {
                if let Some(wrong) = self.wrong_outcome(account, message, store, net) {
                    let MessageRef { thread, index } = message;
                    self.violate("S12", at, || {
                        format!("account {account}: message {index} of thread {thread} {wrong}")
                    });
                }
            }
        }
    }

    fn wrong_outcome(
        &self,
        account: u16,
        message: MessageRef,
        store: &SimStore,
        net: &WhatsApp,
    ) -> Option<String> {
        let numbers = net.happened_to(account, message);
        let is_told = |n: u32| self.messages.told.contains(&(account, n));
        let Some(doc) = stored_message(account, message, store, net) else {
            let told = numbers.iter().any(|n| is_told(*n));
            return told.then(|| "has reports and no document".into());
        };
        let happenings = net.happenings(account);
        let revoked = doc.bool("revoked") == Some(true);
        if revoked && doc.str("body") != Some("") {
            return Some("is revoked and has a text".into());
        }
        let (mut edit, mut reaction) = (None, None);
        for n in numbers {
            let happening = happenings[*n as usize];
            let told = is_told(*n);
            let status = doc.str("status").and_then(Status::parse);
            match happening.what {
                What::Delivered if told && status < Some(Status::Delivered) => {
                    return Some("was delivered and does not show it".into());
                }
                What::Read if told && status < Some(Status::Read) => {
                    return Some("was read and does not show it".into());
                }
                What::Delivered | What::Read => {}
                What::Revoked if told && !revoked => {
                    return Some("was revoked and does not show it".into());
                }
                What::Revoked => {}
                What::Edited if told => edit = edit.max(Some((happening.at_ms, *n))),
                What::Reacted { .. } if told => {
                    reaction = reaction.max(Some((happening.at_ms, *n)));
                }
                What::Edited | What::Reacted { .. } => {}
            }
        }
        // Of those that are equally late any may count; later ones that were not acknowledged may
        // have arrived all the same.
        let may_be = |n: u32, told: Option<(i64, u32)>| {
            let happening = happenings[n as usize];
            told.is_none_or(|(at_ms, _)| happening.at_ms >= at_ms)
        };
        let shown = doc.str("body").unwrap_or_default();
        let edited = numbers.iter().any(|n| {
            happenings[*n as usize].what == What::Edited
                && may_be(*n, edit)
                && edited_text(account, message, *n) == shown
        });
        let original = edit.is_none() && doc.value("editedAt").is_none();
        if !revoked && !edited && !original {
            return Some(format!("shows {shown:?} after edit {edit:?}"));
        }
        let shown = doc
            .value("reactions")
            .and_then(|v| v.as_map())
            .and_then(|people| people.values().next())
            .and_then(|reaction| reaction.as_map()?.get("text")?.as_str())
            .unwrap_or_default();
        let reacted = numbers.iter().any(|n| match happenings[*n as usize].what {
            What::Reacted { back: true } => may_be(*n, reaction) && shown.is_empty(),
            What::Reacted { back: false } => {
                may_be(*n, reaction) && shown.strip_prefix('+') == Some(&n.to_string())
            }
            _ => false,
        });
        let none = reaction.is_none() && shown.is_empty();
        (!reacted && !none).then(|| format!("shows reaction {shown:?} instead of {reaction:?}"))
    }

    /// S12: a thread shows the time and direction of the newest message that the store has of it,
    /// and the text of the newest inbound one; equally new ones are equally good. Threads to
    /// which the inbox wrote by itself, from its own clock, are not judged. S13: what was sent from the outbox has one document.
    pub(super) fn finish_messages(&mut self, at: Real, store: &SimStore, net: &WhatsApp) {
        self.finish_happenings(at, store, net);
        for position in 0..self.accounts.len() as u16 {
            let account = self.number(position);
            for thread in 0..net.threads(account) {
                let summary = self.wrong_summary(position, account, thread, store, net);
                let message = self.wrong_message(position, account, thread, store, net);
                for wrong in [summary, message].into_iter().flatten() {
                    self.violate("S12", at, || {
                        format!("account {account}, thread {thread}: {wrong}")
                    });
                }
            }
        }
        let sent = std::mem::take(&mut self.messages.sent);
        for (outbox, wa_id) in &sent {
            let Some((account, message)) = net.find_sent(wa_id) else { continue };
            let Some(thread) = net.thread_id(account, message.thread) else { continue };
            let stored = |id: &str| {
                DocPath::new(&thread.messages(), id).is_ok_and(|p| store.document(&p).is_some())
            };
            if stored(outbox) && stored(wa_id) {
                self.violate("S13", at, || format!("{outbox} is stored again as {wa_id}"));
            }
        }
        self.messages.sent = sent;
    }

    /// Those of a conversation's messages that are in the store, or ought to be, newest first.
    fn newest_stored(
        &self,
        position: u16,
        thread: u16,
        length: u32,
    ) -> impl Iterator<Item = MessageRef> {
        let all = (0..length).rev().map(move |index| MessageRef { thread, index });
        all.filter(move |message| self.messages.has(position, *message))
    }

    /// What a document says of a message otherwise than WhatsApp does: when, by whom, in which
    /// conversation. The messages of the inbox are its own business.
    fn wrong_message(
        &self,
        position: u16,
        account: u16,
        thread: u16,
        store: &SimStore,
        net: &WhatsApp,
    ) -> Option<String> {
        let stored = self.newest_stored(position, thread, net.length(account, thread));
        let others = stored.filter(|message| !net.was_sent(account, *message));
        others.take(LOOKED_AT).find_map(|message| {
            let known = net.message(account, message)?;
            let Some(doc) = stored_message(account, message, store, net) else {
                return Some(format!("message {} cannot be found", message.index));
            };
            let direction = direction_of(&known);
            let group = net.is_group(account, thread) && !known.from_me;
            let sender = group.then(|| member(known.sender));
            let told = (
                doc.str("direction"),
                doc.time("tsClient").map(StoreTime::as_secs),
                doc.int("key.timestamp"),
                doc.bool("key.fromMe"),
                doc.str("senderJid"),
                doc.str("threadId"),
            );
            let right = (
                Some(direction),
                Some(known.second),
                Some(known.second),
                Some(known.from_me),
                sender.as_deref(),
                doc.path.as_str().split('/').nth(1),
            );
            (told != right).then(|| {
                let index = message.index;
                format!("message {index} says {told:?} instead of {right:?}")
            })
        })
    }

    fn wrong_summary(
        &self,
        position: u16,
        account: u16,
        thread: u16,
        store: &SimStore,
        net: &WhatsApp,
    ) -> Option<String> {
        let length = net.length(account, thread);
        let mut stored = self.newest_stored(position, thread, length).peekable();
        let first = net.message(account, *stored.peek()?)?;
        let documents: Vec<&Arc<Document>> = names(account, thread, net)
            .filter_map(|thread| store.document(&thread.path()))
            .collect();
        if documents.is_empty() {
            return Some("has messages and no document".into());
        }
        // A name that only leads to another shows nowhere.
        let leads = |doc: &Document| doc.str("redirectTo").is_some();
        if documents.iter().any(|doc| doc.int("lastMessageAtMs").is_none() && !leads(doc)) {
            return Some("shows no time".into());
        }
        if self.messages.inbox.contains(&(account, thread)) {
            return None;
        }
        let shown = documents.iter().filter_map(|doc| doc.int("lastMessageAtMs")).max()?;
        // A message that nobody here could read yet counts too.
        let unreadable = || {
            (0..length).filter_map(|index| {
                let m = MessageRef { thread, index };
                let known = net.message(account, m).filter(|m| m.second * 1_000 == shown)?;
                stored_message(account, m, store, net).map(|_| known)
            })
        };
        if shown != first.second * 1_000 {
            if shown > first.second * 1_000 && unreadable().next().is_some() {
                return None;
            }
            return Some(format!("shows {shown} instead of {}", first.second * 1_000));
        }
        // What lies under two names is put together when it is next mentioned.
        let showing: Vec<&Arc<Document>> =
            documents.into_iter().filter(|doc| !leads(doc)).collect();
        let [doc] = showing.as_slice() else { return None };
        let mut directions = Vec::new();
        let mut texts: Option<(i64, Vec<SmolStr>)> = None;
        for m in stored {
            let message = net.message(account, m)?;
            if message.second == first.second {
                directions.push(direction_of(&message));
            }
            if !message.from_me {
                let (second, found) = texts.get_or_insert((message.second, Vec::new()));
                if *second != message.second {
                    break;
                }
                let body = stored_message(account, m, store, net).and_then(|doc| doc.str("body"));
                found.push(body.unwrap_or_default().into());
            }
            if texts.is_none() && message.second < first.second && m.index == 0 {
                break;
            }
        }
        let direction = doc.str("lastMessageDirection").unwrap_or_default();
        if !directions.contains(&direction)
            && unreadable().all(|message| direction_of(&message) != direction)
        {
            return Some(format!("shows direction {direction:?} instead of {directions:?}"));
        }
        let (_, texts) = texts?;
        let text = doc.str("lastMessageText").unwrap_or_default();
        (!texts.iter().any(|t| t == text))
            .then(|| format!("shows text {text:?} instead of {texts:?}"))
    }

    /// What of an account's newest history is missing although the phone could fill it.
    ///
    /// Counted are messages since `since` that lie before a stored one which is not newer than
    /// `before` (both in seconds), in threads that were known when all had `settled` and were not
    /// given up, nor in work: a thread that was given up becomes fillable again with a new message,
    /// so that the rest counts only if there was time for it, which `patience` says in milliseconds
    /// by the number of requests, since something was last noted about it. What a process was told that it cannot decrypt, and what it could not note before
    /// it ended or lost the account, is lost without a trace.
    fn fillable(
        &self,
        position: u16,
        window: (i64, i64),
        settled: Real,
        depth: u32,
        patience: impl Fn(u64) -> u64,
        (store, net): (&SimStore, &WhatsApp),
    ) -> Fillable {
        let account = self.number(position);
        let (since, before) = window;
        let page = self.policy.auto_backfill.page.min(self.policy.recent_sync.page).max(1);
        let undecrypted = self.messages.undecrypted.iter();
        let lost_unseen: BTreeSet<MessageRef> = undecrypted
            .filter(|((_, at), _)| *at == position)
            .flat_map(|(_, told)| told.iter().map(|lost| lost.message))
            .collect();
        let mut fillable = Fillable::default();
        for thread in 0..net.threads(account) {
            let length = net.length(account, thread);
            let from = length.saturating_sub(depth);
            let second =
                |index| net.message(account, MessageRef { thread, index }).map_or(0, |m| m.second);
            // What the inbox sent has had its document from the beginning.
            let has = |index| {
                let message = MessageRef { thread, index };
                self.messages.has(position, message)
                    || net.was_sent(account, message)
                    || lost_unseen.contains(&message)
            };
            // Since when it is known that there is such a conversation.
            let begun = self.messages.begun.get(&(position, thread));
            if begun.is_none_or(|begun| *begun > settled) {
                continue;
            }
            let mut anchored = false;
            let (mut here, mut newest) = (0_u32, 0);
            for index in (from..length).rev() {
                let at = second(index);
                if at < since {
                    break;
                }
                if has(index) {
                    // A message of our own making cannot be named to the phone.
                    let own = net.was_sent(account, MessageRef { thread, index });
                    anchored |= at <= before && !own;
                } else if anchored {
                    newest = newest.max(index);
                    here += 1;
                }
            }
            let all: Vec<i64> = (from..length).map(second).filter(|at| *at >= since).collect();
            let asked_through = self.claimed_missing(position, thread, &all, store, net).max(here);
            if asked_through == 0 {
                continue;
            }
            let requests = 1 + u64::from(asked_through.div_ceil(page));
            fillable.requests += requests;
            let in_work = || {
                self.noted(position, thread, store, net).is_some_and(|ms| ms < patience(requests))
            };
            if here > 0 && !self.given_up(position, thread, store, net) && !in_work() {
                fillable.messages += here;
                fillable.newest = Some(MessageRef { thread, index: newest });
            }
        }
        fillable
    }

    fn given_up(&self, position: u16, thread: u16, store: &SimStore, net: &WhatsApp) -> bool {
        self.covered(position, thread, store, net).any(|doc| {
            let (coverage, _) = Coverage::parse(&doc.fields);
            coverage.stretches().iter().any(|stretch| stretch.exhausted)
        })
    }

    /// How many of a conversation's messages, of which the seconds are given, lie in holes that the
    /// phone is going to be asked for, be they stored or not.
    fn claimed_missing(
        &self,
        position: u16,
        thread: u16,
        seconds: &[i64],
        store: &SimStore,
        net: &WhatsApp,
    ) -> u32 {
        let missing = self.covered(position, thread, store, net).map(|doc| {
            let holes = Coverage::parse(&doc.fields).0.holes();
            let fillable = holes.iter().filter(|hole| hole.is_fillable());
            let reaches = fillable.filter_map(|hole| Some((hole.after?, hole.anchor.as_ref()?)));
            let inside = reaches.map(|(after, anchor)| {
                seconds.iter().filter(|at| after < **at && **at < anchor.second).count() as u32
            });
            inside.sum()
        });
        missing.max().unwrap_or(0)
    }

    /// How long ago something was last noted about a thread, in milliseconds.
    fn noted(&self, position: u16, thread: u16, store: &SimStore, net: &WhatsApp) -> Option<u64> {
        let docs = self.covered(position, thread, store, net);
        let ago = docs.map(|doc| store.last_commit().since(doc.update_time)).min()?;
        Some(ago.as_millis() as u64)
    }

    /// What is noted about a thread, under each of its names.
    fn covered<'a>(
        &self,
        position: u16,
        thread: u16,
        store: &'a SimStore,
        net: &WhatsApp,
    ) -> impl Iterator<Item = &'a Arc<Document>> {
        let account = self.number(position);
        let id = self.ids.get(usize::from(position));
        names(account, thread, net).filter_map(move |thread| {
            store.document(&DocPath::new(&id?.coverage(), thread.as_str()).ok()?)
        })
    }

    /// Since when the lookback of recent sync counts, in seconds, in a world that ends at `end`.
    fn lookback_since(&self, account: u16, end: Real, net: &WhatsApp) -> i64 {
        let lookback = self.policy.recent_sync.lookback.as_secs() as i64;
        let begun = net.linked_since(account).unwrap_or(end).second();
        (end.second() - lookback).max(begun)
    }

    /// Notes how many requests to the phone there are to make, for L6. Called when all has settled.
    pub fn note_holes(&mut self, at: Real, end: Real, store: &SimStore, net: &WhatsApp) {
        if self.regime == Regime::Beyond {
            return;
        }
        for position in 0..self.accounts.len() as u16 {
            let requests = |since, depth| {
                let window = (since, at.second());
                self.fillable(position, window, at, depth, |_| 0, (store, net)).requests
            };
            let since = self.lookback_since(self.number(position), end, net);
            let lookback = requests(since, u32::MAX);
            let depth = requests(i64::MIN, self.policy.auto_backfill.depth);
            self.accounts[usize::from(position)].to_fill = ToFill { lookback, depth };
        }
    }

    /// L6: whatever could be filled since faults stopped has been. The window is the lookback of
    /// recent sync, as far as it reaches into the time since the account was first linked: what is
    /// older was never lost, it is not a hole but depth; and the depth of the backfill if there was
    /// time for a cooldown to pass. An account whose holes took more requests, when all had settled
    /// or now, than the quiet phase has room for is not judged: whoever has filled most of them has
    /// done no worse than who has filled none.
    pub(super) fn finish_holes(
        &mut self,
        at: Real,
        scenario: &Scenario,
        settled: Real,
        store: &SimStore,
        net: &WhatsApp,
    ) {
        if self.regime == Regime::Beyond || at < settled {
            return;
        }
        let room = at.since(settled);
        let recent = &self.policy.recent_sync;
        let cycle = 4 * recent.interval.as_millis() as u64 + 2 * recent.lease.as_millis() as u64;
        for position in 0..self.accounts.len() as u16 {
            let account = self.number(position);
            if !self.is_served(position, net) {
                continue;
            }
            let slow = scenario.accounts[usize::from(position)].phone_max;
            let each = (self.policy.phone.spacing.as_millis() as u64).max(slow) + 2_000;
            let to_fill = self.accounts[usize::from(position)].to_fill;
            let since = self.lookback_since(account, at, net);
            let window = (since, settled.second());
            let patience = |requests| requests * each * 2 + cycle;
            let whole = u32::MAX;
            let left = self.fillable(position, window, settled, whole, patience, (store, net));
            let judged = patience(left.requests.max(to_fill.lookback)) < room;
            self.sometimes.lookback_judged += u64::from(judged);
            if left.messages > 0 && judged {
                self.violate("L6", at, || format!("account {account}, lookback: missing {left:?}"));
            }
            let auto = &self.policy.auto_backfill;
            let ticks = self.accounts.len() as u64 / u64::from(auto.max_accounts_per_tick) + 3;
            let turn = ticks * auto.interval.as_millis() as u64;
            // A run gives way to others after half its term.
            let share = (auto.lease.as_millis() as u64 / 2 / each).max(1);
            let cooldown = auto.cooldown.as_millis() as u64;
            let window = (i64::MIN, settled.second());
            let patience = |requests: u64| {
                requests * each * 3 + cooldown + requests.div_ceil(share).max(1) * turn
            };
            let left = self.fillable(position, window, settled, auto.depth, patience, (store, net));
            let judged = patience(left.requests.max(to_fill.depth)) < room;
            self.sometimes.depth_judged += u64::from(judged);
            if left.messages > 0 && judged {
                self.violate("L6", at, || format!("account {account}, depth: missing {left:?}"));
            }
        }
    }
}
