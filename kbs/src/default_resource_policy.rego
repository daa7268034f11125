# Default resource policy: whoever was found to be what the reference values say (what was launched and with which init-data)
# gets any resource, unless the evidence is simulated or made up.
#
# `input` is the claims of the attestation token, `data["resource-path"]` is [repository, type, tag].
# `reasons` is told to the guest and written to the log when `allow` does not hold.
package policy

import rego.v1

default allow := false

cpu := input.submods.cpu0

evidence := cpu["ear.veraison.annotated-evidence"]

allow if {
	data.plugin == "resource"
	cpu["ear.status"] == "affirming"
	count(unreal) == 0
	not no_init_data
}

no_init_data if regex.match(`^0+$`, evidence.init_data)

unreal contains tee if {
	some tee in ["sample", "sim-snp", "sim-tdx"]
	evidence[tee]
}

reasons contains sprintf("the evidence is %s, which protects nothing and is denied by the default policy", [tee]) if {
	some tee in unreal
}

reasons contains sprintf("ear.status is %s, affirming is required", [cpu["ear.status"]]) if {
	cpu["ear.status"] != "affirming"
}

reasons contains "the init-data of the guest is zeros: it was launched without any, so the host alone decided how it runs" if {
	no_init_data
}

reasons contains sprintf("the guest was launched with init-data %s, which must be among the reference values init_data", [evidence.init_data]) if {
	cpu["ear.status"] != "affirming"
	some finding in cpu["ear.kata-cc.findings"]
	finding.claim == "init_data"
}
