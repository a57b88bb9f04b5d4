//! From WhatsApp's protocol buffers to the core's records.

mod content;
mod history;
mod live;
mod names;
mod receipt;

use backfill_core::incoming::Author;
use backfill_core::jid::Jid;
use smol_str::{SmolStr, ToSmolStr};

pub(crate) use history::{Leftovers, Page, conversation, leftovers};
pub(crate) use live::{message, undecryptable};
pub(crate) use names::{archived, contact, group_subject, push_name};
pub(crate) use receipt::receipts;

/// Both names of the account's owner.
#[derive(Clone, Debug, Default)]
pub(crate) struct Me {
    pub(crate) pn: Option<Jid>,
    pub(crate) lid: Option<Jid>,
}

impl Me {
    pub(crate) fn new(pn: Option<&wacore_binary::Jid>, lid: Option<&wacore_binary::Jid>) -> Self {
        let parse = |jid: &wacore_binary::Jid| Jid::parse(jid.to_smolstr()).ok();
        Self { pn: pn.and_then(parse), lid: lid.and_then(parse) }
    }

    /// Whether an address, as it arrived, is the owner's.
    fn is(&self, address: &str) -> bool {
        let Ok(jid) = Jid::parse(address) else { return false };
        self.pn.as_ref() == Some(&jid) || self.lid.as_ref() == Some(&jid)
    }

    fn author(&self, address: &str) -> Author {
        if self.is(address) { Author::Me } else { Author::Person(address.into()) }
    }
}

/// A name, unless it is blank.
fn name(text: Option<&str>) -> Option<SmolStr> {
    text.map(str::trim).filter(|text| !text.is_empty()).map(SmolStr::new)
}

fn seconds(unsigned: u64) -> i64 {
    i64::try_from(unsigned).unwrap_or(i64::MAX)
}

/// The time until which WhatsApp's seconds can be written as milliseconds.
fn millis(seconds: i64) -> i64 {
    seconds.saturating_mul(1_000)
}
