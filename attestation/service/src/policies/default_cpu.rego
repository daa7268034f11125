# Default attestation policy for the CPU: compares claims with reference values.
#
# Start values: executables 33 (unknown software), hardware 97 (not what it says it is), configuration 36 (unsafe); each becomes
# affirming when every comparison that it needs was made and held. Names of reference values and meaning of the numbers are
# Trustee's, but for the init-data, which must be registered here and need not there.
#
# `checks` lists every comparison, for the log, the token and `explain`: rule (member of the trust vector), claim, seen, expected,
# name of the reference value where there is one, ok, what_to_do.
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

# A member of the vector is affirming when `least` comparisons of it held and none failed. A comparison that could not be made
# holds nowhere, so it is never enough.
holds(rule, least) if {
	count([check | some check in checks; check.rule == rule; check.ok]) >= least
	count([check | some check in checks; check.rule == rule; not check.ok]) == 0
}

# A claim among the reference values of a name.
registered(rule, claim, seen, name, advice) := check if {
	known := query_reference_value(name)
	check := {"rule": rule, "claim": claim, "seen": seen, "expected": known, "reference": name, "ok": known_value(seen, known), "what_to_do": advice}
}

# A claim that must have one value.
demanded(rule, claim, seen, expected, advice) := {"rule": rule, "claim": claim, "seen": seen, "expected": expected, "ok": seen == expected, "what_to_do": advice}

known_value(seen, known) := is_among if {
	is_array(known)
	is_among := seen in known
}

known_value(seen, known) := is_same if {
	not is_array(known)
	known != null
	is_same := seen == known
}

known_value(_, known) := false if known == null

software := "register the digest of the guest that you mean to run (kata-cc measure --register); if you did, this guest runs other software"

firmware := "register the version that your platforms run, or update the platform's firmware"

setting := "register the setting that your platforms have, or change the platform or the guest's policy"

# Init-data is the guest's policy, key broker and registries. The host hands it over: one that nobody registered may let the host
# do anything in a guest whose measurement is right. A guest without any shows zeros, which must be registered like others.
init_data_check := registered("configuration", "init_data", object.get(input, "init_data", null), "init_data", "register the digest of init-data that you wrote (kata-cc measure --register --init-data FILE)")

checks contains init_data_check if some_guest

some_guest if snp

some_guest if tdx

some_guest if az_snp

some_guest if az_tdx

# SEV-SNP, on hardware and simulated. One code path, told apart by the label only.
snp := input.snp

snp := input["sim-snp"]

simulated if input["sim-snp"]

simulated if input["sim-tdx"]

# What a simulated launch was measured as has names of its own: registered for a test, it must not affirm a guest of hardware.
launch_value(name) := concat("", ["sim_", name]) if simulated

launch_value(name) := name if not simulated

snp_tcb := {
	"reported_tcb_bootloader": "snp_bootloader",
	"reported_tcb_microcode": "snp_microcode",
	"reported_tcb_snp": "snp_snp_svn",
	"reported_tcb_tee": "snp_tee_svn",
}

# Each is compared when a value is registered for it.
snp_settings := {
	"platform_smt_enabled": "snp_smt_enabled",
	"platform_tsme_enabled": "snp_tsme_enabled",
	"policy_abi_major": "snp_guest_abi_major",
	"policy_abi_minor": "snp_guest_abi_minor",
	"policy_single_socket": "snp_single_socket",
	"policy_smt_allowed": "snp_smt_allowed",
}

checks contains registered("executables", "measurement", object.get(snp, "measurement", null), launch_value("snp_launch_measurement"), software)

# The TCB of a simulated platform means nothing: it is compared where values are registered, not demanded.
exempt(name) if {
	simulated
	query_reference_value(name) == null
}

checks contains check if {
	some claim, name in snp_tcb
	not exempt(name)
	check := registered("hardware", claim, object.get(snp, claim, null), name, firmware)
}

checks contains check if {
	some claim, name in snp_settings
	query_reference_value(name) != null
	check := registered("configuration", claim, object.get(snp, claim, null), name, setting)
}

