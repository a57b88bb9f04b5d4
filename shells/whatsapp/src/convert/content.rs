//! What a message says.

use std::sync::Arc;

use backfill_core::incoming::{Content, Media, MessageKind};
use smol_str::SmolStr;
use wacore::proto_helpers::MessageExt;
use waproto::whatsapp as wa;

use super::name;

/// What a message without its wrappers says; `None` if it is no message to show, such as a vote or a
/// key.
pub(super) fn content(message: &wa::Message) -> Option<Content> {
    let message = innermost(message);
    if is_machinery(message) {
        return None;
    }
    if let Some(text) = text(message) {
        return Some(Content { kind: MessageKind::Text, body: text, ..Content::default() });
    }
    if let Some((kind, media)) = media(message) {
        let body = media.caption.clone().unwrap_or_default();
        return Some(Content { kind, body, media: Some(Box::new(media)), ..Content::default() });
    }
    let body = description(message).unwrap_or_default();
    let known = !body.is_empty() || *message != wa::Message::default();
    known.then(|| Content { body, ..Content::default() })
}

/// The message inside its wrappers, such as those of messages that disappear.
pub(super) fn innermost(message: &wa::Message) -> &wa::Message {
    let mut current = message;
    // Each wrapper may hold another; what comes from outside is not believed to end.
    for _ in 0..MAX_WRAPPERS {
        let base = current.get_base_message();
        let wrapped = [
            &base.group_mentioned_message,
            &base.bot_invoke_message,
            &base.lottie_sticker_message,
            &base.associated_child_message,
            &base.ephemeral_message,
            &base.view_once_message,
            &base.view_once_message_v2,
            &base.view_once_message_v2_extension,
            &base.document_with_caption_message,
            &base.spoiler_message,
            &base.question_message,
            &base.question_reply_message,
            &base.poll_creation_message_v4,
        ];
        let inner = wrapped.into_iter().find_map(|w| w.as_option()?.message.as_option());
        match inner {
            Some(inner) => current = inner,
            None => return base,
        }
    }
    current
}

/// The text that an edit puts in the place of another.
pub(super) fn edited_text(message: &wa::Message) -> SmolStr {
    let message = innermost(message);
    let text = text(message);
    text.or_else(|| media(message)?.1.caption).unwrap_or_default()
}

fn text(message: &wa::Message) -> Option<SmolStr> {
    if let Some(text) = &message.conversation {
        return Some(SmolStr::new(text));
    }
    let extended = message.extended_text_message.as_option()?;
    Some(SmolStr::new(extended.text.as_deref().unwrap_or_default()))
}

/// Whether the message belongs to the protocol, or only changes how another one is shown.
fn is_machinery(message: &wa::Message) -> bool {
    message.protocol_message.is_set()
        || message.reaction_message.is_set()
        || message.enc_reaction_message.is_set()
        || message.poll_update_message.is_set()
        || message.poll_add_option_message.is_set()
        || message.keep_in_chat_message.is_set()
        || message.pin_in_chat_message.is_set()
        || message.enc_event_response_message.is_set()
        || message.secret_encrypted_message.is_set()
        || message.sticker_sync_rmr_message.is_set()
        || message.message_history_bundle.is_set()
        || message.group_root_key_share.is_set()
        || message.root_secret_distribute_message.is_set()
        || only_keys(message)
}

/// Whether nothing but keys for later messages is in it.
fn only_keys(message: &wa::Message) -> bool {
    let keys = message.sender_key_distribution_message.is_set()
        || message.fast_ratchet_key_sender_key_distribution_message.is_set();
    if !keys {
        return false;
    }
    let mut rest = message.clone();
    rest.sender_key_distribution_message.take();
    rest.fast_ratchet_key_sender_key_distribution_message.take();
    rest.message_context_info.take();
    rest == wa::Message::default()
}

fn media(message: &wa::Message) -> Option<(MessageKind, Media)> {
    macro_rules! common {
        ($it:ident) => {
            Media {
                mimetype: text_of(&$it.mimetype),
                url: text_of(&$it.url),
                direct_path: text_of(&$it.direct_path),
                media_key: bytes_of(&$it.media_key),
                file_sha256: bytes_of(&$it.file_sha256),
                file_enc_sha256: bytes_of(&$it.file_enc_sha256),
                file_length: $it.file_length,
                ..Media::default()
            }
        };
    }
    if let Some(it) = message.image_message.as_option() {
        let caption = text_of(&it.caption);
        let media = Media { caption, width: it.width, height: it.height, ..common!(it) };
        return Some((MessageKind::Image, media));
    }
    let video = message.video_message.as_option();
    if let Some(it) = video.or_else(|| message.ptv_message.as_option()) {
        let media = Media {
            caption: text_of(&it.caption),
            seconds: it.seconds,
            width: it.width,
            height: it.height,
            ..common!(it)
        };
        return Some((MessageKind::Video, media));
    }
    if let Some(it) = message.audio_message.as_option() {
        let media = Media { seconds: it.seconds, ..common!(it) };
        return Some((MessageKind::Audio, media));
    }
    if let Some(it) = message.document_message.as_option() {
        let media = Media {
            caption: text_of(&it.caption),
            filename: text_of(&it.file_name).or_else(|| text_of(&it.title)),
            ..common!(it)
        };
        return Some((MessageKind::Document, media));
    }
    let it = message.sticker_message.as_option()?;
    let media = Media { width: it.width, height: it.height, ..common!(it) };
    Some((MessageKind::Sticker, media))
}

