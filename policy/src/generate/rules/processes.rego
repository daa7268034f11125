# ---- RunImage: what the image says beside what is about to run ------------------------------------------------------

image_violations contains {"rule": "containers of the pod", "field": "container_id", "value": object.get(input, "container_id", null), "allowed": "a container that was allowed"} if {
	not known_name
}

image_violations contains {"rule": "image digest", "field": "image.manifest_digest", "value": object.get(input.image, "manifest_digest", null), "allowed": named(known_name).image.digests} if {
	not input.image.manifest_digest in named(known_name).image.digests
}

image_violations contains {"rule": "command", "field": "process.Args", "value": input.process.Args, "allowed": "what CreateContainer named"} if {
	count(input.process.Args) == 0
}

image_violations contains {"rule": "user of the image", "field": "process.User.UID", "value": input.process.User.UID, "allowed": input.image.uid} if {
	named(known_name).user.uid == null
	input.process.User.UID != input.image.uid
}

image_violations contains {"rule": "user of the image", "field": "process.User.GID", "value": input.process.User.GID, "allowed": input.image.gid} if {
	named(known_name).user.gid == null
	not image_group
}

image_group if {
	input.process.User.UID == input.image.uid
	input.process.User.GID == input.image.gid
}

# A user that the pod names and the image does not know has group 0.
image_group if {
	named(known_name).user.uid != null
	input.process.User.UID != input.image.uid
	input.process.User.GID == 0
}

image_violations contains {"rule": "groups of the image", "field": sprintf("process.User.AdditionalGids[%d]", [i]), "value": group, "allowed": named(known_name).user.groups} if {
	some i
	group := input.process.User.AdditionalGids[i]
	not group in named(known_name).user.groups
	group != input.process.User.GID
	not own_group(group)
}

own_group(group) if {
	input.process.User.UID == input.image.uid
	group in input.image.groups
}

own_group(group) if {
	input.process.User.UID == input.image.uid
	group == input.image.gid
}

# ---- ExecProcess ----------------------------------------------------------------------------------------------------

exec_violations contains {"rule": "containers of the pod", "field": "container_id", "value": object.get(input, "container_id", null), "allowed": "a container that was allowed"} if {
	not known_name
}

exec_violations contains {"rule": "commands", "field": "process.Args", "value": input.process.Args, "allowed": named(known_name).exec} if {
	not exec_command(input.process.Args)
}

exec_command(args) if {
	policy_data.open.exec
	count(args) > 0
}

exec_command(args) if {
	some command in named(known_name).exec
	command.args == args
}

# `kubectl cp` runs tar at the other end.
exec_command(args) if {
	policy_data.open.copy
	some begin in [["tar", "cf", "-"], ["tar", "xmf", "-"], ["tar", "-xmf", "-"], ["tar", "xf", "-"]]
	array.slice(args, 0, 3) == begin
}

exec_violations contains {"rule": "terminal", "field": "process.Terminal", "value": true, "allowed": false} if {
	input.process.Terminal
	not policy_data.open.exec
	not named(known_name).terminal
}

exec_violations contains {"rule": "environment", "field": "process.Env", "value": problem.entry, "allowed": problem.allowed} if {
	some problem in env_problems(known_name, named(known_name), variables_to_look_at, input.process.Env)
}

exec_violations contains object.union(problem, {"field": concat(".", ["process", problem.field])}) if {
	not rights_as_created
	some problem in process_problems(named(known_name), input.process)
}

exec_violations contains {"rule": "users by number", "field": "string_user", "value": input.string_user, "allowed": null} if {
	input.string_user != null
}

exec_violations contains {"rule": "streams", "field": field, "value": input[field], "allowed": 0} if {
	not exec_streams_open
	some field in ["stdin_port", "stdout_port", "stderr_port"]
	input[field] > 0
}

# ---- processes ------------------------------------------------------------------------------------------------------

set_of(list) := {item | some item in list}

own_entries(of, name) := [own | some own, _ in of.env; startswith(own, concat("", [name, "="]))]

# Entries that are neither the container's own nor of those whose values only the running pod knows: of `looked_at`, which is all `entries`
# or the end of them.
env_problems(name_of, of, looked_at, entries) := {{"entry": entry, "allowed": allowed} |
	known := variables_known(name_of)
	some entry in looked_at
	not of.env[entry]
	not known[entry]
	name := substring(entry, 0, indexof(entry, "="))
	not run_time_entry(of, entry, name)
	not overridden(of, entries, entry, name)
	allowed := object.get(of.env_at_run_time, name, own_entries(of, name))
}

# Those that were looked at in another container, unless this one has a variable of such a name.
variables_known(name_of) := known_variables if {
	strings.any_prefix_match(object.keys(known_variables), own_begins[name_of]) == false
} else := {}

# How each container's own variables begin.
own_begins := {name_of: begins |
	some name_of, of in policy_data.containers
	begins := array.concat(
		[substring(entry, 0, indexof(entry, "=") + 1) | some entry, _ in of.env],
		[concat("", [name, "="]) | some name, _ in of.env_at_run_time],
	)
}

# containerd leaves the image's entry before the pod's of the same name. The last of a name is what a program sees (the agent gives it no
# other, as runc does), and that one is looked at by itself.
overridden(of, entries, entry, name) if {
	entry in of.env_overridden
	begin := concat("", [name, "="])
	same := [other | some other in entries; startswith(other, begin)]
	same[count(same) - 1] != entry
}

