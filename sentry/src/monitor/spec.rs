//! A container's specification, as the agent API carries it, as a plan for the sentry.
//!
//! What the sentry has is planned, what has no meaning in it is passed over where this page says so, and everything else is refused with the
//! name of the field. Passed over: namespaces (the sandbox's own; the host's are the caller's affair), the path of the cgroup and bounds on
//! memory and CPU (the host's cgroup, which whoever starts the sandbox sets), labels of AppArmor and SELinux (which concern the host's
//! kernel), propagation of mounts (nobody outside sees them).

mod filter;
mod mounts;
mod process;

use std::os::fd::OwnedFd;

use kata_cc_agent_protocol::{agent, oci};
use kata_cc_sentry::control::message::{
    Bound, Bounds, ContainerNumber, ContainerPlan, Descriptor, DevicePlan, ProcessNumber,
};
use kata_cc_sentry::link;
use thiserror::Error;

pub(crate) use process::{Streams, process};

use super::open::{Exports, OpenError};

/// Microseconds of a period where none are said (`cpu.max`).
const CPU_PERIOD: u64 = 100_000;
/// What annotations of this tier begin with.
const ANNOTATION: &str = "dev.kata-cc.sentry.";

/// Why a specification is not carried out.
#[derive(Debug, Error)]
pub(crate) enum SpecError {
    /// A field that the sentry has nothing for.
    #[error("{field} is not supported by the sentry: {why}")]
    Unsupported {
        /// Its name as `config.json` has it.
        field: String,
        /// What was seen, and what can be done.
        why: String,
    },
    /// A field that makes no sense.
    #[error("{field}: {why}")]
    Invalid {
        /// Its name.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something on the host.
    #[error("{field}: {error}")]
    Host {
        /// Its name.
        field: String,
        /// Why it cannot be had.
        error: OpenError,
    },
}

pub(crate) fn unsupported<T>(field: impl Into<String>, why: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError::Unsupported { field: field.into(), why: why.into() })
}

pub(crate) fn invalid<T>(field: impl Into<String>, why: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError::Invalid { field: field.into(), why: why.into() })
}

/// What goes with a request.
#[derive(Default)]
pub(crate) struct Descriptors(Vec<OwnedFd>);

impl Descriptors {
    /// Streams, the way to the gofer, and what a process has besides.
    const MAX: usize = 8 + super::streams::MORE_MAX;

    /// Puts a descriptor among those of a request.
    pub(crate) fn add(&mut self, descriptor: OwnedFd) -> Result<Descriptor, SpecError> {
        let place = self.place()?;
        self.0.push(descriptor);
        Ok(place)
    }

    /// The place of the one that is added next.
    pub(crate) fn place(&self) -> Result<Descriptor, SpecError> {
        let place = u8::try_from(self.0.len()).ok().filter(|place| usize::from(*place) < Self::MAX);
        place.map_or_else(
            || invalid("descriptors", format!("more than {} of them", Self::MAX)),
            |place| Ok(Descriptor(place)),
        )
    }

    /// All of them.
    pub(crate) fn into_inner(self) -> Vec<OwnedFd> {
        self.0
    }
}

/// What this tier is told by annotations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    overlay: bool,
    /// Whether the profile of system calls is applied.
    seccomp: bool,
    /// `errno` of its default action.
    seccomp_errno: Option<u32>,
    /// Whether the pod's network is wanted, where that is said.
    pub(crate) network: Option<Wish>,
    /// For the first process, and others that do not say.
    pub(crate) umask: u32,
}

/// What a container says of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Loopback alone.
    None,
    /// The pod's interfaces.
    Sandbox {
        /// Also where processes outside the sandbox use them.
        seize: bool,
    },
}

/// What is known besides the specification.
pub(crate) struct Around {
    pub(crate) container: ContainerNumber,
    pub(crate) process: ProcessNumber,
    /// Most bytes of changes that stay in memory.
    pub(crate) memory: Option<u64>,
    /// Where its files will come from.
    pub(crate) files: Descriptor,
    /// The image that it is restored from.
    pub(crate) image: Option<Descriptor>,
}

