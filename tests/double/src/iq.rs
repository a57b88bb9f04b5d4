//! The table of IQ requests: what the server answers to each.

use anyhow::Result;
use buffa::Message;
use wacore::iq::prekeys::PreKeyBundleUserNode;
use wacore::protocol::ProtocolNode;
use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Jid, Node};
use waproto::whatsapp as wa;

use crate::keys::{KeyBundle, uploaded_ids};
use crate::log::Seen;
use crate::server::{ConnectionId, Login, State};
use crate::stanza::{attribute, error, jid, result, stream_error};

impl State {
    pub(crate) fn iq(&mut self, id: ConnectionId, iq: &Node) {
        let kind = attribute(iq, "type").unwrap_or_default();
        let Some(stanza) = attribute(iq, "id") else { return };
        if matches!(kind.as_str(), "result" | "error") {
            return self.pairing_answered(id, iq);
        }
        let Some(login) = self.login(id) else {
            if self.candidate(id).is_some() {
                self.pairing_asked(id, &stanza, iq);
            }
            return;
        };
        let xmlns = attribute(iq, "xmlns").unwrap_or_default();
        let request = iq.children().and_then(<[Node]>::first);
        let child = request.map(|request| request.tag.to_string()).unwrap_or_default();
        let seen = Seen::Iq { xmlns: xmlns.clone(), kind: kind.clone(), child: child.clone() };
        self.saw(&login.account, seen);
        let answer = match self.answer(&login, iq, &xmlns, &kind, &child) {
            Ok(children) => result(&stanza, children),
            Err(Refusal { code, text }) => error(&stanza, code, text),
        };
        self.send(id, answer);
        self.follow_up(id, &login, &xmlns, &kind, &child);
    }

    fn answer(
        &mut self,
        login: &Login,
        iq: &Node,
        xmlns: &str,
        kind: &str,
        child: &str,
    ) -> Result<Vec<Node>, Refusal> {
        Ok(match (xmlns, kind, child) {
            ("abt", "get", _) => vec![NodeBuilder::new("props").build()],
            ("encrypt", "get", "count") => {
                let count = self.keys(login).map_or(0, |keys| keys.one_time.len());
                vec![NodeBuilder::new("count").attr("value", count).build()]
            }
            ("encrypt", "get", "digest") => match self.keys(login) {
                Some(keys) => vec![keys.digest()],
                None => return Err(Refusal { code: 404, text: "item-not-found" }),
            },
            ("encrypt", "get", "key") => vec![self.bundles(iq)],
            ("encrypt", "set", "rotate") => {
                let rotation = iq.get_optional_child("rotate");
                if let (Some(keys), Some(rotation)) = (self.keys(login), rotation) {
                    keys.rotate(rotation);
                }
                Vec::new()
            }
            ("encrypt", "set", _) => {
                self.store_keys(login, iq)?;
                Vec::new()
            }
            ("privacy", "get", _) => vec![privacy()],
            ("usync", _, _) => vec![self.usync(iq)],
            ("w:g2", "get", "query") => vec![self.group_info(iq)?],
            ("w:m", "set", "media_conn") => vec![media_conn()],
            ("w:sync:app:state", "set", "sync") => vec![self.sync_collections(login, iq)],
            _ => Vec::new(),
        })
    }

    /// What the answer sets in motion.
    fn follow_up(&mut self, id: ConnectionId, login: &Login, xmlns: &str, kind: &str, child: &str) {
        match (xmlns, kind, child) {
            ("encrypt", "set", _) if child != "rotate" => {
                self.greet(&login.account, login.device);
            }
            ("md", "set", "remove-companion-device") => {
                self.account(&login.account).companions.remove(&login.device);
                self.saw(&login.account, Seen::LoggedOut { device: login.device });
                self.end_stream(id, stream_error(Some(401), Some("device_removed")));
            }
            ("passive", "set", "active") => self.activate(id),
            _ => {}
        }
    }

    fn keys(&mut self, login: &Login) -> Option<&mut KeyBundle> {
        self.account(&login.account).companions.get_mut(&login.device)?.keys.as_mut()
    }

    fn store_keys(&mut self, login: &Login, upload: &Node) -> Result<(), Refusal> {
        let account = self.account(&login.account);
        let Some(companion) = account.companions.get_mut(&login.device) else { return Ok(()) };
        let keys = KeyBundle::merge(companion.keys.take(), upload)
            .map_err(|_| Refusal { code: 406, text: "not-acceptable" })?;
        companion.keys = Some(keys);
        account.log.push(Seen::KeysUploaded { ids: uploaded_ids(upload) });
        Ok(())
    }

    fn bundles(&mut self, iq: &Node) -> Node {
        let asked: Vec<Jid> = iq
            .get_optional_child("key")
            .into_iter()
            .flat_map(|key| key.get_children_by_tag("user"))
            .filter_map(|user| jid(user, "jid"))
            .collect();
        let users = asked.into_iter().filter_map(|jid| self.bundle_of(jid).ok().flatten());
        NodeBuilder::new("list").children(users.collect::<Vec<_>>()).build()
    }

    fn bundle_of(&mut self, jid: Jid) -> Result<Option<Node>> {
        let key = self.directory.key(&jid);
        let user = key.user.as_str();
        let (bundle, identity) = if jid.device != 0 {
            let account = self.accounts.get_mut(user);
            let companion = account.and_then(|account| account.companions.get_mut(&jid.device));
            let Some(companion) = companion else { return Ok(None) };
            let Some(keys) = &mut companion.keys else { return Ok(None) };
            (keys.take()?, Some(companion.device_identity.clone()))
        } else if let Some(account) = self.accounts.get_mut(user) {
            (account.phone.signal.bundle()?, None)
        } else if let Some(person) = self.people.get_mut(user) {
            (person.signal.bundle()?, None)
        } else {
            return Ok(None);
        };
        Ok(Some(PreKeyBundleUserNode::from_bundle(jid, &bundle, identity)?.into_node()))
    }

