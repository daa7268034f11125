//! What Intel writes into the certificate of a platform's certification key (PCK certificate profile).

use kata_cc_x509::der::asn1::{AnyRef, OctetStringRef};
use kata_cc_x509::der::{self, Reader as _, SliceReader, Tag, Tagged as _};
use kata_cc_x509::{CertError, Certificate, ObjectIdentifier};

/// Intel's SGX extension and, below it, its members.
pub mod oid {
    use super::ObjectIdentifier;

    /// The extension.
    pub const SGX: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1");
    /// Platform provisioning id.
    pub const PPID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.1");
    /// Component versions, the version of the PCE, CPUSVN.
    pub const TCB: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.2");
    /// Id of the provisioning certification enclave.
    pub const PCE_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.3");
    /// Family, model, stepping, platform and custom SKU.
    pub const FMSPC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.4");
    /// Kind of SGX.
    pub const SGX_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.5");
    /// Id of the platform's instance (platform CA only).
    pub const PLATFORM_INSTANCE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.6");
    /// Flags of the platform (platform CA only).
    pub const CONFIGURATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.7");
}

const NAME: &str = "SGX extension";

/// Arc below [`oid::TCB`] of PCESVN; 1 to 16 are the components.
const ARC_PCE_SVN: u32 = 17;
/// Arc below [`oid::TCB`] of CPUSVN.
const ARC_CPU_SVN: u32 = 18;

/// Kind of SGX that the platform has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SgxType {
    /// Small encrypted memory, as in clients.
    Standard,
    /// Servers; memory encrypted without integrity.
    Scalable,
    /// Servers; memory encrypted with integrity.
    ScalableWithIntegrity,
}

impl SgxType {
    /// Name as Trustee writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Standard => "Standard",
            Self::Scalable => "Scalable",
            Self::ScalableWithIntegrity => "Scalable with Integrity",
        }
    }
}

/// Flags of a platform of several packages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Configuration {
    /// Packages may be added later.
    pub dynamic_platform: bool,
    /// The platform's keys are kept at Intel.
    pub cached_keys: bool,
    /// Simultaneous multithreading is on.
    pub smt_enabled: bool,
}

/// The authority that issues PCK certificates; each has a revocation list of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PckCa {
    /// Of platforms of one package.
    Processor,
    /// Of platforms of several packages: all that have TDX.
    Platform,
}

impl PckCa {
    /// Name as Intel's services take it (`ca=`).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Processor => "processor",
            Self::Platform => "platform",
        }
    }

    /// From the issuer that a PCK certificate names.
    #[must_use]
    pub fn of(pck: &Certificate) -> Option<Self> {
        let issuer = pck.issuer_cn();
        [Self::Processor, Self::Platform].into_iter().find(|ca| {
            let name = if *ca == Self::Processor { "PCK Processor CA" } else { "PCK Platform CA" };
            issuer.ends_with(name)
        })
    }
}

/// The extension of a PCK certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PckExtension {
    /// Platform provisioning id.
    pub ppid: [u8; 16],
    /// Versions of the 16 components.
    pub components: [u8; 16],
    /// Version of the provisioning certification enclave.
    pub pce_svn: u16,
    /// CPUSVN as the processor writes it.
    pub cpu_svn: [u8; 16],
    /// Id of the provisioning certification enclave.
    pub pce_id: [u8; 2],
    /// Which TCB info speaks about this platform.
    pub fmspc: [u8; 6],
    /// Kind of SGX.
    pub sgx_type: SgxType,
    /// Id of the platform's instance.
    pub platform_instance: Option<[u8; 16]>,
    /// Flags.
    pub configuration: Option<Configuration>,
}

impl PckExtension {
    /// Reads the extension.
    ///
    /// # Errors
    /// [`CertError`] when it is missing or malformed, or one of its members is missing, doubled or out of range.
    pub fn of(pck: &Certificate) -> Result<Self, CertError> {
        let value = pck
            .extension(NAME, oid::SGX)?
            .ok_or(CertError::MissingExtension { name: NAME, oid: oid::SGX })?;
        Self::parse(value).map_err(|_| CertError::BadExtension { name: NAME })
    }

