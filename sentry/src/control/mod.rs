//! How the monitor tells the sentry what to do, and the sentry what came of it.
//!
//! A socket leads from one process to the other ([`crate::defence::Defence::begin_served`]). Messages are small and typed ([`message`]), and
//! have a length ([`frame`]); descriptors of the host travel with requests, never back. The sentry reads them on a thread of its own and
//! carries them out one after the other ([`serve`]): nothing of a request waits for guest code, except that a container which is removed
//! is waited for to end, for a bounded time. That a process ended is told when it happens.
//!
//! The monitor takes nothing that comes from here for more than bytes of whoever took the sentry over.

pub mod frame;
mod link;
pub mod message;
mod serve;

pub use link::{LinkError, Reader, Writer, open};
pub use serve::serve;
