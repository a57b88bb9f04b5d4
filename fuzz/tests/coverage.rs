//! Coverage against a world in which it is known which messages exist and which are stored.

use backfill_core::coverage::{
    Anchor, Bottom, Coverage, Gap, Goal, MAX_STRETCHES, Mark, PageEnd, Stretch,
};
use backfill_core::doc::{FieldOp, Fields, Value};
use proptest::collection::vec;
use proptest::prelude::*;
use smol_str::{SmolStr, format_smolstr};

/// One thread: the phone, the connection, the store, and what coverage says about it.
///
/// The phone has every message, in order; seconds never fall along it. A message is stored when it
/// arrives live, out of the offline queue, in a page or in a chunk. What an offline queue did not
/// deliver is lost until the phone is asked.
#[derive(Debug, Default)]
struct World {
    now: i64,
    phone: Vec<Mark>,
    stored: Vec<bool>,
    coverage: Option<Coverage>,
    /// Since when, and the first position that the offline queue holds
    offline: Option<(i64, usize)>,
    gaps: Vec<Gap>,
    late: Vec<Page>,
    /// Of the oldest messages of a page in one second the one with the least id counts as the
    /// oldest, not the one that the phone gave last
    ties_by_id: bool,
}

/// An answer of the phone.
#[derive(Clone, Debug)]
struct Page {
    anchor: Anchor,
    first: usize,
    count: usize,
    end: PageEnd,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered,
    Late,
    Lost,
    Twice,
    Void,
}

#[derive(Clone, Debug)]
enum Step {
    ApplyGaps,
    Ask { goal: Goal, size: usize, says_end: bool, fate: Fate },
    AskAnywhere { at: prop::sample::Index, size: usize, says_end: bool },
    Chunk { at: prop::sample::Index, size: usize, says_end: bool },
    DeliverLate(prop::sample::Index),
    Disconnect,
    Forgive,
    Message { after: i64 },
    Reconnect { delivers: u64 },
    Reload,
}

fn step() -> impl Strategy<Value = Step> {
    let goal = prop_oneof![(0..200_i64).prop_map(Goal::Since), (0..40_u32).prop_map(Goal::Depth)];
    let fate = prop_oneof![
        6 => Just(Fate::Answered),
        1 => Just(Fate::Late),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Twice),
        1 => Just(Fate::Void),
    ];
    let delivers = prop_oneof![Just(u64::MAX), Just(0), any::<u64>()];
    let at = any::<prop::sample::Index>;
    prop_oneof![
        2 => Just(Step::ApplyGaps),
        4 => (goal, 1..8_usize, any::<bool>(), fate)
            .prop_map(|(goal, size, says_end, fate)| Step::Ask { goal, size, says_end, fate }),
        1 => (at(), 1..8_usize, any::<bool>())
            .prop_map(|(at, size, says_end)| Step::AskAnywhere { at, size, says_end }),
        1 => (at(), 1..12_usize, any::<bool>())
            .prop_map(|(at, size, says_end)| Step::Chunk { at, size, says_end }),
        1 => at().prop_map(Step::DeliverLate),
        2 => Just(Step::Disconnect),
        1 => Just(Step::Forgive),
        12 => (0..4_i64).prop_map(|after| Step::Message { after }),
        3 => delivers.prop_map(|delivers| Step::Reconnect { delivers }),
        1 => Just(Step::Reload),
    ]
}

impl World {
    /// Before the device is linked it is offline, and the offline queue holds nothing.
    fn new(ties_by_id: bool) -> Self {
        Self { now: 100, offline: Some((1, 0)), ties_by_id, ..Self::default() }
    }

