"""Reads what the inbox reads, and queues a message as its proxy does.

usage: reader.py ACCOUNT CONTACT_JID   (the emulator and the project come from the environment)

Knows nothing of the server but the contract of its documents. Says what was read; ends with an
AssertionError at the first value of a wrong type.
"""

import datetime
import hashlib
import sys
import time

from google.cloud import firestore

PATIENCE = 60


def is_a(where, value, *kinds):
    """The value has exactly one of these types: True is no int here."""
    assert type(value) in kinds or (
        datetime.datetime in kinds and isinstance(value, datetime.datetime)
    ), f"{where} is {value!r}, a {type(value).__name__}"


def fields(where, document, **kinds):
    for name, kind in kinds.items():
        assert name in document, f"{where} has no {name}"
        is_a(f"{where}.{name}", document[name], *(kind if type(kind) is tuple else (kind,)))


MOMENT = datetime.datetime
NONE = type(None)


def account(db, account_id):
    doc = db.document(f"accounts/{account_id}").get().to_dict()
    fields(
        "account", doc, name=str, phoneE164=str, status=str, qrCode=NONE, updatedAt=MOMENT,
        createdAt=(str, MOMENT), lastAutoBackfillAt=MOMENT, lastAutoBackfillSuccessAt=MOMENT,
        lastAutoBackfillAttemptAt=MOMENT, lastAutoBackfillStatus=dict, lastBackfillAt=MOMENT,
        lastBackfillResult=dict, lastRecentSyncAt=MOMENT,
        lastRealtimeIngestAt=MOMENT, lastRealtimeMessageAt=MOMENT, lastHistorySyncAt=MOMENT,
        historySyncCount=int, lastHistorySyncResult=dict,
    )
    assert doc["status"] == "connected", doc["status"]
    for lease in ("autoBackfillLeaseUntil", "autoBackfillLeaseHolder", "autoBackfillLeaseAcquiredAt"):
        assert doc.get(lease) is None, f"{lease} of an account without a run is {doc[lease]!r}"
    fields(
        "lastAutoBackfillStatus", doc["lastAutoBackfillStatus"],
        ok=bool, running=bool, threads=int, messages=int, errors=int, durationMs=int,
    )
    fields(
        "lastBackfillResult", doc["lastBackfillResult"],
        threads=int, messages=int, errors=int, threadResults=list,
    )
    # A tick that found no gap leaves no result.
    if "lastRecentSyncResult" in doc:
        fields(
            "lastRecentSyncResult", doc["lastRecentSyncResult"],
            ok=bool, threads=int, messages=int, errors=int, durationMs=int,
        )
    fields(
        "lastHistorySyncResult", doc["lastHistorySyncResult"],
        saved=int, skipped=int, errors=int, total=int, dryRun=bool,
    )


def lock(db):
    doc = db.document("wa_metrics/longrun/locks/wa_connection").get().to_dict()
    fields("lock", doc, holderInstanceId=str, leaseUntil=int)


def threads(db, account_id):
    """The inbox's query."""
    found = (
        db.collection("threads")
        .where(filter=firestore.FieldFilter("accountId", "==", account_id))
        .order_by("lastMessageAt", direction=firestore.Query.DESCENDING)
        .get()
    )
    for thread in found:
        doc = thread.to_dict()
        fields(
            "thread", doc, accountId=str, clientJid=str, isLid=bool, lastMessageAt=MOMENT,
            lastMessageAtMs=int, lastMessageText=str, lastMessagePreview=str,
            lastMessageDirection=str, updatedAt=MOMENT, displayName=str, phoneE164=str,
        )
        assert thread.id == f"{account_id}__{doc['clientJid']}", thread.id
        assert doc["lastMessageDirection"] in ("inbound", "outbound")
        ms = round(doc["lastMessageAt"].timestamp() * 1000)
        assert ms == doc["lastMessageAtMs"], (ms, doc["lastMessageAtMs"])
    return found


def messages(thread):
    """The chat's query."""
    found = thread.reference.collection("messages").order_by("tsClient").get()
    for message in found:
        doc = message.to_dict()
        fields(
            "message", doc, accountId=str, clientJid=str, threadId=str, direction=str, body=str,
            messageType=str, tsClient=MOMENT, createdAt=MOMENT, updatedAt=MOMENT, syncedAt=MOMENT,
            syncSource=str, waMessageId=str, key=dict,
        )
        fields("key", doc["key"], id=str, remoteJid=str, fromMe=bool, timestamp=int)
        assert message.id == doc["waMessageId"] == doc["key"]["id"]
        assert (doc["direction"] == "outbound") == doc["key"]["fromMe"]
        assert doc["messageType"] == "text"
        assert doc["syncSource"] in ("realtime", "history_sync", "backfill", "recent_sync")
    return found


def queue(db, account_id, jid):
    """The proxy's Send: an outbox document, an optimistic message, and the thread moved."""
    thread_id, uid, client_message_id = f"{account_id}__{jid}", "uid", "client-7"
    name = f"{thread_id}|{uid}|{client_message_id}"
    request_id = hashlib.sha256(name.encode()).hexdigest()
    outbox = db.document(f"outbox/{request_id}")
    thread = db.document(f"threads/{thread_id}")
    message = thread.collection("messages").document(request_id)
    now, text = datetime.datetime.now(datetime.timezone.utc), "Good morning from the inbox!"
    batch = db.batch()
    batch.create(outbox, {
        "status": "queued", "attemptCount": 0, "nextAttemptAt": now, "toJid": jid, "body": text,
        "payload": {"text": text}, "threadId": thread_id, "accountId": account_id,
        "createdByUid": uid, "clientMessageId": client_message_id,
        "createdAt": firestore.SERVER_TIMESTAMP, "updatedAt": firestore.SERVER_TIMESTAMP,
    })
    batch.set(message, {
        "direction": "outbound", "status": "queued", "body": text, "messageType": "text",
        "tsClient": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "tsServer": firestore.SERVER_TIMESTAMP, "createdAtMs": int(now.timestamp() * 1000),
        "clientMessageId": client_message_id, "accountId": account_id,
    })
    batch.set(thread, {
        "lastMessageAt": now, "lastMessageAtMs": int(now.timestamp() * 1000),
        "lastMessageText": text, "lastMessagePreview": text, "lastMessageDirection": "outbound",
    }, merge=True)
    batch.commit()
    end = time.monotonic() + PATIENCE
    while (sent := outbox.get().to_dict())["status"] not in ("sent", "failed"):
        assert time.monotonic() < end, f"it is {sent['status']} after {PATIENCE} s"
        time.sleep(0.1)
    fields("outbox", sent, status=str, attemptCount=int, providerMessageId=str, success=bool)
    assert sent["status"] == "sent" and sent["success"] and sent["attemptCount"] == 1, sent
    marked = message.get().to_dict()
    fields("sent message", marked, status=str, tsClient=(str, MOMENT))
    assert marked["status"] in ("sent", "delivered", "read"), marked["status"]


def main(account_id, jid):
    db = firestore.Client()
    account(db, account_id)
    lock(db)
    found = threads(db, account_id)
    read = sum(len(messages(thread)) for thread in found)
    queue(db, account_id, jid)
    print(f"    read {len(found)} threads and {read} messages, and had one sent")


main(*sys.argv[1:])
