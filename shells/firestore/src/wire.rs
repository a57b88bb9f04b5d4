//! Documents, writes and queries as Firestore's protocol has them.

use backfill_core::doc::{
    Comparison, DocPath, Document, Double, FieldOp, FieldPath, Fields, Precondition, Query, Value,
    Version, Write, WriteOp,
};
use backfill_core::time::StoreTime;
use backfill_driver::semantics::{id_direction, sort_keys};
use firestore::gcloud_sdk::google::firestore::v1 as pb;
use firestore::gcloud_sdk::google::r#type::LatLng;
use firestore::gcloud_sdk::prost_types::Timestamp;
use pb::document_transform::field_transform::{ServerValue, TransformType};
use pb::structured_query as sq;
use pb::value::ValueType;
use smol_str::SmolStr;

const ID: &str = "__name__";

/// The names of a database's documents.
pub(crate) struct Names {
    /// `projects/{project}/databases/{database}/documents`
    root: String,
}

impl Names {
    pub(crate) fn new(root: &str) -> Self {
        Self { root: root.into() }
    }

    pub(crate) fn document(&self, path: &DocPath) -> String {
        format!("{}/{}", self.root, path.as_str())
    }

    /// A document that nobody writes.
    pub(crate) fn probe(&self) -> String {
        format!("{}/_/_", self.root)
    }

    /// The document; `None` if the server did not say what it must.
    pub(crate) fn read_document(&self, doc: pb::Document) -> Option<Document> {
        let path = doc.name.strip_prefix(&self.root)?.strip_prefix('/')?;
        let update_time = time(doc.update_time?)?;
        Some(Document {
            path: DocPath::parse(path).ok()?,
            fields: read_fields(doc.fields)?,
            version: version(update_time),
            update_time,
        })
    }

    pub(crate) fn write(&self, write: &Write) -> pb::Write {
        let name = self.document(&write.path);
        let mut out = pb::Write { current_document: precondition(write), ..Default::default() };
        match &write.op {
            WriteOp::Delete => out.operation = Some(pb::write::Operation::Delete(name)),
            // Deleting what is not there changes nothing; an update would create it.
            WriteOp::Verify if write.precondition == Precondition::Absent => {
                out.operation = Some(pb::write::Operation::Delete(name));
            }
            WriteOp::Verify => {
                out.update_mask = Some(pb::DocumentMask::default());
                out.operation = Some(update(name, Default::default()));
            }
            WriteOp::Merge(changes) => {
                let mut fields = pb::MapValue::default();
                let mut mask = pb::DocumentMask::default();
                for (field, op) in changes {
                    match op {
                        FieldOp::Remove => mask.field_paths.push(field.as_str().into()),
                        FieldOp::ServerTime => out.update_transforms.push(server_time(field)),
                        FieldOp::Set(value) => {
                            mask.field_paths.push(field.as_str().into());
                            place(&mut fields, field.as_str(), write_value(value));
                        }
                    }
                }
                out.update_mask = Some(mask);
                out.operation = Some(update(name, fields));
            }
        }
        out
    }

    /// The parent and the rest of a query.
    pub(crate) fn query(&self, query: &Query) -> (String, pb::StructuredQuery) {
        let collection = query.collection.as_str();
        let (parent, name) = match collection.rsplit_once('/') {
            None => (self.root.clone(), collection),
            Some((parent, name)) => (format!("{}/{parent}", self.root), name),
        };
        let mut order_by: Vec<sq::Order> =
            sort_keys(query).into_iter().map(|(field, d)| order(field.as_str(), d)).collect();
        order_by.push(order(ID, id_direction(query)));
        let start_at = query.after.as_ref().map(|after| {
            let id = format!("{}/{collection}/{}", self.root, after.id);
            let id = pb::Value { value_type: Some(ValueType::ReferenceValue(id)) };
            let keys = after.keys.iter().map(write_value);
            pb::Cursor { values: keys.chain([id]).collect(), before: false }
        });
        let select = query.select.as_ref().map(|fields| sq::Projection {
            // A projection without fields would bring all of them.
            fields: if fields.is_empty() {
                vec![reference(ID)]
            } else {
                fields.iter().map(|field| reference(field.as_str())).collect()
            },
        });
        let structured = pb::StructuredQuery {
            select,
            from: vec![sq::CollectionSelector {
                collection_id: name.into(),
                all_descendants: false,
            }],
            r#where: filters(query),
            order_by,
            start_at,
            limit: Some(i32::try_from(query.limit).unwrap_or(i32::MAX)),
            ..Default::default()
        };
        (parent, structured)
    }
}

