//! Intel's public root certificate, the trust anchor of real quotes.
//!
//! `Intel SGX Root CA`, DER, unmodified, as Intel publishes it; it is TDX's root as well. SHA-256 of the DER, to
//! compare with another source: `44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3`.

use kata_cc_x509::{CertError, Certificate};

/// DER of the root.
pub const INTEL_SGX_ROOT_CA: &[u8] = include_bytes!("../roots/intel-sgx-root-ca.der");

/// The root, parsed.
///
/// # Errors
/// Never for the built-in bytes (a test parses them); the error is passed on rather than a panic.
pub fn intel() -> Result<Certificate, CertError> {
    Certificate::from_der(INTEL_SGX_ROOT_CA)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_x509::SignatureAlgorithm;

    #[test]
    fn the_root_is_intels() {
        let root = intel().unwrap();
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, INTEL_SGX_ROOT_CA);
        assert_eq!(hex::encode(hash), "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3");
        assert_eq!(root.subject_cn(), "Intel SGX Root CA");
        assert_eq!(
            (root.check_authority(), root.signed_by(&root, SignatureAlgorithm::EcdsaP256Sha256)),
            (Ok(()), Ok(true))
        );
    }
}
