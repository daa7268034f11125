//! `kata-cc token`: looks at attestation tokens offline.
//!
//! `verify` checks signature and times against key sets (`--jwks`) or certificates to which the token's `x5c` has to lead (`--cert`);
//! `show` prints what a token says, which nobody has checked then. Exit codes: 0 verified (or shown); 1 refused, with the reason; 2
//! a file cannot be read, or is not what it should be.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kata_cc_attestation_service::ear::FINDINGS;
use kata_cc_attestation_service::jws::{JwsError, MAX_TOKEN, Unverified};
use kata_cc_attestation_service::token::{TokenError, TokenVerifier};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::read_input;
use crate::output::{Output, note, printable};

/// Exit code of a token that is refused.
const REFUSED: u8 = 1;
/// Exit code of what cannot be read.
const UNREADABLE: u8 = 2;
/// Most bytes of a key set or of certificates.
const MAX_TRUST: u64 = 1 << 20;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Check a token offline: signature, trust, times.
    Verify(Verify),
    /// Show what a token says, unchecked.
    Show(Show),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    /// File with the token; standard input when it is `-`.
    file: PathBuf,
    /// Key set (JWKS) whose keys are trusted; several may be given.
    #[arg(long, value_name = "FILE", required_unless_present = "cert")]
    jwks: Vec<PathBuf>,
    /// Certificates (PEM) to which the token's own (x5c) have to lead; several may be given.
    #[arg(long, value_name = "PEM")]
    cert: Vec<PathBuf>,
    /// Time of the check, RFC 3339; now without it.
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// File with the token; standard input when it is `-`.
    file: PathBuf,
}

/// Run a subcommand; gives the exit code.
pub(crate) fn run(command: Command, output: &Output) -> anyhow::Result<u8> {
    let done = match command {
        Command::Verify(arguments) => verify(&arguments, output),
        Command::Show(arguments) => show(&arguments, output),
    };
    done.or_else(|error| {
        output.error(&error);
        Ok(UNREADABLE)
    })
}

/// The text of a token.
pub(super) fn token_of(file: &Path) -> anyhow::Result<String> {
    let bytes = read_input(Some(file), MAX_TOKEN as u64)?;
    let text = std::str::from_utf8(&bytes).with_context(|| format!("{} is not text", file.display()))?;
    Ok(text.trim().to_owned())
}

/// What tokens are checked by.
pub(super) fn trusted(jwks: &[PathBuf], certificates: &[PathBuf]) -> anyhow::Result<TokenVerifier> {
    let mut verifier = TokenVerifier::default();
    for file in jwks {
        let name = || format!("key set {}", file.display());
        let jwks: Value = serde_json::from_slice(&read_input(Some(file), MAX_TRUST)?).with_context(name)?;
        anyhow::ensure!(verifier.trust_jwks(&jwks) > 0, "{} holds no key that can be used", name());
    }
    for file in certificates {
        let name = || format!("certificates {}", file.display());
        let added = verifier.trust_certificates(&read_input(Some(file), MAX_TRUST)?).with_context(name)?;
        anyhow::ensure!(added > 0, "{} holds no certificate", name());
    }
    Ok(verifier)
}

fn verify(arguments: &Verify, output: &Output) -> anyhow::Result<u8> {
    let now = match &arguments.at {
        None => OffsetDateTime::now_utc(),
        Some(text) => OffsetDateTime::parse(text, &Rfc3339)
            .with_context(|| format!("{text:?} is no time in RFC 3339"))?,
    };
    let (token, verifier) = (token_of(&arguments.file)?, trusted(&arguments.jwks, &arguments.cert)?);
    let claims = match verifier.verify(&token, now.unix_timestamp()) {
        Ok(claims) => claims,
        Err(error @ TokenError::Jws(JwsError::Format(_))) => return Err(error.into()),
        Err(error) => {
            if output.json {
                let answer = json!({"valid": false, "reason": error.reason(), "detail": error.to_string()});
                output.document(&answer)?;
            } else {
                output.text(&format!("refused: {error}\n"))?;
            }
            return Ok(REFUSED);
        }
    };
    if output.json {
        output.document(&json!({"valid": true, "claims": claims}))?;
    } else {
        output.text(&format!("verified\n{}", describe(&claims)))?;
    }
    Ok(0)
}

fn show(arguments: &Show, output: &Output) -> anyhow::Result<u8> {
    let token = token_of(&arguments.file)?;
    let parsed = Unverified::parse(&token)?;
    if output.json {
        output.document(&json!({"header": parsed.header, "claims": parsed.claims()}))?;
        return Ok(0);
    }
    note("kata-cc: nothing of this has been checked (kata-cc token verify does)");
    let algorithm = parsed.header.get("alg").and_then(Value::as_str).unwrap_or("none");
    output.text(&format!("algorithm {}\n{}", printable(algorithm), describe(parsed.claims())))?;
    Ok(0)
}

/// What the claims say, for people.
fn describe(claims: &Value) -> String {
    let text = |value: Option<&Value>| match value {
        Some(Value::String(text)) => printable(text),
        Some(value) => printable(&value.to_string()),
        None => "-".to_owned(),
    };
    let time = |name: &str| {
        let seconds = claims.get(name).and_then(Value::as_i64);
        let time = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
        time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| "-".to_owned())
    };
    let mut lines = vec![
        format!("issuer    {}", text(claims.get("iss"))),
        format!("issued    {}", time("iat")),
        format!("expires   {}", time("exp")),
    ];
    for (name, submod) in claims.get("submods").and_then(Value::as_object).into_iter().flatten() {
        let (status, policy) = (submod.get("ear.status"), submod.get("ear.appraisal-policy-id"));
        lines.push(format!("{:<9} {} (policy {})", printable(name), text(status), text(policy)));
        for (member, value) in
            submod.get("ear.trustworthiness-vector").and_then(Value::as_object).into_iter().flatten()
        {
            lines.push(format!("  {:<18} {}", printable(member), text(Some(value))));
        }
        for finding in submod.get(FINDINGS).and_then(Value::as_array).into_iter().flatten() {
            let of = |name: &str| text(finding.get(name));
            lines.push(format!("  {} is {}, expected {}", of("claim"), of("seen"), of("expected")));
            if let Some(advice) = finding.get("what_to_do") {
                lines.push(format!("    what to do: {}", text(Some(advice))));
            }
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_token_says_is_told_without_control_characters() {
        let claims = json!({"iss": "me\u{1b}[2J", "iat": 0, "exp": 1, "submods": {"cpu0": {
            "ear.status": "warning", "ear.appraisal-policy-id": "default",
            "ear.trustworthiness-vector": {"executables": 33},
            FINDINGS: [{"claim": "measurement", "seen": "aa", "expected": ["bb"], "what_to_do": "look"}]}}});
        let text = describe(&claims);
        assert!(!text.contains('\u{1b}'), "{text:?}");
        for words in [
            "1970-01-01T00:00:01Z",
            "cpu0      warning (policy default)",
            "executables        33",
            "measurement is aa, expected [\"bb\"]",
            "what to do: look",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(describe(&json!({})).contains("issuer    -"));
    }
}