checks contains check if {
	some claim in ["policy_debug_allowed", "policy_migrate_ma"]
	check := demanded("configuration", claim, object.get(snp, claim, null), false, "launch the guest with a policy that forbids it")
}

executables := 3 if {
	snp
	holds("executables", 1)
}

hardware := 2 if {
	snp
	holds("hardware", count([name | some name in snp_tcb; not exempt(name)]))
}

configuration := 2 if {
	snp
	holds("configuration", 3)
}

# TDX, on hardware and simulated.
tdx := input.tdx

tdx := input["sim-tdx"]

tdx_body := object.get(tdx, ["quote", "body"], {})

tdx_header := object.get(tdx, ["quote", "header"], {})

tdx_registers := ["rtmr_1", "rtmr_2"]

checks contains check if {
	some name in tdx_registers
	check := registered("executables", concat("", ["quote.body.", name]), object.get(tdx_body, name, null), name, software)
}

checks contains registered("hardware", "quote.body.mr_td", object.get(tdx_body, "mr_td", null), launch_value("mr_td"), "register the digest of the guest's firmware")

checks contains demanded("hardware", "quote.header.tee_type", object.get(tdx_header, "tee_type", null), "81000000", "this is no quote of a TD")

checks contains demanded("hardware", "quote.header.vendor_id", object.get(tdx_header, "vendor_id", null), "939a7233f79c4ca9940a0db3957f0607", "this is no quote of Intel's quoting enclave")

checks contains demanded("hardware", "tcb_status", object.get(tdx, "tcb_status", null), "UpToDate", "update the platform as the advisories say, or write a policy that accepts this status")

# Trustee's text form of a number.
checks contains demanded("hardware", "collateral_expiration_status", sprintf("%v", [object.get(tdx, "collateral_expiration_status", null)]), "0", "fetch new collateral") if tdx

checks contains demanded("configuration", "td_attributes.debug", object.get(tdx, ["td_attributes", "debug"], null), false, "launch the guest without the debug attribute")

checks contains registered("configuration", "quote.body.xfam", object.get(tdx_body, "xfam", null), "xfam", setting) if tdx

# An event counts by what was measured of it: its SHA-384 digest, in the register that it is said to be measured into. The verifier has
# replayed those against the quote; events of no register (0, or above 4) and digests of other hashes are in no RTMR, and the log,
# which the host and the guest can write, may hold any of them.
tdx_event(register, type_name, key, value, reference) if {
	some event in tdx.uefi_event_logs
	event.index == register
	event.type_name == type_name
	value in as_list(object.get(event, ["details", key], null))
	some digest in event.digests
	digest.alg == "SHA-384"
	digest.digest in as_list(query_reference_value(reference))
}

as_list(value) := value if is_array(value)

as_list(value) := [value] if not is_array(value)

# Kernel (RTMR1, index 2) and command line (RTMR2, index 3) by the firmware's events, or (4) by the registers alone, as a boot loader
# leaves them.
tdx_boot := 3 if {
	tdx_event(2, "EV_EFI_BOOT_SERVICES_APPLICATION", "device_paths", "File(kernel)", "tdvfkernel")
	tdx_event(3, "EV_EVENT_TAG", "string", "LOADED_IMAGE::LoadOptions", "tdvfkernelparams")
} else := 4

executables := tdx_boot if {
	tdx
	holds("executables", count(tdx_registers))
}

hardware := 2 if {
	tdx
	holds("hardware", 5)
}

configuration := 2 if {
	tdx
	holds("configuration", 3)
}

# Azure's guests behind a vTPM: the paravisor is measured into the report, the guest into PCR 11. Values of az-snp-vtpm are text there;
# registered numbers and flags are compared in their text form.
az_snp := input["az-snp-vtpm"]

az_snp_tcb := {
	"reported_tcb_bootloader": "tcb_bootloader",
	"reported_tcb_microcode": "tcb_microcode",
	"reported_tcb_snp": "tcb_snp",
	"reported_tcb_tee": "tcb_tee",
}

