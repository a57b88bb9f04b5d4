//! What is stored and what arrived, put together, and the writes that make the difference.

use std::collections::BTreeMap;

use smol_str::SmolStr;

use super::Batch;
use super::facts::ThreadFacts;
use super::group::Unit;
use super::item::What;
use super::known::Missing;
use super::place::{Slot, Thread};
use crate::contact::Names;
use crate::doc::{DocPath, Document, FieldOp, FieldPath, Fields, Write};
use crate::jid::Jid;
use crate::message::{Message, Place, Seen};
use crate::thread::{Summary, ThreadPlace, redirect};
use crate::time::StoreTime;

/// What becomes of one thread.
struct Tally {
    summary: Summary,
    facts: ThreadFacts,
    /// Whether anything went into the summary
    counted: bool,
}

impl Batch {
    /// Puts together what is stored and what arrived, and what has to be written for it.
    pub(super) fn units(&mut self, missing: &mut Missing) -> Vec<Unit> {
        let account = self.account.text();
        let mut units = Vec::with_capacity(self.slots.len() + 2);
        let mut tallies: Vec<Tally> = self.threads.iter().map(|t| self.stored_tally(t)).collect();
        for slot in self.slots.iter().filter(|slot| !self.refused.contains(&slot.path)) {
            units.extend(self.message_unit(&account, slot, &mut tallies[slot.thread], missing));
        }
        for item in &self.items {
            if let What::Chat { thread, chat } = &item.what {
                let tally = &mut tallies[self.threads[*thread].leads_to.unwrap_or(*thread)];
                tally.summary.list(chat, self.believable);
                tally.counted = true;
            }
        }
        for (thread, tally) in self.threads.iter().zip(&tallies) {
            units.extend(self.thread_unit(&account, thread, tally, missing));
        }
        units.extend(self.contact_units(missing));

        self.facts =
            tallies.into_iter().filter(|tally| tally.counted).map(|tally| tally.facts).collect();
        units
    }

    /// What is stored of a thread, and of its twin.
    fn stored_tally(&self, thread: &Thread) -> Tally {
        let doc = self.known.held(&thread.path);
        let mut summary =
            doc.map(|doc| Summary::stored(&doc.fields, self.believable)).unwrap_or_default();
        if let Some(twin) = thread.twin
            && let Some(twin) = self.known.held(&self.threads[twin].path)
        {
            summary.join(Summary::stored(&twin.fields, self.believable));
        }
        let facts = ThreadFacts {
            thread: thread.id.clone(),
            twin: thread.twin.map(|twin| self.threads[twin].id.clone()),
            jid: thread.jid.clone(),
            oldest: None,
            newest: None,
            new: 0,
            total: 0,
            undecryptable: 0,
            is_new_thread: doc.is_none() || self.new.contains(&thread.path),
        };
        Tally { summary, facts, counted: false }
    }

    fn message_unit(
        &self,
        account: &SmolStr,
        slot: &Slot,
        tally: &mut Tally,
        missing: &mut Missing,
    ) -> Option<Unit> {
        let thread = &self.threads[slot.thread];
        let doc = self.known.held(&slot.path);
        let moved = slot.moved_from.as_ref().and_then(|path| self.known.held(path));
        let stored = |doc: &Document| Message::stored(&doc.fields, &self.twins, self.believable);
        let mut message = doc.map(stored).unwrap_or_default();
        if let Some(moved) = moved {
            message.join(stored(moved));
        }
        let new = doc.or(moved).is_none()
            || message.seen == Seen::Missing
            || self.new.contains(&slot.path);
        let mut otherwise = StoreTime::from_micros(i64::MAX);
        let (mut arrived, mut summed_up) = (false, false);
        for i in &slot.items {
            let What::Message(item) = &self.items[*i].what else { continue };
            message.join(item.told.clone());
            otherwise = otherwise.min(item.at);
            summed_up |= item.summed_up;
            let Some(mark) = &item.mark else { continue };
            arrived = true;
            if let Some(mark) = mark {
                tally.facts.stretch_to(mark);
            }
        }
        if arrived {
            tally.facts.total += 1;
            tally.facts.new += u32::from(new);
            tally.facts.undecryptable += u32::from(message.seen == Seen::Undecryptable);
        }
        if summed_up && message.sent_at().is_some() {
            tally.summary.count(&thread.jid, &slot.wa_id, &message);
            tally.counted = true;
        }
        let id = slot.elsewhere.as_ref().unwrap_or(&thread.id);
        let chat = match slot.elsewhere.as_ref().and_then(|id| id.jid(&self.account)) {
            Some(chat) => chat.into(),
            None => thread.jid.text(),
        };
        let place = Place { account, thread: &id.text(), chat: &chat, wa_id: &slot.wa_id };
        let before = doc.map(|doc| &doc.fields);
        let mut ops = message.render(before, &place, self.believable, otherwise).finish();
        if let Some(moved) = moved {
            carry_over(&mut ops, before, &moved.fields);
        }
        let write = self.merge(&slot.path, ops, missing);
        let removal = slot.moved_from.as_ref().and_then(|path| self.remove(path, missing));
        (write.is_some() || removal.is_some()).then_some([write, removal])
    }