/// A container to be made.
pub(crate) struct Planned {
    pub(crate) plan: ContainerPlan,
    /// What its gofer is to export.
    pub(crate) exports: Exports,
    pub(crate) options: Options,
    /// Names of the machine.
    pub(crate) host: Option<String>,
    pub(crate) domain: Option<String>,
}

/// Plans a container, and opens what it needs of the host.
pub(crate) fn container(
    request: &agent::CreateContainerRequest,
    around: &Around,
    streams: &Streams,
) -> Result<Planned, SpecError> {
    refuse_of_machines(request)?;
    let Some(spec) = request.OCI.as_ref() else { return invalid("OCI", "is missing") };
    let options = options(spec)?;
    let domain = spec.Annotations.get(&format!("{ANNOTATION}domainname")).cloned();
    refuse_unsupported(spec)?;
    let root = spec.Root.get_or_default();
    let Some(first) = spec.Process.as_ref() else { return invalid("process", "is missing") };
    let mut exports = Exports::default();
    add_root(root, options.overlay, &mut exports)?;
    let plan = ContainerPlan {
        number: around.container,
        files: around.files,
        read_only: root.Readonly,
        overlay: options.overlay.then_some(around.memory),
        mounts: mounts::plan(spec, &mut exports)?,
        devices: devices(spec)?,
        masked: paths("linux.maskedPaths", &spec.Linux.get_or_default().MaskedPaths)?,
        read_only_paths: paths("linux.readonlyPaths", &spec.Linux.get_or_default().ReadonlyPaths)?,
        settings: settings(spec)?,
        bounds: first_bounds(spec.Linux.get_or_default().Resources.get_or_default(), around.memory),
        own_processes: !request.sandbox_pidns,
        filter: filter::program(spec.Linux.get_or_default(), &options)?,
        process: process(first, around.process, options.umask, streams)?,
        image: around.image,
    };
    let host = Some(spec.Hostname.clone()).filter(|name| !name.is_empty());
    for (field, name) in [("hostname", &host), ("domainname", &domain)] {
        if name.as_ref().is_some_and(|name| name.len() > 64 || name.contains('\0')) {
            return invalid(field, "is longer than 64 bytes, or no name");
        }
    }
    Ok(Planned { plan, exports, options, host, domain })
}

/// Bounds that resources ask for. A part that is not there changes nothing, nor does a memory limit or quota of 0.
pub(crate) fn bounds(resources: &oci::LinuxResources) -> Bounds {
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let bound = |value: i64| positive(value).map_or(Bound::Infinite, Bound::To);
    let said = |value: i64| if value == 0 { Bound::Unsaid } else { bound(value) };
    let cpu = |cpu: &oci::LinuxCPU| match said(cpu.Quota) {
        Bound::To(quota) => Bound::To((quota, if cpu.Period == 0 { CPU_PERIOD } else { cpu.Period })),
        Bound::Infinite => Bound::Infinite,
        Bound::Unsaid => Bound::Unsaid,
    };
    Bounds {
        tasks: resources.Pids.as_ref().map_or(Bound::Unsaid, |pids| bound(pids.Limit)),
        memory: resources.Memory.as_ref().map_or(Bound::Unsaid, |memory| said(memory.Limit)),
        cpu: resources.CPU.as_ref().map_or(Bound::Unsaid, cpu),
    }
}

/// Those of a new container, in a sandbox with so much memory.
fn first_bounds(resources: &oci::LinuxResources, sandbox: Option<u64>) -> Bounds {
    let own = bounds(resources);
    let memory = match (own.memory, sandbox) {
        (Bound::To(own), Some(sandbox)) => Bound::To(own.min(sandbox)),
        (Bound::Unsaid | Bound::Infinite, Some(sandbox)) => Bound::To(sandbox),
        (own, None) => own,
    };
    Bounds { memory, ..own }
}