    fn parse(value: &[u8]) -> der::Result<Self> {
        let members = pairs(value)?;
        let tcb = nested(required(&members, oid::TCB)?)?;
        let mut components = [0; 16];
        for (arc, component) in (1..).zip(&mut components) {
            *component = required(&tcb, oid::TCB.push_arc(arc)?)?.decode_as()?;
        }
        let sgx_type = required(&members, oid::SGX_TYPE)?;
        let sgx_type = match (sgx_type.tag(), sgx_type.value()) {
            (Tag::Enumerated, [0]) => SgxType::Standard,
            (Tag::Enumerated, [1]) => SgxType::Scalable,
            (Tag::Enumerated, [2]) => SgxType::ScalableWithIntegrity,
            _ => return Err(Tag::Enumerated.value_error()),
        };
        let configuration = optional(&members, oid::CONFIGURATION)?.map(configuration).transpose()?;
        Ok(Self {
            ppid: bytes(required(&members, oid::PPID)?)?,
            components,
            pce_svn: required(&tcb, oid::TCB.push_arc(ARC_PCE_SVN)?)?.decode_as()?,
            cpu_svn: bytes(required(&tcb, oid::TCB.push_arc(ARC_CPU_SVN)?)?)?,
            pce_id: bytes(required(&members, oid::PCE_ID)?)?,
            fmspc: bytes(required(&members, oid::FMSPC)?)?,
            sgx_type,
            platform_instance: optional(&members, oid::PLATFORM_INSTANCE)?.map(bytes).transpose()?,
            configuration,
        })
    }
}

fn configuration(value: AnyRef<'_>) -> der::Result<Configuration> {
    let members = nested(value)?;
    let flag = |arc| -> der::Result<bool> {
        let value = optional(&members, oid::CONFIGURATION.push_arc(arc)?)?;
        Ok(value.map(|value| value.decode_as()).transpose()?.unwrap_or_default())
    };
    Ok(Configuration { dynamic_platform: flag(1)?, cached_keys: flag(2)?, smt_enabled: flag(3)? })
}

type Pair<'a> = (ObjectIdentifier, AnyRef<'a>);

/// A sequence of pairs of identifier and value. The certificate's size bounds their number.
fn pairs(value: &[u8]) -> der::Result<Vec<Pair<'_>>> {
    let mut reader = SliceReader::new(value)?;
    let found = reader.sequence(|members| {
        let mut found = Vec::new();
        while !members.is_finished() {
            found.push(members.sequence(|pair| Ok((pair.decode()?, pair.decode()?)))?);
        }
        Ok(found)
    })?;
    reader.finish(found)
}

/// The same inside of a value.
fn nested(value: AnyRef<'_>) -> der::Result<Vec<Pair<'_>>> {
    value.tag().assert_eq(Tag::Sequence)?;
    let mut reader = SliceReader::new(value.value())?;
    let mut found = Vec::new();
    while !reader.is_finished() {
        found.push(reader.sequence(|pair| Ok((pair.decode()?, pair.decode()?)))?);
    }
    Ok(found)
}

/// The value of an identifier; one that stands there twice is refused.
fn optional<'a>(pairs: &[Pair<'a>], oid: ObjectIdentifier) -> der::Result<Option<AnyRef<'a>>> {
    let mut found = pairs.iter().filter(|(seen, _)| *seen == oid).map(|(_, value)| *value);
    let first = found.next();
    match found.next() {
        None => Ok(first),
        Some(_) => Err(Tag::ObjectIdentifier.value_error()),
    }
}

fn required<'a>(pairs: &[Pair<'a>], oid: ObjectIdentifier) -> der::Result<AnyRef<'a>> {
    optional(pairs, oid)?.ok_or_else(|| Tag::ObjectIdentifier.value_error())
}

fn bytes<const N: usize>(value: AnyRef<'_>) -> der::Result<[u8; N]> {
    let value: OctetStringRef<'_> = value.decode_as()?;
    value.as_bytes().try_into().map_err(|_| Tag::OctetString.length_error())
}
