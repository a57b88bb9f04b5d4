mod store;

use sha2::{Digest, Sha256};
use store::Store;

use super::group::GROUP_WRITES;
use super::*;
use crate::alias::outbound_wa_id;
use crate::doc::{FieldOp, Precondition, Value};
use crate::id::{OutboxId, ThreadId, hex};
use crate::incoming::{
    Author, Chat, Contact, Content, Incoming, Key, Media, MessageEvent, MessageKind, Status,
    SyncSource,
};
use crate::jid::JidError;

const NOW: StoreTime = StoreTime::from_secs(1_800_000_000);
const PEER: &str = "40712345678@s.whatsapp.net";
const LID: &str = "777@lid";
const GROUP: &str = "123-456@g.us";

#[test]
fn a_message_and_its_thread_are_stored_in_one_commit() {
    let mut store = Store::default();
    let facts = store.ingest(vec![text("M1", 100, "hello")]);
    assert_eq!(store.commits, 1);

    let message = store.message(PEER, "M1");
    assert_eq!(message.str("body"), Some("hello"));
    assert_eq!(message.str("direction"), Some("inbound"));
    assert_eq!(message.str("status"), Some("delivered"));
    assert_eq!(message.str("messageType"), Some("text"));
    assert_eq!(message.str("syncSource"), Some("realtime"));
    assert_eq!(message.str("accountId"), Some("acc"));
    assert_eq!(message.str("clientJid"), Some(PEER));
    assert_eq!(message.str("threadId"), Some(format!("acc__{PEER}").as_str()));
    assert_eq!(message.str("waMessageId"), Some("M1"));
    assert_eq!(message.time("tsClient"), Some(StoreTime::from_secs(100)));
    assert_eq!(message.int("key.timestamp"), Some(100));
    assert_eq!(message.bool("key.fromMe"), Some(false));
    assert_eq!(message.str("key.remoteJid"), Some(PEER));
    assert_eq!(message.str("key.id"), Some("M1"));
    for stamp in ["createdAt", "updatedAt", "syncedAt"] {
        assert!(message.time(stamp).is_some(), "{stamp}");
    }

    let thread = store.thread(PEER);
    assert_eq!(thread.str("lastMessageText"), Some("hello"));
    assert_eq!(thread.str("lastMessagePreview"), Some("hello"));
    assert_eq!(thread.str("lastMessageDirection"), Some("inbound"));
    assert_eq!(thread.str("lastMessageSenderName"), Some("Ana"));
    assert_eq!(thread.time("lastMessageAt"), Some(StoreTime::from_secs(100)));
    assert_eq!(thread.int("lastMessageAtMs"), Some(100_000));
    assert_eq!(thread.str("displayName"), Some("Ana"));
    assert_eq!(thread.str("phoneE164"), Some("+40712345678"));
    assert_eq!(thread.bool("isLid"), Some(false));

    let [facts] = &facts.threads[..] else { panic!("{facts:?}") };
    assert_eq!((facts.new, facts.total, facts.is_new_thread), (1, 1, true));
    assert_eq!(facts.oldest, facts.newest);
    assert_eq!(facts.newest.as_ref().unwrap().second, 100);
}

#[test]
fn what_was_confirmed_before_it_was_stored_is_marked_until_it_comes_the_usual_way() {
    let mut store = Store::default();
    let past = |id| Incoming { source: SyncSource::AtMostOnce, ..text(id, 100, "hello") };
    store.ingest(vec![past("M1"), past("M2")]);
    let history = Incoming { source: SyncSource::HistorySync, ..text("M1", 100, "hello") };
    store.ingest(vec![history, text("M2", 100, "hello")]);
    let mark = |id| store.message(PEER, id).bool("atMostOnce");
    assert_eq!((mark("M1"), mark("M2")), (Some(true), None));
    assert_eq!(store.message(PEER, "M1").str("syncSource"), Some("realtime"));
}

#[test]
fn what_is_stored_already_costs_reads_and_no_write() {
    let mut store = Store::default();
    let records = || {
        let chat = Record::from(chat(PEER, "Ana"));
        vec![text("M1", 100, "hello").into(), text("M2", 101, "you").into(), chat]
    };
    store.ingest(records());
    let (commits, docs) = (store.commits, store.docs.clone());
    let facts = store.ingest(records());
    assert_eq!((store.commits, &store.docs), (commits, &docs));
    let [facts] = &facts.threads[..] else { panic!("{facts:?}") };
    assert_eq!((facts.new, facts.total, facts.is_new_thread), (0, 2, false));
}

#[test]
fn a_bad_record_is_rejected_and_its_neighbours_are_stored() {
    let mut store = Store::default();
    let mut no_chat = text("M1", 100, "a");
    no_chat.key.remote_jid = "[object Object]".into();
    let mut slash = text("M/1", 100, "a");
    slash.key.id = "M/1".into();
    let mut status = text("M3", 100, "a");
    status.key.remote_jid = "status@broadcast".into();
    let mut sender = text("M4", 100, "a");
    sender.key.remote_jid = GROUP.into();
    sender.key.participant = Some("nobody".into());
    let stranger = about(
        "M2",
        110,
        MessageEvent::Edit { by: Author::Me, body: "forged".into(), at_ms: 110_000 },
    );
    let bad = [no_chat, slash, status, sender, stranger];
    let facts = store.ingest(bad.into_iter().chain([text("M2", 100, "good")]).collect());
    assert_eq!(
        facts.rejected.iter().map(|r| r.reason).collect::<Vec<_>>(),
        [
            Rejection::Chat(JidError::NoServer),
            Rejection::Id,
            Rejection::StatusUpdate,
            Rejection::Sender(JidError::NoServer),
            Rejection::Forbidden,
        ]
    );
    assert_eq!(store.message(PEER, "M2").str("body"), Some("good"));
    assert_eq!(store.docs.len(), 2);
}

