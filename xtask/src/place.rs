//! Where something is built, and what keeps that place out of the bytes.
//!
//! Paths get into a program by panic locations, `file!()`, generated code in `OUT_DIR`, `__FILE__` of C code and debug
//! information. The compilers are told to write three fixed names in their stead. rustc is told by a wrapper and not by `RUSTFLAGS`:
//! cargo names the folders of build scripts (`OUT_DIR`) by a hash of the flags, so that flags with paths in them would get into
//! the bytes themselves.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::paths;
use crate::shell::{command, run};

/// Variables of the caller, by how they begin, that change what is built.
const FOREIGN: [&str; 16] = [
    "AR",
    "AWS_LC_SYS_",
    "CARGO_BUILD_",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_INCREMENTAL",
    "CARGO_PROFILE_",
    "CARGO_TARGET_",
    "CC",
    "CFLAGS",
    "CPPFLAGS",
    "CXX",
    "HOST_",
    "LDFLAGS",
    "RUSTC",
    "RUSTFLAGS",
    "TARGET_",
];

/// A checkout, cargo's target folder and cargo's home.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Root of the sources.
    pub(crate) source: PathBuf,
    /// cargo's target folder.
    pub(crate) target: PathBuf,
    /// cargo's home, where the sources of dependencies lie.
    pub(crate) cargo_home: PathBuf,
}

impl Place {
    /// This checkout and the user's own home of cargo, with a target folder.
    pub(crate) fn here(target: &Path) -> Self {
        Self { source: paths::root(), target: target.to_path_buf(), cargo_home: paths::cargo_home() }
    }

    /// cargo as it builds here, with no flags of the caller's and no path of this place in what it makes.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut cargo = command("cargo", arguments);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| FOREIGN.iter().any(|foreign| name.starts_with(foreign))) {
                cargo.env_remove(name);
            }
        }
        let c_flags: Vec<String> =
            self.names().map(|(from, to)| format!("-ffile-prefix-map={}={to}", from.display())).into();
        cargo.current_dir(&self.source);
        cargo.env("CARGO_HOME", &self.cargo_home).env("CARGO_TARGET_DIR", &self.target);
        cargo.env("RUSTC_WRAPPER", self.wrapper()?).env("CFLAGS", c_flags.join(" "));
        cargo.env("LC_ALL", "C").env("SOURCE_DATE_EPOCH", "0");
        Ok(cargo)
    }

    /// Builds one program and gives its path. All packages are selected: cargo unites the features of what is selected, so the program
    /// has those of the one that the tests run.
    pub(crate) fn program(&self, name: &str) -> anyhow::Result<PathBuf> {
        let arguments = ["build", "--release", "--locked", "--quiet", "--workspace", "--bin", name];
        run(&mut self.cargo(&arguments)?)?;
        Ok(self.target.join(paths::TARGET).join("release").join(name))
    }

    /// The first of this place's paths that stands in the bytes.
    pub(crate) fn path_in(&self, bytes: &[u8]) -> Option<&Path> {
        self.names().map(|(path, _)| path).into_iter().find(|path| {
            let text = path.as_os_str().as_encoded_bytes();
            bytes.windows(text.len()).any(|window| window == text)
        })
    }

    /// What stands in the bytes instead of which path. The target folder is last, and so counts before a checkout that holds it.
    fn names(&self) -> [(&Path, &'static str); 3] {
        [(&self.cargo_home, "/cargo"), (&self.source, "/source"), (&self.target, "/target")]
    }

    fn wrapper(&self) -> anyhow::Result<PathBuf> {
        let file = self.target.join("rustc-without-paths");
        let flags = self
            .names()
            .map(|(from, to)| format!(" --remap-path-prefix={}={to}", shell_word(&from.to_string_lossy())));
        let script = format!("#!/bin/sh\nexec \"$@\"{}\n", flags.concat());
        if std::fs::read_to_string(&file).is_ok_and(|old| old == script) {
            return Ok(file);
        }
        std::fs::create_dir_all(&self.target)
            .and_then(|()| std::fs::write(&file, script))
            .and_then(|()| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }
}

/// A text as one word of a shell.
fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_the_bytes_is_found() {
        let place =
            Place { source: "/a/source".into(), target: "/a/target".into(), cargo_home: "/home/x".into() };
        assert_eq!(place.path_in(b"..panicked at /a/target/x.rs"), Some(Path::new("/a/target")));
        assert_eq!(place.path_in(b"..panicked at /target/x.rs"), None);
        assert_eq!(place.path_in(b""), None);
    }

    #[test]
    fn a_path_is_one_word() {
        assert_eq!(shell_word("/it's $HOME"), r"'/it'\''s $HOME'");
    }
}
