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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doc::Precondition;

    fn write(id: usize, text_bytes: usize) -> Write {
        let text = Value::from("x".repeat(text_bytes));
        let path = DocPath::parse(format!("c/{id:06}")).unwrap();
        Write::merge(path, Precondition::Any, vec![("f".into(), text.into())])
    }

    fn sizes(units: Vec<Unit>, alone: &[usize]) -> Vec<usize> {
        let alone = alone.iter().map(|id| write(*id, 0).path).collect();
        let groups = grouped(units, &alone);
        assert!(groups.iter().all(|group| group.bytes <= GROUP_BYTES || group.units == 1));
        groups.iter().map(|group| group.writes.len()).collect()
    }

    #[test]
    fn a_commit_takes_as_many_writes_as_it_may_and_no_more() {
        let pairs = |n| (0..n).map(|i| [Some(write(2 * i, 0)), Some(write(2 * i + 1, 0))]);
        assert_eq!(sizes(pairs(200).collect(), &[]), [400]);
        assert_eq!(sizes(pairs(201).collect(), &[]), [400, 2]);
        let odd = [[Some(write(999, 0)), None]].into_iter().chain(pairs(200));
        assert_eq!(sizes(odd.collect(), &[]), [399, 2], "what belongs together stays together");
    }

    #[test]
    fn a_commit_takes_as_many_bytes_as_it_may_and_no_more() {
        let others = [write(0, 1_000_000), write(1, 1_000_000)];
        let left = GROUP_BYTES - others.iter().map(write_bytes).sum::<usize>();
        let fits = left - write_bytes(&write(2, 0));
        for (bytes, groups) in [(fits, vec![3]), (fits + 1, vec![2, 1])] {
            let writes = others.iter().cloned().chain([write(2, bytes)]);
            assert_eq!(sizes(writes.map(|write| [Some(write), None]).collect(), &[]), groups);
        }
        // What is larger than a commit may be is tried by itself all the same.
        let huge = [write(0, 1), write(1, 4_000_000), write(2, 1)];
        assert_eq!(sizes(huge.map(|write| [Some(write), None]).into(), &[]), [1, 1, 1]);
    }

    #[test]
    fn a_document_that_is_written_alone_shares_its_commit_with_none() {
        let units = |n| (0..n).map(|id| [Some(write(id, 0)), None]).collect();
        assert_eq!(sizes(units(5), &[0]), [1, 4]);
        assert_eq!(sizes(units(5), &[2]), [2, 1, 2]);
        assert_eq!(sizes(units(5), &[4]), [4, 1]);
        assert_eq!(sizes(Vec::new(), &[]), [0; 0]);
    }

    #[test]
    fn a_write_takes_the_bytes_of_its_texts_and_a_little_more() {
        let (name, text) = ("n".repeat(100), "t".repeat(1_000));
        let inner = Value::map([(name.clone(), Value::from(text.clone()))]);
        let list = Value::Array(vec![inner.clone(), Value::Int(1), inner]);
        let path = DocPath::parse(format!("c/{name}")).unwrap();
        let field = FieldPath::parse(&name).unwrap();
        let merge = |op| Write::merge(path.clone(), Precondition::Any, vec![(field.clone(), op)]);
        let about = |least: usize| least..least + 200;
        assert!(about(4 * 100 + 2 * 1_000).contains(&write_bytes(&merge(list.into()))));
        assert!(about(2 * 100).contains(&write_bytes(&merge(FieldOp::ServerTime))));
        assert!(about(100).contains(&write_bytes(&Write::delete(path.clone(), Precondition::Any))));
    }
}
