//! What the operator was told already. Guests can bring each of these warnings about as often as they like.

use std::sync::Mutex;

use crate::error::Errno;
use crate::sync::lock;

/// Most different things that are told: some of what they are told apart by is a guest's word.
const MOST: usize = 32;

/// What it is about, for what reason a processor came out, and the error.
type Kind = (&'static str, Option<u8>, Errno);

/// Which were told.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Vec<Kind>>);

impl Told {
    /// Whether this is to be told now.
    pub(super) fn is_new(&self, kind: Kind) -> bool {
        let mut told = lock(&self.0);
        let new = told.len() < MOST && !told.contains(&kind);
        if new {
            told.push(kind);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once_and_not_too_many() {
        let told = Told::default();
        assert!(told.is_new(("this", Some(8), Errno::EIO)) && told.is_new(("this", None, Errno::EIO)));
        assert!(!told.is_new(("this", Some(8), Errno::EIO)) && told.is_new(("this", Some(8), Errno::EFAULT)));
        assert!(told.is_new(("that", Some(8), Errno::EIO)));
        let count = (0..=255).filter(|reason| told.is_new(("this", Some(*reason), Errno::EIO))).count();
        assert_eq!(count, MOST - 4);
    }
}
