//! Sending: every outbox document leaves under one WhatsApp id, persisted before it is sent.

use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;

use crate::alias::{Alias, outbound_wa_id};
use crate::bug::Bug;
use crate::doc::{
    CollectionPath, Comparison, Cursor, Direction, Document, FieldOp, FieldPath, Precondition,
    Query, Value, Version, Write,
};
use crate::host::{AccountRoute, Host};
use crate::id::{AccountId, MessageId, OutboxId, ThreadId};
use crate::io::{Answer, GatewayCall, Rejection};
use crate::ledger::{Companion, Purpose};
use crate::tenure::{Stage, Tenure};
use crate::time::StoreTime;

/// A message of ours on its way out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sending {
    pub(crate) version: Option<Version>,
    wa_id: SmolStr,
    thread: Option<ThreadId>,
    attempts: u64,
    end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum End {
    /// Every attempt failed, or no attempt can succeed
    Failed,
    /// To be tried again later
    Queued,
    Sent,
}

/// The messages that wait to be sent, of all accounts, from a position on.
pub(crate) fn queued(now: StoreTime, after: Option<Cursor>) -> Query {
    Query { after, ..Query::all(CollectionPath::root("outbox"), POLL_LIMIT) }
        .filter(STATUS, Comparison::Equal, "queued")
        .filter(NEXT_ATTEMPT_AT, Comparison::LessOrEqual, now)
        .order_by(NEXT_ATTEMPT_AT, Direction::Ascending)
        .select(wanted())
}

/// Where to go on after a page of messages that wait, unless it was the last: most of them may be
/// of accounts that are not served here, or nowhere.
pub(crate) fn after_queued(page: &[Arc<Document>]) -> Option<Cursor> {
    let last = page.last().filter(|_| page.len() >= POLL_LIMIT as usize)?;
    let key = last.value(NEXT_ATTEMPT_AT.as_str())?.clone();
    Some(Cursor { keys: vec![key], id: last.path.id().into() })
}

/// The messages that somebody claimed and has not finished, of one account, from a position on.
pub(crate) fn processing(account: &AccountId, after: Option<Cursor>) -> Query {
    Query { after, ..Query::all(CollectionPath::root("outbox"), POLL_LIMIT) }
        .filter(STATUS, Comparison::Equal, "processing")
        .filter(FieldPath::new("accountId"), Comparison::Equal, account.text())
        .select(wanted())
}

/// Where to go on after a page of messages that somebody claimed, unless it was the last.
pub(crate) fn after_processing(page: &[Arc<Document>]) -> Option<Cursor> {
    let last = page.last().filter(|_| page.len() >= POLL_LIMIT as usize)?;
    Some(Cursor { keys: Vec::new(), id: last.path.id().into() })
}

impl Tenure {
    /// A document of the outbox that names this account.
    pub(crate) fn on_outbox(&mut self, host: &mut Host, read_time: StoreTime, doc: &Arc<Document>) {
        let Ok(id) = OutboxId::parse(doc.path.id()) else { return };
        if !self.is_connected() || self.sending.contains_key(&id) {
            return;
        }
        if doc.str("status") == Some("processing") {
            // Claimed under an earlier ownership, so its claimant can do nothing more. A claim
            // that is not ours at all counts until it ends by its own word.
            let claimed_by_us = doc.count("connectionEpoch").is_some();
            let foreign_until = doc.time("leaseUntil");
            if !claimed_by_us && foreign_until.is_some_and(|until| until > read_time) {
                return;
            }
        }
        let attempts = doc.count("attemptCount").unwrap_or(0);
        let wa_id = match doc.str("waMessageId") {
            Some(known) if !host.bug(Bug::FreshIdPerAttempt) => known.into(),
            _ if host.bug(Bug::FreshIdPerAttempt) => {
                smol_str::format_smolstr!("{}{attempts}", outbound_wa_id(&id))
            }
            _ => outbound_wa_id(&id),
        };
        let thread = doc.str("threadId").and_then(|t| ThreadId::parse(t).ok());
        let version = Some(doc.version);
        let sending = Sending { version, wa_id, thread, attempts: attempts + 1, end: None };
        self.sending.insert(id.clone(), sending);
        if host.bug(Bug::SendBeforeClaim) {
            self.on_outbox_claimed(host, &id);
        }
        self.ledger.push(Purpose::OutboxClaim(id));
        self.pump(host);
    }

    pub(crate) fn on_outbox_claimed(&mut self, host: &mut Host, id: &OutboxId) {
        let Some(sending) = self.sending.get_mut(id) else { return };
        if !self.link.is_open() {
            sending.end = Some(End::Queued);
            self.ledger.push(Purpose::OutboxEnd(id.clone()));
            return;
        }
        let call = GatewayCall::Send { outbox: id.clone(), wa_id: sending.wa_id.clone() };
        host.gateway(&self.id, AccountRoute::Send(id.clone()), call, host.deadline);
    }

    pub(crate) fn on_send_answer(&mut self, host: &Host, id: &OutboxId, answer: &Answer) {
        let most = u64::from(host.policy.outbox.max_attempts);
        let Some(sending) = self.sending.get_mut(id) else { return };
        sending.end = Some(match answer {
            Answer::Done => End::Sent,
            Answer::Rejected(Rejection::Invalid | Rejection::Denied) => End::Failed,
            // Under the same id a second sending is the same message.
            _ if sending.attempts >= most => End::Failed,
            _ => End::Queued,
        });
        self.ledger.push(Purpose::OutboxEnd(id.clone()));
    }

