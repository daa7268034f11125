//! A volume of a pod.

use super::error::ManifestError;
use super::fields::Fields;

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Path in the manifest, for messages.
    pub path: String,
    /// Name.
    pub name: String,
    /// What is in it.
    pub source: VolumeSource,
}

/// What a volume holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSource {
    /// Nothing at first; the guest's memory or disk.
    EmptyDir {
        /// In memory.
        memory: bool,
    },
    /// A ConfigMap's keys as files.
    ConfigMap(String),
    /// A Secret's keys as files.
    Secret(String),
    /// Fields of the pod as files.
    DownwardApi,
    /// Several of these in one folder.
    Projected(Vec<Projected>),
    /// A path of the host.
    HostPath(String),
    /// A claim on storage, or storage that a driver makes for this pod.
    Claim(String),
    /// An image's files.
    Image(String),
    /// Storage of another kind (NFS, iSCSI, CSI inline…).
    Other(String),
}

/// A part of a projected volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Projected {
    /// The service account's token.
    Token,
    /// A ConfigMap.
    ConfigMap(String),
    /// A Secret.
    Secret(String),
    /// Fields of the pod.
    DownwardApi,
    /// Trust anchors of the cluster.
    TrustBundle,
}

impl Volume {
    pub(super) fn read(fields: Fields<'_>) -> Result<Self, ManifestError> {
        let name = fields.needed("name")?;
        let source = source(&fields, &name)?;
        let path = fields.path().to_owned();
        fields.done();
        Ok(Self { path, name, source })
    }
}

fn source(fields: &Fields<'_>, name: &str) -> Result<VolumeSource, ManifestError> {
    if let Some(empty) = fields.maybe("emptyDir")? {
        return Ok(VolumeSource::EmptyDir { memory: empty.text("medium")?.as_deref() == Some("Memory") });
    }
    if let Some(map) = fields.maybe("configMap")? {
        return Ok(VolumeSource::ConfigMap(map.text("name")?.unwrap_or_default()));
    }
    if let Some(secret) = fields.maybe("secret")? {
        return Ok(VolumeSource::Secret(secret.text("secretName")?.unwrap_or_default()));
    }
    if fields.maybe("downwardAPI")?.is_some() {
        return Ok(VolumeSource::DownwardApi);
    }
    if let Some(projected) = fields.maybe("projected")? {
        return projected_parts(&projected).map(VolumeSource::Projected);
    }
    if let Some(host) = fields.maybe("hostPath")? {
        return Ok(VolumeSource::HostPath(host.needed("path")?));
    }
    if let Some(claim) = fields.maybe("persistentVolumeClaim")? {
        return Ok(VolumeSource::Claim(claim.needed("claimName")?));
    }
    if fields.maybe("ephemeral")?.is_some() {
        return Ok(VolumeSource::Claim(name.to_owned()));
    }
    if let Some(image) = fields.maybe("image")? {
        return Ok(VolumeSource::Image(image.text("reference")?.unwrap_or_default()));
    }
    for kind in [
        "csi",
        "nfs",
        "iscsi",
        "cephfs",
        "rbd",
        "glusterfs",
        "fc",
        "azureDisk",
        "azureFile",
        "awsElasticBlockStore",
        "gcePersistentDisk",
        "vsphereVolume",
        "portworxVolume",
        "flexVolume",
        "cinder",
        "scaleIO",
        "storageos",
        "quobyte",
        "flocker",
        "photonPersistentDisk",
        "gitRepo",
    ] {
        if fields.value(kind).is_some() {
            return Ok(VolumeSource::Other(kind.to_owned()));
        }
    }
    // an object without a source is an emptyDir (API reference, Volume)
    Ok(VolumeSource::EmptyDir { memory: false })
}

fn projected_parts(projected: &Fields<'_>) -> Result<Vec<Projected>, ManifestError> {
    let mut parts = Vec::new();
    for part in projected.objects("sources")? {
        if part.maybe("serviceAccountToken")?.is_some() {
            parts.push(Projected::Token);
        }
        if let Some(map) = part.maybe("configMap")? {
            parts.push(Projected::ConfigMap(map.text("name")?.unwrap_or_default()));
        }
        if let Some(secret) = part.maybe("secret")? {
            parts.push(Projected::Secret(secret.text("name")?.unwrap_or_default()));
        }
        if part.maybe("downwardAPI")?.is_some() {
            parts.push(Projected::DownwardApi);
        }
        if part.maybe("clusterTrustBundle")?.is_some() || part.maybe("podCertificate")?.is_some() {
            parts.push(Projected::TrustBundle);
        }
        part.done();
    }
    Ok(parts)
}
