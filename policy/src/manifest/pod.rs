//! A pod's specification.

use std::collections::BTreeMap;

use super::container::Container;
use super::error::ManifestError;
use super::fields::Fields;
use super::volume::Volume;

/// A pod's specification.
#[derive(Debug, Clone, Default)]
pub struct PodSpec {
    /// Path in the manifest, for messages.
    pub path: String,
    /// Runtime class.
    pub runtime_class: Option<String>,
    /// Containers.
    pub containers: Vec<Container>,
    /// Init containers, sidecars among them.
    pub init_containers: Vec<Container>,
    /// Containers added for looking into the pod.
    pub ephemeral_containers: Vec<Container>,
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// Host name, the pod's name without it.
    pub hostname: Option<String>,
    /// Domain below the cluster's.
    pub subdomain: Option<String>,
    /// Service account; `default` without it.
    pub service_account: Option<String>,
    /// Whether its token is mounted, where the pod says so.
    pub automount_token: Option<bool>,
    /// Variables of the namespace's services; true without it.
    pub service_links: bool,
    /// All containers see each other's processes.
    pub share_processes: bool,
    /// The host's network, processes, shared memory.
    pub host_namespaces: Vec<&'static str>,
    /// A user namespace of its own.
    pub user_namespace: bool,
    /// Node, where the manifest names one.
    pub node: Option<String>,
    /// What all containers may do, if they say nothing else.
    pub security: Security,
    /// Groups besides, `fsGroup` among them.
    pub groups: Vec<u32>,
    /// Kernel parameters.
    pub sysctls: BTreeMap<String, String>,
}

/// `securityContext` of a pod or of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Security {
    /// User.
    pub user: Option<u32>,
    /// Group.
    pub group: Option<u32>,
    /// Never user 0.
    pub non_root: Option<bool>,
    /// All rights that the guest has.
    pub privileged: Option<bool>,
    /// More privileges by set-user-id programs.
    pub escalation: Option<bool>,
    /// The root file system is read-only.
    pub read_only_root: Option<bool>,
    /// Capabilities added, without `CAP_`, in capitals.
    pub add: Vec<String>,
    /// Capabilities taken away.
    pub drop: Vec<String>,
    /// `procMount: Unmasked`.
    pub unmasked: bool,
}

/// Fields that decide nothing in a guest: placement, life cycle, name resolution (which the host carries anyway), network.
const IGNORED: [&str; 27] = [
    "activeDeadlineSeconds",
    "affinity",
    "dnsConfig",
    "dnsPolicy",
    "hostAliases",
    "imagePullSecrets",
    "nodeSelector",
    "os",
    "overhead",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "readinessGates",
    "resourceClaims",
    "resources",
    "restartPolicy",
    "schedulerName",
    "schedulingGates",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
    "serviceAccount",
    "hostnameOverride",
    "workloadRef",
    "minReadySeconds",
];

impl PodSpec {
    pub(super) fn read(fields: Fields<'_>) -> Result<Self, ManifestError> {
        let containers = |key| -> Result<Vec<Container>, ManifestError> {
            fields.objects(key)?.into_iter().map(Container::read).collect()
        };
        let flag = |key| fields.boolean(key).map(Option::unwrap_or_default);
        let mut host_namespaces = Vec::new();
        for key in ["hostNetwork", "hostPID", "hostIPC"] {
            if flag(key)? {
                fields
                    .warn(key, "a guest has no namespaces of the host: it is the guest's own that is meant");
                host_namespaces.push(key);
            }
        }
        let security = fields.object("securityContext")?;
        let mut groups = security.ids("supplementalGroups")?;
        groups.extend(security.id("fsGroup")?);
        let mut sysctls = BTreeMap::new();
        for entry in security.objects("sysctls")? {
            sysctls.insert(entry.needed("name")?, entry.text("value")?.unwrap_or_default());
        }
        let spec = Self {
            path: fields.path().to_owned(),
            runtime_class: fields.text("runtimeClassName")?,
            containers: containers("containers")?,
            init_containers: containers("initContainers")?,
            ephemeral_containers: containers("ephemeralContainers")?,
            volumes: fields.objects("volumes")?.into_iter().map(Volume::read).collect::<Result<_, _>>()?,
            hostname: fields.text("hostname")?,
            subdomain: fields.text("subdomain")?,
            service_account: fields.text("serviceAccountName")?.or(fields.text("serviceAccount")?),
            automount_token: fields.boolean("automountServiceAccountToken")?,
            service_links: fields.boolean("enableServiceLinks")?.unwrap_or(true),
            share_processes: flag("shareProcessNamespace")?,
            host_namespaces,
            user_namespace: fields.boolean("hostUsers")? == Some(false),
            node: fields.text("nodeName")?,
            security: Security::read(security)?,
            groups,
            sysctls,
        };
        fields.ignore(&IGNORED);
        if spec.containers.is_empty() {
            return Err(ManifestError::Missing { path: fields.at("containers") });
        }
        spec.check_names()?;
        fields.done();
        Ok(spec)
    }

    /// Every container with its role.
    pub fn all_containers(&self) -> impl Iterator<Item = (&'static str, &Container)> {
        let init = self.init_containers.iter();
        let init = init.map(|one| (if one.sidecar { "sidecar" } else { "init" }, one));
        let others = self.containers.iter().map(|one| ("container", one));
        init.chain(others).chain(self.ephemeral_containers.iter().map(|one| ("ephemeral", one)))
    }

    fn check_names(&self) -> Result<(), ManifestError> {
        let mut seen = std::collections::BTreeSet::new();
        for (_, container) in self.all_containers() {
            if !seen.insert(&container.name) {
                let reason = format!("{:?} is the name of another container", container.name);
                return Err(ManifestError::Invalid { path: format!("{}.name", container.path), reason });
            }
        }
        Ok(())
    }
}

impl Security {
    pub(super) fn read(fields: Fields<'_>) -> Result<Self, ManifestError> {
        let capabilities = fields.object("capabilities")?;
        let named = |key| -> Result<Vec<String>, ManifestError> {
            let names = capabilities.texts(key)?.unwrap_or_default().into_iter();
            Ok(names.map(|n| n.to_ascii_uppercase().trim_start_matches("CAP_").to_owned()).collect())
        };
        let security = Self {
            user: fields.id("runAsUser")?,
            group: fields.id("runAsGroup")?,
            non_root: fields.boolean("runAsNonRoot")?,
            privileged: fields.boolean("privileged")?,
            escalation: fields.boolean("allowPrivilegeEscalation")?,
            read_only_root: fields.boolean("readOnlyRootFilesystem")?,
            add: named("add")?,
            drop: named("drop")?,
            unmasked: fields.text("procMount")?.as_deref() == Some("Unmasked"),
        };
        fields.ignore(&[
            "seccompProfile",
            "appArmorProfile",
            "seLinuxOptions",
            "seLinuxChangePolicy",
            "windowsOptions",
            "fsGroupChangePolicy",
            "supplementalGroupsPolicy",
        ]);
        capabilities.done();
        fields.done();
        Ok(security)
    }

    /// A container's own words, the pod's where it says nothing.
    #[must_use]
    pub fn over(&self, pod: &Self) -> Self {
        Self {
            user: self.user.or(pod.user),
            group: self.group.or(pod.group),
            non_root: self.non_root.or(pod.non_root),
            ..self.clone()
        }
    }
}
