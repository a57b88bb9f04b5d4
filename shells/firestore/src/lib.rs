//! The store on Firestore: many hosts, one database.
//!
//! Every call is one request with a deadline, and none is repeated behind the caller's back: a
//! hidden retry would outlive the time its caller computed with. Commits are compare-and-set;
//! read-write transactions, which livelock under contention, do not occur.
//!
//! The client library logs every failed request at level `error` under the target `gcloud_sdk`;
//! a server wants that target off, since the errors come back from the calls.

mod connection;
mod failure;
mod listener;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use backfill_core::doc::{DocPath, Precondition, Query, Write, WriteOp};
use backfill_driver::port::{Committed, Found, Snapshot, Store, StoreError};
use backfill_driver::semantics::{check_commit, check_query};
use firestore::FirestoreDb;
use firestore::gcloud_sdk::RequestTimeouts;
use firestore::gcloud_sdk::google::firestore::v1 as pb;
use firestore::gcloud_sdk::tonic;
use futures_util::Stream;

pub use connection::{Credentials, Options, OptionsError};

use failure::{lost_commit, refused_commit, refused_read, unanswered_read};
use wire::Names;

/// A Firestore database. Clones share one connection, which repairs itself.
#[derive(Clone)]
pub struct FirestoreStore {
    db: FirestoreDb,
    names: Arc<Names>,
    timeouts: Timeouts,
}

/// How long each kind of call may take, from the call to the end of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A read of documents by path
    pub get: Duration,
    /// A commit
    pub commit: Duration,
    /// A query, its whole result included
    pub query: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            get: Duration::from_secs(5),
            commit: Duration::from_secs(5),
            query: Duration::from_secs(20),
        }
    }
}

impl FirestoreStore {
    /// Connects to the database.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it is not reached within ten seconds, [`StoreError::Denied`]
    /// if the credentials cannot be used. Trying again is the caller's business.
    pub async fn connect(options: &Options) -> Result<Self, StoreError> {
        let db = connection::connect(options).await?;
        let names = Arc::new(Names::new(db.get_documents_path()));
        Ok(Self { db, names, timeouts: Timeouts::default() })
    }

    /// The same database with other limits.
    #[must_use]
    pub fn with_timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts, ..self }
    }

    async fn read(&self, documents: Vec<String>) -> Result<Answers, StoreError> {
        let request = pb::BatchGetDocumentsRequest {
            database: self.db.get_database_path().clone(),
            documents,
            ..Default::default()
        };
        let within = self.timeouts.get;
        let reading = async {
            let mut client = self.db.client().get();
            let mut answers =
                client.batch_get_documents(limited(request, within)).await?.into_inner();
            let mut found = Answers::default();
            while let Some(answer) = answers.message().await? {
                found.add(answer);
            }
            Ok(found)
        };
        bounded(within, reading).await.ok_or_else(unanswered_read)?.map_err(refused_read)
    }
}

