//! Coverage as a document keeps it.

use crate::doc::{FieldOp, FieldPath, Fields, Value};

use super::mark::Mark;
use super::{Bottom, Coverage, Hole, MAX_STRETCHES, Stretch, Tail, overlap};

impl Coverage {
    /// The fields of `accounts/{id}/coverage/{threadId}`. `open` says whether a later owner has to
    /// look at the thread: a hole is worth asking the phone, or the tail waits for a message.
    pub fn to_fields(&self, beat: u64) -> Vec<(FieldPath, FieldOp)> {
        let (bottom, suspected_after) = match self.bottom {
            Bottom::Reached => ("reached", None),
            Bottom::Suspected(after) => ("suspected", Some(after)),
            Bottom::Unknown => ("unknown", None),
        };
        let waiting_past = match self.tail {
            Tail::Live => None,
            Tail::Waiting(past) => Some(past),
        };
        let stretches = self.stretches.iter().map(stretch_value).collect();
        let open = !self.is_live() || self.holes().iter().any(Hole::is_fillable);
        vec![
            (FieldPath::new("appliedGap"), self.applied_gap.into()),
            (FieldPath::new("beat"), beat.into()),
            (FieldPath::new("bottom"), bottom.into()),
            (FieldPath::new("live"), self.is_live().into()),
            (FieldPath::new("open"), open.into()),
            (FieldPath::new("stretches"), FieldOp::Set(Value::Array(stretches))),
            (FieldPath::new("suspectedAfter"), suspected_after.into()),
            (FieldPath::new("waitingPast"), waiting_past.into()),
        ]
    }

    /// Reads what [`to_fields`](Self::to_fields) wrote, and the beat. Content that it cannot have
    /// written covers nothing.
    pub fn parse(fields: &Fields) -> (Self, u64) {
        let beat = count(fields, "beat").unwrap_or(0);
        (Self::parse_exactly(fields).unwrap_or_default(), beat)
    }

    fn parse_exactly(fields: &Fields) -> Option<Self> {
        let stretches = fields.get("stretches")?.as_array()?;
        if stretches.len() > MAX_STRETCHES {
            return None;
        }
        let stretches = stretches.iter().map(parse_stretch).collect::<Option<_>>()?;
        let tail = if fields.get("live")?.as_bool()? {
            Tail::Live
        } else {
            Tail::Waiting(fields.get("waitingPast")?.as_int()?)
        };
        let bottom = match fields.get("bottom")?.as_str()? {
            "reached" => Bottom::Reached,
            "suspected" => Bottom::Suspected(fields.get("suspectedAfter")?.as_int()?),
            "unknown" => Bottom::Unknown,
            _ => return None,
        };
        let applied_gap = count(fields, "appliedGap")?;
        let coverage = Self { stretches, tail, bottom, applied_gap };
        coverage.is_sound().then_some(coverage)
    }

    /// Whether the order of the stretches is what the transitions keep.
    fn is_sound(&self) -> bool {
        let ends = self.stretches.iter().all(|s| s.low.second <= s.high.second);
        let live = self.live_index();
        let order = self.stretches.windows(2).enumerate().all(|(i, pair)| {
            let [below, above] = pair else { return true };
            !overlap(below, above)
                && below.low.second < above.low.second
                && (live == Some(i + 1) || below.high.second < above.high.second)
        });
        ends && order
            && (!self.is_live() || !self.stretches.is_empty())
            && (self.bottom != Bottom::Reached || !self.stretches.is_empty())
            && self.settled_bottom() == self.bottom
    }
}

fn stretch_value(s: &Stretch) -> Value {
    Value::map([
        ("exhausted", s.exhausted.into()),
        ("high", mark_value(&s.high)),
        ("lingering", s.lingering.into()),
        ("low", mark_value(&s.low.clone().into())),
        ("messages", s.messages.into()),
        ("tries", s.tries.into()),
    ])
}

fn parse_stretch(value: &Value) -> Option<Stretch> {
    let fields = value.as_map()?;
    Some(Stretch {
        low: parse_mark(fields.get("low")?)?.anchor()?,
        high: parse_mark(fields.get("high")?)?,
        messages: count(fields, "messages")?.try_into().ok()?,
        tries: count(fields, "tries")?.try_into().ok()?,
        exhausted: fields.get("exhausted")?.as_bool()?,
        lingering: count(fields, "lingering")?.try_into().ok()?,
    })
}

fn mark_value(mark: &Mark) -> Value {
    let mut fields = Fields::from([("second".into(), mark.second.into())]);
    if let Some(id) = &mark.id {
        fields.insert("id".into(), id.clone().into());
        fields.insert("fromMe".into(), mark.from_me.into());
    }
    if let Some(participant) = &mark.participant {
        fields.insert("participant".into(), participant.clone().into());
    }
    Value::Map(fields)
}

fn parse_mark(value: &Value) -> Option<Mark> {
    let fields = value.as_map()?;
    let second = fields.get("second")?.as_int()?;
    let Some(id) = fields.get("id") else { return Some(Mark::bound(second)) };
    let participant = match fields.get("participant") {
        None | Some(Value::Null) => None,
        Some(participant) => Some(participant.as_str()?.into()),
    };
    let mark = Mark {
        second,
        id: Some(id.as_str()?.into()),
        from_me: fields.get("fromMe")?.as_bool()?,
        participant,
    };
    mark.anchor().map(Mark::from)
}

fn count(fields: &Fields, name: &str) -> Option<u64> {
    u64::try_from(fields.get(name)?.as_int()?).ok()
}
