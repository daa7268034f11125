# Default attestation policy for accelerators: compares claims with reference values.
#
# Start values as for the CPU: executables 33 (unknown software), hardware 97 (not what it says it is), configuration 36 (unsafe).
# Only the sample device has a verifier built in. It says nothing about software and settings, so it is never affirming: a
# policy of your own decides otherwise. Whoever plugs in a verifier for other devices brings the policy that reads its claims.
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

hardware := 2 if among(input.sampledevice.svn, "device_svn")

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

findings contains {"claim": "svn", "seen": input.sampledevice.svn, "expected": query_reference_value("device_svn"), "reference": "device_svn", "what_to_do": "register the device's svn as device_svn"} if {
	input.sampledevice
	not among(input.sampledevice.svn, "device_svn")
}

findings contains {"claim": "class", "seen": "sampledevice", "expected": "a device that vouches for its software and settings", "what_to_do": "set a default_gpu policy of your own that affirms sample devices, for tests only"} if {
	input.sampledevice
}
