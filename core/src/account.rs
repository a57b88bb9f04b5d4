//! `accounts/{id}` and `accounts/{id}/sync/state`: what is read from them and written to them.
//!
//! Only the fields that decisions need are parsed, each with a safe meaning when it is absent or
//! of another type; fields that are not ours are never touched.

use std::collections::BTreeMap;
use std::time::Duration;

use smol_str::SmolStr;

use crate::coverage::Gap;
use crate::doc::{Document, FieldOp, FieldPath, Value};
use crate::id::ThreadId;
use crate::io::RunKind;
use crate::time::StoreTime;

/// What decisions need to know of `accounts/{id}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    pub(crate) status: SmolStr,
    pub(crate) stamps: Stamps,
    /// The newest message that arrived by itself, by WhatsApp's clock, in seconds
    pub(crate) last_message: Option<i64>,
    /// How many history chunks were stored
    pub(crate) history_syncs: u64,
    auto_lease: MirrorLease,
    recent_lease: MirrorLease,
}

/// What says when an account is due for a backfill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Stamps {
    pub(crate) last_auto_at: Option<StoreTime>,
    pub(crate) last_auto_success_at: Option<StoreTime>,
    pub(crate) last_auto_attempt_at: Option<StoreTime>,
    /// The status says that a run is under way
    pub(crate) running: bool,
}

/// A run lease as the account document shows it to people and to other software.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct MirrorLease {
    holder: Option<SmolStr>,
    until: Option<StoreTime>,
    acquired: Option<StoreTime>,
}

impl Record {
    pub(crate) fn parse(doc: Option<&Document>) -> Self {
        let Some(doc) = doc else { return Self::default() };
        let lease = |names: &LeaseFields| MirrorLease {
            holder: doc.str(names.holder.as_str()).map(Into::into),
            until: doc.time(names.until.as_str()),
            acquired: doc.time(names.acquired.as_str()),
        };
        let within = |name: &str| {
            doc.fields.get("lastAutoBackfillStatus").and_then(|v| v.as_map()?.get(name))
        };
        Self {
            status: doc.str(STATUS.as_str()).unwrap_or_default().into(),
            stamps: Stamps {
                last_auto_at: doc.time(LAST_AUTO_BACKFILL_AT.as_str()),
                last_auto_success_at: doc.time(LAST_AUTO_BACKFILL_SUCCESS_AT.as_str()),
                last_auto_attempt_at: doc.time(LAST_AUTO_BACKFILL_ATTEMPT_AT.as_str()),
                running: within("running").and_then(Value::as_bool) == Some(true),
            },
            last_message: doc.time(LAST_REALTIME_MESSAGE_AT.as_str()).map(StoreTime::as_secs),
            history_syncs: doc.count(HISTORY_SYNC_COUNT.as_str()).unwrap_or(0),
            auto_lease: lease(&AUTO_LEASE),
            recent_lease: lease(&RECENT_LEASE),
        }
    }

    /// Whether the account is to be connected when somebody owns it.
    pub(crate) fn wants_connection(&self) -> bool {
        !matches!(self.status.as_str(), "deleted" | "logged_out" | "needs_qr")
    }

    /// Whether the account has been linked, so that its credentials lie somewhere.
    pub(crate) fn is_paired(&self) -> bool {
        matches!(self.status.as_str(), "connected" | "disconnected")
    }

    /// Whether a holder that is not ours keeps a run from starting: such a lease counts until it
    /// ends by its own word, but never longer than a term after it was acquired.
    pub(crate) fn held_by_foreign(&self, kind: RunKind, now: StoreTime, term: Duration) -> bool {
        let lease = match kind {
            RunKind::AutoBackfill => &self.auto_lease,
            RunKind::RecentSync => &self.recent_lease,
        };
        let foreign = lease.holder.as_deref().is_some_and(|h| !h.is_empty() && !is_own_mark(h));
        let until = match (lease.until, lease.acquired) {
            (Some(until), Some(acquired)) => until.min(acquired + term),
            (Some(until), None) => until.min(now + term),
            (None, _) => return false,
        };
        foreign && until > now
    }
}

/// Whether a holder was written by this software: `<INSTANCE_ID>#<boot>`.
pub(crate) fn is_own_mark(holder: &str) -> bool {
    holder.rsplit_once('#').is_some_and(|(label, boot)| !label.is_empty() && boot.len() == 20)
}

