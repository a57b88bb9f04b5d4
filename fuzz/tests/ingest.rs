//! What ingest stores does not depend on how records arrive.
//!
//! A case is a handful of records about few messages of few chats, so that they meet often. They
//! are stored in several ways (order, repetition, batches, concurrent batches, lost answers) into
//! copies of one store that may already hold what the app or other software wrote, and the copies
//! have to be equal. What may differ: the times of storing, and which of two senders' messages of
//! one id has the plain name, which the first to come keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backfill_core::alias::{Alias, outbound_wa_id};
use backfill_core::doc::{
    CollectionPath, DocPath, Double, FieldOp, FieldPath, Fields, Precondition, Value, Write,
};
use backfill_core::id::{AccountId, MessageId, OutboxId, ThreadId};
use backfill_core::incoming::{
    Author, Chat, Contact, Content, Incoming, Key, Media, MessageEvent, MessageKind, Record,
    Status, SyncSource,
};
use backfill_core::ingest::{Batch, Step};
use backfill_core::jid::{Jid, Twins};
use backfill_core::time::StoreTime;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::{Index, Select, select};
use sim::store::SimStore;
use smol_str::SmolStr;

const NOW: StoreTime = StoreTime::from_secs(1_800_000_000);
const ANA: &str = "40711111111@s.whatsapp.net";
const ANAS_LID: &str = "91@lid";
const BOB: &str = "40722222222@s.whatsapp.net";
const BOBS_LID: &str = "92@lid";
const SOMEBODYS_LID: &str = "93@lid";
const GROUP: &str = "120363000000000001@g.us";

