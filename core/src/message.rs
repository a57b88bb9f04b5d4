//! What is known of one message, as a value that only ever grows.
//!
//! Every report about a message (itself, an edit, a revoke, a reaction, a receipt) is such a value,
//! and so is a stored document. [`Message::join`] puts two together; it is commutative, associative
//! and idempotent, so that neither order nor repetition nor the split into batches matters:
//!
//! - a message beats its undecryptable form, which beats reports about a message not seen yet;
//! - of texts the one with the latest edit counts, of two equally late ones the greater;
//! - a revoke takes away text, kind and media for good;
//! - per person the latest reaction counts, and taking it back is a reaction;
//! - the status is the greatest, receipts are dated by the earliest.
//!
//! A document of a message not seen yet is marked `placeholder: "missing"` and has no `tsClient`
//! while there is no text to show: the chat query orders by it and so does not return it.

use std::collections::BTreeMap;

use smol_str::SmolStr;

use crate::changes::Changes;
use crate::doc::{FieldPath, Fields, Value};
use crate::incoming::{
    Content, MAX_BODY_BYTES, MAX_LABEL_BYTES, Media, MessageEvent, MessageKind, Status, SyncSource,
    clip,
};
use crate::jid::{Jid, JidKind, Twins};
use crate::time::StoreTime;

/// The moments that are believed: from the epoch to a bound a little after now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Believable {
    latest: StoreTime,
}

impl Believable {
    pub(crate) fn until(latest: StoreTime) -> Self {
        Self { latest }
    }

    pub(crate) fn contains(self, time: StoreTime) -> bool {
        (StoreTime::EPOCH..=self.latest).contains(&time)
    }

    /// The nearest moment that is believed.
    pub(crate) fn clamp(self, time: StoreTime) -> StoreTime {
        time.min(self.latest).max(StoreTime::EPOCH)
    }
}

/// How much of a message has been seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Seen {
    /// Only reports about it
    #[default]
    Missing,
    /// It, but not readable
    Undecryptable,
    /// It
    Whole,
}

/// What is known of one message.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Message {
    pub(crate) seen: Seen,
    pub(crate) outbound: Option<bool>,
    /// Who sent it, in a group
    pub(crate) sender: Option<Jid>,
    stamp: Stamp,
    text: Text,
    kind: MessageKind,
    media: Option<Fields>,
    revoked_at: Option<StoreTime>,
    reactions: BTreeMap<SmolStr, (i64, SmolStr)>,
    status: Option<Status>,
    delivered_at: Option<StoreTime>,
    read_at: Option<StoreTime>,
    sender_name: SmolStr,
    source: Option<SyncSource>,
    remote_jid: SmolStr,
    participant: SmolStr,
}

/// A text and when it was given, in milliseconds; 0 for the first one. The latest counts.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Text {
    edited_at: i64,
    body: SmolStr,
}

/// When a message was sent, as far as known. A better source beats a worse one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stamp {
    #[default]
    Unknown,
    /// Whoever made the document says
    Claimed(StoreTime),
    /// The server says, in seconds, and what was made of that
    Sent { raw: i64, at: StoreTime },
}

/// Where a message belongs.
pub(crate) struct Place<'a> {
    pub(crate) account: &'a SmolStr,
    pub(crate) thread: &'a SmolStr,
    pub(crate) chat: &'a SmolStr,
    pub(crate) wa_id: &'a SmolStr,
}

/// What a report says, besides what it says happened.
pub(crate) struct Report {
    pub(crate) outbound: bool,
    pub(crate) remote_jid: SmolStr,
    /// Who sent the message, in a group: as it arrived, and the canonical form
    pub(crate) participant: Option<(SmolStr, Jid)>,
    pub(crate) timestamp: i64,
    pub(crate) source: SyncSource,
    /// Who did it, for what somebody did to the message
    pub(crate) by: SmolStr,
}

