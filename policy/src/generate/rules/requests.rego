# ---------------------------------------------------------------------------------------------------------------------
# Rules. They are the same in every generated policy (version 1); what differs is `policy_data` above.
#
# A request that no rule names is denied. What the host may send is compared by what it means in the guest: annotations,
# versions and limits that change nothing there are not looked at, and the mounts that every runtime adds (/proc, /dev,
# /etc/hosts…) may come in any number and order.

default AddARPNeighborsRequest := false

default AddSwapPathRequest := false

default AddSwapRequest := false

default CloseStdinRequest := false

default CopyFileRequest := false

default CreateContainerRequest := {"allowed": false}

default CreateSandboxRequest := {"allowed": false}

default DestroySandboxRequest := true

default ExecProcessRequest := false

default GetDiagnosticDataRequest := false

default GetIPTablesRequest := false

default GetMetricsRequest := false

default GetOOMEventRequest := true

default GuestDetailsRequest := true

default ListInterfacesRequest := false

default ListRoutesRequest := false

default MemAgentCompactConfig := false

default MemAgentMemcgConfig := false

default MemHotplugByProbeRequest := false

default OnlineCPUMemRequest := true

default PauseContainerRequest := false

default ReadStreamRequest := false

default RemoveContainerRequest := {"allowed": true}

default RemoveStaleVirtiofsShareMountsRequest := true

default ReseedRandomDevRequest := false

default ResizeVolumeRequest := false

default ResumeContainerRequest := false

default RunImageRequest := false

default SecureMountRequest := false

default SetGuestDateTimeRequest := false

default SetIPTablesRequest := false

default SetPolicyRequest := false

default SignalProcessRequest := true

default StartContainerRequest := false

default StatsContainerRequest := true

default TtyWinResizeRequest := true

default UpdateContainerRequest := false

default UpdateEphemeralMountsRequest := false

default UpdateInterfaceRequest := false

default UpdateRoutesRequest := false

default VolumeStatsRequest := false

default WaitProcessRequest := true

default WriteStreamRequest := false

default AllowRequestsFailingPolicy := false

# ---- requests -------------------------------------------------------------------------------------------------------

CreateSandboxRequest := {
	"allowed": true,
	"ops": [{"op": "add", "path": "/pstate/sandbox", "value": input.sandbox_id}],
} if {
	is_string(input.sandbox_id)
	is_array(input.storages)
	count(sandbox_violations) == 0
}

CreateContainerRequest := {
	"allowed": true,
	"ops": array.concat(
		[{"op": "add", "path": concat("", ["/pstate/container ", input.container_id]), "value": container_name}],
		array.concat(process_remembered, variables_remembered),
	),
} if {
	container
	well_formed
	count(create_violations) == 0
}

# The image is known: its digest, and who its user is.
RunImageRequest if {
	known_name
	input.image.manifest_digest in named(known_name).image.digests
	input.process.User.UID >= 0
	input.process.User.GID >= 0
	count(image_violations) == 0
}

RemoveContainerRequest := {
	"allowed": true,
	"ops": [{"op": "remove", "path": concat("", ["/pstate/", what])} |
		some kind in ["container ", "process "]
		what := concat("", [kind, input.container_id])
		data.pstate[what]
	],
} if {
	known_name
}

StartContainerRequest if known_name

ExecProcessRequest if {
	known_name
	is_array(input.process.Args)
	is_array(input.process.Env)
	input.process.User.UID >= 0
	input.process.User.GID >= 0
	count(exec_violations) == 0
}

CopyFileRequest if {
	copy_path
	count(copy_violations) == 0
}

ReadStreamRequest if policy_data.open.logs

ReadStreamRequest if exec_stream

WriteStreamRequest if stdin_open

WriteStreamRequest if exec_stream

# No data: the input's end, which says nothing.
WriteStreamRequest if {
	known_name
	count(input.data) == 0
}

CloseStdinRequest if known_name

# Limits of processor, memory and processes: the host can starve a guest anyhow.
UpdateContainerRequest if {
	known_name
	count(update_violations) == 0
}

UpdateInterfaceRequest if {
	input.interface.name != "lo"
	input.interface.device != "lo"
}

UpdateRoutesRequest if {
	is_array(input.routes.Routes)
	count(route_violations) == 0
}

GetMetricsRequest if policy_data.open.metrics

VolumeStatsRequest if policy_data.open.metrics

PauseContainerRequest if policy_data.open.pause

ResumeContainerRequest if policy_data.open.pause

SecureMountRequest if {
	some volume in policy_data.secure_mounts
	input.volume_type == "block-device"
	input.options.key == volume.key
	input.mount_point == volume.mount_point
}

