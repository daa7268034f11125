//! Who knows the images of a manifest: their registries, or a file.

use std::cell::RefCell;
use std::collections::BTreeMap;

use kata_cc_image::{ImageClient, ImageConfiguration};
use kata_cc_policy::generate::{ImageConfig, ImageInfo, ImageMap, ImageResolver, ResolveError};

use super::super::block_on;
use super::super::image::RegistryArguments;

/// Asks the file, where there is one, and else the registry, each image once.
pub(super) struct Images<'a> {
    given: Option<ImageMap>,
    registry: &'a RegistryArguments,
    known: RefCell<BTreeMap<String, ImageInfo>>,
}

impl<'a> Images<'a> {
    /// With the configurations of a file, and then no registry, or with registries.
    pub(super) fn new(given: Option<ImageMap>, registry: &'a RegistryArguments) -> Self {
        Self { given, registry, known: RefCell::default() }
    }

    /// What was asked for, as a file that answers without a registry.
    pub(super) fn seen(&self) -> ImageMap {
        let mut map = ImageMap::default();
        for (name, info) in &*self.known.borrow() {
            map.insert(name, info.clone());
        }
        map
    }

    fn ask(&self, reference: &str) -> anyhow::Result<ImageInfo> {
        let client = ImageClient::new(self.registry.config(&[reference])?)?;
        let image = block_on(async { Ok(client.examine(reference, &|_| {}).await?) })?;
        Ok(ImageInfo { digest: image.manifest_digest.to_string(), config: config_of(&image.config) })
    }
}

impl ImageResolver for Images<'_> {
    fn resolve(&self, reference: &str) -> Result<ImageInfo, ResolveError> {
        if let Some(info) = self.known.borrow().get(reference) {
            return Ok(info.clone());
        }
        let info = match &self.given {
            Some(map) => map.resolve(reference)?,
            None => self.ask(reference).map_err(|error| ResolveError::Registry {
                image: reference.to_owned(),
                reason: format!("{error:#}"),
            })?,
        };
        self.known.borrow_mut().insert(reference.to_owned(), info.clone());
        Ok(info)
    }
}

fn config_of(image: &ImageConfiguration) -> ImageConfig {
    let config = image.config().clone().unwrap_or_default();
    let volumes = config.volumes().clone().unwrap_or_default();
    ImageConfig {
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
        env: config.env().clone().unwrap_or_default(),
        user: config.user().clone().unwrap_or_default(),
        working_dir: config.working_dir().clone().unwrap_or_default(),
        volumes: volumes.into_iter().map(|path| (path, serde_json::json!({}))).collect(),
    }
}
