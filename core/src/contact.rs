//! What is known of a person's names. Of two words on one of them the latest counts.

use smol_str::SmolStr;

use crate::changes::Changes;
use crate::doc::{DocPath, FieldOp, FieldPath, Fields, Value};
use crate::id::AccountId;
use crate::incoming::{Contact, MAX_LABEL_BYTES, clip};
use crate::jid::Jid;

/// `contacts/{accountId}__{jid}`; `None` if that cannot be a path.
pub(crate) fn path(account: &AccountId, person: &Jid) -> Option<DocPath> {
    let path = smol_str::format_smolstr!("contacts/{}__{}", account.as_str(), person.as_str());
    DocPath::parse(path).ok()
}

/// Per name, as of when it is true, and the name.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Names([Option<(i64, SmolStr)>; 4]);

impl Names {
    /// What one report tells.
    pub(crate) fn reported(contact: Contact) -> Self {
        let Contact { jid: _, name, notify, verified_name, img_url, as_of } = contact;
        let told = |text: SmolStr| (as_of, clip(text, MAX_LABEL_BYTES));
        Self([name, notify, verified_name, img_url].map(|text| text.map(told)))
    }

    /// What a document tells. Names without a date are older than all others.
    pub(crate) fn stored(fields: &Fields) -> Self {
        let dates = fields.get(INGEST.as_str()).and_then(Value::as_map);
        Self(FIELDS.map(|field| {
            let text = fields.get(field.as_str())?.as_str()?;
            let date = dates.and_then(|dates| dates.get(field.as_str())).and_then(Value::as_int);
            Some((date.unwrap_or(i64::MIN), text.into()))
        }))
    }

    /// Puts together what two tell.
    pub(crate) fn join(&mut self, other: Self) {
        for (mine, other) in self.0.iter_mut().zip(other.0) {
            *mine = mine.take().max(other);
        }
    }

    /// What has to change in a document that holds `before`, so that it tells this.
    pub(crate) fn render(
        &self,
        before: Option<&Fields>,
        account: &AccountId,
        person: &Jid,
    ) -> Vec<(FieldPath, FieldOp)> {
        let mut to = Changes::against(before);
        to.set(ACCOUNT_ID, account.text());
        to.set(JID, person.text());
        let mut dates = Fields::new();
        for (field, known) in FIELDS.into_iter().zip(&self.0) {
            if let Some((as_of, text)) = known {
                if *as_of != i64::MIN {
                    dates.insert(field.as_str().into(), (*as_of).into());
                }
                to.set(field, text.clone());
            }
        }
        to.set(INGEST, Value::Map(dates));
        to.finish()
    }
}

const ACCOUNT_ID: FieldPath = FieldPath::new("accountId");
const INGEST: FieldPath = FieldPath::new("ingest");
const JID: FieldPath = FieldPath::new("jid");
const FIELDS: [FieldPath; 4] = [
    FieldPath::new("name"),
    FieldPath::new("notify"),
    FieldPath::new("verifiedName"),
    FieldPath::new("imgUrl"),
];
