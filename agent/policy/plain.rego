# Policy of a guest without a TEE: such a guest keeps nothing from the host, so nothing is denied.
# The agent takes this file only when neither the command line nor the hardware shows a TEE.
package agent_policy

AddARPNeighborsRequest := true
AddSwapPathRequest := true
AddSwapRequest := true
CloseStdinRequest := true
CopyFileRequest := true
CreateContainerRequest := true
CreateSandboxRequest := true
DestroySandboxRequest := true
ExecProcessRequest := true
GetDiagnosticDataRequest := true
GetIPTablesRequest := true
GetMetricsRequest := true
GetOOMEventRequest := true
GuestDetailsRequest := true
ListInterfacesRequest := true
ListRoutesRequest := true
MemAgentCompactConfig := true
MemAgentMemcgConfig := true
MemHotplugByProbeRequest := true
OnlineCPUMemRequest := true
PauseContainerRequest := true
ReadStreamRequest := true
RemoveContainerRequest := true
RemoveStaleVirtiofsShareMountsRequest := true
ReseedRandomDevRequest := true
ResizeVolumeRequest := true
ResumeContainerRequest := true
RunImageRequest := true
SecureMountRequest := true
SetGuestDateTimeRequest := true
SetIPTablesRequest := true
SetPolicyRequest := true
SignalProcessRequest := true
StartContainerRequest := true
StatsContainerRequest := true
TtyWinResizeRequest := true
UpdateContainerRequest := true
UpdateEphemeralMountsRequest := true
UpdateInterfaceRequest := true
UpdateRoutesRequest := true
VolumeStatsRequest := true
WaitProcessRequest := true
WriteStreamRequest := true
