//! What came of a batch.

use std::fmt;

use smol_str::SmolStr;

use crate::coverage::Mark;
use crate::id::ThreadId;
use crate::jid::{Jid, JidError};

/// What came of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Facts {
    /// Per thread that got messages or an entry of the chat list, in order of first appearance
    pub threads: Vec<ThreadFacts>,
    /// What could not be stored
    pub rejected: Vec<Rejected>,
}

/// What came of a batch for one thread.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ThreadFacts {
    /// The thread the messages were stored in
    pub thread: ThreadId,
    /// The thread of its chat's other name, if that is known, which leads to this one
    pub twin: Option<ThreadId>,
    /// Its chat
    pub jid: Jid,
    /// The oldest of its messages in this batch; without those of unbelievable time
    pub oldest: Option<MessageMark>,
    /// The newest of its messages in this batch; without those of unbelievable time
    pub newest: Option<MessageMark>,
    /// How many messages were not stored before this batch looked
    pub new: u32,
    /// How many different messages came
    pub total: u32,
    /// How many of them are still not readable
    pub undecryptable: u32,
    /// Whether the thread did not exist before this batch looked
    pub is_new_thread: bool,
}

impl ThreadFacts {
    /// Takes a message of believable time into account.
    pub(super) fn stretch_to(&mut self, mark: &MessageMark) {
        if self.oldest.as_ref().is_none_or(|oldest| mark < oldest) {
            self.oldest = Some(mark.clone());
        }
        if self.newest.as_ref().is_none_or(|newest| mark > newest) {
            self.newest = Some(mark.clone());
        }
    }
}

/// Where in a chat's history a message stands, and what it takes to name it to the phone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageMark {
    /// When it was sent, in seconds since the Unix epoch, as the server says
    pub second: i64,
    /// WhatsApp's id
    pub id: SmolStr,
    /// Whether this account sent it
    pub from_me: bool,
    /// In a group, who sent it, as it arrived
    pub participant: Option<SmolStr>,
}

/// A record that could not be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rejected {
    /// Its place among the batch's records, from 0
    pub record: usize,
    /// Why
    pub reason: Rejection,
}

/// Why a record could not be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Rejection {
    /// Somebody's address is none
    #[error("the author's address: {0}")]
    Author(JidError),
    /// The chat's address is none
    #[error("the chat's address: {0}")]
    Chat(JidError),
    /// Somebody edited or deleted what is not his
    #[error("only the sender may edit a message, and outside groups delete it")]
    Forbidden,
    /// The message's id cannot name a document
    #[error("the message id cannot be the id of a document")]
    Id,
    /// The sender's address is none
    #[error("the sender's address: {0}")]
    Sender(JidError),
    /// Status updates are not conversations
    #[error("a status update is not part of a conversation")]
    StatusUpdate,
    /// The store refuses the document
    #[error("the store refuses the document")]
    Store,
}

impl From<&MessageMark> for Mark {
    fn from(mark: &MessageMark) -> Self {
        Self {
            second: mark.second,
            id: Some(mark.id.clone()),
            from_me: mark.from_me,
            participant: mark.participant.clone(),
        }
    }
}

impl fmt::Debug for MessageMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageMark({}, {}, from_me: {})", self.second, self.id, self.from_me)
    }
}