    fn thread_unit(
        &self,
        account: &SmolStr,
        thread: &Thread,
        tally: &Tally,
        missing: &mut Missing,
    ) -> Option<Unit> {
        let doc = self.known.held(&thread.path);
        let before = doc.map(|doc| &doc.fields);
        let place = ThreadPlace { account, chat: &thread.jid };
        let ops = match thread.leads_to {
            Some(home) if thread.called || doc.is_some() => {
                redirect(before, &place, &self.threads[home].id.text())
            }
            None if tally.counted => tally.summary.render(before, &place),
            _ => return None,
        };
        Some([Some(self.merge(&thread.path, ops, missing)?), None])
    }

    fn contact_units(&self, missing: &mut Missing) -> Vec<Unit> {
        let mut known = BTreeMap::<&DocPath, (&Jid, Names)>::new();
        for item in &self.items {
            if let What::Contact { path, person, names } = &item.what {
                let stored = || {
                    let doc = self.known.held(path);
                    (person, doc.map(|doc| Names::stored(&doc.fields)).unwrap_or_default())
                };
                known.entry(path).or_insert_with(stored).1.join(names.clone());
            }
        }
        let write = |(path, (person, names)): (&DocPath, (&Jid, Names))| {
            let before = self.known.held(path).map(|doc| &doc.fields);
            let ops = names.render(before, &self.account, person);
            self.merge(path, ops, missing).map(|write| [Some(write), None])
        };
        known.into_iter().filter_map(write).collect()
    }

    /// The write that makes these changes to the document as it was read.
    fn merge(
        &self,
        path: &DocPath,
        ops: Vec<(FieldPath, FieldOp)>,
        missing: &mut Missing,
    ) -> Option<Write> {
        if ops.is_empty() || self.refused.contains(path) {
            return None;
        }
        let precondition = self.known.unchanged(path, missing)?;
        Some(Write::merge(path.clone(), precondition, ops))
    }

    /// The write that removes a document as it was read, if it is there.
    fn remove(&self, path: &DocPath, missing: &mut Missing) -> Option<Write> {
        self.known.held(path)?;
        let precondition = self.known.unchanged(path, missing)?;
        Some(Write::delete(path.clone(), precondition))
    }
}

/// Takes what others wrote into a document along to where the message moves. What the message
/// itself has lost since, such as that it cannot be read, stays behind.
fn carry_over(ops: &mut Vec<(FieldPath, FieldOp)>, here: Option<&Fields>, there: &Fields) {
    for (name, value) in there.iter().filter(|(name, _)| !Message::renders(name)) {
        let known = here.is_some_and(|fields| fields.contains_key(name))
            || ops.iter().any(|(field, _)| field.as_str() == name);
        if let Some(field) = FieldPath::parse(name).filter(|f| !known && !f.as_str().contains('.'))
        {
            ops.push((field, FieldOp::Set(value.clone())));
        }
    }
}
