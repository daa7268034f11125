//! What a restored container is put into: bounds of its bundle, and what it has in common with others.

use kata_cc_agent_protocol::oci;

use super::harness::Sandbox;
use super::{ask, goes_on_and_ends, python, restore, save};

#[test]
fn a_bundle_that_gives_less_refuses_an_image() {
    let program =
        "import sys, threading\nthreading.Thread(target=sys.stdin.read).start()\nprint('up', flush=True)";
    let spec = python(program);
    let image = tempfile::tempfile().unwrap();
    let sandbox = Sandbox::start(&[]);
    sandbox.run("c", &spec);
    sandbox.read_until("c", "", "up");
    save(&sandbox, "c", "checkpoint", &image);
    let sandbox = Sandbox::start(&[]);
    type Change = fn(&mut oci::LinuxResources);
    let changes: [(Change, &str); 2] = [
        (
            |resources| resources.Pids.mut_or_insert_default().Limit = 1,
            "more tasks than the container may have",
        ),
        (|resources| resources.Memory.mut_or_insert_default().Limit = 4096, "its memory is more"),
    ];
    for (change, words) in changes {
        let mut less = spec.clone();
        change(less.Linux.mut_or_insert_default().Resources.mut_or_insert_default());
        save(&sandbox, "c", "restore", &image);
        let error = sandbox.create("c", &less).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
    goes_on_and_ends(&sandbox, &spec, &image);
}

#[test]
fn a_changed_name_of_the_machine_is_kept() {
    const NAMES: &str = "import sys, socket\nfor line in sys.stdin:\n  if line != '\\n': socket.sethostname(line.strip())\n  print(socket.gethostname(), flush=True)";
    let mut spec = python(NAMES);
    spec.Hostname = "given".to_owned();
    let weak = spec.clone();
    let sets = spec.Process.mut_or_insert_default().Capabilities.mut_or_insert_default();
    for set in [&mut sets.Bounding, &mut sets.Effective, &mut sets.Permitted] {
        set.push("CAP_SYS_ADMIN".to_owned());
    }
    let asked = |sandbox: &Sandbox, line: &[u8]| {
        sandbox.write("c", "", line).unwrap();
        sandbox.read_until("c", "", "\n")
    };
    let image = tempfile::tempfile().unwrap();
    let sandbox = Sandbox::start(&[]);
    // It has the number that the other one's process has below.
    sandbox.run("o", &spec);
    sandbox.run("c", &spec);
    assert_eq!(asked(&sandbox, b"\n"), "given\n");
    save(&sandbox, "c", "leave-running", &image);
    // One that was not changed is the new bundle's.
    let mut other = spec.clone();
    other.Hostname = "other".to_owned();
    assert_eq!(asked(&restore("c", &other, &image), b"\n"), "other\n");
    assert_eq!(asked(&sandbox, b"changed\n"), "changed\n");
    save(&sandbox, "c", "checkpoint", &image);
    assert_eq!(asked(&restore("c", &spec, &image), b"\n"), "changed\n");
    // Where others are in the sandbox it is theirs, too.
    let sandbox = Sandbox::start(&[]);
    sandbox.run("o", &spec);
    save(&sandbox, "c", "restore", &image);
    sandbox.run("c", &spec);
    assert_eq!(asked(&sandbox, b"\n"), "given\n");
    let sandbox = Sandbox::start(&[]);
    save(&sandbox, "c", "restore", &image);
    let error = sandbox.create("c", &weak).unwrap_err().to_string();
    assert!(error.contains("processes may more than the bundle lets them"), "{error}");
}

/// Looks at all clocks all the time, and tells on each line what they show; a wait until a time is under way.
const CLOCKS: &str = r"
import sys, threading, time
began = time.monotonic()
wrong = []
def watch():
    clocks = [1, 4, 6, 7]
    last = [time.clock_gettime(clock) for clock in clocks]
    while True:
        for place, clock in enumerate(clocks):
            now = time.clock_gettime(clock)
            if not last[place] <= now < last[place] + 100: wrong.append((clock, last[place], now))
            last[place] = now
threading.Thread(target=watch, daemon=True).start()
waited = []
def wait():
    until = time.monotonic() + 4
    threading.Event().wait(4)
    waited.append(time.monotonic() - until)
threading.Thread(target=wait, daemon=True).start()
for line in sys.stdin:
    now = time.monotonic()
    if line == 'age\n':
        uptime = float(open('/proc/uptime').read().split()[0])
        print(round(now), -1 < now - uptime < 1, now - began < 100, wrong[:3], flush=True)
    else:
        while not waited: time.sleep(0.05)
        print(0 <= waited[0] < 30, flush=True)
";

#[test]
fn clocks_go_on_from_where_they_were() {
    let spec = python(CLOCKS);
    let image = tempfile::tempfile().unwrap();
    let sandbox = Sandbox::start(&[]);
    let age = |sandbox: &Sandbox| {
        sandbox.write("c", "", b"age\n").unwrap();
        let line = sandbox.read_until("c", "", "\n");
        let (age, rest) = line.split_once(' ').unwrap();
        assert_eq!(rest, "True True []\n", "{age}");
        age.parse::<u64>().unwrap()
    };
    std::thread::sleep(std::time::Duration::from_secs(4));
    // It has the number that the other one's process has below.
    let other = python("import sys\nsys.stdin.read()");
    sandbox.run("o", &other);
    sandbox.run("c", &spec);
    // They began with the sandbox.
    let before = age(&sandbox);
    assert!((4..80).contains(&before), "{before}");
    save(&sandbox, "c", "checkpoint", &image);
    let restored = restore("c", &spec, &image);
    let after = age(&restored);
    assert!(after >= before && after < before + 80, "{before} {after}");
    restored.write("c", "", b"waited\n").unwrap();
    assert_eq!(restored.read_until("c", "", "\n"), "True\n");
    // Once more, out of the one that was restored.
    save(&restored, "c", "leave-running", &image);
    let again = restore("c", &spec, &image);
    assert!(age(&again) >= after, "{after}");
    assert!(age(&restored) >= after, "{after}");
    // Where another container has the clock, it stays as it is, and the log says so.
    let sandbox = Sandbox::start(&[]);
    sandbox.run("o", &other);
    save(&sandbox, "c", "restore", &image);
    sandbox.run("c", &spec);
    sandbox.write("c", "", b"age\n").unwrap();
    sandbox.read_until("c", "", "\n");
    assert!(sandbox.log().contains("does not go on from the checkpoint's"), "{}", sandbox.log());
}

#[test]
fn memory_of_the_pod_is_left_alone() {
    const PROGRAM: &str = r"
import os, sys
held = []
for line in sys.stdin:
    what, name = line.split()
    if what == 'put': open('/dev/shm/' + name, 'w').write(name)
    if what == 'hold': held.append(open('/dev/shm/' + name))
    print(sorted(os.listdir('/dev/shm')), flush=True)
";
    let mut spec = python(PROGRAM);
    let own = spec.clone();
    let memory = spec.Mounts.iter_mut().find(|mount| mount.destination == "/dev/shm").unwrap();
    (memory.type_, memory.source) = ("bind".to_owned(), "/run/pod/shm".to_owned());
    memory.options = vec!["rbind".to_owned()];
    let asked = |sandbox: &Sandbox, id: &str, line: &str| {
        sandbox.write(id, "", line.as_bytes()).unwrap();
        sandbox.read_until(id, "", "\n")
    };
    let image = tempfile::tempfile().unwrap();
    let sandbox = Sandbox::start(&[]);
    sandbox.run("o", &spec);
    sandbox.run("c", &spec);
    assert_eq!(asked(&sandbox, "o", "put of-o\n"), "['of-o']\n");
    assert_eq!(asked(&sandbox, "c", "put of-c\n"), "['of-c', 'of-o']\n");
    save(&sandbox, "c", "checkpoint", &image);
    assert_eq!(asked(&sandbox, "o", "put later\n"), "['later', 'of-c', 'of-o']\n");
    sandbox.remove("c").unwrap();
    save(&sandbox, "c", "restore", &image);
    sandbox.run("c", &spec);
    assert_eq!(asked(&sandbox, "c", "look x\n"), "['later', 'of-c', 'of-o']\n");
    asked(&sandbox, "c", "hold of-o\n");
    let answer = ask(&sandbox, "c", "checkpoint", &image);
    assert!(
        answer.contains("/dev/shm/of-o, in memory that other containers of the pod have, too"),
        "{answer}"
    );
    assert_eq!(asked(&sandbox, "c", "look x\n"), "['later', 'of-c', 'of-o']\n");
    // What was the container's own is not put where others have theirs.
    sandbox.run("p", &own);
    assert_eq!(asked(&sandbox, "p", "put of-p\n"), "['of-p']\n");
    save(&sandbox, "p", "checkpoint", &image);
    sandbox.remove("p").unwrap();
    save(&sandbox, "p", "restore", &image);
    let error = sandbox.create("p", &spec).unwrap_err().to_string();
    assert!(error.contains("/dev/shm, which is memory of all containers of the pod"), "{error}");
    assert_eq!(asked(&sandbox, "o", "look x\n"), "['later', 'of-c', 'of-o']\n");
}
