//! Per thread: which stretches of history are known to be complete, and where the holes are.
//!
//! A [`Stretch`] claims that every message strictly between the seconds of its ends is stored; at
//! the end seconds themselves, where only the order of arrival tells messages apart, it claims
//! nothing. While the connection is unbroken the newest stretch is *live*: it reaches to now, and
//! nothing is written when it grows. A disconnection that may have lost messages ([`Gap`]) takes
//! claims away; pages and chunks of history add them. Whatever is in doubt is not covered:
//! forgetting costs a request to the phone, inventing costs a message.
//!
//! Seconds are WhatsApp server seconds since the Unix epoch. Messages whose second is not
//! positive, or whose id or sender is empty or absurdly long, cannot bound a stretch and are
//! passed over.

mod mark;
mod record;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;

pub use mark::{Anchor, Mark};

/// A coverage document holds at most this many stretches; the oldest are forgotten first.
pub const MAX_STRETCHES: usize = 64;

/// This many pages in a row that all end in one second exhaust the hole below: a phone that
/// answers in circles must not be asked for ever.
const MAX_LINGERING: u32 = 32;

/// What the phone says about the messages before a page or chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum PageEnd {
    /// There are none
    EndOfHistory,
    /// There are more
    MoreRemains,
    /// Nothing; then there are more unless the page is empty
    Unstated,
}

/// A time in which the account may have lost messages, recorded once for all its threads.
///
/// Both ends include the slack by which clocks and arrival may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gap {
    /// Numbers the account's gaps from 1, in the order in which they were recorded
    pub seq: u64,
    /// The first second in which a message may be missing
    pub from: i64,
    /// The last second in which a message may be missing
    pub to: i64,
}

/// What is wanted of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Goal {
    /// At least this many messages, counted from the newest
    Depth(u32),
    /// No hole among the messages later than this second
    Since(i64),
}

/// A part of a thread that is complete.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stretch {
    /// Its oldest message: the phone is asked for what lies before it
    pub low: Anchor,
    /// How far up it is complete, with a message in it that a page can meet, if one is known. The
    /// live stretch reaches further by itself
    pub high: Mark,
    /// It has at least this many messages; those that arrived live are not counted
    pub messages: u32,
    /// How often the phone was asked with `low` without an answer that led further
    pub tries: u32,
    /// The phone will not be asked with `low` any more
    pub exhausted: bool,
    /// How many pages in a row ended in the second of `low`
    lingering: u32,
}

impl Stretch {
    fn new(low: Anchor, high: Mark, messages: u32) -> Self {
        Self { low, high, messages, tries: 0, exhausted: false, lingering: 0 }
    }

    fn single(message: Anchor, messages: u32) -> Self {
        Self::new(message.clone(), message.into(), messages)
    }

    fn has_end(&self, message: &Anchor) -> bool {
        self.low.is_same(message) || self.high.anchor().is_some_and(|high| high.is_same(message))
    }

    /// Both as one, where one lies within the other or they overlap.
    fn join(mut self, other: Self) -> Self {
        // How many they share is unknown, and in a tie also which of them is older.
        let messages = self.messages.max(other.messages);
        match other.low.second.cmp(&self.low.second) {
            Ordering::Less => self = Self { high: self.high, messages, ..other.clone() },
            Ordering::Equal => {}
            Ordering::Greater => self.messages = messages,
        }
        if other.high.second > self.high.second {
            self.high = other.high;
        }
        self
    }
}

/// Below the lowest stretch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bottom {
    /// The phone has nothing older
    Reached,
    /// Messages later than this second are suspected to be missing there
    Suspected(i64),
    /// Nobody has looked, and nothing is suspected
    #[default]
    Unknown,
}

/// Above the highest stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Tail {
    /// The stretch reaches to now
    Live,
    /// A hole without an anchor: a message later than this second will open a live stretch
    Waiting(i64),
}

/// A part of a thread that may lack messages.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hole {
    /// Messages up to this second are known; `None`: nothing is known below
    pub after: Option<i64>,
    /// The first message above it; `None`: it is the tail, which waits for the next message
    pub anchor: Option<Anchor>,
    /// The phone cannot fill it
    pub exhausted: bool,
}

impl Hole {
    /// Whether it is worth asking the phone.
    pub const fn is_fillable(&self) -> bool {
        self.anchor.is_some() && !self.exhausted
    }
}

