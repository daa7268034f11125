//! Policies from manifests: what a pod may run is worked out from its YAML and its images, and written as Rego that can be read.
//!
//! The text has three parts: a summary in comments, the document `policy_data` ([`PolicyData`]) and the rules, which are the same in
//! every policy. Nothing of it is taken from a cluster. Values that only the running pod knows (its address, its node) become
//! patterns; what the host can choose anyway is told as a warning.

mod env;
mod image;
mod model;
mod mounts;
mod render;
mod rights;
mod value;

use std::cell::RefCell;
use std::collections::BTreeMap;

use thiserror::Error;

pub use image::{ImageConfig, ImageInfo, ImageMap, ImageResolver, Reference, ResolveError, is_digest};
pub use model::{
    ContainerData, ExecData, ImageData, Matcher, MountData, Open, PodData, PolicyData, SecureMount, UserData,
    VERSION,
};
pub use render::{data_of, is_generated, render, requests, rules};

use crate::agent::AgentPolicy;
use crate::engine::EngineError;
use crate::manifest::{Container, Manifest, PodSpec, Warning, Workload};
use value::expand;

/// Why no policy was made.
#[derive(Debug, Error)]
pub enum GenerateError {
    /// An image is not known.
    #[error("{path}: {source}")]
    Image {
        /// Container.
        path: String,
        /// Why.
        source: ResolveError,
    },
    /// An object of which all keys become variables is not there: their names cannot be known.
    #[error("{path}: {kind} {name} is not in the manifest: give it in the same input")]
    Absent {
        /// Where it is asked for.
        path: String,
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The manifest asks for what cannot be.
    #[error("{path}: {reason}")]
    Contradiction {
        /// Where.
        path: String,
        /// What.
        reason: String,
    },
    /// What was made does not compile: a value is too long for a policy.
    #[error("the policy is not one that the agent takes: {0}")]
    Unusable(#[from] EngineError),
}

/// What is opened besides what the manifest says.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Requests.
    pub open: Open,
    /// Commands that may be run, in the named container or, without a name, in each.
    pub commands: Vec<(Option<String>, Vec<String>)>,
    /// Device nodes, likewise.
    pub devices: Vec<(Option<String>, String)>,
    /// Encrypted volumes.
    pub secure_mounts: Vec<SecureMount>,
    /// Namespace of pods whose manifest names none.
    pub namespace: Option<String>,
}

/// A policy.
#[derive(Debug, Clone)]
pub struct Generated {
    /// What it says.
    pub data: PolicyData,
    /// Rego.
    pub text: String,
    /// What should be known.
    pub warnings: Vec<Warning>,
}

/// What the parts of a pod are worked out from.
struct Context<'a> {
    manifest: &'a Manifest,
    workload: &'a Workload,
    warnings: RefCell<Vec<Warning>>,
}

impl Context<'_> {
    fn spec(&self) -> &PodSpec {
        &self.workload.spec
    }

    fn warn(&self, path: &str, message: impl Into<String>) {
        self.warnings.borrow_mut().push(Warning { path: path.to_owned(), message: message.into() });
    }
}

/// Makes the policy of one workload of a manifest.
///
/// # Errors
/// See [`GenerateError`].
pub fn generate(
    manifest: &Manifest,
    workload: &Workload,
    images: &dyn ImageResolver,
    settings: &Settings,
) -> Result<Generated, GenerateError> {
    let context = Context { manifest, workload, warnings: RefCell::default() };
    mounts::warnings(&context);
    let mut containers = BTreeMap::new();
    for (kind, container) in workload.spec.all_containers() {
        let data = container_data(&context, (kind, container), images, settings)?;
        containers.insert(container.name.clone(), data);
    }
    let named = settings.commands.iter().filter_map(|(name, _)| name.as_ref());
    for name in named.chain(settings.devices.iter().filter_map(|(name, _)| name.as_ref())) {
        if !containers.contains_key(name) {
            let reason = format!("there is no container {name:?} to open something for");
            return Err(GenerateError::Contradiction { path: workload.title.clone(), reason });
        }
    }
    let data = PolicyData {
        version: VERSION,
        pod: pod_data(&context, settings),
        open: settings.open.clone(),
        sandbox: sandbox(&context),
        containers,
        secure_mounts: settings.secure_mounts.clone(),
    };
    let text = render(&data);
    AgentPolicy::new("policy.rego", &text)?;
    let mut warnings = context.warnings.take();
    warnings.sort();
    warnings.dedup();
    Ok(Generated { data, text, warnings })
}

fn pod_data(context: &Context<'_>, settings: &Settings) -> PodData {
    let spec = context.spec();
    let name = env::pod_name(&context.workload.pod_name);
    let hostname = match &spec.hostname {
        // with `setHostnameAsFQDN` the domain follows
        Some(name) => Matcher { begins: Some(name.clone()), ..Matcher::of("name", "hostname") },
        None if spec.host_namespaces.contains(&"hostNetwork") => Matcher::of("name", "the node's name"),
        None => match name.exactly {
            Some(name) => {
                let begins = name.chars().take(63).collect();
                Matcher { begins: Some(begins), ..Matcher::of("name", "pod") }
            }
            None => name,
        },
    };
    PodData {
        workload: context.workload.title.clone(),
        namespace: context.workload.namespace.clone().or_else(|| settings.namespace.clone()),
        hostname,
        share_processes: spec.share_processes,
        user_namespace: spec.user_namespace,
        service_variables: spec.service_links,
        sysctls: spec.sysctls.clone(),
    }
}

