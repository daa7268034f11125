//! A container of a pod.

use std::collections::BTreeMap;

use super::error::ManifestError;
use super::fields::Fields;
use super::pod::Security;

/// A container.
#[derive(Debug, Clone, Default)]
pub struct Container {
    /// Path in the manifest, for messages.
    pub path: String,
    /// Name.
    pub name: String,
    /// Image reference.
    pub image: String,
    /// `command`: in place of the image's entrypoint.
    pub command: Option<Vec<String>>,
    /// `args`: in place of the image's command.
    pub args: Option<Vec<String>>,
    /// Working folder, in place of the image's.
    pub working_dir: Option<String>,
    /// Variables.
    pub env: Vec<EnvVar>,
    /// Objects whose keys are variables.
    pub env_from: Vec<EnvFrom>,
    /// Mounts of the pod's volumes.
    pub mounts: Vec<Mount>,
    /// Paths of raw block volumes.
    pub devices: Vec<String>,
    /// Commands of probes and lifecycle hooks.
    pub commands: Vec<ExecCommand>,
    /// What it may do.
    pub security: Security,
    /// `resources.limits`.
    pub limits: BTreeMap<String, String>,
    /// `resources.requests`.
    pub requests: BTreeMap<String, String>,
    /// Whether it runs beside the others though it stands among the init containers.
    pub sidecar: bool,
    /// Standard input is asked for.
    pub stdin: bool,
    /// A terminal is asked for.
    pub tty: bool,
    /// Where it leaves its last words.
    pub termination_message_path: Option<String>,
}

/// A command that the kubelet runs in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecCommand {
    /// What for, e.g. `livenessProbe`.
    pub purpose: &'static str,
    /// Program and arguments, as they are: Kubernetes expands no variables here.
    pub command: Vec<String>,
}

/// A variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvVar {
    /// Name.
    pub name: String,
    /// Where its value comes from.
    pub source: EnvSource,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvSource {
    /// It stands there, with `$(NAME)` to be expanded.
    Value(String),
    /// A key of a ConfigMap.
    ConfigMap {
        /// Name of the object.
        name: String,
        /// Key.
        key: String,
        /// It may be absent.
        optional: bool,
    },
    /// A key of a Secret.
    Secret {
        /// Name of the object.
        name: String,
        /// Key.
        key: String,
        /// It may be absent.
        optional: bool,
    },
    /// A field of the pod, `status.podIP`.
    Field(String),
    /// A resource of a container, `limits.cpu`.
    Resource {
        /// Container, this one without it.
        container: Option<String>,
        /// Which.
        resource: String,
        /// Divisor.
        divisor: Option<String>,
    },
}

/// All keys of an object as variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvFrom {
    /// Put before each key.
    pub prefix: String,
    /// Name of the object.
    pub name: String,
    /// A Secret, else a ConfigMap.
    pub secret: bool,
    /// It may be absent.
    pub optional: bool,
}

/// A mount of one of the pod's volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The volume's name.
    pub volume: String,
    /// Where in the container.
    pub path: String,
    /// Read-only.
    pub read_only: bool,
    /// A folder of the volume alone.
    pub sub_path: bool,
    /// Mounts made later go both ways.
    pub bidirectional: bool,
}

/// Fields that decide nothing in a guest.
const IGNORED: [&str; 5] =
    ["imagePullPolicy", "ports", "resizePolicy", "terminationMessagePolicy", "stdinOnce"];

impl Container {
    pub(super) fn read(fields: Fields<'_>) -> Result<Self, ManifestError> {
        fields.ignore(&IGNORED);
        let name = fields.needed("name")?;
        let resources = fields.object("resources")?;
        let container = Self {
            path: fields.path().to_owned(),
            image: fields.text("image")?.unwrap_or_default(),
            command: fields.texts("command")?,
            args: fields.texts("args")?,
            working_dir: fields.text("workingDir")?.filter(|dir| !dir.is_empty()),
            env: fields.objects("env")?.into_iter().map(variable).collect::<Result<_, _>>()?,
            env_from: env_from(&fields)?,
            mounts: fields.objects("volumeMounts")?.into_iter().map(mount).collect::<Result<_, _>>()?,
            devices: devices(&fields)?,
            commands: commands(&fields)?,
            security: Security::read(fields.object("securityContext")?)?,
            limits: resources.quantities("limits")?,
            requests: resources.quantities("requests")?,
            sidecar: fields.text("restartPolicy")?.as_deref() == Some("Always"),
            stdin: fields.boolean("stdin")?.unwrap_or_default(),
            tty: fields.boolean("tty")?.unwrap_or_default(),
            termination_message_path: fields.text("terminationMessagePath")?.filter(|p| !p.is_empty()),
            name,
        };
        resources.ignore(&["claims"]);
        resources.done();
        fields.ignore(&["targetContainerName", "restartPolicyRules"]);
        if container.image.is_empty() {
            return Err(ManifestError::Missing { path: fields.at("image") });
        }
        fields.done();
        Ok(container)
    }
}

