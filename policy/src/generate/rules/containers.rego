# ---- CreateContainer ------------------------------------------------------------------------------------------------

# What the rules below look at is there: they say what is wrong with it, and a rule about nothing says nothing.
well_formed if {
	is_array(input.storages)
	is_array(input.devices)
	is_array(input.OCI.Mounts)
	is_object(input.OCI.Annotations)
	is_string(input.OCI.Root.Path)
	is_array(input.OCI.Process.Args)
	is_array(input.OCI.Process.Env)
	is_string(input.OCI.Process.Cwd)
	input.OCI.Process.User.UID >= 0
	input.OCI.Process.User.GID >= 0
	is_object(input.OCI.Linux.Sysctl)
	is_array(input.OCI.Linux.Namespaces)
	is_array(input.OCI.Linux.MaskedPaths)
	is_array(input.OCI.Linux.ReadonlyPaths)
}

create_violations contains {"rule": "well formed", "field": "OCI", "value": null, "allowed": "a whole specification"} if {
	not well_formed
}

# Every rule below holds for the container that the request says it is; this one, when it is none of the pod's.
create_violations contains {"rule": "containers of the pod", "field": "OCI.Annotations", "value": object.get(annotations, "io.kubernetes.cri.container-name", null), "allowed": object.keys(policy_data.containers)} if {
	not container
}

create_violations contains {"rule": "one container, one name", "field": "container_id", "value": input.container_id, "allowed": known_name} if {
	known_name != container_name
}

create_violations contains {"rule": "containers of the sandbox", "field": "OCI.Annotations[\"io.kubernetes.cri.sandbox-id\"]", "value": id, "allowed": data.pstate.sandbox} if {
	id := annotations["io.kubernetes.cri.sandbox-id"]
	id != data.pstate.sandbox
}

create_violations contains {"rule": "namespace of the pod", "field": "OCI.Annotations[\"io.kubernetes.cri.sandbox-namespace\"]", "value": namespace, "allowed": policy_data.pod.namespace} if {
	namespace := annotations["io.kubernetes.cri.sandbox-namespace"]
	policy_data.pod.namespace != null
	namespace != policy_data.pod.namespace
}

# -- image

create_violations contains {"rule": "image", "field": sprintf("storages[%d].source", [i]), "value": object.get(storage, "source", null), "allowed": container.image.references} if {
	some i
	storage := input.storages[i]
	storage.driver == "image_guest_pull"
	not storage.source in container.image.references
}

create_violations contains {"rule": "root is the pulled image", "field": "storages", "value": roots, "allowed": input.OCI.Root.Path} if {
	roots := [storage.mount_point | some storage in input.storages; storage.driver == "image_guest_pull"]
	roots != [input.OCI.Root.Path]
}

create_violations contains {"rule": "root in the bundle", "field": "OCI.Root.Path", "value": input.OCI.Root.Path, "allowed": path} if {
	path := concat("", ["/run/kata-containers/", input.container_id, "/rootfs"])
	input.OCI.Root.Path != path
}

create_violations contains {"rule": "read-only root", "field": "OCI.Root.Readonly", "value": false, "allowed": true} if {
	container.read_only_root
	not input.OCI.Root.Readonly
}

# -- process (the pause program is the agent's own: what the host says of it, the agent overwrites)

create_violations contains {"rule": "command", "field": "OCI.Process.Args", "value": input.OCI.Process.Args, "allowed": container.args} if {
	container.kind != "sandbox"
	not args_match(input.OCI.Process.Args)
}

args_match(args) if args == container.args

args_match(args) if {
	patterns := container.args_at_run_time
	count(args) == count(container.args)
	every i, arg in args {
		arg_match(patterns, i, arg)
	}
}

arg_match(patterns, i, arg) if {
	not patterns[format_int(i, 10)]
	arg == container.args[i]
}

arg_match(patterns, i, arg) if value_is(patterns[format_int(i, 10)], arg)

