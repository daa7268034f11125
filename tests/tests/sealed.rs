//! Images in a confidential guest taken from the node's copy: sealed ones block for block checked, encrypted ones chunk for chunk, and never
//! believed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kata_cc_tests::image::MARKER;
use kata_cc_tests::machines_run_here;
use kata_cc_tests::pki::Pki;
use kata_cc_tests::process::run;
use kata_cc_tests::traces::Traces;
use kata_cc_tests::world::{Tampering, World};

/// Seals the image to know its seal; gives the seal's file. The node has no copy of it yet.
fn seal(world: &World, image: &str) -> anyhow::Result<PathBuf> {
    let (seal, file) = (world.dir.join("seal.json"), world.dir.join("elsewhere"));
    let mut command = world.kata_cc(&Tampering::default())?;
    command.args(["image", "seal", image, "--seal"]).arg(&seal).arg("--output").arg(&file);
    command.arg("--registry-ca").arg(Pki::at(&world.material).ca);
    run(&mut command, 120)?.ok().context("image seal")?;
    std::fs::remove_file(file)?;
    Ok(seal)
}

/// The copy that the node makes of an image of its own accord.
fn made(world: &World) -> anyhow::Result<PathBuf> {
    let begun = Instant::now();
    loop {
        for entry in std::fs::read_dir(world.state_dir().join("images")).into_iter().flatten() {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "sealed") {
                return Ok(path);
            }
        }
        ensure!(begun.elapsed() < Duration::from_secs(120), "the node made no copy of the image");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A key pair for signatures: the private key's file, the public one's PEM.
fn key_pair(world: &World, name: &str) -> anyhow::Result<(PathBuf, String)> {
    let private = world.dir.join(format!("{name}.pem"));
    let mut make = Command::new("openssl");
    make.args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"]).arg(&private);
    run(&mut make, 30)?.ok()?;
    let public = run(Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(&private), 30)?.ok()?;
    Ok((private, public.stdout))
}

/// Signs what `name` names in the registry.
fn sign(world: &World, name: &str, key: &Path) -> anyhow::Result<()> {
    let mut command = world.kata_cc(&Tampering::default())?;
    command.args(["image", "sign", name, "--key"]).arg(key);
    command.arg("--registry-ca").arg(Pki::at(&world.material).ca);
    run(&mut command, 60)?.ok().context("image sign").map(drop)
}

/// A guest with a signature policy takes the node's copy by a seal that lies beside the image, when who may sign the image signed it.
#[test]
fn a_seal_beside_the_image_counts_when_its_signer_does() -> anyhow::Result<()> {
    if !machines_run_here() {
        return Ok(());
    }
    let mut world = World::of_test("signed")?;
    let before = Traces::take(&world.dir);
    let image = format!("{}/demo/plain:1", world.registry.host);
    world.push_plain(&image)?;
    let ((key, public), (other, _)) = (key_pair(&world, "signer")?, key_pair(&world, "other")?);
    let policy = policy_of(&world, &public)?;
    let guest = Tampering { image: Some(image.clone()), signatures: Some(policy), ..Default::default() };
    let runs = |world: &World, name: &str| -> anyhow::Result<(bool, String)> {
        let ended = world.run(name, &guest, &[])?;
        Ok((ended.code == 0 && ended.stdout.contains(MARKER), ended.text()))
    };

    let (ran, text) = runs(&world, "unsigned")?;
    ensure!(!ran && text.contains("unsigned"), "nobody signed it:\n{text}");
    sign(&world, &image, &other)?;
    let (ran, text) = runs(&world, "by-another")?;
    ensure!(!ran && text.contains("wrong key"), "another signed it:\n{text}");
    sign(&world, &image, &key)?;
    let (ran, text) = runs(&world, "signed")?;
    ensure!(ran, "signed, from the registry:\n{text}");

    let (digest, referrer) = seal_and_push(&world, &image, &other)?;
    // From here on nobody can pull it.
    let layer = world.registry.blob(&layer_of(&world, &image)?);
    let aside = world.dir.join("layer");
    std::fs::rename(&layer, &aside)?;
    let (ran, text) = runs(&world, "seal-by-another")?;
    ensure!(!ran, "a seal that another signed was believed:\n{text}");
    sign(&world, &referrer, &key)?;
    let (ran, text) = runs(&world, "sealed")?;
    ensure!(ran, "from the node's copy, by the seal beside the image:\n{text}");

    // What lies behind the node's copy takes the registry's place for an image that is named by its digest.
    std::fs::rename(&aside, &layer)?;
    seal_and_push(&world, &image, &key)?;
    world.registry.stop();
    let pinned = format!("{}@{digest}", image.trim_end_matches(":1"));
    let ended = world.run("no-registry", &Tampering { image: Some(pinned), ..guest.clone() }, &[])?;
    ensure!(ended.code == 0 && ended.stdout.contains(MARKER), "without a registry:\n{}", ended.text());
    let (ran, text) = runs(&world, "tag-without-registry")?;
    ensure!(!ran, "a tag was believed of the host:\n{text}");
    let left = before.left_after_a_minute(&world.dir);
    assert!(left.is_empty(), "left behind: {left:#?}");
    std::fs::remove_dir_all(&world.dir)?;
    Ok(())
}

/// A signature policy that wants the signature of this key (PEM) and nothing else.
fn policy_of(world: &World, public: &str) -> anyhow::Result<PathBuf> {
    let policy = world.dir.join("policy.json");
    let requirement = serde_json::json!({"type": "sigstoreSigned", "keyData": base64(public.as_bytes())?,
        "signedIdentity": {"type": "matchRepository"}});
    std::fs::write(&policy, serde_json::json!({"default": [requirement]}).to_string())?;
    Ok(policy)
}

/// The node keeps an encrypted image's layers as they are. A guest that may have the key reads them from there, chunk by chunk as the image's
/// signer listed them.
#[test]
fn encrypted_layers_come_from_the_nodes_copy_and_no_changed_chunk_is_decrypted() -> anyhow::Result<()> {
    if !machines_run_here() {
        return Ok(());
    }
    let mut world = World::of_test("kept")?;
    let before = Traces::take(&world.dir);
    let (key, public) = key_pair(&world, "signer")?;
    let guest = Tampering {
        signatures: Some(policy_of(&world, &public)?),
        seal_at_first_use: true,
        ..Default::default()
    };
    world.admit(&guest)?;
    let image = world.image.clone();
    sign(&world, &image, &key)?;
    let mut chunks = world.kata_cc(&Tampering::default())?;
    chunks.args(["image", "chunks", &image, "--push", "--sign-key"]).arg(&key);
    run(chunks.arg("--registry-ca").arg(Pki::at(&world.material).ca), 120)?.ok().context("image chunks")?;

    let first = world.run("first", &guest, &[])?;
    ensure!(first.code == 0 && first.stdout.contains(MARKER), "from the registry:\n{}", first.text());
    ensure!(!first.text().contains("of the node's copy"), "there was none:\n{}", first.text());
    let file = made(&world)?;
    let whole = std::fs::read(&file)?;
    let plain = plain_layer(&world)?;
    ensure!(!whole.windows(64).any(|part| part == &plain[1000..1064]), "the node has plaintext");
    // From here on nobody can pull it.
    let (digest, layer) = world.digests()?;
    std::fs::remove_file(world.registry.blob(&layer))?;
    let second = world.run("second", &guest, &[])?;
    ensure!(second.code == 0 && second.stdout.contains(MARKER), "from the copy:\n{}", second.text());
    ensure!(second.text().contains("of the node's copy"), "not from the copy:\n{}", second.text());

    let mut flipped = whole.clone();
    flipped[1000] ^= 1;
    std::fs::write(&file, flipped)?;
    let refused = world.run("flipped", &guest, &[])?;
    ensure!(refused.code != 0 && !refused.stdout.contains("plaintext-marker"), "ran:\n{}", refused.text());
    for part in [
        "layer 0 was changed: chunk 0 (bytes 0 to ",
        "the chunk list says sha256:",
        "the node's copy sent one with the hash sha256:",
        "from the node's copy",
    ] {
        ensure!(refused.text().contains(part), "expected {part:?}, seen:\n{}", refused.text());
    }
    std::fs::write(&file, whole)?;

    // By its digest it needs no registry at all.
    world.registry.stop();
    let pinned = format!("{}@{digest}", image.trim_end_matches(":1"));
    let ended = world.run("no-registry", &Tampering { image: Some(pinned), ..guest }, &[])?;
    ensure!(ended.code == 0 && ended.stdout.contains(MARKER), "without a registry:\n{}", ended.text());
    let left = before.left_after_a_minute(&world.dir);
    assert!(left.is_empty(), "left behind: {left:#?}");
    std::fs::remove_dir_all(&world.dir)?;
    Ok(())
}

/// Seals the image into the node's folder, and beside the image, signed; gives the digest of its manifest and the referrer.
fn seal_and_push(world: &World, image: &str, key: &Path) -> anyhow::Result<(String, String)> {
    let mut seal = world.kata_cc(&Tampering::default())?;
    seal.args(["--json", "image", "seal", image, "--push", "--sign-key"]).arg(key);
    seal.arg("--registry-ca").arg(Pki::at(&world.material).ca);
    let told: serde_json::Value = serde_json::from_str(&run(&mut seal, 120)?.ok()?.stdout)?;
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned).context("not told");
    Ok((text(&told["seal"]["manifest"])?, text(&told["referrer"])?))
}