#[test]
fn old_history_does_not_move_the_summary_back() {
    let mut store = Store::default();
    store.ingest(vec![text("M2", 200, "new")]);
    store.ingest(vec![text("M1", 100, "old"), own("M0", 50, "older")]);
    let thread = store.thread(PEER);
    assert_eq!(thread.str("lastMessageText"), Some("new"));
    assert_eq!(thread.int("lastMessageAtMs"), Some(200_000));
    assert_eq!(thread.str("lastMessageDirection"), Some("inbound"));
}

#[test]
fn an_own_message_moves_time_and_direction_and_keeps_the_inbound_text() {
    let mut store = Store::default();
    store.ingest(vec![text("M1", 100, "question"), own("M2", 200, "answer")]);
    let thread = store.thread(PEER);
    assert_eq!(thread.str("lastMessageText"), Some("question"));
    assert_eq!(thread.str("lastMessageDirection"), Some("outbound"));
    assert_eq!(thread.int("lastMessageAtMs"), Some(200_000));
    assert_eq!(thread.value("lastMessageSenderName"), Some(&Value::Null));
}

#[test]
fn a_text_of_the_proxy_stays_until_the_next_inbound_one() {
    let mut store = Store::default();
    store.ingest(vec![text("M1", 100, "question")]);
    store.write(
        &format!("threads/acc__{PEER}"),
        &[
            ("lastMessageAt", StoreTime::from_millis(200_500).into()),
            ("lastMessageText", "from the app".into()),
            ("lastMessagePreview", "from the app".into()),
            ("lastMessageDirection", "outbound".into()),
        ],
    );
    // An edit of the earlier inbound message, history between, an own message after.
    store.ingest(vec![
        edit("M1", 210, "question?"),
        text("M2", 150, "history"),
        own("M3", 300, "x"),
    ]);
    let thread = store.thread(PEER);
    assert_eq!(thread.str("lastMessageText"), Some("from the app"));
    assert_eq!(thread.int("lastMessageAtMs"), Some(300_000));
    // Inbound after the proxy's text, though before the newest message.
    store.ingest(vec![text("M4", 250, "reply")]);
    let thread = store.thread(PEER);
    assert_eq!(thread.str("lastMessageText"), Some("reply"));
    assert_eq!(thread.str("lastMessagePreview"), Some("reply"));
    assert_eq!(thread.str("lastMessageDirection"), Some("outbound"));
}

#[test]
fn edit_and_revoke_of_the_newest_message_change_the_preview() {
    let mut store = Store::default();
    store.ingest(vec![text("M1", 100, "first"), text("M2", 200, "second")]);
    store.ingest(vec![edit("M2", 210, "second!"), edit("M1", 220, "first!")]);
    assert_eq!(store.thread(PEER).str("lastMessageText"), Some("second!"));
    assert_eq!(store.message(PEER, "M1").str("body"), Some("first!"));
    store.ingest(vec![revoke("M2", 300)]);
    assert_eq!(store.thread(PEER).str("lastMessageText"), Some(""));
    let message = store.message(PEER, "M2");
    assert_eq!((message.str("body"), message.bool("revoked")), (Some(""), Some(true)));
    store.ingest(vec![text("M2", 200, "second"), edit("M2", 400, "again")]);
    assert_eq!(store.message(PEER, "M2").str("body"), Some(""));
    assert_eq!(store.thread(PEER).str("lastMessageText"), Some(""));
}

#[test]
fn reports_before_their_message_wait_unseen() {
    let mut store = Store::default();
    let love = reaction("M1", 150, "love", Author::Me);
    store.ingest(vec![love, about("M1", 160, MessageEvent::Receipt(Status::Read))]);
    let stub = store.message(PEER, "M1");
    assert_eq!(stub.value("tsClient"), None);
    assert_eq!((stub.value("tsClient"), stub.value("syncedAt")), (None, None));
    assert_eq!(stub.str("placeholder"), Some("missing"));
    assert!(!store.docs.contains_key(format!("threads/acc__{PEER}").as_str()));
    let facts = store.ingest(vec![text("M1", 100, "hello")]);
    assert_eq!(facts.threads[0].new, 1);
    let message = store.message(PEER, "M1");
    assert_eq!(message.time("tsClient"), Some(StoreTime::from_secs(100)));
    assert_eq!(message.value("placeholder"), None);
    assert_eq!(message.str("status"), Some("read"));
    let reactions = message.value("reactions").and_then(Value::as_map).unwrap();
    let mine = reactions["me"].as_map().unwrap();
    assert_eq!(mine["text"].as_str(), Some("love"));
}

#[test]
fn an_edit_before_its_message_is_shown_at_once() {
    let mut store = Store::default();
    store.ingest(vec![edit("M1", 150, "better")]);
    let stub = store.message(PEER, "M1");
    assert_eq!(stub.time("tsClient"), Some(StoreTime::from_secs(150)));
    assert_eq!((stub.str("body"), stub.str("messageType")), (Some("better"), Some("text")));
    let mut picture = text("M1", 100, "worse");
    picture.event = MessageEvent::Content(Content {
        kind: MessageKind::Image,
        body: "worse".into(),
        media: Some(Box::new(Media { mimetype: Some("image/png".into()), ..Media::default() })),
        ..Content::default()
    });
    store.ingest(vec![picture]);
    let message = store.message(PEER, "M1");
    assert_eq!(message.time("tsClient"), Some(StoreTime::from_secs(100)));
    assert_eq!(message.str("body"), Some("better"));
    assert_eq!(message.str("messageType"), Some("image"));
    assert_eq!(message.str("media.mimetype"), Some("image/png"));
    assert_eq!(message.str("media.type"), Some("image"));
    assert_eq!(store.thread(PEER).str("lastMessageText"), Some("better"));
}

