//! Groups that systemd makes: a scope for each container, asked for by `busctl`, which is wherever systemd is.
//!
//! A scope is made around a process that is there: this one enters it, makes what lies below, and goes back.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{CgroupError, below_the_root, name};
use crate::process::until;

/// How long systemd may take.
const LIMIT: Duration = Duration::from_secs(30);

/// A unit to make.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) name: String,
    slice: String,
    /// Below the top of the control groups.
    pub(super) path: PathBuf,
}

/// Where this process was.
#[derive(Debug)]
pub(super) struct Back(String);

/// Whether systemd runs (sd_booted(3)).
fn booted() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Whether this is a user's own systemd.
fn of_user() -> bool {
    !nix::unistd::geteuid().is_root()
}

fn call(method: &str, arguments: &[&str]) -> Command {
    const NAME: &str = "org.freedesktop.systemd1";
    let mut command = Command::new("busctl");
    command.arg(if of_user() { "--user" } else { "--system" });
    command.args(["--quiet", "call", NAME, "/org/freedesktop/systemd1"]);
    command.arg(format!("{NAME}.Manager")).arg(method).args(arguments);
    command.stdin(std::process::Stdio::null());
    command
}

impl Unit {
    /// The one that an engine names: `SLICE:PREFIX:NAME`.
    pub(super) fn named(cgroups_path: Option<&str>, id: &str) -> Result<Self, CgroupError> {
        let default = format!(":kata-cc:{id}");
        let text = cgroups_path.filter(|path| !path.is_empty()).unwrap_or(&default);
        let refused = || CgroupError::SystemdName(text.to_owned());
        let fields: Vec<&str> = text.split(':').collect();
        let [slice, prefix, unit] = *fields.as_slice() else { return Err(refused()) };
        let standard = if of_user() { "user.slice" } else { "system.slice" };
        let slice = if slice.is_empty() { standard } else { slice };
        let path = below_the_root(&format!("{slice}:{prefix}:{unit}"));
        let path = path.ok().flatten().ok_or_else(refused)?;
        Ok(Self { name: name::unit(prefix, unit), slice: slice.to_owned(), path })
    }

    fn arguments(&self, pid: u32) -> Vec<String> {
        let mut words = vec!["ssa(sv)a(sa(sv))".to_owned(), self.name.clone(), "fail".to_owned()];
        let properties: [&[&str]; 9] = [
            &["Description", "s", "kata-cc container"],
            &["Slice", "s", &self.slice],
            &["Delegate", "b", "true"],
            &["DefaultDependencies", "b", "false"],
            &["MemoryAccounting", "b", "true"],
            &["CPUAccounting", "b", "true"],
            &["TasksAccounting", "b", "true"],
            &["IOAccounting", "b", "true"],
            &["PIDs", "au", "1", &pid.to_string()],
        ];
        words.push(properties.len().to_string());
        words.extend(properties.iter().flat_map(|words| words.iter().map(|word| (*word).to_owned())));
        words.push("0".to_owned());
        words
    }

    /// Makes it, with this process in it.
    pub(super) fn start(&self) -> Result<Back, CgroupError> {
        if !booted() {
            return Err(CgroupError::NoSystemd);
        }
        let before = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let arguments = self.arguments(std::process::id());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let failed = |reason: String| CgroupError::Systemd { unit: self.name.clone(), reason };
        let output = call("StartTransientUnit", &arguments).output();
        let output = output.map_err(|error| failed(format!("busctl: {error}")))?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let inside =
            || std::fs::read_to_string("/proc/self/cgroup").is_ok_and(|text| text.contains(&self.name));
        if !until(LIMIT, inside) {
            return Err(failed(format!("this process was not in it after {} s", LIMIT.as_secs())));
        }
        Ok(Back(before))
    }
}

impl Back {
    /// Puts this process where it was, tree by tree as far as that is possible.
    pub(super) fn go(&self) {
        for line in self.0.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let tree = match controllers {
                "" if Path::new("/sys/fs/cgroup/cgroup.procs").exists() => "",
                "" => "unified",
                name => name.trim_start_matches("name="),
            };
            let door = Path::new("/sys/fs/cgroup")
                .join(tree)
                .join(path.trim_start_matches('/'))
                .join("cgroup.procs");
            if let Ok(mut door) = std::fs::File::options().write(true).open(door) {
                let _ = door.write_all(b"0");
            }
        }
    }
}

/// Takes a unit away; one that is gone is fine.
pub(super) fn stop(unit: &str) {
    for (method, arguments) in
        [("StopUnit", vec!["ss", unit, "replace"]), ("ResetFailedUnit", vec!["s", unit])]
    {
        let _ = call(method, &arguments).output();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_named_as_engines_do() {
        let unit = Unit::named(Some("machine.slice:libpod:abc"), "id").unwrap();
        assert_eq!(
            (unit.name.as_str(), unit.path.to_str().unwrap()),
            ("libpod-abc.scope", "machine.slice/libpod-abc.scope")
        );
        let standard = Unit::named(Some(":docker:abc"), "id").unwrap();
        assert!(standard.path.ends_with("docker-abc.scope") && standard.path.components().count() == 2);
        assert_eq!(Unit::named(None, "id").unwrap().name, "kata-cc-id.scope");
        for bad in ["/x/y", "a:b", "a:b:c:d", "../a.slice:b:c", "a.slice:b:"] {
            assert!(matches!(Unit::named(Some(bad), "id"), Err(CgroupError::SystemdName(_))), "{bad}");
        }
    }

    #[test]
    fn the_call_names_its_process_and_slice() {
        let words = Unit::named(Some("a-b.slice:p:n"), "id").unwrap().arguments(42).join(" ");
        assert!(words.starts_with("ssa(sv)a(sa(sv)) p-n.scope fail 9 Description s "), "{words}");
        assert!(words.contains("Slice s a-b.slice") && words.ends_with("PIDs au 1 42 0"), "{words}");
    }

    #[test]
    fn without_systemd_it_is_refused_as_users_know_it() {
        if booted() {
            println!("skipped: systemd runs here");
            return;
        }
        let error = Unit::named(None, "id").unwrap().start().unwrap_err().to_string();
        assert!(error.starts_with("systemd not running on this host"), "{error}");
    }
}
