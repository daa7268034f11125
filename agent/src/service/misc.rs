//! Small calls: guest details, processors, clock, volume statistics.

use std::fs;
use std::io;

use kata_cc_agent_protocol::agent::{GuestDetailsRequest, GuestDetailsResponse};
use kata_cc_agent_protocol::csi::{VolumeStatsResponse, VolumeUsage, volume_usage};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

/// GetGuestDetails.
pub(crate) fn guest_details(request: &GuestDetailsRequest) -> GuestDetailsResponse {
    let mut answer = GuestDetailsResponse::new();
    if request.mem_block_size {
        let text = fs::read_to_string("/sys/devices/system/memory/block_size_bytes");
        let size = text.ok().and_then(|t| u64::from_str_radix(t.trim(), 16).ok());
        answer.mem_block_size_bytes = size.unwrap_or(0);
    }
    if request.mem_hotplug_probe {
        answer.support_mem_hotplug_probe = std::path::Path::new("/sys/devices/system/memory/probe").exists();
    }
    let details = answer.agent_details.mut_or_insert_default();
    details.version = env!("CARGO_PKG_VERSION").to_owned();
    details.init_daemon = crate::pid1::is_pid1();
    details.storage_handlers = crate::storage::DRIVERS.map(str::to_owned).to_vec();
    details.supports_seccomp = true;
    details.extra_features = ["agent-policy", "seccomp", "guest-pull"].map(str::to_owned).to_vec();
    answer
}

/// Brings processors online that are not.
pub(crate) fn online_cpus() {
    for n in 1..1024 {
        let path = format!("/sys/devices/system/cpu/cpu{n}/online");
        match fs::read_to_string(&path) {
            Err(_) => return,
            Ok(state) if state.trim() == "0" => {
                if let Err(e) = fs::write(&path, "1") {
                    tracing::warn!(cpu = n, error = %e, "processor cannot be brought online");
                }
            }
            Ok(_) => {}
        }
    }
}

/// SetGuestDateTime.
pub(crate) fn set_time(seconds: i64, micros: i64) -> io::Result<()> {
    if !(0..1_000_000).contains(&micros) || seconds < 0 {
        return Err(io::Error::other(format!("{seconds} s {micros} µs is no time")));
    }
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, micros * 1000))?;
    Ok(())
}

/// GetVolumeStats.
pub(crate) fn volume_stats(path: &str) -> io::Result<VolumeStatsResponse> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    let usage = |unit, total: u64, available: u64, used: u64| {
        let mut usage = VolumeUsage::new();
        usage.unit = protobuf::EnumOrUnknown::new(unit);
        (usage.total, usage.available, usage.used) = (total, available, used);
        usage
    };
    let size = stat.fragment_size();
    let bytes = |blocks: u64| blocks.saturating_mul(size);
    let mut answer = VolumeStatsResponse::new();
    answer.usage = vec![
        usage(
            volume_usage::Unit::BYTES,
            bytes(stat.blocks()),
            bytes(stat.blocks_available()),
            bytes(stat.blocks().saturating_sub(stat.blocks_free())),
        ),
        usage(
            volume_usage::Unit::INODES,
            stat.files(),
            stat.files_available(),
            stat.files().saturating_sub(stat.files_free()),
        ),
    ];
    answer.volume_condition.mut_or_insert_default().message = "OK".to_owned();
    Ok(answer)
}
