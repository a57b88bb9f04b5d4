//! Index keys: bytes that sort as the values do.
//!
//! The encoding of a value says itself where it ends, and begins with its type's rank. Behind
//! the values of an index's fields comes the document's id, as it is.

use backfill_core::doc::{Double, Value};

/// Greater than whatever can follow a value: a rank, or a byte of an id.
pub(crate) const ABOVE: u8 = 0xff;

const END: u8 = 0;
const NEXT: u8 = 1;

/// Appends a value.
pub(crate) fn push(key: &mut Vec<u8>, value: &Value) {
    key.push(rank(value));
    match value {
        Value::Null => {}
        Value::Bool(b) => key.push(u8::from(*b)),
        Value::Int(n) => {
            // What rounding took from the integer orders those that round to the same double.
            let rounded = *n as f64;
            let lost = i128::from(*n) - rounded as i128;
            push_number(key, Double(rounded), lost as i16);
        }
        Value::Double(d) => push_number(key, *d, 0),
        Value::Timestamp(t) => push_signed(key, t.as_micros()),
        Value::String(s) => push_bytes(key, s.as_bytes()),
        Value::Bytes(b) => push_bytes(key, b),
        Value::Reference(r) => {
            for segment in r.split('/') {
                key.push(NEXT);
                push_bytes(key, segment.as_bytes());
            }
            key.push(END);
        }
        Value::GeoPoint(latitude, longitude) => {
            push_number(key, *latitude, 0);
            push_number(key, *longitude, 0);
        }
        Value::Array(items) => {
            for item in items {
                key.push(NEXT);
                push(key, item);
            }
            key.push(END);
        }
        Value::Map(fields) => {
            for (name, value) in fields {
                key.push(NEXT);
                push_bytes(key, name.as_bytes());
                push(key, value);
            }
            key.push(END);
        }
    }
}

/// The first byte of every value of the same type.
pub(crate) fn rank(value: &Value) -> u8 {
    match value {
        Value::Null => 1,
        Value::Bool(_) => 2,
        Value::Int(_) | Value::Double(_) => 3,
        Value::Timestamp(_) => 4,
        Value::String(_) => 5,
        Value::Bytes(_) => 6,
        Value::Reference(_) => 7,
        Value::GeoPoint(..) => 8,
        Value::Array(_) => 9,
        Value::Map(_) => 10,
    }
}

fn push_number(key: &mut Vec<u8>, number: Double, lost: i16) {
    let d = number.0;
    let sortable = if d.is_nan() {
        0
    } else {
        // The two zeros are equal.
        let bits = (d + 0.0).to_bits();
        if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
    };
    key.extend(sortable.to_be_bytes());
    key.extend((lost.cast_unsigned() ^ 0x8000).to_be_bytes());
}

fn push_signed(key: &mut Vec<u8>, n: i64) {
    key.extend((n.cast_unsigned() ^ 1 << 63).to_be_bytes());
}

/// A zero byte becomes two, so that the end, a zero and a one, sorts first.
fn push_bytes(key: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        key.push(*byte);
        if *byte == 0 {
            key.push(ABOVE);
        }
    }
    key.extend([0, 1]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use backfill_core::time::StoreTime;
    use backfill_driver::semantics::compare;
    use std::sync::Arc;

    #[test]
    fn keys_sort_as_values_do() {
        let double = |d| Value::Double(Double(d));
        let text = |s: &str| Value::from(s);
        let time = |t| Value::from(StoreTime::from_micros(t));
        let int = Value::Int;
        let big = 9_007_199_254_740_993;
        let values = [
            Value::Null,
            false.into(),
            true.into(),
            double(f64::NAN),
            double(f64::NEG_INFINITY),
            int(i64::MIN),
            int(i64::MIN + 1),
            double(-1.5),
            int(-1),
            double(-0.0),
            int(0),
            double(0.0),
            double(f64::MIN_POSITIVE),
            int(1),
            double(1.5),
            int(2),
            double(2.0),
            int(big - 1),
            double(9_007_199_254_740_992.0),
            int(big),
            int(big + 1),
            int(i64::MAX - 1),
            int(i64::MAX),
            double(9.3e18),
            double(f64::INFINITY),
            time(i64::MIN),
            time(-1),
            time(0),
            time(i64::MAX),
            text(""),
            text("\0"),
            text("\0\0"),
            text("\0a"),
            text("a"),
            text("a\0"),
            text("a\0b"),
            text("aa"),
            text("ü"),
            Value::Bytes(Arc::from([])),
            Value::Bytes(Arc::from([0])),
            Value::Bytes(Arc::from([0, 255])),
            Value::Bytes(Arc::from([1])),
            Value::Bytes(Arc::from([255, 255])),
            Value::Reference("a/b".into()),
            Value::Reference("a/b/c/d".into()),
            Value::Reference("a!/b".into()),
            Value::GeoPoint(Double(-1.0), Double(3.0)),
            Value::GeoPoint(Double(0.0), Double(-3.0)),
            Value::Array(vec![]),
            Value::Array(vec![Value::Null]),
            Value::Array(vec![int(1)]),
            Value::Array(vec![int(1), Value::Null]),
            Value::Array(vec![text("a")]),
            Value::Map([].into()),
            Value::map([("a", int(1))]),
            Value::map([("a", int(1)), ("b", Value::Null)]),
            Value::map([("a", int(2))]),
            Value::map([("aa", Value::Null)]),
        ];
        for a in &values {
            for b in &values {
                let (mut x, mut y) = (Vec::new(), Vec::new());
                push(&mut x, a);
                push(&mut y, b);
                assert_eq!(x.cmp(&y), compare(a, b), "{a:?} and {b:?}");
                assert!(x == y || !y.starts_with(&x), "{a:?} does not say where it ends");
            }
        }
    }
}
