//! How a session lies in the store: a head, pages and a journal, below `accounts/{id}/session`.
//!
//! - `j{n}`, the journal: each commit appends one entry with the rows it changes. An entry is
//!   created, never changed, so no document is written twice in a row, and a commit that comes
//!   late finds its place taken.
//! - `p{n}`, the pages: rows as they were when the journal was last emptied. When the journal has
//!   grown long, the pages that its rows lie in are written anew, many rows to a page, and its
//!   entries are removed.
//! - `head`: which pages in which state belong to the session and where the journal begins. It
//!   only changes by compare-and-set.
//!
//! What is larger than a document may be is split. Every commit carries the fence. What neither
//! the head names nor the journal contains does not count, and is removed when convenient.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backfill_core::doc::{
    CollectionPath, Cursor, DocPath, Document, FieldOp, FieldPath, Fields, Precondition, Query,
    Value, Version, Write, WriteOp,
};
use backfill_core::id::AccountId;
use backfill_driver::port::{Store, StoreError};
use smol_str::{SmolStr, format_smolstr};

use super::error::SessionError;
use super::keys::{Label, Seal};
use super::record::{self, Record};
use super::rows::{Key, Row, Rows};

/// The format this program writes, and the newest it reads.
const FORMAT: i64 = 1;
/// An emptied journal is worth writing pages for after so many entries or bytes.
const JOURNAL_ENTRIES: u64 = 64;
const JOURNAL_BYTES: usize = 512_000;
/// New rows go into a page until it has so many bytes.
const PAGE_BYTES: usize = 32_000;
/// So many bytes of one document are data; its limit is 1 MiB with all the rest.
const PART_BYTES: usize = 900_000;
/// So many bytes of rows go into one commit; its limit is 4 MB with all the rest.
pub(crate) const COMMIT_BYTES: usize = 3_000_000;
/// At most so many documents are written, and so many removed, by one commit; its limit is 500.
const COMMIT_WRITES: usize = 250;
const COMMIT_REMOVALS: usize = 200;
/// So many documents are read at once when a session is opened.
const READ_AT_ONCE: u32 = 40;
/// A commit that met contention or got no answer is sent so often.
const ATTEMPTS: u32 = 2;
/// After a wipe the journal goes on so far behind the last entry seen: a late one lies before.
const WIPE_GAP: u64 = 1_000;

const BEAT: FieldPath = FieldPath::new("beat");
const DATA: FieldPath = FieldPath::new("data");
const FORMAT_FIELD: FieldPath = FieldPath::new("format");
const KEY: FieldPath = FieldPath::new("key");
const PAIRED: FieldPath = FieldPath::new("paired");
const PARTS: FieldPath = FieldPath::new("parts");
const START: FieldPath = FieldPath::new("start");

/// Whose session it is, and what fences its writes.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) account: AccountId,
    /// The version of the account's connection lease; none where nobody else can write
    pub(crate) fence: Option<Version>,
}

/// The store's side of one open session.
pub(crate) struct Book<S> {
    store: S,
    place: Place,
    seal: Seal,
    head: Head,
    /// The number of the next journal entry
    next: u64,
    journal_bytes: usize,
    /// Rows that are in the journal
    journaled: BTreeSet<Key>,
    /// Pages that are not as their rows are
    stale: BTreeSet<u32>,
    /// The pages that take new rows that change, and those that do not
    filling: [Option<u32>; 2],
    garbage: BTreeSet<DocPath>,
    /// Sealed with a key that no longer seals
    outdated: bool,
    flight: Option<Flight>,
}

/// What became of a commit.
pub(crate) enum Sent {
    /// It is durable
    Landed(Cargo),
    /// It has not been applied and will not be
    Refused(Cargo, SessionError),
    /// Nobody knows; it will be sent again before any other
    Unknown(SessionError),
}

/// What a commit carries.
pub(crate) enum Cargo {
    /// Changed rows, and the ticket of those who wait for all changes up to it
    Rows(Vec<Key>, Option<u64>),
    /// Pages; whether they were the last ones
    Pages(bool),
}

#[derive(Clone, Default)]
struct Head {
    version: Option<Version>,
    beat: u64,
    start: u64,
    paired: bool,
    pages: BTreeMap<u32, Page>,
}

#[derive(Clone, Default)]
struct Page {
    /// The head's beat when it was written
    state: u64,
    /// In how many documents; none if it has not been written
    parts: u32,
    changing: bool,
    bytes: usize,
}

