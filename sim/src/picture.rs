//! A run as a picture.
use crate::{report::Report, scenario::Scenario, trace::Trace, variant::Variant};
/// A picture.
pub struct Picture;
impl Picture {
    /// New.
    pub fn new(_: &Scenario, _: Option<Variant>, _: &Report, _: &Trace) -> Self {
        Self
    }
    /// Html.
    pub fn to_html(&self) -> String {
        String::new()
    }
}
