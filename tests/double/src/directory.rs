//! Which LID belongs to which phone number.

use std::collections::BTreeMap;

use wacore_binary::Jid;

/// All pairs of phone number and LID in a world
#[derive(Default)]
pub(crate) struct Directory {
    numbers: BTreeMap<String, Jid>,
}

impl Directory {
    pub(crate) fn learn(&mut self, pn: &Jid, lid: &Jid) {
        self.numbers.insert(lid.user.to_string(), pn.clone());
    }

    /// An address without device, and as phone number if that is known: the one form under which
    /// chats and people are kept.
    pub(crate) fn key(&self, address: &Jid) -> Jid {
        match self.numbers.get(address.user.as_str()).filter(|_| address.is_lid()) {
            Some(pn) => pn.clone(),
            None => address.to_non_ad(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_an_address_have_one_key() {
        let (pn, lid) = (Jid::pn("1"), Jid::lid("9"));
        let mut directory = Directory::default();
        directory.learn(&pn, &lid);
        for form in [pn.clone(), lid.clone(), pn.with_device(3), lid.with_device(3)] {
            assert_eq!(directory.key(&form), pn);
        }
        assert_eq!(directory.key(&Jid::pn("9")), Jid::pn("9"), "a number that looks like a LID");
        assert_eq!(directory.key(&Jid::lid("1")), Jid::lid("1"));
    }
}
