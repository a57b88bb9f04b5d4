//! The lock of exclusive mode, and beside it the lock document that other software knows.

use std::time::Duration;

use smol_str::SmolStr;

use crate::account::is_own_mark;
use crate::bug::Bug;
use crate::doc::{DocPath, Document, FieldPath, Precondition, Version};
use crate::host::Host;
use crate::id::Epoch;
use crate::time::StoreTime;

/// Both locks as they were last read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct LockView {
    pub(crate) owner: Option<SmolStr>,
    pub(crate) epoch: Epoch,
    pub(crate) read_time: StoreTime,
    /// When it was last taken over from software that is not ours
    pub(crate) foreign_at: Option<StoreTime>,
    version: Option<Version>,
    compat: Option<Compat>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Compat {
    holder: SmolStr,
    until_ms: i64,
    version: Version,
    update_time: StoreTime,
}

/// `coordination/lock`: who is ACTIVE in exclusive mode.
pub(crate) fn lock_path() -> DocPath {
    DocPath::parse("coordination/lock").expect("a constant path")
}

/// The lock document that a Node instance looks at.
pub(crate) fn compat_path() -> DocPath {
    DocPath::parse("wa_metrics/longrun/locks/wa_connection").expect("a constant path")
}

impl LockView {
    pub(crate) fn see(&mut self, doc: Option<&Document>) {
        self.owner = doc.and_then(|d| d.str("owner")).filter(|o| !o.is_empty()).map(Into::into);
        self.epoch = Epoch(doc.and_then(|d| d.count("epoch")).unwrap_or(0));
        self.foreign_at = doc.and_then(|d| d.time(FOREIGN_AT.as_str()));
        self.version = doc.map(|d| d.version);
    }

    pub(crate) fn see_compat(&mut self, doc: Option<&Document>) {
        self.compat = doc.map(|doc| Compat {
            holder: doc.str("holderInstanceId").unwrap_or_default().into(),
            until_ms: doc.int("leaseUntil").unwrap_or(0),
            version: doc.version,
            update_time: doc.update_time,
        });
    }

    /// Whether software that is not ours holds the compat lock. What it wrote counts until it
    /// ends by its own word and has not moved for a term and the margin; what has not moved for
    /// three terms counts no more, whatever it says.
    pub(crate) fn foreign_holds(&self, host: &Host, now: StoreTime) -> bool {
        let Some(compat) = self.compat.as_ref().filter(|compat| compat.is_foreign()) else {
            return false;
        };
        if compat.holder.is_empty() || compat.until_ms == 0 || host.bug(Bug::NodeLockIgnored) {
            return false;
        }
        let quiet = now.since(compat.update_time);
        let over = now.as_millis() > compat.until_ms;
        !(over && quiet > COMPAT_TERM + host.policy.margin || quiet > COMPAT_TERM * 3)
    }

    /// Whether software that is not ours had the compat lock last. We never delete it.
    pub(crate) fn foreign_had(&self) -> bool {
        self.compat.as_ref().is_none_or(Compat::is_foreign)
    }

    /// Until when the compat lock says it is held.
    pub(crate) fn compat_until(&self) -> StoreTime {
        StoreTime::from_millis(self.compat.as_ref().map_or(0, |compat| compat.until_ms))
    }

    /// What the compat lock says about its holder.
    pub(crate) fn compat_holder(&self) -> Option<&SmolStr> {
        self.compat.as_ref().map(|compat| &compat.holder).filter(|holder| !holder.is_empty())
    }

    /// For how long others still have to take the compat lock for this cluster's, counted from the
    /// read.
    pub(crate) fn shared_for(&self) -> Option<Duration> {
        let compat = self.compat.as_ref().filter(|compat| compat.holder.starts_with("shared:"))?;
        Some(StoreTime::from_millis(compat.until_ms).since(self.read_time))
    }

    pub(crate) fn unchanged(&self) -> Precondition {
        self.version.map_or(Precondition::Absent, Precondition::Version)
    }

    pub(crate) fn compat_unchanged(&self) -> Precondition {
        self.compat.as_ref().map_or(Precondition::Absent, |c| Precondition::Version(c.version))
    }
}

impl Compat {
    fn is_foreign(&self) -> bool {
        !is_own_mark(&self.holder) && !self.holder.starts_with("shared:")
    }
}