/// A commit under way.
struct Flight {
    writes: Vec<Write>,
    /// Whether an earlier attempt may have been applied, or may yet be
    uncertain: bool,
    cargo: Cargo,
    /// The head after it, if it writes one
    head: Option<Head>,
    next: u64,
    bytes: usize,
    pages: BTreeSet<u32>,
    /// What is garbage after it, if that changes
    garbage: Option<BTreeSet<DocPath>>,
}

impl<S: Store> Book<S> {
    /// Reads a session, or begins one if nothing is there.
    pub(crate) async fn open(
        store: S,
        place: Place,
        seal: Seal,
    ) -> Result<(Self, Rows), SessionError> {
        let docs = read_all(&store, &place.account).await?;
        let mut book = Self::new(store, place, seal);
        let rows = book.load(docs)?;
        let rows = Rows::new(rows, book.head.paired);
        Ok((book, rows))
    }

    fn new(store: S, place: Place, seal: Seal) -> Self {
        Self {
            store,
            place,
            seal,
            head: Head::default(),
            next: 0,
            journal_bytes: 0,
            journaled: BTreeSet::new(),
            stale: BTreeSet::new(),
            filling: [None; 2],
            garbage: BTreeSet::new(),
            outdated: false,
            flight: None,
        }
    }

    /// Makes a journal entry of these rows ready to be sent.
    pub(crate) fn write_entry(
        &mut self,
        rows: &Rows,
        keys: Vec<Key>,
        ticket: Option<u64>,
    ) -> Result<(), (Vec<Key>, SessionError)> {
        let mut plain = Vec::new();
        for key in &keys {
            record::push(&mut plain, key, rows.get(key));
        }
        let written = self.entry_writes(&plain, rows.paired);
        let (writes, next, head) = match written {
            Ok(written) => written,
            Err(e) => return Err((keys, e)),
        };
        self.flight = Some(Flight {
            writes,
            uncertain: false,
            cargo: Cargo::Rows(keys, ticket),
            head,
            next,
            bytes: plain.len(),
            pages: BTreeSet::new(),
            garbage: None,
        });
        Ok(())
    }

    pub(crate) fn has_flight(&self) -> bool {
        self.flight.is_some()
    }

    /// Whether the journal should be emptied.
    pub(crate) fn is_full(&self) -> bool {
        self.next - self.head.start >= JOURNAL_ENTRIES || self.journal_bytes >= JOURNAL_BYTES
    }

    /// Whether something is sealed with a key that no longer seals.
    pub(crate) fn is_outdated(&self) -> bool {
        self.outdated
    }

    /// Finds out which pages have to be written for the journal to be emptied.
    pub(crate) fn plan_pages(&mut self, rows: &mut Rows) {
        self.stale.extend(rows.take_vacated());
        if self.outdated {
            self.stale.extend(self.head.pages.keys());
        }
        let mut keys = std::mem::take(&mut self.journaled);
        keys.extend(rows.changed().iter().cloned());
        for key in keys {
            let Some(row) = rows.row_mut(&key) else { continue };
            if row.page == 0 {
                row.page = self.page_for(&key, row.value.len());
            }
            self.stale.insert(row.page);
        }
    }