create_violations contains {"rule": "terminal", "field": "OCI.Process.Terminal", "value": true, "allowed": false} if {
	input.OCI.Process.Terminal
	not container.terminal
}

create_violations contains {"rule": "folder", "field": "OCI.Process.Cwd", "value": input.OCI.Process.Cwd, "allowed": container.cwd} if {
	container.kind != "sandbox"
	input.OCI.Process.Cwd != container.cwd
}

create_violations contains {"rule": "environment", "field": "OCI.Process.Env", "value": problem.entry, "allowed": problem.allowed} if {
	container.kind != "sandbox"
	some problem in env_problems(container_name, container, input.OCI.Process.Env, input.OCI.Process.Env)
}

create_violations contains {"rule": "environment is whole", "field": "OCI.Process.Env", "value": null, "allowed": missing} if {
	container.kind != "sandbox"
	some missing, _ in object.remove(container.env, input.OCI.Process.Env)
}

create_violations contains object.union(problem, {"field": concat(".", ["OCI.Process", problem.field])}) if {
	some problem in process_problems(container, input.OCI.Process)
}

create_violations contains {"rule": "users by number", "field": "string_user", "value": input.string_user, "allowed": null} if {
	input.string_user != null
}

# -- mounts

mounted := mounts.known | places if {
	places := {mount.destination | some mount in mounts.others}
	strings.any_suffix_match(places, "/") == false
} else := mounts.known | {trim_right(mount.destination, "/") | some mount in mounts.others}

create_violations contains {"rule": "mounts", "field": sprintf("OCI.Mounts[%d]", [i]), "value": mount, "allowed": mount_allowed(mount)} if {
	some mount in mounts_to_look_at
	not mount_matches(mount)
	some i
	input.OCI.Mounts[i] == mount
}

create_violations contains {"rule": "mounts are whole", "field": "OCI.Mounts", "value": null, "allowed": {path: container.mounts[path]}} if {
	absent := object.keys(container.mounts) - mounted
	some path in absent
	container.mounts[path].required
}

create_violations contains {"rule": "one mount at a place", "field": "OCI.Mounts", "value": path, "allowed": "one"} if {
	count(mounted) != count(input.OCI.Mounts)
	some path in mounted
	count([1 | some other in input.OCI.Mounts; place(other) == path]) > 1
	not memory_twice(path)
}

create_violations contains {"rule": "storages", "field": sprintf("storages[%d]", [i]), "value": storage, "allowed": "the image, and volumes of the container"} if {
	some i
	storage := input.storages[i]
	storage.driver != "image_guest_pull"
	not storage_matches(storage)
}

create_violations contains {"rule": "no shared mounts", "field": "shared_mounts", "value": input.shared_mounts, "allowed": []} if {
	count(input.shared_mounts) > 0
}

# -- devices

create_violations contains {"rule": "devices", "field": sprintf("devices[%d]", [i]), "value": device, "allowed": container.devices} if {
	some i
	device := input.devices[i]
	not device.container_path in container.devices
}

create_violations contains {"rule": "devices", "field": sprintf("OCI.Linux.Devices[%d]", [i]), "value": device, "allowed": container.devices} if {
	some i
	device := input.OCI.Linux.Devices[i]
	not device.Path in container.devices
}

create_violations contains {"rule": "device rules", "field": sprintf("OCI.Linux.Resources.Devices[%d]", [i]), "value": rule, "allowed": "null, zero, random, terminals"} if {
	not container.privileged
	count(container.devices) == 0
	some i
	rule := input.OCI.Linux.Resources.Devices[i]
	not default_device(rule)
}

create_violations contains {"rule": "devices by annotation", "field": "OCI.Annotations", "value": key, "allowed": []} if {
	count(container.devices) == 0
	some key, _ in annotations
	startswith(key, "cdi.k8s.io/")
}

# -- what holds for every container