    fn run(ties_by_id: bool, steps: &[Step]) -> Self {
        let mut world = Self::new(ties_by_id);
        for step in steps {
            world.step(step);
            world.check();
        }
        world
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::ApplyGaps => self.apply_gaps(),
            Step::Ask { goal, size, says_end, fate } => self.ask(*goal, *size, *says_end, *fate),
            Step::AskAnywhere { at, size, says_end } => {
                let stored: Vec<_> = (0..self.phone.len()).filter(|p| self.stored[*p]).collect();
                if !stored.is_empty() {
                    let page = self.page(*at.get(&stored), *size, *says_end);
                    self.deliver(&page);
                }
            }
            Step::Chunk { at, size, says_end } => {
                if !self.phone.is_empty() {
                    self.chunk(at.index(self.phone.len()), *size, *says_end);
                }
            }
            Step::DeliverLate(at) => {
                if !self.late.is_empty() {
                    let page = self.late.swap_remove(at.index(self.late.len()));
                    self.deliver(&page);
                }
            }
            Step::Disconnect => {
                self.offline.get_or_insert((self.now, self.phone.len()));
            }
            Step::Forgive => {
                if let Some(coverage) = &mut self.coverage {
                    coverage.forgive();
                }
            }
            Step::Message { after } => self.message(*after),
            Step::Reconnect { delivers } => self.reconnect(*delivers),
            Step::Reload => {
                if let Some(coverage) = &mut self.coverage {
                    *coverage = Coverage::parse(&fields(coverage)).0;
                }
            }
        }
    }

    fn message(&mut self, after: i64) {
        self.now += after;
        let position = self.phone.len();
        // Ids say nothing about the order.
        let id = format_smolstr!("{:08x}", (position as u32).wrapping_mul(2_654_435_761));
        let from_me = position.is_multiple_of(3);
        self.phone.push(Mark { second: self.now, id: Some(id), from_me, participant: None });
        self.stored.push(false);
        if self.offline.is_none() {
            self.arrive(position);
        }
    }

    fn arrive(&mut self, position: usize) {
        let message = &self.phone[position];
        self.stored[position] = true;
        match &mut self.coverage {
            Some(coverage) => {
                coverage.newer(message);
            }
            None => self.coverage = Some(Coverage::starting_at(message, 0)),
        }
    }

    fn reconnect(&mut self, delivers: u64) {
        let Some((from, first)) = self.offline.take() else { return };
        for position in first..self.phone.len() {
            if delivers >> (position % 64) & 1 == 1 {
                self.arrive(position);
            }
        }
        if self.stored[first..].iter().any(|stored| !stored) {
            let seq = self.gaps.len() as u64 + 1;
            self.gaps.push(Gap { seq, from, to: self.now });
        }
    }

    fn apply_gaps(&mut self) {
        let newest = self.newest().cloned();
        if let Some(coverage) = &mut self.coverage {
            for gap in &self.gaps {
                coverage.suspect(*gap, newest.as_ref());
            }
        }
    }

    fn newest(&self) -> Option<&Mark> {
        self.stored.iter().rposition(|stored| *stored).map(|newest| &self.phone[newest])
    }

    fn ask(&mut self, goal: Goal, size: usize, says_end: bool, fate: Fate) {
        let Some(coverage) = &mut self.coverage else { return };
        let Some(anchor) = coverage.next_anchor(goal) else { return };
        assert!(coverage.asked(&anchor, 2));
        let at = self.phone.iter().position(|m| m.id.as_ref() == Some(&anchor.id));
        let page = self.page(at.expect("anchors are real messages"), size, says_end);
        match fate {
            Fate::Answered => self.deliver(&page),
            Fate::Late => self.late.push(page),
            Fate::Lost => {}
            Fate::Twice => {
                self.deliver(&page);
                self.deliver(&page);
            }
            Fate::Void => self.deliver(&Page { count: 0, end: PageEnd::MoreRemains, ..page }),
        }
    }

    fn page(&self, at: usize, size: usize, says_end: bool) -> Page {
        let anchor = self.phone[at].anchor().expect("the phone's messages are real");
        let first = at.saturating_sub(size);
        Page { anchor, first, count: at - first, end: end(first, says_end) }
    }

    fn deliver(&mut self, page: &Page) {
        self.stored[page.first..page.first + page.count].fill(true);
        let messages = &self.phone[page.first..page.first + page.count];
        let oldest = if self.ties_by_id {
            messages.iter().min_by_key(|m| (m.second, &m.id))
        } else {
            messages.first()
        };
        let coverage = self.coverage.get_or_insert_default();
        coverage.page(&page.anchor, oldest, page.count as u32, page.end);
    }

    fn chunk(&mut self, at: usize, size: usize, says_end: bool) {
        let last = (at + size).min(self.phone.len()) - 1;
        self.stored[at..=last].fill(true);
        let coverage = self.coverage.get_or_insert_default();
        let count = (last - at + 1) as u32;
        coverage.chunk(&self.phone[at], &self.phone[last], count, end(at, says_end));
    }

    /// Whatever coverage claims, once it knows about every gap, is true.
    fn check(&self) {
        let Some(coverage) = &self.coverage else { return };
        check_form(coverage);
        let mut coverage = coverage.clone();
        let ongoing = self.offline.map(|(from, _)| Gap { seq: u64::MAX, from, to: self.now });
        for gap in self.gaps.iter().copied().chain(ongoing) {
            coverage.suspect(gap, self.newest());
            check_form(&coverage);
        }
        for (message, stored) in self.phone.iter().zip(&self.stored) {
            assert!(*stored || !coverage.covers(message.second), "{message:?} is missing");
            for since in [message.second - 1, message.second] {
                let complete = coverage.is_complete(Goal::Since(since));
                assert!(!complete || self.has_all_since(since), "incomplete since {since}");
            }
        }
        let mut counted = 0;
        for (i, stretch) in coverage.stretches().iter().enumerate() {
            let is_live = coverage.is_live() && i + 1 == coverage.stretches().len();
            let there = self.phone.iter().filter(|m| {
                stretch.low.second <= m.second && (is_live || m.second <= stretch.high.second)
            });
            let is_deep = stretch.messages as usize <= there.count();
            assert!(is_deep || self.ties_by_id, "not so deep: {stretch:?}");
            counted += stretch.messages as usize;
        }
        assert!(self.ties_by_id || counted <= self.stored.iter().filter(|stored| **stored).count());
        if coverage.bottom() == Bottom::Reached {
            let oldest = &self.phone[0];
            assert_eq!(coverage.stretches()[0].low.second, oldest.second, "not the bottom");
        }
    }

    fn has_all_since(&self, second: i64) -> bool {
        let mut messages = self.phone.iter().zip(&self.stored);
        messages.all(|(message, stored)| *stored || message.second <= second)
    }

    /// The connection heals and the phone answers: asks until there is nothing to ask.
    fn converge(&mut self, goal: Goal, size: usize, says_end: bool) {
        self.reconnect(0);
        self.message(1);
        self.apply_gaps();
        self.step(&Step::Forgive);
        let mut requests = 0;
        while let Some(goal) =
            self.coverage.as_ref().and_then(|c| c.next_anchor(goal)).map(|_| goal)
        {
            self.ask(goal, size, says_end, Fate::Answered);
            self.check();
            requests += 1;
            assert!(requests <= self.phone.len() + 1, "asks for ever");
        }
    }
}