/// What the owner of an account must not forget: `accounts/{id}/sync/state`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct SyncState {
    /// The boot that connected and has not said that it disconnected
    pub(crate) connected: Option<SmolStr>,
    pub(crate) connected_since: Option<StoreTime>,
    /// Since when messages may have been missed; closed by a complete drain
    pub(crate) disconnected: Option<StoreTime>,
    /// The newest message before that, by WhatsApp's clock, which may be another than the store's,
    /// in seconds
    pub(crate) last_before: Option<i64>,
    /// No drain can close it
    pub(crate) suspect: bool,
    pub(crate) gaps: Vec<Gap>,
    /// Gaps of single threads
    pub(crate) thread_gaps: BTreeMap<ThreadId, Gap>,
    pub(crate) gap_seq: u64,
    /// The newest gap that every recent thread was compared with
    pub(crate) surveyed: u64,
    /// When the phone was last asked
    pub(crate) asked: Option<StoreTime>,
    /// A history chunk that is being parsed, and how far
    pub(crate) cursor: Option<(u64, u32)>,
}

impl SyncState {
    pub(crate) fn parse(doc: Option<&Document>) -> Self {
        let Some(doc) = doc else { return Self::default() };
        let entries = |name: FieldPath| {
            doc.value(name.as_str()).and_then(Value::as_array).unwrap_or_default().iter()
        };
        let gap = |entry: &Value| {
            let entry = entry.as_map()?;
            let seq = u64::try_from(entry.get("seq")?.as_int()?).ok()?;
            Some(Gap { seq, from: entry.get("from")?.as_int()?, to: entry.get("to")?.as_int()? })
        };
        let mut gaps: Vec<Gap> = entries(GAPS).filter_map(gap).take(MAX_GAPS).collect();
        gaps.sort_by_key(|gap| gap.seq);
        let thread_gaps: BTreeMap<ThreadId, Gap> = entries(THREAD_GAPS)
            .filter_map(|entry| {
                let thread = entry.as_map()?.get("thread")?.as_str()?;
                Some((ThreadId::parse(thread).ok()?, gap(entry)?))
            })
            .take(MAX_THREAD_GAPS)
            .collect();
        let cursor = doc
            .count(SPOOL_CHUNK.as_str())
            .zip(doc.count(SPOOL_CURSOR.as_str()).and_then(|n| u32::try_from(n).ok()));
        let last_gap =
            gaps.iter().chain(thread_gaps.values()).map(|gap| gap.seq).max().unwrap_or(0);
        Self {
            connected: doc.str(CONNECTED_BOOT.as_str()).map(Into::into),
            connected_since: doc.time(CONNECTED_SINCE.as_str()),
            disconnected: doc.time(DISCONNECTED_SINCE.as_str()),
            last_before: doc.int(DISCONNECTED_AFTER.as_str()),
            suspect: doc.bool(DISCONNECT_SUSPECT.as_str()).unwrap_or(false),
            gaps,
            thread_gaps,
            gap_seq: doc.count(GAP_SEQ.as_str()).unwrap_or(0).max(last_gap),
            surveyed: doc.count(SURVEYED.as_str()).unwrap_or(0),
            asked: doc.time(ASKED_AT.as_str()),
            cursor,
        }
    }

    /// Adds a gap that concerns every thread. Beyond a bound the two oldest become one, the wider
    /// claim being the safe one; what the phone is not promised to be asked for any more is dropped.
    pub(crate) fn add_gap(&mut self, from: i64, to: i64) {
        let gap = self.number_gap(from, to);
        self.gaps.retain(|old| gap.to.saturating_sub(old.to) < FORGOTTEN_AFTER);
        self.gaps.push(gap);
        if self.gaps.len() > MAX_GAPS {
            let oldest = self.gaps.remove(0);
            self.gaps[0].from = self.gaps[0].from.min(oldest.from);
            self.gaps[0].to = self.gaps[0].to.max(oldest.to);
        }
    }

    /// Adds a gap in one thread; beyond a bound it concerns every thread.
    pub(crate) fn add_thread_gap(&mut self, thread: ThreadId, from: i64, to: i64) {
        if self.thread_gaps.len() >= MAX_THREAD_GAPS && !self.thread_gaps.contains_key(&thread) {
            self.add_gap(from, to);
            return;
        }
        let mut gap = self.number_gap(from, to);
        if let Some(old) = self.thread_gaps.get(&thread) {
            gap.from = gap.from.min(old.from);
            gap.to = gap.to.max(old.to);
        }
        self.thread_gaps.insert(thread, gap);
    }

