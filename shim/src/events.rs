//! Events to containerd: a bounded queue, sent in order by one task.
//!
//! Each is tried five times, with growing pauses, over a connection that is made anew when it breaks; containerd
//! restarts must not lose a TaskExit. Without `TTRPC_ADDRESS` (CRI-O) events go to the log. Sandboxed behind
//! [`Publisher::flush`], a server that ends waits a short while for its last events.

use std::time::{Duration, SystemTime};

use kata_cc_containerd_protocol::descriptor::Descriptor;
use kata_cc_containerd_protocol::envelope::Envelope;
use kata_cc_containerd_protocol::events_ttrpc::ForwardRequest;
use kata_cc_containerd_protocol::events_ttrpc_ttrpc::EventsClient;
use kata_cc_containerd_protocol::task_events as wire;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{Message, MessageField};
use tokio::sync::{mpsc, oneshot};

use crate::machine::Event;

/// What the descriptor in an event `/kata-cc/image-pull` describes: an image of `size` bytes that comes, by its annotations `container_id`,
/// `image`, `bytes` (that have come) and `seconds` (since it began). containerd has no event of that kind. A descriptor is the one message with
/// room for all of it that `ctr events` of 1.6, 1.7 and 2.1 prints; `google.protobuf.Struct` is known to that of 1.6 alone.
const IMAGE_PULL: &str = "application/vnd.kata-cc.image-pull.v1";

/// How many events may wait.
const QUEUE: usize = 2048;
const TRIES: u32 = 5;
const CALL: Duration = Duration::from_secs(5);

/// Where events are put. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Publisher {
    queue: mpsc::Sender<Entry>,
}

#[derive(Debug)]
enum Entry {
    Event(Box<Envelope>),
    Flush(oneshot::Sender<()>),
}

/// What an event says besides what happened.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// Container.
    pub container: String,
    /// Process id told to containerd.
    pub pid: u32,
    /// For `Created`: bundle, standard streams and root file system.
    pub create: Option<wire::TaskCreate>,
}

impl Publisher {
    /// Start the sending task. `address` is containerd's ttrpc socket.
    #[must_use]
    pub fn start(namespace: String, address: Option<String>) -> Self {
        let (queue, entries) = mpsc::channel(QUEUE);
        tokio::spawn(send_all(namespace, address, entries));
        Self { queue }
    }

    /// Put an event into the queue. One that finds it full is lost, which the log tells.
    pub fn publish(&self, event: &Event, details: &Details) {
        let (topic, any) = encode(event, details);
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            topic: topic.to_owned(),
            event: MessageField::some(any),
            ..Envelope::default()
        };
        if self.queue.try_send(Entry::Event(Box::new(envelope))).is_err() {
            tracing::error!(
                topic,
                container = details.container,
                "event lost: containerd takes none and the queue is full"
            );
        }
    }

    /// Wait until all events so far were sent, at most `limit`.
    pub async fn flush(&self, limit: Duration) {
        let (done, sent) = oneshot::channel();
        if self.queue.try_send(Entry::Flush(done)).is_ok() {
            let _ = tokio::time::timeout(limit, sent).await;
        }
    }
}

async fn send_all(namespace: String, address: Option<String>, mut entries: mpsc::Receiver<Entry>) {
    let mut client = None;
    while let Some(entry) = entries.recv().await {
        match entry {
            Entry::Flush(done) => drop(done.send(())),
            Entry::Event(mut envelope) => {
                envelope.namespace.clone_from(&namespace);
                tracing::debug!(topic = envelope.topic, "event");
                if let Some(address) = &address {
                    let topic = envelope.topic.clone();
                    if let Err(error) = send(address, &mut client, *envelope).await {
                        tracing::error!(topic, error = %error, "event lost");
                    }
                }
            }
        }
    }
}

async fn send(address: &str, client: &mut Option<EventsClient>, envelope: Envelope) -> Result<(), String> {
    let request = ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() };
    let mut last = String::new();
    for attempt in 0..TRIES {
        tokio::time::sleep(Duration::from_secs(u64::from(attempt))).await;
        let connected = match client.as_ref() {
            Some(connected) => connected,
            None => match ttrpc::r#async::Client::connect(&with_scheme(address)).await {
                Ok(connection) => client.insert(EventsClient::new(connection)),
                Err(error) => {
                    last = error.to_string();
                    continue;
                }
            },
        };
        let call = connected.forward(ttrpc::context::with_duration(CALL), &request);
        match tokio::time::timeout(CALL, call).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => last = "containerd did not answer".to_owned(),
        }
        *client = None;
    }
    Err(last)
}