/// Honest, but silent if it likes.
fn end(first: usize, says: bool) -> PageEnd {
    match (says, first) {
        (false, _) => PageEnd::Unstated,
        (true, 0) => PageEnd::EndOfHistory,
        (true, _) => PageEnd::MoreRemains,
    }
}

/// What holds whatever the inputs were.
fn check_form(coverage: &Coverage) {
    assert!(coverage.stretches().len() <= MAX_STRETCHES);
    assert_eq!(&Coverage::parse(&fields(coverage)), &(coverage.clone(), 7), "lossy");
    for goal in [Goal::Since(i64::MIN), Goal::Since(150), Goal::Depth(1), Goal::Depth(u32::MAX)] {
        let next = coverage.next_anchor(goal);
        assert_eq!(next.is_none(), coverage.remaining(goal) == 0, "{goal:?}");
        if let Some(next) = next {
            let asks = |s: &Stretch| s.low == next && !s.exhausted;
            assert!(coverage.stretches().iter().any(asks), "{goal:?}");
            assert!(!coverage.is_complete(goal), "{goal:?}");
        }
    }
    let mut anchors: Vec<_> = coverage.holes().iter().map(|h| h.anchor.clone()).collect();
    if !coverage.is_live() {
        assert_eq!(anchors.remove(0), None, "the tail comes first");
    }
    let seconds: Vec<_> = anchors.iter().flatten().map(|a| a.second).collect();
    assert_eq!(seconds.len(), anchors.len(), "only the tail has no anchor");
    assert!(seconds.is_sorted_by(|newer, older| newer > older));
}

