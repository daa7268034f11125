//! `exec`: another process in a container.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use kata_cc_agent_protocol::agent as api;
use protobuf::well_known_types::empty::Empty;
use serde_json::{Value, json};

use super::{Context, check_terminal, kept_spec, preserved, write_pid};
use crate::agent::Agent;
use crate::arguments::Exec;
use crate::bundle::{check_process, read_object};
use crate::console::{self, Own};
use crate::error::OciError;
use crate::store::{Folder, State, Status};
use crate::streams::{self, Streams};
use crate::{keeper, signals, wire};

/// Sets of capabilities that `--cap` adds to.
const SETS: [&str; 5] = ["bounding", "effective", "inheritable", "permitted", "ambient"];

/// The verb.
pub(super) fn exec(context: &Context, arguments: &Exec) -> Result<u8, OciError> {
    let more = preserved(arguments.preserve_fds)?;
    let (id, command) =
        arguments.words.split_first().ok_or_else(|| OciError::Usage("no container".into()))?;
    let (own_folder, state) = context.store.load(id)?;
    match state.status() {
        Status::Running | Status::Created => {}
        Status::Paused if arguments.ignore_paused => {}
        Status::Paused => return Err(OciError::Paused(id.clone())),
        status => return Err(OciError::NotRunning { id: id.clone(), status }),
    }
    check_cgroup(&arguments.cgroup)?;
    let process = process(&own_folder, arguments, command)?;
    check_process(&process, "process")?;
    let terminal = process["terminal"].as_bool().unwrap_or_default();
    check_terminal(terminal, arguments.detach, arguments.console_socket.is_some())?;
    let folder = context.store.folder_of(&state.sandbox);
    let one = Executed { folder: &folder, state: &state, exec: exec_id(), process: &process, more };
    if arguments.detach { one.detached(arguments) } else { one.attended(arguments, terminal) }
}

/// The container's own group is meant by `/`, with or without a controller before it; there are no others below it.
fn check_cgroup(groups: &[String]) -> Result<(), OciError> {
    for group in groups {
        let path = group.split_once(':').map_or(group.as_str(), |(_, path)| path);
        if !path.trim_matches('/').is_empty() {
            let reason = format!(
                "--cgroup {group}: a container of the sentry has one control group; leave the option away, or give /"
            );
            return Err(OciError::Usage(reason));
        }
    }
    Ok(())
}

/// Nobody but the sentry sees it; it must be new.
fn exec_id() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("e{}-{:x}", std::process::id(), now.as_nanos())
}

/// What is to be run, of a file, or of the container's own process and the options.
fn process(folder: &Folder, arguments: &Exec, command: &[String]) -> Result<Value, OciError> {
    if let Some(file) = &arguments.process {
        let mut process = read_object(file)?.1;
        if arguments.tty {
            process["terminal"] = json!(true);
        }
        return Ok(process);
    }
    if command.is_empty() {
        return Err(OciError::Usage("exec args cannot be empty: name a program, or give --process".into()));
    }
    let mut process = kept_spec(folder)?["process"].take();
    if let Some(object) = process.as_object_mut() {
        object.remove("consoleSize");
    }
    process["args"] = json!(command);
    process["terminal"] = json!(arguments.tty);
    if let Some(cwd) = &arguments.cwd {
        process["cwd"] = json!(cwd);
    }
    extend(&mut process["env"], &arguments.env);
    if let Some(user) = &arguments.user {
        let (uid, gid) = user_of(user)?;
        process["user"]["uid"] = json!(uid);
        if let Some(gid) = gid {
            process["user"]["gid"] = json!(gid);
        }
    }
    if !arguments.additional_gids.is_empty() {
        process["user"]["additionalGids"] = json!(arguments.additional_gids);
    }
    for set in SETS {
        let names: Vec<String> = arguments.cap.iter().map(|name| capability(name)).collect();
        let ambient = set == "ambient" || set == "inheritable";
        if !names.is_empty() && (!ambient || process["capabilities"][set].is_array()) {
            extend(&mut process["capabilities"][set], &names);
        }
    }
    if arguments.no_new_privs {
        process["noNewPrivileges"] = json!(true);
    }
    Ok(process)
}

fn extend(list: &mut Value, more: &[String]) {
    if more.is_empty() {
        return;
    }
    let mut all = list.as_array().cloned().unwrap_or_default();
    all.extend(more.iter().map(|one| json!(one)));
    *list = all.into();
}

fn capability(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
}

fn user_of(text: &str) -> Result<(u32, Option<u32>), OciError> {
    let number = |part: &str| {
        part.parse::<u32>().map_err(|_| OciError::Usage(format!("--user {text:?}: {part:?} is not a number")))
    };
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, Some(number(gid)?))),
        None => Ok((number(text)?, None)),
    }
}

struct Executed<'a> {
    /// Of the sandbox.
    folder: &'a Folder,
    state: &'a State,
    exec: String,
    process: &'a Value,
    /// Descriptors from 3 on.
    more: Vec<OwnedFd>,
}

