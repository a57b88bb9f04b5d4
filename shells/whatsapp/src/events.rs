//! What the client tells besides messages.

use std::sync::{Arc, Weak};

use backfill_core::incoming::Record;
use backfill_core::io::CloseReason;
use wacore::stanza::groups::GroupNotificationAction;
use wacore::types::events::{
    ConnectFailureReason, DecryptFailMode, Event, EventHandler, EventInterest, EventKind,
    GroupUpdate, UnavailableType,
};
use wacore_binary::OwnedNodeRef;

use crate::aside::Aside;
use crate::chunk::Arrivals;
use crate::convert;
use crate::link::Link;
use crate::pair;

/// Takes the client's events as they are dispatched, which must not wait.
pub(crate) struct Events {
    /// The client holds this as long as it lives, and the link the client
    link: Weak<Link>,
    history: Arrivals,
}

impl Events {
    pub(crate) fn new(link: &Arc<Link>, history: Arrivals) -> Self {
        Self { link: Arc::downgrade(link), history }
    }
}

impl EventHandler for Events {
    fn handle_event(&self, event: Arc<Event>) {
        if let Event::HistorySync(sync) = &*event {
            return self.history.take(sync);
        }
        let Some(link) = self.link.upgrade() else { return };
        match &*event {
            Event::RawNode(node) => stanza(&link, node),
            Event::OfflineSyncPreview(preview) => {
                link.drain().announced(u32::try_from(preview.messages).unwrap_or(0));
            }
            Event::OfflineSyncCompleted(_) => link.drained(),
            Event::Messages(batch) if !batch.hook_committed => {
                link.aside(Aside::Messages(Arc::clone(&batch.messages)));
            }
            Event::Receipt(receipt) => link.aside(Aside::Records(convert::receipts(receipt))),
            // What is hidden only changes another message, as a reaction does, and leaves no gap.
            Event::UndecryptableMessage(message)
                if message.decrypt_fail_mode == DecryptFailMode::Show =>
            {
                let info = Arc::clone(&message.info);
                // The phone has nothing of it either.
                let lost = message.unavailable_type == UnavailableType::ViewOnce;
                link.aside(Aside::Undecryptable { info, lost });
            }
            Event::ContactUpdate(update) => {
                link.aside(Aside::Records(vec![convert::contact(update)]));
            }
            Event::ArchiveUpdate(update) => {
                link.aside(Aside::Records(vec![convert::archived(update)]));
            }
            Event::GroupUpdate(update) => {
                if let Some(subject) = subject(update) {
                    link.aside(Aside::Records(vec![subject]));
                }
            }
            Event::ServerAck(ack) => link.acknowledged(ack),

            Event::PairingQrCode(qr) => {
                link.show_qr(pair::picture(&qr.code));
            }
            Event::PairingCode(code) => link.show_code(Some(code.code.as_str().into())),
            Event::PairingCodeRefresh(_) => link.aside(Aside::AskForCode),
            Event::PairingQrCodesExhausted(exhausted) => {
                if exhausted.disconnected {
                    link.ends(CloseReason::PairingExpired);
                } else {
                    link.aside(Aside::OnlyCodeLeft);
                }
            }
            Event::PairSuccess(_) => link.paired(),

            Event::LoggedOut(logged_out) => {
                // Of the other reasons, such as a ban, the credentials may outlive the cause.
                if logged_out.reason == ConnectFailureReason::LoggedOut {
                    link.unlinked();
                } else {
                    link.ends(CloseReason::LoggedOut);
                }
            }
            Event::StreamReplaced(_) => link.ends(CloseReason::Replaced),
            _ => {}
        }
    }

    fn interest(&self) -> EventInterest {
        EventInterest::of(&[
            EventKind::ArchiveUpdate,
            EventKind::ContactUpdate,
            EventKind::GroupUpdate,
            EventKind::HistorySync,
            EventKind::LoggedOut,
            EventKind::Messages,
            EventKind::OfflineSyncCompleted,
            EventKind::OfflineSyncPreview,
            EventKind::PairSuccess,
            EventKind::PairingCode,
            EventKind::PairingCodeRefresh,
            EventKind::PairingQrCode,
            EventKind::PairingQrCodesExhausted,
            EventKind::RawNode,
            EventKind::Receipt,
            EventKind::ServerAck,
            EventKind::StreamReplaced,
            EventKind::UndecryptableMessage,
        ])
    }
}

/// Nothing else says at once that the server has let us in, nor how much of the offline queue has
/// arrived.
fn stanza(link: &Link, node: &OwnedNodeRef) {
    match node.tag() {
        "success" => link.logged_in(),
        "message" if node.get().get_attr("offline").is_some() => link.drain().delivered(),
        _ => {}
    }
}

fn subject(update: &GroupUpdate) -> Option<Record> {
    let GroupNotificationAction::Subject { subject, .. } = &update.action else { return None };
    let at = update.timestamp.timestamp();
    Some(convert::group_subject(&update.group_jid, subject, at))
}