fn fields(coverage: &Coverage) -> Fields {
    let set = |op| if let FieldOp::Set(value) = op { value } else { panic!("{op:?}") };
    coverage
        .to_fields(7)
        .into_iter()
        .map(|(path, op)| (SmolStr::from(path.as_str()), set(op)))
        .collect()
}

/// A call with any arguments.
#[derive(Clone, Debug)]
enum Call {
    Asked(Mark, u32),
    Chunk(Mark, Mark, u32, PageEnd),
    Forgive,
    Newer(Mark),
    Page(Mark, Option<Mark>, u32, PageEnd),
    Suspect(Gap, Option<Mark>),
}

fn second() -> impl Strategy<Value = i64> {
    prop_oneof![8 => 1..30_i64, 1 => any::<i64>(), 1 => prop::sample::select(vec![
        i64::MIN, -1, 0, 1, i64::MAX - 1, i64::MAX,
    ])]
}

fn mark() -> impl Strategy<Value = Mark> {
    let id = prop::option::weighted(0.95, prop_oneof![9 => "[a-f]", 1 => ".{0,3}", 1 => "x{300}"]);
    let participant = prop::option::weighted(0.3, "[pq]?");
    (second(), id, prop::bool::weighted(0.2), participant).prop_map(
        |(second, id, from_me, participant)| Mark {
            second,
            id: id.map(SmolStr::from),
            from_me,
            participant: participant.map(SmolStr::from),
        },
    )
}

fn call() -> impl Strategy<Value = Call> {
    let end = || {
        prop::sample::select(vec![PageEnd::EndOfHistory, PageEnd::MoreRemains, PageEnd::Unstated])
    };
    let count = || prop_oneof![9 => 0..60_u32, 1 => any::<u32>()];
    let seq = prop_oneof![9 => 0..20_u64, 1 => any::<u64>()];
    let gap = (seq, second(), second()).prop_map(|(seq, from, to)| Gap { seq, from, to });
    prop_oneof![
        1 => (mark(), 0..4_u32).prop_map(|(m, n)| Call::Asked(m, n)),
        4 => (mark(), mark(), count(), end()).prop_map(|(l, h, n, e)| Call::Chunk(l, h, n, e)),
        1 => Just(Call::Forgive),
        4 => mark().prop_map(Call::Newer),
        6 => (mark(), prop::option::weighted(0.9, mark()), count(), end())
            .prop_map(|(a, o, n, e)| Call::Page(a, o, n, e)),
        4 => (gap, prop::option::of(mark())).prop_map(|(g, m)| Call::Suspect(g, m)),
    ]
}

/// Takes what a page is asked with from what is there, where it can.
fn anchor_for(coverage: &Coverage, mark: &Mark) -> Option<Anchor> {
    let low =
        coverage.stretches().iter().map(|s| &s.low).find(|low| Some(&low.id) == mark.id.as_ref());
    low.cloned().or_else(|| mark.anchor())
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-2..40_i64).prop_map(Value::from),
        "[a-f]{0,2}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::Array),
            vec((prop::sample::select(vec!["low", "high", "second", "id", "fromMe"]), inner), 0..4)
                .prop_map(Value::map),
        ]
    })
}

/// Puts `value` in the place of the `at`th value of a document, counted through all levels.
fn replace(place: &mut Value, at: &mut usize, value: &Value) {
    if *at == 0 {
        *place = value.clone();
    }
    *at = at.wrapping_sub(1);
    match place {
        Value::Array(values) => values.iter_mut().for_each(|v| replace(v, at, value)),
        Value::Map(fields) => fields.values_mut().for_each(|v| replace(v, at, value)),
        _ => {}
    }
}

