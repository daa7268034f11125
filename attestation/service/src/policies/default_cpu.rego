# Default attestation policy for the CPU: compares claims with reference values.
#
# Start values: executables 33 (unknown software), hardware 97 (not what it says it is), configuration 36 (unsafe);
# a comparison that holds makes them affirming. Names of reference values are Trustee's.
# `findings` lists what did not match, for the log, for the token and for `explain`.
package policy

import rego.v1

default executables := 33

default hardware := 97

default configuration := 36

trust_claims := {
	"executables": executables,
	"hardware": hardware,
	"configuration": configuration,
	"file-system": 0,
	"instance-identity": 0,
	"runtime-opaque": 0,
	"storage-opaque": 0,
	"sourced-data": 0,
}

# SEV-SNP, on hardware and simulated. One code path, told apart by the label only.
snp := input.snp

snp := input["sim-snp"]

simulated if input["sim-snp"]

executables := 3 if among(snp.measurement, "snp_launch_measurement")

# The TCB of a simulated platform means nothing: it is compared where values are registered, not demanded.
tcb_names := {
	"reported_tcb_bootloader": "snp_bootloader",
	"reported_tcb_microcode": "snp_microcode",
	"reported_tcb_snp": "snp_snp_svn",
	"reported_tcb_tee": "snp_tee_svn",
}

tcb_wrong contains claim if {
	some claim, name in tcb_names
	not among(snp[claim], name)
	not exempt(name)
}

exempt(name) if {
	simulated
	query_reference_value(name) == null
}

hardware := 2 if {
	snp
	count(tcb_wrong) == 0
}

# Each is compared when a value is registered for it.
settings := {
	"platform_smt_enabled": "snp_smt_enabled",
	"platform_tsme_enabled": "snp_tsme_enabled",
	"policy_abi_major": "snp_guest_abi_major",
	"policy_abi_minor": "snp_guest_abi_minor",
	"policy_single_socket": "snp_single_socket",
	"policy_smt_allowed": "snp_smt_allowed",
}

settings_wrong contains claim if {
	some claim, name in settings
	query_reference_value(name) != null
	not among(snp[claim], name)
}

policy_wrong contains claim if {
	some claim in ["policy_debug_allowed", "policy_migrate_ma"]
	not snp[claim] == false
}

# Init-data is the guest's policy, key broker and registries. The host hands it over: one that nobody registered may let the host
# do anything in a guest whose measurement is right. A guest without any shows zeros, which must be registered like others.
init_data_known if among(input.init_data, "init_data")

configuration := 2 if {
	snp
	count(policy_wrong) == 0
	count(settings_wrong) == 0
	init_data_known
}

# Trustee's sample: made-up claims.
executables := 3 if among(input.sample.launch_digest, "launch_digest")

hardware := 2 if among(input.sample.svn, "svn")

configuration := 2 if input.sample.debug == false

among(value, name) if {
	known := query_reference_value(name)
	is_array(known)
	value in known
}

among(value, name) if {
	known := query_reference_value(name)
	not is_array(known)
	known != null
	value == known
}

findings contains {"claim": "measurement", "seen": snp.measurement, "expected": query_reference_value("snp_launch_measurement"), "reference": "snp_launch_measurement"} if {
	snp
	not among(snp.measurement, "snp_launch_measurement")
}

findings contains {"claim": "init_data", "seen": object.get(input, "init_data", null), "expected": query_reference_value("init_data"), "reference": "init_data", "what_to_do": "register the digest of init-data that you wrote (kata-cc measure --register --init-data FILE)"} if {
	snp
	not init_data_known
}

findings contains {"claim": claim, "seen": snp[claim], "expected": query_reference_value(tcb_names[claim]), "reference": tcb_names[claim]} if {
	some claim in tcb_wrong
}

findings contains {"claim": claim, "seen": snp[claim], "expected": query_reference_value(settings[claim]), "reference": settings[claim]} if {
	some claim in settings_wrong
}

findings contains {"claim": claim, "seen": snp[claim], "expected": false} if {
	some claim in policy_wrong
}

findings contains {"claim": "launch_digest", "seen": input.sample.launch_digest, "expected": query_reference_value("launch_digest"), "reference": "launch_digest"} if {
	input.sample
	not among(input.sample.launch_digest, "launch_digest")
}

findings contains {"claim": "svn", "seen": input.sample.svn, "expected": query_reference_value("svn"), "reference": "svn"} if {
	input.sample
	not among(input.sample.svn, "svn")
}
