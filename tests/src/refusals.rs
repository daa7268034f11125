//! Every way in which the encrypted image must not run, and the words by which its refusal is known.
//!
//! The demonstration shows them, the end-to-end test demands them: one list for both.

use anyhow::Context;

use crate::image::MARKER;
use crate::world::{Tampering, World};

/// What the user sees when the virtual machine itself failed.
const MACHINE_DIED: &str = "failed by vmm: the guest broke a device's contract";

/// What the user sees when the guest's kernel has found another block than the seal of the root image vouches for.
const ROOT_CORRUPTED: &str =
    "the guest's kernel panicked: dm-verity device corrupted (a block of the guest's root image";

/// One case.
#[derive(Debug)]
pub struct Case {
    /// What was changed.
    pub name: &'static str,
    /// Words of which one must be in the refusal.
    pub expected: &'static [&'static str],
    run: fn(&mut World, &str) -> anyhow::Result<crate::process::Finished>,
}

/// How a case came out.
#[derive(Debug)]
pub struct Outcome {
    /// Whether it was refused, and for the expected reason.
    pub as_expected: bool,
    /// The last line that the user saw.
    pub reason: String,
    /// Everything the user saw.
    pub text: String,
}

impl Case {
    /// Run it; `name` is the sandbox's.
    pub fn run(&self, world: &mut World, name: &str) -> anyhow::Result<Outcome> {
        let mut finished = (self.run)(world, name).with_context(|| self.name)?;
        if finished.code != 0 && finished.text().contains(MACHINE_DIED) {
            // The lab emulates the virtual machine within another; rarely one dies there. That is no refusal.
            println!("   the virtual machine died before it could refuse: once more");
            finished = (self.run)(world, &format!("{name}-again")).with_context(|| self.name)?;
        }
        let text = finished.text();
        let refused = finished.code != 0 && !text.contains(MARKER);
        let named = self.expected.iter().any(|words| text.contains(words));
        let reason =
            text.lines().rev().find(|line| line.starts_with("kata-cc:")).unwrap_or_default().to_owned();
        Ok(Outcome { as_expected: refused && named, reason, text })
    }
}

fn with(world: &World, name: &str, tampering: &Tampering) -> anyhow::Result<crate::process::Finished> {
    world.run(name, tampering, &[])
}

/// All cases. Each leaves the world as it found it.
#[must_use]
pub fn cases() -> Vec<Case> {
    let measurement: &[&str] = &["is not among the reference values sim_snp_launch_measurement"];
    vec![
        Case {
            name: "one byte of the kernel",
            expected: measurement,
            run: |world, name| {
                let share = world.tampered_share("vmlinux-tee", b"Linux version ")?;
                with(world, name, &Tampering { share: Some(share), ..Default::default() })
            },
        },
        Case {
            name: "one byte of the root image",
            expected: &[ROOT_CORRUPTED],
            run: |world, name| {
                let share = world.tampered_share("root.erofs", b"\x7fELF")?;
                with(world, name, &Tampering { share: Some(share), ..Default::default() })
            },
        },
        Case {
            name: "another root image, with a seal of its own",
            expected: measurement,
            run: |world, name| {
                let share = world.tampered_share("root.erofs", b"Policy of a confidential guest")?;
                crate::root::seal_again(&share)?;
                with(world, name, &Tampering { share: Some(share), ..Default::default() })
            },
        },
        Case {
            name: "one word of the command line",
            expected: measurement,
            run: |world, name| {
                with(world, name, &Tampering { cmdline: Some("x".into()), ..Default::default() })
            },
        },
        Case {
            name: "other init-data",
            expected: &["is not among the reference values init_data"],
            run: |world, name| {
                let tampering =
                    Tampering { insecure_registry: Some("evil:5000".into()), ..Default::default() };
                with(world, name, &tampering)
            },
        },
        Case {
            name: "report signed by another root",
            expected: &["root of the chain is"],
            run: |world, name| {
                let platform = world.material.join("other-sim");
                with(world, name, &Tampering { platform: Some(platform), ..Default::default() })
            },
        },
        Case {
            name: "report of an earlier nonce replayed",
            // The guest itself sees it first.
            expected: &["report holds other report data than was asked for"],
            run: |world, name| {
                let platform = world.replaying_platform()?;
                with(world, name, &Tampering { platform: Some(platform), ..Default::default() })
            },
        },
        Case {
            name: "policy denies",
            expected: &["Access denied by policy"],
            run: |world, name| {
                let own = std::fs::read_to_string(world.dir.join("resource.rego"))?;
                world.set_resource_policy("package policy\nimport rego.v1\ndefault allow := false\n")?;
                let result = with(world, name, &Tampering::default());
                world.set_resource_policy(&own)?;
                result
            },
        },
        Case {
            name: "key id unknown",
            expected: &["default/key/demo does not exist"],
            run: |world, name| {
                world.remove_key()?;
                let result = with(world, name, &Tampering::default());
                world.put_key()?;
                result
            },
        },
        Case {
            name: "layer changed in the registry",
            expected: &["was changed: expected sha256:"],
            run: |world, name| {
                let (_, layer) = world.digests()?;
                let _restore = world.tamper_blob(&layer)?;
                with(world, name, &Tampering::default())
            },
        },
        Case {
            name: "other manifest for the digest",
            expected: &["serves another manifest"],
            run: |world, name| {
                let (manifest, _) = world.digests()?;
                let (repository, _) = world.image.rsplit_once(':').context("the image has a tag")?;
                let pinned = format!("{repository}@{manifest}");
                let _restore = world.tamper_blob(&manifest)?;
                with(world, name, &Tampering { image: Some(pinned), ..Default::default() })
            },
        },
        Case {
            name: "simulated root not configured at the key broker",
            expected: &["no simulated root configured"],
            run: |world, name| {
                let file = world.kbs.dir.join("kbs.toml");
                let own = std::fs::read_to_string(&file)?;
                std::fs::write(&file, without_simulated(&own))?;
                world.kbs.restart()?;
                let result = with(world, name, &Tampering::default());
                std::fs::write(&file, own)?;
                world.kbs.restart()?;
                result
            },
        },
        Case {
            name: "another program than the image's own",
            expected: &["rule the image's own program, field process.Args"],
            run: |world, name| world.run(name, &Tampering::default(), &["cat", "/etc/passwd"]),
        },
        Case {
            name: "weaker tier than the image demands (plain microVM)",
            expected: &["encrypted", "confidential"],
            run: |world, name| {
                with(world, name, &Tampering { tier: Some("vm".into()), ..Default::default() })
            },
        },
        Case {
            name: "weaker tier than the image demands (real SNP)",
            expected: &["snp"],
            run: |world, name| {
                let image = format!("{}/demo/real:1", world.registry.host);
                world.encrypt(&image, &["--require-tier", "snp"])?;
                with(world, name, &Tampering { image: Some(image), ..Default::default() })
            },
        },
    ]
}

/// The key broker's configuration without its table of simulated roots.
fn without_simulated(config: &str) -> String {
    let mut inside = false;
    let keep = |line: &&str| {
        if line.starts_with('[') {
            inside = line.contains("simulated");
        }
        !inside
    };
    config.lines().filter(keep).map(|line| format!("{line}\n")).collect()
}
