//! Documents and moments as JSON.

use std::collections::BTreeMap;

use backfill_core::doc::{Fields, Value};
use backfill_core::time::StoreTime;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Fields by name.
pub(crate) type Object = BTreeMap<String, serde_json::Value>;

/// A moment as ISO 8601 with milliseconds and `Z`.
pub fn iso(time: StoreTime) -> String {
    let ms = time.as_millis();
    let (days, of_day) = (ms.div_euclid(DAY_MS), ms.rem_euclid(DAY_MS));
    let (year, month, day) = civil(days);
    let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (second, ms) = (of_day / 1_000 % 60, of_day % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// A value as JSON: moments as ISO text, bytes in base64, places as latitude and longitude.
pub(crate) fn json(value: &Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match value {
        Value::Null => Json::Null,
        Value::Bool(b) => Json::from(*b),
        Value::Int(n) => Json::from(*n),
        Value::Double(d) => Json::from(d.0),
        Value::Timestamp(time) => Json::from(iso(*time)),
        Value::String(s) | Value::Reference(s) => Json::from(s.as_str()),
        Value::Bytes(bytes) => Json::from(STANDARD.encode(bytes)),
        Value::GeoPoint(lat, long) => {
            serde_json::json!({ "latitude": lat.0, "longitude": long.0 })
        }
        Value::Array(values) => values.iter().map(json).collect(),
        Value::Map(fields) => object(fields).into_iter().collect(),
    }
}

/// All fields as JSON.
pub(crate) fn object(fields: &Fields) -> Object {
    fields.iter().map(|(name, value)| (name.to_string(), json(value))).collect()
}

/// A field that is text or a moment, as text.
pub(crate) fn text(fields: &Fields, name: &str) -> Option<String> {
    match fields.get(name)? {
        Value::String(text) => Some(text.to_string()),
        Value::Timestamp(time) => Some(iso(*time)),
        _ => None,
    }
}

/// A field that is a map, as JSON.
pub(crate) fn map(fields: &Fields, name: &str) -> Option<Object> {
    fields.get(name)?.as_map().map(object)
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    // Eras of 400 years beginning on a 1 March, so that the leap day is a year's last.
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

const DAY_MS: i64 = 86_400_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_have_milliseconds_and_a_z() {
        assert_eq!(iso(StoreTime::EPOCH), "1970-01-01T00:00:00.000Z");
        assert_eq!(iso(StoreTime::from_micros(1_709_210_096_007_999)), "2024-02-29T12:34:56.007Z");
        assert_eq!(iso(StoreTime::from_millis(-1)), "1969-12-31T23:59:59.999Z");
        assert_eq!(iso(StoreTime::from_secs(4_102_444_800)), "2100-01-01T00:00:00.000Z");
    }

    #[test]
    fn values_keep_their_meaning() {
        let value = Value::map([
            ("at", Value::Timestamp(StoreTime::EPOCH)),
            ("bytes", Value::Bytes(b"hi".as_slice().into())),
            ("list", Value::Array(vec![Value::Int(1), Value::Null])),
        ]);
        let expected = serde_json::json!({
            "at": "1970-01-01T00:00:00.000Z", "bytes": "aGk=", "list": [1, null],
        });
        assert_eq!(json(&value), expected);
    }
}