proptest! {
    #[test]
    fn order_repetition_and_batches_do_not_matter(
        said in vec(said(), 1..12),
        stored in stored(),
        first in arrival(),
        second in arrival(),
    ) {
        let one = ingested(&said, &stored, &first);
        let other = ingested(&said, &stored, &second);
        prop_assert_eq!(content(&one), content(&other));
    }

    #[test]
    fn concurrent_batches_lose_nothing(
        said in vec(said(), 1..12),
        stored in stored(),
        arrival in arrival(),
        turns in vec((any::<Index>(), answer()), 0..60),
    ) {
        let alone = ingested(&said, &stored, &Arrival::plain());
        let mut store = stored_in(&stored);
        let mut batches: Vec<_> = arrival.batches(&said).into_iter().map(batch).collect();
        // All read before any writes; the turns then mix them; in the end each finishes.
        let mut steps: Vec<_> = batches.iter_mut().map(Batch::step).collect();
        for (turn, answer) in turns {
            let i = turn.index(batches.len());
            advance(&mut batches[i], &mut steps[i], &mut store, answer);
        }
        for (batch, step) in batches.iter_mut().zip(&mut steps) {
            for _ in 0..1_000 {
                advance(batch, step, &mut store, Answer::Arrives);
            }
            prop_assert_eq!(&*step, &Step::Done);
        }
        prop_assert_eq!(content(&store), content(&alone));
    }

    #[test]
    fn what_is_stored_is_not_written_again(
        said in vec(said(), 1..12),
        stored in stored(),
        first in arrival(),
        second in arrival(),
    ) {
        let mut store = ingested(&said, &stored, &first);
        let before = store.clone();
        for records in second.batches(&said) {
            let (writes, _) = run(batch(records), &mut store);
            prop_assert_eq!(writes, 0);
        }
        prop_assert_eq!(store, before);
    }

    #[test]
    fn the_summary_is_what_the_messages_say(said in vec(said(), 1..12), arrival in arrival()) {
        let store = ingested(&said, &[], &arrival);
        for chat in [ANA, BOB, SOMEBODYS_LID, GROUP] {
            let thread = ThreadId::of_chat(&account(), chat).unwrap();
            let messages: Vec<_> = store
                .collection(thread.messages().as_str())
                .filter(|doc| doc.str("placeholder") != Some("missing"))
                .collect();
            let listed = said.iter().filter_map(|said| match said {
                Said::Listed { chat: listed, at } if canonical(listed) == chat => Some(*at),
                Said::Called { chat: called, .. } if canonical(called) == chat => Some(0),
                _ => None,
            });
            let newest = messages.iter().filter_map(|doc| doc.time("tsClient")).max();
            let listed = listed.max().map(StoreTime::from_secs);
            let thread = store.document(&thread.path());
            prop_assert_eq!(thread.is_some(), !messages.is_empty() || listed.is_some());
            let Some(thread) = thread else { continue };
            prop_assert_eq!(thread.time("lastMessageAt"), newest.max(listed));
            let ms = newest.max(listed).map(StoreTime::as_millis);
            prop_assert_eq!(thread.int("lastMessageAtMs"), ms);
            let by_age = |doc: &&&Arc<backfill_core::doc::Document>| {
                (doc.time("tsClient"), doc.str("waMessageId").map(SmolStr::new))
            };
            if let Some(newest) = messages.iter().max_by_key(by_age)
                && messages.iter().filter(|doc| by_age(doc) == by_age(&newest)).count() == 1
            {
                prop_assert_eq!(thread.str("lastMessageDirection"), newest.str("direction"));
            }
            let had_text = |doc: &&&Arc<backfill_core::doc::Document>| {
                doc.str("direction") == Some("inbound")
                    && (doc.str("body") != Some("")
                        || doc.bool("revoked") == Some(true)
                        || doc.time("editedAt").is_some())
            };
            let newest_text = messages.iter().filter(had_text).max_by_key(by_age);
            if let Some(newest) = newest_text
                && messages.iter().filter(|doc| by_age(doc) == by_age(&newest)).count() == 1
            {
                let text: String = newest.str("body").unwrap().chars().take(100).collect();
                prop_assert_eq!(thread.str("lastMessageText"), Some(text.as_str()));
            }
        }
    }

    #[test]
    fn no_message_is_stored_twice_and_each_has_its_place_in_time(
        said in vec(said(), 1..12),
        stored in stored(),
        arrival in arrival(),
    ) {
        let store = ingested(&said, &stored, &arrival);
        let mut names = BTreeSet::new();
        for doc in store.documents() {
            if doc.path.collection().name() != "messages" {
                continue;
            }
            let name = (
                doc.str("clientJid").map(SmolStr::new),
                doc.str("waMessageId").map(SmolStr::new),
                doc.str("direction").map(SmolStr::new),
                doc.str("senderJid").map(SmolStr::new),
            );
            if doc.str("waMessageId").is_some() {
                prop_assert!(names.insert(name), "{:?}", doc.path);
            }
            let unseen = doc.str("placeholder") == Some("missing");
            prop_assert!(doc.value("tsClient").is_some() || unseen);
            prop_assert_ne!(doc.value("tsClient"), Some(&Value::Null));
            if doc.bool("revoked") == Some(true) {
                prop_assert_eq!(doc.str("body"), Some(""));
                prop_assert_eq!(doc.value("media"), None);
            }
        }
    }

    #[test]
    fn garbage_in_documents_never_panics_and_is_soon_repaired(
        said in vec(said(), 1..8),
        garbage in btree_map(place(), fields(), 0..6),
        arrival in arrival(),
    ) {
        let mut store = SimStore::new();
        for (path, fields) in &garbage {
            let ops = fields.iter().filter_map(|(name, value)| {
                Some((FieldPath::parse(name)?, FieldOp::Set(value.clone())))
            });
            let write = Write::merge(path.clone(), Precondition::Any, ops.collect());
            prop_assert!(store.commit(NOW, &[write]).is_ok());
        }
        for records in arrival.batches(&said) {
            run(batch(records), &mut store);
        }
        let all: Vec<_> = said.iter().map(Said::record).collect();
        // A message below a thread that did not exist is found once the thread does.
        let settles = (0..4).any(|_| run(batch(all.clone()), &mut store).0 == 0);
        prop_assert!(settles);
        // What is not ours is still there.
        for (path, fields) in &garbage {
            let Some(foreign) = fields.get("foreign") else { continue };
            if let Some(doc) = store.document(path) {
                prop_assert_eq!(doc.value("foreign"), Some(foreign));
            }
        }
    }

    #[test]
    fn garbage_in_records_is_rejected_or_stored_but_never_panics(
        said in vec(said(), 0..6),
        odd in vec(odd_record(), 1..6),
        at in any::<Index>(),
    ) {
        let mut store = SimStore::new();
        let mut records: Vec<_> = said.iter().map(Said::record).collect();
        let at = at.index(records.len() + 1);
        let odds = odd.len();
        records.splice(at..at, odd);
        let (_, batch) = run(batch(records), &mut store);
        for rejected in batch.facts().rejected {
            prop_assert!((at..at + odds).contains(&rejected.record), "{:?}", rejected);
        }
    }
}

