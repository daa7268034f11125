//! AMD's public certificates, the trust anchors of real evidence.
//!
//! One ARK (root), ASK (signs VCEKs) and ASVK (signs VLEKs) for each product, as AMD's key
//! distribution service publishes them; DER, unmodified. Only the ARK is trusted as such: the
//! intermediates are there so that evidence without them can be verified, and are verified
//! against the ARK like any others. SHA-256 of the ARKs' DER, to compare with another source:
//! Milan `69d063b4…540bcd`, Genoa `4c6598d1…3db2f1`, Turin `1f084161…dd3f6a`.

use crate::certs::Certificate;
use crate::verify::Product;

/// DER of one product's certificates.
#[derive(Clone, Copy, Debug)]
pub struct ProductCerts {
    /// Root.
    pub ark: &'static [u8],
    /// Intermediate of VCEKs.
    pub ask: &'static [u8],
    /// Intermediate of VLEKs.
    pub asvk: &'static [u8],
}

const MILAN: ProductCerts = ProductCerts {
    ark: include_bytes!("../roots/milan-ark.der"),
    ask: include_bytes!("../roots/milan-ask.der"),
    asvk: include_bytes!("../roots/milan-asvk.der"),
};

const GENOA: ProductCerts = ProductCerts {
    ark: include_bytes!("../roots/genoa-ark.der"),
    ask: include_bytes!("../roots/genoa-ask.der"),
    asvk: include_bytes!("../roots/genoa-asvk.der"),
};

const TURIN: ProductCerts = ProductCerts {
    ark: include_bytes!("../roots/turin-ark.der"),
    ask: include_bytes!("../roots/turin-ask.der"),
    asvk: include_bytes!("../roots/turin-asvk.der"),
};

/// The certificates of a product.
#[must_use]
pub const fn product_certs(product: Product) -> ProductCerts {
    match product {
        Product::Milan => MILAN,
        Product::Genoa => GENOA,
        Product::Turin => TURIN,
    }
}

/// The root of a product, parsed.
///
/// # Errors
/// Never for the built-in bytes (a test parses each); the error is passed on rather than a panic.
pub fn ark(product: Product) -> Result<Certificate, crate::certs::CertError> {
    Certificate::from_der(product_certs(product).ark)
}
