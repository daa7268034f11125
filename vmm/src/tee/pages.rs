//! Pages on their way into a guest: aligned copies of contents, and as few calls as there are contiguous
//! ranges of one type.

use kata_cc_measurement::PageType;
use kata_cc_measurement::snp::SnpSection;

use super::TeeError;
use super::ioctls::{Page, Refusal};

/// How often a call that makes no progress is repeated.
const ATTEMPTS: u32 = 1000;

/// Repeats a call that takes pages until `len` bytes from `gpa` on are in: the kernel may stop after a part of them (EAGAIN, EINTR).
/// `step` is told how many bytes are in; it returns how many more the kernel took, and what the kernel said.
pub(super) fn until_all_are_in(
    call: &'static str,
    gpa: u64,
    len: u64,
    mut step: impl FnMut(u64) -> (u64, Result<(), Refusal>),
) -> Result<(), TeeError> {
    let (mut done, mut attempts) = (0, 0);
    while done < len {
        let at = gpa + done;
        let (progress, answer) = step(done);
        done += progress;
        match answer {
            Ok(()) => {}
            Err(refusal) if matches!(refusal.errno, libc::EAGAIN | libc::EINTR) => {}
            Err(refusal) => return Err(TeeError::Refused { call, refusal }),
        }
        attempts = if progress == 0 { attempts + 1 } else { 0 };
        if attempts == ATTEMPTS {
            return Err(TeeError::NoProgress { call, gpa: at, attempts });
        }
    }
    Ok(())
}

/// Copies bytes into aligned pages, zeros after their end up to `len`.
pub(super) fn aligned(bytes: &[u8], len: u64) -> Vec<Page> {
    let pages = usize::try_from(len / 4096).unwrap_or_default();
    let mut out = vec![Page([0; 4096]); pages];
    for (page, bytes) in out.iter_mut().zip(bytes.chunks(4096)) {
        page.0[..bytes.len()].copy_from_slice(bytes);
    }
    out
}

/// One call's worth of pages.
pub(super) struct Batch {
    pub(super) page_type: PageType,
    pub(super) gpa: u64,
    pub(super) len: u64,
    /// Contents; empty for zero pages.
    pub(super) pages: Vec<Page>,
}

/// The sections of a launch, neighbours of one type joined. The VMSAs are the kernel's to measure.
pub(super) fn batches(sections: &[SnpSection<'_>]) -> Vec<Batch> {
    let mut out: Vec<Batch> = Vec::new();
    for section in sections.iter().filter(|section| section.page_type != PageType::Vmsa) {
        let source = if section.page_type == PageType::Zero { 0 } else { section.len };
        let pages = aligned(&section.bytes, source);
        match out.last_mut() {
            Some(last) if last.page_type == section.page_type && last.gpa + last.len == section.gpa => {
                last.len += section.len;
                last.pages.extend(pages);
            }
            _ => out.push(Batch { page_type: section.page_type, gpa: section.gpa, len: section.len, pages }),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use kata_cc_measurement::snp::SnpLaunch;

    use super::*;

    #[test]
    fn neighbours_of_one_type_are_one_call() {
        let mut launch = SnpLaunch::new();
        launch.normal("a", 0x1000, &[1; 5000]).unwrap();
        launch.normal("b", 0x3000, &[2; 4096]).unwrap();
        launch.pages("c", PageType::Zero, 0x4000, 0x3000).unwrap();
        launch.normal("d", 0x8000, &[3; 1]).unwrap();
        let batches = batches(launch.sections());
        let seen: Vec<_> = batches.iter().map(|b| (b.page_type, b.gpa, b.len, b.pages.len())).collect();
        assert_eq!(
            seen,
            [
                (PageType::Normal, 0x1000, 0x3000, 3),
                (PageType::Zero, 0x4000, 0x3000, 0),
                (PageType::Normal, 0x8000, 0x1000, 1)
            ]
        );
        assert_eq!(batches[0].pages[1].0[903..906], [1, 0, 0]);
        assert_eq!(batches[0].pages[2].0[0], 2);
    }
}