impl Message {
    /// What one report tells.
    pub(crate) fn reported(report: Report, event: MessageEvent, believable: Believable) -> Self {
        let at = believable.clamp(StoreTime::from_secs(report.timestamp));
        let (participant, sender) = report.participant.unzip();
        let mut told = Self {
            outbound: Some(report.outbound),
            sender: sender.filter(|_| !report.outbound),
            remote_jid: report.remote_jid,
            participant: participant.unwrap_or_default(),
            ..Self::default()
        };
        let mut arrived = |seen, status: Option<Status>, name: Option<SmolStr>| {
            told.seen = seen;
            told.stamp = Stamp::Sent { raw: report.timestamp, at };
            told.source = Some(report.source);
            told.sender_name = clip(name.unwrap_or_default(), MAX_LABEL_BYTES);
            let usual = if report.outbound { Status::Sent } else { Status::Delivered };
            told.status = Some(status.unwrap_or(usual));
        };
        match event {
            MessageEvent::Content(Content { kind, body, media, sender_name, status }) => {
                arrived(Seen::Whole, status, sender_name);
                told.kind = kind;
                told.text.body = clip(body, MAX_BODY_BYTES);
                told.media = media.map(|media| media.fields(kind));
            }
            MessageEvent::Edit { body, at_ms, .. } => {
                let edited_at = at_ms.clamp(1, LAST_MS);
                told.text = Text { edited_at, body: clip(body, MAX_BODY_BYTES) };
            }
            MessageEvent::Reaction { emoji, at_ms, .. } => {
                let reaction = (at_ms.clamp(0, LAST_MS), clip(emoji, MAX_LABEL_BYTES));
                told.reactions.insert(report.by, reaction);
            }
            MessageEvent::Receipt(status) => {
                told.status = Some(status);
                told.delivered_at = (status == Status::Delivered).then_some(at);
                told.read_at = (status == Status::Read).then_some(at);
            }
            MessageEvent::Revoke { .. } => told.revoked_at = Some(at),
            MessageEvent::Undecryptable { sender_name } => {
                arrived(Seen::Undecryptable, None, sender_name);
            }
        }
        told
    }

    /// What a document tells. Fields of unexpected types tell nothing.
    pub(crate) fn stored(fields: &Fields, twins: &Twins, believable: Believable) -> Self {
        let text = |name: &str| fields.get(name).and_then(Value::as_str).map(SmolStr::new);
        let time = |name: &str| fields.get(name).and_then(Value::as_time);
        let key = fields.get("key").and_then(Value::as_map);
        let in_key = |name: &str| key.and_then(|key| key.get(name));
        let key_text =
            |name: &str| in_key(name).and_then(Value::as_str).map(SmolStr::new).unwrap_or_default();
        let seen = match fields.get("placeholder").and_then(Value::as_str) {
            Some("missing") => Seen::Missing,
            Some("undecryptable") => Seen::Undecryptable,
            _ => Seen::Whole,
        };
        let claimed = match fields.get("tsClient") {
            Some(Value::Timestamp(time)) => Some(*time),
            Some(Value::String(text)) => iso_time(text),
            _ => None,
        };
        let raw = in_key("timestamp").and_then(Value::as_int);
        let stamp = match (seen, raw, claimed) {
            (Seen::Missing, _, _) | (_, None, None) => Stamp::Unknown,
            (_, None, Some(time)) => Stamp::Claimed(believable.clamp(time)),
            (_, Some(raw), claimed) => {
                let at = believable.clamp(StoreTime::from_secs(raw));
                // Only what was clamped depends on when it arrived; keep what was made of it then.
                let clamped = at != StoreTime::from_secs(raw) && raw > 0;
                let earlier = claimed.filter(|t| clamped && believable.contains(*t));
                Stamp::Sent { raw, at: earlier.map_or(at, |t| t.min(at)) }
            }
        };
        let direction = match fields.get("direction").and_then(Value::as_str) {
            Some("inbound") => Some(false),
            Some("outbound") => Some(true),
            _ => in_key("fromMe").and_then(Value::as_bool),
        };
        let sender = ["senderJid", "senderId"].into_iter().find_map(text);
        let sender = sender.or_else(|| in_key("participant")?.as_str().map(SmolStr::new));
        let sender = sender.and_then(|s| Jid::parse(s).ok()).map(|j| twins.canonical(&j).clone());
        let edited_at = time("editedAt").map_or(0, |t| t.as_millis().clamp(1, LAST_MS));
        let kind = match fields.get("messageType").and_then(Value::as_str) {
            Some(word) if seen != Seen::Missing => MessageKind::parse(word),
            _ => MessageKind::Unknown,
        };
        let source = fields.get("syncSource").and_then(Value::as_str).and_then(SyncSource::parse);
        let at_most_once = source == Some(SyncSource::Realtime)
            && fields.get(AT_MOST_ONCE.as_str()).and_then(Value::as_bool) == Some(true);
        let mut told = Self {
            seen,
            outbound: direction,
            sender: sender.filter(|_| direction != Some(true)),
            stamp,
            text: Text { edited_at, body: text("body").unwrap_or_default() },
            kind,
            media: fields.get("media").and_then(Value::as_map).and_then(own_media),
            revoked_at: time("revokedAt"),
            reactions: BTreeMap::new(),
            status: fields.get("status").and_then(Value::as_str).and_then(Status::parse),
            delivered_at: time("deliveredAt"),
            read_at: time("readAt"),
            sender_name: text("senderName").unwrap_or_default(),
            source: source.map(|source| if at_most_once { SyncSource::AtMostOnce } else { source }),
            remote_jid: key_text("remoteJid"),
            participant: key_text("participant"),
        };
        if let Some(Value::Map(reactions)) = fields.get("reactions") {
            told.reactions = stored_reactions(reactions, twins);
        }
        told.settle();
        told
    }

