//! What an event says of itself, in the words of Trustee's event log parser, so that its policies can be used.
//!
//! The data of an event is measured only where it matches the digest (`digest_matches_event`): elsewhere the host may
//! have written it. Data out of form has no details; it is still published as it is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::aael::RuntimeEvent;
use crate::event_log::{EV_EVENT_TAG, Event};
use kata_cc_bytes::{Cursor, Truncated};

const EV_POST_CODE: u32 = 1;
const EV_ACTION: u32 = 5;
const EV_PLATFORM_CONFIG_FLAGS: u32 = 0xA;
const EV_COMPACT_HASH: u32 = 0xC;
const EV_IPL: u32 = 0xD;
const EV_OMIT_BOOT_DEVICE_EVENTS: u32 = 0x12;
const EV_EFI_VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;
const EV_EFI_VARIABLE_BOOT: u32 = 0x8000_0002;
const EV_EFI_BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;
const EV_EFI_ACTION: u32 = 0x8000_0007;
const EV_EFI_PLATFORM_FIRMWARE_BLOB2: u32 = 0x8000_000A;
const EV_EFI_HANDOFF_TABLES2: u32 = 0x8000_000B;
const EV_EFI_VARIABLE_BOOT2: u32 = 0x8000_000C;
const EV_EFI_VARIABLE_AUTHORITY: u32 = 0x8000_00E0;

/// Names of event types (TCG PC client platform firmware profile).
const NAMES: [(u32, &str); 34] = [
    (0x0, "EV_PREBOOT_CERT"),
    (EV_POST_CODE, "EV_POST_CODE"),
    (0x2, "EV_UNUSED"),
    (0x3, "EV_NO_ACTION"),
    (0x4, "EV_SEPARATOR"),
    (EV_ACTION, "EV_ACTION"),
    (EV_EVENT_TAG, "EV_EVENT_TAG"),
    (0x7, "EV_S_CRTM_CONTENTS"),
    (0x8, "EV_S_CRTM_VERSION"),
    (0x9, "EV_CPU_MICROCODE"),
    (EV_PLATFORM_CONFIG_FLAGS, "EV_PLATFORM_CONFIG_FLAGS"),
    (0xB, "EV_TABLE_OF_DEVICES"),
    (EV_COMPACT_HASH, "EV_COMPACT_HASH"),
    (EV_IPL, "EV_IPL"),
    (0xE, "EV_IPL_PARTITION_DATA"),
    (0xF, "EV_NONHOST_CODE"),
    (0x10, "EV_NONHOST_CONFIG"),
    (0x11, "EV_NONHOST_INFO"),
    (EV_OMIT_BOOT_DEVICE_EVENTS, "EV_OMIT_BOOT_DEVICE_EVENTS"),
    (0x8000_0000, "EV_EFI_EVENT_BASE"),
    (EV_EFI_VARIABLE_DRIVER_CONFIG, "EV_EFI_VARIABLE_DRIVER_CONFIG"),
    (EV_EFI_VARIABLE_BOOT, "EV_EFI_VARIABLE_BOOT"),
    (EV_EFI_BOOT_SERVICES_APPLICATION, "EV_EFI_BOOT_SERVICES_APPLICATION"),
    (0x8000_0004, "EV_EFI_BOOT_SERVICES_DRIVER"),
    (0x8000_0005, "EV_EFI_RUNTIME_SERVICES_DRIVER"),
    (0x8000_0006, "EV_EFI_GPT_EVENT"),
    (EV_EFI_ACTION, "EV_EFI_ACTION"),
    (0x8000_0008, "EV_EFI_PLATFORM_FIRMWARE_BLOB"),
    (0x8000_0009, "EV_EFI_HANDOFF_TABLES"),
    (EV_EFI_PLATFORM_FIRMWARE_BLOB2, "EV_EFI_PLATFORM_FIRMWARE_BLOB2"),
    (EV_EFI_HANDOFF_TABLES2, "EV_EFI_HANDOFF_TABLES2"),
    (EV_EFI_VARIABLE_BOOT2, "EV_EFI_VARIABLE_BOOT2"),
    (0x8000_0010, "EV_EFI_HCRTM_EVENT"),
    (EV_EFI_VARIABLE_AUTHORITY, "EV_EFI_VARIABLE_AUTHORITY"),
];