    /// What may be missing in a thread may be missing in the one to which it leads.
    pub(crate) fn move_thread_gap(&mut self, thread: &ThreadId, to: ThreadId) {
        if let Some(gap) = self.thread_gaps.remove(thread) {
            self.add_thread_gap(to, gap.from, gap.to);
        }
    }

    /// The gaps that concern a thread, in order.
    pub(crate) fn gaps_of(&self, thread: &ThreadId) -> Vec<Gap> {
        let mut gaps = self.gaps.clone();
        gaps.extend(self.thread_gaps.get(thread));
        gaps.sort_by_key(|gap| gap.seq);
        gaps
    }

    /// All gaps, as far as another owner has to know them.
    pub(crate) fn gaps(&self) -> Gaps {
        let range = |gap: &Gap| (gap.from, gap.to);
        let threads = self.thread_gaps.iter().map(|(thread, gap)| (thread.clone(), range(gap)));
        Gaps { all: self.gaps.iter().map(range).collect(), threads: threads.collect() }
    }

    /// Adds what of these gaps it does not have yet. Whether that was anything.
    pub(crate) fn remember(&mut self, gaps: Gaps) -> bool {
        let before = self.gap_seq;
        for (from, to) in gaps.all {
            if !self.gaps.iter().any(|gap| gap.from <= from && to <= gap.to) {
                self.add_gap(from, to);
            }
        }
        for (thread, (from, to)) in gaps.threads {
            let known = self.thread_gaps.get(&thread);
            if !known.is_some_and(|gap| gap.from <= from && to <= gap.to) {
                self.add_thread_gap(thread, from, to);
            }
        }
        self.gap_seq > before
    }

    fn number_gap(&mut self, from: i64, to: i64) -> Gap {
        self.gap_seq = self.gap_seq.saturating_add(1);
        Gap { seq: self.gap_seq, from, to: to.max(from) }
    }

    /// The newest gap.
    pub(crate) fn latest_gap(&self) -> u64 {
        self.gaps.last().map_or(0, |gap| gap.seq)
    }

    pub(crate) fn gap_fields(&self) -> Vec<(FieldPath, FieldOp)> {
        let entries = |gap: &Gap| {
            [
                ("seq", Value::from(gap.seq)),
                ("from", Value::Int(gap.from)),
                ("to", Value::Int(gap.to)),
            ]
        };
        let gaps = self.gaps.iter().map(|gap| Value::map(entries(gap))).collect();
        let threads = self
            .thread_gaps
            .iter()
            .map(|(thread, gap)| {
                let name = ("thread", Value::from(thread.text()));
                Value::map(entries(gap).into_iter().chain([name]))
            })
            .collect();
        vec![
            (GAPS, Value::Array(gaps).into()),
            (THREAD_GAPS, Value::Array(threads).into()),
            (GAP_SEQ, Value::from(self.gap_seq).into()),
            (SURVEYED, Value::from(self.surveyed).into()),
        ]
    }

    /// Messages may have been missed since then. What was so before, stays so.
    pub(crate) fn note_disconnect(&mut self, since: StoreTime, last_before: Option<i64>) {
        if self.disconnected.is_none() {
            self.last_before = last_before;
        }
        self.disconnected = Some(self.disconnected.map_or(since, |at| at.min(since)));
    }

    pub(crate) fn disconnect_fields(&self) -> Vec<(FieldPath, FieldOp)> {
        vec![
            (DISCONNECTED_AFTER, self.last_before.map_or(Value::Null, Value::Int).into()),
            (DISCONNECTED_SINCE, Value::from(self.disconnected).into()),
            (DISCONNECT_SUSPECT, Value::from(self.suspect).into()),
        ]
    }
}

/// Times, in seconds, in which messages may be missing: first and last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Gaps {
    /// In every thread
    all: Vec<(i64, i64)>,
    /// In single threads
    threads: BTreeMap<ThreadId, (i64, i64)>,
}

impl Gaps {
    /// Adds a message that is missing in a thread.
    pub(crate) fn add(&mut self, thread: ThreadId, second: i64) {
        if self.threads.len() >= MAX_THREAD_GAPS && !self.threads.contains_key(&thread) {
            match self.all.last_mut() {
                Some((from, to)) => (*from, *to) = (second.min(*from), second.max(*to)),
                None => self.all.push((second, second)),
            }
            return;
        }
        let (from, to) = self.threads.entry(thread).or_insert((second, second));
        (*from, *to) = (second.min(*from), second.max(*to));
    }
}