    /// Puts together what two tell.
    pub(crate) fn join(&mut self, other: Self) {
        self.seen = self.seen.max(other.seen);
        self.outbound = self.outbound.max(other.outbound);
        raise_sender(&mut self.sender, other.sender);
        self.stamp = self.stamp.join(other.stamp);
        raise(&mut self.text, other.text);
        self.kind = self.kind.max(other.kind);
        if let Some(media) = other.media {
            let richer = |mine: &Fields| (media.len(), &media) > (mine.len(), mine);
            if self.media.as_ref().is_none_or(richer) {
                self.media = Some(media);
            }
        }
        self.revoked_at = earliest(self.revoked_at, other.revoked_at);
        for (who, reaction) in other.reactions {
            raise(self.reactions.entry(who).or_default(), reaction);
        }
        self.status = self.status.max(other.status);
        self.delivered_at = earliest(self.delivered_at, other.delivered_at);
        self.read_at = earliest(self.read_at, other.read_at);
        raise(&mut self.sender_name, other.sender_name);
        self.source = self.source.max(other.source);
        raise_address(&mut self.remote_jid, other.remote_jid);
        raise_address(&mut self.participant, other.participant);
        self.settle();
    }

    /// What has to change in a document that holds `before`, so that it tells this.
    ///
    /// `otherwise` is the time of a message of which nothing tells the time.
    pub(crate) fn render<'a>(
        &self,
        before: Option<&'a Fields>,
        place: &Place<'_>,
        believable: Believable,
        otherwise: StoreTime,
    ) -> Changes<'a> {
        let mut to = Changes::against(before);
        to.set(ACCOUNT_ID, place.account.clone());
        to.set(CLIENT_JID, place.chat.clone());
        to.set(THREAD_ID, place.thread.clone());
        to.set(WA_MESSAGE_ID, place.wa_id.clone());
        let outbound = self.outbound.unwrap_or(false);
        to.set(DIRECTION, if outbound { OUTBOUND } else { INBOUND });
        to.set(KEY, Value::Map(self.key(before, place, outbound)));
        if let Some(sender) = &self.sender {
            to.set(SENDER_ID, sender.text());
            to.set(SENDER_JID, sender.text());
        }
        if !self.sender_name.is_empty() {
            to.set(SENDER_NAME, self.sender_name.clone());
        }
        to.set(BODY, self.text.body.clone());
        // An edit that came before its message shows its text already.
        let shown_early =
            self.seen == Seen::Missing && !self.text.body.is_empty() && self.revoked_at.is_none();
        let kind = if shown_early { MessageKind::Text } else { self.kind };
        to.set(MESSAGE_TYPE, kind.as_str());
        match &self.media {
            Some(media) => to.set(MEDIA, Value::Map(with_foreign(before, media))),
            None => to.remove(MEDIA),
        }
        match self.text.edited_at {
            0 => to.remove(EDITED_AT),
            ms => to.set(EDITED_AT, StoreTime::from_millis(ms)),
        }
        if let Some(at) = self.revoked_at {
            to.set(REVOKED, true);
            to.set(REVOKED_AT, at);
        }
        if !self.reactions.is_empty() {
            to.set(REACTIONS, self.reactions_map());
        }
        if let Some(status) = self.status {
            to.set(STATUS, status.as_str());
        }
        if let Some(at) = self.delivered_at {
            to.set(DELIVERED_AT, at);
        }
        if let Some(at) = self.read_at {
            to.set(READ_AT, at);
        }
        if let Some(source) = self.source {
            to.set(SYNC_SOURCE, source.as_str());
            match source {
                SyncSource::AtMostOnce => to.set(AT_MOST_ONCE, true),
                _ => to.remove(AT_MOST_ONCE),
            }
        }
        match self.seen {
            Seen::Missing => to.set(PLACEHOLDER, MISSING),
            Seen::Undecryptable => to.set(PLACEHOLDER, UNDECRYPTABLE),
            Seen::Whole => to.remove(PLACEHOLDER),
        }
        match self.seen {
            Seen::Missing if shown_early => {
                let edited_at = StoreTime::from_millis(self.text.edited_at);
                to.set(TS_CLIENT, believable.clamp(edited_at));
            }
            Seen::Missing => to.remove(TS_CLIENT),
            Seen::Undecryptable | Seen::Whole => match self.stamp {
                Stamp::Unknown => to.set(TS_CLIENT, otherwise),
                Stamp::Claimed(at) | Stamp::Sent { at, .. } => to.set(TS_CLIENT, at),
            },
        }
        if !to.is_empty() {
            to.stamp_once(CREATED_AT);
            if self.seen > Seen::Missing {
                to.stamp_once(SYNCED_AT);
            }
        }
        to
    }

    /// Whether a field of a message's document is [`render`](Self::render)'s to set or remove.
    pub(crate) fn renders(field: &str) -> bool {
        RENDERED.iter().any(|rendered| rendered.as_str() == field)
    }

    /// When it was sent, if the server's time is known: then it was seen.
    pub(crate) fn sent_at(&self) -> Option<StoreTime> {
        match self.stamp {
            Stamp::Sent { at, .. } => Some(at),
            Stamp::Claimed(_) | Stamp::Unknown => None,
        }
    }

    /// The sender's name; empty if unknown.
    pub(crate) fn sender_name(&self) -> &SmolStr {
        &self.sender_name
    }

    /// The text and how late its latest change was; `None` if it never had one.
    pub(crate) fn latest_text(&self) -> Option<(i64, &SmolStr)> {
        let Text { edited_at, body } = &self.text;
        if self.revoked_at.is_some() {
            return Some((i64::MAX, body));
        }
        (*edited_at > 0 || !body.is_empty()).then_some((*edited_at, body))
    }

    /// What has been revoked has no content.
    fn settle(&mut self) {
        if self.revoked_at.is_some() {
            self.text = Text::default();
            self.kind = MessageKind::Unknown;
            self.media = None;
        }
    }

    fn key(&self, before: Option<&Fields>, place: &Place<'_>, outbound: bool) -> Fields {
        let mut key = match before.and_then(|fields| fields.get(KEY.as_str())) {
            Some(Value::Map(key)) => key.clone(),
            _ => Fields::new(),
        };
        let mut put = |name, value| key.insert(SmolStr::new_static(name), value);
        put("id", place.wa_id.clone().into());
        put("fromMe", outbound.into());
        if !self.remote_jid.is_empty() {
            put("remoteJid", self.remote_jid.clone().into());
        }
        if !self.participant.is_empty() {
            put("participant", self.participant.clone().into());
        }
        if let Stamp::Sent { raw, .. } = self.stamp {
            put("timestamp", raw.into());
        }
        key
    }

    fn reactions_map(&self) -> Value {
        Value::map(self.reactions.iter().map(|(who, (at_ms, emoji))| {
            let at = Value::from(StoreTime::from_millis(*at_ms));
            (who.clone(), Value::map([("at", at), ("text", emoji.clone().into())]))
        }))
    }
}