#[test]
fn a_status_never_goes_down_and_receipts_keep_their_earliest_time() {
    let mut store = Store::default();
    store.ingest(vec![own("M1", 100, "x")]);
    let receipt = |at, status| {
        let mut receipt = about("M1", at, MessageEvent::Receipt(status));
        receipt.key.from_me = true;
        receipt
    };
    store.ingest(vec![receipt(120, Status::Read), receipt(110, Status::Delivered)]);
    store.ingest(vec![receipt(130, Status::Delivered), receipt(140, Status::Failed)]);
    let message = store.message(PEER, "M1");
    assert_eq!(message.str("status"), Some("read"));
    assert_eq!(message.time("deliveredAt"), Some(StoreTime::from_secs(110)));
    assert_eq!(message.time("readAt"), Some(StoreTime::from_secs(120)));
}

#[test]
fn failed_comes_only_from_queued_and_ends_when_the_message_was_sent_after_all() {
    let mut store = Store::default();
    let outbox = OutboxId::parse("f00d").unwrap();
    store.optimistic(&outbox, PEER);
    let wa_id = outbound_wa_id(&outbox);
    let receipt = |status| {
        let mut receipt = about(&wa_id, 130, MessageEvent::Receipt(status));
        receipt.key.from_me = true;
        vec![receipt]
    };
    store.ingest(receipt(Status::Failed));
    assert_eq!(store.message(PEER, "f00d").str("status"), Some("failed"));
    store.ingest(receipt(Status::Sent));
    store.ingest(receipt(Status::Failed));
    assert_eq!(store.message(PEER, "f00d").str("status"), Some("sent"));
}

#[test]
fn history_and_receipts_find_the_document_that_the_app_made() {
    let mut store = Store::default();
    let outbox = OutboxId::parse("f00d").unwrap();
    store.optimistic(&outbox, PEER);
    let wa_id = outbound_wa_id(&outbox);
    let mut receipt = about(&wa_id, 130, MessageEvent::Receipt(Status::Delivered));
    receipt.key.from_me = true;
    store.ingest(vec![receipt]);
    let message = store.message(PEER, "f00d");
    assert_eq!(message.str("status"), Some("delivered"));
    assert_eq!(message.str("waMessageId"), Some(&*wa_id));
    assert_eq!(message.str("clientMessageId"), Some("c1"));
    // 2027-01-15T08:00:00.250Z, now a timestamp
    let claimed = StoreTime::from_millis(1_800_000_000_250);
    assert_eq!(message.time("tsClient"), Some(claimed));
    store.ingest(vec![own(&wa_id, 1_800_000_000, "from the app")]);
    let message = store.message(PEER, "f00d");
    assert_eq!(message.time("tsClient"), Some(StoreTime::from_secs(1_800_000_000)));
    assert_eq!(message.str("clientMessageId"), Some("c1"));
    assert!(!store.exists(PEER, &wa_id));
}

#[test]
fn another_senders_message_with_the_same_id_gets_its_own_document() {
    let mut store = Store::default();
    let (ana, bob) = ("1@s.whatsapp.net", "2@s.whatsapp.net");
    store.ingest(vec![from(ana, "M1", 100, "a"), from(bob, "M1", 101, "b")]);
    store.ingest(vec![from(bob, "M1", 101, "b"), from(ana, "M1", 100, "a")]);
    assert_eq!(store.message(GROUP, "M1").str("body"), Some("a"));
    // SHA-256 of "2@s.whatsapp.net"
    let other = format!("M1~{}", &hex(&Sha256::digest(bob.as_bytes()))[..8]);
    assert_eq!(store.message(GROUP, &other).str("body"), Some("b"));
    assert_eq!(store.message(GROUP, &other).str("senderJid"), Some(bob));
    // A forged edit or revoke by Bob hits only Bob's message.
    let mut forged = edit("M1", 200, "forged");
    forged.key = from(bob, "M1", 0, "").key;
    forged.event = MessageEvent::Edit {
        by: Author::Person(bob.into()),
        body: "forged".into(),
        at_ms: 200_000,
    };
    store.ingest(vec![forged]);
    assert_eq!(store.message(GROUP, "M1").str("body"), Some("a"));
    assert_eq!(store.message(GROUP, &other).str("body"), Some("forged"));
}

#[test]
fn a_participant_is_one_person_under_both_names() {
    let mut store = Store::default();
    store.ingest(vec![from("9@lid", "M1", 100, "a")]);
    store.ingest(vec![from("1@s.whatsapp.net", "M1", 100, "a")]);
    assert_eq!(store.message(GROUP, "M1").str("senderJid"), Some("1@s.whatsapp.net"));
    assert_eq!(store.docs.len(), 2);
}