fn with_scheme(address: &str) -> String {
    if address.contains("://") { address.to_owned() } else { format!("unix://{address}") }
}

/// The wire's form of a time.
#[must_use]
pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
        ..Timestamp::default()
    }
}

/// Topic and message of an event. containerd's types have bare names for type urls.
#[must_use]
pub fn encode(event: &Event, details: &Details) -> (&'static str, Any) {
    let container_id = details.container.clone();
    let pid = details.pid;
    match event {
        Event::Pulling(image, pull) => {
            let annotations = [
                ("container_id", container_id),
                ("image", image.clone()),
                ("bytes", pull.bytes.to_string()),
                ("seconds", pull.seconds.to_string()),
            ];
            let message = Descriptor {
                media_type: IMAGE_PULL.to_owned(),
                size: i64::try_from(pull.of).unwrap_or(i64::MAX),
                annotations: annotations.map(|(name, value)| (name.to_owned(), value)).into(),
                ..Default::default()
            };
            ("/kata-cc/image-pull", typed("containerd.types.Descriptor", &message))
        }
        Event::Created => {
            let create = details.create.clone().unwrap_or_default();
            ("/tasks/create", any("TaskCreate", &wire::TaskCreate { container_id, pid, ..create }))
        }
        Event::Started => {
            ("/tasks/start", any("TaskStart", &wire::TaskStart { container_id, pid, ..Default::default() }))
        }
        Event::ExecAdded(exec) => {
            let message = wire::TaskExecAdded { container_id, exec_id: exec.clone(), ..Default::default() };
            ("/tasks/exec-added", any("TaskExecAdded", &message))
        }
        Event::ExecStarted(exec) => {
            let message =
                wire::TaskExecStarted { container_id, exec_id: exec.clone(), pid, ..Default::default() };
            ("/tasks/exec-started", any("TaskExecStarted", &message))
        }
        Event::Exited(exec, exit) => {
            let message = wire::TaskExit {
                id: if exec.is_empty() { container_id.clone() } else { exec.clone() },
                container_id,
                pid,
                exit_status: exit.code,
                exited_at: MessageField::some(timestamp(exit.at)),
                ..Default::default()
            };
            ("/tasks/exit", any("TaskExit", &message))
        }
        Event::Deleted(exit) => {
            let message = wire::TaskDelete {
                container_id,
                pid,
                exit_status: exit.code,
                exited_at: MessageField::some(timestamp(exit.at)),
                ..Default::default()
            };
            ("/tasks/delete", any("TaskDelete", &message))
        }
        Event::Paused => {
            ("/tasks/paused", any("TaskPaused", &wire::TaskPaused { container_id, ..Default::default() }))
        }
        Event::Resumed => {
            ("/tasks/resumed", any("TaskResumed", &wire::TaskResumed { container_id, ..Default::default() }))
        }
        Event::Oom => ("/tasks/oom", any("TaskOOM", &wire::TaskOOM { container_id, ..Default::default() })),
    }
}

fn any(name: &str, message: &impl Message) -> Any {
    typed(&format!("containerd.events.{name}"), message)
}

fn typed(type_url: &str, message: &impl Message) -> Any {
    Any {
        type_url: type_url.to_owned(),
        // Writing to memory fails only for messages beyond 2 GiB.
        value: message.write_to_bytes().unwrap_or_default(),
        ..Any::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Exit;

    #[test]
    fn the_exit_of_an_exec_names_both_ids() {
        let exit = Exit { code: 7, at: SystemTime::UNIX_EPOCH + Duration::new(5, 6) };
        let details = Details { container: "c".into(), pid: 42, create: None };
        let (topic, any) = encode(&Event::Exited("e".into(), exit), &details);
        assert_eq!((topic, any.type_url.as_str()), ("/tasks/exit", "containerd.events.TaskExit"));
        let message = wire::TaskExit::parse_from_bytes(&any.value).unwrap();
        assert_eq!((message.container_id.as_str(), message.id.as_str()), ("c", "e"));
        assert_eq!((message.exit_status, message.pid), (7, 42));
        assert_eq!((message.exited_at.seconds, message.exited_at.nanos), (5, 6));
        let (_, any) = encode(&Event::Exited(String::new(), exit), &details);
        assert_eq!(wire::TaskExit::parse_from_bytes(&any.value).unwrap().id, "c");
    }

    #[test]
    fn addresses_with_and_without_scheme() {
        assert_eq!(with_scheme("/run/c.sock"), "unix:///run/c.sock");
        assert_eq!(with_scheme("unix:///run/c.sock"), "unix:///run/c.sock");
    }
}
