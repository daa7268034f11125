//! OCI's `LinuxResources` as properties of a unit (systemd.resource-control(5)): the same ones that runc sets, so that what looks at them finds the
//! limits, and so that systemd itself writes no others.

use serde_json::Value;

use super::bus::Property;
use crate::cgroup::limits::{set, swap_alone, weight_of_shares};

/// What systemd takes for no limit.
const UNLIMITED: u64 = u64::MAX;
/// The kernel's period of processor time where none is told, µs.
const PERIOD: u64 = 100_000;
/// systemd keeps processor time in hundredths of a processor: µs of a second.
const HUNDREDTH: u64 = 10_000;
/// First versions of systemd that know a period, and sets of processors.
const PERIOD_SINCE: u32 = 242;
const CPUSET_SINCE: u32 = 244;
/// Most processors or nodes of memory that a list may name.
const MOST: usize = 8192;

/// All that is set. What systemd has no property for is in files alone.
pub(super) fn of(resources: &Value, unified: bool) -> Vec<Property> {
    let mut all = Vec::new();
    let (memory, cpu) = (&resources["memory"], &resources["cpu"]);
    if let Some(bytes) = set(&memory["limit"]) {
        all.push(Property::number(if unified { "MemoryMax" } else { "MemoryLimit" }, or_unlimited(bytes)));
    }
    if unified {
        if let Some(bytes) = set(&memory["reservation"]) {
            all.push(Property::number("MemoryLow", or_unlimited(bytes)));
        }
        if let Some(swap) = set(&memory["swap"]) {
            all.push(Property::number(
                "MemorySwapMax",
                or_unlimited(swap_alone(swap, set(&memory["limit"]))),
            ));
        }
    }
    if let Some(shares) = set(&cpu["shares"]) {
        let (name, value) =
            if unified { ("CPUWeight", weight_of_shares(shares)) } else { ("CPUShares", shares) };
        all.push(Property::number(name, or_unlimited(value)));
    }
    let number = |name: &str| cpu[name].as_i64().unwrap_or_default();
    all.extend(quota(number("quota"), u64::try_from(number("period")).unwrap_or_default()));
    if let Some(limit) = set(&resources["pids"]["limit"]) {
        all.push(Property::number("TasksMax", or_unlimited(limit)));
    }
    all.extend(cpuset("AllowedCPUs", cpu["cpus"].as_str()));
    all.extend(cpuset("AllowedMemoryNodes", cpu["mems"].as_str()));
    if !unified && let Some(weight) = set(&resources["blockIO"]["weight"]) {
        all.push(Property::number("BlockIOWeight", or_unlimited(weight)));
    }
    if unified {
        for (file, value) in resources["unified"].as_object().into_iter().flatten() {
            // What is said of a file holds over what is said of the same thing elsewhere.
            for property in of_file(file, value.as_str().unwrap_or_default().trim()) {
                all.retain(|other| other.name != property.name);
                all.push(property);
            }
        }
    }
    all
}

fn or_unlimited(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(UNLIMITED)
}

/// Rounded up, so that groups within may have what was asked for.
fn quota(quota: i64, period: u64) -> Vec<Property> {
    let mut all = Vec::new();
    if period != 0 {
        all.push(Property::number("CPUQuotaPeriodUSec", period).since(PERIOD_SINCE));
    }
    if quota != 0 || period != 0 {
        let of_second = u64::try_from(quota).ok().filter(|quota| *quota > 0).map_or(UNLIMITED, |quota| {
            let period = if period == 0 { PERIOD } else { period };
            let each = quota.saturating_mul(1_000_000).checked_div(period).unwrap_or(UNLIMITED);
            each.div_ceil(HUNDREDTH).saturating_mul(HUNDREDTH)
        });
        all.push(Property::number("CPUQuotaPerSecUSec", of_second));
    }
    all
}

/// None for a list that cannot be read: the file tells better what is wrong with it.
fn cpuset(name: &str, list: Option<&str>) -> Option<Property> {
    let bits = bits(list.filter(|list| !list.is_empty())?)?;
    Some(Property::bytes(name, &bits).since(CPUSET_SINCE))
}

/// `0-1,5` as bits, the lowest first (cpuset(7), "List format").
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        for number in first..=last {
            if bits.len() <= number / 8 {
                bits.resize(number / 8 + 1, 0_u8);
            }
            *bits.get_mut(number / 8)? |= 1 << (number % 8);
        }
    }
    Some(bits)
}

