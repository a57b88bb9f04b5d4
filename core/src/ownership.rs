//! Who owns an account, and how many one instance should own.

use smol_str::SmolStr;

use crate::doc::{Document, Version};
use crate::id::Epoch;

/// `leases/connection` as it was last read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    pub(crate) owner: Option<SmolStr>,
    pub(crate) epoch: Epoch,
    pub(crate) version: Option<Version>,
}

impl Seen {
    pub(crate) fn parse(doc: Option<&Document>) -> Self {
        Self {
            owner: doc.and_then(|d| d.str("owner")).filter(|o| !o.is_empty()).map(Into::into),
            epoch: Epoch(doc.and_then(|d| d.count("epoch")).unwrap_or(0)),
            version: doc.map(|d| d.version),
        }
    }
}

/// How many of `accounts` each of `instances` may own, so that all are owned.
pub(crate) fn share(accounts: usize, instances: usize) -> usize {
    accounts.div_ceil(instances.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_has_no_owner_and_keeps_its_epoch() {
        let seen = |owner: &'static str| {
            Seen::parse(Some(&Document {
                path: crate::doc::DocPath::parse("accounts/a/leases/connection").unwrap(),
                fields: [
                    ("owner".into(), owner.into()),
                    ("epoch".into(), crate::doc::Value::Int(4)),
                ]
                .into(),
                version: Version(2),
                update_time: crate::time::StoreTime::EPOCH,
            }))
        };
        let given_back = Seen { owner: None, epoch: Epoch(4), version: Some(Version(2)) };
        assert_eq!(seen(""), given_back);
        assert_eq!(seen("b"), Seen { owner: Some("b".into()), ..given_back });
    }

    #[test]
    fn shares_cover_all_accounts() {
        assert_eq!(share(10, 3), 4);
        assert_eq!(share(9, 3), 3);
        assert_eq!(share(0, 3), 0);
        assert_eq!(share(5, 0), 5);
    }
}
