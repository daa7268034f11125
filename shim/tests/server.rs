//! The server against a fake containerd (ttrpc client and Events server) and a fake guest.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use kata_cc_containerd_protocol::events_ttrpc::ForwardRequest;
use kata_cc_containerd_protocol::events_ttrpc_ttrpc::{Events, create_events};
use kata_cc_containerd_protocol::task_events::TaskExit;
use kata_cc_containerd_protocol::task_types::Status;
use kata_cc_containerd_protocol::task_v2_ttrpc::TaskClient;
use kata_cc_containerd_protocol::{task_v3 as api, task_v3_ttrpc};
use kata_cc_shim::events::Publisher;
use kata_cc_shim::guest::GuestError;
use kata_cc_shim::service;
use kata_cc_shim::tasks::Tasks;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use serde_json::json;
use support::{FakeLauncher, FakePod};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use ttrpc::r#async::{Client, Server, TtrpcContext};
use ttrpc::{Code, context};

type Seen = Arc<Mutex<Vec<(String, Any)>>>;

struct Containerd(Seen);

#[async_trait]
impl Events for Containerd {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        assert_eq!(request.envelope.namespace, "ns");
        let envelope = request.envelope.unwrap();
        self.0.lock().unwrap().push((envelope.topic, envelope.event.unwrap()));
        Ok(Empty::new())
    }
}

struct Rig {
    folder: tempfile::TempDir,
    client: TaskClient,
    connection: Client,
    pod: Arc<FakePod>,
    tasks: Arc<Tasks>,
    seen: Seen,
    _servers: (Server, Server),
}

impl Rig {
    async fn new() -> Self {
        let pod = FakePod::new();
        Self::with(FakeLauncher(Ok(Arc::clone(&pod))), pod).await
    }

    async fn with(launcher: FakeLauncher, pod: Arc<FakePod>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let seen = Seen::default();
        let events = format!("unix://{}", folder.path().join("events").display());
        let mut containerd = Server::new()
            .bind(&events)
            .unwrap()
            .register_service(create_events(Arc::new(Containerd(seen.clone()))));
        containerd.start().await.unwrap();
        let publisher = Publisher::start("ns".into(), Some(events));
        let tasks = Tasks::new("ns".into(), "c1".into(), Arc::new(launcher), publisher);
        let address = format!("unix://{}", folder.path().join("shim").display());
        let mut server = service::register(Server::new(), &tasks).bind(&address).unwrap();
        server.start().await.unwrap();
        let connection = Client::connect(&address).await.unwrap();
        let client = TaskClient::new(connection.clone());
        Self { folder, client, connection, pod, tasks, seen, _servers: (containerd, server) }
    }

    fn bundle(&self, id: &str, annotations: serde_json::Value) -> PathBuf {
        let bundle = self.folder.path().join(id);
        std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let spec = json!({"ociVersion": "1.0.2", "annotations": annotations, "root": {"path": "rootfs"},
            "process": {"args": ["cat"], "cwd": "/", "user": {"uid": 0, "gid": 0}}});
        std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        bundle
    }

    fn fifo(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path.display().to_string()
    }

    async fn create(
        &self,
        id: &str,
        annotations: serde_json::Value,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        self.create_with(api::CreateTaskRequest { id: id.into(), ..Default::default() }, annotations).await
    }

    async fn create_with(
        &self,
        request: api::CreateTaskRequest,
        annotations: serde_json::Value,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        let bundle = self.bundle(&request.id, annotations).display().to_string();
        self.client.create(context::Context::default(), &api::CreateTaskRequest { bundle, ..request }).await
    }

    async fn start(&self, id: &str, exec: &str) -> ttrpc::Result<api::StartResponse> {
        let request = api::StartRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        self.client.start(context::Context::default(), &request).await
    }

    async fn wait(&self, id: &str, exec: &str) -> ttrpc::Result<api::WaitResponse> {
        let request = api::WaitRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        self.client.wait(context::Context::default(), &request).await
    }

    async fn delete(&self, id: &str, exec: &str) -> ttrpc::Result<api::DeleteResponse> {
        let request = api::DeleteRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        self.client.delete(context::Context::default(), &request).await
    }

    async fn kill(&self, id: &str, exec: &str, signal: u32) -> ttrpc::Result<Empty> {
        let request = api::KillRequest { id: id.into(), exec_id: exec.into(), signal, ..Default::default() };
        self.client.kill(context::Context::default(), &request).await
    }

    async fn exec(&self, id: &str, exec: &str, program: &str) -> ttrpc::Result<Empty> {
        let process = json!({"args": [program], "cwd": "/", "user": {"uid": 0, "gid": 0}});
        let spec = Any { value: process.to_string().into_bytes(), ..Any::default() };
        let request = api::ExecProcessRequest {
            id: id.into(),
            exec_id: exec.into(),
            spec: Some(spec).into(),
            ..Default::default()
        };
        self.client.exec(context::Context::default(), &request).await
    }

