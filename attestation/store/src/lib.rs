//! The store behind key broker and attestation service.
//!
//! One [`Store`] over three databases: an SQLite file for one process ([`Store::open`]), PostgreSQL for replicas
//! ([`Store::postgres`]), memory for tests ([`Store::in_memory`]). In all of them values are sealed under a [`StoreKey`] with
//! everything that stands beside them as associated data, so neither a copy of the database nor an edit of a row in it yields
//! anything. Names, sizes, times and the audit log are in clear.
//!
//! # Values
//!
//! [`get`](Store::get), [`put`](Store::put), [`delete`](Store::delete), [`list`](Store::list), [`all`](Store::all): one value per
//! namespace and name. For what has a history: [`put_version`](Store::put_version) returns the number of the new version,
//! [`get_version`](Store::get_version) gives the latest or a numbered one, [`history`](Store::history) tells of all that are kept
//! ([`keep_versions`](Store::keep_versions)), [`erase`](Store::erase) removes every value of a name and leaves the
//! history with the deletion in it. Both kinds share one table: what `put` wrote is a version of which no older one is kept. Calls with an
//! `Option<Record>` append it to the audit log in the transaction of the change; [`apply`](Store::apply) makes several changes and
//! appends several records in one, if what was read before is still so ([`Change::expecting`]). [`take_once`](Store::take_once) is for what must succeed once whichever process asks.
//!
//! # Audit log
//!
//! [`Store::audit`] is the log: [`AuditLog::append`] returns when the record is on disk; append before the answer that it
//! tells of is sent, and do not send it when that fails. [`AuditLog::verify`], [`AuditLog::export`], [`verify_export`]. Old
//! records are removed by [`AuditLog::prune`] once they were archived.
//!
//! # Sessions
//!
//! [`Store::sessions`] is where sessions are: those of PostgreSQL are shared by all replicas, others are of the process.
//!
//! # Maintenance
//!
//! [`Store::backup`] and [`Store::restore`] (one file, the same for both databases), [`Store::rekey`],
//! [`Store::verify_values`], [`Store::ready`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod audit;
mod backup;
mod change;
mod db;
mod error;
mod key;
mod once;
mod postgres;
mod rekey;
mod secret_file;
pub mod session;
mod sqlite;
mod store;
mod versions;

pub use audit::{AuditLog, Record, verify_export};
pub use backup::Restored;
pub use change::{Applied, Change};
pub use error::StoreError;
pub use key::{KeySource, KeyUnwrapper, StoreKey};
pub use postgres::{PostgresOptions, PostgresTls};
pub use secret_file::{read_secret, write_secret};
pub use session::SessionStore;
pub use store::{Entry, Store};
pub use versions::{State, Version, VersionInfo, Write};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Now, RFC 3339, to the second.
fn now_rfc3339() -> String {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default()
}

/// Now, RFC 3339, to the millisecond.
fn now_rfc3339_milliseconds() -> String {
    let now = OffsetDateTime::now_utc();
    now.replace_millisecond(now.millisecond()).unwrap_or(now).format(&Rfc3339).unwrap_or_default()
}
