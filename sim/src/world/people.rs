//! People: who set the accounts up, and who sends from the inbox.

use std::time::Duration;

use backfill_core::doc::{DocPath, FieldOp, Precondition, Value, Write};
use backfill_core::id::{AccountId, OutboxId, ThreadId};
use backfill_core::io::Answer;
use backfill_core::time::StoreTime;
use smol_str::{SmolStr, format_smolstr};

use super::gateway::done_or_unavailable;
use super::{Ev, World};
use crate::chance::Chance;
use crate::scenario::AccountPlan;
use crate::store::SimStore;
use crate::whatsapp::WhatsApp;

impl World {
    /// The accounts as somebody has added them.
    pub(super) fn set_up_accounts(&mut self) {
        let accounts: Vec<(u16, bool)> =
            self.scenario.accounts.iter().map(|a| (a.id, a.linked)).collect();
        for (number, linked) in accounts {
            let write = new_account(number, linked);
            self.commit(None, None, false, &[write]).expect("a new world has no accounts yet");
        }
    }

    /// How long until somebody sends from the inbox, if anybody does.
    pub(super) fn next_send(&mut self, account: u16) -> Option<u64> {
        let plan = self.scenario.accounts.iter().find(|a| a.id == account)?;
        if plan.sends == 0 || plan.threads == 0 {
            return None;
        }
        Some(1 + self.people.waiting(24 * 3_600_000 / u64::from(plan.sends)))
    }

    /// The inbox's proxy takes a message: an outbox document, the message as it will be, and the
    /// thread's summary, in one commit.
    pub(super) fn put_in_outbox(&mut self, account: u16) {
        if let Some(wait) = self.next_send(account) {
            self.queue.push(self.now.after(wait), Ev::Outbox(account));
        }
        let now = self.store_clock.store(self.now);
        let Some((number, writes)) = new_outbox(&mut self.people, &self.net, account, now) else {
            return;
        };
        self.commit(None, None, false, &writes)
            .expect("a random id is new, and nothing else can be refused");
        self.checker.inbox_wrote(account, number);
    }

    /// Sends the message of an outbox document.
    pub(super) fn send_message(
        &mut self,
        p: u32,
        account: u16,
        outbox: &OutboxId,
        wa_id: &SmolStr,
    ) -> Answer {
        let doc = self.store.document(&outbox.path());
        let claimed = doc.is_some_and(|doc| doc.str("waMessageId") == Some(wa_id));
        let thread = doc.and_then(|doc| ThreadId::parse(doc.str("threadId")?).ok());
        let Some(thread) = thread else {
            return Answer::Rejected(backfill_core::io::Rejection::Invalid);
        };
        let Some(key) = self.connection_of(p, account) else { return done_or_unavailable(false) };
        let sent = self.net.send(self.now, account, key, &thread, wa_id);
        if sent {
            self.checker.sent(self.now, p, &outbox.text(), wa_id, claimed);
        }
        done_or_unavailable(sent)
    }
}

/// Whether the store knows of a request to an account's phone that was announced a moment ago.
pub(crate) fn is_reserved(store: &SimStore, account: &AccountId, now: StoreTime) -> bool {
    let doc = store.document(&account.sync_path());
    let asked = doc.and_then(|doc| doc.time("askedAt"));
    asked.is_some_and(|asked| now.since(asked) <= RESERVED)
}

/// A request leaves within the send window after its reservation; a little more for the ways.
const RESERVED: Duration = Duration::from_secs(12);

/// An account as somebody has added it.
pub(crate) fn new_account(number: u16, linked: bool) -> Write {
    let phone = format_smolstr!("+4071{number:07}");
    let status = if linked { "disconnected" } else { "connecting" };
    let fields = vec![
        ("name".into(), Value::from(format_smolstr!("Account {number}")).into()),
        ("phoneE164".into(), Value::from(phone).into()),
        ("status".into(), Value::from(status).into()),
        ("qrCode".into(), Value::Null.into()),
        ("createdAt".into(), FieldOp::ServerTime),
        ("updatedAt".into(), FieldOp::ServerTime),
    ];
    Write::merge(AccountPlan::account(number).path(), Precondition::Absent, fields)
}