    async fn status(&self, id: &str) -> Status {
        let request = api::StateRequest { id: id.into(), ..Default::default() };
        self.client.state(context::Context::default(), &request).await.unwrap().status.unwrap()
    }

    async fn topics(&self) -> Vec<String> {
        self.tasks.flush().await;
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(|(topic, _)| topic.trim_start_matches("/tasks/").to_owned())
            .collect()
    }
}

fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> Code {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn create_start_wait_delete() {
    let rig = Rig::new().await;
    assert_eq!(rig.create("c1", json!({})).await.unwrap().pid, 4242);
    assert_eq!(rig.status("c1").await, Status::CREATED);
    assert_eq!(code(rig.create("c1", json!({})).await), Code::ALREADY_EXISTS);
    rig.start("c1", "").await.unwrap();
    assert_eq!(code(rig.start("c1", "").await), Code::UNKNOWN);
    assert_eq!(code(rig.delete("c1", "").await), Code::FAILED_PRECONDITION);
    let (one, two, ()) = tokio::join!(rig.wait("c1", ""), rig.wait("c1", ""), async {
        assert_eq!(rig.status("c1").await, Status::RUNNING);
        rig.pod.exit("c1", "", 7);
    });
    let one = one.unwrap();
    assert_eq!((one.exit_status, two.unwrap().exit_status), (7, 7));
    assert!(one.exited_at.seconds > 0);
    assert_eq!(rig.wait("c1", "").await.unwrap().exit_status, 7, "also afterwards, until delete");
    assert_eq!(code(rig.kill("c1", "", 9).await), Code::NOT_FOUND);
    assert_eq!(rig.delete("c1", "").await.unwrap().exit_status, 7);
    assert_eq!(code(rig.delete("c1", "").await), Code::NOT_FOUND);
    assert_eq!(rig.topics().await, ["create", "start", "exit", "delete"]);
    assert_eq!(*rig.pod.stops.lock().unwrap(), 1, "the sandbox ends with its only container");
    let shutdown = api::ShutdownRequest { id: "c1".into(), ..Default::default() };
    rig.client.shutdown(context::Context::default(), &shutdown).await.unwrap();
    rig.tasks.finished().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn task_v3_is_the_same_service() {
    let rig = Rig::new().await;
    rig.create("c1", json!({})).await.unwrap();
    let v3 = task_v3_ttrpc::TaskClient::new(rig.connection.clone());
    let request = api::ConnectRequest { id: "c1".into(), ..Default::default() };
    let answer = v3.connect(context::Context::default(), &request).await.unwrap();
    assert_eq!((answer.shim_pid, answer.task_pid), (std::process::id(), 4242));
    let checkpoint = api::CheckpointTaskRequest { id: "c1".into(), ..Default::default() };
    assert_eq!(code(v3.checkpoint(context::Context::default(), &checkpoint).await), Code::UNIMPLEMENTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn execs_run_and_end_before_init() {
    let rig = Rig::new().await;
    rig.create("c1", json!({})).await.unwrap();
    assert_eq!(code(rig.exec("c1", "e1", "sh").await), Code::FAILED_PRECONDITION);
    rig.start("c1", "").await.unwrap();
    rig.exec("c1", "e1", "sh").await.unwrap();
    assert_eq!(code(rig.exec("c1", "e1", "sh").await), Code::ALREADY_EXISTS);
    assert_eq!(code(rig.kill("c1", "e1", 15).await), Code::FAILED_PRECONDITION);
    rig.start("c1", "e1").await.unwrap();
    rig.exec("c1", "bad", "/nowhere").await.unwrap();
    assert_eq!(code(rig.start("c1", "bad").await), Code::UNKNOWN);
    assert_eq!(rig.wait("c1", "bad").await.unwrap().exit_status, 255);
    rig.delete("c1", "bad").await.unwrap();
    rig.kill("c1", "", 9).await.unwrap();
    assert_eq!(rig.wait("c1", "").await.unwrap().exit_status, 137);
    assert_eq!(rig.delete("c1", "e1").await.unwrap().exit_status, 137);
    rig.delete("c1", "").await.unwrap();
    let topics = rig.topics().await;
    let expected = ["create", "start", "exec-added", "exec-started", "exec-added", "exit", "exit", "delete"];
    assert_eq!(topics, expected);
    let seen = rig.seen.lock().unwrap();
    let ids: Vec<String> = seen
        .iter()
        .filter(|(topic, _)| topic == "/tasks/exit")
        .map(|(_, any)| TaskExit::parse_from_bytes(&any.value).unwrap().id)
        .collect();
    assert_eq!(ids, ["e1", "c1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_goes_in_and_comes_back_before_the_exit() {
    let rig = Rig::new().await;
    let (stdin, stdout) = (rig.fifo("in"), rig.fifo("out"));
    let mut reader = pipe::OpenOptions::new().open_receiver(&stdout).unwrap();
    let request =
        api::CreateTaskRequest { id: "c1".into(), stdin: stdin.clone(), stdout, ..Default::default() };
    rig.create_with(request, json!({})).await.unwrap();
    let mut writer = pipe::OpenOptions::new().open_sender(&stdin).unwrap();
    rig.start("c1", "").await.unwrap();
    let sent: Vec<u8> = (0..200_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let copy = sent.clone();
    let writing = tokio::spawn(async move { writer.write_all(&copy).await.unwrap() });
    let mut got = vec![0; sent.len()];
    reader.read_exact(&mut got).await.unwrap();
    assert_eq!(got, sent);
    writing.await.unwrap();
    rig.pod.exit("c1", "", 0);
    assert_eq!(rig.wait("c1", "").await.unwrap().exit_status, 0);
    rig.delete("c1", "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn close_io_delivers_what_was_written_before() {
    let rig = Rig::new().await;
    let (stdin, stdout) = (rig.fifo("in"), rig.fifo("out"));
    let mut reader = pipe::OpenOptions::new().open_receiver(&stdout).unwrap();
    let request =
        api::CreateTaskRequest { id: "c1".into(), stdin: stdin.clone(), stdout, ..Default::default() };
    rig.create_with(request, json!({})).await.unwrap();
    // stays open: only CloseIO says that there is no more
    let mut writer = pipe::OpenOptions::new().open_sender(&stdin).unwrap();
    rig.start("c1", "").await.unwrap();
    writer.write_all(b"last words").await.unwrap();
    let close = api::CloseIORequest { id: "c1".into(), stdin: true, ..Default::default() };
    rig.client.close_io(context::Context::default(), &close).await.unwrap();
    let mut got = [0; 10];
    reader.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"last words");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_machine_ends_every_call_and_every_process_with_its_reason() {
    let rig = Rig::new().await;
    rig.create("c1", json!({})).await.unwrap();
    rig.start("c1", "").await.unwrap();
    rig.create("c2", json!({"io.kubernetes.cri.sandbox-id": "c1"})).await.unwrap();
    let (one, two, ()) =
        tokio::join!(rig.wait("c1", ""), rig.wait("c2", ""), async { rig.pod.die("killed") });
    assert_eq!((one.unwrap().exit_status, two.unwrap().exit_status), (255, 255));
    assert_eq!(
        code(rig.create("c3", json!({"io.kubernetes.cri.sandbox-id": "c1"})).await),
        Code::UNAVAILABLE
    );
    rig.delete("c2", "").await.unwrap();
    rig.delete("c1", "").await.unwrap();
    let exits = rig.topics().await.iter().filter(|topic| *topic == "exit").count();
    assert_eq!(exits, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_memory_is_told_and_colours_the_end() {
    let rig = Rig::new().await;
    rig.create("c1", json!({})).await.unwrap();
    rig.start("c1", "").await.unwrap();
    rig.pod.out_of_memory_in("c1");
    while !rig.topics().await.contains(&"oom".to_owned()) {
        tokio::task::yield_now().await;
    }
    rig.pod.die("killed");
    assert_eq!(rig.wait("c1", "").await.unwrap().exit_status, 137);
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_without_end_of_memory_running_out_are_slowed_down() {
    let rig = Rig::new().await;
    rig.create("c1", json!({})).await.unwrap();
    rig.start("c1", "").await.unwrap();
    let pod = Arc::clone(&rig.pod);
    let flood = tokio::spawn(async move {
        loop {
            pod.out_of_memory_again("c1").await;
        }
    });
    tokio::time::sleep(Duration::from_millis(600)).await;
    let told = rig.topics().await.iter().filter(|topic| *topic == "oom").count();
    assert!((1..=4).contains(&told), "{told} events");
    // The end is still heard.
    flood.abort();
    rig.pod.die("killed");
    assert_eq!(rig.wait("c1", "").await.unwrap().exit_status, 137);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_creations_leave_nothing_and_say_why() {
    let rig = Rig::new().await;
    let Err(ttrpc::Error::RpcStatus(status)) = rig.create("c1", json!({"dev.kata-cc.image": "denied"})).await
    else {
        panic!("it was created")
    };
    assert_eq!(status.code(), Code::PERMISSION_DENIED);
    assert!(status.message.contains("AllowImages"), "{}", status.message);
    assert_eq!(*rig.pod.stops.lock().unwrap(), 1);
    assert!(rig.topics().await.is_empty());

    let failing = FakeLauncher(Err(GuestError::FailedPrecondition("no SNP here: use kata-cc-vm".into())));
    let rig = Rig::with(failing, FakePod::new()).await;
    assert_eq!(code(rig.create("c1", json!({})).await), Code::FAILED_PRECONDITION);
    assert_eq!(code(rig.create("../c1", json!({})).await), Code::INVALID_ARGUMENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_hangs_is_given_up_by_shutdown() {
    let rig = Rig::new().await;
    let annotations = json!({"dev.kata-cc.image": "hangs"});
    let shutdown = async {
        while !Path::new(&rig.folder.path().join("c1/config.json")).exists() {
            tokio::task::yield_now().await;
        }
        // the id is taken as soon as a second creation is refused
        loop {
            let request =
                api::CreateTaskRequest { id: "c1".into(), bundle: "/x".into(), ..Default::default() };
            let again = rig.client.create(context::Context::default(), &request).await;
            if code(again) == Code::ALREADY_EXISTS {
                break;
            }
        }
        let request = api::ShutdownRequest { id: "c1".into(), ..Default::default() };
        rig.client.shutdown(context::Context::default(), &request).await.unwrap();
    };
    let (created, ()) = tokio::join!(rig.create("c1", annotations), shutdown);
    assert_eq!(code(created), Code::CANCELLED);
    rig.tasks.finished().await;
    assert!(*rig.pod.stops.lock().unwrap() >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_waits_no_longer_is_told_how_far_the_pull_is() {
    let rig = Rig::new().await;
    rig.create("c1", json!({})).await.unwrap();
    let bundle = rig.bundle("c2", json!({"dev.kata-cc.image": "hangs"}));
    let request = api::CreateTaskRequest {
        id: "c2".into(),
        bundle: bundle.display().to_string(),
        ..Default::default()
    };
    let limit = Duration::from_secs(8);
    let Err(ttrpc::Error::RpcStatus(status)) =
        rig.client.create(context::with_duration(limit), &request).await
    else {
        panic!("it was created")
    };
    assert_eq!(status.code(), Code::DEADLINE_EXCEEDED);
    for part in ["not there after 7 s", "hangs is being pulled, 41 of 100 bytes", "runtimeRequestTimeout"] {
        assert!(status.message.contains(part), "{}", status.message);
    }
    // Told meanwhile, once: nothing changed.
    let topics = rig.topics().await;
    assert_eq!(topics.iter().filter(|topic| *topic == "/kata-cc/image-pull").count(), 1, "{topics:?}");
    // The id is free again, and the other container is what it was.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while rig.create("c2", json!({})).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "the id stays taken");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rig.start("c1", "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_what_was_never_started_ends_it() {
    let rig = Rig::new().await;
    rig.create("c1", json!({})).await.unwrap();
    rig.kill("c1", "", 15).await.unwrap();
    assert_eq!(rig.wait("c1", "").await.unwrap().exit_status, 143);
    assert_eq!(code(rig.start("c1", "").await), Code::NOT_FOUND);
    rig.delete("c1", "").await.unwrap();
    assert_eq!(rig.topics().await, ["create", "exit", "delete"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_resume_stats_update_pids() {
    let rig = Rig::new().await;
    rig.create("c1", json!({})).await.unwrap();
    rig.start("c1", "").await.unwrap();
    let none = context::Context::default;
    let pause = api::PauseRequest { id: "c1".into(), ..Default::default() };
    let resume = api::ResumeRequest { id: "c1".into(), ..Default::default() };
    assert_eq!(code(rig.client.resume(none(), &resume).await), Code::FAILED_PRECONDITION);
    rig.client.pause(none(), &pause).await.unwrap();
    assert_eq!(rig.status("c1").await, Status::PAUSED);
    rig.client.resume(none(), &resume).await.unwrap();
    let stats = api::StatsRequest { id: "c1".into(), ..Default::default() };
    let stats = rig.client.stats(none(), &stats).await.unwrap();
    assert_eq!(stats.stats.type_url, "io.containerd.cgroups.v2.Metrics");
    let resources = Any { value: br#"{"memory":{"limit":1048576}}"#.to_vec(), ..Any::default() };
    let update =
        api::UpdateTaskRequest { id: "c1".into(), resources: Some(resources).into(), ..Default::default() };
    rig.client.update(none(), &update).await.unwrap();
    let update = api::UpdateTaskRequest { id: "c1".into(), ..Default::default() };
    assert_eq!(code(rig.client.update(none(), &update).await), Code::INVALID_ARGUMENT);
    let pids = api::PidsRequest { id: "c1".into(), ..Default::default() };
    assert_eq!(rig.client.pids(none(), &pids).await.unwrap().processes[0].pid, 4242);
    assert_eq!(rig.topics().await, ["create", "start", "paused", "resumed"]);
}