#[test]
fn a_chat_called_by_its_lid_is_stored_under_the_phone_number() {
    let mut store = Store::default();
    let twins = twins();
    let mut by_lid = text("M1", 100, "hello");
    by_lid.key.remote_jid = LID.into();
    let facts = store.ingest_with(vec![by_lid.into()], &twins);
    assert_eq!(facts.threads[0].jid.as_str(), PEER);
    assert_eq!(facts.threads[0].twin.as_ref().map(ThreadId::as_str), Some("acc__777@lid"));
    assert_eq!(store.message(PEER, "M1").str("clientJid"), Some(PEER));
    let twin = store.thread(LID);
    let canonical = format!("acc__{PEER}");
    assert_eq!(twin.str("redirectTo"), Some(canonical.as_str()));
    assert_eq!(twin.str("canonicalThreadId"), Some(canonical.as_str()));
    assert_eq!(twin.bool("isLid"), Some(true));
    assert_eq!(twin.value("lastMessageAt"), None);
    assert!(!store.exists(LID, "M1"));
}

#[test]
fn a_mapping_learnt_late_redirects_the_twin_and_moves_what_is_mentioned_again() {
    let mut store = Store::default();
    let by_lid = |id: &str, at, body| {
        let mut message = text(id, at, body);
        message.key.remote_jid = LID.into();
        message
    };
    store.ingest(vec![by_lid("M1", 100, "one"), by_lid("M2", 200, "two")]);
    assert_eq!(store.thread(LID).bool("isLid"), Some(true));
    store.write(&format!("threads/acc__{LID}/messages/M1"), &[("starred", true.into())]);
    // By phone number, from a page; the mapping is known now.
    store.ingest_with(vec![text("M1", 100, "one").into()], &twins());
    assert!(!store.exists(LID, "M1"));
    let moved = store.message(PEER, "M1");
    assert_eq!(moved.bool("starred"), Some(true));
    assert_eq!(moved.str("threadId"), Some(format!("acc__{PEER}").as_str()));
    // The summary is that of both.
    assert_eq!(store.thread(PEER).str("lastMessageText"), Some("two"));
    assert_eq!(store.thread(LID).str("redirectTo"), Some(format!("acc__{PEER}").as_str()));
    // Somebody who does not know the mapping follows the redirect.
    let facts = store.ingest(vec![by_lid("M3", 300, "three")]);
    assert_eq!(facts.threads[0].twin.as_ref().map(ThreadId::as_str), Some("acc__777@lid"));
    assert_eq!(store.message(PEER, "M3").str("body"), Some("three"));
    assert!(!store.exists(LID, "M3"));
}

#[test]
fn a_message_that_becomes_readable_as_it_moves_is_no_placeholder() {
    let broken = || about("M1", 100, MessageEvent::Undecryptable { sender_name: None });
    let mut store = Store::default();
    let mut by_lid = broken();
    by_lid.key.remote_jid = LID.into();
    store.ingest(vec![by_lid]);
    store.ingest_with(vec![text("M1", 100, "one").into()], &twins());
    assert!(!store.exists(LID, "M1"));
    let moved = store.message(PEER, "M1");
    assert_eq!((moved.str("body"), moved.value("placeholder")), (Some("one"), None));
}

#[test]
fn far_future_times_are_clamped_once_and_kept_raw() {
    let mut store = Store::default();
    store.ingest(vec![text("M1", 4_000_000_000, "from 2096")]);
    let clamped = NOW + A_DAY;
    let message = store.message(PEER, "M1");
    assert_eq!(message.time("tsClient"), Some(clamped));
    assert_eq!(message.int("key.timestamp"), Some(4_000_000_000));
    assert_eq!(store.thread(PEER).time("lastMessageAt"), Some(clamped));
    let commits = store.commits;
    store.now = NOW + A_DAY;
    let facts = store.ingest(vec![text("M1", 4_000_000_000, "from 2096")]);
    assert_eq!(store.commits, commits);
    assert_eq!(facts.threads[0].newest, None);
    store.ingest(vec![text("M2", -5, "before time"), text("M3", 0, "no time")]);
    assert_eq!(store.message(PEER, "M2").time("tsClient"), Some(StoreTime::EPOCH));
}

#[test]
fn a_message_beats_its_undecryptable_form_in_any_order() {
    let broken =
        || about("M1", 100, MessageEvent::Undecryptable { sender_name: Some("Ana".into()) });
    let mut one = Store::default();
    let facts = one.ingest(vec![broken()]);
    assert_eq!(facts.threads[0].undecryptable, 1);
    assert_eq!(one.message(PEER, "M1").str("placeholder"), Some("undecryptable"));
    assert_eq!(one.thread(PEER).int("lastMessageAtMs"), Some(100_000));
    let facts = one.ingest(vec![text("M1", 100, "hello")]);
    assert_eq!((facts.threads[0].undecryptable, facts.threads[0].new), (0, 0));
    let mut other = Store::default();
    other.ingest(vec![text("M1", 100, "hello")]);
    other.ingest(vec![broken()]);
    assert_eq!(one.content(), other.content());
}

#[test]
fn the_chat_list_makes_threads_that_show() {
    let mut store = Store::default();
    let mut dated = chat(GROUP, "Team");
    dated.last_message_at = Some(500);
    dated.archived = Some(true);
    let facts =
        store.ingest_with(vec![Record::from(dated), chat(PEER, "Ana Pop").into()], &Arc::default());
    assert_eq!(facts.threads.len(), 2);
    let team = store.thread(GROUP);
    assert_eq!(team.int("lastMessageAtMs"), Some(500_000));
    assert_eq!(team.str("displayName"), Some("Team"));
    assert_eq!(team.bool("archived"), Some(true));
    assert_eq!(team.value("phone"), None);
    assert_eq!(store.thread(PEER).time("lastMessageAt"), Some(StoreTime::EPOCH));
    // A push name does not replace what the phone calls the chat.
    store.ingest(vec![text("M1", 100, "hello")]);
    assert_eq!(store.thread(PEER).str("displayName"), Some("Ana Pop"));
}

