//! WhatsApp addresses: parsing, one canonical form, and the two names of one person.

use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest, Sha256};
use smol_str::{SmolStr, format_smolstr};

use crate::id::hex;

/// The address of a person, a group or a channel, in canonical form: without device and agent,
/// `c.us` and `hosted` written as `s.whatsapp.net`, `hosted.lid` as `lid`.
///
/// Personal data: `Display` and `Debug` show a masked form, [`as_str`](Self::as_str) the whole.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Jid {
    text: SmolStr,
    kind: JidKind,
}

/// What an address names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JidKind {
    /// A broadcast list
    Broadcast,
    /// A group
    Group,
    /// A person, by the number that hides the phone number
    Lid,
    /// A channel
    Newsletter,
    /// Something else, for instance a bot
    Other,
    /// The status updates of everybody
    Status,
    /// A person, by phone number
    User,
}

impl Jid {
    /// Parses an address as WhatsApp and its clients write it.
    ///
    /// # Errors
    /// [`JidError`] says what is wrong, without showing the text.
    pub fn parse(text: impl Into<SmolStr>) -> Result<Self, JidError> {
        let text = text.into();
        if text.is_empty() {
            return Err(JidError::Empty);
        }
        if text.len() > MAX_BYTES {
            return Err(JidError::Long { bytes: text.len() });
        }
        let (user, server) = text.split_once('@').ok_or(JidError::NoServer)?;
        let (kind, canonical_server) = match server {
            "s.whatsapp.net" | "c.us" | "hosted" => (JidKind::User, "s.whatsapp.net"),
            "lid" | "hosted.lid" => (JidKind::Lid, "lid"),
            "g.us" => (JidKind::Group, server),
            "newsletter" => (JidKind::Newsletter, server),
            "broadcast" if user == "status" => (JidKind::Status, server),
            "broadcast" => (JidKind::Broadcast, server),
            _ if is_server(server) => (JidKind::Other, server),
            _ => return Err(JidError::Server),
        };
        let bare = match kind {
            JidKind::Lid | JidKind::User => without_device(user).ok_or(JidError::User)?,
            JidKind::Broadcast
            | JidKind::Group
            | JidKind::Newsletter
            | JidKind::Other
            | JidKind::Status => user,
        };
        let plain = match kind {
            JidKind::Lid | JidKind::User => bare.bytes().all(|b| b.is_ascii_digit()),
            _ => bare.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b)),
        };
        if bare.is_empty() || !plain {
            return Err(JidError::User);
        }
        if bare.len() == user.len() && canonical_server.len() == server.len() {
            return Ok(Self { text, kind });
        }
        Ok(Self { text: format_smolstr!("{bare}@{canonical_server}"), kind })
    }

    /// The whole address.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The whole address as shared text.
    pub fn text(&self) -> SmolStr {
        self.text.clone()
    }

    /// What it names.
    pub fn kind(&self) -> JidKind {
        self.kind
    }

    /// Whether it names one person, so that a chat with it has exactly two sides.
    pub fn is_person(&self) -> bool {
        matches!(self.kind, JidKind::Lid | JidKind::User)
    }

    /// What stands before the `@`.
    pub fn user(&self) -> &str {
        self.text.split_once('@').map_or("", |(user, _)| user)
    }

    /// The phone number with a leading `+`, if the address tells it.
    pub fn phone(&self) -> Option<SmolStr> {
        (self.kind == JidKind::User).then(|| format_smolstr!("+{}", self.user()))
    }

    /// A short form for logs, metrics and errors that identifies nobody.
    pub fn masked(&self) -> SmolStr {
        format_smolstr!("{}...", &hex(&Sha256::digest(self.text.as_bytes()))[..8])
    }
}

impl fmt::Display for Jid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl fmt::Debug for Jid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({})", self.kind, self.masked())
    }
}

/// Why a text is not an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum JidError {
    /// There is no text
    #[error("an address is empty")]
    Empty,
    /// The text is too long
    #[error("an address has {bytes} bytes; at most {MAX_BYTES} are allowed")]
    Long {
        /// How many bytes it has
        bytes: usize,
    },
    /// There is no `@`
    #[error("an address has no `@`")]
    NoServer,
    /// What follows the `@` cannot be a server
    #[error("what follows the `@` of an address is not a server")]
    Server,
    /// What precedes the `@` is not what this server's users are called
    #[error("what precedes the `@` of an address is not a user of that server")]
    User,
}

