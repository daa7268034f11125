//! Groups that systemd makes: a scope for each container (systemd.scope(5)), with its limits as properties: a limit that is in a file alone is gone
//! when systemd next writes what it knows (`systemctl daemon-reload`).
//!
//! A scope is made around a process that is there, and is gone with its last one. So this process enters it, and goes back once the
//! container's own is in it.

mod annotations;
mod bus;
mod properties;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::{CgroupError, Wanted, below_the_root, name};
use crate::process::until;
use bus::Property;

/// How long systemd may take.
const LIMIT: Duration = Duration::from_secs(30);

/// A unit to make.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) name: String,
    slice: String,
    /// What the container's annotations want of it.
    more: Vec<Property>,
}

/// This process is in a container's group, and goes back to where it was when this is dropped: when the container's own process is in it.
#[derive(Debug, Default)]
#[must_use = "it leaves the group when this is dropped, and systemd takes an empty one away"]
pub struct Inside(Option<String>);

/// Whether systemd runs (sd_booted(3)).
pub(super) fn booted() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Whether this is a user's own systemd.
fn of_user() -> bool {
    !nix::unistd::geteuid().is_root() || crate::process::in_user_namespace()
}

impl Unit {
    /// The one that an engine names: `SLICE:PREFIX:NAME`.
    pub(super) fn named(wanted: &Wanted<'_>) -> Result<Self, CgroupError> {
        let default = format!(":kata-cc:{}", wanted.id);
        let text = wanted.cgroups_path.filter(|path| !path.is_empty()).unwrap_or(&default);
        let refused = || CgroupError::SystemdName(text.to_owned());
        let fields: Vec<&str> = text.split(':').collect();
        let [slice, prefix, unit] = *fields.as_slice() else { return Err(refused()) };
        let standard = if of_user() { "user.slice" } else { "system.slice" };
        let slice = if slice.is_empty() { standard } else { slice };
        let sound = below_the_root(&format!("{slice}:{prefix}:{unit}")).is_ok_and(|path| path.is_some());
        if !sound || unit.is_empty() {
            return Err(refused());
        }
        let more = annotations::properties(wanted.annotations)?;
        Ok(Self { name: name::unit(prefix, unit), slice: slice.to_owned(), more })
    }

    fn properties(&self, pid: u32, unified: bool) -> Vec<Property> {
        let mut all = vec![
            Property::text("Description", &format!("kata-cc container {}", self.name)),
            Property::text("Slice", &self.slice),
        ];
        let disks = if unified { "IOAccounting" } else { "BlockIOAccounting" };
        let yes = ["Delegate", "MemoryAccounting", "CPUAccounting", "TasksAccounting", disks];
        all.extend(yes.map(|name| Property::flag(name, true)));
        all.push(Property::flag("DefaultDependencies", false));
        all.push(Property::new("PIDs", &["au", "1", &pid.to_string()]));
        all.extend(self.more.iter().cloned());
        all
    }

    /// Makes it, with this process in it; its group, from the top of systemd's tree.
    pub(super) fn start(&self, unified: bool) -> Result<(String, Inside), CgroupError> {
        if !booted() {
            return Err(CgroupError::NoSystemd);
        }
        let failed = |reason: String| CgroupError::Systemd { unit: self.name.clone(), reason };
        let before = own_groups();
        let properties = self.properties(std::process::id(), unified);
        let mut started = bus::start_transient(&self.name, &properties);
        if matches!(&started, Err(reason) if reason.contains("already")) {
            // One that failed stays with its name until somebody has seen that.
            bus::reset_failed(&self.name);
            started = bus::start_transient(&self.name, &properties);
        }
        started.map_err(failed)?;
        let mut group = None;
        until(LIMIT, || {
            group = group_of(&own_groups(), &self.name);
            group.is_some()
        });
        match group {
            Some(group) => Ok((group, Inside(Some(before)))),
            None => Err(failed(format!("this process was not in it after {} s", LIMIT.as_secs()))),
        }
    }
}

