//! One account as WhatsApp and its phone know it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use backfill_core::id::{AccountId, ThreadId};
use backfill_core::jid::{Jid, Twins};
use smol_str::{SmolStr, format_smolstr};

use super::{
    ConnKey, Delivery, Happening, Later, Mail, Message, MessageRef, Out, Stretch, What, WhatsApp,
};
use crate::chance::{Chance, draw, scale};
use crate::clock::{GENESIS_SECOND, Real};
use crate::faults::{FaultPlan, NO_INSTANCE};
use crate::scenario::{AccountPlan, Kind};

#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) plan: AccountPlan,
    pub(super) account: AccountId,
    pub(super) chance: Chance,
    pub(super) threads: Vec<Thread>,
    pub(super) linked: bool,
    /// When it was linked for the first time
    pub(super) linked_since: Option<Real>,
    pub(super) conn: Option<Conn>,
    /// Not acknowledged, oldest first
    pub(super) queue: VecDeque<Mail>,
    /// What the server leaves out of the drain under way, and forgets when that ends
    pub(super) left_out: Vec<Mail>,
    /// What the phone or the server has for the next connection, other than messages
    pub(super) waiting: Vec<Delivery>,
    pub(super) chunks: Vec<Vec<Stretch>>,
    pub(super) sent: BTreeMap<SmolStr, MessageRef>,
    pub(super) happenings: Vec<Happening>,
    pub(super) happened_to: BTreeMap<MessageRef, Vec<u32>>,
    /// Which LIDs are which phone numbers; nobody is told before `plan.twins_from`
    pub(super) twins: Arc<Twins>,
    pub(super) strangers: Arc<Twins>,
}

#[derive(Clone, Debug)]
pub(super) struct Conn {
    pub(super) key: ConnKey,
    /// Nothing overtakes anything on a connection
    pub(super) last: Real,
    pub(super) open: bool,
    pub(super) silent: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Thread {
    pub(super) group: bool,
    pub(super) lid: bool,
    /// Messages older than the world; they are computed, not kept
    pub(super) old: u32,
    pub(super) gap: i64,
    pub(super) live: Vec<Live>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Live {
    pub(super) second: i64,
    pub(super) from_me: bool,
    pub(super) sender: u8,
    pub(super) sent: bool,
}

/// How long the server keeps what was not acknowledged, in seconds.
const KEPT: i64 = 14 * 24 * 3_600;
/// Messages that one delivery of the offline queue brings at most.
const OFFLINE_BATCH: usize = 400;

impl Line {
    pub(super) fn new(seed: u64, plan: &AccountPlan) -> Self {
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

    pub(super) fn next_message(&mut self) -> Option<u64> {
        if self.plan.messages == 0 || self.threads.is_empty() {
            return None;
        }
        Some(1 + self.chance.waiting(24 * 3_600_000 / u64::from(self.plan.messages)))
    }

    /// Somebody writes a message, or does something to one.
    pub(super) fn next_mail(&mut self, now: Real) -> Mail {
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
    pub(super) fn happen(&mut self, now: Real) -> Option<u32> {
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
    pub(super) fn second_of(&self, mail: Mail) -> i64 {
        match mail {
            Mail::Happening(n) => self.happenings[n as usize].at_ms / 1_000,
            Mail::Message(message) | Mail::Unreadable(message) => self.message(message).second,
        }
    }

    /// Somebody writes a message; few conversations have most of them.
    pub(super) fn write(&mut self, now: Real) -> MessageRef {
        let n = self.threads.len() as u64;
        let number = self.chance.below(n).min(self.chance.below(n)) as u16;
        let from_me = self.chance.permille(u64::from(self.plan.own));
        let sender = self.chance.below(4) as u8;
        let thread = &mut self.threads[usize::from(number)];
        let index = thread.len();
        thread.live.push(Live { second: now.second(), from_me, sender, sent: false });
        MessageRef { thread: number, index }
    }

    pub(super) fn message(&self, message: MessageRef) -> Message {
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

    pub(super) fn id_of(&self, m: MessageRef) -> SmolStr {
        format_smolstr!("3EB0{:04X}{:04X}{:08X}", self.plan.id, m.thread, m.index)
    }

    pub(super) fn find(&self, id: &str) -> Option<MessageRef> {
        if let Some(sent) = self.sent.get(id) {
            return Some(*sent);
        }
        let (account, message) = WhatsApp::parse_id(id).filter(|_| id.len() == 20)?;
        let thread = self.threads.get(usize::from(message.thread))?;
        (account == self.plan.id && message.index < thread.len()).then_some(message)
    }

    pub(super) fn thread_id(&self, thread: u16) -> Option<ThreadId> {
        self.thread_called(thread, false)
    }

    pub(super) fn thread_called(&self, thread: u16, lid: bool) -> Option<ThreadId> {
        ThreadId::of_chat(&self.account, &self.jid(thread, lid)?).ok()
    }

    pub(super) fn jid(&self, thread: u16, by_lid: bool) -> Option<SmolStr> {
        let t = self.threads.get(usize::from(thread))?;
        let known = by_lid && t.lid;
        Some(if known { lid(self.plan.id, thread) } else { jid(self.plan.id, thread, t.group) })
    }

    /// When the owner has scanned a code, in milliseconds since the epoch; only while one shows.
    pub(super) fn scanned_at(&self, now: Real, step: u8) -> i64 {
        if step == 0 {
            return i64::MAX;
        }
        let shown = now.second() * 1_000 - i64::from(step) * 20_000;
        shown + i64::try_from(self.plan.scan).unwrap_or(i64::MAX / 2)
    }

    pub(super) fn unlink(&mut self) {
        self.linked = false;
        self.queue.clear();
        self.waiting.clear();
    }

    pub(super) fn link(&mut self, now: Real, out: &mut Vec<(Real, Out)>) {
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

    pub(super) fn log_in(
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

    pub(super) fn deliver(
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
    pub(super) fn push(&mut self, now: Real, delivery: Delivery, out: &mut Vec<(Real, Out)>) {
        let Some(conn) = &mut self.conn else { return };
        if conn.silent {
            return;
        }
        let at = conn.last.max(now.after(5 + self.chance.below(60)));
        conn.last = at;
        out.push((at, Out::Deliver(self.plan.id, conn.key, delivery)));
    }

    pub(super) fn push_or_keep(
        &mut self,
        now: Real,
        delivery: Delivery,
        out: &mut Vec<(Real, Out)>,
    ) {
        if self.conn.as_ref().is_some_and(|conn| conn.open && !conn.silent) {
            self.push(now, delivery, out);
        } else if self.linked {
            self.waiting.push(delivery);
        }
    }
}

impl Thread {
    pub(super) fn len(&self) -> u32 {
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
