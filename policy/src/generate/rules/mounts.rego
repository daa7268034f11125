# ---- mounts ---------------------------------------------------------------------------------------------------------

# File systems of the guest's kernel, and where they may be.
kernel_filesystems := {
	"proc": {"/proc"},
	"sysfs": {"/sys"},
	"tmpfs": {"/dev", "/dev/shm"},
	"devpts": {"/dev/pts"},
	"mqueue": {"/dev/mqueue"},
	"cgroup": {"/sys/fs/cgroup"},
	"cgroup2": {"/sys/fs/cgroup"},
}

# Of these a container that is not privileged must not have a writable one.
read_only_filesystems := {"sysfs", "cgroup", "cgroup2"}

# Files that a runtime makes for every container.
pod_files := {
	"/etc/hosts": {"kind": "files", "read_only": false},
	"/etc/hostname": {"kind": "files", "read_only": false},
	"/etc/resolv.conf": {"kind": "files", "read_only": false},
}

shared_folder := "/run/kata-containers/shared/containers/"

sandbox_folder := "/run/kata-containers/sandbox/"

# Most mounts are known at a glance: those of the kernel's that every containerd makes in the same form, and files and memory that are bound
# in a usual way. The rest is looked at by its parts.
mounts_to_look_at := {mount |
	some mount in mounts.others
	not usual_bind(mount, object.get(container.mounts, mount.destination, object.get(pod_files, mount.destination, {})))
	not usual_memory(mount)
}