impl Stamp {
    fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::Claimed(a), Self::Claimed(b)) => Self::Claimed(a.min(b)),
            (Self::Sent { raw, at: a }, Self::Sent { raw: other, at: b }) if raw == other => {
                Self::Sent { raw, at: a.min(b) }
            }
            (a, b) => a.max(b),
        }
    }
}

/// All that follows from what is known of a message; its document may have other fields besides.
const RENDERED: [FieldPath; 23] = [
    ACCOUNT_ID,
    AT_MOST_ONCE,
    BODY,
    CLIENT_JID,
    DELIVERED_AT,
    DIRECTION,
    EDITED_AT,
    KEY,
    MEDIA,
    MESSAGE_TYPE,
    PLACEHOLDER,
    REACTIONS,
    READ_AT,
    REVOKED,
    REVOKED_AT,
    SENDER_ID,
    SENDER_JID,
    SENDER_NAME,
    STATUS,
    SYNC_SOURCE,
    THREAD_ID,
    TS_CLIENT,
    WA_MESSAGE_ID,
];

const ACCOUNT_ID: FieldPath = FieldPath::new("accountId");
const AT_MOST_ONCE: FieldPath = FieldPath::new("atMostOnce");
const BODY: FieldPath = FieldPath::new("body");
const CLIENT_JID: FieldPath = FieldPath::new("clientJid");
const CREATED_AT: FieldPath = FieldPath::new("createdAt");
const DELIVERED_AT: FieldPath = FieldPath::new("deliveredAt");
const DIRECTION: FieldPath = FieldPath::new("direction");
const EDITED_AT: FieldPath = FieldPath::new("editedAt");
const KEY: FieldPath = FieldPath::new("key");
const MEDIA: FieldPath = FieldPath::new("media");
const MESSAGE_TYPE: FieldPath = FieldPath::new("messageType");
const PLACEHOLDER: FieldPath = FieldPath::new("placeholder");
const REACTIONS: FieldPath = FieldPath::new("reactions");
const READ_AT: FieldPath = FieldPath::new("readAt");
const REVOKED: FieldPath = FieldPath::new("revoked");
const REVOKED_AT: FieldPath = FieldPath::new("revokedAt");
const SENDER_ID: FieldPath = FieldPath::new("senderId");
const SENDER_JID: FieldPath = FieldPath::new("senderJid");
const SENDER_NAME: FieldPath = FieldPath::new("senderName");
const STATUS: FieldPath = FieldPath::new("status");
const SYNCED_AT: FieldPath = FieldPath::new("syncedAt");
const SYNC_SOURCE: FieldPath = FieldPath::new("syncSource");
const THREAD_ID: FieldPath = FieldPath::new("threadId");
const TS_CLIENT: FieldPath = FieldPath::new("tsClient");
const WA_MESSAGE_ID: FieldPath = FieldPath::new("waMessageId");

