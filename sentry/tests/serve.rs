//! A sandbox that is driven by the agent API, as a shim drives it: the real binary, over its sockets.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "serve/harness.rs"]
mod harness;

use harness::{Sandbox, code_of, process, spec};

#[test]
fn a_container_is_made_runs_and_is_waited_for() {
    let sandbox = Sandbox::start(&[]);
    sandbox.create("one", &spec(&["/bin/sh", "-c", "echo out; echo err >&2; cat; exit 7"])).unwrap();
    sandbox.start_container("one").unwrap();
    sandbox.write("one", "", b"typed\n").unwrap();
    sandbox.close_input("one", "").unwrap();
    assert_eq!(sandbox.wait("one", "").unwrap(), 7);
    assert_eq!(sandbox.output("one", ""), "out\ntyped\n");
    assert_eq!(sandbox.errors("one", ""), "err\n");
    // It can be waited for again, until it is removed.
    assert_eq!(sandbox.wait("one", "one").unwrap(), 7);
    sandbox.remove("one").unwrap();
    assert_eq!(code_of(sandbox.wait("one", "")), ttrpc::Code::INVALID_ARGUMENT);
    assert_eq!(sandbox.end(), 0);
}

#[test]
fn processes_are_put_into_a_container() {
    let sandbox = Sandbox::start(&[]);
    sandbox.create("one", &spec(&["/bin/sleep", "1000"])).unwrap();
    sandbox.start_container("one").unwrap();
    let echo = process(&["/bin/sh", "-c", "echo $0 $HOME; exit 3"]);
    sandbox.exec("one", "e1", &echo).unwrap();
    assert_eq!(sandbox.wait("one", "e1").unwrap(), 3);
    assert_eq!(sandbox.output("one", "e1"), "/bin/sh /root\n");
    sandbox.exec("one", "e1", &echo).unwrap();
    assert_eq!(code_of(sandbox.exec("one", "e1", &echo)), ttrpc::Code::ALREADY_EXISTS);
    sandbox.exec("one", "e2", &process(&["/bin/sleep", "1000"])).unwrap();
    sandbox.signal("one", "e2", 15).unwrap();
    assert_eq!(sandbox.wait("one", "e2").unwrap(), 128 + 15);
    assert_eq!(code_of(sandbox.wait("one", "e3")), ttrpc::Code::NOT_FOUND);
    let missing = sandbox.exec("one", "e4", &process(&["no-such-program"])).unwrap_err().to_string();
    assert!(missing.contains("executable file not found in $PATH"), "{missing}");
    // The name of a process that never was is free.
    sandbox.exec("one", "e4", &process(&["/bin/true"])).unwrap();
    assert_eq!(sandbox.wait("one", "e4").unwrap(), 0);
    sandbox.signal("one", "", 9).unwrap();
    assert_eq!(sandbox.wait("one", "").unwrap(), 128 + 9);
    let late = sandbox.exec("one", "e5", &process(&["/bin/true"])).unwrap_err().to_string();
    assert!(late.contains("has ended"), "{late}");
}
