//! One account's connection to WhatsApp: when to open it, when to try again, when to give up.

use std::collections::VecDeque;
use std::time::Duration;

use crate::host::Host;
use crate::id::RequestId;
use crate::io::CloseReason;
use crate::time::Mono;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Link {
    pub(crate) state: LinkState,
    failures: u32,
    opened_at: Option<Mono>,
    replaced: VecDeque<Mono>,
    /// Since when WhatsApp could not be reached
    pub(crate) cut_off_since: Option<Mono>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LinkState {
    /// The gateway was told to close
    Closing(RequestId),
    /// The gateway was told to connect
    Connecting(RequestId),
    /// The marker is being written
    Marking,
    /// Not to be connected
    Off,
    /// Logged in
    Open(RequestId),
    /// Waits for its time to connect, and then for its turn
    Waiting {
        /// When that is
        turn: Option<Mono>,
    },
}

impl Link {
    pub(crate) fn new() -> Self {
        Self {
            state: LinkState::Off,
            failures: 0,
            opened_at: None,
            replaced: VecDeque::new(),
            cut_off_since: None,
        }
    }

    /// The connection that can act or may yet be opened.
    pub(crate) fn connection(&self) -> Option<RequestId> {
        match self.state {
            LinkState::Closing(id) | LinkState::Connecting(id) | LinkState::Open(id) => Some(id),
            LinkState::Marking | LinkState::Off | LinkState::Waiting { .. } => None,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, LinkState::Open(_))
    }

    /// How long the connection has been open; nothing if it is not.
    pub(crate) fn open_for(&self, now: Mono) -> Duration {
        self.opened_at.map_or(Duration::ZERO, |at| now.since(at))
    }

    pub(crate) fn opened(&mut self, host: &Host, connection: RequestId) {
        self.state = LinkState::Open(connection);
        self.opened_at = Some(host.now);
        self.cut_off_since = None;
    }

    /// WhatsApp answered, if only with a code to scan.
    pub(crate) fn reached(&mut self) {
        self.cut_off_since = None;
    }

    /// After a connection ended or could not be opened: how long to wait before the next one, and
    /// whether others take our place again and again.
    pub(crate) fn lost(&mut self, host: &mut Host, reason: CloseReason) -> (Duration, bool) {
        let stable = self.opened_at.is_some_and(|at| host.now.since(at) >= STABLE);
        self.failures = if stable { 0 } else { self.failures.saturating_add(1) };
        if self.opened_at.take().is_none() && self.cut_off_since.is_none() {
            self.cut_off_since = Some(host.now);
        }
        self.state = LinkState::Waiting { turn: None };

        let mut contested = false;
        if reason == CloseReason::Replaced {
            self.replaced.push_back(host.now);
            while self.replaced.front().is_some_and(|at| host.now.since(*at) > CONTEST_WINDOW) {
                self.replaced.pop_front();
            }
            if self.replaced.len() >= CONTESTS {
                self.replaced.clear();
                contested = true;
            }
        }
        let doublings = self.failures.min(16);
        let base = host.policy.reconnect_min.saturating_mul(1 << doublings);
        let longest = base.min(host.policy.reconnect_max);
        (host.jitter(longest / 2, longest), contested)
    }
}

/// A connection that stood this long was not a failure.
const STABLE: Duration = Duration::from_secs(60);
/// This many replacements within [`CONTEST_WINDOW`] are worth an operator's attention.
const CONTESTS: usize = 5;
const CONTEST_WINDOW: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::InstanceId;
    use crate::policy::{Policy, Settings};

    fn host() -> Host {
        let settings = Settings::exclusive(InstanceId::parse("i").unwrap());
        Host::new(Policy::new(settings).unwrap(), [7; 32], Mono::from_millis(1_000))
    }

    fn pass(host: &mut Host, secs: u64) {
        host.now = host.now + Duration::from_secs(secs);
    }

    #[test]
    fn waits_double_with_every_failure_up_to_a_limit() {
        let (mut host, mut link) = (host(), Link::new());
        let mut longest = 2;
        for _ in 0..40 {
            let (wait, contested) = link.lost(&mut host, CloseReason::Lost);
            assert!(
                wait <= Duration::from_secs(longest) && wait >= Duration::from_secs(longest) / 2
            );
            assert!(!contested);
            longest = (longest * 2).min(300);
        }
    }

    #[test]
    fn a_connection_that_stood_a_minute_begins_anew() {
        let (mut host, mut link) = (host(), Link::new());
        for _ in 0..8 {
            link.lost(&mut host, CloseReason::Lost);
        }
        link.opened(&host, RequestId(1));
        pass(&mut host, 60);
        let (wait, _) = link.lost(&mut host, CloseReason::Lost);
        assert!(wait <= Duration::from_secs(1));
        assert_eq!(link.connection(), None);
    }

    #[test]
    fn being_replaced_five_times_in_a_row_is_a_contest() {
        let (mut host, mut link) = (host(), Link::new());
        let mut replaced = |secs| {
            pass(&mut host, secs);
            link.opened(&host, RequestId(1));
            link.lost(&mut host, CloseReason::Replaced).1
        };
        assert_eq!([1, 1, 1, 1, 1].map(&mut replaced), [false, false, false, false, true]);
        assert_eq!([9, 9, 9, 9, 9].map(&mut replaced), [false; 5], "too far apart");
    }

    #[test]
    fn cut_off_counts_from_the_first_failure_to_reach_whatsapp() {
        let (mut host, mut link) = (host(), Link::new());
        link.lost(&mut host, CloseReason::Lost);
        let first = host.now;
        pass(&mut host, 10);
        link.lost(&mut host, CloseReason::Lost);
        assert_eq!(link.cut_off_since, Some(first));
        link.opened(&host, RequestId(1));
        assert_eq!(link.cut_off_since, None);
        link.lost(&mut host, CloseReason::Lost);
        assert_eq!(link.cut_off_since, None, "it was reached until now");
    }

    #[test]
    fn a_connection_can_act_until_it_is_closed() {
        let (mut host, mut link) = (host(), Link::new());
        let id = RequestId(1);
        assert_eq!(
            (link.connection(), link.is_open(), link.open_for(host.now)),
            (None, false, Duration::ZERO)
        );
        link.state = LinkState::Connecting(id);
        assert_eq!((link.connection(), link.is_open()), (Some(id), false));
        link.opened(&host, id);
        pass(&mut host, 7);
        assert_eq!((link.connection(), link.is_open()), (Some(id), true));
        assert_eq!(link.open_for(host.now), Duration::from_secs(7));
        link.state = LinkState::Closing(id);
        assert_eq!((link.connection(), link.is_open()), (Some(id), false));
        link.lost(&mut host, CloseReason::Asked);
        assert_eq!((link.connection(), link.open_for(host.now)), (None, Duration::ZERO));
    }

    #[test]
    fn who_gets_a_code_to_scan_is_not_cut_off() {
        let (mut host, mut link) = (host(), Link::new());
        link.lost(&mut host, CloseReason::Lost);
        assert!(link.cut_off_since.is_some());
        link.reached();
        assert_eq!(link.cut_off_since, None);
    }

    #[test]
    fn a_replacement_half_a_minute_ago_still_counts() {
        let (mut host, mut link) = (host(), Link::new());
        let mut replaced = |secs| {
            pass(&mut host, secs);
            link.lost(&mut host, CloseReason::Replaced).1
        };
        assert_eq!([1, 7, 7, 8, 8].map(&mut replaced), [false, false, false, false, true]);
        assert_eq!([1, 7, 7, 8, 9].map(&mut replaced), [false; 5]);
    }
}
