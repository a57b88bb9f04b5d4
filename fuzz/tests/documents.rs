//! Documents as nobody should have written them, in every place that the core reads: it never
//! panics, never runs in circles, and leaves alone what is not its own.

use std::sync::Arc;

use backfill_core::alias::Alias;
use backfill_core::coverage::Coverage;
use backfill_core::doc::{DocPath, Document, Fields, Precondition, Value, Version, Write};
use backfill_core::incoming::{Content, Incoming, Key, MessageEvent, Record, SyncSource};
use backfill_core::ingest::{Batch, Step};
use backfill_core::io::{Command, CommandId, Input};
use backfill_core::jid::Twins;
use backfill_core::time::StoreTime;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use smol_str::SmolStr;

use crate::cases;
use crate::instance::{NOW, Rig, account, thread, value};

/// Every name that the core looks for in some document, and some that it does not.
const NAMES: [&str; 72] = [
    "accountId",
    "acquiredAt",
    "appliedGap",
    "archived",
    "asked",
    "askedAt",
    "askedTry",
    "attempt",
    "attemptCount",
    "autoBackfillLeaseAcquiredAt",
    "autoBackfillLeaseHolder",
    "autoBackfillLeaseUntil",
    "beat",
    "body",
    "boot",
    "claimedBy",
    "clientJid",
    "clientMessageId",
    "connectedBoot",
    "connectedSince",
    "connectionEpoch",
    "deliveredAt",
    "direction",
    "disconnectedSince",
    "disconnectedSuspect",
    "editedAt",
    "epoch",
    "gapSeq",
    "gaps",
    "gatewayHealthy",
    "holderInstanceId",
    "ingest",
    "instanceId",
    "isLid",
    "key",
    "lastAutoBackfillAt",
    "lastAutoBackfillAttemptAt",
    "lastAutoBackfillStatus",
    "lastAutoBackfillSuccessAt",
    "lastBeatAt",
    "lastMessageAt",
    "lastMessageAtMs",
    "lastMessageText",
    "leaseUntil",
    "live",
    "media",
    "messageId",
    "messageType",
    "mode",
    "nextAttemptAt",
    "open",
    "owner",
    "phoneE164",
    "placeholder",
    "reactions",
    "recentSyncLeaseHolder",
    "recentSyncLeaseUntil",
    "redirectTo",
    "revokedAt",
    "senderJid",
    "since",
    "spoolCursor",
    "state",
    "status",
    "stretches",
    "surveyed",
    "threadGaps",
    "threadId",
    "toJid",
    "tsClient",
    "ttlMs",
    "waMessageId",
];

/// Words that mean something somewhere.
const WORDS: [&str; 14] = [
    "active",
    "connected",
    "connecting",
    "dead",
    "deleted",
    "disconnected",
    "inbound",
    "missing",
    "needs_qr",
    "outbound",
    "processing",
    "queued",
    "sent",
    "undecryptable",
];

fn fields() -> impl Strategy<Value = Fields> {
    let sensible = prop_oneof![
        select(&WORDS).prop_map(Value::from),
        (0_i64..5).prop_map(Value::Int),
        (-100_000_i64..100_000).prop_map(|s| Value::from(StoreTime::from_secs(NOW.as_secs() + s))),
        any::<bool>().prop_map(Value::Bool),
        Just(Value::from(account().text())),
        Just(Value::from(thread(1).text())),
    ];
    let value = prop_oneof![2 => sensible, 1 => value()];
    vec((select(&NAMES), value), 0..14)
        .prop_map(|fields| fields.into_iter().map(|(k, v)| (SmolStr::new_static(k), v)).collect())
}

/// The places that the core reads.
fn places() -> Vec<DocPath> {
    let account = account();
    let thread = thread(1);
    let coverage = DocPath::new(&account.coverage(), thread.as_str());
    let texts = [
        "coordination/lock".to_owned(),
        "wa_metrics/longrun/locks/wa_connection".into(),
        "instances/0123456789abcdef0123".into(),
        "instances/somebody".into(),
        "outbox/one".into(),
        "outbox/two".into(),
        format!("threads/{}/messages/{WA_ID}", thread.as_str()),
        format!("threads/{}/messages/other", thread.as_str()),
        format!("accounts/{}/aliases/{WA_ID}", account.as_str()),
    ];
    let mut places = vec![
        account.path(),
        account.connection_path(),
        account.auto_backfill_path(),
        account.recent_sync_path(),
        account.sync_path(),
        coverage.unwrap(),
        thread.path(),
    ];
    places.extend(texts.into_iter().map(|text| DocPath::parse(text).unwrap()));
    places
}

