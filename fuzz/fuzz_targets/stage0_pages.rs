//! Boot block, boot info and image header of the guest firmware: refused, or read back as they were written.
#![no_main]

use kata_cc_stage0_abi::{BootBlock, BootInfo, ImageHeader, Termination};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = ImageHeader::parse(data);
    let mut page = [0; 4096];
    for (to, from) in page.iter_mut().zip(data) {
        *to = *from;
    }
    match BootBlock::parse(&page) {
        Ok(block) => assert_eq!(block.to_page(), Ok(page)),
        Err(why) => assert!(Termination::from(why).code() < 0x10),
    }
    match BootInfo::parse(&page) {
        Ok(info) => {
            assert_eq!(info.to_page(), page);
            for pair in info.ranges().windows(2) {
                assert!(pair[0].end() <= pair[1].start);
            }
        }
        Err(why) => assert!((0x10..0x20).contains(&Termination::from(why).code())),
    }
});