const INBOUND: &str = "inbound";
const MISSING: &str = "missing";
const OUTBOUND: &str = "outbound";
const UNDECRYPTABLE: &str = "undecryptable";

/// 9999-12-31T23:59:59.999Z, the last moment that stores can hold.
const LAST_MS: i64 = 253_402_300_799_999;

/// Keeps the greater of two values.
fn raise<T: Ord>(mine: &mut T, other: T) {
    if other > *mine {
        *mine = other;
    }
}

fn earliest(a: Option<StoreTime>, b: Option<StoreTime>) -> Option<StoreTime> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Of two names of one person the phone number beats the LID.
fn raise_sender(mine: &mut Option<Jid>, other: Option<Jid>) {
    let rank = |jid: &Option<Jid>| jid.as_ref().map(|jid| jid.kind() == JidKind::User);
    if (rank(&other), &other) > (rank(mine), mine) {
        *mine = other;
    }
}

fn raise_address(mine: &mut SmolStr, other: SmolStr) {
    let rank = |text: &SmolStr| text.ends_with("@s.whatsapp.net");
    if (rank(&other), &other) > (rank(mine), mine) {
        *mine = other;
    }
}

/// What of a stored `media` map is ours.
fn own_media(map: &Fields) -> Option<Fields> {
    let own = |key: &str| Media::KEYS.contains(&key);
    let media: Fields =
        map.iter().filter(|(k, _)| own(k)).map(|(k, v)| (k.clone(), v.clone())).collect();
    (!media.is_empty()).then_some(media)
}

