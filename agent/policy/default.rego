# Policy of a confidential guest that no init-data overrides. It lies in the guest's root image, which the launch digest vouches for.
#
# The host may drive the life of a sandbox and its containers, and read a program's output. What runs is the image's
# own program with the image's own arguments, environment, folder and user: the host may neither choose another one,
# nor steer it by variables, standard input, files, mounts, devices, capabilities or kernel parameters. It may not put
# storage of its own making into the guest, run programs beside the image's (exec), change the guest's clock, entropy,
# neighbours or packet filter, or replace this policy. A pod that needs more brings its own policy.rego in the
# init-data, which the launch measurement covers: a copy of this file (`kata-cc policy show agent`) with more
# `programs`, `environment` or rules.
package agent_policy

import rego.v1

# Who answers for an address of the pod's network is the guest kernel's to find out.
default AddARPNeighborsRequest := false
default AddSwapPathRequest := false
default AddSwapRequest := false
default CloseStdinRequest := true
default CopyFileRequest := false
default CreateContainerRequest := false
default CreateSandboxRequest := false
default DestroySandboxRequest := true
default ExecProcessRequest := false
default GetDiagnosticDataRequest := false
default GetIPTablesRequest := false
default GetMetricsRequest := true
default GetOOMEventRequest := true
default GuestDetailsRequest := true
default ListInterfacesRequest := true
default ListRoutesRequest := true
default MemAgentCompactConfig := false
default MemAgentMemcgConfig := false
default MemHotplugByProbeRequest := false
default OnlineCPUMemRequest := true
default PauseContainerRequest := true
default ReadStreamRequest := true
default RemoveContainerRequest := true
default RemoveStaleVirtiofsShareMountsRequest := false
default ReseedRandomDevRequest := false
default ResizeVolumeRequest := false
default ResumeContainerRequest := true
default RunImageRequest := false
# Encrypted volumes that somebody in the guest asks for.
default SecureMountRequest := false
default SetGuestDateTimeRequest := false
default SetIPTablesRequest := false
default SetPolicyRequest := false
default SignalProcessRequest := true
default StartContainerRequest := true
default StatsContainerRequest := true
default TtyWinResizeRequest := true
default UpdateContainerRequest := true
default UpdateEphemeralMountsRequest := false
default UpdateInterfaceRequest := false
default UpdateRoutesRequest := false
default VolumeStatsRequest := true
default WaitProcessRequest := true
# Standard input steers a program: a shell, an interpreter, a tool that asks before it prints.
default WriteStreamRequest := false

CreateSandboxRequest if count(violations) == 0

CreateContainerRequest if count(violations) == 0

# Name resolution, host names and the like; where a container may see them is limited below.
CopyFileRequest if {
	startswith(input.path, "/run/kata-containers/shared/containers/")
	# Kubernetes keeps a volume's files in folders named ..data and the like: only the parent folder itself is refused.
	not ".." in split(input.path, "/")
}

# No data: the input's end, which says nothing.
WriteStreamRequest if count(input.data) == 0

UpdateInterfaceRequest if count(violations) == 0

UpdateRoutesRequest if count(violations) == 0

# What memory, a pulled image, or an overlay of these can bring; a block device is the host's own making.
drivers := {"ephemeral", "local", "image_guest_pull"}

# Where a file system of the kernel may be mounted: anywhere else it could hide files of the image.
kernel_filesystems := {
	"proc": {"/proc"},
	"sysfs": {"/sys"},
	"tmpfs": {"/dev", "/dev/shm", "/run"},
	"devpts": {"/dev/pts"},
	"mqueue": {"/dev/mqueue"},
	"cgroup": {"/sys/fs/cgroup"},
	"cgroup2": {"/sys/fs/cgroup"},
}

# Memory that the containers of a sandbox share, which the guest itself made, and the only place for it.
shared_memory := {"source": "/run/kata-containers/sandbox/shm", "destination": "/dev/shm"}

copied_files := "/run/kata-containers/shared/containers/"

