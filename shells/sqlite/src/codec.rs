//! Field values as bytes: compact, and exact for every type.

use std::sync::Arc;

use backfill_core::doc::{Double, Fields, Value};
use backfill_core::time::StoreTime;
use backfill_driver::semantics::MAX_DEPTH;
use smol_str::SmolStr;

const NULL: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const INT: u8 = 3;
const DOUBLE: u8 = 4;
const TIMESTAMP: u8 = 5;
const STRING: u8 = 6;
const BYTES: u8 = 7;
const REFERENCE: u8 = 8;
const GEO_POINT: u8 = 9;
const ARRAY: u8 = 10;
const MAP: u8 = 11;

/// The fields as bytes.
pub(crate) fn encode(fields: &Fields) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    write_fields(&mut out, fields);
    out
}

/// The fields; `None` if the bytes are not what [`encode`] makes.
pub(crate) fn decode(bytes: &[u8]) -> Option<Fields> {
    let mut reader = Reader { rest: bytes };
    let fields = reader.fields(0)?;
    reader.rest.is_empty().then_some(fields)
}

fn write_fields(out: &mut Vec<u8>, fields: &Fields) {
    write_length(out, fields.len());
    for (key, value) in fields {
        write_bytes(out, key.as_bytes());
        write_value(out, value);
    }
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.push(NULL),
        Value::Bool(false) => out.push(FALSE),
        Value::Bool(true) => out.push(TRUE),
        Value::Int(n) => {
            out.push(INT);
            write_signed(out, *n);
        }
        Value::Double(Double(d)) => {
            out.push(DOUBLE);
            out.extend(d.to_bits().to_le_bytes());
        }
        Value::Timestamp(t) => {
            out.push(TIMESTAMP);
            write_signed(out, t.as_micros());
        }
        Value::String(s) => {
            out.push(STRING);
            write_bytes(out, s.as_bytes());
        }
        Value::Bytes(b) => {
            out.push(BYTES);
            write_bytes(out, b);
        }
        Value::Reference(r) => {
            out.push(REFERENCE);
            write_bytes(out, r.as_bytes());
        }
        Value::GeoPoint(Double(latitude), Double(longitude)) => {
            out.push(GEO_POINT);
            out.extend(latitude.to_bits().to_le_bytes());
            out.extend(longitude.to_bits().to_le_bytes());
        }
        Value::Array(items) => {
            out.push(ARRAY);
            write_length(out, items.len());
            for item in items {
                write_value(out, item);
            }
        }
        Value::Map(fields) => {
            out.push(MAP);
            write_fields(out, fields);
        }
    }
}

fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    write_length(out, bytes.len());
    out.extend(bytes);
}

fn write_length(out: &mut Vec<u8>, length: usize) {
    write_varint(out, u64::try_from(length).unwrap_or(u64::MAX));
}

/// Small numbers of either sign are short.
fn write_signed(out: &mut Vec<u8>, n: i64) {
    write_varint(out, ((n << 1) ^ (n >> 63)).cast_unsigned());
}

fn write_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn fields(&mut self, depth: usize) -> Option<Fields> {
        let count = self.length()?;
        (0..count).map(|_| Some((SmolStr::new(self.text()?), self.value(depth)?))).collect()
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        let inner = depth + 1;
        if inner > MAX_DEPTH + 2 {
            return None;
        }
        Some(match self.take(1)?[0] {
            NULL => Value::Null,
            FALSE => Value::Bool(false),
            TRUE => Value::Bool(true),
            INT => Value::Int(self.signed()?),
            DOUBLE => Value::Double(self.double()?),
            TIMESTAMP => Value::Timestamp(StoreTime::from_micros(self.signed()?)),
            STRING => Value::String(SmolStr::new(self.text()?)),
            BYTES => {
                let length = self.length()?;
                Value::Bytes(Arc::from(self.take(length)?))
            }
            REFERENCE => Value::Reference(SmolStr::new(self.text()?)),
            GEO_POINT => Value::GeoPoint(self.double()?, self.double()?),
            ARRAY => {
                let count = self.length()?;
                Value::Array((0..count).map(|_| self.value(inner)).collect::<Option<_>>()?)
            }
            MAP => Value::Map(self.fields(inner)?),
            _ => return None,
        })
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.length()?;
        std::str::from_utf8(self.take(length)?).ok()
    }

    fn double(&mut self) -> Option<Double> {
        let bits = self.take(8)?.try_into().ok()?;
        Some(Double(f64::from_bits(u64::from_le_bytes(bits))))
    }

    fn signed(&mut self) -> Option<i64> {
        let n = self.varint()?;
        Some((n >> 1).cast_signed() ^ -(n & 1).cast_signed())
    }

    fn length(&mut self) -> Option<usize> {
        let length = usize::try_from(self.varint()?).ok()?;
        // Every item takes a byte at least: a wrong length ends here, not in an allocation.
        (length <= self.rest.len()).then_some(length)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut n = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            n |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                return Some(n);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_bytes_are_refused_without_panic() {
        let fields: Fields = [
            ("a".into(), Value::Int(i64::MIN)),
            ("b".into(), Value::Array(vec![Value::from("text"), Value::Double(Double(1.5))])),
            ("c".into(), Value::map([("x", Value::Timestamp(StoreTime::from_micros(-7)))])),
        ]
        .into();
        let bytes = encode(&fields);
        assert_eq!(decode(&bytes), Some(fields));
        for length in 0..bytes.len() {
            assert_eq!(decode(&bytes[..length]), None);
        }
        for at in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                let _ = decode(&damaged);
            }
        }
        let deep = [vec![1, 0, ARRAY], [1, ARRAY].repeat(5_000)].concat();
        assert_eq!(decode(&deep), None);
    }
}
