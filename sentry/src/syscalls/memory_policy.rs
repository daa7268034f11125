//! Policies of memory nodes, on a machine with one node (`mm/mempolicy.c`): they are checked and change nothing.

use super::Entry;
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::mm::{PAGE, page_up};

/// Most bits of a mask of nodes (a page of them).
const MAX_BITS: u64 = PAGE * 8;
/// `MPOL_F_STATIC_NODES`, `MPOL_F_RELATIVE_NODES`, `MPOL_F_NUMA_BALANCING`.
const MODE_FLAGS: u64 = 0xe000;

pub(super) const CALLS: &[Entry] = &[
    Entry::partial(libc::SYS_mbind, "mbind", mbind, "one node: checked, without effect"),
    Entry::partial(libc::SYS_set_mempolicy, "set_mempolicy", set_mempolicy, "one node: checked, not kept"),
    Entry::partial(libc::SYS_get_mempolicy, "get_mempolicy", get_mempolicy, "one node: tells the default"),
    Entry::partial(libc::SYS_set_mempolicy_home_node, "set_mempolicy_home_node", home_node, "one node"),
];

/// The nodes of a mask, which can be node 0 alone: `true` when it is set.
fn node_mask(call: &Call<'_>, address: u64, bits: u64) -> Result<bool, Errno> {
    // The last bit does not count, for reasons of history.
    let bits = bits.saturating_sub(1);
    if address == 0 || bits == 0 {
        return Ok(false);
    }
    if bits > MAX_BITS {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0; bits.div_ceil(64) as usize * 8];
    call.read(address, &mut bytes)?;
    for bit in bits..bytes.len() as u64 * 8 {
        bytes[(bit / 8) as usize] &= !(1 << (bit % 8));
    }
    let zero = bytes[0] & 1 != 0;
    bytes[0] &= !1;
    if bytes.iter().any(|byte| *byte != 0) { Err(Errno::EINVAL) } else { Ok(zero) }
}

fn check_mode(mode: u64, node: bool) -> Result<(), Errno> {
    let flags = mode & MODE_FLAGS;
    if flags & 0xc000 == 0xc000 {
        return Err(Errno::EINVAL);
    }
    match mode & !MODE_FLAGS {
        // MPOL_DEFAULT, MPOL_LOCAL
        0 | 4 if node || flags != 0 => Err(Errno::EINVAL),
        // MPOL_BIND, MPOL_INTERLEAVE, MPOL_PREFERRED_MANY, MPOL_WEIGHTED_INTERLEAVE
        2 | 3 | 5 | 6 if !node => Err(Errno::EINVAL),
        0..=6 => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

fn mbind(call: &mut Call<'_>, [address, length, mode, mask, bits, flags]: [u64; 6]) -> SysResult {
    let node = node_mask(call, mask, bits)?;
    // MPOL_MF_STRICT, MPOL_MF_MOVE, MPOL_MF_MOVE_ALL
    if flags & !7 != 0 || !address.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL.into());
    }
    check_mode(mode, node)?;
    let length = page_up(length).filter(|length| address.checked_add(*length).is_some());
    let length = length.ok_or(Errno::EINVAL)?;
    if length > 0 {
        call.task.space().resident(address, length).map_err(|_| Errno::EFAULT)?;
    }
    Ok(0)
}

fn set_mempolicy(call: &mut Call<'_>, [mode, mask, bits, ..]: [u64; 6]) -> SysResult {
    let node = node_mask(call, mask, bits)?;
    check_mode(mode & 0xffff_ffff, node)?;
    Ok(0)
}

fn get_mempolicy(call: &mut Call<'_>, [mode, mask, bits, address, flags, _]: [u64; 6]) -> SysResult {
    const NODE: u64 = 1;
    const ADDRESS: u64 = 2;
    const ALLOWED: u64 = 4;
    let bad = flags & !(NODE | ADDRESS | ALLOWED) != 0
        || (flags & ALLOWED != 0 && flags & (NODE | ADDRESS) != 0)
        || (flags & ADDRESS == 0 && address != 0)
        // Without an address, the next node of an interleaving is asked for, which there is not.
        || flags & (NODE | ADDRESS) == NODE
        || (mask != 0 && (bits == 0 || bits > MAX_BITS));
    if bad {
        return Err(Errno::EINVAL.into());
    }
    if flags & ADDRESS != 0 && call.task.space().area_at(address).is_none() {
        return Err(Errno::EFAULT.into());
    }
    if mode != 0 {
        // MPOL_DEFAULT, or node 0.
        call.write(mode, &0u32.to_le_bytes())?;
    }
    if mask != 0 {
        let mut bytes = vec![0; bits.div_ceil(64) as usize * 8];
        bytes[0] = u8::from(flags & ALLOWED != 0);
        call.write(mask, &bytes)?;
    }
    Ok(0)
}

fn home_node(call: &mut Call<'_>, [address, length, node, flags, ..]: [u64; 6]) -> SysResult {
    if flags != 0 || node != 0 || !address.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL.into());
    }
    page_up(length).and_then(|length| address.checked_add(length)).ok_or(Errno::EINVAL)?;
    // Only areas with a policy of their own have a home; there is none.
    let _ = call;
    Err(Errno::ENOENT.into())
}
