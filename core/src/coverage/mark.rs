//! Places in a thread: messages, and times.

use std::fmt;

use smol_str::SmolStr;

/// A real message, named as the phone has to be asked for what lies before it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Anchor {
    /// Its time
    pub second: i64,
    /// Its WhatsApp id
    pub id: SmolStr,
    /// It was sent by this account
    pub from_me: bool,
    /// Who sent it, in a group
    pub participant: Option<SmolStr>,
}

impl Anchor {
    pub(super) fn is_usable(&self) -> bool {
        self.second > 0
            && fits(&self.id)
            && self.participant.as_ref().is_none_or(|participant| fits(participant))
    }

    /// Whether both name one message.
    ///
    /// The time does not count: a message sent from the phone has another one there than here.
    /// Nor need the sender, who has two names (a number and a LID); but different names in
    /// different seconds are different messages, because group members choose their own ids.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.id == other.id
            && self.from_me == other.from_me
            && (self.second == other.second
                || self.participant.is_none()
                || other.participant.is_none()
                || self.participant == other.participant)
    }
}

impl fmt::Debug for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Mark::from(self.clone()).fmt(f)
    }
}

/// A place in a thread: a message, or without an id only a time.
#[derive(Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Mark {
    /// The time
    pub second: i64,
    /// The message's WhatsApp id, if it is one
    pub id: Option<SmolStr>,
    /// The message was sent by this account
    pub from_me: bool,
    /// Who sent the message, in a group
    pub participant: Option<SmolStr>,
}

impl Mark {
    /// Only a time.
    pub const fn bound(second: i64) -> Self {
        Self { second, id: None, from_me: false, participant: None }
    }

    /// The message, if it is one that the phone can be asked with.
    pub fn anchor(&self) -> Option<Anchor> {
        let anchor = Anchor {
            second: self.second,
            id: self.id.clone()?,
            from_me: self.from_me,
            participant: self.participant.clone(),
        };
        anchor.is_usable().then_some(anchor)
    }
}

impl From<Anchor> for Mark {
    fn from(a: Anchor) -> Self {
        Self { second: a.second, id: Some(a.id), from_me: a.from_me, participant: a.participant }
    }
}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The sender is personal data.
        write!(f, "{}", self.second)?;
        self.id.as_ref().map_or(Ok(()), |id| write!(f, "/{id}"))
    }
}

fn fits(text: &str) -> bool {
    (1..=MAX_TEXT).contains(&text.len())
}

/// Ids and senders longer than this many bytes are not remembered.
const MAX_TEXT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor(second: i64, participant: Option<&str>) -> Anchor {
        Anchor { second, id: "a".into(), from_me: false, participant: participant.map(Into::into) }
    }

    #[test]
    fn one_message_may_have_two_times_or_two_names_but_not_both() {
        let known = anchor(100, Some("1@s.whatsapp.net"));
        for (other, same) in [
            (anchor(100, Some("1@s.whatsapp.net")), true),
            (anchor(107, Some("1@s.whatsapp.net")), true),
            (anchor(100, Some("7@lid")), true),
            (anchor(107, None), true),
            (anchor(107, Some("7@lid")), false),
            (Anchor { from_me: true, ..known.clone() }, false),
            (Anchor { id: "b".into(), ..known.clone() }, false),
        ] {
            assert_eq!((known.is_same(&other), other.is_same(&known)), (same, same), "{other:?}");
        }
    }

    #[test]
    fn the_phone_is_asked_only_with_what_it_can_know() {
        let longest = "x".repeat(MAX_TEXT);
        let too_long = "x".repeat(MAX_TEXT + 1);
        let with_id = |id: &str| Anchor { id: id.into(), ..anchor(1, None) };
        for (anchor, usable) in [
            (anchor(1, None), true),
            (anchor(0, None), false),
            (with_id(&longest), true),
            (with_id(&too_long), false),
            (with_id(""), false),
            (anchor(1, Some(&longest)), true),
            (anchor(1, Some(&too_long)), false),
            (anchor(1, Some("")), false),
        ] {
            assert_eq!(anchor.is_usable(), usable, "{anchor:?}");
            assert_eq!(Mark::from(anchor.clone()).anchor().is_some(), usable);
        }
        assert_eq!(Mark::bound(5).anchor(), None);
    }
}