#[test]
fn the_latest_word_on_a_contact_counts() {
    let contact = |name: &str, as_of| Contact {
        jid: PEER.into(),
        name: Some(name.into()),
        as_of,
        ..Contact::default()
    };
    let mut store = Store::default();
    store.ingest_with(vec![contact("Ana", 2).into()], &Arc::default());
    store.ingest_with(vec![contact("Old", 1).into()], &Arc::default());
    let path = format!("contacts/acc__{PEER}");
    assert_eq!(store.docs[path.as_str()].str("name"), Some("Ana"));
    store.ingest_with(vec![contact("New", 3).into(), contact("Mid", 2).into()], &Arc::default());
    assert_eq!(store.docs[path.as_str()].str("name"), Some("New"));
}

#[test]
fn fields_of_others_survive() {
    let mut store = Store::default();
    store.ingest(vec![text("M1", 100, "hello")]);
    store.write(&format!("threads/acc__{PEER}"), &[("photoUrl", "p".into())]);
    let media = Value::map([("thumb", Value::from("t"))]);
    let message = format!("threads/acc__{PEER}/messages/M1");
    store.write(&message, &[("starred", true.into()), ("media", media)]);
    let mut picture = text("M1", 100, "hello");
    picture.event = MessageEvent::Content(Content {
        kind: MessageKind::Image,
        body: "hello".into(),
        media: Some(Box::default()),
        ..Content::default()
    });
    store.ingest(vec![picture, text("M2", 200, "more")]);
    assert_eq!(store.thread(PEER).str("photoUrl"), Some("p"));
    let message = store.message(PEER, "M1");
    assert_eq!(message.bool("starred"), Some(true));
    assert_eq!(message.str("media.thumb"), Some("t"));
    assert_eq!(message.str("media.type"), Some("image"));
}

#[test]
fn large_batches_are_split_and_every_conflict_is_repaired() {
    let mut store = Store::default();
    let records: Vec<_> = (0..1_000).map(|i| text(&format!("M{i}"), 100 + i, "x")).collect();
    // Somebody else edits the last message and the thread before every commit.
    let mut batch = store.batch(records.into_iter().map(Record::from).collect());
    let mut conflicts = 0;
    loop {
        match batch.step() {
            Step::Done => break,
            Step::Read(paths) => batch.on_docs(&store.get(&paths)),
            Step::Commit(writes) => {
                assert!(writes.len() <= GROUP_WRITES);
                if conflicts < 3 {
                    let at = 2_000 + conflicts;
                    store.ingest(vec![edit("M999", at, &format!("edit {conflicts}"))]);
                    store.ingest(vec![text("later", 5_000, "later")]);
                }
                if store.commit(writes) {
                    batch.on_committed();
                } else {
                    conflicts += 1;
                    batch.on_conflict();
                }
            }
        }
    }
    assert!(conflicts >= 2, "{conflicts}");
    assert_eq!(store.message(PEER, "M999").str("body"), Some("edit 2"));
    assert_eq!(store.thread(PEER).str("lastMessageText"), Some("later"));
    assert_eq!(batch.facts().threads[0].total, 1_000);
    assert_eq!(store.docs.len(), 1_002);
}

#[test]
fn a_commit_without_answer_is_read_again_and_not_repeated_if_it_was_applied() {
    let mut store = Store::default();
    let mut batch = store.batch(vec![text("M1", 100, "hello").into()]);
    let Step::Read(paths) = batch.step() else { panic!() };
    batch.on_docs(&store.get(&paths));
    let Step::Commit(writes) = batch.step() else { panic!() };
    assert!(store.commit(writes));
    let Step::Read(paths) = batch.step() else { panic!() };
    batch.on_docs(&store.get(&paths));
    assert_eq!(batch.step(), Step::Done);
    assert_eq!(batch.facts().threads[0].new, 1);
}

#[test]
fn a_document_that_the_store_refuses_does_not_hold_up_the_others() {
    let mut store = Store { refuse: Some("bad"), ..Store::default() };
    let facts = store.ingest(vec![text("good", 100, "a"), text("bad", 200, "b")]);
    let reason = Rejection::Store;
    assert_eq!(facts.rejected, [Rejected { record: 1, reason }]);
    assert!(store.exists(PEER, "good"));
    assert_eq!(store.thread(PEER).str("lastMessageText"), Some("a"));
}

#[test]
fn facts_name_the_oldest_and_the_newest_message_that_came() {
    for times in [[100, 200, 300], [300, 100, 200], [200, 300, 100]] {
        let mut store = Store::default();
        let records = times.iter().map(|at| text(&format!("M{at}"), *at, "x"));
        let undated = text("M0", 0, "no time");
        let facts = store.ingest(records.chain([undated]).collect());
        let [facts] = &facts.threads[..] else { panic!("{facts:?}") };
        let ends = [&facts.oldest, &facts.newest].map(|mark| mark.as_ref().unwrap().id.as_str());
        assert_eq!((ends, facts.total), (["M100", "M300"], 4));
    }
}

#[test]
fn a_report_about_an_unseen_message_is_no_fact_about_its_thread() {
    let mut store = Store::default();
    assert_eq!(store.ingest(vec![edit("M1", 150, "better")]).threads, []);
    assert!(!store.docs.contains_key(format!("threads/acc__{PEER}").as_str()));
}

#[test]
fn an_edit_before_its_message_does_not_say_what_kind_it_is() {
    let mut store = Store::default();
    store.ingest(vec![edit("M1", 150, "better")]);
    let mut strange = text("M1", 100, "worse");
    strange.event = MessageEvent::Content(Content::default());
    store.ingest(vec![strange]);
    assert_eq!(store.message(PEER, "M1").str("messageType"), Some("unknown"));
}