    pub(crate) fn outbox_writes(
        &self,
        host: &Host,
        id: &OutboxId,
        purpose: &Purpose,
    ) -> Option<Vec<(Companion, Write)>> {
        let sending = self.sending.get(id)?;
        let claims = matches!(purpose, Purpose::OutboxClaim(_));
        if claims && self.stage == Stage::Leaving {
            return None;
        }
        let mut fields: Vec<(FieldPath, FieldOp)> = vec![
            (FieldPath::new("updatedAt"), FieldOp::ServerTime),
            (FieldPath::new("connectionEpoch"), Value::from(self.epoch.0).into()),
        ];
        let mut writes = Vec::new();
        if claims {
            let claim = host.policy.outbox.claim;
            fields.extend([
                (STATUS, Value::from("processing").into()),
                (FieldPath::new("claimedBy"), Value::from(host.policy.instance.text()).into()),
                (FieldPath::new("leaseUntil"), Value::from(host.store_now() + claim).into()),
                (ATTEMPT_COUNT, Value::from(sending.attempts).into()),
                (WA_MESSAGE_ID, Value::from(sending.wa_id.clone()).into()),
            ]);
            if let Some(thread) = &sending.thread {
                // The message's document has the same id as the outbox document.
                if let Ok(message) = MessageId::parse(id.text()) {
                    let alias = Alias { thread: thread.clone(), message };
                    writes.push((Companion::Alias, alias.record(&self.id, id)));
                }
            }
        } else {
            match sending.end? {
                End::Failed => fields.extend([
                    (STATUS, Value::from("failed").into()),
                    (FieldPath::new("lastError"), Value::from("send_failed").into()),
                    (FieldPath::new("failedAt"), FieldOp::ServerTime),
                    (FieldPath::new("success"), Value::from(false).into()),
                ]),
                End::Queued => {
                    let doublings = u32::try_from(sending.attempts.min(10)).unwrap_or(10) - 1;
                    let wait = host.policy.outbox.retry.saturating_mul(1 << doublings);
                    fields.extend([
                        (STATUS, Value::from("queued").into()),
                        (NEXT_ATTEMPT_AT, Value::from(host.store_now() + wait).into()),
                    ]);
                }
                End::Sent => fields.extend([
                    (STATUS, Value::from("sent").into()),
                    (FieldPath::new("success"), Value::from(true).into()),
                    (FieldPath::new("sentAt"), FieldOp::ServerTime),
                    (
                        FieldPath::new("providerMessageId"),
                        Value::from(sending.wa_id.clone()).into(),
                    ),
                ]),
            }
        }
        let precondition = sending.version.map_or(Precondition::Exists, Precondition::Version);
        let write = Write::merge(id.path(), precondition, fields);
        writes.insert(0, (Companion::Outbox(id.clone()), write));
        Some(writes)
    }
}

fn wanted() -> [FieldPath; 8] {
    [
        FieldPath::new("accountId"),
        ATTEMPT_COUNT,
        FieldPath::new("connectionEpoch"),
        FieldPath::new("leaseUntil"),
        NEXT_ATTEMPT_AT,
        STATUS,
        FieldPath::new("threadId"),
        WA_MESSAGE_ID,
    ]
}

/// A poll reads at most so many pages; the next goes on where it ended.
pub(crate) const PAGES_PER_POLL: u32 = 10;

/// How long a poll must have found nothing new before it is repeated at once.
pub(crate) const HINT_DEBOUNCE: Duration = Duration::from_millis(50);

/// The estimate of the store's time lags behind by up to the clock rate's bound since the last
/// answer. What was queued a moment ago is due all the same.
pub(crate) const CLOCK_LAG: Duration = Duration::from_secs(1);

const ATTEMPT_COUNT: FieldPath = FieldPath::new("attemptCount");
const NEXT_ATTEMPT_AT: FieldPath = FieldPath::new("nextAttemptAt");
const POLL_LIMIT: u32 = 100;
const STATUS: FieldPath = FieldPath::new("status");
const WA_MESSAGE_ID: FieldPath = FieldPath::new("waMessageId");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doc::{DocPath, Value, Version};

    /// A page of so many messages that wait.
    fn page(messages: u32) -> Vec<Arc<Document>> {
        let waits = |n: u32| Document {
            path: DocPath::parse(format!("outbox/{n:03}")).unwrap(),
            fields: [(NEXT_ATTEMPT_AT.as_str().into(), Value::Int(n.into()))].into(),
            version: Version(1),
            update_time: StoreTime::EPOCH,
        };
        (0..messages).map(|n| Arc::new(waits(n))).collect()
    }

    #[test]
    fn a_full_page_is_followed_by_the_next_one_and_another_is_the_last() {
        let last = i64::from(POLL_LIMIT - 1);
        let id = format!("{last:03}");
        let queued_next = Cursor { keys: vec![Value::Int(last)], id: id.as_str().into() };
        let processing_next = Cursor { keys: Vec::new(), id: id.as_str().into() };
        for (messages, full) in [(0, false), (POLL_LIMIT - 1, false), (POLL_LIMIT, true)] {
            let page = page(messages);
            assert_eq!(after_queued(&page), full.then(|| queued_next.clone()));
            assert_eq!(after_processing(&page), full.then(|| processing_next.clone()));
        }
        let account = AccountId::parse("acc").unwrap();
        assert_eq!(queued(StoreTime::EPOCH, Some(queued_next.clone())).after, Some(queued_next));
        assert_eq!(
            processing(&account, Some(processing_next.clone())).after,
            Some(processing_next)
        );
        assert_eq!(queued(StoreTime::EPOCH, None).after, None);
    }
}
