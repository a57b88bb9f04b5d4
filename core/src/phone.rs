//! One account's phone: who may ask it next, and when.
//!
//! At most one request is in flight. A request outlives its sender: before asking, its time is
//! made durable, and until it can no longer be answered nobody asks again, successors included.

use std::time::Duration;

use crate::bug::Bug;
use crate::host::Host;
use crate::id::RequestId;
use crate::io::RunKind;
use crate::time::{Mono, StoreTime};

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Phone {
    pub(crate) state: PhoneState,
    /// When it may be asked next
    pub(crate) free_at: Mono,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum PhoneState {
    /// Asked; the answer is awaited until a time
    Asked { kind: RunKind, request: RequestId, until: Mono },
    #[default]
    Free,
    /// A reservation is being written
    Reserving(RunKind),
}

impl Phone {
    /// Takes over what an earlier owner may have asked; `abnormal`: it did not give the account back.
    pub(crate) fn adopt(&mut self, host: &Host, asked: Option<StoreTime>, abnormal: bool) {
        let Some(asked) = asked else { return };
        let wait = if abnormal {
            // While all were down the store's clock may have been set: how long ago that was nobody
            // knows.
            occupied(host)
        } else {
            // The estimate of the store's time is never ahead, so the wait is never too short.
            let done = asked + occupied(host);
            done.since(host.store_now()).min(occupied(host) * 2)
        };
        // Both clocks may run apart by the declared bound.
        self.free_at = self.free_at.max(host.now + wait + wait / 40);
    }

    /// A reservation that was sent at `sent` is durable, and the request goes out.
    pub(crate) fn asked(&mut self, host: &Host, kind: RunKind, request: RequestId, sent: Mono) {
        let until = host.now.max(sent) + occupied(host);
        self.state = PhoneState::Asked { kind, request, until };
        self.free_at = until;
    }

    /// The request was answered: only the spacing is left to wait for.
    pub(crate) fn answered(&mut self, host: &Host) {
        if let PhoneState::Asked { until, .. } = self.state {
            let sent = until - occupied(host);
            // The request may have left at the end of its window.
            let spacing = if host.bug(Bug::SpacingIgnored) {
                Duration::ZERO
            } else {
                host.policy.phone.spacing + host.policy.phone.send_window
            };
            self.free_at = host.now.max(sent + spacing);
            self.state = PhoneState::Free;
        }
    }

    /// The request did not leave.
    pub(crate) fn not_asked(&mut self, host: &Host) {
        self.state = PhoneState::Free;
        self.free_at = host.now + host.policy.phone.spacing;
    }

    /// Nobody waits for an answer any more; the request stays in flight all the same.
    pub(crate) fn disconnected(&mut self) {
        self.state = PhoneState::Free;
    }

    /// The run that waits for an answer, and for which.
    pub(crate) fn awaited(&self) -> Option<(RunKind, RequestId, Mono)> {
        match self.state {
            PhoneState::Asked { kind, request, until } => Some((kind, request, until)),
            PhoneState::Free | PhoneState::Reserving(_) => None,
        }
    }

    pub(crate) fn is_free(&self, now: Mono) -> bool {
        self.state == PhoneState::Free && now >= self.free_at
    }
}

/// From its reservation, how long a request counts as in flight.
fn occupied(host: &Host) -> Duration {
    let phone = &host.policy.phone;
    phone.send_window + phone.spacing.max(phone.timeout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::InstanceId;
    use crate::policy::{Policy, Settings};

    /// Spacing 30 s, timeout 60 s, send window 5 s: a request counts for 65 s.
    fn host() -> Host {
        let settings = Settings::exclusive(InstanceId::parse("i").unwrap());
        let mut host = Host::new(Policy::new(settings).unwrap(), [7; 32], Mono::from_millis(1_000));
        host.observe(StoreTime::from_secs(500));
        host
    }

    fn asked(host: &Host) -> Phone {
        let mut phone = Phone::default();
        phone.asked(host, RunKind::RecentSync, RequestId(1), host.now);
        phone
    }

    fn after(host: &Host, secs: u64) -> Mono {
        host.now + Duration::from_secs(secs)
    }

    #[test]
    fn a_predecessors_reservation_still_counts() {
        let (host, mut phone) = (host(), Phone::default());
        phone.adopt(&host, Some(StoreTime::from_secs(480)), false);
        assert!(!phone.is_free(after(&host, 45)), "20 of 65 s are over");
        assert!(phone.is_free(after(&host, 47)));
    }

    #[test]
    fn an_old_reservation_counts_no_more_and_one_from_the_future_not_forever() {
        let (host, mut phone) = (host(), Phone::default());
        phone.adopt(&host, Some(StoreTime::from_secs(430)), false);
        assert!(phone.is_free(host.now));
        phone.adopt(&host, Some(StoreTime::from_secs(9_000_000)), false);
        assert!(!phone.is_free(host.now));
        assert!(phone.is_free(after(&host, 140)));
    }

    #[test]
    fn after_a_crash_a_reservation_counts_from_when_it_is_found() {
        let (host, mut phone) = (host(), Phone::default());
        phone.adopt(&host, None, true);
        assert!(phone.is_free(host.now), "nobody has asked");
        phone.adopt(&host, Some(StoreTime::from_secs(1)), true);
        assert!(!phone.is_free(after(&host, 65)), "its clock may be slow");
        assert!(phone.is_free(after(&host, 67)));
    }

    #[test]
    fn an_answer_leaves_only_the_spacing_to_wait_for() {
        let mut host = host();
        let begun = host.now;
        let mut phone = asked(&host);
        host.now = after(&host, 3);
        phone.answered(&host);
        assert!(!phone.is_free(begun + Duration::from_secs(34)));
        assert!(phone.is_free(begun + Duration::from_secs(35)), "spacing and send window");
    }

    #[test]
    fn a_disconnect_does_not_free_the_phone() {
        let host = host();
        let mut phone = asked(&host);
        phone.disconnected();
        let mut phone = asked(&host);
        assert_eq!(phone.awaited(), Some((RunKind::RecentSync, RequestId(1), after(&host, 65))));
        phone.disconnected();
        assert_eq!(phone.awaited(), None);
        assert!(!phone.is_free(after(&host, 64)));
        assert!(phone.is_free(after(&host, 65)));
    }

    #[test]
    fn nobody_asks_while_a_reservation_is_being_written() {
        let host = host();
        let mut phone =
            Phone { state: PhoneState::Reserving(RunKind::AutoBackfill), ..Phone::default() };
        assert!(!phone.is_free(after(&host, 1_000)));
        phone.not_asked(&host);
        assert!(!phone.is_free(after(&host, 29)));
        assert!(phone.is_free(after(&host, 30)));
    }
}
