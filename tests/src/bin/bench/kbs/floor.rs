//! The floor: what a handshake cannot do without, measured bare.

use std::time::Instant;

use aws_lc_rs::agreement::{
    self, Algorithm, ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey as Peer, X25519,
};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, KeyPair as _, UnparsedPublicKey,
};

const REPEATED: u32 = 500;

/// Seconds of each piece.
pub(crate) struct Floor {
    /// Verifying the report: ECDSA P-384 over 672 bytes.
    report: f64,
    /// Signing the token: ECDSA P-256.
    token: f64,
    /// The server's half of TLS 1.3: one ECDSA P-256 signature and one X25519 agreement with a fresh key.
    tls: f64,
    /// Encrypting to a guest's key: one P-256 agreement with a fresh key.
    release: f64,
}

impl Floor {
    /// Seconds of all.
    pub(crate) fn total(&self) -> f64 {
        self.report + self.token + self.tls
    }

    /// Seconds that releasing a resource cannot do without: an ECDH agreement on P-256 with a fresh key.
    pub(crate) fn resource(&self) -> f64 {
        self.release
    }

    /// One line.
    pub(crate) fn describe(&self) -> String {
        format!(
            "floor of a handshake: {:.3} ms (report {:.3}, token {:.3}, TLS {:.3}); certificates do not change and are verified once",
            self.total() * 1e3,
            self.report * 1e3,
            self.token * 1e3,
            self.tls * 1e3
        )
    }
}

/// Measures the pieces on this processor.
pub(crate) fn measure() -> anyhow::Result<Floor> {
    let rng = SystemRandom::new();
    let report = [7; 672];
    let key = pair(&ECDSA_P384_SHA384_FIXED_SIGNING)?;
    let signature = key.sign(&rng, &report)?;
    let public = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key.public_key().as_ref().to_vec());
    let report_seconds = time(|| Ok(public.verify(&report, signature.as_ref())?))?;
    let key = pair(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    let token = time(|| Ok(key.sign(&rng, &report).map(drop)?))?;
    let tls = token + agree(&X25519, &rng)?;
    Ok(Floor { report: report_seconds, token, tls, release: agree(&ECDH_P256, &rng)? })
}

/// An agreement with a fresh key.
fn agree(curve: &'static Algorithm, rng: &SystemRandom) -> anyhow::Result<f64> {
    let guest = EphemeralPrivateKey::generate(curve, rng)?.compute_public_key()?;
    time(|| {
        let own = EphemeralPrivateKey::generate(curve, rng)?;
        own.compute_public_key()?;
        Ok(agreement::agree_ephemeral(
            own,
            Peer::new(curve, guest.as_ref()),
            aws_lc_rs::error::Unspecified,
            |_| Ok(()),
        )?)
    })
}

fn pair(algorithm: &'static EcdsaSigningAlgorithm) -> anyhow::Result<EcdsaKeyPair> {
    Ok(EcdsaKeyPair::generate(algorithm)?)
}

fn time(mut piece: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let mut best = f64::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        for _ in 0..REPEATED {
            piece()?;
        }
        best = best.min(start.elapsed().as_secs_f64() / f64::from(REPEATED));
    }
    Ok(best)
}