/// One thing that is said about a message, a chat or a contact.
#[derive(Clone, Debug)]
enum Said {
    About(Name, Event, SyncSource),
    Listed { chat: &'static str, at: i64 },
    Named { who: &'static str, name: &'static str, as_of: i64 },
    Called { chat: &'static str, name: &'static str, archived: bool, as_of: i64 },
}

/// Which message.
#[derive(Clone, Debug)]
struct Name {
    chat: &'static str,
    id: SmolStr,
    from_me: bool,
    sender: &'static str,
}

/// What is said about it.
#[derive(Clone, Debug)]
enum Event {
    Content { kind: MessageKind, body: &'static str, media: bool, name: Option<&'static str> },
    Edit { body: &'static str, at: i64 },
    Reaction { by: Option<&'static str>, emoji: &'static str, at: i64 },
    Receipt { status: Status, at: i64 },
    Revoke { at: i64 },
    Undecryptable,
}

/// How the records of a case arrive.
#[derive(Clone, Debug)]
struct Arrival {
    /// Seed of a shuffle; 0 keeps the order
    order: u64,
    repetitions: usize,
    batch: usize,
}

/// What happens to the answer of a commit.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    Arrives,
    /// The commit is applied, but nobody is told
    IsLost,
    /// The commit never reaches the store, and nobody is told
    NeverComes,
}

fn account() -> AccountId {
    AccountId::parse("acc").unwrap()
}

/// Ana's and Bob's are known.
fn twins() -> Arc<Twins> {
    let mut twins = Twins::default();
    for (lid, phone) in [(ANAS_LID, ANA), (BOBS_LID, BOB)] {
        twins.link(Jid::parse(lid).unwrap(), Jid::parse(phone).unwrap());
    }
    Arc::new(twins)
}

fn canonical(chat: &'static str) -> &'static str {
    match chat {
        ANAS_LID => ANA,
        BOBS_LID => BOB,
        other => other,
    }
}

/// The app has queued two messages to Ana.
fn outboxes() -> [OutboxId; 2] {
    ["0000", "1111"].map(|id| OutboxId::parse(id).unwrap())
}

fn said() -> impl Strategy<Value = Said> {
    let chats: &'static [_] = &[ANA, ANAS_LID, BOB, BOBS_LID, SOMEBODYS_LID, GROUP];
    let who = || any_of(&[ANA, ANAS_LID, BOB, BOBS_LID, SOMEBODYS_LID]);
    prop_oneof![
        12 => (name(), event(), source()).prop_map(|(n, e, s)| Said::About(n, e, s)),
        1 => (any_of(chats), 0..8_i64).prop_map(|(chat, at)| Said::Listed { chat, at }),
        1 => (who(), any_of(&["Ana", "Anna"]), 0..3_i64)
            .prop_map(|(who, name, as_of)| Said::Named { who, name, as_of }),
        1 => (any_of(chats), any_of(&["Team", "Crew"]), any::<bool>(), 0..3_i64).prop_map(
            |(chat, name, archived, as_of)| Said::Called { chat, name, archived, as_of }
        ),
    ]
}

fn name() -> impl Strategy<Value = Name> {
    let chat = prop_oneof![
        4 => Just(ANA),
        2 => Just(ANAS_LID),
        1 => Just(BOBS_LID),
        1 => Just(SOMEBODYS_LID),
        4 => Just(GROUP),
    ];
    let [first, second] = outboxes().map(|outbox| outbound_wa_id(&outbox));
    let ids = vec!["M1".into(), "M2".into(), "M1~00000000".into(), first, second];
    let sender = any_of(&[ANA, ANAS_LID, BOB, BOBS_LID]);
    (chat, select(ids), any::<bool>(), sender).prop_map(|(chat, id, from_me, sender)| Name {
        chat,
        id,
        from_me,
        sender,
    })
}

fn event() -> impl Strategy<Value = Event> {
    let text = || any_of(&["", "a", "b", "ăîș", LONG]);
    let at = || 0..8_i64;
    let kinds: &'static [_] = &[MessageKind::Text, MessageKind::Image, MessageKind::Unknown];
    let statuses: &'static [_] =
        &[Status::Queued, Status::Failed, Status::Sent, Status::Delivered, Status::Read];
    let by = prop_oneof![Just(None), any_of(&[ANA, ANAS_LID, BOB]).prop_map(Some)];
    let name = prop_oneof![Just(None), any_of(&["Ana", "Bob"]).prop_map(Some)];
    prop_oneof![
        6 => (any_of(kinds), text(), any::<bool>(), name)
            .prop_map(|(kind, body, media, name)| Event::Content { kind, body, media, name }),
        3 => (text(), at()).prop_map(|(body, at)| Event::Edit { body, at }),
        2 => (by, any_of(&["", "+1", "-1"]), at())
            .prop_map(|(by, emoji, at)| Event::Reaction { by, emoji, at }),
        2 => (any_of(statuses), at())
            .prop_map(|(status, at)| Event::Receipt { status, at }),
        1 => at().prop_map(|at| Event::Revoke { at }),
        1 => Just(Event::Undecryptable),
    ]
}

/// 200 characters of three bytes
const LONG: &str = "€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€€";

fn any_of<T: Clone + std::fmt::Debug + 'static>(all: &'static [T]) -> Select<T> {
    select(all)
}

fn source() -> impl Strategy<Value = SyncSource> {
    any_of(&[
        SyncSource::AtMostOnce,
        SyncSource::Backfill,
        SyncSource::HistorySync,
        SyncSource::Realtime,
        SyncSource::RecentSync,
    ])
}

fn arrival() -> impl Strategy<Value = Arrival> {
    (any::<u64>(), 1..4_usize, 1..40_usize).prop_map(|(order, repetitions, batch)| Arrival {
        order,
        repetitions,
        batch,
    })
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![4 => Just(Answer::Arrives), 1 => Just(Answer::IsLost), 1 => Just(Answer::NeverComes)]
}

/// What others stored before: the app's queued messages, its proxy's mark on Ana's thread, a
/// message as older software left it.
fn stored() -> impl Strategy<Value = Vec<Stored>> {
    let one = any_of(&[Stored::Queued(0), Stored::Queued(1), Stored::Proxy, Stored::Legacy]);
    vec(one, 0..4)
}

#[derive(Clone, Copy, Debug)]
enum Stored {
    Legacy,
    Proxy,
    Queued(usize),
}

impl Said {
    fn record(&self) -> Record {
        match self {
            Self::About(name, event, source) => name.record(event, *source).into(),
            Self::Listed { chat, at } => Record::Chat(Chat {
                jid: (*chat).into(),
                last_message_at: Some(*at),
                ..Chat::default()
            }),
            Self::Named { who, name, as_of } => Record::Contact(Contact {
                jid: (*who).into(),
                name: Some((*name).into()),
                notify: (*as_of == 1).then(|| (*name).into()),
                as_of: *as_of,
                ..Contact::default()
            }),
            // Old enough not to date the thread.
            Self::Called { chat, name, archived, as_of } => Record::Chat(Chat {
                jid: (*chat).into(),
                name: Some((*name).into()),
                last_message_at: None,
                archived: Some(*archived),
                as_of: *as_of,
            }),
        }
    }
}

impl Name {
    fn record(&self, event: &Event, source: SyncSource) -> Incoming {
        let me = if self.from_me { Author::Me } else { Author::Person(self.author().into()) };
        let (timestamp, event) = match event {
            Event::Content { kind, body, media, name } => {
                let media = media.then(|| {
                    Box::new(Media {
                        mimetype: Some("image/png".into()),
                        url: name.map(SmolStr::new),
                        ..Media::default()
                    })
                });
                let content = Content {
                    kind: *kind,
                    body: (*body).into(),
                    media,
                    sender_name: name.map(SmolStr::new),
                    status: None,
                };
                (self.sent_at(), MessageEvent::Content(content))
            }
            Event::Edit { body, at } => {
                (*at, MessageEvent::Edit { by: me, body: (*body).into(), at_ms: at * 1_000 })
            }
            Event::Reaction { by, emoji, at } => {
                let by = by.map_or(Author::Me, |by| Author::Person(by.into()));
                (*at, MessageEvent::Reaction { by, emoji: (*emoji).into(), at_ms: at * 1_000 })
            }
            Event::Receipt { status, at } => (*at, MessageEvent::Receipt(*status)),
            Event::Revoke { at } => (*at, MessageEvent::Revoke { by: me }),
            Event::Undecryptable => {
                (self.sent_at(), MessageEvent::Undecryptable { sender_name: None })
            }
        };
        let key = Key {
            id: self.id.clone(),
            remote_jid: self.chat.into(),
            from_me: self.from_me,
            participant: (self.chat == GROUP).then(|| self.sender.into()),
        };
        Incoming { key, timestamp, source, event }
    }