const WA_ID: &str = "3EB0BA7816BF8F01CFEA41";

fn document(path: DocPath, fields: Fields) -> Document {
    Document { path, fields, version: Version(1), update_time: NOW }
}

proptest! {
    /// A recording gives back the documents that were written down in it.
    #[test]
    fn what_is_written_down_reads_back_the_same(
        fields in vec(("[a-z]{1,6}", value()), 1..5),
        version in any::<i64>(),
        us in any::<i64>(),
    ) {
        let document = Document {
            path: account().path(),
            fields: fields.into_iter().map(|(name, value)| (name.into(), value)).collect(),
            version: Version(version),
            update_time: StoreTime::from_micros(us),
        };
        let written = serde_json::to_string(&document).unwrap();
        prop_assert_eq!(serde_json::from_str::<Document>(&written).unwrap(), document);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(128), ..ProptestConfig::default() })]

    #[test]
    fn an_instance_copes_with_any_documents(
        shared in any::<bool>(),
        written in vec((any::<prop::sample::Index>(), fields()), 0..12),
        manual in any::<bool>(),
    ) {
        let places = places();
        let mut rig = Rig::new(shared, 0);
        let mut foreign = Vec::new();
        for (at, mut fields) in written {
            let path = places[at.index(places.len())].clone();
            fields.insert("foreign".into(), Value::from("kept"));
            let changes = fields.into_iter().filter_map(|(name, value)| {
                let name = backfill_core::doc::FieldPath::parse(&name)?;
                Some((name, value.into()))
            });
            let write = Write::merge(path.clone(), Precondition::Any, changes.collect());
            // What a store refuses no document says.
            if rig.store.commit(NOW, &[write]).is_ok() {
                foreign.push(path);
            }
        }
        for round in 0..40 {
            // Somebody who wants as much as this without time passing runs in circles.
            let asked = rig.flow(400);
            prop_assert!(asked < 400, "round {round} has no end");
            if manual && round == 20 {
                rig.give(Input::Command(CommandId(1), Command::Backfill(account())));
            }
            rig.wait(if round % 4 == 3 { 45_000 } else { 2_000 });
        }
        for path in foreign {
            let kept = rig.store.document(&path).and_then(|doc| doc.str("foreign"));
            prop_assert_eq!(kept, Some("kept"), "{:?}", path);
        }
    }

    #[test]
    fn ingest_copes_with_any_documents(
        stored in vec(fields(), 8),
        from_me in any::<bool>(),
        timestamp in prop_oneof![Just(i64::MIN), Just(i64::MAX), Just(-1), 0..4_000_000_000_i64],
        event in 0..3,
    ) {
        let event = match event {
            0 => MessageEvent::Content(Content { body: "text".into(), ..Content::default() }),
            1 => MessageEvent::Undecryptable { sender_name: None },
            _ => MessageEvent::Receipt(backfill_core::incoming::Status::Read),
        };
        let jid = thread(1).jid(&account()).unwrap().into();
        let key = Key { id: WA_ID.into(), remote_jid: jid, from_me, participant: None };
        let record = Incoming { key, timestamp, source: SyncSource::Realtime, event };
        let records = vec![Record::Message(record)];
        let mut batch = Batch::new(&account(), records, NOW, &Arc::new(Twins::default()));
        let mut stored = stored.into_iter().cycle();
        for _ in 0..50 {
            match batch.step() {
                Step::Done => return Ok(()),
                Step::Commit(_) => batch.on_committed(),
                Step::Read(paths) => {
                    let docs: Vec<_> = paths
                        .into_iter()
                        .map(|path| Some(Arc::new(document(path, stored.next()?))))
                        .collect();
                    batch.on_docs(&docs);
                }
            }
        }
        prop_assert!(false, "a batch has no end");
    }

    #[test]
    fn coverage_and_aliases_are_read_from_anything(fields in fields()) {
        let (coverage, beat) = Coverage::parse(&fields);
        // What was read is written, and reads the same again.
        let written = coverage.to_fields(beat);
        let mut again = Fields::new();
        for (name, op) in written {
            if let backfill_core::doc::FieldOp::Set(value) = op {
                again.insert(name.as_str().into(), value);
            }
        }
        prop_assert_eq!(Coverage::parse(&again), (coverage, beat));
        let path = Alias::path(&account(), WA_ID).unwrap();
        if let Some(alias) = Alias::parse(&account(), &document(path, fields)) {
            prop_assert!(alias.thread.jid(&account()).is_some());
        }
    }
}
