//! A spool in the common store: encrypted, in pieces.
//!
//! `accounts/{id}/spool/{chunk}` says how many pieces a chunk has and is written last, so that a
//! chunk is there as a whole or not at all; the pieces are beside it. Numbers of chunks never come
//! twice, so nothing is ever overwritten.

use async_trait::async_trait;
use backfill_core::doc::{
    Comparison, DocPath, Document, FieldOp, FieldPath, Precondition, Query, Value, Write,
};
use backfill_core::id::AccountId;
use backfill_core::io::ChunkId;
use backfill_driver::port::Store;
use bytes::Bytes;
use smol_str::format_smolstr;

use super::{Keep, Lost};
use crate::chunk::Chunk;
use crate::session::{Label, Seal, SessionKeys};

pub(super) struct Common<S> {
    store: S,
    seal: Seal,
}

impl<S: Store> Common<S> {
    pub(super) fn new(store: S, keys: SessionKeys) -> Self {
        Self { store, seal: Seal::Encrypted(keys) }
    }

    async fn head(&self, path: &DocPath) -> Result<Option<Head>, Lost> {
        let doc = self.store.get(std::slice::from_ref(path)).await?.docs.into_iter().next();
        doc.flatten().map(|doc| Head::parse(&doc)).transpose()
    }

    async fn write(&self, path: DocPath, fields: Vec<(FieldPath, FieldOp)>) -> Result<(), Lost> {
        self.store.commit(vec![Write::merge(path, Precondition::Any, fields)]).await?;
        Ok(())
    }
}

/// What is said about a chunk.
struct Head {
    pieces: u64,
    bytes: u64,
    size: u64,
    at: i64,
    /// It is being removed
    gone: bool,
}

impl Head {
    fn parse(doc: &Document) -> Result<Self, Lost> {
        let count = |field: &FieldPath| doc.count(field.as_str()).ok_or(Lost::Damaged);
        Ok(Self {
            pieces: count(&PIECES)?,
            bytes: count(&BYTES)?,
            size: count(&SIZE)?,
            at: doc.int(AT.as_str()).ok_or(Lost::Damaged)?,
            gone: doc.bool(GONE.as_str()).unwrap_or(false),
        })
    }
}

#[async_trait]
impl<S: Store> Keep for Common<S> {
    async fn put(&self, account: &AccountId, chunk: ChunkId, it: &Chunk) -> Result<(), Lost> {
        let path = head_path(account, chunk)?;
        if self.head(&path).await?.is_some() {
            return Ok(());
        }
        let mut pieces = 0_u64;
        for part in it.payload.chunks(PIECE_BYTES) {
            let name = piece_name(chunk, pieces);
            let label = label(account, &name, it.size);
            let sealed = self.seal.seal(&label, part).map_err(|_| Lost::Sealed)?;
            let key = self.seal.key();
            let fields =
                vec![(DATA, Value::Bytes(sealed.into()).into()), (KEY, Value::from(key).into())];
            self.write(below(account, &name)?, fields).await?;
            pieces += 1;
        }
        let bytes = it.payload.len() as u64;
        let fields = vec![
            (PIECES, Value::from(pieces).into()),
            (BYTES, Value::from(bytes).into()),
            (SIZE, Value::from(it.size).into()),
            (AT, Value::from(it.at).into()),
            (HEAD, Value::from(true).into()),
        ];
        self.write(path, fields).await
    }

    async fn get(&self, account: &AccountId, chunk: ChunkId) -> Result<Option<Chunk>, Lost> {
        let Some(head) = self.head(&head_path(account, chunk)?).await? else { return Ok(None) };
        if head.gone {
            return Ok(None);
        }
        let mut payload = Vec::with_capacity(usize::try_from(head.bytes.min(MOST)).unwrap_or(0));
        for piece in 0..head.pieces {
            let name = piece_name(chunk, piece);
            let docs = self.store.get(&[below(account, &name)?]).await?.docs;
            let doc = docs.into_iter().next().flatten().ok_or(Lost::Damaged)?;
            let Some(Value::Bytes(sealed)) = doc.value(DATA.as_str()) else {
                return Err(Lost::Damaged);
            };
            let label = label(account, &name, head.size);
            let opened = self.seal.open(&label, doc.str(KEY.as_str()), sealed);
            // A key that is missing may come back; what does not open with its key never will.
            payload.extend(opened.map_err(|error| match error {
                crate::session::SessionError::UnknownKey { .. } => Lost::Sealed,
                _ => Lost::Damaged,
            })?);
        }
        if payload.len() as u64 != head.bytes {
            return Err(Lost::Damaged);
        }
        let payload = Bytes::from(payload);
        Ok(Some(Chunk { payload, size: head.size, at: head.at, _room: None }))
    }

