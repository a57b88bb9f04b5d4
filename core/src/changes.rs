//! What a merge has to change: the fields whose wanted value is not the stored one.

use crate::doc::{FieldOp, FieldPath, Fields, Value};

/// Collects changes against a document, or against none.
pub(crate) struct Changes<'a> {
    before: Option<&'a Fields>,
    ops: Vec<(FieldPath, FieldOp)>,
}

impl<'a> Changes<'a> {
    pub(crate) fn against(before: Option<&'a Fields>) -> Self {
        Self { before, ops: Vec::with_capacity(if before.is_some() { 8 } else { 24 }) }
    }

    /// Wants a top-level field to have this value.
    pub(crate) fn set(&mut self, field: FieldPath, value: impl Into<Value>) {
        let value = value.into();
        if self.stored(&field) != Some(&value) {
            self.ops.push((field, FieldOp::Set(value)));
        }
    }

    /// Wants a top-level field to have this text, unless it already has some.
    pub(crate) fn set_if_no_text(&mut self, field: FieldPath, value: impl Into<Value>) {
        if self.stored(&field).and_then(Value::as_str).is_none() {
            self.set(field, value);
        }
    }

    /// Wants a top-level field not to exist.
    pub(crate) fn remove(&mut self, field: FieldPath) {
        if self.stored(&field).is_some() {
            self.ops.push((field, FieldOp::Remove));
        }
    }

    /// Wants a top-level field to hold the time at which it first was written.
    pub(crate) fn stamp_once(&mut self, field: FieldPath) {
        if !matches!(self.stored(&field), Some(value) if *value != Value::Null) {
            self.ops.push((field, FieldOp::ServerTime));
        }
    }

    /// Whether nothing has to change.
    pub(crate) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// The changes and the time of the change in `updatedAt`; nothing if there are none.
    pub(crate) fn finish(mut self) -> Vec<(FieldPath, FieldOp)> {
        if !self.ops.is_empty() {
            self.ops.push((FieldPath::new("updatedAt"), FieldOp::ServerTime));
        }
        self.ops
    }

    fn stored(&self, field: &FieldPath) -> Option<&'a Value> {
        self.before?.get(field.as_str())
    }
}