kernel_mounts := [
	{"destination": "/proc", "type_": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
	{"destination": "/dev", "type_": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
	{"destination": "/dev/pts", "type_": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
	{"destination": "/dev/mqueue", "type_": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
	{"destination": "/sys", "type_": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
	{"destination": "/sys/fs/cgroup", "type_": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
]

kernel_places := {"/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup"}

# They come first and in this order. Where a container has a mount of its own at one of their places, that one counts.
mounts := {"known": kernel_places, "others": array.slice(input.OCI.Mounts, 6, count(input.OCI.Mounts))} if {
	array.slice(input.OCI.Mounts, 0, 6) == kernel_mounts
	object.filter(container.mounts, kernel_places) == {}
} else := {"known": set(), "others": input.OCI.Mounts}

# Memory that the pod's containers share, in the form that this project's shim gives it.
usual_memory(mount) if {
	mount == {"destination": "/dev/shm", "type_": "bind", "source": shared_memory, "options": ["rbind", "rprivate", "rw"]}
	not container.mounts["/dev/shm"]
}

# Options of a bind in a usual way: whether it must be read-only, or need not.
bind_options := {
	true: {["rbind", "rprivate", "ro"], ["rbind", "ro"], ["rbind", "ro", "nosuid", "nodev", "noexec"]},
	false: {
		["rbind", "rprivate", "ro"], ["rbind", "ro"], ["rbind", "ro", "nosuid", "nodev", "noexec"],
		["rbind", "rprivate", "rw"], ["rbind", "rw"],
	},
}

usual_bind(mount, declared) if {
	declared.kind == "files"
	mount.type_ == "bind"
	mount.options in bind_options[declared.read_only]
	startswith(mount.source, shared_folder)
	name := trim_prefix(mount.source, shared_folder)
	not contains(name, "/")
	not contains(name, "..")
	name != ""
} else if {
	declared.kind == "scratch"
	mount.type_ == "bind"
	mount.options in bind_options[declared.read_only]
	scratch_place(mount.source, declared.volume)
}

is_bind(mount) if {
	mount.type_ == "bind"
} else if {
	"rbind" in mount.options
} else if {
	"bind" in mount.options
}

plain_options(mount) if {
	not contains(concat("", mount.options), ",")
	not "remount" in mount.options
	not "move" in mount.options
}

# containerd leaves the slash at the end of a path as the manifest has it.
place(mount) := trim_right(mount.destination, "/")

# containerd 1.6 puts the sandbox's shared memory over memory of the pause container's own.
memory_twice(path) if {
	path == "/dev/shm"
	not container.mounts[path]
}

# One that the pod declares.
mount_matches(mount) if {
	declared := container.mounts[place(mount)]
	plain_options(mount)
	source_matches(declared, mount)
	written_matches(declared, mount)
	propagation_matches(declared, mount)
} else if {
	# One of the kernel's.
	not container.mounts[place(mount)]
	mount.destination in kernel_filesystems[mount.type_]
	not is_bind(mount)
	plain_options(mount)
	kernel_filesystem_closed(mount)
} else if {
	# A file of the pod.
	not container.mounts[place(mount)]
	pod_files[mount.destination]
	bind_type(mount)
	plain_options(mount)
	copied(mount.source)
} else if {
	# Memory that the pod's containers share.
	not container.mounts["/dev/shm"]
	mount.destination == "/dev/shm"
	bind_type(mount)
	plain_options(mount)
	mount.source == shared_memory
}

kernel_filesystem_closed(mount) if {
	not mount.type_ in read_only_filesystems
} else if {
	"ro" in mount.options
} else if {
	container.privileged
	is_string(mount.destination)
} else if {
	# The pause container of a pod with a privileged one.
	container.kind == "sandbox"
	container.unmasked
	is_string(mount.destination)
}

bind_type(mount) if {
	is_bind(mount)
	mount.type_ in {"bind", "none", ""}
}

mount_allowed(mount) := container.mounts[place(mount)]

mount_allowed(mount) := "no mount there" if not container.mounts[place(mount)]

written_matches(declared, mount) if not declared.read_only

written_matches(declared, mount) if {
	"ro" in mount.options
	not "rw" in mount.options
}

propagation_matches(declared, mount) if {
	declared.shared_propagation
} else if {
	not "shared" in mount.options
	not "rshared" in mount.options
}

# Copied into the guest by the host, which chooses what is in it.
copied(source) if {
	startswith(source, shared_folder)
	name := trim_prefix(trim_prefix(trim_prefix(source, shared_folder), "passthrough/"), "watchable/")
	not contains(name, "/")
	not contains(name, "..")
	name != ""
}

source_matches(declared, mount) if {
	declared.kind in {"files", "host", "claim", "image-volume"}
	bind_type(mount)
	copied(mount.source)
} else if {
	declared.sub_path
	bind_type(mount)
	copied(mount.source)
} else if {
	# Made in the guest: nobody but the pod's containers has written there.
	declared.kind == "scratch"
	mount.type_ in {"bind", "none", "", "local", "ephemeral"}
	scratch_place(mount.source, declared.volume)
} else if {
	# The shim of this project gives the sandbox's memory for whatever is to be there.
	declared.kind == "scratch"
	place(mount) == "/dev/shm"
	bind_type(mount)
	mount.source == shared_memory
} else if {
	declared.kind == "image-volume"
	bind_type(mount)
	startswith(mount.source, sandbox_folder)
	not contains(mount.source, "..")
} else if {
	declared.kind == "scratch"
	declared.memory
	mount.type_ == "tmpfs"
	not is_bind(mount)
} else if {
	declared.kind == "claim"
	bind_type(mount)
	startswith(mount.source, concat("", [sandbox_folder, "storage/"]))
	not contains(mount.source, "..")
} else if {
	# A device or a file system of the guest's own kernel, by the name that the host has for its own.
	declared.kind == "host"
	bind_type(mount)
	mount.source == declared.path
	some begin in ["/dev/", "/sys/", "/proc/"]
	startswith(mount.source, begin)
	not contains(mount.source, "..")
}

scratch_place(path, volume) if {
	startswith(path, sandbox_folder)
	endswith(path, concat("", ["/", volume]))
	not contains(path, "..")
} else if {
	startswith(path, shared_folder)
	endswith(path, concat("", ["/rootfs/local/", volume]))
	not contains(path, "..")
} else if {
	# A disk that the host's runtime made for an emptyDir: its name is the kubelet's path of the volume.
	place := concat("", [sandbox_folder, "storage/"])
	startswith(path, place)
	endswith(base64url.decode(trim_prefix(path, place)), concat("", ["/kubernetes.io~empty-dir/", volume]))
}

storage_matches(storage) if {
	storage.driver in {"ephemeral", "local"}
	not contains(concat("", storage.options), ",")
	some _, declared in container.mounts
	declared.kind == "scratch"
	scratch_place(storage.mount_point, declared.volume)
}

storage_matches(storage) if sandbox_storage(storage)

storage_matches(storage) if {
	storage.driver in {"blk", "mmioblk", "scsi"}
	some _, declared in container.mounts
	declared.kind == "claim"
	startswith(storage.mount_point, concat("", [sandbox_folder, "storage/"]))
	not contains(storage.mount_point, "..")
}
