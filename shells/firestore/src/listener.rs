//! Changes as hints: a listening stream that connects again, later and later, when it breaks.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use backfill_core::doc::Query;
use firestore::FirestoreDb;
use firestore::gcloud_sdk::google::firestore::v1 as pb;
use firestore::gcloud_sdk::tonic::Streaming;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use pb::listen_response::ResponseType;
use pb::target_change::TargetChangeType;

use crate::wire::Names;

const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

pub(crate) fn hints(
    db: FirestoreDb,
    names: &Names,
    query: &Query,
) -> impl Stream<Item = ()> + Send + use<> {
    let (parent, structured) = names.query(query);
    let target = pb::Target {
        target_id: 1,
        target_type: Some(pb::target::TargetType::Query(pb::target::QueryTarget {
            parent,
            query_type: Some(pb::target::query_target::QueryType::StructuredQuery(structured)),
        })),
        ..Default::default()
    };
    let request = pb::ListenRequest {
        database: db.get_database_path().clone(),
        target_change: Some(pb::listen_request::TargetChange::AddTarget(target)),
        ..Default::default()
    };
    let listener = Listener { db, request, live: None, failures: 0 };
    stream::unfold(listener, async |mut listener| {
        listener.hint().await;
        Some(((), listener))
    })
}

struct Listener {
    db: FirestoreDb,
    request: pb::ListenRequest,
    live: Option<Streaming<pb::ListenResponse>>,
    /// How often in a row it broke without having been current
    failures: u32,
}

impl Listener {
    /// Waits for the next hint. There is one after every connection as well: what happened while
    /// there was none is not told.
    async fn hint(&mut self) {
        loop {
            let Some(live) = &mut self.live else {
                self.connect().await;
                continue;
            };
            let mut changed = false;
            let mut next = Some(live.next().await);
            // Whatever has arrived already is the same hint.
            while let Some(answer) = next {
                match answer {
                    Some(Ok(answer)) => {
                        let (current, change) = judge(&answer);
                        changed |= change;
                        if current {
                            self.failures = 0;
                        }
                    }
                    Some(Err(_)) | None => {
                        self.live = None;
                        break;
                    }
                }
                next = live.next().now_or_never();
            }
            if changed {
                return;
            }
        }
    }

    async fn connect(&mut self) {
        if self.failures > 0 {
            tokio::time::sleep(delay(self.failures)).await;
        }
        self.failures += 1;
        // The half that asks stays open for as long as the answers are wanted.
        let asking = stream::iter([self.request.clone()]).chain(stream::pending());
        let mut client = self.db.client().get();
        let answers = tokio::time::timeout(LONGEST_DELAY, client.listen(asking)).await;
        self.live = answers.ok().and_then(Result::ok).map(|answers| answers.into_inner());
    }
}

/// Whether the listener has caught up, and whether something changed.
fn judge(answer: &pb::ListenResponse) -> (bool, bool) {
    match &answer.response_type {
        Some(ResponseType::TargetChange(change)) => {
            let kind = change.target_change_type();
            let current = kind == TargetChangeType::Current;
            (current, current || kind == TargetChangeType::Reset)
        }
        Some(_) => (false, true),
        None => (false, false),
    }
}

/// Doubles from the first to the longest delay; jittered over its upper half, so that many
/// instances do not come back at once.
fn delay(failures: u32) -> Duration {
    let full =
        FIRST_DELAY.saturating_mul(1 << failures.min(12).saturating_sub(1)).min(LONGEST_DELAY);
    let random = RandomState::new().build_hasher().finish();
    let share = u32::try_from(random % 1_000).unwrap_or_default();
    full / 2 + full / 2 * share / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_bound_and_are_never_short() {
        for failures in 1..40 {
            let d = delay(failures);
            assert!(d >= FIRST_DELAY / 2 && d <= LONGEST_DELAY, "{d:?}");
        }
        assert!(delay(30) >= LONGEST_DELAY / 2);
    }
}