/// Fields of the request that are of virtual machines.
fn refuse_of_machines(request: &agent::CreateContainerRequest) -> Result<(), SpecError> {
    let why = "the sentry has no devices and no shared file system: paths of the host are named in the specification";
    for (field, empty) in [
        ("storages", request.storages.is_empty()),
        ("devices", request.devices.is_empty()),
        ("shared_mounts", request.shared_mounts.is_empty()),
        ("string_user", request.string_user.as_ref().is_none_or(|user| user.uid.is_empty())),
    ] {
        if !empty {
            return unsupported(field, why);
        }
    }
    Ok(())
}

fn options(spec: &oci::Spec) -> Result<Options, SpecError> {
    let mut options =
        Options { overlay: true, seccomp: true, seccomp_errno: None, network: None, umask: 0o022 };
    for (name, value) in &spec.Annotations {
        let Some(name) = name.strip_prefix(ANNOTATION) else { continue };
        let field = || format!("annotation {ANNOTATION}{name}");
        let one_of = |values: [&str; 2]| {
            let place = values.iter().position(|known| known == value);
            place.map_or_else(
                || invalid(field(), format!("{value:?} is neither {} nor {}", values[0], values[1])),
                Ok,
            )
        };
        match name {
            "overlay" => options.overlay = one_of(["memory", "none"])? == 0,
            "seccomp" => match value.as_str() {
                "apply" | "require" => {}
                "ignore" => options.seccomp = false,
                _ => return invalid(field(), format!("{value:?} is neither apply nor ignore")),
            },
            "seccomp-errno" => match value.parse() {
                Ok(errno) => options.seccomp_errno = Some(errno),
                Err(_) => return invalid(field(), format!("{value:?} is no number of an error")),
            },
            "network" if value == "host" => return invalid(field(), link::SpecError::Host.to_string()),
            "network" => {
                options.network = Some(match value.as_str() {
                    "sandbox" => Wish::Sandbox { seize: false },
                    "sandbox,seize" => Wish::Sandbox { seize: true },
                    "none" => Wish::None,
                    _ => {
                        return invalid(
                            field(),
                            format!("{value:?} is neither sandbox nor none (nor sandbox,seize)"),
                        );
                    }
                });
            }
            "umask" => match u32::from_str_radix(value, 8) {
                Ok(umask) if umask <= 0o777 => options.umask = umask,
                _ => return invalid(field(), format!("{value:?} is no octal number up to 0777")),
            },
            "domainname" => {}
            _ => return unsupported(field(), "there is no such annotation"),
        }
    }
    Ok(options)
}

fn refuse_unsupported(spec: &oci::Spec) -> Result<(), SpecError> {
    if spec.Solaris.is_some() || spec.Windows.is_some() {
        return unsupported("solaris, windows", "containers of Linux are run");
    }
    let hooks = spec.Hooks.get_or_default();
    let lists = [
        &hooks.Prestart,
        &hooks.Poststart,
        &hooks.Poststop,
        &hooks.CreateRuntime,
        &hooks.CreateContainer,
        &hooks.StartContainer,
    ];
    if let Some(hook) = lists.into_iter().flatten().next() {
        return unsupported(
            "hooks",
            format!("{} is a program of the host, which the sentry cannot run", hook.Path),
        );
    }
    let linux = spec.Linux.get_or_default();
    // Those of a namespace of users that maps each number to itself change nothing.
    let own = |map: &oci::LinuxIDMapping| map.HostID == map.ContainerID;
    if !linux.UIDMappings.iter().all(own) || !linux.GIDMappings.iter().all(own) {
        return unsupported(
            "linux.uidMappings, linux.gidMappings",
            "users of a container are not the host's anyhow",
        );
    }
    if linux.IntelRdt.is_some() {
        return unsupported("linux.intelRdt", "it is of the host's processors");
    }
    Ok(())
}