/// What is known about the completeness of one thread.
///
/// Every transition accepts any input and says whether something changed that has to be written.
/// Gaps have to be applied before pages and chunks that are younger than they: a gap takes away
/// every claim about its time, wherever it came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Coverage {
    /// Oldest first. Low and high ends both ascend; neighbours overlap by a second at most
    stretches: Vec<Stretch>,
    tail: Tail,
    bottom: Bottom,
    applied_gap: u64,
}

/// Nothing is covered, and the next message opens a live stretch.
impl Default for Coverage {
    fn default() -> Self {
        Self {
            stretches: Vec::new(),
            tail: Tail::Waiting(i64::MIN),
            bottom: Bottom::Unknown,
            applied_gap: 0,
        }
    }
}

impl Coverage {
    /// A thread first seen while connected: everything after its newest known message will arrive
    /// live. Gaps up to number `applied_gap` are taken as applied.
    pub fn starting_at(newest: &Mark, applied_gap: u64) -> Self {
        let mut coverage = Self { applied_gap: storable(applied_gap), ..Self::default() };
        coverage.newer(newest);
        coverage
    }

    /// Messages may have been lost: takes away what was claimed about that time, once per gap.
    /// Gaps come in the order of their numbers; one that was skipped is never applied.
    ///
    /// `newest` is the thread's newest known message. If it is later than the gap, a live stretch
    /// starts there; otherwise the tail is a hole until [`newer`](Self::newer) brings a message.
    pub fn suspect(&mut self, gap: Gap, newest: Option<&Mark>) -> bool {
        let seq = storable(gap.seq);
        if seq <= self.applied_gap {
            return false;
        }
        self.applied_gap = seq;
        let (from, to) = (gap.from.min(gap.to), gap.to);
        let last_known = newest.and_then(Mark::anchor).filter(|m| m.second < from);

        let live = self.live_index();
        for (i, stretch) in self.stretches.iter_mut().enumerate() {
            let is_live = live == Some(i);
            if stretch.low.second > to || (stretch.high.second < from && !is_live) {
                continue;
            }
            if is_live {
                self.tail = Tail::Waiting(to);
            }
            if stretch.low.second >= from {
                stretch.high = stretch.low.clone().into();
                stretch.messages = stretch.messages.min(1);
                continue;
            }
            if stretch.high.second >= from {
                // Nobody knows on which side of the cut the counted messages lie.
                stretch.messages = stretch.messages.min(1);
                stretch.high = Mark::bound(from);
            }
            if let Some(last) = &last_known
                && is_live
                && last.second > stretch.low.second
                && (last.second >= stretch.high.second || stretch.high.id.is_none())
            {
                stretch.high = last.clone().into();
            }
            stretch.high.second = from;
        }
        if let Tail::Waiting(past) = &mut self.tail {
            *past = to.max(*past);
        }
        if self.stretches.first().is_none_or(|lowest| lowest.low.second >= from) {
            match &mut self.bottom {
                Bottom::Reached => {}
                Bottom::Suspected(after) => *after = from.min(*after),
                bottom @ Bottom::Unknown => *bottom = Bottom::Suspected(from),
            }
        }
        self.settle();
        if let Some(newest) = newest {
            self.newer(newest);
        }
        true
    }

    /// A message arrived, live or from the offline queue. Changes nothing while the newest stretch
    /// is live.
    pub fn newer(&mut self, message: &Mark) -> bool {
        let Tail::Waiting(past) = self.tail else { return false };
        let Some(message) = message.anchor() else { return false };
        let opens = message.second > past;
        let len = self.stretches.len();
        match self.stretches.last_mut() {
            Some(top) if message.second < top.high.second || top.has_end(&message) => {
                // The stretch reaches past the gap by itself, so nothing is missing in between.
                if !opens || top.high.second <= past {
                    return false;
                }
            }
            // One message that waits inside the gap is anchor enough for the hole below it.
            Some(top) if !opens && len > 1 && top.low.second == top.high.second => {
                *top = Stretch::single(message, top.messages.min(1));
            }
            top => {
                let counted_before = top.is_some_and(|t| t.high.second >= message.second);
                self.stretches.push(Stretch::single(message, u32::from(!counted_before)));
            }
        }
        if opens {
            self.tail = Tail::Live;
        }
        self.settle();
        true
    }