    /// Makes the next pages ready to be sent; with the last ones the journal is emptied.
    pub(crate) fn write_pages(&mut self, rows: &Rows) -> Result<(), SessionError> {
        let mut sizes: BTreeMap<u32, usize> = self.stale.iter().map(|page| (*page, 0)).collect();
        for (key, row) in rows.all() {
            if let Some(bytes) = sizes.get_mut(&row.page) {
                *bytes += 8 + key.as_bytes().len() + row.value.len();
            }
        }
        let (mut chosen, mut bytes, mut documents) = (BTreeMap::new(), 0, 0);
        for (page, size) in sizes {
            bytes += size;
            documents += 2 + size / PART_BYTES;
            if !chosen.is_empty() && (bytes > COMMIT_BYTES || documents > COMMIT_WRITES) {
                break;
            }
            chosen.insert(page, Vec::new());
        }
        for (key, row) in rows.all() {
            if let Some(plain) = chosen.get_mut(&row.page) {
                record::push(plain, key, Some(&row.value));
            }
        }

        let mut head = Head { beat: self.head.beat + 1, paired: rows.paired, ..self.head.clone() };
        let (mut writes, mut removals) = (Vec::new(), BTreeSet::new());
        for (id, plain) in &chosen {
            let page = head.pages.entry(*id).or_default();
            let before = page.parts;
            if plain.is_empty() {
                head.pages.remove(id);
                removals.extend((0..before).map(|part| self.path(&page_name(*id, part))));
                continue;
            }
            (page.state, page.bytes) = (head.beat, plain.len());
            let name = page_name(*id, 0);
            let sealed = self.seal.seal(&self.label(&name, [head.beat, 0, 0]), plain)?;
            let parts = sealed.chunks(PART_BYTES).len();
            page.parts = u32::try_from(parts).unwrap_or(u32::MAX);
            for (part, data) in (0..).zip(sealed.chunks(PART_BYTES)) {
                let path = self.path(&page_name(*id, part));
                writes.push(self.data_write(path, Precondition::Any, data, part, parts));
            }
            removals.extend((page.parts..before).map(|part| self.path(&page_name(*id, part))));
        }
        let pages: BTreeSet<u32> = chosen.into_keys().collect();
        let last = self.stale.is_subset(&pages);
        if last {
            removals.extend((head.start..self.next).map(|entry| self.path(&entry_name(entry))));
            head.start = self.next;
        }
        // All of them are garbage once this is durable; those that do not fit in go later. What is
        // written anew is none any more.
        let mut garbage = &self.garbage | &removals;
        for write in &writes {
            garbage.remove(&write.path);
        }
        let removed: Vec<DocPath> = garbage.iter().take(COMMIT_REMOVALS).cloned().collect();
        for path in &removed {
            garbage.remove(path);
        }
        let mut all = self.fence();
        all.push(self.head_write(&head)?);
        all.extend(writes);
        all.extend(removed.into_iter().map(|path| Write::delete(path, Precondition::Any)));
        self.flight = Some(Flight {
            writes: all,
            uncertain: false,
            cargo: Cargo::Pages(last),
            head: Some(head),
            next: self.next,
            bytes: 0,
            pages,
            garbage: Some(garbage),
        });
        Ok(())
    }

    /// Sends the commit that is ready. May be cancelled, and called again.
    pub(crate) async fn send(&mut self) -> Option<Sent> {
        let mut error = SessionError::Fenced;
        for _ in 0..ATTEMPTS {
            let flight = self.flight.as_mut()?;
            // Until there is an answer, and for ever if this call is cancelled before.
            let before = std::mem::replace(&mut flight.uncertain, true);
            let writes = flight.writes.clone();
            match self.store.commit(writes).await {
                Ok(committed) => {
                    let flight = self.flight.take()?;
                    let head = flight.writes.iter().position(|w| is_head(&w.path));
                    let version = head.and_then(|at| *committed.versions.get(at)?);
                    return Some(Sent::Landed(self.land(flight, version)));
                }
                Err(e @ StoreError::Conflict(_)) => {
                    error = e.into();
                    match self.look().await {
                        Ok(Look::Applied(version)) => {
                            let flight = self.flight.take()?;
                            return Some(Sent::Landed(self.land(flight, version)));
                        }
                        Ok(Look::Overtaken) => {
                            let flight = self.flight.take()?;
                            return Some(Sent::Refused(flight.cargo, SessionError::Fenced));
                        }
                        // Contention; this attempt was not applied.
                        Ok(Look::Open) => self.flight.as_mut()?.uncertain = before,
                        Err(e) => return Some(Sent::Unknown(e.into())),
                    }
                }
                Err(e @ StoreError::Unknown(_)) => error = e.into(),
                Err(e) => {
                    self.flight.as_mut()?.uncertain = before;
                    error = e.into();
                    break;
                }
            }
        }
        if self.flight.as_ref()?.uncertain {
            return Some(Sent::Unknown(error));
        }
        Some(Sent::Refused(self.flight.take()?.cargo, error))
    }