az_snp_settings := {
	"platform_smt_enabled": "smt_enabled",
	"platform_tsme_enabled": "tsme_enabled",
	"policy_abi_major": "abi_major",
	"policy_abi_minor": "abi_minor",
	"policy_single_socket": "single_socket",
	"policy_smt_allowed": "smt_allowed",
}

as_text(value) := value if is_string(value)

as_text(value) := sprintf("%v", [value]) if not is_string(value)

registered_text(rule, claim, seen, name, advice) := check if {
	known := query_reference_value(name)
	texts := [as_text(value) | some value in as_list(known); value != null]
	text := as_text(seen)
	check := {"rule": rule, "claim": claim, "seen": seen, "expected": known, "reference": name, "ok": text in texts, "what_to_do": advice}
}

checks contains registered("executables", "measurement", object.get(az_snp, "measurement", null), "measurement", "register the measurement of Azure's paravisor")

checks contains registered("executables", "tpm.pcr11", object.get(az_snp, ["tpm", "pcr11"], null), "snp_pcr11", software)

checks contains check if {
	az_snp
	some claim, name in az_snp_tcb
	check := registered_text("hardware", claim, object.get(az_snp, claim, null), name, firmware)
}

checks contains check if {
	az_snp
	some claim, name in az_snp_settings
	check := registered_text("configuration", claim, object.get(az_snp, claim, null), name, setting)
}

# Trustee does not look at it; where it is told, it must be off.
checks contains demanded("configuration", "policy_debug_allowed", as_text(az_snp.policy_debug_allowed), "false", "launch the guest with a policy that forbids it")

executables := 3 if {
	az_snp
	holds("executables", 2)
}

hardware := 2 if {
	az_snp
	holds("hardware", 4)
}

configuration := 2 if {
	az_snp
	holds("configuration", 7)
}

az_tdx := input["az-tdx-vtpm"]

az_tdx_body := object.get(az_tdx, ["quote", "body"], {})

az_tdx_header := object.get(az_tdx, ["quote", "header"], {})

checks contains registered("executables", "tpm.pcr11", object.get(az_tdx, ["tpm", "pcr11"], null), "tdx_pcr11", software)

checks contains registered("hardware", "quote.body.mr_td", object.get(az_tdx_body, "mr_td", null), "mr_td", "register the digest of Azure's paravisor")

checks contains demanded("hardware", "quote.header.tee_type", object.get(az_tdx_header, "tee_type", null), "81000000", "this is no quote of a TD")

checks contains demanded("hardware", "quote.header.vendor_id", object.get(az_tdx_header, "vendor_id", null), "939a7233f79c4ca9940a0db3957f0607", "this is no quote of Intel's quoting enclave")

checks contains demanded("hardware", "tcb_status", object.get(az_tdx, "tcb_status", null), "UpToDate", "update the platform as the advisories say, or write a policy that accepts this status")

checks contains registered("configuration", "quote.body.xfam", object.get(az_tdx_body, "xfam", null), "xfam", setting)

checks contains demanded("configuration", "td_attributes.debug", az_tdx.td_attributes.debug, false, "launch the guest without the debug attribute")

executables := 3 if {
	az_tdx
	holds("executables", 1)
}

hardware := 2 if {
	az_tdx
	holds("hardware", 4)
}

configuration := 2 if {
	az_tdx
	holds("configuration", 2)
}

# Trustee's sample: made-up claims.
sample := input.sample

checks contains registered("executables", "launch_digest", object.get(sample, "launch_digest", null), "launch_digest", software)

checks contains registered("hardware", "svn", object.get(sample, "svn", null), "svn", firmware)

checks contains demanded("configuration", "debug", object.get(sample, "debug", null), false, "launch the guest without debugging")

executables := 3 if {
	sample
	holds("executables", 1)
}

hardware := 2 if {
	sample
	holds("hardware", 1)
}

configuration := 2 if {
	sample
	holds("configuration", 1)
}
