# Policy of a confidential guest that no init-data overrides. It lies in the measured initramfs.
#
# The host may drive the life of a sandbox and its containers, and carry a program's input and output. It may not
# put files, programs or storage of its own making into the guest, run programs beside the one it started with
# (exec), change the guest's clock, entropy or packet filter, or replace this policy. A pod that needs more brings its
# own policy.rego in the init-data, which the launch measurement covers.
package agent_policy

import rego.v1

default AddARPNeighborsRequest := true
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
default WriteStreamRequest := true

CreateSandboxRequest if count(violations) == 0

CreateContainerRequest if count(violations) == 0

# Name resolution, host names and the like; where a container may see them is limited below.
CopyFileRequest if {
	startswith(input.path, "/run/kata-containers/shared/containers/")
	not contains(input.path, "..")
}

UpdateInterfaceRequest if count(violations) == 0

UpdateRoutesRequest if count(violations) == 0

# What memory, a pulled image, or an overlay of these can bring; a block device is the host's own making.
drivers := {"ephemeral", "local", "image_guest_pull"}

# Where a mount may come from: file systems of the kernel, and places that the guest itself filled.
kernel_filesystems := {"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}

guest_sources := [
	"/run/kata-containers/sandbox/",
	"/run/kata-containers/shared/containers/",
]

# Files that the host copied in may only be seen at these places: not over a program of the image.
host_file_places := {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"}

is_bind(mount) if mount.type_ == "bind"

is_bind(mount) if mount.options[_] in {"bind", "rbind"}

violations contains {"rule": "storage drivers", "field": sprintf("storages[%d].driver", [i]), "value": storage.driver} if {
	some i
	storage := input.storages[i]
	not storage.driver in drivers
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

violations contains {"rule": "no block devices", "field": sprintf("OCI.Linux.Devices[%d]", [i]), "value": device} if {
	some i
	device := input.OCI.Linux.Devices[i]
	device.Type == "b"
}

violations contains {"rule": "mount types", "field": sprintf("OCI.Mounts[%d].type_", [i]), "value": mount.type_} if {
	some i
	mount := input.OCI.Mounts[i]
	not is_bind(mount)
	not mount.type_ in kernel_filesystems
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
	startswith(mount.source, "/run/kata-containers/shared/containers/")
	not mount.destination in host_file_places
	not startswith(mount.destination, "/var/run/secrets/kubernetes.io/")
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

from_guest(source) if {
	some prefix in guest_sources
	startswith(source, prefix)
	not contains(source, "..")
}

pulled_root if {
	some i
	storage := input.storages[i]
	storage.driver == "image_guest_pull"
	storage.mount_point == input.OCI.Root.Path
}

checked := {"CreateSandboxRequest", "CreateContainerRequest", "UpdateInterfaceRequest", "UpdateRoutesRequest"}

# Read by the agent after a denial.
explain contains violation if {
	input.request_name in checked
	some violation in violations
}
