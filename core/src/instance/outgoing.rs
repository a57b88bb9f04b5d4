//! Which messages wait to be sent.

use super::Instance;
use crate::doc::Cursor;
use crate::host::{Route, Timer};
use crate::id::AccountId;
use crate::io::Answer;
use crate::outbox;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct OutboxPoll {
    pub(super) under_way: bool,
    pub(super) again: bool,
    pub(super) pages: u32,
    /// Where the next one goes on, if the last did not come to the end
    pub(super) after: Option<Cursor>,
}

impl Instance {
    pub(super) fn poll_outbox(&mut self) {
        let wait = self.host.about(self.host.policy.outbox.poll);
        self.host.in_ms(Timer::OutboxPoll, wait);
        if self.connected.is_empty() {
            return;
        }
        if self.outbox.under_way {
            self.outbox.again = true;
            return;
        }
        self.outbox.under_way = true;
        self.outbox.pages = 0;
        let after = self.outbox.after.take();
        self.read_outbox(after);
    }

    fn read_outbox(&mut self, after: Option<Cursor>) {
        self.outbox.pages += 1;
        let query = outbox::queued(self.host.store_now() + outbox::CLOCK_LAG, after);
        self.host.query(Route::OutboxPoll, query);
    }

    pub(super) fn on_queued(&mut self, answer: Answer) {
        let after = match &answer {
            Answer::Found { docs, .. } => outbox::after_queued(docs),
            _ => None,
        };
        if after.is_some() && self.outbox.pages < outbox::PAGES_PER_POLL {
            self.read_outbox(after);
        } else {
            self.outbox.under_way = false;
            self.outbox.after = after;
            if std::mem::take(&mut self.outbox.again) {
                self.poll_outbox();
            }
        }
        self.send_found(answer);
    }

    pub(super) fn on_processing(&mut self, account: AccountId, answer: Answer) {
        if let Answer::Found { docs, .. } = &answer
            && let after @ Some(_) = outbox::after_processing(docs)
            && self.connected.contains_key(&account)
        {
            let query = outbox::processing(&account, after);
            self.host.query(Route::OutboxClaimed(account), query);
        }
        self.send_found(answer);
    }

    fn send_found(&mut self, answer: Answer) {
        let Answer::Found { read_time, docs } = answer else { return };
        for doc in &docs {
            let Some(id) = doc.str("accountId").and_then(|id| AccountId::parse(id).ok()) else {
                continue;
            };
            self.with_tenure(&id, |tenure, host| tenure.on_outbox(host, read_time, doc));
        }
    }
}
