//! Where tests find the shared test vectors, and how a test skips what this machine has no part for.
//!
//! Vectors are no part of the checkout: `shared/vectors` lies beside it or above.
//! Looked for at run time, so that a test program finds them also when the checkout was moved, or when checkouts share a target folder:
//! `KATA_CC_VECTORS`; else `shared/vectors` in the folder of the package under test (cargo sets `CARGO_MANIFEST_DIR` for what it runs)
//! or any above; else above where this was compiled.
//!
//! A test whose part is missing is skipped, and says so ([`skip`]). That is right on a user's machine and wrong where everything has
//! to be tested: [`REQUIRE`] names the parts without which a test fails instead. `./x test` sets it.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

/// Where the vectors lie, from the checkout's folder or one above.
const PLACE: &str = "shared/vectors";

/// Variable that names, separated by commas, the parts that must be there: `vectors`, `all-vectors` (each has a test), `postgres`, `pkcs11`, `xz`, `binaries`,
/// `schemathesis`, `cosign`, `skopeo-sigstore`.
pub const REQUIRE: &str = "KATA_CC_REQUIRE";

/// Whether [`REQUIRE`] names this part.
#[must_use]
pub fn requires(part: &str) -> bool {
    names(&std::env::var(REQUIRE).unwrap_or_default(), part)
}

fn names(list: &str, part: &str) -> bool {
    !part.is_empty() && list.split(',').any(|name| name.trim() == part)
}

/// Says that a test is skipped since a part is missing: `what` says which, and how to get it.
///
/// # Panics
/// When [`REQUIRE`] names the part.
pub fn skip(part: &str, what: &str) {
    assert!(!requires(part), "{what} ({REQUIRE} names {part}, so no test over it may be skipped)");
    println!("skipped: {what}");
}

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

/// The path of a file or folder among the vectors. Without any vectors, says that the test is skipped.
///
/// # Panics
/// When there are vectors and this is not among them (a wrong name would otherwise skip its test for ever), and without vectors when
/// [`REQUIRE`] names them.
#[must_use]
pub fn path(name: &str) -> Option<PathBuf> {
    let Some(root) = root() else {
        skip("vectors", &format!("no vectors ({PLACE} is nowhere above, KATA_CC_VECTORS is not set)"));
        return None;
    };
    let path = root.join(name);
    assert!(path.exists(), "{} is missing, though there is a folder of vectors", path.display());
    Some(path)
}

/// The contents of a file among the vectors. Without any vectors, says that the test is skipped.
///
/// # Panics
/// As [`path`], and when the file cannot be read: that is no reason to skip a test.
#[must_use]
pub fn read(name: &str) -> Option<Vec<u8>> {
    let path = path(name)?;
    Some(std::fs::read(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_named_whole() {
        assert!(names("vectors, postgres", "vectors") && names("vectors, postgres", "postgres"));
        assert!(!names("vectors,postgres", "post") && !names("", "vectors") && !names("", ""));
    }

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
