//! The agent's log: one JSON object a line, to the console and over vsock to host port 1025.
//!
//! Form as in `docs/design.md`: `{"t", "source": "agent", "level", "msg", …fields}`. Stages of a confidential start
//! carry a `stage` field. Lines wait in a bounded queue while the host does not listen; when it is full the newest
//! are dropped and counted, and the count is logged when there is room again. Nothing in here blocks a caller.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Host port that collects lines.
pub(crate) const PORT: u32 = 1025;
/// Lines kept while nobody listens.
const QUEUE: usize = 4096;
/// Longest line.
const MAX_LINE: usize = 16 << 10;

#[derive(Debug, Default)]
struct Queue {
    lines: Mutex<(VecDeque<String>, u64)>,
    filled: Notify,
    emptied: Condvar,
}

impl Queue {
    fn push(&self, line: String) {
        let mut state = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0.len() >= QUEUE {
            state.1 += 1;
            return;
        }
        if state.1 > 0 {
            let lost = std::mem::take(&mut state.1);
            state.0.push_back(format!(
                "{{\"t\":\"{}\",\"source\":\"agent\",\"level\":\"warn\",\"msg\":\"log lines dropped\",\"count\":{lost}}}\n",
                timestamp()
            ));
        }
        state.0.push_back(line);
        self.filled.notify_one();
    }

    fn front(&self) -> Option<String> {
        let state = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.front().cloned()
    }

    fn sent(&self) {
        let mut state = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.pop_front();
        if state.0.is_empty() {
            self.emptied.notify_all();
        }
    }
}

/// Access to the queue for the sender and for the last words.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Queue>);

impl Log {
    /// Makes this the process's log.
    pub(crate) fn install(level: tracing::Level) -> Self {
        let log = Self::default();
        let layer = Json { log: log.clone(), level };
        // Fails only when a log is installed already, which then keeps its place.
        let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer));
        log
    }

    /// Sends lines to the host for as long as the runtime lives, connecting anew when the connection breaks.
    pub(crate) fn send_to_host(&self) {
        let queue = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut pause = Duration::from_millis(20);
            loop {
                let address = VsockAddr::new(VMADDR_CID_HOST, PORT);
                if let Ok(stream) = VsockStream::connect(address).await {
                    pause = Duration::from_millis(20);
                    // An error ends the connection; the line at the front is sent again on the next.
                    let _ = forward(&queue, stream).await;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
        });
    }

    /// Waits a moment for the queue to drain, before the machine goes down.
    pub(crate) fn flush(&self, patience: Duration) {
        let state = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        // Timing out loses lines that the console has already.
        let _ = self.0.emptied.wait_timeout_while(state, patience, |s| !s.0.is_empty());
    }
}

async fn forward(queue: &Queue, mut stream: VsockStream) -> std::io::Result<()> {
    loop {
        while let Some(line) = queue.front() {
            AsyncWriteExt::write_all(&mut stream, line.as_bytes()).await?;
            queue.sent();
        }
        queue.filled.notified().await;
    }
}

fn timestamp() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(now.as_secs(), now.subsec_micros())
}

/// Seconds since 1970 as RFC 3339 (civil-from-days, H. Hinnant's algorithm).
fn rfc3339(seconds: u64, micros: u32) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (h, m, s) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{micros:06}Z")
}

struct Json {
    log: Log,
    level: tracing::Level,
}

impl<S: tracing::Subscriber> Layer<S> for Json {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        // Libraries' chatter is of use only when asked for.
        let ours = metadata.target().starts_with("kata_cc");
        let limit = if ours { self.level } else { self.level.min(tracing::Level::WARN) };
        *metadata.level() <= limit
    }

    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields(Map::new());
        let level = event.metadata().level().as_str().to_lowercase();
        fields.0.insert("t".to_owned(), timestamp().into());
        fields.0.insert("source".to_owned(), "agent".into());
        fields.0.insert("level".to_owned(), level.into());
        event.record(&mut fields);
        let mut line = Value::Object(fields.0).to_string();
        if line.len() > MAX_LINE {
            line = format!(
                "{{\"t\":\"{}\",\"source\":\"agent\",\"level\":\"warn\",\"msg\":\"log line of {} bytes dropped\"}}",
                timestamp(),
                line.len()
            );
        }
        line.push('\n');
        // The console is the last resort: if it is gone there is nobody left to tell.
        let _ = std::io::stderr().write_all(line.as_bytes());
        self.log.0.push(line);
    }
}

struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        let name = match field.name() {
            "message" => "msg",
            // What a caller passes cannot pose as the line's own fields.
            "t" | "source" | "level" | "msg" => return,
            other => other,
        };
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc3339() {
        assert_eq!(rfc3339(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(rfc3339(951_827_696, 5), "2000-02-29T12:34:56.000005Z");
        assert_eq!(rfc3339(4_102_444_799, 0), "2099-12-31T23:59:59.000000Z");
    }

    #[test]
    fn the_queue_is_bounded_and_says_what_it_lost() {
        let queue = Queue::default();
        for n in 0..QUEUE + 10 {
            queue.push(n.to_string());
        }
        queue.sent();
        queue.sent();
        queue.push("after".to_owned());
        let state = queue.lines.lock().unwrap();
        assert_eq!(state.0.back().map(String::as_str), Some("after"));
        assert!(state.0.iter().any(|l| l.contains("\"count\":10")));
    }
}
