//! Where bytes stand that matter to the reader: in sixteen bytes at once, or in 64.

use wide::u8x16;

/// Bytes that one instruction looks at.
pub(crate) const LANE: usize = 16;
/// As many as a mask of 64 bits has room for.
pub(crate) const BLOCK: usize = 64;

/// A bit for each byte of a lane that is one of `bytes`, the lowest for the first.
#[inline]
pub(crate) fn in_lane<const N: usize>(lane: &[u8; LANE], bytes: [u8; N]) -> u32 {
    let lane = u8x16::new(*lane);
    let equal = bytes.map(|byte| lane.simd_eq(u8x16::splat(byte)));
    equal.into_iter().fold(u8x16::ZERO, |any, equal| any | equal).to_bitmask()
}

/// The same for a block and one byte.
#[inline]
pub(crate) fn in_block(block: &[u8; BLOCK], byte: u8) -> u64 {
    let (lanes, _) = block.as_chunks();
    lanes.iter().rev().fold(0, |behind, lane| behind << 16 | u64::from(in_lane(lane, [byte])))
}