#[test]
fn an_edit_may_leave_nothing() {
    let mut store = Store::default();
    store.ingest(vec![text("M1", 100, "one"), text("M2", 200, "two")]);
    store.ingest(vec![edit("M2", 210, "")]);
    assert_eq!(store.thread(PEER).str("lastMessageText"), Some(""));
}

#[test]
fn a_preview_has_a_hundred_characters() {
    let mut store = Store::default();
    for (at, length) in [(100, 99), (200, 100), (300, 101), (400, 5_000)] {
        store.ingest(vec![text(&format!("M{at}"), at, &"ä".repeat(length))]);
        let thread = store.thread(PEER);
        let shown = thread.str("lastMessagePreview").unwrap();
        assert_eq!(shown.chars().count(), length.min(100));
        assert_eq!(thread.str("lastMessageText"), Some(shown));
    }
}

#[test]
fn a_participant_means_nothing_in_a_chat_of_two_and_an_empty_one_nobody() {
    let mut store = Store::default();
    let mut odd = text("M1", 100, "a");
    odd.key.participant = Some("nobody".into());
    let facts = store.ingest(vec![odd, from("", "M2", 100, "b"), from("9@lid", "M3", 100, "c")]);
    assert_eq!(facts.rejected, []);
    assert_eq!(store.message(PEER, "M1").value("key.participant"), None);
    let in_group = |id| {
        let message = store.message(GROUP, id);
        (message.str("senderJid"), message.str("key.participant"))
    };
    assert_eq!(in_group("M2"), (None, None));
    assert_eq!(in_group("M3"), (Some("9@lid"), Some("9@lid")));
    assert_eq!(
        store.thread(GROUP).value("displayName"),
        None,
        "a sender's name is not the group's"
    );
}

#[test]
fn in_a_group_anybody_may_delete_and_only_the_sender_edit() {
    let (ana, bob) = ("1@s.whatsapp.net", "2@s.whatsapp.net");
    let of_ana = |at, event| Incoming { event, ..from(ana, "M1", at, "") };
    let by = |who: &str| Author::Person(who.into());
    let edit = |who, at: i64| {
        of_ana(at, MessageEvent::Edit { by: by(who), body: "new".into(), at_ms: at * 1_000 })
    };
    let mut store = Store::default();
    let facts = store.ingest(vec![from(ana, "M1", 100, "old"), edit(bob, 110)]);
    let forbidden = |record| [Rejected { record, reason: Rejection::Forbidden }];
    assert_eq!(facts.rejected, forbidden(1));
    assert_eq!(store.ingest(vec![edit(ana, 120)]).rejected, []);
    assert_eq!(store.message(GROUP, "M1").str("body"), Some("new"));
    assert_eq!(store.ingest(vec![of_ana(130, MessageEvent::Revoke { by: by(bob) })]).rejected, []);
    assert_eq!(store.message(GROUP, "M1").bool("revoked"), Some(true));
    // In a chat of two nobody deletes what the other one wrote, and names do not matter.
    let revoke = |by| about("M1", 140, MessageEvent::Revoke { by });
    let facts = store.ingest(vec![text("M1", 100, "x"), revoke(Author::Me)]);
    assert_eq!(facts.rejected, forbidden(1));
    assert_eq!(store.ingest(vec![revoke(by(LID))]).rejected, []);
    assert_eq!(store.message(PEER, "M1").bool("revoked"), Some(true));
}

#[test]
fn what_the_app_made_is_found_only_by_mentions_of_its_own_chat() {
    let other = "40799999999@s.whatsapp.net";
    for (chosen, mentioned, found) in [
        (PEER, PEER, true),
        (LID, PEER, true),
        (PEER, LID, true),
        (other, PEER, false),
        (GROUP, PEER, false),
        (PEER, GROUP, false),
    ] {
        let mut store = Store::default();
        let outbox = OutboxId::parse("f00d").unwrap();
        store.optimistic(&outbox, chosen);
        let wa_id = outbound_wa_id(&outbox);
        let mut sent = own(&wa_id, 1_800_000_000, "from the app");
        sent.key.remote_jid = mentioned.into();
        store.ingest(vec![sent]);
        let own = store.exists(mentioned, &wa_id);
        let made = store.message(chosen, "f00d");
        assert_eq!(
            (made.str("waMessageId").is_some(), own),
            (found, !found),
            "{chosen} {mentioned}"
        );
    }
}

#[test]
fn what_the_app_made_stays_in_the_thread_that_the_app_chose() {
    let mut store = Store::default();
    let outbox = OutboxId::parse("f00d").unwrap();
    store.optimistic(&outbox, LID);
    let sent = own(&outbound_wa_id(&outbox), 1_800_000_000, "from the app");
    store.ingest_with(vec![sent.into()], &twins());
    let message = store.message(LID, "f00d");
    assert_eq!(message.str("threadId"), Some(format!("acc__{LID}").as_str()));
    assert_eq!(message.str("clientJid"), Some(LID));
}

#[test]
fn what_the_app_made_does_not_move_into_a_message_that_is_called_like_its_document() {
    let outbox = OutboxId::parse("f00d").unwrap();
    for app_first in [true, false] {
        let mut store = Store::default();
        store.write(&format!("threads/acc__{LID}"), &[("accountId", "acc".into())]);
        store.optimistic(&outbox, LID);
        let sent = own(&outbound_wa_id(&outbox), 1_800_000_000, "from the app");
        let other = own("f00d", 1_800_000_001, "from the phone");
        let records = if app_first { [sent, other] } else { [other, sent] };
        store.ingest_with(records.map(Record::from).into(), &twins());
        assert_eq!(store.message(LID, "f00d").str("body"), Some("from the app"));
        assert_eq!(store.message(PEER, "f00d").str("body"), Some("from the phone"));
    }
}