run_time_entry(of, entry, name) if {
	of.env_at_run_time[name]
	value_is(of.env_at_run_time[name], substring(entry, count(name) + 1, -1))
} else if {
	# What Kubernetes and terminals add: names that no loader, shell or language runtime acts on, and only where the container has no
	# entry of that name.
	not of.env_at_run_time[name]
	not of.env[name]
	strings.any_prefix_match(object.keys(of.env), concat("", [name, "="])) == false
	added_entry(entry, name)
}

added_entry(entry, name) if {
	of_service(entry)
} else if {
	name == "HOSTNAME"
	value_is(policy_data.pod.hostname, substring(entry, 9, -1))
} else if {
	name == "TERM"
	value_is({"is": "word"}, substring(entry, 5, -1))
} else if {
	# Of a runtime's own, where the image has none.
	entry == "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

of_service(entry) if {
	regex.match(service_form, entry)
	not startswith(entry, "LD_")
}

# A variable that says where a service is: of the cluster's own, or of any where the pod asks for them.
service_form := `^(KUBERNETES_(SERVICE_|PORT)[A-Z0-9_]*|[A-Z0-9_]*(_SERVICE_HOST|_SERVICE_PORT[A-Z0-9_]*|_PORT|_PORT_([A-Z0-9_]*_)?(TCP|UDP|SCTP|PROTO|PORT|ADDR)))=[a-z0-9.:/\[\]-]*$` if {
	policy_data.pod.service_variables
} else := `^KUBERNETES_(SERVICE_|PORT)[A-Z0-9_]*=[a-z0-9.:/\[\]-]*$`

# User, capabilities and privileges, of a container or of a command in it.
process_problems(of, process) := user_problems(of, process.User) | right_problems(of, process)

user_problems(of, user) := {problem |
	of.user.uid != null
	user.UID != of.user.uid
	problem := {"rule": "user", "field": "User.UID", "value": user.UID, "allowed": of.user.uid}
} | {problem |
	of.user.gid != null
	user.GID != of.user.gid
	not group_zero(of, user)
	problem := {"rule": "user", "field": "User.GID", "value": user.GID, "allowed": of.user.gid}
} | {problem |
	of.user.not_root
	user.UID == 0
	problem := {"rule": "user", "field": "User", "value": user.UID, "allowed": "not 0"}
} | {problem |
	user.Username != ""
	problem := {"rule": "users by number", "field": "User.Username", "value": user.Username, "allowed": ""}
}

# Of an image's "user:group" Kubernetes hands on the user alone; a runtime that does not know the user takes group 0.
group_zero(of, user) if {
	of.user.gid_or_zero
	user.GID == 0
}

right_problems(of, process) := {problem |
	of.no_new_privileges
	not process.NoNewPrivileges
	problem := {"rule": "no new privileges", "field": "NoNewPrivileges", "value": process.NoNewPrivileges, "allowed": true}
} | {problem |
	# None, or as the policy lists them: known at a glance. Ambient ones are looked at.
	known := {[], of.capabilities}
	some kind in ["Bounding", "Effective", "Inheritable", "Permitted"]
	not sort(process.Capabilities[kind]) in known
	problem := capability_problem(of, kind, process.Capabilities[kind])
} | {problem |
	process.Capabilities.Ambient != []
	problem := capability_problem(of, "Ambient", process.Capabilities.Ambient)
}

capability_problem(of, kind, list) := {"rule": "capabilities", "field": concat(".", ["Capabilities", kind]), "value": list, "allowed": of.capabilities} if {
	is_array(list) == false
} else := {"rule": "capabilities", "field": concat(".", ["Capabilities", kind]), "value": wrong, "allowed": of.capabilities} if {
	others := set_of(list) - capabilities_of(of, kind)
	count(others) > 0
	wrong := {single(name) | some name in others} - capabilities_of(of, kind)
	count(wrong) > 0
}

# Where a manifest says CAP_ itself, containerd says it once more.
single(name) := concat("", ["CAP_", trim_prefix(trim_prefix(name, "CAP_"), "CAP_")])

# Ambient ones would outlive a change of user.
capabilities_of(of, kind) := set_of(of.capabilities) if kind != "Ambient"

capabilities_of(of, kind) := set_of(of.capabilities) if {
	kind == "Ambient"
	of.privileged
}

capabilities_of(of, kind) := set() if {
	kind == "Ambient"
	not of.privileged
}

# ---- values that only the running pod knows -------------------------------------------------------------------------

characters := {
	"ip": "0123456789abcdefABCDEF:.,",
	"number": "0123456789",
	"name": "abcdefghijklmnopqrstuvwxyz0123456789-.",
	"id": "0123456789abcdefABCDEF-",
	"word": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+_.-",
}

value_is(rule, value) if {
	value == rule.exactly
} else if {
	not rule.begins
	trim(value, characters[rule.is]) == ""
	count(value) < 254
} else if {
	startswith(value, rule.begins)
	trim(trim_prefix(value, rule.begins), characters[rule.is]) == ""
	count(value) < 254
} else if {
	regex.match(rule.matches, value)
} else if {
	# The host decides, as it does on the object that the value comes from.
	rule.is == "any"
	is_string(value)
}