    /// Looks what has become of the commit that is ready.
    async fn look(&self) -> Result<Look, StoreError> {
        let Some(flight) = &self.flight else { return Ok(Look::Open) };
        let guarded: Vec<&Write> =
            flight.writes.iter().filter(|w| w.precondition != Precondition::Any).collect();
        let paths: Vec<DocPath> = guarded.iter().map(|write| write.path.clone()).collect();
        let docs = self.store.get(&paths).await?.docs;
        let found = || guarded.iter().zip(&docs);
        let mut applied = found().filter_map(|(write, doc)| {
            let WriteOp::Merge(fields) = &write.op else { return None };
            Some(doc.as_ref().is_some_and(|doc| doc.fields == set_fields(fields)))
        });
        if applied.all(|applied| applied) {
            let head = found().find(|(write, _)| is_head(&write.path));
            return Ok(Look::Applied(head.and_then(|(_, doc)| Some(doc.as_ref()?.version))));
        }
        let open = found().all(|(write, doc)| {
            let version = doc.as_ref().map(|doc| doc.version);
            backfill_driver::semantics::holds(write.precondition, version)
        });
        Ok(if open { Look::Open } else { Look::Overtaken })
    }

    /// Takes over what a commit has made durable.
    fn land(&mut self, flight: Flight, version: Option<Version>) -> Cargo {
        if let Some(head) = flight.head {
            // New pages that wait to be written are known only here.
            let unwritten = std::mem::take(&mut self.head.pages).into_iter();
            let unwritten = unwritten.filter(|(_, page)| page.parts == 0);
            self.head = Head { version, ..head };
            for (id, page) in unwritten {
                self.head.pages.entry(id).or_insert(page);
            }
        }
        self.next = flight.next;
        self.journal_bytes += flight.bytes;
        for page in flight.pages {
            self.stale.remove(&page);
            if !self.head.pages.contains_key(&page) {
                self.filling.iter_mut().for_each(|f| *f = f.filter(|f| *f != page));
            }
        }
        if let Some(garbage) = flight.garbage {
            self.garbage = garbage;
        }
        match &flight.cargo {
            Cargo::Rows(keys, _) => self.journaled.extend(keys.iter().cloned()),
            Cargo::Pages(true) => {
                self.journal_bytes = 0;
                self.outdated = false;
            }
            Cargo::Pages(false) => {}
        }
        flight.cargo
    }

    /// Takes over what the documents say.
    fn load(
        &mut self,
        mut docs: BTreeMap<SmolStr, Arc<Document>>,
    ) -> Result<BTreeMap<Key, Row>, SessionError> {
        let Some(head) = docs.remove("head") else {
            return match docs.keys().next() {
                None => Ok(BTreeMap::new()),
                Some(_) => Err(damaged("head", "it is missing, and other documents are there")),
            };
        };
        self.head = self.read_head(&head)?;
        self.next = self.head.start;
        let mut rows = BTreeMap::new();
        for (id, page) in self.head.pages.clone() {
            let name = page_name(id, 0);
            let first = docs.get(&name).ok_or_else(|| damaged(&name, "it is missing"))?;
            if first.int("parts") != Some(i64::from(page.parts)) {
                return Err(damaged(&name, "it has another number of parts than the head says"));
            }
            let names: Vec<SmolStr> = (0..page.parts).map(|part| page_name(id, part)).collect();
            let plain = self.take_parts(&mut docs, &names, [page.state, 0, 0])?;
            if let Some(page) = self.head.pages.get_mut(&id) {
                page.bytes = plain.len();
            }
            let records = record::read(&plain);
            for record in records.ok_or_else(|| damaged(&name, "its rows cannot be read"))? {
                let Record::Put(key, value) = record else {
                    return Err(damaged(&name, "it removes a row"));
                };
                self.place_row(
                    &mut rows,
                    Key::from_bytes(key),
                    Row { value: value.into(), page: id },
                );
            }
        }
        while let Some(first) = docs.get(&entry_name(self.next)) {
            let name = entry_name(self.next);
            let parts = first.count("parts").filter(|parts| (1..=100).contains(parts));
            let parts = parts.ok_or_else(|| damaged(&name, "it does not say how long it is"))?;
            let names: Vec<SmolStr> = (self.next..self.next + parts).map(entry_name).collect();
            let plain = self.take_parts(&mut docs, &names, [parts, 0, 0])?;
            let records = record::read(&plain);
            for record in records.ok_or_else(|| damaged(&name, "its rows cannot be read"))? {
                self.replay(&mut rows, record);
            }
            self.next += parts;
            self.journal_bytes += plain.len();
        }
        for (name, doc) in docs {
            if name
                .strip_prefix('j')
                .and_then(|n| n.parse().ok())
                .is_some_and(|n: u64| n > self.next)
            {
                return Err(damaged(
                    &entry_name(self.next),
                    "it is missing, and later ones are there",
                ));
            }
            self.garbage.insert(doc.path.clone());
        }
        Ok(rows)
    }