fn own_groups() -> String {
    std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// Where a unit's group is, by the groups of a process in it (cgroups(7), `/proc/PID/cgroup`).
fn group_of(groups: &str, unit: &str) -> Option<String> {
    let trees = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let systemds = trees.filter(|(controllers, _)| matches!(*controllers, "" | "name=systemd"));
    let mut paths = systemds.map(|(_, path)| path);
    paths.find(|path| path.rsplit('/').next() == Some(unit)).map(str::to_owned)
}

/// Gives a unit other limits, OCI's `LinuxResources`: until the machine starts anew.
pub(super) fn limit(unit: &str, resources: &Value, unified: bool) -> Result<(), CgroupError> {
    let mut properties = properties::of(resources, unified);
    if properties.iter().any(|property| property.since > 0) {
        let version = bus::version();
        properties.retain(|property| version.is_none_or(|version| version >= property.since));
    }
    if properties.is_empty() {
        return Ok(());
    }
    bus::set_properties(unit, &properties)
        .map_err(|reason| CgroupError::SystemdLimit { unit: unit.to_owned(), reason })
}

impl Drop for Inside {
    /// Tree by tree, as far as that is possible: a user's process may come from where it may not go back to.
    fn drop(&mut self) {
        for line in self.0.take().iter().flat_map(|text| text.lines()) {
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

/// Takes a unit away; one that is gone is fine. One that this process could not leave goes with it: systemd would kill all in it.
pub(super) fn stop(unit: &str) {
    if group_of(&own_groups(), unit).is_none() {
        bus::stop(unit);
        bus::reset_failed(unit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(path: Option<&str>) -> Result<Unit, CgroupError> {
        Unit::named(&Wanted { cgroups_path: path, id: "id", annotations: &Value::Null })
    }

    #[test]
    fn units_are_named_as_engines_do() {
        let unit = named(Some("machine.slice:libpod:abc")).unwrap();
        assert_eq!((unit.name.as_str(), unit.slice.as_str()), ("libpod-abc.scope", "machine.slice"));
        let standard = named(Some(":docker:abc")).unwrap();
        assert_eq!(standard.name, "docker-abc.scope");
        assert_eq!(standard.slice, if of_user() { "user.slice" } else { "system.slice" });
        assert_eq!(named(None).unwrap().name, "kata-cc-id.scope");
        for bad in ["/x/y", "a:b", "a:b:c:d", "../a.slice:b:c", "a.slice:b:"] {
            assert!(matches!(named(Some(bad)), Err(CgroupError::SystemdName(_))), "{bad}");
        }
    }

    #[test]
    fn the_unit_has_its_process_slice_and_what_annotations_want() {
        let annotations = serde_json::json!({"org.systemd.property.KillSignal": "37", "other": "x"});
        let unit =
            Unit::named(&Wanted { cgroups_path: Some("a-b.slice:p:n"), id: "id", annotations: &annotations });
        let words: Vec<String> = unit.unwrap().properties(42, true).iter().map(Property::to_string).collect();
        let words = words.join("; ");
        assert!(words.contains("Slice s a-b.slice; Delegate b true;"), "{words}");
        assert!(words.ends_with("DefaultDependencies b false; PIDs au 1 42; KillSignal i 37"), "{words}");
    }

    #[test]
    fn the_group_is_where_systemd_says() {
        let hybrid = "4:memory:/system.slice/p-n.scope\n1:name=systemd:/system.slice/p-n.scope\n0::/system.slice/p-n.scope\n";
        assert_eq!(group_of(hybrid, "p-n.scope").as_deref(), Some("/system.slice/p-n.scope"));
        let user = "0::/user.slice/user-1.slice/user@1.service/user.slice/p-n.scope\n";
        assert!(group_of(user, "p-n.scope").unwrap().contains("user@1.service"));
        assert_eq!(group_of("4:memory:/p-n.scope\n0::/xp-n.scope\n", "p-n.scope"), None);
        assert_eq!(group_of("garbage\n:\n", "x"), None);
    }

    #[test]
    fn without_systemd_it_is_refused_as_users_know_it() {
        if booted() {
            println!("skipped: systemd runs here");
            return;
        }
        let error = named(None).unwrap().start(true).unwrap_err().to_string();
        assert!(error.starts_with("systemd not running on this host"), "{error}");
    }
}