/// The fields that mirror a run lease on the account.
pub(crate) struct LeaseFields {
    pub(crate) until: FieldPath,
    pub(crate) holder: FieldPath,
    pub(crate) acquired: FieldPath,
}

pub(crate) const fn lease_fields(kind: RunKind) -> &'static LeaseFields {
    match kind {
        RunKind::AutoBackfill => &AUTO_LEASE,
        RunKind::RecentSync => &RECENT_LEASE,
    }
}

static AUTO_LEASE: LeaseFields = LeaseFields {
    until: FieldPath::new("autoBackfillLeaseUntil"),
    holder: FieldPath::new("autoBackfillLeaseHolder"),
    acquired: FieldPath::new("autoBackfillLeaseAcquiredAt"),
};
static RECENT_LEASE: LeaseFields = LeaseFields {
    until: FieldPath::new("recentSyncLeaseUntil"),
    holder: FieldPath::new("recentSyncLeaseHolder"),
    acquired: FieldPath::new("recentSyncLeaseAcquiredAt"),
};

pub(crate) const ASKED_AT: FieldPath = FieldPath::new("askedAt");
pub(crate) const ASKED_ANCHOR: FieldPath = FieldPath::new("askedAnchor");
pub(crate) const ASKED_THREAD: FieldPath = FieldPath::new("askedThread");
pub(crate) const ASKED_TRY: FieldPath = FieldPath::new("askedTry");
pub(crate) const CONNECTED_BOOT: FieldPath = FieldPath::new("connectedBoot");
pub(crate) const CONNECTED_SINCE: FieldPath = FieldPath::new("connectedSince");
const DISCONNECTED_AFTER: FieldPath = FieldPath::new("disconnectedAfter");
const DISCONNECTED_SINCE: FieldPath = FieldPath::new("disconnectedSince");
const DISCONNECT_SUSPECT: FieldPath = FieldPath::new("disconnectSuspect");
pub(crate) const GAPS: FieldPath = FieldPath::new("gaps");
const GAP_SEQ: FieldPath = FieldPath::new("gapSeq");
pub(crate) const HISTORY_SYNC_COUNT: FieldPath = FieldPath::new("historySyncCount");
pub(crate) const LAST_AUTO_BACKFILL_AT: FieldPath = FieldPath::new("lastAutoBackfillAt");
pub(crate) const LAST_AUTO_BACKFILL_ATTEMPT_AT: FieldPath =
    FieldPath::new("lastAutoBackfillAttemptAt");
pub(crate) const LAST_AUTO_BACKFILL_STATUS: FieldPath = FieldPath::new("lastAutoBackfillStatus");
pub(crate) const LAST_AUTO_BACKFILL_SUCCESS_AT: FieldPath =
    FieldPath::new("lastAutoBackfillSuccessAt");
pub(crate) const LAST_BACKFILL_AT: FieldPath = FieldPath::new("lastBackfillAt");
pub(crate) const LAST_BACKFILL_RESULT: FieldPath = FieldPath::new("lastBackfillResult");
pub(crate) const LAST_DISCONNECTED_AT: FieldPath = FieldPath::new("lastDisconnectedAt");
pub(crate) const LAST_DISCONNECT_REASON: FieldPath = FieldPath::new("lastDisconnectReason");
pub(crate) const LAST_ERROR: FieldPath = FieldPath::new("lastError");
pub(crate) const LAST_HISTORY_SYNC_AT: FieldPath = FieldPath::new("lastHistorySyncAt");
pub(crate) const LAST_HISTORY_SYNC_RESULT: FieldPath = FieldPath::new("lastHistorySyncResult");
pub(crate) const LAST_REALTIME_ERROR: FieldPath = FieldPath::new("lastRealtimeError");
pub(crate) const LAST_REALTIME_INGEST_AT: FieldPath = FieldPath::new("lastRealtimeIngestAt");
pub(crate) const LAST_REALTIME_MESSAGE_AT: FieldPath = FieldPath::new("lastRealtimeMessageAt");
pub(crate) const LAST_RECENT_SYNC_AT: FieldPath = FieldPath::new("lastRecentSyncAt");
pub(crate) const LAST_RECENT_SYNC_RESULT: FieldPath = FieldPath::new("lastRecentSyncResult");
pub(crate) const PAIRING_CODE: FieldPath = FieldPath::new("pairingCode");
pub(crate) const QR_CODE: FieldPath = FieldPath::new("qrCode");
pub(crate) const SPOOL_CHUNK: FieldPath = FieldPath::new("spoolChunk");
pub(crate) const SPOOL_CURSOR: FieldPath = FieldPath::new("spoolCursor");
pub(crate) const STATUS: FieldPath = FieldPath::new("status");
const SURVEYED: FieldPath = FieldPath::new("surveyed");
const THREAD_GAPS: FieldPath = FieldPath::new("threadGaps");
pub(crate) const UPDATED_AT: FieldPath = FieldPath::new("updatedAt");

