# ---- tables ---------------------------------------------------------------------------------------------------------

namespace_types := {"cgroup", "ipc", "mount", "network", "pid", "uts"}

own_namespaces := {
	{"Type": "cgroup", "Path": ""}, {"Type": "ipc", "Path": ""}, {"Type": "mount", "Path": ""},
	{"Type": "network", "Path": ""}, {"Type": "pid", "Path": ""}, {"Type": "uts", "Path": ""},
}

# As containerd names them where nothing is said of them: known at a glance.
usual_namespaces := [{"Type": "pid", "Path": ""}, {"Type": "ipc", "Path": ""}, {"Type": "uts", "Path": ""}, {"Type": "mount", "Path": ""}]

namespace_matches(namespace) if {
	namespace.Type in namespace_types
	namespace.Path == ""
}

namespace_matches(namespace) if {
	policy_data.pod.user_namespace
	namespace.Type == "user"
	namespace.Path == ""
}

# Safe ones that runtimes set for every pod.
sysctl_matches(name, value) if {
	is_string(value)
	name in {"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range"}
	not policy_data.pod.sysctls[name]
}

sysctl_matches(name, value) if policy_data.pod.sysctls[name] == value

masked_paths := {
	"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
	"/proc/timer_list", "/proc/timer_stats", "/sys/firmware",
}

readonly_paths := {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

# null, zero, full, random, urandom, tty, console, ptmx, terminals, tun
device_numbers := {[1, 3], [1, 5], [1, 7], [1, 8], [1, 9], [5, 0], [5, 1], [5, 2], [136, -1], [10, 200]}

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

# ---- files, limits, routes ------------------------------------------------------------------------------------------

copy_violations contains {"rule": "copied files", "field": "path", "value": object.get(input, "path", null), "allowed": shared_folder} if {
	not copy_path
}

copy_path if {
	startswith(input.path, shared_folder)
	not ".." in split(input.path, "/")
}

copy_violations contains {"rule": "copied files", "field": "file_type", "value": object.get(input, "file_type", null), "allowed": ["Regular", "Directory", "Symlink"]} if {
	not input.file_type in {"Regular", "Directory", "Symlink"}
}

copy_violations contains {"rule": "copied links", "field": "symlink_target", "value": object.get(input, "symlink_target", null), "allowed": "a relative path without .."} if {
	input.file_type == "Symlink"
	not link_inside
}

link_inside if {
	not startswith(input.symlink_target, "/")
	not ".." in split(input.symlink_target, "/")
}

update_violations contains {"rule": "limits only", "field": concat(".", ["resources", field]), "value": value, "allowed": "none"} if {
	some field in ["Network", "BlockIO"]
	value := input.resources[field]
	value != null
}

update_violations contains {"rule": "limits only", "field": "resources.Devices", "value": input.resources.Devices, "allowed": "a list"} if {
	is_array(input.resources.Devices) == false
}

# containerd repeats the device rules that the container was made with.
update_violations contains {"rule": "limits only", "field": "resources.Devices", "value": rule, "allowed": "null, zero, random, terminals"} if {
	not named(known_name).privileged
	count(named(known_name).devices) == 0
	some rule in input.resources.Devices
	not default_device(rule)
}

route_violations contains {"rule": "loopback is the guest's", "field": sprintf("routes.Routes[%d]", [i]), "value": route, "allowed": "another device"} if {
	some i
	route := input.routes.Routes[i]
	loopback_route(route)
}

loopback_route(route) if route.device == "lo"

loopback_route(route) if startswith(route.dest, "127.")

loopback_route(route) if startswith(route.source, "127.")

# ---- the words of a denial ------------------------------------------------------------------------------------------

# Read by the agent after a denial.
explain contains violation if {
	input.request_name == "CreateSandboxRequest"
	some violation in sandbox_violations
}

explain contains violation if {
	input.request_name == "CreateContainerRequest"
	some violation in create_violations
}

explain contains violation if {
	input.request_name == "RunImageRequest"
	some violation in image_violations
}

explain contains violation if {
	input.request_name == "ExecProcessRequest"
	some violation in exec_violations
}

explain contains violation if {
	input.request_name == "CopyFileRequest"
	some violation in copy_violations
}

explain contains violation if {
	input.request_name == "UpdateContainerRequest"
	some violation in update_violations
}

explain contains violation if {
	input.request_name == "UpdateRoutesRequest"
	some violation in route_violations
}

explain contains {"rule": "open requests", "field": "container_id", "value": input.container_id, "allowed": "nothing: this request is closed by the policy"} if {
	input.request_name in {"ReadStreamRequest", "WriteStreamRequest", "PauseContainerRequest", "ResumeContainerRequest", "StartContainerRequest", "CloseStdinRequest"}
}
