//! The specification of a container that nobody else specified: Docker's defaults. Program, environment and folder stay
//! empty where the user gave none: the guest fills them in from the image, which the host need not see.

use serde_json::{Value, json};

/// Docker's default set.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// What the user chose.
#[derive(Debug, Default)]
pub(super) struct Choice<'a> {
    pub(super) command: &'a [String],
    pub(super) env: &'a [String],
    pub(super) hostname: &'a str,
    pub(super) terminal: bool,
    /// Rows and columns.
    pub(super) size: Option<(u16, u16)>,
}

/// The `config.json`.
pub(super) fn specification(choice: &Choice<'_>) -> Value {
    let mut process = json!({
        "terminal": choice.terminal,
        "user": {"uid": 0, "gid": 0},
        "args": choice.command,
        "env": choice.env,
        "cwd": "",
        "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
    });
    if let (true, Some((rows, columns))) = (choice.terminal, choice.size) {
        process["consoleSize"] = json!({"height": rows, "width": columns});
    }
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    json!({
        "ociVersion": "1.1.0",
        "process": process,
        "root": {"path": "rootfs", "readonly": false},
        "hostname": choice.hostname,
        "mounts": [
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        ],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}],
            "resources": {},
            "maskedPaths": ["/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_left_open_stays_open() {
        let spec = specification(&Choice { hostname: "h", ..Choice::default() });
        assert_eq!(spec["process"]["args"], json!([]));
        assert_eq!(spec["process"]["cwd"], "");
        // The default policy of the guest takes it: its tests (agent/src/policies_test.rs) read this file.
        let tested: Value =
            serde_json::from_str(include_str!("../../../../agent/tests/data/kata-cc-run.json")).unwrap();
        assert_eq!(spec, tested);
        assert!(spec["mounts"].as_array().unwrap().iter().all(|mount| mount["type"] != "bind"));
    }
}