/// A file of version 2 (`unified` of the bundle).
fn of_file(file: &str, value: &str) -> Vec<Property> {
    let number = |text: &str| if text == "max" { Some(UNLIMITED) } else { text.parse().ok() };
    let one = |name: &str| number(value).map(|value| Property::number(name, value)).into_iter().collect();
    match file {
        "cpu.max" => {
            let mut fields = value.split_whitespace();
            let time = match fields.next() {
                Some("max") => Some(-1),
                other => other.and_then(|text| text.parse().ok()),
            };
            let period = fields.next().map_or(Some(PERIOD), |text| text.parse().ok());
            time.zip(period).map(|(time, period)| quota(time, period)).unwrap_or_default()
        }
        "cpu.weight" => one("CPUWeight"),
        "cpuset.cpus" => cpuset("AllowedCPUs", Some(value)).into_iter().collect(),
        "cpuset.mems" => cpuset("AllowedMemoryNodes", Some(value)).into_iter().collect(),
        "memory.high" => one("MemoryHigh"),
        "memory.low" => one("MemoryLow"),
        "memory.min" => one("MemoryMin"),
        "memory.max" => one("MemoryMax"),
        "memory.swap.max" => one("MemorySwapMax"),
        "pids.max" => one("TasksMax"),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lines(resources: &Value, unified: bool) -> Vec<String> {
        of(resources, unified).iter().map(Property::to_string).collect()
    }

    #[test]
    fn both_versions_have_their_own_names() {
        let all = json!({
            "memory": {"limit": 1000, "swap": 1500, "reservation": 500},
            "cpu": {"shares": 1024, "quota": 50_000, "period": 100_000, "cpus": "0-1,9", "mems": "0"},
            "pids": {"limit": 7}, "blockIO": {"weight": 500},
        });
        let both = [
            "CPUQuotaPeriodUSec t 100000",
            "CPUQuotaPerSecUSec t 500000",
            "TasksMax t 7",
            "AllowedCPUs ay 2 3 2",
            "AllowedMemoryNodes ay 1 1",
        ];
        let two = ["MemoryMax t 1000", "MemoryLow t 500", "MemorySwapMax t 500", "CPUWeight t 39"];
        assert_eq!(lines(&all, true), [&two[..], &both[..]].concat());
        let one = ["MemoryLimit t 1000", "CPUShares t 1024"];
        assert_eq!(lines(&all, false), [&one[..], &both[..], &["BlockIOWeight t 500"][..]].concat());
        assert!(lines(&json!({"memory": {"limit": 0}, "cpu": {"quota": 0}}), true).is_empty());
    }

    #[test]
    fn no_limit_and_odd_quotas() {
        let none = json!({"memory": {"limit": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1}});
        let max = u64::MAX;
        let expected = [
            format!("MemoryMax t {max}"),
            format!("CPUQuotaPerSecUSec t {max}"),
            format!("TasksMax t {max}"),
        ];
        assert_eq!(lines(&none, true), expected);
        let odd = json!({"cpu": {"quota": 12_345}});
        assert_eq!(lines(&odd, true), ["CPUQuotaPerSecUSec t 130000"]);
        let vast = json!({"cpu": {"quota": i64::MAX, "period": 1}});
        assert!(lines(&vast, true).iter().all(|line| line.contains(" t ")));
    }

    #[test]
    fn files_of_version_2_are_properties_where_there_is_one() {
        let resources = json!({"memory": {"limit": 5}, "unified": {"memory.max": "9", "memory.high": "max", "cpu.max": "max 5",
            "io.max": "x", "pids.max": "nonsense", "cpuset.cpus": "3"}});
        assert_eq!(
            lines(&resources, true),
            [
                "CPUQuotaPeriodUSec t 5".to_owned(),
                format!("CPUQuotaPerSecUSec t {}", u64::MAX),
                "AllowedCPUs ay 1 8".to_owned(),
                format!("MemoryHigh t {}", u64::MAX),
                "MemoryMax t 9".to_owned(),
            ]
        );
    }

    #[test]
    fn lists_that_cannot_be_read_are_left_to_the_file() {
        for bad in ["", "x", "1-", "3-1", "0-99999999999", "9999", "1,,2"] {
            assert_eq!(bits(bad), None, "{bad}");
        }
        assert_eq!(bits("8-8"), Some(vec![0, 1]));
    }
}
