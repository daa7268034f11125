//! Where tests find the shared test vectors. They are no part of the checkout: `shared/vectors` lies beside it or above.
//!
//! Looked for at run time, so that a test program finds them also when the checkout was moved, or when checkouts share a target folder:
//! `KATA_CC_VECTORS`; else `shared/vectors` in the folder of the package under test (cargo sets `CARGO_MANIFEST_DIR` for what it runs)
//! or any above; else above where this was compiled. A test without vectors is skipped, and says so.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

/// Where the vectors lie, from the checkout's folder or one above.
const PLACE: &str = "shared/vectors";

/// The folder of all vectors.
#[must_use]
pub fn root() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    find(var("KATA_CC_VECTORS"), var("CARGO_MANIFEST_DIR").as_deref(), Path::new(env!("CARGO_MANIFEST_DIR")))
}

/// What is set is taken as it is: a wrong path must not be made up for by other vectors.
fn find(set: Option<PathBuf>, run: Option<&Path>, compiled: &Path) -> Option<PathBuf> {
    if set.is_some() {
        return set;
    }
    let above = |from: &Path| from.ancestors().map(|dir| dir.join(PLACE)).find(|dir| dir.is_dir());
    run.and_then(above).or_else(|| above(compiled))
}

/// The path of a file or folder among the vectors. Without it, says that the test is skipped.
#[must_use]
pub fn path(name: &str) -> Option<PathBuf> {
    let Some(root) = root() else {
        println!("skipped: no vectors ({PLACE} is nowhere above, KATA_CC_VECTORS is not set)");
        return None;
    };
    let path = root.join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: no vectors at {}", path.display());
    None
}

/// The contents of a file among the vectors. Without it, says that the test is skipped.
///
/// # Panics
/// When the file is there and cannot be read: that is no reason to skip a test.
#[must_use]
pub fn read(name: &str) -> Option<Vec<u8>> {
    let path = path(name)?;
    Some(std::fs::read(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_final_then_the_package_under_test_then_the_place_of_compilation() {
        let dir = std::env::temp_dir().join(format!("kata-cc-vectors-{}", std::process::id()));
        let (one, other) = (dir.join("one"), dir.join("other"));
        for base in [&one, &other] {
            std::fs::create_dir_all(base.join(PLACE)).expect("a folder");
            std::fs::create_dir_all(base.join("checkout/a/b")).expect("a folder");
        }
        let (ours, theirs) = (one.join("checkout/a/b"), other.join("checkout"));
        let found = find(None, Some(&ours), &theirs);
        assert_eq!(found, Some(one.join(PLACE)), "of the package that runs, from however deep");
        assert_eq!(find(None, None, &theirs), Some(other.join(PLACE)));
        assert_eq!(find(None, Some(Path::new("/proc")), &theirs), Some(other.join(PLACE)));
        assert_eq!(find(None, None, Path::new("/proc")), None);
        let wrong = Some(dir.join("nowhere"));
        assert_eq!(find(wrong.clone(), Some(&ours), &theirs), wrong);
        std::fs::remove_dir_all(&dir).expect("ours");
    }
}
