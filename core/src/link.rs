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
    /// When WhatsApp could not be reached first, and last
    cut_off: Option<(Mono, Mono)>,
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
            cut_off: None,
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
        self.cut_off = None;
    }

    /// WhatsApp answered, if only with a code to scan.
    pub(crate) fn reached(&mut self) {
        self.cut_off = None;
    }

    /// For how long it is known that WhatsApp cannot be reached.
    pub(crate) fn cut_off_for(&self) -> Duration {
        self.cut_off.map_or(Duration::ZERO, |(first, last)| last.since(first))
    }

    /// After a connection ended or could not be opened: how long to wait before the next one, and
    /// whether others take our place again and again.
    pub(crate) fn lost(&mut self, host: &mut Host, reason: CloseReason) -> (Duration, bool) {
        let stable = self.opened_at.is_some_and(|at| host.now.since(at) >= STABLE);
        self.failures = if stable { 0 } else { self.failures.saturating_add(1) };
        if self.opened_at.take().is_none() {
            let (first, _) = self.cut_off.unwrap_or((host.now, host.now));
            self.cut_off = Some((first, host.now));
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
        let wait = host.jitter(longest / 2, longest);
        // Nothing is given up without another look.
        let left = host.policy.cut_off_after.saturating_sub(self.cut_off_for());
        let looks_again = self.cut_off.is_some() && !left.is_zero();
        (if looks_again { wait.min(left) } else { wait }, contested)
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
            link.opened(&host, RequestId(1));
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
        pass(&mut host, 10);
        link.lost(&mut host, CloseReason::Lost);
        pass(&mut host, 1);
        assert_eq!(link.cut_off_for(), Duration::from_secs(10), "what has come since is not known");
        link.opened(&host, RequestId(1));
        assert_eq!(link.cut_off_for(), Duration::ZERO);
        pass(&mut host, 10);
        link.lost(&mut host, CloseReason::Lost);
        assert_eq!(link.cut_off_for(), Duration::ZERO, "it was reached until now");
    }

    #[test]
    fn it_looks_again_when_it_would_count_as_cut_off() {
        let (mut host, mut link) = (host(), Link::new());
        let limit = host.policy.cut_off_after;
        let begin = host.now;
        while link.cut_off_for() < limit {
            let (wait, _) = link.lost(&mut host, CloseReason::Lost);
            host.now = host.now + wait;
            assert!(host.now <= begin + limit || link.cut_off_for() == limit);
        }
        assert_eq!(link.cut_off_for(), limit);
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
        for _ in 0..2 {
            link.lost(&mut host, CloseReason::Lost);
            pass(&mut host, 5);
        }
        assert_eq!(link.cut_off_for(), Duration::from_secs(5));
        link.reached();
        assert_eq!(link.cut_off_for(), Duration::ZERO);
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