    fn author(&self) -> &'static str {
        if self.chat == GROUP { self.sender } else { self.chat }
    }

    /// A message has one time; that of one is decades ahead, that of two is the same second.
    fn sent_at(&self) -> i64 {
        match (self.id.as_str(), self.from_me) {
            ("M1", false) => 5,
            ("M1", true) if self.chat == GROUP => 4_000_000_000,
            ("M2", _) => 5,
            (_, true) => 3,
            _ => 7,
        }
    }
}

impl Arrival {
    fn plain() -> Self {
        Self { order: 0, repetitions: 1, batch: 1 }
    }

    fn batches(&self, said: &[Said]) -> Vec<Vec<Record>> {
        let mut records: Vec<_> =
            (0..self.repetitions).flat_map(|_| said).map(Said::record).collect();
        let mut state = self.order;
        for i in (1..records.len()).rev().filter(|_| self.order != 0) {
            // Knuth's linear congruential generator is random enough for a shuffle.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            records.swap(i, (state >> 33) as usize % (i + 1));
        }
        records.chunks(self.batch).map(<[Record]>::to_vec).collect()
    }
}

fn batch(records: Vec<Record>) -> Batch {
    Batch::new(&account(), records, NOW, &twins())
}

/// Does what a batch asks, with this fate for the answer of a commit.
fn advance(batch: &mut Batch, step: &mut Step, store: &mut SimStore, answer: Answer) {
    match step {
        Step::Done => return,
        Step::Read(paths) => batch.on_docs(&store.get(NOW, paths).docs),
        Step::Commit(writes) => {
            let applied = answer != Answer::NeverComes && store.commit(NOW, writes).is_ok();
            match answer {
                Answer::Arrives if applied => batch.on_committed(),
                Answer::Arrives | Answer::IsLost => batch.on_conflict(),
                // Asking for the next step says so, too.
                Answer::NeverComes => {}
            }
        }
    }
    *step = batch.step();
}