impl Executed<'_> {
    fn hand(&self, streams: Streams<'_>) -> Result<(), OciError> {
        Ok(streams::hand_over_with(self.folder.path(), &self.state.id, &self.exec, streams, &self.more)?)
    }

    fn hand_own_streams(&self) -> Result<(), OciError> {
        let (input, output, errors) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        self.hand(Streams::Pipes([input.as_fd(), output.as_fd(), errors.as_fd()]))
    }

    fn start(&self) -> Result<Agent, OciError> {
        let mut request = api::ExecProcessRequest::new();
        request.container_id.clone_from(&self.state.id);
        request.exec_id.clone_from(&self.exec);
        request.process = Some(wire::process(self.process)).into();
        let mut agent = Agent::connect(self.folder.path())?;
        agent.call::<Empty>("ExecProcess", &request)?;
        Ok(agent)
    }

    /// It ends with this process, or the other way round.
    fn attended(&self, arguments: &Exec, terminal: bool) -> Result<u8, OciError> {
        let own = if terminal { Some(Own::of_stdin()?) } else { None };
        match &own {
            Some(own) => self.hand(Streams::Terminal(own.terminal.as_fd()))?,
            None => self.hand_own_streams()?,
        }
        signals::hand_on(self.folder.path(), &self.state.id, &self.exec, terminal)?;
        let mut agent = self.start()?;
        write_pid(arguments.pid_file.as_deref(), std::process::id())?;
        let code = agent.wait(&self.state.id, &self.exec);
        drop(own);
        // With its container it ends too.
        code.or_else(|error| if self.state.process.alive() { Err(error.into()) } else { Ok(137) })
    }

    /// A process that stands for it stays.
    fn detached(&self, arguments: &Exec) -> Result<u8, OciError> {
        let groups = self.state.groups.as_ref();
        let keeper = keeper::start(self.folder.path(), &self.state.id, &self.exec, groups)?;
        let started =
            self.hand_for(arguments.console_socket.as_deref()).and_then(|()| self.start().map(drop));
        match started {
            Ok(()) => {
                write_pid(arguments.pid_file.as_deref(), keeper.leave())?;
                Ok(0)
            }
            Err(error) => {
                keeper.call_off();
                Err(error)
            }
        }
    }

    fn hand_for(&self, socket: Option<&Path>) -> Result<(), OciError> {
        let Some(socket) = socket else { return self.hand_own_streams() };
        let slave = console::make(socket, self.process)?;
        self.hand(Streams::Terminal(slave.as_fd()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Arguments, Verb};
    use crate::store::{CONFIG, Store};
    use clap::Parser;

    fn made(line: &str) -> Result<Value, OciError> {
        let dir = tempfile::tempdir().unwrap();
        let locked = Store::new(Some(dir.path().to_owned())).claim("c").unwrap();
        let spec = json!({"process": {"args": ["sh"], "cwd": "/", "env": ["A=b"], "terminal": true, "user": {"uid": 5, "gid": 6},
            "consoleSize": {"height": 1, "width": 1}, "capabilities": {"bounding": ["CAP_KILL"]}}});
        std::fs::write(locked.folder.file(CONFIG), spec.to_string()).unwrap();
        let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
        let Verb::Exec(exec) = arguments.verb else { panic!() };
        process(&locked.folder, &exec, &exec.words[1..])
    }

    #[test]
    fn a_process_is_that_of_the_container_but_for_the_options() {
        let plain = made("runc exec c ls -l").unwrap();
        assert_eq!(
            plain,
            json!({"args": ["ls", "-l"], "cwd": "/", "env": ["A=b"], "terminal": false, "user": {"uid": 5, "gid": 6},
                "capabilities": {"bounding": ["CAP_KILL"]}})
        );
        let all = made("runc exec -t --cwd /x -e C=d -u 1:2 -g 7 --cap net_raw --no-new-privs c ls").unwrap();
        assert_eq!(all["env"], json!(["A=b", "C=d"]));
        assert_eq!(all["user"], json!({"uid": 1, "gid": 2, "additionalGids": [7]}));
        assert_eq!(all["capabilities"]["bounding"], json!(["CAP_KILL", "CAP_NET_RAW"]));
        assert_eq!(all["capabilities"]["effective"], json!(["CAP_NET_RAW"]));
        assert!(all["capabilities"].get("ambient").is_none());
        assert_eq!(
            (&all["cwd"], &all["terminal"], &all["noNewPrivileges"]),
            (&json!("/x"), &json!(true), &json!(true))
        );
    }

    #[test]
    fn the_containers_own_group_is_the_only_one() {
        let check = |groups: &[&str]| {
            check_cgroup(&groups.iter().map(|group| (*group).to_owned()).collect::<Vec<_>>())
        };
        check(&["/", "cpu,memory:/", ""]).unwrap();
        for below in ["/sub", "cpu:/sub", "sub"] {
            assert!(check(&["/", below]).unwrap_err().to_string().contains(below));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(made("runc exec c").unwrap_err().to_string().contains("exec args cannot be empty"));
        assert!(made("runc exec -u root c ls").unwrap_err().to_string().contains("\"root\" is not a number"));
        assert!(made("runc exec -p /nowhere c").unwrap_err().to_string().contains("/nowhere"));
    }
}