    /// A row that was removed and set again may lie in two pages for as long as the journal was
    /// only emptied in part; the page written last is right, and the other one has to go on.
    fn place_row(&mut self, rows: &mut BTreeMap<Key, Row>, key: Key, row: Row) {
        let state = |page: u32| self.head.pages.get(&page).map(|page| page.state);
        if let Some(other) = rows.get(&key) {
            if state(other.page) > state(row.page) {
                self.stale.insert(row.page);
                return;
            }
            self.stale.insert(other.page);
        }
        rows.insert(key, row);
    }

    fn replay(&mut self, rows: &mut BTreeMap<Key, Row>, record: Record<'_>) {
        match record {
            Record::Put(key, value) => {
                let key = Key::from_bytes(key);
                let page = rows.get(&key).map_or(0, |row| row.page);
                rows.insert(key.clone(), Row { value: value.into(), page });
                self.journaled.insert(key);
            }
            Record::Remove(key) => {
                if let Some(row) = rows.remove(key)
                    && row.page != 0
                {
                    self.stale.insert(row.page);
                }
            }
        }
    }

    fn read_head(&mut self, doc: &Document) -> Result<Head, SessionError> {
        let broken = || damaged("head", "a field is missing");
        let format = doc.int("format").ok_or_else(broken)?;
        if format > FORMAT {
            return Err(SessionError::Newer { format, known: FORMAT });
        }
        let beat = doc.count("beat").ok_or_else(broken)?;
        let start = doc.count("start").ok_or_else(broken)?;
        let paired = doc.bool("paired").ok_or_else(broken)?;
        let numbers = [beat, start, u64::from(paired)];
        self.outdated |= doc.str("key") != self.seal.key().as_deref();
        let plain = self.unseal(doc, &bytes_of(doc)?, "head", numbers)?;
        let pages =
            read_pages(&plain).ok_or_else(|| damaged("head", "its pages cannot be read"))?;
        Ok(Head { version: Some(doc.version), beat, start, paired, pages })
    }

    /// Opens what is spread over these documents, and takes them away.
    fn take_parts(
        &mut self,
        docs: &mut BTreeMap<SmolStr, Arc<Document>>,
        names: &[SmolStr],
        numbers: [u64; 3],
    ) -> Result<Vec<u8>, SessionError> {
        let mut sealed = Vec::new();
        let mut first = None;
        for name in names {
            let doc = docs.remove(name).ok_or_else(|| damaged(name, "it is missing"))?;
            sealed.extend_from_slice(&bytes_of(&doc)?);
            first.get_or_insert(doc);
        }
        let (Some(first), Some(name)) = (first, names.first()) else {
            return Err(damaged("head", "a page without parts"));
        };
        self.outdated |= first.str("key") != self.seal.key().as_deref();
        self.unseal(&first, &sealed, name, numbers)
    }

    fn unseal(
        &self,
        doc: &Document,
        sealed: &[u8],
        name: &str,
        numbers: [u64; 3],
    ) -> Result<Vec<u8>, SessionError> {
        self.seal.open(&self.label(name, numbers), doc.str("key"), sealed)
    }

    fn label<'a>(&'a self, document: &'a str, numbers: [u64; 3]) -> Label<'a> {
        Label { account: &self.place.account, document, numbers }
    }

    /// The page that a new row goes into.
    fn page_for(&mut self, key: &Key, value: usize) -> u32 {
        let (changing, size) = (key.changes(), 8 + key.as_bytes().len() + value);
        let slot = usize::from(changing);
        let pages = &mut self.head.pages;
        let fits = |page: &Page, limit| page.changing == changing && page.bytes + size <= limit;
        let open =
            self.filling[slot].filter(|id| pages.get(id).is_some_and(|p| fits(p, PAGE_BYTES)));
        // A page that has lost most of its rows is filled up before a new one is begun.
        let half_empty = || {
            let small = pages.iter().filter(|(_, page)| fits(page, PAGE_BYTES / 2));
            small.min_by_key(|(_, page)| page.bytes).map(|(id, _)| *id)
        };
        let id = open
            .or_else(half_empty)
            .unwrap_or_else(|| pages.last_key_value().map_or(1, |(id, _)| id + 1));
        let page = pages.entry(id).or_insert(Page { changing, ..Page::default() });
        page.bytes += size;
        self.filling[slot] = Some(id);
        id
    }