fn variable(fields: Fields<'_>) -> Result<EnvVar, ManifestError> {
    let name = fields.needed("name")?;
    if name.is_empty() || name.contains(['=', '\0']) {
        let reason = format!("{name:?} is no name of a variable");
        return Err(ManifestError::Invalid { path: fields.at("name"), reason });
    }
    let value = fields.text("value")?;
    let from = fields.maybe("valueFrom")?;
    let source = match from {
        Some(from) => value_from(from)?,
        None => EnvSource::Value(value.unwrap_or_default()),
    };
    fields.done();
    Ok(EnvVar { name, source })
}

fn value_from(from: Fields<'_>) -> Result<EnvSource, ManifestError> {
    let keyed = |fields: &Fields<'_>| -> Result<(String, String, bool), ManifestError> {
        let optional = fields.boolean("optional")?.unwrap_or_default();
        Ok((fields.needed("name")?, fields.needed("key")?, optional))
    };
    let source = if let Some(map) = from.maybe("configMapKeyRef")? {
        let (name, key, optional) = keyed(&map)?;
        map.done();
        EnvSource::ConfigMap { name, key, optional }
    } else if let Some(secret) = from.maybe("secretKeyRef")? {
        let (name, key, optional) = keyed(&secret)?;
        secret.done();
        EnvSource::Secret { name, key, optional }
    } else if let Some(field) = from.maybe("fieldRef")? {
        field.ignore(&["apiVersion"]);
        let path = field.needed("fieldPath")?;
        field.done();
        EnvSource::Field(path)
    } else if let Some(resource) = from.maybe("resourceFieldRef")? {
        let container = resource.text("containerName")?;
        let divisor = resource.quantity("divisor")?;
        let which = resource.needed("resource")?;
        resource.done();
        EnvSource::Resource { container, resource: which, divisor }
    } else {
        return Err(ManifestError::Invalid {
            path: from.path().to_owned(),
            reason: "it names no source that is known here (configMapKeyRef, secretKeyRef, fieldRef, resourceFieldRef)"
                .to_owned(),
        });
    };
    from.done();
    Ok(source)
}

fn env_from(fields: &Fields<'_>) -> Result<Vec<EnvFrom>, ManifestError> {
    let mut all = Vec::new();
    for entry in fields.objects("envFrom")? {
        let prefix = entry.text("prefix")?.unwrap_or_default();
        for (key, secret) in [("configMapRef", false), ("secretRef", true)] {
            if let Some(object) = entry.maybe(key)? {
                let optional = object.boolean("optional")?.unwrap_or_default();
                let name = object.needed("name")?;
                object.done();
                all.push(EnvFrom { prefix: prefix.clone(), name, secret, optional });
            }
        }
        entry.done();
    }
    Ok(all)
}

fn mount(fields: Fields<'_>) -> Result<Mount, ManifestError> {
    let sub = fields.text("subPath")?.or(fields.text("subPathExpr")?).filter(|path| !path.is_empty());
    let mount = Mount {
        volume: fields.needed("name")?,
        path: fields.needed("mountPath")?,
        read_only: fields.boolean("readOnly")?.unwrap_or_default(),
        sub_path: sub.is_some(),
        bidirectional: fields.text("mountPropagation")?.as_deref() == Some("Bidirectional"),
    };
    if !mount.path.starts_with('/') && !mount.path.is_empty() {
        fields.warn("mountPath", "the path is relative: runtimes take it from the root");
    }
    fields.ignore(&["recursiveReadOnly"]);
    fields.done();
    Ok(mount)
}

fn devices(fields: &Fields<'_>) -> Result<Vec<String>, ManifestError> {
    let path = |device: Fields<'_>| {
        device.ignore(&["name"]);
        let path = device.needed("devicePath")?;
        device.done();
        Ok(path)
    };
    fields.objects("volumeDevices")?.into_iter().map(path).collect()
}

fn commands(fields: &Fields<'_>) -> Result<Vec<ExecCommand>, ManifestError> {
    let mut all = Vec::new();
    let mut take = |purpose: &'static str, handler: &Fields<'_>| -> Result<(), ManifestError> {
        handler.ignore(&["httpGet", "tcpSocket", "grpc", "sleep"]);
        if let Some(exec) = handler.maybe("exec")? {
            let command = exec.texts("command")?.unwrap_or_default();
            exec.done();
            if !command.is_empty() {
                all.push(ExecCommand { purpose, command });
            }
        }
        Ok(())
    };
    for purpose in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = fields.maybe(purpose)? {
            take(purpose, &probe)?;
            probe.ignore(&[
                "initialDelaySeconds",
                "timeoutSeconds",
                "periodSeconds",
                "successThreshold",
                "failureThreshold",
                "terminationGracePeriodSeconds",
            ]);
            probe.done();
        }
    }
    if let Some(lifecycle) = fields.maybe("lifecycle")? {
        for purpose in ["postStart", "preStop"] {
            if let Some(handler) = lifecycle.maybe(purpose)? {
                take(purpose, &handler)?;
                handler.done();
            }
        }
        lifecycle.ignore(&["stopSignal"]);
        lifecycle.done();
    }
    Ok(all)
}