    async fn list(&self, account: &AccountId) -> Result<Vec<ChunkId>, Lost> {
        let query = Query::all(account.path().child(COLLECTION), HEADS)
            .filter(HEAD, Comparison::Equal, true)
            .select([HEAD]);
        let found = self.store.query(&query).await?;
        let ids = found.docs.iter().filter_map(|doc| doc.path.id().parse().ok().map(ChunkId));
        let mut chunks: Vec<ChunkId> = ids.collect();
        chunks.sort_unstable();
        Ok(chunks)
    }

    async fn remove(&self, account: &AccountId, chunk: ChunkId) -> Result<(), Lost> {
        let path = head_path(account, chunk)?;
        let Some(head) = self.head(&path).await? else { return Ok(()) };
        // The head goes last, or pieces would be left that nobody knows of.
        self.write(path.clone(), vec![(GONE, Value::from(true).into())]).await?;
        let mut writes = Vec::new();
        for piece in 0..head.pieces {
            let path = below(account, &piece_name(chunk, piece))?;
            writes.push(Write::delete(path, Precondition::Any));
        }
        writes.push(Write::delete(path, Precondition::Any));
        for some in writes.chunks(REMOVALS) {
            self.store.commit(some.to_vec()).await?;
        }
        Ok(())
    }

    async fn clear(&self, account: &AccountId) -> Result<(), Lost> {
        loop {
            let chunks = self.list(account).await?;
            if chunks.is_empty() {
                return self.note(account, 0).await;
            }
            for chunk in chunks {
                self.remove(account, chunk).await?;
            }
        }
    }

    async fn note(&self, account: &AccountId, expected: u64) -> Result<(), Lost> {
        self.write(below(account, NOTE)?, vec![(EXPECTED, Value::from(expected).into())]).await
    }

    async fn noted(&self, account: &AccountId) -> Result<u64, Lost> {
        let docs = self.store.get(&[below(account, NOTE)?]).await?.docs;
        let doc = docs.into_iter().next().flatten();
        Ok(doc.and_then(|doc| doc.count(EXPECTED.as_str())).unwrap_or(0))
    }
}

fn below(account: &AccountId, name: &str) -> Result<DocPath, Lost> {
    DocPath::new(&account.path().child(COLLECTION), name).map_err(|_| Lost::Damaged)
}

fn head_path(account: &AccountId, chunk: ChunkId) -> Result<DocPath, Lost> {
    below(account, &format_smolstr!("{:020}", chunk.0))
}

fn piece_name(chunk: ChunkId, piece: u64) -> smol_str::SmolStr {
    format_smolstr!("{:020}-{piece}", chunk.0)
}

fn label<'a>(account: &'a AccountId, document: &'a str, size: u64) -> Label<'a> {
    Label { account, document, numbers: [size, 0, 0] }
}

const COLLECTION: &str = "spool";
const NOTE: &str = "announced";
/// A document holds less than 1 MiB with all the rest.
const PIECE_BYTES: usize = 880_000;
/// No more is allocated on a document's word alone.
const MOST: u64 = 64 << 20;
const HEADS: u32 = 300;
const REMOVALS: usize = 200;
const AT: FieldPath = FieldPath::new("at");
const BYTES: FieldPath = FieldPath::new("bytes");
const DATA: FieldPath = FieldPath::new("data");
const EXPECTED: FieldPath = FieldPath::new("expected");
const GONE: FieldPath = FieldPath::new("gone");
const HEAD: FieldPath = FieldPath::new("head");
const KEY: FieldPath = FieldPath::new("key");
const PIECES: FieldPath = FieldPath::new("pieces");
const SIZE: FieldPath = FieldPath::new("size");