# Files that the host copied in may only be seen at these places: not over a program of the image.
host_file_places := {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"}

is_bind(mount) if mount.type_ == "bind"

is_bind(mount) if mount.options[_] in {"bind", "rbind"}

bind_types := {"bind", "none", ""}

# What containerd gives to a container that asks for nothing.
capabilities := {
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

# Kubernetes' safe ones, two of which containerd sets for every pod.
sysctls := {
	"kernel.shm_rmid_forced",
	"net.ipv4.ip_local_port_range",
	"net.ipv4.ip_unprivileged_port_start",
	"net.ipv4.ping_group_range",
	"net.ipv4.tcp_syncookies",
}

# What containerd and the agent hide from every container that is not privileged.
masked_paths := {
	"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
	"/proc/timer_list", "/proc/timer_stats", "/sys/firmware",
}

readonly_paths := {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

# Device rules of containerd's default: null, zero, full, random, urandom, tty, console, ptmx, terminals, tun.
device_numbers := {
	[1, 3], [1, 5], [1, 7], [1, 8], [1, 9], [5, 0], [5, 1], [5, 2], [136, -1], [10, 200],
}

default_device(rule) if not rule.Allow

default_device(rule) if {
	rule.Type == "c"
	[rule.Major, rule.Minor] in device_numbers
}

# Making a node gives no access to what it stands for.
default_device(rule) if {
	rule.Type in {"b", "c"}
	rule.Access == "m"
}

violations contains {"rule": "storage drivers", "field": sprintf("storages[%d].driver", [i]), "value": storage.driver} if {
	some i
	storage := input.storages[i]
	not storage.driver in drivers
}

violations contains {"rule": "places of storages", "field": sprintf("storages[%d].mount_point", [i]), "value": storage.mount_point} if {
	some i
	storage := input.storages[i]
	not storage_place(storage)
}

storage_place(storage) if {
	storage.driver == "image_guest_pull"
	storage.mount_point == input.OCI.Root.Path
}

storage_place(storage) if {
	storage.driver != "image_guest_pull"
	startswith(storage.mount_point, "/run/kata-containers/sandbox/")
	not contains(storage.mount_point, "..")
}

# The agent takes an option as a whole, as the rules below do; one that is two is refused by both.
violations contains {"rule": "one option at a time", "field": sprintf("storages[%d].options", [i]), "value": option} if {
	some i, j
	option := input.storages[i].options[j]
	contains(option, ",")
}

violations contains {"rule": "one option at a time", "field": sprintf("OCI.Mounts[%d].options", [i]), "value": option} if {
	some i, j
	option := input.OCI.Mounts[i].options[j]
	contains(option, ",")
}

violations contains {"rule": "no hooks", "field": sprintf("OCI.Hooks.%s", [kind]), "value": hooks} if {
	some kind
	hooks := input.OCI.Hooks[kind]
	count(hooks) > 0
}

violations contains {"rule": "no host devices", "field": sprintf("devices[%d]", [i]), "value": device} if {
	some i
	device := input.devices[i]
}

violations contains {"rule": "no devices", "field": sprintf("OCI.Linux.Devices[%d]", [i]), "value": device} if {
	some i
	device := input.OCI.Linux.Devices[i]
}

violations contains {"rule": "device rules", "field": sprintf("OCI.Linux.Resources.Devices[%d]", [i]), "value": rule} if {
	some i
	rule := input.OCI.Linux.Resources.Devices[i]
	not default_device(rule)
}

violations contains {"rule": "capabilities", "field": sprintf("OCI.Process.Capabilities.%s", [set]), "value": capability} if {
	some set, i
	capability := input.OCI.Process.Capabilities[set][i]
	not capability in capabilities
}

violations contains {"rule": "kernel parameters", "field": "OCI.Linux.Sysctl", "value": name} if {
	some name, _ in input.OCI.Linux.Sysctl
	not name in sysctls
}

violations contains {"rule": "masked paths", "field": "OCI.Linux.MaskedPaths", "value": missing} if {
	input.OCI
	missing := masked_paths - {path | some path in input.OCI.Linux.MaskedPaths}
	count(missing) > 0
}

violations contains {"rule": "read-only paths", "field": "OCI.Linux.ReadonlyPaths", "value": missing} if {
	input.OCI
	missing := readonly_paths - {path | some path in input.OCI.Linux.ReadonlyPaths}
	count(missing) > 0
}

# A call that is not made and reported as done: a program would go on with privileges that it believes dropped.
violations contains {"rule": "seccomp answers truly", "field": sprintf("OCI.Linux.Seccomp.Syscalls[%d]", [i]), "value": call.Names} if {
	some i
	call := input.OCI.Linux.Seccomp.Syscalls[i]
	call.errnoret == 0
}

violations contains {"rule": "mount types", "field": sprintf("OCI.Mounts[%d].type_", [i]), "value": mount.type_} if {
	some i
	mount := input.OCI.Mounts[i]
	not is_bind(mount)
	not kernel_filesystems[mount.type_]
}

violations contains {"rule": "mount types", "field": sprintf("OCI.Mounts[%d].type_", [i]), "value": mount.type_} if {
	some i
	mount := input.OCI.Mounts[i]
	is_bind(mount)
	not mount.type_ in bind_types
}

violations contains {"rule": "mount destinations", "field": sprintf("OCI.Mounts[%d].destination", [i]), "value": mount.destination} if {
	some i
	mount := input.OCI.Mounts[i]
	not is_bind(mount)
	not mount.destination in kernel_filesystems[mount.type_]
}

violations contains {"rule": "bind sources", "field": sprintf("OCI.Mounts[%d].source", [i]), "value": mount.source} if {
	some i
	mount := input.OCI.Mounts[i]
	is_bind(mount)
	not from_guest(mount.source)
}

violations contains {"rule": "bind destinations", "field": sprintf("OCI.Mounts[%d].destination", [i]), "value": mount.destination} if {
	some i
	mount := input.OCI.Mounts[i]
	is_bind(mount)
	startswith(mount.source, copied_files)
	not bind_place(mount)
}

bind_place(mount) if mount.destination in host_file_places

bind_place(mount) if startswith(mount.destination, "/var/run/secrets/kubernetes.io/")

violations contains {"rule": "bind destinations", "field": sprintf("OCI.Mounts[%d].destination", [i]), "value": mount.destination} if {
	some i
	mount := input.OCI.Mounts[i]
	is_bind(mount)
	mount.source == shared_memory.source
	mount.destination != shared_memory.destination
}

violations contains {"rule": "no shared mounts", "field": "shared_mounts", "value": input.shared_mounts} if {
	count(input.shared_mounts) > 0
}

violations contains {"rule": "root in the bundle", "field": "OCI.Root.Path", "value": input.OCI.Root.Path} if {
	input.OCI.Root.Path != sprintf("/run/kata-containers/%s/rootfs", [input.container_id])
}

violations contains {"rule": "root is a pulled image", "field": "storages", "value": input.storages} if {
	input.OCI
	not pulled_root
}

violations contains {"rule": "no guest hooks", "field": "guest_hook_path", "value": input.guest_hook_path} if {
	input.guest_hook_path != ""
}

violations contains {"rule": "no kernel modules", "field": "kernel_modules", "value": input.kernel_modules} if {
	count(input.kernel_modules) > 0
}

violations contains {"rule": "loopback is the guest's", "field": "interface.name", "value": input.interface.name} if {
	input.interface.name == "lo"
}

violations contains {"rule": "loopback is the guest's", "field": sprintf("routes.Routes[%d]", [i]), "value": route} if {
	some i
	route := input.routes.Routes[i]
	loopback_route(route)
}

loopback_route(route) if route.device == "lo"

loopback_route(route) if startswith(route.dest, "127.")

from_guest(source) if source == shared_memory.source

from_guest(source) if {
	startswith(source, copied_files)
	not contains(source, "..")
}

pulled_root if {
	some i
	storage := input.storages[i]
	storage.driver == "image_guest_pull"
	storage.mount_point == input.OCI.Root.Path
}

# The second question about a container: its image is there, and the input names what the image itself says
# (`image`: reference, manifest_digest, args, env, cwd, user, and uid, gid, groups by its own /etc/passwd) beside what
# is about to run (`process`: Args, Env, Cwd, User).
RunImageRequest if count(image_violations) == 0

# Programs, with their arguments. A pod's own copy of this file may add: `programs contains ["app", "--once"]`.
programs contains input.image.args

# Variables, as NAME=value: the image's own. A pod's own copy may add.
environment contains entry if some entry in input.image.env

# The search path that container runtimes give to an image which has none.
environment contains "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" if not image_names["PATH"]

image_names contains split(entry, "=")[0] if some entry in input.image.env

# Variables that Kubernetes and terminals need and whose values the host may choose: names and numbers that no loader,
# shell or language runtime acts on. LD_*, PATH, HOME, IFS, ENV, *_OPTIONS, PYTHON* and the like are not among them. Where
# a service is reached decides nothing that the host does not decide anyway: it carries the network.
host_variables := {
	`^HOSTNAME$`: `^[A-Za-z0-9.-]{0,253}$`,
	`^TERM$`: `^[A-Za-z0-9+_.-]{0,64}$`,
	`^[A-Z][A-Z0-9_]*_SERVICE_HOST$`: `^[A-Za-z0-9.:-]{0,253}$`,
	`^[A-Z][A-Z0-9_]*_SERVICE_PORT(_[A-Z0-9_]+)?$`: `^[0-9]{0,5}$`,
	`^[A-Z][A-Z0-9_]*_PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$`: `^[a-z0-9:./\[\]-]{0,253}$`,
}

# An image that sets one of these itself has decided.
host_variable(entry) if {
	name := split(entry, "=")[0]
	not image_names[name]
	not startswith(name, "LD_")
	some names, values in host_variables
	regex.match(names, name)
	regex.match(values, substring(entry, count(name) + 1, -1))
}

image_violations contains {"rule": "the image's own program", "field": "process.Args", "value": input.process.Args} if {
	not input.process.Args in programs
}

image_violations contains {"rule": "the image's own environment", "field": sprintf("process.Env[%d]", [i]), "value": entry} if {
	some i
	entry := input.process.Env[i]
	not entry in environment
	not host_variable(entry)
}

image_violations contains {"rule": "the image's own folder", "field": "process.Cwd", "value": input.process.Cwd} if {
	input.process.Cwd != input.image.cwd
}

image_violations contains {"rule": "the image's own user", "field": "process.User", "value": input.process.User} if {
	not image_user
}

image_violations contains {"rule": "the image's own groups", "field": sprintf("process.User.AdditionalGids[%d]", [i]), "value": group} if {
	some i
	group := input.process.User.AdditionalGids[i]
	group != input.image.gid
	not group in input.image.groups
}

# A name is looked up in the image's own files, and wins over numbers.
image_user if {
	input.process.User.Username != ""
	input.process.User.Username == input.image.user
}

image_user if {
	input.process.User.Username == ""
	input.process.User.UID == input.image.uid
	input.process.User.GID == input.image.gid
}

checked := {"CreateSandboxRequest", "CreateContainerRequest", "UpdateInterfaceRequest", "UpdateRoutesRequest"}

advice := "a pod that needs it brings a policy.rego in its init-data; start from `kata-cc policy show agent`"

# Read by the agent after a denial.
explain contains object.union(violation, {"advice": advice}) if {
	input.request_name in checked
	some violation in violations
}

explain contains object.union(violation, {"advice": advice}) if {
	input.request_name == "RunImageRequest"
	some violation in image_violations
}

explain contains {"rule": "no standard input", "field": "container_id", "value": input.container_id, "advice": advice} if {
	input.request_name == "WriteStreamRequest"
}