impl Store for FirestoreStore {
    async fn get(&self, paths: &[DocPath]) -> Result<Snapshot, StoreError> {
        let names: Vec<String> = paths.iter().map(|path| self.names.document(path)).collect();
        let mut wanted: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        // An empty request has no read time; a document that nobody writes has one.
        let probe = self.names.probe();
        if wanted.is_empty() {
            wanted.insert(&probe);
        }
        let answers = self.read(wanted.into_iter().map(str::to_owned).collect()).await?;
        let mut docs = BTreeMap::new();
        for doc in answers.found {
            let doc = self.names.read_document(doc).ok_or_else(unanswered_read)?;
            docs.insert(doc.path.clone(), Arc::new(doc));
        }
        let complete =
            |path: &DocPath, name: &str| docs.contains_key(path) || answers.missing.contains(name);
        if !paths.iter().zip(&names).all(|(path, name)| complete(path, name)) {
            return Err(unanswered_read());
        }
        Ok(Snapshot {
            read_time: answers.read_time.ok_or_else(unanswered_read)?,
            docs: paths.iter().map(|path| docs.get(path).cloned()).collect(),
        })
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        check_commit(&writes)?;
        let mut versions = vec![None; writes.len()];
        // Firestore applies writes in order, each seeing the ones before it: verifies come first.
        let verifies = |write: &Write| write.op == WriteOp::Verify;
        let order = (0..writes.len())
            .filter(|i| verifies(&writes[*i]) && writes[*i].precondition != Precondition::Any)
            .chain((0..writes.len()).filter(|i| !verifies(&writes[*i])));
        let order: Vec<usize> = order.collect();
        if order.is_empty() {
            // The answer to a commit of nothing has no time.
            let commit_time = self.get(&[]).await?.read_time;
            return Ok(Committed { commit_time, versions });
        }
        let request = pb::CommitRequest {
            database: self.db.get_database_path().clone(),
            writes: order.iter().map(|i| self.names.write(&writes[*i])).collect(),
            ..Default::default()
        };
        let within = self.timeouts.commit;
        let mut client = self.db.client().get();
        let committing = client.commit(limited(request, within));
        let answer = bounded(within, committing)
            .await
            .ok_or_else(|| lost_commit(None))?
            .map_err(refused_commit)?
            .into_inner();
        let commit_time =
            answer.commit_time.and_then(wire::time).ok_or_else(|| lost_commit(None))?;
        for (index, result) in order.into_iter().zip(answer.write_results) {
            let write = &writes[index];
            let gone = write.op == WriteOp::Delete || write.precondition == Precondition::Absent;
            if !(gone && verifies(write)) && write.op != WriteOp::Delete {
                let time = result.update_time.and_then(wire::time).unwrap_or(commit_time);
                versions[index] = Some(wire::version(time));
            }
        }
        Ok(Committed { commit_time, versions })
    }

    async fn query(&self, query: &Query) -> Result<Found, StoreError> {
        check_query(query)?;
        let (parent, structured) = self.names.query(query);
        let request = pb::RunQueryRequest {
            parent,
            query_type: Some(pb::run_query_request::QueryType::StructuredQuery(structured)),
            ..Default::default()
        };
        let within = self.timeouts.query;
        let reading = async {
            let mut client = self.db.client().get();
            let mut answers = client.run_query(limited(request, within)).await?.into_inner();
            let (mut docs, mut read_time) = (Vec::new(), None);
            while let Some(answer) = answers.message().await? {
                let time = answer.read_time.and_then(wire::time);
                read_time = time.into_iter().chain(read_time).min();
                docs.extend(answer.document);
            }
            Ok((docs, read_time))
        };
        let (docs, read_time) =
            bounded(within, reading).await.ok_or_else(unanswered_read)?.map_err(refused_read)?;
        let docs = docs
            .into_iter()
            .map(|doc| self.names.read_document(doc).map(Arc::new))
            .collect::<Option<_>>()
            .ok_or_else(unanswered_read)?;
        Ok(Found { read_time: read_time.ok_or_else(unanswered_read)?, docs })
    }

    fn watch(&self, query: Query) -> impl Stream<Item = ()> + Send + 'static {
        listener::hints(self.db.clone(), &self.names, &query)
    }
}

/// What a batch of gets brought.
#[derive(Default)]
struct Answers {
    found: Vec<pb::Document>,
    missing: BTreeSet<String>,
    /// The earliest of all, should they ever differ: nothing looks older than it is
    read_time: Option<backfill_core::time::StoreTime>,
}

impl Answers {
    fn add(&mut self, answer: pb::BatchGetDocumentsResponse) {
        use pb::batch_get_documents_response::Result;
        let time = answer.read_time.and_then(wire::time);
        self.read_time = time.into_iter().chain(self.read_time).min();
        match answer.result {
            Some(Result::Found(doc)) => self.found.push(doc),
            Some(Result::Missing(name)) => {
                self.missing.insert(name);
            }
            None => {}
        }
    }
}

/// The request with its deadline, which the server is told too.
fn limited<M>(message: M, within: Duration) -> tonic::Request<M> {
    let mut request = tonic::Request::new(message);
    request.extensions_mut().insert(RequestTimeouts::new().with_total(within));
    request
}

/// The outcome, or `None` if there is none in time: the bound that holds even where the
/// client's own does not begin to count, while it waits for a connection.
async fn bounded<T>(within: Duration, call: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(within + Duration::from_millis(100), call).await.ok()
}
