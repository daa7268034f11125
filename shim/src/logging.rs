//! The log: containerd's FIFO `log` in the bundle, one logrus text line an event.
//!
//! containerd copies the lines to its own log. The FIFO is opened without waiting and written without waiting: a
//! containerd that does not read must never stall a pod. Lines that find it full are dropped.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// A tracing layer that writes logrus text lines.
#[derive(Debug)]
pub struct Logrus {
    fifo: Mutex<File>,
    runtime: &'static str,
    id: String,
}

impl Logrus {
    /// Open containerd's FIFO; nothing when nobody reads it or it is absent.
    #[must_use]
    pub fn open(path: &Path, id: &str) -> Option<Self> {
        let fifo = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
        Some(Self { fifo: Mutex::new(fifo), runtime: "io.containerd.kata-cc.v2", id: id.to_owned() })
    }
}

impl<S: Subscriber> Layer<S> for Logrus {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        let now = OffsetDateTime::now_utc();
        let now = now
            .replace_nanosecond(now.microsecond() * 1000)
            .unwrap_or(now)
            .format(&Rfc3339)
            .unwrap_or_default();
        let line = format!(
            "time=\"{now}\" level={level} msg={} id={} runtime={}{}\n",
            quoted(&fields.message),
            self.id,
            self.runtime,
            fields.others
        );
        if let Ok(mut fifo) = self.fifo.lock() {
            let _ = fifo.write_all(line.as_bytes());
        }
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            let _ = write!(self.others, " {}={}", field.name(), quoted(value));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// Quoted when it holds more than word characters, so that no value can fake a field or a line.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { format!("{text:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::prelude::*;

    #[test]
    fn lines_are_logrus_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "").unwrap();
        let layer = Logrus::open(&path, "c1").unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(reason = "a \"b\"\nlevel=info", count = 3, "it broke");
        });
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert!(text.starts_with("time=\"20"), "{text}");
        let rest = r#" level=warning msg="it broke" id=c1 runtime=io.containerd.kata-cc.v2 reason="a \"b\"\nlevel=info" count=3"#;
        assert!(text.trim_end().ends_with(rest), "{text}");
    }

    #[test]
    fn without_a_reader_there_is_no_log_and_no_hang() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Logrus::open(&path, "c1").is_none());
    }
}