    /// A page of history arrived: `messages` messages, the last of them `oldest`, which are all
    /// that the thread has from there up to `anchor`.
    ///
    /// Of several oldest messages in one second, `oldest` is the one that the phone gave last.
    pub fn page(
        &mut self,
        anchor: &Anchor,
        oldest: Option<&Mark>,
        messages: u32,
        end: PageEnd,
    ) -> bool {
        if !anchor.is_usable() {
            return false;
        }
        let before = self.clone();
        let is_empty = messages == 0 && oldest.is_none();
        let low = oldest.and_then(Mark::anchor).filter(|low| !low.is_same(anchor));
        if let Some(mut low) = low {
            low.second = low.second.min(anchor.second);
            self.add(&low, &anchor.clone().into(), messages, Some(anchor), end);
        } else if end == PageEnd::EndOfHistory || (is_empty && end == PageEnd::Unstated) {
            self.end_at(anchor);
        }
        *self != before
    }

    /// A block of history arrived, complete within itself: `messages` messages from `low` up to
    /// `high`.
    ///
    /// A message whose time is not believed must not be `high`.
    pub fn chunk(&mut self, low: &Mark, high: &Mark, messages: u32, end: PageEnd) -> bool {
        let Some(low) = low.anchor().filter(|low| low.second <= high.second) else { return false };
        let before = self.clone();
        let high = high.anchor().map_or_else(|| Mark::bound(high.second), Mark::from);
        self.add(&low, &high, messages, None, end);
        *self != before
    }

    /// The phone is being asked for what lies before `anchor`; the `max_tries`th time without an
    /// answer that leads further exhausts the hole there.
    pub fn asked(&mut self, anchor: &Anchor, max_tries: u32) -> bool {
        let Some(stretch) = self.stretches.iter_mut().find(|s| s.low.is_same(anchor)) else {
            return false;
        };
        stretch.tries = stretch.tries.saturating_add(1);
        stretch.exhausted |= stretch.tries >= max_tries;
        true
    }

    /// The phone was not asked with `anchor` after all.
    pub fn unasked(&mut self, anchor: &Anchor) {
        if let Some(stretch) = self.stretches.iter_mut().find(|s| s.low.is_same(anchor)) {
            stretch.tries = stretch.tries.saturating_sub(1);
            stretch.exhausted = false;
        }
    }

    /// Exhausted holes may be tried again.
    pub fn forgive(&mut self) -> bool {
        let mut changed = false;
        for s in &mut self.stretches {
            changed |= s.tries > 0 || s.exhausted || s.lingering > 0;
            *s = Stretch::new(s.low.clone(), s.high.clone(), s.messages);
        }
        changed
    }

    /// The message with which to ask the phone next, if asking can bring the thread nearer to the
    /// goal.
    pub fn next_anchor(&self, goal: Goal) -> Option<Anchor> {
        match goal {
            Goal::Depth(messages) => self.missing_depth(messages).map(|(anchor, _)| anchor.clone()),
            Goal::Since(second) => self.fillable_since(second).next(),
        }
    }

    /// How much asking the phone can still bring: holes for [`Goal::Since`], messages for
    /// [`Goal::Depth`]. Zero exactly when there is no [`next_anchor`](Self::next_anchor).
    pub fn remaining(&self, goal: Goal) -> u32 {
        match goal {
            Goal::Depth(messages) => self.missing_depth(messages).map_or(0, |(_, missing)| missing),
            // At most MAX_STRETCHES
            Goal::Since(second) => {
                u32::try_from(self.fillable_since(second).count()).unwrap_or(u32::MAX)
            }
        }
    }

    /// Whether the goal is proven to be reached, by one stretch without a hole. `false` without a
    /// [`next_anchor`](Self::next_anchor) means that nothing can be done about it.
    pub fn is_complete(&self, goal: Goal) -> bool {
        let whole = self.bottom == Bottom::Reached && self.stretches.len() == 1;
        let top = self.stretches.last();
        match goal {
            Goal::Depth(messages) => whole || top.map_or(0, |top| top.messages) >= messages,
            Goal::Since(second) => {
                self.is_live() && (whole || top.is_some_and(|top| top.low.second <= second))
            }
        }
    }

    /// Every hole that is proven or suspected, newest first. What nobody has looked at, below the
    /// lowest stretch, is none.
    pub fn holes(&self) -> Vec<Hole> {
        let mut holes = Vec::new();
        if !self.is_live() {
            let after = self.stretches.last().map(|top| top.high.second);
            holes.push(Hole { after, anchor: None, exhausted: false });
        }
        for (i, stretch) in self.stretches.iter().enumerate().rev() {
            let after = match (i.checked_sub(1), self.bottom) {
                (Some(below), _) => self.stretches[below].high.second,
                (None, Bottom::Suspected(after)) => after,
                (None, Bottom::Reached | Bottom::Unknown) => continue,
            };
            let after = Some(after.min(stretch.low.second));
            let anchor = Some(stretch.low.clone());
            holes.push(Hole { after, anchor, exhausted: stretch.exhausted });
        }
        holes
    }