    fn entry_writes(
        &self,
        plain: &[u8],
        paired: bool,
    ) -> Result<(Vec<Write>, u64, Option<Head>), SessionError> {
        let name = entry_name(self.next);
        // How many parts there are is part of the label, and known before sealing.
        let parts = (plain.len() + 40).div_ceil(PART_BYTES);
        let sealed = self.seal.seal(&self.label(&name, [parts as u64, 0, 0]), plain)?;
        let mut writes = self.fence();
        let mut next = self.next;
        for (part, data) in (0..).zip(sealed.chunks(sealed.len().div_ceil(parts))) {
            let path = self.path(&entry_name(next));
            writes.push(self.data_write(path, Precondition::Absent, data, part, parts));
            next += 1;
        }
        let known = self.head.version.is_some() && self.head.paired == paired;
        let head = (!known).then(|| Head { beat: self.head.beat + 1, paired, ..self.head.clone() });
        if let Some(head) = &head {
            writes.push(self.head_write(head)?);
        }
        Ok((writes, next, head))
    }

    fn data_write(
        &self,
        path: DocPath,
        precondition: Precondition,
        data: &[u8],
        part: u32,
        parts: usize,
    ) -> Write {
        let mut fields = vec![(DATA, FieldOp::from(Value::Bytes(data.into())))];
        fields.extend(self.seal.key().map(|key| (KEY, FieldOp::from(key))));
        if part == 0 {
            fields.push((PARTS, FieldOp::from(parts as u64)));
        }
        Write::merge(path, precondition, fields)
    }

    fn head_write(&self, head: &Head) -> Result<Write, SessionError> {
        let numbers = [head.beat, head.start, u64::from(head.paired)];
        let data = self.seal.seal(&self.label("head", numbers), &list_pages(&head.pages))?;
        let mut fields = vec![
            (BEAT, FieldOp::from(head.beat)),
            (DATA, FieldOp::from(Value::Bytes(data.into()))),
            (FORMAT_FIELD, FieldOp::from(FORMAT)),
            (PAIRED, FieldOp::from(head.paired)),
            (START, FieldOp::from(head.start)),
        ];
        fields.extend(self.seal.key().map(|key| (KEY, FieldOp::from(key))));
        let precondition = self.head.version.map_or(Precondition::Absent, Precondition::Version);
        Ok(Write::merge(self.path("head"), precondition, fields))
    }

    fn fence(&self) -> Vec<Write> {
        let lease = self.place.account.connection_path();
        let fence = self.place.fence;
        fence.into_iter().map(|v| Write::verify(lease.clone(), Precondition::Version(v))).collect()
    }

    fn path(&self, name: &str) -> DocPath {
        path(&self.place.account, name)
    }
}

/// Whether a device is linked, as far as one document tells.
pub(crate) async fn is_paired<S: Store>(
    store: &S,
    account: &AccountId,
) -> Result<bool, SessionError> {
    let found = store.get(&[path(account, "head")]).await?;
    let Some(head) = found.docs.into_iter().next().flatten() else { return Ok(false) };
    head.bool("paired").ok_or_else(|| damaged("head", "a field is missing"))
}

/// Whether a session opens with this seal, as far as one document tells.
pub(crate) async fn check<S: Store>(
    store: S,
    place: Place,
    seal: Seal,
) -> Result<(), SessionError> {
    let found = store.get(&[path(&place.account, "head")]).await?;
    let Some(head) = found.docs.into_iter().next().flatten() else { return Ok(()) };
    Book::new(store, place, seal).read_head(&head).map(drop)
}