/// Gaps that ended this many seconds before the newest are forgotten: 14 days.
const FORGOTTEN_AFTER: i64 = 14 * 24 * 3_600;
const MAX_GAPS: usize = 16;
const MAX_THREAD_GAPS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doc::{DocPath, Version};

    fn doc(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Document {
        Document {
            path: DocPath::parse("accounts/a").unwrap(),
            fields: fields.into_iter().map(|(k, v)| (k.into(), v)).collect(),
            version: Version(1),
            update_time: StoreTime::EPOCH,
        }
    }

    fn at(s: i64) -> StoreTime {
        StoreTime::from_secs(s)
    }

    #[test]
    fn wrong_types_read_as_absent() {
        let record = Record::parse(Some(&doc([
            ("status", Value::Int(7)),
            ("lastAutoBackfillAt", "yesterday".into()),
            ("lastAutoBackfillStatus", "running".into()),
            ("autoBackfillLeaseUntil", Value::Int(i64::MAX)),
        ])));
        assert_eq!(record, Record::default());
        let sync = SyncState::parse(Some(&doc([
            ("gaps", Value::Array(vec![Value::Null, Value::map([("seq", Value::Int(-1))])])),
            ("gapSeq", Value::Int(-4)),
            ("threadGaps", Value::Bool(true)),
        ])));
        assert_eq!(sync, SyncState::default());
    }

    #[test]
    fn only_what_is_linked_or_may_be_linked_is_connected() {
        let with = |status: &str| Record::parse(Some(&doc([("status", status.into())])));
        for (status, wanted, paired) in [
            ("connecting", true, false),
            ("qr_ready", true, false),
            ("connected", true, true),
            ("disconnected", true, true),
            ("needs_qr", false, false),
            ("logged_out", false, false),
            ("deleted", false, false),
        ] {
            let record = with(status);
            assert_eq!(
                (record.wants_connection(), record.is_paired()),
                (wanted, paired),
                "{status}"
            );
        }
    }

    #[test]
    fn a_foreign_lease_counts_no_longer_than_its_term() {
        let term = Duration::from_secs(900);
        let lease = |holder: &str, until, acquired| {
            Record::parse(Some(&doc([
                ("autoBackfillLeaseHolder", holder.into()),
                ("autoBackfillLeaseUntil", Value::Timestamp(at(until))),
                ("autoBackfillLeaseAcquiredAt", Value::Timestamp(at(acquired))),
            ])))
        };
        let held = |r: &Record, now| r.held_by_foreign(RunKind::AutoBackfill, at(now), term);
        assert!(held(&lease("node-1", 2_000, 1_500), 1_999));
        assert!(!held(&lease("node-1", 2_000, 1_500), 2_000));
        assert!(!held(&lease("node-1", 99_999, 1_000), 1_900), "a clock that runs ahead");
        assert!(!held(&lease("me#0123456789abcdef0123", 2_000, 1_500), 1_600), "one of ours");
        assert!(!held(&lease("", 2_000, 1_500), 1_600));
        let undated = Record::parse(Some(&doc([
            ("autoBackfillLeaseHolder", "node-1".into()),
            ("autoBackfillLeaseUntil", Value::Timestamp(at(2_000))),
        ])));
        assert!(held(&undated, 1_600), "nobody knows since when");
    }

    #[test]
    fn too_many_gaps_become_wider_never_fewer_seconds() {
        let mut sync = SyncState::default();
        for i in 0..40 {
            sync.add_gap(1_000 - i, 2_000);
        }
        assert_eq!(sync.gaps.len(), MAX_GAPS);
        assert_eq!(sync.gaps[0].from, 1_000 - 24);
        assert_eq!(sync.latest_gap(), 40);
    }

    #[test]
    fn a_gap_is_forgotten_when_another_ends_two_weeks_later() {
        const TWO_WEEKS: i64 = 1_209_600;
        let mut sync = SyncState::default();
        sync.add_gap(0, 100);
        sync.add_gap(0, 100 + TWO_WEEKS - 1);
        assert_eq!(sync.gaps.len(), 2);
        sync.add_gap(0, 100 + TWO_WEEKS);
        assert_eq!(sync.gaps.iter().map(|gap| gap.seq).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn of_what_an_earlier_tenure_noticed_only_the_covered_is_known() {
        let thread = |n: i64| ThreadId::parse(format!("t{n}")).unwrap();
        let known = |add: &[(i64, i64)]| {
            let mut sync = SyncState::default();
            for (from, to) in add {
                sync.add_gap(*from, *to);
                sync.add_thread_gap(thread(1), *from, *to);
            }
            sync
        };
        assert!(!known(&[(10, 20)]).remember(known(&[(10, 20)]).gaps()));
        assert!(!known(&[(10, 20)]).remember(known(&[(12, 18)]).gaps()));
        for beyond in [(9, 20), (10, 21), (1, 5), (25, 30)] {
            let mut sync = known(&[(10, 20)]);
            assert!(sync.remember(known(&[beyond]).gaps()), "{beyond:?}");
            assert_eq!(sync.gaps.iter().map(|gap| (gap.from, gap.to)).nth(1), Some(beyond));
            let wide = &sync.thread_gaps[&thread(1)];
            assert_eq!((wide.from, wide.to), (beyond.0.min(10), beyond.1.max(20)));
        }
    }

    #[test]
    fn what_an_earlier_tenure_noticed_is_added_once() {
        let thread = |n: i64| ThreadId::parse(format!("t{n}")).unwrap();
        let mut unsaved = Gaps::default();
        unsaved.add(thread(1), 10);
        unsaved.add(thread(1), 8);
        unsaved.add(thread(2), 5);
        let mut sync = SyncState::default();
        sync.add_thread_gap(thread(2), 4, 6);
        assert!(sync.remember(unsaved.clone()));
        assert_eq!(sync.gap_seq, 2);
        assert_eq!((sync.thread_gaps[&thread(1)].from, sync.thread_gaps[&thread(1)].to), (8, 10));
        assert!(!sync.remember(unsaved));
        assert!(!sync.remember(sync.gaps()));
        for n in 0..100 {
            unsaved_grows_no_further(&mut sync, n);
        }
    }

    fn unsaved_grows_no_further(sync: &mut SyncState, n: i64) {
        let mut unsaved = Gaps::default();
        for i in 0..100 {
            unsaved.add(ThreadId::parse(format!("u{i}")).unwrap(), n * 100 + i);
        }
        assert!(unsaved.threads.len() <= MAX_THREAD_GAPS && unsaved.all.len() <= MAX_GAPS);
        sync.remember(unsaved);
        assert!(sync.thread_gaps.len() <= MAX_THREAD_GAPS && sync.gaps.len() <= MAX_GAPS);
    }

    #[test]
    fn the_first_disconnect_counts_until_a_drain_closes_it() {
        let mut sync = SyncState::default();
        sync.note_disconnect(at(100), Some(90));
        sync.note_disconnect(at(200), Some(190));
        sync.note_disconnect(at(50), None);
        assert_eq!((sync.disconnected, sync.last_before), (Some(at(50)), Some(90)));
        let mut read = doc([]);
        read.fields.extend(sync.disconnect_fields().into_iter().map(|(name, op)| match op {
            FieldOp::Set(value) => (SmolStr::from(name.as_str()), value),
            other => unreachable!("{other:?}"),
        }));
        assert_eq!(SyncState::parse(Some(&read)), sync);
    }

    #[test]
    fn gaps_survive_being_written_and_read() {
        let mut sync = SyncState::default();
        sync.add_gap(5, 6);
        sync.add_thread_gap(ThreadId::parse("t").unwrap(), 9, 10);
        sync.add_thread_gap(ThreadId::parse("t").unwrap(), 7, 8);
        sync.surveyed = 1;
        let fields = sync.gap_fields().into_iter().map(|(name, op)| match op {
            FieldOp::Set(value) => (name.as_str().to_owned(), value),
            other => unreachable!("{other:?}"),
        });
        let mut doc = doc([]);
        doc.fields.extend(fields.map(|(k, v)| (SmolStr::from(k), v)));
        assert_eq!(SyncState::parse(Some(&doc)), sync);
    }
}
