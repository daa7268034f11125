//! The audit log over HTTP: JSON Lines, whole or page by page. The key broker gives its log in the same form.

use std::io::Seek as _;

use axum::body::Body;
use axum::http::{Uri, header};
use axum::response::{IntoResponse as _, Response};
use thiserror::Error;

use crate::query::{self, QueryError, number, only};
use crate::store::StoreError;
use crate::store::audit::AuditLog;

/// Largest number of a record: JSON readers take no larger whole numbers for sure.
const MAX_NUMBER: u64 = (1 << 53) - 1;
/// Most records of a page of the audit log.
const MAX_PAGE: u64 = 10_000;
/// What administrators and audit log call it.
pub const ACTION: &str = "export audit log";

/// Why a log cannot be given.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file that it is sent from failed.
    #[error("export of the audit log: {0}")]
    File(#[from] std::io::Error),
}

/// Which records are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    after: u64,
    limit: Option<u64>,
}

impl Page {
    /// Reads `?after=` (number of a record) and `?limit=`.
    ///
    /// # Errors
    /// What of them is not understood.
    pub fn of(uri: &Uri) -> Result<Self, QueryError> {
        let query = query::read(uri)?;
        only(&query, &["after", "limit"])?;
        let after = number(&query, "after", 0..=MAX_NUMBER)?.unwrap_or(0);
        let limit = number(&query, "limit", 1..=MAX_PAGE)?;
        Ok(Self { after, limit })
    }

    /// The log as it is, one JSON object a line. It is made in a file without a name and sent from there: it may be larger than memory.
    ///
    /// # Errors
    /// When store or file fail.
    pub async fn answer(&self, log: &AuditLog) -> Result<Response, ExportError> {
        let mut file = tempfile::tempfile()?;
        log.export_page(&mut file, self.after, self.limit.unwrap_or(u64::MAX)).await?;
        let length = file.stream_position()?;
        file.rewind()?;
        let body = Body::from_stream(tokio_util::io::ReaderStream::new(tokio::fs::File::from_std(file)));
        let headers = [
            (header::CONTENT_TYPE, "application/jsonl".to_owned()),
            (header::CONTENT_LENGTH, length.to_string()),
        ];
        Ok((headers, body).into_response())
    }
}

impl std::fmt::Display for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "after {}", self.after)?;
        self.limit.map_or(Ok(()), |limit| write!(f, ", {limit} records"))
    }
}
