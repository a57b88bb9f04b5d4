//! What may be written together: as few commits as their limits allow.

use std::collections::{BTreeSet, VecDeque};

use crate::doc::{DocPath, FieldOp, FieldPath, Value, Write, WriteOp};

/// Stores take 500 writes; some are left for what the shell adds to a commit.
pub(super) const GROUP_WRITES: usize = 400;
/// The emulator takes 4 MiB, encoded.
const GROUP_BYTES: usize = 3_000_000;

/// One commit.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Group {
    pub(super) writes: Vec<Write>,
    pub(super) paths: Vec<DocPath>,
    pub(super) bytes: usize,
    /// How many independent parts it has
    pub(super) units: usize,
}

/// Writes that are applied together.
pub(super) type Unit = [Option<Write>; 2];

/// The commits that write these, in their order. Documents in `alone` get one of their own.
pub(super) fn grouped(units: Vec<Unit>, alone: &BTreeSet<DocPath>) -> VecDeque<Group> {
    let mut groups = VecDeque::new();
    let mut open = Group::default();
    for unit in units {
        let writes = || unit.iter().flatten();
        let bytes: usize = writes().map(write_bytes).sum();
        let alone = writes().any(|write| alone.contains(&write.path));
        let full =
            open.writes.len() + writes().count() > GROUP_WRITES || open.bytes + bytes > GROUP_BYTES;
        if (full || alone) && open.units > 0 {
            groups.push_back(std::mem::take(&mut open));
        }
        open.bytes += bytes;
        open.units += 1;
        open.paths.extend(writes().map(|write| write.path.clone()));
        open.writes.extend(unit.into_iter().flatten());
        if alone {
            groups.push_back(std::mem::take(&mut open));
        }
    }
    if open.units > 0 {
        groups.push_back(open);
    }
    groups
}

/// About how many bytes a write takes.
fn write_bytes(write: &Write) -> usize {
    let ops = match &write.op {
        WriteOp::Delete | WriteOp::Verify => &[][..],
        WriteOp::Merge(ops) => ops,
    };
    let op_bytes = |(field, op): &(FieldPath, FieldOp)| {
        let value = match op {
            FieldOp::Remove | FieldOp::ServerTime => 0,
            FieldOp::Set(value) => value_bytes(value),
        };
        field.as_str().len() + value + 16
    };
    write.path.as_str().len() + 64 + ops.iter().map(op_bytes).sum::<usize>()
}

fn value_bytes(value: &Value) -> usize {
    8 + match value {
        Value::String(text) | Value::Reference(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        Value::Array(values) => values.iter().map(value_bytes).sum(),
        Value::Map(fields) => fields.iter().map(|(k, v)| k.len() + 8 + value_bytes(v)).sum(),
        Value::Null
        | Value::Bool(_)
        | Value::Int(_)
        | Value::Double(_)
        | Value::Timestamp(_)
        | Value::GeoPoint(..) => 8,
    }
}