/// A message that somebody sends from the inbox.
pub(crate) fn new_outbox(
    people: &mut Chance,
    net: &WhatsApp,
    account: u16,
    now: StoreTime,
) -> Option<(u16, [Write; 3])> {
    let number = people.below(u64::from(net.threads(account).max(1))) as u16;
    let thread = net.thread_id(account, number)?;
    let id = AccountPlan::account(account);
    let unique = people.next();
    let request = format_smolstr!("{unique:016x}{:016x}", people.next());
    let body = format_smolstr!("sent {unique:x}");
    let jid = thread.jid(&id).map(SmolStr::new)?;
    let text = |text: &SmolStr| FieldOp::from(Value::from(text.clone()));
    let outbox = Write::merge(
        outbox_path(&request),
        Precondition::Absent,
        vec![
            ("status".into(), Value::from("queued").into()),
            ("attemptCount".into(), Value::Int(0).into()),
            ("nextAttemptAt".into(), now.into()),
            ("toJid".into(), text(&jid)),
            ("body".into(), text(&body)),
            ("payload".into(), Value::map([("text", Value::from(body.clone()))]).into()),
            ("threadId".into(), Value::from(thread.text()).into()),
            ("accountId".into(), Value::from(id.text()).into()),
            ("createdByUid".into(), Value::from("somebody").into()),
            ("clientMessageId".into(), text(&request)),
            ("createdAt".into(), FieldOp::ServerTime),
            ("updatedAt".into(), FieldOp::ServerTime),
        ],
    );
    let ms = now.as_millis();
    let message = Write::merge(
        message_path(&thread, &request),
        Precondition::Absent,
        vec![
            ("accountId".into(), Value::from(id.text()).into()),
            ("clientJid".into(), text(&jid)),
            ("threadId".into(), Value::from(thread.text()).into()),
            ("direction".into(), Value::from("outbound").into()),
            ("body".into(), text(&body)),
            ("status".into(), Value::from("queued").into()),
            ("tsClient".into(), Value::from(iso(ms)).into()),
            ("tsServer".into(), FieldOp::ServerTime),
            ("createdAtMs".into(), Value::Int(ms).into()),
            ("clientMessageId".into(), text(&request)),
        ],
    );
    let summary = Write::merge(
        thread.path(),
        Precondition::Any,
        vec![
            ("accountId".into(), Value::from(id.text()).into()),
            ("clientJid".into(), text(&jid)),
            ("lastMessageAt".into(), FieldOp::ServerTime),
            ("lastMessageAtMs".into(), Value::Int(ms).into()),
            ("lastMessageText".into(), text(&body)),
            ("lastMessagePreview".into(), text(&body)),
            ("lastMessageDirection".into(), Value::from("outbound").into()),
        ],
    );
    Some((number, [outbox, message, summary]))
}

fn outbox_path(id: &str) -> DocPath {
    DocPath::parse(format_smolstr!("outbox/{id}")).expect("hexadecimal digits are a path segment")
}

fn message_path(thread: &ThreadId, id: &str) -> DocPath {
    DocPath::new(&thread.messages(), id).expect("hexadecimal digits are a path segment")
}

/// A moment as text, as the inbox writes it.
fn iso(ms: i64) -> SmolStr {
    let (days, in_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // Civil date from days since the epoch, counted in eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (h, m, s) = (in_day / 3_600_000, in_day / 60_000 % 60, in_day / 1_000 % 60);
    format_smolstr!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:03}Z", in_day % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_dates() {
        assert_eq!(iso(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(iso(1_800_000_000_123), "2027-01-15T08:00:00.123Z");
        assert_eq!(iso(951_782_400_000), "2000-02-29T00:00:00.000Z");
    }
}
