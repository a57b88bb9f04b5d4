//! The sessions of other processes, as far as this one has seen them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;

use crate::bug::Bug;
use crate::doc::{CollectionPath, Comparison, Cursor, Document, Query, Version};
use crate::host::Host;
use crate::id::BootId;
use crate::session::LIVE;
use crate::time::{Mono, StoreTime};

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Roster {
    peers: BTreeMap<BootId, Peer>,
    /// Earlier boots of this process: certain never to believe again
    own: BTreeSet<BootId>,
}

/// A session that was live, or not yet known to be dead, when it was last seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    pub(crate) instance: SmolStr,
    pub(crate) since: StoreTime,
    pub(crate) mode: SmolStr,
    pub(crate) active: bool,
    pub(crate) healthy: bool,
    pub(crate) expired: bool,
    version: Version,
    update_time: StoreTime,
    /// When it was first seen expired in this version
    suspect: Option<Mono>,
}

impl Roster {
    /// What to ask the store for, from a session on.
    pub(crate) fn query(after: Option<SmolStr>) -> Query {
        let after = after.map(|id| Cursor { keys: Vec::new(), id });
        let all = Query { after, ..Query::all(CollectionPath::root("instances"), PER_PAGE) };
        all.filter(LIVE, Comparison::Equal, true)
    }

    /// Where to go on after a page, unless it was the last.
    pub(crate) fn next_page(page: &[Arc<Document>]) -> Option<SmolStr> {
        let last = page.last().filter(|_| page.len() >= PER_PAGE as usize)?;
        Some(last.path.id().into())
    }

    /// Notes that a boot of this process is over. What it saw expired, its successor looks at anew.
    pub(crate) fn end_own(&mut self, boot: BootId) {
        self.own.insert(boot);
        if self.own.len() > 16 {
            self.own.pop_first();
        }
        for peer in self.peers.values_mut() {
            peer.suspect = None;
        }
    }

    /// Learns which sessions are live: every page, each with the time at which it was read, so that
    /// a session which is in none of them is not live. Returns those that may be marked dead now.
    pub(crate) fn learn(
        &mut self,
        host: &Host,
        pages: &[(StoreTime, Vec<Arc<Document>>)],
    ) -> Vec<(BootId, Version, StoreTime)> {
        let mut peers = BTreeMap::new();
        let mut dead = Vec::new();
        let docs = pages.iter().flat_map(|(at, page)| page.iter().map(|doc| (*at, doc)));
        for (read_time, doc) in docs {
            let Ok(boot) = BootId::parse(doc.path.id()) else { continue };
            if boot == host.boot {
                continue;
            }
            let mut peer = Peer::parse(host, read_time, doc);
            // A look counts only while the own session stands: then the store works, and an owner
            // that lives had its chance to renew.
            if peer.expired && host.believing() {
                let first = self
                    .peers
                    .get(&boot)
                    .filter(|old| old.version == peer.version)
                    .and_then(|old| old.suspect);
                peer.suspect = Some(first.unwrap_or(host.now));
            }
            if peer.may_be_marked(host, self.own.contains(&boot)) {
                dead.push((boot.clone(), peer.version, peer.update_time));
            }
            peers.insert(boot, peer);
        }
        self.peers = peers;
        dead
    }

    /// A session that somebody marked dead, or that was found to be.
    pub(crate) fn remove(&mut self, boot: &str) {
        self.peers.remove(boot);
    }

    pub(crate) fn peer(&self, boot: &str) -> Option<&Peer> {
        self.peers.get(boot)
    }

    pub(crate) fn peers(&self) -> impl Iterator<Item = (&BootId, &Peer)> {
        self.peers.iter()
    }

    /// An older live session with the same label, if there is one.
    pub(crate) fn elder(&self, host: &Host, since: StoreTime) -> Option<&BootId> {
        self.peers
            .iter()
            .filter(|(boot, peer)| {
                peer.instance == host.policy.instance.as_str()
                    && !peer.expired
                    && !self.own.contains(*boot)
                    && (peer.since, *boot) < (since, &host.boot)
            })
            .map(|(boot, _)| boot)
            .next()
    }
}

