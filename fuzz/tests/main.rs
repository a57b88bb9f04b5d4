//! Every property, one module per part of the core.

mod coverage;
mod ingest;
