//! Rules that random worlds reach rarely or not at all, each shown once with instances that are
//! driven by hand.

mod accounts;
mod chunks;
mod closing;
mod ending;
mod gaps;
mod history;
mod holes;
mod lock;
mod outbox;
mod pages;
mod rig;
mod runs;
mod sessions;
mod sharing;
mod ticks;