#[test]
fn a_moving_message_takes_along_what_others_wrote_unless_they_wrote_it_here_too() {
    let mut store = Store::default();
    let mut by_lid = text("M1", 100, "one");
    by_lid.key.remote_jid = LID.into();
    store.ingest(vec![by_lid, text("M1", 100, "one")]);
    let marks = [("starred", true), ("pinned", true)].map(|(name, v)| (name, v.into()));
    store.write(&format!("threads/acc__{LID}/messages/M1"), &marks);
    store.write(&format!("threads/acc__{PEER}/messages/M1"), &[("starred", false.into())]);
    store.ingest_with(vec![text("M1", 100, "one").into()], &twins());
    assert!(!store.exists(LID, "M1"));
    let message = store.message(PEER, "M1");
    assert_eq!((message.bool("starred"), message.bool("pinned")), (Some(false), Some(true)));
}

#[test]
fn a_name_that_nobody_used_gets_no_thread() {
    let mut store = Store::default();
    store.ingest_with(vec![text("M1", 100, "one").into()], &twins());
    assert!(!store.docs.contains_key(format!("threads/acc__{LID}").as_str()));
}

#[test]
fn the_canonical_thread_shows_the_newest_message_of_either_name() {
    for (from_me, direction) in [(true, "outbound"), (false, "inbound")] {
        let mut store = Store::default();
        let (newer, older) = (text("M2", 200, "two"), text("M1", 100, "one"));
        let mut by_lid = newer;
        by_lid.key.remote_jid = LID.into();
        by_lid.key.from_me = from_me;
        let mut by_number = older;
        by_number.key.from_me = !from_me;
        store.ingest(vec![by_lid]);
        store.ingest_with(vec![by_number.into()], &twins());
        let thread = store.thread(PEER);
        assert_eq!(thread.str("lastMessageDirection"), Some(direction));
        assert_eq!(thread.int("lastMessageAtMs"), Some(200_000));
    }
}

#[test]
fn what_the_proxy_wrote_about_a_thread_stands_until_something_newer_comes() {
    let path = format!("threads/acc__{PEER}");
    let mut store = Store::default();
    store.ingest(vec![text("M1", 100, "question")]);
    // With a time: the newest message is its own.
    // Without a time: its text is later than the one it took the place of.
    store.write(&path, &[("lastMessageText", "to come".into())]);
    store.ingest(vec![text("M1", 100, "question")]);
    assert_eq!(store.thread(PEER).str("lastMessageText"), Some("to come"));
    // With a time: the newest message is its own.
    let at = StoreTime::from_millis(200_500);
    store
        .write(&path, &[("lastMessageAt", at.into()), ("lastMessageDirection", "outbound".into())]);
    store.ingest(vec![text("M2", 150, "history")]);
    assert_eq!(store.thread(PEER).str("lastMessageDirection"), Some("outbound"));
    // Without one: its text is later than the one it took the place of.
    store.write(&path, &[("lastMessageText", "from the app".into())]);
    store.ingest(vec![text("M2", 150, "history"), text("M1", 100, "question")]);
    assert_eq!(store.thread(PEER).str("lastMessageText"), Some("from the app"));
    store.ingest(vec![text("M3", 201, "reply")]);
    let thread = store.thread(PEER);
    assert_eq!(thread.str("lastMessageText"), Some("reply"));
    assert_eq!(thread.str("lastMessageDirection"), Some("inbound"));
}

#[test]
fn a_name_that_a_person_chose_beats_push_names_and_earlier_choices() {
    let path = format!("threads/acc__{PEER}");
    let shown = |store: &Store| store.thread(PEER).str("displayName").unwrap().to_owned();
    let list = |name, as_of| Record::from(Chat { as_of, ..chat(PEER, name) });
    let mut store = Store::default();
    store.ingest(vec![text("M1", 100, "a")]);
    store.write(&path, &[("displayName", "Ana from work".into())]);
    store.ingest(vec![text("M2", 200, "b")]);
    assert_eq!(shown(&store), "Ana from work");
    // Nobody knows when it was chosen: whatever the phone says is later.
    store.ingest(vec![list("Ana Pop", 10)]);
    assert_eq!(shown(&store), "Ana Pop");
    // Whoever changes that knew it.
    store.write(&path, &[("displayName", "Ana P.".into())]);
    store.ingest(vec![list("Ana Pop", 10)]);
    assert_eq!(shown(&store), "Ana P.");
    store.ingest(vec![list("Ana Popescu", 20)]);
    assert_eq!(shown(&store), "Ana Popescu");
}

#[test]
fn a_number_or_an_address_or_nothing_is_a_name_that_any_other_beats() {
    for name in ["", "+40 712.345-678", "(0712) 345 678", "anybody@s.whatsapp.net"] {
        let mut store = Store::default();
        store.write(&format!("threads/acc__{PEER}"), &[("displayName", name.into())]);
        store.ingest(vec![text("M1", 100, "a")]);
        assert_eq!(store.thread(PEER).str("displayName"), Some("Ana"), "{name}");
    }
    let mut store = Store::default();
    store.write(&format!("threads/acc__{PEER}"), &[("displayName", "Ana 2".into())]);
    store.ingest(vec![text("M1", 100, "a")]);
    assert_eq!(store.thread(PEER).str("displayName"), Some("Ana 2"));
}