/// On `coordination/lock`: when it was last taken over from software that is not ours.
pub(crate) const FOREIGN_AT: FieldPath = FieldPath::new("foreignAt");
/// The term that a Node instance writes and expects.
pub(crate) const COMPAT_TERM: Duration = Duration::from_secs(90);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doc::Value;
    use crate::id::InstanceId;
    use crate::policy::{Policy, Settings};
    use crate::time::Mono;

    /// Whether a holder counts at `now`, who wrote at second 1000 that it holds until `until`.
    fn counts(holder: &str, until: i64, now: i64) -> bool {
        let settings = Settings::exclusive(InstanceId::parse("i").unwrap());
        let host = Host::new(Policy::new(settings).unwrap(), [7; 32], Mono::from_millis(1));
        let mut view = LockView::default();
        view.see_compat(Some(&Document {
            path: compat_path(),
            fields: [
                ("holderInstanceId".into(), Value::from(holder)),
                ("leaseUntil".into(), Value::Int(until * 1_000)),
            ]
            .into(),
            version: Version(1),
            update_time: StoreTime::from_secs(1_000),
        }));
        view.foreign_holds(&host, StoreTime::from_secs(now))
    }

    #[test]
    fn a_foreign_holder_counts_until_its_own_word_and_a_quiet_term_are_over() {
        assert!(counts("node-1", 1_090, 1_050));
        assert!(counts("node-1", 1_090, 1_095), "the margin");
        assert!(counts("node-1", 1_010, 1_050), "its clock may be behind");
        assert!(!counts("node-1", 1_090, 1_101));
        assert!(!counts("node-1", 1_090, 1_101));
        assert!(
            counts("node-1", 1_090, 1_100) && counts("node-1", 1_101, 1_101),
            "to the last moment"
        );
    }

    #[test]
    fn what_stands_still_for_three_terms_counts_no_more_whatever_it_says() {
        assert!(counts("node-1", 9_000_000, 1_270));
        assert!(!counts("node-1", 9_000_000, 1_271));
    }

    #[test]
    fn our_own_marks_and_what_was_given_back_are_not_foreign() {
        assert!(!counts("i#0123456789abcdef0123", 1_090, 1_050));
        assert!(!counts("shared:c", 1_090, 1_050));
        assert!(!counts("", 1_090, 1_050));
        assert!(!counts("node-1", 0, 1_050));
    }

    #[test]
    fn a_label_equal_to_ours_without_a_boot_is_foreign() {
        assert!(counts("i", 1_090, 1_050));
        assert!(counts("i#short", 1_090, 1_050));
    }

    fn seen(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Document {
        Document {
            path: lock_path(),
            fields: fields.into_iter().map(|(name, value)| (name.into(), value)).collect(),
            version: Version(3),
            update_time: StoreTime::from_secs(1_000),
        }
    }

    #[test]
    fn the_lock_names_its_owner_and_counts_on() {
        let mut view = LockView::default();
        let at = StoreTime::from_secs(900);
        view.see(Some(&seen([
            ("owner", "b".into()),
            ("epoch", Value::Int(7)),
            ("foreignAt", Value::Timestamp(at)),
        ])));
        assert_eq!((view.owner.as_deref(), view.epoch), (Some("b"), Epoch(7)));
        assert_eq!(
            (view.foreign_at, view.unchanged()),
            (Some(at), Precondition::Version(Version(3)))
        );
        view.see(Some(&seen([("owner", "".into()), ("epoch", Value::Int(8))])));
        assert_eq!((view.owner.as_deref(), view.epoch), (None, Epoch(8)));
        view.see(None);
        assert_eq!(view, LockView::default());
    }

    #[test]
    fn the_compat_lock_says_whose_it_is_and_until_when() {
        let until = StoreTime::from_secs(1_090);
        let view = |holder: &'static str| {
            let mut view =
                LockView { read_time: StoreTime::from_secs(1_050), ..Default::default() };
            view.see_compat(Some(&seen([
                ("holderInstanceId", holder.into()),
                ("leaseUntil", Value::Int(until.as_millis())),
            ])));
            assert_eq!(view.compat_until(), until);
            assert_eq!(view.compat_unchanged(), Precondition::Version(Version(3)));
            view
        };
        for (holder, foreign) in
            [("node-1", true), ("i#0123456789abcdef0123", false), ("shared:c", false)]
        {
            let view = view(holder);
            assert_eq!(view.foreign_had(), foreign, "{holder}");
            assert_eq!(view.compat_holder().map(|h| h.as_str()), Some(holder));
            let left = (holder == "shared:c").then_some(Duration::from_secs(40));
            assert_eq!(view.shared_for(), left);
        }
        assert_eq!(view("").compat_holder(), None);
        let nothing = LockView::default();
        assert!(nothing.foreign_had(), "there was a time before us");
        assert_eq!(
            (nothing.compat_until(), nothing.compat_holder(), nothing.shared_for()),
            (StoreTime::EPOCH, None, None)
        );
    }

    #[test]
    fn nothing_there_holds_nothing() {
        let view = LockView::default();
        assert_eq!(view.unchanged(), Precondition::Absent);
        assert_eq!(view.compat_unchanged(), Precondition::Absent);
    }
}