/// What can be shown of a message of any other kind.
fn description(message: &wa::Message) -> Option<SmolStr> {
    if let Some(it) = message.location_message.as_option() {
        let named = name(it.name.as_deref()).or_else(|| name(it.address.as_deref()));
        return named.or_else(|| place(it.degrees_latitude, it.degrees_longitude));
    }
    if let Some(it) = message.live_location_message.as_option() {
        let caption = name(it.caption.as_deref());
        return caption.or_else(|| place(it.degrees_latitude, it.degrees_longitude));
    }
    if let Some(it) = message.contact_message.as_option() {
        return name(it.display_name.as_deref());
    }
    if let Some(it) = message.contacts_array_message.as_option() {
        return name(it.display_name.as_deref());
    }
    let polls = [
        &message.poll_creation_message,
        &message.poll_creation_message_v2,
        &message.poll_creation_message_v3,
        &message.poll_creation_message_v5,
        &message.poll_creation_message_v6,
    ];
    if let Some(it) = polls.into_iter().find_map(|poll| poll.as_option()) {
        return name(it.name.as_deref());
    }
    if let Some(it) = message.event_message.as_option() {
        return name(it.name.as_deref());
    }
    if let Some(it) = message.group_invite_message.as_option() {
        return name(it.caption.as_deref()).or_else(|| name(it.group_name.as_deref()));
    }
    if let Some(it) = message.list_response_message.as_option() {
        return name(it.title.as_deref());
    }
    if let Some(it) = message.template_button_reply_message.as_option() {
        return name(it.selected_display_text.as_deref());
    }
    let it = message.list_message.as_option()?;
    name(it.description.as_deref()).or_else(|| name(it.title.as_deref()))
}

fn place(latitude: Option<f64>, longitude: Option<f64>) -> Option<SmolStr> {
    Some(smol_str::format_smolstr!("{:.5}, {:.5}", latitude?, longitude?))
}

fn text_of(text: &Option<String>) -> Option<SmolStr> {
    text.as_deref().filter(|text| !text.is_empty()).map(SmolStr::new)
}

fn bytes_of(bytes: &Option<Vec<u8>>) -> Option<Arc<[u8]>> {
    bytes.as_deref().filter(|bytes| !bytes.is_empty()).map(Arc::from)
}

const MAX_WRAPPERS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use waproto::buffa::MessageField;

    fn wrapped(message: wa::Message) -> MessageField<wa::message::FutureProofMessage> {
        MessageField::some(wa::message::FutureProofMessage { message: MessageField::some(message) })
    }

    fn text(body: &str) -> wa::Message {
        wa::Message { conversation: Some(body.into()), ..Default::default() }
    }

    #[test]
    fn a_picture_keeps_all_it_takes_to_fetch_it_later() {
        let image = wa::message::ImageMessage {
            url: Some("https://host/x".into()),
            mimetype: Some("image/jpeg".into()),
            caption: Some("look".into()),
            direct_path: Some("/x".into()),
            media_key: Some(vec![1; 32]),
            file_sha256: Some(vec![2; 32]),
            file_enc_sha256: Some(vec![3; 32]),
            file_length: Some(9),
            width: Some(3),
            height: Some(4),
            ..Default::default()
        };
        let inner = wa::Message { image_message: MessageField::some(image), ..Default::default() };
        let message = wa::Message { ephemeral_message: wrapped(inner), ..Default::default() };
        let content = content(&message).unwrap();
        assert_eq!((content.kind, content.body.as_str()), (MessageKind::Image, "look"));
        let media = *content.media.unwrap();
        let expected = Media {
            mimetype: Some("image/jpeg".into()),
            caption: Some("look".into()),
            filename: None,
            url: Some("https://host/x".into()),
            direct_path: Some("/x".into()),
            media_key: Some(vec![1; 32].into()),
            file_sha256: Some(vec![2; 32].into()),
            file_enc_sha256: Some(vec![3; 32].into()),
            file_length: Some(9),
            seconds: None,
            width: Some(3),
            height: Some(4),
        };
        assert!(media == expected);
    }

    #[test]
    fn wrappers_are_taken_off_and_their_depth_is_bounded() {
        let mut message = text("deep");
        for _ in 0..3 {
            message = wa::Message { ephemeral_message: wrapped(message), ..Default::default() };
        }
        assert_eq!(content(&message).unwrap().body, "deep");
        for _ in 0..200 {
            message = wa::Message { view_once_message: wrapped(message), ..Default::default() };
        }
        assert_eq!(content(&message).unwrap().kind, MessageKind::Unknown);
    }

    #[test]
    fn keys_votes_and_pins_are_no_messages() {
        assert_eq!(content(&wa::Message::default()).map(|c| c.kind), None);
        let keys = wa::message::SenderKeyDistributionMessage::default();
        let mut message = wa::Message {
            sender_key_distribution_message: MessageField::some(keys),
            ..Default::default()
        };
        assert!(content(&message).is_none());
        message.conversation = Some("beside keys".into());
        assert_eq!(content(&message).unwrap().body, "beside keys");
        let vote = wa::message::PollUpdateMessage::default();
        let message =
            wa::Message { poll_update_message: MessageField::some(vote), ..Default::default() };
        assert!(content(&message).is_none());
    }

    #[test]
    fn other_kinds_are_kept_with_what_can_be_shown() {
        let contact = wa::message::ContactMessage {
            display_name: Some("Ana Pop".into()),
            ..Default::default()
        };
        let message =
            wa::Message { contact_message: MessageField::some(contact), ..Default::default() };
        let shown = content(&message).unwrap();
        assert_eq!((shown.kind, shown.body.as_str()), (MessageKind::Unknown, "Ana Pop"));
    }
}