/// The moment, to the microsecond, which is all that Firestore keeps.
pub(crate) fn time(t: Timestamp) -> Option<StoreTime> {
    let micros = t.seconds.checked_mul(1_000_000)?.checked_add(i64::from(t.nanos / 1_000))?;
    Some(StoreTime::from_micros(micros))
}

/// A document's version is its update time, which never repeats for one document.
pub(crate) fn version(update_time: StoreTime) -> Version {
    Version(update_time.as_micros())
}

fn timestamp(t: StoreTime) -> Timestamp {
    let micros = t.as_micros();
    let nanos = i32::try_from(micros.rem_euclid(1_000_000) * 1_000).unwrap_or_default();
    Timestamp { seconds: micros.div_euclid(1_000_000), nanos }
}

fn precondition(write: &Write) -> Option<pb::Precondition> {
    use pb::precondition::ConditionType;
    let condition = match write.precondition {
        Precondition::Any => return None,
        Precondition::Absent => ConditionType::Exists(false),
        Precondition::Exists => ConditionType::Exists(true),
        Precondition::Version(Version(micros)) => {
            ConditionType::UpdateTime(timestamp(StoreTime::from_micros(micros)))
        }
    };
    Some(pb::Precondition { condition_type: Some(condition) })
}

fn update(name: String, fields: pb::MapValue) -> pb::write::Operation {
    pb::write::Operation::Update(pb::Document { name, fields: fields.fields, ..Default::default() })
}

fn server_time(field: &FieldPath) -> pb::document_transform::FieldTransform {
    pb::document_transform::FieldTransform {
        field_path: field.as_str().into(),
        transform_type: Some(TransformType::SetToServerValue(ServerValue::RequestTime.into())),
    }
}

/// Puts a value at a dotted path.
fn place(fields: &mut pb::MapValue, path: &str, value: pb::Value) {
    let Some((first, rest)) = path.split_once('.') else {
        fields.fields.insert(path.into(), value);
        return;
    };
    let inner = fields.fields.entry(first.into()).or_default();
    let inner = inner.value_type.get_or_insert_with(|| ValueType::MapValue(Default::default()));
    // Paths of one merge do not overlap, so what is there is a map.
    if let ValueType::MapValue(map) = inner {
        place(map, rest, value);
    }
}

fn filters(query: &Query) -> Option<sq::Filter> {
    let one = |filter: &backfill_core::doc::Filter| {
        let field = Some(reference(filter.field.as_str()));
        let unary = |op: sq::unary_filter::Operator| {
            let operand_type = field.clone().map(sq::unary_filter::OperandType::Field);
            sq::filter::FilterType::UnaryFilter(sq::UnaryFilter { op: op.into(), operand_type })
        };
        let filter_type = match (&filter.value, filter.op) {
            (Value::Null, _) => unary(sq::unary_filter::Operator::IsNull),
            (Value::Double(Double(d)), Comparison::Equal) if d.is_nan() => {
                unary(sq::unary_filter::Operator::IsNan)
            }
            (value, op) => {
                let op: sq::field_filter::Operator = match op {
                    Comparison::Equal => sq::field_filter::Operator::Equal,
                    Comparison::Greater => sq::field_filter::Operator::GreaterThan,
                    Comparison::GreaterOrEqual => sq::field_filter::Operator::GreaterThanOrEqual,
                    Comparison::Less => sq::field_filter::Operator::LessThan,
                    Comparison::LessOrEqual => sq::field_filter::Operator::LessThanOrEqual,
                };
                sq::filter::FilterType::FieldFilter(sq::FieldFilter {
                    field,
                    op: op.into(),
                    value: Some(write_value(value)),
                })
            }
        };
        sq::Filter { filter_type: Some(filter_type) }
    };
    let mut filters: Vec<sq::Filter> = query.filters.iter().map(one).collect();
    if filters.len() < 2 {
        return filters.pop();
    }
    let all = sq::CompositeFilter { op: sq::composite_filter::Operator::And.into(), filters };
    Some(sq::Filter { filter_type: Some(sq::filter::FilterType::CompositeFilter(all)) })
}

