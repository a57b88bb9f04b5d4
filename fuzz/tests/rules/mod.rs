//! Rules that random worlds reach rarely or not at all, each shown once with instances that are
//! driven by hand.

mod accounts;
mod closing;
mod history;
mod holes;
mod pages;
mod rig;
mod sessions;
