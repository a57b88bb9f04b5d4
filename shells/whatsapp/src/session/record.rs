//! How rows lie in a document: one after the other, each with its length.

use super::rows::Key;

/// What happens to a row.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    Put(&'a [u8], &'a [u8]),
    Remove(&'a [u8]),
}

const REMOVE: u8 = 0;
const PUT: u8 = 1;

/// Appends the state of a row: its value, or that there is none.
pub(crate) fn push(out: &mut Vec<u8>, key: &Key, value: Option<&[u8]>) {
    out.push(if value.is_some() { PUT } else { REMOVE });
    push_bytes(out, key.as_bytes());
    if let Some(value) = value {
        push_bytes(out, value);
    }
}

/// Reads all records; `None` if the bytes are not what [`push`] wrote.
pub(crate) fn read(mut bytes: &[u8]) -> Option<Vec<Record<'_>>> {
    let mut records = Vec::new();
    while let Some((kind, rest)) = bytes.split_first() {
        bytes = rest;
        let key = take_bytes(&mut bytes)?;
        if key.is_empty() {
            return None;
        }
        records.push(match *kind {
            PUT => Record::Put(key, take_bytes(&mut bytes)?),
            REMOVE => Record::Remove(key),
            _ => return None,
        });
    }
    Some(records)
}

/// Appends a number, small ones in few bytes.
pub(crate) fn push_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Takes a number off the front.
pub(crate) fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    push_number(out, bytes.len() as u64);
    out.extend(bytes);
}

fn take_bytes<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_number(bytes)?).ok()?;
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::rows::Table;

    #[test]
    fn records_are_read_as_written_and_nothing_else_is_read() {
        let mut out = Vec::new();
        let long = vec![7; 300];
        push(&mut out, &Key::new(Table::Session, "a"), Some(&long));
        push(&mut out, &Key::new(Table::Session, "b"), None);
        push(&mut out, &Key::new(Table::PreKey, 9_u32.to_be_bytes()), Some(&[]));
        let expected = [
            Record::Put(b"\x03a", &long),
            Record::Remove(b"\x03b"),
            Record::Put(&[4, 0, 0, 0, 9], &[]),
        ];
        assert_eq!(read(&out).unwrap(), expected);
        for cut in 1..out.len() {
            let whole = read(&out[..cut]).is_some_and(|records| records.len() == 3);
            assert!(!whole);
        }
        assert_eq!(read(&[9, 1, 3]), None);
        assert_eq!(read(&[PUT, 0, 0]), None);
    }

    #[test]
    fn numbers_are_read_as_written() {
        for number in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            push_number(&mut out, number);
            let mut bytes = &out[..];
            assert_eq!(take_number(&mut bytes), Some(number));
            assert!(bytes.is_empty());
            assert_eq!(take_number(&mut &out[..out.len() - 1]), None);
        }
    }
}