fn order(field: &str, direction: backfill_core::doc::Direction) -> sq::Order {
    let direction = match direction {
        backfill_core::doc::Direction::Ascending => sq::Direction::Ascending,
        backfill_core::doc::Direction::Descending => sq::Direction::Descending,
    };
    sq::Order { field: Some(reference(field)), direction: direction.into() }
}

fn reference(field: &str) -> sq::FieldReference {
    sq::FieldReference { field_path: field.into() }
}

fn write_value(value: &Value) -> pb::Value {
    let value_type = match value {
        Value::Null => ValueType::NullValue(0),
        Value::Bool(b) => ValueType::BooleanValue(*b),
        Value::Int(n) => ValueType::IntegerValue(*n),
        Value::Double(Double(d)) => ValueType::DoubleValue(*d),
        Value::Timestamp(t) => ValueType::TimestampValue(timestamp(*t)),
        Value::String(s) => ValueType::StringValue(s.as_str().into()),
        Value::Bytes(b) => ValueType::BytesValue(b.to_vec()),
        Value::Reference(r) => ValueType::ReferenceValue(r.as_str().into()),
        Value::GeoPoint(Double(latitude), Double(longitude)) => {
            ValueType::GeoPointValue(LatLng { latitude: *latitude, longitude: *longitude })
        }
        Value::Array(items) => ValueType::ArrayValue(pb::ArrayValue {
            values: items.iter().map(write_value).collect(),
        }),
        Value::Map(fields) => ValueType::MapValue(pb::MapValue {
            fields: fields.iter().map(|(k, v)| (k.as_str().into(), write_value(v))).collect(),
        }),
    };
    pb::Value { value_type: Some(value_type) }
}

fn read_fields(fields: impl IntoIterator<Item = (String, pb::Value)>) -> Option<Fields> {
    fields.into_iter().map(|(k, v)| Some((SmolStr::from(k), read_value(v)?))).collect()
}

/// The value; `None` for what only queries contain and no document can.
fn read_value(value: pb::Value) -> Option<Value> {
    Some(match value.value_type? {
        ValueType::NullValue(_) => Value::Null,
        ValueType::BooleanValue(b) => Value::Bool(b),
        ValueType::IntegerValue(n) => Value::Int(n),
        ValueType::DoubleValue(d) => Value::Double(Double(d)),
        ValueType::TimestampValue(t) => Value::Timestamp(time(t)?),
        ValueType::StringValue(s) => Value::String(s.into()),
        ValueType::BytesValue(b) => Value::Bytes(b.into()),
        ValueType::ReferenceValue(r) => Value::Reference(r.into()),
        ValueType::GeoPointValue(p) => Value::GeoPoint(Double(p.latitude), Double(p.longitude)),
        ValueType::ArrayValue(a) => {
            Value::Array(a.values.into_iter().map(read_value).collect::<Option<_>>()?)
        }
        ValueType::MapValue(m) => Value::Map(read_fields(m.fields)?),
        _ => return None,
    })
}
