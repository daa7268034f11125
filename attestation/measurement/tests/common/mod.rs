//! Digests computed without the crate.
#![allow(dead_code, clippy::unwrap_used)]

use aws_lc_rs::digest::{SHA384, digest};

pub(crate) fn sha384(bytes: &[u8]) -> [u8; 48] {
    digest(&SHA384, bytes).as_ref().try_into().unwrap()
}

/// SNP firmware ABI, 8.17.2, written down once more as plainly as can be.
pub(crate) fn naive_snp(pages: &[(u8, u64, Vec<u8>)]) -> [u8; 48] {
    pages.iter().fold([0; 48], |so_far, (page_type, gpa, contents)| {
        let hash = if matches!(page_type, 1 | 2) { sha384(contents) } else { [0; 48] };
        let info = [so_far.as_slice(), &hash, &[0x70, 0, *page_type, 0, 0, 0, 0, 0], &gpa.to_le_bytes()];
        sha384(&info.concat())
    })
}

/// TDX module, MRTD: the whole stream in one buffer.
pub(crate) fn naive_mrtd(pages: &[(u64, Vec<u8>, bool)]) -> [u8; 48] {
    let mut stream = Vec::new();
    let mut entry = |what: &[u8], gpa: u64, data: &[u8]| {
        let mut line = what.to_vec();
        line.resize(16, 0);
        line.extend(gpa.to_le_bytes());
        line.resize(128, 0);
        stream.extend(line);
        stream.extend(data);
    };
    for (gpa, contents, measured) in pages {
        entry(b"MEM.PAGE.ADD", *gpa, &[]);
        for (index, chunk) in contents.chunks(256).enumerate().filter(|_| *measured) {
            entry(b"MR.EXTEND", gpa + index as u64 * 256, chunk);
        }
    }
    sha384(&stream)
}
