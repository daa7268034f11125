//! One place that documents come from.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::document::Document;
use crate::item::Item;

/// Why a source did not give what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The service says that there is no such thing.
    #[error("{service} does not have the {item}")]
    NotFound {
        /// Which.
        service: String,
        /// What.
        item: String,
    },
    /// The service asks to come back later, beyond the time there is.
    #[error("{service} limits the rate of requests, it may be asked again in {} s", .retry_after.as_secs())]
    RateLimited {
        /// Which.
        service: String,
        /// How long it is to be left alone.
        retry_after: Duration,
    },
    /// The service cannot be reached or fails.
    #[error("{service} is not usable: {why}")]
    Unavailable {
        /// Which.
        service: String,
        /// Why.
        why: String,
    },
    /// What came is not what was asked for.
    #[error("{service} gave something else for the {item}: it {why}")]
    Unusable {
        /// Which.
        service: String,
        /// What was asked for.
        item: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file cannot be read.
    #[error("{path} cannot be read: {why}")]
    File {
        /// Which.
        path: String,
        /// Why.
        why: String,
    },
    /// No source has it, and no service is asked.
    #[error("no source has the {item}: {hint}")]
    NoSource {
        /// What.
        item: String,
        /// What to do.
        hint: &'static str,
    },
}

impl SourceError {
    /// How long the same question is not asked again.
    #[must_use]
    pub fn remember_for(&self) -> Duration {
        match self {
            Self::NotFound { .. } => Duration::from_secs(600),
            Self::RateLimited { retry_after, .. } => *retry_after,
            Self::Unusable { .. } => Duration::from_secs(60),
            Self::Unavailable { .. } => Duration::from_secs(10),
            // Local: looked up anew each time, so that a file put there is seen at once.
            Self::File { .. } | Self::NoSource { .. } => Duration::ZERO,
        }
    }
}

/// A place that documents come from. `Ok(None)`: this place has no such thing, ask the next.
#[async_trait]
pub trait Source: Send + Sync + std::fmt::Debug {
    /// Name for messages.
    fn name(&self) -> &str;

    /// Whether asking it leaves the machine.
    fn is_remote(&self) -> bool;

    /// Gets one document, at the latest at `deadline`.
    async fn get(&self, item: &Item, deadline: Instant) -> Result<Option<Document>, SourceError>;
}