/// Our media beside what others put into the stored map.
fn with_foreign(before: Option<&Fields>, media: &Fields) -> Fields {
    let mut all = media.clone();
    if let Some(Value::Map(stored)) = before.and_then(|fields| fields.get(MEDIA.as_str())) {
        for (key, value) in stored {
            if !Media::KEYS.contains(&key.as_str()) {
                all.insert(key.clone(), value.clone());
            }
        }
    }
    all
}

fn stored_reactions(map: &Fields, twins: &Twins) -> BTreeMap<SmolStr, (i64, SmolStr)> {
    let mut reactions = BTreeMap::<SmolStr, (i64, SmolStr)>::new();
    for (who, reaction) in map {
        // A person may have reacted under a name whose twin was not known then.
        let who = match Jid::parse(who.clone()) {
            Ok(jid) => twins.canonical(&jid).text(),
            Err(_) => who.clone(),
        };
        let Some(reaction) = reaction.as_map() else { continue };
        let at = reaction.get("at").and_then(Value::as_time);
        let text = reaction.get("text").and_then(Value::as_str);
        if let (Some(at), Some(text)) = (at, text) {
            raise(reactions.entry(who).or_default(), (at.as_millis(), text.into()));
        }
    }
    reactions
}

/// Reads `2026-01-31T12:34:56.789Z` as JavaScript and Dart write it; without a zone it is UTC.
fn iso_time(text: &str) -> Option<StoreTime> {
    let bytes = text.as_bytes();
    if !text.is_ascii() || bytes.len() < 19 {
        return None;
    }
    let number = |range: std::ops::Range<usize>| {
        let digits = &text[range];
        if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse::<i64>().ok() } else { None }
    };
    let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if separators.iter().any(|(i, b)| bytes[*i] != *b) || !b"Tt ".contains(&bytes[10]) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let fits = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !fits {
        return None;
    }
    let rest = &text[19..];
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => {
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            rest.split_at(end)
        }
        None => ("", rest),
    };
    let mut micros = 0;
    for i in 0..6 {
        let digit = fraction.as_bytes().get(i).map_or(0, |b| i64::from(b - b'0'));
        micros = micros * 10 + digit;
    }
    let offset_minutes = match zone.as_bytes() {
        [] | [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] | [sign @ (b'+' | b'-'), h1, h2, m1, m2]
            if [h1, h2, m1, m2].iter().all(|b| b.is_ascii_digit()) =>
        {
            let digit = |b: &u8| i64::from(b - b'0');
            let minutes = (digit(h1) * 10 + digit(h2)) * 60 + digit(m1) * 10 + digit(m2);
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    let seconds = days_since_epoch(year, month, day) * 86_400
        + hour * 3_600
        + (minute - offset_minutes) * 60
        + second;
    Some(StoreTime::from_micros(seconds * 1_000_000 + micros))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, counted in years that begin in March.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    const BELIEVABLE: Believable = Believable { latest: StoreTime::from_secs(2_000_000_000) };

    fn stored(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Message {
        let fields = fields.into_iter().map(|(name, value)| (name.into(), value)).collect();
        Message::stored(&fields, &Twins::default(), BELIEVABLE)
    }

    #[test]
    fn times_written_as_text_are_read_as_javascript_and_dart_write_them() {
        let second = 1_000_000;
        for (text, micros) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01 00:00:01", second),
            ("1969-12-31T23:59:59z", -second),
            ("2026-01-31T12:34:56.789Z", 1_769_862_896_789_000),
            ("2026-01-31t12:34:56.789123999", 1_769_862_896_789_123),
            ("2026-01-31T12:34:56.5+00:00", 1_769_862_896_500_000),
            ("2026-01-31T12:34:56+02:30", (1_769_862_896 - 150 * 60) * second),
            ("2026-01-31T12:34:56-1145", (1_769_862_896 + 705 * 60) * second),
            ("2024-02-29T23:59:60Z", 1_709_251_200 * second),
            ("2000-03-01T00:00:00Z", 951_868_800 * second),
            ("1900-03-01T00:00:00Z", -2_203_891_200 * second),
            ("2100-12-31T23:00:00Z", 4_133_977_200 * second),
        ] {
            assert_eq!(iso_time(text), Some(StoreTime::from_micros(micros)), "{text}");
        }
        for text in [
            "",
            "2026-01-31T12:34:5",
            "2026-01-31X12:34:56",
            "2026/01-31T12:34:56",
            "2026-01/31T12:34:56",
            "2026-01-31T12.34:56",
            "2026-01-31T12:34.56",
            "2026-00-31T12:34:56",
            "2026-13-31T12:34:56",
            "2026-01-00T12:34:56",
            "2026-01-32T12:34:56",
            "2026-01-31T24:34:56",
            "2026-01-31T12:60:56",
            "2026-01-31T12:34:61",
            "2026-01-31T12:34:+6",
            "2026-01-31T12:34:56 Z",
            "2026-01-31T12:34:56+2:30",
            "2026-01-31T12:34:56+0a:30",
            "2026-01-31T12:34:56é",
        ] {
            assert_eq!(iso_time(text), None, "{text}");
        }
    }

    #[test]
    fn a_document_says_in_which_direction_a_message_went() {
        let key = |from_me: bool| ("key", Value::map([("fromMe", from_me.into())]));
        for (told, outbound) in [
            (stored([("direction", "inbound".into()), key(true)]), Some(false)),
            (stored([("direction", "outbound".into()), key(false)]), Some(true)),
            (stored([key(true)]), Some(true)),
            (stored([]), None),
        ] {
            assert_eq!(told.outbound, outbound);
        }
    }

    #[test]
    fn the_servers_time_beats_what_a_document_shows_unless_nobody_can_believe_it() {
        let told = |raw: i64, shown: i64| {
            let key = Value::map([("timestamp", Value::Int(raw))]);
            let shown = Value::Timestamp(StoreTime::from_secs(shown));
            stored([("key", key), ("tsClient", shown)]).sent_at()
        };
        assert_eq!(told(200, 150), Some(StoreTime::from_secs(200)));
        assert_eq!(told(200, 250), Some(StoreTime::from_secs(200)));
        let far = 3_000_000_000;
        assert_eq!(told(far, 1_900_000_000), Some(StoreTime::from_secs(1_900_000_000)));
        assert_eq!(told(far, far), Some(BELIEVABLE.latest), "as before");
        assert_eq!(told(-5, 150), Some(StoreTime::EPOCH));
    }

    #[test]
    fn two_reports_agree_on_the_time_and_on_the_richer_media_in_any_order() {
        let sent = |raw| Message {
            stamp: Stamp::Sent { raw, at: StoreTime::from_secs(raw) },
            ..Message::default()
        };
        let media = |fields: &[&'static str]| Message {
            media: Some(fields.iter().map(|name| (SmolStr::from(*name), Value::Null)).collect()),
            ..Message::default()
        };
        for (a, b) in [
            (sent(100), sent(101)),
            (media(&["mimetype"]), media(&["caption", "url"])),
            (media(&["mimetype"]), media(&["caption"])),
        ] {
            let joined = |mut a: Message, b: &Message| {
                a.join(b.clone());
                a
            };
            assert!(joined(a.clone(), &b) == joined(b.clone(), &a));
            assert!([a.clone(), b.clone()].contains(&joined(a, &b)));
        }
        let mut poor = media(&["type"]);
        poor.join(media(&["caption", "url"]));
        assert_eq!(poor.media.map(|media| media.len()), Some(2));
    }
}
