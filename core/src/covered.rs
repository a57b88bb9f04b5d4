//! A coverage document as the owner of its account keeps it.

use crate::coverage::Coverage;
use crate::doc::{DocPath, Document, Precondition, Version, Write};
use crate::id::{AccountId, ThreadId};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Covered {
    pub(crate) coverage: Coverage,
    version: Option<Version>,
    beat: u64,
    saved: Saved,
}

/// Whether the store has what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Saved {
    No,
    /// A commit with it is under way, and may yet be refused
    UnderWay,
    Yes,
}

impl Covered {
    /// As it was read.
    pub(crate) fn parse(doc: Option<&Document>) -> Self {
        let (coverage, beat) = doc.map_or_else(Default::default, |d| Coverage::parse(&d.fields));
        Self { coverage, version: doc.map(|d| d.version), beat, saved: Saved::Yes }
    }

    /// Whether there is no document of it yet.
    pub(crate) fn is_new(&self) -> bool {
        self.version.is_none()
    }

    /// Whether the store has all of it.
    pub(crate) fn is_saved(&self) -> bool {
        self.saved == Saved::Yes
    }

    /// Whether some of it is in no commit yet.
    pub(crate) fn is_unsaved(&self) -> bool {
        self.saved == Saved::No
    }

    /// Notes whether the coverage was changed.
    pub(crate) fn note(&mut self, changed: bool) {
        if changed {
            self.saved = Saved::No;
        }
    }

    /// The write that saves it, which is sent now.
    pub(crate) fn write(&mut self, account: &AccountId, thread: &ThreadId) -> Option<Write> {
        let path = DocPath::new(&account.coverage(), thread.as_str()).ok()?;
        let precondition = self.version.map_or(Precondition::Absent, Precondition::Version);
        self.saved = Saved::UnderWay;
        Some(Write::merge(path, precondition, self.coverage.to_fields(self.beat + 1)))
    }

    /// The write happened.
    pub(crate) fn written(&mut self, version: Option<Version>) {
        self.version = version;
        self.beat += 1;
        if self.saved == Saved::UnderWay {
            self.saved = Saved::Yes;
        }
    }

    /// The write did not happen. Whether the document is still the one that it was to change, as
    /// far as `found` shows.
    pub(crate) fn refused(&mut self, found: Option<Option<&Document>>) -> bool {
        self.saved = Saved::No;
        found.is_none_or(|doc| doc.map(|d| d.version) == self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::Mark;

    fn with_news() -> Covered {
        let mut covered = Covered::parse(None);
        let message = Mark { id: Some("a".into()), ..Mark::bound(100) };
        let changed = covered.coverage.newer(&message);
        covered.note(changed);
        covered
    }

    fn send(covered: &mut Covered) -> Write {
        let (account, thread) = ("acc", "acc__1@s.whatsapp.net");
        let account = AccountId::parse(account).unwrap();
        covered.write(&account, &ThreadId::parse(thread).unwrap()).unwrap()
    }

    #[test]
    fn it_is_saved_when_its_commit_happened_and_not_when_it_was_sent() {
        let mut covered = with_news();
        assert!(covered.is_unsaved());
        assert_eq!(send(&mut covered).precondition, Precondition::Absent);
        assert!(!covered.is_unsaved() && !covered.is_saved());
        covered.written(Some(Version(3)));
        assert!(covered.is_saved() && !covered.is_new());
        covered.note(true);
        assert_eq!(send(&mut covered).precondition, Precondition::Version(Version(3)));
        assert!(covered.refused(None) && covered.is_unsaved());
    }

    #[test]
    fn what_changes_while_it_is_written_is_written_again() {
        let mut covered = with_news();
        send(&mut covered);
        covered.note(true);
        covered.written(Some(Version(3)));
        assert!(covered.is_unsaved());
    }

    #[test]
    fn a_refusal_tells_whether_somebody_else_wrote() {
        let mut covered = with_news();
        send(&mut covered);
        assert!(covered.refused(Some(None)), "still absent");
        let fields = covered.coverage.to_fields(1).into_iter().filter_map(|(field, op)| match op {
            crate::doc::FieldOp::Set(value) => Some((field.as_str().into(), value)),
            _ => None,
        });
        let other = Document {
            path: AccountId::parse("acc").unwrap().path(),
            fields: fields.collect(),
            version: Version(9),
            update_time: crate::time::StoreTime::EPOCH,
        };
        assert!(!covered.refused(Some(Some(&other))));
    }
}