fn base64(bytes: &[u8]) -> anyhow::Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), bytes)?;
    Ok(run(Command::new("base64").arg("-w0").arg(file.path()), 30)?.ok()?.stdout)
}

/// The image's layer as it was before it was encrypted: the largest blob of it.
fn plain_layer(world: &World) -> anyhow::Result<Vec<u8>> {
    let mut blobs = Vec::new();
    for entry in std::fs::read_dir(world.material.join("image/blobs/sha256"))? {
        blobs.push(std::fs::read(entry?.path())?);
    }
    blobs.into_iter().max_by_key(Vec::len).context("the image has no blobs")
}

/// Digest of the only layer of the image.
fn layer_of(world: &World, image: &str) -> anyhow::Result<String> {
    let mut command = world.kata_cc(&Tampering::default())?;
    command.args(["--json", "image", "inspect", image]);
    command.arg("--registry-ca").arg(Pki::at(&world.material).ca);
    let told: serde_json::Value = serde_json::from_str(&run(&mut command, 60)?.ok()?.stdout)?;
    Ok(told["layers"][0]["digest"].as_str().context("no layer")?.to_owned())
}

#[test]
fn a_sealed_image_runs_without_its_layers_and_no_changed_block_is_read() -> anyhow::Result<()> {
    if !machines_run_here() {
        return Ok(());
    }
    let world = World::of_test("sealed")?;
    let before = Traces::take(&world.dir);
    let image = format!("{}/demo/plain:1", world.registry.host);
    world.push_plain(&image)?;
    let seal = seal(&world, &image)?;
    let plain = Tampering { image: Some(image.clone()), ..Default::default() };
    let sealed = Tampering { seals: vec![seal], ..plain.clone() };

    // The first one pulls, and the node makes its copy for the next.
    let first = Tampering { seal_at_first_use: true, ..sealed.clone() };
    let pulled = world.run("pulled", &first, &[])?;
    ensure!(pulled.code == 0 && pulled.stdout.contains(MARKER), "without a copy:\n{}", pulled.text());
    let file = made(&world)?;
    // From here on nobody can pull it.
    std::fs::remove_file(world.registry.blob(&layer_of(&world, &image)?))?;
    let refused = world.run("no-layer", &plain, &[])?;
    ensure!(refused.code != 0 && !refused.stdout.contains(MARKER), "pulled:\n{}", refused.text());
    let good = world.run("sealed", &sealed, &[])?;
    ensure!(good.code == 0 && good.stdout.contains(MARKER), "from the node's copy:\n{}", good.text());

    let whole = std::fs::read(&file)?;
    let marker = whole.windows(MARKER.len()).position(|window| window == MARKER.as_bytes());
    let marker = marker.context("the marker lies in the file")?;
    let named =
        format!("data block {} of image {image} is not what its root hash vouches for", marker / 4096);
    for (name, place, part) in [("content", marker, named.as_str()), ("superblock", 1024, "root hash")] {
        let mut flipped = whole.clone();
        flipped[place] ^= 1;
        std::fs::write(&file, flipped)?;
        let refused = world.run(name, &sealed, &[])?;
        ensure!(
            refused.code != 0 && !refused.stdout.contains("plaintext-marker"),
            "{name} ran:\n{}",
            refused.text()
        );
        ensure!(refused.text().contains(part), "{name}: expected {part:?}, seen:\n{}", refused.text());
    }
    let left = before.left_after_a_minute(&world.dir);
    assert!(left.is_empty(), "left behind: {left:#?}");
    std::fs::remove_dir_all(&world.dir)?;
    Ok(())
}