#[test]
fn what_was_committed_before_a_conflict_is_not_tried_again() {
    let mut store = Store::default();
    store.ingest(vec![about("M0", 50, MessageEvent::Receipt(Status::Read))]);
    let records = (0..500).map(|i| text(&format!("M{i}"), 100 + i, "x").into());
    let mut batch = store.batch(records.collect());
    let mut tried = Vec::new();
    loop {
        match batch.step() {
            Step::Done => break,
            Step::Read(paths) => batch.on_docs(&store.get(&paths)),
            Step::Commit(writes) => {
                tried.push(writes.len());
                if tried.len() == 2 {
                    store.ingest(vec![edit("M499", 2_000, "edited")]);
                }
                if store.commit(writes) {
                    batch.on_committed();
                } else {
                    batch.on_conflict();
                }
            }
        }
    }
    assert_eq!(tried, [400, 101, 101]);
    assert_eq!(store.message(PEER, "M499").str("body"), Some("edited"));
    let [facts] = &batch.facts().threads[..] else { panic!() };
    assert_eq!((facts.new, facts.total, facts.is_new_thread), (500, 500, true));
}

#[test]
fn what_was_stored_before_a_conflict_does_not_count_as_new() {
    let mut store = Store::default();
    store.ingest(vec![text("M1", 100, "a")]);
    let mut batch = store.batch(vec![text("M1", 100, "a").into(), text("M2", 200, "b").into()]);
    let mut tries = 0;
    loop {
        match batch.step() {
            Step::Done => break,
            Step::Read(paths) => batch.on_docs(&store.get(&paths)),
            Step::Commit(_) if tries == 0 => {
                tries += 1;
                batch.on_conflict();
            }
            Step::Commit(writes) => {
                assert!(store.commit(writes));
                batch.on_committed();
            }
        }
    }
    let [facts] = &batch.facts().threads[..] else { panic!() };
    assert_eq!((facts.new, facts.total, facts.is_new_thread), (1, 2, false));
}

#[test]
fn a_stamp_alone_is_no_reason_to_write() {
    let mut store = Store::default();
    store.ingest(vec![text("M1", 100, "hello")]);
    let path = store.message(PEER, "M1").path.clone();
    let unstamped =
        vec![("createdAt".into(), FieldOp::Remove), ("syncedAt".into(), FieldOp::Remove)];
    assert!(store.commit(vec![Write::merge(path, Precondition::Any, unstamped)]));
    let commits = store.commits;
    store.ingest(vec![text("M1", 100, "hello")]);
    assert_eq!(store.commits, commits, "older software stamped otherwise");
}

#[test]
fn a_key_that_is_no_key_is_not_stored() {
    let media = |bytes: usize| Media { media_key: Some(vec![0; bytes].into()), ..Media::default() };
    for (bytes, stored) in [(1_024, true), (1_025, false)] {
        assert_eq!(media(bytes).fields(MessageKind::Image).contains_key("mediaKey"), stored);
    }
}

#[test]
fn what_others_put_into_a_key_survives() {
    let mut store = Store::default();
    store.ingest(vec![text("M1", 100, "a")]);
    let message = format!("threads/acc__{PEER}/messages/M1");
    let key = Value::map([("deviceId", Value::Int(3)), ("timestamp", Value::Int(100))]);
    store.write(&message, &[("key", key)]);
    store.ingest(vec![reaction("M1", 150, "love", Author::Me)]);
    let message = store.message(PEER, "M1");
    assert_eq!((message.int("key.deviceId"), message.str("key.id")), (Some(3), Some("M1")));
}

fn account() -> AccountId {
    AccountId::parse("acc").unwrap()
}

fn twins() -> Arc<Twins> {
    let mut twins = Twins::default();
    twins.link(Jid::parse(LID).unwrap(), Jid::parse(PEER).unwrap());
    Arc::new(twins)
}

fn about(id: &str, at: i64, event: MessageEvent) -> Incoming {
    Incoming {
        key: Key { id: id.into(), remote_jid: PEER.into(), from_me: false, participant: None },
        timestamp: at,
        source: SyncSource::Realtime,
        event,
    }
}

fn text(id: &str, at: i64, body: &str) -> Incoming {
    let content = Content {
        kind: MessageKind::Text,
        body: body.into(),
        sender_name: Some("Ana".into()),
        ..Content::default()
    };
    about(id, at, MessageEvent::Content(content))
}

fn own(id: &str, at: i64, body: &str) -> Incoming {
    let mut message = text(id, at, body);
    message.key.from_me = true;
    message
}

fn from(sender: &str, id: &str, at: i64, body: &str) -> Incoming {
    let mut message = text(id, at, body);
    message.key.remote_jid = GROUP.into();
    message.key.participant = Some(sender.into());
    message
}

fn edit(id: &str, at: i64, body: &str) -> Incoming {
    let by = Author::Person(PEER.into());
    about(id, at, MessageEvent::Edit { by, body: body.into(), at_ms: at * 1_000 })
}

fn revoke(id: &str, at: i64) -> Incoming {
    about(id, at, MessageEvent::Revoke { by: Author::Person(PEER.into()) })
}

fn reaction(id: &str, at: i64, emoji: &str, by: Author) -> Incoming {
    about(id, at, MessageEvent::Reaction { by, emoji: emoji.into(), at_ms: at * 1_000 })
}

fn chat(jid: &str, name: &str) -> Chat {
    Chat { jid: jid.into(), name: Some(name.into()), as_of: 10, ..Chat::default() }
}