impl Peer {
    fn parse(host: &Host, read_time: StoreTime, doc: &Document) -> Self {
        let ttl = Duration::from_millis(doc.count("ttlMs").unwrap_or(0));
        let now = if host.bug(Bug::LocalClockExpiry) {
            host.clock.local(host.now).unwrap_or(read_time)
        } else {
            read_time
        };
        let expired = if host.bug(Bug::ExpiryByWrittenUntil)
            && let Some(until) = doc.time("until")
        {
            until < read_time
        } else {
            now.since(doc.update_time) > ttl
        };
        Self {
            instance: doc.str("instanceId").unwrap_or_default().into(),
            since: doc.time("since").unwrap_or_default(),
            mode: doc.str("mode").unwrap_or_default().into(),
            active: doc.str("state") == Some("active"),
            healthy: doc.bool("gatewayHealthy") != Some(false),
            expired,
            version: doc.version,
            update_time: doc.update_time,
            suspect: None,
        }
    }

    fn may_be_marked(&self, host: &Host, own: bool) -> bool {
        let Some(first) = self.suspect else { return own };
        let apart = host.policy.session_term / 3;
        own || host.bug(Bug::DeadMarkAfterOneLook) || host.now.since(first) >= apart
    }
}

const PER_PAGE: u32 = 200;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doc::Value;
    use crate::id::InstanceId;
    use crate::policy::{Policy, Settings};

    fn host() -> Host {
        let settings = Settings::exclusive(InstanceId::parse("i").unwrap());
        let mut host = Host::new(Policy::new(settings).unwrap(), [7; 32], Mono::from_millis(1_000));
        host.deadline = Mono::NEVER;
        host
    }

    /// A session that was renewed at second 100 with a term of 90 seconds.
    fn session(boot: &str, version: i64, since: i64) -> Arc<Document> {
        let fields = [
            ("instanceId".into(), Value::from("i")),
            ("since".into(), Value::Timestamp(StoreTime::from_secs(since))),
            ("ttlMs".into(), Value::Int(90_000)),
            ("live".into(), Value::from(true)),
        ];
        Arc::new(Document {
            path: BootId::parse(boot).unwrap().path(),
            fields: fields.into(),
            version: Version(version),
            update_time: StoreTime::from_secs(100),
        })
    }

    fn page(read_at: i64, doc: Arc<Document>) -> [(StoreTime, Vec<Arc<Document>>); 1] {
        [(StoreTime::from_secs(read_at), vec![doc])]
    }

    fn look(roster: &mut Roster, host: &mut Host, at_ms: u64, doc: &Arc<Document>) -> usize {
        host.now = Mono::from_millis(at_ms);
        roster.learn(host, &page(191, doc.clone())).len()
    }

    #[test]
    fn a_dead_mark_takes_two_looks_a_third_of_a_term_apart() {
        let (mut roster, mut host) = (Roster::default(), host());
        let doc = session("b", 1, 50);
        assert_eq!(look(&mut roster, &mut host, 1_000, &doc), 0);
        assert_eq!(look(&mut roster, &mut host, 30_999, &doc), 0);
        assert_eq!(look(&mut roster, &mut host, 31_000, &doc), 1);
    }

    #[test]
    fn a_renewal_between_the_looks_begins_anew() {
        let (mut roster, mut host) = (Roster::default(), host());
        assert_eq!(look(&mut roster, &mut host, 1_000, &session("b", 1, 50)), 0);
        assert_eq!(look(&mut roster, &mut host, 31_000, &session("b", 2, 50)), 0);
        assert_eq!(look(&mut roster, &mut host, 61_000, &session("b", 2, 50)), 1);
    }

    #[test]
    fn who_does_not_believe_sees_nothing_expired() {
        let (mut roster, mut host) = (Roster::default(), host());
        let doc = session("b", 1, 50);
        host.deadline = Mono::ZERO;
        assert_eq!(look(&mut roster, &mut host, 1_000, &doc), 0);
        host.deadline = Mono::NEVER;
        assert_eq!(look(&mut roster, &mut host, 40_000, &doc), 0, "the first look");
        assert_eq!(look(&mut roster, &mut host, 70_000, &doc), 1);
    }

    #[test]
    fn a_new_boot_looks_anew() {
        let (mut roster, mut host) = (Roster::default(), host());
        let doc = session("b", 1, 50);
        look(&mut roster, &mut host, 1_000, &doc);
        roster.end_own(BootId::parse("mine").unwrap());
        assert_eq!(look(&mut roster, &mut host, 31_000, &doc), 0);
    }

    #[test]
    fn what_has_not_outlived_its_term_is_not_expired() {
        let (mut roster, mut host) = (Roster::default(), host());
        for at in [1_000, 100_000] {
            host.now = Mono::from_millis(at);
            assert_eq!(roster.learn(&host, &page(190, session("b", 1, 50))), []);
        }
        assert!(roster.peer("b").is_some_and(|peer| !peer.expired));
    }

    #[test]
    fn an_earlier_boot_of_ones_own_is_marked_at_sight() {
        let (mut roster, mut host) = (Roster::default(), host());
        roster.end_own(BootId::parse("b").unwrap());
        assert_eq!(look(&mut roster, &mut host, 1_000, &session("b", 1, 50)), 1);
    }

    #[test]
    fn of_two_with_one_label_the_later_gives_way_to_a_live_one() {
        let (mut roster, host) = (Roster::default(), host());
        let own = StoreTime::from_secs(60);
        roster.learn(&host, &page(110, session("b", 1, 50)));
        assert!(roster.elder(&host, own).is_some());
        assert!(roster.elder(&host, StoreTime::from_secs(40)).is_none(), "that one is the later");
        roster.learn(&host, &page(300, session("b", 1, 50)));
        assert!(roster.elder(&host, own).is_none(), "expired");
        roster.learn(&host, &page(110, session("b", 1, 50)));
        roster.end_own(BootId::parse("b").unwrap());
        assert!(roster.elder(&host, own).is_none(), "an earlier boot of one's own");
    }

    #[test]
    fn of_two_sessions_that_began_in_one_moment_the_boot_decides() {
        let (mut roster, host) = (Roster::default(), host());
        let since = StoreTime::from_secs(50);
        for (boot, elder) in [("!", true), ("~", false)] {
            roster.learn(&host, &page(110, session("b", 1, 50)));
            let mut doc = (*session("b", 1, 50)).clone();
            doc.path = crate::doc::DocPath::parse(format!("instances/{boot}")).unwrap();
            roster.learn(&host, &page(110, Arc::new(doc)));
            assert_eq!(roster.elder(&host, since).is_some(), elder, "{boot}");
        }
    }

    #[test]
    fn only_a_full_page_has_a_next_one() {
        let full: Vec<_> = (0..PER_PAGE).map(|n| session(&format!("b{n:03}"), 1, 50)).collect();
        assert_eq!(Roster::next_page(&full).as_deref(), Some("b199"));
        assert_eq!(Roster::next_page(&full[1..]), None);
        let next = Roster::query(Some("b199".into()));
        assert_eq!(next.after.map(|cursor| cursor.id).as_deref(), Some("b199"));
    }

    #[test]
    fn a_session_says_who_it_is_and_whether_it_can_serve() {
        let (mut roster, host) = (Roster::default(), host());
        let mut doc = (*session("b", 1, 50)).clone();
        let mut peer = |fields: &[(&str, Value)]| {
            doc.fields.extend(fields.iter().map(|(name, value)| ((*name).into(), value.clone())));
            roster.learn(&host, &page(110, Arc::new(doc.clone())));
            let [(boot, peer)] = roster.peers().collect::<Vec<_>>()[..] else { panic!("one") };
            assert_eq!((boot.as_str(), peer.instance.as_str()), ("b", "i"));
            (peer.active, peer.healthy)
        };
        assert_eq!(peer(&[]), (false, true), "whoever does not say is healthy");
        assert_eq!(peer(&[("state", "active".into())]), (true, true));
        assert_eq!(peer(&[("gatewayHealthy", false.into())]), (true, false));
        assert_eq!(
            peer(&[("state", "draining".into()), ("gatewayHealthy", true.into())]),
            (false, true)
        );
        roster.remove("b");
        assert_eq!(roster.peers().count(), 0);
    }
}