create_violations contains {"rule": "no hooks", "field": concat(".", ["OCI.Hooks", kind]), "value": hooks, "allowed": []} if {
	some kind
	hooks := input.OCI.Hooks[kind]
	count(hooks) > 0
}

create_violations contains {"rule": "host name", "field": "OCI.Hostname", "value": input.OCI.Hostname, "allowed": policy_data.pod.hostname} if {
	input.OCI.Hostname != ""
	not value_is(policy_data.pod.hostname, input.OCI.Hostname)
}

create_violations contains {"rule": "shared processes", "field": "sandbox_pidns", "value": true, "allowed": false} if {
	input.sandbox_pidns
	not policy_data.pod.share_processes
}

create_violations contains {"rule": "namespaces", "field": "OCI.Linux.Namespaces", "value": namespace, "allowed": namespace_types} if {
	input.OCI.Linux.Namespaces != usual_namespaces
	some namespace in input.OCI.Linux.Namespaces
	not namespace in own_namespaces
	not namespace_matches(namespace)
}

create_violations contains {"rule": "namespaces", "field": "OCI.Linux.Namespaces", "value": null, "allowed": "a mount namespace of its own"} if {
	input.OCI.Linux.Namespaces != usual_namespaces
	not own_mounts
}

own_mounts if {
	some namespace in input.OCI.Linux.Namespaces
	namespace.Type == "mount"
}

create_violations contains {"rule": "user namespace", "field": concat(".", ["OCI.Linux", field]), "value": input.OCI.Linux[field], "allowed": []} if {
	not policy_data.pod.user_namespace
	some field in ["UIDMappings", "GIDMappings"]
	count(input.OCI.Linux[field]) > 0
}

create_violations contains {"rule": "kernel parameters", "field": concat("", ["OCI.Linux.Sysctl[\"", name, "\"]"]), "value": value, "allowed": object.get(policy_data.pod.sysctls, name, null)} if {
	some name, value in input.OCI.Linux.Sysctl
	not sysctl_matches(name, value)
}

create_violations contains {"rule": "kernel parameters are whole", "field": concat("", ["OCI.Linux.Sysctl[\"", name, "\"]"]), "value": null, "allowed": value} if {
	container.kind == "sandbox"
	some name, value in policy_data.pod.sysctls
	not input.OCI.Linux.Sysctl[name]
}

create_violations contains {"rule": "masked paths", "field": "OCI.Linux.MaskedPaths", "value": null, "allowed": missing} if {
	not container.unmasked
	not object.subset(input.OCI.Linux.MaskedPaths, masked_paths)
	missing := masked_paths - set_of(input.OCI.Linux.MaskedPaths)
}

create_violations contains {"rule": "read-only paths", "field": "OCI.Linux.ReadonlyPaths", "value": null, "allowed": missing} if {
	not container.unmasked
	not object.subset(input.OCI.Linux.ReadonlyPaths, readonly_paths)
	missing := readonly_paths - set_of(input.OCI.Linux.ReadonlyPaths)
}

# A call that is not made and reported as done: a program would go on with privileges that it believes dropped.
create_violations contains {"rule": "seccomp answers truly", "field": sprintf("OCI.Linux.Seccomp.Syscalls[%d]", [i]), "value": call, "allowed": "an error number"} if {
	some i
	call := input.OCI.Linux.Seccomp.Syscalls[i]
	call.errnoret == 0
}

create_violations contains {"rule": "propagation", "field": "OCI.Linux.RootfsPropagation", "value": "shared", "allowed": ["private", "slave"]} if {
	input.OCI.Linux.RootfsPropagation in {"shared", "rshared"}
	not container.shared_propagation
}

create_violations contains {"rule": "streams", "field": "stdin_port", "value": input.stdin_port, "allowed": 0} if {
	input.stdin_port > 0
	not policy_data.open.stdin
}

create_violations contains {"rule": "streams", "field": field, "value": input[field], "allowed": 0} if {
	not policy_data.open.logs
	some field in ["stdout_port", "stderr_port"]
	input[field] > 0
}
