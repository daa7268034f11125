//! ID blocks and ID authentication information: parsed or refused, and what was parsed survives writing and reading.
#![no_main]

use kata_cc_snp::id_block::ID_BLOCK_LEN;
use kata_cc_snp::{IdAuth, IdBlock};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (block, auth) = data.split_at_checked(ID_BLOCK_LEN).unwrap_or((data, &[]));
    let block = IdBlock::parse(block);
    if let Ok(block) = &block {
        assert_eq!(IdBlock::parse(&block.to_bytes()), Ok(*block));
    }
    if let Ok(auth) = IdAuth::parse(auth) {
        assert_eq!(IdAuth::parse(&auth.to_bytes()), Ok(auth));
        if let Ok(block) = block {
            let _ = auth.verify(&block);
        }
    }
});