    /// Whether all messages of this second are known to be stored.
    pub fn covers(&self, second: i64) -> bool {
        let top = self.live_index();
        self.stretches.iter().enumerate().any(|(i, stretch)| {
            stretch.low.second < second && (second < stretch.high.second || top == Some(i))
        })
    }

    /// The stretches, oldest first.
    pub fn stretches(&self) -> &[Stretch] {
        &self.stretches
    }

    /// Whether the newest stretch reaches to now.
    pub fn is_live(&self) -> bool {
        self.tail == Tail::Live
    }

    /// What is known about the time before the oldest stretch.
    pub const fn bottom(&self) -> Bottom {
        self.bottom
    }

    /// The number of the last gap that was applied.
    pub const fn applied_gap(&self) -> u64 {
        self.applied_gap
    }

    fn live_index(&self) -> Option<usize> {
        if self.is_live() { self.stretches.len().checked_sub(1) } else { None }
    }

    /// Joins a block, complete within itself, to whatever it meets.
    fn add(
        &mut self,
        low: &Anchor,
        high: &Mark,
        messages: u32,
        page_of: Option<&Anchor>,
        end: PageEnd,
    ) {
        let live = self.live_index();
        let top = high.anchor();
        let lowest_before = self.stretches.first().map(|s| s.low.clone());
        // Where the phone has nothing older, all that is younger than the block's end is in it.
        let slack = i64::from(end != PageEnd::EndOfHistory);
        let meets = |i: &usize| {
            let s = &self.stretches[*i];
            let overlaps = (live == Some(*i) || low.second.saturating_add(slack) < s.high.second)
                && s.low.second.saturating_add(1) < high.second;
            overlaps || s.has_end(low) || top.as_ref().is_some_and(|top| s.has_end(top))
        };
        let (first, end_of_joined) = match (0..self.stretches.len()).find(meets) {
            Some(first) => (first, (0..self.stretches.len()).rfind(meets).unwrap_or(first) + 1),
            None => (0, 0),
        };
        let joined = &self.stretches[first..end_of_joined];

        // Messages that a neighbour may have counted already are not counted.
        let is_apart = self.stretches.iter().enumerate().all(|(i, s)| {
            (first..end_of_joined).contains(&i)
                || (s.high.second < low.second && live != Some(i))
                || high.second < s.low.second
        });
        let fresh = if is_apart { messages } else { 0 };

        let union = match joined {
            [] => {
                let is_inside = self.stretches.iter().enumerate().any(|(i, s)| {
                    s.low.second <= low.second && (high.second <= s.high.second || live == Some(i))
                });
                if is_inside {
                    return;
                }
                Stretch::new(low.clone(), high.clone(), fresh)
            }
            [lowest, .., topmost] | [lowest @ topmost] => {
                let asking = page_of.and_then(|a| joined.iter().position(|s| s.low.is_same(a)));
                let is_tie = low.second == lowest.low.second && !low.is_same(&lowest.low);
                let count = |own: bool| {
                    let stretches = joined.iter().enumerate();
                    let counted = stretches.filter(|(i, _)| (asking == Some(*i)) == own);
                    counted.fold(0_u32, |sum, (_, s)| sum.saturating_add(s.messages))
                };
                let mut union = lowest.clone();
                if low.second < lowest.low.second {
                    union = Stretch::new(low.clone(), high.clone(), 0);
                } else if is_tie && asking == Some(0) {
                    let lingering = lowest.lingering.saturating_add(1);
                    union = Stretch::new(low.clone(), high.clone(), 0);
                    union.lingering = lingering;
                    union.exhausted = lingering >= MAX_LINGERING;
                }
                // What is asked for from a lower end lies outside the stretch. Which end of a tie
                // is older is unknown, so that the next page may bring the block's again.
                let fresh = if is_tie && asking != Some(0) { 0 } else { fresh };
                union.messages = count(true).saturating_add(fresh.max(count(false)));
                let is_higher = topmost.high.second < high.second;
                union.high = if is_higher { high } else { &topmost.high }.clone();
                union
            }
        };
        self.stretches.splice(first..end_of_joined, [union]);
        self.finish(low, lowest_before.as_ref(), end);
    }