proptest! {
    #[test]
    fn what_is_claimed_is_stored(ties_by_id in any::<bool>(), steps in vec(step(), 1..80)) {
        World::run(ties_by_id, &steps);
    }

    #[test]
    fn every_hole_is_filled_when_the_phone_answers(
        ties_by_id in any::<bool>(), steps in vec(step(), 1..80),
        back in 0..120_i64, size in 1..10_usize, says_end in any::<bool>(),
    ) {
        let mut world = World::run(ties_by_id, &steps);
        let since = world.now - back;
        world.converge(Goal::Since(since), size, says_end);
        assert!(world.has_all_since(since), "{world:#?}");
    }

    #[test]
    fn the_depth_is_reached_when_the_phone_answers(
        steps in vec(step(), 1..80), depth in 0..60_usize, size in 1..10_usize, says_end in any::<bool>(),
    ) {
        let mut world = World::run(false, &steps);
        world.converge(Goal::Depth(depth as u32), size, says_end);
        let newest = world.stored.len().saturating_sub(depth);
        assert!(world.stored[newest..].iter().all(|stored| *stored), "{world:#?}");
        assert!(world.coverage.unwrap().is_complete(Goal::Depth(depth as u32)));
    }

    #[test]
    fn no_input_breaks_the_order(calls in vec(call(), 0..60)) {
        let mut coverage = Coverage::default();
        for call in calls {
            let before = coverage.clone();
            let changed = match call {
                Call::Asked(m, n) => {
                    anchor_for(&coverage, &m).is_some_and(|a| coverage.asked(&a, n))
                }
                Call::Chunk(low, high, n, end) => coverage.chunk(&low, &high, n, end),
                Call::Forgive => coverage.forgive(),
                Call::Newer(m) => coverage.newer(&m),
                Call::Page(m, oldest, n, end) => anchor_for(&coverage, &m)
                    .is_some_and(|a| coverage.page(&a, oldest.as_ref(), n, end)),
                Call::Suspect(gap, newest) => coverage.suspect(gap, newest.as_ref()),
            };
            check_form(&coverage);
            assert!(changed || coverage == before, "a change that would not be written");
        }
    }

    #[test]
    fn damage_to_a_document_never_adds_to_a_claim(
        chunks in vec((second(), second()), 0..5), newest in prop::option::of(second()),
        at in any::<prop::sample::Index>(), value in any_value(),
    ) {
        let mut coverage = Coverage::default();
        let mark = |second, id| Mark { id: Some(id), ..Mark::bound(second) };
        for (i, (a, b)) in chunks.into_iter().enumerate() {
            let (low, high) = (format_smolstr!("l{i}"), format_smolstr!("h{i}"));
            coverage.chunk(&mark(a.min(b), low), &mark(a.max(b), high), 1, PageEnd::Unstated);
        }
        if let Some(newest) = newest {
            coverage.newer(&mark(newest, "n".into()));
        }
        let mut document = Value::Map(fields(&coverage));
        replace(&mut document, &mut at.index(60), &value);
        let Value::Map(fields) = document else { return Ok(()) };
        let (parsed, _) = Coverage::parse(&fields);
        check_form(&parsed);
        // Only stretches that the document names, end for end, and all of them or none.
        if !parsed.stretches().is_empty() {
            let named = fields.get("stretches").and_then(Value::as_array).unwrap();
            assert_eq!(parsed.stretches().len(), named.len());
            for (stretch, value) in parsed.stretches().iter().zip(named) {
                let end = |name| value.as_map()?.get(name)?.as_map()?.get("second")?.as_int();
                assert_eq!(end("low"), Some(stretch.low.second));
                assert_eq!(end("high"), Some(stretch.high.second));
            }
        }
        if parsed.is_live() {
            assert_eq!(fields.get("live"), Some(&Value::Bool(true)));
            assert!(!parsed.stretches().is_empty());
        }
        assert!(parsed.bottom() != Bottom::Reached, "never written");
    }

    #[test]
    fn any_document_can_be_read(values in vec((prop::sample::select(vec![
        "appliedGap", "beat", "bottom", "live", "open", "stretches", "suspectedAfter", "waitingPast",
    ]), any_value()), 0..10)) {
        let Value::Map(fields) = Value::map(values) else { unreachable!() };
        let (parsed, _) = Coverage::parse(&fields);
        check_form(&parsed);
        assert!(!parsed.is_live() || !parsed.stretches().is_empty());
    }
}
