//! TCB_VERSION: the security versions of the platform's firmware parts.
//!
//! Two layouts exist (firmware ABI, TCB_VERSION): up to Genoa, and from Turin on with the FMC.
//! Versions are compared part by part; as a 64-bit number they mean nothing.

use kata_cc_bytes::{Cursor, Truncated};

/// Where the parts sit in the eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TcbLayout {
    /// Milan, Genoa, Bergamo, Siena (family 0x19).
    Family19,
    /// Turin and later (family 0x1A and up).
    Family1A,
}

/// Security versions of the firmware parts. `fmc` exists from Turin on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Tcb {
    /// FMC (Turin and later).
    pub fmc: Option<u8>,
    /// Boot loader.
    pub bootloader: u8,
    /// PSP operating system.
    pub tee: u8,
    /// SNP firmware.
    pub snp: u8,
    /// CPU microcode.
    pub microcode: u8,
}

impl Tcb {
    /// Reads the eight bytes; the second value is false when reserved bytes are not zero.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 8], layout: TcbLayout) -> (Self, bool) {
        let [b0, b1, b2, b3, b4, b5, b6, b7] = bytes;
        match layout {
            TcbLayout::Family19 => {
                (Self { fmc: None, bootloader: b0, tee: b1, snp: b6, microcode: b7 }, b2 | b3 | b4 | b5 == 0)
            }
            TcbLayout::Family1A => {
                (Self { fmc: Some(b0), bootloader: b1, tee: b2, snp: b3, microcode: b7 }, b4 | b5 | b6 == 0)
            }
        }
    }

    /// The eight bytes of a report; the layout follows from the presence of `fmc`.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 8] {
        match self.fmc {
            None => [self.bootloader, self.tee, 0, 0, 0, 0, self.snp, self.microcode],
            Some(fmc) => [fmc, self.bootloader, self.tee, self.snp, 0, 0, 0, self.microcode],
        }
    }

    /// True when every part is at least that of `minimum`.
    #[must_use]
    pub const fn at_least(&self, minimum: &Self) -> bool {
        let fmc = match (self.fmc, minimum.fmc) {
            (_, None) => true,
            (Some(have), Some(need)) => have >= need,
            (None, Some(_)) => false,
        };
        fmc && self.bootloader >= minimum.bootloader
            && self.tee >= minimum.tee
            && self.snp >= minimum.snp
            && self.microcode >= minimum.microcode
    }

    pub(crate) fn read(
        cursor: &mut Cursor<'_>,
        layout: TcbLayout,
        clean: &mut bool,
    ) -> Result<Self, Truncated> {
        let (tcb, reserved_zero) = Self::from_bytes(cursor.array()?, layout);
        *clean &= reserved_zero;
        Ok(tcb)
    }
}

impl std::fmt::Display for Tcb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(fmc) = self.fmc {
            write!(f, "fmc {fmc}, ")?;
        }
        write!(
            f,
            "boot loader {}, tee {}, snp {}, microcode {}",
            self.bootloader, self.tee, self.snp, self.microcode
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_round_trip() {
        let bytes = [1, 2, 0, 0, 0, 0, 7, 8];
        let (tcb, clean) = Tcb::from_bytes(bytes, TcbLayout::Family19);
        assert!(clean);
        assert_eq!((tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode, tcb.fmc), (1, 2, 7, 8, None));
        assert_eq!(tcb.to_bytes(), bytes);
        let bytes = [1, 2, 3, 4, 0, 0, 0, 8];
        let (tcb, clean) = Tcb::from_bytes(bytes, TcbLayout::Family1A);
        assert!(clean);
        assert_eq!((tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode), (Some(1), 2, 3, 4, 8));
        assert_eq!(tcb.to_bytes(), bytes);
        assert!(!Tcb::from_bytes([0, 0, 1, 0, 0, 0, 0, 0], TcbLayout::Family19).1);
    }

    #[test]
    fn comparison_is_by_part() {
        let have = Tcb { fmc: None, bootloader: 3, tee: 0, snp: 8, microcode: 115 };
        assert!(have.at_least(&have));
        assert!(have.at_least(&Tcb { bootloader: 2, ..have }));
        assert!(!have.at_least(&Tcb { bootloader: 4, microcode: 0, ..have }));
        assert!(!have.at_least(&Tcb { fmc: Some(0), ..have }));
    }
}