/// Forgets a session for good, whatever state it is in.
pub(crate) async fn wipe<S: Store>(
    store: &S,
    place: Place,
    seal: Seal,
) -> Result<(), SessionError> {
    let docs = read_all(store, &place.account).await?;
    if docs.is_empty() {
        return Ok(());
    }
    let entries = docs.keys().filter_map(|name| name.strip_prefix('j')?.parse::<u64>().ok());
    let head = docs.get("head");
    let number = |name| head.and_then(|head| head.count(name)).unwrap_or(0);
    let last = entries.max().unwrap_or(0).max(number("start"));
    let mut book = Book {
        store: store.clone(),
        place,
        seal,
        head: Head { version: head.map(|head| head.version), ..Head::default() },
        next: last + WIPE_GAP,
        journal_bytes: 0,
        journaled: BTreeSet::new(),
        stale: BTreeSet::new(),
        filling: [None; 2],
        garbage: BTreeSet::new(),
        outdated: false,
        flight: None,
    };
    book.head.beat = number("beat");
    book.head.start = book.next;
    let names = docs.keys().filter(|name| *name != "head");
    book.garbage = names.map(|name| book.path(name)).collect();
    loop {
        book.write_pages(&Rows::default())?;
        match book.send().await {
            Some(Sent::Landed(_)) if book.garbage.is_empty() => return Ok(()),
            Some(Sent::Landed(_)) => {}
            Some(Sent::Refused(_, e) | Sent::Unknown(e)) => return Err(e),
            None => return Err(SessionError::Closed),
        }
    }
}

/// What a look at the store tells about a commit.
enum Look {
    /// It has been applied; with the head's version, if it wrote one
    Applied(Option<Version>),
    /// It has not been applied, and could be
    Open,
    /// It cannot be applied any more
    Overtaken,
}

async fn read_all<S: Store>(
    store: &S,
    account: &AccountId,
) -> Result<BTreeMap<SmolStr, Arc<Document>>, SessionError> {
    let mut docs = BTreeMap::new();
    let mut query = Query::all(collection(account), READ_AT_ONCE);
    loop {
        let found = store.query(&query).await?.docs;
        let Some(last) = found.last() else { return Ok(docs) };
        query.after = Some(Cursor { keys: Vec::new(), id: last.path.id().into() });
        let full = found.len() >= READ_AT_ONCE as usize;
        docs.extend(found.into_iter().map(|doc| (SmolStr::new(doc.path.id()), doc)));
        if !full {
            return Ok(docs);
        }
    }
}

fn collection(account: &AccountId) -> CollectionPath {
    account.path().child("session")
}

fn path(account: &AccountId, name: &str) -> DocPath {
    // The names below are valid segments.
    DocPath::new(&collection(account), name).unwrap_or_else(|_| account.path())
}

fn is_head(path: &DocPath) -> bool {
    path.id() == "head"
}

fn entry_name(number: u64) -> SmolStr {
    format_smolstr!("j{number:016}")
}

fn page_name(id: u32, part: u32) -> SmolStr {
    if part == 0 { format_smolstr!("p{id:08}") } else { format_smolstr!("p{id:08}-{part}") }
}

fn damaged(document: &str, reason: &'static str) -> SessionError {
    SessionError::Damaged { document: document.into(), reason }
}

fn bytes_of(doc: &Document) -> Result<Arc<[u8]>, SessionError> {
    match doc.value("data") {
        Some(Value::Bytes(bytes)) => Ok(Arc::clone(bytes)),
        _ => Err(damaged(doc.path.id(), "it has no data")),
    }
}

/// The fields that a merge which sets values leaves in a new document.
fn set_fields(ops: &[(FieldPath, FieldOp)]) -> Fields {
    let values = ops.iter().filter_map(|(field, op)| match op {
        FieldOp::Set(value) => Some((SmolStr::new(field.as_str()), value.clone())),
        FieldOp::Remove | FieldOp::ServerTime => None,
    });
    values.collect()
}

fn list_pages(pages: &BTreeMap<u32, Page>) -> Vec<u8> {
    let mut out = Vec::new();
    for (id, page) in pages.iter().filter(|(_, page)| page.parts > 0) {
        for number in [u64::from(*id), page.state, u64::from(page.parts), u64::from(page.changing)]
        {
            record::push_number(&mut out, number);
        }
    }
    out
}

fn read_pages(mut bytes: &[u8]) -> Option<BTreeMap<u32, Page>> {
    let mut pages = BTreeMap::new();
    while !bytes.is_empty() {
        let id = u32::try_from(record::take_number(&mut bytes)?).ok()?;
        let state = record::take_number(&mut bytes)?;
        let parts = u32::try_from(record::take_number(&mut bytes)?).ok()?;
        let changing = record::take_number(&mut bytes)? != 0;
        pages.insert(id, Page { state, parts, changing, bytes: 0 });
    }
    Some(pages)
}
