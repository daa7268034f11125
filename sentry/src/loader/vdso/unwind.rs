//! How stacks are unwound in the vDSO: `.eh_frame` and `.eh_frame_hdr` (LSB Core, 10.6; DWARF 4, 6.4).

use super::code::{FRAME, Function};
use super::image::Bytes;

/// Relative to its own place, four bytes with a sign; relative to the table's begin; four bytes without.
const PLACE_RELATIVE: u8 = 0x1b;
const TABLE_RELATIVE: u8 = 0x3b;
const COUNT: u8 = 0x03;

const DW_CFA_NOP: u8 = 0;
const DW_CFA_ADVANCE_LOC1: u8 = 2;
const DW_CFA_DEF_CFA: u8 = 0x0c;
const DW_CFA_DEF_CFA_OFFSET: u8 = 0x0e;
const DW_CFA_OFFSET: u8 = 0x80;
/// Numbers of registers: the stack pointer, and where a function returns to.
const RSP: u8 = 7;
const RETURN: u8 = 16;

/// Bytes of `.eh_frame_hdr` for so many functions.
pub(super) fn header_size(functions: usize) -> u64 {
    12 + 8 * functions as u64
}

/// How far `to` is from `from`.
fn distance(from: u64, to: u64) -> u32 {
    // Both lie in one page: four bytes hold it, with its sign.
    to.wrapping_sub(from) as u32
}

/// `.eh_frame` at `at` for functions of code that lies at `text`; and where what is said of each begins.
pub(super) fn frames(at: u64, text: u64, functions: &[Function]) -> (Vec<u8>, Vec<u64>) {
    let mut out = Bytes::default();
    let common = record(0, |body| {
        body.u8(1);
        body.bytes(b"zR\0");
        // Code in steps of 1, the stack in steps of -8.
        body.bytes(&[1, 0x78, RETURN, 1, PLACE_RELATIVE]);
        body.bytes(&[DW_CFA_DEF_CFA, RSP, 8, DW_CFA_OFFSET | RETURN, 1]);
    });
    out.bytes(&common);
    let mut places = Vec::new();
    for function in functions {
        let here = out.len();
        places.push(at + here);
        let entry = record(distance(0, here + 4), |body| {
            body.u32(distance(at + here + 8, text + function.start));
            body.u32(distance(function.start, function.end));
            body.u8(0);
            let mut now = function.start;
            let grown = [FRAME + 8, 8, FRAME + 8];
            for (place, size) in function.frame.iter().flatten().zip(grown) {
                body.bytes(&[DW_CFA_ADVANCE_LOC1, distance(now, *place) as u8]);
                body.bytes(&[DW_CFA_DEF_CFA_OFFSET, size as u8]);
                now = *place;
            }
        });
        out.bytes(&entry);
    }
    out.u32(0);
    (out.0, places)
}

/// One record: its length, a number, and what `fill` writes, up to whole eight bytes.
fn record(number: u32, fill: impl FnOnce(&mut Bytes)) -> Vec<u8> {
    let mut body = Bytes::default();
    body.u32(number);
    fill(&mut body);
    while !(body.len() + 4).is_multiple_of(8) {
        body.u8(DW_CFA_NOP);
    }
    let mut whole = Bytes::default();
    whole.u32(distance(0, body.len()));
    whole.bytes(&body.0);
    whole.0
}

/// `.eh_frame_hdr` at `at`: the table by which a function is found.
pub(super) fn header(at: u64, frames: u64, text: u64, functions: &[Function], places: &[u64]) -> Vec<u8> {
    let mut out = Bytes::default();
    out.bytes(&[1, PLACE_RELATIVE, COUNT, TABLE_RELATIVE]);
    out.u32(distance(at + 4, frames));
    out.u32(distance(0, functions.len() as u64));
    for (function, place) in functions.iter().zip(places) {
        out.u32(distance(at, text + function.start));
        out.u32(distance(at, *place));
    }
    out.0
}
