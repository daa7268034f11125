//! A folder of documents that somebody brought, in the layout of [`Item::path`] or as an OCI image layout.
//!
//! A chip's certificate may also be named `vcek.der` in the chip's folder, as Trustee's offline store allows; it is
//! taken when it is for the versions asked for. The folder is read, never written.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tokio::time::Instant;

use crate::bundle::{Bundle, BundleError};
use crate::document::{Document, MAX_DOCUMENT};
use crate::item::Item;
use crate::source::{Source, SourceError};

/// An offline folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    name: String,
    /// Contents of an OCI layout, read once.
    bundle: Option<Bundle>,
}

impl Folder {
    /// Opens a folder. An OCI layout is read whole, now; other files when they are asked for.
    ///
    /// # Errors
    /// [`BundleError`] when it is no folder or a broken layout.
    pub fn open(path: &Path) -> Result<Self, BundleError> {
        if !path.is_dir() {
            return Err(BundleError::Io {
                path: path.to_owned(),
                why: "is no folder: make it, or take offline_dir out of the configuration".to_owned(),
            });
        }
        let bundle = path.join("oci-layout").exists().then(|| Bundle::load(path)).transpose()?;
        Ok(Self { path: path.to_owned(), name: format!("folder {}", path.display()), bundle })
    }

    fn read(&self, item: &Item) -> Result<Option<Document>, SourceError> {
        if let Some(bundle) = &self.bundle {
            return Ok(bundle.get(item).cloned());
        }
        let path = self.path.join(item.path());
        if let Some(document) = self.read_file(item, &path)? {
            return Ok(Some(document));
        }
        if matches!(item, Item::Vcek { .. }) {
            // For other versions than those asked for it is as good as none.
            return Ok(self.read_file(item, &path.with_file_name("vcek.der")).ok().flatten());
        }
        Ok(None)
    }

    fn read_file(&self, item: &Item, path: &Path) -> Result<Option<Document>, SourceError> {
        let failed = |why: String| SourceError::File { path: path.display().to_string(), why };
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error.to_string())),
        };
        let mut bytes = Vec::new();
        file.take(2 * MAX_DOCUMENT as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| failed(error.to_string()))?;
        Document::from_file(item, bytes).map(Some).map_err(|why| SourceError::Unusable {
            service: self.name.clone(),
            item: item.to_string(),
            why,
        })
    }
}

#[async_trait]
impl Source for Folder {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_remote(&self) -> bool {
        false
    }

    async fn get(&self, item: &Item, _deadline: Instant) -> Result<Option<Document>, SourceError> {
        // Small local files: read at once.
        self.read(item)
    }
}
