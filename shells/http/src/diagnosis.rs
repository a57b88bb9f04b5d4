//! How to tell whether an account's sync is running or blocked, and what to do about it.

use backfill_core::doc::{Fields, Value as Field};
use backfill_core::instance::AccountInsight;
use backfill_core::time::StoreTime;
use serde::Serialize;
use utoipa::ToSchema;

use crate::health::status;
use crate::json::iso;

/// What a verdict is made from.
pub(crate) struct Diagnosis<'a> {
    pub(crate) fields: &'a Fields,
    pub(crate) insight: &'a AccountInsight,
    /// The store's time
    pub(crate) now: StoreTime,
    /// Automatic backfill is on
    pub(crate) enabled: bool,
    /// Until when a success keeps the next run off, if it still does
    pub(crate) cooldown: Option<StoreTime>,
    /// Until when an attempt keeps the next run off, if it still does
    pub(crate) backoff: Option<StoreTime>,
}

/// How an account's sync stands, and what is to be done about it.
#[derive(Serialize, ToSchema)]
pub(crate) struct Verdict {
    /// A word for programs
    state: &'static str,
    /// A sentence for people
    summary: String,
    /// What they should do
    action: String,
}

impl Diagnosis<'_> {
    pub(crate) fn verdict(&self) -> Verdict {
        let (state, summary, action) = self.words();
        Verdict { state, summary, action }
    }

    fn words(&self) -> (&'static str, String, String) {
        let text = |name: &str| self.fields.get(name).and_then(Field::as_str);
        let nothing = || "Nothing.".to_owned();
        if self.insight.owner.is_none() {
            return (
                "not_served",
                "No live instance serves this account.".into(),
                "Check that an instance is active, and that the account's credentials lie on its host.".into(),
            );
        }
        match status(self.fields) {
            "connected" => {}
            "qr_ready" | "awaiting_scan" => {
                return (
                    "not_paired",
                    "A QR code waits to be scanned.".into(),
                    "Scan it with the phone.".into(),
                );
            }
            "needs_qr" | "logged_out" => {
                return (
                    "not_paired",
                    format!("The account is not linked ({}).", status(self.fields)),
                    "Regenerate the QR code and scan it with the phone.".into(),
                );
            }
            other => {
                let why = text("lastDisconnectReason").unwrap_or("unknown");
                return (
                    "live_broken",
                    format!("Not connected to WhatsApp ({other}; last reason: {why})."),
                    "It reconnects by itself; if that takes minutes, check the network and the logs for [realtime].".into(),
                );
            }
        }
        if let Some(error) = text("lastRealtimeError") {
            return (
                "live_broken",
                format!("Live messages could not be stored: {error}."),
                "Check the store; the messages are delivered again after the next connect.".into(),
            );
        }
        if let Some(words) = self.of_backfill() {
            return words;
        }
        if !self.enabled {
            return (
                "disabled",
                "Live; automatic backfill is off.".into(),
                "Set AUTO_BACKFILL_ENABLED=true if that is not intended.".into(),
            );
        }
        if let Some(until) = self.cooldown {
            let summary =
                format!("Live; the last backfill went well, cooldown until {}.", iso(until));
            return ("cooldown", summary, nothing());
        }
        if let Some(until) = self.backoff {
            let summary =
                format!("Live; the next part of the history follows after {}.", iso(until));
            return ("backoff", summary, nothing());
        }
        ("due", "Live; a backfill starts with one of the next ticks.".into(), nothing())
    }

    fn of_backfill(&self) -> Option<(&'static str, String, String)> {
        let status = self.fields.get("lastAutoBackfillStatus").and_then(Field::as_map)?;
        let flag = |name: &str| status.get(name).and_then(Field::as_bool);
        let text = |name: &str| status.get(name).and_then(Field::as_str).unwrap_or("unknown");
        if flag("running") == Some(true) {
            let until = self.fields.get("autoBackfillLeaseUntil").and_then(Field::as_time);
            if until.is_some_and(|until| until > self.now) {
                let started = status.get("startedAt").and_then(Field::as_time);
                let started = started.map_or_else(|| "unknown".to_owned(), iso);
                let trigger = text("trigger");
                let summary = format!("A backfill is running since {started} ({trigger}).");
                return Some(("running", summary, "Wait for its end.".into()));
            }
            return Some((
                "interrupted",
                "A backfill was interrupted by a crash.".into(),
                "Nothing: it starts again with one of the next ticks.".into(),
            ));
        }
        if flag("ok") == Some(false) {
            let next = self.backoff.map_or_else(
                || "with one of the next ticks".to_owned(),
                |until| format!("after {}", iso(until)),
            );
            return Some((
                "blocked_on_error",
                format!("Live; the last backfill failed: {}.", text("errorCode")),
                format!("It is tried again {next}. If it keeps failing: is the phone online?"),
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use backfill_core::id::Epoch;

    use super::*;

    const NOW: StoreTime = StoreTime::from_secs(1_000);

    fn verdict(fields: &[(&str, Field)], owned: bool, backoff: Option<StoreTime>) -> &'static str {
        let fields: Fields = fields.iter().map(|(k, v)| ((*k).into(), v.clone())).collect();
        let insight = AccountInsight {
            status: "".into(),
            owner: owned.then(|| "i".into()),
            own: owned,
            epoch: Epoch(1),
            connected: true,
        };
        let diagnosis = Diagnosis {
            fields: &fields,
            insight: &insight,
            now: NOW,
            enabled: true,
            cooldown: None,
            backoff,
        };
        diagnosis.verdict().state
    }

    #[test]
    fn every_state_has_its_word() {
        let connected = ("status", Field::from("connected"));
        let run = |entries: &[(&'static str, Field)]| {
            ("lastAutoBackfillStatus", Field::map(entries.iter().cloned()))
        };
        let running = run(&[("running", true.into())]);
        let lease = |at| ("autoBackfillLeaseUntil", Field::Timestamp(StoreTime::from_secs(at)));
        let failed = run(&[("ok", false.into()), ("errorCode", "x".into())]);
        assert_eq!(verdict(std::slice::from_ref(&connected), false, None), "not_served");
        assert_eq!(verdict(&[("status", "needs_qr".into())], true, None), "not_paired");
        assert_eq!(verdict(&[("status", "disconnected".into())], true, None), "live_broken");
        let error = ("lastRealtimeError", Field::from("store_write_failed"));
        assert_eq!(verdict(&[connected.clone(), error], true, None), "live_broken");
        assert_eq!(
            verdict(&[connected.clone(), running.clone(), lease(1_001)], true, None),
            "running"
        );
        assert_eq!(verdict(&[connected.clone(), running, lease(1_000)], true, None), "interrupted");
        assert_eq!(verdict(&[connected.clone(), failed], true, None), "blocked_on_error");
        assert_eq!(verdict(std::slice::from_ref(&connected), true, Some(NOW)), "backoff");
        assert_eq!(verdict(&[connected], true, None), "due");
    }
}