/// The pause container. Its program is the agent's own, so nothing is said of it; what its mounts and rights may be, is.
fn sandbox(context: &Context<'_>) -> ContainerData {
    ContainerData {
        kind: "sandbox".to_owned(),
        image: ImageData { references: vec!["pause".to_owned()], digests: Vec::new() },
        args: Vec::new(),
        args_at_run_time: BTreeMap::new(),
        cwd: "/".to_owned(),
        env: BTreeMap::new(),
        env_at_run_time: BTreeMap::new(),
        env_overridden: Vec::new(),
        user: UserData {
            uid: None,
            gid: None,
            gid_or_zero: false,
            groups: context.spec().groups.clone(),
            not_root: false,
        },
        capabilities: rights::default_capabilities(),
        privileged: false,
        // that a pod has a privileged container is told of its sandbox; containerd 1.6 to 2.1 leave nothing but its seccomp filter away
        unmasked: context.spec().all_containers().any(|(_, c)| c.security.privileged == Some(true)),
        read_only_root: false,
        no_new_privileges: false,
        mounts: BTreeMap::new(),
        devices: Vec::new(),
        exec: Vec::new(),
        stdin: false,
        terminal: false,
    }
}

fn container_data(
    context: &Context<'_>,
    (kind, container): (&str, &Container),
    images: &dyn ImageResolver,
    settings: &Settings,
) -> Result<ContainerData, GenerateError> {
    let failed = |source| GenerateError::Image { path: container.path.clone(), source };
    let image = images.resolve(&container.image).map_err(failed)?;
    let env = env::environment(context, container, &image.config.env)?;
    let (args, args_at_run_time) = arguments(container, &image.config, &env.pod);
    if args.is_empty() {
        let reason = "neither the container nor its image names a program".to_owned();
        return Err(GenerateError::Contradiction { path: container.path.clone(), reason });
    }
    let security = container.security.over(&context.spec().security);
    let privileged = security.privileged == Some(true);
    if privileged {
        context.warn(
            &container.path,
            "the container is privileged: it is the guest's root, and may read all of its secrets",
        );
    }
    let own = image.config.working_dir.clone();
    let first = |name: &Option<String>| name.as_ref().is_none_or(|name| *name == container.name);
    let commands = settings.commands.iter().filter(|(name, _)| first(name));
    let mut exec: Vec<ExecData> = container
        .commands
        .iter()
        .map(|c| ExecData { args: c.command.clone(), purpose: c.purpose.to_owned() })
        .chain(commands.map(|(_, args)| ExecData { args: args.clone(), purpose: "settings".to_owned() }))
        .collect();
    exec.sort();
    exec.dedup_by(|a, b| a.args == b.args);
    let mut devices = container.devices.clone();
    devices.extend(settings.devices.iter().filter(|(name, _)| first(name)).map(|(_, path)| path.clone()));
    let extended = container.limits.keys().find(|name| name.contains('/'));
    if let (Some(resource), true) = (extended, devices.is_empty()) {
        context.warn(
            &container.path,
            format!("resource {resource} brings devices, which the policy does not know: name them as allowed devices"),
        );
    }
    Ok(ContainerData {
        kind: kind.to_owned(),
        image: image_data(&container.image, &image),
        args,
        args_at_run_time,
        cwd: container
            .working_dir
            .clone()
            .or(Some(own))
            .filter(|dir| !dir.is_empty())
            .unwrap_or_else(|| "/".to_owned()),
        env: env.known(),
        env_at_run_time: env.at_run_time(),
        env_overridden: env.overridden(&image.config.env),
        user: rights::user(context, container, &image.config.user)?,
        capabilities: rights::capabilities(&security),
        privileged,
        unmasked: privileged || security.unmasked,
        read_only_root: security.read_only_root == Some(true),
        no_new_privileges: security.escalation == Some(false),
        mounts: mounts::mounts(context, container, &image.config.volumes)?,
        devices,
        exec,
        stdin: container.stdin,
        terminal: container.tty,
    })
}

fn image_data(name: &str, image: &ImageInfo) -> ImageData {
    let reference = Reference::parse(name);
    let mut references = reference.names();
    references.extend(reference.pinned(&image.digest));
    references.sort();
    references.dedup();
    ImageData { references, digests: vec![image.digest.clone()] }
}

/// Program and arguments, the image's where the pod says nothing (Kubernetes, "Define a Command and Arguments for a Container").
fn arguments(
    container: &Container,
    image: &ImageConfig,
    known: &BTreeMap<String, value::Text>,
) -> (Vec<String>, BTreeMap<String, Matcher>) {
    let own = |list: &Option<Vec<String>>| list.clone().filter(|list| !list.is_empty());
    let (command, args) = (own(&container.command), own(&container.args));
    let raw = match (command, args) {
        (Some(command), args) => (command, args.unwrap_or_default(), true),
        (None, Some(args)) => (image.entrypoint.clone(), args, false),
        (None, None) => {
            return ([image.entrypoint.clone(), image.cmd.clone()].concat(), BTreeMap::new());
        }
    };
    let (first, rest, expanded) = raw;
    let first = first.iter().map(|text| match expanded {
        true => expand(text, known),
        false => value::Text::known(text),
    });
    let texts: Vec<value::Text> = first.chain(rest.iter().map(|text| expand(text, known))).collect();
    let mut later = BTreeMap::new();
    let mut words = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        if let Some(word) = text.as_known() {
            words.push(word.to_owned());
            continue;
        }
        let matcher = text.matcher();
        words.push(format!("({matcher})"));
        later.insert(number.to_string(), matcher);
    }
    (words, later)
}