stdin_open if {
	policy_data.open.stdin
	named(known_name).stdin
}

# Streams of a command that was let in, where such commands are open.
exec_stream if {
	exec_streams_open
	known_name
	input.exec_id != ""
	input.exec_id != input.container_id
}

exec_streams_open if policy_data.open.exec

exec_streams_open if policy_data.open.copy

# ---- which container a request is about -----------------------------------------------------------------------------

annotations := input.OCI.Annotations

# The pod's pause container.
is_sandbox if annotations["io.kubernetes.cri.container-type"] == "sandbox"

is_sandbox if annotations["io.kubernetes.cri-o.ContainerType"] == "sandbox"

container_name := "(sandbox)" if {
	is_sandbox
} else := annotations["io.kubernetes.cri.container-name"] if {
	annotations["io.kubernetes.cri.container-name"]
} else := annotations["io.kubernetes.container.name"] if {
	annotations["io.kubernetes.container.name"]
}

named(name) := policy_data.sandbox if name == "(sandbox)"

named(name) := policy_data.containers[name] if name != "(sandbox)"

container := named(container_name)

# Set when the container was allowed to be created.
known_name := data.pstate[concat("", ["container ", input.container_id])]

# What of a container's process was looked at when it was created, for commands in it: those of the pause container are not looked at. Of
# much length it is not remembered, and looked at each time.
process_remembered := [{"op": "add", "path": concat("", ["/pstate/process ", input.container_id]), "value": process}] if {
	container.kind != "sandbox"
	count(concat("", input.OCI.Process.Env)) < 32768
	process := {
		"Env": input.OCI.Process.Env,
		"User": input.OCI.Process.User,
		"Capabilities": input.OCI.Process.Capabilities,
		"NoNewPrivileges": input.OCI.Process.NoNewPrivileges,
	}
} else := []

# Variables of services are the same in all containers of a pod. Those of the first are remembered: in the others they need not be looked at
# by their parts. Services that are made while the pod runs are looked at each time.
known_variables := data.pstate.variables if {
	data.pstate.variables
} else := entries if {
	entries := {entry: true |
		some entry in input.OCI.Process.Env
		regex.match(service_form, entry)
	}
	strings.any_prefix_match(object.keys(entries), "LD_") == false
}

variables_remembered := [{"op": "add", "path": "/pstate/variables", "value": known_variables}] if {
	not data.pstate.variables
	container.kind != "sandbox"
	count(known_variables) > 0
	count(known_variables) < 1000
} else := []

# What was looked at when the container was created.
created := data.pstate[concat("", ["process ", input.container_id])]

# A command with user and rights of the container's own process: what was allowed then is allowed again.
rights_as_created if {
	input.process.User == created.User
	input.process.Capabilities == created.Capabilities
	input.process.NoNewPrivileges == created.NoNewPrivileges
}

# Variables of a command that its container's own process did not have. They are behind those that it had, so none of these counts more than
# it did then.
variables_to_look_at := array.slice(input.process.Env, count(created.Env), count(input.process.Env)) if {
	array.slice(input.process.Env, 0, count(created.Env)) == created.Env
} else := input.process.Env

# ---- CreateSandbox --------------------------------------------------------------------------------------------------

sandbox_violations contains {"rule": "no guest hooks", "field": "guest_hook_path", "value": input.guest_hook_path, "allowed": ""} if {
	input.guest_hook_path != ""
}

sandbox_violations contains {"rule": "no kernel modules", "field": "kernel_modules", "value": input.kernel_modules, "allowed": []} if {
	count(input.kernel_modules) > 0
}

sandbox_violations contains {"rule": "one sandbox", "field": "sandbox_id", "value": input.sandbox_id, "allowed": data.pstate.sandbox} if {
	data.pstate.sandbox
}

sandbox_violations contains {"rule": "shared processes", "field": "sandbox_pidns", "value": true, "allowed": false} if {
	input.sandbox_pidns
	not policy_data.pod.share_processes
}

sandbox_violations contains {"rule": "host name", "field": "hostname", "value": input.hostname, "allowed": policy_data.pod.hostname} if {
	input.hostname != ""
	not value_is(policy_data.pod.hostname, input.hostname)
}

sandbox_violations contains {"rule": "storages of the sandbox", "field": sprintf("storages[%d]", [i]), "value": storage, "allowed": shared_memory} if {
	some i
	storage := input.storages[i]
	not sandbox_storage(storage)
}

shared_memory := "/run/kata-containers/sandbox/shm"

sandbox_storage(storage) if {
	storage.driver == "ephemeral"
	storage.mount_point == shared_memory
}