/// Runs a batch to its end; how many writes it made.
fn run(mut batch: Batch, store: &mut SimStore) -> (usize, Batch) {
    let mut written = 0;
    for _ in 0..1_000 {
        match batch.step() {
            Step::Done => return (written, batch),
            Step::Read(paths) => batch.on_docs(&store.get(NOW, &paths).docs),
            Step::Commit(writes) => {
                store.commit(NOW, &writes).unwrap();
                written += writes.len();
                batch.on_committed();
            }
        }
    }
    panic!("the batch does not end");
}

fn ingested(said: &[Said], stored: &[Stored], arrival: &Arrival) -> SimStore {
    let mut store = stored_in(stored);
    for records in arrival.batches(said) {
        run(batch(records), &mut store);
    }
    store
}

fn stored_in(stored: &[Stored]) -> SimStore {
    let mut store = SimStore::new();
    let thread = ThreadId::of_chat(&account(), ANA).unwrap();
    let mut write = |path: DocPath, fields: &[(&'static str, Value)]| {
        let ops = fields.iter().map(|(k, v)| (FieldPath::new(k), v.clone().into())).collect();
        store.commit(NOW, &[Write::merge(path, Precondition::Any, ops)]).unwrap();
    };
    for stored in stored {
        match stored {
            Stored::Legacy => write(
                DocPath::new(&thread.messages(), "M1").unwrap(),
                &[
                    ("direction", "inbound".into()),
                    ("body", "a".into()),
                    ("tsClient", StoreTime::from_secs(5).into()),
                    ("readBy", "x".into()),
                ],
            ),
            Stored::Proxy => write(
                thread.path(),
                &[
                    ("lastMessageAt", StoreTime::from_millis(4_500).into()),
                    ("lastMessageText", "from the app".into()),
                    ("lastMessageDirection", "outbound".into()),
                    ("photoUrl", "p".into()),
                ],
            ),
            Stored::Queued(i) => {
                let message = MessageId::parse(outboxes()[*i].as_str()).unwrap();
                write(
                    DocPath::new(&thread.messages(), message.as_str()).unwrap(),
                    &[
                        ("direction", "outbound".into()),
                        ("body", "from the app".into()),
                        ("status", "queued".into()),
                        ("tsClient", "1970-01-01T00:00:04.250Z".into()),
                        ("clientMessageId", "c".into()),
                    ],
                );
            }
        }
    }
    // The claim comes before anything that names the message's WhatsApp id.
    for outbox in outboxes() {
        let message = MessageId::parse(outbox.as_str()).unwrap();
        let alias = Alias { thread: thread.clone(), message };
        store.commit(NOW, &[alias.record(&account(), &outbox)]).unwrap();
    }
    store
}

/// What a store holds, without what may differ.
fn content(store: &SimStore) -> BTreeMap<String, Fields> {
    let mut all = BTreeMap::new();
    for doc in store.documents() {
        let mut fields = doc.fields.clone();
        fields.retain(|name, _| !["createdAt", "syncedAt", "updatedAt"].contains(&name.as_str()));
        let text = |name: &str| doc.str(name).unwrap_or_default().to_owned();
        let name = if doc.path.collection().name() == "messages" {
            let sender = if text("clientJid") == GROUP { text("senderJid") } else { String::new() };
            format!(
                "{} {} {} {sender}",
                doc.path.collection(),
                doc.str("waMessageId").unwrap_or(doc.path.id()),
                text("direction"),
            )
        } else {
            doc.path.to_string()
        };
        assert!(all.insert(name.clone(), fields).is_none(), "two documents are {name}");
    }
    all
}

/// Where ingest looks.
fn place() -> impl Strategy<Value = DocPath> {
    let jid = any_of(&[ANA, ANAS_LID, BOB, BOBS_LID, SOMEBODYS_LID, GROUP]);
    let id = any_of(&["M1", "M2", "0000", "1111"]);
    let wa_ids = outboxes().map(|outbox| outbound_wa_id(&outbox)).to_vec();
    prop_oneof![
        2 => jid.clone().prop_map(|jid| ThreadId::of_chat(&account(), jid).unwrap().path()),
        3 => (jid.clone(), id).prop_map(|(jid, id)| {
            let thread = ThreadId::of_chat(&account(), jid).unwrap();
            DocPath::new(&thread.messages(), id).unwrap()
        }),
        1 => jid.prop_map(|jid| {
            DocPath::new(&CollectionPath::root("contacts"), &format!("acc__{jid}")).unwrap()
        }),
        1 => select(wa_ids).prop_map(|id| Alias::path(&account(), &id).unwrap()),
    ]
}

/// Any values under the names that ingest reads, and one more.
fn fields() -> impl Strategy<Value = Fields> {
    let names: &'static [_] = &[
        "accountId",
        "archived",
        "atMostOnce",
        "body",
        "canonicalThreadId",
        "clientJid",
        "deliveredAt",
        "direction",
        "displayName",
        "editedAt",
        "foreign",
        "ingest",
        "key",
        "lastMessageAt",
        "lastMessageAtMs",
        "lastMessageDirection",
        "lastMessagePreview",
        "lastMessageSenderName",
        "lastMessageText",
        "media",
        "messageId",
        "messageType",
        "name",
        "phone",
        "placeholder",
        "reactions",
        "redirectTo",
        "revokedAt",
        "senderId",
        "senderJid",
        "senderName",
        "status",
        "syncSource",
        "threadId",
        "tsClient",
        "waMessageId",
    ];
    let name = any_of(names).prop_map(SmolStr::new);
    btree_map(name, value(), 0..12).prop_map(Fields::from_iter)
}