    fn usync(&mut self, iq: &Node) -> Node {
        let usync = iq.get_optional_child("usync");
        let asked: Vec<Jid> = usync
            .and_then(|usync| usync.get_optional_child("list"))
            .into_iter()
            .flat_map(|list| list.get_children_by_tag("user"))
            .filter_map(|user| jid(user, "jid"))
            .collect();
        let users = asked.into_iter().filter_map(|jid| self.usync_user(jid).ok().flatten());
        let list = NodeBuilder::new("list").children(users.collect::<Vec<_>>()).build();
        let mut answer = NodeBuilder::new("usync");
        for name in ["sid", "mode", "context"] {
            if let Some(value) = usync.and_then(|usync| attribute(usync, name)) {
                answer = answer.attr(name, value);
            }
        }
        answer.children([list]).build()
    }

    fn usync_user(&self, jid: Jid) -> Result<Option<Node>> {
        let bare = jid.to_non_ad();
        let owner = self.accounts.values().find(|a| a.pn == bare || a.lid == bare);
        let person = self.people.values().find(|person| person.pn == bare || person.lid == bare);
        let (lid, companions) = match (owner, person) {
            (Some(owner), _) => (&owner.lid, owner.companions.keys().copied().collect()),
            (None, Some(person)) => (&person.lid, Vec::new()),
            (None, None) => return Ok(None),
        };
        let device = |id: u16| NodeBuilder::new("device").attr("id", id);
        let mut list = vec![device(0).build()];
        list.extend(companions.iter().map(|id| device(*id).attr("key-index", *id).build()));
        let mut devices = vec![NodeBuilder::new("device-list").children(list).build()];
        if let Some(owner) = owner
            && !companions.is_empty()
        {
            let now = wacore::time::now_secs();
            let details = wa::ADVKeyIndexList {
                raw_id: Some(1),
                timestamp: Some(now as u64),
                current_index: companions.last().map(|id| u32::from(*id)),
                valid_indexes: companions.iter().map(|id| u32::from(*id)).collect(),
                ..Default::default()
            }
            .encode_to_vec();
            let signed = wa::ADVSignedKeyIndexList {
                account_signature: Some(owner.phone.signal.sign(&[&[6, 2], &details])?),
                details: Some(details),
                ..Default::default()
            };
            devices.push(
                NodeBuilder::new("key-index-list")
                    .attr("ts", now)
                    .bytes(signed.encode_to_vec())
                    .build(),
            );
        }
        let children = [
            NodeBuilder::new("devices").children(devices).build(),
            NodeBuilder::new("lid").attr("val", lid).build(),
        ];
        Ok(Some(NodeBuilder::new("user").attr("jid", jid).children(children).build()))
    }

    /// Each collection that is asked for is answered: a client that misses one never gets ready.
    fn sync_collections(&mut self, login: &Login, iq: &Node) -> Node {
        let phone = &mut self.account(&login.account).phone;
        let asked = iq
            .get_optional_child("sync")
            .into_iter()
            .flat_map(|sync| sync.get_children_by_tag("collection"));
        let answers = asked.map(|asked| {
            phone.app_state.sync(asked).unwrap_or_else(|_| {
                let conflict = NodeBuilder::new("error").attr("code", "409").build();
                NodeBuilder::new("collection")
                    .attr("name", attribute(asked, "name").unwrap_or_default())
                    .attr("type", "error")
                    .children([conflict])
                    .build()
            })
        });
        NodeBuilder::new("sync").children(answers.collect::<Vec<_>>()).build()
    }

    fn group_info(&self, iq: &Node) -> Result<Node, Refusal> {
        let unknown = Refusal { code: 404, text: "item-not-found" };
        let Some(id) = jid(iq, "to") else { return Err(unknown) };
        let Some(group) = self.groups.get(&id.to_string()) else { return Err(unknown) };
        let participant = |pn: &Jid, lid: &Jid| {
            let member = NodeBuilder::new("participant").attr("jid", lid).attr("phone_number", pn);
            let admin = group.admins.contains(pn.user.as_str());
            if admin { member.attr("type", "admin").build() } else { member.build() }
        };
        let members = group.members.iter().filter_map(|pn| {
            let owner = self.accounts.get(pn).map(|account| (&account.pn, &account.lid));
            let person = self.people.get(pn).map(|person| (&person.pn, &person.lid));
            owner.or(person).map(|(pn, lid)| participant(pn, lid))
        });
        Ok(NodeBuilder::new("group")
            .attr("id", id.user.as_str())
            .attr("subject", group.subject.as_str())
            .attr("s_t", wacore::time::now_secs())
            .attr("creation", wacore::time::now_secs())
            .attr("addressing_mode", "lid")
            .children(members.collect::<Vec<_>>())
            .build())
    }
}

struct Refusal {
    code: u16,
    text: &'static str,
}

fn media_conn() -> Node {
    let host = NodeBuilder::new("host")
        .attr("hostname", "media.double.invalid")
        .attr("type", "primary")
        .children([NodeBuilder::new("download").build()])
        .build();
    NodeBuilder::new("media_conn")
        .attr("auth", "token")
        .attr("ttl", "3600")
        .attr("auth_ttl", "3600")
        .attr("max_buckets", "12")
        .children([host])
        .build()
}

fn privacy() -> Node {
    let category =
        NodeBuilder::new("category").attr("name", "readreceipts").attr("value", "all").build();
    NodeBuilder::new("privacy").children([category]).build()
}
