//! The properties that are checked, in words.

use serde::Serialize;

/// Something that must always be so, or must come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Property {
    /// What violations call it
    pub name: &'static str,
    /// What it says
    pub says: &'static str,
}

/// Every property, in order of name: first what is always so, then what comes about once faults
/// have stopped, last what a world that cannot be run violates.
pub const PROPERTIES: [Property; 22] = [
    property("S1", "the store never shows two live leases for one thing, and epochs only grow"),
    property("S2", "no two instances believe at once that they own the same account or lock"),
    property("S3", "accepted writes about an account carry epochs that do not fall"),
    property("S4", "an account never has two connections, runs or phone requests at once"),
    property("S5", "nothing starts that could outlast its lease, or after stepping down"),
    property("S6", "a passive instance does nothing but try for the lock and stay alive"),
    property("S7", "runs stay within the caps"),
    property("S8", "cooldown and backoff hold between two starts, across crashes and owners"),
    property("S9", "after an unknown outcome an instance reads again before it acts"),
    property("S10", "every request has one answer, and no wake-up is missed"),
    property("S11", "a status of `running` means a live lease, or a crash that is repaired"),
    property("S12", "acknowledged messages are stored, once, and summaries are right"),
    property("S13", "one outbox document is sent under one WhatsApp id"),
    property("S14", "an account is owned only where its credentials lie"),
    property("L1", "every account gets exactly one connected owner"),
    property("L2", "every run ends"),
    property("L3", "requests stay below a bound"),
    property("L4", "no account waits for its turn for ever"),
    property("L5", "a graceful stop takes seconds, and another instance takes over at once"),
    property("L6", "every hole that can be filled is filled"),
    property("panic", "no input makes a process panic"),
    property("settings", "the settings of a world fit together"),
];

/// What a property says; empty for an unknown one.
pub fn says(name: &str) -> &'static str {
    PROPERTIES.iter().find(|property| property.name == name).map_or("", |property| property.says)
}

const fn property(name: &'static str, says: &'static str) -> Property {
    Property { name, says }
}