/// Name of an event type; of an unknown one its number in hex.
#[must_use]
pub fn type_name(event_type: u32) -> String {
    NAMES
        .iter()
        .find(|(known, _)| *known == event_type)
        .map_or_else(|| format!("{event_type:#x}"), |(_, name)| (*name).to_owned())
}

/// The event as a claim: an entry of `uefi_event_logs`.
#[must_use]
pub fn claim(event: &Event) -> Value {
    let digests: Vec<Value> = event
        .digests
        .iter()
        .map(|(algorithm, digest)| json!({"alg": algorithm.name(), "digest": hex::encode(digest)}))
        .collect();
    json!({
        "details": details(event.event_type, &event.data).unwrap_or_default(),
        "digest_matches_event": event.digests_match(),
        "digests": digests,
        "event": STANDARD.encode(&event.data),
        "index": event.register,
        "type_name": type_name(event.event_type),
    })
}

fn details(event_type: u32, data: &[u8]) -> Option<Map<String, Value>> {
    match event_type {
        EV_POST_CODE | EV_ACTION | EV_COMPACT_HASH | EV_OMIT_BOOT_DEVICE_EVENTS | EV_EFI_ACTION => {
            Some(text(std::str::from_utf8(data).ok()?.to_owned()))
        }
        EV_EVENT_TAG => event_tag(data),
        EV_PLATFORM_CONFIG_FLAGS => Some(text(platform_config(data))),
        EV_IPL => ipl(data),
        EV_EFI_VARIABLE_DRIVER_CONFIG
        | EV_EFI_VARIABLE_BOOT
        | EV_EFI_VARIABLE_BOOT2
        | EV_EFI_VARIABLE_AUTHORITY => variable(data).ok().flatten(),
        EV_EFI_BOOT_SERVICES_APPLICATION => application(data).ok().flatten(),
        EV_EFI_PLATFORM_FIRMWARE_BLOB2 | EV_EFI_HANDOFF_TABLES2 => description(data),
        _ => None,
    }
}

fn text(string: String) -> Map<String, Value> {
    Map::from_iter([("string".to_owned(), string.into())])
}

/// Identifier, length, text; of the attestation agent's events also the parts.
fn event_tag(data: &[u8]) -> Option<Map<String, Value>> {
    let (_, rest) = data.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let named = rest.get(..u32::from_le_bytes(*length) as usize)?;
    let mut out = text(std::str::from_utf8(named).ok()?.replace('\0', ""));
    if let Some(event) = RuntimeEvent::from_data(data) {
        let content: Value = serde_json::from_str(&event.content).unwrap_or_else(|_| event.content.into());
        out.insert("unicode_name".to_owned(), "AAEL".into());
        out.insert(
            "data".to_owned(),
            json!({"domain": event.domain, "operation": event.operation, "content": content}),
        );
    }
    Some(out)
}

/// Whatever the firmware's maker likes; text without control characters.
fn platform_config(data: &[u8]) -> String {
    // U+0010 stands between name and command line in the event of td-shim.
    let spaced = std::str::from_utf8(data).unwrap_or_default().replace('\u{10}', " ");
    spaced.chars().filter(|character| !character.is_control()).collect()
}

/// Text up to a zero; Google's has a prefix and two bytes for each character.
fn ipl(data: &[u8]) -> Option<Map<String, Value>> {
    const WIDE: &[u8] = &[0x2E, 0];
    if let Some(wide) = data.strip_prefix(WIDE) {
        // The last character is the terminating zero.
        return Some(text(utf16(wide.get(..wide.len().checked_sub(2)?)?).trim_end_matches('\0').to_owned()));
    }
    let named = data.split(|byte| *byte == 0).next()?;
    Some(text(std::str::from_utf8(named).map_or_else(|_| hex::encode(data), str::to_owned)))
}

