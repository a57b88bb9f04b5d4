//! The gateway against the double.
