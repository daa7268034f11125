//! Helpers of the unit tests.

use std::path::PathBuf;

/// Folder of the shared vectors; says so and returns `None` when it is absent.
pub(crate) fn vectors(folder: &str) -> Option<PathBuf> {
    let root = std::env::var_os("KATA_CC_VECTORS").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"),
        PathBuf::from,
    );
    let path = root.join(folder);
    if path.is_dir() {
        return Some(path);
    }
    println!("skipped: no vectors in {}", path.display());
    None
}