/// Which LID and which phone number are one person, as far as one account knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Twins {
    phone_of: BTreeMap<Jid, Jid>,
    lid_of: BTreeMap<Jid, Jid>,
}

impl Twins {
    /// Learns that `lid` and `phone` are one person; a later word replaces an earlier one.
    ///
    /// Returns whether that is news. Ignores a pair that is not one LID and one phone number.
    pub fn link(&mut self, lid: Jid, phone: Jid) -> bool {
        if lid.kind != JidKind::Lid || phone.kind != JidKind::User {
            return false;
        }
        if self.phone_of.get(&lid) == Some(&phone) {
            return false;
        }
        if let Some(old) = self.phone_of.insert(lid.clone(), phone.clone())
            && old != phone
        {
            self.lid_of.remove(&old);
        }
        if let Some(old) = self.lid_of.insert(phone, lid.clone())
            && old != lid
        {
            self.phone_of.remove(&old);
        }
        true
    }

    /// The phone number of a LID, where known; every other address is its own canonical form.
    pub fn canonical<'a>(&'a self, jid: &'a Jid) -> &'a Jid {
        if jid.kind == JidKind::Lid { self.phone_of.get(jid).unwrap_or(jid) } else { jid }
    }

    /// The LID of a phone number, where known.
    pub fn lid_of(&self, phone: &Jid) -> Option<&Jid> {
        self.lid_of.get(phone)
    }

    /// How many pairs are known.
    pub fn len(&self) -> usize {
        self.phone_of.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.phone_of.is_empty()
    }
}

/// Real addresses have at most about 40 bytes; ids made of two of them must fit into a path.
const MAX_BYTES: usize = 200;

/// The user without `.agent`, `_agent` and `:device`; `None` if those are not numbers.
fn without_device(user: &str) -> Option<&str> {
    let Some(cut) = user.find([':', '.', '_']) else { return Some(user) };
    let suffix = &user.as_bytes()[cut..];
    suffix.iter().all(|b| b.is_ascii_digit() || b":._".contains(b)).then(|| &user[..cut])
}