    /// After a block with this lower end was added: what follows for the bottom.
    fn finish(&mut self, low: &Anchor, lowest_before: Option<&Anchor>, end: PageEnd) {
        self.settle_order();
        if self.stretches.first().map(|s| &s.low) != lowest_before && self.bottom == Bottom::Reached
        {
            // There was something older after all.
            self.bottom = Bottom::Unknown;
        }
        if end == PageEnd::EndOfHistory
            && let Some(low) = self.stretches.iter().map(|s| &s.low).find(|l| l.is_same(low))
        {
            let low = low.clone();
            self.end_at(&low);
        }
        self.settle();
    }

    /// The phone has nothing before the stretch that starts at `low`.
    fn end_at(&mut self, low: &Anchor) {
        match self.stretches.iter().position(|s| s.low.is_same(low)) {
            None => {}
            Some(0) => self.bottom = Bottom::Reached,
            // What lies between is known to be out of reach.
            Some(i) => self.stretches[i].exhausted = true,
        }
    }

    fn settle(&mut self) {
        self.settle_order();
        while self.stretches.len() > MAX_STRETCHES {
            let forgotten = self.stretches.remove(0);
            self.suspect_below(forgotten.high.second);
        }
        self.bottom = self.settled_bottom();
    }

    /// Restores the order of the stretches: of two where one lies within the other only that one
    /// is kept, and those that overlap become one.
    fn settle_order(&mut self) {
        let live = if self.is_live() { self.stretches.pop() } else { None };
        let mut unsettled = std::mem::take(&mut self.stretches);
        unsettled.sort_by_key(|s| (s.low.second, s.high.second));
        let closed = unsettled.len();
        for (i, mut stretch) in unsettled.into_iter().chain(live).enumerate() {
            let is_live = i == closed;
            let mut is_inside = false;
            while let Some(below) = self.stretches.pop() {
                if overlap(&below, &stretch) {
                    stretch = below.join(stretch);
                } else if stretch.low.second <= below.low.second
                    && (is_live || below.high.second < stretch.high.second)
                {
                    if self.stretches.is_empty() {
                        self.suspect_below(below.high.second);
                    }
                } else {
                    is_inside = !is_live && stretch.high.second <= below.high.second;
                    self.stretches.push(below);
                    break;
                }
            }
            if !is_inside {
                self.stretches.push(stretch);
            }
        }
    }

    /// The lowest stretch was forgotten; it reached up to this second.
    fn suspect_below(&mut self, second: i64) {
        self.bottom = match self.bottom {
            Bottom::Reached | Bottom::Unknown => Bottom::Suspected(second),
            Bottom::Suspected(after) => Bottom::Suspected(second.min(after)),
        };
    }

    /// A suspicion that the lowest stretch has outgrown is none any more.
    fn settled_bottom(&self) -> Bottom {
        match (self.bottom, self.stretches.first()) {
            (Bottom::Suspected(after), Some(lowest))
                if lowest.low.second.saturating_add(1) < after =>
            {
                Bottom::Unknown
            }
            (bottom, _) => bottom,
        }
    }

    fn fillable_since(&self, second: i64) -> impl Iterator<Item = Anchor> {
        let holes = self.holes().into_iter().filter(Hole::is_fillable);
        holes.filter_map(|hole| hole.anchor).filter(move |anchor| anchor.second > second)
    }

    /// Where to ask on, and how many messages are missing. Goes on below holes that nobody can
    /// fill.
    fn missing_depth(&self, messages: u32) -> Option<(&Anchor, u32)> {
        let mut missing = messages;
        for (i, stretch) in self.stretches.iter().enumerate().rev() {
            missing = missing.saturating_sub(stretch.messages);
            if missing == 0 {
                return None;
            }
            if !stretch.exhausted && (i > 0 || self.bottom != Bottom::Reached) {
                return Some((&stretch.low, missing));
            }
        }
        None
    }
}

/// Whether two neighbours overlap by more than a second, so that nothing can be missing between.
fn overlap(below: &Stretch, above: &Stretch) -> bool {
    above.low.second.saturating_add(1) < below.high.second
}

/// Documents hold signed integers; nobody gets to see so many gaps.
fn storable(seq: u64) -> u64 {
    seq.min(i64::MAX.unsigned_abs())
}