fn utf16(bytes: &[u8]) -> String {
    let (pairs, _) = bytes.as_chunks::<2>();
    char::decode_utf16(pairs.iter().map(|pair| u16::from_le_bytes(*pair)))
        .map(|character| character.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// `UEFI_VARIABLE_DATA`.
fn variable(data: &[u8]) -> Result<Option<Map<String, Value>>, Truncated> {
    let mut cursor = Cursor::new(data);
    let guid: [u8; 16] = cursor.array()?;
    let (characters, length) = (cursor.u64()?, cursor.u64()?);
    let Some(bytes) = usize::try_from(characters).ok().and_then(|count| count.checked_mul(2)) else {
        return Ok(None);
    };
    let name = utf16(cursor.slice(bytes)?);
    let Ok(bytes) = usize::try_from(length) else { return Ok(None) };
    let value = STANDARD.encode(cursor.slice(bytes)?);
    let out = json!({
        "unicode_name": name,
        "unicode_name_length": characters,
        "variable_data": value,
        "variable_data_length": length,
        "variable_name": plain_guid(&guid),
    });
    Ok(out.as_object().cloned())
}

/// A GUID with its bytes in the order of memory, as Trustee writes it here.
fn plain_guid(guid: &[u8; 16]) -> String {
    let text = hex::encode(guid);
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| text.get(range).unwrap_or_default());
    parts.join("-")
}

/// A GUID as it is written usually.
fn guid(bytes: &[u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = *bytes;
    let ordered = [d, c, b, a, f, e, h, g];
    let mut whole = [0; 16];
    for (to, from) in whole.iter_mut().zip(ordered.into_iter().chain(rest)) {
        *to = from;
    }
    plain_guid(&whole).to_uppercase()
}

/// Length in one byte, text with a terminating zero.
fn description(data: &[u8]) -> Option<Map<String, Value>> {
    let (length, rest) = data.split_first()?;
    let named = rest.get(..usize::from(*length).checked_sub(1)?)?;
    Some(text(std::str::from_utf8(named).ok()?.to_owned()))
}

/// `UEFI_IMAGE_LOAD_EVENT`: the device path of the program.
fn application(data: &[u8]) -> Result<Option<Map<String, Value>>, Truncated> {
    let mut cursor = Cursor::new(data);
    cursor.slice(24)?;
    let length = cursor.u64()?;
    if length == 0 {
        return Ok(None);
    }
    let Ok(length) = usize::try_from(length) else { return Ok(None) };
    let mut path = Cursor::new(cursor.slice(length)?);
    let mut nodes = Vec::new();
    while !path.rest().is_empty() {
        let ([kind, subtype], size) = (path.array()?, path.u16()?);
        let Some(size) = usize::from(size).checked_sub(4) else { return Ok(None) };
        let node = path.slice(size)?;
        // The end of the path, or of one of several.
        if kind == 0x7F {
            continue;
        }
        nodes.push(
            device_node(kind, subtype, node)
                .unwrap_or_else(|| format!("Path({kind},{subtype},{})", hex::encode(node))),
        );
    }
    Ok(Some(Map::from_iter([("device_paths".to_owned(), nodes.into())])))
}

/// UEFI 2.10, 10.6.1: text of the nodes that boot loaders have. Of others `None`.
fn device_node(kind: u8, subtype: u8, node: &[u8]) -> Option<String> {
    let mut cursor = Cursor::new(node);
    match (kind, subtype) {
        (1, 1) => {
            let [function, device] = *node.first_chunk()?;
            Some(format!("Pci({function},{device})"))
        }
        (2, 1) => {
            let (hid, uid) = (cursor.u32().ok()?, cursor.u32().ok()?);
            // The lower half is `PNP` in compressed form.
            (hid & 0xFFFF == 0x41D0).then(|| format!("ACPI(PNP{:04X},{uid})", hid >> 16))
        }
        (4, 1) => hard_drive(&mut cursor).ok().flatten(),
        (4, 3) => Some(format!("VenMedia({},{})", guid(&cursor.array().ok()?), hex::encode(cursor.rest()))),
        (4, 4) => Some(format!("File({})", utf16(node.get(..node.len().checked_sub(2)?)?))),
        _ => None,
    }
}

fn hard_drive(cursor: &mut Cursor<'_>) -> Result<Option<String>, Truncated> {
    let (number, start, size) = (cursor.u32()?, cursor.u64()?, cursor.u64()?);
    let signature: [u8; 16] = cursor.array()?;
    let [format] = cursor.array()?;
    let [a, b, c, d, ..] = signature;
    let named = match format {
        1 => format!("MBR,{:#010x}", u32::from_le_bytes([a, b, c, d])),
        2 => format!("GPT,{}", guid(&signature)),
        _ => return Ok(None),
    };
    let place = if number == 0 { String::new() } else { format!(",{start:#x},{size:#x}") };
    Ok(Some(format!("HD({number},{named}{place})")))
}