/// The root, which is the first export.
fn add_root(root: &oci::Root, overlay: bool, exports: &mut Exports) -> Result<(), SpecError> {
    let field = || "root.path".to_owned();
    let added = exports.add(&root.Path, !overlay && !root.Readonly);
    match added.map_err(|error| SpecError::Host { field: field(), error })? {
        (_, true) => Ok(()),
        (_, false) => invalid(field(), format!("{} is no folder", root.Path)),
    }
}

/// Absolute paths in the container.
fn paths(field: &str, paths: &[String]) -> Result<Vec<String>, SpecError> {
    for path in paths {
        if !path.starts_with('/') || path.contains('\0') {
            return invalid(field, format!("{path:?} is no absolute path"));
        }
    }
    Ok(paths.to_vec())
}

/// Settings of the kernel, in an order that does not change.
fn settings(spec: &oci::Spec) -> Result<Vec<(String, String)>, SpecError> {
    let mut settings = Vec::new();
    for (name, value) in &spec.Linux.get_or_default().Sysctl {
        // A slash separates where a part itself has dots (net/ipv4/conf/eth0.1/...): there is nothing of the kind.
        if name.is_empty() || name.contains(['/', '\0']) || name.contains("..") || name.starts_with('.') {
            return invalid("linux.sysctl", format!("{name:?} is no name of a setting"));
        }
        settings.push((name.clone(), value.clone()));
    }
    settings.sort();
    Ok(settings)
}

/// Devices that the sentry has (`Documentation/admin-guide/devices.txt`).
const DEVICES: [(u32, u32); 7] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)];

fn devices(spec: &oci::Spec) -> Result<Vec<DevicePlan>, SpecError> {
    let mut plans = Vec::new();
    for device in &spec.Linux.get_or_default().Devices {
        let field = format!("linux.devices {}", device.Path);
        let numbers = (u32::try_from(device.Major).ok(), u32::try_from(device.Minor).ok());
        let known = match numbers {
            (Some(major), Some(minor)) => Some((major, minor)).filter(|number| DEVICES.contains(number)),
            _ => None,
        };
        let Some((major, minor)) = known.filter(|_| device.Type == "c" || device.Type == "u") else {
            let numbers = format!("{} {}:{}", device.Type, device.Major, device.Minor);
            return unsupported(field, format!("it has no device {numbers}"));
        };
        if !device.Path.starts_with('/') || device.Path.contains('\0') {
            return invalid(field, "is no absolute path");
        }
        let mode = if device.FileMode == 0 { 0o666 } else { device.FileMode & 0o7777 };
        let (uid, gid) = (device.UID, device.GID);
        plans.push(DevicePlan { at: device.Path.clone(), major, minor, mode, uid, gid });
    }
    Ok(plans)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_those_of_resources_and_sandbox() {
        let mut resources = oci::LinuxResources::new();
        assert_eq!(first_bounds(&resources, None), Bounds::default());
        assert_eq!(first_bounds(&resources, Some(7)).memory, Bound::To(7));
        resources.Memory.mut_or_insert_default().Limit = 5;
        resources.Pids.mut_or_insert_default().Limit = -1;
        resources.CPU.mut_or_insert_default().Quota = 50_000;
        let wanted =
            Bounds { tasks: Bound::Infinite, memory: Bound::To(5), cpu: Bound::To((50_000, CPU_PERIOD)) };
        assert_eq!(first_bounds(&resources, Some(7)), wanted);
        assert_eq!(first_bounds(&resources, Some(3)).memory, Bound::To(3));
        resources.Memory.as_mut().unwrap().Limit = -1;
        resources.CPU.as_mut().unwrap().Quota = 0;
        let wanted = Bounds { tasks: Bound::Infinite, memory: Bound::Infinite, cpu: Bound::Unsaid };
        assert_eq!(bounds(&resources), wanted);
    }
}