fn is_server(server: &str) -> bool {
    !server.is_empty()
        && !server.starts_with('.')
        && server.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jid(text: &str) -> Jid {
        Jid::parse(text).unwrap()
    }

    #[test]
    fn device_and_agent_are_dropped() {
        for text in [
            "40712@s.whatsapp.net",
            "40712:12@s.whatsapp.net",
            "40712.0:12@s.whatsapp.net",
            "40712_1:0@s.whatsapp.net",
            "40712@c.us",
            "40712:99@hosted",
        ] {
            assert_eq!(jid(text).as_str(), "40712@s.whatsapp.net", "{text}");
            assert_eq!(jid(text).kind(), JidKind::User);
        }
        assert_eq!(jid("77:3@lid").as_str(), "77@lid");
        assert_eq!(jid("77:99@hosted.lid").as_str(), "77@lid");
    }

    #[test]
    fn every_kind_is_recognised() {
        assert_eq!(jid("4071-16000@g.us").kind(), JidKind::Group);
        assert_eq!(jid("1203@newsletter").kind(), JidKind::Newsletter);
        assert_eq!(jid("123@broadcast").kind(), JidKind::Broadcast);
        assert_eq!(jid("status@broadcast").kind(), JidKind::Status);
        assert_eq!(jid("1313@bot").kind(), JidKind::Other);
        assert_eq!(jid("40712@s.whatsapp.net").phone().as_deref(), Some("+40712"));
        assert_eq!(jid("77@lid").phone(), None);
    }

    #[test]
    fn odd_texts_are_refused_with_their_reason() {
        assert_eq!(Jid::parse(""), Err(JidError::Empty));
        assert_eq!(Jid::parse("[object Object]"), Err(JidError::NoServer));
        assert_eq!(Jid::parse("undefined"), Err(JidError::NoServer));
        assert_eq!(Jid::parse("[object Object]@s.whatsapp.net"), Err(JidError::User));
        assert_eq!(Jid::parse("@s.whatsapp.net"), Err(JidError::User));
        assert_eq!(Jid::parse("@g.us"), Err(JidError::User));
        assert_eq!(Jid::parse("1/2@g.us"), Err(JidError::User));
        assert_eq!(Jid::parse("40712:x@s.whatsapp.net"), Err(JidError::User));
        assert_eq!(Jid::parse("+40712@s.whatsapp.net"), Err(JidError::User));
        assert_eq!(Jid::parse("1@g.us/x"), Err(JidError::Server));
        assert_eq!(Jid::parse("1@2@g.us"), Err(JidError::Server));
        assert_eq!(Jid::parse("1@"), Err(JidError::Server));
        assert_eq!(Jid::parse("1".repeat(300)), Err(JidError::Long { bytes: 300 }));
    }

    #[test]
    fn an_address_is_never_shown() {
        let j = jid("40712345678@s.whatsapp.net");
        assert!(!format!("{j} {j:?}").contains("712345"));
    }

    #[test]
    fn twins_resolve_to_the_phone_number_and_can_be_corrected() {
        let (l, p, q) = (jid("7@lid"), jid("40@s.whatsapp.net"), jid("41@s.whatsapp.net"));
        let mut twins = Twins::default();
        assert_eq!(twins.canonical(&l), &l);
        assert!(twins.link(l.clone(), p.clone()));
        assert!(!twins.link(l.clone(), p.clone()));
        assert!(!twins.link(p.clone(), l.clone()));
        assert_eq!(twins.canonical(&l), &p);
        assert_eq!(twins.lid_of(&p), Some(&l));
        assert!(twins.link(l.clone(), q.clone()));
        assert_eq!(twins.canonical(&l), &q);
        assert_eq!(twins.lid_of(&p), None);
        assert_eq!(twins.len(), 1);
    }

    #[test]
    fn people_have_numbers_and_other_servers_have_names() {
        assert_eq!(Jid::parse("maria@s.whatsapp.net"), Err(JidError::User));
        assert_eq!(Jid::parse("maria@lid"), Err(JidError::User));
        assert_eq!(jid("meta-ai_1.2:3@bot").as_str(), "meta-ai_1.2:3@bot");
        assert_eq!(jid("1@bot7.example").kind(), JidKind::Other);
        for server in ["Bot", "b-t", ".bot", "b_t", "bot "] {
            assert_eq!(Jid::parse(format!("1@{server}")), Err(JidError::Server), "{server}");
        }
    }

    #[test]
    fn the_longest_address_has_two_hundred_bytes() {
        let of = |bytes: usize| Jid::parse(format!("{}@lid", "1".repeat(bytes - 4)));
        assert_eq!(of(200).map(|jid| jid.as_str().len()), Ok(200));
        assert_eq!(of(201), Err(JidError::Long { bytes: 201 }));
    }

    #[test]
    fn the_masked_form_tells_addresses_apart_and_is_what_is_shown() {
        let (a, b) = (jid("40712345678@s.whatsapp.net"), jid("40712345679@s.whatsapp.net"));
        assert_eq!(a.masked(), jid("40712345678:3@c.us").masked());
        assert_ne!(a.masked(), b.masked());
        assert_eq!((a.to_string(), format!("{a:?}")), (a.masked().into(), format!("User({a})")));
    }

    #[test]
    fn one_person_has_one_number_and_one_lid() {
        let (l, m, p) = (jid("7@lid"), jid("8@lid"), jid("40@s.whatsapp.net"));
        let mut twins = Twins::default();
        assert!(twins.is_empty());
        assert!(!twins.link(l.clone(), m.clone()) && !twins.link(p.clone(), p.clone()));
        assert!(twins.is_empty());
        assert!(twins.link(l.clone(), p.clone()));
        assert!(twins.link(m.clone(), p.clone()), "the number has a new LID");
        assert_eq!(
            (twins.lid_of(&p), twins.canonical(&m), twins.canonical(&l)),
            (Some(&m), &p, &l)
        );
        assert_eq!((twins.len(), twins.is_empty()), (1, false));
        assert!(twins.link(l.clone(), p.clone()), "and its old one again");
        assert_eq!(
            (twins.lid_of(&p), twins.canonical(&l), twins.canonical(&m)),
            (Some(&l), &p, &m)
        );
        assert!(twins.link(m.clone(), jid("41@s.whatsapp.net")));
        assert_eq!(twins.len(), 2);
    }
}