fn value() -> impl Strategy<Value = Value> {
    let words: &'static [_] = &[
        "",
        "~",
        "M1",
        "me",
        "inbound",
        "outbound",
        "missing",
        "undecryptable",
        "read",
        "text",
        "realtime",
        "2027-01-15T08:00:00.250Z",
        "2027-13-99T99:99:99",
        "acc__40711111111@s.whatsapp.net",
        "acc__91@lid",
        "acc__[object Object]",
        "other__1@g.us",
        ANA,
        BOBS_LID,
    ];
    let int = || prop_oneof![any::<i64>(), -2..10_i64];
    // The moments that stores can hold
    let micros = || prop_oneof![-62_135_596_800_000_000..253_402_300_800_000_000_i64, -2..10_i64];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        int().prop_map(Value::Int),
        any::<f64>().prop_map(|f| Value::Double(Double(f))),
        micros().prop_map(|n| Value::Timestamp(StoreTime::from_micros(n))),
        (0..10_i64).prop_map(|n| Value::Timestamp(StoreTime::from_secs(n))),
        any_of(words).prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    let own: &'static [_] = &[
        "at",
        "archivedAsOf",
        "fromMe",
        "id",
        "me",
        "mimetype",
        "name",
        "nameAsOf",
        "nameRank",
        "newestAt",
        "newestId",
        "participant",
        "remoteJid",
        "text",
        "textAt",
        "textChanged",
        "textId",
        "thumb",
        "timestamp",
        "type",
        "40711111111@s.whatsapp.net",
    ];
    let list = vec(leaf.clone(), 0..3).prop_map(Value::Array);
    let leaf = prop_oneof![12 => leaf, 1 => list];
    leaf.prop_recursive(2, 16, 6, move |inner| {
        let name = any_of(own).prop_map(SmolStr::new);
        btree_map(name, inner, 0..6).prop_map(Value::map)
    })
}

