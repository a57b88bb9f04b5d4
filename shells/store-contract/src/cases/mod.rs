//! The cases, by what they pin down.

mod commits;
mod concurrency;
mod ingesting;
mod limits;
mod model;
mod queries;
mod reads;
mod values;
mod watching;

use backfill_core::doc::{
    CollectionPath, DocPath, Document, FieldOp, FieldPath, Precondition, Version, Write,
};
use backfill_driver::port::{Committed, Store, StoreError};
use std::sync::Arc;

use crate::{Case, Fixture};

/// Every case of the contract, each in a space of its own.
pub fn cases<F: Fixture>(fixture: &F) -> Vec<Case> {
    let mut cases = Vec::new();
    macro_rules! add {
        ($($module:ident: $($case:ident),* $(,)?;)*) => {$($(
            let own = fixture.clone();
            let space = concat!(stringify!($module), "-", stringify!($case)).replace('_', "-");
            cases.push(Case::new(
                concat!("contract::", stringify!($module), "::", stringify!($case)),
                move || $module::$case(own, space),
            ));
        )*)*};
    }
    add! {
        commits:
            a_failed_precondition_undoes_the_whole_commit,
            a_merge_leaves_other_fields_alone,
            a_no_op_write_is_applied,
            a_verify_checks_and_changes_nothing,
            an_empty_commit_is_applied,
            deletes_obey_preconditions,
            merges_obey_preconditions,
            server_time_is_the_time_of_the_commit,
            several_documents_are_written_at_once,
            versions_are_never_reused;
        values:
            every_value_comes_back_as_it_was,
            foreign_fields_survive,
            nested_fields_are_set_and_removed,
            null_is_not_absent,
            odd_ids_are_ids,
            timestamps_keep_their_microseconds;
        reads:
            a_get_answers_in_the_order_asked_for,
            a_get_sees_one_point_in_time,
            a_large_get_is_complete,
            time_goes_forward_across_clients;
        queries:
            a_collection_is_listed_by_id,
            a_selection_brings_only_its_fields,
            an_outbox_is_polled,
            cursors_page_through_ties,
            filters_compare_within_a_type,
            limits_cut_after_the_order,
            nested_fields_are_found,
            the_inbox_is_ordered_by_its_newest_message;
        ingesting:
            a_bad_document_does_not_fail_its_neighbours,
            a_new_message_in_a_known_chat_costs_one_read_and_two_writes,
            overlapping_batches_store_each_message_once,
            what_is_cut_off_goes_on,
            what_is_stored_already_costs_no_writes;
        limits:
            a_commit_has_at_most_500_writes,
            a_commit_has_a_byte_limit,
            a_document_cannot_grow_too_large,
            impossible_queries_are_refused,
            impossible_writes_are_refused;
        concurrency:
            everybody_gets_through,
            one_of_2_wins_each_round,
            one_of_8_wins_each_round,
            one_of_32_wins_each_round,
            the_fence_holds_under_takeover;
        model:
            random_histories_match_the_simulated_store;
        watching:
            a_change_is_hinted_at,
            lost_hints_cost_only_latency;
    }
    cases
}

fn path(p: &str) -> DocPath {
    DocPath::parse(p).expect("a literal path")
}

fn collection(p: &str) -> CollectionPath {
    CollectionPath::parse(p).expect("a literal path")
}

fn merge<V: Into<FieldOp>>(p: &str, precondition: Precondition, fields: Vec<(&str, V)>) -> Write {
    let fields = fields
        .into_iter()
        .map(|(name, op)| (FieldPath::parse(name).expect("a literal field"), op.into()))
        .collect();
    Write::merge(path(p), precondition, fields)
}

fn put(p: &str, n: i64) -> Write {
    merge(p, Precondition::Any, vec![("n", n)])
}

async fn commit(store: &impl Store, writes: Vec<Write>) -> Committed {
    store.commit(writes).await.expect("the commit is applied")
}

async fn read(store: &impl Store, p: &str) -> Option<Arc<Document>> {
    let mut snapshot = store.get(&[path(p)]).await.expect("a read succeeds");
    assert_eq!(snapshot.docs.len(), 1);
    snapshot.docs.remove(0)
}

async fn existing(store: &impl Store, p: &str) -> Arc<Document> {
    read(store, p).await.expect("the document exists")
}

async fn refused(store: &impl Store, write: Write) {
    let shown = format!("{write:?}");
    let answer = store.commit(vec![write]).await;
    assert!(matches!(answer, Err(StoreError::Conflict(_))), "{answer:?} to {shown}");
}

fn written(committed: &Committed, index: usize) -> Version {
    committed.versions[index].expect("a written document has a version")
}
