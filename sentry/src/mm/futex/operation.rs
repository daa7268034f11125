//! The operation of `FUTEX_WAKE_OP`, which a number encodes (`include/uapi/linux/futex.h`).

use crate::error::Errno;

/// What is done to the second word, and what its old value is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    change: Change,
    argument: u32,
    comparison: Comparison,
    against: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Set,
    Add,
    Or,
    AndNot,
    Xor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A number of 12 bits with its sign.
fn signed(bits: u32) -> i32 {
    (bits << 20).cast_signed() >> 20
}

impl Operation {
    /// Decodes it.
    ///
    /// # Errors
    /// ENOSYS for what is no operation.
    pub fn decode(code: u32) -> Result<Self, Errno> {
        let change = match (code >> 28) & 7 {
            0 => Change::Set,
            1 => Change::Add,
            2 => Change::Or,
            3 => Change::AndNot,
            4 => Change::Xor,
            _ => return Err(Errno::ENOSYS),
        };
        let comparison = match (code >> 24) & 15 {
            0 => Comparison::Equal,
            1 => Comparison::NotEqual,
            2 => Comparison::Less,
            3 => Comparison::LessOrEqual,
            4 => Comparison::Greater,
            5 => Comparison::GreaterOrEqual,
            _ => return Err(Errno::ENOSYS),
        };
        let argument = signed(code >> 12).cast_unsigned();
        // FUTEX_OP_OPARG_SHIFT; Linux takes the low bits of what is no number of a bit.
        let argument = if code >> 31 != 0 { 1 << (argument & 31) } else { argument };
        Ok(Self { change, argument, comparison, against: signed(code) })
    }

    /// What becomes of the word.
    #[must_use]
    pub fn apply(self, old: u32) -> u32 {
        match self.change {
            Change::Set => self.argument,
            Change::Add => old.wrapping_add(self.argument),
            Change::Or => old | self.argument,
            Change::AndNot => old & !self.argument,
            Change::Xor => old ^ self.argument,
        }
    }

    /// Whether the old value passes.
    #[must_use]
    pub fn compare(self, old: u32) -> bool {
        let old = old.cast_signed();
        match self.comparison {
            Comparison::Equal => old == self.against,
            Comparison::NotEqual => old != self.against,
            Comparison::Less => old < self.against,
            Comparison::LessOrEqual => old <= self.against,
            Comparison::Greater => old > self.against,
            Comparison::GreaterOrEqual => old >= self.against,
        }
    }
}