/// A record with anything for an address, an id, a time.
fn odd_record() -> impl Strategy<Value = Record> {
    let odd = || {
        prop_oneof![
            select(
                &[
                    "",
                    "[object Object]",
                    "undefined",
                    "/",
                    "a/b@g.us",
                    "__x__",
                    ".",
                    "status@broadcast",
                    "@",
                    "40711111111:3@s.whatsapp.net",
                    GROUP,
                    ANA,
                    "M1",
                ][..]
            )
            .prop_map(SmolStr::new),
            ".{0,12}".prop_map(SmolStr::new),
            Just(SmolStr::new("x".repeat(2_000))),
        ]
    };
    let time = || prop_oneof![any::<i64>(), 0..10_i64];
    let key = (odd(), odd(), any::<bool>(), proptest::option::of(odd()));
    let message = (key, time(), time(), odd(), odd(), 0..6_u8).prop_map(
        |((id, remote_jid, from_me, participant), timestamp, at_ms, by, text, event)| {
            let by = Author::Person(by);
            let event = match event {
                0 => MessageEvent::Edit { by, body: text, at_ms },
                1 => MessageEvent::Reaction { by, emoji: text, at_ms },
                2 => MessageEvent::Receipt(Status::Read),
                3 => MessageEvent::Revoke { by },
                4 => MessageEvent::Undecryptable { sender_name: Some(text) },
                _ => MessageEvent::Content(Content { body: text, ..Content::default() }),
            };
            let key = Key { id, remote_jid, from_me, participant };
            Record::Message(Incoming { key, timestamp, source: SyncSource::Realtime, event })
        },
    );
    let chat = (odd(), odd(), time(), time()).prop_map(|(jid, name, at, as_of)| {
        let last_message_at = Some(at);
        Record::Chat(Chat { jid, name: Some(name), last_message_at, archived: None, as_of })
    });
    let contact = (odd(), odd(), time()).prop_map(|(jid, name, as_of)| {
        Record::Contact(Contact { jid, name: Some(name), as_of, ..Contact::default() })
    });
    prop_oneof![4 => message, 1 => chat, 1 => contact]
}
