//! What stands behind the hash tree of a sealed image: the small documents of the image (`kata_cc_image::Documents`), so that a guest
//! need not ask the registry for them. No root hash vouches for them, and none needs to.
//!
//! In whole blocks: the documents, zeros up to the next block, and as the last block of the file
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `KCCDOCS` and a zero |
//! | 8 | 4 | form, 1, little endian as all that follows |
//! | 12 | 4 | zero |
//! | 16 | 8 | length of the documents |
//! | 24 | | zeros |

use std::io::{self, Read, Seek, SeekFrom, Write};

use kata_cc_erofs::verity::BLOCK;

const MAGIC: [u8; 8] = *b"KCCDOCS\0";
const FORM: u32 = 1;

/// Writes `documents` behind a sealed image that ends with a whole block.
///
/// # Errors
/// As the file says; invalid input when it ends within a block.
pub fn append(file: &mut (impl Write + Seek), documents: &[u8]) -> io::Result<()> {
    let end = file.seek(SeekFrom::End(0))?;
    if !end.is_multiple_of(BLOCK as u64) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a sealed image of {end} bytes")));
    }
    file.write_all(documents)?;
    file.write_all(&vec![0; documents.len().next_multiple_of(BLOCK) - documents.len()])?;
    let mut last = [0; BLOCK];
    let fields = [&MAGIC[..], &FORM.to_le_bytes(), &[0; 4], &(documents.len() as u64).to_le_bytes()].concat();
    for (to, from) in last.iter_mut().zip(fields) {
        *to = from;
    }
    file.write_all(&last)
}

/// The documents behind a sealed image, not looked into; `None` when there are none of this form or they are longer than `most`.
///
/// # Errors
/// As the file or device says.
pub fn read(file: &mut (impl Read + Seek), most: usize) -> io::Result<Option<Vec<u8>>> {
    let end = file.seek(SeekFrom::End(0))?;
    let Some(last) = end.checked_sub(BLOCK as u64) else { return Ok(None) };
    file.seek(SeekFrom::Start(last))?;
    let mut block = [0; BLOCK];
    file.read_exact(&mut block)?;
    let (head, rest) = block.split_at(16);
    if head != [&MAGIC[..], &FORM.to_le_bytes(), &[0; 4]].concat() {
        return Ok(None);
    }
    let length = rest.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
    let Some(length) = usize::try_from(length).ok().filter(|length| *length <= most) else { return Ok(None) };
    let Some(start) = last.checked_sub(length.next_multiple_of(BLOCK) as u64) else { return Ok(None) };
    file.seek(SeekFrom::Start(start))?;
    let mut documents = vec![0; length];
    file.read_exact(&mut documents)?;
    Ok(Some(documents))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn documents_of_any_length_are_read_as_written() {
        for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK] {
            let mut file = Cursor::new(vec![7; 2 * BLOCK]);
            let documents: Vec<u8> = (0..length).map(|at| at as u8).collect();
            append(&mut file, &documents).unwrap();
            assert_eq!(file.get_ref().len() % BLOCK, 0);
            assert_eq!(read(&mut file, 3 * BLOCK).unwrap(), Some(documents));
        }
    }

    #[test]
    fn what_is_none_is_none() {
        let mut written = Cursor::new(vec![7; BLOCK]);
        append(&mut written, &[1; 100]).unwrap();
        let written = written.into_inner();
        let of = |bytes: Vec<u8>| read(&mut Cursor::new(bytes), 100).unwrap();
        assert!(of(written.clone()).is_some());
        assert_eq!(read(&mut Cursor::new(written.clone()), 99).unwrap(), None, "longer than allowed");
        assert_eq!(of(vec![7; 2 * BLOCK]), None, "no such end");
        assert_eq!(of(vec![7; 10]), None, "shorter than a block");
        let last = written.len() - BLOCK;
        assert_eq!(of(written[last..].to_vec()), None, "longer than what there is");
        for (at, byte) in [(0, b'X'), (8, 2), (12, 1), (23, 0x80)] {
            let mut changed = written.clone();
            changed[last + at] = byte;
            assert_eq!(of(changed), None, "byte {at}");
        }
        let mut unfinished = Cursor::new(vec![0; 10]);
        assert_eq!(append(&mut unfinished, b"x").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
