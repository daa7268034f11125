//! Header of the flat image: what a VMM must know to launch it.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 16 | code: a jump over the header |
//! | 16 | 8 | magic `KCCIMG0\0` |
//! | 24 | 4 | version of this contract, 1 |
//! | 28 | 4 | bytes of the image, a multiple of 4096 |
//! | 32 | 4 | bytes of working memory after it, a multiple of 4096 |
//! | 36 | 4 | zero |

use core::fmt;

use crate::layout::{IMAGE, IMAGE_LIMIT, MEASURED_MAX, PAGE_SIZE};

const MAGIC: [u8; 8] = *b"KCCIMG0\0";
const VERSION: u32 = 1;

/// Measured pages beside the image: boot block, secrets, CPUID, reset page.
const OTHER_PAGES: u64 = 4;

/// Header of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    /// Bytes of the image.
    pub image: u32,
    /// Bytes of zeros that must follow it.
    pub working_memory: u32,
}

/// Why an image was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// Not an image of stage0.
    Magic,
    /// Built for another version of the contract.
    Version,
    /// The file's length is not the one that its header tells.
    Length,
    /// The image is too large to be measured, or it and its working memory have no room.
    TooLarge,
    /// A reserved byte is not zero.
    Reserved,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Magic => "not an image of stage0",
            Self::Version => "an image of stage0 for another version of its launch contract",
            Self::Length => "an image of stage0 that is cut off or has bytes appended",
            Self::TooLarge => "an image of stage0 that is too large to be measured",
            Self::Reserved => "an image of stage0 with a reserved byte that is not zero",
        })
    }
}

impl core::error::Error for ImageError {}

impl ImageHeader {
    /// Reads the header of a whole image.
    ///
    /// # Errors
    /// When it cannot be launched.
    pub fn parse(image: &[u8]) -> Result<Self, ImageError> {
        let field = |offset: usize| {
            let bytes = image.get(offset..).and_then(<[u8]>::first_chunk);
            bytes.map(|bytes| u32::from_le_bytes(*bytes)).ok_or(ImageError::Magic)
        };
        if image.get(16..24) != Some(&MAGIC) {
            return Err(ImageError::Magic);
        }
        if field(24)? != VERSION {
            return Err(ImageError::Version);
        }
        let header = Self { image: field(28)?, working_memory: field(32)? };
        if field(36)? != 0 {
            return Err(ImageError::Reserved);
        }
        let whole_pages = |bytes: u32| u64::from(bytes).is_multiple_of(PAGE_SIZE);
        if image.len() as u64 != u64::from(header.image)
            || !whole_pages(header.image)
            || !whole_pages(header.working_memory)
        {
            return Err(ImageError::Length);
        }
        let fits = header.working_memory_end() <= IMAGE_LIMIT
            && u64::from(header.image) + OTHER_PAGES * PAGE_SIZE <= MEASURED_MAX;
        if fits { Ok(header) } else { Err(ImageError::TooLarge) }
    }

    /// First byte of the working memory.
    #[must_use]
    pub const fn working_memory_start(&self) -> u64 {
        IMAGE + self.image as u64
    }

    /// First byte after the working memory.
    #[must_use]
    pub const fn working_memory_end(&self) -> u64 {
        self.working_memory_start() + self.working_memory as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGEST: usize = (64 << 10) - 4 * 4096;

    fn image<const N: usize>() -> [u8; N] {
        let mut image = [0; N];
        image[16..24].copy_from_slice(&MAGIC);
        image[24] = 1;
        image[28..32].copy_from_slice(&(N as u32).to_le_bytes());
        image[32..36].copy_from_slice(&0x2_0000_u32.to_le_bytes());
        image
    }

    #[test]
    fn tells_where_working_memory_is() {
        let header = ImageHeader::parse(&image::<8192>()).expect("valid");
        assert_eq!(header, ImageHeader { image: 8192, working_memory: 0x2_0000 });
        assert_eq!(header.working_memory_start(), 0x10_2000);
        assert_eq!(header.working_memory_end(), 0x12_2000);
        assert!(ImageHeader::parse(&image::<LARGEST>()).is_ok());
    }

    #[test]
    fn refuses_what_cannot_be_launched() {
        let changed = |change: fn(&mut [u8; 8192])| {
            let mut image = image::<8192>();
            change(&mut image);
            ImageHeader::parse(&image)
        };
        assert_eq!(ImageHeader::parse(&[]), Err(ImageError::Magic));
        assert_eq!(ImageHeader::parse(&image::<8192>()[..30]), Err(ImageError::Magic));
        assert_eq!(ImageHeader::parse(&image::<8192>()[..4096]), Err(ImageError::Length));
        assert_eq!(changed(|image| image[16] = 0), Err(ImageError::Magic));
        assert_eq!(changed(|image| image[24] = 2), Err(ImageError::Version));
        assert_eq!(changed(|image| image[36] = 1), Err(ImageError::Reserved));
        assert_eq!(changed(|image| image[32] = 1), Err(ImageError::Length));
        assert_eq!(changed(|image| image[34] = 0x20), Err(ImageError::TooLarge));
        assert_eq!(ImageHeader::parse(&image::<{ LARGEST + 4096 }>()), Err(ImageError::TooLarge));
    }
}
